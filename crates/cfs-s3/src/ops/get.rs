//! GetObject, HeadObject and GetObjectAttributes.

use std::ops::Range as Bytes;
use std::sync::Arc;

use cfs_fs::Lock;

use s3s::dto::{
    Checksum, ChecksumMode, ChecksumType, ETag, GetObjectAttributesInput,
    GetObjectAttributesOutput, GetObjectAttributesParts, GetObjectInput, GetObjectOutput,
    HeadObjectInput, HeadObjectOutput, ObjectAttributes, ObjectLockLegalHoldStatus, ObjectLockMode,
    ObjectPart, Range, StorageClass, StreamingBlob, Timestamp, TimestampFormat,
};
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::put::show_checksums;
use super::{given_key, show_encryption};
use crate::conditions::{Conditions, timestamp};
use crate::customer::{Brought, Opening};
use crate::download::{Download, Opened, Promised};
use crate::errors::from_fs;
use crate::face::{Face, blocking};
use crate::lifecycle::Subject;
use crate::locks::{mode_name, time_of};
use crate::metadata::{DEFAULT_TYPE, Meta};
use crate::objects::Object;
use crate::parts::Part;

/// An object that is to be shown.
struct Found {
    opening: Option<Arc<Opening>>,
    key_given: Option<Arc<Brought>>,
    object: Object,
    /// Its parts, where they are asked for, or sealed each by itself.
    parts: Vec<Part>,
    meta: Meta,
    opened: Opened,
    range: Bytes<u64>,
    /// Whether less than the whole was asked for.
    is_part: bool,
    parts_count: Option<i32>,
    /// The number of the part that was asked for.
    part: Option<usize>,
    /// The version that it is, in a bucket that keeps them.
    version: Option<String>,
    lock: Option<Lock>,
    /// When it goes by a rule of its bucket.
    expiration: Option<String>,
}

struct Question {
    /// The key that the client has brought.
    key_given: Option<Arc<Brought>>,
    bucket: String,
    key: String,
    version: Option<String>,
    expected_owner: Option<String>,
    conditions: Conditions,
    range: Option<Range>,
    part_number: Option<i32>,
    /// What is kept of the parts is to be shown.
    shows_parts: bool,
}

impl Question {
    fn answer(self, face: &Face) -> S3Result<Found> {
        let bucket = face.bucket(&self.bucket, self.expected_owner.as_ref())?;
        let (version, opened) = face.open_version(&bucket, &self.key, self.version.as_ref())?;
        let object = face.object(version.ino).map_err(from_fs)?;
        // Who may not read it is not to learn of it by conditions.
        if self.part_number.is_none() {
            face.key_for(object.content.customer.as_ref(), self.key_given.as_ref())?;
        }
        self.conditions.check_read(&object)?;
        let meta = Meta::load(&face.fs, version.ino).map_err(from_fs)?;
        let size = object.size();
        let parts = match self.part_number.is_some() || self.shows_parts {
            true => face.parts_of(version.ino, &object.content),
            false => face.pieces_of(&object),
        };
        let parts = parts.map_err(from_fs)?;
        let (range, is_part) = match (&self.range, self.part_number) {
            (Some(_), Some(_)) => {
                return Err(s3_error!(
                    InvalidRequest,
                    "a range and a part's number cannot be asked for at once"
                ));
            }
            (Some(range), None) => (range.check(size)?, true),
            (None, Some(number)) => (part_range(&parts, size, number)?, true),
            (None, None) => (0..size, false),
        };
        let customer = object.content.customer.as_ref();
        let opening = Opening::of(face, customer, self.key_given.as_ref(), &parts)?;
        let key_given = face.key_for(customer, self.key_given.as_ref())?;
        let parts_count = self
            .part_number
            .filter(|_| object.content.part_count > 0)
            .and_then(|_| i32::try_from(object.content.part_count).ok());
        let lock = face.lock_of(&bucket, version.ino)?;
        let expiration = match &self.version {
            Some(_) => None,
            None => {
                let subject = Subject {
                    key: &self.key,
                    size,
                    tags: &meta.tags,
                };
                face.expiration(&bucket, &object.attr, &subject)?
            }
        };
        Ok(Found {
            opening,
            parts,
            key_given,
            lock,
            expiration,
            object,
            meta,
            opened,
            range,
            is_part,
            parts_count,
            part: self
                .part_number
                .and_then(|number| usize::try_from(number).ok()),
            version: bucket.record.versioning.map(|_| version.id),
        })
    }
}

