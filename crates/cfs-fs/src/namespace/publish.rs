//! What front ends need that store whole objects: names in their order, files that appear when they are complete, and
//! records that are kept with an inode out of the mount's sight.
//!
//! # Records
//! A record is an extended attribute whose name lies in no namespace of Linux, so that the mount neither lists nor
//! reads nor writes it. A record may describe the content (a digest): it does so only while the inode's flag
//! `DESCRIBED` is set, which every change of content clears in the command that makes it. What is dirty in memory has
//! not cleared it yet, so that [`Fs::described`] writes such data first.

use cfs_format::Ino;
use cfs_format::table::{InodeRecord, inode_flag, key, tag};

use super::remove::{Nameless, Removal};
use crate::clone::{self, stays_with_origin};
use crate::command::{Command, Publish, SetRecords};
use crate::error::{FsError, Result};
use crate::types::{Attr, Room};
use crate::views::beside;
use crate::{Fs, directory, escaped, inode, row, xattr};

/// A name in a directory and what it points to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedEntry {
    /// Name.
    pub name: Vec<u8>,
    /// The inode.
    pub ino: Ino,
    /// Type bits, as in `st_mode`.
    pub kind: u32,
}

/// What must be under a name for [`Fs::publish`] to take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A regular file or nothing.
    Anything,
    /// Nothing.
    Nothing,
    /// This file, whatever its content is by now.
    File(Ino),
    /// The file with these attributes, unchanged.
    Unchanged(Attr),
}

/// How a file gets its name.
#[derive(Clone, Debug)]
pub struct Publication<'a> {
    /// Directory.
    pub parent: Ino,
    /// Name in it.
    pub name: &'a [u8],
    /// What is there now.
    pub expected: Expected,
    /// Records and extended attributes that it is to have.
    pub records: Vec<(Vec<u8>, Vec<u8>)>,
    /// Another directory and a free name there for the file that is replaced, which otherwise loses its name.
    pub archive: Option<(Ino, &'a [u8])>,
}

/// A change of records.
#[derive(Clone, Debug, Default)]
pub struct RecordChange {
    /// Records to set.
    pub put: Vec<(Vec<u8>, Vec<u8>)>,
    /// Names of records to remove, which need not be there.
    pub delete: Vec<Vec<u8>>,
    /// They describe the content of a file with these attributes.
    pub describes: Option<Attr>,
    /// Whether it counts as a change of the inode's attributes.
    pub touches: bool,
    /// Where the room for it comes from.
    pub room: Room,
}

impl Fs {
    /// Up to `count` entries of a directory in the byte order of their names, from the name `from` on.
    ///
    /// # Errors
    /// [`FsError::Read`]. A directory that has been removed, and what is none, is empty.
    pub fn names_from(&self, dir: Ino, from: &[u8], count: usize) -> Result<Vec<NamedEntry>> {
        let place = self.views.place(dir)?;
        self.views
            .rows(place, tag::DIRENT, from, None)
            .take(count)
            .map(|row| {
                let (name, value) = row?;
                let entry = directory::decode(dir, &value)?;
                Ok(NamedEntry {
                    name,
                    ino: self.views.through(beside(dir, Ino(entry.ino.get()))?),
                    kind: u32::from(entry.kind) << 12,
                })
            })
            .collect()
    }

    /// The entry with this name, if there is one, without its attributes.
    ///
    /// # Errors
    /// [`FsError::Read`].
    pub fn find_name(&self, dir: Ino, name: &[u8]) -> Result<Option<NamedEntry>> {
        Ok(self.entry(dir, name)?.map(|entry| NamedEntry {
            name: name.to_vec(),
            ino: self.views.through(Ino(entry.ino.get())),
            kind: u32::from(entry.kind) << 12,
        }))
    }

