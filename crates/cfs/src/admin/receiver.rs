//! The process that receives what `cfs replicate` sends, and what it says.
//!
//! One failure has one cause, and often only one side knows it. What the process says on standard error is passed on at
//! once, but for its error, which is held until it is known whether this side has had a reason of its own to end: then
//! the other side's is what came of that, and is left out.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use cfs_format::superblock::UNLOCK_PASSPHRASE;
use rustix::io::FdFlags;
use rustix::pipe::PipeFlags;

use crate::datadir::DataDir;
use crate::failure::{Code, Failure, Result, plain};
use crate::keys::{KeyGiven, Passphrase};
use crate::pool;

/// What `cfs` begins an error with.
const ERROR: &[u8] = b"error: ";
/// Longest error that is held, bytes.
const ERROR_BYTES_MAX: usize = 16 << 10;
/// How long what the process has said may take to come after its end. A process that it has left behind, as `ssh` may one
/// that keeps a connection, can hold standard error open for ever.
const LAST_WORD_PATIENCE: Duration = Duration::from_secs(1);

/// How the process ended that receives.
pub struct Ended {
    status: ExitStatus,
    /// The error that it told, without the word.
    error: Option<String>,
}

impl Ended {
    /// Whether it failed.
    pub fn has_failed(&self) -> bool {
        !self.status.success()
    }

    /// Tells an error that was held and of which nothing came.
    pub fn tell(&self) {
        if let Some(error) = &self.error {
            crate::tell!("error: {error}");
        }
    }

    /// Why there is no snapshot on the other side, after this one has ended with `done`: its own reason, if it had one, else
    /// that of the other side, with its exit code.
    pub fn failure<T>(self, done: Result<T>) -> Failure {
        let ours = match done {
            Err(failure) if failure.code != Code::OtherSide => return failure,
            Err(failure) => Some(failure),
            Ok(_) => None,
        };
        let number = self
            .status
            .code()
            .and_then(|number| u8::try_from(number).ok());
        let code = number.map_or(Code::Failed, Code::Other);
        match (self.error, ours) {
            (Some(error), _) => Failure::new(code, error),
            (None, ours) => {
                let failure = Failure::new(
                    code,
                    format!("the receiving process ended with {}", self.status),
                );
                match ours.filter(|ours| ours.hint.is_none()) {
                    // Its answer, where what it said did not come here.
                    Some(ours) => failure.hint(ours.message),
                    None => failure.hint(
                        "look at what it has said; what the other side has by now is not sent again",
                    ),
                }
            }
        }
    }
}

/// What opens the pool of the process that receives.
pub enum PassedKey {
    /// What it finds in the data directory, or nothing: another process serves the pool.
    None,
    /// A key file.
    File(PathBuf),
    /// A passphrase.
    Passphrase(Passphrase),
}

impl PassedKey {
    /// What the pool in a data directory wants of what was given.
    ///
    /// # Errors
    /// When it needs a passphrase and none was given. What else is wrong with the pool the process finds itself.
    pub fn of(dir: &DataDir, given: KeyGiven) -> Result<Self> {
        if let Ok(None) = super::socket::connect(dir)
            && let Ok(peek) = pool::peek(dir)
        {
            return match peek.superblock.key_slot.unlock {
                UNLOCK_PASSPHRASE => given.passphrase(dir).map(Self::Passphrase),
                _ => given.key_file(dir).map(Self::File),
            };
        }
        Ok(Self::None)
    }
}

/// Starts `cfs receive` at a data directory.
///
/// # Errors
/// [`Code::Host`] when it cannot be started.
pub fn start(dir: &DataDir, path: Option<&Path>, key: PassedKey) -> Result<Child> {
    let program =
        std::env::current_exe().map_err(|e| Failure::host("find", Path::new("cfs"), &e))?;
    let mut command = Command::new(program);
    command.arg("receive").arg("--data").arg(dir.path());
    command.args(path);
    // Open until the process has it.
    let mut pipe = None;
    match key {
        PassedKey::None => {}
        PassedKey::File(file) => drop(command.arg("--key-file").arg(file)),
        PassedKey::Passphrase(passphrase) => {
            let pipe = pipe.insert(hand_over(&passphrase)?);
            let file = format!("/proc/self/fd/{}", pipe.as_raw_fd());
            command.arg("--passphrase-file").arg(file);
        }
    }
    spawn(command)
}

/// Starts the command that receives.
///
/// # Errors
/// [`Code::Host`] when it cannot be started.
pub fn start_command(program: &OsStr, arguments: &[OsString]) -> Result<Child> {
    let mut command = Command::new(program);
    command.args(arguments);
    spawn(command)
}

