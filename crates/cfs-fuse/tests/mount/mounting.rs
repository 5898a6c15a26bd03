//! Mounting, unmounting, and what is refused.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::time::Duration;

use cfs_fuse::{MountError, MountOptions, UnmountError};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::support::{TestMount, mount, mount_with, skip};

#[test]
fn the_mount_table_shows_it_and_read_ahead_is_raised() {
    let check = |sync_calls: bool| {
        let Some(test) = mount_with(|options| options.sync_calls = sync_calls) else {
            return;
        };
        let line = mount_line(&test);
        let root = test.root().display();
        let is_carried =
            line.starts_with("/dev/loop") && line.contains(&format!(" {root} fuseblk.cfs rw,"));
        let is_plain = line.starts_with(&format!("cfs {root} fuse.cfs rw,"));
        assert!(is_plain || (sync_calls && is_carried), "{line}");
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let (major, minor) = test.mounted().device_number();
        let suffix = if is_carried { "-fuseblk" } else { "" };
        let file = format!("/sys/class/bdi/{major}:{minor}{suffix}/read_ahead_kb");
        let kib: u32 = fs::read_to_string(file)
            .expect("bdi")
            .trim()
            .parse()
            .expect("a number");
        assert!(kib >= 1024, "read-ahead is {kib} KiB");
        let device = line.split(' ').next().expect("a column").to_owned();
        drop(test);
        if is_carried {
            let backing = format!("/sys/block/{}/loop/backing_file", &device["/dev/".len()..]);
            let gone = (0..100).any(|_| {
                std::thread::sleep(Duration::from_millis(20));
                !fs::exists(&backing).expect("sysfs")
            });
            // Another test may have taken the device since.
            assert!(
                gone || fs::read_to_string("/proc/self/mounts")
                    .expect("mount table")
                    .contains(&device),
                "{device} is left behind"
            );
        }
    };
    check(true);
    check(false);
}

/// The line of the mount table.
fn mount_line(test: &TestMount) -> String {
    let table = fs::read_to_string("/proc/self/mounts").expect("mount table");
    let place = format!(" {} ", test.root().display());
    let line = table.lines().find(|line| line.contains(&place));
    line.unwrap_or_else(|| panic!("not in the mount table:\n{table}"))
        .to_owned()
}

/// sync(2) is passed on for some mounts alone; where it is, it must leave nothing behind.
#[test]
fn syncfs_writes_everything_out() {
    let Some(test) = mount() else { return };
    if !mount_line(&test).contains(" fuseblk.cfs ") {
        return skip("this kernel does not pass syncfs(2) on");
    }
    let mut file = File::create(test.path("open")).expect("create");
    std::io::Write::write_all(&mut file, &[7; 300_000]).expect("write");
    let before = test.fs.store().stats();
    assert!(test.fs.dirty_bytes() > 0);
    rustix::fs::syncfs(&file).expect("syncfs");
    assert_eq!(test.fs.dirty_bytes(), 0);
    let after = test.fs.store().stats();
    assert!(after.pool.chunk_raw_bytes.get() >= before.pool.chunk_raw_bytes.get() + 200_000);
}

#[test]
fn bad_mount_points_are_named() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let check = |name: &str| cfs_fuse::check(&MountOptions::new(directory.path().join(name)));
    assert!(matches!(check("missing"), Err(MountError::Missing(_))));
    fs::write(directory.path().join("file"), "").expect("write");
    assert!(matches!(check("file"), Err(MountError::NotDirectory(_))));
    assert!(matches!(
        check("file/below"),
        Err(MountError::Inaccessible { .. })
    ));
    assert!(matches!(check(""), Err(MountError::NotEmpty(_))));
    let mut options = MountOptions::new(directory.path());
    options.allow_nonempty = true;
    assert!(cfs_fuse::check(&options).is_ok());
    fs::create_dir(directory.path().join("empty")).expect("mkdir");
    std::os::unix::fs::symlink("empty", directory.path().join("link")).expect("symlink");
    let found = check("link").expect("an empty directory");
    assert!(found.ends_with("empty"), "{}", found.display());
}

#[test]
fn a_second_mount_at_the_same_place_is_refused() {
    let Some(test) = mount() else { return };
    match cfs_fuse::check(&MountOptions::new(test.root())) {
        Err(MountError::AlreadyMounted { kind, .. }) => {
            assert!(matches!(&*kind, "fuse.cfs" | "fuseblk.cfs"), "{kind}");
        }
        other => panic!("{other:?}"),
    }
}

