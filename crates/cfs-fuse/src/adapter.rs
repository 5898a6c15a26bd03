//! Requests of the kernel as calls of the file system.
//!
//! # What is left to the kernel
//! Permissions (`default_permissions`, POSIX ACLs that it reads as extended attributes), locks, the offset of
//! appending writes, following symbolic links, and caching: names, absent names and attributes are given to it for a
//! day, and what a directory lists until it changes. Inode numbers are never reused. Names of snapshots it remembers for no
//! time, so that each step into one is asked for here, where it is decided whether the caller may take it
//! ([`Fs::is_closed`]), and their listings neither: they come and go without the kernel.
//!
//! # Closing
//! Where sync(2) reaches the file system, `close` costs no round trip (FOPEN_NOFLUSH): RELEASE, which nobody waits for,
//! hands the data over to the log. Accepted data have their room, so `close` has no error to tell; what fails later is
//! told by `fsync`. Elsewhere the kernel asks at each `close`, and the data are in the log when it returns, or nothing
//! could be said of them after a `sync`.

mod attributes;
mod content;
mod names;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cfs_format::{Ino, Lsn};
use cfs_fs::{Fs, FsError, Parts};

use crate::abi::{FSYNC_FDATASYNC, opcode};
use crate::agreement::Agreement;
use crate::directories::Directories;
use crate::lookups::Lookups;
use crate::request::{Operation, Request};

/// Answers the kernel from a file system.
pub(crate) struct Adapter {
    fs: Arc<Fs>,
    directories: Directories,
    lookups: Lookups,
    agreement: Agreement,
    /// Who runs the server, and could read the pool without the mount.
    owner: u32,
    /// The kernel passes sync(2) on: it has done so.
    sync_arrives: AtomicBool,
}

/// What becomes of a request.
pub(crate) enum Answer {
    /// It has no reply.
    None,
    /// The bytes in the buffer.
    Body,
    /// These bytes of a file.
    Parts(Parts),
    /// This error number.
    Error(i32),
    /// An empty body, once the commands up to this one are durable: see [`Adapter::sync_to`].
    WhenDurable(Lsn),
    /// What [`Adapter::flush`] says, which may take long.
    WhenFlushed(Flush),
}

/// What is to be written to the log, and made durable.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Flush {
    /// A file or directory; with `data_only` without its times.
    One { ino: Ino, data_only: bool },
    /// Everything.
    All,
}

impl Adapter {
    pub(crate) fn new(fs: Arc<Fs>, agreement: Agreement) -> Self {
        Self {
            fs,
            directories: Directories::default(),
            lookups: Lookups::default(),
            agreement,
            owner: rustix::process::geteuid().as_raw(),
            sync_arrives: AtomicBool::new(false),
        }
    }

    /// Writes to the log what a caller wants to be durable.
    pub(crate) fn flush(&self, flush: Flush) -> Answer {
        let (opcode, ino, flushed) = match flush {
            Flush::One { ino, data_only } => {
                (opcode::FSYNC, ino, self.fs.begin_fsync(ino, data_only))
            }
            Flush::All => (opcode::SYNCFS, Ino::ROOT, self.fs.begin_syncfs()),
        };
        match flushed {
            Ok(lsn) if self.fs.is_durable(lsn) => Answer::Body,
            Ok(lsn) => Answer::WhenDurable(lsn),
            Err(error) => Answer::Error(errno(opcode, ino, &error)),
        }
    }

    /// Returns when the commands up to this one are durable.
    ///
    /// # Errors
    /// The error number for all who wait for that: whether what they wrote is durable is then unknown.
    pub(crate) fn sync_to(&self, lsn: Lsn) -> Result<(), i32> {
        self.fs.sync_to(lsn).map_err(|error| {
            tracing::error!(%error, lsn = lsn.0, "the log was not made durable; who waits for that is told");
            error.errno()
        })
    }

