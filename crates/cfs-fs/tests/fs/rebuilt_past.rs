//! What a rebuild puts in the place of lost rows of which snapshots show earlier states: it begins where those ended.

use std::sync::Arc;

use cfs_format::Ino;
use cfs_format::table::{ended_key, history_prefix, key, split_history, split_key, tag};
use cfs_fs::{Fs, Rebuilt, SetAttr, Snapshot};
use cfs_store::Txn;

use crate::pool::{Pool, assert_clean};
use crate::rebuilt_clones::{Beside, at, cloned, delete_all, file, lose_beside, names, names_in};

/// A pool of which rows are to be lost beside these: with a volume, and a clone of it.
fn cloned_pool(beside: Beside) -> (Pool, Arc<Fs>) {
    println!("{beside:?}");
    let pool = Pool::new(64);
    let fs = pool.open();
    cloned(&fs, false);
    (pool, fs)
}

fn write(fs: &Fs, ino: Ino, offset: u64, bytes: &[u8]) {
    fs.write(ino, offset, bytes, false).expect("written");
    fs.flush(ino).expect("flushed");
}

fn content(fs: &Fs, ino: Ino) -> Vec<u8> {
    let mut content = Vec::new();
    fs.read(ino, 0, 1 << 20, &mut content).expect("readable");
    content
}

fn snapshot(fs: &Fs, name: &[u8]) -> Arc<Snapshot> {
    let snapshots = fs.snapshots(None).expect("listed");
    let taken = snapshots.into_iter().find(|it| it.name == name);
    taken.expect("kept")
}

/// The number of an inode as the snapshot with this name shows it.
fn shown(fs: &Fs, ino: Ino, name: &[u8]) -> Ino {
    ino.in_view(snapshot(fs, name).view).expect("a number")
}

/// As [`assert_clean`], where chunks are known to be lost.
fn assert_fits(fs: &Fs) {
    let report = fs.check(|_| true).expect("readable").expect("not ended");
    let others = report.findings.iter().filter(|it| it.id != "chunk-lost");
    assert_eq!(others.count(), 0, "{:?}", report.findings);
}

fn assert_told(rebuilt: &Rebuilt, sentence: &str) {
    let findings = &rebuilt.findings;
    let is_told = findings.iter().any(|it| it.sentence.contains(sentence));
    assert!(is_told, "{findings:?}");
}

/// The copy had the timestamps of the origin's rows, which are older than anything in the clone.
#[test]
fn a_file_of_a_clone_that_is_its_origins_again_begins_behind_its_own_past() {
    for beside in [Beside::Nothing, Beside::Blocks] {
        let (pool, fs) = cloned_pool(beside);
        let (d, kept) = (at(&fs, "/c/d"), at(&fs, "/c/d/kept"));
        let empty = SetAttr {
            size: Some(0),
            ..SetAttr::default()
        };
        fs.setattr(kept, &empty).expect("truncated");
        write(&fs, kept, 100_000, &[8; 60_000]);
        fs.snapshot_create(b"/c", b"then").expect("taken");
        fs.setattr(kept, &empty).expect("truncated");
        write(&fs, kept, 0, &[9; 50_000]);
        fs.link(kept, d, b"too").expect("linked");
        let rebuilt = lose_beside(beside, &pool, &fs, |txn| delete_all(&fs, txn, kept));
        let sentence = "as snapshots show it, what is lost of it may read as zeros";
        assert_told(&rebuilt, sentence);
        let fs = rebuilt.fs;
        assert_clean(&fs);
        assert_eq!(fs.getattr(kept).expect("there").nlink, 2);
        assert!(content(&fs, kept) == [5; 70_000]);
        let then = shown(&fs, kept, b"then");
        assert!(content(&fs, then) == [vec![0; 100_000], vec![8; 60_000]].concat());
        write(&fs, kept, 0, &[1; 10]);
        fs.unlink(d, b"kept").expect("removed");
        fs.unlink(d, b"too").expect("removed");
        fs.snapshot_delete(&snapshot(&fs, b"then"))
            .expect("deleted");
        assert_clean(&fs);
    }
}

