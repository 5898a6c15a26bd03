//! A pool in memory that speaks S3, with who is told of changes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cfs_device::{Device, MemDevice};
use cfs_format::Ino;
use cfs_format::superblock::{ChunkParams, KeySlot, UNLOCK_KEY_FILE};
use cfs_fs::{Attr, Caller, Fs, FsOptions};
use cfs_s3::{Key, Listening, NewUser, S3Server, Users, Watcher};
use cfs_seal::block::Cipher;
use cfs_seal::codec::Codec;
use cfs_seal::keys::{
    ClusterKey, MasterKey, render_key_file, unwrap_cluster_key, wrap_cluster_key,
};
use cfs_store::{Host, Store, StoreOptions, UnlockError};
use zerocopy::FromZeros;

use crate::client::Client;

/// A clock that only looking at it moves, and numbers that look random.
pub struct TestHost(AtomicU64);

impl Host for TestHost {
    fn now_ns(&self) -> u64 {
        self.0.fetch_add(1_000_000, Ordering::Relaxed)
    }

    fn fill_random(&self, buf: &mut [u8]) {
        fill(buf, self.0.fetch_add(1, Ordering::Relaxed));
    }
}

/// Bytes that a seed determines and nothing compresses (splitmix64).
pub fn fill(buf: &mut [u8], seed: u64) {
    let mut state = seed;
    for part in buf.chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        part.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..part.len()]);
    }
}

pub fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    fill(&mut noise, seed);
    noise
}

/// Notes what it is told.
#[derive(Default)]
pub struct Told(pub parking_lot::Mutex<Vec<(Ino, Vec<u8>)>>);

impl Watcher for Told {
    fn name_changed(&self, parent: Ino, name: &[u8]) {
        self.0.lock().push((parent, name.to_vec()));
    }

    fn inode_changed(&self, ino: Ino) {
        self.0.lock().push((ino, Vec::new()));
    }
}

pub struct Pool {
    pub device: Arc<MemDevice>,
    pub host: Arc<TestHost>,
}

fn master_key() -> MasterKey {
    MasterKey::from_key_file_bytes(&render_key_file(&[7; 32])).expect("a rendered key file parses")
}

impl Pool {
    /// A formatted pool of so many segments.
    pub fn new(segment_count: u32) -> Self {
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
            domain_secret: None,
        };
        let device: Arc<dyn Device> = pool.device.clone();
        let host: Arc<dyn Host> = pool.host.clone();
        Store::format(&device, &host, cluster_key, slot, &options).expect("format the store");
        let unlock = |superblock: &cfs_format::superblock::Superblock| {
            unwrap_cluster_key(&master_key(), &superblock.key_slot)
                .map_err(|_| UnlockError::WrongKey)
        };
        let store = Store::open(
            device,
            host,
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
        Fs::format(&store, &*pool.host, &options).expect("format the file system");
        store.close().expect("close the empty store");
        pool
    }

    /// Opens it, and speaks S3 at a free port.
    pub fn serve(&self) -> Served {
        let free: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        self.serve_at(Listening::at(free))
    }

    /// Opens it, and speaks S3 as is said.
    pub fn serve_at(&self, listening: Listening) -> Served {
        let unlock = |superblock: &cfs_format::superblock::Superblock| {
            unwrap_cluster_key(&master_key(), &superblock.key_slot)
                .map_err(|_| UnlockError::WrongKey)
        };
        let fs = Fs::open_pool(
            self.device.clone(),
            self.host.clone(),
            unlock,
            StoreOptions::default(),
            FsOptions::default(),
        )
        .expect("open the file system");
        let users = Arc::new(Users::load(Arc::clone(&fs)).expect("users can be read"));
        let host = Arc::clone(&self.host);
        users
            .ensure_root(&mut |buf| host.fill_random(buf))
            .expect("a root user");
        let told = Arc::new(Told::default());
        let server = S3Server::start(Arc::clone(&fs), Arc::clone(&users), told.clone(), listening)
            .expect("a free port");
        Served {
            fs,
            users,
            told,
            server,
            host: Arc::clone(&self.host),
        }
    }

    /// What the device may hold after a power cut now.
    pub fn power_cut(&self, seed: u64) -> Self {
        Self {
            device: Arc::new(self.device.power_cut(seed)),
            host: Arc::clone(&self.host),
        }
    }
}

pub struct Served {
    pub fs: Arc<Fs>,
    pub users: Arc<Users>,
    pub told: Arc<Told>,
    pub server: S3Server,
    pub host: Arc<TestHost>,
}

impl Served {
    /// Moves the clock on.
    pub fn pass_days(&self, days: u64) {
        let nanos = days * 86_400_000_000_000;
        self.host.0.fetch_add(nanos, Ordering::Relaxed);
    }

    /// A client with root's key.
    pub fn root(&self) -> Client {
        self.client(
            &self
                .users
                .list()
                .iter()
                .find(|user| user.is_root())
                .expect("root")
                .keys[0],
        )
    }

    pub fn client(&self, key: &Key) -> Client {
        Client {
            address: self.server.address(),
            access_key_id: key.access_key_id.clone(),
            secret_access_key: key.secret_access_key.clone(),
        }
    }

    /// A user and a client for it.
    pub fn user(&self, name: &str) -> Client {
        self.add_user(NewUser {
            name: name.to_owned(),
            ..NewUser::default()
        })
    }

    /// The same with a dedup domain of its own.
    pub fn user_apart(&self, name: &str) -> Client {
        self.add_user(NewUser {
            name: name.to_owned(),
            own_domain: true,
            ..NewUser::default()
        })
    }

    fn add_user(&self, new: NewUser) -> Client {
        let host = Arc::clone(&self.host);
        let user = self
            .users
            .add(new, &mut |buf| host.fill_random(buf))
            .expect("a new user");
        self.client(&user.keys[0])
    }

    pub fn resolve(&self, path: &str) -> Attr {
        self.fs
            .resolve(path.as_bytes())
            .unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Writes a file as the mount does.
    pub fn write(&self, dir: Ino, name: &str, content: &[u8]) -> Ino {
        let made = self
            .fs
            .create(dir, name.as_bytes(), 0o644, &Caller::default());
        let ino = match made {
            Ok(attr) => attr.ino,
            Err(_) => {
                self.fs
                    .lookup(dir, name.as_bytes())
                    .expect("it is there")
                    .ino
            }
        };
        let truncate = cfs_fs::SetAttr {
            size: Some(0),
            ..cfs_fs::SetAttr::default()
        };
        self.fs.setattr(ino, &truncate).expect("a file can be cut");
        self.fs
            .write(ino, 0, content, false)
            .expect("there is room");
        ino
    }

    /// The content of a file.
    pub fn read(&self, ino: Ino) -> Vec<u8> {
        let mut content = Vec::new();
        let mut step = Vec::new();
        loop {
            self.fs
                .read(ino, content.len() as u64, 1 << 20, &mut step)
                .expect("it can be read");
            if step.is_empty() {
                return content;
            }
            content.extend_from_slice(&step);
        }
    }

    /// Fails with the findings if the tables do not agree.
    pub fn assert_clean(&self) {
        let report = self
            .fs
            .check(|_| true)
            .expect("tables can be read")
            .expect("it was not ended");
        let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
        assert!(findings.is_empty(), "findings:\n{}", findings.join("\n"));
    }
}
