//! Pass over all rows: each inode's own, and the two rows of each directory entry.

use std::collections::BTreeMap;

use cfs_format::table::{
    CookieRecord, DirentRecord, InodeRecord, LOCK_NAME, inode_flag, key, split_key, tag,
};
use cfs_format::{Ino, VolumeId};
use cfs_store::ReadError;
use zerocopy::IntoBytes;

use super::content::Extents;
use super::{Mending, all_rows};
use crate::directory::{self, FIRST_COOKIE};
use crate::inode;

/// Rows of the inode that the pass is at.
#[derive(Default)]
struct Rows {
    ino: Ino,
    record: Option<InodeRecord>,
    inline: Option<u64>,
    has_xattrs: bool,
    /// Whether its lock is one, if it has the row.
    lock: Option<bool>,
    extents: Extents,
    entries: u64,
    cookies: u64,
    last_cookie: u64,
    /// A cookie row and its entry do not say the same.
    is_torn: bool,
    rows: u64,
}

impl Mending<'_> {
    /// Looks at every row.
    pub(super) fn rows(&mut self) -> Result<(), ReadError> {
        let mut at = Rows::default();
        for row in all_rows(self.store) {
            let (row_key, value) = row?;
            let Ok((ino, row_tag, suffix)) = split_key(&row_key) else {
                self.delete(row_key);
                continue;
            };
            if ino == Ino(0) {
                if row_tag == tag::ORPHAN
                    && let Ok(orphan) = suffix.try_into()
                {
                    let orphan = Ino(u64::from_be_bytes(orphan));
                    self.note_number(orphan);
                    if self.is_due(orphan) {
                        self.seen.entry(orphan).or_default().is_orphan = true;
                    }
                }
                continue;
            }
            // Numbers that stand for what snapshots show are in no table.
            if ino.view().is_some() {
                self.delete(row_key);
                continue;
            }
            self.note_number(ino);
            if row_tag == tag::DIRENT
                && let Ok(entry) = directory::decode(ino, &value)
            {
                self.note_number(Ino(entry.ino.get()));
            }
            if !self.is_due(ino) {
                continue;
            }
            if ino != at.ino {
                let done = std::mem::take(&mut at);
                self.inode(done)?;
                at.ino = ino;
            }
            at.rows += 1;
            match row_tag {
                tag::INODE => at.record = inode::decode(ino, &value).ok(),
                tag::INLINE => {
                    at.inline = crate::row::content(value).ok().map(|it| it.len() as u64)
                }
                tag::XATTR => {
                    at.has_xattrs = true;
                    if suffix == LOCK_NAME {
                        at.lock = Some(crate::lock::is_sound(value));
                    }
                }
                tag::EXTENT => {
                    let offset = suffix.try_into().map(u64::from_be_bytes).ok();
                    at.extents.add(offset, &value);
                }
                tag::DIRENT => {
                    at.entries += 1;
                    at.is_torn |= directory::decode(ino, &value).is_err();
                }
                tag::COOKIE => {
                    at.cookies += 1;
                    at.is_torn |= !self.agrees(ino, suffix, &value)?;
                    at.last_cookie = directory::cookie_of_key(&row_key).unwrap_or(u64::MAX);
                }
                _ => {}
            }
        }
        self.inode(at)
    }

    fn note_number(&mut self, ino: Ino) {
        self.rebuilder.highest = self.rebuilder.highest.max(ino.base().0);
    }

    /// Whether a cookie row and the entry that it names say the same.
    fn agrees(&self, parent: Ino, suffix: &[u8], value: &[u8]) -> Result<bool, ReadError> {
        let cookie = suffix.try_into().map(u64::from_be_bytes);
        let (Ok((record, name)), Ok(cookie)) = (directory::decode_cookie(parent, value), cookie)
        else {
            return Ok(false);
        };
        let entry = self.store.get(&key(parent, tag::DIRENT, name))?;
        let entry = entry.and_then(|bytes| directory::decode(parent, &bytes).ok());
        Ok(entry.is_some_and(|entry| {
            (entry.ino, entry.kind, entry.cookie.get()) == (record.ino, record.kind, cookie)
        }))
    }

    fn inode(&mut self, mut at: Rows) -> Result<(), ReadError> {
        if at.rows == 0 {
            return Ok(());
        }
        let ino = at.ino;
        let names = at.entries + at.cookies;
        if self.is_of_clone(ino, at.record.as_ref(), (at.rows, names))? {
            return Ok(());
        }
        let mut record = match at.record {
            Some(record) => record,
            None if names > 0 => match self.record_from_origin(ino, at.has_xattrs)? {
                Some(record) => {
                    let sentence = "owner, mode and times are those that its origin has";
                    self.trouble(ino, "attributes", sentence);
                    if !at.has_xattrs {
                        at.has_xattrs = record.flags.get() & inode_flag::XATTRS != 0;
                        at.lock = (record.flags.get() & inode_flag::LOCKED != 0).then_some(true);
                    }
                    record
                }
                None => {
                    self.trouble(ino, "attributes", "owner, mode and times are lost");
                    self.new_directory(ino)
                }
            },
            None => {
                // Without the salt in its record nobody can tell which chunks its extents name.
                self.trouble(ino, "inode", "its record is lost, and with it its content");
                return self.delete_rows(ino);
            }
        };
        let seen = self.seen.entry(ino).or_default();
        seen.kind = Some(inode::kind(&record));
        seen.nlink = record.nlink.get();
        seen.parent = Ino(record.parent.get());
        seen.volume = VolumeId(record.volume.get());
        seen.is_junction = inode::is_junction(&record);
        seen.is_new = at.record.is_none();
        let flags = record.flags.get();
        let of_rows = |has: bool, flag: u32| if has { flag } else { 0 };
        let wanted = (flags & !inode_flag::LOCKED)
            | of_rows(at.has_xattrs, inode_flag::XATTRS)
            | of_rows(at.lock == Some(true), inode_flag::LOCKED);
        if flags & !wanted & inode_flag::LOCKED != 0 {
            self.trouble(ino, "lock", "it was locked, and until when is lost");
        }
        if wanted != flags {
            record.flags.set(wanted);
            self.put_record(ino, &record);
        }
        if at.lock == Some(false) {
            self.delete(key(ino, tag::XATTR, LOCK_NAME));
        }
        if !inode::is_directory(&record) {
            return self.content(ino, &record, (at.inline, at.extents));
        }
        let next_cookie = record.next_cookie.get();
        if at.is_torn
            || at.entries != at.cookies
            || at.entries != record.size.get()
            || (at.cookies > 0 && at.last_cookie >= next_cookie)
        {
            self.join_entries(ino, record)?;
        } else {
            self.count_entries(ino)?;
        }
        Ok(())
    }

    /// Deletes all rows of an inode.
    pub(super) fn delete_rows(&mut self, ino: Ino) -> Result<(), ReadError> {
        let (lo, hi) = (key(ino, 0, &[]), key(ino, u8::MAX, &[]));
        for row in self.store.range(&lo, &hi) {
            let (row_key, _) = row.map_err(ReadError::from)?;
            self.delete(row_key);
        }
        Ok(())
    }

    /// The record of a directory whose own is lost.
    pub(super) fn new_directory(&mut self, ino: Ino) -> InodeRecord {
        let record = self.directory_record(ino);
        self.put_record(ino, &record);
        record
    }

    /// The same, not put anywhere.
    pub(super) fn directory_record(&self, ino: Ino) -> InodeRecord {
        let now = crate::types::Time::from_ns(self.rebuilder.host.now_ns()).into();
        let mut salt = [0; 16];
        self.rebuilder.host.fill_random(&mut salt);
        InodeRecord {
            mode: (libc::S_IFDIR | 0o700).into(),
            nlink: 2.into(),
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            next_cookie: FIRST_COOKIE.into(),
            volume: ino
                .cloned()
                .map_or(VolumeId::ROOT, |(clone, _)| clone)
                .0
                .into(),
            salt,
            ..InodeRecord::default()
        }
    }

    /// Counts where the entries of a directory lead.
    fn count_entries(&mut self, parent: Ino) -> Result<(), ReadError> {
        let (lo, hi) = (key(parent, tag::DIRENT, &[]), key(parent, tag::COOKIE, &[]));
        for row in self.store.range(&lo, &hi) {
            let (_, value) = row.map_err(ReadError::from)?;
            if let Ok(entry) = directory::decode(parent, &value) {
                self.count_entry(parent, Ino(entry.ino.get()), entry.kind);
            }
        }
        Ok(())
    }

    pub(super) fn count_entry(&mut self, parent: Ino, target: Ino, kind: u8) {
        let seen = self.seen.entry(target).or_default();
        seen.names += 1;
        seen.own_names += 1;
        seen.name_parent = parent;
        if u32::from(kind) << 12 == libc::S_IFDIR {
            self.seen.entry(parent).or_default().subdirectories += 1;
        }
    }

    /// Writes the entries of a directory anew from what either of their rows says.
    fn join_entries(&mut self, ino: Ino, mut record: InodeRecord) -> Result<(), ReadError> {
        let mut entries: BTreeMap<Vec<u8>, DirentRecord> = BTreeMap::new();
        let mut next_cookie = record.next_cookie.get().max(FIRST_COOKIE);
        let (lo, hi) = (key(ino, tag::DIRENT, &[]), key(ino, tag::COOKIE + 1, &[]));
        let mut cookie_rows = Vec::new();
        for row in self.store.range(&lo, &hi) {
            let (row_key, value) = row.map_err(ReadError::from)?;
            match split_key(&row_key) {
                Ok((_, tag::DIRENT, name)) => match directory::decode(ino, &value) {
                    Ok(entry) => {
                        next_cookie = next_cookie.max(entry.cookie.get().saturating_add(1));
                        entries.insert(name.to_vec(), entry);
                    }
                    Err(_) => self.delete(row_key.clone()),
                },
                Ok((_, tag::COOKIE, suffix)) => {
                    let cookie = suffix.try_into().map(u64::from_be_bytes);
                    if let (Ok((row, name)), Ok(cookie)) =
                        (directory::decode_cookie(ino, &value), cookie)
                    {
                        next_cookie = next_cookie.max(cookie.saturating_add(1));
                        cookie_rows.push((name.to_vec(), row, cookie));
                    }
                    self.delete(row_key.clone());
                }
                _ => {}
            }
        }
        for (name, row, cookie) in cookie_rows {
            let is_name = directory::check_name(&name).is_ok();
            // An entry that was removed has lost both rows, unless one of the removals is lost.
            let key_of_entry = key(ino, tag::DIRENT, &name);
            if is_name && !entries.contains_key(&name) && self.may_be_lost(&key_of_entry) {
                let entry = DirentRecord {
                    ino: row.ino,
                    cookie: cookie.into(),
                    timestamp: record.timestamp,
                    kind: row.kind,
                };
                entries.insert(name, entry);
            }
        }
        record.size = (entries.len() as u64).into();
        let mut used = std::collections::BTreeSet::new();
        for (name, mut entry) in entries {
            if !used.insert(entry.cookie.get()) || entry.cookie.get() < FIRST_COOKIE {
                entry.cookie = next_cookie.into();
                used.insert(next_cookie);
                next_cookie = next_cookie.saturating_add(1);
            }
            self.put_entry(ino, &name, &entry);
            self.count_entry(ino, Ino(entry.ino.get()), entry.kind);
        }
        record.next_cookie = next_cookie.into();
        self.put_record(ino, &record);
        self.trouble(ino, "entries", "names in it may be missing, or be old ones");
        Ok(())
    }

    /// Writes both rows of an entry.
    pub(super) fn put_entry(&mut self, parent: Ino, name: &[u8], entry: &DirentRecord) {
        self.put(key(parent, tag::DIRENT, name), entry.as_bytes().to_vec());
        let row = CookieRecord {
            ino: entry.ino,
            timestamp: entry.timestamp,
            kind: entry.kind,
        };
        let cookie = entry.cookie.get().to_be_bytes();
        let value = [row.as_bytes(), name].concat();
        self.put(key(parent, tag::COOKIE, &cookie), value);
    }
}
