//! The segment table: what state each segment is in, what has been written to it, and what has been promised. Which of them
//! have room on the host, only [`host_room`] knows.
//!
//! Invariants:
//! - A segment is in exactly one state; only `Free` segments are handed out.
//! - A segment whose content is no longer needed is `Pending` until a checkpoint that does not need it is durable;
//!   so replay never meets a segment that was used twice since the checkpoint.
//! - `promised_bytes` is the sum of all living reservations; together with the reserve it never exceeds what is free.

mod host_room;

use std::collections::BTreeSet;

use cfs_device::{Device, DeviceError};
use cfs_format::segment::Stream;
use cfs_format::superblock::ANCHORS;
use cfs_format::{BLOCK_BYTES, SEGMENT_BYTES, SegmentId, SegmentSeq};

use self::host_room::GivenRoom;
pub use self::host_room::OPENING_BYTES;
pub(crate) use self::host_room::START_BYTES;
use crate::error::NoSpace;

/// Bytes of a data segment that can be counted on for chunks: header, footer and the unused end are taken off.
pub(crate) const SEGMENT_PAYLOAD_BYTES: u64 = (SEGMENT_BYTES - 2 * BLOCK_BYTES) as u64 * 7 / 8;

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

    fn is_table(&self) -> bool {
        matches!(
            self.state,
            State::Open(Stream::Table) | State::Full(Stream::Table)
        )
    }
}

const FREE: Entry = Entry {
    seq: SegmentSeq(0),
    live_bytes: 0,
    used_bytes: 0,
    pins: 0,
    changed_ms: 0,
    state: State::Free,
};

/// The largest merge rewrites this many segments at most: level 1 and what goes into it.
const MERGE_SEGMENTS_MAX: u64 = 192;

/// Segments of two checkpoints that follow each other: a run of each tree, two manifests.
const CHECKPOINTS_SEGMENTS: u64 = 8;

/// Segments that small tables come to, however little is in them: runs of a few checkpoints of each tree, what lies below, manifests.
/// Merging keeps them at that, also where a pool is full.
const TABLES_SEGMENTS: u64 = 10;

/// Who asks for a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// User data: leaves the reserve alone.
    Data,
    /// Merging table runs, which gives room back only after a checkpoint: leaves alone what is promised, and half of
    /// the reserve.
    Compaction,
    /// Merging small runs into one, which gives room back after a checkpoint: leaves room for that.
    Consolidation,
    /// Emptying data segments: a quarter of the reserve is left to the log and to checkpoints.
    Cleaning,
    /// Log, memtables, manifests: without these nothing can be freed.
    Upkeep,
}

