//! Rebuilding index and tables from the segments alone.
//!
//! For a pool whose checkpoint, or superblock, or tables are damaged beyond what copies and parity bring back. Every
//! segment says what it is, every table segment what lies in it ([`crate::directory`]), every record which chunk it
//! holds. In this order:
//! 1. [`scan`]: read all segment headers and directories.
//! 2. Find the newest description of the meta tree (`sources`): what the superblock points to, or the newest
//!    manifest, or the note that comes with the last run of a checkpoint. Put the entries of all of its blocks that can
//!    be opened into a new tree, older runs first.
//! 3. Make a new chunk tree from the records in the data segments, those of dedup domains that only the log makes among
//!    them. The old one is not looked at.
//! 4. Mend what is left of the namespace ([`Namespace::mend`]), and count the references to chunks.
//! 5. Apply the log. What does not fit any more is left out and told. Mend and count again.
//! 6. Make a checkpoint. Only this replaces what was there: interrupted before, a rebuild has changed nothing but that
//!    segments which were free may have been written, and the number of openings.
//!
//! A chunk that extents name and no segment holds stays in the index as a lost one ([`LOST_SEGMENT`]): reading it fails,
//! its references are counted, and equal content that is written later takes its place.

mod scan;
mod sources;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use cfs_device::Device;
use cfs_format::journal::KIND_NAMESPACE;
use cfs_format::segment::Stream;
use cfs_format::superblock::Superblock;
use cfs_format::table::{
    ChunkRecord, LOST_SEGMENT, PoolRecord, VolumeRecord, split_key, system_key, tag,
};
use cfs_format::{
    DomainId, Fingerprint, Ino, SEGMENT_BYTES, SegmentId, SegmentSeq, Timestamp, VolumeId,
};
use cfs_kv::{Batch, Tree};
use cfs_seal::chunk::{RecordPlace, open_record};
use cfs_seal::keys::{ClusterKey, DomainSecret, check_superblock_checksum};
use zerocopy::IntoBytes;

use crate::anchor::{self, Anchors};
use crate::chunks::decode_chunk_record;
use crate::error::{OpenError, ReadError, UnlockError, WriteError};
use crate::log_reader::LogTail;
use crate::open::{ReplayError, check_superblock, pool_of, usable_segments};
use crate::pool::Host;
use crate::space::{Entry, State};
use crate::store::{Store, StoreOptions};
use crate::sync::Ordering;
use crate::txn::{Mode, Txn};

use scan::Scan;
use sources::Source;

/// A jump of the incarnation beyond all that are seen: what a process of a higher one had written may be lost, and none
/// of its nonces may come again.
const INCARNATIONS_SKIPPED: u32 = 1024;
/// Changes in one batch.
const BATCH_CHANGES: usize = 1024;
/// Ranges of lost keys that are told apart at most; beyond that they are joined.
const LOST_RANGES_MAX: usize = 100_000;
/// Commands that are told at most.
const SKIPPED_TOLD: usize = 20;

/// Keys of the meta tree that may have been in blocks that are lost; both ends are keys that are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostRange {
    /// Greatest key known before; none at the start.
    pub after: Option<Vec<u8>>,
    /// Smallest key known behind; none at the end.
    pub before: Option<Vec<u8>>,
}

impl LostRange {
    /// Whether a key may have been in it.
    #[must_use]
    pub fn may_hold(&self, key: &[u8]) -> bool {
        self.after.as_deref().is_none_or(|after| key > after)
            && self.before.as_deref().is_none_or(|before| key < before)
    }
}

/// A reference to a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Which.
    pub fingerprint: Fingerprint,
    /// Its length, bytes, as the extent has it.
    pub chunk_len: u32,
    /// Its dedup domain.
    pub domain: DomainId,
}

/// What the rows of inodes add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// All volumes, with their counters.
    pub volumes: Vec<(VolumeId, VolumeRecord)>,
    /// An inode number above all that are in use.
    pub next_ino: u64,
}

/// Rows of the meta tree and what they are to be; without a value they go.
pub type RowChanges = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// When the rows are mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MendStage {
    /// Commands of the log follow: nothing may get a number that they will use.
    BeforeLog,
    /// Nothing follows.
    Last,
}

