//! ClaudeFS as a file system: inodes, directories, extents. The one API of every front end.
//!
//! [`Fs`] is shared by all threads of a front end. Each change is one [`command::Command`], applied to the tables in
//! one transaction of the store and written to its log; opening replays what the last checkpoint does not have.
//!
//! # Invariants
//! - `apply` is deterministic: tables and command in, tables out. It validates before it writes.
//! - A name and its cookie row are written and removed together; a directory's record counts its entries in `size`.
//! - An inode with `nlink` 0 has an `ORPHAN` record, and the other way round.
//! - Lock order: the gate for accepting data, the state of an open file, then the store's writer lock.

mod acl;
mod apply;
pub mod check;
mod clone;
pub mod command;
mod data;
mod directory;
mod error;
pub mod escaped;
mod extent;
mod history;
mod inode;
mod lock;
mod namespace;
mod rebuild;
pub mod recount;
mod rest;
mod row;
pub mod stream;
mod types;
mod views;
mod xattr;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use cfs_device::Device;
use cfs_format::superblock::Superblock;
use cfs_store::{Host, ReplayError, Store, StoreOptions, Txn};
use parking_lot::{Mutex, RwLock};

use command::Command;

pub use data::AllocateMode;
pub use data::quota::Unbound;
pub use data::read::{PARTS_MAX, Parts};
pub use directory::{FIRST_COOKIE, NAME_BYTES_MAX};
pub use error::{FsError, Result};
pub use lock::{Lock, RetentionMode};
pub use namespace::arrange::{Arrangement, Moved, Named};
pub use namespace::differences::{Change, Difference};
pub use namespace::format::FormatOptions;
pub use namespace::holdings::Holdings;
pub use namespace::locks::LockChange;
pub use namespace::policies::{Period, Policy};
pub use namespace::publish::{Expected, NamedEntry, Publication, RecordChange};
pub use namespace::restore::{RestoreObserver, Restored};
pub use namespace::snapshot_sizes::SnapshotSizes;
pub use namespace::volumes::{Quota, Recorded, Volume, VolumeDomain, VolumeOptions};
pub use rebuild::Rebuilt;
pub use types::{
    AtimePolicy, Attr, Caller, DIRENT_REPORTED_BYTES, DirEntry, FsOptions, RenameFlags, Room,
    SetAttr, SetTime, StatFs, Time, XattrFlags,
};
pub use views::{SNAPSHOTS_NAME, Snapshot};
pub use xattr::{XATTR_LIST_BYTES_MAX, XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX};

/// A mounted pool.
pub struct Fs {
    pub(crate) store: Arc<Store>,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) options: FsOptions,
    pub(crate) files: data::Files,
    pub(crate) opens: namespace::opens::OpenCounts,
    pub(crate) atimes: namespace::atime::PendingTimes,
    pub(crate) reaper: namespace::reap::Reaper,
    pub(crate) recounts: recount::Recounts,
    pub(crate) views: Arc<views::Views>,
    /// Held shared while data are accepted, and alone while a snapshot is taken.
    pub(crate) gate: RwLock<()>,
    pub(crate) schedule: Mutex<namespace::policies::Policies>,
    /// The clone whose rows are being removed, and the last inode that may have some.
    pub(crate) swept: Mutex<Option<(cfs_format::VolumeId, cfs_format::Ino)>>,
    /// Directories that streams are being received into.
    pub(crate) receiving: Mutex<HashSet<cfs_format::Ino>>,
    /// Volumes that they close meanwhile.
    pub(crate) closed: stream::closed::Closed,
    pub(crate) rest: Mutex<rest::Seen>,
}

