//! How often each inode is open.
//!
//! An inode that is being removed cannot be opened, and an open one is not removed: both are decided under one lock.

use std::collections::HashMap;

use cfs_format::{Ino, VolumeId};
use parking_lot::Mutex;

const SHARDS: usize = 16;

/// Counts of opens, and the inodes that are just being removed.
#[derive(Default)]
pub(crate) struct OpenCounts {
    shards: [Mutex<HashMap<Ino, State>>; SHARDS],
}

enum State {
    /// Never zero.
    Open(u32),
    Removing,
}

impl OpenCounts {
    fn shard(&self, ino: Ino) -> &Mutex<HashMap<Ino, State>> {
        &self.shards[ino.0 as usize % SHARDS]
    }

    /// Counts one more open and returns the count; none if the inode is just being removed.
    pub(crate) fn add(&self, ino: Ino) -> Option<u32> {
        match self.shard(ino).lock().entry(ino).or_insert(State::Open(0)) {
            State::Open(count) => {
                *count += 1;
                Some(*count)
            }
            State::Removing => None,
        }
    }

    /// Counts the first open of an inode that is not there yet.
    pub(crate) fn add_new(&self, ino: Ino) {
        let before = self.shard(ino).lock().insert(ino, State::Open(1));
        assert!(before.is_none(), "inode {ino} was open before it was made");
    }

    /// Counts one open less; whether it was the last.
    pub(crate) fn release(&self, ino: Ino) -> bool {
        let mut shard = self.shard(ino).lock();
        match shard.get_mut(&ino) {
            Some(State::Open(count)) if *count > 1 => {
                *count -= 1;
                false
            }
            Some(State::Open(_)) => {
                shard.remove(&ino);
                true
            }
            Some(State::Removing) | None => false,
        }
    }

    pub(crate) fn is_open(&self, ino: Ino) -> bool {
        matches!(self.shard(ino).lock().get(&ino), Some(State::Open(_)))
    }

    /// Whether any inode of a clone is open.
    pub(crate) fn is_any_open_in(&self, clone: VolumeId) -> bool {
        let is_in = |ino: &Ino| ino.cloned().is_some_and(|(of, _)| of == clone);
        let has_one = |shard: &Mutex<HashMap<Ino, State>>| shard.lock().keys().any(is_in);
        self.shards.iter().any(has_one)
    }

    /// Keeps the inode from being opened, unless it is open: then false.
    pub(crate) fn begin_removal(&self, ino: Ino) -> bool {
        let mut shard = self.shard(ino).lock();
        match shard.get(&ino) {
            Some(State::Open(_)) => false,
            Some(State::Removing) | None => {
                shard.insert(ino, State::Removing);
                true
            }
        }
    }

    /// Ends what a successful [`OpenCounts::begin_removal`] began.
    pub(crate) fn end_removal(&self, ino: Ino) {
        let removed = self.shard(ino).lock().remove(&ino);
        assert!(
            matches!(removed, Some(State::Removing)),
            "inode {ino} was opened while it was being removed"
        );
    }
}
