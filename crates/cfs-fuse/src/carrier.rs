//! A block device under a mount, so that sync(2) and syncfs(2) reach the file system.
//!
//! Linux sends SYNCFS to file systems in user space only where they are mounted with the type `fuseblk` (since 6.18),
//! and that type wants a block device. It gets a loop device over a small file in memory, of which nothing is ever read
//! or written, and which detaches itself when the mount goes away, however it goes. Source: loop(4).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

/// First version of Linux that sends SYNCFS to such mounts.
const LINUX_MIN: (u32, u32) = (6, 18);
/// Bytes of the file in memory; none of them is touched, so none takes memory.
const FILE_BYTES: u64 = 1 << 20;
/// How often another process may take the free loop device that was just found.
const ATTEMPTS: usize = 16;

const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `struct loop_config` with its `struct loop_info64` inside, of which the flags alone matter here.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    /// Device, inode, rdev, offset, size limit.
    places: [u64; 5],
    /// Number, encryption type, key size, flags.
    numbers: [u32; 4],
    /// File name, encryption name, key.
    names: [u8; 160],
    init: [u64; 2],
    reserved: [u64; 8],
}
const _: () = assert!(size_of::<LoopConfig>() == 304);

/// A loop device that lasts until this is dropped and no mount uses it.
pub(crate) struct Carrier {
    path: PathBuf,
    /// Holds the device until the mount does.
    _device: File,
}

impl Carrier {
    /// Takes a free loop device.
    ///
    /// # Errors
    /// When the kernel is too old, or there are no loop devices, or they may not be used. Nothing is left over.
    pub(crate) fn new() -> io::Result<Self> {
        if !is_new_enough(&rustix::system::uname().release().to_string_lossy()) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let memory = rustix::fs::memfd_create("cfs mount", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&memory, FILE_BYTES)?;
        let control = File::options()
            .read(true)
            .write(true)
            .open("/dev/loop-control")?;
        for _ in 0..ATTEMPTS {
            let path = PathBuf::from(format!("/dev/loop{}", free_number(&control)?));
            let device = File::options().read(true).write(true).open(&path)?;
            match configure(&device, &memory) {
                Ok(()) => {
                    return Ok(Self {
                        path,
                        _device: device,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
                Err(error) => return Err(error),
            }
        }
        Err(Errno::BUSY.into())
    }

    /// The device.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn free_number(control: &File) -> io::Result<u32> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument and returns a number or -1; the descriptor is open.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

fn configure(device: &File, memory: &OwnedFd) -> io::Result<()> {
    let config = LoopConfig {
        fd: memory.as_raw_fd() as u32,
        block_size: 0,
        places: [0; 5],
        numbers: [0, 0, 0, LO_FLAGS_AUTOCLEAR],
        names: [0; 160],
        init: [0; 2],
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE reads one `struct loop_config` through the pointer, which is to a value of its size and
    // layout that lives until the call returns; both descriptors are open.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether this release of Linux sends SYNCFS.
fn is_new_enough(release: &str) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= LINUX_MIN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        for (release, expected) in [
            ("6.18.44-fc-v445", true),
            ("6.18", true),
            ("7.0.1", true),
            ("6.9.0", false),
            ("6.8.0-45-generic", false),
            ("5.18.1", false),
            ("", false),
            ("next", false),
        ] {
            assert_eq!(is_new_enough(release), expected, "{release:?}");
        }
    }
}
