//! What is configured for a bucket: each kind in a record of its directory, as the XML or JSON that a client put.

use s3s::dto::{OwnershipControls, PublicAccessBlockConfiguration};
use s3s::{S3Error, S3Result, xml};

use crate::buckets::BucketAt;
use crate::errors::from_fs;
use crate::face::Face;
use crate::policy::{Policy, Scope};
use crate::records::name;

/// Longest configuration, bytes: what a record can hold.
const CONFIG_BYTES_MAX: usize = cfs_fs::XATTR_VALUE_BYTES_MAX;

/// The text of a configuration, as it is stored.
///
/// # Errors
/// When it has none.
pub(crate) fn text_of(config: &impl xml::Serialize) -> S3Result<Vec<u8>> {
    let mut text = Vec::new();
    config
        .serialize(&mut xml::Serializer::new(&mut text))
        .map_err(S3Error::internal_error)?;
    Ok(text)
}

/// The configuration that a stored text states.
///
/// # Errors
/// `InternalError` when it states none.
pub(crate) fn parse<T: for<'xml> xml::Deserialize<'xml>>(text: &[u8]) -> S3Result<T> {
    T::deserialize(&mut xml::Deserializer::new(text)).map_err(S3Error::internal_error)
}

/// The policy of the bucket with this name that a stored document states.
///
/// # Errors
/// `InternalError` when it states none.
pub(crate) fn parse_policy(document: &[u8], bucket: &str) -> S3Result<Policy> {
    let text = str::from_utf8(document).map_err(S3Error::internal_error)?;
    Policy::parse(text, Scope::Bucket(bucket)).map_err(S3Error::internal_error)
}

/// Who owns new objects.
pub(crate) fn owner_of_new(controls: OwnershipControls) -> Option<String> {
    let rule = controls.rules.into_iter().next()?;
    Some(rule.object_ownership.as_str().to_owned())
}

impl Face {
    /// Stores a configuration, durably.
    ///
    /// # Errors
    /// `InvalidRequest` when it is too long; what writing failed with.
    pub(crate) fn put_config(
        &self,
        bucket: &BucketAt,
        name: &[u8],
        config: &impl xml::Serialize,
    ) -> S3Result<()> {
        self.put_config_text(bucket, name, text_of(config)?)
    }

    /// Stores the text of a configuration, durably.
    ///
    /// # Errors
    /// As [`Face::put_config`].
    pub(crate) fn put_config_text(
        &self,
        bucket: &BucketAt,
        name: &[u8],
        text: Vec<u8>,
    ) -> S3Result<()> {
        if text.len() > CONFIG_BYTES_MAX {
            return Err(s3s::s3_error!(
                InvalidRequest,
                "the configuration is too long"
            ));
        }
        self.change_bucket(bucket, vec![(name.to_vec(), text)], Vec::new())
    }

    /// A configuration, if there is one.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn config<T: for<'xml> xml::Deserialize<'xml>>(
        &self,
        bucket: &BucketAt,
        name: &[u8],
    ) -> S3Result<Option<T>> {
        let text = self.fs.record(bucket.ino(), name).map_err(from_fs)?;
        text.map(|text| parse(&text)).transpose()
    }

    /// Removes a configuration, durably; it need not be there.
    ///
    /// # Errors
    /// What writing failed with.
    pub(crate) fn delete_config(&self, bucket: &BucketAt, name: &[u8]) -> S3Result<()> {
        self.change_bucket(bucket, Vec::new(), vec![name.to_vec()])
    }

    /// What a bucket does about access for all.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn public_access(
        &self,
        bucket: &BucketAt,
    ) -> S3Result<PublicAccessBlockConfiguration> {
        let config = self.config(bucket, name::PUBLIC_ACCESS)?;
        Ok(config.unwrap_or_default())
    }

    /// Who owns new objects, if it is configured.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn ownership(&self, bucket: &BucketAt) -> S3Result<Option<String>> {
        let controls: Option<OwnershipControls> = self.config(bucket, name::OWNERSHIP)?;
        Ok(controls.and_then(owner_of_new))
    }

    /// A bucket's policy, if it has one.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn policy(&self, bucket: &BucketAt) -> S3Result<Option<Policy>> {
        let text = self.fs.record(bucket.ino(), name::POLICY);
        text.map_err(from_fs)?
            .map(|text| parse_policy(&text, &bucket.name))
            .transpose()
    }

    /// Whether a bucket's policy denies its owner even to change it.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn policy_binds_owner(&self, bucket: &BucketAt) -> S3Result<bool> {
        let row = self.fs.record(bucket.ino(), name::POLICY_BINDS_OWNER);
        Ok(row.map_err(from_fs)?.is_some())
    }
}
