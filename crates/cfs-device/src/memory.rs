//! A device in memory that misbehaves on command, for simulation.
//!
//! It keeps what reads see, what is durable, and the ordered list of changes between the two. [`MemDevice::power_cut`]
//! makes the device that would be found afterwards: each change that was not flushed is there, or lost, or there in
//! part by sectors of 512 bytes, independently of the others, but for changes of the same sector, which keep their
//! order. Everything is a function of the calls, the [`FaultPlan`] and the seed.
//!
//! Invariants: `visible` is `durable` with all of `changes` applied in order, but for a write that failed, of which
//! both sides know the same part. A change that a failed flush has left in doubt is made durable by no later flush.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use cfs_format::{BLOCK_BYTES, SEGMENT_BYTES, SegmentId};
use parking_lot::Mutex;

use crate::descriptors::{assert_writable, check_readable, failed, last_of};
use crate::{Device, DeviceError, Geometry, HostRoom, HostSpace};

const BLOCK: usize = BLOCK_BYTES as usize;
const SECTOR: usize = 512;
const BLOCKS_PER_SEGMENT: u32 = SEGMENT_BYTES / BLOCK_BYTES;

type Block = Arc<[u8; BLOCK]>;

/// What goes wrong, by the number of the call since the plan was set; the first call has number 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultPlan {
    /// Reads that fail and leave nothing in the buffer.
    pub failing_reads: Vec<u64>,
    /// Reads that fail after filling half of the buffer.
    pub short_reads: Vec<u64>,
    /// Blocks that no read gets, alone or together with others, whatever is written to them; segment and number in it.
    pub refused_blocks: Vec<(SegmentId, u32)>,
    /// Writes that fail; a part of the bytes may have been written.
    pub failing_writes: Vec<u64>,
    /// Flushes that fail; what was not flushed before is then in doubt for ever.
    pub failing_flushes: Vec<u64>,
    /// Flushes that succeed without having done anything.
    pub lying_flushes: Vec<u64>,
    /// The call, of whatever kind, at which the power goes: this one and all after it fail. What it was about to change
    /// is under way, like all that was not flushed.
    pub power_off_at: Option<u64>,
    /// The most blocks that the host has room for.
    pub room_blocks_max: Option<u64>,
}

/// How many calls there have been since the [`FaultPlan`] was set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OperationCounts {
    /// Calls of all kinds: those below, `prepare` and `discard`.
    pub calls: u64,
    /// Calls of `read_at`.
    pub reads: u64,
    /// Calls of `write_at`.
    pub writes: u64,
    /// Calls of `flush`.
    pub flushes: u64,
}

/// The content of a segment at some moment; see [`MemDevice::segment_image`].
#[derive(Clone, Debug, Default)]
pub struct SegmentImage {
    blocks: BTreeMap<u32, Block>,
}

/// A device in memory.
pub struct MemDevice {
    segment_count: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    visible: Image,
    durable: Image,
    changes: Vec<Change>,
    plan: FaultPlan,
    counts: OperationCounts,
    hides_room: bool,
}

/// The segments that take room.
#[derive(Clone, Default)]
struct Image {
    segments: HashMap<u32, Segment>,
    /// Blocks that take room.
    room_blocks: u64,
}

#[derive(Clone, Default)]
struct Segment {
    /// Those that were written.
    blocks: BTreeMap<u32, Block>,
    /// Those that take room, written or not, a bit for each.
    room: [u64; BLOCKS_PER_SEGMENT as usize / 64],
}

impl Segment {
    fn has_room(&self, block: u32) -> bool {
        self.room[block as usize / 64] >> (block % 64) & 1 == 1
    }

    /// Whether the block had none before.
    fn give_room(&mut self, block: u32) -> bool {
        let is_new = !self.has_room(block);
        self.room[block as usize / 64] |= 1 << (block % 64);
        is_new
    }

