//! What snapshots show and hold, in bytes.

use std::collections::{HashMap, HashSet};

use cfs_format::table::{split_history, split_key, system_key, tag};
use cfs_format::{DomainId, Fingerprint, Ino, VolumeId};

use crate::Fs;
use crate::error::{FsError, Result};
use crate::extent::table_error;
use crate::history::decode_held;
use crate::row;
use crate::types::Attr;
use crate::views::Snapshot;

/// Entries of a directory of a snapshot that are read at once.
const ENTRIES_AT_ONCE: usize = 1024;

/// What a snapshot shows and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotSizes {
    /// Bytes of content that it shows, as its files have them.
    pub logical_bytes: u64,
    /// Inodes that it shows.
    pub inodes: u64,
    /// Stored bytes of chunks that nothing else holds.
    pub exclusive_bytes: u64,
    /// Stored bytes of chunks that nothing would hold any more if it and the chosen ones were deleted.
    pub freed_bytes: u64,
}

/// Who holds a chunk, of those that count.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holder {
    None,
    One(usize),
    Many,
}

impl Holder {
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, holder) | (holder, Self::None) => holder,
            (one, other) if one == other => one,
            _ => Self::Many,
        }
    }
}

/// What the history says of a chunk.
struct Held {
    references: u32,
    /// Among all snapshots.
    of_all: Holder,
    /// Among those that were not chosen.
    of_others: Holder,
}

/// The snapshots of a volume.
#[derive(Default)]
struct OfVolume {
    timestamps: Vec<u64>,
    /// Where each is in the answer.
    places: Vec<usize>,
    /// How many before each were not chosen; one more at the end.
    others_before: Vec<usize>,
}

impl OfVolume {
    /// Who of those at `[from, to)` holds what they all see, in all and among those not chosen.
    fn holders(&self, from: usize, to: usize) -> (Holder, Holder) {
        let of_all = match to - from {
            0 => Holder::None,
            1 => Holder::One(self.places[from]),
            _ => Holder::Many,
        };
        let of_others = match self.others_before[to] - self.others_before[from] {
            0 => Holder::None,
            1 => {
                let before = self.others_before[from];
                let at = (from..to).find(|at| self.others_before[at + 1] > before);
                Holder::One(self.places[at.expect("there is one")])
            }
            _ => Holder::Many,
        };
        (of_all, of_others)
    }
}

impl Fs {
    /// Sizes of snapshots, in their order. `chosen` says for each whether it is one of those that would be deleted too.
    /// Reads all that is kept for snapshots, and of each snapshot of a directory that is no volume all that it shows.
    ///
    /// # Errors
    /// When something cannot be read; [`FsError::Stale`] when one has been deleted meanwhile.
    pub fn snapshot_sizes(
        &self,
        snapshots: &[std::sync::Arc<Snapshot>],
        chosen: impl Fn(&Snapshot) -> bool,
    ) -> Result<Vec<SnapshotSizes>> {
        let mut sizes = Vec::with_capacity(snapshots.len());
        for snapshot in snapshots {
            let (logical_bytes, inodes) = self.shown(snapshot)?;
            sizes.push(SnapshotSizes {
                logical_bytes,
                inodes,
                ..SnapshotSizes::default()
            });
        }
        let place_of: HashMap<_, _> = (0..)
            .zip(snapshots)
            .map(|(place, snapshot)| (snapshot.view, place))
            .collect();
        let mut volumes: HashMap<VolumeId, OfVolume> = HashMap::new();
        for snapshot in self.views.all() {
            let of_volume = volumes.entry(snapshot.volume).or_default();
            let others = of_volume.others_before.last().copied().unwrap_or(0);
            if of_volume.others_before.is_empty() {
                of_volume.others_before.push(0);
            }
            of_volume.timestamps.push(snapshot.timestamp.0);
            // One that was not asked for holds for itself.
            let place = place_of.get(&snapshot.view).copied();
            of_volume.places.push(place.unwrap_or(usize::MAX));
            let is_other = usize::from(!chosen(&snapshot));
            of_volume.others_before.push(others + is_other);
        }
        for (fingerprint, held) in self.held_chunks(&volumes)? {
            let Some(chunk) = self.store.chunk_location(&fingerprint)? else {
                continue;
            };
            if chunk.refs.get() != held.references {
                continue;
            }
            let bytes = u64::from(chunk.record_len.get());
            if let Holder::One(place) = held.of_all
                && let Some(sizes) = sizes.get_mut(place)
            {
                sizes.exclusive_bytes += bytes;
            }
            match held.of_others {
                Holder::None => sizes.iter_mut().for_each(|it| it.freed_bytes += bytes),
                Holder::One(place) => {
                    if let Some(sizes) = sizes.get_mut(place) {
                        sizes.freed_bytes += bytes;
                    }
                }
                Holder::Many => {}
            }
        }
        Ok(sizes)
    }

