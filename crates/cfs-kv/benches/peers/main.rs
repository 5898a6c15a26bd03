//! cfs-kv beside redb, fjall and LMDB: random 32-byte keys, 40-byte values, a durable commit each 10,000, then warm
//! hits and misses, and a scan.
//!
//! `cargo bench -p cfs-kv --bench peers -- [keys [directory [engine...]]]`; 5 million keys in a temporary directory
//! and all engines unless told otherwise. cfs-kv has no log of its own, so it is given one here: each commit is
//! appended to a file and flushed, as the store's journal does.

mod engines;
mod file_store;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use engines::{CfsKv, Engine, Fjall, Lmdb, Redb};

/// Entries of a commit.
const COMMIT_LEN: usize = 10_000;
/// Reads that are timed.
const READS: usize = 1_000_000;

type Entry = ([u8; 32], [u8; 40]);

/// SplitMix64.
struct Random(u64);

impl Random {
    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The key of a number; those of numbers that were not inserted are misses.
fn key(number: u64) -> [u8; 32] {
    let mut random = Random(number.wrapping_mul(0xa076_1d64_78bd_642f));
    let mut key = [0; 32];
    for part in key.chunks_exact_mut(8) {
        part.copy_from_slice(&random.number().to_le_bytes());
    }
    key
}

fn entry(number: u64) -> Entry {
    let mut value = [0; 40];
    value[..8].copy_from_slice(&number.to_le_bytes());
    value[8..16].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    (key(number), value)
}

/// Wall and processor time of the process.
#[derive(Clone, Copy)]
struct Times {
    wall: Duration,
    processor: Duration,
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Times) {
    let (wall, processor) = (Instant::now(), processor_time());
    let result = work();
    let times = Times {
        wall: wall.elapsed(),
        processor: processor_time() - processor,
    };
    (result, times)
}

fn processor_time() -> Duration {
    // SAFETY: an all-zero `timespec` is a valid value, and the call fills it.
    let time = unsafe {
        let mut time = std::mem::zeroed::<libc::timespec>();
        assert_eq!(
            libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time),
            0
        );
        time
    };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

struct Outcome {
    name: &'static str,
    insert: Times,
    settle: Times,
    hit: Times,
    miss: Times,
    scan: Times,
    disk_bytes: u64,
    notes: String,
}

fn run(mut engine: Box<dyn Engine>, directory: &Path, count: u64) -> Outcome {
    let (_, insert) = timed(|| {
        let mut batch = Vec::with_capacity(COMMIT_LEN);
        for number in 0..count {
            batch.push(entry(number));
            if batch.len() == COMMIT_LEN || number + 1 == count {
                engine.commit(&batch);
                batch.clear();
            }
        }
    });
    let (_, settle) = timed(|| engine.settle());
    let mut random = Random(1);
    let hits: Vec<_> = (0..READS).map(|_| key(random.number() % count)).collect();
    let misses: Vec<_> = (0..READS)
        .map(|_| key(count + random.number() % count))
        .collect();
    // Once to warm up.
    assert_eq!(engine.count_found(&hits), READS);
    assert_eq!(engine.count_found(&misses), 0);
    let (_, hit) = timed(|| engine.count_found(&hits));
    let (_, miss) = timed(|| engine.count_found(&misses));
    let (found, scan) = timed(|| engine.scan());
    assert_eq!(found, count);
    Outcome {
        name: engine.name(),
        insert,
        settle,
        hit,
        miss,
        scan,
        disk_bytes: allocated_bytes(directory),
        notes: engine.notes(),
    }
}

fn allocated_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::symlink_metadata(path).expect("stat");
    let below = if metadata.is_dir() {
        let entries = std::fs::read_dir(path).expect("read directory");
        entries
            .map(|entry| allocated_bytes(&entry.expect("entry").path()))
            .sum()
    } else {
        0
    };
    metadata.blocks() * 512 + below
}

fn report(outcomes: &[Outcome], count: u64) {
    println!(
        "{:<8} {:>22} {:>15} {:>17} {:>17} {:>14} {:>9}",
        "",
        "inserts/s (CPU us)",
        "settle s (CPU)",
        "hit us (CPU)",
        "miss us (CPU)",
        "scan M/s",
        "disk MB"
    );
    let each = |times: Times, count: u64| {
        let each = |time: Duration| time.as_secs_f64() * 1e6 / count as f64;
        (each(times.wall), each(times.processor))
    };
    for outcome in outcomes {
        let insert = each(outcome.insert, count);
        let hit = each(outcome.hit, READS as u64);
        let miss = each(outcome.miss, READS as u64);
        println!(
            "{:<8} {:>13.0} ({:>6.2}) {:>7.2} ({:>5.2}) {:>8.2} ({:>6.2}) {:>8.3} ({:>6.3}) {:>14.2} {:>9.0}   {}",
            outcome.name,
            1e6 / insert.0,
            insert.1,
            outcome.settle.wall.as_secs_f64(),
            outcome.settle.processor.as_secs_f64(),
            hit.0,
            hit.1,
            miss.0,
            miss.1,
            1.0 / each(outcome.scan, count).0,
            outcome.disk_bytes as f64 / 1e6,
            outcome.notes
        );
    }
    let Some(ours) = outcomes.iter().find(|outcome| outcome.name == "cfs-kv") else {
        return;
    };
    println!(
        "\nTimes of the others over those of cfs-kv (above 1: cfs-kv is quicker); in brackets by processor time"
    );
    for outcome in outcomes.iter().filter(|outcome| outcome.name != "cfs-kv") {
        let ratio = |of: fn(&Outcome) -> Times| {
            let (theirs, ours) = (of(outcome), of(ours));
            format!(
                "{:.2} ({:.2})",
                theirs.wall.as_secs_f64() / ours.wall.as_secs_f64(),
                theirs.processor.as_secs_f64() / ours.processor.as_secs_f64()
            )
        };
        println!(
            "{:<8} insert {}, hit {}, miss {}, scan {}",
            outcome.name,
            ratio(|o| o.insert),
            ratio(|o| o.hit),
            ratio(|o| o.miss),
            ratio(|o| o.scan)
        );
    }
}

fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"));
    let count: u64 = arguments.next().map_or(5_000_000, |number| {
        number.parse().expect("a number of keys")
    });
    let parent = arguments
        .next()
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let mut names: Vec<String> = arguments.collect();
    if names.is_empty() {
        names = ["cfs-kv", "fjall", "redb", "lmdb"]
            .map(String::from)
            .to_vec();
    }
    let mut outcomes = Vec::new();
    for name in &names {
        let directory = tempfile::tempdir_in(&parent).expect("a directory");
        let path = directory.path();
        let engine: Box<dyn Engine> = match name.as_str() {
            "cfs-kv" => Box::new(CfsKv::create(path)),
            "fjall" => Box::new(Fjall::create(path)),
            "redb" => Box::new(Redb::create(path)),
            "lmdb" => Box::new(Lmdb::create(path)),
            other => panic!("no engine {other}"),
        };
        outcomes.push(run(engine, path, count));
        report(&outcomes[outcomes.len() - 1..], count);
    }
    println!();
    report(&outcomes, count);
}
