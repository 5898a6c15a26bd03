//! The parts that every byte passes, alone, on one core and with data that fit the caches.

use std::hint::black_box;
use std::time::{Duration, Instant};

use cfs_format::{DomainId, KeyEpoch, SegmentSeq};
use cfs_seal::block::{BlockCipher, Cipher};
use cfs_seal::chunk::{ChunkFields, ChunkSealer, RecordPlace, open_record};
use cfs_seal::chunker::{ChunkParams, Chunker};
use cfs_seal::codec::{Codec, Compressor, decompress};
use cfs_seal::keys::DomainSecret;
use serde::Serialize;

use super::Session;
use crate::failure::Result;

/// Length of a sample, bytes.
const SAMPLE_BYTES: usize = 8 << 20;
/// Length of a chunk, bytes.
const CHUNK_BYTES: usize = 128 << 10;
const STEP: Duration = Duration::from_millis(400);

/// A part's speed on both kinds of data, bytes of content a second.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Part {
    pub name: String,
    pub text_bytes_per_second: f64,
    pub random_bytes_per_second: f64,
}

/// Content to measure with.
pub(super) struct Samples {
    /// Words; compresses to about a half.
    pub text: Vec<u8>,
    /// Does not compress.
    pub random: Vec<u8>,
}

/// A xorshift generator: the samples need not be good randomness, and are the same each time.
pub(super) struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

impl Samples {
    pub fn new() -> Self {
        let mut numbers = Numbers::new(0x9e37_79b9_7f4a_7c15);
        let words: Vec<Vec<u8>> = (0..4096)
            .map(|_| {
                let len = 2 + numbers.next() % 9;
                (0..len)
                    .map(|_| b'a' + (numbers.next() % 26) as u8)
                    .collect()
            })
            .collect();
        let mut text = Vec::with_capacity(SAMPLE_BYTES + 16);
        while text.len() < SAMPLE_BYTES {
            let index = (numbers.next() % 4096) * (numbers.next() % 4096) / 4096;
            text.extend_from_slice(&words[index as usize]);
            text.push(b' ');
        }
        text.truncate(SAMPLE_BYTES);
        let random = (0..SAMPLE_BYTES / 8).flat_map(|_| numbers.next().to_le_bytes());
        Self {
            random: random.collect(),
            text,
        }
    }
}

pub(super) const CHUNK: &str = "cut into chunks";
pub(super) const FINGERPRINT: &str = "fingerprint (BLAKE3)";
pub(super) const COMPRESS: &str = "compress";
pub(super) const SEAL: &str = "encrypt";
pub(super) const OPEN: &str = "decrypt and verify";
pub(super) const DECOMPRESS: &str = "decompress";

/// Measures all parts.
///
/// # Errors
/// The user has ended it.
pub(super) fn measure(
    session: &Session,
    samples: &Samples,
    cipher: Cipher,
    codec: Codec,
) -> Result<Vec<Part>> {
    let text = measure_on(session, &samples.text, cipher, codec)?;
    let random = measure_on(session, &samples.random, cipher, codec)?;
    let parts = text.into_iter().zip(random);
    Ok(parts
        .map(|((name, text), (_, random))| Part {
            name: name.to_owned(),
            text_bytes_per_second: text,
            random_bytes_per_second: random,
        })
        .collect())
}

fn measure_on(
    session: &Session,
    data: &[u8],
    cipher: Cipher,
    codec: Codec,
) -> Result<Vec<(&'static str, f64)>> {
    let mut rates = Vec::new();
    let mut part = |name: &'static str, work: &mut dyn FnMut()| {
        let clock = session.step(name, STEP)?;
        let mut best = Duration::MAX;
        loop {
            let started = Instant::now();
            work();
            best = best.min(started.elapsed());
            if !clock.is_running() {
                break;
            }
        }
        rates.push((name, data.len() as f64 / best.as_secs_f64().max(1e-9)));
        Ok(())
    };
    let chunker = Chunker::new(ChunkParams::DEFAULT);
    part(CHUNK, &mut || {
        let mut rest = data;
        while let Some(len) = chunker.cut(rest, true) {
            rest = &rest[len..];
        }
    })?;
    let secret = DomainSecret::from_bytes([7; 32]);
    part(FINGERPRINT, &mut || {
        for piece in data.chunks(CHUNK_BYTES) {
            black_box(secret.fingerprint(piece));
        }
    })?;
    let mut compressor = Compressor::new();
    let mut out = Vec::with_capacity(2 * CHUNK_BYTES);
    part(COMPRESS, &mut || {
        for piece in data.chunks(CHUNK_BYTES) {
            out.clear();
            black_box(compressor.compress(codec, piece, &mut out));
        }
    })?;
    let packed: Vec<(u8, usize, Vec<u8>)> = data
        .chunks(CHUNK_BYTES)
        .map(|piece| {
            let mut out = Vec::new();
            let used = compressor.compress(codec, piece, &mut out);
            (used, piece.len(), out)
        })
        .collect();

    let headers = BlockCipher::new(cipher, &[3; 32]);
    let mut sealer = ChunkSealer::new(cipher);
    let place = RecordPlace {
        seq: SegmentSeq(1),
        offset: 4096,
    };
    let fields = ChunkFields {
        domain: DomainId::DEFAULT,
        fingerprint: secret.fingerprint(data),
        salt: [1; 16],
        created_ns: 1,
        epoch: KeyEpoch(1),
    };
    // What has been compressed already is sealed as it is: the cost of encryption for each byte of content.
    let mut seal = |piece: &[u8], out: &mut Vec<u8>| {
        out.clear();
        sealer.seal(&secret, &fields, Codec::None, piece, place, &headers, out);
    };
    part(SEAL, &mut || {
        for (_, _, piece) in &packed {
            seal(piece, &mut out);
        }
    })?;
    let records: Vec<Vec<u8>> = packed
        .iter()
        .map(|(_, _, piece)| {
            let mut record = Vec::new();
            seal(piece, &mut record);
            record
        })
        .collect();
    let mut scratch = Vec::new();
    part(OPEN, &mut || {
        for record in &records {
            open_record(
                record,
                place,
                &headers,
                |_| Some(&secret),
                &mut scratch,
                &mut out,
            )
            .expect("it has just been sealed");
        }
    })?;
    part(DECOMPRESS, &mut || {
        for (used, raw_len, piece) in &packed {
            decompress(*used, piece, *raw_len, &mut out).expect("it has just been compressed");
        }
    })?;
    Ok(rates)
}
