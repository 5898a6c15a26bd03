//! Bringing back what a snapshot shows: by reference, each file in one step.
//!
//! A file that is there gets content and attributes by one command; one that is missing is made without a name, gets
//! them, and then its name. A directory lets pass whom the snapshot lets pass before anything comes into it. What was made
//! since stays, unless its removal is asked for; what is as it was is left alone.

use std::collections::{HashMap, HashSet};

use cfs_format::Ino;

use crate::command::{Command, Restore};
use crate::error::{FsError, Result};
use crate::types::{Attr, Caller, RenameFlags, Room};
use crate::views::Snapshot;
use crate::{Fs, acl, inode};

/// Entries of a directory that are read at once.
const ENTRIES_AT_ONCE: usize = 256;

/// What the names of files that are about to take the place of others begin with.
const TEMPORARY_NAME: &str = ".cfs-restore-";

/// Room that a command may need beside what it does for its extents, bytes.
const GROWTH_BYTES: u64 = 16 << 10;
/// Bytes of content for each byte that its extents may take in tables and log.
const CONTENT_PER_ROW_BYTE: u64 = 128;

/// Restoring as root: the attributes are set from the snapshot.
const ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 0,
    umask: 0,
};

/// What is to be told of while a snapshot is restored.
pub trait RestoreObserver {
    /// Attributes or content of an inode have changed.
    fn inode_changed(&mut self, ino: Ino);
    /// What a name stands for has changed.
    fn entry_changed(&mut self, parent: Ino, name: &[u8]);
    /// An object could not be restored; the rest goes on.
    fn problem(&mut self, path: &[u8], error: &FsError);
    /// Whether to go on.
    fn goes_on(&mut self) -> bool;
}

/// What restoring has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Objects that were brought back or changed.
    pub restored: u64,
    /// Objects that were as they should be.
    pub unchanged: u64,
    /// Objects made since that were removed.
    pub removed: u64,
    /// Objects that could not be restored; each was told of.
    pub problems: u64,
}

/// One run.
struct Run<'a> {
    fs: &'a Fs,
    snapshot: &'a Snapshot,
    removes_new: bool,
    observer: &'a mut dyn RestoreObserver,
    done: Restored,
    /// Directories whose attributes are set when all in them is done.
    directories: Vec<Entered>,
    /// Files with several names that have been brought back: in the snapshot, now.
    linked: HashMap<Ino, Ino>,
    /// What those are now.
    standing: HashSet<Ino>,
}

/// A directory in which things are brought back.
struct Entered {
    /// In the snapshot.
    then: Ino,
    /// Now.
    now: Ino,
    /// It had to be changed before.
    changes: bool,
}

/// A name to bring back.
struct Wanted<'a> {
    parent: Ino,
    name: &'a [u8],
    path: &'a [u8],
    /// What the snapshot shows.
    then: Attr,
}

