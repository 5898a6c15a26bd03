//! A mounted session: what the kernel is told at its start, and how it ends.
//!
//! The file system behind a mount has no other writer than this kernel, so names and attributes may be cached for as
//! long as the kernel likes; what changes behind its back is announced with [`Mounted::invalidate_inode`] and
//! [`Mounted::invalidate_entry`]. There is no write-back cache: every write is seen by the file system before the
//! system call returns (and sequential writes are quicker so).

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fuser::{
    BackgroundSession, Config, Filesystem, INodeNo, InitFlags, KernelConfig, MountOption, Notifier,
    Session, SessionACL,
};
use parking_lot::Mutex;

use crate::mountpoint::{self, Attachment, MountError};

/// Bytes of the largest write that the kernel sends in one request: its limit unless `fs.fuse.max_pages_limit` is
/// raised.
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Bytes that the kernel reads ahead of a sequential reader.
const READ_AHEAD_BYTES: u32 = 1 << 20;
/// Requests that the kernel sends without a caller waiting (read-ahead, write-back of mapped pages).
const BACKGROUND_REQUESTS_MAX: u16 = 64;
/// How long the kernel may trust names, absent names and attributes.
pub const CACHE_TIME: Duration = Duration::from_secs(24 * 3600);

/// What is asked of the kernel; what it does not have is left out.
const CAPABILITIES: [InitFlags; 13] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_BIG_WRITES,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_EXPORT_SUPPORT,
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    // The umask arrives with the request: a default ACL takes its place.
    InitFlags::FUSE_POSIX_ACL.union(InitFlags::FUSE_DONT_MASK),
    // Without it the kernel asks for `security.capability` before each write.
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
];

/// Agrees with the kernel on what requests look like. Called by a file system's `init`.
pub fn configure_kernel(config: &mut KernelConfig) {
    for capability in CAPABILITIES {
        if let Err(missing) = config.add_capabilities(capability) {
            tracing::debug!(?missing, "the kernel lacks a FUSE capability");
        }
    }
    config
        .set_max_write(WRITE_BYTES_MAX)
        .expect("below the largest buffer");
    config
        .set_max_background(BACKGROUND_REQUESTS_MAX)
        .expect("not zero");
}

/// Where and how to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// An existing, empty directory.
    pub mountpoint: PathBuf,
    /// First column of the mount table.
    pub fsname: String,
    /// Let other users in; permissions are checked by the kernel as on any file system.
    pub allow_other: bool,
    /// Refuse every change.
    pub read_only: bool,
    /// Show in the mount table that reading does not update access times; [`cfs_fs::FsOptions::atime`] decides.
    pub noatime: bool,
    /// Mount even where there are files, or where something is mounted already.
    pub allow_nonempty: bool,
    /// Threads that answer the kernel, each with a descriptor of its own; at least 1.
    pub threads: usize,
}

impl MountOptions {
    /// The usual options: other users are let in when root mounts.
    #[must_use]
    pub fn new(mountpoint: impl Into<PathBuf>) -> Self {
        Self {
            mountpoint: mountpoint.into(),
            fsname: "cfs".to_owned(),
            allow_other: rustix::process::geteuid().is_root(),
            read_only: false,
            noatime: false,
            allow_nonempty: false,
            threads: 4,
        }
    }
}

/// Why a session ended other than by being unmounted.
#[derive(Debug, thiserror::Error)]
#[error("the FUSE session at {path} failed: {source}")]
pub struct SessionError {
    /// The mount point.
    pub path: PathBuf,
    /// The cause.
    pub source: io::Error,
}

