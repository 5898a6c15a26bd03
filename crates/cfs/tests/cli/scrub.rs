//! Damage to a pool's file: what scrub finds, restores and names, and that one block costs no more than its data.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cfs;
use crate::support::{Scratch, Server, can_mount, command, interrupt};
use crate::trees::{assert_same, noise};

const BLOCK: u64 = 4096;
const SEGMENT_BYTES: u64 = 2 << 20;

/// A pool with a few files, and where the tree comes from.
fn make_pool(scratch: &Scratch) -> (PathBuf, PathBuf) {
    let (data, source) = (scratch.path("pool"), scratch.dir("source"));
    fs::write(source.join("large"), noise(1, 700_000)).expect("a file");
    fs::write(source.join("small"), noise(2, 3_000)).expect("a file");
    fs::create_dir(source.join("many")).expect("a directory");
    for number in 0..120_u64 {
        let content = noise(3 + number, (number * 131 % 20_000) as usize);
        fs::write(source.join(format!("many/{number}")), content).expect("a file");
    }
    fs::hard_link(source.join("large"), source.join("many/large-too")).expect("a link");
    cfs!("import", "-T", source, "/tree", "--data", data).ok();
    (data, source)
}

/// Where the chunks of a file lie in the pool: range in the file, place in the pool's file.
fn chunks_of(data: &Path, path: &str) -> Vec<(u64, u64, u64)> {
    let listed = cfs!("debug", "extents", path, "--data", data).ok().stdout;
    let number = |text: &str| text.trim_matches('+').parse::<u64>().expect("a number");
    listed
        .lines()
        .filter_map(|line| {
            let (range, place) = line.split_once("  segment ")?;
            let mut range = range.split_whitespace();
            let (start, len) = (number(range.next()?), number(range.next()?));
            let (segment, offset) = place.split_once(" offset ")?;
            let at = number(segment) * SEGMENT_BYTES + number(offset.trim());
            Some((start, start + len - 1, at))
        })
        .collect()
}

fn spoil(pool: &Path, at: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(pool).expect("the pool");
    file.write_all_at(bytes, at).expect("written");
}

fn scrub(data: &Path) -> (i32, Value) {
    let done = cfs!("admin", "scrub", "--json", "--data", data);
    (done.code, done.json())
}

fn named(report: &Value) -> BTreeSet<String> {
    let list = report["list"].as_array().expect("a list");
    list.iter()
        .map(|finding| {
            assert_eq!(finding["id"], "unreadable", "{report}");
            finding["object"].as_str().expect("text").to_owned()
        })
        .collect()
}

#[test]
fn damaged_content_is_named_costs_its_ranges_and_is_healed_by_the_same_content() {
    let scratch = Scratch::new();
    let (data, source) = make_pool(&scratch);
    let (code, clean) = scrub(&data);
    assert_eq!((code, &clean["clean"]), (0, &true.into()), "{clean}");
    assert!(clean["chunks"].as_u64() > Some(50), "{clean}");
    let chunks = chunks_of(&data, "/tree/large");
    let (first, last, at) = chunks[1];
    spoil(&data.join("pool"), at + 5_000, b"rot");

    let name = "damaged_content_is_named_costs_its_ranges_and_is_healed_by_the_same_content";
    let mount = can_mount(name).then(|| scratch.dir("mount"));
    let server = Server::start(&data, mount.as_deref());
    let done = cfs!("admin", "scrub", "--data", data);
    assert_eq!(done.code, 1, "{done:?}");
    for path in ["/tree/large", "/tree/many/large-too"] {
        let line = format!("unreadable  {path}  bytes {first}-{last} cannot be read");
        assert!(done.stdout.contains(&line), "{line:?} is not in {done:?}");
    }
    assert!(done.stdout.contains("2 findings: "), "{done:?}");
    assert!(done.stdout.contains("1 bad chunks in 1 files"), "{done:?}");
    cfs!("admin", "fsck", "--data", data).ok();

    if let Some(mount) = &mount {
        let whole = noise(1, 700_000);
        let file = File::open(mount.join("tree/large")).expect("it opens");
        // Around the damage, as near as the kernel's pages allow; and in the midst of it.
        let before_end = (first / BLOCK * BLOCK) as usize;
        let mut before = vec![0; before_end];
        file.read_exact_at(&mut before, 0).expect("readable");
        assert!(before == whole[..before_end]);
        let after_start = (last + 1).next_multiple_of(BLOCK);
        let mut after = vec![0; whole.len() - after_start as usize];
        file.read_exact_at(&mut after, after_start)
            .expect("readable");
        assert!(after == whole[after_start as usize..]);
        for place in [first, (first + last) / 2, last] {
            let error = file.read_at(&mut [0; 1], place).expect_err("damaged");
            assert_eq!(
                error.raw_os_error(),
                Some(rustix::io::Errno::IO.raw_os_error()),
                "at {place}"
            );
        }
        let other = fs::read(mount.join("tree/many/7")).expect("readable");
        assert!(other == fs::read(source.join("many/7")).expect("a file"));
    }
    match &mount {
        Some(mount) => fs::write(mount.join("again"), noise(1, 700_000)).expect("written"),
        None => drop(cfs!("import", source.join("large"), "/again", "--data", data).ok()),
    }
    let (code, healed) = scrub(&data);
    assert_eq!((code, &healed["findings"]), (0, &0.into()), "{healed}");
    if let Some(mount) = &mount {
        let healed = fs::read(mount.join("tree/large")).expect("readable");
        assert!(healed == noise(1, 700_000));
    }
    server.stop();
    let out = scratch.path("out");
    cfs!("export", "/tree", out, "--data", data).ok();
    assert_same(&source, &out);
}

