//! Names that stand for something else where files are objects of S3, and what follows for making names.
//!
//! A key of S3 is a path whose components need not be names. A component that cannot be one is escaped, and so is that of
//! a file whose name a directory has (the object `a` beside `a/b`); what begins with `.s3!` is a directory of the S3
//! face's own. [`crate::Fs::create`] and all else that makes names for a mount or an import asks here, under the writer lock. What
//! restores snapshots and receives streams brings back names as they were, and the S3 face makes its own
//! ([`crate::Fs::mkdir_reserved`], [`crate::Fs::publish`], [`crate::Fs::arrange`]).
//!
//! # Invariants
//! - No two regular files stand for one object, unless they are restored from a snapshot, or a mount overtakes a put of a name
//!   that goes on in one of very many directories: nothing can be put before an object that is there.
//! - Versions of objects are made by the S3 face alone.
//! - A directory in which a component goes on is never moved, so that the files in it stand for what they stood for.

use cfs_format::table::{key, split_key, tag};
use cfs_format::{Ino, VolumeId};
use cfs_store::Txn;

use crate::clone;
use crate::directory::{self, NAME_BYTES_MAX};
use crate::error::{FsError, Result};
use crate::extent::table_error;
use crate::history::Past;
use crate::inode;
use crate::views::{Place, SNAPSHOTS_NAME, beside};

/// The directory, in that of a bucket, in which older versions of its objects are.
pub const VERSIONS_NAME: &[u8] = b".s3!versions";

/// The largest byte that is written as a number.
const LAST_ESCAPED: u8 = b'%';
/// Bytes of every mark.
pub const MARK_BYTES: usize = 4;
/// Longest encoded text in a name, bytes.
pub const TEXT_BYTES_MAX: usize = NAME_BYTES_MAX - MARK_BYTES;
/// Names of directories in which components go on that are read at most where it is not worth more.
const SIBLINGS_MAX: usize = 256;
/// Longest key of an object, bytes.
const KEY_BYTES_MAX: usize = 1024;
/// Directories above another at most; more mean that parents form a circle.
const DEPTH_MAX: u32 = 1 << 20;

/// How a name stands for a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// By itself.
    Plain,
    /// None: it is a directory of the S3 face's own.
    System,
    /// The beginning of a component that goes on in this directory.
    Continued,
    /// An escaped directory.
    Directory,
    /// An escaped file.
    File,
}

impl Form {
    /// What an escaped name of this form begins with; nothing for a plain one.
    #[must_use]
    pub fn mark(self) -> &'static [u8] {
        match self {
            Self::Plain => b"",
            Self::System => b".s3!",
            Self::Continued => b".s3+",
            Self::Directory => b".s3=",
            Self::File => b".s3~",
        }
    }

    /// The form that a name has.
    #[must_use]
    pub fn of(name: &[u8]) -> Self {
        match name.get(..MARK_BYTES) {
            Some(b".s3!") => Self::System,
            Some(b".s3+") => Self::Continued,
            Some(b".s3=") => Self::Directory,
            Some(b".s3~") => Self::File,
            _ => Self::Plain,
        }
    }
}

/// Whether a component is its own name.
#[must_use]
pub fn is_plain(component: &[u8]) -> bool {
    !matches!(component, b"" | b"." | b".." | SNAPSHOTS_NAME)
        && component.len() <= NAME_BYTES_MAX
        && !component.contains(&0)
        && Form::of(component) == Form::Plain
}

/// The text of an escaped name: each byte up to `%` is `%` and two hexadecimal digits, in capitals.
#[must_use]
pub fn encode(raw: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(raw.len());
    for byte in raw {
        if *byte <= LAST_ESCAPED {
            text.extend_from_slice(format!("%{byte:02X}").as_bytes());
        } else {
            text.push(*byte);
        }
    }
    text
}

