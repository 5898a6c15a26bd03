//! Inodes, names and volumes: link counts, parents, entries by name and by cookie, orphans, sizes, counters.

use std::collections::{BTreeMap, HashMap, HashSet};

use cfs_format::table::{InodeRecord, LOCK_NAME, inode_flag, key, tag};
use cfs_format::{DomainId, Ino, VolumeId};
use cfs_seal::keys::FileKey;
use cfs_store::{Frozen, Store};

use super::CheckReport;
use super::chunks::Chunks;
use crate::directory::{self, FIRST_COOKIE};
use crate::error::Result;
use crate::history::Table;
use crate::{clone, extent, inode};

/// What the rows seen so far say about an inode; either side may come first.
#[derive(Default)]
struct Seen {
    /// Type bits and link count of its record.
    record: Option<(u32, u32)>,
    /// The parent that a directory's record names.
    parent: Ino,
    /// Entries that point to it; of one that a clone has from its origin, with those there that count still.
    names: i64,
    /// Type bits in the last of them.
    name_kind: u32,
    /// Directory of the last of them.
    name_parent: Ino,
    /// Directories among its own entries.
    subdirectories: u32,
    orphan: bool,
    volume: u32,
    /// It says that a volume is seen in its place.
    is_junction: bool,
    /// A clone says that it has removed what its origin has.
    is_gone: bool,
    /// Names that its clone's origin gives it in directories that the clone has of its own or has removed.
    lost_names: i64,
}

/// Sums over the rows of the inode that the pass is at.
#[derive(Default)]
struct Rows {
    ino: Ino,
    record: Option<InodeRecord>,
    /// It is of a clone that has been removed: its rows go one by one.
    is_leftover: bool,
    rows: u64,
    file_key: Option<FileKey>,
    inline: Option<u64>,
    xattrs: u64,
    /// Whether its lock is one, if it has the row.
    lock: Option<bool>,
    extent_bytes: u64,
    extents_end: u64,
    entries: u64,
    cookies: u64,
    last_cookie: u64,
}

#[derive(Default)]
struct VolumeSums {
    inodes: u64,
    logical_bytes: u64,
    allocated_bytes: u64,
}

pub(super) struct Inodes<'a> {
    store: &'a Store,
    frozen: &'a Frozen,
    at: Rows,
    seen: HashMap<Ino, Seen>,
    volumes: BTreeMap<u32, VolumeSums>,
    /// The roots of the volumes.
    roots: HashSet<Ino>,
}

impl<'a> Inodes<'a> {
    pub(super) fn new(store: &'a Store, frozen: &'a Frozen) -> Self {
        Self {
            store,
            frozen,
            at: Rows::default(),
            seen: HashMap::new(),
            volumes: BTreeMap::new(),
            roots: frozen
                .volumes
                .iter()
                .filter(|(_, volume)| !volume.is_removed())
                .map(|(_, volume)| Ino(volume.root.get()))
                .collect(),
        }
    }

    /// Notes a row that says that an inode has no name.
    pub(super) fn orphan_row(&mut self, suffix: &[u8], report: &mut CheckReport) {
        match suffix.try_into() {
            Ok(ino) => {
                let ino = Ino(u64::from_be_bytes(ino));
                let clone = ino
                    .cloned()
                    .and_then(|(clone, _)| self.frozen.volume(clone));
                // Goes with the other rows of a clone that has been removed.
                if !clone.is_some_and(|clone| clone.is_removed()) {
                    self.seen.entry(ino).or_default().orphan = true;
                }
            }
            Err(_) => report.add(
                "key",
                "orphan row",
                format!("its key ends in {suffix:02x?}"),
            ),
        }
    }

    /// Notes a row of an inode. Rows come in key order.
    pub(super) fn row(
        &mut self,
        ino: Ino,
        row_tag: u8,
        suffix: &[u8],
        (row_key, value): (&Vec<u8>, &Vec<u8>),
        chunks: &mut Chunks,
        report: &mut CheckReport,
    ) -> Result<()> {
        if ino != self.at.ino {
            self.finish_inode(report)?;
            self.at.ino = ino;
        }
        self.at.rows += 1;
        match row_tag {
            tag::INODE => self.inode_row(ino, value, report),
            tag::INLINE => match crate::row::content(value.clone()) {
                Ok(content) => self.at.inline = Some(content.len() as u64),
                Err(error) => report.add("record", inode_name(ino), error.to_string()),
            },
            tag::XATTR => {
                self.at.xattrs += 1;
                if suffix == LOCK_NAME {
                    self.at.lock = Some(crate::lock::is_sound(value.clone()));
                }
            }
            tag::EXTENT => self.extent_row(ino, (row_key, value), chunks, report),
            tag::DIRENT => self.entry_row(ino, suffix, value, report),
            tag::COOKIE => return self.cookie_row(ino, row_key, value, report),
            other => report.add(
                "key",
                inode_name(ino),
                format!("a row has the unknown tag {other:#x}"),
            ),
        }
        Ok(())
    }

