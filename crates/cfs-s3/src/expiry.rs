//! Removing what lifecycle rules say is due, a key at a time.
//!
//! What is to go is looked at again with its key locked, and goes by the same commands as when a client deletes it, so
//! that object lock holds here as everywhere, and nothing goes that has been replaced meanwhile.

use std::sync::{Arc, Weak};

use cfs_format::Ino;
use cfs_fs::{Arrangement, Attr, Fs, FsError, Named, Time};
use s3s::dto::BucketLifecycleConfiguration;
use s3s::{S3ErrorCode, S3Result};

use crate::buckets::BucketAt;
use crate::errors::{self, from_fs};
use crate::face::{Face, Watcher};
use crate::lifecycle::{DAY_MS, Due, Rules, Subject};
use crate::listing::{Peeked, peek_older};
use crate::records::{self, Tags, name};
use crate::upload::Etags;
use crate::users::Users;
use crate::walk::Walk;

/// What goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A current version; in a bucket that keeps versions a delete marker comes before it.
    Current,
    /// A version that is not current.
    Noncurrent,
    /// A delete marker that is all that is left of its key.
    Marker,
    /// An upload in parts that was not completed.
    Upload,
}

/// Something that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expired {
    /// What it is.
    pub kind: Kind,
    /// Its bucket.
    pub bucket: String,
    /// Its key.
    pub key: String,
    /// The identifier of its version or upload.
    pub version: String,
    /// The identifier of the rule by which it goes.
    pub rule: String,
}

/// What a pass is to look at.
#[derive(Clone, Debug)]
pub struct Pass {
    /// This bucket, or all.
    pub bucket: Option<String>,
    /// Only tell.
    pub dry_run: bool,
    /// How long a day is, milliseconds; less only to try rules out.
    pub day_ms: u64,
}

impl Default for Pass {
    fn default() -> Self {
        Self {
            bucket: None,
            dry_run: false,
            day_ms: DAY_MS,
        }
    }
}

/// What a pass has done, or would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Buckets with rules.
    pub buckets: u64,
    /// Current versions that went.
    pub current: u64,
    /// Other versions.
    pub noncurrent: u64,
    /// Delete markers.
    pub markers: u64,
    /// Uploads.
    pub uploads: u64,
    /// What is due, and locked.
    pub locked: u64,
    /// What is due, and could not be removed.
    pub failed: u64,
}

/// Runs lifecycle rules.
pub struct Lifecycle(pub(crate) Arc<Face>);

impl Lifecycle {
    /// Of a file system that is not spoken to over S3 in this process.
    #[must_use]
    pub fn new(fs: Arc<Fs>, users: Arc<Users>, watcher: Arc<dyn Watcher>) -> Self {
        // No ETag is made here.
        Self(Arc::new(Face::new(fs, users, watcher, Etags::default())))
    }

    /// What it takes to run them, as long as somebody else keeps it.
    #[must_use]
    pub fn downgrade(&self) -> WeakLifecycle {
        WeakLifecycle(Arc::downgrade(&self.0))
    }

    /// Removes what is due, durably. `tell` hears of each thing before it goes, and says whether to go on.
    ///
    /// # Errors
    /// What reading or writing failed with; what was done stays done.
    pub fn run(
        &self,
        pass: &Pass,
        tell: &mut dyn FnMut(&Expired) -> bool,
    ) -> Result<Tally, String> {
        let told =
            |error: s3s::S3Error| format!("{}: {}", error.code().as_str(), errors::message(&error));
        self.0.expire(pass, tell).map_err(told)
    }
}

/// A [`Lifecycle`] that does not keep alive what it needs.
pub struct WeakLifecycle(Weak<Face>);

impl WeakLifecycle {
    /// The lifecycle, if it is still there.
    #[must_use]
    pub fn upgrade(&self) -> Option<Lifecycle> {
        self.0.upgrade().map(Lifecycle)
    }
}

/// All versions of one key, the newest first.
struct Group {
    key: String,
    versions: Vec<Seen>,
}

struct Seen {
    ino: Ino,
    id: String,
    is_older: bool,
}

/// The keys of a bucket with their versions.
struct Groups<'a> {
    face: &'a Face,
    current: Walk<'a>,
    older: Option<Walk<'a>>,
    left: Option<Peeked>,
    right: Option<Peeked>,
}

impl<'a> Groups<'a> {
    fn new(face: &'a Face, bucket: &BucketAt) -> S3Result<Self> {
        let walk = |root| Walk::new(&face.fs, root, b"", b"").map_err(from_fs);
        let tree = face.versions_tree(bucket).map_err(from_fs)?;
        Ok(Self {
            face,
            current: walk(bucket.ino())?,
            older: tree.map(walk).transpose()?,
            left: None,
            right: None,
        })
    }

