//! Snapshots, and what is kept for them: each state is seen by one, or about to be removed; states of one row do not
//! overlap; the two orders that they lie in agree.

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;

use cfs_format::table::{
    PruneRecord, history_key, history_prefix, key, split_ended, split_history, system_key, tag,
};
use cfs_format::{DomainId, Ino, VolumeId};
use cfs_store::{Frozen, Store};
use zerocopy::FromBytes;

use super::CheckReport;
use super::chunks::Chunks;
use crate::apply::split_prune_key;
use crate::error::{FsError, Result};
use crate::views::Snapshot;
use crate::{extent, history, row};

pub(super) struct History<'a> {
    store: &'a Store,
    frozen: &'a Frozen,
    /// Timestamps of the snapshots of each volume, ascending.
    snapshots: BTreeMap<VolumeId, Vec<u64>>,
    /// Volume, timestamp of the deleted snapshot, and end of what is to be gone through.
    prunes: Vec<(VolumeId, u64, u64)>,
    states: u64,
    ended: u64,
    /// The row of the last state, and where that ended.
    last: Option<(Vec<u8>, u64)>,
}

impl<'a> History<'a> {
    /// Reads all snapshots, and what is still to be removed of deleted ones.
    ///
    /// # Errors
    /// When a table cannot be read.
    pub(super) fn new(
        store: &'a Store,
        frozen: &'a Frozen,
        report: &mut CheckReport,
    ) -> Result<Self> {
        let mut it = Self {
            store,
            frozen,
            snapshots: BTreeMap::new(),
            prunes: Vec::new(),
            states: 0,
            ended: 0,
            last: None,
        };
        let mut views = HashSet::new();
        for row in it.system_rows(tag::SNAPSHOT) {
            let row = row.map_err(extent::table_error)?;
            match Snapshot::decode(&row) {
                Ok(snapshot) => {
                    let name = snapshot_name(snapshot.volume, snapshot.timestamp.0);
                    if !views.insert(snapshot.view) {
                        let sentence = format!("another one has its view {}", snapshot.view);
                        report.add("snapshot", name, sentence);
                    }
                    let of_volume = it.snapshots.entry(snapshot.volume).or_default();
                    of_volume.push(snapshot.timestamp.0);
                    report.snapshots += 1;
                }
                Err(error) => report.add("record", "snapshot", error.to_string()),
            }
        }
        for row in it.system_rows(tag::PRUNE) {
            let (row_key, value) = row.map_err(extent::table_error)?;
            match (
                split_prune_key(&row_key),
                PruneRecord::read_from_prefix(&value),
            ) {
                (Ok((volume, timestamp)), Ok((record, _))) => {
                    it.prunes.push((volume, timestamp.0, record.until.get()));
                }
                _ => report.add(
                    "record",
                    "history to remove",
                    "its row does not decode".to_owned(),
                ),
            }
        }
        Ok(it)
    }

    fn system_rows(&self, row_tag: u8) -> cfs_store::Range {
        let (lo, hi) = (system_key(row_tag, &[]), system_key(row_tag + 1, &[]));
        let meta = &self.frozen.meta;
        meta.range(Bound::Included(&lo), Bound::Excluded(&hi))
    }

