//! The tables beside fjall, redb, LMDB and RocksDB: random 32-byte keys, 40-byte values, in durable commits of 10,000;
//! warm hits and misses; hits while another thread commits 1,000 at a time; durable puts of single entries by one thread
//! and by 32; a scan; memory and space.
//!
//! `cargo xtask bench tables`, or `cargo bench -p cfs-store --bench tables -- [--figures FILE] [millions [directory [rounds
//! [MiB of cache [engine...]]]]]`. RocksDB with `--features rocksdb`. Each engine runs in a process of its own, in turns; medians are
//! shown. `cfs-kv` is the tables alone over a file, with a log as simple as can be, which is what the others do too;
//! `pool` is a whole store, with journal, compression and encryption.

mod engines;
mod file_store;
mod pool;
#[cfg(feature = "rocksdb")]
mod rocksdb;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use engines::{CfsKv, Engine, Fjall, Lmdb, Redb};

/// Entries of a commit.
const COMMIT_LEN: usize = 10_000;
/// Entries of a commit of the writer that runs beside readers.
const BESIDE_LEN: u64 = 1_000;
/// Reads that are timed.
const READS: usize = 1_000_000;
/// How long single puts, and reads beside a writer, go on.
const PHASE: Duration = Duration::from_secs(5);
/// Threads that put single entries at once.
const PUTTERS: u64 = 32;
/// Says that this process is to run one engine and to print its figures.
const CHILD: &str = "--engine";

/// Has the medians written to a file too; see [`write_figures`].
const FIGURES: &str = "--figures";

/// What is measured: its name, digits behind the point, whether more is better.
const MEASURES: [(&str, usize, bool); 15] = [
    ("inserts, thousand/s", 0, true),
    ("inserts, CPU us each", 2, false),
    ("hit, us", 2, false),
    ("hit, CPU us", 2, false),
    ("miss, us", 2, false),
    ("miss, CPU us", 2, false),
    ("hit p99, us", 1, false),
    ("hit beside a writer, us", 2, false),
    ("hit beside a writer, p99, us", 1, false),
    ("that writer, thousand/s", 0, true),
    ("durable puts, 1 thread, 1/s", 0, true),
    ("durable puts, 32 threads, 1/s", 0, true),
    ("scan, million/s", 1, true),
    ("memory of its own, MiB", 0, false),
    ("on the disk, MB", 0, false),
];

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

/// Microseconds of wall and processor time of the process.
fn timed<T>(work: impl FnOnce() -> T) -> (T, f64, f64) {
    let (wall, processor) = (Instant::now(), processor_time());
    let result = work();
    let (wall, processor) = (wall.elapsed(), processor_time() - processor);
    (
        result,
        wall.as_secs_f64() * 1e6,
        processor.as_secs_f64() * 1e6,
    )
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

fn create(name: &str, path: &Path, cache_bytes: u64) -> Box<dyn Engine> {
    match name {
        "cfs-kv" => Box::new(CfsKv::create(path, cache_bytes)),
        "pool" => Box::new(pool::Pool::create(path, cache_bytes)),
        "fjall" => Box::new(Fjall::create(path, cache_bytes)),
        "redb" => Box::new(Redb::create(path, cache_bytes)),
        "lmdb" => Box::new(Lmdb::create(path)),
        #[cfg(feature = "rocksdb")]
        "rocksdb" => Box::new(rocksdb::RocksDb::create(path, cache_bytes)),
        other => panic!("no engine {other} in this build"),
    }
}

/// Mean and 99th percentile of single hits, microseconds, until `is_over`.
fn time_hits(engine: &dyn Engine, hits: &[[u8; 32]], is_over: impl Fn(usize) -> bool) -> [f64; 2] {
    let mut times: Vec<u32> = Vec::with_capacity(READS);
    for key in hits.iter().cycle() {
        let start = Instant::now();
        assert_eq!(engine.count_found(std::slice::from_ref(key)), 1);
        times.push(start.elapsed().as_nanos() as u32);
        if is_over(times.len()) {
            break;
        }
    }
    let sum: u64 = times.iter().map(|time| u64::from(*time)).sum();
    let mean = sum as f64 / times.len() as f64;
    let at = times.len() * 99 / 100;
    let p99 = *times.select_nth_unstable(at).1;
    [mean / 1e3, f64::from(p99) / 1e3]
}

/// Durable puts of single entries a second, by so many threads.
fn put_single(engine: &dyn Engine, threads: u64, next: &AtomicU64) -> f64 {
    let (first, start) = (next.load(Ordering::Relaxed), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while start.elapsed() < PHASE {
                    engine.commit(&[entry(next.fetch_add(1, Ordering::Relaxed))]);
                }
            });
        }
    });
    (next.load(Ordering::Relaxed) - first) as f64 / start.elapsed().as_secs_f64()
}

