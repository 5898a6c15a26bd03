//! Who may do what: signatures' secrets, and what an asker may do with a bucket and its objects.
//!
//! The user root may do everything. For others a denial in a policy is final, whether it is of who asks or of the bucket, but
//! for the bucket's owner changing the bucket's policy itself. Who is at the head of the account that owns a bucket may do
//! everything else with it and what is in it; others of that account, what a policy allows; others, what the bucket's
//! policy or access control lists grant. Of these, who is not at the head of an account needs a policy that allows it too.

use std::sync::Arc;

use async_trait::async_trait;
use cfs_format::Ino;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3ErrorCode, S3Result};

use crate::acl::{Acl, Right};
use crate::answer::From;
use crate::buckets::BucketAt;
use crate::errors::from_fs;
use crate::face::{Face, blocking};
use crate::logging::{Note, Noted};
use crate::ops::not_implemented;
use crate::policy::{ARN, Asked, Facts, Verdict, Who};
use crate::principal::Principal;
use crate::records::{self, Tags, name};
use crate::stats::Operation;
use crate::users::User;

/// What would be sealed with a key that the pool keeps.
const ENCRYPTION_CONTEXT: &str = "x-amz-server-side-encryption-context";
/// The header and the parameter with the token of credentials that end.
pub(crate) const TOKEN_HEADER: &str = "x-amz-security-token";
const TOKEN_PARAMETER: &str = "X-Amz-Security-Token";

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
    /// At the head of the account of who asks: who owns what is made. None without a signature.
    pub(crate) user: Option<Arc<User>>,
    pub(crate) principal: Option<Arc<Principal>>,
    pub(crate) facts: Arc<Facts>,
}

impl Asker {
    /// Who asks, as policies see it.
    fn who(&self) -> Who<'_> {
        match &self.principal {
            Some(principal) => Who::Principal(principal),
            None => Who::Nobody,
        }
    }
}

/// What policies and lists came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Allowed {
    /// Without a look at access control lists.
    Plainly,
    /// By an access control list alone.
    ByList,
}

/// Knows the secrets that requests are signed with.
pub(crate) struct Auth(pub(crate) Arc<Face>);

#[async_trait]
impl S3Auth for Auth {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        match self.0.users.secret_of(access_key) {
            Some(secret) => Ok(SecretKey::from(secret)),
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
        let facts = facts_of(context);
        if facts.headers.contains_key(ENCRYPTION_CONTEXT) {
            return Err(not_implemented("contexts of keys that the pool keeps"));
        }
        let principal = match context.credentials() {
            // It may have been revoked between the look at the signature and now.
            Some(credentials) => {
                let token = facts.headers.get(TOKEN_HEADER);
                let token = token.or_else(|| facts.query.get(TOKEN_PARAMETER));
                let users = &self.0.users;
                Some(users.principal(&credentials.access_key, token.map(String::as_str))?)
            }
            None => None,
        };
        let asker = Asker {
            user: principal.as_ref().map(|it| Arc::clone(&it.account)),
            principal: principal.map(Arc::new),
            facts: Arc::new(facts),
        };
        context.extensions_mut().insert(asker.clone());
        let noted = context.extensions_mut().get::<Noted>().cloned();
        let operation = context.s3_op().name();
        let bucket = context.s3_path().get_bucket_name().map(str::to_owned);
        let Some(bucket) = bucket.filter(|_| operation != "CreateBucket") else {
            let bucket = context.s3_path().get_bucket_name().unwrap_or_default();
            return authorize_account(&asker, operation, bucket);
        };
        // A form names its key in its body, and a batch its keys: each is decided there.
        let is_decided_later = matches!(operation, "PostObject" | "DeleteObjects");
        let logged = operation.to_owned();
        let key = context.s3_path().get_object_key().map(str::to_owned);
        let action = action_of(operation, &asker.facts);
        let version = version_of(operation, &asker.facts);
        let face = Arc::clone(&self.0);
        blocking(move || {
            // That there is none, the operation says.
            let Some(bucket) = face.find_bucket(&bucket)? else {
                return Ok(());
            };
            let allowed = match is_decided_later {
                true => Ok(Allowed::Plainly),
                false => {
                    let (key, version) = (key.as_deref(), version.as_ref());
                    face.authorize_version(&asker, &bucket, key, version, &action)
                }
            };
            if let Some(noted) = noted
                && let Some(place) = face.log_place(&bucket)?
            {
                noted.set(Note {
                    place,
                    owner: bucket.owner().to_owned(),
                    bucket: bucket.name,
                    key,
                    requester: asker.principal.as_ref().map(|who| who.logged()),
                    operation: logged,
                    by_list: matches!(allowed, Ok(Allowed::ByList)),
                    batch: Vec::new(),
                });
            }
            allowed.map(drop)
        })
        .await
    }
}

/// Whether somebody may do what is done to no bucket that is there: make one, or list them.
fn authorize_account(asker: &Asker, operation: &str, bucket: &str) -> S3Result<()> {
    let principal = asker.principal.as_ref().ok_or(S3ErrorCode::AccessDenied)?;
    let resource = format!("{ARN}{bucket}");
    let has_list = |name: &String| name == "x-amz-acl" || name.starts_with("x-amz-grant-");
    let actions: &[&str] = match operation {
        "ListBuckets" => &["s3:ListAllMyBuckets"],
        "CreateBucket" if asker.facts.headers.keys().any(has_list) => {
            &["s3:CreateBucket", "s3:PutBucketAcl"]
        }
        "CreateBucket" => &["s3:CreateBucket"],
        _ => return Ok(()),
    };
    let may = |action: &&str| {
        let said = principal.decide(&Asked {
            who: asker.who(),
            action,
            resource: &resource,
            facts: &asker.facts,
            tags: &[],
        });
        said == Verdict::Allow || said == Verdict::Silent && !principal.is_bound()
    };
    match principal.is_root() || actions.iter().all(may) {
        true => Ok(()),
        false => Err(S3ErrorCode::AccessDenied.into()),
    }
}

