//! Reading the log back.
//!
//! Invariants:
//! - A batch counts when it authenticates for its place and starts at the LSN that is due. A journal segment that
//!   follows another is believed when its header verifies, is of the same incarnation and starts at that LSN.
//! - One damaged block of a batch is computed from the others and the batch's parity; a damaged header has a copy.
//! - The log ends where no batch follows. It is said to be damaged there when a later batch says that commands beyond
//!   the end had been durable: what a power cut takes away was durable nowhere. It is said to be damaged, too, when the
//!   device refuses the block in which the next batch would begin, or the header of the next segment: a power cut makes
//!   no block unreadable, so nobody knows what was there.

use cfs_device::Device;
use cfs_format::journal::{BATCH_MAGIC, BATCHES_OFFSET, BatchHeader, RECORD_PREFIX_BYTES};
use cfs_format::segment::{SegmentHeader, Stream};
use cfs_format::superblock::JournalPosition;
use cfs_format::{BLOCK_BYTES, Lsn, SEGMENT_BYTES, SegmentId, SegmentSeq, Timestamp};
use cfs_seal::block::BlockCipher;
use cfs_seal::keys::ClusterKey;
use cfs_seal::parity::xor_into;
use zerocopy::FromBytes;

use crate::heal::read_what_can_be;
use crate::journal::BATCH_BYTES_MAX;

const BLOCK: usize = BLOCK_BYTES as usize;
const TAG_BYTES: usize = 16;
/// Segments in which the log is looked for when the one that should follow is not there. They are handed out from the
/// lowest on, so it goes on not far behind; on a slow disk each takes some milliseconds.
const SEGMENTS_SEARCHED: u32 = 2048;

/// One command read back from the log.
pub(crate) struct LoggedRecord {
    pub lsn: Lsn,
    pub timestamp: Timestamp,
    pub kind: u8,
    pub command: Vec<u8>,
}

/// What a reading of the log found.
pub(crate) struct LogTail {
    pub records: Vec<LoggedRecord>,
    /// Segments of the chain, with their sequence numbers.
    pub segments: Vec<(SegmentId, SegmentSeq)>,
    /// Commands up to here were durable; those after it are believed while their chunks verify.
    pub durable_lsn: Lsn,
    /// Damaged blocks of what was durable, as they should be.
    pub repaired: Vec<RepairedBlock>,
    /// Neither the header of the first segment nor its copy can be read.
    pub headless: bool,
    /// Durable commands that damage has taken away.
    pub lost: Option<LostLog>,
}

/// A block of the log that parity or a copy has brought back.
pub(crate) struct RepairedBlock {
    pub segment: SegmentId,
    pub block: u32,
    pub bytes: Vec<u8>,
    /// The first command that it was written with.
    lsn: Lsn,
}

/// Where the log cannot be read on although there is more of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LostLog {
    pub segment: SegmentId,
    pub offset: u32,
    /// The first command that is missing.
    pub lsn: Lsn,
    /// The last command that is known to have been durable; before `lsn` when it is not known whether any is missing.
    pub durable_lsn: Lsn,
}

/// What is needed to read a pool's log.
pub(crate) struct LogReader<'a> {
    pub device: &'a dyn Device,
    pub cipher: &'a BlockCipher,
    pub key: &'a ClusterKey,
    pub uuid: &'a [u8; 16],
    /// The pool was closed: nothing was written behind the checkpoint's position, so that nothing of it can be lost, and it is
    /// not looked for.
    pub was_closed: bool,
}

