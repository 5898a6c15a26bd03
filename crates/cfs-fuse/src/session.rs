//! A mounted session: what the kernel is told at its start, and how it ends.
//!
//! The file system behind a mount has no other writer than this kernel, so names and attributes may be cached for as
//! long as the kernel likes; what changes behind its back is announced with [`Mounted::invalidate_inode`] and
//! [`Mounted::invalidate_entry`]. There is no write-back cache: every write is seen by the file system before the
//! system call returns (and sequential writes are quicker so).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use cfs_fs::Fs;
use parking_lot::{Mutex, RwLock};
use rustix::fs::{Mode, OFlags};

use crate::adapter::{Adapter, Answer};
use crate::agreement::{self, Agreement, READ_AHEAD_BYTES, REQUEST_BYTES_MAX};
use crate::channel::Channel;
use crate::crew::{Crew, Streak};
use crate::durable::{Caller, Durable, Flushing, settle};
use crate::mountpoint::{self, Attached, MountError};
use crate::request::{Request, RequestError};

/// Threads beside those that receive, for callers that want much to be durable.
const FLUSH_THREADS: usize = 3;

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
    /// Have sync(2) and syncfs(2) write everything out, where the kernel can: as root, on Linux 6.18 and later, with a
    /// loop device under the mount, whose name then stands in the first column of the mount table.
    pub sync_calls: bool,
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
            sync_calls: true,
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
    /// `None` once the session has failed.
    channel: RwLock<Option<Arc<Channel>>>,
    /// `None` once somebody has waited for its end.
    session: Mutex<Option<Session>>,
}

/// Mounts `fs` and starts to answer requests. The caller goes on calling [`Fs::tick`], and closes `fs` after
/// [`Mounted::wait`].
///
/// # Errors
/// See [`MountError`]; nothing is mounted then.
pub fn mount(fs: Arc<Fs>, options: &MountOptions) -> Result<Mounted, MountError> {
    let path = mountpoint::check(options)?;
    let attached = mountpoint::attach(&path, options)?;
    // The descriptor is closed when this fails: unmounting would otherwise wait for an answer that nobody gives.
    start(fs, &path, attached, options).map_err(|source| {
        let _ = mountpoint::unmount(&path, true);
        MountError::Session { path, source }
    })
}

fn start(
    fs: Arc<Fs>,
    path: &Path,
    attached: Attached,
    options: &MountOptions,
) -> io::Result<Mounted> {
    let channel = Arc::new(Channel::new(attached.device)?);
    let mut buffer = vec![0; REQUEST_BYTES_MAX];
    let agreement = agreement::agree(&channel, &mut buffer)?;
    let entry = mountpoint::mounted_at(path)
        .ok_or_else(|| io::Error::other("it is not in the mount table"))?;
    let session = Session::start(fs, &channel, agreement, options.threads.max(1))?;
    if attached.has_carrier {
        // The first one to arrive tells the adapter that they do.
        if let Err(error) = sync(path) {
            tracing::warn!(%error, "the first sync of the mount failed");
        }
    }
    if let Err(error) = mountpoint::raise_read_ahead(entry.device, READ_AHEAD_BYTES) {
        tracing::debug!(%error, "read-ahead stays at the kernel's default");
    }
    Ok(Mounted {
        path: path.to_path_buf(),
        device: entry.device,
        channel: RwLock::new(Some(channel)),
        session: Mutex::new(Some(session)),
    })
}

/// Has the kernel hand over what it holds of memory-mapped files, and write everything out if it passes that on.
///
/// # Errors
/// When the mount point cannot be opened, or writing failed.
fn sync(mountpoint: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(mountpoint, flags, Mode::empty())?;
    Ok(rustix::fs::syncfs(&root)?)
}

