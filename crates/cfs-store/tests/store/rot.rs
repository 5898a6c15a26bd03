//! Damage in the log: one block of a batch comes back, more is told; and the end that a power cut leaves is no damage.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use cfs_device::{Device, FaultPlan, MemDevice};
use cfs_format::segment::{SegmentHeader, Stream};
use cfs_format::table::{key, tag};
use cfs_format::{BLOCK_BYTES, Ino, SEGMENT_BYTES, SegmentId};
use cfs_seal::codec::Codec;
use cfs_store::{Host, OpenError, Store, StoreOptions};

use crate::support::{self, Shape, TestHost, format, open, try_open};

/// Commands in the log of a process that was killed, each with a chunk of its own, and synced by itself.
const COMMANDS: u64 = 9;
/// A command with its parity.
const BATCH_BLOCKS: u32 = 2;

/// A pool with a log to replay, and where its first batch lies.
struct Killed {
    device: MemDevice,
    host: Arc<dyn Host>,
    commands: u64,
    segment: SegmentId,
    first_block: u32,
}

/// A command with a chunk of this byte, durable.
fn put(store: &Store, slot: u64, byte: u8) {
    let shape = Shape {
        codec: Codec::None,
        ..Shape::default()
    };
    support::put(store, slot, &[byte; 100], shape).expect("a chunk");
    store.sync().expect("durable");
}

impl Killed {
    fn new() -> Self {
        Self::with(COMMANDS)
    }

    fn with(commands: u64) -> Self {
        let host = TestHost::quick();
        let device = Arc::new(MemDevice::new(128));
        format(&(Arc::clone(&device) as Arc<dyn Device>), &host);
        let store = open(Arc::clone(&device) as Arc<dyn Device>, Arc::clone(&host));
        let position = store.superblock().journal;
        for slot in 1..=commands {
            put(&store, slot, slot as u8);
        }
        drop(store);
        let device = device.power_cut(0);
        Self {
            device,
            host,
            commands,
            segment: SegmentId(position.segment.get()),
            first_block: position.offset.get() / BLOCK_BYTES,
        }
    }

    /// The pool with these blocks refused.
    fn refusing(&self, segment: SegmentId, blocks: Range<u32>) -> Arc<dyn Device> {
        let device = self.device.power_cut(0);
        device.set_faults(FaultPlan {
            refused_blocks: blocks.map(|block| (segment, block)).collect(),
            ..FaultPlan::default()
        });
        Arc::new(device)
    }

    fn block_of(&self, command: u64) -> u32 {
        self.first_block + (command as u32 - 1) * BATCH_BLOCKS
    }

    /// The pool with these blocks of the log's first segment gone.
    fn without(&self, blocks: impl IntoIterator<Item = u32>) -> Arc<dyn Device> {
        self.overwritten(self.segment, blocks, 0xa5)
    }

    fn overwritten(
        &self,
        segment: SegmentId,
        blocks: impl IntoIterator<Item = u32>,
        byte: u8,
    ) -> Arc<dyn Device> {
        let device = self.device.power_cut(0);
        for block in blocks {
            let noise = [byte; BLOCK_BYTES as usize];
            device
                .write_at(segment, block * BLOCK_BYTES, &noise)
                .expect("written");
        }
        device.flush().expect("flushed");
        Arc::new(device)
    }

    fn try_open(
        &self,
        device: &Arc<dyn Device>,
        accept_log_loss: bool,
    ) -> Result<Arc<Store>, OpenError> {
        let options = StoreOptions {
            accept_log_loss,
            ..StoreOptions::default()
        };
        try_open(Arc::clone(device), Arc::clone(&self.host), options)
    }
}

/// How many of the commands are there; they must be the first ones.
fn commands_in(store: &Store) -> u64 {
    commands_of(store, COMMANDS)
}

fn commands_of(store: &Store, commands: u64) -> u64 {
    let is_there = |slot: &u64| {
        let row = store.get(&key(Ino(*slot), tag::EXTENT, &[]));
        row.expect("a table that can be read").is_some()
    };
    let count = (1..=commands).take_while(is_there).count() as u64;
    assert!(
        !(count + 1..=commands).any(|slot| is_there(&slot)),
        "a prefix"
    );
    count
}

