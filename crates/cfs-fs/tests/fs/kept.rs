//! A pool that keeps snapshots of another one without being able to read them, and hands them out again.

use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use cfs_format::Ino;
use cfs_fs::stream::{Received, Sent, StreamError};
use cfs_fs::{Fs, FsError, RecordChange, RestoreObserver, SetAttr, Snapshot, XattrFlags};
use cfs_seal::keys::DomainSecret;

use crate::pool::{Pool, SECRET, assert_clean};
use crate::stream::{Nobody, change, file, mkdir, noise, receive, same, shown, source};

/// A pool that has the passage key of the others, and none of their secrets.
pub fn keeper(pool: &Pool) -> Arc<Fs> {
    let fs = pool.open();
    let passage = DomainSecret::from_bytes(SECRET).passage();
    Fs::format_to_keep(fs.store(), &passage).expect("room for a key");
    fs
}

fn blind() -> Pool {
    Pool::with_secret(64, [77; 32])
}

fn snapshot(fs: &Fs, path: &str, name: &str) -> Arc<Snapshot> {
    fs.snapshot(path.as_bytes(), name.as_bytes())
        .expect("there")
}

/// Sends with somebody who answers.
fn pass(from: &Fs, (at, name): (&str, &str), to: &Fs, path: &str) -> (Sent, Received) {
    let snapshot = snapshot(from, at, name);
    let (one, other) = UnixStream::pair().expect("a pair");
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let path = Some(path.as_bytes());
            let received = to.receive(path, &mut &other, &mut &other, &mut Nobody);
            let received = received.expect("received");
            drop(other.shutdown(std::net::Shutdown::Both));
            received
        });
        let sent = from.send(&snapshot, None, &mut &one, Some(&mut &one), &|_| true);
        (sent.expect("sent"), receiving.join().expect("no panic"))
    })
}

/// Sends to nobody.
fn stored(from: &Fs, (at, name): (&str, &str), base: Option<&str>) -> Vec<u8> {
    let base = base.map(|base| snapshot(from, at, base));
    let mut out = Vec::new();
    let now = snapshot(from, at, name);
    let sent = from.send(&now, base.as_deref(), &mut out, None, &|_| true);
    sent.expect("sent");
    out
}

/// All files below a directory, with their content.
fn files(fs: &Fs, path: &str) -> Vec<(Vec<u8>, Ino, Vec<u8>)> {
    let mut found = Vec::new();
    let mut waiting = vec![fs.resolve(path.as_bytes()).expect("there").ino];
    while let Some(directory) = waiting.pop() {
        for entry in fs
            .read_dir(directory, 0, u64::MAX, usize::MAX)
            .expect("listed")
        {
            let attr = fs.getattr(entry.ino).expect("there");
            if attr.kind() == libc::S_IFDIR {
                waiting.push(entry.ino);
                continue;
            }
            let mut content = Vec::new();
            fs.read(entry.ino, 0, 1 << 30, &mut content).expect("read");
            found.push((entry.name, entry.ino, content));
        }
    }
    found
}