/// Measures one engine, in the order of [`MEASURES`].
fn measure(engine: &dyn Engine, directory: &Path, count: u64) -> Vec<f64> {
    let (_, insert, insert_processor) = timed(|| {
        let mut batch = Vec::with_capacity(COMMIT_LEN);
        for number in 0..count {
            batch.push(entry(number));
            if batch.len() == COMMIT_LEN || number + 1 == count {
                engine.commit(&batch);
                batch.clear();
            }
        }
    });
    engine.settle();
    let mut random = Random(1);
    let hits: Vec<_> = (0..READS).map(|_| key(random.number() % count)).collect();
    // Nothing that is put later has these numbers.
    let misses: Vec<_> = (0..READS)
        .map(|_| key((1 << 48) | (random.number() % count)))
        .collect();
    // Once to warm up.
    assert_eq!(engine.count_found(&hits), READS);
    assert_eq!(engine.count_found(&misses), 0);
    let (_, hit, hit_processor) = timed(|| engine.count_found(&hits));
    let (_, miss, miss_processor) = timed(|| engine.count_found(&misses));
    let (found, scan, _) = timed(|| engine.scan());
    assert_eq!(found, count);
    let (memory, disk) = (own_memory(), allocated_bytes(directory));
    let [_, p99] = time_hits(engine, &hits, |done| done == READS);

    let next = AtomicU64::new(count);
    let one = put_single(engine, 1, &next);
    let many = put_single(engine, PUTTERS, &next);
    let (first, start) = (next.load(Ordering::Relaxed), Instant::now());
    let is_over = AtomicBool::new(false);
    let beside = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let from = next.fetch_add(BESIDE_LEN, Ordering::Relaxed);
                let batch: Vec<Entry> = (from..from + BESIDE_LEN).map(entry).collect();
                engine.commit(&batch);
            }
        });
        let times = time_hits(engine, &hits, |_| start.elapsed() >= PHASE);
        is_over.store(true, Ordering::Relaxed);
        times
    });
    let written = next.load(Ordering::Relaxed) - first;
    let each = |time: f64, count: u64| time / count as f64;
    let reads = READS as u64;
    vec![
        1e3 / each(insert, count),
        each(insert_processor, count),
        each(hit, reads),
        each(hit_processor, reads),
        each(miss, reads),
        each(miss_processor, reads),
        p99,
        beside[0],
        beside[1],
        written as f64 / start.elapsed().as_secs_f64() / 1e3,
        one,
        many,
        1.0 / each(scan, count),
        memory as f64 / (1 << 20) as f64,
        disk as f64 / 1e6,
    ]
}

/// Memory that is no copy of a file, bytes: pages of a file that LMDB maps can be had back at any time.
fn own_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
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

/// Runs an engine in a process of its own.
fn run(name: &str, options: &Options) -> Vec<f64> {
    let directory = tempfile::tempdir_in(&options.parent).expect("a directory");
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args([CHILD, name]).arg(directory.path());
    command.args([options.count, options.cache_bytes].map(|number| number.to_string()));
    let output = command.output().expect("this program runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {error}");
    let numbers = text.split_whitespace();
    let figures: Vec<f64> = numbers
        .map(|number| number.parse().expect("a figure"))
        .collect();
    assert_eq!(figures.len(), MEASURES.len());
    figures
}