fn spawn(mut command: Command) -> Result<Child> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
        .spawn()
        .map_err(|e| Failure::host("start", Path::new(command.get_program()), &e))
}

/// A pipe that processes started from now on have, with a passphrase in it: neither arguments nor environment show it.
fn hand_over(passphrase: &Passphrase) -> Result<OwnedFd> {
    let handed = || -> io::Result<OwnedFd> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        // One is shorter than what a pipe takes without a reader.
        File::from(write).write_all(passphrase.as_bytes())?;
        rustix::io::fcntl_setfd(&read, FdFlags::empty())?;
        Ok(read)
    };
    handed().map_err(|error| {
        Failure::new(
            Code::Host,
            format!("cannot hand over the passphrase: {}", plain(&error)),
        )
    })
}

/// Listens to what a process says.
pub struct Listening {
    error: Receiver<Vec<u8>>,
}

impl Listening {
    /// Begins with what the process says on standard error.
    ///
    /// # Errors
    /// When no thread can be begun.
    pub fn start(child: &mut Child) -> io::Result<Self> {
        let from = child.stderr.take().expect("it was asked for");
        let (sender, error) = mpsc::channel();
        std::thread::Builder::new().spawn(move || {
            let mut hold = |error: &[u8]| drop(sender.send(error.to_vec()));
            let _ = pass_on_but_error(from, io::stderr(), &mut hold);
        })?;
        Ok(Self { error })
    }

    /// Waits for the end of the process.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn end(self, child: &mut Child) -> io::Result<Ended> {
        let status = child.wait()?;
        let mut error = Vec::new();
        while let Ok(more) = self.error.recv_timeout(LAST_WORD_PATIENCE) {
            let room = ERROR_BYTES_MAX.saturating_sub(error.len());
            error.extend_from_slice(&more[..more.len().min(room)]);
        }
        let error = String::from_utf8_lossy(&error).trim_end().to_owned();
        Ok(Ended {
            status,
            error: Some(error).filter(|error| !error.is_empty()),
        })
    }
}

/// Passes on what comes, up to a line that begins as an error does: that one and all behind it are given to `hold`, without
/// the word.
fn pass_on_but_error(
    mut from: impl Read,
    mut to: impl Write,
    hold: &mut dyn FnMut(&[u8]),
) -> io::Result<()> {
    let mut bytes = [0; 4096];
    // How many bytes of `ERROR` the line has begun with; `None` in a line that begins otherwise.
    let mut begun = Some(0);
    loop {
        let count = match from.read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        if count == 0 {
            return to.write_all(&ERROR[..begun.unwrap_or(0)]);
        }
        let mut out = Vec::with_capacity(count + ERROR.len());
        for (at, byte) in bytes[..count].iter().enumerate() {
            match begun {
                Some(known) if *byte == ERROR[known] => {
                    begun = Some(known + 1);
                    if known + 1 == ERROR.len() {
                        to.write_all(&out)?;
                        hold(&bytes[at + 1..count]);
                        return hold_rest(from, hold);
                    }
                    continue;
                }
                Some(known) => out.extend_from_slice(&ERROR[..known]),
                None => {}
            }
            out.push(*byte);
            begun = (*byte == b'\n').then_some(0);
        }
        to.write_all(&out)?;
    }
}

fn hold_rest(mut from: impl Read, hold: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    let mut bytes = [0; 4096];
    loop {
        match from.read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => match read? {
                0 => return Ok(()),
                count => hold(&bytes[..count]),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives what it holds in pieces of so many bytes.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(self.0.len()).min(buf.len());
            buf[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    #[test]
    fn all_but_the_error_is_passed_on() {
        for (said, passed, held) in [
            ("", "", ""),
            ("one\ntwo: error: x\n", "one\ntwo: error: x\n", ""),
            ("error: why\n  do\n", "", "why\n  do\n"),
            ("a\n\nerr\nerror: why\nb\n", "a\n\nerr\n", "why\nb\n"),
            ("no line\nerror:", "no line\nerror:", ""),
            ("errerror: x\nerror", "errerror: x\nerror", ""),
        ] {
            for piece in 1..said.len().max(2) {
                let (mut out, mut error) = (Vec::new(), Vec::new());
                let mut hold = |more: &[u8]| error.extend_from_slice(more);
                pass_on_but_error(Pieces(said.as_bytes(), piece), &mut out, &mut hold)
                    .expect("passed on");
                assert_eq!(String::from_utf8_lossy(&out), passed, "{said:?} by {piece}");
                assert_eq!(String::from_utf8_lossy(&error), held, "{said:?} by {piece}");
            }
        }
    }
}
