//! The faults of the memory device.

use std::collections::{BTreeSet, HashSet};

use cfs_device::{Device, DeviceError, FaultPlan, HostRoom, MemDevice};
use cfs_format::{BLOCK_BYTES, SEGMENT_BYTES, SegmentId};

const BLOCK: usize = BLOCK_BYTES as usize;
const SECTOR: usize = 512;
const S0: SegmentId = SegmentId(0);
const S1: SegmentId = SegmentId(1);

fn read(device: &MemDevice, segment: SegmentId, offset: u32, len: usize) -> Vec<u8> {
    let mut buf = vec![0xee; len];
    device.read_at(segment, offset, &mut buf).unwrap();
    buf
}

/// What each sector of the first blocks holds, which must be one value throughout.
fn sectors(device: &MemDevice, segment: SegmentId, block_count: usize) -> Vec<u8> {
    read(device, segment, 0, block_count * BLOCK)
        .chunks(SECTOR)
        .map(|sector| {
            assert!(sector.iter().all(|byte| *byte == sector[0]));
            sector[0]
        })
        .collect()
}

#[test]
fn power_cut_keeps_what_was_flushed_and_any_part_of_the_rest() {
    let device = MemDevice::new(4);
    device.write_at(S0, 0, &[1; 2 * BLOCK]).unwrap();
    device.flush().unwrap();
    device.write_at(S0, BLOCK_BYTES, &[2; BLOCK]).unwrap();
    device
        .write_at(S0, 2 * BLOCK_BYTES, &[3; 2 * BLOCK])
        .unwrap();
    device.write_at(S1, 0, &[4; BLOCK]).unwrap();

    let mut outcomes = HashSet::new();
    let (mut reordered, mut torn, mut all, mut nothing) = (false, false, false, false);
    for seed in 0..400 {
        let found = device.power_cut(seed);
        let (first, second) = (sectors(&found, S0, 4), sectors(&found, S1, 1));
        assert!(first[..8].iter().all(|byte| *byte == 1), "seed {seed}");
        assert!(first[8..16].iter().all(|byte| [1, 2].contains(byte)));
        assert!(first[16..].iter().all(|byte| [0, 3].contains(byte)));
        assert!(second.iter().all(|byte| [0, 4].contains(byte)));
        reordered |= first[8..].iter().all(|byte| [0, 1].contains(byte)) && second[0] == 4;
        torn |= first[16..].contains(&3) && first[16..].contains(&0);
        all |= first[8] == 2 && first[16] == 3 && second[0] == 4;
        nothing |= first[8] == 1 && first[16] == 0 && second[0] == 0;
        assert_eq!(
            sectors(&device.power_cut(seed), S0, 4),
            first,
            "seed {seed}"
        );
        // What the first cut left is durable: the next one finds the same.
        assert_eq!(sectors(&found.power_cut(seed + 1), S0, 4), first);
        outcomes.insert((first, second));
    }
    assert!(reordered && torn && all && nothing);
    assert!(outcomes.len() > 50, "{} outcomes", outcomes.len());
    assert_eq!(sectors(&device, S0, 4)[8], 2);
}

#[test]
fn changes_of_one_sector_keep_their_order() {
    let device = MemDevice::new(4);
    device.write_at(S0, 0, &[1; BLOCK]).unwrap();
    device.flush().unwrap();
    device.discard_from(S0, 0).unwrap();
    device.write_at(S0, 0, &[2; BLOCK]).unwrap();
    device.flush().unwrap();
    for seed in 0..100 {
        assert_eq!(
            sectors(&device.power_cut(seed), S0, 1),
            [2; 8],
            "seed {seed}"
        );
    }
}

