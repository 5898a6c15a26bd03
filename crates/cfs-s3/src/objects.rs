//! Objects: regular files in a bucket's directory.

use std::collections::BTreeMap;
use std::sync::Arc;

use cfs_format::Ino;
use cfs_fs::{Arrangement, Attr, Expected, FsError, Moved, Named, Publication, RecordChange, Room};
use s3s::{S3Result, s3_error};
use sha2::{Digest, Sha256};

use crate::buckets::BucketAt;
use crate::download::Opened;
use crate::errors::from_fs;
use crate::face::Face;
use crate::md5::Md5;
use crate::names;
use crate::records::{self, Content, name};
use crate::upload::{Etags, etag_of_sha256};
use crate::versions::Version;
use crate::walk;

/// How often a change is tried again that others got in the way of.
pub(crate) const TRIES: usize = 32;
/// Bytes that are read at a time to compute a digest.
const DIGEST_STEP: usize = 1 << 20;
/// Mode of a directory that is made for a key.
const DIRECTORY_MODE: u32 = 0o755;

/// Where an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) parent: Ino,
    pub(crate) name: Vec<u8>,
    pub(crate) ino: Ino,
}

impl Place {
    /// The name, as the file system wants it.
    pub(crate) fn named(&self) -> Named {
        Named {
            parent: self.parent,
            name: self.name.clone(),
            ino: self.ino,
        }
    }
}

/// An object as it is now.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) attr: Attr,
    pub(crate) content: Content,
}

impl Object {
    /// Its bytes.
    pub(crate) fn size(&self) -> u64 {
        self.content.bytes(self.attr.size)
    }
}

