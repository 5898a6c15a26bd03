//! Applying changes of attributes.

use cfs_format::Ino;
use cfs_store::Txn;

use super::Outcome;
use crate::command::SetAttributes;
use crate::error::{FsError, Result};
use crate::types::Time;
use crate::{acl, inode, lock};

pub(super) fn set(txn: &mut Txn<'_>, command: &SetAttributes) -> Result<Outcome> {
    let mut record = inode::get(txn, command.ino)?;
    lock::check(txn, command.ino, &record)?;
    let times = [command.atime, command.mtime, Some(command.ctime)];
    if times
        .iter()
        .flatten()
        .any(|time| time.nanos >= 1_000_000_000)
    {
        return Err(FsError::Invalid);
    }

    if let Some(uid) = command.uid {
        record.uid = uid.into();
    }
    if let Some(gid) = command.gid {
        record.gid = gid.into();
    }
    if command.kill_suid_sgid {
        inode::kill_suid_sgid(&mut record);
    }
    if let Some(mode) = command.mode {
        record.mode = (inode::kind(&record) | (mode & 0o7777)).into();
        acl::follow_mode(txn, command.ino, &record)?;
    }
    if let Some(atime) = command.atime {
        record.atime = atime.into();
    }
    if let Some(mtime) = command.mtime {
        record.mtime = mtime.into();
    }
    record.ctime = command.ctime.into();
    inode::put(txn, command.ino, &mut record);
    Ok(Outcome::of(command.ino, record))
}

pub(super) fn touch(txn: &mut Txn<'_>, times: &[(Ino, Time)]) -> Result<Outcome> {
    for (ino, time) in times {
        match inode::get(txn, *ino) {
            Ok(mut record) => {
                record.atime = (*time).into();
                inode::put(txn, *ino, &mut record);
            }
            Err(FsError::NotFound | FsError::Inherited(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Outcome::default())
}
