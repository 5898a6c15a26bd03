//! A process beside the one that serves a mount, which ends the kernel's side of it if that one is killed and cannot end.
//!
//! Who tells the kernel that a name has changed (`FUSE_NOTIFY_INVAL_ENTRY`) waits for the lock of the directory, and no signal
//! ends that. Who holds the lock may be waiting for an answer of the same process, and has waited in vain if that was killed.
//! The kernel gives up the connection when its last descriptor is closed, which a thread that waits so never does: process, pool
//! and all who use the mount would hang for ever. umount2(2) with `MNT_FORCE` has it given up at once.
//!
//! Sources: fuse.ko's `fuse_reverse_inval_entry` and `fuse_dev_release`, prctl(2), umount(2).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cfs_fuse::Mounted;
use rustix::fs::{Mode, OFlags};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

/// A killed process has so long to end by itself.
const ENDING_PATIENCE: Duration = Duration::from_millis(200);
/// Then it is looked so often, and so long, whether it has ended.
const POLL: Duration = Duration::from_millis(100);
const POLLS_MAX: u32 = 600;
/// After a signal it is looked so often, with such a pause before, whether the process has died.
const STATE_POLLS: u32 = 50;
const STATE_POLL: Duration = Duration::from_millis(10);
/// Tells the watching process that the other one has died.
const DIED: libc::c_int = libc::SIGUSR1;

/// The process that watches this one. Dropping it ends that.
pub struct Watch {
    process: OwnedFd,
    pipe: File,
}

impl Watch {
    /// Begins to watch the process that calls. In the one that watches `forget` is called first.
    ///
    /// # Errors
    /// The system starts no process.
    ///
    /// # Safety
    /// No other thread may run, and the thread that calls must be the process's first.
    pub unsafe fn start(forget: impl FnOnce()) -> io::Result<Self> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let watched = rustix::process::getpid();
        // SAFETY: the caller promises that this is the only thread, so that the child's copy of memory is consistent.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                drop(write);
                forget();
                let watching = watch(watched, read);
                // SAFETY: ends the process without what the one that serves wants to be done at its own end.
                unsafe { libc::_exit(i32::from(watching.is_err())) }
            }
            // Where this fails the pipe is closed, at which the child ends.
            pid => Ok(Self {
                process: pidfd_open(
                    Pid::from_raw(pid).ok_or(rustix::io::Errno::SRCH)?,
                    PidfdFlags::empty(),
                )?,
                pipe: write.into(),
            }),
        }
    }

    /// Says what is mounted.
    pub fn tell(&mut self, mounted: &Mounted) {
        let (major, minor) = mounted.device_number();
        let path = mounted.mountpoint().as_os_str().as_bytes();
        let mut message = Vec::with_capacity(12 + path.len());
        for number in [major, minor, path.len() as u32] {
            message.extend_from_slice(&number.to_le_bytes());
        }
        message.extend_from_slice(path);
        if let Err(error) = self.pipe.write_all(&message) {
            tracing::warn!("nobody watches whether this process is killed: {error}");
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It may have ended, and been forgotten by the system where that was told to.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
        let _ = waitid(WaitId::PidFd(self.process.as_fd()), WaitIdOptions::EXITED);
    }
}

/// What the child does.
fn watch(watched: Pid, pipe: OwnedFd) -> io::Result<()> {
    // Of the process as it is now: later ones with its number are not meant.
    let watched_at = rustix::fs::open(
        format!("/proc/{}", watched.as_raw_nonzero()),
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // SAFETY: the sets are filled before they are used, and the name ends with a NUL.
    let died = unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
        if libc::prctl(libc::PR_SET_PDEATHSIG, DIED) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::prctl(libc::PR_SET_NAME, c"mount watch".as_ptr());
        let mut died = std::mem::zeroed();
        libc::sigemptyset(&raw mut died);
        libc::sigaddset(&raw mut died, DIED);
        died
    };
    hold_nothing(&[watched_at.as_raw_fd(), pipe.as_raw_fd()])?;
    let Ok((device, path)) = hear(pipe.into()) else {
        // It ended without a mount.
        return Ok(());
    };
    // Others may send that signal too, and the kernel sends it a moment before the state tells of the death.
    while (0..STATE_POLLS).all(|_| {
        std::thread::sleep(STATE_POLL);
        is_alive(&watched_at)
    }) {
        let mut signal = 0;
        // SAFETY: both outlive the call.
        unsafe { libc::sigwait(&raw const died, &raw mut signal) };
    }
    let died = Instant::now();
    for _ in 0..POLLS_MAX {
        if !has_threads(&watched_at) {
            break;
        }
        // Once is enough, and later the place may be another's.
        if died.elapsed() > ENDING_PATIENCE && cfs_fuse::abort(&path, device).is_ok() {
            break;
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// Lets go of what the process that serves has open, and of its session and directory.
fn hold_nothing(kept: &[i32]) -> io::Result<()> {
    rustix::process::setsid()?;
    std::env::set_current_dir("/")?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    drop(null);
    let mut kept = kept.to_vec();
    kept.sort_unstable();
    let mut from = 3;
    for until in kept.into_iter().chain([i32::MAX]) {
        if from < until {
            // SAFETY: nothing in this process uses the descriptors but those that are kept.
            if unsafe { libc::syscall(libc::SYS_close_range, from, until - 1, 0) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        from = until.saturating_add(1);
    }
    Ok(())
}

/// The device number and the path of the mount.
fn hear(mut pipe: File) -> io::Result<((u32, u32), PathBuf)> {
    let mut number = || {
        let mut bytes = [0; 4];
        pipe.read_exact(&mut bytes)
            .map(|()| u32::from_le_bytes(bytes))
    };
    let (major, minor, len) = (number()?, number()?, number()?);
    let mut path = vec![0; len as usize];
    pipe.read_exact(&mut path)?;
    let path = std::ffi::OsString::from_vec(path);
    Ok(((major, minor), Path::new(&path).to_path_buf()))
}

/// Whether the process's first thread runs, which ends when the process is killed, whatever others wait for.
fn is_alive(process: impl AsFd) -> bool {
    let stat = rustix::fs::openat(process, "stat", OFlags::RDONLY, Mode::empty());
    let mut text = Vec::new();
    let read = stat.is_ok_and(|stat| File::from(stat).read_to_end(&mut text).is_ok());
    // The state comes after the name, which may have brackets in it.
    let state = text.rsplit(|byte| *byte == b')').next();
    read && state.is_some_and(|state| !matches!(state.get(1), None | Some(b'Z' | b'X')))
}

/// Whether the process has threads beside the first, which stays as a zombie for as long as others do.
fn has_threads(process: impl AsFd) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let tasks = rustix::fs::openat(process, "task", flags, Mode::empty());
    let entries = tasks.and_then(rustix::fs::Dir::new);
    // With `.` and `..` before them.
    entries.is_ok_and(|entries| entries.filter(Result::is_ok).count() > 3)
}
