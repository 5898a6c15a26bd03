//! Requests of the kernel as calls of the file system.
//!
//! # What is left to the kernel
//! Permissions (`default_permissions`, POSIX ACLs that it reads as extended attributes), locks, the offset of
//! appending writes, following symbolic links, and caching: names, absent names and attributes are given to it for
//! [`CACHE_TIME`]. Inode numbers are never reused, so nothing has to be counted for `forget`; what keeps an inode
//! without a name alive is that it is open.
//!
//! # What the requests do not say
//! With `HANDLE_KILLPRIV_V2` this side clears set-user-id and set-group-id on truncation unless the caller may keep
//! them, but `fuser` hides the flag that tells; a caller other than root may not. Neither does it show whether the
//! caller is in the group of a file whose ACL it sets, which is looked up in /proc then.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use cfs_format::Ino;
use cfs_fs::{AllocateMode, Attr, Fs, FsError, RenameFlags, SetAttr, XattrFlags};
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, PollEvents, PollFlags,
    PollNotifier, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::convert::{absent, caller, file_attr, file_type, request_time, set_time};
use crate::directories::Directories;
use crate::session::{CACHE_TIME, configure_kernel};

/// Inode numbers are never reused.
const GENERATION: Generation = Generation(0);
/// Bytes that one request copies at most; the reply has 32 bits for them.
const COPY_BYTES_MAX: u64 = 1 << 30;
/// The extended attribute that holds an access ACL.
const ACCESS_ACL: &[u8] = b"system.posix_acl_access";

