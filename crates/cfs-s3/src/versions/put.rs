//! What putting an object does to the versions of its key.

use cfs_format::Ino;
use cfs_fs::{Arrangement, Expected, FsError, Named, Room};

use super::{in_tree, moved};
use crate::buckets::BucketAt;
use crate::face::Face;
use crate::objects::Place;
use crate::ops::NULL_VERSION;
use crate::records::Versioning;

impl Face {
    /// What putting an object under a key does to its versions: the identifier of the new one, and where the file that
    /// it replaces goes.
    ///
    /// # Errors
    /// What the file system refuses.
    pub(crate) fn plan_version(
        &self,
        bucket: &BucketAt,
        key: &str,
        current: Option<&Place>,
    ) -> Result<(Option<String>, Option<(Ino, Vec<u8>)>), FsError> {
        let Some(state) = bucket.record.versioning else {
            return Ok((None, None));
        };
        let id = match state {
            Versioning::Enabled => Some(self.new_version(bucket, key, current)?),
            Versioning::Suspended => None,
        };
        let Some(current) = current else {
            return Ok((id, None));
        };
        let old = self.version_of(current.ino)?;
        if state == Versioning::Suspended && old == NULL_VERSION {
            return Ok((id, None));
        }
        let text = self.text_of(bucket, key, current.ino, &old)?;
        let tree = self.make_versions_tree(bucket, Room::Free)?;
        let archive = self.new_place(tree, &in_tree(key, &text), Room::Free)?;
        Ok((id, Some(archive)))
    }

    /// The version `null` that is not the current one, if another is to take its place: in a bucket that keeps no new versions.
    /// With its key in the tree, if it is there.
    ///
    /// # Errors
    /// What the file system refuses.
    pub(crate) fn replaced_null(
        &self,
        bucket: &BucketAt,
        key: &str,
        current: Option<&Place>,
    ) -> Result<Option<(Place, Option<String>)>, FsError> {
        if bucket.record.versioning != Some(Versioning::Suspended) {
            return Ok(None);
        }
        let mut found = self.null_places(bucket, key)?;
        if let Some((hidden, _)) = self.hidden(bucket, key, current, Room::Free)?
            && self.version_of(hidden.ino)? == NULL_VERSION
        {
            found.push((hidden, None));
        }
        let is_null = match current {
            Some(current) => self.version_of(current.ino)? == NULL_VERSION,
            None => false,
        };
        // Only one can go in one step. The others are not missed: the first of those of the version null hides them.
        let left = found.split_off(usize::from(!is_null).min(found.len()));
        for (place, path) in left {
            self.fs.unlink(place.parent, &place.name)?;
            self.name_changed(place.parent, &place.name);
            self.prune_at(bucket, key, path.as_deref())?;
        }
        Ok(found.pop())
    }

    /// Publishes a file, in the step in which the version `null` goes that is not current, and the current one into the tree.
    ///
    /// # Errors
    /// As [`cfs_fs::Fs::arrange`].
    pub(crate) fn publish_over_null(
        &self,
        bucket: &BucketAt,
        key: &str,
        null: (Place, Option<String>),
        current: Option<(&Place, (Ino, Vec<u8>))>,
        publish: (Named, Vec<(Vec<u8>, Vec<u8>)>),
        expected: Expected,
    ) -> Result<(), FsError> {
        let (place, path) = null;
        let arrangement = Arrangement {
            remove: Some(place.named()),
            moves: current
                .map(|(place, to)| moved(place, to))
                .into_iter()
                .collect(),
            publish: Some(publish),
            describes: true,
            unchanged: match expected {
                Expected::Unchanged(attr) => Some(attr),
                Expected::Anything | Expected::Nothing | Expected::File(_) => None,
            },
            ..Arrangement::default()
        };
        self.arrange(bucket.ino(), key, arrangement)?;
        match path {
            Some(path) => self.prune_at(bucket, key, Some(&path)),
            None => Ok(()),
        }
    }
}