impl Face {
    /// Where the object with this key is.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn find(&self, bucket: Ino, key: &str) -> Result<Option<Place>, FsError> {
        let (directories, last) = names::split(key.as_bytes());
        let mut at = bucket;
        for component in directories {
            match walk::directory_in(&self.fs, at, component)? {
                Some(ino) => at = ino,
                None => return Ok(None),
            }
        }
        if names::is_plain(last)
            && let Some(place) = self.file(at, last)?
        {
            return Ok(Some(place));
        }
        self.find_escaped(at, last)
    }

    /// The object with this key where it has its escaped name, also if another file has the plain one.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn find_shadowed(&self, bucket: Ino, key: &str) -> Result<Option<Place>, FsError> {
        let (directories, last) = names::split(key.as_bytes());
        let mut at = bucket;
        for component in directories {
            match walk::directory_in(&self.fs, at, component)? {
                Some(ino) => at = ino,
                None => return Ok(None),
            }
        }
        self.find_escaped(at, last)
    }

    fn find_escaped(&self, directory: Ino, last: &[u8]) -> Result<Option<Place>, FsError> {
        let mut at = directory;
        let mut names = names::escaped_file_names(last);
        let last = names.pop().expect("there is at least one name");
        for name in names {
            match self.fs.find_name(at, &name)? {
                Some(entry) if entry.kind == libc::S_IFDIR => at = entry.ino,
                _ => return Ok(None),
            }
        }
        self.file(at, &last)
    }

    fn file(&self, parent: Ino, name: &[u8]) -> Result<Option<Place>, FsError> {
        let entry = self.fs.find_name(parent, name)?;
        let entry = entry.filter(|entry| entry.kind == libc::S_IFREG);
        Ok(entry.map(|entry| Place {
            parent,
            name: entry.name,
            ino: entry.ino,
        }))
    }

    /// The object in a place, with its digests, which are computed if they are not known, and then kept, but for what a clone has
    /// from its origin.
    ///
    /// # Errors
    /// [`FsError::NotFound`] when it is not there any more.
    pub(crate) fn object(&self, ino: Ino) -> Result<Object, FsError> {
        for _ in 0..TRIES {
            let (attr, content) = self.known_object(ino)?;
            if let Some(content) = content {
                return Ok(Object { attr, content });
            }
            let content = self.digest(ino, attr.size)?;
            // Who only looks changes nothing in a clone. What is its origin's still has not changed meanwhile.
            if self.fs.is_inherited(ino)? {
                return Ok(Object { attr, content });
            }
            let change = RecordChange {
                put: vec![(name::CONTENT.to_vec(), records::encode(&content))],
                describes: Some(attr),
                ..RecordChange::default()
            };
            match self.fs.set_records(ino, change) {
                Ok(()) => return Ok(Object { attr, content }),
                Err(FsError::Changed) => {}
                // What is known for this answer is right, if it cannot be kept.
                Err(FsError::NoSpace | FsError::ReadOnly(_) | FsError::Receiving) => {
                    return Ok(Object { attr, content });
                }
                Err(error) => return Err(error),
            }
        }
        Err(FsError::Changed)
    }

    /// The object with this key as it is now, if there is one.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn look(&self, bucket: Ino, key: &str) -> S3Result<Option<Object>> {
        let Some(place) = self.find(bucket, key).map_err(from_fs)? else {
            return Ok(None);
        };
        match self.object(place.ino) {
            Ok(object) => Ok(Some(object)),
            Err(FsError::NotFound) => Ok(None),
            Err(error) => Err(from_fs(error)),
        }
    }

    /// Opens a version of an object: the current one, if none is named.
    ///
    /// # Errors
    /// As [`Face::find_version`].
    pub(crate) fn open_version(
        &self,
        bucket: &BucketAt,
        key: &str,
        wanted: Option<&String>,
    ) -> S3Result<(Version, Opened)> {
        for _ in 0..TRIES {
            let version = self.find_version(bucket, key, wanted)?;
            match Opened::new(Arc::clone(&self.fs), version.ino) {
                Ok(opened) => return Ok((version, opened)),
                // Another took its place between the look and the step.
                Err(FsError::NotFound) => {}
                Err(error) => return Err(from_fs(error)),
            }
        }
        Err(s3_error!(
            OperationAborted,
            "somebody else is changing the same name; try again"
        ))
    }

    /// A checksum of the whole content of a file, by the name of its algorithm.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn checksum(
        &self,
        ino: Ino,
        size: u64,
        algorithm: &str,
    ) -> S3Result<BTreeMap<String, String>> {
        let mut hasher = crate::ops::put::hasher(|name| name == algorithm);
        let mut buffer = Vec::new();
        let mut at = 0;
        while at < size {
            self.fs
                .read(ino, at, DIGEST_STEP, &mut buffer)
                .map_err(from_fs)?;
            if buffer.is_empty() {
                break;
            }
            hasher.update(&buffer);
            at += buffer.len() as u64;
        }
        Ok(crate::upload::named(&hasher.finalize()))
    }

    /// Attributes of a file, and its digests if they are known.
    pub(crate) fn known_object(&self, ino: Ino) -> Result<(Attr, Option<Content>), FsError> {
        let (attr, record) = self.fs.described(ino, name::CONTENT)?;
        let content = record.map(|bytes| records::decode(&bytes)).transpose()?;
        Ok((attr, content))
    }

    /// Bytes of an object, which need not be those of its file.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn size_of(&self, attr: &Attr) -> Result<u64, FsError> {
        let (_, content) = self.known_object(attr.ino)?;
        Ok(content.map_or(attr.size, |content| content.bytes(attr.size)))
    }

    /// Digests of the first `size` bytes of a file.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn digest(&self, ino: Ino, size: u64) -> Result<Content, FsError> {
        let mut md5 = (self.etags == Etags::Md5).then(Md5::new);
        let mut sha256 = Sha256::new();
        let mut buffer = Vec::new();
        let mut at = 0;
        while at < size {
            self.fs.read(ino, at, DIGEST_STEP, &mut buffer)?;
            if buffer.is_empty() {
                break;
            }
            if let Some(md5) = &mut md5 {
                md5.update(&buffer);
            }
            sha256.update(&buffer);
            at += buffer.len() as u64;
        }
        let sha256 = hex(&sha256.finalize());
        Ok(Content {
            etag: match md5 {
                Some(md5) => hex(&md5.finalize()),
                None => etag_of_sha256(&sha256),
            },
            sha256,
            ..Content::default()
        })
    }

    /// The directory, of those that are there on the way to a key, in whose volume an object is to be made that will have the
    /// key: a volume can lie below a bucket.
    ///
    /// # Errors
    /// `InvalidObjectState` where it lies in another volume than the bucket, which keeps versions; what reading failed with.
    pub(crate) fn directory_for(&self, bucket: &BucketAt, key: &str) -> S3Result<Ino> {
        let (directories, _) = names::split(key.as_bytes());
        let mut at = bucket.ino();
        for name in directories.into_iter().flat_map(names::directory_names) {
            match self.fs.find_name(at, &name).map_err(from_fs)? {
                Some(entry) if entry.kind == libc::S_IFDIR => at = entry.ino,
                _ => break,
            }
        }
        if bucket.record.versioning.is_some() && at != bucket.ino() {
            let volume = self.fs.getattr(at).map_err(from_fs)?.volume;
            if volume != bucket.attr.volume {
                return Err(from_fs(FsError::CrossVolume));
            }
        }
        Ok(at)
    }

    /// Makes the directories of a key that are missing. A file that has the name of one gets its escaped name.
    fn make_parents(&self, bucket: Ino, key: &str, room: Room) -> Result<Ino, FsError> {
        let (directories, _) = names::split(key.as_bytes());
        let mut at = bucket;
        for name in directories.into_iter().flat_map(names::directory_names) {
            at = self.make_directory(at, &name, room)?;
        }
        Ok(at)
    }

    fn make_directory(&self, parent: Ino, name: &[u8], room: Room) -> Result<Ino, FsError> {
        for _ in 0..TRIES {
            match self.fs.find_name(parent, name)? {
                Some(entry) if entry.kind == libc::S_IFDIR => return Ok(entry.ino),
                Some(entry) if entry.kind == libc::S_IFREG => {
                    self.step_aside(parent, name, room)?;
                }
                Some(_) => return Err(FsError::NotPermitted),
                None => {}
            }
            let directory = self.fs.getattr(parent)?;
            let caller = Self::caller_in(&directory);
            match self
                .fs
                .mkdir_reserved(parent, name, DIRECTORY_MODE, &caller, room)
            {
                Ok(made) => {
                    // It is there, whatever becomes of its record.
                    self.name_changed(parent, name);
                    let change = RecordChange {
                        put: vec![(name::IMPLIED.to_vec(), Vec::new())],
                        room,
                        ..RecordChange::default()
                    };
                    self.fs.set_records(made.ino, change)?;
                    return Ok(made.ino);
                }
                Err(FsError::Exists) => {}
                Err(error) => return Err(error),
            }
        }
        Err(FsError::Changed)
    }

    /// Gives a file whose name is needed for a directory its escaped name.
    fn step_aside(&self, parent: Ino, name: &[u8], room: Room) -> Result<(), FsError> {
        let mut names = names::escaped_file_names(name);
        let last = names.pop().expect("there is at least one name");
        let mut at = parent;
        for name in names {
            at = self.make_directory(at, &name, room)?;
        }
        let Some(entry) = self.fs.find_name(parent, name)? else {
            return Ok(());
        };
        // It stays the same object, so that a lock is no obstacle.
        let moved = Moved {
            from: Named {
                parent,
                name: name.to_vec(),
                ino: entry.ino,
            },
            to: at,
            name: last.clone(),
        };
        let arrangement = Arrangement {
            moves: vec![moved],
            room,
            ..Arrangement::default()
        };
        match self.fs.arrange(arrangement) {
            Ok(()) => {
                self.name_changed(parent, name);
                self.name_changed(at, &last);
                Ok(())
            }
            // It has gone, or another came.
            Err(FsError::NotFound | FsError::Changed) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Where an object that is not there yet goes: its directory and name.
    ///
    /// # Errors
    /// What the file system refuses.
    pub(crate) fn new_place(
        &self,
        bucket: Ino,
        key: &str,
        room: Room,
    ) -> Result<(Ino, Vec<u8>), FsError> {
        let mut at = self.make_parents(bucket, key, room)?;
        let (_, last) = names::split(key.as_bytes());
        if names::is_plain(last) {
            match self.fs.find_name(at, last)? {
                None => return Ok((at, last.to_vec())),
                Some(entry) if entry.kind == libc::S_IFDIR => {}
                Some(_) => return Err(FsError::NotPermitted),
            }
        }
        let mut names = names::escaped_file_names(last);
        let last = names.pop().expect("there is at least one name");
        for name in names {
            at = self.make_directory(at, &name, room)?;
        }
        Ok((at, last))
    }

    /// Gives a file without a name its key, with its records, durably. `check` sees what has the key now, and may
    /// refuse; what it has seen is still there when the file takes its place. Whether versions are kept, and what is locked
    /// by default, is as the bucket has it by now. Returns the version that it is, in a bucket that keeps them. Its content should be flushed, since the
    /// key is locked meanwhile.
    ///
    /// # Errors
    /// What `check` refuses; what the file system does.
    pub(crate) fn publish(
        &self,
        bucket: &BucketAt,
        key: &str,
        ino: Ino,
        records: &[(Vec<u8>, Vec<u8>)],
        check: &dyn Fn(Option<&Object>) -> S3Result<()>,
        conditional: bool,
    ) -> S3Result<(Attr, Option<String>)> {
        // It may be another since the request began: a body can take its time.
        let kept = self.keep_bucket(bucket.ino());
        let bucket = &self.bucket_by_now(bucket)?;
        let records = &self.with_default_lock(bucket, records.to_vec())?;
        let lock = self.lock(bucket.ino(), key);
        for _ in 0..TRIES {
            let place = self.find(bucket.ino(), key).map_err(from_fs)?;
            // What becomes of versions is planned for the file that was seen.
            let mut expected = match (&place, bucket.record.versioning) {
                (_, None) => Expected::Anything,
                (Some(place), Some(_)) => Expected::File(place.ino),
                (None, Some(_)) => Expected::Nothing,
            };
            if conditional {
                let object = match &place {
                    Some(place) => Some(self.object(place.ino).map_err(from_fs)?),
                    None => None,
                };
                check(object.as_ref())?;
                expected = match object {
                    Some(object) => Expected::Unchanged(object.attr),
                    None => Expected::Nothing,
                };
            }
            let replaced = place.as_ref().map(|place| place.ino);
            self.tell_apart(bucket, key, place.as_ref(), Room::Free)
                .map_err(from_fs)?;
            let (id, archive) = self
                .plan_version(bucket, key, place.as_ref())
                .map_err(from_fs)?;
            let mut rows = records.to_vec();
            if let Some(id) = &id {
                rows.push((name::VERSION.to_vec(), id.clone().into_bytes()));
            }
            let target = match &place {
                Some(place) => Ok((place.parent, place.name.clone())),
                None => self.new_place(bucket.ino(), key, Room::Free),
            };
            let published = target.and_then(|(parent, name)| {
                if let Some(null) = self.replaced_null(bucket, key, place.as_ref())? {
                    let named = Named {
                        parent,
                        name: name.clone(),
                        ino,
                    };
                    let current = place.as_ref().zip(archive.clone());
                    self.publish_over_null(bucket, key, null, current, (named, rows), expected)?;
                    return Ok((self.fs.getattr(ino)?, parent, name));
                }
                let publication = Publication {
                    parent,
                    name: &name,
                    expected,
                    records: rows,
                    archive: archive.as_ref().map(|(dir, name)| (*dir, &**name)),
                };
                let attr = self.fs.publish(ino, publication)?;
                Ok((attr, parent, name))
            });
            match published {
                Ok((attr, parent, name)) => {
                    drop((lock, kept));
                    self.make_durable()?;
                    self.name_changed(parent, &name);
                    if let Some(ino) = replaced {
                        self.inode_changed(ino);
                    }
                    if let Some((dir, name)) = &archive {
                        self.name_changed(*dir, name);
                    }
                    return Ok((attr, id));
                }
                // The directory went, or the name became something else, between the look and the step.
                Err(
                    FsError::NotFound
                    | FsError::NotDirectory
                    | FsError::IsDirectory
                    | FsError::Exists
                    | FsError::Changed,
                ) => {}
                Err(error) => return Err(from_fs(error)),
            }
        }
        Err(s3_error!(
            OperationAborted,
            "somebody else is changing the same name; try again"
        ))
    }

    /// Removes an object, and the directories that were made for it and are empty; not durable yet. The key is locked.
    /// Whether there was one.
    ///
    /// # Errors
    /// What `check` refuses; what the file system does.
    pub(crate) fn remove(
        &self,
        bucket: &BucketAt,
        key: &str,
        check: &dyn Fn(Option<&Object>) -> S3Result<()>,
        conditional: bool,
    ) -> S3Result<bool> {
        let mut removed = false;
        // A key can have a plain and an escaped name.
        for _ in 0..TRIES {
            let place = self.find(bucket.ino(), key).map_err(from_fs)?;
            if conditional && !removed {
                let object = match &place {
                    Some(place) => Some(self.object(place.ino).map_err(from_fs)?),
                    None => None,
                };
                check(object.as_ref())?;
            }
            let Some(place) = place else {
                break;
            };
            match self.fs.unlink(place.parent, &place.name) {
                Ok(()) => {
                    removed = true;
                    self.name_changed(place.parent, &place.name);
                    self.inode_changed(place.ino);
                    self.prune(bucket.ino(), key).map_err(from_fs)?;
                }
                Err(FsError::NotFound) => {}
                Err(error) => return Err(from_fs(error)),
            }
        }
        Ok(removed)
    }

    /// Removes the directories on the way to a key that were made for keys and have become empty, from the last one on.
    ///
    /// # Errors
    /// What the file system refuses.
    pub(crate) fn prune(&self, bucket: Ino, key: &str) -> Result<(), FsError> {
        let (directories, last) = names::split(key.as_bytes());
        let mut way = Vec::new();
        let mut at = bucket;
        let mut names: Vec<_> = directories
            .into_iter()
            .flat_map(names::directory_names)
            .collect();
        let mut pieces = names::escaped_file_names(last);
        pieces.pop();
        names.append(&mut pieces);
        for name in names {
            match self.fs.find_name(at, &name)? {
                Some(entry) if entry.kind == libc::S_IFDIR => {
                    way.push((at, name, entry.ino));
                    at = entry.ino;
                }
                _ => break,
            }
        }
        for (parent, name, directory) in way.into_iter().rev() {
            let is_empty = self.fs.names_from(directory, b"", 1)?.is_empty();
            if !is_empty || self.fs.record(directory, name::IMPLIED)?.is_none() {
                break;
            }
            match self.fs.rmdir(parent, &name) {
                Ok(()) => self.name_changed(parent, &name),
                Err(FsError::NotEmpty | FsError::NotFound) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Hexadecimal digits of bytes.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes any text");
        text
    })
}
