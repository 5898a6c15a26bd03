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
    /// An inode number. The highest bit 0, then 8 bits the metadata shard, 55 bits a counter within it; never reused.
    /// With the highest two bits set it is that of an inode of a clone, see [`Ino::in_clone`]. With the highest alone it
    /// names an inode as a snapshot shows it, see [`Ino::in_view`]; such numbers are in no table.
    Ino(u64)
}
id! {
    /// Stands for a snapshot in the numbers of its inodes: 19 bits. 0 is no snapshot; with it an inode number stands for
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
    /// With `VIEWED`: the number is that of an inode of a clone.
    const CLONED: u64 = 1 << 62;
    /// With both: it stands for the directory of snapshots in that inode.
    const LISTED: u64 = 1 << (Self::COUNTER_BITS_VIEWED - 1);

    /// The metadata shard that owns this inode.
    #[must_use]
    pub fn shard(self) -> u8 {
        (self.base().0 >> Self::SHARD_SHIFT) as u8
    }

    /// The number under which `view` shows this inode: the highest bit, a zero, 19 bits of the view, 8 of the shard, 35
    /// of the counter. An inode of a clone has the number of its [`Ino::base`] in views, but for [`ViewId::LIST`], which
    /// sets a bit of its own. `None` for an inode with a larger counter, and for one that is a view's already.
    #[must_use]
    pub fn in_view(self, view: ViewId) -> Option<Self> {
        if self.cloned().is_some() {
            return match view {
                ViewId::LIST => Some(Self(self.0 | Self::LISTED)),
                view => self.base().in_view(view),
            };
        }
        if self.0 & Self::VIEWED != 0 || view > ViewId::MAX {
            return None;
        }
        let place = self.packed(Self::COUNTER_BITS_VIEWED)?;
        Some(Self(
            Self::VIEWED | u64::from(view.0) << Self::VIEW_SHIFT | place,
        ))
    }

    /// The number of this inode in a clone: the highest two bits, 19 bits of the volume, 8 of the shard, a zero, 34 of
    /// the counter. All inodes of a clone have such numbers: those that it has from its origin that of the inode there,
    /// those made in it one of their own. `None` for a counter or a volume that is larger.
    #[must_use]
    pub fn in_clone(self, volume: VolumeId) -> Option<Self> {
        if volume > VolumeId::CLONE_MAX {
            return None;
        }
        let place = self.base().packed(Self::COUNTER_BITS_VIEWED - 1)?;
        let volume = u64::from(volume.0) << Self::VIEW_SHIFT;
        Some(Self(Self::VIEWED | Self::CLONED | volume | place))
    }

    /// The clone that this is an inode of, and its number without the clone.
    #[must_use]
    pub fn cloned(self) -> Option<(VolumeId, Self)> {
        let marks = Self::VIEWED | Self::CLONED;
        if self.0 & (marks | Self::LISTED) != marks {
            return None;
        }
        let volume = (self.0 & !marks) >> Self::VIEW_SHIFT;
        Some((VolumeId(volume as u32), self.unpacked()))
    }

    /// The number without clone and view: that of the inode in which it began.
    #[must_use]
    pub fn base(self) -> Self {
        match self.0 & Self::VIEWED {
            0 => self,
            _ => self.unpacked(),
        }
    }

    /// Shard and counter, side by side. `None` when the counter has more than so many bits.
    fn packed(self, counter_bits: u32) -> Option<u64> {
        let counter = self.0 & ((1 << Self::SHARD_SHIFT) - 1);
        let shard = self.0 >> Self::SHARD_SHIFT;
        (counter >> counter_bits == 0).then_some(shard << Self::COUNTER_BITS_VIEWED | counter)
    }

    fn unpacked(self) -> Self {
        let shard = self.0 >> Self::COUNTER_BITS_VIEWED & 0xff;
        let counter_bits = match self.0 & Self::CLONED {
            0 => Self::COUNTER_BITS_VIEWED,
            _ => Self::COUNTER_BITS_VIEWED - 1,
        };
        Self(shard << Self::SHARD_SHIFT | self.0 & ((1 << counter_bits) - 1))
    }

    /// Whether it is a directory that lists snapshots.
    #[must_use]
    pub fn lists_snapshots(self) -> bool {
        matches!(self.view(), Some((ViewId::LIST, _)))
    }

    /// The view and the inode that a number of [`Ino::in_view`] stands for; of an inode of a clone its base, but for
    /// [`ViewId::LIST`]. `None` for what can be in the tables.
    #[must_use]
    pub fn view(self) -> Option<(ViewId, Self)> {
        if self.0 & Self::VIEWED == 0 || self.cloned().is_some() {
            return None;
        }
        if self.0 & Self::CLONED != 0 {
            return Some((ViewId::LIST, Self(self.0 & !Self::LISTED)));
        }
        let view = (self.0 & !Self::VIEWED) >> Self::VIEW_SHIFT;
        Some((ViewId(view as u32), self.unpacked()))
    }
}

impl ViewId {
    /// The directory that lists snapshots.
    pub const LIST: Self = Self(0);
    /// The largest.
    pub const MAX: Self = Self((1 << 19) - 1);
}

impl VolumeId {
    /// The volume that holds the root directory.
    pub const ROOT: Self = Self(1);
    /// The largest number that a clone can have: it is in the numbers of its inodes.
    pub const CLONE_MAX: Self = Self((1 << 19) - 1);
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

    #[test]
    fn numbers_in_clones_come_back() {
        for base in [Ino(1), Ino((0xff << 55) | ((1 << 34) - 1))] {
            for volume in [VolumeId(0), VolumeId(2), VolumeId::CLONE_MAX] {
                let ino = base.in_clone(volume).expect("it fits");
                assert_eq!(ino.cloned(), Some((volume, base)));
                assert_eq!(
                    (ino.view(), ino.base(), ino.shard()),
                    (None, base, base.shard())
                );
                assert_eq!(
                    ino.in_clone(VolumeId(3)),
                    base.in_clone(VolumeId(3)),
                    "of a clone of the clone"
                );
                assert_eq!(ino.in_view(ViewId(7)), base.in_view(ViewId(7)));
                let list = ino.in_view(ViewId::LIST).expect("it fits");
                assert_eq!(list.view(), Some((ViewId::LIST, ino)));
                assert!(list.lists_snapshots() && list.cloned().is_none());
                assert_eq!(list.in_view(ViewId(7)), None);
            }
            assert_eq!(base.cloned(), None);
            assert_eq!(base.in_view(ViewId::MAX).and_then(|ino| ino.cloned()), None);
        }
        assert_eq!(Ino(1 << 34).in_clone(VolumeId(1)), None);
        assert_eq!(Ino(1).in_clone(VolumeId(1 << 19)), None);
    }
}
