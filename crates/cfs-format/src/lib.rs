//! Identifiers and byte layouts of everything that ClaudeFS writes to a device.
//!
//! This crate describes bytes and holds no behaviour: no I/O, no keys, no clock. Every multi-byte integer in a fixed
//! layout is little-endian; integers inside table keys are big-endian so that bytes sort as numbers do. The prose for
//! each structure is in `docs/format/`.

pub mod ids;
pub mod journal;
#[cfg(feature = "planted-bugs")]
pub mod planted;
pub mod segment;
pub mod stream;
pub mod superblock;
pub mod table;

pub use ids::{
    DomainId, Fingerprint, Ino, KeyEpoch, Lsn, SegmentId, SegmentSeq, Timestamp, ViewId, VolumeId,
};

/// Bytes in a segment, the unit of allocation of the pool.
pub const SEGMENT_BYTES: u32 = 2 << 20;

/// Bytes in a device block. Writes start and end on block boundaries.
pub const BLOCK_BYTES: u32 = 4096;

/// A version of the on-disk format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatVersion {
    /// The number in the superblock.
    pub number: u32,
    /// A short name.
    pub name: &'static str,
    /// What this version is or changed.
    pub sentence: &'static str,
}

/// Every version there has been, oldest first; the last one is what this build writes.
pub const FORMAT_VERSIONS: &[FormatVersion] = &[FormatVersion {
    number: 1,
    name: "first",
    sentence: "Segments, journal, two table trees, chunks under chunk keys, extents under file keys.",
}];

/// The version that this build writes.
pub const FORMAT_VERSION: u32 = FORMAT_VERSIONS[FORMAT_VERSIONS.len() - 1].number;

/// Bytes that do not form the structure that was expected at their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatError {
    /// The structure that was expected.
    pub structure: &'static str,
    /// The field or rule that did not hold.
    pub rule: &'static str,
}

impl std::fmt::Display for FormatError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "not a valid {}: {}", self.structure, self.rule)
    }
}

impl std::error::Error for FormatError {}
