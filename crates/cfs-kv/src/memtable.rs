//! The memtable: changes that are not in a run yet.
//!
//! One writer, many readers. Every batch has a sequence number, and so has every version of a value; a reader at
//! sequence number `s` sees the newest version that is not above `s`. Invariants: versions of a key go from newest to
//! oldest; the newest one that is published is kept, as is every one that a view pins; others are dropped when the key
//! is written again, so that a key that is written often takes no more memory than any other.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::atomic::{AtomicUsize, Ordering},
};

use parking_lot::RwLock;

/// Memory that an entry takes beside its key and value, bytes, about.
const ENTRY_OVERHEAD: usize = 96;
/// Changes that are made under one hold of the lock: a reader waits for no more.
const CHANGES_PER_LOCK: usize = 16;

/// A key's value, or none when it was removed.
pub(crate) type Change = (Vec<u8>, Option<Vec<u8>>);

#[derive(Debug)]
struct Version {
    seq: u64,
    value: Option<Box<[u8]>>,
    older: Option<Box<Version>>,
}

impl Version {
    /// The newest version that is not above `seq`.
    fn at(&self, seq: u64) -> Option<&Self> {
        let mut version = self;
        while version.seq > seq {
            version = version.older.as_deref()?;
        }
        Some(version)
    }

    /// Drops what follows and no pin needs. `pins` ascend.
    fn prune(&mut self, pins: &[u64]) {
        let mut newer_seq = self.seq;
        let mut link = &mut self.older;
        while let Some(version) = link.take() {
            let first_pin = pins.partition_point(|pin| *pin < version.seq);
            let pinned = pins.get(first_pin).is_some_and(|pin| *pin < newer_seq);
            newer_seq = version.seq;
            if pinned {
                link = &mut link.insert(version).older;
            } else {
                *link = version.older;
            }
        }
    }
}

/// A memtable.
#[derive(Debug, Default)]
pub(crate) struct Memtable {
    entries: RwLock<BTreeMap<Box<[u8]>, Version>>,
    bytes: AtomicUsize,
}

impl Memtable {
    /// Memory that it takes, about.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Number of keys.
    pub(crate) fn len(&self) -> usize {
        self.entries.read().len()
    }

    /// Whether it has no keys.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.read().is_empty()
    }

    /// Makes the changes, as of `seq`, which is above all before. `pins` are the sequence numbers that views read at,
    /// ascending, without those that are opened from now on: these read at `seq - 1`.
    pub(crate) fn apply(&self, changes: &[Change], seq: u64, pins: &[u64]) {
        let mut added = 0;
        for changes in changes.chunks(CHANGES_PER_LOCK) {
            let mut entries = self.entries.write();
            for (key, value) in changes {
                let value = value.as_deref().map(Box::from);
                added += value.as_ref().map_or(0, |value: &Box<[u8]>| value.len());
                match entries.get_mut(&**key) {
                    Some(newest) => {
                        if newest.seq != seq {
                            newest.prune(pins);
                            let older = std::mem::replace(
                                newest,
                                Version {
                                    seq,
                                    value: None,
                                    older: None,
                                },
                            );
                            newest.older = Some(Box::new(older));
                        }
                        newest.value = value;
                    }
                    None => {
                        added += key.len() + ENTRY_OVERHEAD;
                        let version = Version {
                            seq,
                            value,
                            older: None,
                        };
                        entries.insert(Box::from(&**key), version);
                    }
                }
            }
        }
        self.bytes.fetch_add(added, Ordering::Relaxed);
    }

    /// What the newest visible version of `key` says: `None` when there is none, `Some(None)` when it was removed.
    /// `seq` is asked for under the lock, so that the version that it selects has not been dropped.
    pub(crate) fn get(&self, key: &[u8], seq: impl FnOnce() -> u64) -> Option<Option<Vec<u8>>> {
        let entries = self.entries.read();
        let version = entries.get(key)?.at(seq())?;
        Some(version.value.as_deref().map(<[u8]>::to_vec))
    }

    /// Appends up to `limit` visible changes from the bounds, in ascending order.
    pub(crate) fn scan(
        &self,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
        seq: u64,
        limit: usize,
        output: &mut impl Extend<Change>,
    ) {
        if !is_empty_range(bounds) {
            let entries = self.entries.read();
            let visible = entries.range::<[u8], _>(bounds);
            output.extend(visible.filter_map(|(key, newest)| change(key, newest, seq)).take(limit));
        }
    }

    /// Appends up to `limit` visible changes from the bounds, in descending order.
    pub(crate) fn scan_back(
        &self,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
        seq: u64,
        limit: usize,
        output: &mut impl Extend<Change>,
    ) {
        if !is_empty_range(bounds) {
            let entries = self.entries.read();
            let visible = entries.range::<[u8], _>(bounds).rev();
            output.extend(visible.filter_map(|(key, newest)| change(key, newest, seq)).take(limit));
        }
    }
}

fn change(key: &[u8], newest: &Version, seq: u64) -> Option<Change> {
    let version = newest.at(seq)?;
    Some((key.to_vec(), version.value.as_deref().map(<[u8]>::to_vec)))
}

/// Whether nothing can lie within the bounds.
pub(crate) fn is_empty_range((low, high): (Bound<&[u8]>, Bound<&[u8]>)) -> bool {
    match (low, high) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(low), Bound::Included(high)) => low > high,
        (Bound::Included(low) | Bound::Excluded(low), Bound::Included(high) | Bound::Excluded(high)) => low >= high,
    }
}
