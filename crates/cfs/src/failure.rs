//! What the program says and how it exits when it cannot do what was asked.
//!
//! Every refusal is one sentence that names the object, one that says what to do, and an exit code of its own kind.

use std::fmt;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The exit codes, as `cfs --help` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The work was done in part, or found something: findings of fsck, files that could not be copied.
    Failed,
    /// The command line does not make sense.
    Usage,
    /// The passphrase or key file does not open the pool.
    WrongKey,
    /// Another process has the pool.
    Busy,
    /// There is no pool, or it is damaged, foreign, or of a newer format.
    Pool,
    /// The mount point or FUSE cannot be used.
    Mount,
    /// The host has no room, is read-only, or denies access.
    Host,
    /// A signal ended the work.
    Interrupted,
    /// The other side of a stream went away or gave up; it knows why.
    OtherSide,
    /// Another process that was needed failed with this.
    Other(u8),
}

impl Code {
    /// The number that the process exits with.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Failed | Self::OtherSide => 1,
            Self::Usage => 2,
            Self::WrongKey => 3,
            Self::Busy => 4,
            Self::Pool => 5,
            Self::Mount => 6,
            Self::Host => 7,
            Self::Interrupted => 130,
            Self::Other(number) => number,
        }
    }
}

/// Why a command was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind of failure it is.
    pub code: Code,
    /// What failed, on which object.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// The result of a command.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure without advice.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: None,
        }
    }

    /// The same failure with what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The failure of one I/O call on a host path, with the advice that fits the error.
    #[must_use]
    pub fn host(action: &str, path: &Path, error: &io::Error) -> Self {
        let failure = Self::new(
            Code::Host,
            format!("cannot {action} {}: {}", path.display(), plain(error)),
        );
        match error.kind() {
            io::ErrorKind::ReadOnlyFilesystem => {
                failure.hint("choose a directory on a file system that is mounted read-write")
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                failure.hint("free some room there, or choose a directory on another disk")
            }
            io::ErrorKind::PermissionDenied => {
                failure.hint("run as the user who owns it, or change its permissions")
            }
            io::ErrorKind::NotFound => failure.hint("look whether the path is right"),
            _ => failure,
        }
    }
}

/// The operating system's words for an error, without the number that `io::Error` adds.
pub fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_lowercase(),
        None => text,
    }
}

/// The system starts no more threads for this process.
pub fn no_thread(error: &io::Error) -> Failure {
    Failure::new(
        Code::Host,
        format!("the system starts no more threads: {}", plain(error)),
    )
    .hint("allow this user or container more processes: `ulimit -u`, TasksMax=, --pids-limit")
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  {hint}"),
            None => Ok(()),
        }
    }
}
