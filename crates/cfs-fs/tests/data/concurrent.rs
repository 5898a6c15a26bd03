//! Several threads on one file, and many files at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cfs_format::Ino;
use cfs_fs::{Caller, Fs, FsOptions, SetAttr};

use crate::pool::{Pool, Rng, assert_clean};

fn create(fs: &Fs, name: &str) -> Ino {
    fs.create(Ino::ROOT, name.as_bytes(), 0o644, &Caller::default())
        .expect("create")
        .ino
}

/// A size and a mode that a caller has been told of never go back to what the tables had before them, while another thread
/// commits them. The kernel would go on showing what it is told here.
#[test]
fn attributes_do_not_go_back_while_content_is_committed() {
    const SPECIAL: u32 = libc::S_ISUID;
    let pool = Pool::new(128);
    let fs = pool.open_with(FsOptions::default());
    let ino = create(&fs, "f");
    let (acknowledged, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let looking: Vec<_> = ["getattr", "chmod"]
            .map(|how| {
                let (fs, acknowledged, stop) = (&fs, &acknowledged, &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let size = acknowledged.load(Ordering::SeqCst);
                        let attr = match how {
                            "getattr" => fs.getattr(ino),
                            _ => fs.setattr(
                                ino,
                                &SetAttr {
                                    mode: Some(0o600),
                                    ..SetAttr::default()
                                },
                            ),
                        };
                        let attr = attr.expect(how);
                        assert!(attr.size >= size, "{how}: {} after {size}", attr.size);
                    }
                })
            })
            .into();
        for size in 1..3000 {
            fs.write(ino, size - 1, b"x", false).expect("write");
            acknowledged.store(size, Ordering::SeqCst);
            fs.hand_over(ino);
        }
        stop.store(true, Ordering::Relaxed);
        for thread in looking {
            thread.join().expect("no attribute goes back");
        }
    });
    // The same of set-user-id, which a write takes away.
    for _ in 0..300 {
        let set = SetAttr {
            mode: Some(0o777 | SPECIAL),
            ..SetAttr::default()
        };
        fs.setattr(ino, &set).expect("chmod");
        fs.write(ino, 0, b"y", true).expect("write");
        std::thread::scope(|scope| {
            scope.spawn(|| fs.hand_over(ino));
            for _ in 0..20 {
                assert_eq!(fs.getattr(ino).expect("attributes").mode & SPECIAL, 0);
            }
        });
    }
    assert_clean(&fs);
}

/// Threads write records that check themselves, truncate, punch and read. Whatever is read is a record of the place
/// where it was read, or zeros, as far as it is whole.
#[test]
fn readers_see_whole_writes() {
    const RECORD: usize = 4096;
    const RECORDS: u64 = 600;
    let pool = Pool::new(256);
    let fs = pool.open_with(FsOptions {
        seal_threads: 2,
        dirty_bytes_max: 1 << 20,
        hot_bytes: 1 << 20,
        ..FsOptions::default()
    });
    let ino = create(&fs, "shared");
    let record = |place: u64, salt: u64| -> Vec<u8> {
        let mut rng = Rng::new(place << 32 | salt);
        let mut bytes = vec![0; RECORD];
        bytes.fill_with(|| rng.next() as u8 | 1);
        bytes[..8].copy_from_slice(&place.to_le_bytes());
        bytes[8..16].copy_from_slice(&salt.to_le_bytes());
        bytes
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2)
            .map(|worker| {
                let (fs, record) = (&fs, &record);
                scope.spawn(move || {
                    let mut rng = Rng::new(worker);
                    for _ in 0..1500 {
                        let place = rng.below(RECORDS);
                        match rng.below(40) {
                            0 => {
                                let set = SetAttr {
                                    size: Some(place * RECORD as u64),
                                    ..SetAttr::default()
                                };
                                fs.setattr(ino, &set).expect("truncate");
                            }
                            1 => fs.fsync(ino, false).expect("fsync"),
                            2 => fs
                                .fallocate(
                                    ino,
                                    cfs_fs::AllocateMode::Punch,
                                    place * RECORD as u64,
                                    8 * RECORD as u64,
                                    false,
                                )
                                .expect("punch"),
                            _ => {
                                let count = 1 + rng.below(20);
                                let bytes: Vec<u8> = (place..place + count)
                                    .flat_map(|place| record(place, rng.next()))
                                    .collect();
                                fs.write(ino, place * RECORD as u64, &bytes, false)
                                    .expect("write");
                            }
                        }
                    }
                })
            })
            .collect();
        for reader in 0..2 {
            let (fs, record, stop) = (&fs, &record, &stop);
            scope.spawn(move || {
                let mut rng = Rng::new(100 + reader);
                let mut out = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let place = rng.below(RECORDS);
                    fs.read(ino, place * RECORD as u64, 4 * RECORD, &mut out)
                        .expect("read");
                    for (index, bytes) in out.chunks_exact(RECORD).enumerate() {
                        let salt = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
                        let zeros = bytes.iter().all(|byte| *byte == 0);
                        assert!(
                            zeros || bytes == record(place + index as u64, salt),
                            "a torn record at {}",
                            place + index as u64
                        );
                    }
                }
            });
        }
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                pool.sleep_ms(500);
                fs.tick().expect("tick");
                std::thread::yield_now();
            }
        });
        for worker in workers {
            worker.join().expect("a worker");
        }
        stop.store(true, Ordering::Relaxed);
    });
    fs.syncfs().expect("sync");
    assert_clean(&fs);
    let mut before = Vec::new();
    fs.read(ino, 0, 8 << 20, &mut before).expect("read");
    drop(fs);
    let fs = pool.open();
    let mut after = Vec::new();
    fs.read(ino, 0, 8 << 20, &mut after).expect("read");
    assert!(before == after, "the content has changed by reopening");
}

