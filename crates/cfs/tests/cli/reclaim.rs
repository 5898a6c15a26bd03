//! Removed data give their room back to the host: the pool's file shrinks by itself, and soon.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cfs;
use crate::support::{Scratch, Server, can_mount, command, eventually, interrupt, run};
use crate::trees::{assert_same, noise};

/// In this time it must have come down.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a pool takes beside its live data and a tenth: 35 MiB with two cores.
fn fixed_bytes() -> u64 {
    let cores = std::thread::available_parallelism().map_or(2, usize::from) as u64;
    // Segments: two of the log, two lanes for each core and the cold one, two of dead chunks that are left alone, six that are
    // kept prepared.
    let whole = 2 + (2 * cores + 1) + 2 + 6;
    // Twelve that are kept started, eight of small tables and manifests.
    let starts = 12 + 8;
    whole * (2 << 20) + starts * (256 << 10)
}

struct World {
    data: PathBuf,
    mount: PathBuf,
    /// Files that are there, of which bytes do not shrink.
    files: Vec<(PathBuf, u64)>,
}

impl World {
    /// Many files of 1 KiB to 3 MiB, a good 200 MiB in all.
    fn fill(data: PathBuf, mount: PathBuf) -> Self {
        let mut files = Vec::new();
        for number in 0..400_u64 {
            let len = match number % 4 {
                0 => 1_000 + number * 37 % 9_000,
                1 => 10_000 + number * 7_919 % 90_000,
                2 => 100_000 + number * 7_919 % 700_000,
                _ => 800_000 + number * 7_919 % 2_200_000,
            };
            let directory = mount.join(format!("d{}", number % 7));
            fs::create_dir_all(&directory).expect("a directory");
            let path = directory.join(format!("f{number}"));
            fs::write(&path, noise(number + 1, len as usize)).expect("a file");
            files.push((path, len));
        }
        let file = fs::File::open(&files[0].0).expect("a file");
        file.sync_all().expect("synced");
        Self { data, mount, files }
    }

    fn host_bytes(&self) -> u64 {
        let pool = fs::metadata(self.data.join("pool")).expect("the pool");
        pool.blocks() * 512
    }

    fn live_bytes(&self) -> u64 {
        self.files.iter().map(|(_, len)| len).sum()
    }

    /// Removes files by a choice that is the same each time.
    fn remove(&mut self, mut is_removed: impl FnMut(u64) -> bool) {
        let mut number = 0;
        self.files.retain(|(path, _)| {
            number += 1;
            let removed = is_removed(number);
            if removed {
                fs::remove_file(path).expect("removed");
            }
            !removed
        });
    }