/// What one process has found to be damaged the next ones know: they tell it, and heal it.
#[test]
fn damage_that_a_reader_has_met_is_known_to_later_processes() {
    let scratch = Scratch::new();
    let (data, source) = make_pool(&scratch);
    let (_, _, at) = chunks_of(&data, "/tree/large")[1];
    spoil(&data.join("pool"), at + 5_000, b"rot");
    let out = scratch.path("out");
    let done = cfs!("export", "/tree", out, "--data", data);
    assert_eq!(done.code, 1, "{done:?}");

    let health = || {
        let status = cfs!("admin", "status", "--json", "--data", data).ok();
        status.json()["health"].as_str().map(str::to_owned)
    };
    assert_eq!(health().as_deref(), Some("damaged"));
    cfs!("admin", "fsck", "--data", data).ok();
    cfs!("import", source.join("large"), "/again", "--data", data).ok();
    assert_eq!(health().as_deref(), Some("good"));
    let (code, healed) = scrub(&data);
    assert_eq!((code, &healed["findings"]), (0, &0.into()), "{healed}");
    cfs!("admin", "fsck", "--data", data).ok();
    fs::remove_dir_all(&out).expect("what could be read");
    cfs!("export", "/tree", out, "--data", data).ok();
    assert_same(&source, &out);

    // And what was damaged for a while only is good again once a scrub has read it.
    let place = chunks_of(&data, "/tree/large")[1].2 + 5_000;
    let pool = File::open(data.join("pool")).expect("the pool");
    let mut right = [0; 3];
    pool.read_exact_at(&mut right, place).expect("readable");
    spoil(&data.join("pool"), place, b"rot");
    assert_eq!(scrub(&data).0, 1);
    assert_eq!(health().as_deref(), Some("damaged"));
    spoil(&data.join("pool"), place, &right);
    assert_eq!(scrub(&data).0, 0);
    assert_eq!(health().as_deref(), Some("good"));
}

/// And it meets all damage of the file, so that the same content heals it.
#[test]
fn an_export_that_fails_leaves_what_was_there() {
    let scratch = Scratch::new();
    let (data, source) = make_pool(&scratch);
    let chunks = chunks_of(&data, "/tree/large");
    assert!(chunks.len() > 3, "{chunks:?}");
    for (_, _, at) in [chunks[1], chunks[2], chunks[chunks.len() - 1]] {
        spoil(&data.join("pool"), at + 1_000, b"rot");
    }
    let out = scratch.dir("out");
    let copy = out.join("large");
    fs::write(&copy, "an older copy").expect("a file");
    fs::write(out.join(".large.cfs-part"), "of a killed export").expect("a file");
    let export = || cfs!("export", "-T", "/tree/large", copy, "--data", data);
    let listed = || fs::read_dir(&out).expect("a directory").count();
    // It is not ours: its mode is another.
    assert_eq!(export().code, 1);
    assert_eq!(listed(), 2);
    fs::write(&copy, "an older copy").expect("a file");
    fs::remove_file(out.join(".large.cfs-part")).expect("removed");
    scratch.file("out/.large.cfs-part", "of a killed export");
    assert_eq!(export().code, 1);
    assert_eq!(fs::read(&copy).expect("a file"), b"an older copy");
    assert_eq!(listed(), 1);
    cfs!("import", source.join("large"), "/again", "--data", data).ok();
    export().ok();
    assert!(fs::read(&copy).expect("a file") == noise(1, 700_000));
    assert_eq!(listed(), 1);
    assert_eq!(scrub(&data).0, 0);
}

#[test]
fn a_scrub_can_be_slow_and_interrupted() {
    let scratch = Scratch::new();
    let (data, source) = make_pool(&scratch);
    cfs!("admin", "scrub", "--rate", "0", "--data", data).refused(2, "would never end");
    for served in [false, true] {
        let server = served.then(|| Server::start(&data, None));
        let mut slow = command(&[&"admin", &"scrub", &"--rate", &"100K/s", &"--data", &data]);
        let child = slow.spawn().expect("it starts");
        interrupt(&child, std::time::Duration::from_millis(700));
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "served {served}: {said}");
        if let Some(server) = server {
            server.stop();
        }
    }
    let (code, report) = scrub(&data);
    assert_eq!(code, 0, "{report}");
    let out = scratch.path("out");
    cfs!("export", "/tree", out, "--data", data).ok();
    assert_same(&source, &out);
}

