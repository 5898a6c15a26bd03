//! Objects that arrive in parts.

use std::sync::Arc;

use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, ChecksumAlgorithm, ChecksumType,
    CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CompletedPart, CopyPartResult,
    CreateMultipartUploadInput, CreateMultipartUploadOutput, ETag, Initiator,
    ListMultipartUploadsInput, ListMultipartUploadsOutput, ListPartsInput, ListPartsOutput,
    MultipartUpload, Part, ServerSideEncryption, StorageClass, UploadPartCopyInput,
    UploadPartCopyOutput, UploadPartInput, UploadPartOutput,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result, s3_error};

use super::copy::source_of;
use super::list::Encoding;
use super::put::{Wanted, digests, given_headers, hasher, show_checksums, wanted_lock};
use super::{
    asker_of, check_storage_class, encryption, given_key, given_source_key, limit, owner,
    show_encryption,
};
use crate::acl::Given;
use crate::conditions::{Conditions, timestamp};
use crate::customer::Opening;
use crate::errors::from_fs;
use crate::face::{Face, blocking};
use crate::listing::KEYS_MAX;
use crate::metadata::{Meta, tags_of_header};
use crate::records::{self, Content, Customer, Headers, name};
use crate::upload::{Etags, Measures, Upload, receive};
use crate::uploads::{PART_NUMBER_MAX, UploadRecord, WantedPart, assembled, size_of};

digests!(UploadPartInput);

fn check_part_number(number: i32) -> S3Result<()> {
    match (1..=PART_NUMBER_MAX).contains(&number) {
        true => Ok(()),
        false => Err(s3_error!(
            InvalidArgument,
            "parts are numbered from 1 to {PART_NUMBER_MAX}"
        )),
    }
}

fn checksum_type(full: bool) -> ChecksumType {
    ChecksumType::from_static(match full {
        true => ChecksumType::FULL_OBJECT,
        false => ChecksumType::COMPOSITE,
    })
}

/// Begins an upload in parts.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn create_multipart_upload(
    face: Arc<Face>,
    request: S3Request<CreateMultipartUploadInput>,
) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
    let asker = asker_of(&request);
    let user = asker.user.clone();
    let mut input = request.input;
    check_storage_class(input.storage_class.as_ref())?;
    let key_given = given_key!(input).alone(input.server_side_encryption.as_ref())?;
    let algorithm = input
        .checksum_algorithm
        .as_ref()
        .map(|name| name.as_str().to_owned());
    let wanted_type = input.checksum_type.as_ref().map(ChecksumType::as_str);
    let full = match (algorithm.as_deref(), wanted_type) {
        (None, Some(_)) => {
            return Err(s3_error!(
                InvalidRequest,
                "a type of checksum without an algorithm"
            ));
        }
        (Some("CRC64NVME"), Some(ChecksumType::COMPOSITE))
        | (Some("SHA1" | "SHA256"), Some(ChecksumType::FULL_OBJECT)) => {
            return Err(s3_error!(
                InvalidRequest,
                "no such checksum of an object in parts"
            ));
        }
        (Some("CRC64NVME"), _) | (_, Some(ChecksumType::FULL_OBJECT)) => true,
        _ => false,
    };
    let headers = Headers {
        redirect: input.website_redirect_location.take(),
        ..given_headers!(input)
    };
    let tags = tags_of_header(input.tagging.as_deref())?;
    let mut meta = Meta::given(
        input.content_type.take(),
        input.metadata.take(),
        headers,
        tags,
    )?;
    let acl = Given {
        canned: input.acl.as_ref().map(|acl| acl.as_str().to_owned()),
        full_control: input.grant_full_control.take(),
        read: input.grant_read.take(),
        read_acp: input.grant_read_acp.take(),
        write_acp: input.grant_write_acp.take(),
        ..Given::default()
    };
    let wanted_lock = wanted_lock!(input);
    let checksum_type = algorithm.as_ref().map(|_| checksum_type(full));
    let (bucket_name, key) = (input.bucket.clone(), input.key.clone());
    let shown = algorithm.clone();
    let (id, key_shown) = blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        // What is refused in the end is refused at once.
        face.directory_for(&bucket, &input.key)?;
        meta.headers.owner = face.new_owner(&bucket, user.as_deref(), &acl)?;
        let mut rows = meta.rows();
        rows.extend(face.acl_row(&acl, &bucket, user.as_deref())?);
        rows.extend(face.lock_row(&asker, &bucket, &input.key, &wanted_lock)?);
        let key_given = face.key_of_new(
            &bucket,
            key_given,
            input.server_side_encryption.as_ref(),
            input.ssekms_key_id.as_ref(),
        )?;
        let record = UploadRecord {
            key: input.key,
            owner: user.map_or_else(String::new, |user| user.id.clone()),
            begun: face.now_seconds(),
            rows,
            algorithm,
            full,
            customer: key_given
                .as_ref()
                .map(|key| key.customer(face.random_bytes())),
        };
        let id = face.random_id();
        face.begin_upload(&bucket, &id, &record)?;
        Ok((id, key_given))
    })
    .await?;
    let mut output = CreateMultipartUploadOutput {
        bucket: Some(bucket_name),
        key: Some(key),
        upload_id: Some(id),
        checksum_algorithm: shown.map(ChecksumAlgorithm::from),
        checksum_type,
        ..CreateMultipartUploadOutput::default()
    };
    show_encryption!(output, key_shown);
    Ok(S3Response::new(output))
}

