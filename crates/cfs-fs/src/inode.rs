//! Inode records: reading and writing them in and outside a transaction.
//!
//! Every record that a transaction writes carries that transaction's timestamp.

use cfs_format::Ino;
use cfs_format::table::{InodeRecord, inode_flag, key, tag};
use cfs_store::{Store, Txn};
use zerocopy::{FromBytes, IntoBytes};

use crate::clone;
use crate::error::{FsError, Result};
use crate::extent::FILE_BYTES_MAX;

/// Names that an inode can have; also the subdirectories of a directory, less two.
pub(crate) const NLINK_MAX: u32 = 1 << 31;

/// Decodes a stored inode record.
pub(crate) fn decode(ino: Ino, bytes: &[u8]) -> Result<InodeRecord> {
    let record = InodeRecord::read_from_bytes(bytes)
        .map_err(|_| FsError::damaged(format_args!("inode {ino} has {} bytes", bytes.len())))?;
    // Offsets are calculated with on the strength of this.
    if record.size.get() > FILE_BYTES_MAX {
        return Err(FsError::damaged(format_args!("the size of inode {ino}")));
    }
    Ok(record)
}

/// The newest committed record; of an inode that a clone has from its origin, that one's.
pub(crate) fn committed(store: &Store, ino: Ino) -> Result<Option<InodeRecord>> {
    if ino.cloned().is_some() {
        return Ok(clone::find(store, ino, None)?.map(|found| found.record));
    }
    match store.get(&key(ino, tag::INODE, &[]))? {
        Some(bytes) => decode(ino, &bytes).map(Some),
        None => Ok(None),
    }
}

/// The record as the transaction sees it, or [`FsError::NotFound`]; [`FsError::Snapshot`] for a number of a view, which
/// no command may change; [`FsError::Inherited`] for what a clone has from its origin, which none may change yet.
pub(crate) fn get(txn: &Txn<'_>, ino: Ino) -> Result<InodeRecord> {
    if ino.view().is_some() {
        return Err(FsError::Snapshot);
    }
    let bytes = txn.get(&key(ino, tag::INODE, &[]))?;
    let record = bytes.map(|bytes| decode(ino, &bytes)).transpose()?;
    match record {
        Some(record) if clone::is_own(&record) => Ok(record),
        Some(record) if clone::is_gone(&record) => Err(FsError::NotFound),
        _ => match clone::inherited(txn, ino)? {
            Some(_) => Err(FsError::Inherited(ino)),
            None => Err(FsError::NotFound),
        },
    }
}

/// The same for who only looks: an inode that a clone has from its origin is one.
///
/// # Errors
/// As [`get`], but for [`FsError::Inherited`].
pub(crate) fn shown(txn: &Txn<'_>, ino: Ino) -> Result<InodeRecord> {
    match get(txn, ino) {
        Err(FsError::Inherited(ino)) => {
            let found = clone::inherited(txn, ino)?;
            found.map(|found| found.record).ok_or(FsError::NotFound)
        }
        got => got,
    }
}

/// Makes sure that an inode is not its origin's still, where a command is built from what its rows say.
///
/// # Errors
/// [`FsError::Inherited`], [`FsError::NotFound`], of an inode of a clone.
pub(crate) fn check_own(txn: &Txn<'_>, ino: Ino) -> Result<()> {
    match ino.cloned() {
        None => Ok(()),
        Some(_) => get(txn, ino).map(drop),
    }
}

/// Writes the record, stamped with the transaction's timestamp.
pub(crate) fn put(txn: &mut Txn<'_>, ino: Ino, record: &mut InodeRecord) {
    record.timestamp = txn.timestamp().0.into();
    txn.put(key(ino, tag::INODE, &[]), record.as_bytes().to_vec());
}

/// Whether there is an inode with this number, as the transaction sees it.
pub(crate) fn exists(txn: &Txn<'_>, ino: Ino) -> Result<bool> {
    Ok(txn.get(&key(ino, tag::INODE, &[]))?.is_some())
}

/// Removes the record. Of an inode that a clone has from its origin, one stays that says so.
///
/// # Errors
/// When the origin cannot be read.
pub(crate) fn delete(txn: &mut Txn<'_>, ino: Ino) -> Result<()> {
    #[cfg(feature = "planted-bugs")]
    if cfs_format::planted::has(cfs_format::planted::Bug::GoneForgotten) {
        txn.delete(key(ino, tag::INODE, &[]));
        return Ok(());
    }
    match ino.cloned() {
        Some((clone, _)) if clone::inherited(txn, ino)?.is_some() => {
            let mut record = InodeRecord {
                volume: clone.0.into(),
                flags: inode_flag::GONE.into(),
                ..InodeRecord::default()
            };
            put(txn, ino, &mut record);
        }
        _ => txn.delete(key(ino, tag::INODE, &[])),
    }
    Ok(())
}

/// Whether it is the place of a volume.
pub(crate) fn is_junction(record: &InodeRecord) -> bool {
    record.flags.get() & inode_flag::JUNCTION != 0
}

/// Type bits of the record's mode.
pub(crate) fn kind(record: &InodeRecord) -> u32 {
    record.mode.get() & libc::S_IFMT
}

/// Whether it is a directory.
pub(crate) fn is_directory(record: &InodeRecord) -> bool {
    kind(record) == libc::S_IFDIR
}

/// Clears the bits that a write by another user clears: set-user-id, and set-group-id where the group may execute.
pub(crate) fn kill_suid_sgid(record: &mut InodeRecord) {
    let mut mode = record.mode.get();
    if mode & libc::S_IFMT != libc::S_IFDIR {
        mode &= !libc::S_ISUID;
        if mode & libc::S_IXGRP != 0 {
            mode &= !libc::S_ISGID;
        }
    }
    record.mode = mode.into();
}
