//! The hot area: opened chunks in memory, found by fingerprint, and the threads that open more of them ahead.

use std::sync::Arc;
use std::thread::JoinHandle;

use cfs_format::Fingerprint;
use cfs_store::{ReadError, Store};
use crossbeam_channel::{Receiver, Sender};
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

/// The content of a chunk.
pub(super) type Content = Arc<Vec<u8>>;

/// Usual length of a chunk, bytes; for the cache's first guess at its number of entries.
const CHUNK_BYTES_USUAL: u64 = 128 << 10;

/// Parts of the cache with a lock each are at least this large, so that a chunk is small beside one.
const SHARD_BYTES_MIN: u64 = 16 << 20;
const SHARDS_MAX: u64 = 32;

/// Chunks that wait to be opened ahead at most; more are not asked for.
const QUEUE_LEN_MAX: usize = 256;

#[derive(Clone)]
struct ByBytes;

impl Weighter<Fingerprint, Content> for ByBytes {
    fn weight(&self, _: &Fingerprint, content: &Content) -> u64 {
        content.capacity() as u64
    }
}

pub(super) struct HotArea {
    cache: Cache<Fingerprint, Content, ByBytes>,
    sender: Sender<Task>,
    receiver: Receiver<Task>,
    thread_count: usize,
}

enum Task {
    Open(Fingerprint, u32),
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
                DefaultHashBuilder::default(),
                DefaultLifecycle::default(),
            ),
            sender,
            receiver,
            thread_count,
        }
    }

    /// Starts the threads.
    pub(super) fn start(area: &Arc<Self>, store: &Arc<Store>) -> Vec<JoinHandle<()>> {
        (0..area.thread_count)
            .map(|index| {
                let (area, store) = (Arc::clone(area), Arc::clone(store));
                std::thread::Builder::new()
                    .name(format!("cfs-open-{index}"))
                    .spawn(move || area.work(&store))
                    .expect("the system can start a thread")
            })
            .collect()
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
        let content = self.cache.get_or_insert_with(fingerprint, || {
            let mut content = Vec::with_capacity(chunk_len as usize);
            store.read_chunk(fingerprint, &mut content)?;
            Ok::<_, ReadError>(Arc::new(content))
        })?;
        if content.len() == chunk_len as usize {
            Ok(content)
        } else {
            Err(ReadError::Record {
                what: "extent: length of its chunk",
            })
        }
    }

    pub(super) fn contains(&self, fingerprint: &Fingerprint) -> bool {
        self.cache.contains_key(fingerprint)
    }

    /// Asks for a chunk to be opened ahead. Nothing happens without threads, or when they have enough to do.
    pub(super) fn open_ahead(&self, fingerprint: Fingerprint, chunk_len: u32) {
        if self.thread_count > 0 {
            let _ = self.sender.try_send(Task::Open(fingerprint, chunk_len));
        }
    }

    fn work(&self, store: &Store) {
        for task in &self.receiver {
            match task {
                // A failure is met again, and reported, by who reads.
                Task::Open(fingerprint, chunk_len) => {
                    let _ = self.get(store, &fingerprint, chunk_len);
                }
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
