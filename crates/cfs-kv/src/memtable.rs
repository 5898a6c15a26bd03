//! The memtable: changes that are not in a run yet.
//!
//! One writer, many readers. Every batch has a sequence number, and so has every version of a value; a reader at
//! sequence number `s` sees the newest version that is not above `s`. Invariants: versions of a key go from newest to
//! oldest; the newest one that is published is kept, as is every one that a view pins; others are dropped when the key
//! is written again, so that a key that is written often takes no more memory than any other.
//!
//! A lock and a sorted structure lost nothing to a lock-free skip list here: there is one writer, which lets readers
//! in after every few changes, and most reads that find nothing are answered by the presence bits without the lock.

use std::{
    ops::Bound,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use parking_lot::RwLock;

use crate::{filter::key_hash, prefetch::prefetch, sorted::SortedSlots};

/// Memory that a key takes beside its bytes, about: slot, place in a leaf, allocation.
const KEY_OVERHEAD: usize = 96;
/// Memory that a version which is not the newest takes beside its value, about.
const VERSION_OVERHEAD: usize = 64;
/// Changes that are made under one hold of the lock: a reader waits for no more.
const CHANGES_PER_LOCK: usize = 32;

/// A key's value, or none when it was removed.
pub(crate) type Change = (Vec<u8>, Option<Vec<u8>>);

/// A version that is not the newest.
#[derive(Debug)]
struct Version {
    seq: u64,
    value: Option<Box<[u8]>>,
    older: Option<Box<Version>>,
}

/// A key and its versions.
#[derive(Debug)]
pub(crate) struct Slot {
    /// Key, then the newest value.
    bytes: Box<[u8]>,
    /// Of the newest version.
    seq: u64,
    older: Option<Box<Version>>,
    key_len: u16,
    is_tombstone: bool,
}

impl Slot {
    fn new(key: &[u8], value: Option<&[u8]>, seq: u64) -> Self {
        Self {
            bytes: join(key, value.unwrap_or_default()),
            seq,
            older: None,
            key_len: key.len() as u16,
            is_tombstone: value.is_none(),
        }
    }

    /// The key.
    pub(crate) fn key(&self) -> &[u8] {
        &self.bytes[..usize::from(self.key_len)]
    }

    fn value(&self) -> Option<&[u8]> {
        (!self.is_tombstone).then(|| &self.bytes[usize::from(self.key_len)..])
    }

    /// What the newest version that is not above `seq` says; `None` when there is none.
    fn value_at(&self, seq: u64) -> Option<Option<&[u8]>> {
        if self.seq <= seq {
            return Some(self.value());
        }
        let mut version = self.older.as_deref()?;
        while version.seq > seq {
            version = version.older.as_deref()?;
        }
        Some(version.value.as_deref())
    }

    /// Sets the value as of `seq`; returns by how many bytes the slot has grown and shrunk.
    fn set(&mut self, value: Option<&[u8]>, seq: u64, pins: &[u64]) -> (usize, usize) {
        let (mut grown, mut shrunk) = (0, 0);
        let old_len = self.value().map_or(0, <[u8]>::len);
        if self.seq == seq {
            shrunk = old_len;
        } else {
            shrunk += self.prune(pins);
            let version = Version {
                seq: self.seq,
                value: self.value().map(Box::from),
                older: self.older.take(),
            };
            self.older = Some(Box::new(version));
            self.seq = seq;
            grown = VERSION_OVERHEAD;
        }
        let new_value = value.unwrap_or_default();
        if old_len == new_value.len() {
            let key_len = usize::from(self.key_len);
            self.bytes[key_len..].copy_from_slice(new_value);
        } else {
            self.bytes = join(self.key(), new_value);
        }
        self.is_tombstone = value.is_none();
        (grown + new_value.len(), shrunk)
    }

    /// Drops older versions that no pin needs; returns their bytes. `pins` ascend.
    fn prune(&mut self, pins: &[u64]) -> usize {
        let mut dropped = 0;
        let mut newer_seq = self.seq;
        let mut link = &mut self.older;
        while let Some(version) = link.take() {
            let first_pin = pins.partition_point(|pin| *pin < version.seq);
            let pinned = pins.get(first_pin).is_some_and(|pin| *pin < newer_seq);
            newer_seq = version.seq;
            if pinned {
                link = &mut link.insert(version).older;
            } else {
                dropped += VERSION_OVERHEAD + version.value.map_or(0, |value| value.len());
                *link = version.older;
            }
        }
        dropped
    }
}

fn join(key: &[u8], value: &[u8]) -> Box<[u8]> {
    let mut bytes = Vec::with_capacity(key.len() + value.len());
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(value);
    bytes.into_boxed_slice()
}

/// A memtable.
#[derive(Debug)]
pub(crate) struct Memtable {
    slots: RwLock<SortedSlots>,
    present: PresenceBits,
    bytes: AtomicUsize,
}

impl Memtable {
    /// A memtable that is expected to grow to about `bytes_expected`.
    pub(crate) fn new(bytes_expected: usize) -> Self {
        Self {
            slots: RwLock::default(),
            present: PresenceBits::new(bytes_expected / 128),
            bytes: AtomicUsize::new(0),
        }
    }

    /// Memory that it takes, about.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Number of keys.
    pub(crate) fn len(&self) -> usize {
        self.slots.read().len()
    }

    /// Whether it has no keys.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes the changes, as of `seq`, which is above all before. `pins` are the sequence numbers that views read at,
    /// ascending, without those that are opened from now on: these read at `seq - 1`.
    pub(crate) fn apply(&self, changes: &[Change], seq: u64, pins: &[u64]) {
        let (mut grown, mut shrunk) = (0, 0);
        for changes in changes.chunks(CHANGES_PER_LOCK) {
            let mut slots = self.slots.write();
            for (key, value) in changes {
                let value = value.as_deref();
                match slots.locate(key) {
                    Ok(place) => {
                        let (more, less) = slots.at_mut(place).set(value, seq, pins);
                        grown += more;
                        shrunk += less;
                    }
                    Err(place) => {
                        self.present.insert(key_hash(key));
                        slots.insert(place, Slot::new(key, value, seq));
                        grown += key.len() + value.map_or(0, <[u8]>::len) + KEY_OVERHEAD;
                    }
                }
            }
        }
        let bytes = self.bytes.load(Ordering::Relaxed) + grown;
        self.bytes
            .store(bytes.saturating_sub(shrunk), Ordering::Relaxed);
    }

    /// Fetches what `get` will look at first.
    #[inline]
    pub(crate) fn prefetch(&self, hash: u64) {
        prefetch(self.present.line(hash).0);
    }

    /// What the newest visible version of `key` says: `None` when there is none, or else what `read` makes of its value;
    /// it gets `None` when the key was removed. `seq` is asked for under the lock, so that the version that it selects
    /// has not been dropped; the caller has seen (with acquire ordering) the last batch that it must see.
    #[inline]
    pub(crate) fn get<T>(
        &self,
        key: &[u8],
        hash: u64,
        seq: impl FnOnce() -> u64,
        read: impl FnOnce(Option<&[u8]>) -> T,
    ) -> Option<T> {
        if !self.present.may_contain(hash) {
            return None;
        }
        let slots = self.slots.read();
        let place = slots.locate(key).ok()?;
        let value = slots.at(place).value_at(seq())?;
        Some(read(value))
    }

    /// Calls `visit` with the newest version of every key, ascending, until it fails.
    pub(crate) fn visit_newest<E>(
        &self,
        mut visit: impl FnMut(&[u8], Option<&[u8]>) -> Result<(), E>,
    ) -> Result<(), E> {
        let slots = self.slots.read();
        slots
            .iter_from(slots.first())
            .try_for_each(|slot| visit(slot.key(), slot.value()))
    }

    /// Appends up to `limit` visible changes from the bounds, in ascending order.
    pub(crate) fn scan(
        &self,
        (low, high): (Bound<&[u8]>, Bound<&[u8]>),
        seq: u64,
        limit: usize,
        output: &mut impl Extend<Change>,
    ) {
        let slots = self.slots.read();
        let from = match low {
            Bound::Unbounded => slots.first(),
            Bound::Included(key) => slots.locate(key).unwrap_or_else(|place| place),
            Bound::Excluded(key) => slots
                .locate(key)
                .map_or_else(|place| place, |place| place.next()),
        };
        let within = |slot: &&Slot| match high {
            Bound::Unbounded => true,
            Bound::Included(high) => slot.key() <= high,
            Bound::Excluded(high) => slot.key() < high,
        };
        let visible = slots.iter_from(from).take_while(within);
        output.extend(visible.filter_map(|slot| change(slot, seq)).take(limit));
    }

    /// Appends up to `limit` visible changes from the bounds, in descending order.
    pub(crate) fn scan_back(
        &self,
        (low, high): (Bound<&[u8]>, Bound<&[u8]>),
        seq: u64,
        limit: usize,
        output: &mut impl Extend<Change>,
    ) {
        let slots = self.slots.read();
        let until = match high {
            Bound::Unbounded => slots.end(),
            Bound::Included(key) => slots
                .locate(key)
                .map_or_else(|place| place, |place| place.next()),
            Bound::Excluded(key) => slots.locate(key).unwrap_or_else(|place| place),
        };
        let within = |slot: &&Slot| match low {
            Bound::Unbounded => true,
            Bound::Included(low) => slot.key() >= low,
            Bound::Excluded(low) => slot.key() > low,
        };
        let visible = slots.iter_back_from(until).take_while(within);
        output.extend(visible.filter_map(|slot| change(slot, seq)).take(limit));
    }
}

fn change(slot: &Slot, seq: u64) -> Option<Change> {
    let value = slot.value_at(seq)?;
    Some((slot.key().to_vec(), value.map(<[u8]>::to_vec)))
}

/// Whether nothing can lie within the bounds.
pub(crate) fn is_empty_range((low, high): (Bound<&[u8]>, Bound<&[u8]>)) -> bool {
    match (low, high) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(low), Bound::Included(high)) => low > high,
        (
            Bound::Included(low) | Bound::Excluded(low),
            Bound::Included(high) | Bound::Excluded(high),
        ) => low >= high,
    }
}

