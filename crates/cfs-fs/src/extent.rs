//! Extents: rows, scans, and the one way to change them inside a transaction.
//!
//! Invariants, kept by [`ExtentEdit`]:
//! - A file's extents are disjoint, not empty, and end at or before its size.
//! - Each extent row holds one reference to its chunk: an extent that is split counts twice afterwards.
//! - `InodeRecord::allocated` is the sum of the lengths of its extents, or the length of its inline content.
//! - A row's fingerprint is masked for the row's own offset and timestamp, so that a row that moves is masked anew.

use std::collections::BTreeMap;

use cfs_format::table::{ExtentRecord, InodeRecord, inode_flag, key, tag};
use cfs_format::{DomainId, Fingerprint, Ino, VolumeId};
use cfs_seal::keys::FileKey;
use cfs_store::{NewChunk, Store, Txn, VolumeDelta};
use zerocopy::{FromBytes, IntoBytes};

use crate::command::NewExtent;
use crate::error::{FsError, Result};

/// An extent as it is worked with: in clear.
pub(crate) type Extent = NewExtent;

/// Bytes of a file's content that may stand in its `INLINE` record.
pub(crate) const INLINE_BYTES_MAX: u64 = 4096;

/// Pieces shorter than this that are written by themselves mark a file for re-chunking, bytes.
pub(crate) const FRAGMENT_BYTES: u64 = 16 << 10;

/// Extents that one command shifts at most.
pub(crate) const SHIFT_EXTENTS_MAX: usize = 1 << 18;

/// Largest size of a file, bytes: what the kernel's signed offsets can address.
pub(crate) const FILE_BYTES_MAX: u64 = i64::MAX as u64;

impl Extent {
    /// First byte of the file behind it.
    pub(crate) fn end(&self) -> u64 {
        self.offset + u64::from(self.len)
    }

    /// The part of it within `[from, to)`, if there is any.
    pub(crate) fn part(&self, from: u64, to: u64) -> Option<Self> {
        let start = from.max(self.offset);
        let end = to.min(self.end());
        (start < end).then(|| Self {
            offset: start,
            len: (end - start) as u32,
            chunk_offset: self.chunk_offset + (start - self.offset) as u32,
            ..*self
        })
    }

    /// The same content at another offset.
    pub(crate) fn at(&self, offset: u64) -> Self {
        Self { offset, ..*self }
    }

    /// Whether its numbers fit together; what comes from a log or a table is asked this first.
    pub(crate) fn is_sound(&self) -> bool {
        self.len > 0
            && u64::from(self.chunk_offset) + u64::from(self.len) <= u64::from(self.chunk_len)
            && self.offset <= FILE_BYTES_MAX - u64::from(self.len)
    }
}

/// Where committed rows are read from.
pub(crate) trait Rows {
    /// Rows with keys in `[lo, hi)`.
    fn rows(&self, lo: Vec<u8>, hi: Vec<u8>) -> impl Iterator<Item = Result<Row>>;
    /// The same, the last first.
    fn rows_back(&self, lo: Vec<u8>, hi: Vec<u8>) -> impl Iterator<Item = Result<Row>>;
}

/// A key and its value.
pub(crate) type Row = (Vec<u8>, Vec<u8>);

impl Rows for Store {
    fn rows(&self, lo: Vec<u8>, hi: Vec<u8>) -> impl Iterator<Item = Result<Row>> {
        self.range(&lo, &hi).map(|row| row.map_err(table_error))
    }

    fn rows_back(&self, lo: Vec<u8>, hi: Vec<u8>) -> impl Iterator<Item = Result<Row>> {
        self.range(&lo, &hi)
            .rev()
            .map(|row| row.map_err(table_error))
    }
}

impl Rows for Txn<'_> {
    fn rows(&self, lo: Vec<u8>, hi: Vec<u8>) -> impl Iterator<Item = Result<Row>> {
        self.range(&lo, &hi).map(|row| row.map_err(table_error))
    }

    fn rows_back(&self, lo: Vec<u8>, hi: Vec<u8>) -> impl Iterator<Item = Result<Row>> {
        self.range(&lo, &hi)
            .rev()
            .map(|row| row.map_err(table_error))
    }
}

