//! Sending snapshots to another pool: what arrives, what a cut or damaged stream leaves, and what is not sent again.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::net::UnixStream;

use cfs_format::Ino;
use cfs_fs::stream::{Received, Sent, StreamError, holds_arrivals};
use cfs_fs::{
    Caller, Fs, FsError, LockChange, Policy, Quota, RecordChange, RenameFlags, RestoreObserver,
    SetAttr, VolumeDomain, VolumeOptions, XattrFlags,
};

use crate::pool::{Pool, Rng, assert_clean};

pub struct Nobody;

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

/// Lets problems be.
struct Silent;

impl RestoreObserver for Silent {
    fn inode_changed(&mut self, _: Ino) {}
    fn entry_changed(&mut self, _: Ino, _: &[u8]) {}
    fn problem(&mut self, _: &[u8], _: &FsError) {}
    fn goes_on(&mut self) -> bool {
        true
    }
}

type Tree = BTreeMap<String, (u32, u32, u64, Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>)>;

/// All that a directory shows: mode, names of an inode, time of change, content, attributes.
fn tree(fs: &Fs, root: Ino) -> Tree {
    let mut found = Tree::new();
    let mut waiting = vec![(String::new(), root)];
    while let Some((path, ino)) = waiting.pop() {
        let attr = fs.getattr(ino).expect("there");
        let mut content = Vec::new();
        match attr.kind() {
            libc::S_IFREG => fs.read(ino, 0, 1 << 30, &mut content).expect("read"),
            libc::S_IFLNK => content = fs.readlink(ino).expect("read"),
            libc::S_IFDIR => {
                for entry in fs.read_dir(ino, 0, u64::MAX, usize::MAX).expect("listed") {
                    let name = String::from_utf8(entry.name).expect("text");
                    waiting.push((format!("{path}/{name}"), entry.ino));
                }
            }
            _ => {}
        }
        let names = fs.listxattr(ino).expect("listed").into_iter();
        let xattrs = names.map(|name| {
            let value = fs.getxattr(ino, &name).expect("there");
            (name, value)
        });
        let nlink = if attr.kind() == libc::S_IFDIR {
            0
        } else {
            attr.nlink
        };
        let time = attr.mtime.ns_since_1970();
        found.insert(path, (attr.mode, nlink, time, content, xattrs.collect()));
    }
    found
}

/// Snapshots that lists tell of.
pub fn shown(fs: &Fs) -> usize {
    let mut all = fs.snapshots(None).expect("listed");
    all.retain(|snapshot| !holds_arrivals(snapshot));
    all.len()
}

pub fn send(fs: &Fs, name: &str, base: Option<&str>) -> (Vec<u8>, Sent) {
    let snapshot = |name: &str| fs.snapshot(b"/v", name.as_bytes()).expect("there");
    let base = base.map(snapshot);
    let mut out = Vec::new();
    let sent = fs
        .send(&snapshot(name), base.as_deref(), &mut out, None, &|_| true)
        .expect("sent");
    assert_eq!(sent.bytes, out.len() as u64);
    (out, sent)
}

pub fn receive(fs: &Fs, mut bytes: &[u8]) -> Result<Received, StreamError> {
    fs.receive(None, &mut bytes, &mut std::io::sink(), &mut Nobody)
}

/// Sends with somebody who answers.
fn replicate(from: &Fs, to: &Fs, name: &str) -> (Sent, Received) {
    let snapshot = from.snapshot(b"/v", name.as_bytes()).expect("there");
    let (one, other) = UnixStream::pair().expect("a pair");
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let received = to.receive(Some(b"/copy"), &mut &other, &mut &other, &mut Nobody);
            let received = received.expect("received");
            drop(other.shutdown(std::net::Shutdown::Both));
            received
        });
        let sent = from.send(&snapshot, None, &mut &one, Some(&mut &one), &|_| true);
        (sent.expect("sent"), receiving.join().expect("no panic"))
    })
}

pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut bytes: Vec<u8> = (0..len.div_ceil(8))
        .flat_map(|_| rng.next().to_le_bytes())
        .collect();
    bytes.truncate(len);
    bytes
}

