//! Runs the hot functions on fixed input, each once in `cfs_measured`, whose instructions `cargo xtask instructions`
//! counts. Prints what the processor offers, then the names in the order in which they run.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cfs_device::{Device, MemDevice};
use cfs_format::superblock::{ChunkParams as StoredParams, KeySlot};
use cfs_format::{DomainId, Ino, KeyEpoch, SegmentSeq};
use cfs_fs::{Caller, Fs, FsOptions};
use cfs_kv::{Batch, BlockCache, BlockPtr, RunError, RunReason, RunStore, RunWriter};
use cfs_kv::{Tree, TreeOptions};
use cfs_seal::block::{BlockCipher, Cipher};
use cfs_seal::chunk::{ChunkFields, ChunkSealer, RecordPlace, open_record};
use cfs_seal::chunker::{ChunkParams, Chunker, Instructions};
use cfs_seal::codec::Codec;
use cfs_seal::keys::{ClusterKey, DomainSecret};
use cfs_store::{Host, Store, StoreOptions};
use parking_lot::Mutex;
use zerocopy::FromZeros;

fn main() {
    println!("{}", processor());
    let data = text(1 << 20);
    chunking(&data);
    sealing(&data[..128 << 10]);
    table();
    small_files();
}

/// Its name is known to `cargo xtask instructions`, which counts from its first instruction to its last.
// SAFETY: nothing else in the program has this name.
#[unsafe(no_mangle)]
#[inline(never)]
fn cfs_measured(work: &mut dyn FnMut()) {
    work();
}

/// The first time, what is set up once is set up; the second time counts.
fn measure(name: &str, mut work: impl FnMut()) {
    work();
    println!("{name}");
    cfs_measured(&mut work);
}

/// What libraries ask for before they choose between their ways.
#[cfg(target_arch = "x86_64")]
fn processor() -> String {
    let mut found = vec!["x86_64"];
    macro_rules! note {
        ($($feature:tt)*) => {
            $(if is_x86_feature_detected!($feature) { found.push($feature); })*
        };
    }
    note!("sse3" "ssse3" "sse4.1" "sse4.2" "popcnt" "lzcnt" "bmi1" "bmi2" "adx" "avx" "avx2" "fma" "f16c" "movbe");
    note!("aes" "pclmulqdq" "sha" "rdrand" "rdseed" "vaes" "vpclmulqdq" "avx512f" "avx512bw" "avx512vl");
    found.join(" ")
}

#[cfg(not(target_arch = "x86_64"))]
fn processor() -> String {
    std::env::consts::ARCH.to_owned()
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn key(&mut self) -> Vec<u8> {
        let words: [u64; 4] = std::array::from_fn(|_| self.next());
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}

/// Words from a small vocabulary.
fn text(len: usize) -> Vec<u8> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let words: Vec<Vec<u8>> = (0..1024)
        .map(|_| {
            let letters = 2 + random.next() % 9;
            (0..letters)
                .map(|_| b'a' + (random.next() % 26) as u8)
                .collect()
        })
        .collect();
    let mut out = Vec::with_capacity(len + 16);
    while out.len() < len {
        out.extend_from_slice(&words[(random.next() % 1024) as usize]);
        out.push(b' ');
    }
    out.truncate(len);
    out
}

fn chunking(data: &[u8]) {
    for instructions in Instructions::available() {
        let chunker = Chunker::with_instructions(ChunkParams::DEFAULT, instructions);
        let chunker = chunker.expect("instructions of this machine");
        measure(&format!("chunk 1 MiB, {instructions:?}"), || {
            let mut rest = data;
            while let Some(len) = chunker.cut(rest, true) {
                rest = &rest[len..];
            }
        });
    }
}

fn sealing(data: &[u8]) {
    let secret = DomainSecret::from_bytes([7; 32]);
    measure("fingerprint 128 KiB", || {
        black_box(secret.fingerprint(data));
    });
    let header_cipher = BlockCipher::new(Cipher::Aes256Gcm, &[3; 32]);
    let mut sealer = ChunkSealer::new(Cipher::Aes256Gcm);
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
    let mut record = Vec::with_capacity(1 << 20);
    let mut scratch = Vec::with_capacity(1 << 20);
    let mut out = Vec::with_capacity(1 << 20);
    for codec in [Codec::None, Codec::Lz4, Codec::Zstd(1), Codec::Zstd(3)] {
        measure(&format!("seal 128 KiB, {codec}"), || {
            record.clear();
            sealer.seal(
                &secret,
                &fields,
                codec,
                data,
                place,
                &header_cipher,
                &mut record,
            );
        });
        measure(&format!("open 128 KiB, {codec}"), || {
            open_record(
                &record,
                place,
                &header_cipher,
                |_| Some(&secret),
                &mut scratch,
                &mut out,
            )
            .expect("just sealed");
        });
    }
    let mut block = data[..4096].to_vec();
    measure("seal a block of 4 KiB", || {
        black_box(header_cipher.seal_slice(SegmentSeq(9), 1, &[], &mut block));
    });
}