/// Who knows what the rows of the meta tree mean.
pub trait Namespace {
    /// Applies a command of the log, as when a pool is opened.
    ///
    /// # Errors
    /// As there.
    fn replay(&mut self, txn: &mut Txn<'_>, command: &[u8]) -> Result<(), ReplayError>;

    /// The dedup domain that a command of the log makes, with its secret as the tables hold it.
    fn new_domain(&self, command: &[u8]) -> Option<(DomainId, [u8; 32])>;

    /// Changes rows with `apply` so that they fit together, in steps, each of which sees what the ones before have changed.
    /// `lost`: where rows are missing.
    ///
    /// # Errors
    /// The tables cannot be read or written.
    fn mend(
        &mut self,
        store: &Store,
        lost: &[LostRange],
        stage: MendStage,
        apply: &mut dyn FnMut(RowChanges) -> Result<(), OpenError>,
    ) -> Result<(), OpenError>;

    /// Adds up what there is: before anything is mended, so that each volume has a record, and whenever something has been.
    ///
    /// # Errors
    /// The tables cannot be read.
    fn summarize(&mut self, store: &Store) -> Result<Summary, ReadError>;

    /// Tells each reference from a row to a chunk.
    ///
    /// # Errors
    /// The tables cannot be read.
    fn references(
        &mut self,
        store: &Store,
        each: &mut dyn FnMut(Reference),
    ) -> Result<(), ReadError>;
}

/// How far a rebuild is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RebuildProgress {
    /// What is being done.
    pub stage: &'static str,
    /// Segments that this stage has done.
    pub segments: u64,
    /// Segments that it has to do.
    pub segments_total: u64,
}

/// What a rebuild found.
#[derive(Clone, Debug, Default)]
pub struct RebuildReport {
    /// Segments of this pool that were found.
    pub segments: u64,
    /// Where the list of the tables' runs came from.
    pub source: &'static str,
    /// Whether the superblock had to be taken from a copy outside of the pool.
    pub superblock_from_copy: bool,
    /// Rows of the meta tree that were found.
    pub rows: u64,
    /// Blocks of the meta tree that could not be read.
    pub lost_blocks: u64,
    /// Chunks in the new index.
    pub chunks: u64,
    /// Chunks that files refer to and that no segment holds.
    pub lost_chunks: u64,
    /// Commands of the log that were applied.
    pub commands: u64,
    /// Commands that could not be.
    pub commands_skipped: u64,
    /// The last commands, of which nobody knows whether they had been durable: a chunk that the first of them brings is
    /// not there. An opening leaves them out just so after a power cut.
    pub commands_unfinished: u64,
    /// The first of them: their place in the log and why.
    pub skipped: Vec<String>,
    /// The newest tables are lost: what was found is older than the last checkpoint.
    pub is_behind: bool,
    /// Where the log ends too early, if it does.
    pub log_damage: Option<String>,
}

