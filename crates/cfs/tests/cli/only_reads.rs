//! Pools that are looked at and not written to: by commands that only look, and with `--read-only-pool`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, mount_bind, mount_remount};

use crate::cfs;
use crate::support::{Scratch, Server, as_root, can_mount, command, detach, eventually};
use crate::trees::{assert_same, noise};

/// A pool whose process was killed: its log has files that its tables have not. And the tree that it holds.
fn killed_pool(scratch: &Scratch) -> (PathBuf, PathBuf) {
    let (data, source) = (scratch.path("pool"), scratch.dir("source"));
    let serving = command(&[&"server", &"--data", &data, &"--s3", &"off"]);
    let server = Server::spawn(serving, &data, None);
    for number in 0..40_u64 {
        fs::write(
            source.join(format!("f{number}")),
            noise(number, (number * 4001) as usize),
        )
        .expect("a file");
    }
    cfs!("import", "-T", source, "/tree", "--data", data).ok();
    cfs!(
        "admin", "snapshot", "create", "/tree", "then", "--data", data
    )
    .ok();
    server.kill();
    (data, source)
}

/// What lies in a data directory, but for the lock, which says who has it.
fn content(data: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fs::read_dir(data)
        .expect("a directory")
        .map(|entry| entry.expect("an entry"))
        .filter(|entry| entry.file_type().expect("known").is_file() && entry.file_name() != "lock")
        .map(|entry| (entry.path(), fs::read(entry.path()).expect("a file")))
        .collect()
}

#[test]
fn commands_that_look_write_nothing() {
    let scratch = Scratch::new();
    let (data, source) = killed_pool(&scratch);
    let before = content(&data);
    for round in 0..2 {
        cfs!("admin", "fsck", "--data", data).ok();
        let status = cfs!("admin", "status", "--json", "--data", data)
            .ok()
            .json();
        assert_eq!(status["health"], "good", "{status}");
        cfs!("admin", "df", "--data", data).ok();
        let listed = cfs!("admin", "snapshot", "list", "--data", data).ok();
        assert!(listed.stdout.contains("then"), "{listed:?}");
        cfs!("debug", "inode", "/tree/f7", "--data", data).ok();
        assert!(content(&data) == before, "round {round}");
    }
    // One that reads content may find damage, and opens the pool as one that changes something does.
    let out = scratch.path("out");
    cfs!("export", "/tree", out, "--data", data).ok();
    assert_same(&source, &out);
    cfs!(
        "admin", "snapshot", "create", "/tree", "now", "--data", data
    )
    .ok();
    assert!(content(&data) != before);
    cfs!("admin", "fsck", "--data", data).ok();
}

#[test]
fn a_pool_that_cannot_be_written_to_is_read() {
    if !can_mount("a_pool_that_cannot_be_written_to_is_read")
        || !as_root("a_pool_that_cannot_be_written_to_is_read")
    {
        return;
    }
    let scratch = Scratch::new();
    let (data, source) = killed_pool(&scratch);
    let before = content(&data);
    let frozen = scratch.dir("frozen");
    mount_bind(&data, &frozen).expect("mounted");
    mount_remount(&frozen, MountFlags::BIND | MountFlags::RDONLY, c"").expect("mounted again");

    let out = scratch.path("out");
    let exported = cfs!("export", "/tree", out, "--data", frozen).ok();
    assert!(
        exported.stderr.contains("the pool is only read"),
        "{exported:?}"
    );
    assert_same(&source, &out);
    cfs!("admin", "fsck", "--data", frozen).ok();
    let changing = cfs!(
        "admin", "snapshot", "create", "/tree", "no", "--data", frozen
    );
    changing.refused(7, "read-only");

    let mounted = scratch.dir("mounted");
    let mut mounting = command(&[&"mount", &"--read-only-pool", &"--data", &frozen, &mounted]);
    mounting.args(["--s3", "off"]);
    let server = Server::spawn(mounting, &frozen, Some(&mounted));
    assert_same(&source, &mounted.join("tree"));
    assert_same(&source, &mounted.join("tree/.snapshots/then"));
    let error = fs::write(mounted.join("tree/new"), "no").expect_err("nothing is written");
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    // Who writes is kept out meanwhile, and told by whom; others who read are not.
    let writing = cfs!("admin", "snapshot", "create", "/tree", "no", "--data", data);
    let named = format!("already open by process {} (cfs mount", server.pid());
    writing.refused(4, &named);
    cfs!("admin", "fsck", "--data", frozen).ok();
    server.stop();
    assert!(content(&data) == before);
    // In the background too, where it can have no log.
    let daemon = cfs!(
        "mount",
        "--read-only-pool",
        "--data",
        frozen,
        mounted,
        "--daemon"
    )
    .ok();
    assert!(daemon.stderr.contains("there is no log"), "{daemon:?}");
    assert_same(&source, &mounted.join("tree"));
    detach(&mounted);
    eventually("the process in the background ends", || {
        cfs!(
            "admin", "snapshot", "create", "/tree", "then-too", "--data", data
        )
        .code
            == 0
    });
    cfs!(
        "admin", "snapshot", "create", "/tree", "now", "--data", data
    )
    .ok();
}

/// In a directory that can be written to the process is asked as any other, and refuses changes.
#[test]
fn a_server_of_a_pool_that_is_only_read_answers_and_refuses() {
    if !can_mount("a_server_of_a_pool_that_is_only_read_answers_and_refuses") {
        return;
    }
    let scratch = Scratch::new();
    let (data, source) = killed_pool(&scratch);
    let before = content(&data);
    let mounted = scratch.dir("mounted");
    let mounting = command(&[&"mount", &"--read-only-pool", &"--data", &data, &mounted]);
    let server = Server::spawn(mounting, &data, Some(&mounted));
    assert_same(&source, &mounted.join("tree"));
    let status = cfs!("admin", "status", "--json", "--data", data)
        .ok()
        .json();
    assert_eq!(status["health"], "read-only", "{status}");
    assert!(
        status["health_reason"]
            .as_str()
            .is_some_and(|it| it.contains("opened to be read only")),
        "{status}"
    );
    cfs!("admin", "fsck", "--data", data).ok();
    let changing = cfs!("admin", "snapshot", "create", "/tree", "no", "--data", data);
    assert_ne!(changing.code, 0, "{changing:?}");
    assert!(changing.stderr.contains("read-only"), "{changing:?}");
    server.stop();
    assert!(content(&data) == before);
    // S3 has no key there, and can get none.
    let serving = command(&[
        &"server",
        &"--read-only-pool",
        &"--data",
        &data,
        &"--s3",
        &"127.0.0.1:0",
    ]);
    let server = Server::spawn(serving, &data, None);
    assert!(
        server.said().contains("no S3 root key"),
        "{}",
        server.said()
    );
    server.stop();
    assert!(content(&data) == before);
    let differing = cfs!(
        "mount",
        "--read-only-pool",
        "--codec",
        "zstd:9",
        "--data",
        data,
        mounted
    );
    differing.refused(2, "--codec differs");
    let nothing = scratch.path("nothing");
    let refused = cfs!("mount", "--read-only-pool", "--data", nothing, mounted);
    refused.refused(5, "there is no pool");
}
