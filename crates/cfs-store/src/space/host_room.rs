//! The free segments, and what room the host has given to segments of a device that takes its room little by little.
//!
//! The segment table tells which segments come into use and which become free ([`GivenRoom::claim`], [`GivenRoom::free`]), and
//! how much is promised; what is in a segment, and whether one may be taken at all, only the table knows.
//!
//! Invariants:
//! - `prepared`, `started` and `held` are disjoint parts of `free`: the first have the host's room for certain, the second have it
//!   for their first [`START_BYTES`], the third may still have some, which goes back to it a little at a time.
//! - Where the host has the room, [`PREPARED_KEPT`] segments are prepared beside those that are promised, and [`STARTED_KEPT`] started,
//!   also while nobody uses the pool: on a host that others fill in one moment a checkpoint, and the next process to open the pool,
//!   need them. As long as there are fewer, nothing goes back to the host but gaps in full segments that are to become one which is
//!   promised, and those and ends of full segments for upkeep that finds nothing else. A pool that is closed keeps what opening it
//!   takes.

mod in_use;
mod left;

use std::collections::BTreeSet;
use std::ops::Range;

use cfs_device::{Device, DeviceError};
use cfs_format::{SEGMENT_BYTES, SegmentId};

use self::in_use::{Backing, InUse};
use super::{NoSpaceOr, Purpose};
use crate::error::NoSpace;

/// Small runs and manifests take no more than this from the start of a segment, and each keeps as much, so that another can
/// have it: on a full host the room of one that was cut to its length would be somebody else's.
pub(crate) const START_BYTES: u32 = 256 << 10;
/// Free segments that are kept prepared (given room by the host). Opening a pool takes two for the log, of which one is what was
/// to follow the log before; emptying data segments takes one.
const PREPARED_KEPT: usize = 6;
/// As above, when the pool is closed.
const PREPARED_AT_REST: usize = 2;
/// So many of them are left to the log and to checkpoints.
const PREPARED_FOR_UPKEEP: usize = 4;
/// Free segments that are kept started, for small tables. A checkpoint takes four, and merging what that wrote two more.
const STARTED_KEPT: usize = 12;
/// As above, when the pool is closed.
const STARTED_AT_REST: usize = 6;
/// So many of them are left to checkpoints.
const STARTED_FOR_UPKEEP: usize = 4;
/// While a pool grows a sixteenth of its segments more are kept prepared, at most so many: it asks the host seldom then.
const PREPARED_AHEAD_MAX: usize = 24;
/// Bytes of the host that opening a pool takes at most, unless its log is long: the log, two runs, two manifests, and two more
/// runs for merged tables.
pub const OPENING_BYTES: u64 =
    PREPARED_AT_REST as u64 * SEGMENT_BYTES as u64 + STARTED_AT_REST as u64 * START_BYTES as u64;

/// Segments at each end of the list that are tried on a full host.
const ROOM_SEARCHED: u32 = 256;

/// The free segments, and what room the host has given.
pub(crate) struct GivenRoom {
    in_use: InUse,
    /// Free segments below `in_use.end()`.
    free: BTreeSet<u32>,
    /// Those of `free` that the host has given room to.
    prepared: BTreeSet<u32>,
    /// Those of `free` that the host has given room to at their start.
    started: BTreeSet<u32>,
    /// Those of `free` that may have room on the host which nobody needs.
    held: BTreeSet<u32>,
    /// Segments that were never used, but perhaps prepared by a process that ended without giving them back.
    suspect: Range<u32>,
    /// The host had no room for all that is kept when it was asked last.
    lacks_host_room: bool,
    /// Segments that all promises take.
    promised: usize,
    /// Something was promised since room was last given back.
    grows: bool,
    segment_count: u32,
    sparse: bool,
}

/// How much of a segment is given room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Whole,
    /// [`START_BYTES`].
    Start,
}

impl GivenRoom {
    /// Of a pool of which nothing is known yet: all segments but the anchors are free, and none has room.
    pub(super) fn new(segment_count: u32, sparse: bool) -> Self {
        Self {
            in_use: InUse::new(),
            free: BTreeSet::new(),
            prepared: BTreeSet::new(),
            started: BTreeSet::new(),
            held: BTreeSet::new(),
            suspect: 0..0,
            lacks_host_room: false,
            promised: 0,
            grows: false,
            segment_count,
            sparse,
        }
    }

