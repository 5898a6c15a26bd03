//! Removing inodes that have no name and are not open, in bounded steps.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use cfs_format::Ino;
use cfs_format::table::{split_key, system_key, tag};
use parking_lot::Mutex;

use crate::Fs;
use crate::apply::{EXTENTS_WITH_UNLINK_MAX, Lost, Outcome};
use crate::command::{Command, Reap};
use crate::error::{FsError, Result};

/// Extents that one command frees.
const EXTENTS_MAX: u32 = 1000;
/// Commands in one tick.
const STEPS_MAX: usize = 16;

/// Inodes that wait for their removal. Each has an `ORPHAN` row, so that the queue is found again after a crash.
#[derive(Default)]
pub(crate) struct Reaper {
    queue: Mutex<VecDeque<Ino>>,
    /// Held by who has taken one out of the queue, until it is gone or in the queue again.
    turn: Mutex<()>,
    /// How many steps have been taken.
    steps: AtomicU64,
}

impl Reaper {
    pub(crate) fn push(&self, ino: Ino) {
        self.queue.lock().push_back(ino);
    }

    /// Whether any wait.
    pub(crate) fn has_some(&self) -> bool {
        let _turn = self.turn.lock();
        !self.queue.lock().is_empty()
    }
}

impl Fs {
    /// Queues what an earlier run left without a name.
    pub(crate) fn queue_orphans(&self) -> Result<()> {
        let lo = system_key(tag::ORPHAN, &[]);
        let hi = system_key(tag::ORPHAN + 1, &[]);
        for row in self.store.range(&lo, &hi) {
            let (key, _) = row.map_err(cfs_store::ReadError::from)?;
            let (_, _, suffix) = split_key(&key)?;
            let ino = suffix
                .try_into()
                .map_err(|_| FsError::damaged("the key of an orphan"))?;
            self.reaper.push(Ino(u64::from_be_bytes(ino)));
        }
        Ok(())
    }

    /// Takes the first step of removing an inode that nobody refers to any more, which is all for most; the rest is left
    /// to [`Fs::tick`].
    pub(super) fn reap_at_once(&self, ino: Ino) {
        match self.reap_step(ino, EXTENTS_WITH_UNLINK_MAX) {
            Ok(Some(Lost::Orphaned(_))) => {
                self.drop_memory(ino);
                self.reaper.push(ino);
            }
            Ok(Some(Lost::Removed(_))) => self.drop_memory(ino),
            // It has a name again, or somebody has opened it: what was written to it counts.
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(inode = ino.0, %error, "tried again later");
                self.reaper.push(ino);
            }
        }
    }

    /// Removes all that is queued, for who needs the room at once. Whether there was anything.
    pub(crate) fn reap_all(&self) -> Result<bool> {
        let before = self.reaper.steps.load(Ordering::Relaxed);
        self.reap_all_since(before)
    }

    /// As [`Fs::reap_all`]: whether anything has been removed since there had been so many steps.
    fn reap_all_since(&self, before: u64) -> Result<bool> {
        while self.reaper.has_some() {
            self.reap_some()?;
        }
        Ok(self.reaper.steps.load(Ordering::Relaxed) != before)
    }

    /// Does what asks for room or quota. Where there is none, what has been removed and not been given back yet is, and it
    /// is tried once more.
    ///
    /// # Errors
    /// As `change`; what giving back meets.
    pub(crate) fn with_room<T>(&self, mut change: impl FnMut() -> Result<T>) -> Result<T> {
        let before = self.reaper.steps.load(Ordering::Relaxed);
        match change() {
            // Of a large file, or a snapshot, that was just deleted most is still there.
            Err(FsError::NoSpace) if self.reap_all_since(before)? | self.prune_all()? => change(),
            // No quota counts what is left of snapshots.
            Err(FsError::Quota) if self.reap_all_since(before)? => change(),
            changed => changed,
        }
    }

    /// Takes some steps of removing queued inodes.
    pub(crate) fn reap_some(&self) -> Result<()> {
        let mut first_error = Ok(());
        for _ in 0..STEPS_MAX {
            let _turn = self.reaper.turn.lock();
            let Some(ino) = self.reaper.queue.lock().pop_front() else {
                break;
            };
            match self.reap_step(ino, EXTENTS_MAX) {
                Ok(Some(Lost::Orphaned(ino))) => self.reaper.queue.lock().push_front(ino),
                Ok(Some(Lost::Removed(_)) | None) => {}
                // One that is damaged must not keep the others.
                Err(error) => {
                    self.reaper.push(ino);
                    first_error = first_error.and(Err(error));
                }
            }
        }
        first_error
    }

    /// One step for one inode; if it is open, the last release queues it again.
    fn reap_step(&self, ino: Ino, extents_max: u32) -> Result<Option<Lost>> {
        let mut txn = self.store.begin();
        if !self.opens.begin_removal(ino) {
            return Ok(None);
        }
        let command = Command::Reap(Reap { ino, extents_max });
        let stepped =
            crate::apply::apply(&mut txn, &command).and_then(|Outcome { lost, .. }| {
                txn.commit(&command.encode())?;
                Ok(lost)
            });
        self.opens.end_removal(ino);
        self.reaper.steps.fetch_add(1, Ordering::Relaxed);
        stepped
    }
}
