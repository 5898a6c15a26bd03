//! Making a pool, opening one, and recovering what the last process left.
//!
//! Opening never trusts a byte that is not authenticated: the superblock's MAC needs the right key, the manifest and
//! the table blocks their tags, the log its batches. Until the incarnation has been counted up in the superblock
//! nothing else is written, but for damaged blocks of log and manifests, which get back the very bytes that were sealed
//! for their place; from then on no nonce of the process before can come again.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use cfs_device::Device;
use cfs_format::journal::{KIND_NAMESPACE, KIND_STORE};
use cfs_format::segment::Stream;
use cfs_format::superblock::{ANCHORS, CHUNKER_GEAR, ChunkParams, KeySlot, Superblock};
use cfs_format::table::{PoolRecord, RecountRecord, SegmentRecord, VolumeRecord, system_key, tag};
use cfs_format::{
    DomainId, FORMAT_VERSION, Ino, Lsn, SEGMENT_BYTES, SegmentId, SegmentSeq, Timestamp, VolumeId,
};
use cfs_kv::{Batch, BlockCache, Tree, TreeOptions};
use cfs_seal::block::Cipher;
use cfs_seal::keys::{ClusterKey, DomainSecret};
use zerocopy::FromBytes;

use crate::anchor::{self, Anchors};
use crate::checkpoint::ManifestSegment;
use crate::chunks::{CHUNK_BYTES_MAX, Pins, SealLane};
use crate::directory::TableOwner;
use crate::error::{FormatPoolError, OpenError, ReadError, UnlockError, WriteError};
use crate::heal;
use crate::journal::Journal;
use crate::lanes::Lanes;
use crate::log_reader::{LogReader, LogTail, LoggedRecord};
use crate::pool::{Host, Pool};
use crate::runs::{SegmentRuns, TreeRuns};
use crate::space::{Entry, Space, State};
use crate::store::{Maintenance, Store, StoreOptions, WriterState};
use crate::sync::{AtomicU64, Mutex, Ordering, RwLock};
use crate::txn::{Mode, Txn};
use crate::verdicts::Verdicts;

/// Smallest pool, bytes: the reserve, the log, the tables, and a little data.
pub const POOL_BYTES_MIN: u64 = 64 * SEGMENT_BYTES as u64;

/// A pool can be opened so often: the number is part of every [`SegmentSeq`].
const INCARNATION_MAX: u32 = (1 << 24) - 1;

/// A pool has one lane for so many of its segments at most.
const SEGMENTS_A_LANE: u32 = 16;

/// Block size of the tables, bytes before compression.
const TABLE_BLOCK_BYTES: usize = 8 << 10;

/// What a new pool is told.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// Cipher of everything in it.
    pub cipher: Cipher,
    /// Chunker parameters.
    pub chunk: ChunkParams,
    /// Most bytes it may take; 0 when the device alone decides.
    pub pool_bytes_max: u64,
    /// The secret of its first dedup domain, which is that of a pool that it is to be a replica of; else a new one.
    pub domain_secret: Option<Arc<DomainSecret>>,
}

