//! Users' metadata, content types and tags of objects, as extended attributes and records.

use std::collections::{BTreeMap, HashMap};

use cfs_format::Ino;
use cfs_fs::{Fs, FsError};
use s3s::{S3ErrorCode, S3Result, s3_error};

use crate::records::{self, Headers, Tags, name};

/// Names and values of users' metadata in one request, bytes; S3's own limit.
const METADATA_BYTES_MAX: usize = 2048;
/// Longest value of an extended attribute that is shown as a header, bytes.
const SHOWN_BYTES_MAX: usize = 2048;
/// The type of what has none.
pub(crate) const DEFAULT_TYPE: &str = "binary/octet-stream";
/// Tags of an object at most, and longest keys and values, characters; S3's own limits.
const TAGS_MAX: usize = 10;
const TAG_KEY_MAX: usize = 128;
const TAG_VALUE_MAX: usize = 256;

/// What an object has beside its content.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meta {
    pub(crate) content_type: Option<String>,
    pub(crate) user: BTreeMap<String, String>,
    pub(crate) headers: Headers,
    pub(crate) tags: Tags,
}

fn is_header_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.!#$&'*+^`|~%".contains(&byte)
        })
}

impl Meta {
    /// Metadata as a request gives them.
    ///
    /// # Errors
    /// `MetadataTooLarge`; `InvalidArgument` for names that no attribute can have.
    pub(crate) fn given(
        content_type: Option<String>,
        user: Option<HashMap<String, String>>,
        headers: Headers,
        tags: Tags,
    ) -> S3Result<Self> {
        let user: BTreeMap<_, _> = user.unwrap_or_default().into_iter().collect();
        let bytes: usize = user
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        if bytes > METADATA_BYTES_MAX {
            return Err(S3ErrorCode::MetadataTooLarge.into());
        }
        let longest = cfs_fs::XATTR_NAME_BYTES_MAX - name::METADATA.len();
        if user
            .keys()
            .any(|name| name.is_empty() || name.len() > longest)
        {
            return Err(s3_error!(
                InvalidArgument,
                "the name of a metadatum is too long"
            ));
        }
        Ok(Self {
            content_type: content_type.filter(|text| !text.is_empty()),
            user,
            headers,
            tags,
        })
    }

    /// What an object has now.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn load(fs: &Fs, ino: Ino) -> Result<Self, FsError> {
        let mut meta = Self::default();
        // Not all rows at once: those of many parts are long.
        if let Some(headers) = records::get(fs, ino, name::HEADERS)? {
            meta.headers = headers;
        }
        if let Some(tags) = records::get(fs, ino, name::TAGS)? {
            meta.tags = tags;
        }
        for (row, value) in fs.records(ino, name::METADATA)? {
            meta.take(&row, value);
        }
        Ok(meta)
    }

    /// Takes what an extended attribute says, if it can be shown.
    pub(crate) fn take(&mut self, row: &[u8], value: Vec<u8>) {
        if row == name::MIME_TYPE {
            self.content_type = String::from_utf8(value).ok();
        } else if let Some(name) = row.strip_prefix(name::METADATA)
            && let Ok(name) = str::from_utf8(name)
            && is_header_name(name)
            && value.len() <= SHOWN_BYTES_MAX
            && let Ok(value) = String::from_utf8(value)
            && !value.contains(char::is_control)
        {
            self.user.insert(name.to_owned(), value);
        }
    }

    /// The rows that hold it.
    pub(crate) fn rows(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut rows = Vec::new();
        if let Some(text) = &self.content_type {
            rows.push((name::MIME_TYPE.to_vec(), text.clone().into_bytes()));
        }
        for (name, value) in &self.user {
            let row = [name::METADATA, name.as_bytes()].concat();
            rows.push((row, value.clone().into_bytes()));
        }
        if !self.headers.is_empty() {
            rows.push((name::HEADERS.to_vec(), records::encode(&self.headers)));
        }
        if !self.tags.is_empty() {
            rows.push((name::TAGS.to_vec(), records::encode(&self.tags)));
        }
        rows
    }

    /// Users' metadata as a response has them.
    pub(crate) fn shown(&self) -> Option<HashMap<String, String>> {
        let shown: HashMap<_, _> = self.user.clone().into_iter().collect();
        (!shown.is_empty()).then_some(shown)
    }
}

/// Whether tags are within S3's limits.
///
/// # Errors
/// `InvalidTag`.
pub(crate) fn check_tags(tags: Tags, tags_max: usize) -> S3Result<Tags> {
    if tags.len() > tags_max {
        return Err(s3_error!(InvalidTag, "there can be {tags_max} tags"));
    }
    for (index, (key, value)) in tags.iter().enumerate() {
        let fits = !key.is_empty()
            && key.chars().count() <= TAG_KEY_MAX
            && value.chars().count() <= TAG_VALUE_MAX;
        if !fits {
            return Err(s3_error!(
                InvalidTag,
                "a tag's key or value is too long, or its key empty"
            ));
        }
        if tags[..index].iter().any(|(other, _)| other == key) {
            return Err(s3_error!(InvalidTag, "a tag's key is given twice"));
        }
    }
    Ok(tags)
}

/// Tags of an object.
///
/// # Errors
/// As [`check_tags`].
pub(crate) fn object_tags(tags: Tags) -> S3Result<Tags> {
    check_tags(tags, TAGS_MAX)
}

/// Tags as the header `x-amz-tagging` has them, encoded as a query.
///
/// # Errors
/// As [`check_tags`]; `InvalidArgument` when it does not decode.
pub(crate) fn tags_of_header(text: Option<&str>) -> S3Result<Tags> {
    let Some(text) = text else {
        return Ok(Tags::new());
    };
    let mut tags: Tags = serde_urlencoded::from_str(text)
        .map_err(|_| s3_error!(InvalidArgument, "the header x-amz-tagging does not decode"))?;
    tags.sort();
    object_tags(tags)
}

/// Tags as a form has them, in XML.
///
/// # Errors
/// As [`check_tags`]; `MalformedXML`.
pub(crate) fn tags_of_form(text: &str) -> S3Result<Tags> {
    let mut deserializer = s3s::xml::Deserializer::new(text.as_bytes());
    let tagging: s3s::dto::Tagging = s3s::xml::Deserialize::deserialize(&mut deserializer)
        .map_err(|_| s3_error!(MalformedXML, "the tags of a form are XML"))?;
    let pair = |tag: s3s::dto::Tag| Some((tag.key?, tag.value?));
    let tags: Option<Tags> = tagging.tag_set.into_iter().map(pair).collect();
    object_tags(tags.ok_or(S3ErrorCode::MalformedXML)?)
}
