//! Attributes of one object on the host: by its descriptor where it is open, else by its name in a directory that is.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use cfs_fs::Time;
use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::{Errno, Result};

use super::host_tree::Xattrs;

/// Longest value and list of extended attributes, bytes (Linux).
const XATTR_BYTES_MAX: usize = 64 << 10;

/// An object of the host. What has a name is itself meant, and not what a symbolic link points to.
#[derive(Clone, Copy)]
pub(super) enum HostObject<'a> {
    /// Needs no path to be followed.
    Open(&'a OwnedFd),
    /// An entry of an open directory.
    Named(&'a OwnedFd, &'a CStr),
}

impl HostObject<'_> {
    pub(super) fn set_owner(self, uid: u32, gid: u32) -> Result<()> {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        match self {
            Self::Open(fd) => rustix::fs::fchown(fd, uid, gid),
            Self::Named(dir, name) => {
                rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            }
        }
    }

    /// Of what is no symbolic link.
    pub(super) fn set_permissions(self, permissions: u32) -> Result<()> {
        let mode = Mode::from_raw_mode(permissions);
        match self {
            Self::Open(fd) => rustix::fs::fchmod(fd, mode),
            Self::Named(dir, name) => rustix::fs::chmodat(dir, name, mode, AtFlags::empty()),
        }
    }

    pub(super) fn set_times(self, access: Time, modification: Time) -> Result<()> {
        let times = Timestamps {
            last_access: timespec(access),
            last_modification: timespec(modification),
        };
        match self {
            Self::Open(fd) => rustix::fs::futimens(fd, &times),
            Self::Named(dir, name) => {
                rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            }
        }
    }

    /// Its extended attributes; none where the file system knows none.
    pub(super) fn xattrs(self) -> Result<Xattrs> {
        self.xattr_calls().all()
    }

    /// Gives it exactly these extended attributes. One that the host refuses to this user or file system is returned by
    /// name, and the others are still set.
    pub(super) fn set_xattrs(self, wanted: &Xattrs) -> Result<Vec<Vec<u8>>> {
        let calls = self.xattr_calls();
        let present = calls.all()?;
        let mut refused = Vec::new();
        for (name, value) in wanted {
            if present.iter().any(|it| &it.0 == name && &it.1 == value) {
                continue;
            }
            match calls.set(name, value) {
                Ok(()) => {}
                Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => refused.push(name.clone()),
                Err(errno) => return Err(errno),
            }
        }
        for (name, _) in &present {
            if !wanted.iter().any(|it| &it.0 == name) {
                match calls.remove(name) {
                    // What the host's security modules give every file cannot be taken away, and need not be.
                    Ok(())
                    | Err(Errno::NODATA | Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
        Ok(refused)
    }

    fn xattr_calls(&self) -> XattrCalls<'_> {
        match self {
            Self::Open(fd) => XattrCalls::Open(fd),
            Self::Named(dir, name) => XattrCalls::Path(magic_path(dir, name)),
        }
    }
}

/// The calls that know no name in an open directory.
enum XattrCalls<'a> {
    Open(&'a OwnedFd),
    Path(PathBuf),
}

impl XattrCalls<'_> {
    fn all(&self) -> Result<Xattrs> {
        let names = read_growing(|buf| match self {
            Self::Open(fd) => rustix::fs::flistxattr(fd, buf),
            Self::Path(path) => rustix::fs::llistxattr(path, buf),
        });
        let names = match names {
            Err(Errno::OPNOTSUPP) => return Ok(Xattrs::new()),
            names => names?,
        };
        let mut xattrs = Xattrs::new();
        for name in names.split(|byte| *byte == 0).filter(|it| !it.is_empty()) {
            let value = read_growing(|buf| match self {
                Self::Open(fd) => rustix::fs::fgetxattr(fd, name, buf),
                Self::Path(path) => rustix::fs::lgetxattr(path, name, buf),
            });
            match value {
                Ok(value) => xattrs.push((name.to_vec(), value)),
                // It went meanwhile, or is one that only root reads.
                Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(errno),
            }
        }
        xattrs.sort();
        Ok(xattrs)
    }

    fn set(&self, name: &[u8], value: &[u8]) -> Result<()> {
        match self {
            Self::Open(fd) => rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()),
            Self::Path(path) => rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()),
        }
    }

    fn remove(&self, name: &[u8]) -> Result<()> {
        match self {
            Self::Open(fd) => rustix::fs::fremovexattr(fd, name),
            Self::Path(path) => rustix::fs::lremovexattr(path, name),
        }
    }
}

/// A path of an entry that needs no search. It is good while `dir` is open.
fn magic_path(dir: &OwnedFd, name: &CStr) -> PathBuf {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    path.push(OsStr::from_bytes(name.to_bytes()));
    path
}

/// Bytes of a call that fills a buffer and says `ERANGE` when that is too small.
fn read_growing(call: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut buf = vec![0; 256];
    loop {
        match call(&mut buf) {
            Ok(len) => {
                buf.truncate(len);
                return Ok(buf);
            }
            Err(Errno::RANGE) if buf.len() < XATTR_BYTES_MAX => buf.resize(XATTR_BYTES_MAX, 0),
            Err(errno) => return Err(errno),
        }
    }
}

fn timespec(time: Time) -> Timespec {
    Timespec {
        tv_sec: time.seconds,
        tv_nsec: time.nanos.into(),
    }
}
