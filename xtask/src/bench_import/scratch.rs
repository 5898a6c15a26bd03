//! The baseline of `bench import`: what a store does to content, and nothing else. `cargo xtask scratch-store` runs it.
//!
//! Workers take files in turns. Each reads its file, cuts, fingerprints, looks into an index in memory that all share, seals
//! what is new with LZ4 and AES-256-GCM, and appends that to a segment of 2 MiB of its own, which it writes past the page
//! cache when it is full. One flush at the end. There are no names, no log, no tables, and nothing could be found again.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use anyhow::{Context as _, ensure};
use cfs_device::AlignedBuf;
use cfs_format::{DomainId, Fingerprint, KeyEpoch, SegmentSeq};
use cfs_seal::block::{BlockCipher, Cipher};
use cfs_seal::chunk::{ChunkFields, ChunkSealer, RecordPlace};
use cfs_seal::chunker::{ChunkParams, Chunker};
use cfs_seal::codec::Codec;
use cfs_seal::keys::DomainSecret;
use parking_lot::Mutex;

const SEGMENT_BYTES: usize = 2 << 20;
/// A segment's header takes this much in a real store.
const HEADER_BYTES: usize = 4096;
const READ_BYTES: usize = 1 << 20;
const SHARDS: usize = 64;

/// What to store, and where.
#[derive(clap::Args)]
pub struct Options {
    /// The file that gets the segments. One that is there is written over, and must be as large as what comes.
    target: PathBuf,
    /// Files to read.
    #[arg(required = true)]
    sources: Vec<PathBuf>,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    workers: usize,
}

struct Store {
    file: File,
    secret: DomainSecret,
    headers: BlockCipher,
    index: Vec<Mutex<HashMap<Fingerprint, RecordPlace>>>,
    segments: AtomicU64,
    salts: AtomicU64,
}

/// Stores the files.
///
/// # Errors
/// When they cannot be read, or the target not be written.
pub fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(options.workers > 0, "at least one worker");
    let is_new = !options.target.exists();
    let file = open(&options.target).context("opening the target")?;
    if is_new {
        let mut bytes = 0;
        for source in &options.sources {
            bytes += std::fs::metadata(source)?.len();
        }
        // What does not shrink takes a little more than itself, and each worker leaves a segment that is not full.
        let room = bytes + bytes / 16 + (options.workers * SEGMENT_BYTES) as u64;
        let flags = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(&file, flags, 0, room).context("making room")?;
    }
    let store = Store {
        file,
        secret: DomainSecret::from_bytes([7; 32]),
        headers: BlockCipher::new(Cipher::Aes256Gcm, &[3; 32]),
        index: (0..SHARDS).map(|_| Mutex::default()).collect(),
        segments: AtomicU64::new(0),
        salts: AtomicU64::new(0),
    };
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let work = || -> anyhow::Result<()> {
            let mut worker = Worker::new(&store);
            while let Some(source) = options.sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                worker
                    .store(source)
                    .with_context(|| format!("storing {}", source.display()))?;
            }
            worker.write_segment()
        };
        let workers: Vec<_> = (0..options.workers).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            worker.join().expect("a worker does not panic")?;
        }
        anyhow::Ok(())
    })?;
    if is_new {
        let used = store.segments.load(Ordering::Relaxed) * SEGMENT_BYTES as u64;
        store.file.set_len(used)?;
    }
    Ok(store.file.sync_data()?)
}

/// Past the page cache, where the file system can do that.
fn open(path: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(false);
    let direct = options.clone().custom_flags(libc::O_DIRECT).open(path);
    direct.or_else(|_| options.open(path))
}

struct Worker<'a> {
    store: &'a Store,
    chunker: Chunker,
    sealer: ChunkSealer,
    read: Vec<u8>,
    record: Vec<u8>,
    segment: AlignedBuf,
    seq: u64,
}

impl<'a> Worker<'a> {
    fn new(store: &'a Store) -> Self {
        let mut worker = Self {
            store,
            chunker: Chunker::new(ChunkParams::DEFAULT),
            sealer: ChunkSealer::new(Cipher::Aes256Gcm),
            read: Vec::new(),
            record: Vec::new(),
            segment: AlignedBuf::with_capacity(SEGMENT_BYTES),
            seq: 0,
        };
        worker.start_segment();
        worker
    }

    fn store(&mut self, source: &Path) -> anyhow::Result<()> {
        let file = File::open(source)?;
        let mut read = std::mem::take(&mut self.read);
        let (mut start, mut end, mut at) = (0, 0, 0);
        loop {
            // What is left of the last read goes to the front.
            read.copy_within(start..end, 0);
            (start, end) = (0, end - start);
            read.resize(read.len().max(end + READ_BYTES), 0);
            let new = file.read_at(&mut read[end..end + READ_BYTES], at)?;
            at += new as u64;
            end += new;
            while let Some(length) = self.chunker.cut(&read[start..end], new == 0) {
                self.chunk(&read[start..start + length])?;
                start += length;
            }
            if new == 0 {
                self.read = read;
                return Ok(());
            }
        }
    }

    fn chunk(&mut self, data: &[u8]) -> anyhow::Result<()> {
        let fingerprint = self.store.secret.fingerprint(data);
        let shard = &self.store.index[fingerprint.0[0] as usize % SHARDS];
        if shard.lock().contains_key(&fingerprint) {
            return Ok(());
        }
        let mut salt = [0; 16];
        let number = self.store.salts.fetch_add(1, Ordering::Relaxed);
        salt[..8].copy_from_slice(&number.to_le_bytes());
        let fields = ChunkFields {
            domain: DomainId::DEFAULT,
            fingerprint,
            salt,
            created_ns: 1,
            epoch: KeyEpoch(1),
        };
        self.record.clear();
        // The record of a chunk that does not fit is sealed for the place that it would have had, which costs the same.
        let place = RecordPlace {
            seq: SegmentSeq(self.seq + 1),
            offset: self.segment.len() as u32,
        };
        self.sealer.seal(
            &self.store.secret,
            &fields,
            Codec::Lz4,
            data,
            place,
            &self.store.headers,
            &mut self.record,
        );
        if self.segment.len() + self.record.len() > SEGMENT_BYTES {
            self.write_segment()?;
            self.start_segment();
        }
        self.segment.extend_from_slice(&self.record);
        shard.lock().insert(fingerprint, place);
        Ok(())
    }

    fn start_segment(&mut self) {
        self.seq = self.store.segments.fetch_add(1, Ordering::Relaxed);
        self.segment.clear();
        self.segment.resize(HEADER_BYTES);
    }

    fn write_segment(&mut self) -> anyhow::Result<()> {
        self.segment.resize(SEGMENT_BYTES);
        let offset = self.seq * SEGMENT_BYTES as u64;
        Ok(self.store.file.write_all_at(&self.segment, offset)?)
    }
}
