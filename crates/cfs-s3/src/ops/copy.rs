//! CopyObject: by references, nothing is read.

use std::sync::Arc;

use s3s::dto::{
    CopyObjectInput, CopyObjectOutput, CopyObjectResult, CopySource, ETag, MetadataDirective,
    TaggingDirective,
};
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::put::{given_headers, hasher, show_checksums, wanted_lock};
use super::{asker_of, check_storage_class, given_key, given_source_key, show_encryption};
use crate::access::Asker;
use crate::acl::Given;
use crate::conditions::{Conditions, timestamp};
use crate::customer::Opening;
use crate::download::{Opened, Promised};
use crate::errors::from_fs;
use crate::face::{Face, blocking};
use crate::metadata::{Meta, tags_of_header};
use crate::objects::Object;
use crate::records::{self, Content, Customer, name};
use crate::upload::{Digests, Etags, Measured, Measures, Upload};

/// Bytes that one request copies at most; S3's own limit.
const COPY_BYTES_MAX: u64 = 5 << 30;
/// Bytes that are copied at a time.
const STEP_BYTES: u64 = 1 << 30;
/// Bytes that are opened and sealed again at a time.
const REWRITE_BYTES: u64 = 1 << 20;

/// Bucket, key and version of a source.
///
/// # Errors
/// `NotImplemented` for access points.
pub(crate) fn source_of(source: &CopySource) -> S3Result<(String, String, Option<String>)> {
    match source {
        CopySource::Bucket {
            bucket,
            key,
            version_id,
        } => Ok((
            bucket.to_string(),
            key.to_string(),
            version_id.as_ref().map(ToString::to_string),
        )),
        _ => Err(super::not_implemented("access points as sources of copies")),
    }
}

impl Face {
    /// Opens the source of a copy; also the version that it is, in a bucket that keeps them.
    ///
    /// # Errors
    /// As S3 has them.
    pub(crate) fn open_source(
        &self,
        asker: &Asker,
        (bucket, key, version): (&str, &str, Option<&String>),
        expected_owner: Option<&String>,
        conditions: &Conditions,
    ) -> S3Result<(Object, Opened, Option<String>)> {
        let bucket = self.bucket(bucket, expected_owner)?;
        let action = match version {
            Some(_) => "s3:GetObjectVersion",
            None => "s3:GetObject",
        };
        self.authorize_version(asker, &bucket, Some(key), version, action)?;
        let (found, opened) = self.open_version(&bucket, key, version)?;
        let object = self.object(found.ino).map_err(from_fs)?;
        conditions.check_copy(&object)?;
        let id = bucket.record.versioning.map(|_| found.id);
        Ok((object, opened, id))
    }

    /// Adds a range of an object to a file, opened and sealed as they are: read and written, where references do not do.
    ///
    /// # Errors
    /// What reading or writing failed with.
    pub(crate) fn rewrite(
        &self,
        source: cfs_format::Ino,
        opening: Option<&Opening>,
        range: std::ops::Range<u64>,
        target: &mut Upload,
        mut measures: Measures,
    ) -> S3Result<Measured> {
        target.seal(measures.key.take());
        let mut digests = Digests::new(measures);
        let mut at = range.start;
        let mut step = Vec::new();
        while at < range.end {
            let wanted = (range.end - at).min(REWRITE_BYTES);
            match opening {
                Some(opening) => {
                    step = opening
                        .read(&self.fs, source, at, wanted)
                        .map_err(from_fs)?;
                }
                None => self
                    .fs
                    .read(source, at, wanted as usize, &mut step)
                    .map_err(from_fs)?,
            }
            if step.is_empty() {
                return Err(s3_error!(OperationAborted, "the source has become shorter"));
            }
            target.write(&step)?;
            digests.add(&step);
            at += step.len() as u64;
        }
        target.finish()?;
        Ok(digests.finish(target))
    }

