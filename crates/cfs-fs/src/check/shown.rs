//! In which clones a row is seen that is another volume's: what scrub tells of a damaged chunk.

use std::collections::BTreeMap;

use cfs_format::table::{InodeRecord, key, tag};
use cfs_format::{Ino, Timestamp, VolumeId};
use cfs_store::Frozen;

use crate::clone;
use crate::error::Result;
use crate::history::{Past, Table};
use crate::inode;

/// Clones and their snapshots, as of one moment.
pub(super) struct Clones<'a> {
    frozen: &'a Frozen,
    /// Each clone with its origin.
    origins: Vec<(VolumeId, VolumeId, Timestamp)>,
    snapshots: BTreeMap<VolumeId, Vec<Timestamp>>,
}

/// A state of a row.
#[derive(Clone, Copy)]
pub(super) struct State {
    /// The inode of the row.
    pub ino: Ino,
    /// Its volume; none counts for all that it may be in.
    pub volume: Option<VolumeId>,
    /// When it was written, and when it was replaced.
    pub interval: (u64, u64),
}

impl<'a> Clones<'a> {
    pub(super) fn new(
        frozen: &'a Frozen,
        snapshots: impl Iterator<Item = (VolumeId, Timestamp)>,
    ) -> Self {
        let mut it = Self {
            frozen,
            origins: Vec::new(),
            snapshots: BTreeMap::new(),
        };
        for (id, volume) in &frozen.volumes {
            if let Some((origin, at)) = volume.origin() {
                it.origins.push((*id, origin, at));
            }
        }
        for (volume, at) in snapshots {
            it.snapshots.entry(volume).or_default().push(at);
        }
        it
    }

    /// Whether a clone has rows of its own for an inode, or has removed it, at a moment or now.
    fn is_owned(&self, ino: Ino, at: Option<Timestamp>) -> Result<bool> {
        let row = match at {
            None => self.frozen.value(&key(ino, tag::INODE, &[]))?,
            Some(at) => Past {
                table: self.frozen,
                at,
            }
            .get(ino, tag::INODE, &[])?,
        };
        let record: Option<InodeRecord> = row.map(|row| inode::decode(ino, &row)).transpose()?;
        Ok(record.is_some_and(|record| clone::is_own(&record) || clone::is_gone(&record)))
    }

    /// The inodes of clones in which a state of a row is seen, and whether it is seen in snapshots of the clone alone.
    ///
    /// # Errors
    /// When something cannot be read.
    pub(super) fn showing(&self, state: State) -> Result<Vec<(Ino, bool)>> {
        let mut shown = Vec::new();
        let (from, to) = state.interval;
        let sees = |at: Timestamp| Ok((from..to).contains(&at.0));
        self.add(state.ino, state.volume, &sees, &mut shown)?;
        Ok(shown)
    }

    fn add(
        &self,
        ino: Ino,
        volume: Option<VolumeId>,
        sees: &dyn Fn(Timestamp) -> Result<bool>,
        shown: &mut Vec<(Ino, bool)>,
    ) -> Result<()> {
        for (clone, origin, at) in &self.origins {
            let is_of_origin = match ino.cloned() {
                Some((of, _)) => of == *origin,
                None => self.origins.iter().all(|(id, ..)| id != origin),
            };
            if !is_of_origin || volume.is_some_and(|volume| volume != *origin) || !sees(*at)? {
                continue;
            }
            let Some(there) = ino.in_clone(*clone) else {
                continue;
            };
            let mut of_snapshots = self.snapshots.get(clone).into_iter().flatten();
            if !self.is_owned(there, None)? {
                shown.push((there, false));
            } else if of_snapshots.any(|at| self.is_owned(there, Some(*at)).is_ok_and(|is| !is)) {
                shown.push((there, true));
            }
            let sees_there = |at: Timestamp| Ok(!self.is_owned(there, Some(at))?);
            self.add(there, Some(*clone), &sees_there, shown)?;
        }
        Ok(())
    }
}