impl LogReader<'_> {
    /// Reads the log from a checkpoint's position to its end. Changes nothing.
    pub fn read(&self, position: &JournalPosition) -> LogTail {
        let mut tail = LogTail {
            records: Vec::new(),
            segments: Vec::new(),
            durable_lsn: Lsn(position.lsn.get().saturating_sub(1)),
            repaired: Vec::new(),
            headless: false,
            lost: None,
        };
        let incarnation = position.seq.get() >> 40;
        let segment_count = self.device.geometry().segment_count;
        let mut segment = SegmentId(position.segment.get());
        let mut offset = position.offset.get();
        let mut due_lsn = position.lsn.get();
        // Whether the device refuses what would tell that the log goes on.
        let mut refused_end = false;
        // The place where the next batch is missed.
        let mut end = (segment, offset);
        let mut content = vec![0; SEGMENT_BYTES as usize];
        while segment.0 < segment_count && tail.segments.iter().all(|(seen, _)| *seen != segment) {
            let refused = read_what_can_be(self.device, segment, 0, &mut content);
            let first = tail.segments.is_empty();
            let mut repaired = Vec::new();
            let header = self.open_header(&content, segment, &mut repaired);
            let header = header.filter(|header| match first {
                true => header.seq == position.seq,
                false => header.first_lsn.get() == due_lsn && header.seq.get() >> 40 == incarnation,
            });
            let seq = match &header {
                Some(header) => header.seq.get(),
                // Where to begin is known without it; but it had been flushed, and where the log goes on is lost.
                None if first => {
                    tail.headless = true;
                    position.seq.get()
                }
                None => {
                    let header_blocks = 0..BATCHES_OFFSET as usize / BLOCK;
                    refused_end |= may_be_full(end.1)
                        && header_blocks
                            .into_iter()
                            .all(|block| refused.contains(&block));
                    break;
                }
            };
            if header.is_some() {
                let first_lsn = match first {
                    true => position.lsn.get().saturating_sub(1),
                    false => due_lsn,
                };
                tail.repaired
                    .extend(repaired.into_iter().map(|(block, bytes)| RepairedBlock {
                        segment,
                        block,
                        bytes,
                        lsn: Lsn(first_lsn),
                    }));
            }
            tail.segments.push((segment, SegmentSeq(seq)));
            while let Some(batch) = self.open_batch(&content, offset, SegmentSeq(seq), due_lsn) {
                for (index, bytes) in batch.repaired {
                    tail.repaired.push(RepairedBlock {
                        segment,
                        block: offset / BLOCK_BYTES + index as u32,
                        bytes,
                        lsn: Lsn(due_lsn),
                    });
                }
                tail.durable_lsn = tail.durable_lsn.max(Lsn(batch.durable_lsn));
                due_lsn += batch.records.len() as u64;
                tail.records.extend(batch.records);
                offset += batch.len;
            }
            end = (segment, offset);
            let place = BatchPlace {
                seq: SegmentSeq(seq),
                offset,
                due_lsn,
            };
            refused_end = place.is_refused(&content, &refused);
            let Some(header) = header else {
                break;
            };
            segment = SegmentId(header.next.get());
            offset = BATCHES_OFFSET;
        }
        if !self.was_closed {
            tail.lost = self
                .durable_beyond(end, segment, incarnation, due_lsn)
                .or_else(|| (tail.headless || refused_end).then_some(tail.durable_lsn))
                .map(|durable_lsn| LostLog {
                    segment: end.0,
                    offset: end.1,
                    lsn: Lsn(due_lsn),
                    durable_lsn,
                });
        }
        // What nobody knew to be flushed may be whole or not: that is no damage.
        let durable_lsn = tail.durable_lsn;
        tail.repaired.retain(|repaired| repaired.lsn <= durable_lsn);
        tail
    }

    /// The largest LSN that a batch behind the end of the log says to have been durable, if it lies beyond that end.
    /// Looks into the rest of the segment, and into those that follow as far as they name each other; where one is gone
    /// that should follow a full one, into those behind it.
    fn durable_beyond(
        &self,
        end: (SegmentId, u32),
        next: SegmentId,
        incarnation: u64,
        due_lsn: u64,
    ) -> Option<Lsn> {
        let mut durable = None;
        let mut content = vec![0; SEGMENT_BYTES as usize];
        let mut seen = Vec::new();
        let mut waiting = vec![end.0];
        let mut searched = !may_be_full(end.1);
        while let Some(segment) = waiting.pop() {
            if segment.0 >= self.device.geometry().segment_count || seen.contains(&segment) {
                continue;
            }
            seen.push(segment);
            read_what_can_be(self.device, segment, 0, &mut content);
            let start = if segment == end.0 {
                end.1
            } else {
                BATCHES_OFFSET
            };
            durable = durable.max(self.durable_in(&content, start, incarnation, due_lsn));
            if segment == end.0 {
                waiting.push(next);
                continue;
            }
            let header = self.open_header(&content, segment, &mut Vec::new());
            match header.filter(|header| header.seq.get() >> 40 == incarnation) {
                Some(header) => waiting.push(SegmentId(header.next.get())),
                None if searched => {}
                None => {
                    searched = true;
                    waiting.extend(self.later_segments(segment, incarnation, due_lsn));
                }
            }
        }
        durable.map(Lsn)
    }

    /// The largest LSN from `due_lsn` on that a batch in a segment's content, from `start`, says to have been durable.
    fn durable_in(
        &self,
        content: &[u8],
        start: u32,
        incarnation: u64,
        due_lsn: u64,
    ) -> Option<u64> {
        let mut durable = None;
        for offset in (start..SEGMENT_BYTES).step_by(BLOCK) {
            let claimed = BatchHeader::read_from_prefix(&content[offset as usize..]).ok();
            let claimed = claimed.map(|(header, _)| header).filter(|header| {
                header.seq.get() >> 40 == incarnation
                    && header.first_lsn.get() >= due_lsn
                    && header.durable_lsn.get() >= due_lsn
                    && durable.is_none_or(|known| header.durable_lsn.get() > known)
            });
            let Some(header) = claimed else {
                continue;
            };
            let seq = SegmentSeq(header.seq.get());
            let first_lsn = header.first_lsn.get();
            if self.open_batch(content, offset, seq, first_lsn).is_some() {
                durable = Some(header.durable_lsn.get());
            }
        }
        durable
    }

    /// Journal segments of this incarnation that begin at `due_lsn` or later, among those behind `missing` and, at the
    /// end of the pool, from its start.
    fn later_segments(&self, missing: SegmentId, incarnation: u64, due_lsn: u64) -> Vec<SegmentId> {
        let segment_count = self.device.geometry().segment_count;
        let mut headers = vec![0; BATCHES_OFFSET as usize];
        let behind = (missing.0..segment_count).chain(0..missing.0).skip(1);
        let behind = behind.map(SegmentId).take(SEGMENTS_SEARCHED as usize);
        behind
            .filter(|segment| {
                read_what_can_be(self.device, *segment, 0, &mut headers);
                let header = self.open_header(&headers, *segment, &mut Vec::new());
                header.is_some_and(|header| {
                    header.seq.get() >> 40 == incarnation && header.first_lsn.get() >= due_lsn
                })
            })
            .collect()
    }

    /// The header of a journal segment, from its first block or the copy in the second.
    fn open_header(
        &self,
        content: &[u8],
        segment: SegmentId,
        repaired: &mut Vec<(u32, Vec<u8>)>,
    ) -> Option<SegmentHeader> {
        let copies = content[..BATCHES_OFFSET as usize].chunks_exact(BLOCK);
        let opened: Vec<Option<SegmentHeader>> = copies
            .clone()
            .map(|block| {
                cfs_seal::keys::open_segment_header(block, self.key)
                    .ok()
                    .filter(|header| {
                        header.pool_uuid == *self.uuid
                            && header.segment.get() == segment.0
                            && header.stream == Stream::Journal as u8
                    })
            })
            .collect();
        let good = opened.iter().position(Option::is_some)?;
        let header = opened[good]?;
        let mut whole = vec![0; BLOCK];
        whole[..size_of::<SegmentHeader>()]
            .copy_from_slice(&content[good * BLOCK..][..size_of::<SegmentHeader>()]);
        for (index, block) in copies.enumerate() {
            if block != whole {
                repaired.push((index as u32, whole.clone()));
            }
        }
        Some(header)
    }

    /// The batch at `offset` of a segment's content, also when one of its blocks is damaged.
    pub fn open_batch(
        &self,
        content: &[u8],
        offset: u32,
        seq: SegmentSeq,
        due_lsn: u64,
    ) -> Option<OpenedBatch> {
        let place = BatchPlace {
            seq,
            offset,
            due_lsn,
        };
        let blocks = content.get(offset as usize..).unwrap_or_default();
        if let Some((_, content_blocks)) = place.header(blocks)
            && let Some(stored) = blocks.get(..(content_blocks + 1) * BLOCK)
            && let Some(batch) = self.open_of_known_length(place, stored)
        {
            return Some(batch);
        }
        self.open_without_first_block(place, blocks)
    }

    /// `stored` is the batch with its parity.
    fn open_of_known_length(&self, place: BatchPlace, stored: &[u8]) -> Option<OpenedBatch> {
        let content_len = stored.len() - BLOCK;
        if let Some(batch) = self.authenticate(place, &stored[..content_len], stored) {
            return Some(batch);
        }
        let lacking = sum(stored);
        if lacking.iter().all(|byte| *byte == 0) {
            return None;
        }
        let mut attempt = stored[..content_len].to_vec();
        for index in 0..content_len / BLOCK {
            let range = index * BLOCK..(index + 1) * BLOCK;
            xor_into(&mut attempt[range.clone()], &lacking);
            if let Some(batch) = self.authenticate(place, &attempt, stored) {
                return Some(batch);
            }
            attempt[range.clone()].copy_from_slice(&stored[range]);
        }
        None
    }

    /// The batch's first block and so its length are unknown: one length after the other is tried, the first block
    /// being the sum of all others that it would have.
    fn open_without_first_block(&self, place: BatchPlace, blocks: &[u8]) -> Option<OpenedBatch> {
        let mut first = vec![0; BLOCK];
        for (index, block) in blocks.chunks_exact(BLOCK).enumerate().skip(1) {
            xor_into(&mut first, block);
            if place
                .header(&first)
                .is_none_or(|(_, content_blocks)| content_blocks != index)
            {
                continue;
            }
            let stored = &blocks[..(index + 1) * BLOCK];
            let mut attempt = first.clone();
            attempt.extend_from_slice(&stored[BLOCK..index * BLOCK]);
            if let Some(batch) = self.authenticate(place, &attempt, stored) {
                return Some(batch);
            }
        }
        None
    }

    /// Opens a batch from its blocks without parity, and compares it with what is `stored`.
    fn authenticate(&self, place: BatchPlace, blocks: &[u8], stored: &[u8]) -> Option<OpenedBatch> {
        let (header, content_blocks) = place.header(blocks)?;
        if content_blocks * BLOCK != blocks.len() {
            return None;
        }
        let sealed_end = size_of::<BatchHeader>() + header.payload_len.get() as usize + TAG_BYTES;
        let (header_bytes, sealed) = blocks[..sealed_end].split_at(size_of::<BatchHeader>());
        let mut sealed = sealed.to_vec();
        let payload = self
            .cipher
            .open_in_place(place.seq, place.offset, header_bytes, &mut sealed)
            .ok()?;
        let records = decode_records(payload, place.due_lsn, header.record_count.get())?;
        let mut whole = blocks[..sealed_end].to_vec();
        whole.resize(blocks.len(), 0);
        let parity = sum(&whole);
        whole.extend_from_slice(&parity);
        let repaired = whole
            .chunks_exact(BLOCK)
            .zip(stored.chunks_exact(BLOCK))
            .enumerate()
            .filter(|(_, (right, found))| right != found)
            .map(|(index, (right, _))| (index, right.to_vec()))
            .collect();
        Some(OpenedBatch {
            records,
            durable_lsn: header.durable_lsn.get(),
            len: whole.len() as u32,
            repaired,
        })
    }
}

