//! The whole store as an engine: rows of the meta tree by commands of its journal, compressed and encrypted.

use std::{ops::Bound, path::Path, sync::Arc};

use cfs_device::{Device, FileDevice};
use cfs_format::superblock::{ChunkParams, KeySlot};
use cfs_seal::{block::Cipher, keys::ClusterKey};
use cfs_store::{FormatOptions, Host, Store, StoreOptions};
use zerocopy::FromZeros;

use crate::{
    Entry,
    engines::{Background, Engine},
};

/// Size of the pool's file, which is filled as it is needed.
const SEGMENTS: u32 = 16 << 10;

struct BenchHost;

impl Host for BenchHost {
    fn now_ns(&self) -> u64 {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos() as u64)
    }

    fn fill_random(&self, buf: &mut [u8]) {
        buf.fill(7);
    }
}

pub struct Pool {
    store: Arc<Store>,
    _background: Background,
}

impl Pool {
    pub fn create(path: &Path, cache_bytes: u64) -> Self {
        let file = FileDevice::create(&path.join("pool"), SEGMENTS).expect("a pool's file");
        let device: Arc<dyn Device> = Arc::new(file);
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
        let key = || ClusterKey::from_bytes([1; 32]);
        Store::format(&device, &host, key(), KeySlot::new_zeroed(), &options).expect("format");
        let options = StoreOptions {
            block_cache_bytes: cache_bytes,
            ..StoreOptions::default()
        };
        let store = Store::open(device, host, |_| Ok(key()), options, |_, _| Ok(())).expect("open");
        let background = Background::start({
            let store = Arc::clone(&store);
            move || {
                store.tick().expect("tick");
                false
            }
        });
        Self {
            store,
            _background: background,
        }
    }
}

impl Engine for Pool {
    fn commit(&self, entries: &[Entry]) {
        let mut command = Vec::with_capacity(size_of_val(entries));
        let mut txn = self.store.begin();
        for (key, value) in entries {
            command.extend_from_slice(key);
            command.extend_from_slice(value);
            txn.put(key.to_vec(), value.to_vec());
        }
        let lsn = txn.commit(&command).expect("commit");
        self.store.sync_to(lsn).expect("sync");
    }

    fn settle(&self) {
        // Its background work goes on at its own pace.
        std::thread::sleep(std::time::Duration::from_secs(5));
    }

    fn count_found(&self, keys: &[[u8; 32]]) -> usize {
        keys.iter()
            .filter(|key| self.store.get(&key[..]).expect("get").is_some())
            .count()
    }

    fn scan(&self) -> u64 {
        let range = self.store.view().range(Bound::Unbounded, Bound::Unbounded);
        range
            .filter(|entry| entry.as_ref().expect("scan").0.len() == 32)
            .count() as u64
    }
}
