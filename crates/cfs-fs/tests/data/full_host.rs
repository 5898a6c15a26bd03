//! A host that is full.

use cfs_device::FaultPlan;
use cfs_format::{BLOCK_BYTES, Ino, SEGMENT_BYTES};
use cfs_fs::{AllocateMode, Caller, Fs, FsError, SetAttr};

use crate::limits::{create, noise};
use crate::pool::{Pool, Rng, assert_clean};

/// A pool of so many segments on a host with room for 120 MiB.
fn pool(segments: u32) -> Pool {
    let pool = Pool::new(segments);
    pool.device.set_faults(FaultPlan {
        room_blocks_max: Some(60 * u64::from(SEGMENT_BYTES / BLOCK_BYTES)),
        ..FaultPlan::default()
    });
    pool
}

/// Writes a file until there is no room.
fn fill(fs: &Fs, ino: Ino) {
    let mut end = 0;
    loop {
        match fs.write(ino, end, &noise(end, 1 << 20), false) {
            Ok(written) => end += written as u64,
            Err(FsError::NoSpace) => break,
            Err(error) => panic!("{error}"),
        }
    }
}

fn set_mode(fs: &Fs, ino: Ino) {
    let mode = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    fs.setattr(ino, &mode).expect("what takes no room");
}

/// Who is refused looks for room first, with a checkpoint that takes some. Each left a small table, until there was room
/// for no checkpoint any more, and so for none that frees anything.
#[test]
fn who_is_refused_takes_no_room_from_others() {
    for hides_room in [false, true] {
        let pool = pool(80);
        if hides_room {
            pool.device.hide_room();
        }
        let fs = pool.open();
        let mut files = Vec::new();
        for index in 0..1500 {
            let ino = create(&fs, &format!("f{index}"));
            fs.write(ino, 0, &noise(index, 3000), false).expect("write");
            fs.fsync(ino, false).expect("fsync");
            files.push(ino);
        }
        let large = create(&fs, "large");
        fill(&fs, large);
        for (turn, ino) in files.iter().take(100).enumerate() {
            set_mode(&fs, *ino);
            let refused = fs.write(large, 1 << 30, &noise(turn as u64, 4 << 20), false);
            assert!(refused.is_err() || turn < 10, "{turn}");
        }
        let segments = fs.store().stats().segments;
        assert!(segments.table < 16, "{segments:?}");
        fs.unlink(Ino::ROOT, b"large").expect("unlink");
        for _ in 0..20 {
            pool.sleep_ms(100);
            fs.tick().expect("tick");
        }
        let after = fs.create(Ino::ROOT, b"after", 0o644, &Caller::default());
        let after = after.expect("there is room again").ino;
        fs.write(after, 0, &noise(1, 8 << 20), false)
            .expect("write");
        fs.fsync(after, false).expect("fsync");
        drop(fs);
        assert_clean(&pool.open());
    }
}

/// It had been accepted without a promise of room: a sync found none, and each later one too.
#[test]
fn content_that_leaves_its_row_is_promised_room() {
    let pool = pool(80);
    let fs = pool.open();
    let (punched, grown) = (create(&fs, "punched"), create(&fs, "grown"));
    let content = noise(1, 100);
    for ino in [punched, grown] {
        fs.write(ino, 0, &content, false).expect("write");
        fs.fsync(ino, false).expect("fsync");
    }
    let large = create(&fs, "large");
    fill(&fs, large);
    // The rest, down to the smallest write.
    for turn in 0.. {
        let name = format!("last-{turn}");
        let made = fs.create(Ino::ROOT, name.as_bytes(), 0o644, &Caller::default());
        let written = made.and_then(|last| fs.write(last.ino, 0, &noise(turn, 5000), false));
        if written.is_err() {
            break;
        }
    }
    let refused = fs.fallocate(punched, AllocateMode::Punch, 10, 20, false);
    assert!(matches!(refused, Err(FsError::NoSpace)), "{refused:?}");
    let size = SetAttr {
        size: Some(10_000),
        ..SetAttr::default()
    };
    let refused = fs.setattr(grown, &size).map(drop);
    assert!(matches!(refused, Err(FsError::NoSpace)), "{refused:?}");
    fs.syncfs().expect("nothing that was refused is left");
    for ino in [punched, grown] {
        let mut out = Vec::new();
        fs.read(ino, 0, 1000, &mut out).expect("read");
        assert_eq!(out, content);
    }
    fs.unlink(Ino::ROOT, b"large").expect("unlink");
    for _ in 0..20 {
        pool.sleep_ms(100);
        fs.tick().expect("tick");
    }
    let punch = fs.fallocate(punched, AllocateMode::Punch, 10, 20, false);
    punch.expect("there is room again");
    fs.setattr(grown, &size).expect("there is room again");
    drop(fs);
    assert_clean(&pool.open());
}

/// What a longer one makes of the tables, when the pool is opened after a kill, needs more room than is kept for that.
#[test]
fn the_log_stays_short_on_a_full_host() {
    let pool = pool(80);
    let fs = pool.open();
    let large = create(&fs, "large");
    fill(&fs, large);
    for _ in 0..2000 {
        set_mode(&fs, large);
        fs.fsync(large, false).expect("fsync");
        let replay_bytes = fs.store().stats().replay_bytes;
        assert!(replay_bytes < 5 << 20, "{replay_bytes} bytes of log");
    }
}

/// Their content lies in the tables, which have to be merged for it to go.
#[test]
fn a_host_that_small_files_have_filled_can_be_emptied() {
    let pool = pool(400);
    let fs = pool.open();
    let mut names = Vec::new();
    for number in 0.. {
        let name = format!("f{number}");
        let made = fs.create(Ino::ROOT, name.as_bytes(), 0o644, &Caller::default());
        let Ok(made) = made else { break };
        names.push(name);
        let written = fs.write(made.ino, 0, &noise(number, 2500), false);
        if written.and_then(|_| fs.flush(made.ino)).is_err() {
            break;
        }
        if number % 200 == 0 {
            pool.sleep_ms(100);
            fs.tick().expect("tick");
        }
    }
    assert!(names.len() > 10_000, "{} files", names.len());
    let mut rng = Rng::new(1);
    while !names.is_empty() {
        let name = names.swap_remove(rng.below(names.len() as u64) as usize);
        fs.unlink(Ino::ROOT, name.as_bytes()).expect("unlink");
        if names.len() % 200 == 0 {
            pool.sleep_ms(100);
            fs.tick().expect("tick");
        }
    }
    let ino = create(&fs, "large");
    fs.write(ino, 0, &noise(1, 20 << 20), false)
        .expect("there is room again");
    fs.fsync(ino, false).expect("fsync");
    drop(fs);
    assert_clean(&pool.open());
}
