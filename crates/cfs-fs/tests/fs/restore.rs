//! Restoring from snapshots: what is left alone, who can look meanwhile, and room that is being given back.

use cfs_format::Ino;
use cfs_fs::{
    Caller, Fs, FsError, Quota, RestoreObserver, Restored, SetAttr, Snapshot, VolumeOptions,
    XattrFlags,
};

use crate::pool::{Pool, Rng, assert_clean};

struct Quiet;

impl RestoreObserver for Quiet {
    fn inode_changed(&mut self, _: Ino) {}
    fn entry_changed(&mut self, _: Ino, _: &[u8]) {}
    fn problem(&mut self, path: &[u8], error: &FsError) {
        panic!("{}: {error}", String::from_utf8_lossy(path));
    }
    fn goes_on(&mut self) -> bool {
        true
    }
}

fn directory(fs: &Fs, parent: Ino, name: &str, mode: u32) -> Ino {
    let made = fs.mkdir(parent, name.as_bytes(), mode, &Caller::default());
    made.expect("a directory").ino
}

fn file(fs: &Fs, parent: Ino, name: &str, content: &[u8]) -> Ino {
    let made = fs.create(parent, name.as_bytes(), 0o644, &Caller::default());
    let ino = made.expect("a file").ino;
    fs.release(ino).expect("it is open");
    for (at, part) in content.chunks(1 << 20).enumerate() {
        let written = fs.write(ino, (at as u64) << 20, part, false);
        assert_eq!(written.expect("there is room"), part.len());
    }
    ino
}

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    (0..bytes / 8)
        .flat_map(|_| rng.next().to_le_bytes())
        .collect()
}

fn restore(fs: &Fs, snapshot: &Snapshot, path: &str, below: &str) -> Restored {
    let (path, below) = (path.as_bytes(), below.as_bytes());
    let done = fs.snapshot_restore(snapshot, path, below, false, &mut Quiet);
    done.expect("restored")
}

/// A second run brought everything back once more that the first had made, with new change times, and an incremental stream
/// carried all of it.
#[test]
fn what_is_as_it_was_is_left_alone() {
    let pool = Pool::new(64);
    let fs = pool.open();
    let d = directory(&fs, Ino::ROOT, "d", 0o755);
    let below = directory(&fs, d, "below", 0o750);
    let plain = XattrFlags::default();
    fs.setxattr(below, b"user.of", b"a directory", plain)
        .expect("room");
    file(&fs, below, "small", b"text");
    let large = file(&fs, below, "large", &noise(1, 600_000));
    fs.setxattr(large, b"user.of", b"a file", plain)
        .expect("room");
    fs.symlink(below, b"symlink", b"small", &Caller::default())
        .expect("room");
    fs.mknod(below, b"pipe", libc::S_IFIFO | 0o600, 0, &Caller::default())
        .expect("room");
    // Two files with two names each, and the same in them.
    for (one, other) in [("a1", "a2"), ("b1", "b2")] {
        let ino = file(&fs, below, one, b"twice");
        fs.link(ino, below, other.as_bytes()).expect("room");
    }
    let snapshot = fs.snapshot_create(b"/d", b"s").expect("taken");
    for name in ["small", "large", "symlink", "pipe", "a1", "a2", "b1", "b2"] {
        fs.unlink(below, name.as_bytes()).expect("it is there");
    }
    fs.rmdir(d, b"below").expect("it is empty");

    let first = restore(&fs, &snapshot, "/d", "");
    assert_eq!((first.restored, first.unchanged), (10, 0));
    let look = |path: &str| fs.resolve(path.as_bytes()).expect("it is there");
    let before = look("/d/below/large");
    pool.sleep_ms(1000);
    let mut content = Vec::new();
    fs.read(before.ino, 0, 10, &mut content).expect("read");
    fs.syncfs().expect("written");
    let again = restore(&fs, &snapshot, "/d", "");
    assert_eq!((again.restored, again.unchanged), (0, 10));
    assert_eq!(look("/d/below/large").ctime, before.ctime);

    // What differs in one thing is brought back alone.
    let below = look("/d/below").ino;
    let touch: [&dyn Fn(); 5] = [
        &|| {
            let set = SetAttr {
                mode: Some(0o600),
                ..SetAttr::default()
            };
            fs.setattr(before.ino, &set).expect("set");
        },
        &|| {
            fs.write(before.ino, 300_000, b"x", false).expect("room");
        },
        &|| {
            fs.setxattr(before.ino, b"user.of", b"another", plain)
                .expect("room");
        },
        &|| {
            let set = SetAttr {
                mtime: Some(cfs_fs::SetTime::Now),
                ..SetAttr::default()
            };
            fs.setattr(below, &set).expect("set");
        },
        // Both names of one file lead to the other, which has the same in it.
        &|| {
            let a = look("/d/below/a1").ino;
            for name in [&b"b1"[..], b"b2"] {
                fs.unlink(below, name).expect("it is there");
                fs.link(a, below, name).expect("room");
            }
        },
    ];
    for (at, touch) in touch.iter().enumerate() {
        touch();
        let done = restore(&fs, &snapshot, "/d", "");
        assert!((1..=5).contains(&done.restored), "{at}: {done:?}");
        let again = restore(&fs, &snapshot, "/d", "");
        assert_eq!((again.restored, again.unchanged), (0, 10), "{at}");
    }
    assert_ne!(look("/d/below/a1").ino, look("/d/below/b1").ino);
    assert_eq!(look("/d/below/b1").ino, look("/d/below/b2").ino);
    assert_clean(&fs);
}

