//! A device on a raw block device: a disk, a partition, a logical volume.
//!
//! Invariants: the device is claimed exclusively (`O_EXCL`), so that nobody mounts it or opens a second pool on it
//! while this one is in use. Its size is read once.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use cfs_format::{SEGMENT_BYTES, SegmentId};

use crate::descriptors::{
    Access, Descriptors, assert_writable, check_readable, failed, last_of, position,
};
use crate::file::open_failed;
use crate::{Device, DeviceError, Geometry, HostSpace, OpenDeviceError};

/// A device on a block device.
pub struct BlockDevice {
    descriptors: Descriptors,
    segment_count: u32,
    discard_refused: AtomicBool,
}

impl BlockDevice {
    /// Opens the block device at `path` for this process alone. It has as many segments as fit; what is left over at
    /// the end stays unused.
    ///
    /// # Errors
    /// [`OpenDeviceError`]: `WrongKind` for anything but a block device, `Busy`, `TooSmall`, or `Io`.
    pub fn open(path: &Path) -> Result<Self, OpenDeviceError> {
        Self::open_for(Access::ReadAndWrite, path)
    }

    /// The same where nothing is to be written, or can be: each write fails.
    ///
    /// # Errors
    /// As [`BlockDevice::open`].
    pub fn open_to_read(path: &Path) -> Result<Self, OpenDeviceError> {
        Self::open_for(Access::Read, path)
    }

    fn open_for(access: Access, path: &Path) -> Result<Self, OpenDeviceError> {
        let kind = std::fs::metadata(path)
            .map_err(|source| open_failed("examine", path, source))?
            .file_type();
        if !kind.is_block_device() {
            return Err(OpenDeviceError::WrongKind {
                path: path.into(),
                expected: "block device",
            });
        }
        let mut cached = access
            .options()
            .custom_flags(libc::O_EXCL)
            .open(path)
            .map_err(|source| match source.raw_os_error() {
                Some(libc::EBUSY) => OpenDeviceError::Busy { path: path.into() },
                _ => open_failed("open", path, source),
            })?;
        let bytes = cached
            .seek(SeekFrom::End(0))
            .map_err(|source| open_failed("measure", path, source))?;
        let segment_count = u32::try_from(bytes / u64::from(SEGMENT_BYTES)).unwrap_or(u32::MAX);
        if segment_count == 0 {
            return Err(OpenDeviceError::TooSmall {
                path: path.into(),
                bytes,
            });
        }
        let direct = access
            .options()
            .custom_flags(libc::O_DIRECT)
            .open(path)
            .ok();
        Ok(Self {
            descriptors: Descriptors::new(cached, direct),
            segment_count,
            discard_refused: AtomicBool::new(false),
        })
    }
}

impl Device for BlockDevice {
    fn geometry(&self) -> Geometry {
        Geometry {
            segment_count: self.segment_count,
            written_segments: self.segment_count,
            zoned: false,
            sparse: false,
        }
    }

    fn read_at(&self, segment: SegmentId, offset: u32, buf: &mut [u8]) -> Result<(), DeviceError> {
        check_readable(self.segment_count, segment, offset, buf.len())?;
        self.descriptors.read(segment, offset, buf)
    }

    fn write_at(&self, segment: SegmentId, offset: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        assert_writable(self.segment_count, segment, offset, bytes.len());
        self.descriptors.write(segment, offset, bytes)
    }

    fn prepare(&self, first: SegmentId, count: u32) -> Result<(), DeviceError> {
        assert_writable(self.segment_count, last_of(first, count), 0, 0);
        Ok(())
    }

    fn discard(&self, segment: SegmentId, range: Range<u32>) -> Result<(), DeviceError> {
        assert_writable(self.segment_count, segment, range.start, range.len());
        if range.is_empty() || self.discard_refused.load(Ordering::Relaxed) {
            return Ok(());
        }
        let on_device = [position(segment, range.start), range.len() as u64];
        match discard(&self.descriptors.cached, &on_device) {
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EINVAL)
                ) =>
            {
                self.discard_refused.store(true, Ordering::Relaxed);
                Ok(())
            }
            result => result.map_err(|source| failed("discard", segment, range.start, source)),
        }
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.descriptors.flush()
    }

    fn host_space(&self) -> Result<Option<HostSpace>, DeviceError> {
        Ok(None)
    }
}

/// Tells the block device that the bytes `range[0] .. range[0] + range[1]` are not needed any more.
fn discard(device: &File, range: &[u64; 2]) -> io::Result<()> {
    /// `_IO(0x12, 119)` of linux/fs.h.
    const BLKDISCARD: libc::c_ulong = 0x1277;
    loop {
        // SAFETY: the descriptor is open, and the request reads two u64 from the pointer, which `range` holds.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), BLKDISCARD as _, range.as_ptr()) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
