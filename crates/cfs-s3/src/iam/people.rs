//! Users of an account, and their access keys.

use http::StatusCode;

use super::shown::Shown;
use super::{
    Call, Done, OF_A_KIND_MAX, Refused, by_name, exists, fill, in_use, invalid, missing, refused,
};
use crate::users::{Key, ROOT_ID, User, no_path};

/// Longest name, characters.
const NAME_CHARACTERS_MAX: usize = 64;

impl Shown {
    /// What is to be known of a user.
    pub(crate) fn user(&mut self, user: &User) {
        self.leaf("Path", &user.path)
            .leaf("UserName", &user.name)
            .leaf("UserId", &user.id)
            .leaf("Arn", &user.arn())
            .time("CreateDate", user.created);
    }
}

/// The resource name of a user, however it is named.
pub(super) fn resource(account: &str, name: &str, user: Option<&User>) -> String {
    match user {
        // Those of root's account are named by their identifiers too.
        Some(user) if user.name.eq_ignore_ascii_case(name) => user.arn(),
        _ => User {
            name: name.to_owned(),
            account: match account {
                ROOT_ID => String::new(),
                account => account.to_owned(),
            },
            path: no_path(),
            ..User::default()
        }
        .arn(),
    }
}

impl Call {
    /// The user that is meant, if who asks may do this with it.
    pub(super) fn user(&self) -> Result<std::sync::Arc<User>, Refused> {
        let (account, name) = self.user_named()?;
        let user = self.face.users.user_in(&account, &name);
        // Who is at the head of an account does with itself what it does without a name.
        let whose = match &user {
            Some(user) if self.field("UserName").is_none() => user.account_id(),
            _ => &account,
        };
        self.authorize(whose, &resource(&account, &name, user.as_deref()))?;
        user.ok_or_else(|| missing("user", &name))
    }
}

pub(super) fn create(call: &Call) -> Done {
    let users = &call.face.users;
    let name = call.name("UserName", NAME_CHARACTERS_MAX)?;
    let path = call.path("Path")?.unwrap_or_else(no_path);
    let account = call.account_id();
    let user = User {
        name: name.to_owned(),
        id: call.new_id(),
        account: match account {
            ROOT_ID => String::new(),
            account => account.to_owned(),
        },
        path,
        created: users.now(),
        ..User::default()
    };
    call.authorize(account, &user.arn())?;
    let _changing = users.changing.lock();
    if users.user_in(account, name).is_some() {
        return Err(exists("user", name));
    }
    if users.users_in(account).len() >= OF_A_KIND_MAX {
        return Err(too_many(OF_A_KIND_MAX));
    }
    let user = users.store_user(user)?;
    let mut shown = Shown::default();
    shown.within("User", |shown| shown.user(&user));
    Ok(shown)
}

/// Refuses one more of a kind.
pub(super) fn too_many(most: usize) -> Refused {
    refused(
        StatusCode::CONFLICT,
        "LimitExceeded",
        format!("an account has {most} of this kind"),
    )
}

pub(super) fn get(call: &Call) -> Done {
    let user = call.user()?;
    let mut shown = Shown::default();
    shown.within("User", |shown| match call.field("UserName") {
        None if user.account.is_empty() => {
            shown
                .leaf("UserId", &user.id)
                .leaf("UserName", &user.name)
                .leaf("Path", &user.path)
                .leaf("Arn", &call.principal.arn())
                .time("CreateDate", user.created);
        }
        _ => shown.user(&user),
    });
    Ok(shown)
}

pub(super) fn list(call: &Call) -> Done {
    let account = call.account_id();
    call.authorize(account, &resource(account, "", None))?;
    let prefix = call.field("PathPrefix").unwrap_or("/");
    let mut users = call.face.users.users_in(account);
    users.retain(|user| user.path.starts_with(prefix) && !user.is_root());
    call.page(by_name(users, |user| &user.name), |shown, users| {
        shown.list("Users", users, |shown, user| shown.user(user));
    })
}

