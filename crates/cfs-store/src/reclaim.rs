//! Reclaim: chunks without references leave the index, and what they and compaction (see `clean`) leave behind becomes
//! room again.
//!
//! Dropping and moving chunks are commands in the log. A segment becomes free when nothing in it is live or pinned and a checkpoint after
//! that is durable (see `space`). A reader that looked a chunk up before it was moved finds bytes that do not verify,
//! looks again, and finds the new place.

use cfs_format::table::{RecountRecord, split_key, system_key, tag};
use cfs_format::{Fingerprint, SegmentId};
use cfs_kv::RunError;
use serde::{Deserialize, Serialize};

use crate::chunks::NewChunk;
use crate::clean::Aim;
use crate::error::{ReadError, WriteError};
use crate::open::ReplayError;
use crate::store::Store;
use crate::txn::Txn;

/// Chunks dropped in one command.
const DROP_BATCH: usize = 500;
/// Segments that are emptied between two checkpoints by who waits for room.
const CLEAN_SEGMENTS_FOR_ROOM: usize = 24;

/// What becomes of chunks that more extents showed than were counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Disputed {
    Stay,
    /// A recount has found that no extent shows them any more.
    Go,
}

/// Commands of the store itself.
#[derive(Serialize, Deserialize)]
pub(crate) enum StoreCommand {
    /// These chunks leave the index.
    Drop(Vec<Fingerprint>),
    /// These chunks lie elsewhere now; the second and third field are where they lay.
    Move(Vec<(NewChunk, SegmentId, u32)>),
    /// Sound content of a chunk that could not be read lies here.
    Replace(NewChunk),
    /// Whether the record of a chunk at this place is damaged.
    Judge(Vec<(Fingerprint, SegmentId, u32, bool)>),
    /// These chunks are shown more often than counted.
    Dispute(Vec<Fingerprint>),
}

impl StoreCommand {
    pub(crate) fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("a command can be encoded")
    }
}

impl Store {
    pub(crate) fn apply_store_command(
        &self,
        txn: &mut Txn<'_>,
        command: &[u8],
    ) -> Result<(), ReplayError> {
        let command: StoreCommand = postcard::from_bytes(command)
            .map_err(|error| ReplayError::Other(format!("store command: {error}")))?;
        match command {
            StoreCommand::Drop(fingerprints) => {
                for fingerprint in fingerprints {
                    if !txn.chunk_drop(&fingerprint)? {
                        return Err(ReplayError::Other(format!(
                            "chunk {fingerprint} is dropped although it is referenced or unknown"
                        )));
                    }
                }
            }
            StoreCommand::Move(moves) => {
                for (to, segment, offset) in moves {
                    txn.chunk_move(&to.fingerprint, (segment, offset), &to)?;
                }
            }
            StoreCommand::Replace(to) => {
                txn.chunk_replace(&to)?;
            }
            StoreCommand::Judge(verdicts) => {
                for (fingerprint, segment, offset, is_damaged) in verdicts {
                    txn.chunk_judge(&fingerprint, (segment, offset), is_damaged)?;
                }
            }
            StoreCommand::Dispute(fingerprints) => {
                for fingerprint in fingerprints {
                    txn.chunk_dispute(&fingerprint)?;
                }
            }
        }
        Ok(())
    }

    /// Chunks that nothing references and that are in the index, up to `count`.
    pub(crate) fn dead_chunks(&self, count: usize) -> Result<Vec<Fingerprint>, ReadError> {
        let lo = system_key(tag::DEAD_CHUNK, &[]);
        let hi = system_key(tag::DEAD_CHUNK + 1, &[]);
        let fingerprint = |key: &[u8]| {
            let (_, _, suffix) = split_key(key).ok()?;
            Some(Fingerprint(<[u8; 32]>::try_from(suffix).ok()?))
        };
        let rows = self.range(&lo, &hi).map(|row| {
            let (key, _) = row?;
            fingerprint(&key).ok_or(ReadError::Record { what: "dead chunk" })
        });
        rows.take(count).collect()
    }

    /// Drops chunks that neither a count nor an extent refers to and that are not listed to be dropped, if that is still
    /// so. How many it were.
    ///
    /// # Errors
    /// The pool is read-only, or a table cannot be read.
    pub fn drop_unlisted(&self, fingerprints: Vec<Fingerprint>) -> Result<u64, WriteError> {
        let mut dropped = 0;
        for batch in fingerprints.chunks(DROP_BATCH) {
            dropped += self.drop_chunks(batch.to_vec(), Disputed::Go)?;
        }
        Ok(dropped)
    }