impl Store {
    /// Makes a pool on a device. `slot` holds the cluster key, wrapped.
    ///
    /// # Errors
    /// There is a pool already (nothing changed), the device is too small (nothing changed) or fails.
    pub fn format(
        device: &Arc<dyn Device>,
        host: &Arc<dyn Host>,
        cluster_key: ClusterKey,
        slot: KeySlot,
        options: &FormatOptions,
    ) -> Result<(), FormatPoolError> {
        let segments_max = options.pool_bytes_max / u64::from(SEGMENT_BYTES);
        let segment_count = usable_segments(&**device, segments_max);
        let device_bytes = u64::from(segment_count) * u64::from(SEGMENT_BYTES);
        if device_bytes < POOL_BYTES_MIN {
            return Err(FormatPoolError::TooSmall {
                needed_bytes: POOL_BYTES_MIN,
                device_bytes,
            });
        }
        match anchor::read_superblock(&**device) {
            Err(OpenError::NotAPool) => {}
            Err(OpenError::Device(error)) => return Err(error.into()),
            _ => return Err(FormatPoolError::Exists),
        }
        let zeros = vec![0; SEGMENT_BYTES as usize];
        device.prepare(SegmentId(0), ANCHORS)?;
        for segment in 0..ANCHORS {
            device.write_at(SegmentId(segment), 0, &zeros)?;
        }
        device.flush()?;
        let mut uuid = [0; 16];
        host.fill_random(&mut uuid);
        let superblock = Superblock {
            magic: cfs_format::superblock::MAGIC,
            version: FORMAT_VERSION.into(),
            segment_bytes: SEGMENT_BYTES.into(),
            pool_uuid: uuid,
            created_ns: host.now_ns().into(),
            cipher: options.cipher.number(),
            reserved: [0; 7],
            chunk: options.chunk,
            segments_max: segments_max.into(),
            key_slot: slot,
            generation: 0.into(),
            incarnation: 1.into(),
            clean: 1.into(),
            journal: Default::default(),
            manifest: Default::default(),
            manifest_copy: Default::default(),
            checkpoint_timestamp: 0.into(),
        };
        let secret = options.domain_secret.clone().unwrap_or_else(|| {
            let mut secret = [0; 32];
            host.fill_random(&mut secret);
            Arc::new(DomainSecret::from_bytes(secret))
        });
        let stored_secret = cluster_key.wrap_domain_secret(DomainId::DEFAULT, &secret);
        let mut space = Space::new(segment_count, device.geometry().sparse);
        space.end_replay();
        let pool = Arc::new(Pool::new(
            Arc::clone(device),
            Arc::clone(host),
            cluster_key,
            options.cipher,
            uuid,
            1,
            space,
        ));
        let store = Self::assemble(
            pool,
            superblock,
            Anchors::empty(),
            StoreOptions::default(),
            None,
        )
        .expect("new trees read nothing");
        let mut batch = Batch::new();
        batch.put(
            system_key(tag::DOMAIN, &DomainId::DEFAULT.0.to_be_bytes()),
            stored_secret.to_vec(),
        );
        store.meta_tree.apply(&batch);
        store.next_ino.store(Ino::ROOT.0, Ordering::Relaxed);
        store.start_journal(1)?;
        store.close()?;
        Ok(())
    }

