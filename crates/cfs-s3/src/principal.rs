//! Who asks: the user at the head of an account, a user in it, or who has taken on a role of it.
//!
//! Each user that the pool's administrator makes is at the head of an account of its own, whose identifier is the user's, and
//! may do everything in it. It is a user in root's account too, where root gives it policies. Users in an account and roles
//! may do what policies say, and what they make is the account's.

use std::sync::Arc;

use crate::issuers::SessionTags;
use crate::policy::{Asked, Policy, Verdict};
use crate::users::{ROOT_ID, Role, User};

/// Which of an account.
pub(crate) enum Kind {
    /// The one at its head.
    Head,
    /// A user in it.
    Member(Arc<User>),
    /// Whoever has taken on a role, under a name for the time being.
    Role(Arc<Role>, String),
}

/// Who asks.
pub(crate) struct Principal {
    /// The user at the head of the account: who owns what is made.
    pub(crate) account: Arc<User>,
    pub(crate) kind: Kind,
    /// Policies of its own, and of its groups.
    pub(crate) policies: Vec<Policy>,
    /// What credentials that end were limited to.
    pub(crate) limit: Option<Policy>,
    /// It asks by credentials that end.
    pub(crate) is_session: bool,
    /// What the token said that such credentials were given for.
    pub(crate) tags: SessionTags,
}

/// An account in resource names: root's has none.
pub(crate) fn account_text(id: &str) -> &str {
    match id {
        ROOT_ID => "",
        id => id,
    }
}

/// Whether a name in a policy is that of the account with this identifier: itself, or the resource name of the head.
pub(crate) fn names_account(name: &str, id: &str) -> bool {
    let head = name
        .strip_prefix("arn:aws:iam::")
        .and_then(|rest| rest.strip_suffix(":root"));
    name == id || head.is_some_and(|account| account == id || account == account_text(id))
}

impl Principal {
    /// Whether it may do only what policies say.
    pub(crate) fn is_bound(&self) -> bool {
        !matches!(self.kind, Kind::Head)
    }

    /// Whether it may do everything.
    pub(crate) fn is_root(&self) -> bool {
        self.account.is_root() && !self.is_bound() && self.limit.is_none()
    }

    /// Its resource name.
    pub(crate) fn arn(&self) -> String {
        let account = account_text(&self.account.id);
        match &self.kind {
            Kind::Head => format!("arn:aws:iam::{account}:root"),
            Kind::Member(user) => user.arn(),
            Kind::Role(role, session) => {
                format!(
                    "arn:aws:sts::{account}:assumed-role/{}/{session}",
                    role.name
                )
            }
        }
    }

    /// How access logs name it: the identifier of the account, where it is at its head.
    pub(crate) fn logged(&self) -> String {
        match self.kind {
            Kind::Head => self.account.id.clone(),
            Kind::Member(_) | Kind::Role(..) => self.arn(),
        }
    }

    /// Its identifier; that of a role with the name that it was taken on under.
    pub(crate) fn user_id(&self) -> String {
        match &self.kind {
            Kind::Head => self.account.id.clone(),
            Kind::Member(user) => user.id.clone(),
            Kind::Role(role, session) => format!("{}:{session}", role.id),
        }
    }

    /// The name of a user; a role has none.
    pub(crate) fn user_name(&self) -> Option<&str> {
        match &self.kind {
            Kind::Head => Some(&self.account.name),
            Kind::Member(user) => Some(&user.name),
            Kind::Role(..) => None,
        }
    }

    /// The user, if it is one.
    pub(crate) fn user(&self) -> Option<&Arc<User>> {
        match &self.kind {
            Kind::Head => Some(&self.account),
            Kind::Member(user) => Some(user),
            Kind::Role(..) => None,
        }
    }

    /// Whether a name in a policy is that of its account: the identifier, or the resource name of the head.
    pub(crate) fn account_is_named(&self, name: &str) -> bool {
        names_account(name, &self.account.id)
    }

    /// Whether a name in a policy is its own.
    pub(crate) fn is_named(&self, name: &str) -> bool {
        match &self.kind {
            Kind::Head => self.account_is_named(name) || self.account.is_named_by_root(name),
            Kind::Member(user) => name == user.id || name == user.arn(),
            Kind::Role(role, _) => name == role.arn() || name == self.arn(),
        }
    }

    /// What its own policies say: those that it has, and what its credentials were limited to.
    pub(crate) fn decide(&self, asked: &Asked<'_>) -> Verdict {
        let mut verdict = Verdict::Silent;
        for policy in &self.policies {
            match policy.decide(asked).verdict {
                Verdict::Deny => return Verdict::Deny,
                Verdict::Allow => verdict = Verdict::Allow,
                Verdict::Silent => {}
            }
        }
        match &self.limit {
            // What credentials were limited to, they have of what there is, and nothing else.
            Some(limit) if limit.decide(asked).verdict != Verdict::Allow => Verdict::Deny,
            _ => verdict,
        }
    }

    /// Whether some condition asks for the tags of an object.
    pub(crate) fn asks_for_tags(&self) -> bool {
        let mut policies = self.policies.iter().chain(&self.limit);
        policies.any(|policy| policy.asks_for_tags)
    }
}

#[cfg(test)]
impl Principal {
    /// The head of an account of this name, or a user in it.
    pub(crate) fn for_tests(head: &str, member: Option<&str>) -> Self {
        let user = |name: &str, account: &str| {
            Arc::new(User {
                name: name.to_owned(),
                id: format!("id-of-{name}"),
                account: account.to_owned(),
                ..User::default()
            })
        };
        let account = user(head, "");
        Self {
            kind: match member {
                Some(name) => Kind::Member(user(name, &account.id)),
                None => Kind::Head,
            },
            account,
            policies: Vec::new(),
            limit: None,
            is_session: false,
            tags: SessionTags::new(),
        }
    }
}
