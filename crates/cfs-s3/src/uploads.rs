//! Uploads in parts, while they are under way.
//!
//! An upload is a directory below `.s3!uploads` in the bucket's directory, and its parts are the files in it. So they survive
//! a crash, are stored in the bucket's dedup domain, count as its used room, and are seen by nobody but the user of the
//! mount who owns the bucket's directory. Completing refers to the content of the parts; nothing is copied, and no quota
//! refuses what it counts twice until the parts have gone.

use std::collections::BTreeMap;

use cfs_format::Ino;
use cfs_fs::{Attr, Expected, FsError, Publication, RecordChange, Room};
use s3s::crypto::Checksum as _;
use s3s::{S3ErrorCode, S3Result, s3_error};
use serde::{Deserialize, Serialize};

use crate::buckets::BucketAt;
use crate::errors::from_fs;
use crate::face::Face;
use crate::md5::Md5;
use crate::objects::hex;
use crate::parts::{Part, checksum_bytes};
use crate::records::{self, Content, Customer, name};

/// The directory in a bucket's directory that holds uploads.
const UPLOADS: &[u8] = b".s3!uploads";
/// Mode of these directories.
const MODE: u32 = 0o700;
/// Numbers of parts; S3's own limits.
pub(crate) const PART_NUMBER_MAX: i32 = 10_000;
/// Smallest part but the last, bytes; S3's own limit.
const PART_BYTES_MIN: u64 = 5 << 20;

/// What is known of an upload.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct UploadRecord {
    pub(crate) key: String,
    /// Identifier of the user who began it.
    pub(crate) owner: String,
    /// Seconds since 1970.
    pub(crate) begun: i64,
    /// What the object is to have, but for its content.
    pub(crate) rows: Vec<(Vec<u8>, Vec<u8>)>,
    /// The algorithm of checksums that the client will give.
    pub(crate) algorithm: Option<String>,
    /// The checksum of the whole is that of the content, and not of the parts' checksums.
    pub(crate) full: bool,
    /// Its parts are sealed under a key that the client brings with each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) customer: Option<Customer>,
}

impl UploadRecord {
    /// Identifier of who is to own the object, if not who owns the bucket.
    pub(crate) fn object_owner(&self, bucket_owner: &str) -> String {
        let row = self.rows.iter().find(|(row, _)| row == name::HEADERS);
        let headers = row.and_then(|(_, value)| records::decode::<records::Headers>(value).ok());
        let owner = headers.and_then(|headers| headers.owner);
        owner.unwrap_or_else(|| bucket_owner.to_owned())
    }
}

/// An upload that is under way.
#[derive(Clone, Debug)]
pub(crate) struct UploadAt {
    pub(crate) id: String,
    pub(crate) directory: Ino,
    pub(crate) record: UploadRecord,
}

/// A part of an upload.
#[derive(Clone, Debug)]
pub(crate) struct PartAt {
    pub(crate) number: i32,
    pub(crate) attr: Attr,
    pub(crate) content: Content,
}

impl PartAt {
    /// Its bytes.
    pub(crate) fn size(&self) -> u64 {
        self.content.bytes(self.attr.size)
    }
}

/// A part as the client wants it in the object.
#[derive(Clone, Debug, Default)]
pub(crate) struct WantedPart {
    pub(crate) number: i32,
    pub(crate) etag: String,
    pub(crate) checksums: BTreeMap<String, String>,
}

fn part_name(number: i32) -> Vec<u8> {
    format!("{number:05}").into_bytes()
}

impl Face {
    fn uploads_directory(&self, bucket: &BucketAt) -> Result<Ino, FsError> {
        self.system_directory(bucket, UPLOADS, MODE, Room::Free)
    }

    fn find_uploads_directory(&self, bucket: &BucketAt) -> Result<Option<Ino>, FsError> {
        let entry = self.fs.find_name(bucket.ino(), UPLOADS)?;
        Ok(entry
            .filter(|entry| entry.kind == libc::S_IFDIR)
            .map(|entry| entry.ino))
    }

