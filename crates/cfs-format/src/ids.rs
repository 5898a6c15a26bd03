//! One type for each kind of identifier, so that none is taken for another.

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// A segment's index on its device; segment `n` lies at byte `n * SEGMENT_BYTES`.
    SegmentId(u32)
}
id! {
    /// The number of one filling of a segment: high 24 bits the pool's incarnation (counted up at every open), low 40
    /// bits a counter. It is never used twice, so it can stand in a nonce.
    SegmentSeq(u64)
}
id! {
    /// Position of a command in the log, counted from 1.
    Lsn(u64)
}
id! {
    /// An inode number: high 8 bits the metadata shard, low 56 bits a counter within it. Never reused.
    Ino(u64)
}
id! {
    /// A volume: the unit of snapshot retention, codec choice, quota and dedup domain.
    VolumeId(u32)
}
id! {
    /// A dedup domain: chunks are shared within it and unrelated outside.
    DomainId(u16)
}
id! {
    /// The generation of the key that chunks are sealed under.
    KeyEpoch(u32)
}
id! {
    /// A hybrid logical clock value (Kulkarni et al., 2014): milliseconds since 1970 in the high 48 bits, a counter
    /// in the low 16. Each command has one, larger than that of every command before it.
    Timestamp(u64)
}

impl Ino {
    /// The root directory.
    pub const ROOT: Self = Self(1);

    /// The metadata shard that owns this inode.
    #[must_use]
    pub fn shard(self) -> u8 {
        (self.0 >> 56) as u8
    }
}

impl VolumeId {
    /// The volume that holds the root directory.
    pub const ROOT: Self = Self(1);
}

impl DomainId {
    /// The domain that volumes share unless they have been given their own.
    pub const DEFAULT: Self = Self(1);
}

impl SegmentSeq {
    /// The number with the given parts.
    #[must_use]
    pub fn new(incarnation: u32, counter: u64) -> Self {
        Self((u64::from(incarnation) << 40) | (counter & ((1 << 40) - 1)))
    }
}

impl Timestamp {
    /// Milliseconds since 1970.
    #[must_use]
    pub fn millis(self) -> u64 {
        self.0 >> 16
    }
}

/// The keyed BLAKE3 hash of a chunk's content, under the secret of its dedup domain.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(pub [u8; 32]);

impl std::fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
