//! What is in memory of one file: content that is not in the tables yet, and how the layers above the tables lie on
//! each other.
//!
//! From the newest to the oldest, a byte of the file is in
//! 1. the dirty runs, unless beyond the size;
//! 2. nothing (a hole), when it is at or beyond the pending truncation;
//! 3. the jobs in flight, newest first, each with its own truncation in front of what is older;
//! 4. the inline content or the extents in the tables.
//!
//! Invariants:
//! - Dirty runs are not empty, do not overlap, and end at or before `size`. Two may touch.
//! - Jobs are committed in the order of their numbers, one at a time. While one is being committed it is still in
//!   flight; reading it on top of its own effect shows the same.
//! - When content was inline when it was last submitted and anything has changed since, the runs hold all of it
//!   (`absorbed`).
//! - `size` is what callers see; `submitted_size` what the tables will say when all jobs are committed;
//!   `committed_size` what they say now.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use cfs_format::table::InodeRecord;
use cfs_format::{DomainId, Ino, VolumeId};
use cfs_seal::keys::FileKey;
use cfs_store::{ChunkPin, NewChunk, Reservation};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::buffer::{BUFFER_BYTES_MAX, Buffer, Buffers};
use super::quota::Growth;
use super::read::Readers;
use super::windows::Windows;
use crate::error::{FsError, Result};
use crate::extent::Extent;
use crate::inode;
use crate::types::Time;
use crate::views::Place;

/// Room that is promised beside its bytes for a piece of data that will become a chunk of its own, bytes.
const PIECE_OVERHEAD_BYTES: u64 = 8 << 10;

/// A file with something in memory.
pub(crate) struct FileState {
    pub(crate) ino: Ino,
    body: Mutex<Body>,
    /// Something that others wait for has happened: a job is done or has failed, a barrier is gone.
    changed: Condvar,
    /// When it was last asked for, in ticks.
    pub(crate) used_at: AtomicU64,
    /// How often it is open.
    pub(crate) opens: AtomicU32,
}

/// What does not change in the life of an inode.
pub(crate) struct Identity {
    pub(crate) volume: VolumeId,
    pub(crate) domain: DomainId,
    /// Where its rows are.
    pub(crate) place: Place,
    pub(crate) file_key: FileKey,
}

/// Changes that wait for the next job.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pending {
    /// The smallest size since the last job, if something is to be cut off.
    pub(crate) truncate_to: Option<u64>,
    /// The size has changed without data at its end.
    pub(crate) resized: bool,
    pub(crate) stamp: Stamp,
}

/// What a change of content does to the attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// New `mtime` and `ctime`.
    pub(crate) time: Option<Time>,
    pub(crate) kill_suid_sgid: bool,
}

impl Stamp {
    pub(crate) fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Data that belong together in a file, cut into chunks.
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) buffer: Arc<Buffer>,
    /// Where in the buffer it starts.
    pub(crate) start: usize,
    /// Lengths of its chunks.
    pub(crate) cuts: Vec<usize>,
    pub(crate) len: usize,
}

impl Piece {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.start + self.len]
    }

    pub(crate) fn end(&self) -> u64 {
        self.offset + self.len as u64
    }
}

/// One command's worth of changes of a file, on its way.
pub(crate) struct Job {
    pub(crate) number: u64,
    pub(crate) truncate_to: Option<u64>,
    pub(crate) size: u64,
    pub(crate) stamp: Mutex<Stamp>,
    /// The whole content; there are no pieces then.
    pub(crate) inline: Option<Vec<u8>>,
    /// In order, disjoint.
    pub(crate) pieces: Vec<Piece>,
    pub(crate) bytes: u64,
    /// Sum of the `bytes` of all jobs of all files.
    pub(crate) flying_bytes: Arc<AtomicU64>,
    /// How many jobs of all files there are.
    pub(crate) flying_jobs: Arc<AtomicU64>,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.flying_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.flying_jobs.fetch_sub(1, Ordering::Release);
    }
}

/// What sealing a job has given.
pub(crate) struct Sealed {
    pub(crate) extents: Vec<Extent>,
    pub(crate) chunks: Vec<NewChunk>,
    /// Keep the chunks until the command is committed.
    pub(crate) pins: Vec<ChunkPin>,
}

/// How far a job is.
pub(crate) enum Progress {
    /// It is, or will be, sealed by a lane or a caller.
    Sealing,
    Sealed(Sealed),
    Committing,
    /// Sealing failed; the next flush tries again.
    Failed,
}