    fn inode_row(&mut self, ino: Ino, value: &[u8], report: &mut CheckReport) {
        let record = match inode::decode(ino, value) {
            Ok(record) => record,
            Err(error) => return report.add("record", inode_name(ino), error.to_string()),
        };
        let volume = VolumeId(record.volume.get());
        if ino.cloned().is_some_and(|(clone, _)| clone != volume) {
            let sentence = format!("its number is not one of volume {volume}");
            report.add("volume", inode_name(ino), sentence);
        }
        let volume_record = self.frozen.volume(volume);
        let is_leftover = volume_record.is_some_and(|volume| volume.is_removed());
        if clone::is_gone(&record) {
            self.seen.entry(ino).or_default().is_gone = !is_leftover;
            self.at.record = Some(record);
            self.at.is_leftover = is_leftover;
            return;
        }
        report.inodes += 1;
        let secret = volume_record
            .and_then(|volume| self.store.domain_secret(DomainId(volume.domain.get())));
        match secret {
            Some(secret) => self.at.file_key = Some(FileKey::derive(&secret, &record.salt)),
            None => {
                let sentence = format!("volume {volume} or its dedup domain is missing");
                report.add("volume", inode_name(ino), sentence);
            }
        }
        if is_leftover {
            self.at.is_leftover = true;
            self.at.record = Some(record);
            return;
        }
        let sums = self.volumes.entry(volume.0).or_default();
        sums.inodes += 1;
        if !inode::is_directory(&record) {
            sums.logical_bytes = sums.logical_bytes.wrapping_add(record.size.get());
            sums.allocated_bytes += record.allocated.get();
        }
        self.at.record = Some(record);
        // While it is copied the origin's counts.
        if clone::is_own(&record) {
            self.note(ino, &record);
        }
    }

    fn note(&mut self, ino: Ino, record: &InodeRecord) {
        let seen = self.seen.entry(ino).or_default();
        seen.record = Some((inode::kind(record), record.nlink.get()));
        seen.parent = Ino(record.parent.get());
        seen.volume = record.volume.get();
        seen.is_junction = inode::is_junction(record);
    }

    fn extent_row(
        &mut self,
        ino: Ino,
        (row_key, value): (&Vec<u8>, &Vec<u8>),
        chunks: &mut Chunks,
        report: &mut CheckReport,
    ) {
        report.extents += 1;
        let Some(file_key) = &self.at.file_key else {
            return;
        };
        match extent::decode_row(ino, file_key, &(row_key.clone(), value.clone())) {
            Ok(extent) => {
                if extent.offset < self.at.extents_end {
                    let sentence = format!("extents overlap at offset {}", extent.offset);
                    report.add("extents", inode_name(ino), sentence);
                }
                self.at.extents_end = extent.end();
                self.at.extent_bytes += u64::from(extent.len);
                chunks.extent(&extent);
            }
            Err(error) => report.add("record", inode_name(ino), error.to_string()),
        }
    }

    fn entry_row(&mut self, parent: Ino, name: &[u8], value: &[u8], report: &mut CheckReport) {
        let entry = match directory::decode(parent, value) {
            Ok(entry) => entry,
            Err(error) => return report.add("record", inode_name(parent), error.to_string()),
        };
        report.entries += 1;
        self.at.entries += 1;
        if directory::check_name(name).is_err() {
            let sentence = format!("the name {:?} is none", String::from_utf8_lossy(name));
            report.add("name", inode_name(parent), sentence);
        }
        // Entries of a copy that is not complete do not count yet.
        if !self.at.record.as_ref().is_none_or(clone::is_own) || self.at.is_leftover {
            return;
        }
        let kind = u32::from(entry.kind) << 12;
        let target = self.seen.entry(Ino(entry.ino.get())).or_default();
        target.names += 1;
        target.name_kind = kind;
        target.name_parent = parent;
        if kind == libc::S_IFDIR {
            self.seen.entry(parent).or_default().subdirectories += 1;
        }
    }

