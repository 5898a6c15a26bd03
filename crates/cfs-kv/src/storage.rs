//! What the tree needs of the storage below it.

use crate::RunError;

/// Where a block of a run lies: opaque to this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockPtr {
    /// Position, in whatever way the store packs it. No two blocks of one run have the same.
    pub place: u64,
    /// Bytes on the device; never 0.
    pub stored_len: u32,
}

impl BlockPtr {
    /// Bytes of the encoded form.
    pub(crate) const ENCODED_BYTES: usize = 12;

    /// `place` and `stored_len`, little-endian.
    pub(crate) fn encode(self) -> [u8; Self::ENCODED_BYTES] {
        let mut bytes = [0; Self::ENCODED_BYTES];
        bytes[..8].copy_from_slice(&self.place.to_le_bytes());
        bytes[8..].copy_from_slice(&self.stored_len.to_le_bytes());
        bytes
    }

    /// The inverse of `encode`.
    pub(crate) fn decode(bytes: [u8; Self::ENCODED_BYTES]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        Self {
            place: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            stored_len: u32::from_le_bytes([i, j, k, l]),
        }
    }
}

/// Why a run is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunReason {
    /// A memtable goes to storage.
    Flush,
    /// Runs are merged: what they take is given back later, and it could wait.
    Compaction,
    /// Small runs become one, for want of room: it takes less than they do, which is given back later.
    Consolidation,
}

/// A run's storage. The store compresses, encrypts and authenticates each block; this crate has no checksums of its
/// own, so a block that `read_block` returns must be the one that was written.
pub trait RunStore: Send + Sync {
    /// Starts writing a new run, of about `bytes` before the store compresses them.
    ///
    /// # Errors
    /// [`RunError::NoSpace`], [`RunError::Io`]; nothing changed.
    fn create_run(
        &self,
        reason: RunReason,
        bytes: u64,
    ) -> Result<Box<dyn RunWriter + '_>, RunError>;

    /// The plain bytes of one block.
    ///
    /// # Errors
    /// [`RunError::Io`]; [`RunError::Corrupt`] when the block does not authenticate.
    fn read_block(&self, block: BlockPtr) -> Result<Vec<u8>, RunError>;

    /// Gives the extents of a run back. Called from within [`crate::Tree::manifest`] only, for runs that the manifest
    /// being returned does not name and that nobody reads any more: the store may free them as soon as a superblock
    /// that holds this manifest, or a later one, is durable, and not before.
    fn release_run(&self, extents: &[u64]);
}

/// A run being written. Dropped without `finish`, it gives its storage back at once: no manifest names it.
pub trait RunWriter {
    /// Writes a block. It need not be durable before the store's next superblock is.
    ///
    /// # Errors
    /// [`RunError::NoSpace`], [`RunError::Io`]; the run is then dropped.
    fn append_block(&mut self, plain: &[u8]) -> Result<BlockPtr, RunError>;

    /// Ends the run with the block that was appended last, its root. Returns the opaque storage extents (segment
    /// numbers) that hold it; its blocks can be read from then on.
    ///
    /// `tree_before` comes with the last run of what had been applied up to the last [`crate::Tree::rotate`]: a manifest
    /// that, with this run as the newest one of level 0, stands for all of that. Kept beside the run it lets the tree
    /// be found again when nothing else that names its runs is left; see [`crate::salvage`].
    ///
    /// # Errors
    /// As `append_block`.
    fn finish(self: Box<Self>, tree_before: Option<&[u8]>) -> Result<Vec<u64>, RunError>;
}
