//! Inodes without a name: made so, or held by nothing but what the kernel knows of them.

use std::fs::{self, File, Permissions};
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, linkat};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::support::{TestMount, mount, skip};

fn inodes(test: &TestMount) -> u64 {
    test.fs.statfs().inodes
}

/// FORGET and RELEASE arrive when nobody waits for them.
fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn unnamed(directory: &Path, flags: i32, mode: u32) -> File {
    File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE | flags)
        .mode(mode)
        .open(directory)
        .expect("O_TMPFILE")
}

fn name(file: &File, path: &Path) -> Result<(), Errno> {
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(CWD, open, CWD, path, AtFlags::SYMLINK_FOLLOW)
}

#[test]
fn a_file_can_be_made_without_a_name_and_given_one() {
    let Some(test) = mount() else { return };
    let before = inodes(&test);
    let mut file = unnamed(test.root(), 0, 0o640);
    std::io::Write::write_all(&mut file, b"content").expect("write");
    let metadata = file.metadata().expect("fstat");
    assert_eq!((metadata.nlink(), metadata.len()), (0, 7));
    assert_eq!(fs::read_dir(test.root()).expect("list").count(), 0);
    name(&file, &test.path("named")).expect("linkat");
    assert_eq!(file.metadata().expect("fstat").nlink(), 1);
    drop(file);
    assert_eq!(fs::read(test.path("named")).expect("read"), b"content");
    let ino = fs::metadata(test.path("named")).expect("stat").ino();
    eventually("it is closed", || test.fs.dirty_bytes() == 0);
    assert_eq!(test.fs.resolve(b"/named").expect("resolve").ino.0, ino);
    fs::remove_file(test.path("named")).expect("unlink");

    let exclusive = unnamed(test.root(), libc::O_EXCL, 0o600);
    assert_eq!(name(&exclusive, &test.path("never")), Err(Errno::NOENT));
    // That the kernel forgets the other one comes by itself, and nobody waits for it.
    eventually("it is the only one", || inodes(&test) == before + 1);
    drop(exclusive);
    eventually("it goes with the last close", || inodes(&test) == before);
}

/// A file that was made without a name went with its last close, though an `O_PATH` descriptor referred to it.
#[test]
fn a_file_made_without_a_name_outlives_its_close() {
    let Some(test) = mount() else { return };
    let before = inodes(&test);
    let mut file = unnamed(test.root(), 0, 0o600);
    std::io::Write::write_all(&mut file, &[5; 100_000]).expect("write");
    let open = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
    let held = path_only(Path::new(&open(&file)));
    drop(file);
    std::thread::sleep(Duration::from_millis(200));
    let content = fs::read(open(&held)).expect("open again");
    assert!(content == [5; 100_000]);
    drop(held);
    eventually("it goes with the last reference", || {
        inodes(&test) == before
    });
}

#[test]
fn a_file_without_a_name_takes_from_its_directory_what_any_other_does() {
    let Some(test) = mount() else { return };
    if !rustix::process::geteuid().is_root() {
        return skip("only root can give a directory to another group");
    }
    let directory = test.path("dir");
    fs::create_dir(&directory).expect("mkdir");
    std::os::unix::fs::chown(&directory, None, Some(23_456)).expect("chown");
    fs::set_permissions(&directory, Permissions::from_mode(0o2777)).expect("chmod");
    let named = File::options()
        .create_new(true)
        .write(true)
        .mode(0o666)
        .open(directory.join("named"))
        .expect("create");
    let (named, unnamed) = (
        named.metadata().expect("fstat"),
        unnamed(&directory, 0, 0o666).metadata().expect("fstat"),
    );
    assert_eq!(unnamed.gid(), 23_456);
    assert_eq!(
        (unnamed.mode(), unnamed.uid(), unnamed.gid()),
        (named.mode(), named.uid(), named.gid())
    );
}

fn path_only(path: &Path) -> File {
    File::options()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)
        .expect("O_PATH")
}

