//! Applying commands that make inodes and names.

use cfs_format::table::{InodeRecord, VolumeRecord, inode_flag, key, system_key, tag};
use cfs_format::{Ino, VolumeId};
use cfs_store::{Txn, VolumeDelta};

use super::Outcome;
use crate::command::{Format, Link, Make, MakeUnnamed, VolumeCreate};
use crate::directory::{self, FIRST_COOKIE, Target};
use crate::error::{FsError, Result};
use crate::types::Time;
use crate::{acl, inode, lock, row};

/// Longest target of a symbolic link, bytes.
pub(crate) const TARGET_BYTES_MAX: usize = 4095;

const NAME_TYPES: [u32; 7] = [
    libc::S_IFREG,
    libc::S_IFDIR,
    libc::S_IFLNK,
    libc::S_IFCHR,
    libc::S_IFBLK,
    libc::S_IFIFO,
    libc::S_IFSOCK,
];

/// The record of a directory that can take new names.
///
/// # Errors
/// [`FsError::NotFound`] also when it has been removed; [`FsError::NotDirectory`].
pub(super) fn live_directory(txn: &Txn<'_>, ino: Ino) -> Result<InodeRecord> {
    live_record(inode::get(txn, ino)?)
}

/// The same of a record.
pub(super) fn live_record(record: InodeRecord) -> Result<InodeRecord> {
    if !inode::is_directory(&record) {
        return Err(FsError::NotDirectory);
    }
    if record.nlink.get() == 0 {
        return Err(FsError::NotFound);
    }
    if inode::is_junction(&record) {
        return Err(FsError::Volume);
    }
    Ok(record)
}

/// Marks a change of a directory's entries.
pub(super) fn touch_entries(directory: &mut InodeRecord, now: Time) {
    directory.mtime = now.into();
    directory.ctime = now.into();
}

pub(super) fn format(txn: &mut Txn<'_>, command: &Format) -> Result<Outcome> {
    if txn.get(&key(Ino::ROOT, tag::INODE, &[]))?.is_some() {
        return Err(FsError::Exists);
    }
    let mut root = InodeRecord {
        mode: (libc::S_IFDIR | 0o755).into(),
        uid: command.uid.into(),
        gid: command.gid.into(),
        nlink: 2.into(),
        parent: Ino::ROOT.0.into(),
        next_cookie: FIRST_COOKIE.into(),
        volume: VolumeId::ROOT.0.into(),
        salt: command.salt,
        atime: command.now.into(),
        mtime: command.now.into(),
        ctime: command.now.into(),
        btime: command.now.into(),
        ..InodeRecord::default()
    };
    txn.note_ino(Ino::ROOT);
    inode::put(txn, Ino::ROOT, &mut root);
    txn.volume_put(
        VolumeId::ROOT,
        VolumeRecord {
            root: Ino::ROOT.0.into(),
            inode_count: 1.into(),
            created_ns: command.now.ns_since_1970().into(),
            domain: command.domain.0.into(),
            codec: command.codec,
            codec_level: command.codec_level,
            ..VolumeRecord::default()
        },
    );
    Ok(Outcome::of(Ino::ROOT, root))
}

/// What a new inode takes from the caller; the rest comes from its directory.
struct New<'a> {
    parent: Ino,
    ino: Ino,
    mode: u32,
    rdev: u64,
    uid: u32,
    gid: u32,
    umask: u32,
    nlink: u32,
    target: &'a [u8],
    now: Time,
    salt: [u8; 16],
}

/// Writes all rows of a new inode but its name.
fn put_new(txn: &mut Txn<'_>, directory: &InodeRecord, new: &New<'_>) -> Result<InodeRecord> {
    let kind = new.mode & libc::S_IFMT;
    let mut mode = new.mode & (libc::S_IFMT | 0o7777);
    let mut gid = new.gid;
    if directory.mode.get() & libc::S_ISGID != 0 {
        gid = directory.gid.get();
        if kind == libc::S_IFDIR {
            mode |= libc::S_ISGID;
        }
    }
    let acls = acl::inherit(txn, new.parent, directory, &mut mode, new.umask)?;
    let volume = VolumeId(directory.volume.get());
    let target_bytes = new.target.len() as u64;
    let mut record = InodeRecord {
        mode: mode.into(),
        uid: new.uid.into(),
        gid: gid.into(),
        nlink: new.nlink.into(),
        rdev: new.rdev.into(),
        size: target_bytes.into(),
        allocated: target_bytes.into(),
        atime: new.now.into(),
        mtime: new.now.into(),
        ctime: new.now.into(),
        btime: new.now.into(),
        volume: volume.0.into(),
        salt: new.salt,
        ..InodeRecord::default()
    };
    if kind == libc::S_IFDIR {
        record.parent = new.parent.0.into();
        record.next_cookie = FIRST_COOKIE.into();
    }
    if kind == libc::S_IFLNK {
        record.flags |= inode_flag::INLINE;
        let target = row::stamped(txn, new.target);
        txn.put(key(new.ino, tag::INLINE, &[]), target);
    }
    for (name, value) in acls {
        record.flags |= inode_flag::XATTRS;
        let value = row::stamped(txn, &value);
        txn.put(key(new.ino, tag::XATTR, name), value);
    }
    txn.note_ino(new.ino);
    inode::put(txn, new.ino, &mut record);
    txn.volume_add(
        volume,
        VolumeDelta {
            logical_bytes: target_bytes as i64,
            allocated_bytes: target_bytes as i64,
            inodes: 1,
        },
    )?;
    Ok(record)
}

