//! Applying commands that remove names and inodes.

use cfs_format::table::{InodeRecord, inode_flag, key, tag};
use cfs_format::{Ino, VolumeId};
use cfs_store::{Txn, VolumeDelta};

use super::make::{live_directory, orphan_key, touch_entries};
use super::{EXTENTS_WITH_UNLINK_MAX, Lost, Outcome};
use crate::command::{Reap, Unlink};
use crate::error::{FsError, Result};
use crate::types::Time;
use crate::{directory, extent, inode, lock, row};

pub(super) fn unlink(txn: &mut Txn<'_>, command: &Unlink) -> Result<Outcome> {
    let mut parent = live_directory(txn, command.parent)?;
    let entry = directory::find(txn, command.parent, &command.name)?.ok_or(FsError::NotFound)?;
    let ino = Ino(entry.ino.get());
    let mut record = target_record(txn, ino)?;
    if inode::is_directory(&record) {
        return Err(FsError::IsDirectory);
    }
    lock::check(txn, ino, &record)?;

    directory::remove(txn, command.parent, &mut parent, &command.name, &entry);
    touch_entries(&mut parent, command.now);
    inode::put(txn, command.parent, &mut parent);
    let lost = lose_name(txn, ino, &mut record, command.keep, command.now)?;
    Ok(Outcome {
        inode: Some((ino, record)),
        lost,
    })
}

pub(super) fn remove_directory(txn: &mut Txn<'_>, command: &Unlink) -> Result<Outcome> {
    let mut parent = live_directory(txn, command.parent)?;
    let entry = directory::find(txn, command.parent, &command.name)?.ok_or(FsError::NotFound)?;
    let ino = Ino(entry.ino.get());
    let mut record = target_record(txn, ino)?;
    if !inode::is_directory(&record) {
        return Err(FsError::NotDirectory);
    }
    if inode::is_junction(&record) {
        return Err(FsError::Volume);
    }
    if record.size.get() != 0 {
        return Err(FsError::NotEmpty);
    }

    directory::remove(txn, command.parent, &mut parent, &command.name, &entry);
    parent.nlink -= 1;
    touch_entries(&mut parent, command.now);
    inode::put(txn, command.parent, &mut parent);
    let lost = lose_name(txn, ino, &mut record, command.keep, command.now)?;
    Ok(Outcome {
        inode: Some((ino, record)),
        lost,
    })
}

/// The record that an entry points to; that it is missing is damage.
pub(super) fn target_record(txn: &Txn<'_>, ino: Ino) -> Result<InodeRecord> {
    inode::get(txn, ino).map_err(|error| match error {
        FsError::NotFound => {
            FsError::damaged(format_args!("a name of inode {ino}, which is missing"))
        }
        other => other,
    })
}

/// Takes one name from an inode, or an empty directory's only one. With the last name the inode goes, unless it is
/// to be kept or has much to free: then it stays as an orphan.
pub(super) fn lose_name(
    txn: &mut Txn<'_>,
    ino: Ino,
    record: &mut InodeRecord,
    keep: bool,
    now: Time,
) -> Result<Option<Lost>> {
    let nlink = record.nlink.get();
    let left = if inode::is_directory(record) || nlink == 0 {
        0
    } else {
        nlink - 1
    };
    record.nlink = left.into();
    record.ctime = now.into();
    if left > 0 {
        inode::put(txn, ino, record);
        return Ok(None);
    }
    if !keep && free_content(txn, ino, record, EXTENTS_WITH_UNLINK_MAX)? {
        erase(txn, ino, record)?;
        return Ok(Some(Lost::Removed(ino)));
    }
    #[cfg(feature = "planted-bugs")]
    if cfs_format::planted::has(cfs_format::planted::Bug::OrphanForgotten) {
        inode::put(txn, ino, record);
        return Ok(Some(Lost::Orphaned(ino)));
    }
    let since = row::stamped(txn, &[]);
    txn.put(orphan_key(ino), since);
    inode::put(txn, ino, record);
    Ok(Some(Lost::Orphaned(ino)))
}

pub(super) fn reap(txn: &mut Txn<'_>, command: &Reap) -> Result<Outcome> {
    let mut record = match inode::get(txn, command.ino) {
        Ok(record) => record,
        Err(FsError::NotFound) => return Ok(Outcome::default()),
        Err(error) => return Err(error),
    };
    if record.nlink.get() != 0 {
        return Ok(Outcome::default());
    }
    let lost = if free_content(txn, command.ino, &mut record, command.extents_max)? {
        erase(txn, command.ino, &record)?;
        txn.delete(orphan_key(command.ino));
        Lost::Removed(command.ino)
    } else {
        inode::put(txn, command.ino, &mut record);
        Lost::Orphaned(command.ino)
    };
    Ok(Outcome {
        inode: None,
        lost: Some(lost),
    })
}

/// Frees content, at most `extents_max` extents; whether nothing is left.
fn free_content(
    txn: &mut Txn<'_>,
    ino: Ino,
    record: &mut InodeRecord,
    extents_max: u32,
) -> Result<bool> {
    match inode::kind(record) {
        libc::S_IFREG => extent::drop_some(txn, ino, record, extents_max),
        libc::S_IFLNK => {
            txn.delete(key(ino, tag::INLINE, &[]));
            let delta = VolumeDelta {
                logical_bytes: -(record.size.get() as i64),
                allocated_bytes: -(record.allocated.get() as i64),
                inodes: 0,
            };
            txn.volume_add(VolumeId(record.volume.get()), delta)?;
            Ok(true)
        }
        _ => Ok(true),
    }
}

/// Removes what is left of an inode that has no content.
fn erase(txn: &mut Txn<'_>, ino: Ino, record: &InodeRecord) -> Result<()> {
    if record.flags.get() & inode_flag::XATTRS != 0 {
        crate::xattr::erase_all(txn, ino)?;
    }
    inode::delete(txn, ino)?;
    let delta = VolumeDelta {
        logical_bytes: 0,
        allocated_bytes: 0,
        inodes: -1,
    };
    txn.volume_add(VolumeId(record.volume.get()), delta)?;
    Ok(())
}