#[test]
fn any_block_of_the_log_may_be_lost() {
    let killed = Killed::new();
    let end = killed.block_of(COMMANDS) + BATCH_BLOCKS;
    for block in (0..killed.first_block).chain(killed.first_block..end) {
        let device = killed.without([block]);
        let store = killed.try_open(&device, false).expect("open");
        assert_eq!(commands_in(&store), COMMANDS, "without block {block}");
        // The last batch may as well have been on its way.
        let in_last = block >= killed.block_of(COMMANDS);
        let healed = u64::from(!in_last);
        assert_eq!(store.stats().healed_blocks, healed, "block {block}");
        drop(store);
        if !in_last {
            let (mut now, mut then) = ([0; BLOCK_BYTES as usize], [1; BLOCK_BYTES as usize]);
            let offset = block * BLOCK_BYTES;
            device
                .read_at(killed.segment, offset, &mut now)
                .expect("read");
            let original = killed.device.read_at(killed.segment, offset, &mut then);
            original.expect("read");
            assert!(now == then, "block {block} was written back");
        }
    }
}

#[test]
fn a_hole_in_the_log_is_not_taken_for_its_end() {
    let killed = Killed::new();
    for command in 1..COMMANDS {
        let first = killed.block_of(command);
        let device = killed.without(first..first + BATCH_BLOCKS);
        match killed.try_open(&device, false).map(drop) {
            Err(OpenError::LogDamaged {
                segment,
                offset,
                last_lsn,
                durable_lsn,
            }) => {
                assert_eq!((segment, offset), (killed.segment, first * BLOCK_BYTES));
                assert_eq!(durable_lsn - last_lsn, COMMANDS - command);
            }
            other => panic!("command {command}: {other:?}"),
        }
        let store = killed.try_open(&device, true).expect("told to go on");
        assert_eq!(commands_in(&store), command - 1);
        drop(store);
        let store = killed
            .try_open(&device, false)
            .expect("the loss is settled");
        assert_eq!(commands_in(&store), command - 1);
    }
}

#[test]
fn the_header_of_the_log_lost_twice_is_told() {
    let killed = Killed::new();
    let device = killed.without(0..2);
    let error = killed.try_open(&device, false).map(drop);
    assert!(
        matches!(error, Err(OpenError::LogDamaged { .. })),
        "{error:?}"
    );
    let store = killed.try_open(&device, true).expect("told to go on");
    assert_eq!(commands_in(&store), COMMANDS, "the batches are there");
}

/// What `scrub` puts right while the pool is open: every block of tables, manifests and log that is in use, and the
/// newest superblock record of either anchor.
#[test]
fn scrub_restores_metadata() {
    let killed = Killed::new();
    let device = Arc::new(killed.device.power_cut(0));
    let store = open(
        Arc::clone(&device) as Arc<dyn Device>,
        Arc::clone(&killed.host),
    );
    let read = |segment, block: u32| {
        let mut bytes = vec![0; BLOCK_BYTES as usize];
        let offset = block * BLOCK_BYTES;
        device.read_at(segment, offset, &mut bytes).expect("read");
        bytes
    };
    let scrub = || {
        let mut go_on = |_| ControlFlow::Continue(());
        let report = store.scrub(&mut go_on).expect("scrubbed");
        assert!(report.findings.is_empty(), "{report:?}");
        assert!(report.bad_chunks.is_empty() && !report.stopped);
        report.restored_blocks
    };
    assert_eq!(scrub(), 0, "nothing is damaged yet");
    // A log that the checkpoint after opening does not cover.
    for slot in [3, 5] {
        put(&store, slot, COMMANDS as u8 + slot as u8);
    }
    let position = store.superblock().journal;
    let journal = SegmentId(position.segment.get());
    let mut targets: Vec<(SegmentId, u32)> = Vec::new();
    let mut tables = 0;
    for (segment, block) in device.written_blocks() {
        let report = store.segment_report(segment).expect("a segment");
        let is_table = report.table_entry.starts_with("full (Table)");
        tables += u32::from(is_table && block == 0);
        if is_table || (segment == journal && block < position.offset.get() / BLOCK_BYTES + 2) {
            targets.push((segment, block));
        }
    }
    assert!(tables >= 4, "two manifests, a run of each tree");
    assert!(targets.len() > 20, "{targets:?}");
    for (segment, block) in targets {
        let before = read(segment, block);
        device.flip_bit(segment, block * BLOCK_BYTES + 77, 3);
        assert_eq!(scrub(), 1, "block {block} of segment {segment}");
        assert!(
            read(segment, block) == before,
            "block {block} of segment {segment}"
        );
    }
    let newest = |anchor| {
        let blocks = device.written_blocks().into_iter();
        let blocks = blocks.filter(|(segment, _)| *segment == SegmentId(anchor));
        let written = blocks.filter(|(segment, block)| read(*segment, *block)[0] != 0);
        written.map(|(_, block)| block).max().expect("a record")
    };
    for anchor in [0, 1] {
        device.flip_bit(SegmentId(anchor), newest(anchor) * BLOCK_BYTES + 8, 1);
        assert_eq!(scrub(), 1, "anchor {anchor}");
        assert_eq!(scrub(), 0, "anchor {anchor}");
    }
}

