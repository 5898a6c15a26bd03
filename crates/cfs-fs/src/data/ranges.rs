//! Operations on ranges of files: truncate, allocate, punch, shift, copy by reference, seek.
//!
//! Truncation is pending like data are, so that a file that is replaced by truncating and writing it changes in one
//! command. The others are commands of their own, on files at rest.

use std::sync::Arc;

use cfs_format::{DomainId, Ino, VolumeId};

use super::Core;
use super::body::{Body, FileState, Identity};
use super::pressure::Barrier;
use crate::command::{CloneRange, Command, Punch, Shift};
use crate::error::{FsError, Result};
use crate::extent::{FILE_BYTES_MAX, INLINE_BYTES_MAX, SHIFT_EXTENTS_MAX, scan};
use crate::types::Time;

/// Extents that one command frees or copies at most.
const STEP_EXTENTS_MAX: usize = 2048;

/// Bytes that are read and written at once where chunks are not shared.
const COPY_STEP_BYTES: u64 = 1 << 20;

/// Extents that one step of looking for a hole passes at most.
const SEEK_EXTENTS_MAX: usize = 4096;

/// Room that a command which adds extents may need for them, bytes.
const STEP_ADMITTED_BYTES: u64 = 512 << 10;

/// Alignment of ranges that are cut out or made room for, as other file systems ask for it, bytes.
const SHIFT_ALIGN_BYTES: u64 = 4096;

/// What [`crate::Fs::fallocate`] does with the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocateMode {
    /// Makes sure that there is room for it now. Without `keep_size` the file reaches its end at least.
    Allocate {
        /// Leave the size alone.
        keep_size: bool,
    },
    /// Makes a hole of it.
    Punch,
    /// Makes it read as zeros. Without `keep_size` the file reaches its end at least.
    Zero {
        /// Leave the size alone.
        keep_size: bool,
    },
    /// Takes it out; what is behind it moves down.
    Collapse,
    /// Makes room for it; what is at or behind its start moves up.
    Insert,
}

impl AllocateMode {
    /// The mode with these `FALLOC_FL_*` flags (fallocate(2)); none if they are not offered.
    #[must_use]
    pub fn from_flags(flags: i32) -> Option<Self> {
        const PUNCH_KEEPING: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        const ZERO_KEEPING: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        match flags {
            0 => Some(Self::Allocate { keep_size: false }),
            libc::FALLOC_FL_KEEP_SIZE => Some(Self::Allocate { keep_size: true }),
            PUNCH_KEEPING => Some(Self::Punch),
            libc::FALLOC_FL_ZERO_RANGE => Some(Self::Zero { keep_size: false }),
            ZERO_KEEPING => Some(Self::Zero { keep_size: true }),
            libc::FALLOC_FL_COLLAPSE_RANGE => Some(Self::Collapse),
            libc::FALLOC_FL_INSERT_RANGE => Some(Self::Insert),
            _ => None,
        }
    }
}

impl Core {
    /// Changes the size. What is beyond it is gone; what is added is a hole.
    ///
    /// # Errors
    /// [`FsError::TooLarge`], [`FsError::ReadOnly`], [`FsError::NotFound`], [`FsError::Invalid`].
    pub(crate) fn truncate(
        &self,
        ino: Ino,
        size: u64,
        now: Time,
        kill_suid_sgid: bool,
    ) -> Result<()> {
        if size > FILE_BYTES_MAX {
            return Err(FsError::TooLarge);
        }
        self.writable()?;
        let file = self.file(ino);
        let mut body = self.lock_to_resize(&file, size)?;
        self.stamp(&mut body, now, kill_suid_sgid);
        body.resize(size);
        body.settle_reservation();
        let now_ns = self.host.now_ns();
        self.note_dirty(&file, &mut body, now_ns);
        Ok(())
    }

