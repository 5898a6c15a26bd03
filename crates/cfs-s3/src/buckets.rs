//! Buckets: directories in the root directory.

use cfs_format::Ino;
use cfs_fs::{
    Attr, FsError, Quota, RecordChange, Recorded, Room, Volume, VolumeDomain, VolumeOptions,
};
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};

use crate::errors::from_fs;
use crate::face::Face;
use crate::objects::TRIES;
use crate::records::{self, Bucket, Versioning, name};
use crate::users::{ROOT_ID, User};
use crate::walk::Walk;

/// Names of directories that are read at a time.
const BATCH: usize = 256;
/// Mode of a new bucket's directory.
const MODE: u32 = 0o755;

/// A bucket that is there.
#[derive(Clone, Debug)]
pub(crate) struct BucketAt {
    pub(crate) name: String,
    pub(crate) attr: Attr,
    pub(crate) record: Bucket,
}

impl BucketAt {
    pub(crate) fn ino(&self) -> Ino {
        self.attr.ino
    }

    /// Identifier of its owner.
    pub(crate) fn owner(&self) -> &str {
        match self.record.owner.as_str() {
            "" => ROOT_ID,
            owner => owner,
        }
    }
}

/// S3 does not remove volumes that others have made, or have given quotas and snapshots, which it does not show.
fn volume_stays(volume: &Volume) -> S3Error {
    let path = String::from_utf8_lossy(&volume.path);
    let kind = match volume.is_clone() {
        true => "clone",
        false => "volume",
    };
    s3_error!(
        InvalidBucketState,
        "{path} is a {kind}, which `cfs admin volume delete {path}` removes, and S3 does not"
    )
}

/// The path of a bucket's directory.
fn path_of(name: &str) -> Vec<u8> {
    format!("/{name}").into_bytes()
}

/// Whether a directory of this name can be a bucket that is there already; a new one has to meet S3's own rules.
fn may_be_bucket(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0'])
}

impl Face {
    /// The bucket of this name, which belongs to whom the client says that it expects, if it says so.
    ///
    /// # Errors
    /// `NoSuchBucket`; `AccessDenied` when it belongs to another.
    pub(crate) fn bucket(&self, name: &str, expected: Option<&String>) -> S3Result<BucketAt> {
        let bucket = self
            .find_bucket(name)?
            .ok_or_else(|| s3_error!(NoSuchBucket, "there is no bucket {name}"))?;
        match expected {
            Some(expected) if expected != bucket.owner() => Err(s3_error!(
                AccessDenied,
                "the bucket is not of whom the request expects"
            )),
            _ => Ok(bucket),
        }
    }

