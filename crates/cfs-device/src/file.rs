//! A device in one sparse regular file: segment `n` lies at byte `n * SEGMENT_BYTES`.
//!
//! Invariants: the file is locked (`flock`) while the device lives, alone or with others that only read; its length only
//! grows, and is made to hold a segment before anything is written there, so that no write lengthens it; the room that it
//! takes shrinks with each discard.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cfs_format::{SEGMENT_BYTES, SegmentId};
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, FlockOperation};

use crate::descriptors::{
    Access, Descriptors, assert_writable, check_readable, failed, last_of, no_space_or_failed,
    position,
};
use crate::extents::{self, Extent};
use crate::{Device, DeviceError, Geometry, HostRoom, HostSpace, OpenDeviceError};

/// A device in a regular file.
pub struct FileDevice {
    descriptors: Descriptors,
    segment_count: u32,
    /// Bytes from start to end of the file; changed only by the holder of `growing`.
    length: AtomicU64,
    growing: Mutex<()>,
    /// Something was discarded since the last flush that was made for its room.
    is_discard_unsynced: AtomicBool,
}

impl FileDevice {
    /// Makes an empty device of at most `segment_count_max` segments at `path`, readable by its owner alone. The
    /// file's name is durable when this returns.
    ///
    /// # Errors
    /// [`OpenDeviceError`]: `Exists`, or `Io`; an `Io` error after the file was made leaves it there, empty.
    pub fn create(path: &Path, segment_count_max: u32) -> Result<Self, OpenDeviceError> {
        let cached = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| match source.kind() {
                io::ErrorKind::AlreadyExists => OpenDeviceError::Exists { path: path.into() },
                _ => open_failed("create", path, source),
            })?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(parent)
            .and_then(|parent| parent.sync_all())
            .map_err(|source| open_failed("flush the directory of", path, source))?;
        Self::with_file(Access::ReadAndWrite, path, cached, segment_count_max)
    }

    /// Opens the device at `path`. Segments up to `segment_count_max` can be addressed, and all that the file
    /// already has.
    ///
    /// # Errors
    /// [`OpenDeviceError`]: `WrongKind` for anything but a regular file, `Busy`, or `Io`.
    pub fn open(path: &Path, segment_count_max: u32) -> Result<Self, OpenDeviceError> {
        Self::open_for(Access::ReadAndWrite, path, segment_count_max)
    }

    /// The same where nothing is to be written, or can be: each write fails. Others may open it in this way too.
    ///
    /// # Errors
    /// As [`FileDevice::open`].
    pub fn open_to_read(path: &Path, segment_count_max: u32) -> Result<Self, OpenDeviceError> {
        Self::open_for(Access::Read, path, segment_count_max)
    }

    fn open_for(
        access: Access,
        path: &Path,
        segment_count_max: u32,
    ) -> Result<Self, OpenDeviceError> {
        let cached = access
            .options()
            // A named pipe without a reader must not hold the caller up.
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(|source| match source.kind() {
                io::ErrorKind::IsADirectory => wrong_kind(path),
                _ => open_failed("open", path, source),
            })?;
        Self::with_file(access, path, cached, segment_count_max)
    }

    fn with_file(
        access: Access,
        path: &Path,
        cached: File,
        segment_count_max: u32,
    ) -> Result<Self, OpenDeviceError> {
        let metadata = cached
            .metadata()
            .map_err(|source| open_failed("examine", path, source))?;
        if !metadata.is_file() {
            return Err(wrong_kind(path));
        }
        let lock = match access {
            Access::Read => FlockOperation::NonBlockingLockShared,
            Access::ReadAndWrite => FlockOperation::NonBlockingLockExclusive,
        };
        rustix::fs::flock(&cached, lock).map_err(|errno| match errno {
            rustix::io::Errno::WOULDBLOCK => OpenDeviceError::Busy { path: path.into() },
            _ => open_failed("lock", path, errno.into()),
        })?;
        let direct = access
            .options()
            .custom_flags(libc::O_DIRECT)
            .open(path)
            .ok();
        let length = metadata.len();
        let segments_present = u32::try_from(length.div_ceil(SEGMENT_BYTES.into()))
            .map_err(|_| open_failed("use", path, io::ErrorKind::FileTooLarge.into()))?;
        Ok(Self {
            descriptors: Descriptors::new(cached, direct),
            segment_count: segment_count_max.max(segments_present),
            length: AtomicU64::new(length),
            growing: Mutex::new(()),
            is_discard_unsynced: AtomicBool::new(false),
        })
    }

    /// Makes the file long enough to hold the segment. Writing inside of the length takes fewer locks in the host's
    /// file system than writing past it; and lengthening by `ftruncate` is safe only where no write lengthens too.
    fn grow_to_hold(&self, segment: SegmentId) -> io::Result<()> {
        let end = position(segment, SEGMENT_BYTES);
        if self.length.load(Ordering::Acquire) >= end {
            return Ok(());
        }
        let _growing = self.growing.lock();
        if self.length.load(Ordering::Acquire) < end {
            self.descriptors.cached.set_len(end)?;
            self.length.store(end, Ordering::Release);
        }
        Ok(())
    }

    /// Gives `len` bytes from the start of `first` on room, and makes the file long enough for `last`.
    fn allocate(&self, first: SegmentId, len: u64, last: SegmentId) -> Result<(), DeviceError> {
        let allocate = || self.fallocate(FallocateFlags::KEEP_SIZE, position(first, 0), len);
        let mut allocated = allocate();
        if allocated
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::StorageFull)
            && self.is_discard_unsynced.swap(false, Ordering::Relaxed)
        {
            // File systems with a journal give out what was punched only when that is in the journal.
            self.descriptors.flush()?;
            allocated = allocate();
        }
        allocated
            .and_then(|()| self.grow_to_hold(last))
            .map_err(|source| no_space_or_failed("prepare", first, 0, source))
    }

    fn fallocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
        loop {
            match rustix::fs::fallocate(&self.descriptors.cached, flags, offset, len) {
                Err(rustix::io::Errno::INTR) => {}
                // The host's file system has no such thing; then there is nothing to hold or give back.
                Err(rustix::io::Errno::OPNOTSUPP) => return Ok(()),
                result => return result.map_err(io::Error::from),
            }
        }
    }
}

