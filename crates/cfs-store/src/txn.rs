//! One command: what it reads and what it changes in the tables, as a whole or not at all.
//!
//! A transaction holds the store's writer lock from [`Store::begin`] to [`Txn::commit`]. It collects its changes and
//! touches nothing before it commits; dropping it changes nothing. In replay the same code runs with the timestamp
//! that was recorded.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use cfs_format::journal::{KIND_NAMESPACE, KIND_STORE};
use cfs_format::table::{
    ChunkRecord, LOST_SEGMENT, PoolRecord, VolumeRecord, chunk_flag, system_key, tag,
};
use cfs_format::{DomainId, Fingerprint, Ino, Lsn, SegmentId, Timestamp, VolumeId};
use cfs_kv::Batch;
use cfs_seal::keys::DomainSecret;
use zerocopy::IntoBytes;

use crate::chunks::NewChunk;
use crate::error::{ReadError, WriteError};
use crate::store::{Store, WriterState};
use crate::sync::MutexGuard;

#[cfg(feature = "planted-bugs")]
pub(crate) static COUNTED_LATER: parking_lot::Mutex<Option<Batch>> = parking_lot::Mutex::new(None);

/// A change of a volume's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeDelta {
    /// Bytes of content.
    pub logical_bytes: i64,
    /// Bytes that extents and inline data hold.
    pub allocated_bytes: i64,
    /// Inodes.
    pub inodes: i64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A new command: it is logged.
    Live,
    /// A command from the log. `verify`: it may not have been flushed, so the chunks it brings are checked.
    Replay { verify: bool },
    /// The same, when the index has been made from what lies in the segments: a chunk that it has not is lost, or, with
    /// `verify`, was never written.
    Rebuild { verify: bool },
}

/// A command in the making.
pub struct Txn<'a> {
    store: &'a Store,
    writer: MutexGuard<'a, WriterState>,
    mode: Mode,
    timestamp: Timestamp,
    meta: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// In order, so that what a commit does to the segment table repeats from run to run.
    chunks: BTreeMap<Fingerprint, ChunkChange>,
    /// `None` is a volume to remove.
    volumes: HashMap<VolumeId, Option<VolumeRecord>>,
    domains: Vec<(DomainId, Arc<DomainSecret>)>,
    pool: PoolRecord,
    next_ino: u64,
}

/// A chunk record before and after the command.
struct ChunkChange {
    before: Option<ChunkRecord>,
    after: Option<ChunkRecord>,
}

impl<'a> Txn<'a> {
    pub(crate) fn new(
        store: &'a Store,
        writer: MutexGuard<'a, WriterState>,
        mode: Mode,
        timestamp: Timestamp,
    ) -> Self {
        Self {
            store,
            mode,
            timestamp,
            meta: BTreeMap::new(),
            chunks: BTreeMap::new(),
            volumes: HashMap::new(),
            domains: Vec::new(),
            pool: writer.pool,
            next_ino: 0,
            writer,
        }
    }

    /// The command's place in time; larger than that of every command before it.
    #[must_use]
    pub fn timestamp(&self) -> Timestamp {
        self.timestamp
    }

