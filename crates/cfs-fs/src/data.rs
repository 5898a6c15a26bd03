//! The data path: what is in memory of files, from `write` to commands and from extents to `read`.
//!
//! | module | holds |
//! | --- | --- |
//! | `buffer` | warm memory, and the count of what is in use |
//! | `body` | one file's dirty runs and jobs in flight, and how they lie on the tables |
//! | `flush` | runs to chunks to jobs |
//! | `commit` | jobs to commands |
//! | `lanes` | the sealing threads |
//! | `quota` | what volumes may grow by |
//! | `pressure` | the list of dirty files, back-pressure, aged flushes |
//! | `read`, `windows`, `hot` | reading, decoded extents, opened chunks |
//! | `ranges` | truncate, punch, shift, copy, seek |
//! | `rechunk` | putting fragmented files together again |
//! | `api` | the methods of [`crate::Fs`] |
//!
//! Locks are taken in this order and never the other way: that of files in hand, a file's body, the list of dirty files, the
//! store's. Two bodies are locked together by `copy_range` alone, in the order of inode numbers. No lock is held while
//! waiting for room or for a job, but that of the condition's own file, which waiting releases.

mod api;
mod body;
mod buffer;
mod commit;
mod flush;
mod hot;
mod lanes;
mod pressure;
pub(crate) mod quota;
mod ranges;
pub(crate) mod read;
mod rechunk;
mod windows;
mod write;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use cfs_format::table::{InodeRecord, inode_flag};
use cfs_format::{DomainId, Ino, VolumeId};
use cfs_seal::chunker::{ChunkParams, Chunker};
use cfs_seal::keys::FileKey;
use cfs_store::{Host, Store};
use parking_lot::Mutex;

use crate::error::{FsError, Result};
use crate::types::{AtimePolicy, FsOptions, Time};
use crate::views::{Views, listed_by};
use crate::{inode, lock};

use body::{Body, FileState, Identity};
use buffer::Buffers;
use hot::HotArea;
use lanes::Lanes;
use pressure::DirtyList;
use rechunk::Rechunker;

pub use ranges::AllocateMode;

/// Parts of the map of files, each with a lock of its own.
const SHARDS: usize = 64;

/// Ticks for which the state of a file that nobody uses is kept.
const IDLE_TICKS_MAX: u64 = 100;
/// Data that could not be stored are tried again so often, in ticks.
const RETRY_TICKS: u64 = 50;

/// A file that is read all the time has its access time looked at this often, nanoseconds; at once after any change.
const ATIME_INTERVAL_NS: u64 = 1_000_000_000;

/// One sequential reader has as much of the hot area read ahead at most, one part in so many: others would lose theirs before
/// they come to it.
const READAHEAD_SHARE: u64 = 8;
/// A file takes at most the hot area's size divided by this of it when it is read in order.
const STREAM_SHARE: u64 = 16;

/// Everything in memory of files, and the threads that work on it. Dropping it stops the threads; what is dirty then
/// is lost, as in a crash.
pub(crate) struct Files {
    core: Arc<Core>,
    threads: Vec<JoinHandle<()>>,
}

/// What the threads share.
pub(crate) struct Core {
    store: Arc<Store>,
    host: Arc<dyn Host>,
    views: Arc<Views>,
    chunker: Chunker,
    chunk_bytes_max: usize,
    dirty_bytes_max: AtomicU64,
    flush_after_ns: u64,
    readahead_bytes: u64,
    /// Who reads a file of this size in order lets go of the chunks behind.
    stream_bytes_min: u64,
    /// How often reading looks at the access time.
    atime_interval_ns: u64,
    shards: [Mutex<HashMap<Ino, Arc<FileState>>>; SHARDS],
    buffers: Arc<Buffers>,
    flying_bytes: Arc<AtomicU64>,
    flying_jobs: Arc<AtomicU64>,
    dirty: DirtyList,
    hot: Arc<HotArea>,
    lanes: Lanes,
    /// Whose turn it is among the lanes without a thread.
    turn: AtomicUsize,
    ticks: AtomicU64,
    rechunker: Mutex<Rechunker>,
    pub(crate) quotas: quota::Quotas,
}

impl Deref for Files {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.core.lanes.stop();
        self.core.hot.stop();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a data thread has panicked");
            }
        }
    }
}

