//! Edge cases of names and attributes, one rule each, and the tables checked after each.

use std::sync::Arc;

use crate::pool::{Pool, assert_clean};
use cfs_format::Ino;
use cfs_fs::{
    Attr, Caller, FIRST_COOKIE, Fs, FsError, RenameFlags, SetAttr, SetTime, Time, XattrFlags,
};

const ROOT: Ino = Ino::ROOT;
const USER: Caller = Caller {
    uid: 1000,
    gid: 100,
    pid: 1,
    umask: 0o022,
};
const MOVE: RenameFlags = RenameFlags {
    no_replace: false,
    exchange: false,
};
const EXCHANGE: RenameFlags = RenameFlags {
    no_replace: false,
    exchange: true,
};

/// Runs `test` on an empty file system, checks the tables, and checks them again after a crash and after a clean
/// restart.
fn check(test: impl FnOnce(&Pool, &Arc<Fs>)) {
    let pool = Pool::new(64);
    let fs = pool.open();
    test(&pool, &fs);
    assert_clean(&fs);
    fs.store().sync().expect("sync");
    let after_crash = pool.power_cut(1).open();
    after_crash.tick().expect("tick");
    assert_clean(&after_crash);
    fs.close().expect("close");
    assert_clean(&pool.open());
}

#[track_caller]
fn assert_errno<T: std::fmt::Debug>(result: Result<T, FsError>, errno: i32) {
    match result {
        Ok(value) => panic!("errno {errno} expected, got {value:?}"),
        Err(error) => assert_eq!(error.errno(), errno, "{error}"),
    }
}

fn file(fs: &Fs, parent: Ino, name: &str) -> Attr {
    fs.create(parent, name.as_bytes(), 0o644, &USER)
        .expect("create")
}

fn dir(fs: &Fs, parent: Ino, name: &str) -> Attr {
    fs.mkdir(parent, name.as_bytes(), 0o755, &USER)
        .expect("mkdir")
}

fn nlink(fs: &Fs, ino: Ino) -> u32 {
    fs.getattr(ino).expect("getattr").nlink
}

fn names(fs: &Fs, ino: Ino) -> Vec<String> {
    let limit = fs.dir_limit(ino).expect("limit");
    let entries = fs.read_dir(ino, 0, limit, usize::MAX).expect("read_dir");
    entries
        .into_iter()
        .map(|entry| String::from_utf8(entry.name).expect("utf-8"))
        .collect()
}

#[test]
fn names_are_bounded_and_unique() {
    check(|_, fs| {
        let longest = [b'x'; 255];
        fs.create(ROOT, &longest, 0o644, &USER).expect("255 bytes");
        assert_errno(
            fs.create(ROOT, &[b'x'; 256], 0o644, &USER),
            libc::ENAMETOOLONG,
        );
        assert_errno(fs.lookup(ROOT, &[b'x'; 256]), libc::ENAMETOOLONG);
        assert_errno(fs.create(ROOT, &longest, 0o644, &USER), libc::EEXIST);
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
            assert_errno(fs.create(ROOT, bad, 0o644, &USER), libc::EINVAL);
        }
        let plain = file(fs, ROOT, "plain");
        assert_errno(fs.create(plain.ino, b"below", 0o644, &USER), libc::ENOTDIR);
        assert_errno(fs.lookup(plain.ino, b"below"), libc::ENOTDIR);
        assert_errno(fs.lookup(ROOT, b"absent"), libc::ENOENT);
        fs.symlink(ROOT, b"long", &[b't'; 4095], &USER)
            .expect("4095 bytes");
        assert_errno(
            fs.symlink(ROOT, b"longer", &[b't'; 4096], &USER),
            libc::ENAMETOOLONG,
        );
        let link = fs.lookup(ROOT, b"long").expect("lookup");
        assert_eq!(fs.readlink(link.ino).expect("readlink"), [b't'; 4095]);
        assert_eq!((link.size, link.mode), (4095, libc::S_IFLNK | 0o777));
    });
}

