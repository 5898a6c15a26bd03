//! Mounting as a user other than root: the set-user-id helper `fusermount3`.
//!
//! The helper mounts and sends the descriptor of the session back through a socket whose number it finds in the
//! environment. Here that is its standard input, which needs no descriptor to be left open for children of other
//! threads.

use std::ffi::OsStr;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
    recvmsg, socketpair,
};

use crate::mountpoint::MountError;
use crate::session::MountOptions;

/// The helper's name.
pub(crate) const HELPER: &str = "fusermount3";
/// The environment variable that holds the number of the helper's socket.
const SOCKET_VARIABLE: &str = "_FUSE_COMMFD";

/// Where the helper is.
pub(crate) fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/bin"), PathBuf::from("/sbin")])
        .map(|directory| directory.join(HELPER))
        .find(|candidate| candidate.is_file())
}

/// Mounts at `path`; returns the descriptor of the session.
pub(crate) fn mount(path: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let helper = find().ok_or(MountError::NoHelper)?;
    let refused = |source: io::Error| MountError::Refused {
        path: path.to_path_buf(),
        source,
    };
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|errno| refused(errno.into()))?;
    let output = Command::new(helper)
        .arg("-o")
        .arg(option_list(options))
        .args([OsStr::new("--"), path.as_os_str()])
        .env(SOCKET_VARIABLE, "0")
        .stdin(Stdio::from(theirs))
        .output()
        .map_err(refused)?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if message.contains("user_allow_other") {
            return Err(MountError::AllowOtherForbidden);
        }
        return Err(refused(io::Error::other(message)));
    }
    receive(&ours).map_err(|source| {
        // It is mounted, and nobody will ever answer there.
        let _ = crate::mountpoint::unmount(path, true);
        refused(source)
    })
}

fn option_list(options: &MountOptions) -> String {
    let mut list = format!("fsname={},subtype=cfs,default_permissions", options.fsname);
    for (wanted, option) in [
        (options.allow_other, ",allow_other"),
        (options.read_only, ",ro"),
        (options.noatime, ",noatime"),
    ] {
        if wanted {
            list.push_str(option);
        }
    }
    list
}

/// The descriptor that the helper has sent.
fn receive(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    loop {
        let flags = RecvFlags::CMSG_CLOEXEC;
        match recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut byte)],
            &mut ancillary,
            flags,
        ) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    descriptor.ok_or_else(|| io::Error::other(format!("{HELPER} sent no descriptor")))
}

/// Unmounts what is at `path`, as [`crate::mountpoint::unmount`].
pub(crate) fn unmount(path: &Path, detach: bool) -> io::Result<()> {
    let helper = find().ok_or_else(|| io::Error::from(Errno::PERM))?;
    let output = Command::new(helper)
        .arg(if detach { "-uz" } else { "-u" })
        .args([OsStr::new("--"), path.as_os_str()])
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if message.contains("busy") {
        return Err(Errno::BUSY.into());
    }
    Err(io::Error::other(message))
}
