//! What a unique chunk costs in memory: entries of the chunk index without any content, made by commands as a file
//! system makes them, then looked up after the pool was opened again. Counts every byte that the program has allocated
//! and every read of the device; a chunk that the index does not know must cost none.
//!
//! `cargo bench -p cfs-store --bench chunks -- DIR [MILLIONS]` (default: the system's temporary folder, 20).

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use cfs_device::{Device, DeviceError, FileDevice, Geometry, HostSpace};
use cfs_format::superblock::{ChunkParams, KeySlot};
use cfs_format::{DomainId, Fingerprint, SegmentId, SegmentSeq};
use cfs_seal::block::Cipher;
use cfs_seal::keys::ClusterKey;
use cfs_store::{FormatOptions, Host, NewChunk, Store, StoreOptions};
use zerocopy::FromZeros;

/// The system's allocator, which counts.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is handed to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise about `layout` is the one that is asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above; `pointer` came from `alloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocated() -> usize {
    ALLOCATED.load(Ordering::Relaxed)
}

/// Resident memory of the process, bytes; 0 where the system does not tell.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

struct BenchHost;

impl Host for BenchHost {
    fn now_ns(&self) -> u64 {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos() as u64)
    }
    fn fill_random(&self, buf: &mut [u8]) {
        buf.fill(7);
    }
}

/// A file whose reads are counted.
struct Counted {
    inner: FileDevice,
    reads: AtomicU64,
}

impl Device for Counted {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }
    fn read_at(&self, segment: SegmentId, offset: u32, buf: &mut [u8]) -> Result<(), DeviceError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.inner.read_at(segment, offset, buf)
    }
    fn write_at(&self, segment: SegmentId, offset: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        self.inner.write_at(segment, offset, bytes)
    }
    fn prepare(&self, first: SegmentId, count: u32) -> Result<(), DeviceError> {
        self.inner.prepare(first, count)
    }
    fn discard(&self, segment: SegmentId, range: Range<u32>) -> Result<(), DeviceError> {
        self.inner.discard(segment, range)
    }
    fn flush(&self) -> Result<(), DeviceError> {
        self.inner.flush()
    }
    fn host_space(&self) -> Result<Option<HostSpace>, DeviceError> {
        self.inner.host_space()
    }
}

/// Chunks of a full data segment, at their average length.
const CHUNKS_PER_SEGMENT: u64 = 16;
/// Chunks of one command.
const CHUNKS_PER_COMMAND: u64 = 1000;
/// Segments at the pool's start that are left to the log and the tables.
const OTHER_SEGMENTS: u64 = 8192;
/// Lookups of each kind.
const LOOKUPS: u64 = 1_000_000;