/// Whether a batch may have found no room behind `offset`, so that the log went on in the next segment.
fn may_be_full(offset: u32) -> bool {
    SEGMENT_BYTES.saturating_sub(offset) < BATCH_BYTES_MAX
}

/// The XOR of all blocks.
fn sum(blocks: &[u8]) -> Vec<u8> {
    let mut sum = vec![0; BLOCK];
    for block in blocks.chunks_exact(BLOCK) {
        xor_into(&mut sum, block);
    }
    sum
}

#[derive(Clone, Copy)]
struct BatchPlace {
    seq: SegmentSeq,
    offset: u32,
    due_lsn: u64,
}

impl BatchPlace {
    /// The header that `block` starts with, if it may belong here, and the blocks that the batch has without parity.
    fn header(self, block: &[u8]) -> Option<(BatchHeader, usize)> {
        let (header, _) = BatchHeader::read_from_prefix(block).ok()?;
        if header.magic.get() != BATCH_MAGIC
            || header.seq.get() != self.seq.0
            || header.first_lsn.get() != self.due_lsn
        {
            return None;
        }
        let bytes = (header.payload_len.get() as usize)
            .checked_add(size_of::<BatchHeader>() + TAG_BYTES)?;
        Some((header, bytes.div_ceil(BLOCK)))
    }

