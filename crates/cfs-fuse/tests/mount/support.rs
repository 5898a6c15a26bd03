//! A pool in memory, mounted. Dropping it unmounts, also when a test panics, and checks the tables.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cfs_device::{Device, MemDevice};
use cfs_format::superblock::{ChunkParams, KeySlot, UNLOCK_KEY_FILE};
use cfs_fs::{Fs, FsOptions};
use cfs_fuse::{MountError, MountOptions, Mounted};
use cfs_seal::block::Cipher;
use cfs_seal::codec::Codec;
use cfs_seal::keys::{
    ClusterKey, MasterKey, render_key_file, unwrap_cluster_key, wrap_cluster_key,
};
use cfs_store::{Host, Store, StoreOptions, UnlockError};
use zerocopy::FromZeros;

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

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

struct SystemHost(AtomicU64);

impl Host for SystemHost {
    fn now_ns(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.expect("after 1970").as_nanos() as u64
    }

    fn fill_random(&self, buf: &mut [u8]) {
        let mut rng = Rng::new(self.0.fetch_add(1, Ordering::Relaxed));
        buf.fill_with(|| rng.next() as u8);
    }
}

fn open_pool(device: Arc<dyn Device>) -> Arc<Fs> {
    let master_key = MasterKey::from_key_file_bytes(&render_key_file(&[7; 32]));
    let master_key = master_key.expect("a rendered key file parses");
    let host: Arc<dyn Host> = Arc::new(SystemHost(AtomicU64::new(1)));
    let cluster_key = ClusterKey::from_bytes([9; 32]);
    let mut slot = KeySlot::new_zeroed();
    slot.unlock = UNLOCK_KEY_FILE;
    wrap_cluster_key(&master_key, &cluster_key, &mut slot);
    let options = cfs_store::FormatOptions {
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
    Store::format(&device, &host, cluster_key, slot, &options).expect("format the store");
    let unlock = |superblock: &cfs_format::superblock::Superblock| {
        unwrap_cluster_key(&master_key, &superblock.key_slot).map_err(|_| UnlockError::WrongKey)
    };
    let store = Store::open(
        Arc::clone(&device),
        Arc::clone(&host),
        unlock,
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
    Fs::format(&store, &*host, &options).expect("format the file system");
    store.close().expect("close the empty store");
    drop(store);
    let options = FsOptions::default();
    Fs::open_pool(device, host, unlock, StoreOptions::default(), options).expect("open the pool")
}

/// A pool in memory at a mount point.
pub struct TestMount {
    pub fs: Arc<Fs>,
    mounted: Option<Mounted>,
    root: PathBuf,
    stop: Arc<AtomicBool>,
    ticker: Option<JoinHandle<cfs_fs::Result<()>>>,
    is_broken: bool,
    _directory: tempfile::TempDir,
}

/// Says loudly that a test cannot run here. Where everything is at hand, that is a failure.
pub fn skip(reason: &str) {
    let required = std::env::var_os("CFS_REQUIRE_FUSE").is_some();
    assert!(!required, "CFS_REQUIRE_FUSE is set, but: {reason}");
    eprintln!("\n**** SKIPPED, nothing was tested: {reason} ****\n");
}

/// A mounted pool, or `None`, said loudly, where this machine does not let this user mount.
pub fn mount() -> Option<TestMount> {
    mount_with(|_| ())
}

pub fn mount_with(adjust: impl FnOnce(&mut MountOptions)) -> Option<TestMount> {
    mount_pool(Arc::new(MemDevice::new(128)), adjust)
}

/// As [`mount`], of a pool on this device, which is made anew.
pub fn mount_on(device: Arc<dyn Device>) -> Option<TestMount> {
    mount_pool(device, |_| ())
}

fn mount_pool(
    device: Arc<dyn Device>,
    adjust: impl FnOnce(&mut MountOptions),
) -> Option<TestMount> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory.path(), all).expect("open the directory to others");
    let root = directory.path().join("mnt");
    std::fs::create_dir(&root).expect("make the mount point");
    let mut options = MountOptions::new(&root);
    adjust(&mut options);
    let fs = open_pool(device);
    let mounted = match cfs_fuse::mount(Arc::clone(&fs), &options) {
        Ok(mounted) => mounted,
        Err(
            error @ (MountError::NoDevice
            | MountError::DeviceForbidden { .. }
            | MountError::NoHelper),
        ) => {
            skip(&error.to_string());
            return None;
        }
        Err(error) => panic!("mounting failed: {error}"),
    };
    let stop = Arc::new(AtomicBool::new(false));
    let ticker = std::thread::spawn({
        let (fs, stop) = (Arc::clone(&fs), Arc::clone(&stop));
        move || {
            while !stop.load(Ordering::Relaxed) {
                fs.tick()?;
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        }
    });
    Some(TestMount {
        fs,
        root: mounted.mountpoint().to_path_buf(),
        mounted: Some(mounted),
        stop,
        ticker: Some(ticker),
        is_broken: false,
        _directory: directory,
    })
}

impl TestMount {
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// Its device has failed: nothing more is expected of the pool.
    pub fn end_broken(mut self) {
        self.is_broken = true;
    }

    pub fn mounted(&self) -> &Mounted {
        self.mounted.as_ref().expect("taken on drop alone")
    }
}

impl Drop for TestMount {
    fn drop(&mut self) {
        self.mounted = None;
        self.stop.store(true, Ordering::Relaxed);
        let ticked = self.ticker.take().map(JoinHandle::join);
        if std::thread::panicking() || self.is_broken {
            return;
        }
        let ticked = ticked.expect("set by mount").expect("no panic");
        ticked.expect("background work");
        let report = self
            .fs
            .check(|_| true)
            .expect("tables can be read")
            .expect("it was not ended");
        let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
        assert!(findings.is_empty(), "findings:\n{}", findings.join("\n"));
        self.fs.close().expect("close the pool");
    }
}
