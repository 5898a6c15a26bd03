//! Clones: what they show, what changing them changes, what they keep others from, and what is left of them.

use std::collections::{BTreeMap, HashSet};

use cfs_format::{Ino, ViewId};
use cfs_fs::command::{Command, CopyUp};
use cfs_fs::{
    Caller, Fs, FsError, LockChange, Quota, RenameFlags, RestoreObserver, SetAttr, VolumeOptions,
    XattrFlags,
};

use crate::pool::{Pool, Rng, assert_clean};

/// What a path is: type and permission bits, names, owner, size, content or target, and attributes.
type Shown = (u32, u32, u32, u64, Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>);

/// All below a directory, by path, each as [`Shown`].
pub fn tree(fs: &Fs, root: Ino) -> BTreeMap<Vec<u8>, Shown> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![(Vec::new(), root)];
    while let Some((path, ino)) = waiting.pop() {
        let attr = fs.getattr(ino).expect("it has a name");
        let content = match attr.kind() {
            libc::S_IFREG => {
                let mut out = Vec::new();
                fs.read(ino, 0, attr.size as usize, &mut out).expect("read");
                out
            }
            libc::S_IFLNK => fs.readlink(ino).expect("a target"),
            libc::S_IFDIR => {
                let limit = fs.dir_limit(ino).expect("a directory");
                for entry in fs.read_dir(ino, 0, limit, usize::MAX).expect("listed") {
                    let name = fs.lookup(ino, &entry.name).expect("found").ino;
                    assert_eq!(name, entry.ino, "{:?}", entry.name);
                    waiting.push(([&path[..], b"/", &entry.name].concat(), entry.ino));
                }
                assert!(fs.parent(ino).is_ok());
                Vec::new()
            }
            _ => Vec::new(),
        };
        let names = fs.listxattr(ino).expect("listed").into_iter();
        let xattrs = names.map(|name| {
            let value = fs.getxattr(ino, &name).expect("there");
            (name, value)
        });
        let size = if attr.kind() == libc::S_IFDIR {
            0
        } else {
            attr.size
        };
        let shown = (
            attr.mode,
            attr.nlink,
            attr.uid,
            size,
            content,
            xattrs.collect(),
        );
        found.insert(path, shown);
    }
    found
}

fn at(fs: &Fs, path: &str) -> Ino {
    fs.resolve(path.as_bytes()).expect("it is there").ino
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut bytes = vec![0; len];
    bytes.fill_with(|| rng.next() as u8);
    bytes
}

fn file(fs: &Fs, parent: Ino, name: &str, content: &[u8]) -> Ino {
    let made = fs.create(parent, name.as_bytes(), 0o644, &Caller::default());
    let ino = made.expect("a file").ino;
    fs.write(ino, 0, content, false).expect("written");
    fs.flush(ino).expect("flushed");
    ino
}

fn dir(fs: &Fs, parent: Ino, name: &str) -> Ino {
    let made = fs.mkdir(parent, name.as_bytes(), 0o755, &Caller::default());
    made.expect("a directory").ino
}

/// A volume `/v` with some of everything.
fn filled(fs: &Fs) -> Ino {
    let made = fs.volume_create(b"/v", &VolumeOptions::default(), &Caller::default());
    let root = made.expect("a volume").ino;
    file(fs, root, "small", b"inline");
    let large = file(fs, root, "large", &noise(1, 900_000));
    let value = noise(2, 300);
    fs.setxattr(large, b"user.kept", &value, XattrFlags::default())
        .expect("set");
    let d = dir(fs, root, "d");
    let e = dir(fs, d, "e");
    let linked = file(fs, d, "linked", &noise(3, 200_000));
    fs.link(linked, e, b"also").expect("linked");
    fs.link(linked, root, b"and here").expect("linked");
    fs.symlink(e, b"symbolic", b"../linked", &Caller::default())
        .expect("a link");
    fs.mknod(e, b"fifo", libc::S_IFIFO | 0o600, 0, &Caller::default())
        .expect("a pipe");
    for number in 0..40 {
        file(fs, e, &format!("f{number}"), &noise(number, 100));
    }
    root
}

fn snapshot(fs: &Fs, path: &str, name: &str) -> std::sync::Arc<cfs_fs::Snapshot> {
    fs.snapshot_create(path.as_bytes(), name.as_bytes())
        .expect("taken")
}

