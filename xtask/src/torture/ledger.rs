//! What every name of one writer may hold.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use parking_lot::Mutex;

use crate::workload::Random;

/// Content that can be made again from two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub id: u64,
    pub len: u64,
}

impl Content {
    /// The bytes. Those of a longer content with the same number begin with them.
    pub fn bytes(self) -> Vec<u8> {
        let mut rng = Random::new(self.id);
        let shrinks = self.id.is_multiple_of(2);
        let mut bytes = Vec::with_capacity(self.len as usize + 8);
        while (bytes.len() as u64) < self.len {
            let word = rng.next()
                & if shrinks {
                    0x0101_0101_0101_0101
                } else {
                    u64::MAX
                };
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.truncate(self.len as usize);
        bytes
    }
}

/// What a name may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// There is no such name.
    Absent,
    /// Exactly this.
    Whole(Content),
    /// The beginning of this, at least so many bytes.
    Growing(Content, u64),
    /// It has just been made: nothing yet, or any part of what is being written.
    New(Content),
}

impl State {
    fn allows(&self, found: Option<&[u8]>) -> bool {
        match (self, found) {
            (Self::Absent, None) => true,
            (Self::Whole(content), Some(found)) => {
                found.len() as u64 == content.len && found == content.bytes()
            }
            (Self::Growing(content, least), Some(found)) => {
                found.len() as u64 >= *least && content.bytes().starts_with(found)
            }
            // A file that is written for the first time may have holes.
            (Self::New(content), Some(found)) => {
                let bytes = content.bytes();
                found.len() <= bytes.len()
                    && found
                        .iter()
                        .zip(&bytes)
                        .all(|(found, byte)| found == byte || *found == 0)
            }
            _ => false,
        }
    }
}

/// What the names in one directory may hold; the newest last.
pub(crate) struct Ledger {
    pub directory: String,
    names: BTreeMap<String, Vec<State>>,
    log: Arc<Mutex<File>>,
}

impl Ledger {
    pub fn new(directory: String, log: Arc<Mutex<File>>) -> Self {
        Self {
            directory,
            names: BTreeMap::new(),
            log,
        }
    }

    fn log(&self, text: &str) {
        // A ledger that cannot be written is one less thing to look at after a failure, and no reason for one.
        let _ = writeln!(self.log.lock(), "{} {text}", self.directory);
    }

    /// The newest state of a name.
    pub fn newest(&self, name: &str) -> State {
        let states = self.names.get(name);
        states
            .and_then(|states| states.last())
            .map_or(State::Absent, State::clone)
    }

    pub fn existing(&self) -> Vec<String> {
        let exists =
            |states: &Vec<State>| states.last().is_some_and(|state| *state != State::Absent);
        let names = self.names.iter().filter(|(_, states)| exists(states));
        names.map(|(name, _)| name.clone()).collect()
    }

    /// Something is about to be done that can lead to this.
    pub fn may_become(&mut self, name: &str, state: State) {
        self.log(&format!("{name} may become {state:?}"));
        self.names
            .entry(name.to_owned())
            .or_insert_with(|| vec![State::Absent])
            .push(state);
    }

    /// What was done last to a name was done: later operations do not see what was before, a crash may.
    pub fn acknowledge(&mut self, what: &str) {
        self.log(&format!("acknowledged: {what}"));
        for states in self.names.values_mut() {
            let newest = states.pop().expect("never empty");
            *states = vec![newest];
        }
        self.names.retain(|_, states| states[0] != State::Absent);
    }

    /// Compares with what is there, which is taken to be durable from then on.
    ///
    /// # Errors
    /// What the ledger contradicts.
    pub fn compare(&mut self, mnt: &Path) -> anyhow::Result<()> {
        let directory = mnt.join(&self.directory);
        if self.names.is_empty() {
            std::fs::create_dir_all(&directory)?;
        }
        let mut found: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for entry in std::fs::read_dir(&directory)
            .with_context(|| format!("reading {}", directory.display()))?
        {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let content = std::fs::read(entry.path())
                .with_context(|| format!("reading {}", entry.path().display()))?;
            ensure!(
                found.insert(name.clone(), content).is_none(),
                "{name} is listed twice in {}",
                directory.display()
            );
        }
        if let Some(name) = found.keys().find(|name| !self.names.contains_key(*name)) {
            bail!("{}/{name} should not be there", self.directory);
        }
        for (name, states) in &mut self.names {
            let content = found.get(name).map(Vec::as_slice);
            let Some(state) = states.iter().rev().find(|state| state.allows(content)) else {
                bail!(
                    "{}/{name} is {}, and could be {states:?}",
                    self.directory,
                    match content {
                        None => "missing".to_owned(),
                        Some(content) => format!("{} bytes", content.len()),
                    }
                );
            };
            let len = content.map_or(0, <[u8]>::len) as u64;
            let settled = match state {
                State::Growing(content, _) => State::Growing(*content, len),
                state => state.clone(),
            };
            *states = vec![settled];
        }
        self.names.retain(|_, states| states[0] != State::Absent);
        self.log("compared");
        Ok(())
    }
}
