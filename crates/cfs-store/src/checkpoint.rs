//! Checkpoints: both trees and the superblock at one log position; and the background work that is due.
//!
//! Order of a checkpoint, each step after the one before:
//! 1. With no command in the making: write the queued log, note its position, put the counters into the tables,
//!    rotate both memtables. What is retired up to here is not needed by this checkpoint.
//! 2. Write out the lanes and flush: the log and all content that the tables will refer to are durable. So the tables of
//!    a checkpoint that did not come to its end are as good a source for a rebuild as those of one that did.
//! 3. Write the memtables as runs, and two copies of the manifest, and flush.
//! 4. Write the superblock to both anchors.
//! 5. Free what was retired.
//!
//! A failure before step 4 leaves the last checkpoint in force and what was retired waiting; its manifests are free again.

use cfs_format::segment::Stream;
use cfs_format::superblock::{BlobPointer, JournalPosition};
use cfs_format::table::{SegmentRecord, system_key, tag};
use cfs_format::{DomainId, SEGMENT_BYTES, SegmentId, SegmentSeq, Timestamp};
use cfs_kv::{Batch, RunError, Tree};
use cfs_seal::keys::DomainSecret;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use zerocopy::IntoBytes;

use crate::clean::Aim;
use crate::directory::{CheckpointMark, LogMark, TableOwner};
use crate::error::WriteError;
use crate::pace::Load;
use crate::runs::{SMALL_RUN_BYTES, SegmentRuns, TableBlock};
use crate::space::{Entry, Purpose, State};
use crate::store::{Maintenance, Store};
use crate::sync::Ordering;

/// Commands are made durable at the latest this long after they were first seen unflushed.
const FLUSH_AFTER_NS: u64 = 1_000_000_000;
/// A checkpoint is made at the latest this long after the last one when the log is not empty.
const CHECKPOINT_AFTER_NS: u64 = 30_000_000_000;
/// As above, when segments wait to become free and nobody uses the pool.
const CHECKPOINT_FOR_SPACE_AFTER_NS: u64 = 2_000_000_000;
/// As above, while it is in use: a checkpoint costs others a little.
const CHECKPOINT_FOR_SPACE_BUSY_AFTER_NS: u64 = 5_000_000_000;
/// Commands do not wait for another checkpoint so soon after one that failed.
const THROTTLE_AGAIN_NS: u64 = 1_000_000_000;
/// Segments whose room goes back to the host in one tick: while the pool is in use, and when it is idle.
const TRIMMED_SEGMENTS: (usize, usize) = (16, 128);
/// Commands of up to so many dropped chunks in one tick: while the pool is in use, and when it is idle.
const DROPS: (usize, usize) = (2, 8);
/// Tables with at least so many tombstones, and one in [`TOMBSTONE_SHARE`] entries, are merged when the pool is idle.
const TOMBSTONES: u64 = 1000;
const TOMBSTONE_SHARE: u64 = 8;
/// Table compaction steps in one tick.
const COMPACT_STEPS: usize = 4;
/// As above, when a pool that has been changed is closed.
const CLOSE_STEPS: usize = 64;
/// With less room than this, dead data are reclaimed as soon as there are any.
const LOW_BYTES: u64 = 64 * SEGMENT_BYTES as u64;
/// Tables of less than this are merged into few runs when there is little room, once they take this many segments, and a
/// quarter of those that they fill, more than they fill.
const SMALL_TABLES_BYTES: u64 = 32 << 20;
const SPARE_TABLE_SEGMENTS: u64 = 4;
/// From so many sorted runs in level 0 on, the small ones are merged with each other where the host has no room for what is kept.
const SORTED_RUNS_ON_FULL_HOST: u64 = 3;
/// Runs that store less than this together surely become one that fits a segment.
const RUN_IN_A_SEGMENT_BYTES: u64 = SEGMENT_BYTES as u64 * 3 / 4;
/// Bytes of one block of a manifest.
const MANIFEST_PIECE_BYTES: usize = 256 << 10;

/// What the superblock points to: both trees' manifests, and the segments that their runs lie in.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Where the log went on when it was written, and secrets. The superblock may know a later place that says the same.
    pub mark: CheckpointMark,
    pub meta: Vec<u8>,
    pub chunk: Vec<u8>,
    /// Segment number, sequence number, bytes used.
    pub segments: Vec<(u32, u64, u32)>,
}

