//! Reclaim: chunks without references leave the index; segments with little left in them are emptied.
//!
//! Both are commands in the log. A segment becomes free when nothing in it is live or pinned and a checkpoint after
//! that is durable (see `space`). A reader that looked a chunk up before it was moved finds bytes that do not verify,
//! looks again, and finds the new place.

use cfs_format::segment::{RECORD_OVERHEAD, Stream};
use cfs_format::table::{split_key, system_key, tag};
use cfs_format::{Fingerprint, SEGMENT_BYTES, SegmentId};
use cfs_seal::chunk::{RecordPlace, open_record_header};
use serde::{Deserialize, Serialize};

use crate::chunks::NewChunk;
use crate::error::{ReadError, WriteError};
use crate::open::ReplayError;
use crate::space::State;
use crate::store::Store;
use crate::txn::Txn;

/// Chunks dropped in one command.
const DROP_BATCH: usize = 1000;
/// Segments that are emptied in one tick, unless space is short.
const CLEAN_SEGMENTS: usize = 2;
/// Dead bytes that are left alone, beside a tenth of what is live.
const DEAD_BYTES_KEPT: u64 = 4 * SEGMENT_BYTES as u64;

/// Commands of the store itself.
#[derive(Serialize, Deserialize)]
pub(crate) enum StoreCommand {
    /// These chunks leave the index.
    Drop(Vec<Fingerprint>),
    /// These chunks lie elsewhere now; the second and third field are where they lay.
    Move(Vec<(NewChunk, SegmentId, u32)>),
}

