//! Owners, set-user-id bits and access control lists, as users other than root meet them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use rustix::fs::{XattrFlags, setxattr};

use crate::support::{TestMount, mount, skip};

const USER: u32 = 12_345;
const GROUP: u32 = 23_456;

/// A mount, if this is root, who alone can act as other users.
fn mount_as_root() -> Option<TestMount> {
    if !rustix::process::geteuid().is_root() {
        skip("only root can act as other users");
        return None;
    }
    mount()
}

/// Runs a shell command as the user; true if it succeeds.
fn as_user(script: &str, directory: &Path) -> bool {
    let mut shell = Command::new("/bin/sh");
    shell
        .args(["-c", script])
        .current_dir(directory)
        .uid(USER)
        .gid(GROUP);
    shell
        .stderr(std::process::Stdio::null())
        .status()
        .expect("run sh")
        .success()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("stat").mode() & 0o7777
}

#[test]
fn the_kernel_checks_permissions() {
    let Some(test) = mount_as_root() else { return };
    fs::write(test.path("secret"), "root's").expect("write");
    fs::set_permissions(test.path("secret"), Permissions::from_mode(0o600)).expect("chmod");
    fs::create_dir(test.path("open")).expect("mkdir");
    fs::set_permissions(test.path("open"), Permissions::from_mode(0o1777)).expect("chmod");
    assert!(!as_user("cat secret", test.root()));
    assert!(!as_user("touch new", test.root()));
    assert!(as_user(
        "umask 027 && echo x > open/own && mkdir open/dir",
        test.root()
    ));
    let own = fs::metadata(test.path("open/own")).expect("stat");
    assert_eq!(
        (own.uid(), own.gid(), own.mode() & 0o7777),
        (USER, GROUP, 0o640)
    );
    assert_eq!(mode(&test.path("open/dir")), 0o750);
    fs::write(test.path("open/root's"), "").expect("write");
    assert!(!as_user("rm -f open/root\\'s", test.root()), "sticky");
    assert!(!as_user("chown 0 open/own", test.root()));
}

#[test]
fn writing_by_others_takes_set_user_id_away() {
    let Some(test) = mount_as_root() else { return };
    let path = test.path("program");
    let check = |script: &str, before: u32, after: u32| {
        fs::write(&path, "some content").expect("write");
        fs::set_permissions(&path, Permissions::from_mode(before)).expect("chmod");
        assert!(as_user(script, test.root()), "{script}");
        assert_eq!(mode(&path), after, "{script} on {before:o}");
    };
    for script in [
        "printf x >> program",
        "printf x 1<> program",
        "truncate -s 3 program",
        "truncate -s 100 program",
        ": > program",
        "fallocate -l 100000 program",
        // Within the file, which nothing but the times show.
        "fallocate -l 5 program",
        "fallocate -n -l 5 program",
        "fallocate -p -l 10 program",
    ] {
        check(script, 0o6777, 0o777);
        check(script, 0o4766, 0o766);
        check(
            script,
            0o2767,
            0o767
                | if group_write_keeps_sgid(0o2767) {
                    0o2000
                } else {
                    0
                },
        );
    }
    // Root may keep them.
    fs::set_permissions(&path, Permissions::from_mode(0o6777)).expect("chmod");
    fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(&path)
        .expect("truncate");
    assert_eq!(mode(&path), 0o6777);
    // A new owner takes them away from everybody.
    std::os::unix::fs::chown(&path, Some(USER), None).expect("chown");
    assert_eq!(mode(&path), 0o777);
    // And so does one that stays the same, but not from directories.
    fs::set_permissions(&path, Permissions::from_mode(0o6777)).expect("chmod");
    std::os::unix::fs::chown(&path, None, None).expect("chown");
    assert_eq!(mode(&path), 0o777);
    fs::set_permissions(test.root(), Permissions::from_mode(0o2777)).expect("chmod");
    std::os::unix::fs::chown(test.root(), None, None).expect("chown");
    assert_eq!(mode(test.root()), 0o2777);
}

/// Linux clears set-group-id on a write if the group may execute the file.
fn group_write_keeps_sgid(mode: u32) -> bool {
    mode & 0o010 == 0
}

