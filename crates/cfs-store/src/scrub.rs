//! Scrub: reads all that is stored, beside whatever else goes on.
//!
//! Order: both anchors, the log, both copies of the manifest, the tables, the data. What is damaged and has parity or
//! a copy is restored on the way; what is damaged and has none becomes a finding.
//!
//! Data segments are read as a whole and walked. That is the fast way; it counts what it has verified, and where less is
//! verified than the segment table says is live (a damaged record, one that compaction or a writer has touched
//! meanwhile) each chunk that the index has there is read as a reader would. Only what fails there is bad. Segments
//! that are filled while the scrub runs are read in further rounds, since what compaction moves may be damaged.

use std::collections::{BTreeSet, HashSet};
use std::ops::{ControlFlow, Range};

use cfs_format::segment::RECORD_OVERHEAD;
use cfs_format::superblock::ANCHORS;
use cfs_format::{DomainId, Fingerprint, SEGMENT_BYTES, SegmentId, SegmentSeq};
use cfs_kv::{BlockPtr, RunError, View};
use cfs_seal::chunk::{RecordPlace, open_record};

use crate::anchor;
use crate::directory::{DirectoryPlace, read_directory};
use crate::error::{ReadError, WriteError};
use crate::heal::{settle_parity, table_header, write_back};
use crate::log_reader::LogReader;
use crate::store::{Maintenance, Store};

/// Rounds over segments that were filled during the round before.
const ROUNDS_MAX: usize = 8;
/// Damaged metadata that is listed at most.
const FINDINGS_MAX: usize = 10_000;

/// How far a scrub is.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScrubProgress {
    /// Bytes read.
    pub bytes: u64,
    /// Bytes to read, as was known when it began.
    pub bytes_total: u64,
}

/// Metadata that can neither be read nor restored.
#[derive(Clone, Debug)]
pub struct ScrubFinding {
    /// `superblock`, `log`, `manifest`, `table-block` or `chunk-index`.
    pub id: &'static str,
    /// Where it is.
    pub object: String,
    /// What is wrong with it.
    pub sentence: String,
}

/// What a scrub has read and found.
#[derive(Clone, Debug, Default)]
pub struct ScrubReport {
    /// Bytes read.
    pub bytes: u64,
    /// Chunks whose content was verified.
    pub chunks: u64,
    /// Blocks of the tables that were opened.
    pub table_blocks: u64,
    /// Damaged blocks that were restored from parity or a copy.
    pub restored_blocks: u64,
    /// Metadata that is lost.
    pub findings: Vec<ScrubFinding>,
    /// Chunks that cannot be read.
    pub bad_chunks: HashSet<Fingerprint>,
    /// Whether it was ended before all was read.
    pub stopped: bool,
}

struct Scrub<'a> {
    store: &'a Store,
    report: ScrubReport,
    bytes_total: u64,
    /// Part of the chunk tree cannot be read, which has been told.
    index_is_damaged: bool,
    pace: &'a mut dyn FnMut(ScrubProgress) -> ControlFlow<()>,
}

impl Store {
    /// Reads all that is stored, verifies it, and restores what parity and copies can. `pace` is called after every
    /// read, may wait, and says whether to go on.
    ///
    /// # Errors
    /// A failure of the pool or of the tables that keeps the scrub from going on; damage is in the report.
    pub fn scrub(
        &self,
        pace: &mut dyn FnMut(ScrubProgress) -> ControlFlow<()>,
    ) -> Result<ScrubReport, WriteError> {
        let healed_before = self.pool.healing.healed_blocks();
        let mut scrub = Scrub {
            store: self,
            report: ScrubReport::default(),
            bytes_total: self.bytes_to_scrub(),
            index_is_damaged: false,
            pace,
        };
        let stopped = scrub.run()?.is_break();
        let mut report = scrub.report;
        report.stopped = stopped;
        report.restored_blocks = self.pool.healing.healed_blocks() - healed_before;
        Ok(report)
    }

    fn bytes_to_scrub(&self) -> u64 {
        let replay_bytes = self.journal().replay_bytes();
        let space = self.pool.space.lock();
        let data = space.entries().filter(|(_, entry)| entry.is_data()).count() as u64;
        (u64::from(ANCHORS) + data) * u64::from(SEGMENT_BYTES) + space.table_bytes() + replay_bytes
    }
}

