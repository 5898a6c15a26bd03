//! What has changed in a directory since a snapshot, or between two.
//!
//! Both trees are walked side by side. A file whose record is the same row in both is the same, and of one that has been
//! replaced by another the chunks are compared, so content is not read.

use std::collections::BTreeMap;

use cfs_format::table::{InodeRecord, tag};
use cfs_format::{DomainId, Ino, VolumeId};
use cfs_seal::keys::FileKey;

use crate::Fs;
use crate::apply::is_brought;
use crate::clone::Found;
use crate::directory::FIRST_COOKIE;
use crate::error::{FsError, Result};
use crate::extent::scan;
use crate::{directory, inode, row};

/// What became of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Created,
    /// It is gone.
    Deleted,
    /// Its content or attributes are others.
    Changed,
    /// It had another path, this one; and perhaps has changed too.
    Renamed {
        /// The earlier path.
        from: Vec<u8>,
        /// Its content or attributes are others.
        is_changed: bool,
    },
}

/// A path and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The path, from the directory of the snapshot; of what is gone, the earlier one.
    pub path: Vec<u8>,
    /// Type bits of the mode.
    pub kind: u32,
    /// What became of it.
    pub change: Change,
}

/// Names in one tree that the other has not, by inode.
type OneSided = BTreeMap<Ino, Vec<(Vec<u8>, u32)>>;

impl Fs {
    /// What is different in `now` from what is in `then`, two numbers of the same directory: as a snapshot shows it,
    /// and as another does, or as it is now. In the order of paths. `goes_on` is asked now and then.
    ///
    /// # Errors
    /// [`FsError::Stale`], [`FsError::NotFound`]; when something cannot be read.
    pub fn differences(
        &self,
        then: Ino,
        now: Ino,
        mut goes_on: impl FnMut() -> bool,
    ) -> Result<Option<Vec<Difference>>> {
        let mut found = Vec::new();
        let (mut gone, mut new) = (OneSided::new(), OneSided::new());
        let mut waiting = vec![(Vec::new(), Some(then), Some(now))];
        while let Some((path, then, now)) = waiting.pop() {
            if !goes_on() {
                return Ok(None);
            }
            let (mut before, after) = (self.entries_of(then)?, self.entries_of(now)?);
            let below = |name: &[u8]| match path.is_empty() {
                true => name.to_vec(),
                false => [&path[..], b"/", name].concat(),
            };
            for (name, (now_ino, kind)) in after {
                let is_directory = kind == libc::S_IFDIR;
                match before.remove(&name) {
                    Some((then_ino, _)) if number(then_ino) == number(now_ino) => {
                        if self.has_changed(then_ino, now_ino)? {
                            found.push(Difference {
                                path: below(&name),
                                kind,
                                change: Change::Changed,
                            });
                        }
                        if is_directory {
                            waiting.push((below(&name), Some(then_ino), Some(now_ino)));
                        }
                        continue;
                    }
                    Some(other) => note(&mut gone, &mut waiting, below(&name), other, Side::Then),
                    None => {}
                }
                note(
                    &mut new,
                    &mut waiting,
                    below(&name),
                    (now_ino, kind),
                    Side::Now,
                );
            }
            for (name, other) in before {
                note(&mut gone, &mut waiting, below(&name), other, Side::Then);
            }
        }
        self.pair(gone, new, (then, now), &mut found)?;
        found.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(Some(found))
    }