fn clone(fs: &Fs, of: &cfs_fs::Snapshot, path: &str) -> Ino {
    fs.clone_create(of, path.as_bytes(), Quota::default(), &Caller::default())
        .expect("a clone")
        .ino
}

/// Changes something of every kind below a copy of [`filled`].
fn change(fs: &Fs, root: Ino) {
    let plain = RenameFlags::default();
    let large = fs.lookup(root, b"large").expect("there").ino;
    fs.write(large, 400_000, b"changed here", false)
        .expect("written");
    fs.flush(large).expect("flushed");
    let d = fs.lookup(root, b"d").expect("there").ino;
    let e = fs.lookup(d, b"e").expect("there").ino;
    fs.unlink(e, b"f3").expect("removed");
    fs.unlink(e, b"also").expect("removed");
    fs.rename(e, b"f4", root, b"moved", plain).expect("moved");
    fs.rename(e, b"f5", e, b"f6", plain).expect("replaced");
    let set = SetAttr {
        size: Some(3),
        ..SetAttr::default()
    };
    let small = fs.lookup(root, b"small").expect("there").ino;
    fs.setattr(small, &set).expect("cut");
    fs.flush(small).expect("flushed");
    let mode = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    let f7 = fs.lookup(e, b"f7").expect("there").ino;
    fs.setattr(f7, &mode).expect("changed");
    fs.removexattr(large, b"user.kept").expect("removed");
    file(fs, d, "new", &noise(77, 150_000));
    dir(fs, e, "made");
    fs.rename(d, b"e", root, b"e", plain).expect("moved");
    let moved = fs.lookup(root, b"moved").expect("there").ino;
    fs.link(moved, d, b"again").expect("linked");
}

fn references(fs: &Fs) -> u64 {
    fs.store().freeze().pool.reference_count.get()
}

fn settle(fs: &Fs) {
    for _ in 0..40 {
        fs.tick().expect("no trouble");
    }
}

#[test]
fn a_clone_is_what_the_snapshot_was_and_each_side_changes_alone() {
    let pool = Pool::new(96);
    let fs = pool.open();
    let root = filled(&fs);
    let then = tree(&fs, root);
    let taken = snapshot(&fs, "/v", "s");
    let before = references(&fs);
    let cloned = clone(&fs, &taken, "/c");
    assert_eq!(references(&fs), before, "nothing is copied");
    assert_eq!(tree(&fs, cloned), then);
    assert_eq!(references(&fs), before, "nor by reading");
    assert_clean(&fs);

    change(&fs, root);
    let origin = tree(&fs, root);
    assert_ne!(origin, then);
    assert_eq!(
        tree(&fs, cloned),
        then,
        "the origin has changed, not the clone"
    );
    assert_clean(&fs);
    change(&fs, cloned);
    assert_eq!(tree(&fs, cloned), origin, "the same changes");
    assert_eq!(tree(&fs, root), origin);
    assert_eq!(tree(&fs, at(&fs, "/v/.snapshots/s")), then);
    assert_clean(&fs);
    file(&fs, cloned, "only here", b"x");
    fs.unlink(cloned, b"and here").expect("removed");
    let now = tree(&fs, cloned);
    assert_eq!(tree(&fs, root), origin);
    fs.store().sync().expect("durable");

    // Replayed from the log, and as tables.
    let crashed = pool.power_cut(5).open();
    assert_eq!(tree(&crashed, at(&crashed, "/c")), now);
    assert_clean(&crashed);
    drop(crashed);
    fs.close().expect("closed");
    drop(fs);
    let fs = pool.open();
    assert_eq!(tree(&fs, at(&fs, "/c")), now);
    assert_eq!(tree(&fs, at(&fs, "/v")), origin);
    assert_clean(&fs);

    // Its snapshot is needed; then everything comes back.
    assert!(matches!(
        fs.snapshot_delete(&taken),
        Err(FsError::NeededByClone)
    ));
    assert!(matches!(fs.volume_delete(b"/c"), Err(FsError::NotEmpty)));
    assert!(matches!(fs.clone_delete(b"/v"), Err(FsError::NotFound)));
    fs.clone_delete(b"/c").expect("removed");
    assert!(matches!(fs.resolve(b"/c"), Err(FsError::NotFound)));
    assert_clean(&fs);
    fs.snapshot_delete(&taken).expect("not needed any more");
    settle(&fs);
    assert_eq!(fs.store().volumes().len(), 2);
    assert_clean(&fs);
    assert_eq!(tree(&fs, at(&fs, "/v")), origin);
}

