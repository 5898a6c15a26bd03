//! Room that nobody needs any more goes back to the host, by itself and in bounded time, and compaction says what it does.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use cfs_device::{Device, FaultPlan, FileDevice, MemDevice};
use cfs_format::segment::{SegmentHeader, Stream};
use cfs_format::{BLOCK_BYTES, DomainId, Fingerprint, SEGMENT_BYTES, SegmentId};
use cfs_seal::codec::Codec;
use cfs_store::{Host, ReclaimFor, Store};

use crate::support::check_counts;
use crate::support::{Put, Shape, TestHost, apply, format, next, open, put};

/// What the pool may take beside its live data and a tenth.
const FIXED_BYTES: u64 = {
    // Two anchors, two of the log, a lane and the cold one, two of dead chunks that are left alone, six that are kept prepared.
    let whole = 2 + 2 + 2 + 2 + 6;
    // Twelve that are kept started, eight of small tables and manifests.
    let starts = 12 + 8;
    whole * SEGMENT_BYTES as u64 + starts * START_BYTES
};
/// What a small table, or a manifest, keeps of the host's room.
const START_BYTES: u64 = 256 << 10;
/// Ticks of a tenth of a second in which it must have come down: a minute.
const TICKS: u32 = 600;

struct World {
    device: Arc<MemDevice>,
    host: Arc<TestHost>,
    store: Arc<Store>,
}

impl World {
    fn new(segment_count: u32) -> Self {
        let device = Arc::new(MemDevice::new(segment_count));
        let host = TestHost::with_clock();
        let (dyn_device, dyn_host): (Arc<dyn Device>, Arc<dyn Host>) =
            (device.clone(), host.clone());
        format(&dyn_device, &dyn_host);
        let store = open(dyn_device, dyn_host);
        Self {
            device,
            host,
            store,
        }
    }

    /// Content that does not shrink, of 4 KiB to 256 KiB.
    fn put(&self, slot: u64, seed: u64) {
        let mut state = seed;
        let len = (4 << 10) + (next(&mut state) % (252 << 10)) as usize;
        let bytes: Vec<u8> = (0..len).map(|_| next(&mut state) as u8).collect();
        self.put_bytes(slot, &bytes);
    }

    /// The slot lets go of what it held.
    fn clear(&self, slot: u64) {
        self.put_bytes(slot, b"nothing");
    }

    fn put_bytes(&self, slot: u64, bytes: &[u8]) {
        self.put_with(Codec::None, slot, bytes);
    }

    fn put_with(&self, codec: Codec, slot: u64, bytes: &[u8]) {
        let pin = self
            .store
            .put_chunk(0, DomainId::DEFAULT, codec, bytes)
            .expect("room");
        let put: Put = (slot, *pin.fingerprint(), pin.new_chunk());
        let command = postcard::to_stdvec(&put).expect("a command");
        let mut txn = self.store.begin();
        apply(&mut txn, &command).expect("applies");
        txn.commit(&command).expect("commits");
    }

    fn tick(&self) {
        self.host.pass_ms(100);
        self.store.tick().expect("a tick");
    }

    fn allocated_bytes(&self) -> u64 {
        let host = self.device.host_space().expect("measured");
        host.expect("sparse").allocated_bytes
    }

    /// Whether the host has got back what it should; and a description.
    fn is_small(&self) -> (bool, String) {
        let (allocated, stats) = (self.allocated_bytes(), self.store.stats());
        let live = stats.live_bytes;
        let allowed = live + live / 10 + FIXED_BYTES;
        let text = format!(
            "{allocated} bytes allocated, {allowed} allowed, {live} live, {} used, {:?}",
            stats.data_used_bytes, stats.segments
        );
        (allocated <= allowed, text)
    }

    #[track_caller]
    fn settle(&self, what: &str) {
        let before = self.allocated_bytes();
        // Until the dead chunks have left the index they count as live.
        (0..5).for_each(|_| self.tick());
        for ticks in 5..TICKS {
            if self.is_small().0 {
                println!(
                    "{what}: from {before}, after {ticks} ticks: {}",
                    self.is_small().1
                );
                return;
            }
            self.tick();
        }
        panic!("{what}: {}", self.is_small().1);
    }
}

