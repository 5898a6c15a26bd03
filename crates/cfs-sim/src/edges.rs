//! Operations on long files about the edge of a window, by which `cfs_fs` keeps decoded extents.
//!
//! A long file is a hole with some content at its end, where the edge is. Chunks lie across it; what is on one side of it
//! is changed and both are read.

use cfs_fs::Fs;

use crate::contents::FILE_BYTES_MAX;
use crate::model::NodeId;
use crate::world::{Failure, World, ino};

/// Where a window ends and the next one begins.
const EDGE: u64 = 4 << 20;
/// Operations are so near to it, bytes: as long as chunks are at most.
const NEAR_BYTES: u64 = 16 << 10;
/// Long files do not become longer by shifts.
pub(crate) const LONG_BYTES_MAX: u64 = EDGE + FILE_BYTES_MAX;
/// So many long files at a time, or more by copies of them.
const LONG_FILES: usize = 2;

/// Whether a file of this length comes near to the edge.
pub(crate) fn is_long(len: u64) -> bool {
    len > EDGE - NEAR_BYTES
}

impl World {
    /// Whether an operation on a file of this length is about the edge: often, if it is long.
    pub fn is_about_edge(&mut self, len: u64) -> bool {
        is_long(len) && !self.rng.one_in(4)
    }

    /// An offset about the edge.
    pub fn near_edge(&mut self) -> u64 {
        EDGE - NEAR_BYTES + self.rng.below(2 * NEAR_BYTES)
    }

    /// Changes a long file a few times, and looks at both sides of the edge before and after each change.
    pub fn change_about_edge(&mut self, fs: &Fs) -> Result<(), Failure> {
        let Some((path, node)) = self.long_file(fs)? else {
            return Ok(());
        };
        self.read_over_edge(fs, &path, node)?;
        for _ in 0..1 + self.rng.below(4) {
            let file = (path.clone(), node);
            match self.rng.below(8) {
                0 => self.truncate_file(fs, file)?,
                1 | 2 => self.allocate_in(fs, file)?,
                3 => self.copy_to(fs, file)?,
                _ => self.write_somewhere(fs, file)?,
            }
            if self.rng.one_in(2) {
                self.close(fs, (path.clone(), node))?;
            }
            self.read_over_edge(fs, &path, node)?;
        }
        Ok(())
    }

    /// One that is there, or any file, which becomes one.
    fn long_file(&mut self, fs: &Fs) -> Result<Option<(String, NodeId)>, Failure> {
        let mut long = self.model.files();
        long.retain(|path| is_long(self.model.content(self.model.node(path)).len()));
        if long.len() >= LONG_FILES {
            let path = long.swap_remove(self.rng.below(long.len() as u64) as usize);
            let node = self.model.node(&path);
            return Ok(Some((path, node)));
        }
        let Some((path, node)) = self.any_file() else {
            return Ok(None);
        };
        let offset = EDGE - 1 - self.rng.below(NEAR_BYTES);
        let data = self.bytes(2 * NEAR_BYTES);
        self.trace(|| format!("write {path} over the edge at {offset}"));
        self.write_to(fs, (ino(fs, &path)?, node), offset, &data)?;
        self.close(fs, (path.clone(), node))?;
        Ok(Some((path, node)))
    }

    fn read_over_edge(&mut self, fs: &Fs, path: &str, node: NodeId) -> Result<(), Failure> {
        let before = 1 + self.rng.below(NEAR_BYTES);
        let behind = 1 + self.rng.below(NEAR_BYTES);
        let file = (ino(fs, path)?, node);
        self.read_range(fs, path, file, (EDGE - before, before + behind))
    }
}
