//! Pools whose checkpoint or tables are destroyed, and what `cfs repair --rebuild-index` brings back.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cfs;
use crate::support::{Scratch, Server, command};
use crate::trees::{assert_same, noise};

const SEGMENT_BYTES: u64 = 2 << 20;

/// A pool with some files and directories, made by two processes, and where the tree comes from.
fn make_pool(scratch: &Scratch) -> (PathBuf, PathBuf) {
    let (data, source) = (scratch.path("pool"), scratch.dir("source"));
    for number in 0..150_u64 {
        let directory = source.join(format!("d{}", number % 7));
        fs::create_dir_all(&directory).expect("a directory");
        let content = noise(number, (number * 997 % 90_000) as usize);
        fs::write(directory.join(format!("f{number}")), content).expect("a file");
    }
    std::os::unix::fs::symlink("d1/f1", source.join("link")).expect("a link");
    fs::hard_link(source.join("d1/f1"), source.join("d2/hard")).expect("a link");
    cfs!("import", "-T", source, "/tree", "--data", data).ok();
    fs::write(source.join("later"), noise(7, 300_000)).expect("a file");
    cfs!("import", "-T", source, "/tree", "--data", data).ok();
    (data, source)
}

fn erase(data: &Path, segment: u64) {
    let file = File::options()
        .write(true)
        .open(data.join("pool"))
        .expect("the pool");
    let zeros = vec![0; SEGMENT_BYTES as usize];
    file.write_all_at(&zeros, segment * SEGMENT_BYTES)
        .expect("written");
}

/// The segments that a field of the superblock names.
fn segments_of(data: &Path, field: &str) -> Vec<u64> {
    let printed = cfs!("debug", "superblock", "--data", data).ok().stdout;
    let lines = printed.lines().filter(|line| line.starts_with(field));
    lines
        .map(|line| {
            let number = line.split("segment ").nth(1).expect("a segment");
            let number = number.split(' ').next().expect("a number");
            number.parse().expect("a number")
        })
        .collect()
}

/// Segments whose debug output has this word in it.
fn segments_with(data: &Path, word: &str) -> Vec<u64> {
    let server = Server::start(data, None);
    let count = fs::metadata(data.join("pool")).expect("the pool").len() / SEGMENT_BYTES;
    let is_one = |segment: &u64| {
        let number = segment.to_string();
        let printed = cfs!("debug", "segment", number, "--data", data).ok().stdout;
        printed.contains("full (Table)") && printed.contains(word)
    };
    let found = (2..count).filter(is_one).collect();
    server.stop();
    found
}

fn rebuild(data: &Path) -> (i32, Value) {
    let done = cfs!("repair", "--rebuild-index", "--json", "--data", data);
    assert!(done.code == 0 || done.code == 1, "{done:?}");
    (done.code, done.json())
}

fn assert_all_is_there(scratch: &Scratch, data: &Path, source: &Path) {
    cfs!("admin", "fsck", "--data", data).ok();
    cfs!("admin", "scrub", "--data", data).ok();
    let out = scratch.path("out");
    let _ = fs::remove_dir_all(&out);
    cfs!("export", "/tree", out, "--data", data).ok();
    assert_same(source, &out);
}

#[test]
fn a_pool_without_superblock_and_manifests_comes_back_whole() {
    let scratch = Scratch::new();
    let (data, source) = make_pool(&scratch);
    let manifests = segments_of(&data, "manifest");
    assert_eq!(manifests.len(), 2);
    for (anchors, manifests) in [(true, &[][..]), (false, &manifests), (true, &manifests)] {
        let copy = scratch.path("copy");
        let _ = fs::remove_dir_all(&copy);
        fs::create_dir(&copy).expect("a directory");
        for name in ["pool", "key", "superblock"] {
            fs::copy(data.join(name), copy.join(name)).expect("copied");
        }
        let anchors = if anchors { &[0, 1][..] } else { &[] };
        anchors
            .iter()
            .chain(manifests)
            .for_each(|it| erase(&copy, *it));
        let refused = cfs!("admin", "fsck", "--data", copy);
        refused.refused(5, "cfs repair --rebuild-index");
        let (code, report) = rebuild(&copy);
        assert_eq!((code, &report["findings"]), (0, &0.into()), "{report}");
        assert_eq!(
            report["superblock_from_copy"],
            Value::Bool(!anchors.is_empty()),
            "{report}"
        );
        assert_all_is_there(&scratch, &copy, &source);
        // And it is a pool like any other.
        fs::write(scratch.path("new"), noise(99, 200_000)).expect("a file");
        cfs!("import", scratch.path("new"), "/new", "--data", copy).ok();
        assert_all_is_there(&scratch, &copy, &source);
    }
}