pub fn file(fs: &Fs, parent: Ino, name: &str, content: &[u8]) -> Ino {
    let made = fs.create(parent, name.as_bytes(), 0o640, &Caller::default());
    let ino = made.expect("made").ino;
    fs.write(ino, 0, content, false).expect("written");
    ino
}

pub fn mkdir(fs: &Fs, parent: Ino, name: &str) -> Ino {
    let made = fs.mkdir(parent, name.as_bytes(), 0o750, &Caller::default());
    made.expect("made").ino
}

/// A volume with some of everything, and a snapshot `one`.
pub fn source(pool: &Pool) -> std::sync::Arc<Fs> {
    let fs = pool.open();
    let options = VolumeOptions::default();
    let root = fs
        .volume_create(b"/v", &options, &Caller::default())
        .expect("made")
        .ino;
    let (a, b) = (mkdir(&fs, root, "a"), mkdir(&fs, root, "b"));
    let deep = mkdir(&fs, a, "deep");
    let big = file(&fs, root, "big", &noise(1, 3_000_000));
    file(&fs, a, "small", b"a few bytes");
    file(&fs, deep, "gone later", &noise(2, 200_000));
    let linked = file(&fs, b, "linked", &noise(3, 50_000));
    fs.link(linked, a, b"other name").expect("linked");
    fs.symlink(b, b"link", b"../a/small", &Caller::default())
        .expect("made");
    fs.mknod(b, b"pipe", libc::S_IFIFO | 0o600, 0, &Caller::default())
        .expect("made");
    fs.setxattr(big, b"user.a", b"value", XattrFlags::default())
        .expect("set");
    let sparse = file(&fs, b, "sparse", b"");
    fs.write(sparse, 5_000_000, b"end", false).expect("written");
    fs.snapshot_create(b"/v", b"one").expect("taken");
    fs
}

/// Changes a little of everything, and takes a snapshot `two`.
pub fn change(fs: &Fs) {
    let ino = |path: &str| fs.resolve(path.as_bytes()).expect("there").ino;
    let root = ino("/v");
    let flags = RenameFlags::default;
    fs.write(ino("/v/big"), 1_500_000, b"another middle", false)
        .expect("written");
    let size = |size| SetAttr {
        size: Some(size),
        ..SetAttr::default()
    };
    fs.setattr(ino("/v/b/sparse"), &size(100)).expect("cut");
    // A directory goes below the one that was below it, under its own old name.
    let (a, deep) = (ino("/v/a"), ino("/v/a/deep"));
    fs.rename(a, b"deep", root, b"x", flags()).expect("renamed");
    fs.rename(root, b"a", deep, b"a", flags()).expect("renamed");
    fs.rename(root, b"x", root, b"a", flags()).expect("renamed");
    fs.unlink(deep, b"gone later").expect("removed");
    fs.unlink(ino("/v/b"), b"linked").expect("removed");
    // Two files change places, and one takes the name of another.
    file(fs, ino("/v/b"), "linked", b"another one");
    fs.unlink(ino("/v/b"), b"pipe").expect("removed");
    let made = mkdir(fs, ino("/v/b"), "pipe");
    file(fs, made, "new", &noise(9, 300_000));
    fs.removexattr(ino("/v/big"), b"user.a").expect("removed");
    fs.setxattr(ino("/v/b"), b"user.b", b"x", XattrFlags::default())
        .expect("set");
    fs.snapshot_create(b"/v", b"two").expect("taken");
}

pub fn same(from: &Fs, to: &Fs, (at, path): (&str, &str), name: &str) {
    let shown = |fs: &Fs, path: &str| {
        let path = format!("{path}/.snapshots/{name}");
        tree(fs, fs.resolve(path.as_bytes()).expect("there").ino)
    };
    let (one, other) = (shown(from, at), shown(to, path));
    let paths = |tree: &Tree| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(paths(&one), paths(&other));
    for (path, node) in &one {
        assert!(*node == other[path], "{path} differs");
    }
}