/// What a process leaves behind that was killed: an entry in the mount table where every access fails.
#[test]
fn a_dead_mount_of_ours_is_replaced() {
    if !rustix::process::geteuid().is_root() {
        return skip("only root can make a dead mount");
    }
    let dead = |kind: &str, options: &mut MountOptions| {
        let Ok(device) = File::options().read(true).write(true).open("/dev/fuse") else {
            return;
        };
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0",
            device.as_raw_fd()
        );
        let data = std::ffi::CString::new(data).expect("no NUL");
        rustix::mount::mount(
            "dead",
            &options.mountpoint,
            kind,
            MountFlags::empty(),
            &*data,
        )
        .expect("mount without a session");
    };
    let Some(test) = mount_with(|options| dead("fuse.cfs", options)) else {
        return;
    };
    fs::write(test.path("file"), "alive").expect("write");
    drop(test);

    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut options = MountOptions::new(directory.path());
    dead("fuse.other", &mut options);
    let checked = cfs_fuse::check(&options);
    rustix::mount::unmount(directory.path(), UnmountFlags::DETACH).expect("unmount the dead one");
    assert!(
        matches!(checked, Err(MountError::DeadMount { .. })),
        "{checked:?}"
    );
}

#[test]
fn a_mount_in_use_stays_until_it_is_detached() {
    let Some(test) = mount() else { return };
    let mut file = File::create(test.path("open")).expect("create");
    assert!(matches!(
        test.mounted().unmount(),
        Err(UnmountError::Busy(_))
    ));
    test.mounted().detach().expect("detach");
    assert!(!test.path("open").exists(), "the path is free");
    std::io::Write::write_all(&mut file, b"still works").expect("write after detaching");
    file.sync_all().expect("sync after detaching");
    let attr = test.fs.resolve(b"/open").expect("in the pool");
    assert_eq!(attr.size, 11);
    // Unmounting what is not mounted any more succeeds.
    test.mounted().unmount().expect("nothing to do");
    drop(file);
    test.mounted().wait().expect("ended with the last file");
}

#[test]
fn waiting_ends_when_somebody_else_unmounts() {
    let Some(test) = mount() else { return };
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        let mounted = test.mounted();
        scope.spawn(move || sender.send(mounted.wait()).expect("received below"));
        assert!(
            receiver.recv_timeout(Duration::from_millis(100)).is_err(),
            "ended too early"
        );
        let status = std::process::Command::new("umount")
            .arg(test.root())
            .status();
        assert!(status.expect("run umount").success());
        let ended = receiver
            .recv_timeout(Duration::from_secs(10))
            .expect("the session ends");
        ended.expect("in order");
    });
}

#[test]
fn a_read_only_mount_refuses_changes() {
    let Some(test) = mount_with(|options| options.read_only = true) else {
        return;
    };
    let error = fs::write(test.path("file"), "").expect_err("read-only");
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    assert_eq!(fs::read_dir(test.root()).expect("list").count(), 0);
}

/// Runs the test below as another user, in a mount namespace where the device is everybody's.
#[test]
fn another_user_mounts_through_the_helper() {
    if !rustix::process::geteuid().is_root() {
        return skip("only root can act as other users");
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let device = directory.path().join("device");
    let script = "mknod -m 666 \"$1\" c 10 229 && mount --bind \"$1\" /dev/fuse && : <> /dev/fuse || exit 77\n\
        exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$0\" --ignored --exact --nocapture \
        mounting::as_another_user";
    let output = std::process::Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .arg(std::env::current_exe().expect("this program"))
        .arg(&device)
        .env("TMPDIR", "/tmp")
        .output();
    let Ok(output) = output else {
        return skip("no unshare");
    };
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(77) {
        return skip("no mount namespace, or no devices in the temporary directory");
    }
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
    if text.contains("SKIPPED") {
        skip("see above");
    }
}

#[test]
#[ignore = "run by another_user_mounts_through_the_helper"]
fn as_another_user() {
    assert!(!rustix::process::geteuid().is_root());
    let Some(test) = mount() else { return };
    let table = fs::read_to_string("/proc/self/mounts").expect("mount table");
    let root = test.root().display();
    let start = format!("cfs {root} fuse.cfs rw,");
    let line = table.lines().find(|line| line.starts_with(&start));
    let line = line.unwrap_or_else(|| panic!("not in the mount table:\n{table}"));
    assert!(line.contains("user_id=65534"), "{line}");
    fs::write(test.path("file"), "content").expect_err("the root directory is root's");
    assert_eq!(fs::read_dir(test.root()).expect("list").count(), 0);
    let file = File::open(test.root()).expect("open");
    assert!(matches!(
        test.mounted().unmount(),
        Err(UnmountError::Busy(_))
    ));
    drop(file);
    test.mounted()
        .unmount()
        .expect("unmount through the helper");
    test.mounted().wait().expect("ended in order");

    let mut options = MountOptions::new(test.root());
    options.allow_other = true;
    let conf = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if !conf.lines().any(|line| line.trim() == "user_allow_other") {
        let mounted = cfs_fuse::mount(std::sync::Arc::clone(&test.fs), &options);
        assert!(matches!(mounted, Err(MountError::AllowOtherForbidden)));
    }
}
