//! ClaudeFS: the file system mounted through FUSE.
//!
//! A thin edge: requests of the kernel become calls of [`cfs_fs::Fs`] and its answers replies. [`mount`] starts it;
//! the [`Mounted`] that it returns waits for the end, unmounts, and tells the kernel what changed behind its back.
//!
//! Not here on purpose: permission checks, locks, a write-back cache and symbolic link resolution, all of which are
//! the kernel's; `O_TMPFILE` and the creation time in `statx`, which `fuser` does not pass on; `FICLONE`, which the
//! kernel does not (`copy_file_range` shares chunks all the same).

mod adapter;
mod convert;
mod directories;
mod mountpoint;
mod session;

use std::sync::Arc;

use cfs_fs::Fs;

pub use mountpoint::{MountError, check};
pub use session::{
    CACHE_TIME, MountOptions, Mounted, SessionError, UnmountError, configure_kernel,
    mount_filesystem,
};

/// Mounts `fs` and starts to answer requests. The caller goes on calling [`Fs::tick`], and closes `fs` after
/// [`Mounted::wait`].
///
/// # Errors
/// See [`MountError`]; nothing is mounted then.
pub fn mount(fs: Arc<Fs>, options: &MountOptions) -> Result<Mounted, MountError> {
    mount_filesystem(adapter::Adapter::new(fs), options)
}
