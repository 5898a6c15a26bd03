//! The methods of [`Fs`] for the content of files.

use cfs_format::{Ino, Lsn};

use super::quota::Unbound;
use super::ranges::{AllocateMode, Seek};
use super::read::Parts;
use crate::Fs;
use crate::error::{FsError, Result};

impl Fs {
    /// Memory that data take which have been accepted and not yet been stored, bytes.
    #[must_use]
    pub fn dirty_bytes(&self) -> u64 {
        self.files.buffers.held_bytes()
    }

    /// Bytes of opened chunks in memory.
    #[must_use]
    pub fn hot_bytes(&self) -> u64 {
        self.files.hot.bytes()
    }

    /// Replaces `out` with up to `len` bytes of the file from `offset`; fewer at its end.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::IsDirectory`], [`FsError::Invalid`] for what is no
    /// regular file; [`FsError::Io`]. The content of `out` is then unspecified.
    pub fn read(&self, ino: Ino, offset: u64, len: usize, out: &mut Vec<u8>) -> Result<()> {
        if self.files.read(ino, offset, len, false, out)?.touch {
            self.touch_atime(ino)?;
        }
        Ok(())
    }

    /// As above, but what lies in opened chunks alone is not copied: then they are returned, and `out` is left as it is.
    ///
    /// # Errors
    /// As above.
    pub fn read_parts(
        &self,
        ino: Ino,
        offset: u64,
        len: usize,
        out: &mut Vec<u8>,
    ) -> Result<Option<Parts>> {
        let done = self.files.read(ino, offset, len, true, out)?;
        if done.touch {
            self.touch_atime(ino)?;
        }
        Ok(done.parts)
    }

    /// Accepts `data` at `offset`; they are in the log after [`Fs::flush`], a while, or under pressure, and durable
    /// after [`Fs::fsync`]. Waits while there are too many dirty data. Returns how many bytes were accepted, fewer
    /// than given only if the rest failed. `kill_suid_sgid` clears these bits as a write by another user does.
    ///
    /// # Errors
    /// [`FsError::NoSpace`], [`FsError::TooLarge`], [`FsError::ReadOnly`],
    /// [`FsError::NotFound`], [`FsError::IsDirectory`], [`FsError::Invalid`] for what is no
    /// regular file; nothing was accepted. Accepted data do not meet a lack of space later.
    pub fn write(&self, ino: Ino, offset: u64, data: &[u8], kill_suid_sgid: bool) -> Result<usize> {
        if ino.view().is_some() {
            return Err(FsError::Snapshot);
        }
        let _open = self.gate.read();
        self.closed.check_content(&self.store, ino)?;
        self.with_room(|| self.files.write(ino, offset, data, kill_suid_sgid))
    }

    /// Returns when everything written to the file before the call is durable; and with it, since there is one log,
    /// every change of the namespace before it. With `data_only`, a change of nothing but times is not waited for.
    ///
    /// # Errors
    /// What writing failed with, now or in the background since the last call. The data stay readable, and the next
    /// call tries again.
    pub fn fsync(&self, ino: Ino, data_only: bool) -> Result<()> {
        self.sync_to(self.begin_fsync(ino, data_only)?)
    }

    /// The first half of [`crate::Fs::fsync`]: returns when all that it is for is in the log. [`crate::Fs::sync_to`] of
    /// what is returned is the other half, which one caller can do for many, with the newest of theirs.
    ///
    /// # Errors
    /// As [`crate::Fs::flush`].
    pub fn begin_fsync(&self, ino: Ino, data_only: bool) -> Result<Lsn> {
        if !(data_only && self.files.has_only_times(ino)) {
            self.files.flush(ino)?;
        }
        Ok(self.store.last_lsn())
    }

    /// Whether [`crate::Fs::begin_fsync`] of the file is likely to have little to do, and to wait for nobody. Itself it does not
    /// wait.
    #[must_use]
    pub fn is_soon_flushed(&self, ino: Ino) -> bool {
        self.files.is_soon_flushed(ino)
    }

    /// Whether the commands up to this one are durable.
    #[must_use]
    pub fn is_durable(&self, lsn: Lsn) -> bool {
        self.store.is_durable(lsn)
    }