#[test]
fn what_is_received_is_what_was_sent() {
    let (from, to) = (Pool::new(64), Pool::new(64));
    let (source, target) = (source(&from), to.open());
    let (whole, first) = send(&source, "one", None);
    let received = receive(&target, &whole).expect("received");
    assert!(!received.had_all && received.chunks == first.chunks);
    same(&source, &target, ("/v", "/v"), "one");
    assert_clean(&target);
    assert!(receive(&target, &whole).expect("nothing to do").had_all);

    change(&source);
    let (difference, second) = send(&source, "two", Some("one"));
    assert!(second.chunk_bytes < 700_000, "{second:?}");
    let metadata = second.bytes - second.chunk_bytes;
    assert!(metadata < 10_000, "{second:?}");
    // What was changed here is not what it goes on from.
    let root = target.resolve(b"/v").expect("there").ino;
    file(&target, root, "stray", b"x");
    receive(&target, &difference).expect("received");
    same(&source, &target, ("/v", "/v"), "two");
    same(&source, &target, ("/v", "/v"), "one");
    assert_clean(&target);
    target.close().expect("closed");
    drop(target);
    let target = to.open();
    same(&source, &target, ("/v", "/v"), "two");
    // Without the first the second is of no use.
    let other = Pool::new(64);
    let other = other.open();
    let refused = receive(&other, &difference);
    assert!(
        matches!(refused, Err(StreamError::NoBase(_))),
        "{refused:?}"
    );
    assert_eq!(shown(&other), 0);
}

/// More than a frame holds, of a file and of a directory.
#[test]
fn many_large_attributes_arrive() {
    let (from, to) = (Pool::new(128), Pool::new(128));
    let (source, target) = (source(&from), to.open());
    let large = vec![7; 64 << 10];
    for path in [&b"/v/big"[..], b"/v/a/deep"] {
        let ino = source.resolve(path).expect("there").ino;
        for number in 0..300 {
            let name = format!("user.large-{number}");
            source
                .setxattr(ino, name.as_bytes(), &large, XattrFlags::default())
                .expect("set");
        }
    }
    source.snapshot_create(b"/v", b"large").expect("taken");
    replicate(&source, &target, "large");
    same(&source, &target, ("/v", "/copy"), "large");
    assert_clean(&target);
}

/// Also where only what is below it has changed.
#[test]
fn the_directory_itself_keeps_its_times() {
    let (from, to) = (Pool::new(64), Pool::new(64));
    let (source, target) = (source(&from), to.open());
    replicate(&source, &target, "one");
    let big = source.resolve(b"/v/big").expect("there").ino;
    source.write(big, 0, b"changed", false).expect("written");
    source.snapshot_create(b"/v", b"two").expect("taken");
    from.sleep_ms(5000);
    to.sleep_ms(5000);
    replicate(&source, &target, "two");
    same(&source, &target, ("/v", "/copy"), "two");
}

#[test]
fn a_receiver_that_answers_gets_what_it_lacks() {
    let (from, to) = (Pool::new(64), Pool::new(64));
    let (source, target) = (source(&from), to.open());
    // Some of it is here under another name.
    file(&target, Ino::ROOT, "known", &noise(1, 3_000_000));
    target.syncfs().expect("synced");
    let (sent, received) = replicate(&source, &target, "one");
    assert!(sent.chunk_bytes < 400_000, "{sent:?}");
    assert_eq!(received.path, b"/copy");
    same(&source, &target, ("/v", "/copy"), "one");
    change(&source);
    let (sent, _) = replicate(&source, &target, "two");
    assert!(sent.chunk_bytes < 700_000, "{sent:?}");
    same(&source, &target, ("/v", "/copy"), "two");
    let (sent, received) = replicate(&source, &target, "two");
    assert!(sent.had_all && received.had_all && sent.chunks == 0);
    assert_clean(&target);
}