#[test]
fn what_is_kept_comes_back_and_cannot_be_read() {
    let (from, between, to) = (Pool::new(64), blind(), Pool::new(64));
    let (source, kept, target) = (source(&from), keeper(&between), to.open());
    let (first, received) = pass(&source, ("/v", "one"), &kept, "/kept");
    assert!(received.kept && received.chunks == first.chunks && first.chunks > 10);
    change(&source);
    let (second, _) = pass(&source, ("/v", "two"), &kept, "/kept");
    assert!(second.chunk_bytes < 700_000, "{second:?}");
    assert!(second.bytes - second.chunk_bytes < 30_000, "{second:?}");
    assert!(pass(&source, ("/v", "two"), &kept, "/kept").0.had_all);
    for (name, _, content) in files(&kept, "/kept") {
        for plain in ["gone later", "a few bytes", "other name", "user.b"] {
            let is_in = |bytes: &[u8]| bytes.windows(plain.len()).any(|it| it == plain.as_bytes());
            assert!(!is_in(&content) && !is_in(&name), "{plain} in {name:?}");
        }
    }
    assert_clean(&kept);
    kept.close().expect("closed");
    drop(kept);
    let kept = between.open();

    // The newer one alone, from two parts.
    let (sent, _) = pass(&kept, ("/kept", "two"), &target, "/v");
    same(&source, &target, ("/v", "/v"), "two");
    assert_clean(&target);
    assert_eq!(shown(&target), 1);
    assert!(sent.chunks >= first.chunks);
    // What comes next may come from where it was first.
    let root = source.resolve(b"/v").expect("there").ino;
    file(&source, root, "third", &noise(30, 500_000));
    source.snapshot_create(b"/v", b"three").expect("taken");
    let (sent, _) = pass(&source, ("/v", "three"), &target, "/v");
    assert!(sent.chunk_bytes < 600_000, "{sent:?}");
    same(&source, &target, ("/v", "/v"), "three");
    assert_clean(&target);

    // One after the other, as files.
    let other = Pool::new(64);
    let other = other.open();
    let whole = stored(&kept, ("/kept", "one"), None);
    let difference = stored(&kept, ("/kept", "two"), Some("one"));
    // Nobody can be asked whether what moved is there still.
    let lens = (difference.len(), whole.len());
    assert!(lens.0 < lens.1 / 2, "{lens:?}");
    let path = receive(&other, &whole).expect("received").path;
    assert_eq!(path, b"/v", "it says where it was");
    receive(&other, &difference).expect("received");
    same(&source, &other, ("/v", "/v"), "one");
    same(&source, &other, ("/v", "/v"), "two");
    assert_clean(&other);
    // From one that keeps to another.
    let another = blind();
    let another = keeper(&another);
    pass(&kept, ("/kept", "two"), &another, "/again");
    let last = Pool::new(64);
    let last = last.open();
    pass(&another, ("/again", "two"), &last, "/v");
    same(&source, &last, ("/v", "/v"), "two");
}

#[test]
fn what_a_stream_that_was_cut_off_has_brought_is_not_sent_again() {
    let (from, between) = (Pool::new(64), blind());
    let (source, kept) = (source(&from), keeper(&between));
    let whole = stored(&source, ("/v", "one"), None);
    let refused = kept.receive(
        Some(b"/kept"),
        &mut &whole[..whole.len() * 2 / 3],
        &mut std::io::sink(),
        &mut Nobody,
    );
    assert!(matches!(refused, Err(StreamError::CutOff)), "{refused:?}");
    assert_eq!(shown(&kept), 0);
    let (sent, _) = pass(&source, ("/v", "one"), &kept, "/kept");
    assert!(sent.bytes < whole.len() as u64 / 2, "{sent:?}");
    assert_clean(&kept);
    let target = Pool::new(64);
    let target = target.open();
    pass(&kept, ("/kept", "one"), &target, "/v");
    same(&source, &target, ("/v", "/v"), "one");
}

#[test]
fn a_long_chain_begins_again_without_its_chunks_and_old_snapshots_can_go() {
    let (from, between) = (Pool::new(64), blind());
    let (source, kept) = (source(&from), keeper(&between));
    pass(&source, ("/v", "one"), &kept, "/kept");
    let root = source.resolve(b"/v").expect("there").ino;
    let parts = || files(&kept, "/kept/messages").len();
    let mut longest = 0;
    for round in 0..40_u64 {
        let big = source.resolve(b"/v/big").expect("there").ino;
        source
            .write(big, round * 10_000, &noise(100 + round, 70_000), false)
            .expect("written");
        if round % 7 == 0 {
            file(
                &source,
                root,
                &format!("file {round}"),
                &noise(round, 90_000),
            );
        }
        let name = format!("s{round}");
        source
            .snapshot_create(b"/v", name.as_bytes())
            .expect("taken");
        let (sent, _) = pass(&source, ("/v", &name), &kept, "/kept");
        assert!(sent.chunk_bytes < 700_000, "{round}: {sent:?}");
        longest = longest.max(parts());
        if round >= 3 {
            let old = snapshot(&kept, "/kept", &format!("s{}", round - 3));
            kept.snapshot_delete(&old).expect("deleted");
        }
        kept.tick().expect("tick");
    }
    assert_eq!(longest, 16);
    assert_clean(&kept);
    for name in ["s37", "s39"] {
        let target = Pool::new(64);
        let target = target.open();
        pass(&kept, ("/kept", name), &target, "/v");
        same(&source, &target, ("/v", "/v"), name);
        assert_clean(&target);
    }
}