#[test]
fn numbers_names_and_snapshots_of_clones() {
    let pool = Pool::new(96);
    let fs = pool.open();
    let root = filled(&fs);
    let then = tree(&fs, root);
    let taken = snapshot(&fs, "/v", "s");
    let cloned = clone(&fs, &taken, "/c");
    let also = at(&fs, "/c/d/e/also");
    assert_eq!(also, at(&fs, "/c/and here"), "one inode with its names");
    assert_ne!(also, at(&fs, "/v/and here"));
    assert_ne!(also, at(&fs, "/v/.snapshots/s/and here"));
    assert_eq!(fs.parent(cloned).expect("above"), Ino::ROOT);
    assert_eq!(
        fs.parent(at(&fs, "/c/d/e")).expect("above"),
        at(&fs, "/c/d")
    );
    assert_eq!(
        fs.path_of(at(&fs, "/c/d/e")).expect("read"),
        Some(b"/c/d/e".to_vec())
    );
    let list = fs.lookup(cloned, b".snapshots").expect("there").ino;
    assert_ne!(list, fs.lookup(root, b".snapshots").expect("there").ino);
    assert_eq!(list.view(), Some((ViewId::LIST, cloned)));
    assert_eq!(fs.read_dir(list, 0, u64::MAX, 9).expect("listed"), []);

    let first = snapshot(&fs, "/c", "own");
    let inner = snapshot(&fs, "/c/d", "inner");
    assert_eq!(tree(&fs, at(&fs, "/c/.snapshots/own")), then);
    change(&fs, cloned);
    let changed = tree(&fs, cloned);
    assert_eq!(tree(&fs, at(&fs, "/c/.snapshots/own")), then);
    assert!(fs.resolve(b"/c/d/.snapshots/own/e/f3").is_ok());
    assert!(fs.resolve(b"/c/d/.snapshots/inner/e/f3").is_ok());
    let second = snapshot(&fs, "/c", "later");
    let copy = clone(&fs, &first, "/c/of first");
    let later = clone(&fs, &second, "/of second");
    let part = clone(&fs, &inner, "/part");
    assert_eq!(tree(&fs, copy), then);
    assert_eq!(tree(&fs, later), changed);
    assert_clean(&fs);
    change(&fs, copy);
    fs.unlink(later, b"moved").expect("removed");
    fs.unlink(part, b"linked").expect("removed");
    fs.unlink(fs.lookup(part, b"e").expect("there").ino, b"also")
        .expect("removed, and a name outside is left");
    assert_eq!(tree(&fs, copy), changed);
    fs.unlink(cloned, b"large").expect("removed");
    assert_eq!(tree(&fs, at(&fs, "/c/.snapshots/own")), then);
    assert_eq!(tree(&fs, at(&fs, "/c/.snapshots/later")), changed);
    assert_clean(&fs);
    // Nothing goes that another one needs.
    assert!(matches!(fs.clone_delete(b"/c"), Err(FsError::HasSnapshots)));
    assert!(matches!(
        fs.snapshot_delete(&first),
        Err(FsError::NeededByClone)
    ));
    let ids = |all: Vec<cfs_fs::Volume>| -> Vec<_> { all.into_iter().map(|it| it.path).collect() };
    assert_eq!(ids(fs.clones_of(&first)), [b"/c/of first".to_vec()]);
    fs.clone_delete(b"/c/of first").expect("removed");
    fs.clone_delete(b"/of second").expect("removed");
    fs.clone_delete(b"/part").expect("removed");
    for it in [&first, &second, &inner] {
        fs.snapshot_delete(it).expect("deleted");
    }
    fs.clone_delete(b"/c").expect("removed");
    settle(&fs);
    assert_clean(&fs);
    assert_eq!(fs.store().volumes().len(), 2);
    assert_eq!(tree(&fs, root), then);
}

