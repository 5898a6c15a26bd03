//! The engines behind one trait.

use std::{
    fs::File,
    io::Write,
    ops::Bound,
    path::Path,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use cfs_kv::{Batch, BlockCache, Tree, TreeOptions};
use fjall::{Database as FjallDatabase, Keyspace, KeyspaceCreateOptions, PersistMode};
use heed::{CommitOrAbort, Env, EnvOpenOptions, types::Bytes};
use redb::{Database as RedbDatabase, ReadableDatabase, ReadableTable, TableDefinition};

use crate::{Entry, file_store::FileStore};

pub trait Engine: Sync {
    /// Durable when it returns. Any thread may call it.
    fn commit(&self, entries: &[Entry]);
    /// Brings what goes on in the background to an end, where that can be asked for.
    fn settle(&self);
    fn count_found(&self, keys: &[[u8; 32]]) -> usize;
    /// Number of entries, found by walking over them.
    fn scan(&self) -> u64;
}

/// A thread that does what is due until it is dropped.
pub struct Background {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// `work` says whether there may be more to do at once.
    pub fn start(work: impl Fn() -> bool + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                while !stop.load(Ordering::Relaxed) {
                    if !work() {
                        std::thread::park_timeout(Duration::from_millis(10));
                    }
                }
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            thread.join().expect("background thread");
        }
    }
}

/// The tree with a log in a file, flushed once for all who wait, and a thread that flushes and compacts.
pub struct CfsKv {
    shared: Arc<Shared>,
    log: Log,
    _background: Background,
}

struct Shared {
    tree: Tree,
    store: Arc<FileStore>,
}

impl Shared {
    fn checkpoint(&self) {
        self.tree.flush_rotated().expect("flush");
        std::hint::black_box(self.tree.manifest());
        self.store.superblock();
    }

    /// A step of what is due; `false` when nothing is.
    fn work(&self) -> bool {
        if self.tree.stats().sealed_memtables > 0 {
            self.checkpoint();
            return true;
        }
        self.tree.compact_step().expect("compact")
    }
}

struct Log {
    file: File,
    state: Mutex<LogState>,
    flushed: Condvar,
}

#[derive(Default)]
struct LogState {
    waiting: Vec<u8>,
    /// Bytes ever appended, and those of them that are durable.
    appended: u64,
    durable: u64,
    is_flushing: bool,
    batch: Batch,
    /// Bytes applied since the memtable was rotated.
    memtable_bytes: usize,
}

impl CfsKv {
    pub fn create(path: &Path, cache_bytes: u64) -> Self {
        let store = Arc::new(FileStore::create(&path.join("runs")));
        let cache = Arc::new(BlockCache::new(cache_bytes));
        let shared = Arc::new(Shared {
            tree: Tree::create(store.clone(), cache, TreeOptions::default()),
            store,
        });
        let background = Background::start({
            let shared = shared.clone();
            move || shared.work()
        });
        Self {
            shared,
            log: Log {
                file: File::create(path.join("log")).expect("create"),
                state: Mutex::default(),
                flushed: Condvar::new(),
            },
            _background: background,
        }
    }
}

impl Engine for CfsKv {
    fn commit(&self, entries: &[Entry]) {
        let tree = &self.shared.tree;
        let mut state = self.log.state.lock().unwrap();
        let LogState { waiting, batch, .. } = &mut *state;
        let before = waiting.len();
        batch.clear();
        for (key, value) in entries {
            waiting.extend_from_slice(key);
            waiting.extend_from_slice(value);
            batch.put(key.to_vec(), value.to_vec());
        }
        let bytes = waiting.len() - before;
        tree.apply(batch);
        state.appended += bytes as u64;
        state.memtable_bytes += bytes;
        let ticket = state.appended;
        if state.memtable_bytes >= TreeOptions::default().memtable_bytes_max {
            state.memtable_bytes = 0;
            // As the store does: no more than two memtables wait.
            while tree.stats().sealed_memtables >= 2 {
                std::thread::sleep(Duration::from_millis(1));
            }
            tree.rotate();
        }
        while state.durable < ticket {
            if state.is_flushing {
                state = self.log.flushed.wait(state).unwrap();
                continue;
            }
            state.is_flushing = true;
            let (taken, end) = (std::mem::take(&mut state.waiting), state.appended);
            drop(state);
            (&self.log.file).write_all(&taken).expect("log");
            self.log.file.sync_data().expect("log");
            state = self.log.state.lock().unwrap();
            state.is_flushing = false;
            state.durable = end;
            self.log.flushed.notify_all();
        }
    }

    fn settle(&self) {
        self.shared.tree.rotate();
        self.shared.checkpoint();
        while self.shared.work() {}
        self.shared.checkpoint();
    }

    fn count_found(&self, keys: &[[u8; 32]]) -> usize {
        let tree = &self.shared.tree;
        keys.iter()
            .filter(|key| tree.get_with(&key[..], <[u8]>::len).expect("get").is_some())
            .count()
    }

    fn scan(&self) -> u64 {
        let range = self.shared.tree.range(Bound::Unbounded, Bound::Unbounded);
        range
            .map(|entry| u64::from(!entry.expect("scan").0.is_empty()))
            .sum()
    }
}

pub struct Fjall {
    database: FjallDatabase,
    keyspace: Keyspace,
}

impl Fjall {
    pub fn create(path: &Path, cache_bytes: u64) -> Self {
        let database = FjallDatabase::builder(path)
            .cache_size(cache_bytes)
            .open()
            .expect("open");
        let keyspace = database
            .keyspace("bench", KeyspaceCreateOptions::default)
            .expect("keyspace");
        Self { database, keyspace }
    }
}

impl Engine for Fjall {
    fn commit(&self, entries: &[Entry]) {
        let mut batch = self
            .database
            .batch()
            .durability(Some(PersistMode::SyncData));
        for (key, value) in entries {
            batch.insert(&self.keyspace, &key[..], &value[..]);
        }
        batch.commit().expect("commit");
    }

    fn settle(&self) {
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
    pub fn create(path: &Path, cache_bytes: u64) -> Self {
        let mut builder = RedbDatabase::builder();
        builder.set_cache_size(cache_bytes as usize);
        Self(builder.create(path.join("redb")).expect("create"))
    }
}

impl Engine for Redb {
    fn commit(&self, entries: &[Entry]) {
        let transaction = self.0.begin_write().expect("begin");
        let mut table = transaction.open_table(REDB_TABLE).expect("table");
        for (key, value) in entries {
            table.insert(&key[..], &value[..]).expect("insert");
        }
        drop(table);
        transaction.commit().expect("commit");
    }

    fn settle(&self) {}

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
    fn commit(&self, entries: &[Entry]) {
        let mut transaction = self.environment.write_txn().expect("begin");
        for (key, value) in entries {
            self.table
                .put(&mut transaction, key, value)
                .expect("insert");
        }
        transaction.commit().expect("commit");
    }

    fn settle(&self) {}

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
