//! Lifecycle rules of buckets.

use std::sync::Arc;

use s3s::dto::{
    BucketLifecycleConfiguration, DeleteBucketLifecycleInput, DeleteBucketLifecycleOutput,
    GetBucketLifecycleConfigurationInput, GetBucketLifecycleConfigurationOutput,
    PutBucketLifecycleConfigurationInput, PutBucketLifecycleConfigurationOutput,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result};

use crate::face::{Face, blocking};
use crate::lifecycle::check;
use crate::records::name;

/// Says what of a bucket is to go, and when.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn put_bucket_lifecycle_configuration(
    face: Arc<Face>,
    request: S3Request<PutBucketLifecycleConfigurationInput>,
) -> S3Result<S3Response<PutBucketLifecycleConfigurationOutput>> {
    let input = request.input;
    blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        let config = input
            .lifecycle_configuration
            .ok_or(S3ErrorCode::MalformedXML)?;
        let config = check(config, || face.random_id())?;
        face.put_config(&bucket, name::LIFECYCLE, &config)?;
        Ok(S3Response::new(
            PutBucketLifecycleConfigurationOutput::default(),
        ))
    })
    .await
}

/// What of a bucket is to go, and when.
///
/// # Errors
/// As S3 has them; `NoSuchLifecycleConfiguration`.
pub(crate) async fn get_bucket_lifecycle_configuration(
    face: Arc<Face>,
    request: S3Request<GetBucketLifecycleConfigurationInput>,
) -> S3Result<S3Response<GetBucketLifecycleConfigurationOutput>> {
    let input = request.input;
    blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        let config: Option<BucketLifecycleConfiguration> = face.config(&bucket, name::LIFECYCLE)?;
        let config = config.ok_or(S3ErrorCode::NoSuchLifecycleConfiguration)?;
        Ok(S3Response::new(GetBucketLifecycleConfigurationOutput {
            rules: Some(config.rules),
            ..GetBucketLifecycleConfigurationOutput::default()
        }))
    })
    .await
}

/// Has nothing of a bucket go by itself.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn delete_bucket_lifecycle(
    face: Arc<Face>,
    request: S3Request<DeleteBucketLifecycleInput>,
) -> S3Result<S3Response<DeleteBucketLifecycleOutput>> {
    let input = request.input;
    blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        face.delete_config(&bucket, name::LIFECYCLE)?;
        Ok(S3Response::with_status(
            DeleteBucketLifecycleOutput::default(),
            http::StatusCode::NO_CONTENT,
        ))
    })
    .await
}
