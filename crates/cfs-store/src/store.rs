//! The store as its users see it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use cfs_format::superblock::{JournalPosition, Superblock};
use cfs_format::table::{PoolRecord, RecountRecord, VolumeRecord};
use cfs_format::{DomainId, Ino, Lsn, SegmentId, SegmentSeq, Timestamp, VolumeId};
use cfs_kv::{BlockCache, Tree, View};
use cfs_seal::codec::Codec;
use cfs_seal::keys::DomainSecret;

use crate::anchor::Anchors;
use crate::chunks::{Pins, SealLane};
use crate::error::{NoSpace, ReadError, WriteError};
use crate::journal::Journal;
use crate::lanes::Lanes;
use crate::pace::Pace;
use crate::pass::Books;
use crate::pool::Pool;
use crate::runs::SegmentRuns;
use crate::space::SegmentCounts;
use crate::sync::{AtomicU64, Mutex, Ordering, RwLock};
use crate::verdicts::Verdicts;

/// How a store uses memory and threads.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// Workers that may call [`Store::put_chunk`] at the same time without waiting for each other; a small pool has fewer.
    pub lanes: usize,
    /// Budget of the tables' block cache, bytes.
    pub block_cache_bytes: u64,
    /// Size at which a memtable is written out, bytes.
    pub memtable_bytes_max: usize,
    /// Go on with what could be read of a damaged log, although acknowledged commands are lost then.
    pub accept_log_loss: bool,
    /// Most room that the pool may take on its device from now on, bytes, where it was made with less. Zero, or less than
    /// it has, changes nothing, nor does it where there is no limit.
    pub pool_bytes_max: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            lanes: 2,
            block_cache_bytes: 64 << 20,
            memtable_bytes_max: 32 << 20,
            accept_log_loss: false,
            pool_bytes_max: 0,
        }
    }
}

/// What a command in the making holds alone.
pub(crate) struct WriterState {
    pub last_timestamp: Timestamp,
    pub pool: PoolRecord,
    pub recount: RecountRecord,
    pub volumes_changed: BTreeSet<VolumeId>,
    /// At least that of every volume.
    pub newest_snapshot: Timestamp,
}

/// A log that is longer, on a host without room for what is kept, shows that no checkpoint has found room for a while.
const LOG_BYTES_ON_FULL_HOST: u64 = 6 << 20;

/// What checkpoints and compaction hold alone.
pub(crate) struct Maintenance {
    pub superblock: Superblock,
    pub anchors: Anchors,
    /// Segments of the last checkpoint's manifests.
    pub manifest_segments: Vec<SegmentId>,
    /// No durable manifest names table segments from this number on.
    pub unnamed_from: SegmentSeq,
    pub last_checkpoint_ns: u64,
    /// Log position of the last checkpoint.
    pub checkpoint_lsn: Lsn,
    /// What was in the log when the tables were last merged for want of room.
    pub merged_lsn: Lsn,
    /// A merge of table runs has found no room since the last checkpoint.
    pub merges_wait: bool,
    /// Runs have been merged since the last checkpoint; the next one frees what they were made of.
    pub has_merged: bool,
    /// Segments with live records that could not be moved.
    pub stuck_segments: BTreeSet<SegmentId>,
}