/// How many bytes of a component the first of several escaped names takes; none if one name is enough.
fn first_piece(component: &[u8]) -> Option<usize> {
    let mut text_bytes = 0;
    component.iter().position(|byte| {
        text_bytes += if *byte <= LAST_ESCAPED { 3 } else { 1 };
        text_bytes > TEXT_BYTES_MAX
    })
}

/// The names, each in the one before, of an escaped component.
#[must_use]
pub fn names_of(component: &[u8], last: Form) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    let mut rest = component;
    while let Some(bytes) = first_piece(rest) {
        names.push([Form::Continued.mark(), &encode(&rest[..bytes])].concat());
        rest = &rest[bytes..];
    }
    names.push([last.mark(), &encode(rest)].concat());
    names
}

/// Whether one of the names of an escaped component ends, and the next begins, after so many of its bytes.
#[must_use]
pub fn is_cut_at(component: &[u8], at: usize) -> bool {
    let mut cut = 0;
    while cut < at {
        match first_piece(&component[cut..]) {
            Some(bytes) => cut += bytes,
            None => return false,
        }
    }
    cut == at
}

/// What an escaped name's text stands for; none if it is not as [`encode`] writes it.
#[must_use]
pub fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    };
    let mut raw = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        if *byte == LAST_ESCAPED {
            let byte = digit(*rest.next()?)? * 16 + digit(*rest.next()?)?;
            if byte > LAST_ESCAPED {
                return None;
            }
            raw.push(byte);
        } else if *byte < LAST_ESCAPED {
            return None;
        } else {
            raw.push(*byte);
        }
    }
    Some(raw)
}

/// What an entry of a directory leads to, with its type bits; of a directory that a clone has from its origin too.
fn entry(txn: &Txn<'_>, parent: Ino, name: &[u8]) -> Result<Option<(Ino, u32)>> {
    let Some(found) = place_of(txn, parent)? else {
        return Ok(None);
    };
    let value = match found.at {
        None => txn.get(&key(found.ino, tag::DIRENT, name))?,
        Some(at) => Past { table: txn, at }.get(found.ino, tag::DIRENT, name)?,
    };
    value.map(|value| target(parent, &value)).transpose()
}

fn target(parent: Ino, value: &[u8]) -> Result<(Ino, u32)> {
    let entry = directory::decode(parent, value)?;
    let ino = beside(parent, Ino(entry.ino.get()))?;
    Ok((ino, u32::from(entry.kind) << 12))
}

/// Where the rows of a directory are.
fn place_of(txn: &Txn<'_>, ino: Ino) -> Result<Option<Place>> {
    match ino.cloned() {
        None => Ok(Some(Place { ino, at: None })),
        Some(_) => Ok(clone::find(txn, ino, None)?.map(|found| found.place)),
    }
}

/// The name of a directory, if it is one in which a component goes on. None at all if it takes more than `siblings_max` rows to
/// know, as nothing but its name tells of it.
fn continued_name(
    txn: &Txn<'_>,
    above: Ino,
    directory: Ino,
    siblings_max: usize,
) -> Result<Option<Option<Vec<u8>>>> {
    let Some(place) = place_of(txn, above)? else {
        return Ok(Some(None));
    };
    // The comma is the character after the plus sign.
    let (lo, hi) = (b".s3+", b".s3,");
    let rows: Box<dyn Iterator<Item = Result<(Vec<u8>, Vec<u8>)>>> = match place.at {
        Some(at) => {
            let past = Past { table: txn, at };
            Box::new(past.rows(place.ino, tag::DIRENT, lo, Some(hi)))
        }
        None => {
            let key = |name| key(place.ino, tag::DIRENT, name);
            Box::new(txn.range(&key(lo), &key(hi)).map(|row| {
                let (row_key, value) = row.map_err(table_error)?;
                Ok((split_key(&row_key)?.2.to_vec(), value))
            }))
        }
    };
    for (number, row) in rows.enumerate() {
        if number >= siblings_max {
            return Ok(None);
        }
        let (name, value) = row?;
        if target(above, &value)?.0 == directory {
            return Ok(Some(Some(name)));
        }
    }
    Ok(Some(None))
}

