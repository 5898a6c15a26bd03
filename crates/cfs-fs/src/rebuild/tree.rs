//! The tree as a whole: names that lead nowhere, inodes that no name leads to, counts of links; and the paths of all
//! findings.

use std::collections::{BTreeMap, HashMap, HashSet};

use cfs_format::table::{DirentRecord, InodeRecord, key, split_key, system_key, tag};
use cfs_format::{Ino, VolumeId};
use cfs_store::{LostRange, MendStage, ReadError};

use super::clones::AS_ORIGIN;
use super::{Mending, Seen, all_rows};
use crate::apply::make::orphan_key;
use crate::directory::{self, FIRST_COOKIE};
use crate::inode;

/// Where inodes go whose names are lost.
const LOST_AND_FOUND: &[u8] = b"lost+found";
/// Deepest path that is told.
const DEPTH_MAX: usize = 4096;
/// Lost ranges that are told.
const RANGES_TOLD: usize = 1000;

/// The name of each directory, and those of inodes with findings.
#[derive(Default)]
struct Paths {
    directories: HashMap<Ino, (Ino, Vec<u8>)>,
    others: HashMap<Ino, (Ino, Vec<u8>)>,
}

impl Paths {
    fn of(&self, ino: Ino) -> String {
        if ino == Ino::ROOT {
            return "/".to_owned();
        }
        let mut parts = Vec::new();
        let mut at = ino;
        while let Some((parent, name)) = self.directories.get(&at).or_else(|| self.others.get(&at))
        {
            parts.push(name.as_slice());
            at = *parent;
            if at == Ino::ROOT || parts.len() > DEPTH_MAX {
                break;
            }
        }
        if parts.is_empty() || at != Ino::ROOT {
            return format!("inode {ino}");
        }
        parts.reverse();
        format!("/{}", String::from_utf8_lossy(&parts.join(&b'/')))
    }
}

