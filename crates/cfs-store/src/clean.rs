//! Compaction: which segments to empty, and emptying them.
//!
//! A segment is chosen by what emptying it gives for what it costs, and by how long it has been left alone (the
//! cost-benefit choice of Rosenblum and Ousterhout, SOSP '91, and of RAMCloud): one that has just lost chunks is likely
//! to lose more, which costs nothing. How much dead weight is left alone depends on who asks: see [`Aim`].
//!
//! Invariants: one thread at a time empties segments, the holder of `Store::cleaning`. A segment that is emptied is not
//! changed; what is live in it is sealed again, under a key that nothing has had before, the index is pointed to that by
//! one command, and the segment becomes free with the checkpoint after that. What does not open is noted as damaged, and
//! stays where it is.

use cfs_format::segment::{RECORD_ALIGN, RECORD_OVERHEAD, RecordHeader, Stream};
use cfs_format::{BLOCK_BYTES, DomainId, Fingerprint, SEGMENT_BYTES, SegmentId, SegmentSeq};
use cfs_seal::chunk::{
    ChunkSealer, OpenChunkError, RecordPlace, open_record_header, peek_record_len,
};
use cfs_seal::codec::Codec;

use crate::chunks::{NewChunk, SealLane};
use crate::error::WriteError;
use crate::pace::Load;
use crate::space::{Entry, State};
use crate::store::Store;

/// Copies are handed to the device in pieces of this many bytes, so that a flush for somebody else finds little of them.
const PIECE_BYTES: u32 = 256 << 10;
/// Segments that are emptied in one tick, at whatever pace, when there is little room.
const SEGMENTS_FOR_LOW_ROOM: usize = 8;
/// A segment counts as left alone for at least and at most so long, seconds.
const AGE_SECONDS: (u64, u64) = (3, 30);

/// What segments are emptied for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aim {
    /// Nobody asks; the pool is in use or idle.
    Upkeep(Load),
    /// There is little room.
    LowRoom,
    /// Somebody waits for so many bytes.
    Room(u64),
    /// Somebody has asked for a pass.
    Pass,
    /// Somebody has asked for everything to be sealed again.
    Reseal(Reseal),
}

/// Sealing again all that was stored before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reseal {
    /// Segments that were filled before this one was, and no others.
    pub before: SegmentSeq,
    /// How to compress it; as it is, if it is not given.
    pub codec: Option<Codec>,
}

/// When segments are worth emptying.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Dead bytes that are left alone, beside a `dead_share`th of what is live.
    dead_kept: u64,
    dead_share: u64,
    /// Percent of what was written to a segment that may be live in it.
    live_percent_max: u64,
    /// Segments that have changed less than so long ago are left alone.
    quiet_ms: u64,
}

const SEGMENT: u64 = SEGMENT_BYTES as u64;

impl Aim {
    /// With what the ends of segments lose, the pool takes 10 % more than what is live at 5 % of dead weight.
    fn limits(self) -> Limits {
        match self {
            Self::Upkeep(Load::Busy) => Limits {
                dead_kept: 4 * SEGMENT,
                dead_share: 10,
                live_percent_max: 85,
                quiet_ms: 5_000,
            },
            Self::Upkeep(Load::Idle) => Limits {
                dead_kept: 2 * SEGMENT,
                dead_share: 25,
                live_percent_max: 95,
                quiet_ms: 2_000,
            },
            Self::LowRoom => Limits {
                dead_kept: SEGMENT,
                dead_share: 50,
                live_percent_max: 90,
                quiet_ms: 0,
            },
            Self::Room(bytes) => Limits {
                dead_kept: bytes,
                dead_share: u64::MAX,
                live_percent_max: 90,
                quiet_ms: 0,
            },
            Self::Pass => Limits {
                dead_kept: 0,
                dead_share: u64::MAX,
                live_percent_max: 95,
                quiet_ms: 0,
            },
            // How much of a segment is live makes no difference.
            Self::Reseal(_) => Limits {
                dead_kept: 0,
                dead_share: u64::MAX,
                live_percent_max: 101,
                quiet_ms: 0,
            },
        }
    }
}

/// Whether this segment can be emptied by copying at all.
fn is_candidate(entry: &Entry) -> bool {
    matches!(entry.state, State::Full(Stream::Data | Stream::ColdData))
        && entry.pins == 0
        && entry.live_bytes > 0
}

/// Whether emptying it is worth it for this aim, were it not for others.
pub(crate) fn is_worthwhile(entry: &Entry, aim: Aim) -> bool {
    is_candidate(entry) && is_wanted(entry, aim) && is_empty_enough(entry, &aim.limits())
}

