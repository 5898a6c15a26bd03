//! The segment table: which segments are free, what is in the others, and what has been promised.
//!
//! Invariants:
//! - A segment is in exactly one state; only `Free` segments are handed out.
//! - A segment whose content is no longer needed is `Pending` until a checkpoint that does not need it is durable;
//!   so replay never meets a segment that was used twice since the checkpoint.
//! - `promised_bytes` is the sum of all living reservations; together with the reserve it never exceeds what is free.
//! - `prepared`, `started` and `held` are disjoint parts of `free`: the first have the host's room for certain, the second have it
//!   for their first [`START_BYTES`], the third may still have some, which goes back to it a little at a time.
//! - Where the host has the room, [`PREPARED_KEPT`] segments are prepared beside those that are promised, and [`STARTED_KEPT`] started,
//!   also while nobody uses the pool: on a host that others fill in one moment a checkpoint, and the next process to open the pool,
//!   need them. As long as there are fewer, nothing goes back to the host. A pool that is closed keeps what opening it takes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use cfs_device::{Device, DeviceError, HostRoom};
use cfs_format::segment::Stream;
use cfs_format::superblock::ANCHORS;
use cfs_format::{BLOCK_BYTES, SEGMENT_BYTES, SegmentId, SegmentSeq};

use crate::error::NoSpace;

/// Bytes of a data segment that can be counted on for chunks: header, footer and the unused end are taken off.
pub(crate) const SEGMENT_PAYLOAD_BYTES: u64 = (SEGMENT_BYTES - 2 * BLOCK_BYTES) as u64 * 7 / 8;

/// Free segments that are kept prepared (given room by the host). Opening a pool takes two for the log, of which one is what was
/// to follow the log before; emptying data segments takes one.
const PREPARED_KEPT: usize = 6;
/// So many of them are left to the log and to checkpoints.
const PREPARED_FOR_UPKEEP: usize = 4;
/// Small runs and manifests take no more than this from the start of a segment, and each keeps as much, so that another can
/// have it: on a full host the room of one that was cut to its length would be somebody else's.
pub(crate) const START_BYTES: u32 = 256 << 10;
/// As above, when the pool is closed.
const PREPARED_AT_REST: usize = 2;
/// Free segments that are kept started, for small tables. A checkpoint takes four, and merging what that wrote two more.
const STARTED_KEPT: usize = 12;
/// As above, when the pool is closed.
const STARTED_AT_REST: usize = 6;
/// So many of them are left to checkpoints.
const STARTED_FOR_UPKEEP: usize = 4;
/// Room between the records of a segment and its footer that is worth giving back, bytes.
const GAP_BYTES_MIN: u32 = 16 << 10;
/// Such gaps that are remembered at most: those of 128 GiB.
const GAPS_MAX: usize = 1 << 16;
/// While a pool grows a sixteenth of its segments more are kept prepared, at most so many: it asks the host seldom then.
const PREPARED_AHEAD_MAX: usize = 24;
/// Bytes of the host that opening a pool takes at most, unless its log is long: the log, two runs, two manifests, and two more
/// runs for merged tables.
pub const OPENING_BYTES: u64 =
    PREPARED_AT_REST as u64 * SEGMENT_BYTES as u64 + STARTED_AT_REST as u64 * START_BYTES as u64;

/// Segments at each end of the list that are tried on a full host.
const ROOM_SEARCHED: u32 = 256;
/// Free segments that are tried when a pool is opened on a host that does not tell what has room.
const ROOM_TRIED: usize = 1024;
/// Segments beyond the last one used that a process which was killed may have prepared: as many as hold twice the largest
/// promises that are usual.
const SUSPECTS: u32 = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// May be handed out.
    Free,
    /// Being appended to.
    Open(Stream),
    /// Written, in use.
    Full(Stream),
    /// Not needed any more, but perhaps by a replay from the last checkpoint.
    Pending,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub seq: SegmentSeq,
    /// Bytes of records that the chunk tree points to.
    pub live_bytes: u32,
    /// Bytes written.
    pub used_bytes: u32,
    /// Chunks in it that a command in the making refers to.
    pub pins: u32,
    /// Part of its room has been given back to the host, or may never have been there: of segments that an earlier
    /// process filled nobody knows.
    pub hollow: bool,
    /// Its first [`START_BYTES`] have room for certain, also if it is hollow.
    pub is_started: bool,
    /// When a chunk in it was last added or lost, milliseconds since 1970; 0 when it was before the pool was opened.
    pub changed_ms: u64,
    pub state: State,
}

