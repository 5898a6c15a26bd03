//! The engines behind one trait, each with a cache that holds everything.

use std::{
    fs::File,
    io::Write,
    ops::Bound,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use cfs_kv::{Batch, BlockCache, Tree, TreeOptions};
use fjall::{Database as FjallDatabase, Keyspace, KeyspaceCreateOptions, PersistMode};
use heed::{CommitOrAbort, Env, EnvOpenOptions, types::Bytes};
use redb::{Database as RedbDatabase, ReadableDatabase, ReadableTable, TableDefinition};

use crate::{Entry, file_store::FileStore};

/// Cache of each engine, bytes.
const CACHE_BYTES: u64 = 2 << 30;

pub trait Engine {
    fn name(&self) -> &'static str;
    /// Durable when it returns.
    fn commit(&mut self, entries: &[Entry]);
    /// Brings what goes on in the background to an end, where that can be asked for.
    fn settle(&mut self);
    fn count_found(&self, keys: &[[u8; 32]]) -> usize;
    /// Number of entries, found by walking over them.
    fn scan(&self) -> u64;
    fn notes(&self) -> String {
        String::new()
    }
}

/// The tree with a log, and a thread that flushes and compacts.
pub struct CfsKv {
    shared: Arc<Shared>,
    log: File,
    log_bytes: Vec<u8>,
    batch: Batch,
    /// Bytes applied since the memtable was rotated.
    memtable_bytes: usize,
    background: Option<JoinHandle<()>>,
}

struct Shared {
    tree: Tree,
    store: Arc<FileStore>,
    stop: AtomicBool,
}

impl Shared {
    fn checkpoint(&self) {
        self.tree.flush_rotated().expect("flush");
        std::hint::black_box(self.tree.manifest());
        self.store.superblock();
    }
}

impl CfsKv {
    pub fn create(path: &Path) -> Self {
        let store = Arc::new(FileStore::create(&path.join("runs")));
        let cache = Arc::new(BlockCache::new(CACHE_BYTES));
        let shared = Arc::new(Shared {
            tree: Tree::create(store.clone(), cache, TreeOptions::default()),
            store,
            stop: AtomicBool::new(false),
        });
        let background = std::thread::spawn({
            let shared = shared.clone();
            move || {
                while !shared.stop.load(Ordering::Relaxed) {
                    if shared.tree.stats().sealed_memtables > 0 {
                        shared.checkpoint();
                    } else if !shared.tree.compact_step().expect("compact") {
                        std::thread::park_timeout(std::time::Duration::from_millis(10));
                    }
                }
            }
        });
        Self {
            shared,
            log: File::create(path.join("log")).expect("create"),
            log_bytes: Vec::new(),
            batch: Batch::new(),
            memtable_bytes: 0,
            background: Some(background),
        }
    }

    fn stop(&mut self) {
        if let Some(background) = self.background.take() {
            self.shared.stop.store(true, Ordering::Relaxed);
            background.thread().unpark();
            background.join().expect("background thread");
        }
    }
}

impl Drop for CfsKv {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Engine for CfsKv {
    fn name(&self) -> &'static str {
        "cfs-kv"
    }

    fn commit(&mut self, entries: &[Entry]) {
        self.log_bytes.clear();
        self.batch.clear();
        for (key, value) in entries {
            self.log_bytes.extend_from_slice(key);
            self.log_bytes.extend_from_slice(value);
            self.batch.put(key.to_vec(), value.to_vec());
        }
        self.log.write_all(&self.log_bytes).expect("log");
        self.log.sync_data().expect("log");
        let tree = &self.shared.tree;
        tree.apply(&self.batch);
        self.memtable_bytes += self.log_bytes.len();
        if self.memtable_bytes >= TreeOptions::default().memtable_bytes_max {
            self.memtable_bytes = 0;
            // As the store does: no more than two memtables wait.
            while tree.stats().sealed_memtables >= 2 {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            tree.rotate();
            if let Some(background) = &self.background {
                background.thread().unpark();
            }
        }
    }

    fn settle(&mut self) {
        self.stop();
        self.shared.tree.rotate();
        self.shared.checkpoint();
        while self.shared.tree.compact_step().expect("compact") {}
        self.shared.checkpoint();
    }

    fn count_found(&self, keys: &[[u8; 32]]) -> usize {
        let tree = &self.shared.tree;
        keys.iter()
            .filter(|key| {
                tree.get_with(&key[..], |value| value.len())
                    .expect("get")
                    .is_some()
            })
            .count()
    }

    fn scan(&self) -> u64 {
        let range = self.shared.tree.range(Bound::Unbounded, Bound::Unbounded);
        range
            .map(|entry| u64::from(!entry.expect("scan").0.is_empty()))
            .sum()
    }

    fn notes(&self) -> String {
        let stats = self.shared.tree.stats();
        format!(
            "levels {:?}, filters {:.2} + indexes {:.2} bytes an entry, cache {} MB",
            stats.runs_per_level,
            stats.filter_bytes as f64 / stats.run_entries as f64,
            stats.index_bytes as f64 / stats.run_entries as f64,
            stats.cache_bytes >> 20,
        )
    }
}

pub struct Fjall {
    database: FjallDatabase,
    keyspace: Keyspace,
}

impl Fjall {
    pub fn create(path: &Path) -> Self {
        let database = FjallDatabase::builder(path)
            .cache_size(CACHE_BYTES)
            .open()
            .expect("open");
        let keyspace = database
            .keyspace("bench", KeyspaceCreateOptions::default)
            .expect("keyspace");
        Self { database, keyspace }
    }
}

impl Engine for Fjall {
    fn name(&self) -> &'static str {
        "fjall"
    }

    fn commit(&mut self, entries: &[Entry]) {
        let mut batch = self
            .database
            .batch()
            .durability(Some(PersistMode::SyncData));
        for (key, value) in entries {
            batch.insert(&self.keyspace, &key[..], &value[..]);
        }
        batch.commit().expect("commit");
    }

    fn settle(&mut self) {
        self.keyspace.rotate_memtable_and_wait().expect("flush");
    }

    fn count_found(&self, keys: &[[u8; 32]]) -> usize {
        keys.iter()
            .filter(|key| self.keyspace.get(&key[..]).expect("get").is_some())
            .count()
    }

    fn scan(&self) -> u64 {
        self.keyspace
            .iter()
            .map(|guard| u64::from(!guard.into_inner().expect("scan").0.is_empty()))
            .sum()
    }
}

const REDB_TABLE: TableDefinition<&[u8], &[u8]> = TableDefinition::new("bench");

pub struct Redb(RedbDatabase);

impl Redb {
    pub fn create(path: &Path) -> Self {
        let mut builder = RedbDatabase::builder();
        builder.set_cache_size(CACHE_BYTES as usize);
        Self(builder.create(path.join("redb")).expect("create"))
    }
}

impl Engine for Redb {
    fn name(&self) -> &'static str {
        "redb"
    }

    fn commit(&mut self, entries: &[Entry]) {
        let transaction = self.0.begin_write().expect("begin");
        let mut table = transaction.open_table(REDB_TABLE).expect("table");
        for (key, value) in entries {
            table.insert(&key[..], &value[..]).expect("insert");
        }
        drop(table);
        transaction.commit().expect("commit");
    }

    fn settle(&mut self) {}

    fn count_found(&self, keys: &[[u8; 32]]) -> usize {
        let transaction = self.0.begin_read().expect("begin");
        let table = transaction.open_table(REDB_TABLE).expect("table");
        keys.iter()
            .filter(|key| table.get(&key[..]).expect("get").is_some())
            .count()
    }

    fn scan(&self) -> u64 {
        let transaction = self.0.begin_read().expect("begin");
        let table = transaction.open_table(REDB_TABLE).expect("table");
        let entries = table.iter().expect("scan");
        entries
            .map(|entry| u64::from(!entry.expect("scan").0.value().is_empty()))
            .sum()
    }
}

