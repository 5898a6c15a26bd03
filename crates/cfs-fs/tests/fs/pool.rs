//! A pool in memory for tests: device, host with a clock that only calls move, and a small random generator.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cfs_device::{Device, MemDevice};
use cfs_format::superblock::{ChunkParams, KeySlot, UNLOCK_KEY_FILE};
use cfs_fs::{Fs, FsOptions};
use cfs_seal::block::Cipher;
use cfs_seal::codec::Codec;
use cfs_seal::keys::{
    ClusterKey, DomainSecret, MasterKey, render_key_file, unwrap_cluster_key, wrap_cluster_key,
};
use cfs_store::{Host, Store, StoreOptions, UnlockError};
use zerocopy::FromZeros;

/// Nanoseconds that a look at the clock takes.
const TICK_NS: u64 = 100_000;

pub struct TestHost(pub AtomicU64);

impl Host for TestHost {
    fn now_ns(&self) -> u64 {
        self.0.fetch_add(TICK_NS, Ordering::Relaxed)
    }

    fn fill_random(&self, buf: &mut [u8]) {
        let mut rng = Rng::new(self.0.fetch_add(1, Ordering::Relaxed));
        buf.fill_with(|| rng.next() as u8);
    }
}

/// A splitmix64 generator.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

/// Of the first dedup domain.
pub const SECRET: [u8; 32] = [3; 32];

pub struct Pool {
    pub device: Arc<MemDevice>,
    pub host: Arc<TestHost>,
}

pub fn master_key() -> MasterKey {
    MasterKey::from_key_file_bytes(&render_key_file(&[7; 32])).expect("a rendered key file parses")
}

impl Pool {
    /// A formatted pool of so many segments.
    pub fn new(segment_count: u32) -> Self {
        // The same for all, so that each can be a replica of any other.
        Self::with_secret(segment_count, SECRET)
    }

    /// The same, with this secret of its first dedup domain.
    pub fn with_secret(segment_count: u32, domain_secret: [u8; 32]) -> Self {
        let pool = Self {
            device: Arc::new(MemDevice::new(segment_count)),
            host: Arc::new(TestHost(AtomicU64::new(1_700_000_000_000_000_000))),
        };
        let cluster_key = ClusterKey::from_bytes([9; 32]);
        let mut slot = KeySlot::new_zeroed();
        slot.unlock = UNLOCK_KEY_FILE;
        wrap_cluster_key(&master_key(), &cluster_key, &mut slot);
        let options = cfs_store::FormatOptions {
            cipher: Cipher::Aes256Gcm,
            chunk: ChunkParams {
                min: (64 << 10).into(),
                avg: (128 << 10).into(),
                max: (256 << 10).into(),
                algorithm: 1.into(),
            },
            pool_bytes_max: 0,
            domain_secret: Some(Arc::new(DomainSecret::from_bytes(domain_secret))),
        };
        let (device, host): (Arc<dyn Device>, Arc<dyn Host>) =
            (pool.device.clone(), pool.host.clone());
        Store::format(&device, &host, cluster_key, slot, &options).expect("format the store");
        let store = Store::open(
            device,
            host,
            |superblock| {
                unwrap_cluster_key(&master_key(), &superblock.key_slot)
                    .map_err(|_| UnlockError::WrongKey)
            },
            StoreOptions::default(),
            cfs_fs::replay,
        )
        .expect("open the empty store");
        let (codec, codec_level) = Codec::Lz4.numbers();
        let options = cfs_fs::FormatOptions {
            uid: 0,
            gid: 0,
            codec,
            codec_level,
        };
        Fs::format(&store, &*pool.host, &options).expect("format the file system");
        store.close().expect("close the empty store");
        pool
    }

    /// Opens it; everything runs in the calling thread.
    pub fn open(&self) -> Arc<Fs> {
        self.open_with(FsOptions::default())
    }

    /// Opens it.
    pub fn open_with(&self, options: FsOptions) -> Arc<Fs> {
        Fs::open_pool(
            self.device.clone(),
            self.host.clone(),
            |superblock| {
                unwrap_cluster_key(&master_key(), &superblock.key_slot)
                    .map_err(|_| UnlockError::WrongKey)
            },
            StoreOptions::default(),
            options,
        )
        .expect("open the file system")
    }

    /// What the device may hold after a power cut now.
    pub fn power_cut(&self, seed: u64) -> Self {
        Self {
            device: Arc::new(self.device.power_cut(seed)),
            host: Arc::clone(&self.host),
        }
    }

    /// Moves the clock on.
    pub fn sleep_ms(&self, ms: u64) {
        self.host.0.fetch_add(ms * 1_000_000, Ordering::Relaxed);
    }
}

/// Fails with the findings if the tables do not agree.
pub fn assert_clean(fs: &Fs) {
    let report = fs
        .check(|_| true)
        .expect("tables can be read")
        .expect("it was not ended");
    let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    assert!(findings.is_empty(), "findings:\n{}", findings.join("\n"));
}