#[test]
fn an_inode_that_the_kernel_knows_outlives_its_name() {
    let Some(test) = mount() else { return };
    let before = inodes(&test);
    let check = |remove: &dyn Fn(&Path)| {
        let path = test.path("file");
        fs::write(&path, "content").expect("write");
        let descriptor = path_only(&path);
        let ino = descriptor.metadata().expect("fstat").ino();
        remove(&path);
        test.mounted().invalidate_inode(ino).expect("invalidate");
        let metadata = descriptor.metadata().expect("fstat without a name");
        assert_eq!(
            (metadata.ino(), metadata.nlink(), metadata.len()),
            (ino, 0, 7)
        );
        let open = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
        let mut content = String::new();
        let mut file = File::open(open).expect("open without a name");
        drop(descriptor);
        file.read_to_string(&mut content).expect("read");
        assert_eq!(content, "content");
        drop(file);
        eventually("it goes with the last descriptor", || {
            test.fs.getattr(cfs_format::Ino(ino)).is_err()
        });
        let _ = fs::remove_file(&path);
    };
    check(&|path| fs::remove_file(path).expect("unlink"));
    check(&|path| {
        fs::write(test.path("other"), "").expect("write");
        fs::rename(test.path("other"), path).expect("rename over it");
    });
    check(&|path| {
        fs::hard_link(path, test.path("second")).expect("link");
        fs::remove_file(path).expect("unlink");
        fs::remove_file(test.path("second")).expect("unlink");
    });
    eventually("nothing is left", || inodes(&test) == before);
}

#[test]
fn a_working_directory_can_be_removed() {
    let Some(test) = mount() else { return };
    let before = inodes(&test);
    fs::create_dir(test.path("dir")).expect("mkdir");
    let script = "rmdir ../dir && ls -a && stat -c %h . && ! touch file && cd ..";
    let output = Command::new("/bin/sh")
        .args(["-c", script])
        .current_dir(test.path("dir"))
        .output()
        .expect("run sh");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text == "0\n", "{text}{errors}");
    eventually("it goes with the shell", || inodes(&test) == before);

    // The same, asking the file system and not what the kernel remembers.
    fs::create_dir(test.path("dir")).expect("mkdir");
    let descriptor = path_only(&test.path("dir"));
    let ino = descriptor.metadata().expect("fstat").ino();
    fs::remove_dir(test.path("dir")).expect("rmdir");
    test.mounted().invalidate_inode(ino).expect("invalidate");
    assert_eq!(descriptor.metadata().expect("fstat").nlink(), 0);
    drop(descriptor);
    eventually("it goes with the last descriptor", || {
        inodes(&test) == before
    });
}

/// Holding what the kernel knows must not keep what it forgets.
#[test]
fn what_is_deleted_goes_without_an_unmount() {
    let Some(test) = mount() else { return };
    let before = inodes(&test);
    let content = vec![0x5a; 10_000];
    let name = |index: usize| test.path(format!("file-{index}"));
    for index in 0..3000 {
        match index % 3 {
            0 => fs::write(name(index), &content).expect("write"),
            1 => fs::write(name(index), "small").expect("write"),
            _ => fs::create_dir(name(index)).expect("mkdir"),
        }
    }
    assert_eq!(inodes(&test), before + 3000);
    for index in 0..3000 {
        match index % 3 {
            2 => fs::remove_dir(name(index)).expect("rmdir"),
            _ => fs::remove_file(name(index)).expect("unlink"),
        }
    }
    eventually("all inodes are gone", || inodes(&test) == before);
    let bytes = || {
        let volumes = test.fs.store().volumes();
        let bytes = volumes.iter().map(|(_, volume)| volume.logical_bytes.get());
        bytes.sum::<u64>()
    };
    assert_eq!(bytes(), 0);
}

/// A session that is ended by force hears no FORGET.
#[test]
fn what_was_held_goes_with_the_session() {
    let Some(test) = mount() else { return };
    if !rustix::process::geteuid().is_root() {
        return skip("only root can unmount by force");
    }
    let before = inodes(&test);
    fs::write(test.path("file"), "content").expect("write");
    let descriptor = path_only(&test.path("file"));
    fs::remove_file(test.path("file")).expect("unlink");
    let busy = rustix::mount::unmount(test.root(), UnmountFlags::FORCE);
    assert_eq!(busy, Err(Errno::BUSY));
    test.mounted().wait().expect("ended in order");
    assert_eq!(inodes(&test), before);
    drop(descriptor);
    // What was aborted while it was in use stays in the mount table.
    rustix::mount::unmount(test.root(), UnmountFlags::DETACH).expect("it is there still");
}
