//! Storage of the tables' sorted runs: blocks in table segments.
//!
//! A block on the device is sealed under the table key with the nonce (segment sequence, offset); its plain form is
//! `codec u8, raw_len u32 little-endian, payload`. Blocks follow each other without padding, behind the segment's
//! header block; a run has segments of its own, so that they become free with it. [`BlockPtr::place`] is
//! `segment * SEGMENT_BYTES + offset`; a run's storage extents are its segment numbers.
//!
//! At the end of what is used of a segment lies the parity of all of it (`cfs_seal::parity`), so a block that does not
//! open is tried again with what the parity says. How much is used is known from outside of the segment.

use std::sync::Arc;

use cfs_device::AlignedBuf;
use cfs_format::segment::{CODEC_NONE, Stream};
use cfs_format::{BLOCK_BYTES, SEGMENT_BYTES, SegmentId, SegmentSeq};
use cfs_kv::{BlockPtr, RunError, RunReason, RunStore, RunWriter};
use cfs_seal::codec::{Codec, Compressor, decompress};
use cfs_seal::parity::{content_blocks_max, fill_parity, parity_blocks};
use parking_lot::Mutex;

use crate::error::{ReadError, WriteError};
use crate::heal::reopen;
use crate::pool::Pool;
use crate::space::Purpose;

const TAG_BYTES: usize = 16;
/// Codec and raw length before a block's payload.
const BLOCK_PREFIX_BYTES: usize = 1 + 4;
/// Most bytes of header and blocks in a segment; parity takes the rest.
const CONTENT_BYTES_MAX: u32 =
    (content_blocks_max((SEGMENT_BYTES / BLOCK_BYTES) as usize) * BLOCK_BYTES as usize) as u32;
/// Largest block, bytes before compression.
const BLOCK_RAW_BYTES_MAX: usize = 1 << 20;

/// A block and the segment it lies in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TableBlock {
    pub place: u64,
    pub stored_len: u32,
    /// Sequence number of the segment.
    pub seq: SegmentSeq,
    /// Bytes that are used of the segment, parity included.
    pub used_bytes: u32,
}

/// Table segments as storage of runs.
pub(crate) struct SegmentRuns {
    pool: Arc<Pool>,
    /// Segments of runs that the trees have given up, to be retired at the next checkpoint.
    released: Mutex<Vec<SegmentId>>,
}

impl SegmentRuns {
    pub fn new(pool: Arc<Pool>) -> Self {
        Self {
            pool,
            released: Mutex::new(Vec::new()),
        }
    }

    pub fn take_released(&self) -> Vec<SegmentId> {
        std::mem::take(&mut self.released.lock())
    }

    pub fn writer(&self, purpose: Purpose) -> SegmentRunWriter<'_> {
        SegmentRunWriter {
            pool: &self.pool,
            purpose,
            compressor: Compressor::new(),
            open: None,
            segments: Vec::new(),
            scratch: Vec::new(),
            finished: false,
        }
    }

    /// Opens a block. If it is damaged and the parity of its segment can help, it is repaired in place.
    pub fn open_block(pool: &Pool, block: TableBlock) -> Result<Vec<u8>, ReadError> {
        let (segment, offset) = split_place(block.place);
        let damaged = |reason: &str| ReadError::Damaged {
            what: "table block",
            segment,
            offset,
            reason: reason.into(),
        };
        let stored_len = block.stored_len as usize;
        if stored_len < BLOCK_PREFIX_BYTES + TAG_BYTES
            || offset as usize + stored_len > SEGMENT_BYTES as usize
            || block.used_bytes > SEGMENT_BYTES
            || !block.used_bytes.is_multiple_of(BLOCK_BYTES)
            || segment.0 >= pool.device.geometry().segment_count
        {
            return Err(damaged("its place is outside of a segment"));
        }
        let open = |sealed: &mut [u8]| {
            let table = &pool.ciphers.table;
            let plain = table.open_in_place(block.seq, offset, b"", sealed);
            plain.ok().map(|plain| plain.to_vec())
        };
        let mut sealed = vec![0; stored_len];
        let read = pool.device.read_at(segment, offset, &mut sealed);
        let opened = read.as_ref().ok().and_then(|()| open(&mut sealed));
        let range = offset as usize..offset as usize + stored_len;
        let plain = match opened.or_else(|| reopen(pool, segment, block.used_bytes, range, open)) {
            Some(plain) => plain,
            None => {
                read?;
                return Err(damaged("authentication failed"));
            }
        };
        let (codec, rest) = plain.split_first().ok_or_else(|| damaged("empty"))?;
        let (raw_len, payload) = rest
            .split_first_chunk::<4>()
            .ok_or_else(|| damaged("too short"))?;
        let raw_len = u32::from_le_bytes(*raw_len) as usize;
        if raw_len > BLOCK_RAW_BYTES_MAX {
            return Err(damaged("too long"));
        }
        if *codec == CODEC_NONE {
            return Ok(payload.to_vec());
        }
        let mut out = Vec::new();
        decompress(*codec, payload, raw_len, &mut out)
            .map_err(|error| damaged(&error.to_string()))?;
        Ok(out)
    }
}