pub(crate) struct InFlight {
    pub(crate) job: Arc<Job>,
    pub(crate) progress: Progress,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Body {
    /// None until the inode has been read.
    pub(crate) identity: Option<Identity>,
    /// The inode is gone, or going: nothing is written any more.
    pub(crate) gone: bool,
    /// When its lock ends, milliseconds since 1970; writing is refused until then.
    pub(crate) locked_until_ms: u64,
    pub(crate) size: u64,
    pub(crate) submitted_size: u64,
    pub(crate) committed_size: u64,
    pub(crate) submitted_inline: bool,
    pub(crate) committed_inline: bool,
    pub(crate) absorbed: bool,
    /// The next job may not put the content inline.
    pub(crate) extents_only: bool,
    /// What callers see as `mtime` and `ctime` while it is pending or in flight.
    pub(crate) stamp: Stamp,
    pub(crate) pending: Pending,
    pub(crate) runs: BTreeMap<u64, Buffer>,
    pub(crate) run_bytes: u64,
    pub(crate) jobs: VecDeque<InFlight>,
    pub(crate) jobs_made: u64,
    pub(crate) committing: bool,
    /// A job has failed; it stays in flight until a flush tries again.
    pub(crate) stalled: bool,
    /// A failure that no caller has been told of.
    pub(crate) error: Option<FsError>,
    /// Operations that wait for the file to come to rest; writers wait for them.
    pub(crate) barriers: u32,
    /// Where the last content-defined cut of a stream was made: a run that starts here starts a chunk.
    pub(crate) cut_at: Option<u64>,
    pub(crate) dirty_since_ns: u64,
    /// It is in the list of dirty files.
    pub(crate) listed: bool,
    /// When it was last written to, nanoseconds since 1970.
    pub(crate) written_ns: u64,
    /// When the access time was last looked at, nanoseconds since 1970; 0 when it must be looked at again.
    pub(crate) atime_checked_ns: u64,
    pub(crate) reservation: Option<Reservation>,
    /// What is held of the volume's quota.
    pub(crate) growth: Option<Growth>,
    pub(crate) windows: Windows,
    pub(crate) readers: Readers,
}

impl FileState {
    pub(crate) fn new(ino: Ino) -> Arc<Self> {
        Arc::new(Self {
            ino,
            body: Mutex::new(Body::default()),
            changed: Condvar::new(),
            used_at: AtomicU64::new(0),
            opens: AtomicU32::new(0),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Body> {
        self.body.lock()
    }

    /// The lock, unless somebody has it.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, Body>> {
        self.body.try_lock()
    }

    /// Waits until something has happened to the file.
    pub(crate) fn wait(&self, body: &mut MutexGuard<'_, Body>) {
        self.changed.wait(body);
    }

    pub(crate) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Whether nothing would be lost by forgetting this state.
    pub(crate) fn is_idle(&self) -> bool {
        self.body.try_lock().is_some_and(|body| {
            !body.is_dirty()
                && body.jobs.is_empty()
                && body.barriers == 0
                && body.error.is_none()
                && !body.listed
        })
    }
}

impl Body {
    /// Whether there is something for a job.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.runs.is_empty()
            || self.pending.resized
            || self.pending.truncate_to.is_some()
            || !self.pending.stamp.is_none()
    }

    /// Whether it is loaded, nothing is pending or in flight, and what the tables have of it are extents.
    pub(crate) fn is_at_rest(&self) -> bool {
        let is_pending = self.is_dirty() || !self.jobs.is_empty() || self.committing;
        // Of no bytes it makes no difference.
        let is_inline = self.committed_inline && self.committed_size > 0;
        self.identity.is_some() && !self.gone && !is_pending && !is_inline
    }

    /// Whether it is loaded, and its rows are those of a snapshot.
    pub(crate) fn shows_snapshot(&self) -> bool {
        let identity = self.identity.as_ref();
        identity.is_some_and(|identity| identity.place.at.is_some())
    }

    pub(crate) fn identity(&self) -> &Identity {
        self.identity
            .as_ref()
            .expect("loaded before anything else is done")
    }

    /// Bytes of `[offset, offset + len)` that no run holds, and the number of pieces that they would begin.
    pub(crate) fn gaps_in_runs(&self, offset: u64, len: u64) -> (u64, u64) {
        let end = offset + len;
        let before = self.runs.range(..=offset).next_back();
        let mut covered_to = before.map_or(offset, |(start, run)| {
            (start + run.len() as u64).clamp(offset, end)
        });
        let appends = before.is_some_and(|(start, run)| start + run.len() as u64 >= offset);
        let mut gap = 0;
        let pieces = u64::from(!appends);
        for (start, run) in self.runs.range(offset + 1..end) {
            gap += start.saturating_sub(covered_to);
            covered_to = covered_to.max((start + run.len() as u64).min(end));
        }
        (gap + end - covered_to, pieces)
    }

    /// Puts `data` at `offset` into the runs. `full` is called with the start of each run that has become as large as
    /// a buffer; it must take something away from its front.
    pub(crate) fn put(
        &mut self,
        buffers: &Arc<Buffers>,
        offset: u64,
        data: &[u8],
        mut full: impl FnMut(&mut Self, u64),
    ) {
        let end = offset + data.len() as u64;
        let mut at = offset;
        while at < end {
            let rest = &data[(at - offset) as usize..];
            let (before, next) = self.neighbours(at);
            if let Some((start, run_end)) = before
                && at < run_end
            {
                let len = rest.len().min((run_end - at) as usize);
                let run = self.runs.get_mut(&start).expect("found just above");
                run.overwrite((at - start) as usize, &rest[..len]);
                at += len as u64;
                continue;
            }
            let gap = rest
                .len()
                .min((next.unwrap_or(u64::MAX) - at).min(usize::MAX as u64) as usize);
            let start = match before {
                Some((start, run_end)) if run_end == at && self.runs[&start].room() > 0 => start,
                _ => {
                    let capacity = match self.cut_at {
                        Some(cut_at) if cut_at == at => BUFFER_BYTES_MAX,
                        _ => gap.min(BUFFER_BYTES_MAX),
                    };
                    self.runs.insert(at, buffers.take(capacity));
                    at
                }
            };
            let run = self.runs.get_mut(&start).expect("found or made just above");
            let len = gap.min(run.room());
            run.extend(&rest[..len]);
            let is_full = run.room() == 0;
            self.run_bytes += len as u64;
            at += len as u64;
            self.size = self.size.max(at);
            if is_full {
                full(self, start);
            }
        }
    }

    /// Start and end of the run that starts at or before `at`, and the start of the next one.
    fn neighbours(&self, at: u64) -> (Option<(u64, u64)>, Option<u64>) {
        let before = self
            .runs
            .range(..=at)
            .next_back()
            .map(|(start, run)| (*start, start + run.len() as u64));
        let next = self.runs.range(at + 1..).next().map(|(start, _)| *start);
        (before, next)
    }

    /// Takes the run at `start` out.
    pub(crate) fn take_run(&mut self, start: u64) -> Option<Buffer> {
        let run = self.runs.remove(&start)?;
        self.run_bytes -= run.len() as u64;
        Some(run)
    }

    /// Takes all runs out.
    pub(crate) fn take_runs(&mut self) -> BTreeMap<u64, Buffer> {
        self.run_bytes = 0;
        std::mem::take(&mut self.runs)
    }

    /// Puts back a run that was taken out, or a part of it.
    pub(crate) fn insert_run(&mut self, start: u64, run: Buffer) {
        self.run_bytes += run.len() as u64;
        let before = self.runs.insert(start, run);
        assert!(before.is_none(), "runs do not overlap");
    }

    /// Changes the size that callers see, and cuts the runs.
    pub(crate) fn resize(&mut self, size: u64) {
        if size < self.size {
            let beyond = self.runs.split_off(&size);
            let mut dropped: u64 = beyond.values().map(|run| run.len() as u64).sum();
            if let Some((start, run)) = self.runs.range_mut(..size).next_back() {
                let len = run.len().min((size - start) as usize);
                dropped += (run.len() - len) as u64;
                run.truncate(len);
            }
            self.run_bytes -= dropped;
            if size < self.submitted_size {
                let cut = self.pending.truncate_to.unwrap_or(u64::MAX).min(size);
                self.pending.truncate_to = Some(cut);
            }
            if self.cut_at.is_some_and(|cut| cut > size) {
                self.cut_at = None;
            }
        }
        self.size = size;
        self.pending.resized = true;
    }

    /// The inode is gone: what is dirty is dropped.
    pub(crate) fn abandon(&mut self) {
        self.gone = true;
        self.take_runs();
        self.pending = Pending::default();
        self.error = None;
        self.stalled = false;
        self.growth = None;
        self.settle_reservation();
    }

    /// Room that must be promised for what is dirty and in flight, bytes.
    pub(crate) fn needed_bytes(&self) -> u64 {
        let flying: u64 = self
            .jobs
            .iter()
            .map(|flight| flight.job.bytes + flight.job.pieces.len() as u64 * PIECE_OVERHEAD_BYTES)
            .sum();
        self.run_bytes + self.runs.len() as u64 * PIECE_OVERHEAD_BYTES + flying
    }

    /// Room for `bytes` more in `pieces` more pieces.
    pub(crate) fn bytes_to_admit(bytes: u64, pieces: u64) -> u64 {
        #[cfg(feature = "planted-bugs")]
        if cfs_format::planted::has(cfs_format::planted::Bug::RoomForgotten) {
            return bytes / 8;
        }
        bytes + pieces * PIECE_OVERHEAD_BYTES
    }

    /// Gives back promised room, and of the quota, what is not needed any more.
    pub(crate) fn settle_reservation(&mut self) {
        let needed = self.needed_bytes();
        if needed == 0 {
            self.reservation = None;
        } else if let Some(reservation) = &mut self.reservation {
            reservation.shrink_to(needed);
        }
        let growth = self.size.saturating_sub(self.committed_size);
        if growth == 0 {
            self.growth = None;
        } else if let Some(held) = &mut self.growth {
            held.shrink_to(growth);
        }
    }

    /// The time and mode change that callers see: pending, or of the newest job.
    pub(crate) fn visible_stamp(&self) -> Stamp {
        if self.jobs.is_empty() && self.pending.stamp.is_none() {
            Stamp::default()
        } else {
            self.stamp
        }
    }

    /// Puts what is pending over the committed record.
    pub(crate) fn overlay(&self, record: &mut InodeRecord) {
        if self.identity.is_none() || (self.jobs.is_empty() && !self.is_dirty()) {
            return;
        }
        let flying: u64 = self.jobs.iter().map(|flight| flight.job.bytes).sum();
        let new = self.run_bytes + flying;
        let allocated = record.allocated.get();
        record.allocated = (allocated + new).min(self.size.max(allocated)).into();
        record.size = self.size.into();
        let stamp = self.visible_stamp();
        if let Some(time) = stamp.time {
            record.mtime = time.into();
            record.ctime = time.into();
        }
        if stamp.kill_suid_sgid {
            inode::kill_suid_sgid(record);
        }
    }

    /// The error that no caller has been told of, once.
    pub(crate) fn take_error(&mut self) -> Result<()> {
        match self.error.take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// # Panics
    /// When an invariant of the module does not hold.
    #[cfg(test)]
    pub(crate) fn validate(&self) {
        let mut end = 0;
        let mut bytes = 0;
        for (start, run) in &self.runs {
            assert!(*start >= end && !run.is_empty());
            end = start + run.len() as u64;
            bytes += run.len() as u64;
        }
        assert!(end <= self.size);
        assert_eq!(bytes, self.run_bytes);
        assert!(
            self.jobs
                .iter()
                .is_sorted_by_key(|flight| flight.job.number)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(seed: &mut u64) -> u64 {
        *seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        *seed >> 33
    }

    /// Writes and truncations against a map of bytes. Full runs lose their first half, as when chunks are cut.
    #[test]
    fn runs_hold_the_newest_bytes() {
        for first_seed in 1..4_u64 {
            let mut seed = first_seed;
            let buffers = Buffers::new(16 << 20);
            let mut body = Body::default();
            let mut model: Vec<Option<u8>> = Vec::new();
            for step in 0..300 {
                let offset = next(&mut seed) % (24 << 20);
                if next(&mut seed).is_multiple_of(20) {
                    body.resize(offset);
                    model.resize(offset as usize, None);
                } else {
                    let max = if next(&mut seed).is_multiple_of(8) {
                        6 << 20
                    } else {
                        300 << 10
                    };
                    let len = 1 + next(&mut seed) % max;
                    let data = vec![step as u8; len as usize];
                    let end = (offset + len) as usize;
                    model.resize(model.len().max(end), None);
                    let (gap, _) = body.gaps_in_runs(offset, len);
                    let new = model[offset as usize..end]
                        .iter()
                        .filter(|byte| byte.is_none())
                        .count();
                    assert_eq!(gap, new as u64, "seed {first_seed}");
                    model[offset as usize..end].fill(Some(step as u8));
                    body.put(&buffers, offset, &data, |body, start| {
                        let run = body.take_run(start).expect("the full run");
                        let half = run.len() / 2;
                        let mut rest = buffers.take(run.len() - half);
                        rest.extend(&run[half..]);
                        body.insert_run(start + half as u64, rest);
                        model[start as usize..start as usize + half].fill(None);
                    });
                }
                body.validate();
            }
            let mut found = vec![None; model.len()];
            for (start, run) in &body.runs {
                for (index, byte) in run.iter().enumerate() {
                    found[*start as usize + index] = Some(*byte);
                }
            }
            assert!(found == model, "seed {first_seed}");
            assert_eq!(body.size, model.len() as u64);
        }
    }
}
