//! Roles of an account, and credentials for a while.

use std::sync::Arc;

use http::StatusCode;

use super::people::too_many;
use super::policies::{check, check_bytes};
use super::sessions::{Of, Session};
use super::shown::{Shown, document};
use super::{
    Call, Done, Form, OF_A_KIND_MAX, Refused, by_name, denied, exists, in_use, invalid, missing,
    refused,
};
use crate::issuers::SessionTags;
use crate::policy::{Policy, Scope, Verdict};
use crate::principal::{Kind, account_text};
use crate::users::{Policies, Role, no_path};

/// Longest name, characters.
pub(super) const NAME_CHARACTERS_MAX: usize = 64;
/// Longest description, characters.
const DESCRIPTION_CHARACTERS_MAX: usize = 1000;
/// How long credentials of a role last, seconds.
const SESSION_SECONDS_MIN: u64 = 900;
const SESSION_SECONDS: u64 = 3600;
const SESSION_SECONDS_MAX: u64 = 43_200;
/// How long those of a user last: by default, and at most.
const USER_SECONDS: u64 = 43_200;
const USER_SECONDS_MAX: u64 = 129_600;
/// Longest document that credentials are limited to, bytes.
const LIMIT_BYTES_MAX: usize = 2048;

impl Shown {
    pub(crate) fn role(&mut self, role: &Role) {
        self.leaf("Path", &role.path)
            .leaf("RoleName", &role.name)
            .leaf("RoleId", &role.id)
            .leaf("Arn", &role.arn())
            .time("CreateDate", role.created)
            .leaf("AssumeRolePolicyDocument", &document(&role.trust))
            .leaf("MaxSessionDuration", &role.session_seconds_max.to_string());
        if let Some(description) = &role.description {
            self.leaf("Description", description);
        }
    }

    /// Credentials of a role, and who has them.
    pub(super) fn taken_on(&mut self, session: &Session, role: &Role, name: &str) -> &mut Self {
        let account = account_text(&role.account);
        self.credentials(session)
            .within("AssumedRoleUser", |shown| {
                shown
                    .leaf("AssumedRoleId", &format!("{}:{name}", role.id))
                    .leaf(
                        "Arn",
                        &format!("arn:aws:sts::{account}:assumed-role/{}/{name}", role.name),
                    );
            })
    }

    fn credentials(&mut self, session: &Session) -> &mut Self {
        self.within("Credentials", |shown| {
            shown
                .leaf("AccessKeyId", &session.access_key_id)
                .leaf("SecretAccessKey", &session.secret_access_key)
                .leaf("SessionToken", &session.token)
                .time("Expiration", session.end);
        })
    }
}

impl Call {
    fn new_role(&self, name: &str, path: String, trust: String) -> Role {
        Role {
            name: name.to_owned(),
            id: self.new_id(),
            account: self.account_id().to_owned(),
            path,
            created: self.face.users.now(),
            trust,
            description: None,
            session_seconds_max: SESSION_SECONDS,
            policies: Policies::default(),
        }
    }

    /// The role that is meant, if who asks may do this with it.
    pub(super) fn role(&self) -> Result<Arc<Role>, Refused> {
        let name = self.must("RoleName")?;
        let found = self.face.users.role_in(self.account_id(), name);
        let resource = match &found {
            Some(role) => role.arn(),
            None => self.new_role(name, no_path(), String::new()).arn(),
        };
        self.authorize(self.account_id(), &resource)?;
        found.ok_or_else(|| missing("role", name))
    }

    /// Sets what a role has beside its name, if it is given.
    fn fill_role(&self, role: &mut Role) -> Result<(), Refused> {
        if let Some(text) = self.field("Description") {
            if text.chars().count() > DESCRIPTION_CHARACTERS_MAX {
                return Err(invalid("the description is too long"));
            }
            role.description = Some(text.to_owned());
        }
        if let Some(seconds) =
            self.seconds("MaxSessionDuration", SESSION_SECONDS, SESSION_SECONDS_MAX)?
        {
            role.session_seconds_max = seconds;
        }
        Ok(())
    }
}

impl Form {
    fn seconds(&self, name: &str, least: u64, most: u64) -> Result<Option<u64>, Refused> {
        match self.field(name).map(str::parse::<u64>) {
            None => Ok(None),
            Some(Ok(seconds)) if (least..=most).contains(&seconds) => Ok(Some(seconds)),
            Some(_) => Err(invalid(format!("{name} is {least} to {most} seconds"))),
        }
    }

    /// Credentials of a role, under a name, for who may take it on.
    pub(super) fn take_on(
        &self,
        role: &Role,
        name: &str,
        tags: SessionTags,
    ) -> Result<Session, Refused> {
        let most = role.session_seconds_max.min(SESSION_SECONDS_MAX);
        let seconds = self.seconds("DurationSeconds", SESSION_SECONDS_MIN, most)?;
        let limit = self.field("Policy");
        if let Some(text) = limit {
            if text.len() > LIMIT_BYTES_MAX {
                return Err(refused(
                    StatusCode::BAD_REQUEST,
                    "PackedPolicyTooLarge",
                    format!("the policy has at most {LIMIT_BYTES_MAX} bytes"),
                ));
            }
            check(text, Scope::Identity)?;
        }
        let session = self.face.users.make_session(
            Of::Role(&role.id, name),
            seconds.unwrap_or(SESSION_SECONDS),
            limit.map(str::to_owned),
            tags,
        )?;
        Ok(session)
    }
}