    /// See [`AllocateMode`].
    ///
    /// # Errors
    /// [`FsError::Invalid`], [`FsError::NoSpace`], [`FsError::TooLarge`], [`FsError::NotSupported`] (more extents
    /// would move than one command takes), [`FsError::ReadOnly`].
    pub(crate) fn allocate(
        &self,
        ino: Ino,
        mode: AllocateMode,
        offset: u64,
        len: u64,
        kill_suid_sgid: bool,
    ) -> Result<()> {
        if len == 0 {
            return Err(FsError::Invalid);
        }
        let end = offset
            .checked_add(len)
            .filter(|end| *end <= FILE_BYTES_MAX)
            .ok_or(FsError::TooLarge)?;
        self.writable()?;
        match mode {
            AllocateMode::Allocate { keep_size } => {
                // Only the room is looked at: content-addressed data cannot be given room before they are known.
                if len > self.store.available_bytes() {
                    return Err(FsError::NoSpace);
                }
                let size = if keep_size { 0 } else { end };
                self.extend(ino, size, kill_suid_sgid)
            }
            AllocateMode::Punch => self.punch(ino, offset, end, kill_suid_sgid),
            AllocateMode::Zero { keep_size } => {
                if !keep_size {
                    // A quota refuses it before anything has changed.
                    let file = self.file(ino);
                    self.lock_to_resize(&file, end)?.settle_reservation();
                }
                self.punch(ino, offset, end, kill_suid_sgid)?;
                if keep_size {
                    return Ok(());
                }
                self.extend(ino, end, kill_suid_sgid)
            }
            AllocateMode::Collapse => self.shift(ino, offset, len, false, kill_suid_sgid),
            AllocateMode::Insert => self.shift(ino, offset, len, true, kill_suid_sgid),
        }
    }

    /// Makes the file at least `size` long. That it was allocated counts as a change, also where it is so long.
    fn extend(&self, ino: Ino, size: u64, kill_suid_sgid: bool) -> Result<()> {
        let file = self.file(ino);
        let mut body = self.lock_to_resize(&file, size)?;
        let now_ns = self.host.now_ns();
        self.stamp(&mut body, Time::from_ns(now_ns), kill_suid_sgid);
        if size > body.size {
            body.resize(size);
        }
        self.note_dirty(&file, &mut body, now_ns);
        Ok(())
    }

    /// Where the step ends that begins at `at` and shows at most `STEP_EXTENTS_MAX` extents.
    fn step_end(&self, body: &Body, at: u64, end: u64) -> Result<u64> {
        let Identity {
            file_key, place, ..
        } = body.identity();
        scan(&self.views.extents(place.at), place.ino, file_key, at, end)
            .nth(STEP_EXTENTS_MAX)
            .map_or(Ok(end), |next| next.map(|extent| extent.offset))
    }

    fn punch(&self, ino: Ino, offset: u64, end: u64, kill_suid_sgid: bool) -> Result<()> {
        let file = self.file(ino);
        let barrier = Barrier::raise(&file);
        let mut body = self.at_rest(&file, &barrier)?;
        let end = end.min(body.size);
        let mut at = offset;
        while at < end {
            let step_end = self.step_end(&body, at, end)?;
            self.commit(&Command::Punch(Punch {
                ino,
                offset: at,
                len: step_end - at,
                size: body.size,
                now: self.now(),
                kill_suid_sgid,
            }))?;
            body.windows.invalidate(at, step_end);
            at = step_end;
        }
        Ok(())
    }

    fn shift(
        &self,
        ino: Ino,
        offset: u64,
        len: u64,
        insert: bool,
        kill_suid_sgid: bool,
    ) -> Result<()> {
        if !offset.is_multiple_of(SHIFT_ALIGN_BYTES) || !len.is_multiple_of(SHIFT_ALIGN_BYTES) {
            return Err(FsError::Invalid);
        }
        let file = self.file(ino);
        let (_, volume) = self.owner_of(&file)?;
        if insert && !self.quotas.has_room(&self.store, volume, len) {
            self.flush_all()?;
        }
        let barrier = Barrier::raise(&file);
        let mut body = self.at_rest(&file, &barrier)?;
        let fits = if insert {
            offset < body.size
        } else {
            offset + len < body.size
        };
        if !fits {
            return Err(FsError::Invalid);
        }
        let size = if insert {
            body.size + len
        } else {
            body.size - len
        };
        if size > FILE_BYTES_MAX {
            return Err(FsError::TooLarge);
        }
        let file_key = &body.identity().file_key;
        let moved = scan(&*self.store, ino, file_key, offset, body.size);
        if moved.take(SHIFT_EXTENTS_MAX + 1).count() > SHIFT_EXTENTS_MAX {
            return Err(FsError::NotSupported);
        }
        let _room = self.store.admit(STEP_ADMITTED_BYTES)?;
        self.commit(&Command::Shift(Shift {
            ino,
            offset,
            len,
            insert,
            now: self.now(),
            kill_suid_sgid,
        }))?;
        body.windows.clear();
        set_size(&mut body, size);
        Ok(())
    }