impl Files {
    /// No file has anything in memory.
    ///
    /// # Errors
    /// The system starts no more threads; none is left.
    ///
    /// # Panics
    /// When the pool's chunk parameters are none that the chunker takes; the store checks them when it opens.
    pub(crate) fn new(
        store: Arc<Store>,
        host: Arc<dyn Host>,
        views: Arc<Views>,
        options: &FsOptions,
    ) -> std::io::Result<Self> {
        let params = store.superblock().chunk;
        let params = ChunkParams::new(params.min.get(), params.avg.get(), params.max.get())
            .expect("the store has checked the parameters");
        let buffer_bytes = usize::try_from(options.dirty_bytes_max).unwrap_or(usize::MAX);
        let threads = options.seal_threads.min(store.lanes());
        let hot = Arc::new(HotArea::new(options.hot_bytes, threads));
        let core = Arc::new(Core {
            chunker: Chunker::new(params),
            chunk_bytes_max: params.max() as usize,
            dirty_bytes_max: AtomicU64::new(options.dirty_bytes_max),
            flush_after_ns: options.flush_after_ms.saturating_mul(1_000_000),
            readahead_bytes: options
                .readahead_bytes
                .min(options.hot_bytes / READAHEAD_SHARE),
            stream_bytes_min: options.hot_bytes / STREAM_SHARE,
            atime_interval_ns: match options.atime {
                AtimePolicy::Strict => 0,
                AtimePolicy::Relatime => ATIME_INTERVAL_NS,
                AtimePolicy::Noatime => u64::MAX,
            },
            shards: std::array::from_fn(|_| Mutex::default()),
            buffers: Buffers::new(buffer_bytes),
            flying_bytes: Arc::default(),
            flying_jobs: Arc::default(),
            dirty: DirtyList::default(),
            hot: Arc::clone(&hot),
            lanes: Lanes::new(threads),
            turn: AtomicUsize::new(0),
            ticks: AtomicU64::new(0),
            rechunker: Mutex::default(),
            quotas: quota::Quotas::default(),
            store,
            host,
            views,
        });
        let mut files = Self {
            core: Arc::clone(&core),
            threads: Vec::new(),
        };
        for thread in Lanes::start(&core).chain(HotArea::start(&hot, &core.store)) {
            files.threads.push(thread?);
        }
        Ok(files)
    }
}

impl Core {
    fn shard(&self, ino: Ino) -> &Mutex<HashMap<Ino, Arc<FileState>>> {
        &self.shards[ino.0 as usize % SHARDS]
    }

    /// The file's state, which is made if there is none.
    fn file(&self, ino: Ino) -> Arc<FileState> {
        let file = match self.shard(ino).lock().entry(ino) {
            Entry::Occupied(entry) => Arc::clone(entry.get()),
            Entry::Vacant(entry) => Arc::clone(entry.insert(FileState::new(ino))),
        };
        file.used_at
            .store(self.ticks.load(Ordering::Relaxed), Ordering::Relaxed);
        file
    }

    /// The file's state, if there is one.
    fn known(&self, ino: Ino) -> Option<Arc<FileState>> {
        self.shard(ino).lock().get(&ino).cloned()
    }

    /// Every file's state, in the order of inode numbers, so that runs repeat.
    fn all(&self) -> Vec<Arc<FileState>> {
        let files =
            |shard: &Mutex<HashMap<_, _>>| -> Vec<_> { shard.lock().values().cloned().collect() };
        let mut all: Vec<Arc<FileState>> = self.shards.iter().flat_map(files).collect();
        all.sort_unstable_by_key(|file| file.ino);
        all
    }

    /// Makes sure that the body knows its inode.
    fn load(&self, file: &FileState, body: &mut Body) -> Result<()> {
        if body.gone {
            return Err(FsError::NotFound);
        }
        if let Some((view, _)) = file.ino.view() {
            if listed_by(file.ino).is_some() {
                return Err(FsError::IsDirectory);
            }
            // It may have been deleted.
            self.views.snapshot(view)?;
        }
        if body.identity.is_some() {
            return Ok(());
        }
        let found = self.views.find(file.ino)?.ok_or(FsError::NotFound)?;
        let (place, record) = (found.place, found.record);
        match inode::kind(&record) {
            libc::S_IFREG => {}
            libc::S_IFDIR => return Err(FsError::IsDirectory),
            _ => return Err(FsError::Invalid),
        }
        let volume = VolumeId(record.volume.get());
        let domain = self
            .store
            .volume(volume)
            .map(|volume| DomainId(volume.domain.get()))
            .ok_or_else(|| FsError::damaged(format_args!("volume {volume} is missing")))?;
        let secret = self
            .store
            .domain_secret(domain)
            .ok_or_else(|| FsError::damaged(format_args!("dedup domain {domain} is missing")))?;
        body.identity = Some(Identity {
            volume,
            domain,
            place,
            file_key: FileKey::derive(&secret, &record.salt),
        });
        self.show(file.ino, body, &record)
    }