impl Entry {
    fn table_bytes(&self) -> u64 {
        match self.state {
            State::Full(Stream::Table) => self.used_bytes.into(),
            _ => 0,
        }
    }
}

const FREE: Entry = Entry {
    seq: SegmentSeq(0),
    live_bytes: 0,
    used_bytes: 0,
    pins: 0,
    hollow: false,
    is_started: false,
    changed_ms: 0,
    state: State::Free,
};

/// The largest merge rewrites this many segments at most: level 1 and what goes into it.
const MERGE_SEGMENTS_MAX: u64 = 192;

/// How much of a segment is given room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Whole,
    /// [`START_BYTES`].
    Start,
}

/// Who asks for a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// User data: leaves the reserve alone.
    Data,
    /// Merging table runs, which gives room back only after a checkpoint: leaves alone what is promised, and half of
    /// the reserve.
    Compaction,
    /// Emptying data segments: a quarter of the reserve is left to the log.
    Cleaning,
    /// Log, memtables, manifests: without these nothing can be freed.
    Upkeep,
}

/// Blocks of a segment that hold nothing.
struct Gap {
    segment: SegmentId,
    seq: SegmentSeq,
    range: Range<u32>,
}

pub(crate) struct Space {
    /// Segments `0..entries.len()`; those beyond have never been used.
    entries: Vec<Entry>,
    /// Free segments below `entries.len()`.
    free: BTreeSet<u32>,
    /// Those of `free` that the host has given room to.
    prepared: BTreeSet<u32>,
    /// Those of `free` that the host has given room to at their start.
    started: BTreeSet<u32>,
    /// Those of `free` that may have room on the host which nobody needs.
    held: BTreeSet<u32>,
    /// Segments that were never used, but perhaps prepared by a process that ended without giving them back.
    suspect: std::ops::Range<u32>,
    /// Full segments that keep room behind their end because the host had none, and where that begins.
    tails: BTreeMap<u32, u32>,
    /// The host had no room for all that is kept when it was asked last.
    lacks_host_room: bool,
    /// Gaps in full segments whose room the host is to get back.
    gaps: Vec<Gap>,
    pending: Vec<SegmentId>,
    segment_count: u32,
    reserve_segments: u32,
    /// Bytes written in full table segments.
    table_bytes: u64,
    promised_bytes: u64,
    sparse: bool,
    /// Data segments whose record in the tables is out of date.
    changed: BTreeSet<u32>,
    /// Something was promised since room was last given back.
    grows: bool,
    /// While the log is replayed an empty segment may still get chunks from a later command.
    replaying: bool,
}

/// Segments by state, for `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentCounts {
    /// Segments that the pool may use.
    pub total: u64,
    /// Free ones.
    pub free: u64,
    /// Waiting for a checkpoint to become free.
    pub pending: u64,
    /// Journal.
    pub journal: u64,
    /// Tables.
    pub table: u64,
    /// Chunks.
    pub data: u64,
}

impl Space {
    pub fn new(segment_count: u32, sparse: bool) -> Self {
        let mut entries = vec![FREE; ANCHORS as usize];
        for entry in &mut entries {
            entry.state = State::Full(Stream::Journal);
        }
        Self {
            entries,
            free: BTreeSet::new(),
            prepared: BTreeSet::new(),
            started: BTreeSet::new(),
            held: BTreeSet::new(),
            suspect: 0..0,
            tails: BTreeMap::new(),
            lacks_host_room: false,
            gaps: Vec::new(),
            pending: Vec::new(),
            segment_count,
            reserve_segments: (segment_count / 16).clamp(12, 96),
            table_bytes: 0,
            promised_bytes: 0,
            sparse,
            changed: BTreeSet::new(),
            grows: false,
            replaying: true,
        }
    }

    /// The log has been replayed: data segments that nothing refers to are retired, now and from now on.
    pub fn end_replay(&mut self) {
        self.replaying = false;
        for index in ANCHORS..self.entries.len() as u32 {
            self.release_if_empty(SegmentId(index));
        }
    }

    pub fn reserve_segments(&self) -> u32 {
        self.reserve_segments
    }