/// The component that a file of this name, which has the mark of one, stands for, and the directory that it is a component in.
/// None if it stands for nothing, or it takes more than so many rows of siblings to know.
fn file_component(
    txn: &Txn<'_>,
    parent: Ino,
    name: &[u8],
    siblings_max: usize,
) -> Result<Option<(Ino, Vec<u8>)>> {
    let Some(mut component) = decode(&name[MARK_BYTES..]) else {
        return Ok(None);
    };
    let mut path = vec![name.to_vec()];
    let mut at = parent;
    // A key has no more bytes, and each name but the last takes more than 80 of them.
    while path.len() <= KEY_BYTES_MAX / (TEXT_BYTES_MAX / 3) {
        let record = inode::shown(txn, at)?;
        if at == Ino::ROOT || !inode::is_directory(&record) {
            break;
        }
        let above = Ino(record.parent.get());
        let Some(name) = continued_name(txn, above, at, siblings_max)? else {
            return Ok(None);
        };
        let Some(name) = name else {
            break;
        };
        let Some(piece) = decode(&name[MARK_BYTES..]) else {
            return Ok(None);
        };
        component.splice(..0, piece);
        path.insert(0, name);
        at = above;
    }
    Ok((names_of(&component, Form::File) == path).then_some((at, component)))
}

/// The other file, its directory and name, that stands for the same object as a file of this name would.
///
/// # Errors
/// [`FsError::Read`].
fn other_file(txn: &Txn<'_>, parent: Ino, name: &[u8]) -> Result<Option<(Ino, Vec<u8>)>> {
    find_other_file(txn, parent, name, usize::MAX)
}

/// The same for the S3 face, which has looked for it and may have been overtaken: it does not come to know of each where very
/// many long keys begin in one directory, so that a put there costs no more than elsewhere.
///
/// # Errors
/// [`FsError::Read`].
pub(crate) fn overtaking_file(
    txn: &Txn<'_>,
    parent: Ino,
    name: &[u8],
) -> Result<Option<(Ino, Vec<u8>)>> {
    find_other_file(txn, parent, name, SIBLINGS_MAX)
}

fn find_other_file(
    txn: &Txn<'_>,
    parent: Ino,
    name: &[u8],
    siblings_max: usize,
) -> Result<Option<(Ino, Vec<u8>)>> {
    let (mut at, names) = match Form::of(name) {
        Form::Plain if is_plain(name) => (parent, names_of(name, Form::File)),
        Form::File => match file_component(txn, parent, name, siblings_max)? {
            Some((directory, component)) if is_plain(&component) => (directory, vec![component]),
            _ => return Ok(None),
        },
        _ => return Ok(None),
    };
    let (last, way) = names.split_last().expect("there is at least one name");
    let find = |at: Ino, name: &[u8], kind: u32| -> Result<Option<Ino>> {
        let entry = entry(txn, at, name)?.filter(|entry| entry.1 == kind);
        Ok(entry.map(|entry| entry.0))
    };
    for name in way {
        match find(at, name, libc::S_IFDIR)? {
            Some(directory) => at = directory,
            None => return Ok(None),
        }
    }
    Ok(find(at, last, libc::S_IFREG)?.map(|_| (at, last.clone())))
}

/// Whether a directory is one of older versions, or below it.
fn holds_versions(txn: &Txn<'_>, directory: Ino) -> Result<bool> {
    let mut at = directory;
    for _ in 0..DEPTH_MAX {
        let record = inode::shown(txn, at)?;
        if at == Ino::ROOT || !inode::is_directory(&record) {
            return Ok(false);
        }
        let parent = Ino(record.parent.get());
        // The root of another volume is its own parent, and is seen in place of an empty directory.
        let above = match txn.volume(VolumeId(record.volume.get())) {
            Some(volume) if parent == at => Ino(volume.junction.get()),
            _ => parent,
        };
        let versions = entry(txn, above, VERSIONS_NAME)?;
        if versions.is_some_and(|entry| entry.0 == at) {
            return Ok(true);
        }
        at = above;
    }
    Err(FsError::damaged(format_args!(
        "the parents of directory {directory} form a circle"
    )))
}

