//! Removed data give their room back to the host: the pool's file shrinks by itself, and soon.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cfs;
use crate::support::{Scratch, Server, can_mount};
use crate::trees::noise;

/// What a pool takes beside its live data and a tenth: log, tables, open segments, what is kept ready. 24 MiB.
const FIXED_BYTES: u64 = 12 * (2 << 20);
/// In this time it must have come down.
const PATIENCE: Duration = Duration::from_secs(60);

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
        let allowed = live + live / 10 + FIXED_BYTES;
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
    assert!(world.host_bytes() < FIXED_BYTES);
}
