//! Volumes, their quotas, and policies.

use std::sync::atomic::Ordering;

use cfs_format::{DomainId, Ino};
use cfs_fs::{
    AllocateMode, Caller, Fs, FsError, Policy, Quota, RecordChange, Recorded, RenameFlags,
    RestoreObserver, SetAttr, VolumeDomain, VolumeOptions, XattrFlags,
};

use crate::pool::{Pool, assert_clean};

fn volume(fs: &Fs, path: &str, quota: Quota) -> Ino {
    let options = VolumeOptions {
        quota,
        domain: match path.contains("own") {
            true => VolumeDomain::New,
            false => VolumeDomain::Shared,
        },
    };
    let made = fs.volume_create(path.as_bytes(), &options, &Caller::default());
    made.expect("a volume").ino
}

fn file(fs: &Fs, parent: Ino, name: &str, content: &[u8]) -> Ino {
    let made = fs.create(parent, name.as_bytes(), 0o644, &Caller::default());
    let ino = made.expect("a file").ino;
    assert_eq!(
        fs.write(ino, 0, content, false).expect("written"),
        content.len()
    );
    ino
}

#[test]
fn names_stay_in_their_volume() {
    let pool = Pool::new(64);
    let fs = pool.open();
    let outer = fs
        .mkdir(Ino::ROOT, b"d", 0o755, &Caller::default())
        .expect("a directory")
        .ino;
    let root = volume(&fs, "/d/v", Quota::default());
    assert_eq!(fs.lookup(outer, b"v").expect("there").ino, root);
    assert_eq!(fs.parent(root).expect("above"), outer);
    let inner = file(&fs, root, "f", b"text");
    let flags = RenameFlags::default;
    assert!(matches!(
        fs.rename(root, b"f", outer, b"f", flags()),
        Err(FsError::CrossVolume)
    ));
    assert!(matches!(
        fs.link(inner, outer, b"f"),
        Err(FsError::CrossVolume)
    ));
    assert!(matches!(fs.rmdir(outer, b"v"), Err(FsError::Volume)));
    fs.mkdir(outer, b"e", 0o755, &Caller::default())
        .expect("a directory");
    assert!(matches!(
        fs.rename(outer, b"e", outer, b"v", flags()),
        Err(FsError::Volume)
    ));
    // Its own name is one of the volume above.
    fs.rename(outer, b"v", outer, b"w", flags())
        .expect("renamed");
    fs.rename(Ino::ROOT, b"d", Ino::ROOT, b"c", flags())
        .expect("renamed");
    assert_eq!(fs.path_of(root).expect("found").expect("there"), b"/c/w");
    assert!(matches!(fs.volume_delete(b"/c/w"), Err(FsError::NotEmpty)));
    assert!(matches!(fs.volume_delete(b"/c"), Err(FsError::NotFound)));
    assert!(matches!(fs.volume_delete(b"/"), Err(FsError::Invalid)));
    assert_clean(&fs);
    fs.close().expect("closed");
    drop(fs);
    let fs = pool.open();
    assert_eq!(fs.resolve(b"/c/w/f").expect("there").ino, inner);
    fs.unlink(root, b"f").expect("removed");
    fs.volume_delete(b"/c/w").expect("removed");
    assert!(matches!(fs.resolve(b"/c/w"), Err(FsError::NotFound)));
    assert_eq!(fs.volumes().len(), 1);
    assert_clean(&fs);
    fs.close().expect("closed");
    drop(fs);
    assert_clean(&pool.open());
}

#[test]
fn a_snapshot_shows_the_volumes_below_it_empty() {
    let pool = Pool::new(64);
    let fs = pool.open();
    let root = volume(&fs, "/v", Quota::default());
    let content = vec![7; 100_000];
    let inner = file(&fs, root, "f", &content);
    fs.snapshot_create(b"/", b"whole").expect("taken");
    fs.snapshot_create(b"/v", b"its").expect("taken");
    fs.unlink(root, b"f").expect("removed");
    let seen = fs.resolve(b"/.snapshots/whole/v").expect("there");
    assert_eq!(fs.read_dir(seen.ino, 0, u64::MAX, 9).expect("listed"), []);
    let seen = fs.resolve(b"/v/.snapshots/its/f").expect("there");
    let mut out = Vec::new();
    fs.read(seen.ino, 0, 200_000, &mut out).expect("read");
    assert_eq!(out, content);
    assert_ne!(seen.ino, inner);
    assert!(matches!(
        fs.volume_delete(b"/v"),
        Err(FsError::HasSnapshots)
    ));
    let its = fs.snapshot(b"/v", b"its").expect("there");
    fs.snapshot_delete(&its).expect("deleted");
    fs.volume_delete(b"/v").expect("removed");
    let seen = fs.resolve(b"/.snapshots/whole/v").expect("there still");
    assert_eq!(fs.read_dir(seen.ino, 0, u64::MAX, 9).expect("listed"), []);
    assert_clean(&fs);
}

