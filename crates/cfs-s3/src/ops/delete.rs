//! DeleteObject and DeleteObjects.

use std::sync::Arc;

use s3s::dto::{
    DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject,
    ETagCondition, Error, ObjectIdentifier,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result, s3_error};

use super::{check_owner, check_version, user_of};
use crate::buckets::BucketAt;
use crate::conditions::{Conditions, timestamp};
use crate::face::{Face, blocking};
use crate::objects::Object;

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
        let Some(object) = object else {
            return match &self.conditions.if_match {
                Some(ETagCondition::Any | ETagCondition::ETag(_)) => Err(s3_error!(NoSuchKey)),
                None => Ok(()),
            };
        };
        self.conditions.check_write(Some(object))?;
        let whole_seconds =
            |time: &s3s::dto::Timestamp| time::OffsetDateTime::from(time.clone()).unix_timestamp();
        let is_modified = self.modified.as_ref().is_some_and(|expected| {
            whole_seconds(expected) != whole_seconds(&timestamp(object.attr.mtime))
        });
        let is_other_size = self
            .size
            .is_some_and(|expected| u64::try_from(expected) != Ok(object.attr.size));
        match is_modified || is_other_size {
            true => Err(S3ErrorCode::PreconditionFailed.into()),
            false => Ok(()),
        }
    }
}

impl Face {
    fn delete(
        &self,
        bucket: &BucketAt,
        key: &str,
        version: Option<&String>,
        guard: &Guard,
    ) -> S3Result<()> {
        if check_version(version).is_err() {
            // There is nothing by that name, as was wanted.
            return Ok(());
        }
        self.remove(
            bucket,
            key,
            &|object| guard.check(object),
            !guard.is_empty(),
        )?;
        Ok(())
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
        let bucket = face.bucket(&input.bucket)?;
        check_owner(&bucket, input.expected_bucket_owner.as_ref())?;
        face.delete(&bucket, &input.key, input.version_id.as_ref(), &guard)?;
        face.make_durable()?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
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
    let user = user_of(&request);
    let input = request.input;
    if input.delete.objects.len() > KEYS_MAX || input.delete.objects.is_empty() {
        return Err(S3ErrorCode::MalformedXML.into());
    }
    blocking(move || {
        let bucket = face.bucket(&input.bucket)?;
        check_owner(&bucket, input.expected_bucket_owner.as_ref())?;
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
            let done = face
                .authorize(user.as_deref(), &bucket, Some(&key), "s3:DeleteObject")
                .and_then(|()| face.delete(&bucket, &key, version_id.as_ref(), &guard));
            match done {
                Ok(()) => deleted.push(DeletedObject {
                    key: Some(key),
                    version_id,
                    ..DeletedObject::default()
                }),
                Err(error) => errors.push(Error {
                    code: Some(error.code().as_str().to_owned()),
                    key: Some(key),
                    message: error.message().map(str::to_owned),
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
