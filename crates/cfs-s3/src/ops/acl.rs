//! Access control lists of buckets and objects.

use std::sync::Arc;

use cfs_fs::RecordChange;
use s3s::dto::{
    GetBucketAclInput, GetBucketAclOutput, GetObjectAclInput, GetObjectAclOutput,
    PutBucketAclInput, PutBucketAclOutput, PutObjectAclInput, PutObjectAclOutput,
};
use s3s::{S3Request, S3Response, S3Result};

use super::tagging::object_ino;
use super::{given_acl, owner};
use crate::errors::from_fs;
use crate::face::{Face, blocking};
use crate::records::{self, name};

/// The list of a bucket.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn get_bucket_acl(
    face: Arc<Face>,
    request: S3Request<GetBucketAclInput>,
) -> S3Result<S3Response<GetBucketAclOutput>> {
    let input = request.input;
    blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        let acl = face.bucket_acl(&bucket)?;
        Ok(S3Response::new(GetBucketAclOutput {
            grants: Some(face.shown_grants(&acl)),
            owner: Some(owner(&face, &acl.owner)),
        }))
    })
    .await
}

/// Gives a bucket a list.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn put_bucket_acl(
    face: Arc<Face>,
    request: S3Request<PutBucketAclInput>,
) -> S3Result<S3Response<PutBucketAclOutput>> {
    let input = request.input;
    let given = given_acl!(input);
    blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        let now = face.bucket_acl(&bucket)?;
        let acl = face.new_acl(&bucket, &now, &given, input.access_control_policy)?;
        face.put_config_text(&bucket, name::ACL, records::encode(&acl))
    })
    .await?;
    Ok(S3Response::new(PutBucketAclOutput::default()))
}

/// The list of an object.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn get_object_acl(
    face: Arc<Face>,
    request: S3Request<GetObjectAclInput>,
) -> S3Result<S3Response<GetObjectAclOutput>> {
    let input = request.input;
    blocking(move || {
        let (bucket, ino) = object_ino!(face, input)?;
        let acl = face.object_acl(&bucket, ino)?;
        Ok(S3Response::new(GetObjectAclOutput {
            grants: Some(face.shown_grants(&acl)),
            owner: Some(owner(&face, &acl.owner)),
            ..GetObjectAclOutput::default()
        }))
    })
    .await
}

/// Gives an object a list.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn put_object_acl(
    face: Arc<Face>,
    request: S3Request<PutObjectAclInput>,
) -> S3Result<S3Response<PutObjectAclOutput>> {
    let input = request.input;
    let given = given_acl!(input);
    blocking(move || {
        let (bucket, ino) = object_ino!(face, input)?;
        let now = face.object_acl(&bucket, ino)?;
        let acl = face.new_acl(&bucket, &now, &given, input.access_control_policy)?;
        let change = RecordChange {
            put: vec![(name::ACL.to_vec(), records::encode(&acl))],
            ..RecordChange::default()
        };
        face.fs.set_records(ino, change).map_err(from_fs)?;
        face.make_durable()
    })
    .await?;
    Ok(S3Response::new(PutObjectAclOutput::default()))
}
