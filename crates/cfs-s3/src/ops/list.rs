//! ListObjects, its second version, and ListObjectVersions.

use std::sync::Arc;

use s3s::dto::{
    CommonPrefix, DeleteMarkerEntry, ETag, EncodingType, ListObjectVersionsInput,
    ListObjectVersionsOutput, ListObjectsInput, ListObjectsOutput, ListObjectsV2Input,
    ListObjectsV2Output, Object, ObjectStorageClass, ObjectVersion, ObjectVersionStorageClass,
};
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::{limit, owner};
use crate::buckets::BucketAt;
use crate::conditions::timestamp;
use crate::face::{Face, blocking};
use crate::listing::{KEYS_MAX, Listed, Query};

/// How keys are written in an answer.
#[derive(Clone, Copy)]
pub(crate) struct Encoding {
    url: bool,
}

impl Encoding {
    /// As the client wants it.
    ///
    /// # Errors
    /// `InvalidArgument` for one that S3 has not.
    pub(crate) fn wanted(encoding: Option<&EncodingType>) -> S3Result<Self> {
        match encoding.map(EncodingType::as_str) {
            None | Some("") => Ok(Self { url: false }),
            Some(EncodingType::URL) => Ok(Self { url: true }),
            Some(_) => Err(s3_error!(InvalidArgument, "keys can be encoded as `url`")),
        }
    }

    /// A key as it is written.
    pub(crate) fn write(self, key: String) -> String {
        if !self.url {
            return key;
        }
        let mut text = String::with_capacity(key.len());
        for byte in key.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                    text.push(char::from(byte));
                }
                _ => text.push_str(&format!("%{byte:02X}")),
            }
        }
        text
    }

    /// The prefix that was asked for, as the first version of listing gives it back: as it is, where XML can hold it.
    pub(crate) fn echo(self, prefix: String) -> String {
        let fits = |letter: char| !letter.is_control() || matches!(letter, '\t' | '\n');
        match prefix.chars().all(fits) {
            true => prefix,
            false => self.write(prefix),
        }
    }

    /// Common prefixes of an answer; none when there are none.
    pub(crate) fn prefixes(self, prefixes: Vec<String>) -> Option<Vec<CommonPrefix>> {
        let shown = |prefix| CommonPrefix {
            prefix: Some(self.write(prefix)),
        };
        (!prefixes.is_empty()).then(|| prefixes.into_iter().map(shown).collect())
    }

    fn object(self, face: &Face, bucket: &BucketAt, listed: Listed, with_owner: bool) -> Object {
        let owner_id = listed.owner.as_deref().unwrap_or(bucket.owner());
        let size = listed.content.bytes(listed.attr.size);
        Object {
            e_tag: Some(ETag::Strong(listed.content.etag)),
            last_modified: Some(timestamp(listed.attr.mtime)),
            owner: with_owner.then(|| owner(face, owner_id)),
            size: i64::try_from(size).ok(),
            storage_class: Some(ObjectStorageClass::from_static(
                ObjectStorageClass::STANDARD,
            )),
            key: Some(self.write(listed.key)),
            ..Object::default()
        }
    }
}

/// What a request asks to list.
macro_rules! query {
    ($input:expr, $with_owner:expr) => {
        Query {
            prefix: $input.prefix.clone().unwrap_or_default(),
            delimiter: $input.delimiter.clone(),
            keys_max: limit($input.max_keys, KEYS_MAX)?,
            with_owner: $with_owner,
            ..Query::default()
        }
    };
}

/// Lists objects.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn list_objects(
    face: Arc<Face>,
    request: S3Request<ListObjectsInput>,
) -> S3Result<S3Response<ListObjectsOutput>> {
    let input = request.input;
    let encoding = Encoding::wanted(input.encoding_type.as_ref())?;
    let mut query = query!(input, true);
    if let Some(marker) = input.marker.as_deref().filter(|marker| !marker.is_empty()) {
        query.start_after(marker);
    }
    blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        let listing = face.list(bucket.ino(), &query)?;
        let shown = |listed| encoding.object(&face, &bucket, listed, true);
        Ok(S3Response::new(ListObjectsOutput {
            name: Some(input.bucket),
            prefix: Some(encoding.echo(query.prefix)),
            marker: Some(encoding.write(input.marker.unwrap_or_default())),
            max_keys: i32::try_from(query.keys_max).ok(),
            is_truncated: Some(listing.next.is_some()),
            contents: Some(listing.objects.into_iter().map(shown).collect()),
            common_prefixes: encoding.prefixes(listing.prefixes),
            delimiter: input
                .delimiter
                .filter(|text| !text.is_empty())
                .map(|text| encoding.write(text)),
            next_marker: listing.next.map(|(_, last)| encoding.write(last)),
            encoding_type: input.encoding_type,
            ..ListObjectsOutput::default()
        }))
    })
    .await
}

