//! Recounting references in steps: the extents of all files against the counts in the chunk tree, as of one moment.
//!
//! The usual case is that all agree, and that is found out in one pass over the extents and one over the chunks with a
//! megabyte of memory, however many there are. Chunks are spread over buckets by the beginning of their fingerprints; to a
//! bucket each extent adds a part of its chunk's fingerprint as a number, and each chunk takes it away as often as it is
//! counted. Fingerprints are keyed hashes, so that a bucket which comes out at zero agrees, but for one case in 2^100.
//! Only the chunks of the other buckets are then counted one by one, in as many further passes as the memory for them
//! makes necessary.
//!
//! Invariants: both trees are read through views that were taken between two commands. Nothing is changed but chunks that
//! are neither counted nor shown and that are missing in the list of those to drop; what is disputed stays.

mod schedule;

use std::collections::{BTreeMap, HashMap};

use cfs_format::table::{ChunkRecord, RecountRecord, split_history, split_key, system_key, tag};
use cfs_format::{DomainId, Fingerprint, Ino, VolumeId};
use cfs_seal::keys::FileKey;
use cfs_store::{Frozen, ReadError, Store, TableScan};
use zerocopy::FromBytes;

use crate::check::Finding;
use crate::error::{FsError, Result};
use crate::{extent, history, inode};

pub use schedule::RecountStatus;
pub(crate) use schedule::Recounts;

/// Buckets that chunks are spread over.
const BUCKETS: usize = 1 << 16;
/// Chunks that are counted one by one in one further pass.
const CHUNKS_AT_ONCE: u64 = 1 << 18;
/// Further passes; what is left then is told to be more.
const FURTHER_PASSES_MAX: u32 = 8;
/// Findings that are listed at most.
const FINDINGS_MAX: usize = 1000;
/// Chunks in no list that are dropped after one recount at most.
const UNLISTED_MAX: usize = 1 << 16;

/// What a recount has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecountReport {
    /// Extents counted.
    pub references: u64,
    /// Chunks compared.
    pub chunks: u64,
    /// Chunks whose count is not that of the extents that show them.
    pub differing: u64,
    /// Those of them that no extent shows.
    pub leaked: u64,
    /// Those of them that the index has not.
    pub missing: u64,
    /// Chunks that were neither counted nor shown and in no list; they have been dropped.
    pub freed: u64,
    /// Rows that could not be understood; their references are not counted.
    pub unread_rows: u64,
    /// More differ than could be counted one by one.
    pub is_incomplete: bool,
    /// The first chunks that differ.
    pub findings: Vec<Finding>,
}

impl RecountReport {
    /// Whether counts and extents agree.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.differing == 0 && self.unread_rows == 0 && !self.is_incomplete
    }

    fn differs(&mut self, fingerprint: &Fingerprint, counted: Option<u64>, shown: u64) {
        self.differing += 1;
        let id = match (counted, shown) {
            (None, _) => {
                self.missing += 1;
                "chunk-missing"
            }
            (Some(_), 0) => {
                self.leaked += 1;
                "chunk-leaked"
            }
            _ => "chunk-references",
        };
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding {
                id,
                object: format!("chunk {fingerprint}"),
                sentence: match counted {
                    None => format!("{shown} extents show it, and the index has it not"),
                    Some(counted) => {
                        format!("{counted} references are counted, and {shown} extents show it")
                    }
                },
            });
        }
    }

    pub(crate) fn record(&self, finished_ns: u64) -> RecountRecord {
        let other = self.unread_rows.min(1) + u64::from(self.is_incomplete);
        RecountRecord {
            finished_ns: finished_ns.into(),
            differing: self.differing.max(other).into(),
            leaked: self.leaked.into(),
            missing: self.missing.into(),
        }
    }
}

/// How far a recount is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecountProgress {
    /// Extents and chunks looked at.
    pub seen: u64,
    /// Extents and chunks to look at, with those of further passes.
    pub total: u64,
}

/// What the pass that is under way goes over.
enum Pass {
    /// All extents into the buckets.
    Extents(ExtentScan),
    /// All chunks out of the buckets.
    Chunks(TableScan),
    /// Extents of the chunks in `group`.
    SuspectExtents(ExtentScan),
    /// Chunks in `group`.
    SuspectChunks(TableScan),
}

/// The extents of all files, in order.
struct ExtentScan {
    rows: TableScan,
    file: Ino,
    file_key: Option<FileKey>,
}

impl ExtentScan {
    fn new(frozen: &Frozen) -> Self {
        Self {
            rows: frozen.scan_meta(),
            file: Ino(0),
            file_key: None,
        }
    }

