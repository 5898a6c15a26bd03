//! The tree: applies batches, answers reads, turns memtables into runs and merges runs.
//!
//! Who may call what at the same time:
//!
//! | | apply, rotate | get, view, range | flush_rotated | compact_step | manifest |
//! | --- | --- | --- | --- | --- | --- |
//! | apply, rotate | no: one caller | yes | yes | yes | yes |
//! | flush_rotated | yes | yes | waits | yes | yes |
//! | compact_step | yes | yes | yes | waits | yes |
//! | manifest | yes | yes | yes | yes | yes |
//!
//! Invariant: the state is replaced under its lock, and each replacement starts from the state in place. Only
//! `flush_rotated` removes sealed memtables and only `compact_step` removes runs.

use std::{
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};

use crate::{
    Batch, BlockCache, OpenError, Range, RunError, RunReason, RunStore, View,
    compaction::{Aim, Job},
    manifest::{self, RunName},
    memtable::Memtable,
    run::{Run, RunContext},
    run_writer::RunBuilder,
    state::{Runs, SortedRun, State, stored_bytes},
    view::{self, Pins},
};

/// Largest block, bytes before compression, unless a single entry is larger.
const BLOCK_BYTES_MAX: usize = 48 << 10;

/// Sizes that a tree keeps to.
#[derive(Clone, Debug)]
pub struct TreeOptions {
    /// Memory that a memtable is made for, bytes; who rotates decides how large it becomes.
    pub memtable_bytes_max: usize,
    /// A data block, bytes before compression; at most 48 KiB.
    pub block_bytes: usize,
    /// A run that compaction writes, bytes on the device; also bounds what one step of compaction does.
    pub run_bytes_max: u64,
    /// Level 1, bytes on the device.
    pub level1_bytes_max: u64,
    /// How much larger each further level is.
    pub level_ratio: u64,
}

impl Default for TreeOptions {
    fn default() -> Self {
        Self {
            memtable_bytes_max: 64 << 20,
            block_bytes: 8 << 10,
            run_bytes_max: 32 << 20,
            level1_bytes_max: 256 << 20,
            level_ratio: 10,
        }
    }
}

/// Figures of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TreeStats {
    /// Memory of the memtables, bytes, about.
    pub memtable_bytes: u64,
    /// Keys in memtables.
    pub memtable_entries: u64,
    /// Memtables that wait to be written as runs.
    pub sealed_memtables: u64,
    /// Sorted runs of level 0.
    pub level0_sorted_runs: u64,
    /// Runs of level 0, then of each further level.
    pub runs_per_level: Vec<u64>,
    /// Bytes on the device of level 0, then of each further level.
    pub bytes_per_level: Vec<u64>,
    /// Entries in runs, tombstones and hidden versions included.
    pub run_entries: u64,
    /// Tombstones in runs.
    pub run_tombstones: u64,
    /// Memory of filters that have been loaded, bytes.
    pub filter_bytes: u64,
    /// Memory of the runs' roots and of indexes that have been loaded, bytes.
    pub index_bytes: u64,
    /// Memory of the block cache, bytes; shared with other trees.
    pub cache_bytes: u64,
    /// Views that live.
    pub views: u64,
}

/// A map from keys to values, ordered by key.
pub struct Tree {
    context: RunContext,
    options: TreeOptions,
    state: RwLock<Arc<State>>,
    /// Number of the last batch that is visible.
    published: AtomicU64,
    pins: Arc<Pins>,
    flush: Mutex<()>,
    job: Mutex<Option<Job>>,
}

impl Tree {
    /// An empty tree.
    ///
    /// # Panics
    /// When the options make no sense: a zero, or blocks above their bound.
    #[must_use]
    pub fn create(runs: Arc<dyn RunStore>, cache: Arc<BlockCache>, options: TreeOptions) -> Self {
        Self::with_runs(new_context(runs, cache), options, Vec::new(), Vec::new())
    }

