//! Compaction: what to merge next, and merging it a bounded step at a time.
//!
//! Level 0 holds what memtables became; its sorted runs overlap. While it is small against level 1, runs of similar
//! size are merged within it, so that frequent checkpoints of little do not rewrite level 1 each time; when it has
//! grown to a quarter of level 1, all of it is merged into level 1. Where there is no room for that its newest runs can be
//! merged alone, up to so many bytes. Levels 1 and on are one sorted run each; a level
//! above its target gives the run that overlaps the next level least to it.
//!
//! A job holds its inputs and its unfinished output between steps, and replaces the inputs in the state at its end;
//! until then nothing has changed, and a job that fails leaves nothing but runs to release. Only one job is under way
//! at a time, and nobody else removes runs, so that its inputs are still there when it ends. A tombstone is dropped
//! when no older run that is not an input has keys in the job's range.

use std::{ops::Bound, sync::Arc};

use crate::{
    RunError, RunReason, TreeOptions,
    cursor::{Cursor, Direction, Merge, RunCursor},
    run::{ReadThrough, Run, RunContext},
    run_writer::RunBuilder,
    state::{Runs, SortedRun, State, overlapping, stored_bytes},
};

/// Level 0 is looked at when it has this many sorted runs,
const LEVEL0_SORTED_RUNS: usize = 4;
/// and is merged into level 1, however small it is, when it has this many.
const LEVEL0_SORTED_RUNS_MAX: usize = 12;
/// Level 0 goes into level 1 when it has at least this part of its bytes.
const LEVEL0_SHARE: u64 = 4;
/// A step reads at most this many times `run_bytes_max` of keys and values, however few of them remain.
const STEP_INPUT_RUNS: u64 = 4;

/// What a merge is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aim {
    /// Few runs, at little cost.
    Reads,
    /// Removed entries give their room back soon: level 0 goes down, however small it is.
    Room,
    /// Fewer sorted runs in level 0, for at most so many bytes.
    Level0(u64),
}

/// Where the output of a job goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// Into level 0, in place of its inputs.
    Level0,
    /// Into `State::levels` at this index.
    Level(usize),
}

/// Something to merge.
struct Plan {
    /// Sorted runs of level 0, adjacent, newest first.
    level0: Vec<SortedRun>,
    /// A run of the level above the target.
    upper: Option<Arc<Run>>,
    /// Runs of the target level.
    lower: SortedRun,
    target: Target,
    drop_tombstones: bool,
}

impl Plan {
    /// What the inputs take.
    fn stored_bytes(&self) -> u64 {
        let level0 = self.level0.iter().flat_map(|sorted| sorted.iter());
        let runs = level0.chain(&self.upper).chain(self.lower.iter());
        runs.map(|run| run.summary().stored_bytes).sum()
    }
}

/// A merge under way.
pub(crate) struct Job {
    plan: Plan,
    reason: RunReason,
    merge: Merge,
    output: Vec<Arc<Run>>,
    /// The newest key; what is written must ascend, whatever was read.
    last_key: Option<Vec<u8>>,
}

impl Job {
    /// The most urgent job, if there is one; reads the first blocks of its inputs.
    pub(crate) fn pick(
        state: &State,
        options: &TreeOptions,
        aim: Aim,
    ) -> Result<Option<Self>, RunError> {
        let Some(plan) = Plan::pick(state, options, aim) else {
            return Ok(None);
        };
        let upper = plan
            .upper
            .iter()
            .map(|run| Arc::new(Runs::new(vec![Arc::clone(run)])));
        let lower = (!plan.lower.is_empty()).then(|| Arc::clone(&plan.lower));
        let inputs = plan.level0.iter().cloned().chain(upper).chain(lower);
        let cursors = inputs
            .map(|sorted| {
                let cursor = RunCursor::new(
                    sorted,
                    Direction::Forward,
                    ReadThrough::Store,
                    Bound::Unbounded,
                )?;
                Ok(Cursor::Run(cursor))
            })
            .collect::<Result<_, RunError>>()?;
        Ok(Some(Self {
            plan,
            reason: match aim {
                Aim::Level0(_) => RunReason::Consolidation,
                Aim::Reads | Aim::Room => RunReason::Compaction,
            },
            merge: Merge::new(cursors, Direction::Forward),
            output: Vec::new(),
            last_key: None,
        }))
    }

