//! A pass of reclaim that somebody has asked for: what it would do, doing it at the pace of background work or at once.
//!
//! A pass at the normal pace is only a note that [`Store::tick`] reads: it empties what is worth emptying at all, where it
//! would otherwise leave some dead weight alone. It ends when nothing is left, or when as many segments have been emptied
//! as were to be when it began, since under load there are always more. It does not outlive the process.

use std::collections::HashMap;
use std::ops::ControlFlow;

use cfs_format::SEGMENT_BYTES;
use cfs_kv::RunError;

use crate::clean::{Aim, is_worthwhile};
use crate::error::{ReadError, WriteError};
use crate::space::State;
use crate::store::Store;

/// Chunks without references that a plan takes into account at most.
const DEAD_CHUNKS_MAX: usize = 1 << 16;
/// Segments that are emptied between two checkpoints.
const SEGMENTS_BETWEEN_CHECKPOINTS: u64 = 32;

/// Data segments of which a certain part is live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentsOfTenth {
    /// Segments.
    pub segments: u64,
    /// Bytes written to them.
    pub used_bytes: u64,
    /// Those that are live.
    pub live_bytes: u64,
}

/// What a pass would do now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReclaimPlan {
    /// Data segments by the tenth of what was written to them that is live: up to 10 %, up to 20 %, and so on.
    pub tenths: [SegmentsOfTenth; 10],
    /// Segments that would be emptied; none when no bytes would come free.
    pub segments_to_empty: u64,
    /// Bytes that would be copied out of them.
    pub bytes_to_copy: u64,
    /// Bytes that would come free.
    pub bytes_to_free: u64,
    /// Bytes of segments that are empty already and become free without a pass.
    pub bytes_on_the_way: u64,
}

/// What reclaim has done since the pool was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReclaimTotals {
    /// Segments emptied by copying.
    pub segments: u64,
    /// Bytes of records copied.
    pub copied_bytes: u64,
    /// Chunks that left the index.
    pub dropped_chunks: u64,
}

/// How far a pass is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReclaimProgress {
    /// A pass is under way.
    pub is_running: bool,
    /// Segments that were to be emptied when it began.
    pub segments_total: u64,
    /// What it has done so far.
    pub done: ReclaimTotals,
}

/// The books of reclaim.
#[derive(Debug, Default)]
pub(crate) struct Books {
    pub totals: ReclaimTotals,
    pass: Option<Pass>,
    /// The last pass, once it has ended.
    last: ReclaimProgress,
}

#[derive(Clone, Copy, Debug)]
struct Pass {
    before: ReclaimTotals,
    segments_total: u64,
}

impl Pass {
    fn progress(&self, totals: ReclaimTotals) -> ReclaimProgress {
        ReclaimProgress {
            is_running: true,
            segments_total: self.segments_total,
            done: ReclaimTotals {
                segments: totals.segments - self.before.segments,
                copied_bytes: totals.copied_bytes - self.before.copied_bytes,
                dropped_chunks: totals.dropped_chunks - self.before.dropped_chunks,
            },
        }
    }
}

