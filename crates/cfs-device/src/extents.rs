//! Where a file has room on its file system, by `ioctl(FS_IOC_FIEMAP)` (Linux, `Documentation/filesystems/fiemap.rst`).
//!
//! `SEEK_DATA` is no substitute: what was given room and never written is a hole to it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `FS_IOC_FIEMAP`: `_IOWR('f', 11, struct fiemap)`.
const FIEMAP: u64 = 0xc020_660b;
/// Extents asked for at a time.
const BATCH: usize = 512;
const IS_LAST: u32 = 0x1;
/// Not known, not given yet, or not as long as what lies there.
const IS_NO_PLAIN_ROOM: u32 = 0x2 | 0x4 | 0x8 | 0x200 | 0x400;
const IS_UNWRITTEN: u32 = 0x800;
const IS_SHARED: u32 = 0x2000;
/// `statfs` types of file systems that write content elsewhere when it is overwritten.
const BTRFS: i64 = 0x9123_683e;
const BCACHEFS: i64 = 0xca45_1a4e;

/// A range of a file that has room.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// In the file, bytes.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Something was written there.
    pub is_written: bool,
    /// The room is this file's alone.
    pub is_own: bool,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved_long: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

#[repr(C)]
struct Request {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [RawExtent; BATCH],
}

const _: () = assert!(size_of::<RawExtent>() == 56);
const _: () = assert!(size_of::<Request>() == 32 + BATCH * 56);

/// The extents of a file in order; `None` where its file system does not tell.
pub(crate) fn of(file: &File) -> io::Result<Option<Vec<Extent>>> {
    let mut found = Vec::new();
    let mut start = 0;
    loop {
        let mut request = Request {
            start,
            length: u64::MAX - start,
            flags: 0,
            mapped_extents: 0,
            extent_count: BATCH as u32,
            reserved: 0,
            extents: [RawExtent::default(); BATCH],
        };
        // SAFETY: the kernel writes into the request, which is as long as its `extent_count` says.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), FIEMAP as _, &raw mut request) };
        if result != 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EINTR) => continue,
                Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::ENOSYS | libc::EINVAL) => Ok(None),
                _ => Err(error),
            };
        }
        let extents = &request.extents[..(request.mapped_extents as usize).min(BATCH)];
        for raw in extents {
            found.push(Extent {
                start: raw.logical,
                len: raw.length,
                is_written: raw.flags & IS_UNWRITTEN == 0,
                is_own: raw.flags & (IS_NO_PLAIN_ROOM | IS_SHARED) == 0,
            });
        }
        match extents.last() {
            Some(last) if last.flags & IS_LAST == 0 && last.logical + last.length > start => {
                start = last.logical + last.length;
            }
            _ => return Ok(Some(found)),
        }
    }
}

/// Whether overwriting content of the file takes new room.
pub(crate) fn is_copied_on_write(file: &File) -> io::Result<bool> {
    let host = rustix::fs::fstatfs(file)?;
    let is_copying = [BTRFS, BCACHEFS].contains(&(host.f_type as i64));
    let is_exempt = || {
        rustix::fs::ioctl_getflags(file)
            .is_ok_and(|flags| flags.contains(rustix::fs::IFlags::NOCOW))
    };
    Ok(is_copying && !is_exempt())
}