impl Fs {
    /// Makes what is at `below`, a path in the snapshot's directory, and all below it as the snapshot shows it. The
    /// directory is looked for at `path`, and made again where it is missing, as are those above it, which are root's alone
    /// then. With `removes_new` what the snapshot does not show is removed. Times of access and of change do not count where
    /// it is asked whether something is as it was.
    ///
    /// # Errors
    /// [`FsError::NotFound`] when the snapshot does not show it, [`FsError::Volume`] when another volume is there now:
    /// nothing has changed then but that missing directories above were made; [`FsError::Stale`];
    /// [`FsError::ReadOnly`], [`FsError::NoSpace`]: what was done until then stays. All else is told to the observer.
    pub fn snapshot_restore(
        &self,
        snapshot: &Snapshot,
        path: &[u8],
        below: &[u8],
        removes_new: bool,
        observer: &mut dyn RestoreObserver,
    ) -> Result<Restored> {
        let parts = |path: &[u8]| -> Vec<Vec<u8>> {
            let parts = path.split(|byte| *byte == b'/');
            let parts = parts.filter(|part| !part.is_empty() && *part != b".");
            parts.map(<[u8]>::to_vec).collect()
        };
        let root = snapshot.directory.in_view(snapshot.view);
        let mut then = vec![self.getattr(root.ok_or(FsError::TooLarge)?)?];
        for part in parts(below) {
            let last = then[then.len() - 1];
            then.push(self.lookup(last.ino, &part)?);
        }
        let mut run = Run {
            fs: self,
            snapshot,
            removes_new,
            observer,
            done: Restored::default(),
            directories: Vec::new(),
            linked: HashMap::new(),
            standing: HashSet::new(),
        };
        let mut at = Ino::ROOT;
        let mut told = Vec::new();
        let mut is_new = false;
        for part in parts(path) {
            told.push(b'/');
            told.extend_from_slice(&part);
            (at, is_new) = run.directory(at, &part)?;
        }
        run.check_volume(at)?;
        if is_new && !parts(below).is_empty() {
            run.enter(then[0].ino, at)?;
        }
        // Those on the way are brought back as directories, and nothing else in them.
        let names = parts(below);
        let on_the_way = then.len() - 1;
        for (index, name) in names.iter().enumerate() {
            let wanted = Wanted {
                parent: at,
                name,
                path: &[&told[..], b"/", name].concat(),
                then: then[index + 1],
            };
            told = wanted.path.to_vec();
            if index + 1 < on_the_way {
                (at, is_new) = run.directory(at, name)?;
                run.check_volume(at)?;
                if is_new {
                    run.enter(wanted.then.ino, at)?;
                }
                continue;
            }
            if wanted.then.kind() != libc::S_IFDIR {
                let result = run.bring_back(&wanted);
                run.tell(&told, result)?;
                run.finish_directories()?;
                return Ok(run.done);
            }
            (at, _) = run.directory(at, name)?;
            run.check_volume(at)?;
        }
        run.tree(then[on_the_way].ino, at, told)?;
        Ok(run.done)
    }
}

/// Whether a number in a snapshot is that of an inode of its volume as it is now.
fn is_same(then: Ino, now: Ino) -> bool {
    then.base() == now.base()
}

/// Whether what one object meets is met by all that follow.
fn ends_all(error: &FsError) -> bool {
    matches!(
        error,
        FsError::ReadOnly(_) | FsError::NoSpace | FsError::Stale
    )
}