#[test]
fn what_is_beyond_the_quota_is_refused_when_it_is_written() {
    let pool = Pool::new(64);
    let fs = pool.open();
    let quota = Quota {
        bytes: 300_000,
        inodes: 4,
    };
    let root = volume(&fs, "/v", quota);
    let one = file(&fs, root, "one", &vec![1; 200_000]);
    // Nothing of it is in the tables yet.
    let two = file(&fs, root, "two", &vec![2; 90_000]);
    assert!(matches!(
        fs.write(two, 90_000, &vec![2; 10_001], false),
        Err(FsError::Quota)
    ));
    assert_eq!(
        fs.write(two, 90_000, &vec![2; 10_000], false)
            .expect("fits"),
        10_000
    );
    let to = |size| SetAttr {
        size: Some(size),
        ..SetAttr::default()
    };
    assert!(matches!(fs.setattr(one, &to(200_001)), Err(FsError::Quota)));
    let grow = AllocateMode::Allocate { keep_size: false };
    assert!(matches!(
        fs.fallocate(one, grow, 0, 300_000, false),
        Err(FsError::Quota)
    ));
    let room = fs.statfs_at(root).expect("told");
    assert_eq!(
        (room.blocks, room.blocks_available),
        (300_000_u64.div_ceil(4096), 0)
    );
    assert!(fs.statfs().blocks_available > 100);
    // Overwriting takes nothing of it.
    fs.write(one, 0, &vec![3; 200_000], false)
        .expect("overwritten");
    file(&fs, root, "three", b"");
    fs.unlink(root, b"three").expect("removed");
    let three = file(&fs, root, "three", b"");
    let refused = fs.create(root, b"four", 0o644, &Caller::default());
    assert!(matches!(refused, Err(FsError::Quota)));
    // What is cut off can be used again, at once.
    fs.setattr(one, &to(100_000)).expect("cut");
    let outside = file(&fs, Ino::ROOT, "outside", &vec![5; 150_000]);
    assert!(matches!(
        fs.copy_range(outside, 0, two, 100_000, 150_000),
        Err(FsError::Quota)
    ));
    assert_eq!(
        fs.copy_range(outside, 0, two, 100_000, 100_000)
            .expect("copied"),
        100_000
    );
    // So can what is removed.
    fs.unlink(root, b"one").expect("removed");
    fs.write(three, 0, &vec![6; 100_000], false).expect("fits");
    fs.syncfs().expect("synced");
    let is = fs.volume(b"/v").expect("there");
    assert_eq!(
        (is.record.logical_bytes.get(), is.record.inode_count.get()),
        (300_000, 3)
    );
    fs.volume_set_quota(
        is.id,
        Quota {
            bytes: 300_001,
            inodes: 0,
        },
    )
    .expect("changed");
    fs.write(two, 200_000, b"x", false).expect("fits");
    assert!(matches!(
        fs.write(two, 200_001, b"x", false),
        Err(FsError::Quota)
    ));
    assert_clean(&fs);
    fs.close().expect("closed");
    drop(fs);
    assert_eq!(
        pool.open().volume(b"/v").expect("there").quota.bytes,
        300_001
    );
}

