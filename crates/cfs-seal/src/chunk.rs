//! Chunk records: sealed, opened for a reader, sealed again under another key, moved without being opened.
//!
//! A record is a plain prefix, a header sealed for the place where the record lies, and a payload sealed under the
//! chunk's own key. The payload does not know its place, so a record can move by sealing its header anew; the payload is
//! bound to every byte of the header, so no part of one record goes with a part of another.
//!
//! Invariants: a chunk key is made from fingerprint, salt, creation time and epoch, and seals one payload, with the
//! zero nonce. The caller draws a new salt for each sealing; a fingerprint and salt never come together twice.

use std::ops::Deref;

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce};
use cfs_format::segment::{CODEC_NONE, RECORD_MAGIC, RECORD_OVERHEAD, RecordHeader, RecordPrefix};
use cfs_format::{DomainId, Fingerprint, KeyEpoch, SegmentSeq};
use zerocopy::{FromBytes, IntoBytes};

use crate::block::{BlockCipher, Cipher, TAG};
use crate::codec::{Codec, Compressor, DecompressError, RAW_LEN_MAX, decompress};
use crate::keys::DomainSecret;

const PREFIX: usize = size_of::<RecordPrefix>();
const HEADER: usize = size_of::<RecordHeader>();

/// Bytes at the start of a record that [`open_record_header`] needs.
pub const RECORD_HEAD_BYTES: usize = PREFIX + HEADER + TAG;

/// What the caller decides about a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkFields {
    /// The domain whose secret is used.
    pub domain: DomainId,
    /// `DomainSecret::fingerprint` of the content.
    pub fingerprint: Fingerprint,
    /// Random, new for each sealing.
    pub salt: [u8; 16],
    /// Nanoseconds since 1970.
    pub created_ns: u64,
    /// The key epoch.
    pub epoch: KeyEpoch,
}

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordPlace {
    /// Number of the segment's filling.
    pub seq: SegmentSeq,
    /// Byte offset of the record in the segment.
    pub offset: u32,
}

/// What became of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedInfo {
    /// Bytes of the record, without padding.
    pub record_len: u32,
    /// Bytes of content.
    pub raw_len: u32,
    /// `CODEC_*` of the payload.
    pub codec: u8,
}

/// Why a record does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenChunkError {
    /// The bytes are not a record, or not all of one.
    #[error("not a chunk record: {0}")]
    Format(&'static str),
    /// The header was not sealed for this place in this pool.
    #[error("the header of the chunk record is damaged, or belongs elsewhere")]
    HeaderForged,
    /// The payload does not belong to the header.
    #[error("the content of chunk {0} is damaged")]
    PayloadForged(Fingerprint),
    /// The caller has no secret for the domain.
    #[error("no secret for dedup domain {0}")]
    UnknownDomain(DomainId),
    /// The payload is what was sealed, but does not decompress.
    #[error("chunk {0} was sealed damaged: {1}")]
    Decompress(Fingerprint, DecompressError),
}

/// Seals chunks. Each worker has its own.
pub struct ChunkSealer {
    cipher: Cipher,
    compressor: Compressor,
    payload: Vec<u8>,
    /// Content of a chunk that is compressed again.
    content: Vec<u8>,
}

impl ChunkSealer {
    /// A sealer for the pool's cipher.
    #[must_use]
    pub fn new(cipher: Cipher) -> Self {
        Self {
            cipher,
            compressor: Compressor::new(),
            payload: Vec::new(),
            content: Vec::new(),
        }
    }

    /// Appends the whole record of a chunk to `out`, for a place that is known already.
    #[expect(clippy::too_many_arguments, reason = "each is of another type")]
    pub fn seal(
        &mut self,
        secret: &DomainSecret,
        fields: &ChunkFields,
        codec: Codec,
        data: &[u8],
        place: RecordPlace,
        header_cipher: &BlockCipher,
        out: &mut Vec<u8>,
    ) -> SealedInfo {
        let mut payload = std::mem::take(&mut self.payload);
        payload.clear();
        let header = self.seal_payload(secret, fields, codec, data, &mut payload);
        let info = finish_record(&header, &payload, place, header_cipher, out);
        self.payload = payload;
        info
    }