    /// Segments from here on have never been used.
    pub(super) fn end(&self) -> u32 {
        self.in_use.end()
    }

    /// Those below `end` may be used from now on.
    pub(super) fn extend_to(&mut self, end: u32) {
        if self.end() < end {
            self.free.extend(self.end()..end);
            self.in_use.extend_to(end);
        }
    }

    /// How many segments are free.
    pub(super) fn free_count(&self) -> u64 {
        self.free.len() as u64 + u64::from(self.segment_count) - u64::from(self.end())
    }

    pub(super) fn is_free(&self, segment: SegmentId) -> bool {
        segment.0 >= self.end() || self.free.contains(&segment.0)
    }

    /// Whether the host has room for a free segment, or for its start, for certain.
    pub fn is_prepared(&self, segment: SegmentId) -> bool {
        self.prepared.contains(&segment.0) || self.started.contains(&segment.0)
    }

    /// Bytes of free segments that the host has not got back yet.
    pub fn held_bytes(&self) -> u64 {
        self.held.len() as u64 * u64::from(SEGMENT_BYTES)
    }

    /// A segment that an earlier process has filled is in use.
    pub(super) fn claim(&mut self, segment: SegmentId) {
        self.extend_to(segment.0 + 1);
        self.free.remove(&segment.0);
        self.prepared.remove(&segment.0);
        self.started.remove(&segment.0);
        self.held.remove(&segment.0);
        self.in_use.begin(segment, Backing::Unknown);
    }

    /// A segment that was claimed is free after all.
    pub(super) fn unclaim(&mut self, segment: SegmentId) {
        self.retire(segment);
        self.free.insert(segment.0);
    }

    /// A segment will be free before long: what could be cut from it goes then, with the rest.
    pub(super) fn retire(&mut self, segment: SegmentId) {
        self.in_use.forget(segment);
    }

    /// A segment of which `used_bytes` were written is free. Some keep the room that the host has given them, others give it
    /// back later.
    pub(super) fn free(&mut self, segment: SegmentId, used_bytes: u32) {
        let backing = self.in_use.backing(segment);
        let is_start = backing == Backing::Start && used_bytes <= START_BYTES;
        self.free.insert(segment.0);
        if backing == Backing::Whole && self.prepared.len() < self.kept() {
            self.prepared.insert(segment.0);
        } else if is_start && self.sparse && self.started.len() < STARTED_KEPT {
            self.started.insert(segment.0);
        } else {
            self.held.insert(segment.0);
        }
    }

    /// Where the sets contradict each other.
    pub(super) fn contradictions(&self) -> Vec<(SegmentId, String)> {
        let mut found = Vec::new();
        for index in self.prepared.union(&self.started) {
            if self.free.contains(index) {
                continue;
            }
            let sentence = "it has been prepared to be handed out, and is not free".to_owned();
            found.push((SegmentId(*index), sentence));
        }
        for index in self.held.iter() {
            if !self.free.contains(index) || self.is_prepared(SegmentId(*index)) {
                let sentence = "the host is to get its room back, and it is in use".to_owned();
                found.push((SegmentId(*index), sentence));
            }
        }
        found
    }

    /// Takes a free segment that has room on the host. There must be one that is free.
    pub(super) fn take(
        &mut self,
        device: &dyn Device,
        purpose: Purpose,
    ) -> Result<SegmentId, NoSpaceOr<DeviceError>> {
        // What the host has set aside for promised data is left to those while it has other room; and to what frees room
        // some is left also when it has none.
        let kept = match purpose {
            Purpose::Compaction | Purpose::Consolidation | Purpose::Cleaning if self.sparse => {
                PREPARED_FOR_UPKEEP
            }
            _ => 0,
        };
        let spare = self.prepared.len() > self.promised + kept;
        if !(purpose == Purpose::Data || spare) && self.pick().is_some() {
            match self.prepare_one(device, Room::Whole) {
                Ok(()) => {}
                Err(NoSpaceOr::NoSpace(_)) if kept == 0 => {}
                Err(error) => return Err(error),
            }
        }
        if self.prepared.is_empty() {
            match self.prepare_one(device, Room::Whole) {
                Err(NoSpaceOr::NoSpace(_)) if purpose == Purpose::Upkeep => {
                    if !self.prepare_one_with_room(device)? {
                        self.prepare_one_of_others(device, Room::Whole)?;
                    }
                }
                result => result?,
            }
        }
        let index = self.prepared.pop_first().expect("prepared just above");
        Ok(self.take_out(index, Backing::Whole))
    }

