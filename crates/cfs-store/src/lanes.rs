//! Lanes: each appends sealed chunks to an open data segment of its own, so that workers share nothing on the way to
//! the device.
//!
//! A record is first in the lane's buffer and readable from there; it reaches the device when the segment is full or
//! when [`Lanes::write_out`] is called, which every flush of the log does before it writes commands. What has been
//! written is never written again: a partial write-out is padded to the block boundary.
//!
//! Where small write-outs follow one another in a file of the host, zeros are written ahead of them now and then: a
//! direct write to blocks that have never been written has the host's file system note that they are now, which takes
//! longer than writing them, and makes the flush after it a transaction. Appending 4 KiB and fsync through a mount takes a
//! third less with them, on ext4 (`cargo xtask bench mount --workloads append`).

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use cfs_device::AlignedBuf;
use cfs_format::segment::{
    FooterEntry, FooterTrailer, RECORD_ALIGN, RecordHeader, Stream, TAG_BYTES,
};
use cfs_format::{BLOCK_BYTES, SEGMENT_BYTES, SegmentId, SegmentSeq};
use cfs_seal::chunk::{RECORD_HEAD_BYTES, RecordPlace, record_len, sealed_head};

use crate::error::WriteError;
use crate::pool::{Pool, block_ceil};
use crate::space::Purpose;
use crate::sync::{Mutex, RwLock};

struct OpenSegment {
    segment: SegmentId,
    seq: SegmentSeq,
    /// The segment's bytes from its start.
    buffer: AlignedBuf,
    /// How many of them are on the device (not necessarily flushed); a multiple of the block size.
    written: u32,
    /// Up to here the device has been written to, with zeros behind `written`.
    zeroed: u32,
    /// The last write-out was small.
    was_small: bool,
    entries: Vec<FooterEntry>,
    /// Writing its end has failed: it is only read from now on, out of the buffer.
    has_failed: bool,
}

struct Lane {
    stream: Stream,
    purpose: Purpose,
    open: Option<OpenSegment>,
}

/// Where a record has been put.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    pub segment: SegmentId,
    pub seq: SegmentSeq,
    pub offset: u32,
    pub record_len: u32,
}

pub(crate) struct Lanes {
    pool: Arc<Pool>,
    lanes: Vec<Mutex<Lane>>,
    /// Lane number by open segment.
    open: RwLock<HashMap<SegmentId, usize>>,
}

/// Zeros that are written rather than begin another write: 256 KiB take a disk about as long as its latency.
const GAP_WRITTEN_MAX: u32 = 256 << 10;

/// Write-outs up to this many bytes are small: those of somebody who writes little and syncs.
const SMALL_WRITE_MAX: u32 = 32 << 10;
/// Zeros that are written ahead of them.
const ZEROS_AHEAD: u32 = 256 << 10;

/// Bytes that the footer of `count` entries takes at the end of a segment.
fn footer_bytes(count: usize) -> u32 {
    (count * size_of::<FooterEntry>() + size_of::<FooterTrailer>()) as u32 + TAG_BYTES
}

impl Lanes {
    /// `count` lanes for arriving chunks and one more, the last, for those that compaction moves.
    pub fn new(pool: Arc<Pool>, count: usize) -> Self {
        let lane = |stream, purpose| {
            Mutex::new(Lane {
                stream,
                purpose,
                open: None,
            })
        };
        let mut lanes: Vec<_> = (0..count)
            .map(|_| lane(Stream::Data, Purpose::Data))
            .collect();
        lanes.push(lane(Stream::ColdData, Purpose::Cleaning));
        Self {
            pool,
            lanes,
            open: RwLock::new(HashMap::new()),
        }
    }

    /// The lane for chunks that compaction moves.
    pub fn cold_lane(&self) -> usize {
        self.lanes.len() - 1
    }

    /// Number of lanes for arriving chunks.
    pub fn data_lanes(&self) -> usize {
        self.lanes.len() - 1
    }

