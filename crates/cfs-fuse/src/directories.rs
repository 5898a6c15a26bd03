//! Open directories: the bound that each listing has.
//!
//! A listing ends at the cookie that was next when it was started or rewound, so that it ends however fast the
//! directory grows. Offsets that the kernel sees are the cookies themselves; `.` and `..` have the two below them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use cfs_format::Ino;
use cfs_fs::{DirEntry, FIRST_COOKIE, Fs, FsError, Result};
use parking_lot::Mutex;

/// Offset after `.`.
const AFTER_SELF: u64 = 1;
/// Offset after `..`.
const AFTER_PARENT: u64 = 2;
const _: () = assert!(AFTER_PARENT < FIRST_COOKIE);
/// Entries asked of the file system at a time. A buffer of the kernel holds 24 to 200 with attributes.
const ENTRIES_PER_STEP: usize = 64;

/// The open directories of a mount.
#[derive(Default)]
pub(crate) struct Directories {
    limits: Mutex<HashMap<u64, u64>>,
    next_handle: AtomicU64,
}

impl Directories {
    /// Opens a directory; returns its handle.
    pub(crate) fn open(&self, fs: &Fs, ino: Ino) -> Result<u64> {
        let limit = fs.open_dir(ino)?;
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.limits.lock().insert(handle, limit);
        Ok(handle)
    }

    /// Forgets a handle.
    pub(crate) fn release(&self, fs: &Fs, ino: Ino, handle: u64) -> Result<()> {
        self.limits.lock().remove(&handle);
        fs.release(ino)
    }

    /// Gives the entries after `offset` to `take` until it returns true for one that does not fit any more. The
    /// cookie of an entry is the offset after it.
    pub(crate) fn list(
        &self,
        fs: &Fs,
        ino: Ino,
        handle: u64,
        offset: u64,
        mut take: impl FnMut(&DirEntry) -> Result<bool>,
    ) -> Result<()> {
        let mut dot = |name: &[u8], ino, cookie| {
            take(&DirEntry {
                ino,
                cookie,
                kind: libc::S_IFDIR,
                name: name.to_vec(),
            })
        };
        if offset < AFTER_SELF && dot(b".", ino, AFTER_SELF)? {
            return Ok(());
        }
        if offset < AFTER_PARENT && dot(b"..", fs.parent(ino)?, AFTER_PARENT)? {
            return Ok(());
        }
        let limit = self.limit(fs, ino, handle, offset)?;
        let mut cookie = if offset <= AFTER_PARENT { 0 } else { offset };
        loop {
            let entries = fs.read_dir(ino, cookie, limit, ENTRIES_PER_STEP)?;
            for entry in &entries {
                if take(entry)? {
                    return Ok(());
                }
                cookie = entry.cookie;
            }
            if entries.len() < ENTRIES_PER_STEP {
                return Ok(());
            }
        }
    }

    /// The bound of the listing, taken anew when it starts from the beginning.
    fn limit(&self, fs: &Fs, ino: Ino, handle: u64, offset: u64) -> Result<u64> {
        if offset == 0 {
            let limit = fs.dir_limit(ino)?;
            self.limits.lock().insert(handle, limit);
            return Ok(limit);
        }
        let limit = self.limits.lock().get(&handle).copied();
        limit.ok_or(FsError::Invalid)
    }
}