/// Takes a part.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn upload_part(
    face: Arc<Face>,
    mut request: S3Request<UploadPartInput>,
) -> S3Result<S3Response<UploadPartOutput>> {
    let mut wanted = Wanted::of(&request)?;
    let input = &mut request.input;
    check_part_number(input.part_number)?;
    let key_given = given_key!(input).brought()?;
    let number = input.part_number;
    let (bucket, key, id) = (
        input.bucket.clone(),
        input.key.clone(),
        input.upload_id.clone(),
    );
    let expected_owner = input.expected_bucket_owner.take();
    let (upload, key_given) = {
        let face = Arc::clone(&face);
        blocking(move || {
            let bucket = face.bucket(&bucket, expected_owner.as_ref())?;
            let upload = face.upload(&bucket, &key, &id)?;
            let key = face.key_for(upload.record.customer.as_ref(), key_given.as_ref())?;
            Ok((upload, key))
        })
        .await?
    };
    wanted.also(upload.record.algorithm.as_deref());
    let declared = input
        .content_length
        .and_then(|bytes| u64::try_from(bytes).ok());
    let body = input.body.take();
    let (file, measured) = receive(
        Arc::clone(&face.fs),
        upload.directory,
        body,
        wanted.measures(face.etags, key_given.clone()),
        declared,
    )
    .await?;
    let checksums = wanted.check(&measured, request.trailing_headers.as_ref())?;
    let content = Content {
        etag: measured.etag,
        sha256: measured.sha256,
        checksums,
        customer: upload.record.customer.clone().map(|customer| Customer {
            bytes: measured.bytes,
            ..customer
        }),
        ..Content::default()
    };
    let mut output = UploadPartOutput {
        e_tag: Some(ETag::Strong(content.etag.clone())),
        ..UploadPartOutput::default()
    };
    show_checksums!(output, content.checksums);
    show_encryption!(output, key_given);
    blocking(move || face.add_part(&upload, number, file.ino(), &content)).await?;
    Ok(S3Response::new(output))
}

