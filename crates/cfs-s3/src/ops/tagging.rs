//! Tags of objects and of buckets.

use std::sync::Arc;

use cfs_format::Ino;
use cfs_fs::RecordChange;
use s3s::dto::{
    DeleteBucketTaggingInput, DeleteBucketTaggingOutput, DeleteObjectTaggingInput,
    DeleteObjectTaggingOutput, GetBucketTaggingInput, GetBucketTaggingOutput,
    GetObjectTaggingInput, GetObjectTaggingOutput, PutBucketTaggingInput, PutBucketTaggingOutput,
    PutObjectTaggingInput, PutObjectTaggingOutput, Tag, Tagging,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result, s3_error};

use crate::buckets::BucketAt;
use crate::errors::from_fs;
use crate::face::{Face, blocking};
use crate::metadata::{check_tags, object_tags};
use crate::records::{self, Tags, name};

/// Tags of a bucket at most; S3's own limit.
const BUCKET_TAGS_MAX: usize = 50;

fn pairs(tagging: Tagging) -> S3Result<Tags> {
    let pair = |tag: Tag| match (tag.key, tag.value) {
        (Some(key), Some(value)) => Ok((key, value)),
        _ => Err(s3_error!(MalformedXML)),
    };
    tagging.tag_set.into_iter().map(pair).collect()
}

fn shown(tags: Tags) -> Vec<Tag> {
    let tag = |(key, value)| Tag {
        key: Some(key),
        value: Some(value),
    };
    tags.into_iter().map(tag).collect()
}

impl Face {
    /// A bucket and the inode of an object in it.
    ///
    /// # Errors
    /// As S3 has them.
    pub(crate) fn object_ino(
        &self,
        bucket: &str,
        expected_owner: Option<&String>,
        key: &str,
        version: Option<&String>,
    ) -> S3Result<(BucketAt, Ino)> {
        let bucket = self.bucket(bucket, expected_owner)?;
        let ino = self.find_version(&bucket, key, version)?.ino;
        Ok((bucket, ino))
    }

    fn set_tags(&self, ino: Ino, tags: &Tags) -> S3Result<()> {
        let change = match tags.is_empty() {
            true => RecordChange {
                delete: vec![name::TAGS.to_vec()],
                ..RecordChange::default()
            },
            false => RecordChange {
                put: vec![(name::TAGS.to_vec(), records::encode(tags))],
                ..RecordChange::default()
            },
        };
        self.fs.set_records(ino, change).map_err(from_fs)?;
        self.make_durable()
    }

    fn tags(&self, ino: Ino) -> S3Result<Option<Tags>> {
        records::get(&self.fs, ino, name::TAGS).map_err(from_fs)
    }
}

/// The bucket that a request names, and the inode of the version in it.
macro_rules! object_ino {
    ($face:expr, $input:expr) => {
        $face.object_ino(
            &$input.bucket,
            $input.expected_bucket_owner.as_ref(),
            &$input.key,
            $input.version_id.as_ref(),
        )
    };
}
pub(crate) use object_ino;

/// Gives an object tags.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn put_object_tagging(
    face: Arc<Face>,
    request: S3Request<PutObjectTaggingInput>,
) -> S3Result<S3Response<PutObjectTaggingOutput>> {
    let input = request.input;
    let tags = object_tags(pairs(input.tagging)?)?;
    blocking(move || {
        let (_, ino) = object_ino!(face, input)?;
        face.set_tags(ino, &tags)
    })
    .await?;
    Ok(S3Response::new(PutObjectTaggingOutput::default()))
}

/// Tags of an object.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn get_object_tagging(
    face: Arc<Face>,
    request: S3Request<GetObjectTaggingInput>,
) -> S3Result<S3Response<GetObjectTaggingOutput>> {
    let input = request.input;
    let tags = blocking(move || {
        let (_, ino) = object_ino!(face, input)?;
        face.tags(ino)
    })
    .await?;
    Ok(S3Response::new(GetObjectTaggingOutput {
        tag_set: shown(tags.unwrap_or_default()),
        version_id: None,
    }))
}

/// Takes an object's tags.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn delete_object_tagging(
    face: Arc<Face>,
    request: S3Request<DeleteObjectTaggingInput>,
) -> S3Result<S3Response<DeleteObjectTaggingOutput>> {
    let input = request.input;
    blocking(move || {
        let (_, ino) = object_ino!(face, input)?;
        face.set_tags(ino, &Tags::new())
    })
    .await?;
    Ok(S3Response::with_status(
        DeleteObjectTaggingOutput::default(),
        http::StatusCode::NO_CONTENT,
    ))
}

/// Gives a bucket tags.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn put_bucket_tagging(
    face: Arc<Face>,
    request: S3Request<PutBucketTaggingInput>,
) -> S3Result<S3Response<PutBucketTaggingOutput>> {
    let input = request.input;
    let tags = check_tags(pairs(input.tagging)?, BUCKET_TAGS_MAX)?;
    blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        face.set_tags(bucket.ino(), &tags)
    })
    .await?;
    Ok(S3Response::with_status(
        PutBucketTaggingOutput::default(),
        http::StatusCode::NO_CONTENT,
    ))
}

/// Tags of a bucket.
///
/// # Errors
/// As S3 has them; `NoSuchTagSet`.
pub(crate) async fn get_bucket_tagging(
    face: Arc<Face>,
    request: S3Request<GetBucketTaggingInput>,
) -> S3Result<S3Response<GetBucketTaggingOutput>> {
    let input = request.input;
    let tags = blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        face.tags(bucket.ino())
    })
    .await?;
    Ok(S3Response::new(GetBucketTaggingOutput {
        tag_set: shown(tags.ok_or(S3ErrorCode::NoSuchTagSet)?),
    }))
}

/// Takes a bucket's tags.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn delete_bucket_tagging(
    face: Arc<Face>,
    request: S3Request<DeleteBucketTaggingInput>,
) -> S3Result<S3Response<DeleteBucketTaggingOutput>> {
    let input = request.input;
    blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        face.set_tags(bucket.ino(), &Tags::new())
    })
    .await?;
    Ok(S3Response::with_status(
        DeleteBucketTaggingOutput::default(),
        http::StatusCode::NO_CONTENT,
    ))
}
