//! GB/s of each part on one core, with warm buffers, beside what others make of the same data.
//!
//! `cargo bench -p cfs-seal --bench parts [PATH]`: with a path, the data are that file's first 8 MiB; without one,
//! random bytes, and text-like bytes made from a small vocabulary. Edits are tried on up to 128 MiB of the same.

mod edits;

use std::hint::black_box;
use std::time::{Duration, Instant};

use cfs_format::{DomainId, KeyEpoch, SegmentSeq};
use cfs_seal::block::{BlockCipher, Cipher};
use cfs_seal::chunk::{ChunkFields, ChunkSealer, RecordPlace, open_record};
use cfs_seal::chunker::{ChunkParams, Chunker, Instructions};
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
            data.truncate(edits::CONTENT_BYTES_MAX);
            measure_all(&path, &data[..data.len().min(TOTAL)]);
            edits::compare(&data);
        }
        None => {
            let mut random = 0x9e37_79b9_7f4a_7c15;
            let total = edits::CONTENT_BYTES_MAX;
            let noise: Vec<u8> = (0..total).map(|_| xorshift(&mut random) as u8).collect();
            measure_all("random bytes", &noise[..TOTAL]);
            edits::compare(&noise);
            let text = text(&mut random, total);
            measure_all("text-like bytes", &text[..TOTAL]);
            edits::compare(&text);
        }
    }
}

fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// `total` bytes of words from a vocabulary of 4096, the early ones more often.
fn text(random: &mut u64, total: usize) -> Vec<u8> {
    let words: Vec<Vec<u8>> = (0..4096)
        .map(|_| {
            let len = 2 + xorshift(random) % 9;
            (0..len)
                .map(|_| b'a' + (xorshift(random) % 26) as u8)
                .collect()
        })
        .collect();
    let mut out = Vec::with_capacity(total + 16);
    while out.len() < total {
        let index = (xorshift(random) % 4096) * (xorshift(random) % 4096) / 4096;
        out.extend_from_slice(&words[index as usize]);
        out.push(if xorshift(random).is_multiple_of(16) {
            b'\n'
        } else {
            b' '
        });
    }
    out.truncate(total);
    out
}

/// Runs `work`, which handles `bytes`, until half a second has passed; prints the best run.
fn measure(part: &str, bytes: usize, mut work: impl FnMut()) {
    measure_in_turns(bytes, &mut [(part.to_owned(), &mut work)]);
}

/// Runs each piece of work, which handles `bytes`, in turns for half a second each; prints the best run and the median,
/// and how the bests compare with the last one's.
fn measure_in_turns(bytes: usize, parts: &mut [(String, &mut dyn FnMut())]) {
    let mut times = vec![Vec::new(); parts.len()];
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(500) * parts.len() as u32 {
        for ((_, work), times) in parts.iter_mut().zip(&mut times) {
            let start = Instant::now();
            work();
            times.push(start.elapsed());
        }
    }
    let rate = |time: Duration| bytes as f64 / time.as_secs_f64() / 1e9;
    for times in &mut times {
        times.sort_unstable();
    }
    let best_of_last = times.last().map_or(1.0, |times| rate(times[0]));
    for ((part, _), times) in parts.iter().zip(&times) {
        let (best, median) = (rate(times[0]), rate(times[times.len() / 2]));
        print!("  {part:<44} {best:7.2} GB/s, median {median:7.2}");
        if parts.len() > 1 {
            print!(", {:5.2} x", best / best_of_last);
        }
        println!();
    }
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
    let chunker = Chunker::new(ChunkParams::DEFAULT);
    measure("a duplicate: chunk, fingerprint", data.len(), || {
        for chunk in chunks(&chunker, data) {
            black_box(secret.fingerprint(chunk));
        }
    });
    whole(&chunker, &secret, data);
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

/// Each way to search that the machine has, beside `fastcdc`.
fn chunking(data: &[u8]) {
    for (min, avg, max) in [(64, 128, 256), (32, 128, 512)] {
        let params = ChunkParams::new(min << 10, avg << 10, max << 10).expect("sound lengths");
        println!("  chunks of {min}/{avg}/{max} KiB");
        let mut ours: Vec<_> = Instructions::available()
            .into_iter()
            .map(|instructions| {
                let chunker = Chunker::with_instructions(params, instructions);
                let chunker = chunker.expect("instructions of this machine");
                let work = move || {
                    black_box(count_chunks(&chunker, data));
                };
                (format!("  {instructions:?}"), work)
            })
            .collect();
        let count_theirs = || {
            let [min, avg, max] = [min, avg, max].map(|kib: u32| (kib as usize) << 10);
            fastcdc::v2020::FastCDC::new(data, min, avg, max).count()
        };
        let mut theirs = || {
            black_box(count_theirs());
        };
        let mut parts: Vec<(String, &mut dyn FnMut())> = Vec::new();
        for (name, work) in &mut ours {
            parts.push((name.clone(), work));
        }
        parts.push(("  fastcdc v2020".to_owned(), &mut theirs));
        measure_in_turns(data.len(), &mut parts);
        let mean = data.len() / count_chunks(&Chunker::new(params), data);
        let mean_of_theirs = data.len() / count_theirs();
        println!("    mean {mean} bytes, fastcdc {mean_of_theirs}");
    }
}

fn count_chunks(chunker: &Chunker, data: &[u8]) -> usize {
    chunks(chunker, data).count()
}

fn chunks<'a>(chunker: &Chunker, mut rest: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    std::iter::from_fn(move || {
        let (chunk, after) = rest.split_at(chunker.cut(rest, true)?);
        rest = after;
        Some(chunk)
    })
}

