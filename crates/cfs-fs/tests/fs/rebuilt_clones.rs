//! What a rebuild leaves of clones of which rows are lost.

use cfs_device::Device;
use cfs_format::table::{history_prefix, key, tag};
use cfs_format::{Ino, SEGMENT_BYTES, SegmentId, VolumeId};
use cfs_fs::{
    Caller, Fs, Quota, Rebuilt, RenameFlags, SetAttr, VolumeDomain, VolumeOptions, XattrFlags,
};
use cfs_store::{StoreOptions, TableOwner, Txn};

use crate::pool::{Pool, assert_clean};
use crate::rebuild::rebuild;

pub fn at(fs: &Fs, path: &str) -> Ino {
    fs.resolve(path.as_bytes()).expect(path).ino
}

pub fn is_there(fs: &Fs, path: &str) -> bool {
    fs.resolve(path.as_bytes()).is_ok()
}

pub fn dir(fs: &Fs, parent: Ino, name: &str) -> Ino {
    let made = fs.mkdir(parent, name.as_bytes(), 0o755, &Caller::default());
    made.expect("a directory").ino
}

pub fn file(fs: &Fs, parent: Ino, name: &str, content: &[u8]) {
    let made = fs.create(parent, name.as_bytes(), 0o644, &Caller::default());
    let ino = made.expect("a file").ino;
    fs.write(ino, 0, content, false).expect("written");
    fs.flush(ino).expect("flushed");
}

pub fn names(fs: &Fs, path: &str) -> Vec<String> {
    names_in(fs, at(fs, path))
}

pub fn names_in(fs: &Fs, ino: Ino) -> Vec<String> {
    let limit = fs.dir_limit(ino).expect("a directory");
    let mut names: Vec<String> = fs
        .read_dir(ino, 0, limit, usize::MAX)
        .expect("listed")
        .into_iter()
        .map(|entry| String::from_utf8_lossy(&entry.name).into_owned())
        .collect();
    names.sort();
    names
}

/// A clone `/c` of a volume with `d/f`, `d/kept` and `d/sub/below`.
pub fn cloned(fs: &Fs, has_locks: bool) {
    let options = VolumeOptions {
        domain: VolumeDomain::New,
        ..VolumeOptions::default()
    };
    let made = fs.volume_create(b"/v", &options, &Caller::default());
    let root = made.expect("a volume").ino;
    let d = dir(fs, root, "d");
    file(fs, d, "f", b"removed later");
    file(fs, d, "kept", &[5; 70_000]);
    let sub = dir(fs, d, "sub");
    file(fs, sub, "below", b"in sub");
    fs.setxattr(root, b"user.a", b"of the root", XattrFlags::default())
        .expect("set");
    fs.setxattr(d, b"user.a", b"of d", XattrFlags::default())
        .expect("set");
    if has_locks {
        fs.fix_directory(root)
            .expect("a directory in which files can be locked");
    }
    let taken = fs.snapshot_create(b"/v", b"s").expect("taken");
    fs.clone_create(&taken, b"/c", Quota::default(), &Caller::default())
        .expect("a clone");
}

/// What is lost beside the rows that a test takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// Nothing: the rebuild does not know that any rows are lost.
    Nothing,
    /// A block of which nobody knows what was in it.
    Blocks,
}

