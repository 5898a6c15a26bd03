//! Restoring from snapshots: room that is being given back.

use cfs_format::Ino;
use cfs_fs::{
    Caller, Fs, FsError, Quota, RestoreObserver, Restored, SetAttr, Snapshot, VolumeOptions,
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
        own_domain: false,
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
