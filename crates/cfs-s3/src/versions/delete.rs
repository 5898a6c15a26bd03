//! Deleting keys and versions.

use cfs_fs::{Arrangement, FsError, Named, Room};
use s3s::S3Result;

use super::{Deleted, Failed, NULL_SUFFIX, in_tree, moved, nanos_of, version_after};
use crate::buckets::BucketAt;
use crate::errors::from_fs;
use crate::face::Face;
use crate::objects::{Object, Place};
use crate::ops::NULL_VERSION;
use crate::records::{Versioning, name};
use crate::upload::Upload;

impl Face {
    /// Deletes a key in a bucket that keeps versions: the current version goes into the tree, and a marker before it, in
    /// one step. On a full pool too, while there is room for markers in what it keeps back. The key is locked. Not durable yet.
    ///
    /// # Errors
    /// What `check` refuses; what the file system does.
    pub(crate) fn mark_deleted(
        &self,
        bucket: &BucketAt,
        key: &str,
        state: Versioning,
        check: &dyn Fn(Option<&Object>) -> S3Result<()>,
        conditional: bool,
    ) -> S3Result<Deleted> {
        let room = Room::Reserve;
        let tree = self.make_versions_tree(bucket, room).map_err(from_fs)?;
        let marker = Upload::begin_with(std::sync::Arc::clone(&self.fs), tree, room)?;
        self.until_it_holds(|| {
            let place = self.find(bucket.ino(), key).map_err(from_fs)?;
            if conditional {
                let object = match &place {
                    Some(place) => Some(self.object(place.ino).map_err(from_fs)?),
                    None => None,
                };
                check(object.as_ref())?;
            }
            let mark = || -> Result<Deleted, FsError> {
                self.tell_apart(bucket, key, place.as_ref(), room)?;
                // What is hidden must not come back.
                let hidden = self.hidden(bucket, key, place.as_ref(), room)?;
                let (hidden, goes) = hidden.unzip();
                let mut new = self.new_version(bucket, key, place.as_ref())?;
                if let Some(hidden) = &hidden {
                    let nanos = self.nanos_in_tree(bucket, key, hidden)?;
                    new = version_after(nanos.max(nanos_of(&new)));
                }
                let mut arrangement = Arrangement {
                    room,
                    ..Arrangement::default()
                };
                // There is one version `null`: these, or the marker that takes their place. The first hides the others.
                let mut replaced = Vec::new();
                for found in [&place, &hidden].into_iter().flatten() {
                    let old = self.version_of(found.ino)?;
                    let is_null = state == Versioning::Suspended && old == NULL_VERSION;
                    if is_null || goes.flatten() == Some(found.ino) {
                        replaced.push(found.clone());
                    } else {
                        let text = self.text_of(bucket, key, found.ino, &old)?;
                        let to = self.new_place(tree, &in_tree(key, &text), room)?;
                        arrangement.moves.push(moved(found, to));
                    }
                }
                if state == Versioning::Suspended {
                    // Only the current one hides them.
                    let current = place.as_ref().map(|place| place.ino);
                    let is_hidden = replaced.first().is_some_and(|it| Some(it.ino) == current);
                    let at = usize::from(is_hidden);
                    let older = self.null_places(bucket, key)?.into_iter();
                    replaced.splice(at..at, older.map(|(place, _)| place));
                }
                // One can go in the step. Nobody misses the others, which it hides, before.
                for hidden in replaced.iter().skip(1) {
                    let arrangement = Arrangement {
                        remove: Some(hidden.named()),
                        room,
                        ..Arrangement::default()
                    };
                    self.arrange(bucket.ino(), key, arrangement)?;
                }
                let mut rows = vec![(name::MARKER.to_vec(), Vec::new())];
                let (id, text) = match state {
                    Versioning::Enabled => {
                        rows.push((name::VERSION.to_vec(), new.clone().into_bytes()));
                        (new.clone(), new)
                    }
                    Versioning::Suspended => (NULL_VERSION.to_owned(), new + NULL_SUFFIX),
                };
                let (parent, name) = self.new_place(tree, &in_tree(key, &text), room)?;
                let named = Named {
                    parent,
                    name,
                    ino: marker.ino(),
                };
                arrangement.remove = replaced.first().map(Place::named);
                arrangement.publish = Some((named, rows));
                self.arrange(bucket.ino(), key, arrangement)?;
                Ok(Deleted {
                    version: Some(id),
                    is_marker: true,
                })
            };
            mark().map_err(Failed::Fs)
        })
    }

