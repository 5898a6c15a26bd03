//! Applying commands about clones: making one, copying what the origin has of an inode before it is changed, and removing
//! the rows of a clone that is gone.

use cfs_format::table::{InodeRecord, VolumeRecord, inode_flag, key, split_key, tag, volume_flag};
use cfs_format::{Ino, VolumeId};
use cfs_store::{Txn, VolumeDelta};

use super::make::{self, orphan_key};
use super::{Outcome, snapshots};
use crate::clone::{self, Found, stays_with_origin};
use crate::command::{CloneCreate, CopyUp, Sweep};
use crate::directory::{self, FIRST_COOKIE, Target};
use crate::error::{FsError, Result};
use crate::extent::{self, Extent, ExtentEdit, file_key, table_error};
use crate::history::Past;
use crate::{inode, row};

pub(super) fn create(txn: &mut Txn<'_>, command: &CloneCreate) -> Result<Outcome> {
    let CloneCreate {
        junction,
        volume,
        origin,
        timestamp,
        ..
    } = command;
    let (snapshot, _) = snapshots::existing(txn, *origin, *timestamp)?;
    let origin_record = snapshots::volume_of(txn, *origin)?;
    let root = snapshot.directory.in_clone(*volume);
    let root = root.ok_or(FsError::TooManyLinks)?;
    let is_possible = volume.0 > 0
        && txn.volume(*volume).is_none()
        && junction.mode & libc::S_IFMT == libc::S_IFDIR;
    if !is_possible {
        return Err(FsError::Invalid);
    }
    let made = make::make(txn, junction)?;
    let (_, mut record) = made.inode.expect("making reports the inode");
    record.flags |= inode_flag::JUNCTION;
    inode::put(txn, junction.ino, &mut record);
    txn.volume_put(
        *volume,
        VolumeRecord {
            root: root.0.into(),
            created_ns: junction.now.ns_since_1970().into(),
            domain: origin_record.domain,
            codec: origin_record.codec,
            codec_level: origin_record.codec_level,
            junction: junction.ino.0.into(),
            quota_bytes: command.quota_bytes.into(),
            quota_inodes: command.quota_inodes.into(),
            origin_volume: origin.0.into(),
            origin_timestamp: timestamp.0.into(),
            ..VolumeRecord::default()
        },
    );
    Ok(Outcome::default())
}

/// Whether a clone that has not been removed has its inodes from a snapshot.
pub(super) fn is_origin(txn: &Txn<'_>, volume: VolumeId, timestamp: cfs_format::Timestamp) -> bool {
    let volumes = txn.volumes();
    let mut origins = volumes.iter().filter_map(|(_, record)| record.origin());
    origins.any(|origin| origin == (volume, timestamp))
}

/// Copies rows that the origin has of an inode, at most so many; with the last ones they begin to count. Where that is
/// done nothing happens.
pub(super) fn copy_up(txn: &mut Txn<'_>, command: &CopyUp) -> Result<()> {
    let CopyUp { ino, salt, .. } = *command;
    let (volume, _) = ino.cloned().ok_or(FsError::Invalid)?;
    let copied = txn.get(&key(ino, tag::INODE, &[]))?;
    let copied = copied.map(|bytes| inode::decode(ino, &bytes)).transpose()?;
    if copied.is_some_and(|record| clone::is_gone(&record)) {
        return Err(FsError::NotFound);
    }
    if copied.is_some_and(|record| clone::is_own(&record)) {
        return Ok(());
    }
    let found = clone::inherited(txn, ino)?.ok_or(FsError::NotFound)?;
    let mut record = match copied {
        Some(record) => record,
        None => begin(txn, ino, volume, &found, salt)?,
    };
    let is_done = match inode::kind(&found.record) {
        libc::S_IFREG => copy_extents(txn, command, &found, &mut record)?,
        libc::S_IFDIR => copy_entries(txn, command, &found, &mut record)?,
        _ => true,
    };
    if is_done {
        record.flags = (record.flags.get() & !inode_flag::COPYING).into();
    }
    inode::put(txn, ino, &mut record);
    Ok(())
}