    /// The chunk of an extent's row; none for other rows.
    fn look(&mut self, keys: &Keys<'_>, row: &(Vec<u8>, Vec<u8>)) -> Result<Option<Fingerprint>> {
        let (ino, row_tag, suffix) = split_key(&row.0)?;
        if (ino, row_tag) == (Ino(0), tag::HISTORY) {
            return match split_history(suffix)? {
                (ino, tag::EXTENT, suffix, _) => {
                    let extent = history::stored_extent(keys.store, ino, suffix, &row.1)?;
                    Ok(Some(extent.fingerprint))
                }
                _ => Ok(None),
            };
        }
        if ino == Ino(0) {
            return Ok(None);
        }
        match row_tag {
            tag::INODE => {
                self.file = ino;
                self.file_key = None;
                let record = inode::decode(ino, &row.1)?;
                self.file_key = keys.of(VolumeId(record.volume.get()), &record.salt);
                Ok(None)
            }
            tag::EXTENT => {
                let file_key = self.file_key.as_ref().filter(|_| self.file == ino);
                let file_key = file_key.ok_or_else(|| {
                    FsError::damaged(format_args!("an extent of inode {ino}, which is not there"))
                })?;
                Ok(Some(extent::decode_row(ino, file_key, row)?.fingerprint))
            }
            _ => Ok(None),
        }
    }
}

/// Where keys of files come from.
struct Keys<'a> {
    store: &'a Store,
    volumes: &'a BTreeMap<VolumeId, DomainId>,
}

impl Keys<'_> {
    fn of(&self, volume: VolumeId, salt: &[u8; 16]) -> Option<FileKey> {
        let secret = self.store.domain_secret(*self.volumes.get(&volume)?)?;
        Some(FileKey::derive(&secret, salt))
    }
}

fn bucket(fingerprint: &Fingerprint) -> usize {
    usize::from(u16::from_be_bytes([fingerprint.0[0], fingerprint.0[1]]))
}

/// The part of a fingerprint that is summed up; it has nothing in common with the bucket.
fn summand(fingerprint: &Fingerprint) -> u128 {
    let (_, part) = fingerprint.0.split_at(16);
    u128::from_le_bytes(part.try_into().expect("half of 32 bytes"))
}

/// A recount under way.
pub(crate) struct Recount {
    frozen: Frozen,
    volumes: BTreeMap<VolumeId, DomainId>,
    pass: Pass,
    /// Sum over extents less sum over counts, by bucket.
    sums: Vec<u128>,
    /// Buckets that do not agree and have not been counted yet.
    suspects: Vec<usize>,
    /// Those that are counted now, and their chunks.
    group: Vec<usize>,
    shown: HashMap<Fingerprint, u64>,
    further_passes: u32,
    /// Not counted, and in no list.
    unlisted: Vec<Fingerprint>,
    /// Shown more often than counted.
    disputed: Vec<Fingerprint>,
    seen: u64,
    report: RecountReport,
}

impl Recount {
    /// Begins with what the newest command has left.
    pub fn begin(store: &Store) -> Self {
        let frozen = store.freeze();
        let volumes = frozen.volumes.iter();
        let volumes = volumes
            .map(|(id, volume)| (*id, DomainId(volume.domain.get())))
            .collect();
        Self {
            pass: Pass::Extents(ExtentScan::new(&frozen)),
            frozen,
            volumes,
            sums: vec![0; BUCKETS],
            suspects: Vec::new(),
            group: Vec::new(),
            shown: HashMap::new(),
            further_passes: 0,
            unlisted: Vec::new(),
            disputed: Vec::new(),
            seen: 0,
            report: RecountReport::default(),
        }
    }

    pub fn progress(&self) -> RecountProgress {
        let pool = &self.frozen.pool;
        let once = pool.reference_count.get() + pool.chunk_count.get();
        let total = once * (1 + u64::from(self.further_passes));
        RecountProgress {
            seen: self.seen,
            total: total.max(self.seen),
        }
    }

    /// Looks at up to `rows` rows. The report, once all have been looked at.
    ///
    /// # Errors
    /// A table cannot be read; this recount can then not go on.
    pub fn step(&mut self, store: &Store, rows: usize) -> Result<Option<RecountReport>> {
        for _ in 0..rows {
            if !self.look_at_one(store)? && !self.next_pass() {
                return self.finish(store).map(Some);
            }
        }
        Ok(None)
    }