/// Lists objects, with tokens instead of markers.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn list_objects_v2(
    face: Arc<Face>,
    request: S3Request<ListObjectsV2Input>,
) -> S3Result<S3Response<ListObjectsV2Output>> {
    let input = request.input;
    let encoding = Encoding::wanted(input.encoding_type.as_ref())?;
    let with_owner = input.fetch_owner.unwrap_or(false);
    let mut query = query!(input, with_owner);
    if let Some(start) = input
        .start_after
        .as_deref()
        .filter(|start| !start.is_empty())
    {
        query.start_after(start);
    }
    if let Some(token) = &input.continuation_token {
        query.from = base64_simd::URL_SAFE_NO_PAD
            .decode_to_vec(token)
            .map_err(|_| s3_error!(InvalidArgument, "the continuation token is not one of ours"))?;
    }
    blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        let listing = face.list(bucket.ino(), &query)?;
        let shown = |listed| encoding.object(&face, &bucket, listed, with_owner);
        let count = listing.objects.len() + listing.prefixes.len();
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: Some(encoding.write(query.prefix)),
            max_keys: i32::try_from(query.keys_max).ok(),
            key_count: i32::try_from(count).ok(),
            continuation_token: input.continuation_token,
            is_truncated: Some(listing.next.is_some()),
            next_continuation_token: listing
                .next
                .map(|(from, _)| base64_simd::URL_SAFE_NO_PAD.encode_to_string(from)),
            contents: Some(listing.objects.into_iter().map(shown).collect()),
            common_prefixes: encoding.prefixes(listing.prefixes),
            delimiter: input
                .delimiter
                .filter(|text| !text.is_empty())
                .map(|text| encoding.write(text)),
            encoding_type: input.encoding_type,
            start_after: input.start_after.map(|text| encoding.write(text)),
            ..ListObjectsV2Output::default()
        }))
    })
    .await
}

/// Lists objects with their versions.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn list_object_versions(
    face: Arc<Face>,
    request: S3Request<ListObjectVersionsInput>,
) -> S3Result<S3Response<ListObjectVersionsOutput>> {
    let input = request.input;
    let encoding = Encoding::wanted(input.encoding_type.as_ref())?;
    let mut query = query!(input, true);
    let key_marker = input.key_marker.clone().filter(|marker| !marker.is_empty());
    let version_marker = input
        .version_id_marker
        .clone()
        .filter(|marker| !marker.is_empty());
    if let Some(marker) = &key_marker {
        query.start_after(marker);
    }
    blocking(move || {
        let bucket = face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
        let after = key_marker.as_deref().zip(version_marker.as_deref());
        let listing = face.list_versions(&bucket, &query, after)?;
        let (mut versions, mut markers) = (Vec::new(), Vec::new());
        for version in listing.versions {
            let object = encoding.object(&face, &bucket, version.listed, true);
            if version.is_marker {
                markers.push(DeleteMarkerEntry {
                    is_latest: Some(version.is_latest),
                    key: object.key,
                    last_modified: object.last_modified,
                    owner: object.owner,
                    version_id: Some(version.id),
                });
                continue;
            }
            versions.push(ObjectVersion {
                e_tag: object.e_tag,
                is_latest: Some(version.is_latest),
                key: object.key,
                last_modified: object.last_modified,
                owner: object.owner,
                size: object.size,
                storage_class: Some(ObjectVersionStorageClass::from_static(
                    ObjectVersionStorageClass::STANDARD,
                )),
                version_id: Some(version.id),
                ..ObjectVersion::default()
            });
        }
        let is_truncated = listing.next.is_some();
        let (next_key, next_version) = listing.next.unwrap_or_default();
        Ok(S3Response::new(ListObjectVersionsOutput {
            name: Some(input.bucket),
            prefix: Some(encoding.write(query.prefix)),
            key_marker: Some(encoding.write(input.key_marker.unwrap_or_default())),
            version_id_marker: input.version_id_marker,
            max_keys: i32::try_from(query.keys_max).ok(),
            is_truncated: Some(is_truncated),
            versions: Some(versions),
            delete_markers: Some(markers),
            common_prefixes: encoding.prefixes(listing.prefixes),
            delimiter: input
                .delimiter
                .filter(|text| !text.is_empty())
                .map(|text| encoding.write(text)),
            next_version_id_marker: next_version,
            next_key_marker: is_truncated.then(|| encoding.write(next_key)),
            encoding_type: input.encoding_type,
            ..ListObjectVersionsOutput::default()
        }))
    })
    .await
}