impl Store {
    /// Rebuilds index and tables, and opens the pool. `superblock_copy` is what [`Store::superblock_copy`] gave, for the
    /// case that no superblock is left in the pool. `go_on` is told how far it is and says whether to go on; without that
    /// the answer is `None`, and the pool is as it was.
    ///
    /// # Errors
    /// There is no key, no superblock, or nothing that leads to any tables; the device fails or has no room for new
    /// tables. The pool is as it was.
    pub fn rebuild(
        device: Arc<dyn Device>,
        host: Arc<dyn Host>,
        superblock_copy: Option<&[u8]>,
        unlock: impl FnOnce(&Superblock) -> Result<ClusterKey, UnlockError>,
        options: StoreOptions,
        namespace: &mut dyn Namespace,
        mut go_on: impl FnMut(RebuildProgress) -> bool,
    ) -> Result<Option<(Arc<Self>, RebuildReport)>, OpenError> {
        let mut report = RebuildReport::default();
        let (mut superblock, is_authentic, mut anchors) =
            match (anchor::scan(&*device), superblock_copy) {
                (Ok((found, anchors)), _) => {
                    let superblock = found.superblock;
                    let is_authentic: Box<dyn Fn(&ClusterKey) -> bool> =
                        Box::new(move |key| found.is_authentic(key));
                    (superblock, is_authentic, anchors)
                }
                (
                    Err(OpenError::NotAPool | OpenError::Superblock(_) | OpenError::Device(_)),
                    Some(copy),
                ) => {
                    let superblock = check_superblock_checksum(copy).map_err(|error| {
                        OpenError::Superblock(format!("the copy cannot be used either: {error}"))
                    })?;
                    report.superblock_from_copy = true;
                    let copy = copy.to_vec();
                    let is_authentic: Box<dyn Fn(&ClusterKey) -> bool> =
                        Box::new(move |key| cfs_seal::keys::check_superblock_mac(&copy, key));
                    (superblock, is_authentic, Anchors::empty())
                }
                (Err(error), _) => return Err(error),
            };
        let cluster_key = unlock(&superblock).map_err(|error| match error {
            UnlockError::WrongKey => OpenError::WrongKey,
            UnlockError::Unavailable(reason) => OpenError::Unlock(reason),
        })?;
        if !is_authentic(&cluster_key) {
            return Err(OpenError::Superblock(
                "it was not written by this pool's key".into(),
            ));
        }
        check_superblock(&superblock)?;
        // All of the device: the superblock may be older than a raise of the limit.
        let Some(scan) = Scan::run(
            &*device,
            (&cluster_key, &superblock),
            device.geometry().segment_count,
            &mut go_on,
        )?
        else {
            return Ok(None);
        };
        if superblock.segments_max.get() > 0 {
            let last = scan.headers.keys().next_back();
            let end = last.map_or(0, |segment| u64::from(*segment) + 1);
            superblock.segments_max = superblock.segments_max.get().max(end).into();
        }
        let segment_count = usable_segments(&*device, superblock.segments_max.get());
        report.segments = scan.headers.len() as u64;
        let incarnation = superblock
            .incarnation
            .get()
            .max(scan.newest_incarnation())
            .saturating_add(INCARNATIONS_SKIPPED);
        superblock.incarnation = incarnation.into();
        check_superblock(&superblock)?;
        let pool = pool_of(device, host, cluster_key, &superblock)?;
        let table_segments = scan.directories(&pool);
        let source = Source::find(&pool, &superblock, &scan, &table_segments)
            .ok_or_else(|| OpenError::Checkpoint("no segment leads to any tables".into()))?;
        report.source = source.name;
        let tail = source.read_log(&pool, &superblock, &scan);
        report.is_behind = source.is_behind;
        if let Some(lost) = &tail.lost {
            report.log_damage = Some(format!(
                "segment {} offset {}: nothing behind command {} can be read",
                lost.segment,
                lost.offset,
                lost.lsn.0.saturating_sub(1)
            ));
        }

        superblock.clean = 0.into();
        superblock.generation += 1;
        if report.superblock_from_copy {
            anchors.replace(&*pool.device, &superblock, &pool.cluster_key)?;
        } else {
            anchors.append(&*pool.device, &superblock, &pool.cluster_key)?;
        }
        superblock.journal = source.mark.log.position();
        superblock.checkpoint_timestamp = source.mark.log.timestamp().0.into();
        check_superblock(&superblock)?;

        let old_tables = claim_all(&pool, &scan, &source, &tail, segment_count);
        let store = Self::assemble(pool, superblock, anchors, options, None)?;
        let mut rebuild = Rebuild {
            store: &store,
            report,
            lost: Vec::new(),
            go_on: &mut go_on,
        };
        if !rebuild.run(namespace, &scan, &source, tail)? {
            return Ok(None);
        }
        let report = rebuild.report;
        // The old tables are free as soon as the new ones are in force.
        store.maintenance.lock().manifest_segments = old_tables;
        store.pool.space.lock().end_replay();
        store.checkpoint()?;
        store.discard_strays(&scan)?;
        Ok(Some((Arc::new(store), report)))
    }

    /// The superblock without what changes from checkpoint to checkpoint: to be kept outside of the pool.
    #[must_use]
    pub fn superblock_copy(&self) -> Vec<u8> {
        let mut superblock = self.superblock();
        superblock.manifest = Default::default();
        superblock.manifest_copy = Default::default();
        cfs_seal::keys::seal_superblock(&superblock, &self.pool.cluster_key).to_vec()
    }

