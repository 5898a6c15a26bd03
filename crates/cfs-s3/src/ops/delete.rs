//! DeleteObject and DeleteObjects.

use std::sync::Arc;

use s3s::dto::{
    DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject,
    ETagCondition, Error, ObjectIdentifier,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result};

use super::asker_of;
use crate::buckets::BucketAt;
use crate::conditions::{Conditions, timestamp};
use crate::errors::{self, from_fs};
use crate::face::{Face, blocking};
use crate::logging::Noted;
use crate::objects::Object;
use crate::versions::Deleted;

/// Keys of one request at most; S3's own limit.
const KEYS_MAX: usize = 1000;

/// What must hold of an object that is to be removed.
#[derive(Default)]
struct Guard {
    conditions: Conditions,
    modified: Option<s3s::dto::Timestamp>,
    size: Option<i64>,
}

impl Guard {
    fn is_empty(&self) -> bool {
        self.conditions.is_empty() && self.modified.is_none() && self.size.is_none()
    }

    fn check(&self, object: Option<&Object>) -> S3Result<()> {
        // Nothing is there, as is wanted.
        let Some(object) = object else {
            return Ok(());
        };
        self.conditions.check_write(Some(object))?;
        let whole_seconds =
            |time: &s3s::dto::Timestamp| time::OffsetDateTime::from(time.clone()).unix_timestamp();
        let is_modified = self.modified.as_ref().is_some_and(|expected| {
            whole_seconds(expected) != whole_seconds(&timestamp(object.attr.mtime))
        });
        let is_other_size = self
            .size
            .is_some_and(|expected| u64::try_from(expected) != Ok(object.size()));
        match is_modified || is_other_size {
            true => Err(S3ErrorCode::PreconditionFailed.into()),
            false => Ok(()),
        }
    }
}

impl Face {
    /// Removes an object or one of its versions; not durable yet. That there is none is no error.
    fn delete(
        &self,
        bucket: &BucketAt,
        key: &str,
        version: Option<&String>,
        guard: &Guard,
        bypass_governance: bool,
    ) -> S3Result<Deleted> {
        let _kept = self.keep_bucket(bucket.ino());
        let bucket = &self.bucket_by_now(bucket)?;
        let _lock = self.lock(bucket.ino(), key);
        let check = |object: Option<&Object>| guard.check(object);
        match (version, bucket.record.versioning) {
            (Some(id), _) => {
                if !guard.is_empty() {
                    match self.find_version(bucket, key, version) {
                        Ok(found) => {
                            let object = self.object(found.ino).map_err(from_fs)?;
                            guard.check(Some(&object))?;
                        }
                        Err(error) => match error.code() {
                            // Nothing is there, or a marker, of which there is nothing to compare.
                            S3ErrorCode::NoSuchVersion | S3ErrorCode::MethodNotAllowed => {}
                            _ => return Err(error),
                        },
                    }
                }
                self.delete_version(bucket, key, id, bypass_governance)
            }
            (None, Some(_))
                if !guard.is_empty() && self.is_hidden(bucket, key).map_err(from_fs)? =>
            {
                // There is a marker, which has nothing that conditions could ask for.
                Err(S3ErrorCode::PreconditionFailed.into())
            }
            (None, Some(state)) => self.mark_deleted(bucket, key, state, &check, !guard.is_empty()),
            (None, None) => {
                self.remove(bucket, key, &check, !guard.is_empty())?;
                Ok(Deleted::default())
            }
        }
    }
}

/// Removes an object; that there is none is no error.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn delete_object(
    face: Arc<Face>,
    request: S3Request<DeleteObjectInput>,
) -> S3Result<S3Response<DeleteObjectOutput>> {
    let asker = asker_of(&request);
    let input = request.input;
    let guard = Guard {
        conditions: Conditions {
            if_match: input.if_match,
            ..Conditions::default()
        },
        modified: input.if_match_last_modified_time,
        size: input.if_match_size,
    };
    blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        let wants = input.bypass_governance_retention;
        let version = input.version_id.as_ref();
        let bypass = face.bypasses(&asker, &bucket, (&input.key, version), wants);
        let deleted = face.delete(&bucket, &input.key, version, &guard, bypass)?;
        face.make_durable()?;
        Ok(S3Response::new(DeleteObjectOutput {
            delete_marker: deleted.is_marker.then_some(true),
            version_id: deleted.version,
            ..DeleteObjectOutput::default()
        }))
    })
    .await
}

/// Removes objects, each by itself.
///
/// # Errors
/// As S3 has them; what fails for one object is in the answer.
pub(crate) async fn delete_objects(
    face: Arc<Face>,
    request: S3Request<DeleteObjectsInput>,
) -> S3Result<S3Response<DeleteObjectsOutput>> {
    let asker = asker_of(&request);
    let noted = request.extensions.get::<Noted>().cloned();
    let noted = noted.unwrap_or_default();
    let input = request.input;
    if input.delete.objects.len() > KEYS_MAX || input.delete.objects.is_empty() {
        return Err(S3ErrorCode::MalformedXML.into());
    }
    blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        let is_quiet = input.delete.quiet.unwrap_or(false);
        let (mut deleted, mut errors) = (Vec::new(), Vec::new());
        for object in input.delete.objects {
            let ObjectIdentifier {
                e_tag,
                key,
                last_modified_time,
                size,
                version_id,
            } = object;
            let guard = Guard {
                conditions: Conditions {
                    if_match: e_tag.map(|etag| match etag.value() {
                        "*" => ETagCondition::Any,
                        _ => ETagCondition::ETag(etag),
                    }),
                    ..Conditions::default()
                },
                modified: last_modified_time,
                size,
            };
            let action = match version_id {
                Some(_) => "s3:DeleteObjectVersion",
                None => "s3:DeleteObject",
            };
            let done = face
                .authorize_version(&asker, &bucket, Some(&key), version_id.as_ref(), action)
                .and_then(|_| {
                    let version = version_id.as_ref();
                    let wants = input.bypass_governance_retention;
                    let bypass = face.bypasses(&asker, &bucket, (&key, version), wants);
                    face.delete(&bucket, &key, version, &guard, bypass)
                });
            let failed = done.as_ref().err().map(|error| error.code().as_str());
            noted.add(&key, failed);
            match done {
                Ok(done) => deleted.push(DeletedObject {
                    key: Some(key),
                    delete_marker: done.is_marker.then_some(true),
                    delete_marker_version_id: done.version.filter(|_| done.is_marker),
                    version_id,
                }),
                Err(error) => errors.push(Error {
                    code: Some(error.code().as_str().to_owned()),
                    key: Some(key),
                    message: Some(errors::message(&error)),
                    version_id,
                }),
            }
        }
        face.make_durable()?;
        Ok(S3Response::new(DeleteObjectsOutput {
            deleted: (!is_quiet && !deleted.is_empty()).then_some(deleted),
            errors: (!errors.is_empty()).then_some(errors),
            ..DeleteObjectsOutput::default()
        }))
    })
    .await
}