fn split_place(place: u64) -> (SegmentId, u32) {
    (
        SegmentId((place / u64::from(SEGMENT_BYTES)) as u32),
        (place % u64::from(SEGMENT_BYTES)) as u32,
    )
}

fn run_error(error: ReadError) -> RunError {
    match error {
        ReadError::Table(error) => error,
        other => RunError::io(other),
    }
}

impl RunStore for SegmentRuns {
    fn create_run(&self, reason: RunReason) -> Result<Box<dyn RunWriter + '_>, RunError> {
        let purpose = match reason {
            RunReason::Flush => Purpose::Upkeep,
            RunReason::Compaction => Purpose::Compaction,
        };
        Ok(Box::new(self.writer(purpose)))
    }

    fn read_block(&self, block: BlockPtr) -> Result<Vec<u8>, RunError> {
        let (segment, offset) = split_place(block.place);
        let entry = self.pool.space.lock().entry(segment).copied();
        let entry = entry.ok_or_else(|| {
            run_error(ReadError::Damaged {
                what: "table block",
                segment,
                offset,
                reason: "its segment is not in use".into(),
            })
        })?;
        let block = TableBlock {
            place: block.place,
            stored_len: block.stored_len,
            seq: entry.seq,
            used_bytes: entry.used_bytes,
        };
        Self::open_block(&self.pool, block).map_err(run_error)
    }

    fn release_run(&self, extents: &[u64]) {
        self.released
            .lock()
            .extend(extents.iter().map(|extent| SegmentId(*extent as u32)));
    }
}

struct OpenTableSegment {
    segment: SegmentId,
    seq: SegmentSeq,
    buffer: AlignedBuf,
}

/// Writes one run (or one manifest).
pub(crate) struct SegmentRunWriter<'a> {
    pool: &'a Pool,
    purpose: Purpose,
    compressor: Compressor,
    open: Option<OpenTableSegment>,
    segments: Vec<u64>,
    scratch: Vec<u8>,
    finished: bool,
}

