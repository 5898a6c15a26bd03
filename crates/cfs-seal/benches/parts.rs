//! GB/s of each part on one core, with warm buffers, beside what others make of the same data.
//!
//! `cargo bench -p cfs-seal --bench parts [PATH]`: with a path, the data are that file's first 8 MiB; without one,
//! random bytes, and text-like bytes made from a small vocabulary.

use std::hint::black_box;
use std::time::{Duration, Instant};

use cfs_format::{DomainId, KeyEpoch, SegmentSeq};
use cfs_seal::block::{BlockCipher, Cipher};
use cfs_seal::chunk::{ChunkFields, ChunkSealer, RecordPlace, open_record};
use cfs_seal::chunker::{ChunkParams, Chunker};
use cfs_seal::codec::{Codec, Compressor, decompress};
use cfs_seal::keys::DomainSecret;
use cfs_seal::parity::{content_blocks_max, fill_parity};

/// Little, so that a pass fits between two interruptions on a busy machine.
const TOTAL: usize = 8 << 20;
const PIECE: usize = 128 << 10;

fn main() {
    match std::env::args()
        .nth(1)
        .filter(|name| !name.starts_with('-'))
    {
        Some(path) => {
            let mut data = std::fs::read(&path).expect("the file named on the command line");
            data.truncate(TOTAL);
            measure_all(&path, &data);
        }
        None => {
            let mut random = 0x9e37_79b9_7f4a_7c15;
            let noise: Vec<u8> = (0..TOTAL).map(|_| xorshift(&mut random) as u8).collect();
            measure_all("random bytes", &noise);
            measure_all("text-like bytes", &text(&mut random));
        }
    }
}

fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Words from a vocabulary of 4096, the early ones more often.
fn text(random: &mut u64) -> Vec<u8> {
    let words: Vec<Vec<u8>> = (0..4096)
        .map(|_| {
            let len = 2 + xorshift(random) % 9;
            (0..len)
                .map(|_| b'a' + (xorshift(random) % 26) as u8)
                .collect()
        })
        .collect();
    let mut out = Vec::with_capacity(TOTAL + 16);
    while out.len() < TOTAL {
        let index = (xorshift(random) % 4096) * (xorshift(random) % 4096) / 4096;
        out.extend_from_slice(&words[index as usize]);
        out.push(if xorshift(random).is_multiple_of(16) {
            b'\n'
        } else {
            b' '
        });
    }
    out.truncate(TOTAL);
    out
}

/// Runs `work`, which handles `bytes`, until half a second has passed; prints the best run.
fn measure(part: &str, bytes: usize, mut work: impl FnMut()) {
    let mut best = Duration::MAX;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(500) {
        let start = Instant::now();
        work();
        best = best.min(start.elapsed());
    }
    let rate = bytes as f64 / best.as_secs_f64() / 1e9;
    println!("  {part:<44} {rate:7.2} GB/s");
}

fn measure_all(name: &str, data: &[u8]) {
    println!("{name}, {} bytes", data.len());
    chunking(data);
    let secret = DomainSecret::from_bytes([7; 32]);
    measure("fingerprint, 128 KiB", data.len(), || {
        for piece in data.chunks(PIECE) {
            black_box(secret.fingerprint(piece));
        }
    });
    parity(data);
    for codec in [Codec::Lz4, Codec::Zstd(1), Codec::Zstd(3)] {
        compression(codec, data);
    }
    for cipher in [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] {
        sealing(cipher, &secret, data);
    }
}

/// Of a full table segment.
fn parity(data: &[u8]) {
    const TOTAL_BLOCKS: usize = 512;
    let content = content_blocks_max(TOTAL_BLOCKS);
    let mut segment = data[..TOTAL_BLOCKS * 4096].to_vec();
    measure("parity, 2 MiB", segment.len(), || {
        fill_parity(&mut segment, content);
        black_box(&segment);
    });
}

fn chunking(data: &[u8]) {
    for (min, avg, max) in [(64, 128, 256), (32, 128, 512)] {
        let params = ChunkParams::new(min << 10, avg << 10, max << 10).expect("sound lengths");
        let chunker = Chunker::new(params);
        let mut count = 0;
        measure(&format!("chunk {min}/{avg}/{max} KiB"), data.len(), || {
            let mut rest = data;
            count = 0;
            while let Some(len) = chunker.cut(rest, true) {
                rest = &rest[len..];
                count += 1;
            }
        });
        println!("    mean {} bytes", data.len() / count);
        measure(
            &format!("  fastcdc v2020 {min}/{avg}/{max} KiB"),
            data.len(),
            || {
                let [min, avg, max] = [min, avg, max].map(|kib: u32| (kib as usize) << 10);
                let chunks = fastcdc::v2020::FastCDC::new(data, min, avg, max);
                count = black_box(chunks.count());
            },
        );
        println!("    mean {} bytes", data.len() / count);
    }
}

fn compression(codec: Codec, data: &[u8]) {
    let mut compressor = Compressor::new();
    let mut out = Vec::with_capacity(2 * PIECE);
    let mut stored = 0;
    measure(&format!("compress {codec}, 128 KiB"), data.len(), || {
        stored = 0;
        for piece in data.chunks(PIECE) {
            out.clear();
            black_box(compressor.compress(codec, piece, &mut out));
            stored += out.len();
        }
    });
    println!("    ratio {:.2}", data.len() as f64 / stored as f64);
    let packed: Vec<(u8, usize, Vec<u8>)> = data
        .chunks(PIECE)
        .map(|piece| {
            let mut out = Vec::new();
            let used = compressor.compress(codec, piece, &mut out);
            (used, piece.len(), out)
        })
        .collect();
    measure(&format!("decompress {codec}, 128 KiB"), data.len(), || {
        for (used, raw_len, bytes) in &packed {
            decompress(*used, bytes, *raw_len, &mut out).expect("just compressed");
        }
    });
}

fn sealing(cipher: Cipher, secret: &DomainSecret, data: &[u8]) {
    let header_cipher = BlockCipher::new(cipher, &[3; 32]);
    let mut sealer = ChunkSealer::new(cipher);
    let mut out = Vec::with_capacity(2 * PIECE);
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
    measure(
        &format!("seal {cipher:?}, 128 KiB, no codec"),
        data.len(),
        || {
            for piece in data.chunks(PIECE) {
                out.clear();
                sealer.seal(
                    secret,
                    &fields,
                    Codec::None,
                    piece,
                    place,
                    &header_cipher,
                    &mut out,
                );
            }
        },
    );
    let records: Vec<Vec<u8>> = data
        .chunks(PIECE)
        .map(|piece| {
            let mut record = Vec::new();
            sealer.seal(
                secret,
                &fields,
                Codec::None,
                piece,
                place,
                &header_cipher,
                &mut record,
            );
            record
        })
        .collect();
    let mut scratch = Vec::new();
    measure(
        &format!("open {cipher:?}, 128 KiB, no codec"),
        data.len(),
        || {
            for record in &records {
                open_record(
                    record,
                    place,
                    &header_cipher,
                    |_| Some(secret),
                    &mut scratch,
                    &mut out,
                )
                .expect("just sealed");
            }
        },
    );
    let block = BlockCipher::new(cipher, &[5; 32]);
    let mut buf = data[..4096].to_vec();
    measure(
        &format!("seal {cipher:?}, 4 KiB blocks"),
        4096 * 1024,
        || {
            for index in 0..1024 {
                black_box(block.seal_slice(SegmentSeq(9), index, &[], &mut buf));
            }
        },
    );
}