    /// Appends the sealed payload of a chunk and its tag to `payload`, and returns the header that goes with it.
    /// `data` is at most [`RAW_LEN_MAX`] bytes.
    pub fn seal_payload(
        &mut self,
        secret: &DomainSecret,
        fields: &ChunkFields,
        codec: Codec,
        data: &[u8],
        payload: &mut Vec<u8>,
    ) -> RecordHeader {
        let (codec, plain) = self.compressor.compressed_or_plain(codec, data);
        let header = header_of(fields, codec, data.len(), plain.len());
        append_sealed(self.cipher, secret, &header, plain, payload);
        header
    }

    /// Seals a chunk again, whose record has this header and sealed payload (tag included), under the key that `fields`
    /// give, and appends the new payload and tag to `out`. Without a codec its compressed form stays; with one, content
    /// and name are verified and it is compressed again. Returns the header that goes with it.
    ///
    /// # Errors
    /// [`OpenChunkError`]; `out` is unchanged then.
    pub fn reseal(
        &mut self,
        secret: &DomainSecret,
        (header, payload): (&RecordHeader, &[u8]),
        fields: &ChunkFields,
        codec: Option<Codec>,
        out: &mut Vec<u8>,
    ) -> Result<RecordHeader, OpenChunkError> {
        let mut plain = std::mem::take(&mut self.payload);
        let resealed = match codec {
            Some(codec) => {
                let mut content = std::mem::take(&mut self.content);
                let opened = open_payload(
                    header,
                    payload,
                    self.cipher,
                    secret,
                    &mut plain,
                    &mut content,
                );
                let resealed =
                    opened.map(|()| self.seal_payload(secret, fields, codec, &content, out));
                self.content = content;
                resealed
            }
            None => {
                open_compressed(header, payload, self.cipher, secret, &mut plain).map(|plain| {
                    let raw_len = header.raw_len.get() as usize;
                    let header = header_of(fields, header.codec, raw_len, plain.len());
                    append_sealed(self.cipher, secret, &header, plain, out);
                    header
                })
            }
        };
        self.payload = plain;
        resealed
    }
}

fn header_of(fields: &ChunkFields, codec: u8, raw_len: usize, payload_len: usize) -> RecordHeader {
    RecordHeader {
        fingerprint: fields.fingerprint.0,
        salt: fields.salt,
        created_ns: fields.created_ns.into(),
        raw_len: len_u32(raw_len).into(),
        payload_len: len_u32(payload_len).into(),
        epoch: fields.epoch.0.into(),
        domain: fields.domain.0.into(),
        codec,
        reserved: [0; 9],
    }
}

/// Appends what `plain` is sealed to under the key of this header, and its tag.
fn append_sealed(
    cipher: Cipher,
    secret: &DomainSecret,
    header: &RecordHeader,
    plain: &[u8],
    out: &mut Vec<u8>,
) {
    let start = out.len();
    out.resize(start + plain.len() + TAG, 0);
    let (sealed, tag) = out[start..].split_at_mut(plain.len());
    chunk_key(cipher, secret, header)
        .seal_out_of_place_scatter(
            zero_nonce(),
            Aad::from(header.as_bytes()),
            plain,
            sealed,
            &[],
            tag,
        )
        .expect("a chunk is far below the ciphers' limits");
}

/// Bytes of the record with this header, without padding.
#[must_use]
pub fn record_len(header: &RecordHeader) -> u32 {
    RECORD_OVERHEAD + header.payload_len.get()
}

/// Appends to `out` the record of `header` and its sealed `payload` (tag included), for `place`.
pub fn finish_record(
    header: &RecordHeader,
    payload: &[u8],
    place: RecordPlace,
    header_cipher: &BlockCipher,
    out: &mut Vec<u8>,
) -> SealedInfo {
    out.extend_from_slice(&sealed_head(header, place, header_cipher));
    assert_eq!(
        RECORD_HEAD_BYTES + payload.len(),
        record_len(header) as usize,
        "the payload and tag that the header was made for"
    );
    out.extend_from_slice(payload);
    SealedInfo {
        record_len: record_len(header),
        raw_len: header.raw_len.get(),
        codec: header.codec,
    }
}

