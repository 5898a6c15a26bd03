//! Room and counts, of the whole pool and of volumes with quotas.

use cfs_format::{BLOCK_BYTES, Ino, SEGMENT_BYTES, VolumeId};

use crate::Fs;
use crate::directory::NAME_BYTES_MAX;
use crate::error::{FsError, Result};
use crate::types::StatFs;

/// Bytes of tables and log that an inode takes, roughly: what the number of inodes that could be made is guessed by.
const INODE_BYTES: u64 = 512;

impl Fs {
    /// Room and counts as they are seen from an inode: where its volume has a quota, of what that leaves.
    ///
    /// # Errors
    /// [`FsError::NotFound`]; when its record cannot be read.
    pub fn statfs_at(&self, ino: Ino) -> Result<StatFs> {
        let mut pool = self.statfs();
        let ino = crate::views::listed_by(ino).unwrap_or(ino);
        let record = self.views.record(ino)?.ok_or(FsError::NotFound)?;
        let id = VolumeId(record.volume.get());
        let Some(volume) = self.store.volume(id) else {
            return Ok(pool);
        };
        let block_bytes = u64::from(BLOCK_BYTES);
        if volume.quota_bytes.get() > 0 {
            let used = self.files.quotas.used_bytes(id, &volume);
            let free = volume.quota_bytes.get().saturating_sub(used) / block_bytes;
            pool.blocks_free = pool.blocks_free.min(free);
            pool.blocks_available = pool.blocks_available.min(free);
            pool.blocks = used.div_ceil(block_bytes) + pool.blocks_free;
        }
        if volume.quota_inodes.get() > 0 {
            pool.inodes = volume.inode_count.get();
            let free = volume.quota_inodes.get().saturating_sub(pool.inodes);
            pool.inodes_free = pool.inodes_free.min(free);
        }
        Ok(pool)
    }

    /// Bytes of content of all files, as their volumes count them; `u64::MAX` when they are more, as files with holes can be.
    #[must_use]
    pub fn logical_bytes(&self) -> u64 {
        let volumes = self.store.volumes();
        volumes.iter().fold(0, |sum: u64, (_, volume)| {
            sum.saturating_add(volume.logical_bytes.get())
        })
    }

    /// Room and counts of the pool. What is used is counted in segments, so it contains what reclaim could still free.
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