    fn held_chunks(
        &self,
        volumes: &HashMap<VolumeId, OfVolume>,
    ) -> Result<HashMap<Fingerprint, Held>> {
        let mut chunks: HashMap<Fingerprint, Held> = HashMap::new();
        let lo = system_key(tag::HISTORY, &[]);
        let hi = system_key(tag::HISTORY + 1, &[]);
        for state in self.store.range(&lo, &hi) {
            let (state_key, value) = state.map_err(table_error)?;
            let (_, _, suffix) = split_key(&state_key)?;
            let (ino, row_tag, row_suffix, to) = split_history(suffix)?;
            if row_tag != tag::EXTENT {
                continue;
            }
            let from = row::timestamp(row_tag, &value)?;
            let mut of = VolumeId(0);
            let extent = decode_held(ino, row_suffix, &value, |volume| {
                of = volume;
                let volume = self.store.volume(volume)?;
                self.store.domain_secret(DomainId(volume.domain.get()))
            })?;
            let (of_all, of_others) = match volumes.get(&of) {
                None => (Holder::None, Holder::None),
                Some(of_volume) => {
                    let place = |end| of_volume.timestamps.partition_point(|at| *at < end);
                    of_volume.holders(place(from), place(to))
                }
            };
            let held = chunks.entry(extent.fingerprint).or_insert(Held {
                references: 0,
                of_all: Holder::None,
                of_others: Holder::None,
            });
            held.references += 1;
            held.of_all = held.of_all.and(of_all);
            held.of_others = held.of_others.and(of_others);
        }
        Ok(chunks)
    }

    /// Bytes of content and number of inodes that a snapshot shows.
    fn shown(&self, snapshot: &Snapshot) -> Result<(u64, u64)> {
        let root = self.store.volume(snapshot.volume);
        // The counters of a clone say nothing of what is its origin's still.
        let tells = |volume: cfs_format::table::VolumeRecord| {
            volume.root.get() == snapshot.directory.0 && volume.origin_volume.get() == 0
        };
        if root.is_some_and(tells) {
            return Ok((snapshot.volume_logical_bytes, snapshot.volume_inodes));
        }
        let root = snapshot.directory.in_view(snapshot.view);
        let mut waiting = vec![root.ok_or(FsError::TooLarge)?];
        let (mut bytes, mut inodes) = (0_u64, 1);
        let mut counted: HashSet<Ino> = HashSet::new();
        while let Some(directory) = waiting.pop() {
            let limit = self.dir_limit(directory)?;
            let mut cookie = 0;
            loop {
                let entries = self.read_dir(directory, cookie, limit, ENTRIES_AT_ONCE)?;
                let Some(last) = entries.last() else {
                    break;
                };
                cookie = last.cookie;
                for entry in &entries {
                    let attr: Attr = self.getattr(entry.ino)?;
                    if attr.kind() == libc::S_IFDIR {
                        waiting.push(entry.ino);
                    } else if attr.nlink > 1 && !counted.insert(entry.ino) {
                        continue;
                    } else {
                        bytes = bytes.wrapping_add(attr.size);
                    }
                    inodes += 1;
                }
            }
        }
        Ok((bytes, inodes))
    }
}
