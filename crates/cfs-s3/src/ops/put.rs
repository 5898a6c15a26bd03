//! PutObject, and PostObject, which is the same from a form.

use std::collections::BTreeMap;
use std::sync::Arc;

use s3s::checksum::ChecksumHasher;
use s3s::crypto::Checksum as _;
use s3s::dto::{ChecksumType, ETag, PutObjectInput, PutObjectOutput, Timestamp, TimestampFormat};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result, s3_error};

use super::{asker_of, check_storage_class, given_key, show_encryption};
use crate::acl::Given;
use crate::conditions::Conditions;
use crate::customer::Brought;
use crate::errors::from_fs;
use crate::face::{Face, blocking};
use crate::lifecycle::Subject;
use crate::metadata::{Meta, tags_of_form, tags_of_header};
use crate::records::{self, Content, Customer, Headers, name};
use crate::upload::{Etags, Measured, Measures, receive};

/// Longest body of one request, bytes; S3's own limit.
const BODY_BYTES_MAX: i64 = 5 << 30;

/// Puts an object.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn put_object(
    face: Arc<Face>,
    mut request: S3Request<PutObjectInput>,
) -> S3Result<S3Response<PutObjectOutput>> {
    let asker = asker_of(&request);
    let user = asker.user.clone();
    // A form names its key itself, so that the check before could not know it.
    let is_form = request.method == http::Method::POST;
    let wanted = Wanted::of(&request)?;
    let input = &mut request.input;
    if input.write_offset_bytes.is_some() {
        return Err(super::not_implemented("appending to an object"));
    }
    check_storage_class(input.storage_class.as_ref())?;
    let key_given = given_key!(input).alone(input.server_side_encryption.as_ref())?;
    let (encryption, key_named) = (
        input.server_side_encryption.take(),
        input.ssekms_key_id.take(),
    );
    if input
        .content_length
        .is_some_and(|bytes| bytes > BODY_BYTES_MAX)
    {
        return Err(S3ErrorCode::EntityTooLarge.into());
    }
    let headers = Headers {
        redirect: input.website_redirect_location.take(),
        ..given_headers!(input)
    };
    let tags = match input.tagging.as_deref() {
        Some(text) if is_form => tags_of_form(text)?,
        text => tags_of_header(text)?,
    };
    let mut meta = Meta::given(
        input.content_type.take(),
        input.metadata.take(),
        headers,
        tags,
    )?;
    let acl = Given {
        canned: input.acl.take().map(|acl| acl.as_str().to_owned()),
        full_control: input.grant_full_control.take(),
        read: input.grant_read.take(),
        read_acp: input.grant_read_acp.take(),
        write_acp: input.grant_write_acp.take(),
        // Of an object it means nothing, and is kept as it comes.
        write: header_text(&request.headers, "x-amz-grant-write"),
    };
    let wanted_lock = wanted_lock!(input);
    let conditions = Conditions {
        if_match: input.if_match.take(),
        if_none_match: input.if_none_match.take(),
        ..Conditions::default()
    };
    let (bucket_name, key) = (
        std::mem::take(&mut input.bucket),
        std::mem::take(&mut input.key),
    );
    let expected_owner = input.expected_bucket_owner.take();
    let (bucket, directory, acl, lock, owner, key_given) = {
        let (face, conditions, key) = (Arc::clone(&face), conditions.clone(), key.clone());
        blocking(move || {
            let bucket = face.bucket(&bucket_name, expected_owner.as_ref())?;
            if is_form {
                face.authorize(&asker, &bucket, Some(&key), "s3:PutObject")?;
            }
            let owner = face.new_owner(&bucket, user.as_deref(), &acl)?;
            let acl = face.acl_row(&acl, &bucket, user.as_deref())?;
            let lock = face.lock_row(&asker, &bucket, &key, &wanted_lock)?;
            // What is refused anyway need not be received.
            if !conditions.is_empty() {
                let object = face.look(bucket.ino(), &key)?;
                conditions.check_write(object.as_ref())?;
            }
            let directory = face.directory_for(&bucket, &key)?;
            let key_given =
                face.key_of_new(&bucket, key_given, encryption.as_ref(), key_named.as_ref())?;
            Ok((bucket, directory, acl, lock, owner, key_given))
        })
        .await?
    };
    meta.headers.owner = owner;
    let declared = input
        .content_length
        .and_then(|bytes| u64::try_from(bytes).ok());
    let body = input.body.take();
    let measures = wanted.measures(face.etags, key_given.clone());
    let (upload, measured) =
        receive(Arc::clone(&face.fs), directory, body, measures, declared).await?;
    let checksums = wanted.check(&measured, request.trailing_headers.as_ref())?;
    let customer = key_given.as_ref().map(|key| Customer {
        bytes: measured.bytes,
        ..key.customer(face.random_bytes())
    });
    let content = Content {
        etag: measured.etag,
        sha256: measured.sha256,
        checksums,
        customer,
        ..Content::default()
    };
    let etag = content.etag.clone();
    let shown = content.checksums.clone();
    let (expiration, version_id) = blocking(move || {
        let mut rows = meta.rows();
        rows.extend(acl);
        rows.extend(lock);
        rows.push((name::CONTENT.to_vec(), records::encode(&content)));
        let (attr, version_id) = face.publish(
            &bucket,
            &key,
            upload.ino(),
            &rows,
            &|object| conditions.check_write(object),
            !conditions.is_empty(),
        )?;
        let subject = Subject {
            key: &key,
            size: face.size_of(&attr).map_err(from_fs)?,
            tags: &meta.tags,
        };
        let expiration = face.expiration(&bucket, &attr, &subject)?;
        Ok((expiration, version_id))
    })
    .await?;
    let mut output = PutObjectOutput {
        e_tag: Some(ETag::Strong(etag)),
        expiration,
        version_id,
        checksum_type: (!shown.is_empty())
            .then(|| ChecksumType::from_static(ChecksumType::FULL_OBJECT)),
        ..PutObjectOutput::default()
    };
    show_checksums!(output, shown);
    show_encryption!(output, key_given);
    Ok(S3Response::new(output))
}