/// Bringing back one name of a file made another file of it.
#[test]
fn a_name_comes_back_to_the_file_that_had_it() {
    let pool = Pool::new(64);
    let fs = pool.open();
    let d = directory(&fs, Ino::ROOT, "d", 0o755);
    let ino = file(&fs, d, "one", b"both");
    for name in ["two", "three"] {
        fs.link(ino, d, name.as_bytes()).expect("room");
    }
    let snapshot = fs.snapshot_create(b"/d", b"s").expect("taken");
    fs.unlink(d, b"one").expect("it is there");
    assert_eq!(restore(&fs, &snapshot, "/d", "one").restored, 1);
    // Another file has taken a name.
    fs.unlink(d, b"two").expect("it is there");
    file(&fs, d, "two", b"another");
    assert_eq!(restore(&fs, &snapshot, "/d", "two").restored, 1);
    for name in ["one", "two"] {
        assert_eq!(fs.lookup(d, name.as_bytes()).expect("there").ino, ino);
    }

    // What the other names stand for is not changed.
    fs.write(ino, 0, b"since", false).expect("room");
    fs.unlink(d, b"one").expect("it is there");
    assert_eq!(restore(&fs, &snapshot, "/d", "one").restored, 1);
    let one = fs.lookup(d, b"one").expect("there").ino;
    let mut content = Vec::new();
    fs.read(one, 0, 9, &mut content).expect("read");
    assert_eq!(content, b"both");
    fs.read(ino, 0, 9, &mut content).expect("read");
    assert_eq!(content, b"since");
    // All of them are one file again.
    restore(&fs, &snapshot, "/d", "");
    let inos =
        ["one", "two", "three"].map(|name| fs.lookup(d, name.as_bytes()).expect("there").ino);
    assert!(inos.iter().all(|it| *it == inos[0]), "{inos:?}");
    assert_clean(&fs);
}

/// Insists that what comes into private directories is private at once.
struct Outsider<'a>(&'a Fs);

impl RestoreObserver for Outsider<'_> {
    fn inode_changed(&mut self, _: Ino) {}
    fn entry_changed(&mut self, parent: Ino, name: &[u8]) {
        let mut at = parent;
        loop {
            let attr = self.0.getattr(at).expect("it is there");
            if attr.mode & 0o077 == 0 {
                return;
            }
            let above = self.0.parent(at).expect("it has one");
            if above == at {
                assert_eq!(name, b"home", "everybody can read it");
                return;
            }
            at = above;
        }
    }
    fn problem(&mut self, path: &[u8], error: &FsError) {
        panic!("{}: {error}", String::from_utf8_lossy(path));
    }
    fn goes_on(&mut self) -> bool {
        true
    }
}