pub(super) fn make(txn: &mut Txn<'_>, command: &Make) -> Result<Outcome> {
    directory::check_name(&command.name)?;
    let kind = command.mode & libc::S_IFMT;
    if !NAME_TYPES.contains(&kind) {
        return Err(FsError::Invalid);
    }
    if command.target.len() > TARGET_BYTES_MAX {
        return Err(FsError::NameTooLong);
    }
    if command.target.is_empty() == (kind == libc::S_IFLNK) {
        return Err(FsError::Invalid);
    }
    let mut parent = live_directory(txn, command.parent)?;
    check_clone(command.parent, command.ino)?;
    if directory::find(txn, command.parent, &command.name)?.is_some() {
        return Err(FsError::Exists);
    }
    let is_directory = kind == libc::S_IFDIR;
    if is_directory && parent.nlink.get() >= inode::NLINK_MAX {
        return Err(FsError::TooManyLinks);
    }

    let new = New {
        parent: command.parent,
        ino: command.ino,
        mode: command.mode,
        rdev: command.rdev,
        uid: command.uid,
        gid: command.gid,
        umask: command.umask,
        nlink: if is_directory { 2 } else { 1 },
        target: &command.target,
        now: command.now,
        salt: command.salt,
    };
    let record = put_new(txn, &parent, &new)?;
    if is_directory {
        parent.nlink += 1;
    }
    touch_entries(&mut parent, command.now);
    let target = Target {
        ino: command.ino,
        kind,
    };
    directory::insert(txn, command.parent, &mut parent, &command.name, target);
    #[cfg(feature = "planted-bugs")]
    if kind == libc::S_IFIFO
        && cfs_format::planted::has(cfs_format::planted::Bug::DirentWithoutInode)
    {
        txn.delete(key(command.ino, tag::INODE, &[]));
    }
    inode::put(txn, command.parent, &mut parent);
    Ok(Outcome::of(command.ino, record))
}

/// An inode has a number of the clone that it is made in.
fn check_clone(parent: Ino, ino: Ino) -> Result<()> {
    let clone = |ino: Ino| ino.cloned().map(|(clone, _)| clone);
    match ino.view().is_none() && clone(parent) == clone(ino) {
        true => Ok(()),
        false => Err(FsError::Invalid),
    }
}

/// Makes the root directory of a volume whose record has just been put, as if it were made in `above`, the directory
/// with its junction.
pub(super) fn volume_root(
    txn: &mut Txn<'_>,
    above: &InodeRecord,
    command: &VolumeCreate,
) -> Result<Outcome> {
    let VolumeCreate { junction, root, .. } = command;
    let above = InodeRecord {
        volume: command.volume.0.into(),
        ..*above
    };
    let new = New {
        parent: junction.parent,
        ino: *root,
        mode: junction.mode,
        rdev: 0,
        uid: junction.uid,
        gid: junction.gid,
        umask: junction.umask,
        nlink: 2,
        target: &[],
        now: junction.now,
        salt: command.salt,
    };
    let mut record = put_new(txn, &above, &new)?;
    record.parent = root.0.into();
    inode::put(txn, *root, &mut record);
    Ok(Outcome::of(*root, record))
}

pub(super) fn make_unnamed(txn: &mut Txn<'_>, command: &MakeUnnamed) -> Result<Outcome> {
    let parent = live_directory(txn, command.parent)?;
    check_clone(command.parent, command.ino)?;
    let new = New {
        parent: command.parent,
        ino: command.ino,
        mode: libc::S_IFREG | (command.mode & 0o7777),
        rdev: 0,
        uid: command.uid,
        gid: command.gid,
        umask: command.umask,
        nlink: 0,
        target: &[],
        now: command.now,
        salt: command.salt,
    };
    let record = put_new(txn, &parent, &new)?;
    let since = row::stamped(txn, &[]);
    txn.put(orphan_key(command.ino), since);
    Ok(Outcome::of(command.ino, record))
}

pub(super) fn link(txn: &mut Txn<'_>, command: &Link) -> Result<Outcome> {
    directory::check_name(&command.name)?;
    let mut record = inode::get(txn, command.ino)?;
    let mut parent = live_directory(txn, command.parent)?;
    if inode::is_directory(&record) {
        return Err(FsError::NotPermitted);
    }
    lock::check(txn, command.ino, &record)?;
    if record.volume != parent.volume {
        return Err(FsError::CrossVolume);
    }
    if directory::find(txn, command.parent, &command.name)?.is_some() {
        return Err(FsError::Exists);
    }
    if record.nlink.get() >= inode::NLINK_MAX {
        return Err(FsError::TooManyLinks);
    }

    if record.nlink.get() == 0 {
        txn.delete(orphan_key(command.ino));
    }
    record.nlink += 1;
    record.ctime = command.now.into();
    touch_entries(&mut parent, command.now);
    let target = Target {
        ino: command.ino,
        kind: inode::kind(&record),
    };
    directory::insert(txn, command.parent, &mut parent, &command.name, target);
    inode::put(txn, command.ino, &mut record);
    inode::put(txn, command.parent, &mut parent);
    Ok(Outcome::of(command.ino, record))
}

/// The key that says that an inode has no name.
pub(crate) fn orphan_key(ino: Ino) -> Vec<u8> {
    system_key(tag::ORPHAN, &ino.0.to_be_bytes())
}
