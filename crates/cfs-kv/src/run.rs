//! A sorted, immutable run: its root in memory, its filters too once they were asked, its blocks through the cache.
//!
//! Invariant: a `Run` that has been marked obsolete hands its extents to the graveyard when its last holder drops it,
//! and no other run does.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use parking_lot::Mutex;

use crate::{
    BlockCache, BlockPtr, KEY_BYTES_MAX, RunError, RunStore,
    block::{Block, KIND_DATA, KIND_INDEX, KIND_ROOT},
    cache::{CacheKey, RunNumber},
    error::BadBlock,
    filter::Filter,
    run_writer::PartitionPtrs,
};

/// First bytes of a root.
const ROOT_MAGIC: [u8; 8] = *b"CFSkvrun";
/// Version of the root.
const ROOT_VERSION: u32 = 1;
/// Magic, version, first key's length and last key's length (u16 each), then three counts (u64).
const ROOT_HEADER_BYTES: usize = 40;

/// What a run holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RunSummary {
    /// Smallest key.
    pub first_key: Vec<u8>,
    /// Greatest key.
    pub last_key: Vec<u8>,
    /// Entries, tombstones included.
    pub entry_count: u64,
    /// Tombstones.
    pub tombstone_count: u64,
    /// Bytes on the device, but for the root.
    pub stored_bytes: u64,
}

/// The bytes of a root: header, first key, last key, block of partitions.
pub(crate) fn encode_root(summary: &RunSummary, partitions: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ROOT_HEADER_BYTES + partitions.len() + 512);
    bytes.extend_from_slice(&ROOT_MAGIC);
    bytes.extend_from_slice(&ROOT_VERSION.to_le_bytes());
    bytes.extend_from_slice(&(summary.first_key.len() as u16).to_le_bytes());
    bytes.extend_from_slice(&(summary.last_key.len() as u16).to_le_bytes());
    bytes.extend_from_slice(&summary.entry_count.to_le_bytes());
    bytes.extend_from_slice(&summary.tombstone_count.to_le_bytes());
    bytes.extend_from_slice(&summary.stored_bytes.to_le_bytes());
    bytes.extend_from_slice(&summary.first_key);
    bytes.extend_from_slice(&summary.last_key);
    bytes.extend_from_slice(partitions);
    bytes
}

/// Checks the bytes of a root.
fn decode_root(bytes: &[u8]) -> Result<(RunSummary, Block), BadBlock> {
    let (header, rest) = bytes
        .split_first_chunk::<ROOT_HEADER_BYTES>()
        .ok_or(BadBlock("root shorter than its header"))?;
    if header[..8] != ROOT_MAGIC {
        return Err(BadBlock("root magic"));
    }
    let number = |at: usize, len: usize| {
        let digits = header[at..at + len].iter().rev();
        digits.fold(0u64, |number, byte| number << 8 | u64::from(*byte))
    };
    if number(8, 4) != u64::from(ROOT_VERSION) {
        return Err(BadBlock("unknown root version"));
    }
    let (first_len, last_len) = (number(12, 2) as usize, number(14, 2) as usize);
    if first_len.max(last_len) > KEY_BYTES_MAX || first_len + last_len > rest.len() {
        return Err(BadBlock("root with bounds too long"));
    }
    let (first_key, rest) = rest.split_at(first_len);
    let (last_key, partitions) = rest.split_at(last_len);
    let summary = RunSummary {
        first_key: first_key.to_vec(),
        last_key: last_key.to_vec(),
        entry_count: number(16, 8),
        tombstone_count: number(24, 8),
        stored_bytes: number(32, 8),
    };
    if summary.first_key > summary.last_key
        || summary.entry_count == 0
        || summary.tombstone_count > summary.entry_count
    {
        return Err(BadBlock("root with impossible bounds or counts"));
    }
    let partitions = Block::parse(partitions.to_vec(), KIND_ROOT)?;
    for index in 0..partitions.len() {
        partition_ptrs(&partitions, index)?;
    }
    Ok((summary, partitions))
}

fn partition_ptrs(partitions: &Block, index: usize) -> Result<PartitionPtrs, BadBlock> {
    let value = partitions.entry(index).value.unwrap_or_default();
    let value = <[u8; PartitionPtrs::ENCODED_BYTES]>::try_from(value)
        .map_err(|_| BadBlock("root with a malformed partition"))?;
    PartitionPtrs::decode(value).ok_or(BadBlock("root with an empty partition"))
}

/// Where runs leave the extents that nobody needs any more.
pub(crate) type Graveyard = Mutex<Vec<u64>>;

/// Where runs are read from.
#[derive(Clone)]
pub(crate) struct RunContext {
    pub store: Arc<dyn RunStore>,
    pub cache: Arc<BlockCache>,
    pub graveyard: Arc<Graveyard>,
}

/// How a cursor or lookup gets blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadThrough {
    /// Blocks come from and go to the cache.
    Cache,
    /// Blocks are read for this purpose alone: compaction must not push out what readers use.
    Store,
}

/// A run.
pub(crate) struct Run {
    context: RunContext,
    number: RunNumber,
    root: BlockPtr,
    extents: Vec<u64>,
    summary: RunSummary,
    partitions: Block,
    filters: Box<[OnceLock<Filter>]>,
    filter_bytes: AtomicUsize,
    obsolete: AtomicBool,
}