/// What tells whose it is comes with a domain, or there is none.
#[test]
fn a_domain_is_made_with_what_tells_of_it_or_not_at_all() {
    let pool = Pool::new(64);
    let fs = pool.open();
    let told = |fs: &Fs| -> Vec<DomainId> {
        let records = fs.records(Ino::ROOT, b"test.").expect("read");
        let number = |value: Vec<u8>| u16::from_le_bytes(value.try_into().expect("two bytes"));
        let mut told: Vec<_> = records
            .into_iter()
            .map(|(_, value)| DomainId(number(value)))
            .collect();
        told.push(DomainId::DEFAULT);
        told.sort_unstable();
        told
    };
    let make = |name: String| {
        let tell =
            |domain: DomainId| vec![(name.clone().into_bytes(), domain.0.to_le_bytes().to_vec())];
        fs.domain_create(Ino::ROOT, tell).expect("made")
    };
    make("test.one".to_owned());
    make("test.two".to_owned());
    // What cannot be told is not made.
    let long = vec![(vec![b'x'; 256], Vec::new())];
    assert!(fs.domain_create(Ino::ROOT, |_| long.clone()).is_err());
    let missing = Ino(fs.store().next_ino().0 + 1);
    assert!(fs.domain_create(missing, |_| Vec::new()).is_err());
    assert_eq!(told(&fs).len(), 3);
    assert_eq!(fs.store().domains(), told(&fs));
    // Volumes can be in one; not in one that there is not.
    let content: Vec<u8> = (0..10_000_u32).flat_map(u32::to_le_bytes).collect();
    let domain = make("test.used".to_owned());
    let volume = |path: &[u8], domain: DomainId| {
        let options = VolumeOptions {
            domain: VolumeDomain::Of(domain),
            ..VolumeOptions::default()
        };
        fs.volume_create(path, &options, &Caller::default())
    };
    let root = volume(b"/used", domain).expect("made");
    file(&fs, root.ino, "f", &content);
    let unknown = (1..).map(DomainId).find(|it| !told(&fs).contains(it));
    let refused = volume(b"/none", unknown.expect("there is one"));
    assert!(matches!(refused, Err(FsError::Invalid)), "{refused:?}");
    assert_clean(&fs);
    fs.close().expect("closed");
    drop(fs);
    let fs = pool.open();
    assert_eq!(fs.store().domains(), told(&fs));
    let ino = fs.resolve(b"/used/f").expect("there").ino;
    let mut read = Vec::new();
    fs.read(ino, 0, content.len(), &mut read).expect("read");
    assert_eq!(read, content);
    assert_clean(&fs);
}

#[test]
fn domains_share_no_chunks() {
    let pool = Pool::new(64);
    let fs = pool.open();
    let content: Vec<u8> = (0..400_000_u32)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes())
        .collect();
    let one = file(&fs, Ino::ROOT, "one", &content);
    fs.syncfs().expect("synced");
    let chunks = || fs.store().stats().pool.chunk_count.get();
    let before = chunks();
    let shared = volume(&fs, "/shared", Quota::default());
    file(&fs, shared, "f", &content);
    fs.syncfs().expect("synced");
    assert_eq!(chunks(), before);
    let own = volume(&fs, "/own", Quota::default());
    let copy = file(&fs, own, "f", b"");
    assert_eq!(
        fs.copy_range(one, 0, copy, 0, 1_600_000).expect("copied"),
        1_600_000
    );
    fs.syncfs().expect("synced");
    assert!(chunks() > before);
    fs.close().expect("closed");
    drop(fs);
    // The secret is there again.
    let fs = pool.open();
    let mut out = Vec::new();
    fs.read(copy, 0, 2_000_000, &mut out).expect("read");
    assert!(out == content);
    assert_clean(&fs);
}

