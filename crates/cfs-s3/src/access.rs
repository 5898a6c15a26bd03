//! Who may do what: signatures' secrets, and what an asker may do with a bucket and its objects.
//!
//! The user root may do everything. For others a bucket's policy speaks first, and a denial in it is final, but for the
//! bucket's owner changing the policy itself. Then access control lists count. Who owns a bucket may do everything
//! with it and what is in it; who owns an object in another's bucket, everything with the object.

use std::sync::Arc;

use async_trait::async_trait;
use cfs_format::Ino;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3ErrorCode, S3Result};

use crate::acl::Right;
use crate::answer::From;
use crate::buckets::BucketAt;
use crate::errors::from_fs;
use crate::face::{Face, blocking};
use crate::policy::{Asked, Facts, Verdict};
use crate::records::{self, Tags, name};
use crate::stats::Operation;
use crate::users::User;

/// The one who asks, put into the request by the listener.
#[derive(Clone, Copy)]
pub(crate) struct Peer {
    pub(crate) address: std::net::IpAddr,
    /// Nobody on the way can read it.
    pub(crate) is_encrypted: bool,
}

impl Peer {
    pub(crate) fn of(from: From) -> Self {
        Self {
            address: from.peer.ip(),
            is_encrypted: from.is_encrypted,
        }
    }
}

/// Who asks, and what the request says beside.
#[derive(Clone, Default)]
pub(crate) struct Asker {
    /// None without a signature.
    pub(crate) user: Option<Arc<User>>,
    pub(crate) facts: Arc<Facts>,
}

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
        if let Some(operation) = context.extensions_mut().get::<Operation>().cloned() {
            operation.set(context.s3_op().name());
        }
        let user = context
            .credentials()
            .and_then(|credentials| self.0.users.by_access_key(&credentials.access_key))
            .map(|(user, _)| user);
        if context.credentials().is_some() && user.is_none() {
            // It was revoked between the look at the signature and now.
            return Err(S3ErrorCode::InvalidAccessKeyId.into());
        }
        let facts = facts_of(context);
        let asker = Asker {
            user,
            facts: Arc::new(facts),
        };
        context.extensions_mut().insert(asker.clone());
        let operation = context.s3_op().name();
        let bucket = context.s3_path().get_bucket_name().map(str::to_owned);
        let Some(bucket) = bucket.filter(|_| operation != "CreateBucket") else {
            return match asker.user {
                Some(_) => Ok(()),
                None => Err(S3ErrorCode::AccessDenied.into()),
            };
        };
        // A form names its key in its body, and a batch its keys: each is decided there.
        if matches!(operation, "PostObject" | "DeleteObjects") {
            return Ok(());
        }
        let key = context.s3_path().get_object_key().map(str::to_owned);
        let action = action_of(operation, &asker.facts);
        let version = version_of(operation, &asker.facts);
        let face = Arc::clone(&self.0);
        blocking(move || match face.find_bucket(&bucket)? {
            Some(bucket) => {
                let version = version.as_ref();
                face.authorize_version(&asker, &bucket, key.as_deref(), version, &action)
            }
            // The operation says so.
            None => Ok(()),
        })
        .await
    }
}

fn facts_of(context: &mut S3AccessContext<'_>) -> Facts {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = context
        .headers()
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), text(value)))
        .collect();
    let query = context.uri().query().unwrap_or_default();
    let query = serde_urlencoded::from_str(query).unwrap_or_default();
    let peer = context.extensions_mut().get::<Peer>().copied();
    Facts {
        headers,
        query,
        source: peer.map(|peer| peer.address),
        is_encrypted: peer.is_some_and(|peer| peer.is_encrypted),
    }
}

