//! The descriptors of `/dev/fuse` over which requests, replies and notifications go.
//!
//! One read(2) takes one request, one writev(2) gives one reply; the kernel cuts neither. Each thread has a descriptor
//! of its own, so that its requests and replies meet no other's.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};

use cfs_fs::PARTS_MAX;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::ioctl;
use zerocopy::IntoBytes;

use crate::abi::{
    IOCTL_CLONE, NOTIFY_INVAL_ENTRY, NOTIFY_INVAL_INODE, NotifyInvalEntryOut, NotifyInvalInodeOut,
    OutHeader,
};
use crate::mountpoint::FUSE_DEVICE;

/// One descriptor of a mounted session. Reading never waits.
pub(crate) struct Channel {
    device: OwnedFd,
}

/// What a look for a request has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// A request of so many bytes.
    Request(usize),
    /// None is waiting.
    Nothing,
    /// The session has ended.
    End,
}

impl Channel {
    /// Over a descriptor that a mount was made with.
    ///
    /// # Errors
    /// When its flags cannot be set.
    pub(crate) fn new(device: OwnedFd) -> io::Result<Self> {
        rustix::fs::fcntl_setfl(&device, OFlags::NONBLOCK)?;
        Ok(Self { device })
    }

    /// Another descriptor of the same session, with a queue of its own for requests that are being answered.
    ///
    /// # Errors
    /// When the device cannot be opened again, or not joined to the session.
    pub(crate) fn another(&self) -> io::Result<Self> {
        let device = File::options().read(true).write(true).open(FUSE_DEVICE)?;
        let session = self.device.as_raw_fd() as u32;
        const CLONE: ioctl::Opcode = ioctl::opcode::read::<u32>(IOCTL_CLONE.0, IOCTL_CLONE.1);
        // SAFETY: FUSE_DEV_IOC_CLONE reads one u32, the descriptor to join, through the pointer that it is given, and
        // writes nothing; `Setter` passes a pointer to the value it owns.
        unsafe { ioctl::ioctl(&device, ioctl::Setter::<CLONE, u32>::new(session)) }?;
        Self::new(device.into())
    }

    /// Reads a request if there is one. `buffer` has room for the largest.
    ///
    /// # Errors
    /// When the device fails in another way. Nothing was taken from it.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        loop {
            match rustix::io::read(&self.device, &mut *buffer) {
                Ok(len) => return Ok(Received::Request(len)),
                Err(Errno::AGAIN) => return Ok(Received::Nothing),
                // ENOENT: whoever asked was killed before this was read.
                Err(Errno::INTR | Errno::NOENT) => {}
                // Unmounted, or ended through /sys/fs/fuse.
                Err(Errno::NODEV | Errno::CONNABORTED) => return Ok(Received::End),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Sleeps until there is a request, or the session has ended; now and then for less.
    ///
    /// # Errors
    /// When the system cannot wait for the device.
    pub(crate) fn wait(&self) -> io::Result<()> {
        let mut device = [PollFd::new(&self.device, PollFlags::IN)];
        match rustix::event::poll(&mut device, None) {
            Ok(_) | Err(Errno::INTR | Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether a request is waiting.
    ///
    /// # Errors
    /// When the system cannot look at the device.
    pub(crate) fn has_more(&self) -> io::Result<bool> {
        let mut device = [PollFd::new(&self.device, PollFlags::IN)];
        let at_once = Timespec::default();
        match rustix::event::poll(&mut device, Some(&at_once)) {
            Ok(count) => Ok(count > 0),
            Err(Errno::INTR | Errno::AGAIN) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Answers a request with `parts`, at most [`PARTS_MAX`], one after the other.
    ///
    /// # Errors
    /// When the kernel refuses the reply; whoever asked goes on waiting then. That nobody waits any more is no error.
    pub(crate) fn reply(&self, unique: u64, parts: &[&[u8]]) -> io::Result<()> {
        self.send(unique, 0, parts)
    }

    /// Answers a request with an error number, which must be positive.
    ///
    /// # Errors
    /// As [`Channel::reply`].
    pub(crate) fn refuse(&self, unique: u64, errno: i32) -> io::Result<()> {
        self.send(unique, -errno, &[])
    }

    /// Makes the kernel forget attributes and cached content of an inode, if it knows it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn invalidate_inode(&self, ino: u64) -> io::Result<()> {
        let body = NotifyInvalInodeOut {
            ino,
            off: 0,
            len: 0,
        };
        self.notify(NOTIFY_INVAL_INODE, &[body.as_bytes()])
    }

    /// Makes the kernel look up a name again, if it knows it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn invalidate_entry(&self, parent: u64, name: &[u8]) -> io::Result<()> {
        let body = NotifyInvalEntryOut {
            parent,
            namelen: name.len() as u32,
            flags: 0,
        };
        self.notify(NOTIFY_INVAL_ENTRY, &[body.as_bytes(), name, &[0]])
    }

    fn notify(&self, code: i32, parts: &[&[u8]]) -> io::Result<()> {
        match self.write(0, code, parts) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn send(&self, unique: u64, error: i32, parts: &[&[u8]]) -> io::Result<()> {
        match self.write(unique, error, parts) {
            Err(error)
                if matches!(
                    error.raw_os_error().map(Errno::from_raw_os_error),
                    Some(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED)
                ) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    fn write(&self, unique: u64, error: i32, parts: &[&[u8]]) -> io::Result<()> {
        let body_bytes: usize = parts.iter().map(|part| part.len()).sum();
        let header = OutHeader {
            len: (size_of::<OutHeader>() + body_bytes) as u32,
            error,
            unique,
        };
        let mut slices = [IoSlice::new(&[]); 1 + PARTS_MAX];
        let count = 1 + parts.len();
        slices[0] = IoSlice::new(header.as_bytes());
        for (slice, part) in slices[1..count].iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
        }
        loop {
            match rustix::io::writev(&self.device, &slices[..count]) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
