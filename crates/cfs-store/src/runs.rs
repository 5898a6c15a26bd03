//! Storage of the tables' sorted runs: blocks in table segments.
//!
//! A block on the device is sealed under the table key with the nonce (segment sequence, offset); its plain form is
//! `codec u8, raw_len u32 little-endian, payload`. Blocks follow each other without padding, behind the segment's
//! header block; a run has segments of its own, so that they become free with it. [`BlockPtr::place`] is
//! `segment * SEGMENT_BYTES + offset`; a run's storage extents are its segment numbers.
//!
//! At the end of what is used of a segment lies the parity of all of it (`cfs_seal::parity`), so a block that does not
//! open is tried again with what the parity says. How much is used is known from outside of the segment; its header
//! tells it too. Before the parity comes the segment's directory ([`crate::directory`]), a block like the others.

use std::collections::BTreeSet;
use std::sync::Arc;

use cfs_device::AlignedBuf;
use cfs_format::segment::{CODEC_NONE, Stream};
use cfs_format::{BLOCK_BYTES, SEGMENT_BYTES, SegmentId, SegmentSeq};
use cfs_kv::{BlockPtr, RunError, RunReason, RunStore, RunWriter, salvage};
use cfs_seal::codec::{Codec, Compressor, decompress};
use cfs_seal::parity::{content_blocks_max, fill_parity, parity_blocks};

use crate::directory::{CheckpointMark, CheckpointNote, Directory, DirectoryPlace, TableOwner};
use crate::error::{ReadError, WriteError};
use crate::heal::reopen;
use crate::pool::Pool;
use crate::space::{Purpose, START_BYTES};
use crate::sync::Mutex;

const TAG_BYTES: usize = 16;
/// Codec and raw length before a block's payload.
const BLOCK_PREFIX_BYTES: usize = 1 + 4;
/// Most bytes of header and blocks in a segment; parity takes the rest.
const CONTENT_BYTES_MAX: u32 =
    (content_blocks_max((SEGMENT_BYTES / BLOCK_BYTES) as usize) * BLOCK_BYTES as usize) as u32;
/// Longest manifest in a note, bytes.
const NOTE_BYTES_MAX: usize = BLOCK_RAW_BYTES_MAX / 2;
/// What a small run may take beside its blocks, bytes.
const START_SPARE_BYTES: u64 = 48 << 10;
/// Runs and manifests of so much before compression, or that are merged from so much after it, most likely take no more than
/// [`START_BYTES`]: beside the blocks there are those of the index, the directory and parity.
pub(crate) const SMALL_RUN_BYTES: u64 = (START_BYTES as u64 - START_SPARE_BYTES) / 5 * 4;
/// Largest block, bytes before compression.
const BLOCK_RAW_BYTES_MAX: usize = 1 << 20;
const UNREADABLE_COUNTED_MAX: usize = 1000;
/// Level of Zstandard for blocks at most.
const ZSTD_LEVEL_MAX: u8 = 3;

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
    /// The checkpoint that is being written.
    checkpoint: Mutex<Option<CheckpointMark>>,
    /// Places of blocks that could not be read.
    unreadable: Mutex<BTreeSet<u64>>,
    /// How blocks are compressed.
    codec: Mutex<Codec>,
}

/// The storage of one tree.
pub(crate) struct TreeRuns {
    pub runs: Arc<SegmentRuns>,
    pub owner: TableOwner,
}

impl SegmentRuns {
    pub fn new(pool: Arc<Pool>) -> Self {
        Self {
            pool,
            released: Mutex::new(Vec::new()),
            checkpoint: Mutex::new(None),
            unreadable: Mutex::new(BTreeSet::new()),
            codec: Mutex::new(Codec::Lz4),
        }
    }

    /// From now on blocks are compressed as content is whose codec is this one: with Zstandard where that is, at a level
    /// that costs merges little, with LZ4 else.
    pub fn follow_codec(&self, codec: Codec) {
        *self.codec.lock() = match codec {
            Codec::None | Codec::Lz4 => Codec::Lz4,
            Codec::Zstd(level) => Codec::Zstd(level.min(ZSTD_LEVEL_MAX)),
        };
    }

    /// Blocks that could not be read since the pool was opened, as far as they are counted.
    pub fn unreadable_blocks(&self) -> u64 {
        self.unreadable.lock().len() as u64
    }

    /// What is flushed from now on belongs to this checkpoint; to none, when there is none.
    pub fn set_checkpoint(&self, mark: Option<CheckpointMark>) {
        *self.checkpoint.lock() = mark;
    }

    /// Those of the released segments that `take` says, which is asked once about each.
    pub fn take_released_if(&self, mut take: impl FnMut(SegmentId) -> bool) {
        self.released.lock().retain(|segment| !take(*segment));
    }

    pub fn take_released(&self) -> Vec<SegmentId> {
        std::mem::take(&mut self.released.lock())
    }

