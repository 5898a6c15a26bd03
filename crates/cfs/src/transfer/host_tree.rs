//! The host's side of a copy: directories by descriptor, so that a tree that changes meanwhile leads nowhere else,
//! and attributes in one form for both sides.
//!
//! A tree has more directories than a process may have descriptors, and a copy comes back to each when all in it is there.
//! So a bounded number stay open, and others are opened again by their names in their parents; what is not the directory
//! that it was is refused.

use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use cfs_format::Ino;
use cfs_fs::{Attr, Fs, FsError, Time};
use parking_lot::Mutex;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, Stat};
use rustix::io::Errno;

/// Directories of one tree that are kept open.
const OPEN_MAX: usize = 256;

/// A directory of the host.
pub struct HostDir {
    place: Place,
    /// Device and inode.
    identity: (u64, u64),
    open: Arc<OpenDirs>,
    /// Its path, for messages.
    pub path: String,
}

/// How a directory is reached.
enum Place {
    /// The one that a copy began with stays open.
    Start(Arc<OwnedFd>),
    /// By its name, unless it is open.
    Below {
        /// None only while it is dropped.
        parent: Option<Arc<HostDir>>,
        name: CString,
        fd: Mutex<Weak<OwnedFd>>,
    },
}

/// The descriptors that are kept, the newest last.
#[derive(Default)]
struct OpenDirs(Mutex<VecDeque<Arc<OwnedFd>>>);

impl OpenDirs {
    fn keep(&self, fd: &Arc<OwnedFd>) {
        let mut kept = self.0.lock();
        kept.push_back(Arc::clone(fd));
        if kept.len() > OPEN_MAX {
            kept.pop_front();
        }
    }
}

/// Extended attributes, names without zero bytes, sorted by name.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Attributes of an object on either side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u64,
    /// Bytes of content.
    pub size: u64,
    /// Bytes of content that are not holes.
    pub allocated_bytes: u64,
    /// Names.
    pub nlink: u64,
    /// Identity on the host: device.
    pub dev: u64,
    /// Identity on the host, or in the pool: inode.
    pub ino: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
}

impl Meta {
    /// Type bits.
    pub fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    /// Permission bits.
    pub fn permissions(&self) -> u32 {
        self.mode & 0o7777
    }

    /// Whether a copy with these attributes needs no second look.
    pub fn matches(&self, copy: &Self, with_owner: bool) -> bool {
        self.mode == copy.mode
            && self.mtime == copy.mtime
            && (self.kind() != libc::S_IFREG || self.size == copy.size)
            && self.rdev == copy.rdev
            && (!with_owner || (self.uid, self.gid) == (copy.uid, copy.gid))
    }
}

impl From<&Stat> for Meta {
    // The types of the fields differ between architectures; none is wider than what they become.
    #[allow(
        clippy::unnecessary_cast,
        clippy::useless_conversion,
        reason = "the fields of `Stat` have other types on other architectures"
    )]
    fn from(stat: &Stat) -> Self {
        let kind = stat.st_mode & libc::S_IFMT;
        let is_node = kind == libc::S_IFCHR || kind == libc::S_IFBLK;
        Self {
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: if is_node { stat.st_rdev } else { 0 },
            size: stat.st_size.max(0) as u64,
            allocated_bytes: (stat.st_blocks as u64).saturating_mul(512),
            nlink: stat.st_nlink.into(),
            dev: stat.st_dev,
            ino: stat.st_ino,
            atime: Time {
                seconds: stat.st_atime,
                nanos: stat.st_atime_nsec as u32,
            },
            mtime: Time {
                seconds: stat.st_mtime,
                nanos: stat.st_mtime_nsec as u32,
            },
        }
    }
}

impl From<&Attr> for Meta {
    fn from(attr: &Attr) -> Self {
        let is_node = attr.kind() == libc::S_IFCHR || attr.kind() == libc::S_IFBLK;
        Self {
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            rdev: if is_node { attr.rdev } else { 0 },
            size: attr.size,
            allocated_bytes: attr.allocated_bytes,
            nlink: attr.nlink.into(),
            dev: 0,
            ino: attr.ino.0,
            atime: attr.atime,
            mtime: attr.mtime,
        }
    }
}

impl Drop for HostDir {
    /// Drops the directories above that nobody else has, one after the other: trees may be deeper than stacks.
    fn drop(&mut self) {
        let mut above = self.place.take_parent();
        while let Some(dir) = above {
            above = Arc::into_inner(dir).and_then(|mut dir| dir.place.take_parent());
        }
    }
}

