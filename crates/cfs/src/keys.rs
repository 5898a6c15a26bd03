//! Where the master key comes from: a passphrase (file, environment, prompt) or a key file.
//!
//! Secrets are wiped when dropped, and passphrases are taken out of the environment before any thread starts, so that
//! neither child processes nor `/proc/PID/environ` show them.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::cli::KeyArgs;
use crate::datadir::DataDir;
use crate::failure::{Code, Failure, Result};

/// Longest passphrase, bytes.
const PASSPHRASE_BYTES_MAX: usize = 4096;

/// A passphrase.
pub type Passphrase = Zeroizing<String>;

/// Passphrases that the environment held.
#[derive(Default)]
pub struct Environment {
    passphrase: Option<Zeroizing<Vec<u8>>>,
    new_passphrase: Option<Zeroizing<Vec<u8>>>,
    target_passphrase: Option<Zeroizing<Vec<u8>>>,
}

impl Environment {
    /// Takes `CFS_PASSPHRASE`, `CFS_NEW_PASSPHRASE` and `CFS_TARGET_PASSPHRASE` out of the environment and wipes them there.
    ///
    /// # Safety
    /// No other thread may run.
    pub unsafe fn take() -> Self {
        Self {
            // SAFETY: the caller's promise.
            passphrase: unsafe { take_variable(c"CFS_PASSPHRASE") },
            // SAFETY: the caller's promise.
            new_passphrase: unsafe { take_variable(c"CFS_NEW_PASSPHRASE") },
            // SAFETY: the caller's promise.
            target_passphrase: unsafe { take_variable(c"CFS_TARGET_PASSPHRASE") },
        }
    }
}

/// # Safety
/// No other thread may run.
unsafe fn take_variable(name: &CStr) -> Option<Zeroizing<Vec<u8>>> {
    // SAFETY: no other thread changes the environment while the pointer is used; the value ends with a zero byte.
    // Overwriting it in place keeps its length, and it is removed at once.
    let value = unsafe {
        let pointer = libc::getenv(name.as_ptr());
        if pointer.is_null() {
            return None;
        }
        let len = CStr::from_ptr(pointer).to_bytes().len();
        let bytes = std::slice::from_raw_parts_mut(pointer.cast::<u8>(), len);
        let value = bytes.to_vec();
        bytes.fill(0);
        libc::unsetenv(name.as_ptr());
        value
    };
    Some(Zeroizing::new(value))
}

/// What opens a pool.
pub enum Secret {
    /// Through Argon2id.
    Passphrase(Passphrase),
    /// The content of this file.
    KeyFile(PathBuf),
}

/// How a key is given, for messages.
struct Ways {
    passphrase_file: &'static str,
    key_file: &'static str,
    variable: &'static str,
}

/// Of the pool that a command is for.
const OF_POOL: Ways = Ways {
    passphrase_file: "--passphrase-file",
    key_file: "--key-file",
    variable: "CFS_PASSPHRASE",
};
/// Of the pool that it sends to.
const OF_TARGET: Ways = Ways {
    passphrase_file: "--target-passphrase-file",
    key_file: "--target-key-file",
    variable: "CFS_TARGET_PASSPHRASE",
};

/// What the user gave, before it is known what the pool wants.
#[derive(Clone)]
pub struct KeyGiven {
    args: KeyArgs,
    environment: Option<Zeroizing<Vec<u8>>>,
    ways: &'static Ways,
}

impl KeyGiven {
    /// Options and environment together. An option wins over the environment.
    pub fn new(args: KeyArgs, environment: Environment) -> Self {
        Self {
            args,
            environment: environment.passphrase,
            ways: &OF_POOL,
        }
    }

    /// The same for the pool that is sent to.
    pub fn of_target(args: KeyArgs, environment: &mut Environment) -> Self {
        Self {
            args,
            environment: environment.target_passphrase.take(),
            ways: &OF_TARGET,
        }
    }

    /// A passphrase that has been asked for already.
    pub fn known(passphrase: Passphrase) -> Self {
        Self {
            args: KeyArgs::default(),
            environment: Some(Zeroizing::new(passphrase.as_bytes().to_vec())),
            ways: &OF_POOL,
        }
    }

    /// A key file that has been found already.
    pub fn known_file(path: PathBuf) -> Self {
        let args = KeyArgs {
            key_file: Some(path),
            ..KeyArgs::default()
        };
        Self {
            args,
            environment: None,
            ways: &OF_POOL,
        }
    }

    /// The secret of a pool that is being made: what was given, else `None`, and a key file is to be made.
    ///
    /// # Errors
    /// When the passphrase file cannot be read or is empty.
    pub fn for_new_pool(self) -> Result<Option<Secret>> {
        if let Some(path) = self.args.key_file {
            return Ok(Some(Secret::KeyFile(path)));
        }
        if let Some(path) = &self.args.passphrase_file {
            return read_passphrase(path).map(|it| Some(Secret::Passphrase(it)));
        }
        match self.environment {
            Some(bytes) => check_passphrase(&bytes, self.ways.variable)
                .map(|passphrase| Some(Secret::Passphrase(passphrase))),
            None => Ok(None),
        }
    }

