//! Going to the background: the parent waits until the child can serve, and passes its verdict on.
//!
//! The child stays in the terminal's session until it is ready, so that it can ask for a passphrase and say on
//! standard error why it could not start; then it leaves the session and its output goes to the log.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

use crate::failure::{Code, Failure, Result};

/// Longest line that says "ready".
const READY_BYTES_MAX: u64 = 64 << 10;

/// Which of the two processes this is.
pub enum Side {
    /// The one that was started: exit with this.
    Parent(ExitCode),
    /// The one that stays.
    Child(Starting),
}

/// A child that has not yet said that it is ready.
pub struct Starting {
    pipe: File,
}

/// Forks.
///
/// # Errors
/// When the kernel refuses.
///
/// # Safety
/// No other thread may run.
pub unsafe fn fork() -> Result<Side> {
    let refused = |error: io::Error| {
        Failure::new(
            Code::Host,
            format!("cannot start a process in the background: {error}"),
        )
    };
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|errno| refused(errno.into()))?;
    // SAFETY: the caller promises that this is the only thread, so that the child's copy of memory is consistent.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(refused(io::Error::last_os_error())),
        0 => {
            drop(read);
            Ok(Side::Child(Starting { pipe: write.into() }))
        }
        child => {
            drop(write);
            Ok(Side::Parent(wait_until_ready(read.into(), child)))
        }
    }
}

fn wait_until_ready(pipe: File, child: libc::pid_t) -> ExitCode {
    let mut line = String::new();
    if pipe
        .take(READY_BYTES_MAX)
        .read_to_string(&mut line)
        .is_ok_and(|bytes| bytes > 0)
    {
        print!("{line}");
        return ExitCode::SUCCESS;
    }
    let mut status = 0;
    // SAFETY: `status` outlives the call; the child is ours and nobody else waits for it.
    while unsafe { libc::waitpid(child, &raw mut status, 0) } == -1 {
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            break;
        }
    }
    // A child that had a reason has said it on standard error.
    match libc::WIFEXITED(status) {
        true => ExitCode::from(u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(1)),
        false => {
            crate::tell!("error: the process in the background died before it was ready");
            ExitCode::from(Code::Failed.number())
        }
    }
}

impl Starting {
    /// Leaves the session, sends output to the log and tells the parent. `may_do_without`: where the log cannot be opened
    /// there is none.
    ///
    /// # Errors
    /// When the log cannot be opened; the parent then sees the exit code.
    pub fn ready(mut self, line: &str, log: &Path, may_do_without: bool) -> Result<()> {
        let detach = || -> io::Result<()> {
            let opened = OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o600)
                .open(log);
            let log = match opened {
                Err(error) if may_do_without => {
                    crate::tell!("notice: there is no log: {}: {error}", log.display());
                    OpenOptions::new().write(true).open("/dev/null")?
                }
                opened => opened?,
            };
            let null = OpenOptions::new().read(true).open("/dev/null")?;
            rustix::process::setsid()?;
            rustix::stdio::dup2_stdin(&null)?;
            rustix::stdio::dup2_stdout(&log)?;
            rustix::stdio::dup2_stderr(&log)?;
            std::env::set_current_dir("/")
        };
        detach().map_err(|e| Failure::host("write the log", log, &e))?;
        // A parent that has gone away does not change that this process serves.
        if let Err(error) = writeln!(self.pipe, "{line}") {
            tracing::warn!("the process that started this one did not wait: {error}");
        }
        Ok(())
    }
}