    /// Has a body of which nothing is pending show what its inode's record says.
    fn show(&self, ino: Ino, body: &mut Body, record: &InodeRecord) -> Result<()> {
        body.locked_until_ms = match ino.view() {
            None => lock::committed(&self.views, body.identity().place, record)?
                .map_or(0, |lock| lock.ends_ms()),
            // A snapshot is not written to.
            Some(_) => 0,
        };
        let size = record.size.get();
        let inline = record.flags.get() & inode_flag::INLINE != 0;
        (body.size, body.submitted_size, body.committed_size) = (size, size, size);
        (body.submitted_inline, body.committed_inline) = (inline, inline);
        Ok(())
    }

    /// The inode's committed record, which `read` gets, with what is pending of the file over it.
    ///
    /// # Errors
    /// What `read` fails with.
    pub(crate) fn overlaid(
        &self,
        ino: Ino,
        read: impl FnOnce() -> Result<Option<InodeRecord>>,
    ) -> Result<Option<InodeRecord>> {
        let Some(file) = self.known(ino) else {
            return read();
        };
        // Before the record is read: what is committed in between would be neither in that record nor pending any more.
        let body = file.lock();
        let mut record = read()?;
        if let Some(record) = &mut record {
            body.overlay(record);
        }
        Ok(record)
    }

    /// Whether there is content of the file that is not in the tables yet.
    pub(crate) fn has_content_to_write(&self, ino: Ino) -> bool {
        self.known(ino).is_some_and(|file| {
            let body = file.lock();
            !body.jobs.is_empty() || body.is_dirty()
        })
    }

    /// A clone is gone: what is in memory of its files is dropped.
    pub(crate) fn forget_clone(&self, volume: VolumeId) {
        for file in self.all() {
            if file.ino.cloned().is_some_and(|(clone, _)| clone == volume) {
                self.forget(file.ino);
            }
        }
    }

    /// The inode is gone, or cannot be reached any more: what is in memory of it is dropped.
    pub(crate) fn forget(&self, ino: Ino) {
        let Some(file) = self.shard(ino).lock().remove(&ino) else {
            return;
        };
        let mut body = file.lock();
        // The job that is just being committed is taken out by who commits it.
        let kept = usize::from(body.committing).min(body.jobs.len());
        body.jobs.truncate(kept);
        body.abandon();
        drop(body);
        file.notify();
    }

    /// Notes that the file is in use: its state is kept.
    pub(crate) fn opened(&self, ino: Ino) {
        self.file(ino).opens.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends an [`Core::opened`].
    pub(crate) fn released(&self, ino: Ino) {
        if let Some(file) = self.known(ino) {
            // Files that were made, rather than opened, were not counted.
            let _ = file
                .opens
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |opens| {
                    opens.checked_sub(1)
                });
        }
    }

    fn now(&self) -> Time {
        Time::from_ns(self.host.now_ns())
    }

    /// Does background work that is due: flushes aged data, forgets unused states, re-chunks.
    ///
    /// # Errors
    /// The first failure of re-chunking. Failures of flushing stay with the files.
    pub(crate) fn tick(&self) -> Result<()> {
        self.flush_aged();
        let tick = self.forget_unused();
        if tick.is_multiple_of(RETRY_TICKS) {
            for file in self.all() {
                self.retry_failed(&file);
            }
        }
        self.rechunk_some()
    }

    /// Gives up memory that nobody uses: part of [`Files::tick`], whose number it returns.
    pub(crate) fn forget_unused(&self) -> u64 {
        self.buffers.trim();
        self.hot.trim(self.host.now_ns());
        let tick = self.ticks.fetch_add(1, Ordering::Relaxed) + 1;
        let oldest = tick.saturating_sub(IDLE_TICKS_MAX);
        self.shards[tick as usize % SHARDS]
            .lock()
            .retain(|_, file| {
                Arc::strong_count(file) > 1
                    || file.opens.load(Ordering::Relaxed) > 0
                    || file.used_at.load(Ordering::Relaxed) > oldest
                    || !file.is_idle()
            });
        tick
    }
}
