//! System calls whose way through the kernel is a special one.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, CWD, Dir, FallocateFlags, RenameFlags, SeekFrom, Timespec, Timestamps, XattrFlags,
    copy_file_range, fallocate, getxattr, getxattr_query, listxattr, removexattr, renameat_with,
    seek, setxattr, utimensat,
};
use rustix::io::Errno;

use crate::support::{Rng, mount};

#[test]
fn an_open_file_outlives_its_name() {
    let Some(test) = mount() else { return };
    let path = test.path("file");
    let mut file = File::create_new(&path).expect("create");
    file.write_all(b"before").expect("write");
    fs::remove_file(&path).expect("unlink");
    file.write_all(b" after").expect("write without a name");
    assert_eq!(file.metadata().expect("fstat").nlink(), 0);
    let mut content = String::new();
    file.rewind().expect("rewind");
    file.read_to_string(&mut content)
        .expect("read without a name");
    assert_eq!(content, "before after");

    fs::write(test.path("source"), "new").expect("write");
    fs::write(&path, "old").expect("write");
    let replaced = File::open(&path).expect("open");
    fs::rename(test.path("source"), &path).expect("rename over an open file");
    let mut content = String::new();
    (&replaced)
        .read_to_string(&mut content)
        .expect("read what was replaced");
    assert_eq!(
        (content.as_str(), fs::read(&path).expect("read").as_slice()),
        ("old", &b"new"[..])
    );
}

#[test]
fn opening_truncates_and_appends() {
    let Some(test) = mount() else { return };
    let path = test.path("file");
    fs::write(&path, "a long content").expect("write");
    File::create(&path).expect("truncate");
    assert_eq!(fs::metadata(&path).expect("stat").len(), 0);
    fs::write(&path, "short").expect("write");
    let mut first = File::options().append(true).open(&path).expect("open");
    let mut second = File::options().append(true).open(&path).expect("open");
    for round in 0..3 {
        write!(first, " {round}").expect("append");
        write!(second, "+").expect("append");
    }
    assert_eq!(fs::read_to_string(&path).expect("read"), "short 0+ 1+ 2+");
    let taken = File::create_new(&path).expect_err("there already");
    assert_eq!(taken.raw_os_error(), Some(libc::EEXIST));
    let directory = File::options()
        .write(true)
        .open(test.root())
        .expect_err("a directory");
    assert_eq!(directory.raw_os_error(), Some(libc::EISDIR));
}