    /// Has `len` bytes of `target` from `target_offset` show what is in `source` from `source_offset`. Returns how
    /// many bytes that were; fewer at the end of the source.
    ///
    /// # Errors
    /// [`FsError::Invalid`] (the ranges overlap in one file, or no regular files), [`FsError::TooLarge`],
    /// [`FsError::NoSpace`], [`FsError::ReadOnly`], [`FsError::NotFound`]. A part may have been copied.
    pub(crate) fn copy_range(
        &self,
        source: Ino,
        source_offset: u64,
        target: Ino,
        target_offset: u64,
        len: u64,
    ) -> Result<u64> {
        let ends = |offset: u64| {
            offset
                .checked_add(len)
                .filter(|end| *end <= FILE_BYTES_MAX)
                .ok_or(FsError::TooLarge)
        };
        let (source_end, target_end) = (ends(source_offset)?, ends(target_offset)?);
        if source == target && source_offset < target_end && target_offset < source_end {
            return Err(FsError::Invalid);
        }
        self.writable()?;
        let source_file = self.file(source);
        let target_file = self.file(target);
        if let Some(content) = self.small_content(&source_file)? {
            let end = content
                .len()
                .min(usize::try_from(source_end).unwrap_or(usize::MAX));
            let start = end.min(usize::try_from(source_offset).unwrap_or(usize::MAX));
            let written = self.write(target, target_offset, &content[start..end], false)?;
            return Ok(written as u64);
        }

        let (domain, _) = self.owner_of(&source_file)?;
        let (target_domain, volume) = self.owner_of(&target_file)?;
        if !self.quotas.is_unbound(target) && !self.quotas.has_room(&self.store, volume, len) {
            self.flush_all()?;
        }
        if domain != target_domain {
            return self.copy_bytes(source, source_offset, target, target_offset, len);
        }
        let source_barrier = Barrier::raise(&source_file);
        let target_barrier = Barrier::raise(&target_file);
        let (mut target_body, source_body) = loop {
            // Of what a snapshot shows, also in a clone, nothing is in memory, and it stays as it is.
            let changes = !self.is_of_snapshot(&source_file)?;
            if changes {
                drop(self.at_rest(&source_file, &source_barrier)?);
            }
            let rested = self.at_rest(&target_file, &target_barrier)?;
            // The bodies of two files are locked in the order of their numbers.
            let (target_body, source_body) = if source == target {
                break (rested, None);
            } else if source < target {
                drop(rested);
                let source_body = source_file.lock();
                (target_file.lock(), source_body)
            } else {
                (rested, source_file.lock())
            };
            // The barriers keep writers away, and not who has one too, as when a file is restored.
            let is_ready = match changes {
                true => source_body.is_at_rest(),
                false => source_body.shows_snapshot(),
            };
            if is_ready && target_body.is_at_rest() {
                break (target_body, Some(source_body));
            }
        };
        let source_size = source_body
            .as_ref()
            .map_or(target_body.size, |body| body.size);
        let end = source_end.min(source_size);
        let of = source_body.as_ref().unwrap_or(&target_body);
        let source_place = of.identity().place;
        let mut at = source_offset.min(end);
        while at < end {
            let of = source_body.as_ref().unwrap_or(&target_body);
            let step_end = self.step_end(of, at, end)?;
            let step_target = target_offset + (at - source_offset);
            let step_len = step_end - at;
            let _room = self.store.admit(STEP_ADMITTED_BYTES)?;
            self.commit(&Command::CloneRange(CloneRange {
                source: source_place.ino,
                source_at: source_place.at,
                source_offset: at,
                target,
                target_offset: step_target,
                len: step_len,
                now: self.now(),
                kill_suid_sgid: false,
            }))?;
            target_body
                .windows
                .invalidate(step_target, step_target + step_len);
            let size = target_body.size.max(step_target + step_len);
            set_size(&mut target_body, size);
            at = step_end;
        }
        Ok(at.saturating_sub(source_offset))
    }

    /// Whether the rows of a file are those of a snapshot.
    fn is_of_snapshot(&self, file: &Arc<FileState>) -> Result<bool> {
        let mut body = file.lock();
        self.load(file, &mut body)?;
        Ok(body.identity().place.at.is_some())
    }

    fn owner_of(&self, file: &Arc<FileState>) -> Result<(DomainId, VolumeId)> {
        let mut body = file.lock();
        self.load(file, &mut body)?;
        let identity = body.identity();
        Ok((identity.domain, identity.volume))
    }