    /// Takes a free segment of which at least the first [`START_BYTES`] have room on the host, unless none is to be had: a
    /// whole one may be, then. For more of it ask [`GivenRoom::complete`].
    pub(super) fn take_start(
        &mut self,
        device: &dyn Device,
        purpose: Purpose,
    ) -> Result<Option<SegmentId>, NoSpaceOr<DeviceError>> {
        if !self.sparse {
            return Ok(None);
        }
        let whole = self.prepared.len();
        let kept = match purpose {
            Purpose::Upkeep => 0,
            // A checkpoint takes whole ones, too. Without this one the next would need more.
            Purpose::Consolidation => STARTED_FOR_UPKEEP
                .saturating_sub(whole.saturating_sub(self.promised + PREPARED_AT_REST)),
            _ => STARTED_FOR_UPKEEP,
        };
        if self.started.len() <= STARTED_KEPT && self.pick().is_some() {
            match self.prepare_one(device, Room::Start) {
                Ok(()) | Err(NoSpaceOr::NoSpace(_)) => {}
                Err(error) => return Err(error),
            }
        }
        // A whole one is handed out instead while there are more than the log needs.
        let is_last = self.prepared.len() <= self.promised + PREPARED_AT_REST;
        if self.started.is_empty() && purpose == Purpose::Upkeep && is_last {
            match self.prepare_one_of_others(device, Room::Start) {
                Ok(()) | Err(NoSpaceOr::NoSpace(_)) => {}
                Err(error) => return Err(error),
            }
        }
        if self.started.len() <= kept {
            return Ok(None);
        }
        let index = self.started.pop_first().expect("counted just above");
        Ok(Some(self.take_out(index, Backing::Start)))
    }

    /// The last resort of upkeep on a full host: gives it back what is behind the ends of full segments, or else gaps in them,
    /// of which a free one gets room. Others may take that.
    fn prepare_one_of_others(
        &mut self,
        device: &dyn Device,
        room: Room,
    ) -> Result<(), NoSpaceOr<DeviceError>> {
        let bytes = match room {
            Room::Whole => SEGMENT_BYTES,
            Room::Start => START_BYTES,
        };
        if self.pick().is_some() {
            if let Some(tails) = self.in_use.fewest_tails(bytes) {
                for segment in tails {
                    let cut = self.in_use.cut_noted_tail(device, segment);
                    cut.map_err(NoSpaceOr::Other)?;
                }
                match self.prepare_one(device, room) {
                    Err(NoSpaceOr::NoSpace(_)) => {}
                    prepared => return prepared,
                }
            }
            if self.cut_gaps(device, bytes)? {
                return self.prepare_one(device, room);
            }
        }
        Err(host_is_full(bytes))
    }

    fn take_out(&mut self, index: u32, backing: Backing) -> SegmentId {
        self.free.remove(&index);
        debug_assert!(
            !self.held.contains(&index),
            "prepared segments are not held"
        );
        let segment = SegmentId(index);
        self.in_use.begin(segment, backing);
        segment
    }

    /// Gives a segment that was taken with its start alone the rest, if `used` bytes need it.
    pub fn complete(
        &mut self,
        device: &dyn Device,
        segment: SegmentId,
        used: u32,
    ) -> Result<(), NoSpaceOr<DeviceError>> {
        if used <= START_BYTES || self.in_use.backing(segment) == Backing::Whole {
            return Ok(());
        }
        match device.prepare(segment, 1) {
            Ok(()) => {
                self.in_use.complete(segment);
                Ok(())
            }
            Err(DeviceError::NoSpace { .. }) => {
                // The host may have given a part of it.
                let cut = device.discard_from(segment, START_BYTES);
                cut.map_err(NoSpaceOr::Other)?;
                Err(host_is_full(used))
            }
            Err(error) => Err(NoSpaceOr::Other(error)),
        }
    }