    /// Gives back the room of segments that were found and that nothing uses.
    fn discard_strays(&self, scan: &Scan) -> Result<(), WriteError> {
        for segment in scan.headers.keys().copied().map(SegmentId) {
            let space = self.pool.space.lock();
            if space.is_free(segment) && !space.room.is_prepared(segment) {
                self.pool
                    .device
                    .discard_from(segment, 0)
                    .map_err(|error| self.pool.fail(&error))?;
            }
        }
        Ok(())
    }
}

/// Marks as in use all that the rebuild reads, or may read: the old tables, the log, and everything with chunks in it. The
/// segments of the old tables.
fn claim_all(
    pool: &crate::pool::Pool,
    scan: &Scan,
    source: &Source,
    tail: &LogTail,
    segment_count: u32,
) -> Vec<SegmentId> {
    let mut space = pool.space.lock();
    let mut claim = |segment: SegmentId, seq: SegmentSeq, used_bytes: u32, stream: Stream| {
        // A device that has become shorter has lost what lay beyond its end.
        if segment.0 >= segment_count {
            return;
        }
        let entry = Entry {
            seq,
            live_bytes: 0,
            used_bytes,
            pins: 0,
            changed_ms: 0,
            state: State::Full(stream),
        };
        space.claim(segment, entry);
    };
    // One that has lost its header may be a data segment that the segment table knows.
    for segment in &scan.doubtful {
        claim(*segment, SegmentSeq(0), SEGMENT_BYTES, Stream::Data);
    }
    for found in &source.claimed {
        claim(
            found.segment,
            found.seq,
            found.used_bytes.min(SEGMENT_BYTES),
            Stream::Table,
        );
    }
    // Those that an opening would read too, should the rebuild be given up: beyond damage the log may go on.
    let mark = source.mark.log.position();
    for (segment, header) in scan.journal_segments() {
        if header.seq.get() >= mark.seq.get() {
            let seq = SegmentSeq(header.seq.get());
            claim(segment, seq, SEGMENT_BYTES, Stream::Journal);
        }
    }
    for (segment, seq) in &tail.segments {
        claim(*segment, *seq, SEGMENT_BYTES, Stream::Journal);
    }
    for (segment, seq, stream) in scan.data_segments() {
        claim(segment, seq, SEGMENT_BYTES, stream);
    }
    // A list that is older than another checkpoint names segments that are something else by now.
    let tables = space
        .entries()
        .filter(|(_, entry)| entry.state == State::Full(Stream::Table));
    tables.map(|(segment, _)| segment).collect()
}

/// What extents say about a chunk.
struct Counted {
    refs: u32,
    chunk_len: u32,
    domain: DomainId,
}

struct Rebuild<'a> {
    store: &'a Store,
    report: RebuildReport,
    lost: Vec<LostRange>,
    go_on: &'a mut dyn FnMut(RebuildProgress) -> bool,
}

