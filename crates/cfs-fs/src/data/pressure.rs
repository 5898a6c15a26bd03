//! How long data may stay dirty, and how much of it there may be.
//!
//! Writers wait for room before they take any lock, so whoever makes room is never behind one that waits. Room comes
//! from jobs that end; while few are in flight, a writer that waits makes more of them from the file that has been
//! dirty for longest.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cfs_format::Ino;
use cfs_store::Health;
use parking_lot::{Mutex, MutexGuard, RwLock, RwLockWriteGuard};

use super::Core;
use super::body::{Body, FileState};
use super::commit::PASSING_SEAL_BYTES_MAX;
use super::flush::Take;
use crate::command::Command;
use crate::error::{FsError, Result};
use crate::lock;
use crate::types::Time;

/// How long a writer waits before it looks again whether it can make room itself.
const WAIT_FOR_ROOM: Duration = Duration::from_millis(20);

/// How long a writer waits while nothing that is dirty can be stored.
const PATIENCE: Duration = Duration::from_secs(20);

/// What may be dirty while a snapshot is about to be taken, bytes.
const LITTLE_DIRTY_BYTES: u64 = 2 << 20;

/// How often all that is dirty is written while a snapshot is about to be taken, at most.
const LITTLE_DIRTY_ROUNDS: usize = 8;

/// How often who waits for all jobs looks whether there are any.
const WAIT_FOR_JOBS: Duration = Duration::from_micros(100);

/// How long all jobs may take to become fewer.
const PATIENCE_WITH_JOBS: Duration = Duration::from_millis(500);

/// Files that may be dirty, those that became so first in front. Each is here at most once.
#[derive(Default)]
pub(super) struct DirtyList {
    files: Mutex<VecDeque<Arc<FileState>>>,
    /// Held shared by who has taken files out of the list, until their jobs are in flight or they are in the list again;
    /// alone by who must find them all.
    in_hand: RwLock<()>,
}

/// Dirty runs of a file that is flushed soon, at most.
const SOON_FLUSHED_RUNS_MAX: usize = 16;

impl Core {
    /// Whether anything has been accepted that is not stored yet.
    pub(crate) fn has_dirty(&self) -> bool {
        !self.dirty.files.lock().is_empty() || self.buffers.held_bytes() > 0
    }

    /// Notes that the file is dirty since now.
    pub(super) fn note_dirty(&self, file: &Arc<FileState>, body: &mut Body, now_ns: u64) {
        if body.dirty_since_ns == 0 {
            body.dirty_since_ns = now_ns.max(1);
        }
        if !body.listed {
            body.listed = true;
            self.dirty.files.lock().push_back(Arc::clone(file));
        }
    }

    /// Jobs have been taken out of the file's runs.
    pub(super) fn note_taken(&self, body: &mut Body) {
        body.dirty_since_ns = if body.is_dirty() {
            self.host.now_ns().max(1)
        } else {
            0
        };
    }

    /// Waits until `bytes` more may become dirty. They may when nothing is, however many they are.
    ///
    /// # Errors
    /// [`FsError::ReadOnly`] when there will never be room again.
    pub(super) fn wait_for_room(&self, bytes: u64) -> Result<()> {
        let full = || {
            let held = self.buffers.held_bytes();
            held > 0 && held + bytes > self.dirty_bytes_max()
        };
        let mut held_before = 0;
        let mut waited = Duration::ZERO;
        while full() {
            self.writable()?;
            let held = self.buffers.held_bytes();
            if held != held_before {
                held_before = held;
                waited = Duration::ZERO;
            } else if waited > PATIENCE {
                return Err(FsError::Io(
                    "data that were written before cannot be stored; see the log".into(),
                ));
            }
            waited += WAIT_FOR_ROOM;
            let flying = self.flying_bytes.load(Ordering::Relaxed);
            if flying < self.dirty_bytes_max() / 2 && self.relieve() {
                continue;
            }
            if flying == 0 && self.dirty.files.lock().is_empty() {
                // What is left is held by others that are just about to let go of it, or by failed jobs.
                self.buffers.wait_for_room(WAIT_FOR_ROOM, full);
                self.writable()?;
                if self.flying_bytes.load(Ordering::Relaxed) == 0 {
                    return Ok(());
                }
                continue;
            }
            self.buffers.wait_for_room(WAIT_FOR_ROOM, full);
        }
        Ok(())
    }

