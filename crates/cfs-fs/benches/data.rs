//! The data path of one file system: sequential writes, reads, and small durable writes, on a file. Wall time is what
//! a caller sees; CPU time is that of the whole process.
//!
//! `cargo bench -p cfs-fs --bench data -- DIR [GIB]` (default: the system's temporary folder, 1 GiB a run). A folder
//! on tmpfs takes the disk out of the figures.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use cfs_device::{Device, FileDevice};
use cfs_format::Ino;
use cfs_format::superblock::{ChunkParams, KeySlot};
use cfs_fs::{AtimePolicy, Caller, Fs, FsOptions};
use cfs_seal::block::Cipher;
use cfs_seal::codec::Codec;
use cfs_seal::keys::ClusterKey;
use cfs_store::{Host, Store, StoreOptions};
use zerocopy::FromZeros;

/// Content of a sequential write before it repeats, bytes.
const BLOCK_BYTES: usize = 64 << 20;
/// Bytes of one sequential request.
const REQUEST_BYTES: usize = 1 << 20;

struct BenchHost;

impl Host for BenchHost {
    fn now_ns(&self) -> u64 {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos() as u64)
    }

    fn fill_random(&self, buf: &mut [u8]) {
        let mut state = self.now_ns() | 1;
        buf.fill_with(|| next(&mut state) as u8);
    }
}

fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// CPU seconds of this process so far.
fn cpu_seconds() -> f64 {
    let ticks = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = ticks
        .rsplit(')')
        .next()
        .expect("a process has a name")
        .split_whitespace()
        .collect();
    let ticks: u64 = [11, 12]
        .iter()
        .map(|index: &usize| fields[*index].parse::<u64>().expect("a number of ticks"))
        .sum();
    ticks as f64 / 100.0
}

struct Bench {
    path: PathBuf,
}

impl Bench {
    fn new(dir: &Path) -> Self {
        let path = dir.join(format!("cfs-bench-data-{}", std::process::id()));
        let device: Arc<dyn Device> =
            Arc::new(FileDevice::create(&path, 1 << 14).expect("create the pool's file"));
        let host: Arc<dyn Host> = Arc::new(BenchHost);
        let options = cfs_store::FormatOptions {
            cipher: Cipher::Aes256Gcm,
            chunk: ChunkParams {
                min: (64 << 10).into(),
                avg: (128 << 10).into(),
                max: (256 << 10).into(),
                algorithm: 1.into(),
            },
            pool_bytes_max: 0,
            domain_secret: None,
        };
        let key = || ClusterKey::from_bytes([1; 32]);
        let slot = KeySlot::new_zeroed();
        Store::format(&device, &host, key(), slot, &options).expect("format the store");
        let store = Store::open(
            device,
            Arc::clone(&host),
            |_| Ok(key()),
            StoreOptions::default(),
            cfs_fs::replay,
        )
        .expect("open the store");
        let (codec, codec_level) = Codec::Lz4.numbers();
        let options = cfs_fs::FormatOptions {
            uid: 0,
            gid: 0,
            codec,
            codec_level,
        };
        Fs::format(&store, &*host, &options).expect("format the file system");
        store.close().expect("close the store");
        Self { path }
    }

    fn open(&self, seal_threads: usize) -> Arc<Fs> {
        let device = FileDevice::open(&self.path, 1 << 14).expect("open the pool's file");
        Fs::open_pool(
            Arc::new(device),
            Arc::new(BenchHost),
            |_| Ok(ClusterKey::from_bytes([1; 32])),
            StoreOptions {
                lanes: seal_threads + 1,
                ..StoreOptions::default()
            },
            FsOptions {
                seal_threads,
                hot_bytes: 1 << 30,
                atime: AtimePolicy::Relatime,
                ..FsOptions::default()
            },
        )
        .expect("open the file system")
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).expect("remove the bench's pool");
    }
}

fn create(fs: &Fs, name: &str) -> Ino {
    fs.create(Ino::ROOT, name.as_bytes(), 0o644, &Caller::default())
        .expect("create")
        .ino
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252;
    let mut bytes = vec![0; len];
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&next(&mut state).to_le_bytes());
    }
    bytes
}