pub struct Lmdb {
    /// Lives as long as the process, because the table borrows it.
    environment: &'static Env,
    table: heed::Database<'static, Bytes, Bytes>,
}

impl Lmdb {
    pub fn create(path: &Path) -> Self {
        // SAFETY: the directory is ours alone, and opened once.
        let environment =
            unsafe { EnvOpenOptions::new().map_size(64 << 30).open(path) }.expect("open");
        let environment: &'static Env = Box::leak(Box::new(environment));
        let transaction = environment.write_txn().expect("begin");
        let table = environment
            .create_databases_and_commit(transaction, |opener, transaction| {
                opener
                    .create_database::<Bytes, Bytes>(transaction, None)
                    .map(CommitOrAbort::<_, ()>::Commit)
            })
            .expect("table")
            .unwrap_commit();
        Self { environment, table }
    }
}

impl Engine for Lmdb {
    fn name(&self) -> &'static str {
        "lmdb"
    }

    fn commit(&mut self, entries: &[Entry]) {
        let mut transaction = self.environment.write_txn().expect("begin");
        for (key, value) in entries {
            self.table
                .put(&mut transaction, key, value)
                .expect("insert");
        }
        transaction.commit().expect("commit");
    }

    fn settle(&mut self) {}

    fn count_found(&self, keys: &[[u8; 32]]) -> usize {
        let transaction = self.environment.read_txn().expect("begin");
        keys.iter()
            .filter(|key| {
                self.table
                    .get(&transaction, &key[..])
                    .expect("get")
                    .is_some()
            })
            .count()
    }

    fn scan(&self) -> u64 {
        let transaction = self.environment.read_txn().expect("begin");
        let entries = self.table.iter(&transaction).expect("scan");
        entries
            .map(|entry| u64::from(!entry.expect("scan").0.is_empty()))
            .sum()
    }
}