    /// Whether a batch may lie here that cannot be opened because the device refused its first block, or one of those
    /// that it claims to have. `refused` are blocks of the segment.
    fn is_refused(self, content: &[u8], refused: &[usize]) -> bool {
        let first = self.offset as usize / BLOCK;
        let claimed = content.get(self.offset as usize..);
        let claimed = claimed.and_then(|blocks| self.header(blocks));
        let len = claimed.map_or(1, |(_, content_blocks)| content_blocks + 1);
        refused
            .iter()
            .any(|block| (first..first.saturating_add(len)).contains(block))
    }
}

pub(crate) struct OpenedBatch {
    records: Vec<LoggedRecord>,
    durable_lsn: u64,
    /// Bytes in the segment, parity included.
    len: u32,
    /// Blocks that are not as they were written, counted from the batch's first, as they should be.
    repaired: Vec<(usize, Vec<u8>)>,
}

fn decode_records(mut payload: &[u8], first_lsn: u64, count: u32) -> Option<Vec<LoggedRecord>> {
    let mut records = Vec::new();
    for index in 0..u64::from(count) {
        let (prefix, rest) = payload.split_at_checked(RECORD_PREFIX_BYTES)?;
        let (timestamp, prefix) = prefix.split_first_chunk::<8>()?;
        let (kind, len) = prefix.split_first()?;
        let len = u32::from_le_bytes(len.try_into().ok()?) as usize;
        let (command, rest) = rest.split_at_checked(len)?;
        records.push(LoggedRecord {
            lsn: Lsn(first_lsn + index),
            timestamp: Timestamp(u64::from_le_bytes(*timestamp)),
            kind: *kind,
            command: command.to_vec(),
        });
        payload = rest;
    }
    payload.is_empty().then_some(records)
}
