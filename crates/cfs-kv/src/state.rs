//! What a tree consists of at one moment: memtables and runs.
//!
//! A state is never changed, only replaced. Invariant: what comes first is newer. The active memtable, then the sealed
//! ones, then level 0 (whose sorted runs overlap), then levels 1 and on, each one sorted run: a sequence of runs whose
//! key ranges ascend and do not overlap.

use std::{ops::Bound, sync::Arc};

use crate::{memtable::Memtable, run::Run};

/// Runs whose key ranges ascend and do not overlap.
pub(crate) type SortedRun = Arc<Vec<Arc<Run>>>;

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

/// The run of a sorted run in which `key` would be.
pub(crate) fn run_of<'a>(sorted: &'a SortedRun, key: &[u8]) -> Option<&'a Arc<Run>> {
    let index = sorted.partition_point(|run| *run.summary().last_key < *key);
    sorted
        .get(index)
        .filter(|run| *run.summary().first_key <= *key)
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