pub(crate) fn table_error(error: impl Into<cfs_store::ReadError>) -> FsError {
    error.into().into()
}

/// Key of the extent at `offset`.
pub(crate) fn extent_key(ino: Ino, offset: u64) -> Vec<u8> {
    key(ino, tag::EXTENT, &offset.to_be_bytes())
}

/// The extent in a row of the table.
///
/// # Errors
/// [`FsError::Io`] when it is none.
pub(crate) fn decode_row(ino: Ino, file_key: &FileKey, row: &Row) -> Result<Extent> {
    let damaged = |rule: &str| FsError::damaged(format_args!("extent of inode {ino}: {rule}"));
    let (_, _, suffix) = cfs_format::table::split_key(&row.0)?;
    let offset = suffix
        .try_into()
        .map(u64::from_be_bytes)
        .map_err(|_| damaged("key length"))?;
    let record = ExtentRecord::read_from_bytes(&row.1).map_err(|_| damaged("value length"))?;
    let extent = Extent {
        offset,
        len: record.len.get(),
        chunk_offset: record.chunk_offset.get(),
        chunk_len: record.chunk_len.get(),
        domain: DomainId(record.domain.get()),
        fingerprint: file_key.unmask(offset, record.timestamp.get(), record.masked_fingerprint),
    };
    if extent.is_sound() {
        Ok(extent)
    } else {
        Err(damaged("lengths"))
    }
}

/// The value of an extent's row, of a command with this timestamp.
pub(crate) fn encode_value(file_key: &FileKey, timestamp: u64, extent: &Extent) -> Vec<u8> {
    ExtentRecord {
        len: extent.len.into(),
        chunk_offset: extent.chunk_offset.into(),
        chunk_len: extent.chunk_len.into(),
        domain: extent.domain.0.into(),
        reserved: 0.into(),
        timestamp: timestamp.into(),
        masked_fingerprint: file_key.mask(extent.offset, timestamp, extent.fingerprint),
    }
    .as_bytes()
    .to_vec()
}

/// Committed extents that show a part of `[from, to)`, whole, in order.
pub(crate) fn scan<'a>(
    rows: &'a impl Rows,
    ino: Ino,
    file_key: &'a FileKey,
    from: u64,
    to: u64,
) -> impl Iterator<Item = Result<Extent>> + 'a {
    let before = (from > 0 && from < to)
        .then(|| {
            let row = rows
                .rows_back(extent_key(ino, 0), extent_key(ino, from))
                .next()?;
            match row.and_then(|row| decode_row(ino, file_key, &row)) {
                Ok(extent) if extent.end() <= from => None,
                other => Some(other),
            }
        })
        .flatten();
    let rest = (from < to)
        .then(|| rows.rows(extent_key(ino, from), extent_key(ino, to)))
        .into_iter()
        .flatten()
        .map(move |row| decode_row(ino, file_key, &row?));
    before.into_iter().chain(rest)
}

/// The key of the extents of the file with this record.
///
/// # Errors
/// [`FsError::Io`] when the volume or its dedup domain is not there.
pub(crate) fn file_key(txn: &Txn<'_>, record: &InodeRecord) -> Result<FileKey> {
    let volume = VolumeId(record.volume.get());
    let domain = txn
        .volume(volume)
        .map(|volume| DomainId(volume.domain.get()))
        .ok_or_else(|| FsError::damaged(format_args!("volume {volume} is missing")))?;
    let secret = txn
        .domain_secret(domain)
        .ok_or_else(|| FsError::damaged(format_args!("dedup domain {domain} is missing")))?;
    Ok(FileKey::derive(&secret, &record.salt))
}

/// Changes to one file's extents, gathered and then written by [`ExtentEdit::finish`]. Dropping it writes nothing.
pub(crate) struct ExtentEdit<'k> {
    ino: Ino,
    file_key: &'k FileKey,
    /// No committed extent is at or beyond this offset; saves the look-up when a file grows.
    committed_end: u64,
    /// Rows that differ from the committed ones; `None` is a row to delete. Ranges of a transaction show committed
    /// rows only, so what an earlier step has changed must be looked up here.
    changed: BTreeMap<u64, Option<Extent>>,
    references: BTreeMap<Fingerprint, i64>,
    allocated_delta: i64,
}