    /// # Errors
    /// [`FsError::ReadOnly`] when the store takes nothing any more.
    pub(super) fn writable(&self) -> Result<()> {
        match self.store.health() {
            Health::Good => Ok(()),
            Health::ReadOnly { reason } => Err(FsError::ReadOnly(reason)),
        }
    }

    /// Sends data of the file that has been dirty for longest on their way; false when there is none.
    fn relieve(&self) -> bool {
        loop {
            let in_hand = self.dirty.in_hand.read();
            let Some(file) = self.dirty.files.lock().pop_front() else {
                return false;
            };
            let mut body = file.lock();
            body.listed = false;
            let jobs = self.take(&file, &mut body, Take::Certain);
            if body.is_dirty() {
                let now_ns = self.host.now_ns();
                self.note_dirty(&file, &mut body, now_ns);
            }
            drop((body, in_hand));
            if !jobs.is_empty() {
                self.dispatch(&file, jobs);
                return true;
            }
        }
    }

    /// Sends what has been dirty for too long on its way.
    pub(super) fn flush_aged(&self) {
        let now_ns = self.host.now_ns();
        let count = self.dirty.files.lock().len();
        for _ in 0..count {
            let in_hand = self.dirty.in_hand.read();
            let Some(file) = self.dirty.files.lock().pop_front() else {
                return;
            };
            let mut body = file.lock();
            body.listed = false;
            if !body.is_dirty() {
                continue;
            }
            let due_ns = body.dirty_since_ns.saturating_add(self.flush_after_ns);
            if due_ns > now_ns {
                self.note_dirty(&file, &mut body, now_ns);
                continue;
            }
            let jobs = self.take(&file, &mut body, Take::AllJoiningTail);
            self.note_taken(&mut body);
            drop((body, in_hand));
            self.dispatch(&file, jobs);
        }
    }

    /// Sends all that is dirty of the file on its way.
    pub(super) fn begin_flush(&self, file: &Arc<FileState>, take: Take) {
        let mut body = file.lock();
        let jobs = self.take(file, &mut body, take);
        self.note_taken(&mut body);
        drop(body);
        self.dispatch(file, jobs);
    }

    /// Returns when all that was written to the file before the call is in the log, though perhaps not durable.
    ///
    /// # Errors
    /// What writing failed with, now or in the background since the last call; the data are kept.
    pub(crate) fn flush(&self, ino: Ino) -> Result<()> {
        let Some(file) = self.known(ino) else {
            return Ok(());
        };
        self.retry_failed(&file);
        let mut body = file.lock();
        let jobs = self.take(&file, &mut body, Take::All);
        if jobs.is_empty() && body.jobs.is_empty() {
            return body.take_error();
        }
        self.note_taken(&mut body);
        drop(body);
        self.dispatch_for_waiter(&file, jobs);
        let mut body = file.lock();
        self.wait_for_jobs(&file, &mut body)?;
        body.take_error()
    }

    /// Sends all that is dirty of the file on its way to the log, and does not wait for it, but for a small file whose
    /// data are sealed here. Errors stay with the file.
    pub(crate) fn hand_over(&self, ino: Ino) {
        let Some(file) = self.known(ino) else {
            return;
        };
        let mut body = file.lock();
        let jobs = self.take(&file, &mut body, Take::All);
        if !jobs.is_empty() {
            self.note_taken(&mut body);
            drop(body);
            self.dispatch_for_passer(&file, jobs);
        }
    }

    /// Whether anything is pending of the file.
    pub(crate) fn is_dirty(&self, ino: Ino) -> bool {
        self.known(ino).is_some_and(|file| {
            let body = file.lock();
            body.is_dirty() || !body.jobs.is_empty()
        })
    }

    /// Commits a command that gives the file another content and other attributes, while nobody writes to it.
    ///
    /// # Errors
    /// As [`Core::flush`], and what the command is refused with; nothing has changed then.
    pub(crate) fn change_at_rest(
        &self,
        ino: Ino,
        command: impl FnOnce(Time) -> Command,
    ) -> Result<()> {
        let file = self.file(ino);
        let barrier = Barrier::raise(&file);
        let mut body = self.at_rest(&file, &barrier)?;
        self.commit(&command(self.now()))?;
        // What it is now is read from the tables again.
        body.windows.clear();
        body.extents_only = false;
        body.identity = None;
        Ok(())
    }

