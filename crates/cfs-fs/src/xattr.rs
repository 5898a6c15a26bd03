//! Extended attributes: a row each, and the two ACL attributes, which the mode follows.
//!
//! `inode_flag::XATTRS` is set while an inode may have any, so that inodes without cost no look-up.

use cfs_format::Ino;
use cfs_format::table::{InodeRecord, inode_flag, key, tag};
use cfs_store::Txn;

use crate::acl::{self, Acl};
use crate::apply::Outcome;
use crate::command::{Command, RemoveXattr, SetXattr};
use crate::error::{FsError, Result};
use crate::namespace::publish::is_visible;
use crate::types::{Room, XattrFlags};
use crate::views::listed_by;
use crate::{Fs, inode, lock, row};

/// Longest name, bytes.
pub const XATTR_NAME_BYTES_MAX: usize = 255;
/// Longest value, bytes.
pub const XATTR_VALUE_BYTES_MAX: usize = 64 << 10;
/// Longest list of the names of an inode, each with a zero byte after it, bytes.
pub const XATTR_LIST_BYTES_MAX: usize = 64 << 10;

/// What the names of attributes begin with, but for the two ACLs (xattr(7)).
const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

/// First key and bound of the attributes of an inode.
fn rows_of(ino: Ino) -> (Vec<u8>, Vec<u8>) {
    (key(ino, tag::XATTR, &[]), key(ino, tag::XATTR + 1, &[]))
}

fn check_name(name: &[u8]) -> Result<()> {
    if name.is_empty() || name.len() > XATTR_NAME_BYTES_MAX {
        return Err(FsError::Range);
    }
    if name.contains(&0) {
        return Err(FsError::Invalid);
    }
    Ok(())
}

/// Whether a row may have this name and value, in whatever namespace.
///
/// # Errors
/// [`FsError::Range`], [`FsError::Invalid`], [`FsError::ArgumentTooLong`].
pub(crate) fn check_row(name: &[u8], value: &[u8]) -> Result<()> {
    check_name(name)?;
    match value.len() > XATTR_VALUE_BYTES_MAX {
        true => Err(FsError::ArgumentTooLong),
        false => Ok(()),
    }
}

/// Whether this is a name as Linux has them: in a namespace, and more than the namespace.
///
/// Not part of applying a command, so that a log which holds other names is replayed.
pub(crate) fn check_namespace(name: &[u8]) -> Result<()> {
    check_name(name)?;
    if matches!(name, acl::ACCESS | acl::DEFAULT) {
        return Ok(());
    }
    let rest = NAMESPACES
        .iter()
        .find_map(|namespace| name.strip_prefix(*namespace));
    match rest {
        Some([]) => Err(FsError::Invalid),
        Some(_) => Ok(()),
        None => Err(FsError::NotSupported),
    }
}

/// Names of all committed attributes. Bounded, because setting one keeps the list within bounds.
fn names(
    rows: impl Iterator<Item = std::result::Result<(Vec<u8>, Vec<u8>), impl Into<cfs_store::ReadError>>>,
) -> Result<Vec<Vec<u8>>> {
    rows.map(|row| {
        let (row_key, _) = row.map_err(Into::into)?;
        Ok(cfs_format::table::split_key(&row_key)?.2.to_vec())
    })
    .collect()
}

pub(crate) fn set(txn: &mut Txn<'_>, command: &SetXattr) -> Result<Outcome> {
    check_name(&command.name)?;
    if command.value.len() > XATTR_VALUE_BYTES_MAX {
        return Err(FsError::ArgumentTooLong);
    }
    let mut record = inode::get(txn, command.ino)?;
    lock::check(txn, command.ino, &record)?;
    let row_key = key(command.ino, tag::XATTR, &command.name);
    let exists = record.flags.get() & inode_flag::XATTRS != 0 && txn.get(&row_key)?.is_some();
    if command.create && exists {
        return Err(FsError::Exists);
    }
    if command.replace && !exists {
        return Err(FsError::NoData);
    }
    if !exists && record.flags.get() & inode_flag::XATTRS != 0 {
        let (lo, hi) = rows_of(command.ino);
        let list_bytes: usize = names(txn.range(&lo, &hi))?
            .iter()
            .map(|name| name.len() + 1)
            .sum();
        if list_bytes + command.name.len() + 1 > XATTR_LIST_BYTES_MAX {
            return Err(FsError::NoSpace);
        }
    }
    let value = match command.name.as_slice() {
        acl::ACCESS => set_access_acl(&mut record, command)?,
        acl::DEFAULT => default_acl(&record, command)?,
        _ => Some(command.value.clone()),
    };

    match value {
        Some(value) => {
            record.flags |= inode_flag::XATTRS;
            let value = row::stamped(txn, &value);
            txn.put(row_key, value);
        }
        None if exists => txn.delete(row_key),
        None => {}
    }
    record.ctime = command.now.into();
    inode::put(txn, command.ino, &mut record);
    Ok(Outcome {
        inode: Some((command.ino, record)),
        lost: None,
    })
}