/// A pool that is open.
///
/// Order of locks: `making_room`, `cleaning`, `maintenance`, `writer`, the pins, the journal's writer, its queue, a seal lane, a
/// lane, the pool's space. Who holds one takes none before it. Who holds `books`, the
/// verdicts, or the volumes or domains takes none at all. A block is repaired under the lock of `Healing`, beside
/// any of them but the space, and takes none.
pub struct Store {
    pub(crate) pool: Arc<Pool>,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) seal_lanes: Vec<Mutex<SealLane>>,
    pub(crate) pins: Arc<Pins>,
    pub(crate) runs: Arc<SegmentRuns>,
    pub(crate) meta_tree: Tree,
    pub(crate) chunk_tree: Tree,
    pub(crate) block_cache: Arc<BlockCache>,
    pub(crate) journal: std::sync::OnceLock<Journal>,
    pub(crate) writer: Mutex<WriterState>,
    pub(crate) verdicts: Verdicts,
    /// The pool had not been closed when it was opened.
    pub(crate) was_unclean: bool,
    /// Held by who frees segments for a writer that found no room.
    pub(crate) making_room: Mutex<()>,
    /// Held by who empties segments.
    pub(crate) cleaning: Mutex<()>,
    pub(crate) books: Mutex<Books>,
    pub(crate) pace: Pace,
    pub(crate) volumes: RwLock<HashMap<VolumeId, VolumeRecord>>,
    pub(crate) domains: RwLock<HashMap<DomainId, Arc<DomainSecret>>>,
    pub(crate) next_ino: AtomicU64,
    pub(crate) maintenance: Mutex<Maintenance>,
    /// A run with a note about a checkpoint at this place of the log has been written, and not been merged, by an attempt
    /// that found no room for the rest.
    pub(crate) noted_at: Mutex<Option<JournalPosition>>,
    /// When a command that waited for a checkpoint was last told that there is no room for one.
    pub(crate) refused_at_ns: AtomicU64,
    pub(crate) options: StoreOptions,
    /// What of the log was lost when the pool was opened, and accepted.
    pub(crate) log_loss: std::sync::OnceLock<String>,
    /// Nanoseconds since 1970 at which the oldest unflushed command was seen by `tick`; 0 when there is none.
    pub(crate) unflushed_since_ns: AtomicU64,
}

/// Whether the pool can be written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Yes.
    Good,
    /// No: the device failed, or [`Store::refuse_writes`] was called.
    ReadOnly {
        /// The failure, or what was given.
        reason: Arc<str>,
    },
}

/// Figures for `status`.
#[derive(Clone, Copy, Debug)]
pub struct StoreStats {
    /// Chunks and references.
    pub pool: PoolRecord,
    /// Segments by use.
    pub segments: SegmentCounts,
    /// Bytes that the device takes from its host, where it is sparse.
    pub host_allocated_bytes: Option<u64>,
    /// Bytes that could still be accepted.
    pub available_bytes: u64,
    /// Bytes promised to writes that are on their way.
    pub promised_bytes: u64,
    /// Live bytes in data segments.
    pub live_bytes: u64,
    /// Bytes written in data segments.
    pub data_used_bytes: u64,
    /// Bytes of the log that a replay would read.
    pub replay_bytes: u64,
    /// Memtables, bytes.
    pub memtable_bytes: u64,
    /// Newest command.
    pub last_lsn: Lsn,
    /// Newest durable command.
    pub durable_lsn: Lsn,
    /// The tables' block cache, bytes.
    pub block_cache_bytes: u64,
    /// Damaged blocks of tables and log that parity has brought back since the pool was opened.
    pub healed_blocks: u64,
    /// Chunks that are lost or could not be opened when somebody asked for them, and have not been replaced since.
    pub damaged_chunks: u64,
    /// Blocks of tables that could not be read since the pool was opened, up to a thousand.
    pub unreadable_table_blocks: u64,
}

/// Room that has been promised; given back when dropped.
pub struct Reservation {
    pool: Arc<Pool>,
    bytes: u64,
}

impl Reservation {
    /// Bytes promised.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives back all but `bytes`.
    pub fn shrink_to(&mut self, bytes: u64) {
        if bytes < self.bytes {
            #[cfg(feature = "planted-bugs")]
            if cfs_format::planted::has(cfs_format::planted::Bug::ReservationLeak) {
                self.bytes = bytes;
                return;
            }
            self.pool.space.lock().unpromise(self.bytes - bytes);
            self.bytes = bytes;
        }
    }

    /// Takes over another one's room.
    pub fn merge(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.pool.space.lock().unpromise(self.bytes);
        }
    }
}

impl Store {
    pub(crate) fn journal(&self) -> &Journal {
        self.journal
            .get()
            .expect("set before the store is handed out")
    }