/// Runs `work` on `bytes` bytes and prints what it took.
fn measure(name: &str, bytes: u64, work: impl FnOnce()) {
    let (wall, cpu) = (Instant::now(), cpu_seconds());
    work();
    let (wall, cpu) = (wall.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    println!(
        "| {name} | {:.2} | {:.2} |",
        bytes as f64 / wall / 1e9,
        cpu * f64::from(1 << 30) / bytes as f64
    );
}

fn write_all(fs: &Fs, ino: Ino, block: &mut [u8], bytes: u64, unique: bool) {
    let mut at = 0;
    while at < bytes {
        if unique {
            for page in block.chunks_exact_mut(16 << 10) {
                page[..8].copy_from_slice(&(at + 1).wrapping_mul(0x9e37_79b9).to_le_bytes());
            }
        }
        for request in block.chunks(REQUEST_BYTES) {
            fs.write(ino, at, request, false).expect("write");
            at += request.len() as u64;
        }
    }
    fs.fsync(ino, false).expect("fsync");
}

fn read_all(fs: &Fs, ino: Ino, bytes: u64) {
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes {
        fs.read(ino, at, REQUEST_BYTES, &mut out).expect("read");
        assert_eq!(out.len(), REQUEST_BYTES);
        at += out.len() as u64;
    }
}

fn sequential(dir: &Path, bytes: u64) {
    println!("| sequential | GB/s | CPU s/GiB |\n| --- | --- | --- |");
    for seal_threads in [0, 1, 2] {
        let bench = Bench::new(dir);
        let fs = bench.open(seal_threads);
        let mut block = noise(BLOCK_BYTES);
        // Warms the buffers, and brings the block in for the duplicates.
        let warm = create(&fs, "warm");
        write_all(&fs, warm, &mut block, 2 * BLOCK_BYTES as u64, false);
        let duplicate = create(&fs, "duplicate");
        measure(
            &format!("write duplicates, {seal_threads} sealing threads"),
            bytes,
            || write_all(&fs, duplicate, &mut block, bytes, false),
        );
        let unique = create(&fs, "unique");
        measure(
            &format!("write incompressible, {seal_threads} sealing threads"),
            bytes,
            || write_all(&fs, unique, &mut block, bytes, true),
        );
        fs.close().expect("close");
        drop(fs);
        let fs = bench.open(seal_threads);
        measure(
            &format!("read cold, {seal_threads} opening threads"),
            bytes,
            || read_all(&fs, unique, bytes),
        );
        let hot = bytes.min(512 << 20);
        read_all(&fs, unique, hot);
        measure(
            &format!("read hot, {seal_threads} opening threads"),
            hot,
            || read_all(&fs, unique, hot),
        );
    }
}

fn small_reads(dir: &Path) {
    const READS: u64 = 1_000_000;
    let bench = Bench::new(dir);
    let fs = bench.open(2);
    let ino = create(&fs, "file");
    write_all(&fs, ino, &mut noise(BLOCK_BYTES), BLOCK_BYTES as u64, false);
    read_all(&fs, ino, BLOCK_BYTES as u64);
    let read_some = |seed: u64, count: u64| {
        let mut state = seed;
        let mut out = Vec::new();
        for _ in 0..count {
            let at = next(&mut state) % (BLOCK_BYTES as u64 / 4096) * 4096;
            fs.read(ino, at, 4096, &mut out).expect("read");
        }
    };
    println!("\n| random reads of 4 KiB from the hot area | a second |\n| --- | --- |");
    for threads in [1, 2] {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let read_some = &read_some;
                scope.spawn(move || read_some(thread + 1, READS / threads));
            }
        });
        let rate = READS as f64 / start.elapsed().as_secs_f64();
        println!("| {threads} threads | {rate:.0} |");
    }
}

fn durable_writes(dir: &Path) {
    const WRITES: usize = 2000;
    let bench = Bench::new(dir);
    let fs = bench.open(2);
    let data = noise(WRITES * 4096);
    println!("\n| 4 KiB write + fsync | median us | 99 % us | CPU us |\n| --- | --- | --- | --- |");
    for (name, base, span) in [
        ("append", 0_u64, u64::MAX),
        ("overwrite in a file of 64 MiB", BLOCK_BYTES as u64, 16384),
        ("the whole of a small file", 0, 1),
    ] {
        let ino = create(&fs, name);
        if base > 0 {
            write_all(&fs, ino, &mut noise(BLOCK_BYTES), base, false);
        }
        let mut state = 7;
        let cpu = cpu_seconds();
        let mut times: Vec<f64> = (0..WRITES)
            .map(|index| {
                let place = match span {
                    u64::MAX => index as u64,
                    span => next(&mut state) % span,
                };
                let start = Instant::now();
                let bytes = &data[index * 4096..][..4096];
                fs.write(ino, place * 4096, bytes, false).expect("write");
                fs.fsync(ino, true).expect("fsync");
                start.elapsed().as_secs_f64() * 1e6
            })
            .collect();
        let cpu = (cpu_seconds() - cpu) * 1e6 / WRITES as f64;
        times.sort_unstable_by(f64::total_cmp);
        println!(
            "| {name} | {:.0} | {:.0} | {cpu:.0} |",
            times[WRITES / 2],
            times[WRITES * 99 / 100]
        );
    }
}

fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench");
    let dir: PathBuf = arguments.next().map_or_else(std::env::temp_dir, Into::into);
    let gib: u64 = arguments
        .next()
        .map_or(1, |gib| gib.parse().expect("GIB is a number"));
    sequential(&dir, gib << 30);
    small_reads(&dir);
    durable_writes(&dir);
}
