//! What clones see of their origins: a directory as it was at a snapshot. Where rows of that are lost, what is left is made to
//! fit together as of that moment, before the clones are looked at, which reckon with it:
//! - Each name leads to an inode, and each directory has one name. One whose name is lost gets one in the snapshot's
//!   directory, if a clone has something of it.
//! - A file has not more names than links.
//! - Content that is known to be missing is replaced by extents of lost chunks.
//!
//! A row is another as of a moment T, and no other moment, by a state from T to just behind it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashSet};

use cfs_format::table::{
    CookieRecord, DirentRecord, InodeRecord, history_key, inode_flag, key, split_key, tag,
};
use cfs_format::{Ino, Timestamp, VolumeId};
use cfs_store::{ReadError, Store};
use zerocopy::IntoBytes;

use super::Mending;
use super::clones::readable;
use crate::clone::{self, Found};
use crate::directory::{self, FIRST_COOKIE};
use crate::history::Past;
use crate::inode;
use crate::views::{Place, beside};

/// Origins above a volume at most: each is older than what it is the origin of.
const DEPTH_MAX: u32 = 1 << 20;

/// Of each volume, how many origins it has above it.
pub(super) fn depths(store: &Store) -> BTreeMap<VolumeId, u32> {
    let origins: BTreeMap<VolumeId, (VolumeId, Timestamp)> = store
        .volumes()
        .into_iter()
        .filter_map(|(id, volume)| Some((id, volume.origin()?)))
        .collect();
    let mut depths = BTreeMap::new();
    for id in origins.keys() {
        let (mut at, mut before, mut depth) = (*id, Timestamp(u64::MAX), 0);
        while let Some((above, timestamp)) = origins.get(&at)
            && *timestamp < before
            && depth < DEPTH_MAX
        {
            (at, before) = (*above, *timestamp);
            depth += 1;
        }
        depths.insert(*id, depth);
    }
    depths
}

/// A directory as clones see it.
pub(super) struct Origin {
    pub(super) volume: VolumeId,
    pub(super) at: Timestamp,
    /// With the number that the volume has for it.
    directory: Ino,
    /// All that see something of it, clones of clones among them.
    clones: Vec<VolumeId>,
}

/// The origins of clones that are volumes of this depth, the oldest first.
pub(super) fn at_depth(store: &Store, depths: &BTreeMap<VolumeId, u32>, depth: u32) -> Vec<Origin> {
    let is_due = |of: &VolumeId| depths.get(of).copied().unwrap_or(0) == depth;
    let mut origins: BTreeMap<(Timestamp, VolumeId), Origin> = BTreeMap::new();
    for (_, volume) in store.volumes() {
        let Some((of, at)) = volume.origin().filter(|(of, _)| is_due(of)) else {
            continue;
        };
        let base = Ino(volume.root.get()).base();
        let record = store.volume(of);
        if let Some(directory) = record.and_then(|record| clone::number_in(of, &record, base)) {
            origins.entry((at, of)).or_insert(Origin {
                volume: of,
                at,
                directory,
                clones: Vec::new(),
            });
        }
    }
    for (id, volume) in store.volumes() {
        let mut above = volume.origin();
        let mut before = Timestamp(u64::MAX);
        while let Some((of, at)) = above.filter(|(_, at)| *at < before) {
            if let Some(origin) = origins.get_mut(&(at, of)) {
                origin.clones.push(id);
            }
            above = store.volume(of).and_then(|record| record.origin());
            before = at;
        }
    }
    origins.into_values().collect()
}

/// What a clone has changed of an inode of its origin.
#[derive(Clone, Copy, Default)]
struct Wanted {
    is_gone: bool,
}

/// The way through the directory and all below it.
#[derive(Default)]
struct Walk {
    /// Directories that have a name.
    directories: HashSet<Ino>,
    /// Those whose entries have not been looked at, and the directory that names each; none where its record decides.
    waiting: Vec<(Ino, Option<Ino>)>,
    /// Other inodes: how many names they have, and what is known of them.
    files: BTreeMap<Ino, (u32, Found)>,
    /// Directories whose record has been made anew.
    made: HashSet<Ino>,
    /// Directories whose names are lost and that get one in the first.
    attached: Vec<Ino>,
}

/// Entries of a directory, and which of its rows say otherwise.
#[derive(Default)]
struct Entries {
    by_name: BTreeMap<Vec<u8>, DirentRecord>,
    /// Names, with and without their entry.
    names: BTreeSet<Vec<u8>>,
    cookies: BTreeMap<u64, (Vec<u8>, CookieRecord)>,
}