fn facts_of(context: &mut S3AccessContext<'_>) -> Facts {
    let peer = context.extensions_mut().get::<Peer>().copied();
    facts_of_request(context.headers(), context.uri(), peer)
}

/// What conditions can ask for of a request.
pub(crate) fn facts_of_request(
    headers: &http::HeaderMap,
    uri: &http::Uri,
    peer: Option<Peer>,
) -> Facts {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let query = uri.query().unwrap_or_default();
    Facts {
        headers: headers
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), text(value)))
            .collect(),
        query: serde_urlencoded::from_str(query).unwrap_or_default(),
        source: peer.map(|peer| peer.address),
        is_encrypted: peer.is_some_and(|peer| peer.is_encrypted),
        more: Vec::new(),
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
        "ListBuckets" => "ListAllMyBuckets",
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
    ) -> S3Result<Allowed> {
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
    ) -> S3Result<Allowed> {
        let denied = || Err(S3ErrorCode::AccessDenied.into());
        let principal = asker.principal.as_deref();
        if principal.is_some_and(Principal::is_root) {
            return Ok(Allowed::Plainly);
        }
        let account = asker.user.as_deref();
        let is_owner = account.is_some_and(|user| user.id == bucket.owner());
        // Root's account has all buckets.
        let is_home = is_owner || account.is_some_and(User::is_root);
        let is_bound = principal.is_some_and(Principal::is_bound);
        let blocks = self.public_access(bucket)?;
        let policy = self.policy(bucket)?;
        let asks_for_tags = policy.as_ref().is_some_and(|policy| policy.asks_for_tags)
            || principal.is_some_and(Principal::asks_for_tags);
        let tags = match key.filter(|_| asks_for_tags) {
            Some(key) => self.tags_of_version(bucket, key, version)?,
            None => Tags::new(),
        };
        let resource = match key {
            Some(key) => format!("{ARN}{}/{key}", bucket.name),
            None => format!("{ARN}{}", bucket.name),
        };
        let asked = Asked {
            who: asker.who(),
            action,
            resource: &resource,
            facts: &asker.facts,
            tags: &tags,
        };
        let own = principal.map_or(Verdict::Silent, |principal| principal.decide(&asked));
        if own == Verdict::Deny {
            return denied();
        }
        let mut granted = false;
        if let Some(policy) = policy {
            let said = policy.decide(&asked);
            match said.verdict {
                Verdict::Deny if is_owner && !is_bound && action.ends_with("BucketPolicy") => {
                    if self.policy_binds_owner(bucket)? {
                        return denied();
                    }
                }
                Verdict::Deny => return denied(),
                Verdict::Allow => {
                    let is_shut =
                        blocks.restrict_public_buckets == Some(true) && policy.is_public();
                    // An account that is granted something shares it out itself.
                    granted =
                        (!is_shut || is_home) && !(said.is_for_account && is_bound && is_home);
                }
                Verdict::Silent => {}
            }
        }
        let is_allowed = match (is_home, is_bound) {
            (true, true) => granted || own == Verdict::Allow,
            (true, false) => true,
            (false, true) => granted && own == Verdict::Allow,
            // Policies of who is at the head of an account are root's, who has all buckets.
            (false, false) => granted || own == Verdict::Allow,
        };
        if is_allowed {
            return match is_home && !is_bound || self.may_know(asker, bucket, key, action)? {
                true => Ok(Allowed::Plainly),
                false => denied(),
            };
        }
        if is_home || is_bound && own != Verdict::Allow {
            return denied();
        }
        let ignores_public = blocks.ignore_public_acls == Some(true);
        let user = principal.and_then(Principal::user).filter(|_| is_bound);
        let allows = |acl: &Acl, right: Right| {
            acl.allows(account, right, ignores_public)
                || user.is_some_and(|user| acl.allows(Some(user), right, ignores_public))
        };
        let may = match (needs_of(action), key) {
            (Needs::Ownership, _) | (Needs::Object(_), None) => false,
            (Needs::Bucket(right), _) => allows(&self.bucket_acl(bucket)?, right),
            (Needs::Object(right), Some(key)) => match self.judged(bucket, key, version)? {
                Some(ino) => allows(&self.object_acl(bucket, ino)?, right),
                None => self.may_list(asker, bucket, key)?,
            },
        };
        match may {
            true => Ok(Allowed::ByList),
            false => denied(),
        }
    }

    /// Whether who may read an object may know whether there is one.
    fn may_know(
        &self,
        asker: &Asker,
        bucket: &BucketAt,
        key: Option<&str>,
        action: &str,
    ) -> S3Result<bool> {
        match key {
            Some(key) if action == "s3:GetObject" => {
                Ok(self.find(bucket.ino(), key).map_err(from_fs)?.is_some()
                    || self.may_list(asker, bucket, key)?)
            }
            _ => Ok(true),
        }
    }

    /// Whether somebody may list what begins with a key: who may, may know that there is nothing.
    fn may_list(&self, asker: &Asker, bucket: &BucketAt, key: &str) -> S3Result<bool> {
        let mut facts = Facts::clone(&asker.facts);
        facts.query.insert("prefix".to_owned(), key.to_owned());
        let lister = Asker {
            facts: Arc::new(facts),
            ..asker.clone()
        };
        match self.authorize(&lister, bucket, None, "s3:ListBucket") {
            Ok(_) => Ok(true),
            Err(error) if *error.code() == S3ErrorCode::AccessDenied => Ok(false),
            Err(error) => Err(error),
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