    /// Attributes of a file, and its record `name` if that describes the content as it is. Data that are only in memory
    /// are written before.
    ///
    /// # Errors
    /// [`FsError::NotFound`]; what writing failed with.
    pub fn described(&self, ino: Ino, name: &[u8]) -> Result<(Attr, Option<Vec<u8>>)> {
        if self.files.has_content_to_write(ino) {
            self.files.flush(ino)?;
        }
        let is_described = |record: &InodeRecord| record.flags.get() & inode_flag::DESCRIBED != 0;
        if ino.cloned().is_some()
            && let Some(found) = self.views.find(ino)?
            && found.is_inherited(ino)
        {
            // Nothing changes there.
            let text = match is_described(&found.record) {
                false => None,
                true => self.views.get(found.place, tag::XATTR, name)?,
            };
            let text = text.map(row::content).transpose()?;
            return Ok((Attr::from_record(ino, &found.record), text));
        }
        let view = self.store.view();
        let get = |row: &[u8]| view.get(row).map_err(cfs_store::ReadError::from);
        let bytes = get(&key(ino, tag::INODE, &[]))?.ok_or(FsError::NotFound)?;
        let record = inode::decode(ino, &bytes)?;
        if clone::is_gone(&record) {
            return Err(FsError::NotFound);
        }
        let text = match is_described(&record) {
            false => None,
            true => get(&key(ino, tag::XATTR, name))?
                .map(row::content)
                .transpose()?,
        };
        // Not with what has come since, which the text does not describe.
        Ok((Attr::from_record(ino, &record), text))
    }

    /// Whether a clone has an inode from its origin still, as its records then are: what changes them copies the inode, which the
    /// clone's quota has to let.
    ///
    /// # Errors
    /// [`FsError::Read`].
    pub fn is_inherited(&self, ino: Ino) -> Result<bool> {
        if ino.cloned().is_none() {
            return Ok(false);
        }
        let found = self.views.find(ino)?;
        Ok(found.is_some_and(|found| found.is_inherited(ino)))
    }

    /// The value of a record, or of an extended attribute.
    ///
    /// # Errors
    /// [`FsError::Read`].
    pub fn record(&self, ino: Ino, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let Some(found) = self.views.find(ino)? else {
            return Ok(None);
        };
        if found.is_inherited(ino) && stays_with_origin(ino, &found.record, name) {
            return Ok(None);
        }
        let value = self.views.get(found.place, tag::XATTR, name)?;
        value.map(row::content).transpose()
    }

    /// All records and extended attributes of an inode whose names begin with `prefix`, in the order of their names.
    ///
    /// # Errors
    /// [`FsError::Read`].
    pub fn records(&self, ino: Ino, prefix: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let Some(found) = self.views.find(ino)? else {
            return Ok(Vec::new());
        };
        let is_inherited = found.is_inherited(ino);
        let mut records = Vec::new();
        for row in self.views.rows(found.place, tag::XATTR, prefix, None) {
            let (name, value) = row?;
            if !name.starts_with(prefix) {
                break;
            }
            if !is_inherited || !stays_with_origin(ino, &found.record, &name) {
                records.push((name, row::content(value)?));
            }
        }
        Ok(records)
    }

    /// Changes records of an inode.
    ///
    /// # Errors
    /// [`FsError::NotFound`]; [`FsError::Changed`] when the content is not what they describe any more;
    /// [`FsError::Range`], [`FsError::ArgumentTooLong`] for names and values out of bounds; [`FsError::NoSpace`].
    pub fn set_records(&self, ino: Ino, change: RecordChange) -> Result<()> {
        let bytes: usize = change
            .put
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        let _reservation = self.admit_change(bytes, change.room)?;
        if change.describes.is_some() && self.files.has_content_to_write(ino) {
            self.files.flush(ino)?;
        }
        if change.touches {
            self.files.settle_times(ino)?;
        }
        self.execute_in(change.room, |txn, now| {
            if let Some(described) = &change.describes {
                let record = inode::get(txn, ino)?;
                if !same_content(&Attr::from_record(ino, &record), described) {
                    return Err(FsError::Changed);
                }
            }
            Ok(Command::SetRecords(SetRecords {
                ino,
                put: change.put.clone(),
                delete: change.delete.clone(),
                describes: change.describes.is_some(),
                now: change.touches.then_some(now),
            }))
        })?;
        Ok(())
    }

