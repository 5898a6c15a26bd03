//! Plain values that cross the API: attributes, times, callers, directory entries, options.

use cfs_format::table::{InodeRecord, TimeRecord};
use cfs_format::{Ino, VolumeId};
use serde::{Deserialize, Serialize};

/// A point in time: seconds since 1970, possibly negative, and nanoseconds 0..=999,999,999.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Time {
    /// Whole seconds.
    pub seconds: i64,
    /// Nanoseconds beyond them.
    pub nanos: u32,
}

impl Time {
    /// The time `nanos` nanoseconds after 1970.
    #[must_use]
    pub fn from_ns(nanos: u64) -> Self {
        Self {
            seconds: (nanos / 1_000_000_000) as i64,
            nanos: (nanos % 1_000_000_000) as u32,
        }
    }
}

impl Time {
    /// Nanoseconds since 1970; 0 for what was before.
    #[must_use]
    pub fn ns_since_1970(&self) -> u64 {
        let seconds = self.seconds.max(0) as u64;
        seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(u64::from(self.nanos))
    }
}

impl From<TimeRecord> for Time {
    fn from(record: TimeRecord) -> Self {
        Self {
            seconds: record.seconds.get(),
            nanos: record.nanos.get(),
        }
    }
}

impl From<Time> for TimeRecord {
    fn from(time: Time) -> Self {
        Self {
            seconds: time.seconds.into(),
            nanos: time.nanos.into(),
        }
    }
}

/// Where the room for a change comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Room {
    /// From what is free: a full pool refuses the change.
    #[default]
    Free,
    /// From what is free, or else from what a full pool keeps back so that it can be deleted from: for a change that is part
    /// of a deletion, and small.
    Reserve,
}

/// Who asks. Permissions are checked by the front end (FUSE: by the kernel); the caller owns what it makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Process, for messages; 0 when unknown.
    pub pid: u32,
    /// Permission bits that new files do not get where no default ACL says otherwise.
    pub umask: u32,
}

/// Attributes of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Type and permission bits, as `st_mode`.
    pub mode: u32,
    /// Names; a directory counts itself and its subdirectories.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u64,
    /// Bytes of content; for a directory a number that grows with its entries.
    pub size: u64,
    /// Bytes that are stored for it, before deduplication and compression.
    pub allocated_bytes: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of attributes.
    pub ctime: Time,
    /// Creation.
    pub btime: Time,
    /// The volume it belongs to.
    pub volume: VolumeId,
}

/// Bytes that an entry adds to the size that a directory reports.
pub const DIRENT_REPORTED_BYTES: u64 = 32;

impl Attr {
    /// Attributes from the stored record. A directory's record counts its entries in `size`.
    #[must_use]
    pub fn from_record(ino: Ino, record: &InodeRecord) -> Self {
        let mode = record.mode.get();
        let size = if mode & libc::S_IFMT == libc::S_IFDIR {
            let entries = record.size.get().saturating_add(2);
            entries.saturating_mul(DIRENT_REPORTED_BYTES)
        } else {
            record.size.get()
        };
        Self {
            ino,
            mode,
            nlink: record.nlink.get(),
            uid: record.uid.get(),
            gid: record.gid.get(),
            rdev: record.rdev.get(),
            size,
            allocated_bytes: record.allocated.get(),
            atime: record.atime.into(),
            mtime: record.mtime.into(),
            ctime: record.ctime.into(),
            btime: record.btime.into(),
            volume: VolumeId(record.volume.get()),
        }
    }

    /// Type bits of the mode.
    #[must_use]
    pub fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }
}

/// A new value of a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The time of the operation.
    Now,
    /// This time.
    At(Time),
}

/// Attributes to change; `None` leaves one as it is. The change itself always sets `ctime`, to now if not given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits (07777); type bits are ignored.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Bytes of content.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of content.
    pub mtime: Option<SetTime>,
    /// Last change of attributes.
    pub ctime: Option<Time>,
    /// Clear the set-user-id bit, and the set-group-id bit of a group-executable file.
    pub kill_suid_sgid: bool,
}

/// How [`crate::Fs::rename`] treats a name that exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenameFlags {
    /// Refuse when the new name exists.
    pub no_replace: bool,
    /// Swap the two names, which must both exist.
    pub exchange: bool,
}

/// How [`crate::Fs::setxattr`] treats an attribute that exists or does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XattrFlags {
    /// Refuse when it exists.
    pub create: bool,
    /// Refuse when it does not exist.
    pub replace: bool,
    /// An access ACL set by a caller outside the file's group clears the set-group-id bit.
    pub kill_sgid: bool,
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The inode.
    pub ino: Ino,
    /// Given to `read_dir`, continues after this entry. At least [`crate::FIRST_COOKIE`].
    pub cookie: u64,
    /// Type bits, as in `st_mode`.
    pub kind: u32,
    /// Name.
    pub name: Vec<u8>,
}

/// Room and counts, as `statvfs` wants them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// Bytes in a block of the three counts below.
    pub block_bytes: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Free blocks that a write may still take.
    pub blocks_available: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Inodes that could still be made.
    pub inodes_free: u64,
    /// Longest name, bytes.
    pub name_bytes_max: u32,
}

/// When reading updates `atime`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtimePolicy {
    /// When it is older than `mtime` or `ctime`, or than a day.
    #[default]
    Relatime,
    /// Never.
    Noatime,
    /// Always.
    Strict,
}

/// How a file system is opened.
#[derive(Clone, Debug)]
pub struct FsOptions {
    /// Bytes of dirty data in memory at most.
    pub dirty_bytes_max: u64,
    /// Age at which dirty data are written, milliseconds.
    pub flush_after_ms: u64,
    /// Bytes of opened chunks kept in memory at most.
    pub hot_bytes: u64,
    /// Threads that seal chunks; 0 seals in the calling thread.
    pub seal_threads: usize,
    /// When reading updates `atime`.
    pub atime: AtimePolicy,
    /// Bytes read ahead of a sequential reader.
    pub readahead_bytes: u64,
    /// Let listings of the roots of volumes show the directory `.snapshots`, which is in every directory in any case.
    pub list_snapshots: bool,
}

impl Default for FsOptions {
    fn default() -> Self {
        Self {
            dirty_bytes_max: 256 << 20,
            flush_after_ms: 5000,
            hot_bytes: 256 << 20,
            seal_threads: 0,
            atime: AtimePolicy::Relatime,
            readahead_bytes: 8 << 20,
            list_snapshots: false,
        }
    }
}
