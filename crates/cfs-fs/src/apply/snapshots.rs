//! Applying commands about snapshots.

use cfs_format::table::{
    PruneRecord, SnapshotRecord, ended_key, history_key, snapshot_flag, split_ended, split_key,
    system_key, tag,
};
use cfs_format::{Ino, Timestamp, ViewId, VolumeId};
use cfs_store::Txn;
use zerocopy::{FromBytes, IntoBytes};

use super::clones;
use super::make::live_record;
use crate::command::{Prune, SnapshotCreate, SnapshotDelete, SnapshotHold};
use crate::error::{FsError, Result};
use crate::extent::table_error;
use crate::history::{held_extent, snapshot_key, timestamp_of_key};
use crate::views::Snapshot;
use crate::{directory, inode, row};

/// Longest path that is kept with a snapshot, bytes.
const PATH_BYTES_MAX: usize = 4096;

/// All snapshots of a volume, oldest first.
fn snapshots_of(txn: &Txn<'_>, volume: VolumeId) -> Result<Vec<Snapshot>> {
    let lo = snapshot_key(volume, 0);
    let hi = snapshot_key(volume, u64::MAX);
    txn.range(&lo, &hi)
        .map(|row| Snapshot::decode(&row.map_err(table_error)?))
        .collect()
}

pub(super) fn create(txn: &mut Txn<'_>, command: &SnapshotCreate) -> Result<()> {
    directory::check_name(&command.name)?;
    let view = command.view;
    if view == ViewId::LIST || view > ViewId::MAX || command.path.len() > PATH_BYTES_MAX {
        return Err(FsError::Invalid);
    }
    let record = live_record(inode::shown(txn, command.directory)?)?;
    let volume = VolumeId(record.volume.get());
    let taken = snapshots_of(txn, volume)?
        .into_iter()
        .any(|snapshot| snapshot.directory == command.directory && snapshot.name == command.name);
    if taken {
        return Err(FsError::Exists);
    }
    let mut volume_record = volume_of(txn, volume)?;
    let record = SnapshotRecord {
        directory: command.directory.0.into(),
        created_ns: command.now.ns_since_1970().into(),
        volume_logical_bytes: volume_record.logical_bytes,
        volume_inode_count: volume_record.inode_count,
        view: view.0.into(),
        flags: 0.into(),
        name_len: command.name.len() as u8,
        reserved: [0; 7],
    };
    let mut value = record.as_bytes().to_vec();
    value.extend_from_slice(&command.name);
    value.extend_from_slice(&command.path);
    let timestamp = txn.timestamp().0;
    txn.put(snapshot_key(volume, timestamp), value);
    volume_record.newest_snapshot = timestamp.into();
    txn.volume_put(volume, volume_record);
    Ok(())
}

pub(super) fn volume_of(
    txn: &Txn<'_>,
    volume: VolumeId,
) -> Result<cfs_format::table::VolumeRecord> {
    txn.volume(volume)
        .ok_or_else(|| FsError::damaged(format_args!("volume {volume} is missing")))
}

pub(super) fn existing(
    txn: &Txn<'_>,
    volume: VolumeId,
    timestamp: Timestamp,
) -> Result<(Snapshot, Vec<u8>)> {
    let key = snapshot_key(volume, timestamp.0);
    let value = txn.get(&key)?.ok_or(FsError::NotFound)?;
    let row = (key, value);
    Ok((Snapshot::decode(&row)?, row.1))
}

pub(super) fn delete(txn: &mut Txn<'_>, command: &SnapshotDelete) -> Result<()> {
    let SnapshotDelete { volume, timestamp } = *command;
    let (snapshot, _) = existing(txn, volume, timestamp)?;
    if snapshot.held {
        return Err(FsError::Held);
    }
    if clones::is_origin(txn, volume, timestamp) {
        return Err(FsError::NeededByClone);
    }
    let mut volume_record = volume_of(txn, volume)?;
    let others: Vec<u64> = snapshots_of(txn, volume)?
        .into_iter()
        .map(|snapshot| snapshot.timestamp.0)
        .filter(|other| *other != timestamp.0)
        .collect();
    // What ended after the next snapshot, and this one saw, the next one sees.
    let next = others.iter().find(|other| **other > timestamp.0);
    let until = next.copied().unwrap_or(txn.timestamp().0);
    txn.delete(snapshot_key(volume, timestamp.0));
    let prune = PruneRecord {
        until: until.into(),
    };
    txn.put(prune_key(volume, timestamp), prune.as_bytes().to_vec());
    volume_record.newest_snapshot = others.last().copied().unwrap_or(0).into();
    txn.volume_put(volume, volume_record);
    Ok(())
}