/// Root of a stored manifest: the blocks that hold it. Those that lie in segments before that of the root lie in full
/// ones.
#[derive(Serialize, Deserialize)]
pub(crate) struct ManifestRoot {
    /// Place, stored length, sequence number of the segment.
    pub pieces: Vec<(u64, u32, u64)>,
}

/// A segment that holds a manifest or a part of one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ManifestSegment {
    pub segment: SegmentId,
    pub seq: SegmentSeq,
    pub used_bytes: u32,
}

impl ManifestSegment {
    /// The one with the root.
    pub fn of_root(pointer: &BlobPointer) -> Self {
        Self {
            segment: SegmentId(pointer.segment.get()),
            seq: SegmentSeq(pointer.seq.get()),
            used_bytes: pointer.segment_used_bytes.get(),
        }
    }
}

impl Store {
    /// Bytes of log that make a checkpoint due.
    fn replay_bytes_soft(&self) -> u64 {
        let space = self.pool.space.lock();
        // What a longer log makes of the tables when it is replayed needs more room than is kept for opening the pool.
        let segments = match space.room.lacks_host_room() {
            true => 1,
            false => (space.reserve_segments() / 4).max(2),
        };
        u64::from(segments) * u64::from(SEGMENT_BYTES)
    }

    fn memtable_bytes(&self) -> u64 {
        (self.meta_tree.memtable_bytes() + self.chunk_tree.memtable_bytes()) as u64
    }

    fn memtable_bytes_soft(&self) -> u64 {
        (self.options.memtable_bytes_max as u64).min(self.replay_bytes_soft())
    }

    /// Commands wait for a checkpoint here when the log or the memtables have become twice as long as they should.
    pub(crate) fn throttle(&self) {
        let over = |store: &Self| {
            store.journal().replay_bytes() > 2 * store.replay_bytes_soft()
                || store.memtable_bytes() > 2 * store.memtable_bytes_soft()
        };
        if !over(self) {
            return;
        }
        let now = self.pool.host.now_ns();
        let is_hopeless = |store: &Self| {
            let refused_at_ns = store.refused_at_ns.load(Ordering::Relaxed);
            now.saturating_sub(refused_at_ns) < THROTTLE_AGAIN_NS
        };
        if is_hopeless(self) {
            return;
        }
        let mut maintenance = self.maintenance.lock();
        if over(self)
            && !is_hopeless(self)
            && let Err(error) = self.checkpoint_now(&mut maintenance)
        {
            self.refused_at_ns.store(now, Ordering::Relaxed);
            tracing::warn!(%error, "a checkpoint that commands wait for failed");
        }
    }

    /// Makes a checkpoint.
    ///
    /// # Errors
    /// No space, or a failure of the device; the last checkpoint stays in force.
    pub fn checkpoint(&self) -> Result<(), WriteError> {
        self.checkpoint_now(&mut self.maintenance.lock())
    }

