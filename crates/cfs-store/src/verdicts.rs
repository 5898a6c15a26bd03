//! What is known of single chunks beside where they lie: that one cannot be read, or is shown more often than counted.
//!
//! Readers find out the first and must not wait for a command, so what they have found is kept in memory until the next
//! [`Store::tick`], or the end of the process, makes a command of it. From then on it is in the chunk's record: a later
//! write of equal content, by whatever process, stores it again, and everybody who refers to it has it back.
//!
//! A chunk that lies elsewhere by then is read once more.

use std::collections::BTreeMap;

use cfs_format::table::ChunkRecord;
use cfs_format::{Fingerprint, SegmentId};

use crate::error::{ReadError, WriteError};
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
    /// Notes whether what `record` points to can be opened, instead of what was noted before.
    pub fn reach(&self, fingerprint: Fingerprint, record: &ChunkRecord, is_damaged: bool) {
        let mut waiting = self.waiting.lock();
        if record.is_bad() == is_damaged || record.is_lost() {
            waiting.remove(&fingerprint);
        } else if waiting.len() < WAITING_MAX || waiting.contains_key(&fingerprint) {
            let place = place(record);
            waiting.insert(fingerprint, Verdict { place, is_damaged });
        }
    }

    /// The chunk has content that is known to be sound.
    pub fn forget(&self, fingerprint: &Fingerprint) {
        self.waiting.lock().remove(fingerprint);
    }

    /// Whether the content that `record` points to may not be there, by all that is known.
    pub fn is_bad(&self, fingerprint: &Fingerprint, record: &ChunkRecord) -> bool {
        let waiting = self.waiting.lock();
        match waiting.get(fingerprint) {
            Some(verdict) if verdict.is_damaged => true,
            Some(verdict) if verdict.place == place(record) => false,
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

    fn first(&self) -> Vec<(Fingerprint, Verdict)> {
        let waiting = self.waiting.lock();
        let first = waiting.iter().take(BATCH);
        first.map(|(it, verdict)| (*it, *verdict)).collect()
    }

    /// Takes away what has become of a command, unless it has been replaced since.
    fn settle(&self, settled: &[(Fingerprint, Verdict)]) {
        let mut waiting = self.waiting.lock();
        for (fingerprint, verdict) in settled {
            if waiting.get(fingerprint) == Some(verdict) {
                waiting.remove(fingerprint);
            }
        }
    }
}

impl Store {
    /// Makes commands of the verdicts that wait. One that a damaged table stands in the way of is given up.
    ///
    /// # Errors
    /// The pool is read-only; the verdicts go on waiting.
    pub(crate) fn keep_verdicts(&self) -> Result<(), WriteError> {
        loop {
            let batch = self.verdicts.first();
            if batch.is_empty() {
                return Ok(());
            }
            self.pool.writable()?;
            // What has to be read is read before others wait for it.
            let mut current = Vec::with_capacity(batch.len());
            for (fingerprint, verdict) in &batch {
                match self.current_verdict(fingerprint, *verdict) {
                    Ok(Some(verdict)) => current.push((*fingerprint, verdict)),
                    Ok(None) => {}
                    Err(error) => tracing::warn!(%fingerprint, %error, "a chunk is not marked"),
                }
            }
            let mut txn = self.begin();
            let mut judged = Vec::new();
            for (fingerprint, verdict) in current {
                let (segment, offset) = verdict.place;
                match txn.chunk_judge(&fingerprint, verdict.place, verdict.is_damaged) {
                    Ok(true) => judged.push((fingerprint, segment, offset, verdict.is_damaged)),
                    Ok(false) => {}
                    Err(error) => tracing::warn!(%fingerprint, %error, "a chunk is not marked"),
                }
            }
            match judged.is_empty() {
                true => drop(txn),
                false => drop(txn.commit_store(&StoreCommand::Judge(judged).encode())?),
            }
            self.verdicts.settle(&batch);
        }
    }

    /// The verdict for where the chunk lies now; none when it is gone.
    fn current_verdict(
        &self,
        fingerprint: &Fingerprint,
        verdict: Verdict,
    ) -> Result<Option<Verdict>, ReadError> {
        let Some(record) = self.chunk_record(fingerprint)? else {
            return Ok(None);
        };
        if place(&record) == verdict.place {
            return Ok(Some(verdict));
        }
        let is_damaged = self
            .read_chunk_at(fingerprint, &record, &mut Vec::new())
            .is_err();
        Ok(Some(Verdict {
            place: place(&record),
            is_damaged,
        }))
    }

    /// More extents show these chunks than are counted: they stay in the index whatever their count, until a recount
    /// finds that no extent shows them. Those that a damaged table stands in the way of are left out, and logged.
    ///
    /// # Errors
    /// The pool is read-only; some may not be marked then.
    pub fn dispute(&self, fingerprints: &[Fingerprint]) -> Result<(), WriteError> {
        for batch in fingerprints.chunks(BATCH) {
            let unread = |fingerprint: &Fingerprint, error: ReadError| {
                tracing::warn!(%fingerprint, %error, "a chunk is not marked");
            };
            // What has to be read is read before others wait for it.
            for fingerprint in batch {
                if let Err(error) = self.chunk_record(fingerprint) {
                    unread(fingerprint, error);
                }
            }
            let mut txn = self.begin();
            let mut marked = Vec::new();
            for fingerprint in batch {
                match txn.chunk_dispute(fingerprint) {
                    Ok(true) => marked.push(*fingerprint),
                    Ok(false) => {}
                    Err(error) => unread(fingerprint, error),
                }
            }
            if !marked.is_empty() {
                txn.commit_store(&StoreCommand::Dispute(marked).encode())?;
            }
        }
        Ok(())
    }
}
