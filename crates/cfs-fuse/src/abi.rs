//! The kernel's FUSE protocol: numbers and layouts, as in `include/uapi/linux/fuse.h`, version 7.45.
//!
//! No behaviour. Everything is in the byte order of the machine, since both ends are on it. Only what this crate reads
//! or writes is here; fields that nobody looks at keep their place. Sizes are checked below.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Major version.
pub(crate) const VERSION_MAJOR: u32 = 7;
/// Newest minor version that this crate knows.
pub(crate) const VERSION_MINOR: u32 = 45;
/// Oldest minor version that it works with: Linux 5.4, which has `copy_file_range` and requests of more than 32 pages.
pub(crate) const VERSION_MINOR_MIN: u32 = 31;
/// The first minor version in which the kernel sends a SETATTR that clears set-user-id before `fallocate` and
/// `copy_file_range` (Linux 6.2).
pub(crate) const VERSION_MINOR_MODIFIED: u32 = 38;
/// Smallest buffer that the kernel lets anybody read requests with, bytes.
pub(crate) const READ_BUFFER_BYTES_MIN: usize = 8192;
/// Request number of FUSE_DEV_IOC_CLONE: group and number of its `_IOR` with a 32-bit argument.
pub(crate) const IOCTL_CLONE: (u8, u8) = (229, 0);

/// Operations (`enum fuse_opcode`).
pub(crate) mod opcode {
    macro_rules! opcodes {
        ($($name:ident = $number:literal,)*) => {
            $(pub(crate) const $name: u32 = $number;)*

            /// The operation's name in the kernel's header, for messages.
            pub(crate) fn name(opcode: u32) -> &'static str {
                match opcode {
                    $($number => stringify!($name),)*
                    _ => "unknown",
                }
            }
        };
    }

    opcodes! {
        LOOKUP = 1,
        FORGET = 2,
        GETATTR = 3,
        SETATTR = 4,
        READLINK = 5,
        SYMLINK = 6,
        MKNOD = 8,
        MKDIR = 9,
        UNLINK = 10,
        RMDIR = 11,
        RENAME = 12,
        LINK = 13,
        OPEN = 14,
        READ = 15,
        WRITE = 16,
        STATFS = 17,
        RELEASE = 18,
        FSYNC = 20,
        SETXATTR = 21,
        GETXATTR = 22,
        LISTXATTR = 23,
        REMOVEXATTR = 24,
        FLUSH = 25,
        INIT = 26,
        OPENDIR = 27,
        READDIR = 28,
        RELEASEDIR = 29,
        FSYNCDIR = 30,
        CREATE = 35,
        INTERRUPT = 36,
        DESTROY = 38,
        IOCTL = 39,
        BATCH_FORGET = 42,
        FALLOCATE = 43,
        READDIRPLUS = 44,
        RENAME2 = 45,
        LSEEK = 46,
        COPY_FILE_RANGE = 47,
        SYNCFS = 50,
        TMPFILE = 51,
        STATX = 52,
        COPY_FILE_RANGE_64 = 53,
    }

    /// Whether an operation is about one inode, and no name in it.
    pub(crate) fn is_of_one_inode(opcode: u32) -> bool {
        matches!(
            opcode,
            GETATTR
                | SETATTR
                | READLINK
                | OPEN
                | OPENDIR
                | STATX
                | SETXATTR
                | GETXATTR
                | LISTXATTR
                | REMOVEXATTR
        )
    }
}

/// What kernel and file system agree on in INIT; bits from 32 on travel in `flags2`.
pub(crate) mod capability {
    pub(crate) const ASYNC_READ: u64 = 1 << 0;
    pub(crate) const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub(crate) const EXPORT_SUPPORT: u64 = 1 << 4;
    pub(crate) const BIG_WRITES: u64 = 1 << 5;
    pub(crate) const DONT_MASK: u64 = 1 << 6;
    pub(crate) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(crate) const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub(crate) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(crate) const POSIX_ACL: u64 = 1 << 20;
    pub(crate) const MAX_PAGES: u64 = 1 << 22;
    pub(crate) const CACHE_SYMLINKS: u64 = 1 << 23;
    pub(crate) const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    pub(crate) const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub(crate) const SETXATTR_EXT: u64 = 1 << 29;
    pub(crate) const INIT_EXT: u64 = 1 << 30;
}

/// Bits of [`SetattrIn::valid`].
pub(crate) mod set_attr {
    pub(crate) const MODE: u32 = 1 << 0;
    pub(crate) const UID: u32 = 1 << 1;
    pub(crate) const GID: u32 = 1 << 2;
    pub(crate) const SIZE: u32 = 1 << 3;
    pub(crate) const ATIME: u32 = 1 << 4;
    pub(crate) const MTIME: u32 = 1 << 5;
    pub(crate) const ATIME_NOW: u32 = 1 << 7;
    pub(crate) const MTIME_NOW: u32 = 1 << 8;
    pub(crate) const CTIME: u32 = 1 << 10;
    pub(crate) const KILL_SUIDGID: u32 = 1 << 11;
}