    fn next(&mut self) -> S3Result<Option<Group>> {
        let mut group: Option<Group> = None;
        loop {
            if self.left.is_none() {
                self.left = self.face.peek_current(&mut self.current)?;
            }
            if self.right.is_none() {
                self.right = peek_older(self.older.as_mut())?;
            }
            let is_older = match (&self.left, &self.right) {
                (None, None) => return Ok(group),
                (Some(_), None) => false,
                (None, Some(_)) => true,
                (Some(left), Some(right)) => right.key < left.key,
            };
            let side = match is_older {
                true => &mut self.right,
                false => &mut self.left,
            };
            let key = &side.as_ref().expect("this side has one").key;
            if group.as_ref().is_some_and(|group| group.key != *key) {
                return Ok(group);
            }
            let found = side.take().expect("this side has one");
            let seen = Seen {
                ino: found.ino,
                id: found.id,
                is_older,
            };
            let key = found.key;
            let group = group.get_or_insert_with(|| Group {
                key,
                versions: Vec::new(),
            });
            group.versions.push(seen);
        }
    }
}

/// When a version came to be as it is. Its modification time is whatever the mount, or who copies with `cp -p`, says.
fn made_ms(attr: &Attr) -> u64 {
    ms_of(attr.ctime)
}

fn ms_of(time: Time) -> u64 {
    let seconds = u64::try_from(time.seconds).unwrap_or(0);
    seconds
        .saturating_mul(1000)
        .saturating_add(u64::from(time.nanos / 1_000_000))
}

/// When something goes, as the header `x-amz-expiration` says it; none for a time that no header has.
pub(crate) fn expiration_of(due: &Due) -> Option<String> {
    let time = crate::locks::time_of(due.at_ms)?;
    let date = crate::ops::put::http_date(&time);
    Some(format!("expiry-date=\"{date}\", rule-id=\"{}\"", due.rule))
}

impl Face {
    /// A bucket's rules, if it has any.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn rules(&self, bucket: &BucketAt, day_ms: u64) -> S3Result<Option<Rules>> {
        let config: Option<BucketLifecycleConfiguration> = self.config(bucket, name::LIFECYCLE)?;
        Ok(config.map(|config| Rules::new(config, day_ms)))
    }

    /// When a current version goes, as the header `x-amz-expiration` says it.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn expiration(
        &self,
        bucket: &BucketAt,
        attr: &Attr,
        subject: &Subject<'_>,
    ) -> S3Result<Option<String>> {
        let Some(rules) = self.rules(bucket, DAY_MS)? else {
            return Ok(None);
        };
        let due = rules.current(subject, made_ms(attr));
        Ok(due.and_then(|due| expiration_of(&due)))
    }

    fn expire(&self, pass: &Pass, tell: &mut dyn FnMut(&Expired) -> bool) -> S3Result<Tally> {
        let buckets = match &pass.bucket {
            Some(name) => vec![self.bucket(name, None)?],
            None => self.buckets("", "", usize::MAX, |_| true)?,
        };
        let mut tally = Tally::default();
        for bucket in buckets {
            if let Some(rules) = self.rules(&bucket, pass.day_ms)? {
                tally.buckets += 1;
                let mut run = Run {
                    face: self,
                    bucket: &bucket,
                    rules: &rules,
                    pass,
                    tell,
                    tally: &mut tally,
                };
                let goes_on = run.bucket()?;
                self.make_durable()?;
                if !goes_on {
                    break;
                }
            }
        }
        Ok(tally)
    }
}

/// A pass over one bucket.
struct Run<'a> {
    face: &'a Face,
    bucket: &'a BucketAt,
    rules: &'a Rules,
    pass: &'a Pass,
    tell: &'a mut dyn FnMut(&Expired) -> bool,
    tally: &'a mut Tally,
}