    /// The bucket of this name, if there is one.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn find_bucket(&self, name: &str) -> S3Result<Option<BucketAt>> {
        if !may_be_bucket(name) {
            return Ok(None);
        }
        let attr = match self.fs.lookup(Ino::ROOT, name.as_bytes()) {
            Ok(attr) if attr.kind() == libc::S_IFDIR => attr,
            Ok(_) | Err(FsError::NotFound | FsError::NameTooLong) => return Ok(None),
            Err(error) => return Err(from_fs(error)),
        };
        let record = self.bucket_record(attr.ino).map_err(from_fs)?;
        Ok(Some(BucketAt {
            name: name.to_owned(),
            attr,
            record,
        }))
    }

    fn bucket_record(&self, directory: Ino) -> Result<Bucket, FsError> {
        let record: Option<Bucket> = records::get(&self.fs, directory, name::BUCKET)?;
        Ok(Bucket {
            object_lock: match self.fs.lock(directory) {
                Ok(lock) => lock.is_some(),
                // It has gone meanwhile.
                Err(FsError::NotFound) => false,
                Err(error) => return Err(error),
            },
            ..record.unwrap_or_default()
        })
    }

    /// A bucket as it is by now. Who acts by that has [`Face::keep_bucket`].
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn bucket_by_now(&self, bucket: &BucketAt) -> S3Result<BucketAt> {
        Ok(BucketAt {
            record: self.bucket_record(bucket.ino()).map_err(from_fs)?,
            ..bucket.clone()
        })
    }

    /// All buckets from the name `from` on whose names begin with `prefix`, at most `count`.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn buckets(
        &self,
        prefix: &str,
        from: &str,
        count: usize,
        wanted: impl Fn(&BucketAt) -> bool,
    ) -> S3Result<Vec<BucketAt>> {
        let mut from = prefix.max(from).as_bytes().to_vec();
        let mut buckets = Vec::new();
        loop {
            let entries = self
                .fs
                .names_from(Ino::ROOT, &from, BATCH)
                .map_err(from_fs)?;
            let ended = entries.len() < BATCH;
            for entry in entries {
                from.clone_from(&entry.name);
                from.push(0);
                if !entry.name.starts_with(prefix.as_bytes()) || buckets.len() >= count {
                    return Ok(buckets);
                }
                if entry.kind == libc::S_IFDIR
                    && let Ok(name) = str::from_utf8(&entry.name)
                    && let Some(bucket) = self.find_bucket(name)?
                    && wanted(&bucket)
                {
                    buckets.push(bucket);
                }
            }
            if ended {
                return Ok(buckets);
            }
        }
    }

    /// A directory of our own in a bucket's, which is made if it is missing.
    ///
    /// # Errors
    /// [`FsError::NotPermitted`] when something else has its name, as a snapshot that was restored may have brought back; what
    /// the file system refuses.
    pub(crate) fn system_directory(
        &self,
        bucket: &BucketAt,
        name: &[u8],
        mode: u32,
        room: Room,
    ) -> Result<Ino, FsError> {
        for _ in 0..TRIES {
            match self.fs.find_name(bucket.ino(), name)? {
                Some(entry) if entry.kind == libc::S_IFDIR => return Ok(entry.ino),
                Some(_) => return Err(FsError::NotPermitted),
                None => {}
            }
            let caller = Self::caller_in(&bucket.attr);
            match self
                .fs
                .mkdir_reserved(bucket.ino(), name, mode, &caller, room)
            {
                Ok(made) => {
                    self.name_changed(bucket.ino(), name);
                    return Ok(made.ino);
                }
                Err(FsError::Exists) => {}
                Err(error) => return Err(error),
            }
        }
        Err(FsError::Changed)
    }

    /// Makes a bucket, durably.
    ///
    /// # Errors
    /// `InvalidBucketName`; `BucketAlreadyExists` for another's, and for one's own with other properties.
    pub(crate) fn create_bucket(
        &self,
        name: &str,
        owner: &User,
        region: Option<String>,
        object_lock: bool,
        more: Vec<(Vec<u8>, Vec<u8>)>,
        ownership: Option<(Vec<u8>, Vec<u8>)>,
    ) -> S3Result<()> {
        if !s3s::path::check_bucket_name(name) || name.contains(".-") || name.contains("-.") {
            return Err(s3_error!(
                InvalidBucketName,
                "{name} can be no bucket's name"
            ));
        }
        let lock = self.lock(Ino::ROOT, name);
        if let Some(bucket) = self.find_bucket(name)? {
            drop(lock);
            // As in S3's first region, making one's own bucket again is no error, unless it is to be another, or would lose
            // the access control list that it has.
            let has_list = self.fs.record(bucket.ino(), name::ACL);
            let is_plain = has_list.map_err(from_fs)?.is_none();
            return match bucket.owner() == owner.id {
                true if is_plain && more.is_empty() && !object_lock => match ownership {
                    Some(row) => self.change_bucket(&bucket, vec![row], Vec::new()),
                    None => Ok(()),
                },
                true => Err(s3_error!(
                    BucketAlreadyExists,
                    "the bucket is there, and is not made with other properties"
                )),
                false => Err(s3_error!(BucketAlreadyExists)),
            };
        }
        let root = self.fs.getattr(Ino::ROOT).map_err(from_fs)?;
        let caller = Self::caller_in(&root);
        let record = Bucket {
            owner: owner.id.clone(),
            region,
            versioning: object_lock.then_some(Versioning::Enabled),
            volume: owner.domain().is_some(),
            object_lock,
        };
        let mut put = more;
        put.extend(ownership);
        put.push((name::BUCKET.to_vec(), records::encode(&record)));
        let how = Recorded {
            records: &put,
            stays: object_lock,
        };
        let made = match owner.domain() {
            None => self
                .fs
                .mkdir_recorded(Ino::ROOT, name.as_bytes(), MODE, &caller, &how),
            Some(domain) => {
                let options = VolumeOptions {
                    domain: VolumeDomain::Of(domain),
                    ..VolumeOptions::default()
                };
                let path = path_of(name);
                self.fs
                    .volume_create_recorded(&path, &options, &caller, &how)
            }
        };
        // It may be there all the same.
        self.name_changed(Ino::ROOT, name.as_bytes());
        made.map_err(|error| match error {
            FsError::Exists => s3_error!(BucketAlreadyExists),
            error => from_fs(error),
        })?;
        self.make_durable()
    }

    /// Removes a bucket without objects, and the empty directories in it, durably.
    ///
    /// # Errors
    /// `BucketNotEmpty`, also when there is something in it that is no object; `InvalidBucketState` for the root of a volume that
    /// somebody else has made, or has given snapshots or quotas, and when there is one in it.
    pub(crate) fn delete_bucket(&self, bucket: &BucketAt) -> S3Result<()> {
        let _lock = self.lock(Ino::ROOT, &bucket.name);
        let mut walk = Walk::new(&self.fs, bucket.ino(), b"", b"").map_err(from_fs)?;
        if walk.next().map_err(from_fs)?.is_some() {
            return Err(S3ErrorCode::BucketNotEmpty.into());
        }
        let path = path_of(&bucket.name);
        let volume = match self.fs.volume(&path) {
            Ok(volume) => Some(volume),
            Err(FsError::NotFound) => None,
            Err(error) => return Err(from_fs(error)),
        };
        if let Some(volume) = &volume {
            self.check_volume_goes(bucket, volume)?;
        }
        self.end_uploads(bucket)?;
        let busy = |error: FsError| match error {
            FsError::NotEmpty if volume.is_some() => s3_error!(
                BucketNotEmpty,
                "there is something in the bucket, or what was removed from it is still being read or written"
            ),
            FsError::NotEmpty => S3Error::new(S3ErrorCode::BucketNotEmpty),
            error => from_fs(error),
        };
        // Deepest first; what is no directory makes the removal of what it is in fail.
        let mut below = vec![(bucket.ino(), Vec::new())];
        while let Some((at, _)) = below.last() {
            let at = *at;
            match self.fs.names_from(at, b"", 1).map_err(from_fs)?.pop() {
                Some(entry) if entry.kind == libc::S_IFDIR => below.push((entry.ino, entry.name)),
                Some(_) => return Err(S3ErrorCode::BucketNotEmpty.into()),
                None => {
                    let (_, name) = below.pop().expect("the loop saw it");
                    if let Some((parent, _)) = below.last() {
                        self.fs.rmdir(*parent, &name).map_err(|error| match error {
                            FsError::Volume => self.volume_in(&path, &below, &name),
                            error => busy(error),
                        })?;
                        self.name_changed(*parent, &name);
                    }
                }
            }
        }
        match &volume {
            None => self.fs.rmdir(Ino::ROOT, bucket.name.as_bytes()),
            Some(volume) => match self.fs.volume_delete(&path) {
                Err(FsError::HasSnapshots) => return Err(volume_stays(volume)),
                deleted => deleted,
            },
        }
        .map_err(busy)?;
        self.make_durable()?;
        self.name_changed(Ino::ROOT, bucket.name.as_bytes());
        Ok(())
    }

    /// Refuses to remove a bucket that is a volume, unless it is one for no other reason than the dedup domain of its owner.
    fn check_volume_goes(&self, bucket: &BucketAt, volume: &Volume) -> S3Result<()> {
        let snapshots = self.fs.snapshots(None).map_err(from_fs)?;
        let is_ours = bucket.record.volume && !volume.is_clone();
        let is_used_otherwise =
            volume.quota != Quota::default() || snapshots.iter().any(|it| it.volume == volume.id);
        match is_ours && !is_used_otherwise {
            true => Ok(()),
            false => Err(volume_stays(volume)),
        }
    }

    /// There is a volume in a bucket that was to be removed.
    fn volume_in(&self, bucket: &[u8], below: &[(Ino, Vec<u8>)], name: &[u8]) -> S3Error {
        let names = below.iter().skip(1).map(|(_, name)| &name[..]);
        let parts: Vec<_> = [bucket].into_iter().chain(names).chain([name]).collect();
        match self.fs.volume(&parts.join(&b'/')) {
            Ok(volume) => volume_stays(&volume),
            Err(error) => from_fs(error),
        }
    }

    /// Changes records of a bucket, durably.
    ///
    /// # Errors
    /// What writing failed with.
    pub(crate) fn change_bucket(
        &self,
        bucket: &BucketAt,
        put: Vec<(Vec<u8>, Vec<u8>)>,
        delete: Vec<Vec<u8>>,
    ) -> S3Result<()> {
        let change = RecordChange {
            put,
            delete,
            ..RecordChange::default()
        };
        self.fs.set_records(bucket.ino(), change).map_err(from_fs)?;
        self.make_durable()
    }
}
