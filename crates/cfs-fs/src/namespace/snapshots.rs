//! Taking, listing, holding and deleting snapshots.
//!
//! A snapshot is one command, whatever it shows. What writers were told is accepted must be in the log before it, and
//! what they are told afterwards must come after it: so data in memory are written first, with less and less room for
//! new ones, until what is left takes no time; then writers are stopped for that and the command.

use std::sync::Arc;

use cfs_format::table::{system_key, tag};
use cfs_format::{Ino, Timestamp};

use crate::apply::split_prune_key;
use crate::command::{Command, Prune, SnapshotCreate, SnapshotDelete, SnapshotHold};
use crate::error::{FsError, Result};
use crate::extent::table_error;
use crate::types::Time;
use crate::views::Snapshot;
use crate::{Fs, directory};

/// `ENDED` rows that one command goes through.
const PRUNE_ROWS_MAX: u32 = 1000;
/// Commands in one tick.
const PRUNE_STEPS_MAX: usize = 16;

impl Fs {
    /// Takes a snapshot of a directory and all below it, as far as it is in the same volume: exactly what has been
    /// acknowledged before, in all files. It is durable afterwards. What it takes does not depend on what is there.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotDirectory`]; [`FsError::Exists`] when the directory has one of this name;
    /// [`FsError::Invalid`], [`FsError::NameTooLong`] for the name; [`FsError::Reserved`] for one that receiving uses;
    /// [`FsError::Snapshot`] for a path in a snapshot; [`FsError::NoSpace`]; what writing data failed with. There is no new snapshot then, but for an error of the device
    /// itself, after which it is unknown.
    pub fn snapshot_create(&self, path: &[u8], name: &[u8]) -> Result<Arc<Snapshot>> {
        crate::stream::check_snapshot_name(name).map_err(|_| FsError::Reserved)?;
        self.take_snapshot(path, name)
    }

    /// As [`Fs::snapshot_create`], also with names that receiving uses.
    pub(crate) fn take_snapshot(&self, path: &[u8], name: &[u8]) -> Result<Arc<Snapshot>> {
        directory::check_name(name)?;
        let attr = self.resolve(path)?;
        if attr.ino.view().is_some() {
            return Err(FsError::Snapshot);
        }
        let path = normal_path(path);
        let _room = self.admit_growth(name.len() + path.len())?;
        let (volume, timestamp) = {
            let _little = self.files.keep_little_dirty()?;
            let _writers = self.gate.write();
            #[cfg(feature = "planted-bugs")]
            let written_first =
                !cfs_format::planted::has(cfs_format::planted::Bug::SnapshotBeforeData);
            #[cfg(not(feature = "planted-bugs"))]
            let written_first = true;
            if written_first {
                self.files.flush_dirty()?;
            }
            let mut timestamp = Timestamp(0);
            self.execute(|txn, now| {
                timestamp = txn.timestamp();
                Ok(Command::SnapshotCreate(SnapshotCreate {
                    directory: attr.ino,
                    name: name.to_vec(),
                    path: path.clone(),
                    view: self.views.free_view().ok_or(FsError::TooManyLinks)?,
                    now,
                }))
            })?;
            (attr.volume, timestamp)
        };
        let key = crate::history::snapshot_key(volume, timestamp.0);
        let value = self.store.get(&key)?.ok_or(FsError::NotFound)?;
        let snapshot = Snapshot::decode(&(key, value))?;
        let view = snapshot.view;
        self.views.put(snapshot);
        self.store.sync()?;
        self.views.snapshot(view)
    }

    /// All snapshots, oldest first; with a path, those of this directory.
    ///
    /// # Errors
    /// [`FsError::NotFound`] when there is no such directory, nor was one when a snapshot was taken;
    /// [`FsError::NotDirectory`] for what is there and is none.
    pub fn snapshots(&self, path: Option<&[u8]>) -> Result<Vec<Arc<Snapshot>>> {
        let mut all = self.views.all();
        if let Some(path) = path {
            let is_of = self.directory_of_snapshots(path);
            all.retain(|snapshot| is_of(snapshot));
            if all.is_empty() && self.resolve(path)?.kind() != libc::S_IFDIR {
                return Err(FsError::NotDirectory);
            }
        }
        Ok(all)
    }

    /// Whether a snapshot is one of the directory that has this path, or had it when the snapshot was taken and is gone.
    fn directory_of_snapshots(&self, path: &[u8]) -> impl Fn(&Snapshot) -> bool {
        let now = self.resolve(path).ok().map(|attr| attr.ino);
        let path = normal_path(path);
        move |snapshot| match now {
            Some(ino) if snapshot.directory == ino => true,
            _ => snapshot.path == path && self.is_removed(snapshot.directory),
        }
    }