    /// Does what the request asks. The body of the reply is put into `out`, which is empty.
    pub(crate) fn answer(&self, request: &Request<'_>, out: &mut Vec<u8>) -> Answer {
        let header = &request.header;
        let ino = Ino(header.nodeid);
        let result = match &request.operation {
            Operation::Lookup(name) => self.lookup(header, ino, name, out),
            Operation::Getattr => self.getattr(ino, out),
            Operation::Read(read) => match self.read(ino, read, out) {
                Ok(Some(parts)) => return Answer::Parts(parts),
                result => result.map(drop),
            },
            Operation::Write(write, data) => self.write(ino, write, data, out),
            Operation::Open(open) => self.open(ino, open, out),
            Operation::Create(create, name) => self.create(header, ino, create, name, out),
            Operation::Tmpfile(create) => self.tmpfile(header, ino, create, out),
            Operation::Release(release) => self.release(ino, release),
            Operation::Flush => self.fs.flush(ino),
            Operation::Fsync(fsync) => {
                let data_only = fsync.fsync_flags & FSYNC_FDATASYNC != 0;
                let flush = Flush::One { ino, data_only };
                return match self.fs.is_soon_flushed(ino) {
                    true => self.flush(flush),
                    false => Answer::WhenFlushed(flush),
                };
            }
            Operation::Syncfs => {
                self.sync_arrives.store(true, Ordering::Relaxed);
                return Answer::WhenFlushed(Flush::All);
            }
            Operation::Statx => self.statx(ino, out),
            Operation::Setattr(set) => self.setattr(ino, set, out),
            Operation::Readlink => self.readlink(ino, out),
            Operation::Symlink { name, target } => self.symlink(header, ino, name, target, out),
            Operation::Mknod(make, name) => self.mknod(header, ino, make, name, out),
            Operation::Mkdir(make, name) => self.mkdir(header, ino, make, name, out),
            Operation::Unlink(name) => self.unlink(ino, name),
            Operation::Rmdir(name) => self.rmdir(ino, name),
            Operation::Rename {
                name,
                new_parent,
                new_name,
                flags,
            } => self.rename(header, (ino, name), (Ino(*new_parent), new_name), *flags),
            Operation::Link { inode, new_name } => self.link(Ino(*inode), ino, new_name, out),
            Operation::Statfs => self.statfs(ino, out),
            Operation::Setxattr {
                name,
                value,
                flags,
                setxattr_flags,
            } => self.setxattr(header, name, value, *flags, *setxattr_flags),
            Operation::Getxattr { name, size } => self.getxattr(ino, name, *size, out),
            Operation::Listxattr { size } => self.listxattr(ino, *size, out),
            Operation::Removexattr(name) => self.fs.removexattr(ino, name),
            Operation::Opendir => self.opendir(ino, out),
            Operation::Readdir {
                read,
                with_attributes,
            } => self.readdir(ino, read, *with_attributes, out),
            Operation::Releasedir(release) => self.directories.release(&self.fs, ino, release.fh),
            Operation::Fallocate(allocate) => self.fallocate(header, allocate),
            Operation::Lseek(seek) => self.lseek(ino, seek, out),
            Operation::CopyFileRange { copy, wide } => {
                self.copy_file_range(header, copy, *wide, out)
            }
            Operation::Forget(lookups) => {
                self.forget(ino, *lookups);
                return Answer::None;
            }
            Operation::BatchForget(forgets) => {
                for forget in forgets.iter() {
                    self.forget(Ino(forget.nodeid), forget.nlookup);
                }
                return Answer::None;
            }
            Operation::Destroy => Ok(()),
            Operation::Ioctl => return Answer::Error(libc::ENOTTY),
            // An answer of this kind to INTERRUPT says that none is wanted: each request ends by itself.
            Operation::Interrupt | Operation::Init(..) | Operation::Other => {
                return Answer::Error(libc::ENOSYS);
            }
        };
        match result {
            Ok(()) => Answer::Body,
            Err(error) => Answer::Error(errno(header.opcode, ino, &error)),
        }
    }

    /// The session has ended: what only the kernel still knew of goes.
    pub(crate) fn end(&self) {
        for ino in self.lookups.take_held() {
            self.end_hold(ino);
        }
    }

    fn forget(&self, ino: Ino, lookups: u64) {
        if self.lookups.forget(ino, lookups) {
            self.end_hold(ino);
        }
    }

    pub(crate) fn end_hold(&self, ino: Ino) {
        if let Err(error) = self.fs.end_hold(ino) {
            errno(opcode::FORGET, ino, &error);
        }
    }
}

/// The error for the kernel. Damage is logged here, since the kernel passes on no more than its number.
///
/// An inode that the kernel has been told of can be gone when it asks for more: another one has taken its name. On ESTALE
/// the kernel looks the name up again (`retry_estale` in path_lookup), on ENOENT it would tell the user that there is no
/// such name, though there always was one.
fn errno(opcode: u32, ino: Ino, error: &FsError) -> i32 {
    if let FsError::NotFound = error
        && opcode::is_of_one_inode(opcode)
    {
        return libc::ESTALE;
    }
    if let FsError::Io(_) | FsError::Read(_) = error {
        let operation = opcode::name(opcode);
        tracing::error!(operation, inode = ino.0, %error, "a request failed");
    }
    error.errno()
}