    /// A cookie row must belong to an entry that says the same; with equal numbers of both, each has its other.
    fn cookie_row(
        &mut self,
        parent: Ino,
        row_key: &[u8],
        value: &[u8],
        report: &mut CheckReport,
    ) -> Result<()> {
        self.at.cookies += 1;
        let (record, name, cookie) = match directory::decode_cookie(parent, value)
            .and_then(|(record, name)| Ok((record, name, directory::cookie_of_key(row_key)?)))
        {
            Ok(decoded) => decoded,
            Err(error) => {
                report.add("record", inode_name(parent), error.to_string());
                return Ok(());
            }
        };
        self.at.last_cookie = cookie;
        if self.at.is_leftover {
            return Ok(());
        }
        let entry = self
            .frozen
            .meta
            .get(&key(parent, tag::DIRENT, name))
            .map_err(cfs_store::ReadError::from)?;
        let agrees = entry
            .and_then(|entry| directory::decode(parent, &entry).ok())
            .is_some_and(|entry| {
                (entry.ino, entry.kind, entry.cookie.get()) == (record.ino, record.kind, cookie)
            });
        if !agrees {
            let sentence = format!(
                "cookie {cookie} belongs to {:?}, which is not there or says otherwise",
                String::from_utf8_lossy(name)
            );
            report.add("cookie", inode_name(parent), sentence);
        }
        Ok(())
    }

    /// All rows of the inode that the pass was at have been seen.
    fn finish_inode(&mut self, report: &mut CheckReport) -> Result<()> {
        let at = std::mem::take(&mut self.at);
        if at.ino == Ino(0) || at.is_leftover {
            return Ok(());
        }
        let name = inode_name(at.ino);
        let Some(record) = at.record else {
            report.add(
                "rows",
                name,
                "there are rows without an inode record".to_owned(),
            );
            return Ok(());
        };
        if record.flags.get() & inode_flag::COPYING == 0 {
            self.take_names(at.ino)?;
        }
        if clone::is_gone(&record) {
            if at.rows > 1 {
                let sentence = "it has been removed from its clone, and has rows".to_owned();
                report.add("clone", &name, sentence);
            }
            return Ok(());
        }
        let flags = record.flags.get();
        if at.inline.is_some() != (flags & inode_flag::INLINE != 0) {
            report.add(
                "inline",
                &name,
                "its flag for inline content is wrong".to_owned(),
            );
        }
        if at.xattrs > 0 && flags & inode_flag::XATTRS == 0 {
            report.add(
                "xattrs",
                &name,
                "it has attributes and no flag for them".to_owned(),
            );
        }
        let is_locked = flags & inode_flag::LOCKED != 0;
        if at.lock != is_locked.then_some(true) {
            report.add(
                "lock",
                &name,
                "its lock and its flag for one do not agree".to_owned(),
            );
        }
        if inode::is_directory(&record) {
            let next_cookie = record.next_cookie.get();
            report.expect_equal(
                "entries",
                &name,
                "the count of entries",
                (record.size.get(), at.entries),
            );
            report.expect_equal(
                "cookie",
                &name,
                "the number of cookie rows",
                (at.cookies, at.entries),
            );
            if at.cookies > 0 && !(FIRST_COOKIE..next_cookie).contains(&at.last_cookie) {
                let sentence = format!("cookie {} is not below {next_cookie}", at.last_cookie);
                report.add("cookie", &name, sentence);
            }
        } else if at.entries + at.cookies > 0 {
            report.add(
                "entries",
                &name,
                "it is no directory and has entries".to_owned(),
            );
        }
        let is_regular = inode::kind(&record) == libc::S_IFREG;
        if !is_regular && at.extents_end > 0 {
            report.add(
                "extents",
                &name,
                "it is no regular file and has extents".to_owned(),
            );
        }
        if at.extents_end > record.size.get() && is_regular {
            let sentence = format!(
                "its extents end at {}, beyond its size of {}",
                at.extents_end,
                record.size.get()
            );
            report.add("extents", &name, sentence);
        }
        if at.inline.is_some() && at.extents_end > 0 {
            report.add(
                "extents",
                &name,
                "it has extents and inline content".to_owned(),
            );
        }
        if let Some(inline) = at.inline {
            report.expect_equal("size", &name, "the size", (record.size.get(), inline));
        }
        let held = at.inline.unwrap_or(0) + at.extent_bytes;
        report.expect_equal(
            "allocated",
            &name,
            "the count of allocated bytes",
            (record.allocated.get(), held),
        );
        Ok(())
    }

