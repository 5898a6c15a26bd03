//! Who can enter snapshots: what was private stays so, whatever becomes of the directories above it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::cfs;
use crate::support::{Scratch, Server, can_mount};

/// An ordinary user.
const NOBODY: u32 = 65534;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn directory(path: &Path, mode: u32) {
    fs::create_dir(path).expect("a directory");
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("our own");
}

/// What an ordinary user reads at a path, or why nothing.
fn read_by_nobody(path: &Path) -> Result<String, String> {
    let mut cat = Command::new("cat");
    cat.arg(path).env("LC_ALL", "C").uid(NOBODY).gid(NOBODY);
    let output = cat.output().expect("a tool that is everywhere");
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Root reads it, and an ordinary user does not, also when the kernel knows it from root.
#[track_caller]
fn assert_private(path: &Path) {
    for _ in 0..2 {
        assert_eq!(fs::read_to_string(path).expect("root may"), "private");
        let error = read_by_nobody(path).expect_err("it is not for everybody");
        assert!(error.contains("Permission denied"), "{error}");
    }
}

#[track_caller]
fn assert_readable(path: &Path) {
    assert_eq!(read_by_nobody(path).as_deref(), Ok("private"));
}

/// The snapshot of a directory that is removed is in the root of the volume, where nothing of the directories above it is
/// in the way; one of a directory that is moved is where it is now. Both let everybody read what nobody could before.
#[test]
fn what_was_private_is_private_in_snapshots() {
    if !can_mount("what_was_private_is_private_in_snapshots") || !is_root() {
        return;
    }
    let scratch = Scratch::new();
    fs::set_permissions(scratch.path("."), Permissions::from_mode(0o755)).expect("our own");
    let (data, mnt) = (scratch.path("pool"), scratch.dir("mnt"));
    let server = Server::start(&data, Some(&mnt));
    let snapshot = |path: &str, name: &str| {
        cfs!(
            "admin", "snapshot", "create", path, "--name", name, "--data", data
        )
        .ok();
    };
    for (above, mode) in [
        ("removed", 0o700),
        ("private", 0o700),
        ("opened", 0o700),
        ("grouped", 0o750),
        ("own", 0o700),
        ("public", 0o755),
    ] {
        directory(&mnt.join(above), mode);
        directory(&mnt.join(above).join("docs"), 0o755);
        fs::write(mnt.join(above).join("docs/f"), "private").expect("a file");
        snapshot(&format!("/{above}/docs"), "one");
    }
    chown(mnt.join("own"), Some(NOBODY), Some(NOBODY)).expect("root may");
    snapshot("/", "all");
    let mode = |name: &str, mode| {
        fs::set_permissions(mnt.join(name), Permissions::from_mode(mode)).expect("our own");
    };

    fs::remove_dir_all(mnt.join("removed/docs")).expect("remove");
    assert_private(&mnt.join(".snapshots/one/f"));
    let listed = Command::new("ls")
        .arg("-l")
        .arg(mnt.join(".snapshots"))
        .output()
        .expect("a tool that is everywhere");
    assert!(listed.status.success(), "{listed:?}");
    assert!(read_by_nobody(&mnt.join(".snapshots/one/f")).is_err());

    fs::rename(mnt.join("private/docs"), mnt.join("moved")).expect("rename");
    mode("opened", 0o755);
    mode("grouped", 0o755);
    for below in ["moved", "opened/docs", "grouped/docs"] {
        for name in ["one", "all"] {
            assert_private(&mnt.join(below).join(".snapshots").join(name).join("f"));
        }
    }
    for path in [
        ".snapshots/all/private/docs/f",
        "opened/.snapshots/all/docs/f",
    ] {
        assert_private(&mnt.join(path));
    }

    // The directories above are as they were, or let no more pass.
    assert_readable(&mnt.join("public/docs/.snapshots/one/f"));
    assert_readable(&mnt.join("public/docs/.snapshots/all/f"));
    assert_readable(&mnt.join("own/docs/.snapshots/all/f"));
    assert_private(&mnt.join("own/docs/.snapshots/one/f"));
    fs::rename(mnt.join("public/docs"), mnt.join("own/public")).expect("rename");
    assert_readable(&mnt.join("own/public/.snapshots/one/f"));
    server.stop();
}
