//! Keys and values of the tables.
//!
//! There are two trees. The **meta** tree holds the namespace: its keys are `ino (8 bytes, big-endian), tag (1 byte),
//! suffix`, so that all that belongs to an inode lies together: its attributes, inline content, xattrs, extents,
//! and, for a directory, its entries. Inode 0 does not exist; its keys are the system's own records. The **chunk**
//! tree maps a fingerprint to where the chunk lies and how often it is referenced.
//!
//! Values are fixed layouts followed, where said, by bytes of varying length.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, little_endian as le};

use crate::{FormatError, Ino, Timestamp, VolumeId};

/// What follows the inode number in a key of the meta tree.
pub mod tag {
    /// Attributes; no suffix; value `InodeRecord`.
    pub const INODE: u8 = 0x10;
    /// Content of a small file or target of a symbolic link; no suffix; value `StampRecord`, then the bytes.
    pub const INLINE: u8 = 0x20;
    /// Extended attribute; suffix: name; value `StampRecord`, then the bytes.
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
    /// System, inode 0: an inode without a name; suffix: inode number, u64 big-endian; value `StampRecord`.
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

    /// Tags of inode 0 from here on belong to the file system alone; the store does not look at their rows when it opens.
    pub const FIRST_OF_FILE_SYSTEM: u8 = 0x20;
    /// System, inode 0: snapshot; suffix: volume, u32, and timestamp, u64, big-endian; value `SnapshotRecord`, then the
    /// name and the path.
    pub const SNAPSHOT: u8 = 0x21;
    /// System, inode 0: an earlier state of a row; suffix: see `history_key`; value: that row's, of an extent
    /// `HeldExtentRecord`.
    pub const HISTORY: u8 = 0x22;
    /// System, inode 0: says that a `HISTORY` row is there, in the order of their ends; suffix: see `ended_key`; no
    /// value.
    pub const ENDED: u8 = 0x23;
    /// System, inode 0: history that a deleted snapshot may have been the last to need; suffix: volume, u32, and
    /// timestamp, u64, big-endian; value `PruneRecord`, then the end of the last `ENDED` key that was looked at.
    pub const PRUNE: u8 = 0x24;
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

/// The part of a `HISTORY` key that all states of one row share, without the tag of the system record: inode, tag and
/// suffix of the row. Suffixes that are names have a zero byte after them, so that keys sort as the rows do.
#[must_use]
pub fn history_prefix(ino: Ino, row_tag: u8, suffix: &[u8]) -> Vec<u8> {
    let mut prefix = system_key(tag::HISTORY, &ino.0.to_be_bytes());
    prefix.push(row_tag);
    prefix.extend_from_slice(suffix);
    if matches!(row_tag, tag::XATTR | tag::DIRENT) {
        prefix.push(0);
    }
    prefix
}

/// The `HISTORY` key of the state of a row that ended at `to`, the timestamp of the command that replaced it.
#[must_use]
pub fn history_key(ino: Ino, row_tag: u8, suffix: &[u8], to: u64) -> Vec<u8> {
    let mut key = history_prefix(ino, row_tag, suffix);
    key.extend_from_slice(&to.to_be_bytes());
    key
}

/// Inode, tag and suffix of the row, and the end of the state, from the suffix of a `HISTORY` key.
///
/// # Errors
/// When it is none.
pub fn split_history(suffix: &[u8]) -> Result<(Ino, u8, &[u8], u64), FormatError> {
    let error = |rule| FormatError {
        structure: "history key",
        rule,
    };
    let (ino, row_tag, rest) = split_key(suffix).map_err(|_| error("at least nine bytes"))?;
    let (name, to) = rest.split_last_chunk::<8>().ok_or(error("an end"))?;
    let name = match row_tag {
        tag::XATTR | tag::DIRENT => name.strip_suffix(&[0]).ok_or(error("a zero byte"))?,
        _ => name,
    };
    Ok((ino, row_tag, name, u64::from_be_bytes(*to)))
}

/// The `ENDED` key for a `HISTORY` row: volume, end, then inode, tag and suffix of the row.
#[must_use]
pub fn ended_key(volume: u32, to: u64, ino: Ino, row_tag: u8, suffix: &[u8]) -> Vec<u8> {
    let mut key = system_key(tag::ENDED, &volume.to_be_bytes());
    key.extend_from_slice(&to.to_be_bytes());
    key.extend_from_slice(&ino.0.to_be_bytes());
    key.push(row_tag);
    key.extend_from_slice(suffix);
    key
}

/// Volume, end, inode, tag and suffix from the suffix of an `ENDED` key.
///
/// # Errors
/// When it is none.
pub fn split_ended(suffix: &[u8]) -> Result<(u32, u64, Ino, u8, &[u8]), FormatError> {
    let error = FormatError {
        structure: "key of an ended row",
        rule: "volume, end, inode and tag",
    };
    let (volume, rest) = suffix.split_first_chunk::<4>().ok_or(error)?;
    let (to, rest) = rest.split_first_chunk::<8>().ok_or(error)?;
    let (ino, row_tag, name) = split_key(rest).map_err(|_| error)?;
    let (volume, to) = (u32::from_be_bytes(*volume), u64::from_be_bytes(*to));
    Ok((volume, to, ino, row_tag, name))
}

/// When a row was written; in front of values that have no layout of their own.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct StampRecord {
    /// Timestamp (hybrid logical clock) of the command that wrote this row.
    pub timestamp: le::U64,
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
    /// A record that front ends keep describes the content as it is; every change of content clears it.
    pub const DESCRIBED: u32 = 4;
    /// There is a lock: an attribute row `LOCK_NAME`. Of a directory: neither it nor one below it is moved.
    pub const LOCKED: u32 = 8;
    /// An empty directory in whose place the root of another volume is seen.
    pub const JUNCTION: u32 = 16;
    /// In a clone: rows are being copied from the origin, which is still what is seen.
    pub const COPYING: u32 = 32;
    /// In a clone: the inode of the origin has been removed here. There is no other row of it, and only volume and
    /// timestamp count.
    pub const GONE: u32 = 64;
}

