//! Jobs in flight: sealed by a lane of the pool, or by the caller where a hop to another thread would cost more than
//! the work; committed when all earlier jobs of the file are.
//!
//! A job that fails stays where it is, readable; the next flush of the file tries again.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cfs_format::Ino;
use cfs_seal::codec::Codec;
use cfs_store::Health;
use parking_lot::MutexGuard;

use super::Core;
use super::body::{Body, FileState, Job, Progress, Sealed, Stamp};
use crate::command::{Command, Write};
use crate::error::{FsError, Result};
use crate::extent::{Extent, last_extents_start};
use crate::{apply, inode};

/// A job up to this size is sealed by the caller that waits for it, bytes.
const INLINE_SEAL_BYTES_MAX: u64 = 512 << 10;

/// A job up to this size is sealed by the caller that does not wait for it, bytes.
pub(super) const PASSING_SEAL_BYTES_MAX: u64 = 64 << 10;

/// Extents that one command cuts off at most; the rest is cut in commands before it.
const TRUNCATE_EXTENTS_MAX: usize = 16 << 10;

impl Core {
    /// Has jobs sealed and committed: by the pool, or before this returns if there is none.
    pub(super) fn dispatch(&self, file: &Arc<FileState>, jobs: Vec<Arc<Job>>) {
        for job in jobs {
            if job.pieces.is_empty() || !self.lanes.submit(file, &job) {
                self.run(file, &job, self.callers_lane());
            }
        }
    }

    /// As [`Core::dispatch`], for a caller that will wait: what is small is done here.
    pub(super) fn dispatch_for_waiter(&self, file: &Arc<FileState>, jobs: Vec<Arc<Job>>) {
        self.dispatch_or_run(file, jobs, INLINE_SEAL_BYTES_MAX);
    }

    /// As [`Core::dispatch`], for a caller that has other things to do soon: what takes no longer than waking a thread is
    /// done here.
    pub(super) fn dispatch_for_passer(&self, file: &Arc<FileState>, jobs: Vec<Arc<Job>>) {
        self.dispatch_or_run(file, jobs, PASSING_SEAL_BYTES_MAX);
    }

    fn dispatch_or_run(&self, file: &Arc<FileState>, jobs: Vec<Arc<Job>>, run_bytes_max: u64) {
        match &jobs[..] {
            [job] if job.bytes <= run_bytes_max => self.run(file, job, self.callers_lane()),
            _ => self.dispatch(file, jobs),
        }
    }

    /// A lane for a thread that is none of the pool's.
    pub(super) fn callers_lane(&self) -> usize {
        let (threads, lanes) = (self.lanes.thread_count(), self.store.lanes());
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        if lanes > threads {
            threads + turn % (lanes - threads)
        } else {
            turn % lanes
        }
    }

    /// Seals a job, and commits what can be committed of its file.
    pub(super) fn run(&self, file: &Arc<FileState>, job: &Job, lane: usize) {
        let sealed = self.seal(file, job, lane);
        let mut body = file.lock();
        let Some(flight) = body
            .jobs
            .iter_mut()
            .find(|flight| flight.job.number == job.number)
        else {
            return;
        };
        match sealed {
            Ok(sealed) => flight.progress = Progress::Sealed(sealed),
            Err(error) => {
                flight.progress = Progress::Failed;
                self.stall(file, &mut body, error);
            }
        }
        self.commit_ready(file, body);
    }

    fn stall(&self, file: &FileState, body: &mut Body, error: FsError) {
        tracing::error!(ino = file.ino.0, %error, "data could not be written; they are kept in memory");
        body.stalled = true;
        body.error = Some(error);
        file.notify();
    }

    fn seal(&self, file: &FileState, job: &Job, lane: usize) -> Result<Sealed> {
        let chunk_count = job.pieces.iter().map(|piece| piece.cuts.len()).sum();
        let mut sealed = Sealed {
            extents: Vec::with_capacity(chunk_count),
            chunks: Vec::with_capacity(chunk_count),
            pins: Vec::with_capacity(chunk_count),
        };
        if job.pieces.is_empty() {
            return Ok(sealed);
        }
        let (domain, codec) = {
            let body = file.lock();
            let identity = body.identity();
            let volume = self.store.volume(identity.volume).ok_or_else(|| {
                FsError::damaged(format_args!("volume {} is missing", identity.volume))
            })?;
            let codec = Codec::from_numbers(volume.codec, volume.codec_level)
                .ok_or_else(|| FsError::damaged("a volume has an unknown codec"))?;
            (identity.domain, codec)
        };
        for piece in &job.pieces {
            let bytes = piece.bytes();
            let mut at = 0;
            for len in &piece.cuts {
                let pin = self
                    .store
                    .put_chunk(lane, domain, codec, &bytes[at..at + len])?;
                sealed.extents.push(Extent {
                    offset: piece.offset + at as u64,
                    len: *len as u32,
                    chunk_offset: 0,
                    chunk_len: *len as u32,
                    domain,
                    fingerprint: *pin.fingerprint(),
                });
                sealed.chunks.extend(pin.new_chunk());
                sealed.pins.push(pin);
                at += len;
            }
        }
        Ok(sealed)
    }