    /// Appends the record of `header` and its sealed `payload` (tag included), and pins its segment.
    ///
    /// # Errors
    /// No space, or a device failure; the record is then nowhere.
    pub fn append(
        &self,
        lane: usize,
        header: &RecordHeader,
        payload: &[u8],
    ) -> Result<Placed, WriteError> {
        let record_len = record_len(header);
        assert_eq!(
            RECORD_HEAD_BYTES + payload.len(),
            record_len as usize,
            "the payload and tag that the header was made for"
        );
        self.pool.writable()?;
        let mut guard = self.lanes[lane].lock();
        let lane_state = &mut *guard;
        if let Some(open) = &lane_state.open
            && !open.has_room(record_len)
        {
            self.seal(lane_state)?;
        }
        if lane_state.open.is_none() {
            lane_state.open = Some(self.start(lane, lane_state.stream, lane_state.purpose)?);
        }
        let open = lane_state.open.as_mut().expect("opened just above");
        let offset = open.buffer.as_slice().len() as u32;
        debug_assert!(offset.is_multiple_of(RECORD_ALIGN));
        let place = RecordPlace {
            seq: open.seq,
            offset,
        };
        let head = sealed_head(header, place, &self.pool.ciphers.record_header);
        open.buffer.extend_from_slice(&head);
        open.buffer.extend_from_slice(payload);
        open.buffer.pad_to_multiple(RECORD_ALIGN as usize);
        open.entries.push(FooterEntry {
            fingerprint: header.fingerprint,
            offset: offset.into(),
            record_len: record_len.into(),
            raw_len: header.raw_len,
            domain: header.domain,
            codec: header.codec,
            reserved: 0,
        });
        let placed = Placed {
            segment: open.segment,
            seq: open.seq,
            offset,
            record_len,
        };
        self.pool.space.lock().pin(open.segment);
        Ok(placed)
    }

    fn start(
        &self,
        lane: usize,
        stream: Stream,
        purpose: Purpose,
    ) -> Result<OpenSegment, WriteError> {
        let (segment, seq) = self.pool.take_segment(stream, purpose)?;
        let mut buffer = self.pool.buffer();
        buffer.extend_from_slice(
            &self
                .pool
                .segment_header(stream, segment, seq, SegmentId(0), 0),
        );
        buffer.pad_to_multiple(BLOCK_BYTES as usize);
        self.open.write().insert(segment, lane);
        Ok(OpenSegment {
            segment,
            seq,
            buffer,
            written: 0,
            zeroed: 0,
            was_small: false,
            entries: Vec::new(),
            has_failed: false,
        })
    }

    /// Writes what is left of the open segment, with its footer, and closes it. What cannot be written stays readable.
    fn seal(&self, lane: &mut Lane) -> Result<(), WriteError> {
        let Some(open) = lane.open.as_mut().filter(|open| !open.has_failed) else {
            return Ok(());
        };
        #[cfg(feature = "planted-bugs")]
        if cfs_format::planted::has(cfs_format::planted::Bug::SealForgotten) {
            self.open.write().remove(&open.segment);
        }
        let (used, gap) = match self.write_end(open) {
            Ok(written) => written,
            Err(error) => {
                open.has_failed = true;
                return Err(error);
            }
        };
        let open = lane.open.take().expect("it was there just above");
        let mut space = self.pool.space.lock();
        space.room.note_gap(open.segment, gap);
        space.close(open.segment, used);
        drop(space);
        self.open.write().remove(&open.segment);
        self.pool.recycle(open.buffer);
        Ok(())
    }

    /// Writes what is left of a segment, with its footer. How many of its bytes are records, and the blocks between those
    /// and the footer, bytes.
    fn write_end(&self, open: &mut OpenSegment) -> Result<(u32, Range<u32>), WriteError> {
        let used = open.buffer.as_slice().len() as u32;
        let footer_len = footer_bytes(open.entries.len());
        let footer_offset = SEGMENT_BYTES - footer_len;
        assert!(used <= footer_offset, "room for the footer was kept");
        // A short gap between the last record and the footer's first block is written along, a long one is left out.
        let tail_start = (footer_offset / BLOCK_BYTES * BLOCK_BYTES).max(open.written);
        let body_end = block_ceil(used).min(tail_start).max(open.written);
        if body_end + GAP_WRITTEN_MAX < tail_start {
            open.buffer.pad_to_multiple(BLOCK_BYTES as usize);
            self.pool.write(
                open.segment,
                open.written,
                &open.buffer.as_slice()[open.written as usize..body_end as usize],
            )?;
            open.written = tail_start;
        }
        open.buffer.resize(footer_offset as usize);
        let sealed = cfs_seal::footer::seal_footer(
            &open.entries,
            open.seq,
            footer_offset,
            &self.pool.ciphers.footer,
        );
        open.buffer.extend_from_slice(&sealed);
        let trailer =
            cfs_seal::footer::encode_trailer(open.seq, footer_offset, open.entries.len() as u32);
        open.buffer.extend_from_slice(&trailer);
        assert_eq!(open.buffer.as_slice().len(), SEGMENT_BYTES as usize);
        self.pool.write(
            open.segment,
            open.written,
            &open.buffer.as_slice()[open.written as usize..],
        )?;
        let footer_block = footer_offset / BLOCK_BYTES * BLOCK_BYTES;
        Ok((used, block_ceil(used)..footer_block.max(block_ceil(used))))
    }