/// Copies all that is not entries or extents. The record, of which the counts of those are 0.
fn begin(
    txn: &mut Txn<'_>,
    ino: Ino,
    volume: VolumeId,
    found: &Found,
    salt: [u8; 16],
) -> Result<InodeRecord> {
    let past = Past {
        table: &*txn,
        at: found.place.at.unwrap_or_default(),
    };
    let is_directory = inode::is_directory(&found.record);
    let source = found.place.ino;
    let inline = past.get(source, tag::INLINE, &[])?;
    let inline = inline.map(row::content).transpose()?;
    let xattrs: Vec<(Vec<u8>, Vec<u8>)> = past
        .rows(source, tag::XATTR, &[], None)
        .filter(|row| {
            let stays =
                |(name, _): &(Vec<u8>, Vec<u8>)| stays_with_origin(ino, &found.record, name);
            !row.as_ref().is_ok_and(stays)
        })
        .collect::<Result<_>>()?;
    let mut record = InodeRecord {
        salt,
        ..found.record
    };
    record.flags |= inode_flag::COPYING;
    if is_directory {
        record.size = 0.into();
        record.nlink = 2.into();
    } else if inline.is_none() {
        record.allocated = 0.into();
    }
    if let Some(content) = inline {
        let value = row::stamped(txn, &content);
        txn.put(key(ino, tag::INLINE, &[]), value);
    }
    for (name, value) in xattrs {
        let value = row::stamped(txn, &row::content(value)?);
        txn.put(key(ino, tag::XATTR, &name), value);
    }
    let size = if is_directory { 0 } else { record.size.get() };
    let delta = VolumeDelta {
        logical_bytes: size as i64,
        allocated_bytes: record.allocated.get() as i64,
        inodes: 1,
    };
    txn.volume_add(volume, delta)?;
    Ok(record)
}

/// The number at the end of the last committed row of an inode with this tag.
fn last_of(txn: &Txn<'_>, ino: Ino, row_tag: u8) -> Result<Option<u64>> {
    let (lo, hi) = (key(ino, row_tag, &[]), key(ino, row_tag + 1, &[]));
    let Some(last) = txn.range(&lo, &hi).next_back() else {
        return Ok(None);
    };
    let (row_key, _) = last.map_err(table_error)?;
    let number = split_key(&row_key)?.2.try_into();
    let number = number.map_err(|_| FsError::damaged(format_args!("a key of inode {ino}")))?;
    Ok(Some(u64::from_be_bytes(number)))
}

/// Copies extents behind those that have been copied; whether these were the last.
fn copy_extents(
    txn: &mut Txn<'_>,
    command: &CopyUp,
    found: &Found,
    record: &mut InodeRecord,
) -> Result<bool> {
    let ino = command.ino;
    let source_key = file_key(txn, &found.record)?;
    let target_key = file_key(txn, record)?;
    let from = last_of(txn, ino, tag::EXTENT)?.map_or(0, |last| last + 1);
    let past = Past {
        table: &*txn,
        at: found.place.at.unwrap_or_default(),
    };
    let source = found.place.ino;
    let extents: Vec<Extent> = past
        .rows(source, tag::EXTENT, &from.to_be_bytes(), None)
        .take(command.rows_max as usize)
        .map(|row| {
            let (suffix, value) = row?;
            let row = (key(source, tag::EXTENT, &suffix), value);
            extent::decode_row(source, &source_key, &row)
        })
        .collect::<Result<_>>()?;
    // None of the inode's own extents is at or beyond the first of these.
    let mut edit = ExtentEdit::new(ino, &target_key, from);
    edit.replace(txn, &extents)?;
    let allocated_delta = edit.finish(txn, &[])?;
    #[cfg(feature = "planted-bugs")]
    if cfs_format::planted::has(cfs_format::planted::Bug::CopyUncounted) {
        for extent in &extents {
            txn.chunk_unref(&extent.fingerprint)?;
        }
    }
    let size = record.size.get();
    extent::account(txn, record, size, allocated_delta)?;
    Ok(extents.len() < command.rows_max as usize)
}