    /// Names that were lost and won by the same inode are renames; those below a directory that was renamed go with it.
    fn pair(
        &self,
        mut gone: OneSided,
        new: OneSided,
        (then, now): (Ino, Ino),
        found: &mut Vec<Difference>,
    ) -> Result<()> {
        let mut renamed: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut pairs = Vec::new();
        let mut created = BTreeMap::new();
        for (ino, names) in new {
            let mut earlier = gone.remove(&ino).unwrap_or_default().into_iter();
            for (path, kind) in names {
                match earlier.next() {
                    Some((from, _)) => pairs.push((ino, path, from, kind)),
                    None => {
                        created.insert(path, (ino, kind));
                    }
                }
            }
            gone.insert(ino, earlier.collect());
        }
        // Those above come first.
        pairs.sort_by(|one, other| one.1.cmp(&other.1));
        for (ino, path, from, kind) in pairs {
            let is_changed = self.has_changed(beside(then, ino)?, beside(now, ino)?)?;
            let goes_along = renamed.iter().any(|(above_from, above)| {
                let rest = |path: &[u8], above: &[u8]| -> Option<Vec<u8>> {
                    let rest = path.strip_prefix(above)?;
                    rest.starts_with(b"/").then(|| rest.to_vec())
                };
                rest(&path, above).is_some_and(|it| rest(&from, above_from) == Some(it))
            });
            if kind == libc::S_IFDIR {
                renamed.push((from.clone(), path.clone()));
            }
            let change = match (goes_along, is_changed) {
                (true, false) => continue,
                (true, true) => Change::Changed,
                (false, is_changed) => Change::Renamed { from, is_changed },
            };
            found.push(Difference { path, kind, change });
        }
        for (ino, names) in gone {
            for (path, kind) in names {
                let change = match created.get(&path) {
                    // One in the place of another.
                    Some((other, other_kind)) if *other_kind == kind => {
                        let (then, now) = (beside(then, ino)?, beside(now, *other)?);
                        created.remove(&path);
                        if self.is_equal(then, now, kind)? {
                            continue;
                        }
                        Change::Changed
                    }
                    _ => Change::Deleted,
                };
                found.push(Difference { path, kind, change });
            }
        }
        found.extend(created.into_iter().map(|(path, (_, kind))| Difference {
            path,
            kind,
            change: Change::Created,
        }));
        Ok(())
    }

    /// Whether two inodes have the same attributes and, as far as their chunks tell, the same content.
    fn is_equal(&self, then: Ino, now: Ino, kind: u32) -> Result<bool> {
        if self.has_changed(then, now)? {
            return Ok(false);
        }
        match kind {
            libc::S_IFREG | libc::S_IFLNK => self.has_same_content(then, now),
            _ => Ok(true),
        }
    }

    /// Whether the chunks of two files, or the targets of two symbolic links, are the same.
    fn has_same_content(&self, then: Ino, now: Ino) -> Result<bool> {
        let inline = |place| -> Result<_> {
            let inline = self.views.get(place, tag::INLINE, &[])?;
            inline.map(row::content).transpose()
        };
        let file_key = |record: &InodeRecord| -> Result<_> {
            let id = VolumeId(record.volume.get());
            let volume = self.store.volume(id);
            let secret = volume
                .and_then(|volume| self.store.domain_secret(DomainId(volume.domain.get())))
                .ok_or_else(|| FsError::damaged(format_args!("volume {id}")))?;
            Ok(FileKey::derive(&secret, &record.salt))
        };
        let found = |ino| self.views.find(ino)?.ok_or(FsError::NotFound);
        let (then, now) = (found(then)?, found(now)?);
        let size = then.record.size.get();
        if now.record.size.get() != size || inline(then.place)? != inline(now.place)? {
            return Ok(false);
        }
        let keys = (file_key(&then.record)?, file_key(&now.record)?);
        let rows = (
            self.views.extents(then.place.at),
            self.views.extents(now.place.at),
        );
        let mut before = scan(&rows.0, then.place.ino, &keys.0, 0, size);
        let mut after = scan(&rows.1, now.place.ino, &keys.1, 0, size);
        loop {
            match (before.next().transpose()?, after.next().transpose()?) {
                (None, None) => return Ok(true),
                (before, after) if before != after => return Ok(false),
                _ => {}
            }
        }
    }

