//! Earlier states of rows, for snapshots.
//!
//! The rows of an inode hold the present. A command that replaces or removes one, while there is a snapshot of its
//! volume that still sees it, keeps the old state as a `HISTORY` row with its interval: from the timestamp that is in
//! the row to that of the command. An `ENDED` row says the same in the order of the ends, so that what a deleted
//! snapshot was the last to need is found without looking at anything else.
//!
//! # Invariants
//! - A row is seen at the timestamp T of a snapshot if it was written before T and replaced after it. Of one key that is
//!   true of at most one state.
//! - `HISTORY` and `ENDED` rows go together. A state that no snapshot sees any more is removed by the `PRUNE` row that
//!   the deletion of the last one left.
//! - An extent that is kept keeps its reference to its chunk.

use std::cmp::Ordering;

use cfs_format::table::{
    ExtentRecord, HeldExtentRecord, InodeRecord, StampRecord, VolumeRecord, ended_key, history_key,
    history_prefix, key, split_history, split_key, system_key, tag,
};
use cfs_format::{DomainId, Ino, Timestamp, VolumeId};
use cfs_seal::keys::FileKey;
use cfs_store::{Frozen, Store, Txn};
use zerocopy::{FromBytes, IntoBytes};

use crate::error::{FsError, Result};
use crate::extent::{self, Extent, Row, Rows};
use crate::{apply, inode, row};

/// Committed rows of the meta tree.
pub(crate) trait Table {
    /// The value at `key`.
    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;
    /// Rows of two ranges, each from its low key to before its high key, as of one moment.
    fn two_ranges(
        &self,
        one: (&[u8], &[u8]),
        other: (&[u8], &[u8]),
    ) -> (cfs_store::Range, cfs_store::Range);
    /// The record of a volume.
    fn volume(&self, id: VolumeId) -> Option<VolumeRecord>;
}

/// Two ranges of one view.
fn ranges_of(
    view: &cfs_store::View,
    one: (&[u8], &[u8]),
    other: (&[u8], &[u8]),
) -> (cfs_store::Range, cfs_store::Range) {
    let range = |(lo, hi)| view.range(std::ops::Bound::Included(lo), std::ops::Bound::Excluded(hi));
    (range(one), range(other))
}

impl Table for Store {
    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.get(key)?)
    }

    fn two_ranges(
        &self,
        one: (&[u8], &[u8]),
        other: (&[u8], &[u8]),
    ) -> (cfs_store::Range, cfs_store::Range) {
        ranges_of(&self.view(), one, other)
    }

    fn volume(&self, id: VolumeId) -> Option<VolumeRecord> {
        Self::volume(self, id)
    }
}

impl Table for Frozen {
    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.meta.get(key).map_err(extent::table_error)
    }

    fn two_ranges(
        &self,
        one: (&[u8], &[u8]),
        other: (&[u8], &[u8]),
    ) -> (cfs_store::Range, cfs_store::Range) {
        ranges_of(&self.meta, one, other)
    }

    fn volume(&self, id: VolumeId) -> Option<VolumeRecord> {
        let found = self.volumes.iter().find(|(it, _)| *it == id);
        found.map(|(_, record)| *record)
    }
}

impl Table for Txn<'_> {
    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.before(key)?)
    }

    fn two_ranges(
        &self,
        one: (&[u8], &[u8]),
        other: (&[u8], &[u8]),
    ) -> (cfs_store::Range, cfs_store::Range) {
        // Nobody writes beside a transaction.
        (self.range(one.0, one.1), self.range(other.0, other.1))
    }

    fn volume(&self, id: VolumeId) -> Option<VolumeRecord> {
        Self::volume(self, id)
    }
}

/// Rows as a snapshot sees them.
pub(crate) struct Past<'t, T> {
    pub table: &'t T,
    /// The snapshot's timestamp.
    pub at: Timestamp,
}

/// Suffix and value of a row.
type Suffixed = (Vec<u8>, Vec<u8>);