#[test]
fn a_stream_that_is_cut_off_leaves_no_snapshot_and_goes_on() {
    let (from, to) = (Pool::new(64), Pool::new(64));
    let (source, target) = (source(&from), to.open());
    let (whole, _) = send(&source, "one", None);
    assert!(matches!(receive(&target, b""), Err(StreamError::Nothing)));
    let mut rng = Rng::new(5);
    let mut cuts: Vec<usize> = (0..60)
        .map(|_| 1 + rng.below(whole.len() as u64 - 1) as usize)
        .collect();
    cuts.extend([1, 47, 48, 51, whole.len() - 1]);
    cuts.sort_unstable();
    for cut in cuts {
        let refused = receive(&target, &whole[..cut]);
        assert!(
            matches!(refused, Err(StreamError::CutOff)),
            "{cut}: {refused:?}"
        );
        assert_eq!(shown(&target), 0);
    }
    receive(&target, &whole).expect("received");
    same(&source, &target, ("/v", "/v"), "one");
    change(&source);
    let (difference, _) = send(&source, "two", Some("one"));
    for cut in (0..difference.len()).step_by(difference.len() / 40) {
        assert!(receive(&target, &difference[..cut]).is_err());
        assert_eq!(shown(&target), 1);
    }
    assert_clean(&target);
    receive(&target, &difference).expect("received");
    same(&source, &target, ("/v", "/v"), "two");
    assert_clean(&target);
}

#[test]
fn damage_on_the_way_is_told() {
    let (from, to) = (Pool::new(64), Pool::new(64));
    let (source, target) = (source(&from), to.open());
    let (whole, _) = send(&source, "one", None);
    let mut rng = Rng::new(6);
    let mut places: Vec<usize> = (0..80)
        .map(|_| rng.below(whole.len() as u64) as usize)
        .collect();
    places.extend(0..60);
    for place in places {
        let mut damaged = whole.clone();
        damaged[place] ^= 1 << rng.below(8);
        let refused = receive(&target, &damaged);
        assert!(refused.is_err(), "byte {place}");
        assert_eq!(shown(&target), 0, "byte {place}");
    }
    let mut version = whole.clone();
    version[8] = 9;
    assert!(matches!(
        receive(&target, &version),
        Err(StreamError::Version(9))
    ));
    receive(&target, &whole).expect("received");
    assert_clean(&target);
}

#[test]
fn a_target_that_is_something_else_is_left_alone() {
    let (from, to) = (Pool::new(64), Pool::new(64));
    let (source, target) = (source(&from), to.open());
    let (whole, _) = send(&source, "one", None);
    let ours = mkdir(&target, Ino::ROOT, "v");
    file(&target, ours, "ours", b"x");
    assert!(matches!(
        receive(&target, &whole),
        Err(StreamError::Target(_))
    ));
    assert_eq!(target.names_from(ours, b"", 9).expect("listed").len(), 1);
    let own = VolumeOptions {
        domain: VolumeDomain::New,
        ..VolumeOptions::default()
    };
    let volume = source
        .volume_create(b"/own", &own, &Caller::default())
        .expect("made")
        .ino;
    file(&source, volume, "f", &noise(4, 500_000));
    let snapshot = source.snapshot_create(b"/own", b"s").expect("taken");
    let mut bytes = Vec::new();
    source
        .send(&snapshot, None, &mut bytes, None, &|_| true)
        .expect("sent");
    receive(&target, &bytes).expect("received, with its secret");
    same(&source, &target, ("/own", "/own"), "s");
    assert_clean(&target);
}

/// What others do in the target while a stream is cut off is in no snapshot that is received.
#[test]
fn changes_beside_a_stream_that_was_cut_off_are_undone() {
    let (from, to) = (Pool::new(64), Pool::new(64));
    let (source, target) = (source(&from), to.open());
    let spoil = |round: u64| {
        let root = target.resolve(b"/v").expect("there").ino;
        file(&target, root, &format!("stray {round}"), b"x");
        for entry in target.names_from(root, b"", 99).expect("listed") {
            if entry.kind == libc::S_IFREG {
                target
                    .write(entry.ino, 0, b"spoilt", false)
                    .expect("written");
            }
        }
    };
    let (whole, _) = send(&source, "one", None);
    for round in 1..4 {
        let cut = whole.len() * round / 4;
        assert!(receive(&target, &whole[..cut]).is_err());
        spoil(round as u64);
    }
    receive(&target, &whole).expect("received");
    same(&source, &target, ("/v", "/v"), "one");
    change(&source);
    let (difference, _) = send(&source, "two", Some("one"));
    for round in 1..4 {
        let cut = difference.len() * round / 4;
        assert!(receive(&target, &difference[..cut]).is_err());
        spoil(round as u64);
    }
    receive(&target, &difference).expect("received");
    same(&source, &target, ("/v", "/v"), "two");
    assert_eq!(target.snapshots(None).expect("listed").len(), 2);
    assert_clean(&target);
}

