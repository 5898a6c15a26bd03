//! Removing names, and opening and releasing inodes, on which it depends whether an inode goes with its last name.

use cfs_format::Ino;
use cfs_store::Txn;

use crate::apply::{Lost, Outcome};
use crate::command::{Command, Unlink};
use crate::error::{FsError, Result};
use crate::types::Room;
use crate::{Fs, directory, inode};

/// What becomes of an inode that loses its last name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nameless {
    /// It goes, unless it is open.
    Goes,
    /// It stays until its hold is ended.
    IsHeld,
}

/// What was arranged for an inode before a command that may take its last name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removal {
    /// Nothing: it keeps a name, or there is no such inode.
    None,
    /// Nobody can open it until the command has ended.
    Barred(Ino),
    /// It is open.
    Open,
    /// It counts as opened once more.
    Held(Ino),
}

impl Removal {
    /// Whether the command must leave the inode.
    pub(super) fn keeps(self) -> bool {
        matches!(self, Self::Open | Self::Held(_))
    }
}

impl Fs {
    /// Takes a name from an inode that is no directory. With its last name it goes, once nobody has it open.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::IsDirectory`], [`FsError::NotDirectory`].
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.remove(parent, name, Command::Unlink, Nameless::Goes)
            .map(drop)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotDirectory`], [`FsError::NotEmpty`].
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.remove(parent, name, Command::RemoveDirectory, Nameless::Goes)
            .map(drop)
    }

    /// As [`Fs::unlink`], for a caller that may still refer to the inode without having it open. If that was its last
    /// name, it lives on as if it were open; it is returned, and [`Fs::end_hold`] must be called for it.
    ///
    /// # Errors
    /// As [`Fs::unlink`].
    pub fn unlink_and_hold(&self, parent: Ino, name: &[u8]) -> Result<Option<Ino>> {
        self.remove(parent, name, Command::Unlink, Nameless::IsHeld)
    }

    /// As [`Fs::rmdir`], and [`Fs::unlink_and_hold`].
    ///
    /// # Errors
    /// As [`Fs::rmdir`].
    pub fn rmdir_and_hold(&self, parent: Ino, name: &[u8]) -> Result<Option<Ino>> {
        self.remove(parent, name, Command::RemoveDirectory, Nameless::IsHeld)
    }

    fn remove(
        &self,
        parent: Ino,
        name: &[u8],
        command: fn(Unlink) -> Command,
        nameless: Nameless,
    ) -> Result<Option<Ino>> {
        directory::check_reserved(name)?;
        let mut removal = Removal::None;
        let outcome = self.execute_in(Room::Reserve, |txn, now| {
            inode::check_own(txn, parent)?;
            if let Some(entry) = directory::find(txn, parent, name)? {
                removal = self.begin_removal(txn, Ino(entry.ino.get()), nameless)?;
            }
            Ok(command(Unlink {
                parent,
                name: name.to_vec(),
                keep: removal.keeps(),
                now,
            }))
        });
        self.end_removal(removal, outcome)
    }

    /// Called with the writer lock, before a command that takes a name from the inode, what decides whether the inode
    /// is kept if that is the last. [`Fs::end_removal`] must follow the command.
    pub(super) fn begin_removal(
        &self,
        txn: &Txn<'_>,
        ino: Ino,
        nameless: Nameless,
    ) -> Result<Removal> {
        let record = match inode::get(txn, ino) {
            Ok(record) => record,
            Err(FsError::NotFound) => return Ok(Removal::None),
            Err(error) => return Err(error),
        };
        if !inode::is_directory(&record) && record.nlink.get() > 1 {
            return Ok(Removal::None);
        }
        match nameless {
            Nameless::IsHeld => {
                // Who removes it just now has lost the writer lock, and is about to say how that ended.
                while self.opens.add(ino).is_none() {
                    std::thread::yield_now();
                }
                Ok(Removal::Held(ino))
            }
            Nameless::Goes if self.opens.begin_removal(ino) => Ok(Removal::Barred(ino)),
            Nameless::Goes => Ok(Removal::Open),
        }
    }

    /// Ends what [`Fs::begin_removal`] began, with what became of the command. Returns the inode that is held, if there
    /// is one.
    pub(super) fn end_removal(
        &self,
        removal: Removal,
        outcome: Result<Outcome>,
    ) -> Result<Option<Ino>> {
        if let Removal::Barred(ino) = removal {
            self.opens.end_removal(ino);
        }
        let lost = outcome.as_ref().ok().and_then(|outcome| outcome.lost);
        let held = match removal {
            Removal::Held(ino) if lost == Some(Lost::Orphaned(ino)) => Some(ino),
            Removal::Held(ino) => {
                // What becomes of the inode is not what was asked for.
                if let Err(error) = self.end_hold(ino) {
                    tracing::error!(inode = ino.0, %error, "it stays until the next start");
                }
                None
            }
            _ => None,
        };
        self.after_loss(outcome?.lost);
        Ok(held)
    }

    /// Counts an open of the inode, which keeps it alive without a name until the matching [`Fs::release`].
    ///
    /// # Errors
    /// [`FsError::NotFound`].
    pub fn open(&self, ino: Ino) -> Result<()> {
        if ino.view().is_some() {
            // It does not go as long as its snapshot is there, and then whoever has it open.
            self.getattr(ino)?;
            self.files.opened(ino);
            return Ok(());
        }
        let count = loop {
            match self.opens.add(ino) {
                Some(count) => break count,
                // A removal is decided and ended by who has the writer lock.
                None => {
                    drop(self.store.begin());
                    std::thread::yield_now();
                }
            }
        };
        let found = match inode::committed(&self.store, ino) {
            Ok(Some(record)) if record.nlink.get() > 0 || count > 1 => Ok(()),
            Ok(_) => Err(FsError::NotFound),
            Err(error) => Err(error),
        };
        match found {
            Ok(()) => self.files.opened(ino),
            // Who wanted to remove it in between took it for open.
            Err(_) => self.end_hold(ino)?,
        }
        found
    }

    /// Ends an open. The last one removes an inode that has no name any more.
    ///
    /// # Errors
    /// [`FsError::Read`]; the open has ended all the same.
    pub fn release(&self, ino: Ino) -> Result<()> {
        self.files.released(ino);
        self.end_hold(ino)
    }

    /// Ends a hold of [`Fs::unlink_and_hold`] and its kind. The last one of an inode that nobody has open removes it.
    ///
    /// # Errors
    /// [`FsError::Read`]; the hold has ended all the same.
    pub fn end_hold(&self, ino: Ino) -> Result<()> {
        if ino.view().is_some() {
            return Ok(());
        }
        if self.opens.release(ino)
            && let Some(record) = inode::committed(&self.store, ino)?
            && record.nlink.get() == 0
        {
            self.reap_at_once(ino);
        }
        Ok(())
    }
}
