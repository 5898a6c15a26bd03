//! A pass of reclaim that somebody has asked for, for room or for new keys: what it would do, doing it at the pace of
//! background work or at once.
//!
//! A pass at the normal pace is only a note that [`Store::tick`] reads: it empties what is worth emptying at all, where it
//! would otherwise leave some dead weight alone. It ends when nothing is left, or when as many segments have been emptied
//! as were to be when it began, since under load there are always more. It does not outlive the process.

use std::collections::HashMap;
use std::ops::ControlFlow;

use cfs_format::{SEGMENT_BYTES, SegmentSeq};
use cfs_kv::RunError;
use cfs_seal::codec::Codec;

use crate::clean::{Aim, Reseal, is_worthwhile};
use crate::error::{ReadError, WriteError};
use crate::space::State;
use crate::store::Store;

/// Chunks without references that a plan takes into account at most.
const DEAD_CHUNKS_MAX: usize = 1 << 16;
/// Segments that are emptied between two checkpoints.
const SEGMENTS_BETWEEN_CHECKPOINTS: u64 = 32;
/// Room without which nothing is sealed again: what is emptied between two checkpoints.
const RESEAL_ROOM_BYTES: u64 = SEGMENTS_BETWEEN_CHECKPOINTS * SEGMENT_BYTES as u64;

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

/// What a pass is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReclaimFor {
    /// Room: segments of which a twentieth is dead are emptied.
    Room,
    /// New keys: every chunk that is stored when the pass begins is sealed again, compressed with the codec if one is given.
    NewSeals(Option<Codec>),
}

/// How far a pass is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReclaimProgress {
    /// A pass is under way.
    pub is_running: bool,
    /// Segments that were to be emptied when it began.
    pub segments_total: u64,
    /// Segments that were to be sealed again and have not been.
    pub segments_left: u64,
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
    aim: Aim,
}