    pub fn segment_count(&self) -> u32 {
        self.segment_count
    }

    pub fn entry(&self, segment: SegmentId) -> Option<&Entry> {
        self.entries.get(segment.0 as usize)
    }

    pub fn seq(&self, segment: SegmentId) -> Option<SegmentSeq> {
        self.entry(segment).map(|entry| entry.seq)
    }

    pub fn entries(&self) -> impl Iterator<Item = (SegmentId, &Entry)> {
        self.entries
            .iter()
            .enumerate()
            .skip(ANCHORS as usize)
            .map(|(index, entry)| (SegmentId(index as u32), entry))
    }

    fn entry_mut(&mut self, segment: SegmentId) -> &mut Entry {
        let index = segment.0 as usize;
        while self.entries.len() <= index {
            if self.entries.len() >= ANCHORS as usize {
                self.free.insert(self.entries.len() as u32);
            }
            self.entries.push(FREE);
        }
        &mut self.entries[index]
    }

    fn free_segments(&self) -> u64 {
        self.free.len() as u64 + u64::from(self.segment_count) - self.entries.len() as u64
    }

    /// Bytes that could be promised now. Beside the reserve, room is kept for the largest merge of tables.
    pub fn available_bytes(&self) -> u64 {
        let merge = self.table_bytes.div_ceil(u64::from(SEGMENT_BYTES));
        let kept = u64::from(self.reserve_segments) + merge.min(MERGE_SEGMENTS_MAX);
        (self.free_segments().saturating_sub(kept) * SEGMENT_PAYLOAD_BYTES)
            .saturating_sub(self.promised_bytes)
    }

    /// Whether three quarters of the reserve are free, beside the room for a merge.
    pub fn has_room_to_delete(&self) -> bool {
        let merge = self.table_bytes.div_ceil(u64::from(SEGMENT_BYTES));
        let kept = u64::from(self.reserve_segments) * 3 / 4 + merge.min(MERGE_SEGMENTS_MAX);
        self.free_segments() > kept
    }

    /// Free segments that must be left when one is handed out.
    fn floor(&self, purpose: Purpose) -> u64 {
        let reserve = u64::from(self.reserve_segments);
        match purpose {
            Purpose::Data => reserve / 2,
            Purpose::Compaction => reserve / 2 + self.promised_segments(),
            Purpose::Cleaning => reserve / 4,
            Purpose::Upkeep => 0,
        }
    }

    fn promised_segments(&self) -> u64 {
        self.promised_bytes.div_ceil(SEGMENT_PAYLOAD_BYTES)
    }

    /// Hands out a free segment that has room on the host.
    pub fn take(
        &mut self,
        device: &dyn Device,
        stream: Stream,
        purpose: Purpose,
        seq: SegmentSeq,
    ) -> Result<SegmentId, NoSpaceOr<DeviceError>> {
        if self.free_segments() <= self.floor(purpose) {
            return Err(NoSpaceOr::NoSpace(self.no_space(u64::from(SEGMENT_BYTES))));
        }
        // What the host has set aside for promised data is left to those while it has other room; and to what frees room
        // some is left also when it has none.
        let kept = match purpose {
            Purpose::Compaction | Purpose::Cleaning if self.sparse => PREPARED_FOR_UPKEEP,
            _ => 0,
        };
        let spare = self.prepared.len() > self.promised_segments() as usize + kept;
        if !(purpose == Purpose::Data || spare) && self.pick().is_some() {
            match self.prepare_one(device, Room::Whole) {
                Ok(()) => {}
                Err(NoSpaceOr::NoSpace(_)) if self.prepared.len() > kept || kept == 0 => {}
                Err(error) => return Err(error),
            }
        }
        if self.prepared.is_empty() {
            match self.prepare_one(device, Room::Whole) {
                Err(NoSpaceOr::NoSpace(no_space)) if purpose == Purpose::Upkeep => {
                    if !self.prepare_one_with_room(device)? {
                        return Err(NoSpaceOr::NoSpace(no_space));
                    }
                }
                result => result?,
            }
        }
        let segment = SegmentId(self.prepared.pop_first().expect("prepared just above"));
        self.hand_out(segment, stream, seq);
        Ok(segment)
    }

