//! Room, sizes, failures, and what becomes of the shape of files.

use cfs_device::FaultPlan;
use cfs_format::{BLOCK_BYTES, Ino, SEGMENT_BYTES};
use cfs_fs::{AllocateMode, Caller, Fs, FsError, FsOptions, SetAttr, SetTime, Time};

use crate::pool::{Pool, Rng, assert_clean};

pub fn create(fs: &Fs, name: &str) -> Ino {
    fs.create(Ino::ROOT, name.as_bytes(), 0o644, &Caller::default())
        .expect("create")
        .ino
}

pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut bytes = vec![0; len.next_multiple_of(8)];
    for chunk in bytes.chunks_exact_mut(8) {
        chunk.copy_from_slice(&rng.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn read_all(fs: &Fs, ino: Ino) -> Vec<u8> {
    let mut out = Vec::new();
    fs.read(ino, 0, usize::MAX, &mut out).expect("read");
    out
}

fn references(fs: &Fs) -> u64 {
    fs.store().stats().pool.reference_count.get()
}

/// What was accepted is stored; a full pool refuses writes and takes them again when something was deleted.
#[test]
fn a_full_pool_refuses_what_it_cannot_keep() {
    let pool = Pool::new(80);
    let fs = pool.open();
    let mut accepted = Vec::new();
    let full = 'fill: {
        for index in 0..200 {
            let ino = create(&fs, &format!("f{index}"));
            let data = noise(index, 1 << 20);
            match fs.write(ino, 0, &data, false) {
                Ok(len) => {
                    assert_eq!(len, data.len());
                    accepted.push((ino, data));
                }
                Err(error) => break 'fill error,
            }
        }
        panic!("200 MiB in a pool of 160");
    };
    assert!(matches!(full, FsError::NoSpace), "{full}");
    assert!(accepted.len() > 20, "{} MiB were accepted", accepted.len());
    fs.syncfs().expect("what was accepted can be stored");
    for (ino, data) in &accepted {
        assert!(read_all(&fs, *ino) == *data);
    }
    assert_clean(&fs);
    for index in 0..accepted.len() / 2 {
        fs.unlink(Ino::ROOT, format!("f{index}").as_bytes())
            .expect("unlink in a full pool");
    }
    for _ in 0..200 {
        pool.sleep_ms(100);
        fs.tick().expect("tick");
    }
    let ino = create(&fs, "again");
    fs.write(ino, 0, &noise(999, 4 << 20), false)
        .expect("there is room again");
    fs.syncfs().expect("sync");
    assert_clean(&fs);
}

/// The room of a large file comes back in steps of background work; who wrote right after deleting one was told that the
/// pool, or the host below it, is full.
#[test]
fn what_a_large_file_took_can_be_written_at_once() {
    let check = |segments: u32, room_segments_max: Option<u64>| {
        let pool = Pool::new(segments);
        let fs = pool.open();
        pool.device.set_faults(FaultPlan {
            room_blocks_max: room_segments_max
                .map(|count| count * u64::from(SEGMENT_BYTES / BLOCK_BYTES)),
            ..FaultPlan::default()
        });
        let large = create(&fs, "large");
        let mut len = 0;
        while let Ok(written) = fs.write(large, len, &noise(len, 1 << 20), false) {
            len += written as u64;
        }
        fs.syncfs().expect("what was accepted can be stored");
        fs.unlink(Ino::ROOT, b"large").expect("unlink");
        let ino = create(&fs, "next");
        let written = fs.write(ino, 0, &noise(7, 8 << 20), false);
        assert_eq!(written.expect("there is room at once"), 8 << 20);
        fs.syncfs().expect("sync");
        assert_clean(&fs);
    };
    check(80, None);
    check(1000, Some(60));
}

/// Files that were written at the same time share segments, so that deleting some of them empties no segment. A full
/// pool kept a tenth of what was live, and four segments, as dead bytes.
#[test]
fn the_room_of_deleted_files_comes_back_though_others_share_their_segments() {
    let pool = Pool::new(80);
    let fs = pool.open();
    let mut files = 0;
    loop {
        let ino = create(&fs, &format!("f{files}"));
        if fs.write(ino, 0, &noise(files, 1 << 20), false).is_err() {
            break;
        }
        files += 1;
    }
    fs.syncfs().expect("what was accepted can be stored");
    let mut deleted_bytes = 0;
    for index in (0..files).step_by(4) {
        let name = format!("f{index}");
        fs.unlink(Ino::ROOT, name.as_bytes()).expect("unlink");
        deleted_bytes += 1 << 20;
    }
    for _ in 0..30 {
        pool.sleep_ms(100);
        fs.tick().expect("tick");
    }
    // The first of it fills up the reserve again, of which data may take half.
    let available_bytes = fs.store().available_bytes();
    assert!(
        available_bytes > deleted_bytes / 10 * 4,
        "{available_bytes} of {deleted_bytes} bytes came back within three seconds"
    );
    assert_clean(&fs);
}

/// The same content gives the same chunks, however it is written.
#[test]
fn streams_are_cut_like_one_whole() {
    let data = noise(1, 21 << 20);
    for (steps, seal_threads, dirty_bytes_max) in [
        (vec![21 << 20], 0, 256 << 20),
        (vec![128 << 10], 2, 256 << 20),
        (vec![1000, 77_777, 1 << 20, 13], 0, 256 << 20),
        (vec![1 << 20], 2, 64 << 20),
    ] {
        let pool = Pool::new(128);
        let fs = pool.open_with(FsOptions {
            seal_threads,
            dirty_bytes_max,
            ..FsOptions::default()
        });
        let first = create(&fs, "first");
        fs.write(first, 0, &data, false).expect("write");
        fs.syncfs().expect("sync");
        let chunks = fs.store().stats().pool.chunk_count.get();
        let second = create(&fs, "second");
        let mut at = 0;
        for step in steps.iter().cycle() {
            let end = (at + step).min(data.len());
            fs.write(second, at as u64, &data[at..end], false)
                .expect("write");
            at = end;
            if at == data.len() {
                break;
            }
        }
        fs.syncfs().expect("sync");
        let stats = fs.store().stats().pool;
        assert_eq!(stats.chunk_count.get(), chunks, "steps {steps:?}");
        assert_eq!(stats.reference_count.get(), 2 * chunks);
        assert!(read_all(&fs, second) == data);
    }
}

/// A log that grows little by little, flushed by age, ends in long chunks.
#[test]
fn slow_appends_join_the_last_chunk() {
    let pool = Pool::new(128);
    let fs = pool.open();
    let ino = create(&fs, "log");
    let data = noise(2, 3 << 20);
    for (index, piece) in data.chunks(48 << 10).enumerate() {
        fs.write(ino, (index * (48 << 10)) as u64, piece, false)
            .expect("write");
        pool.sleep_ms(6000);
        fs.tick().expect("tick");
    }
    assert!(read_all(&fs, ino) == data);
    let extents = references(&fs);
    assert!(extents < 40, "{extents} extents for 3 MiB");
    fs.syncfs().expect("sync");
    assert_clean(&fs);
}

/// A file of many small writes is put together when it is left alone.
#[test]
fn fragmented_files_are_rechunked() {
    let pool = Pool::new(128);
    let fs = pool.open();
    let ino = create(&fs, "database");
    let mut data = noise(3, 2 << 20);
    fs.write(ino, 0, &data, false).expect("write");
    let mut rng = Rng::new(4);
    for index in 0..300 {
        let at = rng.below(512) as usize * 4096;
        let block = noise(1000 + index, 4096);
        fs.write(ino, at as u64, &block, false).expect("write");
        data[at..at + 4096].copy_from_slice(&block);
        fs.fsync(ino, true).expect("fsync");
    }
    let before = references(&fs);
    assert!(before > 300, "{before} extents");
    for _ in 0..20 {
        pool.sleep_ms(6000);
        fs.tick().expect("tick");
    }
    let after = references(&fs);
    assert!(after < 40, "{after} extents");
    assert!(read_all(&fs, ino) == data);
    assert_clean(&fs);
    let attr = fs.getattr(ino).expect("getattr");
    drop(fs);
    let fs = pool.open();
    assert!(read_all(&fs, ino) == data);
    let found = fs.getattr(ino).expect("getattr");
    assert_eq!(found.mtime, attr.mtime);
    assert_eq!(found.allocated_bytes, attr.allocated_bytes);
    assert_clean(&fs);
}

/// A sparse file is as long as any, and holds what was written only.
#[test]
fn sparse_files_are_large() {
    const TIB: u64 = 1 << 40;
    let pool = Pool::new(64);
    let fs = pool.open();
    let ino = create(&fs, "sparse");
    fs.write(ino, 16 * TIB - 5, b"end", false).expect("write");
    fs.write(ino, 3 * TIB, &[7; 5000], false).expect("write");
    for _ in 0..2 {
        assert_eq!(fs.getattr(ino).expect("getattr").size, 16 * TIB - 2);
        assert_eq!(fs.seek_data(ino, 0).expect("seek"), 3 * TIB);
        assert_eq!(fs.seek_hole(ino, 3 * TIB).expect("seek"), 3 * TIB + 5000);
        assert_eq!(fs.seek_data(ino, 4 * TIB).expect("seek"), 16 * TIB - 5);
        fs.fsync(ino, false).expect("fsync");
    }
    assert_eq!(fs.getattr(ino).expect("getattr").allocated_bytes, 5003);
    assert!(matches!(
        fs.write(ino, u64::MAX - 1, b"abc", false),
        Err(FsError::TooLarge)
    ));
    assert!(matches!(
        fs.write(ino, i64::MAX as u64, b"a", false),
        Err(FsError::TooLarge)
    ));
    fs.fallocate(ino, AllocateMode::Punch, 0, 15 * TIB, false)
        .expect("punch");
    assert_eq!(fs.getattr(ino).expect("getattr").allocated_bytes, 3);
    assert_clean(&fs);
}

/// A file that is truncated and written again is, after a crash, as it was or as it became.
#[test]
fn replacing_by_truncation_is_never_seen_half_done() {
    for size in [3000, 50_000] {
        let pool = Pool::new(64);
        let fs = pool.open();
        let ino = create(&fs, "config");
        let (old, new) = (noise(5, size), noise(6, size));
        fs.write(ino, 0, &old, false).expect("write");
        fs.fsync(ino, false).expect("fsync");
        let empty = SetAttr {
            size: Some(0),
            ..SetAttr::default()
        };
        fs.setattr(ino, &empty).expect("truncate");
        fs.store().sync().expect("sync of something else");
        let found = pool.power_cut(1);
        assert!(read_all(&found.open(), ino) == old);
        fs.write(ino, 0, &new, false).expect("write");
        fs.flush(ino).expect("close");
        fs.store().sync().expect("sync of something else");
        let found = pool.power_cut(2);
        assert!(read_all(&found.open(), ino) == new);
    }
}

/// A device failure is told once at the next fsync; what was accepted stays readable, and nothing more is accepted.
#[test]
fn failures_are_told_and_data_are_kept() {
    for seal_threads in [0, 1] {
        let pool = Pool::new(64);
        let fs = pool.open_with(FsOptions {
            seal_threads,
            ..FsOptions::default()
        });
        let ino = create(&fs, "file");
        let data = noise(7, 6 << 20);
        fs.write(ino, 0, &data[..1 << 20], false).expect("write");
        fs.fsync(ino, false).expect("fsync");
        pool.device.set_faults(FaultPlan {
            failing_writes: (1..100).collect(),
            ..FaultPlan::default()
        });
        // Where the caller seals, the failure may already cut the write short.
        let accepted = fs
            .write(ino, 1 << 20, &data[1 << 20..], false)
            .expect("write");
        let data = &data[..(1 << 20) + accepted];
        assert!(accepted >= 4 << 20);
        assert!(fs.fsync(ino, false).is_err());
        assert!(read_all(&fs, ino) == data);
        assert!(fs.fsync(ino, false).is_err());
        assert!(matches!(
            fs.write(ino, 0, b"more", false),
            Err(FsError::ReadOnly(_))
        ));
        assert!(read_all(&fs, ino) == data);
    }
}

/// Inline content moves to extents and back with truncation to nothing, never leaving both.
#[test]
fn small_files_are_inline() {
    let pool = Pool::new(64);
    let fs = pool.open();
    let ino = create(&fs, "small");
    fs.write(ino, 0, &noise(8, 4096), false).expect("write");
    fs.fsync(ino, false).expect("fsync");
    assert_eq!(references(&fs), 0);
    fs.write(ino, 4096, b"x", false).expect("write");
    fs.fsync(ino, false).expect("fsync");
    assert_eq!(references(&fs), 1);
    assert_clean(&fs);
    let set = SetAttr {
        size: Some(0),
        ..SetAttr::default()
    };
    fs.setattr(ino, &set).expect("truncate");
    fs.write(ino, 10, b"abc", false).expect("write");
    fs.fsync(ino, false).expect("fsync");
    assert_eq!(references(&fs), 0);
    assert_eq!(read_all(&fs, ino), b"\0\0\0\0\0\0\0\0\0\0abc");
    assert_clean(&fs);
    fs.write(ino, 1 << 20, &noise(9, 5 << 20), false)
        .expect("a stream in an inline file");
    fs.syncfs().expect("sync");
    assert_eq!(&read_all(&fs, ino)[..13], b"\0\0\0\0\0\0\0\0\0\0abc");
    assert_clean(&fs);
}

/// Who copies files sets their times last and takes files with the right time for copied.
#[test]
fn a_time_that_was_set_never_outruns_the_content() {
    let mut pool = Pool::new(80);
    let fs = pool.open();
    let ino = create(&fs, "file");
    let set = |seconds| SetAttr {
        mtime: Some(SetTime::At(Time { seconds, nanos: 0 })),
        ..SetAttr::default()
    };
    fs.write(ino, 0, &noise(1, 100_000), false).expect("write");
    fs.setattr(ino, &set(1)).expect("set");
    fs.syncfs().expect("sync");
    fs.write(ino, 0, &noise(2, 100_000), false).expect("write");
    fs.setattr(ino, &set(2)).expect("set");
    fs.store().sync().expect("the log is durable");
    drop(fs);
    pool = pool.power_cut(1);
    let fs = pool.open();
    assert_eq!(fs.getattr(ino).expect("there").mtime.seconds, 2);
    assert!(read_all(&fs, ino) == noise(2, 100_000));
}

/// Three of the largest files are longer together than 64 bits can tell.
#[test]
fn sizes_of_sparse_files_add_up_to_any_sum() {
    let pool = Pool::new(80);
    let fs = pool.open();
    for name in ["a", "b", "c"] {
        let ino = create(&fs, name);
        let largest = SetAttr {
            size: Some(i64::MAX as u64),
            ..SetAttr::default()
        };
        fs.setattr(ino, &largest).expect("sparse");
        fs.fsync(ino, false).expect("sync");
    }
    assert_clean(&fs);
    fs.unlink(Ino::ROOT, b"b").expect("unlink");
    assert_clean(&fs);
}

/// A chunk that reaches over a multiple of 4 MiB is known on both sides of it, where extents are kept decoded. What was
/// overwritten on one side came back in reads over both.
#[test]
fn what_is_overwritten_beside_such_an_edge_does_not_come_back() {
    const EDGE: usize = 4 << 20;
    const PART: usize = 256 << 10;
    let pool = Pool::new(80);
    let fs = pool.open();
    let ino = create(&fs, "file");
    let mut content = noise(1, 2 * EDGE);
    fs.write(ino, 0, &content, false).expect("write");
    fs.fsync(ino, false).expect("fsync");
    let mut out = Vec::new();
    for (round, at) in [EDGE - PART, EDGE, EDGE - PART, EDGE]
        .into_iter()
        .enumerate()
    {
        // Both sides are known now.
        fs.read(ino, 0, 2 * EDGE, &mut out).expect("read");
        let new = noise(2 + round as u64, PART);
        fs.write(ino, at as u64, &new, false).expect("write");
        content[at..at + PART].copy_from_slice(&new);
        fs.fsync(ino, false).expect("fsync");
        fs.read(ino, 0, 2 * EDGE, &mut out).expect("read");
        assert!(out == content, "round {round}");
    }
}
