//! A device over another one that is only read: what is written stays in memory, and goes with the process.
//!
//! A pool on a device that refuses writes, or that must not change, is recovered on it as on any other.
//!
//! Invariants: the device below is never written to, discarded from or flushed. A block that was written or discarded
//! is read from memory, every other one from below.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use cfs_format::{BLOCK_BYTES, SEGMENT_BYTES, SegmentId};
use parking_lot::RwLock;

use crate::descriptors::{assert_writable, check_readable};
use crate::{Device, DeviceError, Geometry, HostSpace};

const BLOCK: usize = BLOCK_BYTES as usize;
const BLOCKS: usize = SEGMENT_BYTES as usize / BLOCK;

/// A block as the overlay has it.
#[derive(Clone)]
enum Block {
    /// As on the device below.
    Below,
    /// All zeros, which take no memory.
    Zeros,
    Written(Box<[u8; BLOCK]>),
}

/// A device whose changes are kept in memory.
pub struct Overlay {
    below: Arc<dyn Device>,
    changed: RwLock<HashMap<SegmentId, Vec<Block>>>,
}

impl Overlay {
    /// An overlay that has changed nothing yet.
    #[must_use]
    pub fn new(below: Arc<dyn Device>) -> Self {
        Self {
            below,
            changed: RwLock::default(),
        }
    }

    fn set(&self, segment: SegmentId, first: usize, blocks: impl Iterator<Item = Block>) {
        let mut changed = self.changed.write();
        let slots = changed
            .entry(segment)
            .or_insert_with(|| vec![Block::Below; BLOCKS]);
        for (slot, block) in slots[first..].iter_mut().zip(blocks) {
            *slot = block;
        }
    }
}

impl Device for Overlay {
    fn geometry(&self) -> Geometry {
        self.below.geometry()
    }

    fn read_at(&self, segment: SegmentId, offset: u32, buf: &mut [u8]) -> Result<(), DeviceError> {
        check_readable(self.geometry().segment_count, segment, offset, buf.len())?;
        let changed = self.changed.read();
        let Some(blocks) = changed.get(&segment) else {
            drop(changed);
            return self.below.read_at(segment, offset, buf);
        };
        let mut at = offset as usize;
        let mut rest = buf;
        while !rest.is_empty() {
            let is_below = |index: &usize| matches!(blocks[*index], Block::Below);
            let index = at / BLOCK;
            let after = match is_below(&index) {
                true => (index..BLOCKS).find(|index| !is_below(index)),
                false => Some(index + 1),
            };
            let end = after.unwrap_or(BLOCKS) * BLOCK;
            let (piece, behind) = rest.split_at_mut(rest.len().min(end - at));
            match &blocks[index] {
                // Together, as one read of the device.
                Block::Below => self.below.read_at(segment, at as u32, piece)?,
                Block::Zeros => piece.fill(0),
                Block::Written(bytes) => piece.copy_from_slice(&bytes[at % BLOCK..][..piece.len()]),
            }
            at += piece.len();
            rest = behind;
        }
        Ok(())
    }

    fn write_at(&self, segment: SegmentId, offset: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        assert_writable(self.geometry().segment_count, segment, offset, bytes.len());
        let blocks = bytes.chunks_exact(BLOCK).map(|block| {
            let block: &[u8; BLOCK] = block.try_into().expect("whole blocks");
            match *block == [0; BLOCK] {
                true => Block::Zeros,
                false => Block::Written(Box::new(*block)),
            }
        });
        self.set(segment, offset as usize / BLOCK, blocks);
        Ok(())
    }

    fn prepare(&self, _first: SegmentId, _count: u32) -> Result<(), DeviceError> {
        Ok(())
    }

    fn discard(&self, segment: SegmentId, range: Range<u32>) -> Result<(), DeviceError> {
        assert_writable(
            self.geometry().segment_count,
            segment,
            range.start,
            range.len(),
        );
        let first = range.start as usize / BLOCK;
        let zeros = std::iter::repeat_n(Block::Zeros, range.len() / BLOCK);
        self.set(segment, first, zeros);
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn host_space(&self) -> Result<Option<HostSpace>, DeviceError> {
        self.below.host_space()
    }
}
