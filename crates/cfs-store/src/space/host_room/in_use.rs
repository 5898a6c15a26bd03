//! What room segments in use have on the host, and what of it nobody needs: behind the end of one, and in gaps.
//!
//! Invariants:
//! - No more is believed to have room than the host was asked for since the pool was opened, and not given back.
//! - What is remembered to be given back lies in a segment that is full, or about to be, and is forgotten when that is retired.

use std::collections::BTreeMap;
use std::ops::Range;

use cfs_device::{Device, DeviceError};
use cfs_format::superblock::ANCHORS;
use cfs_format::{SEGMENT_BYTES, SegmentId};

use super::START_BYTES;

/// Room between the records of a segment and its footer that is worth giving back, bytes.
const GAP_BYTES_MIN: u32 = 16 << 10;
/// Such gaps that are remembered at most: those of 128 GiB.
const GAPS_MAX: usize = 1 << 16;

/// What room a segment in use has on the host for certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Backing {
    /// None, perhaps: of segments that an earlier process filled nobody knows.
    Unknown,
    /// That of its first [`START_BYTES`]; of the rest some was never given, or has been given back.
    Start,
    /// All.
    Whole,
}

pub(super) struct InUse {
    /// Of every segment that was ever in use, or prepared. Of those that are free it says nothing.
    backings: Vec<Backing>,
    /// Full segments that keep room behind their end because the host had none, and where that begins.
    tails: BTreeMap<u32, u32>,
    /// Blocks of full segments that hold nothing, whose room the host is to get back.
    gaps: BTreeMap<u32, Range<u32>>,
}

impl InUse {
    /// The anchors alone are in use.
    pub fn new() -> Self {
        Self {
            backings: vec![Backing::Whole; ANCHORS as usize],
            tails: BTreeMap::new(),
            gaps: BTreeMap::new(),
        }
    }

    /// Segments from here on have never been used.
    pub fn end(&self) -> u32 {
        self.backings.len() as u32
    }

    pub fn extend_to(&mut self, end: u32) {
        self.backings.resize(end as usize, Backing::Unknown);
    }

    pub fn backing(&self, segment: SegmentId) -> Backing {
        self.backings[segment.0 as usize]
    }

    /// The segment is in use from now on.
    pub fn begin(&mut self, segment: SegmentId, backing: Backing) {
        self.backings[segment.0 as usize] = backing;
        self.forget(segment);
    }

    /// The segment has been given all of its room.
    pub fn complete(&mut self, segment: SegmentId) {
        self.backings[segment.0 as usize] = Backing::Whole;
    }

    /// For certain, only what lies before `end` has room from now on.
    fn keep(&mut self, segment: SegmentId, end: u32) {
        let left = match end < START_BYTES {
            true => Backing::Unknown,
            false => Backing::Start,
        };
        let backing = &mut self.backings[segment.0 as usize];
        *backing = left.min(*backing);
    }

    /// The room of a full segment from `end` on is for the host.
    pub fn note_tail(&mut self, segment: SegmentId, end: u32) {
        self.tails.insert(segment.0, end);
    }

    /// What could be cut from a segment goes with the rest of it.
    pub fn forget(&mut self, segment: SegmentId) {
        self.tails.remove(&segment.0);
        self.gaps.remove(&segment.0);
    }

    pub fn take_tail(&mut self) -> Option<(SegmentId, u32)> {
        let (index, end) = self.tails.pop_first()?;
        Some((SegmentId(index), end))
    }

    /// Gives the room of a full segment from `end` on, which is not in its start, back to the host.
    pub fn cut_tail(
        &mut self,
        device: &dyn Device,
        segment: SegmentId,
        end: u32,
    ) -> Result<(), DeviceError> {
        self.keep(segment, end);
        device.discard_from(segment, end)
    }

    /// There is nothing in `range` of a segment that is about to be closed.
    pub fn note_gap(&mut self, segment: SegmentId, range: Range<u32>) {
        if range.len() >= GAP_BYTES_MIN as usize && self.gaps.len() < GAPS_MAX {
            self.gaps.insert(segment.0, range);
        }
    }

    /// The fewest segments whose gaps together have `bytes`; `None` if all have not.
    pub fn fewest_gaps(&self, bytes: u32) -> Option<Vec<SegmentId>> {
        let by_length = self.gaps.iter().map(|(index, range)| (range.len(), *index));
        fewest(by_length.collect(), bytes)
    }

    /// As above, of what is behind the ends of segments.
    pub fn fewest_tails(&self, bytes: u32) -> Option<Vec<SegmentId>> {
        let tails = self.tails.iter();
        let by_length = tails.map(|(index, end)| ((SEGMENT_BYTES - end) as usize, *index));
        fewest(by_length.collect(), bytes)
    }

    /// Gives the room behind a segment's end that is remembered back to the host.
    pub fn cut_noted_tail(
        &mut self,
        device: &dyn Device,
        segment: SegmentId,
    ) -> Result<(), DeviceError> {
        match self.tails.remove(&segment.0) {
            Some(end) => self.cut_tail(device, segment, end),
            None => Ok(()),
        }
    }

    /// Gives the room of a segment's gap back to the host.
    pub fn cut_gap(&mut self, device: &dyn Device, segment: SegmentId) -> Result<(), DeviceError> {
        let Some(range) = self.gaps.remove(&segment.0) else {
            return Ok(());
        };
        self.keep(segment, range.start);
        device.discard(segment, range)
    }

    /// As above, of the last segment that has one; false when there is none.
    pub fn cut_last_gap(&mut self, device: &dyn Device) -> Result<bool, DeviceError> {
        let Some(index) = self.gaps.keys().next_back() else {
            return Ok(false);
        };
        self.cut_gap(device, SegmentId(*index))?;
        Ok(true)
    }
}

/// The segment with the shortest range that has `bytes`, or else those with the longest ones, which have them together; `None` if
/// all have not.
fn fewest(mut ranges: Vec<(usize, u32)>, bytes: u32) -> Option<Vec<SegmentId>> {
    let bytes = bytes as usize;
    let enough = ranges.iter().filter(|(len, _)| *len >= bytes);
    if let Some((_, index)) = enough.min() {
        return Some(vec![SegmentId(*index)]);
    }
    ranges.sort_unstable_by(|one, other| other.cmp(one));
    let mut sum = 0;
    for (count, (len, _)) in ranges.iter().enumerate() {
        sum += len;
        if sum >= bytes {
            let longest = ranges[..=count].iter();
            return Some(longest.map(|(_, index)| SegmentId(*index)).collect());
        }
    }
    None
}
