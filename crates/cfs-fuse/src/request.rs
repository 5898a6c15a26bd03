//! Bytes from the kernel as requests.
//!
//! Every length is checked, and no bytes panic. Names and data are borrowed from the buffer that was read into.

use zerocopy::FromBytes;

use crate::abi::{self, InHeader, opcode};

/// Data up to here are read or written quickly, bytes.
const QUICK_BYTES_MAX: u32 = 32 << 10;

/// A request of the kernel.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// Who asks, about which inode, and the number that the reply bears.
    pub header: InHeader,
    /// What is asked.
    pub operation: Operation<'a>,
}

/// What is asked of the inode in the header. Names have no NUL in them.
#[derive(Debug)]
pub(crate) enum Operation<'a> {
    Lookup(&'a [u8]),
    /// No reply.
    Forget(u64),
    /// No reply.
    BatchForget(Forgets<'a>),
    Getattr,
    Statx,
    Setattr(Box<abi::SetattrIn>),
    Readlink,
    Symlink {
        name: &'a [u8],
        target: &'a [u8],
    },
    Mknod(abi::MknodIn, &'a [u8]),
    Mkdir(abi::MkdirIn, &'a [u8]),
    Unlink(&'a [u8]),
    Rmdir(&'a [u8]),
    Rename {
        name: &'a [u8],
        new_parent: u64,
        new_name: &'a [u8],
        flags: u32,
    },
    Link {
        inode: u64,
        new_name: &'a [u8],
    },
    Open(abi::OpenIn),
    Create(abi::CreateIn, &'a [u8]),
    Tmpfile(abi::CreateIn),
    Read(abi::ReadIn),
    Write(abi::WriteIn, &'a [u8]),
    Statfs,
    Flush,
    Release(abi::ReleaseIn),
    /// Of a file or directory.
    Fsync(abi::FsyncIn),
    Syncfs,
    Setxattr {
        name: &'a [u8],
        value: &'a [u8],
        flags: u32,
        /// `None` if this kernel does not say.
        setxattr_flags: Option<u32>,
    },
    Getxattr {
        name: &'a [u8],
        size: u32,
    },
    Listxattr {
        size: u32,
    },
    Removexattr(&'a [u8]),
    Opendir,
    Readdir {
        read: abi::ReadIn,
        with_attributes: bool,
    },
    Releasedir(abi::ReleaseIn),
    Fallocate(abi::FallocateIn),
    Lseek(abi::LseekIn),
    CopyFileRange {
        copy: abi::CopyFileRangeIn,
        /// The reply has 64 bits for the number of bytes.
        wide: bool,
    },
    Ioctl,
    Interrupt,
    Destroy,
    Init(abi::InitIn, abi::InitInExtension),
    /// One that is not known here, or not wanted.
    Other,
}

impl Operation<'_> {
    /// Whether the answer may take long: for much data, for the disk, or for room. What only changes names or attributes
    /// is written to the log by others, and does not; what syncs is left to other threads where it does.
    pub(crate) fn may_wait(&self) -> bool {
        match self {
            Self::Read(read) => read.size > QUICK_BYTES_MAX,
            Self::Write(_, data) => data.len() > QUICK_BYTES_MAX as usize,
            Self::Flush | Self::Fallocate(_) | Self::Lseek(_) | Self::CopyFileRange { .. } => true,
            Self::Setattr(change) => change.valid & abi::set_attr::SIZE != 0,
            _ => false,
        }
    }
}

/// The inodes of a BATCH_FORGET, with how many lookups of each are forgotten.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forgets<'a>(&'a [u8]);

impl Forgets<'_> {
    pub(crate) fn iter(&self) -> impl Iterator<Item = abi::ForgetOne> {
        self.0
            .chunks_exact(size_of::<abi::ForgetOne>())
            .filter_map(|bytes| abi::ForgetOne::read_from_bytes(bytes).ok())
    }
}

/// Why bytes are no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequestError {
    /// Not even a header, or not of the length that it says: there is nothing to reply to.
    #[error("{0} bytes without a header that says so")]
    Header(usize),
    /// The body is not what the operation needs.
    #[error("request {unique} has a body that does not fit its operation {opcode}")]
    Body {
        /// The operation.
        opcode: u32,
        /// Number for the reply.
        unique: u64,
    },
}

/// Takes the parts of a body one after the other.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn take<T: FromBytes>(&mut self) -> Option<T> {
        let (value, rest) = T::read_from_prefix(self.0).ok()?;
        self.0 = rest;
        Some(value)
    }

    /// Up to the next NUL.
    fn name(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let (name, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        Some(name)
    }

    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }
}

impl<'a> Request<'a> {
    /// The request in `bytes`, which one read(2) returned. `setxattr_ext`: the kernel agreed to SETXATTR_EXT.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub(crate) fn parse(bytes: &'a [u8], setxattr_ext: bool) -> Result<Self, RequestError> {
        let (header, body) =
            InHeader::read_from_prefix(bytes).map_err(|_| RequestError::Header(bytes.len()))?;
        if header.len as usize != bytes.len() {
            return Err(RequestError::Header(bytes.len()));
        }
        // Extensions stand at the end; none has been asked for.
        let extensions = usize::from(header.total_extlen) * 8;
        let operation = body
            .len()
            .checked_sub(extensions)
            .and_then(|len| operation(header.opcode, &mut Body(&body[..len]), setxattr_ext))
            .ok_or(RequestError::Body {
                opcode: header.opcode,
                unique: header.unique,
            })?;
        Ok(Self { header, operation })
    }
}

fn operation<'a>(opcode: u32, body: &mut Body<'a>, setxattr_ext: bool) -> Option<Operation<'a>> {
    Some(match opcode {
        opcode::LOOKUP => Operation::Lookup(body.name()?),
        opcode::FORGET => Operation::Forget(body.take::<abi::ForgetIn>()?.nlookup),
        opcode::BATCH_FORGET => {
            let count = body.take::<abi::BatchForgetIn>()?.count as usize;
            let len = count.checked_mul(size_of::<abi::ForgetOne>())?;
            Operation::BatchForget(Forgets(body.bytes(len)?))
        }
        opcode::GETATTR => Operation::Getattr,
        opcode::STATX => Operation::Statx,
        opcode::SETATTR => Operation::Setattr(Box::new(body.take()?)),
        opcode::READLINK => Operation::Readlink,
        opcode::SYMLINK => Operation::Symlink {
            name: body.name()?,
            target: body.name()?,
        },
        opcode::MKNOD => Operation::Mknod(body.take()?, body.name()?),
        opcode::MKDIR => Operation::Mkdir(body.take()?, body.name()?),
        opcode::UNLINK => Operation::Unlink(body.name()?),
        opcode::RMDIR => Operation::Rmdir(body.name()?),
        opcode::RENAME => {
            let rename: abi::RenameIn = body.take()?;
            Operation::Rename {
                name: body.name()?,
                new_parent: rename.newdir,
                new_name: body.name()?,
                flags: 0,
            }
        }
        opcode::RENAME2 => {
            let rename: abi::Rename2In = body.take()?;
            Operation::Rename {
                name: body.name()?,
                new_parent: rename.newdir,
                new_name: body.name()?,
                flags: rename.flags,
            }
        }
        opcode::LINK => Operation::Link {
            inode: body.take::<abi::LinkIn>()?.oldnodeid,
            new_name: body.name()?,
        },
        opcode::OPEN => Operation::Open(body.take()?),
        opcode::CREATE => Operation::Create(body.take()?, body.name()?),
        opcode::TMPFILE => Operation::Tmpfile(body.take()?),
        opcode::READ => Operation::Read(body.take()?),
        opcode::WRITE => {
            let write: abi::WriteIn = body.take()?;
            Operation::Write(write, body.bytes(write.size as usize)?)
        }
        opcode::STATFS => Operation::Statfs,
        opcode::FLUSH => Operation::Flush,
        opcode::RELEASE => Operation::Release(body.take()?),
        opcode::FSYNC | opcode::FSYNCDIR => Operation::Fsync(body.take()?),
        opcode::SYNCFS => Operation::Syncfs,
        opcode::SETXATTR => {
            let (size, flags, setxattr_flags) = if setxattr_ext {
                let set: abi::SetxattrIn = body.take()?;
                (set.size, set.flags, Some(set.setxattr_flags))
            } else {
                let set: abi::SetxattrInShort = body.take()?;
                (set.size, set.flags, None)
            };
            Operation::Setxattr {
                name: body.name()?,
                value: body.bytes(size as usize)?,
                flags,
                setxattr_flags,
            }
        }
        opcode::GETXATTR => {
            let get: abi::GetxattrIn = body.take()?;
            Operation::Getxattr {
                name: body.name()?,
                size: get.size,
            }
        }
        opcode::LISTXATTR => Operation::Listxattr {
            size: body.take::<abi::GetxattrIn>()?.size,
        },
        opcode::REMOVEXATTR => Operation::Removexattr(body.name()?),
        opcode::OPENDIR => Operation::Opendir,
        opcode::READDIR | opcode::READDIRPLUS => Operation::Readdir {
            read: body.take()?,
            with_attributes: opcode == opcode::READDIRPLUS,
        },
        opcode::RELEASEDIR => Operation::Releasedir(body.take()?),
        opcode::FALLOCATE => Operation::Fallocate(body.take()?),
        opcode::LSEEK => Operation::Lseek(body.take()?),
        opcode::COPY_FILE_RANGE | opcode::COPY_FILE_RANGE_64 => Operation::CopyFileRange {
            copy: body.take()?,
            wide: opcode == opcode::COPY_FILE_RANGE_64,
        },
        opcode::IOCTL => Operation::Ioctl,
        opcode::INTERRUPT => Operation::Interrupt,
        opcode::DESTROY => Operation::Destroy,
        opcode::INIT => Operation::Init(body.take()?, body.take().unwrap_or_default()),
        _ => Operation::Other,
    })
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
        let header = InHeader {
            len: (size_of::<InHeader>() + body.len()) as u32,
            opcode,
            unique: 7,
            nodeid: 1,
            ..InHeader::default()
        };
        [header.as_bytes(), body].concat()
    }

    /// A body for the operation that is just long enough.
    fn body(opcode: u32) -> Vec<u8> {
        let fixed: usize = match opcode {
            opcode::FORGET | opcode::MKDIR | opcode::RENAME | opcode::LINK | opcode::OPEN => 8,
            opcode::GETXATTR | opcode::LISTXATTR => 8,
            opcode::MKNOD | opcode::RENAME2 | opcode::CREATE | opcode::TMPFILE => 16,
            opcode::FSYNC | opcode::FSYNCDIR | opcode::SETXATTR | opcode::INIT => 16,
            opcode::RELEASE | opcode::RELEASEDIR | opcode::LSEEK | opcode::BATCH_FORGET => 24,
            opcode::FALLOCATE => 32,
            opcode::READ | opcode::WRITE | opcode::READDIR | opcode::READDIRPLUS => 40,
            opcode::COPY_FILE_RANGE | opcode::COPY_FILE_RANGE_64 => 56,
            opcode::SETATTR => 88,
            _ => 0,
        };
        let mut body = vec![0; fixed];
        match opcode {
            opcode::BATCH_FORGET => body[0] = 1,
            opcode::WRITE => {
                body[16] = 3;
                body.extend(b"xyz");
            }
            opcode::SETXATTR => {
                body[0] = 3;
                body.extend(b"name\0xyz");
            }
            opcode::SYMLINK | opcode::RENAME | opcode::RENAME2 => body.extend(b"name\0other\0"),
            opcode::LOOKUP
            | opcode::MKNOD
            | opcode::MKDIR
            | opcode::UNLINK
            | opcode::RMDIR
            | opcode::LINK
            | opcode::CREATE
            | opcode::GETXATTR
            | opcode::REMOVEXATTR => body.extend(b"name\0"),
            _ => {}
        }
        body
    }

    #[test]
    fn bodies_of_the_right_length_are_taken_and_shorter_ones_are_not() {
        for opcode in 0..60 {
            let whole = body(opcode);
            let parsed = Request::parse(&request(opcode, &whole), true).map(|_| ());
            assert_eq!(parsed, Ok(()), "opcode {opcode}");
            for len in 0..whole.len() {
                let parsed = Request::parse(&request(opcode, &whole[..len]), true).map(|_| ());
                let refused = Err(RequestError::Body { opcode, unique: 7 });
                assert_eq!(parsed, refused, "opcode {opcode}, {len} bytes");
            }
        }
    }

    #[test]
    fn parts_are_found_where_the_kernel_puts_them() {
        let bytes = request(opcode::SETXATTR, &body(opcode::SETXATTR));
        match Request::parse(&bytes, true).expect("whole").operation {
            Operation::Setxattr {
                name,
                value,
                setxattr_flags,
                ..
            } => assert_eq!(
                (name, value, setxattr_flags),
                (&b"name"[..], &b"xyz"[..], Some(0))
            ),
            other => panic!("{other:?}"),
        }
        let short = [&3_u32.to_ne_bytes()[..], &[0; 4], b"name\0xyz"].concat();
        match Request::parse(&request(opcode::SETXATTR, &short), false)
            .expect("whole")
            .operation
        {
            Operation::Setxattr {
                value,
                setxattr_flags,
                ..
            } => assert_eq!((value, setxattr_flags), (&b"xyz"[..], None)),
            other => panic!("{other:?}"),
        }
        let bytes = request(opcode::WRITE, &body(opcode::WRITE));
        match Request::parse(&bytes, true).expect("whole").operation {
            Operation::Write(write, data) => assert_eq!((write.size, data), (3, &b"xyz"[..])),
            other => panic!("{other:?}"),
        }
        let forgets = [2_u64, 5, 1, 6, 2].map(u64::to_ne_bytes).concat();
        match Request::parse(&request(opcode::BATCH_FORGET, &forgets), true)
            .expect("whole")
            .operation
        {
            Operation::BatchForget(forgets) => {
                let forgets: Vec<_> = forgets
                    .iter()
                    .map(|one| (one.nodeid, one.nlookup))
                    .collect();
                assert_eq!(forgets, [(5, 1), (6, 2)]);
            }
            other => panic!("{other:?}"),
        }
    }

    /// Nothing that is read panics, whatever it is.
    #[test]
    fn random_bytes_are_refused_or_understood() {
        let mut state: u64 = 0x1234_5678_9abc_def1;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for round in 0..200_000 {
            let len = random() as usize % 200;
            let mut bytes: Vec<u8> = (0..len).map(|_| random() as u8).collect();
            if len >= size_of::<InHeader>() && round % 8 != 0 {
                bytes[..4].copy_from_slice(&(len as u32).to_ne_bytes());
                bytes[4..8].copy_from_slice(&(random() as u32 % 60).to_ne_bytes());
                if round % 4 != 0 {
                    bytes[36..38].fill(0);
                }
            }
            if let Ok(request) = Request::parse(&bytes, round % 2 == 0)
                && let Operation::BatchForget(forgets) = request.operation
            {
                assert!(forgets.iter().count() * 16 <= len);
            }
        }
    }
}