#[test]
fn a_copy_that_is_not_complete_does_not_count() {
    let pool = Pool::new(96);
    let fs = pool.open();
    let root = filled(&fs);
    let many = file(&fs, root, "many", &noise(9, 8192));
    for place in 1..30 {
        fs.copy_range(many, 0, many, place * 20_000, 8192)
            .expect("a reference");
    }
    let then = tree(&fs, root);
    let taken = snapshot(&fs, "/v", "s");
    let cloned = clone(&fs, &taken, "/c");
    let step = |ino: Ino| {
        let command = Command::CopyUp(CopyUp {
            ino,
            salt: [5; 16],
            rows_max: 7,
        });
        let mut txn = fs.store().begin();
        cfs_fs::replay(&mut txn, &command.encode()).expect("applied");
        txn.commit(&command.encode()).expect("committed");
    };
    let e = at(&fs, "/c/d/e");
    let many = at(&fs, "/c/many");
    for _ in 0..3 {
        step(e);
        step(many);
        assert_clean(&fs);
        assert_eq!(tree(&fs, cloned), then);
    }
    let half = snapshot(&fs, "/c", "half");
    fs.unlink(e, b"f1").expect("removed");
    fs.write(many, 3, b"x", false).expect("written");
    assert_clean(&fs);
    assert_eq!(tree(&fs, at(&fs, "/c/.snapshots/half")), then);
    assert_eq!(tree(&fs, root), then);
    step(at(&fs, "/c/d"));
    fs.snapshot_delete(&half).expect("deleted");
    fs.clone_delete(b"/c").expect("removed");
    assert_clean(&fs);
    settle(&fs);
    assert_clean(&fs);
}

#[test]
fn what_keeps_a_clone_and_what_it_may_hold() {
    let pool = Pool::new(96);
    let fs = pool.open();
    let root = filled(&fs);
    let held = fs.lookup(root, b"large").expect("there").ino;
    let lock = LockChange {
        hold: Some(true),
        ..LockChange::default()
    };
    fs.set_lock(held, lock).expect("held");
    let taken = snapshot(&fs, "/v", "s");
    let quota = Quota {
        bytes: 1_000_000,
        inodes: 5,
    };
    let cloned = fs
        .clone_create(&taken, b"/c", quota, &Caller::default())
        .expect("a clone")
        .ino;
    // Locks stay with the origin.
    let large = fs.lookup(cloned, b"large").expect("there").ino;
    assert_eq!(fs.lock(large).expect("read"), None);
    assert!(matches!(
        fs.write(held, 0, b"x", false),
        Err(FsError::Locked)
    ));
    fs.write(large, 0, b"x", false).expect("written");
    fs.flush(large).expect("flushed");
    assert_clean(&fs);
    // What was not changed does not count; what was does, as a whole.
    let linked = fs.lookup(cloned, b"and here").expect("there").ino;
    assert!(matches!(
        fs.write(linked, 0, b"x", false),
        Err(FsError::Quota)
    ));
    assert_eq!(fs.statfs_at(cloned).expect("told").inodes, 1);
    // A file that is open keeps it, a lock too.
    fs.open(large).expect("opened");
    assert!(matches!(fs.clone_delete(b"/c"), Err(FsError::Busy)));
    fs.release(large).expect("closed");
    fs.set_lock(large, lock).expect("held");
    assert!(!fs.volume(b"/c").expect("there").goes_whole());
    assert!(matches!(fs.clone_delete(b"/c"), Err(FsError::Locked)));
    assert!(matches!(fs.unlink(cloned, b"large"), Err(FsError::Locked)));
    assert_clean(&fs);
    // Refusals change nothing.
    let caller = Caller::default();
    let none = Quota::default();
    for (path, expected) in [
        ("/c", "Exists"),
        ("/no/c", "NotFound"),
        ("/v/.snapshots/s/c", "Snapshot"),
        ("/v/.snapshots", "Snapshot"),
    ] {
        let error = fs.clone_create(&taken, path.as_bytes(), none, &caller);
        let error = format!("{:?}", error.expect_err(path));
        assert!(error.starts_with(expected), "{path}: {error}");
    }
    assert_eq!(fs.volumes().len(), 3);
    assert_clean(&fs);
}

