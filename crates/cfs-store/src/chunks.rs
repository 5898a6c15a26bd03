//! Chunks on their way in and out: fingerprint, look up, seal, place; find, read, open.
//!
//! Invariants:
//! - A pin is taken before the index is asked. Reclaim takes index entries away only while it holds the table of
//!   pins and finds none; so a chunk that was found stays until its pin is dropped.
//! - A new chunk is in no table before the command that refers to it: if that command never comes, its record is
//!   dead weight in its segment and nothing more.

use std::collections::HashMap;
use std::sync::Arc;

use cfs_format::segment::RecordHeader;
use cfs_format::table::ChunkRecord;
use cfs_format::{DomainId, Fingerprint, KeyEpoch, SegmentId, SegmentSeq};
use cfs_seal::chunk::{ChunkFields, ChunkSealer, RecordPlace, open_record};
use cfs_seal::codec::Codec;
use cfs_seal::keys::DomainSecret;
use serde::{Deserialize, Serialize};
use zerocopy::FromBytes;

use crate::error::{ReadError, WriteError};
use crate::pool::Pool;
use crate::store::Store;
use crate::sync::Mutex;

/// Longest chunk, bytes.
pub const CHUNK_BYTES_MAX: usize = cfs_seal::codec::RAW_LEN_MAX;

/// A chunk that has been stored and that the index may not know yet. It travels in the command that refers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewChunk {
    /// Keyed hash of the content.
    pub fingerprint: Fingerprint,
    /// Segment that holds the record.
    pub segment: SegmentId,
    /// Number of the segment's filling.
    pub seq: SegmentSeq,
    /// Byte offset of the record.
    pub offset: u32,
    /// Bytes of the record.
    pub record_len: u32,
    /// Bytes of content.
    pub raw_len: u32,
    /// Dedup domain.
    pub domain: DomainId,
    /// `cfs_format::segment::CODEC_*`.
    pub codec: u8,
}

#[derive(Default)]
struct Pinned {
    count: u32,
    new: Option<NewChunk>,
}

/// Chunks that commands in the making refer to.
pub(crate) struct Pins {
    by_fingerprint: Mutex<HashMap<Fingerprint, Pinned>>,
}

impl Pins {
    pub fn new() -> Self {
        Self {
            by_fingerprint: Mutex::new(HashMap::new()),
        }
    }

    /// Runs `reclaim` while no pin can be taken; it is told which chunks are pinned.
    pub fn exclude<T>(&self, reclaim: impl FnOnce(&dyn Fn(&Fingerprint) -> bool) -> T) -> T {
        let pins = self.by_fingerprint.lock();
        reclaim(&|fingerprint| pins.contains_key(fingerprint))
    }

    fn pin(&self, fingerprint: Fingerprint) -> Option<NewChunk> {
        let mut pins = self.by_fingerprint.lock();
        let pinned = pins.entry(fingerprint).or_default();
        pinned.count += 1;
        pinned.new
    }

    /// Makes a stored chunk known to others that are about to store the same. The first one stays.
    fn publish(&self, new: NewChunk) -> NewChunk {
        let mut pins = self.by_fingerprint.lock();
        let pinned = pins
            .get_mut(&new.fingerprint)
            .expect("pinned by the caller");
        *pinned.new.get_or_insert(new)
    }

    fn unpin(&self, fingerprint: &Fingerprint) -> Option<NewChunk> {
        let mut pins = self.by_fingerprint.lock();
        let pinned = pins.get_mut(fingerprint).expect("a living pin is counted");
        pinned.count -= 1;
        if pinned.count > 0 {
            return None;
        }
        pins.remove(fingerprint).and_then(|pinned| pinned.new)
    }
}

/// A chunk that will not be reclaimed while this lives. Keep it until the command that refers to it is committed.
pub struct ChunkPin {
    pool: Arc<Pool>,
    pins: Arc<Pins>,
    fingerprint: Fingerprint,
    raw_len: u32,
    new: Option<NewChunk>,
}

impl ChunkPin {
    /// Keyed hash of the content.
    #[must_use]
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Bytes of content.
    #[must_use]
    pub fn raw_len(&self) -> u32 {
        self.raw_len
    }

    /// Where it was put, if the index may not know it yet; belongs into the command.
    #[must_use]
    pub fn new_chunk(&self) -> Option<NewChunk> {
        self.new
    }
}

impl Drop for ChunkPin {
    fn drop(&mut self) {
        if let Some(new) = self.pins.unpin(&self.fingerprint) {
            self.pool.space.lock().unpin(new.segment);
        }
    }
}

