//! Inode records: reading and writing them in and outside a transaction.
//!
//! Every record that a transaction writes carries that transaction's timestamp.

use cfs_format::Ino;
use cfs_format::table::{InodeRecord, inode_flag, key, tag};
use cfs_store::{Store, Txn};
use zerocopy::{FromBytes, IntoBytes};

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

/// The newest committed record.
pub(crate) fn committed(store: &Store, ino: Ino) -> Result<Option<InodeRecord>> {
    match store.get(&key(ino, tag::INODE, &[]))? {
        Some(bytes) => decode(ino, &bytes).map(Some),
        None => Ok(None),
    }
}

/// The record as the transaction sees it, or [`FsError::NotFound`]; [`FsError::Snapshot`] for a number of a view, which
/// no command may change.
pub(crate) fn get(txn: &Txn<'_>, ino: Ino) -> Result<InodeRecord> {
    if ino.view().is_some() {
        return Err(FsError::Snapshot);
    }
    let bytes = txn.get(&key(ino, tag::INODE, &[]))?;
    decode(ino, &bytes.ok_or(FsError::NotFound)?)
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

/// Removes the record.
pub(crate) fn delete(txn: &mut Txn<'_>, ino: Ino) {
    txn.delete(key(ino, tag::INODE, &[]));
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