    fn is_removed(&self, ino: Ino) -> bool {
        self.getattr(ino).map_or(true, |attr| attr.nlink == 0)
    }

    /// The snapshot with this name of the directory with this path; if the directory is gone, of the one that had it.
    ///
    /// # Errors
    /// [`FsError::NotFound`].
    pub fn snapshot(&self, path: &[u8], name: &[u8]) -> Result<Arc<Snapshot>> {
        let is_of = self.directory_of_snapshots(path);
        let all = self.views.all().into_iter().rev();
        let mut named = all.filter(|snapshot| snapshot.name == name && is_of(snapshot));
        named.next().ok_or(FsError::NotFound)
    }

    /// The snapshot with this id, as [`Snapshot::id`] tells it.
    ///
    /// # Errors
    /// [`FsError::NotFound`].
    pub fn snapshot_by_id(&self, id: &str) -> Result<Arc<Snapshot>> {
        let mut all = self.views.all().into_iter();
        all.find(|snapshot| snapshot.id() == id)
            .ok_or(FsError::NotFound)
    }

    /// Deletes a snapshot. It is gone at once; what it alone has held is given back in the background.
    ///
    /// # Errors
    /// [`FsError::NotFound`]; [`FsError::Held`]; [`FsError::NeededByClone`], see [`Fs::clones_of`].
    pub fn snapshot_delete(&self, snapshot: &Snapshot) -> Result<()> {
        self.execute(|_, _| {
            Ok(Command::SnapshotDelete(SnapshotDelete {
                volume: snapshot.volume,
                timestamp: snapshot.timestamp,
            }))
        })?;
        self.views.remove(snapshot.view);
        self.store.sync()?;
        Ok(())
    }

    /// Holds a snapshot, which then cannot be deleted, or releases it.
    ///
    /// # Errors
    /// [`FsError::NotFound`].
    pub fn snapshot_hold(&self, snapshot: &Snapshot, held: bool) -> Result<()> {
        self.execute(|_, _| {
            Ok(Command::SnapshotHold(SnapshotHold {
                volume: snapshot.volume,
                timestamp: snapshot.timestamp,
                held,
            }))
        })?;
        self.views.look_again(snapshot)?;
        self.store.sync()?;
        Ok(())
    }

    /// Removes some history that no snapshot needs any more.
    pub(crate) fn prune_some(&self) -> Result<()> {
        for _ in 0..PRUNE_STEPS_MAX {
            if !self.prune_step()? && !self.sweep_step()? {
                break;
            }
        }
        Ok(())
    }

    /// Removes all history that no snapshot needs any more, and what is left of clones, for who needs the room at once.
    /// Whether there was anything. What cannot be read of that stays and is logged: who asks has nothing to do with it.
    ///
    /// # Errors
    /// [`FsError::NoSpace`], [`FsError::ReadOnly`].
    pub(crate) fn prune_all(&self) -> Result<bool> {
        let mut had_some = false;
        for step in [Self::prune_step, Self::sweep_step] {
            loop {
                match step(self) {
                    Ok(true) => had_some = true,
                    Ok(false) => break,
                    Err(error @ (FsError::Read(_) | FsError::Io(_))) => {
                        tracing::warn!("room that nobody uses is not given back: {error}");
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(had_some)
    }

    /// One step; false when there was no history to remove.
    pub(super) fn prune_step(&self) -> Result<bool> {
        let lo = system_key(tag::PRUNE, &[]);
        let hi = system_key(tag::PRUNE + 1, &[]);
        let Some(row) = self.store.range(&lo, &hi).next() else {
            return Ok(false);
        };
        let (volume, timestamp) = split_prune_key(&row.map_err(table_error)?.0)?;
        if self.views.shows(volume, timestamp) {
            // Who deletes it has yet to take it out of sight: nobody may see it without what it alone needs.
            return Ok(false);
        }
        self.execute(|_, _: Time| {
            Ok(Command::Prune(Prune {
                volume,
                timestamp,
                rows_max: PRUNE_ROWS_MAX,
            }))
        })?;
        Ok(true)
    }
}

/// An absolute path without empty parts.
fn normal_path(path: &[u8]) -> Vec<u8> {
    let mut normal = Vec::with_capacity(path.len() + 1);
    for part in path.split(|byte| *byte == b'/') {
        if !part.is_empty() && part != b"." {
            normal.push(b'/');
            normal.extend_from_slice(part);
        }
    }
    if normal.is_empty() {
        normal.push(b'/');
    }
    normal
}