    /// Starts a run or a manifest of about `bytes` before compression.
    pub fn writer(&self, owner: TableOwner, purpose: Purpose, bytes: u64) -> SegmentRunWriter<'_> {
        SegmentRunWriter {
            runs: self,
            pool: &self.pool,
            owner,
            purpose,
            is_small: bytes <= SMALL_RUN_BYTES,
            first_seq: None,
            codec: *self.codec.lock(),
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
                return Err(damaged(
                    "authentication failed; `cfs repair --rebuild-index` makes the tables anew",
                ));
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

impl RunStore for TreeRuns {
    fn create_run(
        &self,
        reason: RunReason,
        bytes: u64,
    ) -> Result<Box<dyn RunWriter + '_>, RunError> {
        let purpose = match reason {
            RunReason::Flush => Purpose::Upkeep,
            RunReason::Compaction => Purpose::Compaction,
            RunReason::Consolidation => Purpose::Consolidation,
        };
        Ok(Box::new(self.runs.writer(self.owner, purpose, bytes)))
    }

    fn read_block(&self, block: BlockPtr) -> Result<Vec<u8>, RunError> {
        let (segment, offset) = split_place(block.place);
        let entry = self.runs.pool.space.lock().entry(segment).copied();
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
        SegmentRuns::open_block(&self.runs.pool, block).map_err(|error| {
            // Others may go by.
            if matches!(error, ReadError::Damaged { .. }) {
                let mut unreadable = self.runs.unreadable.lock();
                if unreadable.len() < UNREADABLE_COUNTED_MAX {
                    unreadable.insert(block.place);
                }
            }
            run_error(error)
        })
    }

    fn release_run(&self, extents: &[u64]) {
        let segments = extents.iter().map(|extent| SegmentId(*extent as u32));
        self.runs.released.lock().extend(segments);
    }
}

struct OpenTableSegment {
    segment: SegmentId,
    seq: SegmentSeq,
    buffer: AlignedBuf,
    /// Stored lengths of its blocks.
    blocks: Vec<u32>,
}

/// Writes one run (or one manifest).
pub(crate) struct SegmentRunWriter<'a> {
    runs: &'a SegmentRuns,
    pool: &'a Pool,
    owner: TableOwner,
    purpose: Purpose,
    /// It most likely takes no more than [`START_BYTES`].
    is_small: bool,
    /// Sequence number of the first segment.
    first_seq: Option<SegmentSeq>,
    codec: Codec,
    compressor: Compressor,
    open: Option<OpenTableSegment>,
    segments: Vec<u64>,
    scratch: Vec<u8>,
    finished: bool,
}

