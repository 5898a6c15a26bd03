//! Applying the restoration of an inode from a snapshot.

use cfs_format::table::{InodeRecord, LOCK_NAME, inode_flag, key, tag};
use cfs_format::{Ino, Timestamp, VolumeId};
use cfs_store::Txn;

use super::Outcome;
use crate::clone::stays_with_origin;
use crate::command::Restore;
use crate::error::{FsError, Result};
use crate::extent::{Extent, ExtentEdit, account, file_key, scan};
use crate::history::{Past, snapshot_key};
use crate::namespace::publish::is_visible;
use crate::stream::is_of_pool;
use crate::{inode, lock, row, xattr};

/// The record of an inode as a snapshot that is there shows it.
///
/// # Errors
/// [`FsError::NotFound`]; [`FsError::Stale`] when the snapshot is not there.
pub(super) fn record_then(txn: &Txn<'_>, ino: Ino, at: Timestamp) -> Result<InodeRecord> {
    let past = Past { table: txn, at };
    let bytes = past.get(ino, tag::INODE, &[])?.ok_or(FsError::NotFound)?;
    let record = inode::decode(ino, &bytes)?;
    let volume = VolumeId(record.volume.get());
    match txn.get(&snapshot_key(volume, at.0))? {
        Some(_) => Ok(record),
        None => Err(FsError::Stale),
    }
}

/// Content by reference, attributes and extended attributes become those of the source. Entries of directories and the
/// target of a symbolic link stay.
pub(super) fn restore(txn: &mut Txn<'_>, command: &Restore) -> Result<Outcome> {
    let Restore {
        source, at, target, ..
    } = *command;
    let then = record_then(txn, source, at)?;
    let mut record = inode::get(txn, target)?;
    if inode::kind(&then) != inode::kind(&record) {
        return Err(FsError::Invalid);
    }
    lock::check(txn, target, &record)?;
    let mut xattrs: Vec<(Vec<u8>, Vec<u8>)> = match then.flags.get() & inode_flag::XATTRS {
        0 => Vec::new(),
        _ => Past { table: &*txn, at }
            .rows(source, tag::XATTR, &[], None)
            .collect::<Result<_>>()?,
    };

    xattrs.retain(|(name, _)| is_brought((source, &then), (target, &record), name));
    if inode::kind(&record) == libc::S_IFREG {
        restore_content(txn, command, &then, &mut record)?;
    }
    if record.flags.get() & inode_flag::XATTRS != 0 {
        xattr::erase(txn, target, |name| !stays(target, &record, name))?;
    }
    for (name, value) in &xattrs {
        let value = row::stamped(txn, &row::content(value.clone())?);
        txn.put(key(target, tag::XATTR, name), value);
    }
    let of_rows = match target {
        // Some stay in any case.
        Ino::ROOT => inode_flag::LOCKED | inode_flag::DESCRIBED,
        _ => inode_flag::XATTRS | inode_flag::LOCKED | inode_flag::DESCRIBED,
    };
    let flags = match (keeps_records(&record), xattrs.is_empty()) {
        (true, _) => record.flags.get(),
        (false, true) => record.flags.get() & !of_rows,
        // The records come from the snapshot, and describe what they described then.
        (false, false) => {
            let described = then.flags.get() & inode_flag::DESCRIBED;
            (record.flags.get() & !of_rows) | inode_flag::XATTRS | described
        }
    };
    record.flags = flags.into();
    record.mode = then.mode;
    record.uid = then.uid;
    record.gid = then.gid;
    record.atime = then.atime;
    record.mtime = then.mtime;
    record.ctime = command.now.into();
    inode::put(txn, target, &mut record);
    Ok(Outcome::of(target, record))
}

/// A directory in which things can be locked stays one, with all that front ends keep with it.
fn keeps_records(now: &InodeRecord) -> bool {
    inode::is_directory(now) && now.flags.get() & inode_flag::LOCKED != 0
}

/// Whether an inode keeps an attribute, whatever is restored to it.
fn stays(target: Ino, now: &InodeRecord, name: &[u8]) -> bool {
    is_of_pool(target, name) || (keeps_records(now) && !is_visible(name))
}

/// Whether an inode gets an attribute from the one in the snapshot that is restored to it.
pub(crate) fn is_brought(
    (source, then): (Ino, &InodeRecord),
    (target, now): (Ino, &InodeRecord),
    name: &[u8],
) -> bool {
    let volume = |ino: Ino| ino.cloned().map(|(volume, _)| volume);
    // A clone has it from its origin.
    let is_others = volume(source) != volume(target) && stays_with_origin(target, then, name);
    // What comes back is not locked again: a lock that still holds has not let it go.
    name != LOCK_NAME && !is_others && !stays(target, now, name)
}

fn restore_content(
    txn: &mut Txn<'_>,
    command: &Restore,
    then: &InodeRecord,
    record: &mut InodeRecord,
) -> Result<()> {
    let Restore {
        source, at, target, ..
    } = *command;
    let past = Past { table: &*txn, at };
    let size = then.size.get();
    let inline = match then.flags.get() & inode_flag::INLINE {
        0 => None,
        _ => {
            let value = past.get(source, tag::INLINE, &[])?;
            let value = value.ok_or_else(|| {
                FsError::damaged(format_args!("inode {source} has lost its content"))
            })?;
            Some(row::content(value)?)
        }
    };
    let extents: Vec<Extent> = match inline {
        Some(_) => Vec::new(),
        None => scan(&past, source, &file_key(txn, then)?, 0, size).collect::<Result<_>>()?,
    };

    let size_before = record.size.get();
    let target_key = file_key(txn, record)?;
    let mut edit = ExtentEdit::new(target, &target_key, size_before);
    let was_inline = record.flags.get() & inode_flag::INLINE != 0;
    let mut allocated_delta = 0;
    if was_inline {
        allocated_delta -= record.allocated.get() as i64;
        txn.delete(key(target, tag::INLINE, &[]));
    }
    // What is the same is left alone: its rows need not be kept again.
    let current: Vec<Extent> = match was_inline {
        true => Vec::new(),
        false => scan(&*txn, target, &target_key, 0, size_before).collect::<Result<_>>()?,
    };
    let has = |list: &[Extent], extent: &Extent| {
        let found = list.binary_search_by_key(&extent.offset, |it| it.offset);
        found.is_ok_and(|at| list[at] == *extent)
    };
    #[cfg(feature = "planted-bugs")]
    let goes = !cfs_format::planted::has(cfs_format::planted::Bug::RestoredHoleForgotten);
    #[cfg(not(feature = "planted-bugs"))]
    let goes = true;
    let replaced = current.iter().filter(|extent| !has(&extents, extent));
    for extent in replaced.filter(|_| goes) {
        edit.remove(txn, extent.offset, extent.end())?;
    }
    let new: Vec<Extent> = extents
        .iter()
        .filter(|extent| !has(&current, extent))
        .copied()
        .collect();
    edit.replace(txn, &new)?;
    allocated_delta += edit.finish(txn, &[])?;
    let mut flags = record.flags.get() & !inode_flag::INLINE;
    if let Some(content) = inline {
        allocated_delta += content.len() as i64;
        flags |= inode_flag::INLINE;
        let value = row::stamped(txn, &content);
        txn.put(key(target, tag::INLINE, &[]), value);
    }
    record.flags = flags.into();
    record.size = size.into();
    account(txn, record, size_before, allocated_delta)
}