/// What a request for an object, or for what is known of it, asks.
macro_rules! question {
    ($input:expr) => {
        Question {
            key_given: given_key!($input).brought()?,
            bucket: $input.bucket,
            key: $input.key,
            version: $input.version_id,
            expected_owner: $input.expected_bucket_owner,
            conditions: Conditions {
                if_match: $input.if_match,
                if_none_match: $input.if_none_match,
                if_modified_since: $input.if_modified_since,
                if_unmodified_since: $input.if_unmodified_since,
            },
            range: $input.range,
            part_number: $input.part_number,
            shows_parts: false,
        }
    };
}

/// The bytes of a part; an object that was put whole has one.
pub(crate) fn part_range(parts: &[Part], size: u64, number: i32) -> S3Result<Bytes<u64>> {
    let sizes: Vec<_> = match parts {
        [] => vec![size],
        parts => parts.iter().map(|part| part.bytes).collect(),
    };
    let index = usize::try_from(number)
        .ok()
        .and_then(|number| number.checked_sub(1))
        .filter(|index| *index < sizes.len())
        .ok_or_else(|| s3_error!(InvalidPart, "the object has no part {number}"))?;
    let start: u64 = sizes[..index].iter().sum();
    Ok(start..start + sizes[index])
}

/// What an answer has of an object, whether with its content or without.
macro_rules! show {
    ($output:ident, $found:expr, $checksum_mode:expr) => {{
        let found = &$found;
        let headers = &found.meta.headers;
        let length = found.range.end - found.range.start;
        let content_range = found.is_part.then(|| match length {
            0 => format!("bytes */{}", found.object.size()),
            _ => format!(
                "bytes {}-{}/{}",
                found.range.start,
                found.range.end - 1,
                found.object.size()
            ),
        });
        let mut output = $output {
            accept_ranges: Some("bytes".to_owned()),
            cache_control: headers.cache_control.clone(),
            content_disposition: headers.content_disposition.clone(),
            content_encoding: headers.content_encoding.clone(),
            content_language: headers.content_language.clone(),
            content_length: i64::try_from(length).ok(),
            content_range,
            content_type: Some(
                found
                    .meta
                    .content_type
                    .clone()
                    .unwrap_or_else(|| DEFAULT_TYPE.to_owned()),
            ),
            e_tag: Some(ETag::Strong(found.object.content.etag.clone())),
            expires: headers.expires.as_deref().and_then(parse_date),
            last_modified: Some(timestamp(found.object.attr.mtime)),
            expiration: found.expiration.clone(),
            metadata: found.meta.shown(),
            object_lock_legal_hold_status: found.lock.map(|lock| {
                ObjectLockLegalHoldStatus::from_static(match lock.hold {
                    true => ObjectLockLegalHoldStatus::ON,
                    false => ObjectLockLegalHoldStatus::OFF,
                })
            }),
            object_lock_mode: found
                .lock
                .and_then(|lock| lock.retention)
                .map(|(mode, _)| ObjectLockMode::from_static(mode_name(mode))),
            object_lock_retain_until_date: found
                .lock
                .and_then(|lock| lock.retention)
                .and_then(|(_, until)| time_of(until)),
            parts_count: found.parts_count,
            version_id: found.version.clone(),
            website_redirect_location: headers.redirect.clone(),
            ..$output::default()
        };
        show_encryption!(output, found.key_given);
        let wants = $checksum_mode
            .as_ref()
            .is_some_and(|mode: &ChecksumMode| mode.as_str() == ChecksumMode::ENABLED);
        let content = &found.object.content;
        let of_part = found
            .part
            .and_then(|number| found.parts.get(number - 1))
            .filter(|_| content.part_algorithm.is_some());
        if let Some(part) = of_part {
            let checksums = part.checksums(content);
            show_checksums!(output, checksums);
            output.checksum_type = Some(checksum_type(&found.object));
        } else if wants && !found.is_part && !content.checksums.is_empty() {
            show_checksums!(output, content.checksums);
            output.checksum_type = Some(checksum_type(&found.object));
        }
        output
    }};
}

pub(crate) fn parse_date(text: &str) -> Option<Timestamp> {
    Timestamp::parse(TimestampFormat::HttpDate, text).ok()
}

fn checksum_type(object: &Object) -> ChecksumType {
    ChecksumType::from_static(match object.content.composite {
        true => ChecksumType::COMPOSITE,
        false => ChecksumType::FULL_OBJECT,
    })
}

/// How something is to be encrypted is said when it is stored, and nowhere else.
fn refuse_wanted_encryption(headers: &http::HeaderMap) -> S3Result<()> {
    match headers.contains_key("x-amz-server-side-encryption") {
        true => Err(s3_error!(
            InvalidArgument,
            "the header x-amz-server-side-encryption is for requests that store something"
        )),
        false => Ok(()),
    }
}

