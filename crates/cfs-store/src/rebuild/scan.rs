//! The headers of all segments.

use std::collections::BTreeMap;

use cfs_device::Device;
use cfs_format::segment::{SegmentHeader, Stream};
use cfs_format::superblock::{ANCHORS, Superblock};
use cfs_format::{BLOCK_BYTES, SegmentId, SegmentSeq};
use cfs_seal::keys::ClusterKey;

use super::RebuildProgress;
use crate::directory::{Directory, DirectoryPlace, read_directory};
use crate::error::OpenError;
use crate::heal::table_header;
use crate::pool::Pool;
use crate::space::{Space, State};

/// Segments between two reports of progress.
const PROGRESS_SEGMENTS: u32 = 256;

/// What the segments say they are.
pub(super) struct Scan {
    /// By segment number.
    pub headers: BTreeMap<u32, SegmentHeader>,
    /// Segments that have been written and whose first block is no header of this pool.
    pub doubtful: Vec<SegmentId>,
}

/// A table segment and what its directory says.
pub(super) struct TableSegment {
    pub segment: SegmentId,
    pub seq: SegmentSeq,
    pub used_bytes: u32,
    pub directory: Directory,
}

impl Scan {
    /// Reads the first block of each segment. `None` when `go_on` did not want to.
    pub fn run(
        device: &dyn Device,
        (key, superblock): (&ClusterKey, &Superblock),
        segment_count: u32,
        go_on: &mut dyn FnMut(RebuildProgress) -> bool,
    ) -> Result<Option<Self>, OpenError> {
        let end = segment_count.min(device.geometry().written_segments);
        let mut scan = Self {
            headers: BTreeMap::new(),
            doubtful: Vec::new(),
        };
        // A header, and its copy in a segment of the log.
        let mut blocks = vec![0; 2 * BLOCK_BYTES as usize];
        for number in ANCHORS..end {
            if number % PROGRESS_SEGMENTS == 0 {
                let progress = RebuildProgress {
                    stage: "looking for segments",
                    segments: number.into(),
                    segments_total: end.into(),
                };
                if !go_on(progress) {
                    return Ok(None);
                }
            }
            let refused = crate::heal::read_what_can_be(device, SegmentId(number), 0, &mut blocks);
            let mut headers = blocks.chunks_exact(BLOCK_BYTES as usize).map(|block| {
                let header = cfs_seal::keys::open_segment_header(block, key).ok();
                header.filter(|header| {
                    header.pool_uuid == superblock.pool_uuid && header.segment.get() == number
                })
            });
            let first = headers.next().flatten();
            let is_journal = |header: &SegmentHeader| header.stream == Stream::Journal as u8;
            let header = first.or_else(|| headers.next().flatten().filter(is_journal));
            match header {
                Some(header) => {
                    scan.headers.insert(number, header);
                }
                None if !refused.is_empty() || blocks.iter().any(|byte| *byte != 0) => {
                    scan.doubtful.push(SegmentId(number));
                }
                None => {}
            }
        }
        Ok(Some(scan))
    }

    /// Largest incarnation that any header names; 0 without headers.
    pub fn newest_incarnation(&self) -> u32 {
        let seqs = self.headers.values().map(|header| header.seq.get() >> 40);
        seqs.max().unwrap_or(0) as u32
    }

    /// Whether a doubtful segment is held for what it may be, and nobody knows yet.
    pub fn is_doubtful_data(&self, space: &Space, segment: SegmentId) -> bool {
        let is_nameless = space.entry(segment).is_some_and(|entry| {
            entry.seq == SegmentSeq(0) && entry.state == State::Full(Stream::Data)
        });
        is_nameless && self.doubtful.contains(&segment)
    }

    fn of_stream(&self, stream: Stream) -> impl Iterator<Item = (SegmentId, &SegmentHeader)> {
        let headers = self.headers.iter();
        headers
            .filter(move |(_, header)| header.stream == stream as u8)
            .map(|(number, header)| (SegmentId(*number), header))
    }

    /// Segments of the log.
    pub fn journal_segments(&self) -> impl Iterator<Item = (SegmentId, &SegmentHeader)> {
        self.of_stream(Stream::Journal)
    }

    /// Segments with chunks.
    pub fn data_segments(&self) -> impl Iterator<Item = (SegmentId, SegmentSeq, Stream)> {
        [Stream::Data, Stream::ColdData]
            .into_iter()
            .flat_map(|stream| {
                self.of_stream(stream)
                    .map(move |(segment, header)| (segment, SegmentSeq(header.seq.get()), stream))
            })
    }

    /// The directories of all table segments that have one that can be read.
    pub fn directories(&self, pool: &Pool) -> BTreeMap<SegmentId, TableSegment> {
        let known = self.of_stream(Stream::Table);
        let known = known.map(|(segment, header)| (segment, *header));
        let restored = self.doubtful.iter().filter_map(|segment| {
            let header = table_header(pool, *segment, None)?;
            Some((*segment, header))
        });
        let found = known.chain(restored).filter_map(|(segment, header)| {
            let place = DirectoryPlace::of_header(&header)?;
            let seq = SegmentSeq(header.seq.get());
            let directory = match read_directory(pool, segment, seq, place) {
                Ok(directory) => directory,
                Err(error) => {
                    tracing::warn!(%segment, %error, "a table segment's directory cannot be read");
                    return None;
                }
            };
            let found = TableSegment {
                segment,
                seq,
                used_bytes: place.used_bytes,
                directory,
            };
            Some((segment, found))
        });
        found.collect()
    }
}
