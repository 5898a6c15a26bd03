//! When recounts are made: some while after a pool was opened that had not been closed, or whose last recount has found
//! something; else once a week. They begin while nobody uses the pool and go on more slowly when somebody does. One that
//! is under way when the pool is closed begins anew another time; so does one that keeps room from being freed.

use cfs_format::table::RecountRecord;
use parking_lot::Mutex;

use super::{Recount, RecountProgress, RecountReport};
use crate::Fs;
use crate::error::Result;

const SECOND_NS: u64 = 1_000_000_000;
/// After this time a pool that is due is recounted, so that short uses of a pool are not burdened.
const AFTER_OPEN_NS: u64 = 60 * SECOND_NS;
/// Between two recounts.
const PERIOD_NS: u64 = 7 * 24 * 3600 * SECOND_NS;
/// After one that could not go on.
const RETRY_NS: u64 = 24 * 3600 * SECOND_NS;
/// After one that was given up for want of room.
const RETRY_FOR_ROOM_NS: u64 = 3600 * SECOND_NS;
/// Rows in one tick, while nobody uses the pool and while somebody does.
const ROWS_IDLE: usize = 8192;
const ROWS_BUSY: usize = 1024;
/// With less room than this no views are held.
const ROOM_BYTES: u64 = 32 << 20;

/// Recounts in the background.
#[derive(Default)]
pub(crate) struct Recounts(Mutex<Schedule>);

#[derive(Default)]
struct Schedule {
    running: Option<Recount>,
    /// When the next one is to begin; 0 when that has not been looked at.
    due_ns: u64,
    /// Why the last one could not go on.
    failed: Option<String>,
    /// How far those are that were asked for, the newest last.
    asked_for: Vec<(u64, RecountProgress)>,
    /// Counts those that were asked for.
    asked_count: u64,
}

/// What is known of recounts, for `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecountStatus {
    /// How far the one is that is under way: the newest that was asked for, or the one in the background.
    pub running: Option<RecountProgress>,
    /// What the last one has found; all zero when there was none.
    pub last: RecountRecord,
    /// Why the last one in the background could not go on.
    pub failed: Option<String>,
}

impl Recounts {
    /// Whether one is under way in the background.
    pub(crate) fn is_running(&self) -> bool {
        self.0.lock().running.is_some()
    }
}

/// A recount that was asked for, in `status` as long as this lives.
struct Shown<'a> {
    recounts: &'a Recounts,
    number: u64,
}

impl<'a> Shown<'a> {
    fn begin(recounts: &'a Recounts, progress: RecountProgress) -> Self {
        let mut schedule = recounts.0.lock();
        schedule.asked_count += 1;
        let number = schedule.asked_count;
        schedule.asked_for.push((number, progress));
        Self { recounts, number }
    }

    fn set(&self, progress: RecountProgress) {
        let mut schedule = self.recounts.0.lock();
        let mut shown = schedule.asked_for.iter_mut();
        if let Some((_, shown)) = shown.find(|(number, _)| *number == self.number) {
            *shown = progress;
        }
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        let mut schedule = self.recounts.0.lock();
        schedule
            .asked_for
            .retain(|(number, _)| *number != self.number);
    }
}

impl Fs {
    /// Recounts all references now. `go_on` is told now and then how far it is and says whether to go on; `None` when it
    /// did not want to. What was found is kept for [`Fs::recount_status`].
    ///
    /// # Errors
    /// When a table cannot be read, or chunks that nothing refers to cannot be dropped.
    pub fn recount(
        &self,
        mut go_on: impl FnMut(RecountProgress) -> bool,
    ) -> Result<Option<RecountReport>> {
        let mut recount = Recount::begin(&self.store);
        let shown = Shown::begin(&self.recounts, recount.progress());
        loop {
            let progress = recount.progress();
            shown.set(progress);
            if !go_on(progress) {
                return Ok(None);
            }
            if let Some(report) = recount.step(&self.store, ROWS_IDLE)? {
                drop(recount);
                self.note_recount(&report);
                return Ok(Some(report));
            }
        }
    }

    /// What is known of recounts.
    #[must_use]
    pub fn recount_status(&self) -> RecountStatus {
        let schedule = self.recounts.0.lock();
        RecountStatus {
            running: (schedule.asked_for.last())
                .map(|(_, progress)| *progress)
                .or_else(|| schedule.running.as_ref().map(Recount::progress)),
            last: self.store.recount_record(),
            failed: schedule.failed.clone(),
        }
    }

    /// Gives up the recount that is under way; its views would hold room when the pool is closed.
    pub(crate) fn stop_recount(&self) {
        self.recounts.0.lock().running = None;
    }

    fn note_recount(&self, report: &RecountReport) {
        let now_ns = self.host.now_ns();
        self.store.set_recount_record(report.record(now_ns));
        for finding in &report.findings {
            tracing::error!("recount: {finding}");
        }
        tracing::info!(
            references = report.references,
            chunks = report.chunks,
            differing = report.differing,
            freed = report.freed,
            "references have been recounted"
        );
    }

    /// Begins a recount when one is due, and takes a step of the one that is under way.
    pub(crate) fn recount_some(&self) {
        let mut schedule = self.recounts.0.lock();
        let now_ns = self.host.now_ns();
        if schedule.due_ns == 0 {
            let last = self.store.recount_record();
            let is_doubtful = self.store.was_unclean() || last.differing.get() > 0;
            let regular = last.finished_ns.get().saturating_add(PERIOD_NS);
            schedule.due_ns = match is_doubtful || last.finished_ns.get() == 0 {
                true => now_ns + AFTER_OPEN_NS,
                false => regular.max(now_ns + AFTER_OPEN_NS),
            };
        }
        let is_idle = self.store.is_idle();
        if schedule.running.is_none() && (now_ns < schedule.due_ns || !is_idle) {
            return;
        }
        if self.store.available_bytes() < ROOM_BYTES {
            schedule.running = None;
            schedule.due_ns = now_ns + RETRY_FOR_ROOM_NS;
            return;
        }
        let recount = schedule
            .running
            .get_or_insert_with(|| Recount::begin(&self.store));
        let rows = if is_idle { ROWS_IDLE } else { ROWS_BUSY };
        match recount.step(&self.store, rows) {
            Ok(None) => {}
            Ok(Some(report)) => {
                schedule.running = None;
                schedule.due_ns = now_ns + PERIOD_NS;
                schedule.failed = None;
                self.note_recount(&report);
            }
            Err(error) => {
                tracing::error!(%error, "references cannot be recounted");
                schedule.running = None;
                schedule.due_ns = now_ns + RETRY_NS;
                schedule.failed = Some(error.to_string());
            }
        }
    }
}
