//! Requests about open files and their content.

use std::sync::atomic::Ordering;

use cfs_format::Ino;
use cfs_fs::{AllocateMode, Attr, FsError, Parts, Result, SetAttr};
use zerocopy::IntoBytes;

use super::{Adapter, errno};
use crate::abi::{
    self, FOPEN_KEEP_CACHE, FOPEN_NOFLUSH, InHeader, OPEN_KILL_SUIDGID, WRITE_KILL_SUIDGID, opcode,
};
use crate::convert::caller;

/// Bytes that one request copies at most; the older reply has 32 bits for them.
const COPY_BYTES_MAX: u64 = 1 << 30;

/// How a file is opened: the flags of open(2), and FUSE's own.
#[derive(Clone, Copy)]
struct Opening {
    flags: i32,
    kill_suid_sgid: bool,
}

impl Opening {
    fn new(flags: u32, open_flags: u32) -> Self {
        Self {
            flags: flags as i32,
            kill_suid_sgid: open_flags & OPEN_KILL_SUIDGID != 0,
        }
    }

    fn reads(self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_WRONLY
    }

    fn writes(self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_RDONLY
    }
}

impl Adapter {
    /// The answer to an open: what is cached of the file is kept, or not, and `close` asks or does not. There is nothing
    /// to ask for a file that is only read.
    fn opened(&self, keep_cache: bool, writes: bool) -> abi::OpenOut {
        let keep_cache = if keep_cache { FOPEN_KEEP_CACHE } else { 0 };
        let asks = writes && !self.sync_arrives.load(Ordering::Relaxed);
        let no_flush = if asks { 0 } else { FOPEN_NOFLUSH };
        abi::OpenOut {
            open_flags: keep_cache | no_flush,
            ..abi::OpenOut::default()
        }
    }

    pub(super) fn open(&self, ino: Ino, open: &abi::OpenIn, out: &mut Vec<u8>) -> Result<()> {
        let opening = Opening::new(open.flags, open.open_flags);
        self.open_file(ino, opening)?;
        let keep_cache = self
            .keeps_cache(ino, opening)
            .inspect_err(|_| self.release_after_failure(ino))?;
        out.extend_from_slice(self.opened(keep_cache, opening.writes()).as_bytes());
        Ok(())
    }

    /// Opens a file that exists.
    fn open_file(&self, ino: Ino, opening: Opening) -> Result<()> {
        if opening.writes() && ino.view().is_some() {
            return Err(FsError::Snapshot);
        }
        self.fs.open(ino)?;
        if opening.flags & libc::O_TRUNC == 0 {
            return Ok(());
        }
        let set = SetAttr {
            size: Some(0),
            kill_suid_sgid: opening.kill_suid_sgid,
            ..SetAttr::default()
        };
        self.fs
            .setattr(ino, &set)
            .map(drop)
            .inspect_err(|_| self.release_after_failure(ino))
    }

    /// What the kernel has cached of a file is dropped if reading it changes the access time: the kernel answers from
    /// its cache without a word. Strictly kept access times thus count opens that read.
    fn keeps_cache(&self, ino: Ino, opening: Opening) -> Result<bool> {
        let counted = opening.reads() && opening.flags & libc::O_NOATIME == 0;
        Ok(!(counted && self.fs.atime_is_due(ino)?))
    }

    /// Ends the open of a request that fails after it.
    fn release_after_failure(&self, ino: Ino) {
        if let Err(error) = self.fs.release(ino) {
            errno(opcode::RELEASE, ino, &error);
        }
    }

    pub(super) fn create(
        &self,
        header: &InHeader,
        parent: Ino,
        create: &abi::CreateIn,
        name: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let made = self
            .fs
            .create(parent, name, create.mode, &caller(header, create.umask));
        let attr = match made {
            Ok(attr) => {
                self.fs.open(attr.ino)?;
                attr
            }
            // It has appeared behind the kernel's back.
            Err(FsError::Exists) if create.flags & libc::O_EXCL as u32 == 0 => {
                let ino = self.fs.lookup(parent, name)?.ino;
                self.open_file(ino, Opening::new(create.flags, create.open_flags))?;
                self.fs
                    .getattr(ino)
                    .inspect_err(|_| self.release_after_failure(ino))?
            }
            Err(error) => return Err(error),
        };
        self.created(&attr, create.flags, out)
    }