    /// As [`Core::copy_range`], by reading and writing: dedup domains share no chunks.
    fn copy_bytes(
        &self,
        source: Ino,
        source_offset: u64,
        target: Ino,
        target_offset: u64,
        len: u64,
    ) -> Result<u64> {
        let mut out = Vec::new();
        let mut done = 0;
        while done < len {
            let step = (len - done).min(COPY_STEP_BYTES);
            let copied = self
                .read(source, source_offset + done, step as usize, false, &mut out)
                .and_then(|_| match out.is_empty() {
                    true => Ok(0),
                    false => self.write(target, target_offset + done, &out, false),
                });
            match copied {
                Ok(0) => break,
                Ok(copied) => done += copied as u64,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// The content of a file that is no longer than what is kept inline.
    fn small_content(&self, file: &Arc<FileState>) -> Result<Option<Vec<u8>>> {
        let mut body = file.lock();
        self.load(file, &mut body)?;
        if body.size > INLINE_BYTES_MAX {
            return Ok(None);
        }
        self.read_small(&mut body).map(Some)
    }

    /// The first offset from `offset` on that is in data, or in a hole, as lseek(2) has it; the end of the file is a
    /// hole.
    ///
    /// # Errors
    /// [`FsError::NoSuchOffset`] at or beyond the end, and when there are no more data.
    pub(crate) fn seek(&self, ino: Ino, offset: u64, want: Seek) -> Result<u64> {
        let file = self.file(ino);
        let mut body = file.lock();
        self.load(&file, &mut body)?;
        let body = body;
        if offset >= body.size {
            return Err(FsError::NoSuchOffset);
        }
        let mut at = offset;
        loop {
            let extents_max = match want {
                Seek::Data => 1,
                Seek::Hole => SEEK_EXTENTS_MAX,
            };
            let (start, end) = self.data_from(&body, at, extents_max)?;
            match want {
                Seek::Data if start < body.size => return Ok(start),
                Seek::Data => return Err(FsError::NoSuchOffset),
                Seek::Hole if at < start => return Ok(at.min(body.size)),
                Seek::Hole => at = end,
            }
        }
    }

    /// A range of data that begins at or after `at`, or has begun before it; there is none when it begins at
    /// `u64::MAX`. More data may follow where it ends; of adjacent extents at most `extents_max` are taken together.
    fn data_from(&self, body: &Body, at: u64, extents_max: usize) -> Result<(u64, u64)> {
        const NONE: (u64, u64) = (u64::MAX, u64::MAX);
        let run = body
            .runs
            .range(..=at)
            .next_back()
            .into_iter()
            .chain(body.runs.range(at..).take(1))
            .map(|(start, run)| (*start, start + run.len() as u64));
        let mut found = first_data(run, at, u64::MAX).unwrap_or(NONE);
        let mut cut = body.pending.truncate_to.unwrap_or(u64::MAX);
        for flight in body.jobs.iter().rev() {
            let job = &flight.job;
            let inline = job.inline.iter().map(|content| (0, content.len() as u64));
            let from = job.pieces.partition_point(|piece| piece.end() <= at);
            let piece = job.pieces[from..]
                .first()
                .map(|piece| (piece.offset, piece.end()));
            found = first_data(inline.chain(piece), at, cut).map_or(found, |data| found.min(data));
            let job_cut = if job.inline.is_some() {
                Some(0)
            } else {
                job.truncate_to
            };
            cut = cut.min(job_cut.unwrap_or(u64::MAX));
        }
        cut = cut.min(body.committed_size);
        if at < cut && found.0 > at {
            let committed = if body.committed_inline {
                Some((0, body.committed_size))
            } else {
                let Identity {
                    file_key, place, ..
                } = body.identity();
                let mut joined: Option<(u64, u64)> = None;
                let rows = self.views.extents(place.at);
                let extents = scan(&rows, place.ino, file_key, at, cut.min(found.0));
                for extent in extents.take(extents_max) {
                    let extent = extent?;
                    match &mut joined {
                        None => joined = Some((extent.offset, extent.end())),
                        Some(joined) if joined.1 == extent.offset => joined.1 = extent.end(),
                        Some(_) => break,
                    }
                }
                joined
            };
            found =
                first_data(committed.into_iter(), at, cut).map_or(found, |data| found.min(data));
        }
        Ok((found.0.max(at), found.1))
    }
}

/// What [`Core::seek`] looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seek {
    Data,
    Hole,
}

/// The first of the ranges that reaches beyond `at`, as far as it is before `cut`.
fn first_data(ranges: impl Iterator<Item = (u64, u64)>, at: u64, cut: u64) -> Option<(u64, u64)> {
    ranges
        .map(|(start, end)| (start.max(at), end.min(cut)))
        .filter(|(start, end)| start < end)
        .min()
}

/// A command has changed the size of a file at rest.
fn set_size(body: &mut Body, size: u64) {
    body.size = size;
    body.submitted_size = size;
    body.committed_size = size;
    body.settle_reservation();
}
