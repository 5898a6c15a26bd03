//! What is kept with inodes for the S3 face, as JSON in records that the mount does not see; parts are apart.
//!
//! JSON, because fields come and go with what S3 offers, and a record is small and read rarely against its content.

use std::collections::BTreeMap;

use cfs_format::Ino;
use cfs_fs::{Fs, FsError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Names of records.
pub(crate) mod name {
    /// Of a file, describing its content: [`super::Content`].
    pub(crate) const CONTENT: &[u8] = b"s3.content";
    /// Of a file in parts: [`crate::parts`], with the number of the row behind.
    pub(crate) const PARTS: &[u8] = b"s3.parts.";
    /// Of a file: [`super::Headers`].
    pub(crate) const HEADERS: &[u8] = b"s3.headers";
    /// Of a file or bucket: its tags, a list of pairs.
    pub(crate) const TAGS: &[u8] = b"s3.tags";
    /// Of a file that is a version: its identifier, as text. The version `null` has none.
    pub(crate) const VERSION: &[u8] = b"s3.version";
    /// Of a file that is a delete marker; empty.
    pub(crate) const MARKER: &[u8] = b"s3.marker";
    /// Of a file or bucket: its access control list, [`crate::acl::Acl`].
    pub(crate) const ACL: &[u8] = b"s3.acl";
    /// Of a file that was put together from parts: the identifier of the upload.
    pub(crate) const COMPLETED: &[u8] = b"s3.completed";
    /// Of the directory of an upload: [`crate::uploads::UploadRecord`].
    pub(crate) const UPLOAD: &[u8] = b"s3.upload";
    /// Of a bucket's directory: configurations, as JSON or XML.
    pub(crate) const POLICY: &[u8] = b"s3.policy";
    /// Who owns the bucket may not change its policy against it; empty.
    pub(crate) const POLICY_BINDS_OWNER: &[u8] = b"s3.policy-binds-owner";
    pub(crate) const PUBLIC_ACCESS: &[u8] = b"s3.public-access";
    pub(crate) const OWNERSHIP: &[u8] = b"s3.ownership";
    pub(crate) const ENCRYPTION: &[u8] = b"s3.encryption";
    pub(crate) const CORS: &[u8] = b"s3.cors";
    pub(crate) const LIFECYCLE: &[u8] = b"s3.lifecycle";
    pub(crate) const OBJECT_LOCK: &[u8] = b"s3.object-lock";
    pub(crate) const LOGGING: &[u8] = b"s3.logging";
    /// Of a bucket's directory: [`super::Bucket`].
    pub(crate) const BUCKET: &[u8] = b"s3.bucket";
    /// Of a directory that was made for a key, and goes with the last one; empty.
    pub(crate) const IMPLIED: &[u8] = b"s3.implied";
    /// Of the root directory: a user, under its name.
    pub(crate) const USER: &[u8] = b"s3.user.";
    /// Of the root directory: a user in an account, a group and a role, under their identifiers.
    pub(crate) const MEMBER: &[u8] = b"s3.iam.user.";
    pub(crate) const GROUP: &[u8] = b"s3.iam.group.";
    pub(crate) const ROLE: &[u8] = b"s3.iam.role.";
    /// Of the root directory: an identity provider of an account, under its identifier.
    pub(crate) const PROVIDER: &[u8] = b"s3.iam.provider.";
    /// Of the root directory: keys of an issuer of identity tokens, under its URL.
    pub(crate) const ISSUER: &[u8] = b"s3.issuer.";
    /// Of the root directory: files whose SHA-256 is due, under their inodes in 16 hexadecimal digits; empty.
    pub(crate) const DUE: &[u8] = b"s3.sha256-due.";
    /// Of the root directory: the key that credentials for a while are made with.
    pub(crate) const SESSION_KEY: &[u8] = b"s3.session-key";
    /// Of the root directory: a key that objects are sealed under, under its name.
    pub(crate) const KMS: &[u8] = b"s3.kms.";
    /// The content's type; an extended attribute that the mount sees, by the convention of freedesktop.org.
    pub(crate) const MIME_TYPE: &[u8] = b"user.mime_type";
    /// What the names of users' metadata begin with as extended attributes.
    pub(crate) const METADATA: &[u8] = b"user.";
}

/// What describes the content of an object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Content {
    /// Hexadecimal MD5 of the content; of an object in parts, of their MD5s, with `-` and their number.
    pub etag: String,
    /// Hexadecimal SHA-256 of the content; empty where it is not known yet, and where it would tell of what is sealed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sha256: String,
    /// Parts that it came in, which [`crate::parts`] keeps; 0 of what came whole.
    #[serde(skip_serializing_if = "is_zero")]
    pub part_count: u32,
    /// The algorithm of the parts' checksums, if they have any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part_algorithm: Option<String>,
    /// Checksums that the client asked for, in Base64, by the name of the algorithm.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub checksums: BTreeMap<String, String>,
    /// The checksums are of the parts' checksums, and not of the content.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub composite: bool,
    /// The file holds it sealed under a key that the client keeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub customer: Option<Customer>,
}

/// What is kept of content that is sealed under a client's key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Customer {
    /// Hexadecimal; of the proof.
    pub salt: String,
    /// Hexadecimal: what the key makes of the salt.
    pub proof: String,
    /// Bytes, unsealed. Each part was sealed by itself.
    pub bytes: u64,
    /// The name of the key, if the pool keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kms: Option<String>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Content {
    /// Bytes of the content, which a file of so many holds.
    pub(crate) fn bytes(&self, file_bytes: u64) -> u64 {
        match &self.customer {
            Some(customer) => customer.bytes,
            None => file_bytes,
        }
    }
}

/// Headers that are given back as they came.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Headers {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_control: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_disposition: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_encoding: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_language: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect: Option<String>,
    /// The user who put it; none: who owns the bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

impl Headers {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What is known of a bucket beside its directory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Bucket {
    /// Identifier of the user who owns it; empty: nobody has claimed the directory, root has it.
    pub owner: String,
    /// The region that it was made for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Whether it keeps versions; none: it never has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub versioning: Option<Versioning>,
    /// S3 has made it a volume, to have its content in the dedup domain of who owns it, and removes the volume with it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub volume: bool,
    /// Versions in it can be locked; for good. Not in the record: the directory's own lock says so.
    #[serde(skip)]
    pub object_lock: bool,
}

/// Whether a bucket keeps versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Versioning {
    /// Each put makes one.
    Enabled,
    /// Those that there are stay; a put makes the version `null`.
    Suspended,
}

/// Tags, in the order given.
pub(crate) type Tags = Vec<(String, String)>;

/// A record as it is stored.
pub(crate) fn encode(record: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(record).expect("records have text keys and no failing parts")
}

/// A stored record.
///
/// # Errors
/// [`FsError::Io`] when it does not decode.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FsError> {
    serde_json::from_slice(bytes).map_err(|error| {
        FsError::Io(format!("a record of the S3 face does not decode: {error}").into())
    })
}

/// A record of an inode, if it has it.
///
/// # Errors
/// [`FsError::Read`]; as [`decode`].
pub(crate) fn get<T: DeserializeOwned>(
    fs: &Fs,
    ino: Ino,
    name: &[u8],
) -> Result<Option<T>, FsError> {
    fs.record(ino, name)?
        .map(|bytes| decode(&bytes))
        .transpose()
}