/// Half of the chunks of most segments die, then all.
#[test]
fn the_host_gets_its_room_back_without_being_asked() {
    let world = World::new(512);
    let mut state = 11;
    for slot in 1..=2000 {
        world.put(slot, slot);
    }
    let full = world.allocated_bytes();
    assert!(full > 230 << 20, "{full}");
    for slot in 1..=2000 {
        if next(&mut state).is_multiple_of(2) {
            world.clear(slot);
        }
    }
    world.settle("a random half");
    check_counts(&world.store);
    assert!(world.allocated_bytes() < full * 7 / 10);
    assert!(world.store.reclaim_totals().segments > 10);
    for slot in 1..=2000 {
        world.clear(slot);
    }
    world.settle("everything");
    check_counts(&world.store);
    assert!(world.allocated_bytes() <= FIXED_BYTES);
}

/// While somebody uses the pool without a pause, the host still gets most of it.
#[test]
fn a_busy_pool_is_compacted_too() {
    let world = World::new(512);
    for slot in 1..=1000 {
        world.put(slot, slot);
    }
    let full = world.allocated_bytes();
    for slot in (1..=1000).step_by(2) {
        world.clear(slot);
    }
    let mut out = Vec::new();
    let fingerprint = world.store.freeze().chunks().next().expect("a chunk");
    let (fingerprint, _) = fingerprint.expect("readable");
    for _ in 0..TICKS {
        // Somebody reads.
        world
            .store
            .read_chunk(&fingerprint, &mut out)
            .expect("readable");
        world.tick();
    }
    let now = world.allocated_bytes();
    let stats = world.store.stats();
    assert!(
        now < full * 6 / 7,
        "{full} before, {now} now, {stats:?} {:?}",
        world
            .store
            .reclaim_plan(ReclaimFor::Room)
            .expect("readable")
    );
    let dead = stats.data_used_bytes - stats.live_bytes;
    let allowed = stats.live_bytes / 10 + 6 * u64::from(SEGMENT_BYTES);
    assert!(dead <= allowed, "{dead} dead, {stats:?}");
    check_counts(&world.store);
}

/// Of a segment that has just lost chunks more may be lost: it is left alone for a while. Then the emptier ones go first.
#[test]
fn what_is_just_dying_is_not_copied() {
    let world = World::new(512);
    for slot in 1..=1000 {
        world.put(slot, slot);
    }
    for _ in 0..50 {
        world.tick();
    }
    for slot in 1..=1000 {
        world.clear(slot);
        if slot % 10 == 0 {
            world.tick();
        }
    }
    let copied = world.store.reclaim_totals().copied_bytes;
    assert!(copied < 4 << 20, "{copied} bytes of dying data were copied");
    world.settle("everything, little by little");
}

/// A process that is killed leaves segments with room on the host that nobody needs; the next one gives it back.
#[test]
fn room_that_a_killed_process_held_is_given_back() {
    let world = World::new(512);
    for slot in 1..=300 {
        world.put(slot, slot);
    }
    world.store.checkpoint().expect("a checkpoint");
    let promise = world.store.admit(300 << 20).expect("there is room");
    let held = world.allocated_bytes();
    let World {
        device,
        host,
        store,
    } = world;
    // It ends without giving anything back.
    std::mem::forget(promise);
    drop(store);
    let store = open(device.clone(), host.clone());
    let world = World {
        device,
        host,
        store,
    };
    assert!(held > 300 << 20, "{held}");
    world.settle("after a kill");
    check_counts(&world.store);
}