    /// The tree that a manifest describes. Reads the root of each run.
    ///
    /// # Errors
    /// [`OpenError`]; nothing changed.
    ///
    /// # Panics
    /// As [`Tree::create`].
    pub fn open(
        runs: Arc<dyn RunStore>,
        cache: Arc<BlockCache>,
        options: TreeOptions,
        manifest: &[u8],
    ) -> Result<Self, OpenError> {
        let context = new_context(runs, cache);
        let names = manifest::decode(manifest)?;
        let open_run = |name: RunName| {
            Ok(Arc::new(Run::open(
                context.clone(),
                name.root,
                name.extents,
            )?))
        };
        let open_sorted = |names: Vec<RunName>| {
            let runs = names
                .into_iter()
                .map(open_run)
                .collect::<Result<Vec<_>, OpenError>>()?;
            manifest::check_sorted(&runs)?;
            Ok(Arc::new(Runs::new(runs)))
        };
        if names.level0.iter().any(Vec::is_empty) {
            return Err(OpenError::Manifest {
                rule: "nothing in a sorted run of level 0",
            });
        }
        let level0 = names
            .level0
            .into_iter()
            .map(open_sorted)
            .collect::<Result<_, OpenError>>()?;
        let levels = names
            .levels
            .into_iter()
            .map(open_sorted)
            .collect::<Result<_, OpenError>>()?;
        Ok(Self::with_runs(context, options, level0, levels))
    }

    fn with_runs(
        context: RunContext,
        options: TreeOptions,
        level0: Vec<SortedRun>,
        levels: Vec<SortedRun>,
    ) -> Self {
        assert!(
            (1..=BLOCK_BYTES_MAX).contains(&options.block_bytes),
            "block size"
        );
        assert!(
            options.run_bytes_max > 0 && options.level1_bytes_max > 0,
            "run and level size"
        );
        assert!(options.level_ratio > 1, "level ratio");
        let state = State {
            active: Arc::new(Memtable::new(options.memtable_bytes_max)),
            sealed: Vec::new(),
            level0,
            levels,
        };
        Self {
            context,
            options,
            state: RwLock::new(Arc::new(state)),
            published: AtomicU64::new(0),
            pins: Arc::default(),
            flush: Mutex::new(()),
            job: Mutex::new(None),
        }
    }

    fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.read())
    }

    fn replace_state<T>(&self, edit: impl FnOnce(&mut State) -> T) -> T {
        let mut place = self.state.write();
        let mut state = State::clone(&place);
        let result = edit(&mut state);
        *place = Arc::new(state);
        result
    }

    /// Makes the whole batch visible at once. One caller at a time: the store's writer lock. Never fails, does no
    /// input or output.
    pub fn apply(&self, batch: &Batch) {
        let state = self.state();
        let seq = self.published.load(Ordering::Relaxed) + 1;
        state
            .active
            .apply(batch.changes(), seq, &self.pins.pinned());
        self.published.store(seq, Ordering::Release);
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// [`RunError`] when a run cannot be read.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, RunError> {
        self.get_with(key, <[u8]>::to_vec)
    }

    /// What `read` makes of the value of `key`, which it gets where it lies; it must be quick, since it may stand in the
    /// way of [`Tree::apply`], and must not use the tree.
    ///
    /// # Errors
    /// [`RunError`] when a run cannot be read.
    pub fn get_with<T>(
        &self,
        key: &[u8],
        read: impl Fn(&[u8]) -> T,
    ) -> Result<Option<T>, RunError> {
        let state = self.state();
        // What this has seen published, the presence bits of the memtables show.
        let _ = self.published.load(Ordering::Acquire);
        view::get(&state, key, || self.published.load(Ordering::Acquire), read)
    }

    /// The tree as it is now.
    #[must_use]
    pub fn view(&self) -> View {
        let state = self.state();
        View::new(state, Arc::clone(&self.pins), || {
            self.published.load(Ordering::Acquire)
        })
    }

    /// Entries within the bounds, from both ends, of the tree as it is now.
    #[must_use]
    pub fn range(&self, low: Bound<&[u8]>, high: Bound<&[u8]>) -> Range {
        self.view().range(low, high)
    }

    /// Memory of the memtables, the one that takes the changes and those that wait to be written, bytes, about.
    #[must_use]
    pub fn memtable_bytes(&self) -> usize {
        let state = self.state.read();
        let sealed = state.sealed.iter().map(|memtable| memtable.bytes());
        state.active.bytes() + sealed.sum::<usize>()
    }

    /// Seals the memtable and starts a new one, under the store's writer lock. `false` when there is nothing in it.
    pub fn rotate(&self) -> bool {
        self.replace_state(|state| {
            if state.active.is_empty() {
                return false;
            }
            let fresh = Arc::new(Memtable::new(self.options.memtable_bytes_max));
            state
                .sealed
                .insert(0, std::mem::replace(&mut state.active, fresh));
            true
        })
    }

    /// Writes the sealed memtables as runs, oldest first.
    ///
    /// # Errors
    /// [`RunError`]; the memtables that were not written stay sealed and readable, and another call goes on.
    pub fn flush_rotated(&self) -> Result<(), RunError> {
        let _only_one = self.flush.lock();
        loop {
            let state = self.state();
            let Some(memtable) = state.sealed.last() else {
                return Ok(());
            };
            let mut written = Vec::new();
            if let Err(error) = self.write_memtable(&state, memtable, &mut written) {
                written
                    .iter()
                    .for_each(|run: &Arc<Run>| run.mark_obsolete());
                return Err(error);
            }
            self.replace_state(|state| {
                let flushed = state.sealed.pop().expect("only this removes memtables");
                assert!(
                    Arc::ptr_eq(&flushed, memtable),
                    "only this removes memtables"
                );
                if !written.is_empty() {
                    state.level0.insert(0, Arc::new(Runs::new(written)));
                }
            });
        }
    }

    fn write_memtable(
        &self,
        state: &State,
        memtable: &Memtable,
        written: &mut Vec<Arc<Run>>,
    ) -> Result<(), RunError> {
        let drop_tombstones = state.sorted_runs().all(|sorted| sorted.is_empty());
        let mut started: Option<RunBuilder> = None;
        memtable.visit_newest(|key, value| {
            if value.is_none() && drop_tombstones {
                return Ok(());
            }
            // Not before there is another entry: the last run is told that it is.
            if let Some(builder) = started
                .take_if(|run| run.is_full() || run.stored_bytes() >= self.options.run_bytes_max)
            {
                written.push(Arc::new(builder.finish(self.context.clone(), None)?));
            }
            let builder = match &mut started {
                Some(builder) => builder,
                None => started.insert(RunBuilder::new(
                    &*self.context.store,
                    RunReason::Flush,
                    memtable.bytes() as u64,
                    self.options.block_bytes,
                )?),
            };
            builder.push(key, value)
        })?;
        if let Some(builder) = started {
            let is_newest = state.sealed.len() == 1;
            let tree_before = is_newest.then(|| {
                let earlier = (!written.is_empty()).then(|| Arc::new(Runs::new(written.clone())));
                let level0: Vec<SortedRun> = earlier.iter().chain(&state.level0).cloned().collect();
                manifest::encode(&level0, &state.levels)
            });
            let run = builder.finish(self.context.clone(), tree_before.as_deref())?;
            written.push(Arc::new(run));
        }
        Ok(())
    }

    /// Describes the runs. When [`Tree::flush_rotated`] has succeeded, it stands for all that was applied before the
    /// last [`Tree::rotate`].
    ///
    /// Before it returns, it gives the extents of those runs to [`RunStore::release_run`] that this manifest does not
    /// name and that no view reads: they may be reused once this manifest is durable. A run that a view still reads is
    /// left to a later manifest.
    #[must_use]
    pub fn manifest(&self) -> Vec<u8> {
        // Runs of this state cannot get into the graveyard while it is held here.
        let state = self.state();
        let bytes = manifest::encode(&state.level0, &state.levels);
        let released = std::mem::take(&mut *self.context.graveyard.lock());
        if !released.is_empty() {
            self.context.store.release_run(&released);
        }
        bytes
    }

    /// One bounded step of compaction, if any is due; `true` when something was done. Reads and writes about
    /// `run_bytes_max`, at most a few times as much.
    ///
    /// # Errors
    /// [`RunError`]; nothing changed, what was written is released by the next manifest, and another call starts anew.
    pub fn compact_step(&self) -> Result<bool, RunError> {
        self.step(Aim::Reads)
    }

    /// As [`Tree::compact_step`], but that level 0 is merged into level 1 at any size, so that what was removed gives
    /// its room back.
    ///
    /// # Errors
    /// As [`Tree::compact_step`].
    pub fn compact_step_for_room(&self) -> Result<bool, RunError> {
        self.step(Aim::Room)
    }

    /// As [`Tree::compact_step`], but that only the newest sorted runs of level 0 are merged, with each other, as many as
    /// store `bytes_max` together: so that small ones become one where there is no room for more. Nothing is done while
    /// another merge is under way, which may be a long one.
    ///
    /// # Errors
    /// As [`Tree::compact_step`].
    pub fn compact_step_of_newest(&self, bytes_max: u64) -> Result<bool, RunError> {
        if self.job.lock().is_some() {
            return Ok(false);
        }
        self.step(Aim::Level0(bytes_max))
    }

    fn step(&self, aim: Aim) -> Result<bool, RunError> {
        let mut place = self.job.lock();
        let mut job = match place.take() {
            Some(job) => job,
            None => match Job::pick(&self.state(), &self.options, aim)? {
                Some(job) => job,
                None => return Ok(false),
            },
        };
        match job.step(&self.context, &self.options) {
            Ok(false) => *place = Some(job),
            Ok(true) => {
                let obsolete = self.replace_state(|state| job.install(state));
                obsolete.iter().for_each(|run| run.mark_obsolete());
            }
            Err(error) => {
                job.abandon().iter().for_each(|run| run.mark_obsolete());
                return Err(error);
            }
        }
        Ok(true)
    }

    /// The extents of all runs that a manifest taken now would name.
    #[must_use]
    pub fn extents(&self) -> Vec<u64> {
        let state = self.state();
        state
            .runs()
            .flat_map(|run| run.extents())
            .copied()
            .collect()
    }

    /// Figures of the tree.
    #[must_use]
    pub fn stats(&self) -> TreeStats {
        let state = self.state();
        let memtables = || std::iter::once(&state.active).chain(&state.sealed);
        let level0_runs = state.level0.iter().map(|sorted| sorted.len() as u64).sum();
        let level0_bytes = state.level0.iter().map(|sorted| stored_bytes(sorted)).sum();
        let level_runs = state.levels.iter().map(|level| level.len() as u64);
        let level_bytes = state.levels.iter().map(|level| stored_bytes(level));
        TreeStats {
            memtable_bytes: memtables().map(|memtable| memtable.bytes() as u64).sum(),
            memtable_entries: memtables().map(|memtable| memtable.len() as u64).sum(),
            sealed_memtables: state.sealed.len() as u64,
            level0_sorted_runs: state.level0.len() as u64,
            runs_per_level: std::iter::once(level0_runs).chain(level_runs).collect(),
            bytes_per_level: std::iter::once(level0_bytes).chain(level_bytes).collect(),
            run_entries: state.runs().map(|run| run.summary().entry_count).sum(),
            run_tombstones: state.runs().map(|run| run.summary().tombstone_count).sum(),
            filter_bytes: state.runs().map(|run| run.filter_bytes() as u64).sum(),
            index_bytes: state.runs().map(|run| run.index_bytes() as u64).sum(),
            cache_bytes: self.context.cache.bytes(),
            views: self.pins.len() as u64,
        }
    }
}

fn new_context(store: Arc<dyn RunStore>, cache: Arc<BlockCache>) -> RunContext {
    RunContext {
        store,
        cache,
        graveyard: Arc::default(),
    }
}
