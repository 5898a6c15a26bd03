//! Locks: files that nobody may remove, replace, move or change for a time, as S3's object lock has it.
//!
//! A lock is a row of the inode, [`LOCK_NAME`], and the inode's flag `LOCKED`, which says that the row is worth looking
//! for. Every command that could do harm asks here while it is applied, so that it makes no difference which front end it
//! comes from; time is the timestamp of the command, so that applying it again decides alike. What a command may do to a
//! locked file is to move it under another name of the same object (`Publish` and `Arrange`, which the mount does not
//! have), to put it into other chunks, and to change what front ends keep with it beside its content.
//!
//! # Invariants
//! - An inode with the flag has the row, and one with the row the flag.
//! - A locked file has a name.
//! - A directory with the flag (a bucket whose objects can be locked) keeps it; neither it nor a directory below it is
//!   moved, so that what is locked stays where it is looked for.

use cfs_format::table::{InodeRecord, LOCK_NAME, LockRecord, inode_flag, key, lock_mode, tag};
use cfs_format::{Ino, VolumeId};
use cfs_store::Txn;
use zerocopy::{FromBytes, IntoBytes};

use crate::error::{FsError, Result};
use crate::views::{Place, Views};
use crate::{inode, row};

/// Directories above another at most; more mean that parents form a circle.
const DEPTH_MAX: u32 = 1 << 20;

/// Who can end a retention before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetentionMode {
    /// Who has the right to bypass it.
    Governance,
    /// Nobody.
    Compliance,
}

/// What protects a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lock {
    /// Until when, in milliseconds since 1970.
    pub retention: Option<(RetentionMode, u64)>,
    /// Until somebody ends it, whatever the retention.
    pub hold: bool,
}

impl Lock {
    /// The record of [`crate::Publication::records`] that has a file locked from its first moment on.
    #[must_use]
    pub fn record(&self) -> (Vec<u8>, Vec<u8>) {
        (LOCK_NAME.to_vec(), self.encode())
    }

    /// The lock in a record that [`Lock::record`] has made; none in any other.
    #[must_use]
    pub fn of_record(name: &[u8], value: &[u8]) -> Option<Self> {
        match name == LOCK_NAME {
            true => Self::decode(value),
            false => None,
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let (mode, until) = match self.retention {
            None => (lock_mode::NONE, 0),
            Some((RetentionMode::Governance, until)) => (lock_mode::GOVERNANCE, until),
            Some((RetentionMode::Compliance, until)) => (lock_mode::COMPLIANCE, until),
        };
        let record = LockRecord {
            retain_until_ms: until.into(),
            mode,
            hold: self.hold.into(),
            reserved: [0; 6],
        };
        record.as_bytes().to_vec()
    }

    /// The lock with these bytes; none when they are none.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let record = LockRecord::read_from_bytes(bytes).ok()?;
        let until = record.retain_until_ms.get();
        let retention = match (record.mode, until) {
            (lock_mode::NONE, 0) => None,
            (lock_mode::GOVERNANCE, _) => Some((RetentionMode::Governance, until)),
            (lock_mode::COMPLIANCE, _) => Some((RetentionMode::Compliance, until)),
            _ => return None,
        };
        (record.hold <= 1 && record.reserved == [0; 6]).then_some(Self {
            retention,
            hold: record.hold == 1,
        })
    }

    /// Whether it protects at a time, against who may bypass governance or may not.
    #[must_use]
    pub fn protects(&self, now_ms: u64, bypass: bool) -> bool {
        let is_retained = self.retention.is_some_and(|(mode, until)| {
            until > now_ms && !(bypass && mode == RetentionMode::Governance)
        });
        self.hold || is_retained
    }

    /// The first moment at which it does not protect any more, milliseconds since 1970.
    pub(crate) fn ends_ms(&self) -> u64 {
        match self.hold {
            true => u64::MAX,
            false => self.retention.map_or(0, |(_, until)| until),
        }
    }
}

/// The time of a command, milliseconds since 1970.
pub(crate) fn now_ms(txn: &Txn<'_>) -> u64 {
    txn.timestamp().0 >> 16
}

/// The lock of an inode, whether it protects still or not.
pub(crate) fn of(txn: &Txn<'_>, ino: Ino, record: &InodeRecord) -> Result<Option<Lock>> {
    match record.flags.get() & inode_flag::LOCKED {
        0 => Ok(None),
        _ => decode_row(ino, txn.get(&key(ino, tag::XATTR, LOCK_NAME))?).map(Some),
    }
}

