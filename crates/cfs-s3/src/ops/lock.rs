//! Object lock: of buckets, and of versions.

use std::sync::Arc;

use cfs_fs::LockChange;
use s3s::dto::{
    GetObjectLegalHoldInput, GetObjectLegalHoldOutput, GetObjectLockConfigurationInput,
    GetObjectLockConfigurationOutput, GetObjectRetentionInput, GetObjectRetentionOutput,
    ObjectLockLegalHold, ObjectLockLegalHoldStatus, ObjectLockRetention, ObjectLockRetentionMode,
    PutObjectLegalHoldInput, PutObjectLegalHoldOutput, PutObjectLockConfigurationInput,
    PutObjectLockConfigurationOutput, PutObjectRetentionInput, PutObjectRetentionOutput,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result, s3_error};

use super::asker_of;
use crate::face::{Face, blocking};
use crate::locks::{check_config, hold_of, mode_name, retention_of, time_of};
use crate::records::name;

fn nothing() -> s3s::S3Error {
    s3_error!(
        NoSuchObjectLockConfiguration,
        "the version has no such lock"
    )
}

/// Has the versions of a bucket be locked, perhaps by default.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn put_object_lock_configuration(
    face: Arc<Face>,
    request: S3Request<PutObjectLockConfigurationInput>,
) -> S3Result<S3Response<PutObjectLockConfigurationOutput>> {
    let input = request.input;
    blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        let config = input
            .object_lock_configuration
            .ok_or(S3ErrorCode::MalformedXML)?;
        check_config(&config)?;
        face.configure_locks(&bucket, &config)?;
        Ok(S3Response::new(PutObjectLockConfigurationOutput::default()))
    })
    .await
}

/// Whether the versions of a bucket can be locked, and are by default.
///
/// # Errors
/// As S3 has them; `ObjectLockConfigurationNotFoundError`.
pub(crate) async fn get_object_lock_configuration(
    face: Arc<Face>,
    request: S3Request<GetObjectLockConfigurationInput>,
) -> S3Result<S3Response<GetObjectLockConfigurationOutput>> {
    let input = request.input;
    blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        let config = face.config(&bucket, name::OBJECT_LOCK)?;
        let config = config.ok_or(S3ErrorCode::ObjectLockConfigurationNotFoundError)?;
        Ok(S3Response::new(GetObjectLockConfigurationOutput {
            object_lock_configuration: Some(config),
        }))
    })
    .await
}

/// Has a version be retained, or not any more.
///
/// # Errors
/// As S3 has them; `AccessDenied` for what may not be weakened so.
pub(crate) async fn put_object_retention(
    face: Arc<Face>,
    request: S3Request<PutObjectRetentionInput>,
) -> S3Result<S3Response<PutObjectRetentionOutput>> {
    let asker = asker_of(&request);
    let input = request.input;
    blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        let ino = face.lockable(&bucket, &input.key, input.version_id.as_ref())?;
        let wanted = input.retention.ok_or(S3ErrorCode::MalformedXML)?;
        let mode = wanted.mode.as_ref().map(ObjectLockRetentionMode::as_str);
        let retention = retention_of(mode, wanted.retain_until_date.as_ref(), face.fs.now_ms())?;
        let wants = input.bypass_governance_retention;
        let change = LockChange {
            retention: Some(retention),
            hold: None,
            bypass_governance: face.bypasses(
                &asker,
                &bucket,
                (&input.key, input.version_id.as_ref()),
                wants,
            ),
        };
        face.change_lock(ino, change)?;
        Ok(S3Response::new(PutObjectRetentionOutput::default()))
    })
    .await
}

/// Until when a version is retained.
///
/// # Errors
/// As S3 has them; `NoSuchObjectLockConfiguration`.
pub(crate) async fn get_object_retention(
    face: Arc<Face>,
    request: S3Request<GetObjectRetentionInput>,
) -> S3Result<S3Response<GetObjectRetentionOutput>> {
    let input = request.input;
    blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        let ino = face.lockable(&bucket, &input.key, input.version_id.as_ref())?;
        let lock = face.lock_of(&bucket, ino)?;
        let (mode, until) = lock.and_then(|lock| lock.retention).ok_or_else(nothing)?;
        Ok(S3Response::new(GetObjectRetentionOutput {
            retention: Some(ObjectLockRetention {
                mode: Some(ObjectLockRetentionMode::from_static(mode_name(mode))),
                retain_until_date: time_of(until),
            }),
        }))
    })
    .await
}

/// Holds a version, or ends that.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn put_object_legal_hold(
    face: Arc<Face>,
    request: S3Request<PutObjectLegalHoldInput>,
) -> S3Result<S3Response<PutObjectLegalHoldOutput>> {
    let input = request.input;
    blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        let ino = face.lockable(&bucket, &input.key, input.version_id.as_ref())?;
        let status = input.legal_hold.and_then(|hold| hold.status);
        let status = status.ok_or(S3ErrorCode::MalformedXML)?;
        let change = LockChange {
            hold: Some(hold_of(status.as_str())?),
            ..LockChange::default()
        };
        face.change_lock(ino, change)?;
        Ok(S3Response::new(PutObjectLegalHoldOutput::default()))
    })
    .await
}

/// Whether a version is held.
///
/// # Errors
/// As S3 has them; `NoSuchObjectLockConfiguration` for one that never was locked.
pub(crate) async fn get_object_legal_hold(
    face: Arc<Face>,
    request: S3Request<GetObjectLegalHoldInput>,
) -> S3Result<S3Response<GetObjectLegalHoldOutput>> {
    let input = request.input;
    blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        let ino = face.lockable(&bucket, &input.key, input.version_id.as_ref())?;
        let lock = face.lock_of(&bucket, ino)?.ok_or_else(nothing)?;
        let status = match lock.hold {
            true => ObjectLockLegalHoldStatus::ON,
            false => ObjectLockLegalHoldStatus::OFF,
        };
        Ok(S3Response::new(GetObjectLegalHoldOutput {
            legal_hold: Some(ObjectLockLegalHold {
                status: Some(ObjectLockLegalHoldStatus::from_static(status)),
            }),
        }))
    })
    .await
}
