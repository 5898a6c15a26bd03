//! Room and counts of the whole pool.

use cfs_format::{BLOCK_BYTES, SEGMENT_BYTES};

use crate::Fs;
use crate::directory::NAME_BYTES_MAX;
use crate::types::StatFs;

/// Bytes of tables and log that an inode takes, roughly: what the number of inodes that could be made is guessed by.
const INODE_BYTES: u64 = 512;

impl Fs {
    /// Room and counts. What is used is counted in segments, so it contains what reclaim could still free.
    #[must_use]
    pub fn statfs(&self) -> StatFs {
        let stats = self.store.stats();
        let segments = stats.segments;
        let used_segments = segments.total - (segments.free + segments.pending).min(segments.total);
        let block_bytes = u64::from(BLOCK_BYTES);
        let used = used_segments * u64::from(SEGMENT_BYTES) / block_bytes;
        let free = stats.available_bytes / block_bytes;
        let volumes = self.store.volumes();
        StatFs {
            block_bytes: BLOCK_BYTES,
            blocks: used + free,
            blocks_free: free,
            blocks_available: free,
            inodes: volumes
                .iter()
                .map(|(_, volume)| volume.inode_count.get())
                .sum(),
            inodes_free: stats.available_bytes / INODE_BYTES,
            name_bytes_max: NAME_BYTES_MAX as u32,
        }
    }
}
