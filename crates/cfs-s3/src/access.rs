//! Who may do what: signatures' secrets, and what a user may do with a bucket and its objects.

use std::sync::Arc;

use async_trait::async_trait;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3ErrorCode, S3Result};

use crate::buckets::BucketAt;
use crate::face::{Face, blocking};
use crate::users::User;

/// Knows the secrets that requests are signed with.
pub(crate) struct Auth(pub(crate) Arc<Face>);

#[async_trait]
impl S3Auth for Auth {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        match self.0.users.by_access_key(access_key) {
            Some((_, secret)) => Ok(SecretKey::from(secret)),
            None => Err(S3ErrorCode::InvalidAccessKeyId.into()),
        }
    }
}

/// Decides before a request's body is looked at.
pub(crate) struct Access(pub(crate) Arc<Face>);

#[async_trait]
impl S3Access for Access {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let user = context
            .credentials()
            .and_then(|credentials| self.0.users.by_access_key(&credentials.access_key))
            .map(|(user, _)| user);
        if context.credentials().is_some() && user.is_none() {
            // It was revoked between the look at the signature and now.
            return Err(S3ErrorCode::InvalidAccessKeyId.into());
        }
        if let Some(user) = &user {
            context.extensions_mut().insert(Arc::clone(user));
        }
        let operation = context.s3_op().name();
        let Some(bucket) = context.s3_path().get_bucket_name().map(str::to_owned) else {
            return match user {
                Some(_) => Ok(()),
                None => Err(S3ErrorCode::AccessDenied.into()),
            };
        };
        if operation == "CreateBucket" {
            return match user {
                Some(_) => Ok(()),
                None => Err(S3ErrorCode::AccessDenied.into()),
            };
        }
        let key = context.s3_path().get_object_key().map(str::to_owned);
        let action = action_of(operation);
        let face = Arc::clone(&self.0);
        blocking(move || match face.find_bucket(&bucket)? {
            Some(bucket) => face.authorize(user.as_deref(), &bucket, key.as_deref(), &action),
            // The operation says so.
            None => Ok(()),
        })
        .await
    }
}

/// The action of policies that an operation is.
fn action_of(operation: &str) -> String {
    let name = match operation {
        "ListObjects" | "ListObjectsV2" | "HeadBucket" => "ListBucket",
        "ListObjectVersions" => "ListBucketVersions",
        "HeadObject" => "GetObject",
        "PostObject"
        | "CreateMultipartUpload"
        | "UploadPart"
        | "UploadPartCopy"
        | "CompleteMultipartUpload"
        | "CopyObject" => "PutObject",
        "ListMultipartUploads" => "ListBucketMultipartUploads",
        "ListParts" => "ListMultipartUploadParts",
        // Each key is decided by itself.
        "DeleteObjects" => "DeleteObject",
        other => other,
    };
    format!("s3:{name}")
}

impl Face {
    /// Whether somebody may do something with a bucket, or with an object in it.
    ///
    /// # Errors
    /// `AccessDenied`.
    pub(crate) fn authorize(
        &self,
        user: Option<&User>,
        bucket: &BucketAt,
        _key: Option<&str>,
        _action: &str,
    ) -> S3Result<()> {
        match user {
            Some(user) if user.is_root() || user.id == bucket.owner() => Ok(()),
            _ => Err(S3ErrorCode::AccessDenied.into()),
        }
    }
}

/// Access control lists are not offered: those who own a bucket have what is in it.
///
/// # Errors
/// `NotImplemented`.
pub(crate) fn check_canned_acl(acl: Option<&str>) -> S3Result<()> {
    match acl {
        None | Some("private" | "bucket-owner-full-control") => Ok(()),
        Some(_) => Err(crate::ops::not_implemented(
            "access control lists other than private",
        )),
    }
}