impl SegmentRunWriter<'_> {
    /// Appends a block and tells where it lies.
    pub fn append(&mut self, plain: &[u8]) -> Result<BlockPtr, WriteError> {
        assert!(
            plain.len() <= BLOCK_RAW_BYTES_MAX,
            "blocks are bounded where they are made"
        );
        self.scratch.clear();
        self.scratch
            .extend_from_slice(&[CODEC_NONE; BLOCK_PREFIX_BYTES]);
        let codec = self
            .compressor
            .compress(Codec::Lz4, plain, &mut self.scratch);
        self.scratch[0] = codec;
        self.scratch[1..BLOCK_PREFIX_BYTES].copy_from_slice(&(plain.len() as u32).to_le_bytes());
        let stored_len = (self.scratch.len() + TAG_BYTES) as u32;
        if let Some(open) = &self.open
            && open.buffer.as_slice().len() as u32 + stored_len > CONTENT_BYTES_MAX
        {
            // Filled up to its end, so that the parity of all but the last segment of a run is where one expects it.
            self.close_segment(CONTENT_BYTES_MAX)?;
        }
        if self.open.is_none() {
            let (segment, seq) = self.pool.take_segment(Stream::Table, self.purpose)?;
            self.segments.push(u64::from(segment.0));
            let mut buffer = self.pool.buffer();
            buffer.extend_from_slice(&self.pool.segment_header(
                Stream::Table,
                segment,
                seq,
                SegmentId(0),
                0,
            ));
            buffer.pad_to_multiple(BLOCK_BYTES as usize);
            self.open = Some(OpenTableSegment {
                segment,
                seq,
                buffer,
            });
        }
        let open = self.open.as_mut().expect("opened just above");
        let offset = open.buffer.as_slice().len() as u32;
        self.pool
            .ciphers
            .table
            .seal_in_place(open.seq, offset, b"", &mut self.scratch, 0);
        open.buffer.extend_from_slice(&self.scratch);
        Ok(BlockPtr {
            place: u64::from(open.segment.0) * u64::from(SEGMENT_BYTES) + u64::from(offset),
            stored_len,
        })
    }

    /// Sequence number of the segment that the last block went to.
    pub fn current_seq(&self) -> SegmentSeq {
        self.open.as_ref().expect("a block has been appended").seq
    }

    /// Writes the open segment, filled with zeros up to `content_bytes_min`, and its parity.
    fn close_segment(&mut self, content_bytes_min: u32) -> Result<(), WriteError> {
        let Some(mut open) = self.open.take() else {
            return Ok(());
        };
        let content_bytes = open.buffer.len().max(content_bytes_min as usize);
        let content = content_bytes.div_ceil(BLOCK_BYTES as usize);
        let total = content + parity_blocks(content);
        open.buffer.resize(total * BLOCK_BYTES as usize);
        fill_parity(open.buffer.as_mut_slice(), content);
        let used = open.buffer.len() as u32;
        self.pool.write(open.segment, 0, open.buffer.as_slice())?;
        self.pool.space.lock().close(open.segment, used);
        if used < SEGMENT_BYTES {
            self.pool.space.lock().note_hollow(open.segment);
            self.pool
                .device
                .discard_from(open.segment, used)
                .map_err(|error| self.pool.fail(&error))?;
        }
        self.pool.recycle(open.buffer);
        Ok(())
    }

    /// Writes what is left; the segments that hold the run.
    pub fn finish(mut self) -> Result<Vec<SegmentId>, WriteError> {
        self.close_segment(0)?;
        self.finished = true;
        Ok(std::mem::take(&mut self.segments)
            .into_iter()
            .map(|segment| SegmentId(segment as u32))
            .collect())
    }
}

impl Drop for SegmentRunWriter<'_> {
    /// An unfinished run's segments are given back.
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let mut space = self.pool.space.lock();
        for segment in &self.segments {
            space.retire(SegmentId(*segment as u32));
        }
    }
}

impl RunWriter for SegmentRunWriter<'_> {
    fn append_block(&mut self, plain: &[u8]) -> Result<BlockPtr, RunError> {
        self.append(plain).map_err(write_to_run_error)
    }

    fn finish(self: Box<Self>) -> Result<Vec<u64>, RunError> {
        let segments = SegmentRunWriter::finish(*self).map_err(write_to_run_error)?;
        Ok(segments
            .iter()
            .map(|segment| u64::from(segment.0))
            .collect())
    }
}

fn write_to_run_error(error: WriteError) -> RunError {
    match error {
        WriteError::NoSpace(_) => RunError::NoSpace,
        WriteError::Read(error) => run_error(error),
        error @ WriteError::ReadOnly { .. } => RunError::io(error),
    }
}