/// A directory that was made again let everybody pass until all in it was there, and for ever where it was only on the way
/// to what was asked for.
#[test]
fn private_directories_are_private_while_they_are_filled() {
    let owner = Caller {
        uid: 1000,
        gid: 1000,
        ..Caller::default()
    };
    for below in ["", "home", "home/docs", "home/docs/f"] {
        for what in ["gone", "opened"] {
            let pool = Pool::new(64);
            let fs = pool.open();
            let top = directory(&fs, Ino::ROOT, "top", 0o755);
            let home = fs.mkdir(top, b"home", 0o700, &owner).expect("room").ino;
            let docs = directory(&fs, home, "docs", 0o755);
            file(&fs, docs, "f", b"private");
            let snapshot = fs.snapshot_create(b"/top", b"s").expect("taken");
            fs.unlink(docs, b"f").expect("there");
            if what == "gone" {
                fs.rmdir(home, b"docs").expect("there");
                fs.rmdir(top, b"home").expect("there");
            } else if below.is_empty() || below == "home" {
                let set = SetAttr {
                    mode: Some(0o755),
                    ..SetAttr::default()
                };
                fs.setattr(home, &set).expect("set");
            }
            let mut observer = Outsider(&fs);
            fs.snapshot_restore(&snapshot, b"/top", below.as_bytes(), false, &mut observer)
                .expect("restored");
            let home = fs.resolve(b"/top/home").expect("there");
            assert_eq!((home.mode & 0o777, home.uid), (0o700, 1000), "{below}");
            assert!(below.is_empty() || fs.resolve(b"/top/home/docs").is_ok() || below == "home");
            assert_clean(&fs);
        }
    }
    // Nothing tells what the directories above the snapshot's were.
    let pool = Pool::new(64);
    let fs = pool.open();
    let home = directory(&fs, Ino::ROOT, "home", 0o700);
    let docs = directory(&fs, home, "docs", 0o755);
    file(&fs, docs, "f", b"private");
    let snapshot = fs.snapshot_create(b"/home/docs", b"s").expect("taken");
    fs.unlink(docs, b"f").expect("there");
    fs.rmdir(home, b"docs").expect("there");
    fs.rmdir(Ino::ROOT, b"home").expect("there");
    fs.snapshot_restore(&snapshot, b"/home/docs", b"", false, &mut Outsider(&fs))
        .expect("restored");
    assert_eq!(fs.resolve(b"/home").expect("there").mode & 0o777, 0o700);
    assert_eq!(
        fs.resolve(b"/home/docs").expect("there").mode & 0o777,
        0o755
    );
}

/// What was removed a moment before still counted, and copying by reference and restoring were refused for it, where
/// writing is not.
#[test]
fn what_is_removed_makes_room_for_what_is_brought_back() {
    const BYTES: usize = 16 << 20;
    let pool = Pool::new(128);
    let fs = pool.open();
    let options = VolumeOptions {
        quota: Quota {
            bytes: BYTES as u64 + 4096,
            inodes: 4,
        },
        ..VolumeOptions::default()
    };
    let root = fs.volume_create(b"/v", &options, &Caller::default());
    let root = root.expect("a volume").ino;
    let content = noise(2, BYTES);
    file(&fs, root, "a", &content);
    let snapshot = fs.snapshot_create(b"/v", b"s").expect("taken");
    let seen = root.in_view(snapshot.view).expect("a small number");
    let seen = fs.lookup(seen, b"a").expect("it shows it").ino;

    fs.unlink(root, b"a").expect("it is there");
    assert_eq!(restore(&fs, &snapshot, "/v", "").problems, 0);
    fs.unlink(root, b"a").expect("it is there");
    let copy = file(&fs, root, "copy", b"");
    let copied = fs.copy_range(seen, 0, copy, 0, BYTES as u64);
    assert_eq!(copied.expect("it fits"), BYTES as u64);
    fs.unlink(root, b"copy").expect("it is there");
    let long = file(&fs, root, "long", b"");
    let set = SetAttr {
        size: Some(BYTES as u64),
        ..SetAttr::default()
    };
    fs.setattr(long, &set).expect("it fits");
    fs.unlink(root, b"long").expect("it is there");
    let long = file(&fs, root, "longer", b"");
    let mode = cfs_fs::AllocateMode::Allocate { keep_size: false };
    fs.fallocate(long, mode, 0, BYTES as u64, false)
        .expect("it fits");
    fs.unlink(root, b"longer").expect("it is there");

    // Inodes count too.
    let large = file(&fs, root, "a", &content);
    for name in ["b", "c"] {
        file(&fs, root, name, b"");
    }
    fs.flush(large).expect("room");
    let refused = fs.mkdir(root, b"d", 0o755, &Caller::default());
    assert!(matches!(refused, Err(FsError::Quota)), "{refused:?}");
    fs.unlink(root, b"a").expect("it is there");
    directory(&fs, root, "d", 0o755);
    assert_clean(&fs);
}