#[test]
fn a_torn_end_is_no_damage() {
    let killed = Killed::new();
    let first = killed.block_of(COMMANDS);
    let device = killed.without(first..first + BATCH_BLOCKS);
    let store = killed.try_open(&device, false).expect("open");
    assert_eq!(commands_in(&store), COMMANDS - 1);
}

/// A power cut makes no block unreadable: what the device refuses where the log should go on may have been acknowledged.
#[test]
fn a_refused_end_is_not_taken_for_the_end() {
    let killed = Killed::new();
    let first = killed.block_of(COMMANDS);
    let device = killed.refusing(killed.segment, first..first + BATCH_BLOCKS);
    let error = killed.try_open(&device, false).map(drop);
    assert!(
        matches!(
            error,
            Err(OpenError::LogDamaged { last_lsn, durable_lsn, .. }) if durable_lsn <= last_lsn
        ),
        "{error:?}"
    );
    let store = killed.try_open(&device, true).expect("told to go on");
    assert_eq!(commands_in(&store), COMMANDS - 1);
    // One block of the batch comes back as ever, and what lies behind the end is nobody's.
    for blocks in [first..first + 1, first + 1..first + 2, first + 3..first + 9] {
        let device = killed.refusing(killed.segment, blocks.clone());
        let store = killed.try_open(&device, false).expect("open");
        assert_eq!(commands_in(&store), COMMANDS, "{blocks:?}");
    }
}

#[test]
fn a_lost_segment_of_the_log_is_not_taken_for_its_end() {
    let killed = Killed::with(600);
    let mut chain = Vec::new();
    for segment in (0..128).map(SegmentId) {
        let mut bytes = [0; BLOCK_BYTES as usize];
        killed.device.read_at(segment, 0, &mut bytes).expect("read");
        let header = SegmentHeader::decode(&bytes).ok();
        let first_lsn = header
            .filter(|header| header.stream == Stream::Journal as u8)
            .map(|header| header.first_lsn.get());
        if let Some(first_lsn) = first_lsn.filter(|lsn| *lsn > 1) {
            chain.push((first_lsn, segment));
        }
    }
    chain.sort_unstable();
    assert_eq!(chain.len(), 2, "three segments, the last two: {chain:?}");
    let (_, second) = chain[0];
    let (_, third) = chain[1];
    let blocks = 0..SEGMENT_BYTES / BLOCK_BYTES;
    for device in [
        killed.refusing(second, blocks.clone()),
        killed.overwritten(second, blocks.clone(), 0),
        killed.overwritten(second, blocks.clone(), 0xa5),
        killed.refusing(third, blocks.clone()),
    ] {
        let error = killed.try_open(&device, false).map(drop);
        assert!(
            matches!(error, Err(OpenError::LogDamaged { .. })),
            "{error:?}"
        );
    }
    let device: Arc<dyn Device> = Arc::new(killed.device.power_cut(0));
    let store = killed.try_open(&device, false).expect("open");
    assert_eq!(commands_of(&store, killed.commands), killed.commands);
}