/// A worker's sealing state.
pub(crate) struct SealLane {
    pub sealer: ChunkSealer,
    pub payload: Vec<u8>,
}

impl SealLane {
    pub fn new(pool: &Pool) -> Self {
        Self {
            sealer: ChunkSealer::new(pool.cipher),
            payload: Vec::new(),
        }
    }
}

impl Store {
    /// Stores `data` unless its domain has it already. `lane` is the worker's number, `0..lanes`.
    ///
    /// # Errors
    /// No space, or a failure of the device; nothing refers to the chunk then.
    ///
    /// # Panics
    /// When `lane` is out of range, `data` is empty or longer than [`CHUNK_BYTES_MAX`], or the domain is unknown.
    pub fn put_chunk(
        &self,
        lane: usize,
        domain: DomainId,
        codec: Codec,
        data: &[u8],
    ) -> Result<ChunkPin, WriteError> {
        assert!(
            !data.is_empty() && data.len() <= CHUNK_BYTES_MAX,
            "chunks are bounded where they are cut"
        );
        let secret = self
            .domain_secret(domain)
            .expect("the domain of a volume exists");
        let fingerprint = secret.fingerprint(data);
        self.pace.note_use();
        #[cfg(feature = "planted-bugs")]
        let known_before = match cfs_format::planted::has(cfs_format::planted::Bug::PinAfterLookup)
        {
            true => self.chunk_record(&fingerprint)?,
            false => None,
        };
        let mut pin = self.new_pin(fingerprint);
        pin.raw_len = data.len() as u32;
        if pin.new.is_some() {
            return Ok(pin);
        }
        #[cfg(feature = "planted-bugs")]
        if known_before.is_some() {
            return Ok(pin);
        }
        let known = self.chunk_record(&fingerprint)?;
        if known.is_some_and(|record| !self.verdicts.is_bad(&fingerprint, &record)) {
            return Ok(pin);
        }
        let fields = self.chunk_fields(domain, fingerprint);
        let mut seal_lane = self.seal_lanes[lane].lock();
        let SealLane { sealer, payload } = &mut *seal_lane;
        payload.clear();
        let header: RecordHeader = sealer.seal_payload(&secret, &fields, codec, data, payload);
        let placed = self.lanes.append(lane, &header, payload)?;
        drop(seal_lane);
        let new = NewChunk {
            fingerprint,
            segment: placed.segment,
            seq: placed.seq,
            offset: placed.offset,
            record_len: placed.record_len,
            raw_len: data.len() as u32,
            domain,
            codec: header.codec,
        };
        if known.is_some() {
            // Here is the content of a chunk that could not be opened: whoever refers to it gets it back.
            if let Err(error) = self.replace_chunk(new) {
                self.pool.space.lock().unpin(new.segment);
                return Err(error);
            }
            tracing::info!(%fingerprint, "a damaged chunk has been replaced");
        }
        self.publish(&mut pin, new);
        Ok(pin)
    }

    /// What a chunk is sealed under now: a key that nothing has been sealed under before.
    pub(crate) fn chunk_fields(&self, domain: DomainId, fingerprint: Fingerprint) -> ChunkFields {
        let mut salt = [0; 16];
        self.pool.host.fill_random(&mut salt);
        ChunkFields {
            domain,
            fingerprint,
            salt,
            created_ns: self.pool.host.now_ns(),
            epoch: KeyEpoch(1),
        }
    }

    /// A pin of a chunk that may be here or not; it knows of one that is being stored.
    pub(crate) fn new_pin(&self, fingerprint: Fingerprint) -> ChunkPin {
        let new = self.pins.pin(fingerprint);
        ChunkPin {
            pool: Arc::clone(&self.pool),
            pins: Arc::clone(&self.pins),
            fingerprint,
            raw_len: new.map_or(0, |new| new.raw_len),
            new,
        }
    }

    /// Makes a chunk that was just stored known to others.
    pub(crate) fn publish(&self, pin: &mut ChunkPin, new: NewChunk) {
        let published = self.pins.publish(new);
        if published != new {
            // Somebody else stored the same meanwhile; this record is dead weight.
            self.pool.space.lock().unpin(new.segment);
        }
        pin.new = Some(published);
    }

    /// Replaces `out` with the content of a chunk, verified. That one is damaged is remembered for those who come later.
    ///
    /// # Errors
    /// The chunk is unknown, damaged, or cannot be read.
    pub fn read_chunk(
        &self,
        fingerprint: &Fingerprint,
        out: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        self.read_chunk_record(fingerprint, out).map(drop)
    }

