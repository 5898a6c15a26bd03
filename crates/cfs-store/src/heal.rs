//! Blocks of metadata that have rotted come back from parity.
//!
//! Table segments carry parity by columns, the log's batches a parity block each (`cfs_seal::parity`). Nothing is
//! believed because the parity says so: a repair counts when what it makes authenticates.
//!
//! What is repaired is written back to its place. These are the very bytes that were sealed for that place, so no
//! nonce serves twice. If writing fails nothing is lost that was not lost before; the next reader repairs it again.
//! Sealed blocks begin and end within the device's: of such a block only what has been authenticated is replaced, since
//! the rest of what the parity says may be the damage of another block in the column. A block that the device refuses
//! is written only as a whole.

use std::ops::Range;

use cfs_device::Device;
use cfs_format::segment::{SegmentHeader, Stream};
use cfs_format::{BLOCK_BYTES, SEGMENT_BYTES, SegmentId};
use cfs_seal::parity::{columns, differences, xor_into};

use crate::pool::Pool;
use crate::sync::{AtomicU64, Mutex, Ordering};

const BLOCK: usize = BLOCK_BYTES as usize;
const TABLE_BLOCK: &str = "table block";

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

    fn count(&self) {
        self.healed_blocks.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a block, for which a copy has stood in.
    pub fn note(&self, what: &str) {
        self.count();
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
    /// What can be read of a segment with `used_bytes`; none where so few have no parity.
    fn read(pool: &Pool, segment: SegmentId, used_bytes: u32) -> Option<Self> {
        let columns = columns(used_bytes as usize / BLOCK)?;
        let mut bytes = vec![0; used_bytes as usize];
        let refused = read_what_can_be(&*pool.device, segment, 0, &mut bytes);
        Some(Self {
            lacking: differences(&bytes, columns),
            bytes,
            columns,
            refused,
        })
    }

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
    if range.end > used_bytes as usize {
        return None;
    }
    let mut image = TableImage::read(pool, segment, used_bytes)?;
    let columns = image.columns;
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
            let opened = attempt(&image);
            let authenticated = image.bytes[range.clone()].to_vec();
            image.toggle(blocks);
            if let Some(opened) = opened {
                let as_read = image.bytes.clone();
                image.bytes[range.clone()].copy_from_slice(&authenticated);
                image.lacking = differences(&image.bytes, columns);
                for block in touched {
                    let place = block * BLOCK..(block + 1) * BLOCK;
                    let is_whole = range.start <= place.start && place.end <= range.end;
                    let writes = match image.refused.contains(&block) {
                        true => is_whole,
                        false => image.bytes[place.clone()] != as_read[place.clone()],
                    };
                    if writes {
                        let bytes = &image.bytes[place];
                        let is_written = write_over(pool, TABLE_BLOCK, segment, block, bytes);
                        // Else this block, or another of its column, is still to be restored.
                        if is_written && !image.is_suspect(block) {
                            pool.healing.count();
                        }
                    }
                }
                return Some(opened);
            }
        }
    }
    None
}

/// The header of a table segment, also when its block is damaged and parity can tell what it was. `used_bytes` of the
/// segment where they are known; else all that is possible is tried, since a header authenticates.
pub(crate) fn table_header(
    pool: &Pool,
    segment: SegmentId,
    used_bytes: Option<u32>,
) -> Option<SegmentHeader> {
    let open = |block: &[u8]| {
        cfs_seal::keys::open_segment_header(block, &pool.cluster_key)
            .ok()
            .filter(|header| {
                header.pool_uuid == pool.uuid
                    && header.segment.get() == segment.0
                    && header.stream == Stream::Table as u8
            })
    };
    let mut first = vec![0; BLOCK];
    if pool.device.read_at(segment, 0, &mut first).is_ok()
        && let Some(header) = open(&first)
    {
        return Some(header);
    }
    let mut bytes = vec![0; SEGMENT_BYTES as usize];
    read_what_can_be(&*pool.device, segment, 0, &mut bytes);
    let totals = match used_bytes {
        Some(used_bytes) => {
            let total = used_bytes.min(SEGMENT_BYTES) as usize / BLOCK;
            total..total + 1
        }
        // What lies behind the used blocks is zeros, so that one of many blocks has the sums of a full one.
        None => 2..SEGMENT_BYTES as usize / BLOCK + 1,
    };
    let is_tried = |total: &usize| used_bytes.is_some() || *total < 32 || *total == totals.end - 1;
    totals.clone().filter(is_tried).find_map(|total| {
        let columns = columns(total)?;
        let mut header = vec![0; BLOCK];
        for block in bytes[..total * BLOCK]
            .chunks_exact(BLOCK)
            .step_by(columns)
            .skip(1)
        {
            xor_into(&mut header, block);
        }
        open(&header)
    })
}

