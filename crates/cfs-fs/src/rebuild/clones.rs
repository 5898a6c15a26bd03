//! Clones: what they have from their origins counts as theirs, as far as they have not changed it.

use std::collections::HashSet;

use cfs_format::table::{
    CookieRecord, DirentRecord, InodeRecord, LOCK_NAME, SnapshotRecord, inode_flag, key, tag,
};
use cfs_format::{Ino, ViewId, VolumeId};
use cfs_store::ReadError;
use zerocopy::IntoBytes;

use super::states::stamped;
use super::{Mending, file_key_of};
use crate::clone::{self, Found};
use crate::error::FsError;
use crate::history::{Past, snapshot_key};
use crate::views::Snapshot;
use crate::{directory, extent, inode};

/// Flags that say which rows an inode has beside its content.
const OF_RECORDS: u32 = inode_flag::XATTRS | inode_flag::LOCKED;

/// What is told of an inode whose rows in a clone are lost.
pub(super) const AS_ORIGIN: &str =
    "what was changed of it in a clone is lost: it is as its origin has it";

/// What the origin shows, if it can be read: what is damaged there is no part of the clone any more.
pub(super) fn readable<T>(found: Result<Option<T>, FsError>) -> Result<Option<T>, ReadError> {
    match found {
        Ok(found) => Ok(found),
        Err(FsError::Read(error)) => Err(error),
        Err(_) => Ok(None),
    }
}