#[test]
fn times_are_kept_to_the_nanosecond() {
    let Some(test) = mount() else { return };
    let path = test.path("file");
    fs::write(&path, "").expect("write");
    let check = |seconds: i64, nanos: i64| {
        let time = Timespec {
            tv_sec: seconds,
            tv_nsec: nanos,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        utimensat(CWD, &path, &times, AtFlags::empty()).expect("utimensat");
        test.mounted().invalidate_inode(2).expect("invalidate");
        let metadata = fs::metadata(&path).expect("stat");
        assert_eq!(
            (metadata.mtime(), metadata.mtime_nsec()),
            (seconds, nanos),
            "mtime"
        );
        assert_eq!(
            (metadata.atime(), metadata.atime_nsec()),
            (seconds, nanos),
            "atime"
        );
    };
    assert_eq!(fs::metadata(&path).expect("stat").ino(), 2);
    check(1_700_000_000, 123_456_789);
    check(0, 0);
    check(0, 1);
    check(-1, 999_999_999);
    check(-2, 1);
    check(-(1 << 40), 5);
    check(1 << 40, 5);
    // The kernel drops the nanoseconds at both ends of its range.
    check(i64::MAX, 0);
    check(i64::MIN, 0);
}

#[test]
fn listings_show_each_lasting_entry_once() {
    let Some(test) = mount() else { return };
    let directory = test.path("dir");
    fs::create_dir(&directory).expect("mkdir");
    let name =
        |kind: &str, index: usize| directory.join(format!("{kind}-{index:05}-with-a-longer-name"));
    for index in 0..1500 {
        for kind in ["stays", "goes"] {
            File::create(name(kind, index)).expect("create");
        }
    }
    let mut dir = Dir::read_from(File::open(&directory).expect("open")).expect("opendir");
    let mut next = || {
        dir.read()
            .map(|entry| entry.expect("readdir").file_name().to_owned())
    };
    let mut seen = BTreeSet::new();
    let mut listed = 0;
    while let Some(entry) = next() {
        let entry = entry.into_string().expect("utf-8");
        assert!(seen.insert(entry.clone()), "{entry} twice");
        listed += 1;
        if listed % 2 == 0 && listed / 2 < 1500 {
            fs::remove_file(name("goes", listed / 2)).expect("unlink");
            File::create(name("new", listed)).expect("create while listing");
        }
        assert!(listed < 10_000, "the listing does not end");
    }
    assert!(seen.contains(".") && seen.contains(".."));
    let lasting = seen
        .iter()
        .filter(|entry| entry.starts_with("stays"))
        .count();
    assert_eq!(lasting, 1500);

    // Rewound, it shows the directory as it is now.
    File::create(name("last", 0)).expect("create");
    dir.rewind();
    let again = dir
        .by_ref()
        .map(|entry| entry.expect("readdir").file_name().to_owned());
    let again: Vec<_> = again
        .filter(|entry| entry.to_bytes().starts_with(b"last"))
        .collect();
    assert_eq!(again.len(), 1);
    let expected = fs::read_dir(&directory).expect("list").count();
    dir.rewind();
    assert_eq!(dir.count(), expected + 2);
}

#[test]
fn listing_positions_can_be_returned_to() {
    let Some(test) = mount() else { return };
    for index in 0..300 {
        File::create(test.path(format!("f{index}"))).expect("create");
    }
    let fd = File::open(test.root()).expect("open");
    let mut buffer = Vec::with_capacity(4096);
    let mut raw = rustix::fs::RawDir::new(&fd, buffer.spare_capacity_mut());
    let mut entries = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry.expect("getdents");
        entries.push((entry.next_entry_cookie(), entry.file_name().to_owned()));
    }
    assert_eq!(entries.len(), 302);
    for at in [0, 1, 2, 150, 299] {
        seek(&fd, SeekFrom::Start(entries[at].0)).expect("seekdir");
        let mut raw = rustix::fs::RawDir::new(&fd, buffer.spare_capacity_mut());
        let entry = raw.next().expect("an entry").expect("getdents");
        assert_eq!(entry.file_name(), &*entries[at + 1].1, "after entry {at}");
    }
}

#[test]
fn extended_attributes_tell_their_size() {
    let Some(test) = mount() else { return };
    let path = test.path("file");
    fs::write(&path, "").expect("write");
    let set = |name: &str, value: &[u8], flags| setxattr(&path, name, value, flags);
    let value = Rng::new(1).bytes(60_000);
    set("user.large", &value, XattrFlags::CREATE).expect("set");
    set("user.empty", b"", XattrFlags::empty()).expect("set");
    assert_eq!(
        set("user.large", b"", XattrFlags::CREATE),
        Err(Errno::EXIST)
    );
    assert_eq!(
        set("user.none", b"", XattrFlags::REPLACE),
        Err(Errno::NODATA)
    );
    let mut buffer = vec![0; 65_536];
    assert_eq!(getxattr_query(&path, "user.large"), Ok(60_000));
    assert_eq!(
        getxattr(&path, "user.large", &mut buffer[..59_999]),
        Err(Errno::RANGE)
    );
    assert_eq!(getxattr(&path, "user.large", &mut buffer[..]), Ok(60_000));
    assert_eq!(buffer[..60_000], value);
    assert_eq!(getxattr(&path, "user.empty", &mut buffer[..]), Ok(0));
    assert_eq!(
        getxattr(&path, "user.none", &mut buffer[..]),
        Err(Errno::NODATA)
    );
    let listed = listxattr(&path, &mut buffer[..]).expect("list");
    assert_eq!(&buffer[..listed], b"user.empty\0user.large\0");
    assert_eq!(
        listxattr(&path, &mut buffer[..listed - 1]),
        Err(Errno::RANGE)
    );
    removexattr(&path, "user.large").expect("remove");
    assert_eq!(removexattr(&path, "user.large"), Err(Errno::NODATA));
}

