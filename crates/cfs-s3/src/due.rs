//! The SHA-256 of objects that are put together by references: computed in the background, when they have been acknowledged.
//!
//! Parts come in any order, so that nothing can be measured on their way; reading all of them before the answer would have the
//! client wait. Which files are due is noted in the root directory before they get their names, so that neither a crash nor
//! the end of the server forgets one. One thread computes, and rests as long as it has worked.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use cfs_format::Ino;
use cfs_fs::{FsError, RecordChange, Room};
use parking_lot::Mutex;
use s3s::S3Result;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, watch};

use crate::errors::from_fs;
use crate::face::{Face, blocking};
use crate::objects::{TRIES, hex};
use crate::records::{self, Content, name};

/// Bytes that are read at a time.
const STEP_BYTES: usize = 1 << 20;

/// Files whose SHA-256 is to be computed, in the order in which they came.
#[derive(Default)]
pub(crate) struct Due {
    waiting: Mutex<VecDeque<Ino>>,
    came: Notify,
}

/// Computes what is due, until `stopped` changes.
pub(crate) async fn compute(face: Arc<Face>, mut stopped: watch::Receiver<bool>) {
    let reading = Arc::clone(&face);
    match blocking(move || reading.left_due()).await {
        Ok(left) => face.due.waiting.lock().extend(left),
        Err(error) => tracing::warn!("what is left without a SHA-256 stays so for now: {error}"),
    }
    loop {
        let next = face.due.waiting.lock().pop_front();
        let Some(ino) = next else {
            tokio::select! {
                () = face.due.came.notified() => continue,
                _ = stopped.wait_for(|is_stopped| *is_stopped) => return,
            }
        };
        let (computing, asked) = (Arc::clone(&face), stopped.clone());
        let computed = blocking(move || {
            computing
                .compute_due(ino, &|| !*asked.borrow())
                .map_err(from_fs)
        });
        if let Err(error) = computed.await {
            tracing::warn!(inode = ino.0, "an object has no SHA-256 for now: {error}");
        }
        if *stopped.borrow() {
            return;
        }
    }
}

fn row(ino: Ino) -> Vec<u8> {
    [name::DUE, format!("{:016x}", ino.0).as_bytes()].concat()
}

/// The file that a row of this name is about.
pub(crate) fn ino_of(row: &[u8]) -> Option<Ino> {
    let digits = str::from_utf8(row.strip_prefix(name::DUE)?).ok()?;
    u64::from_str_radix(digits, 16).ok().map(Ino)
}

impl Face {
    /// Notes that the SHA-256 of a file without a name is due, if its content is to have one and has none. It is durable when
    /// the file has its name.
    ///
    /// # Errors
    /// What the file system refuses.
    pub(crate) fn note_due(&self, ino: Ino, content: &Content) -> S3Result<()> {
        if !content.sha256.is_empty() || content.customer.is_some() {
            return Ok(());
        }
        let change = RecordChange {
            put: vec![(row(ino), Vec::new())],
            ..RecordChange::default()
        };
        self.fs.set_records(Ino::ROOT, change).map_err(from_fs)
    }

    /// Has what was noted computed, whether the file has its name now or goes.
    pub(crate) fn begin_due(&self, ino: Ino, content: &Content) {
        if content.sha256.is_empty() && content.customer.is_none() {
            self.due.waiting.lock().push_back(ino);
            self.due.came.notify_one();
        }
    }

    /// What was due when the pool was opened.
    fn left_due(&self) -> S3Result<Vec<Ino>> {
        let rows = self.fs.records(Ino::ROOT, name::DUE).map_err(from_fs)?;
        Ok(rows.iter().filter_map(|(row, _)| ino_of(row)).collect())
    }

    /// Computes the SHA-256 of a file, and keeps it with what describes its content. What is not finished when `go_on` says no, or
    /// cannot be read or written, stays due.
    fn compute_due(&self, ino: Ino, go_on: &dyn Fn() -> bool) -> Result<(), FsError> {
        let due = match self.known_object(ino) {
            Ok((attr, Some(content))) if content.sha256.is_empty() => Some((attr, content)),
            // Changed, its digests are computed when they are asked for.
            Ok(_) | Err(FsError::NotFound) => None,
            Err(error) => return Err(error),
        };
        if let Some((attr, content)) = due {
            let sha256 = match self.sha256(ino, attr.size, go_on) {
                Ok(Some(sha256)) => sha256,
                Ok(None) => return Ok(()),
                Err(FsError::NotFound) => String::new(),
                Err(error) => return Err(error),
            };
            self.keep_sha256(ino, content, sha256)?;
        }
        let change = RecordChange {
            delete: vec![row(ino)],
            room: Room::Reserve,
            ..RecordChange::default()
        };
        self.fs.set_records(Ino::ROOT, change)
    }

    fn sha256(
        &self,
        ino: Ino,
        size: u64,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Option<String>, FsError> {
        let mut sha256 = Sha256::new();
        let mut step = Vec::new();
        let mut at = 0;
        while at < size {
            let started = Instant::now();
            self.fs.read(ino, at, STEP_BYTES, &mut step)?;
            if step.is_empty() {
                break;
            }
            sha256.update(&step);
            at += step.len() as u64;
            if !go_on() {
                return Ok(None);
            }
            std::thread::sleep(started.elapsed());
        }
        Ok(Some(hex(&sha256.finalize())))
    }

    /// Keeps a SHA-256 with what describes a file, unless that is another by now. Its attributes may be: a version that is put
    /// aside is what it was.
    fn keep_sha256(&self, ino: Ino, known: Content, sha256: String) -> Result<(), FsError> {
        for _ in 0..TRIES {
            let attr = match self.known_object(ino) {
                Ok((attr, Some(content))) if content == known => attr,
                Ok(_) | Err(FsError::NotFound) => return Ok(()),
                Err(error) => return Err(error),
            };
            let content = Content {
                sha256: sha256.clone(),
                ..known.clone()
            };
            let change = RecordChange {
                put: vec![(name::CONTENT.to_vec(), records::encode(&content))],
                describes: Some(attr),
                ..RecordChange::default()
            };
            match self.fs.set_records(ino, change) {
                Err(FsError::Changed) => {}
                Err(FsError::NotFound) => return Ok(()),
                kept => return kept,
            }
        }
        Err(FsError::Changed)
    }
}