impl Store {
    /// What a pass would do now. Changes nothing.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn reclaim_plan(&self) -> Result<ReclaimPlan, ReadError> {
        let segment_bytes = u64::from(SEGMENT_BYTES);
        let mut dying_bytes: HashMap<u32, u64> = HashMap::new();
        for fingerprint in self.dead_chunks(DEAD_CHUNKS_MAX)? {
            if let Some(record) = self.chunk_record(&fingerprint)? {
                *dying_bytes.entry(record.segment.get()).or_default() +=
                    u64::from(record.record_len.get());
            }
        }
        let mut plan = ReclaimPlan::default();
        let space = self.pool.space.lock();
        plan.bytes_on_the_way = space.pending_count() as u64 * segment_bytes + space.held_bytes();
        for (segment, entry) in space.entries() {
            let mut entry = *entry;
            if let Some(bytes) = dying_bytes.get(&segment.0) {
                let bytes = u32::try_from(*bytes).unwrap_or(u32::MAX);
                entry.live_bytes = entry.live_bytes.saturating_sub(bytes);
                if entry.live_bytes == 0 {
                    plan.bytes_on_the_way += segment_bytes;
                    continue;
                }
            }
            if !entry.is_data() || !matches!(entry.state, State::Full(_)) || entry.used_bytes == 0 {
                continue;
            }
            let (live, used) = (u64::from(entry.live_bytes), u64::from(entry.used_bytes));
            let tenth = (live * 10).div_ceil(used).clamp(1, 10) as usize;
            let of_tenth = &mut plan.tenths[tenth - 1];
            of_tenth.segments += 1;
            of_tenth.used_bytes += used;
            of_tenth.live_bytes += live;
            if is_worthwhile(&entry) {
                plan.segments_to_empty += 1;
                plan.bytes_to_copy += live;
            }
        }
        // The copies take whole segments, at whose ends a little is left over.
        let copies = plan.bytes_to_copy.div_ceil(segment_bytes / 16 * 15);
        plan.bytes_to_free = plan.segments_to_empty.saturating_sub(copies) * segment_bytes;
        // A single segment that was ended early would only move.
        if plan.bytes_to_free == 0 {
            plan.segments_to_empty = 0;
            plan.bytes_to_copy = 0;
        }
        Ok(plan)
    }

    /// Begins a pass, which [`Store::tick`] then does; nothing happens when one is under way.
    ///
    /// # Errors
    /// The pool is read-only, or a table cannot be read.
    pub fn start_reclaim(&self) -> Result<(), WriteError> {
        self.pool.writable()?;
        let plan = self.reclaim_plan()?;
        let mut books = self.books.lock();
        let before = books.totals;
        books.pass.get_or_insert(Pass {
            before,
            segments_total: plan.segments_to_empty,
        });
        Ok(())
    }

    /// How far the pass is; when none is under way, what the last one has done.
    #[must_use]
    pub fn reclaim_progress(&self) -> ReclaimProgress {
        let books = self.books.lock();
        match &books.pass {
            Some(pass) => pass.progress(books.totals),
            None => books.last,
        }
    }

    /// What reclaim has done since the pool was opened, whoever asked for it.
    #[must_use]
    pub fn reclaim_totals(&self) -> ReclaimTotals {
        self.books.lock().totals
    }

    /// Whether there is a pass whose segments have not all been emptied.
    pub(crate) fn pass_wants_more(&self) -> bool {
        let books = self.books.lock();
        books
            .pass
            .is_some_and(|pass| books.totals.segments - pass.before.segments < pass.segments_total)
    }

    pub(crate) fn has_pass(&self) -> bool {
        self.books.lock().pass.is_some()
    }

    /// Nothing is left to do for the pass, if there is one.
    pub(crate) fn end_pass(&self) {
        let mut books = self.books.lock();
        if let Some(pass) = books.pass.take() {
            books.last = ReclaimProgress {
                is_running: false,
                ..pass.progress(books.totals)
            };
        }
    }

    /// Does a whole pass at once and in this thread, without regard to others. `go_on` is told how far it is after each
    /// segment and says whether to go on; what has been done by then stays done.
    ///
    /// # Errors
    /// The pool is, or goes, read-only, or a table cannot be read.
    pub fn reclaim_now(
        &self,
        go_on: &mut dyn FnMut(ReclaimProgress) -> ControlFlow<()>,
    ) -> Result<ReclaimProgress, WriteError> {
        self.pool.writable()?;
        let pass = Pass {
            before: self.books.lock().totals,
            segments_total: 0,
        };
        while self.drop_dead_chunks()? {
            if go_on(pass.progress(self.reclaim_totals())).is_break() {
                break;
            }
        }
        let pass = Pass {
            segments_total: self.reclaim_plan()?.segments_to_empty,
            ..pass
        };
        let mut emptied = 0;
        let is_worth_it = pass.segments_total > 0;
        while is_worth_it && go_on(pass.progress(self.reclaim_totals())).is_continue() {
            match self.clean_up_to(1, Aim::Pass) {
                Ok(0) | Err(WriteError::NoSpace(_)) => break,
                Ok(_) => emptied += 1,
                Err(error) => return Err(error),
            }
            if emptied % SEGMENTS_BETWEEN_CHECKPOINTS == 0 {
                self.checkpoint()?;
            }
        }
        self.merge_removed()?;
        self.trim(usize::MAX, true)?;
        Ok(ReclaimProgress {
            is_running: false,
            ..pass.progress(self.reclaim_totals())
        })
    }

    /// Makes a checkpoint, merges what has been removed out of the tables if it is much, and makes another then.
    fn merge_removed(&self) -> Result<(), WriteError> {
        let mut maintenance = self.maintenance.lock();
        self.checkpoint_now(&mut maintenance)?;
        let mut has_merged = maintenance.has_merged;
        while self.has_tombstones() {
            match self.compact_step(true) {
                Ok(true) => has_merged = true,
                Ok(false) | Err(RunError::NoSpace) => break,
                Err(error) => return Err(error.into()),
            }
        }
        if has_merged {
            self.checkpoint_now(&mut maintenance)?;
        }
        Ok(())
    }
}
