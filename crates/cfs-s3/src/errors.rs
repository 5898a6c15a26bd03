//! Errors of the file system as S3 says them.

use cfs_fs::FsError;
use http::StatusCode;
use s3s::{S3Error, S3ErrorCode};

/// An error that `s3s` has no name for.
pub(crate) fn custom(code: &'static str, status: StatusCode, message: &'static str) -> S3Error {
    let mut error = S3Error::with_message(S3ErrorCode::Custom(code.into()), message);
    error.set_status_code(status);
    error
}

/// The pool is full: RFC 4918's status, which clients do not retry as they do 500 and 503.
pub(crate) fn full() -> S3Error {
    custom(
        "InsufficientStorage",
        StatusCode::INSUFFICIENT_STORAGE,
        "the pool has no room left; delete something, or make it larger",
    )
}

/// What a failure of the file system is for a client. Damage and the like are logged here.
pub(crate) fn from_fs(error: FsError) -> S3Error {
    match error {
        FsError::NoSpace => full(),
        FsError::Quota => custom(
            "QuotaExceeded",
            StatusCode::INSUFFICIENT_STORAGE,
            "the bucket has as much as its quota lets it",
        ),
        FsError::NotFound | FsError::NotDirectory => S3ErrorCode::NoSuchKey.into(),
        FsError::TooLarge => S3ErrorCode::EntityTooLarge.into(),
        FsError::NameTooLong => S3ErrorCode::KeyTooLongError.into(),
        FsError::Changed | FsError::Exists | FsError::ObjectExists | FsError::NotEmpty => {
            S3Error::with_message(
                S3ErrorCode::OperationAborted,
                "somebody else is changing the same name; try again",
            )
        }
        FsError::IsDirectory
        | FsError::NotPermitted
        | FsError::Reserved
        | FsError::SymbolicLink
        | FsError::Snapshot
        | FsError::Volume => custom(
            "InvalidObjectState",
            StatusCode::CONFLICT,
            "something that is no object has this name in the file system",
        ),
        FsError::CrossVolume => custom(
            "InvalidObjectState",
            StatusCode::CONFLICT,
            "the key lies in another volume than the bucket, which keeps versions, and cannot keep those",
        ),
        FsError::Locked => S3Error::with_message(
            S3ErrorCode::AccessDenied,
            "object lock protects this version",
        ),
        FsError::ReadOnly(reason) => {
            tracing::error!("refused, as the pool is read-only: {reason}");
            S3Error::with_message(S3ErrorCode::ServiceUnavailable, "the pool is read-only")
        }
        other => {
            tracing::error!("a request failed: {other}");
            S3Error::with_message(S3ErrorCode::InternalError, "see the server's log")
        }
    }
}