fn fingerprint(number: u64) -> Fingerprint {
    let mut bytes = [0; 32];
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for word in bytes.chunks_exact_mut(8) {
        state = (state ^ (state >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ number;
        word.copy_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    Fingerprint(bytes)
}

fn new_chunk(number: u64) -> NewChunk {
    NewChunk {
        fingerprint: fingerprint(number),
        segment: SegmentId((OTHER_SEGMENTS + number / CHUNKS_PER_SEGMENT) as u32),
        seq: SegmentSeq(1),
        offset: (number % CHUNKS_PER_SEGMENT) as u32 * (120 << 10) + 4096,
        record_len: 100 << 10,
        raw_len: 128 << 10,
        domain: DomainId::DEFAULT,
        codec: 1,
    }
}

fn open(device: &Arc<Counted>) -> Arc<Store> {
    let device: Arc<dyn Device> = Arc::<Counted>::clone(device);
    Store::open(
        device,
        Arc::new(BenchHost),
        |_| Ok(ClusterKey::from_bytes([1; 32])),
        StoreOptions::default(),
        |_, _| Ok(()),
    )
    .expect("open")
}

fn fill(store: &Store, count: u64) {
    for first in (0..count).step_by(CHUNKS_PER_COMMAND as usize) {
        let mut txn = store.begin();
        for number in first..(first + CHUNKS_PER_COMMAND).min(count) {
            let new = new_chunk(number);
            let counted = txn.chunk_ref(&new.fingerprint, Some(&new));
            counted.expect("a new chunk");
        }
        txn.commit(&[]).expect("commit");
        if (first / CHUNKS_PER_COMMAND).is_multiple_of(100) {
            store.tick().expect("tick");
        }
    }
}

/// Looks up chunks, spread over all of them, and tells lookups a second and reads of the device for each.
fn look_up(store: &Store, device: &Counted, first: u64, count: u64, known: bool) -> (f64, f64) {
    let reads = device.reads.load(Ordering::Relaxed);
    let start = Instant::now();
    for index in 0..LOOKUPS {
        // A command that is dropped again asks the index and changes nothing.
        let number = first + index.wrapping_mul(0x9e37_79b9_7f4a_7c15) % count;
        let found = store.begin().chunk_ref(&fingerprint(number), None);
        assert_eq!(found.is_ok(), known, "chunk {number}");
    }
    let reads = device.reads.load(Ordering::Relaxed) - reads;
    (
        LOOKUPS as f64 / start.elapsed().as_secs_f64(),
        reads as f64 / LOOKUPS as f64,
    )
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|word| word != "--bench");
    let dir = arguments
        .next()
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let millions: f64 = arguments.next().map_or(20.0, |text| {
        text.parse().expect("millions of chunks are a number")
    });
    let count = (millions * 1e6) as u64;
    let path = dir.join("cfs-bench-chunks.pool");
    let _ = std::fs::remove_file(&path);
    let segments = OTHER_SEGMENTS + count / CHUNKS_PER_SEGMENT + 1;
    let device = Arc::new(Counted {
        inner: FileDevice::create(&path, segments as u32).expect("a pool's file"),
        reads: AtomicU64::new(0),
    });
    let dynamic: Arc<dyn Device> = Arc::<Counted>::clone(&device);
    let host: Arc<dyn Host> = Arc::new(BenchHost);
    let options = FormatOptions {
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
    let key = ClusterKey::from_bytes([1; 32]);
    Store::format(&dynamic, &host, key, KeySlot::new_zeroed(), &options).expect("format");

    let start = Instant::now();
    let store = open(&device);
    fill(&store, count);
    store.close().expect("close");
    drop(store);
    println!(
        "{count} chunks made in {:.0} s, the pool takes {} MB",
        start.elapsed().as_secs_f64(),
        device
            .host_space()
            .ok()
            .flatten()
            .map_or(0, |space| space.allocated_bytes / 1_000_000)
    );

    let (before, resident_before) = (allocated(), resident());
    let store = open(&device);
    let opened = allocated() - before;
    let per_chunk = |bytes: f64| bytes / count as f64;
    // The first look at each part of a table brings its filter and its index.
    look_up(&store, &device, count, count, false);
    let (misses, miss_reads) = look_up(&store, &device, count, count, false);
    let (hits, hit_reads) = look_up(&store, &device, 0, count, true);
    let stats = store.stats();
    assert_eq!(stats.pool.chunk_count, count, "all of them are there");
    let all = allocated() - before;
    let caches = (stats.block_cache_bytes + stats.memtable_bytes) as usize;
    println!(
        "open: {opened} bytes; all in use: {all} bytes, {caches} of them in bounded caches; resident: {} bytes more than \
         before opening",
        resident().saturating_sub(resident_before)
    );
    println!(
        "bytes of memory for each chunk: {:.1} outside of caches, {:.1} in all",
        per_chunk((all - caches) as f64),
        per_chunk(all as f64)
    );
    println!("misses: {misses:.0} /s, {miss_reads:.6} reads of the device each");
    println!("hits: {hits:.0} /s, {hit_reads:.3} reads of the device each");
    drop(store);
    let _ = std::fs::remove_file(&path);
    assert!(
        per_chunk((all - caches) as f64) <= 32.0,
        "more than 32 bytes of memory for each chunk"
    );
    assert!(miss_reads < 0.001, "a miss reads the device");
}