/// Takes a part from an object that is there, by references.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn upload_part_copy(
    face: Arc<Face>,
    request: S3Request<UploadPartCopyInput>,
) -> S3Result<S3Response<UploadPartCopyOutput>> {
    let asker = asker_of(&request);
    let input = request.input;
    check_part_number(input.part_number)?;
    let key_given = given_key!(input).brought()?;
    let source_key_given = given_source_key!(input).brought()?;
    let (source_bucket, source_key, source_version) = source_of(&input.copy_source)?;
    let conditions = Conditions {
        if_match: input.copy_source_if_match,
        if_none_match: input.copy_source_if_none_match,
        if_modified_since: input.copy_source_if_modified_since,
        if_unmodified_since: input.copy_source_if_unmodified_since,
    };
    blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        let upload = face.upload(&bucket, &input.key, &input.upload_id)?;
        let (object, opened, source_id) = face.open_source(
            &asker,
            (&*source_bucket, &*source_key, source_version.as_ref()),
            input.expected_source_bucket_owner.as_ref(),
            &conditions,
        )?;
        let key_given = face.key_for(upload.record.customer.as_ref(), key_given.as_ref())?;
        let parts = face.pieces_of(&object).map_err(from_fs)?;
        let customer = object.content.customer.as_ref();
        let opening = Opening::of(&face, customer, source_key_given.as_ref(), &parts)?;
        let size = object.size();
        let range = match &input.copy_source_range {
            Some(text) => copied_range(text, size)?,
            None => 0..size,
        };
        let is_sealed = opening.is_some() || key_given.is_some();
        let algorithm = upload.record.algorithm.as_deref();
        let mut file = Upload::begin(Arc::clone(&face.fs), upload.directory)?;
        let len = range.end - range.start;
        let content = match is_sealed {
            true => {
                let measures = Measures {
                    checksums: hasher(|name| algorithm == Some(name)),
                    // It is not kept, and measured for the ETag alone.
                    sha256: (face.etags == Etags::Md5).then(String::new),
                    md5: face.etags == Etags::Md5,
                    key: key_given.clone(),
                };
                let (source, opening) = (object.attr.ino, opening.as_deref());
                let measured = face.rewrite(source, opening, range, &mut file, measures)?;
                Content {
                    etag: measured.etag,
                    checksums: measured.checksums,
                    customer: upload.record.customer.clone().map(|customer| Customer {
                        bytes: measured.bytes,
                        ..customer
                    }),
                    ..Content::default()
                }
            }
            false => {
                face.refer(object.attr.ino, range, file.ino(), 0)?;
                // The part's own MD5 is part of what it is known by, so that its content is read, though not written.
                let mut content = face.digest(file.ino(), len).map_err(from_fs)?;
                if let Some(algorithm) = algorithm {
                    content.checksums = face.checksum(file.ino(), len, algorithm)?;
                }
                content
            }
        };
        drop(opened);
        let attr = face.add_part(&upload, input.part_number, file.ino(), &content)?;
        let mut result = CopyPartResult {
            e_tag: Some(ETag::Strong(content.etag.clone())),
            last_modified: Some(timestamp(attr.mtime)),
            ..CopyPartResult::default()
        };
        show_checksums!(result, content.checksums);
        let mut output = UploadPartCopyOutput {
            copy_part_result: Some(result),
            copy_source_version_id: source_id,
            ..UploadPartCopyOutput::default()
        };
        show_encryption!(output, key_given);
        Ok(S3Response::new(output))
    })
    .await
}

/// `bytes=FIRST-LAST`, which must lie within the source.
fn copied_range(text: &str, size: u64) -> S3Result<std::ops::Range<u64>> {
    let parse = || {
        let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?))
    };
    let (first, last) =
        parse().ok_or_else(|| s3_error!(InvalidArgument, "a range is bytes=FIRST-LAST"))?;
    match first <= last && last < size {
        true => Ok(first..last + 1),
        false => Err(s3_error!(InvalidRange, "the source has {size} bytes")),
    }
}