    /// Whether the block had room, which goes with what was written to it.
    fn discard(&mut self, block: u32) -> bool {
        let had_room = self.has_room(block);
        self.room[block as usize / 64] &= !(1 << (block % 64));
        self.blocks.remove(&block);
        had_room
    }
}

#[derive(Clone)]
struct Change {
    segment: u32,
    kind: ChangeKind,
    state: ChangeState,
}

#[derive(Clone)]
enum ChangeKind {
    Prepare {
        blocks: Range<u32>,
    },
    Write {
        first_block: u32,
        blocks: Vec<Block>,
    },
    Discard {
        blocks: Range<u32>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ChangeState {
    Pending,
    InDoubt,
    Durable,
}

impl MemDevice {
    /// An empty device.
    #[must_use]
    pub fn new(segment_count: u32) -> Self {
        Self {
            segment_count,
            state: Mutex::default(),
        }
    }

    /// Replaces the faults to come and starts counting calls again.
    pub fn set_faults(&self, plan: FaultPlan) {
        let mut state = self.state.lock();
        state.plan = plan;
        state.counts = OperationCounts::default();
    }

    /// From now on the host does not tell what has room, as tmpfs does not.
    pub fn hide_room(&self) {
        self.state.lock().hides_room = true;
    }

    /// Calls since the faults were set.
    #[must_use]
    pub fn counts(&self) -> OperationCounts {
        self.state.lock().counts
    }

    /// The device as it could be found after the power was cut now, without faults to come. This one stays as it is.
    #[must_use]
    pub fn power_cut(&self, seed: u64) -> Self {
        let state = self.state.lock();
        let mut random = SplitMix64(seed);
        let outcome = CutOutcome::choose(&mut random, state.changes.len());
        let mut found = state.durable.clone();
        for (index, change) in state.changes.iter().enumerate() {
            let fate = match change.state {
                ChangeState::Durable => Fate::Kept,
                _ => outcome.fate(index, &mut random),
            };
            match fate {
                Fate::Kept => found.apply(change.segment, &change.kind),
                Fate::Lost => {}
                Fate::Torn => found.apply_in_part(change.segment, &change.kind, &mut random),
            }
        }
        Self {
            segment_count: self.segment_count,
            state: Mutex::new(State {
                visible: found.clone(),
                durable: found,
                hides_room: state.hides_room,
                ..State::default()
            }),
        }
    }

    /// Inverts a bit, at once and for good.
    pub fn flip_bit(&self, segment: SegmentId, byte: u32, bit: u8) {
        assert!(byte < SEGMENT_BYTES && bit < 8, "bit {bit} of byte {byte}");
        let mut state = self.state.lock();
        let block = byte / BLOCK_BYTES;
        let offset = (byte % BLOCK_BYTES) as usize;
        let flip = |block: &mut Block| Arc::make_mut(block)[offset] ^= 1 << bit;
        for change in &mut state.changes {
            if let ChangeKind::Write {
                first_block,
                blocks,
            } = &mut change.kind
                && change.segment == segment.0
                && let Some(index) = block.checked_sub(*first_block)
                && let Some(found) = blocks.get_mut(index as usize)
            {
                flip(found);
            }
        }
        let State {
            visible, durable, ..
        } = &mut *state;
        for image in [visible, durable] {
            flip(image.block_mut(segment.0, block));
        }
    }

    /// The blocks that have been written and not discarded since: segment and number in it, in order.
    #[must_use]
    pub fn written_blocks(&self) -> Vec<(SegmentId, u32)> {
        let state = self.state.lock();
        let mut blocks: Vec<_> = state
            .visible
            .segments
            .iter()
            .flat_map(|(segment, found)| {
                let written = found.blocks.keys();
                written.map(|block| (SegmentId(*segment), *block))
            })
            .collect();
        blocks.sort_unstable();
        blocks
    }

    /// How many blocks take room of the host.
    #[must_use]
    pub fn room_blocks(&self) -> u64 {
        self.state.lock().visible.room_blocks
    }

    /// Offsets of the blocks that hold anything but zeros, by segment, in order.
    #[must_use]
    pub fn filled_blocks(&self) -> BTreeMap<SegmentId, Vec<u32>> {
        let state = self.state.lock();
        let mut written = BTreeMap::new();
        for (segment, found) in &state.visible.segments {
            let offsets: Vec<u32> = found
                .blocks
                .iter()
                .filter(|(_, block)| block.iter().any(|byte| *byte != 0))
                .map(|(index, _)| index * BLOCK_BYTES)
                .collect();
            if !offsets.is_empty() {
                written.insert(SegmentId(*segment), offsets);
            }
        }
        written
    }

    /// What the segment holds now.
    #[must_use]
    pub fn segment_image(&self, segment: SegmentId) -> SegmentImage {
        let state = self.state.lock();
        let found = state.visible.segments.get(&segment.0);
        SegmentImage {
            blocks: found.map_or_else(BTreeMap::new, |found| found.blocks.clone()),
        }
    }

    /// Puts an image, of whatever age and segment, in the place of the segment's content, at once and for good.
    pub fn replace_segment(&self, segment: SegmentId, image: &SegmentImage) {
        let mut state = self.state.lock();
        state.changes.retain(|change| change.segment != segment.0);
        let State {
            visible, durable, ..
        } = &mut *state;
        for target in [visible, durable] {
            target.give_room(segment.0, 0..BLOCKS_PER_SEGMENT);
            let found = target.segments.entry(segment.0).or_default();
            found.blocks.clone_from(&image.blocks);
        }
    }
}

impl Device for MemDevice {
    fn geometry(&self) -> Geometry {
        Geometry {
            segment_count: self.segment_count,
            written_segments: self.segment_count,
            zoned: false,
            sparse: true,
        }
    }

    fn read_at(&self, segment: SegmentId, offset: u32, buf: &mut [u8]) -> Result<(), DeviceError> {
        check_readable(self.segment_count, segment, offset, buf.len())?;
        let mut state = self.state.lock();
        state.counts.reads += 1;
        let number = state.counts.reads;
        if state.begin_call() != Power::On {
            return Err(failed("read", segment, offset, no_power()));
        }
        let blocks = offset / BLOCK_BYTES..(offset + buf.len() as u32).div_ceil(BLOCK_BYTES);
        let mut refused = state.plan.refused_blocks.iter();
        if state.plan.failing_reads.contains(&number)
            || refused.any(|(of, block)| *of == segment && blocks.contains(block))
        {
            return Err(failed("read", segment, offset, injected()));
        }
        if state.plan.short_reads.contains(&number) {
            let half = buf.len() / 2;
            state.visible.read(segment.0, offset, &mut buf[..half]);
            let source = io::Error::from(io::ErrorKind::UnexpectedEof);
            return Err(failed("read", segment, offset, source));
        }
        state.visible.read(segment.0, offset, buf);
        Ok(())
    }

    fn write_at(&self, segment: SegmentId, offset: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        assert_writable(self.segment_count, segment, offset, bytes.len());
        let mut state = self.state.lock();
        state.counts.writes += 1;
        let number = state.counts.writes;
        let power = state.begin_call();
        if power == Power::Off {
            return Err(failed("write", segment, offset, no_power()));
        }
        let (blocks, _) = bytes.as_chunks::<BLOCK>();
        let first_block = offset / BLOCK_BYTES;
        let written = first_block..first_block + blocks.len() as u32;
        if state.room_for(segment, written.clone()) < written.end {
            return Err(DeviceError::NoSpace { segment });
        }
        let write = ChangeKind::Write {
            first_block,
            blocks: blocks.iter().map(|block| Arc::new(*block)).collect(),
        };
        if state.plan.failing_writes.contains(&number) {
            state.write_in_part(segment, write, number);
            return Err(failed("write", segment, offset, injected()));
        }
        state.change(segment, write);
        power.check(|| failed("write", segment, offset, no_power()))
    }

    fn prepare(&self, first: SegmentId, count: u32) -> Result<(), DeviceError> {
        assert_writable(self.segment_count, last_of(first, count), 0, 0);
        let mut state = self.state.lock();
        let power = state.begin_call();
        if power == Power::Off {
            return Err(failed("prepare", first, 0, no_power()));
        }
        for segment in (first.0..first.0 + count).map(SegmentId) {
            state.prepare(segment, BLOCKS_PER_SEGMENT)?;
        }
        power.check(|| failed("prepare", first, 0, no_power()))
    }

    fn prepare_start(&self, segment: SegmentId, bytes: u32) -> Result<(), DeviceError> {
        assert_writable(self.segment_count, segment, 0, bytes as usize);
        let mut state = self.state.lock();
        let power = state.begin_call();
        if power == Power::Off {
            return Err(failed("prepare", segment, 0, no_power()));
        }
        state.prepare(segment, bytes / BLOCK_BYTES)?;
        power.check(|| failed("prepare", segment, 0, no_power()))
    }

    fn discard(&self, segment: SegmentId, range: Range<u32>) -> Result<(), DeviceError> {
        assert_writable(self.segment_count, segment, range.start, range.len());
        let blocks = range.start / BLOCK_BYTES..range.end / BLOCK_BYTES;
        let mut state = self.state.lock();
        let power = state.begin_call();
        if power == Power::Off {
            return Err(failed("discard", segment, range.start, no_power()));
        }
        state.change(segment, ChangeKind::Discard { blocks });
        power.check(|| failed("discard", segment, range.start, no_power()))
    }

    fn flush(&self) -> Result<(), DeviceError> {
        let mut state = self.state.lock();
        state.counts.flushes += 1;
        let number = state.counts.flushes;
        let flush_failed = |source| DeviceError::Io {
            operation: "flush",
            segment: None,
            offset: 0,
            source,
        };
        if state.begin_call() != Power::On {
            return Err(flush_failed(no_power()));
        }
        if state.plan.failing_flushes.contains(&number) {
            state.settle_pending(ChangeState::InDoubt);
            return Err(flush_failed(injected()));
        }
        if !state.plan.lying_flushes.contains(&number) {
            state.settle_pending(ChangeState::Durable);
        }
        Ok(())
    }

    fn host_space(&self) -> Result<Option<HostSpace>, DeviceError> {
        let state = self.state.lock();
        let taken = state.visible.room_blocks;
        let all = u64::from(self.segment_count) * u64::from(BLOCKS_PER_SEGMENT);
        let room = state.plan.room_blocks_max.unwrap_or(all);
        Ok(Some(HostSpace {
            allocated_bytes: taken * u64::from(BLOCK_BYTES),
            available_bytes: room.saturating_sub(taken) * u64::from(BLOCK_BYTES),
        }))
    }

    fn host_room(&self) -> Result<Option<Vec<HostRoom>>, DeviceError> {
        let state = self.state.lock();
        if state.hides_room {
            return Ok(None);
        }
        let room = |(index, segment): (&u32, &Segment)| {
            let mut blocks = 0..BLOCKS_PER_SEGMENT;
            let end = blocks.find(|block| !segment.has_room(*block));
            HostRoom {
                segment: SegmentId(*index),
                start_bytes: end.unwrap_or(BLOCKS_PER_SEGMENT) * BLOCK_BYTES,
            }
        };
        let mut rooms: Vec<HostRoom> = state.visible.segments.iter().map(room).collect();
        rooms.sort_unstable_by_key(|room| room.segment);
        Ok(Some(rooms))
    }
}

/// Whether there is power for a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Power {
    On,
    /// It goes during the call.
    Going,
    Off,
}

impl Power {
    fn check(self, error: impl FnOnce() -> DeviceError) -> Result<(), DeviceError> {
        match self {
            Self::On => Ok(()),
            Self::Going | Self::Off => Err(error()),
        }
    }
}

impl State {
    /// Counts a call.
    fn begin_call(&mut self) -> Power {
        self.counts.calls += 1;
        match self.plan.power_off_at {
            Some(at) if self.counts.calls == at => Power::Going,
            Some(at) if self.counts.calls > at => Power::Off,
            _ => Power::On,
        }
    }