impl<T: Table> Past<'_, T> {
    /// The value of a row; of an extent, its `ExtentRecord`.
    ///
    /// # Errors
    /// When a row cannot be read.
    pub(crate) fn get(&self, ino: Ino, row_tag: u8, suffix: &[u8]) -> Result<Option<Vec<u8>>> {
        // The present first: what is replaced in between is in the history then.
        if let Some(value) = self.table.value(&key(ino, row_tag, suffix))?
            && row::timestamp(row_tag, &value)? <= self.at.0
        {
            return Ok(Some(value));
        }
        let lo = history_key(ino, row_tag, suffix, self.at.0.saturating_add(1));
        let hi = history_key(ino, row_tag, suffix, u64::MAX);
        let (mut states, _) = self.table.two_ranges((&lo, &hi), (&[], &[]));
        match states.next() {
            None => Ok(None),
            Some(state) => {
                let (_, value) = state.map_err(extent::table_error)?;
                let seen = row::timestamp(row_tag, &value)? <= self.at.0;
                Ok(seen.then(|| shown(row_tag, value)))
            }
        }
    }

    /// Rows of one kind with suffixes in `[lo, hi)`, ascending; without `hi` to the end.
    pub(crate) fn rows(
        &self,
        ino: Ino,
        row_tag: u8,
        lo: &[u8],
        hi: Option<&[u8]>,
    ) -> impl Iterator<Item = Result<Suffixed>> + use<T> {
        let (present, past) = self.both(ino, row_tag, lo, hi);
        let at = self.at.0;
        merge(
            present.filter_map(move |row| seen_now(row, at)),
            past.filter_map(move |row| seen_then(row, at)),
            Ordering::Less,
        )
    }

    /// The same, descending.
    pub(crate) fn rows_back(
        &self,
        ino: Ino,
        row_tag: u8,
        lo: &[u8],
        hi: Option<&[u8]>,
    ) -> impl Iterator<Item = Result<Suffixed>> + use<T> {
        let (present, past) = self.both(ino, row_tag, lo, hi);
        let at = self.at.0;
        merge(
            present.rev().filter_map(move |row| seen_now(row, at)),
            past.rev().filter_map(move |row| seen_then(row, at)),
            Ordering::Greater,
        )
    }

    fn both(
        &self,
        ino: Ino,
        row_tag: u8,
        lo: &[u8],
        hi: Option<&[u8]>,
    ) -> (cfs_store::Range, cfs_store::Range) {
        let past = |suffix: &[u8]| {
            let mut key = system_key(tag::HISTORY, &ino.0.to_be_bytes());
            key.push(row_tag);
            key.extend_from_slice(suffix);
            key
        };
        let (present_hi, past_hi) = match hi {
            Some(hi) => (key(ino, row_tag, hi), past(hi)),
            None => (
                key(ino, row_tag + 1, &[]),
                history_prefix(ino, row_tag + 1, &[]),
            ),
        };
        self.table
            .two_ranges((&key(ino, row_tag, lo), &present_hi), (&past(lo), &past_hi))
    }
}

/// A state as the row itself would hold it.
fn shown(row_tag: u8, mut value: Vec<u8>) -> Vec<u8> {
    if row_tag == tag::EXTENT {
        value.truncate(size_of::<ExtentRecord>());
    }
    value
}

type KvRow = std::result::Result<Row, cfs_store::RunError>;

fn seen_now(row: KvRow, at: u64) -> Option<Result<Suffixed>> {
    let seen = || {
        let (row_key, value) = row.map_err(extent::table_error)?;
        let (_, row_tag, suffix) = split_key(&row_key)?;
        let seen = row::timestamp(row_tag, &value)? <= at;
        Ok(seen.then(|| (suffix.to_vec(), value)))
    };
    seen().transpose()
}

fn seen_then(row: KvRow, at: u64) -> Option<Result<Suffixed>> {
    let seen = || {
        let (row_key, value) = row.map_err(extent::table_error)?;
        let (_, _, state) = split_key(&row_key)?;
        let (_, row_tag, suffix, to) = split_history(state)?;
        let seen = to > at && row::timestamp(row_tag, &value)? <= at;
        Ok(seen.then(|| (suffix.to_vec(), shown(row_tag, value))))
    };
    seen().transpose()
}

/// Two lists in order as one. No suffix is in both.
fn merge(
    one: impl Iterator<Item = Result<Suffixed>>,
    other: impl Iterator<Item = Result<Suffixed>>,
    first: Ordering,
) -> impl Iterator<Item = Result<Suffixed>> {
    let (mut one, mut other) = (one.peekable(), other.peekable());
    std::iter::from_fn(move || {
        let from_one = match (one.peek(), other.peek()) {
            (Some(Ok(left)), Some(Ok(right))) => left.0.cmp(&right.0) == first,
            (Some(Err(_)), _) | (Some(_), None) => true,
            _ => false,
        };
        if from_one { one.next() } else { other.next() }
    })
}