    /// What the last recount has found; all zero when there was none.
    #[must_use]
    pub fn recount_record(&self) -> RecountRecord {
        self.writer.lock().recount
    }

    /// Keeps what a recount has found, from the next checkpoint on durably. Views of the tables that it has used are to be
    /// dropped before, since that checkpoint frees what only they have held.
    pub fn set_recount_record(&self, record: RecountRecord) {
        self.maintenance.lock().has_merged = true;
        self.writer.lock().recount = record;
    }

    /// Takes a batch of chunks that nothing references out of the index. True when there were any.
    ///
    /// # Errors
    /// The pool is read-only, or a table cannot be read.
    pub(crate) fn drop_dead_chunks(&self) -> Result<bool, WriteError> {
        let candidates = self.dead_chunks(DROP_BATCH)?;
        if candidates.is_empty() {
            return Ok(false);
        }
        // What has to be read is read before others wait for it.
        for fingerprint in &candidates {
            self.chunk_record(fingerprint)?;
        }
        Ok(self.drop_chunks(candidates, Disputed::Stay)? > 0)
    }

    fn drop_chunks(
        &self,
        candidates: Vec<Fingerprint>,
        disputed: Disputed,
    ) -> Result<u64, WriteError> {
        let mut txn = self.begin();
        self.pins.exclude(|is_pinned| {
            let mut dropped = Vec::new();
            for fingerprint in candidates {
                // One may have been disputed since it was listed.
                let stays = disputed == Disputed::Stay && txn.chunk_is_disputed(&fingerprint)?;
                if !stays && !is_pinned(&fingerprint) && txn.chunk_drop(&fingerprint)? {
                    dropped.push(fingerprint);
                }
            }
            if dropped.is_empty() {
                return Ok(0);
            }
            let count = dropped.len() as u64;
            txn.commit_store(&StoreCommand::Drop(dropped).encode())?;
            self.books.lock().totals.dropped_chunks += count;
            Ok(count)
        })
    }

    /// Frees what can be freed until `bytes` could be promised, or nothing more can. True when they could.
    ///
    /// # Errors
    /// The pool is read-only, or a table cannot be read.
    pub fn make_room(&self, bytes: u64) -> Result<bool, WriteError> {
        // Segments alone do not tell: the host may have no room for them.
        let is_enough = || self.admit(bytes).is_ok();
        let _one = self.making_room.lock();
        if is_enough() {
            return Ok(true);
        }
        while self.drop_dead_chunks()? {}
        self.merge_for_room()?;
        loop {
            if self.pool.space.lock().pending_count() > 0 {
                self.checkpoint()?;
            }
            if is_enough() {
                return Ok(true);
            }
            let cleaned = match self.clean_up_to(CLEAN_SEGMENTS_FOR_ROOM, Aim::Room(bytes)) {
                Ok(cleaned) => cleaned,
                Err(WriteError::NoSpace(_)) => 0,
                Err(error) => return Err(error),
            };
            if cleaned == 0 {
                return Ok(false);
            }
        }
    }

    /// Merges what has been removed since the last time out of the tables.
    fn merge_for_room(&self) -> Result<(), WriteError> {
        let mut maintenance = self.maintenance.lock();
        if self.journal().last_lsn() == maintenance.merged_lsn {
            // What was merged since then has taken room, and gives more of it back.
            return match maintenance.has_merged {
                true => self.checkpoint_now(&mut maintenance),
                false => Ok(()),
            };
        }
        self.checkpoint_now(&mut maintenance)?;
        maintenance.merged_lsn = maintenance.checkpoint_lsn;
        loop {
            match self.compact_step(true) {
                Ok(true) => {}
                Ok(false) | Err(RunError::NoSpace) => break,
                Err(error) => return Err(error.into()),
            }
        }
        self.checkpoint_now(&mut maintenance)
    }

    /// Points the index to sound content of a chunk that could not be read.
    pub(crate) fn replace_chunk(&self, to: NewChunk) -> Result<(), WriteError> {
        let mut txn = self.begin();
        if txn.chunk_replace(&to)? {
            txn.commit_store(&StoreCommand::Replace(to).encode())?;
            self.verdicts.forget(&to.fingerprint);
        }
        Ok(())
    }

    /// Points the index to the new places.
    pub(crate) fn move_chunks(
        &self,
        moves: Vec<(NewChunk, SegmentId, u32)>,
    ) -> Result<(), WriteError> {
        if moves.is_empty() {
            return Ok(());
        }
        let mut txn = self.begin();
        for (to, segment, offset) in &moves {
            txn.chunk_move(&to.fingerprint, (*segment, *offset), to)?;
        }
        txn.commit_store(&StoreCommand::Move(moves).encode())
            .map(drop)
    }
}
