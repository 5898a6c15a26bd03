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
    /// An inode number. In the tables: the highest bit 0, then 8 bits the metadata shard, 55 bits a counter within it;
    /// never reused. With the highest bit set it names an inode as a snapshot shows it, see [`Ino::in_view`]; such
    /// numbers are in no table.
    Ino(u64)
}
id! {
    /// Stands for a snapshot in the numbers of its inodes: 20 bits. 0 is no snapshot; with it an inode number stands for
    /// the directory that lists snapshots.
    ViewId(u32)
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

    const VIEWED: u64 = 1 << 63;
    const SHARD_SHIFT: u32 = 55;
    const COUNTER_BITS_VIEWED: u32 = 35;
    const VIEW_SHIFT: u32 = Self::COUNTER_BITS_VIEWED + 8;

    /// The metadata shard that owns this inode.
    #[must_use]
    pub fn shard(self) -> u8 {
        match self.view() {
            Some((_, ino)) => ino.shard(),
            None => (self.0 >> Self::SHARD_SHIFT) as u8,
        }
    }

    /// The number under which `view` shows this inode: the highest bit, 20 bits of the view, 8 of the shard, 35 of the
    /// counter. `None` for an inode with a larger counter, and for one that is a view's already.
    #[must_use]
    pub fn in_view(self, view: ViewId) -> Option<Self> {
        let counter = self.0 & ((1 << Self::SHARD_SHIFT) - 1);
        if self.0 & Self::VIEWED != 0
            || counter >> Self::COUNTER_BITS_VIEWED != 0
            || view > ViewId::MAX
        {
            return None;
        }
        let shard = u64::from(self.shard()) << Self::COUNTER_BITS_VIEWED;
        Some(Self(
            Self::VIEWED | u64::from(view.0) << Self::VIEW_SHIFT | shard | counter,
        ))
    }

    /// Whether it is a directory that lists snapshots.
    #[must_use]
    pub fn lists_snapshots(self) -> bool {
        matches!(self.view(), Some((ViewId::LIST, _)))
    }

    /// The view and the inode that a number of [`Ino::in_view`] stands for.
    #[must_use]
    pub fn view(self) -> Option<(ViewId, Self)> {
        if self.0 & Self::VIEWED == 0 {
            return None;
        }
        let view = (self.0 & !Self::VIEWED) >> Self::VIEW_SHIFT;
        let shard = self.0 >> Self::COUNTER_BITS_VIEWED & 0xff;
        let counter = self.0 & ((1 << Self::COUNTER_BITS_VIEWED) - 1);
        Some((
            ViewId(view as u32),
            Self(shard << Self::SHARD_SHIFT | counter),
        ))
    }
}

impl ViewId {
    /// The directory that lists snapshots.
    pub const LIST: Self = Self(0);
    /// The largest.
    pub const MAX: Self = Self((1 << 20) - 1);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_views_come_back() {
        for ino in [
            Ino(1),
            Ino((0x7f << 55) | 77),
            Ino((0xff << 55) | ((1 << 35) - 1)),
        ] {
            for view in [ViewId::LIST, ViewId(1), ViewId::MAX] {
                let viewed = ino.in_view(view).expect("it fits");
                assert_eq!(viewed.view(), Some((view, ino)));
                assert_eq!(viewed.shard(), ino.shard());
                assert_eq!(viewed.in_view(view), None);
            }
            assert_eq!(ino.view(), None);
        }
        assert_eq!(Ino(1 << 35).in_view(ViewId(1)), None);
    }
}
