//! The mount point: what must hold before mounting, and the mount itself.
//!
//! Root mounts directly, with the type `fuseblk.cfs` where that lets sync(2) through (see [`crate::carrier`]), else
//! `fuse.cfs`; anyone else goes through the set-user-id helper `fusermount3`, see
//! [`crate::helper`].
//! Nothing is mounted unless [`check`] has passed: a directory that exists, is empty and is no mount point yet. What
//! a dead process of ours left mounted there (every access fails with ENOTCONN) is detached first.

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::carrier::Carrier;
use crate::helper::{self, HELPER};
use crate::session::MountOptions;

/// The device through which kernel and file system talk.
pub(crate) const FUSE_DEVICE: &str = "/dev/fuse";
/// File system type in the mount table.
pub(crate) const MOUNT_TYPE: &str = "fuse.cfs";
/// The same where a block device carries the mount.
pub(crate) const CARRIED_MOUNT_TYPE: &str = "fuseblk.cfs";

/// Why mounting failed. Nothing is mounted then.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// There is no such path.
    #[error("the mount point {0} does not exist; create the directory first")]
    Missing(PathBuf),
    /// The path is something else.
    #[error("the mount point {0} is not a directory")]
    NotDirectory(PathBuf),
    /// The path could not be looked at.
    #[error("the mount point {path} cannot be accessed: {source}")]
    Inaccessible {
        /// The mount point.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Files would be hidden by the mount.
    #[error("the mount point {0} is not empty; use an empty directory")]
    NotEmpty(PathBuf),
    /// Something is mounted there.
    #[error("{kind} is mounted at {path} already; unmount it first")]
    AlreadyMounted {
        /// The mount point.
        path: PathBuf,
        /// File system type of what is mounted.
        kind: String,
    },
    /// Something is mounted there whose process has ended.
    #[error("{path} is a dead mount ({kind}): the process behind it has ended; run `umount {}` first", path.display())]
    DeadMount {
        /// The mount point.
        path: PathBuf,
        /// File system type of what is mounted.
        kind: String,
    },
    /// The kernel has no FUSE here.
    #[error(
        "{FUSE_DEVICE} does not exist; load the kernel module `fuse`, or give the container the device"
    )]
    NoDevice,
    /// The device is there but may not be used.
    #[error(
        "{FUSE_DEVICE} (mode {mode:04o}) may not be opened by user {uid}: {source}; \
         root can allow it with `chmod 0666 {FUSE_DEVICE}`, or the container must be given the device"
    )]
    DeviceForbidden {
        /// Permission bits of the device.
        mode: u32,
        /// Effective user of this process.
        uid: u32,
        /// The cause.
        source: io::Error,
    },
    /// Something else has the device's name.
    #[error(
        "{FUSE_DEVICE} is no device; make it one with `mknod -m 666 {FUSE_DEVICE} c 10 229`, or give the container the \
         device"
    )]
    NotDevice,
    /// A user other than root needs the helper.
    #[error("{HELPER} was not found; install the package `fuse3`, or mount as root")]
    NoHelper,
    /// The helper refused other users' access.
    #[error("access for other users needs the line `user_allow_other` in /etc/fuse.conf")]
    AllowOtherForbidden,
    /// The options cannot be written for the kernel.
    #[error("the name {0:?} has a character that cannot be in a mount option")]
    BadName(String),
    /// The kernel or the helper refused for another reason.
    #[error("mounting at {path} failed: {source}")]
    Refused {
        /// The mount point.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Mounted, but the kernel and this process did not come to terms; unmounted again.
    #[error("the FUSE session at {path} did not start: {source}")]
    Session {
        /// The mount point.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// A line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountEntry {
    /// Major and minor number of the file system, as in `st_dev`.
    pub device: (u32, u32),
    /// File system type.
    pub kind: String,
}

/// What is mounted exactly at `path` (canonical), the topmost if several are.
pub(crate) fn mounted_at(path: &Path) -> Option<MountEntry> {
    let table = fs::read("/proc/self/mountinfo").ok()?;
    topmost(&table, path)
}

fn topmost(mountinfo: &[u8], path: &Path) -> Option<MountEntry> {
    mountinfo
        .split(|byte| *byte == b'\n')
        .rev()
        .find_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ');
            let device = std::str::from_utf8(fields.nth(2)?).ok()?;
            if unescape(fields.nth(1)?) != path.as_os_str() {
                return None;
            }
            let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
            let (major, minor) = device.split_once(':')?;
            Some(MountEntry {
                device: (major.parse().ok()?, minor.parse().ok()?),
                kind: String::from_utf8_lossy(kind).into_owned(),
            })
        })
}

