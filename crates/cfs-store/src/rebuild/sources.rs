//! Where the tables lie, by whatever is left that tells it.

use std::collections::BTreeMap;

use cfs_format::journal::BATCHES_OFFSET;
use cfs_format::superblock::{BlobPointer, JournalPosition, Superblock};
use cfs_format::{Lsn, SEGMENT_BYTES, SegmentId, SegmentSeq};
use cfs_kv::salvage::{self, Entry, NamedRun};

use super::scan::{Scan, TableSegment};
use crate::checkpoint::{Manifest, ManifestSegment};
use crate::directory::{DirectoryPlace, LogMark, TableOwner, read_directory};
use crate::heal::table_header;
use crate::log_reader::{LogReader, LogTail, LostLog};
use crate::pool::Pool;
use crate::runs::{SegmentRuns, TableBlock};
use crate::store::Store;

/// A description of the meta tree.
pub(super) struct Source {
    /// Of what kind.
    pub name: &'static str,
    /// The segments of each run, so that of two runs with the same key the newer one comes later.
    pub runs: Vec<Vec<ManifestSegment>>,
    /// All of these segments.
    pub segments: Vec<ManifestSegment>,
    /// Where the log goes on.
    pub log: LogMark,
    /// Secrets of dedup domains, as far as they are in it.
    pub domains: Vec<(u16, [u8; 32])>,
    /// Segments that the description names; those that cannot be found are not among `segments`.
    named_segments: usize,
    /// The superblock knows where the log goes on.
    is_in_force: bool,
}

impl Source {
    /// The newest description that there is.
    pub fn find(
        pool: &Pool,
        superblock: &Superblock,
        scan: &Scan,
        tables: &BTreeMap<SegmentId, TableSegment>,
    ) -> Option<Self> {
        let in_force = [superblock.manifest, superblock.manifest_copy];
        let in_force = in_force
            .into_iter()
            .find_map(|pointer| Store::read_manifest(pool, &pointer).ok());
        if let Some((manifest, _)) = in_force {
            let mut source = Self::of_manifest("the checkpoint", manifest, tables)?;
            source.is_in_force = true;
            return Some(source);
        }
        let mut candidates: Vec<(u64, SegmentSeq, Self)> = Vec::new();
        for table in tables.values().filter(|table| table.directory.is_last) {
            let source = match table.directory.owner {
                TableOwner::Manifest => root_pointer(table)
                    .and_then(|pointer| Store::read_manifest(pool, &pointer).ok())
                    .and_then(|(manifest, _)| {
                        Self::of_manifest("a manifest that was found", manifest, tables)
                    }),
                TableOwner::Meta => Self::of_note(table, tables),
                TableOwner::Chunk => None,
            };
            if let Some(source) = source {
                candidates.push((source.log.position().lsn.get(), table.seq, source));
            }
        }
        // Newest first, by the position in the log and then by the order in which segments were taken.
        candidates.sort_unstable_by_key(|(lsn, seq, _)| std::cmp::Reverse((*lsn, *seq)));
        let newest_lsn = candidates.first()?.0;
        // A checkpoint that was not finished may have left a manifest whose runs were never written. Then an older one is
        // as new with its log, or newer than what is left of this one.
        let newest_is_hollow = candidates[0].2.is_hollow(pool);
        let chosen = candidates.iter().position(|(lsn, _, source)| {
            let reaches = *lsn == newest_lsn || newest_is_hollow || {
                let tail = source.read_log(pool, superblock, scan);
                let last = tail.records.last();
                last.is_some_and(|record| record.lsn.0 + 1 >= newest_lsn)
            };
            reaches && source.is_whole(pool)
        });
        let (_, _, mut chosen) = candidates.swap_remove(chosen.unwrap_or(0));
        // Secrets that a note does not bring may be in an older manifest.
        if chosen.domains.is_empty() {
            chosen.domains = domains_of_any_manifest(pool, tables);
        }
        Some(chosen)
    }

    /// Whether all of its blocks can be read.
    fn is_whole(&self, pool: &Pool) -> bool {
        self.segments.len() == self.named_segments
            && self.segments.iter().all(|segment| {
                self.blocks_of(pool, *segment)
                    .iter()
                    .all(|entries| entries.is_some())
            })
    }