/// The version of an object that an operation is about; none if it is the current one.
fn version_of(operation: &str, facts: &Facts) -> Option<String> {
    // Others pass over such a parameter, and are not to be judged by a version that they have nothing to do with.
    let can_name_one = matches!(
        operation,
        "GetObject"
            | "HeadObject"
            | "GetObjectAttributes"
            | "DeleteObject"
            | "GetObjectTagging"
            | "PutObjectTagging"
            | "DeleteObjectTagging"
            | "GetObjectAcl"
            | "PutObjectAcl"
            | "GetObjectRetention"
            | "PutObjectRetention"
            | "GetObjectLegalHold"
            | "PutObjectLegalHold"
    );
    let named = facts.query.get("versionId");
    named.filter(|_| can_name_one).cloned()
}

/// The action of policies that an operation is.
fn action_of(operation: &str, facts: &Facts) -> String {
    let has_version = facts.query.contains_key("versionId");
    let name = match operation {
        "ListObjects" | "ListObjectsV2" | "HeadBucket" => "ListBucket",
        "ListObjectVersions" => "ListBucketVersions",
        "GetObject" | "HeadObject" | "GetObjectAttributes" if has_version => "GetObjectVersion",
        "HeadObject" | "GetObjectAttributes" => "GetObject",
        "DeleteObject" if has_version => "DeleteObjectVersion",
        "GetObjectTagging" if has_version => "GetObjectVersionTagging",
        "PutObjectTagging" if has_version => "PutObjectVersionTagging",
        "DeleteObjectTagging" if has_version => "DeleteObjectVersionTagging",
        "GetObjectAcl" if has_version => "GetObjectVersionAcl",
        "PutObjectAcl" if has_version => "PutObjectVersionAcl",
        "CreateMultipartUpload"
        | "UploadPart"
        | "UploadPartCopy"
        | "CompleteMultipartUpload"
        | "CopyObject" => "PutObject",
        "ListMultipartUploads" => "ListBucketMultipartUploads",
        "ListParts" => "ListMultipartUploadParts",
        "PutBucketCors" | "DeleteBucketCors" => "PutBucketCORS",
        "GetBucketCors" => "GetBucketCORS",
        "PutBucketTagging" | "DeleteBucketTagging" => "PutBucketTagging",
        "PutBucketEncryption" | "DeleteBucketEncryption" => "PutEncryptionConfiguration",
        "GetBucketEncryption" => "GetEncryptionConfiguration",
        "PutPublicAccessBlock" | "DeletePublicAccessBlock" => "PutBucketPublicAccessBlock",
        "GetPublicAccessBlock" => "GetBucketPublicAccessBlock",
        "PutBucketLifecycleConfiguration" | "DeleteBucketLifecycle" => "PutLifecycleConfiguration",
        "GetBucketLifecycleConfiguration" => "GetLifecycleConfiguration",
        "PutObjectLockConfiguration" => "PutBucketObjectLockConfiguration",
        "GetObjectLockConfiguration" => "GetBucketObjectLockConfiguration",
        "DeleteBucketOwnershipControls" => "PutBucketOwnershipControls",
        other => other,
    };
    format!("s3:{name}")
}

/// What an action needs where no policy speaks.
enum Needs {
    /// To own the bucket.
    Ownership,
    /// A right to the bucket.
    Bucket(Right),
    /// A right to the object.
    Object(Right),
}

fn needs_of(action: &str) -> Needs {
    match action.strip_prefix("s3:").unwrap_or(action) {
        "ListBucket" | "ListBucketVersions" | "ListBucketMultipartUploads" => {
            Needs::Bucket(Right::Read)
        }
        "PutObject"
        | "DeleteObject"
        | "DeleteObjectVersion"
        | "AbortMultipartUpload"
        | "ListMultipartUploadParts" => Needs::Bucket(Right::Write),
        "GetBucketAcl" => Needs::Bucket(Right::ReadAcp),
        "PutBucketAcl" => Needs::Bucket(Right::WriteAcp),
        "GetObject" | "GetObjectVersion" => Needs::Object(Right::Read),
        "GetObjectAcl" | "GetObjectVersionAcl" => Needs::Object(Right::ReadAcp),
        "PutObjectAcl" | "PutObjectVersionAcl" => Needs::Object(Right::WriteAcp),
        "GetObjectTagging"
        | "PutObjectTagging"
        | "DeleteObjectTagging"
        | "GetObjectVersionTagging"
        | "PutObjectVersionTagging"
        | "DeleteObjectVersionTagging" => Needs::Object(Right::FullControl),
        _ => Needs::Ownership,
    }
}