    #[track_caller]
    fn comes_down(&self, what: &str) {
        let (started, before) = (Instant::now(), self.host_bytes());
        let live = self.live_bytes();
        let allowed = live + live / 10 + fixed_bytes();
        loop {
            let now = self.host_bytes();
            if now <= allowed {
                let seconds = started.elapsed().as_secs_f64();
                println!("{what}: {live} live, from {before} to {now} in {seconds:.1} s");
                return;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "{what}: {live} bytes live, {allowed} allowed, the pool takes {now}: {}",
                cfs!("admin", "status", "--data", self.data).ok().stdout
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn started(scratch: &Scratch, name: &str) -> Option<(Server, PathBuf, PathBuf)> {
    if !can_mount(name) {
        return None;
    }
    let (data, mount) = (scratch.path("pool"), scratch.dir("mount"));
    let server = Server::start(&data, Some(&mount));
    Some((server, data, mount))
}

fn intact(files: &[(PathBuf, u64)]) {
    for (path, len) in files {
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name[1..].parse::<u64>().ok());
        let number = number.expect("named by its number");
        let content = fs::read(path).expect("readable");
        assert!(content == noise(number + 1, *len as usize), "{path:?}");
    }
}

#[test]
fn the_pool_shrinks_after_half_or_all_was_removed() {
    let scratch = Scratch::new();
    let name = "the_pool_shrinks_after_half_or_all_was_removed";
    let Some((server, data, mount)) = started(&scratch, name) else {
        return;
    };
    let mut world = World::fill(data, mount);
    assert!(world.host_bytes() > world.live_bytes());
    // A fixed sequence without a pattern.
    world.remove(|number| (number * 0x9e37_79b9) >> 13 & 1 == 0);
    world.comes_down("a random half");
    intact(&world.files);
    world.remove(|_| true);
    world.comes_down("everything");
    cfs!("admin", "fsck", "--data", world.data).ok();
    assert!(Path::new(&world.mount).exists());
    server.stop();
    assert!(world.host_bytes() < fixed_bytes());
}

/// A pool of which every second file was replaced; what was in them is dead, and nothing has been compacted yet.
fn half_dead(scratch: &Scratch) -> (PathBuf, PathBuf) {
    let (data, source) = (scratch.path("pool"), scratch.dir("source"));
    let write = |number: u64, seed: u64| {
        let path = source.join(format!("f{number}"));
        fs::write(path, noise(seed, 500_000)).expect("a file");
    };
    (0..160).for_each(|number| write(number, 1 + number));
    cfs!(
        "import",
        "-T",
        source,
        "/tree",
        "--workers",
        "1",
        "--data",
        data
    )
    .ok();
    (0..160)
        .step_by(2)
        .for_each(|number| write(number, 1000 + number));
    cfs!(
        "import",
        "-T",
        source,
        "/tree",
        "--workers",
        "1",
        "--data",
        data
    )
    .ok();
    (data, source)
}

fn pool_bytes(data: &Path) -> u64 {
    fs::metadata(data.join("pool")).expect("the pool").blocks() * 512
}

#[test]
fn gc_tells_its_plan_and_does_it() {
    for (served, way) in [(false, "--now"), (true, "--now"), (false, ""), (true, "")] {
        let scratch = Scratch::new();
        let (data, source) = half_dead(&scratch);
        let server = served.then(|| Server::start(&data, None));
        let dry = cfs!("admin", "gc", "--dry-run", "--json", "--data", data).ok();
        let dry = dry.json();
        assert_eq!(dry["result"], serde_json::Value::Null, "{dry}");
        let planned = dry["plan"]["bytes_to_free"].as_u64().expect("a number");
        // Some has been done by the processes before, without being asked.
        assert!(planned > 1 << 20, "{dry}");
        let text = cfs!("admin", "gc", "--dry-run", "--data", data).ok().stdout;
        assert!(text.contains("to empty: "), "{text}");
        let mut arguments = vec!["admin", "gc", "--json"];
        arguments.extend((!way.is_empty()).then_some(way));
        let mut asked = command(&[]);
        asked.args(arguments).arg("--data").arg(&data);
        let done = run(asked).ok();
        let summary = done.json();
        let result = &summary["result"];
        let number = |name: &str| result[name].as_u64().expect("a number");
        assert!(number("segments") > 0, "{summary}");
        assert!(number("copied_bytes") > 0, "{summary}");
        let freed = number("pool_bytes_before").saturating_sub(number("pool_bytes_after"));
        assert!(freed + (20 << 20) > planned, "{summary}");
        let again = cfs!("admin", "gc", "--dry-run", "--data", data).ok().stdout;
        assert!(again.contains("nothing is worth emptying"), "{again}");
        cfs!("admin", "fsck", "--data", data).ok();
        if let Some(server) = server {
            server.stop();
        }
        let live = 160 * 500_000;
        let now = pool_bytes(&data);
        assert!(now <= live + live / 10 + fixed_bytes(), "{now}");
        let out = scratch.path("out");
        cfs!("export", "/tree", out, "--data", data).ok();
        assert_same(&source, &out);
    }
}

/// Everything is sealed again, with another codec and by whoever has the pool open, and is what it was.
#[test]
fn gc_seals_everything_again() {
    for (served, way) in [(false, "--now"), (true, "")] {
        let scratch = Scratch::new();
        let (data, source) = (scratch.path("data"), scratch.dir("source"));
        for name in 0..40_u32 {
            let lines =
                (name..name + 30_000).map(|number| format!("line {}\n", number * (7 + name)));
            fs::write(source.join(name.to_string()), lines.collect::<String>()).expect("a file");
        }
        cfs!("import", source, "/tree", "--data", data, "--codec", "none").ok();
        let (before, server) = (
            pool_bytes(&data),
            served.then(|| Server::start(&data, None)),
        );
        let mut asked = command(&[
            &"admin",
            &"gc",
            &"--reseal=zstd:3",
            &"--json",
            &"--data",
            &data,
        ]);
        asked.args((!way.is_empty()).then_some(way));
        let summary = run(asked).ok().json();
        let result = &summary["result"];
        assert!(result["segments"].as_u64() > Some(5), "{summary}");
        assert_eq!(result["segments_left"], 0, "{summary}");
        if let Some(server) = server {
            server.stop();
        }
        // One more process gives back what is free since the last checkpoint.
        cfs!("admin", "fsck", "--data", data).ok();
        cfs!("admin", "scrub", "--data", data).ok();
        eventually("that it has shrunk", || {
            cfs!("admin", "status", "--data", data).ok();
            pool_bytes(&data) < before * 2 / 3
        });
        let out = scratch.path("out");
        cfs!("export", "/tree", out, "--data", data).ok();
        assert_same(&source, &out);
    }
}

/// Ctrl-C ends the watching, and the pass goes on; or, where there is no server, the pass.
#[test]
fn gc_can_be_interrupted() {
    for served in [true, false] {
        let scratch = Scratch::new();
        let (data, source) = half_dead(&scratch);
        let server = served.then(|| Server::start(&data, None));
        let mut asked = command(&[&"admin", &"gc", &"--data", &data]);
        let child = asked.spawn().expect("it starts");
        interrupt(&child, Duration::from_millis(600));
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "served {served}: {said}");
        let words = if served {
            "goes on in the server"
        } else {
            "the pass has ended"
        };
        assert!(said.contains(words), "served {served}: {said}");
        let reclaim = || {
            let status = cfs!("admin", "status", "--json", "--data", data)
                .ok()
                .json();
            status["reclaim"].clone()
        };
        if let Some(server) = server {
            assert_eq!(reclaim()["pass_is_running"], true);
            eventually("the end of the pass", || {
                reclaim()["pass_is_running"] == false
            });
            assert!(
                reclaim()["pass_segments"].as_u64() > Some(20),
                "{}",
                reclaim()
            );
            server.stop();
        }
        let out = scratch.path("out");
        cfs!("export", "/tree", out, "--data", data).ok();
        assert_same(&source, &out);
    }
}

#[test]
fn gc_refuses_what_makes_no_sense() {
    let scratch = Scratch::new();
    let data = scratch.path("none");
    let done = cfs!("admin", "gc", "--now", "--dry-run", "--data", data);
    assert_eq!(done.code, 2, "{done:?}");
    cfs!("admin", "gc", "--data", data).refused(5, "no pool");
    cfs!("admin", "gc", "--reseal=lzma", "--data", data).refused(2, "no codec \"lzma\"");
    let done = cfs!("admin", "gc", "--reseal", "--recount", "--data", data);
    assert_eq!(done.code, 2, "{done:?}");
}

/// Nothing of a healthy pool differs, served or not, and status tells when that was found.
#[test]
fn references_can_be_recounted() {
    let scratch = Scratch::new();
    let (data, _) = half_dead(&scratch);
    let status = || {
        cfs!("admin", "status", "--json", "--data", data)
            .ok()
            .json()
    };
    let text = || cfs!("admin", "status", "--data", data).ok().stdout;
    assert_eq!(status()["recount"]["finished_at"], serde_json::Value::Null);
    assert!(text().contains("none yet"), "{}", text());
    for served in [false, true] {
        let server = served.then(|| Server::start(&data, None));
        let done = cfs!("admin", "gc", "--recount", "--json", "--data", data).ok();
        let report = done.json();
        assert_eq!(report["clean"], true, "{report}");
        assert!(report["references"].as_u64() >= Some(160), "{report}");
        assert!(report["chunks"].as_u64() >= Some(160), "{report}");
        let line = cfs!("admin", "gc", "--recount", "--data", data).ok().stdout;
        assert!(line.starts_with("clean: "), "{line}");
        if let Some(server) = server {
            server.stop();
        }
        assert!(
            status()["recount"]["finished_at"].as_u64() > Some(0),
            "{}",
            status()
        );
        assert_eq!(status()["health"], "good");
        assert!(text().contains("all agree, 0 h ago"), "{}", text());
    }
}