impl<T: Table> Past<'_, T> {
    /// Extent rows with keys in `[lo, hi)`, as the present would hold them.
    pub(crate) fn extents(
        &self,
        lo: &[u8],
        hi: &[u8],
    ) -> impl Iterator<Item = Result<Row>> + use<T> {
        let (ino, from, to) = extent_bounds(lo, hi);
        let rows = self.rows(ino, tag::EXTENT, from, Some(to));
        rows.map(move |row| row.map(|(suffix, value)| (key(ino, tag::EXTENT, &suffix), value)))
    }

    /// The same, the last first.
    pub(crate) fn extents_back(
        &self,
        lo: &[u8],
        hi: &[u8],
    ) -> impl Iterator<Item = Result<Row>> + use<T> {
        let (ino, from, to) = extent_bounds(lo, hi);
        let rows = self.rows_back(ino, tag::EXTENT, from, Some(to));
        rows.map(move |row| row.map(|(suffix, value)| (key(ino, tag::EXTENT, &suffix), value)))
    }
}

fn extent_bounds<'k>(lo: &'k [u8], hi: &'k [u8]) -> (Ino, &'k [u8], &'k [u8]) {
    let (ino, _, from) = split_key(lo).expect("a key of an extent");
    let (_, _, to) = split_key(hi).expect("a key of an extent");
    (ino, from, to)
}

impl<T: Table> Rows for Past<'_, T> {
    fn rows(&self, lo: Vec<u8>, hi: Vec<u8>) -> impl Iterator<Item = Result<Row>> {
        self.extents(&lo, &hi)
    }

    fn rows_back(&self, lo: Vec<u8>, hi: Vec<u8>) -> impl Iterator<Item = Result<Row>> {
        self.extents_back(&lo, &hi)
    }
}

/// What the rows of one inode have in common.
struct Owner {
    ino: Ino,
    volume: VolumeId,
    salt: [u8; 16],
    /// The newest snapshot that can see the inode; 0 when there is none.
    newest: u64,
}

/// Keeps what the command in the making replaces and a snapshot still sees. To be called when all else is done.
///
/// # Errors
/// When something cannot be read; the transaction must then be dropped.
pub(crate) fn keep(txn: &mut Txn<'_>) -> Result<()> {
    if txn.newest_snapshot() == Timestamp(0) {
        return Ok(());
    }
    let mut kept = Vec::new();
    let mut owner: Option<Owner> = None;
    for row_key in txn.changed_keys() {
        let (ino, row_tag, suffix) = split_key(row_key)?;
        if ino == Ino(0) {
            continue;
        }
        if owner.as_ref().is_none_or(|owner| owner.ino != ino) {
            owner = Some(owner_of(txn, ino)?);
        }
        let owner = owner.as_ref().expect("set just above");
        if owner.newest == 0 {
            continue;
        }
        let Some(value) = txn.before(row_key)? else {
            continue;
        };
        if row::timestamp(row_tag, &value)? <= owner.newest {
            kept.push((
                row_tag,
                suffix.to_vec(),
                value,
                (ino, owner.volume, owner.salt),
            ));
        }
    }
    let to = txn.timestamp().0;
    for (row_tag, suffix, mut value, (ino, volume, salt)) in kept {
        if row_tag == tag::EXTENT {
            let extent = ExtentRecord::read_from_bytes(&value)
                .map_err(|_| FsError::damaged(format_args!("an extent of inode {ino}")))?;
            let held = HeldExtentRecord {
                extent,
                salt,
                volume: volume.0.into(),
            };
            value = held.as_bytes().to_vec();
            let extent = held_extent(txn, ino, &suffix, &value)?;
            #[cfg(feature = "planted-bugs")]
            if cfs_format::planted::has(cfs_format::planted::Bug::HistoryUncounted) {
                txn.put(history_key(ino, row_tag, &suffix, to), value);
                continue;
            }
            txn.chunk_ref(&extent.fingerprint, None)?;
        }
        txn.put(history_key(ino, row_tag, &suffix, to), value);
        txn.put(ended_key(volume.0, to, ino, row_tag, &suffix), Vec::new());
    }
    Ok(())
}

