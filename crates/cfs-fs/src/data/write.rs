//! Accepting data.

use std::sync::Arc;

use cfs_format::Ino;
use cfs_format::table::{key, tag};
use cfs_store::{Reservation, WriteError};
use parking_lot::MutexGuard;

use super::Core;
use super::body::{Body, FileState, Stamp};
use crate::command::{Command, CopyUp};
use crate::error::{FsError, Result};
use crate::extent::{FILE_BYTES_MAX, INLINE_BYTES_MAX};
use crate::types::{Room, Time};
use crate::{clone, inode};

/// Data are accepted in steps of this many bytes, so that one large write keeps to the bound on dirty data.
const STEP_BYTES: usize = 1 << 20;
/// Entries or extents that one command copies for a clone.
const COPY_ROWS_MAX: u32 = 2048;
/// Room that such a command may need, with extended attributes, bytes.
const COPY_ROOM_BYTES: u64 = 2 << 20;
/// Entries or extents that one copies where there is no room but what is kept back for deleting.
const COPY_ROWS_ON_FULL_MAX: u32 = 256;
/// Room that is made at once when there is none, beside what is asked for.
const ROOM_BYTES: u64 = 16 << 20;

impl Core {
    /// Accepts `data` at `offset`. Returns how many bytes were accepted, fewer than given only if the rest failed.
    ///
    /// # Errors
    /// [`FsError::NoSpace`], [`FsError::Quota`], [`FsError::TooLarge`], [`FsError::ReadOnly`], [`FsError::NotFound`],
    /// [`FsError::IsDirectory`], [`FsError::Invalid`] for what is no regular file; nothing was accepted.
    pub(crate) fn write(
        &self,
        ino: Ino,
        offset: u64,
        data: &[u8],
        kill_suid_sgid: bool,
    ) -> Result<usize> {
        if offset
            .checked_add(data.len() as u64)
            .is_none_or(|end| end > FILE_BYTES_MAX)
        {
            return Err(FsError::TooLarge);
        }
        let file = self.file(ino);
        let mut accepted = 0;
        for step in data.chunks(STEP_BYTES) {
            let at = offset + accepted as u64;
            match self.write_step(&file, at, step, kill_suid_sgid) {
                Ok(()) => accepted += step.len(),
                Err(error) if accepted == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(accepted)
    }

    fn write_step(
        &self,
        file: &Arc<FileState>,
        offset: u64,
        data: &[u8],
        kill_suid_sgid: bool,
    ) -> Result<()> {
        self.writable()?;
        self.wait_for_room(data.len() as u64)?;
        let mut body = self.lock_for_change(file)?;
        if let Err(error) = self.admit(&mut body, offset, data.len() as u64) {
            // What is dirty may need less room once it is stored.
            drop(body);
            self.writable()?;
            self.flush_all()?;
            if !matches!(error, FsError::Quota) {
                self.store.make_room(ROOM_BYTES + data.len() as u64)?;
            }
            body = self.lock_for_change(file)?;
            self.admit(&mut body, offset, data.len() as u64)
                .map_err(|_| error)?;
        }
        let now_ns = self.host.now_ns();
        self.stamp(&mut body, Time::from_ns(now_ns), kill_suid_sgid);
        body.written_ns = now_ns;
        let mut jobs = Vec::new();
        body.put(&self.buffers, offset, data, |body, start| {
            jobs.extend(self.take_certain(file, body, start));
        });
        if !jobs.is_empty() && body.runs.len() <= 1 {
            // What is left of a stream is as old as this write.
            self.note_taken(&mut body);
        }
        if body.is_dirty() {
            self.note_dirty(file, &mut body, now_ns);
        }
        drop(body);
        self.dispatch(file, jobs);
        Ok(())
    }

    /// The lock of a file that may be changed, with inline content in the runs.
    pub(super) fn lock_for_change<'f>(
        &self,
        file: &'f Arc<FileState>,
    ) -> Result<MutexGuard<'f, Body>> {
        self.lock_to_change(file, None)
    }