#[test]
fn links_count_names_and_subdirectories() {
    check(|_, fs| {
        let a = dir(fs, ROOT, "a");
        assert_eq!((nlink(fs, ROOT), a.nlink), (3, 2));
        let f = file(fs, a.ino, "f");
        assert_eq!(nlink(fs, a.ino), 2);
        let linked = fs.link(f.ino, ROOT, b"g").expect("link");
        assert_eq!(linked.nlink, 2);
        assert!(linked.ctime > f.ctime && linked.mtime == f.mtime);
        assert_errno(fs.link(a.ino, ROOT, b"h"), libc::EPERM);
        assert_errno(fs.link(f.ino, ROOT, b"g"), libc::EEXIST);
        fs.unlink(a.ino, b"f").expect("unlink");
        assert_eq!(nlink(fs, f.ino), 1);
        assert_errno(fs.unlink(ROOT, b"a"), libc::EISDIR);
        assert_errno(fs.rmdir(ROOT, b"g"), libc::ENOTDIR);
        file(fs, a.ino, "f");
        assert_errno(fs.rmdir(ROOT, b"a"), libc::ENOTEMPTY);
        fs.unlink(a.ino, b"f").expect("unlink");
        fs.rmdir(ROOT, b"a").expect("rmdir");
        assert_eq!(nlink(fs, ROOT), 2);
        fs.unlink(ROOT, b"g").expect("unlink");
        assert_errno(fs.getattr(f.ino), libc::ENOENT);
    });
}

#[test]
fn renames_keep_parents_and_counts() {
    check(|_, fs| {
        let (a, b) = (dir(fs, ROOT, "a"), dir(fs, ROOT, "b"));
        let sub = dir(fs, a.ino, "sub");
        let below = dir(fs, sub.ino, "below");
        assert_errno(fs.rename(ROOT, b"a", below.ino, b"x", MOVE), libc::EINVAL);
        assert_errno(fs.rename(ROOT, b"a", a.ino, b"x", MOVE), libc::EINVAL);
        assert_errno(
            fs.rename(ROOT, b"a", below.ino, b"x", EXCHANGE),
            libc::EINVAL,
        );
        assert_errno(fs.rename(a.ino, b"sub", ROOT, b"a", EXCHANGE), libc::EINVAL);
        assert_errno(fs.rename(a.ino, b"sub", ROOT, b"a", MOVE), libc::ENOTEMPTY);
        fs.rename(a.ino, b"sub", b.ino, b"sub2", MOVE)
            .expect("move");
        assert_eq!((nlink(fs, a.ino), nlink(fs, b.ino)), (2, 3));
        assert_eq!(fs.parent(sub.ino).expect("parent"), b.ino);

        let f = file(fs, ROOT, "f");
        assert_errno(fs.rename(ROOT, b"f", ROOT, b"a", MOVE), libc::EISDIR);
        assert_errno(fs.rename(ROOT, b"a", ROOT, b"f", MOVE), libc::ENOTDIR);
        assert_errno(fs.rename(ROOT, b"none", ROOT, b"f", MOVE), libc::ENOENT);
        assert_errno(fs.rename(ROOT, b"f", ROOT, b"none", EXCHANGE), libc::ENOENT);
        let no_replace = RenameFlags {
            no_replace: true,
            exchange: false,
        };
        assert_errno(fs.rename(ROOT, b"f", ROOT, b"a", no_replace), libc::EEXIST);
        fs.link(f.ino, ROOT, b"g").expect("link");
        fs.rename(ROOT, b"f", ROOT, b"g", MOVE)
            .expect("two names of one inode");
        assert_eq!(nlink(fs, f.ino), 2);

        fs.rename(ROOT, b"f", b.ino, b"sub2", EXCHANGE)
            .expect("exchange");
        assert_eq!((nlink(fs, ROOT), nlink(fs, b.ino)), (5, 2));
        assert_eq!(fs.parent(sub.ino).expect("parent"), ROOT);
        assert_eq!(fs.lookup(b.ino, b"sub2").expect("lookup").ino, f.ino);
        let empty = dir(fs, ROOT, "empty");
        fs.rename(ROOT, b"a", ROOT, b"empty", MOVE)
            .expect("over an empty directory");
        assert_errno(fs.getattr(empty.ino), libc::ENOENT);
        assert_eq!(fs.lookup(ROOT, b"empty").expect("lookup").ino, a.ino);
    });
}