/// Name of the attribute row that holds a `LockRecord` behind its `StampRecord`; in no namespace of Linux.
pub const LOCK_NAME: &[u8] = b"fs.lock";

/// Until when a file may be neither removed nor changed.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct LockRecord {
    /// End of its retention, milliseconds since 1970; 0 with mode 0.
    pub retain_until_ms: le::U64,
    /// `lock_mode::*`.
    pub mode: u8,
    /// 1: held until somebody ends it, whatever its retention.
    pub hold: u8,
    /// Zero.
    pub reserved: [u8; 6],
}

/// Values of `LockRecord::mode`.
pub mod lock_mode {
    /// It is not retained.
    pub const NONE: u8 = 0;
    /// Who has the right may shorten its retention or remove it.
    pub const GOVERNANCE: u8 = 1;
    /// Nobody may, until the end.
    pub const COMPLIANCE: u8 = 2;
}

const _: () = assert!(size_of::<LockRecord>() == 16);

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
    /// Timestamp (hybrid logical clock) of the command that wrote this record.
    pub timestamp: le::U64,
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

/// An extent that only snapshots show, with what its file's key is made of: it may outlive all records of its inode.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct HeldExtentRecord {
    /// The extent.
    pub extent: ExtentRecord,
    /// Salt of the file key.
    pub salt: [u8; 16],
    /// The volume of the file.
    pub volume: le::U32,
}

const _: () = assert!(size_of::<HeldExtentRecord>() == 76);

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
    /// `chunk_flag::*`.
    pub flags: u8,
}

const _: () = assert!(size_of::<ChunkRecord>() == 24);

/// Bits of `ChunkRecord::flags`.
pub mod chunk_flag {
    /// The record could not be opened: the next one of equal content takes its place.
    pub const DAMAGED: u8 = 1;
    /// More extents show the chunk than are counted: it stays whatever its count, and is in no list of those to reclaim.
    pub const DISPUTED: u8 = 2;
}

/// The segment of a chunk that is referenced and that no segment holds: an anchor, where chunks never lie.
pub const LOST_SEGMENT: u32 = 0;