    /// The same; what is cut to a size can be cut on a full pool too.
    fn lock_to_change<'f>(
        &self,
        file: &'f Arc<FileState>,
        new_size: Option<u64>,
    ) -> Result<MutexGuard<'f, Body>> {
        let mut body = file.lock();
        while body.barriers > 0 {
            file.wait(&mut body);
        }
        self.load(file, &mut body)?;
        match new_size {
            Some(size) if size <= body.size => self.own_to_cut(file, &mut body, size)?,
            _ => self.own(file, &mut body)?,
        }
        self.check_lock(&body)?;
        if body.submitted_inline {
            self.absorb(&mut body)?;
        }
        Ok(body)
    }

    /// Copies what a clone has of the file from its origin, unless that has been done: the content is about to change.
    ///
    /// # Errors
    /// As [`Core::copy_up`].
    pub(super) fn own(&self, file: &FileState, body: &mut Body) -> Result<()> {
        self.own_in(Room::Free, file, body)
    }

    /// The same for a file that is cut to a size. It counts as a whole for a moment, which no quota refuses if it has
    /// room for what is left of the file.
    fn own_to_cut(&self, file: &FileState, body: &mut Body, size: u64) -> Result<()> {
        let room = match self
            .quotas
            .has_room(&self.store, body.identity().volume, size)
        {
            true => Room::Reserve,
            false => Room::Free,
        };
        self.own_in(room, file, body)
    }

    fn own_in(&self, room: Room, file: &FileState, body: &mut Body) -> Result<()> {
        if body.identity().place.at.is_none() {
            return Ok(());
        }
        self.copy_up(file.ino, room)?;
        body.windows.clear();
        body.identity = None;
        self.load(file, body)
    }

    /// Copies the rows that a clone has of an inode from its origin, in steps of bounded size; nobody sees a difference.
    /// For what is part of a deletion the room may come from the reserve, and no quota refuses it: its volume may be above
    /// it until the deletion is done, and by the inode of a directory that keeps other names.
    ///
    /// # Errors
    /// [`FsError::Quota`], [`FsError::NoSpace`], [`FsError::ReadOnly`]; [`FsError::Snapshot`] for what is in one;
    /// [`FsError::NotFound`]. What has been copied before a failure is not copied again.
    pub(crate) fn copy_up(&self, ino: Ino, room: Room) -> Result<()> {
        if ino.view().is_some() {
            return Err(FsError::Snapshot);
        }
        loop {
            let row = self.store.get(&key(ino, tag::INODE, &[]))?;
            let record = row.map(|bytes| inode::decode(ino, &bytes)).transpose()?;
            match record {
                Some(record) if clone::is_own(&record) => return Ok(()),
                // Removed since whoever asks has seen it.
                Some(record) if clone::is_gone(&record) => return Err(FsError::NotFound),
                _ => {}
            }
            let (rows_max, _reservation) = self.admit_copy(room)?;
            let mut salt = [0; 16];
            self.host.fill_random(&mut salt);
            let command = Command::CopyUp(CopyUp {
                ino,
                salt,
                rows_max,
            });
            match room {
                Room::Free => self.commit(&command)?,
                Room::Reserve => self.commit_unbound(&command)?,
            }
        }
    }

    /// Room for a step of copying; how many rows it may copy.
    fn admit_copy(&self, room: Room) -> Result<(u32, Option<Reservation>)> {
        if let Ok(reservation) = self.store.admit(COPY_ROOM_BYTES) {
            return Ok((COPY_ROWS_MAX, Some(reservation)));
        }
        let may_delete = || room == Room::Reserve && self.store.may_delete();
        if may_delete() {
            return Ok((COPY_ROWS_ON_FULL_MAX, None));
        }
        match self.store.make_room(ROOM_BYTES) {
            // A checkpoint may need more than the host has.
            Ok(_) | Err(WriteError::NoSpace(_)) => {}
            Err(error) => return Err(error.into()),
        }
        match self.store.admit(COPY_ROOM_BYTES) {
            Ok(reservation) => Ok((COPY_ROWS_MAX, Some(reservation))),
            Err(_) if may_delete() => Ok((COPY_ROWS_ON_FULL_MAX, None)),
            Err(error) => Err(error.into()),
        }
    }

    /// Refuses to change a locked file: when it is applied a change is refused in any case, here the caller is told.
    ///
    /// # Errors
    /// [`FsError::Locked`].
    pub(super) fn check_lock(&self, body: &Body) -> Result<()> {
        let is_locked =
            body.locked_until_ms > 0 && body.locked_until_ms > self.host.now_ns() / 1_000_000;
        match is_locked {
            true => Err(FsError::Locked),
            false => Ok(()),
        }
    }

    /// Takes inline content into the runs, from where it goes wherever the next job puts it.
    pub(super) fn absorb(&self, body: &mut Body) -> Result<()> {
        if !body.absorbed {
            let content = self.read_small(body)?;
            if !content.is_empty() {
                let mut run = self.buffers.take(content.len());
                run.extend(&content);
                body.insert_run(0, run);
            }
            body.absorbed = true;
        }
        Ok(())
    }

    /// The lock of a file that may be changed and become `size` bytes long.
    pub(super) fn lock_to_resize<'f>(
        &self,
        file: &'f Arc<FileState>,
        size: u64,
    ) -> Result<MutexGuard<'f, Body>> {
        let mut body = self.lock_to_change(file, Some(size))?;
        if self.quotas.admit(&self.store, &mut body, size).is_err() {
            // What has been committed just now counts twice.
            drop(body);
            self.flush_all()?;
            body = self.lock_to_change(file, Some(size))?;
            self.quotas.admit(&self.store, &mut body, size)?;
        }
        // Content that lay in a row is to be a chunk, and nobody has promised room for one.
        let needed = body.needed_bytes();
        let promised = body.reservation.as_ref().map_or(0, Reservation::bytes);
        if size > INLINE_BYTES_MAX && size > body.size && needed > promised {
            self.promise(&mut body, needed - promised)?;
        }
        Ok(body)
    }

    /// Promises so much more for what is dirty of a file.
    ///
    /// # Errors
    /// [`FsError::NoSpace`]; the growth that was admitted for the file is given back.
    pub(super) fn promise(&self, body: &mut Body, bytes: u64) -> Result<()> {
        match (self.store.admit(bytes), &mut body.reservation) {
            (Ok(more), Some(reservation)) => reservation.merge(more),
            (Ok(more), none) => *none = Some(more),
            (Err(error), _) => {
                // What was just taken of the quota.
                body.settle_reservation();
                return Err(error.into());
            }
        }
        Ok(())
    }

    fn admit(&self, body: &mut Body, offset: u64, len: u64) -> Result<()> {
        self.quotas.admit(&self.store, body, offset + len)?;
        let (bytes, pieces) = body.gaps_in_runs(offset, len);
        if bytes > 0 {
            self.promise(body, Body::bytes_to_admit(bytes, pieces))?;
        }
        Ok(())
    }

    /// Notes a change of content for the next job and for who asks.
    pub(super) fn stamp(&self, body: &mut Body, time: Time, kill_suid_sgid: bool) {
        let stamp = |before: Stamp| Stamp {
            time: Some(time),
            kill_suid_sgid: kill_suid_sgid || before.kill_suid_sgid,
        };
        body.stamp = stamp(body.visible_stamp());
        body.pending.stamp = stamp(body.pending.stamp);
        body.atime_checked_ns = 0;
    }
}
