//! What is in the file system, and whether its tables agree with each other.

use std::collections::BTreeMap;
use std::sync::Arc;

use cfs_format::Ino;
use cfs_fs::{Attr, Fs, FsError};

use crate::content::Content;
use crate::model::{Attributes, Found, FoundNode, Kind};

/// Entries asked for at once; few, so that reading goes on at cookies.
const ENTRIES_AT_ONCE: usize = 7;
/// Longest read, bytes; one of them goes over the edge that `edges` is about.
const READ_BYTES_MAX: u64 = 3 << 19;

/// Everything that can be reached from the root.
///
/// # Errors
/// What could not be read, and what contradicts itself.
pub(crate) fn look(fs: &Fs) -> Result<Found, String> {
    let mut found = look_below(fs, Ino::ROOT)?;
    for volume in fs.volumes() {
        // Where its names cannot be read it has none.
        let path = String::from_utf8_lossy(&volume.path);
        let path = path.strip_prefix('/').ok_or("a volume is nowhere")?;
        if let Some(node) = found.get_mut(path) {
            node.is_volume = true;
        }
    }
    Ok(found)
}

/// Everything that can be reached from a directory.
///
/// # Errors
/// What could not be read, and what contradicts itself.
pub(crate) fn look_below(fs: &Fs, root: Ino) -> Result<Found, String> {
    let mut found = Found::new();
    let mut waiting = vec![(String::new(), root)];
    while let Some((directory, ino)) = waiting.pop() {
        for (name, ino) in entries(fs, ino).map_err(|error| format!("{directory}/: {error}"))? {
            let path = match directory.is_empty() {
                true => name,
                false => format!("{directory}/{name}"),
            };
            let node = node(fs, ino).map_err(|error| format!("{path}: {error}"))?;
            if node.kind == Kind::Directory {
                waiting.push((path.clone(), ino));
            }
            if found.insert(path.clone(), node).is_some() {
                return Err(format!("{path} is listed twice"));
            }
        }
    }
    Ok(found)
}

/// Names and inode numbers in a directory.
pub(crate) fn entries(fs: &Fs, directory: Ino) -> Result<Vec<(String, Ino)>, FsError> {
    let limit = fs.open_dir(directory)?;
    let mut listed = Vec::new();
    let mut cookie = 0;
    let result = loop {
        match fs.read_dir(directory, cookie, limit, ENTRIES_AT_ONCE) {
            Err(error) => break Err(error),
            Ok(entries) => {
                let Some(last) = entries.last() else {
                    break Ok(());
                };
                cookie = last.cookie;
                let name = |name: Vec<u8>| String::from_utf8_lossy(&name).into_owned();
                listed.extend(
                    entries
                        .into_iter()
                        .map(|entry| (name(entry.name), entry.ino)),
                );
            }
        }
    };
    fs.release(directory)?;
    result.map(|()| listed)
}

fn kind(fs: &Fs, attr: &Attr) -> Result<Kind, FsError> {
    Ok(match attr.kind() {
        libc::S_IFDIR => Kind::Directory,
        libc::S_IFLNK => {
            let target = fs.readlink(attr.ino)?;
            Kind::Symlink(String::from_utf8_lossy(&target).into_owned())
        }
        libc::S_IFIFO => Kind::Fifo,
        _ => Kind::File,
    })
}

/// One inode with all that the model knows of.
pub(crate) fn node(fs: &Fs, ino: Ino) -> Result<FoundNode, FsError> {
    let attr = fs.getattr(ino)?;
    let mut xattrs = BTreeMap::new();
    for name in fs.listxattr(ino)? {
        let value = fs.getxattr(ino, &name)?;
        xattrs.insert(String::from_utf8_lossy(&name).into_owned(), value);
    }
    let kind = kind(fs, &attr)?;
    let content = match kind {
        Kind::File => content(fs, ino, attr.size)?,
        _ => Content::default(),
    };
    if kind == Kind::File && content.len() != attr.size {
        let (is, size) = (content.len(), attr.size);
        let text = format!("{is} bytes could be read of a size of {size}");
        return Err(FsError::Io(text.into()));
    }
    Ok(FoundNode {
        ino: ino.0,
        is_volume: false,
        nlink: attr.nlink,
        kind,
        attributes: Attributes {
            mode: attr.mode & 0o7777,
            xattrs,
        },
        content: Arc::new(content),
    })
}

/// The content of a file, so many bytes at most.
pub(crate) fn content(fs: &Fs, ino: Ino, len: u64) -> Result<Content, FsError> {
    let mut content = Content::default();
    let mut out = Vec::new();
    while content.len() < len {
        let (at, rest) = (content.len(), len - content.len());
        let asked = rest.min(READ_BYTES_MAX);
        fs.read(ino, at, asked as usize, &mut out)?;
        content.write(at, &out);
        if (out.len() as u64) < asked {
            break;
        }
    }
    Ok(content)
}

/// That all tables agree, counts with a recount, and every segment has one owner.
///
/// # Errors
/// The findings.
pub(crate) fn check(fs: &Fs) -> Result<(), String> {
    let report = fs
        .check(|_| true)
        .map_err(|error| format!("check: {error}"))?
        .ok_or("the check ended early")?;
    if !report.is_clean() {
        return Err(format!("check found {:?}", report.findings));
    }
    let recount = fs
        .recount(|_| true)
        .map_err(|error| format!("recount: {error}"))?
        .ok_or("the recount ended early")?;
    match recount.is_clean() && recount.freed == 0 {
        true => Ok(()),
        false => Err(format!("the recount found {recount:?}")),
    }
}

/// That nothing is promised when nothing is dirty, and that segments add up to those that there are.
///
/// # Errors
/// What does not add up.
pub(crate) fn check_space(fs: &Fs) -> Result<(), String> {
    let stats = fs.store().stats();
    if stats.promised_bytes != 0 {
        return Err(format!(
            "{} bytes are promised although nothing is dirty",
            stats.promised_bytes
        ));
    }
    let segments = stats.segments;
    let anchors = u64::from(cfs_format::superblock::ANCHORS);
    let sum = segments.free
        + segments.pending
        + segments.journal
        + segments.table
        + segments.data
        + anchors;
    if sum != segments.total {
        return Err(format!("segments do not add up: {segments:?}"));
    }
    Ok(())
}
