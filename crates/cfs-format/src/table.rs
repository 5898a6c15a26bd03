//! Keys and values of the tables.
//!
//! There are two trees. The **meta** tree holds the namespace: its keys are `ino (8 bytes, big-endian), tag (1 byte),
//! suffix`, so that all that belongs to an inode lies together: its attributes, inline content, xattrs, extents,
//! and, for a directory, its entries. Inode 0 does not exist; its keys are the system's own records. The **chunk**
//! tree maps a fingerprint to where the chunk lies and how often it is referenced.
//!
//! Values are fixed layouts followed, where said, by bytes of varying length.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, little_endian as le};

use crate::{FormatError, Ino};

/// What follows the inode number in a key of the meta tree.
pub mod tag {
    /// Attributes; no suffix; value `InodeRecord`.
    pub const INODE: u8 = 0x10;
    /// Content of a small file or target of a symbolic link; no suffix; value: the bytes.
    pub const INLINE: u8 = 0x20;
    /// Extended attribute; suffix: name; value: the bytes.
    pub const XATTR: u8 = 0x30;
    /// Extent; suffix: file offset, u64 big-endian; value `ExtentRecord`.
    pub const EXTENT: u8 = 0x40;
    /// Directory entry by name; suffix: name; value `DirentRecord`.
    pub const DIRENT: u8 = 0x50;
    /// Directory entry by cookie, for readdir; suffix: cookie, u64 big-endian; value `CookieRecord`, then the name.
    pub const COOKIE: u8 = 0x60;

    /// System, inode 0: volume; suffix: id, u32 big-endian; value `VolumeRecord`.
    pub const VOLUME: u8 = 0x11;
    /// System, inode 0: dedup domain; suffix: id, u16 big-endian; value: the 32-byte secret.
    pub const DOMAIN: u8 = 0x12;
    /// System, inode 0: an inode without a name; suffix: inode number, u64 big-endian; no value.
    pub const ORPHAN: u8 = 0x13;
    /// System, inode 0: what is in a segment; suffix: index, u32 big-endian; value `SegmentRecord`.
    pub const SEGMENT: u8 = 0x14;
    /// System, inode 0: a chunk that nothing references; suffix: fingerprint; no value.
    pub const DEAD_CHUNK: u8 = 0x15;
    /// System, inode 0: pool-wide counters; no suffix; value `PoolRecord`.
    pub const POOL: u8 = 0x16;
    /// System, inode 0: next inode number of a shard; suffix: shard, u8; value u64 little-endian.
    pub const NEXT_INO: u8 = 0x17;
    /// System, inode 0: a file to re-chunk; suffix: inode number, u64 big-endian; no value.
    pub const FRAGMENTED: u8 = 0x18;
    /// System, inode 0: the last recount of references; no suffix; value `RecountRecord`.
    pub const RECOUNT: u8 = 0x19;
}

/// The key `(ino, tag, suffix)` of the meta tree.
#[must_use]
pub fn key(ino: Ino, tag: u8, suffix: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(9 + suffix.len());
    key.extend_from_slice(&ino.0.to_be_bytes());
    key.push(tag);
    key.extend_from_slice(suffix);
    key
}

/// The key of a system record.
#[must_use]
pub fn system_key(tag: u8, suffix: &[u8]) -> Vec<u8> {
    key(Ino(0), tag, suffix)
}

/// Inode number, tag and suffix of a key of the meta tree.
///
/// # Errors
/// When the key has fewer than nine bytes.
pub fn split_key(key: &[u8]) -> Result<(Ino, u8, &[u8]), FormatError> {
    let error = FormatError {
        structure: "meta key",
        rule: "at least nine bytes",
    };
    let (ino, rest) = key.split_first_chunk::<8>().ok_or(error)?;
    let (tag, suffix) = rest.split_first().ok_or(error)?;
    Ok((Ino(u64::from_be_bytes(*ino)), *tag, suffix))
}

/// Seconds and nanoseconds since 1970; seconds may be negative, nanoseconds are 0..=999,999,999.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct TimeRecord {
    /// Whole seconds.
    pub seconds: le::I64,
    /// Nanoseconds.
    pub nanos: le::U32,
}

/// Attributes of an inode.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct InodeRecord {
    /// Type and permission bits, as `st_mode`.
    pub mode: le::U32,
    /// Owner.
    pub uid: le::U32,
    /// Group.
    pub gid: le::U32,
    /// Names that point here; a directory counts itself and its subdirectories.
    pub nlink: le::U32,
    /// Device number of a device node, as `st_rdev`.
    pub rdev: le::U64,
    /// Bytes of content.
    pub size: le::U64,
    /// Bytes of content that extents or inline data hold; what `st_blocks` counts.
    pub allocated: le::U64,
    /// Last access.
    pub atime: TimeRecord,
    /// Last change of content.
    pub mtime: TimeRecord,
    /// Last change of attributes.
    pub ctime: TimeRecord,
    /// Creation.
    pub btime: TimeRecord,
    /// Timestamp (hybrid logical clock) of the command that wrote this record.
    pub timestamp: le::U64,
    /// Directories: the parent; others: 0.
    pub parent: le::U64,
    /// Directories: cookie of the next entry; others: 0.
    pub next_cookie: le::U64,
    /// The volume it belongs to.
    pub volume: le::U32,
    /// `inode_flag::*`.
    pub flags: le::U32,
    /// Salt of the file key.
    pub salt: [u8; 16],
}