/// Undoes the octal escapes of the mount table (space, tab, newline, backslash).
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| *byte == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(octal.unwrap_or(*byte));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(bytes)
}

/// The mount point without symbolic links, if it and the device can be used. [`crate::mount`] checks this itself; a caller does
/// it early to refuse before it does work that would be in vain.
///
/// # Errors
/// See [`MountError`]. The dead mount of a process that has ended may have been detached.
pub fn check(options: &MountOptions) -> Result<PathBuf, MountError> {
    let path = canonical(&options.mountpoint)?;
    let metadata = match look(&path) {
        Err(error) if error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error()) => {
            detach_dead(&path)?;
            look(&path)
        }
        other => other,
    };
    let inaccessible = |source| MountError::Inaccessible {
        path: path.clone(),
        source,
    };
    if !metadata.map_err(inaccessible)?.is_dir() {
        return Err(MountError::NotDirectory(path));
    }
    if !options.allow_nonempty {
        if let Some(entry) = mounted_at(&path) {
            return Err(MountError::AlreadyMounted {
                path,
                kind: entry.kind,
            });
        }
        if fs::read_dir(&path).map_err(inaccessible)?.next().is_some() {
            return Err(MountError::NotEmpty(path));
        }
    }
    open_device()?;
    Ok(path)
}

/// Attributes of what is there, if it is alive. The kernel goes on telling the attributes that it has cached of a dead
/// mount's root, but for the room on a file system it always asks.
fn look(path: &Path) -> io::Result<fs::Metadata> {
    unless_aborted(|| Ok(rustix::fs::statfs(path)?))?;
    unless_aborted(|| fs::metadata(path))
}

/// Asks again what was answered ECONNABORTED: the process of a mount ended while this waited for it, and from then on
/// the answer is ENOTCONN.
fn unless_aborted<T>(ask: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match ask() {
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => ask(),
        answer => answer,
    }
}

/// The path without symbolic links. The last component is not opened, since what is mounted there may be dead.
fn canonical(path: &Path) -> Result<PathBuf, MountError> {
    let resolved = match unless_aborted(|| fs::canonicalize(path)) {
        Err(error) if error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error()) => {
            let absolute = std::path::absolute(path);
            absolute.and_then(|absolute| match (absolute.parent(), absolute.file_name()) {
                (Some(parent), Some(name)) => Ok(fs::canonicalize(parent)?.join(name)),
                _ => Err(error),
            })
        }
        other => other,
    };
    resolved.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => MountError::Missing(path.to_path_buf()),
        _ => MountError::Inaccessible {
            path: path.to_path_buf(),
            source,
        },
    })
}

fn detach_dead(path: &Path) -> Result<(), MountError> {
    let kind = mounted_at(path).map_or_else(|| "unknown".to_owned(), |entry| entry.kind);
    if [MOUNT_TYPE, CARRIED_MOUNT_TYPE].contains(&&*kind) && unmount(path, true).is_ok() {
        tracing::warn!(path = %path.display(), "detached the mount of a process that has ended");
        return Ok(());
    }
    Err(MountError::DeadMount {
        path: path.to_path_buf(),
        kind,
    })
}

/// The device, if this user can mount with it.
fn open_device() -> Result<File, MountError> {
    let opened = File::options().read(true).write(true).open(FUSE_DEVICE);
    let device =
        opened.map_err(
            |source| match source.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::NOENT | Errno::NODEV | Errno::NXIO) => MountError::NoDevice,
                _ => MountError::DeviceForbidden {
                    mode: fs::metadata(FUSE_DEVICE)
                        .map_or(0, |metadata| metadata.permissions().mode() & 0o7777),
                    uid: rustix::process::geteuid().as_raw(),
                    source,
                },
            },
        )?;
    if !device
        .metadata()
        .is_ok_and(|it| it.file_type().is_char_device())
    {
        return Err(MountError::NotDevice);
    }
    if !rustix::process::geteuid().is_root() {
        helper::find().ok_or(MountError::NoHelper)?;
    }
    Ok(device)
}

/// A mount that waits for its first answer.
pub(crate) struct Attached {
    /// Descriptor of the session.
    pub device: OwnedFd,
    /// It is of the type that sync(2) may reach.
    pub has_carrier: bool,
}

