//! RocksDB by its C interface, so that nothing of it has to be built.

use std::{
    ffi::{CString, c_char, c_int, c_uchar, c_void},
    os::unix::ffi::OsStrExt,
    path::Path,
    ptr,
};

use crate::{Entry, engines::Engine};

#[link(name = "rocksdb")]
unsafe extern "C" {
    fn rocksdb_options_create() -> *mut c_void;
    fn rocksdb_options_set_create_if_missing(options: *mut c_void, on: c_uchar);
    fn rocksdb_options_set_block_based_table_factory(options: *mut c_void, table: *mut c_void);
    fn rocksdb_block_based_options_create() -> *mut c_void;
    fn rocksdb_block_based_options_set_block_cache(table: *mut c_void, cache: *mut c_void);
    fn rocksdb_block_based_options_set_filter_policy(table: *mut c_void, policy: *mut c_void);
    fn rocksdb_cache_create_lru(bytes: usize) -> *mut c_void;
    fn rocksdb_filterpolicy_create_bloom_full(bits: f64) -> *mut c_void;
    fn rocksdb_writeoptions_create() -> *mut c_void;
    fn rocksdb_writeoptions_set_sync(options: *mut c_void, on: c_uchar);
    fn rocksdb_readoptions_create() -> *mut c_void;
    fn rocksdb_flushoptions_create() -> *mut c_void;
    fn rocksdb_open(
        options: *const c_void,
        path: *const c_char,
        error: *mut *mut c_char,
    ) -> *mut c_void;
    fn rocksdb_close(database: *mut c_void);
    fn rocksdb_flush(database: *mut c_void, options: *const c_void, error: *mut *mut c_char);
    fn rocksdb_writebatch_create() -> *mut c_void;
    fn rocksdb_writebatch_destroy(batch: *mut c_void);
    fn rocksdb_writebatch_put(
        batch: *mut c_void,
        key: *const u8,
        key_len: usize,
        value: *const u8,
        value_len: usize,
    );
    fn rocksdb_write(
        database: *mut c_void,
        options: *const c_void,
        batch: *mut c_void,
        error: *mut *mut c_char,
    );
    fn rocksdb_get_pinned(
        database: *mut c_void,
        options: *const c_void,
        key: *const u8,
        key_len: usize,
        error: *mut *mut c_char,
    ) -> *mut c_void;
    fn rocksdb_pinnableslice_destroy(slice: *mut c_void);
    fn rocksdb_create_iterator(database: *mut c_void, options: *const c_void) -> *mut c_void;
    fn rocksdb_iter_seek_to_first(iterator: *mut c_void);
    fn rocksdb_iter_valid(iterator: *const c_void) -> c_uchar;
    fn rocksdb_iter_next(iterator: *mut c_void);
    fn rocksdb_iter_destroy(iterator: *mut c_void);
    fn rocksdb_property_int(database: *mut c_void, name: *const c_char, value: *mut u64) -> c_int;
}

pub struct RocksDb {
    database: *mut c_void,
    write: *mut c_void,
    read: *mut c_void,
}

// SAFETY: the library lets any threads use a database and its options at once.
unsafe impl Sync for RocksDb {}

fn check(error: *mut c_char) {
    assert!(error.is_null(), "RocksDB failed");
}

impl RocksDb {
    pub fn create(path: &Path, cache_bytes: u64) -> Self {
        let path = CString::new(path.as_os_str().as_bytes()).expect("a path");
        let mut error = ptr::null_mut();
        // SAFETY: what the calls create lives as long as the process, but for the database, which drop closes.
        unsafe {
            let table = rocksdb_block_based_options_create();
            let cache = rocksdb_cache_create_lru(cache_bytes as usize);
            rocksdb_block_based_options_set_block_cache(table, cache);
            let policy = rocksdb_filterpolicy_create_bloom_full(10.0);
            rocksdb_block_based_options_set_filter_policy(table, policy);
            let options = rocksdb_options_create();
            rocksdb_options_set_create_if_missing(options, 1);
            rocksdb_options_set_block_based_table_factory(options, table);
            let write = rocksdb_writeoptions_create();
            rocksdb_writeoptions_set_sync(write, 1);
            let database = rocksdb_open(options, path.as_ptr(), &mut error);
            check(error);
            Self {
                database,
                write,
                read: rocksdb_readoptions_create(),
            }
        }
    }

    fn property(&self, name: &std::ffi::CStr) -> u64 {
        let mut value = 0;
        // SAFETY: the database is open, and the name ends with a zero.
        unsafe { rocksdb_property_int(self.database, name.as_ptr(), &mut value) };
        value
    }
}

impl Drop for RocksDb {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more.
        unsafe { rocksdb_close(self.database) };
    }
}

impl Engine for RocksDb {
    fn commit(&self, entries: &[Entry]) {
        let mut error = ptr::null_mut();
        // SAFETY: keys and values outlive the calls that copy them; the batch is ours.
        unsafe {
            let batch = rocksdb_writebatch_create();
            for (key, value) in entries {
                rocksdb_writebatch_put(batch, key.as_ptr(), key.len(), value.as_ptr(), value.len());
            }
            rocksdb_write(self.database, self.write, batch, &mut error);
            rocksdb_writebatch_destroy(batch);
        }
        check(error);
    }

    fn settle(&self) {
        let mut error = ptr::null_mut();
        // SAFETY: the database is open.
        unsafe { rocksdb_flush(self.database, rocksdb_flushoptions_create(), &mut error) };
        check(error);
        while self.property(c"rocksdb.compaction-pending") > 0
            || self.property(c"rocksdb.num-running-compactions") > 0
        {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    fn count_found(&self, keys: &[[u8; 32]]) -> usize {
        // SAFETY: a slice that was found is let go at once.
        let found = |key: &&[u8; 32]| unsafe {
            let mut error = ptr::null_mut();
            let slice = rocksdb_get_pinned(
                self.database,
                self.read,
                key.as_ptr(),
                key.len(),
                &mut error,
            );
            check(error);
            if !slice.is_null() {
                rocksdb_pinnableslice_destroy(slice);
            }
            !slice.is_null()
        };
        keys.iter().filter(found).count()
    }

    fn scan(&self) -> u64 {
        let mut count = 0;
        // SAFETY: the iterator is ours, and moves only while it is valid.
        unsafe {
            let iterator = rocksdb_create_iterator(self.database, self.read);
            rocksdb_iter_seek_to_first(iterator);
            while rocksdb_iter_valid(iterator) != 0 {
                count += 1;
                rocksdb_iter_next(iterator);
            }
            rocksdb_iter_destroy(iterator);
        }
        count
    }
}
