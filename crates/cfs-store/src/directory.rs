//! What a table segment says of itself: a directory of its blocks, and whose they are.
//!
//! Manifests name the runs and where their blocks lie. Once they are gone, a table segment is bytes without borders. So
//! each ends with one more sealed block, its directory, to which the segment's header points. From the directories of
//! all segments, [`crate::rebuild`] finds the newest tables again.

use cfs_format::segment::{SegmentHeader, Stream};
use cfs_format::superblock::JournalPosition;
use cfs_format::{BLOCK_BYTES, SEGMENT_BYTES, SegmentId, SegmentSeq, Timestamp};
use cfs_kv::BlockPtr;
use serde::{Deserialize, Serialize};

use crate::error::ReadError;
use crate::pool::Pool;
use crate::runs::{SegmentRuns, TableBlock};

/// Whose blocks a table segment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TableOwner {
    /// A run of the meta tree.
    Meta,
    /// A run of the chunk tree.
    Chunk,
    /// A manifest.
    Manifest,
}

/// A position in the log and the newest timestamp before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogMark {
    segment: u32,
    offset: u32,
    seq: u64,
    lsn: u64,
    timestamp: u64,
}

impl LogMark {
    pub fn new(position: &JournalPosition, timestamp: Timestamp) -> Self {
        Self {
            segment: position.segment.get(),
            offset: position.offset.get(),
            seq: position.seq.get(),
            lsn: position.lsn.get(),
            timestamp: timestamp.0,
        }
    }

    pub fn position(&self) -> JournalPosition {
        JournalPosition {
            segment: self.segment.into(),
            offset: self.offset.into(),
            seq: self.seq.into(),
            lsn: self.lsn.into(),
        }
    }

    pub fn timestamp(&self) -> Timestamp {
        Timestamp(self.timestamp)
    }
}

/// Comes with the last run that a checkpoint writes of the meta tree: a third copy of what its manifest says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CheckpointNote {
    /// Manifest of the meta tree without this run.
    pub tree_before: Vec<u8>,
    /// Segment number, sequence number and bytes used of the segments that it names.
    pub segments: Vec<(u32, u64, u32)>,
    /// What else the manifest says.
    pub mark: CheckpointMark,
}

/// What belongs to a checkpoint beside the tables.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CheckpointMark {
    /// Where the log goes on.
    pub log: LogMark,
    /// Secrets of the dedup domains, as the tables hold them: without them no chunk can be opened.
    pub domains: Vec<(u16, [u8; 32])>,
    /// Data segments with this sequence number, or a later one, may hold chunks without a row in the segment table.
    pub unlisted_from: u64,
}

/// The directory of a table segment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Directory {
    /// Whose blocks these are.
    pub owner: TableOwner,
    /// Sequence number of the first segment of the run or manifest.
    pub first_seq: u64,
    /// Place of this segment among those of the run or manifest, from 0 on.
    pub part: u32,
    /// Whether it is the last of them: then its last block is the root.
    pub is_last: bool,
    /// Stored lengths of the blocks, which follow one another from the second device block on.
    pub blocks: Vec<u32>,
    /// What the last run of a checkpoint brings.
    pub note: Option<CheckpointNote>,
}

impl Directory {
    /// Most bytes of a directory of this many blocks, without a note, sealed.
    pub fn bytes_max(blocks: usize) -> u32 {
        /// The other fields, and what sealing adds.
        const FIXED_BYTES: usize = 64;
        /// A length of up to 2 MiB, in the variable form.
        const LENGTH_BYTES: usize = 3;
        (FIXED_BYTES + blocks * LENGTH_BYTES) as u32
    }

    /// The blocks, in order; none that would lie beyond the segment.
    pub fn blocks(&self, segment: SegmentId) -> impl Iterator<Item = BlockPtr> + use<> {
        let mut offset = u64::from(BLOCK_BYTES);
        let start = u64::from(segment.0) * u64::from(SEGMENT_BYTES);
        let blocks = self
            .blocks
            .clone()
            .into_iter()
            .map_while(move |stored_len| {
                let place = start + offset;
                offset += u64::from(stored_len);
                (offset <= u64::from(SEGMENT_BYTES)).then_some(BlockPtr { place, stored_len })
            });
        blocks.filter(|block| block.stored_len > 0)
    }
}

/// Where a table segment's directory lies, and how much of the segment is used, as its header tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirectoryPlace {
    pub offset: u32,
    pub stored_len: u32,
    pub used_bytes: u32,
}

impl DirectoryPlace {
    /// The two numbers that stand in the header: `next` and `first_lsn`.
    pub fn header_fields(self) -> (u32, u64) {
        let lengths = u64::from(self.stored_len) << 32 | u64::from(self.used_bytes);
        (self.offset, lengths)
    }

    /// The inverse; `None` for a header of another stream.
    pub fn of_header(header: &SegmentHeader) -> Option<Self> {
        (header.stream == Stream::Table as u8).then(|| {
            let lengths = header.first_lsn.get();
            Self {
                offset: header.next.get(),
                stored_len: (lengths >> 32) as u32,
                used_bytes: lengths as u32,
            }
        })
    }
}

/// Reads the directory of a table segment.
///
/// # Errors
/// It is damaged beyond what parity restores, or the device fails.
pub(crate) fn read_directory(
    pool: &Pool,
    segment: SegmentId,
    seq: SegmentSeq,
    place: DirectoryPlace,
) -> Result<Directory, ReadError> {
    let bytes = SegmentRuns::open_block(
        pool,
        TableBlock {
            place: u64::from(segment.0) * u64::from(SEGMENT_BYTES) + u64::from(place.offset),
            stored_len: place.stored_len,
            seq,
            used_bytes: place.used_bytes,
        },
    )?;
    postcard::from_bytes(&bytes).map_err(|_| ReadError::Record {
        what: "directory of a table segment",
    })
}