/// Many files are written at once with little room for dirty data; nothing waits for ever and nothing is lost.
#[test]
fn many_writers_share_little_room() {
    const FILES: usize = 200;
    const STEP: usize = 64 << 10;
    const STEPS: usize = 6;
    for seal_threads in [0, 2] {
        let pool = Pool::new(256);
        let fs = pool.open_with(FsOptions {
            seal_threads,
            dirty_bytes_max: 4 << 20,
            ..FsOptions::default()
        });
        let files: Vec<Ino> = (0..FILES)
            .map(|index| create(&fs, &format!("f{index}")))
            .collect();
        let piece = |file: usize, step: usize| -> Vec<u8> {
            let mut rng = Rng::new((file * 1000 + step) as u64);
            let mut bytes = vec![0; STEP];
            for chunk in bytes.chunks_exact_mut(8) {
                chunk.copy_from_slice(&rng.next().to_le_bytes());
            }
            bytes
        };
        std::thread::scope(|scope| {
            for half in files.chunks(FILES / 4) {
                let (fs, files, piece) = (&fs, &files, &piece);
                scope.spawn(move || {
                    for step in 0..STEPS {
                        for ino in half {
                            let index = files.iter().position(|file| file == ino).unwrap();
                            let bytes = piece(index, step);
                            fs.write(*ino, (step * STEP) as u64, &bytes, false)
                                .expect("write");
                        }
                    }
                });
            }
        });
        fs.syncfs().expect("sync");
        for (index, ino) in files.iter().enumerate() {
            let mut out = Vec::new();
            fs.read(*ino, 0, usize::MAX, &mut out).expect("read");
            let expected: Vec<u8> = (0..STEPS).flat_map(|step| piece(index, step)).collect();
            assert!(out == expected, "file {index}");
        }
        assert_clean(&fs);
    }
}

/// One file alone may use all of the room, and several threads may fsync at once.
#[test]
fn callers_of_fsync_share_work() {
    let pool = Pool::new(128);
    let fs = pool.open_with(FsOptions {
        seal_threads: 2,
        ..FsOptions::default()
    });
    let files: Vec<Ino> = (0..8)
        .map(|index| create(&fs, &format!("f{index}")))
        .collect();
    let fs: &Arc<Fs> = &fs;
    std::thread::scope(|scope| {
        for ino in &files {
            scope.spawn(move || {
                for step in 0..50_u64 {
                    fs.write(*ino, step * 5000, &vec![step as u8; 5000], false)
                        .expect("write");
                    fs.fsync(*ino, true).expect("fsync");
                }
            });
        }
    });
    let pool = pool.power_cut(1);
    let fs = pool.open();
    for ino in &files {
        let mut out = Vec::new();
        fs.read(*ino, 0, usize::MAX, &mut out).expect("read");
        assert_eq!(out.len(), 250_000);
        assert!(
            out.chunks(5000)
                .enumerate()
                .all(|(step, bytes)| bytes == vec![step as u8; 5000])
        );
    }
    assert_clean(&fs);
}

/// The thread that hands the log over locks the journal, then the account of space. A checkpoint locked them the other
/// way round, and a mount stood still.
#[test]
fn checkpoints_and_the_log_do_not_wait_for_each_other() {
    const ROUNDS: u64 = 1500;
    const WRITERS: usize = 4;
    let pool = Pool::new(256);
    let fs = pool.open();
    let stop = Arc::new(AtomicBool::new(false));
    let (done, finished) = std::sync::mpsc::channel();
    let repeat = |work: fn(&Fs)| {
        let (fs, stop) = (Arc::clone(&fs), Arc::clone(&stop));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                work(&fs);
            }
        })
    };
    let mut threads: Vec<_> = (0..2)
        .map(|_| repeat(|fs| fs.write_log().expect("write the log")))
        .collect();
    threads.push(repeat(|fs| {
        fs.store().checkpoint().expect("checkpoint");
        fs.tick().expect("background work");
    }));
    threads.extend((0..WRITERS).map(|writer| {
        let (fs, done) = (Arc::clone(&fs), done.clone());
        let ino = create(&fs, &format!("file{writer}"));
        std::thread::spawn(move || {
            let mut rng = Rng::new(writer as u64);
            for _ in 0..ROUNDS {
                let bytes = [rng.next().to_le_bytes(); 800];
                fs.write(ino, 0, bytes.as_flattened(), false)
                    .expect("write");
                fs.fsync(ino, false).expect("fsync");
            }
            done.send(()).expect("the test waits");
        })
    }));
    for _ in 0..WRITERS {
        finished
            .recv_timeout(Duration::from_secs(60))
            .expect("all threads stand still");
    }
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().expect("a thread");
    }
    assert_clean(&fs);
}
