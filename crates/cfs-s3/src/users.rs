//! Users and their keys. They are records of the root directory, sealed like all tables of the pool.

use std::collections::HashMap;
use std::sync::Arc;

use cfs_format::Ino;
use cfs_fs::{Fs, FsError, RecordChange};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use crate::objects::hex;
use crate::records::{self, name};

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
const KEYS_MAX: usize = 16;
/// Longest name of a user, bytes.
const NAME_BYTES_MAX: usize = 64;

/// A key of a user.
#[derive(Clone, Serialize, Deserialize)]
pub struct Key {
    /// What names it.
    pub access_key_id: String,
    /// What signs with it.
    pub secret_access_key: String,
}

/// A user.
#[derive(Clone, Serialize, Deserialize)]
pub struct User {
    /// Name.
    pub name: String,
    /// Identifier: 64 hexadecimal digits, as S3 shows owners.
    pub id: String,
    /// Keys.
    pub keys: Vec<Key>,
}

impl User {
    /// Whether it may do everything.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.id == ROOT_ID
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
    /// Too many keys.
    #[error("a user can have {KEYS_MAX} keys")]
    TooManyKeys,
    /// Root stays.
    #[error("the user {ROOT_NAME} cannot be removed")]
    Root,
    /// It could not be written.
    #[error(transparent)]
    Fs(#[from] FsError),
}

/// The users of a pool.
pub struct Users {
    fs: Arc<Fs>,
    known: RwLock<Known>,
}

#[derive(Default)]
struct Known {
    users: HashMap<String, Arc<User>>,
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
        for (_, bytes) in fs.records(Ino::ROOT, name::USER)? {
            known.insert(records::decode(&bytes)?);
        }
        Ok(Self {
            fs,
            known: RwLock::new(known),
        })
    }

    /// The key of the user root, if it had to be made now. It is stored durably.
    ///
    /// # Errors
    /// What writing failed with.
    pub fn ensure_root(&self, random: &mut dyn FnMut(&mut [u8])) -> Result<Option<Key>, UserError> {
        if self.known.read().users.contains_key(ROOT_NAME) {
            return Ok(None);
        }
        let user = User {
            name: ROOT_NAME.to_owned(),
            id: ROOT_ID.to_owned(),
            keys: vec![new_key(random)],
        };
        let key = user.keys[0].clone();
        self.store(user)?;
        Ok(Some(key))
    }

    /// Who has this access key, and its secret.
    #[must_use]
    pub fn by_access_key(&self, access_key_id: &str) -> Option<(Arc<User>, String)> {
        let known = self.known.read();
        let user = known.by_key.get(access_key_id)?;
        let key = user
            .keys
            .iter()
            .find(|key| key.access_key_id == access_key_id)?;
        Some((Arc::clone(user), key.secret_access_key.clone()))
    }

    /// The user with this identifier.
    #[must_use]
    pub fn by_id(&self, id: &str) -> Option<Arc<User>> {
        self.known.read().by_id.get(id).cloned()
    }