/// The content of an object, or a part of it.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn get_object(
    face: Arc<Face>,
    request: S3Request<GetObjectInput>,
) -> S3Result<S3Response<GetObjectOutput>> {
    refuse_wanted_encryption(&request.headers)?;
    let input = request.input;
    let question = question!(input);
    let found = blocking(move || question.answer(&face)).await?;
    let mut output = show!(GetObjectOutput, found, input.checksum_mode);
    output.tag_count = i32::try_from(found.meta.tags.len())
        .ok()
        .filter(|count| *count > 0);
    let status = found.is_part.then_some(http::StatusCode::PARTIAL_CONTENT);
    let download = Download::new(
        found.opened,
        Promised::new(&found.object),
        found.opening,
        found.range,
    );
    output.body = Some(StreamingBlob::new(download));
    let mut response = S3Response::new(output);
    response.status = status;
    Ok(response)
}

/// What is known of an object, without its content.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn head_object(
    face: Arc<Face>,
    request: S3Request<HeadObjectInput>,
) -> S3Result<S3Response<HeadObjectOutput>> {
    refuse_wanted_encryption(&request.headers)?;
    let input = request.input;
    let question = question!(input);
    let found = blocking(move || question.answer(&face)).await?;
    let output = show!(HeadObjectOutput, found, input.checksum_mode);
    let mut response = S3Response::new(output);
    response.status = found.is_part.then_some(http::StatusCode::PARTIAL_CONTENT);
    if !found.meta.tags.is_empty() {
        response
            .headers
            .insert("x-amz-tagging-count", found.meta.tags.len().into());
    }
    Ok(response)
}

/// Those attributes of an object that are asked for.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn get_object_attributes(
    face: Arc<Face>,
    request: S3Request<GetObjectAttributesInput>,
) -> S3Result<S3Response<GetObjectAttributesOutput>> {
    refuse_wanted_encryption(&request.headers)?;
    let input = request.input;
    let question = Question {
        key_given: given_key!(input).brought()?,
        bucket: input.bucket,
        key: input.key,
        version: input.version_id,
        expected_owner: input.expected_bucket_owner,
        conditions: Conditions::default(),
        range: None,
        part_number: None,
        shows_parts: true,
    };
    let found = blocking(move || question.answer(&face)).await?;
    let wants = |name: &str| {
        input
            .object_attributes
            .iter()
            .flat_map(|wanted| wanted.as_str().split(','))
            .any(|wanted| wanted.trim() == name)
    };
    let content = &found.object.content;
    let mut output = GetObjectAttributesOutput {
        last_modified: Some(timestamp(found.object.attr.mtime)),
        version_id: found.version.clone(),
        ..GetObjectAttributesOutput::default()
    };
    if wants(ObjectAttributes::ETAG) {
        output.e_tag = Some(ETag::Strong(content.etag.clone()));
    }
    if wants(ObjectAttributes::OBJECT_SIZE) {
        output.object_size = i64::try_from(found.object.size()).ok();
    }
    if wants(ObjectAttributes::STORAGE_CLASS) {
        output.storage_class = Some(StorageClass::from_static(StorageClass::STANDARD));
    }
    if wants(ObjectAttributes::CHECKSUM) && !content.checksums.is_empty() {
        let mut checksum = Checksum {
            checksum_type: Some(checksum_type(&found.object)),
            ..Checksum::default()
        };
        show_checksums!(checksum, content.checksums);
        output.checksum = Some(checksum);
    }
    if wants(ObjectAttributes::OBJECT_PARTS) && !found.parts.is_empty() {
        output.object_parts = Some(parts(&found, input.max_parts, input.part_number_marker)?);
    }
    Ok(S3Response::new(output))
}

fn parts(
    found: &Found,
    wanted: Option<i32>,
    marker: Option<i32>,
) -> S3Result<GetObjectAttributesParts> {
    let content = &found.object.content;
    let count = super::limit(wanted, crate::listing::KEYS_MAX)?;
    let skipped = usize::try_from(marker.unwrap_or(0)).unwrap_or(0);
    let parts: Vec<_> = found
        .parts
        .iter()
        .enumerate()
        .skip(skipped)
        .take(count)
        .map(|(index, part)| {
            let mut shown = ObjectPart {
                part_number: i32::try_from(index + 1).ok(),
                size: i64::try_from(part.bytes).ok(),
                ..ObjectPart::default()
            };
            let checksums = part.checksums(content);
            show_checksums!(shown, checksums);
            shown
        })
        .collect();
    let shown = skipped + parts.len();
    let is_truncated = shown < found.parts.len();
    Ok(GetObjectAttributesParts {
        is_truncated: Some(is_truncated),
        max_parts: i32::try_from(count).ok(),
        next_part_number_marker: i32::try_from(shown).ok(),
        part_number_marker: Some(marker.unwrap_or(0)),
        total_parts_count: i32::try_from(found.parts.len()).ok(),
        parts: Some(parts),
    })
}