    /// Notes a state.
    ///
    /// # Errors
    /// When a table cannot be read.
    pub(super) fn state_row(
        &mut self,
        suffix: &[u8],
        value: &[u8],
        chunks: &mut Chunks,
        report: &mut CheckReport,
    ) -> Result<()> {
        self.states += 1;
        report.states += 1;
        let (ino, row_tag, row_suffix, to) = match split_history(suffix) {
            Ok(parts) => parts,
            Err(error) => {
                report.add("key", format!("{suffix:02x?}"), error.to_string());
                return Ok(());
            }
        };
        let name = state_name(ino, row_tag, to);
        let from = match row::timestamp(row_tag, value) {
            Ok(from) => from,
            Err(error) => {
                report.add("record", name, error.to_string());
                return Ok(());
            }
        };
        let row_key = history_prefix(ino, row_tag, row_suffix);
        let before = match self.last.take() {
            Some((last_key, to)) if last_key == row_key => to,
            _ => 0,
        };
        if from < before || from >= to {
            let sentence = format!("it was there from {from}, one before it until {before}");
            report.add("history", &name, sentence);
        }
        let present = self.frozen.meta.get(&key(ino, row_tag, row_suffix));
        if let Some(present) = present.map_err(extent::table_error)?
            && row::timestamp(row_tag, &present).is_ok_and(|since| since < to)
        {
            let sentence = "what is there now is older than its end".to_owned();
            report.add("history", &name, sentence);
        }
        self.last = Some((row_key, to));
        if row_tag == tag::EXTENT {
            let secret = |volume: VolumeId| {
                let volumes = &self.frozen.volumes;
                let (_, volume) = volumes.iter().find(|(id, _)| *id == volume)?;
                self.store.domain_secret(DomainId(volume.domain.get()))
            };
            match history::decode_held(ino, row_suffix, value, secret) {
                Ok(extent) => chunks.extent(&extent),
                Err(error) => report.add("record", name, error.to_string()),
            }
        }
        Ok(())
    }

    /// Notes a row that says that a state has ended.
    ///
    /// # Errors
    /// When a table cannot be read.
    pub(super) fn ended_row(&mut self, suffix: &[u8], report: &mut CheckReport) -> Result<()> {
        self.ended += 1;
        let (volume, to, ino, row_tag, row_suffix) = match split_ended(suffix) {
            Ok(parts) => parts,
            Err(error) => {
                report.add("key", format!("{suffix:02x?}"), error.to_string());
                return Ok(());
            }
        };
        let name = state_name(ino, row_tag, to);
        let state = self
            .frozen
            .meta
            .get(&history_key(ino, row_tag, row_suffix, to))
            .map_err(extent::table_error)?;
        let from = state.ok_or(FsError::NotFound);
        let from = match from.and_then(|state| row::timestamp(row_tag, &state)) {
            Ok(from) => from,
            Err(FsError::NotFound) => {
                report.add("history", name, "it is listed, and missing".to_owned());
                return Ok(());
            }
            // Told where the state itself was looked at.
            Err(_) => return Ok(()),
        };
        let volume = VolumeId(volume);
        let live = self.snapshots.get(&volume).map_or(&[][..], Vec::as_slice);
        let seen_by = live.partition_point(|snapshot| *snapshot < from);
        let is_seen = live.get(seen_by).is_some_and(|snapshot| *snapshot < to);
        let goes = self.prunes.iter().any(|(of, deleted, until)| {
            *of == volume && (from..to).contains(deleted) && to <= *until
        });
        if !is_seen && !goes {
            report.add(
                "history",
                name,
                "no snapshot sees it, and nothing is to remove it".to_owned(),
            );
        }
        Ok(())
    }

    /// All rows have been seen.
    pub(super) fn finish(self, report: &mut CheckReport) {
        report.expect_equal(
            "history",
            "all inodes",
            "the number of states that are listed by their ends",
            (self.ended, self.states),
        );
        for (volume, record) in &self.frozen.volumes {
            let newest = self.snapshots.get(volume).and_then(|all| all.last());
            report.expect_equal(
                "snapshot",
                format_args!("volume {volume}"),
                "the timestamp of the newest snapshot",
                (record.newest_snapshot.get(), newest.copied().unwrap_or(0)),
            );
            let Some((origin, at)) = record.origin() else {
                continue;
            };
            let all = self.snapshots.get(&origin);
            if !all.is_some_and(|all| all.contains(&at.0)) {
                let name = snapshot_name(origin, at.0);
                let sentence = format!("volume {volume} is a clone of it, and it is missing");
                report.add("clone", name, sentence);
            }
        }
    }
}

fn snapshot_name(volume: VolumeId, timestamp: u64) -> String {
    format!("snapshot {timestamp} of volume {volume}")
}

fn state_name(ino: Ino, row_tag: u8, to: u64) -> String {
    format!("inode {ino}, row {row_tag:#x} until {to}")
}