impl Mending<'_> {
    /// Makes what clones see of an origin fit together.
    pub(super) fn origin(&mut self, origin: &Origin) -> Result<(), ReadError> {
        let wanted = self.wanted_of(origin)?;
        let mut walk = Walk::default();
        walk.directories.insert(origin.directory);
        // Its entries are looked at last: they may become more.
        let first = self.directory_of(origin, &mut walk, origin.directory)?;
        let Some((found, entries)) = first else {
            // Nothing of it is left.
            for ino in wanted.keys() {
                self.hide(origin, *ino)?;
            }
            return Ok(());
        };
        let mut kept = self.keep_entries(origin, &mut walk, origin.directory, &entries)?;
        self.go_on(origin, &mut walk)?;
        for ino in wanted.keys() {
            if let Some(top) = self.topmost(origin, &walk, *ino)? {
                walk.directories.insert(top);
                walk.attached.push(top);
                walk.waiting.push((top, None));
                self.go_on(origin, &mut walk)?;
            }
        }
        let mut next = found.record.next_cookie.get().max(FIRST_COOKIE);
        for entry in kept.values() {
            next = next.max(entry.cookie.get().saturating_add(1));
        }
        for ino in std::mem::take(&mut walk.attached) {
            let mut name = format!("inode-{ino}").into_bytes();
            while kept.contains_key(&name) {
                name.push(b'~');
            }
            let entry = DirentRecord {
                ino: ino.0.into(),
                cookie: next.into(),
                timestamp: origin.at.0.into(),
                kind: (libc::S_IFDIR >> 12) as u8,
            };
            next += 1;
            kept.insert(name, entry);
        }
        self.put_directory(
            origin,
            &walk,
            (origin.directory, None),
            &found,
            (&entries, &kept),
        )?;
        for (ino, wanted) in &wanted {
            if !walk.files.contains_key(ino)
                && !walk.directories.contains(ino)
                && let Some(mut found) = self.found_at(origin, *ino)?
            {
                let is_file = !inode::is_directory(&found.record);
                let is_own = found.place.ino == *ino;
                let is_file = is_file && (is_own || !wanted.is_gone);
                match is_file && (!is_own || self.content_at(origin, *ino, &mut found.record)?) {
                    true => drop(walk.files.insert(*ino, (0, found))),
                    false => self.hide(origin, *ino)?,
                }
            }
            if wanted.is_gone
                && let Some((names, found)) = walk.files.get_mut(ino)
                && found.record.nlink.get() > *names
            {
                self.set_links(origin, *ino, found, *names)?;
                found.record.nlink.set(*names);
            }
        }
        let is_whole = self.is_root(origin.directory) && origin.directory.cloned().is_none();
        for (ino, (names, found)) in &walk.files {
            let nlink = found.record.nlink.get();
            if nlink < *names || (nlink > *names && (is_whole || *names == 0)) {
                self.set_links(origin, *ino, found, *names)?;
            }
        }
        Ok(())
    }

    /// Inodes of the origin of which its clones have rows or names of their own.
    fn wanted_of(&self, origin: &Origin) -> Result<BTreeMap<Ino, Wanted>, ReadError> {
        let mut wanted: BTreeMap<Ino, Wanted> = BTreeMap::new();
        let Some(record) = self.store.volume(origin.volume) else {
            return Ok(wanted);
        };
        let above = |ino: Ino| clone::number_in(origin.volume, &record, ino.base());
        for clone in &origin.clones {
            let Some((lo, hi)) = readable(clone::range_of(*clone, None).map(Some))? else {
                continue;
            };
            for row in self.store.range(&lo, &hi) {
                let (row_key, value) = row.map_err(ReadError::from)?;
                let Ok((ino, row_tag, _)) = split_key(&row_key) else {
                    continue;
                };
                match row_tag {
                    tag::INODE => {
                        let record = inode::decode(ino, &value).ok();
                        if let Some(above) = above(ino) {
                            let wanted = wanted.entry(above).or_default();
                            wanted.is_gone |= record.is_some_and(|record| clone::is_gone(&record));
                        }
                    }
                    tag::DIRENT => {
                        if let Ok(entry) = directory::decode(ino, &value)
                            && let Some(above) = above(Ino(entry.ino.get()))
                        {
                            wanted.entry(above).or_default();
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(wanted)
    }

    fn found_at(&self, origin: &Origin, ino: Ino) -> Result<Option<Found>, ReadError> {
        readable(clone::find(self.store, ino, Some(origin.at)))
    }

    /// Of a directory that no name leads to, the highest of those above it that names lead from to it; itself where
    /// they lead out of the snapshot's directory.
    fn topmost(&self, origin: &Origin, walk: &Walk, ino: Ino) -> Result<Option<Ino>, ReadError> {
        if walk.directories.contains(&ino) {
            return Ok(None);
        }
        let Some(mut found) = self.directory_at(origin, ino)? else {
            return Ok(None);
        };
        let mut top = ino;
        let mut met = HashSet::from([ino]);
        loop {
            let parent = Ino(found.record.parent.get());
            if walk.directories.contains(&parent) {
                return Ok(Some(top));
            }
            let Some(above) = self.directory_at(origin, parent)? else {
                return Ok(Some(top));
            };
            let mut names_it = false;
            for entry in clone::entries(self.store, parent, &above) {
                let Some((target, _)) = readable(entry.map(Some))? else {
                    break;
                };
                names_it |= target == top;
            }
            if !names_it {
                return Ok(Some(top));
            }
            if !met.insert(parent) || self.is_above(origin, parent)? {
                return Ok(Some(ino));
            }
            (top, found) = (parent, above);
        }
    }

    fn directory_at(&self, origin: &Origin, ino: Ino) -> Result<Option<Found>, ReadError> {
        let found = self.found_at(origin, ino)?;
        Ok(found.filter(|found| inode::is_directory(&found.record)))
    }

    /// Whether the snapshot's directory lies below another, by what the records say.
    fn is_above(&self, origin: &Origin, ino: Ino) -> Result<bool, ReadError> {
        let mut at = origin.directory;
        let mut met = HashSet::new();
        while at != ino && met.insert(at) {
            match self.directory_at(origin, at)? {
                Some(found) => at = Ino(found.record.parent.get()),
                None => return Ok(false),
            }
        }
        Ok(at == ino)
    }

    fn go_on(&mut self, origin: &Origin, walk: &mut Walk) -> Result<(), ReadError> {
        while let Some((ino, parent)) = walk.waiting.pop() {
            if let Some((found, entries)) = self.directory_of(origin, walk, ino)? {
                let kept = self.keep_entries(origin, walk, ino, &entries)?;
                self.put_directory(origin, walk, (ino, parent), &found, (&entries, &kept))?;
            }
        }
        Ok(())
    }

    /// A directory, and what its rows say. Names are worth more than a record.
    fn directory_of(
        &mut self,
        origin: &Origin,
        walk: &mut Walk,
        ino: Ino,
    ) -> Result<Option<(Found, Entries)>, ReadError> {
        let found = self.found_at(origin, ino)?;
        let place = found.as_ref().map_or(
            Place {
                ino,
                at: Some(origin.at),
            },
            |found| found.place,
        );
        let mut entries = Entries::default();
        let past = Past {
            table: self.store,
            at: place.at.unwrap_or_default(),
        };
        for row in past.rows(place.ino, tag::DIRENT, &[], None) {
            let Some((name, value)) = readable(row.map(Some))? else {
                break;
            };
            entries.names.insert(name.clone());
            if directory::check_name(&name).is_ok()
                && let Ok(entry) = directory::decode(ino, &value)
            {
                entries.by_name.insert(name, entry);
            }
        }
        for row in past.rows(place.ino, tag::COOKIE, &[], None) {
            let Some((suffix, value)) = readable(row.map(Some))? else {
                break;
            };
            let cookie = suffix.try_into().map(u64::from_be_bytes);
            if let (Ok((record, name)), Ok(cookie)) =
                (directory::decode_cookie(ino, &value), cookie)
            {
                entries.cookies.insert(cookie, (name.to_vec(), record));
            }
        }
        let found = match found {
            Some(found) if inode::is_directory(&found.record) => found,
            Some(_) => return Ok(None),
            None if entries.names.is_empty() && entries.cookies.is_empty() => return Ok(None),
            None => {
                let mut record = self.directory_record(ino);
                record.volume = origin.volume.0.into();
                record.parent = ino.0.into();
                walk.made.insert(ino);
                Found { place, record }
            }
        };
        for (cookie, (name, record)) in &entries.cookies {
            // An entry that was removed has lost both rows, unless one of the removals is lost.
            let is_lost = self.may_be_lost(&key(place.ino, tag::DIRENT, name))
                || self.may_be_lost(&history_key(
                    place.ino,
                    tag::DIRENT,
                    name,
                    origin.at.0.saturating_add(1),
                ));
            if is_lost && directory::check_name(name).is_ok() && !entries.by_name.contains_key(name)
            {
                let entry = DirentRecord {
                    ino: record.ino,
                    cookie: (*cookie).into(),
                    timestamp: record.timestamp,
                    kind: record.kind,
                };
                entries.by_name.insert(name.clone(), entry);
            }
        }
        Ok(Some((found, entries)))
    }

    /// The entries of a directory that lead somewhere, with the numbers that the volume has; what they lead to has been
    /// met then.
    fn keep_entries(
        &mut self,
        origin: &Origin,
        walk: &mut Walk,
        ino: Ino,
        entries: &Entries,
    ) -> Result<BTreeMap<Vec<u8>, DirentRecord>, ReadError> {
        let mut kept = BTreeMap::new();
        let mut cookies = HashSet::new();
        let given = entries.by_name.values().map(|entry| entry.cookie.get());
        let mut next = given.max().unwrap_or(0).max(FIRST_COOKIE);
        for (name, entry) in &entries.by_name {
            let Ok(target) = beside(ino, Ino(entry.ino.get())) else {
                continue;
            };
            let kind = u32::from(entry.kind) << 12;
            let is_there = match kind {
                libc::S_IFDIR => {
                    !walk.directories.contains(&target)
                        && self.directory_of(origin, walk, target)?.is_some()
                }
                _ => self.meet_file(origin, walk, target, kind)?,
            };
            if !is_there {
                let shown = String::from_utf8_lossy(name);
                self.tell_at(origin, ino, "lost", &format!("{shown:?} in it is lost"))?;
                continue;
            }
            if kind == libc::S_IFDIR {
                walk.directories.insert(target);
                walk.waiting.push((target, Some(ino)));
            }
            let mut entry = *entry;
            entry.ino = target.0.into();
            if entry.cookie.get() < FIRST_COOKIE || !cookies.insert(entry.cookie.get()) {
                next = next.saturating_add(1);
                entry.cookie = next.into();
                cookies.insert(next);
            }
            kept.insert(name.clone(), entry);
        }
        Ok(kept)
    }

    /// Counts a name of what is no directory; false if it is not there, or is something else.
    fn meet_file(
        &mut self,
        origin: &Origin,
        walk: &mut Walk,
        ino: Ino,
        kind: u32,
    ) -> Result<bool, ReadError> {
        let (names, found) = match walk.files.entry(ino) {
            Entry::Occupied(met) => met.into_mut(),
            Entry::Vacant(place) => {
                let Some(mut found) = self.found_at(origin, ino)? else {
                    return Ok(false);
                };
                if inode::is_directory(&found.record) {
                    return Ok(false);
                }
                // Where it is the origin's of the origin, that has been looked at.
                if found.place.ino == ino && !self.content_at(origin, ino, &mut found.record)? {
                    return Ok(false);
                }
                place.insert((0, found))
            }
        };
        // Its links cannot be set there.
        let is_too_many = found.place.ino != ino && *names >= found.record.nlink.get();
        if inode::kind(&found.record) != kind || is_too_many {
            return Ok(false);
        }
        *names += 1;
        Ok(true)
    }

    /// Writes what a directory has to be, where it is not.
    fn put_directory(
        &mut self,
        origin: &Origin,
        walk: &Walk,
        (ino, parent): (Ino, Option<Ino>),
        found: &Found,
        (entries, kept): (&Entries, &BTreeMap<Vec<u8>, DirentRecord>),
    ) -> Result<(), ReadError> {
        let is_own = found.place.ino == ino;
        let directories = kept
            .values()
            .filter(|entry| u32::from(entry.kind) << 12 == libc::S_IFDIR)
            .count() as u32;
        let mut record = found.record;
        record.size = (kept.len() as u64).into();
        record.nlink = (2 + directories).into();
        for entry in kept.values() {
            let next = entry.cookie.get().saturating_add(1);
            record.next_cookie = record.next_cookie.get().max(next).into();
        }
        if let Some(parent) = parent {
            record.parent = parent.0.into();
        }
        let cookie_of = |name: &[u8], entry: &DirentRecord| {
            entries
                .cookies
                .get(&entry.cookie.get())
                .is_some_and(|(of, row)| {
                    of == name && (row.ino, row.kind) == (entry.ino, entry.kind)
                })
        };
        let (mut stale_names, mut stale_cookies) = (Vec::new(), Vec::new());
        for name in &entries.names {
            if kept.get(name).is_none() {
                stale_names.push(name.clone());
            }
        }
        for (cookie, (name, _)) in &entries.cookies {
            if kept
                .get(name)
                .is_none_or(|entry| entry.cookie.get() != *cookie)
            {
                stale_cookies.push(*cookie);
            }
        }
        let is_same = stale_names.is_empty()
            && stale_cookies.is_empty()
            && record == found.record
            && !walk.made.contains(&ino)
            && kept.iter().all(|(name, entry)| {
                let is_there = entries.names.contains(name)
                    && entries.by_name.get(name).is_some_and(|was| {
                        let target = beside(ino, Ino(was.ino.get())).ok();
                        target == Some(Ino(entry.ino.get()))
                            && (was.cookie, was.kind) == (entry.cookie, entry.kind)
                    });
                is_there && (!is_own || cookie_of(name, entry))
            });
        if is_same {
            return Ok(());
        }
        if walk.made.contains(&ino) {
            let sentence = "owner, mode and times are lost";
            self.tell_at(origin, ino, "attributes", sentence)?;
        }
        if is_own {
            for name in stale_names {
                self.set_at(origin, ino, tag::DIRENT, &name, None)?;
            }
            for cookie in stale_cookies {
                self.set_at(origin, ino, tag::COOKIE, &cookie.to_be_bytes(), None)?;
            }
        } else {
            let past = Past {
                table: self.store,
                at: found.place.at.unwrap_or_default(),
            };
            for row in past.rows(found.place.ino, tag::XATTR, &[], None) {
                let Some((name, value)) = readable(row.map(Some))? else {
                    break;
                };
                if !clone::stays_with_origin(ino, &found.record, &name) {
                    self.set_at(origin, ino, tag::XATTR, &name, Some(value))?;
                }
            }
        }
        for (name, entry) in kept {
            let is_there = is_own
                && entries.names.contains(name)
                && entries.by_name.get(name) == Some(entry)
                && cookie_of(name, entry);
            if is_there {
                continue;
            }
            let row = CookieRecord {
                ino: entry.ino,
                timestamp: entry.timestamp,
                kind: entry.kind,
            };
            let by_cookie = [row.as_bytes(), name].concat();
            self.set_at(
                origin,
                ino,
                tag::DIRENT,
                name,
                Some(entry.as_bytes().to_vec()),
            )?;
            let cookie = entry.cookie.get().to_be_bytes();
            self.set_at(origin, ino, tag::COOKIE, &cookie, Some(by_cookie))?;
        }
        self.set_inode(origin, ino, &record)
    }

    /// As of the moment the inode has this record.
    pub(super) fn set_inode(
        &mut self,
        origin: &Origin,
        ino: Ino,
        record: &InodeRecord,
    ) -> Result<(), ReadError> {
        let value = record.as_bytes().to_vec();
        self.set_at(origin, ino, tag::INODE, &[], Some(value))
    }

    fn set_links(
        &mut self,
        origin: &Origin,
        ino: Ino,
        found: &Found,
        names: u32,
    ) -> Result<(), ReadError> {
        if found.place.ino != ino {
            return Ok(());
        }
        let mut record = found.record;
        record.nlink = names.into();
        self.set_inode(origin, ino, &record)
    }

    /// As of the moment there is no such inode.
    fn hide(&mut self, origin: &Origin, ino: Ino) -> Result<(), ReadError> {
        if self.found_at(origin, ino)?.is_none() {
            return Ok(());
        }
        let above = readable(clone::inherited(self.store, ino))?;
        let gone = above.map(|_| InodeRecord {
            volume: origin.volume.0.into(),
            flags: inode_flag::GONE.into(),
            ..InodeRecord::default()
        });
        let value = gone.map(|record| record.as_bytes().to_vec());
        self.set_at(origin, ino, tag::INODE, &[], value)
    }

    /// Notes what is to be told of an inode as the snapshot shows it, and of each clone that has it from there.
    pub(super) fn tell_at(
        &mut self,
        origin: &Origin,
        ino: Ino,
        id: &'static str,
        sentence: &str,
    ) -> Result<(), ReadError> {
        let told = format!("as a snapshot shows it that has been cloned, {sentence}");
        self.trouble(ino, "snapshot", told);
        for clone in &origin.clones {
            if let Some(shown) = ino.base().in_clone(*clone)
                && readable(clone::find(self.store, shown, None))?
                    .is_none_or(|found| (found.place.ino, found.place.at) == (ino, Some(origin.at)))
            {
                self.trouble(shown, id, sentence);
            }
        }
        Ok(())
    }
}