impl Run<'_> {
    /// Whether to go on with others.
    fn bucket(&mut self) -> S3Result<bool> {
        let mut groups = Groups::new(self.face, self.bucket)?;
        while let Some(group) = groups.next()? {
            if !self.group(&group)? {
                return Ok(false);
            }
        }
        let now = self.face.fs.now_ms();
        for upload in self.face.uploads(self.bucket)? {
            let begun = u64::try_from(upload.record.begun)
                .unwrap_or(0)
                .saturating_mul(1000);
            let key = upload.record.key.clone();
            let due = self.rules.upload(&key, begun);
            if let Some(due) = due.filter(|due| due.at_ms <= now) {
                let id = upload.id.clone();
                let goes_on = self.removes(Kind::Upload, &key, &id, due, |face, bucket| {
                    face.end_upload(bucket, &upload)
                })?;
                if !goes_on {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn group(&mut self, group: &Group) -> S3Result<bool> {
        let now = self.face.fs.now_ms();
        let key = group.key.as_str();
        // When the version before in the list was made, and so this one replaced.
        let mut replaced_ms = 0;
        for (index, seen) in group.versions.iter().enumerate() {
            let attr = match self.face.fs.getattr(seen.ino) {
                Ok(attr) => attr,
                // It went meanwhile.
                Err(FsError::NotFound) => continue,
                Err(error) => return Err(from_fs(error)),
            };
            let made_ms = made_ms(&attr);
            let is_marker = seen.is_older && self.face.is_marker(seen.ino).map_err(from_fs)?;
            let tags = match self.rules.ask_for_tags() && !is_marker {
                true => records::get(&self.face.fs, seen.ino, name::TAGS).map_err(from_fs)?,
                false => None,
            };
            let subject = Subject {
                key,
                size: self.face.size_of(&attr).map_err(from_fs)?,
                tags: &tags.unwrap_or_else(Tags::new),
            };
            let (kind, due) = match (index, is_marker) {
                (0, true) if group.versions.len() == 1 => {
                    (Kind::Marker, self.rules.marker(key, made_ms))
                }
                (0, false) if !seen.is_older => {
                    (Kind::Current, self.rules.current(&subject, made_ms))
                }
                (0, _) => (Kind::Current, None),
                (at, _) => {
                    let due = self.rules.noncurrent(&subject, at - 1, replaced_ms);
                    (Kind::Noncurrent, due)
                }
            };
            replaced_ms = made_ms;
            let Some(due) = due.filter(|due| due.at_ms <= now) else {
                continue;
            };
            let goes_on = self.removes(kind, key, &seen.id, due, |face, bucket| match kind {
                Kind::Current => face.expire_current(bucket, key, &attr),
                _ => {
                    let _kept = face.keep_bucket(bucket.ino());
                    let _lock = face.lock(bucket.ino(), key);
                    face.delete_version(bucket, key, &seen.id, false).map(drop)
                }
            })?;
            if !goes_on {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Tells of something that is due, and removes it. Whether to go on.
    fn removes(
        &mut self,
        kind: Kind,
        key: &str,
        version: &str,
        due: Due,
        remove: impl FnOnce(&Face, &BucketAt) -> S3Result<()>,
    ) -> S3Result<bool> {
        let expired = Expired {
            kind,
            bucket: self.bucket.name.clone(),
            key: key.to_owned(),
            version: version.to_owned(),
            rule: due.rule,
        };
        if !(self.tell)(&expired) {
            return Ok(false);
        }
        let removed = match self.pass.dry_run {
            true => Ok(()),
            false => remove(self.face, self.bucket),
        };
        let count = match removed {
            Ok(()) => match kind {
                Kind::Current => &mut self.tally.current,
                Kind::Noncurrent => &mut self.tally.noncurrent,
                Kind::Marker => &mut self.tally.markers,
                Kind::Upload => &mut self.tally.uploads,
            },
            Err(error) if *error.code() == S3ErrorCode::AccessDenied => &mut self.tally.locked,
            // Another came in its place.
            Err(error) if *error.code() == S3ErrorCode::PreconditionFailed => return Ok(true),
            Err(error) if *error.code() == S3ErrorCode::ServiceUnavailable => return Err(error),
            Err(error) => {
                tracing::warn!("{key} in {} is due and stays: {error}", self.bucket.name);
                &mut self.tally.failed
            }
        };
        *count += 1;
        Ok(true)
    }
}

impl Face {
    /// Removes a current version, if it is still the one that was seen.
    fn expire_current(&self, bucket: &BucketAt, key: &str, seen: &Attr) -> S3Result<()> {
        let _kept = self.keep_bucket(bucket.ino());
        let bucket = &self.bucket_by_now(bucket)?;
        let _lock = self.lock(bucket.ino(), key);
        let Some(place) = self.find(bucket.ino(), key).map_err(from_fs)? else {
            return Ok(());
        };
        let attr = self.fs.getattr(place.ino).map_err(from_fs)?;
        let same = |attr: &Attr| (attr.ino, attr.size, attr.mtime, attr.ctime);
        if same(&attr) != same(seen) {
            return Err(S3ErrorCode::PreconditionFailed.into());
        }
        if let Some(state) = bucket.record.versioning {
            let nothing = |_: Option<&crate::objects::Object>| Ok(());
            return self
                .mark_deleted(bucket, key, state, &nothing, false)
                .map(drop);
        }
        let named = Named {
            parent: place.parent,
            name: place.name.clone(),
            ino: place.ino,
        };
        let arrangement = Arrangement {
            remove: Some(named),
            ..Arrangement::default()
        };
        self.arrange(bucket.ino(), key, arrangement)
            .map_err(|error| match error {
                FsError::Changed | FsError::NotFound => S3ErrorCode::PreconditionFailed.into(),
                error => from_fs(error),
            })?;
        self.inode_changed(place.ino);
        Ok(())
    }
}
