//! What is kept for snapshots: states without their second row, and states that no snapshot sees any more because its
//! row is lost, go. What is left of a snapshot reads as it did, or not at all.

use std::collections::{BTreeMap, BTreeSet};

use cfs_format::table::{
    PruneRecord, ended_key, history_key, key, split_ended, split_history, split_key, system_key,
    tag,
};
use cfs_format::{Ino, VolumeId};
use cfs_store::ReadError;
use zerocopy::FromBytes;

use super::states::stamped;
use super::{Mending, file_key_of};
use crate::apply::split_prune_key;
use crate::views::Snapshot;
use crate::{extent, history, row};

impl Mending<'_> {
    /// Makes the rows of snapshots and of their history fit together.
    pub(super) fn past(&mut self) -> Result<(), ReadError> {
        let mut known = Vec::new();
        for row in self.system_rows(tag::SNAPSHOT)? {
            match Snapshot::decode(&row) {
                Ok(snapshot) => known.push(snapshot),
                Err(_) => self.delete(row.0),
            }
        }
        self.snapshots_of_clones(&mut known);
        known.sort_by_key(|snapshot| snapshot.timestamp);
        let mut snapshots: BTreeMap<VolumeId, Vec<u64>> = BTreeMap::new();
        for snapshot in known {
            let of_volume = snapshots.entry(snapshot.volume).or_default();
            of_volume.push(snapshot.timestamp.0);
        }
        let mut prunes = Vec::new();
        for (row_key, value) in self.system_rows(tag::PRUNE)? {
            let record = PruneRecord::read_from_prefix(&value);
            match (split_prune_key(&row_key), record) {
                (Ok((volume, timestamp)), Ok((record, _))) => {
                    prunes.push((volume, timestamp.0, record.until.get()));
                }
                _ => self.delete(row_key),
            }
        }
        // Of what is about to be removed the volume's record may be lost.
        let volumes = self.store.volumes().into_iter().map(|(id, _)| id);
        let mut volumes: BTreeSet<VolumeId> = volumes.collect();
        let mut removed = 0_u64;
        for (row_key, _) in self.system_rows(tag::ENDED)? {
            let state_key = split_key(&row_key)
                .and_then(|(_, _, suffix)| split_ended(suffix))
                .map(|(volume, to, ino, row_tag, suffix)| {
                    let state = history_key(ino, row_tag, suffix, to);
                    (VolumeId(volume), to, row_tag, state)
                });
            let Ok((volume, to, row_tag, state_key)) = state_key else {
                self.delete(row_key);
                continue;
            };
            volumes.insert(volume);
            let state = self.store.get(&state_key)?;
            let from = state.and_then(|value| row::timestamp(row_tag, &value).ok());
            let live = snapshots.get(&volume).map_or(&[][..], Vec::as_slice);
            let is_needed = from.is_some_and(|from| {
                let seen_by = live.partition_point(|snapshot| *snapshot < from);
                from < to
                    && (live.get(seen_by).is_some_and(|snapshot| *snapshot < to)
                        || prunes.iter().any(|(of, deleted, until)| {
                            *of == volume && (from..to).contains(deleted) && to <= *until
                        }))
            });
            if !is_needed {
                removed += 1;
                self.delete(row_key);
                self.delete(state_key);
            }
        }
        // States of one row follow one another; each has an `ENDED` row, which names the volume.
        let mut last: Option<(Ino, u8, Vec<u8>, u64)> = None;
        let mut behind = Vec::new();
        for (row_key, value) in self.system_rows(tag::HISTORY)? {
            if self.changes.contains_key(&row_key) {
                continue;
            }
            let parts = split_key(&row_key).and_then(|(_, _, state)| split_history(state));
            let is_sound = parts.is_ok_and(|(ino, row_tag, suffix, to)| {
                let is_listed = volumes.iter().any(|volume| {
                    let listed = ended_key(volume.0, to, ino, row_tag, suffix);
                    !self.changes.contains_key(&listed)
                        && self.store.get(&listed).is_ok_and(|row| row.is_some())
                });
                let from = row::timestamp(row_tag, &value).unwrap_or(u64::MAX);
                let before = match &last {
                    Some((of, of_tag, of_suffix, end))
                        if (*of, *of_tag, &of_suffix[..]) == (ino, row_tag, suffix) =>
                    {
                        *end
                    }
                    _ => 0,
                };
                let end = before.max(to);
                let ended = last.replace((ino, row_tag, suffix.to_vec(), end));
                behind.extend(ended.filter(|_| before == 0));
                let is_readable = row_tag != tag::EXTENT
                    || history::stored_extent(self.store, ino, suffix, &value).is_ok();
                is_listed && is_readable && before <= from && from < to
            });
            if !is_sound {
                removed += 1;
                self.forget_state(row_key, &volumes);
            }
            if let Some((ino, row_tag, suffix, end)) = behind.pop() {
                self.begin_behind(ino, (row_tag, &suffix), end)?;
            }
        }
        if let Some((ino, row_tag, suffix, end)) = last {
            self.begin_behind(ino, (row_tag, &suffix), end)?;
        }
        if removed > 0 {
            let sentence =
                format!("{removed} earlier states of names, attributes or content are lost");
            self.find("snapshot", "what snapshots show".to_owned(), sentence);
        }
        Ok(())
    }

    /// A row that is older than the end of the last state before it is one that had been replaced, and what replaced it is
    /// lost. As snapshots see it, it begins where that ended.
    fn begin_behind(
        &mut self,
        ino: Ino,
        (row_tag, suffix): (u8, &[u8]),
        end: u64,
    ) -> Result<(), ReadError> {
        let row_key = key(ino, row_tag, suffix);
        let Some(value) = self.get(&row_key)? else {
            return Ok(());
        };
        if row::timestamp(row_tag, &value).is_ok_and(|from| from >= end) {
            return Ok(());
        }
        if row_tag != tag::EXTENT {
            self.put(row_key, stamped(row_tag, value, end));
            return Ok(());
        }
        let record = self.record(ino)?;
        let file_key = record.and_then(|record| file_key_of(self.store, &record));
        let row = (row_key, value);
        let extent = file_key
            .as_ref()
            .and_then(|file_key| extent::decode_row(ino, file_key, &row).ok());
        match file_key.zip(extent) {
            Some((file_key, extent)) => {
                self.put(row.0, extent::encode_value(&file_key, end, &extent));
            }
            None => self.delete(row.0),
        }
        Ok(())
    }

    /// The same for all rows that have been put.
    pub(super) fn begin_behind_past(&mut self) -> Result<(), ReadError> {
        let mut of = (Ino(0), false);
        let mut put = Vec::new();
        for (row_key, value) in &self.changes {
            let Ok((ino, ..)) = split_key(row_key) else {
                continue;
            };
            if ino != of.0 {
                of = (ino, self.has_past(ino)?);
            }
            if of.1 && value.is_some() {
                put.push(row_key.clone());
            }
        }
        for row_key in put {
            let Ok((ino, row_tag, suffix)) = split_key(&row_key) else {
                continue;
            };
            let lo = history_key(ino, row_tag, suffix, 0);
            let hi = history_key(ino, row_tag, suffix, u64::MAX);
            let last = self.store.range(&lo, &hi).next_back();
            if let Some((state_key, _)) = last.transpose().map_err(ReadError::from)? {
                self.begin_behind(ino, (row_tag, suffix), end_of(&state_key))?;
            }
        }
        Ok(())
    }

    /// Earlier states of all rows of an inode.
    fn states_of(&self, ino: Ino) -> cfs_store::Range {
        let lo = system_key(tag::HISTORY, &ino.0.to_be_bytes());
        let hi = system_key(tag::HISTORY, &ino.0.saturating_add(1).to_be_bytes());
        self.store.range(&lo, &hi)
    }

    /// Whether there are earlier states of any row of an inode.
    pub(super) fn has_past(&self, ino: Ino) -> Result<bool, ReadError> {
        let first = self.states_of(ino).next();
        Ok(first.transpose().map_err(ReadError::from)?.is_some())
    }

    /// Where the last of them ended; 0 without any.
    pub(super) fn end_of_past(&self, ino: Ino) -> Result<u64, ReadError> {
        let mut end = 0;
        for state in self.states_of(ino) {
            let (state_key, _) = state.map_err(ReadError::from)?;
            end = end.max(end_of(&state_key));
        }
        Ok(end)
    }

    fn forget_state(&mut self, row_key: Vec<u8>, volumes: &BTreeSet<VolumeId>) {
        let parts = split_key(&row_key).and_then(|(_, _, state)| split_history(state));
        if let Ok((ino, row_tag, suffix, to)) = parts {
            for volume in volumes {
                self.delete(ended_key(volume.0, to, ino, row_tag, suffix));
            }
        }
        self.delete(row_key);
    }

    pub(super) fn system_rows(&self, row_tag: u8) -> Result<Vec<(Vec<u8>, Vec<u8>)>, ReadError> {
        let (lo, hi) = (system_key(row_tag, &[]), system_key(row_tag + 1, &[]));
        let rows = self.store.range(&lo, &hi);
        rows.map(|row| row.map_err(ReadError::from)).collect()
    }
}

/// Where a state ended.
fn end_of(state_key: &[u8]) -> u64 {
    let parts = split_key(state_key).and_then(|(_, _, state)| split_history(state));
    parts.map_or(0, |(.., to)| to)
}