impl Scrub<'_> {
    fn run(&mut self) -> Result<ControlFlow<()>, WriteError> {
        self.anchors()?;
        self.log_and_manifests();
        if self.read(u64::from(ANCHORS * SEGMENT_BYTES)).is_break() || self.tables().is_break() {
            return Ok(ControlFlow::Break(()));
        }
        Ok(self.data())
    }

    fn read(&mut self, bytes: u64) -> ControlFlow<()> {
        self.report.bytes += bytes;
        (self.pace)(ScrubProgress {
            bytes: self.report.bytes,
            bytes_total: self.bytes_total.max(self.report.bytes),
        })
    }

    fn find(&mut self, id: &'static str, object: String, sentence: String) {
        if self.report.findings.len() < FINDINGS_MAX {
            self.report.findings.push(ScrubFinding {
                id,
                object,
                sentence,
            });
        }
    }

    /// Each anchor must have the newest record. If one has not, the record is written to both once more.
    fn anchors(&mut self) -> Result<(), WriteError> {
        let store = self.store;
        let mut maintenance = store.maintenance.lock();
        let Maintenance {
            superblock,
            anchors,
            ..
        } = &mut *maintenance;
        let generation = superblock.generation.get();
        let missing = (0..ANCHORS)
            .filter(|number| {
                let key = &store.pool.cluster_key;
                !anchor::has_record(&*store.pool.device, *number, generation, key)
            })
            .count();
        if missing == 0 || store.pool.writable().is_err() {
            return Ok(());
        }
        superblock.generation += 1;
        anchors
            .append(&*store.pool.device, superblock, &store.pool.cluster_key)
            .map_err(|error| store.pool.fail(&error))?;
        for _ in 0..missing {
            store.pool.healing.note("superblock record");
        }
        Ok(())
    }

    /// While no checkpoint can be made, since that would give their segments away.
    fn log_and_manifests(&mut self) {
        let store = self.store;
        let mut maintenance = store.maintenance.lock();
        let position = maintenance.superblock.journal;
        let [current, _] = store.journal().current_segments();
        let durable_lsn = store.journal().durable_lsn();
        let reader = LogReader {
            device: &*store.pool.device,
            cipher: &store.pool.ciphers.journal,
            key: &store.pool.cluster_key,
            uuid: &store.pool.uuid,
            was_closed: false,
        };
        let tail = reader.read(&position);
        for repaired in &tail.repaired {
            write_back(
                &store.pool,
                repaired.segment,
                repaired.block,
                &repaired.bytes,
            );
        }
        let last_lsn = tail
            .records
            .last()
            .map_or(position.lsn.get() - 1, |record| record.lsn.0);
        self.report.bytes += store.journal().replay_bytes();
        let reaches_current = tail.segments.iter().any(|(segment, _)| *segment == current);
        if tail.headless || last_lsn < durable_lsn.0 || !reaches_current {
            // A reader would not come to what is written there from now on either.
            let moved = store.journal().leave_segment();
            match moved.and_then(|()| store.checkpoint_now(&mut maintenance)) {
                Ok(()) => store.pool.healing.note("part of the log"),
                Err(error) => self.find(
                    "log",
                    format!("command {}", last_lsn + 1),
                    format!("the log cannot be read from here on, and goes on there: {error}"),
                ),
            }
        }
        let superblock = maintenance.superblock;
        for (name, pointer) in [
            ("first copy", superblock.manifest),
            ("second copy", superblock.manifest_copy),
        ] {
            match Store::read_manifest(&store.pool, &pointer) {
                Ok((_, segments)) => {
                    for found in segments {
                        self.report.bytes += u64::from(found.used_bytes);
                        self.settle(found.segment, found.seq, found.used_bytes);
                    }
                }
                Err(error) => self.find("manifest", name.to_owned(), error.to_string()),
            }
        }
    }

    /// All that is sealed in a table segment, as its directory lists it; the directory itself too.
    fn sealed_in(
        &mut self,
        segment: SegmentId,
        seq: SegmentSeq,
        used_bytes: u32,
    ) -> Option<Vec<BlockPtr>> {
        let pool = &self.store.pool;
        let header = table_header(pool, segment, Some(used_bytes));
        let place = header.as_ref().and_then(DirectoryPlace::of_header)?;
        match read_directory(pool, segment, seq, place) {
            Ok(directory) => {
                let itself = BlockPtr {
                    place: u64::from(segment.0) * u64::from(SEGMENT_BYTES)
                        + u64::from(place.offset),
                    stored_len: place.stored_len,
                };
                Some(directory.blocks(segment).chain([itself]).collect())
            }
            Err(error) => {
                let object = format!("segment {segment} offset {}", place.offset);
                self.find("table-block", object, error.to_string());
                None
            }
        }
    }

    /// Puts the parity of a table segment right, all blocks of which have been opened but for the directory.
    fn settle(&mut self, segment: SegmentId, seq: SegmentSeq, used_bytes: u32) {
        let sealed = self.sealed_in(segment, seq, used_bytes);
        let pool = &self.store.pool;
        let is_header = |block: &[u8]| {
            cfs_seal::keys::open_segment_header(block, &pool.cluster_key).is_ok_and(|header| {
                header.segment.get() == segment.0
                    && header.seq.get() == seq.0
                    && block[size_of_val(&header)..].iter().all(|byte| *byte == 0)
            })
        };
        let opens = |bytes: &[u8], range: Range<usize>| {
            let opens = |block: &BlockPtr| {
                let offset = (block.place % u64::from(SEGMENT_BYTES)) as u32;
                let place = offset as usize..offset as usize + block.stored_len as usize;
                let touches = place.start < range.end && range.start < place.end;
                !touches || {
                    let sealed = bytes.get(place).map(<[u8]>::to_vec);
                    sealed.is_some_and(|mut sealed| {
                        let table = &pool.ciphers.table;
                        table.open_in_place(seq, offset, b"", &mut sealed).is_ok()
                    })
                }
            };
            sealed
                .as_ref()
                .is_some_and(|sealed| sealed.iter().all(opens))
        };
        settle_parity(pool, segment, used_bytes, is_header, opens);
    }

    fn tables(&mut self) -> ControlFlow<()> {
        let frozen = self.store.freeze();
        for view in [&frozen.meta, &frozen.chunk] {
            self.table(view)?;
        }
        ControlFlow::Continue(())
    }

    fn table(&mut self, view: &View) -> ControlFlow<()> {
        let mut damaged: BTreeSet<u64> = BTreeSet::new();
        view.read_all_blocks(|pointer: BlockPtr, error: Option<RunError>| {
            self.report.table_blocks += 1;
            let segment = pointer.place / u64::from(SEGMENT_BYTES);
            if let Some(error) = error {
                let offset = pointer.place % u64::from(SEGMENT_BYTES);
                damaged.insert(segment);
                let object = format!("segment {segment} offset {offset}");
                self.find("table-block", object, error.to_string());
            }
            self.read(u64::from(pointer.stored_len))
        })?;
        // Of a run that was not read to its end nobody knows which blocks are right.
        let runs = view.extents_by_run().into_iter();
        let whole = runs.filter(|extents| extents.iter().all(|extent| !damaged.contains(extent)));
        for segment in whole.flatten() {
            let segment = SegmentId(segment as u32);
            let entry = self.store.pool.space.lock().entry(segment).copied();
            if let Some(entry) = entry {
                self.settle(segment, entry.seq, entry.used_bytes);
            }
        }
        ControlFlow::Continue(())
    }

    /// Tells once that not all chunks can be verified.
    fn find_index_damage(&mut self, error: &ReadError) {
        if !std::mem::replace(&mut self.index_is_damaged, true) {
            let sentence = format!("chunks that it leads to have not been verified: {error}");
            self.find("chunk-index", "the table of chunks".to_owned(), sentence);
        }
    }

    fn data(&mut self) -> ControlFlow<()> {
        let mut done: BTreeSet<SegmentSeq> = BTreeSet::new();
        let mut doubtful: BTreeSet<SegmentId> = BTreeSet::new();
        for _ in 0..ROUNDS_MAX {
            let segments: Vec<(SegmentId, SegmentSeq)> = {
                let space = self.store.pool.space.lock();
                space
                    .entries()
                    .filter(|(_, entry)| entry.is_data() && !done.contains(&entry.seq))
                    .map(|(segment, entry)| (segment, entry.seq))
                    .collect()
            };
            if segments.is_empty() {
                break;
            }
            for (segment, seq) in segments {
                if !self.walk(segment, seq) {
                    doubtful.insert(segment);
                }
                done.insert(seq);
                self.read(u64::from(SEGMENT_BYTES))?;
            }
        }
        self.look_again(&doubtful)
    }

    /// Reads a data segment and verifies what the index has in it. False when that is not all that is live there.
    fn walk(&mut self, segment: SegmentId, seq: SegmentSeq) -> bool {
        let store = self.store;
        let Ok(content) = store.pool.read_segment(segment) else {
            return false;
        };
        let (mut verified_bytes, mut scratch, mut out) = (0, Vec::new(), Vec::new());
        for found in store.records_in(seq, content.as_slice()) {
            let fingerprint = Fingerprint(found.header.fingerprint);
            let record_len = RECORD_OVERHEAD + found.header.payload_len.get();
            let record = match store.chunk_record(&fingerprint) {
                Ok(Some(record)) => record,
                Ok(None) => continue,
                Err(error) => {
                    self.find_index_damage(&error);
                    continue;
                }
            };
            if (record.segment.get(), record.offset.get()) != (segment.0, found.offset) {
                continue;
            }
            let place = RecordPlace {
                seq,
                offset: found.offset,
            };
            let start = found.offset as usize;
            let opened = open_record(
                &content.as_slice()[start..start + record_len as usize],
                place,
                &store.pool.ciphers.record_header,
                |domain| store.domain_secret(domain),
                &mut scratch,
                &mut out,
            );
            if opened.is_ok() && self.is_named(&fingerprint, DomainId(record.domain.get()), &out) {
                verified_bytes += record_len;
                self.report.chunks += 1;
            }
        }
        store.pool.recycle(content);
        let space = store.pool.space.lock();
        let live_bytes = space.entry(segment).filter(|entry| entry.seq == seq);
        live_bytes.is_none_or(|entry| entry.live_bytes <= verified_bytes)
    }

    fn is_named(&self, fingerprint: &Fingerprint, domain: DomainId, content: &[u8]) -> bool {
        let secret = self.store.domain_secret(domain);
        secret.is_some_and(|secret| secret.fingerprint(content) == *fingerprint)
    }

    /// Reads each chunk in these segments as a reader would.
    fn look_again(&mut self, segments: &BTreeSet<SegmentId>) -> ControlFlow<()> {
        let store = self.store;
        let mut out = Vec::new();
        for chunk in store.freeze().chunks() {
            let (fingerprint, record) = match chunk {
                Ok(chunk) => chunk,
                // Nothing follows a block that cannot be read.
                Err(error) => {
                    self.find_index_damage(&error);
                    break;
                }
            };
            if record.is_lost() {
                self.report.bad_chunks.insert(fingerprint);
                continue;
            }
            let is_known_bad = store.verdicts.is_bad(&fingerprint, &record);
            if !is_known_bad && !segments.contains(&SegmentId(record.segment.get())) {
                continue;
            }
            let domain = DomainId(record.domain.get());
            match store.read_chunk_record(&fingerprint, &mut out) {
                Ok(read) => {
                    // What was damaged may have been the device's mood.
                    let is_damaged = !self.is_named(&fingerprint, domain, &out);
                    store.verdicts.reach(fingerprint, &read, is_damaged);
                    if is_damaged {
                        tracing::warn!(%fingerprint, "a chunk has the name of another");
                        self.report.bad_chunks.insert(fingerprint);
                    }
                }
                // Dropped meanwhile.
                Err(ReadError::Missing { .. }) => {}
                Err(error @ (ReadError::Table(_) | ReadError::Record { .. })) => {
                    self.find_index_damage(&error);
                }
                Err(error) => {
                    tracing::warn!(%fingerprint, %error, "a chunk is damaged");
                    self.report.bad_chunks.insert(fingerprint);
                }
            }
            self.read(u64::from(record.record_len.get()))?;
        }
        ControlFlow::Continue(())
    }
}
