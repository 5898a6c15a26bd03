//! Applying commands about volumes.
//!
//! The root of a volume has no name. It is seen in the place of a junction: an empty directory of the volume above, with
//! a name there, which snapshots of that volume show as what it is. So no name leads from one volume into another.

use cfs_format::table::{VolumeRecord, inode_flag, system_key, tag};
use cfs_format::{Ino, VolumeId};
use cfs_store::{Txn, VolumeDelta};

use super::make::{self, live_directory, touch_entries};
use super::{Outcome, clones, locks, publish};
use crate::command::{
    DomainCreate, MadeDirectory, MakeRecorded, SetLock, SetRecords, VolumeCreate, VolumeDelete,
    VolumeQuota,
};
use crate::error::{FsError, Result};
use crate::extent::table_error;
use crate::{directory, inode, xattr};

pub(super) fn create(txn: &mut Txn<'_>, command: &VolumeCreate) -> Result<Outcome> {
    let VolumeCreate {
        junction,
        volume,
        root,
        ..
    } = command;
    let is_taken = txn.volume(*volume).is_some() || inode::exists(txn, *root)?;
    if is_taken || *root == junction.ino || junction.mode & libc::S_IFMT != libc::S_IFDIR {
        return Err(FsError::Invalid);
    }
    let has_secret = txn.domain_secret(command.domain).is_some();
    if has_secret == command.new_secret.is_some() {
        return Err(FsError::Invalid);
    }
    let above = live_directory(txn, junction.parent)?;
    let volume_above = txn
        .volume(VolumeId(above.volume.get()))
        .ok_or_else(|| FsError::damaged(format_args!("volume {} is missing", above.volume)))?;
    let made = make::make(txn, junction)?;
    let (_, mut record) = made.inode.expect("making reports the inode");
    record.flags |= inode_flag::JUNCTION;
    inode::put(txn, junction.ino, &mut record);

    if let Some(secret) = command.new_secret {
        txn.domain_put(command.domain, secret);
    }
    txn.volume_put(
        *volume,
        VolumeRecord {
            root: root.0.into(),
            created_ns: junction.now.ns_since_1970().into(),
            domain: command.domain.0.into(),
            codec: volume_above.codec,
            codec_level: volume_above.codec_level,
            junction: junction.ino.0.into(),
            quota_bytes: command.quota_bytes.into(),
            quota_inodes: command.quota_inodes.into(),
            ..VolumeRecord::default()
        },
    );
    make::volume_root(txn, &above, command)
}

pub(super) fn create_domain(txn: &mut Txn<'_>, command: &DomainCreate) -> Result<Outcome> {
    if txn.domain_secret(command.domain).is_some() {
        return Err(FsError::Invalid);
    }
    let outcome = put_records(txn, command.ino, &command.put)?;
    txn.domain_put(command.domain, command.secret);
    Ok(outcome)
}

pub(super) fn create_recorded(txn: &mut Txn<'_>, command: &MakeRecorded) -> Result<Outcome> {
    publish::check_records(&command.put)?;
    let outcome = match &command.made {
        MadeDirectory::Plain(made) if made.mode & libc::S_IFMT == libc::S_IFDIR => {
            make::make(txn, made)?
        }
        MadeDirectory::Plain(_) => return Err(FsError::Invalid),
        MadeDirectory::Volume(made) => create(txn, made)?,
    };
    let (ino, _) = outcome.inode.expect("making reports the inode");
    let recorded = put_records(txn, ino, &command.put)?;
    if !command.stays {
        return Ok(recorded);
    }
    let lock = SetLock {
        ino,
        retention: None,
        hold: None,
        bypass: false,
    };
    locks::set(txn, &lock)
}

fn put_records(txn: &mut Txn<'_>, ino: Ino, put: &[(Vec<u8>, Vec<u8>)]) -> Result<Outcome> {
    let records = SetRecords {
        ino,
        put: put.to_vec(),
        delete: Vec::new(),
        describes: false,
        now: None,
    };
    publish::set_records(txn, &records)
}

pub(super) fn set_quota(txn: &mut Txn<'_>, command: &VolumeQuota) -> Result<()> {
    let mut record = txn.volume(command.volume).ok_or(FsError::NotFound)?;
    record.quota_bytes = command.quota_bytes.into();
    record.quota_inodes = command.quota_inodes.into();
    txn.volume_put(command.volume, record);
    Ok(())
}

/// Whether there is a system row of the volume with this tag.
fn has_rows(txn: &Txn<'_>, row_tag: u8, volume: VolumeId) -> Result<bool> {
    let lo = system_key(row_tag, &volume.0.to_be_bytes());
    let hi = match volume.0.checked_add(1) {
        Some(next) => system_key(row_tag, &next.to_be_bytes()),
        None => system_key(row_tag + 1, &[]),
    };
    let row = txn.range(&lo, &hi).next();
    Ok(row.transpose().map_err(table_error)?.is_some())
}

pub(super) fn delete(txn: &mut Txn<'_>, command: &VolumeDelete) -> Result<()> {
    let VolumeDelete { volume, .. } = *command;
    let record = txn.volume(volume).ok_or(FsError::NotFound)?;
    let (root, junction) = (Ino(record.root.get()), Ino(record.junction.get()));
    let entry = directory::find(txn, command.parent, &command.name)?.ok_or(FsError::NotFound)?;
    if junction == Ino(0) || Ino(entry.ino.get()) != junction {
        return Err(FsError::Invalid);
    }
    if has_rows(txn, tag::SNAPSHOT, volume)? {
        return Err(FsError::HasSnapshots);
    }
    // What is left of a deleted snapshot is opened with the secret of the volume's domain.
    if has_rows(txn, tag::PRUNE, volume)? || has_rows(txn, tag::ENDED, volume)? {
        return Err(FsError::Changed);
    }
    let is_clone = record.origin().is_some();
    if !is_clone {
        let root_record = inode::get(txn, root)?;
        // Files without a name that are still open count among the inodes.
        if root_record.size.get() != 0 || record.inode_count.get() != 1 {
            return Err(FsError::NotEmpty);
        }
    }
    let mut parent = live_directory(txn, command.parent)?;
    if is_clone {
        clones::remove(txn, volume, record)?;
    }
    directory::remove(txn, command.parent, &mut parent, &command.name, &entry);
    parent.nlink -= 1;
    touch_entries(&mut parent, command.now);
    inode::put(txn, command.parent, &mut parent);
    let above = VolumeId(inode::get(txn, junction)?.volume.get());
    let mut ends = vec![(junction, above)];
    if !is_clone {
        ends.push((root, volume));
    }
    for (ino, volume) in ends {
        xattr::erase_all(txn, ino)?;
        inode::delete(txn, ino)?;
        let delta = VolumeDelta {
            inodes: -1,
            ..VolumeDelta::default()
        };
        txn.volume_add(volume, delta)?;
    }
    if !is_clone {
        txn.volume_remove(volume);
    }
    Ok(())
}