impl Device for FileDevice {
    fn geometry(&self) -> Geometry {
        let length = self.length.load(Ordering::Relaxed);
        let written_segments = length.div_ceil(SEGMENT_BYTES.into()) as u32;
        Geometry {
            segment_count: self.segment_count,
            written_segments,
            zoned: false,
            sparse: true,
        }
    }

    fn read_at(&self, segment: SegmentId, offset: u32, buf: &mut [u8]) -> Result<(), DeviceError> {
        check_readable(self.segment_count, segment, offset, buf.len())?;
        self.descriptors.read(segment, offset, buf)
    }

    fn write_at(&self, segment: SegmentId, offset: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        assert_writable(self.segment_count, segment, offset, bytes.len());
        self.grow_to_hold(segment)
            .map_err(|source| no_space_or_failed("write", segment, offset, source))?;
        self.descriptors.write(segment, offset, bytes)
    }

    fn prepare(&self, first: SegmentId, count: u32) -> Result<(), DeviceError> {
        let last = last_of(first, count);
        assert_writable(self.segment_count, last, 0, 0);
        self.allocate(first, u64::from(count) * u64::from(SEGMENT_BYTES), last)
    }

    fn prepare_start(&self, segment: SegmentId, bytes: u32) -> Result<(), DeviceError> {
        assert_writable(self.segment_count, segment, 0, bytes as usize);
        self.allocate(segment, u64::from(bytes), segment)
    }

    fn discard(&self, segment: SegmentId, range: Range<u32>) -> Result<(), DeviceError> {
        assert_writable(self.segment_count, segment, range.start, range.len());
        if range.is_empty() {
            return Ok(());
        }
        self.fallocate(
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            position(segment, range.start),
            range.len() as u64,
        )
        .map_err(|source| failed("discard", segment, range.start, source))?;
        self.is_discard_unsynced.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.descriptors.flush()
    }

