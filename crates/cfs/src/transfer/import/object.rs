//! One object from the host into a pool: files, links, devices, further names.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;

use cfs_format::Ino;
use cfs_fs::{Attr, Caller, FsError, SetAttr, SetTime};
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::{Import, Job, host, interrupted};
use crate::transfer::Trouble;
use crate::transfer::host_object::HostObject;
use crate::transfer::host_tree::{Meta, set_pool_xattrs};

/// Bytes that one read moves, which stay in a core's cache until they are copied on.
const COPY_BYTES: usize = 256 << 10;

impl Import<'_, '_> {
    /// What is in the pool at the job's place.
    pub(super) fn existing(&self, job: &Job<'_>) -> std::result::Result<Option<Attr>, FsError> {
        if job.to.fresh {
            return Ok(None);
        }
        match self.fs().lookup(job.to.ino, &job.to_name) {
            Ok(attr) => Ok(Some(attr)),
            Err(FsError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a further name of a file that has been copied, or copies it if that failed.
    pub(super) fn link(
        &self,
        job: &Job<'_>,
        buffer: &mut Vec<u8>,
    ) -> std::result::Result<(), Trouble> {
        let first = self
            .linked
            .lock()
            .get(&(job.meta.dev, job.meta.ino))
            .copied();
        let Some(first) = first else {
            return self.copy(job, buffer);
        };
        match self.existing(job)? {
            Some(attr) if attr.ino == first => {}
            Some(attr) => {
                self.remove(job, &attr)?;
                self.fs().link(first, job.to.ino, &job.to_name)?;
            }
            None => {
                self.fs().link(first, job.to.ino, &job.to_name)?;
            }
        }
        self.entry_changed(job);
        self.inode_changed(first);
        self.run.add(|it| &it.hard_links, 1);
        Ok(())
    }

    pub(super) fn copy(
        &self,
        job: &Job<'_>,
        buffer: &mut Vec<u8>,
    ) -> std::result::Result<(), Trouble> {
        let existing = self.existing(job)?;
        let ino = match (job.meta.kind(), existing) {
            (_, Some(attr)) if self.is_same(job, &attr)? => {
                match job.meta.kind() {
                    libc::S_IFREG => self.run.add(|it| &it.files_skipped, 1),
                    _ => self.run.add(|it| &it.others, 1),
                }
                attr.ino
            }
            (libc::S_IFREG, existing) => self.copy_file(job, existing, buffer)?,
            (_, existing) => self.copy_other(job, existing)?,
        };
        if job.meta.nlink > 1 {
            self.linked.lock().insert((job.meta.dev, job.meta.ino), ino);
        }
        Ok(())
    }

    fn is_same(&self, job: &Job<'_>, attr: &Attr) -> std::result::Result<bool, Trouble> {
        let wanted = self.run.as_copied(job.meta);
        if !wanted.matches(&Meta::from(attr), self.run.keep_owner) {
            return Ok(false);
        }
        if attr.kind() == libc::S_IFREG {
            // What cannot be read is copied again, which heals it.
            return Ok(!self.fs().has_bad_content(attr.ino)?);
        }
        if attr.kind() != libc::S_IFLNK {
            return Ok(true);
        }
        Ok(self.fs().readlink(attr.ino)? == read_link(job)?)
    }

    /// Makes room for something of another kind.
    pub(super) fn remove(&self, job: &Job<'_>, attr: &Attr) -> std::result::Result<(), Trouble> {
        if attr.kind() == libc::S_IFDIR {
            return Err(Trouble::Object(
                "in the pool there is a directory".to_owned(),
            ));
        }
        self.fs().unlink(job.to.ino, &job.to_name)?;
        self.entry_changed(job);
        Ok(())
    }

    fn copy_file(
        &self,
        job: &Job<'_>,
        existing: Option<Attr>,
        buffer: &mut Vec<u8>,
    ) -> std::result::Result<Ino, Trouble> {
        let source = open_file(job)?;
        let stat = rustix::fs::fstat(&source).map_err(|errno| host("examine", errno))?;
        let meta = Meta::from(&stat);
        if (meta.dev, meta.ino, meta.kind()) != (job.meta.dev, job.meta.ino, libc::S_IFREG) {
            return Err(changed());
        }
        let attr = match existing {
            Some(attr) if attr.kind() == libc::S_IFREG => attr,
            other => {
                if let Some(attr) = other {
                    self.remove(job, &attr)?;
                }
                let made = self
                    .fs()
                    .create(job.to.ino, &job.to_name, 0o600, &self.caller(&meta));
                self.entry_changed(job);
                match made {
                    Ok(attr) => attr,
                    // Somebody else has made it meanwhile.
                    Err(FsError::Exists) => {
                        let attr = self.fs().lookup(job.to.ino, &job.to_name)?;
                        if attr.kind() != libc::S_IFREG {
                            return Err(FsError::Exists.into());
                        }
                        attr
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        };
        if attr.size > 0 {
            let empty = SetAttr {
                size: Some(0),
                ..SetAttr::default()
            };
            self.fs().setattr(attr.ino, &empty)?;
        }
        let ino = attr.ino;
        let end = self.copy_content(&source, &meta, ino, buffer)?;
        if end < meta.size {
            let tail = SetAttr {
                size: Some(meta.size),
                ..SetAttr::default()
            };
            self.fs().setattr(ino, &tail)?;
        }
        let xattrs = HostObject::Open(&source)
            .xattrs()
            .map_err(|errno| host("read the extended attributes", errno))?;
        set_pool_xattrs(self.fs(), ino, &xattrs)?;
        let stat = rustix::fs::fstat(&source).map_err(|errno| host("examine", errno))?;
        let after = Meta::from(&stat);
        if (after.size, after.mtime) != (meta.size, meta.mtime) {
            return Err(changed());
        }
        self.set_attributes(ino, &meta)?;
        self.inode_changed(ino);
        self.run.add(|it| &it.files, 1);
        Ok(ino)
    }

    /// Copies all that is not a hole; returns where the last byte that was written ends.
    fn copy_content(
        &self,
        source: &OwnedFd,
        meta: &Meta,
        ino: Ino,
        buffer: &mut Vec<u8>,
    ) -> std::result::Result<u64, Trouble> {
        let sparse = meta.allocated_bytes < meta.size;
        let mut offset = 0;
        let mut written_to = 0;
        while offset < meta.size {
            let (start, end) = match sparse {
                true => match next_data(source, offset)? {
                    Some(range) => range,
                    None => break,
                },
                false => (offset, meta.size),
            };
            offset = start;
            while offset < end.min(meta.size) {
                if self.run.stopped() {
                    return Err(Trouble::Run(interrupted()));
                }
                let wanted = (end.min(meta.size) - offset).min(COPY_BYTES as u64) as usize;
                buffer.resize(wanted.max(buffer.len()), 0);
                let read = rustix::io::pread(source, &mut buffer[..wanted], offset)
                    .map_err(|errno| host("read", errno))?;
                if read == 0 {
                    return Err(changed());
                }
                let mut rest = &buffer[..read];
                while !rest.is_empty() {
                    let written = self.fs().write(ino, offset, rest, false)?;
                    rest = &rest[written..];
                    offset += written as u64;
                }
                written_to = offset;
                self.run.add(|it| &it.bytes, read as u64);
            }
        }
        Ok(written_to)
    }

    fn copy_other(
        &self,
        job: &Job<'_>,
        existing: Option<Attr>,
    ) -> std::result::Result<Ino, Trouble> {
        if let Some(attr) = existing {
            self.remove(job, &attr)?;
        }
        let caller = self.caller(&job.meta);
        let attr = match job.meta.kind() {
            libc::S_IFLNK => {
                self.fs()
                    .symlink(job.to.ino, &job.to_name, &read_link(job)?, &caller)?
            }
            _ => {
                let mode = job.meta.kind() | 0o600;
                self.fs()
                    .mknod(job.to.ino, &job.to_name, mode, job.meta.rdev, &caller)?
            }
        };
        self.entry_changed(job);
        let xattrs = job
            .from
            .fd()
            .and_then(|dir| HostObject::Named(&dir, &job.name).xattrs())
            .map_err(|errno| host("read the extended attributes", errno))?;
        set_pool_xattrs(self.fs(), attr.ino, &xattrs)?;
        self.set_attributes(attr.ino, &job.meta)?;
        self.run.add(|it| &it.others, 1);
        Ok(attr.ino)
    }

    /// Mode, owner and times, in one command.
    pub(super) fn set_attributes(&self, ino: Ino, meta: &Meta) -> std::result::Result<(), Trouble> {
        let caller = self.caller(meta);
        let wanted = SetAttr {
            mode: (meta.kind() != libc::S_IFLNK).then_some(self.run.as_copied(*meta).permissions()),
            uid: Some(caller.uid),
            gid: Some(caller.gid),
            atime: Some(SetTime::At(meta.atime)),
            mtime: Some(SetTime::At(meta.mtime)),
            ..SetAttr::default()
        };
        self.fs().setattr(ino, &wanted)?;
        Ok(())
    }

    /// Who owns the copy: as root its owner, else whoever runs this.
    pub(super) fn caller(&self, meta: &Meta) -> Caller {
        let (uid, gid) = match self.run.keep_owner {
            true => (meta.uid, meta.gid),
            false => (
                rustix::process::geteuid().as_raw(),
                rustix::process::getegid().as_raw(),
            ),
        };
        Caller {
            uid,
            gid,
            pid: std::process::id(),
            umask: 0,
        }
    }
}

fn open_file(job: &Job<'_>) -> std::result::Result<OwnedFd, Trouble> {
    let dir = job.from.fd().map_err(|errno| host("open", errno))?;
    rustix::fs::openat(
        &dir,
        &*job.name,
        // A named pipe that took the file's place must not hold the worker up.
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| host("open", errno))
}

fn read_link(job: &Job<'_>) -> std::result::Result<Vec<u8>, Trouble> {
    let name: &CStr = &job.name;
    let dir = job
        .from
        .fd()
        .map_err(|errno| host("read the link", errno))?;
    rustix::fs::readlinkat(&dir, name, Vec::new())
        .map(CString::into_bytes)
        .map_err(|errno| host("read the link", errno))
}

/// The next range at or after `offset` that is not a hole.
fn next_data(source: &OwnedFd, offset: u64) -> std::result::Result<Option<(u64, u64)>, Trouble> {
    let start = match rustix::fs::seek(source, SeekFrom::Data(offset)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(errno) => return Err(host("find the data", errno)),
    };
    let end = rustix::fs::seek(source, SeekFrom::Hole(start))
        .map_err(|errno| host("find the data", errno))?;
    Ok(Some((start, end)))
}

fn changed() -> Trouble {
    Trouble::Object("it changed while it was read; run the same command again".to_owned())
}