#[test]
fn listings_hold_through_changes() {
    check(|_, fs| {
        let a = dir(fs, ROOT, "a").ino;
        for index in 0..20 {
            file(fs, a, &format!("f{index:02}"));
        }
        let limit = fs.open_dir(a).expect("open_dir");
        let first = fs.read_dir(a, 0, limit, 5).expect("read_dir");
        assert_eq!(first[0].cookie, FIRST_COOKIE);
        assert!(
            first
                .iter()
                .map(|entry| &entry.name[..])
                .eq([b"f00", b"f01", b"f02", b"f03", b"f04"])
        );
        for entry in &first {
            fs.unlink(a, &entry.name).expect("unlink");
        }
        file(fs, a, "late");
        fs.unlink(a, b"f10").expect("unlink");
        file(fs, a, "f10");
        fs.rename(a, b"f11", a, b"f12", MOVE).expect("rename");
        let mut cookie = first[4].cookie;
        let mut rest = Vec::new();
        loop {
            let entries = fs.read_dir(a, cookie, limit, 3).expect("read_dir");
            let Some(last) = entries.last() else { break };
            cookie = last.cookie;
            rest.extend(
                entries
                    .into_iter()
                    .map(|entry| String::from_utf8(entry.name).expect("utf-8")),
            );
        }
        let expected: Vec<_> = (5..20)
            .filter(|index| ![10, 11].contains(index))
            .map(|index| format!("f{index:02}"))
            .collect();
        assert_eq!(rest, expected);
        fs.release(a).expect("release");
        assert_eq!(names(fs, a).len(), 15);
    });
}

#[test]
fn times_and_modes_follow_the_rules() {
    check(|_, fs| {
        let before = fs.getattr(ROOT).expect("getattr");
        let d = fs.mkdir(ROOT, b"d", 0o777, &USER).expect("mkdir");
        assert_eq!(d.mode, libc::S_IFDIR | 0o755);
        let after = fs.getattr(ROOT).expect("getattr");
        assert!(after.mtime > before.mtime && after.ctime == after.mtime);
        assert_eq!(after.atime, before.atime);

        let old = Time {
            seconds: -5,
            nanos: 999_999_999,
        };
        let set = SetAttr {
            mtime: Some(SetTime::At(old)),
            atime: Some(SetTime::Now),
            ..SetAttr::default()
        };
        let attr = fs.setattr(d.ino, &set).expect("setattr");
        assert_eq!(attr.mtime, old);
        assert!(attr.ctime > d.ctime && attr.atime == attr.ctime);
        let bad = SetTime::At(Time {
            seconds: 0,
            nanos: 1_000_000_000,
        });
        let set = SetAttr {
            mtime: Some(bad),
            ..SetAttr::default()
        };
        assert_errno(fs.setattr(d.ino, &set), libc::EINVAL);

        let mode = |mode| SetAttr {
            mode: Some(mode),
            ..SetAttr::default()
        };
        fs.setattr(d.ino, &mode(0o2775)).expect("chmod");
        let chown = SetAttr {
            gid: Some(7),
            ..SetAttr::default()
        };
        assert_eq!(
            fs.setattr(d.ino, &chown).expect("chown").mode & 0o7777,
            0o2775
        );
        let sub = fs.mkdir(d.ino, b"sub", 0o700, &USER).expect("mkdir");
        assert_eq!((sub.gid, sub.mode & 0o7777), (7, 0o2700));
        let f = fs.create(d.ino, b"f", 0o666, &USER).expect("create");
        assert_eq!((f.uid, f.gid, f.mode & 0o7777), (1000, 7, 0o644));
        fs.setattr(f.ino, &mode(0o6755)).expect("chmod");
        assert_eq!(
            fs.setattr(f.ino, &chown).expect("chown").mode & 0o7777,
            0o755
        );
        fs.setattr(f.ino, &mode(0o6644)).expect("chmod");
        assert_eq!(
            fs.setattr(f.ino, &chown).expect("chown").mode & 0o7777,
            0o2644
        );

        let node = fs
            .mknod(d.ino, b"n", libc::S_IFBLK | 0o660, 0x0801, &USER)
            .expect("mknod");
        assert_eq!((node.rdev, node.mode), (0x0801, libc::S_IFBLK | 0o640));
        assert_errno(
            fs.mknod(d.ino, b"x", libc::S_IFDIR | 0o660, 0, &USER),
            libc::EINVAL,
        );
        let size = SetAttr {
            size: Some(1),
            ..SetAttr::default()
        };
        assert_errno(fs.setattr(d.ino, &size), libc::EISDIR);
        assert_errno(fs.setattr(node.ino, &size), libc::EINVAL);
    });
}

