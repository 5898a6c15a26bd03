//! What is locked stays as it is, whatever is tried, and however the process ends.

use std::sync::Arc;

use crate::pool::{Pool, assert_clean};
use cfs_format::Ino;
use cfs_fs::{
    AllocateMode, Arrangement, Caller, Expected, Fs, FsError, Lock, LockChange, Moved, Named,
    Publication, RenameFlags, RestoreObserver, RetentionMode, SetAttr, SetTime, XattrFlags,
};

const ROOT: Ino = Ino::ROOT;
const MOVE: RenameFlags = RenameFlags {
    no_replace: false,
    exchange: false,
};
const EXCHANGE: RenameFlags = RenameFlags {
    no_replace: false,
    exchange: true,
};

fn file(fs: &Fs, parent: Ino, name: &str, content: &[u8]) -> Ino {
    let made = fs
        .create(parent, name.as_bytes(), 0o644, &Caller::default())
        .expect("create");
    fs.write(made.ino, 0, content, false).expect("write");
    made.ino
}

fn content(fs: &Fs, ino: Ino) -> Vec<u8> {
    let mut content = Vec::new();
    fs.read(ino, 0, 1 << 20, &mut content).expect("read");
    content
}

fn retain(mode: RetentionMode, until: u64) -> LockChange {
    LockChange {
        retention: Some(Some((mode, until))),
        ..LockChange::default()
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, FsError>) {
    match result {
        Err(FsError::Locked) => {}
        other => panic!("a lock should have refused it: {other:?}"),
    }
}

/// Notes what could not be restored.
#[derive(Default)]
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

/// Tries all that would remove, replace, move or change the file `/bucket/dir/name`, and finds it as it was.
fn try_everything(fs: &Arc<Fs>, dir: Ino, name: &[u8], wanted: &[u8]) {
    let ino = fs.lookup(dir, name).expect("it is there").ino;
    let before = fs.getattr(ino).expect("getattr");
    let other = file(fs, ROOT, "other", b"other");
    refused(fs.unlink(dir, name));
    refused(fs.unlink_and_hold(dir, name));
    refused(fs.rename(dir, name, ROOT, b"away", MOVE));
    refused(fs.rename(dir, name, dir, b"renamed", MOVE));
    refused(fs.rename(ROOT, b"other", dir, name, MOVE));
    refused(fs.rename(ROOT, b"other", dir, name, EXCHANGE));
    refused(fs.rename(dir, name, ROOT, b"other", EXCHANGE));
    refused(fs.rename_leaving_whiteout((dir, name), (ROOT, b"away"), MOVE, &Caller::default()));
    refused(fs.link(ino, ROOT, b"second"));
    refused(fs.write(ino, 0, b"x", false));
    refused(fs.write(ino, before.size, b"x", false));
    let size = |size| SetAttr {
        size: Some(size),
        ..SetAttr::default()
    };
    refused(fs.setattr(ino, &size(0)));
    refused(fs.setattr(ino, &size(before.size + 1)));
    for set in [
        SetAttr {
            mode: Some(0o777),
            ..SetAttr::default()
        },
        SetAttr {
            uid: Some(7),
            ..SetAttr::default()
        },
        SetAttr {
            mtime: Some(SetTime::Now),
            ..SetAttr::default()
        },
    ] {
        refused(fs.setattr(ino, &set));
    }
    refused(fs.fallocate(ino, AllocateMode::Punch, 0, 4096, false));
    refused(fs.copy_range(other, 0, ino, 0, 5));
    refused(fs.setxattr(ino, b"user.a", b"1", XattrFlags::default()));
    refused(fs.removexattr(ino, b"user.kept"));
    let published = fs.tmpfile_and_hold(dir, 0o644, &Caller::default());
    let published = published.expect("a file without a name").ino;
    refused(fs.publish(
        published,
        Publication {
            parent: dir,
            name,
            expected: Expected::Anything,
            records: Vec::new(),
            archive: None,
        },
    ));
    fs.release(published).expect("release");
    fs.end_hold(published).expect("end of the hold");
    refused(fs.arrange(Arrangement {
        remove: Some(Named {
            parent: dir,
            name: name.to_vec(),
            ino,
        }),
        ..Arrangement::default()
    }));
    // Nor do the directories above it go anywhere.
    refused(fs.rename(ROOT, b"bucket", ROOT, b"elsewhere", MOVE));
    let bucket = fs.lookup(ROOT, b"bucket").expect("it is there").ino;
    refused(fs.rename(bucket, b"dir", bucket, b"other-dir", MOVE));
    refused(fs.rename(bucket, b"dir", ROOT, b"dir", MOVE));
    assert!(matches!(fs.rmdir(bucket, b"dir"), Err(FsError::NotEmpty)));
    fs.unlink(ROOT, b"other").expect("it is not locked");
    fs.flush(ino).expect("nothing is pending of it");
    assert_eq!(content(fs, ino), wanted);
    let after = fs.getattr(ino).expect("getattr");
    assert_eq!(
        (after.size, after.mtime, after.mode, after.uid, after.nlink),
        (
            before.size,
            before.mtime,
            before.mode,
            before.uid,
            before.nlink
        )
    );
    assert_clean(fs);
}

/// `/bucket/dir/name` with this content, under a bucket that is fixed.
fn prepare(fs: &Fs, wanted: &[u8]) -> (Ino, Ino) {
    let make = |parent, name: &str| {
        fs.mkdir(parent, name.as_bytes(), 0o755, &Caller::default())
            .expect("mkdir")
            .ino
    };
    let bucket = make(ROOT, "bucket");
    fs.fix_directory(bucket).expect("fixed");
    let dir = make(bucket, "dir");
    let ino = file(fs, dir, "name", wanted);
    fs.setxattr(ino, b"user.kept", b"1", XattrFlags::default())
        .expect("setxattr");
    (dir, ino)
}

#[test]
fn nothing_removes_or_changes_what_compliance_protects() {
    for bytes in [5, 300_000] {
        let wanted: Vec<u8> = (0..bytes).map(|at: u32| (at * 7 / 3) as u8).collect();
        let pool = Pool::new(128);
        let fs = pool.open();
        let (dir, ino) = prepare(&fs, &wanted);
        let before = fs.snapshot_create(b"/bucket", b"before").expect("snapshot");
        let until = fs.now_ms() + 3_600_000;
        fs.set_lock(ino, retain(RetentionMode::Compliance, until))
            .expect("locked");
        try_everything(&fs, dir, b"name", &wanted);
        // The administrator's ways: a snapshot from before it was locked, or before it was made.
        let mut problems = Problems::default();
        fs.snapshot_restore(&before, b"/bucket", b"", true, &mut problems)
            .expect("the rest is restored");
        try_everything(&fs, dir, b"name", &wanted);
        // Only ever prolonged, and by nobody weakened.
        for (mode, end) in [
            (RetentionMode::Compliance, until - 1),
            (RetentionMode::Governance, until),
            (RetentionMode::Governance, until + 1),
        ] {
            for bypass_governance in [false, true] {
                refused(fs.set_lock(
                    ino,
                    LockChange {
                        bypass_governance,
                        ..retain(mode, end)
                    },
                ));
            }
        }
        let none = LockChange {
            retention: Some(None),
            bypass_governance: true,
            ..LockChange::default()
        };
        refused(fs.set_lock(ino, none));
        fs.set_lock(ino, retain(RetentionMode::Compliance, until + 1))
            .expect("prolonged");
        fs.store().sync().expect("sync");
        // After a power cut, and after the end of the process.
        let pools = [pool.power_cut(1), pool];
        drop(fs);
        let opened = pools.each_ref().map(|pool| {
            let fs = pool.open();
            try_everything(&fs, dir, b"name", &wanted);
            let locked = fs.lock(ino).expect("read").expect("it has a lock");
            assert_eq!(
                locked.retention,
                Some((RetentionMode::Compliance, until + 1))
            );
            fs
        });
        // When its time has come it is a file like any other.
        pools[0].sleep_ms(3_700_000);
        for fs in opened {
            fs.write(ino, 0, b"new", false).expect("write");
            fs.flush(ino).expect("flush");
            fs.unlink(dir, b"name").expect("unlink");
            assert_clean(&fs);
            fs.close().expect("close");
        }
    }
}

#[test]
fn governance_and_holds_end_for_who_may_end_them() {
    let pool = Pool::new(64);
    let fs = pool.open();
    let (dir, ino) = prepare(&fs, b"content");
    let until = fs.now_ms() + 3_600_000;
    fs.set_lock(ino, retain(RetentionMode::Governance, until))
        .expect("locked");
    try_everything(&fs, dir, b"name", b"content");
    refused(fs.set_lock(ino, retain(RetentionMode::Governance, until - 1)));
    refused(fs.set_lock(ino, retain(RetentionMode::Compliance, until)));
    let hold = |hold| LockChange {
        hold: Some(hold),
        ..LockChange::default()
    };
    fs.set_lock(ino, hold(true)).expect("held");
    let named = Named {
        parent: dir,
        name: b"name".to_vec(),
        ino,
    };
    let bypass = Arrangement {
        remove: Some(named),
        bypass_governance: true,
        ..Arrangement::default()
    };
    refused(fs.arrange(bypass.clone()));
    fs.set_lock(ino, hold(false)).expect("held no more");
    try_everything(&fs, dir, b"name", b"content");
    // It can be moved by whoever answers for it that it is found again, lock and all.
    let moved = Moved {
        from: Named {
            parent: dir,
            name: b"name".to_vec(),
            ino,
        },
        to: dir,
        name: b"moved".to_vec(),
    };
    fs.arrange(Arrangement {
        moves: vec![moved],
        ..Arrangement::default()
    })
    .expect("moved");
    try_everything(&fs, dir, b"moved", b"content");
    assert!(matches!(fs.arrange(bypass), Err(FsError::Changed)));
    let named = Named {
        parent: dir,
        name: b"moved".to_vec(),
        ino,
    };
    fs.arrange(Arrangement {
        remove: Some(named),
        bypass_governance: true,
        ..Arrangement::default()
    })
    .expect("who may bypass governance removes it");
    assert_clean(&fs);
}

/// Data that were accepted before the lock are written first; those that come after are refused, and nothing is stuck.
#[test]
fn a_lock_waits_for_what_was_written_before() {
    let pool = Pool::new(64);
    let fs = pool.open();
    let (dir, _) = prepare(&fs, b"content");
    let ino = file(&fs, dir, "open", b"begun");
    fs.open(ino).expect("open");
    fs.write(ino, 5, b" and done", false).expect("write");
    let until = fs.now_ms() + 3_600_000;
    fs.set_lock(ino, retain(RetentionMode::Compliance, until))
        .expect("locked");
    refused(fs.write(ino, 0, b"x", false));
    fs.fsync(ino, false).expect("nothing is pending");
    assert_eq!(content(&fs, ino), b"begun and done");
    // One that is locked from its first moment on.
    let new = fs
        .tmpfile_and_hold(dir, 0o644, &Caller::default())
        .expect("a file without a name")
        .ino;
    fs.write(new, 0, b"new", false).expect("write");
    let lock = Lock {
        retention: Some((RetentionMode::Compliance, until)),
        hold: false,
    };
    fs.publish(
        new,
        Publication {
            parent: dir,
            name: b"new",
            expected: Expected::Nothing,
            records: vec![lock.record()],
            archive: None,
        },
    )
    .expect("published");
    refused(fs.write(new, 0, b"x", false));
    fs.release(new).expect("release");
    fs.end_hold(new).expect("end of the hold");
    try_everything(&fs, dir, b"new", b"new");
    fs.release(ino).expect("release");
    fs.close().expect("close");
    assert_clean(&pool.open());
}

/// A volume whose root was fixed could be renamed, as its name is that of its junction.
#[test]
fn a_fixed_volume_stays_where_it_is() {
    let pool = Pool::new(64);
    let fs = pool.open();
    let options = cfs_fs::VolumeOptions::default();
    let caller = Caller::default();
    let fixed = fs
        .volume_create(b"/fixed", &options, &caller)
        .expect("a volume")
        .ino;
    fs.volume_create(b"/free", &options, &caller)
        .expect("a volume");
    fs.fix_directory(fixed).expect("it is a directory");
    let below = fs
        .mkdir(fixed, b"below", 0o755, &caller)
        .expect("mkdir")
        .ino;
    refused(fs.rename(ROOT, b"fixed", ROOT, b"moved", MOVE));
    refused(fs.rename(ROOT, b"fixed", ROOT, b"free", EXCHANGE));
    refused(fs.rename(ROOT, b"free", ROOT, b"fixed", EXCHANGE));
    refused(fs.rename(fixed, b"below", fixed, b"moved", MOVE));
    fs.rename(ROOT, b"free", ROOT, b"moved", MOVE)
        .expect("nothing is locked in it");
    assert_eq!(fs.resolve(b"/fixed/below").expect("it is there").ino, below);
    fs.store().sync().expect("sync");
    assert_clean(&fs);
}
