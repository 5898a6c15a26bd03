//! The operations of S3, as calls of the face.

pub(crate) mod acl;
pub(crate) mod bucket;
pub(crate) mod config;
pub(crate) mod copy;
pub(crate) mod delete;
pub(crate) mod get;
pub(crate) mod lifecycle;
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

/// What a request says of access.
macro_rules! given_acl {
    ($input:expr) => {
        $crate::acl::Given {
            canned: $input.acl.map(|acl| acl.as_str().to_owned()),
            full_control: $input.grant_full_control,
            read: $input.grant_read,
            read_acp: $input.grant_read_acp,
            write: $input.grant_write,
            write_acp: $input.grant_write_acp,
        }
    };
}
pub(crate) use given_acl;

/// What a request says of a key that the client brings.
macro_rules! given_key {
    ($input:expr) => {
        $crate::customer::Given {
            algorithm: $input.sse_customer_algorithm.as_ref(),
            key: $input.sse_customer_key.as_ref(),
            md5: $input.sse_customer_key_md5.as_ref(),
        }
    };
}
pub(crate) use given_key;

/// The same of the source of a copy.
macro_rules! given_source_key {
    ($input:expr) => {
        $crate::customer::Given {
            algorithm: $input.copy_source_sse_customer_algorithm.as_ref(),
            key: $input.copy_source_sse_customer_key.as_ref(),
            md5: $input.copy_source_sse_customer_key_md5.as_ref(),
        }
    };
}
pub(crate) use given_source_key;

/// Puts into an answer how something is encrypted: under a client's key, one that is kept, or with the pool's.
macro_rules! show_encryption {
    ($output:expr, $key:expr) => {
        match &$key {
            Some(key) if key.kms.is_some() => {
                $output.server_side_encryption = $crate::ops::encryption(true);
                $output.ssekms_key_id = key.kms.clone();
            }
            Some(key) => {
                $output.server_side_encryption = None;
                $output.sse_customer_algorithm = Some($crate::customer::ALGORITHM.to_owned());
                $output.sse_customer_key_md5 = Some(key.md5.clone());
            }
            None => $output.server_side_encryption = $crate::ops::encryption(false),
        }
    };
}
pub(crate) use show_encryption;

/// The encryption that answers name: under a key that clients name, or not.
pub(crate) fn encryption(is_named: bool) -> Option<ServerSideEncryption> {
    Some(ServerSideEncryption::from_static(match is_named {
        true => ServerSideEncryption::AWS_KMS,
        false => ServerSideEncryption::AES256,
    }))
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