struct Options {
    count: u64,
    parent: PathBuf,
    cache_bytes: u64,
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// For each measure the median of each engine.
fn medians(names: &[String], rounds: &BTreeMap<String, Vec<Vec<f64>>>) -> Vec<Vec<f64>> {
    let figure = |name: &String, row: usize| {
        let figures = rounds[name].iter().map(|figures| figures[row]);
        median(figures.collect())
    };
    (0..MEASURES.len())
        .map(|row| names.iter().map(|name| figure(name, row)).collect())
        .collect()
}

/// How many times as good one figure is as another.
fn times_as_good(one: f64, other: f64, more_is_better: bool) -> f64 {
    match more_is_better {
        true => one / other,
        false => other / one,
    }
}

/// A row for each measure: ours, then each of the others and how many times as good ours is.
fn report(names: &[String], medians: &[Vec<f64>]) {
    println!("| | {} |", names.join(" | "));
    println!("| --- |{}", " ---: |".repeat(names.len()));
    for ((measure, digits, more_is_better), row) in MEASURES.iter().zip(medians) {
        let ours = row[0];
        print!("| {measure} | {ours:.digits$} |");
        for theirs in &row[1..] {
            let ratio = times_as_good(ours, *theirs, *more_is_better);
            print!(" {theirs:.digits$} ({ratio:.2}) |");
        }
        println!();
    }
    println!("\nIn brackets: how many times as good {} is.", names[0]);
}

/// What is printed for a program to read, with tabs between: the names of the engines; then a line for each measure with its
/// name, and of each engine the figure and how many times as good as the first one's it is.
fn write_figures(path: &Path, names: &[String], medians: &[Vec<f64>]) {
    let mut text = names.join("\t") + "\n";
    for ((measure, digits, more_is_better), row) in MEASURES.iter().zip(medians) {
        text += measure;
        for figure in row {
            let ratio = times_as_good(*figure, row[0], *more_is_better);
            text += &format!("\t{figure:.digits$}\t{ratio}");
        }
        text.push('\n');
    }
    std::fs::write(path, text).expect("a file for the figures");
}

fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .peekable();
    if arguments.next_if(|first| first == CHILD).is_some() {
        let [name, directory, count, cache] =
            std::array::from_fn(|_| arguments.next().expect("by `run`"));
        let directory = Path::new(&directory);
        let number = |text: &str| text.parse::<u64>().expect("by `run`");
        let engine = create(&name, directory, number(&cache));
        for figure in measure(&*engine, directory, number(&count)) {
            println!("{figure}");
        }
        return;
    }
    let figures_path = arguments
        .next_if(|first| first == FIGURES)
        .map(|_| PathBuf::from(arguments.next().expect("a file after --figures")));
    let millions: f64 = arguments.next().map_or(2.0, |number| {
        number.parse().expect("millions of keys are a number")
    });
    let parent = arguments
        .next()
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let rounds: usize = arguments
        .next()
        .map_or(1, |number| number.parse().expect("rounds are a number"));
    let cache_mib: u64 = arguments
        .next()
        .map_or(2048, |number| number.parse().expect("MiB are a number"));
    let mut names: Vec<String> = arguments.collect();
    if names.is_empty() {
        names = ["cfs-kv", "pool", "fjall", "redb", "lmdb"]
            .map(String::from)
            .to_vec();
        if cfg!(feature = "rocksdb") {
            names.push("rocksdb".into());
        }
    }
    let options = Options {
        count: (millions * 1e6) as u64,
        parent,
        cache_bytes: cache_mib << 20,
    };
    let mut outcomes: BTreeMap<String, Vec<Vec<f64>>> = BTreeMap::new();
    for round in 0..rounds {
        for name in &names {
            let start = Instant::now();
            let figures = run(name, &options);
            eprintln!(
                "round {round}, {name}: {:.0} s",
                start.elapsed().as_secs_f64()
            );
            outcomes.entry(name.clone()).or_default().push(figures);
        }
    }
    let medians = medians(&names, &outcomes);
    report(&names, &medians);
    if let Some(path) = figures_path {
        write_figures(&path, &names, &medians);
    }
}
