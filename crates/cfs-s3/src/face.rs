//! What all operations share: the file system, who is told of changes, and locks of keys.
//!
//! # Locks
//! A key's lock is held while its object is looked at and then changed, so that conditions hold among S3 requests.
//! It is never held while a body is received. Changes through the mount do not take it: against them the file system
//! compares once more in the command itself.
//!
//! The lock of a bucket is taken before that of a key: shared by who makes, replaces or removes objects, from the moment at
//! which it reads whether the bucket keeps versions, and what locks it has, until that is done; alone by who changes these.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use cfs_format::Ino;
use cfs_fs::{Attr, Caller, Fs};
use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use s3s::{S3Error, S3Result};

use crate::due::Due;
use crate::errors;
use crate::logging::Logs;
use crate::stats::Counters;
use crate::upload::Etags;
use crate::users::Users;

/// Locks of keys; keys that share one wait for each other without need.
const LOCKS: usize = 256;
/// Locks of buckets, shared likewise.
const BUCKET_LOCKS: usize = 64;

/// Told of changes that the kernel does not know of, as its caches may be older.
pub trait Watcher: Send + Sync + 'static {
    /// A name appeared, vanished or points elsewhere, and the attributes of its directory changed with it.
    fn name_changed(&self, parent: Ino, name: &[u8]);
    /// Attributes or content of an inode changed.
    fn inode_changed(&self, ino: Ino);
}

/// The S3 face of a file system.
pub(crate) struct Face {
    pub(crate) fs: Arc<Fs>,
    pub(crate) users: Arc<Users>,
    /// What new ETags are made of.
    pub(crate) etags: Etags,
    pub(crate) counters: Counters,
    pub(crate) logs: Logs,
    pub(crate) due: Due,
    watcher: Arc<dyn Watcher>,
    locks: [Mutex<()>; LOCKS],
    buckets: [RwLock<()>; BUCKET_LOCKS],
}

impl Face {
    pub(crate) fn new(
        fs: Arc<Fs>,
        users: Arc<Users>,
        watcher: Arc<dyn Watcher>,
        etags: Etags,
    ) -> Self {
        Self {
            fs,
            users,
            etags,
            counters: Counters::default(),
            logs: Logs::default(),
            due: Due::default(),
            watcher,
            locks: std::array::from_fn(|_| Mutex::default()),
            buckets: std::array::from_fn(|_| RwLock::default()),
        }
    }

    fn bucket_lock(&self, bucket: Ino) -> &RwLock<()> {
        &self.buckets[bucket.0 as usize % BUCKET_LOCKS]
    }

    /// Keeps what a bucket is like from changing.
    pub(crate) fn keep_bucket(&self, bucket: Ino) -> RwLockReadGuard<'_, ()> {
        self.bucket_lock(bucket).read()
    }

    /// Keeps others from changing what a bucket is like, and from acting by it.
    pub(crate) fn change_of_bucket(&self, bucket: Ino) -> RwLockWriteGuard<'_, ()> {
        self.bucket_lock(bucket).write()
    }

    /// The lock of a key in a bucket.
    pub(crate) fn lock(&self, bucket: Ino, key: &str) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        (bucket, key).hash(&mut hasher);
        self.locks[hasher.finish() as usize % LOCKS].lock()
    }

    /// Bytes that nobody can guess.
    pub(crate) fn random_bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).expect("the kernel gives random bytes once it has booted");
        bytes
    }

    /// A name that nobody can guess: 32 hexadecimal digits.
    pub(crate) fn random_id(&self) -> String {
        crate::objects::hex(&self.random_bytes())
    }

    /// The time, seconds since 1970.
    pub(crate) fn now_seconds(&self) -> i64 {
        i64::try_from(self.fs.now_ms() / 1000).unwrap_or(i64::MAX)
    }

    /// Returns when everything that was changed is durable.
    ///
    /// # Errors
    /// The pool failed; nothing is acknowledged then.
    pub(crate) fn make_durable(&self) -> S3Result<()> {
        self.fs
            .store()
            .sync()
            .map_err(|error| errors::from_fs(error.into()))
    }

    /// Tells the kernel that a name in a directory changed.
    pub(crate) fn name_changed(&self, parent: Ino, name: &[u8]) {
        self.watcher.name_changed(parent, name);
    }

    /// Tells the kernel that an inode changed.
    pub(crate) fn inode_changed(&self, ino: Ino) {
        self.watcher.inode_changed(ino);
    }

    /// New files and directories belong to who owns the directory that they are made in.
    pub(crate) fn caller_in(directory: &Attr) -> Caller {
        Caller {
            uid: directory.uid,
            gid: directory.gid,
            pid: 0,
            umask: 0o022,
        }
    }
}

/// Runs what blocks on the threads for that.
///
/// # Errors
/// What it fails with; it ends with the process when it panics.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> S3Result<T> + Send + 'static,
) -> S3Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(S3Error::internal_error(error)),
    }
}