fn wanted_part(part: CompletedPart) -> S3Result<WantedPart> {
    let checksums = crate::upload::named(&s3s::dto::Checksum {
        checksum_crc32: part.checksum_crc32,
        checksum_crc32c: part.checksum_crc32c,
        checksum_crc64nvme: part.checksum_crc64nvme,
        checksum_sha1: part.checksum_sha1,
        checksum_sha256: part.checksum_sha256,
        ..s3s::dto::Checksum::default()
    });
    match (part.part_number, part.e_tag) {
        (Some(number), Some(etag)) => Ok(WantedPart {
            number,
            etag: etag.value().trim_matches('"').to_owned(),
            checksums,
        }),
        _ => Err(S3ErrorCode::MalformedXML.into()),
    }
}

/// How an object is encrypted, as the end of its upload says it, which does not repeat a key that was brought.
fn encryption_of(content: &Content) -> Option<ServerSideEncryption> {
    match &content.customer {
        Some(customer) if customer.kms.is_none() => None,
        customer => encryption(customer.is_some()),
    }
}

fn key_name(content: &Content) -> Option<String> {
    content.customer.as_ref()?.kms.clone()
}

/// What is said again of an upload that was completed before.
fn completed_before(
    input: &CompleteMultipartUploadInput,
    content: Content,
) -> CompleteMultipartUploadOutput {
    let mut output = CompleteMultipartUploadOutput {
        location: Some(format!("/{}/{}", input.bucket, input.key)),
        bucket: Some(input.bucket.clone()),
        key: Some(input.key.clone()),
        e_tag: Some(ETag::Strong(content.etag.clone())),
        server_side_encryption: encryption_of(&content),
        ssekms_key_id: key_name(&content),
        checksum_type: (!content.checksums.is_empty()).then(|| checksum_type(!content.composite)),
        ..CompleteMultipartUploadOutput::default()
    };
    show_checksums!(output, content.checksums);
    output
}

/// Puts an object together from its parts.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn complete_multipart_upload(
    face: Arc<Face>,
    request: S3Request<CompleteMultipartUploadInput>,
) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
    let mut input = request.input;
    let key_given = given_key!(input).brought()?;
    let conditions = Conditions {
        if_match: input.if_match.take(),
        if_none_match: input.if_none_match.take(),
        ..Conditions::default()
    };
    let expected = crate::upload::named(&s3s::dto::Checksum {
        checksum_crc32: input.checksum_crc32.take(),
        checksum_crc32c: input.checksum_crc32c.take(),
        checksum_crc64nvme: input.checksum_crc64nvme.take(),
        checksum_sha1: input.checksum_sha1.take(),
        checksum_sha256: input.checksum_sha256.take(),
        ..s3s::dto::Checksum::default()
    });
    let parts = input
        .multipart_upload
        .take()
        .and_then(|upload| upload.parts)
        .unwrap_or_default();
    let wanted = parts
        .into_iter()
        .map(wanted_part)
        .collect::<S3Result<Vec<_>>>()?;
    blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        let upload = match face.upload(&bucket, &input.key, &input.upload_id) {
            Ok(upload) => upload,
            // A client that has not heard of its success asks again.
            Err(error) => {
                return match face.completed(&bucket, &input.key, &input.upload_id)? {
                    Some(content) => Ok(S3Response::new(completed_before(&input, content))),
                    None => Err(error),
                };
            }
        };
        // As S3 has it, who wants checksums brings the key here too.
        if upload.record.algorithm.is_some() || key_given.is_some() {
            face.key_for(upload.record.customer.as_ref(), key_given.as_ref())?;
        }
        let parts = face.wanted_parts(&upload, &wanted)?;
        let (content, kept) = assembled(&upload.record, &parts)?;
        for (algorithm, value) in &expected {
            if content
                .checksums
                .get(algorithm)
                .is_some_and(|known| known != value)
            {
                return Err(s3_error!(
                    BadDigest,
                    "the {algorithm} of the whole is another"
                ));
            }
        }
        let size = size_of(&parts);
        if input
            .mpu_object_size
            .is_some_and(|wanted| u64::try_from(wanted) != Ok(size))
        {
            return Err(s3_error!(InvalidRequest, "the parts have {size} bytes"));
        }
        let directory = face.directory_for(&bucket, &input.key)?;
        let file = Upload::begin(Arc::clone(&face.fs), directory)?;
        // The parts go with the upload, and have been counted when they came.
        let _unbound = face.fs.unbind_from_quota(file.ino());
        let mut at = 0;
        for part in &parts {
            face.refer(part.attr.ino, 0..part.attr.size, file.ino(), at)?;
            at = at.saturating_add(part.attr.size);
        }
        let mut rows = upload.record.rows.clone();
        rows.push((name::CONTENT.to_vec(), records::encode(&content)));
        rows.extend(crate::parts::rows(&kept));
        rows.push((name::COMPLETED.to_vec(), upload.id.clone().into_bytes()));
        let check = |object: Option<&crate::objects::Object>| conditions.check_write(object);
        face.note_due(file.ino(), &content)?;
        let published = face.publish(
            &bucket,
            &input.key,
            file.ino(),
            &rows,
            &check,
            !conditions.is_empty(),
        );
        face.begin_due(file.ino(), &content);
        let (_, version_id) = published?;
        if let Err(error) = face.end_upload(&bucket, &upload) {
            // The object is there; what is left of the upload can be aborted.
            tracing::warn!("the parts of a completed upload stay for now: {error}");
        }
        let mut output = CompleteMultipartUploadOutput {
            location: Some(format!("/{}/{}", input.bucket, input.key)),
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(ETag::Strong(content.etag.clone())),
            version_id,
            server_side_encryption: encryption_of(&content),
            ssekms_key_id: key_name(&content),
            checksum_type: (!content.checksums.is_empty())
                .then(|| checksum_type(!content.composite)),
            ..CompleteMultipartUploadOutput::default()
        };
        show_checksums!(output, content.checksums);
        Ok(S3Response::new(output))
    })
    .await
}