    /// Begins an upload, durably.
    ///
    /// # Errors
    /// What the file system refuses.
    pub(crate) fn begin_upload(
        &self,
        bucket: &BucketAt,
        id: &str,
        record: &UploadRecord,
    ) -> S3Result<()> {
        let begin = || -> Result<(), FsError> {
            let uploads = self.uploads_directory(bucket)?;
            let attr = self.fs.getattr(uploads)?;
            let caller = Self::caller_in(&attr);
            let made = self.fs.mkdir(uploads, id.as_bytes(), MODE, &caller)?;
            let change = RecordChange {
                put: vec![(name::UPLOAD.to_vec(), records::encode(record))],
                ..RecordChange::default()
            };
            self.fs.set_records(made.ino, change)?;
            self.name_changed(uploads, id.as_bytes());
            Ok(())
        };
        begin().map_err(from_fs)?;
        self.make_durable()
    }

    /// The upload of this identifier for a key.
    ///
    /// # Errors
    /// `NoSuchUpload`.
    pub(crate) fn upload(&self, bucket: &BucketAt, key: &str, id: &str) -> S3Result<UploadAt> {
        let find = || -> Result<Option<UploadAt>, FsError> {
            let Some(uploads) = self.find_uploads_directory(bucket)? else {
                return Ok(None);
            };
            let Some(entry) = self.fs.find_name(uploads, id.as_bytes())? else {
                return Ok(None);
            };
            let record = records::get::<UploadRecord>(&self.fs, entry.ino, name::UPLOAD)?;
            Ok(record.map(|record| UploadAt {
                id: id.to_owned(),
                directory: entry.ino,
                record,
            }))
        };
        find()
            .map_err(from_fs)?
            .filter(|upload| upload.record.key == key)
            .ok_or_else(|| s3_error!(NoSuchUpload, "there is no such upload, or it has ended"))
    }