    /// From now on all promises take `promised` segments, more than before: has the host give room for them, unless it would
    /// then have less than `left_bytes`.
    pub(super) fn promise(
        &mut self,
        device: &dyn Device,
        promised: usize,
        left_bytes: u64,
    ) -> Result<(), NoSpaceOr<DeviceError>> {
        if self.sparse {
            let wanted = promised + PREPARED_KEPT;
            if self.prepared.len() < wanted {
                let needed = (wanted - self.prepared.len()) as u64 * u64::from(SEGMENT_BYTES);
                self.leave_to_host(device, needed + left_bytes)?;
                let count_max = promised + self.kept() - self.prepared.len();
                self.prepare_ahead(device, count_max as u32)
                    .map_err(NoSpaceOr::Other)?;
            }
            // Without room for as many: one at a time, and no more than has to be.
            while self.prepared.len() < wanted {
                if self.pick().is_none() {
                    break;
                }
                match self.prepare_one(device, Room::Whole) {
                    Err(NoSpaceOr::NoSpace(_)) if self.cut_gaps(device, SEGMENT_BYTES)? => {
                        self.prepare_one(device, Room::Whole)?;
                    }
                    prepared => prepared?,
                }
            }
        }
        self.promised = promised;
        self.grows = true;
        Ok(())
    }

    /// Makes sure that the host has so many bytes, with those of free segments; for more it gets gaps of full ones.
    fn leave_to_host(
        &mut self,
        device: &dyn Device,
        bytes: u64,
    ) -> Result<(), NoSpaceOr<DeviceError>> {
        while let Some(host) = device.host_space().map_err(NoSpaceOr::Other)? {
            if host.available_bytes + self.held_bytes() >= bytes {
                break;
            }
            if !self.cut_gaps(device, SEGMENT_BYTES)? {
                return Err(host_is_full(SEGMENT_BYTES));
            }
        }
        Ok(())
    }

    /// Whether the log may take another segment for what only removes: what opening the pool takes is left.
    pub fn has_room_for_log(&self) -> bool {
        !self.lacks_host_room || self.prepared.len() > self.promised + PREPARED_AT_REST
    }

    /// On a full host: gives it back gaps of full segments that have `bytes` together. Whether there were enough. Others may
    /// take that room; ends of segments are left to upkeep, as those are whole again when they are free.
    fn cut_gaps(
        &mut self,
        device: &dyn Device,
        bytes: u32,
    ) -> Result<bool, NoSpaceOr<DeviceError>> {
        let Some(gaps) = self.in_use.fewest_gaps(bytes) else {
            return Ok(false);
        };
        for segment in gaps {
            let cut = self.in_use.cut_gap(device, segment);
            cut.map_err(NoSpaceOr::Other)?;
        }
        Ok(true)
    }

    /// From now on all promises take `promised` segments, fewer than before.
    pub(super) fn unpromise(&mut self, promised: usize) {
        self.promised = promised;
    }

    /// Gives the room of a full segment from `end` on back to the host, unless that is short of room.
    pub fn cut_tail(
        &mut self,
        device: &dyn Device,
        segment: SegmentId,
        end: u32,
    ) -> Result<(), DeviceError> {
        let end = end.max(START_BYTES);
        if end == SEGMENT_BYTES {
            return Ok(());
        }
        let is_stocked = self.restock(device)?;
        // Of others nothing was given behind the start.
        if self.in_use.backing(segment) == Backing::Start && end == START_BYTES {
            return Ok(());
        }
        if !is_stocked {
            self.in_use.note_tail(segment, end);
            return Ok(());
        }
        self.in_use.cut_tail(device, segment, end)
    }

    /// There is nothing in `range` of a segment that is about to be closed.
    pub fn note_gap(&mut self, segment: SegmentId, range: Range<u32>) {
        if self.sparse {
            self.in_use.note_gap(segment, range);
        }
    }

    /// Gives the room of one segment, or gap in one, that nobody needs back to the host; false when there is none, or the host
    /// has too little for what is kept. An idle pool keeps less, and no gaps: those cost writes more than they give.
    pub fn trim_one(&mut self, device: &dyn Device, is_idle: bool) -> Result<bool, DeviceError> {
        if !self.restock(device)? {
            return Ok(false);
        }
        if let Some((segment, end)) = self.in_use.take_tail() {
            self.cut_tail(device, segment, end)?;
            return Ok(true);
        }
        if let Some(index) = self.held.pop_last().or_else(|| self.superfluous(is_idle)) {
            device.discard_from(SegmentId(index), 0)?;
            return Ok(true);
        }
        if is_idle {
            return self.in_use.cut_last_gap(device);
        }
        Ok(false)
    }