impl Pass {
    fn progress(&self, totals: ReclaimTotals) -> ReclaimProgress {
        ReclaimProgress {
            is_running: true,
            segments_total: self.segments_total,
            segments_left: 0,
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
    pub fn reclaim_plan(&self, what_for: ReclaimFor) -> Result<ReclaimPlan, ReadError> {
        let aim = match what_for {
            ReclaimFor::Room => Aim::Pass,
            ReclaimFor::NewSeals(codec) => Aim::Reseal(Reseal {
                before: SegmentSeq(u64::MAX),
                codec,
            }),
        };
        self.plan(aim)
    }

    fn plan(&self, aim: Aim) -> Result<ReclaimPlan, ReadError> {
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
        plan.bytes_on_the_way =
            space.pending_count() as u64 * segment_bytes + space.room.held_bytes();
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
            if is_worthwhile(&entry, aim) {
                plan.segments_to_empty += 1;
                plan.bytes_to_copy += live;
            }
        }
        // The copies take whole segments, at whose ends a little is left over.
        let copies = plan.bytes_to_copy.div_ceil(segment_bytes / 16 * 15);
        plan.bytes_to_free = plan.segments_to_empty.saturating_sub(copies) * segment_bytes;
        // A single segment that was ended early would only move.
        if plan.bytes_to_free == 0 && aim == Aim::Pass {
            plan.segments_to_empty = 0;
            plan.bytes_to_copy = 0;
        }
        Ok(plan)
    }

    /// Begins a pass, which [`Store::tick`] then does. When one is under way, one for room changes nothing, and one for new
    /// seals takes its place.
    ///
    /// # Errors
    /// The pool is read-only, or a table cannot be read.
    pub fn start_reclaim(&self, what_for: ReclaimFor) -> Result<(), WriteError> {
        self.pool.writable()?;
        let aim = self.aim_of_pass(what_for)?;
        let plan = self.plan(aim)?;
        let mut books = self.books.lock();
        if books.pass.is_none() || aim != Aim::Pass {
            books.pass = Some(Pass {
                before: books.totals,
                segments_total: plan.segments_to_empty,
                aim,
            });
        }
        Ok(())
    }

    /// What segments are emptied for in a pass that begins now.
    fn aim_of_pass(&self, what_for: ReclaimFor) -> Result<Aim, WriteError> {
        Ok(match what_for {
            ReclaimFor::Room => Aim::Pass,
            ReclaimFor::NewSeals(codec) => {
                let before = self.pool.next_segment_seq();
                // What is in open segments is to be sealed again too.
                self.lanes.seal_all()?;
                Aim::Reseal(Reseal { before, codec })
            }
        })
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

    /// Whether there is room to do something for this aim. What is sealed again may become longer, and is not to take what
    /// has been promised to others.
    pub(crate) fn has_room_for(&self, aim: Aim) -> bool {
        !matches!(aim, Aim::Reseal(_)) || self.available_bytes() >= RESEAL_ROOM_BYTES
    }

    /// What to empty segments for, if there is a pass whose segments have not all been emptied.
    pub(crate) fn aim_of_unfinished_pass(&self) -> Option<Aim> {
        let books = self.books.lock();
        let pass = books.pass?;
        let emptied = books.totals.segments - pass.before.segments;
        (pass.aim != Aim::Pass || emptied < pass.segments_total).then_some(pass.aim)
    }

    /// Segments that this aim asks for and that have not been emptied, for want of room or because they are in use.
    fn segments_left(&self, aim: Aim) -> u64 {
        let Aim::Reseal(reseal) = aim else {
            return 0;
        };
        let space = self.pool.space.lock();
        let left = space.entries().filter(|(_, entry)| {
            entry.is_data() && entry.live_bytes > 0 && entry.seq < reseal.before
        });
        left.count() as u64
    }

    pub(crate) fn has_pass(&self) -> bool {
        self.books.lock().pass.is_some()
    }

    /// Nothing is left to do for the pass, if there is one.
    pub(crate) fn end_pass(&self) {
        let Some(aim) = self.books.lock().pass.map(|pass| pass.aim) else {
            return;
        };
        let segments_left = self.segments_left(aim);
        let mut books = self.books.lock();
        if let Some(pass) = books.pass.take() {
            books.last = ReclaimProgress {
                is_running: false,
                segments_left,
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
        what_for: ReclaimFor,
        go_on: &mut dyn FnMut(ReclaimProgress) -> ControlFlow<()>,
    ) -> Result<ReclaimProgress, WriteError> {
        self.pool.writable()?;
        let pass = Pass {
            before: self.books.lock().totals,
            segments_total: 0,
            aim: self.aim_of_pass(what_for)?,
        };
        while self.drop_dead_chunks()? {
            if go_on(pass.progress(self.reclaim_totals())).is_break() {
                break;
            }
        }
        let pass = Pass {
            segments_total: self.plan(pass.aim)?.segments_to_empty,
            ..pass
        };
        let mut since_checkpoint = 0;
        let is_worth_it = pass.segments_total > 0;
        while is_worth_it && go_on(pass.progress(self.reclaim_totals())).is_continue() {
            let is_full = match self.clean_up_to(1, pass.aim) {
                _ if !self.has_room_for(pass.aim) && since_checkpoint > 0 => true,
                _ if !self.has_room_for(pass.aim) => break,
                Ok(0) => break,
                Ok(_) => false,
                Err(WriteError::NoSpace(_)) if since_checkpoint > 0 => true,
                Err(WriteError::NoSpace(_)) => break,
                Err(error) => return Err(error),
            };
            since_checkpoint += 1;
            if is_full || since_checkpoint == SEGMENTS_BETWEEN_CHECKPOINTS {
                self.checkpoint()?;
                since_checkpoint = 0;
            }
        }
        self.merge_removed()?;
        self.trim(usize::MAX, true)?;
        Ok(ReclaimProgress {
            is_running: false,
            segments_left: self.segments_left(pass.aim),
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