/// Makes the columns of a table segment zero again, all of whose sealed blocks have just been opened: what may still be
/// wrong is the header block, which tells by itself, or parity. `is_header` says whether a block is the header block
/// that belongs there, `opens` whether all that is sealed in the segment's bytes and touches a range of them opens.
///
/// A block that the device refuses is made from its column and written if `opens` says that it is right, or else its
/// column left as it is: the sum says nothing.
pub(crate) fn settle_parity(
    pool: &Pool,
    segment: SegmentId,
    used_bytes: u32,
    is_header: impl Fn(&[u8]) -> bool,
    opens: impl Fn(&[u8], Range<usize>) -> bool,
) {
    let _one = pool.healing.busy.lock();
    let total = used_bytes as usize / BLOCK;
    let Some(mut image) = TableImage::read(pool, segment, used_bytes) else {
        return;
    };
    let columns = image.columns;
    for column in 0..columns {
        let refused = image.refused.iter().copied();
        let refused: Vec<usize> = refused.filter(|block| block % columns == column).collect();
        let block = match refused[..] {
            [] if !image.is_suspect(column) => continue,
            [] if column == 0 && !is_header(&image.bytes[..BLOCK]) => 0,
            [] => {
                // The column's parity block is one of the last.
                let parity = total - columns;
                parity + (column + columns - parity % columns) % columns
            }
            [block] => block,
            _ => continue,
        };
        image.toggle(&[block]);
        if !refused.is_empty() && !opens(&image.bytes, block * BLOCK..(block + 1) * BLOCK) {
            continue;
        }
        if block == 0 && !is_header(&image.bytes[..BLOCK]) {
            continue;
        }
        let bytes = &image.bytes[block * BLOCK..(block + 1) * BLOCK];
        if write_over(pool, TABLE_BLOCK, segment, block, bytes) {
            pool.healing.count();
        }
    }
}

/// Writes a block of the log, as it had been sealed, over its damaged form.
pub(crate) fn write_back(pool: &Pool, segment: SegmentId, block: u32, bytes: &[u8]) {
    if write_over(pool, "log block", segment, block as usize, bytes) {
        pool.healing.count();
    }
}

