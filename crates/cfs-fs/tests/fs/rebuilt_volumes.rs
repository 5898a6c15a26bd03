//! What a rebuild leaves of volumes whose records are lost.

use cfs_format::table::{key, tag};
use cfs_format::{Ino, VolumeId};
use cfs_fs::{Caller, Fs, VolumeDomain, VolumeOptions};

use crate::pool::{Pool, assert_clean};
use crate::rebuilt_clones::{
    Beside, at, cloned, delete_all, dir, file, is_there, lose_beside, names,
};

const BESIDE: [Beside; 2] = [Beside::Nothing, Beside::Blocks];

fn content(fs: &Fs, ino: Ino) -> Vec<u8> {
    let mut out = Vec::new();
    fs.read(ino, 0, 1 << 20, &mut out).expect("readable");
    out
}

/// A volume `/v` with a dedup domain of its own.
fn owning(fs: &Fs) -> Ino {
    let options = VolumeOptions {
        domain: VolumeDomain::New,
        ..VolumeOptions::default()
    };
    let made = fs.volume_create(b"/v", &options, &Caller::default());
    made.expect("a volume").ino
}

fn change(fs: &Fs, ino: Ino, bytes: &[u8]) {
    fs.write(ino, 0, bytes, false).expect("written");
    fs.flush(ino).expect("flushed");
}

/// Its dedup domain was taken for the default one, so that no row led to its chunks, and they went.
#[test]
fn a_volume_without_its_record_keeps_its_content_and_its_snapshots() {
    for beside in BESIDE {
        println!("{beside:?}");
        let pool = Pool::new(64);
        let fs = pool.open();
        let d = dir(&fs, owning(&fs), "d");
        for name in ["a", "kept", "removed"] {
            file(&fs, d, name, &[name.as_bytes()[0]; 90_000]);
        }
        let [kept, removed] = ["kept", "removed"].map(|name| at(&fs, &format!("/v/d/{name}")));
        fs.snapshot_create(b"/v", b"s").expect("taken");
        change(&fs, kept, &[1; 30_000]);
        fs.unlink(d, b"removed").expect("removed");
        let volume = fs.volume(b"/v").expect("there").id;
        let rebuilt = lose_beside(beside, &pool, &fs, |txn| txn.volume_remove(volume));
        assert_eq!(rebuilt.report.lost_chunks, 0, "{:?}", rebuilt.findings);
        let fs = rebuilt.fs;
        assert_clean(&fs);
        assert_eq!(names(&fs, "/v"), Vec::<String>::new());
        let found = names(&fs, "/lost+found");
        let top = format!("/lost+found/{}", found[0]);
        assert_eq!((found.len(), names(&fs, &top)), (1, vec!["d".to_owned()]));
        assert_eq!(names(&fs, &format!("{top}/d")), ["a", "kept"]);
        assert_eq!(at(&fs, &format!("{top}/d/kept")), kept);
        assert!(content(&fs, kept) == [vec![1; 30_000], vec![b'k'; 60_000]].concat());
        let snapshots = fs.snapshots(None).expect("listed");
        let [taken] = &snapshots[..] else {
            panic!("{snapshots:?}");
        };
        for (ino, byte) in [(kept, b'k'), (removed, b'r')] {
            let then = ino.in_view(taken.view).expect("a number");
            assert!(content(&fs, then) == [byte; 90_000]);
        }
        // It is a volume like any other.
        assert_eq!(fs.volumes().len(), 2);
        assert_ne!(fs.getattr(kept).expect("there").volume, VolumeId::ROOT);
        file(&fs, at(&fs, &top), "new", &[9; 80_000]);
        fs.snapshot_delete(taken).expect("deleted");
        for _ in 0..4 {
            fs.tick().expect("no trouble");
        }
        assert_clean(&fs);
        assert!(content(&fs, kept) == [vec![1; 30_000], vec![b'k'; 60_000]].concat());
    }
}

