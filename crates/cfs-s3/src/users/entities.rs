//! What users of an account can be in, and take on: groups and roles; the policies that all of them have; and providers of
//! identities from elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{ROOT_ID, User};
use crate::issuers::bare_url;
use crate::policy::{Policy, Scope};
use crate::principal::account_text;
use crate::records::name;

/// Where something is found: the identifier of its account, and its name, but for root's account in lower case, as names
/// differ in more than that.
pub(crate) type Place = (String, String);

/// The path of what was made without one.
pub(crate) fn no_path() -> String {
    "/".to_owned()
}

/// Policies of a user, a group or a role.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Policies {
    /// Documents, by the names that they were put under.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) inline: BTreeMap<String, String>,
    /// Resource names of those that are there for all.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) attached: BTreeSet<String>,
}

/// Policies that are there for all: their names, and what they allow.
const MANAGED: [(&str, &[&str]); 6] = [
    ("AdministratorAccess", &["*"]),
    ("AmazonS3FullAccess", &["s3:*"]),
    ("AmazonS3ReadOnlyAccess", &["s3:Get*", "s3:List*"]),
    ("IAMFullAccess", &["iam:*"]),
    ("IAMReadOnlyAccess", &["iam:Get*", "iam:List*"]),
    (
        "ReadOnlyAccess",
        &["s3:Get*", "s3:List*", "iam:Get*", "iam:List*"],
    ),
];
/// What their resource names begin with.
const MANAGED_ARN: &str = "arn:aws:iam::aws:policy/";

/// The name of a policy that is there for all.
pub(crate) fn managed_name(arn: &str) -> Option<&'static str> {
    let name = arn.strip_prefix(MANAGED_ARN)?;
    let found = MANAGED.iter().find(|(managed, _)| *managed == name);
    found.map(|(name, _)| *name)
}

fn managed(arn: &str) -> Option<String> {
    let name = managed_name(arn)?;
    let (_, actions) = MANAGED.iter().find(|(managed, _)| *managed == name)?;
    let statement = serde_json::json!({"Effect": "Allow", "Action": actions, "Resource": "*"});
    Some(serde_json::json!({"Statement": statement}).to_string())
}

impl Policies {
    pub(crate) fn is_empty(&self) -> bool {
        self.inline.is_empty() && self.attached.is_empty()
    }

    /// All of them. One that does not parse any more denies everything, as nobody knows what it denied.
    pub(crate) fn parsed(&self) -> Vec<Policy> {
        let attached = self.attached.iter().filter_map(|arn| managed(arn));
        let texts = self.inline.values().cloned().chain(attached);
        let parse = |text: String| {
            Policy::parse(&text, Scope::Identity).unwrap_or_else(|error| {
                tracing::error!("a policy that was taken is refused now: {error}");
                Policy::deny_all()
            })
        };
        texts.map(parse).collect()
    }
}

/// Users of an account with policies in common.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Group {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) account: String,
    pub(crate) path: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    /// Identifiers of its users.
    pub(crate) members: BTreeSet<String>,
    #[serde(default)]
    pub(crate) policies: Policies,
}

/// What others can take on for a while.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Role {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) account: String,
    pub(crate) path: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    /// The document that says who can.
    pub(crate) trust: String,
    #[serde(default)]
    pub(crate) description: Option<String>,
    /// For how long at most.
    pub(crate) session_seconds_max: u64,
    #[serde(default)]
    pub(crate) policies: Policies,
}

/// An issuer of identity tokens (OpenID Connect) that an account lets roles be taken on with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Provider {
    pub(crate) id: String,
    pub(crate) account: String,
    /// As its tokens name it.
    pub(crate) url: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    /// Whom its tokens have to be for; empty: for whom the administrator has said.
    #[serde(default)]
    pub(crate) client_ids: Vec<String>,
    /// Kept for clients, which insist on them.
    #[serde(default)]
    pub(crate) thumbprints: Vec<String>,
}

/// What is kept in a record of the root directory, and found by account and name.
pub(crate) trait Entity: Clone + Serialize {
    /// The name of its record.
    fn row(&self) -> Vec<u8>;
    /// The account whose it is, and its name.
    fn whose(&self) -> (&str, &str);