    /// What describes the object under a key, if it is the one that an upload has become.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn completed(
        &self,
        bucket: &BucketAt,
        key: &str,
        id: &str,
    ) -> S3Result<Option<Content>> {
        let Some(place) = self.find(bucket.ino(), key).map_err(from_fs)? else {
            return Ok(None);
        };
        let upload = self
            .fs
            .record(place.ino, name::COMPLETED)
            .map_err(from_fs)?;
        match upload.as_deref() == Some(id.as_bytes()) {
            true => Ok(Some(self.object(place.ino).map_err(from_fs)?.content)),
            false => Ok(None),
        }
    }

    /// All uploads of a bucket, by key and then by when they began.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn uploads(&self, bucket: &BucketAt) -> S3Result<Vec<UploadAt>> {
        let read = || -> Result<Vec<UploadAt>, FsError> {
            let Some(uploads) = self.find_uploads_directory(bucket)? else {
                return Ok(Vec::new());
            };
            let mut found = Vec::new();
            for entry in self.fs.names_from(uploads, b"", usize::MAX)? {
                let record = records::get::<UploadRecord>(&self.fs, entry.ino, name::UPLOAD)?;
                if let (Some(record), Ok(id)) = (record, String::from_utf8(entry.name)) {
                    found.push(UploadAt {
                        id,
                        directory: entry.ino,
                        record,
                    });
                }
            }
            found.sort_by(|left, right| {
                let order = |upload: &UploadAt| {
                    (
                        upload.record.key.clone(),
                        upload.record.begun,
                        upload.id.clone(),
                    )
                };
                order(left).cmp(&order(right))
            });
            Ok(found)
        };
        read().map_err(from_fs)
    }

    /// Gives a file without a name to an upload as a part, durably; a part of that number is replaced.
    ///
    /// # Errors
    /// `NoSuchUpload`; what the file system refuses.
    pub(crate) fn add_part(
        &self,
        upload: &UploadAt,
        number: i32,
        ino: Ino,
        content: &Content,
    ) -> S3Result<Attr> {
        let name = part_name(number);
        let publication = Publication {
            parent: upload.directory,
            name: &name,
            expected: Expected::Anything,
            records: vec![(name::CONTENT.to_vec(), records::encode(content))],
            archive: None,
        };
        let attr = self
            .fs
            .publish(ino, publication)
            .map_err(|error| match error {
                FsError::NotFound => s3_error!(NoSuchUpload, "the upload has ended"),
                error => from_fs(error),
            })?;
        self.make_durable()?;
        self.name_changed(upload.directory, &name);
        Ok(attr)
    }

    /// Parts of an upload with numbers above `after`, in order, at most `count`.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn parts(
        &self,
        upload: &UploadAt,
        after: i32,
        count: usize,
    ) -> S3Result<Vec<PartAt>> {
        let from = part_name(after.max(0).saturating_add(1));
        let entries = self
            .fs
            .names_from(upload.directory, &from, count)
            .map_err(from_fs)?;
        let mut parts = Vec::new();
        for entry in entries {
            let Some(number) = str::from_utf8(&entry.name)
                .ok()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            match self.object(entry.ino) {
                Ok(object) => parts.push(PartAt {
                    number,
                    attr: object.attr,
                    content: object.content,
                }),
                Err(FsError::NotFound) => {}
                Err(error) => return Err(from_fs(error)),
            }
        }
        Ok(parts)
    }

    /// Ends an upload: its parts go.
    ///
    /// # Errors
    /// What the file system refuses; a part that is just being added makes it fail, and can be tried again.
    pub(crate) fn end_upload(&self, bucket: &BucketAt, upload: &UploadAt) -> S3Result<()> {
        let end = || -> Result<(), FsError> {
            let Some(uploads) = self.find_uploads_directory(bucket)? else {
                return Ok(());
            };
            for entry in self.fs.names_from(upload.directory, b"", usize::MAX)? {
                match self.fs.unlink(upload.directory, &entry.name) {
                    Ok(()) | Err(FsError::NotFound) => {}
                    Err(error) => return Err(error),
                }
            }
            match self.fs.rmdir(uploads, upload.id.as_bytes()) {
                Ok(()) | Err(FsError::NotFound) => {}
                Err(error) => return Err(error),
            }
            self.name_changed(uploads, upload.id.as_bytes());
            match self.fs.rmdir(bucket.ino(), UPLOADS) {
                Ok(()) => self.name_changed(bucket.ino(), UPLOADS),
                Err(FsError::NotEmpty | FsError::NotFound) => {}
                Err(error) => return Err(error),
            }
            Ok(())
        };
        end().map_err(from_fs)
    }

    /// Ends all uploads of a bucket that goes.
    ///
    /// # Errors
    /// As [`Face::end_upload`].
    pub(crate) fn end_uploads(&self, bucket: &BucketAt) -> S3Result<()> {
        for upload in self.uploads(bucket)? {
            self.end_upload(bucket, &upload)?;
        }
        Ok(())
    }

    /// The parts that the client wants, as they are.
    ///
    /// # Errors
    /// `InvalidPart`, `InvalidPartOrder`, `EntityTooSmall`, `MalformedXML`.
    pub(crate) fn wanted_parts(
        &self,
        upload: &UploadAt,
        wanted: &[WantedPart],
    ) -> S3Result<Vec<PartAt>> {
        if wanted.is_empty() {
            return Err(S3ErrorCode::MalformedXML.into());
        }
        if !wanted.is_sorted_by(|left, right| left.number < right.number) {
            return Err(S3ErrorCode::InvalidPartOrder.into());
        }
        let all = self.parts(upload, 0, usize::MAX)?;
        let all: BTreeMap<i32, PartAt> = all.into_iter().map(|part| (part.number, part)).collect();
        let mut parts = Vec::with_capacity(wanted.len());
        for want in wanted {
            let part = all
                .get(&want.number)
                .filter(|part| part.content.etag == want.etag)
                .ok_or_else(|| s3_error!(InvalidPart, "there is no part {}", want.number))?;
            for (algorithm, value) in &want.checksums {
                if part
                    .content
                    .checksums
                    .get(algorithm)
                    .is_some_and(|known| known != value)
                {
                    return Err(s3_error!(
                        InvalidPart,
                        "part {} has another checksum",
                        want.number
                    ));
                }
            }
            parts.push(part.clone());
        }
        let (_, all_but_last) = parts.split_last().expect("there is at least one");
        if all_but_last.iter().any(|part| part.size() < PART_BYTES_MIN) {
            return Err(S3ErrorCode::EntityTooSmall.into());
        }
        Ok(parts)
    }
}

