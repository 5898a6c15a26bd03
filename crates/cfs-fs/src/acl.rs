//! POSIX access control lists (POSIX 1003.1e draft 17, as Linux has them), in the kernel's xattr format, version 2.
//!
//! An ACL is stored as the value of `system.posix_acl_access` or `system.posix_acl_default`; the kernel or another
//! front end evaluates it. This module keeps ACL and mode in step: the mode's group bits are the mask where there
//! is one; an access ACL that says no more than the mode is not stored; new inodes inherit the default ACL of their
//! directory, which then takes the place of the umask.

use cfs_format::Ino;
use cfs_format::table::{InodeRecord, inode_flag, key, tag};
use cfs_store::Txn;

use crate::error::{FsError, Result};
use crate::{inode, row};

/// Name of the attribute with the access ACL.
pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";
/// Name of the attribute with the default ACL of a directory.
pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const ENTRY_BYTES: usize = 8;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// A valid ACL: entries in the order of their tags, the three base entries once each, a mask where a user or group is
/// named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acl(Vec<Entry>);

impl Acl {
    /// The ACL with these bytes; none if it has no entries, which means to remove it.
    ///
    /// # Errors
    /// [`FsError::NotSupported`] for another version; [`FsError::Invalid`] for what is no valid ACL.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Option<Self>> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let (version, rest) = bytes.split_first_chunk::<4>().ok_or(FsError::Invalid)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(FsError::NotSupported);
        }
        if rest.is_empty() {
            return Ok(None);
        }
        let (rows, trailing) = rest.as_chunks::<ENTRY_BYTES>();
        if !trailing.is_empty() {
            return Err(FsError::Invalid);
        }
        let entries = rows
            .iter()
            .map(|row| Entry {
                tag: u16::from_le_bytes([row[0], row[1]]),
                perm: u16::from_le_bytes([row[2], row[3]]),
                id: u32::from_le_bytes([row[4], row[5], row[6], row[7]]),
            })
            .collect();
        let acl = Self(entries);
        acl.validate()?;
        Ok(Some(acl))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 + self.0.len() * ENTRY_BYTES);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        for entry in &self.0 {
            bytes.extend_from_slice(&entry.tag.to_le_bytes());
            bytes.extend_from_slice(&entry.perm.to_le_bytes());
            bytes.extend_from_slice(&entry.id.to_le_bytes());
        }
        bytes
    }

    fn validate(&self) -> Result<()> {
        const ORDER: [u16; 6] = [USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER];
        let mut rank_before = 0;
        let mut counts = [0_usize; 6];
        for entry in &self.0 {
            let rank = ORDER
                .iter()
                .position(|tag| *tag == entry.tag)
                .ok_or(FsError::Invalid)?;
            if entry.perm & !0o7 != 0 || rank < rank_before {
                return Err(FsError::Invalid);
            }
            rank_before = rank;
            counts[rank] += 1;
        }
        let [user_obj, users, group_obj, groups, mask, other] = counts;
        let base = user_obj == 1 && group_obj == 1 && other == 1 && mask <= 1;
        if !base || (users + groups > 0 && mask == 0) {
            return Err(FsError::Invalid);
        }
        Ok(())
    }

    fn perm(&self, tag: u16) -> Option<u16> {
        self.0
            .iter()
            .find(|entry| entry.tag == tag)
            .map(|entry| entry.perm)
    }

    fn perm_mut(&mut self, tag: u16) -> Option<&mut u16> {
        self.0
            .iter_mut()
            .find(|entry| entry.tag == tag)
            .map(|entry| &mut entry.perm)
    }

    /// The tag whose permissions the mode's group bits are.
    fn group_class(&self) -> u16 {
        if self.perm(MASK).is_some() {
            MASK
        } else {
            GROUP_OBJ
        }
    }

    /// The nine permission bits that say the same, or its upper bound where it names users or groups.
    pub(crate) fn mode_bits(&self) -> u32 {
        let perm = |tag| u32::from(self.perm(tag).unwrap_or(0));
        (perm(USER_OBJ) << 6) | (perm(self.group_class()) << 3) | perm(OTHER)
    }

    /// Whether the mode alone says all of it.
    pub(crate) fn is_minimal(&self) -> bool {
        self.0.len() == 3
    }

    /// Replaces the permissions of owner, group class and others by those of the mode.
    fn set_mode_bits(&mut self, mode: u32) {
        let group_class = self.group_class();
        for (tag, shift) in [(USER_OBJ, 6), (group_class, 3), (OTHER, 0)] {
            if let Some(perm) = self.perm_mut(tag) {
                *perm = ((mode >> shift) & 0o7) as u16;
            }
        }
    }
}