/// As above; the names that it takes over may be the ones that snapshots show.
#[test]
fn a_directory_of_a_clone_that_is_its_origins_again_begins_behind_its_own_past() {
    for (all, beside) in [
        (true, Beside::Nothing),
        (false, Beside::Nothing),
        (true, Beside::Blocks),
        (false, Beside::Blocks),
    ] {
        println!("all rows: {all}");
        let (pool, fs) = cloned_pool(beside);
        let d = at(&fs, "/c/d");
        file(&fs, d, "made", b"in the clone");
        fs.snapshot_create(b"/c", b"then").expect("taken");
        fs.unlink(d, b"f").expect("removed");
        fs.unlink(d, b"made").expect("removed");
        file(&fs, d, "later", b"in the clone");
        let rebuilt = lose_beside(beside, &pool, &fs, |txn| match all {
            true => delete_all(&fs, txn, d),
            false => txn.delete(key(d, tag::INODE, &[])),
        });
        if all {
            let sentence = "as snapshots show it, names in it may be missing, or";
            assert_told(&rebuilt, sentence);
        }
        let fs = rebuilt.fs;
        assert_clean(&fs);
        let now = match all {
            true => vec!["kept", "sub"],
            false => vec!["kept", "later", "sub"],
        };
        assert_eq!(names(&fs, "/c/d"), now);
        let then = names_in(&fs, shown(&fs, d, b"then"));
        assert_eq!(then, ["f", "kept", "made", "sub"]);
        fs.unlink(d, b"kept").expect("removed");
        assert_eq!(names(&fs, "/v/d"), ["f", "kept", "sub"]);
        fs.snapshot_delete(&snapshot(&fs, b"then"))
            .expect("deleted");
        assert_clean(&fs);
    }
}

/// The new record had no timestamp, and where names were missing it had lost the flag of its attributes again.
#[test]
fn a_record_that_is_made_anew_begins_behind_its_past() {
    for beside in [Beside::Nothing, Beside::Blocks] {
        let (pool, fs) = cloned_pool(beside);
        let d = at(&fs, "/v/d");
        fs.unlink(d, b"f").expect("removed");
        let rebuilt = lose_beside(beside, &pool, &fs, |txn| {
            txn.delete(key(d, tag::INODE, &[]));
        });
        let fs = rebuilt.fs;
        assert_clean(&fs);
        assert_eq!(names(&fs, "/v/d"), ["kept", "sub"]);
        assert_eq!(names(&fs, "/c/d"), ["f", "kept", "sub"]);
        assert_eq!(
            fs.getattr(at(&fs, "/c/d")).expect("there").mode & 0o777,
            0o755
        );
    }
}

/// An older record was left, and the extents that stand for lost content had its timestamp.
#[test]
fn what_stands_for_lost_content_begins_behind_its_past() {
    for beside in [Beside::Nothing, Beside::Blocks] {
        let (pool, fs) = cloned_pool(beside);
        let f = at(&fs, "/v/d/f");
        let record_key = key(f, tag::INODE, &[]);
        let older = fs.store().get(&record_key).expect("read").expect("there");
        write(&fs, f, 0, &[5; 70_000]);
        fs.snapshot_create(b"/v", b"then").expect("taken");
        write(&fs, f, 0, &[9; 70_000]);
        let rebuilt = lose_beside(beside, &pool, &fs, |txn| {
            forget_states(&fs, txn, f, tag::INODE);
            delete_all(&fs, txn, f);
            txn.put(record_key, older);
        });
        assert_told(&rebuilt, "its content is lost");
        let fs = rebuilt.fs;
        assert_fits(&fs);
        let read = fs.read(f, 0, 100, &mut Vec::new());
        assert_eq!(read.expect_err("lost").errno(), libc::EIO);
        write(&fs, f, 0, &[7; 90_000]);
        assert!(content(&fs, f) == [7; 90_000]);
        assert_fits(&fs);
    }
}

/// Removes what snapshots show of an inode's rows with this tag.
fn forget_states(fs: &Fs, txn: &mut Txn<'_>, ino: Ino, row_tag: u8) {
    let volume = fs.getattr(ino).expect("there").volume;
    let lo = history_prefix(ino, row_tag, &[]);
    let hi = history_prefix(ino, row_tag + 1, &[]);
    let states: Vec<_> = fs.store().range(&lo, &hi).collect();
    assert!(!states.is_empty());
    for state in states {
        let (row_key, _) = state.expect("readable");
        let (_, _, state) = split_key(&row_key).expect("a key");
        let (_, _, suffix, to) = split_history(state).expect("a state");
        txn.delete(ended_key(volume.0, to, ino, row_tag, suffix));
        txn.delete(row_key);
    }
}