#[test]
fn copying_by_others_takes_set_user_id_away() {
    let Some(test) = mount_as_root() else { return };
    let path = test.path("program");
    fs::write(test.path("source"), "text").expect("write");
    fs::write(&path, "").expect("write");
    fs::set_permissions(&path, Permissions::from_mode(0o6777)).expect("chmod");
    let copied = std::thread::scope(|scope| {
        let copying = scope.spawn(|| {
            // SAFETY: plain system calls; they change the user of this thread, which then ends.
            unsafe {
                assert_eq!(libc::syscall(libc::SYS_setresgid, GROUP, GROUP, GROUP), 0);
                assert_eq!(libc::syscall(libc::SYS_setresuid, USER, USER, USER), 0);
            }
            let source = fs::File::open(test.path("source")).expect("open");
            let target = fs::File::options().write(true).open(&path).expect("open");
            rustix::fs::copy_file_range(&source, None, &target, None, 4)
        });
        copying.join().expect("the thread copies")
    });
    assert_eq!(copied, Ok(4));
    assert_eq!(mode(&path), 0o777);
    assert_eq!(fs::read(&path).expect("read"), b"text");
}

/// The bytes of an ACL as the kernel wants them: version 2, then (tag, permissions, id).
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

const NOBODY: u32 = u32::MAX;
const USER_OBJ: u16 = 1;
const NAMED_USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const MASK: u16 = 16;
const OTHER: u16 = 32;

#[test]
fn access_control_lists_grant_and_are_inherited() {
    let Some(test) = mount_as_root() else { return };
    let path = test.path("file");
    fs::write(&path, "text").expect("write");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("chmod");
    assert!(!as_user("cat file", test.root()));
    let granted = acl(&[
        (USER_OBJ, 6, NOBODY),
        (NAMED_USER, 4, USER),
        (GROUP_OBJ, 0, NOBODY),
        (MASK, 4, NOBODY),
        (OTHER, 0, NOBODY),
    ]);
    setxattr(
        &path,
        "system.posix_acl_access",
        &granted,
        XattrFlags::empty(),
    )
    .expect("set");
    assert!(as_user("cat file", test.root()));
    assert!(!as_user("echo x >> file", test.root()));
    assert_eq!(mode(&path), 0o640, "the mask shows as the group's bits");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("chmod takes the mask away");
    assert!(!as_user("cat file", test.root()));

    let directory = test.path("dir");
    fs::create_dir(&directory).expect("mkdir");
    let default = acl(&[
        (USER_OBJ, 7, NOBODY),
        (NAMED_USER, 7, USER),
        (GROUP_OBJ, 5, NOBODY),
        (MASK, 7, NOBODY),
        (OTHER, 0, NOBODY),
    ]);
    setxattr(
        &directory,
        "system.posix_acl_default",
        &default,
        XattrFlags::empty(),
    )
    .expect("set");
    let status = Command::new("/bin/sh")
        .args(["-c", "umask 077 && echo x > dir/file && mkdir dir/sub"])
        .current_dir(test.root())
        .status();
    assert!(status.expect("run sh").success());
    assert_eq!(
        mode(&directory.join("file")),
        0o660,
        "the default ACL takes the place of the umask"
    );
    assert_eq!(mode(&directory.join("sub")), 0o770);
    assert!(as_user("echo y >> dir/file", test.root()) || !as_user("ls dir", test.root()));
    fs::set_permissions(&directory, Permissions::from_mode(0o755)).expect("chmod");
    assert!(as_user(
        "echo y >> dir/file && touch dir/sub/own",
        test.root()
    ));
}

#[test]
fn setting_a_list_takes_set_group_id_from_strangers() {
    let Some(test) = mount_as_root() else { return };
    let path = test.path("file");
    let minimal = "0sAgAAAAEABwD/////BAAFAP////8gAAUA/////w==";
    let script = format!("setfattr -n system.posix_acl_access -v {minimal} file");
    if Command::new("setfattr").arg("--version").output().is_err() {
        return skip("no setfattr");
    }
    let check = |gid: u32, after: u32| {
        fs::write(&path, "").expect("write");
        std::os::unix::fs::chown(&path, Some(USER), Some(gid)).expect("chown");
        fs::set_permissions(&path, Permissions::from_mode(0o2770)).expect("chmod");
        assert!(as_user(&script, test.root()));
        assert_eq!(mode(&path), after, "group {gid}");
    };
    check(GROUP, 0o2755);
    check(GROUP + 1, 0o755);
}
