//! Policies of users, groups and roles: documents that are put under names, and those that are there for all.

use std::sync::Arc;

use http::StatusCode;

use super::shown::{Shown, document};
use super::{Call, Done, Refused, by_name, invalid, missing, refused};
use crate::policy::{Policy, Scope};
use crate::users::{Group, Policies, Role, User, managed_name};

/// Bytes of all documents of one user, group or role.
const DOCUMENT_BYTES_MAX: usize = 16 << 10;
/// Longest name of a policy, characters.
const NAME_CHARACTERS_MAX: usize = 128;
/// Policies for all that one can have.
const ATTACHED_MAX: usize = 20;

/// Who has policies.
enum Holder {
    User(Arc<User>),
    Group(Arc<Group>),
    Role(Arc<Role>),
}

impl Holder {
    /// Who is meant, if who asks may do this with it.
    fn of(call: &Call) -> Result<Self, Refused> {
        if call.field("GroupName").is_some() {
            return call.group().map(Self::Group);
        }
        if call.field("RoleName").is_some() {
            return call.role().map(Self::Role);
        }
        call.must("UserName")?;
        call.user().map(Self::User)
    }

    fn policies(&self) -> &Policies {
        match self {
            Self::User(user) => &user.policies,
            Self::Group(group) => &group.policies,
            Self::Role(role) => &role.policies,
        }
    }

    /// Stores other policies. Who calls holds the lock of changes.
    fn store(self, call: &Call, policies: Policies) -> Done {
        let users = &call.face.users;
        match self {
            Self::User(user) => {
                let user = User::clone(&user);
                users.store_user(User { policies, ..user }).map(drop)?;
            }
            Self::Group(group) => {
                let group = Group::clone(&group);
                users.store_group(Group { policies, ..group }).map(drop)?;
            }
            Self::Role(role) => {
                let role = Role::clone(&role);
                users.store_role(Role { policies, ..role }).map(drop)?;
            }
        }
        Ok(Shown::default())
    }

    fn show_name(&self, shown: &mut Shown) {
        match self {
            Self::User(user) => shown.leaf("UserName", &user.name),
            Self::Group(group) => shown.leaf("GroupName", &group.name),
            Self::Role(role) => shown.leaf("RoleName", &role.name),
        };
    }
}

/// Refuses a document that is none.
pub(super) fn check(text: &str, scope: Scope<'_>) -> Result<(), Refused> {
    match Policy::parse(text, scope) {
        Ok(_) => Ok(()),
        Err(error) => Err(refused(
            StatusCode::BAD_REQUEST,
            "MalformedPolicyDocument",
            error.to_string(),
        )),
    }
}

/// Refuses to keep more.
pub(super) fn check_bytes(bytes: usize) -> Result<(), Refused> {
    match bytes > DOCUMENT_BYTES_MAX {
        true => Err(refused(
            StatusCode::BAD_REQUEST,
            "LimitExceeded",
            format!("documents have at most {DOCUMENT_BYTES_MAX} bytes together"),
        )),
        false => Ok(()),
    }
}

pub(super) fn put(call: &Call) -> Done {
    let name = call.name("PolicyName", NAME_CHARACTERS_MAX)?;
    let text = call.must("PolicyDocument")?;
    check_bytes(text.len())?;
    check(text, Scope::Identity)?;
    let _changing = call.face.users.changing.lock();
    let holder = Holder::of(call)?;
    let mut policies = holder.policies().clone();
    policies.inline.insert(name.to_owned(), text.to_owned());
    let parts = policies.inline.iter();
    check_bytes(parts.map(|(name, text)| name.len() + text.len()).sum())?;
    holder.store(call, policies)
}

pub(super) fn get(call: &Call) -> Done {
    let holder = Holder::of(call)?;
    let name = call.must("PolicyName")?;
    let text = holder.policies().inline.get(name);
    let text = text.ok_or_else(|| missing("policy", name))?;
    let mut shown = Shown::default();
    holder.show_name(&mut shown);
    shown
        .leaf("PolicyName", name)
        .leaf("PolicyDocument", &document(text));
    Ok(shown)
}

pub(super) fn list(call: &Call) -> Done {
    let holder = Holder::of(call)?;
    let names = holder.policies().inline.keys();
    let names: Vec<(String, String)> = names.map(|name| (name.clone(), name.clone())).collect();
    call.page(names, |shown, names| {
        shown.within("PolicyNames", |shown| {
            for name in names {
                shown.leaf("member", name);
            }
        });
    })
}

pub(super) fn delete(call: &Call) -> Done {
    let _changing = call.face.users.changing.lock();
    let holder = Holder::of(call)?;
    let name = call.must("PolicyName")?;
    let mut policies = holder.policies().clone();
    if policies.inline.remove(name).is_none() {
        return Err(missing("policy", name));
    }
    holder.store(call, policies)
}

pub(super) fn attach(call: &Call) -> Done {
    let _changing = call.face.users.changing.lock();
    let holder = Holder::of(call)?;
    let arn = call.must("PolicyArn")?;
    if managed_name(arn).is_none() {
        return Err(missing("policy", arn));
    }
    let mut policies = holder.policies().clone();
    policies.attached.insert(arn.to_owned());
    if policies.attached.len() > ATTACHED_MAX {
        return Err(invalid("these are too many policies"));
    }
    holder.store(call, policies)
}

pub(super) fn detach(call: &Call) -> Done {
    let _changing = call.face.users.changing.lock();
    let holder = Holder::of(call)?;
    let arn = call.must("PolicyArn")?;
    let mut policies = holder.policies().clone();
    if !policies.attached.remove(arn) {
        return Err(missing("attached policy", arn));
    }
    holder.store(call, policies)
}

pub(super) fn list_attached(call: &Call) -> Done {
    let holder = Holder::of(call)?;
    // All of them lie at the path `/`.
    let is_wanted = matches!(call.field("PathPrefix"), None | Some("/"));
    let attached: Vec<&String> = holder.policies().attached.iter().collect();
    let attached = attached.into_iter().filter(|_| is_wanted).collect();
    call.page(by_name(attached, |arn| arn), |shown, attached| {
        shown.list("AttachedPolicies", attached, |shown, arn| {
            shown
                .leaf("PolicyName", managed_name(arn).unwrap_or_default())
                .leaf("PolicyArn", arn);
        });
    })
}