#[test]
fn reading_moves_atime_once_and_it_survives() {
    check(|pool, fs| {
        let link = fs.symlink(ROOT, b"l", b"t", &USER).expect("symlink");
        pool.sleep_ms(10);
        fs.readlink(link.ino).expect("readlink");
        let read = fs.getattr(link.ino).expect("getattr");
        assert!(read.atime > link.atime && read.ctime == link.ctime);
        pool.sleep_ms(10);
        fs.readlink(link.ino).expect("readlink");
        assert_eq!(fs.getattr(link.ino).expect("getattr").atime, read.atime);
        pool.sleep_ms(25 * 3600 * 1000);
        fs.readlink(link.ino).expect("readlink");
        let next_day = fs.getattr(link.ino).expect("getattr").atime;
        assert!(next_day > read.atime);
        pool.sleep_ms(60_000);
        fs.tick().expect("tick");
        fs.store().sync().expect("sync");
        let restarted = pool.power_cut(3).open();
        assert_eq!(
            restarted.getattr(link.ino).expect("getattr").atime,
            next_day
        );
    });
}

#[test]
fn open_inodes_outlive_their_names() {
    check(|pool, fs| {
        let f = file(fs, ROOT, "f");
        let d = dir(fs, ROOT, "d");
        fs.open(f.ino).expect("open");
        fs.open(f.ino).expect("open");
        fs.open(d.ino).expect("open");
        fs.unlink(ROOT, b"f").expect("unlink");
        fs.rmdir(ROOT, b"d").expect("rmdir");
        assert_eq!((nlink(fs, f.ino), nlink(fs, d.ino)), (0, 0));
        assert_errno(fs.create(d.ino, b"x", 0o644, &USER), libc::ENOENT);
        assert_clean(fs);
        fs.store().sync().expect("sync");
        let after_crash = pool.power_cut(2).open();
        assert_errno(after_crash.open(f.ino), libc::ENOENT);
        after_crash.tick().expect("tick");
        assert_errno(after_crash.getattr(f.ino), libc::ENOENT);

        fs.release(f.ino).expect("release");
        fs.tick().expect("tick");
        assert_eq!(nlink(fs, f.ino), 0);
        fs.release(f.ino).expect("release");
        fs.release(d.ino).expect("release");
        fs.tick().expect("tick");
        assert_errno(fs.getattr(f.ino), libc::ENOENT);
        assert_errno(fs.getattr(d.ino), libc::ENOENT);

        let unnamed = fs.tmpfile_and_hold(ROOT, 0o600, &USER).expect("tmpfile");
        assert_eq!(unnamed.nlink, 0);
        assert_eq!(fs.link(unnamed.ino, ROOT, b"named").expect("link").nlink, 1);
        fs.release(unnamed.ino).expect("release");
        fs.end_hold(unnamed.ino).expect("end of the hold");
        let lost = fs.tmpfile_and_hold(ROOT, 0o600, &USER).expect("tmpfile");
        fs.release(lost.ino).expect("release");
        assert_eq!(nlink(fs, lost.ino), 0);
        fs.end_hold(lost.ino).expect("end of the hold");
        assert_errno(fs.link(lost.ino, ROOT, b"late"), libc::ENOENT);
        fs.tick().expect("tick");
        assert_errno(fs.getattr(lost.ino), libc::ENOENT);
        assert_eq!(names(fs, ROOT), ["named"]);
    });
}

