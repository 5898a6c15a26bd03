//! Groups of an account.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::people::too_many;
use super::shown::Shown;
use super::{Call, Done, OF_A_KIND_MAX, Refused, by_name, exists, in_use, missing};
use crate::users::{Group, Policies, no_path};

/// Longest name, characters.
const NAME_CHARACTERS_MAX: usize = 128;

impl Shown {
    pub(crate) fn group(&mut self, group: &Group) {
        self.leaf("Path", &group.path)
            .leaf("GroupName", &group.name)
            .leaf("GroupId", &group.id)
            .leaf("Arn", &group.arn())
            .time("CreateDate", group.created);
    }
}

impl Call {
    fn new_group(&self, name: &str, path: String) -> Group {
        Group {
            name: name.to_owned(),
            id: self.new_id(),
            account: self.account_id().to_owned(),
            path,
            created: self.face.users.now(),
            members: BTreeSet::new(),
            policies: Policies::default(),
        }
    }

    /// The group that is meant, if who asks may do this with it.
    pub(super) fn group(&self) -> Result<Arc<Group>, Refused> {
        let name = self.must("GroupName")?;
        let found = self.face.users.group_in(self.account_id(), name);
        let resource = match &found {
            Some(group) => group.arn(),
            None => self.new_group(name, no_path()).arn(),
        };
        self.authorize(self.account_id(), &resource)?;
        found.ok_or_else(|| missing("group", name))
    }
}

pub(super) fn create(call: &Call) -> Done {
    let users = &call.face.users;
    let name = call.name("GroupName", NAME_CHARACTERS_MAX)?;
    let path = call.path("Path")?.unwrap_or_else(no_path);
    let group = call.new_group(name, path);
    call.authorize(call.account_id(), &group.arn())?;
    let _changing = users.changing.lock();
    if users.group_in(call.account_id(), name).is_some() {
        return Err(exists("group", name));
    }
    if users.groups_in(call.account_id()).len() >= OF_A_KIND_MAX {
        return Err(too_many(OF_A_KIND_MAX));
    }
    let group = users.store_group(group)?;
    let mut shown = Shown::default();
    shown.within("Group", |shown| shown.group(&group));
    Ok(shown)
}

pub(super) fn get(call: &Call) -> Done {
    let group = call.group()?;
    let users = group.members.iter();
    let users: Vec<_> = users.filter_map(|id| call.face.users.by_id(id)).collect();
    call.page(by_name(users, |user| &user.name), |shown, users| {
        shown.within("Group", |shown| shown.group(&group));
        shown.list("Users", users, |shown, user| shown.user(user));
    })
}

pub(super) fn list(call: &Call) -> Done {
    call.authorize(call.account_id(), &call.new_group("", no_path()).arn())?;
    let prefix = call.field("PathPrefix").unwrap_or("/");
    let mut groups = call.face.users.groups_in(call.account_id());
    groups.retain(|group| group.path.starts_with(prefix));
    call.page(by_name(groups, |group| &group.name), show_groups)
}

fn show_groups(shown: &mut Shown, groups: &[Arc<Group>]) {
    shown.list("Groups", groups, |shown, group| shown.group(group));
}

pub(super) fn update(call: &Call) -> Done {
    let users = &call.face.users;
    let _changing = users.changing.lock();
    let mut group = Group::clone(&*call.group()?);
    if call.field("NewGroupName").is_some() {
        let name = call.name("NewGroupName", NAME_CHARACTERS_MAX)?;
        let other = users.group_in(call.account_id(), name);
        if other.is_some_and(|other| other.id != group.id) {
            return Err(exists("group", name));
        }
        group.name = name.to_owned();
    }
    if let Some(path) = call.path("NewPath")? {
        group.path = path;
    }
    call.authorize(call.account_id(), &group.arn())?;
    users.store_group(group)?;
    Ok(Shown::default())
}

pub(super) fn delete(call: &Call) -> Done {
    let users = &call.face.users;
    let _changing = users.changing.lock();
    let group = call.group()?;
    if !group.policies.is_empty() {
        return Err(in_use("the group has policies"));
    }
    if !group.members.is_empty() {
        return Err(in_use("the group has users"));
    }
    users.remove_group(&group)?;
    Ok(Shown::default())
}

fn change_members(call: &Call, change: impl FnOnce(&mut BTreeSet<String>, &str)) -> Done {
    let users = &call.face.users;
    let _changing = users.changing.lock();
    let mut group = Group::clone(&*call.group()?);
    let name = call.must("UserName")?;
    let user = users.user_in(call.account_id(), name);
    let user = user.ok_or_else(|| missing("user", name))?;
    change(&mut group.members, &user.id);
    users.store_group(group)?;
    Ok(Shown::default())
}

pub(super) fn add_user(call: &Call) -> Done {
    change_members(call, |members, id| {
        members.insert(id.to_owned());
    })
}

pub(super) fn remove_user(call: &Call) -> Done {
    change_members(call, |members, id| {
        members.remove(id);
    })
}

pub(super) fn of_user(call: &Call) -> Done {
    call.must("UserName")?;
    let user = call.user()?;
    let mut groups = call.face.users.groups_in(call.account_id());
    groups.retain(|group| group.members.contains(&user.id));
    call.page(by_name(groups, |group| &group.name), show_groups)
}
