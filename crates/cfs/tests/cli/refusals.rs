//! Bad input: one clear sentence, what to do, an exit code of its own, and nothing changed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::mount::{MountFlags, mount_remount};
use rustix::process::Signal;

use crate::cfs;
use crate::support::{
    Scratch, Server, as_root, as_root_with_tmpfs, can_mount, command, is_root, run,
};
use crate::trees::state;

/// Runs `check`, after which the directory must be what it was.
#[track_caller]
fn unchanged(data: &Path, check: impl FnOnce()) {
    let before = state(data);
    check();
    let after = state(data);
    let differing: Vec<_> = before
        .iter()
        .filter(|it| !after.contains(it))
        .chain(after.iter().filter(|it| !before.contains(it)))
        // Taking the lock writes a process id.
        .filter(|it| !it.0.ends_with("lock"))
        .collect();
    assert!(differing.is_empty(), "{differing:#?}");
}

fn make_pool(scratch: &Scratch) -> std::path::PathBuf {
    let data = scratch.path("pool");
    let source = scratch.file("note", "content");
    cfs!("import", source, "/note", "--data", data).ok();
    data
}

#[test]
fn directories_without_a_pool() {
    let scratch = Scratch::new();
    let absent = scratch.path("absent");
    cfs!("admin", "status", "--data", absent).refused(5, "there is no pool in");
    cfs!("export", "/", scratch.path("out"), "--data", absent).refused(5, "there is no pool in");
    cfs!("debug", "superblock", "--data", absent).refused(5, "there is no pool in");
    assert!(!absent.exists());

    let foreign = scratch.dir("foreign");
    fs::write(foreign.join("thesis.tex"), "years of work").expect("written");
    unchanged(&foreign, || {
        cfs!("server", "--data", foreign)
            .refused(5, "holds no ClaudeFS pool but other files (thesis.tex)");
    });
    let file = scratch.file("file", "content");
    cfs!("server", "--data", file).refused(5, "is not a directory");
}

#[test]
fn pools_that_are_foreign_truncated_or_damaged() {
    let scratch = Scratch::new();
    let data = make_pool(&scratch);
    let pool = data.join("pool");
    let whole = fs::read(&pool).expect("a pool");
    let mut middle_gone = whole.clone();
    middle_gone[4 << 20..].fill(0);
    let mut anchors_gone = whole.clone();
    anchors_gone[..4 << 20].fill(0);
    let cases: [(&str, &[u8], &str); 7] = [
        ("empty", b"", "is not a ClaudeFS pool"),
        ("text", b"Dear diary", "is not a ClaudeFS pool"),
        ("half a block", &whole[..2000], "pool"),
        ("anchors alone", &whole[..4 << 20], "damaged"),
        ("the start", &whole[..(5 << 20) + 512], "damaged"),
        ("all but the anchors is zeros", &middle_gone, "damaged"),
        ("no anchors", &anchors_gone, "is not a ClaudeFS pool"),
    ];
    for (name, content, words) in cases {
        fs::write(&pool, content).expect("written");
        println!("case: {name}");
        unchanged(&data, || {
            cfs!("admin", "status", "--data", data).refused(5, words);
            cfs!("server", "--data", data).refused(5, words);
        });
    }
    fs::remove_file(&pool).expect("removed");
    fs::create_dir(&pool).expect("made");
    unchanged(&data, || {
        cfs!("server", "--data", data).refused(5, "is not a regular file");
    });
    fs::remove_dir(&pool).expect("removed");
    fs::write(&pool, &whole).expect("written");
    cfs!("admin", "fsck", "--data", data).ok();
}

#[test]
fn a_pool_of_a_newer_format() {
    use cfs_format::superblock::{BODY_BYTES, CHECKSUM_OFFSET, MAGIC};
    let scratch = Scratch::new();
    let data = make_pool(&scratch);
    let mut file = File::options()
        .read(true)
        .write(true)
        .open(data.join("pool"))
        .expect("a pool");
    let mut block = vec![0; 4096];
    let mut patched = 0;
    for index in 0..1024_u64 {
        file.seek(SeekFrom::Start(index * 4096)).expect("a file");
        file.read_exact(&mut block).expect("two anchors");
        if block.starts_with(&MAGIC) {
            block[8..12].copy_from_slice(&99_u32.to_le_bytes());
            let checksum = blake3::hash(&block[..BODY_BYTES]);
            block[CHECKSUM_OFFSET..CHECKSUM_OFFSET + 32].copy_from_slice(checksum.as_bytes());
            file.seek(SeekFrom::Start(index * 4096)).expect("a file");
            file.write_all(&block).expect("a file");
            patched += 1;
        }
    }
    assert!(patched >= 2, "{patched} superblock records");
    unchanged(&data, || {
        cfs!("admin", "status", "--data", data).refused(5, "version 99");
        cfs!("server", "--data", data).refused(5, "use a newer version of cfs");
    });
}