/// What stood for its lost content was of the default domain, which the volume was then taken to have.
#[test]
fn lost_content_of_a_volume_without_its_record_does_not_hide_its_domain() {
    for is_clone in [false, true] {
        println!("a clone: {is_clone}");
        let pool = Pool::new(64);
        let fs = pool.open();
        let (path, place) = match is_clone {
            true => ("/c", "/c/d"),
            false => ("/v", "/v/d"),
        };
        if is_clone {
            cloned(&fs, false);
        } else {
            dir(&fs, owning(&fs), "d");
        }
        let holder = at(&fs, place);
        for name in ["first", "second"] {
            file(&fs, holder, name, &[name.as_bytes()[0]; 90_000]);
        }
        let [first, second] = ["first", "second"].map(|name| at(&fs, &format!("{place}/{name}")));
        change(&fs, second, &[1; 30_000]);
        let id = fs.volume(path.as_bytes()).expect("there").id;
        let extents = fs
            .store()
            .range(&key(first, tag::EXTENT, &[]), &key(first, tag::DIRENT, &[]));
        let extents: Vec<_> = extents.map(|row| row.expect("readable").0).collect();
        let rebuilt = lose_beside(Beside::Blocks, &pool, &fs, |txn| {
            txn.volume_remove(id);
            extents.into_iter().for_each(|row| txn.delete(row));
        });
        let fs = rebuilt.fs;
        assert!(fs.read(first, 0, 90_000, &mut Vec::new()).is_err());
        assert!(content(&fs, second) == [vec![1; 30_000], vec![b's'; 60_000]].concat());
    }
}

/// While nobody knew the origin all that a clone had from it was taken to be lost.
#[test]
fn a_clone_of_a_volume_without_its_record_stays_as_it_was() {
    for beside in BESIDE {
        println!("{beside:?}");
        let pool = Pool::new(64);
        let fs = pool.open();
        cloned(&fs, false);
        let d = at(&fs, "/c/d");
        fs.unlink(d, b"f").expect("removed");
        file(&fs, d, "made", &[7; 90_000]);
        let volume = fs.volume(b"/v").expect("there").id;
        let rebuilt = lose_beside(beside, &pool, &fs, |txn| txn.volume_remove(volume));
        assert_eq!(rebuilt.report.lost_chunks, 0);
        let fs = rebuilt.fs;
        assert_clean(&fs);
        assert_eq!(names(&fs, "/c"), ["d"]);
        assert_eq!(names(&fs, "/c/d"), ["kept", "made", "sub"]);
        assert!(content(&fs, at(&fs, "/c/d/kept")) == [5; 70_000]);
        assert!(content(&fs, at(&fs, "/c/d/made")) == [7; 90_000]);
        assert_eq!(names(&fs, "/c/d/sub"), ["below"]);
    }
}

/// Of some only a snapshot is left, or a file without the directories above it.
#[test]
fn little_that_is_left_of_a_volume_is_there() {
    for beside in BESIDE {
        println!("{beside:?}");
        let pool = Pool::new(64);
        let fs = pool.open();
        cloned(&fs, false);
        fs.snapshot_create(b"/c", b"of the clone").expect("taken");
        let ends = [at(&fs, "/v"), at(&fs, "/v/d")];
        let [clone, volume] = ["/c", "/v"].map(|path| fs.volume(path.as_bytes()).expect(path).id);
        let kept = at(&fs, "/v/d/kept");
        let rebuilt = lose_beside(beside, &pool, &fs, |txn| {
            txn.volume_remove(clone);
            txn.volume_remove(volume);
            ends.iter().for_each(|ino| delete_all(&fs, txn, *ino));
        });
        assert_eq!(rebuilt.report.lost_chunks, 0);
        let fs = rebuilt.fs;
        assert!(content(&fs, kept) == [5; 70_000]);
        assert!(!is_there(&fs, "/v/d"));
        assert_eq!(fs.volumes().len(), 3);
        assert_clean(&fs);
    }
}
