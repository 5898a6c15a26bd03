//! `cfs bench`: figures that could be true, nothing left behind.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::cfs;
use crate::support::{Scratch, as_root, as_root_with_tmpfs, command, eventually, interrupt};

#[test]
fn measures_parts_disk_and_pool_and_leaves_nothing() {
    let scratch = Scratch::new();
    let dir = scratch.dir("disk");
    let done = cfs!(
        "bench",
        dir,
        "--seconds",
        "2",
        "--codec",
        "zstd:1",
        "--json"
    )
    .ok();
    assert_eq!(done.stderr, "");
    let report = done.json();
    assert_eq!(report["codec"], "zstd:1");
    let positive = |value: &serde_json::Value| value.as_f64().is_some_and(|rate| rate > 0.0);
    for part in report["parts"].as_array().expect("parts") {
        assert!(positive(&part["text_bytes_per_second"]), "{part}");
        assert!(positive(&part["random_bytes_per_second"]), "{part}");
    }
    for rate in [
        "write_bytes_per_second",
        "read_bytes_per_second",
        "flush_seconds",
    ] {
        assert!(positive(&report["disk"][rate]), "{report}");
    }
    let paths = report["paths"].as_array().expect("paths");
    assert_eq!(paths.len(), 8);
    for path in paths {
        assert!(positive(&path["measured"]), "{path}");
    }
    // What does not compress needs all of the disk, and what was stored before nothing of it.
    let limit = |name: &str| {
        let path = paths.iter().find(|path| path["name"] == name);
        path.unwrap_or_else(|| panic!("no {name} in {report}"))["limited_by"].clone()
    };
    assert_ne!(limit("store the same bytes again"), "the disk");
    assert_eq!(fs::read_dir(&dir).expect("a directory").count(), 0);
}

#[test]
fn an_interrupted_bench_leaves_nothing() {
    let scratch = Scratch::new();
    let dir = scratch.dir("disk");
    let mut bench: Command = command(&[&"bench", &dir]);
    let mut child = bench.spawn().expect("the command starts");
    let started = Instant::now();
    eventually("the bench has begun", || {
        fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_some())
    });
    interrupt(&child, Duration::ZERO);
    let status = child.wait().expect("our own child");
    assert_eq!(status.code(), Some(130));
    assert!(started.elapsed() < Duration::from_secs(20));
    assert_eq!(fs::read_dir(&dir).expect("a directory").count(), 0);
}

#[test]
fn a_bench_of_what_is_no_directory_is_refused() {
    let scratch = Scratch::new();
    cfs!("bench", scratch.path("absent")).refused(2, "absent does not exist");
    cfs!("bench", scratch.file("file", "content")).refused(2, "file is no directory");
}

#[test]
fn a_bench_without_room_names_the_directory_that_was_given() {
    if !as_root("a_bench_without_room_names_the_directory_that_was_given") {
        return;
    }
    let scratch = Scratch::new();
    let disk = scratch.dir("disk");
    if !as_root_with_tmpfs(&disk, "size=1m") {
        return;
    }
    let words = format!("{} has ", disk.display());
    cfs!("bench", disk).refused(7, &words);
    assert_eq!(fs::read_dir(&disk).expect("a directory").count(), 0);
}