    /// What its origin names in a directory that a clone has of its own, or has removed, is not named by that any more.
    fn take_names(&mut self, ino: Ino) -> Result<()> {
        let Some(found) = clone::inherited(self.frozen, ino)? else {
            return Ok(());
        };
        if inode::is_directory(&found.record) {
            for entry in clone::entries(self.frozen, ino, &found) {
                let (target, _) = entry?;
                self.seen.entry(target).or_default().lost_names += 1;
            }
        }
        Ok(())
    }

    /// Adds what the origins of clones have of the inodes that were met: a name for each that counts still, and all else of
    /// those that are the origin's still.
    fn inherit(&mut self, report: &mut CheckReport) -> Result<()> {
        for root in &self.roots {
            self.seen.entry(*root).or_default();
        }
        let mut of_clones: Vec<Ino> = self.seen.keys().copied().collect();
        of_clones.retain(|ino| ino.cloned().is_some());
        of_clones.sort_unstable();
        for ino in of_clones {
            let found = clone::inherited(self.frozen, ino)?;
            let is_root = self.roots.contains(&ino);
            let seen = self.seen.entry(ino).or_default();
            let Some(found) = found else {
                if seen.is_gone {
                    let sentence = "its clone has removed it, and the origin has it not".to_owned();
                    report.add("clone", inode_name(ino), sentence);
                }
                continue;
            };
            let record = &found.record;
            let inherited = match (inode::is_directory(record), is_root) {
                (true, true) => 0,
                (true, false) => 1,
                (false, _) => i64::from(record.nlink.get()),
            };
            if seen.names == 0 && inherited > seen.lost_names {
                // Of what is no directory: some directory of the clone.
                seen.name_parent = match inode::is_directory(record) {
                    true => Ino(record.parent.get()),
                    false => ino,
                };
            }
            seen.names += inherited - seen.lost_names;
            if seen.name_kind == 0 {
                seen.name_kind = inode::kind(record);
            }
            if seen.record.is_none() && !seen.is_gone {
                let is_directory = inode::is_directory(record);
                seen.subdirectories = match is_directory {
                    true => record.nlink.get().saturating_sub(2),
                    false => 0,
                };
                self.note(ino, record);
            }
        }
        Ok(())
    }

    /// All rows have been seen.
    ///
    /// # Errors
    /// When a table cannot be read.
    pub(super) fn finish(mut self, report: &mut CheckReport) -> Result<()> {
        self.finish_inode(report)?;
        self.inherit(report)?;
        let mut numbers: Vec<Ino> = self.seen.keys().copied().collect();
        numbers.sort_unstable();
        for ino in &numbers {
            self.check_links(*ino, &self.seen[ino], report);
        }
        self.check_circles(&numbers, report);
        self.check_volumes(&numbers, report);
        for (volume, record) in &self.frozen.volumes {
            if record.is_removed() {
                continue;
            }
            let sums = self.volumes.remove(&volume.0).unwrap_or_default();
            for (what, is, should_be) in [
                ("the count of inodes", record.inode_count, sums.inodes),
                (
                    "the bytes of content",
                    record.logical_bytes,
                    sums.logical_bytes,
                ),
                (
                    "the allocated bytes",
                    record.allocated_bytes,
                    sums.allocated_bytes,
                ),
            ] {
                let object = format!("volume {volume}");
                report.expect_equal("volume-counters", object, what, (is.get(), should_be));
            }
        }
        Ok(())
    }