/// Gives an upload up.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn abort_multipart_upload(
    face: Arc<Face>,
    request: S3Request<AbortMultipartUploadInput>,
) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
    let input = request.input;
    blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        let upload = face.upload(&bucket, &input.key, &input.upload_id)?;
        face.end_upload(&bucket, &upload)?;
        face.make_durable()
    })
    .await?;
    Ok(S3Response::with_status(
        AbortMultipartUploadOutput::default(),
        http::StatusCode::NO_CONTENT,
    ))
}

/// Lists the parts that have arrived.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn list_parts(
    face: Arc<Face>,
    request: S3Request<ListPartsInput>,
) -> S3Result<S3Response<ListPartsOutput>> {
    let input = request.input;
    let count = limit(input.max_parts, KEYS_MAX)?;
    let marker = input.part_number_marker.unwrap_or(0);
    blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        let upload = face.upload(&bucket, &input.key, &input.upload_id)?;
        let mut parts = face.parts(&upload, marker, count + 1)?;
        let is_truncated = parts.len() > count;
        parts.truncate(count);
        let shown = |part: &crate::uploads::PartAt| {
            let mut shown = Part {
                e_tag: Some(ETag::Strong(part.content.etag.clone())),
                last_modified: Some(timestamp(part.attr.mtime)),
                part_number: Some(part.number),
                size: i64::try_from(part.size()).ok(),
                ..Part::default()
            };
            show_checksums!(shown, part.content.checksums);
            shown
        };
        let who = owner(&face, &upload.record.owner);
        let owned = owner(&face, &upload.record.object_owner(bucket.owner()));
        Ok(S3Response::new(ListPartsOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            initiator: Some(Initiator {
                display_name: who.display_name,
                id: who.id,
            }),
            owner: Some(owned),
            is_truncated: Some(is_truncated),
            max_parts: i32::try_from(count).ok(),
            next_part_number_marker: Some(parts.last().map_or(marker, |part| part.number)),
            part_number_marker: Some(marker),
            parts: Some(parts.iter().map(shown).collect()),
            storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
            checksum_type: upload
                .record
                .algorithm
                .as_ref()
                .map(|_| checksum_type(upload.record.full)),
            checksum_algorithm: upload.record.algorithm.map(ChecksumAlgorithm::from),
            ..ListPartsOutput::default()
        }))
    })
    .await
}