#[test]
fn failed_flush_leaves_its_writes_in_doubt_for_ever() {
    let device = MemDevice::new(4);
    device.set_faults(FaultPlan {
        failing_flushes: vec![1],
        ..FaultPlan::default()
    });
    device.write_at(S0, 0, &[1; BLOCK]).unwrap();
    device.flush().unwrap_err();
    device.write_at(S0, BLOCK_BYTES, &[2; BLOCK]).unwrap();
    device.write_at(S1, 0, &[1; BLOCK]).unwrap();
    device.flush().unwrap();
    assert_eq!(sectors(&device, S0, 2), [[1; 8], [2; 8]].concat());
    let mut lost = 0;
    for seed in 0..100 {
        let found = device.power_cut(seed);
        assert_eq!(sectors(&found, S1, 1), [1; 8], "seed {seed}");
        assert_eq!(sectors(&found, S0, 2)[8..], [2; 8], "seed {seed}");
        lost += usize::from(sectors(&found, S0, 1) != [1; 8]);
    }
    assert!((10..90).contains(&lost), "{lost}");

    // Written again and flushed, the content is certain.
    device.write_at(S0, 0, &[3; BLOCK]).unwrap();
    device.flush().unwrap();
    for seed in 0..100 {
        assert_eq!(sectors(&device.power_cut(seed), S0, 1), [3; 8]);
    }
}

#[test]
fn lying_flush_does_nothing_once() {
    let device = MemDevice::new(4);
    device.set_faults(FaultPlan {
        lying_flushes: vec![1],
        ..FaultPlan::default()
    });
    device.write_at(S0, 0, &[1; BLOCK]).unwrap();
    device.flush().unwrap();
    assert!((0..100).any(|seed| sectors(&device.power_cut(seed), S0, 1) != [1; 8]));
    device.flush().unwrap();
    assert!((0..100).all(|seed| sectors(&device.power_cut(seed), S0, 1) == [1; 8]));
}

#[test]
fn planned_calls_fail_and_no_others() {
    let device = MemDevice::new(4);
    device.set_faults(FaultPlan {
        failing_reads: vec![2],
        short_reads: vec![3],
        failing_writes: vec![2],
        ..FaultPlan::default()
    });
    device.write_at(S0, 0, &[1; BLOCK]).unwrap();
    device.write_at(S0, 0, &[2; BLOCK]).unwrap_err();
    let left = sectors(&device, S0, 1);
    assert!(left.iter().all(|byte| [1, 2].contains(byte)));
    let mut buf = [0xee; BLOCK];
    device.read_at(S0, 0, &mut buf).unwrap_err();
    device.read_at(S0, 0, &mut buf).unwrap_err();
    assert_ne!(buf[0], 0xee);
    assert_eq!(buf[BLOCK / 2..], [0xee; BLOCK / 2]);
    device.read_at(S0, 0, &mut buf).unwrap();
    device.write_at(S0, 0, &[3; BLOCK]).unwrap();
    device.flush().unwrap();
    let counts = device.counts();
    assert_eq!((counts.reads, counts.writes, counts.flushes), (4, 3, 1));
    assert_eq!(sectors(&device.power_cut(1), S0, 1), [3; 8]);
}

#[test]
fn runs_full_and_gets_room_back() {
    let device = MemDevice::new(4);
    device.set_faults(FaultPlan {
        room_blocks_max: Some(2 * u64::from(SEGMENT_BYTES / BLOCK_BYTES)),
        ..FaultPlan::default()
    });
    device.prepare(S0, 1).unwrap();
    device.prepare(S1, 1).unwrap();
    device.prepare(S1, 1).unwrap();
    let third = SegmentId(2);
    let error = device.prepare(third, 1).unwrap_err();
    assert!(matches!(error, DeviceError::NoSpace { segment } if segment == third));
    device.write_at(third, 0, &[1; BLOCK]).unwrap_err();
    device.write_at(S1, 0, &[1; BLOCK]).unwrap();
    let space = device.host_space().unwrap().unwrap();
    assert_eq!(space.allocated_bytes, 2 * u64::from(SEGMENT_BYTES));
    assert_eq!(space.available_bytes, 0);
    device.discard_from(S0, 0).unwrap();
    device.prepare(third, 1).unwrap();
}