impl ChunkRecord {
    /// Whether the content is nowhere.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.segment.get() == LOST_SEGMENT
    }

    /// Whether the content is lost or could not be read.
    #[must_use]
    pub fn is_bad(&self) -> bool {
        self.is_lost() || self.flags & chunk_flag::DAMAGED != 0
    }

    /// Whether more extents show it than are counted.
    #[must_use]
    pub fn is_disputed(&self) -> bool {
        self.flags & chunk_flag::DISPUTED != 0
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
    /// Chunks that are lost or could not be read.
    pub bad_chunks: le::U64,
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
    /// Timestamp of its newest snapshot; 0 when it has none.
    pub newest_snapshot: le::U64,
    /// Dedup domain of new chunks.
    pub domain: le::U16,
    /// `segment::CODEC_*` for new chunks.
    pub codec: u8,
    /// Level of the codec; 0 where it has none.
    pub codec_level: u8,
    /// Zero.
    pub reserved: [u8; 4],
    /// The directory in another volume in whose place its root is seen; 0 for the first volume.
    pub junction: le::U64,
    /// Most `logical_bytes`; 0: no bound.
    pub quota_bytes: le::U64,
    /// Most `inode_count`; 0: no bound.
    pub quota_inodes: le::U64,
    /// Of a clone, the snapshot that it shows where it has not been changed; else 0.
    pub origin_timestamp: le::U64,
    /// The volume of that snapshot; 0 for what is no clone, and for a clone whose record a rebuild has made anew.
    pub origin_volume: le::U32,
    /// `volume_flag::*`.
    pub flags: le::U32,
}

const _: () = assert!(size_of::<VolumeRecord>() == 96);

/// Bits of `VolumeRecord::flags`.
pub mod volume_flag {
    /// A clone that has been removed: its rows go in the background, and then this one.
    pub const REMOVED: u32 = 1;
    /// A clone in which something has been locked: it is not removed with what is in it.
    pub const LOCKED: u32 = 2;
}

/// Bytes of a `VolumeRecord` up to and with its `reserved`, and to and with its quotas: what is behind is left out where
/// it is all zero.
pub const VOLUME_BASE_BYTES: [usize; 2] = [56, 80];

impl VolumeRecord {
    /// The record in a value; what is left out is zero.
    ///
    /// # Errors
    /// When the value is shorter than the first of [`VOLUME_BASE_BYTES`] or longer than the record.
    pub fn decode(value: &[u8]) -> Result<Self, FormatError> {
        let mut bytes = [0; size_of::<Self>()];
        if value.len() < VOLUME_BASE_BYTES[0] || value.len() > bytes.len() {
            return Err(FormatError {
                structure: "volume record",
                rule: "a length of 56 to 96 bytes",
            });
        }
        bytes[..value.len()].copy_from_slice(value);
        Ok(zerocopy::transmute!(bytes))
    }

    /// The value that holds the record.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let bytes = self.as_bytes();
        let is_enough = |len: &usize| bytes[*len..].iter().all(|byte| *byte == 0);
        let len = VOLUME_BASE_BYTES.into_iter().find(is_enough);
        bytes[..len.unwrap_or(bytes.len())].to_vec()
    }

    /// The snapshot that a clone has its inodes from: volume and timestamp. Nothing for what is no clone, and for one
    /// that has been removed.
    #[must_use]
    pub fn origin(&self) -> Option<(VolumeId, Timestamp)> {
        let is_clone = self.origin_volume.get() != 0 && !self.is_removed();
        is_clone.then(|| {
            (
                VolumeId(self.origin_volume.get()),
                Timestamp(self.origin_timestamp.get()),
            )
        })
    }

    /// Whether it is a clone of which only rows to remove are left.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.flags.get() & volume_flag::REMOVED != 0
    }
}

/// A snapshot: a directory as it was before the command with the timestamp in the key.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct SnapshotRecord {
    /// The directory.
    pub directory: le::U64,
    /// When, nanoseconds since 1970.
    pub created_ns: le::U64,
    /// Bytes of content of the whole volume then.
    pub volume_logical_bytes: le::U64,
    /// Inodes of the whole volume then.
    pub volume_inode_count: le::U64,
    /// Stands for it in inode numbers: 1..=2^19-1, no other snapshot of the pool has it.
    pub view: le::U32,
    /// `snapshot_flag::*`.
    pub flags: le::U32,
    /// Bytes of the name, which follows; then comes the path of the directory.
    pub name_len: u8,
    /// Zero.
    pub reserved: [u8; 7],
}

/// Bits of `SnapshotRecord::flags`.
pub mod snapshot_flag {
    /// It cannot be deleted.
    pub const HELD: u32 = 1;
}

const _: () = assert!(size_of::<SnapshotRecord>() == 48);

/// History to go through: states of rows that ended after the timestamp in the key.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PruneRecord {
    /// Up to and with those that ended here.
    pub until: le::U64,
}