/// Blocks of runs, in memory, never freed.
#[derive(Default)]
struct Runs(Mutex<Vec<Vec<u8>>>);

impl RunStore for Runs {
    fn create_run(&self, _: RunReason, _: u64) -> Result<Box<dyn RunWriter + '_>, RunError> {
        Ok(Box::new(self))
    }

    fn read_block(&self, block: BlockPtr) -> Result<Vec<u8>, RunError> {
        Ok(self.0.lock()[block.place as usize].clone())
    }

    fn release_run(&self, _: &[u64]) {}
}

impl RunWriter for &Runs {
    fn append_block(&mut self, plain: &[u8]) -> Result<BlockPtr, RunError> {
        let mut blocks = self.0.lock();
        blocks.push(plain.to_vec());
        Ok(BlockPtr {
            place: blocks.len() as u64 - 1,
            stored_len: plain.len() as u32,
        })
    }

    fn finish(self: Box<Self>, _: Option<&[u8]>) -> Result<Vec<u64>, RunError> {
        Ok(Vec::new())
    }
}

fn table() {
    const ENTRIES: usize = 10_000;
    let mut random = Random(1);
    let cache = Arc::new(BlockCache::new(64 << 20));
    let tree = Tree::create(Arc::new(Runs::default()), cache, TreeOptions::default());
    let mut batch = Batch::new();
    let there: Vec<_> = (0..ENTRIES).map(|_| random.key()).collect();
    for key in &there {
        batch.put(key.clone(), vec![1; 40]);
    }
    tree.apply(&batch);
    tree.rotate();
    tree.flush_rotated().expect("memory does not fail");
    let missing: Vec<_> = (0..1000).map(|_| random.key()).collect();
    measure("1,000 lookups in a table that hit", || {
        for key in &there[..1000] {
            assert!(tree.get(key).expect("memory does not fail").is_some());
        }
    });
    measure("1,000 lookups in a table that miss", || {
        for key in &missing {
            assert!(tree.get(key).expect("memory does not fail").is_none());
        }
    });
    measure("1,000 entries into a table", || {
        let mut batch = Batch::new();
        for _ in 0..1000 {
            batch.put(random.key(), vec![1; 40]);
        }
        tree.apply(&batch);
    });
}

struct FixedHost(AtomicU64);

impl Host for FixedHost {
    fn now_ns(&self) -> u64 {
        self.0.fetch_add(100_000, Ordering::Relaxed)
    }

    fn fill_random(&self, buf: &mut [u8]) {
        let mut random = Random(self.0.fetch_add(1, Ordering::Relaxed));
        buf.fill_with(|| random.next() as u8);
    }
}

/// All in this thread.
fn small_files() {
    let device: Arc<dyn Device> = Arc::new(MemDevice::new(256));
    let host: Arc<dyn Host> = Arc::new(FixedHost(AtomicU64::new(1_700_000_000_000_000_000)));
    let key = || ClusterKey::from_bytes([9; 32]);
    let options = cfs_store::FormatOptions {
        cipher: Cipher::Aes256Gcm,
        chunk: StoredParams {
            min: (64 << 10).into(),
            avg: (128 << 10).into(),
            max: (256 << 10).into(),
            algorithm: 1.into(),
        },
        pool_bytes_max: 0,
        domain_secret: Some(Arc::new(DomainSecret::from_bytes([3; 32]))),
    };
    Store::format(&device, &host, key(), KeySlot::new_zeroed(), &options).expect("format");
    let store = Store::open(
        Arc::clone(&device),
        Arc::clone(&host),
        |_| Ok(key()),
        StoreOptions::default(),
        cfs_fs::replay,
    )
    .expect("open the store");
    let (codec, codec_level) = Codec::Lz4.numbers();
    let options = cfs_fs::FormatOptions {
        uid: 0,
        gid: 0,
        codec,
        codec_level,
    };
    Fs::format(&store, &*host, &options).expect("format the file system");
    store.close().expect("close the store");
    let fs = Fs::open_pool(
        device,
        host,
        |_| Ok(key()),
        StoreOptions::default(),
        FsOptions::default(),
    )
    .expect("open the file system");
    let content = text(64 << 10);
    for (name, bytes) in [("2 KiB", 2 << 10), ("64 KiB", 64 << 10)] {
        let mut count = 0u64;
        measure(
            &format!("create, write and sync 10 files of {name}"),
            || {
                for _ in 0..10 {
                    count += 1;
                    let file = format!("{name} {count}");
                    let file = fs.create(Ino::ROOT, file.as_bytes(), 0o644, &Caller::default());
                    let ino = file.expect("create").ino;
                    let mut content = content[..bytes].to_vec();
                    content[..8].copy_from_slice(&count.to_le_bytes());
                    fs.write(ino, 0, &content, false).expect("write");
                    fs.fsync(ino, false).expect("sync");
                }
            },
        );
    }
    fs.close().expect("close");
}