    fn check_links(&self, ino: Ino, seen: &Seen, report: &mut CheckReport) {
        let name = inode_name(ino);
        let Some((kind, nlink)) = seen.record else {
            if seen.names != 0 {
                let sentence =
                    format!("directory {} names it, and it is missing", seen.name_parent);
                report.add("inode-missing", &name, sentence);
            }
            if seen.orphan {
                report.add(
                    "orphan",
                    &name,
                    "it is listed as an orphan, and it is missing".to_owned(),
                );
            }
            if seen.subdirectories > 0 && seen.names == 0 {
                report.add(
                    "inode-missing",
                    &name,
                    "it has entries, and it is missing".to_owned(),
                );
            }
            return;
        };
        if seen.orphan != (nlink == 0) {
            let sentence = format!(
                "its link count is {nlink}, and it is {}listed as an orphan",
                if seen.orphan { "" } else { "not " }
            );
            report.add("orphan", &name, sentence);
        }
        if seen.names > 0 && seen.name_kind != kind {
            let sentence = format!(
                "its type is {kind:#o}, and its entry in directory {} says {:#o}",
                seen.name_parent, seen.name_kind
            );
            report.add("kind", &name, sentence);
        }
        let links = if kind != libc::S_IFDIR {
            seen.names
        } else if seen.names > 0 || self.roots.contains(&ino) {
            2 + i64::from(seen.subdirectories)
        } else {
            0
        };
        report.expect_equal(
            "links",
            &name,
            "the link count",
            (u64::from(nlink), links as u64),
        );
        if kind != libc::S_IFDIR {
            return;
        }
        let is_root = self.roots.contains(&ino);
        let names_max = i64::from(!is_root);
        if seen.names > names_max {
            report.add(
                "directory-names",
                &name,
                format!("it is a directory with {} names", seen.names),
            );
        }
        let named_in = if is_root { ino } else { seen.name_parent };
        if (seen.names > 0 || is_root) && seen.parent != named_in {
            let sentence = format!("its parent is {} and should be {named_in}", seen.parent);
            report.add("parent", &name, sentence);
        }
    }

    /// Directories that are named in each other, out of the root's reach.
    fn check_circles(&self, numbers: &[Ino], report: &mut CheckReport) {
        let mut good: HashSet<Ino> = self.roots.clone();
        for start in numbers.iter().filter(|ino| self.is_directory(**ino)) {
            let mut path = HashSet::new();
            let mut at = *start;
            while !good.contains(&at) {
                if !path.insert(at) {
                    report.add(
                        "circle",
                        inode_name(at),
                        "the directories above it form a circle".to_owned(),
                    );
                    break;
                }
                match self.seen.get(&at) {
                    Some(seen) if seen.names > 0 => at = seen.name_parent,
                    // Without a name: judged by its link count.
                    _ => break,
                }
            }
            good.extend(path);
        }
    }

    /// Each volume has a root of its own and, but for the first, a junction, an empty directory that says so and has a
    /// name; and names do not lead from one volume into another.
    fn check_volumes(&self, numbers: &[Ino], report: &mut CheckReport) {
        let mut junctions: HashSet<Ino> = HashSet::new();
        for (id, volume) in &self.frozen.volumes {
            if volume.is_removed() {
                continue;
            }
            let name = format!("volume {id}");
            let (root, junction) = (Ino(volume.root.get()), Ino(volume.junction.get()));
            let is_its = |seen: &Seen| seen.volume == id.0;
            if !self.is_directory(root) || !self.seen.get(&root).is_some_and(is_its) {
                report.add(
                    "volume-root",
                    &name,
                    format!("its root, inode {root}, is no directory of it"),
                );
            }
            if (junction == Ino(0)) != (root == Ino::ROOT) || !junctions.insert(junction) {
                report.add(
                    "junction",
                    &name,
                    format!("it cannot be seen in the place of inode {junction}"),
                );
            }
            let is_good =
                |seen: &Seen| seen.is_junction && seen.names == 1 && seen.subdirectories == 0;
            if junction != Ino(0) && !self.seen.get(&junction).is_some_and(is_good) {
                report.add(
                    "junction",
                    &name,
                    format!(
                        "inode {junction} is no empty directory with a name that stands for it"
                    ),
                );
            }
        }
        for ino in numbers {
            let seen = &self.seen[ino];
            if seen.is_junction && !junctions.contains(ino) {
                let sentence = "it stands for a volume that is missing".to_owned();
                report.add("junction", inode_name(*ino), sentence);
            }
            // A directory that is its origin's still need not have been met.
            let above = match seen.name_parent.cloned() {
                Some((clone, _)) => Some(clone.0),
                None => self.seen.get(&seen.name_parent).map(|above| above.volume),
            };
            if seen.names > 0 && seen.record.is_some() && above != Some(seen.volume) {
                let sentence = format!(
                    "it is of volume {}, and directory {} that names it is not",
                    seen.volume, seen.name_parent
                );
                report.add("volume", inode_name(*ino), sentence);
            }
        }
    }

    fn is_directory(&self, ino: Ino) -> bool {
        self.seen
            .get(&ino)
            .and_then(|seen| seen.record)
            .is_some_and(|(kind, _)| kind == libc::S_IFDIR)
    }
}

fn inode_name(ino: Ino) -> String {
    format!("inode {ino}")
}