    /// The newest committed value at `key` of the meta tree.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ReadError> {
        Ok(self.meta_tree.get(key)?)
    }

    /// Rows of the meta tree in `[lo, hi)`, as of now.
    #[must_use]
    pub fn range(&self, lo: &[u8], hi: &[u8]) -> cfs_kv::Range {
        self.meta_tree
            .range(std::ops::Bound::Included(lo), std::ops::Bound::Excluded(hi))
    }

    /// The meta tree as of now.
    #[must_use]
    pub fn view(&self) -> View {
        self.meta_tree.view()
    }

    /// A volume, with its counters as of the newest command.
    #[must_use]
    pub fn volume(&self, volume: VolumeId) -> Option<VolumeRecord> {
        self.volumes.read().get(&volume).copied()
    }

    /// How the content of the root volume is compressed.
    pub(crate) fn root_codec(&self) -> Codec {
        let root = self.volume(VolumeId::ROOT);
        let codec = root.and_then(|root| Codec::from_numbers(root.codec, root.codec_level));
        codec.unwrap_or_default()
    }

    /// All volumes.
    #[must_use]
    pub fn volumes(&self) -> Vec<(VolumeId, VolumeRecord)> {
        let mut volumes: Vec<_> = self
            .volumes
            .read()
            .iter()
            .map(|(id, record)| (*id, *record))
            .collect();
        volumes.sort_unstable_by_key(|(id, _)| *id);
        volumes
    }

    /// The dedup domains of the pool.
    #[must_use]
    pub fn domains(&self) -> Vec<DomainId> {
        let mut domains: Vec<_> = self.domains.read().keys().copied().collect();
        domains.sort_unstable();
        domains
    }

    /// A domain that there is not yet, and a new secret for it as the tables hold it: masked by the cluster key. Its number
    /// is any that is free, so that hardly ever two pools use one for different domains: what one sends keeps its number in
    /// the other. `None` when there are as many as there can be.
    #[must_use]
    pub fn new_domain(&self) -> Option<(DomainId, [u8; 32])> {
        let known = self.domains();
        if known.len() >= usize::from(u16::MAX) {
            return None;
        }
        let domain = loop {
            let mut number = [0; 2];
            self.pool.host.fill_random(&mut number);
            let domain = DomainId(u16::from_le_bytes(number));
            if domain != DomainId::DEFAULT && known.binary_search(&domain).is_err() {
                break domain;
            }
        };
        let mut secret = [0; 32];
        self.pool.host.fill_random(&mut secret);
        let secret = DomainSecret::from_bytes(secret);
        let stored = self.pool.cluster_key.wrap_domain_secret(domain, &secret);
        Some((domain, stored))
    }

    /// The pool's superblock as of the last checkpoint.
    #[must_use]
    pub fn superblock(&self) -> Superblock {
        self.maintenance.lock().superblock
    }

    /// An inode number that was never used. The command that uses it calls [`crate::Txn::note_ino`].
    pub fn allocate_ino(&self) -> Ino {
        Ino(self.next_ino.fetch_add(1, Ordering::Relaxed))
    }

    /// What of the log was lost when the pool was opened with [`StoreOptions::accept_log_loss`].
    #[must_use]
    pub fn log_loss(&self) -> Option<&str> {
        self.log_loss.get().map(String::as_str)
    }

    /// A number above all inode numbers that were ever given out.
    #[must_use]
    pub fn next_ino(&self) -> Ino {
        Ino(self.next_ino.load(Ordering::Relaxed))
    }

    /// Promises room for `bytes` of data that have been accepted and not yet been stored.
    ///
    /// # Errors
    /// There is not enough room.
    pub fn admit(&self, bytes: u64) -> Result<Reservation, NoSpace> {
        self.pool.promise(bytes)?;
        Ok(Reservation {
            pool: Arc::clone(&self.pool),
            bytes,
        })
    }

    /// Whether what deletes something may add to the tables, though there is no room for others: as long as three quarters of
    /// the reserve are left, which taking names and reclaim need; and on a full host as long as the log is short, since checkpoints
    /// find room, or takes none of what opening the pool does.
    #[must_use]
    pub fn may_delete(&self) -> bool {
        let is_short = self.journal().replay_bytes() < LOG_BYTES_ON_FULL_HOST;
        let space = self.pool.space.lock();
        space.has_room_to_delete() && (is_short || space.room.has_room_for_log())
    }

    /// Bytes that could be accepted now.
    #[must_use]
    pub fn available_bytes(&self) -> u64 {
        let (available, held, left) = {
            let space = self.pool.space.lock();
            let (held, left) = (space.room.held_bytes(), space.merge_bytes());
            (space.available_bytes(), held, left)
        };
        match self.pool.device.host_space() {
            Ok(Some(host)) => available.min((host.available_bytes + held).saturating_sub(left)),
            _ => available,
        }
    }

    /// Whether nobody has used the pool for some seconds, as of the last [`Store::tick`].
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.pace.load() == crate::pace::Load::Idle
    }

    /// A number that grows with each command, each chunk that is put or read, and each step of background work.
    #[must_use]
    pub fn activity(&self) -> u64 {
        self.pace.count() + self.journal().last_lsn().0
    }

    /// Whether the last process that had the pool ended without closing it.
    #[must_use]
    pub fn was_unclean(&self) -> bool {
        self.was_unclean
    }

    /// Returns when everything that was committed before the call is durable. Those who wait at the same time share
    /// one flush.
    ///
    /// # Errors
    /// The pool is, or goes, read-only: whether the commands are durable is then unknown.
    pub fn sync(&self) -> Result<(), WriteError> {
        self.sync_to(self.last_lsn())
    }

    /// The newest command that is committed.
    #[must_use]
    pub fn last_lsn(&self) -> Lsn {
        self.journal().last_lsn()
    }

    /// Whether the commands up to this one are durable.
    #[must_use]
    pub fn is_durable(&self, lsn: Lsn) -> bool {
        self.journal().durable_lsn() >= lsn
    }

    /// Waits until a command is committed that [`Store::write_log`] has not written, at most for `patience`, or until
    /// [`Store::end_wait`].
    pub fn wait_for_commands(&self, patience: Duration) {
        self.journal().wait_for_commands(patience);
    }

    /// Who is in [`Store::wait_for_commands`], or comes there next, returns at once.
    pub fn end_wait(&self) {
        self.journal().end_wait();
    }

    /// Writes what is committed to the device without flushing it. To be called by one thread over and over: what is
    /// committed then outlives this process.
    ///
    /// # Errors
    /// The pool is, or goes, read-only.
    pub fn write_log(&self) -> Result<(), WriteError> {
        self.journal().write_out()
    }

    /// Returns when `lsn` is durable.
    ///
    /// # Errors
    /// As [`Store::sync`].
    pub fn sync_to(&self, lsn: Lsn) -> Result<(), WriteError> {
        self.journal().sync_to(lsn)
    }

    /// Number of lanes for [`Store::put_chunk`].
    #[must_use]
    pub fn lanes(&self) -> usize {
        self.lanes.data_lanes()
    }

    /// Makes the pool read-only from now on, for this reason. What has been accepted and not written by now stays so.
    pub fn refuse_writes(&self, reason: &str) {
        self.pool.refuse_writes(reason);
    }

    /// Whether the pool can be written to.
    #[must_use]
    pub fn health(&self) -> Health {
        match self.pool.failure() {
            None => Health::Good,
            Some(reason) => Health::ReadOnly { reason },
        }
    }

    /// Figures for `status`.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        let pool = self.writer.lock().pool;
        let host = self.pool.device.host_space().ok().flatten();
        let journal = self.journal();
        let (last_lsn, durable_lsn) = (journal.last_lsn(), journal.durable_lsn());
        let replay_bytes = journal.replay_bytes();
        let bad_chunks = pool.bad_chunks.get();
        let damaged_chunks = bad_chunks.saturating_add_signed(self.verdicts.difference());
        let space = self.pool.space.lock();
        let (mut live_bytes, mut data_used_bytes) = (0, 0);
        for (_, entry) in space.entries() {
            if entry.is_data() {
                live_bytes += u64::from(entry.live_bytes);
                data_used_bytes += u64::from(entry.used_bytes);
            }
        }
        let available = space.available_bytes();
        let held = space.room.held_bytes();
        let host_available = host.map(|host| host.available_bytes.saturating_add(held));
        StoreStats {
            pool,
            segments: space.counts(),
            host_allocated_bytes: host.map(|host| host.allocated_bytes),
            available_bytes: match self.health() {
                Health::Good => host_available.map_or(available, |host| available.min(host)),
                Health::ReadOnly { .. } => 0,
            },
            promised_bytes: space.promised_bytes(),
            live_bytes,
            data_used_bytes,
            replay_bytes,
            memtable_bytes: (self.meta_tree.memtable_bytes() + self.chunk_tree.memtable_bytes())
                as u64,
            last_lsn,
            durable_lsn,
            block_cache_bytes: self.block_cache.bytes(),
            healed_blocks: self.pool.healing.healed_blocks(),
            damaged_chunks,
            unreadable_table_blocks: self.runs.unreadable_blocks(),
        }
    }
}