/// Mounts, directly when this process may, and through the helper otherwise.
pub(crate) fn attach(path: &Path, options: &MountOptions) -> Result<Attached, MountError> {
    if let Some(bad) = options
        .fsname
        .chars()
        .find(|c| matches!(c, ',' | '\\' | '\0' | '\n'))
    {
        return Err(MountError::BadName(bad.to_string()));
    }
    let device = open_device()?;
    if !rustix::process::geteuid().is_root() {
        return helper::mount(path, options).map(|device| Attached {
            device,
            has_carrier: false,
        });
    }
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).expect("numbers and words have no NUL");
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::RDONLY, options.read_only);
    flags.set(MountFlags::NOATIME, options.noatime);
    if options.sync_calls {
        match mount_on_carrier(path, flags, &data) {
            Ok(()) => {
                return Ok(Attached {
                    device: device.into(),
                    has_carrier: true,
                });
            }
            Err(error) => tracing::debug!(%error, "sync(2) will not reach this mount"),
        }
    }
    rustix::mount::mount(&*options.fsname, path, MOUNT_TYPE, flags, &*data).map_err(|errno| {
        MountError::Refused {
            path: path.to_path_buf(),
            source: errno.into(),
        }
    })?;
    Ok(Attached {
        device: device.into(),
        has_carrier: false,
    })
}

fn mount_on_carrier(path: &Path, flags: MountFlags, data: &CString) -> io::Result<()> {
    let carrier = Carrier::new()?;
    rustix::mount::mount(carrier.path(), path, CARRIED_MOUNT_TYPE, flags, &**data)?;
    Ok(())
}

/// Unmounts what is at `path`. Without `detach` it fails with `EBUSY` while files are open there; with it the path is
/// free at once and the session ends with the last open file.
pub(crate) fn unmount(path: &Path, detach: bool) -> io::Result<()> {
    let flags = if detach {
        UnmountFlags::NOFOLLOW | UnmountFlags::DETACH
    } else {
        UnmountFlags::NOFOLLOW
    };
    match rustix::mount::unmount(path, flags) {
        Err(Errno::PERM) => helper::unmount(path, detach),
        other => other.map_err(io::Error::from),
    }
}

/// Has the kernel give up the connection of our mount at `path` (canonical) with this device number, so that nobody waits for
/// its process any more. The mount stays, dead. False when there is no such mount.
///
/// # Errors
/// This user may not do that: neither umount2(2) with `MNT_FORCE` nor `abort` in fusectl, which may not be mounted.
pub fn abort(path: &Path, device: (u32, u32)) -> io::Result<bool> {
    let is_it = |entry: MountEntry| {
        entry.device == device && [MOUNT_TYPE, CARRIED_MOUNT_TYPE].contains(&&*entry.kind)
    };
    if !mounted_at(path).is_some_and(is_it) {
        return Ok(false);
    }
    // What is held is not unmounted, and given up all the same: nobody shall write to the directory below it.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let _held = rustix::fs::open(path, flags, Mode::empty())?;
    match rustix::mount::unmount(path, UnmountFlags::NOFOLLOW | UnmountFlags::FORCE) {
        Ok(()) | Err(Errno::BUSY) => Ok(true),
        Err(Errno::PERM) => {
            let (major, minor) = device;
            let number = (u64::from(major) << 20) | u64::from(minor);
            let file = format!("/sys/fs/fuse/connections/{number}/abort");
            fs::write(file, "1").map(|()| true)
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Lets the kernel read ahead `bytes` on the file system with this device number. Only root may; the kernel's own
/// limit of 128 KiB stays otherwise.
pub(crate) fn raise_read_ahead(device: (u32, u32), bytes: u32) -> io::Result<()> {
    let (major, minor) = device;
    let set = |suffix: &str| {
        let file = format!("/sys/class/bdi/{major}:{minor}{suffix}/read_ahead_kb");
        fs::write(file, (bytes / 1024).to_string())
    };
    // Where a block device carries the mount, the plain name is that device's own.
    set("-fuseblk").or_else(|_| set(""))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn mount_table_lines_are_understood() {
        let table = b"22 1 0:20 / /mnt rw - tmpfs none rw\n\
            36 35 98:0 / /mnt/a\\040b rw,noatime master:1 shared:2 - ext4 /dev/root rw\n\
            37 36 0:51 / /mnt/a\\040b rw - fuse.cfs cfs rw,user_id=0\n\
            38 36 0:52 /\n";
        let at = |path: &str| topmost(table, Path::new(path));
        let entry = |device, kind: &str| {
            Some(MountEntry {
                device,
                kind: kind.to_owned(),
            })
        };
        assert_eq!(at("/mnt"), entry((0, 20), "tmpfs"));
        assert_eq!(at("/mnt/a b"), entry((0, 51), "fuse.cfs"));
        assert_eq!(at("/mnt/a"), None);
        assert_eq!(unescape(b"a\\134b\\9\\"), OsStr::from_bytes(b"a\\b\\9\\"));
    }
}