    /// The value at `key` of the meta tree, as this command has left it so far.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ReadError> {
        match self.meta.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.store.get(key),
        }
    }

    /// The value at `key` of the meta tree before this command.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn before(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ReadError> {
        self.store.get(key)
    }

    /// Keys of the meta tree that this command has set or removed so far, in order.
    pub fn changed_keys(&self) -> impl Iterator<Item = &[u8]> {
        self.meta.keys().map(Vec::as_slice)
    }

    /// No volume has a newer snapshot; 0 when there is none. It may be larger than that of any volume.
    #[must_use]
    pub fn newest_snapshot(&self) -> Timestamp {
        self.writer.newest_snapshot
    }

    /// Rows of the meta tree in `[lo, hi)` as they were before this command.
    #[must_use]
    pub fn range(&self, lo: &[u8], hi: &[u8]) -> cfs_kv::Range {
        self.store.range(lo, hi)
    }

    /// Sets the value at `key` of the meta tree.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.meta.insert(key, Some(value));
    }

    /// Removes `key` from the meta tree; nothing happens where it is not there.
    pub fn delete(&mut self, key: Vec<u8>) {
        self.meta.insert(key, None);
    }

    fn chunk(&mut self, fingerprint: &Fingerprint) -> Result<&mut ChunkChange, ReadError> {
        if !self.chunks.contains_key(fingerprint) {
            let before = self.store.chunk_record(fingerprint)?;
            self.chunks.insert(
                *fingerprint,
                ChunkChange {
                    before,
                    after: before,
                },
            );
        }
        Ok(self
            .chunks
            .get_mut(fingerprint)
            .expect("inserted just above"))
    }

    /// Counts one more reference to a chunk; `new` describes it where the index may not know it yet.
    ///
    /// # Errors
    /// The index does not know it and `new` is missing, or, in replay, the chunk does not verify.
    pub fn chunk_ref(
        &mut self,
        fingerprint: &Fingerprint,
        new: Option<&NewChunk>,
    ) -> Result<(), ReadError> {
        let known = self.chunk(fingerprint)?.after;
        let mut record = match known {
            Some(record) => record,
            None => {
                let new = new.ok_or(ReadError::Missing {
                    fingerprint: *fingerprint,
                })?;
                if let Mode::Replay { verify } = self.mode {
                    self.store.accept_replayed_chunk(new, verify)?;
                }
                let is_lost = match self.mode {
                    Mode::Rebuild { .. } => !self.store.find_rebuilt_chunk(new),
                    Mode::Live | Mode::Replay { .. } => false,
                };
                if is_lost && matches!(self.mode, Mode::Rebuild { verify: true }) {
                    return Err(ReadError::NotWritten {
                        segment: new.segment,
                        offset: new.offset,
                        reason: "no segment holds it".into(),
                    });
                }
                self.pool.chunk_count += 1;
                self.pool.chunk_raw_bytes += u64::from(new.raw_len);
                if is_lost {
                    return self.lost_chunk_ref(fingerprint, new);
                }
                self.pool.chunk_stored_bytes += u64::from(new.record_len);
                ChunkRecord {
                    segment: new.segment.0.into(),
                    offset: new.offset.into(),
                    record_len: new.record_len.into(),
                    raw_len: new.raw_len.into(),
                    refs: 0.into(),
                    domain: new.domain.0.into(),
                    codec: new.codec,
                    flags: 0,
                }
            }
        };
        if known.is_some() && record.refs.get() == 0 {
            self.meta
                .insert(system_key(tag::DEAD_CHUNK, &fingerprint.0), None);
        }
        let refs = record.refs.get().checked_add(1);
        record.refs = refs
            .ok_or(ReadError::Contradiction {
                what: "a chunk has more references than can be counted",
            })?
            .into();
        self.pool.reference_count += 1;
        self.pool.referenced_bytes += u64::from(record.raw_len.get());
        self.chunk(fingerprint)?.after = Some(record);
        Ok(())
    }

    /// The first reference to a chunk that no segment holds.
    fn lost_chunk_ref(
        &mut self,
        fingerprint: &Fingerprint,
        new: &NewChunk,
    ) -> Result<(), ReadError> {
        self.pool.reference_count += 1;
        self.pool.referenced_bytes += u64::from(new.raw_len);
        self.chunk(fingerprint)?.after = Some(ChunkRecord {
            segment: LOST_SEGMENT.into(),
            raw_len: new.raw_len.into(),
            refs: 1.into(),
            domain: new.domain.0.into(),
            ..ChunkRecord::default()
        });
        Ok(())
    }

    /// Counts one reference less. At none the chunk becomes a candidate for reclaim.
    ///
    /// # Errors
    /// The index does not know the chunk, or counts no reference.
    pub fn chunk_unref(&mut self, fingerprint: &Fingerprint) -> Result<(), ReadError> {
        let change = self.chunk(fingerprint)?;
        let record = change.after.as_mut().ok_or(ReadError::Missing {
            fingerprint: *fingerprint,
        })?;
        let is_disputed = record.is_disputed();
        if is_disputed && record.refs.get() == 0 {
            return Ok(());
        }
        let refs = record.refs.get().checked_sub(1).ok_or(ReadError::Record {
            what: "chunk reference count",
        })?;
        record.refs.set(refs);
        let raw_len = u64::from(record.raw_len.get());
        self.pool.reference_count -= 1;
        self.pool.referenced_bytes -= raw_len;
        if refs == 0 && !is_disputed {
            self.meta.insert(
                system_key(tag::DEAD_CHUNK, &fingerprint.0),
                Some(Vec::new()),
            );
        }
        Ok(())
    }

    /// Takes an unreferenced chunk out of the index; false when it is referenced or gone.
    pub(crate) fn chunk_drop(&mut self, fingerprint: &Fingerprint) -> Result<bool, ReadError> {
        let change = self.chunk(fingerprint)?;
        let Some(record) = change.after.filter(|record| record.refs.get() == 0) else {
            return Ok(false);
        };
        change.after = None;
        self.pool.chunk_count -= 1;
        self.pool.chunk_raw_bytes -= u64::from(record.raw_len.get());
        self.pool.chunk_stored_bytes -= u64::from(record.record_len.get());
        self.meta
            .insert(system_key(tag::DEAD_CHUNK, &fingerprint.0), None);
        Ok(true)
    }

    /// Notes whether the record at `place` can be opened; false when the chunk lies elsewhere or that is known.
    pub(crate) fn chunk_judge(
        &mut self,
        fingerprint: &Fingerprint,
        place: (SegmentId, u32),
        is_damaged: bool,
    ) -> Result<bool, ReadError> {
        let Some(record) = self.chunk(fingerprint)?.after.as_mut() else {
            return Ok(false);
        };
        let is_there = (record.segment.get(), record.offset.get()) == (place.0.0, place.1);
        let flags = match is_damaged {
            true => record.flags | chunk_flag::DAMAGED,
            false => record.flags & !chunk_flag::DAMAGED,
        };
        if !is_there || record.is_lost() || record.flags == flags {
            return Ok(false);
        }
        record.flags = flags;
        Ok(true)
    }

    /// The chunk stays whatever its count; false when it is gone or that is known.
    pub(crate) fn chunk_dispute(&mut self, fingerprint: &Fingerprint) -> Result<bool, ReadError> {
        let Some(record) = self.chunk(fingerprint)?.after.as_mut() else {
            return Ok(false);
        };
        if record.is_disputed() {
            return Ok(false);
        }
        record.flags |= chunk_flag::DISPUTED;
        self.meta
            .insert(system_key(tag::DEAD_CHUNK, &fingerprint.0), None);
        Ok(true)
    }

    /// Points the index to sound content of a chunk, wherever it pointed to; false when the chunk is gone.
    pub(crate) fn chunk_replace(&mut self, to: &NewChunk) -> Result<bool, ReadError> {
        let Some(record) = self.chunk(&to.fingerprint)?.after.as_mut() else {
            return Ok(false);
        };
        record.flags &= !chunk_flag::DAMAGED;
        let from = (SegmentId(record.segment.get()), record.offset.get());
        self.chunk_move(&to.fingerprint, from, to)
    }

    /// Whether more extents show a chunk than are counted.
    pub(crate) fn chunk_is_disputed(
        &mut self,
        fingerprint: &Fingerprint,
    ) -> Result<bool, ReadError> {
        let record = self.chunk(fingerprint)?.after;
        Ok(record.is_some_and(|record| record.is_disputed()))
    }

    /// Points the index to another record of the same chunk, if it still points to `from`.
    pub(crate) fn chunk_move(
        &mut self,
        fingerprint: &Fingerprint,
        from: (SegmentId, u32),
        to: &NewChunk,
    ) -> Result<bool, ReadError> {
        let change = self.chunk(fingerprint)?;
        let Some(record) = change
            .after
            .as_mut()
            .filter(|record| (record.segment.get(), record.offset.get()) == (from.0.0, from.1))
        else {
            return Ok(false);
        };
        let old_len = u64::from(record.record_len.get());
        record.segment = to.segment.0.into();
        record.offset = to.offset.into();
        #[cfg(feature = "planted-bugs")]
        let forgets = cfs_format::planted::has(cfs_format::planted::Bug::ResealedLengthForgotten);
        #[cfg(not(feature = "planted-bugs"))]
        let forgets = false;
        if !forgets {
            record.record_len = to.record_len.into();
        }
        record.codec = to.codec;
        if let Mode::Replay { verify } = self.mode {
            self.store.accept_replayed_chunk(to, verify)?;
        }
        self.pool.chunk_stored_bytes += u64::from(to.record_len);
        self.pool.chunk_stored_bytes -= old_len;
        Ok(true)
    }

    /// The volume's record with what this command has changed so far.
    #[must_use]
    pub fn volume(&self, volume: VolumeId) -> Option<VolumeRecord> {
        match self.volumes.get(&volume) {
            Some(record) => *record,
            None => self.store.volume(volume),
        }
    }

    /// The volume that was there before this command and whose root is seen in the place of a junction.
    #[must_use]
    pub fn volume_at(&self, junction: Ino) -> Option<VolumeRecord> {
        let all = self.store.volumes().into_iter();
        all.map(|(_, volume)| volume)
            .find(|volume| volume.junction.get() == junction.0)
    }

    /// Volumes that this command has made or changed so far, each as it was before and as it is.
    pub fn changed_volumes(
        &self,
    ) -> impl Iterator<Item = (VolumeId, Option<VolumeRecord>, VolumeRecord)> {
        self.volumes
            .iter()
            .filter_map(|(id, record)| record.map(|record| (*id, self.store.volume(*id), record)))
    }

    /// All volumes with what this command has changed so far.
    #[must_use]
    pub fn volumes(&self) -> Vec<(VolumeId, VolumeRecord)> {
        let mut all: std::collections::BTreeMap<_, _> = self.store.volumes().into_iter().collect();
        for (id, record) in &self.volumes {
            match record {
                Some(record) => all.insert(*id, *record),
                None => all.remove(id),
            };
        }
        all.into_iter().collect()
    }

    /// The secret of a dedup domain.
    #[must_use]
    pub fn domain_secret(&self, domain: DomainId) -> Option<Arc<DomainSecret>> {
        self.store.domain_secret(domain)
    }

    /// Makes or replaces a volume.
    pub fn volume_put(&mut self, volume: VolumeId, record: VolumeRecord) {
        self.volumes.insert(volume, Some(record));
    }

    /// Removes a volume, of which no row may be left.
    pub fn volume_remove(&mut self, volume: VolumeId) {
        self.volumes.insert(volume, None);
    }

    /// Makes a dedup domain. `stored` is its secret as [`Store::new_domain`] gives it.
    pub fn domain_put(&mut self, domain: DomainId, stored: [u8; 32]) {
        let secret = self
            .store
            .pool
            .cluster_key
            .unwrap_domain_secret(domain, &stored);
        let key = system_key(tag::DOMAIN, &domain.0.to_be_bytes());
        self.meta.insert(key, Some(stored.to_vec()));
        self.domains.push((domain, Arc::new(secret)));
    }

    /// Changes a volume's counters.
    ///
    /// # Errors
    /// The volume does not exist, or a counter would become negative: the tables contradict themselves then. The
    /// transaction must be dropped.
    pub fn volume_add(&mut self, volume: VolumeId, delta: VolumeDelta) -> Result<(), ReadError> {
        let contradiction = |what| ReadError::Contradiction { what };
        let record = self.volume(volume);
        let mut record = record.ok_or_else(|| contradiction("an inode's volume does not exist"))?;
        let add = |counter: &mut zerocopy::little_endian::U64, delta: i64| {
            let sum = counter.get().checked_add_signed(delta);
            counter.set(
                sum.ok_or_else(|| contradiction("a volume has less than is removed from it"))?,
            );
            Ok::<(), ReadError>(())
        };
        // Sparse files have sizes without having content: three of the largest ones pass 2^64 together. The sum is
        // kept modulo that.
        let logical = record.logical_bytes.get();
        record
            .logical_bytes
            .set(logical.wrapping_add_signed(delta.logical_bytes));
        add(&mut record.allocated_bytes, delta.allocated_bytes)?;
        add(&mut record.inode_count, delta.inodes)?;
        self.volumes.insert(volume, Some(record));
        Ok(())
    }

    /// The command uses this inode number; it will not be given out again.
    pub fn note_ino(&mut self, ino: Ino) {
        self.next_ino = self.next_ino.max(ino.base().0 + 1);
    }

    /// Applies and logs a namespace command: readers see it at once, it is durable after [`Store::sync_to`].
    ///
    /// # Errors
    /// [`WriteError::ReadOnly`]: nothing changed.
    pub fn commit(self, command: &[u8]) -> Result<Lsn, WriteError> {
        self.commit_kind(KIND_NAMESPACE, command)
    }

    pub(crate) fn commit_store(self, command: &[u8]) -> Result<Lsn, WriteError> {
        self.commit_kind(KIND_STORE, command)
    }

    fn commit_kind(self, kind: u8, command: &[u8]) -> Result<Lsn, WriteError> {
        let Self {
            store,
            mut writer,
            mode,
            timestamp,
            meta,
            chunks,
            volumes,
            domains,
            mut pool,
            next_ino,
        } = self;
        if mode == Mode::Live {
            store.pool.writable()?;
        }
        let mut chunk_batch = Batch::new();
        let mut live = Vec::new();
        for (fingerprint, change) in chunks {
            if change.before == change.after {
                continue;
            }
            if change.before.is_some_and(|record| record.is_bad()) {
                // Rows of a damaged pool may say otherwise.
                pool.bad_chunks = pool.bad_chunks.get().saturating_sub(1).into();
            }
            if change.after.is_some_and(|record| record.is_bad()) {
                pool.bad_chunks += 1;
            }
            if let Some(record) = change.before {
                live.push((record.segment.get(), -i64::from(record.record_len.get())));
            }
            match change.after {
                Some(record) => {
                    live.push((record.segment.get(), i64::from(record.record_len.get())));
                    chunk_batch.put(fingerprint.0.to_vec(), record.as_bytes().to_vec());
                }
                #[cfg(feature = "planted-bugs")]
                None if cfs_format::planted::has(cfs_format::planted::Bug::StaleIndexEntry) => {}
                None => chunk_batch.delete(fingerprint.0.to_vec()),
            }
        }
        // Additions first, so that a segment is not taken for empty in between.
        live.sort_by_key(|(_, delta)| std::cmp::Reverse(*delta));
        {
            let now_ms = timestamp.0 >> 16;
            let mut space = store.pool.space.lock();
            for (segment, delta) in live {
                space.add_live(SegmentId(segment), delta, now_ms);
            }
        }
        let mut meta_batch = Batch::new();
        for (key, value) in meta {
            match value {
                Some(value) => meta_batch.put(key, value),
                None => meta_batch.delete(key),
            }
        }
        if !volumes.is_empty() {
            let mut all = store.volumes.write();
            for (volume, record) in volumes {
                match record {
                    Some(record) => {
                        let newest = Timestamp(record.newest_snapshot.get());
                        writer.newest_snapshot = writer.newest_snapshot.max(newest);
                        all.insert(volume, record);
                    }
                    None => {
                        all.remove(&volume);
                    }
                }
                writer.volumes_changed.insert(volume);
            }
        }
        if !domains.is_empty() {
            store.domains.write().extend(domains);
        }
        writer.pool = pool;
        writer.last_timestamp = timestamp;
        if next_ino > 0 {
            store
                .next_ino
                .fetch_max(next_ino, crate::sync::Ordering::Relaxed);
        }
        #[cfg(feature = "planted-bugs")]
        if cfs_format::planted::has(cfs_format::planted::Bug::CountAfterExtent) {
            if let Some(earlier) = COUNTED_LATER.lock().replace(chunk_batch) {
                store.chunk_tree.apply(&earlier);
            }
            chunk_batch = Batch::new();
        }
        // The index first: whoever sees an extent finds its chunk.
        store.chunk_tree.apply(&chunk_batch);
        store.meta_tree.apply(&meta_batch);
        if kind == KIND_NAMESPACE {
            store.pace.note_use();
        }
        Ok(match mode {
            Mode::Live => store.journal().enqueue(timestamp, kind, command),
            Mode::Replay { .. } | Mode::Rebuild { .. } => Lsn(0),
        })
    }
}

