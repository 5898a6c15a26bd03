//! One writer: random operations, each announced to its ledger before, and acknowledged after.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;

use super::ledger::{Content, Ledger, State};
use crate::workload::Random;

const NAMES: u64 = 40;
const LOGS: u64 = 3;
const FILE_BYTES_MAX: u64 = 300 << 10;
/// An appended file starts anew when it is longer.
const LOG_BYTES_MAX: u64 = 1 << 20;

#[derive(Default)]
pub(crate) struct Counts {
    pub operations: u64,
    pub acknowledged: u64,
}

pub(crate) struct Writer<'a> {
    directory: PathBuf,
    ledger: &'a mut Ledger,
    rng: Random,
    counts: Counts,
}

impl<'a> Writer<'a> {
    pub fn new(mnt: &Path, ledger: &'a mut Ledger, rng: Random) -> Self {
        Self {
            directory: mnt.join(&ledger.directory),
            ledger,
            rng,
            counts: Counts::default(),
        }
    }

    /// Works until the server dies.
    ///
    /// # Errors
    /// An operation failed while the server lived.
    pub fn work(&mut self, dead: &AtomicBool) -> anyhow::Result<Counts> {
        loop {
            match self.step() {
                Ok(()) => self.counts.operations += 1,
                Err(_) if dead.load(Ordering::SeqCst) => break,
                Err(error) => return Err(error).context("an operation failed on a living mount"),
            }
        }
        Ok(std::mem::take(&mut self.counts))
    }

    fn step(&mut self) -> io::Result<()> {
        match self.rng.below(10) {
            0..=2 => self.write_new(),
            3..=5 => self.replace(),
            6 => self.remove(),
            7 | 8 => self.append(),
            _ => self.rename(),
        }
    }

    fn content(&mut self) -> Content {
        let max = 1 << self.rng.below(19);
        Content {
            id: self.rng.next(),
            len: 1 + self.rng.below(max).min(FILE_BYTES_MAX),
        }
    }

    fn acknowledged(&mut self, what: &str) {
        self.counts.acknowledged += 1;
        self.ledger.acknowledge(what);
    }

    /// Makes a file under a name that is free, and syncs it.
    fn write_new(&mut self) -> io::Result<()> {
        let name = format!("f{}", self.rng.below(NAMES));
        if self.ledger.newest(&name) != State::Absent {
            return Ok(());
        }
        let content = self.content();
        self.ledger.may_become(&name, State::New(content));
        let mut file = File::create_new(self.directory.join(&name))?;
        let bytes = content.bytes();
        let half = self.rng.below(bytes.len() as u64 + 1) as usize;
        file.write_all(&bytes[..half])?;
        file.write_all(&bytes[half..])?;
        self.ledger.may_become(&name, State::Whole(content));
        file.sync_all()?;
        self.acknowledged(&name);
        Ok(())
    }

    /// Writes a new file, syncs it, and has it take the other's name.
    fn replace(&mut self) -> io::Result<()> {
        let name = format!("f{}", self.rng.below(NAMES));
        let content = self.content();
        let path = self.directory.join("tmp");
        if self.ledger.newest("tmp") != State::Absent {
            // What the writer that was interrupted has left.
            self.ledger.may_become("tmp", State::Absent);
            std::fs::remove_file(&path)?;
            File::open(&self.directory)?.sync_all()?;
            self.acknowledged("the directory");
        }
        self.ledger.may_become("tmp", State::New(content));
        let mut file = File::create_new(&path)?;
        file.write_all(&content.bytes())?;
        self.ledger.may_become("tmp", State::Whole(content));
        file.sync_all()?;
        self.acknowledged("tmp");
        self.ledger.may_become(&name, State::Whole(content));
        self.ledger.may_become("tmp", State::Absent);
        std::fs::rename(&path, self.directory.join(&name))?;
        if self.rng.below(2) == 0 {
            File::open(&self.directory)?.sync_all()?;
            self.acknowledged("the directory");
        } else {
            // Also a file's own sync makes its name durable.
            file.sync_all()?;
            self.acknowledged(&name);
        }
        Ok(())
    }

    fn remove(&mut self) -> io::Result<()> {
        let Some(name) = self.any_file() else {
            return Ok(());
        };
        self.ledger.may_become(&name, State::Absent);
        std::fs::remove_file(self.directory.join(&name))?;
        File::open(&self.directory)?.sync_all()?;
        self.acknowledged("the directory");
        Ok(())
    }

    /// Moves a file to a free name.
    fn rename(&mut self) -> io::Result<()> {
        let to = format!("f{}", self.rng.below(NAMES));
        let Some(from) = self.any_file() else {
            return Ok(());
        };
        if self.ledger.newest(&to) != State::Absent {
            return Ok(());
        }
        let state = self.ledger.newest(&from);
        self.ledger.may_become(&to, state);
        self.ledger.may_become(&from, State::Absent);
        std::fs::rename(self.directory.join(&from), self.directory.join(&to))?;
        File::open(&self.directory)?.sync_all()?;
        self.acknowledged("the directory");
        Ok(())
    }

    /// Appends to a file a few times, and syncs now and then.
    fn append(&mut self) -> io::Result<()> {
        let name = format!("log{}", self.rng.below(LOGS));
        let path = self.directory.join(&name);
        let (id, mut len) = match self.ledger.newest(&name) {
            State::Growing(content, least) if least <= LOG_BYTES_MAX => (content.id, least),
            State::Absent => (self.rng.next(), 0),
            _ => {
                self.ledger.may_become(&name, State::Absent);
                std::fs::remove_file(&path)?;
                File::open(&self.directory)?.sync_all()?;
                self.acknowledged("the directory");
                return Ok(());
            }
        };
        let durable = len;
        let mut file = OpenOptions::new();
        let file = file.create(true).append(true);
        for _ in 0..1 + self.rng.below(5) {
            let more = 1 + self.rng.below(20 << 10);
            let all = Content {
                id,
                len: len + more,
            };
            self.ledger.may_become(&name, State::Growing(all, durable));
            // Opened and closed each time, as programs that write logs by scripts do.
            let mut file = file.open(&path)?;
            file.write_all(&all.bytes()[len as usize..])?;
            len += more;
        }
        let all = Content { id, len };
        self.ledger.may_become(&name, State::Growing(all, len));
        File::open(&path)?.sync_all()?;
        self.acknowledged(&name);
        Ok(())
    }

    fn any_file(&mut self) -> Option<String> {
        let mut names = self.ledger.existing();
        names.retain(|name| name.starts_with('f'));
        if names.is_empty() {
            return None;
        }
        Some(names.swap_remove(self.rng.below(names.len() as u64) as usize))
    }
}