    /// The passphrase of a pool that has one; asks the terminal if none was given.
    ///
    /// # Errors
    /// When there is none.
    pub fn passphrase(self, dir: &DataDir) -> Result<Passphrase> {
        let (file, variable) = (self.ways.passphrase_file, self.ways.variable);
        if let Some(path) = &self.args.key_file {
            return Err(Failure::new(
                Code::WrongKey,
                format!(
                    "the pool in {} opens with a passphrase, not with the key file {}",
                    dir.path().display(),
                    path.display()
                ),
            )
            .hint(format!(
                "give it with {file} or {variable}, or at the prompt"
            )));
        }
        if let Some(path) = &self.args.passphrase_file {
            return read_passphrase(path);
        }
        if let Some(bytes) = self.environment {
            return check_passphrase(&bytes, variable);
        }
        if !io::stdin().is_terminal() {
            return Err(Failure::new(
                Code::WrongKey,
                format!("the pool in {} needs a passphrase", dir.path().display()),
            )
            .hint(format!(
                "give it with {file} or {variable}, or run in a terminal"
            )));
        }
        prompt(&format!("Passphrase of {}: ", dir.path().display()))
    }

    /// The key file of a pool that has one: what was given, else `DIR/key`.
    ///
    /// # Errors
    /// When there is none, or a passphrase was given instead.
    pub fn key_file(self, dir: &DataDir) -> Result<PathBuf> {
        let Ways {
            passphrase_file,
            key_file,
            ..
        } = self.ways;
        if let Some(path) = self.args.key_file {
            return Ok(path);
        }
        if self.args.passphrase_file.is_some() {
            return Err(Failure::new(
                Code::WrongKey,
                format!(
                    "the pool in {} opens with a key file, not with a passphrase",
                    dir.path().display()
                ),
            )
            .hint(format!(
                "give it with {key_file}, or leave {passphrase_file} out to use DIR/key"
            )));
        }
        let path = dir.key();
        if path.exists() {
            return Ok(path);
        }
        Err(Failure::new(
            Code::WrongKey,
            format!(
                "the pool in {} needs its key file, and {} is not there",
                dir.path().display(),
                path.display()
            ),
        )
        .hint(format!(
            "give it with {key_file}; without it the data cannot be read by anybody"
        )))
    }
}

/// The new passphrase for `change-passphrase`: file, environment, or a prompt that asks twice.
///
/// # Errors
/// When there is none, or the two answers differ.
pub fn new_passphrase(file: Option<&Path>, environment: &mut Environment) -> Result<Passphrase> {
    if let Some(path) = file {
        return read_passphrase(path);
    }
    if let Some(bytes) = environment.new_passphrase.take() {
        return check_passphrase(&bytes, "CFS_NEW_PASSPHRASE");
    }
    if !io::stdin().is_terminal() {
        return Err(
            Failure::new(Code::Usage, "there is no new passphrase").hint(
                "give it with --new-passphrase-file or CFS_NEW_PASSPHRASE, or run in a terminal",
            ),
        );
    }
    let first = prompt("New passphrase: ")?;
    let second = prompt("New passphrase again: ")?;
    if *first != *second {
        return Err(Failure::new(
            Code::Usage,
            "the two new passphrases differ; nothing was changed",
        ));
    }
    Ok(first)
}

fn prompt(text: &str) -> Result<Passphrase> {
    let answer = rpassword::prompt_password(text).map_err(|error| {
        Failure::new(
            Code::WrongKey,
            format!("cannot ask for the passphrase: {error}"),
        )
        .hint("give it with --passphrase-file or CFS_PASSPHRASE")
    })?;
    check_passphrase(Zeroizing::new(answer).as_bytes(), "the passphrase")
}

/// The same rules wherever a passphrase comes from, so that each one can be given in every way: one line of text.
fn check_passphrase(bytes: &[u8], what: &str) -> Result<Passphrase> {
    let refused = |why: &str| Err(Failure::new(Code::Usage, format!("{what} {why}")));
    if bytes.is_empty() || bytes.len() > PASSPHRASE_BYTES_MAX {
        return refused(&format!("must have 1 to {PASSPHRASE_BYTES_MAX} bytes"));
    }
    if bytes.iter().any(|byte| matches!(byte, b'\n' | b'\r' | 0)) {
        return refused("must be one line");
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(_) => refused("must be UTF-8 text"),
    }
}

/// The first line of a file; the rest of it is not looked at.
fn read_passphrase(path: &Path) -> Result<Passphrase> {
    let mut content = Zeroizing::new(Vec::with_capacity(PASSPHRASE_BYTES_MAX + 2));
    File::open(path)
        .and_then(|file| {
            file.take(PASSPHRASE_BYTES_MAX as u64 + 2)
                .read_to_end(&mut content)
        })
        .map_err(|e| Failure::host("read the passphrase file", path, &e))?;
    let line = content.split(|byte| *byte == b'\n').next();
    let line = line.unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    check_passphrase(line, &format!("the first line of {}", path.display()))
}

/// Says so when others than the owner can read a key file.
pub fn warn_if_readable_by_others(path: &Path) {
    if let Ok(metadata) = std::fs::metadata(path)
        && metadata.mode() & 0o077 != 0
    {
        tracing::warn!(
            "others than its owner can use the key file {}; chmod 600 it",
            path.display()
        );
    }
}