/// Has the pool do what it does in the background, all the time.
struct Busy<'a>(&'a Fs);

impl RestoreObserver for Busy<'_> {
    fn inode_changed(&mut self, _: Ino) {}
    fn entry_changed(&mut self, _: Ino, _: &[u8]) {}
    fn problem(&mut self, path: &[u8], error: &FsError) {
        panic!("{path:?}: {error}");
    }
    fn goes_on(&mut self) -> bool {
        for _ in 0..20 {
            self.0.tick().expect("tick");
        }
        true
    }
}

/// What came before the cut does not come again.
#[test]
fn what_has_come_is_kept_while_a_stream_begins_again() {
    let (from, to) = (Pool::new(64), Pool::new(64));
    let (source, target) = (source(&from), to.open());
    let (whole, _) = send(&source, "one", None);
    let cut = whole.len() - 20;
    assert!(receive(&target, &whole[..cut]).is_err());
    let snapshot = source.snapshot(b"/v", b"one").expect("there");
    let (one, other) = UnixStream::pair().expect("a pair");
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let received = target.receive(None, &mut &other, &mut &other, &mut Busy(&target));
            received.expect("received");
            drop(other.shutdown(std::net::Shutdown::Both));
        });
        let sent = source.send(&snapshot, None, &mut &one, Some(&mut &one), &|_| true);
        assert_eq!(sent.expect("sent").chunk_bytes, 0);
        receiving.join().expect("no panic");
    });
    same(&source, &target, ("/v", "/v"), "one");
    assert_clean(&target);
}

#[test]
fn one_stream_at_a_time() {
    let (from, to) = (Pool::new(64), Pool::new(64));
    let (source, target) = (source(&from), to.open());
    let (whole, _) = send(&source, "one", None);
    let (mut one, mut other) = UnixStream::pair().expect("a pair");
    std::thread::scope(|scope| {
        let target = &target;
        let first = scope
            .spawn(move || target.receive(None, &mut other, &mut std::io::sink(), &mut Nobody));
        one.write_all(&whole[..whole.len() / 2]).expect("taken");
        let is_there = || target.resolve(b"/v/.cfs-receive").is_ok();
        while !is_there() {
            std::thread::yield_now();
        }
        let refused = receive(target, &whole);
        assert!(
            matches!(refused, Err(StreamError::Target(_))),
            "{refused:?}"
        );
        one.write_all(&whole[whole.len() / 2..]).expect("taken");
        first.join().expect("no panic").expect("received");
    });
    same(&source, &target, ("/v", "/v"), "one");
}

/// A snapshot that was taken here is not taken for the one that was received, whatever its name.
#[test]
fn a_snapshot_of_the_same_name_is_no_base() {
    let (from, to) = (Pool::new(64), Pool::new(64));
    let (source, target) = (source(&from), to.open());
    let (whole, _) = send(&source, "one", None);
    receive(&target, &whole).expect("received");
    let received = target.snapshot(b"/v", b"one").expect("there");
    target.snapshot_delete(&received).expect("deleted");
    let root = target.resolve(b"/v").expect("there").ino;
    file(&target, root, "ours", b"x");
    target.snapshot_create(b"/v", b"one").expect("taken");
    change(&source);
    let (difference, _) = send(&source, "two", Some("one"));
    let refused = receive(&target, &difference);
    assert!(
        matches!(refused, Err(StreamError::NoBase(_))),
        "{refused:?}"
    );
    target.resolve(b"/v/ours").expect("it is left alone");
}

