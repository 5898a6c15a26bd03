//! What can go wrong in the store, one type an operation.

use std::sync::Arc;

use cfs_device::DeviceError;
use cfs_format::{Fingerprint, SEGMENT_BYTES, SegmentId};
use cfs_kv::RunError;

/// Why something could not be read. Nothing changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// An extent points to a chunk that the index does not know.
    #[error("chunk {fingerprint} is not in the index; run `cfs admin fsck`")]
    Missing {
        /// The chunk.
        fingerprint: Fingerprint,
    },
    /// The content of a chunk was in no segment when the index was rebuilt.
    #[error("chunk {fingerprint} is lost; writing the same content again brings it back")]
    Lost {
        /// The chunk.
        fingerprint: Fingerprint,
    },
    /// Stored bytes do not verify.
    #[error("{what} in segment {segment} at offset {offset} is damaged: {reason}")]
    Damaged {
        /// The structure.
        what: &'static str,
        /// Where.
        segment: SegmentId,
        /// Where in the segment, bytes.
        offset: u32,
        /// What did not hold.
        reason: String,
    },
    /// While the log is replayed: a chunk of a command that may never have been flushed was not written, or not all
    /// of it. The log ends before the command.
    #[error("the chunk in segment {segment} at offset {offset} was not written: {reason}")]
    NotWritten {
        /// Where.
        segment: SegmentId,
        /// Where in the segment, bytes.
        offset: u32,
        /// What did not hold.
        reason: String,
    },
    /// The device failed.
    #[error("{0}")]
    Device(Arc<DeviceError>),
    /// A table could not be read.
    #[error("table: {0}")]
    Table(#[from] RunError),
    /// A value in a table has the wrong form.
    #[error("table record {what} has the wrong form")]
    Record {
        /// The record.
        what: &'static str,
    },
    /// Values in the tables that cannot be true at once.
    #[error("the tables contradict themselves: {what}; run `cfs admin fsck`")]
    Contradiction {
        /// What is not possible.
        what: &'static str,
    },
}

impl From<DeviceError> for ReadError {
    fn from(error: DeviceError) -> Self {
        Self::Device(Arc::new(error))
    }
}

/// There is no room for what was asked. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pool has no room for {needed_bytes} more bytes ({available_bytes} available)")]
pub struct NoSpace {
    /// Bytes asked for.
    pub needed_bytes: u64,
    /// Bytes that could have been given.
    pub available_bytes: u64,
}

/// Why something was not written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WriteError {
    /// No room. Nothing changed.
    #[error(transparent)]
    NoSpace(#[from] NoSpace),
    /// The pool has gone read-only after a device failure, whereby what was not yet durable may be lost, or was opened so.
    /// Nothing changed.
    #[error("the pool is read-only: {reason}")]
    ReadOnly {
        /// The failure, or how it was opened.
        reason: Arc<str>,
    },
    /// Something that had to be read first could not be read. Nothing changed.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl From<RunError> for WriteError {
    fn from(error: RunError) -> Self {
        match error {
            // How much there is was told to who wrote the run; here it is known to be too little for a segment.
            RunError::NoSpace => Self::NoSpace(NoSpace {
                needed_bytes: u64::from(SEGMENT_BYTES),
                available_bytes: 0,
            }),
            // What was to be written, and not read, has failed.
            RunError::Io(source) => match source.downcast_ref() {
                Some(Self::ReadOnly { reason }) => Self::ReadOnly {
                    reason: Arc::clone(reason),
                },
                _ => Self::Read(ReadError::Table(RunError::Io(source))),
            },
            error => Self::Read(ReadError::Table(error)),
        }
    }
}

/// Why a pool could not be made. The device may hold parts of one.
#[derive(Debug, thiserror::Error)]
pub enum FormatPoolError {
    /// There is a pool on the device already. Nothing changed.
    #[error("there is a pool on this device already")]
    Exists,
    /// Too few segments. Nothing changed.
    #[error("a pool needs at least {needed_bytes} bytes, the device has {device_bytes}")]
    TooSmall {
        /// Least size.
        needed_bytes: u64,
        /// Size of the device.
        device_bytes: u64,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Writing the first checkpoint failed.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Why a pool could not be opened. Nothing changed, unless said otherwise.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No superblock in either anchor.
    #[error("there is no ClaudeFS pool here")]
    NotAPool,
    /// The superblock's version is newer than this build reads.
    #[error("the pool has format version {found}; this build reads versions up to {supported}")]
    NewerFormat {
        /// Version of the pool.
        found: u32,
        /// Newest version that this build reads.
        supported: u32,
    },
    /// The passphrase or key file does not open the pool.
    #[error("wrong passphrase or key file for this pool")]
    WrongKey,
    /// The key could not be had.
    #[error("{0}")]
    Unlock(String),
    /// A superblock is there, but its content is damaged or forged.
    #[error("the superblock is damaged: {0}")]
    Superblock(String),
    /// The last checkpoint does not verify.
    #[error("the checkpoint is damaged: {0}")]
    Checkpoint(String),
    /// The device ends before segments that are in use.
    #[error(
        "the pool's device is too short: segment {segment} is in use and the device has {segment_count} segments"
    )]
    Truncated {
        /// A segment in use.
        segment: SegmentId,
        /// Segments on the device.
        segment_count: u32,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A table could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The log cannot be read to its end. Only its damaged blocks may have been restored.
    #[error(
        "the log is damaged in segment {segment} at offset {offset}: what follows command {last_lsn} cannot be read, {}", known_loss(*last_lsn, *durable_lsn)
    )]
    LogDamaged {
        /// Where a batch is missing.
        segment: SegmentId,
        /// Where in the segment, bytes.
        offset: u32,
        /// The last command that can be read.
        last_lsn: u64,
        /// The last one that is known to have been durable; not after `last_lsn` when nothing tells whether any is
        /// missing.
        durable_lsn: u64,
    },
    /// A command of the log could not be applied.
    #[error("replay stopped at log position {lsn}: {reason}")]
    Replay {
        /// Log position.
        lsn: u64,
        /// What was wrong.
        reason: String,
    },
    /// The checkpoint after recovery could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

fn known_loss(last_lsn: u64, durable_lsn: u64) -> String {
    if durable_lsn > last_lsn {
        format!("although {durable_lsn} had been durable")
    } else {
        "and nothing tells whether anything did".to_owned()
    }
}

/// Why the key was not had; given by the caller's unlock function.
#[derive(Debug)]
pub enum UnlockError {
    /// It does not fit.
    WrongKey,
    /// It could not be read or asked for.
    Unavailable(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a full host a checkpoint ended with what front ends report as damage.
    #[test]
    fn a_run_without_room_is_a_lack_of_space() {
        let error = WriteError::from(RunError::NoSpace);
        assert!(matches!(error, WriteError::NoSpace(_)), "{error:?}");
    }
}