/// The plan tells what a pass does; a pass does it, at once or by ticks, and can be ended.
#[test]
fn a_pass_does_what_its_plan_says() {
    for at_once in [true, false] {
        let world = World::new(512);
        for slot in 1..=1000 {
            world.put(slot, slot);
        }
        for slot in (1..=1000).step_by(3) {
            world.clear(slot);
        }
        let mut ended = 0;
        let stopped = world.store.reclaim_now(ReclaimFor::Room, &mut |progress| {
            ended += 1;
            match progress.done.segments < 3 {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        });
        assert_eq!(stopped.expect("it runs").done.segments, 3);
        assert!(ended > 3);
        let plan = world
            .store
            .reclaim_plan(ReclaimFor::Room)
            .expect("readable");
        let by_tenth: u64 = plan.tenths.iter().map(|tenth| tenth.segments).sum();
        assert!(plan.segments_to_empty > 20 && by_tenth >= plan.segments_to_empty);
        assert!(plan.bytes_to_free > 20 << 20, "{plan:?}");
        let before = world.allocated_bytes();
        let done = match at_once {
            true => world
                .store
                .reclaim_now(ReclaimFor::Room, &mut |_| ControlFlow::Continue(()))
                .expect("it runs"),
            false => {
                world
                    .store
                    .start_reclaim(ReclaimFor::Room)
                    .expect("it starts");
                assert!(world.store.reclaim_progress().is_running);
                let mut ticks = 0;
                while world.store.reclaim_progress().is_running {
                    world.tick();
                    ticks += 1;
                    assert!(ticks < TICKS, "{:?}", world.store.reclaim_progress());
                }
                world.store.reclaim_progress()
            }
        };
        assert!(!done.is_running);
        assert_eq!(done.segments_total, plan.segments_to_empty);
        assert_eq!(done.done.segments, plan.segments_to_empty);
        assert_eq!(done.done.copied_bytes, plan.bytes_to_copy);
        let freed = before - world.allocated_bytes();
        let slack = 6 * u64::from(SEGMENT_BYTES);
        assert!(
            freed + slack >= plan.bytes_to_free && freed <= plan.bytes_to_free + 2 * slack,
            "{freed} freed, {plan:?}"
        );
        let after = world
            .store
            .reclaim_plan(ReclaimFor::Room)
            .expect("readable");
        assert!(after.segments_to_empty <= 1, "{after:?}");
        check_counts(&world.store);
    }
}

/// Fingerprint, salt and codec of each chunk that the index knows.
fn seals(store: &Store) -> BTreeMap<Fingerprint, ([u8; 16], u8)> {
    let mut seals = BTreeMap::new();
    for chunk in store.freeze().chunks() {
        let (fingerprint, record) = chunk.expect("readable");
        let report = store.segment_report(SegmentId(record.segment.get()));
        let records = report.expect("readable").records;
        let sealed = records.iter().find(|(_, header, is_live)| {
            *is_live && header.fingerprint == fingerprint.0 && header.codec == record.codec
        });
        let (_, header, _) = sealed.expect("the record is where the index says");
        seals.insert(fingerprint, (header.salt, header.codec));
    }
    seals
}

/// Every chunk gets a key of its own anew, and the form that is asked for; what damage has made of one stays as it is.
#[test]
fn a_pass_seals_everything_again() {
    for at_once in [true, false] {
        let world = World::new(512);
        let mut contents = BTreeMap::new();
        for slot in 1..=400_u64 {
            let mut state = slot;
            let word = next(&mut state).to_le_bytes();
            let bytes = word.repeat(512 + (next(&mut state) % 30_000) as usize);
            let codec = [Codec::None, Codec::Lz4, Codec::Zstd(3)][slot as usize % 3];
            world.put_with(codec, slot, &bytes);
            contents.insert(slot, bytes);
        }
        world.store.checkpoint().expect("a checkpoint");
        let (before, full) = (seals(&world.store), world.allocated_bytes());
        assert!(full > 40 << 20, "{full}");
        let damaged = *before.keys().nth(200).expect("a chunk");
        let location = world.store.chunk_location(&damaged).expect("readable");
        let location = location.expect("known");
        let segment = SegmentId(location.segment.get());
        world
            .device
            .flip_bit(segment, location.offset.get() + 200, 3);

        for (codec, number) in [(None, None), (Some(Codec::Zstd(1)), Some(2))] {
            let what_for = ReclaimFor::NewSeals(codec);
            let old = seals(&world.store);
            let plan = world.store.reclaim_plan(what_for).expect("readable");
            let done = match at_once {
                true => world
                    .store
                    .reclaim_now(what_for, &mut |_| ControlFlow::Continue(()))
                    .expect("it runs"),
                false => {
                    let room = world.store.start_reclaim(ReclaimFor::Room);
                    room.expect("it starts, and is replaced");
                    world.store.start_reclaim(what_for).expect("it starts");
                    let mut ticks = 0;
                    while world.store.reclaim_progress().is_running {
                        world.tick();
                        ticks += 1;
                        assert!(ticks < TICKS, "{:?}", world.store.reclaim_progress());
                    }
                    world.store.reclaim_progress()
                }
            };
            assert_eq!(done.segments_left, 1, "{done:?}");
            // Of those that were open the plan knows nothing.
            assert!(done.done.segments + 1 >= plan.segments_to_empty, "{done:?}");
            let new = seals(&world.store);
            assert_eq!(new.len(), old.len());
            for (fingerprint, (salt, form)) in &new {
                let (old_salt, old_form) = old[fingerprint];
                let stays = *fingerprint == damaged;
                assert_eq!(*salt == old_salt, stays, "{fingerprint}");
                let expected = number.filter(|_| !stays).unwrap_or(old_form);
                assert_eq!(*form, expected, "{fingerprint}");
            }
        }
        assert!(world.store.is_bad_chunk(&damaged).expect("readable"));
        for _ in 0..100 {
            world.tick();
        }
        assert!(
            // What is kept ready for a full host is in both.
            world.allocated_bytes() < full * 7 / 10,
            "{full} before, {}",
            world.allocated_bytes()
        );

        let World {
            device,
            host,
            store,
        } = world;
        drop(store);
        let store = open(device.clone(), host.clone());
        let mut out = Vec::new();
        let mut read = 0;
        for bytes in contents.values() {
            let secret = store.domain_secret(DomainId::DEFAULT).expect("a domain");
            let fingerprint = secret.fingerprint(bytes);
            match store.read_chunk(&fingerprint, &mut out) {
                Ok(()) => {
                    assert_eq!(&out, bytes);
                    read += 1;
                }
                Err(error) => assert_eq!(fingerprint, damaged, "{error}"),
            }
        }
        assert_eq!(read, contents.len() - 1);
        // Equal content heals it, wherever it lies by now.
        for bytes in contents.values() {
            store
                .put_chunk(0, DomainId::DEFAULT, Codec::Lz4, bytes)
                .expect("room");
        }
        check_counts(&store);
    }
}

/// What is synced after a damaged chunk was met by compaction is there after a power cut: the log does not end at it.
#[test]
fn damage_that_compaction_meets_ends_no_log() {
    let world = World::new(512);
    // All in one segment.
    for slot in 1..=12 {
        world.put(slot, slot);
    }
    world.store.checkpoint().expect("a checkpoint");
    let chunk = world.store.freeze().chunks().nth(6).expect("a chunk");
    let (_, record) = chunk.expect("readable");
    let segment = SegmentId(record.segment.get());
    world.device.flip_bit(segment, record.offset.get() + 300, 3);
    let what_for = ReclaimFor::NewSeals(None);
    world.store.start_reclaim(what_for).expect("it starts");
    world.store.tick().expect("a tick");
    let chunks = world.store.freeze().chunks();
    let moved = chunks.filter(|chunk| {
        let (_, record) = chunk.as_ref().expect("readable");
        record.segment.get() != segment.0
    });
    assert_eq!(moved.count(), 11);
    world.put_bytes(1000, b"acknowledged");
    world.store.sync().expect("synced");
    let fingerprint = {
        let secret = world.store.domain_secret(DomainId::DEFAULT);
        secret.expect("a domain").fingerprint(b"acknowledged")
    };
    let device = Arc::new(world.device.power_cut(7));
    let store = open(device, world.host.clone());
    let mut out = Vec::new();
    store
        .read_chunk(&fingerprint, &mut out)
        .expect("it is there");
    assert_eq!(out, b"acknowledged");
}

/// A pool with little room merges its tables when they are scattered, and then leaves them.
#[test]
fn a_small_pool_rests() {
    let world = World::new(64);
    for slot in 1..=200 {
        world.put(slot, slot);
    }
    let ticks = |count: u32| {
        for _ in 0..count {
            world.host.pass_ms(100);
            world.store.tick().expect("a tick");
        }
        world.device.counts().writes
    };
    let settled = ticks(1000);
    assert_eq!(ticks(1000) - settled, 0);
}

/// What is in a segment whose end could not be written is in no other place, and is read out of memory.
#[test]
fn chunks_stay_readable_when_their_segment_cannot_be_written() {
    let world = World::new(512);
    world.put(1, 1);
    let chunk = world.store.freeze().chunks().next().expect("a chunk");
    let (fingerprint, _) = chunk.expect("readable");
    world.device.set_faults(FaultPlan {
        failing_writes: vec![1],
        ..FaultPlan::default()
    });
    let refused = world.store.start_reclaim(ReclaimFor::NewSeals(None));
    assert!(refused.is_err());
    let mut out = Vec::new();
    world
        .store
        .read_chunk(&fingerprint, &mut out)
        .expect("it is there");
}

/// The tables of a pool from which everything was removed are small again.
#[test]
fn tables_of_what_was_removed_become_small() {
    let world = World::new(512);
    let mut rows = BTreeMap::new();
    for slot in 1..=40_000_u64 {
        let mut txn = world.store.begin();
        let key = cfs_format::table::key(cfs_format::Ino(1 << 40 | slot), 0x10, &[]);
        let mut state = slot;
        let value: Vec<u8> = (0..100).map(|_| next(&mut state) as u8).collect();
        txn.put(key.clone(), value);
        rows.insert(slot, key);
        txn.commit(b"row").expect("commits");
    }
    world.store.checkpoint().expect("a checkpoint");
    let tables = |store: &Store| store.stats().segments.table;
    let full = tables(&world.store);
    for key in rows.into_values() {
        let mut txn = world.store.begin();
        txn.delete(key);
        txn.commit(b"row").expect("commits");
    }
    for _ in 0..TICKS {
        world.tick();
    }
    let now = world.allocated_bytes();
    assert!(
        now <= FIXED_BYTES,
        "{now} bytes allocated, {full} segments of tables before, {} now",
        tables(&world.store)
    );
    assert!(tables(&world.store) <= 4, "{full} {}", tables(&world.store));
}

/// Who looks after a pool is told of tables that cannot be read.
#[test]
fn unreadable_blocks_of_tables_are_counted() {
    let world = World::new(512);
    for slot in 1..=20_000_u64 {
        let mut txn = world.store.begin();
        let mut state = slot;
        let value: Vec<u8> = (0..100).map(|_| next(&mut state) as u8).collect();
        let key = cfs_format::table::key(cfs_format::Ino(1 << 40 | slot), 0x10, &[]);
        txn.put(key, value);
        txn.commit(b"row").expect("commits");
    }
    world.store.checkpoint().expect("a checkpoint");
    assert_eq!(world.store.stats().unreadable_table_blocks, 0);
    let device = &*world.device;
    for segment in 0..device.geometry().segment_count {
        let segment = SegmentId(segment);
        let mut header = [0; BLOCK_BYTES as usize];
        device.read_at(segment, 0, &mut header).expect("readable");
        let is_table =
            SegmentHeader::decode(&header).is_ok_and(|header| header.stream == Stream::Table as u8);
        if is_table {
            let zeros = vec![0; 200 << 10];
            device.write_at(segment, 64 << 10, &zeros).expect("written");
        }
    }
    let mut rows = (1..=20_000_u64).map(|slot| {
        let key = cfs_format::table::key(cfs_format::Ino(1 << 40 | slot), 0x10, &[]);
        world.store.get(&key)
    });
    assert!(rows.any(|row| row.is_err()));
    assert!(world.store.stats().unreadable_table_blocks > 0);
}

/// Segments end with room that no chunk finds place in, and those that were open last are not full.
#[test]
fn the_ends_of_segments_go_back_to_the_host() {
    const CHUNK_BYTES: usize = 200 << 10;
    // Ten to a segment, and half of the last one.
    const CHUNKS: u64 = 85;
    let directory = tempfile::tempdir().expect("a directory");
    let device = FileDevice::create(&directory.path().join("pool"), 256).expect("a pool's file");
    let device: Arc<dyn Device> = Arc::new(device);
    let allocated = || {
        let host = device.host_space().expect("measured");
        host.expect("sparse").allocated_bytes
    };
    let before_prepared = allocated();
    device.prepare(SegmentId(100), 1).expect("room");
    if allocated() == before_prepared {
        eprintln!("SKIPPED: the host's file system does not preallocate");
        return;
    }
    device.discard_from(SegmentId(100), 0).expect("given back");
    let host: Arc<dyn Host> = TestHost::with_clock();
    format(&device, &host);
    let fill = |from: u64, to: u64| {
        let store = open(Arc::clone(&device), Arc::clone(&host));
        for slot in from..to {
            let mut state = slot;
            let bytes: Vec<u8> = (0..CHUNK_BYTES).map(|_| next(&mut state) as u8).collect();
            put(&store, slot, &bytes, Shape::default()).expect("room");
        }
        store.close().expect("closed");
        allocated()
    };
    let before = fill(1, 2);
    let grown = fill(2, 2 + CHUNKS) - before;
    let content = CHUNKS * CHUNK_BYTES as u64;
    // There are two small tables more; with the ends it would be 1.5 MiB more.
    assert!(
        grown <= content + content / 100 + 2 * START_BYTES,
        "{content} bytes of chunks took {grown}"
    );
    let store = open(device.clone(), host);
    check_counts(&store);
}
