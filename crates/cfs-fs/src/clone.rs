//! Clones: volumes that show what a snapshot shows, until something in them is changed.
//!
//! A clone's record names its origin, a snapshot. All its inodes have numbers of the clone ([`Ino::in_clone`]): those
//! that it has from the origin the number there, marked with the clone; those made in it one of their own. An inode of
//! which there is no row under that number is the origin's, as the snapshot sees it, which for an origin that is itself
//! a clone may be that one's origin, and so on. Before the first command that changes an inode, all its rows are copied
//! under its number in the clone, references to chunks included; from then on it is like any other. What has been
//! removed leaves a record that says so, or the origin's would be seen again.
//!
//! # Invariants
//! - An inode of a clone has all of its rows in the clone, or none that counts: its own record decides, as of now and as
//!   of each snapshot of the clone. While rows are being copied the record says `COPYING`, and the origin's count.
//! - The snapshot that a clone needs is not deleted, so that what the origin shows stays as it is.
//! - What is a junction in the origin is an empty directory in the clone, and files have no locks of the origin. What was
//!   received into the origin does not count as received in the clone.

use cfs_format::table::{InodeRecord, LOCK_NAME, VolumeRecord, inode_flag, key, tag};
use cfs_format::{Ino, Timestamp, VolumeId};

use crate::error::{FsError, Result};
use crate::history::{Past, Table};
use crate::views::Place;
use crate::{directory, inode};

/// An inode of a clone, wherever its rows are.
pub(crate) struct Found {
    /// Its rows.
    pub place: Place,
    /// Its record, as the clone shows it.
    pub record: InodeRecord,
}

impl Found {
    /// Whether it is an inode of a clone whose rows are those of the origin.
    pub(crate) fn is_inherited(&self, ino: Ino) -> bool {
        ino.cloned().is_some() && self.place.at.is_some()
    }
}

/// Whether the rows of an inode are its own: they count, and are all there.
pub(crate) fn is_own(record: &InodeRecord) -> bool {
    record.flags.get() & (inode_flag::COPYING | inode_flag::GONE) == 0
}

/// Whether the record says that an inode of the origin has been removed.
pub(crate) fn is_gone(record: &InodeRecord) -> bool {
    record.flags.get() & inode_flag::GONE != 0
}

/// The number that a volume's tables have for the inode with this base.
pub(crate) fn number_in(id: VolumeId, volume: &VolumeRecord, base: Ino) -> Option<Ino> {
    // Of a clone whose record was lost and made anew the origin is not known.
    match Ino(volume.root.get()).cloned() {
        None => Some(base),
        Some(_) => base.in_clone(id),
    }
}

/// Where the origin has an inode of a clone, if it has it.
fn above<T: Table>(table: &T, ino: Ino) -> Option<(Ino, Timestamp)> {
    let (clone, base) = ino.cloned()?;
    let (volume, at) = table.volume(clone)?.origin()?;
    Some((number_in(volume, &table.volume(volume)?, base)?, at))
}

/// The rows of an inode and its record, as they are or as they were at a snapshot's timestamp.
///
/// # Errors
/// When something cannot be read.
pub(crate) fn find<T: Table>(table: &T, ino: Ino, at: Option<Timestamp>) -> Result<Option<Found>> {
    let mut place = Place { ino, at };
    loop {
        let row = match place.at {
            None => table.value(&key(place.ino, tag::INODE, &[]))?,
            Some(at) => Past { table, at }.get(place.ino, tag::INODE, &[])?,
        };
        if let Some(bytes) = row {
            let record = inode::decode(place.ino, &bytes)?;
            if is_gone(&record) {
                return Ok(None);
            }
            if is_own(&record) {
                let record = match place.ino == ino {
                    true => record,
                    false => as_in(table, ino, record),
                };
                return Ok(Some(Found { place, record }));
            }
        }
        let Some((above, earlier)) = above(table, place.ino) else {
            return Ok(None);
        };
        // A clone is newer than its origin, or this would not end.
        if place.at.is_some_and(|at| at <= earlier) {
            return Err(FsError::damaged(format_args!(
                "the origin of inode {ino} is newer than its clone"
            )));
        }
        place = Place {
            ino: above,
            at: Some(earlier),
        };
    }
}

/// The rows that the origin of a clone has of an inode, whatever the clone has.
///
/// # Errors
/// When something cannot be read.
pub(crate) fn inherited<T: Table>(table: &T, ino: Ino) -> Result<Option<Found>> {
    let Some((above, at)) = above(table, ino) else {
        return Ok(None);
    };
    let found = find(table, above, Some(at))?;
    Ok(found.map(|found| Found {
        record: as_in(table, ino, found.record),
        ..found
    }))
}

/// Whether a record of an inode of the origin is none of the clone's: files are locked where they were locked, a clone is
/// no replica of what its origin is one of, and a clone of the pool's root has no users and policies of its own.
pub(crate) fn stays_with_origin(ino: Ino, record: &InodeRecord, name: &[u8]) -> bool {
    match name == LOCK_NAME {
        true => !inode::is_directory(record),
        false => crate::stream::record_stays(ino.base(), name),
    }
}

/// A record of the origin as a clone shows it.
fn as_in<T: Table>(table: &T, ino: Ino, mut record: InodeRecord) -> InodeRecord {
    let Some((clone, _)) = ino.cloned() else {
        return record;
    };
    let is_directory = inode::is_directory(&record);
    let left_out = match is_directory {
        true => inode_flag::JUNCTION,
        false => inode_flag::LOCKED,
    };
    record.volume = clone.0.into();
    record.flags = (record.flags.get() & !left_out).into();
    if is_directory {
        let is_root = |volume: VolumeRecord| volume.root.get() == ino.0;
        let parent = match table.volume(clone).is_some_and(is_root) {
            true => Some(ino),
            false => Ino(record.parent.get()).in_clone(clone),
        };
        record.parent = parent.unwrap_or(ino).0.into();
    }
    record
}

/// Type bits and targets of the entries that a directory of the origin has, with the targets' numbers in the clone.
///
/// # Errors
/// When something cannot be read.
pub(crate) fn entries<T: Table>(
    table: &T,
    ino: Ino,
    found: &Found,
) -> impl Iterator<Item = Result<(Ino, u32)>> + use<T> {
    let at = found.place.at.unwrap_or_default();
    let rows = Past { table, at }.rows(found.place.ino, tag::COOKIE, &[], None);
    rows.map(move |row| {
        let (_, value) = row?;
        let (record, _) = directory::decode_cookie(ino, &value)?;
        let target = crate::views::beside(ino, Ino(record.ino.get()))?;
        Ok((target, u32::from(record.kind) << 12))
    })
}

/// The first key of a clone's inodes, and the first behind the last of them, or behind those up to one of them.
///
/// # Errors
/// [`FsError::Invalid`] for a volume that can be no clone.
pub(crate) fn range_of(volume: VolumeId, last: Option<Ino>) -> Result<(Vec<u8>, Vec<u8>)> {
    let first = Ino(0).in_clone(volume).ok_or(FsError::Invalid)?;
    let behind = match last {
        Some(last) => Some(Ino(last.0 + 1)),
        None => Ino(0).in_clone(VolumeId(volume.0 + 1)),
    };
    let behind = behind.map_or_else(|| vec![0xff; 9], |next| key(next, 0, &[]));
    Ok((key(first, 0, &[]), behind))
}
