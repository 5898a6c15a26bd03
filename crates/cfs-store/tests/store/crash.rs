//! Power cuts: commands and chunks go in, sometimes a write or a flush fails, the device loses, tears or keeps what was not flushed, the pool is opened
//! again and must hold a prefix of the commands that is at least as long as what was synced, with counts that agree
//! with a recount.

use std::collections::BTreeMap;
use std::sync::Arc;

use cfs_device::{Device, FaultPlan, MemDevice};
use cfs_format::superblock::ChunkParams;
use cfs_format::table::key;
use cfs_format::{DomainId, Fingerprint, Ino};
use cfs_seal::codec::Codec;
use cfs_store::{Health, Host, OpenError, Store, StoreOptions, WriteError};

use crate::support::{
    Shape, TestHost, check_counts, format, format_with, next, open, put, try_open,
};

fn content(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let len = 1 + (next(&mut state) % 60_000) as usize;
    (0..len).map(|_| (next(&mut state) % 7) as u8).collect()
}

fn run(seed: u64) {
    let mut state = seed;
    let host = TestHost::start();
    let mut device = Arc::new(MemDevice::new(128));
    format(&(Arc::clone(&device) as Arc<dyn Device>), &host);
    // What was done, in order; and how much of it was synced.
    let mut history: Vec<(u64, u64)> = Vec::new();
    let mut synced = 0;
    for round in 0..4 {
        let store = open(Arc::clone(&device) as Arc<dyn Device>, Arc::clone(&host));
        let mut now = BTreeMap::new();
        let lo = key(Ino(1), 0, &[]);
        let rows: BTreeMap<u64, Fingerprint> = store
            .range(&lo, &[0xff; 9])
            .map(|row| {
                let (key, value) = row.expect("row");
                (
                    u64::from_be_bytes(key[..8].try_into().expect("8 bytes")),
                    Fingerprint(value[..32].try_into().expect("32 bytes")),
                )
            })
            .collect();
        let secret = store.domain_secret(DomainId::DEFAULT).expect("domain");
        let matches = |len: usize| {
            let mut model: BTreeMap<u64, u64> = BTreeMap::new();
            for (slot, seed) in &history[..len] {
                model.insert(*slot, *seed);
            }
            let model: BTreeMap<u64, Fingerprint> = model
                .into_iter()
                .map(|(slot, seed)| (slot, secret.fingerprint(&content(seed))))
                .collect();
            model == rows
        };
        let kept = (synced..=history.len())
            .find(|len| matches(*len))
            .unwrap_or_else(|| {
                panic!(
                    "seed {seed} round {round}: not a prefix of what was done (synced {synced} of {})",
                    history.len()
                )
            });
        history.truncate(kept);
        for (slot, seed) in &history {
            now.insert(*slot, *seed);
        }
        check_counts(&store);
        let fails = next(&mut state).is_multiple_of(2);
        if fails {
            let mut plan = FaultPlan::default();
            let nth = 1 + next(&mut state) % 12;
            if next(&mut state).is_multiple_of(2) {
                plan.failing_flushes.push(nth);
            } else {
                plan.failing_writes.push(nth);
            }
            device.set_faults(plan);
        }
        for _ in 0..next(&mut state) % 120 {
            let step = (|| -> Result<(), WriteError> {
                match next(&mut state) % 16 {
                    0 => {
                        store.sync()?;
                        synced = history.len();
                    }
                    1 => store.tick()?,
                    2 if next(&mut state).is_multiple_of(4) => {
                        store.checkpoint()?;
                        synced = history.len();
                    }
                    _ => {
                        let slot = 1 + next(&mut state) % 20;
                        let seed = next(&mut state) % 40;
                        put(&store, slot, &content(seed), Shape::default())?;
                        history.push((slot, seed));
                    }
                }
                Ok(())
            })();
            if let Err(error) = step {
                assert!(fails, "seed {seed}: {error}");
                assert!(matches!(store.health(), Health::ReadOnly { .. }));
                break;
            }
        }
        if store.health() == Health::Good {
            check_counts(&store);
            if next(&mut state).is_multiple_of(3) && store.close().is_ok() {
                synced = history.len();
            }
        }
        drop(store);
        device = Arc::new(device.power_cut(next(&mut state)));
    }
}

#[test]
fn a_power_cut_leaves_a_prefix() {
    let seeds = match std::env::var("CFS_SEED") {
        Ok(seed) => {
            let seed: u64 = seed.parse().expect("CFS_SEED is a number");
            seed..seed + 1
        }
        Err(_) => 0..60,
    };
    for seed in seeds {
        let result = std::panic::catch_unwind(|| run(seed));
        if result.is_err() {
            panic!(
                "failed with seed {seed}; replay: CFS_SEED={seed} cargo test --release -p cfs-store --test store"
            );
        }
    }
}