/// A row to write: name and value of an attribute.
pub(crate) type AclRow = (&'static [u8], Vec<u8>);

/// Gives a new inode's `mode` the bits that it is to have, and returns the ACLs that it takes over from its
/// directory: without a default ACL there, the umask is taken off; with one, the mode only restricts it.
pub(crate) fn inherit(
    txn: &Txn<'_>,
    parent: Ino,
    directory: &InodeRecord,
    mode: &mut u32,
    umask: u32,
) -> Result<Vec<AclRow>> {
    let kind = *mode & libc::S_IFMT;
    if kind == libc::S_IFLNK {
        return Ok(Vec::new());
    }
    let default = match directory.flags.get() & inode_flag::XATTRS {
        0 => None,
        _ => stored(txn, parent, DEFAULT)?,
    };
    let Some(default) = default else {
        *mode &= !(umask & 0o777);
        return Ok(Vec::new());
    };
    let mut rows = Vec::new();
    if kind == libc::S_IFDIR {
        rows.push((DEFAULT, default.encode()));
    }
    let mut access = default;
    let bits = *mode & access.mode_bits() & 0o777;
    access.set_mode_bits(bits);
    *mode = (*mode & !0o777) | bits;
    if !access.is_minimal() {
        rows.push((ACCESS, access.encode()));
    }
    Ok(rows)
}

/// After a change of the mode: brings the access ACL, if there is one, in step with it.
pub(crate) fn follow_mode(txn: &mut Txn<'_>, ino: Ino, record: &InodeRecord) -> Result<()> {
    if record.flags.get() & inode_flag::XATTRS == 0 || inode::kind(record) == libc::S_IFLNK {
        return Ok(());
    }
    if let Some(mut acl) = stored(txn, ino, ACCESS)? {
        acl.set_mode_bits(record.mode.get());
        let value = row::stamped(txn, &acl.encode());
        txn.put(key(ino, tag::XATTR, ACCESS), value);
    }
    Ok(())
}

fn stored(txn: &Txn<'_>, ino: Ino, name: &[u8]) -> Result<Option<Acl>> {
    match txn.get(&key(ino, tag::XATTR, name))? {
        Some(bytes) => Acl::decode(&row::content(bytes)?)
            .map_err(|_| FsError::damaged(format_args!("the ACL of inode {ino}"))),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Acl {
        Acl(entries
            .iter()
            .map(|&(tag, perm, id)| Entry { tag, perm, id })
            .collect())
    }

    #[test]
    fn bytes_round_trip_and_what_is_invalid_is_refused() {
        let full = acl(&[
            (USER_OBJ, 7, u32::MAX),
            (USER, 5, 1000),
            (GROUP_OBJ, 5, u32::MAX),
            (GROUP, 4, 100),
            (MASK, 6, u32::MAX),
            (OTHER, 1, u32::MAX),
        ]);
        assert_eq!(Acl::decode(&full.encode()).unwrap().unwrap(), full);
        assert_eq!(full.mode_bits(), 0o761);
        assert!(Acl::decode(&[2, 0, 0, 0]).unwrap().is_none());
        for bad in [
            acl(&[(USER_OBJ, 7, 0), (OTHER, 1, 0)]),
            acl(&[
                (USER_OBJ, 7, 0),
                (USER, 7, 1),
                (GROUP_OBJ, 5, 0),
                (OTHER, 1, 0),
            ]),
            acl(&[(GROUP_OBJ, 5, 0), (USER_OBJ, 7, 0), (OTHER, 1, 0)]),
            acl(&[(USER_OBJ, 8, 0), (GROUP_OBJ, 5, 0), (OTHER, 1, 0)]),
            acl(&[
                (USER_OBJ, 7, 0),
                (GROUP_OBJ, 5, 0),
                (OTHER, 1, 0),
                (0x40, 0, 0),
            ]),
        ] {
            assert!(
                matches!(Acl::decode(&bad.encode()), Err(FsError::Invalid)),
                "{bad:?}"
            );
        }
        let mut long = full.encode();
        long.pop();
        assert!(Acl::decode(&long).is_err());
        assert!(Acl::decode(&[3, 0, 0, 0]).is_err());
        assert!(Acl::decode(&[2, 0]).is_err());
    }

    #[test]
    fn the_mode_sets_the_mask_and_not_the_group() {
        let mut with_mask = acl(&[
            (USER_OBJ, 7, 0),
            (USER, 7, 1),
            (GROUP_OBJ, 5, 0),
            (MASK, 7, 0),
            (OTHER, 5, 0),
        ]);
        with_mask.set_mode_bits(0o640);
        assert_eq!(with_mask.perm(GROUP_OBJ), Some(5));
        assert_eq!(with_mask.mode_bits(), 0o640);
    }
}