#[test]
fn extended_attributes_are_in_namespaces() {
    let Some(test) = mount() else { return };
    let path = test.path("file");
    fs::write(&path, "").expect("write");
    let set = |name: &str| setxattr(&path, name, b"1", XattrFlags::empty());
    assert_eq!(set("user.name"), Ok(()));
    for name in ["name", "system.name", "userx.name"] {
        assert_eq!(set(name), Err(Errno::OPNOTSUPP), "{name}");
    }
    assert_eq!(set("user."), Err(Errno::INVAL));
}

/// Content that the kernel still had from its writer was read without the file system's knowledge, so that the access
/// time stayed that of the creation.
#[test]
fn reading_what_was_just_written_changes_the_access_time() {
    let Some(test) = mount() else { return };
    let path = test.path("file");
    let accessed = || {
        let metadata = fs::metadata(&path).expect("stat");
        (metadata.atime(), metadata.atime_nsec())
    };
    fs::write(&path, "text").expect("write");
    let made = accessed();
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs::read(&path).expect("read");
    let first = accessed();
    assert!(first > made);
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs::read(&path).expect("read");
    assert_eq!(accessed(), first, "newer than the last change");
    utimensat_atime(&path, 1_000_000);
    fs::read(&path).expect("read");
    assert!(accessed() > first, "older than a day");
}

fn utimensat_atime(path: &std::path::Path, seconds: i64) {
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        },
        last_modification: rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
    };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::empty()).expect("utimensat");
}

#[test]
fn renaming_obeys_its_flags() {
    let Some(test) = mount() else { return };
    let (one, two, three) = (test.path("one"), test.path("two"), test.path("three"));
    fs::write(&one, "1").expect("write");
    fs::create_dir(&two).expect("mkdir");
    let rename = |from, to, flags| renameat_with(CWD, from, CWD, to, flags);
    assert_eq!(
        rename(&one, &two, RenameFlags::NOREPLACE),
        Err(Errno::EXIST)
    );
    rename(&one, &two, RenameFlags::EXCHANGE).expect("exchange");
    assert_eq!(fs::read(&two).expect("read"), b"1");
    assert!(one.is_dir());
    rename(&two, &three, RenameFlags::NOREPLACE).expect("rename");
    assert_eq!(rename(&one, &two, RenameFlags::EXCHANGE), Err(Errno::NOENT));

    // What overlayfs does with its upper directory.
    let (file, second) = (three.clone(), one.join("second"));
    let whiteout = RenameFlags::WHITEOUT;
    fs::hard_link(&file, &second).expect("link");
    rename(&file, &second, whiteout).expect("of one inode: nothing to do");
    assert_eq!(fs::metadata(&file).expect("stat").nlink(), 2);
    fs::remove_file(&second).expect("unlink");
    rename(&file, &second, whiteout | RenameFlags::NOREPLACE).expect("rename");
    let left = fs::symlink_metadata(&file).expect("a whiteout");
    assert_eq!((left.mode(), left.rdev()), (libc::S_IFCHR, 0));
    assert_eq!(fs::read(&second).expect("read"), b"1");
    let taken = rename(&second, &file, whiteout | RenameFlags::NOREPLACE);
    assert_eq!(taken, Err(Errno::EXIST));
    rename(&second, &file, whiteout).expect("over the whiteout");
    assert_eq!(fs::read(&file).expect("read"), b"1");
    assert_eq!(fs::read_dir(&one).expect("list").count(), 1);
}