/// Takes rows away and rebuilds.
fn lose(pool: &Pool, fs: &Fs, rows: impl FnOnce(&mut Txn<'_>)) -> Rebuilt {
    let rebuilt = lose_beside(Beside::Nothing, pool, fs, rows);
    assert_clean(&rebuilt.fs);
    rebuilt
}

/// The same, with what is lost beside them; the pool has not been looked at.
pub fn lose_beside(
    beside: Beside,
    pool: &Pool,
    fs: &Fs,
    rows: impl FnOnce(&mut Txn<'_>),
) -> Rebuilt {
    assert_clean(fs);
    fs.syncfs().expect("syncfs");
    let mut txn = fs.store().begin();
    rows(&mut txn);
    txn.commit(&[]).expect("commit");
    fs.store().checkpoint().expect("checkpoint");
    let superblock = fs.store().superblock_copy();
    if beside == Beside::Blocks {
        let zeros = vec![0; SEGMENT_BYTES as usize];
        let written = pool.device.write_at(oldest_run(fs), 0, &zeros);
        written.and_then(|()| pool.device.flush()).expect("erased");
    }
    let rebuilt = rebuild(pool, &superblock, &[], StoreOptions::default());
    let is_known = rebuilt.report.lost_blocks > 0;
    assert_eq!(is_known, beside == Beside::Blocks, "{:?}", rebuilt.report);
    assert!(!rebuilt.findings.is_empty(), "nothing was told");
    rebuilt
}

/// The segment with the rows that the pool was made with; those that count have been written again since.
fn oldest_run(fs: &Fs) -> SegmentId {
    let reports = (0..).map_while(|segment| {
        let report = fs.store().segment_report(SegmentId(segment)).ok()?;
        Some((SegmentId(segment), report))
    });
    let runs = reports.filter_map(|(segment, report)| {
        let owner = report.directory?.owner;
        (owner == TableOwner::Meta).then_some((report.header?.seq.get(), segment))
    });
    runs.min().expect("there are tables").1
}

pub fn delete_all(fs: &Fs, txn: &mut Txn<'_>, ino: Ino) {
    let rows = fs.store().range(&key(ino, 0, &[]), &key(ino, 255, &[]));
    for row in rows {
        txn.delete(row.expect("readable").0);
    }
}

/// Removes all below a directory, and the directory.
pub fn remove(fs: &Fs, parent: Ino, name: &[u8]) {
    let ino = fs.lookup(parent, name).expect("there").ino;
    let limit = fs.dir_limit(ino).expect("a directory");
    for entry in fs.read_dir(ino, 0, limit, usize::MAX).expect("listed") {
        let kind = fs.getattr(entry.ino).expect("it is there").kind();
        match kind == libc::S_IFDIR {
            true => remove(fs, ino, &entry.name),
            false => fs.unlink(ino, &entry.name).expect("removed"),
        }
    }
    fs.rmdir(parent, name).expect("empty");
}

#[test]
fn a_directory_of_a_clone_without_its_rows_does_not_name_what_was_removed() {
    for all in [false, true] {
        let pool = Pool::new(64);
        let fs = pool.open();
        cloned(&fs, false);
        let d = at(&fs, "/c/d");
        fs.unlink(d, b"f").expect("removed");
        remove(&fs, d, b"sub");
        file(&fs, d, "made", b"in the clone");
        let rebuilt = lose(&pool, &fs, |txn| match all {
            true => delete_all(&fs, txn, d),
            false => txn.delete(key(d, tag::INODE, &[])),
        });
        let fs = rebuilt.fs;
        if all {
            assert_eq!(names(&fs, "/c/d"), ["kept"]);
            assert_eq!(names(&fs, "/c/lost+found").len(), 1);
        } else {
            assert_eq!(names(&fs, "/c/d"), ["kept", "made"]);
        }
        let d = at(&fs, "/c/d");
        assert_eq!(fs.getxattr(d, b"user.a").expect("kept"), b"of d");
        assert_eq!(fs.getattr(d).expect("there").mode & 0o777, 0o755);
        assert_eq!(names(&fs, "/v/d"), ["f", "kept", "sub"]);
        remove(&fs, at(&fs, "/c"), b"d");
        assert_clean(&fs);
    }
}

#[test]
fn a_directory_of_a_clone_without_its_rows_forms_no_circle() {
    for all in [false, true] {
        let pool = Pool::new(64);
        let fs = pool.open();
        cloned(&fs, false);
        let (root, d) = (at(&fs, "/c"), at(&fs, "/c/d"));
        let plain = RenameFlags::default();
        fs.rename(d, b"sub", root, b"sub", plain).expect("moved");
        let sub = at(&fs, "/c/sub");
        fs.rename(root, b"d", sub, b"d", plain).expect("moved");
        let rebuilt = lose(&pool, &fs, |txn| match all {
            true => delete_all(&fs, txn, d),
            false => txn.delete(key(d, tag::INODE, &[])),
        });
        let fs = rebuilt.fs;
        assert_eq!(names(&fs, "/c"), ["sub"]);
        assert_eq!(names(&fs, "/c/sub"), ["below", "d"]);
        assert_eq!(names(&fs, "/c/sub/d"), ["f", "kept"]);
        remove(&fs, at(&fs, "/c"), b"sub");
        assert_clean(&fs);
    }
}

#[test]
fn a_root_that_a_clone_has_from_its_origin_keeps_its_records() {
    let pool = Pool::new(64);
    let fs = pool.open();
    cloned(&fs, true);
    let d = at(&fs, "/c/d");
    file(&fs, d, "made", b"in the clone");
    let rebuilt = lose(&pool, &fs, |txn| {
        txn.delete(key(d, tag::DIRENT, b"made"));
        for row in fs
            .store()
            .range(&key(d, tag::COOKIE, &[]), &key(d, 255, &[]))
        {
            let (row_key, value) = row.expect("readable");
            if value.ends_with(b"made") {
                txn.delete(row_key);
            }
        }
    });
    let fs = rebuilt.fs;
    assert_eq!(names(&fs, "/c"), ["d", "lost+found"]);
    assert_eq!(names(&fs, "/c/lost+found").len(), 1);
    let root = at(&fs, "/c");
    assert_eq!(fs.getxattr(root, b"user.a").expect("kept"), b"of the root");
    assert!(fs.lock(root).expect("read").is_some());
}

#[test]
fn a_clone_without_its_record_keeps_what_is_its_own() {
    for (is_root_own, beside) in [
        (false, Beside::Nothing),
        (true, Beside::Nothing),
        (false, Beside::Blocks),
        (true, Beside::Blocks),
    ] {
        println!("{is_root_own}, {beside:?}");
        let pool = Pool::new(64);
        let fs = pool.open();
        cloned(&fs, false);
        let (root, d) = (at(&fs, "/c"), at(&fs, "/c/d"));
        fs.unlink(d, b"f").expect("removed");
        file(&fs, d, "made", &[7; 90_000]);
        if is_root_own {
            file(&fs, root, "top", b"in the root");
        }
        fs.snapshot_create(b"/c", b"of the clone").expect("taken");
        let made = at(&fs, "/c/d/made");
        fs.write(made, 0, &[8; 30_000], false).expect("written");
        fs.flush(made).expect("flushed");
        let (clone, _) = root.cloned().expect("a clone");
        let rebuilt = lose_beside(beside, &pool, &fs, |txn| txn.volume_remove(clone));
        assert_eq!(rebuilt.report.lost_chunks, 0);
        let fs = rebuilt.fs;
        assert_clean(&fs);
        let found = names(&fs, "/lost+found");
        assert_eq!(found.len(), 1, "{found:?}");
        let top = format!("/lost+found/{}", found[0]);
        let d = match is_root_own {
            true => {
                assert_eq!(names(&fs, &top), ["d", "top"]);
                format!("{top}/d")
            }
            false => {
                let held = names(&fs, &format!("{top}/lost+found"));
                format!("{top}/lost+found/{}", held[0])
            }
        };
        assert_eq!(names(&fs, &d), ["made"]);
        let mut content = Vec::new();
        let made = at(&fs, &format!("{d}/made"));
        fs.read(made, 0, 90_000, &mut content).expect("readable");
        assert!(content == [vec![8; 30_000], vec![7; 60_000]].concat());
        // What its snapshot shows is there, wherever it is seen.
        let snapshots = fs.snapshots(None).expect("listed");
        let taken = snapshots.iter().find(|it| it.name == b"of the clone");
        let then = made.in_view(taken.expect("kept").view).expect("a number");
        let mut content = Vec::new();
        fs.read(then, 0, 90_000, &mut content).expect("readable");
        assert!(content == [7; 90_000]);
        assert!(!is_there(&fs, "/c/d"));
        assert_eq!(names(&fs, "/v/d"), ["f", "kept", "sub"]);
        assert_ne!(fs.getattr(made).expect("there").volume, VolumeId::ROOT);
        let holder = at(&fs, &d);
        fs.unlink(holder, b"made").expect("removed");
        file(&fs, holder, "new", b"after");
        assert_clean(&fs);
    }
}

/// It was its origin's again, with the parent and the links that it has there, and no record to write others into.
#[test]
fn a_directory_of_a_clone_that_was_moved_and_lost_its_rows_is_where_it_was_moved_to() {
    for (moved, left) in [("d", vec!["f", "kept", "sub"]), ("e", vec![])] {
        let pool = Pool::new(64);
        let fs = pool.open();
        let made = fs.volume_create(b"/v", &VolumeOptions::default(), &Caller::default());
        let root = made.expect("a volume").ino;
        let from = dir(&fs, root, "from");
        dir(&fs, from, "e");
        let d = dir(&fs, from, "d");
        dir(&fs, d, "sub");
        file(&fs, d, "f", b"in d");
        file(&fs, d, "kept", &[5; 70_000]);
        dir(&fs, root, "to");
        let taken = fs.snapshot_create(b"/v", b"s").expect("taken");
        fs.clone_create(&taken, b"/c", Quota::default(), &Caller::default())
            .expect("a clone");
        let (from, to) = (at(&fs, "/c/from"), at(&fs, "/c/to"));
        let plain = RenameFlags::default();
        fs.rename(from, moved.as_bytes(), to, moved.as_bytes(), plain)
            .expect("moved");
        let path = format!("/c/to/{moved}");
        let ino = at(&fs, &path);
        let rebuilt = lose(&pool, &fs, |txn| delete_all(&fs, txn, ino));
        let fs = rebuilt.fs;
        assert_eq!(names(&fs, &path), left);
        assert_eq!(fs.parent(ino).expect("it has one"), to);
        let known = fs.path_of(ino).expect("read");
        assert_eq!(known.as_deref(), Some(path.as_bytes()));
        remove(&fs, at(&fs, "/c"), b"from");
        file(&fs, ino, "new", b"after");
        remove(&fs, at(&fs, "/c"), b"to");
        assert_clean(&fs);
    }
}

/// Its record was the origin's again, with fewer links than it has names or with more.
#[test]
fn a_file_of_a_clone_that_lost_its_rows_has_as_many_links_as_names() {
    let pool = Pool::new(64);
    let fs = pool.open();
    let options = VolumeOptions {
        domain: VolumeDomain::New,
        ..VolumeOptions::default()
    };
    let made = fs.volume_create(b"/v", &options, &Caller::default());
    let root = made.expect("a volume").ino;
    let d = dir(&fs, root, "d");
    file(&fs, d, "small", b"inline");
    file(&fs, d, "large", &[5; 70_000]);
    fs.setxattr(
        at(&fs, "/v/d/large"),
        b"user.a",
        b"kept",
        XattrFlags::default(),
    )
    .expect("set");
    file(&fs, d, "twice", &[6; 60_000]);
    fs.link(at(&fs, "/v/d/twice"), root, b"other")
        .expect("linked");
    let taken = fs.snapshot_create(b"/v", b"s").expect("taken");
    fs.clone_create(&taken, b"/c", Quota::default(), &Caller::default())
        .expect("a clone");
    let d = at(&fs, "/c/d");
    let files = ["small", "large", "twice"].map(|name| at(&fs, &format!("/c/d/{name}")));
    fs.link(files[0], d, b"small too").expect("linked");
    fs.link(files[1], at(&fs, "/c"), b"large too")
        .expect("linked");
    fs.unlink(d, b"twice").expect("removed");
    let rebuilt = lose(&pool, &fs, |txn| {
        files.iter().for_each(|ino| delete_all(&fs, txn, *ino));
    });
    assert_eq!(rebuilt.report.lost_chunks, 0);
    let fs = rebuilt.fs;
    let links = files.map(|ino| fs.getattr(ino).expect("there").nlink);
    assert_eq!(links, [2, 2, 1]);
    assert_eq!(fs.getxattr(files[1], b"user.a").expect("kept"), b"kept");
    let d = at(&fs, "/c/d");
    fs.unlink(d, b"small").expect("removed");
    fs.unlink(d, b"large").expect("removed");
    for (path, expected) in [
        ("/c/d/small too", b"inline".to_vec()),
        ("/c/large too", vec![5; 70_000]),
        ("/c/other", vec![6; 60_000]),
        ("/v/other", vec![6; 60_000]),
    ] {
        let mut content = Vec::new();
        fs.read(at(&fs, path), 0, 70_000, &mut content)
            .expect("readable");
        assert!(content == expected, "{path}");
    }
    fs.unlink(d, b"small too").expect("removed");
    fs.unlink(at(&fs, "/c"), b"large too").expect("removed");
    fs.unlink(at(&fs, "/c"), b"other").expect("removed");
    assert_clean(&fs);
}

/// What nobody had seen any more was told as lost.
#[test]
fn what_is_left_of_a_removed_clone_is_not_told_as_lost() {
    let pool = Pool::new(64);
    let fs = pool.open();
    cloned(&fs, false);
    file(&fs, at(&fs, "/c/d"), "made", b"in the clone");
    fs.clone_delete(b"/c").expect("removed");
    let lost = at(&fs, "/v/d/f");
    let rebuilt = lose(&pool, &fs, |txn| delete_all(&fs, txn, lost));
    let told: Vec<_> = rebuilt
        .findings
        .iter()
        .filter(|it| it.id == "lost")
        .collect();
    assert_eq!(told.len(), 1, "{:?}", rebuilt.findings);
    for _ in 0..4 {
        rebuilt.fs.tick().expect("no trouble");
    }
    assert_eq!(rebuilt.fs.store().volumes().len(), 2);
    assert_clean(&rebuilt.fs);
}

/// As [`assert_clean`], where chunks are known to be lost.
fn assert_clean_but_for_lost(fs: &Fs) {
    let report = fs.check(|_| true).expect("readable").expect("not ended");
    let others = report.findings.iter().filter(|it| it.id != "chunk-lost");
    assert_eq!(others.count(), 0, "{:?}", report.findings);
}

/// It was taken for a directory, and had no content.
#[test]
fn a_file_of_a_clone_that_lost_its_name_keeps_its_content() {
    let pool = Pool::new(64);
    let fs = pool.open();
    cloned(&fs, false);
    let d = at(&fs, "/c/d");
    file(&fs, d, "made", b"in the clone");
    let rebuilt = lose(&pool, &fs, |txn| {
        let rows = fs
            .store()
            .range(&key(d, tag::DIRENT, &[]), &key(d, 255, &[]));
        for row in rows {
            let (row_key, value) = row.expect("readable");
            let is_of = |name: &[u8]| row_key.ends_with(name) || value.ends_with(name);
            if is_of(b"kept") || is_of(b"f") {
                txn.delete(row_key);
            }
        }
    });
    let fs = rebuilt.fs;
    assert_eq!(names(&fs, "/c/d"), ["made", "sub"]);
    let mut contents: Vec<Vec<u8>> = names(&fs, "/c/lost+found")
        .iter()
        .map(|name| {
            let mut content = Vec::new();
            let ino = at(&fs, &format!("/c/lost+found/{name}"));
            fs.read(ino, 0, 100_000, &mut content).expect("readable");
            content
        })
        .collect();
    contents.sort();
    assert!(contents == [vec![5; 70_000], b"removed later".to_vec()]);
    remove(&fs, at(&fs, "/c"), b"lost+found");
    assert_clean(&fs);
}

/// The record said that there was content beside it, and the copy that the clone made said so too.
#[test]
fn content_that_only_a_snapshot_had_and_that_is_lost_is_none_in_its_clones() {
    let pool = Pool::new(64);
    let fs = pool.open();
    cloned(&fs, false);
    let (f, kept) = (at(&fs, "/v/d/f"), at(&fs, "/v/d/kept"));
    for ino in [f, kept] {
        fs.write(ino, 0, &[9; 90_000], false).expect("written");
        fs.flush(ino).expect("flushed");
    }
    let rebuilt = lose_beside(Beside::Blocks, &pool, &fs, |txn| {
        for (ino, row_tag) in [(f, tag::INLINE), (kept, tag::EXTENT)] {
            let lo = history_prefix(ino, row_tag, &[]);
            let hi = history_prefix(ino, row_tag + 1, &[]);
            let states: Vec<_> = fs.store().range(&lo, &hi).collect();
            assert!(!states.is_empty());
            for state in states {
                txn.delete(state.expect("readable").0);
            }
        }
    });
    let told = |path: &str| rebuilt.findings.iter().any(|it| it.object.contains(path));
    assert!(
        told("/v/d/f") && told("/v/d/kept"),
        "{:?}",
        rebuilt.findings
    );
    let fs = rebuilt.fs;
    assert_clean_but_for_lost(&fs);
    let d = at(&fs, "/c/d");
    for name in ["f", "kept"] {
        let ino = at(&fs, &format!("/c/d/{name}"));
        let read = fs.read(ino, 0, 100, &mut Vec::new());
        assert_eq!(read.expect_err("lost").errno(), libc::EIO, "{name}");
        fs.link(ino, d, format!("{name} too").as_bytes())
            .expect("linked");
        let mut content = Vec::new();
        let ino = at(&fs, &format!("/v/d/{name}"));
        fs.read(ino, 0, 100_000, &mut content).expect("readable");
        assert!(content == [9; 90_000]);
    }
    assert_clean_but_for_lost(&fs);
}

/// The newer row was in a lost block, and the older one was seen beside the states that had followed it.
#[test]
fn a_row_that_had_been_replaced_is_no_older_than_what_had_replaced_it() {
    let pool = Pool::new(64);
    let fs = pool.open();
    cloned(&fs, false);
    let f = at(&fs, "/v/d/f");
    let row_key = key(f, tag::INODE, &[]);
    let older = fs.store().get(&row_key).expect("read").expect("there");
    let set = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    fs.setattr(f, &set).expect("changed");
    let rebuilt = lose_beside(Beside::Blocks, &pool, &fs, |txn| txn.put(row_key, older));
    assert_clean(&rebuilt.fs);
}