    /// Commits the oldest jobs that are sealed, in order. One thread at a time does so for a file.
    pub(super) fn commit_ready<'f>(&self, file: &'f FileState, mut body: MutexGuard<'f, Body>) {
        if body.committing || body.stalled {
            return;
        }
        body.committing = true;
        while let Some(flight) = body
            .jobs
            .front_mut()
            .filter(|flight| matches!(flight.progress, Progress::Sealed(_)))
        {
            let Progress::Sealed(sealed) =
                std::mem::replace(&mut flight.progress, Progress::Committing)
            else {
                unreachable!("matched just above");
            };
            let job = Arc::clone(&flight.job);
            let (committed_size, gone) = (body.committed_size, body.gone);
            drop(body);
            let result = if gone {
                Err(FsError::NotFound)
            } else {
                self.commit_job(file.ino, &job, &sealed, committed_size)
            };
            body = file.lock();
            match result {
                Ok(()) => self.committed(&mut body, &job, &sealed),
                Err(FsError::NotFound) => {
                    // The inode was removed meanwhile, and what was written to it with it.
                    body.jobs.clear();
                    body.abandon();
                }
                Err(FsError::Locked) => self.refuse(file, &mut body),
                Err(error) => {
                    if let Some(flight) = body.jobs.front_mut() {
                        flight.progress = Progress::Sealed(sealed);
                    }
                    self.stall(file, &mut body, error);
                    break;
                }
            }
            file.notify();
        }
        body.committing = false;
        drop(body);
        file.notify();
    }

    /// Drops what is dirty of a file, as it was locked after that had been accepted; the next caller is told.
    fn refuse(&self, file: &FileState, body: &mut Body) {
        body.jobs.clear();
        body.abandon();
        // Without its record it stays as good as gone.
        if let Ok(Some(record)) = inode::committed(&self.store, file.ino)
            && self.show(file.ino, body, &record).is_ok()
        {
            body.gone = false;
            body.absorbed = false;
            body.stamp = Stamp::default();
            body.error = Some(FsError::Locked);
        }
    }

    fn committed(&self, body: &mut Body, job: &Job, sealed: &Sealed) {
        body.jobs.pop_front();
        let keeps_content = job.truncate_to.is_none()
            && sealed.extents.is_empty()
            && job.inline.is_none()
            && job.size == body.committed_size;
        if !keeps_content {
            body.committed_inline = job.inline.is_some();
        }
        if let Some(cut) = job.truncate_to {
            body.windows.invalidate(cut, u64::MAX);
        }
        if job.inline.is_some() {
            body.windows.clear();
        }
        for piece in &job.pieces {
            body.windows.invalidate(piece.offset, piece.end());
        }
        body.committed_size = job.size;
        body.settle_reservation();
    }

    fn commit_job(&self, ino: Ino, job: &Job, sealed: &Sealed, committed_size: u64) -> Result<()> {
        if let Some(cut) = job.truncate_to {
            self.cut_long_file(ino, cut, committed_size)?;
        }
        #[cfg(feature = "planted-bugs")]
        if cfs_format::planted::has(cfs_format::planted::Bug::TruncateBeforeContent)
            && let Some(cut) = job.truncate_to
        {
            self.commit(&Command::Write(Write {
                ino,
                truncate_to: Some(cut),
                size: cut,
                mtime: None,
                ctime: None,
                kill_suid_sgid: false,
                inline: None,
                extents: Vec::new(),
                chunks: Vec::new(),
            }))?;
        }
        let stamp = *job.stamp.lock();
        self.commit(&Command::Write(Write {
            ino,
            truncate_to: job.truncate_to,
            size: job.size,
            mtime: stamp.time,
            ctime: stamp.time,
            kill_suid_sgid: stamp.kill_suid_sgid,
            inline: job.inline.clone(),
            extents: sealed.extents.clone(),
            chunks: sealed.chunks.clone(),
        }))
    }

    /// Cuts a file with very many extents beyond `cut` from its end in several commands, so that none holds up
    /// others for long. A crash in between leaves a part of the old content.
    fn cut_long_file(&self, ino: Ino, cut: u64, committed_size: u64) -> Result<()> {
        let mut size = committed_size;
        while cut < size {
            let start = last_extents_start(&*self.store, ino, size, TRUNCATE_EXTENTS_MAX)?;
            if start <= cut {
                break;
            }
            self.commit(&Command::Write(Write {
                ino,
                truncate_to: Some(start),
                size: start,
                mtime: None,
                ctime: None,
                kill_suid_sgid: false,
                inline: None,
                extents: Vec::new(),
                chunks: Vec::new(),
            }))?;
            size = start;
        }
        Ok(())
    }

    /// Applies and logs a command.
    pub(super) fn commit(&self, command: &Command) -> Result<()> {
        let bytes = command.encode();
        let mut txn = self.store.begin();
        apply::apply(&mut txn, command)?;
        let is_unbound = match command {
            Command::CloneRange(clone) => self.quotas.is_unbound(clone.target),
            _ => false,
        };
        if !command.was_accepted() && !is_unbound {
            self.quotas.check(&txn)?;
        }
        txn.commit(&bytes)?;
        Ok(())
    }

    /// The same, whatever quotas say.
    pub(super) fn commit_unbound(&self, command: &Command) -> Result<()> {
        let mut txn = self.store.begin();
        apply::apply(&mut txn, command)?;
        txn.commit(&command.encode())?;
        Ok(())
    }

    /// Tries failed jobs again, unless the store has become read-only.
    pub(super) fn retry_failed(&self, file: &Arc<FileState>) {
        let mut body = file.lock();
        if !body.stalled || self.store.health() != Health::Good {
            return;
        }
        body.stalled = false;
        let failed: Vec<_> = body
            .jobs
            .iter_mut()
            .filter(|flight| matches!(flight.progress, Progress::Failed))
            .map(|flight| {
                flight.progress = Progress::Sealing;
                Arc::clone(&flight.job)
            })
            .collect();
        self.commit_ready(file, body);
        self.dispatch(file, failed);
    }

    /// Waits until no job that was made before the call is in flight.
    ///
    /// # Errors
    /// What a job failed with; it stays in flight.
    pub(super) fn wait_for_jobs(
        &self,
        file: &FileState,
        body: &mut MutexGuard<'_, Body>,
    ) -> Result<()> {
        let made = body.jobs_made;
        while body
            .jobs
            .front()
            .is_some_and(|flight| flight.job.number < made)
        {
            if body.stalled {
                return Err(self.stalled_error(body));
            }
            file.wait(body);
        }
        Ok(())
    }

    /// The error of a file with a failed job; later calls get one too, as the data are still not written.
    pub(super) fn stalled_error(&self, body: &mut Body) -> FsError {
        match (body.error.take(), self.store.health()) {
            (Some(error), _) => error,
            (None, Health::ReadOnly { reason }) => FsError::ReadOnly(reason),
            (None, Health::Good) => FsError::Io("data could not be written before".into()),
        }
    }

    /// Moves pending times into a command of their own, so that what follows in the log is newer.
    ///
    /// # Errors
    /// As a commit; the times are pending still.
    pub(crate) fn settle_times(&self, ino: Ino) -> Result<()> {
        let Some(file) = self.known(ino) else {
            return Ok(());
        };
        let mut body = file.lock();
        while body.committing {
            file.wait(&mut body);
        }
        body.atime_checked_ns = 0;
        let stamp = body.visible_stamp();
        if stamp.is_none() || body.gone {
            return Ok(());
        }
        self.commit(&Command::Write(Write {
            ino,
            truncate_to: None,
            size: body.committed_size,
            mtime: stamp.time,
            ctime: stamp.time,
            kill_suid_sgid: stamp.kill_suid_sgid,
            inline: None,
            extents: Vec::new(),
            chunks: Vec::new(),
        }))?;
        body.pending.stamp = Stamp::default();
        body.stamp = Stamp::default();
        for flight in &body.jobs {
            *flight.job.stamp.lock() = Stamp::default();
        }
        Ok(())
    }
}