/// Lists the uploads that are under way.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn list_multipart_uploads(
    face: Arc<Face>,
    request: S3Request<ListMultipartUploadsInput>,
) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
    let input = request.input;
    let count = limit(input.max_uploads, KEYS_MAX)?;
    let encoding = Encoding::wanted(input.encoding_type.as_ref())?;
    blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        let prefix = input.prefix.clone().unwrap_or_default();
        let key_marker = input.key_marker.clone().unwrap_or_default();
        let id_marker = input.upload_id_marker.clone().unwrap_or_default();
        let delimiter = input.delimiter.as_deref().filter(|text| !text.is_empty());
        let (mut uploads, mut prefixes) = (Vec::new(), Vec::<String>::new());
        let mut after_marker = id_marker.is_empty();
        let mut is_truncated = false;
        let (mut next_key, mut next_id) = (None, None);
        for upload in face.uploads(&bucket)? {
            let key = upload.record.key.clone();
            if !key.starts_with(&prefix) || (!key_marker.is_empty() && key < key_marker) {
                continue;
            }
            if key == key_marker {
                let passed = after_marker;
                after_marker |= upload.id == id_marker;
                if id_marker.is_empty() || !passed {
                    continue;
                }
            }
            let group = delimiter.and_then(|delimiter| {
                let at = key[prefix.len()..].find(delimiter)?;
                Some(key[..prefix.len() + at + delimiter.len()].to_owned())
            });
            if group
                .as_ref()
                .is_some_and(|group| prefixes.last() == Some(group))
            {
                continue;
            }
            if uploads.len() + prefixes.len() >= count {
                is_truncated = true;
                break;
            }
            next_key = Some(group.clone().unwrap_or(key));
            next_id = Some(upload.id.clone());
            match group {
                Some(group) => prefixes.push(group),
                None => uploads.push(upload),
            }
        }
        let shown = |upload: crate::uploads::UploadAt| {
            let who = owner(&face, &upload.record.owner);
            let owned = owner(&face, &upload.record.object_owner(bucket.owner()));
            MultipartUpload {
                initiated: Some(timestamp(cfs_fs::Time {
                    seconds: upload.record.begun,
                    nanos: 0,
                })),
                initiator: Some(Initiator {
                    display_name: who.display_name,
                    id: who.id,
                }),
                key: Some(encoding.write(upload.record.key)),
                owner: Some(owned),
                storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
                upload_id: Some(upload.id),
                checksum_type: upload
                    .record
                    .algorithm
                    .as_ref()
                    .map(|_| checksum_type(upload.record.full)),
                checksum_algorithm: upload.record.algorithm.map(ChecksumAlgorithm::from),
            }
        };
        Ok(S3Response::new(ListMultipartUploadsOutput {
            bucket: Some(input.bucket),
            common_prefixes: encoding.prefixes(prefixes),
            delimiter: input.delimiter.clone().map(|text| encoding.write(text)),
            encoding_type: input.encoding_type,
            is_truncated: Some(is_truncated),
            key_marker: Some(encoding.write(key_marker)),
            max_uploads: i32::try_from(count).ok(),
            next_key_marker: next_key
                .filter(|_| is_truncated)
                .map(|key| encoding.write(key)),
            next_upload_id_marker: next_id.filter(|_| is_truncated),
            prefix: Some(encoding.write(prefix)),
            upload_id_marker: Some(id_marker),
            uploads: Some(uploads.into_iter().map(shown).collect()),
            ..ListMultipartUploadsOutput::default()
        }))
    })
    .await
}
