//! What a file and a block device share: one descriptor through the page cache, one around it.
//!
//! Reads go through the page cache, but for long ones of whole blocks into block-aligned memory, which are a stream's and
//! cost a multiple through it. Writes whose memory is block-aligned go around it, so that a segment is not copied
//! and does not push out what readers keep there; the kernel drops the cached pages of the range when it writes
//! directly, so both ways see the same bytes. Where direct I/O is refused, everything goes through the page cache.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use cfs_format::{BLOCK_BYTES, SEGMENT_BYTES, SegmentId};

use crate::DeviceError;

/// Reads from this size on may go around the page cache, bytes.
const DIRECT_READ_BYTES_MIN: usize = 64 << 10;

/// What a file is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    ReadAndWrite,
}

impl Access {
    pub(crate) fn options(self) -> OpenOptions {
        let mut options = OpenOptions::new();
        options.read(true).write(self == Self::ReadAndWrite);
        options
    }
}

pub(crate) struct Descriptors {
    pub(crate) cached: File,
    direct: Option<File>,
    direct_refused: AtomicBool,
}

impl Descriptors {
    pub(crate) fn new(cached: File, direct: Option<File>) -> Self {
        Self {
            cached,
            direct,
            direct_refused: AtomicBool::new(false),
        }
    }

    /// Fills `buf`; what lies beyond the end of the file is zeros.
    pub(crate) fn read(
        &self,
        segment: SegmentId,
        offset: u32,
        buf: &mut [u8],
    ) -> Result<(), DeviceError> {
        let start = position(segment, offset);
        let mut done = 0;
        while done < buf.len() {
            let rest = &mut buf[done..];
            let is_long = rest.len() >= DIRECT_READ_BYTES_MIN;
            let (file, is_direct) = match offset.is_multiple_of(BLOCK_BYTES) && is_long {
                true => self.descriptor_for(rest),
                false => (&self.cached, false),
            };
            match file.read_at(rest, start + done as u64) {
                Err(error) if is_direct && error.raw_os_error() == Some(libc::EINVAL) => {
                    self.direct_refused.store(true, Ordering::Relaxed);
                }
                Ok(0) => {
                    buf[done..].fill(0);
                    break;
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(failed("read", segment, offset, source)),
            }
        }
        Ok(())
    }

    pub(crate) fn write(
        &self,
        segment: SegmentId,
        offset: u32,
        bytes: &[u8],
    ) -> Result<(), DeviceError> {
        let start = position(segment, offset);
        let mut done = 0;
        while done < bytes.len() {
            let rest = &bytes[done..];
            let (file, is_direct) = self.descriptor_for(rest);
            match file.write_at(rest, start + done as u64) {
                Ok(0) => {
                    let source = io::Error::from(io::ErrorKind::WriteZero);
                    return Err(failed("write", segment, offset, source));
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_direct && error.raw_os_error() == Some(libc::EINVAL) => {
                    self.direct_refused.store(true, Ordering::Relaxed);
                }
                Err(source) => return Err(no_space_or_failed("write", segment, offset, source)),
            }
        }
        Ok(())
    }

    /// The descriptor to read or write `rest` with, and whether it goes around the page cache.
    fn descriptor_for(&self, rest: &[u8]) -> (&File, bool) {
        let aligned = (rest.as_ptr() as usize).is_multiple_of(BLOCK_BYTES as usize)
            && rest.len().is_multiple_of(BLOCK_BYTES as usize);
        match &self.direct {
            Some(direct) if aligned && !self.direct_refused.load(Ordering::Relaxed) => {
                (direct, true)
            }
            _ => (&self.cached, false),
        }
    }

    pub(crate) fn flush(&self) -> Result<(), DeviceError> {
        loop {
            match self.cached.sync_data() {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(DeviceError::Io {
                        operation: "flush",
                        segment: None,
                        offset: 0,
                        source,
                    });
                }
            }
        }
    }
}

/// Byte position of an offset in a segment.
pub(crate) fn position(segment: SegmentId, offset: u32) -> u64 {
    u64::from(segment.0) * u64::from(SEGMENT_BYTES) + u64::from(offset)
}

pub(crate) fn failed(
    operation: &'static str,
    segment: SegmentId,
    offset: u32,
    source: io::Error,
) -> DeviceError {
    DeviceError::Io {
        operation,
        segment: Some(segment),
        offset,
        source,
    }
}

/// [`DeviceError::NoSpace`] when the host has no more room: for anybody, for this user, or in a file of this size.
pub(crate) fn no_space_or_failed(
    operation: &'static str,
    segment: SegmentId,
    offset: u32,
    source: io::Error,
) -> DeviceError {
    match source.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => DeviceError::NoSpace { segment },
        _ => failed(operation, segment, offset, source),
    }
}

/// Refuses a range that no segment has. Positions may come from damaged metadata, so this is an error.
pub(crate) fn check_readable(
    segment_count: u32,
    segment: SegmentId,
    offset: u32,
    len: usize,
) -> Result<(), DeviceError> {
    let end = u64::from(offset) + len as u64;
    if segment.0 < segment_count && end <= u64::from(SEGMENT_BYTES) {
        return Ok(());
    }
    let source = io::Error::new(io::ErrorKind::InvalidInput, "outside of the device");
    Err(failed("read", segment, offset, source))
}

/// The last of `count` segments from `first` on.
pub(crate) fn last_of(first: SegmentId, count: u32) -> SegmentId {
    assert!(count > 0, "at least one segment");
    SegmentId(first.0 + count - 1)
}

/// Stops the process at a write that breaks the rules of [`crate::Device::write_at`].
pub(crate) fn assert_writable(segment_count: u32, segment: SegmentId, offset: u32, len: usize) {
    assert!(
        segment.0 < segment_count,
        "segment {segment} of {segment_count}"
    );
    assert!(
        offset.is_multiple_of(BLOCK_BYTES) && len.is_multiple_of(BLOCK_BYTES as usize),
        "{len} bytes at {offset} are not whole blocks"
    );
    assert!(
        u64::from(offset) + len as u64 <= u64::from(SEGMENT_BYTES),
        "{len} bytes at {offset} leave the segment"
    );
}