/// The first [`RECORD_HEAD_BYTES`] of the record with this header at `place`; the sealed payload and its tag follow.
#[must_use]
pub fn sealed_head(
    header: &RecordHeader,
    place: RecordPlace,
    header_cipher: &BlockCipher,
) -> [u8; RECORD_HEAD_BYTES] {
    let prefix = RecordPrefix {
        magic: RECORD_MAGIC.into(),
        record_len: record_len(header).into(),
    };
    let mut head = [0; RECORD_HEAD_BYTES];
    head[..PREFIX].copy_from_slice(prefix.as_bytes());
    head[PREFIX..PREFIX + HEADER].copy_from_slice(header.as_bytes());
    let tag = header_cipher.seal_slice(
        place.seq,
        place.offset,
        prefix.as_bytes(),
        &mut head[PREFIX..PREFIX + HEADER],
    );
    head[PREFIX + HEADER..].copy_from_slice(&tag);
    head
}

/// Bytes of the record that starts with `bytes`, by its plain prefix; for walking a segment without footer. Not
/// authenticated: open the header next.
///
/// # Errors
/// [`OpenChunkError::Format`].
pub fn peek_record_len(bytes: &[u8]) -> Result<u32, OpenChunkError> {
    let (prefix, _) = RecordPrefix::read_from_prefix(bytes)
        .map_err(|_| OpenChunkError::Format("shorter than a prefix"))?;
    if prefix.magic.get() != RECORD_MAGIC {
        return Err(OpenChunkError::Format("magic"));
    }
    let payload_len = prefix.record_len.get().checked_sub(RECORD_OVERHEAD);
    match payload_len {
        Some(len) if len as usize <= RAW_LEN_MAX => Ok(prefix.record_len.get()),
        _ => Err(OpenChunkError::Format("length")),
    }
}

/// The header of the record that starts with `bytes`, of which [`RECORD_HEAD_BYTES`] are enough.
///
/// # Errors
/// [`OpenChunkError`]: `Format` or `HeaderForged`.
pub fn open_record_header(
    bytes: &[u8],
    place: RecordPlace,
    header_cipher: &BlockCipher,
) -> Result<RecordHeader, OpenChunkError> {
    let whole_len = peek_record_len(bytes)?;
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX>() else {
        return Err(OpenChunkError::Format("shorter than a prefix"));
    };
    let Some(sealed) = rest.first_chunk::<{ HEADER + TAG }>() else {
        return Err(OpenChunkError::Format("shorter than a header"));
    };
    let mut sealed = *sealed;
    let plain = header_cipher
        .open_in_place(place.seq, place.offset, prefix, &mut sealed)
        .map_err(|_| OpenChunkError::HeaderForged)?;
    let header = RecordHeader::read_from_bytes(plain)
        .map_err(|_| OpenChunkError::Format("shorter than a header"))?;
    // These can only be wrong when whoever sealed the header was.
    if header.raw_len.get() as usize > RAW_LEN_MAX
        || header.payload_len > header.raw_len
        || record_len(&header) != whole_len
        || (header.codec == CODEC_NONE && header.payload_len != header.raw_len)
    {
        return Err(OpenChunkError::Format("lengths in the header"));
    }
    Ok(header)
}