/// Copies entries behind those that have been copied; whether these were the last.
fn copy_entries(
    txn: &mut Txn<'_>,
    command: &CopyUp,
    found: &Found,
    record: &mut InodeRecord,
) -> Result<bool> {
    let ino = command.ino;
    let from = last_of(txn, ino, tag::COOKIE)?.map_or(FIRST_COOKIE, |last| last + 1);
    let past = Past {
        table: &*txn,
        at: found.place.at.unwrap_or_default(),
    };
    let rows: Vec<(Vec<u8>, Vec<u8>)> = past
        .rows(found.place.ino, tag::COOKIE, &from.to_be_bytes(), None)
        .take(command.rows_max as usize)
        .collect::<Result<_>>()?;
    for (suffix, value) in &rows {
        let (entry, name) = directory::decode_cookie(ino, value)?;
        let kind = u32::from(entry.kind) << 12;
        let target = Target {
            ino: crate::views::beside(ino, Ino(entry.ino.get()))?,
            kind,
        };
        let cookie = directory::cookie_of_key(&key(ino, tag::COOKIE, suffix))?;
        directory::put(txn, ino, name, cookie, target);
        record.size += 1;
        if kind == libc::S_IFDIR {
            record.nlink += 1;
        }
    }
    Ok(rows.len() < command.rows_max as usize)
}

/// Takes the name from a clone; its rows go by [`sweep`].
pub(super) fn remove(txn: &mut Txn<'_>, volume: VolumeId, record: VolumeRecord) -> Result<()> {
    let lies_within = |(_, other): &(VolumeId, VolumeRecord)| {
        let junction = Ino(other.junction.get()).cloned();
        junction.is_some_and(|(of, _)| of == volume)
    };
    if txn.volumes().iter().any(lies_within) {
        return Err(FsError::Volume);
    }
    if record.flags.get() & volume_flag::LOCKED != 0 {
        let root = inode::shown(txn, Ino(record.root.get()))?;
        if root.size.get() != 0 {
            return Err(FsError::Locked);
        }
    }
    txn.volume_put(
        volume,
        VolumeRecord {
            flags: (record.flags.get() | volume_flag::REMOVED).into(),
            junction: 0.into(),
            ..record
        },
    );
    Ok(())
}

/// Removes rows of a clone that is gone, the last ones first, at most so many; and its own when there are none.
pub(super) fn sweep(txn: &mut Txn<'_>, command: &Sweep) -> Result<()> {
    let Sweep {
        volume,
        rows_max,
        last,
    } = *command;
    if !txn.volume(volume).is_some_and(|record| record.is_removed()) {
        return Ok(());
    }
    let (lo, hi) = clone::range_of(volume, last)?;
    let rows: Vec<extent::Row> = txn
        .range(&lo, &hi)
        .rev()
        .take(rows_max as usize)
        .collect::<std::result::Result<_, _>>()
        .map_err(table_error)?;
    // The record of an inode is the first of its rows, and is there as long as any other.
    let mut of: Option<(Ino, cfs_seal::keys::FileKey)> = None;
    for row in &rows {
        let (ino, row_tag, _) = split_key(&row.0)?;
        if row_tag == tag::EXTENT {
            let extent = match &of {
                Some((known, file_key)) if *known == ino => extent::decode_row(ino, file_key, row)?,
                _ => {
                    let bytes = txn.before(&key(ino, tag::INODE, &[]))?;
                    let record = inode::decode(
                        ino,
                        &bytes.ok_or_else(|| {
                            FsError::damaged(format_args!(
                                "extents of inode {ino}, which is missing"
                            ))
                        })?,
                    )?;
                    let (_, file_key) = of.insert((ino, file_key(txn, &record)?));
                    extent::decode_row(ino, file_key, row)?
                }
            };
            txn.chunk_unref(&extent.fingerprint)?;
        }
        if row_tag == tag::INODE {
            txn.delete(orphan_key(ino));
            txn.delete(super::data::fragmented_key(ino));
        }
        txn.delete(row.0.clone());
    }
    if rows.len() < rows_max as usize && last.is_none() {
        txn.volume_remove(volume);
    }
    Ok(())
}

/// Notes that something in a clone has a lock.
pub(super) fn note_lock(txn: &mut Txn<'_>, ino: Ino) {
    if let Some((volume, _)) = ino.cloned()
        && let Some(mut record) = txn.volume(volume)
    {
        record.flags |= volume_flag::LOCKED;
        txn.volume_put(volume, record);
    }
}