#[test]
fn holes_and_copies() {
    let Some(test) = mount() else { return };
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(test.path("file"));
    let file = file.expect("create");
    let data = Rng::new(2).bytes(3 << 20);
    file.write_all_at(&data, 1 << 20).expect("write");
    file.sync_all().expect("fsync");
    assert_eq!(seek(&file, SeekFrom::Data(0)), Ok(1 << 20));
    assert_eq!(seek(&file, SeekFrom::Hole(1 << 20)), Ok(4 << 20));
    assert_eq!(seek(&file, SeekFrom::Data(4 << 20)), Err(Errno::NXIO));
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, 2 << 20, 1 << 20).expect("punch");
    assert_eq!(seek(&file, SeekFrom::Hole(1 << 20)), Ok(2 << 20));
    assert_eq!(
        fallocate(&file, FallocateFlags::UNSHARE_RANGE, 0, 1),
        Err(Errno::OPNOTSUPP)
    );
    let mut page = [1; 4096];
    file.read_exact_at(&mut page, 2 << 20).expect("read");
    assert_eq!(page, [0; 4096], "the page cache was told");

    let copy = File::create(test.path("copy")).expect("create");
    let (mut from, mut to) = (1 << 20, 5);
    while from < 4 << 20 {
        let left = (4 << 20) - from as usize;
        let copied = copy_file_range(&file, Some(&mut from), &copy, Some(&mut to), left);
        assert!(copied.expect("copy") > 0);
    }
    let content = fs::read(test.path("copy")).expect("read");
    assert_eq!(content.len(), 5 + (3 << 20));
    assert_eq!(content[5..5 + (1 << 20)], data[..1 << 20]);
    assert!(
        content[5 + (1 << 20)..5 + (2 << 20)]
            .iter()
            .all(|byte| *byte == 0)
    );
    assert_eq!(content[5 + (2 << 20)..], data[2 << 20..]);
}

#[test]
fn direct_and_mapped_access_agree_with_the_cache() {
    let Some(test) = mount() else { return };
    let path = test.path("file");
    let mut content = Rng::new(3).bytes(1 << 20);
    fs::write(&path, &content).expect("write");
    let direct = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path);
    let direct = direct.expect("open directly");
    let mut read = vec![0; 1 << 20];
    direct.read_exact_at(&mut read, 0).expect("read directly");
    assert!(read == content);
    content[8192..12288].fill(7);
    direct
        .write_all_at(&content[8192..12288], 8192)
        .expect("write directly");
    assert!(fs::read(&path).expect("read") == content);

    let file = File::options()
        .read(true)
        .write(true)
        .open(&path)
        .expect("open");
    // SAFETY: a new mapping, of a file that is this long, and that nothing else holds.
    let mapped = unsafe {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        let start = libc::mmap(std::ptr::null_mut(), 1 << 20, prot, libc::MAP_SHARED, fd, 0);
        assert_ne!(start, libc::MAP_FAILED, "mmap");
        std::slice::from_raw_parts_mut(start.cast::<u8>(), 1 << 20)
    };
    assert!(*mapped == *content);
    mapped[5000..9000].fill(9);
    content[5000..9000].fill(9);
    // SAFETY: the mapping above, whose slice is not used any more.
    unsafe {
        assert_eq!(
            libc::msync(mapped.as_mut_ptr().cast(), 1 << 20, libc::MS_SYNC),
            0
        );
        assert_eq!(libc::munmap(mapped.as_mut_ptr().cast(), 1 << 20), 0);
    }
    drop(file);
    let mut stored = Vec::new();
    let ino = test.fs.resolve(b"/file").expect("in the pool").ino;
    test.fs
        .read(ino, 0, 1 << 20, &mut stored)
        .expect("read behind the kernel");
    assert!(stored == content);
}

