//! The one error of the file-system API, each variant with the errno that a front end reports.

use std::sync::Arc;

use cfs_store::{NoSpace, ReadError, WriteError};

/// Why an operation was refused or failed. Nothing changed, unless a variant says otherwise.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FsError {
    /// No such name, or no such inode.
    #[error("no such file or directory")]
    NotFound,
    /// The name is taken.
    #[error("the name exists already")]
    Exists,
    /// A directory is needed here.
    #[error("not a directory")]
    NotDirectory,
    /// A directory cannot be used here.
    #[error("is a directory")]
    IsDirectory,
    /// The directory has entries.
    #[error("the directory is not empty")]
    NotEmpty,
    /// The kind of file does not allow it.
    #[error("operation not permitted on this kind of file")]
    NotPermitted,
    /// A lock protects it, or something below it.
    #[error("it is locked against removal and change")]
    Locked,
    /// The name belongs to what S3 keeps of its own.
    #[error("the name is kept for what S3 has of its own")]
    Reserved,
    /// Another name stands for the same object of S3: one is escaped, the other not.
    #[error("a file is there already that is the same object of S3, by an escaped name or without")]
    ObjectExists,
    /// A default ACL belongs to directories alone; a snapshot is root's alone to enter.
    #[error("access denied")]
    AccessDenied,
    /// A name is longer than 255 bytes, or a symbolic link's target than 4095.
    #[error("the name is too long")]
    NameTooLong,
    /// The pool has no room for it.
    #[error("no space left in the pool")]
    NoSpace,
    /// The store takes no more changes.
    #[error("the store is read-only: {0}")]
    ReadOnly(Arc<str>),
    /// An argument makes no sense.
    #[error("invalid argument")]
    Invalid,
    /// The file would become larger than a file can be.
    #[error("the file would be too large")]
    TooLarge,
    /// The inode has as many names as it can have.
    #[error("too many links")]
    TooManyLinks,
    /// No such extended attribute, or no data beyond the offset.
    #[error("no such attribute")]
    NoData,
    /// No data or hole at or after the offset.
    #[error("the offset is beyond the end of the file")]
    NoSuchOffset,
    /// The name of an extended attribute is too long.
    #[error("the attribute's name is out of range")]
    Range,
    /// The value or the list of extended attributes is too long.
    #[error("the attributes are too long")]
    ArgumentTooLong,
    /// The volume has as much as it may have.
    #[error("the quota of the volume is exceeded")]
    Quota,
    /// It is the place of a volume, which goes by `cfs admin volume delete` alone.
    #[error("it is a volume")]
    Volume,
    /// The volume still has snapshots.
    #[error("the volume has snapshots")]
    HasSnapshots,
    /// A clone shows what the snapshot shows.
    #[error("a clone needs the snapshot")]
    NeededByClone,
    /// Files of the clone are open.
    #[error("files in it are open")]
    Busy,
    /// What a clone is to change there is its origin's still: the rows are copied first, and no caller sees this.
    #[error("inode {0} is that of the clone's origin still")]
    Inherited(cfs_format::Ino),
    /// Both names are not in one volume.
    #[error("the names are in different volumes")]
    CrossVolume,
    /// A path passes through a symbolic link, which path resolution does not follow.
    #[error("the path passes through a symbolic link")]
    SymbolicLink,
    /// What a snapshot shows cannot be changed, nor can the directory that lists snapshots.
    #[error("a snapshot cannot be changed")]
    Snapshot,
    /// The snapshot that it was seen in has been deleted.
    #[error("the snapshot has been deleted")]
    Stale,
    /// A stream is coming into the volume: nobody else changes it.
    #[error("a snapshot is being received there, and nothing else changes it until that has ended")]
    Receiving,
    /// The snapshot is held.
    #[error("the snapshot is held")]
    Held,
    /// It is not any more what the operation was meant for.
    #[error("it has changed meanwhile")]
    Changed,
    /// Not offered.
    #[error("not supported")]
    NotSupported,
    /// Stored data could not be read.
    #[error(transparent)]
    Read(ReadError),
    /// Stored records do not fit together, or earlier data could not be written.
    #[error("{0}")]
    Io(Arc<str>),
}

/// What every operation returns.
pub type Result<T> = std::result::Result<T, FsError>;

impl FsError {
    /// The errno that says the same.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotFound => libc::ENOENT,
            Self::Exists => libc::EEXIST,
            Self::ObjectExists => libc::EEXIST,
            Self::NotDirectory => libc::ENOTDIR,
            Self::IsDirectory => libc::EISDIR,
            Self::NotEmpty => libc::ENOTEMPTY,
            Self::NotPermitted | Self::Locked | Self::Reserved => libc::EPERM,
            Self::AccessDenied => libc::EACCES,
            Self::NameTooLong => libc::ENAMETOOLONG,
            Self::NoSpace => libc::ENOSPC,
            Self::ReadOnly(_) | Self::Snapshot => libc::EROFS,
            Self::Stale => libc::ESTALE,
            Self::Held
            | Self::Volume
            | Self::HasSnapshots
            | Self::NeededByClone
            | Self::Busy
            | Self::Receiving => libc::EBUSY,
            Self::Quota => libc::EDQUOT,
            Self::Invalid => libc::EINVAL,
            Self::TooLarge => libc::EFBIG,
            Self::TooManyLinks => libc::EMLINK,
            Self::NoData => libc::ENODATA,
            Self::NoSuchOffset => libc::ENXIO,
            Self::Range => libc::ERANGE,
            Self::ArgumentTooLong => libc::E2BIG,
            Self::CrossVolume => libc::EXDEV,
            Self::SymbolicLink => libc::ELOOP,
            Self::Changed => libc::ESTALE,
            Self::NotSupported => libc::EOPNOTSUPP,
            Self::Read(_) | Self::Io(_) | Self::Inherited(_) => libc::EIO,
        }
    }

    /// Stored records that do not fit together.
    pub(crate) fn damaged(what: impl std::fmt::Display) -> Self {
        Self::Io(format!("damaged: {what}; run `cfs admin fsck`").into())
    }
}

impl From<ReadError> for FsError {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl From<WriteError> for FsError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::NoSpace(_) => Self::NoSpace,
            WriteError::ReadOnly { reason } => Self::ReadOnly(reason),
            WriteError::Read(error) => error.into(),
        }
    }
}

impl From<NoSpace> for FsError {
    fn from(_: NoSpace) -> Self {
        Self::NoSpace
    }
}

impl From<cfs_format::FormatError> for FsError {
    fn from(error: cfs_format::FormatError) -> Self {
        Self::damaged(error)
    }
}