    /// The files that are a version of a key, with the key in the tree of who is there; the first hides the others. The version
    /// `null` may have several, another a second one with the plain name of its key.
    fn files_of(
        &self,
        bucket: &BucketAt,
        key: &str,
        id: &str,
        current: Option<&Place>,
    ) -> Result<Vec<(Place, Option<String>)>, FsError> {
        self.tell_apart(bucket, key, current, Room::Reserve)?;
        let hidden = self.hidden(bucket, key, current, Room::Reserve)?;
        let mut files = Vec::new();
        if let Some(current) = current
            && self.version_of(current.ino)? == id
        {
            files.push((current.clone(), None));
        }
        if id == NULL_VERSION {
            files.extend(self.null_places(bucket, key)?);
        } else if files.is_empty()
            && let Some(tree) = self.versions_tree(bucket)?
            && let Some(older) = self.find_older(bucket, key, id)?
            && let Some(place) = self.find(tree, &older.path)?
        {
            files.push((place, Some(older.path)));
        }
        if let Some((hidden, _)) = hidden
            && self.version_of(hidden.ino)? == id
        {
            files.push((hidden, None));
        }
        Ok(files)
    }

    /// Removes a version for good. If it was the newest, the one before it becomes current in the same step, unless that
    /// is a marker. The key is locked. Not durable yet.
    ///
    /// # Errors
    /// `AccessDenied` for what is locked; what the file system refuses. That there is no such version is no error.
    pub(crate) fn delete_version(
        &self,
        bucket: &BucketAt,
        key: &str,
        id: &str,
        bypass_governance: bool,
    ) -> S3Result<Deleted> {
        let delete = || -> Result<Deleted, FsError> {
            let mut deleted = Deleted {
                version: Some(id.to_owned()),
                is_marker: false,
            };
            let mut current = self.find(bucket.ino(), key)?;
            let mut files = self.files_of(bucket, key, id, current.as_ref())?;
            if files.is_empty() {
                return Ok(deleted);
            }
            let now = self.fs.now_ms();
            for (place, _) in &files {
                let lock = self.fs.lock(place.ino)?;
                if lock.is_some_and(|lock| lock.protects(now, bypass_governance)) {
                    return Err(FsError::Locked);
                }
            }
            // One can go in the step. Those that it hides nobody misses before.
            for (place, path) in files.drain(1..) {
                let arrangement = Arrangement {
                    remove: Some(place.named()),
                    bypass_governance,
                    room: Room::Reserve,
                    ..Arrangement::default()
                };
                self.arrange(bucket.ino(), key, arrangement)?;
                self.inode_changed(place.ino);
                self.prune_at(bucket, key, path.as_deref())?;
            }
            let (goes, path) = files.remove(0);
            let tree = self.versions_tree(bucket)?;
            let is_current = current.as_ref() == Some(&goes);
            if is_current {
                current = None;
            } else if path.is_some() {
                deleted.is_marker = self.is_marker(goes.ino)?;
            }
            let mut arrangement = Arrangement {
                remove: Some(goes.named()),
                bypass_governance,
                room: Room::Reserve,
                ..Arrangement::default()
            };
            let mut comes = None;
            if current.is_none()
                && let Some(tree) = tree
                && let Some(older) = self.older_but(bucket, key, path.as_deref())?
                && !self.is_marker(older.ino)?
                && let Some(place) = self.find(tree, &older.path)?
            {
                let to = match is_current {
                    true => (goes.parent, goes.name.clone()),
                    false => self.new_place(bucket.ino(), key, Room::Reserve)?,
                };
                arrangement.moves.push(moved(&place, to));
                comes = Some(older.path);
            }
            self.arrange(bucket.ino(), key, arrangement)?;
            self.inode_changed(goes.ino);
            for path in [path, comes].into_iter().flatten() {
                if let Some(tree) = tree {
                    self.prune(tree, &path)?;
                }
            }
            Ok(deleted)
        };
        self.until_it_holds(|| delete().map_err(Failed::Fs))
    }
}