    /// Whether there is a segment of which nothing can be read.
    fn is_hollow(&self, pool: &Pool) -> bool {
        self.segments.len() < self.named_segments
            || self.segments.iter().any(|segment| {
                let blocks = self.blocks_of(pool, *segment);
                !blocks.is_empty() && blocks.iter().all(Option::is_none)
            })
    }

    /// Whether the superblock, when it was written, stood for more than this does.
    pub fn is_behind(&self, superblock: &Superblock) -> bool {
        !self.is_in_force && self.log.position().lsn.get() < superblock.journal.lsn.get()
    }

    fn of_manifest(
        name: &'static str,
        manifest: Manifest,
        tables: &BTreeMap<SegmentId, TableSegment>,
    ) -> Option<Self> {
        let runs = salvage::runs_oldest_first(&manifest.meta).ok()?;
        let listed: BTreeMap<u32, (u64, u32)> = manifest
            .segments
            .iter()
            .map(|(segment, seq, used_bytes)| (*segment, (*seq, *used_bytes)))
            .collect();
        Some(Self::new(
            name,
            runs,
            |segment| {
                let (seq, used_bytes) = *listed.get(&segment.0)?;
                Some((SegmentSeq(seq), used_bytes))
            },
            tables,
            (manifest.log, manifest.domains),
        ))
    }

    fn of_note(table: &TableSegment, tables: &BTreeMap<SegmentId, TableSegment>) -> Option<Self> {
        let note = table.directory.note.as_ref()?;
        let mut runs = salvage::runs_oldest_first(&note.tree_before).ok()?;
        let mut parts: Vec<&TableSegment> = tables
            .values()
            .filter(|other| {
                other.directory.owner == TableOwner::Meta
                    && other.directory.first_seq == table.directory.first_seq
            })
            .collect();
        parts.sort_unstable_by_key(|part| part.directory.part);
        let pointer = root_pointer(table)?;
        runs.push(NamedRun {
            root: cfs_kv::BlockPtr {
                place: u64::from(pointer.segment.get()) * u64::from(SEGMENT_BYTES)
                    + u64::from(pointer.offset.get()),
                stored_len: pointer.stored_len.get(),
            },
            extents: parts.iter().map(|part| u64::from(part.segment.0)).collect(),
        });
        Some(Self::new(
            "the note of a checkpoint's last run",
            runs,
            |_| None,
            tables,
            (note.log, Vec::new()),
        ))
    }

    /// `listed` tells sequence number and bytes used of a segment where the source does; else its own header does.
    fn new(
        name: &'static str,
        runs: Vec<NamedRun>,
        listed: impl Fn(SegmentId) -> Option<(SegmentSeq, u32)>,
        tables: &BTreeMap<SegmentId, TableSegment>,
        (log, domains): (LogMark, Vec<(u16, [u8; 32])>),
    ) -> Self {
        let place = |extent: &u64| {
            let segment = SegmentId(u32::try_from(*extent).ok()?);
            let own = || {
                let table = tables.get(&segment)?;
                Some((table.seq, table.used_bytes))
            };
            let (seq, used_bytes) = listed(segment).or_else(own)?;
            Some(ManifestSegment {
                segment,
                seq,
                used_bytes,
            })
        };
        let named_segments = runs.iter().map(|run| run.extents.len()).sum();
        let runs: Vec<Vec<ManifestSegment>> = runs
            .iter()
            .map(|run| run.extents.iter().filter_map(place).collect())
            .collect();
        Self {
            name,
            segments: runs.iter().flatten().copied().collect(),
            runs,
            log,
            domains,
            named_segments,
            is_in_force: false,
        }
    }