pub(super) fn hold(txn: &mut Txn<'_>, command: &SnapshotHold) -> Result<()> {
    let (_, mut value) = existing(txn, command.volume, command.timestamp)?;
    let (record, _) = SnapshotRecord::mut_from_prefix(&mut value)
        .map_err(|_| FsError::damaged("the record of a snapshot"))?;
    let flags = record.flags.get() & !snapshot_flag::HELD;
    let held = if command.held { snapshot_flag::HELD } else { 0 };
    record.flags = (flags | held).into();
    txn.put(snapshot_key(command.volume, command.timestamp.0), value);
    Ok(())
}

fn prune_key(volume: VolumeId, timestamp: Timestamp) -> Vec<u8> {
    let mut key = system_key(tag::PRUNE, &volume.0.to_be_bytes());
    key.extend_from_slice(&timestamp.0.to_be_bytes());
    key
}

/// Volume and timestamp of a `PRUNE` row.
pub(crate) fn split_prune_key(key: &[u8]) -> Result<(VolumeId, Timestamp)> {
    let timestamp = timestamp_of_key(key)?;
    let (_, _, suffix) = split_key(key)?;
    let (volume, _) = suffix
        .split_first_chunk::<4>()
        .ok_or_else(|| FsError::damaged("the key of history to remove"))?;
    Ok((VolumeId(u32::from_be_bytes(*volume)), Timestamp(timestamp)))
}

pub(super) fn prune(txn: &mut Txn<'_>, command: &Prune) -> Result<()> {
    let Prune {
        volume,
        timestamp,
        rows_max,
    } = *command;
    let prune_key = prune_key(volume, timestamp);
    let Some(value) = txn.get(&prune_key)? else {
        return Ok(());
    };
    let (record, reached) = PruneRecord::read_from_prefix(&value)
        .map_err(|_| FsError::damaged("a record of history to remove"))?;
    let live: Vec<u64> = snapshots_of(txn, volume)?
        .into_iter()
        .map(|snapshot| snapshot.timestamp.0)
        .collect();
    let lo = match reached {
        [] => ended_key(volume.0, timestamp.0 + 1, Ino(0), 0, &[]),
        reached => {
            let mut after = system_key(tag::ENDED, reached);
            after.push(0);
            after
        }
    };
    let hi = ended_key(volume.0, record.until.get() + 1, Ino(0), 0, &[]);
    let mut last = None;
    let mut count = 0;
    for row in txn.range(&lo, &hi).take(rows_max as usize) {
        let (ended, _) = row.map_err(table_error)?;
        let (_, _, suffix) = split_key(&ended)?;
        let (_, to, ino, row_tag, row_suffix) = split_ended(suffix)?;
        let history = history_key(ino, row_tag, row_suffix, to);
        count += 1;
        if let Some(state) = txn.get(&history)? {
            let from = row::timestamp(row_tag, &state)?;
            let seen_by = live.partition_point(|snapshot| *snapshot < from);
            if live.get(seen_by).is_some_and(|snapshot| *snapshot < to) {
                last = Some(suffix.to_vec());
                continue;
            }
            if row_tag == tag::EXTENT {
                let extent = held_extent(txn, ino, row_suffix, &state)?;
                txn.chunk_unref(&extent.fingerprint)?;
            }
            txn.delete(history);
        }
        last = Some(suffix.to_vec());
        txn.delete(ended);
    }
    match last {
        Some(last) if count == rows_max => {
            let mut value = record.as_bytes().to_vec();
            value.extend_from_slice(&last);
            txn.put(prune_key, value);
        }
        _ => txn.delete(prune_key),
    }
    Ok(())
}