    /// The end of what the host has room for of these blocks, one after the other.
    fn room_for(&self, segment: SegmentId, blocks: Range<u32>) -> u32 {
        let Some(max) = self.plan.room_blocks_max else {
            return blocks.end;
        };
        let mut left = max.saturating_sub(self.visible.room_blocks);
        let found = self.visible.segments.get(&segment.0);
        for block in blocks.clone() {
            if found.is_some_and(|found| found.has_room(block)) {
                continue;
            }
            match left.checked_sub(1) {
                Some(less) => left = less,
                None => return block,
            }
        }
        blocks.end
    }

    /// Gives the first blocks of a segment room. What there was room for stays when it fails, as `fallocate` may leave it.
    fn prepare(&mut self, segment: SegmentId, count: u32) -> Result<(), DeviceError> {
        let end = self.room_for(segment, 0..count);
        self.change(segment, ChangeKind::Prepare { blocks: 0..end });
        match end == count {
            true => Ok(()),
            false => Err(DeviceError::NoSpace { segment }),
        }
    }

    fn change(&mut self, segment: SegmentId, kind: ChangeKind) {
        self.visible.apply(segment.0, &kind);
        self.changes.push(Change {
            segment: segment.0,
            kind,
            state: ChangeState::Pending,
        });
    }