    fn place(&self) -> Place {
        let (account, name) = self.whose();
        place(account, name)
    }
}

pub(crate) fn place(account: &str, name: &str) -> Place {
    let name = match account {
        ROOT_ID => name.to_owned(),
        _ => name.to_ascii_lowercase(),
    };
    (account.to_owned(), name)
}

impl Entity for User {
    fn row(&self) -> Vec<u8> {
        match self.account.is_empty() {
            true => [name::USER, self.name.as_bytes()].concat(),
            false => [name::MEMBER, self.id.as_bytes()].concat(),
        }
    }

    fn whose(&self) -> (&str, &str) {
        match self.account.as_str() {
            "" => (ROOT_ID, &self.name),
            account => (account, &self.name),
        }
    }
}

impl Entity for Group {
    fn row(&self) -> Vec<u8> {
        [name::GROUP, self.id.as_bytes()].concat()
    }

    fn whose(&self) -> (&str, &str) {
        (&self.account, &self.name)
    }
}

impl Entity for Role {
    fn row(&self) -> Vec<u8> {
        [name::ROLE, self.id.as_bytes()].concat()
    }

    fn whose(&self) -> (&str, &str) {
        (&self.account, &self.name)
    }
}

impl Entity for Provider {
    fn row(&self) -> Vec<u8> {
        [name::PROVIDER, self.id.as_bytes()].concat()
    }

    fn whose(&self) -> (&str, &str) {
        (&self.account, self.bare())
    }

    // Paths differ in case.
    fn place(&self) -> Place {
        (self.account.clone(), self.bare().to_owned())
    }
}

impl Provider {
    /// Its URL without the scheme.
    pub(crate) fn bare(&self) -> &str {
        bare_url(&self.url).unwrap_or_default()
    }

    /// Its resource name.
    pub(crate) fn arn(&self) -> String {
        let account = account_text(&self.account);
        format!("arn:aws:iam::{account}{PROVIDER_ARN}{}", self.bare())
    }
}

/// What stands before the URL of a provider in its resource name.
const PROVIDER_ARN: &str = ":oidc-provider/";

/// The URL, without the scheme, of a provider with this resource name.
pub(crate) fn provider_named(arn: &str) -> Option<&str> {
    let (_, bare) = arn
        .strip_prefix("arn:aws:iam::")?
        .split_once(PROVIDER_ARN)?;
    (!bare.is_empty()).then_some(bare)
}

impl Group {
    /// Its resource name.
    pub(crate) fn arn(&self) -> String {
        let account = account_text(&self.account);
        format!("arn:aws:iam::{account}:group{}{}", self.path, self.name)
    }
}

impl Role {
    /// Its resource name.
    pub(crate) fn arn(&self) -> String {
        let account = account_text(&self.account);
        format!("arn:aws:iam::{account}:role{}{}", self.path, self.name)
    }

    /// Whether a name in a policy is that of who has taken it on.
    pub(crate) fn is_taken_on_as(&self, name: &str) -> bool {
        let account = account_text(&self.account);
        let before = format!("arn:aws:sts::{account}:assumed-role/{}/", self.name);
        name.strip_prefix(&before)
            .is_some_and(|session| !session.is_empty())
    }
}

impl User {
    /// Its resource name in the account that it is a user of; for one at the head of its own, in root's.
    pub(crate) fn arn(&self) -> String {
        let account = account_text(&self.account);
        format!("arn:aws:iam::{account}:user{}{}", self.path, self.name)
    }

    /// Whether a name in a policy is that of a user in root's account: its identifier or its name, by itself or at the end of a
    /// resource name.
    pub(crate) fn is_named_by_root(&self, name: &str) -> bool {
        let bare = match name.strip_prefix("arn:aws:iam::") {
            None => name,
            Some(rest) => match rest.split_once(":user/") {
                // Users in accounts of this pool are others.
                Some((account, _)) if is_account(account) => return false,
                Some((_, path)) => path.rsplit('/').next().unwrap_or_default(),
                None => return false,
            },
        };
        !bare.is_empty() && (bare == self.id || bare == self.name)
    }
}

/// Whether a text has the form of an account's identifier.
fn is_account(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