/// A new chunk's whole way in, beside its parts one after the other, and its way out.
fn whole(chunker: &Chunker, secret: &DomainSecret, data: &[u8]) {
    let header_cipher = BlockCipher::new(Cipher::Aes256Gcm, &[3; 32]);
    let place = RecordPlace {
        seq: SegmentSeq(1),
        offset: 4096,
    };
    let fields = |chunk: &[u8]| ChunkFields {
        domain: DomainId::DEFAULT,
        fingerprint: secret.fingerprint(chunk),
        salt: [1; 16],
        created_ns: 1,
        epoch: KeyEpoch(1),
    };
    for codec in [Codec::Lz4, Codec::Zstd(1)] {
        let pieces: Vec<_> = chunks(chunker, data)
            .map(|chunk| (chunk, fields(chunk)))
            .collect();
        let seal = |sealer: &mut ChunkSealer, chunk: &[u8], fields: &_, out: &mut Vec<u8>| {
            sealer.seal(secret, fields, codec, chunk, place, &header_cipher, out);
        };
        let mut sealer = ChunkSealer::new(Cipher::Aes256Gcm);
        let mut records = Vec::new();
        for (chunk, fields) in &pieces {
            let mut record = Vec::new();
            seal(&mut sealer, chunk, fields, &mut record);
            records.push(record);
        }
        let mut out = Vec::with_capacity(1 << 20);
        let mut together = || {
            for chunk in chunks(chunker, data) {
                out.clear();
                seal(&mut sealer, chunk, &fields(chunk), &mut out);
            }
        };
        let mut sealer_apart = ChunkSealer::new(Cipher::Aes256Gcm);
        let mut out_apart = Vec::with_capacity(1 << 20);
        let mut apart = || {
            black_box(count_chunks(chunker, data));
            for (chunk, _) in &pieces {
                black_box(fields(chunk));
            }
            for (chunk, fields) in &pieces {
                out_apart.clear();
                seal(&mut sealer_apart, chunk, fields, &mut out_apart);
            }
        };
        let name = format!("new, {codec}: chunk, fingerprint, seal");
        let of_parts = "  the parts one after the other".to_owned();
        measure_in_turns(
            data.len(),
            &mut [(name, &mut together), (of_parts, &mut apart)],
        );
        let mut scratch = Vec::new();
        let mut opened = Vec::with_capacity(1 << 20);
        measure(&format!("open and verify, {codec}"), data.len(), || {
            for record in &records {
                let secret_of = |_| Some(secret);
                open_record(
                    record,
                    place,
                    &header_cipher,
                    secret_of,
                    &mut scratch,
                    &mut opened,
                )
                .expect("just sealed");
            }
        });
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