fn owner_of(txn: &Txn<'_>, ino: Ino) -> Result<Owner> {
    let mut owner = Owner {
        ino,
        volume: VolumeId(0),
        salt: [0; 16],
        newest: 0,
    };
    let Some(bytes) = txn.before(&key(ino, tag::INODE, &[]))? else {
        return Ok(owner);
    };
    let record: InodeRecord = inode::decode(ino, &bytes)?;
    owner.volume = VolumeId(record.volume.get());
    owner.salt = record.salt;
    owner.newest = txn
        .volume(owner.volume)
        .map_or(0, |volume| volume.newest_snapshot.get());
    if record.nlink.get() == 0 && owner.newest != 0 {
        owner.newest = newest_with_a_name(txn, &owner)?;
    }
    Ok(owner)
}

/// The newest snapshot that is older than the inode's loss of its last name.
fn newest_with_a_name(txn: &Txn<'_>, owner: &Owner) -> Result<u64> {
    let Some(value) = txn.before(&apply::make::orphan_key(owner.ino))? else {
        return Ok(owner.newest);
    };
    let stamp = StampRecord::read_from_bytes(&value)
        .map_err(|_| FsError::damaged(format_args!("orphan {}", owner.ino)))?;
    if stamp.timestamp.get() > owner.newest {
        // As nearly always; a range costs more than all else here.
        return Ok(owner.newest);
    }
    let lo = snapshot_key(owner.volume, 0);
    let hi = snapshot_key(owner.volume, stamp.timestamp.get());
    match txn.range(&lo, &hi).next_back() {
        None => Ok(0),
        Some(row) => timestamp_of_key(&row.map_err(extent::table_error)?.0),
    }
}

/// The key of a snapshot of a volume.
pub(crate) fn snapshot_key(volume: VolumeId, timestamp: u64) -> Vec<u8> {
    let mut key = system_key(tag::SNAPSHOT, &volume.0.to_be_bytes());
    key.extend_from_slice(&timestamp.to_be_bytes());
    key
}

/// The timestamp at the end of a `SNAPSHOT` or `PRUNE` key.
///
/// # Errors
/// [`FsError::Io`] when there is none.
pub(crate) fn timestamp_of_key(row_key: &[u8]) -> Result<u64> {
    match row_key.split_last_chunk::<8>() {
        Some((rest, timestamp)) if rest.len() == 13 => Ok(u64::from_be_bytes(*timestamp)),
        _ => Err(FsError::damaged("the key of a snapshot")),
    }
}

/// The extent in a `HISTORY` row.
///
/// # Errors
/// [`FsError::Io`] when it is none, or its volume is missing.
pub(crate) fn held_extent(txn: &Txn<'_>, ino: Ino, suffix: &[u8], value: &[u8]) -> Result<Extent> {
    let domain = |volume| {
        let volume = txn.volume(volume)?;
        txn.domain_secret(DomainId(volume.domain.get()))
    };
    decode_held(ino, suffix, value, domain)
}

/// The same outside of a transaction.
///
/// # Errors
/// As [`held_extent`].
pub(crate) fn stored_extent(
    store: &Store,
    ino: Ino,
    suffix: &[u8],
    value: &[u8],
) -> Result<Extent> {
    let domain = |volume| {
        let volume = store.volume(volume)?;
        store.domain_secret(DomainId(volume.domain.get()))
    };
    decode_held(ino, suffix, value, domain)
}

/// The same, with the secret of a volume's domain from `secret`.
///
/// # Errors
/// As [`held_extent`].
pub(crate) fn decode_held(
    ino: Ino,
    suffix: &[u8],
    value: &[u8],
    secret: impl FnOnce(VolumeId) -> Option<std::sync::Arc<cfs_seal::keys::DomainSecret>>,
) -> Result<Extent> {
    let damaged = || FsError::damaged(format_args!("an extent of inode {ino} in a snapshot"));
    let held = HeldExtentRecord::read_from_bytes(value).map_err(|_| damaged())?;
    let secret = secret(VolumeId(held.volume.get())).ok_or_else(damaged)?;
    let file_key = FileKey::derive(&secret, &held.salt);
    let row = (
        key(ino, tag::EXTENT, suffix),
        held.extent.as_bytes().to_vec(),
    );
    extent::decode_row(ino, &file_key, &row)
}
