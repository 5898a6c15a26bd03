//! Changing attributes.

use cfs_format::Ino;

use crate::command::{Command, SetAttributes};
use crate::error::{FsError, Result};
use crate::types::{Attr, SetAttr, SetTime, Time};
use crate::{Fs, inode};

impl Fs {
    /// Changes attributes. The size changes first. A change of owner or group takes set-user-id and set-group-id
    /// from what is no directory, as on Linux, unless a mode is given.
    ///
    /// # Errors
    /// [`FsError::NotFound`]; for a size [`FsError::IsDirectory`], [`FsError::Invalid`] (neither file nor directory),
    /// [`FsError::TooLarge`], [`FsError::NoSpace`]. If the change of size succeeded and the rest failed, the size has
    /// changed.
    pub fn setattr(&self, ino: Ino, set: &SetAttr) -> Result<Attr> {
        if let Some(size) = set.size {
            self.set_size(ino, size, set.kill_suid_sgid)?;
            let size_only = SetAttr {
                size: Some(size),
                kill_suid_sgid: set.kill_suid_sgid,
                ..SetAttr::default()
            };
            if *set == size_only {
                return self.getattr(ino);
            }
        }
        if set.mtime.is_some() {
            // A time that somebody sets says what content the file has: the content must not come after it.
            self.files.settle_content(ino);
        }
        self.files.settle_times(ino)?;
        let changes_owner = set.uid.is_some() || set.gid.is_some();
        let outcome = self.execute(|_, now| {
            if set.atime.is_some() {
                // While the writer lock is held, or a batch that is being written would undo what is set here.
                self.atimes.forget(ino);
            }
            let time = |set: Option<SetTime>| -> Option<Time> {
                set.map(|set| match set {
                    SetTime::Now => now,
                    SetTime::At(time) => time,
                })
            };
            Ok(Command::SetAttributes(SetAttributes {
                ino,
                mode: set.mode,
                uid: set.uid,
                gid: set.gid,
                atime: time(set.atime),
                mtime: time(set.mtime),
                ctime: set.ctime.unwrap_or(now),
                kill_suid_sgid: set.kill_suid_sgid || (changes_owner && set.mode.is_none()),
            }))
        })?;
        let reported = outcome.inode;
        self.attr_after(reported.expect("a change of attributes reports its inode"))
    }

    fn set_size(&self, ino: Ino, size: u64, kill_suid_sgid: bool) -> Result<()> {
        let _open = self.gate.read();
        if ino.view().is_some() {
            return Err(FsError::Snapshot);
        }
        self.closed.check_content(&self.store, ino)?;
        let record = inode::committed(&self.store, ino)?.ok_or(FsError::NotFound)?;
        match inode::kind(&record) {
            libc::S_IFREG => {
                self.with_room(|| self.files.truncate(ino, size, self.now(), kill_suid_sgid))
            }
            libc::S_IFDIR => Err(FsError::IsDirectory),
            _ => Err(FsError::Invalid),
        }
    }
}
