//! Versions of objects.
//!
//! The current version of an object is its file. In a bucket that keeps versions, what it replaces or what is deleted
//! goes, by its inode, into a tree of the same kind below `.s3!versions` in the bucket's directory, under the key, a zero
//! byte, and a text that sorts newer versions first. A delete marker is an empty file there. So a version takes no
//! room but what it alone refers to, and listing versions is a walk of two trees in the order of keys.
//!
//! # Invariants
//! - The current version is newer than all in the tree.
//! - A version has its identifier in a record; a file without is the version `null`, of which there is one.
//! - Without a current version, the newest in the tree is a marker, but for what is done through the mount.

use cfs_format::Ino;
use cfs_fs::escaped::VERSIONS_NAME;
use cfs_fs::{Arrangement, Expected, FsError, Moved, Named, RecordChange, Room};
use http::{HeaderMap, HeaderValue};
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};

use crate::buckets::BucketAt;
use crate::errors::from_fs;
use crate::face::Face;
use crate::objects::{Object, Place, TRIES};
use crate::ops::NULL_VERSION;
use crate::records::{self, Versioning, name};
use crate::upload::Upload;
use crate::walk::Walk;

/// Mode of that directory.
const MODE: u32 = 0o700;
/// What the text of the version `null` ends with.
const NULL_SUFFIX: &str = "-null";

/// A version that was found.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    pub(crate) ino: Ino,
    /// Its identifier, as clients know it.
    pub(crate) id: String,
}

/// A version in the tree.
#[derive(Clone, Debug)]
pub(crate) struct Older {
    pub(crate) ino: Ino,
    /// The key in the tree.
    pub(crate) path: String,
    /// Its identifier.
    pub(crate) id: String,
}

/// What became of a key that was deleted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Deleted {
    /// The version that was made or removed.
    pub(crate) version: Option<String>,
    /// It is a delete marker.
    pub(crate) is_marker: bool,
}

/// The text of a time that sorts later times first.
fn inverted(nanos: u64) -> String {
    format!("{:016x}", u64::MAX - nanos)
}

/// The time of a text.
fn nanos_of(text: &str) -> u64 {
    text.get(..16)
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .map_or(0, |inverted| u64::MAX - inverted)
}

/// An identifier for a version that is newer than one of this time.
fn version_after(nanos: u64) -> String {
    let now = time::OffsetDateTime::now_utc().unix_timestamp_nanos();
    inverted(u64::try_from(now).unwrap_or(0).max(nanos.saturating_add(1)))
}

/// The key and the identifier of a key in the tree.
pub(crate) fn split_path(path: &str) -> Option<(&str, &str)> {
    let (key, text) = path.split_once('\0')?;
    match text.ends_with(NULL_SUFFIX) {
        true => Some((key, NULL_VERSION)),
        false => Some((key, text)),
    }
}

/// Why a step was not done.
enum Failed {
    Fs(FsError),
    S3(S3Error),
}

impl From<S3Error> for Failed {
    fn from(error: S3Error) -> Self {
        Self::S3(error)
    }
}

fn moved(place: &Place, (to, name): (Ino, Vec<u8>)) -> Moved {
    Moved {
        from: place.named(),
        to,
        name,
    }
}

fn in_tree(key: &str, text: &str) -> String {
    format!("{key}\0{text}")
}