    /// Opens a pool and replays its log: `replay` applies each namespace command to the transaction it is given,
    /// which is then committed.
    ///
    /// # Errors
    /// See [`OpenError`]. Up to and including [`OpenError::WrongKey`] nothing has changed on the device.
    pub fn open(
        device: Arc<dyn Device>,
        host: Arc<dyn Host>,
        unlock: impl FnOnce(&Superblock) -> Result<ClusterKey, UnlockError>,
        options: StoreOptions,
        mut replay: impl FnMut(&mut Txn<'_>, &[u8]) -> Result<(), ReplayError>,
    ) -> Result<Arc<Self>, OpenError> {
        let (unverified, mut anchors) = anchor::scan(&*device)?;
        let mut superblock = unverified.superblock;
        let cluster_key = unlock(&superblock).map_err(|error| match error {
            UnlockError::WrongKey => OpenError::WrongKey,
            UnlockError::Unavailable(reason) => OpenError::Unlock(reason),
        })?;
        if !unverified.is_authentic(&cluster_key) {
            return Err(OpenError::Superblock(
                "it was not written by this pool's key".into(),
            ));
        }
        check_superblock(&superblock)?;
        if superblock.manifest.stored_len.get() == 0 {
            return Err(OpenError::Checkpoint(
                "rebuilding the index was not finished".into(),
            ));
        }
        if superblock.segments_max.get() > 0 {
            let wished = options.pool_bytes_max / u64::from(SEGMENT_BYTES);
            superblock.segments_max = superblock.segments_max.get().max(wished).into();
        }
        let incarnation = superblock.incarnation.get() + 1;
        let pool = pool_of(
            device,
            host,
            cluster_key,
            &Superblock {
                incarnation: incarnation.into(),
                ..superblock
            },
        )?;
        let position = superblock.journal;
        let was_clean = superblock.clean.get() == 1;
        let (tail, log_loss) = Self::read_log(&pool, &superblock, options)?;
        let (manifest, manifest_segments) = Self::read_manifest(&pool, &superblock.manifest)
            .or_else(|error| {
                let copy = Self::read_manifest(&pool, &superblock.manifest_copy)?;
                tracing::warn!(%error, "the first copy of the manifest cannot be read");
                Ok(copy)
            })
            .map_err(|error: ReadError| OpenError::Checkpoint(error.to_string()))?;

        superblock.incarnation = incarnation.into();
        superblock.clean = 0.into();
        superblock.generation += 1;
        anchors.append(&*pool.device, &superblock, &pool.cluster_key)?;

        let mut all_manifest_segments = BTreeSet::new();
        {
            let mut space = pool.space.lock();
            let table = |seq, used_bytes| Entry {
                seq: SegmentSeq(seq),
                live_bytes: 0,
                used_bytes,
                pins: 0,
                changed_ms: 0,
                state: State::Full(Stream::Table),
            };
            for (segment, seq, used_bytes) in &manifest.segments {
                claim(&mut space, SegmentId(*segment), table(*seq, *used_bytes))?;
            }
            for found in manifest_segments.iter().copied().chain(
                [&superblock.manifest, &superblock.manifest_copy].map(ManifestSegment::of_root),
            ) {
                claim(
                    &mut space,
                    found.segment,
                    table(found.seq.0, found.used_bytes),
                )?;
                all_manifest_segments.insert(found.segment);
            }
            for (segment, seq) in &tail.segments {
                let entry = Entry {
                    seq: *seq,
                    live_bytes: 0,
                    used_bytes: SEGMENT_BYTES,
                    pins: 0,
                    changed_ms: 0,
                    state: State::Full(Stream::Journal),
                };
                claim(&mut space, *segment, entry)?;
            }
        }
        let mut store = Self::assemble(pool, superblock, anchors, options, Some(&manifest))?;
        store.was_unclean = !was_clean;
        if let Some(loss) = log_loss {
            store.log_loss.get_or_init(|| loss);
        }
        store.check_run_segments()?;
        store.maintenance.lock().manifest_segments = all_manifest_segments.into_iter().collect();
        store.load_system_records()?;
        let next_lsn = store.replay(
            tail.records,
            tail.durable_lsn,
            position.lsn.get(),
            &mut replay,
        )?;
        {
            let mut space = store.pool.space.lock();
            space.end_replay();
            space.room.find_room(&*store.pool.device, was_clean)?;
        }
        store.start_journal(next_lsn)?;
        if was_clean && next_lsn == position.lsn.get() {
            store.leave_old_journal()?;
        } else {
            let mut maintenance = store.maintenance.lock();
            store.merge_on_full_host(&mut maintenance)?;
            store.checkpoint_now(&mut maintenance)?;
        }
        Ok(Arc::new(store))
    }

    /// Reads the log and restores what is damaged in it.
    fn read_log(
        pool: &Pool,
        superblock: &Superblock,
        options: StoreOptions,
    ) -> Result<(LogTail, Option<String>), OpenError> {
        let reader = LogReader {
            device: &*pool.device,
            cipher: &pool.ciphers.journal,
            key: &pool.cluster_key,
            uuid: &pool.uuid,
            was_closed: superblock.clean.get() == 1,
        };
        let tail = reader.read(&superblock.journal);
        for repaired in &tail.repaired {
            heal::write_back(pool, repaired.segment, repaired.block, &repaired.bytes);
        }
        if let Some(lost) = tail.lost {
            let error = OpenError::LogDamaged {
                segment: lost.segment,
                offset: lost.offset,
                last_lsn: lost.lsn.0 - 1,
                durable_lsn: lost.durable_lsn.0,
            };
            if !options.accept_log_loss {
                return Err(error);
            }
            tracing::warn!(%error, "going on without what is lost");
            return Ok((tail, Some(error.to_string())));
        }
        Ok((tail, None))
    }

    pub(crate) fn assemble(
        pool: Arc<Pool>,
        superblock: Superblock,
        anchors: Anchors,
        options: StoreOptions,
        manifest: Option<&crate::checkpoint::Manifest>,
    ) -> Result<Self, OpenError> {
        #[cfg(feature = "planted-bugs")]
        {
            *crate::txn::COUNTED_LATER.lock() = None;
        }
        let runs = Arc::new(SegmentRuns::new(Arc::clone(&pool)));
        let block_cache = Arc::new(BlockCache::new(options.block_cache_bytes));
        let tree_options = TreeOptions {
            memtable_bytes_max: options.memtable_bytes_max,
            block_bytes: TABLE_BLOCK_BYTES,
            ..TreeOptions::default()
        };
        let tree = |owner, bytes: Option<&[u8]>| {
            let runs: Arc<dyn cfs_kv::RunStore> = Arc::new(TreeRuns {
                runs: Arc::clone(&runs),
                owner,
            });
            match bytes {
                None => Ok(Tree::create(
                    runs,
                    Arc::clone(&block_cache),
                    tree_options.clone(),
                )),
                Some(bytes) => {
                    Tree::open(runs, Arc::clone(&block_cache), tree_options.clone(), bytes)
                        .map_err(|error| OpenError::Checkpoint(error.to_string()))
                }
            }
        };
        // Each keeps a segment open, which a small pool has few of.
        let lanes_max = pool.space.lock().segment_count() / SEGMENTS_A_LANE;
        let lane_count = options.lanes.min(lanes_max as usize).max(1);
        let lanes = Arc::new(Lanes::new(Arc::clone(&pool), lane_count));
        let last_checkpoint_ns = pool.host.now_ns();
        Ok(Self {
            seal_lanes: (0..=lane_count)
                .map(|_| Mutex::new(SealLane::new(&pool)))
                .collect(),
            lanes,
            pins: Arc::new(Pins::new()),
            meta_tree: tree(
                TableOwner::Meta,
                manifest.map(|manifest| &manifest.meta[..]),
            )?,
            chunk_tree: tree(
                TableOwner::Chunk,
                manifest.map(|manifest| &manifest.chunk[..]),
            )?,
            runs,
            block_cache,
            journal: std::sync::OnceLock::new(),
            verdicts: Verdicts::default(),
            was_unclean: false,
            making_room: Mutex::new(()),
            cleaning: Mutex::new(()),
            books: Mutex::default(),
            pace: crate::pace::Pace::default(),
            writer: Mutex::new(WriterState {
                last_timestamp: Timestamp(superblock.checkpoint_timestamp.get()),
                pool: PoolRecord::default(),
                recount: RecountRecord::default(),
                volumes_changed: BTreeSet::new(),
                newest_snapshot: Timestamp(0),
            }),
            volumes: RwLock::new(HashMap::new()),
            domains: RwLock::new(HashMap::new()),
            next_ino: AtomicU64::new(0),
            maintenance: Mutex::new(Maintenance {
                checkpoint_lsn: Lsn(superblock.journal.lsn.get().saturating_sub(1)),
                merged_lsn: Lsn(0),
                merges_wait: false,
                has_merged: false,
                stuck_segments: BTreeSet::new(),
                superblock,
                anchors,
                manifest_segments: Vec::new(),
                unnamed_from: SegmentSeq(u64::MAX),
                last_checkpoint_ns,
            }),
            noted_at: Mutex::new(None),
            refused_at_ns: AtomicU64::new(0),
            options,
            log_loss: std::sync::OnceLock::new(),
            unflushed_since_ns: AtomicU64::new(0),
            pool,
        })
    }

    pub(crate) fn start_journal(&self, next_lsn: u64) -> Result<(), crate::error::WriteError> {
        // All numbers of before are known by now.
        self.maintenance.lock().unnamed_from = self.pool.next_segment_seq();
        let journal = Journal::start(Arc::clone(&self.pool), Arc::clone(&self.lanes), next_lsn)?;
        assert!(
            self.journal.set(journal).is_ok(),
            "the journal is started once"
        );
        Ok(())
    }

    /// That the manifest lists every segment that its runs lie in.
    fn check_run_segments(&self) -> Result<(), OpenError> {
        let space = self.pool.space.lock();
        let extents = self.meta_tree.extents().into_iter();
        for extent in extents.chain(self.chunk_tree.extents()) {
            let segment = u32::try_from(extent).map(SegmentId);
            let entry = segment.ok().and_then(|segment| space.entry(segment));
            if !entry.is_some_and(|entry| entry.state == State::Full(Stream::Table)) {
                return Err(OpenError::Checkpoint(format!(
                    "a run lies in segment {extent}, which the manifest does not list"
                )));
            }
        }
        Ok(())
    }

    /// The checkpoint is good as it is; only the log goes on elsewhere.
    pub(crate) fn point_at_journal(&self, maintenance: &mut Maintenance) -> Result<(), WriteError> {
        self.pool.flush()?;
        let Maintenance {
            superblock,
            anchors,
            ..
        } = maintenance;
        superblock.journal = self.journal().position();
        superblock.generation += 1;
        anchors
            .append(&*self.pool.device, superblock, &self.pool.cluster_key)
            .map_err(|error| self.pool.fail(&error))
    }

    /// After a clean shutdown nothing of the log of the process before is needed.
    fn leave_old_journal(&self) -> Result<(), WriteError> {
        self.point_at_journal(&mut self.maintenance.lock())?;
        let in_use = self.journal().current_segments();
        let mut space = self.pool.space.lock();
        let old: Vec<SegmentId> = space
            .entries()
            .filter(|(segment, entry)| {
                entry.state == State::Full(Stream::Journal) && !in_use.contains(segment)
            })
            .map(|(segment, _)| segment)
            .collect();
        for segment in old {
            space.retire(segment);
        }
        Ok(())
    }

    /// Segment table, volumes, domains and counters, as of the checkpoint.
    pub(crate) fn load_system_records(&self) -> Result<(), OpenError> {
        let bad = |what| OpenError::Read(ReadError::Record { what });
        let lo = system_key(0, &[]);
        let hi = system_key(tag::FIRST_OF_FILE_SYSTEM, &[]);
        for row in self.range(&lo, &hi) {
            let (key, value) = row.map_err(ReadError::from)?;
            let (_, tag, suffix) =
                cfs_format::table::split_key(&key).map_err(|_| bad("key of a system record"))?;
            match tag {
                tag::SEGMENT => {
                    let segment = suffix.try_into().map_err(|_| bad("segment key"))?;
                    let segment = SegmentId(u32::from_be_bytes(segment));
                    let record =
                        SegmentRecord::read_from_bytes(&value).map_err(|_| bad("segment"))?;
                    let stream =
                        Stream::from_number(record.stream).ok_or_else(|| bad("segment stream"))?;
                    let entry = Entry {
                        seq: SegmentSeq(record.seq.get()),
                        live_bytes: record.live_bytes.get(),
                        used_bytes: record.used_bytes.get(),
                        pins: 0,
                        changed_ms: 0,
                        state: State::Full(stream),
                    };
                    claim(&mut self.pool.space.lock(), segment, entry)?;
                }
                tag::POOL => {
                    self.writer.lock().pool =
                        PoolRecord::read_from_bytes(&value).map_err(|_| bad("pool counters"))?;
                }
                tag::RECOUNT => {
                    self.writer.lock().recount =
                        RecountRecord::read_from_bytes(&value).map_err(|_| bad("recount"))?;
                }
                tag::VOLUME => {
                    let volume = suffix.try_into().map_err(|_| bad("volume key"))?;
                    let volume = VolumeId(u32::from_be_bytes(volume));
                    let record = VolumeRecord::decode(&value).map_err(|_| bad("volume"))?;
                    let newest = Timestamp(record.newest_snapshot.get());
                    let mut writer = self.writer.lock();
                    writer.newest_snapshot = writer.newest_snapshot.max(newest);
                    drop(writer);
                    self.volumes.write().insert(volume, record);
                }
                tag::DOMAIN => {
                    let domain = suffix.try_into().map_err(|_| bad("domain key"))?;
                    let domain = DomainId(u16::from_be_bytes(domain));
                    let stored: [u8; 32] =
                        value.as_slice().try_into().map_err(|_| bad("domain"))?;
                    let secret = self.pool.cluster_key.unwrap_domain_secret(domain, &stored);
                    self.domains.write().insert(domain, Arc::new(secret));
                }
                tag::NEXT_INO => {
                    let next: [u8; 8] = value
                        .as_slice()
                        .try_into()
                        .map_err(|_| bad("next inode number"))?;
                    self.next_ino
                        .store(u64::from_le_bytes(next), Ordering::Relaxed);
                }
                // Lists that are read where they are worked off; they may be long.
                tag::ORPHAN | tag::DEAD_CHUNK | tag::FRAGMENTED => {}
                _ => return Err(bad("system record of an unknown kind")),
            }
        }
        Ok(())
    }

    /// Applies the log. Returns the LSN of the first command after it.
    fn replay(
        &self,
        records: Vec<LoggedRecord>,
        durable_lsn: Lsn,
        first_lsn: u64,
        replay: &mut impl FnMut(&mut Txn<'_>, &[u8]) -> Result<(), ReplayError>,
    ) -> Result<u64, OpenError> {
        let mut next_lsn = first_lsn;
        let last_lsn = records.last().map_or(first_lsn, |record| record.lsn.0);
        for record in records {
            let verify = record.lsn > durable_lsn;
            let error = |reason: String| OpenError::Replay {
                lsn: record.lsn.0,
                reason,
            };
            let mut txn = Txn::new(
                self,
                self.writer.lock(),
                Mode::Replay { verify },
                record.timestamp,
            );
            let applied = match record.kind {
                KIND_NAMESPACE => replay(&mut txn, &record.command),
                KIND_STORE => self.apply_store_command(&mut txn, &record.command),
                kind => return Err(error(format!("a command of unknown kind {kind}"))),
            };
            match applied {
                Ok(()) => {}
                Err(ReplayError::Read(read_error @ ReadError::NotWritten { .. })) => {
                    tracing::warn!(
                        first = record.lsn.0,
                        changes = last_lsn + 1 - record.lsn.0,
                        error = %read_error,
                        "the last changes had not been flushed and are left out: content of the first of them is not there"
                    );
                    break;
                }
                Err(ReplayError::Read(read_error)) => return Err(error(read_error.to_string())),
                Err(ReplayError::Other(reason)) => return Err(error(reason)),
            }
            txn.commit(&record.command)?;
            next_lsn = record.lsn.0 + 1;
        }
        Ok(next_lsn)
    }
}

/// Why a command of the log was not applied.
#[derive(Debug)]
pub enum ReplayError {
    /// Something that it needs cannot be read. [`ReadError::NotWritten`] ends the log; anything else is no sign that
    /// the command was not acknowledged, and ends the opening.
    Read(ReadError),
    /// It does not fit the tables, or is not a command.
    Other(String),
}

impl From<ReadError> for ReplayError {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

/// Numbers that the pool's own key has sealed and that make no sense all the same: a pool written by a build with a
/// fault, or by nobody who means well.
pub(crate) fn check_superblock(superblock: &Superblock) -> Result<(), OpenError> {
    let wrong = |what: &str| Err(OpenError::Superblock(format!("{what} is out of range")));
    if superblock.chunk.max.get() as usize > CHUNK_BYTES_MAX {
        return wrong("the length of chunks");
    }
    if superblock.journal.lsn.get() == 0 {
        return wrong("the log's position");
    }
    // What is counted up from here must not end.
    if superblock.incarnation.get() >= INCARNATION_MAX {
        return wrong("the number of openings");
    }
    if superblock.generation.get() > u64::MAX / 2
        || superblock.journal.lsn.get() > u64::MAX / 2
        || superblock.checkpoint_timestamp.get() > u64::MAX / 2
    {
        return wrong("a counter");
    }
    Ok(())
}

/// The pool that a superblock describes; its segment table is empty.
pub(crate) fn pool_of(
    device: Arc<dyn Device>,
    host: Arc<dyn Host>,
    cluster_key: ClusterKey,
    superblock: &Superblock,
) -> Result<Arc<Pool>, OpenError> {
    let cipher = Cipher::from_number(superblock.cipher)
        .ok_or_else(|| OpenError::Superblock("unknown cipher".into()))?;
    let chunk = &superblock.chunk;
    cfs_seal::chunker::ChunkParams::new(chunk.min.get(), chunk.avg.get(), chunk.max.get())
        .map_err(|error| OpenError::Superblock(error.to_string()))?;
    if chunk.algorithm.get() != CHUNKER_GEAR {
        return Err(OpenError::Superblock(
            "unknown way of cutting chunks".into(),
        ));
    }
    let segment_count = usable_segments(&*device, superblock.segments_max.get());
    let space = Space::new(segment_count, device.geometry().sparse);
    Ok(Arc::new(Pool::new(
        device,
        host,
        cluster_key,
        cipher,
        superblock.pool_uuid,
        superblock.incarnation.get(),
        space,
    )))
}

pub(crate) fn usable_segments(device: &dyn Device, segments_max: u64) -> u32 {
    let count = device.geometry().segment_count;
    match u32::try_from(segments_max) {
        Ok(max) if max > 0 => count.min(max),
        _ => count,
    }
}

fn claim(space: &mut Space, segment: SegmentId, entry: Entry) -> Result<(), OpenError> {
    if segment.0 >= space.segment_count() {
        return Err(OpenError::Truncated {
            segment,
            segment_count: space.segment_count(),
        });
    }
    space.claim(segment, entry);
    Ok(())
}
