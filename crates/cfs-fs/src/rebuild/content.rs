//! The rows of one inode: whether they fit its record.

use cfs_format::table::{
    ExtentRecord, InodeRecord, history_prefix, inode_flag, key, split_key, tag,
};
use cfs_format::{DomainId, Fingerprint, Ino, VolumeId};
use cfs_seal::keys::FileKey;
use cfs_store::ReadError;
use zerocopy::{FromBytes, IntoBytes};

use super::{Mending, file_key_of};
use crate::extent::{FILE_BYTES_MAX, extent_key};
use crate::inode;

/// Longest extent that stands for lost content, bytes.
const LOST_EXTENT_BYTES: u64 = 1 << 31;
/// Most of them in one gap: 32 TiB. What lies behind stays a hole, and is told.
const LOST_EXTENTS_MAX: u64 = 1 << 14;
/// No command has it.
const NO_TIMESTAMP: u64 = u64::MAX;

/// The extents of a file, as far as they are needed to see whether they fit.
#[derive(Default)]
pub(super) struct Extents {
    /// Bytes that they cover.
    pub bytes: u64,
    /// Where the last one ends.
    pub end: u64,
    /// Two show the same part of the file, or one cannot be read.
    pub is_contradictory: bool,
}

impl Extents {
    pub fn add(&mut self, offset: Option<u64>, value: &[u8]) {
        let record = ExtentRecord::read_from_bytes(value).ok();
        let Some((offset, record)) = offset.zip(record) else {
            self.is_contradictory = true;
            return;
        };
        let len = u64::from(record.len.get());
        self.is_contradictory |= offset < self.end || !is_sound(offset, &record);
        self.bytes = self.bytes.saturating_add(len);
        self.end = self.end.max(offset.saturating_add(len));
    }
}

/// What of a file is left.
#[derive(Default)]
pub(super) struct Parts {
    /// Its size.
    size: u64,
    /// What its extents cover, in order.
    kept: Vec<(u64, u64)>,
    /// What extents covered that had to go.
    removed: Vec<(u64, u64)>,
}

impl Parts {
    pub fn of_size(size: u64) -> Self {
        Self {
            size,
            ..Self::default()
        }
    }

    /// Adds what an extent covers, behind those before.
    pub fn keep(&mut self, span: Option<(u64, u64)>) {
        self.kept.extend(span);
    }

    /// What no extent covers.
    pub fn gaps(&self) -> Vec<(u64, u64)> {
        self.gaps_in(0, self.size)
    }

    /// What within `[from, to)` no extent covers.
    fn gaps_in(&self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let mut at = from;
        let mut gaps = Vec::new();
        for (start, end) in &self.kept {
            if *start > at && at < to {
                gaps.push((at, (*start).min(to)));
            }
            at = at.max(*end);
        }
        if at < to {
            gaps.push((at, to));
        }
        gaps
    }

    fn removed_and_uncovered(&self) -> Vec<(u64, u64)> {
        let removed = self.removed.iter();
        removed
            .flat_map(|(from, to)| self.gaps_in(*from, (*to).min(self.size)))
            .collect()
    }
}

/// A sound extent of a row.
fn decode(row_key: &[u8], value: &[u8]) -> Option<(u64, ExtentRecord)> {
    let (_, _, suffix) = split_key(row_key).ok()?;
    let offset = u64::from_be_bytes(suffix.try_into().ok()?);
    let record = ExtentRecord::read_from_bytes(value).ok()?;
    is_sound(offset, &record).then_some((offset, record))
}

fn is_sound(offset: u64, record: &ExtentRecord) -> bool {
    let (len, chunk_len) = (record.len.get(), record.chunk_len.get());
    len > 0
        && u64::from(record.chunk_offset.get()) + u64::from(len) <= u64::from(chunk_len)
        && offset <= FILE_BYTES_MAX - u64::from(len)
}