    /// As [`Store::read_chunk`], and which record it was.
    pub(crate) fn read_chunk_record(
        &self,
        fingerprint: &Fingerprint,
        out: &mut Vec<u8>,
    ) -> Result<ChunkRecord, ReadError> {
        self.pace.note_use();
        let mut record = self.chunk_record(fingerprint)?.ok_or(ReadError::Missing {
            fingerprint: *fingerprint,
        })?;
        loop {
            let error = match self.read_chunk_at(fingerprint, &record, out) {
                Ok(()) => return Ok(record),
                Err(error) => error,
            };
            // Compaction may have moved it between the look-up and the reading.
            match self.chunk_record(fingerprint)? {
                Some(now) if (now.segment, now.offset) != (record.segment, record.offset) => {
                    record = now;
                }
                Some(_) => {
                    // A device that refuses it for a moment only is found out by the next scrub.
                    self.verdicts.reach(*fingerprint, &record, true);
                    return Err(error);
                }
                None => {
                    return Err(ReadError::Missing {
                        fingerprint: *fingerprint,
                    });
                }
            }
        }
    }

    pub(crate) fn chunk_record(
        &self,
        fingerprint: &Fingerprint,
    ) -> Result<Option<ChunkRecord>, ReadError> {
        self.chunk_tree
            .get_with(&fingerprint.0, decode_chunk_record)?
            .transpose()
    }

    pub(crate) fn read_chunk_at(
        &self,
        fingerprint: &Fingerprint,
        record: &ChunkRecord,
        out: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        if record.is_lost() {
            return Err(ReadError::Lost {
                fingerprint: *fingerprint,
            });
        }
        let place = self.record_place(record);
        let segment = SegmentId(record.segment.get());
        let damaged = |reason: String| ReadError::Damaged {
            what: "chunk",
            segment,
            offset: record.offset.get(),
            reason,
        };
        let place = place.ok_or_else(|| damaged("its segment is not in use".into()))?;
        let (mut sealed, mut scratch) = READ_SCRATCH.take();
        let read = self.read_record(record, &mut sealed);
        let opened = read.and_then(|()| {
            open_record(
                &sealed,
                place,
                &self.pool.ciphers.record_header,
                |domain| self.domain_secret(domain),
                &mut scratch,
                out,
            )
            .map_err(|error| damaged(error.to_string()))
        });
        READ_SCRATCH.set((sealed, scratch));
        if opened?.fingerprint != fingerprint.0 {
            return Err(damaged("another chunk lies there".into()));
        }
        Ok(())
    }

    pub(crate) fn record_place(&self, record: &ChunkRecord) -> Option<RecordPlace> {
        let seq = self
            .pool
            .space
            .lock()
            .seq(SegmentId(record.segment.get()))?;
        Some(RecordPlace {
            seq,
            offset: record.offset.get(),
        })
    }

    /// The bytes of a record, from an open segment or from the device.
    pub(crate) fn read_record(
        &self,
        record: &ChunkRecord,
        out: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        let segment = SegmentId(record.segment.get());
        let (offset, len) = (record.offset.get(), record.record_len.get());
        if self.lanes.read(segment, offset, len, out) {
            return Ok(());
        }
        let end = u64::from(offset) + u64::from(len);
        if end > u64::from(cfs_format::SEGMENT_BYTES) {
            return Err(ReadError::Damaged {
                what: "chunk",
                segment,
                offset,
                reason: "the record ends outside of its segment".into(),
            });
        }
        out.resize(len as usize, 0);
        self.pool.device.read_at(segment, offset, out)?;
        Ok(())
    }

    /// The secret of a dedup domain.
    #[must_use]
    pub fn domain_secret(&self, domain: DomainId) -> Option<Arc<DomainSecret>> {
        self.domains.read().get(&domain).cloned()
    }
}

thread_local! {
    /// A sealed record and its decrypted payload; kept because first-touch memory is slow. Taken out while in use.
    static READ_SCRATCH: std::cell::RefCell<(Vec<u8>, Vec<u8>)> = const { std::cell::RefCell::new((Vec::new(), Vec::new())) };
}

pub(crate) fn decode_chunk_record(value: &[u8]) -> Result<ChunkRecord, ReadError> {
    ChunkRecord::read_from_bytes(value).map_err(|_| ReadError::Record { what: "chunk" })
}
