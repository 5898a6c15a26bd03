//! Quotas of volumes, held to when data are accepted.
//!
//! The counters of a volume tell what is in the tables. What has been accepted and is still in memory lets files grow
//! beyond that, and is held here: each file holds as many bytes as its size is larger than its committed one. So a
//! volume's use is never above its quota, and what was accepted never meets it. Between the commit of data and the moment
//! at which their hold ends they count twice; who is refused looks again when nothing is in memory.
//!
//! Exempt is a file while it takes over content that other files are counted with and are about to lose.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use cfs_format::table::VolumeRecord;
use cfs_format::{Ino, VolumeId};
use cfs_store::{Store, Txn};
use parking_lot::Mutex;

use super::body::Body;
use crate::error::{FsError, Result};

/// What is held of each volume that has, or had, a quota.
#[derive(Default)]
pub(crate) struct Quotas {
    held: Mutex<HashMap<VolumeId, Arc<Mutex<u64>>>>,
    /// Files that no quota binds.
    unbound: Mutex<HashSet<Ino>>,
}

/// As long as this lives no quota binds the growth of a file; see [`crate::Fs::unbind_from_quota`].
pub struct Unbound<'a> {
    quotas: &'a Quotas,
    ino: Ino,
}

impl Drop for Unbound<'_> {
    fn drop(&mut self) {
        self.quotas.unbound.lock().remove(&self.ino);
    }
}

/// What a file will grow by when all that was accepted is committed, bytes.
pub(crate) struct Growth {
    held: Arc<Mutex<u64>>,
    bytes: u64,
}

impl Growth {
    /// Holds no more than that.
    pub(super) fn shrink_to(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        *self.held.lock() -= self.bytes - bytes;
        self.bytes = bytes;
    }
}

impl Drop for Growth {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

impl Quotas {
    fn held(&self, volume: VolumeId) -> Arc<Mutex<u64>> {
        Arc::clone(self.held.lock().entry(volume).or_default())
    }

    /// Bytes of content of a volume, with those in memory.
    pub(crate) fn used_bytes(&self, id: VolumeId, volume: &VolumeRecord) -> u64 {
        let held = *self.held(id).lock();
        volume.logical_bytes.get().saturating_add(held)
    }

    pub(super) fn unbind(&self, ino: Ino) -> Unbound<'_> {
        self.unbound.lock().insert(ino);
        Unbound { quotas: self, ino }
    }

    /// Whether no quota binds the growth of a file.
    pub(super) fn is_unbound(&self, ino: Ino) -> bool {
        self.unbound.lock().contains(&ino)
    }

    /// Whether a volume has room for so much more; where not, what is in memory and cuts files may still make some.
    pub(crate) fn has_room(&self, store: &Store, id: VolumeId, more: u64) -> bool {
        store.volume(id).is_none_or(|volume| {
            let quota = volume.quota_bytes.get();
            quota == 0 || self.used_bytes(id, &volume).saturating_add(more) <= quota
        })
    }

    /// Lets a file become `size` bytes long.
    ///
    /// # Errors
    /// [`FsError::Quota`]; nothing changed.
    pub(super) fn admit(&self, store: &Store, body: &mut Body, size: u64) -> Result<()> {
        let needed = size.saturating_sub(body.committed_size);
        let id = body.identity().volume;
        if needed <= body.growth.as_ref().map_or(0, |growth| growth.bytes) {
            return Ok(());
        }
        let quota = match store.volume(id) {
            Some(volume) if volume.quota_bytes.get() > 0 => volume.quota_bytes.get(),
            _ => return Ok(()),
        };
        if self.is_unbound(body.identity().place.ino) {
            return Ok(());
        }
        let growth = body.growth.get_or_insert_with(|| Growth {
            held: self.held(id),
            bytes: 0,
        });
        let more = needed - growth.bytes;
        let mut held = growth.held.lock();
        // With the lock, as what others hold may have been committed just now.
        let logical = store
            .volume(id)
            .map_or(0, |volume| volume.logical_bytes.get());
        let used = logical.saturating_add(*held).saturating_add(more);
        if used > quota {
            return Err(FsError::Quota);
        }
        *held += more;
        drop(held);
        growth.bytes += more;
        Ok(())
    }

    /// Whether what a command has done to the counters of volumes is within their quotas. Not to be asked of commands
    /// that bring what was accepted before.
    ///
    /// # Errors
    /// [`FsError::Quota`]; the transaction must then be dropped.
    pub(crate) fn check(&self, txn: &Txn<'_>) -> Result<()> {
        for (id, before, after) in txn.changed_volumes() {
            let before = before.unwrap_or_default();
            let grown =
                |before: u64, after: u64, quota: u64| quota > 0 && after > before && after > quota;
            let inodes = (before.inode_count.get(), after.inode_count.get());
            if grown(inodes.0, inodes.1, after.quota_inodes.get()) {
                return Err(FsError::Quota);
            }
            let quota = after.quota_bytes.get();
            if quota > 0 {
                let used = self.used_bytes(id, &after);
                if grown(before.logical_bytes.get(), used, quota)
                    && after.logical_bytes.get() > before.logical_bytes.get()
                {
                    return Err(FsError::Quota);
                }
            }
        }
        Ok(())
    }
}
