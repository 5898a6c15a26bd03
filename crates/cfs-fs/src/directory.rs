//! Directories: entries by name and by cookie, and listing them.
//!
//! An entry is two rows: by name (`DIRENT`, for lookups and S3 order) and by cookie (`COOKIE`, readdir's order). A
//! cookie is never used twice in a directory, and an entry keeps its cookie for as long as its name exists without a
//! break, also when another inode takes the name. So a listing that goes on while the directory changes shows each
//! entry that was there all the time exactly once. The directory's record holds the next cookie, and the number of
//! entries in `size`.

use cfs_format::table::{CookieRecord, DirentRecord, InodeRecord, key, split_key, tag};
use cfs_format::{Ino, ViewId};
use cfs_store::Txn;
use zerocopy::{FromBytes, IntoBytes};

use crate::error::{FsError, Result};
use crate::types::DirEntry;
use crate::views::{SNAPSHOTS_NAME, beside, listed_by};
use crate::{Fs, inode};

/// The first entry's cookie. Smaller ones are free for a front end's `.` and `..`.
pub const FIRST_COOKIE: u64 = 3;

/// Longest name, bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// Whether a new entry may have this name.
///
/// # Errors
/// [`FsError::NameTooLong`]; [`FsError::Invalid`] for what can be no name.
pub(crate) fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > NAME_BYTES_MAX {
        return Err(FsError::NameTooLong);
    }
    if name.is_empty() || name == b"." || name == b".." {
        return Err(FsError::Invalid);
    }
    if name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(FsError::Invalid);
    }
    Ok(())
}

/// Decodes the value of a `DIRENT` row.
pub(crate) fn decode(parent: Ino, bytes: &[u8]) -> Result<DirentRecord> {
    DirentRecord::read_from_bytes(bytes)
        .map_err(|_| FsError::damaged(format_args!("an entry of directory {parent}")))
}

/// Decodes a `COOKIE` row's value: the record and the name.
pub(crate) fn decode_cookie(parent: Ino, bytes: &[u8]) -> Result<(CookieRecord, &[u8])> {
    CookieRecord::read_from_prefix(bytes)
        .map_err(|_| FsError::damaged(format_args!("a cookie row of directory {parent}")))
}

/// The cookie in a `COOKIE` row's key.
pub(crate) fn cookie_of_key(bytes: &[u8]) -> Result<u64> {
    let (ino, _, suffix) = split_key(bytes)?;
    decode_suffix(ino, suffix)
}

fn decode_suffix(ino: Ino, suffix: &[u8]) -> Result<u64> {
    let suffix = suffix
        .try_into()
        .map_err(|_| FsError::damaged(format_args!("a cookie key of directory {ino}")))?;
    Ok(u64::from_be_bytes(suffix))
}

/// Refuses the name of the directory that lists snapshots, which no entry may have. No part of applying commands.
///
/// # Errors
/// [`FsError::Snapshot`].
pub(crate) fn check_reserved(name: &[u8]) -> Result<()> {
    match name == SNAPSHOTS_NAME {
        true => Err(FsError::Snapshot),
        false => Ok(()),
    }
}

/// The entry with this name.
pub(crate) fn find(txn: &Txn<'_>, parent: Ino, name: &[u8]) -> Result<Option<DirentRecord>> {
    match txn.get(&key(parent, tag::DIRENT, name))? {
        Some(bytes) => decode(parent, &bytes).map(Some),
        None => Ok(None),
    }
}

/// What an entry points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub ino: Ino,
    /// Type bits of the mode.
    pub kind: u32,
}

/// Adds an entry and counts it in `directory`, which the caller writes.
pub(crate) fn insert(
    txn: &mut Txn<'_>,
    parent: Ino,
    directory: &mut InodeRecord,
    name: &[u8],
    target: Target,
) {
    let cookie = directory.next_cookie.get().max(FIRST_COOKIE);
    #[cfg(feature = "planted-bugs")]
    let cookie = match cfs_format::planted::has(cfs_format::planted::Bug::CookieReused) {
        true => FIRST_COOKIE + directory.size.get(),
        false => cookie,
    };
    directory.next_cookie = (cookie + 1).into();
    directory.size += 1;
    put(txn, parent, name, cookie, target);
}

/// Points an existing entry elsewhere; it keeps its cookie.
pub(crate) fn retarget(
    txn: &mut Txn<'_>,
    parent: Ino,
    name: &[u8],
    entry: &DirentRecord,
    target: Target,
) {
    put(txn, parent, name, entry.cookie.get(), target);
}

/// Removes an entry and uncounts it in `directory`, which the caller writes.
pub(crate) fn remove(
    txn: &mut Txn<'_>,
    parent: Ino,
    directory: &mut InodeRecord,
    name: &[u8],
    entry: &DirentRecord,
) {
    directory.size = directory.size.get().saturating_sub(1).into();
    txn.delete(key(parent, tag::DIRENT, name));
    txn.delete(key(parent, tag::COOKIE, &entry.cookie.get().to_be_bytes()));
}