#[test]
fn a_pool_that_another_process_has() {
    let scratch = Scratch::new();
    let data = scratch.path("pool");
    // What the S3 face stores on the first start would go on being written while the pool is watched.
    let command = command(&[&"server", &"--data", &data, &"--s3", &"off"]);
    let server = Server::spawn(command, &data, None);
    let pid = format!("already open by process {}", server.pid());
    // And what it does in the background with a pool that is new.
    server.signal(Signal::STOP);
    unchanged(&data, || cfs!("server", "--data", data).refused(4, &pid));
    server.signal(Signal::CONT);
    // What the process that has it was not told cannot be wished for any more.
    let note = scratch.file("note", "content");
    for (option, value) in [("--codec", "zstd:3"), ("--hot-bytes", "1M")] {
        cfs!("import", note, "/note", "--data", data, option, value)
            .refused(2, &format!("{option} has no effect"));
    }
    cfs!("import", note, "/note", "--data", data).ok();
    server.stop();
    cfs!("server", "--data", data, "--pool-size", "100G").refused(2, "has no limit");
}

/// A server that ended gave back its directory a moment before the pool's file, and a command in between was told
/// that another process had the pool.
#[test]
fn a_pool_whose_process_is_about_to_end() {
    let scratch = Scratch::new();
    let data = make_pool(&scratch);
    let file = File::open(data.join("pool")).expect("a pool");
    let operation = rustix::fs::FlockOperation::LockExclusive;
    rustix::fs::flock(&file, operation).expect("nobody has it");
    let ending = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        drop(file);
    });
    cfs!("admin", "status", "--data", data).ok();
    ending.join().expect("it only waits");

    let file = File::open(data.join("pool")).expect("a pool");
    rustix::fs::flock(&file, operation).expect("nobody has it");
    cfs!("admin", "status", "--data", data).refused(4, "is in use by another process");
}

/// Mounting was tried last, so that a first run without FUSE made a pool before it failed.
#[test]
fn hosts_without_fuse() {
    if !as_root("hosts_without_fuse") || !can_mount("hosts_without_fuse") {
        return;
    }
    let scratch = Scratch::new();
    let (data, mnt) = (scratch.path("pool"), scratch.dir("mnt"));
    let file = scratch.file("file", "");
    for (hide, words) in [
        (
            "mount -t tmpfs none /dev".to_owned(),
            "/dev/fuse does not exist",
        ),
        (
            format!("mount --bind {} /dev/fuse", file.display()),
            "/dev/fuse is no device",
        ),
    ] {
        let binary = env!("CARGO_BIN_EXE_cfs");
        let script = format!("{hide} && exec {binary} mount --data \"$0\" \"$1\"");
        let mut unshare = std::process::Command::new("unshare");
        unshare
            .args(["--mount", "sh", "-c", &script])
            .args([&data, &mnt])
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        run(unshare).refused(6, words);
        assert!(!data.exists(), "nothing is made");
    }
}

#[test]
fn mount_points_that_cannot_be_used() {
    if !can_mount("mount_points_that_cannot_be_used") {
        return;
    }
    let scratch = Scratch::new();
    let data = scratch.path("pool");
    let full = scratch.dir("full");
    fs::write(full.join("file"), "content").expect("written");
    let file = scratch.file("file", "content");
    let outer = scratch.dir("outer");
    for (mount, words) in [
        (scratch.path("missing"), "does not exist"),
        (full, "is not empty"),
        (file, "is not a directory"),
    ] {
        cfs!("server", "--data", data, "--mount", mount).refused(6, words);
        cfs!("mount", "--data", data, mount, "--daemon").refused(6, words);
    }
    cfs!("mount", "--data", outer.join("pool"), outer).refused(6, "lies below the mount point");
    assert!(
        !data.exists() && !outer.join("pool").exists(),
        "nothing is made"
    );

    let mnt = scratch.dir("mnt");
    let server = Server::start(&data, Some(&mnt));
    cfs!("mount", "--data", scratch.path("second"), mnt).refused(6, "is mounted at");
    assert!(!scratch.path("second").exists(), "nothing is made");
    server.stop();
}

#[test]
fn hosts_that_are_read_only() {
    let scratch = Scratch::new();
    let host = scratch.dir("host");
    if is_root() {
        if !as_root_with_tmpfs(&host, "") {
            return;
        }
        mount_remount(&host, MountFlags::RDONLY, "").expect("remounted");
    } else {
        fs::set_permissions(&host, fs::Permissions::from_mode(0o555)).expect("our own");
    }
    let words = if is_root() { "read-only" } else { "permission" };
    cfs!("server", "--data", host.join("pool")).refused(7, words);
    // The directory itself may be empty and there.
    cfs!("server", "--data", host).refused(7, words);
    if is_root() {
        mount_remount(&host, MountFlags::empty(), "").expect("remounted");
    } else {
        fs::set_permissions(&host, fs::Permissions::from_mode(0o755)).expect("our own");
    }
    let data = host.join("pool");
    let source = scratch.file("note", "content");
    cfs!("import", source, "/note", "--data", data).ok();
    if is_root() {
        mount_remount(&host, MountFlags::RDONLY, "").expect("remounted");
        unchanged(&data, || {
            cfs!("admin", "status", "--data", data).ok();
            cfs!("import", source, "/more", "--data", data).refused(7, "read-only");
        });
    }
}