/// Gives the mode the bits of the new access ACL; the value to store, none where the mode says it all.
fn set_access_acl(record: &mut InodeRecord, command: &SetXattr) -> Result<Option<Vec<u8>>> {
    if inode::kind(record) == libc::S_IFLNK {
        return Err(FsError::NotSupported);
    }
    let Some(acl) = Acl::decode(&command.value)? else {
        return Ok(None);
    };
    let mut mode = (record.mode.get() & !0o777) | acl.mode_bits();
    if command.kill_sgid {
        mode &= !libc::S_ISGID;
    }
    record.mode = mode.into();
    Ok((!acl.is_minimal()).then(|| acl.encode()))
}

fn default_acl(record: &InodeRecord, command: &SetXattr) -> Result<Option<Vec<u8>>> {
    let acl = Acl::decode(&command.value)?;
    match inode::kind(record) {
        libc::S_IFDIR => Ok(acl.map(|acl| acl.encode())),
        libc::S_IFLNK => Err(FsError::NotSupported),
        _ if acl.is_some() => Err(FsError::AccessDenied),
        _ => Ok(None),
    }
}

pub(crate) fn remove(txn: &mut Txn<'_>, command: &RemoveXattr) -> Result<Outcome> {
    check_name(&command.name)?;
    let mut record = inode::get(txn, command.ino)?;
    lock::check(txn, command.ino, &record)?;
    let row = key(command.ino, tag::XATTR, &command.name);
    if record.flags.get() & inode_flag::XATTRS == 0 || txn.get(&row)?.is_none() {
        // Linux removes an ACL that is not there without complaint.
        return match command.name.as_slice() {
            acl::ACCESS | acl::DEFAULT => Ok(Outcome::default()),
            _ => Err(FsError::NoData),
        };
    }

    txn.delete(row);
    record.ctime = command.now.into();
    inode::put(txn, command.ino, &mut record);
    Ok(Outcome {
        inode: Some((command.ino, record)),
        lost: None,
    })
}

/// Deletes all attributes of an inode that goes.
pub(crate) fn erase_all(txn: &mut Txn<'_>, ino: Ino) -> Result<()> {
    erase(txn, ino, |_| true)
}

/// Deletes those attributes of an inode that are wanted gone.
pub(crate) fn erase(txn: &mut Txn<'_>, ino: Ino, goes: impl Fn(&[u8]) -> bool) -> Result<()> {
    let (lo, hi) = rows_of(ino);
    for name in names(txn.range(&lo, &hi))? {
        if goes(&name) {
            txn.delete(key(ino, tag::XATTR, &name));
        }
    }
    Ok(())
}

impl Fs {
    /// The value of an attribute.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NoData`].
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        check_name(name)?;
        if listed_by(ino).is_some() {
            return Err(FsError::NoData);
        }
        let record = self.views.record(ino)?.ok_or(FsError::NotFound)?;
        if record.flags.get() & inode_flag::XATTRS == 0 || !is_visible(name) {
            return Err(FsError::NoData);
        }
        let value = self.views.get(self.views.place(ino)?, tag::XATTR, name)?;
        row::content(value.ok_or(FsError::NoData)?)
    }

    /// Sets an attribute. Setting an ACL also sets the mode; an ACL without entries removes it.
    ///
    /// # Errors
    /// [`FsError::Exists`] and [`FsError::NoData`] as the flags say; [`FsError::Range`] and
    /// [`FsError::ArgumentTooLong`] for names and values out of bounds; [`FsError::NotSupported`] for a name in no
    /// namespace of Linux; [`FsError::NoSpace`].
    pub fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<()> {
        check_namespace(name)?;
        let _reservation = self.admit_growth(value.len())?;
        self.files.settle_times(ino)?;
        self.execute(|_, now| {
            Ok(Command::SetXattr(SetXattr {
                ino,
                name: name.to_vec(),
                value: value.to_vec(),
                create: flags.create,
                replace: flags.replace,
                kill_sgid: flags.kill_sgid,
                now,
            }))
        })?;
        Ok(())
    }

    /// Names of all attributes of an inode, in their byte order.
    ///
    /// # Errors
    /// [`FsError::NotFound`].
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        if listed_by(ino).is_some() {
            return Ok(Vec::new());
        }
        let record = self.views.record(ino)?.ok_or(FsError::NotFound)?;
        if record.flags.get() & inode_flag::XATTRS == 0 {
            return Ok(Vec::new());
        }
        let rows = self
            .views
            .rows(self.views.place(ino)?, tag::XATTR, &[], None);
        rows.map(|row| row.map(|(name, _)| name))
            .filter(|name| !name.as_ref().is_ok_and(|name| !is_visible(name)))
            .collect()
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NoData`].
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        if !is_visible(name) {
            return Err(FsError::NoData);
        }
        self.files.settle_times(ino)?;
        self.execute_in(Room::Reserve, |_, now| {
            Ok(Command::RemoveXattr(RemoveXattr {
                ino,
                name: name.to_vec(),
                now,
            }))
        })?;
        Ok(())
    }
}