    fn hand_out(&mut self, segment: SegmentId, stream: Stream, seq: SegmentSeq) {
        self.entry_mut(segment);
        self.free.remove(&segment.0);
        debug_assert!(
            !self.held.contains(&segment.0),
            "prepared segments are not held"
        );
        *self.entry_mut(segment) = Entry {
            seq,
            is_started: true,
            state: State::Open(stream),
            ..FREE
        };
    }

    /// Hands out a free segment for tables of which at least the first [`START_BYTES`] have room on the host; for more ask
    /// [`Space::complete`].
    pub fn take_start(
        &mut self,
        device: &dyn Device,
        purpose: Purpose,
        seq: SegmentSeq,
    ) -> Result<SegmentId, NoSpaceOr<DeviceError>> {
        let is_wanted = self.sparse && self.free_segments() > self.floor(purpose);
        let kept = match purpose {
            Purpose::Upkeep => 0,
            _ => STARTED_FOR_UPKEEP,
        };
        if is_wanted && self.started.len() <= STARTED_KEPT && self.pick().is_some() {
            match self.prepare_one(device, Room::Start) {
                Ok(()) | Err(NoSpaceOr::NoSpace(_)) => {}
                Err(error) => return Err(error),
            }
        }
        if !is_wanted || self.started.len() <= kept {
            return self.take(device, Stream::Table, purpose, seq);
        }
        let segment = SegmentId(self.started.pop_first().expect("counted just above"));
        self.hand_out(segment, Stream::Table, seq);
        self.entry_mut(segment).hollow = true;
        Ok(segment)
    }

    /// Gives a segment that was handed out with its start alone the rest, if `used` bytes need it.
    pub fn complete(
        &mut self,
        device: &dyn Device,
        segment: SegmentId,
        used: u32,
    ) -> Result<(), NoSpaceOr<DeviceError>> {
        if used <= START_BYTES || !self.entry_mut(segment).hollow {
            return Ok(());
        }
        match device.prepare(segment, 1) {
            Ok(()) => {
                self.entry_mut(segment).hollow = false;
                Ok(())
            }
            Err(DeviceError::NoSpace { .. }) => {
                // The host may have given a part of it.
                let cut = device.discard_from(segment, START_BYTES);
                cut.map_err(NoSpaceOr::Other)?;
                Err(NoSpaceOr::NoSpace(NoSpace {
                    needed_bytes: u64::from(used),
                    available_bytes: 0,
                }))
            }
            Err(error) => Err(NoSpaceOr::Other(error)),
        }
    }