    /// Ends the use of the pool: everything becomes durable, the next open has nothing to replay.
    ///
    /// # Errors
    /// As [`Store::checkpoint`].
    pub fn close(&self) -> Result<(), WriteError> {
        // It would be a pity to fail for want of room for a hint.
        if self.available_bytes() >= LOW_BYTES
            && let Err(error) = self.keep_verdicts()
        {
            tracing::warn!(%error, "damaged chunks that were met are not marked");
        }
        let mut maintenance = self.maintenance.lock();
        self.lanes.seal_all()?;
        maintenance.superblock.clean = 1.into();
        let has_checkpoint = maintenance.superblock.manifest.stored_len.get() > 0;
        let has_changed =
            maintenance.has_merged || self.journal().last_lsn() != maintenance.checkpoint_lsn;
        if has_checkpoint && !has_changed {
            // Nothing has changed: another checkpoint would cost segments and say the same.
            self.point_at_journal(&mut maintenance)?;
        } else {
            // Processes that live for less than a tick would never merge anything. On a full host that would take what the
            // checkpoint needs.
            let has_room = !self.pool.space.lock().room.lacks_host_room();
            for _ in 0..if has_room { CLOSE_STEPS } else { 0 } {
                match self.compact_step(false) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        tracing::warn!(%error, "tables are left as they are");
                        break;
                    }
                }
            }
            if let Err(error) = self.checkpoint_now(&mut maintenance) {
                maintenance.superblock.clean = 0.into();
                return Err(error);
            }
        }
        // Room that is held for later goes back to the host.
        self.trim(usize::MAX, true)?;
        let mut space = self.pool.space.lock();
        let kept = space.room.keep_for_opening(&*self.pool.device);
        kept.map_err(|error| self.pool.fail(&error))
    }

    /// Gives the room of up to `count` segments that nobody needs back to the host. Whether there are more.
    pub(crate) fn trim(&self, count: usize, is_idle: bool) -> Result<bool, WriteError> {
        let mut has_more = true;
        for _ in 0..count {
            let mut space = self.pool.space.lock();
            let trimmed = space.room.trim_one(&*self.pool.device, is_idle);
            has_more = trimmed.map_err(|error| self.pool.fail(&error))?;
            if !has_more {
                break;
            }
            self.pace.note_step();
        }
        self.pool.space.lock().room.end_trim();
        Ok(has_more)
    }

    /// Where the host has no room for what is kept, small tables are merged before the checkpoint that follows an opening: it
    /// adds runs to them, and a process that is killed again soon would not come to merging them.
    pub(crate) fn merge_on_full_host(
        &self,
        maintenance: &mut Maintenance,
    ) -> Result<(), WriteError> {
        let table_bytes = {
            let mut space = self.pool.space.lock();
            let has_room = space.room.restock(&*self.pool.device);
            match has_room.map_err(|error| self.pool.fail(&error))? {
                true => return Ok(()),
                false => space.table_bytes(),
            }
        };
        for _ in 0..CLOSE_STEPS {
            match self.compact_step(table_bytes < SMALL_TABLES_BYTES) {
                Ok(true) => maintenance.has_merged = true,
                // The checkpoint may find room all the same.
                Ok(false) | Err(RunError::NoSpace) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// A step of merging in both trees; false when there is none to do. Called by who holds `maintenance`.
    pub(crate) fn compact_step(&self, for_room: bool) -> Result<bool, RunError> {
        self.runs.follow_codec(self.root_codec());
        let step = |tree: &Tree| match for_room {
            true => tree.compact_step_for_room(),
            false => tree.compact_step(),
        };
        let meta = match step(&self.meta_tree) {
            // The other one may find room.
            Err(RunError::NoSpace) => Err(RunError::NoSpace),
            stepped => {
                let has_merged = stepped?;
                if has_merged {
                    *self.noted_at.lock() = None;
                }
                Ok(has_merged)
            }
        };
        let chunk = step(&self.chunk_tree)?;
        Ok(meta? | chunk)
    }

    /// Replaces the key slot: the cluster key wrapped by another master key. Nothing of the old slot remains in the
    /// anchors.
    ///
    /// # Errors
    /// A failure of the device: the old or the new slot is in force, and the pool is read-only until it is opened
    /// again.
    pub fn replace_key_slot(
        &self,
        slot: cfs_format::superblock::KeySlot,
    ) -> Result<(), WriteError> {
        let mut maintenance = self.maintenance.lock();
        self.pool.writable()?;
        let Maintenance {
            superblock,
            anchors,
            ..
        } = &mut *maintenance;
        superblock.key_slot = slot;
        superblock.generation += 1;
        anchors
            .replace(&*self.pool.device, superblock, &self.pool.cluster_key)
            .map_err(|error| self.pool.fail(&error))
    }

    /// The cluster key, wrapped by another master key into `slot`, whose other fields are set.
    pub fn wrap_cluster_key(
        &self,
        master: &cfs_seal::keys::MasterKey,
        slot: &mut cfs_format::superblock::KeySlot,
    ) {
        cfs_seal::keys::wrap_cluster_key(master, &self.pool.cluster_key, slot);
    }

    pub(crate) fn checkpoint_now(&self, maintenance: &mut Maintenance) -> Result<(), WriteError> {
        self.pool.writable()?;
        self.runs.follow_codec(self.root_codec());
        // What one that found no room has left goes first: each attempt would leave another memtable, and each becomes
        // a run with a segment of its own.
        self.meta_tree.flush_rotated()?;
        self.chunk_tree.flush_rotated()?;
        self.merge_newest_small_runs(maintenance)?;
        self.free_unnamed_runs(maintenance);
        let (mark, position, timestamp, replay_bytes, mut retired) = {
            let mut writer = self.writer.lock();
            let (position, bytes) = self.journal().cut()?;
            // In one hold of the lock: what is retired after this has a row in the tables of this checkpoint, and may
            // not be used again before the next one.
            let (changed, unlisted_from, mut retired) = {
                let mut space = self.pool.space.lock();
                let unlisted_from = self.pool.unlisted_from(&space);
                (space.take_changed(), unlisted_from, space.take_pending())
            };
            self.put_counters(&mut writer, changed, position);
            self.meta_tree.rotate();
            self.chunk_tree.rotate();
            #[cfg(feature = "planted-bugs")]
            let current = cfs_format::planted::has(cfs_format::planted::Bug::FollowerRetired)
                .then(|| self.journal().current_segments());
            let mut space = self.pool.space.lock();
            // The log may have gone on since it was cut, without a command: to a segment that was taken only then.
            let is_before = |_segment: &SegmentId, entry: &Entry| {
                #[cfg(feature = "planted-bugs")]
                if let Some(current) = &current {
                    return !current.contains(_segment);
                }
                entry.seq < SegmentSeq(position.seq.get())
            };
            let old_journal: Vec<SegmentId> = space
                .entries()
                .filter(|(segment, entry)| {
                    matches!(
                        entry.state,
                        State::Open(Stream::Journal) | State::Full(Stream::Journal)
                    ) && is_before(segment, entry)
                })
                .map(|(segment, _)| segment)
                .collect();
            // These have no rows.
            let manifests = std::mem::take(&mut maintenance.manifest_segments);
            for segment in old_journal.into_iter().chain(manifests) {
                space.retire(segment);
                retired.extend(space.take_pending_one(segment));
            }
            // Under the lock too: a domain that comes after this is one of a command that is in the log.
            let mark = CheckpointMark {
                log: LogMark::new(&position, writer.last_timestamp),
                domains: self.stored_domains(),
                unlisted_from: unlisted_from.0,
            };
            (mark, position, writer.last_timestamp, bytes, retired)
        };
        let result = self.write_checkpoint(maintenance, mark, (position, timestamp), &mut retired);
        match result {
            Ok(()) => {
                self.journal()
                    .note_checkpoint(maintenance.checkpoint_lsn, replay_bytes);
                maintenance.has_merged = false;
                *self.noted_at.lock() = None;
                let mut space = self.pool.space.lock();
                for segment in retired {
                    space.free(segment);
                }
                Ok(())
            }
            Err(error) => {
                self.pool.space.lock().put_back_pending(retired);
                Err(error)
            }
        }
    }

    /// Where the host has no room for what is kept, or the pool is so full that its reserve is used, the small tables of
    /// several checkpoints become one. Merging all takes more room than there may be, and each checkpoint adds some: in
    /// the end there would be room for none.
    fn merge_newest_small_runs(&self, maintenance: &mut Maintenance) -> Result<(), WriteError> {
        let bytes_max = {
            let space = self.pool.space.lock();
            match (space.room.lacks_host_room(), space.uses_reserve()) {
                (false, false) => return Ok(()),
                (true, _) => SMALL_RUN_BYTES,
                // A run has segments of its own: what is shorter than one takes no less.
                (false, true) => RUN_IN_A_SEGMENT_BYTES,
            }
        };
        let sorted_runs = |tree: &&Tree| tree.stats().level0_sorted_runs;
        let mut trees = [&self.meta_tree, &self.chunk_tree];
        // There may be room for one of them only.
        trees.sort_by_key(|tree| std::cmp::Reverse(sorted_runs(tree)));
        for tree in trees {
            if sorted_runs(&tree) < SORTED_RUNS_ON_FULL_HOST {
                continue;
            }
            match tree.compact_step_of_newest(bytes_max) {
                Ok(true) => {
                    maintenance.has_merged = true;
                    *self.noted_at.lock() = None;
                }
                Ok(false) => {}
                // The checkpoint may find room all the same.
                Err(RunError::NoSpace) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Runs that came with checkpoints that found no room, and that have been merged since, take none from the next attempt.
    fn free_unnamed_runs(&self, maintenance: &Maintenance) {
        // It is only then that the trees give up what nobody reads any more.
        drop(self.meta_tree.manifest());
        drop(self.chunk_tree.manifest());
        let mut space = self.pool.space.lock();
        self.runs.take_released_if(|segment| {
            let entry = space.entry(segment).expect("a run's segments are in use");
            let is_unnamed = entry.seq >= maintenance.unnamed_from;
            if is_unnamed {
                space.free_unused(std::iter::once(segment));
            }
            is_unnamed
        });
    }

    fn write_checkpoint(
        &self,
        maintenance: &mut Maintenance,
        mark: CheckpointMark,
        (position, timestamp): (JournalPosition, Timestamp),
        retired: &mut Vec<SegmentId>,
    ) -> Result<(), WriteError> {
        self.lanes.write_out()?;
        self.pool.flush()?;
        self.runs.set_checkpoint(Some(mark.clone()));
        let flushed = self.meta_tree.flush_rotated();
        self.runs.set_checkpoint(None);
        flushed?;
        *self.noted_at.lock() = Some(position);
        self.chunk_tree.flush_rotated()?;
        let (pointer, copy, manifest_segments) = self.write_manifests(mark)?;
        let unnamed_from = self.pool.next_segment_seq();
        maintenance.manifest_segments = manifest_segments;
        {
            // Runs that the new manifests do not name.
            let mut space = self.pool.space.lock();
            for segment in self.runs.take_released() {
                space.retire(segment);
                retired.extend(space.take_pending_one(segment));
            }
        }
        #[cfg(feature = "planted-bugs")]
        let flush_first = !cfs_format::planted::has(cfs_format::planted::Bug::CheckpointBeforeData);
        #[cfg(not(feature = "planted-bugs"))]
        let flush_first = true;
        if flush_first {
            self.pool.flush()?;
        }
        let superblock = &mut maintenance.superblock;
        superblock.generation += 1;
        superblock.journal = position;
        superblock.manifest = pointer;
        superblock.manifest_copy = copy;
        superblock.checkpoint_timestamp = timestamp.0.into();
        maintenance
            .anchors
            .append(&*self.pool.device, superblock, &self.pool.cluster_key)
            .map_err(|error| self.pool.fail(&error))?;
        maintenance.checkpoint_lsn = cfs_format::Lsn(position.lsn.get() - 1);
        maintenance.last_checkpoint_ns = self.pool.host.now_ns();
        maintenance.unnamed_from = unnamed_from;
        Ok(())
    }

    /// Puts what is counted in memory into the meta tree.
    fn put_counters(
        &self,
        writer: &mut crate::store::WriterState,
        changed: Vec<(SegmentId, Entry)>,
        position: JournalPosition,
    ) {
        let mut batch = Batch::new();
        for (segment, entry) in changed {
            let key = system_key(tag::SEGMENT, &segment.0.to_be_bytes());
            match entry.data_record() {
                Some(record) => batch.put(key, record.as_bytes().to_vec()),
                None => batch.delete(key),
            }
        }
        let (pool_key, pool) = (system_key(tag::POOL, &[]), writer.pool.as_bytes().to_vec());
        // Each checkpoint has a run, whose note leads a rebuild to its tables.
        if *self.noted_at.lock() != Some(position) {
            batch.put(pool_key.clone(), pool.clone());
        }
        // A row that says what the tables do already would be a run of its own, and that be merged with all others: a pool
        // at rest would never rest.
        let mut put_new = |key: Vec<u8>, row: Vec<u8>| match self.meta_tree.get(&key) {
            Ok(Some(known)) if known == row => {}
            _ => batch.put(key, row),
        };
        put_new(pool_key, pool);
        if writer.recount.finished_ns.get() > 0 {
            let recount = writer.recount.as_bytes().to_vec();
            put_new(system_key(tag::RECOUNT, &[]), recount);
        }
        let next_ino = self.next_ino.load(Ordering::Relaxed);
        put_new(
            system_key(tag::NEXT_INO, &[0]),
            next_ino.to_le_bytes().to_vec(),
        );
        let volumes = self.volumes.read();
        for volume in std::mem::take(&mut writer.volumes_changed) {
            let key = system_key(tag::VOLUME, &volume.0.to_be_bytes());
            match volumes.get(&volume) {
                Some(record) => batch.put(key, record.encode()),
                None => batch.delete(key),
            }
        }
        self.meta_tree.apply(&batch);
    }

    /// The secrets of the dedup domains as the tables hold them.
    fn stored_domains(&self) -> Vec<(u16, [u8; 32])> {
        let domains = self.domains.read();
        let wrap = |(domain, secret): (&DomainId, &Arc<DomainSecret>)| {
            let key = &self.pool.cluster_key;
            (domain.0, key.wrap_domain_secret(*domain, secret))
        };
        let ordered: BTreeMap<_, _> = domains.iter().map(wrap).collect();
        ordered.into_iter().collect()
    }

    /// Writes both copies; where they are, and all segments of theirs. Of those none is left in use by a failure.
    fn write_manifests(
        &self,
        mark: CheckpointMark,
    ) -> Result<(BlobPointer, BlobPointer, Vec<SegmentId>), WriteError> {
        let meta = self.meta_tree.manifest();
        let chunk = self.chunk_tree.manifest();
        let mut segments = Vec::new();
        {
            let space = self.pool.space.lock();
            for extent in self
                .meta_tree
                .extents()
                .into_iter()
                .chain(self.chunk_tree.extents())
            {
                let entry = space
                    .entry(SegmentId(extent as u32))
                    .expect("a run's segments are in use");
                segments.push((extent as u32, entry.seq.0, entry.used_bytes));
            }
        }
        let manifest = postcard::to_stdvec(&Manifest {
            mark,
            meta,
            chunk,
            segments,
        })
        .expect("a manifest can be encoded");
        let mut written = Vec::new();
        let mut write = || self.write_manifest(&manifest, &mut written);
        match write().and_then(|first| Ok((first, write()?))) {
            Ok((first, second)) => Ok((first, second, written)),
            Err(error) => {
                // No superblock names these.
                self.pool.space.lock().free_unused(written.into_iter());
                Err(error)
            }
        }
    }

    fn write_manifest(
        &self,
        manifest: &[u8],
        segments: &mut Vec<SegmentId>,
    ) -> Result<BlobPointer, WriteError> {
        let bytes = manifest.len() as u64;
        let mut writer = self
            .runs
            .writer(TableOwner::Manifest, Purpose::Upkeep, bytes);
        let mut pieces = Vec::new();
        for piece in manifest.chunks(MANIFEST_PIECE_BYTES) {
            let block = writer.append(piece)?;
            pieces.push((block.place, block.stored_len, writer.current_seq().0));
        }
        let root =
            postcard::to_stdvec(&ManifestRoot { pieces }).expect("a manifest root can be encoded");
        let block = writer.append(&root)?;
        let seq = writer.current_seq();
        let segment = SegmentId((block.place / u64::from(SEGMENT_BYTES)) as u32);
        segments.extend(writer.finish(None)?);
        let used_bytes = {
            let space = self.pool.space.lock();
            let entry = space
                .entry(segment)
                .expect("a manifest's segment is in use");
            entry.used_bytes
        };
        Ok(BlobPointer {
            segment: segment.0.into(),
            offset: ((block.place % u64::from(SEGMENT_BYTES)) as u32).into(),
            seq: seq.0.into(),
            stored_len: block.stored_len.into(),
            segment_used_bytes: used_bytes.into(),
        })
    }

    /// Reads a manifest; and the segments that hold it.
    pub(crate) fn read_manifest(
        pool: &crate::pool::Pool,
        pointer: &BlobPointer,
    ) -> Result<(Manifest, Vec<ManifestSegment>), crate::error::ReadError> {
        let bad = || crate::error::ReadError::Record { what: "manifest" };
        let last = ManifestSegment::of_root(pointer);
        let place =
            u64::from(last.segment.0) * u64::from(SEGMENT_BYTES) + u64::from(pointer.offset.get());
        let root = SegmentRuns::open_block(
            pool,
            TableBlock {
                place,
                stored_len: pointer.stored_len.get(),
                seq: last.seq,
                used_bytes: last.used_bytes,
            },
        )?;
        let root: ManifestRoot = postcard::from_bytes(&root).map_err(|_| bad())?;
        let mut segments = vec![last];
        let mut bytes = Vec::new();
        for (place, stored_len, seq) in root.pieces {
            let segment = SegmentId((place / u64::from(SEGMENT_BYTES)) as u32);
            let used_bytes = match segments.iter().find(|found| found.segment == segment) {
                Some(found) => found.used_bytes,
                None => {
                    let full = ManifestSegment {
                        segment,
                        seq: SegmentSeq(seq),
                        used_bytes: SEGMENT_BYTES,
                    };
                    segments.push(full);
                    full.used_bytes
                }
            };
            let block = TableBlock {
                place,
                stored_len,
                seq: SegmentSeq(seq),
                used_bytes,
            };
            bytes.extend(SegmentRuns::open_block(pool, block)?);
        }
        let manifest = postcard::from_bytes(&bytes).map_err(|_| bad())?;
        Ok((manifest, segments))
    }

    /// Does background work that is due, a bounded amount of it. To be called by one thread about ten times a second, as
    /// long as [`Store::activity`] changes, or by a simulation.
    ///
    /// # Errors
    /// The pool is, or goes, read-only, or has no room for tables.
    pub fn tick(&self) -> Result<(), WriteError> {
        let now = self.pool.host.now_ns();
        let journal = self.journal();
        if journal.durable_lsn() < journal.last_lsn() {
            let since = self.unflushed_since_ns.load(Ordering::Relaxed);
            if since == 0 {
                self.unflushed_since_ns.store(now, Ordering::Relaxed);
            } else if now.saturating_sub(since) >= FLUSH_AFTER_NS
                || journal.queued_bytes() > 4 << 20
            {
                self.unflushed_since_ns.store(0, Ordering::Relaxed);
                self.sync()?;
            }
        } else {
            self.unflushed_since_ns.store(0, Ordering::Relaxed);
        }
        // What one part cannot do must not keep the others from their work.
        let written = journal.write_out().and_then(|()| journal.mark_durable());
        let load = self.pace.look(now);
        let is_low = self.available_bytes() < LOW_BYTES;
        let judged = self.keep_verdicts();
        let dropped = self.drop_some(load, is_low);
        let asked_for = self.aim_of_unfinished_pass();
        let cleaned = self.clean_segments(match asked_for {
            Some(aim @ Aim::Reseal(_)) if self.has_room_for(aim) => aim,
            _ if is_low => Aim::LowRoom,
            Some(aim) => aim,
            None => Aim::Upkeep(load),
        });
        let kept_up = self.keep_up(now, load, is_low);
        // A pass that can do no more has ended, too.
        if asked_for.is_none() || !matches!(cleaned, Ok(false)) || kept_up.is_err() {
            let has_room_to_come = self.pool.space.lock().has_room_to_come();
            if !has_room_to_come || kept_up.is_err() {
                self.end_pass();
            }
        }
        let others = dropped.and(judged).and(cleaned.map(drop));
        written.and(kept_up).and(others)
    }

    fn drop_some(&self, load: Load, is_low: bool) -> Result<(), WriteError> {
        let batches = match load {
            Load::Busy if !is_low => DROPS.0,
            _ => DROPS.1,
        };
        for _ in 0..batches {
            if !self.drop_dead_chunks()? {
                break;
            }
            self.pace.note_step();
        }
        Ok(())
    }

    /// Whether removed rows take so much of the tables that merging gives noticeable room.
    pub(crate) fn has_tombstones(&self) -> bool {
        [&self.meta_tree, &self.chunk_tree].into_iter().any(|tree| {
            let stats = tree.stats();
            stats.run_tombstones >= TOMBSTONES
                && stats.run_tombstones * TOMBSTONE_SHARE > stats.run_entries
        })
    }

    /// Makes a checkpoint when one is due, merges table runs, gives room back to the host.
    fn keep_up(&self, now: u64, load: Load, is_low: bool) -> Result<(), WriteError> {
        let journal = self.journal();
        let mut maintenance = self.maintenance.lock();
        let age = now.saturating_sub(maintenance.last_checkpoint_ns);
        let pending = self.pool.space.lock().pending_count();
        let for_space_after = match load {
            Load::Idle => CHECKPOINT_FOR_SPACE_AFTER_NS,
            Load::Busy => CHECKPOINT_FOR_SPACE_BUSY_AFTER_NS,
        };
        let frees = pending > 0 || (maintenance.has_merged && load == Load::Idle);
        let must = journal.replay_bytes() > self.replay_bytes_soft()
            || self.memtable_bytes() > self.memtable_bytes_soft()
            || (age > CHECKPOINT_AFTER_NS && journal.last_lsn() > maintenance.checkpoint_lsn)
            || (pending > 0 && (age > for_space_after || is_low));
        let mut result = Ok(());
        if must || (frees && age > for_space_after) {
            self.pace.note_step();
            match self.checkpoint_now(&mut maintenance) {
                Ok(()) => {
                    maintenance.merges_wait = false;
                    maintenance.stuck_segments.clear();
                }
                // It was to free a little; it can wait for one that is needed.
                Err(WriteError::NoSpace(_)) if !must => maintenance.has_merged = false,
                // Until one succeeds merges would only take room. What there is to be had for the next is looked for below.
                Err(error @ WriteError::NoSpace(_)) => {
                    maintenance.merges_wait = true;
                    result = Err(error);
                }
                Err(error) => return Err(error),
            }
        }
        // Runs have segments of their own, however small they are.
        let (is_scattered, lacks_host_room) = {
            let space = self.pool.space.lock();
            let table_bytes = space.table_bytes();
            let full = table_bytes.div_ceil(u64::from(SEGMENT_BYTES));
            let spare = space.counts().table.saturating_sub(full);
            let is_scattered =
                table_bytes < SMALL_TABLES_BYTES && spare > SPARE_TABLE_SEGMENTS + full / 4;
            (is_scattered, space.room.lacks_host_room())
        };
        let for_room = ((is_low || lacks_host_room) && is_scattered)
            || ((load == Load::Idle || self.has_pass()) && self.has_tombstones());
        for _ in 0..COMPACT_STEPS {
            if maintenance.merges_wait {
                break;
            }
            match self.compact_step(for_room) {
                Ok(true) => {
                    maintenance.has_merged = true;
                    self.pace.note_step();
                }
                Ok(false) => break,
                // The next checkpoint frees what this merge has written, and perhaps more.
                Err(RunError::NoSpace) => maintenance.merges_wait = true,
                Err(error) => return Err(error.into()),
            }
        }
        drop(maintenance);
        let count = match load {
            Load::Busy if !is_low => TRIMMED_SEGMENTS.0,
            _ => TRIMMED_SEGMENTS.1,
        };
        result.and(self.trim(count, load == Load::Idle).map(drop))
    }
}

impl Entry {
    /// The record of a data segment that is in use.
    pub(crate) fn data_record(&self) -> Option<SegmentRecord> {
        let (State::Open(stream) | State::Full(stream)) = self.state else {
            return None;
        };
        matches!(stream, Stream::Data | Stream::ColdData).then(|| SegmentRecord {
            seq: self.seq.0.into(),
            live_bytes: self.live_bytes.into(),
            used_bytes: self.used_bytes.into(),
            stream: stream as u8,
            reserved: [0; 7],
        })
    }

    pub(crate) fn is_data(&self) -> bool {
        self.data_record().is_some()
    }
}

#[cfg(test)]
mod tests {
    use cfs_device::{FaultPlan, MemDevice};
    use cfs_format::superblock::{ChunkParams, KeySlot};
    use cfs_seal::block::Cipher;
    use cfs_seal::keys::ClusterKey;
    use zerocopy::FromZeros;

    use super::*;
    use crate::pool::{Host, NoHost};
    use crate::{FormatOptions, StoreOptions};

    /// Or each attempt would ask for more, and the last room be gone before there is enough.
    #[test]
    fn a_checkpoint_that_finds_no_room_takes_none() {
        let device = Arc::new(MemDevice::new(64));
        let dyn_device: Arc<dyn cfs_device::Device> = device.clone();
        let host: Arc<dyn Host> = Arc::new(NoHost);
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
        let key = || ClusterKey::from_bytes([9; 32]);
        let slot = KeySlot::new_zeroed();
        Store::format(&dyn_device, &host, key(), slot, &options).expect("format");
        let (options, unlock) = (StoreOptions::default(), |_: &_| Ok(key()));
        let replay = |_: &mut crate::Txn<'_>, _: &[u8]| Ok(());
        let store = Store::open(dyn_device, host, unlock, options, replay).expect("open");
        device.set_faults(FaultPlan {
            room_blocks_max: Some(device.room_blocks()),
            ..FaultPlan::default()
        });
        let free_after_attempt = || {
            let refused = store.checkpoint();
            assert!(
                matches!(refused, Err(WriteError::NoSpace(_))),
                "{refused:?}"
            );
            let space = store.pool.space.lock();
            (space.counts().free, space.pending_count())
        };
        let mut taken = {
            let mut space = store.pool.space.lock();
            while space
                .take(&*device, Stream::Data, Purpose::Upkeep, SegmentSeq(1))
                .is_ok()
            {}
            let take_start = |_| {
                let taken = space.take_start(&*device, Purpose::Upkeep, SegmentSeq(1));
                taken.ok()
            };
            (0..).map_while(take_start).collect::<Vec<_>>()
        };
        // The first attempt writes a run with a note; the next one at this place of the log need not.
        store.pool.space.lock().free_unused(taken.drain(..1));
        free_after_attempt();
        // From now on there is room for one of two manifests.
        store.pool.space.lock().free_unused(taken.drain(..1));
        let first = free_after_attempt();
        for attempt in 2..10 {
            assert_eq!(free_after_attempt(), first, "attempt {attempt}");
        }
        let mut unfinished = store.runs.writer(TableOwner::Meta, Purpose::Upkeep, 100);
        unfinished
            .append(b"a block")
            .expect("there is room for one");
        drop(unfinished);
        assert_eq!(free_after_attempt(), first, "after a run that was given up");
    }
}