    /// All users, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<User>> {
        let mut users: Vec<_> = self.known.read().users.values().cloned().collect();
        users.sort_unstable_by(|left, right| left.name.cmp(&right.name));
        users
    }

    /// Makes a user with a key: the given one, or a new one.
    ///
    /// # Errors
    /// See [`UserError`].
    pub fn add(
        &self,
        name: &str,
        key: Option<Key>,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Result<Arc<User>, UserError> {
        let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b"._@-".contains(&byte);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_fit) {
            return Err(UserError::Name);
        }
        if self.known.read().users.contains_key(name) {
            return Err(UserError::Exists(name.to_owned()));
        }
        let key = self.fit_key(key, random)?;
        let mut id = [0; 32];
        random(&mut id);
        self.store(User {
            name: name.to_owned(),
            id: hex(&id),
            keys: vec![key],
        })
    }

    /// Removes a user and its keys. Its buckets stay, and root has them.
    ///
    /// # Errors
    /// See [`UserError`].
    pub fn remove(&self, name: &str) -> Result<(), UserError> {
        if name == ROOT_NAME {
            return Err(UserError::Root);
        }
        let user = self.user(name)?;
        let change = RecordChange {
            delete: vec![[name::USER, name.as_bytes()].concat()],
            ..RecordChange::default()
        };
        self.fs.set_records(Ino::ROOT, change)?;
        self.fs.store().sync().map_err(FsError::from)?;
        self.known.write().remove(&user);
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
        let mut user = User::clone(&*self.user(name)?);
        if user.keys.len() >= KEYS_MAX {
            return Err(UserError::TooManyKeys);
        }
        let key = self.fit_key(key, random)?;
        user.keys.push(key.clone());
        Ok((self.store(user)?, key))
    }

    /// Takes a key from whoever has it. What was signed with it is refused from now on.
    ///
    /// # Errors
    /// See [`UserError`].
    pub fn revoke_key(&self, access_key_id: &str) -> Result<(), UserError> {
        let found = self.known.read().by_key.get(access_key_id).cloned();
        let found = found.ok_or_else(|| UserError::NoKey(access_key_id.to_owned()))?;
        let mut user = User::clone(&*found);
        user.keys.retain(|key| key.access_key_id != access_key_id);
        self.store(user)?;
        Ok(())
    }

    fn user(&self, name: &str) -> Result<Arc<User>, UserError> {
        let found = self.known.read().users.get(name).cloned();
        found.ok_or_else(|| UserError::NoUser(name.to_owned()))
    }

    fn fit_key(
        &self,
        key: Option<Key>,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Result<Key, UserError> {
        let Some(key) = key else {
            return Ok(new_key(random));
        };
        let is_fit = |text: &str| {
            (3..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
        };
        let fits = is_fit(&key.access_key_id)
            && is_fit(&key.secret_access_key)
            && !key.access_key_id.contains(['/', ',']);
        match fits && self.by_access_key(&key.access_key_id).is_none() {
            true => Ok(key),
            false => Err(UserError::Key),
        }
    }

    /// Stores a user durably, then lets it in.
    fn store(&self, user: User) -> Result<Arc<User>, UserError> {
        let change = RecordChange {
            put: vec![(
                [name::USER, user.name.as_bytes()].concat(),
                records::encode(&user),
            )],
            ..RecordChange::default()
        };
        self.fs.set_records(Ino::ROOT, change)?;
        self.fs.store().sync().map_err(FsError::from)?;
        let mut known = self.known.write();
        if let Some(before) = known.users.get(&user.name).cloned() {
            known.remove(&before);
        }
        Ok(known.insert(user))
    }
}

impl Known {
    fn insert(&mut self, user: User) -> Arc<User> {
        let user = Arc::new(user);
        self.users.insert(user.name.clone(), Arc::clone(&user));
        self.by_id.insert(user.id.clone(), Arc::clone(&user));
        for key in &user.keys {
            self.by_key
                .insert(key.access_key_id.clone(), Arc::clone(&user));
        }
        user
    }

    fn remove(&mut self, user: &User) {
        self.users.remove(&user.name);
        self.by_id.remove(&user.id);
        for key in &user.keys {
            self.by_key.remove(&key.access_key_id);
        }
    }
}

/// A key that nobody has: 100 and 240 random bits.
fn new_key(random: &mut dyn FnMut(&mut [u8])) -> Key {
    let mut text = |bytes: usize, letters: &[u8]| -> String {
        let mut raw = vec![0; bytes];
        random(&mut raw);
        let letter = |byte: u8| char::from(letters[usize::from(byte) % letters.len()]);
        raw.into_iter().map(letter).collect()
    };
    Key {
        access_key_id: text(20, ACCESS_KEY_LETTERS),
        secret_access_key: text(40, SECRET_KEY_LETTERS),
    }
}