    /// The free segment to prepare next: one that still has room on the host, else the lowest.
    fn pick(&self) -> Option<SegmentId> {
        let is_prepared = |index: &&u32| self.is_prepared(SegmentId(**index));
        self.held
            .first()
            .or_else(|| self.free.iter().find(|index| !is_prepared(index)))
            .copied()
            .or_else(|| {
                ((self.entries.len() as u32) < self.segment_count)
                    .then_some(self.entries.len() as u32)
            })
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
            .ok_or_else(|| NoSpaceOr::NoSpace(self.no_space(u64::from(SEGMENT_BYTES))))?;
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
        Err(NoSpaceOr::NoSpace(NoSpace {
            needed_bytes: u64::from(SEGMENT_BYTES),
            available_bytes: 0,
        }))
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

    /// Whether fewer segments are prepared, or started, than are kept, although there are free ones.
    fn is_short(&self, room: Room) -> bool {
        let is_short = match room {
            Room::Whole => self.prepared.len() < self.promised_segments() as usize + PREPARED_KEPT,
            Room::Start => self.started.len() < STARTED_KEPT,
        };
        self.sparse && is_short && self.pick().is_some()
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
        if !self.restock(device)? {
            self.tails.insert(segment.0, end);
            return Ok(());
        }
        self.entry_mut(segment).hollow = true;
        device.discard_from(segment, end)
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
        self.entry_mut(SegmentId(first.0 + count - 1));
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
        let used = self.entries.len() as u32;
        let joins = |index: &u32| {
            let is_prepared = self.is_prepared(SegmentId(*index));
            *index >= used || (self.free.contains(index) && !is_prepared)
        };
        1 + (first.0 + 1..end).take_while(joins).count() as u32
    }

    /// Free segments that are kept prepared beside what is promised while the pool is in use.
    fn kept(&self) -> usize {
        let ahead = (self.entries.len() / 16).min(PREPARED_AHEAD_MAX);
        PREPARED_KEPT + if self.grows { ahead } else { 0 }
    }

    /// What nobody needs has been given back; what is promised from now on makes the pool grow again.
    pub fn end_trim(&mut self) {
        self.grows = false;
    }

    /// On a host that is full: looks for a free segment that the host gave room to for an earlier process, which ended
    /// before it used it or gave it back.
    fn prepare_one_with_room(
        &mut self,
        device: &dyn Device,
    ) -> Result<bool, NoSpaceOr<DeviceError>> {
        if !self.sparse {
            return Ok(false);
        }
        let end = self.entries.len() as u32;
        let beyond = end..end.saturating_add(ROOM_SEARCHED).min(self.segment_count);
        let count = ROOM_SEARCHED as usize;
        let lowest = self.free.iter().take(count);
        let highest = self.free.iter().rev().take(count);
        let candidates: Vec<u32> = lowest.chain(highest).copied().chain(beyond).collect();
        self.one_is_given_room(device, candidates, Room::Whole)
    }

    fn no_space(&self, needed_bytes: u64) -> NoSpace {
        NoSpace {
            needed_bytes,
            available_bytes: self.available_bytes(),
        }
    }

    /// Promises room for `bytes`, on a sparse device by having the host give it.
    pub fn promise(
        &mut self,
        device: &dyn Device,
        bytes: u64,
    ) -> Result<(), NoSpaceOr<DeviceError>> {
        if bytes > self.available_bytes() {
            return Err(NoSpaceOr::NoSpace(self.no_space(bytes)));
        }
        if self.sparse {
            let needed = (self.promised_bytes + bytes).div_ceil(SEGMENT_PAYLOAD_BYTES) as usize;
            let wanted = needed + PREPARED_KEPT;
            if self.prepared.len() < wanted {
                let count_max = needed + self.kept() - self.prepared.len();
                self.prepare_ahead(device, count_max as u32)
                    .map_err(NoSpaceOr::Other)?;
            }
            // Without room for as many: one at a time, and no more than has to be.
            while self.prepared.len() < wanted {
                if self.pick().is_none() {
                    break;
                }
                self.prepare_one(device, Room::Whole)?;
            }
        }
        self.promised_bytes += bytes;
        self.grows = true;
        Ok(())
    }

    /// Bytes in full table segments.
    pub fn table_bytes(&self) -> u64 {
        self.table_bytes
    }

    pub fn unpromise(&mut self, bytes: u64) {
        self.promised_bytes = self
            .promised_bytes
            .checked_sub(bytes)
            .expect("a reservation is given back once");
    }

    pub fn promised_bytes(&self) -> u64 {
        self.promised_bytes
    }

    /// Gives the room of one segment, or gap in one, that nobody needs back to the host; false when there is none, or the host
    /// has too little for what is kept. An idle pool keeps less, and no gaps: those cost writes more than they give.
    pub fn trim_one(&mut self, device: &dyn Device, is_idle: bool) -> Result<bool, DeviceError> {
        if !self.restock(device)? {
            return Ok(false);
        }
        if let Some((index, end)) = self.tails.pop_first() {
            self.cut_tail(device, SegmentId(index), end)?;
            return Ok(true);
        }
        if let Some(index) = self.held.pop_last().or_else(|| self.superfluous(is_idle)) {
            device.discard_from(SegmentId(index), 0)?;
            return Ok(true);
        }
        while is_idle && let Some(gap) = self.gaps.pop() {
            let entry = self.entry_mut(gap.segment);
            if entry.seq == gap.seq && matches!(entry.state, State::Full(_)) {
                entry.hollow = true;
                // Its start has room as long as no gap reaches into it.
                entry.is_started &= gap.range.start >= START_BYTES;
                device.discard(gap.segment, gap.range)?;
                return Ok(true);
            }
        }
        Ok(false)
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

    /// There is nothing in `range` of a segment that is about to be closed.
    pub fn note_gap(&mut self, segment: SegmentId, seq: SegmentSeq, range: Range<u32>) {
        if self.sparse && range.len() >= GAP_BYTES_MIN as usize && self.gaps.len() < GAPS_MAX {
            self.gaps.push(Gap {
                segment,
                seq,
                range,
            });
        }
    }

    /// A segment that is prepared, or may be so by an earlier process, and that no promise needs.
    fn superfluous(&mut self, is_idle: bool) -> Option<u32> {
        if !self.sparse {
            return None;
        }
        let kept = if is_idle { PREPARED_KEPT } else { self.kept() };
        if self.prepared.len() > self.promised_segments() as usize + kept {
            return self.prepared.pop_last();
        }
        // What has been used since is known for what it is.
        let used = self.entries.len() as u32;
        self.suspect.start = self.suspect.start.max(used);
        self.suspect.next()
    }

    /// Finds out which free segments still have room on the host from the process before, which kept some for this one.
    pub fn find_room(&mut self, device: &dyn Device, was_clean: bool) -> Result<(), DeviceError> {
        if !self.sparse {
            return Ok(());
        }
        let room = match device.host_room() {
            Ok(Some(room)) => room,
            unknown => {
                if let Err(error) = unknown {
                    tracing::warn!(%error, "what room the pool's file has is looked for");
                }
                return self.try_for_room(device, was_clean);
            }
        };
        for HostRoom {
            segment,
            start_bytes,
        } in room
        {
            if segment.0 >= self.segment_count || !self.is_free(segment) {
                continue;
            }
            self.entry_mut(segment);
            self.held.insert(segment.0);
            let is_whole = start_bytes == SEGMENT_BYTES;
            let given = if is_whole && self.prepared.len() < PREPARED_KEPT {
                self.is_given_room(device, segment, Room::Whole)
            } else if !is_whole && start_bytes >= START_BYTES && self.started.len() < STARTED_KEPT {
                self.is_given_room(device, segment, Room::Start)
            } else {
                continue;
            };
            match given {
                Ok(_) | Err(NoSpaceOr::NoSpace(_)) => {}
                Err(NoSpaceOr::Other(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// As above where the host does not tell: on one that is full only what has room can be prepared.
    fn try_for_room(&mut self, device: &dyn Device, was_clean: bool) -> Result<(), DeviceError> {
        // One that was closed has given back all but what is kept.
        if !was_clean {
            self.hold_free();
        }
        let end = self.entries.len() as u32;
        let beyond = end..end.saturating_add(ROOM_SEARCHED).min(self.segment_count);
        let used = self.free.iter().take(ROOM_TRIED).copied();
        let candidates: Vec<u32> = used.chain(beyond).collect();
        for room in [Room::Whole, Room::Start] {
            for index in &candidates {
                if !self.is_short(room) {
                    break;
                }
                if self.is_prepared(SegmentId(*index)) {
                    continue;
                }
                match self.is_given_room(device, SegmentId(*index), room) {
                    Ok(_) | Err(NoSpaceOr::NoSpace(_)) => {}
                    Err(NoSpaceOr::Other(error)) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// What is free may still have room on the host.
    fn hold_free(&mut self) {
        self.held = self.free.clone();
        let used = self.entries.len() as u32;
        self.suspect = used..used.saturating_add(SUSPECTS).min(self.segment_count);
    }

    /// Whether there are segments that are on the way to become the host's room again.
    pub fn has_room_to_come(&self) -> bool {
        !self.pending.is_empty() || !self.held.is_empty()
    }

    /// Bytes of free segments that the host has not got back yet.
    pub fn held_bytes(&self) -> u64 {
        self.held.len() as u64 * u64::from(SEGMENT_BYTES)
    }

    /// An open segment is full.
    pub fn close(&mut self, segment: SegmentId, used_bytes: u32) {
        let entry = self.entry_mut(segment);
        let State::Open(stream) = entry.state else {
            panic!("{segment:?} is closed in state {:?}", entry.state);
        };
        entry.state = State::Full(stream);
        entry.used_bytes = used_bytes;
        let table_bytes = entry.table_bytes();
        self.table_bytes += table_bytes;
        self.changed.insert(segment.0);
        self.release_if_empty(segment);
    }

    pub fn set_used(&mut self, segment: SegmentId, used_bytes: u32) {
        self.entry_mut(segment).used_bytes = used_bytes;
        self.changed.insert(segment.0);
    }

    /// Marks a segment as in use while a pool is being opened.
    pub fn claim(&mut self, segment: SegmentId, entry: Entry) {
        self.entry_mut(segment);
        self.free.remove(&segment.0);
        self.prepared.remove(&segment.0);
        self.started.remove(&segment.0);
        self.held.remove(&segment.0);
        self.table_bytes += entry.table_bytes();
        self.table_bytes -= self.entry_mut(segment).table_bytes();
        *self.entry_mut(segment) = entry;
    }

    /// A command in the log refers to the segment, so it was filled since the checkpoint.
    pub fn claim_replayed(&mut self, segment: SegmentId, seq: SegmentSeq) {
        self.claim(
            segment,
            Entry {
                seq,
                used_bytes: SEGMENT_BYTES,
                hollow: true,
                state: State::Full(Stream::Data),
                ..FREE
            },
        );
        self.changed.insert(segment.0);
    }

    /// Whether the host has room for a free segment, or for its start, for certain.
    pub fn is_prepared(&self, segment: SegmentId) -> bool {
        self.prepared.contains(&segment.0) || self.started.contains(&segment.0)
    }

    pub fn is_free(&self, segment: SegmentId) -> bool {
        self.entry(segment)
            .is_none_or(|entry| entry.state == State::Free)
    }

    /// The content of a segment is no longer needed once the next checkpoint is durable.
    pub fn retire(&mut self, segment: SegmentId) {
        let entry = self.entry_mut(segment);
        assert!(
            matches!(entry.state, State::Open(_) | State::Full(_)),
            "{segment:?} is retired in state {:?}",
            entry.state
        );
        let table_bytes = entry.table_bytes();
        entry.state = State::Pending;
        entry.live_bytes = 0;
        self.table_bytes -= table_bytes;
        self.tails.remove(&segment.0);
        self.changed.insert(segment.0);
        self.pending.push(segment);
    }

    pub fn pin(&mut self, segment: SegmentId) {
        self.entry_mut(segment).pins += 1;
    }

    pub fn unpin(&mut self, segment: SegmentId) {
        let entry = self.entry_mut(segment);
        entry.pins = entry.pins.checked_sub(1).expect("unpinned once a pin");
        self.release_if_empty(segment);
    }

    /// Changes the live bytes of a data segment at a time in milliseconds since 1970. One that becomes empty is retired.
    pub fn add_live(&mut self, segment: SegmentId, delta: i64, now_ms: u64) {
        let entry = self.entry_mut(segment);
        entry.changed_ms = now_ms;
        let live = i64::from(entry.live_bytes) + delta;
        entry.live_bytes = u32::try_from(live).expect("live bytes stay within the segment");
        self.changed.insert(segment.0);
        self.release_if_empty(segment);
    }

    fn release_if_empty(&mut self, segment: SegmentId) {
        if self.replaying {
            return;
        }
        let entry = self.entry_mut(segment);
        if entry.live_bytes == 0
            && entry.pins == 0
            && matches!(entry.state, State::Full(Stream::Data | Stream::ColdData))
        {
            self.retire(segment);
            #[cfg(feature = "planted-bugs")]
            if cfs_format::planted::has(cfs_format::planted::Bug::FreeBeforeDurable) {
                self.take_pending_one(segment);
                self.free(segment);
            }
        }
    }

    pub fn pending_count(&self) -> usize {
        self.pending.len()
    }

    pub fn take_pending(&mut self) -> Vec<SegmentId> {
        std::mem::take(&mut self.pending)
    }

    /// Takes one retired segment out of the list.
    pub fn take_pending_one(&mut self, segment: SegmentId) -> Option<SegmentId> {
        let index = self.pending.iter().rposition(|other| *other == segment)?;
        Some(self.pending.swap_remove(index))
    }

    /// The checkpoint that was to free these failed.
    pub fn put_back_pending(&mut self, retired: Vec<SegmentId>) {
        self.pending.extend(retired);
    }

    /// A segment that was claimed while a pool is being rebuilt holds nothing that is needed.
    pub fn unclaim(&mut self, segment: SegmentId) {
        let entry = self.entry_mut(segment);
        let table_bytes = entry.table_bytes();
        *entry = FREE;
        self.table_bytes -= table_bytes;
        self.tails.remove(&segment.0);
        self.free.insert(segment.0);
    }

    /// A retired segment may be used again. Some keep the room that the host has given them, others give it back later.
    pub fn free(&mut self, segment: SegmentId) {
        let entry = self.entry_mut(segment);
        assert_eq!(entry.state, State::Pending, "{segment:?} is freed");
        let is_whole = !entry.hollow;
        let is_start = entry.hollow && entry.is_started && entry.used_bytes <= START_BYTES;
        *entry = FREE;
        self.free.insert(segment.0);
        if is_whole && self.prepared.len() < self.kept() {
            self.prepared.insert(segment.0);
        } else if is_start && self.sparse && self.started.len() < STARTED_KEPT {
            self.started.insert(segment.0);
        } else {
            self.held.insert(segment.0);
        }
    }

    /// Data segments whose records are out of date, with their entry; free ones have none.
    pub fn take_changed(&mut self) -> Vec<(SegmentId, Entry)> {
        std::mem::take(&mut self.changed)
            .into_iter()
            .map(|index| (SegmentId(index), self.entries[index as usize]))
            .collect()
    }

    /// Where the table contradicts itself: a segment in two states, sums that are not those of their parts.
    pub fn contradictions(&self) -> Vec<(SegmentId, String)> {
        let mut found = Vec::new();
        let pending: BTreeSet<u32> = self.pending.iter().map(|segment| segment.0).collect();
        if pending.len() != self.pending.len() {
            let twice = self.pending[0];
            found.push((twice, "a segment waits twice to become free".to_owned()));
        }
        let mut table_bytes = 0;
        for (segment, entry) in self.entries() {
            table_bytes += entry.table_bytes();
            let is_free = self.free.contains(&segment.0);
            if is_free != (entry.state == State::Free) {
                let sentence = format!(
                    "its state is {:?}, and it is {}among the free ones",
                    entry.state,
                    if is_free { "" } else { "not " }
                );
                found.push((segment, sentence));
            }
            if pending.contains(&segment.0) && entry.state != State::Pending {
                let sentence = format!("its state is {:?}, and it waits to be free", entry.state);
                found.push((segment, sentence));
            }
        }
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
        if table_bytes != self.table_bytes {
            let sentence = format!(
                "table segments hold {table_bytes} bytes, and {} are counted",
                self.table_bytes
            );
            found.push((SegmentId(ANCHORS), sentence));
        }
        found
    }

    pub fn counts(&self) -> SegmentCounts {
        let mut counts = SegmentCounts {
            total: u64::from(self.segment_count),
            free: self.free_segments(),
            pending: self.pending.len() as u64,
            ..SegmentCounts::default()
        };
        for (_, entry) in self.entries() {
            match entry.state {
                State::Open(stream) | State::Full(stream) => match stream {
                    Stream::Journal => counts.journal += 1,
                    Stream::Table => counts.table += 1,
                    Stream::Data | Stream::ColdData => counts.data += 1,
                },
                State::Free | State::Pending => {}
            }
        }
        counts
    }
}

/// No room, or another error.
pub(crate) enum NoSpaceOr<E> {
    NoSpace(NoSpace),
    Other(E),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A gap that reaches into the start of a segment takes the room that the start is believed to have.
    #[test]
    fn a_segment_with_a_gap_at_its_start_is_not_believed_to_have_room_there() {
        for (used, is_believed) in [(2 * BLOCK_BYTES, false), (START_BYTES, true)] {
            let device = cfs_device::MemDevice::new(64);
            let mut space = Space::new(64, true);
            space.end_replay();
            let seq = SegmentSeq(5);
            let taken = space.take(&device, Stream::Data, Purpose::Data, seq);
            let segment = taken.unwrap_or_else(|_| panic!("there is room"));
            space.pin(segment);
            space.note_gap(segment, seq, used..SEGMENT_BYTES - BLOCK_BYTES);
            space.close(segment, used);
            while space.trim_one(&device, true).unwrap() {}
            space.started.clear();
            space.unpin(segment);
            for segment in space.take_pending() {
                space.free(segment);
            }
            assert_eq!(space.started.contains(&segment.0), is_believed, "{used}");
        }
    }

    /// What an earlier process filled may have been lost in a power cut, with the room that the host had given it.
    #[test]
    fn a_segment_that_the_log_names_is_not_believed_to_have_room_on_the_host() {
        let mut space = Space::new(64, true);
        let segment = SegmentId(9);
        space.claim_replayed(segment, SegmentSeq(5));
        space.end_replay();
        for segment in space.take_pending() {
            space.free(segment);
        }
        assert!(space.is_free(segment));
        assert!(!space.is_prepared(segment));
    }
}