#[test]
fn who_keeps_cannot_pass_off_anything_else() {
    let (from, between) = (Pool::new(64), blind());
    let (source, kept) = (source(&from), keeper(&between));
    pass(&source, ("/v", "one"), &kept, "/kept");
    change(&source);
    pass(&source, ("/v", "two"), &kept, "/kept");
    let parts = files(&kept, "/kept/messages");
    let part = |name: &[u8]| {
        let found = parts.iter().find(|(it, _, _)| it == name);
        found.expect("a part").clone()
    };
    let (_, one, first) = part(b"00000001");
    let (_, two, second) = part(b"00000002");
    let set = |ino: Ino, content: &[u8]| {
        let size = SetAttr {
            size: Some(0),
            ..SetAttr::default()
        };
        kept.setattr(ino, &size).expect("cut");
        kept.write(ino, 0, content, false).expect("written");
    };
    let flipped = |content: &[u8], at: usize| {
        let mut content = content.to_vec();
        content[at] ^= 1;
        content
    };
    let record = |content: &[u8], at: usize| {
        at + 4 + u32::from_le_bytes(content[at..at + 4].try_into().expect("4")) as usize
    };
    let header = record(&second, 0);
    // A snapshot that is taken while this record is there is one that was received.
    let timestamp = snapshot(&source, "/v", "two").timestamp.0;
    let stamp = [&timestamp.to_le_bytes()[..], b"two"].concat();
    let root = kept.resolve(b"/kept").expect("there").ino;
    let take_again = || {
        let old = snapshot(&kept, "/kept", "two");
        kept.snapshot_delete(&old).expect("deleted");
        let mut change = RecordChange::default();
        change
            .put
            .push((b"replica.received".to_vec(), stamp.clone()));
        kept.set_records(root, change).expect("set");
        kept.snapshot_create(b"/kept", b"two").expect("taken")
    };
    let attempts = [
        // A message changed, left out at the end, left out in the middle, and a part that is not the one.
        (first.clone(), flipped(&second, second.len() - 3)),
        (first.clone(), flipped(&second, 30)),
        (first.clone(), second[..header].to_vec()),
        (
            first.clone(),
            [&second[..header], &second[record(&second, header)..]].concat(),
        ),
        (first[..record(&first, 0)].to_vec(), second.clone()),
        (second.clone(), first.clone()),
        (
            first.clone(),
            [&second[..header], &first[record(&first, 0)..]].concat(),
        ),
    ];
    for (number, (one_now, two_now)) in attempts.into_iter().enumerate() {
        set(one, &one_now);
        set(two, &two_now);
        let forged = take_again();
        let target = Pool::new(64);
        let target = target.open();
        let mut out = Vec::new();
        let sent = kept.send(&forged, None, &mut out, None, &|_| true);
        let refused = match sent {
            Err(error) => Err(error),
            Ok(_) => receive(&target, &out).map(drop),
        };
        let is_seen = match &refused {
            Err(StreamError::Forged(_) | StreamError::Contradiction(_)) => true,
            Err(StreamError::Fs(error)) => error.to_string().contains("kept"),
            _ => false,
        };
        assert!(is_seen, "attempt {number}: {refused:?}");
        assert_eq!(shown(&target), 0);
    }
    set(one, &first);
    set(two, &second);
    take_again();
    let target = Pool::new(64);
    let target = target.open();
    pass(&kept, ("/kept", "two"), &target, "/v");
    same(&source, &target, ("/v", "/v"), "two");
}

