//! Devices: an array of segments that can be read, appended to, reset and flushed.
//!
//! This is the only crate that does raw I/O. Everything above it sees the [`Device`] trait.

mod aligned;
mod block;
mod descriptors;
mod extents;
mod file;
mod memory;
mod overlay;

use std::ops::Range;
use std::path::PathBuf;

use cfs_format::{SEGMENT_BYTES, SegmentId};

pub use aligned::AlignedBuf;
pub use block::BlockDevice;
pub use file::FileDevice;
pub use memory::{FaultPlan, MemDevice, OperationCounts, SegmentImage};
pub use overlay::Overlay;

/// What a device is and can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Segments that may be addressed: `0..segment_count`.
    pub segment_count: u32,
    /// Those from here on have never been written.
    pub written_segments: u32,
    /// Writes must start where the last one in the segment ended, and a segment must be reset before it is rewritten.
    pub zoned: bool,
    /// The device takes its room from a host file system, so that `prepare` may fail although segments are free.
    pub sparse: bool,
}

fn place(segment: Option<SegmentId>, offset: u32) -> String {
    segment.map_or_else(String::new, |segment| {
        format!(" at segment {segment} offset {offset}")
    })
}

/// Why a device did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The host has no room left for a segment. Nothing changed.
    #[error("no space left on the host for segment {segment}")]
    NoSpace {
        /// The segment.
        segment: SegmentId,
    },
    /// Reading, writing or flushing failed. After a failed write or flush the content of what was written since the
    /// last successful flush is unknown.
    #[error("{operation} failed{}: {source}", place(*segment, *offset))]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The segment; none for a flush.
        segment: Option<SegmentId>,
        /// Byte offset within it.
        offset: u32,
        /// The cause.
        source: std::io::Error,
    },
}

/// An array of [`SEGMENT_BYTES`]-sized segments.
///
/// Offsets and lengths of writes are multiples of `cfs_format::BLOCK_BYTES`. Calls may come from several threads at
/// once; writes to overlapping ranges do not. A read of what is being written may return any mixture of old and new.
pub trait Device: Send + Sync {
    /// What it is.
    fn geometry(&self) -> Geometry;

    /// Fills `buf` from `offset` (any alignment) of the segment. What was never written since the last reset is
    /// zeros, or on a block device anything.
    ///
    /// # Errors
    /// [`DeviceError::Io`]; the content of `buf` is then unspecified.
    fn read_at(&self, segment: SegmentId, offset: u32, buf: &mut [u8]) -> Result<(), DeviceError>;

    /// Writes `bytes` at `offset`. Not durable before [`Device::flush`] returns.
    ///
    /// # Errors
    /// [`DeviceError::NoSpace`] only when the segment was not prepared; [`DeviceError::Io`] else.
    fn write_at(&self, segment: SegmentId, offset: u32, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Makes sure that writes to the `count` segments from `first` on will find room on the host. One call for many holds
    /// up writes once, where the host's file system keeps them out meanwhile.
    ///
    /// # Errors
    /// [`DeviceError::NoSpace`] when there is too little; some of the segments may have been given room all the same.
    fn prepare(&self, first: SegmentId, count: u32) -> Result<(), DeviceError>;

    /// As [`Device::prepare`], for the first `bytes` of one segment; whole blocks.
    ///
    /// # Errors
    /// As [`Device::prepare`].
    fn prepare_start(&self, segment: SegmentId, bytes: u32) -> Result<(), DeviceError> {
        let _ = bytes;
        self.prepare(segment, 1)
    }

    /// Gives the room of `range` of the segment, bytes, back to the host; both ends are multiples of the block size. What
    /// is read there afterwards is as if it had never been written. The whole range resets a zone.
    ///
    /// # Errors
    /// [`DeviceError::Io`]. A device that cannot give room back does nothing and succeeds.
    fn discard(&self, segment: SegmentId, range: Range<u32>) -> Result<(), DeviceError>;

    /// As above, to the end of the segment.
    ///
    /// # Errors
    /// As above.
    fn discard_from(&self, segment: SegmentId, offset: u32) -> Result<(), DeviceError> {
        self.discard(segment, offset..SEGMENT_BYTES)
    }

    /// Returns when everything written before the call is on stable storage.
    ///
    /// # Errors
    /// [`DeviceError::Io`]; what was written since the last successful flush may then be lost, also if a later flush
    /// succeeds.
    fn flush(&self) -> Result<(), DeviceError>;

    /// Bytes that the device takes from its host now, and those that the host still has; `None` where the device is
    /// not sparse.
    ///
    /// # Errors
    /// [`DeviceError::Io`].
    fn host_space(&self) -> Result<Option<HostSpace>, DeviceError>;

    /// The segments that have room on the host now, in order, whoever was given it; `None` where that cannot be told.
    ///
    /// # Errors
    /// [`DeviceError::Io`].
    fn host_room(&self) -> Result<Option<Vec<HostRoom>>, DeviceError> {
        Ok(None)
    }
}

/// A segment of a sparse device that has room on its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostRoom {
    /// The segment.
    pub segment: SegmentId,
    /// So many bytes from its start on can be written without more room.
    pub start_bytes: u32,
}

/// Room that a sparse device takes and could take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostSpace {
    /// Bytes allocated to the device.
    pub allocated_bytes: u64,
    /// Bytes that the host could still give it.
    pub available_bytes: u64,
}

/// Why a device could not be opened or created. Nothing changed on it.
#[derive(Debug, thiserror::Error)]
pub enum OpenDeviceError {
    /// There is already something at the path where a device was to be created.
    #[error("{path} exists already")]
    Exists {
        /// The path.
        path: PathBuf,
    },
    /// Neither of the kinds of file that this device can live on.
    #[error("{path} is not a {expected}")]
    WrongKind {
        /// The path.
        path: PathBuf,
        /// What it should have been.
        expected: &'static str,
    },
    /// Another process uses it.
    #[error("{path} is in use by another process, or mounted")]
    Busy {
        /// The path.
        path: PathBuf,
    },
    /// It does not hold a single segment.
    #[error("{path} has {bytes} bytes, less than one segment")]
    TooSmall {
        /// The path.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The host refused.
    #[error("cannot {operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}