    /// Returns when the commands up to this one are durable.
    ///
    /// # Errors
    /// The pool is, or goes, read-only: whether they are is then unknown.
    pub fn sync_to(&self, lsn: Lsn) -> Result<()> {
        self.store.sync_to(lsn)?;
        Ok(())
    }

    /// To be called when an opener has closed the file: sends what was written to it on its way to the log, without
    /// waiting for it, from where [`crate::Fs::write_log`] hands it over. What fails is told by the next
    /// [`crate::Fs::flush`] or [`crate::Fs::fsync`].
    pub fn hand_over(&self, ino: Ino) {
        self.files.hand_over(ino);
    }

    /// Returns when all that was written to the file is in the log, so that [`crate::Fs::write_log`] hands it over; it
    /// is not yet durable.
    ///
    /// # Errors
    /// What writing failed with, now or in the background since the last call. The data stay readable, and the next
    /// call tries again.
    pub fn flush(&self, ino: Ino) -> Result<()> {
        self.files.flush(ino)
    }

    /// Returns when everything written and changed before the call is durable.
    ///
    /// # Errors
    /// The first failure.
    pub fn syncfs(&self) -> Result<()> {
        self.sync_to(self.begin_syncfs()?)
    }

    /// The first half of [`crate::Fs::syncfs`], as [`crate::Fs::begin_fsync`].
    ///
    /// # Errors
    /// The first failure.
    pub fn begin_syncfs(&self) -> Result<Lsn> {
        self.files.flush_all()?;
        self.write_atimes()?;
        Ok(self.store.last_lsn())
    }

    /// Allocates, frees, takes out or makes room for a range of the file. Room is looked for, and not set aside: what
    /// data need is known when they come. Shifted ranges begin and end at multiples of 4096.
    ///
    /// # Errors
    /// [`FsError::Invalid`], [`FsError::NoSpace`], [`FsError::TooLarge`],
    /// [`FsError::NotSupported`] (more extents would move than one command takes),
    /// [`FsError::ReadOnly`].
    pub fn fallocate(
        &self,
        ino: Ino,
        mode: AllocateMode,
        offset: u64,
        len: u64,
        kill_suid_sgid: bool,
    ) -> Result<()> {
        if ino.view().is_some() {
            return Err(FsError::Snapshot);
        }
        let _open = self.gate.read();
        self.closed.check_content(&self.store, ino)?;
        self.with_room(|| self.files.allocate(ino, mode, offset, len, kill_suid_sgid))
    }

    /// The first offset from `offset` on that holds data.
    ///
    /// # Errors
    /// [`FsError::NoSuchOffset`] when there is none.
    pub fn seek_data(&self, ino: Ino, offset: u64) -> Result<u64> {
        self.files.seek(ino, offset, Seek::Data)
    }

    /// The first offset from `offset` on that is in a hole; the end of the file is one.
    ///
    /// # Errors
    /// [`FsError::NoSuchOffset`] at or beyond the end.
    pub fn seek_hole(&self, ino: Ino, offset: u64) -> Result<u64> {
        self.files.seek(ino, offset, Seek::Hole)
    }

    /// Has a range of `target` show what is in a range of `source`, by references: nothing is copied. Returns how many
    /// bytes that were, fewer at the end of the source, which may be in a snapshot.
    ///
    /// # Errors
    /// [`FsError::Invalid`] (the ranges overlap in one file, or no regular files),
    /// [`FsError::TooLarge`], [`FsError::NoSpace`], [`FsError::ReadOnly`],
    /// [`FsError::NotFound`]. A part may have been copied.
    pub fn copy_range(
        &self,
        source: Ino,
        source_offset: u64,
        target: Ino,
        target_offset: u64,
        len: u64,
    ) -> Result<u64> {
        if target.view().is_some() {
            return Err(FsError::Snapshot);
        }
        let _open = self.gate.read();
        self.closed.check_content(&self.store, target)?;
        self.with_room(|| {
            self.files
                .copy_range(source, source_offset, target, target_offset, len)
        })
    }

    /// Lets a file grow beyond the quota of its volume, for who puts into it, by [`Fs::copy_range`], what other files of the
    /// volume have and are about to lose. Others are bound as before, by all that is there.
    #[must_use]
    pub fn unbind_from_quota(&self, ino: Ino) -> Unbound<'_> {
        self.files.quotas.unbind(ino)
    }
}