#[test]
fn attributes_have_bounds_and_flags() {
    check(|_, fs| {
        let f = file(fs, ROOT, "f").ino;
        let set = |name: &[u8], value: &[u8]| fs.setxattr(f, name, value, XattrFlags::default());
        assert_errno(fs.getxattr(f, b"user.a"), libc::ENODATA);
        assert_errno(fs.removexattr(f, b"user.a"), libc::ENODATA);
        set(b"user.b", b"").expect("an empty value");
        set(b"user.a", &[1; 65536]).expect("64 KiB");
        assert_errno(set(b"user.a", &[1; 65537]), libc::E2BIG);
        assert_errno(set(&[b'n'; 256], b"1"), libc::ERANGE);
        let create = XattrFlags {
            create: true,
            ..XattrFlags::default()
        };
        let replace = XattrFlags {
            replace: true,
            ..XattrFlags::default()
        };
        assert_errno(fs.setxattr(f, b"user.a", b"1", create), libc::EEXIST);
        assert_errno(fs.setxattr(f, b"user.c", b"1", replace), libc::ENODATA);
        fs.setxattr(f, b"user.a", b"2", replace).expect("replace");
        assert_eq!(fs.getxattr(f, b"user.a").expect("get"), b"2");
        assert_eq!(fs.listxattr(f).expect("list"), [b"user.a", b"user.b"]);
        fs.removexattr(f, b"user.b").expect("remove");
        assert_eq!(fs.listxattr(f).expect("list"), [b"user.a"]);
        let mut count = 0;
        let full = loop {
            let name = format!("user.{count:0>250}");
            match set(name.as_bytes(), b"1") {
                Ok(()) => count += 1,
                Err(error) => break error,
            }
        };
        assert_eq!((full.errno(), count), (libc::ENOSPC, 255));
        fs.unlink(ROOT, b"f").expect("unlink");
    });
}

/// An ACL in the kernel's bytes: (tag, permissions, id).
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&perm.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

#[test]
fn acls_and_modes_stay_in_step() {
    const ACCESS: &[u8] = b"system.posix_acl_access";
    const DEFAULT: &[u8] = b"system.posix_acl_default";
    const NONE: u32 = u32::MAX;
    check(|_, fs| {
        let plain = XattrFlags::default();
        let d = dir(fs, ROOT, "d").ino;
        let f = file(fs, ROOT, "f").ino;
        let mode = |ino| fs.getattr(ino).expect("getattr").mode & 0o7777;
        let full = [
            (1, 7, NONE),
            (2, 6, 5),
            (4, 5, NONE),
            (16, 7, NONE),
            (32, 4, NONE),
        ];
        assert_errno(fs.setxattr(f, DEFAULT, &acl(&full), plain), libc::EACCES);
        assert_errno(
            fs.setxattr(f, ACCESS, &acl(&full[1..]), plain),
            libc::EINVAL,
        );
        fs.setxattr(f, ACCESS, &acl(&full), plain).expect("set");
        assert_eq!(mode(f), 0o774);
        let chmod = SetAttr {
            mode: Some(0o2750),
            ..SetAttr::default()
        };
        fs.setattr(f, &chmod).expect("chmod");
        let expected = [
            (1, 7, NONE),
            (2, 6, 5),
            (4, 5, NONE),
            (16, 5, NONE),
            (32, 0, NONE),
        ];
        assert_eq!(fs.getxattr(f, ACCESS).expect("get"), acl(&expected));
        let kill = XattrFlags {
            kill_sgid: true,
            ..plain
        };
        let minimal = acl(&[(1, 6, NONE), (4, 4, NONE), (32, 0, NONE)]);
        fs.setxattr(f, ACCESS, &minimal, kill).expect("set");
        assert_eq!(mode(f), 0o640);
        assert_errno(fs.getxattr(f, ACCESS), libc::ENODATA);
        fs.removexattr(f, ACCESS).expect("removing none");

        fs.setxattr(d, DEFAULT, &acl(&full), plain).expect("set");
        assert_eq!(mode(d), 0o755);
        let made = fs.create(d, b"made", 0o666, &USER).expect("create");
        assert_eq!(made.mode & 0o7777, 0o664);
        let inherited = [
            (1, 6, NONE),
            (2, 6, 5),
            (4, 5, NONE),
            (16, 6, NONE),
            (32, 4, NONE),
        ];
        assert_eq!(fs.getxattr(made.ino, ACCESS).expect("get"), acl(&inherited));
        let sub = fs.mkdir(d, b"sub", 0o777, &USER).expect("mkdir");
        assert_eq!(sub.mode & 0o7777, 0o774);
        assert_eq!(fs.getxattr(sub.ino, DEFAULT).expect("get"), acl(&full));
        let link = fs.symlink(d, b"link", b"t", &USER).expect("symlink");
        assert_eq!(fs.listxattr(link.ino).expect("list").len(), 0);
        fs.setxattr(d, DEFAULT, &acl(&[]), plain)
            .expect("remove by an empty one");
        let bare = fs.create(d, b"bare", 0o666, &USER).expect("create");
        assert_eq!(bare.mode & 0o7777, 0o644);
    });
}