impl StoreCommand {
    fn encode(&self) -> Vec<u8> {
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
        }
        Ok(())
    }

    /// Takes a batch of chunks that nothing references out of the index. True when there were any.
    ///
    /// # Errors
    /// The pool is read-only, or a table cannot be read.
    pub(crate) fn drop_dead_chunks(&self) -> Result<bool, WriteError> {
        let lo = system_key(tag::DEAD_CHUNK, &[]);
        let hi = system_key(tag::DEAD_CHUNK + 1, &[]);
        let mut candidates = Vec::new();
        for row in self.range(&lo, &hi).take(DROP_BATCH) {
            let (key, _) = row?;
            let fingerprint = split_key(&key)
                .ok()
                .and_then(|(_, _, suffix)| <[u8; 32]>::try_from(suffix).ok())
                .ok_or(ReadError::Record { what: "dead chunk" })?;
            candidates.push(Fingerprint(fingerprint));
        }
        if candidates.is_empty() {
            return Ok(false);
        }
        let mut txn = self.begin();
        self.pins.exclude(|is_pinned| {
            let mut dropped = Vec::new();
            for fingerprint in candidates {
                if !is_pinned(&fingerprint) && txn.chunk_drop(&fingerprint)? {
                    dropped.push(fingerprint);
                }
            }
            if dropped.is_empty() {
                return Ok(false);
            }
            txn.commit_store(&StoreCommand::Drop(dropped).encode())?;
            Ok(true)
        })
    }

    /// Empties a few segments that hold little, if enough is dead in all.
    ///
    /// # Errors
    /// No space, or the pool is read-only.
    pub(crate) fn clean_segments(&self) -> Result<usize, WriteError> {
        let mut cleaned = 0;
        for _ in 0..CLEAN_SEGMENTS {
            let Some(segment) = self.segment_to_clean() else {
                break;
            };
            if !self.clean_segment(segment)? {
                break;
            }
            cleaned += 1;
        }
        Ok(cleaned)
    }

    /// The full data segment with the best ratio of benefit to cost, `(1 - u) / (1 + u)` with `u` the live part
    /// (Rosenblum and Ousterhout, SOSP '91); none while little is dead.
    fn segment_to_clean(&self) -> Option<SegmentId> {
        let space = self.pool.space.lock();
        let (mut live, mut used) = (0, 0);
        let mut best: Option<(u32, SegmentId)> = None;
        for (segment, entry) in space.entries() {
            if !matches!(entry.state, State::Full(Stream::Data | Stream::ColdData)) {
                continue;
            }
            live += u64::from(entry.live_bytes);
            used += u64::from(entry.used_bytes);
            if entry.pins == 0
                && entry.live_bytes > 0
                && best.is_none_or(|(live_bytes, _)| entry.live_bytes < live_bytes)
            {
                best = Some((entry.live_bytes, segment));
            }
        }
        let dead = used.saturating_sub(live);
        let (live_bytes, segment) = best?;
        (dead > DEAD_BYTES_KEPT + live / 10 && live_bytes < SEGMENT_BYTES / 10 * 9)
            .then_some(segment)
    }

    /// Moves what is live in a segment to the cold lane. False when something in it could not be read: it is left
    /// as it is then.
    fn clean_segment(&self, segment: SegmentId) -> Result<bool, WriteError> {
        let Some(seq) = self.pool.space.lock().seq(segment) else {
            return Ok(false);
        };
        let mut content = vec![0; SEGMENT_BYTES as usize];
        if let Err(error) = self.pool.device.read_at(segment, 0, &mut content) {
            tracing::warn!(%error, ?segment, "a segment cannot be read for compaction");
            return Ok(false);
        }
        let mut moves = Vec::new();
        for entry in self.records_in(seq, &content) {
            let fingerprint = Fingerprint(entry.header.fingerprint);
            let Some(record) = self.chunk_record(&fingerprint)? else {
                continue;
            };
            if (record.segment.get(), record.offset.get()) != (segment.0, entry.offset) {
                continue;
            }
            let header = entry.header;
            let record_len = RECORD_OVERHEAD + header.payload_len.get();
            let start = entry.offset as usize + cfs_seal::chunk::RECORD_HEAD_BYTES;
            let payload = &content[start..entry.offset as usize + record_len as usize];
            let placed = self
                .lanes
                .append(self.lanes.cold_lane(), &header, payload)?;
            let to = NewChunk {
                fingerprint,
                segment: placed.segment,
                seq: placed.seq,
                offset: placed.offset,
                record_len,
                raw_len: header.raw_len.get(),
                domain: cfs_format::DomainId(header.domain.get()),
                codec: header.codec,
            };
            moves.push((to, segment, entry.offset));
        }
        let mut txn = self.begin();
        let mut result = Ok(());
        for (to, segment, offset) in &moves {
            if let Err(error) = txn.chunk_move(&to.fingerprint, (*segment, *offset), to) {
                result = Err(error);
                break;
            }
        }
        let targets: Vec<SegmentId> = moves.iter().map(|(to, _, _)| to.segment).collect();
        let result = match result {
            Ok(()) if moves.is_empty() => Ok(()),
            Ok(()) => txn
                .commit_store(&StoreCommand::Move(moves).encode())
                .map(|_| ()),
            Err(error) => Err(error.into()),
        };
        let mut space = self.pool.space.lock();
        for target in targets {
            space.unpin(target);
        }
        drop(space);
        result?;
        let left = self
            .pool
            .space
            .lock()
            .entry(segment)
            .map_or(0, |entry| entry.live_bytes);
        if left > 0 {
            tracing::warn!(
                ?segment,
                left,
                "a segment still counts live bytes after compaction"
            );
        }
        Ok(left == 0)
    }

    /// The records of a data segment whose headers verify, found by walking it.
    pub(crate) fn records_in(
        &self,
        seq: cfs_format::SegmentSeq,
        content: &[u8],
    ) -> Vec<FoundRecord> {
        let mut found = Vec::new();
        let mut offset = cfs_format::BLOCK_BYTES;
        while (offset as usize) < content.len() {
            let place = RecordPlace { seq, offset };
            match open_record_header(
                &content[offset as usize..],
                place,
                &self.pool.ciphers.record_header,
            ) {
                Ok(header) => {
                    let len = RECORD_OVERHEAD + header.payload_len.get();
                    if offset as usize + len as usize > content.len() {
                        break;
                    }
                    found.push(FoundRecord { offset, header });
                    offset = (offset + len).next_multiple_of(cfs_format::segment::RECORD_ALIGN);
                }
                // After a flush records go on at the next block; a damaged record is passed over the same way.
                Err(_) => {
                    offset = (offset + 1).next_multiple_of(cfs_format::BLOCK_BYTES);
                }
            }
        }
        found
    }
}

/// A record in a data segment.
pub(crate) struct FoundRecord {
    pub offset: u32,
    pub header: cfs_format::segment::RecordHeader,
}