    /// A segment that is prepared, or may be so by an earlier process, and that no promise needs.
    fn superfluous(&mut self, is_idle: bool) -> Option<u32> {
        if !self.sparse {
            return None;
        }
        let kept = if is_idle { PREPARED_KEPT } else { self.kept() };
        if self.prepared.len() > self.promised + kept {
            return self.prepared.pop_last();
        }
        // What has been used since is known for what it is.
        let used = self.end();
        self.suspect.start = self.suspect.start.max(used);
        self.suspect.next()
    }

    /// What nobody needs has been given back; what is promised from now on makes the pool grow again.
    pub fn end_trim(&mut self) {
        self.grows = false;
    }

    /// The pool is closed: gives back what is kept, but for what opening it takes, unless the host was short of room.
    pub fn keep_for_opening(&mut self, device: &dyn Device) -> Result<(), DeviceError> {
        if !self.sparse || self.lacks_host_room {
            return Ok(());
        }
        let kept = [
            (&mut self.prepared, PREPARED_AT_REST),
            (&mut self.started, STARTED_AT_REST),
        ];
        for (segments, count) in kept {
            while segments.len() > count {
                let index = segments.pop_last().expect("counted just above");
                device.discard_from(SegmentId(index), 0)?;
            }
        }
        Ok(())
    }

    /// Prepares and starts as many as are kept, if the host has the room. Whether it had.
    pub fn restock(&mut self, device: &dyn Device) -> Result<bool, DeviceError> {
        // What has room keeps it, before any is given back to make others whole.
        for room in [Room::Whole, Room::Start] {
            while self.is_short(room) {
                let held: Vec<u32> = self
                    .held
                    .iter()
                    .take(ROOM_SEARCHED as usize)
                    .copied()
                    .collect();
                match self.one_is_given_room(device, held, room) {
                    Ok(true) => {}
                    Ok(false) | Err(NoSpaceOr::NoSpace(_)) => break,
                    Err(NoSpaceOr::Other(error)) => return Err(error),
                }
            }
        }
        for room in [Room::Whole, Room::Start] {
            while self.is_short(room) {
                match self.prepare_one(device, room) {
                    Ok(()) => {}
                    Err(NoSpaceOr::NoSpace(_)) => break,
                    Err(NoSpaceOr::Other(error)) => return Err(error),
                }
            }
        }
        self.lacks_host_room = self.is_short(Room::Whole) || self.is_short(Room::Start);
        Ok(!self.lacks_host_room)
    }

    /// Whether the host had no room for all that is kept when it was asked last.
    pub fn lacks_host_room(&self) -> bool {
        self.lacks_host_room
    }

    /// Whether fewer segments are prepared, or started, than are kept, although there are free ones.
    fn is_short(&self, room: Room) -> bool {
        let is_short = match room {
            Room::Whole => self.prepared.len() < self.promised + PREPARED_KEPT,
            Room::Start => self.started.len() < STARTED_KEPT,
        };
        self.sparse && is_short && self.pick().is_some()
    }

    /// Free segments that are kept prepared beside what is promised while the pool is in use.
    fn kept(&self) -> usize {
        let ahead = (self.end() as usize / 16).min(PREPARED_AHEAD_MAX);
        PREPARED_KEPT + if self.grows { ahead } else { 0 }
    }

    /// The free segment to prepare next: one that still has room on the host, else the lowest.
    fn pick(&self) -> Option<SegmentId> {
        let is_prepared = |index: &&u32| self.is_prepared(SegmentId(**index));
        self.held
            .first()
            .or_else(|| self.free.iter().find(|index| !is_prepared(index)))
            .copied()
            .or_else(|| (self.end() < self.segment_count).then_some(self.end()))
            .map(SegmentId)
    }

    /// Prepares a free segment. On a full host that is one that has all of its room still, or else gets what others have
    /// that nobody needs.
    fn prepare_one(
        &mut self,
        device: &dyn Device,
        room: Room,
    ) -> Result<(), NoSpaceOr<DeviceError>> {
        let last = || self.started.last().copied().map(SegmentId);
        let first = self
            .pick()
            .or_else(|| last().filter(|_| room == Room::Whole))
            .ok_or_else(|| host_is_full(SEGMENT_BYTES))?;
        if self.is_given_room(device, first, room)? {
            return Ok(());
        }
        let others = self.held.iter().skip(1).take(ROOM_SEARCHED as usize);
        let others: Vec<u32> = others.copied().collect();
        if self.one_is_given_room(device, others, room)? {
            return Ok(());
        }
        // Not one by one: each attempt may flush the host's journal.
        let mut count = 1;
        while !self.held.is_empty() {
            for _ in 0..count {
                let Some(index) = self.held.pop_last() else {
                    break;
                };
                device
                    .discard_from(SegmentId(index), 0)
                    .map_err(NoSpaceOr::Other)?;
            }
            count *= 2;
            let next = self.pick().expect("what is held is free");
            if self.is_given_room(device, next, room)? {
                return Ok(());
            }
        }
        Err(host_is_full(SEGMENT_BYTES))
    }