impl Face {
    /// Whether somebody may do something with a bucket, or with the current version of an object in it.
    ///
    /// # Errors
    /// `AccessDenied`.
    pub(crate) fn authorize(
        &self,
        asker: &Asker,
        bucket: &BucketAt,
        key: Option<&str>,
        action: &str,
    ) -> S3Result<()> {
        self.authorize_version(asker, bucket, key, None, action)
    }

    /// Whether somebody may do something with a bucket, or with a version of an object in it: the current one, if none is
    /// named. Its own access control list and tags count.
    ///
    /// # Errors
    /// `AccessDenied`.
    pub(crate) fn authorize_version(
        &self,
        asker: &Asker,
        bucket: &BucketAt,
        key: Option<&str>,
        version: Option<&String>,
        action: &str,
    ) -> S3Result<()> {
        let user = asker.user.as_deref();
        if user.is_some_and(User::is_root) {
            return Ok(());
        }
        let is_owner = user.is_some_and(|user| user.id == bucket.owner());
        let blocks = self.public_access(bucket)?;
        if let Some(policy) = self.policy(bucket)? {
            let tags = match (policy.asks_for_tags, key) {
                (true, Some(key)) => self.tags_of_version(bucket, key, version)?,
                _ => Tags::new(),
            };
            let asked = Asked {
                user,
                action,
                bucket: &bucket.name,
                key,
                facts: &asker.facts,
                tags: &tags,
            };
            let changes_policy = action.ends_with("BucketPolicy");
            let is_shut = blocks.restrict_public_buckets == Some(true) && policy.is_public();
            match policy.decide(&asked) {
                Verdict::Deny if !(is_owner && changes_policy) => {
                    return Err(S3ErrorCode::AccessDenied.into());
                }
                Verdict::Allow if !is_shut || is_owner => return Ok(()),
                _ => {}
            }
        }
        if is_owner {
            return Ok(());
        }
        let ignores_public = blocks.ignore_public_acls == Some(true);
        let may = match (needs_of(action), key) {
            (Needs::Ownership, _) | (Needs::Object(_), None) => false,
            (Needs::Bucket(right), _) => {
                self.bucket_acl(bucket)?.allows(user, right, ignores_public)
            }
            (Needs::Object(right), Some(key)) => {
                match self.judged(bucket, key, version)? {
                    Some(ino) => self
                        .object_acl(bucket, ino)?
                        .allows(user, right, ignores_public),
                    // Who may list may know that there is nothing.
                    None => self
                        .bucket_acl(bucket)?
                        .allows(user, Right::Read, ignores_public),
                }
            }
        };
        match may {
            true => Ok(()),
            false => Err(S3ErrorCode::AccessDenied.into()),
        }
    }

    /// The version that a request is judged by, if it is there and no delete marker.
    fn judged(
        &self,
        bucket: &BucketAt,
        key: &str,
        version: Option<&String>,
    ) -> S3Result<Option<Ino>> {
        match self.find_version(bucket, key, version) {
            Ok(found) => Ok(Some(found.ino)),
            Err(error) => match error.code() {
                S3ErrorCode::NoSuchKey
                | S3ErrorCode::NoSuchVersion
                | S3ErrorCode::MethodNotAllowed => Ok(None),
                _ => Err(error),
            },
        }
    }

    fn tags_of_version(
        &self,
        bucket: &BucketAt,
        key: &str,
        version: Option<&String>,
    ) -> S3Result<Tags> {
        let Some(ino) = self.judged(bucket, key, version)? else {
            return Ok(Tags::new());
        };
        let tags = records::get(&self.fs, ino, name::TAGS).map_err(from_fs)?;
        Ok(tags.unwrap_or_default())
    }
}