impl<'k> ExtentEdit<'k> {
    /// No changes yet. `size` is the file's committed size.
    pub(crate) fn new(ino: Ino, file_key: &'k FileKey, size: u64) -> Self {
        Self {
            ino,
            file_key,
            committed_end: size,
            changed: BTreeMap::new(),
            references: BTreeMap::new(),
            allocated_delta: 0,
        }
    }

    fn count(&mut self, extent: &Extent, delta: i64) {
        *self.references.entry(extent.fingerprint).or_default() += delta;
        self.allocated_delta += delta * i64::from(extent.len);
    }

    fn set(&mut self, extent: Extent) {
        self.count(&extent, 1);
        let before = self.changed.insert(extent.offset, Some(extent));
        assert!(before.flatten().is_none(), "extents do not overlap");
    }

    fn unset(&mut self, extent: &Extent) {
        self.count(extent, -1);
        self.changed.insert(extent.offset, None);
    }

    /// Extents as they are after the changes so far that show a part of `[from, to)`, in order.
    fn overlapping(&self, txn: &Txn<'_>, from: u64, to: u64) -> Result<Vec<Extent>> {
        let mut found = Vec::new();
        if from < self.committed_end {
            let end = to.min(self.committed_end);
            for extent in scan(txn, self.ino, self.file_key, from, end) {
                let extent = extent?;
                if !self.changed.contains_key(&extent.offset) {
                    found.push(extent);
                }
            }
        }
        let before = self
            .changed
            .range(..from)
            .rev()
            .find_map(|(_, extent)| extent.as_ref())
            .filter(|extent| extent.end() > from);
        let committed = found.len();
        found.extend(before);
        found.extend(
            self.changed
                .range(from..to)
                .filter_map(|(_, extent)| *extent),
        );
        if committed > 0 && found.len() > committed {
            found.sort_unstable_by_key(|extent| extent.offset);
        }
        Ok(found)
    }

    /// Makes a hole of `[from, to)`, splitting what reaches over its edges.
    ///
    /// # Errors
    /// When a row cannot be read; the edit must then be dropped.
    pub(crate) fn remove(&mut self, txn: &Txn<'_>, from: u64, to: u64) -> Result<()> {
        for extent in self.overlapping(txn, from, to)? {
            self.unset(&extent);
            for part in [extent.part(0, from), extent.part(to, u64::MAX)] {
                part.into_iter().for_each(|part| self.set(part));
            }
        }
        Ok(())
    }

    /// Splits the extent that reaches over `at`, if one does.
    ///
    /// # Errors
    /// When a row cannot be read; the edit must then be dropped.
    pub(crate) fn split(&mut self, txn: &Txn<'_>, at: u64) -> Result<()> {
        for extent in self.overlapping(txn, at, at + 1)? {
            if extent.offset < at {
                self.unset(&extent);
                for part in [extent.part(0, at), extent.part(at, u64::MAX)] {
                    part.into_iter().for_each(|part| self.set(part));
                }
            }
        }
        Ok(())
    }

    /// Replaces what is in the ranges of `extents`, which are in order and disjoint, by them.
    ///
    /// # Errors
    /// When a row cannot be read; the edit must then be dropped.
    pub(crate) fn replace(&mut self, txn: &Txn<'_>, extents: &[Extent]) -> Result<()> {
        for adjacent in extents.chunk_by(|left, right| left.end() == right.offset) {
            let (first, last) = (&adjacent[0], &adjacent[adjacent.len() - 1]);
            self.remove(txn, first.offset, last.end())?;
            adjacent.iter().for_each(|extent| self.set(*extent));
        }
        Ok(())
    }

    /// Moves everything at or beyond `from` by `distance` bytes. Nothing may lie where it goes, and nothing may reach
    /// over `from`.
    ///
    /// # Errors
    /// When a row cannot be read; the edit must then be dropped.
    pub(crate) fn shift(&mut self, txn: &Txn<'_>, from: u64, distance: i64) -> Result<()> {
        let moved = self.overlapping(txn, from, u64::MAX)?;
        moved.iter().for_each(|extent| self.unset(extent));
        for extent in moved {
            assert!(extent.offset >= from, "the edge was cut first");
            self.set(extent.at(extent.offset.wrapping_add_signed(distance)));
        }
        Ok(())
    }