pub(super) fn update(call: &Call) -> Done {
    let users = &call.face.users;
    let _changing = users.changing.lock();
    let found = call.user()?;
    let mut user = User::clone(&found);
    if call.field("NewUserName").is_some() {
        let name = call.name("NewUserName", NAME_CHARACTERS_MAX)?;
        if user.account.is_empty() {
            // Their records are under their names, and policies of buckets name them.
            return Err(invalid("users of root's account keep their names"));
        }
        let other = users.user_in(&user.account, name);
        if other.is_some_and(|other| other.id != user.id) {
            return Err(exists("user", name));
        }
        user.name = name.to_owned();
    }
    if let Some(path) = call.path("NewPath")? {
        user.path = path;
    }
    call.authorize(call.account_id(), &user.arn())?;
    users.store_user(user)?;
    Ok(Shown::default())
}

pub(super) fn delete(call: &Call) -> Done {
    call.must("UserName")?;
    let users = &call.face.users;
    let _changing = users.changing.lock();
    let user = call.user()?;
    if !user.policies.is_empty() {
        return Err(in_use("the user has policies"));
    }
    if !user.keys.is_empty() {
        return Err(in_use("the user has access keys"));
    }
    users.remove_user(&user)?;
    Ok(Shown::default())
}

fn status_of(key: &Key) -> &'static str {
    match key.is_inactive {
        true => "Inactive",
        false => "Active",
    }
}

pub(super) fn create_key(call: &Call) -> Done {
    let users = &call.face.users;
    let _changing = users.changing.lock();
    let user = call.user()?;
    let (user, key) = users.add_key(&user, None, &mut fill)?;
    let mut shown = Shown::default();
    shown.within("AccessKey", |shown| {
        shown
            .leaf("UserName", &user.name)
            .leaf("AccessKeyId", &key.access_key_id)
            .leaf("Status", status_of(&key))
            .leaf("SecretAccessKey", &key.secret_access_key)
            .time("CreateDate", key.created);
    });
    Ok(shown)
}

pub(super) fn list_keys(call: &Call) -> Done {
    let user = call.user()?;
    let keys: Vec<&Key> = user.keys.iter().collect();
    let keys = by_name(keys, |key| &key.access_key_id);
    call.page(keys, |shown, keys| {
        shown.leaf("UserName", &user.name);
        shown.list("AccessKeyMetadata", keys, |shown, key| {
            shown
                .leaf("UserName", &user.name)
                .leaf("AccessKeyId", &key.access_key_id)
                .leaf("Status", status_of(key))
                .time("CreateDate", key.created);
        });
    })
}

/// Changes the keys of a user, one of which is meant.
fn change_keys(call: &Call, change: impl FnOnce(&mut Vec<Key>, usize)) -> Done {
    let id = call.must("AccessKeyId")?;
    let users = &call.face.users;
    let _changing = users.changing.lock();
    let mut user = User::clone(&*call.user()?);
    let at = user.keys.iter().position(|key| key.access_key_id == id);
    let at = at.ok_or_else(|| missing("access key", id))?;
    change(&mut user.keys, at);
    users.store_user(user)?;
    Ok(Shown::default())
}

pub(super) fn update_key(call: &Call) -> Done {
    let is_inactive = match call.must("Status")? {
        "Active" => false,
        "Inactive" => true,
        _ => return Err(invalid("a status is Active or Inactive")),
    };
    change_keys(call, |keys, at| keys[at].is_inactive = is_inactive)
}

pub(super) fn delete_key(call: &Call) -> Done {
    change_keys(call, |keys, at| {
        keys.remove(at);
    })
}

pub(super) fn summary(call: &Call) -> Done {
    let account = call.account_id();
    call.authorize(account, "*")?;
    let users = &call.face.users;
    let entries = [
        ("Users", users.users_in(account).len()),
        ("UsersQuota", OF_A_KIND_MAX),
        ("Groups", users.groups_in(account).len()),
        ("GroupsQuota", OF_A_KIND_MAX),
        ("Roles", users.roles_in(account).len()),
        ("RolesQuota", OF_A_KIND_MAX),
        ("Providers", users.providers_in(account).len()),
        ("AccessKeysPerUserQuota", crate::users::KEYS_MAX),
    ];
    let mut shown = Shown::default();
    shown.within("SummaryMap", |shown| {
        for (name, value) in entries {
            shown.within("entry", |shown| {
                shown.leaf("key", name).leaf("value", &value.to_string());
            });
        }
    });
    Ok(shown)
}