impl Mending<'_> {
    /// Puts right a file's size, content and counts. `inline` is the length of its inline content.
    pub(super) fn content(
        &mut self,
        ino: Ino,
        record: &InodeRecord,
        (inline, extents): (Option<u64>, Extents),
    ) -> Result<(), ReadError> {
        let mut mended = *record;
        let is_regular = inode::kind(record) == libc::S_IFREG;
        let is_inline = record.flags.get() & inode_flag::INLINE != 0;
        // The record is as new as the last change of either kind of content.
        if inline.is_some() && !is_inline {
            self.delete(key(ino, tag::INLINE, &[]));
            self.trouble(
                ino,
                "content",
                "an old content was left beside the present one",
            );
        }
        let inline = inline.filter(|_| is_inline);
        let may_have_extents = is_regular && !is_inline;
        let mut parts = Parts {
            size: mended.size.get(),
            ..Parts::default()
        };
        let is_odd = extents.is_contradictory
            || (extents.end > 0 && !may_have_extents)
            || extents.end > record.size.get();
        if is_odd {
            parts = self.disentangle(ino, record, may_have_extents)?;
            self.trouble(
                ino,
                "content",
                "parts of its content contradicted each other",
            );
        } else if may_have_extents && extents.bytes < record.allocated.get() {
            parts.kept = self.spans(ino)?;
        }
        if is_regular && parts.size > record.size.get() {
            mended.size = parts.size.into();
            self.trouble(ino, "size", "its size was smaller than its content");
        }
        match inline {
            Some(len) => {
                mended.size = len.into();
                mended.allocated = len.into();
            }
            None if is_inline => {
                mended.flags.set(record.flags.get() & !inode_flag::INLINE);
                if is_regular {
                    let added = self.lose_content(ino, &mended, (0, mended.size.get()));
                    mended.allocated = added.into();
                    self.trouble(ino, "content", "its content is lost");
                } else {
                    mended.size = 0.into();
                    mended.allocated = 0.into();
                    self.trouble(ino, "content", "where it leads is lost");
                }
            }
            None if is_regular => {
                let mut held = match is_odd {
                    true => parts.kept.iter().map(|(from, to)| to - from).sum(),
                    false => extents.bytes,
                };
                let mut lost = parts.removed_and_uncovered();
                if held < record.allocated.get() {
                    lost.extend(self.lost_gaps(ino, &parts));
                }
                let mut end = 0;
                lost.sort_unstable();
                for (from, to) in lost {
                    let from = from.max(end);
                    if from < to {
                        held += self.lose_content(ino, &mended, (from, to));
                        end = to;
                        self.trouble(ino, "content", "parts of its content are lost");
                    }
                }
                mended.allocated = held.into();
            }
            None => {}
        }
        if mended != *record {
            self.put_record(ino, &mended);
        }
        Ok(())
    }

    /// Of extents that show the same part of a file keeps the newer one, and none that the record's size has cut off since;
    /// without `keep_any` none at all.
    fn disentangle(
        &mut self,
        ino: Ino,
        record: &InodeRecord,
        keep_any: bool,
    ) -> Result<Parts, ReadError> {
        let (lo, hi) = (extent_key(ino, 0), key(ino, tag::EXTENT + 1, &[]));
        let size = record.size.get();
        let mut kept: Vec<(u64, ExtentRecord)> = Vec::new();
        let mut parts = Parts {
            size,
            ..Parts::default()
        };
        for row in self.store.range(&lo, &hi) {
            let (row_key, value) = row.map_err(ReadError::from)?;
            let Some((offset, extent)) = decode(&row_key, &value).filter(|_| keep_any) else {
                if keep_any {
                    self.trouble(
                        ino,
                        "content",
                        "an extent of it made no sense and is left out",
                    );
                }
                self.delete(row_key);
                continue;
            };
            let end = offset + u64::from(extent.len.get());
            let is_cut_off = end > size && extent.timestamp.get() < record.timestamp.get();
            let mut is_kept = !is_cut_off;
            while is_kept
                && let Some((last_offset, last)) = kept.last()
                && last_offset + u64::from(last.len.get()) > offset
            {
                if last.timestamp.get() >= extent.timestamp.get() {
                    is_kept = false;
                } else {
                    let last_end = last_offset + u64::from(last.len.get());
                    parts.removed.push((*last_offset, last_end));
                    self.delete(extent_key(ino, *last_offset));
                    kept.pop();
                }
            }
            if is_kept {
                parts.size = parts.size.max(end);
                kept.push((offset, extent));
            } else {
                parts.removed.push((offset, end));
                self.delete(row_key);
            }
        }
        let span =
            |(offset, extent): (u64, ExtentRecord)| (offset, offset + u64::from(extent.len.get()));
        parts.kept = kept.into_iter().map(span).collect();
        Ok(parts)
    }

    /// What the extents of a file cover, in order.
    fn spans(&self, ino: Ino) -> Result<Vec<(u64, u64)>, ReadError> {
        let (lo, hi) = (extent_key(ino, 0), key(ino, tag::EXTENT + 1, &[]));
        let mut spans = Vec::new();
        for row in self.store.range(&lo, &hi) {
            let (row_key, value) = row.map_err(ReadError::from)?;
            if let Some((offset, extent)) = decode(&row_key, &value) {
                spans.push((offset, offset + u64::from(extent.len.get())));
            }
        }
        Ok(spans)
    }

    /// The parts of a file without extents of which the rows may have been in lost blocks; all of them where blocks are
    /// lost and none of those fits.
    fn lost_gaps(&self, ino: Ino, parts: &Parts) -> Vec<(u64, u64)> {
        let gaps = parts.gaps();
        let lost = |(from, to): &(u64, u64)| self.is_lost_between(ino, *from, *to);
        let likely: Vec<(u64, u64)> = gaps.iter().copied().filter(lost).collect();
        match likely.is_empty() && !self.lost.is_empty() {
            true => gaps,
            false => likely,
        }
    }

    /// Whether a lost block may have held an extent at any offset in `[from, to)`.
    pub(super) fn is_lost_between(&self, ino: Ino, from: u64, to: u64) -> bool {
        self.is_lost_in(&extent_key(ino, from), &extent_key(ino, to - 1))
    }

    /// Whether a lost block may have held a key from `first` to `last`.
    pub(super) fn is_lost_in(&self, first: &[u8], last: &[u8]) -> bool {
        self.lost.iter().any(|range| {
            range.after.as_deref().is_none_or(|after| after < last)
                && range.before.as_deref().is_none_or(|before| before > first)
        })
    }

    /// Whether there are earlier states of a file's extents.
    fn has_past_content(&self, ino: Ino) -> bool {
        let lo = history_prefix(ino, tag::EXTENT, &[]);
        let hi = history_prefix(ino, tag::EXTENT + 1, &[]);
        self.store.range(&lo, &hi).next().is_some()
    }

    /// Puts extents of lost chunks over a part of a file; their bytes.
    fn lose_content(&mut self, ino: Ino, record: &InodeRecord, (from, to): (u64, u64)) -> u64 {
        let Some(file_key) = file_key_of(self.store, record) else {
            return 0;
        };
        let told = from.saturating_add(LOST_EXTENTS_MAX * LOST_EXTENT_BYTES);
        if told < to {
            self.trouble(
                ino,
                "content",
                format!("what is lost of it from byte {told} on reads as zeros"),
            );
        }
        let to = to.min(told);
        // Snapshots that are older than the last change show the file too. Where they have states of their own it may be
        // one of those that is lost, and a hole is what is left of it.
        let timestamp = match self.has_past_content(ino) {
            false => 0,
            true => {
                let sentence = "as snapshots show it, what is lost of it may read as zeros";
                self.trouble(ino, "content", sentence);
                record.timestamp.get()
            }
        };
        for (offset, extent) in self.lost_extents(ino, record, &file_key, (from, to), timestamp) {
            self.put(extent_key(ino, offset), extent.as_bytes().to_vec());
        }
        to - from
    }

    /// Extents of lost chunks for a part of a file, by their offsets; no more than [`LOST_EXTENTS_MAX`].
    pub(super) fn lost_extents(
        &self,
        ino: Ino,
        record: &InodeRecord,
        file_key: &FileKey,
        (from, to): (u64, u64),
        timestamp: u64,
    ) -> Vec<(u64, ExtentRecord)> {
        let volume = self.store.volume(VolumeId(record.volume.get()));
        let domain = volume.map_or(DomainId::DEFAULT, |volume| DomainId(volume.domain.get()));
        let mut extents = Vec::new();
        let mut offset = from;
        while offset < to && (extents.len() as u64) < LOST_EXTENTS_MAX {
            let len = (to - offset).min(LOST_EXTENT_BYTES) as u32;
            // A name that no content has, and that only the file's key tells: a lost row may have had the same mask.
            let mut place = [0; 32];
            place[..8].copy_from_slice(&ino.0.to_le_bytes());
            place[8..16].copy_from_slice(&timestamp.to_le_bytes());
            place[16..20].copy_from_slice(&len.to_le_bytes());
            let fingerprint = Fingerprint(file_key.mask(offset, NO_TIMESTAMP, Fingerprint(place)));
            let extent = ExtentRecord {
                len: len.into(),
                chunk_offset: 0.into(),
                chunk_len: len.into(),
                domain: domain.0.into(),
                reserved: 0.into(),
                timestamp: timestamp.into(),
                masked_fingerprint: file_key.mask(offset, timestamp, fingerprint),
            };
            extents.push((offset, extent));
            offset += u64::from(len);
        }
        extents
    }
}
