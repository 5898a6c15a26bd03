//! What a rebuild leaves of clones of which rows are lost.

use cfs_format::table::{key, tag};
use cfs_format::{Ino, VolumeId};
use cfs_fs::{Caller, Fs, Quota, Rebuilt, RenameFlags, VolumeOptions, XattrFlags};
use cfs_store::{StoreOptions, Txn};

use crate::pool::{Pool, assert_clean};
use crate::rebuild::rebuild;

fn at(fs: &Fs, path: &str) -> Ino {
    fs.resolve(path.as_bytes()).expect(path).ino
}

fn is_there(fs: &Fs, path: &str) -> bool {
    fs.resolve(path.as_bytes()).is_ok()
}

fn dir(fs: &Fs, parent: Ino, name: &str) -> Ino {
    let made = fs.mkdir(parent, name.as_bytes(), 0o755, &Caller::default());
    made.expect("a directory").ino
}

fn file(fs: &Fs, parent: Ino, name: &str, content: &[u8]) {
    let made = fs.create(parent, name.as_bytes(), 0o644, &Caller::default());
    let ino = made.expect("a file").ino;
    fs.write(ino, 0, content, false).expect("written");
    fs.flush(ino).expect("flushed");
}

fn names(fs: &Fs, path: &str) -> Vec<String> {
    let ino = at(fs, path);
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
fn cloned(fs: &Fs, has_locks: bool) {
    let options = VolumeOptions {
        own_domain: true,
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

/// Takes rows away and rebuilds.
fn lose(pool: &Pool, fs: &Fs, rows: impl FnOnce(&mut Txn<'_>)) -> Rebuilt {
    assert_clean(fs);
    fs.syncfs().expect("syncfs");
    let mut txn = fs.store().begin();
    rows(&mut txn);
    txn.commit(&[]).expect("commit");
    fs.store().checkpoint().expect("checkpoint");
    let superblock = fs.store().superblock_copy();
    let rebuilt = rebuild(pool, &superblock, &[], StoreOptions::default());
    assert!(!rebuilt.findings.is_empty(), "nothing was told");
    assert_clean(&rebuilt.fs);
    rebuilt
}

fn delete_all(fs: &Fs, txn: &mut Txn<'_>, ino: Ino) {
    let rows = fs.store().range(&key(ino, 0, &[]), &key(ino, 255, &[]));
    for row in rows {
        txn.delete(row.expect("readable").0);
    }
}

/// Removes all below a directory, and the directory.
fn remove(fs: &Fs, parent: Ino, name: &[u8]) {
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
    for is_root_own in [false, true] {
        let pool = Pool::new(64);
        let fs = pool.open();
        cloned(&fs, false);
        let (root, d) = (at(&fs, "/c"), at(&fs, "/c/d"));
        fs.unlink(d, b"f").expect("removed");
        file(&fs, d, "made", &[7; 90_000]);
        if is_root_own {
            file(&fs, root, "top", b"in the root");
        }
        let (clone, _) = root.cloned().expect("a clone");
        let rebuilt = lose(&pool, &fs, |txn| txn.volume_remove(clone));
        let fs = rebuilt.fs;
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
