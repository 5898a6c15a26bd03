//! The hot area: opened chunks in memory, found by fingerprint, and the threads that open more of them ahead.
//!
//! The memory of chunks that leave is used again for those that come: to touch new memory costs more than to open a
//! chunk. For the same reason who reads a large file in order lets go of the chunks behind. When nobody has asked for a
//! chunk for [`IDLE_NS`], all of the memory goes back to the system.

use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use cfs_format::Fingerprint;
use cfs_store::{CHUNK_BYTES_MAX, ReadError, Store};
use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;
use quick_cache::sync::{Cache, DefaultLifecycle, GuardResult};
use quick_cache::{OptionsBuilder, Weighter};

/// The content of a chunk.
pub(crate) type Content = Arc<Opened>;

/// Memory of chunks is taken in multiples of this, bytes, so that it fits another chunk later.
const CLASS_BYTES: usize = 32 << 10;
const CLASSES: usize = CHUNK_BYTES_MAX.div_ceil(CLASS_BYTES) + 1;
/// A chunk may lie in memory this many classes too large.
const CLASSES_TOO_LARGE: usize = 2;
/// Memory without a chunk that is kept at most, bytes.
const SPARE_BYTES_MAX: usize = 32 << 20;

/// Usual length of a chunk, bytes; for the cache's first guess at its number of entries.
const CHUNK_BYTES_USUAL: u64 = 128 << 10;

/// Parts of the cache with a lock each are at least this large, so that a chunk is small beside one.
const SHARD_BYTES_MIN: u64 = 16 << 20;
const SHARDS_MAX: u64 = 32;

/// How long nobody may ask for chunks before their memory is given up, nanoseconds.
const IDLE_NS: u64 = 60_000_000_000;

/// Content that one thread opens ahead in one go, bytes: enough for a long read, little enough for several threads.
const BATCH_BYTES: u32 = 1 << 20;

/// Batches that wait to be opened ahead at most; more are not asked for.
const QUEUE_LEN_MAX: usize = 64;

/// Memory for chunks that has been touched.
#[derive(Default)]
struct Spare {
    classes: Mutex<SpareClasses>,
}

struct SpareClasses {
    /// Vectors by capacity in multiples of `CLASS_BYTES`.
    vectors: [Vec<Vec<u8>>; CLASSES],
    bytes: usize,
}

impl Default for SpareClasses {
    fn default() -> Self {
        Self {
            vectors: std::array::from_fn(|_| Vec::new()),
            bytes: 0,
        }
    }
}

impl Spare {
    fn take(&self, len: usize) -> Vec<u8> {
        let class = len.div_ceil(CLASS_BYTES);
        let mut spare = self.classes.lock();
        let last = (class + CLASSES_TOO_LARGE).min(CLASSES - 1);
        let found = (class..=last).find_map(|class| spare.vectors[class].pop());
        match found {
            Some(vector) => {
                spare.bytes -= vector.capacity();
                vector
            }
            None => Vec::with_capacity(class * CLASS_BYTES),
        }
    }

    fn clear(&self) {
        *self.classes.lock() = SpareClasses::default();
    }

    fn give_back(&self, vector: Vec<u8>) {
        let class = vector.capacity() / CLASS_BYTES;
        let mut spare = self.classes.lock();
        if class < CLASSES && spare.bytes + vector.capacity() <= SPARE_BYTES_MAX {
            spare.bytes += vector.capacity();
            spare.vectors[class].push(vector);
        }
    }
}

/// Content in memory that goes back to where it came from.
pub(crate) struct Opened {
    bytes: Vec<u8>,
    home: Arc<Spare>,
}

impl Deref for Opened {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.home.give_back(std::mem::take(&mut self.bytes));
    }
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Fingerprint, Content> for ByBytes {
    fn weight(&self, _: &Fingerprint, content: &Content) -> u64 {
        content.bytes.capacity() as u64
    }
}

/// Takes the end of a fingerprint as its hash. Without a random seed, so that what is evicted repeats from run to run;
/// nobody without the domain's secret can choose fingerprints.
#[derive(Default)]
struct FingerprintHasher(u64);

impl Hasher for FingerprintHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(end) = bytes.last_chunk() {
            self.0 ^= u64::from_le_bytes(*end);
        }
    }
}