/// [`OpenOut::open_flags`]: keep what is cached of the file.
pub(crate) const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// [`OpenOut::open_flags`] of a directory: remember what it lists.
pub(crate) const FOPEN_CACHE_DIR: u32 = 1 << 3;
/// [`OpenOut::open_flags`]: do not ask on `close`.
pub(crate) const FOPEN_NOFLUSH: u32 = 1 << 5;
/// `open_flags` of OPEN and CREATE: truncation clears set-user-id and set-group-id.
pub(crate) const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// `write_flags`: clear set-user-id and set-group-id.
pub(crate) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `fsync_flags`: times may be left out.
pub(crate) const FSYNC_FDATASYNC: u32 = 1 << 0;
/// `setxattr_flags`: an access ACL clears set-group-id.
pub(crate) const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
/// Notification: attributes and content of an inode are no longer what the kernel knows.
pub(crate) const NOTIFY_INVAL_INODE: i32 = 2;
/// Notification: a name is no longer what the kernel knows.
pub(crate) const NOTIFY_INVAL_ENTRY: i32 = 3;

macro_rules! layouts {
    ($($(#[$attribute:meta])* $name:ident [$bytes:literal] { $($field:ident: $kind:ty),* $(,)? })*) => {$(
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
        #[repr(C)]
        pub(crate) struct $name {
            $(pub(crate) $field: $kind,)*
        }
        const _: () = assert!(size_of::<$name>() == $bytes);
    )*};
}

layouts! {
    /// Before every request.
    InHeader [40] {
        len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, total_extlen: u16, padding: u16,
    }
    /// Before every reply and notification.
    OutHeader [16] { len: u32, error: i32, unique: u64 }
    InitIn [16] { major: u32, minor: u32, max_readahead: u32, flags: u32 }
    /// Behind [`InitIn`] if the kernel has INIT_EXT.
    InitInExtension [48] { flags2: u32, unused: [u32; 11] }
    InitOut [64] {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
        max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32, max_stack_depth: u32,
        request_timeout: u16, unused: [u16; 11],
    }
    Attr [88] {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32,
        ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    EntryOut [128] {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32, attr_valid_nsec: u32,
        attr: Attr,
    }
    AttrOut [104] { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }
    StatxTime [16] { seconds: i64, nanos: u32, reserved: i32 }
    StatxOut [288] {
        attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2], mask: u32, blksize: u32, attributes: u64,
        nlink: u32, uid: u32, gid: u32, mode: u16, spare0: u16, ino: u64, size: u64, blocks: u64,
        attributes_mask: u64, atime: StatxTime, btime: StatxTime, ctime: StatxTime, mtime: StatxTime, rdev_major: u32,
        rdev_minor: u32, dev_major: u32, dev_minor: u32, spare2: [u64; 14],
    }
    ForgetIn [8] { nlookup: u64 }
    ForgetOne [16] { nodeid: u64, nlookup: u64 }
    BatchForgetIn [8] { count: u32, dummy: u32 }
    SetattrIn [88] {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    MknodIn [16] { mode: u32, rdev: u32, umask: u32, padding: u32 }
    MkdirIn [8] { mode: u32, umask: u32 }
    RenameIn [8] { newdir: u64 }
    Rename2In [16] { newdir: u64, flags: u32, padding: u32 }
    LinkIn [8] { oldnodeid: u64 }
    OpenIn [8] { flags: u32, open_flags: u32 }
    CreateIn [16] { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    OpenOut [16] { fh: u64, open_flags: u32, backing_id: i32 }
    ReadIn [40] { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    WriteIn [40] { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    WriteOut [8] { size: u32, padding: u32 }
    StatfsOut [80] {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
        padding: u32, spare: [u32; 6],
    }
    ReleaseIn [24] { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    FsyncIn [16] { fh: u64, fsync_flags: u32, padding: u32 }
    SetxattrIn [16] { size: u32, flags: u32, setxattr_flags: u32, padding: u32 }
    /// Instead of [`SetxattrIn`] without SETXATTR_EXT.
    SetxattrInShort [8] { size: u32, flags: u32 }
    GetxattrIn [8] { size: u32, padding: u32 }
    GetxattrOut [8] { size: u32, padding: u32 }
    FallocateIn [32] { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    LseekIn [24] { fh: u64, offset: u64, whence: u32, padding: u32 }
    LseekOut [8] { offset: u64 }
    CopyFileRangeIn [56] {
        fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64,
    }
    CopyFileRangeOut [8] { bytes_copied: u64 }
    /// The name follows, and zeros up to a multiple of 8 bytes.
    Dirent [24] { ino: u64, off: u64, namelen: u32, kind: u32 }
    NotifyInvalInodeOut [24] { ino: u64, off: i64, len: i64 }
    /// The name follows, and a zero byte.
    NotifyInvalEntryOut [16] { parent: u64, namelen: u32, flags: u32 }
}
