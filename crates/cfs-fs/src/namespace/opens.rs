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

/// Both counts are never zero.
enum State {
    Open(u32),
    /// A remover ends its removal only after it has let go of the writer lock, so the next one may have begun.
    Removing(u32),
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
            State::Removing(_) => None,
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
            Some(State::Removing(_)) | None => false,
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
        match self
            .shard(ino)
            .lock()
            .entry(ino)
            .or_insert(State::Removing(0))
        {
            State::Open(_) => false,
            State::Removing(count) => {
                *count += 1;
                true
            }
        }
    }

    /// Ends what a successful [`OpenCounts::begin_removal`] began.
    pub(crate) fn end_removal(&self, ino: Ino) {
        let mut shard = self.shard(ino).lock();
        match shard.get_mut(&ino) {
            Some(State::Removing(count)) if *count > 1 => *count -= 1,
            Some(State::Removing(_)) => {
                shard.remove(&ino);
            }
            Some(State::Open(_)) | None => {
                panic!("inode {ino} was opened while it was being removed")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removals_of_an_inode_may_overlap() {
        let (counts, ino) = (OpenCounts::default(), Ino(7));
        assert!(counts.begin_removal(ino));
        assert!(counts.begin_removal(ino));
        counts.end_removal(ino);
        assert_eq!(counts.add(ino), None);
        counts.end_removal(ino);
        assert_eq!(counts.add(ino), Some(1));
        assert!(!counts.begin_removal(ino));
        assert!(counts.release(ino));
        assert!(counts.begin_removal(ino));
    }
}