pub(super) struct HotArea {
    cache: Cache<Fingerprint, Content, ByBytes, BuildHasherDefault<FingerprintHasher>>,
    spare: Arc<Spare>,
    /// Chunks asked for so far.
    uses: AtomicU64,
    idle: Mutex<Idle>,
    sender: Sender<Task>,
    receiver: Receiver<Task>,
    thread_count: usize,
}

/// When the area was last seen to be used.
#[derive(Default)]
struct Idle {
    uses: u64,
    since_ns: u64,
}

enum Task {
    Open(Vec<(Fingerprint, u32)>),
    Stop,
}

impl HotArea {
    /// Bytes that the chunks in it take.
    pub(super) fn bytes(&self) -> u64 {
        self.cache.weight()
    }

    /// An empty area of at most `bytes_max`, to be filled ahead by `thread_count` threads.
    pub(super) fn new(bytes_max: u64, thread_count: usize) -> Self {
        let options = OptionsBuilder::new()
            .shards((bytes_max / SHARD_BYTES_MIN).clamp(1, SHARDS_MAX) as usize)
            .estimated_items_capacity((bytes_max / CHUNK_BYTES_USUAL) as usize + 1)
            .weight_capacity(bytes_max)
            .build()
            .expect("all options are given");
        let (sender, receiver) = crossbeam_channel::bounded(QUEUE_LEN_MAX);
        Self {
            cache: Cache::with_options(
                options,
                ByBytes,
                BuildHasherDefault::default(),
                DefaultLifecycle::default(),
            ),
            spare: Arc::default(),
            uses: AtomicU64::new(0),
            idle: Mutex::default(),
            sender,
            receiver,
            thread_count,
        }
    }

    /// Starts the threads, as they are asked for.
    pub(super) fn start(
        area: &Arc<Self>,
        store: &Arc<Store>,
    ) -> impl Iterator<Item = std::io::Result<JoinHandle<()>>> {
        (0..area.thread_count).map(|index| {
            let (area, store) = (Arc::clone(area), Arc::clone(store));
            std::thread::Builder::new()
                .name(format!("cfs-open-{index}"))
                .spawn(move || area.work(&store))
        })
    }

    /// The content of a chunk, from the store if it is not here. Who asks for one that is being opened waits for it.
    ///
    /// # Errors
    /// As [`Store::read_chunk`]; [`ReadError::Record`] when the content is not as long as its extent says.
    pub(super) fn get(
        &self,
        store: &Store,
        fingerprint: &Fingerprint,
        chunk_len: u32,
    ) -> Result<Content, ReadError> {
        self.uses.fetch_add(1, Ordering::Relaxed);
        let content = self.cache.get_or_insert_with(fingerprint, || {
            if chunk_len as usize > CHUNK_BYTES_MAX {
                return Err(wrong_length());
            }
            let mut opened = self.opened(self.spare.take(chunk_len as usize));
            store.read_chunk(fingerprint, &mut opened.bytes)?;
            Ok(Arc::new(opened))
        })?;
        if content.len() == chunk_len as usize {
            Ok(content)
        } else {
            Err(wrong_length())
        }
    }

    fn opened(&self, bytes: Vec<u8>) -> Opened {
        Opened {
            bytes,
            home: Arc::clone(&self.spare),
        }
    }

    /// Opens chunks that are wanted soon, and that nobody is opening. A failure is met again, and reported, by who reads.
    fn open_together(&self, store: &Store, wanted: &[(Fingerprint, u32)]) {
        self.uses.fetch_add(wanted.len() as u64, Ordering::Relaxed);
        let mut fingerprints = Vec::with_capacity(wanted.len());
        // Who asks for one of these meanwhile waits for it.
        let mut places = Vec::with_capacity(wanted.len());
        for (fingerprint, chunk_len) in wanted {
            if *chunk_len as usize <= CHUNK_BYTES_MAX
                && let GuardResult::Guard(guard) = self
                    .cache
                    .get_value_or_guard(fingerprint, Some(Duration::ZERO))
            {
                fingerprints.push(*fingerprint);
                places.push((*chunk_len as usize, Some(guard)));
            }
        }
        let lens: Vec<usize> = places.iter().map(|(len, _)| *len).collect();
        store.read_chunks(
            &fingerprints,
            |index| self.spare.take(lens[index]),
            |index, bytes| {
                let opened = self.opened(bytes);
                if opened.len() == lens[index]
                    && let Some(guard) = places[index].1.take()
                {
                    // It may have been let go of meanwhile.
                    let _ = guard.insert(Arc::new(opened));
                }
            },
        );
    }

