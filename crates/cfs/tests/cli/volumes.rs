//! Volumes with quotas, and policies, through the mount and the admin commands.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use crate::cfs;
use crate::support::{Scratch, Server, can_mount};
use crate::trees::noise;

#[test]
fn a_volume_keeps_to_its_quota() {
    if !can_mount("a_volume_keeps_to_its_quota") {
        return;
    }
    let scratch = Scratch::new();
    let (data, mnt) = (scratch.path("pool"), scratch.dir("mnt"));
    let server = Server::start(&data, Some(&mnt));
    let volume = mnt.join("ann");
    assert!(!volume.exists(), "the kernel remembers that");
    cfs!(
        "admin",
        "volume",
        "create",
        "/ann",
        "--quota-bytes",
        "8M",
        "--quota-inodes",
        "20",
        "--data",
        data
    )
    .ok();
    assert!(volume.is_dir());
    cfs!("admin", "volume", "create", "/ann", "--data", data).refused(1, "is there already");
    let df = Command::new("df")
        .args(["--output=size,avail", "-B1"])
        .arg(&volume)
        .output()
        .expect("df");
    let df = String::from_utf8_lossy(&df.stdout).into_owned();
    let numbers: Vec<u64> = df
        .split_whitespace()
        .filter_map(|it| it.parse().ok())
        .collect();
    assert_eq!(numbers, [8 << 20, 8 << 20], "{df}");
    // What is in memory counts.
    let content = noise(3, 9 << 20);
    let mut file = File::create(volume.join("big")).expect("a file");
    let error = file.write_all(&content).expect_err("beyond the quota");
    assert_eq!(error.raw_os_error(), Some(122), "EDQUOT: {error}");
    let len = fs::metadata(volume.join("big")).expect("there").len();
    assert!(len <= 8 << 20 && len > 6 << 20, "{len}");
    drop(file);
    cfs!(
        "admin",
        "volume",
        "set",
        "/ann",
        "--quota-bytes",
        "0",
        "--data",
        data
    )
    .ok();
    fs::write(volume.join("big"), &content).expect("without a bound");
    let made = (0..30).find_map(|n| fs::write(volume.join(format!("f{n}")), b"x").err());
    assert_eq!(made.expect("refused").raw_os_error(), Some(122));

    // Names stay in it; mv copies.
    fs::create_dir(mnt.join("d")).expect("a directory");
    let error = fs::rename(volume.join("big"), mnt.join("big")).expect_err("another volume");
    assert_eq!(error.raw_os_error(), Some(18), "EXDEV: {error}");
    let error = fs::hard_link(volume.join("f0"), mnt.join("f0")).expect_err("another volume");
    assert_eq!(error.raw_os_error(), Some(18), "EXDEV: {error}");
    let moved = Command::new("mv")
        .args([volume.join("big"), mnt.join("big")])
        .status();
    assert!(moved.expect("mv").success());
    assert_eq!(fs::read(mnt.join("big")).expect("read"), content);
    fs::rename(&volume, mnt.join("d/ann")).expect("its own name moves");
    let volume = mnt.join("d/ann");
    assert_eq!(
        fs::metadata(volume.join("..")).expect("there").ino(),
        fs::metadata(mnt.join("d")).expect("there").ino()
    );

    let listed = cfs!("admin", "volume", "list", "--json", "--data", data)
        .ok()
        .json();
    assert_eq!(listed["volumes"][1]["path"], "/d/ann");
    assert_eq!(listed["volumes"][1]["quota_inodes"], 20);
    cfs!(
        "admin", "snapshot", "create", "/d/ann", "--name", "s", "--data", data
    )
    .ok();
    let error = fs::remove_dir(&volume).expect_err("it is a volume");
    assert_eq!(error.raw_os_error(), Some(16), "EBUSY: {error}");
    cfs!("admin", "volume", "delete", "/d/ann", "--data", data).refused(1, "has snapshots");
    let open = fs::File::open(volume.join("f0")).expect("open");
    cfs!(
        "admin",
        "volume",
        "delete",
        "/d/ann",
        "--recursive",
        "--data",
        data
    )
    .refused(1, "/d/ann/f0: it is open; nothing was changed");
    drop(open);
    assert!(volume.join("f0").exists() && volume.join(".snapshots/s/f0").exists());
    cfs!("admin", "volume", "delete", "/d", "--data", data).refused(1, "is no volume");
    cfs!("admin", "fsck", "--data", data).ok();
    cfs!(
        "admin",
        "volume",
        "delete",
        "/d/ann",
        "--recursive",
        "--data",
        data
    )
    .ok();
    assert!(!volume.exists());
    cfs!("admin", "fsck", "--data", data).ok();
    server.stop();
    cfs!("admin", "gc", "--recount", "--data", data).ok();
}

/// All that was in the pool was removed before the command was refused.
#[test]
fn the_pool_itself_is_no_volume_to_remove() {
    let scratch = Scratch::new();
    let data = scratch.path("pool");
    let source = scratch.file("file", "content");
    cfs!("import", source, "/", "--data", data).ok();
    cfs!(
        "admin",
        "volume",
        "delete",
        "/",
        "--recursive",
        "--data",
        data
    )
    .refused(2, "the volume / is the pool itself");
    let exported = scratch.path("exported");
    cfs!("export", "/file", exported, "-T", "--data", data).ok();
    assert_eq!(fs::read(exported).expect("read"), b"content");
}

#[test]
fn policies_and_ids() {
    let scratch = Scratch::new();
    let data = scratch.path("pool");
    let source = scratch.dir("home");
    fs::write(source.join("file"), noise(4, 100_000)).expect("a file");
    cfs!("import", source, "/", "--data", data).ok();
    let refused = |policy: &str, words: &str| {
        cfs!(
            "admin", "snapshot", "policy", "/home", policy, "--data", data
        )
        .refused(2, words);
    };
    refused("yearly=3", "none of hourly");
    refused("daily=0", "no number from 1");
    cfs!(
        "admin", "snapshot", "policy", "/nowhere", "daily=1", "--data", data
    )
    .refused(1, "/nowhere");
    let policy = "hourly=2,daily=7";
    cfs!(
        "admin", "snapshot", "policy", "/home", policy, "--data", data
    )
    .ok();
    let server = Server::start(&data, None);
    let list = || {
        cfs!("admin", "snapshot", "list", "--json", "--data", data)
            .ok()
            .json()
    };
    crate::support::eventually("snapshots that are due", || {
        list()["snapshots"]
            .as_array()
            .is_some_and(|all| all.len() == 2)
    });
    let told = cfs!("admin", "snapshot", "policy", "--json", "--data", data)
        .ok()
        .json();
    assert_eq!(told["policies"][0]["path"], "/home");
    assert_eq!(told["policies"][0]["policy"], policy);
    cfs!(
        "admin", "snapshot", "policy", "/home", "--remove", "--data", data
    )
    .ok();
    let id = list()["snapshots"][0]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    cfs!("admin", "snapshot", "hold", "--id", id, "--data", data).ok();
    cfs!("admin", "snapshot", "delete", "--id", id, "--data", data).refused(1, "is held");
    cfs!("admin", "snapshot", "release", "--id", id, "--data", data).ok();
    cfs!("admin", "snapshot", "delete", "--id", id, "--data", data).ok();
    cfs!("admin", "snapshot", "delete", "--id", id, "--data", data)
        .refused(1, "there is no snapshot");
    assert_eq!(list()["snapshots"].as_array().map(Vec::len), Some(1));
    server.stop();
}