/// Opens a payload that travels without its place: `out` then holds the chunk's content, which has the fingerprint that
/// the header says.
///
/// # Errors
/// [`OpenChunkError`]; `out` is then empty.
pub fn open_payload(
    header: &RecordHeader,
    payload: &[u8],
    cipher: Cipher,
    secret: &DomainSecret,
    scratch: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<(), OpenChunkError> {
    out.clear();
    let fingerprint = Fingerprint(header.fingerprint);
    let raw_len = header.raw_len.get() as usize;
    let plain = open_compressed(header, payload, cipher, secret, scratch)?;
    if header.codec == CODEC_NONE {
        out.extend_from_slice(plain);
    } else {
        decompress(header.codec, plain, raw_len, out)
            .map_err(|error| OpenChunkError::Decompress(fingerprint, error))?;
    }
    if secret.fingerprint(out) != fingerprint {
        out.clear();
        return Err(OpenChunkError::PayloadForged(fingerprint));
    }
    Ok(())
}

/// What was sealed, in the form of the header's codec; it lies in `scratch`.
fn open_compressed<'a>(
    header: &RecordHeader,
    payload: &[u8],
    cipher: Cipher,
    secret: &DomainSecret,
    scratch: &'a mut Vec<u8>,
) -> Result<&'a mut [u8], OpenChunkError> {
    let raw_len = header.raw_len.get() as usize;
    if raw_len == 0
        || raw_len > RAW_LEN_MAX
        || payload.len() != header.payload_len.get() as usize + TAG
        || header.payload_len > header.raw_len
        || (header.codec == CODEC_NONE && header.payload_len != header.raw_len)
    {
        return Err(OpenChunkError::Format("lengths in the header"));
    }
    scratch.clear();
    scratch.extend_from_slice(payload);
    chunk_key(cipher, secret, header)
        .open_in_place(zero_nonce(), Aad::from(header.as_bytes()), scratch)
        .map_err(|_| OpenChunkError::PayloadForged(Fingerprint(header.fingerprint)))
}

/// Opens a record: `out` then holds the chunk's content and nothing else. `secret_of` gives the secret of a domain.
/// `scratch` is room for the compressed form, reused from call to call.
///
/// That the content has the fingerprint follows from the payload's tag for everything that was sealed right.
///
/// # Errors
/// [`OpenChunkError`]; `out` is then empty.
pub fn open_record<S>(
    record: &[u8],
    place: RecordPlace,
    header_cipher: &BlockCipher,
    secret_of: impl FnOnce(DomainId) -> Option<S>,
    scratch: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<RecordHeader, OpenChunkError>
where
    S: Deref<Target = DomainSecret>,
{
    let opened = open_into(record, place, header_cipher, secret_of, scratch, out);
    if opened.is_err() {
        out.clear();
    }
    opened
}

/// As [`open_record`], but that `out` holds anything after an error. What it holds before is not wiped: filling a
/// buffer with zeros takes a fifth of the time of decrypting into it.
fn open_into<S>(
    record: &[u8],
    place: RecordPlace,
    header_cipher: &BlockCipher,
    secret_of: impl FnOnce(DomainId) -> Option<S>,
    scratch: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<RecordHeader, OpenChunkError>
where
    S: Deref<Target = DomainSecret>,
{
    let header = open_record_header(record, place, header_cipher)?;
    let payload = record
        .get(RECORD_HEAD_BYTES..record_len(&header) as usize)
        .ok_or(OpenChunkError::Format("cut short"))?;
    let (sealed, tag) = payload
        .split_last_chunk::<TAG>()
        .ok_or(OpenChunkError::Format("cut short"))?;
    let fingerprint = Fingerprint(header.fingerprint);
    let domain = DomainId(header.domain.get());
    let secret = secret_of(domain).ok_or(OpenChunkError::UnknownDomain(domain))?;
    let key = chunk_key(header_cipher.cipher(), &secret, &header);

    let plain = if header.codec == CODEC_NONE {
        &mut *out
    } else {
        &mut *scratch
    };
    plain.resize(sealed.len(), 0);
    let opened = key.open_separate_gather(
        zero_nonce(),
        Aad::from(header.as_bytes()),
        sealed,
        tag,
        plain,
    );
    if opened.is_err() {
        return Err(OpenChunkError::PayloadForged(fingerprint));
    }
    if header.codec != CODEC_NONE {
        decompress(header.codec, scratch, header.raw_len.get() as usize, out)
            .map_err(|error| OpenChunkError::Decompress(fingerprint, error))?;
    }
    Ok(header)
}

fn chunk_key(cipher: Cipher, secret: &DomainSecret, header: &RecordHeader) -> LessSafeKey {
    let key = secret.chunk_key(&[
        &header.fingerprint,
        &header.salt,
        header.created_ns.as_bytes(),
        header.epoch.as_bytes(),
    ]);
    cipher.schedule(&key)
}

/// Right because a chunk key seals one payload only.
fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

fn len_u32(len: usize) -> u32 {
    u32::try_from(len).expect("at most RAW_LEN_MAX bytes")
}
