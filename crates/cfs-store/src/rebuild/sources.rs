//! Where the tables lie, by whatever is left that tells it.

use std::collections::BTreeMap;

use cfs_format::journal::BATCHES_OFFSET;
use cfs_format::superblock::{BlobPointer, JournalPosition, Superblock};
use cfs_format::{Lsn, SEGMENT_BYTES, SegmentId, SegmentSeq};
use cfs_kv::salvage::{self, Entry, NamedRun};

use super::scan::{Scan, TableSegment};
use crate::checkpoint::{Manifest, ManifestSegment};
use crate::directory::{CheckpointMark, DirectoryPlace, TableOwner, read_directory};
use crate::heal::table_header;
use crate::log_reader::{LogReader, LogTail, LostLog};
use crate::pool::Pool;
use crate::runs::{SegmentRuns, TableBlock};
use crate::store::Store;

/// A description of the meta tree.
#[derive(Clone)]
pub(super) struct Source {
    /// Of what kind.
    pub name: &'static str,
    /// The segments of each run, so that of two runs with the same key the newer one comes later; `None` for one that is
    /// nowhere.
    pub runs: Vec<Vec<Option<ManifestSegment>>>,
    /// All that a rebuild must not write to while it may still be given up: these runs, and where the description is that of
    /// the checkpoint, all that an opening needs.
    pub claimed: Vec<ManifestSegment>,
    /// Where the log goes on, and secrets of dedup domains.
    pub mark: CheckpointMark,
    /// Of the segment that the description lies in: segments that were filled later are not in it.
    pub seq: SegmentSeq,
    /// The superblock knows where the log goes on.
    is_in_force: bool,
    /// There was a newer description, of which nothing could be used.
    pub is_behind: bool,
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
        let in_force = in_force.iter().find_map(|pointer| {
            let (manifest, own) = Store::read_manifest(pool, pointer).ok()?;
            let mut source = Self::of_manifest("the checkpoint", manifest, own)?;
            source.is_in_force = true;
            Some(source)
        });
        if let Some(source) = in_force.as_ref().filter(|source| source.is_whole(pool)) {
            return Some(source.clone());
        }
        let is_older = |source: &Self| {
            let newest = in_force.as_ref().map(|source| source.seq);
            newest.is_none_or(|newest| source.seq < newest)
        };
        let mut candidates: Vec<Self> = tables
            .values()
            .filter(|table| table.directory.is_last)
            .filter_map(|table| match table.directory.owner {
                TableOwner::Manifest => {
                    let pointer = root_pointer(table)?;
                    let (manifest, own) = Store::read_manifest(pool, &pointer).ok()?;
                    Self::of_manifest("a manifest that was found", manifest, own)
                }
                TableOwner::Meta => Self::of_note(table, tables),
                TableOwner::Chunk => None,
            })
            .filter(is_older)
            .collect();
        // A checkpoint that was being made when a process ended, of a time that recovery did not come to, belongs to a
        // past that never was.
        let count = candidates.len();
        let valid = |source: &Self| !source.was_given_up(scan);
        let given_up: Vec<Self> = candidates.extract_if(.., |source| !valid(source)).collect();
        let is_all_given_up = candidates.is_empty() && in_force.is_none() && count > 0;
        if is_all_given_up {
            candidates = given_up;
        }
        candidates.extend(in_force.iter().cloned());
        // Segments are numbered in the order in which they are filled, across all processes.
        candidates.sort_unstable_by_key(|source| std::cmp::Reverse(source.seq));
        let newest = candidates.first()?;
        let newest_lsn = newest.position(superblock).lsn.get();
        // A checkpoint that was not finished may have left a manifest whose runs were never written. Then an older one is
        // as new with its log, or nothing is left of what this one adds to it.
        let chosen = candidates.iter().position(|source| {
            let is_as_new = source.seq == newest.seq
                || !newest.adds_anything_to(source, pool)
                || source.end_of_log(pool, superblock, scan) >= newest_lsn;
            is_as_new && source.is_whole(pool)
        });
        let mut chosen = candidates.swap_remove(chosen.unwrap_or(0));
        let reached = chosen.end_of_log(pool, superblock, scan);
        chosen.is_behind =
            is_all_given_up || reached < newest_lsn.max(superblock.journal.lsn.get());
        // If the rebuild is given up, an opening must find all that it would have found before.
        if let Some(in_force) = in_force.filter(|_| !chosen.is_in_force) {
            chosen.claimed.extend(in_force.claimed);
        }
        Some(chosen)
    }

    /// Whether a later process has begun its log before the place where this says that it goes on.
    fn was_given_up(&self, scan: &Scan) -> bool {
        let mark = self.mark.log.position();
        scan.journal_segments().any(|(_, header)| {
            header.seq.get() >> 40 > mark.seq.get() >> 40 && header.first_lsn.get() < mark.lsn.get()
        })
    }

    /// The LSN behind the last command of the log.
    fn end_of_log(&self, pool: &Pool, superblock: &Superblock, scan: &Scan) -> u64 {
        let tail = self.read_log(pool, superblock, scan);
        let last = tail.records.last().map(|record| record.lsn.0 + 1);
        last.unwrap_or_else(|| self.position(superblock).lsn.get())
    }

    /// Where the log goes on.
    fn position(&self, superblock: &Superblock) -> JournalPosition {
        match self.is_in_force {
            true => superblock.journal,
            false => self.mark.log.position(),
        }
    }

    /// Whether all of its blocks can be read.
    fn is_whole(&self, pool: &Pool) -> bool {
        self.runs.iter().flatten().all(|segment| {
            let blocks = Self::blocks_of(pool, *segment);
            blocks.iter().all(Option::is_some)
        })
    }

    /// Whether anything can be read that was written after `older` was.
    fn adds_anything_to(&self, older: &Self, pool: &Pool) -> bool {
        let segments = self.runs.iter().flatten();
        segments
            .filter(|segment| segment.is_some_and(|segment| segment.seq > older.seq))
            .any(|segment| Self::blocks_of(pool, *segment).iter().any(Option::is_some))
    }

    fn of_manifest(
        name: &'static str,
        manifest: Manifest,
        own: Vec<ManifestSegment>,
    ) -> Option<Self> {
        let runs = salvage::runs_oldest_first(&manifest.meta).ok()?;
        let listed = listed(&manifest.segments);
        let seq = own.iter().map(|segment| segment.seq).max()?;
        Some(Self {
            name,
            runs: places(&runs, &listed),
            claimed: listed.into_values().chain(own).collect(),
            mark: manifest.mark,
            seq,
            is_in_force: false,
            is_behind: false,
        })
    }

    fn of_note(table: &TableSegment, tables: &BTreeMap<SegmentId, TableSegment>) -> Option<Self> {
        let note = table.directory.note.as_ref()?;
        let runs = salvage::runs_oldest_first(&note.tree_before).ok()?;
        let listed = listed(&note.segments);
        let mut runs = places(&runs, &listed);
        let part = |number: u32| {
            let part = tables.values().find(|other| {
                other.directory.owner == TableOwner::Meta
                    && other.directory.first_seq == table.directory.first_seq
                    && other.directory.part == number
            });
            part.map(|part| ManifestSegment {
                segment: part.segment,
                seq: part.seq,
                used_bytes: part.used_bytes,
            })
        };
        // Not more than there are segments, whatever the number says.
        let last = table.directory.part.min(tables.len() as u32);
        runs.push((0..=last).map(part).collect());
        Some(Self {
            name: "the note of a checkpoint's last run",
            claimed: runs.iter().flatten().flatten().copied().collect(),
            runs,
            mark: note.mark.clone(),
            seq: table.seq,
            is_in_force: false,
            is_behind: false,
        })
    }

    /// The entries of each data block of a segment, in order; `None` for each block that cannot be read, and once for a
    /// segment of which nothing can be.
    pub fn blocks_of(pool: &Pool, found: Option<ManifestSegment>) -> Vec<Option<Vec<Entry>>> {
        let Some(found) = found.filter(|found| {
            found.used_bytes <= SEGMENT_BYTES
                && found.segment.0 < pool.device.geometry().segment_count
        }) else {
            return vec![None];
        };
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
            was_closed: self.is_in_force && superblock.clean.get() == 1,
        };
        if self.is_in_force {
            return reader.read(&superblock.journal);
        }
        let mark = self.mark.log.position();
        let mut tail = reader.read(&mark);
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
                .map_or(mark.lsn.get().saturating_sub(1), |last| last.lsn.0);
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

/// The segments in a list, by their numbers.
fn listed(segments: &[(u32, u64, u32)]) -> BTreeMap<u32, ManifestSegment> {
    let segments = segments.iter().map(|(segment, seq, used_bytes)| {
        let found = ManifestSegment {
            segment: SegmentId(*segment),
            seq: SegmentSeq(*seq),
            used_bytes: *used_bytes,
        };
        (*segment, found)
    });
    segments.collect()
}

fn places(
    runs: &[NamedRun],
    listed: &BTreeMap<u32, ManifestSegment>,
) -> Vec<Vec<Option<ManifestSegment>>> {
    let place = |extent: &u64| {
        let segment = u32::try_from(*extent).ok()?;
        listed.get(&segment).copied()
    };
    runs.iter()
        .map(|run| run.extents.iter().map(place).collect())
        .collect()
}
