//! Ingest without a file system: chunk, fingerprint, compress, encrypt and append, with one worker and with two, to a
//! device in memory and to a file. Prints GB/s (10^9 bytes) a data kind.
//!
//! `cargo bench -p cfs-store --bench ingest -- DIR [GIB]` (default: the system's temporary folder, 1 GiB a run).

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use cfs_device::{Device, FileDevice, MemDevice};
use cfs_format::DomainId;
use cfs_format::superblock::{ChunkParams, KeySlot};
use cfs_seal::block::Cipher;
use cfs_seal::chunker::{ChunkParams as CutParams, Chunker};
use cfs_seal::codec::Codec;
use cfs_seal::keys::ClusterKey;
use cfs_store::{FormatOptions, Host, Store, StoreOptions};
use zerocopy::FromZeros;

struct BenchHost;

impl Host for BenchHost {
    fn now_ns(&self) -> u64 {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos() as u64)
    }
    fn fill_random(&self, buf: &mut [u8]) {
        for (index, byte) in buf.iter_mut().enumerate() {
            *byte = index as u8;
        }
    }
}

fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Fills `block` with data that LZ4 shrinks to about a half, or not at all.
fn fill(block: &mut [u8], state: &mut u64, compressible: bool) {
    for words in block.chunks_exact_mut(16) {
        let value = next(state);
        let second = if compressible {
            value & 0x0101
        } else {
            next(state)
        };
        words[..8].copy_from_slice(&value.to_le_bytes());
        words[8..].copy_from_slice(&second.to_le_bytes());
    }
}

fn open(device: Arc<dyn Device>) -> Arc<Store> {
    let host: Arc<dyn Host> = Arc::new(BenchHost);
    let options = FormatOptions {
        cipher: Cipher::Aes256Gcm,
        chunk: ChunkParams {
            min: (64 << 10).into(),
            avg: (128 << 10).into(),
            max: (256 << 10).into(),
            algorithm: 1.into(),
        },
        pool_bytes_max: 0,
        domain_secret: None,
    };
    Store::format(
        &device,
        &host,
        ClusterKey::from_bytes([1; 32]),
        KeySlot::new_zeroed(),
        &options,
    )
    .expect("format");
    Store::open(
        device,
        host,
        |_| Ok(ClusterKey::from_bytes([1; 32])),
        StoreOptions::default(),
        |_, _| Ok(()),
    )
    .expect("open")
}

/// Seconds that `workers` take for `bytes` in all; each repeats its block of 64 MiB, changed a little each time
/// unless it is to be a duplicate.
fn ingest(
    store: &Arc<Store>,
    workers: usize,
    bytes: u64,
    compressible: bool,
    duplicate: bool,
) -> f64 {
    let mut blocks: Vec<Vec<u8>> = (0..workers)
        .map(|worker| {
            let mut block = vec![0; 64 << 20];
            fill(
                &mut block,
                &mut (worker as u64 + 77 + u64::from(compressible)),
                compressible,
            );
            block
        })
        .collect();
    let chunker = Chunker::new(CutParams::new(64 << 10, 128 << 10, 256 << 10).expect("valid"));
    let put = |lane: usize, block: &[u8]| {
        let mut rest = block;
        let mut pins = Vec::new();
        while !rest.is_empty() {
            let len = chunker
                .cut(rest, true)
                .expect("at the end every cut is certain");
            pins.push(
                store
                    .put_chunk(lane, DomainId::DEFAULT, Codec::Lz4, &rest[..len])
                    .expect("put"),
            );
            rest = &rest[len..];
        }
        pins
    };
    // Duplicates are found among pinned chunks or in the index alike; pins spare the bench a namespace.
    let pinned: Vec<_> = if duplicate {
        blocks
            .iter()
            .enumerate()
            .map(|(lane, block)| put(lane, block))
            .collect()
    } else {
        Vec::new()
    };
    let rounds = bytes / (workers as u64 * (64 << 20));
    let start = Instant::now();
    std::thread::scope(|scope| {
        for (lane, block) in blocks.iter_mut().enumerate() {
            let put = &put;
            scope.spawn(move || {
                for round in 0..rounds {
                    if !duplicate {
                        for page in block.chunks_exact_mut(32 << 10) {
                            page[..8].copy_from_slice(
                                &(round + 1)
                                    .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                                    .to_le_bytes(),
                            );
                            page[8] = lane as u8;
                        }
                    }
                    put(lane, block);
                }
            });
        }
    });
    store.sync().expect("sync");
    store.checkpoint().expect("checkpoint");
    let seconds = start.elapsed().as_secs_f64();
    drop(pinned);
    seconds
}

fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench");
    let dir = arguments.next().map_or_else(std::env::temp_dir, Into::into);
    let gib: u64 = arguments
        .next()
        .map_or(1, |gib| gib.parse().expect("GIB is a number"));
    let bytes = gib << 30;
    println!("| data | device | workers | GB/s |\n| --- | --- | --- | --- |");
    for (name, compressible, duplicate) in [
        ("compressible", true, false),
        ("incompressible", false, false),
        ("duplicate", false, true),
    ] {
        for on_disk in [false, true] {
            for workers in [1, 2] {
                let path = dir.join(format!("cfs-bench-ingest-{}", std::process::id()));
                let device: Arc<dyn Device> = if on_disk {
                    file_device(&path)
                } else {
                    Arc::new(MemDevice::new(4096))
                };
                let store = open(device);
                let seconds = ingest(&store, workers, bytes, compressible, duplicate);
                println!(
                    "| {name} | {} | {workers} | {:.2} |",
                    if on_disk { "file" } else { "memory" },
                    bytes as f64 / seconds / 1e9
                );
                drop(store);
                if on_disk {
                    std::fs::remove_file(&path).expect("remove the bench's pool");
                }
            }
        }
    }
}

fn file_device(path: &Path) -> Arc<dyn Device> {
    Arc::new(FileDevice::create(path, 1 << 16).expect("create"))
}