impl Rebuild<'_> {
    /// False when `go_on` did not want to.
    fn run(
        &mut self,
        namespace: &mut dyn Namespace,
        scan: &Scan,
        source: &Source,
        tail: LogTail,
    ) -> Result<bool, OpenError> {
        let rows_of_segments = self.rows_of_segments(source);
        self.claim_without_header(scan, &rows_of_segments);
        if !self.tables(source)? {
            return Ok(false);
        }
        self.store.load_system_records()?;
        self.domains(source)?;
        self.settle_claims(scan, source, &rows_of_segments);
        let domains_of_log: HashMap<DomainId, Arc<DomainSecret>> = {
            let commands = tail.records.iter().map(|record| &record.command[..]);
            let made = commands.filter_map(|command| namespace.new_domain(command));
            let key = &self.store.pool.cluster_key;
            made.map(|(domain, stored)| {
                (domain, Arc::new(key.unwrap_domain_secret(domain, &stored)))
            })
            .collect()
        };
        if !self.index(&domains_of_log)? {
            return Ok(false);
        }
        // Nobody can tell what the rows of a volume mean while its record is missing.
        self.add_up(namespace)?;
        // What a checkpoint holds fits together, unless something of it is lost.
        if !self.lost.is_empty() {
            self.mend(namespace, MendStage::BeforeLog)?;
        }
        self.count(namespace, Unreferenced::Keep)?;
        let next_lsn = self.log(namespace, source, tail)?;
        self.mend(namespace, MendStage::Last)?;
        self.count(namespace, Unreferenced::Drop)?;
        let writer = &mut *self.store.writer.lock();
        writer
            .volumes_changed
            .extend(self.store.volumes.read().keys().copied());
        self.store.start_journal(next_lsn)?;
        Ok(true)
    }

    /// What the old segment table says of data segments.
    fn rows_of_segments(&self, source: &Source) -> BTreeMap<SegmentId, SegmentSeq> {
        let last = system_key(tag::SEGMENT, &u32::MAX.to_be_bytes());
        let mut rows = BTreeMap::new();
        for run in &source.runs {
            let parts = run.iter();
            let mut blocks = parts.flat_map(|part| Source::blocks_of(&self.store.pool, *part));
            let mut goes_on = true;
            while goes_on && let Some(block) = blocks.next() {
                for (key, value) in block.into_iter().flatten() {
                    goes_on = key <= last;
                    let Some(segment) = segment_of_row(&key) else {
                        continue;
                    };
                    match value.as_deref().and_then(seq_of_row) {
                        Some(seq) => rows.insert(segment, seq),
                        None => rows.remove(&segment),
                    };
                }
            }
        }
        rows
    }

    /// A data segment that has lost its header is still known to the old segment table. New tables must not take it.
    fn claim_without_header(&self, scan: &Scan, rows: &BTreeMap<SegmentId, SegmentSeq>) {
        let mut space = self.store.pool.space.lock();
        let count = space.segment_count();
        for (segment, seq) in rows.iter().filter(|(segment, _)| segment.0 < count) {
            // A power cut may have kept a chunk, and not the header that came with it: then what the segment was before is
            // still said there.
            let header = scan.headers.get(&segment.0);
            let has_header = header.is_some_and(|header| header.seq.get() >= seq.0);
            if !has_header && (space.is_free(*segment) || scan.is_doubtful_data(&space, *segment)) {
                space.claim_replayed(*segment, *seq);
            }
        }
    }

    /// Data segments that the old segment table does not know: one that was filled before it was written holds nothing but
    /// what had been given up.
    fn settle_claims(&self, scan: &Scan, source: &Source, rows: &BTreeMap<SegmentId, SegmentSeq>) {
        let mut space = self.store.pool.space.lock();
        for segment in &scan.doubtful {
            if scan.is_doubtful_data(&space, *segment) {
                space.unclaim(*segment);
            }
        }
        if !self.lost.is_empty() {
            return;
        }
        for (segment, seq, _) in scan.data_segments() {
            let is_stale = rows.get(&segment) != Some(&seq) && seq.0 < source.mark.unlisted_from;
            let is_claimed = space.seq(segment) == Some(seq) && !space.is_free(segment);
            if is_stale && is_claimed {
                space.unclaim(segment);
            }
        }
    }

    /// Applies changes to one of the trees, which writes runs when it has taken enough of them.
    fn absorb(&self, tree: &Tree, batch: &mut Batch) -> Result<(), WriteError> {
        tree.apply(batch);
        batch.clear();
        self.flush_if_large(tree)
    }

    fn flush_if_large(&self, tree: &Tree) -> Result<(), WriteError> {
        if tree.memtable_bytes() > self.store.options.memtable_bytes_max {
            tree.rotate();
            tree.flush_rotated()?;
        }
        Ok(())
    }

    /// The rows of the old meta tree. Those that are made anew are left out. False when `go_on` did not want to.
    fn tables(&mut self, source: &Source) -> Result<bool, OpenError> {
        let tree = &self.store.meta_tree;
        let mut batch = Batch::new();
        let total = source.runs.iter().map(Vec::len).sum::<usize>() as u64;
        let mut done = 0;
        for run in &source.runs {
            // The last key that was read of this run, and whether blocks have been lost since.
            let mut last_key: Option<Vec<u8>> = None;
            let mut is_gap = false;
            for part in run {
                let progress = RebuildProgress {
                    stage: "reading tables",
                    segments: done,
                    segments_total: total,
                };
                if !(self.go_on)(progress) {
                    return Ok(false);
                }
                done += 1;
                for block in Source::blocks_of(&self.store.pool, *part) {
                    let Some(entries) = block else {
                        is_gap = true;
                        self.report.lost_blocks += 1;
                        continue;
                    };
                    if is_gap && let Some((first, _)) = entries.first() {
                        self.lose(last_key.take(), Some(first.clone()));
                        is_gap = false;
                    }
                    last_key = entries.last().map(|(key, _)| key.clone()).or(last_key);
                    for (key, value) in entries {
                        self.report.rows += 1;
                        if !is_remade(&key) {
                            match value {
                                Some(value) => batch.put(key, value),
                                None => batch.delete(key),
                            }
                        }
                    }
                    if batch.len() >= BATCH_CHANGES {
                        self.absorb(tree, &mut batch)?;
                    }
                }
            }
            if is_gap {
                self.lose(last_key, None);
            }
        }
        self.absorb(tree, &mut batch)?;
        Ok(true)
    }

    fn lose(&mut self, after: Option<Vec<u8>>, before: Option<Vec<u8>>) {
        if self.lost.len() < LOST_RANGES_MAX {
            self.lost.push(LostRange { after, before });
        } else {
            self.lost = vec![LostRange {
                after: None,
                before: None,
            }];
        }
    }

    /// The secrets of dedup domains whose rows are lost are in the manifests too.
    fn domains(&self, source: &Source) -> Result<(), OpenError> {
        let mut batch = Batch::new();
        for (domain, stored) in &source.mark.domains {
            let domain = DomainId(*domain);
            let mut domains = self.store.domains.write();
            domains.entry(domain).or_insert_with(|| {
                let key = system_key(tag::DOMAIN, &domain.0.to_be_bytes());
                batch.put(key, stored.to_vec());
                let key = &self.store.pool.cluster_key;
                Arc::new(key.unwrap_domain_secret(domain, stored))
            });
        }
        self.absorb(&self.store.meta_tree, &mut batch)?;
        if self.store.domains.read().is_empty() {
            return Err(OpenError::Checkpoint(
                "the secrets of the dedup domains are lost, without which no content can be read"
                    .into(),
            ));
        }
        Ok(())
    }

    /// An index of all chunks in all data segments, without references. `domains_of_log` are those that the log will make.
    /// False when `go_on` did not want to.
    fn index(
        &mut self,
        domains_of_log: &HashMap<DomainId, Arc<DomainSecret>>,
    ) -> Result<bool, OpenError> {
        let store = self.store;
        let segments: Vec<(SegmentId, SegmentSeq)> = {
            let space = store.pool.space.lock();
            let data = space.entries().filter(|(_, entry)| entry.is_data());
            data.map(|(segment, entry)| (segment, entry.seq)).collect()
        };
        let mut batch = Batch::new();
        let mut content = vec![0; SEGMENT_BYTES as usize];
        let (mut scratch, mut out) = (Vec::new(), Vec::new());
        for (done, (segment, seq)) in segments.iter().enumerate() {
            let progress = RebuildProgress {
                stage: "reading data",
                segments: done as u64,
                segments_total: segments.len() as u64,
            };
            if !(self.go_on)(progress) {
                return Ok(false);
            }
            crate::heal::read_what_can_be(&*store.pool.device, *segment, 0, &mut content);
            for found in store.records_in(*seq, &content) {
                let record = found.chunk_record(*segment);
                let place = RecordPlace {
                    seq: *seq,
                    offset: found.offset,
                };
                let start = found.offset as usize;
                // A damaged record must not take the place of a sound one of the same chunk.
                let opened = open_record(
                    &content[start..start + record.record_len.get() as usize],
                    place,
                    &store.pool.ciphers.record_header,
                    |domain| {
                        let known = store.domain_secret(domain);
                        known.or_else(|| domains_of_log.get(&domain).cloned())
                    },
                    &mut scratch,
                    &mut out,
                );
                if opened.is_ok() {
                    let name = found.header.fingerprint.to_vec();
                    batch.put(name, record.as_bytes().to_vec());
                }
            }
            if batch.len() >= BATCH_CHANGES {
                self.absorb(&store.chunk_tree, &mut batch)?;
            }
        }
        self.absorb(&store.chunk_tree, &mut batch)?;
        Ok(true)
    }

    fn mend(&mut self, namespace: &mut dyn Namespace, stage: MendStage) -> Result<(), OpenError> {
        let mut apply = |changes: RowChanges| {
            let mut batch = Batch::new();
            for (key, value) in changes {
                match value {
                    Some(value) => batch.put(key, value),
                    None => batch.delete(key),
                }
                if batch.len() >= BATCH_CHANGES {
                    self.absorb(&self.store.meta_tree, &mut batch)?;
                }
            }
            Ok(self.absorb(&self.store.meta_tree, &mut batch)?)
        };
        namespace.mend(self.store, &self.lost, stage, &mut apply)?;
        self.add_up(namespace)
    }

    /// Takes volumes, with their counters, and the next inode number from what the rows say.
    fn add_up(&self, namespace: &mut dyn Namespace) -> Result<(), OpenError> {
        let summary = namespace.summarize(self.store)?;
        let newest = summary.volumes.iter();
        let newest = newest.map(|(_, volume)| Timestamp(volume.newest_snapshot.get()));
        self.store.writer.lock().newest_snapshot = newest.max().unwrap_or_default();
        *self.store.volumes.write() = summary.volumes.into_iter().collect();
        self.store
            .next_ino
            .fetch_max(summary.next_ino, Ordering::Relaxed);
        Ok(())
    }

    /// Counts all references anew, and the chunks and bytes of each segment.
    fn count(
        &mut self,
        namespace: &mut dyn Namespace,
        unreferenced: Unreferenced,
    ) -> Result<(), OpenError> {
        let store = self.store;
        let mut counted: HashMap<Fingerprint, Counted> = HashMap::new();
        namespace.references(store, &mut |reference| {
            let counted = counted.entry(reference.fingerprint).or_insert(Counted {
                refs: 0,
                chunk_len: reference.chunk_len,
                domain: reference.domain,
            });
            counted.refs += 1;
        })?;
        let mut pool = PoolRecord::default();
        let mut note = |record: &ChunkRecord| {
            let (refs, raw_len) = (
                u64::from(record.refs.get()),
                u64::from(record.raw_len.get()),
            );
            pool.chunk_count += 1;
            pool.chunk_raw_bytes += raw_len;
            pool.chunk_stored_bytes += u64::from(record.record_len.get());
            pool.reference_count += refs;
            pool.referenced_bytes += refs * raw_len;
            pool.bad_chunks += u64::from(record.is_bad());
        };
        let mut live: BTreeMap<SegmentId, i64> = BTreeMap::new();
        let mut batch = Batch::new();
        for row in store.chunk_tree.range(Bound::Unbounded, Bound::Unbounded) {
            let (key, value) = row.map_err(ReadError::from)?;
            let bad = |_| ReadError::Record { what: "chunk key" };
            let fingerprint = Fingerprint(key.as_slice().try_into().map_err(bad)?);
            let mut record = decode_chunk_record(&value)?;
            let refs = counted
                .remove(&fingerprint)
                .map_or(0, |counted| counted.refs);
            if refs == 0 && unreferenced == Unreferenced::Drop {
                batch.delete(key);
            } else {
                if refs != record.refs.get() {
                    record.refs = refs.into();
                    batch.put(key, record.as_bytes().to_vec());
                }
                note(&record);
                let segment = SegmentId(record.segment.get());
                *live.entry(segment).or_default() += i64::from(record.record_len.get());
            }
            if batch.len() >= BATCH_CHANGES {
                self.absorb(&store.chunk_tree, &mut batch)?;
            }
        }
        let mut missing: Vec<_> = counted.into_iter().collect();
        missing.sort_unstable_by_key(|(fingerprint, _)| *fingerprint);
        for (fingerprint, counted) in missing {
            let record = ChunkRecord {
                segment: LOST_SEGMENT.into(),
                raw_len: counted.chunk_len.into(),
                refs: counted.refs.into(),
                domain: counted.domain.0.into(),
                ..ChunkRecord::default()
            };
            note(&record);
            batch.put(fingerprint.0.to_vec(), record.as_bytes().to_vec());
            self.absorb(&store.chunk_tree, &mut batch)?;
        }
        self.absorb(&store.chunk_tree, &mut batch)?;
        self.report.chunks = pool.chunk_count.get();
        store.writer.lock().pool = pool;
        if unreferenced == Unreferenced::Drop {
            self.settle(live)?;
        }
        Ok(())
    }

    /// What the last count leaves: how much of each segment is live, no candidates for reclaim, and which chunks are lost.
    fn settle(&mut self, live: BTreeMap<SegmentId, i64>) -> Result<(), OpenError> {
        let store = self.store;
        {
            let mut space = store.pool.space.lock();
            // Also of those of which nothing is live any more.
            let counted: BTreeMap<SegmentId, i64> = space
                .entries()
                .filter(|(_, entry)| entry.live_bytes > 0)
                .map(|(segment, entry)| (segment, i64::from(entry.live_bytes)))
                .collect();
            let segments: BTreeSet<&SegmentId> = counted.keys().chain(live.keys()).collect();
            for segment in segments {
                let bytes = live.get(segment).copied().unwrap_or_default();
                let counted = counted.get(segment).copied().unwrap_or_default();
                space.add_live(*segment, bytes - counted, 0);
            }
        }
        let mut batch = Batch::new();
        let lo = system_key(tag::DEAD_CHUNK, &[]);
        let hi = system_key(tag::DEAD_CHUNK + 1, &[]);
        for row in store.range(&lo, &hi) {
            let (key, _) = row.map_err(ReadError::from)?;
            batch.delete(key);
        }
        self.absorb(&store.meta_tree, &mut batch)?;
        let mut lost = 0;
        for chunk in store.freeze().chunks() {
            lost += u64::from(chunk?.1.is_lost());
        }
        self.report.lost_chunks = lost;
        Ok(())
    }

    /// Applies what of the log can be applied. Returns the LSN behind it.
    fn log(
        &mut self,
        namespace: &mut dyn Namespace,
        source: &Source,
        tail: LogTail,
    ) -> Result<u64, OpenError> {
        let mut next_lsn = source.mark.log.position().lsn.get();
        let last_lsn = tail.records.last().map(|record| record.lsn.0);
        for record in tail.records {
            next_lsn = record.lsn.0 + 1;
            for tree in [&self.store.meta_tree, &self.store.chunk_tree] {
                self.flush_if_large(tree)?;
            }
            // The store's own commands move and drop chunks; the index shows already where they lie.
            if record.kind != KIND_NAMESPACE {
                continue;
            }
            let verify = record.lsn > tail.durable_lsn;
            let mut txn = Txn::new(
                self.store,
                self.store.writer.lock(),
                Mode::Rebuild { verify },
                record.timestamp,
            );
            match namespace.replay(&mut txn, &record.command) {
                Ok(()) => {
                    txn.commit(&record.command)?;
                    self.report.commands += 1;
                }
                Err(ReplayError::Read(ReadError::NotWritten { .. })) => {
                    next_lsn = record.lsn.0;
                    break;
                }
                // What nobody knew to be flushed ends with the first that does not fit.
                Err(ReplayError::Read(_)) if verify => {
                    next_lsn = record.lsn.0;
                    break;
                }
                Err(error) => {
                    drop(txn);
                    self.report.commands_skipped += 1;
                    if self.report.skipped.len() < SKIPPED_TOLD {
                        let reason = match error {
                            ReplayError::Read(error) => error.to_string(),
                            ReplayError::Other(reason) => reason,
                        };
                        let told = format!("command {}: {reason}", record.lsn.0);
                        self.report.skipped.push(told);
                    }
                }
            }
        }
        self.report.commands_unfinished =
            last_lsn.map_or(0, |last| (last + 1).saturating_sub(next_lsn));
        Ok(next_lsn)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unreferenced {
    /// The log may refer to them.
    Keep,
    Drop,
}

/// Whether a row is made anew, not taken over.
fn is_remade(key: &[u8]) -> bool {
    let system = split_key(key).ok().filter(|(ino, _, _)| *ino == Ino(0));
    system.is_some_and(|(_, row_tag, _)| {
        matches!(row_tag, tag::SEGMENT | tag::DEAD_CHUNK | tag::POOL)
    })
}

fn segment_of_row(key: &[u8]) -> Option<SegmentId> {
    let (ino, row_tag, suffix) = split_key(key).ok()?;
    let is_it = ino == Ino(0) && row_tag == tag::SEGMENT;
    let number = is_it.then(|| suffix.try_into().ok()).flatten()?;
    Some(SegmentId(u32::from_be_bytes(number)))
}

fn seq_of_row(value: &[u8]) -> Option<SegmentSeq> {
    use zerocopy::FromBytes;
    let record = cfs_format::table::SegmentRecord::read_from_bytes(value).ok()?;
    Some(SegmentSeq(record.seq.get()))
}
