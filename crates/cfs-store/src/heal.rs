//! Blocks of metadata that have rotted come back from parity.
//!
//! Table segments carry parity by columns, the log's batches a parity block each (`cfs_seal::parity`). Nothing is
//! believed because the parity says so: a repair counts when what it makes authenticates.
//!
//! A repaired block is written back to its place. These are the very bytes that were sealed for that place, so no
//! nonce serves twice. If writing fails nothing is lost that was not lost before; the next reader repairs it again.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use cfs_device::Device;
use cfs_format::{BLOCK_BYTES, SegmentId};
use cfs_seal::parity::{columns, differences, xor_into};
use parking_lot::Mutex;

use crate::pool::Pool;

const BLOCK: usize = BLOCK_BYTES as usize;

/// One repair at a time, and how many blocks have been.
#[derive(Default)]
pub(crate) struct Healing {
    busy: Mutex<()>,
    healed_blocks: AtomicU64,
}

impl Healing {
    /// Blocks that were found damaged and put right since the pool was opened.
    pub fn healed_blocks(&self) -> u64 {
        self.healed_blocks.load(Ordering::Relaxed)
    }

    /// Counts a block, for which a copy has stood in.
    pub fn note(&self, what: &str) {
        self.healed_blocks.fetch_add(1, Ordering::Relaxed);
        tracing::warn!("a damaged {what} has been written again");
    }
}

/// Reads whole blocks; those that the device refuses are zeros, and their numbers come back, counted from the start of
/// `buf`.
pub(crate) fn read_what_can_be(
    device: &dyn Device,
    segment: SegmentId,
    offset: u32,
    buf: &mut [u8],
) -> Vec<usize> {
    if device.read_at(segment, offset, buf).is_ok() {
        return Vec::new();
    }
    let mut refused = Vec::new();
    for (index, block) in buf.chunks_mut(BLOCK).enumerate() {
        let at = offset + index as u32 * BLOCK_BYTES;
        if device.read_at(segment, at, block).is_err() {
            block.fill(0);
            refused.push(index);
        }
    }
    refused
}

/// A table segment as it was read, with what its columns lack.
struct TableImage {
    bytes: Vec<u8>,
    columns: usize,
    lacking: Vec<u8>,
    refused: Vec<usize>,
}

impl TableImage {
    fn is_suspect(&self, block: usize) -> bool {
        let column = block % self.columns * BLOCK;
        self.lacking[column..column + BLOCK]
            .iter()
            .any(|byte| *byte != 0)
    }

    /// Adds to each block what its column lacks, or takes it away again.
    fn toggle(&mut self, blocks: &[usize]) {
        for block in blocks {
            let column = block % self.columns * BLOCK;
            xor_into(
                &mut self.bytes[block * BLOCK..(block + 1) * BLOCK],
                &self.lacking[column..column + BLOCK],
            );
        }
    }
}

/// Tries to open what lies in `range` of a table segment with `used_bytes` once more: as it is (the device may have
/// failed for a moment), then with one block that it touches made from the others of its column, then with several
/// neighbours. What helps is written back.
pub(crate) fn reopen<T>(
    pool: &Pool,
    segment: SegmentId,
    used_bytes: u32,
    range: Range<usize>,
    open: impl Fn(&mut [u8]) -> Option<T>,
) -> Option<T> {
    let _one = pool.healing.busy.lock();
    let columns = columns(used_bytes as usize / BLOCK)?;
    if range.end > used_bytes as usize {
        return None;
    }
    let mut bytes = vec![0; used_bytes as usize];
    let refused = read_what_can_be(&*pool.device, segment, 0, &mut bytes);
    let lacking = differences(&bytes, columns);
    let mut image = TableImage {
        bytes,
        columns,
        lacking,
        refused,
    };
    let touched = range.start / BLOCK..range.end.div_ceil(BLOCK);
    let attempt = |image: &TableImage| open(&mut image.bytes[range.clone()].to_vec());
    if !image.refused.iter().any(|block| touched.contains(block))
        && let Some(opened) = attempt(&image)
    {
        return Some(opened);
    }
    let suspects: Vec<usize> = touched
        .clone()
        .filter(|block| image.is_suspect(*block))
        .collect();
    for count in 1..=suspects.len().min(columns) {
        for blocks in suspects.windows(count) {
            if blocks[count - 1] - blocks[0] >= columns {
                continue;
            }
            image.toggle(blocks);
            if let Some(opened) = attempt(&image) {
                for block in touched {
                    if blocks.contains(&block) || image.refused.contains(&block) {
                        let bytes = &image.bytes[block * BLOCK..(block + 1) * BLOCK];
                        write_back(pool, "table block", segment, block as u32, bytes);
                    }
                }
                return Some(opened);
            }
            image.toggle(blocks);
        }
    }
    None
}

/// Makes the columns of a table segment zero again, all of whose sealed blocks have just been opened: what may still be
/// wrong is the header block, which tells by itself, or parity. `is_header` says whether a block is the header block
/// that belongs there.
pub(crate) fn settle_parity(
    pool: &Pool,
    segment: SegmentId,
    used_bytes: u32,
    is_header: impl Fn(&[u8]) -> bool,
) {
    let _one = pool.healing.busy.lock();
    let total = used_bytes as usize / BLOCK;
    let Some(columns) = columns(total) else {
        return;
    };
    let mut bytes = vec![0; used_bytes as usize];
    read_what_can_be(&*pool.device, segment, 0, &mut bytes);
    let lacking = differences(&bytes, columns);
    let mut image = TableImage {
        bytes,
        columns,
        lacking,
        refused: Vec::new(),
    };
    for column in 0..columns {
        if !image.is_suspect(column) {
            continue;
        }
        let mut block = column;
        if column > 0 || is_header(&image.bytes[..BLOCK]) {
            // The column's parity block is one of the last.
            let parity = total - columns;
            block = parity + (column + columns - parity % columns) % columns;
        }
        image.toggle(&[block]);
        if block == 0 && !is_header(&image.bytes[..BLOCK]) {
            continue;
        }
        let bytes = &image.bytes[block * BLOCK..(block + 1) * BLOCK];
        write_back(pool, "table block", segment, block as u32, bytes);
    }
}

/// Writes a block, as it had been sealed, over its damaged form.
pub(crate) fn write_back(pool: &Pool, what: &str, segment: SegmentId, block: u32, bytes: &[u8]) {
    pool.healing.healed_blocks.fetch_add(1, Ordering::Relaxed);
    let offset = block * BLOCK_BYTES;
    tracing::warn!(%segment, offset, "a damaged {what} has been restored from parity");
    if pool.device.geometry().zoned || pool.writable().is_err() {
        return;
    }
    if let Err(error) = pool.device.write_at(segment, offset, bytes) {
        tracing::warn!(%error, "the restored {what} could not be written back");
    }
}