    /// Prepares the segment, or its start, unless the host has no room for it.
    fn is_given_room(
        &mut self,
        device: &dyn Device,
        segment: SegmentId,
        room: Room,
    ) -> Result<bool, NoSpaceOr<DeviceError>> {
        let given = match room {
            Room::Whole => device.prepare(segment, 1),
            Room::Start => device.prepare_start(segment, START_BYTES),
        };
        match given {
            Ok(()) => {
                let was_held = self.held.contains(&segment.0);
                self.note_prepared(segment, 1);
                if room == Room::Start {
                    self.prepared.remove(&segment.0);
                    self.started.insert(segment.0);
                    if was_held {
                        let cut = device.discard_from(segment, START_BYTES);
                        cut.map_err(NoSpaceOr::Other)?;
                    }
                }
                Ok(true)
            }
            Err(DeviceError::NoSpace { .. }) => Ok(false),
            Err(error) => Err(NoSpaceOr::Other(error)),
        }
    }

    /// Prepares the first of these that the host has room for.
    fn one_is_given_room(
        &mut self,
        device: &dyn Device,
        candidates: impl IntoIterator<Item = u32>,
        room: Room,
    ) -> Result<bool, NoSpaceOr<DeviceError>> {
        for index in candidates {
            if self.is_given_room(device, SegmentId(index), room)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Prepares the next free segments that lie side by side, at most `count_max`, if the host has room for all of them. If
    /// not, what room they had before is theirs still.
    fn prepare_ahead(&mut self, device: &dyn Device, count_max: u32) -> Result<(), DeviceError> {
        let Some(first) = self.pick() else {
            return Ok(());
        };
        let count = self.run_len(first, count_max);
        match device.prepare(first, count) {
            Ok(()) => self.note_prepared(first, count),
            Err(DeviceError::NoSpace { .. }) => {
                let run = first.0..first.0 + count;
                for index in run.filter(|index| !self.held.contains(index)) {
                    device.discard_from(SegmentId(index), 0)?;
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn note_prepared(&mut self, first: SegmentId, count: u32) {
        self.extend_to(first.0 + count);
        for index in first.0..first.0 + count {
            self.free.insert(index);
            self.held.remove(&index);
            self.started.remove(&index);
            self.prepared.insert(index);
        }
    }

    /// How many segments from `first` on, at most `count_max`, could be prepared with it.
    fn run_len(&self, first: SegmentId, count_max: u32) -> u32 {
        let end = first.0.saturating_add(count_max).min(self.segment_count);
        let used = self.end();
        let joins = |index: &u32| {
            let is_prepared = self.is_prepared(SegmentId(*index));
            *index >= used || (self.free.contains(index) && !is_prepared)
        };
        1 + (first.0 + 1..end).take_while(joins).count() as u32
    }
}

fn host_is_full(needed_bytes: u32) -> NoSpaceOr<DeviceError> {
    NoSpaceOr::NoSpace(NoSpace {
        needed_bytes: needed_bytes.into(),
        available_bytes: 0,
    })
}

#[cfg(test)]
mod tests {
    use cfs_device::{FaultPlan, MemDevice};
    use cfs_format::BLOCK_BYTES;

    use super::*;

    /// A gap that reaches into the start of a segment takes the room that the start is believed to have.
    #[test]
    fn a_segment_with_a_gap_at_its_start_is_not_believed_to_have_room_there() {
        for (used, is_believed) in [(2 * BLOCK_BYTES, false), (START_BYTES, true)] {
            let device = MemDevice::new(64);
            let mut room = GivenRoom::new(64, true);
            let taken = room.take(&device, Purpose::Data);
            let segment = taken.unwrap_or_else(|_| panic!("there is room"));
            room.note_gap(segment, used..SEGMENT_BYTES - BLOCK_BYTES);
            while room.trim_one(&device, true).unwrap() {}
            room.started.clear();
            room.free(segment, used);
            assert_eq!(room.started.contains(&segment.0), is_believed, "{used}");
        }
    }

    /// Or what was promised would take what upkeep needs.
    #[test]
    fn cleaning_on_a_full_host_leaves_what_is_promised_and_what_upkeep_needs() {
        let device = MemDevice::new(64);
        let mut room = GivenRoom::new(64, true);
        assert!(room.promise(&device, 10, 0).is_ok());
        device.set_faults(FaultPlan {
            room_blocks_max: Some(device.room_blocks()),
            ..FaultPlan::default()
        });
        while room.take(&device, Purpose::Cleaning).is_ok() {}
        for _ in 0..10 {
            assert!(room.take(&device, Purpose::Data).is_ok());
        }
        for _ in 0..PREPARED_FOR_UPKEEP {
            assert!(room.take(&device, Purpose::Upkeep).is_ok());
        }
    }

    /// On a full host the room that full segments have and do not need is the pool's before it is nobody's.
    #[test]
    fn gaps_of_full_segments_become_free_segments_on_a_full_host() {
        let device = MemDevice::new(64);
        let mut room = GivenRoom::new(64, true);
        let gap = 64 * BLOCK_BYTES..128 * BLOCK_BYTES;
        for _ in 0..24 {
            let taken = room.take(&device, Purpose::Data);
            let segment = taken.unwrap_or_else(|_| panic!("there is room"));
            room.note_gap(segment, gap.clone());
        }
        assert!(room.restock(&device).is_ok_and(|is_stocked| is_stocked));
        device.set_faults(FaultPlan {
            room_blocks_max: Some(device.room_blocks()),
            ..FaultPlan::default()
        });
        // 24 gaps of an eighth of a segment are three segments; what is kept beside promises is not for them.
        for promised in 1..=4 {
            let given = room.promise(&device, promised, 0).is_ok();
            assert_eq!(given, promised <= 3, "{promised}");
        }
    }

    /// Without a checkpoint nothing that has been removed would become free.
    #[test]
    fn upkeep_on_a_full_host_takes_ends_and_gaps_of_full_segments() {
        let device = MemDevice::new(64);
        let mut room = GivenRoom::new(64, true);
        let take = |room: &mut GivenRoom| {
            let taken = room.take(&device, Purpose::Data);
            taken.unwrap_or_else(|_| panic!("there is room"))
        };
        for _ in 0..2 {
            let segment = take(&mut room);
            room.in_use.note_tail(segment, SEGMENT_BYTES / 2);
        }
        for _ in 0..8 {
            let segment = take(&mut room);
            room.note_gap(segment, 64 * BLOCK_BYTES..192 * BLOCK_BYTES);
        }
        assert!(room.restock(&device).is_ok_and(|is_stocked| is_stocked));
        device.set_faults(FaultPlan {
            room_blocks_max: Some(device.room_blocks()),
            ..FaultPlan::default()
        });
        // Two halves, and eight quarters, are three segments.
        for number in 1..=PREPARED_KEPT + 4 {
            let is_given = room.take(&device, Purpose::Upkeep).is_ok();
            assert_eq!(is_given, number <= PREPARED_KEPT + 3, "{number}");
        }
    }

    /// As above, for a small table.
    #[test]
    fn a_small_table_on_a_full_host_takes_the_end_of_a_full_segment() {
        let device = MemDevice::new(64);
        let mut room = GivenRoom::new(64, true);
        let taken = room.take(&device, Purpose::Data);
        let segment = taken.unwrap_or_else(|_| panic!("there is room"));
        room.in_use.note_tail(segment, SEGMENT_BYTES - START_BYTES);
        assert!(room.restock(&device).is_ok_and(|is_stocked| is_stocked));
        device.set_faults(FaultPlan {
            room_blocks_max: Some(device.room_blocks()),
            ..FaultPlan::default()
        });
        while room.prepared.len() > PREPARED_AT_REST {
            assert!(room.take(&device, Purpose::Upkeep).is_ok());
        }
        for number in 1..=STARTED_KEPT + 2 {
            let taken = room.take_start(&device, Purpose::Upkeep);
            let is_given = matches!(taken, Ok(Some(_)));
            assert_eq!(is_given, number <= STARTED_KEPT + 1, "{number}");
        }
    }
}