/// Writes both rows of an entry.
pub(crate) fn put(txn: &mut Txn<'_>, parent: Ino, name: &[u8], cookie: u64, target: Target) {
    let kind = (target.kind >> 12) as u8;
    let entry = DirentRecord {
        ino: target.ino.0.into(),
        cookie: cookie.into(),
        timestamp: txn.timestamp().0.into(),
        kind,
    };
    txn.put(key(parent, tag::DIRENT, name), entry.as_bytes().to_vec());
    let row = CookieRecord {
        ino: target.ino.0.into(),
        timestamp: txn.timestamp().0.into(),
        kind,
    };
    let mut value = Vec::with_capacity(size_of::<CookieRecord>() + name.len());
    value.extend_from_slice(row.as_bytes());
    value.extend_from_slice(name);
    txn.put(key(parent, tag::COOKIE, &cookie.to_be_bytes()), value);
}

impl Fs {
    /// Opens a directory for listing, and returns the bound for [`Fs::read_dir`]: entries made later lie beyond it,
    /// so that a listing ends however fast a directory grows. Counts as [`Fs::open`]; ends with [`Fs::release`].
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotDirectory`].
    pub fn open_dir(&self, ino: Ino) -> Result<u64> {
        let limit = self.dir_limit(ino)?;
        self.open(ino)?;
        Ok(limit)
    }

    /// The bound for a listing that starts now: for a directory that is open already and is rewound.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotDirectory`].
    pub fn dir_limit(&self, ino: Ino) -> Result<u64> {
        if listed_by(ino).is_some() {
            return Ok(u64::MAX);
        }
        let record = self.views.record(ino)?.ok_or(FsError::NotFound)?;
        if !inode::is_directory(&record) {
            return Err(FsError::NotDirectory);
        }
        // An empty directory may have the rows of a million removed entries to pass over.
        if record.size.get() == 0 {
            return Ok(FIRST_COOKIE);
        }
        Ok(record.next_cookie.get().max(FIRST_COOKIE))
    }

    /// Up to `entries_max` entries after `cookie` (0: from the start) and before `limit`, in order of cookies. An
    /// empty answer is the end. `.` and `..` are not among them.
    ///
    /// # Errors
    /// [`FsError::Read`]. A directory that has been removed is empty.
    pub fn read_dir(
        &self,
        ino: Ino,
        cookie: u64,
        limit: u64,
        entries_max: usize,
    ) -> Result<Vec<DirEntry>> {
        if let Some(directory) = listed_by(ino) {
            return self.list_snapshots(directory, cookie, entries_max);
        }
        let first = cookie.saturating_add(1).max(FIRST_COOKIE);
        let mut entries = Vec::new();
        if first < limit {
            let place = self.views.place(ino)?;
            let (lo, hi) = (first.to_be_bytes(), limit.to_be_bytes());
            let rows = self.views.rows(place, tag::COOKIE, &lo, Some(&hi));
            for row in rows.take(entries_max) {
                let (suffix, value) = row?;
                let (record, name) = decode_cookie(ino, &value)?;
                entries.push(DirEntry {
                    ino: self.views.through(beside(ino, Ino(record.ino.get()))?),
                    cookie: decode_suffix(ino, &suffix)?,
                    kind: u32::from(record.kind) << 12,
                    name: name.to_vec(),
                });
            }
        }
        // Elsewhere whoever removes a tree would meet what cannot be removed.
        let shows_list =
            self.options.list_snapshots && (ino == Ino::ROOT || self.views.junction(ino).is_some());
        if shows_list && cookie < limit && entries.len() < entries_max {
            entries.push(DirEntry {
                ino: ino.in_view(ViewId::LIST).ok_or(FsError::TooLarge)?,
                cookie: limit,
                kind: libc::S_IFDIR,
                name: SNAPSHOTS_NAME.to_vec(),
            });
        }
        if cookie == 0 {
            self.touch_atime(ino)?;
        }
        Ok(entries)
    }

    /// The parent of a directory; the root is its own.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotDirectory`].
    pub fn parent(&self, ino: Ino) -> Result<Ino> {
        if let Some(directory) = listed_by(ino) {
            return Ok(directory);
        }
        let record = self.views.record(ino)?.ok_or(FsError::NotFound)?;
        if !inode::is_directory(&record) {
            return Err(FsError::NotDirectory);
        }
        if let Some((view, base)) = ino.view() {
            let directory = self.views.snapshot(view)?.directory;
            if directory.base() == base {
                return directory.in_view(ViewId::LIST).ok_or(FsError::TooLarge);
            }
        }
        match self.views.junction(ino) {
            Some(junction) => {
                let record = self.views.record(junction)?.ok_or(FsError::NotFound)?;
                Ok(Ino(record.parent.get()))
            }
            None => beside(ino, Ino(record.parent.get())),
        }
    }

    /// Entries of the directory that lists the snapshots of another.
    fn list_snapshots(
        &self,
        directory: Ino,
        cookie: u64,
        entries_max: usize,
    ) -> Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for listed in self.views.listed(directory)? {
            let view = listed.snapshot.view;
            let own = FIRST_COOKIE + u64::from(view.0);
            if own > cookie && entries.len() < entries_max {
                entries.push(DirEntry {
                    ino: listed.ino.in_view(view).ok_or(FsError::TooLarge)?,
                    cookie: own,
                    kind: libc::S_IFDIR,
                    name: listed.name,
                });
            }
        }
        Ok(entries)
    }
}