    /// A write that failed: reads see a part of it from now on, and whether that part lasts is in doubt.
    fn write_in_part(&mut self, segment: SegmentId, write: ChangeKind, number: u64) {
        let ChangeKind::Write {
            first_block,
            blocks,
        } = &write
        else {
            return;
        };
        let mut part = Image::default();
        for index in *first_block..*first_block + blocks.len() as u32 {
            if let Some(block) = self.visible.block(segment.0, index) {
                *part.block_mut(segment.0, index) = block.clone();
            }
        }
        part.apply_in_part(segment.0, &write, &mut SplitMix64(number));
        let blocks = (*first_block..*first_block + blocks.len() as u32)
            .map(|index| part.block_mut(segment.0, index).clone())
            .collect();
        self.change(
            segment,
            ChangeKind::Write {
                first_block: *first_block,
                blocks,
            },
        );
        if let Some(change) = self.changes.last_mut() {
            change.state = ChangeState::InDoubt;
        }
    }

    /// Ends the doubt or the waiting of all that is pending, and moves what is durable up to the first change in
    /// doubt into the durable image.
    fn settle_pending(&mut self, outcome: ChangeState) {
        for change in &mut self.changes {
            if change.state == ChangeState::Pending {
                change.state = outcome;
            }
        }
        let settled = self
            .changes
            .iter()
            .take_while(|change| change.state == ChangeState::Durable)
            .count();
        for change in self.changes.drain(..settled) {
            self.durable.apply(change.segment, &change.kind);
        }
    }
}

impl Image {
    fn block(&self, segment: u32, index: u32) -> Option<&Block> {
        self.segments.get(&segment)?.blocks.get(&index)
    }