    /// Gives a file without a name (see [`Fs::tmpfile_and_hold`]) its name in one step, with its records, replacing the
    /// regular file that has the name. Its content is written first; the records describe it. Durable after
    /// [`cfs_store::Store::sync`].
    ///
    /// # Errors
    /// [`FsError::Exists`] and [`FsError::Changed`] when the name is not as expected, [`FsError::Changed`] also when it is
    /// new and another file is the same object (see [`crate::escaped`]); [`FsError::IsDirectory`] and
    /// [`FsError::NotPermitted`] when it is no regular file; [`FsError::Locked`] when it would be replaced and must not;
    /// [`FsError::NotFound`] and [`FsError::NotDirectory`] for the directory; [`FsError::CrossVolume`], [`FsError::NameTooLong`], [`FsError::NoSpace`].
    pub fn publish(&self, ino: Ino, publication: Publication<'_>) -> Result<Attr> {
        let bytes = publication
            .records
            .iter()
            .map(|(name, value)| name.len() + value.len());
        let _reservation = self.admit_growth(bytes.sum())?;
        self.files.flush(ino)?;
        self.files.settle_times(ino)?;
        let (parent, name) = (publication.parent, publication.name);
        let mut removal = Removal::None;
        let outcome = self.execute(|txn, now| {
            inode::check_own(txn, parent)?;
            if let Some((directory, _)) = publication.archive {
                inode::check_own(txn, directory)?;
            }
            let target = directory::find(txn, parent, name)?.map(|entry| Ino(entry.ino.get()));
            match (publication.expected, target) {
                (Expected::Anything, _) | (Expected::Nothing, None) => {}
                (Expected::Nothing, Some(_)) => return Err(FsError::Exists),
                (Expected::File(ino), Some(target)) if ino == target => {}
                (Expected::Unchanged(attr), Some(target)) if attr.ino == target => {
                    let record = inode::get(txn, target)?;
                    if !same_content(&Attr::from_record(target, &record), &attr) {
                        return Err(FsError::Changed);
                    }
                }
                (Expected::File(_) | Expected::Unchanged(_), _) => return Err(FsError::Changed),
            }
            // It came after whoever asks has looked for the object.
            if target.is_none() && escaped::overtaking_file(txn, parent, name)?.is_some() {
                return Err(FsError::Changed);
            }
            if let Some(target) = target
                && publication.archive.is_none()
            {
                removal = self.begin_removal(txn, target, Nameless::Goes)?;
            }
            Ok(Command::Publish(Publish {
                ino,
                parent,
                name: name.to_vec(),
                archive: publication.archive.map(|(dir, name)| (dir, name.to_vec())),
                keep: removal.keeps(),
                records: publication.records.clone(),
                describes: true,
                now,
            }))
        });
        let published = outcome.as_ref().ok().and_then(|outcome| outcome.inode);
        self.end_removal(removal, outcome)?;
        if published.is_some_and(|(_, record)| record.flags.get() & inode_flag::LOCKED != 0) {
            self.files.note_lock(ino)?;
        }
        self.attr_after(published.expect("publishing reports its inode"))
    }
}

/// Whether nothing was written between the two looks at a file.
pub(super) fn same_content(left: &Attr, right: &Attr) -> bool {
    (left.ino, left.size, left.mtime, left.ctime)
        == (right.ino, right.size, right.mtime, right.ctime)
}

/// Whether a name is one that the mount may see.
pub(crate) fn is_visible(name: &[u8]) -> bool {
    xattr::check_namespace(name).is_ok()
}
