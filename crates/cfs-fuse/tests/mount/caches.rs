//! What the kernel remembers, and how it is made to forget.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::atomic::{AtomicBool, Ordering};

use cfs_format::Ino;
use cfs_fs::{Caller, RenameFlags, SetAttr, SetTime, Time};

use crate::support::mount;

#[test]
fn the_kernel_forgets_what_it_is_told_to() {
    let Some(test) = mount() else { return };
    let path = test.path("name");
    assert!(!path.exists());
    let caller = Caller::default();
    let attr = test
        .fs
        .create(Ino::ROOT, b"name", 0o644, &caller)
        .expect("create behind its back");
    assert!(!path.exists(), "absent names are remembered");
    test.mounted()
        .invalidate_entry(Ino::ROOT.0, b"name")
        .expect("invalidate");
    assert_eq!(fs::read(&path).expect("read"), b"");

    test.fs
        .write(attr.ino, 0, b"content", false)
        .expect("write behind its back");
    assert_eq!(
        fs::metadata(&path).expect("stat").len(),
        0,
        "attributes are remembered"
    );
    test.mounted()
        .invalidate_inode(attr.ino.0)
        .expect("invalidate");
    // Opening it anew would drop what is remembered, for the sake of the access time.
    let file = fs::File::open(&path).expect("open");
    let content = || {
        let mut content = [0; 7];
        file.read_exact_at(&mut content, 0).expect("read");
        content
    };
    assert_eq!(&content(), b"content");

    test.fs
        .write(attr.ino, 0, b"CONTENT", false)
        .expect("write behind its back");
    assert_eq!(&content(), b"content", "content is remembered");
    test.mounted()
        .invalidate_inode(attr.ino.0)
        .expect("invalidate");
    assert_eq!(&content(), b"CONTENT");

    // What it does not know, it can forget as well.
    test.mounted()
        .invalidate_entry(Ino::ROOT.0, b"never seen")
        .expect("invalidate");
    test.mounted()
        .invalidate_inode(0x1234_5678)
        .expect("invalidate");
}

/// What a directory lists is asked for once, until it changes: through the mount, or elsewhere, when the kernel is told.
#[test]
fn a_listing_is_remembered_until_it_changes() {
    let Some(test) = mount() else { return };
    let path = test.path("dir");
    fs::create_dir(&path).expect("made");
    let listed = || {
        let entries = fs::read_dir(&path).expect("listed");
        let name = |entry: std::io::Result<fs::DirEntry>| {
            let name = entry.expect("an entry").file_name();
            name.into_string().expect("UTF-8")
        };
        let mut names: Vec<String> = entries.map(name).collect();
        names.sort_unstable();
        names.concat()
    };
    fs::write(path.join("a"), b"").expect("written");
    assert_eq!(listed(), "a");
    fs::write(path.join("b"), b"").expect("written");
    assert_eq!(listed(), "ab");
    fs::remove_file(path.join("a")).expect("removed");
    assert_eq!(listed(), "b");
    fs::rename(path.join("b"), path.join("c")).expect("renamed");
    assert_eq!(listed(), "c");

    let parent = Ino(fs::metadata(&path).expect("stat").ino());
    let create = |name: &[u8]| {
        let made = test.fs.create(parent, name, 0o644, &Caller::default());
        made.expect("created behind its back");
    };
    let invalidate = || {
        let told = test.mounted().invalidate_inode(parent.0);
        told.expect("invalidate");
    };
    assert_eq!(listed(), "c");
    create(b"d");
    // The first change since the last listing makes the access time due.
    assert_eq!(listed(), "cd");
    invalidate();
    assert_eq!(listed(), "cd");
    let atime = fs::metadata(&path).expect("stat").atime();
    let forth = SetAttr {
        atime: Some(SetTime::At(Time {
            seconds: atime + 3600,
            nanos: 0,
        })),
        ..SetAttr::default()
    };
    test.fs.setattr(parent, &forth).expect("set");
    create(b"e");
    assert_eq!(listed(), "cd", "a listing is remembered");
    invalidate();
    assert_eq!(listed(), "cde");
}

/// Snapshots come and go without the kernel, which is not told.
#[test]
fn a_list_of_snapshots_is_always_asked_for() {
    let Some(test) = mount() else { return };
    let count = || {
        let list = fs::read_dir(test.path(".snapshots"));
        list.expect("listed").count()
    };
    for before in 0..3 {
        assert_eq!((count(), count()), (before, before));
        let name = [b'a' + before as u8];
        test.fs.snapshot_create(b"/", &name).expect("taken");
    }
    let taken = test.fs.snapshot(b"/", b"b").expect("there");
    test.fs.snapshot_delete(&taken).expect("deleted");
    assert_eq!(count(), 2);
}

/// A file that another front end replaces, again and again, by renaming another one to its name, is there at any moment.
#[test]
fn a_name_that_is_replaced_elsewhere_is_always_there() {
    let Some(test) = mount() else {
        return;
    };
    let path = test.path("f");
    fs::write(&path, b"x").expect("written");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let replacing = scope.spawn(|| {
            let caller = Caller::default();
            while !stop.load(Ordering::Relaxed) {
                let made = test.fs.create(Ino::ROOT, b"new", 0o644, &caller);
                let ino = made.expect("made").ino;
                test.fs.write(ino, 0, b"x", false).expect("written");
                let flags = RenameFlags::default();
                let renamed = test.fs.rename(Ino::ROOT, b"new", Ino::ROOT, b"f", flags);
                renamed.expect("renamed");
                test.fs.tick().expect("tick");
            }
        });
        let mut failed = Vec::new();
        for _ in 0..3000 {
            failed.extend(fs::File::open(&path).err());
            failed.extend(fs::metadata(&path).err());
        }
        stop.store(true, Ordering::Relaxed);
        replacing.join().expect("no panic");
        // Replaced twice between a look-up and what followed.
        failed.retain(|error| error.raw_os_error() != Some(libc::ESTALE));
        assert!(failed.is_empty(), "{} times, {:?}", failed.len(), failed[0]);
    });
}
