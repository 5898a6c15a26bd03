//! The superblock: one 4 KiB record, appended to both of the pool's anchor segments.
//!
//! Segments 0 and 1 of every pool hold nothing but superblock records, one a block, so that a device that can only
//! append (a ZNS zone) needs nothing else. Every update is appended to both; the valid record with the highest
//! `generation` in either of them is the superblock. The first `BODY_BYTES` bytes are covered by `checksum` (plain
//! BLAKE3, so that damage is seen before any key is known) and by `mac` (BLAKE3 keyed from the cluster key, so that
//! a forged record is refused once the key is known).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, little_endian as le};

use crate::{BLOCK_BYTES, FORMAT_VERSION, FormatError};

/// First bytes of every superblock record.
pub const MAGIC: [u8; 8] = *b"ClaudeFS";

/// Number of anchor segments at the start of the device.
pub const ANCHORS: u32 = 2;

/// AES-256-GCM.
pub const CIPHER_AES_256_GCM: u8 = 1;
/// ChaCha20-Poly1305 (RFC 8439).
pub const CIPHER_CHACHA20_POLY1305: u8 = 2;

/// The master key comes from a passphrase through Argon2id (RFC 9106).
pub const UNLOCK_PASSPHRASE: u8 = 1;
/// The master key is the content of a key file.
pub const UNLOCK_KEY_FILE: u8 = 2;

/// Gear with normalised chunking (FastCDC, ATC '16).
pub const CHUNKER_GEAR: u32 = 1;

/// What the chunker was told; part of the format, because changing it would end deduplication against older data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ChunkParams {
    /// Smallest chunk, bytes, but for the end of a file.
    pub min: le::U32,
    /// Expected mean, bytes, a power of two.
    pub avg: le::U32,
    /// Largest chunk, bytes.
    pub max: le::U32,
    /// `CHUNKER_*`.
    pub algorithm: le::U32,
}

/// How the master key is made, and the keys that it wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct KeySlot {
    /// `UNLOCK_PASSPHRASE` or `UNLOCK_KEY_FILE`.
    pub unlock: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// Argon2id memory, KiB.
    pub argon2_memory_kib: le::U32,
    /// Argon2id passes.
    pub argon2_passes: le::U32,
    /// Argon2id lanes.
    pub argon2_lanes: le::U32,
    /// Argon2id salt.
    pub argon2_salt: [u8; 16],
    /// Nonce of `wrapped`.
    pub nonce: [u8; 12],
    /// Zero.
    pub reserved2: le::U32,
    /// The cluster key (32 bytes) sealed by the master key, then the 16-byte tag.
    pub wrapped_cluster_key: [u8; 48],
}

/// Position in the journal: a segment and a byte offset within it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct JournalPosition {
    /// Segment that holds the next journal block to replay.
    pub segment: le::U32,
    /// Byte offset of that block.
    pub offset: le::U32,
    /// Sequence number that the segment must carry.
    pub seq: le::U64,
    /// LSN of the first command to replay.
    pub lsn: le::U64,
}

/// Where a sealed blob lies.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct BlobPointer {
    /// Segment.
    pub segment: le::U32,
    /// Byte offset within it.
    pub offset: le::U32,
    /// Sequence number that the segment must carry.
    pub seq: le::U64,
    /// Bytes on the device.
    pub stored_len: le::U32,
    /// Bytes that are used of the segment, parity included.
    pub segment_used_bytes: le::U32,
}

/// The superblock record. Static fields come first, then keys, then what each checkpoint changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Superblock {
    /// `MAGIC`.
    pub magic: [u8; 8],
    /// Format version.
    pub version: le::U32,
    /// Bytes in a segment.
    pub segment_bytes: le::U32,
    /// Identity of the pool.
    pub pool_uuid: [u8; 16],
    /// Creation, nanoseconds since 1970.
    pub created_ns: le::U64,
    /// `CIPHER_*`.
    pub cipher: u8,
    /// Zero.
    pub reserved: [u8; 7],
    /// Chunker parameters.
    pub chunk: ChunkParams,
    /// Largest number of segments the pool may use; 0 when the device alone decides.
    pub segments_max: le::U64,
    /// The key slot.
    pub key_slot: KeySlot,
    /// Counted up with each record.
    pub generation: le::U64,
    /// Counted up with each open; part of every `SegmentSeq`.
    pub incarnation: le::U32,
    /// 1 after a clean shutdown: nothing to replay.
    pub clean: le::U32,
    /// Where replay starts.
    pub journal: JournalPosition,
    /// The table manifest of the last checkpoint.
    pub manifest: BlobPointer,
    /// A second copy of the manifest.
    pub manifest_copy: BlobPointer,
    /// Timestamp (hybrid logical clock) of the last command in the checkpoint.
    pub checkpoint_timestamp: le::U64,
}

/// Bytes of a record that `checksum` and `mac` cover.
pub const BODY_BYTES: usize = BLOCK_BYTES as usize - 64;
/// Offset of the BLAKE3 hash of the body.
pub const CHECKSUM_OFFSET: usize = BODY_BYTES;
/// Offset of the keyed BLAKE3 hash of the body.
pub const MAC_OFFSET: usize = BODY_BYTES + 32;

const _: () = assert!(size_of::<Superblock>() == 264);
const _: () = assert!(size_of::<Superblock>() <= BODY_BYTES);

impl Superblock {
    /// The record's fields from a block. Checks magic, version and segment size, not the checksum.
    ///
    /// # Errors
    /// When the block is no superblock of a version that this build reads.
    pub fn decode(block: &[u8]) -> Result<Self, FormatError> {
        let error = |rule| FormatError {
            structure: "superblock",
            rule,
        };
        let (superblock, _) =
            Self::read_from_prefix(block).map_err(|_| error("shorter than its fields"))?;
        if superblock.magic != MAGIC {
            return Err(error("magic"));
        }
        if superblock.version.get() == 0 || superblock.version.get() > FORMAT_VERSION {
            return Err(error("version"));
        }
        if superblock.segment_bytes.get() != crate::SEGMENT_BYTES {
            return Err(error("segment size"));
        }
        Ok(superblock)
    }
}
