//! The block cache, shared between trees.

use std::{
    hash::{BuildHasherDefault, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use quick_cache::{
    Weighter,
    sync::{Cache, DefaultLifecycle},
};

use crate::block::Block;

/// Which block: a run's number, and the place of the block. Places alone would not do, because the store reuses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CacheKey {
    pub run: RunNumber,
    pub place: u64,
}

/// Number of a run since the process started; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RunNumber(u64);

/// Opened blocks, bounded in bytes; one for all trees of a store.
pub struct BlockCache {
    blocks: Cache<CacheKey, Arc<Block>, BlockWeighter, BuildHasherDefault<CacheHasher>>,
    next_run: AtomicU64,
}

impl BlockCache {
    /// A cache that keeps about `bytes` of blocks.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let blocks_expected = usize::try_from(bytes / 8192)
            .unwrap_or(usize::MAX)
            .clamp(64, 1 << 24);
        Self {
            blocks: Cache::with(
                blocks_expected,
                bytes,
                BlockWeighter,
                BuildHasherDefault::default(),
                DefaultLifecycle::default(),
            ),
            next_run: AtomicU64::new(0),
        }
    }

    /// Bytes of blocks that it holds now.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.blocks.weight()
    }

    /// A number for a run that was opened or written.
    pub(crate) fn number_run(&self) -> RunNumber {
        RunNumber(self.next_run.fetch_add(1, Ordering::Relaxed))
    }

    /// The block, if it is here.
    pub(crate) fn get(&self, key: CacheKey) -> Option<Arc<Block>> {
        self.blocks.get(&key)
    }

    /// Keeps a block.
    pub(crate) fn insert(&self, key: CacheKey, block: Arc<Block>) {
        self.blocks.insert(key, block);
    }
}

#[derive(Clone)]
struct BlockWeighter;

impl Weighter<CacheKey, Arc<Block>> for BlockWeighter {
    fn weight(&self, _key: &CacheKey, block: &Arc<Block>) -> u64 {
        block.memory_bytes() as u64
    }
}

/// Mixes the two numbers of a `CacheKey`. Without a random seed, so that what is evicted repeats from run to run.
#[derive(Default)]
pub(crate) struct CacheHasher(u64);

impl Hasher for CacheHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.0 ^ number ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
        self.0 = (product as u64) ^ (product >> 64) as u64;
    }
}