#[test]
fn a_damaged_chunk_is_told_of_clones_too() {
    let pool = Pool::new(96);
    let fs = pool.open();
    let root = filled(&fs);
    let taken = snapshot(&fs, "/v", "s");
    let cloned = clone(&fs, &taken, "/c");
    let inner = snapshot(&fs, "/c", "inner");
    clone(&fs, &inner, "/d");
    let all: HashSet<_> = fs
        .store()
        .freeze()
        .chunks()
        .map(|chunk| chunk.expect("read").0)
        .collect();
    let told = |fs: &Fs| -> BTreeMap<(Vec<Vec<u8>>, bool), Ino> {
        let found = fs.affected_by(&all, || true).expect("not ended");
        assert!(found.incomplete.is_none());
        let files = found.files.into_iter();
        files
            .map(|it| ((it.paths, it.in_snapshots), it.ino))
            .collect()
    };
    let found = told(&fs);
    for path in ["/v/large", "/c/large", "/d/large"] {
        let key = (vec![path.as_bytes().to_vec()], false);
        assert_eq!(found.get(&key), Some(&at(&fs, path)), "{path}: {found:?}");
    }
    fs.unlink(root, b"large").expect("removed");
    fs.unlink(cloned, b"large").expect("removed");
    let found = told(&fs);
    let is_told = |path: &str| found.contains_key(&(vec![path.as_bytes().to_vec()], false));
    assert!(is_told("/d/large"), "{found:?}");
    assert!(!is_told("/c/large") && !is_told("/v/large"), "{found:?}");
}

struct Nobody;

impl RestoreObserver for Nobody {
    fn inode_changed(&mut self, _: Ino) {}
    fn entry_changed(&mut self, _: Ino, _: &[u8]) {}
    fn problem(&mut self, path: &[u8], error: &FsError) {
        panic!("{path:?}: {error}");
    }
    fn goes_on(&mut self) -> bool {
        true
    }
}

#[test]
fn a_clone_is_sent_and_brought_back() {
    let pool = Pool::new(96);
    let fs = pool.open();
    filled(&fs);
    let taken = snapshot(&fs, "/v", "s");
    let cloned = clone(&fs, &taken, "/c");
    let large = at(&fs, "/c/large");
    fs.write(large, 100, b"changed", false).expect("written");
    let then = tree(&fs, cloned);
    let first = snapshot(&fs, "/c", "first");
    change(&fs, cloned);
    let now = tree(&fs, cloned);
    let second = snapshot(&fs, "/c", "second");

    let copy = Pool::new(96);
    let there = copy.open();
    let mut sizes = Vec::new();
    for (snapshot, base) in [(&first, None), (&second, Some(&*first))] {
        let mut out = Vec::new();
        fs.send(snapshot, base, &mut out, None, &|_| true)
            .expect("sent");
        there
            .receive(None, &mut &out[..], &mut std::io::sink(), &mut Nobody)
            .expect("received");
        sizes.push(out.len());
    }
    assert!(sizes[1] * 3 < sizes[0], "what is new: {sizes:?}");
    assert_eq!(tree(&there, at(&there, "/c/.snapshots/first")), then);
    assert_eq!(tree(&there, at(&there, "/c")), now);
    assert_clean(&there);

    // Into a clone, by reference: its origin's and its own.
    let gone = fs.snapshot_restore(&first, b"/c", b"", true, &mut Nobody);
    assert_eq!(gone.expect("restored").problems, 0);
    let restored = tree(&fs, cloned);
    assert_eq!(
        restored.keys().collect::<Vec<_>>(),
        then.keys().collect::<Vec<_>>()
    );
    for (path, was) in &then {
        let is = &restored[path];
        assert_eq!((is.0, is.3, &is.4), (was.0, was.3, &was.4), "{path:?}");
    }
    assert_clean(&fs);
}

fn cut(fs: &Fs, ino: Ino, size: u64) -> Result<(), FsError> {
    let set = SetAttr {
        size: Some(size),
        ..SetAttr::default()
    };
    fs.setattr(ino, &set).map(drop)
}

