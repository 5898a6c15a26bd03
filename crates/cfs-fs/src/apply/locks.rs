//! Applying locks.

use cfs_format::table::{LOCK_NAME, inode_flag, key, lock_mode, tag};
use cfs_store::Txn;

use super::Outcome;
use crate::command::SetLock;
use crate::error::{FsError, Result};
use crate::lock::{self, Lock, RetentionMode};
use crate::{inode, row};

/// Compliance is only ever prolonged; governance is weakened by whoever may bypass it; a hold comes and goes.
pub(super) fn set(txn: &mut Txn<'_>, command: &SetLock) -> Result<Outcome> {
    let mut record = inode::get(txn, command.ino)?;
    let mut changed = lock::of(txn, command.ino, &record)?.unwrap_or_default();
    match inode::kind(&record) {
        libc::S_IFDIR if command.retention.is_some() || command.hold.is_some() => {
            return Err(FsError::IsDirectory);
        }
        libc::S_IFDIR => {}
        libc::S_IFREG if record.nlink.get() > 0 => {
            if let Some((mode, until)) = command.retention {
                let new = match (mode, until) {
                    (lock_mode::NONE, 0) => None,
                    (lock_mode::GOVERNANCE, _) => Some((RetentionMode::Governance, until)),
                    (lock_mode::COMPLIANCE, _) => Some((RetentionMode::Compliance, until)),
                    _ => return Err(FsError::Invalid),
                };
                if !may_follow(changed.retention, new, lock::now_ms(txn), command.bypass) {
                    return Err(FsError::Locked);
                }
                changed.retention = new;
            }
            changed.hold = command.hold.unwrap_or(changed.hold);
        }
        libc::S_IFREG => return Err(FsError::NotFound),
        _ => return Err(FsError::Invalid),
    }
    put(txn, command.ino, &mut record, &changed);
    inode::put(txn, command.ino, &mut record);
    Ok(Outcome::of(command.ino, record))
}

/// Whether one retention may become another.
fn may_follow(
    old: Option<(RetentionMode, u64)>,
    new: Option<(RetentionMode, u64)>,
    now_ms: u64,
    bypass: bool,
) -> bool {
    let Some((mode, until)) = old.filter(|(_, until)| *until > now_ms) else {
        return true;
    };
    let is_prolonged = new.is_some_and(|(new, end)| new == mode && end >= until);
    is_prolonged || (bypass && mode == RetentionMode::Governance)
}

/// Writes the lock of an inode, whose record the caller writes.
fn put(
    txn: &mut Txn<'_>,
    ino: cfs_format::Ino,
    record: &mut cfs_format::table::InodeRecord,
    lock: &Lock,
) {
    super::clones::note_lock(txn, ino);
    record.flags |= inode_flag::XATTRS | inode_flag::LOCKED;
    let value = row::stamped(txn, &lock.encode());
    txn.put(key(ino, tag::XATTR, LOCK_NAME), value);
}
