//! Removing clones and what is in them, beside others who work there.

use std::sync::{Arc, Mutex, mpsc};
use std::thread::ThreadId;
use std::time::Duration;

use cfs_format::table::{key, tag};
use cfs_format::{Ino, VolumeId};
use cfs_fs::{
    Caller, Fs, FsError, FsOptions, Quota, RenameFlags, SetAttr, VolumeOptions, XattrFlags,
};
use cfs_seal::keys::unwrap_cluster_key;
use cfs_store::{Host, StoreOptions, UnlockError};

use crate::pool::{Pool, Rng, TestHost, assert_clean, master_key};

/// What somebody does when a thread looks at the clock, or draws random numbers.
type Call = Box<dyn FnMut() + Send>;

/// A host that calls somebody.
struct Calling {
    host: Arc<TestHost>,
    at_clock: Mutex<Option<(ThreadId, Call)>>,
    at_random: Mutex<Option<(ThreadId, Call)>>,
}

fn call(slot: &Mutex<Option<(ThreadId, Call)>>) {
    let is_this = |(thread, _): &mut (ThreadId, Call)| *thread == std::thread::current().id();
    let taken = slot.lock().expect("no panics").take_if(is_this);
    if let Some((_, mut call)) = taken {
        call();
    }
}

impl Host for Calling {
    fn now_ns(&self) -> u64 {
        call(&self.at_clock);
        self.host.now_ns()
    }

    fn fill_random(&self, buf: &mut [u8]) {
        call(&self.at_random);
        self.host.fill_random(buf);
    }
}

fn open(pool: &Pool) -> (Arc<Fs>, Arc<Calling>) {
    let host = Arc::new(Calling {
        host: Arc::clone(&pool.host),
        at_clock: Mutex::default(),
        at_random: Mutex::default(),
    });
    let fs = Fs::open_pool(
        pool.device.clone(),
        host.clone(),
        |superblock| {
            unwrap_cluster_key(&master_key(), &superblock.key_slot)
                .map_err(|_| UnlockError::WrongKey)
        },
        StoreOptions::default(),
        FsOptions::default(),
    );
    (fs.expect("opens"), host)
}

fn at(fs: &Fs, path: &str) -> Ino {
    fs.resolve(path.as_bytes()).expect(path).ino
}

fn file(fs: &Fs, parent: Ino, name: &str, content: &[u8]) -> Ino {
    let made = fs.create(parent, name.as_bytes(), 0o644, &Caller::default());
    let ino = made.expect("a file").ino;
    fs.write(ino, 0, content, false).expect("written");
    fs.flush(ino).expect("flushed");
    ino
}

/// A volume `/v` with the files `a` and `b`.
fn volume(fs: &Fs) -> Ino {
    let made = fs.volume_create(b"/v", &VolumeOptions::default(), &Caller::default());
    let root = made.expect("a volume").ino;
    file(fs, root, "a", &[1; 90_000]);
    file(fs, root, "b", &[2; 90_000]);
    root
}

/// Clones of it as it is.
fn clones<const N: usize>(fs: &Fs, paths: [&str; N], quota: Quota) -> [Ino; N] {
    let taken = fs.snapshot_create(b"/v", b"s").expect("taken");
    paths.map(|path| {
        let made = fs.clone_create(&taken, path.as_bytes(), quota, &Caller::default());
        made.expect(path).ino
    })
}

/// Renaming over a file that a clone has from its origin copies it first. It was not found when somebody removed it
/// meanwhile.
#[test]
fn a_name_is_moved_where_another_was_removed_while_it_was_copied() {
    let pool = Pool::new(64);
    let (fs, host) = open(&pool);
    volume(&fs);
    let [root] = clones(&fs, ["/c"], Quota::default());
    // The directory is the clone's own.
    file(&fs, root, "other", b"");
    let (a, b) = (at(&fs, "/c/a"), at(&fs, "/c/b"));
    let mode = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    fs.setattr(a, &mode).expect("changed");
    let remover = Arc::clone(&fs);
    *host.at_random.lock().expect("no panics") = Some((
        std::thread::current().id(),
        Box::new(move || remover.unlink(root, b"b").expect("removed")),
    ));
    fs.rename(root, b"a", root, b"b", RenameFlags::default())
        .expect("moved");
    assert_eq!(at(&fs, "/c/b"), a);
    assert!(fs.lookup(root, b"a").is_err());
    assert!(matches!(fs.getattr(b), Err(FsError::NotFound)));
    // Nor does it have attributes, or anything that describes it.
    assert!(matches!(
        fs.described(b, b"s3.content"),
        Err(FsError::NotFound)
    ));
    assert_clean(&fs);
}

/// What is above a quota is refused at once, whatever is left of clones that are gone.
#[test]
fn a_quota_does_not_wait_for_what_is_left_of_others() {
    let pool = Pool::new(64);
    let (fs, _) = open(&pool);
    volume(&fs);
    let quota = Quota {
        bytes: 0,
        inodes: 2,
    };
    let [bounded, gone] = clones(&fs, ["/q", "/gone"], quota);
    file(&fs, gone, "new", b"");
    fs.clone_delete(b"/gone").expect("removed");
    file(&fs, bounded, "new", b"");
    let mode = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    let refused = fs.setattr(at(&fs, "/q/a"), &mode);
    assert!(matches!(refused, Err(FsError::Quota)), "{refused:?}");
    let left = |fs: &Fs| fs.store().volumes().iter().any(|(_, it)| it.is_removed());
    assert!(left(&fs));
    for _ in 0..4 {
        fs.tick().expect("no trouble");
    }
    assert!(!left(&fs));
    assert_clean(&fs);
}

