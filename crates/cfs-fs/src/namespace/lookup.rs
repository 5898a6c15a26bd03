//! Looking up names, paths, attributes and link targets.

use cfs_format::table::{DirentRecord, InodeRecord, tag};
use cfs_format::{Ino, ViewId};

use crate::directory::{self, NAME_BYTES_MAX};
use crate::error::{FsError, Result};
use crate::types::Attr;
use crate::views::{SNAPSHOTS_NAME, beside, listed_by};
use crate::{Fs, inode, row};

impl Fs {
    /// The inode with this name; `.` and `..` are understood.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotDirectory`], [`FsError::NameTooLong`].
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        if name.len() > NAME_BYTES_MAX {
            return Err(FsError::NameTooLong);
        }
        match name {
            b"." => return self.getattr(parent),
            b".." => return self.getattr(self.parent(parent)?),
            _ => {}
        }
        if let Some(directory) = listed_by(parent) {
            let found = self.views.find_listed(directory, name)?;
            let found = found.ok_or(FsError::NotFound)?;
            let shown = found.ino.in_view(found.snapshot.view);
            return self.getattr(shown.ok_or(FsError::TooLarge)?);
        }
        if name == SNAPSHOTS_NAME && parent.view().is_none() {
            return self.getattr(parent.in_view(ViewId::LIST).ok_or(FsError::TooLarge)?);
        }
        // Between the two reads another inode may take the name, and this one may go.
        let mut gone = None;
        while let Some(ino) = self.views.entry(parent, name)? {
            match self.getattr(ino) {
                Err(FsError::NotFound) if gone != Some(ino) => gone = Some(ino),
                found => return found,
            }
        }
        match self.views.record(parent)? {
            Some(record) if !inode::is_directory(&record) => Err(FsError::NotDirectory),
            _ => Err(FsError::NotFound),
        }
    }

    /// Attributes, with what is pending for the inode.
    ///
    /// # Errors
    /// [`FsError::NotFound`].
    pub fn getattr(&self, ino: Ino) -> Result<Attr> {
        if let Some(directory) = listed_by(ino) {
            return self.attr_of_list(ino, directory);
        }
        // What is pending is looked at before the tables: it is in them before it leaves memory.
        let atime = self.atimes.get(ino);
        let record = self.files.overlaid(ino, || self.views.record(ino))?;
        let mut attr = Attr::from_record(ino, &record.ok_or(FsError::NotFound)?);
        attr.atime = atime.unwrap_or(attr.atime);
        Ok(attr)
    }

    /// Attributes of an inode that a command has just reported.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn attr_after(&self, (ino, record): (Ino, InodeRecord)) -> Result<Attr> {
        match self.getattr(ino) {
            // Removed meanwhile.
            Err(FsError::NotFound) => Ok(Attr::from_record(ino, &record)),
            found => found,
        }
    }

    /// Attributes of the directory that lists the snapshots of another: its, without the right to write.
    fn attr_of_list(&self, ino: Ino, directory: Ino) -> Result<Attr> {
        let record = inode::committed(&self.store, directory)?.ok_or(FsError::NotFound)?;
        if !inode::is_directory(&record) {
            return Err(FsError::NotDirectory);
        }
        let mut attr = Attr::from_record(ino, &record);
        (attr.mode, attr.nlink, attr.size) = (libc::S_IFDIR | attr.mode & 0o555, 2, 0);
        (attr.atime, attr.mtime, attr.ctime) = (attr.btime, attr.btime, attr.btime);
        Ok(attr)
    }

    /// The inode that an absolute path names. Symbolic links in it are not followed, but for naming one itself.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotDirectory`], [`FsError::SymbolicLink`] when the path goes on below one.
    pub fn resolve(&self, path: &[u8]) -> Result<Attr> {
        let mut at = self.getattr(Ino::ROOT)?;
        for name in path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
        {
            if at.kind() == libc::S_IFLNK {
                return Err(FsError::SymbolicLink);
            }
            at = self.lookup(at.ino, name)?;
        }
        Ok(at)
    }

    /// Target of a symbolic link.
    ///
    /// # Errors
    /// [`FsError::NotFound`]; [`FsError::Invalid`] for what is no symbolic link.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        if listed_by(ino).is_some() {
            return Err(FsError::Invalid);
        }
        let record = self.views.record(ino)?.ok_or(FsError::NotFound)?;
        if inode::kind(&record) != libc::S_IFLNK {
            return Err(FsError::Invalid);
        }
        let target = self.views.get(self.views.place(ino)?, tag::INLINE, &[])?;
        let target = target.map(row::content).transpose()?;
        self.touch_atime(ino)?;
        target.ok_or_else(|| FsError::damaged(format_args!("symbolic link {ino} has no target")))
    }

    /// The committed entry with this name.
    pub(crate) fn entry(&self, parent: Ino, name: &[u8]) -> Result<Option<DirentRecord>> {
        let place = self.views.place(parent)?;
        let Some(bytes) = self.views.get(place, tag::DIRENT, name)? else {
            return Ok(None);
        };
        let mut entry = directory::decode(parent, &bytes)?;
        entry.ino = beside(parent, Ino(entry.ino.get()))?.0.into();
        Ok(Some(entry))
    }
}