    /// Writes every lane's buffered records to the device, without flushing it.
    ///
    /// # Errors
    /// A device failure.
    pub fn write_out(&self) -> Result<(), WriteError> {
        self.lanes
            .iter()
            .try_for_each(|lane| self.write_out_lane(&mut lane.lock()))
    }

    /// As above, for the lane of compaction alone: a flush for somebody else then finds little to write there.
    ///
    /// # Errors
    /// A device failure.
    pub fn write_out_cold(&self) -> Result<(), WriteError> {
        self.write_out_lane(&mut self.lanes[self.cold_lane()].lock())
    }

    fn write_out_lane(&self, lane: &mut Lane) -> Result<(), WriteError> {
        let Some(open) = lane.open.as_mut().filter(|open| !open.has_failed) else {
            return Ok(());
        };
        if open.buffer.as_slice().len() as u32 <= open.written {
            return Ok(());
        }
        let end = block_ceil(open.buffer.as_slice().len() as u32);
        if end + footer_bytes(open.entries.len()) > SEGMENT_BYTES {
            // The padding would take the footer's room; hardly anything else would have found any.
            return self.seal(lane);
        }
        let is_small = end - open.written <= SMALL_WRITE_MAX;
        let follows_another = std::mem::replace(&mut open.was_small, is_small);
        let mut written_to = end;
        if is_small && follows_another && end > open.zeroed && self.pool.device.geometry().sparse {
            written_to = (end + ZEROS_AHEAD).min(SEGMENT_BYTES);
        }
        open.buffer.resize(written_to as usize);
        let written = self.pool.write(
            open.segment,
            open.written,
            &open.buffer.as_slice()[open.written as usize..],
        );
        open.buffer.resize(end as usize);
        written?;
        open.written = end;
        open.zeroed = open.zeroed.max(written_to);
        self.pool.space.lock().set_used(open.segment, end);
        Ok(())
    }

    /// Seals every lane's segment.
    ///
    /// # Errors
    /// A device failure.
    pub fn seal_all(&self) -> Result<(), WriteError> {
        for lane in &self.lanes {
            self.seal(&mut lane.lock())?;
        }
        Ok(())
    }

    /// Whether the segment is open, so that some of it may be in memory alone.
    pub fn is_open(&self, segment: SegmentId) -> bool {
        self.open.read().contains_key(&segment)
    }

    /// Copies a record out of an open segment; false when the segment is not open, so that it is on the device.
    pub fn read(&self, segment: SegmentId, offset: u32, len: u32, out: &mut Vec<u8>) -> bool {
        let Some(lane) = self.open.read().get(&segment).copied() else {
            return false;
        };
        let lane = self.lanes[lane].lock();
        let Some(open) = lane.open.as_ref().filter(|open| open.segment == segment) else {
            return false;
        };
        match open
            .buffer
            .as_slice()
            .get(offset as usize..offset as usize + len as usize)
        {
            Some(record) => {
                out.clear();
                out.extend_from_slice(record);
                true
            }
            None => false,
        }
    }
}

impl OpenSegment {
    fn has_room(&self, record_len: u32) -> bool {
        self.buffer.as_slice().len() as u32
            + record_len.next_multiple_of(RECORD_ALIGN)
            + footer_bytes(self.entries.len() + 1)
            <= SEGMENT_BYTES
    }
}
