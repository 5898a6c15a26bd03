//! A sorted, immutable run: its root in memory, the index and filter of a partition from their first use on, its data
//! blocks through the cache.
//!
//! Filters have to stay in memory, or misses would cost reads; an index block takes about a tenth of its filter, so
//! it stays too, and a read of a key that is not cached costs one block.
//!
//! Invariant: a `Run` that has been marked obsolete hands its extents to the graveyard when its last holder drops it,
//! and no other run does.

use std::ops::ControlFlow;
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use parking_lot::Mutex;

use crate::{
    BlockCache, BlockPtr, KEY_BYTES_MAX, RunError, RunStore,
    block::{Block, KIND_DATA, KIND_INDEX, KIND_ROOT},
    cache::{CacheKey, CachedBlock, RunNumber, Seat},
    error::BadBlock,
    filter::Filter,
    run_writer::PartitionPtrs,
    sorted::head,
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

/// More entries, and more bytes, than a run can have; the sums over all runs of a tree stay far from 2^64.
const RUN_COUNT_MAX: u64 = 1 << 40;

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
        || summary.entry_count.max(summary.stored_bytes) > RUN_COUNT_MAX
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
    let value = partitions
        .value(partitions.place(index))
        .unwrap_or_default();
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

/// A part of a run that has been used.
pub(crate) struct Partition {
    /// Separators to data blocks.
    pub index: Block,
    /// Of the data blocks, in the order of `index`.
    seats: Arc<[Seat]>,
    filter: Option<Filter>,
}

impl Partition {
    /// Bytes of memory that it takes without its filter.
    fn index_bytes(&self) -> usize {
        self.index.memory_bytes() + size_of_val(&*self.seats)
    }
}

/// A run.
pub(crate) struct Run {
    context: RunContext,
    number: RunNumber,
    root: BlockPtr,
    extents: Vec<u64>,
    summary: RunSummary,
    partitions: Block,
    loaded: Box<[OnceLock<Partition>]>,
    filter_bytes: AtomicUsize,
    index_bytes: AtomicUsize,
    obsolete: AtomicBool,
}

impl Run {
    /// Opens a run by its root.
    pub(crate) fn open(
        context: RunContext,
        root: BlockPtr,
        extents: Vec<u64>,
    ) -> Result<Self, RunError> {
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
            loaded: (0..partitions.len()).map(|_| OnceLock::new()).collect(),
            partitions,
            filter_bytes: AtomicUsize::new(0),
            index_bytes: AtomicUsize::new(0),
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

    /// Bytes of its root, and of its index blocks that are in memory.
    pub(crate) fn index_bytes(&self) -> usize {
        self.partitions.memory_bytes()
            + size_of::<Self>()
            + self.index_bytes.load(Ordering::Relaxed)
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

    /// Head of what a partition ends with: a key that is not below any of its keys, and below every key behind it.
    pub(crate) fn partition_end_head(&self, number: usize) -> u128 {
        let end = self.partitions.suffix(self.partitions.place(number));
        head(&[self.partitions.prefix(), end].concat())
    }

    /// Whether a partition ends before `key`.
    pub(crate) fn partition_ends_before(&self, number: usize, key: &[u8]) -> bool {
        self.partitions.cmp_key(number, key).is_lt()
    }

    /// Fetches what `get` will look at first, if it is in memory.
    #[inline]
    pub(crate) fn prefetch(&self, number: usize, hash: u64) {
        let partition = self.loaded[number].get();
        if let Some(filter) = partition.and_then(|partition| partition.filter.as_ref()) {
            filter.prefetch(hash);
        }
    }

    /// Fetches what `get` will look at once the filter has not said no, if it is in memory.
    #[inline]
    pub(crate) fn prefetch_index(&self, number: usize, key: &[u8]) {
        if let Some(partition) = self.loaded[number].get() {
            partition.index.prefetch(key);
        }
    }

    /// What a partition says about a key with this hash: `None` when nothing, or else what `read` makes of its value;
    /// it gets `None` when the key was removed.
    #[inline]
    pub(crate) fn get<T>(
        &self,
        number: usize,
        key: &[u8],
        hash: u64,
        read: impl FnOnce(Option<&[u8]>) -> T,
    ) -> Result<Option<T>, RunError> {
        let partition = self.partition(number)?;
        if partition
            .filter
            .as_ref()
            .is_some_and(|filter| !filter.may_contain(hash))
        {
            return Ok(None);
        }
        let position = partition.index.lower_bound(key);
        if position == partition.index.len() {
            return Ok(None);
        }
        let data = self.data_block(number, position, ReadThrough::Cache)?;
        let found = data.search(key).ok();
        Ok(found.map(|found| read(data.value(data.place(found)))))
    }

    /// A partition, `number < partition_count()`.
    #[inline]
    pub(crate) fn partition(&self, number: usize) -> Result<&Partition, RunError> {
        match self.loaded[number].get() {
            Some(partition) => Ok(partition),
            None => self.load_partition(number),
        }
    }

    #[cold]
    fn load_partition(&self, number: usize) -> Result<&Partition, RunError> {
        let pointers =
            partition_ptrs(&self.partitions, number).expect("checked when the root was decoded");
        let read = |pointer| self.context.store.read_block(pointer);
        let index = Block::parse(read(pointers.index)?, KIND_INDEX)
            .map_err(|bad| bad.at(pointers.index))?;
        for position in 0..index.len() {
            block_ptr(&index, position).map_err(|bad| bad.at(pointers.index))?;
        }
        let filter = match pointers.filter {
            Some(pointer) => Some(Filter::parse(&read(pointer)?).map_err(|bad| bad.at(pointer))?),
            None => None,
        };
        Ok(self.loaded[number].get_or_init(|| {
            let filter_bytes = filter.as_ref().map_or(0, Filter::memory_bytes);
            self.filter_bytes.fetch_add(filter_bytes, Ordering::Relaxed);
            let partition = Partition {
                seats: (0..index.len()).map(|_| Seat::default()).collect(),
                index,
                filter,
            };
            self.index_bytes
                .fetch_add(partition.index_bytes(), Ordering::Relaxed);
            partition
        }))
    }

    /// Reads every block from the store, whatever is in memory. `seen` is told of each, with the error if it cannot be
    /// read, and says whether to go on. What a bad block would lead to is left out.
    pub(crate) fn read_all(
        &self,
        seen: &mut impl FnMut(BlockPtr, Option<RunError>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let store = &self.context.store;
        seen(self.root, store.read_block(self.root).err())?;
        for number in 0..self.partitions.len() {
            let pointers = partition_ptrs(&self.partitions, number)
                .expect("checked when the root was decoded");
            if let Some(filter) = pointers.filter {
                let parsed = store
                    .read_block(filter)
                    .and_then(|bytes| Filter::parse(&bytes).map_err(|bad| bad.at(filter)));
                seen(filter, parsed.err())?;
            }
            let parsed = store.read_block(pointers.index).and_then(|bytes| {
                Block::parse(bytes, KIND_INDEX).map_err(|bad| bad.at(pointers.index))
            });
            let index = match parsed {
                Ok(index) => index,
                Err(error) => {
                    seen(pointers.index, Some(error))?;
                    continue;
                }
            };
            seen(pointers.index, None)?;
            for position in 0..index.len() {
                let pointer = match block_ptr(&index, position) {
                    Ok(pointer) => pointer,
                    Err(bad) => {
                        seen(pointers.index, Some(bad.at(pointers.index)))?;
                        continue;
                    }
                };
                let parsed = store.read_block(pointer).and_then(|bytes| {
                    Block::parse(bytes, KIND_DATA).map_err(|bad| bad.at(pointer))
                });
                seen(pointer, parsed.err())?;
            }
        }
        ControlFlow::Continue(())
    }

    /// The data block at a position of the index of a partition that has been loaded.
    pub(crate) fn data_block(
        &self,
        partition: usize,
        position: usize,
        through: ReadThrough,
    ) -> Result<Arc<CachedBlock>, RunError> {
        let Partition { index, seats, .. } = self.partition(partition)?;
        if through == ReadThrough::Cache
            && let Some(block) = seats[position].get()
        {
            return Ok(block);
        }
        let pointer = block_ptr(index, position).expect("checked when the partition was loaded");
        let bytes = self.context.store.read_block(pointer)?;
        let block = Block::parse(bytes, KIND_DATA).map_err(|bad| bad.at(pointer))?;
        if through == ReadThrough::Store {
            return Ok(CachedBlock::alone(block));
        }
        let block = CachedBlock::seated(block, seats, position);
        let key = CacheKey {
            run: self.number,
            place: pointer.place,
        };
        self.context.cache.insert(key, Arc::clone(&block));
        Ok(block)
    }
}

fn block_ptr(index: &Block, position: usize) -> Result<BlockPtr, BadBlock> {
    let value = index.value(index.place(position)).unwrap_or_default();
    <[u8; BlockPtr::ENCODED_BYTES]>::try_from(value)
        .map(BlockPtr::decode)
        .map_err(|_| BadBlock("index with a malformed pointer"))
}

impl Drop for Run {
    fn drop(&mut self) {
        if *self.obsolete.get_mut() {
            self.context
                .graveyard
                .lock()
                .extend_from_slice(&self.extents);
        }
    }
}