/// What describes an object that was put together from parts, and what is kept of these.
///
/// # Errors
/// `InvalidRequest` when the parts have no checksum that the upload was begun with.
pub(crate) fn assembled(upload: &UploadRecord, parts: &[PartAt]) -> S3Result<(Content, Vec<Part>)> {
    let mut md5 = Md5::new();
    for part in parts {
        // What follows the digits says that they are no MD5.
        let digits = part.content.etag.split('-').next().unwrap_or_default();
        md5.update(&unhex(digits));
    }
    let bytes = size_of(parts);
    let mut content = Content {
        etag: format!("{}-{}", hex(&md5.finalize()), parts.len()),
        sha256: match parts {
            [part] if upload.customer.is_none() => part.content.sha256.clone(),
            _ => String::new(),
        },
        part_count: parts.len() as u32,
        part_algorithm: upload.algorithm.clone(),
        customer: upload
            .customer
            .clone()
            .map(|customer| Customer { bytes, ..customer }),
        ..Content::default()
    };
    let part = |part: &PartAt| Part {
        bytes: part.size(),
        ..Part::default()
    };
    let mut kept: Vec<_> = parts.iter().map(part).collect();
    let Some(algorithm) = &upload.algorithm else {
        return Ok((content, kept));
    };
    let mut sums = Vec::with_capacity(parts.len());
    for part in parts {
        let sum = part
            .content
            .checksums
            .get(algorithm)
            .and_then(|text| base64_simd::STANDARD.decode_to_vec(text).ok())
            .filter(|sum| Some(sum.len()) == checksum_bytes(upload.algorithm.as_ref()))
            .ok_or_else(|| s3_error!(InvalidRequest, "part {} has no {algorithm}", part.number))?;
        sums.push(sum);
    }
    for (part, sum) in kept.iter_mut().zip(&sums) {
        part.checksum.clone_from(sum);
    }
    let value = match upload.full {
        true => combined(algorithm, parts, &sums)?,
        false => {
            content.composite = true;
            let digest = digest_of(algorithm, &sums.concat());
            format!(
                "{}-{}",
                base64_simd::STANDARD.encode_to_string(digest),
                parts.len()
            )
        }
    };
    content.checksums = BTreeMap::from([(algorithm.clone(), value)]);
    Ok((content, kept))
}

/// Bytes of parts together.
pub(crate) fn size_of(parts: &[PartAt]) -> u64 {
    // Who owns the files of parts can have changed them through the mount, to any size.
    let sizes = parts.iter().map(PartAt::size);
    sizes.fold(0, u64::saturating_add)
}

/// The checksum of the content from those of its parts, which cyclic redundancy checks allow.
fn combined(algorithm: &str, parts: &[PartAt], sums: &[Vec<u8>]) -> S3Result<String> {
    use crc_fast::CrcAlgorithm;
    let (kind, width) = match algorithm {
        "CRC32" => (CrcAlgorithm::Crc32IsoHdlc, 4),
        "CRC32C" => (CrcAlgorithm::Crc32Iscsi, 4),
        "CRC64NVME" => (CrcAlgorithm::Crc64Nvme, 8),
        _ => {
            return Err(s3_error!(
                InvalidRequest,
                "a {algorithm} of the whole cannot be computed from parts"
            ));
        }
    };
    let number = |sum: &Vec<u8>| {
        sum.iter()
            .fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let mut all = 0;
    for (index, (part, sum)) in parts.iter().zip(sums).enumerate() {
        all = match index {
            0 => number(sum),
            _ => crc_fast::checksum_combine(kind, all, number(sum), part.size()),
        };
    }
    Ok(base64_simd::STANDARD.encode_to_string(&all.to_be_bytes()[8 - width..]))
}

fn digest_of(algorithm: &str, bytes: &[u8]) -> Vec<u8> {
    match algorithm {
        "CRC32" => s3s::crypto::Crc32::checksum(bytes).to_vec(),
        "CRC32C" => s3s::crypto::Crc32c::checksum(bytes).to_vec(),
        "CRC64NVME" => s3s::crypto::Crc64Nvme::checksum(bytes).to_vec(),
        "SHA1" => s3s::crypto::Sha1::checksum(bytes).as_ref().to_vec(),
        _ => s3s::crypto::Sha256::checksum(bytes).as_ref().to_vec(),
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or(0) as u8;
    text.as_bytes()
        .chunks_exact(2)
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}