#[test]
fn policies_take_and_delete_by_the_clock() {
    let pool = Pool::new(64);
    let fs = pool.open();
    let ino = fs
        .mkdir(Ino::ROOT, b"d", 0o755, &Caller::default())
        .expect("a directory")
        .ino;
    let policy = Policy::parse("hourly=3,daily=2").expect("a policy");
    fs.set_policy(ino, Some(policy)).expect("set");
    let names = |fs: &Fs| -> Vec<String> {
        let all = fs.snapshots(None).expect("listed").into_iter();
        let mut names: Vec<_> = all
            .map(|it| String::from_utf8_lossy(&it.name).into_owned())
            .collect();
        names.sort_unstable();
        names
    };
    let pass = |hours: u64| {
        let ns = hours * 3_600_000_000_000;
        pool.host.0.fetch_add(ns, Ordering::Relaxed);
    };
    let name = |period: cfs_fs::Period| {
        let now = cfs_fs::Time::from_ns(pool.host.0.load(Ordering::Relaxed));
        period.name(now)
    };
    fs.tick().expect("ticked");
    let (hour, day) = (name(cfs_fs::Period::Hourly), name(cfs_fs::Period::Daily));
    assert_eq!(names(&fs), [day.clone(), hour.clone()]);
    fs.tick().expect("ticked");
    assert_eq!(names(&fs).len(), 2, "one in an hour");
    let held = fs.snapshot(b"/d", hour.as_bytes()).expect("taken");
    fs.snapshot_hold(&held, true).expect("held");
    fs.close().expect("closed");
    drop(fs);
    // The policy outlives the process, and follows the directory.
    let fs = pool.open();
    fs.rename(Ino::ROOT, b"d", Ino::ROOT, b"e", RenameFlags::default())
        .expect("renamed");
    let mut hours = Vec::new();
    for _ in 0..5 {
        pass(24);
        fs.tick().expect("ticked");
        hours.push(name(cfs_fs::Period::Hourly));
    }
    let there = names(&fs);
    let of = |word: &str| {
        there
            .iter()
            .filter(|it| it.starts_with(word))
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(of("hourly"), [vec![hour], hours[2..].to_vec()].concat());
    assert_eq!(of("daily").len(), 2);
    assert!(!there.contains(&day));
    fs.rmdir(Ino::ROOT, b"e").expect("removed");
    pass(1);
    fs.tick().expect("ticked");
    assert_eq!(fs.policies().expect("read"), []);
    assert_eq!(names(&fs), there, "what there is stays");
    assert_clean(&fs);
}

#[test]
fn snapshots_of_removed_directories_do_not_hide_each_other() {
    let pool = Pool::new(64);
    let fs = pool.open();
    for name in ["a", "b"] {
        let ino = fs
            .mkdir(Ino::ROOT, name.as_bytes(), 0o755, &Caller::default())
            .expect("made")
            .ino;
        file(&fs, ino, name, name.as_bytes());
        let path = format!("/{name}");
        fs.snapshot_create(path.as_bytes(), b"last").expect("taken");
        fs.unlink(ino, name.as_bytes()).expect("removed");
        fs.rmdir(Ino::ROOT, name.as_bytes()).expect("removed");
    }
    let list = fs.resolve(b"/.snapshots").expect("there").ino;
    let entries = fs.read_dir(list, 0, u64::MAX, 9).expect("listed");
    assert_eq!(entries.len(), 2);
    let mut seen = Vec::new();
    for entry in &entries {
        let found = fs.lookup(list, &entry.name).expect("found as it is listed");
        assert_eq!(found.ino, entry.ino);
        for below in fs.read_dir(found.ino, 0, u64::MAX, 9).expect("listed") {
            seen.push(below.name);
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, [b"a".to_vec(), b"b".to_vec()]);
    for snapshot in fs.snapshots(None).expect("listed") {
        let found = fs.snapshot_by_id(&snapshot.id()).expect("found");
        assert_eq!(found.path, snapshot.path);
        fs.snapshot_delete(&found).expect("deleted");
    }
    assert!(
        fs.read_dir(list, 0, u64::MAX, 9)
            .expect("listed")
            .is_empty()
    );
}

struct Problems(Vec<String>);

impl RestoreObserver for Problems {
    fn inode_changed(&mut self, _: Ino) {}
    fn entry_changed(&mut self, _: Ino, _: &[u8]) {}
    fn problem(&mut self, path: &[u8], error: &FsError) {
        let path = String::from_utf8_lossy(path);
        self.0.push(format!("{path}: {error}"));
    }
    fn goes_on(&mut self) -> bool {
        true
    }
}

/// A snapshot from above shows a volume empty, or not at all, and is no reason to empty it.
#[test]
fn restoring_does_not_reach_into_volumes() {
    let pool = Pool::new(64);
    let fs = pool.open();
    let old = volume(&fs, "/old", Quota::default());
    let snapshot = fs.snapshot_create(b"/", b"s").expect("taken");
    fs.mkdir(Ino::ROOT, b"new", 0o755, &Caller::default())
        .expect("made");
    let new = volume(&fs, "/new/volume", Quota::default());
    for root in [old, new] {
        file(&fs, root, "file", b"precious");
    }
    let mut problems = Problems(Vec::new());
    let below = fs.snapshot_restore(&snapshot, b"/", b"old", true, &mut problems);
    assert!(matches!(below, Err(FsError::Volume)), "{below:?}");
    let all = fs.snapshot_restore(&snapshot, b"/", b"", true, &mut problems);
    assert_eq!(all.expect("the rest is done").problems, 1);
    assert_eq!(problems.0, ["/new: it is a volume"]);
    for path in ["/old/file", "/new/volume/file"] {
        fs.resolve(path.as_bytes()).expect("still there");
    }
    assert_clean(&fs);
}

/// The users of the S3 face, and the policies of snapshots, are records of the root directory, and of no state of it: a key
/// that had been revoked came back with the files of a snapshot.
#[test]
fn restoring_the_root_leaves_what_is_of_the_pool() {
    const USER: &[u8] = b"s3.user";
    const OTHER: &[u8] = b"s3.other";
    let pool = Pool::new(64);
    let fs = pool.open();
    let directory = fs
        .mkdir(Ino::ROOT, b"d", 0o755, &Caller::default())
        .expect("made")
        .ino;
    let set = |change: RecordChange| fs.set_records(Ino::ROOT, change).expect("room");
    set(RecordChange {
        put: vec![(USER.to_vec(), b"a key".to_vec())],
        ..RecordChange::default()
    });
    let policy = Policy::parse("daily=1").expect("a policy");
    fs.set_policy(directory, Some(policy)).expect("set");
    let visible = XattrFlags::default();
    fs.setxattr(Ino::ROOT, b"user.then", b"1", visible)
        .expect("room");
    let then = fs.snapshot_create(b"/", b"s").expect("taken");
    fs.set_policy(directory, None).expect("taken away");
    set(RecordChange {
        put: vec![(OTHER.to_vec(), b"another".to_vec())],
        delete: vec![USER.to_vec()],
        ..RecordChange::default()
    });
    fs.removexattr(Ino::ROOT, b"user.then")
        .expect("it is there");
    let mut problems = Problems(Vec::new());
    fs.snapshot_restore(&then, b"/", b"", true, &mut problems)
        .expect("restored");
    assert!(problems.0.is_empty(), "{:?}", problems.0);
    assert_eq!(fs.record(Ino::ROOT, USER).expect("read"), None);
    let other = fs.record(Ino::ROOT, OTHER).expect("read");
    assert_eq!(other.as_deref(), Some(&b"another"[..]));
    assert_eq!(fs.policies().expect("read"), []);
    let back = fs.getxattr(Ino::ROOT, b"user.then").expect("it is back");
    assert_eq!(back, b"1");
    assert_clean(&fs);
}

/// One command makes a directory, or a volume, and its records: a crash leaves both or neither.
#[test]
fn a_directory_is_made_with_its_records_or_not_at_all() {
    let pool = Pool::new(64);
    let fs = pool.open();
    let caller = Caller::default();
    let made = |name: &str, how: &Recorded<'_>| match name.starts_with("own") {
        true => {
            let options = VolumeOptions {
                domain: VolumeDomain::New,
                ..VolumeOptions::default()
            };
            let path = format!("/{name}");
            fs.volume_create_recorded(path.as_bytes(), &options, &caller, how)
        }
        false => fs.mkdir_recorded(Ino::ROOT, name.as_bytes(), 0o755, &caller, how),
    };
    let records = [(b"test.of".to_vec(), b"somebody".to_vec())];
    for (name, stays) in [
        ("plain", false),
        ("fixed", true),
        ("own", false),
        ("own-fixed", true),
    ] {
        let before = fs.store().stats().last_lsn;
        let how = Recorded {
            records: &records,
            stays,
        };
        let ino = made(name, &how).expect("made").ino;
        assert_eq!(fs.store().stats().last_lsn.0, before.0 + 1, "{name}");
        let record = fs.record(ino, b"test.of").expect("read");
        assert_eq!(record.as_deref(), Some(&b"somebody"[..]));
        assert_eq!(fs.lock(ino).expect("read").is_some(), stays, "{name}");
        if !name.starts_with("own") {
            let moved = fs.rename(
                Ino::ROOT,
                name.as_bytes(),
                Ino::ROOT,
                b"moved",
                RenameFlags::default(),
            );
            assert_eq!(moved.is_err(), stays, "{name}: {moved:?}");
        }
        assert!(matches!(made(name, &how), Err(FsError::Exists)) || name == "plain");
    }
    // What cannot be recorded is not made.
    let long = [(vec![b'x'; 256], Vec::new())];
    let how = Recorded {
        records: &long,
        stays: false,
    };
    for name in ["long", "own-long"] {
        assert!(made(name, &how).is_err());
        let found = fs.lookup(Ino::ROOT, name.as_bytes());
        assert!(matches!(found, Err(FsError::NotFound)), "{found:?}");
    }
    assert_clean(&fs);
    fs.close().expect("closed");
}
