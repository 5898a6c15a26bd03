//! A run store in memory: reuses what was freed at once, fails the n-th call on command, flips bits on command.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use cfs_kv::{BlockPtr, RunError, RunReason, RunStore, RunWriter};

/// Blocks of an extent.
const EXTENT_BLOCKS: u64 = 8;

#[derive(Default)]
pub struct MemoryStore(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// Extent to its blocks.
    extents: BTreeMap<u64, Vec<Vec<u8>>>,
    free: BTreeSet<u64>,
    next_extent: u64,
    /// Released, to be freed when the next superblock is durable.
    released: Vec<u64>,
    /// Calls until one fails.
    calls_left: Option<u64>,
    /// Calls that may fail, so far.
    calls: u64,
    reads: u64,
    /// Bytes.
    written: u64,
    newest: Option<NewestRun>,
}

/// The last run of what was applied before a rotate, and the manifest that came with it.
#[derive(Clone)]
pub struct NewestRun {
    pub tree_before: Vec<u8>,
    pub extents: Vec<u64>,
}

impl Inner {
    fn call(&mut self) -> Result<(), RunError> {
        self.calls += 1;
        match &mut self.calls_left {
            Some(0) => {
                self.calls_left = None;
                Err(RunError::io(std::io::Error::other("injected")))
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl MemoryStore {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Fails one call, after `calls` that succeed.
    pub fn fail_after(&self, calls: u64) {
        self.0.lock().unwrap().calls_left = Some(calls);
    }

    /// Whether the failure that was asked for has happened; it will not happen any more.
    pub fn take_failed(&self) -> bool {
        self.0.lock().unwrap().calls_left.take().is_none()
    }

    /// A superblock became durable: what was released is reused from now on.
    pub fn superblock(&self) {
        let mut inner = self.0.lock().unwrap();
        for extent in std::mem::take(&mut inner.released) {
            assert!(
                inner.extents.remove(&extent).is_some(),
                "released twice: {extent}"
            );
            inner.free.insert(extent);
        }
    }

    /// What remains after a crash: the extents that the manifest's tree lists.
    pub fn crash(&self, live: &[u64]) {
        let mut inner = self.0.lock().unwrap();
        inner.released.clear();
        let live: BTreeSet<_> = live.iter().copied().collect();
        let dead: Vec<_> = inner
            .extents
            .keys()
            .copied()
            .filter(|extent| !live.contains(extent))
            .collect();
        for extent in dead {
            inner.extents.remove(&extent);
            inner.free.insert(extent);
        }
    }

    /// Extents in use, released ones included.
    pub fn used(&self) -> Vec<u64> {
        self.0.lock().unwrap().extents.keys().copied().collect()
    }

    /// Blocks read so far.
    pub fn reads(&self) -> u64 {
        self.0.lock().unwrap().reads
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.0.lock().unwrap().written
    }

    /// Each block: its extent, its index there, and its bits.
    pub fn block_bits(&self) -> Vec<(u64, usize, usize)> {
        let inner = self.0.lock().unwrap();
        let blocks = |(extent, blocks): (&u64, &Vec<Vec<u8>>)| {
            let extent = *extent;
            let bits = |(index, block): (usize, &Vec<u8>)| (extent, index, block.len() * 8);
            blocks.iter().enumerate().map(bits).collect::<Vec<_>>()
        };
        inner.extents.iter().flat_map(blocks).collect()
    }

    /// The plain bytes of every block, extent by extent.
    pub fn blocks(&self) -> Vec<Vec<u8>> {
        let inner = self.0.lock().unwrap();
        inner.extents.values().flatten().cloned().collect()
    }

    /// The run that came with a manifest since this was last asked.
    pub fn take_newest(&self) -> Option<NewestRun> {
        self.0.lock().unwrap().newest.take()
    }

    /// The blocks of an extent.
    pub fn blocks_of(&self, extent: u64) -> Vec<(BlockPtr, Vec<u8>)> {
        let inner = self.0.lock().unwrap();
        let pointer = |(index, bytes): (usize, &Vec<u8>)| {
            let stored_len = bytes.len() as u32;
            let place = extent << 32 | index as u64;
            (BlockPtr { place, stored_len }, bytes.clone())
        };
        inner.extents[&extent]
            .iter()
            .enumerate()
            .map(pointer)
            .collect()
    }

    pub fn flip(&self, extent: u64, block: usize, bit: usize) {
        let mut inner = self.0.lock().unwrap();
        inner.extents.get_mut(&extent).unwrap()[block][bit / 8] ^= 1 << (bit % 8);
    }
}

struct Writer<'a> {
    store: &'a MemoryStore,
    extents: Vec<u64>,
    finished: bool,
}

impl RunStore for MemoryStore {
    fn create_run(&self, _: RunReason, _: u64) -> Result<Box<dyn RunWriter + '_>, RunError> {
        self.0.lock().unwrap().call()?;
        Ok(Box::new(Writer {
            store: self,
            extents: Vec::new(),
            finished: false,
        }))
    }

    fn read_block(&self, block: BlockPtr) -> Result<Vec<u8>, RunError> {
        let mut inner = self.0.lock().unwrap();
        inner.call()?;
        inner.reads += 1;
        let found = inner
            .extents
            .get(&(block.place >> 32))
            .and_then(|blocks| blocks.get(block.place as u32 as usize))
            .filter(|bytes| bytes.len() == block.stored_len as usize);
        found.cloned().ok_or(RunError::Corrupt {
            block,
            rule: "no such block",
        })
    }

    fn release_run(&self, extents: &[u64]) {
        self.0.lock().unwrap().released.extend_from_slice(extents);
    }
}

impl RunWriter for Writer<'_> {
    fn append_block(&mut self, plain: &[u8]) -> Result<BlockPtr, RunError> {
        let mut inner = self.store.0.lock().unwrap();
        inner.call()?;
        let full = |extent: &u64| inner.extents[extent].len() as u64 == EXTENT_BLOCKS;
        let extent = match self.extents.last() {
            Some(last) if !full(last) => *last,
            _ => {
                let extent = inner.free.pop_first().unwrap_or_else(|| {
                    inner.next_extent += 1;
                    inner.next_extent
                });
                inner.extents.insert(extent, Vec::new());
                self.extents.push(extent);
                extent
            }
        };
        inner.written += plain.len() as u64;
        let blocks = inner.extents.get_mut(&extent).unwrap();
        blocks.push(plain.to_vec());
        Ok(BlockPtr {
            place: extent << 32 | (blocks.len() as u64 - 1),
            stored_len: plain.len() as u32,
        })
    }

    fn finish(mut self: Box<Self>, tree_before: Option<&[u8]>) -> Result<Vec<u64>, RunError> {
        let mut inner = self.store.0.lock().unwrap();
        inner.call()?;
        if let Some(tree_before) = tree_before {
            inner.newest = Some(NewestRun {
                tree_before: tree_before.to_vec(),
                extents: self.extents.clone(),
            });
        }
        self.finished = true;
        Ok(std::mem::take(&mut self.extents))
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        if !self.finished {
            let mut inner = self.store.0.lock().unwrap();
            for extent in &self.extents {
                inner.extents.remove(extent);
                inner.free.insert(*extent);
            }
        }
    }
}
