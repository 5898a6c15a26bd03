//! Segments: a header block, then what the stream puts there, then (data segments) a footer table.
//!
//! A data segment is a run of records, each a prefix, a sealed header and a sealed payload:
//!
//! ```text
//! 0      RecordPrefix       8 bytes, plain
//! 8      RecordHeader      80 bytes, sealed under the segment-header key, nonce = (segment sequence, record offset)
//! 88     tag               16 bytes
//! 104    payload           payload_len bytes, sealed under the chunk key
//! ..     tag               16 bytes
//! ```
//! Records start at multiples of `RECORD_ALIGN`. After the last record of a full segment comes the footer: the sealed
//! array of `FooterEntry`, and in the last `FooterTrailer::BYTES` of the segment its trailer. A segment that was open
//! when the process died has no footer; its records are found by walking the prefixes.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, little_endian as le};

use crate::FormatError;

/// First bytes of a segment header.
pub const MAGIC: [u8; 8] = *b"CFSsegmt";

/// What a segment is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stream {
    /// The log.
    Journal = 1,
    /// Sorted runs of the tables, and manifests.
    Table = 2,
    /// Chunks as they arrive.
    Data = 3,
    /// Chunks that compaction has moved.
    ColdData = 4,
}

impl Stream {
    /// The stream with this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Journal, Self::Table, Self::Data, Self::ColdData]
            .into_iter()
            .find(|stream| *stream as u8 == number)
    }
}

/// The first 96 bytes of a segment's first block; the rest of the block is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SegmentHeader {
    /// `MAGIC`.
    pub magic: [u8; 8],
    /// Format version that wrote it.
    pub version: le::U32,
    /// `Stream`.
    pub stream: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// The pool it belongs to.
    pub pool_uuid: [u8; 16],
    /// Number of this filling.
    pub seq: le::U64,
    /// The segment's own index, so that a misdirected write is seen.
    pub segment: le::U32,
    /// Journal: the segment that follows this one. Other streams: 0.
    pub next: le::U32,
    /// Journal: LSN of the first command in this segment. Other streams: 0.
    pub first_lsn: le::U64,
    /// Creation, nanoseconds since 1970.
    pub created_ns: le::U64,
    /// Keyed BLAKE3 of the bytes before it.
    pub mac: [u8; 32],
}

/// Bytes of a segment header that `mac` covers.
pub const HEADER_BODY_BYTES: usize = size_of::<SegmentHeader>() - 32;
const _: () = assert!(size_of::<SegmentHeader>() == 96);

impl SegmentHeader {
    /// Header fields from the first bytes of a segment. Checks the magic, not the MAC.
    ///
    /// # Errors
    /// When the bytes are too few, or no segment header.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let error = |rule| FormatError {
            structure: "segment header",
            rule,
        };
        let (header, _) = Self::read_from_prefix(bytes).map_err(|_| error("too short"))?;
        if header.magic != MAGIC {
            return Err(error("magic"));
        }
        Ok(header)
    }
}

/// Records start at multiples of this.
pub const RECORD_ALIGN: u32 = 16;
/// Magic number of a record prefix.
pub const RECORD_MAGIC: u32 = 0x4352_4653;
/// Bytes of an authentication tag.
pub const TAG_BYTES: u32 = 16;

/// The plain start of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RecordPrefix {
    /// `RECORD_MAGIC`.
    pub magic: le::U32,
    /// Bytes of the whole record, this prefix and both tags included, without padding.
    pub record_len: le::U32,
}

/// Stored as it is.
pub const CODEC_NONE: u8 = 0;
/// LZ4 block format.
pub const CODEC_LZ4: u8 = 1;
/// A Zstandard frame (RFC 8878).
pub const CODEC_ZSTD: u8 = 2;

/// The sealed header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RecordHeader {
    /// Keyed hash of the content.
    pub fingerprint: [u8; 32],
    /// Salt of the chunk key.
    pub salt: [u8; 16],
    /// Creation, nanoseconds since 1970; part of the chunk key.
    pub created_ns: le::U64,
    /// Bytes of content.
    pub raw_len: le::U32,
    /// Bytes of the payload without its tag.
    pub payload_len: le::U32,
    /// Key epoch; part of the chunk key.
    pub epoch: le::U32,
    /// Dedup domain.
    pub domain: le::U16,
    /// `CODEC_*`.
    pub codec: u8,
    /// Zero.
    pub reserved: [u8; 9],
}

const _: () = assert!(size_of::<RecordHeader>() == 80);

/// Bytes of a record beside its payload.
pub const RECORD_OVERHEAD: u32 =
    (size_of::<RecordPrefix>() + size_of::<RecordHeader>()) as u32 + 2 * TAG_BYTES;

/// One record in the footer of a data segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FooterEntry {
    /// Keyed hash of the content.
    pub fingerprint: [u8; 32],
    /// Byte offset of the record.
    pub offset: le::U32,
    /// Bytes of the whole record.
    pub record_len: le::U32,
    /// Bytes of content.
    pub raw_len: le::U32,
    /// Dedup domain.
    pub domain: le::U16,
    /// `CODEC_*`.
    pub codec: u8,
    /// Zero.
    pub reserved: u8,
}

const _: () = assert!(size_of::<FooterEntry>() == 48);

/// The last bytes of a full data segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FooterTrailer {
    /// `FOOTER_MAGIC`.
    pub magic: [u8; 8],
    /// Byte offset of the sealed entries.
    pub offset: le::U32,
    /// Number of entries; the sealed array is this many `FooterEntry` and a tag.
    pub entry_count: le::U32,
    /// Sequence number of the segment.
    pub seq: le::U64,
    /// Zero.
    pub reserved: le::U64,
}

/// First bytes of a footer trailer.
pub const FOOTER_MAGIC: [u8; 8] = *b"CFSfootr";
const _: () = assert!(size_of::<FooterTrailer>() == 32);
