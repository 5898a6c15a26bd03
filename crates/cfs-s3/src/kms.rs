//! Keys that the pool keeps for objects (SSE-KMS): clients name them, and each is a dedup domain of its own.
//!
//! They are records of the root directory, sealed like all tables of the pool, and objects are sealed under them as under
//! those that clients bring ([`crate::customer`]).

use std::sync::Arc;

use cfs_format::Ino;
use cfs_fs::{FsError, RecordChange};
use cfs_seal::customer::CustomerKey;
use s3s::dto::{ServerSideEncryption, ServerSideEncryptionConfiguration};
use s3s::{S3Result, s3_error};

use crate::buckets::BucketAt;
use crate::customer::Brought;
use crate::errors::{custom, from_fs};
use crate::face::Face;
use crate::ops::not_implemented;
use crate::records::name;
use crate::users::{UserError, Users};

/// The key of who names none; made when it is first needed.
const DEFAULT: &str = "aws/s3";
/// Longest name, bytes.
const NAME_BYTES_MAX: usize = 128;

/// The name of a key in what clients write, which may be a resource name around it.
pub(crate) fn bare(text: &str) -> &str {
    match text.starts_with("arn:") {
        true => text.split_once(":key/").map_or(text, |(_, name)| name),
        false => text,
    }
}

fn row(name: &str) -> Vec<u8> {
    [name::KMS, name.as_bytes()].concat()
}

/// The key of what is made in a bucket and names none.
pub(crate) fn default_key(config: ServerSideEncryptionConfiguration) -> Option<String> {
    let rule = config.rules.into_iter().next()?;
    let default = rule.apply_server_side_encryption_by_default?;
    let is_named = default.sse_algorithm.as_str() == ServerSideEncryption::AWS_KMS;
    is_named.then(|| {
        default
            .kms_master_key_id
            .unwrap_or_else(|| DEFAULT.to_owned())
    })
}

/// A key, as it is kept; none if the record is no key.
pub(crate) fn key_of_record(record: &[u8]) -> Option<CustomerKey> {
    record.try_into().ok().map(CustomerKey::new)
}

impl Users {
    /// Makes a key for objects, durably.
    ///
    /// # Errors
    /// [`UserError::KeptKeyName`], [`UserError::KeptKeyExists`], [`UserError::Fs`].
    pub fn add_kept_key(
        &self,
        name: &str,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), UserError> {
        let letters = |byte: u8| byte.is_ascii_alphanumeric() || b"/_.-".contains(&byte);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(letters) {
            return Err(UserError::KeptKeyName);
        }
        let _changing = self.changing.lock();
        let fs = &self.fs;
        if fs.record(Ino::ROOT, &row(name))?.is_some() {
            return Err(UserError::KeptKeyExists(name.to_owned()));
        }
        let mut key = vec![0; 32];
        random(&mut key);
        let change = RecordChange {
            put: vec![(row(name), key)],
            ..RecordChange::default()
        };
        fs.set_records(Ino::ROOT, change)?;
        fs.store().sync().map_err(FsError::from)?;
        Ok(())
    }

    /// Names of the keys for objects.
    ///
    /// # Errors
    /// [`UserError::Fs`].
    pub fn kept_keys(&self) -> Result<Vec<String>, UserError> {
        let rows = self.fs.records(Ino::ROOT, name::KMS)?;
        let name = |(row, _): (Vec<u8>, Vec<u8>)| {
            String::from_utf8_lossy(&row[name::KMS.len()..]).into_owned()
        };
        Ok(rows.into_iter().map(name).collect())
    }
}

impl Face {
    /// The key of this name.
    ///
    /// # Errors
    /// `KMS.NotFoundException`.
    pub(crate) fn kept_key(&self, name: &str) -> S3Result<Arc<Brought>> {
        let name = bare(name);
        let find = || self.fs.record(Ino::ROOT, &row(name)).map_err(from_fs);
        let mut found = find()?;
        if found.is_none() && name == DEFAULT {
            let mut random = |bytes: &mut [u8]| {
                getrandom::fill(bytes).expect("the kernel gives random bytes once it has booted");
            };
            match self.users.add_kept_key(DEFAULT, &mut random) {
                // Another request was quicker.
                Ok(()) | Err(UserError::KeptKeyExists(_)) => {}
                Err(error) => return Err(s3s::S3Error::internal_error(error)),
            }
            found = find()?;
        }
        let key = found
            .and_then(|record| key_of_record(&record))
            .ok_or_else(|| {
                custom(
                    "KMS.NotFoundException",
                    http::StatusCode::BAD_REQUEST,
                    "there is no key of this name; `cfs admin kms add` makes one",
                )
            })?;
        Ok(Arc::new(Brought {
            key,
            md5: String::new(),
            kms: Some(name.to_owned()),
        }))
    }

    /// The key of something that is to be made: the one that was brought, that is named, or that is the bucket's default.
    ///
    /// # Errors
    /// `KMS.NotFoundException`, `InvalidArgument`, `NotImplemented`.
    pub(crate) fn key_of_new(
        &self,
        bucket: &BucketAt,
        brought: Option<Arc<Brought>>,
        wanted: Option<&ServerSideEncryption>,
        named: Option<&String>,
    ) -> S3Result<Option<Arc<Brought>>> {
        if brought.is_some() {
            return Ok(brought);
        }
        match wanted.map(ServerSideEncryption::as_str) {
            Some(ServerSideEncryption::AWS_KMS) => self
                .kept_key(named.map_or(DEFAULT, String::as_str))
                .map(Some),
            Some(ServerSideEncryption::AWS_KMS_DSSE) => {
                Err(not_implemented("sealing twice (SSE-KMS with DSSE)"))
            }
            Some(ServerSideEncryption::AES256) | None if named.is_some() => Err(s3_error!(
                InvalidArgument,
                "a key is named for aws:kms alone"
            )),
            Some(ServerSideEncryption::AES256) => Ok(None),
            Some(_) => Err(s3_error!(InvalidArgument, "no such encryption")),
            None => {
                let config: Option<ServerSideEncryptionConfiguration> =
                    self.config(bucket, name::ENCRYPTION)?;
                let name = config.and_then(default_key);
                name.map(|name| self.kept_key(&name)).transpose()
            }
        }
    }
}
