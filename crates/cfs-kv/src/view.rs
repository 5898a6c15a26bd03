//! Consistent read views.

use std::{
    collections::BTreeMap,
    ops::{Bound, ControlFlow},
    sync::Arc,
};

use parking_lot::Mutex;

use crate::{BlockPtr, Range, RunError, filter::key_hash, sorted::head, state::State};

/// Sorted runs whose filters a lookup asks for at once; there seldom are more.
const PREFETCHED_RUNS: usize = 12;

/// Sequence numbers that views read at, and how many views do.
#[derive(Debug, Default)]
pub(crate) struct Pins(Mutex<BTreeMap<u64, usize>>);

impl Pins {
    /// Pins the number that `seq` returns; it is called under the lock that `pinned` takes too.
    fn pin(&self, seq: impl FnOnce() -> u64) -> u64 {
        let mut pins = self.0.lock();
        let seq = seq();
        *pins.entry(seq).or_insert(0) += 1;
        seq
    }

    fn unpin(&self, seq: u64) {
        let mut pins = self.0.lock();
        let count = pins.get_mut(&seq).expect("it was pinned");
        *count -= 1;
        if *count == 0 {
            pins.remove(&seq);
        }
    }

    /// The pinned numbers, ascending.
    pub(crate) fn pinned(&self) -> Vec<u64> {
        self.0.lock().keys().copied().collect()
    }

    /// How many views there are.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().values().sum()
    }
}

/// The tree as it was when the view was taken. Cheap to take and to clone; while it lives, what it reads takes memory
/// and space.
#[derive(Clone)]
pub struct View(Arc<ViewInner>);

struct ViewInner {
    state: Arc<State>,
    seq: u64,
    pins: Arc<Pins>,
}

impl Drop for ViewInner {
    fn drop(&mut self) {
        self.pins.unpin(self.seq);
    }
}

impl View {
    /// A view of `state`, which was loaded before this call, at the number that `published` returns.
    pub(crate) fn new(state: Arc<State>, pins: Arc<Pins>, published: impl FnOnce() -> u64) -> Self {
        let seq = pins.pin(published);
        Self(Arc::new(ViewInner { state, seq, pins }))
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// [`RunError`] when a run cannot be read.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, RunError> {
        get(&self.0.state, key, || self.0.seq, <[u8]>::to_vec)
    }

    /// Entries within the bounds, from both ends.
    #[must_use]
    pub fn range(&self, low: Bound<&[u8]>, high: Bound<&[u8]>) -> Range {
        Range::new(
            self.clone(),
            low.map(<[u8]>::to_vec),
            high.map(<[u8]>::to_vec),
        )
    }

    /// Reads every block of every run from the store, past all caches. `seen` is told of each block, with the error if it
    /// cannot be read, and says whether to go on.
    pub fn read_all_blocks(
        &self,
        mut seen: impl FnMut(BlockPtr, Option<RunError>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        for run in self.0.state.runs() {
            run.read_all(&mut seen)?;
        }
        ControlFlow::Continue(())
    }

    /// The storage extents of all runs; none of them is released while the view lives.
    #[must_use]
    pub fn extents(&self) -> Vec<u64> {
        let runs = self.0.state.runs();
        runs.flat_map(|run| run.extents()).copied().collect()
    }

    /// The same, one list for each run.
    #[must_use]
    pub fn extents_by_run(&self) -> Vec<Vec<u64>> {
        let runs = self.0.state.runs();
        runs.map(|run| run.extents().to_vec()).collect()
    }

    pub(crate) fn state(&self) -> &State {
        &self.0.state
    }

    pub(crate) fn seq(&self) -> u64 {
        self.0.seq
    }
}

/// What `read` makes of the value of `key` in this state at the number that `seq` returns.
#[inline]
pub(crate) fn get<T>(
    state: &State,
    key: &[u8],
    seq: impl Fn() -> u64,
    read: impl Fn(&[u8]) -> T,
) -> Result<Option<T>, RunError> {
    let (hash, key_head) = (key_hash(key), head(key));
    let memtables = || std::iter::once(&state.active).chain(&state.sealed);
    // A filter lies in no cache of the processor: all of them are asked for before any is waited for.
    memtables().for_each(|memtable| memtable.prefetch(hash));
    let mut places = [None; PREFETCHED_RUNS];
    for (place, sorted) in places.iter_mut().zip(state.sorted_runs()) {
        *place = sorted.place_of(key, key_head);
        if let Some((run, partition)) = place {
            run.prefetch(*partition, hash);
        }
    }
    // Most keys are in the last one.
    if let Some((run, partition)) = places.iter().rev().flatten().next() {
        run.prefetch_index(*partition, key);
    }
    for memtable in memtables() {
        if let Some(value) = memtable.get(key, hash, &seq, |value| value.map(&read)) {
            return Ok(value);
        }
    }
    for (index, sorted) in state.sorted_runs().enumerate() {
        let place = match places.get(index) {
            Some(place) => *place,
            None => sorted.place_of(key, key_head),
        };
        if let Some((run, partition)) = place
            && let Some(value) = run.get(partition, key, hash, |value| value.map(&read))?
        {
            return Ok(value);
        }
    }
    Ok(None)
}