#[test]
fn what_was_in_lost_tables_is_listed_and_the_rest_is_there() {
    let scratch = Scratch::new();
    let (data, source) = make_pool(&scratch);
    let tables = segments_with(&data, "of a run of the meta tree");
    assert!(!tables.is_empty());
    // The pool has one small run or a few; half of each is lost, which parity cannot bring back.
    let file = File::options()
        .read(true)
        .write(true)
        .open(data.join("pool"))
        .expect("the pool");
    for segment in tables {
        let mut head = vec![0; SEGMENT_BYTES as usize];
        file.read_exact_at(&mut head, segment * SEGMENT_BYTES)
            .expect("read");
        let used = head.iter().rposition(|byte| *byte != 0).unwrap_or(0);
        // A small segment has a parity block for each other one.
        let (from, to) = (used / 8 / 4096 * 4096, used / 8 * 7);
        let rot = noise(segment, to - from);
        file.write_all_at(&rot, segment * SEGMENT_BYTES + from as u64)
            .expect("written");
    }
    drop(file);
    let (code, report) = rebuild(&data);
    assert_eq!(code, 1, "{report}");
    assert!(report["lost_blocks"].as_u64() > Some(0), "{report}");
    let list = report["list"].as_array().expect("a list");
    assert!(!list.is_empty(), "{report}");
    let ids: BTreeSet<&str> = list.iter().filter_map(|it| it["id"].as_str()).collect();
    assert!(ids.contains("rows"), "{ids:?}");
    let fsck = cfs!("admin", "fsck", "--json", "--data", data).json();
    for finding in fsck["list"].as_array().expect("a list") {
        assert_eq!(finding["id"], "chunk-lost", "{fsck}");
    }
    // What is there reads as it was. What is not was in the list, or in a range of it.
    let out = scratch.path("out");
    let exported = cfs!("export", "/", out, "--data", data);
    assert!(exported.code == 0 || exported.code == 1, "{exported:?}");
    let mut intact = 0;
    for number in 0..150 {
        let name = format!("d{}/f{number}", number % 7);
        if let Ok(found) = fs::read(out.join("tree").join(&name)) {
            assert!(
                found == fs::read(source.join(&name)).expect("a file"),
                "{name} reads other bytes than it held"
            );
            intact += 1;
        }
    }
    println!("{intact} of 150 files are intact; {} findings", list.len());
}

#[test]
fn files_of_which_content_is_lost_are_listed_by_their_paths() {
    let scratch = Scratch::new();
    let (data, source) = make_pool(&scratch);
    let extents = cfs!("debug", "extents", "/tree/later", "--data", data).ok();
    let segment = extents.stdout.split("segment ").nth(1).expect("a chunk");
    let segment = segment.split(' ').next().expect("a number");
    let segment: u64 = segment.parse().expect("a number");
    for lost in segments_of(&data, "manifest").into_iter().chain([segment]) {
        erase(&data, lost);
    }
    let (code, report) = rebuild(&data);
    assert_eq!(code, 1, "{report}");
    let list = report["list"].as_array().expect("a list");
    let listed: BTreeSet<&str> = list
        .iter()
        .map(|finding| finding["object"].as_str().expect("text"))
        .collect();
    assert!(listed.contains("/tree/later"), "{listed:?}");

    let out = scratch.path("out");
    let exported = cfs!("export", "/tree", out, "--data", data);
    assert_eq!(exported.code, 1, "{exported:?}");
    let mut names: Vec<String> = (0..150)
        .map(|number| format!("d{}/f{number}", number % 7))
        .collect();
    names.extend(["later", "d2/hard"].map(str::to_owned));
    for name in names {
        let is_whole = fs::read(out.join(&name))
            .is_ok_and(|found| found == fs::read(source.join(&name)).expect("a file"));
        let is_listed = listed.contains(format!("/tree/{name}").as_str());
        assert_ne!(is_whole, is_listed, "{name}: {report}");
    }
}

#[test]
fn a_rebuild_is_refused_where_it_cannot_be() {
    let scratch = Scratch::new();
    let (data, source) = make_pool(&scratch);
    cfs!("repair", "--data", data).refused(2, "--rebuild-index");
    cfs!(
        "repair",
        "--rebuild-index",
        "--accept-log-loss",
        "--data",
        data
    )
    .refused(2, "cannot");
    let server = Server::start(&data, None);
    cfs!("repair", "--rebuild-index", "--data", data).refused(4, "stop");
    server.stop();
    let other_key = scratch.file("other", &format!("cfs-key-1 {}\n", "5".repeat(64)));
    cfs!(
        "repair",
        "--rebuild-index",
        "--key-file",
        other_key,
        "--data",
        data
    )
    .refused(3, "nothing");
    // A rebuild of a pool to which nothing has happened changes nothing that can be seen.
    let (code, report) = rebuild(&data);
    assert_eq!((code, &report["findings"]), (0, &0.into()), "{report}");
    assert_all_is_there(&scratch, &data, &source);
    erase(&data, 0);
    erase(&data, 1);
    fs::remove_file(data.join("superblock")).expect("it was kept");
    cfs!("repair", "--rebuild-index", "--data", data).refused(5, "not a ClaudeFS pool");
}

#[test]
fn a_passphrase_that_was_replaced_does_not_open_the_kept_superblock() {
    let scratch = Scratch::new();
    let (data, source) = make_pool(&scratch);
    let new = scratch.file("new", "another one of some length\n");
    let args: [&dyn AsRef<std::ffi::OsStr>; 7] = [
        &"admin",
        &"key",
        &"change-passphrase",
        &"--new-passphrase-file",
        &new,
        &"--data",
        &data,
    ];
    let key = fs::read(data.join("key")).expect("the key file");
    let old = scratch.path("old-key");
    fs::write(&old, key).expect("a file");
    let status = command(&args).status().expect("it runs");
    assert!(status.success());
    erase(&data, 0);
    erase(&data, 1);
    let refused = cfs!(
        "repair",
        "--rebuild-index",
        "--key-file",
        old,
        "--data",
        data
    );
    assert_ne!(refused.code, 0, "{refused:?}");
    let done = cfs!(
        "repair",
        "--rebuild-index",
        "--passphrase-file",
        new,
        "--data",
        data
    );
    assert_eq!(done.code, 0, "{done:?}");
    let out = scratch.path("out");
    cfs!(
        "export",
        "/tree",
        out,
        "--passphrase-file",
        new,
        "--data",
        data
    )
    .ok();
    assert_same(&source, &out);
}
