//! Values of the file system's API as FUSE has them, and back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cfs_fs::{Attr, Caller, SetTime, Time};
use fuser::{FileAttr, FileType, INodeNo, Request, TimeOrNow};

/// What `stat` reports as the size of good reads and writes: the largest that tools such as `cp` take without
/// reserving much memory for each of many open files.
const IO_BYTES: u32 = 128 << 10;
/// Bytes in a block of `st_blocks`.
const STAT_BLOCK_BYTES: u64 = 512;

/// Attributes for the kernel.
pub(crate) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.allocated_bytes.div_ceil(STAT_BLOCK_BYTES),
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: file_type(attr.kind()),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        // The low half holds 12 bits of major and 20 of minor, which is all that the protocol has.
        rdev: attr.rdev as u32,
        blksize: IO_BYTES,
        flags: 0,
    }
}

/// Attributes of what is not there: inode number 0.
pub(crate) fn absent() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// The kind that the type bits of a mode say.
pub(crate) fn file_type(kind: u32) -> FileType {
    match kind {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

/// Saturates at what the system's clock type can hold.
fn system_time(time: Time) -> SystemTime {
    let whole = Duration::from_secs(time.seconds.unsigned_abs());
    let seconds = if time.seconds < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    let nanos = Duration::from_nanos(u64::from(time.nanos));
    seconds
        .and_then(|seconds| seconds.checked_add(nanos))
        .unwrap_or(UNIX_EPOCH)
}

/// The time in a request.
///
/// For times before 1970 `fuser` subtracts the nanoseconds that the kernel wants added; reading seconds and
/// nanoseconds apart again gives what the kernel sent.
pub(crate) fn request_time(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Time {
            seconds: since.as_secs() as i64,
            nanos: since.subsec_nanos(),
        },
        Err(before) => Time {
            seconds: 0_i64.saturating_sub_unsigned(before.duration().as_secs()),
            nanos: before.duration().subsec_nanos(),
        },
    }
}

/// The new value of a time in a request.
pub(crate) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(request_time(time)),
    }
}

/// Who sent a request. The umask matters for what makes inodes alone.
pub(crate) fn caller(request: &Request, umask: u32) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
        pid: request.pid(),
        umask,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_reach_the_kernel_as_they_are() {
        let check = |seconds: i64, nanos: u32| {
            let time = system_time(Time { seconds, nanos });
            let expected = match time.duration_since(UNIX_EPOCH) {
                Ok(since) => {
                    i128::from(since.as_secs()) * 1_000_000_000 + i128::from(since.subsec_nanos())
                }
                Err(before) => -(before.duration().as_nanos() as i128),
            };
            assert_eq!(
                expected,
                i128::from(seconds) * 1_000_000_000 + i128::from(nanos)
            );
        };
        for seconds in [0, 1, -1, -2, 1 << 33, -(1 << 33), i64::MAX, i64::MIN] {
            for nanos in [0, 1, 999_999_999] {
                check(seconds, nanos);
            }
        }
    }
}
