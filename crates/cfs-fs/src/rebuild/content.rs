//! The rows of one inode: whether they fit its record.

use cfs_format::table::{ExtentRecord, InodeRecord, inode_flag, key, tag};
use cfs_format::{Fingerprint, Ino};
use cfs_store::ReadError;
use zerocopy::{FromBytes, IntoBytes};

use super::{Mending, file_key_of};
use crate::extent::{FILE_BYTES_MAX, extent_key};
use crate::inode;

/// Longest extent that stands for lost content, bytes.
const LOST_EXTENT_BYTES: u64 = 1 << 30;

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
        self.bytes += len;
        self.end = self.end.max(offset.saturating_add(len));
    }
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
        (inline, mut extents): (Option<u64>, Extents),
    ) -> Result<(), ReadError> {
        let mut mended = *record;
        let is_regular = inode::kind(record) == libc::S_IFREG;
        let may_have_extents = is_regular && inline.is_none();
        if extents.is_contradictory || (extents.end > 0 && !may_have_extents) {
            extents = self.disentangle(ino, may_have_extents)?;
            self.trouble(
                ino,
                "content",
                "parts of its content contradicted each other",
            );
        }
        if is_regular && extents.end > record.size.get() {
            mended.size = extents.end.into();
            self.trouble(ino, "size", "its size was smaller than its content");
        }
        let is_inline = record.flags.get() & inode_flag::INLINE != 0;
        match inline {
            Some(len) => {
                mended.flags.set(record.flags.get() | inode_flag::INLINE);
                mended.size = len.into();
                mended.allocated = len.into();
            }
            None if is_inline => {
                mended.flags.set(record.flags.get() & !inode_flag::INLINE);
                if is_regular {
                    let added = self.lose_content(ino, &mended, (0, mended.size.get()));
                    mended.allocated = (extents.bytes + added).into();
                    self.trouble(ino, "content", "its content is lost");
                } else {
                    mended.size = 0.into();
                    mended.allocated = 0.into();
                    self.trouble(ino, "content", "where it leads is lost");
                }
            }
            None if is_regular => {
                let mut added = 0;
                if extents.bytes < record.allocated.get() {
                    for gap in self.lost_gaps(ino, mended.size.get())? {
                        added += self.lose_content(ino, &mended, gap);
                    }
                    if added > 0 {
                        self.trouble(ino, "content", "parts of its content are lost");
                    }
                }
                mended.allocated = (extents.bytes + added).into();
            }
            None => {}
        }
        if mended != *record {
            self.put_record(ino, &mended);
        }
        Ok(())
    }

    /// Of extents that show the same part of a file keeps the newer one; without `keep_any` none at all.
    fn disentangle(&mut self, ino: Ino, keep_any: bool) -> Result<Extents, ReadError> {
        let (lo, hi) = (extent_key(ino, 0), key(ino, tag::EXTENT + 1, &[]));
        let mut kept: Vec<(u64, ExtentRecord)> = Vec::new();
        for row in self.store.range(&lo, &hi) {
            let (row_key, value) = row.map_err(ReadError::from)?;
            let offset = row_key[9..].try_into().map(u64::from_be_bytes).ok();
            let record = ExtentRecord::read_from_bytes(&value).ok();
            let Some((offset, record)) = offset
                .zip(record)
                .filter(|(offset, record)| keep_any && is_sound(*offset, record))
            else {
                self.delete(row_key);
                continue;
            };
            let mut is_kept = true;
            while let Some((last_offset, last)) = kept.last()
                && last_offset + u64::from(last.len.get()) > offset
            {
                if last.timestamp.get() >= record.timestamp.get() {
                    is_kept = false;
                    break;
                }
                self.delete(extent_key(ino, *last_offset));
                kept.pop();
            }
            if is_kept {
                kept.push((offset, record));
            } else {
                self.delete(row_key);
            }
        }
        let mut extents = Extents::default();
        for (offset, record) in &kept {
            extents.add(Some(*offset), record.as_bytes());
        }
        Ok(extents)
    }

    /// The parts of a file without extents of which the rows may have been in lost blocks.
    fn lost_gaps(&self, ino: Ino, size: u64) -> Result<Vec<(u64, u64)>, ReadError> {
        let (lo, hi) = (extent_key(ino, 0), key(ino, tag::EXTENT + 1, &[]));
        let mut covered = 0;
        let mut gaps = Vec::new();
        let mut rows = self.store.range(&lo, &hi);
        while covered < size {
            let row = rows.next().transpose().map_err(ReadError::from)?;
            let next = row.and_then(|(row_key, value)| {
                let offset = u64::from_be_bytes(row_key[9..].try_into().ok()?);
                let record = ExtentRecord::read_from_bytes(&value).ok()?;
                Some((offset, offset + u64::from(record.len.get())))
            });
            let (start, end) = next.unwrap_or((size, size));
            // Rows between the last one's key and the next one's.
            if covered < start && self.is_lost_between(ino, covered, start) {
                gaps.push((covered, start.min(size)));
            }
            covered = covered.max(end);
        }
        Ok(gaps)
    }

    /// Whether a lost block may have held an extent at any offset in `[from, to)`.
    fn is_lost_between(&self, ino: Ino, from: u64, to: u64) -> bool {
        let (first, last) = (extent_key(ino, from), extent_key(ino, to - 1));
        self.lost.iter().any(|range| {
            range.after.as_deref().is_none_or(|after| after < &last[..])
                && range
                    .before
                    .as_deref()
                    .is_none_or(|before| before > &first[..])
        })
    }

    /// Puts extents of lost chunks over a part of a file; their bytes.
    fn lose_content(&mut self, ino: Ino, record: &InodeRecord, (from, to): (u64, u64)) -> u64 {
        let Some(file_key) = file_key_of(self.store, record) else {
            return 0;
        };
        let domain = self
            .store
            .volume(cfs_format::VolumeId(record.volume.get()))
            .map_or(cfs_format::DomainId::DEFAULT, |volume| {
                cfs_format::DomainId(volume.domain.get())
            });
        let timestamp = record.timestamp.get();
        let mut offset = from;
        while offset < to {
            let len = (to - offset).min(LOST_EXTENT_BYTES) as u32;
            // A name that no content has: of a file and a place in it.
            let mut fingerprint = [0; 32];
            fingerprint[..8].copy_from_slice(&ino.0.to_le_bytes());
            fingerprint[8..16].copy_from_slice(&offset.to_le_bytes());
            let value = ExtentRecord {
                len: len.into(),
                chunk_offset: 0.into(),
                chunk_len: len.into(),
                domain: domain.0.into(),
                reserved: 0.into(),
                timestamp: timestamp.into(),
                masked_fingerprint: file_key.mask(offset, timestamp, Fingerprint(fingerprint)),
            };
            self.put(extent_key(ino, offset), value.as_bytes().to_vec());
            offset += u64::from(len);
        }
        to - from
    }
}