#[test]
fn a_stream_for_a_pool_with_another_key_is_refused() {
    let (from, other) = (Pool::new(64), Pool::with_secret(64, [5; 32]));
    let (source, other) = (source(&from), other.open());
    let whole = stored(&source, ("/v", "one"), None);
    let refused = receive(&other, &whole);
    assert!(
        matches!(refused, Err(StreamError::Forged(0))),
        "{refused:?}"
    );
    // One that keeps, for others.
    let passage = DomainSecret::from_bytes([6; 32]).passage();
    Fs::format_to_keep(other.store(), &passage).expect("room for a key");
    let refused = receive(&other, &whole);
    assert!(
        matches!(refused, Err(StreamError::Forged(0))),
        "{refused:?}"
    );
    assert_eq!(shown(&other), 0);
}

/// Of a chain that began again, and in one that has its parts from before.
#[test]
fn who_has_an_old_snapshot_gets_the_newest_one() {
    let (from, between, to) = (Pool::new(64), blind(), Pool::new(96));
    let (source, kept, target) = (source(&from), keeper(&between), to.open());
    pass(&source, ("/v", "one"), &kept, "/kept");
    pass(&kept, ("/kept", "one"), &target, "/v");
    let big = source.resolve(b"/v/big").expect("there").ino;
    for round in 0..20_u64 {
        let name = format!("s{round}");
        // What was there comes again, and nobody has it in between.
        source
            .write(big, 500_000, &noise(round % 2, 400_000), false)
            .expect("written");
        source
            .snapshot_create(b"/v", name.as_bytes())
            .expect("taken");
        pass(&source, ("/v", &name), &kept, "/kept");
    }
    let (sent, _) = pass(&kept, ("/kept", "s19"), &target, "/v");
    assert!(sent.chunk_bytes < 1_500_000, "{sent:?}");
    same(&source, &target, ("/v", "/v"), "s19");
    same(&source, &target, ("/v", "/v"), "one");
    assert_clean(&target);
    // As files: who goes on from one has what that shows, and not what went before.
    let other = Pool::new(96);
    let other = other.open();
    receive(&other, &stored(&kept, ("/kept", "s8"), None)).expect("received");
    other.tick().expect("tick");
    receive(&other, &stored(&kept, ("/kept", "s11"), Some("s8"))).expect("received");
    same(&source, &other, ("/v", "/v"), "s11");
    assert_clean(&other);
}

/// Parts are read in pieces.
#[test]
fn a_part_of_many_messages_comes_back() {
    let (from, between, to) = (
        Pool::new(96),
        Pool::with_secret(96, [77; 32]),
        Pool::new(96),
    );
    let (source, kept, target) = (source(&from), keeper(&between), to.open());
    let large = vec![7; 64 << 10];
    let deep = source.resolve(b"/v/a/deep").expect("there").ino;
    for number in 0..40 {
        let made = file(&source, deep, &format!("file {number}"), b"x");
        for name in [&b"user.one"[..], b"user.two"] {
            source
                .setxattr(made, name, &large[..60_000 + number], XattrFlags::default())
                .expect("set");
        }
    }
    source.snapshot_create(b"/v", b"large").expect("taken");
    pass(&source, ("/v", "large"), &kept, "/kept");
    let longest = files(&kept, "/kept/messages")[0].2.len();
    assert!(longest > 4 << 20, "{longest}");
    pass(&kept, ("/kept", "large"), &target, "/v");
    same(&source, &target, ("/v", "/v"), "large");
}

