//! Removing names, and opening and releasing inodes, on which it depends whether an inode goes with its last name.

use cfs_format::Ino;
use cfs_store::Txn;

use crate::command::{Command, Unlink};
use crate::error::{FsError, Result};
use crate::{Fs, directory, inode};

impl Fs {
    /// Takes a name from an inode that is no directory. With its last name it goes, once nobody has it open.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::IsDirectory`], [`FsError::NotDirectory`].
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.remove(parent, name, Command::Unlink)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotDirectory`], [`FsError::NotEmpty`].
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.remove(parent, name, Command::RemoveDirectory)
    }

    fn remove(&self, parent: Ino, name: &[u8], command: fn(Unlink) -> Command) -> Result<()> {
        let mut removal = None;
        let outcome = self.execute(|txn, now| {
            let mut keep = false;
            if let Some(entry) = directory::find(txn, parent, name)? {
                (removal, keep) = self.begin_removal(txn, Ino(entry.ino.get()))?;
            }
            Ok(command(Unlink {
                parent,
                name: name.to_vec(),
                keep,
                now,
            }))
        });
        self.end_removal(removal);
        self.after_loss(outcome?.lost);
        Ok(())
    }

    /// Called with the writer lock, before a command that takes a name from the inode: if it is the last name and
    /// nobody has the inode open, nobody can open it until [`Fs::end_removal`]. Returns what to give to that, and
    /// whether the inode must be kept.
    pub(super) fn begin_removal(&self, txn: &Txn<'_>, ino: Ino) -> Result<(Option<Ino>, bool)> {
        let record = match inode::get(txn, ino) {
            Ok(record) => record,
            Err(FsError::NotFound) => return Ok((None, false)),
            Err(error) => return Err(error),
        };
        if !inode::is_directory(&record) && record.nlink.get() > 1 {
            return Ok((None, false));
        }
        if self.opens.begin_removal(ino) {
            Ok((Some(ino), false))
        } else {
            Ok((None, true))
        }
    }

    pub(super) fn end_removal(&self, removal: Option<Ino>) {
        if let Some(ino) = removal {
            self.opens.end_removal(ino);
        }
    }

    /// Counts an open of the inode, which keeps it alive without a name until the matching [`Fs::release`].
    ///
    /// # Errors
    /// [`FsError::NotFound`].
    pub fn open(&self, ino: Ino) -> Result<()> {
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
            Err(_) => {
                self.opens.release(ino);
            }
        }
        found
    }

    /// Ends an open. The last one removes an inode that has no name any more.
    ///
    /// # Errors
    /// [`FsError::Read`]; the open has ended all the same.
    pub fn release(&self, ino: Ino) -> Result<()> {
        self.files.released(ino);
        if self.opens.release(ino)
            && let Some(record) = inode::committed(&self.store, ino)?
            && record.nlink.get() == 0
        {
            self.after_loss(Some(crate::apply::Lost::Orphaned(ino)));
        }
        Ok(())
    }
}