/// Rows of a clone that was removed, and that could not be read, failed whatever needed room.
#[test]
fn damage_in_a_removed_clone_does_not_fail_others() {
    let pool = Pool::new(64);
    let (fs, _) = open(&pool);
    volume(&fs);
    let [gone, other] = clones(&fs, ["/gone", "/other"], Quota::default());
    file(&fs, other, "own", b"");
    let damaged = file(&fs, gone, "damaged", &[3; 90_000]);
    let filler = file(&fs, Ino::ROOT, "filler", b"");
    let (mut offset, mut step) = (0, 1 << 20);
    while step > 1000 {
        let mut rng = Rng::new(offset);
        let mut bytes = vec![0; step];
        bytes.fill_with(|| rng.next() as u8);
        match fs.write(filler, offset, &bytes, false) {
            Ok(written) => offset += written as u64,
            Err(FsError::NoSpace) => step /= 2,
            Err(error) => panic!("{error}"),
        }
    }
    fs.flush(filler).expect("flushed");
    let mut txn = fs.store().begin();
    txn.delete(key(damaged, tag::INODE, &[]));
    txn.commit(&[]).expect("commit");
    fs.clone_delete(b"/gone").expect("removed");
    for number in 0.. {
        let name = format!("a name of some length to fill the tables {number}");
        let made = fs.create(other, name.as_bytes(), 0o644, &Caller::default());
        let set = made
            .and_then(|made| fs.setxattr(made.ino, b"user.x", &[7; 60_000], XattrFlags::default()));
        match set {
            Ok(()) => assert!(number < 100_000),
            Err(FsError::NoSpace) => break,
            Err(error) => panic!("{error}"),
        }
    }
    // Copying what a clone has, too.
    let refused = fs.write(at(&fs, "/other/a"), 0, &[1; 9000], false);
    assert!(matches!(refused, Err(FsError::NoSpace)), "{refused:?}");
}

/// A clone that is to be empty is looked at when nobody else can change it.
#[test]
fn what_is_made_while_a_clone_is_removed_is_not_removed_with_it() {
    let pool = Pool::new(64);
    let (fs, host) = open(&pool);
    fs.mkdir(Ino::ROOT, b"v", 0o755, &Caller::default())
        .expect("made");
    let [root] = clones(&fs, ["/c"], Quota::default());
    file(&fs, root, "once", b"");
    fs.unlink(root, b"once").expect("removed");
    let (looks, looked) = mpsc::channel();
    let maker = {
        let (fs, host) = (Arc::clone(&fs), Arc::clone(&host));
        std::thread::spawn(move || {
            *host.at_clock.lock().expect("no panics") = Some((
                std::thread::current().id(),
                Box::new(move || {
                    // Commands look at the clock while nobody else can make one.
                    looks.send(()).expect("somebody waits");
                    std::thread::sleep(Duration::from_millis(200));
                }),
            ));
            fs.create(root, b"made", 0o644, &Caller::default())
        })
    };
    looked.recv().expect("it looks at the clock");
    let removed = fs.volume_delete(b"/c");
    maker.join().expect("no panics").expect("made");
    assert!(matches!(removed, Err(FsError::NotEmpty)), "{removed:?}");
    at(&fs, "/c/made");
    assert_clean(&fs);
}

/// Sweeping goes on where it was in one clone, whatever else is removed meanwhile, and ends when nothing is left.
#[test]
fn all_rows_of_removed_clones_go() {
    // More than one tick removes.
    const FILES: usize = 12_000;
    let pool = Pool::new(96);
    let (fs, _) = open(&pool);
    let root = volume(&fs);
    for number in 0..FILES {
        let name = format!("f{number}");
        fs.create(root, name.as_bytes(), 0o644, &Caller::default())
            .expect("made");
    }
    let [first, live, second] = clones(&fs, ["/first", "/live", "/second"], Quota::default());
    for root in [first, live, second] {
        let owned = fs.lookup(root, b"a").expect("there").ino;
        fs.write(owned, 0, b"x", false).expect("written");
        fs.flush(owned).expect("flushed");
        file(&fs, root, "new", &[3; 90_000]);
    }
    let id = |root: Ino| root.cloned().expect("a clone").0;
    let rows = |root: Ino| {
        let lo = Ino(0).in_clone(id(root)).expect("a number");
        let hi = Ino(0).in_clone(VolumeId(id(root).0 + 1)).expect("a number");
        let rows = fs.store().range(&key(lo, 0, &[]), &key(hi, 0, &[]));
        rows.count()
    };
    let all = rows(live);
    for (path, root) in [(&b"/second"[..], second), (b"/first", first)] {
        fs.clone_delete(path).expect("removed");
        fs.tick().expect("no trouble");
        let left = rows(root);
        assert!(left > 0 && left < all, "{left} of {all}");
    }
    // Above what has been swept, as what was under way leaves it.
    let mut txn = fs.store().begin();
    let late = Ino(1 << 20).in_clone(id(first)).expect("a number");
    txn.put(key(late, tag::XATTR, b"user.late"), vec![0; 16]);
    txn.commit(&[]).expect("commit");
    for _ in 0..8 {
        fs.tick().expect("no trouble");
    }
    assert_eq!([first, live, second].map(rows), [0, all, 0]);
    assert!(!fs.store().volumes().iter().any(|(_, it)| it.is_removed()));
    assert_clean(&fs);
}
