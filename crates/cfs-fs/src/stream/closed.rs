//! Volumes that are closed while streams come into them: a snapshot that is received shows what was sent, so nobody but
//! who receives changes anything there until it has been taken.
//!
//! Data are refused where they are accepted, under the gate; changes of names and attributes where they are committed,
//! under the store's writer lock. A volume is closed under both, when what was accepted before has been committed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::ThreadId;

use cfs_format::table::{split_key, tag};
use cfs_format::{Ino, VolumeId};
use cfs_store::{Store, Txn};
use parking_lot::Mutex;

use super::is_of_pool;
use crate::command::Command;
use crate::error::{FsError, Result};
use crate::{Fs, inode};

/// Which volumes are closed, and to all but which thread.
#[derive(Default)]
pub(crate) struct Closed {
    /// How many, for who looks often.
    count: AtomicUsize,
    volumes: Mutex<HashMap<VolumeId, ThreadId>>,
}

impl Closed {
    fn is_any(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    fn is_closed(&self, volume: VolumeId) -> bool {
        let volumes = self.volumes.lock();
        volumes
            .get(&volume)
            .is_some_and(|thread| *thread != std::thread::current().id())
    }

    fn check_inode(&self, store: &Store, ino: Ino) -> Result<()> {
        let volume = match ino.cloned() {
            Some((volume, _)) => Some(volume),
            None if ino.view().is_some() => None,
            None => inode::committed(store, ino)?.map(|it| VolumeId(it.volume.get())),
        };
        match volume.is_some_and(|volume| self.is_closed(volume)) {
            true => Err(FsError::Receiving),
            false => Ok(()),
        }
    }

    /// Refuses data, or another change of content, of an inode; to be asked under the gate.
    ///
    /// # Errors
    /// [`FsError::Receiving`]; the inode cannot be read.
    pub fn check_content(&self, store: &Store, ino: Ino) -> Result<()> {
        match self.is_any() {
            true => self.check_inode(store, ino),
            false => Ok(()),
        }
    }

    /// Refuses a command that changes what a stream is to make: to be asked before it is committed.
    ///
    /// # Errors
    /// [`FsError::Receiving`]; an inode cannot be read.
    pub fn check(&self, store: &Store, txn: &Txn<'_>, command: &Command) -> Result<()> {
        if !self.is_any() || command.is_upkeep() {
            return Ok(());
        }
        if let Command::SnapshotCreate(it) = command {
            self.check_inode(store, it.directory)?;
        }
        if let Command::VolumeDelete(it) = command
            && self.is_closed(it.volume)
        {
            return Err(FsError::Receiving);
        }
        let mut last = None;
        for key in txn.changed_keys() {
            let Ok((ino, row, name)) = split_key(key) else {
                continue;
            };
            // Users of the S3 face and the like go on, also where the whole pool is a replica.
            if row == tag::XATTR && is_of_pool(ino, name) {
                continue;
            }
            if last.replace(ino) != Some(ino) {
                self.check_inode(store, ino)?;
            }
        }
        Ok(())
    }
}

impl Fs {
    /// Closes a volume to all but this thread, until [`Fs::open_to_others`].
    ///
    /// # Errors
    /// What writing data failed with that had been accepted; the volume is not closed then.
    pub(super) fn close_to_others(&self, volume: VolumeId) -> Result<()> {
        let _little = self.files.keep_little_dirty()?;
        let _writers = self.gate.write();
        self.files.flush_dirty()?;
        let mut volumes = self.closed.volumes.lock();
        volumes.insert(volume, std::thread::current().id());
        self.closed.count.store(volumes.len(), Ordering::Release);
        drop(volumes);
        // Who was asked before has committed then.
        drop(self.store.begin());
        Ok(())
    }

    /// Lets others change the volume again.
    pub(super) fn open_to_others(&self, volume: VolumeId) {
        let mut volumes = self.closed.volumes.lock();
        volumes.remove(&volume);
        self.closed.count.store(volumes.len(), Ordering::Release);
    }
}