/// A Bloom filter of one cache line a key, which the writer extends while readers ask it. Never says no to a key whose
/// batch is visible: the bits are set before the batch is published.
#[derive(Debug)]
struct PresenceBits(Box<[[AtomicU64; 8]]>);

impl PresenceBits {
    /// 16 bits for each of the keys that are expected.
    fn new(keys_expected: usize) -> Self {
        let lines = (keys_expected * 16).div_ceil(512).next_power_of_two();
        Self((0..lines).map(|_| Default::default()).collect())
    }

    /// The line of a hash, and one bit for each of its words.
    fn line(&self, hash: u64) -> (&[AtomicU64; 8], impl Iterator<Item = u64>) {
        let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let line = ((u128::from(hash) * self.0.len() as u128) >> 64) as usize;
        (
            &self.0[line],
            (0..8).map(move |word| 1 << (mixed >> (16 + 6 * word) & 63)),
        )
    }

    fn insert(&self, hash: u64) {
        let (line, bits) = self.line(hash);
        for (word, bit) in line.iter().zip(bits) {
            // There is one writer.
            word.store(word.load(Ordering::Relaxed) | bit, Ordering::Relaxed);
        }
    }

    fn may_contain(&self, hash: u64) -> bool {
        let (line, bits) = self.line(hash);
        line.iter()
            .zip(bits)
            .all(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }
}