/// What is not of the stream and cannot be put back ends it, and stays.
#[test]
fn a_volume_in_the_target_is_not_emptied() {
    let (from, to) = (Pool::new(64), Pool::new(64));
    let (source, target) = (source(&from), to.open());
    let (whole, _) = send(&source, "one", None);
    receive(&target, &whole).expect("received");
    let options = VolumeOptions::default();
    let inner = target.volume_create(b"/v/inner", &options, &Caller::default());
    file(&target, inner.expect("made").ino, "ours", b"x");
    change(&source);
    let (difference, _) = send(&source, "two", Some("one"));
    let mut bytes = &difference[..];
    let refused = target.receive(None, &mut bytes, &mut std::io::sink(), &mut Silent);
    assert!(
        matches!(refused, Err(StreamError::Target(_))),
        "{refused:?}"
    );
    target.resolve(b"/v/inner/ours").expect("it is left alone");
    assert_eq!(shown(&target), 1);
    target
        .volume_delete(b"/v/inner")
        .expect_err("it holds a file");
    let inner = target.resolve(b"/v/inner").expect("there").ino;
    target.unlink(inner, b"ours").expect("removed");
    target.volume_delete(b"/v/inner").expect("deleted");
    receive(&target, &difference).expect("received");
    same(&source, &target, ("/v", "/v"), "two");
    // Nothing is received where the next stream would remove it.
    let mut bytes = &whole[..];
    let refused = target.receive(
        Some(b"/v/b/copy"),
        &mut bytes,
        &mut std::io::sink(),
        &mut Nobody,
    );
    assert!(
        matches!(refused, Err(StreamError::Target(_))),
        "{refused:?}"
    );
    assert_clean(&target);
}

/// Locks, policies and users are those of the pool that they were made in.
#[test]
fn what_is_of_a_pool_alone_stays_there() {
    let (from, to) = (Pool::new(64), Pool::new(64));
    let (source, target) = (source(&from), to.open());
    let locked = source.resolve(b"/v/a/small").expect("there").ino;
    let hold = LockChange {
        hold: Some(true),
        ..LockChange::default()
    };
    source.set_lock(locked, hold).expect("locked");
    let policy = Policy::parse("hourly=2").expect("a policy");
    source.set_policy(Ino::ROOT, Some(policy)).expect("set");
    let user = |name: &[u8]| RecordChange {
        put: vec![([b"s3.user.", name].concat(), b"x".to_vec())],
        ..RecordChange::default()
    };
    source.set_records(Ino::ROOT, user(b"theirs")).expect("set");
    source.snapshot_create(b"/v", b"two").expect("taken");
    let (bytes, _) = send(&source, "two", None);
    receive(&target, &bytes).expect("received");
    same(&source, &target, ("/v", "/v"), "two");
    let copy = target.resolve(b"/v/a/small").expect("there").ino;
    assert!(target.lock(copy).expect("read").is_none());

    let to = Pool::new(64);
    let target = to.open();
    target.set_records(Ino::ROOT, user(b"ours")).expect("set");
    let root = source.snapshot_create(b"/", b"root").expect("taken");
    let mut bytes = Vec::new();
    source
        .send(&root, None, &mut bytes, None, &|_| true)
        .expect("sent");
    receive(&target, &bytes).expect("received");
    assert!(target.policies().expect("read").is_empty());
    let users = target.records(Ino::ROOT, b"s3.user.").expect("read");
    assert_eq!(users, [(b"s3.user.ours".to_vec(), b"x".to_vec())]);
    assert_clean(&target);
}

#[test]
fn a_quota_holds_for_what_is_received() {
    let (from, to) = (Pool::new(64), Pool::new(64));
    let (source, target) = (source(&from), to.open());
    let quota = Quota {
        bytes: 1_000_000,
        inodes: 0,
    };
    let options = VolumeOptions {
        quota,
        ..VolumeOptions::default()
    };
    target
        .volume_create(b"/v", &options, &Caller::default())
        .expect("made");
    let (whole, _) = send(&source, "one", None);
    let refused = receive(&target, &whole);
    assert!(
        matches!(refused, Err(StreamError::Fs(FsError::Quota))),
        "{refused:?}"
    );
    assert_eq!(shown(&target), 0);
    assert_clean(&target);
}