    fn block_mut(&mut self, segment: u32, index: u32) -> &mut Block {
        self.give_room(segment, index..index + 1);
        let found = self.segments.entry(segment).or_default();
        let block = found.blocks.entry(index);
        block.or_insert_with(|| Arc::new([0; BLOCK]))
    }

    fn give_room(&mut self, segment: u32, blocks: Range<u32>) {
        if blocks.is_empty() {
            return;
        }
        let found = self.segments.entry(segment).or_default();
        let new = blocks.filter(|block| found.give_room(*block)).count();
        self.room_blocks += new as u64;
    }

    /// Takes the room of the blocks that `is_discarded`.
    fn discard(
        &mut self,
        segment: u32,
        blocks: Range<u32>,
        mut is_discarded: impl FnMut() -> bool,
    ) {
        let Some(found) = self.segments.get_mut(&segment) else {
            return;
        };
        for block in blocks {
            if is_discarded() && found.discard(block) {
                self.room_blocks -= 1;
            }
        }
        if found.room.iter().all(|bits| *bits == 0) {
            self.segments.remove(&segment);
        }
    }

    fn read(&self, segment: u32, offset: u32, buf: &mut [u8]) {
        let mut position = offset as usize;
        let mut rest = buf;
        while !rest.is_empty() {
            let within = position % BLOCK;
            let (part, after) = rest.split_at_mut(rest.len().min(BLOCK - within));
            match self.block(segment, (position / BLOCK) as u32) {
                Some(block) => part.copy_from_slice(&block[within..within + part.len()]),
                None => part.fill(0),
            }
            position += part.len();
            rest = after;
        }
    }