/// Bits of `InodeRecord::flags`.
pub mod inode_flag {
    /// Content is in the `INLINE` record.
    pub const INLINE: u32 = 1;
    /// There is at least one `XATTR` record.
    pub const XATTRS: u32 = 2;
}

const _: () = assert!(size_of::<InodeRecord>() == 136);

/// A directory entry, found by name.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DirentRecord {
    /// The inode.
    pub ino: le::U64,
    /// Its place in readdir's order.
    pub cookie: le::U64,
    /// Timestamp (hybrid logical clock) of the command that wrote this record.
    pub timestamp: le::U64,
    /// File type, as `st_mode >> 12`.
    pub kind: u8,
}

const _: () = assert!(size_of::<DirentRecord>() == 25);

/// A directory entry, found by cookie; the name follows.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct CookieRecord {
    /// The inode.
    pub ino: le::U64,
    /// File type, as `st_mode >> 12`.
    pub kind: u8,
}

/// A range of a file and the part of a chunk that it shows.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ExtentRecord {
    /// Bytes of the file that it covers, from the offset in the key.
    pub len: le::U32,
    /// Where in the chunk they start.
    pub chunk_offset: le::U32,
    /// Bytes of the whole chunk.
    pub chunk_len: le::U32,
    /// Dedup domain of the chunk.
    pub domain: le::U16,
    /// Zero.
    pub reserved: le::U16,
    /// Timestamp (hybrid logical clock) of the command that wrote this record.
    pub timestamp: le::U64,
    /// The chunk's fingerprint, XORed with the file key's stream for (offset, timestamp).
    pub masked_fingerprint: [u8; 32],
}

const _: () = assert!(size_of::<ExtentRecord>() == 56);

/// Where a chunk lies: the value of the chunk tree.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ChunkRecord {
    /// Segment.
    pub segment: le::U32,
    /// Byte offset of the record.
    pub offset: le::U32,
    /// Bytes of the whole record.
    pub record_len: le::U32,
    /// Bytes of content.
    pub raw_len: le::U32,
    /// Extents that show a part of it.
    pub refs: le::U32,
    /// Dedup domain.
    pub domain: le::U16,
    /// `segment::CODEC_*`.
    pub codec: u8,
    /// Zero.
    pub reserved: u8,
}

const _: () = assert!(size_of::<ChunkRecord>() == 24);

/// The segment of a chunk that is referenced and that no segment holds: an anchor, where chunks never lie.
pub const LOST_SEGMENT: u32 = 0;

impl ChunkRecord {
    /// Whether the content is nowhere.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.segment.get() == LOST_SEGMENT
    }
}

/// What is in a segment.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct SegmentRecord {
    /// Number of the filling.
    pub seq: le::U64,
    /// Bytes of records that the chunk tree points to.
    pub live_bytes: le::U32,
    /// Bytes that have been written.
    pub used_bytes: le::U32,
    /// `segment::Stream`.
    pub stream: u8,
    /// Zero.
    pub reserved: [u8; 7],
}

const _: () = assert!(size_of::<SegmentRecord>() == 24);

/// Counters of the whole pool, as of the checkpoint.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PoolRecord {
    /// Chunks in the chunk tree.
    pub chunk_count: le::U64,
    /// Their content, bytes.
    pub chunk_raw_bytes: le::U64,
    /// Their records, bytes.
    pub chunk_stored_bytes: le::U64,
    /// References to them.
    pub reference_count: le::U64,
    /// Content that the references stand for, bytes, counting a chunk once a reference.
    pub referenced_bytes: le::U64,
}

/// What the last recount of references has found, as of the checkpoint.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RecountRecord {
    /// When it was done, nanoseconds since 1970.
    pub finished_ns: le::U64,
    /// Chunks whose count is not that of the extents that show them.
    pub differing: le::U64,
    /// Those of them that no extent shows.
    pub leaked: le::U64,
    /// Those of them that the chunk tree has not.
    pub missing: le::U64,
}

const _: () = assert!(size_of::<RecountRecord>() == 32);

/// A volume.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct VolumeRecord {
    /// Its root directory.
    pub root: le::U64,
    /// Bytes of content of all its files.
    pub logical_bytes: le::U64,
    /// Bytes that extents and inline data hold.
    pub allocated_bytes: le::U64,
    /// Inodes.
    pub inode_count: le::U64,
    /// Creation, nanoseconds since 1970.
    pub created_ns: le::U64,
    /// Dedup domain of new chunks.
    pub domain: le::U16,
    /// `segment::CODEC_*` for new chunks.
    pub codec: u8,
    /// Level of the codec; 0 where it has none.
    pub codec_level: u8,
    /// Zero.
    pub reserved: [u8; 4],
}

const _: () = assert!(size_of::<VolumeRecord>() == 48);