    /// Whether restoring what `then` shows would change nothing of `now` but times of access and of change. Of a directory
    /// its entries do not count.
    pub(super) fn is_restored(&self, then: Ino, now: Ino) -> Result<bool> {
        let found = |ino| self.views.find(ino)?.ok_or(FsError::NotFound);
        let (then_found, now_found) = (found(then)?, found(now)?);
        let (before, after) = (&then_found.record, &now_found.record);
        let attributes = |record: &InodeRecord| {
            let owner = (record.uid, record.gid);
            (record.mode, owner, record.rdev, record.mtime)
        };
        if attributes(before) != attributes(after) {
            return Ok(false);
        }
        let xattrs = |found: &Found| -> Result<Vec<_>> {
            let rows = self.views.rows(found.place, tag::XATTR, &[], None);
            let brought = rows.filter(|row| {
                let name = row.as_ref().map(|(name, _)| &name[..]);
                let source = (then_found.place.ino, before);
                name.map_or(true, |name| is_brought(source, (now, after), name))
            });
            brought
                .map(|row| row.and_then(|(name, value)| Ok((name, row::content(value)?))))
                .collect()
        };
        if xattrs(&then_found)? != xattrs(&now_found)? {
            return Ok(false);
        }
        match inode::kind(before) {
            libc::S_IFREG | libc::S_IFLNK => self.has_same_content(then, now),
            _ => Ok(true),
        }
    }

    pub(crate) fn entries_of(&self, ino: Option<Ino>) -> Result<BTreeMap<Vec<u8>, (Ino, u32)>> {
        let Some(ino) = ino else {
            return Ok(BTreeMap::new());
        };
        let place = self.views.place(ino)?;
        let lo = FIRST_COOKIE.to_be_bytes();
        let rows = self.views.rows(place, tag::COOKIE, &lo, None);
        rows.map(|row| {
            let (_, value) = row?;
            let (record, name) = directory::decode_cookie(ino, &value)?;
            let kind = u32::from(record.kind) << 12;
            let entry = beside(ino, Ino(record.ino.get()))?;
            Ok((name.to_vec(), (entry, kind)))
        })
        .collect()
    }

    /// Whether content or attributes of an inode differ, but for the time of access. Of a directory its entries do not
    /// count.
    fn has_changed(&self, then: Ino, now: Ino) -> Result<bool> {
        let record = |ino| self.views.record(ino)?.ok_or(FsError::NotFound);
        let (before, after): (InodeRecord, InodeRecord) = (record(then)?, record(now)?);
        if number(then) == number(now) && before.timestamp == after.timestamp {
            return Ok(false);
        }
        let attributes = |record: &InodeRecord| (record.mode, record.uid, record.gid, record.rdev);
        let content = |record: &InodeRecord| (record.size, record.mtime);
        if attributes(&before) != attributes(&after) {
            return Ok(true);
        }
        if !inode::is_directory(&before) && content(&before) != content(&after) {
            return Ok(true);
        }
        let xattrs = |ino| -> Result<Vec<_>> {
            let rows = self
                .views
                .rows(self.views.place(ino)?, tag::XATTR, &[], None);
            rows.map(|row| row.and_then(|(name, value)| Ok((name, row::content(value)?))))
                .collect()
        };
        Ok(xattrs(then)? != xattrs(now)?)
    }
}

#[derive(Clone, Copy)]
enum Side {
    Then,
    Now,
}

type Waiting = Vec<(Vec<u8>, Option<Ino>, Option<Ino>)>;

/// A name that only one side has; of a directory, all below it is one-sided too.
fn note(
    names: &mut OneSided,
    waiting: &mut Waiting,
    path: Vec<u8>,
    (ino, kind): (Ino, u32),
    side: Side,
) {
    if kind == libc::S_IFDIR {
        waiting.push(match side {
            Side::Then => (path.clone(), Some(ino), None),
            Side::Now => (path.clone(), None, Some(ino)),
        });
    }
    names.entry(number(ino)).or_default().push((path, kind));
}

/// The number that an inode has whoever shows it.
fn number(ino: Ino) -> Ino {
    ino.base()
}

fn beside(viewed: Ino, ino: Ino) -> Result<Ino> {
    crate::views::beside(viewed, ino)
}