impl Face {
    /// The tree of older versions, if there is one.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn versions_tree(&self, bucket: &BucketAt) -> Result<Option<Ino>, FsError> {
        let entry = self.fs.find_name(bucket.ino(), VERSIONS_NAME)?;
        Ok(entry
            .filter(|entry| entry.kind == libc::S_IFDIR)
            .map(|entry| entry.ino))
    }

    fn make_versions_tree(&self, bucket: &BucketAt, room: Room) -> Result<Ino, FsError> {
        self.system_directory(bucket, VERSIONS_NAME, MODE, room)
    }

    /// The identifier of a file's version.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn version_of(&self, ino: Ino) -> Result<String, FsError> {
        let id = self.fs.record(ino, name::VERSION)?;
        Ok(id
            .and_then(|id| String::from_utf8(id).ok())
            .unwrap_or_else(|| NULL_VERSION.to_owned()))
    }

    /// Whether a file is a delete marker.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn is_marker(&self, ino: Ino) -> Result<bool, FsError> {
        Ok(self.fs.record(ino, name::MARKER)?.is_some())
    }

    /// Whether a key has no current version, but a delete marker.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn is_hidden(&self, bucket: &BucketAt, key: &str) -> Result<bool, FsError> {
        if self.find(bucket.ino(), key)?.is_some() {
            return Ok(false);
        }
        match self.older(bucket, key)? {
            Some(older) => self.is_marker(older.ino),
            None => Ok(false),
        }
    }

    /// The text under which the current version of a key is in the tree, before all that are there.
    fn text_of(&self, bucket: &BucketAt, key: &str, ino: Ino, id: &str) -> Result<String, FsError> {
        if id != NULL_VERSION {
            return Ok(id.to_owned());
        }
        let older = self.older(bucket, key)?;
        let newest = older.and_then(|it| Some(nanos_of(it.path.split_once('\0')?.1)));
        let after = newest.map_or(0, |nanos| nanos.saturating_add(1));
        // Nobody sets this time, as the mount does the modification time.
        let changed = self.fs.getattr(ino)?.ctime.ns_since_1970();
        Ok(inverted(changed.max(after)) + NULL_SUFFIX)
    }

    /// The newest version of a key in the tree.
    fn older(&self, bucket: &BucketAt, key: &str) -> Result<Option<Older>, FsError> {
        self.older_but(bucket, key, None)
    }

    /// The newest version of a key in the tree, but for one.
    fn older_but(
        &self,
        bucket: &BucketAt,
        key: &str,
        but: Option<&str>,
    ) -> Result<Option<Older>, FsError> {
        let Some(tree) = self.versions_tree(bucket)? else {
            return Ok(None);
        };
        let prefix = in_tree(key, "");
        let mut walk = Walk::new(&self.fs, tree, prefix.as_bytes(), b"")?;
        while let Some((path, ino)) = walk.next()? {
            if let Ok(path) = String::from_utf8(path)
                && but != Some(path.as_str())
                && let Some((_, id)) = split_path(&path)
            {
                let id = id.to_owned();
                return Ok(Some(Older { ino, path, id }));
            }
        }
        Ok(None)
    }

    fn older_null(&self, bucket: &BucketAt, key: &str) -> Result<Option<Older>, FsError> {
        let Some(tree) = self.versions_tree(bucket)? else {
            return Ok(None);
        };
        let prefix = in_tree(key, "");
        let mut walk = Walk::new(&self.fs, tree, prefix.as_bytes(), b"")?;
        while let Some((path, ino)) = walk.next()? {
            if path.ends_with(NULL_SUFFIX.as_bytes())
                && let Ok(path) = String::from_utf8(path)
            {
                let id = NULL_VERSION.to_owned();
                return Ok(Some(Older { ino, path, id }));
            }
        }
        Ok(None)
    }

    /// A version in the tree.
    fn find_older(&self, bucket: &BucketAt, key: &str, id: &str) -> Result<Option<Older>, FsError> {
        if id == NULL_VERSION {
            return self.older_null(bucket, key);
        }
        let Some(tree) = self.versions_tree(bucket)? else {
            return Ok(None);
        };
        let path = in_tree(key, id);
        Ok(self.find(tree, &path)?.map(|place| Older {
            ino: place.ino,
            path,
            id: id.to_owned(),
        }))
    }

    /// Where in the tree a marker goes on after this version: the version's key in the tree.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn path_of(
        &self,
        bucket: &BucketAt,
        key: &str,
        id: &str,
    ) -> S3Result<Option<String>> {
        let older = self.find_older(bucket, key, id).map_err(from_fs)?;
        Ok(older.map(|older| older.path))
    }

    /// A version of an object: the current one, if none is named.
    ///
    /// # Errors
    /// `NoSuchKey`, `NoSuchVersion`; `MethodNotAllowed` for a delete marker.
    pub(crate) fn find_version(
        &self,
        bucket: &BucketAt,
        key: &str,
        wanted: Option<&String>,
    ) -> S3Result<Version> {
        let find = || -> Result<S3Result<Version>, FsError> {
            let current = match self.find(bucket.ino(), key)? {
                Some(place) => Some(Version {
                    ino: place.ino,
                    id: self.version_of(place.ino)?,
                }),
                None => None,
            };
            let Some(wanted) = wanted else {
                return Ok(match current {
                    Some(version) => Ok(version),
                    None => match self.older(bucket, key)? {
                        Some(older) if self.is_marker(older.ino)? => {
                            Err(marked(S3ErrorCode::NoSuchKey, &older.id))
                        }
                        _ => Err(S3ErrorCode::NoSuchKey.into()),
                    },
                });
            };
            if let Some(version) = current
                && version.id == *wanted
            {
                return Ok(Ok(version));
            }
            Ok(match self.find_older(bucket, key, wanted)? {
                Some(older) if self.is_marker(older.ino)? => {
                    Err(marked(S3ErrorCode::MethodNotAllowed, &older.id))
                }
                Some(older) => Ok(Version {
                    ino: older.ino,
                    id: older.id,
                }),
                None => match self.shadowed(bucket, key, wanted)? {
                    Some(place) => Ok(Version {
                        ino: place.ino,
                        id: wanted.clone(),
                    }),
                    None => Err(S3ErrorCode::NoSuchVersion.into()),
                },
            })
        };
        find().map_err(from_fs)?
    }

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
    fn hidden(
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

    /// The time of the newest version of a key in the tree.
    fn newest_older(&self, bucket: &BucketAt, key: &str) -> Result<u64, FsError> {
        let older = self.older(bucket, key)?;
        let newest = older.and_then(|older| Some(nanos_of(older.path.split_once('\0')?.1)));
        Ok(newest.unwrap_or(0))
    }

    /// The time that a file of a key would have in the tree.
    fn nanos_in_tree(&self, bucket: &BucketAt, key: &str, place: &Place) -> Result<u64, FsError> {
        let id = self.version_of(place.ino)?;
        Ok(nanos_of(&self.text_of(bucket, key, place.ino, &id)?))
    }

    /// An identifier for a version that is to be newer than all that there are of a key.
    fn new_version(
        &self,
        bucket: &BucketAt,
        key: &str,
        current: Option<&Place>,
    ) -> Result<String, FsError> {
        Ok(version_after(match current {
            Some(place) => self.nanos_in_tree(bucket, key, place)?,
            None => self.newest_older(bucket, key)?,
        }))
    }

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
        let mut found = Vec::new();
        if let Some(tree) = self.versions_tree(bucket)?
            && let Some(older) = self.older_null(bucket, key)?
            && let Some(place) = self.find(tree, &older.path)?
        {
            found.push((place, Some(older.path)));
        }
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

    /// Removes directories that a name is gone from: of the key, or of its version in the tree.
    fn prune_at(&self, bucket: &BucketAt, key: &str, in_tree: Option<&str>) -> Result<(), FsError> {
        match (in_tree, self.versions_tree(bucket)?) {
            (None, _) => self.prune(bucket.ino(), key),
            (Some(path), Some(tree)) => self.prune(tree, path),
            (Some(_), None) => Ok(()),
        }
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
                if state == Versioning::Suspended
                    && let Some(older) = self.older_null(bucket, key)?
                {
                    // Only the current one hides it.
                    let current = place.as_ref().map(|place| place.ino);
                    let is_hidden = replaced.first().is_some_and(|it| Some(it.ino) == current);
                    let at = usize::from(is_hidden);
                    replaced.splice(at..at, self.find(tree, &older.path)?);
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
            self.tell_apart(bucket, key, current.as_ref(), Room::Reserve)?;
            let hidden = self.hidden(bucket, key, current.as_ref(), Room::Reserve)?;
            let tree = self.versions_tree(bucket)?;
            let mut path = None;
            let is_current = match &current {
                Some(place) => self.version_of(place.ino)? == id,
                None => false,
            };
            // Of one version two times, the one that nobody sees goes before.
            if is_current
                && let Some((hidden, _)) = hidden
                && self.version_of(hidden.ino)? == id
            {
                let arrangement = Arrangement {
                    remove: Some(hidden.named()),
                    bypass_governance,
                    room: Room::Reserve,
                    ..Arrangement::default()
                };
                self.arrange(bucket.ino(), key, arrangement)?;
            }
            let goes = match is_current {
                true => current.take(),
                false => match (tree, self.find_older(bucket, key, id)?) {
                    (Some(tree), Some(older)) => {
                        deleted.is_marker = self.is_marker(older.ino)?;
                        let place = self.find(tree, &older.path)?;
                        path = Some(older.path);
                        place
                    }
                    _ => self.shadowed(bucket, key, id)?,
                },
            };
            let Some(goes) = goes else {
                return Ok(deleted);
            };
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

    /// Has names changed in one step, tells of it, and removes directories that a key needs no more.
    ///
    /// # Errors
    /// As [`cfs_fs::Fs::arrange`].
    pub(crate) fn arrange(
        &self,
        bucket: Ino,
        key: &str,
        arrangement: Arrangement,
    ) -> Result<(), FsError> {
        let names: Vec<_> = arrangement
            .remove
            .iter()
            .chain(arrangement.moves.iter().map(|moved| &moved.from))
            .map(|named| (named.parent, named.name.clone()))
            .chain(arrangement.moves.iter().map(|it| (it.to, it.name.clone())))
            .chain(
                arrangement
                    .publish
                    .iter()
                    .map(|(named, _)| (named.parent, named.name.clone())),
            )
            .collect();
        self.fs.arrange(arrangement)?;
        for (parent, name) in names {
            self.name_changed(parent, &name);
        }
        self.prune(bucket, key)
    }

    /// Tries until nobody, as through the mount, changes the same names between the look and the step.
    fn until_it_holds<T>(&self, step: impl Fn() -> Result<T, Failed>) -> S3Result<T> {
        for _ in 0..TRIES {
            match step() {
                Ok(done) => return Ok(done),
                Err(Failed::Fs(
                    FsError::NotFound
                    | FsError::NotDirectory
                    | FsError::IsDirectory
                    | FsError::Exists
                    | FsError::Changed,
                )) => {}
                Err(Failed::Fs(error)) => return Err(from_fs(error)),
                Err(Failed::S3(error)) => return Err(error),
            }
        }
        Err(s3_error!(
            OperationAborted,
            "somebody else is changing the same name; try again"
        ))
    }

    /// A version that is hidden by a file of the mount with the plain name of its key.
    fn shadowed(&self, bucket: &BucketAt, key: &str, id: &str) -> Result<Option<Place>, FsError> {
        match self.find_shadowed(bucket.ino(), key)? {
            Some(place) if self.version_of(place.ino)? == id => Ok(Some(place)),
            _ => Ok(None),
        }
    }

    /// Says whether a bucket keeps versions, durably.
    ///
    /// # Errors
    /// `InvalidBucketState` for a bucket with object lock, which always does; what writing failed with.
    pub(crate) fn set_versioning(&self, bucket: &BucketAt, state: Versioning) -> S3Result<()> {
        let _changing = self.change_of_bucket(bucket.ino());
        let mut record = self.bucket_by_now(bucket)?.record;
        if record.object_lock && state != Versioning::Enabled {
            return Err(s3_error!(
                InvalidBucketState,
                "a bucket with object lock keeps versions"
            ));
        }
        record.versioning = Some(state);
        let row = (name::BUCKET.to_vec(), records::encode(&record));
        self.change_bucket(bucket, vec![row], Vec::new())
    }
}

/// An error that tells of a delete marker.
fn marked(code: S3ErrorCode, id: &str) -> S3Error {
    let mut error = S3Error::new(code);
    let mut headers = HeaderMap::new();
    headers.insert("x-amz-delete-marker", HeaderValue::from_static("true"));
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert("x-amz-version-id", id);
    }
    error.set_headers(headers);
    error
}