/// Refuses to make or to take a name that is the S3 face's own.
///
/// # Errors
/// [`FsError::Reserved`].
pub(crate) fn check_reserved(txn: &Txn<'_>, parent: Ino, name: &[u8]) -> Result<()> {
    match Form::of(name) {
        Form::Plain => Ok(()),
        Form::System => Err(FsError::Reserved),
        _ if holds_versions(txn, parent)? => Err(FsError::Reserved),
        _ => Ok(()),
    }
}

/// Refuses a name that a mount may not make for an inode of this kind (type bits of the mode).
///
/// # Errors
/// [`FsError::Reserved`]; [`FsError::ObjectExists`] when another file stands for the same object.
pub(crate) fn check_new(txn: &Txn<'_>, parent: Ino, name: &[u8], kind: u32) -> Result<()> {
    check_reserved(txn, parent, name)?;
    match kind == libc::S_IFREG && other_file(txn, parent, name)?.is_some() {
        true => Err(FsError::ObjectExists),
        false => Ok(()),
    }
}

/// A name before and after a rename.
#[derive(Clone, Copy)]
pub(crate) struct Renamed<'a> {
    pub(crate) from: (Ino, &'a [u8]),
    pub(crate) to: (Ino, &'a [u8]),
    pub(crate) exchange: bool,
}

/// The same for a rename. What is not there is left to who renames.
///
/// # Errors
/// As [`check_new`].
pub(crate) fn check_rename(txn: &Txn<'_>, renamed: Renamed<'_>) -> Result<()> {
    let Renamed { from, to, exchange } = renamed;
    let kind_at = |(parent, name): (Ino, &[u8])| -> Result<u32> {
        Ok(entry(txn, parent, name)?.map_or(0, |entry| entry.1))
    };
    let kinds = (kind_at(from)?, kind_at(to)?);
    let is_directory = [kinds.0, kinds.1].contains(&libc::S_IFDIR);
    for (parent, name) in [from, to] {
        check_reserved(txn, parent, name)?;
        // What is in a directory of versions would be versions of other objects elsewhere, and what is put there some that
        // never were; and where a component goes on otherwise, files stand for others.
        if is_directory && (Form::of(name) == Form::Continued || holds_versions(txn, parent)?) {
            return Err(FsError::Reserved);
        }
    }
    let is_in_the_way = |(parent, name): (Ino, &[u8])| -> Result<bool> {
        let other = other_file(txn, parent, name)?;
        // The one name of an object may become the other.
        Ok(other.is_some_and(|(parent, other)| exchange || (parent, &*other) != from))
    };
    let takes = kinds.0 == libc::S_IFREG && is_in_the_way(to)?;
    let gives = exchange && kinds.1 == libc::S_IFREG && is_in_the_way(from)?;
    match takes || gives {
        true => Err(FsError::ObjectExists),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_as_late_as_can_be() {
        let component = [&[b'x'; 250][..], b" y", &[b'z'; 600]].concat();
        let names = names_of(&component, Form::File);
        let lengths: Vec<_> = names.iter().map(Vec::len).collect();
        assert_eq!(lengths, [254, 255, 255, 4 + 852 - 750]);
        let cuts: Vec<_> = (0..component.len())
            .filter(|at| is_cut_at(&component, *at))
            .collect();
        assert_eq!(cuts, [0, 250, 250 + 249, 250 + 249 + 251]);
        assert!(!is_cut_at(&[b'x'; 251], 251));
    }
}