/// Whether the block has been written: not where nothing may be, nor where the device refuses it.
fn write_over(pool: &Pool, what: &str, segment: SegmentId, block: usize, bytes: &[u8]) -> bool {
    let offset = block as u32 * BLOCK_BYTES;
    if pool.device.geometry().zoned || pool.writable().is_err() {
        return false;
    }
    match pool.device.write_at(segment, offset, bytes) {
        Ok(()) => {
            tracing::warn!(%segment, offset, "a damaged {what} has been restored from parity");
            true
        }
        Err(error) => {
            tracing::warn!(%error, "the restored {what} could not be written back");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cfs_device::{FaultPlan, MemDevice};
    use cfs_format::SegmentSeq;
    use cfs_kv::BlockPtr;
    use cfs_seal::block::Cipher;
    use cfs_seal::keys::ClusterKey;

    use super::*;
    use crate::directory::TableOwner;
    use crate::pool::NoHost;
    use crate::runs::{SegmentRuns, TableBlock};
    use crate::space::{Purpose, Space};

    /// A table segment of 16 columns, several blocks each.
    struct Subject {
        device: Arc<MemDevice>,
        pool: Arc<Pool>,
        segment: SegmentId,
        seq: SegmentSeq,
        used_bytes: u32,
        blocks: Vec<BlockPtr>,
        original: Vec<u8>,
    }

    const REFUSED: u32 = 5;

    impl Subject {
        fn new() -> Self {
            let device = Arc::new(MemDevice::new(64));
            let pool = Arc::new(Pool::new(
                Arc::<MemDevice>::clone(&device),
                Arc::new(NoHost),
                ClusterKey::from_bytes([9; 32]),
                Cipher::Aes256Gcm,
                [3; 16],
                1,
                Space::new(64, true),
            ));
            let runs = SegmentRuns::new(Arc::clone(&pool));
            let mut writer = runs.writer(TableOwner::Meta, Purpose::Upkeep, 240_000);
            let mut state = 1_u64;
            let mut content = vec![0; 6000];
            let blocks: Vec<BlockPtr> = (0..40)
                .map(|_| {
                    content.fill_with(|| {
                        state = state.wrapping_mul(6_364_136_223_846_793_005) + 1;
                        (state >> 40) as u8
                    });
                    writer.append(&content).expect("a block")
                })
                .collect();
            let seq = writer.current_seq();
            let segment = writer.finish(None).expect("a run")[0];
            let used_bytes = pool.space.lock().entry(segment).expect("used").used_bytes;
            let mut original = vec![0; used_bytes as usize];
            device.read_at(segment, 0, &mut original).expect("read");
            Self {
                device,
                pool,
                segment,
                seq,
                used_bytes,
                blocks,
                original,
            }
        }

        fn opens(&self, block: BlockPtr) -> bool {
            let block = TableBlock {
                place: block.place,
                stored_len: block.stored_len,
                seq: self.seq,
                used_bytes: self.used_bytes,
            };
            SegmentRuns::open_block(&self.pool, block).is_ok()
        }

        fn content(&self) -> Vec<u8> {
            let mut now = vec![0; self.used_bytes as usize];
            self.device.set_faults(FaultPlan::default());
            let read = self.device.read_at(self.segment, 0, &mut now);
            read.expect("read");
            now
        }
    }

    #[test]
    fn a_repair_leaves_alone_what_lies_beside_it() {
        let subject = Subject::new();
        // Two sealed blocks meet in a block of the device; the end of the first is damaged, and in the column a byte
        // of another block, where it would hit the second.
        let meeting =
            |pair: &[BlockPtr]| pair[1].place as usize % cfs_format::SEGMENT_BYTES as usize;
        let pairs = subject.blocks.windows(2);
        let at = pairs
            .map(meeting)
            .find(|at| at / BLOCK == 10 || at / BLOCK == 11);
        let at = at.expect("blocks of 6000 bytes meet in one of two neighbours");
        assert!((100..BLOCK - 100).contains(&(at % BLOCK)), "{at}");
        for byte in [at - 50, at + 16 * BLOCK + 50] {
            subject.device.flip_bit(subject.segment, byte as u32, 3);
        }
        for block in &subject.blocks {
            assert!(subject.opens(*block), "{block:?}");
        }
        assert!(subject.content() == subject.original);
        assert_eq!(subject.pool.healing.healed_blocks(), 1, "one column");
    }

    #[test]
    fn parity_stays_when_a_block_is_refused() {
        let subject = Subject::new();
        let settle = |opens: bool| {
            let (pool, used_bytes) = (&subject.pool, subject.used_bytes);
            settle_parity(pool, subject.segment, used_bytes, |_| true, |_, _| opens);
        };
        let refuse = || {
            subject.device.set_faults(FaultPlan {
                refused_blocks: vec![(subject.segment, REFUSED)],
                ..FaultPlan::default()
            });
        };
        refuse();
        settle(false);
        assert!(subject.content() == subject.original);
        assert_eq!(subject.pool.healing.healed_blocks(), 0);
        // What is known to be right is written, so that the medium takes other room for it.
        let noise = [7; BLOCK];
        let damaged = subject
            .device
            .write_at(subject.segment, REFUSED * BLOCK_BYTES, &noise);
        damaged.expect("written");
        refuse();
        settle(true);
        assert!(subject.content() == subject.original);
        assert_eq!(subject.pool.healing.healed_blocks(), 1);
    }
}