impl Run<'_> {
    /// The directory with this name, and whether it was missing and has been made.
    fn directory(&mut self, parent: Ino, name: &[u8]) -> Result<(Ino, bool)> {
        match self.fs.lookup(parent, name) {
            Ok(attr) if attr.kind() == libc::S_IFDIR => Ok((attr.ino, false)),
            Ok(_) => Err(FsError::NotDirectory),
            Err(FsError::NotFound) => {
                let made = self
                    .fs
                    .mkdir_reserved(parent, name, 0o700, &ROOT, Room::Free)?;
                self.observer.entry_changed(parent, name);
                Ok((made.ino, true))
            }
            Err(error) => Err(error),
        }
    }

    /// A snapshot shows the volumes below it empty, which says nothing of what is in them.
    fn check_volume(&self, directory: Ino) -> Result<()> {
        match self.fs.getattr(directory)?.volume == self.snapshot.volume {
            true => Ok(()),
            false => Err(FsError::Volume),
        }
    }

    /// Counts what became of an object. What ends everything is passed on.
    fn tell(&mut self, path: &[u8], result: Result<bool>) -> Result<()> {
        match result {
            Ok(true) => self.done.restored += 1,
            Ok(false) => self.done.unchanged += 1,
            Err(error) if ends_all(&error) => return Err(error),
            Err(error) => {
                self.done.problems += 1;
                self.observer.problem(path, &error);
            }
        }
        Ok(())
    }

    fn tree(&mut self, then: Ino, now: Ino, path: Vec<u8>) -> Result<()> {
        let mut waiting = vec![(then, now, path)];
        while let Some((then, now, path)) = waiting.pop() {
            self.enter(then, now)?;
            if self.removes_new {
                self.remove_new(then, now, &path)?;
            }
            let limit = self.fs.dir_limit(then)?;
            let mut cookie = 0;
            loop {
                let entries = self.fs.read_dir(then, cookie, limit, ENTRIES_AT_ONCE)?;
                let Some(last) = entries.last() else {
                    break;
                };
                cookie = last.cookie;
                for entry in &entries {
                    if !self.observer.goes_on() {
                        return self.finish_directories();
                    }
                    let wanted = Wanted {
                        parent: now,
                        name: &entry.name,
                        path: &[&path[..], b"/", &entry.name].concat(),
                        then: self.fs.getattr(entry.ino)?,
                    };
                    if entry.kind != libc::S_IFDIR {
                        let result = self.bring_back(&wanted);
                        self.tell(wanted.path, result)?;
                        continue;
                    }
                    match self.directory(now, &entry.name) {
                        // A volume has snapshots of its own.
                        Ok((ino, _)) if self.fs.views.junction(ino).is_some() => {}
                        Ok((ino, _)) => waiting.push((entry.ino, ino, wanted.path.to_vec())),
                        Err(error) => self.tell(wanted.path, Err(error))?,
                    }
                }
            }
        }
        self.finish_directories()
    }

    /// Notes a directory in which things are brought back, and has it let pass those whom it let pass then.
    fn enter(&mut self, then: Ino, now: Ino) -> Result<()> {
        let permissions = |ino| -> Result<_> {
            let attr = self.fs.getattr(ino)?;
            let acl = match self.fs.getxattr(ino, acl::ACCESS) {
                Ok(acl) => Some(acl),
                Err(FsError::NoData) => None,
                Err(error) => return Err(error),
            };
            Ok((attr.mode, attr.uid, attr.gid, acl))
        };
        let mut changes = false;
        if permissions(then)? != permissions(now)? {
            changes = match self.set(then, now) {
                Ok(()) => true,
                Err(error) if ends_all(&error) => return Err(error),
                // It is told of when all in it is done.
                Err(_) => false,
            };
        }
        self.directories.push(Entered { then, now, changes });
        Ok(())
    }

    /// Attributes of directories, the deepest first, since making entries changes their times.
    fn finish_directories(&mut self) -> Result<()> {
        while let Some(Entered { then, now, changes }) = self.directories.pop() {
            let changed = match self.is_as_then(then, now) {
                Ok(true) => Ok(changes),
                Ok(false) => self.set(then, now).map(|()| true),
                Err(error) => Err(error),
            };
            self.tell(b"", changed)?;
        }
        Ok(())
    }

    /// Whether an inode is what the snapshot shows, but for times of access and of change.
    fn is_as_then(&self, then: Ino, now: Ino) -> Result<bool> {
        // Before the record is read, or what is committed in between would be seen nowhere.
        if self.fs.files.is_dirty(now) {
            return Ok(false);
        }
        if is_same(then, now) {
            let record = inode::committed(&self.fs.store, now)?;
            let record = record.ok_or(FsError::NotFound)?;
            if record.timestamp.get() <= self.snapshot.timestamp.0 {
                return Ok(true);
            }
        }
        self.fs.is_restored(then, now)
    }

    /// Gives an inode content and attributes of one in the snapshot.
    fn set(&mut self, then: Ino, now: Ino) -> Result<()> {
        let source = self.fs.views.place(then)?;
        let at = source.at.ok_or(FsError::Stale)?;
        let allocated = self.fs.getattr(then)?.allocated_bytes;
        let room_bytes = GROWTH_BYTES + allocated / CONTENT_PER_ROW_BYTE;
        let command = |now_is| {
            Command::Restore(Restore {
                source: source.ino,
                at,
                target: now,
                now: now_is,
            })
        };
        let record = inode::committed(&self.fs.store, now)?.ok_or(FsError::NotFound)?;
        self.fs.with_room(|| {
            let _room = self.fs.store.admit(room_bytes)?;
            match inode::kind(&record) {
                libc::S_IFREG => {
                    let _open = self.fs.gate.read();
                    self.fs.closed.check_content(&self.fs.store, now)?;
                    self.fs.files.change_at_rest(now, command)
                }
                _ => self.fs.execute(|_, time| Ok(command(time))).map(drop),
            }
        })?;
        self.fs.atimes.forget(now);
        self.observer.inode_changed(now);
        Ok(())
    }

    /// Brings back what is no directory. Whether anything had to be changed.
    fn bring_back(&mut self, wanted: &Wanted<'_>) -> Result<bool> {
        let then = &wanted.then;
        let now = match self.fs.lookup(wanted.parent, wanted.name) {
            Ok(attr) if attr.kind() == libc::S_IFDIR => return Err(FsError::IsDirectory),
            Ok(attr) => Some(attr),
            Err(FsError::NotFound) => None,
            Err(error) => return Err(error),
        };
        if then.nlink > 1
            && let Some(other) = self.linked.get(&then.ino).copied()
        {
            if now.is_some_and(|now| now.ino == other) {
                return Ok(false);
            }
            self.take_name(wanted, now.is_some(), |fs, parent, name| {
                fs.link_again(other, parent, name).map(drop)
            })?;
            return Ok(true);
        }
        let stands_for_it = |now: &Attr| {
            let is_free = then.nlink < 2 || !self.standing.contains(&now.ino);
            now.kind() == then.kind() && now.nlink == then.nlink && is_free
        };
        let brought = match now {
            Some(now) if stands_for_it(&now) && self.is_as_then(then.ino, now.ino)? => {
                (now.ino, false)
            }
            Some(now) if is_same(then.ino, now.ino) => {
                let changes = !self.is_as_then(then.ino, now.ino)?;
                if changes {
                    self.set(then.ino, now.ino)?;
                }
                (now.ino, changes)
            }
            now => (self.bring_in(wanted, now)?, true),
        };
        if then.nlink > 1 {
            self.linked.insert(then.ino, brought.0);
            self.standing.insert(brought.0);
        }
        Ok(brought.1)
    }

    /// Gives the name to an inode that is as the snapshot shows it, in the place of one that is another.
    fn bring_in(&mut self, wanted: &Wanted<'_>, now: Option<Attr>) -> Result<Ino> {
        let then = &wanted.then;
        if let Some(original) = self.name_again(wanted, now.is_some())? {
            return Ok(original);
        }
        match now {
            // One that has other names, or is of another kind, is not touched: it loses this name.
            Some(now)
                if now.kind() == libc::S_IFREG && then.kind() == now.kind() && now.nlink == 1 =>
            {
                self.set(then.ino, now.ino)?;
                Ok(now.ino)
            }
            now => self.make(wanted, now.is_some()),
        }
    }

    /// Gives the name to the file that had it among others, if that is what it was. One that has changed since is not
    /// touched for it, as that would change what its other names stand for.
    fn name_again(&mut self, wanted: &Wanted<'_>, replaces: bool) -> Result<Option<Ino>> {
        let then = &wanted.then;
        if then.nlink < 2 || then.kind() != libc::S_IFREG {
            return Ok(None);
        }
        let original = self.snapshot.number(then.ino.base())?;
        match self.fs.getattr(original) {
            Ok(now) if now.nlink > 0 && now.kind() == then.kind() => {}
            Ok(_) | Err(FsError::NotFound) => return Ok(None),
            Err(error) => return Err(error),
        }
        if self.standing.contains(&original) || !self.is_as_then(then.ino, original)? {
            return Ok(None);
        }
        let named = self.take_name(wanted, replaces, |fs, parent, name| {
            fs.link_again(original, parent, name).map(drop)
        });
        match named {
            Ok(()) => {
                self.observer.inode_changed(original);
                Ok(Some(original))
            }
            // It has just lost its last name, or may have no other.
            Err(FsError::NotFound | FsError::Locked | FsError::TooManyLinks) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes an inode as the snapshot shows it, and gives it the name.
    fn make(&mut self, wanted: &Wanted<'_>, replaces: bool) -> Result<Ino> {
        let then = &wanted.then;
        if then.kind() != libc::S_IFREG {
            let target = match then.kind() {
                libc::S_IFLNK => self.fs.readlink(then.ino)?,
                _ => Vec::new(),
            };
            let temporary = self.temporary_name();
            let parent = wanted.parent;
            let made = match then.kind() {
                libc::S_IFLNK => self.fs.symlink(parent, &temporary, &target, &ROOT)?,
                _ => self
                    .fs
                    .mknod(parent, &temporary, then.mode, then.rdev, &ROOT)?,
            };
            let named = self.set(then.ino, made.ino).and_then(|()| {
                let flags = RenameFlags::default();
                self.fs
                    .rename(parent, &temporary, parent, wanted.name, flags)
            });
            if named.is_err() {
                let _ = self.fs.unlink(parent, &temporary);
            }
            named?;
            self.observer.entry_changed(parent, wanted.name);
            return Ok(made.ino);
        }
        let made = self.fs.tmpfile_and_hold(wanted.parent, 0o600, &ROOT)?.ino;
        let named = self.set(then.ino, made).and_then(|()| {
            self.take_name(wanted, replaces, |fs, parent, name| {
                fs.link_again(made, parent, name).map(drop)
            })
        });
        self.fs.release(made)?;
        self.fs.end_hold(made)?;
        named.map(|()| made)
    }

    /// Gives what `link` links the name that is wanted, in one step if something else has it.
    fn take_name(
        &mut self,
        wanted: &Wanted<'_>,
        replaces: bool,
        link: impl FnOnce(&Fs, Ino, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let Wanted { parent, name, .. } = *wanted;
        if replaces {
            let temporary = self.temporary_name();
            link(self.fs, parent, &temporary)?;
            let flags = RenameFlags::default();
            let renamed = self.fs.rename(parent, &temporary, parent, name, flags);
            if renamed.is_err() {
                let _ = self.fs.unlink(parent, &temporary);
            }
            renamed?;
        } else {
            link(self.fs, parent, name)?;
        }
        self.observer.entry_changed(parent, name);
        Ok(())
    }

    fn temporary_name(&self) -> Vec<u8> {
        let mut random = [0; 8];
        self.fs.host.fill_random(&mut random);
        format!("{TEMPORARY_NAME}{:016x}", u64::from_le_bytes(random)).into_bytes()
    }

    /// Removes what is in a directory now and was not then, or was of another kind.
    fn remove_new(&mut self, then: Ino, now: Ino, path: &[u8]) -> Result<()> {
        for (name, is_directory) in self.names(now)? {
            let was_directory = match self.fs.lookup(then, &name) {
                Ok(attr) => Some(attr.kind() == libc::S_IFDIR),
                Err(FsError::NotFound) => None,
                Err(error) => return Err(error),
            };
            if was_directory != Some(is_directory) {
                let result = self.remove(now, &name, is_directory);
                if let Err(error) = result {
                    let path = [path, b"/", &name[..]].concat();
                    self.tell(&path, Err(error))?;
                }
            }
        }
        Ok(())
    }

    fn names(&self, directory: Ino) -> Result<Vec<(Vec<u8>, bool)>> {
        let limit = self.fs.dir_limit(directory)?;
        let entries = self.fs.read_dir(directory, 0, limit, usize::MAX)?;
        let names = entries.into_iter();
        Ok(names
            .filter(|entry| !entry.ino.lists_snapshots())
            .map(|entry| (entry.name, entry.kind == libc::S_IFDIR))
            .collect())
    }

    /// Removes a name, and all below it, but no volume: those have snapshots of their own.
    fn remove(&mut self, parent: Ino, name: &[u8], is_directory: bool) -> Result<()> {
        let mut waiting = vec![(parent, name.to_vec(), is_directory, false)];
        while let Some((parent, name, is_directory, is_empty)) = waiting.pop() {
            if is_directory && !is_empty {
                let ino = self.fs.lookup(parent, &name)?.ino;
                if self.fs.views.junction(ino).is_some() {
                    return Err(FsError::Volume);
                }
                let below = self.names(ino)?;
                waiting.push((parent, name, true, true));
                let below = below.into_iter();
                waiting.extend(below.map(|(name, is_directory)| (ino, name, is_directory, false)));
                continue;
            }
            match is_directory {
                true => self.fs.rmdir(parent, &name)?,
                false => self.fs.unlink(parent, &name)?,
            }
            self.observer.entry_changed(parent, &name);
            self.done.removed += 1;
        }
        Ok(())
    }
}