impl SegmentRunWriter<'_> {
    /// Appends a block and tells where it lies.
    pub fn append(&mut self, plain: &[u8]) -> Result<BlockPtr, WriteError> {
        self.compress(plain);
        let stored_len = (self.scratch.len() + TAG_BYTES) as u32;
        if let Some(open) = &self.open
            && !open.has_room(stored_len)
        {
            // Filled up to its end, so that the parity of all but the last segment of a run is where one expects it.
            self.close_segment(None)?;
            self.compress(plain);
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => self.open_segment()?,
        };
        open.blocks.push(stored_len);
        let offset = self.place_block();
        let open = self.open.as_ref().expect("opened just above");
        Ok(BlockPtr {
            place: u64::from(open.segment.0) * u64::from(SEGMENT_BYTES) + u64::from(offset),
            stored_len,
        })
    }

    /// Puts the compressed form of a block into `scratch`.
    fn compress(&mut self, plain: &[u8]) {
        assert!(
            plain.len() <= BLOCK_RAW_BYTES_MAX,
            "blocks are bounded where they are made"
        );
        self.scratch.clear();
        self.scratch
            .extend_from_slice(&[CODEC_NONE; BLOCK_PREFIX_BYTES]);
        let codec = self
            .compressor
            .compress(self.codec, plain, &mut self.scratch);
        self.scratch[0] = codec;
        self.scratch[1..BLOCK_PREFIX_BYTES].copy_from_slice(&(plain.len() as u32).to_le_bytes());
    }

    /// Seals what is in `scratch` for the end of the open segment and puts it there; its offset.
    fn place_block(&mut self) -> u32 {
        let open = self.open.as_mut().expect("the caller has opened it");
        let offset = open.buffer.as_slice().len() as u32;
        self.pool
            .ciphers
            .table
            .seal_in_place(open.seq, offset, b"", &mut self.scratch, 0);
        open.buffer.extend_from_slice(&self.scratch);
        offset
    }

    /// The segments that a manifest names, as they are now.
    fn segments_of(&self, manifest: &[u8]) -> Vec<(u32, u64, u32)> {
        let runs = salvage::runs_oldest_first(manifest).expect("made by the tree just before");
        let space = self.pool.space.lock();
        let extents = runs.iter().flat_map(|run| &run.extents);
        extents
            .map(|extent| {
                let entry = space
                    .entry(SegmentId(*extent as u32))
                    .expect("a run's segments are in use");
                (*extent as u32, entry.seq.0, entry.used_bytes)
            })
            .collect()
    }

    fn open_segment(&mut self) -> Result<&mut OpenTableSegment, WriteError> {
        let (segment, seq) = match self.is_small {
            true => self.pool.take_start(self.purpose)?,
            false => self.pool.take_segment(Stream::Table, self.purpose)?,
        };
        self.segments.push(u64::from(segment.0));
        self.first_seq.get_or_insert(seq);
        let mut buffer = self.pool.buffer();
        // The header is written when the segment is full.
        buffer.resize(BLOCK_BYTES as usize);
        Ok(self.open.insert(OpenTableSegment {
            segment,
            seq,
            buffer,
            blocks: Vec::new(),
        }))
    }

    /// Sequence number of the segment that the last block went to.
    pub fn current_seq(&self) -> SegmentSeq {
        self.open.as_ref().expect("a block has been appended").seq
    }

    /// Writes the open segment, with its directory and parity. The last one of a run ends where its content ends, and
    /// may bring a note.
    fn close_segment(&mut self, last: Option<Option<CheckpointNote>>) -> Result<(), WriteError> {
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        let directory = Directory {
            owner: self.owner,
            first_seq: self.first_seq.expect("set with the first segment").0,
            part: self.segments.len() as u32 - 1,
            is_last: last.is_some(),
            blocks: std::mem::take(&mut open.blocks),
            note: last.clone().flatten(),
        };
        let directory = postcard::to_stdvec(&directory).expect("a directory can be encoded");
        self.compress(&directory);
        let stored_len = (self.scratch.len() + TAG_BYTES) as u32;
        let offset = self.place_block();
        let open = self.open.take().expect("looked at just above");
        let OpenTableSegment {
            segment,
            seq,
            mut buffer,
            ..
        } = open;
        let content_bytes = match last {
            Some(_) => buffer.len(),
            None => buffer.len().max(CONTENT_BYTES_MAX as usize),
        };
        let content = content_bytes.div_ceil(BLOCK_BYTES as usize);
        let total = content + parity_blocks(content);
        buffer.resize(total * BLOCK_BYTES as usize);
        let used = buffer.len() as u32;
        let place = DirectoryPlace {
            offset,
            stored_len,
            used_bytes: used,
        };
        let (next, first_lsn) = place.header_fields();
        let header =
            self.pool
                .segment_header(Stream::Table, segment, seq, SegmentId(next), first_lsn);
        buffer.as_mut_slice()[..header.len()].copy_from_slice(&header);
        fill_parity(buffer.as_mut_slice(), content);
        self.pool.complete(segment, used)?;
        self.pool.write(segment, 0, buffer.as_slice())?;
        let cut = {
            let mut space = self.pool.space.lock();
            space.close(segment, used);
            space.room.cut_tail(&*self.pool.device, segment, used)
        };
        cut.map_err(|error| self.pool.fail(&error))?;
        self.pool.recycle(buffer);
        Ok(())
    }

    /// Writes what is left; the segments that hold the run. A note that finds no room in the last one is left out: it
    /// says again what the manifest says.
    pub fn finish(mut self, note: Option<CheckpointNote>) -> Result<Vec<SegmentId>, WriteError> {
        let note = note.filter(|note| {
            let open = self.open.as_ref();
            let note_bytes = postcard::to_stdvec(note)
                .expect("a note can be encoded")
                .len();
            note_bytes <= NOTE_BYTES_MAX
                && open.is_some_and(|open| open.has_room(note_bytes as u32 + 64))
        });
        self.close_segment(Some(note))?;
        self.finished = true;
        Ok(std::mem::take(&mut self.segments)
            .into_iter()
            .map(|segment| SegmentId(segment as u32))
            .collect())
    }
}

impl OpenTableSegment {
    /// Whether a block of this length fits, with a directory that lists it.
    fn has_room(&self, stored_len: u32) -> bool {
        let directory = Directory::bytes_max(self.blocks.len() + 1);
        self.buffer.as_slice().len() as u32 + stored_len + directory <= CONTENT_BYTES_MAX
    }
}

impl Drop for SegmentRunWriter<'_> {
    /// An unfinished run's segments are given back: nothing refers to them.
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let segments = self.segments.iter();
        let segments = segments.map(|segment| SegmentId(*segment as u32));
        self.pool.space.lock().free_unused(segments);
    }
}

impl RunWriter for SegmentRunWriter<'_> {
    fn append_block(&mut self, plain: &[u8]) -> Result<BlockPtr, RunError> {
        self.append(plain).map_err(write_to_run_error)
    }

    fn finish(self: Box<Self>, tree_before: Option<&[u8]>) -> Result<Vec<u64>, RunError> {
        let mark = self.runs.checkpoint.lock().clone();
        let is_noted = self.owner == TableOwner::Meta;
        let note = tree_before.zip(mark.filter(|_| is_noted));
        let note = note.map(|(tree_before, mark)| CheckpointNote {
            tree_before: tree_before.to_vec(),
            segments: self.segments_of(tree_before),
            mark,
        });
        let segments = SegmentRunWriter::finish(*self, note).map_err(write_to_run_error)?;
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