/// On a terminal, which `script` makes, it says how far it is and how long it will take.
#[test]
fn a_scrub_shows_its_progress() {
    let scratch = Scratch::new();
    let (data, _) = make_pool(&scratch);
    let program = env!("CARGO_BIN_EXE_cfs");
    let scrub = format!("{program} admin scrub --rate 2M --data {}", data.display());
    let mut shown = std::process::Command::new("script");
    shown.args(["-qec", &scrub, "/dev/null"]);
    let output = shown.output().expect("`script` of util-linux runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    let is_progress =
        |line: &str| line.contains("scrub: ") && line.contains(" % of ") && line.contains(" left");
    assert!(text.split('\r').any(is_progress), "{text:?}");
}

/// Files that change while it reads are no findings.
#[test]
fn a_scrub_beside_writers_finds_nothing() {
    let scratch = Scratch::new();
    let (data, source) = make_pool(&scratch);
    let server = Server::start(&data, None);
    let copier = std::thread::spawn({
        let (data, source) = (data.clone(), source.clone());
        move || {
            for round in 0..8_u64 {
                fs::write(source.join("large"), noise(1000 + round, 6_000_000)).expect("a file");
                cfs!("import", "-T", source, "/tree", "--data", data).ok();
            }
        }
    });
    let mut scrubs = 0;
    while !copier.is_finished() || scrubs == 0 {
        let (code, report) = scrub(&data);
        assert_eq!(code, 0, "{report}");
        scrubs += 1;
    }
    copier.join().expect("the copies were made");
    server.stop();
}

/// The files of `make_pool`, by path.
fn contents_below(source: &Path) -> Vec<(String, Vec<u8>)> {
    let many = (0..120).map(|number| format!("many/{number}"));
    ["large", "small", "many/large-too"]
        .map(str::to_owned)
        .into_iter()
        .chain(many)
        .map(|path| {
            let content = fs::read(source.join(&path)).expect("a file");
            (path, content)
        })
        .collect()
}

/// One block after the other of the pool's file is overwritten: a few of them, or with `CFS_ROT=all` all.
#[test]
fn a_damaged_block_of_the_file_costs_no_more_than_its_data() {
    let scratch = Scratch::new();
    let (data, source) = make_pool(&scratch);
    let pool = data.join("pool");
    let whole = fs::read(&pool).expect("a pool");
    let blocks: Vec<u64> = whole
        .chunks(BLOCK as usize)
        .zip(0..)
        .filter(|(block, _)| block.iter().any(|byte| *byte != 0))
        .map(|(_, number)| number)
        .collect();
    let contents = contents_below(&source);
    let all = std::env::var("CFS_ROT").is_ok_and(|value| value == "all");
    let step = if all { 1 } else { blocks.len() / 24 };
    let mut lossy = 0;
    for (index, block) in blocks.into_iter().enumerate().skip(step / 2).step_by(step) {
        fs::write(&pool, &whole).expect("written");
        let damage = match index % 3 {
            0 => vec![0; BLOCK as usize],
            1 => noise(block, BLOCK as usize),
            _ => {
                let start = (block * BLOCK) as usize;
                let mut bytes = whole[start..start + BLOCK as usize].to_vec();
                bytes[index * 37 % BLOCK as usize] ^= 4;
                bytes
            }
        };
        spoil(&pool, block * BLOCK, &damage);
        let replay =
            format!("block {block}; all: CFS_ROT=all cargo test --release -p cfs --test cli");
        let (code, report) = scrub(&data);
        assert!(matches!(code, 0 | 1), "{replay}: {report}");
        let lost = named(&report);
        assert_eq!(code == 1, !lost.is_empty(), "{replay}: {report}");
        let fsck = cfs!("admin", "fsck", "--data", data);
        assert_eq!(fsck.code, 0, "{replay}: {fsck:?}");
        let out = scratch.path("out");
        let _ = fs::remove_dir_all(&out);
        let done = cfs!("export", "/tree", out, "--data", data);
        assert_eq!(done.code == 0, lost.is_empty(), "{replay}: {done:?}");
        // Nothing of a chunk lies more than one chunk's length from it.
        let is_near = |path: &String| {
            let chunks = chunks_of(&data, path);
            chunks.iter().any(|(first, last, at)| {
                let end = at + (last - first) + BLOCK;
                *at < (block + 1) * BLOCK && block * BLOCK < end
            })
        };
        assert!(lost.iter().all(is_near), "{replay}: {report}");
        for (path, content) in &contents {
            if !lost.contains(&format!("/tree/{path}")) {
                let now = fs::read(out.join(path)).expect("exported");
                assert!(now == *content, "{replay}: {path}");
            }
        }
        lossy += u32::from(!lost.is_empty());
    }
    assert!(lossy > 0, "no content was hit at all");
}