/// Why a pool could not be opened. Nothing changed, but for what recovery itself writes.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store did not open.
    #[error(transparent)]
    Store(#[from] cfs_store::OpenError),
    /// The store opened, but what the file system needs in it could not be read.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The store has no root directory: formatting was interrupted.
    #[error("the pool has no root directory; format it again")]
    NoRoot,
    /// The system starts no more threads.
    #[error("the system starts no more threads: {0}")]
    NoThread(#[source] std::io::Error),
}

impl Fs {
    /// Opens a pool that [`Fs::format`] has prepared: recovers the store, replays the log, and leaves the removal of
    /// inodes without a name to [`Fs::tick`].
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_pool(
        device: Arc<dyn Device>,
        host: Arc<dyn Host>,
        unlock: impl FnOnce(
            &Superblock,
        )
            -> std::result::Result<cfs_seal::keys::ClusterKey, cfs_store::UnlockError>,
        store_options: StoreOptions,
        options: FsOptions,
    ) -> std::result::Result<Arc<Self>, OpenError> {
        let store = Store::open(device, Arc::clone(&host), unlock, store_options, replay)?;
        Self::over(store, host, options)
    }

    /// The file system in a store that has been opened.
    fn over(
        store: Arc<Store>,
        host: Arc<dyn Host>,
        options: FsOptions,
    ) -> std::result::Result<Arc<Self>, OpenError> {
        if inode::committed(&store, cfs_format::Ino::ROOT)?.is_none() {
            return Err(OpenError::NoRoot);
        }
        let views = Arc::new(views::Views::load(Arc::clone(&store))?);
        let fs = Arc::new(Self {
            files: data::Files::new(
                Arc::clone(&store),
                Arc::clone(&host),
                Arc::clone(&views),
                &options,
            )
            .map_err(OpenError::NoThread)?,
            store,
            host,
            options,
            opens: namespace::opens::OpenCounts::default(),
            atimes: namespace::atime::PendingTimes::default(),
            reaper: namespace::reap::Reaper::default(),
            recounts: recount::Recounts::default(),
            views,
            gate: RwLock::new(()),
            schedule: Mutex::default(),
            swept: Mutex::default(),
            receiving: Mutex::default(),
            closed: stream::closed::Closed::default(),
            rest: Mutex::default(),
        });
        fs.queue_orphans()?;
        Ok(fs)
    }

    /// The store below.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Does background work that is due, a bounded amount of it: writes aged dirty data and access times, removes
    /// inodes without a name and history that no snapshot needs, takes snapshots that are due, re-chunks fragmented files,
    /// then the store's own, and recounts references. Called by one thread about every 100 ms, and about every second
    /// while the file system [rests](Fs::rests).
    ///
    /// # Errors
    /// The first failure; the rest of the work stays due.
    pub fn tick(&self) -> Result<()> {
        // What one part cannot do must not keep the others from their work.
        let written = self.files.tick();
        let touched = self.write_atimes_if_due();
        let reaped = self.reap_some();
        let pruned = self.prune_some();
        let kept = self.run_policies();
        let stored = self.store.tick().map_err(FsError::from);
        self.recount_some();
        stored
            .and(written)
            .and(touched)
            .and(reaped)
            .and(pruned)
            .and(kept)
    }

    /// Only gives up memory that nobody uses, in place of [`Fs::tick`] where nothing may be written.
    pub fn tick_to_read(&self) {
        self.files.forget_unused();
    }

    /// Waits until there is something for [`Fs::write_log`], at most for `patience`, or until [`Fs::end_wait`].
    pub fn wait_for_changes(&self, patience: Duration) {
        self.store.wait_for_commands(patience);
    }

    /// Who is in [`Fs::wait_for_changes`], or comes there next, returns at once.
    pub fn end_wait(&self) {
        self.store.end_wait();
    }

    /// Hands all changes to the pool's device without flushing it. To be called by one thread over and over: what has been
    /// changed and closed then outlives this process, though not the machine.
    ///
    /// # Errors
    /// The pool is, or goes, read-only.
    pub fn write_log(&self) -> Result<()> {
        Ok(self.store.write_log()?)
    }

    /// Writes everything that is pending, and a checkpoint. The pool is then marked clean; later changes fail.
    ///
    /// # Errors
    /// What could not be written; it is then recovered from the log at the next open as far as it got there.
    pub fn close(&self) -> Result<()> {
        let flushed = self.files.flush_all();
        let touched = self.write_atimes();
        self.stop_recount();
        self.store.close()?;
        flushed.and(touched)
    }

    /// The time now.
    pub(crate) fn now(&self) -> Time {
        Time::from_ns(self.host.now_ns())
    }

    /// The time by the clock that commands are stamped with, milliseconds since 1970.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.host.now_ns() / 1_000_000
    }

    /// Builds a command while the writer lock is held, so that the times in the log do not run backwards, and
    /// applies and logs it. `build` sees the tables through the transaction. What the command changes in a clone and
    /// is still the origin's is copied first, and the command built anew.
    ///
    /// # Errors
    /// What `build` or the command refuses, or the store; nothing changed.
    pub(crate) fn execute(
        &self,
        build: impl FnMut(&Txn<'_>, Time) -> Result<Command>,
    ) -> Result<apply::Outcome> {
        self.execute_in(Room::Free, build)
    }

    /// The same for a command that is part of a deletion if `room` says so: what is copied for it may then take from what
    /// a full pool keeps back, and no quota refuses it.
    ///
    /// # Errors
    /// As [`Fs::execute`].
    pub(crate) fn execute_in(
        &self,
        room: Room,
        mut build: impl FnMut(&Txn<'_>, Time) -> Result<Command>,
    ) -> Result<apply::Outcome> {
        let mut execute_once = || self.with_room(|| self.execute_once(&mut build));
        loop {
            match execute_once() {
                Err(FsError::Inherited(ino)) => match self.make_own(ino, room) {
                    // Removed meanwhile: the command may be none that needs it. What does need it is refused now.
                    Ok(()) | Err(FsError::NotFound) => {}
                    Err(error) => return Err(error),
                },
                executed => return executed,
            }
        }
    }

    /// Copies what a clone has of an inode from its origin.
    fn make_own(&self, ino: cfs_format::Ino, room: Room) -> Result<()> {
        match self.files.copy_up(ino, room) {
            Err(error @ (FsError::NoSpace | FsError::Quota)) => {
                self.reap_all()?;
                // No quota counts what is left of snapshots and of clones that are gone.
                if matches!(error, FsError::NoSpace) {
                    self.prune_all()?;
                }
                self.files.copy_up(ino, room)
            }
            copied => copied,
        }
    }

    fn execute_once(
        &self,
        build: impl FnOnce(&Txn<'_>, Time) -> Result<Command>,
    ) -> Result<apply::Outcome> {
        let mut txn = self.store.begin();
        let command = build(&txn, self.now())?;
        let outcome = apply::apply(&mut txn, &command)?;
        if !command.was_accepted() {
            self.files.quotas.check(&txn)?;
        }
        self.closed.check(&self.store, &txn, &command)?;
        txn.commit(&command.encode())?;
        Ok(outcome)
    }
}

/// Applies a command of the log again.
///
/// # Errors
/// [`ReplayError::Read`] when something that it needs cannot be read. [`ReplayError::Other`] when it does not decode or
/// is refused: the log and the tables do not fit together.
pub fn replay(txn: &mut Txn<'_>, bytes: &[u8]) -> std::result::Result<(), ReplayError> {
    let command = Command::decode(bytes).map_err(|error| ReplayError::Other(error.to_string()))?;
    match apply::apply(txn, &command) {
        Ok(_) => Ok(()),
        Err(FsError::Read(error)) => Err(ReplayError::Read(error)),
        Err(error) => {
            tracing::debug!(?command, "a command is not applied");
            Err(ReplayError::Other(format!(
                "{error}, replaying {}",
                command.kind_name()
            )))
        }
    }
}