impl Mending<'_> {
    fn inherited(&self, ino: Ino) -> Result<Option<Found>, ReadError> {
        readable(clone::inherited(self.store, ino))
    }

    /// Looks at an inode of a clone, of which so many rows are there, some of them names; whether nothing else is to be
    /// done with its rows.
    pub(super) fn is_of_clone(
        &mut self,
        ino: Ino,
        record: Option<&InodeRecord>,
        (rows, names): (u64, u64),
    ) -> Result<bool, ReadError> {
        let Some((volume, _)) = ino.cloned() else {
            return Ok(false);
        };
        let clone = self.store.volume(volume);
        let is_removed = clone.is_some_and(|clone| clone.is_removed());
        let found = self.inherited(ino)?;
        match (record, &found) {
            // What is left of one that has been removed needs its records only to be taken apart.
            (Some(_), _) if is_removed => return Ok(true),
            (None, _) if is_removed => {
                self.delete_rows(ino)?;
                return Ok(true);
            }
            // Names are worth more than a record.
            (None, Some(found)) if names > 0 && inode::is_directory(&found.record) => {}
            (None, Some(found)) => {
                self.trouble(ino, "inode", AS_ORIGIN);
                self.tell_past(ino, found)?;
                self.delete_rows(ino)?;
                return Ok(true);
            }
            // Half a copy; and what hides nothing any more.
            (Some(record), found)
                if record.flags.get() & inode_flag::COPYING != 0
                    || (found.is_none() && clone::is_gone(record)) =>
            {
                self.delete_rows(ino)?;
                return Ok(true);
            }
            _ => {}
        }
        if let Some(found) = found
            && inode::is_directory(&found.record)
        {
            for entry in clone::entries(self.store, ino, &found) {
                let Some((target, _)) = readable(entry.map(Some))? else {
                    break;
                };
                self.seen.entry(target).or_default().lost_names += 1;
            }
        }
        if !record.is_some_and(clone::is_gone) {
            return Ok(false);
        }
        self.seen.entry(ino).or_default();
        if rows > 1 {
            self.delete_rows(ino)?;
            self.changes.remove(&key(ino, tag::INODE, &[]));
        }
        Ok(true)
    }

    /// Tells what snapshots of a clone miss of an inode that is its origin's again, if it had rows of its own for them.
    fn tell_past(&mut self, ino: Ino, found: &Found) -> Result<(), ReadError> {
        if !self.has_past(ino)? {
            return Ok(());
        }
        let sentence = match inode::is_directory(&found.record) {
            true => {
                "as snapshots show it, names in it may be missing, or be those that its origin has"
            }
            false => "as snapshots show it, what is lost of it may read as zeros",
        };
        self.trouble(ino, "snapshot", sentence);
        Ok(())
    }

    /// The record of a clone's own directory whose own is lost, from its origin's: extended attributes are the origin's too if it
    /// has none.
    pub(super) fn record_from_origin(
        &mut self,
        ino: Ino,
        has_xattrs: bool,
    ) -> Result<Option<InodeRecord>, ReadError> {
        let Some(found) = self.inherited(ino)? else {
            return Ok(None);
        };
        if !inode::is_directory(&found.record) {
            return Ok(None);
        }
        let of_records = match has_xattrs {
            true => found.record.flags.get() & OF_RECORDS,
            false => self.take_records(ino, &found)?,
        };
        let mut record = found.record;
        record.flags = (record.flags.get() & !OF_RECORDS | of_records).into();
        self.rebuilder.host.fill_random(&mut record.salt);
        self.put_record(ino, &record);
        Ok(Some(record))
    }

    /// Adds to what was met in clones what their origins have: see [`crate::check`], which goes by the same rule.
    pub(super) fn inherit(&mut self) -> Result<(), ReadError> {
        for (root, _) in self.volumes.values() {
            if root.cloned().is_some() && self.is_due(*root) {
                self.seen.entry(*root).or_default();
            }
        }
        let mut of_clones: Vec<Ino> = self.seen.keys().copied().collect();
        of_clones.retain(|ino| ino.cloned().is_some());
        of_clones.sort_unstable();
        for ino in of_clones {
            let Some(found) = self.inherited(ino)? else {
                continue;
            };
            let is_own = match self.get(&key(ino, tag::INODE, &[]))? {
                Some(bytes) => match inode::decode(ino, &bytes) {
                    Ok(record) if clone::is_gone(&record) => {
                        self.add_names(ino, &found);
                        continue;
                    }
                    decoded => decoded.is_ok(),
                },
                None => false,
            };
            self.add_names(ino, &found);
            if !is_own {
                self.note_inherited(ino, &found);
            }
        }
        Ok(())
    }

    fn note_inherited(&mut self, ino: Ino, found: &Found) {
        let record = &found.record;
        let seen = self.seen.entry(ino).or_default();
        seen.kind = Some(inode::kind(record));
        seen.nlink = record.nlink.get();
        seen.parent = Ino(record.parent.get());
        seen.volume = VolumeId(record.volume.get());
        seen.is_junction = false;
        seen.is_inherited = true;
        if inode::is_directory(record) {
            seen.subdirectories = seen.nlink.saturating_sub(2);
        }
    }

    /// The same for one that no row has led to.
    fn meet(&mut self, ino: Ino) -> Result<(), ReadError> {
        if !self.seen.contains_key(&ino)
            && let Some(found) = self.inherited(ino)?
        {
            self.add_names(ino, &found);
            self.note_inherited(ino, &found);
        }
        Ok(())
    }

    /// A directory whose rows in a clone are lost is the origin's again, and names what the clone has removed since, or has
    /// moved: it gets rows of its own, without the former, and from which the latter can be taken.
    pub(super) fn own_stale_directories(&mut self) -> Result<(), ReadError> {
        let stale: HashSet<Ino> = self
            .seen
            .iter()
            .filter(|(ino, seen)| {
                let is_twice = seen.kind == Some(libc::S_IFDIR) && seen.names > 1;
                ino.cloned().is_some() && (is_twice || (seen.kind.is_none() && seen.names > 0))
            })
            .map(|(ino, _)| *ino)
            .collect();
        let of = |ino: &Ino| ino.cloned().map(|(clone, _)| clone);
        let clones: HashSet<VolumeId> = stale.iter().filter_map(of).collect();
        if clones.is_empty() {
            return Ok(());
        }
        let mut waiting: Vec<Ino> = self
            .seen
            .iter()
            .filter(|(ino, seen)| {
                seen.is_inherited && of(ino).is_some_and(|clone| clones.contains(&clone))
            })
            .map(|(ino, _)| *ino)
            .collect();
        let mut met: HashSet<Ino> = waiting.iter().copied().collect();
        while let Some(ino) = waiting.pop() {
            // What has rows of its own has led to all that it names.
            if self.seen.get(&ino).is_some_and(|seen| !seen.is_inherited) {
                continue;
            }
            let Some(found) = self.inherited(ino)? else {
                continue;
            };
            let mut targets = Vec::new();
            if inode::is_directory(&found.record) {
                for entry in clone::entries(self.store, ino, &found) {
                    let Some((target, kind)) = readable(entry.map(Some))? else {
                        break;
                    };
                    targets.push(target);
                    if kind == libc::S_IFDIR && met.insert(target) {
                        waiting.push(target);
                    }
                }
            }
            if targets.iter().any(|target| stale.contains(target)) {
                self.meet(ino)?;
                for target in targets {
                    self.meet(target)?;
                }
                self.own_directory(ino)?;
                let sentence = "what was changed of it in a clone is lost: it is as its origin has it, but \
                                for what the clone has removed or moved";
                self.trouble(ino, "inode", sentence);
            }
        }
        Ok(())
    }

    /// Files that a clone has removed and of which its origin has more names than anybody knows stay, unseen, as those do
    /// that have names outside of what was cloned.
    pub(super) fn keep_unseen(&mut self) -> Result<(), ReadError> {
        let mut unseen: Vec<Ino> = self
            .seen
            .iter()
            .filter(|(ino, seen)| {
                let is_named = seen.names > 0 && seen.own_names == 0;
                ino.cloned().is_some() && seen.kind.is_none() && is_named
            })
            .map(|(ino, _)| *ino)
            .collect();
        unseen.sort_unstable();
        for ino in unseen {
            let is_gone = self.record(ino)?.is_some_and(|it| clone::is_gone(&it));
            if is_gone
                && let Some(found) = self.inherited(ino)?
                && !inode::is_directory(&found.record)
            {
                self.note_inherited(ino, &found);
                self.own_file(ino)?;
            }
        }
        Ok(())
    }

    fn add_names(&mut self, ino: Ino, found: &Found) {
        let is_root = self.is_root(ino);
        let record = &found.record;
        let inherited = match (inode::is_directory(record), is_root) {
            (true, true) => 0,
            (true, false) => 1,
            (false, _) => record.nlink.get(),
        };
        let seen = self.seen.entry(ino).or_default();
        let left = inherited.saturating_sub(seen.lost_names);
        if seen.names == 0 && left > 0 {
            seen.name_parent = Ino(record.parent.get());
        }
        seen.names += left;
    }

    /// Gives a clone rows of its own for a directory that it has from its origin: it is about to change.
    pub(super) fn own_directory(&mut self, ino: Ino) -> Result<(), ReadError> {
        if !self.seen.get(&ino).is_some_and(|seen| seen.is_inherited) {
            return Ok(());
        }
        let Some(found) = self.inherited(ino)? else {
            return Ok(());
        };
        self.tell_past(ino, &found)?;
        let past = Past {
            table: self.store,
            at: found.place.at.unwrap_or_default(),
        };
        let mut entries = Vec::new();
        for row in past.rows(found.place.ino, tag::COOKIE, &[], None) {
            let Some((suffix, value)) = readable(row.map(Some))? else {
                break;
            };
            let cookie = suffix.try_into().map(u64::from_be_bytes);
            if let (
                Ok((
                    CookieRecord {
                        ino: target, kind, ..
                    },
                    name,
                )),
                Ok(cookie),
            ) = (directory::decode_cookie(ino, &value), cookie)
                && let Ok(target) = crate::views::beside(ino, Ino(target.get()))
            {
                if self
                    .record(target)?
                    .is_some_and(|record| clone::is_gone(&record))
                {
                    let names = &mut self.seen.entry(target).or_default().names;
                    *names = names.saturating_sub(1);
                    if u32::from(kind) << 12 == libc::S_IFDIR {
                        let seen = self.seen.entry(ino).or_default();
                        seen.subdirectories = seen.subdirectories.saturating_sub(1);
                    }
                    continue;
                }
                let entry = DirentRecord {
                    ino: target.0.into(),
                    cookie: cookie.into(),
                    timestamp: found.record.timestamp,
                    kind,
                };
                entries.push((name.to_vec(), entry));
            }
        }
        let mut record = found.record;
        record.size = (entries.len() as u64).into();
        let flags = record.flags.get() & !OF_RECORDS;
        record.flags = (flags | self.take_records(ino, &found)?).into();
        self.put_record(ino, &record);
        for (name, entry) in entries {
            self.put_entry(ino, &name, &entry);
        }
        if let Some(seen) = self.seen.get_mut(&ino) {
            seen.is_inherited = false;
        }
        Ok(())
    }

    /// The same for what is no directory.
    pub(super) fn own_file(&mut self, ino: Ino) -> Result<(), ReadError> {
        let Some(found) = self.inherited(ino)? else {
            return Ok(());
        };
        let past = Past {
            table: self.store,
            at: found.place.at.unwrap_or_default(),
        };
        let source = found.place.ino;
        // Its parts belong together: what a snapshot shows of others that it had stays as it is.
        let begin = self.end_of_past(ino)?;
        self.tell_past(ino, &found)?;
        let mut record = found.record;
        record.timestamp = record.timestamp.get().max(begin).into();
        self.rebuilder.host.fill_random(&mut record.salt);
        let keys = file_key_of(self.store, &found.record).zip(file_key_of(self.store, &record));
        let Some((old_key, new_key)) = keys else {
            return Ok(());
        };
        let is_inline = record.flags.get() & inode_flag::INLINE != 0;
        let inline = readable(past.get(source, tag::INLINE, &[]))?;
        if let Some(value) = inline.filter(|_| is_inline) {
            self.put(key(ino, tag::INLINE, &[]), since(tag::INLINE, value, begin));
        } else {
            record.allocated = 0.into();
        }
        for row in past.rows(source, tag::EXTENT, &[], None) {
            let extent = row.and_then(|(suffix, value)| {
                let timestamp = crate::row::timestamp(tag::EXTENT, &value)?;
                let row = (key(source, tag::EXTENT, &suffix), value);
                Ok((extent::decode_row(source, &old_key, &row)?, timestamp))
            });
            let Some((extent, timestamp)) = readable(extent.map(Some))? else {
                continue;
            };
            record.allocated += u64::from(extent.len);
            let value = extent::encode_value(&new_key, timestamp.max(begin), &extent);
            self.put(extent::extent_key(ino, extent.offset), value);
        }
        let flags = record.flags.get() & !OF_RECORDS;
        record.flags = (flags | self.take_records(ino, &found)?).into();
        self.put_record(ino, &record);
        if let Some(seen) = self.seen.get_mut(&ino) {
            seen.is_inherited = false;
        }
        Ok(())
    }

    /// Gives an inode of a clone the origin's extended attributes, and a directory its lock; the flags that go with them.
    fn take_records(&mut self, ino: Ino, found: &Found) -> Result<u32, ReadError> {
        let past = Past {
            table: self.store,
            at: found.place.at.unwrap_or_default(),
        };
        let begin = self.end_of_past(ino)?;
        let mut flags = 0;
        for row in past.rows(found.place.ino, tag::XATTR, &[], None) {
            let Some((name, value)) = readable(row.map(Some))? else {
                break;
            };
            if clone::stays_with_origin(ino, &found.record, &name) {
                continue;
            }
            if name == LOCK_NAME {
                if !crate::lock::is_sound(value.clone()) {
                    continue;
                }
                flags |= inode_flag::LOCKED;
            }
            flags |= inode_flag::XATTRS;
            self.put(key(ino, tag::XATTR, &name), since(tag::XATTR, value, begin));
        }
        Ok(flags)
    }

    /// Makes the rows of snapshots anew that clones need and that are lost. What has not been changed since reads as it did.
    pub(super) fn snapshots_of_clones(&mut self, known: &mut Vec<Snapshot>) {
        for (_, clone) in self.store.volumes() {
            let Some((volume, at)) = clone.origin() else {
                continue;
            };
            if known
                .iter()
                .any(|it| (it.volume, it.timestamp) == (volume, at))
            {
                continue;
            }
            let base = Ino(clone.root.get()).base();
            let is_clone = self
                .store
                .volume(volume)
                .is_some_and(|it| Ino(it.root.get()).cloned().is_some());
            let directory = match is_clone {
                true => base.in_clone(volume),
                false => Some(base),
            };
            let view = (1..=ViewId::MAX.0).map(ViewId);
            let mut view = view.filter(|view| !known.iter().any(|it| it.view == *view));
            let (Some(directory), Some(view)) = (directory, view.next()) else {
                continue;
            };
            let name = format!("lost-{:x}", at.0);
            let record = SnapshotRecord {
                directory: directory.0.into(),
                created_ns: (at.millis() * 1_000_000).into(),
                volume_logical_bytes: 0.into(),
                volume_inode_count: 0.into(),
                view: view.0.into(),
                flags: 0.into(),
                name_len: name.len() as u8,
                reserved: [0; 7],
            };
            let row = (
                snapshot_key(volume, at.0),
                [record.as_bytes(), name.as_bytes(), b"/"].concat(),
            );
            if let Ok(snapshot) = Snapshot::decode(&row) {
                known.push(snapshot);
                self.put(row.0, row.1);
                let sentence = "its name was lost, and a clone needs it".to_owned();
                self.find("snapshot", name, sentence);
            }
        }
    }
}

/// A row as if it had not been written before then. No extent.
fn since(row_tag: u8, value: Vec<u8>, begin: u64) -> Vec<u8> {
    match crate::row::timestamp(row_tag, &value) {
        Ok(from) if from >= begin => value,
        _ => stamped(row_tag, value, begin),
    }
}