/// What is written behind a header that is gone could not be found after a crash.
#[test]
fn scrub_moves_the_log_out_of_a_segment_without_header() {
    let killed = Killed::new();
    for with_checkpoint in [false, true] {
        let device = Arc::new(killed.device.power_cut(0));
        let store = open(
            Arc::clone(&device) as Arc<dyn Device>,
            Arc::clone(&killed.host),
        );
        let segment = SegmentId(store.superblock().journal.segment.get());
        for block in 0..2 {
            device.flip_bit(segment, block * BLOCK_BYTES + 20, 1);
        }
        if with_checkpoint {
            store.checkpoint().expect("checkpoint");
        }
        put(&store, COMMANDS + 1, 77);
        let report = store.scrub(&mut |_| ControlFlow::Continue(()));
        let report = report.expect("scrubbed");
        assert_eq!(report.restored_blocks, 1, "{report:?}");
        assert!(report.findings.is_empty(), "{report:?}");
        put(&store, COMMANDS + 2, 78);
        drop(store);
        let found: Arc<dyn Device> = Arc::new(device.power_cut(3));
        let store = killed.try_open(&found, false).expect("open");
        assert_eq!(commands_of(&store, COMMANDS + 2), COMMANDS + 2);
        let report = store.scrub(&mut |_| ControlFlow::Continue(()));
        assert_eq!(report.expect("scrubbed").restored_blocks, 0);
    }
}

#[test]
fn scrub_goes_on_where_the_table_of_chunks_is_damaged() {
    let killed = Killed::new();
    let device = Arc::new(killed.device.power_cut(0));
    let open = || {
        open(
            Arc::clone(&device) as Arc<dyn Device>,
            Arc::clone(&killed.host),
        )
    };
    open().close().expect("closed");
    let store = open();
    for segment in store.freeze().chunk.extents() {
        let segment = SegmentId(segment as u32);
        let written = device.written_blocks().into_iter();
        for (_, block) in written.filter(|(at, block)| *at == segment && *block > 0) {
            device.flip_bit(segment, block * BLOCK_BYTES + 5, 1);
        }
    }
    let report = store.scrub(&mut |_| ControlFlow::Continue(()));
    let report = report.expect("the scrub goes on");
    for id in ["table-block", "chunk-index"] {
        let findings = report.findings.iter();
        assert_eq!(
            findings.filter(|found| found.id == id).count(),
            1,
            "{report:?}"
        );
    }
    assert!(report.bad_chunks.is_empty() && !report.stopped);
}

/// Where its log ends near the end of a segment, more of it was looked for in 2,048 others.
#[test]
fn what_follows_the_log_of_a_closed_pool_is_not_looked_for() {
    let host = TestHost::start();
    let device = Arc::new(MemDevice::new(4000));
    format(&(Arc::clone(&device) as Arc<dyn Device>), &host);
    let mut ends = Vec::new();
    // Two blocks each, and one when the pool is closed.
    for commands in (0..250).step_by(50) {
        let store = open(Arc::clone(&device) as Arc<dyn Device>, Arc::clone(&host));
        for slot in 1..=commands {
            put(&store, slot, (slot + commands) as u8);
        }
        store.close().expect("close");
        ends.push(store.superblock().journal.offset.get());
        drop(store);
        device.set_faults(FaultPlan::default());
        let store = open(Arc::clone(&device) as Arc<dyn Device>, Arc::clone(&host));
        let reads = device.counts().reads;
        assert!(reads < 100, "{reads} reads, the log ends at {ends:?}");
        store.close().expect("close");
    }
    assert!(
        ends.iter().any(|end| *end > SEGMENT_BYTES / 4 * 3),
        "{ends:?}"
    );
}
