//! Making clones, telling what they depend on, and removing what is left of those that are gone.

use cfs_format::VolumeId;
use cfs_format::table::{VolumeRecord, split_key};

use super::volumes::{Quota, Volume, junction_at};
use crate::Fs;
use crate::clone;
use crate::command::{CloneCreate, Command, Sweep};
use crate::directory;
use crate::error::{FsError, Result};
use crate::extent::table_error;
use crate::types::{Attr, Caller};
use crate::views::Snapshot;

/// Rows of a clone that one command removes.
const SWEEP_ROWS_MAX: u32 = 1000;

impl Fs {
    /// Makes a volume that shows what a snapshot shows and can be changed. What that takes does not depend on what is
    /// there. The caller owns the place, the root is as the snapshot shows it. The quota counts what is the clone's own.
    ///
    /// # Errors
    /// [`FsError::NotFound`] when the snapshot is not there any more; [`FsError::Exists`]; [`FsError::NotDirectory`] for
    /// the directory above; [`FsError::Invalid`], [`FsError::NameTooLong`] for the name; [`FsError::Snapshot`] for a path
    /// in a snapshot; [`FsError::NoSpace`], [`FsError::Quota`]; [`FsError::TooManyLinks`] when there are as many volumes
    /// as there can be. There is no new volume then.
    pub fn clone_create(
        &self,
        snapshot: &Snapshot,
        path: &[u8],
        quota: Quota,
        caller: &Caller,
    ) -> Result<Attr> {
        if crate::stream::holds_arrivals(snapshot) {
            // It goes when receiving goes on.
            return Err(FsError::NotFound);
        }
        let (parent, name) = self.resolve_parent(path)?;
        directory::check_reserved(name)?;
        let _room = self.admit_growth(name.len())?;
        let junction = self.new_ino(parent)?;
        let salt = self.salt();
        let mut made = VolumeId(0);
        self.execute(|_, now| {
            let volume = self.views.free_volume(VolumeId::CLONE_MAX);
            made = volume.ok_or(FsError::TooManyLinks)?;
            Ok(Command::CloneCreate(CloneCreate {
                junction: junction_at((parent, name), junction, caller, now, salt),
                volume: made,
                origin: snapshot.volume,
                timestamp: snapshot.timestamp,
                quota_bytes: quota.bytes,
                quota_inodes: quota.inodes,
            }))
        })?;
        self.views.load_junctions();
        let root = snapshot.directory.in_clone(made);
        self.getattr(root.ok_or(FsError::TooLarge)?)
    }

    /// The clones that show what a snapshot shows.
    #[must_use]
    pub fn clones_of(&self, snapshot: &Snapshot) -> Vec<Volume> {
        let mut all = self.volumes();
        all.retain(|it| it.record.origin() == Some((snapshot.volume, snapshot.timestamp)));
        all
    }

    /// The snapshot that a clone shows where it has not been changed.
    #[must_use]
    pub fn origin_of(&self, clone: &Volume) -> Option<std::sync::Arc<Snapshot>> {
        let origin = clone.record.origin()?;
        let mut all = self.views.all().into_iter();
        all.find(|it| (it.volume, it.timestamp) == origin)
    }

    /// Removes some rows of a clone that is gone; false when there is none.
    pub(super) fn sweep_step(&self) -> Result<bool> {
        let removed = |(_, record): &(VolumeId, VolumeRecord)| record.is_removed();
        let Some((volume, _)) = self.store.volumes().into_iter().find(removed) else {
            return Ok(false);
        };
        // What has been removed takes time to pass over until it is merged away: one goes on where one was.
        let mut swept = self.swept.lock();
        let before = swept.filter(|(of, _)| *of == volume).map(|(_, last)| last);
        let mut last = None;
        self.execute(|txn, _| {
            let (lo, hi) = clone::range_of(volume, before)?;
            let row = txn.range(&lo, &hi).next_back();
            let row = row.transpose().map_err(table_error)?;
            last = match row {
                Some((row_key, _)) => Some(split_key(&row_key)?.0),
                None => None,
            };
            Ok(Command::Sweep(Sweep {
                volume,
                rows_max: SWEEP_ROWS_MAX,
                last,
            }))
        })?;
        *swept = last.map(|last| (volume, last));
        Ok(true)
    }
}