    /// Gives up all memory if nobody has asked for a chunk for a while. Called now and then.
    pub(super) fn trim(&self, now_ns: u64) {
        let uses = self.uses.load(Ordering::Relaxed);
        let mut idle = self.idle.lock();
        if idle.uses != uses {
            *idle = Idle {
                uses,
                since_ns: now_ns,
            };
        } else if now_ns.saturating_sub(idle.since_ns) >= IDLE_NS {
            self.cache.clear();
            self.spare.clear();
        }
    }

    /// The chunk is not likely to be asked for again soon.
    pub(super) fn let_go(&self, fingerprint: &Fingerprint) {
        self.cache.remove(fingerprint);
    }

    pub(super) fn contains(&self, fingerprint: &Fingerprint) -> bool {
        self.cache.contains_key(fingerprint)
    }

    /// Asks for chunks, given with their lengths, to be opened ahead, several by a thread. Nothing happens without threads,
    /// or when they have enough to do.
    pub(super) fn open_ahead(&self, chunks: impl Iterator<Item = (Fingerprint, u32)>) {
        if self.thread_count == 0 {
            return;
        }
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        for (fingerprint, chunk_len) in chunks {
            if self.contains(&fingerprint) {
                continue;
            }
            batch.push((fingerprint, chunk_len));
            batch_bytes += chunk_len;
            if batch_bytes >= BATCH_BYTES {
                let _ = self.sender.try_send(Task::Open(std::mem::take(&mut batch)));
                batch_bytes = 0;
            }
        }
        if !batch.is_empty() {
            let _ = self.sender.try_send(Task::Open(batch));
        }
    }

    /// Opens those that are not here and that nobody is opening, in this thread.
    pub(super) fn open_missing(
        &self,
        store: &Store,
        chunks: impl Iterator<Item = (Fingerprint, u32)>,
    ) {
        let missing: Vec<_> = chunks.filter(|(chunk, _)| !self.contains(chunk)).collect();
        if !missing.is_empty() {
            self.open_together(store, &missing);
        }
    }

    fn work(&self, store: &Store) {
        for task in &self.receiver {
            match task {
                Task::Open(chunks) => self.open_together(store, &chunks),
                Task::Stop => return,
            }
        }
    }

    /// Has the threads end when they have done what they were asked for.
    pub(super) fn stop(&self) {
        for _ in 0..self.thread_count {
            // The receiver lives in the same struct.
            let _ = self.sender.send(Task::Stop);
        }
    }
}

fn wrong_length() -> ReadError {
    ReadError::Record {
        what: "extent: length of its chunk",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_nobody_uses_goes_back() {
        let area = HotArea::new(64 << 20, 0);
        let fill = || {
            let opened = Opened {
                bytes: area.spare.take(100_000),
                home: Arc::clone(&area.spare),
            };
            area.uses.fetch_add(1, Ordering::Relaxed);
            area.cache.insert(Fingerprint([7; 32]), Arc::new(opened));
        };
        fill();
        area.trim(1);
        area.trim(IDLE_NS);
        assert!(area.bytes() > 0, "used less than a while ago");
        fill();
        area.trim(IDLE_NS + 1);
        assert!(area.bytes() > 0, "used since");
        area.trim(2 * IDLE_NS + 1);
        assert_eq!(area.bytes(), 0);
        assert_eq!(area.spare.classes.lock().bytes, 0);
    }

    #[test]
    fn memory_is_used_again() {
        let spare = Spare::default();
        let vector = spare.take(100_000);
        let address = vector.as_ptr();
        spare.give_back(vector);
        let larger = spare.take(400_000);
        assert_ne!(larger.as_ptr(), address);
        let again = spare.take(70_000);
        assert_eq!(again.as_ptr(), address);
        spare.give_back(again);
        (0..1000).for_each(|_| spare.give_back(Vec::with_capacity(4 * CLASS_BYTES)));
        assert!(spare.classes.lock().bytes <= SPARE_BYTES_MAX);
        spare.give_back(Vec::new());
    }
}
