//! Requests about attributes: `stat`, owners, times, extended attributes, room.

use cfs_format::Ino;
use cfs_fs::{FsError, Result, SetAttr, XattrFlags};
use zerocopy::IntoBytes;

use super::Adapter;
use crate::abi::{self, InHeader, SETXATTR_ACL_KILL_SGID};
use crate::convert::{attr_out, set_attr, statx};

/// The extended attribute that holds an access ACL.
const ACCESS_ACL: &[u8] = b"system.posix_acl_access";

impl Adapter {
    pub(super) fn getattr(&self, ino: Ino, out: &mut Vec<u8>) -> Result<()> {
        let attr = self.fs.getattr(ino)?;
        out.extend_from_slice(attr_out(&attr).as_bytes());
        Ok(())
    }

    /// The kernel asks when somebody wants to know the time of creation; the rest it knows by itself.
    pub(super) fn statx(&self, ino: Ino, out: &mut Vec<u8>) -> Result<()> {
        let attr = self.fs.getattr(ino)?;
        out.extend_from_slice(statx(&attr).as_bytes());
        Ok(())
    }

    pub(super) fn setattr(
        &self,
        ino: Ino,
        request: &abi::SetattrIn,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let mut set = set_attr(request)?;
        if set == SetAttr::default() {
            // The kernel takes its own wish to clear the two bits out of the request (a change of owner to the same
            // one, `fallocate` by a stranger), and leaves one that changes nothing.
            set.kill_suid_sgid = true;
        }
        let attr = self.fs.setattr(ino, &set)?;
        out.extend_from_slice(attr_out(&attr).as_bytes());
        Ok(())
    }

    pub(super) fn readlink(&self, ino: Ino, out: &mut Vec<u8>) -> Result<()> {
        out.extend_from_slice(&self.fs.readlink(ino)?);
        Ok(())
    }

    pub(super) fn statfs(&self, ino: Ino, out: &mut Vec<u8>) -> Result<()> {
        let room = self.fs.statfs_at(ino)?;
        let answer = abi::StatfsOut {
            blocks: room.blocks,
            bfree: room.blocks_free,
            bavail: room.blocks_available,
            files: room.inodes + room.inodes_free,
            ffree: room.inodes_free,
            bsize: room.block_bytes,
            namelen: room.name_bytes_max,
            frsize: room.block_bytes,
            ..abi::StatfsOut::default()
        };
        out.extend_from_slice(answer.as_bytes());
        Ok(())
    }

    pub(super) fn setxattr(
        &self,
        header: &InHeader,
        name: &[u8],
        value: &[u8],
        flags: u32,
        setxattr_flags: Option<u32>,
    ) -> Result<()> {
        let kill_sgid = match setxattr_flags {
            Some(flags) => flags & SETXATTR_ACL_KILL_SGID != 0,
            // An old kernel does not say whether the caller is in the file's group: nobody but root keeps the bit.
            None => name == ACCESS_ACL && header.uid != 0,
        };
        let flags = XattrFlags {
            create: flags & libc::XATTR_CREATE as u32 != 0,
            replace: flags & libc::XATTR_REPLACE as u32 != 0,
            kill_sgid,
        };
        self.fs.setxattr(Ino(header.nodeid), name, value, flags)
    }

    pub(super) fn getxattr(
        &self,
        ino: Ino,
        name: &[u8],
        size: u32,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        sized(&self.fs.getxattr(ino, name)?, size, out)
    }

    pub(super) fn listxattr(&self, ino: Ino, size: u32, out: &mut Vec<u8>) -> Result<()> {
        let mut list = Vec::new();
        for name in self.fs.listxattr(ino)? {
            list.extend_from_slice(&name);
            list.push(0);
        }
        sized(&list, size, out)
    }
}

/// Answers with a value of which the caller asks the size first, with a size of 0.
fn sized(value: &[u8], size: u32, out: &mut Vec<u8>) -> Result<()> {
    if size == 0 {
        let answer = abi::GetxattrOut {
            size: value.len() as u32,
            padding: 0,
        };
        out.extend_from_slice(answer.as_bytes());
    } else if value.len() > size as usize {
        return Err(FsError::Range);
    } else {
        out.extend_from_slice(value);
    }
    Ok(())
}