fn is_wanted(entry: &Entry, aim: Aim) -> bool {
    !matches!(aim, Aim::Reseal(reseal) if entry.seq >= reseal.before)
}

fn is_empty_enough(entry: &Entry, limits: &Limits) -> bool {
    u64::from(entry.live_bytes) * 100 < u64::from(entry.used_bytes) * limits.live_percent_max
}

/// Benefit by cost, `(1 - u) age / (1 + u)` with `u` the live part of the segment.
fn worth(entry: &Entry, now_ms: u64) -> u64 {
    let age_seconds =
        (now_ms.saturating_sub(entry.changed_ms) / 1000).clamp(AGE_SECONDS.0, AGE_SECONDS.1);
    let live = u64::from(entry.live_bytes);
    SEGMENT.saturating_sub(live) * age_seconds * 1000 / (SEGMENT + live)
}

impl Store {
    /// Empties segments for as long as it is worth it and the pace allows. True when nothing is left that is worth it.
    ///
    /// # Errors
    /// The pool is read-only, or a table cannot be read. Want of room is none: there is nothing to be done then.
    pub(crate) fn clean_segments(&self, aim: Aim) -> Result<bool, WriteError> {
        // Who holds it is at it.
        let Some(_one) = self.cleaning.try_lock() else {
            return Ok(false);
        };
        let mut cleaned = 0;
        let may_go_on = |cleaned: usize| match aim {
            // The room of those comes with the next checkpoint.
            Aim::LowRoom => cleaned < SEGMENTS_FOR_LOW_ROOM,
            _ => self.pace.may_work(),
        };
        while may_go_on(cleaned) {
            match self.clean_one(aim) {
                Ok(true) => cleaned += 1,
                Ok(false) => return Ok(true),
                // The next checkpoint frees what has been emptied, and perhaps more.
                Err(WriteError::NoSpace(_)) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Empties up to `count` segments. How many it were.
    ///
    /// # Errors
    /// As above.
    pub(crate) fn clean_up_to(&self, count: usize, aim: Aim) -> Result<usize, WriteError> {
        let _one = self.cleaning.lock();
        let mut cleaned = 0;
        while cleaned < count && self.clean_one(aim)? {
            cleaned += 1;
        }
        Ok(cleaned)
    }

    /// Empties the segment that is most worth it; false when none is.
    fn clean_one(&self, aim: Aim) -> Result<bool, WriteError> {
        loop {
            let Some((segment, live_bytes)) = self.segment_to_clean(aim) else {
                return Ok(false);
            };
            self.pace.spend(SEGMENT + u64::from(live_bytes));
            let codec = match aim {
                Aim::Reseal(reseal) => reseal.codec,
                _ => None,
            };
            if self.clean_segment(segment, codec)? {
                let mut books = self.books.lock();
                books.totals.segments += 1;
                books.totals.copied_bytes += u64::from(live_bytes);
                return Ok(true);
            }
            self.maintenance.lock().stuck_segments.insert(segment);
        }
    }

    /// The full data segment that is most worth emptying, and its live bytes; none while little is dead.
    fn segment_to_clean(&self, aim: Aim) -> Option<(SegmentId, u32)> {
        let stuck = self.maintenance.lock().stuck_segments.clone();
        let limits = aim.limits();
        let now_ms = self.pool.host.now_ns() / 1_000_000;
        let space = self.pool.space.lock();
        let (mut live, mut used) = (0, 0);
        let mut best: Option<(u64, SegmentId, u32)> = None;
        for (segment, entry) in space.entries() {
            if !matches!(entry.state, State::Full(Stream::Data | Stream::ColdData)) {
                continue;
            }
            live += u64::from(entry.live_bytes);
            used += u64::from(entry.used_bytes);
            if is_worthwhile(entry, aim)
                // Timestamps of commands do not follow a clock that is set back.
                && entry.changed_ms.min(now_ms) + limits.quiet_ms <= now_ms
                && !stuck.contains(&segment)
            {
                let worth = worth(entry, now_ms);
                if best.is_none_or(|(most, _, _)| worth > most) {
                    best = Some((worth, segment, entry.live_bytes));
                }
            }
        }
        let dead = used.saturating_sub(live);
        let (_, segment, live_bytes) = best?;
        let is_dead_enough = dead > limits.dead_kept + live / limits.dead_share;
        (is_dead_enough || matches!(aim, Aim::Reseal(_))).then_some((segment, live_bytes))
    }

    /// Moves what is live in a segment to the cold lane, compressed again if a codec is given. False when something in it
    /// could not be read: it is left as it is then.
    fn clean_segment(&self, segment: SegmentId, codec: Option<Codec>) -> Result<bool, WriteError> {
        let Some(seq) = self.pool.space.lock().seq(segment) else {
            return Ok(false);
        };
        let content = match self.pool.read_segment(segment) {
            Ok(content) => content,
            Err(error) => {
                tracing::warn!(%error, ?segment, "a segment cannot be read for compaction");
                return Ok(false);
            }
        };
        let mut moves = Vec::new();
        let copied = self.copy_live((segment, seq), content.as_slice(), codec, &mut moves);
        self.pool.recycle(content);
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
        (segment, seq): (SegmentId, SegmentSeq),
        content: &[u8],
        codec: Option<Codec>,
        moves: &mut Vec<(NewChunk, SegmentId, u32)>,
    ) -> Result<(), WriteError> {
        let cold_lane = self.lanes.cold_lane();
        let (mut unwritten_bytes, mut room) = (0, Vec::new());
        for entry in self.records_in(seq, content) {
            let fingerprint = Fingerprint(entry.header.fingerprint);
            let Some(record) = self.chunk_record(&fingerprint)? else {
                continue;
            };
            if (record.segment.get(), record.offset.get()) != (segment.0, entry.offset) {
                continue;
            }
            let old = entry.header;
            let start = entry.offset as usize + cfs_seal::chunk::RECORD_HEAD_BYTES;
            let end = (entry.offset + cfs_seal::chunk::record_len(&old)) as usize;
            let old_payload = &content[start..end];
            let mut seal_lane = self.seal_lanes[cold_lane].lock();
            let SealLane { sealer, payload } = &mut *seal_lane;
            payload.clear();
            // One that does not open stays where it is: replay takes a chunk that was moved and does not open for one that
            // had not been flushed, and ends the log there.
            let header = match self.reseal(sealer, (&old, old_payload), codec, payload) {
                Ok(header) => header,
                Err(error) => {
                    if self
                        .read_chunk_at(&fingerprint, &record, &mut room)
                        .is_err()
                    {
                        tracing::warn!(%error, ?segment, "a chunk is not moved");
                        self.verdicts.reach(fingerprint, &record, true);
                    }
                    continue;
                }
            };
            let placed = self.lanes.append(cold_lane, &header, payload)?;
            drop(seal_lane);
            let record_len = placed.record_len;
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
            unwritten_bytes += record_len;
            if unwritten_bytes >= PIECE_BYTES {
                self.lanes.write_out_cold()?;
                unwritten_bytes = 0;
            }
        }
        // The command that comes next would have it written by whoever syncs first.
        self.lanes.write_out_cold()
    }

    /// Seals a chunk again, as [`ChunkSealer::reseal`] does, under a key of its own.
    fn reseal(
        &self,
        sealer: &mut ChunkSealer,
        old: (&RecordHeader, &[u8]),
        codec: Option<Codec>,
        out: &mut Vec<u8>,
    ) -> Result<RecordHeader, OpenChunkError> {
        let domain = DomainId(old.0.domain.get());
        let secret = self
            .domain_secret(domain)
            .ok_or(OpenChunkError::UnknownDomain(domain))?;
        let fields = self.chunk_fields(domain, Fingerprint(old.0.fingerprint));
        sealer.reseal(&secret, old, &fields, codec, out)
    }

    /// The records of a data segment whose headers verify, found by walking it.
    pub(crate) fn records_in(&self, seq: SegmentSeq, content: &[u8]) -> Vec<FoundRecord> {
        let mut found = Vec::new();
        let mut offset = BLOCK_BYTES;
        while (offset as usize) < content.len() {
            let rest = &content[offset as usize..];
            let place = RecordPlace { seq, offset };
            let opened = peek_record_len(rest).ok().and_then(|_| {
                open_record_header(rest, place, &self.pool.ciphers.record_header).ok()
            });
            let len = opened.map(|header| RECORD_OVERHEAD + header.payload_len.get());
            match opened.zip(len.filter(|len| *len as usize <= rest.len())) {
                Some((header, len)) => {
                    found.push(FoundRecord { offset, header });
                    offset = (offset + len).next_multiple_of(RECORD_ALIGN);
                }
                // Of a damaged record nothing is believed, its length neither: the next one is looked for wherever one
                // may begin.
                None => offset += RECORD_ALIGN,
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
            flags: 0,
        }
    }
}