/// Room is given and taken by the block, as hosts do.
#[test]
fn a_segment_may_have_room_in_part() {
    let device = MemDevice::new(4);
    let room = || -> Vec<(u32, u32)> {
        let found = device.host_room().unwrap().expect("it is known");
        let blocks = |room: HostRoom| (room.segment.0, room.start_bytes / BLOCK_BYTES);
        found.into_iter().map(blocks).collect()
    };
    device.prepare_start(S0, 8 * BLOCK_BYTES).unwrap();
    device
        .write_at(S1, 2 * BLOCK_BYTES, &[1; 2 * BLOCK])
        .unwrap();
    assert_eq!((room(), device.room_blocks()), (vec![(0, 8), (1, 0)], 10));
    device.set_faults(FaultPlan {
        room_blocks_max: Some(12),
        ..FaultPlan::default()
    });
    // What is written over has its room, and beyond that there are two blocks; what there was room for stays given.
    device
        .write_at(S0, 7 * BLOCK_BYTES, &[2; 3 * BLOCK])
        .unwrap();
    device.write_at(S0, 0, &[2; BLOCK]).unwrap();
    device.prepare(S1, 1).unwrap_err();
    device.write_at(SegmentId(2), 0, &[2; BLOCK]).unwrap_err();
    assert_eq!((room(), device.room_blocks()), (vec![(0, 10), (1, 0)], 12));
    device
        .discard(S0, 4 * BLOCK_BYTES..6 * BLOCK_BYTES)
        .unwrap();
    assert_eq!((room(), device.room_blocks()), (vec![(0, 4), (1, 0)], 10));
    device.prepare(S1, 1).unwrap_err();
    assert_eq!((room(), device.room_blocks()), (vec![(0, 4), (1, 4)], 12));
    device.flush().unwrap();
    assert_eq!(device.power_cut(1).room_blocks(), 12);
}

#[test]
fn flipped_bits_and_old_segments_stay() {
    let device = MemDevice::new(4);
    device.write_at(S0, 0, &[1; BLOCK]).unwrap();
    let old = device.segment_image(S0);
    device.flush().unwrap();
    device.write_at(S0, BLOCK_BYTES, &[2; BLOCK]).unwrap();
    device.flip_bit(S0, 5, 7);
    device.flip_bit(S0, BLOCK_BYTES + 6, 0);
    device.flush().unwrap();
    let mut expected = [[1; BLOCK], [2; BLOCK]].concat();
    expected[5] = 0x81;
    expected[BLOCK + 6] = 3;
    assert_eq!(read(&device, S0, 0, 2 * BLOCK), expected);
    assert_eq!(read(&device.power_cut(1), S0, 0, 2 * BLOCK), expected);

    device.write_at(S0, 0, &[3; BLOCK]).unwrap();
    device.replace_segment(S0, &old);
    for found in [&device, &device.power_cut(1)] {
        assert_eq!(sectors(found, S0, 2), [[1; 8], [0; 8]].concat());
    }
}

#[test]
fn without_power_every_call_fails_and_what_was_under_way_is_in_doubt() {
    for at in 1..=5 {
        let device = MemDevice::new(4);
        device.write_at(S0, 0, &[1; BLOCK]).unwrap();
        device.flush().unwrap();
        device.set_faults(FaultPlan {
            power_off_at: Some(at),
            ..FaultPlan::default()
        });
        let results = [
            device.prepare(S1, 1).is_ok(),
            device.write_at(S0, 0, &[2; BLOCK]).is_ok(),
            device.read_at(S0, 0, &mut [0; 8]).is_ok(),
            device.flush().is_ok(),
            device.discard_from(S0, 0).is_ok(),
        ];
        let expected: Vec<bool> = (1..=5).map(|call| call < at).collect();
        assert_eq!(results[..], expected[..], "power goes at call {at}");
        assert_eq!(device.counts().calls, 5);
        let found: BTreeSet<Vec<u8>> = (0..64)
            .map(|seed| read(&device.power_cut(seed), S0, 0, BLOCK))
            .collect();
        let has = |byte: u8| found.contains(&vec![byte; BLOCK]);
        match at {
            1 => assert!(has(1) && found.len() == 1),
            2..=4 => assert!(has(1) && has(2)),
            _ => assert!(has(2) && has(0) && !has(1)),
        }
    }
}
