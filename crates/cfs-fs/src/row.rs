//! Rows that have no layout of their own begin with the timestamp of the command that wrote them; this puts it there,
//! takes it off, and finds that of any row that has one.

use cfs_format::table::{CookieRecord, DirentRecord, ExtentRecord, InodeRecord, StampRecord, tag};
use cfs_store::Txn;
use zerocopy::{FromBytes, IntoBytes};

use crate::error::{FsError, Result};

/// The value of an `INLINE` or `XATTR` row that holds `content`.
pub(crate) fn stamped(txn: &Txn<'_>, content: &[u8]) -> Vec<u8> {
    let stamp = StampRecord {
        timestamp: txn.timestamp().0.into(),
    };
    let mut value = Vec::with_capacity(size_of::<StampRecord>() + content.len());
    value.extend_from_slice(stamp.as_bytes());
    value.extend_from_slice(content);
    value
}

/// What [`stamped`] was given.
///
/// # Errors
/// [`FsError::Io`] when it is too short for that.
pub(crate) fn content(mut value: Vec<u8>) -> Result<Vec<u8>> {
    if value.len() < size_of::<StampRecord>() {
        return Err(FsError::damaged("a row without its timestamp"));
    }
    value.drain(..size_of::<StampRecord>());
    Ok(value)
}

/// The timestamp of the command that wrote a row of an inode.
///
/// # Errors
/// [`FsError::Io`] when the value is not what the tag says.
pub(crate) fn timestamp(row_tag: u8, value: &[u8]) -> Result<u64> {
    let stamp = match row_tag {
        tag::INODE => prefix::<InodeRecord>(value).map(|record| record.timestamp),
        tag::EXTENT => prefix::<ExtentRecord>(value).map(|record| record.timestamp),
        tag::DIRENT => prefix::<DirentRecord>(value).map(|record| record.timestamp),
        tag::COOKIE => prefix::<CookieRecord>(value).map(|record| record.timestamp),
        tag::INLINE | tag::XATTR => prefix::<StampRecord>(value).map(|record| record.timestamp),
        _ => None,
    };
    stamp
        .map(|stamp| stamp.get())
        .ok_or_else(|| FsError::damaged(format_args!("a row with tag {row_tag:#x}")))
}

fn prefix<T: FromBytes>(value: &[u8]) -> Option<T> {
    T::read_from_prefix(value).ok().map(|(record, _)| record)
}
