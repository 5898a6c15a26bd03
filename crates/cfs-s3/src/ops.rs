//! The operations of S3, as calls of the face.

pub(crate) mod acl;
pub(crate) mod bucket;
pub(crate) mod config;
pub(crate) mod copy;
pub(crate) mod delete;
pub(crate) mod get;
pub(crate) mod list;
pub(crate) mod lock;
pub(crate) mod multipart;
pub(crate) mod put;
pub(crate) mod tagging;

use std::sync::Arc;

use s3s::dto::{Owner, ServerSideEncryption, StorageClass};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Result, s3_error};

use crate::access::Asker;
use crate::face::Face;
use crate::users::User;

/// What an object that is not versioned has as the identifier of its version.
pub(crate) const NULL_VERSION: &str = "null";

/// Who asks, as the access check has found out.
pub(crate) fn asker_of<T>(request: &S3Request<T>) -> Asker {
    request
        .extensions
        .get::<Asker>()
        .cloned()
        .unwrap_or_default()
}

/// Who asks; none for a request without a signature.
pub(crate) fn user_of<T>(request: &S3Request<T>) -> Option<Arc<User>> {
    asker_of(request).user
}

/// Who asks.
///
/// # Errors
/// `AccessDenied` for a request without a signature.
pub(crate) fn known_user<T>(request: &S3Request<T>) -> S3Result<Arc<User>> {
    user_of(request).ok_or_else(|| S3ErrorCode::AccessDenied.into())
}

/// An owner as answers show it.
pub(crate) fn owner(face: &Face, id: &str) -> Owner {
    Owner {
        display_name: face.users.by_id(id).map(|user| user.name.clone()),
        id: Some(id.to_owned()),
    }
}

/// Storage classes: there is one, and its cheaper sister is taken as the same.
///
/// # Errors
/// `InvalidStorageClass`.
pub(crate) fn check_storage_class(class: Option<&StorageClass>) -> S3Result<()> {
    match class.map(StorageClass::as_str) {
        None | Some(StorageClass::STANDARD | StorageClass::REDUCED_REDUNDANCY) => Ok(()),
        Some(_) => Err(S3ErrorCode::InvalidStorageClass.into()),
    }
}

/// Encryption: everything is, with the pool's keys, which is what `AES256` asks for. Others are not offered.
///
/// # Errors
/// `NotImplemented`, `InvalidArgument`.
pub(crate) fn check_encryption(
    wanted: Option<&ServerSideEncryption>,
    customer_algorithm: Option<&String>,
    customer_key: bool,
) -> S3Result<()> {
    if customer_algorithm.is_some() || customer_key {
        return Err(not_implemented("keys that the client brings (SSE-C)"));
    }
    match wanted.map(ServerSideEncryption::as_str) {
        None | Some(ServerSideEncryption::AES256) => Ok(()),
        Some(ServerSideEncryption::AWS_KMS | ServerSideEncryption::AWS_KMS_DSSE) => Err(
            not_implemented("keys of a key management service (SSE-KMS)"),
        ),
        Some(_) => Err(s3_error!(InvalidArgument, "no such encryption")),
    }
}

/// The encryption that answers name.
pub(crate) fn encryption() -> Option<ServerSideEncryption> {
    Some(ServerSideEncryption::from_static(
        ServerSideEncryption::AES256,
    ))
}

/// A feature of S3 that is not offered.
pub(crate) fn not_implemented(what: &str) -> S3Error {
    s3_error!(NotImplemented, "not implemented: {what}")
}

/// A number of entries that a client wants at most.
///
/// # Errors
/// `InvalidArgument` for a negative one.
pub(crate) fn limit(wanted: Option<i32>, most: i32) -> S3Result<usize> {
    usize::try_from(wanted.unwrap_or(most).min(most))
        .map_err(|_| s3_error!(InvalidArgument, "a number of entries cannot be negative"))
}
