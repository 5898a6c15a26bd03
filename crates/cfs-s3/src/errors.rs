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

/// What is said of an error that has no words of its own: as much as its code tells.
pub(crate) fn words(code: &str) -> &'static str {
    match code {
        "AccessDenied" => {
            "no policy or access control list allows this to who asks, or one denies it"
        }
        "BadDigest" => "the content is not what its digest says",
        "BucketAlreadyExists" => "the bucket is there already, and is another's",
        "BucketNotEmpty" => "there is something in the bucket",
        "EntityTooLarge" => "the content is longer than it may be",
        "EntityTooSmall" => "a part other than the last is shorter than 5 MiB",
        "IncompleteBody" => "the content is not as long as its head says",
        "InternalError" => "see the server's log",
        "InvalidAccessKeyId" => "there is no such access key, or no longer",
        "InvalidBucketName" => "this can be no bucket's name",
        "InvalidDigest" => "the digest is none",
        "InvalidPartOrder" => "parts are named in the order of their numbers",
        "InvalidRange" => "the object has nothing in this range",
        "InvalidStorageClass" => "there is one storage class, STANDARD",
        "InvalidURI" => "the path names no bucket and no object",
        "KeyTooLongError" => "a key has 1,024 bytes at most",
        "MalformedACLError" => "the access control list is not one that is understood",
        "MalformedXML" => "the document is not as the operation wants it",
        "MetadataTooLarge" => "an object has 2 KiB of metadata at most",
        "MethodNotAllowed" => "this cannot be done with what is there",
        "MissingContentLength" => "the length of the content has to be said",
        "MissingRequestBodyError" => "the operation wants a document",
        "MissingSecurityHeader" => "a header that the operation wants is missing",
        "NoSuchBucket" => "there is no such bucket",
        "NoSuchBucketPolicy" => "the bucket has no policy",
        "NoSuchCORSConfiguration" => "the bucket has no rules for pages of other origins",
        "NoSuchKey" => "there is no object under this key",
        "NoSuchLifecycleConfiguration" => "the bucket has no lifecycle rules",
        "NoSuchTagSet" => "the bucket has no tags",
        "NoSuchVersion" => "the key has no such version",
        "NotImplemented" => "this is not offered",
        "ObjectLockConfigurationNotFoundError" => "the bucket has no object lock",
        "OwnershipControlsNotFoundError" => "the bucket has no ownership controls",
        "PreconditionFailed" => "a condition of the request does not hold",
        "RequestTimeTooSkewed" => {
            "the request was signed too long before or after the server's time"
        }
        "RequestTimeout" => "nothing of the content came for too long",
        "ServerSideEncryptionConfigurationNotFoundError" => "the bucket has no default encryption",
        "SignatureDoesNotMatch" => {
            "the signature is not the one of this request under this key; look at the secret, and at what has changed the request"
        }
        "SlowDown" => "there is too much under way; try again later",
        "UnresolvableGrantByEmailAddress" => "nobody has this address",
        _ => "the request was refused; its code says why",
    }
}

/// What an error says, by itself or by its code.
pub(crate) fn message(error: &S3Error) -> String {
    let own = error.message();
    own.unwrap_or_else(|| words(error.code().as_str()))
        .to_owned()
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
        FsError::Receiving => S3Error::with_message(
            S3ErrorCode::OperationAborted,
            "a snapshot is being received there; try again when that has ended",
        ),
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
