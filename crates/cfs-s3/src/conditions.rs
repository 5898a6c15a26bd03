//! Conditions of requests (RFC 9110, section 13) against an object.

use cfs_fs::Time;
use s3s::dto::{ETag, ETagCondition, Timestamp};
use s3s::{S3ErrorCode, S3Result, s3_error};

use crate::objects::Object;

/// Conditions as a request states them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conditions {
    pub(crate) if_match: Option<ETagCondition>,
    pub(crate) if_none_match: Option<ETagCondition>,
    pub(crate) if_modified_since: Option<Timestamp>,
    pub(crate) if_unmodified_since: Option<Timestamp>,
}

/// Seconds since 1970 of a time that a client gave.
fn seconds(timestamp: &Timestamp) -> i64 {
    time::OffsetDateTime::from(timestamp.clone()).unix_timestamp()
}

/// A time as S3 shows it.
pub(crate) fn timestamp(time: Time) -> Timestamp {
    let nanos = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    time::OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
        .into()
}

fn matches(condition: &ETagCondition, object: &Object) -> bool {
    match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(etag) => etag.value() == object.content.etag,
    }
}

impl Conditions {
    /// Whether there are any.
    pub(crate) fn is_empty(&self) -> bool {
        self.if_match.is_none()
            && self.if_none_match.is_none()
            && self.if_modified_since.is_none()
            && self.if_unmodified_since.is_none()
    }

    /// Whether an object may be read.
    ///
    /// # Errors
    /// `PreconditionFailed`, `NotModified`.
    pub(crate) fn check_read(&self, object: &Object) -> S3Result<()> {
        let modified = object.attr.mtime.seconds;
        match (&self.if_match, &self.if_unmodified_since) {
            (Some(condition), _) if !matches(condition, object) => {
                return Err(S3ErrorCode::PreconditionFailed.into());
            }
            (None, Some(since)) if modified > seconds(since) => {
                return Err(S3ErrorCode::PreconditionFailed.into());
            }
            _ => {}
        }
        let unchanged = match (&self.if_none_match, &self.if_modified_since) {
            (Some(condition), _) => matches(condition, object),
            (None, Some(since)) => modified <= seconds(since),
            (None, None) => false,
        };
        match unchanged {
            true => {
                let mut error = s3s::S3Error::new(S3ErrorCode::NotModified);
                let mut headers = http::HeaderMap::new();
                if let Ok(etag) = ETag::Strong(object.content.etag.clone()).to_http_header() {
                    headers.insert(http::header::ETAG, etag);
                }
                error.set_headers(headers);
                Err(error)
            }
            false => Ok(()),
        }
    }

    /// Whether an object may be the source of a copy, which is never "not modified".
    ///
    /// # Errors
    /// `PreconditionFailed`.
    pub(crate) fn check_copy(&self, object: &Object) -> S3Result<()> {
        self.check_read(object)
            .map_err(|_| S3ErrorCode::PreconditionFailed.into())
    }

    /// Whether what has a key, if anything, may be replaced or removed.
    ///
    /// # Errors
    /// `PreconditionFailed`, `NoSuchKey`.
    pub(crate) fn check_write(&self, object: Option<&Object>) -> S3Result<()> {
        match (&self.if_match, object) {
            (Some(_), None) => return Err(s3_error!(NoSuchKey)),
            (Some(condition), Some(object)) if !matches(condition, object) => {
                return Err(S3ErrorCode::PreconditionFailed.into());
            }
            _ => {}
        }
        match (&self.if_none_match, object) {
            (Some(condition), Some(object)) if matches(condition, object) => {
                Err(S3ErrorCode::PreconditionFailed.into())
            }
            _ => Ok(()),
        }
    }
}
