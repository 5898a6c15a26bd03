//! Reclaim: chunks without references leave the index; segments with little left in them are emptied.
//!
//! Both are commands in the log. A segment becomes free when nothing in it is live or pinned and a checkpoint after
//! that is durable (see `space`). A reader that looked a chunk up before it was moved finds bytes that do not verify,
//! looks again, and finds the new place.

use std::collections::BTreeSet;

use cfs_format::segment::{RECORD_ALIGN, RECORD_OVERHEAD, Stream};
use cfs_format::table::{split_key, system_key, tag};
use cfs_format::{Fingerprint, SEGMENT_BYTES, SegmentId, SegmentSeq};
use cfs_kv::RunError;
use cfs_seal::chunk::{RecordPlace, open_record_header, peek_record_len};
use serde::{Deserialize, Serialize};

use crate::chunks::NewChunk;
use crate::error::{ReadError, WriteError};
use crate::open::ReplayError;
use crate::space::State;
use crate::store::Store;
use crate::txn::Txn;

/// Chunks dropped in one command.
const DROP_BATCH: usize = 1000;
/// Segments that are emptied in one tick.
const CLEAN_SEGMENTS: usize = 2;
/// Segments that are emptied between two checkpoints by who waits for room.
const CLEAN_SEGMENTS_FOR_ROOM: usize = 24;
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

    /// Empties a few segments that hold little, if enough is dead in all; when room `is_low`, little is enough.
    ///
    /// # Errors
    /// No space, or the pool is read-only.
    pub(crate) fn clean_segments(&self, is_low: bool) -> Result<(), WriteError> {
        match is_low {
            true => self.clean_up_to(4 * CLEAN_SEGMENTS, SEGMENT_BYTES.into(), 50),
            false => self.clean_up_to(CLEAN_SEGMENTS, DEAD_BYTES_KEPT, 10),
        }
        .map(drop)
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
            let cleaned = match self.clean_up_to(CLEAN_SEGMENTS_FOR_ROOM, bytes, u64::MAX) {
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
            return Ok(());
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

    /// Empties up to `count` segments while more than `dead_kept` bytes and one `share`th of the live ones are dead.
    fn clean_up_to(&self, count: usize, dead_kept: u64, share: u64) -> Result<usize, WriteError> {
        let mut cleaned = 0;
        for _ in 0..count {
            let stuck = self.maintenance.lock().stuck_segments.clone();
            let Some(segment) = self.segment_to_clean(&stuck, dead_kept, share) else {
                break;
            };
            if self.clean_segment(segment)? {
                cleaned += 1;
            } else {
                self.maintenance.lock().stuck_segments.insert(segment);
            }
        }
        Ok(cleaned)
    }

    /// The full data segment with the best ratio of benefit to cost, `(1 - u) / (1 + u)` with `u` the live part
    /// (Rosenblum and Ousterhout, SOSP '91); none while little is dead.
    fn segment_to_clean(
        &self,
        stuck: &BTreeSet<SegmentId>,
        dead_kept: u64,
        share: u64,
    ) -> Option<SegmentId> {
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
                && !stuck.contains(&segment)
                && best.is_none_or(|(live_bytes, _)| entry.live_bytes < live_bytes)
            {
                best = Some((entry.live_bytes, segment));
            }
        }
        let dead = used.saturating_sub(live);
        let (live_bytes, segment) = best?;
        (dead > dead_kept + live / share && live_bytes < SEGMENT_BYTES / 10 * 9).then_some(segment)
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
        let copied = self.copy_live(segment, seq, &content, &mut moves);
        let targets: Vec<SegmentId> = moves.iter().map(|(to, _, _)| to.segment).collect();
        let moved = copied.and_then(|()| self.move_chunks(moves));
        let left = {
            let mut space = self.pool.space.lock();
            for target in targets {
                space.unpin(target);
            }
            space.entry(segment).map_or(0, |entry| entry.live_bytes)
        };
        moved?;
        if left > 0 {
            tracing::warn!(
                ?segment,
                left,
                "a segment still counts live bytes after compaction"
            );
        }
        Ok(left == 0)
    }

    /// Copies the live records of a segment to the cold lane, whose segments are pinned once for each.
    fn copy_live(
        &self,
        segment: SegmentId,
        seq: SegmentSeq,
        content: &[u8],
        moves: &mut Vec<(NewChunk, SegmentId, u32)>,
    ) -> Result<(), WriteError> {
        for entry in self.records_in(seq, content) {
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

    /// The records of a data segment whose headers verify, found by walking it.
    pub(crate) fn records_in(&self, seq: SegmentSeq, content: &[u8]) -> Vec<FoundRecord> {
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
                    offset = (offset + len).next_multiple_of(RECORD_ALIGN);
                }
                // A record whose header is damaged still tells its length; after a flush records go on at the next
                // block.
                Err(_) => {
                    let len = peek_record_len(&content[offset as usize..]).unwrap_or(0);
                    let next =
                        offset as usize + (len as usize).next_multiple_of(RECORD_ALIGN as usize);
                    offset = if len > 0 && next < content.len() {
                        next as u32
                    } else {
                        (offset + 1).next_multiple_of(cfs_format::BLOCK_BYTES)
                    };
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

impl FoundRecord {
    /// What the index has of it, without references.
    pub fn chunk_record(&self, segment: SegmentId) -> cfs_format::table::ChunkRecord {
        cfs_format::table::ChunkRecord {
            segment: segment.0.into(),
            offset: self.offset.into(),
            record_len: (RECORD_OVERHEAD + self.header.payload_len.get()).into(),
            raw_len: self.header.raw_len,
            refs: 0.into(),
            domain: self.header.domain,
            codec: self.header.codec,
            reserved: 0,
        }
    }
}
