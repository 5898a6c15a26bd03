//! Which inodes the kernel knows, and which of them live on for it alone.
//!
//! Whatever answers with an inode (LOOKUP, CREATE, READDIRPLUS and their kind) counts one lookup of it; the kernel gives
//! the sum back with FORGET when it drops the inode from its memory. It holds on to an inode that nobody has opened for
//! `O_PATH` descriptors, working directories and file handles. So an inode whose last name goes through this mount is
//! held, as if it were open, until the kernel has forgotten it.
//!
//! Counting is what tells a FORGET that was on its way when the kernel met the inode again from the last one, and a name
//! that was changed behind the kernel's back from one that it knows.

use std::collections::HashMap;

use cfs_format::Ino;
use parking_lot::Mutex;

const SHARDS: usize = 16;
/// A table of this many inodes is not made smaller, however empty it is.
const CAPACITY_KEPT: usize = 1024;

#[derive(Clone, Copy, Default)]
struct Known {
    /// Lookups that the kernel has not given back; never zero.
    lookups: u64,
    /// It has no name; [`cfs_fs::Fs::end_hold`] is due when it is forgotten.
    held: bool,
}

/// The inodes that the kernel knows.
#[derive(Default)]
pub(crate) struct Lookups {
    shards: [Mutex<HashMap<Ino, Known>>; SHARDS],
}

impl Lookups {
    fn shard(&self, ino: Ino) -> &Mutex<HashMap<Ino, Known>> {
        &self.shards[ino.0 as usize % SHARDS]
    }

    /// Counts a lookup. To be called before the kernel is told of the inode.
    pub(crate) fn count(&self, ino: Ino) {
        self.shard(ino).lock().entry(ino).or_default().lookups += 1;
    }

    /// Takes lookups back. True when an inode that was held is forgotten by it: its hold ends.
    #[must_use]
    pub(crate) fn forget(&self, ino: Ino, lookups: u64) -> bool {
        let mut shard = self.shard(ino).lock();
        let Some(known) = shard.get_mut(&ino) else {
            return false;
        };
        known.lookups = known.lookups.saturating_sub(lookups);
        if known.lookups > 0 {
            return false;
        }
        let held = known.held;
        shard.remove(&ino);
        if shard.capacity() > CAPACITY_KEPT && shard.len() < shard.capacity() / 4 {
            let capacity = shard.len() * 2;
            shard.shrink_to(capacity);
        }
        held
    }

    /// Notes that the inode, which has no name, is held for the kernel. False when the kernel does not know it, or it
    /// is held already (it was made without a name, and has had one between): this hold is to end at once.
    #[must_use]
    pub(crate) fn hold(&self, ino: Ino) -> bool {
        match self.shard(ino).lock().get_mut(&ino) {
            Some(known) => !std::mem::replace(&mut known.held, true),
            None => false,
        }
    }

    /// Forgets everything, as the kernel does without a word when it unmounts; returns the inodes that were held.
    pub(crate) fn take_held(&self) -> Vec<Ino> {
        let held = |shard: &Mutex<HashMap<Ino, Known>>| -> Vec<Ino> {
            let shard = std::mem::take(&mut *shard.lock());
            let held = shard.into_iter().filter(|(_, known)| known.held);
            held.map(|(ino, _)| ino).collect()
        };
        self.shards.iter().flat_map(held).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_ends_with_the_last_lookup() {
        let lookups = Lookups::default();
        let ino = Ino(5);
        assert!(!lookups.hold(ino), "the kernel does not know it");
        lookups.count(ino);
        lookups.count(ino);
        assert!(lookups.hold(ino));
        assert!(!lookups.hold(ino), "one is enough");
        assert!(!lookups.forget(ino, 1));
        assert!(lookups.forget(ino, 1));
        assert!(!lookups.forget(ino, 1), "only once");
        lookups.count(ino);
        assert!(!lookups.forget(ino, 1), "this one has a name");
        lookups.count(ino);
        lookups.count(Ino(6));
        assert!(lookups.hold(ino));
        assert_eq!(lookups.take_held(), [ino]);
        assert_eq!(lookups.take_held(), []);
    }

    #[test]
    fn what_is_forgotten_takes_no_memory() {
        let lookups = Lookups::default();
        for ino in 0..100_000 {
            lookups.count(Ino(ino));
        }
        for ino in 0..100_000 {
            assert!(!lookups.forget(Ino(ino), 1));
        }
        let capacity = |shard: &Mutex<HashMap<Ino, Known>>| shard.lock().capacity();
        let capacity: usize = lookups.shards.iter().map(capacity).sum();
        assert!(capacity <= SHARDS * CAPACITY_KEPT, "{capacity}");
    }
}