#[test]
fn hosts_that_are_full() {
    if !as_root("hosts_that_are_full") {
        return;
    }
    let scratch = Scratch::new();
    let host = scratch.dir("host");
    if !as_root_with_tmpfs(&host, "size=1m") {
        return;
    }
    let data = host.join("pool");
    cfs!("server", "--data", data).refused(7, "cannot make the pool");
    assert!(!data.exists(), "what was made is taken back");
}

#[test]
fn command_lines_that_make_no_sense() {
    let scratch = Scratch::new();
    let data = scratch.path("pool");
    let source = scratch.file("note", "content");
    for (option, value) in [
        ("--codec", "zip"),
        ("--codec", "zstd:20"),
        ("--cipher", "rot13"),
        ("--pool-size", "many"),
        ("--workers", "0"),
    ] {
        let done = cfs!("import", source, "/", "--data", data, option, value);
        assert_eq!(done.code, 2, "{done:?}");
    }
    cfs!("import", source, "/", "--data", data, "--pool-size", "1M").refused(2, "is too small");
    cfs!("import", source, "/a/../b", "--data", data).refused(2, "'..' in a path of the pool");
    cfs!("import", scratch.path("absent"), "/", "--data", data).refused(7, "no such file");
    for words in [
        &["admin", "clone", "/home@monday", "try"][..],
        &["admin", "clone", "try@monday", "/new"],
        &["admin", "volume", "create", "try"],
        &["admin", "volume", "set", "try", "--quota-bytes", "1M"],
        &["admin", "volume", "delete", "try"],
        &["admin", "snapshot", "create", "try", "monday"],
        &["admin", "snapshot", "list", "try"],
        &["admin", "snapshot", "diff", "try", "monday"],
        &["admin", "snapshot", "restore", "try", "monday"],
        &["admin", "snapshot", "policy", "try", "daily=1"],
        &["admin", "snapshot", "delete", "try", "monday"],
        &["admin", "snapshot", "hold", "try", "monday"],
        &["admin", "snapshot", "release", "try", "monday"],
        &["send", "try@monday"],
        &["receive", "try"],
        &["replicate", "try@monday", "second"],
        &["replicate", "/home@monday", "second", "--path", "try"],
    ] {
        let mut arguments: Vec<&dyn AsRef<OsStr>> = vec![&"--data", &data];
        arguments.splice(0..0, words.iter().map(|word| word as &dyn AsRef<OsStr>));
        let done = run(command(&arguments));
        assert!(done.stderr.contains("write /try"), "{words:?}: {done:?}");
        done.refused(2, "try is no path from the pool's root");
    }
    cfs!("server", "--data", data, "--log", "a=b=c").refused(2, "--log");
    let done = cfs!("frobnicate");
    assert_eq!(done.code, 2, "{done:?}");
    assert!(!data.exists(), "nothing is made");
}

/// Another program took the last byte of the disk, the server was killed, and could not be started again: it wanted
/// new room for its tables, although it had left some unused.
#[test]
fn a_pool_opens_on_a_host_that_others_have_filled() {
    if !as_root("a_pool_opens_on_a_host_that_others_have_filled") {
        return;
    }
    let scratch = Scratch::new();
    let (host, source) = (scratch.dir("host"), scratch.dir("source"));
    if !as_root_with_tmpfs(&host, "size=160m") {
        return;
    }
    fs::write(source.join("large"), crate::trees::noise(77, 40 << 20)).expect("written");
    let data = host.join("pool");
    let server = Server::start(&data, None);
    cfs!("import", "-T", source, "/tree", "--data", data).ok();
    let mut filler = File::create(host.join("filler")).expect("a file");
    while filler.write(&[1; 4096]).is_ok_and(|bytes| bytes > 0) {}
    drop(filler);
    cfs!("import", "-T", source, "/again", "--data", data);
    server.kill();

    let server = Server::start(&data, None);
    let out = scratch.path("out");
    cfs!("export", "-T", "/tree", out, "--data", data).ok();
    crate::trees::assert_same(&source, &out);
    fs::remove_file(host.join("filler")).expect("removed");
    cfs!("import", "-T", source, "/again", "--data", data).ok();
    cfs!("admin", "fsck", "--data", data).ok();
    server.stop();
}
