//! A run store in one file: extents of 2 MiB, filled in memory and written whole.

use std::{fs::File, os::unix::fs::FileExt, path::Path, sync::Mutex};

use cfs_kv::{BlockPtr, RunError, RunReason, RunStore, RunWriter};

const EXTENT_BYTES: usize = 2 << 20;

pub struct FileStore {
    file: File,
    space: Mutex<Space>,
}

#[derive(Default)]
struct Space {
    next: u64,
    free: Vec<u64>,
    /// To be freed when the next superblock is durable.
    released: Vec<u64>,
}

impl FileStore {
    pub fn create(path: &Path) -> Self {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .expect("create");
        Self {
            file,
            space: Mutex::default(),
        }
    }

    /// Flushes what was written; what had been released may be written over.
    pub fn superblock(&self) {
        self.file.sync_data().expect("flush");
        let mut space = self.space.lock().unwrap();
        let released = std::mem::take(&mut space.released);
        space.free.extend(released);
    }
}

struct Writer<'a> {
    store: &'a FileStore,
    extents: Vec<u64>,
    /// Content of the last extent.
    filled: Vec<u8>,
}

impl Writer<'_> {
    fn write_out(&mut self) -> Result<(), RunError> {
        if let Some(extent) = self.extents.last() {
            let offset = extent * EXTENT_BYTES as u64;
            self.store
                .file
                .write_all_at(&self.filled, offset)
                .map_err(RunError::io)?;
            self.filled.clear();
        }
        Ok(())
    }
}

impl RunStore for FileStore {
    fn create_run(&self, _: RunReason, _: u64) -> Result<Box<dyn RunWriter + '_>, RunError> {
        Ok(Box::new(Writer {
            store: self,
            extents: Vec::new(),
            filled: Vec::with_capacity(EXTENT_BYTES),
        }))
    }

    fn read_block(&self, block: BlockPtr) -> Result<Vec<u8>, RunError> {
        let mut bytes = vec![0; block.stored_len as usize];
        self.file
            .read_exact_at(&mut bytes, block.place)
            .map_err(RunError::io)?;
        Ok(bytes)
    }

    fn release_run(&self, extents: &[u64]) {
        self.space
            .lock()
            .unwrap()
            .released
            .extend_from_slice(extents);
    }
}

impl RunWriter for Writer<'_> {
    fn append_block(&mut self, plain: &[u8]) -> Result<BlockPtr, RunError> {
        if self.extents.is_empty() || self.filled.len() + plain.len() > EXTENT_BYTES {
            self.write_out()?;
            let mut space = self.store.space.lock().unwrap();
            let extent = space.free.pop().unwrap_or_else(|| {
                space.next += 1;
                space.next - 1
            });
            self.extents.push(extent);
        }
        let place =
            self.extents[self.extents.len() - 1] * EXTENT_BYTES as u64 + self.filled.len() as u64;
        self.filled.extend_from_slice(plain);
        Ok(BlockPtr {
            place,
            stored_len: plain.len() as u32,
        })
    }

    fn finish(mut self: Box<Self>, _: Option<&[u8]>) -> Result<Vec<u64>, RunError> {
        self.write_out()?;
        Ok(std::mem::take(&mut self.extents))
    }
}