thread_local! {
    /// Content read for a reply. Kept, because first-touch memory is slow.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Answers the kernel from a file system.
pub(crate) struct Adapter {
    fs: Arc<Fs>,
    directories: Directories,
}

impl Adapter {
    pub(crate) fn new(fs: Arc<Fs>) -> Self {
        Self {
            fs,
            directories: Directories::default(),
        }
    }

    /// Opens a file that exists.
    fn open_file(&self, request: &Request, ino: Ino, flags: i32) -> Result<(), FsError> {
        self.fs.open(ino)?;
        if flags & libc::O_TRUNC == 0 {
            return Ok(());
        }
        let set = SetAttr {
            size: Some(0),
            kill_suid_sgid: request.uid() != 0,
            ..SetAttr::default()
        };
        self.fs
            .setattr(ino, &set)
            .map(drop)
            .inspect_err(|_| self.release_after_failure(ino))
    }

    /// Makes and opens a file, or opens the one that has appeared under the name meanwhile.
    fn create_file(
        &self,
        request: &Request,
        parent: Ino,
        name: &[u8],
        mode: u32,
        umask: u32,
        flags: i32,
    ) -> Result<Attr, FsError> {
        match self.fs.create(parent, name, mode, &caller(request, umask)) {
            Ok(attr) => {
                self.fs.open(attr.ino)?;
                Ok(attr)
            }
            Err(FsError::Exists) if flags & libc::O_EXCL == 0 => {
                let ino = self.fs.lookup(parent, name)?.ino;
                self.open_file(request, ino, flags)?;
                self.fs.getattr(ino)
            }
            Err(error) => Err(error),
        }
    }

    /// Clears set-user-id and set-group-id of a file that a caller other than root changes in another way than those
    /// whose calls do it themselves.
    fn kill_suid_sgid(&self, request: &Request, ino: Ino) -> Result<(), FsError> {
        let special = libc::S_ISUID | libc::S_ISGID;
        if request.uid() == 0 || self.fs.getattr(ino)?.mode & special == 0 {
            return Ok(());
        }
        let set = SetAttr {
            kill_suid_sgid: true,
            ..SetAttr::default()
        };
        self.fs.setattr(ino, &set).map(drop)
    }

    /// Whether an access ACL that this caller sets takes the set-group-id bit from the file: when the caller is not in
    /// the file's group.
    fn acl_kills_sgid(&self, request: &Request, ino: Ino) -> Result<bool, FsError> {
        if request.uid() == 0 {
            return Ok(false);
        }
        let attr = self.fs.getattr(ino)?;
        let member = attr.gid == request.gid() || process_groups(request.pid()).contains(&attr.gid);
        Ok(attr.mode & libc::S_ISGID != 0 && !member)
    }
}

impl Adapter {
    /// See [`open_flags`]. What the kernel has cached of a file is dropped if reading it changes the access time: the
    /// kernel answers from its cache without a word. Strictly kept access times thus count opens that read.
    fn flags_of_open(&self, ino: Ino, flags: i32) -> Result<FopenFlags, FsError> {
        let given = open_flags(flags);
        let reads = OpenFlags(flags).acc_mode() != OpenAccMode::O_WRONLY;
        let counted = reads && flags & libc::O_NOATIME == 0;
        match counted.then(|| self.fs.atime_is_due(ino)).transpose() {
            Ok(Some(true)) => Ok(given.difference(FopenFlags::FOPEN_KEEP_CACHE)),
            Ok(_) => Ok(given),
            Err(error) => {
                self.release_after_failure(ino);
                Err(error)
            }
        }
    }

    /// Ends the open of a request that fails after it.
    fn release_after_failure(&self, ino: Ino) {
        if let Err(error) = self.fs.release(ino) {
            errno("release", ino, &error);
        }
    }
}

/// Supplementary groups of a process; none if they cannot be read.
fn process_groups(pid: u32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    let groups = line.unwrap_or_default().split_ascii_whitespace();
    groups.filter_map(|group| group.parse().ok()).collect()
}

/// The error for the kernel. Damage is logged here, since the kernel passes on no more than its number.
fn errno(operation: &'static str, ino: Ino, error: &FsError) -> Errno {
    if let FsError::Io(_) | FsError::Read(_) = error {
        tracing::error!(operation, inode = ino.0, %error, "a request failed");
    }
    Errno::from_i32(error.errno())
}

fn ino(number: INodeNo) -> Ino {
    Ino(number.0)
}

/// What the kernel does with an open file: keep what it has cached of it, and, when nothing can have been written, not
/// ask on `close`.
fn open_flags(flags: i32) -> FopenFlags {
    match OpenFlags(flags).acc_mode() {
        OpenAccMode::O_RDONLY => FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH,
        OpenAccMode::O_WRONLY | OpenAccMode::O_RDWR => FopenFlags::FOPEN_KEEP_CACHE,
    }
}

/// Answers with a value of which the caller asks the size first.
fn reply_sized(reply: ReplyXattr, value: &[u8], size: u32) {
    if size == 0 {
        reply.size(value.len() as u32);
    } else if value.len() > size as usize {
        reply.error(Errno::ERANGE);
    } else {
        reply.data(value);
    }
}

impl Adapter {
    fn answer_empty(
        operation: &'static str,
        inode: Ino,
        result: Result<(), FsError>,
        reply: ReplyEmpty,
    ) {
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(operation, inode, &error)),
        }
    }

    fn answer_entry(
        operation: &'static str,
        parent: Ino,
        result: Result<Attr, FsError>,
        reply: ReplyEntry,
    ) {
        match result {
            Ok(attr) => reply.entry(&CACHE_TIME, &file_attr(&attr), GENERATION),
            Err(error) => reply.error(errno(operation, parent, &error)),
        }
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        configure_kernel(config);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let result = self.fs.lookup(ino(parent), name.as_bytes());
        match result {
            // The number 0 says that there is no such name, and that this may be remembered.
            Err(FsError::NotFound) => reply.entry(&CACHE_TIME, &absent(), GENERATION),
            result => Self::answer_entry("lookup", ino(parent), result, reply),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.fs.getattr(ino(inode)) {
            Ok(attr) => reply.attr(&CACHE_TIME, &file_attr(&attr)),
            Err(error) => reply.error(errno("getattr", ino(inode), &error)),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            ctime: ctime.map(request_time),
            kill_suid_sgid: size.is_some() && request.uid() != 0,
        };
        let set = if set == SetAttr::default() {
            // The kernel takes its own wish to clear the two bits out of the request (a change of owner to the same
            // one, `fallocate` by a stranger), and leaves one that changes nothing.
            SetAttr {
                kill_suid_sgid: true,
                ..set
            }
        } else {
            set
        };
        match self.fs.setattr(ino(inode), &set) {
            Ok(attr) => reply.attr(&CACHE_TIME, &file_attr(&attr)),
            Err(error) => reply.error(errno("setattr", ino(inode), &error)),
        }
    }

    fn readlink(&self, _: &Request, inode: INodeNo, reply: ReplyData) {
        match self.fs.readlink(ino(inode)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno("readlink", ino(inode), &error)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let caller = caller(request, umask);
        let made = self
            .fs
            .mknod(ino(parent), name.as_bytes(), mode, rdev.into(), &caller);
        Self::answer_entry("mknod", ino(parent), made, reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let caller = caller(request, umask);
        let made = self.fs.mkdir(ino(parent), name.as_bytes(), mode, &caller);
        Self::answer_entry("mkdir", ino(parent), made, reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let result = self.fs.unlink(ino(parent), name.as_bytes());
        Self::answer_empty("unlink", ino(parent), result, reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let result = self.fs.rmdir(ino(parent), name.as_bytes());
        Self::answer_empty("rmdir", ino(parent), result, reply);
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = target.as_os_str().as_bytes();
        let caller = caller(request, 0);
        let made = self
            .fs
            .symlink(ino(parent), link_name.as_bytes(), target, &caller);
        Self::answer_entry("symlink", ino(parent), made, reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        let known = fuser::RenameFlags::RENAME_NOREPLACE | fuser::RenameFlags::RENAME_EXCHANGE;
        if !known.contains(flags) {
            return reply.error(Errno::EINVAL);
        }
        let flags = RenameFlags {
            no_replace: flags.contains(fuser::RenameFlags::RENAME_NOREPLACE),
            exchange: flags.contains(fuser::RenameFlags::RENAME_EXCHANGE),
        };
        let (name, newname) = (name.as_bytes(), newname.as_bytes());
        let result = self
            .fs
            .rename(ino(parent), name, ino(newparent), newname, flags);
        Self::answer_empty("rename", ino(parent), result, reply);
    }

    fn link(
        &self,
        _: &Request,
        inode: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let linked = self.fs.link(ino(inode), ino(newparent), newname.as_bytes());
        Self::answer_entry("link", ino(inode), linked, reply);
    }

    fn open(&self, request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opened = self
            .open_file(request, ino(inode), flags.0)
            .and_then(|()| self.flags_of_open(ino(inode), flags.0));
        match opened {
            Ok(flags) => reply.opened(FileHandle(0), flags),
            Err(error) => reply.error(errno("open", ino(inode), &error)),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let name = name.as_bytes();
        match self.create_file(request, ino(parent), name, mode, umask, flags) {
            Ok(attr) => {
                let attr = file_attr(&attr);
                reply.created(
                    &CACHE_TIME,
                    &attr,
                    GENERATION,
                    FileHandle(0),
                    open_flags(flags),
                );
            }
            Err(error) => reply.error(errno("create", ino(parent), &error)),
        }
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        READ_BUFFER.with_borrow_mut(|buffer| {
            match self.fs.read(ino(inode), offset, size as usize, buffer) {
                Ok(()) => reply.data(buffer),
                Err(error) => reply.error(errno("read", ino(inode), &error)),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let kill_suid_sgid = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        match self.fs.write(ino(inode), offset, data, kill_suid_sgid) {
            Ok(bytes) => reply.written(bytes as u32),
            Err(error) => reply.error(errno("write", ino(inode), &error)),
        }
    }

    fn flush(&self, _: &Request, inode: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        let result = self.fs.flush(ino(inode));
        Self::answer_empty("flush", ino(inode), result, reply);
    }

    fn release(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let result = self.fs.release(ino(inode));
        Self::answer_empty("release", ino(inode), result, reply);
    }

    fn fsync(&self, _: &Request, inode: INodeNo, _: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let result = self.fs.fsync(ino(inode), datasync);
        Self::answer_empty("fsync", ino(inode), result, reply);
    }

    fn opendir(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.directories.open(&self.fs, ino(inode)) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(error) => reply.error(errno("opendir", ino(inode), &error)),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self
            .directories
            .list(&self.fs, ino(inode), handle.0, offset, |entry| {
                let kind = file_type(entry.kind);
                let name = OsStr::from_bytes(&entry.name);
                Ok(reply.add(INodeNo(entry.ino.0), entry.cookie, kind, name))
            });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno("readdir", ino(inode), &error)),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = self
            .directories
            .list(&self.fs, ino(inode), handle.0, offset, |entry| {
                let attr = match self.fs.getattr(entry.ino) {
                    Ok(attr) => file_attr(&attr),
                    // It went away between the listing and now.
                    Err(FsError::NotFound) => return Ok(false),
                    Err(error) => return Err(error),
                };
                let name = OsStr::from_bytes(&entry.name);
                Ok(reply.add(attr.ino, entry.cookie, name, &CACHE_TIME, &attr, GENERATION))
            });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno("readdirplus", ino(inode), &error)),
        }
    }

    fn releasedir(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let result = self.directories.release(&self.fs, ino(inode), handle.0);
        Self::answer_empty("releasedir", ino(inode), result, reply);
    }

    fn fsyncdir(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let result = self.fs.fsync(ino(inode), datasync);
        Self::answer_empty("fsyncdir", ino(inode), result, reply);
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let room = self.fs.statfs();
        reply.statfs(
            room.blocks,
            room.blocks_free,
            room.blocks_available,
            room.inodes + room.inodes_free,
            room.inodes_free,
            room.block_bytes,
            room.name_bytes_max,
            room.block_bytes,
        );
    }

    fn setxattr(
        &self,
        request: &Request,
        inode: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let name = name.as_bytes();
        let kill_sgid = if name == ACCESS_ACL {
            self.acl_kills_sgid(request, ino(inode))
        } else {
            Ok(false)
        };
        let result = kill_sgid.and_then(|kill_sgid| {
            let flags = XattrFlags {
                create: flags & libc::XATTR_CREATE != 0,
                replace: flags & libc::XATTR_REPLACE != 0,
                kill_sgid,
            };
            self.fs.setxattr(ino(inode), name, value, flags)
        });
        Self::answer_empty("setxattr", ino(inode), result, reply);
    }

    fn getxattr(&self, _: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.fs.getxattr(ino(inode), name.as_bytes()) {
            Ok(value) => reply_sized(reply, &value, size),
            Err(error) => reply.error(errno("getxattr", ino(inode), &error)),
        }
    }

    fn listxattr(&self, _: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        match self.fs.listxattr(ino(inode)) {
            Ok(names) => {
                let list: Vec<u8> = names
                    .iter()
                    .flat_map(|name| name.iter().chain(&[0]))
                    .copied()
                    .collect();
                reply_sized(reply, &list, size);
            }
            Err(error) => reply.error(errno("listxattr", ino(inode), &error)),
        }
    }

    fn removexattr(&self, _: &Request, inode: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let result = self.fs.removexattr(ino(inode), name.as_bytes());
        Self::answer_empty("removexattr", ino(inode), result, reply);
    }

    fn fallocate(
        &self,
        request: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(mode) = AllocateMode::from_flags(mode) else {
            return reply.error(Errno::EOPNOTSUPP);
        };
        let result = self
            .fs
            .fallocate(ino(inode), mode, offset, length, request.uid() != 0);
        Self::answer_empty("fallocate", ino(inode), result, reply);
    }

    fn lseek(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        // The kernel answers the other kinds itself.
        let found = match whence {
            libc::SEEK_DATA => self.fs.seek_data(ino(inode), offset),
            libc::SEEK_HOLE => self.fs.seek_hole(ino(inode), offset),
            _ => Err(FsError::Invalid),
        };
        match found {
            Ok(offset) => reply.offset(offset as i64),
            Err(error) => reply.error(errno("lseek", ino(inode), &error)),
        }
    }

    fn copy_file_range(
        &self,
        request: &Request,
        ino_in: INodeNo,
        _: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _: FileHandle,
        offset_out: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (source, target) = (ino(ino_in), ino(ino_out));
        let len = len.min(COPY_BYTES_MAX);
        let killed = self.kill_suid_sgid(request, target);
        let copied = killed.and_then(|()| {
            self.fs
                .copy_range(source, offset_in, target, offset_out, len)
        });
        match copied {
            Ok(bytes) => reply.written(bytes as u32),
            Err(error) => reply.error(errno("copy_file_range", target, &error)),
        }
    }

    // The rest the kernel does well without; answering here keeps `fuser` from warning about each.

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _: &Request, _: INodeNo, _: u32, _: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }
}
