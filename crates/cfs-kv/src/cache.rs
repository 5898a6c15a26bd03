//! The block cache, shared between trees.

use std::{
    hash::{BuildHasherDefault, Hasher},
    ops::Deref,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::RwLock;
use quick_cache::{Lifecycle, Weighter, sync::Cache};

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
    blocks: Cache<
        CacheKey,
        Arc<CachedBlock>,
        BlockWeighter,
        BuildHasherDefault<CacheHasher>,
        SecondChance,
    >,
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
                SecondChance,
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

    /// Keeps a block, until it is the one that has not been used for longest, about.
    pub(crate) fn insert(&self, key: CacheKey, block: Arc<CachedBlock>) {
        self.blocks.insert(key, block);
    }
}

/// A block that the cache keeps, or has kept.
pub(crate) struct CachedBlock {
    block: Block,
    /// Where readers find it, if the cache keeps it.
    seat: Option<(Weak<[Seat]>, u32)>,
    /// It was used since the cache has looked for what to let go.
    is_used: AtomicBool,
}

impl CachedBlock {
    /// A block that is read for one purpose alone.
    pub(crate) fn alone(block: Block) -> Arc<Self> {
        Arc::new(Self {
            block,
            seat: None,
            is_used: AtomicBool::new(false),
        })
    }

    /// A block that is found at one of the seats from now on.
    pub(crate) fn seated(block: Block, seats: &Arc<[Seat]>, number: usize) -> Arc<Self> {
        let block = Arc::new(Self {
            block,
            seat: Some((Arc::downgrade(seats), number as u32)),
            is_used: AtomicBool::new(false),
        });
        *seats[number].0.write() = Arc::downgrade(&block);
        block
    }
}

impl Deref for CachedBlock {
    type Target = Block;

    #[inline]
    fn deref(&self) -> &Block {
        &self.block
    }
}

/// Where a reader looks for a block: whoever knows the block's place in an index finds it without asking the cache,
/// which takes far fewer cache lines. The cache alone decides how long it is kept.
#[derive(Default)]
pub(crate) struct Seat(RwLock<Weak<CachedBlock>>);

impl Seat {
    /// The block, if it is in the cache still.
    #[inline]
    pub(crate) fn get(&self) -> Option<Arc<CachedBlock>> {
        let block = self.0.read().upgrade()?;
        if !block.is_used.load(Ordering::Relaxed) {
            block.is_used.store(true, Ordering::Relaxed);
        }
        Some(block)
    }
}

/// Gives blocks that were used since it last came by another round.
#[derive(Clone)]
struct SecondChance;

impl Lifecycle<CacheKey, Arc<CachedBlock>> for SecondChance {
    type RequestState = ();

    fn is_pinned(&self, _key: &CacheKey, block: &Arc<CachedBlock>) -> bool {
        block.is_used.swap(false, Ordering::Relaxed)
    }

    /// Clears the seat, which would keep a part of the block's memory. Called under a lock of the cache; nobody asks for
    /// one of these under that of a seat.
    fn on_evict(&self, _state: &mut (), _key: CacheKey, block: Arc<CachedBlock>) {
        let Some((seats, number)) = &block.seat else {
            return;
        };
        if let Some(seats) = seats.upgrade() {
            let mut seat = seats[*number as usize].0.write();
            if std::ptr::eq(seat.as_ptr(), &*block) {
                *seat = Weak::new();
            }
        }
    }
}

#[derive(Clone)]
struct BlockWeighter;

impl Weighter<CacheKey, Arc<CachedBlock>> for BlockWeighter {
    fn weight(&self, _key: &CacheKey, block: &Arc<CachedBlock>) -> u64 {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{BlockBuilder, KIND_DATA};

    #[test]
    fn used_blocks_stay_within_the_budget_and_others_leave_nothing() {
        let cache = BlockCache::new(1 << 20);
        let seats: Arc<[Seat]> = (0..4000).map(|_| Seat::default()).collect();
        let run = cache.number_run();
        for number in 0..seats.len() {
            let mut builder = BlockBuilder::default();
            builder.push(b"key", Some(&[0; 1000]));
            let block = Block::parse(builder.finish(KIND_DATA).to_vec(), KIND_DATA);
            let block = CachedBlock::seated(block.expect("just made"), &seats, number);
            let place = number as u64;
            cache.insert(CacheKey { run, place }, block);
            // One that comes when the cache is full is wanted again and again, others once.
            seats[number].get();
            assert!(
                number < 2000 || seats[2000].get().is_some(),
                "gone before block {number}"
            );
            assert!(cache.bytes() <= (1 << 20) + 2000, "{} bytes", cache.bytes());
        }
        let (mut kept, mut left) = (0, 0);
        for seat in &*seats {
            kept += u64::from(seat.get().is_some());
            left += u64::from(seat.get().is_none() && !seat.0.read().ptr_eq(&Weak::new()));
        }
        assert!((500..1100).contains(&kept), "{kept} blocks are found");
        assert_eq!(left, 0, "seats of blocks that are gone");
    }
}
