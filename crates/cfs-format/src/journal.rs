//! Journal segments: after the header block and a copy of it, batches that start at block boundaries.
//!
//! ```text
//! 0      BatchHeader       40 bytes, plain, authenticated with the payload
//! 40     payload           payload_len bytes, sealed under the journal key, nonce = (segment sequence, batch offset)
//! ..     tag               16 bytes, then zeros to the next block boundary
//! ..     parity            one block: the XOR of the blocks before it
//! ```
//! The payload is `record_count` records: `timestamp u64, kind u8, len u32, bytes`. LSNs count up by one a record.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, little_endian as le};

/// Where the first batch of a segment begins: behind the header block and its copy.
pub const BATCHES_OFFSET: u32 = 2 * crate::BLOCK_BYTES;

/// Magic number of a batch.
pub const BATCH_MAGIC: u32 = 0x434a_4253;

/// The plain start of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BatchHeader {
    /// `BATCH_MAGIC`.
    pub magic: le::U32,
    /// Bytes of the payload without its tag.
    pub payload_len: le::U32,
    /// LSN of the first record.
    pub first_lsn: le::U64,
    /// All commands with an LSN up to this one were known to be flushed, with their chunks, when this was written.
    pub durable_lsn: le::U64,
    /// Number of records; none when the batch only tells what is durable.
    pub record_count: le::U32,
    /// Zero.
    pub reserved: le::U32,
    /// Sequence number of the segment.
    pub seq: le::U64,
}

const _: () = assert!(size_of::<BatchHeader>() == 40);

/// Bytes of a record before its own bytes: timestamp, kind, length.
pub const RECORD_PREFIX_BYTES: usize = 8 + 1 + 4;

/// A command of the store itself (chunks moved, chunks dropped).
pub const KIND_STORE: u8 = 1;
/// A command of the namespace.
pub const KIND_NAMESPACE: u8 = 2;
