//! Users and their keys, groups and roles. They are records of the root directory, sealed like all tables of the pool.

mod entities;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use cfs_format::{DomainId, Ino};
use cfs_fs::{Fs, FsError, RecordChange};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};

use crate::issuers::{IssuerError, bare_url};
use crate::objects::hex;
use crate::principal::names_account;
use crate::records::{self, name};
pub(crate) use entities::{
    Entity, Group, Place, Policies, Provider, Role, managed_name, no_path, place, provider_named,
};

/// Name of the user who may do everything, and is made on the first start.
pub const ROOT_NAME: &str = "root";
/// Identifier of that user.
pub(crate) const ROOT_ID: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// Letters of an access key.
const ACCESS_KEY_LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/// Letters of a secret key.
const SECRET_KEY_LETTERS: &[u8; 64] =
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// Keys that a user can have.
pub(crate) const KEYS_MAX: usize = 16;
/// What access keys for a while begin with, and no others.
pub(crate) const SESSION_PREFIX: &str = "ASIA";
/// Longest address, bytes (RFC 5321).
const EMAIL_BYTES_MAX: usize = 254;
/// Longest name of a user, bytes.
const NAME_BYTES_MAX: usize = 64;

/// A key of a user.
#[derive(Clone, Serialize, Deserialize)]
pub struct Key {
    /// What names it.
    pub access_key_id: String,
    /// What signs with it.
    pub secret_access_key: String,
    /// It is refused until it is made active again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_inactive: bool,
    /// Seconds since 1970.
    #[serde(default)]
    pub created: u64,
}

/// A user.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct User {
    /// Name.
    pub name: String,
    /// Identifier: 64 hexadecimal digits, as S3 shows owners.
    pub id: String,
    /// Keys.
    pub keys: Vec<Key>,
    /// Identifier of the account that it is in; empty: it has one of its own, which has its identifier.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub account: String,
    /// A part of its resource name.
    #[serde(default = "entities::no_path")]
    pub(crate) path: String,
    /// By which it can be granted something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// Seconds since 1970.
    #[serde(default)]
    pub(crate) created: u64,
    /// Its policies.
    #[serde(default, skip_serializing_if = "Policies::is_empty")]
    pub(crate) policies: Policies,
    /// The dedup domain of the buckets that its account makes; none: that of the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) domain: Option<u16>,
}

/// A user to be made at the head of an account of its own.
#[derive(Clone, Default)]
pub struct NewUser {
    /// Its name.
    pub name: String,
    /// Its key, if not a new one.
    pub key: Option<Key>,
    /// An address by which it can be granted something.
    pub email: Option<String>,
    /// What its account puts into buckets of its own shares no chunks with anything else.
    pub own_domain: bool,
}

impl User {
    /// Whether it may do everything.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.id == ROOT_ID
    }

    /// The dedup domain of its own, if it has one.
    #[must_use]
    pub fn domain(&self) -> Option<DomainId> {
        self.domain.map(DomainId)
    }

    /// Identifier of the account whose buckets it makes.
    #[must_use]
    pub fn account_id(&self) -> &str {
        match self.account.as_str() {
            "" => &self.id,
            account => account,
        }
    }
}