impl Place {
    fn take_parent(&mut self) -> Option<Arc<HostDir>> {
        match self {
            Self::Start(_) => None,
            Self::Below { parent, .. } => parent.take(),
        }
    }
}

impl HostDir {
    /// Opens a directory by path, following symbolic links.
    pub fn open(path: &std::path::Path) -> rustix::io::Result<Self> {
        let fd = rustix::fs::open(
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        Ok(Self {
            identity: identity(&fd)?,
            place: Place::Start(Arc::new(fd)),
            open: Arc::default(),
            path: path.to_string_lossy().into_owned(),
        })
    }

    /// Opens a directory in this one, not following a symbolic link.
    pub fn open_dir(self: &Arc<Self>, name: &CStr) -> rustix::io::Result<Self> {
        let fd = Arc::new(open_below(&*self.fd()?, name)?);
        self.open.keep(&fd);
        Ok(Self {
            identity: identity(&fd)?,
            place: Place::Below {
                parent: Some(Arc::clone(self)),
                name: name.to_owned(),
                fd: Mutex::new(Arc::downgrade(&fd)),
            },
            open: Arc::clone(&self.open),
            path: self.path_of(name),
        })
    }

    /// The device that it is on.
    pub fn dev(&self) -> u64 {
        self.identity.0
    }

    /// The directory, opened again if need be.
    ///
    /// # Errors
    /// Those of openat(2); `ESTALE` if another directory has its name now.
    pub fn fd(&self) -> rustix::io::Result<Arc<OwnedFd>> {
        // Trees may be deeper than stacks: no call for each level.
        let mut closed = Vec::new();
        let mut dir = self;
        let mut fd = loop {
            match &dir.place {
                Place::Start(fd) => break Arc::clone(fd),
                Place::Below { parent, fd, .. } => {
                    if let Some(fd) = fd.lock().upgrade() {
                        break fd;
                    }
                    closed.push(dir);
                    dir = parent.as_ref().expect("only a drop takes it");
                }
            }
        };
        for dir in closed.into_iter().rev() {
            let Place::Below { name, fd: kept, .. } = &dir.place else {
                unreachable!("the first one is never closed");
            };
            let again = Arc::new(open_below(&fd, name)?);
            if identity(&again)? != dir.identity {
                return Err(Errno::STALE);
            }
            self.open.keep(&again);
            *kept.lock() = Arc::downgrade(&again);
            fd = again;
        }
        Ok(fd)
    }

    /// The path of an entry, for messages.
    pub fn path_of(&self, name: &CStr) -> String {
        super::pool_path::join(&self.path, name.to_bytes())
    }

    /// Attributes of an entry itself, not of what it may point to.
    pub fn stat(&self, name: &CStr) -> rustix::io::Result<Meta> {
        let stat = rustix::fs::statat(&self.fd()?, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Meta::from(&stat))
    }

    /// The names in it, without `.` and `..`.
    pub fn names(&self) -> rustix::io::Result<Vec<CString>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd()?)? {
            let entry = entry?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }
}

fn open_below(parent: &OwnedFd, name: &CStr) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(
        parent,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

fn identity(fd: &OwnedFd) -> rustix::io::Result<(u64, u64)> {
    let meta = Meta::from(&rustix::fs::fstat(fd)?);
    Ok((meta.dev, meta.ino))
}

/// Extended attributes of an inode of the pool.
pub fn pool_xattrs(fs: &Fs, ino: Ino) -> Result<Xattrs, FsError> {
    let mut xattrs = Xattrs::new();
    for name in fs.listxattr(ino)? {
        match fs.getxattr(ino, &name) {
            Ok(value) => xattrs.push((name, value)),
            Err(FsError::NoData) => {}
            Err(error) => return Err(error),
        }
    }
    xattrs.sort();
    Ok(xattrs)
}

/// Gives an inode of the pool exactly these extended attributes.
pub fn set_pool_xattrs(fs: &Fs, ino: Ino, wanted: &Xattrs) -> Result<(), FsError> {
    let present = pool_xattrs(fs, ino)?;
    for (name, value) in wanted {
        if !present.iter().any(|it| &it.0 == name && &it.1 == value) {
            fs.setxattr(ino, name, value, cfs_fs::XattrFlags::default())?;
        }
    }
    for (name, _) in &present {
        if !wanted.iter().any(|it| &it.0 == name) {
            match fs.removexattr(ino, name) {
                Ok(()) | Err(FsError::NoData) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}