    /// Writes the next run of the output. `true` when it was the last one. After an error the job is of no use but
    /// for [`Job::abandon`].
    pub(crate) fn step(
        &mut self,
        context: &RunContext,
        options: &TreeOptions,
    ) -> Result<bool, RunError> {
        if self.is_move() {
            return Ok(true);
        }
        let mut builder: Option<RunBuilder> = None;
        let mut input_bytes = 0;
        let ended = loop {
            let Some((key, value)) = self.merge.current() else {
                break true;
            };
            if self.last_key.as_deref().is_some_and(|last| last >= key) {
                return Err(RunError::Disorder);
            }
            let last_key = self.last_key.get_or_insert_default();
            last_key.clear();
            last_key.extend_from_slice(key);
            input_bytes += (key.len() + value.map_or(0, <[u8]>::len)) as u64;
            if value.is_some() || !self.plan.drop_tombstones {
                let builder = match &mut builder {
                    Some(builder) => builder,
                    None => builder.insert(RunBuilder::new(
                        &*context.store,
                        self.reason,
                        self.plan.stored_bytes(),
                        options.block_bytes,
                    )?),
                };
                builder.push(key, value)?;
            }
            self.merge.advance()?;
            let full = |builder: &RunBuilder| {
                builder.is_full() || builder.stored_bytes() >= options.run_bytes_max
            };
            if builder.as_ref().is_some_and(full)
                || input_bytes >= STEP_INPUT_RUNS * options.run_bytes_max
            {
                break false;
            }
        };
        if let Some(builder) = builder {
            self.output
                .push(Arc::new(builder.finish(context.clone(), None)?));
        }
        Ok(ended)
    }

    /// Whether the only input goes to the target level as it is.
    fn is_move(&self) -> bool {
        let Some(upper) = &self.plan.upper else {
            return false;
        };
        let tombstones_go = self.plan.drop_tombstones && upper.summary().tombstone_count > 0;
        self.plan.lower.is_empty() && !tombstones_go
    }

    /// Replaces the inputs by the output. The runs that this returns are obsolete once the state is in place.
    pub(crate) fn install(self, state: &mut State) -> Vec<Arc<Run>> {
        let is_move = self.is_move();
        let Self { plan, output, .. } = self;
        let position = plan.level0.first().map(|newest| {
            let is_newest = |sorted: &SortedRun| Arc::ptr_eq(sorted, newest);
            state
                .level0
                .iter()
                .position(is_newest)
                .expect("inputs stay in the state")
        });
        if let Some(position) = position {
            state.level0.drain(position..position + plan.level0.len());
        }
        let inputs = plan.level0.iter().flat_map(|sorted| sorted.iter());
        let mut removed: Vec<Arc<Run>> = inputs
            .chain(&plan.upper)
            .chain(plan.lower.iter())
            .cloned()
            .collect();
        let output = if is_move {
            std::mem::take(&mut removed)
        } else {
            output
        };
        match plan.target {
            Target::Level0 => {
                let position = position.expect("what goes to level 0 comes from it");
                if !output.is_empty() {
                    state.level0.insert(position, Arc::new(Runs::new(output)));
                }
            }
            Target::Level(index) => {
                if let Some(upper) = &plan.upper {
                    let mut level = state.levels[index - 1].to_vec();
                    level.retain(|run| !Arc::ptr_eq(run, upper));
                    state.levels[index - 1] = Arc::new(Runs::new(level));
                }
                if state.levels.len() == index {
                    state.levels.push(SortedRun::default());
                }
                let mut level = state.levels[index].to_vec();
                level.retain(|run| !plan.lower.iter().any(|lower| Arc::ptr_eq(run, lower)));
                level.extend(output);
                level.sort_by(|a, b| a.summary().first_key.cmp(&b.summary().first_key));
                state.levels[index] = Arc::new(Runs::new(level));
            }
        }
        removed
    }

    /// What was written and is not needed.
    pub(crate) fn abandon(self) -> Vec<Arc<Run>> {
        self.output
    }
}

impl Plan {
    fn pick(state: &State, options: &TreeOptions, aim: Aim) -> Option<Self> {
        if aim == Aim::Room && !state.level0.is_empty() {
            return Some(Self::new(
                state,
                state.level0.clone(),
                None,
                Target::Level(0),
            ));
        }
        if let Aim::Level0(bytes_max) = aim {
            let mut bytes = 0;
            let newest = state.level0.iter().take_while(|sorted| {
                bytes += stored_bytes(sorted);
                bytes <= bytes_max
            });
            return Self::within_level0(state, newest.count());
        }
        Self::pick_level0(state, options).or_else(|| Self::pick_level(state, options))
    }