    /// Commits a command that changes the lock of the file, while nobody writes to it.
    ///
    /// # Errors
    /// As [`Core::change_at_rest`].
    pub(crate) fn change_lock(&self, ino: Ino, command: &Command) -> Result<()> {
        let file = self.file(ino);
        let barrier = Barrier::raise(&file);
        let mut body = self.at_rest_as_is(&file, &barrier)?;
        self.commit(command)?;
        self.see_lock(ino, &mut body)
    }

    /// Looks at the lock of a file that has just been given its name.
    ///
    /// # Errors
    /// [`FsError::Read`].
    pub(crate) fn note_lock(&self, ino: Ino) -> Result<()> {
        match self.known(ino) {
            Some(file) => self.see_lock(ino, &mut file.lock()),
            None => Ok(()),
        }
    }

    fn see_lock(&self, ino: Ino, body: &mut Body) -> Result<()> {
        let found = self.views.find(ino)?.ok_or(FsError::NotFound)?;
        let lock = lock::committed(&self.views, found.place, &found.record)?;
        body.locked_until_ms = lock.map_or(0, |lock| lock.ends_ms());
        Ok(())
    }

    /// Whether [`Core::flush`] of the file is likely to be done soon, and by the caller: little is dirty, in few pieces, nothing
    /// is to be cut or in flight, and nobody else has the file. Waits for nothing.
    pub(crate) fn is_soon_flushed(&self, ino: Ino) -> bool {
        self.known(ino).is_none_or(|file| {
            file.try_lock().is_some_and(|body| {
                let is_little = body.run_bytes <= PASSING_SEAL_BYTES_MAX
                    && body.runs.len() <= SOON_FLUSHED_RUNS_MAX;
                is_little && body.pending.truncate_to.is_none() && body.jobs.is_empty()
            })
        })
    }

    /// Whether nothing but times is pending of the file.
    pub(crate) fn has_only_times(&self, ino: Ino) -> bool {
        self.known(ino).is_some_and(|file| {
            let body = file.lock();
            let times_only =
                body.runs.is_empty() && body.pending.truncate_to.is_none() && !body.pending.resized;
            times_only && body.jobs.is_empty() && body.error.is_none()
        })
    }

    /// Returns when all that was written to the file before the call is in the log, or cannot be. Errors stay with the
    /// file.
    pub(crate) fn settle_content(&self, ino: Ino) {
        let Some(file) = self.known(ino) else {
            return;
        };
        let mut body = file.lock();
        let jobs = self.take(&file, &mut body, Take::All);
        self.note_taken(&mut body);
        drop(body);
        self.dispatch_for_waiter(&file, jobs);
        let mut body = file.lock();
        if let Err(error) = self.wait_for_jobs(&file, &mut body) {
            body.error = Some(error);
        }
    }

    /// Bytes that may be dirty in memory.
    pub(super) fn dirty_bytes_max(&self) -> u64 {
        self.dirty_bytes_max.load(Ordering::Relaxed)
    }