#[test]
fn special_files_links_and_statfs() {
    let Some(test) = mount() else { return };
    if rustix::process::geteuid().is_root() {
        let device = rustix::fs::makedev(259, 0x12345);
        let path = test.path("device");
        let kind = rustix::fs::FileType::BlockDevice;
        rustix::fs::mknodat(CWD, &path, kind, 0o600.into(), device).expect("mknod");
        assert_eq!(fs::metadata(&path).expect("stat").rdev(), device);
    }
    std::os::unix::fs::symlink("target/with/any\u{1F980}name", test.path("link")).expect("symlink");
    let target = fs::read_link(test.path("link")).expect("readlink");
    assert_eq!(target.to_str(), Some("target/with/any\u{1F980}name"));
    let _socket = std::os::unix::net::UnixListener::bind(test.path("socket")).expect("bind");
    std::os::unix::net::UnixStream::connect(test.path("socket")).expect("connect");
    fs::write(test.path("file"), "x").expect("write");
    fs::hard_link(test.path("file"), test.path("second")).expect("link");
    assert_eq!(fs::metadata(test.path("file")).expect("stat").nlink(), 2);
    fs::remove_file(test.path("second")).expect("unlink");
    assert_eq!(fs::metadata(test.path("file")).expect("stat").nlink(), 1);
    let room = rustix::fs::statvfs(test.root()).expect("statvfs");
    assert!(room.f_bavail > 0 && room.f_namemax == 255 && room.f_files > room.f_ffree);
    let long = test.path("x".repeat(256));
    let error = File::create(long).expect_err("too long");
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
}

#[test]
fn callers_do_not_disturb_each_other() {
    let Some(test) = mount() else { return };
    std::thread::scope(|scope| {
        for worker in 0..4_u64 {
            let test = &test;
            scope.spawn(move || {
                let mut rng = Rng::new(worker);
                let directory = test.path(format!("w{worker}"));
                fs::create_dir(&directory).expect("mkdir");
                for round in 0..20 {
                    let len = rng.below(300_000) as usize;
                    let data = rng.bytes(len);
                    let (fresh, named) = (directory.join("new"), directory.join("named"));
                    fs::write(&fresh, &data).expect("write");
                    fs::rename(&fresh, &named).expect("rename");
                    fs::hard_link(&named, test.path(format!("shared-{worker}-{round}")))
                        .expect("link");
                    assert!(fs::read(&named).expect("read") == data);
                    fs::read_dir(test.root())
                        .expect("list")
                        .for_each(|entry| drop(entry.expect("entry")));
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
        }
    });
    assert_eq!(fs::read_dir(test.root()).expect("list").count(), 4 + 80);
}

#[test]
fn the_time_of_creation_is_told() {
    let Some(test) = mount() else { return };
    let path = test.path("file");
    fs::write(&path, "").expect("write");
    let created = fs::metadata(&path).expect("stat").created();
    let created = created.expect("statx with the time of creation");
    let age = created.elapsed().expect("in the past");
    assert!(age < Duration::from_secs(60), "{age:?}");
    fs::write(&path, "changed").expect("write");
    test.mounted().invalidate_inode(2).expect("invalidate");
    let metadata = fs::metadata(&path).expect("stat");
    assert_eq!(metadata.created().expect("again"), created);
    assert!(metadata.modified().expect("mtime") > created);
    assert_eq!(
        (metadata.ino(), metadata.len(), metadata.nlink()),
        (2, 7, 1)
    );
}

/// `close` does not wait, but what was closed is handed over long before it is old.
#[test]
fn closing_hands_data_over() {
    let Some(test) = mount() else { return };
    let check = |bytes: usize| {
        fs::write(test.path("file"), vec![7; bytes]).expect("write");
        let closed = Instant::now();
        while test.fs.dirty_bytes() > 0 {
            let waited = closed.elapsed();
            assert!(waited < Duration::from_secs(3), "{bytes} bytes: {waited:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    check(100);
    check(100_000);
    check(5_000_000);
}
