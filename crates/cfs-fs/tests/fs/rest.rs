//! When ticks may be slow.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use cfs_format::Ino;
use cfs_fs::{Caller, Fs};

use crate::pool::{Pool, assert_clean};

/// Ticks ten times a second until there is nothing to do any more, milliseconds.
fn until_rest(pool: &Pool, fs: &Fs) -> u64 {
    for tick in 1..2000 {
        pool.sleep_ms(100);
        fs.tick().expect("tick");
        if fs.rests() {
            return tick * 100;
        }
    }
    panic!("it does not rest");
}

/// An idle file system was looked at ten times a second for ever.
#[test]
fn a_file_system_that_nobody_uses_rests() {
    // With room enough that none is looked for.
    let pool = Pool::new(512);
    let fs = pool.open();
    assert!(!fs.rests(), "it has just been opened");
    assert!(until_rest(&pool, &fs) >= 20_000);

    // What is written is stored in its time, although the tick before was slow.
    let made = fs.create(Ino::ROOT, b"file", 0o600, &Caller::default());
    let ino = made.expect("made").ino;
    assert!(!fs.rests(), "a command came");
    until_rest(&pool, &fs);
    fs.write(ino, 0, &[7; 300_000], false).expect("written");
    pool.sleep_ms(1000);
    fs.tick().expect("tick");
    let mut waited = 1000;
    while fs.dirty_bytes() > 0 {
        assert!(!fs.rests(), "it has data to store");
        pool.sleep_ms(100);
        fs.tick().expect("tick");
        waited += 100;
    }
    assert!(waited <= 5500, "{waited}");

    // Nor are access times late, which wait for others.
    until_rest(&pool, &fs);
    fs.read(ino, 0, 100, &mut Vec::new()).expect("read");
    assert!(until_rest(&pool, &fs) >= 45_000);

    // What is removed while it is open goes when it is closed.
    fs.open(ino).expect("open");
    fs.unlink(Ino::ROOT, b"file").expect("removed");
    until_rest(&pool, &fs);
    fs.release(ino).expect("released");
    assert!(!fs.rests(), "it is removed now");
    until_rest(&pool, &fs);
    assert_clean(&fs);
}

#[test]
fn who_waits_for_changes_is_told() {
    let pool = Pool::new(64);
    let fs = pool.open();
    fs.syncfs().expect("synced");
    let (told, heard) = channel();
    let waiting = Arc::clone(&fs);
    let thread = std::thread::spawn(move || {
        for _ in 0..3 {
            waiting.wait_for_changes(Duration::from_secs(3600));
            waiting.write_log().expect("written");
            told.send(()).expect("the test listens");
        }
    });
    let patience = Duration::from_secs(60);
    let made = fs.mkdir(Ino::ROOT, b"dir", 0o700, &Caller::default());
    made.expect("made");
    heard.recv_timeout(patience).expect("a command came");
    fs.end_wait();
    heard.recv_timeout(patience).expect("called");
    fs.end_wait();
    heard.recv_timeout(patience).expect("called again");
    thread.join().expect("it ends");
}