#[test]
fn paths_resolve_without_following_links() {
    check(|_, fs| {
        let a = dir(fs, ROOT, "a").ino;
        let f = file(fs, a, "f").ino;
        let l = fs.symlink(ROOT, b"l", b"a", &USER).expect("symlink").ino;
        assert_eq!(fs.resolve(b"/a/f").expect("resolve").ino, f);
        assert_eq!(fs.resolve(b"//a/../a/./f/").expect("resolve").ino, f);
        assert_eq!(fs.resolve(b"/").expect("resolve").ino, ROOT);
        assert_eq!(fs.resolve(b"/l").expect("resolve").ino, l);
        assert_errno(fs.resolve(b"/l/f"), libc::ELOOP);
        assert_errno(fs.resolve(b"/a/none"), libc::ENOENT);
        assert_errno(fs.resolve(b"/a/f/x"), libc::ENOTDIR);
        let statfs = fs.statfs();
        assert_eq!((statfs.inodes, statfs.name_bytes_max), (4, 255));
        assert!(statfs.blocks_free > 0 && statfs.blocks_free <= statfs.blocks);
    });
}

#[test]
fn what_is_held_lives_until_the_hold_ends() {
    check(|_, fs| {
        let gone = |ino: Ino| matches!(fs.getattr(ino), Err(FsError::NotFound));
        let a = file(fs, ROOT, "a").ino;
        fs.link(a, ROOT, b"a2").expect("link");
        assert_eq!(fs.unlink_and_hold(ROOT, b"a").expect("unlink"), None);
        assert_eq!(fs.unlink_and_hold(ROOT, b"a2").expect("unlink"), Some(a));
        assert_eq!(nlink(fs, a), 0);
        fs.open(a).expect("as if it were open");
        fs.end_hold(a).expect("end the hold");
        assert!(!gone(a), "it is open");
        fs.release(a).expect("release");
        assert!(gone(a));

        let d = dir(fs, ROOT, "d").ino;
        file(fs, d, "in it");
        assert_errno(fs.rmdir_and_hold(ROOT, b"d"), libc::ENOTEMPTY);
        fs.unlink(d, b"in it").expect("unlink");
        assert_eq!(fs.rmdir_and_hold(ROOT, b"d").expect("rmdir"), Some(d));
        assert_errno(fs.create(d, b"new", 0o644, &USER), libc::ENOENT);
        fs.end_hold(d).expect("end the hold");
        assert!(gone(d));

        let (from, to) = (file(fs, ROOT, "from").ino, file(fs, ROOT, "to").ino);
        let held = fs.rename_and_hold(ROOT, b"from", ROOT, b"to", MOVE);
        assert_eq!(held.expect("rename"), Some(to));
        assert!(!gone(to) && !gone(from));
        fs.end_hold(to).expect("end the hold");
        assert!(gone(to));
        // This one is held when the power goes.
        assert_eq!(fs.unlink_and_hold(ROOT, b"to").expect("unlink"), Some(from));
    });
}

#[test]
fn a_whiteout_takes_the_place_of_what_was_moved() {
    check(|_, fs| {
        let a = file(fs, ROOT, "a").ino;
        let d = dir(fs, ROOT, "d").ino;
        let moved = |from: (Ino, &[u8]), to: (Ino, &[u8]), flags| {
            fs.rename_leaving_whiteout(from, to, flags, &USER)
        };
        assert_errno(moved((ROOT, b"a"), (ROOT, b"d"), EXCHANGE), libc::EINVAL);
        assert_eq!(moved((ROOT, b"a"), (d, b"a"), MOVE).expect("rename"), None);
        let whiteout = fs.lookup(ROOT, b"a").expect("a whiteout");
        assert_eq!((whiteout.mode, whiteout.rdev), (libc::S_IFCHR, 0));
        assert_eq!((whiteout.uid, whiteout.gid), (USER.uid, USER.gid));
        assert_eq!(fs.lookup(d, b"a").expect("moved").ino, a);
        moved((ROOT, b"d"), (ROOT, b"e"), MOVE).expect("a directory");
        assert_eq!(
            fs.lookup(ROOT, b"d").expect("a whiteout").kind(),
            libc::S_IFCHR
        );
        let replaced = moved((d, b"a"), (ROOT, b"a"), MOVE).expect("rename");
        assert_eq!(replaced, Some(whiteout.ino));
        fs.end_hold(whiteout.ino).expect("end the hold");
    });
}