/// The text of a header.
fn header_text(headers: &http::HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?;
    Some(value.to_owned())
}

/// `aws-chunked` is how the body came, and no property of the object.
pub(crate) fn content_encoding(given: Option<String>) -> Option<String> {
    let kept: Vec<_> = given
        .as_deref()?
        .split(',')
        .map(str::trim)
        .filter(|coding| !coding.is_empty() && *coding != "aws-chunked")
        .collect();
    (!kept.is_empty()).then(|| kept.join(", "))
}

/// A time as a header has it.
pub(crate) fn http_date(timestamp: &Timestamp) -> String {
    let mut text = Vec::new();
    match timestamp.format(TimestampFormat::HttpDate, &mut text) {
        Ok(()) => String::from_utf8(text).unwrap_or_default(),
        Err(_) => String::new(),
    }
}

/// Digests that a client gives or asks for.
pub(crate) struct Wanted {
    md5: Option<String>,
    /// Base64, by the name of the algorithm.
    given: BTreeMap<String, String>,
    /// Algorithms whose values come after the body.
    trailing: Vec<String>,
    /// The algorithm that the client has named.
    named: Option<String>,
    /// The SHA-256 in hexadecimal, where the signature vouches for it.
    signed_sha256: Option<String>,
}

const ALGORITHMS: [&str; 5] = ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"];

/// What a request says of digests.
pub(crate) trait Digests {
    fn md5(&self) -> Option<String>;
    fn algorithm(&self) -> Option<String>;
    fn checksums(&self) -> BTreeMap<String, String>;
}

macro_rules! digests {
    ($input:ty) => {
        impl $crate::ops::put::Digests for $input {
            fn md5(&self) -> Option<String> {
                self.content_md5.clone()
            }

            fn algorithm(&self) -> Option<String> {
                let name = self.checksum_algorithm.as_ref()?;
                Some(name.as_str().to_owned())
            }

            fn checksums(&self) -> std::collections::BTreeMap<String, String> {
                $crate::upload::named(&s3s::dto::Checksum {
                    checksum_crc32: self.checksum_crc32.clone(),
                    checksum_crc32c: self.checksum_crc32c.clone(),
                    checksum_crc64nvme: self.checksum_crc64nvme.clone(),
                    checksum_sha1: self.checksum_sha1.clone(),
                    checksum_sha256: self.checksum_sha256.clone(),
                    ..s3s::dto::Checksum::default()
                })
            }
        }
    };
}
pub(crate) use digests;
digests!(PutObjectInput);

/// The headers of a request that are given back as they came.
macro_rules! given_headers {
    ($input:expr) => {
        $crate::records::Headers {
            cache_control: $input.cache_control.take(),
            content_disposition: $input.content_disposition.take(),
            content_encoding: $crate::ops::put::content_encoding($input.content_encoding.take()),
            content_language: $input.content_language.take(),
            expires: $input.expires.as_ref().map($crate::ops::put::http_date),
            ..$crate::records::Headers::default()
        }
    };
}
pub(crate) use given_headers;

/// What a request that makes a version says of its lock.
macro_rules! wanted_lock {
    ($input:expr) => {
        $crate::locks::WantedLock {
            mode: $input
                .object_lock_mode
                .take()
                .map(|mode| mode.as_str().to_owned()),
            until: $input.object_lock_retain_until_date.take(),
            hold: $input
                .object_lock_legal_hold_status
                .take()
                .map(|status| status.as_str().to_owned()),
        }
    };
}
pub(crate) use wanted_lock;