impl Run {
    /// Opens a run by its root.
    pub(crate) fn open(context: RunContext, root: BlockPtr, extents: Vec<u64>) -> Result<Self, RunError> {
        let bytes = context.store.read_block(root)?;
        Self::from_root_bytes(context, root, extents, &bytes)
    }

    /// A run whose root is known.
    pub(crate) fn from_root_bytes(
        context: RunContext,
        root: BlockPtr,
        extents: Vec<u64>,
        bytes: &[u8],
    ) -> Result<Self, RunError> {
        let (summary, partitions) = decode_root(bytes).map_err(|bad| bad.at(root))?;
        Ok(Self {
            number: context.cache.number_run(),
            context,
            root,
            extents,
            summary,
            filters: (0..partitions.len()).map(|_| OnceLock::new()).collect(),
            partitions,
            filter_bytes: AtomicUsize::new(0),
            obsolete: AtomicBool::new(false),
        })
    }

    /// What it holds.
    pub(crate) fn summary(&self) -> &RunSummary {
        &self.summary
    }

    /// Where its root is.
    pub(crate) fn root(&self) -> BlockPtr {
        self.root
    }

    /// The storage that holds it.
    pub(crate) fn extents(&self) -> &[u64] {
        &self.extents
    }

    /// Bytes of its filters that are in memory.
    pub(crate) fn filter_bytes(&self) -> usize {
        self.filter_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of its root in memory.
    pub(crate) fn root_bytes(&self) -> usize {
        self.partitions.memory_bytes() + size_of::<Self>()
    }

    /// Its extents are to be released when nobody holds it any more.
    pub(crate) fn mark_obsolete(&self) {
        self.obsolete.store(true, Ordering::Release);
    }

    /// Number of partitions.
    pub(crate) fn partition_count(&self) -> usize {
        self.partitions.len()
    }

    /// The partition in which `key` would be; `partition_count()` when it is beyond the last.
    pub(crate) fn partition_of(&self, key: &[u8]) -> usize {
        self.partitions.lower_bound(key)
    }

    /// What the run says about a key with this hash: `None` when nothing, `Some(None)` when it was removed.
    pub(crate) fn get(&self, key: &[u8], hash: u64) -> Result<Option<Option<Vec<u8>>>, RunError> {
        let partition = self.partition_of(key);
        if partition == self.partitions.len() || !self.filter_may_contain(partition, hash)? {
            return Ok(None);
        }
        let index = self.index_block(partition, ReadThrough::Cache)?;
        let position = index.lower_bound(key);
        if position == index.len() {
            return Ok(None);
        }
        let data = self.data_block(partition, &index, position, ReadThrough::Cache)?;
        Ok(data
            .search(key)
            .ok()
            .map(|found| data.entry(found).value.map(<[u8]>::to_vec)))
    }

    fn filter_may_contain(&self, partition: usize, hash: u64) -> Result<bool, RunError> {
        if let Some(filter) = self.filters[partition].get() {
            return Ok(filter.may_contain(hash));
        }
        let Some(pointer) = self.pointers(partition).filter else {
            return Ok(true);
        };
        let bytes = self.context.store.read_block(pointer)?;
        let filter = Filter::parse(&bytes).map_err(|bad| bad.at(pointer))?;
        let filter = self.filters[partition].get_or_init(|| {
            self.filter_bytes.fetch_add(filter.memory_bytes(), Ordering::Relaxed);
            filter
        });
        Ok(filter.may_contain(hash))
    }

    /// The index block of a partition.
    pub(crate) fn index_block(&self, partition: usize, through: ReadThrough) -> Result<Arc<Block>, RunError> {
        self.block(self.pointers(partition).index, KIND_INDEX, through)
    }

    /// The data block at a position of the index block of `partition`.
    pub(crate) fn data_block(
        &self,
        partition: usize,
        index: &Block,
        position: usize,
        through: ReadThrough,
    ) -> Result<Arc<Block>, RunError> {
        let value = index.entry(position).value.unwrap_or_default();
        let pointer = <[u8; BlockPtr::ENCODED_BYTES]>::try_from(value)
            .map(BlockPtr::decode)
            .map_err(|_| BadBlock("index with a malformed pointer").at(self.pointers(partition).index))?;
        self.block(pointer, KIND_DATA, through)
    }

    fn pointers(&self, partition: usize) -> PartitionPtrs {
        partition_ptrs(&self.partitions, partition).expect("checked when the root was decoded")
    }

    fn block(&self, pointer: BlockPtr, kind: u8, through: ReadThrough) -> Result<Arc<Block>, RunError> {
        let key = CacheKey {
            run: self.number,
            place: pointer.place,
        };
        if through == ReadThrough::Cache
            && let Some(block) = self.context.cache.get(key)
        {
            return if block.kind() == kind {
                Ok(block)
            } else {
                Err(BadBlock("pointer to a block of another kind").at(pointer))
            };
        }
        let bytes = self.context.store.read_block(pointer)?;
        let block = Arc::new(Block::parse(bytes, kind).map_err(|bad| bad.at(pointer))?);
        if through == ReadThrough::Cache {
            self.context.cache.insert(key, Arc::clone(&block));
        }
        Ok(block)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if *self.obsolete.get_mut() {
            self.context.graveyard.lock().extend_from_slice(&self.extents);
        }
    }
}