    /// Makes a file without a name; LINK may give it one as long as it is open.
    pub(super) fn tmpfile(
        &self,
        header: &InHeader,
        parent: Ino,
        create: &abi::CreateIn,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let caller = caller(header, create.umask);
        let attr = self.fs.tmpfile_and_hold(parent, create.mode, &caller)?;
        self.created(&attr, create.flags, out)?;
        // It may be referred to without being open (`O_PATH`), as any that has lost its name.
        self.hold(Some(attr.ino));
        Ok(())
    }

    fn created(&self, attr: &Attr, flags: u32, out: &mut Vec<u8>) -> Result<()> {
        self.tell(attr, out)?;
        let writes = Opening::new(flags, 0).writes();
        out.extend_from_slice(self.opened(true, writes).as_bytes());
        Ok(())
    }

    pub(super) fn read(
        &self,
        ino: Ino,
        read: &abi::ReadIn,
        out: &mut Vec<u8>,
    ) -> Result<Option<Parts>> {
        self.fs
            .read_parts(ino, read.offset, read.size as usize, out)
    }

    pub(super) fn write(
        &self,
        ino: Ino,
        write: &abi::WriteIn,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let kill_suid_sgid = write.write_flags & WRITE_KILL_SUIDGID != 0;
        let written = self.fs.write(ino, write.offset, data, kill_suid_sgid)?;
        put_written(written as u64, out);
        Ok(())
    }

    /// Nobody waits for it: what was written is on its way to the log afterwards.
    pub(super) fn release(&self, ino: Ino, release: &abi::ReleaseIn) -> Result<()> {
        let writes = release.flags as i32 & libc::O_ACCMODE != libc::O_RDONLY;
        if writes && self.fs.getattr(ino).is_ok_and(|attr| attr.nlink > 0) {
            self.fs.hand_over(ino);
        }
        self.fs.release(ino)
    }

    pub(super) fn fallocate(&self, header: &InHeader, allocate: &abi::FallocateIn) -> Result<()> {
        let mode = AllocateMode::from_flags(allocate.mode as i32).ok_or(FsError::NotSupported)?;
        let (ino, offset, len) = (Ino(header.nodeid), allocate.offset, allocate.length);
        self.fs
            .fallocate(ino, mode, offset, len, self.clears_suid(header))
    }

    pub(super) fn lseek(&self, ino: Ino, seek: &abi::LseekIn, out: &mut Vec<u8>) -> Result<()> {
        if i64::try_from(seek.offset).is_err() {
            return Err(FsError::NoSuchOffset);
        }
        // The kernel answers the other kinds itself.
        let offset = match seek.whence as i32 {
            libc::SEEK_DATA => self.fs.seek_data(ino, seek.offset)?,
            libc::SEEK_HOLE => self.fs.seek_hole(ino, seek.offset)?,
            _ => return Err(FsError::Invalid),
        };
        out.extend_from_slice(abi::LseekOut { offset }.as_bytes());
        Ok(())
    }

    pub(super) fn copy_file_range(
        &self,
        header: &InHeader,
        copy: &abi::CopyFileRangeIn,
        wide: bool,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let (source, target) = (Ino(header.nodeid), Ino(copy.nodeid_out));
        let special = libc::S_ISUID | libc::S_ISGID;
        if self.clears_suid(header) && self.fs.getattr(target)?.mode & special != 0 {
            let set = SetAttr {
                kill_suid_sgid: true,
                ..SetAttr::default()
            };
            self.fs.setattr(target, &set)?;
        }
        let len = copy.len.min(COPY_BYTES_MAX);
        let copied = self
            .fs
            .copy_range(source, copy.off_in, target, copy.off_out, len)?;
        if wide {
            let bytes_copied = copied;
            out.extend_from_slice(abi::CopyFileRangeOut { bytes_copied }.as_bytes());
        } else {
            put_written(copied, out);
        }
        Ok(())
    }

    /// Whether this side clears set-user-id and set-group-id of a file whose ranges the caller changes. The protocol has
    /// no flag for it: newer kernels send a SETATTR before, older ones leave it to the file system, which can only take
    /// it that root may keep the bits.
    fn clears_suid(&self, header: &InHeader) -> bool {
        !self.agreement.clears_suid_before_ranges && header.uid != 0
    }
}

fn put_written(bytes: u64, out: &mut Vec<u8>) {
    let written = abi::WriteOut {
        // Requests are smaller.
        size: bytes as u32,
        padding: 0,
    };
    out.extend_from_slice(written.as_bytes());
}