/// What is removed or cut in a clone is copied before, for which there was no room on a full pool.
#[test]
fn a_full_pool_and_a_full_quota_let_go_of_what_a_clone_shows() {
    let pool = Pool::new(96);
    let fs = pool.open();
    let root = filled(&fs);
    let small = fs.lookup(root, b"small").expect("there").ino;
    fs.setxattr(small, b"user.gone", b"value", XattrFlags::default())
        .expect("set");
    let many = dir(&fs, root, "many");
    for number in 0..3000 {
        file(&fs, many, &format!("a name of some length {number}"), b"");
    }
    let taken = snapshot(&fs, "/v", "s");
    let quota = Quota {
        bytes: 100_000,
        inodes: 3,
    };
    let bounded = fs.clone_create(&taken, b"/q", quota, &Caller::default());
    let bounded = bounded.expect("a clone").ino;
    clone(&fs, &taken, "/c");
    let large = fs.lookup(bounded, b"large").expect("there").ino;
    assert!(matches!(cut(&fs, large, 500_000), Err(FsError::Quota)));
    cut(&fs, large, 50_000).expect("cut");
    fs.flush(large).expect("flushed");
    let used = fs.volume(b"/q").expect("there").record;
    assert_eq!(used.logical_bytes.get(), 50_000);
    let d = fs.lookup(bounded, b"d").expect("there").ino;
    fs.unlink(d, b"linked").expect("removed");
    fs.unlink(at(&fs, "/q/d/e"), b"f1").expect("removed");
    assert!(matches!(
        fs.create(d, b"new", 0o600, &Caller::default()),
        Err(FsError::Quota)
    ));
    fs.removexattr(at(&fs, "/q/small"), b"user.gone")
        .expect("removed");

    let made = fs.create(Ino::ROOT, b"filler", 0o600, &Caller::default());
    let filler = made.expect("a file").ino;
    let mut offset = 0;
    let mut step = 1 << 20;
    while step > 1000 {
        match fs.write(filler, offset, &noise(offset, step), false) {
            Ok(written) => offset += written as u64,
            Err(FsError::NoSpace) => step /= 2,
            Err(error) => panic!("{error}"),
        }
    }
    fs.flush(filler).expect("flushed");
    let value = vec![7; 60_000];
    for number in 0.. {
        let made = fs.create(
            Ino::ROOT,
            format!("x{number}").as_bytes(),
            0o600,
            &Caller::default(),
        );
        let set =
            made.and_then(|made| fs.setxattr(made.ino, b"user.x", &value, XattrFlags::default()));
        match set {
            Ok(()) => {}
            Err(FsError::NoSpace) => break,
            Err(error) => panic!("{error}"),
        }
    }
    let large = at(&fs, "/c/large");
    assert!(matches!(
        fs.write(large, 0, &noise(9, 9000), false),
        Err(FsError::NoSpace)
    ));
    cut(&fs, large, 10).expect("cut");
    fs.flush(large).expect("flushed");
    fs.removexattr(at(&fs, "/c/small"), b"user.gone")
        .expect("removed");
    let many = at(&fs, "/c/many");
    for number in (0..3000).step_by(7) {
        let name = format!("a name of some length {number}");
        fs.unlink(many, name.as_bytes()).expect("removed");
    }
    fs.unlink(at(&fs, "/c"), b"large").expect("removed");
    fs.unlink(at(&fs, "/c/d"), b"linked").expect("removed");
    let e = at(&fs, "/c/d/e");
    for entry in fs.names_from(e, b"", usize::MAX).expect("listed") {
        fs.unlink(e, &entry.name).expect("removed");
    }
    fs.rmdir(at(&fs, "/c/d"), b"e").expect("removed");
    fs.clone_delete(b"/c").expect("removed");
    assert_clean(&fs);
}