    /// Writes the rows and references. Returns the change of the file's allocated bytes. `chunks` describes chunks
    /// that may be new.
    ///
    /// # Errors
    /// When a chunk is referred to that is neither known nor described, or its record cannot be read; the transaction
    /// must then be dropped.
    pub(crate) fn finish(self, txn: &mut Txn<'_>, chunks: &[NewChunk]) -> Result<i64> {
        // References are added before others are taken, so that no chunk is without one in between.
        let new: BTreeMap<_, _> = chunks
            .iter()
            .map(|chunk| (chunk.fingerprint, chunk))
            .collect();
        for (fingerprint, delta) in &self.references {
            for _ in 0..*delta {
                txn.chunk_ref(fingerprint, new.get(fingerprint).copied())?;
            }
        }
        for (fingerprint, delta) in &self.references {
            for _ in *delta..0 {
                txn.chunk_unref(fingerprint)?;
            }
        }
        let timestamp = txn.timestamp().0;
        for (offset, extent) in self.changed {
            let key = extent_key(self.ino, offset);
            match extent {
                Some(extent) => txn.put(key, encode_value(self.file_key, timestamp, &extent)),
                None => txn.delete(key),
            }
        }
        Ok(self.allocated_delta)
    }
}

/// Adds `allocated_delta` to the record and, with the change of size from `size_before`, to its volume.
pub(crate) fn account(
    txn: &mut Txn<'_>,
    record: &mut InodeRecord,
    size_before: u64,
    allocated_delta: i64,
) -> Result<()> {
    let allocated = record
        .allocated
        .get()
        .checked_add_signed(allocated_delta)
        .ok_or_else(|| FsError::damaged("a file holds less than its record says"))?;
    record.allocated = allocated.into();
    let delta = VolumeDelta {
        logical_bytes: record.size.get().wrapping_sub(size_before) as i64,
        allocated_bytes: allocated_delta,
        inodes: 0,
    };
    txn.volume_add(VolumeId(record.volume.get()), delta)?;
    Ok(())
}

/// Frees content from the end of a regular file, at most `extents_max` extents, and cuts `record` there, which the
/// caller then writes or erases. Returns whether nothing is left.
///
/// # Errors
/// When something cannot be read; the transaction must then be dropped.
pub(crate) fn drop_some(
    txn: &mut Txn<'_>,
    ino: Ino,
    record: &mut InodeRecord,
    extents_max: u32,
) -> Result<bool> {
    let size_before = record.size.get();
    if record.flags.get() & inode_flag::INLINE != 0 {
        txn.delete(key(ino, tag::INLINE, &[]));
        record.flags = (record.flags.get() & !inode_flag::INLINE).into();
        record.size = 0.into();
        let allocated = record.allocated.get() as i64;
        account(txn, record, size_before, -allocated)?;
        return Ok(true);
    }
    let cut = last_extents_start(txn, ino, size_before, extents_max as usize)?;
    if cut < size_before {
        let file_key = file_key(txn, record)?;
        let mut edit = ExtentEdit::new(ino, &file_key, size_before);
        edit.remove(txn, cut, u64::MAX)?;
        let allocated_delta = edit.finish(txn, &[])?;
        record.size = cut.into();
        account(txn, record, size_before, allocated_delta)?;
    }
    Ok(cut == 0)
}

/// Where the last `count` committed extents of a file begin; 0 when it has no more than that.
///
/// # Errors
/// When a row cannot be read.
pub(crate) fn last_extents_start(
    rows: &impl Rows,
    ino: Ino,
    size: u64,
    count: usize,
) -> Result<u64> {
    let mut start = size;
    for (index, row) in rows
        .rows_back(extent_key(ino, 0), extent_key(ino, size))
        .enumerate()
    {
        if index == count {
            return Ok(start);
        }
        let (key, _) = row?;
        let (_, _, suffix) = cfs_format::table::split_key(&key)?;
        start = suffix
            .try_into()
            .map(u64::from_be_bytes)
            .map_err(|_| FsError::damaged(format_args!("extent of inode {ino}: key length")))?;
    }
    Ok(0)
}