impl Store {
    /// Starts a command. Waits until the one before it is committed or dropped.
    pub fn begin(&self) -> Txn<'_> {
        self.throttle();
        let writer = self.writer.lock();
        let now = Timestamp((self.pool.host.now_ns() / 1_000_000) << 16);
        let timestamp = now.max(Timestamp(writer.last_timestamp.0 + 1));
        Txn::new(self, writer, Mode::Live, timestamp)
    }

    /// Whether a chunk that a command of the log brings, and that no segment was found to hold, is where the command says: a
    /// power cut may have kept it and not the header of its segment. The segment is in use from then on.
    fn find_rebuilt_chunk(&self, new: &NewChunk) -> bool {
        let was_free = {
            let space = self.pool.space.lock();
            new.segment.0 < space.segment_count() && space.is_free(new.segment)
        };
        let is_there = self.accept_replayed_chunk(new, true).is_ok();
        if was_free && !is_there {
            self.pool.space.lock().unclaim(new.segment);
        }
        is_there
    }

    /// A chunk that a replayed command brings: its segment is in use; if it may not have been flushed, it is read.
    fn accept_replayed_chunk(&self, new: &NewChunk, verify: bool) -> Result<(), ReadError> {
        let damaged = |reason: &str| ReadError::Damaged {
            what: "chunk of a command in the log",
            segment: new.segment,
            offset: new.offset,
            reason: reason.into(),
        };
        {
            let mut space = self.pool.space.lock();
            if new.segment.0 >= space.segment_count() {
                return Err(damaged("the device has no such segment"));
            }
            if space.is_free(new.segment) {
                space.claim_replayed(new.segment, new.seq);
            } else if space.seq(new.segment) != Some(new.seq) {
                return Err(damaged("its segment has been used for something else"));
            }
        }
        #[cfg(feature = "planted-bugs")]
        let verify = verify && !cfs_format::planted::has(cfs_format::planted::Bug::TailBelieved);
        if verify {
            let record = ChunkRecord {
                segment: new.segment.0.into(),
                offset: new.offset.into(),
                record_len: new.record_len.into(),
                raw_len: new.raw_len.into(),
                ..ChunkRecord::default()
            };
            let mut content = Vec::new();
            self.read_chunk_at(&new.fingerprint, &record, &mut content)
                .map_err(|error| match error {
                    ReadError::Damaged {
                        segment,
                        offset,
                        reason,
                        ..
                    } => ReadError::NotWritten {
                        segment,
                        offset,
                        reason,
                    },
                    error => error,
                })?;
        }
        Ok(())
    }
}
