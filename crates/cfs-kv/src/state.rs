//! What a tree consists of at one moment: memtables and runs.
//!
//! A state is never changed, only replaced. Invariant: what comes first is newer. The active memtable, then the sealed
//! ones, then level 0 (whose sorted runs overlap), then levels 1 and on, each one sorted run: a sequence of runs whose
//! key ranges ascend and do not overlap.

use std::{
    ops::{Bound, Deref},
    sync::Arc,
};

use crate::{
    memtable::Memtable,
    run::Run,
    search::{guess_u128, lower_bound},
};

/// Runs whose key ranges ascend and do not overlap.
pub(crate) type SortedRun = Arc<Runs>;

/// The runs of a sorted run, and where each of their partitions ends: a lookup goes to its partition at once, by one
/// array that stays in the processor's cache, instead of by the keys of runs and then of partitions.
#[derive(Default)]
pub(crate) struct Runs {
    runs: Vec<Arc<Run>>,
    /// Heads of the partitions' last keys, of all runs.
    ends: Box<[u128]>,
    /// Run and partition, for each of `ends`.
    places: Box<[(u32, u32)]>,
}

impl Runs {
    /// A sorted run of these.
    pub(crate) fn new(runs: Vec<Arc<Run>>) -> Self {
        let places = runs.iter().zip(0u32..).flat_map(|(run, number)| {
            let partitions = 0..run.partition_count() as u32;
            partitions.map(move |partition| (number, partition))
        });
        let places: Box<[_]> = places.collect();
        let ends = places.iter().map(|&(number, partition)| {
            runs[number as usize].partition_end_head(partition as usize)
        });
        Self {
            ends: ends.collect(),
            places,
            runs,
        }
    }

    /// The run and partition in which `key`, with this head, would be.
    #[inline]
    pub(crate) fn place_of(&self, key: &[u8], key_head: u128) -> Option<(&Arc<Run>, usize)> {
        let ends = &self.ends;
        let guess = guess_u128(ends.len(), *ends.first()?, *ends.last()?, key_head);
        let mut index = lower_bound(ends.len(), |index| ends[index], &key_head, guess);
        if ends.get(index) == Some(&key_head) {
            let equal = ends[index..].partition_point(|end| *end == key_head);
            index += self.places[index..index + equal].partition_point(|&(run, partition)| {
                self.runs[run as usize].partition_ends_before(partition as usize, key)
            });
        }
        let &(run, partition) = self.places.get(index)?;
        // Nothing is looked at, and nothing that is damaged met, for a key before the run.
        if partition == 0 && *key < *self.runs[run as usize].summary().first_key {
            return None;
        }
        Some((&self.runs[run as usize], partition as usize))
    }
}

impl Deref for Runs {
    type Target = [Arc<Run>];

    fn deref(&self) -> &[Arc<Run>] {
        &self.runs
    }
}

/// A tree's parts.
#[derive(Clone)]
pub(crate) struct State {
    /// Takes the changes.
    pub active: Arc<Memtable>,
    /// To be written as runs, newest first.
    pub sealed: Vec<Arc<Memtable>>,
    /// What memtables became, newest first.
    pub level0: Vec<SortedRun>,
    /// Levels 1 and on.
    pub levels: Vec<SortedRun>,
}

impl State {
    /// All sorted runs, newest first.
    pub(crate) fn sorted_runs(&self) -> impl Iterator<Item = &SortedRun> {
        self.level0.iter().chain(&self.levels)
    }

    /// All runs.
    pub(crate) fn runs(&self) -> impl Iterator<Item = &Arc<Run>> {
        self.sorted_runs().flat_map(|sorted| sorted.iter())
    }
}

/// Bytes that a sorted run takes on the device, without roots.
pub(crate) fn stored_bytes(sorted: &[Arc<Run>]) -> u64 {
    sorted.iter().map(|run| run.summary().stored_bytes).sum()
}

/// Indices of the runs of a sorted run that have keys from `first` to `last`.
pub(crate) fn overlapping(
    sorted: &[Arc<Run>],
    first: &[u8],
    last: &[u8],
) -> std::ops::Range<usize> {
    let start = sorted.partition_point(|run| *run.summary().last_key < *first);
    let end = sorted.partition_point(|run| *run.summary().first_key <= *last);
    start..end.max(start)
}

/// Whether a run can have keys within the bounds.
pub(crate) fn touches(run: &Run, (low, high): (Bound<&[u8]>, Bound<&[u8]>)) -> bool {
    let summary = run.summary();
    let above = match low {
        Bound::Unbounded => true,
        Bound::Included(low) => *summary.last_key >= *low,
        Bound::Excluded(low) => *summary.last_key > *low,
    };
    let below = match high {
        Bound::Unbounded => true,
        Bound::Included(high) => *summary.first_key <= *high,
        Bound::Excluded(high) => *summary.first_key < *high,
    };
    above && below
}