    fn host_space(&self) -> Result<Option<HostSpace>, DeviceError> {
        let unknown = |source| DeviceError::Io {
            operation: "measure",
            segment: None,
            offset: 0,
            source,
        };
        let metadata = self.descriptors.cached.metadata().map_err(unknown)?;
        let host = rustix::fs::fstatvfs(&self.descriptors.cached)
            .map_err(|errno| unknown(errno.into()))?;
        Ok(Some(HostSpace {
            allocated_bytes: metadata.blocks() * 512,
            available_bytes: host.f_bavail.saturating_mul(host.f_frsize),
        }))
    }

    fn host_room(&self) -> Result<Option<Vec<HostRoom>>, DeviceError> {
        let file = &self.descriptors.cached;
        let found = extents::of(file).and_then(|found| match found {
            Some(found) => Ok(Some((found, extents::is_copied_on_write(file)?))),
            None => Ok(None),
        });
        let found = found.map_err(|source| DeviceError::Io {
            operation: "list the extents",
            segment: None,
            offset: 0,
            source,
        })?;
        Ok(found.map(|(found, is_copied)| room_of(&found, is_copied, self.segment_count)))
    }
}

/// Which segments these extents give room to. Where content is copied when it is written again, only what has never been
/// written can be without more room.
fn room_of(extents: &[Extent], is_copied: bool, segment_count: u32) -> Vec<HostRoom> {
    let segment_bytes = u64::from(SEGMENT_BYTES);
    let mut rooms: Vec<HostRoom> = Vec::new();
    for extent in extents {
        let is_usable = extent.is_own && !(is_copied && extent.is_written);
        let end = (extent.start + extent.len).min(u64::from(segment_count) * segment_bytes);
        let mut at = extent.start;
        while at < end {
            let segment = SegmentId((at / segment_bytes) as u32);
            let start = position(segment, 0);
            let until = end.min(start + segment_bytes);
            if rooms.last().is_none_or(|last| last.segment != segment) {
                rooms.push(HostRoom {
                    segment,
                    start_bytes: 0,
                });
            }
            let room = rooms.last_mut().expect("just pushed");
            if is_usable && start + u64::from(room.start_bytes) == at {
                room.start_bytes = (until - start) as u32;
            }
            at = until;
        }
    }
    rooms
}

fn wrong_kind(path: &Path) -> OpenDeviceError {
    OpenDeviceError::WrongKind {
        path: path.into(),
        expected: "regular file",
    }
}

pub(crate) fn open_failed(
    operation: &'static str,
    path: &Path,
    source: io::Error,
) -> OpenDeviceError {
    OpenDeviceError::Io {
        operation,
        path: path.into(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_told_by_what_of_their_room_can_be_written() {
        const MIB: u64 = 1 << 20;
        let extent = |start, len, is_written, is_own| Extent {
            start: start * MIB,
            len: len * MIB,
            is_written,
            is_own,
        };
        let extents = [
            // Segments 0 and 1, the first half of 2.
            extent(0, 5, true, true),
            // 4, in two pieces; 5 shared with another file; the second half of 6.
            extent(8, 1, false, true),
            extent(9, 1, true, true),
            extent(10, 2, false, false),
            extent(13, 1, false, true),
            // 9, and beyond the end of the device.
            extent(18, 6, false, true),
        ];
        let rooms = |is_copied| -> Vec<(u32, u32)> {
            room_of(&extents, is_copied, 10)
                .iter()
                .map(|room| (room.segment.0, room.start_bytes >> 20))
                .collect()
        };
        let written_again = [(0, 2), (1, 2), (2, 1), (4, 2), (5, 0), (6, 0), (9, 2)];
        assert_eq!(rooms(false), written_again);
        let copied = [(0, 0), (1, 0), (2, 0), (4, 1), (5, 0), (6, 0), (9, 2)];
        assert_eq!(rooms(true), copied);
        assert_eq!(room_of(&[], false, 10), []);
    }
}
