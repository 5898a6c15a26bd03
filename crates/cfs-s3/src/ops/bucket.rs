//! Operations on buckets.

use std::sync::Arc;

use cfs_fs::Time;
use s3s::dto::{
    Bucket, BucketLocationConstraint, BucketVersioningStatus, CreateBucketInput,
    CreateBucketOutput, DeleteBucketInput, DeleteBucketOutput, GetBucketLocationInput,
    GetBucketLocationOutput, GetBucketVersioningInput, GetBucketVersioningOutput, HeadBucketInput,
    HeadBucketOutput, ListBucketsInput, ListBucketsOutput, MFADelete, ObjectLockConfiguration,
    ObjectLockEnabled, OwnershipControls, OwnershipControlsRule, PutBucketVersioningInput,
    PutBucketVersioningOutput,
};
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::{given_acl, known_user, limit, not_implemented, owner};
use crate::conditions::timestamp;
use crate::configs::text_of;
use crate::face::{Face, blocking};
use crate::records::{Versioning, name};

/// Buckets in one answer at most; S3's own limit.
const BUCKETS_MAX: i32 = 10_000;
/// The region of buckets that were made for none.
pub(crate) const REGION: &str = "us-east-1";

/// Makes a bucket.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn create_bucket(
    face: Arc<Face>,
    request: S3Request<CreateBucketInput>,
) -> S3Result<S3Response<CreateBucketOutput>> {
    let user = known_user(&request)?;
    let input = request.input;
    let object_lock = input.object_lock_enabled_for_bucket == Some(true);
    let region = input
        .create_bucket_configuration
        .and_then(|configuration| configuration.location_constraint)
        .map(|region| region.as_str().to_owned())
        .filter(|region| !region.is_empty());
    let acl = given_acl!(input);
    let ownership = input
        .object_ownership
        .map(|object_ownership| OwnershipControls {
            rules: vec![OwnershipControlsRule { object_ownership }],
        });
    let location = format!("/{}", input.bucket);
    blocking(move || {
        let mut rows: Vec<_> = face.new_bucket_acl(&acl, &user)?.into_iter().collect();
        if object_lock {
            let config = ObjectLockConfiguration {
                object_lock_enabled: Some(ObjectLockEnabled::from_static(
                    ObjectLockEnabled::ENABLED,
                )),
                rule: None,
            };
            rows.push((name::OBJECT_LOCK.to_vec(), text_of(&config)?));
        }
        let ownership = match ownership {
            Some(ownership) => Some((name::OWNERSHIP.to_vec(), text_of(&ownership)?)),
            None => None,
        };
        face.create_bucket(&input.bucket, &user, region, object_lock, rows, ownership)
    })
    .await?;
    Ok(S3Response::new(CreateBucketOutput {
        location: Some(location),
    }))
}

/// Removes a bucket without objects.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn delete_bucket(
    face: Arc<Face>,
    request: S3Request<DeleteBucketInput>,
) -> S3Result<S3Response<DeleteBucketOutput>> {
    let input = request.input;
    blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        face.delete_bucket(&bucket)
    })
    .await?;
    Ok(S3Response::with_status(
        DeleteBucketOutput::default(),
        http::StatusCode::NO_CONTENT,
    ))
}

/// Whether a bucket is there.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn head_bucket(
    face: Arc<Face>,
    request: S3Request<HeadBucketInput>,
) -> S3Result<S3Response<HeadBucketOutput>> {
    let input = request.input;
    let bucket = blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        Ok(bucket)
    })
    .await?;
    Ok(S3Response::new(HeadBucketOutput {
        bucket_region: Some(bucket.record.region.unwrap_or_else(|| REGION.to_owned())),
        ..HeadBucketOutput::default()
    }))
}

/// Lists the buckets of who asks; root sees all.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn list_buckets(
    face: Arc<Face>,
    request: S3Request<ListBucketsInput>,
) -> S3Result<S3Response<ListBucketsOutput>> {
    let user = known_user(&request)?;
    let input = request.input;
    let count = limit(input.max_buckets, BUCKETS_MAX)?;
    let from = match &input.continuation_token {
        Some(token) => base64_simd::URL_SAFE_NO_PAD
            .decode_to_vec(token)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or_else(|| {
                s3_error!(InvalidArgument, "the continuation token is not one of ours")
            })?,
        None => String::new(),
    };
    blocking(move || {
        let prefix = input.prefix.clone().unwrap_or_default();
        let mut buckets = face.buckets(&prefix, &from, count.saturating_add(1), |bucket| {
            user.is_root() || bucket.owner() == user.id
        })?;
        let next = buckets.get(count).map(|bucket| bucket.name.clone());
        buckets.truncate(count);
        let shown = |bucket: crate::buckets::BucketAt| Bucket {
            creation_date: Some(timestamp(Time {
                nanos: 0,
                ..bucket.attr.btime
            })),
            name: Some(bucket.name),
            ..Bucket::default()
        };
        Ok(S3Response::new(ListBucketsOutput {
            buckets: Some(buckets.into_iter().map(shown).collect()),
            continuation_token: next
                .map(|name| base64_simd::URL_SAFE_NO_PAD.encode_to_string(name)),
            owner: Some(owner(&face, &user.id)),
            prefix: input.prefix,
        }))
    })
    .await
}

/// The region that a bucket was made for.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn get_bucket_location(
    face: Arc<Face>,
    request: S3Request<GetBucketLocationInput>,
) -> S3Result<S3Response<GetBucketLocationOutput>> {
    let input = request.input;
    let bucket = blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        Ok(bucket)
    })
    .await?;
    Ok(S3Response::new(GetBucketLocationOutput {
        location_constraint: bucket.record.region.map(BucketLocationConstraint::from),
    }))
}

/// Whether a bucket keeps versions.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn get_bucket_versioning(
    face: Arc<Face>,
    request: S3Request<GetBucketVersioningInput>,
) -> S3Result<S3Response<GetBucketVersioningOutput>> {
    let input = request.input;
    let bucket = blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        Ok(bucket)
    })
    .await?;
    let status = bucket.record.versioning.map(|state| match state {
        Versioning::Enabled => BucketVersioningStatus::ENABLED,
        Versioning::Suspended => BucketVersioningStatus::SUSPENDED,
    });
    Ok(S3Response::new(GetBucketVersioningOutput {
        status: status.map(BucketVersioningStatus::from_static),
        ..GetBucketVersioningOutput::default()
    }))
}

/// Says whether a bucket keeps versions.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn put_bucket_versioning(
    face: Arc<Face>,
    request: S3Request<PutBucketVersioningInput>,
) -> S3Result<S3Response<PutBucketVersioningOutput>> {
    let input = request.input;
    let config = input.versioning_configuration;
    let state = match config.status.as_ref().map(BucketVersioningStatus::as_str) {
        Some(BucketVersioningStatus::ENABLED) => Versioning::Enabled,
        Some(BucketVersioningStatus::SUSPENDED) => Versioning::Suspended,
        _ => return Err(s3_error!(MalformedXML)),
    };
    if config
        .mfa_delete
        .is_some_and(|mfa| mfa.as_str() == MFADelete::ENABLED)
    {
        return Err(not_implemented("deleting with a second factor"));
    }
    blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        face.set_versioning(&bucket, state)
    })
    .await?;
    Ok(S3Response::new(PutBucketVersioningOutput::default()))
}