/// Each chunk is handed to the device alone, so that padding fills the segments to their last block.
#[test]
fn padding_leaves_room_for_the_footer() {
    let host = TestHost::start();
    let device = Arc::new(MemDevice::new(128));
    format(&(Arc::clone(&device) as Arc<dyn Device>), &host);
    let store = open(Arc::clone(&device) as Arc<dyn Device>, Arc::clone(&host));
    let mut state = 7;
    for slot in 1..=2_000 {
        let mut content = vec![0; 1 + (next(&mut state) % 5_000) as usize];
        content.fill_with(|| next(&mut state) as u8);
        let shape = Shape {
            codec: Codec::None,
            ..Shape::default()
        };
        put(&store, slot, &content, shape).expect("a chunk");
        store.write_log().expect("written");
    }
    check_counts(&store);
    let mut full = 0;
    for (segment, _) in store.freeze().segments {
        let report = store.segment_report(segment).expect("a report");
        let Some(footer) = report.footer else {
            continue;
        };
        let listed: Vec<_> = footer
            .expect("an undamaged footer")
            .iter()
            .map(|entry| (entry.offset.get(), entry.fingerprint))
            .collect();
        let records = report.records.iter();
        let found: Vec<_> = records
            .map(|(offset, header, _)| (*offset, header.fingerprint))
            .collect();
        assert!(listed == found, "{segment:?}");
        full += 1;
    }
    assert!(full > 1, "{full} full segments");
    drop(store);
    let store = open(Arc::new(device.power_cut(1)), host);
    check_counts(&store);
}

/// Who brings the content of a chunk that can no longer be opened repairs it for all who refer to it.
#[test]
fn a_damaged_chunk_is_stored_again() {
    let host = TestHost::start();
    let device = Arc::new(MemDevice::new(128));
    let reopen =
        |device: &Arc<MemDevice>| open(Arc::clone(device) as Arc<dyn Device>, Arc::clone(&host));
    let put = |store: &Store, slot: u64| {
        put(store, slot, &content(1), Shape::default()).expect("a chunk")
    };
    format(&(Arc::clone(&device) as Arc<dyn Device>), &host);
    let store = reopen(&device);
    let (fingerprint, new) = put(&store, 1);
    store.close().expect("closed");
    drop(store);
    let new = new.expect("it was not there before");
    device.flip_bit(new.segment, new.offset + 200, 3);

    let store = reopen(&device);
    let mut out = Vec::new();
    let damaged = store.read_chunk(&fingerprint, &mut out);
    assert!(damaged.is_err(), "the flipped bit is noticed");
    put(&store, 2);
    store
        .read_chunk(&fingerprint, &mut out)
        .expect("whole again");
    assert!(out == content(1));
    check_counts(&store);
    store.sync().expect("durable");
    drop(store);
    let store = reopen(&Arc::new(device.power_cut(1)));
    store.read_chunk(&fingerprint, &mut out).expect("whole");
    assert!(out == content(1));
    check_counts(&store);
}

/// A process that is killed as soon as its flush is done has said that it was: damage to a chunk then costs that chunk.
#[test]
fn damage_behind_the_last_flush_costs_no_other_command() {
    let host = TestHost::with_clock();
    let device = Arc::new(MemDevice::new(128));
    let reopen = |device: &Arc<MemDevice>| {
        let host = Arc::clone(&host) as Arc<dyn Host>;
        open(Arc::clone(device) as Arc<dyn Device>, host)
    };
    format(
        &(Arc::clone(&device) as Arc<dyn Device>),
        &(Arc::clone(&host) as Arc<dyn Host>),
    );
    let store = reopen(&device);
    let put = |slot: u64| put(&store, slot, &content(slot), Shape::default()).expect("a chunk");
    let (damaged, new) = put(1);
    let (whole, _) = put(2);
    host.pass_ms(10);
    store.sync().expect("durable");
    drop(store);
    let new = new.expect("it was not there before");
    device.flip_bit(new.segment, new.offset + 200, 3);

    let store = reopen(&device);
    let mut out = Vec::new();
    store.read_chunk(&whole, &mut out).expect("it is there");
    assert!(out == content(2));
    let error = store.read_chunk(&damaged, &mut out);
    assert!(error.is_err(), "the flipped bit is noticed");
}

/// What an authentic superblock says of chunks is checked before anything relies on it.
#[test]
fn impossible_lengths_of_chunks_are_refused() {
    let host = TestHost::start();
    let refused = |min: u32, avg: u32, max: u32, algorithm: u32| {
        let device: Arc<dyn Device> = Arc::new(MemDevice::new(128));
        let chunk = ChunkParams {
            min: min.into(),
            avg: avg.into(),
            max: max.into(),
            algorithm: algorithm.into(),
        };
        format_with(&device, &host, chunk);
        match try_open(device, Arc::clone(&host), StoreOptions::default()) {
            Ok(_) => false,
            Err(OpenError::Superblock(_)) => true,
            Err(error) => panic!("{error}"),
        }
    };
    assert!(!refused(64 << 10, 128 << 10, 1 << 20, 1));
    assert!(refused(64 << 10, 128 << 10, (1 << 20) + 1, 1));
    assert!(refused(64 << 10, 100_000, 256 << 10, 1));
    assert!(refused(0, 128 << 10, 256 << 10, 1));
    assert!(refused(64 << 10, 128 << 10, 256 << 10, 2));
}
