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
//! - Without a current version, and with a version that is no marker as the newest in the tree, a crash has come
//!   between the two steps of a deletion that was not acknowledged.

use cfs_format::Ino;
use cfs_fs::{FsError, RenameFlags};
use http::{HeaderMap, HeaderValue};
use s3s::{S3Error, S3ErrorCode, S3Result};

use crate::buckets::BucketAt;
use crate::errors::from_fs;
use crate::face::Face;
use crate::objects::{Object, Place};
use crate::ops::NULL_VERSION;
use crate::records::{self, Versioning, name};
use crate::upload::{Measures, Upload};
use crate::walk::Walk;

/// The directory in a bucket's directory that holds older versions.
const VERSIONS: &[u8] = b".s3!versions";
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

/// The key and the identifier of a key in the tree.
pub(crate) fn split_path(path: &str) -> Option<(&str, &str)> {
    let (key, text) = path.split_once('\0')?;
    match text.ends_with(NULL_SUFFIX) {
        true => Some((key, NULL_VERSION)),
        false => Some((key, text)),
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
        let entry = self.fs.find_name(bucket.ino(), VERSIONS)?;
        Ok(entry
            .filter(|entry| entry.kind == libc::S_IFDIR)
            .map(|entry| entry.ino))
    }

    fn make_versions_tree(&self, bucket: &BucketAt) -> Result<Ino, FsError> {
        loop {
            if let Some(tree) = self.versions_tree(bucket)? {
                return Ok(tree);
            }
            let caller = Self::caller_in(&bucket.attr);
            match self.fs.mkdir(bucket.ino(), VERSIONS, MODE, &caller) {
                Ok(made) => {
                    self.name_changed(bucket.ino(), VERSIONS);
                    return Ok(made.ino);
                }
                Err(FsError::Exists) => {}
                Err(error) => return Err(error),
            }
        }
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

    /// The text under which a file's version is in the tree.
    fn text_of(&self, ino: Ino, id: &str) -> Result<String, FsError> {
        if id != NULL_VERSION {
            return Ok(id.to_owned());
        }
        let time = self.fs.getattr(ino)?.mtime;
        let nanos =
            u64::try_from(time.seconds).unwrap_or(0) * 1_000_000_000 + u64::from(time.nanos);
        Ok(inverted(nanos) + NULL_SUFFIX)
    }

    /// The newest version of a key in the tree, or the next after one.
    fn older(&self, bucket: &BucketAt, key: &str) -> Result<Option<Older>, FsError> {
        let Some(tree) = self.versions_tree(bucket)? else {
            return Ok(None);
        };
        let prefix = in_tree(key, "");
        let mut walk = Walk::new(&self.fs, tree, prefix.as_bytes(), b"")?;
        Ok(walk.next()?.and_then(|(path, ino)| {
            let path = String::from_utf8(path).ok()?;
            let id = split_path(&path)?.1.to_owned();
            Some(Older { ino, path, id })
        }))
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
                None => Err(S3ErrorCode::NoSuchVersion.into()),
            })
        };
        find().map_err(from_fs)?
    }

    /// An identifier for a version that is to be newer than all that there are of a key.
    fn new_version(
        &self,
        bucket: &BucketAt,
        key: &str,
        current: Option<&Place>,
    ) -> Result<String, FsError> {
        let newest = match current {
            Some(place) => {
                let id = self.version_of(place.ino)?;
                Some(self.text_of(place.ino, &id)?)
            }
            None => self
                .older(bucket, key)?
                .and_then(|older| older.path.split_once('\0').map(|(_, text)| text.to_owned())),
        };
        let after = newest.map_or(0, |text| nanos_of(&text) + 1);
        let now = time::OffsetDateTime::now_utc().unix_timestamp_nanos();
        Ok(inverted(u64::try_from(now).unwrap_or(0).max(after)))
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
        let text = self.text_of(current.ino, &old)?;
        let tree = self.make_versions_tree(bucket)?;
        let archive = self.new_place(tree, &in_tree(key, &text))?;
        Ok((id, Some(archive)))
    }

    /// Removes the version `null` from the tree, as another takes its place.
    ///
    /// # Errors
    /// What the file system refuses.
    pub(crate) fn drop_older_null(&self, bucket: &BucketAt, key: &str) -> Result<(), FsError> {
        match self.older_null(bucket, key)? {
            Some(older) => self.drop_older(bucket, &older),
            None => Ok(()),
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

    /// Moves a file from one tree to another.
    fn move_file(
        &self,
        from: (&Place, Ino, &str),
        (to, to_key): (Ino, &str),
    ) -> Result<(), FsError> {
        let (place, root, key) = from;
        let (parent, name) = self.new_place(to, to_key)?;
        let flags = RenameFlags {
            no_replace: true,
            ..RenameFlags::default()
        };
        self.fs
            .rename(place.parent, &place.name, parent, &name, flags)?;
        self.name_changed(place.parent, &place.name);
        self.name_changed(parent, &name);
        self.prune(root, key)
    }

    /// Deletes a key in a bucket that keeps versions: the current version goes into the tree, and a marker before it.
    /// The key is locked. Not durable yet.
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
        let place = self.find(bucket.ino(), key).map_err(from_fs)?;
        if conditional {
            let object = match &place {
                Some(place) => Some(self.object(place.ino).map_err(from_fs)?),
                None => None,
            };
            check(object.as_ref())?;
        }
        let new = self
            .new_version(bucket, key, place.as_ref())
            .map_err(from_fs)?;
        let tree = self.make_versions_tree(bucket).map_err(from_fs)?;
        let id = match state {
            Versioning::Enabled => new.clone(),
            Versioning::Suspended => NULL_VERSION.to_owned(),
        };
        let clear = || -> Result<(), FsError> {
            if let Some(place) = &place {
                let old = self.version_of(place.ino)?;
                if state == Versioning::Suspended && old == NULL_VERSION {
                    self.fs.unlink(place.parent, &place.name)?;
                    self.name_changed(place.parent, &place.name);
                    self.inode_changed(place.ino);
                    self.prune(bucket.ino(), key)?;
                } else {
                    let text = self.text_of(place.ino, &old)?;
                    let from = (place, bucket.ino(), key);
                    self.move_file(from, (tree, &in_tree(key, &text)))?;
                }
            }
            match state {
                Versioning::Suspended => self.drop_older_null(bucket, key),
                Versioning::Enabled => Ok(()),
            }
        };
        clear().map_err(from_fs)?;
        let text = match state {
            Versioning::Enabled => new,
            Versioning::Suspended => new + NULL_SUFFIX,
        };
        self.put_marker(tree, &in_tree(key, &text), &id)?;
        Ok(Deleted {
            version: Some(id),
            is_marker: true,
        })
    }

    fn put_marker(&self, tree: Ino, path: &str, id: &str) -> S3Result<()> {
        let measures = Measures {
            checksums: crate::ops::put::hasher(|_| false),
            sha256: Some(String::new()),
        };
        let mut rows = vec![(name::MARKER.to_vec(), Vec::new())];
        if id != NULL_VERSION {
            rows.push((name::VERSION.to_vec(), id.as_bytes().to_vec()));
        }
        let (parent, name) = self.new_place(tree, path).map_err(from_fs)?;
        let file = Upload::begin(std::sync::Arc::clone(&self.fs), parent, measures)?;
        let publication = cfs_fs::Publication {
            parent,
            name: &name,
            expected: cfs_fs::Expected::Nothing,
            records: rows,
            archive: None,
        };
        self.fs.publish(file.ino(), publication).map_err(from_fs)?;
        self.name_changed(parent, &name);
        Ok(())
    }

    /// Removes a version for good. If it was the newest, the one before it becomes current, unless that is a marker. The
    /// key is locked. Not durable yet.
    ///
    /// # Errors
    /// What the file system refuses. That there is no such version is no error.
    pub(crate) fn delete_version(
        &self,
        bucket: &BucketAt,
        key: &str,
        id: &str,
    ) -> S3Result<Deleted> {
        let delete = || -> Result<Deleted, FsError> {
            let mut deleted = Deleted {
                version: Some(id.to_owned()),
                is_marker: false,
            };
            let current = self.find(bucket.ino(), key)?;
            match &current {
                Some(place) if self.version_of(place.ino)? == id => {
                    self.fs.unlink(place.parent, &place.name)?;
                    self.name_changed(place.parent, &place.name);
                    self.inode_changed(place.ino);
                    self.prune(bucket.ino(), key)?;
                }
                _ => {
                    if let Some(older) = self.find_older(bucket, key, id)? {
                        deleted.is_marker = self.is_marker(older.ino)?;
                        self.drop_older(bucket, &older)?;
                    }
                    if current.is_some() {
                        return Ok(deleted);
                    }
                }
            }
            if let Some(older) = self.older(bucket, key)?
                && !self.is_marker(older.ino)?
                && let Some(tree) = self.versions_tree(bucket)?
                && let Some(place) = self.find(tree, &older.path)?
            {
                self.move_file((&place, tree, &older.path), (bucket.ino(), key))?;
            }
            Ok(deleted)
        };
        delete().map_err(from_fs)
    }

    /// Says whether a bucket keeps versions, durably.
    ///
    /// # Errors
    /// What writing failed with.
    pub(crate) fn set_versioning(&self, bucket: &BucketAt, state: Versioning) -> S3Result<()> {
        let mut record = bucket.record.clone();
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
