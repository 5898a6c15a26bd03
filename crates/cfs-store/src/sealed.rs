//! Sealed chunks on their way to another pool and from one: as they are stored, without the seal of their place.

use cfs_format::segment::RecordHeader;
use cfs_format::{DomainId, Fingerprint};
use cfs_seal::block::Cipher;
use cfs_seal::chunk::{RECORD_HEAD_BYTES, open_payload, open_record_header};
use cfs_seal::keys::DomainSecret;

use crate::chunks::{ChunkPin, NewChunk};
use crate::error::{ReadError, WriteError};
use crate::store::Store;

/// Why a chunk from elsewhere was not stored. Nothing refers to it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ArrivalError {
    /// It is not what its header says, or not sealed with a secret of this pool.
    #[error("a chunk does not open: {0}")]
    Forged(cfs_seal::chunk::OpenChunkError),
    /// It could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl From<ReadError> for ArrivalError {
    fn from(error: ReadError) -> Self {
        Self::Write(error.into())
    }
}

impl Store {
    /// The cipher of everything in the pool.
    #[must_use]
    pub fn cipher(&self) -> Cipher {
        self.pool.cipher
    }

    /// A domain's secret as the tables of this pool hold it.
    #[must_use]
    pub fn stored_secret(&self, domain: DomainId, secret: &DomainSecret) -> [u8; 32] {
        self.pool.cluster_key.wrap_domain_secret(domain, secret)
    }

    /// A chunk as it is stored: its header, and in `payload` what is sealed under it, with the tag.
    ///
    /// # Errors
    /// The chunk is unknown, damaged, or cannot be read.
    pub fn read_sealed(
        &self,
        fingerprint: &Fingerprint,
        payload: &mut Vec<u8>,
    ) -> Result<RecordHeader, ReadError> {
        let missing = || ReadError::Missing {
            fingerprint: *fingerprint,
        };
        let mut record = self.chunk_record(fingerprint)?.ok_or_else(missing)?;
        loop {
            if record.is_lost() {
                return Err(ReadError::Lost {
                    fingerprint: *fingerprint,
                });
            }
            let damaged = |reason: String| ReadError::Damaged {
                what: "chunk",
                segment: cfs_format::SegmentId(record.segment.get()),
                offset: record.offset.get(),
                reason,
            };
            let read = match self.record_place(&record) {
                None => Err(damaged("its segment is not in use".to_owned())),
                Some(place) => self.read_record(&record, payload).and_then(|()| {
                    open_record_header(payload, place, &self.pool.ciphers.record_header)
                        .map_err(|error| damaged(error.to_string()))
                }),
            };
            let error = match read {
                Ok(header) if header.fingerprint == fingerprint.0 => {
                    payload.drain(..RECORD_HEAD_BYTES);
                    return Ok(header);
                }
                Ok(_) => damaged("another chunk lies there".to_owned()),
                Err(error) => error,
            };
            // Compaction may have moved it between the look-up and the reading.
            match self.chunk_record(fingerprint)? {
                Some(now) if (now.segment, now.offset) != (record.segment, record.offset) => {
                    record = now;
                }
                Some(_) => return Err(error),
                None => return Err(missing()),
            }
        }
    }

    /// Keeps a chunk that is here, and whole as far as is known, from being reclaimed; `None` when it is not.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn pin_known(&self, fingerprint: &Fingerprint) -> Result<Option<ChunkPin>, ReadError> {
        let pin = self.new_pin(*fingerprint);
        if pin.new_chunk().is_some() {
            return Ok(Some(pin));
        }
        let record = self.chunk_record(fingerprint)?;
        let is_good =
            |record: &cfs_format::table::ChunkRecord| !self.verdicts.is_bad(fingerprint, record);
        Ok(record.filter(is_good).map(|_| pin))
    }

    /// Stores a chunk that was sealed elsewhere, as it is, after opening it once to see that it is what it should be.
    ///
    /// # Errors
    /// See [`ArrivalError`].
    pub fn put_sealed(
        &self,
        lane: usize,
        header: &RecordHeader,
        payload: &[u8],
    ) -> Result<ChunkPin, ArrivalError> {
        let fingerprint = Fingerprint(header.fingerprint);
        let domain = DomainId(header.domain.get());
        let unknown = cfs_seal::chunk::OpenChunkError::UnknownDomain(domain);
        let secret = self
            .domain_secret(domain)
            .ok_or(ArrivalError::Forged(unknown))?;
        let (mut scratch, mut content) = (Vec::new(), Vec::new());
        open_payload(
            header,
            payload,
            self.pool.cipher,
            &secret,
            &mut scratch,
            &mut content,
        )
        .map_err(ArrivalError::Forged)?;
        if let Some(pin) = self.pin_known(&fingerprint)? {
            return Ok(pin);
        }
        if self.chunk_record(&fingerprint)?.is_some() {
            // Known, and damaged: storing the content heals it.
            let codec = cfs_seal::codec::Codec::from_numbers(header.codec, 0).unwrap_or_default();
            return Ok(self.put_chunk(lane, domain, codec, &content)?);
        }
        let mut pin = self.new_pin(fingerprint);
        if pin.new_chunk().is_some() {
            return Ok(pin);
        }
        let placed = self.lanes.append(lane, header, payload)?;
        let new = NewChunk {
            fingerprint,
            segment: placed.segment,
            seq: placed.seq,
            offset: placed.offset,
            record_len: placed.record_len,
            raw_len: header.raw_len.get(),
            domain,
            codec: header.codec,
        };
        self.publish(&mut pin, new);
        Ok(pin)
    }
}