    /// Adds references to a range of a file at the end of another.
    ///
    /// # Errors
    /// What the file system refuses.
    pub(crate) fn refer(
        &self,
        source: cfs_format::Ino,
        range: std::ops::Range<u64>,
        target: cfs_format::Ino,
        target_offset: u64,
    ) -> S3Result<()> {
        let mut at = range.start;
        while at < range.end {
            let wanted = (range.end - at).min(STEP_BYTES);
            let offset = target_offset + (at - range.start);
            let copied = self
                .fs
                .copy_range(source, at, target, offset, wanted)
                .map_err(from_fs)?;
            if copied == 0 {
                return Err(s3_error!(OperationAborted, "the source has become shorter"));
            }
            at += copied;
        }
        Ok(())
    }
}

/// Copies an object, or gives it other metadata.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn copy_object(
    face: Arc<Face>,
    request: S3Request<CopyObjectInput>,
) -> S3Result<S3Response<CopyObjectOutput>> {
    let asker = asker_of(&request);
    let mut input = request.input;
    check_storage_class(input.storage_class.as_ref())?;
    let key_given = given_key!(input).alone(input.server_side_encryption.as_ref())?;
    let source_key_given = given_source_key!(input).brought()?;
    let (source_bucket, source_key, source_version) = source_of(&input.copy_source)?;
    let replaces = |directive: Option<&str>, copy: &str, replace: &str| match directive {
        None => Ok(false),
        Some(text) if text == copy => Ok(false),
        Some(text) if text == replace => Ok(true),
        Some(_) => Err(s3_error!(InvalidArgument, "a directive is COPY or REPLACE")),
    };
    let new_metadata = replaces(
        input
            .metadata_directive
            .as_ref()
            .map(MetadataDirective::as_str),
        MetadataDirective::COPY,
        MetadataDirective::REPLACE,
    )?;
    let new_tags = replaces(
        input
            .tagging_directive
            .as_ref()
            .map(TaggingDirective::as_str),
        TaggingDirective::COPY,
        TaggingDirective::REPLACE,
    )?;
    let is_itself = source_bucket == input.bucket && source_key == input.key;
    if is_itself
        && source_version.is_none()
        && !new_metadata
        && !new_tags
        && input.server_side_encryption.is_none()
        && key_given.is_none()
        && input.storage_class.is_none()
        && input.website_redirect_location.is_none()
    {
        return Err(s3_error!(
            InvalidRequest,
            "a copy of an object to itself must change its metadata, storage class, redirect or encryption"
        ));
    }
    let conditions = Conditions {
        if_match: input.copy_source_if_match.take(),
        if_none_match: input.copy_source_if_none_match.take(),
        if_modified_since: input.copy_source_if_modified_since.take(),
        if_unmodified_since: input.copy_source_if_unmodified_since.take(),
    };
    let acl = Given {
        canned: input.acl.take().map(|acl| acl.as_str().to_owned()),
        full_control: input.grant_full_control.take(),
        read: input.grant_read.take(),
        read_acp: input.grant_read_acp.take(),
        write_acp: input.grant_write_acp.take(),
        ..Given::default()
    };
    let wanted_lock = wanted_lock!(input);
    let wanted_checksum = input
        .checksum_algorithm
        .as_ref()
        .map(|name| name.as_str().to_owned());
    blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        let source = (&*source_bucket, &*source_key, source_version.as_ref());
        let (object, opened, source_id) = face.open_source(
            &asker,
            source,
            input.expected_source_bucket_owner.as_ref(),
            &conditions,
        )?;
        let mut parts = face
            .parts_of(object.attr.ino, &object.content)
            .map_err(from_fs)?;
        let customer = object.content.customer.as_ref();
        let opening = Opening::of(&face, customer, source_key_given.as_ref(), &parts)?;
        let key_given = face.key_of_new(
            &bucket,
            key_given,
            input.server_side_encryption.as_ref(),
            input.ssekms_key_id.as_ref(),
        )?;
        let size = object.size();
        if size > COPY_BYTES_MAX {
            return Err(s3_error!(
                InvalidRequest,
                "copy an object of more than 5 GiB in parts"
            ));
        }
        let mut meta = Meta::load(&face.fs, object.attr.ino).map_err(from_fs)?;
        let owner = face.new_owner(&bucket, asker.user.as_deref(), &acl)?;
        if new_metadata {
            let headers = given_headers!(input);
            let tags = std::mem::take(&mut meta.tags);
            meta = Meta::given(
                input.content_type.take(),
                input.metadata.take(),
                headers,
                tags,
            )?;
        }
        meta.headers.owner = owner;
        meta.headers.redirect = input.website_redirect_location.take();
        if new_tags {
            meta.tags = tags_of_header(input.tagging.as_deref())?;
        }
        let is_sealed = opening.is_some() || key_given.is_some();
        let algorithm = match &wanted_checksum {
            Some(algorithm) => Some(algorithm.clone()),
            None => object.content.checksums.keys().next().cloned(),
        };
        let measures = Measures {
            checksums: hasher(|name| is_sealed && algorithm.as_deref() == Some(name)),
            sha256: None,
            md5: face.etags == Etags::Md5,
            key: key_given.clone(),
        };
        let directory = face.directory_for(&bucket, &input.key)?;
        let mut upload = Upload::begin(Arc::clone(&face.fs), directory)?;
        let content = match is_sealed {
            true => {
                let (source, opening) = (object.attr.ino, opening.as_deref());
                let measured = face.rewrite(source, opening, 0..size, &mut upload, measures)?;
                Content {
                    customer: key_given.as_ref().map(|key| Customer {
                        bytes: measured.bytes,
                        ..key.customer(face.random_bytes())
                    }),
                    etag: measured.etag,
                    sha256: measured.sha256,
                    checksums: measured.checksums,
                    ..Content::default()
                }
            }
            false => {
                face.refer(object.attr.ino, 0..size, upload.ino(), 0)?;
                let kept = Promised::new(&object).is_kept(&face.fs, object.attr.ino);
                let (mut content, wanted_checksum) = match kept.map_err(from_fs)? {
                    true => (object.content, wanted_checksum),
                    // It was written to through the mount since it was looked at: what is in the copy counts.
                    false => {
                        parts.clear();
                        let copied = Object {
                            attr: face.fs.getattr(object.attr.ino).map_err(from_fs)?,
                            content: face.digest(upload.ino(), size).map_err(from_fs)?,
                        };
                        conditions.check_copy(&copied)?;
                        (copied.content, algorithm)
                    }
                };
                if let Some(algorithm) = wanted_checksum
                    && (content.composite || !content.checksums.contains_key(&algorithm))
                {
                    content.checksums = face.checksum(upload.ino(), size, &algorithm)?;
                    content.composite = false;
                    content.part_algorithm = None;
                    parts.iter_mut().for_each(|part| part.checksum.clear());
                }
                content
            }
        };
        drop(opened);
        let mut rows = meta.rows();
        rows.extend(face.acl_row(&acl, &bucket, asker.user.as_deref())?);
        rows.extend(face.lock_row(&asker, &bucket, &input.key, &wanted_lock)?);
        rows.push((name::CONTENT.to_vec(), records::encode(&content)));
        if content.part_count > 0 {
            rows.extend(crate::parts::rows(&parts));
        }
        face.note_due(upload.ino(), &content)?;
        let published = face.publish(&bucket, &input.key, upload.ino(), &rows, &|_| Ok(()), false);
        face.begin_due(upload.ino(), &content);
        let (attr, version_id) = published?;
        let mut result = CopyObjectResult {
            e_tag: Some(ETag::Strong(content.etag.clone())),
            last_modified: Some(timestamp(attr.mtime)),
            ..CopyObjectResult::default()
        };
        show_checksums!(result, content.checksums);
        let mut output = CopyObjectOutput {
            copy_object_result: Some(result),
            copy_source_version_id: source_id,
            version_id,
            ..CopyObjectOutput::default()
        };
        show_encryption!(output, key_given);
        Ok(S3Response::new(output))
    })
    .await
}