    /// The entries of each data block of a segment, in order; `None` for each block that cannot be read, and once for a
    /// segment of which nothing can be.
    pub fn blocks_of(&self, pool: &Pool, found: ManifestSegment) -> Vec<Option<Vec<Entry>>> {
        let header = table_header(pool, found.segment, Some(found.used_bytes));
        let directory = header
            .filter(|header| header.seq.get() == found.seq.0)
            .and_then(|header| DirectoryPlace::of_header(&header))
            .and_then(|place| read_directory(pool, found.segment, found.seq, place).ok());
        let Some(directory) = directory else {
            return vec![None];
        };
        let read = |block: cfs_kv::BlockPtr| {
            let bytes = SegmentRuns::open_block(
                pool,
                TableBlock {
                    place: block.place,
                    stored_len: block.stored_len,
                    seq: found.seq,
                    used_bytes: found.used_bytes,
                },
            );
            let entries = bytes
                .ok()
                .and_then(|bytes| salvage::entries_of_block(block, bytes).ok());
            match entries {
                Some(Some(entries)) => Some(Some(entries)),
                // An index, a filter, a root.
                Some(None) => None,
                None => Some(None),
            }
        };
        directory.blocks(found.segment).filter_map(read).collect()
    }

    /// Reads the log behind this description.
    pub fn read_log(&self, pool: &Pool, superblock: &Superblock, scan: &Scan) -> LogTail {
        let reader = LogReader {
            device: &*pool.device,
            cipher: &pool.ciphers.journal,
            key: &pool.cluster_key,
            uuid: &pool.uuid,
        };
        if self.is_in_force {
            let mut tail = reader.read(&superblock.journal);
            if superblock.clean.get() == 1 {
                tail.lost = None;
            }
            return tail;
        }
        let mark = self.log.position();
        let mut tail = reader.read(&mark);
        if tail.records.is_empty() {
            // Where there is nothing to be read, nothing may ever have been.
            tail.lost = None;
        }
        let mut incarnation = mark.seq.get() >> 40;
        // Each process has a log of its own, which goes on where recovery had found the end of the one before.
        while let Some((segment, header)) = scan
            .journal_segments()
            .filter(|(_, header)| header.seq.get() >> 40 > incarnation)
            .min_by_key(|(_, header)| header.seq.get())
        {
            incarnation = header.seq.get() >> 40;
            let last_lsn = tail
                .records
                .last()
                .map_or(mark.lsn.get() - 1, |last| last.lsn.0);
            let first_lsn = header.first_lsn.get();
            if first_lsn < mark.lsn.get() {
                continue;
            }
            if first_lsn > last_lsn + 1 {
                tail.lost = Some(LostLog {
                    segment,
                    offset: BATCHES_OFFSET,
                    lsn: Lsn(last_lsn + 1),
                    durable_lsn: Lsn(first_lsn - 1),
                });
                break;
            }
            let next = reader.read(&JournalPosition {
                segment: segment.0.into(),
                offset: BATCHES_OFFSET.into(),
                seq: header.seq,
                lsn: header.first_lsn,
            });
            tail.records.retain(|record| record.lsn.0 < first_lsn);
            tail.records.extend(next.records);
            tail.segments.extend(next.segments);
            tail.repaired.extend(next.repaired);
            tail.durable_lsn = next.durable_lsn;
            tail.lost = next.lost;
        }
        tail
    }
}

/// Where the root lies that ends a table segment's blocks.
fn root_pointer(table: &TableSegment) -> Option<BlobPointer> {
    let root = table.directory.blocks(table.segment).last()?;
    Some(BlobPointer {
        segment: table.segment.0.into(),
        offset: ((root.place % u64::from(SEGMENT_BYTES)) as u32).into(),
        seq: table.seq.0.into(),
        stored_len: root.stored_len.into(),
        segment_used_bytes: table.used_bytes.into(),
    })
}

fn domains_of_any_manifest(
    pool: &Pool,
    tables: &BTreeMap<SegmentId, TableSegment>,
) -> Vec<(u16, [u8; 32])> {
    let manifests = tables
        .values()
        .filter(|table| table.directory.owner == TableOwner::Manifest && table.directory.is_last);
    let manifests = manifests.filter_map(|table| {
        let (manifest, _) = Store::read_manifest(pool, &root_pointer(table)?).ok()?;
        Some((table.seq, manifest.domains))
    });
    manifests
        .max_by_key(|(seq, _)| *seq)
        .map_or_else(Vec::new, |(_, domains)| domains)
}