/// The threads that answer the kernel.
struct Session {
    adapter: Arc<Adapter>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Session {
    /// # Errors
    /// When a thread cannot be started. Those that were end with the session's descriptors.
    fn start(
        fs: Arc<Fs>,
        channel: &Arc<Channel>,
        agreement: Agreement,
        count: usize,
    ) -> io::Result<Self> {
        let adapter = Arc::new(Adapter::new(fs, agreement));
        let durable = Arc::new(Durable::new(Arc::clone(&adapter)));
        let crew = Arc::new(Crew::new());
        let (flushes, flushing) = mpsc::channel();
        let mut threads = Vec::with_capacity(count + FLUSH_THREADS + 1);
        for number in 0..count {
            let channel = match number {
                0 => Arc::clone(channel),
                _ => match channel.another() {
                    Ok(another) => Arc::new(another),
                    Err(error) => {
                        tracing::debug!(%error, "threads share a descriptor");
                        Arc::clone(channel)
                    }
                },
            };
            let server = Server {
                adapter: Arc::clone(&adapter),
                channel,
                crew: Arc::clone(&crew),
                durable: Arc::clone(&durable),
                flushes: flushes.clone(),
                agreement,
            };
            let thread = std::thread::Builder::new()
                .name(format!("fuse {number}"))
                .spawn(move || {
                    let served = server.serve();
                    server.crew.end();
                    served
                })?;
            threads.push(thread);
        }
        let flushing = Arc::new(Mutex::new(flushing));
        for number in 0..FLUSH_THREADS {
            let (durable, flushing) = (Arc::clone(&durable), Arc::clone(&flushing));
            // They end when those that receive have ended.
            let thread = std::thread::Builder::new()
                .name(format!("fuse flush {number}"))
                .spawn(move || durable.flush_all(&flushing))?;
            threads.push(thread);
        }
        let watch = std::thread::Builder::new()
            .name("fuse watch".to_owned())
            .spawn(move || {
                crew.keep_watch();
                Ok(())
            })?;
        threads.push(watch);
        Ok(Self { adapter, threads })
    }

    /// Returns when all threads have ended.
    ///
    /// # Errors
    /// The first failure.
    fn join(self) -> io::Result<()> {
        let mut result = Ok(());
        for thread in self.threads {
            let ended = thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a thread has panicked")));
            result = result.and(ended);
        }
        self.adapter.end();
        result
    }
}

/// What a thread needs to answer the kernel.
struct Server {
    adapter: Arc<Adapter>,
    channel: Arc<Channel>,
    crew: Arc<Crew>,
    durable: Arc<Durable>,
    flushes: mpsc::Sender<Flushing>,
    agreement: Agreement,
}

impl Server {
    /// Answers requests until the session ends.
    fn serve(&self) -> io::Result<()> {
        let mut buffer = vec![0; REQUEST_BYTES_MAX];
        let mut out = Vec::new();
        let mut streak = Streak::default();
        if !self.crew.join() {
            return Ok(());
        }
        while let Some(len) = self.crew.receive(&self.channel, &mut buffer, &mut streak)? {
            let request = match Request::parse(&buffer[..len], self.agreement.setxattr_ext) {
                Ok(request) => request,
                Err(error) => {
                    tracing::error!(%error, "the kernel sent what is not understood");
                    if let RequestError::Body { unique, .. } = error {
                        self.channel.refuse(unique, libc::EIO)?;
                    }
                    continue;
                }
            };
            out.clear();
            let may_wait = request.operation.may_wait();
            self.crew.begin_answer(may_wait, &streak);
            let has_waited = self.answer(&request, &mut out)?;
            if !self.crew.end_answer(may_wait || has_waited) {
                break;
            }
        }
        Ok(())
    }

    /// Answers a request, or leaves that to another thread. Whether this one has left receiving to others meanwhile.
    ///
    /// # Errors
    /// When the device of the session fails.
    fn answer(&self, request: &Request<'_>, out: &mut Vec<u8>) -> io::Result<bool> {
        let (unique, opcode) = (request.header.unique, request.header.opcode);
        let channel = &self.channel;
        let caller = || Caller {
            channel: Arc::clone(channel),
            unique,
            opcode,
        };
        let sent = match self.adapter.answer(request, out) {
            Answer::None => Ok(()),
            Answer::Body => channel.reply(unique, &[out]),
            Answer::Parts(parts) => channel.reply(unique, &parts.slices().collect::<Vec<_>>()),
            Answer::Error(errno) => channel.refuse(unique, errno),
            Answer::WhenDurable(lsn) => {
                let begin_wait = || self.crew.begin_wait();
                return self.durable.wait(lsn, caller(), begin_wait);
            }
            Answer::WhenFlushed(flush) => {
                let left = self.flushes.send((flush, caller()));
                return left
                    .or_else(|left| left.0.1.answer(Err(libc::EIO)))
                    .map(|()| false);
            }
        };
        settle(channel, unique, opcode, sent).map(|()| false)
    }
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

    /// Has the kernel hand over what it still holds of memory-mapped files.
    ///
    /// # Errors
    /// When the mount point cannot be opened, or writing failed.
    pub fn sync(&self) -> io::Result<()> {
        sync(&self.path)
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
            // Its threads have ended: nobody would answer what unmounting asks.
            *self.channel.write() = None;
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
        self.with_channel(|channel| channel.invalidate_inode(ino))
    }

    /// Makes the kernel look up a name again that appeared, vanished or changed behind its back.
    ///
    /// Not to be called from a request on the same directory: the kernel holds the directory's lock while it waits
    /// for the answer.
    ///
    /// # Errors
    /// When the kernel refuses; it may then go on showing what it has cached.
    pub fn invalidate_entry(&self, parent: u64, name: &[u8]) -> io::Result<()> {
        self.with_channel(|channel| channel.invalidate_entry(parent, name))
    }

    /// After the session nothing is cached any more.
    fn with_channel(&self, tell: impl FnOnce(&Channel) -> io::Result<()>) -> io::Result<()> {
        self.channel
            .read()
            .as_ref()
            .map_or(Ok(()), |channel| tell(channel))
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
