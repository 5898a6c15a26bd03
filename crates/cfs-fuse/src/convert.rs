//! Values of the file system's API as the protocol has them, and back.

use std::time::Duration;

use cfs_format::Ino;
use cfs_fs::{Attr, Caller, FsError, SetAttr, SetTime, Time};

use crate::abi::{self, InHeader, set_attr};

/// How long the kernel may trust names, absent names and attributes.
const CACHE_TIME: Duration = Duration::from_secs(24 * 3600);
/// What `stat` reports as the size of good reads and writes: the largest that tools such as `cp` take without
/// reserving much memory for each of many open files.
const IO_BYTES: u32 = 128 << 10;
/// Bytes in a block of `st_blocks`.
const STAT_BLOCK_BYTES: u64 = 512;
/// STATX_BASIC_STATS and STATX_BTIME.
const STATX_MASK: u32 = 0xfff;

/// Attributes for the kernel.
pub(crate) fn attributes(attr: &Attr) -> abi::Attr {
    abi::Attr {
        ino: attr.ino.0,
        size: attr.size,
        blocks: attr.allocated_bytes.div_ceil(STAT_BLOCK_BYTES),
        // The kernel takes them as signed again.
        atime: attr.atime.seconds as u64,
        mtime: attr.mtime.seconds as u64,
        ctime: attr.ctime.seconds as u64,
        atimensec: attr.atime.nanos,
        mtimensec: attr.mtime.nanos,
        ctimensec: attr.ctime.nanos,
        mode: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        // The low half holds 12 bits of major and 20 of minor, which is all that the protocol has.
        rdev: attr.rdev as u32,
        blksize: IO_BYTES,
        flags: 0,
    }
}

/// The reply to GETATTR and SETATTR.
pub(crate) fn attr_out(attr: &Attr) -> abi::AttrOut {
    abi::AttrOut {
        attr_valid: CACHE_TIME.as_secs(),
        attr: attributes(attr),
        ..abi::AttrOut::default()
    }
}

/// Whether the kernel may remember a name, or that there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NameStays {
    /// It changes through the kernel alone.
    Yes,
    /// It comes and goes without the kernel: the name of a snapshot.
    No,
}

impl NameStays {
    /// Of names in this directory.
    pub(crate) fn in_directory(parent: Ino) -> Self {
        match parent.lists_snapshots() {
            true => Self::No,
            false => Self::Yes,
        }
    }

    fn seconds(self) -> u64 {
        match self {
            Self::Yes => CACHE_TIME.as_secs(),
            Self::No => 0,
        }
    }
}

/// An inode for the kernel to remember. Inode numbers are never reused, so the generation is always 0.
pub(crate) fn entry(attr: &Attr, stays: NameStays) -> abi::EntryOut {
    abi::EntryOut {
        nodeid: attr.ino.0,
        entry_valid: stays.seconds(),
        attr_valid: CACHE_TIME.as_secs(),
        attr: attributes(attr),
        ..abi::EntryOut::default()
    }
}

/// That there is no such name, which may be remembered too: inode number 0.
pub(crate) fn absent(stays: NameStays) -> abi::EntryOut {
    abi::EntryOut {
        entry_valid: stays.seconds(),
        ..abi::EntryOut::default()
    }
}

/// The reply to STATX.
pub(crate) fn statx(attr: &Attr) -> abi::StatxOut {
    let time = |time: Time| abi::StatxTime {
        seconds: time.seconds,
        nanos: time.nanos,
        reserved: 0,
    };
    let plain = attributes(attr);
    abi::StatxOut {
        attr_valid: CACHE_TIME.as_secs(),
        mask: STATX_MASK,
        blksize: plain.blksize,
        nlink: plain.nlink,
        uid: plain.uid,
        gid: plain.gid,
        mode: plain.mode as u16,
        ino: plain.ino,
        size: plain.size,
        blocks: plain.blocks,
        atime: time(attr.atime),
        btime: time(attr.btime),
        ctime: time(attr.ctime),
        mtime: time(attr.mtime),
        rdev_major: libc::major(attr.rdev),
        rdev_minor: libc::minor(attr.rdev),
        ..abi::StatxOut::default()
    }
}

/// What a SETATTR asks for.
///
/// # Errors
/// [`FsError::Invalid`] for a time with more than a second of nanoseconds.
pub(crate) fn set_attr(request: &abi::SetattrIn) -> Result<SetAttr, FsError> {
    let has = |bit: u32| request.valid & bit != 0;
    let time = |seconds: u64, nanos: u32| {
        let valid = nanos < 1_000_000_000;
        let time = Time {
            seconds: seconds as i64,
            nanos,
        };
        valid.then_some(time).ok_or(FsError::Invalid)
    };
    let set_time = |given: u32, now: u32, seconds: u64, nanos: u32| match (has(given), has(now)) {
        (_, true) => Ok(Some(SetTime::Now)),
        (true, false) => time(seconds, nanos).map(|time| Some(SetTime::At(time))),
        (false, false) => Ok(None),
    };
    Ok(SetAttr {
        mode: has(set_attr::MODE).then_some(request.mode),
        uid: has(set_attr::UID).then_some(request.uid),
        gid: has(set_attr::GID).then_some(request.gid),
        size: has(set_attr::SIZE).then_some(request.size),
        atime: set_time(
            set_attr::ATIME,
            set_attr::ATIME_NOW,
            request.atime,
            request.atimensec,
        )?,
        mtime: set_time(
            set_attr::MTIME,
            set_attr::MTIME_NOW,
            request.mtime,
            request.mtimensec,
        )?,
        ctime: match has(set_attr::CTIME) {
            true => Some(time(request.ctime, request.ctimensec)?),
            false => None,
        },
        kill_suid_sgid: has(set_attr::KILL_SUIDGID),
    })
}

/// Who sent a request. The umask matters for what makes inodes alone.
pub(crate) fn caller(header: &InHeader, umask: u32) -> Caller {
    Caller {
        uid: header.uid,
        gid: header.gid,
        pid: header.pid,
        umask,
    }
}
