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

mod apart;
mod delete;
mod find;
mod put;

use cfs_format::Ino;
use cfs_fs::escaped::VERSIONS_NAME;
use cfs_fs::{Arrangement, FsError, Moved, Room};
use s3s::{S3Error, S3Result, s3_error};

use crate::buckets::BucketAt;
use crate::errors::from_fs;
use crate::face::Face;
use crate::objects::{Place, TRIES};
use crate::ops::NULL_VERSION;
use crate::records::{self, Versioning, name};

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
pub(crate) fn nanos_of(text: &str) -> u64 {
    text.get(..16)
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .map_or(0, |inverted| u64::MAX - inverted)
}

/// An identifier for a version that is newer than one of this time.
pub(crate) fn version_after(nanos: u64) -> String {
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

/// The identifier of a version with this record, if it has one.
pub(crate) fn id_of_record(record: Option<Vec<u8>>) -> String {
    record
        .and_then(|id| String::from_utf8(id).ok())
        .unwrap_or_else(|| NULL_VERSION.to_owned())
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
        Ok(id_of_record(self.fs.record(ino, name::VERSION)?))
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

    /// Removes directories that a name is gone from: of the key, or of its version in the tree.
    fn prune_at(&self, bucket: &BucketAt, key: &str, in_tree: Option<&str>) -> Result<(), FsError> {
        match (in_tree, self.versions_tree(bucket)?) {
            (None, _) => self.prune(bucket.ino(), key),
            (Some(path), Some(tree)) => self.prune(tree, path),
            (Some(_), None) => Ok(()),
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