    fn apply(&mut self, segment: u32, kind: &ChangeKind) {
        match kind {
            ChangeKind::Prepare { blocks } => self.give_room(segment, blocks.clone()),
            ChangeKind::Write {
                first_block,
                blocks,
            } => {
                let end = *first_block + blocks.len() as u32;
                self.give_room(segment, *first_block..end);
                let found = self.segments.entry(segment).or_default();
                let written = (*first_block..).zip(blocks.iter().cloned());
                found.blocks.extend(written);
            }
            ChangeKind::Discard { blocks } => self.discard(segment, blocks.clone(), || true),
        }
    }

    /// Applies some sectors of a write, or some blocks of a discard: the first few, or any of them.
    fn apply_in_part(&mut self, segment: u32, kind: &ChangeKind, random: &mut SplitMix64) {
        match kind {
            ChangeKind::Prepare { .. } => {}
            ChangeKind::Write {
                first_block,
                blocks,
            } => {
                let sector_count = (blocks.len() * (BLOCK / SECTOR)) as u64;
                let prefix = (random.below(2) == 0).then(|| random.below(sector_count + 1));
                let mut sector = 0;
                for (index, block) in (*first_block..).zip(blocks) {
                    let target = Arc::make_mut(self.block_mut(segment, index));
                    for (old, new) in target.chunks_mut(SECTOR).zip(block.chunks(SECTOR)) {
                        if prefix.map_or_else(|| random.below(2) == 0, |end| sector < end) {
                            old.copy_from_slice(new);
                        }
                        sector += 1;
                    }
                }
            }
            ChangeKind::Discard { blocks } => {
                self.discard(segment, blocks.clone(), || random.below(2) == 1);
            }
        }
    }
}

/// What a power cut does to the changes that were under way.
enum CutOutcome {
    AllLost,
    AllKept,
    /// Kept up to this one, which is torn.
    Prefix(usize),
    Independent,
}

enum Fate {
    Kept,
    Lost,
    Torn,
}

impl CutOutcome {
    /// Independent fates alone would leave the extremes out when many changes are under way.
    fn choose(random: &mut SplitMix64, change_count: usize) -> Self {
        match random.below(8) {
            0 => Self::AllLost,
            1 => Self::AllKept,
            2 | 3 => Self::Prefix(random.below(change_count as u64 + 1) as usize),
            _ => Self::Independent,
        }
    }

    fn fate(&self, index: usize, random: &mut SplitMix64) -> Fate {
        match self {
            Self::AllLost => Fate::Lost,
            Self::AllKept => Fate::Kept,
            Self::Prefix(end) => match index.cmp(end) {
                std::cmp::Ordering::Less => Fate::Kept,
                std::cmp::Ordering::Equal => Fate::Torn,
                std::cmp::Ordering::Greater => Fate::Lost,
            },
            Self::Independent => match random.below(3) {
                0 => Fate::Kept,
                1 => Fate::Lost,
                _ => Fate::Torn,
            },
        }
    }
}

/// The generator of Steele, Lea and Flood (OOPSLA '14).
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; the bias does not matter here.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

fn no_power() -> io::Error {
    io::Error::other("the power is off")
}

fn injected() -> io::Error {
    io::Error::other("injected fault")
}
