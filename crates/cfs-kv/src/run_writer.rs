//! Writing a run: data blocks, and for each partition of about 2 MiB of them an index block and a filter; last the
//! root, which lists the partitions.

use crate::{
    BlockPtr, RunError, RunReason, RunStore, RunWriter,
    block::{BlockBuilder, KIND_DATA, KIND_INDEX, KIND_ROOT, shared_prefix_len},
    filter::{Filter, key_hash},
    run::{Run, RunContext, RunSummary, encode_root},
};

/// Data of a partition, bytes before compression. The filter of a partition is the unit that is loaded.
const PARTITION_BYTES: usize = 2 << 20;
/// Largest index block or root.
const INDEX_BYTES_MAX: usize = 48 << 10;

/// A partition of a run, as its root lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PartitionPtrs {
    /// Its index block.
    pub index: BlockPtr,
    /// Its filter, unless it has none.
    pub filter: Option<BlockPtr>,
}

impl PartitionPtrs {
    /// Bytes of the encoded form.
    pub(crate) const ENCODED_BYTES: usize = 2 * BlockPtr::ENCODED_BYTES;

    fn encode(self) -> [u8; Self::ENCODED_BYTES] {
        const NONE: BlockPtr = BlockPtr {
            place: 0,
            stored_len: 0,
        };
        let mut bytes = [0; Self::ENCODED_BYTES];
        bytes[..BlockPtr::ENCODED_BYTES].copy_from_slice(&self.index.encode());
        bytes[BlockPtr::ENCODED_BYTES..].copy_from_slice(&self.filter.unwrap_or(NONE).encode());
        bytes
    }

    /// The inverse of `encode`; `None` when there is no index.
    pub(crate) fn decode(bytes: [u8; Self::ENCODED_BYTES]) -> Option<Self> {
        let (index, filter) = bytes.split_at(BlockPtr::ENCODED_BYTES);
        let decode = |half: &[u8]| BlockPtr::decode(half.try_into().expect("half of the bytes"));
        let (index, filter) = (decode(index), decode(filter));
        (index.stored_len > 0).then_some(Self {
            index,
            filter: (filter.stored_len > 0).then_some(filter),
        })
    }
}

/// A run being written.
pub(crate) struct RunBuilder<'a> {
    writer: Box<dyn RunWriter + 'a>,
    block_bytes: usize,
    data: BlockBuilder,
    index: BlockBuilder,
    root: BlockBuilder,
    /// Pointer of the last data block, and its last key: the separator is known when the next key is.
    unindexed: Option<(Vec<u8>, BlockPtr)>,
    hashes: Vec<u64>,
    partition_bytes: usize,
    summary: RunSummary,
}

impl<'a> RunBuilder<'a> {
    /// Starts a run of about `bytes` with blocks of about `block_bytes`.
    pub(crate) fn new(
        store: &'a dyn RunStore,
        reason: RunReason,
        bytes: u64,
        block_bytes: usize,
    ) -> Result<Self, RunError> {
        Ok(Self {
            writer: store.create_run(reason, bytes)?,
            block_bytes,
            data: BlockBuilder::default(),
            index: BlockBuilder::default(),
            root: BlockBuilder::default(),
            unindexed: None,
            hashes: Vec::new(),
            partition_bytes: 0,
            summary: RunSummary::default(),
        })
    }

    /// Bytes written so far, on the device.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.summary.stored_bytes
    }

    /// Whether the root has room for another partition.
    pub(crate) fn is_full(&self) -> bool {
        self.root.bytes() > INDEX_BYTES_MAX
    }

    /// Adds an entry; its key is greater than those before.
    pub(crate) fn push(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), RunError> {
        if !self.data.fits(key, value, self.block_bytes) {
            self.end_data_block()?;
            if self.partition_bytes >= PARTITION_BYTES || self.index.bytes() > INDEX_BYTES_MAX {
                self.index_block_before(Some(key));
                self.end_partition()?;
            }
        }
        self.index_block_before(Some(key));
        if self.summary.entry_count == 0 {
            self.summary.first_key = key.to_vec();
        }
        self.summary.entry_count += 1;
        self.summary.tombstone_count += u64::from(value.is_none());
        self.hashes.push(key_hash(key));
        self.partition_bytes += key.len() + value.map_or(0, <[u8]>::len);
        self.data.push(key, value);
        Ok(())
    }

    /// Ends the run, which has at least one entry. For `tree_before` see [`RunWriter::finish`].
    pub(crate) fn finish(
        mut self,
        context: RunContext,
        tree_before: Option<&[u8]>,
    ) -> Result<Run, RunError> {
        self.summary.last_key = self.data.last_key().expect("a run has entries").to_vec();
        self.end_data_block()?;
        self.index_block_before(None);
        self.end_partition()?;
        let partitions = self.root.finish(KIND_ROOT);
        let root_bytes = encode_root(&self.summary, partitions);
        let root = self.append(&root_bytes)?;
        let extents = self.writer.finish(tree_before)?;
        Run::from_root_bytes(context, root, extents, &root_bytes)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<BlockPtr, RunError> {
        append_block(&mut *self.writer, &mut self.summary, bytes)
    }

    fn end_data_block(&mut self) -> Result<(), RunError> {
        let last_key = self
            .data
            .last_key()
            .expect("a data block has entries")
            .to_vec();
        let pointer = append_block(
            &mut *self.writer,
            &mut self.summary,
            self.data.finish(KIND_DATA),
        )?;
        self.unindexed = Some((last_key, pointer));
        Ok(())
    }

    /// Puts the last data block into the index under the shortest key that separates it from `next_key`.
    fn index_block_before(&mut self, next_key: Option<&[u8]>) {
        if let Some((last_key, pointer)) = self.unindexed.take() {
            let separator = match next_key {
                Some(next_key) => &next_key[..shared_prefix_len(&last_key, next_key) + 1],
                None => &last_key,
            };
            // The shortest prefix of the next key that is above the last key may be the next key itself.
            let separator = if next_key == Some(separator) {
                &last_key
            } else {
                separator
            };
            self.index.push(separator, Some(&pointer.encode()));
        }
    }

    fn end_partition(&mut self) -> Result<(), RunError> {
        let separator = self
            .index
            .last_key()
            .expect("a partition has blocks")
            .to_vec();
        let index = append_block(
            &mut *self.writer,
            &mut self.summary,
            self.index.finish(KIND_INDEX),
        )?;
        let filter = match Filter::build(&mut self.hashes) {
            Some(filter) => Some(self.append(&filter.encode())?),
            None => None,
        };
        let pointers = PartitionPtrs { index, filter };
        self.root.push(&separator, Some(&pointers.encode()));
        self.hashes.clear();
        self.partition_bytes = 0;
        Ok(())
    }
}

fn append_block(
    writer: &mut dyn RunWriter,
    summary: &mut RunSummary,
    bytes: &[u8],
) -> Result<BlockPtr, RunError> {
    let pointer = writer.append_block(bytes)?;
    assert!(pointer.stored_len > 0, "the store returns no empty blocks");
    summary.stored_bytes += u64::from(pointer.stored_len);
    Ok(pointer)
}
