//! Operations on whole files, snapshots and volumes that others overlap with.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Scope;

use cfs_format::Ino;
use cfs_fs::{
    Caller, Fs, FsError, FsOptions, Quota, RestoreObserver, SetAttr, Snapshot, VolumeOptions,
};

use crate::pool::{Pool, Rng, assert_clean};

fn create(fs: &Fs, name: &str) -> Ino {
    fs.create(Ino::ROOT, name.as_bytes(), 0o644, &Caller::default())
        .expect("create")
        .ino
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut bytes = vec![0; len];
    bytes.fill_with(|| rng.next() as u8);
    bytes
}

struct Strict;

impl RestoreObserver for Strict {
    fn inode_changed(&mut self, _: Ino) {}
    fn entry_changed(&mut self, _: Ino, _: &[u8]) {}
    fn problem(&mut self, path: &[u8], error: &FsError) {
        panic!("{}: {error}", String::from_utf8_lossy(path));
    }
    fn goes_on(&mut self) -> bool {
        true
    }
}

/// Ends the others of a test however it ends.
struct Until<'a>(&'a AtomicBool);

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Does something over and over, beside a test.
fn over_and_over<'scope>(
    scope: &'scope Scope<'scope, '_>,
    stop: &'scope AtomicBool,
    mut work: impl FnMut() + Send + 'scope,
) {
    scope.spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            work();
        }
    });
}

fn restore(fs: &Fs, snapshot: &Snapshot, name: &str) {
    fs.snapshot_restore(snapshot, b"/", name.as_bytes(), false, &mut Strict)
        .expect("restore");
}

/// Background work looks at each dirty file, which is in its hands meanwhile. A snapshot that was taken at that moment did not
/// show what had been written to the file.
#[test]
fn a_snapshot_shows_what_background_work_has_in_hand() {
    const FILES: usize = 64;
    let pool = Pool::new(64);
    let fs = pool.open_with(FsOptions {
        flush_after_ms: 1 << 40,
        ..FsOptions::default()
    });
    let files: Vec<Ino> = (0..FILES)
        .map(|number| create(&fs, &format!("f{number}")))
        .collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _until = Until(&stop);
        for _ in 0..2 {
            over_and_over(scope, &stop, || fs.tick().expect("tick"));
        }
        let mut missed = Vec::new();
        for size in 1..800_u64 {
            for ino in &files {
                fs.write(*ino, size - 1, b"x", false).expect("write");
            }
            let name = format!("s{size}");
            let taken = fs.snapshot_create(b"/", name.as_bytes()).expect("taken");
            for ino in &files {
                let shown = fs.getattr(ino.in_view(taken.view).expect("a number"));
                let shown = shown.expect("attributes").size;
                if shown != size {
                    missed.push((size, shown));
                }
            }
        }
        assert!(missed.is_empty(), "written and shown: {missed:?}");
    });
    assert_clean(&fs);
}

/// Copying brings two files to rest, one after the other. The first was restored meanwhile.
#[test]
fn what_is_copied_can_be_restored_meanwhile() {
    const BYTES: usize = 300 << 10;
    let pool = Pool::new(256);
    let fs = pool.open();
    let (low, high) = (create(&fs, "low"), create(&fs, "high"));
    let then = noise(1, BYTES);
    for ino in [low, high] {
        fs.write(ino, 0, &then, false).expect("write");
    }
    let large = fs.snapshot_create(b"/", b"large").expect("snapshot");
    for ino in [low, high] {
        let set = SetAttr {
            size: Some(100),
            ..SetAttr::default()
        };
        fs.setattr(ino, &set).expect("cut");
    }
    let small = fs.snapshot_create(b"/", b"small").expect("snapshot");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _until = Until(&stop);
        let mut round = 0;
        let (fs, large, small) = (&fs, &large, &small);
        over_and_over(scope, &stop, move || {
            for name in ["low", "high"] {
                restore(fs, if round % 3 == 0 { small } else { large }, name);
            }
            round += 1;
        });
        let mut seen = Vec::new();
        for round in 0..400 {
            let (source, target) = if round % 2 == 0 {
                (low, high)
            } else {
                (high, low)
            };
            fs.write(target, 0, &noise(round, 20_000), false)
                .expect("write");
            seen.push(fs.copy_range(source, 0, target, 0, BYTES as u64));
        }
        for copied in seen {
            copied.expect("copied");
        }
    });
    assert_clean(&fs);
}