    /// Looks at the next row of the pass; false at its end.
    fn look_at_one(&mut self, store: &Store) -> Result<bool> {
        let keys = Keys {
            store,
            volumes: &self.volumes,
        };
        match &mut self.pass {
            Pass::Extents(scan) => {
                let Some(row) = scan.rows.next() else {
                    return Ok(false);
                };
                match scan.look(&keys, &row?) {
                    Ok(Some(fingerprint)) => {
                        self.seen += 1;
                        self.report.references += 1;
                        let sum = &mut self.sums[bucket(&fingerprint)];
                        *sum = sum.wrapping_add(summand(&fingerprint));
                    }
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(%error, "a row whose references cannot be counted");
                        self.report.unread_rows += 1;
                    }
                }
            }
            Pass::Chunks(range) => {
                let Some(row) = range.next() else {
                    return Ok(false);
                };
                let (fingerprint, record) = chunk(row?)?;
                self.seen += 1;
                self.report.chunks += 1;
                let refs = record.refs.get();
                let sum = &mut self.sums[bucket(&fingerprint)];
                *sum = sum.wrapping_sub(summand(&fingerprint).wrapping_mul(refs.into()));
                if refs == 0 && self.unlisted.len() < UNLISTED_MAX {
                    let listed = system_key(tag::DEAD_CHUNK, &fingerprint.0);
                    if self
                        .frozen
                        .meta
                        .get(&listed)
                        .map_err(ReadError::from)?
                        .is_none()
                    {
                        self.unlisted.push(fingerprint);
                    }
                }
            }
            Pass::SuspectExtents(scan) => {
                let Some(row) = scan.rows.next() else {
                    return Ok(false);
                };
                // What cannot be understood was told in the first pass.
                if let Ok(Some(fingerprint)) = scan.look(&keys, &row?) {
                    self.seen += 1;
                    if self.group.binary_search(&bucket(&fingerprint)).is_ok() {
                        *self.shown.entry(fingerprint).or_default() += 1;
                    }
                }
            }
            Pass::SuspectChunks(range) => {
                let Some(row) = range.next() else {
                    return Ok(false);
                };
                let (fingerprint, record) = chunk(row?)?;
                self.seen += 1;
                if self.group.binary_search(&bucket(&fingerprint)).is_ok() {
                    let counted = u64::from(record.refs.get());
                    let shown = self.shown.remove(&fingerprint).unwrap_or(0);
                    if counted != shown {
                        self.report.differs(&fingerprint, Some(counted), shown);
                    }
                    if shown > counted {
                        self.disputed.push(fingerprint);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Goes on to the next pass; false when there is none.
    fn next_pass(&mut self) -> bool {
        match &self.pass {
            Pass::Extents(_) => self.pass = Pass::Chunks(self.frozen.scan_chunks()),
            Pass::SuspectExtents(_) => self.pass = Pass::SuspectChunks(self.frozen.scan_chunks()),
            Pass::Chunks(_) => {
                let sums = std::mem::take(&mut self.sums);
                let suspects = sums.iter().enumerate().filter(|(_, sum)| **sum != 0);
                self.suspects = suspects.map(|(bucket, _)| bucket).collect();
                return self.next_group();
            }
            Pass::SuspectChunks(_) => {
                let mut missing: Vec<_> = self.shown.drain().collect();
                missing.sort_unstable_by_key(|(fingerprint, _)| fingerprint.0);
                for (fingerprint, shown) in missing {
                    self.report.differs(&fingerprint, None, shown);
                }
                return self.next_group();
            }
        }
        true
    }

    fn next_group(&mut self) -> bool {
        if self.suspects.is_empty() {
            return false;
        }
        if self.further_passes == FURTHER_PASSES_MAX {
            self.report.is_incomplete = true;
            return false;
        }
        self.further_passes += 1;
        let chunks_of_bucket = self.report.chunks / BUCKETS as u64 + 1;
        let count = (CHUNKS_AT_ONCE / chunks_of_bucket).max(1) as usize;
        let rest = self.suspects.split_off(count.min(self.suspects.len()));
        self.group = std::mem::replace(&mut self.suspects, rest);
        self.pass = Pass::SuspectExtents(ExtentScan::new(&self.frozen));
        true
    }

    fn finish(&mut self, store: &Store) -> Result<RecountReport> {
        let mut report = std::mem::take(&mut self.report);
        // A pool that cannot be written to drops nothing.
        if let Err(error) = store.dispute(&self.disputed) {
            tracing::warn!(%error, "chunks that are shown more often than counted are not marked");
        }
        // A chunk that somebody shows is no candidate, and neither is any while rows could not be read.
        if report.is_clean() && !self.unlisted.is_empty() {
            let unlisted = std::mem::take(&mut self.unlisted);
            report.freed = store.drop_unlisted(unlisted).map_err(FsError::from)?;
        }
        Ok(report)
    }
}

fn chunk(row: (Vec<u8>, Vec<u8>)) -> Result<(Fingerprint, ChunkRecord)> {
    let damaged = || FsError::from(ReadError::Record { what: "chunk" });
    let fingerprint = <[u8; 32]>::try_from(&row.0[..]).map_err(|_| damaged())?;
    let record = ChunkRecord::read_from_bytes(&row.1).map_err(|_| damaged())?;
    Ok((Fingerprint(fingerprint), record))
}
