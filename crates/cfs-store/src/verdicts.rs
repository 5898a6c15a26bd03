//! What is known of single chunks beside where they lie: that one cannot be read, or is shown more often than counted.
//!
//! Readers find out the first and must not wait for a command, so what they have found is kept in memory until the next
//! [`Store::tick`], or the end of the process, makes a command of it. From then on it is in the chunk's record: a later
//! write of equal content, by whatever process, stores it again, and everybody who refers to it has it back.
//!
//! Invariant: a verdict names the place it was reached at. It has no effect once the chunk lies elsewhere.

use std::collections::BTreeMap;

use cfs_format::table::ChunkRecord;
use cfs_format::{Fingerprint, SegmentId};

use crate::error::WriteError;
use crate::reclaim::StoreCommand;
use crate::store::Store;
use crate::sync::Mutex;

/// Verdicts in one command.
const BATCH: usize = 500;
/// Verdicts that wait at most, 4 MiB of them; those beyond are reached again by the next reader.
const WAITING_MAX: usize = 1 << 16;

/// Whether the record at a place can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Verdict {
    place: (SegmentId, u32),
    is_damaged: bool,
}

/// Those that no command has yet.
#[derive(Default)]
pub(crate) struct Verdicts {
    waiting: Mutex<BTreeMap<Fingerprint, Verdict>>,
}

fn place(record: &ChunkRecord) -> (SegmentId, u32) {
    (SegmentId(record.segment.get()), record.offset.get())
}

impl Verdicts {
    /// Notes whether what `record` points to can be opened. What the record says already is not noted again.
    pub fn reach(&self, fingerprint: Fingerprint, record: &ChunkRecord, is_damaged: bool) {
        if record.is_bad() == is_damaged || record.is_lost() {
            return;
        }
        let mut waiting = self.waiting.lock();
        if waiting.len() < WAITING_MAX {
            let place = place(record);
            waiting.insert(fingerprint, Verdict { place, is_damaged });
        }
    }

    /// Whether the content that `record` points to is known not to be there.
    pub fn is_bad(&self, fingerprint: &Fingerprint, record: &ChunkRecord) -> bool {
        let waiting = self.waiting.lock();
        match waiting.get(fingerprint) {
            Some(verdict) if verdict.place == place(record) => verdict.is_damaged,
            _ => record.is_bad(),
        }
    }

    /// Chunks found damaged less those found sound, as against what the records say.
    pub fn difference(&self) -> i64 {
        let waiting = self.waiting.lock();
        waiting
            .values()
            .map(|verdict| if verdict.is_damaged { 1 } else { -1 })
            .sum()
    }
}

impl Store {
    /// Makes commands of the verdicts that wait.
    ///
    /// # Errors
    /// The pool is read-only, or a table cannot be read; the verdicts go on waiting.
    pub(crate) fn keep_verdicts(&self) -> Result<(), WriteError> {
        loop {
            let batch: Vec<(Fingerprint, Verdict)> = {
                let waiting = self.verdicts.waiting.lock();
                let first = waiting.iter().take(BATCH);
                first.map(|(it, verdict)| (*it, *verdict)).collect()
            };
            if batch.is_empty() {
                return Ok(());
            }
            // What has to be read is read before others wait for it.
            for (fingerprint, _) in &batch {
                self.chunk_record(fingerprint)?;
            }
            let mut txn = self.begin();
            let mut judged = Vec::new();
            for (fingerprint, verdict) in &batch {
                if txn.chunk_judge(fingerprint, verdict.place, verdict.is_damaged)? {
                    let (segment, offset) = verdict.place;
                    judged.push((*fingerprint, segment, offset, verdict.is_damaged));
                }
            }
            match judged.is_empty() {
                true => drop(txn),
                false => drop(txn.commit_store(&StoreCommand::Judge(judged).encode())?),
            }
            let mut waiting = self.verdicts.waiting.lock();
            for (fingerprint, verdict) in &batch {
                if waiting.get(fingerprint) == Some(verdict) {
                    waiting.remove(fingerprint);
                }
            }
        }
    }

    /// More extents show these chunks than are counted: they stay in the index whatever their count, until a recount
    /// finds that no extent shows them.
    ///
    /// # Errors
    /// The pool is read-only, or a table cannot be read; some may not be marked then.
    pub fn dispute(&self, fingerprints: &[Fingerprint]) -> Result<(), WriteError> {
        for batch in fingerprints.chunks(BATCH) {
            let mut txn = self.begin();
            let mut marked = Vec::new();
            for fingerprint in batch {
                if txn.chunk_dispute(fingerprint)? {
                    marked.push(*fingerprint);
                }
            }
            if !marked.is_empty() {
                txn.commit_store(&StoreCommand::Dispute(marked).encode())?;
            }
        }
        Ok(())
    }
}