/// Why a change of users is refused. Nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The name is taken.
    #[error("there is a user {0} already")]
    Exists(String),
    /// No such user.
    #[error("there is no user {0}")]
    NoUser(String),
    /// No such key.
    #[error("there is no key {0}")]
    NoKey(String),
    /// Not a name that a user can have.
    #[error("a user's name has 1 to 64 of the characters a-z, A-Z, 0-9, `.`, `_`, `@` and `-`")]
    Name,
    /// The access key is another's, or no key can be so.
    #[error(
        "this access key is taken, or it or its secret is not of 3 to 128 printable characters"
    )]
    Key,
    /// Not an address, or another's.
    #[error(
        "this address is another's, or none: it is of up to 254 characters with an @ among them"
    )]
    Email,
    /// There is a key for objects of this name.
    #[error("there is a key {0} already")]
    KeptKeyExists(String),
    /// Not a name that a key for objects can have.
    #[error(
        "the name of a key has 1 to 128 of the characters a-z, A-Z, 0-9, `/`, `.`, `_` and `-`"
    )]
    KeptKeyName,
    /// Too many keys.
    #[error("a user can have {KEYS_MAX} keys")]
    TooManyKeys,
    /// Not keys of an issuer.
    #[error(transparent)]
    Issuer(#[from] IssuerError),
    /// Root stays.
    #[error("the user {ROOT_NAME} cannot be removed")]
    Root,
    /// It could not be written.
    #[error(transparent)]
    Fs(#[from] FsError),
}

/// The users of a pool, their groups and their roles.
///
/// # Locks
/// `changing` is held by whoever looks at something here and then changes it, so that no change is lost. `known` is held
/// for a moment alone.
pub struct Users {
    pub(crate) fs: Arc<Fs>,
    pub(crate) changing: Mutex<()>,
    known: RwLock<Known>,
    /// The key that credentials for a while are made with, once there is one.
    pub(crate) session_key: OnceLock<[u8; 32]>,
}

#[derive(Default)]
struct Known {
    /// Those of root's account are those at the heads of accounts.
    users: BTreeMap<Place, Arc<User>>,
    groups: BTreeMap<Place, Arc<Group>>,
    roles: BTreeMap<Place, Arc<Role>>,
    providers: BTreeMap<Place, Arc<Provider>>,
    by_key: HashMap<String, Arc<User>>,
    by_id: HashMap<String, Arc<User>>,
}

impl Users {
    /// The users that are stored in the pool.
    ///
    /// # Errors
    /// What reading failed with.
    pub fn load(fs: Arc<Fs>) -> Result<Self, FsError> {
        let mut known = Known::default();
        for row in [name::USER, name::MEMBER] {
            for (_, bytes) in fs.records(Ino::ROOT, row)? {
                known.insert(records::decode(&bytes)?);
            }
        }
        for (_, bytes) in fs.records(Ino::ROOT, name::GROUP)? {
            let group: Group = records::decode(&bytes)?;
            known.groups.insert(group.place(), Arc::new(group));
        }
        for (_, bytes) in fs.records(Ino::ROOT, name::ROLE)? {
            let role: Role = records::decode(&bytes)?;
            known.roles.insert(role.place(), Arc::new(role));
        }
        for (_, bytes) in fs.records(Ino::ROOT, name::PROVIDER)? {
            let provider: Provider = records::decode(&bytes)?;
            known.providers.insert(provider.place(), Arc::new(provider));
        }
        let session_key = OnceLock::new();
        if let Some(key) = fs.record(Ino::ROOT, name::SESSION_KEY)? {
            let key = key
                .try_into()
                .map_err(|_| FsError::Io("the key of sessions has 32 bytes".into()))?;
            session_key
                .set(key)
                .expect("nobody else has seen the cell yet");
        }
        Ok(Self {
            fs,
            changing: Mutex::default(),
            known: RwLock::new(known),
            session_key,
        })
    }

    /// The key of the user root, if it had to be made now. It is stored durably.
    ///
    /// # Errors
    /// What writing failed with.
    pub fn ensure_root(&self, random: &mut dyn FnMut(&mut [u8])) -> Result<Option<Key>, UserError> {
        let _changing = self.changing.lock();
        if self.user_in(ROOT_ID, ROOT_NAME).is_some() {
            return Ok(None);
        }
        let key = self.new_key(random);
        self.store_user(User {
            name: ROOT_NAME.to_owned(),
            id: ROOT_ID.to_owned(),
            keys: vec![key.clone()],
            path: entities::no_path(),
            created: self.now(),
            ..User::default()
        })?;
        Ok(Some(key))
    }

    /// Seconds since 1970.
    pub(crate) fn now(&self) -> u64 {
        self.fs.now_ms() / 1000
    }

    /// Who has this access key, and its secret; none for one that is inactive.
    #[must_use]
    pub fn by_access_key(&self, access_key_id: &str) -> Option<(Arc<User>, String)> {
        let known = self.known.read();
        let user = known.by_key.get(access_key_id)?;
        let key = user
            .keys
            .iter()
            .find(|key| key.access_key_id == access_key_id && !key.is_inactive)?;
        Some((Arc::clone(user), key.secret_access_key.clone()))
    }

    /// The user with this identifier.
    #[must_use]
    pub fn by_id(&self, id: &str) -> Option<Arc<User>> {
        self.known.read().by_id.get(id).cloned()
    }

    /// The user at the head of an account with this address.
    pub(crate) fn by_email(&self, email: &str) -> Option<Arc<User>> {
        let is_meant = |user: &&Arc<User>| {
            let own = user.email.as_deref();
            own.is_some_and(|own| own.eq_ignore_ascii_case(email))
        };
        self.known.read().by_id.values().find(is_meant).cloned()
    }

    /// All users at the heads of accounts, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<User>> {
        let mut users = self.users_in(ROOT_ID);
        users.sort_unstable_by(|left, right| left.name.cmp(&right.name));
        users
    }

    /// A user of an account, by name. Those of root's are found by their identifiers too.
    pub(crate) fn user_in(&self, account: &str, name: &str) -> Option<Arc<User>> {
        let known = self.known.read();
        let found = known.users.get(&place(account, name));
        match found {
            None if account == ROOT_ID => known.by_id.get(name).filter(|it| it.account.is_empty()),
            found => found,
        }
        .cloned()
    }

    /// Whether a name in a policy is that of everybody, or of somebody that there is: a user, an account, a role, or who has taken
    /// one on.
    pub(crate) fn is_somebody(&self, name: &str) -> bool {
        let known = self.known.read();
        let mut users = known.by_id.values();
        let mut roles = known.roles.values();
        name == "*"
            || users.any(|user| match user.account.is_empty() {
                true => names_account(name, &user.id) || user.is_named_by_root(name),
                false => name == user.id || name == user.arn(),
            })
            || roles.any(|role| name == role.arn() || role.is_taken_on_as(name))
    }

    /// A group of an account.
    pub(crate) fn group_in(&self, account: &str, name: &str) -> Option<Arc<Group>> {
        self.known.read().groups.get(&place(account, name)).cloned()
    }

    /// A role of an account.
    pub(crate) fn role_in(&self, account: &str, name: &str) -> Option<Arc<Role>> {
        self.known.read().roles.get(&place(account, name)).cloned()
    }

    /// A role of whatever account, by its resource name or its identifier.
    pub(crate) fn role(&self, is_meant: impl Fn(&Role) -> bool) -> Option<Arc<Role>> {
        let known = self.known.read();
        known.roles.values().find(|role| is_meant(role)).cloned()
    }

    /// An identity provider of an account, by its URL without the scheme.
    pub(crate) fn provider_in(&self, account: &str, bare: &str) -> Option<Arc<Provider>> {
        let place = (account.to_owned(), bare.to_owned());
        self.known.read().providers.get(&place).cloned()
    }

    /// The identity provider of an account that tokens of this issuer are of.
    pub(crate) fn provider_of(&self, account: &str, issuer: &str) -> Option<Arc<Provider>> {
        let found = self.provider_in(account, bare_url(issuer)?);
        found.filter(|provider| provider.url == issuer)
    }

    /// Identity providers of an account, by URL.
    pub(crate) fn providers_in(&self, account: &str) -> Vec<Arc<Provider>> {
        all_in(&self.known.read().providers, account)
    }

    /// Users of an account, by name.
    pub(crate) fn users_in(&self, account: &str) -> Vec<Arc<User>> {
        all_in(&self.known.read().users, account)
    }

    /// Groups of an account, by name.
    pub(crate) fn groups_in(&self, account: &str) -> Vec<Arc<Group>> {
        all_in(&self.known.read().groups, account)
    }

    /// Roles of an account, by name.
    pub(crate) fn roles_in(&self, account: &str) -> Vec<Arc<Role>> {
        all_in(&self.known.read().roles, account)
    }

    /// Makes a user with a key, the given one or a new one, at the head of an account of its own, and its dedup domain
    /// with it if it is to have one.
    ///
    /// # Errors
    /// See [`UserError`].
    pub fn add(
        &self,
        new: NewUser,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Result<Arc<User>, UserError> {
        let NewUser {
            name,
            key,
            email,
            own_domain,
        } = new;
        let _changing = self.changing.lock();
        let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b"._@-".contains(&byte);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_fit) {
            return Err(UserError::Name);
        }
        if self.user_in(ROOT_ID, &name).is_some() {
            return Err(UserError::Exists(name));
        }
        if let Some(email) = &email {
            let is_address = email.len() <= EMAIL_BYTES_MAX
                && email.bytes().all(|byte| byte.is_ascii_graphic())
                && email
                    .split_once('@')
                    .is_some_and(|(user, host)| !user.is_empty() && !host.is_empty());
            if !is_address || self.by_email(email).is_some() {
                return Err(UserError::Email);
            }
        }
        let key = self.fit_key(key, random)?;
        let mut id = [0; 32];
        random(&mut id);
        let mut user = User {
            name,
            id: hex(&id),
            keys: vec![key],
            path: entities::no_path(),
            email,
            created: self.now(),
            ..User::default()
        };
        if !own_domain {
            return self.store_user(user);
        }
        // In one step: no domain is left without its user, nor a user without its domain.
        let domain = self.fs.domain_create(Ino::ROOT, |domain| {
            let user = User {
                domain: Some(domain.0),
                ..user.clone()
            };
            vec![(user.row(), records::encode(&user))]
        })?;
        self.fs.store().sync().map_err(FsError::from)?;
        user.domain = Some(domain.0);
        Ok(self.known.write().insert(user))
    }

    /// Removes a user with its keys and all users, groups, roles and identity providers of its account. Buckets stay, and root has
    /// them; so does its dedup domain, which their content is sealed in.
    ///
    /// # Errors
    /// See [`UserError`].
    pub fn remove(&self, name: &str) -> Result<(), UserError> {
        let _changing = self.changing.lock();
        let user = self.head(name)?;
        self.remove_user(&user)
    }

    /// As [`Users::remove`], of any user, by who holds `changing`.
    pub(crate) fn remove_user(&self, user: &Arc<User>) -> Result<(), UserError> {
        if user.is_root() {
            return Err(UserError::Root);
        }
        let (mut users, mut groups, mut roles) = (vec![Arc::clone(user)], Vec::new(), Vec::new());
        let mut providers = Vec::new();
        if user.account.is_empty() {
            users.extend(self.users_in(&user.id));
            groups = self.groups_in(&user.id);
            roles = self.roles_in(&user.id);
            providers = self.providers_in(&user.id);
        }
        let mut change = RecordChange::default();
        change.delete.extend(users.iter().map(|user| user.row()));
        change.delete.extend(groups.iter().map(|group| group.row()));
        change.delete.extend(roles.iter().map(|role| role.row()));
        change.delete.extend(providers.iter().map(|it| it.row()));
        // Of groups that stay, it is no member any more.
        let mut changed = Vec::new();
        for group in self.groups_in(user.whose().0) {
            if group.members.contains(&user.id) {
                let mut group = Group::clone(&group);
                group.members.remove(&user.id);
                change.put.push((group.row(), records::encode(&group)));
                changed.push(group);
            }
        }
        self.write(change)?;
        let mut known = self.known.write();
        users.iter().for_each(|user| known.remove(user));
        for group in groups {
            known.groups.remove(&group.place());
        }
        for role in roles {
            known.roles.remove(&role.place());
        }
        for provider in providers {
            known.providers.remove(&provider.place());
        }
        for group in changed {
            known.groups.insert(group.place(), Arc::new(group));
        }
        Ok(())
    }

    /// Gives a user one more key: the given one, or a new one.
    ///
    /// # Errors
    /// See [`UserError`].
    pub fn create_key(
        &self,
        name: &str,
        key: Option<Key>,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(Arc<User>, Key), UserError> {
        let _changing = self.changing.lock();
        let user = self.head(name)?;
        self.add_key(&user, key, random)
    }

    /// As [`Users::create_key`], of any user, by who holds `changing`.
    pub(crate) fn add_key(
        &self,
        user: &User,
        key: Option<Key>,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(Arc<User>, Key), UserError> {
        let mut user = user.clone();
        if user.keys.len() >= KEYS_MAX {
            return Err(UserError::TooManyKeys);
        }
        let key = self.fit_key(key, random)?;
        user.keys.push(key.clone());
        Ok((self.store_user(user)?, key))
    }

    /// Takes a key from whoever has it. What was signed with it is refused from now on.
    ///
    /// # Errors
    /// See [`UserError`].
    pub fn revoke_key(&self, access_key_id: &str) -> Result<(), UserError> {
        let _changing = self.changing.lock();
        let found = self.known.read().by_key.get(access_key_id).cloned();
        let found = found.ok_or_else(|| UserError::NoKey(access_key_id.to_owned()))?;
        let mut user = User::clone(&*found);
        user.keys.retain(|key| key.access_key_id != access_key_id);
        self.store_user(user)?;
        Ok(())
    }

    /// The user at the head of an account, by name.
    fn head(&self, name: &str) -> Result<Arc<User>, UserError> {
        let known = self.known.read();
        let found = known.users.get(&place(ROOT_ID, name)).cloned();
        found
            .filter(|user| user.name == name)
            .ok_or_else(|| UserError::NoUser(name.to_owned()))
    }

    fn fit_key(
        &self,
        key: Option<Key>,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Result<Key, UserError> {
        let Some(key) = key else {
            return Ok(self.new_key(random));
        };
        let is_fit = |text: &str| {
            (3..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
        };
        let fits = is_fit(&key.access_key_id)
            && is_fit(&key.secret_access_key)
            && !key.access_key_id.contains(['/', ','])
            && !key.access_key_id.starts_with(SESSION_PREFIX);
        match fits && !self.known.read().by_key.contains_key(&key.access_key_id) {
            true => Ok(key),
            false => Err(UserError::Key),
        }
    }

    fn new_key(&self, random: &mut dyn FnMut(&mut [u8])) -> Key {
        Key {
            created: self.now(),
            ..new_key(random)
        }
    }

    /// Changes records of the root directory, durably.
    pub(crate) fn write(&self, change: RecordChange) -> Result<(), UserError> {
        self.fs.set_records(Ino::ROOT, change)?;
        self.fs.store().sync().map_err(FsError::from)?;
        Ok(())
    }

    fn write_one(&self, entity: &impl Entity) -> Result<(), UserError> {
        self.write(RecordChange {
            put: vec![(entity.row(), records::encode(entity))],
            ..RecordChange::default()
        })
    }

    /// Stores a user durably, then lets it in. Who calls holds `changing`.
    pub(crate) fn store_user(&self, user: User) -> Result<Arc<User>, UserError> {
        self.write_one(&user)?;
        let mut known = self.known.write();
        if let Some(before) = known.by_id.get(&user.id).cloned() {
            known.remove(&before);
        }
        Ok(known.insert(user))
    }

    /// Stores a group durably, which may have had another name before. Who calls holds `changing`.
    pub(crate) fn store_group(&self, group: Group) -> Result<Arc<Group>, UserError> {
        self.write_one(&group)?;
        let group = Arc::new(group);
        let mut known = self.known.write();
        known.groups.retain(|_, other| other.id != group.id);
        known.groups.insert(group.place(), Arc::clone(&group));
        Ok(group)
    }

    /// Stores a role durably. Who calls holds `changing`.
    pub(crate) fn store_role(&self, role: Role) -> Result<Arc<Role>, UserError> {
        self.write_one(&role)?;
        let role = Arc::new(role);
        let mut known = self.known.write();
        known.roles.insert(role.place(), Arc::clone(&role));
        Ok(role)
    }

    /// Removes a group, durably. Who calls holds `changing`.
    pub(crate) fn remove_group(&self, group: &Group) -> Result<(), UserError> {
        self.write(RecordChange {
            delete: vec![group.row()],
            ..RecordChange::default()
        })?;
        self.known.write().groups.remove(&group.place());
        Ok(())
    }

    /// Removes a role, durably: who has taken it on has nothing any more. Who calls holds `changing`.
    pub(crate) fn remove_role(&self, role: &Role) -> Result<(), UserError> {
        self.write(RecordChange {
            delete: vec![role.row()],
            ..RecordChange::default()
        })?;
        self.known.write().roles.remove(&role.place());
        Ok(())
    }

    /// Stores an identity provider durably. Who calls holds `changing`.
    pub(crate) fn store_provider(&self, provider: Provider) -> Result<Arc<Provider>, UserError> {
        self.write_one(&provider)?;
        let provider = Arc::new(provider);
        let mut known = self.known.write();
        known
            .providers
            .insert(provider.place(), Arc::clone(&provider));
        Ok(provider)
    }

    /// Removes an identity provider, durably. Who calls holds `changing`.
    pub(crate) fn remove_provider(&self, provider: &Provider) -> Result<(), UserError> {
        self.write(RecordChange {
            delete: vec![provider.row()],
            ..RecordChange::default()
        })?;
        self.known.write().providers.remove(&provider.place());
        Ok(())
    }

    /// Stores the key that credentials for a while are made with, durably. Who calls holds `changing`.
    pub(crate) fn store_session_key(&self, key: [u8; 32]) -> Result<(), UserError> {
        self.write(RecordChange {
            put: vec![(name::SESSION_KEY.to_vec(), key.to_vec())],
            ..RecordChange::default()
        })?;
        // Who holds the lock has found none.
        let _ = self.session_key.set(key);
        Ok(())
    }
}

/// What an account has, by name.
fn all_in<T>(all: &BTreeMap<Place, Arc<T>>, account: &str) -> Vec<Arc<T>> {
    let from = (account.to_owned(), String::new());
    let of_account = all
        .range(from..)
        .take_while(|((whose, _), _)| whose == account);
    of_account.map(|(_, found)| Arc::clone(found)).collect()
}

impl Known {
    fn insert(&mut self, user: User) -> Arc<User> {
        let user = Arc::new(user);
        self.users.insert(user.place(), Arc::clone(&user));
        self.by_id.insert(user.id.clone(), Arc::clone(&user));
        for key in &user.keys {
            self.by_key
                .insert(key.access_key_id.clone(), Arc::clone(&user));
        }
        user
    }

    fn remove(&mut self, user: &User) {
        self.users.remove(&user.place());
        self.by_id.remove(&user.id);
        for key in &user.keys {
            self.by_key.remove(&key.access_key_id);
        }
    }
}

/// A key that nobody has: 90 and 240 random bits.
fn new_key(random: &mut dyn FnMut(&mut [u8])) -> Key {
    let mut text = |bytes: usize, letters: &[u8]| -> String {
        let mut raw = vec![0; bytes];
        random(&mut raw);
        let letter = |byte: u8| char::from(letters[usize::from(byte) % letters.len()]);
        raw.into_iter().map(letter).collect()
    };
    Key {
        // None begins as those for a while do.
        access_key_id: format!("AK{}", text(18, ACCESS_KEY_LETTERS)),
        secret_access_key: text(40, SECRET_KEY_LETTERS),
        is_inactive: false,
        created: 0,
    }
}