#[test]
fn what_others_put_beside_what_is_kept_harms_nothing() {
    let (from, between, to) = (Pool::new(64), blind(), Pool::new(64));
    let (source, kept, target) = (source(&from), keeper(&between), to.open());
    pass(&source, ("/v", "one"), &kept, "/kept");
    let ino = |path: &str| kept.resolve(path.as_bytes()).expect("there").ino;
    // While the next one comes, so that its snapshot shows them.
    file(&kept, ino("/kept/messages"), ".stray", b"x");
    mkdir(&kept, ino("/kept/messages"), "00000009");
    file(&kept, ino("/kept"), "stray", b"x");
    let root = ino("/kept");
    let stamp = kept
        .record(root, b"replica.received")
        .expect("read")
        .is_none();
    assert!(stamp, "it is there only while a snapshot is taken");
    change(&source);
    pass(&source, ("/v", "two"), &kept, "/kept");
    pass(&kept, ("/kept", "two"), &target, "/v");
    same(&source, &target, ("/v", "/v"), "two");
    // A part that is gone from the snapshot that would be gone on from: everything comes again, but for its chunks.
    let first = ino("/kept/messages/00000001");
    kept.setattr(
        first,
        &SetAttr {
            size: Some(0),
            ..SetAttr::default()
        },
    )
    .expect("cut");
    let old = snapshot(&kept, "/kept", "two");
    kept.snapshot_delete(&old).expect("deleted");
    let timestamp = snapshot(&source, "/v", "two").timestamp.0;
    let mut change = RecordChange::default();
    let stamp = [&timestamp.to_le_bytes()[..], b"two"].concat();
    change.put.push((b"replica.received".to_vec(), stamp));
    kept.set_records(root, change).expect("set");
    kept.snapshot_create(b"/kept", b"two").expect("taken");
    source.snapshot_create(b"/v", b"three").expect("taken");
    let (sent, _) = pass(&source, ("/v", "three"), &kept, "/kept");
    assert_eq!(sent.chunks, 0, "{sent:?}");
    pass(&kept, ("/kept", "three"), &target, "/v");
    same(&source, &target, ("/v", "/v"), "three");
}

#[test]
fn a_directory_whose_snapshots_have_all_gone_takes_the_next() {
    let (from, between, to) = (Pool::new(64), blind(), Pool::new(64));
    let (source, kept, target) = (source(&from), keeper(&between), to.open());
    pass(&source, ("/v", "one"), &kept, "/kept");
    let old = snapshot(&kept, "/kept", "one");
    kept.snapshot_delete(&old).expect("deleted");
    change(&source);
    pass(&source, ("/v", "two"), &kept, "/kept");
    pass(&kept, ("/kept", "two"), &target, "/v");
    same(&source, &target, ("/v", "/v"), "two");
    assert_clean(&kept);
}

#[test]
fn a_pool_that_only_stores_sends_nothing_of_its_own() {
    let between = blind();
    let kept = keeper(&between);
    mkdir(&kept, Ino::ROOT, "own");
    kept.snapshot_create(b"/own", b"s").expect("taken");
    let own = snapshot(&kept, "/own", "s");
    let refused = kept.send(&own, None, &mut std::io::sink(), None, &|_| true);
    assert!(
        matches!(refused, Err(StreamError::Target(_))),
        "{refused:?}"
    );
}

/// Collects what a mount is told.
#[derive(Default)]
struct Told(BTreeSet<(Ino, Vec<u8>)>);

impl RestoreObserver for Told {
    fn inode_changed(&mut self, _: Ino) {}
    fn entry_changed(&mut self, parent: Ino, name: &[u8]) {
        self.0.insert((parent, name.to_vec()));
    }
    fn problem(&mut self, path: &[u8], error: &FsError) {
        panic!("{path:?}: {error}");
    }
    fn goes_on(&mut self) -> bool {
        true
    }
}

/// A mount did not see names that it had looked for before.
#[test]
fn each_name_that_is_made_is_told() {
    let (from, between) = (Pool::new(64), blind());
    let (source, kept) = (source(&from), keeper(&between));
    let stream = stored(&source, ("/v", "one"), None);
    let mut told = Told::default();
    kept.receive(
        Some(b"/kept"),
        &mut &stream[..],
        &mut std::io::sink(),
        &mut told,
    )
    .expect("kept");
    let mut waiting = vec![Ino::ROOT];
    let mut names = 0;
    while let Some(directory) = waiting.pop() {
        for entry in kept.names_from(directory, b"", usize::MAX).expect("listed") {
            names += 1;
            let name = String::from_utf8_lossy(&entry.name).into_owned();
            assert!(told.0.contains(&(directory, entry.name)), "{name}");
            if entry.kind == libc::S_IFDIR {
                waiting.push(entry.ino);
            }
        }
    }
    assert!(names > 10, "{names}");
}
