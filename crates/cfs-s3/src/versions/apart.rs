//! Telling the files of a key apart where a snapshot that was restored has brought back one that is another's version too.

use cfs_format::Ino;
use cfs_fs::{FsError, RecordChange, Room};

use super::{Older, version_after};
use crate::buckets::BucketAt;
use crate::face::Face;
use crate::objects::Place;
use crate::ops::NULL_VERSION;
use crate::records::name;

impl Face {
    /// Gives the current version another identifier if an older one has the same: restoring a snapshot brings a version back
    /// under its key that has gone into the tree since. If only the current one is locked, it stays as it is and the older one goes.
    ///
    /// # Errors
    /// What the file system refuses.
    pub(crate) fn tell_apart(
        &self,
        bucket: &BucketAt,
        key: &str,
        current: Option<&Place>,
        room: Room,
    ) -> Result<(), FsError> {
        let Some(current) = current.filter(|_| bucket.record.versioning.is_some()) else {
            return Ok(());
        };
        let id = self.version_of(current.ino)?;
        // Those of the version null are told apart by their times.
        if id == NULL_VERSION {
            return Ok(());
        }
        let Some(older) = self.find_older(bucket, key, &id)? else {
            return Ok(());
        };
        // Of two that are locked neither can go.
        if self.fs.lock(current.ino)?.is_some() && self.fs.lock(older.ino)?.is_none() {
            return self.drop_older(bucket, &older);
        }
        let id = version_after(self.newest_older(bucket, key)?);
        self.give_version(current, id, room)
    }

    fn give_version(&self, place: &Place, id: String, room: Room) -> Result<(), FsError> {
        let change = RecordChange {
            put: vec![(name::VERSION.to_vec(), id.into_bytes())],
            room,
            ..RecordChange::default()
        };
        self.fs.set_records(place.ino, change)
    }

    /// The file that the current version's hides, if there is one, told apart from all others of the key: a snapshot that was
    /// restored has brought one back beside the other. And which of the two goes, where they are one version.
    ///
    /// # Errors
    /// What the file system refuses.
    pub(super) fn hidden(
        &self,
        bucket: &BucketAt,
        key: &str,
        current: Option<&Place>,
        room: Room,
    ) -> Result<Option<(Place, Option<Ino>)>, FsError> {
        let found = self.find_shadowed(bucket.ino(), key)?;
        let (Some(hidden), Some(current)) = (found, current) else {
            return Ok(None);
        };
        if hidden == *current {
            return Ok(None);
        }
        self.tell_apart(bucket, key, Some(&hidden), room)?;
        let goes = match self.version_of(hidden.ino)? == self.version_of(current.ino)? {
            false => None,
            true if self.fs.lock(hidden.ino)?.is_none() => Some(hidden.ino),
            true if self.fs.lock(current.ino)?.is_none() => Some(current.ino),
            true => {
                let current = self.nanos_in_tree(bucket, key, current)?;
                let newest = self.newest_older(bucket, key)?.max(current);
                self.give_version(&hidden, version_after(newest), room)?;
                None
            }
        };
        Ok(Some((hidden, goes)))
    }

    fn drop_older(&self, bucket: &BucketAt, older: &Older) -> Result<(), FsError> {
        let Some(tree) = self.versions_tree(bucket)? else {
            return Ok(());
        };
        if let Some(place) = self.find(tree, &older.path)? {
            self.fs.unlink(place.parent, &place.name)?;
            self.name_changed(place.parent, &place.name);
            self.prune(tree, &older.path)?;
        }
        Ok(())
    }
}
