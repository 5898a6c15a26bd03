//! Applying commands of front ends that store whole objects: giving a file its name when it is complete, and the
//! records that are kept with an inode.

use cfs_format::Ino;
use cfs_format::table::{InodeRecord, LOCK_NAME, inode_flag, key, tag};
use cfs_store::Txn;

use super::Outcome;
use super::make::{live_directory, orphan_key, touch_entries};
use super::remove::{lose_name, target_record};
use crate::command::{Publish, SetRecords};
use crate::directory::{self, Target};
use crate::error::{FsError, Result};
use crate::lock::{self, Lock};
use crate::{inode, row, xattr};

pub(super) fn publish(txn: &mut Txn<'_>, command: &Publish) -> Result<Outcome> {
    directory::check_name(&command.name)?;
    let mut record = inode::get(txn, command.ino)?;
    if inode::kind(&record) != libc::S_IFREG || record.nlink.get() != 0 {
        return Err(FsError::Invalid);
    }
    let mut parent = live_directory(txn, command.parent)?;
    if record.volume != parent.volume {
        return Err(FsError::CrossVolume);
    }
    check_records(&command.records)?;
    let found = directory::find(txn, command.parent, &command.name)?;
    let mut replaced = None;
    if let Some(entry) = found {
        let ino = Ino(entry.ino.get());
        let target = target_record(txn, ino)?;
        match inode::kind(&target) {
            libc::S_IFREG => {
                // What goes elsewhere is still there.
                if command.archive.is_none() {
                    lock::check(txn, ino, &target)?;
                }
                replaced = Some((entry, ino, target));
            }
            libc::S_IFDIR => return Err(FsError::IsDirectory),
            _ => return Err(FsError::NotPermitted),
        }
    }
    let mut archive = None;
    if let Some((dir, name)) = &command.archive {
        directory::check_name(name)?;
        let record = live_directory(txn, *dir)?;
        if *dir == command.parent {
            return Err(FsError::Invalid);
        }
        if record.volume != parent.volume {
            return Err(FsError::CrossVolume);
        }
        if directory::find(txn, *dir, name)?.is_some() {
            return Err(FsError::Exists);
        }
        archive = Some((*dir, record, name));
    }

    let target = Target {
        ino: command.ino,
        kind: libc::S_IFREG,
    };
    let mut lost = None;
    match replaced {
        None => directory::insert(txn, command.parent, &mut parent, &command.name, target),
        Some((entry, ino, mut old)) => {
            directory::retarget(txn, command.parent, &command.name, &entry, target);
            match &mut archive {
                Some((dir, record, name)) => {
                    let target = Target {
                        ino,
                        kind: libc::S_IFREG,
                    };
                    directory::insert(txn, *dir, record, name, target);
                    touch_entries(record, command.now);
                    inode::put(txn, *dir, record);
                }
                None => lost = lose_name(txn, ino, &mut old, command.keep, command.now)?,
            }
        }
    }
    put_records(txn, command.ino, &mut record, &command.records);
    if command.describes {
        record.flags |= inode_flag::DESCRIBED;
    }
    txn.delete(orphan_key(command.ino));
    record.nlink = 1.into();
    record.mtime = command.now.into();
    record.ctime = command.now.into();
    inode::put(txn, command.ino, &mut record);
    touch_entries(&mut parent, command.now);
    inode::put(txn, command.parent, &mut parent);
    Ok(Outcome {
        inode: Some((command.ino, record)),
        lost,
    })
}

pub(super) fn set_records(txn: &mut Txn<'_>, command: &SetRecords) -> Result<Outcome> {
    check_records(&command.put)?;
    let names_lock = |name: &Vec<u8>| name == LOCK_NAME;
    if command.put.iter().any(|(name, _)| names_lock(name)) || command.delete.iter().any(names_lock)
    {
        return Err(FsError::Invalid);
    }
    let mut record = inode::get(txn, command.ino)?;
    for name in &command.delete {
        txn.delete(key(command.ino, tag::XATTR, name));
    }
    put_records(txn, command.ino, &mut record, &command.put);
    if command.describes {
        record.flags |= inode_flag::DESCRIBED;
    }
    if let Some(now) = command.now {
        record.ctime = now.into();
    }
    inode::put(txn, command.ino, &mut record);
    Ok(Outcome::of(command.ino, record))
}

/// Whether these can be records of an inode. One may be a lock.
///
/// # Errors
/// As [`xattr::check_row`]; [`FsError::Invalid`] for what is no lock.
pub(super) fn check_records(records: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
    for (name, value) in records {
        xattr::check_row(name, value)?;
        if name == LOCK_NAME && Lock::decode(value).is_none() {
            return Err(FsError::Invalid);
        }
    }
    Ok(())
}

/// Writes the records of an inode, whose own record the caller writes.
pub(super) fn put_records(
    txn: &mut Txn<'_>,
    ino: Ino,
    record: &mut InodeRecord,
    records: &[(Vec<u8>, Vec<u8>)],
) {
    if !records.is_empty() {
        record.flags |= inode_flag::XATTRS;
    }
    for (name, value) in records {
        if name == LOCK_NAME {
            super::clones::note_lock(txn, ino);
            record.flags |= inode_flag::LOCKED;
        }
        let value = row::stamped(txn, value);
        txn.put(key(ino, tag::XATTR, name), value);
    }
}