/// A clone of a replica was taken for one of the snapshots that had been received, changed or not.
#[test]
fn a_clone_of_a_replica_is_none() {
    let pool = Pool::new(96);
    let fs = pool.open();
    let root = filled(&fs);
    let copy = Pool::new(96);
    let there = copy.open();
    let receive = |bytes: &[u8], path: Option<&[u8]>| {
        there.receive(path, &mut &bytes[..], &mut std::io::sink(), &mut Nobody)
    };
    let first = snapshot(&fs, "/v", "first");
    change(&fs, root);
    let second = snapshot(&fs, "/v", "second");
    let sent = |snapshot: &cfs_fs::Snapshot, base: Option<&cfs_fs::Snapshot>| {
        let mut out = Vec::new();
        fs.send(snapshot, base, &mut out, None, &|_| true)
            .expect("sent");
        out
    };
    receive(&sent(&first, None), None).expect("received");
    let received = there.snapshot(b"/v", b"first").expect("there");
    let cloned = clone(&there, &received, "/c");
    // As it is, and then of its own, with names that received snapshots have.
    snapshot(&there, "/c", "first");
    let later = sent(&second, Some(&first));
    let refused = |text: &str| {
        let error = receive(&later, Some(b"/c")).expect_err("refused");
        assert!(error.to_string().contains(text), "{error}");
    };
    refused("is no replica of what is sent");
    file(&there, cloned, "new", b"new");
    there
        .snapshot_delete(&there.snapshot(b"/c", b"first").expect("there"))
        .expect("deleted");
    snapshot(&there, "/c", "first");
    refused("is no replica of what is sent");
    // What is below it can receive.
    receive(&sent(&first, None), Some(b"/c/inside")).expect("received");
    assert_eq!(
        tree(&there, at(&there, "/c/inside")),
        tree(&there, at(&there, "/v"))
    );
    receive(&later, None).expect("received");
    assert_eq!(tree(&there, at(&there, "/v")), tree(&fs, root));
    assert_clean(&there);
}

/// Changing what a clone has from its origin copies it first; who removes it meanwhile must not leave the other waiting.
#[test]
fn what_is_removed_while_it_is_copied_is_not_there() {
    const FILES: usize = 600;
    let pool = Pool::new(64);
    let fs = pool.open();
    let caller = Caller::default();
    fs.mkdir(Ino::ROOT, b"d", 0o755, &caller).expect("made");
    for number in 0..FILES {
        let name = number.to_string();
        let ino = fs.create(at(&fs, "/d"), name.as_bytes(), 0o644, &caller);
        let ino = ino.expect("made").ino;
        for name in 0..20 {
            let name = format!("user.{name}");
            fs.setxattr(ino, name.as_bytes(), b"value", XattrFlags::default())
                .expect("set");
        }
    }
    let taken = fs.snapshot_create(b"/d", b"s").expect("taken");
    fs.clone_create(&taken, b"/c", Quota::default(), &caller)
        .expect("a clone");
    let inside = at(&fs, "/c");
    let files: Vec<Ino> = (0..FILES)
        .map(|number| at(&fs, &format!("/c/{number}")))
        .collect();
    let (done, ended) = std::sync::mpsc::channel();
    let changer = {
        let fs = std::sync::Arc::clone(&fs);
        std::thread::spawn(move || {
            for ino in files {
                let change = cfs_fs::RecordChange {
                    put: vec![(b"s3.test".to_vec(), b"1".to_vec())],
                    ..cfs_fs::RecordChange::default()
                };
                match fs.set_records(ino, change) {
                    Ok(()) | Err(FsError::NotFound) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            done.send(()).expect("somebody waits");
        })
    };
    for number in 0..FILES {
        fs.unlink(inside, number.to_string().as_bytes())
            .expect("removed");
    }
    ended
        .recv_timeout(std::time::Duration::from_secs(60))
        .expect("changes end");
    changer.join().expect("changed");
    assert_clean(&fs);
}

/// A later clone may have the number of one that is gone, and with it those of its directories.
#[test]
fn policies_go_with_their_clone() {
    let pool = Pool::new(64);
    let fs = pool.open();
    let caller = Caller::default();
    fs.mkdir(Ino::ROOT, b"d", 0o755, &caller).expect("made");
    let taken = fs.snapshot_create(b"/d", b"s").expect("taken");
    let clone = |path: &[u8]| {
        let made = fs.clone_create(&taken, path, Quota::default(), &caller);
        made.expect("a clone").ino
    };
    let policy = cfs_fs::Policy::parse("hourly=2").expect("a policy");
    let stays = clone(b"/stays");
    for directory in [clone(b"/goes"), stays] {
        fs.set_policy(directory, Some(policy)).expect("set");
    }
    fs.clone_delete(b"/goes").expect("removed");
    let left: Vec<Ino> = fs.policies().expect("read").iter().map(|it| it.0).collect();
    assert_eq!(left, [stays]);
}