impl Mending<'_> {
    /// Makes one tree of all inodes, and tells what was found.
    pub(super) fn tree(&mut self, stage: MendStage) -> Result<(), ReadError> {
        let is_last = stage == MendStage::Last;
        if is_last && self.is_missing(Ino::ROOT) {
            self.trouble(Ino::ROOT, "attributes", "owner, mode and times are lost");
            let mut root = self.new_directory(Ino::ROOT);
            root.mode = (libc::S_IFDIR | 0o755).into();
            root.parent = Ino::ROOT.0.into();
            self.put_record(Ino::ROOT, &root);
            let seen = self.seen.entry(Ino::ROOT).or_default();
            *seen = Seen {
                kind: Some(libc::S_IFDIR),
                nlink: 2,
                parent: Ino::ROOT,
                ..*seen
            };
        }
        if is_last {
            self.make_lost_volumes()?;
        }
        self.inherit()?;
        self.ends_of_volumes()?;
        self.own_stale_directories()?;
        if is_last {
            self.keep_unseen()?;
        }
        self.remove_dangling()?;
        self.name_directories_once()?;
        if is_last {
            self.attach_unreachable()?;
        }
        self.give_volumes()?;
        self.count_links(stage)?;
        if is_last && self.depth.is_all() {
            self.tell()?;
        }
        Ok(())
    }

    /// Directories whose records were made anew belong to the volume of the directory that names them.
    fn give_volumes(&mut self) -> Result<(), ReadError> {
        loop {
            let wrong = self.seen.iter().find_map(|(ino, seen)| {
                // An inode of a clone has the clone in its number.
                if ino.cloned().is_some() {
                    return None;
                }
                let above = match seen.name_parent.cloned() {
                    Some((clone, _)) => clone,
                    None => self.seen.get(&seen.name_parent)?.volume,
                };
                (seen.is_new && seen.names > 0 && seen.volume != above).then_some((*ino, above))
            });
            let Some((ino, volume)) = wrong else {
                return Ok(());
            };
            if let Some(mut record) = self.record(ino)? {
                record.volume = volume.0.into();
                self.put_record(ino, &record);
            }
            if let Some(seen) = self.seen.get_mut(&ino) {
                seen.volume = volume;
            }
        }
    }

    fn is_missing(&self, ino: Ino) -> bool {
        self.seen.get(&ino).is_none_or(|seen| seen.kind.is_none())
    }

    fn is_of_removed(&self, ino: Ino) -> bool {
        let volume = ino.cloned().and_then(|(clone, _)| self.store.volume(clone));
        volume.is_some_and(|volume| volume.is_removed())
    }

    /// Removes names of inodes that are lost.
    fn remove_dangling(&mut self) -> Result<(), ReadError> {
        let dangling = self
            .seen
            .values()
            .any(|seen| seen.names > 0 && seen.kind.is_none());
        if dangling {
            for row in self.mended_rows(tag::DIRENT)? {
                let (parent, name, value) = row;
                let Ok(entry) = directory::decode(parent, &value) else {
                    continue;
                };
                // What is left of a clone that has been removed has no names that anybody knows.
                if !self.is_missing(Ino(entry.ino.get())) || self.is_of_removed(parent) {
                    continue;
                }
                self.remove_entry(parent, &name, &entry)?;
                let shown = String::from_utf8_lossy(&name).into_owned();
                self.trouble(parent, "lost", format!("{shown:?} in it is lost"));
            }
        }
        let orphans: Vec<Ino> = self
            .seen
            .iter()
            .filter(|(_, seen)| seen.is_orphan && (seen.kind.is_none() || seen.names > 0))
            .map(|(ino, _)| *ino)
            .collect();
        for ino in orphans {
            self.delete(orphan_key(ino));
            if let Some(seen) = self.seen.get_mut(&ino) {
                seen.is_orphan = false;
            }
        }
        Ok(())
    }

    /// A directory has one name: of several the one in the parent that its record names stays, or else the first.
    fn name_directories_once(&mut self) -> Result<(), ReadError> {
        let is_twice = |seen: &Seen| seen.kind == Some(libc::S_IFDIR) && seen.names > 1;
        if !self.seen.values().any(is_twice) {
            return Ok(());
        }
        let mut names: BTreeMap<Ino, Vec<(Ino, Vec<u8>, DirentRecord)>> = BTreeMap::new();
        for (parent, name, value) in self.mended_rows(tag::DIRENT)? {
            if let Ok(entry) = directory::decode(parent, &value)
                && self.seen.get(&Ino(entry.ino.get())).is_some_and(is_twice)
            {
                let all = names.entry(Ino(entry.ino.get())).or_default();
                all.push((parent, name, entry));
            }
        }
        for (ino, all) in names {
            let parent = self.seen[&ino].parent;
            let kept = all.iter().position(|(of, ..)| *of == parent).unwrap_or(0);
            for (at, (parent, name, entry)) in all.iter().enumerate() {
                if at != kept {
                    self.remove_entry(*parent, name, entry)?;
                    self.trouble(ino, "name", "an old name of it was left");
                }
            }
            if let Some(seen) = self.seen.get_mut(&ino) {
                seen.names = 1;
                seen.name_parent = all[kept].0;
            }
        }
        Ok(())
    }

    /// Removes both rows of an entry and uncounts it.
    fn remove_entry(
        &mut self,
        parent: Ino,
        name: &[u8],
        entry: &DirentRecord,
    ) -> Result<(), ReadError> {
        self.delete(key(parent, tag::DIRENT, name));
        let cookie = entry.cookie.get().to_be_bytes();
        self.delete(key(parent, tag::COOKIE, &cookie));
        if let Some(mut record) = self.record(parent)? {
            record.size = record.size.get().saturating_sub(1).into();
            self.put_record(parent, &record);
        }
        if u32::from(entry.kind) << 12 == libc::S_IFDIR {
            let seen = self.seen.entry(parent).or_default();
            seen.subdirectories = seen.subdirectories.saturating_sub(1);
        }
        Ok(())
    }

    /// All rows of one kind, with changes: inode, suffix, value.
    fn mended_rows(&self, wanted: u8) -> Result<Vec<(Ino, Vec<u8>, Vec<u8>)>, ReadError> {
        let mut rows = Vec::new();
        let take = |rows: &mut Vec<_>, row_key: &[u8], value: &[u8]| {
            if let Ok((ino, row_tag, suffix)) = split_key(row_key)
                && ino != Ino(0)
                && row_tag == wanted
            {
                rows.push((ino, suffix.to_vec(), value.to_vec()));
            }
        };
        for row in all_rows(self.store) {
            let (row_key, value) = row?;
            if !self.changes.contains_key(&row_key) {
                take(&mut rows, &row_key, &value);
            }
        }
        for (row_key, value) in &self.changes {
            if let Some(value) = value {
                take(&mut rows, row_key, value);
            }
        }
        Ok(rows)
    }

    /// Gives a name to inodes that have lost theirs.
    fn attach_unreachable(&mut self) -> Result<(), ReadError> {
        let mut unreachable: Vec<Ino> = self
            .seen
            .iter()
            .filter(|(ino, seen)| {
                seen.kind.is_some() && seen.names == 0 && !seen.is_orphan && !self.is_root(**ino)
            })
            .map(|(ino, _)| *ino)
            .collect();
        if unreachable.is_empty() {
            return Ok(());
        }
        unreachable.sort_unstable();
        let mut found_in: BTreeMap<VolumeId, Ino> = BTreeMap::new();
        for ino in unreachable {
            let volume = match self.seen[&ino] {
                Seen { is_new: true, .. } if ino.cloned().is_none() => VolumeId::ROOT,
                seen => seen.volume,
            };
            let root = self
                .volumes
                .get(&volume)
                .map_or(Ino::ROOT, |(root, _)| *root);
            let found = match found_in.get(&volume) {
                Some(found) => *found,
                None => {
                    let found = self.lost_and_found(volume, root)?;
                    found_in.insert(volume, found);
                    found
                }
            };
            if found_in.values().any(|found| *found == ino) {
                continue;
            }
            let kind = self.seen[&ino].kind.expect("filtered above");
            if kind == libc::S_IFDIR {
                // Its record names another directory.
                self.own_directory(ino)?;
            }
            let mut name = format!("inode-{ino}").into_bytes();
            while self.get(&key(found, tag::DIRENT, &name))?.is_some() {
                name.push(b'~');
            }
            self.add_entry(found, &name, ino, kind)?;
            self.trouble(ino, "name", "its name is lost");
        }
        Ok(())
    }

    /// The directory `lost+found` in the root of a volume, made if it is not there.
    fn lost_and_found(&mut self, volume: VolumeId, root: Ino) -> Result<Ino, ReadError> {
        self.own_directory(root)?;
        let present = self.get(&key(root, tag::DIRENT, LOST_AND_FOUND))?;
        let present = present.and_then(|bytes| directory::decode(root, &bytes).ok());
        if let Some(entry) = present
            && u32::from(entry.kind) << 12 == libc::S_IFDIR
            && !self.is_missing(Ino(entry.ino.get()))
        {
            return Ok(Ino(entry.ino.get()));
        }
        let unused = self.unused();
        let ino = match root.cloned() {
            None => unused,
            Some((clone, _)) => unused.in_clone(clone).unwrap_or(unused),
        };
        let mut record = self.new_directory(ino);
        record.volume = volume.0.into();
        self.put_record(ino, &record);
        self.seen.insert(
            ino,
            Seen {
                kind: Some(libc::S_IFDIR),
                nlink: 2,
                volume,
                ..Seen::default()
            },
        );
        // A file may have taken the name.
        let mut name = LOST_AND_FOUND.to_vec();
        while self.get(&key(root, tag::DIRENT, &name))?.is_some() {
            name.push(b'~');
        }
        self.add_entry(root, &name, ino, libc::S_IFDIR)?;
        Ok(ino)
    }

    /// A number that no inode has.
    pub(super) fn unused(&self) -> Ino {
        let highest = self.seen.keys().map(|ino| ino.base()).max();
        let highest = highest
            .unwrap_or(Ino::ROOT)
            .max(Ino(self.rebuilder.highest));
        let unused = self.store.next_ino().0.max(highest.0.saturating_add(1));
        Ino(unused.max(Ino::ROOT.0 + 1))
    }

    fn add_entry(
        &mut self,
        parent: Ino,
        name: &[u8],
        target: Ino,
        kind: u32,
    ) -> Result<(), ReadError> {
        let mut record = self.record(parent)?.unwrap_or_else(InodeRecord::default);
        let cookie = record.next_cookie.get().max(FIRST_COOKIE);
        record.next_cookie = cookie.saturating_add(1).into();
        record.size = record.size.get().saturating_add(1).into();
        self.put_record(parent, &record);
        let entry = DirentRecord {
            ino: target.0.into(),
            cookie: cookie.into(),
            timestamp: record.timestamp,
            kind: (kind >> 12) as u8,
        };
        self.put_entry(parent, name, &entry);
        self.count_entry(parent, target, entry.kind);
        Ok(())
    }

    /// The links of an inode and, of a directory, its parent, by the names that there are.
    fn links(&self, ino: Ino) -> (u32, Ino) {
        let seen = self.seen[&ino];
        let is_directory = seen.kind == Some(libc::S_IFDIR);
        let nlink = match (seen.is_orphan, is_directory) {
            (true, _) => 0,
            (false, true) => 2 + seen.subdirectories,
            (false, false) => seen.names,
        };
        // One without a name is a root, or becomes one, or gets a name at last.
        let is_named = is_directory && seen.names > 0 && !seen.is_orphan && !self.is_root(ino);
        match is_named {
            true => (nlink, seen.name_parent),
            false => (nlink, seen.parent),
        }
    }

    /// Sets links and parents to what the names say.
    fn count_links(&mut self, stage: MendStage) -> Result<(), ReadError> {
        let mut numbers: Vec<Ino> = self.seen.keys().copied().collect();
        numbers.sort_unstable();
        for ino in numbers {
            let seen = self.seen[&ino];
            let Some(kind) = seen.kind else {
                continue;
            };
            if self.links(ino) == (seen.nlink, seen.parent) {
                continue;
            }
            if seen.is_inherited {
                match (kind, stage) {
                    (libc::S_IFDIR, _) => self.own_directory(ino)?,
                    (_, MendStage::Last) => self.own_file(ino)?,
                    // What is put in the place of its lost content is not in the tables yet.
                    (_, MendStage::BeforeLog) => continue,
                }
                self.trouble(ino, "inode", AS_ORIGIN);
            }
            let (nlink, parent) = self.links(ino);
            if let Some(mut record) = self.record(ino)? {
                record.nlink = nlink.into();
                if inode::is_directory(&record) {
                    record.parent = parent.0.into();
                }
                self.put_record(ino, &record);
            }
        }
        Ok(())
    }

    /// Turns what was found into findings, with paths.
    fn tell(&mut self) -> Result<(), ReadError> {
        let mut troubles = std::mem::take(&mut self.rebuilder.troubles);
        // What is mended before the log is read and after it may be told twice.
        let mut known = HashSet::new();
        troubles.retain(|trouble| known.insert(trouble.clone()));
        let ranges: Vec<LostRange> = self.lost.iter().take(RANGES_TOLD).cloned().collect();
        if troubles.is_empty() && ranges.is_empty() {
            return Ok(());
        }
        let mut paths = Paths::default();
        let wanted: HashSet<Ino> = troubles.iter().map(|(ino, ..)| *ino).collect();
        let edges = ranges
            .iter()
            .flat_map(|range| [&range.after, &range.before])
            .flatten()
            .filter_map(|row_key| split_key(row_key).ok().map(|(ino, ..)| ino));
        let wanted: HashSet<Ino> = wanted.into_iter().chain(edges).collect();
        for (parent, name, value) in self.mended_rows(tag::DIRENT)? {
            let Ok(entry) = directory::decode(parent, &value) else {
                continue;
            };
            let ino = Ino(entry.ino.get());
            if u32::from(entry.kind) << 12 == libc::S_IFDIR {
                paths.directories.insert(ino, (parent, name));
            } else if wanted.contains(&ino) {
                paths.others.insert(ino, (parent, name));
            }
        }
        for (root, junction) in self.volumes.values() {
            if let Some(place) = paths.directories.get(junction).cloned() {
                paths.directories.insert(*root, place);
            }
        }
        let mut told: BTreeMap<(String, &'static str), String> = BTreeMap::new();
        for (ino, id, sentence) in troubles {
            told.entry((paths.of(ino), id))
                .and_modify(|all| {
                    all.push_str("; ");
                    all.push_str(&sentence);
                })
                .or_insert(sentence);
        }
        for ((object, id), sentence) in told {
            self.find(id, object, sentence);
        }
        for range in &ranges {
            let edge = |row_key: &Option<Vec<u8>>, none: &str| match row_key {
                Some(row_key) => describe(row_key, &paths),
                None => none.to_owned(),
            };
            let sentence = format!(
                "from behind {} to before {}: what was made or changed there may be lost without a trace",
                edge(&range.after, "the first row"),
                edge(&range.before, "the end")
            );
            self.find("rows", "a damaged block of the tables".to_owned(), sentence);
        }
        self.rebuilder.findings_omitted += (self.lost.len() - ranges.len()) as u64;
        let snapshots = system_key(tag::SNAPSHOT, &[])..system_key(tag::SNAPSHOT + 1, &[]);
        let may_lack_snapshots = self.lost.iter().any(|range| {
            let is_before = |row_key: &Vec<u8>| *row_key < snapshots.end;
            let is_behind = |row_key: &Vec<u8>| *row_key > snapshots.start;
            range.after.as_ref().is_none_or(is_before)
                && range.before.as_ref().is_none_or(is_behind)
        });
        if may_lack_snapshots {
            let sentence = "the list of snapshots has lost a part: some may be missing in it";
            self.find(
                "snapshots",
                "the list of snapshots".to_owned(),
                sentence.to_owned(),
            );
        }
        Ok(())
    }
}

/// A row in words.
fn describe(row_key: &[u8], paths: &Paths) -> String {
    match split_key(row_key) {
        Ok((Ino(0), ..)) | Err(_) => "the system's own rows".to_owned(),
        Ok((ino, tag::DIRENT, name)) => {
            format!("{:?} in {}", String::from_utf8_lossy(name), paths.of(ino))
        }
        Ok((ino, tag::EXTENT, suffix)) if suffix.len() == 8 => {
            let offset = u64::from_be_bytes(suffix.try_into().expect("eight bytes"));
            format!("byte {offset} of {}", paths.of(ino))
        }
        Ok((ino, ..)) => paths.of(ino),
    }
}