/// Where volumes are seen is looked up after each is made. Of two that were made at once one stayed an empty directory.
#[test]
fn volumes_that_are_made_at_once_are_all_seen() {
    const THREADS: usize = 8;
    let pool = Pool::new(128);
    let fs = pool.open();
    for number in 0..30 {
        let path = format!("/other{number}");
        let options = VolumeOptions::default();
        fs.volume_create(path.as_bytes(), &options, &Caller::default())
            .expect("made");
    }
    let start = Barrier::new(THREADS);
    for round in 0..600 {
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (fs, start) = (&fs, &start);
                scope.spawn(move || {
                    start.wait();
                    let path = format!("/v{round}-{thread}");
                    let options = VolumeOptions::default();
                    fs.volume_create(path.as_bytes(), &options, &Caller::default())
                        .expect("made");
                });
            }
        });
        for thread in 0..THREADS {
            let path = format!("/v{round}-{thread}");
            fs.volume(path.as_bytes())
                .unwrap_or_else(|error| panic!("{path}: {error}"));
            fs.volume_delete(path.as_bytes()).expect("removed");
        }
    }
    assert_clean(&fs);
}

/// A snapshot that was deleted while it was released was listed again.
#[test]
fn a_snapshot_that_is_released_and_deleted_at_once_is_gone() {
    const THREADS: usize = 3;
    let pool = Pool::new(64);
    let fs = pool.open();
    for number in 0..100 {
        let name = format!("other{number}");
        fs.snapshot_create(b"/", name.as_bytes()).expect("taken");
    }
    let start = Barrier::new(THREADS + 1);
    for round in 0..300 {
        let name = format!("s{round}");
        let taken = fs.snapshot_create(b"/", name.as_bytes()).expect("taken");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _until = Until(&stop);
            over_and_over(scope, &stop, || drop(fs.snapshots(None)));
            for _ in 0..THREADS {
                scope.spawn(|| {
                    start.wait();
                    for _ in 0..4 {
                        match fs.snapshot_hold(&taken, false) {
                            Ok(()) | Err(FsError::NotFound) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                });
            }
            start.wait();
            fs.snapshot_delete(&taken).expect("deleted");
        });
        let left = fs.snapshots(None).expect("listed");
        assert_eq!(left.len(), 100, "{name} is listed");
    }
}

/// What a write would have taken of the quota is free again when the pool has refused it.
#[test]
fn a_write_that_is_refused_takes_nothing_of_the_quota() {
    const FAR: u64 = 1 << 30;
    let pool = Pool::new(80);
    let fs = pool.open();
    let options = VolumeOptions {
        quota: Quota {
            bytes: FAR + (64 << 20),
            inodes: 0,
        },
        ..VolumeOptions::default()
    };
    let root = fs
        .volume_create(b"/v", &options, &Caller::default())
        .expect("made")
        .ino;
    let [one, other] = [&b"one"[..], b"other"].map(|name| {
        fs.create(root, name, 0o644, &Caller::default())
            .expect("create")
            .ino
    });
    let large = create(&fs, "large");
    let mut len = 0;
    while let Ok(written) = fs.write(large, len, &noise(len, 1 << 20), false) {
        len += written as u64;
    }
    fs.open(one).expect("opened");
    let refused = fs.write(one, FAR, &noise(1, 1 << 20), false);
    assert!(matches!(refused, Err(FsError::NoSpace)), "{refused:?}");
    fs.unlink(Ino::ROOT, b"large").expect("unlink");
    fs.write(other, FAR, b"x", false)
        .expect("there is room, and the quota is free");
    fs.release(one).expect("closed");
    fs.syncfs().expect("sync");
    assert_clean(&fs);
}