/// The same of what is committed: of the inode whose rows are at a place.
pub(crate) fn committed(views: &Views, place: Place, record: &InodeRecord) -> Result<Option<Lock>> {
    match record.flags.get() & inode_flag::LOCKED {
        0 => Ok(None),
        _ => decode_row(place.ino, views.get(place, tag::XATTR, LOCK_NAME)?).map(Some),
    }
}

fn decode_row(ino: Ino, value: Option<Vec<u8>>) -> Result<Lock> {
    value
        .map(row::content)
        .transpose()?
        .and_then(|bytes| Lock::decode(&bytes))
        .ok_or_else(|| FsError::damaged(format_args!("the lock of inode {ino}")))
}

/// Whether the value of a lock row is one.
pub(crate) fn is_sound(value: Vec<u8>) -> bool {
    row::content(value).is_ok_and(|bytes| Lock::decode(&bytes).is_some())
}

/// Refuses what would change a locked file, or take a name from it.
///
/// # Errors
/// [`FsError::Locked`].
pub(crate) fn check(txn: &Txn<'_>, ino: Ino, record: &InodeRecord) -> Result<()> {
    check_bypassing(txn, ino, record, false)
}

/// The same for somebody who may bypass governance.
///
/// # Errors
/// [`FsError::Locked`].
pub(crate) fn check_bypassing(
    txn: &Txn<'_>,
    ino: Ino,
    record: &InodeRecord,
    bypass: bool,
) -> Result<()> {
    if inode::is_directory(record) {
        return Ok(());
    }
    match of(txn, ino, record)? {
        Some(lock) if lock.protects(now_ms(txn), bypass) => Err(FsError::Locked),
        _ => Ok(()),
    }
}

/// Refuses to move a locked file, and a directory in which something can be locked.
///
/// # Errors
/// [`FsError::Locked`].
pub(crate) fn check_move(txn: &Txn<'_>, ino: Ino, record: &InodeRecord) -> Result<()> {
    check(txn, ino, record)?;
    let (mut at, mut record) = (ino, *record);
    if inode::is_junction(&record) {
        // The volume that is seen in its place is what would move.
        at = txn
            .volume_at(ino)
            .map(|volume| Ino(volume.root.get()))
            .ok_or_else(|| FsError::damaged(format_args!("the volume of junction {ino}")))?;
        record = inode::shown(txn, at)?;
    }
    for _ in 0..DEPTH_MAX {
        if !inode::is_directory(&record) || at == Ino::ROOT {
            return Ok(());
        }
        if record.flags.get() & inode_flag::LOCKED != 0 {
            return Err(FsError::Locked);
        }
        let parent = Ino(record.parent.get());
        // The root of another volume is its own parent, and is seen in place of an empty directory.
        at = match txn.volume(VolumeId(record.volume.get())) {
            Some(volume) if parent == at => Ino(volume.junction.get()),
            _ => parent,
        };
        record = inode::shown(txn, at)?;
    }
    Err(FsError::damaged(format_args!(
        "the parents of directory {ino} form a circle"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes that version 1 writes; see `docs/format/namespace.md`.
    #[test]
    fn golden_locks() {
        let retained = |mode| Lock {
            retention: Some((mode, 0x0102_0304)),
            hold: false,
        };
        let held = Lock {
            retention: None,
            hold: true,
        };
        let cases = [
            (Lock::default(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            (held, [0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
            (
                retained(RetentionMode::Governance),
                [4, 3, 2, 1, 0, 0, 0, 0, 1, 0],
            ),
            (
                retained(RetentionMode::Compliance),
                [4, 3, 2, 1, 0, 0, 0, 0, 2, 0],
            ),
        ];
        for (lock, bytes) in cases {
            let mut wanted = bytes.to_vec();
            wanted.extend_from_slice(&[0; 6]);
            assert_eq!(lock.encode(), wanted);
            assert_eq!(Lock::decode(&wanted), Some(lock));
            wanted[15] = 1;
            assert_eq!(Lock::decode(&wanted), None);
        }
        assert_eq!(
            Lock::decode(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            None
        );
        assert_eq!(Lock::decode(&[0; 15]), None);
    }
}
