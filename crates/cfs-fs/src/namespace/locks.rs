//! Locking files.

use cfs_format::Ino;
use cfs_format::table::lock_mode;

use crate::command::{Command, SetLock};
use crate::error::{FsError, Result};
use crate::lock::{self, Lock, RetentionMode};
use crate::{Fs, inode};

/// A change of a file's lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LockChange {
    /// The retention that it is to have, with its end in milliseconds since 1970, or none; if that changes.
    pub retention: Option<Option<(RetentionMode, u64)>>,
    /// Whether it is held, if that changes.
    pub hold: Option<bool>,
    /// Whoever asks may weaken governance.
    pub bypass_governance: bool,
}

impl Fs {
    /// The lock of a file, whether it protects it still or not.
    ///
    /// # Errors
    /// [`FsError::NotFound`].
    pub fn lock(&self, ino: Ino) -> Result<Option<Lock>> {
        if ino.view().is_some() {
            return Err(FsError::NotFound);
        }
        let found = self.views.find(ino)?.ok_or(FsError::NotFound)?;
        lock::committed(&self.views, found.place, &found.record)
    }

    /// Locks a file, changes its lock, or ends it. As long as it protects, the file can be neither removed, moved,
    /// replaced nor changed, by nobody and through no front end. What was written to it before is written first.
    /// Durable after [`cfs_store::Store::sync`].
    ///
    /// # Errors
    /// [`FsError::Locked`] when the lock may not be weakened so; [`FsError::NotFound`]; [`FsError::Invalid`] for what is
    /// no regular file; [`FsError::NoSpace`].
    pub fn set_lock(&self, ino: Ino, change: LockChange) -> Result<()> {
        if ino.view().is_some() {
            return Err(FsError::Snapshot);
        }
        let _reservation = self.admit_growth(0)?;
        let _open = self.gate.read();
        self.closed.check_content(&self.store, ino)?;
        let retention = change.retention.map(|retention| match retention {
            None => (lock_mode::NONE, 0),
            Some((RetentionMode::Governance, until)) => (lock_mode::GOVERNANCE, until),
            Some((RetentionMode::Compliance, until)) => (lock_mode::COMPLIANCE, until),
        });
        let command = Command::SetLock(SetLock {
            ino,
            retention,
            hold: change.hold,
            bypass: change.bypass_governance,
        });
        self.files.change_lock(ino, &command)
    }

    /// Has a directory, and all below it, stay where it is, for good: files in it are to be locked.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotDirectory`], [`FsError::NoSpace`].
    pub fn fix_directory(&self, ino: Ino) -> Result<()> {
        let _reservation = self.admit_growth(0)?;
        self.execute(|txn, _| {
            if !inode::is_directory(&inode::get(txn, ino)?) {
                return Err(FsError::NotDirectory);
            }
            Ok(Command::SetLock(SetLock {
                ino,
                retention: None,
                hold: None,
                bypass: false,
            }))
        })?;
        Ok(())
    }
}
