//! Requests about names: looking up, making, removing, renaming, listing.
//!
//! Every inode that a reply tells the kernel of is counted as a lookup before; see [`crate::lookups`].

use cfs_format::Ino;
use cfs_fs::{Attr, DirEntry, FsError, RenameFlags, Result};
use zerocopy::IntoBytes;

use super::Adapter;
use crate::abi::{self, FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE, InHeader};
use crate::convert::{NameStays, absent, caller, entry};

/// Boundary that entries of a listing end at, bytes.
const DIRENT_ALIGNMENT: usize = 8;

impl Adapter {
    pub(super) fn lookup(
        &self,
        header: &InHeader,
        parent: Ino,
        name: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let stays = NameStays::in_directory(parent);
        let is_trusted = header.uid == 0 || header.uid == self.owner;
        match self.fs.lookup(parent, name) {
            Ok(attr) if !is_trusted && self.fs.is_for_root_alone(parent, attr.ino)? => {
                Err(FsError::AccessDenied)
            }
            Err(FsError::NotFound) => {
                out.extend_from_slice(absent(stays).as_bytes());
                Ok(())
            }
            result => self.tell_name(&result?, stays, out),
        }
    }

    /// Tells the kernel of an inode.
    pub(super) fn tell(&self, attr: &Attr, out: &mut Vec<u8>) -> Result<()> {
        self.tell_name(attr, NameStays::Yes, out)
    }

    fn tell_name(&self, attr: &Attr, stays: NameStays, out: &mut Vec<u8>) -> Result<()> {
        self.lookups.count(attr.ino);
        out.extend_from_slice(entry(attr, stays).as_bytes());
        Ok(())
    }

    pub(super) fn symlink(
        &self,
        header: &InHeader,
        parent: Ino,
        name: &[u8],
        target: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let made = self.fs.symlink(parent, name, target, &caller(header, 0))?;
        self.tell(&made, out)
    }

    pub(super) fn mknod(
        &self,
        header: &InHeader,
        parent: Ino,
        make: &abi::MknodIn,
        name: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let caller = caller(header, make.umask);
        let made = self
            .fs
            .mknod(parent, name, make.mode, make.rdev.into(), &caller)?;
        self.tell(&made, out)
    }

    pub(super) fn mkdir(
        &self,
        header: &InHeader,
        parent: Ino,
        make: &abi::MkdirIn,
        name: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let caller = caller(header, make.umask);
        let made = self.fs.mkdir(parent, name, make.mode, &caller)?;
        self.tell(&made, out)
    }

    pub(super) fn link(
        &self,
        ino: Ino,
        new_parent: Ino,
        new_name: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let linked = self.fs.link(ino, new_parent, new_name)?;
        self.tell(&linked, out)
    }

    pub(super) fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let held = self.fs.unlink_and_hold(parent, name)?;
        self.hold(held);
        Ok(())
    }

    pub(super) fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let held = self.fs.rmdir_and_hold(parent, name)?;
        self.hold(held);
        Ok(())
    }

    pub(super) fn rename(
        &self,
        header: &InHeader,
        (parent, name): (Ino, &[u8]),
        (new_parent, new_name): (Ino, &[u8]),
        flags: u32,
    ) -> Result<()> {
        let known = libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT;
        if flags & !known != 0 {
            return Err(FsError::Invalid);
        }
        let kind = RenameFlags {
            no_replace: flags & libc::RENAME_NOREPLACE != 0,
            exchange: flags & libc::RENAME_EXCHANGE != 0,
        };
        let held = if flags & libc::RENAME_WHITEOUT != 0 {
            let caller = caller(header, 0);
            self.fs.rename_leaving_whiteout(
                (parent, name),
                (new_parent, new_name),
                kind,
                &caller,
            )?
        } else {
            self.fs
                .rename_and_hold(parent, name, new_parent, new_name, kind)?
        };
        self.hold(held);
        Ok(())
    }

    /// Holds an inode without a name until the kernel has forgotten it. One hold is enough.
    pub(super) fn hold(&self, held: Option<Ino>) {
        if let Some(ino) = held
            && !self.lookups.hold(ino)
        {
            self.end_hold(ino);
        }
    }

    pub(super) fn opendir(&self, ino: Ino, out: &mut Vec<u8>) -> Result<()> {
        let open_flags = self.listing_stays(ino)?;
        let opened = abi::OpenOut {
            fh: self.directories.open(&self.fs, ino)?,
            open_flags,
            ..abi::OpenOut::default()
        };
        out.extend_from_slice(opened.as_bytes());
        Ok(())
    }

    /// The flags that say whether the kernel remembers what the directory lists, and goes on with what it has. It drops that by
    /// itself when the directory changes through it, and is told of other changes.
    fn listing_stays(&self, ino: Ino) -> Result<u32> {
        if ino.lists_snapshots() {
            return Ok(0);
        }
        // As of a file's content: a listing that changes the access time is asked for here.
        match self.fs.atime_is_due(ino)? {
            true => Ok(FOPEN_CACHE_DIR),
            false => Ok(FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE),
        }
    }

    pub(super) fn readdir(
        &self,
        ino: Ino,
        read: &abi::ReadIn,
        with_attributes: bool,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let bytes_max = read.size as usize;
        let before = if with_attributes {
            size_of::<abi::EntryOut>()
        } else {
            0
        };
        let listed = self
            .directories
            .list(&self.fs, ino, read.fh, read.offset, |listed| {
                let bytes = before + size_of::<abi::Dirent>() + listed.name.len();
                if out.len() + bytes.next_multiple_of(DIRENT_ALIGNMENT) > bytes_max {
                    return Ok(true);
                }
                if with_attributes && !self.tell_listed(ino, listed, out)? {
                    return Ok(false);
                }
                let dirent = abi::Dirent {
                    ino: listed.ino.0,
                    off: listed.cookie,
                    namelen: listed.name.len() as u32,
                    kind: listed.kind >> 12,
                };
                out.extend_from_slice(dirent.as_bytes());
                out.extend_from_slice(&listed.name);
                out.resize(out.len().next_multiple_of(DIRENT_ALIGNMENT), 0);
                Ok(false)
            });
        match listed {
            // What has been counted must be told; the error comes when what follows is asked for.
            Err(_) if !out.is_empty() => Ok(()),
            listed => listed,
        }
    }

    /// Puts the inode of a listed name before it; false if it went away between the listing and now.
    fn tell_listed(&self, parent: Ino, listed: &DirEntry, out: &mut Vec<u8>) -> Result<bool> {
        if matches!(&listed.name[..], b"." | b"..") || parent.lists_snapshots() {
            // The kernel does not look at these two, and does not count them. Of a snapshot it is told when somebody
            // wants to enter it.
            out.extend_from_slice(abi::EntryOut::default().as_bytes());
            return Ok(true);
        }
        match self.fs.getattr(listed.ino) {
            Ok(attr) => {
                let stays = NameStays::in_directory(parent);
                self.tell_name(&attr, stays, out).map(|()| true)
            }
            Err(FsError::NotFound | FsError::Stale) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