pub(super) fn create(call: &Call) -> Done {
    let users = &call.face.users;
    let name = call.name("RoleName", NAME_CHARACTERS_MAX)?;
    let path = call.path("Path")?.unwrap_or_else(no_path);
    let trust = call.must("AssumeRolePolicyDocument")?;
    check_bytes(trust.len())?;
    check(trust, Scope::Trust)?;
    let mut role = call.new_role(name, path, trust.to_owned());
    call.fill_role(&mut role)?;
    call.authorize(call.account_id(), &role.arn())?;
    let _changing = users.changing.lock();
    if users.role_in(call.account_id(), name).is_some() {
        return Err(exists("role", name));
    }
    if users.roles_in(call.account_id()).len() >= OF_A_KIND_MAX {
        return Err(too_many(OF_A_KIND_MAX));
    }
    let role = users.store_role(role)?;
    let mut shown = Shown::default();
    shown.within("Role", |shown| shown.role(&role));
    Ok(shown)
}

pub(super) fn get(call: &Call) -> Done {
    let role = call.role()?;
    let mut shown = Shown::default();
    shown.within("Role", |shown| shown.role(&role));
    Ok(shown)
}

pub(super) fn list(call: &Call) -> Done {
    let any = call.new_role("", no_path(), String::new());
    call.authorize(call.account_id(), &any.arn())?;
    let prefix = call.field("PathPrefix").unwrap_or("/");
    let mut roles = call.face.users.roles_in(call.account_id());
    roles.retain(|role| role.path.starts_with(prefix));
    call.page(by_name(roles, |role| &role.name), |shown, roles| {
        shown.list("Roles", roles, |shown, role| shown.role(role));
    })
}

pub(super) fn update(call: &Call) -> Done {
    let _changing = call.face.users.changing.lock();
    let mut role = Role::clone(&*call.role()?);
    call.fill_role(&mut role)?;
    call.face.users.store_role(role)?;
    Ok(Shown::default())
}

pub(super) fn update_trust(call: &Call) -> Done {
    let trust = call.must("PolicyDocument")?;
    check_bytes(trust.len())?;
    check(trust, Scope::Trust)?;
    let _changing = call.face.users.changing.lock();
    let mut role = Role::clone(&*call.role()?);
    role.trust = trust.to_owned();
    call.face.users.store_role(role)?;
    Ok(Shown::default())
}

pub(super) fn delete(call: &Call) -> Done {
    let _changing = call.face.users.changing.lock();
    let role = call.role()?;
    if !role.policies.is_empty() {
        return Err(in_use("the role has policies"));
    }
    call.face.users.remove_role(&role)?;
    Ok(Shown::default())
}

/// Takes a role on. The role's own document has to name who asks; where it names an account or everybody, a policy of who asks
/// has to allow it too, unless that is at the head of the account.
pub(super) fn assume(call: &Call) -> Done {
    let arn = call.must("RoleArn")?;
    let name = call.name("RoleSessionName", NAME_CHARACTERS_MAX)?;
    let role = call.face.users.role(|role| role.arn() == arn);
    // Who may not take it on is not told whether it is there.
    let role = role.ok_or_else(denied)?;
    let asked = call.asked(arn);
    let trust = Policy::parse(&role.trust, Scope::Trust).map_err(|_| denied())?;
    let trusted = trust.decide(&asked);
    let own = call.principal.decide(&asked);
    let is_named = !trusted.is_for_account && !trusted.is_for_all;
    let is_allowed = trusted.verdict == Verdict::Allow
        && (own == Verdict::Allow
            || own == Verdict::Silent && (is_named || !call.principal.is_bound()));
    if !is_allowed {
        return Err(denied());
    }
    let session = call.take_on(&role, name, SessionTags::new())?;
    let mut shown = Shown::default();
    shown.taken_on(&session, &role, name);
    Ok(shown)
}

/// Credentials for a while of who asks.
pub(super) fn session_token(call: &Call) -> Done {
    let principal = &call.principal;
    if principal.decide(&call.asked("*")) == Verdict::Deny && !principal.is_root() {
        return Err(denied());
    }
    let user = match (&principal.kind, principal.user()) {
        (Kind::Role(..), _) | (_, None) => return Err(denied()),
        _ if principal.is_session => return Err(denied()),
        (_, Some(user)) => user,
    };
    let seconds = call.seconds("DurationSeconds", SESSION_SECONDS_MIN, USER_SECONDS_MAX)?;
    let of = Of::User(&user.id);
    let users = &call.face.users;
    let session = users.make_session(
        of,
        seconds.unwrap_or(USER_SECONDS),
        None,
        SessionTags::new(),
    )?;
    let mut shown = Shown::default();
    shown.credentials(&session);
    Ok(shown)
}

/// Who asks, which everybody may ask.
pub(super) fn caller(call: &Call) -> Done {
    let mut shown = Shown::default();
    shown
        .leaf("UserId", &call.principal.user_id())
        .leaf("Account", call.account_id())
        .leaf("Arn", &call.principal.arn());
    Ok(shown)
}