pub(crate) struct Space {
    /// Segments `0..entries.len()`; those beyond are free.
    entries: Vec<Entry>,
    /// Which segments are free, and what room the host has given.
    pub room: GivenRoom,
    pending: Vec<SegmentId>,
    segment_count: u32,
    reserve_segments: u32,
    /// Bytes written in full table segments.
    table_bytes: u64,
    /// Segments of tables that are not retired.
    table_segments: u64,
    promised_bytes: u64,
    /// Data segments whose record in the tables is out of date.
    changed: BTreeSet<u32>,
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
            room: GivenRoom::new(segment_count, sparse),
            pending: Vec::new(),
            segment_count,
            reserve_segments: (segment_count / 16).clamp(12, 96),
            table_bytes: 0,
            table_segments: 0,
            promised_bytes: 0,
            changed: BTreeSet::new(),
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
        let entry = self.entries.get(segment.0 as usize);
        entry.or_else(|| (segment.0 < self.room.end()).then_some(&FREE))
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
        if self.entries.len() <= index {
            self.entries.resize(index + 1, FREE);
            self.room.extend_to(segment.0 + 1);
        }
        &mut self.entries[index]
    }

    /// Room for the largest merge of tables, without which nothing that is removed from them would give room back.
    pub fn merge_bytes(&self) -> u64 {
        self.merge_segments() * u64::from(SEGMENT_BYTES)
    }

    fn merge_segments(&self) -> u64 {
        let merge = self.table_bytes.div_ceil(u64::from(SEGMENT_BYTES));
        merge.min(MERGE_SEGMENTS_MAX)
    }

    /// Bytes that could be promised now. Beside the reserve, room is kept for the largest merge of tables, and for the tables
    /// that come with what is removed.
    pub fn available_bytes(&self) -> u64 {
        let tables_to_come = TABLES_SEGMENTS.saturating_sub(self.table_segments);
        let kept = u64::from(self.reserve_segments) + self.merge_segments() + tables_to_come;
        (self.room.free_count().saturating_sub(kept) * SEGMENT_PAYLOAD_BYTES)
            .saturating_sub(self.promised_bytes)
    }

    /// Whether less is free than the reserve.
    pub fn uses_reserve(&self) -> bool {
        self.room.free_count() < u64::from(self.reserve_segments)
    }

    /// Whether three quarters of the reserve are free, beside the room for a merge.
    pub fn has_room_to_delete(&self) -> bool {
        let kept = u64::from(self.reserve_segments) * 3 / 4 + self.merge_segments();
        self.room.free_count() > kept
    }

    /// Free segments that must be left when one is handed out.
    fn floor(&self, purpose: Purpose) -> u64 {
        let reserve = u64::from(self.reserve_segments);
        match purpose {
            Purpose::Data => reserve / 2,
            Purpose::Compaction => reserve / 2 + promised_segments(self.promised_bytes) as u64,
            Purpose::Consolidation => CHECKPOINTS_SEGMENTS / 2,
            Purpose::Cleaning => (reserve / 4).max(CHECKPOINTS_SEGMENTS),
            Purpose::Upkeep => 0,
        }
    }

    /// Hands out a free segment that has room on the host.
    pub fn take(
        &mut self,
        device: &dyn Device,
        stream: Stream,
        purpose: Purpose,
        seq: SegmentSeq,
    ) -> Result<SegmentId, NoSpaceOr<DeviceError>> {
        if self.room.free_count() <= self.floor(purpose) {
            return Err(NoSpaceOr::NoSpace(self.no_space(u64::from(SEGMENT_BYTES))));
        }
        let segment = self.room.take(device, purpose)?;
        self.open(segment, stream, seq);
        Ok(segment)
    }

    /// Hands out a free segment for tables of which at least the first [`START_BYTES`] have room on the host; for more ask
    /// [`GivenRoom::complete`].
    pub fn take_start(
        &mut self,
        device: &dyn Device,
        purpose: Purpose,
        seq: SegmentSeq,
    ) -> Result<SegmentId, NoSpaceOr<DeviceError>> {
        if self.room.free_count() > self.floor(purpose)
            && let Some(segment) = self.room.take_start(device, purpose)?
        {
            self.open(segment, Stream::Table, seq);
            return Ok(segment);
        }
        self.take(device, Stream::Table, purpose, seq)
    }

    fn open(&mut self, segment: SegmentId, stream: Stream, seq: SegmentSeq) {
        self.table_segments += u64::from(stream == Stream::Table);
        *self.entry_mut(segment) = Entry {
            seq,
            state: State::Open(stream),
            ..FREE
        };
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
        let promised_bytes = self.promised_bytes + bytes;
        let promised = promised_segments(promised_bytes);
        self.room.promise(device, promised, self.merge_bytes())?;
        self.promised_bytes = promised_bytes;
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
        self.room.unpromise(promised_segments(self.promised_bytes));
    }

    pub fn promised_bytes(&self) -> u64 {
        self.promised_bytes
    }

    /// Whether there are segments that are on the way to become the host's room again.
    pub fn has_room_to_come(&self) -> bool {
        !self.pending.is_empty() || self.room.held_bytes() > 0
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
        self.note_changed(segment);
        self.release_if_empty(segment);
    }

    pub fn set_used(&mut self, segment: SegmentId, used_bytes: u32) {
        self.entry_mut(segment).used_bytes = used_bytes;
        self.note_changed(segment);
    }

    /// The record of a segment is out of date, if it is one that has one: a run of nothing else would take room on a full host.
    fn note_changed(&mut self, segment: SegmentId) {
        if self.entry_mut(segment).is_data() {
            self.changed.insert(segment.0);
        }
    }

    /// Marks a segment as in use while a pool is being opened.
    pub fn claim(&mut self, segment: SegmentId, entry: Entry) {
        self.room.claim(segment);
        self.table_bytes += entry.table_bytes();
        self.table_segments += u64::from(entry.is_table());
        let before = *self.entry_mut(segment);
        self.table_bytes -= before.table_bytes();
        self.table_segments -= u64::from(before.is_table());
        *self.entry_mut(segment) = entry;
    }

    /// A command in the log refers to the segment, so it was filled since the checkpoint.
    pub fn claim_replayed(&mut self, segment: SegmentId, seq: SegmentSeq) {
        self.claim(
            segment,
            Entry {
                seq,
                used_bytes: SEGMENT_BYTES,
                state: State::Full(Stream::Data),
                ..FREE
            },
        );
        self.changed.insert(segment.0);
    }

    pub fn is_free(&self, segment: SegmentId) -> bool {
        self.entry(segment)
            .is_none_or(|entry| entry.state == State::Free)
    }

    /// The content of a segment is no longer needed once the next checkpoint is durable.
    pub fn retire(&mut self, segment: SegmentId) {
        self.note_changed(segment);
        let entry = self.entry_mut(segment);
        assert!(
            matches!(entry.state, State::Open(_) | State::Full(_)),
            "{segment:?} is retired in state {:?}",
            entry.state
        );
        let before = *entry;
        entry.state = State::Pending;
        entry.live_bytes = 0;
        self.table_bytes -= before.table_bytes();
        self.table_segments -= u64::from(before.is_table());
        self.room.retire(segment);
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
        let before = *entry;
        *entry = FREE;
        self.table_bytes -= before.table_bytes();
        self.table_segments -= u64::from(before.is_table());
        self.room.unclaim(segment);
    }

    /// A retired segment may be used again.
    pub fn free(&mut self, segment: SegmentId) {
        let entry = self.entry_mut(segment);
        assert_eq!(entry.state, State::Pending, "{segment:?} is freed");
        let used_bytes = entry.used_bytes;
        *entry = FREE;
        self.room.free(segment, used_bytes);
    }

    /// Segments of tables that nothing durable has ever referred to may be used again at once.
    pub fn free_unused(&mut self, segments: impl Iterator<Item = SegmentId>) {
        for segment in segments {
            self.retire(segment);
            self.take_pending_one(segment);
            self.free(segment);
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
            let is_free = self.room.is_free(segment);
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
        found.extend(self.room.contradictions());
        let tables = self.counts().table;
        if tables != self.table_segments {
            let counted = self.table_segments;
            let sentence = format!("there are {tables} table segments, and {counted} are counted");
            found.push((SegmentId(ANCHORS), sentence));
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
            free: self.room.free_count(),
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

/// Segments that so much takes.
fn promised_segments(bytes: u64) -> usize {
    bytes.div_ceil(SEGMENT_PAYLOAD_BYTES) as usize
}

/// No room, or another error.
pub(crate) enum NoSpaceOr<E> {
    NoSpace(NoSpace),
    Other(E),
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(!space.room.is_prepared(segment));
    }
}