/// Why unmounting failed. It is still mounted.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// Files are open there, or it is somebody's working directory.
    #[error("{0} is in use; close the files that are open there, or detach it")]
    Busy(PathBuf),
    /// Another reason.
    #[error("unmounting {path} failed: {source}")]
    Failed {
        /// The mount point.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// A mounted file system. Dropping it detaches the mount and waits until the last file there is closed.
pub struct Mounted {
    path: PathBuf,
    device: (u32, u32),
    notifier: Notifier,
    /// `None` once somebody has waited for its end.
    session: Mutex<Option<BackgroundSession>>,
}

/// Mounts `filesystem`, whose `init` must call [`configure_kernel`], and starts to answer requests.
///
/// # Errors
/// See [`MountError`]; nothing is mounted then.
pub fn mount_filesystem(
    filesystem: impl Filesystem,
    options: &MountOptions,
) -> Result<Mounted, MountError> {
    let path = mountpoint::check(options)?;
    let mut config = Config::default();
    config.n_threads = Some(options.threads.max(1));
    config.clone_fd = true;
    config.acl = if options.allow_other {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    let session = match mountpoint::attach(&path, options)? {
        Attachment::Direct(device) => {
            Session::from_fd(filesystem, device, config.acl, config).map_err(|source| {
                // The descriptor is closed by now, so the mount is dead and only its entry is left.
                let _ = mountpoint::unmount(&path, true);
                MountError::Session {
                    path: path.clone(),
                    source,
                }
            })?
        }
        Attachment::ThroughHelper => {
            config.mount_options = helper_options(options);
            Session::new(filesystem, &path, &config)
                .map_err(|source| mountpoint::helper_error(&path, source))?
        }
    };
    start(session, path)
}

fn helper_options(options: &MountOptions) -> Vec<MountOption> {
    let mut list = vec![
        MountOption::FSName(options.fsname.clone()),
        MountOption::Subtype("cfs".to_owned()),
        MountOption::DefaultPermissions,
    ];
    if options.read_only {
        list.push(MountOption::RO);
    }
    if options.noatime {
        list.push(MountOption::NoAtime);
    }
    list
}

fn start<F: Filesystem>(session: Session<F>, path: PathBuf) -> Result<Mounted, MountError> {
    let failed = |path: &Path, source| {
        let _ = mountpoint::unmount(path, true);
        MountError::Session {
            path: path.to_path_buf(),
            source,
        }
    };
    let session = session.spawn().map_err(|source| failed(&path, source))?;
    let Some(entry) = mountpoint::mounted_at(&path) else {
        let source = io::Error::other("it is not in the mount table");
        return Err(failed(&path, source));
    };
    if let Err(error) = mountpoint::raise_read_ahead(entry.device, READ_AHEAD_BYTES) {
        tracing::debug!(%error, "read-ahead stays at the kernel's default");
    }
    Ok(Mounted {
        path,
        device: entry.device,
        notifier: session.notifier(),
        session: Mutex::new(Some(session)),
    })
}

impl Mounted {
    /// The mount point, without symbolic links.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        &self.path
    }

    /// Major and minor number of the mounted file system, as in `st_dev`.
    #[must_use]
    pub fn device_number(&self) -> (u32, u32) {
        self.device
    }

    /// Returns when the file system has been unmounted, by whomever, and the last request is answered.
    ///
    /// # Errors
    /// When the session broke instead; it is unmounted then too.
    pub fn wait(&self) -> Result<(), SessionError> {
        let mut session = self.session.lock();
        let Some(session) = session.take() else {
            return Ok(());
        };
        session.join().map_err(|source| {
            let _ = self.detach();
            SessionError {
                path: self.path.clone(),
                source,
            }
        })
    }

    /// Unmounts. [`Mounted::wait`] then returns. Does nothing when it is unmounted already.
    ///
    /// # Errors
    /// See [`UnmountError`]; nothing changed.
    pub fn unmount(&self) -> Result<(), UnmountError> {
        self.unmount_with(false)
    }

    /// Takes the mount out of the tree at once; open files go on working and the session ends with the last of them.
    ///
    /// # Errors
    /// [`UnmountError::Failed`]; nothing changed.
    pub fn detach(&self) -> Result<(), UnmountError> {
        self.unmount_with(true)
    }

    fn unmount_with(&self, detach: bool) -> Result<(), UnmountError> {
        // Something else may have been mounted here after ours went away.
        let ours =
            mountpoint::mounted_at(&self.path).map(|entry| entry.device) == Some(self.device);
        if !ours {
            return Ok(());
        }
        mountpoint::unmount(&self.path, detach).map_err(|source| match source.kind() {
            io::ErrorKind::ResourceBusy => UnmountError::Busy(self.path.clone()),
            _ => UnmountError::Failed {
                path: self.path.clone(),
                source,
            },
        })
    }

    /// Makes the kernel forget the attributes and cached content of an inode that changed behind its back.
    ///
    /// # Errors
    /// When the kernel refuses; it may then go on showing what it has cached.
    pub fn invalidate_inode(&self, ino: u64) -> io::Result<()> {
        self.notifier.inval_inode(INodeNo(ino), 0, 0)
    }

    /// Makes the kernel look up a name again that appeared, vanished or changed behind its back.
    ///
    /// Not to be called from a request on the same directory: the kernel holds the directory's lock while it waits
    /// for the answer.
    ///
    /// # Errors
    /// When the kernel refuses; it may then go on showing what it has cached.
    pub fn invalidate_entry(&self, parent: u64, name: &[u8]) -> io::Result<()> {
        self.notifier
            .inval_entry(INodeNo(parent), OsStr::from_bytes(name))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let Some(session) = self.session.get_mut().take() else {
            return;
        };
        match self.unmount_with(true) {
            Ok(()) => {
                if let Err(error) = session.join() {
                    tracing::error!(%error, path = %self.path.display(), "the FUSE session failed");
                }
            }
            // Joining would wait for ever.
            Err(error) => tracing::error!(%error, "left mounted until this process ends"),
        }
    }
}
