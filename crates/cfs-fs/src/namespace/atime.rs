//! Access times, which reading changes: kept in memory and written in batches, so that a read costs no command.
//!
//! A crash loses at most [`WRITE_AFTER_MS`] of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use cfs_format::Ino;
use parking_lot::Mutex;

use crate::Fs;
use crate::command::Command;
use crate::error::{FsError, Result};
use crate::types::{AtimePolicy, Time};

/// Age at which the oldest pending time is written.
const WRITE_AFTER_MS: u64 = 30_000;
/// Pending times at which they are written at once.
const PENDING_MAX: usize = 4096;
/// Times in one command.
const BATCH_MAX: usize = 1024;

/// Access times that are not yet in the tables.
#[derive(Default)]
pub(crate) struct PendingTimes {
    state: Mutex<State>,
    /// Length of the map, to look at without the lock.
    count: AtomicUsize,
}

#[derive(Default)]
struct State {
    times: HashMap<Ino, Time>,
    /// When the oldest came, nanoseconds since 1970.
    since_ns: u64,
}

impl PendingTimes {
    /// The inode's pending access time.
    pub(crate) fn get(&self, ino: Ino) -> Option<Time> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.state.lock().times.get(&ino).copied()
    }

    /// Whether any are to be written.
    pub(crate) fn has_some(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    pub(crate) fn forget(&self, ino: Ino) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut state = self.state.lock();
        state.times.remove(&ino);
        self.count.store(state.times.len(), Ordering::Release);
    }

    fn set(&self, ino: Ino, time: Time, now_ns: u64) {
        let mut state = self.state.lock();
        if state.times.is_empty() {
            state.since_ns = now_ns;
        }
        state.times.insert(ino, time);
        self.count.store(state.times.len(), Ordering::Release);
    }

    /// Up to [`BATCH_MAX`] times, which stay pending.
    fn batch(&self) -> Vec<(Ino, Time)> {
        let state = self.state.lock();
        let mut batch: Vec<_> = state
            .times
            .iter()
            .map(|(ino, time)| (*ino, *time))
            .collect();
        batch.sort_unstable();
        batch.truncate(BATCH_MAX);
        batch
    }

    /// Forgets times that have been written, unless they have changed since.
    fn written(&self, batch: &[(Ino, Time)], now_ns: u64) {
        let mut state = self.state.lock();
        for (ino, time) in batch {
            if state.times.get(ino) == Some(time) {
                state.times.remove(ino);
            }
        }
        state.since_ns = now_ns;
        self.count.store(state.times.len(), Ordering::Release);
    }

    fn is_due(&self, now_ns: u64) -> bool {
        let count = self.count.load(Ordering::Acquire);
        if count == 0 {
            return false;
        }
        let age_ns = now_ns.saturating_sub(self.state.lock().since_ns);
        count >= PENDING_MAX || age_ns >= WRITE_AFTER_MS * 1_000_000
    }
}

impl Fs {
    /// Notes that the inode was read, as far as the policy wants to know.
    ///
    /// # Errors
    /// [`FsError::Read`].
    pub(crate) fn touch_atime(&self, ino: Ino) -> Result<()> {
        let now_ns = self.host.now_ns();
        if self.atime_changes(ino, now_ns)? {
            self.atimes.set(ino, Time::from_ns(now_ns), now_ns);
        }
        Ok(())
    }

    /// Whether reading the inode now would change its access time. A front end that has content cached must then
    /// read here all the same.
    ///
    /// # Errors
    /// [`FsError::Read`].
    pub fn atime_is_due(&self, ino: Ino) -> Result<bool> {
        self.atime_changes(ino, self.host.now_ns())
    }

    fn atime_changes(&self, ino: Ino, now_ns: u64) -> Result<bool> {
        if ino.view().is_some() {
            return Ok(false);
        }
        // What a clone has from its origin is not copied for having been read.
        if ino.cloned().is_some() && self.views.place(ino)?.at.is_some() {
            return Ok(false);
        }
        match self.options.atime {
            AtimePolicy::Noatime => return Ok(false),
            AtimePolicy::Strict => return Ok(true),
            AtimePolicy::Relatime => {}
        }
        let attr = match self.getattr(ino) {
            Ok(attr) => attr,
            Err(FsError::NotFound) => return Ok(false),
            Err(error) => return Err(error),
        };
        let now = Time::from_ns(now_ns);
        let recent = attr.atime.seconds.saturating_add(24 * 3600) > now.seconds;
        Ok(!recent || attr.atime <= attr.mtime || attr.atime <= attr.ctime)
    }

    /// Writes pending access times if they are old or many.
    pub(crate) fn write_atimes_if_due(&self) -> Result<()> {
        if self.atimes.is_due(self.host.now_ns()) {
            self.write_atimes()?;
        }
        Ok(())
    }

    /// Writes all pending access times. On a store that is full or read-only they stay pending.
    pub(crate) fn write_atimes(&self) -> Result<()> {
        while self.atimes.count.load(Ordering::Acquire) > 0 {
            let mut batch = Vec::new();
            // Taken while the writer lock is held: a time that somebody sets is in the tables or has taken the
            // pending one away.
            let logged = self.execute(|_, _| {
                batch = self.atimes.batch();
                Ok(Command::TouchTimes(batch.clone()))
            });
            match logged {
                Ok(_) => self.atimes.written(&batch, self.host.now_ns()),
                Err(FsError::NoSpace | FsError::ReadOnly(_)) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