/// Puts checksums into an answer.
macro_rules! show_checksums {
    ($output:expr, $checksums:expr) => {
        $output.checksum_crc32 = $checksums.get("CRC32").cloned();
        $output.checksum_crc32c = $checksums.get("CRC32C").cloned();
        $output.checksum_crc64nvme = $checksums.get("CRC64NVME").cloned();
        $output.checksum_sha1 = $checksums.get("SHA1").cloned();
        $output.checksum_sha256 = $checksums.get("SHA256").cloned();
    };
}
pub(crate) use show_checksums;

impl Wanted {
    /// What a request says.
    ///
    /// # Errors
    /// `InvalidRequest`, `InvalidDigest`.
    pub(crate) fn of<T: Digests>(request: &S3Request<T>) -> S3Result<Self> {
        let header = |name: &str| {
            request
                .headers
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        let algorithm = |name: &str| {
            let name = name
                .trim()
                .strip_prefix("x-amz-checksum-")?
                .to_ascii_uppercase();
            ALGORITHMS.contains(&name.as_str()).then_some(name)
        };
        let trailing: Vec<_> = header("x-amz-trailer")
            .unwrap_or_default()
            .split(',')
            .filter_map(algorithm)
            .collect();
        let named = match request
            .input
            .algorithm()
            .or_else(|| header("x-amz-sdk-checksum-algorithm").map(str::to_owned))
        {
            Some(name) => {
                let name = name.to_ascii_uppercase();
                match ALGORITHMS.contains(&name.as_str()) {
                    true => Some(name),
                    false => {
                        return Err(s3_error!(
                            InvalidRequest,
                            "there is no checksum algorithm {name}"
                        ));
                    }
                }
            }
            None => None,
        };
        let md5 = request.input.md5();
        if md5.as_ref().is_some_and(|text| decode_md5(text).is_none()) {
            return Err(S3ErrorCode::InvalidDigest.into());
        }
        let is_digest =
            |text: &&str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let signed_sha256 = header("x-amz-content-sha256")
            .filter(is_digest)
            .filter(|_| request.credentials.is_some())
            .map(str::to_ascii_lowercase);
        Ok(Self {
            md5,
            given: request.input.checksums(),
            trailing,
            named,
            signed_sha256,
        })
    }

    /// Measures this algorithm too.
    pub(crate) fn also(&mut self, algorithm: Option<&str>) {
        if self.named.is_none() {
            self.named = algorithm.map(str::to_owned);
        }
    }

    /// What is to be measured on the way.
    pub(crate) fn measures(&self, etags: Etags, key: Option<Arc<Brought>>) -> Measures {
        let wants = |name: &str| {
            self.given.contains_key(name)
                || self.trailing.iter().any(|other| other == name)
                || self.named.as_deref() == Some(name)
        };
        Measures {
            checksums: hasher(wants),
            sha256: self.signed_sha256.clone(),
            md5: etags == Etags::Md5 || self.md5.is_some(),
            key,
        }
    }

    /// Whether what arrived is what was said; the checksums to keep.
    ///
    /// # Errors
    /// `BadDigest`.
    pub(crate) fn check(
        &self,
        measured: &Measured,
        trailers: Option<&s3s::TrailingHeaders>,
    ) -> S3Result<BTreeMap<String, String>> {
        if let Some(text) = &self.md5
            && decode_md5(text) != measured.md5
        {
            return Err(S3ErrorCode::BadDigest.into());
        }
        let mut expected = self.given.clone();
        if let Some(trailers) = trailers {
            trailers.read(|headers| {
                for algorithm in ALGORITHMS {
                    let name = format!("x-amz-checksum-{}", algorithm.to_ascii_lowercase());
                    if let Some(value) = headers.get(name).and_then(|value| value.to_str().ok()) {
                        expected.insert(algorithm.to_owned(), value.trim().to_owned());
                    }
                }
            });
        }
        for algorithm in &self.trailing {
            if !expected.contains_key(algorithm) {
                return Err(s3_error!(
                    InvalidRequest,
                    "the checksum that was announced did not come"
                ));
            }
        }
        for (algorithm, value) in &expected {
            if measured.checksums.get(algorithm) != Some(value) {
                return Err(s3_error!(
                    BadDigest,
                    "the {algorithm} of the body is not the one that was given"
                ));
            }
        }
        Ok(measured.checksums.clone())
    }
}

/// A hasher of the algorithms that are wanted.
pub(crate) fn hasher(wants: impl Fn(&str) -> bool) -> ChecksumHasher {
    ChecksumHasher {
        crc32: wants("CRC32").then(s3s::crypto::Crc32::new),
        crc32c: wants("CRC32C").then(s3s::crypto::Crc32c::new),
        sha1: wants("SHA1").then(s3s::crypto::Sha1::new),
        sha256: wants("SHA256").then(s3s::crypto::Sha256::new),
        crc64nvme: wants("CRC64NVME").then(s3s::crypto::Crc64Nvme::new),
    }
}

fn decode_md5(text: &str) -> Option<[u8; 16]> {
    let bytes = base64_simd::STANDARD.decode_to_vec(text.trim()).ok()?;
    bytes.try_into().ok()
}