    /// Merges so many of the newest sorted runs of level 0 into one, if they are several.
    fn within_level0(state: &State, count: usize) -> Option<Self> {
        (count > 1).then(|| Self::new(state, state.level0[..count].to_vec(), None, Target::Level0))
    }

    fn pick_level0(state: &State, options: &TreeOptions) -> Option<Self> {
        let count = state.level0.len();
        if count < LEVEL0_SORTED_RUNS {
            return None;
        }
        let bytes: Vec<u64> = state
            .level0
            .iter()
            .map(|sorted| stored_bytes(sorted))
            .collect();
        let level1_bytes = state.levels.first().map_or(0, |level| stored_bytes(level));
        let worthwhile = level1_bytes.min(options.level1_bytes_max) / LEVEL0_SHARE;
        if count >= LEVEL0_SORTED_RUNS_MAX || bytes.iter().sum::<u64>() >= worthwhile {
            return Some(Self::new(
                state,
                state.level0.clone(),
                None,
                Target::Level(0),
            ));
        }
        // The newest ones, as long as none is larger than all that are newer together.
        let mut sum = bytes[0];
        let mut merged = 1;
        while merged < count && bytes[merged] <= sum {
            sum += bytes[merged];
            merged += 1;
        }
        Self::within_level0(state, merged)
    }

    fn pick_level(state: &State, options: &TreeOptions) -> Option<Self> {
        let mut bytes_max = options.level1_bytes_max;
        for (index, level) in state.levels.iter().enumerate() {
            let is_last = index + 1 == state.levels.len();
            let below = state.levels.get(index + 1);
            if stored_bytes(level) > bytes_max {
                let cost = |run: &&Arc<Run>| {
                    let overlap =
                        below.map_or(0, |below| stored_bytes(overlapping_runs(below, run)));
                    (
                        overlap as u128 * 1024 / u128::from(run.summary().stored_bytes.max(1)),
                        overlap,
                    )
                };
                let run = level.iter().min_by_key(cost)?;
                return Some(Self::new(
                    state,
                    Vec::new(),
                    Some(Arc::clone(run)),
                    Target::Level(index + 1),
                ));
            }
            // Removed entries take space until their tombstones have come down to them.
            let mostly_tombstones =
                |run: &&Arc<Run>| run.summary().tombstone_count * 2 > run.summary().entry_count;
            if !is_last && let Some(run) = level.iter().find(mostly_tombstones) {
                return Some(Self::new(
                    state,
                    Vec::new(),
                    Some(Arc::clone(run)),
                    Target::Level(index + 1),
                ));
            }
            bytes_max = bytes_max.saturating_mul(options.level_ratio);
        }
        None
    }

    /// The plan that merges these into the target; adds what overlaps there.
    fn new(state: &State, level0: Vec<SortedRun>, upper: Option<Arc<Run>>, target: Target) -> Self {
        let upper_inputs = || level0.iter().flat_map(|sorted| sorted.iter()).chain(&upper);
        let (first, last) = key_range(upper_inputs());
        let (lower, older) = match target {
            Target::Level0 => (Vec::new(), level0.len()),
            Target::Level(index) => {
                let level = state.levels.get(index);
                let lower = level.map(|level| level[overlapping(level, first, last)].to_vec());
                (lower.unwrap_or_default(), state.level0.len() + index + 1)
            }
        };
        // The runs of the target reach beyond what is merged into them, and so may their tombstones.
        let (first, last) = key_range(upper_inputs().chain(&lower));
        let mut older = state.sorted_runs().skip(older);
        let drop_tombstones = older.all(|sorted| overlapping(sorted, first, last).is_empty());
        #[cfg(feature = "planted-bugs")]
        let drop_tombstones =
            drop_tombstones || cfs_format::planted::has(cfs_format::planted::Bug::LostTombstone);
        Self {
            lower: Arc::new(Runs::new(lower)),
            drop_tombstones,
            level0,
            upper,
            target,
        }
    }
}

/// First and last key of at least one run.
fn key_range<'a>(runs: impl Iterator<Item = &'a Arc<Run>> + Clone) -> (&'a [u8], &'a [u8]) {
    let first = runs
        .clone()
        .map(|run| run.summary().first_key.as_slice())
        .min();
    let last = runs.map(|run| run.summary().last_key.as_slice()).max();
    first.zip(last).expect("a plan has inputs")
}

/// The runs of `sorted` that overlap `run`.
fn overlapping_runs<'a>(sorted: &'a SortedRun, run: &Run) -> &'a [Arc<Run>] {
    let summary = run.summary();
    &sorted[overlapping(sorted, &summary.first_key, &summary.last_key)]
}