    /// Lets little be dirty from now on, until the guard is dropped, and returns when no more is; or when writers do not
    /// let it come to that.
    ///
    /// # Errors
    /// As [`Core::flush_all`].
    pub(crate) fn keep_little_dirty(&self) -> Result<LittleDirty<'_>> {
        let before = self
            .dirty_bytes_max
            .fetch_min(LITTLE_DIRTY_BYTES, Ordering::Relaxed);
        let guard = LittleDirty { core: self, before };
        for _ in 0..LITTLE_DIRTY_ROUNDS {
            if self.buffers.held_bytes() <= LITTLE_DIRTY_BYTES {
                break;
            }
            self.flush_dirty()?;
        }
        Ok(guard)
    }

    /// Returns when all that has been accepted is in the log. What it takes depends on that alone, not on how many files
    /// are known.
    ///
    /// # Errors
    /// As [`Core::flush_all`].
    pub(crate) fn flush_dirty(&self) -> Result<()> {
        let in_hand = self.dirty.in_hand.write();
        let dirty = std::mem::take(&mut *self.dirty.files.lock());
        // What others take out from now on became dirty later.
        let in_hand = RwLockWriteGuard::downgrade(in_hand);
        for file in dirty {
            file.lock().listed = false;
            self.begin_flush(&file, Take::AllJoiningTail);
        }
        drop(in_hand);
        let mut held = self.flying_jobs.load(Ordering::Acquire);
        let mut waited = Duration::ZERO;
        while held > 0 {
            std::thread::sleep(WAIT_FOR_JOBS);
            let left = self.flying_jobs.load(Ordering::Acquire);
            waited = match left < held {
                true => Duration::ZERO,
                false => waited + WAIT_FOR_JOBS,
            };
            held = left;
            if waited > PATIENCE_WITH_JOBS {
                // Some have failed, or are slow.
                return self.flush_all();
            }
        }
        Ok(())
    }

    /// As [`Core::flush`] for every file.
    ///
    /// # Errors
    /// The first failure, after all others have been tried. The files that failed report it again.
    pub(crate) fn flush_all(&self) -> Result<()> {
        let files = self.all();
        for file in &files {
            self.retry_failed(file);
            self.begin_flush(file, Take::AllJoiningTail);
        }
        let mut failure = Ok(());
        for file in &files {
            let mut body = file.lock();
            if let Err(error) = self.wait_for_jobs(file, &mut body) {
                body.error = Some(error.clone());
                failure = failure.and(Err(error));
            }
        }
        failure
    }

    /// Comes back with the lock of a file that has nothing dirty and nothing in flight, from when on and until the
    /// lock and the returned guard are dropped nobody writes to it.
    ///
    /// # Errors
    /// As [`Core::flush`]; [`FsError::NoSpace`] where content that is inline finds no room elsewhere: nothing has changed then.
    pub(super) fn at_rest<'f>(
        &self,
        file: &'f Arc<FileState>,
        barrier: &Barrier<'f>,
    ) -> Result<MutexGuard<'f, Body>> {
        self.settled(file, barrier, |file, body| {
            self.own(file, body)?;
            if body.submitted_inline {
                self.check_lock(body)?;
                // It is to be a chunk, for which nobody has promised room: a job that found none would be in the way of each sync.
                self.promise(body, Body::bytes_to_admit(body.size, 1))?;
                self.absorb(body)?;
                body.extents_only = true;
            }
            Ok(())
        })
    }

    /// The same, with content that is inline left there.
    fn at_rest_as_is<'f>(
        &self,
        file: &'f Arc<FileState>,
        barrier: &Barrier<'f>,
    ) -> Result<MutexGuard<'f, Body>> {
        self.settled(file, barrier, |file, body| self.own(file, body))
    }

    fn settled<'f>(
        &self,
        file: &'f Arc<FileState>,
        barrier: &Barrier<'f>,
        prepare: impl Fn(&FileState, &mut Body) -> Result<()>,
    ) -> Result<MutexGuard<'f, Body>> {
        debug_assert!(Arc::ptr_eq(file, barrier.file));
        self.retry_failed(file);
        loop {
            let mut body = file.lock();
            self.load(file, &mut body)?;
            prepare(file, &mut body)?;
            let jobs = self.take(file, &mut body, Take::All);
            if jobs.is_empty() && body.jobs.is_empty() && !body.committing {
                return Ok(body);
            }
            self.note_taken(&mut body);
            drop(body);
            self.dispatch_for_waiter(file, jobs);
            let mut body = file.lock();
            self.wait_for_jobs(file, &mut body)?;
            while body.committing {
                file.wait(&mut body);
            }
        }
    }
}

/// Lets little be dirty as long as it lives.
pub(crate) struct LittleDirty<'c> {
    core: &'c Core,
    before: u64,
}

impl Drop for LittleDirty<'_> {
    fn drop(&mut self) {
        self.core
            .dirty_bytes_max
            .fetch_max(self.before, Ordering::Relaxed);
    }
}

/// Keeps writers of a file waiting.
pub(super) struct Barrier<'f> {
    file: &'f Arc<FileState>,
}

impl<'f> Barrier<'f> {
    pub(super) fn raise(file: &'f Arc<FileState>) -> Self {
        file.lock().barriers += 1;
        Self { file }
    }
}

impl Drop for Barrier<'_> {
    fn drop(&mut self) {
        self.file.lock().barriers -= 1;
        self.file.notify();
    }
}
