//! Of objects, versions and uploads.

use std::sync::{Arc, OnceLock};

use cfs_format::{Ino, VolumeId};
use cfs_fs::{Attr, Lock, RetentionMode, Time};
use cfs_seal::customer::CustomerKey;
use s3s::dto::{ETag, Tag, Tagging};

use super::{decode, join, split};
use crate::configs::text_of;
use crate::customer::{Brought, Opening, Sealing};
use crate::metadata::{DEFAULT_TYPE, Meta, object_tags};
use crate::names;
use crate::ops::get::{parse_date, part_range};
use crate::parts::{self, PARTS_IN_ROW, Part, checksum_bytes};
use crate::records::{Content, Customer, Headers, Tags, encode, name};
use crate::uploads::{PartAt, UploadRecord, assembled};
use crate::versions;
use crate::{due, records};

/// Bytes of the file that content is said to be in.
const FILE_BYTES: u64 = 100_000;
/// Bytes of the pieces of [`sealed_file`].
const PIECES: [u64; 2] = [70_000, 10];
const SALT: [u8; 16] = [5; 16];

fn brought() -> Arc<Brought> {
    Arc::new(Brought {
        key: CustomerKey::new(&[7; 32]),
        md5: String::new(),
        kms: None,
    })
}

/// A file of two pieces, each sealed by itself.
fn sealed_file() -> &'static [u8] {
    static FILE: OnceLock<Vec<u8>> = OnceLock::new();
    FILE.get_or_init(|| {
        let mut file = Vec::new();
        for bytes in PIECES {
            let mut sealing = Sealing::new(brought());
            let added = sealing.add(&vec![b'x'; bytes as usize], |block| {
                file.extend_from_slice(block);
                Ok(())
            });
            added.expect("memory takes any block");
            file.extend_from_slice(sealing.finish());
        }
        file
    })
}

fn customer() -> Customer {
    Customer {
        bytes: PIECES.iter().sum(),
        ..brought().customer(SALT)
    }
}

/// Content and the rows of its parts.
fn in_parts(content: Content, parts: &[Part]) -> Vec<u8> {
    let content = Content {
        part_count: parts.len() as u32,
        ..content
    };
    let rows = parts::rows(parts).into_iter().map(|(_, row)| row);
    join(&encode(&content), &rows.collect::<Vec<_>>().concat())
}

pub(super) fn content_seeds() -> Vec<Vec<u8>> {
    let whole = Content {
        etag: "d41d8cd98f00b204e9800998ecf8427e".to_owned(),
        sha256: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".to_owned(),
        checksums: [("CRC32C".to_owned(), "AAAAAA==".to_owned())].into(),
        ..Content::default()
    };
    let composite = Content {
        etag: "d41d8cd98f00b204e9800998ecf8427e-2".to_owned(),
        part_algorithm: Some("SHA256".to_owned()),
        composite: true,
        ..Content::default()
    };
    let sealed = Content {
        customer: Some(customer()),
        ..Content::default()
    };
    let part = |bytes, checksum_bytes| Part {
        bytes,
        checksum: vec![9; checksum_bytes],
    };
    vec![
        join(&encode(&whole), b""),
        join(&encode(&sealed), b""),
        in_parts(composite, &[part(60_000, 32), part(40_000, 32)]),
        in_parts(Content::default(), &vec![part(90, 0); 1001]),
        in_parts(sealed, &PIECES.map(|bytes| part(bytes, 0))),
    ]
}

/// What describes the content of an object, and the rows of its parts, one after the other.
pub(super) fn content(input: &[u8]) -> bool {
    let (record, rows) = split(input);
    let Some(content) = decode::<Content>(record) else {
        return false;
    };
    let _ = ETag::Strong(content.etag.clone()).to_http_header();
    let size = content.bytes(FILE_BYTES);
    let algorithm = content.part_algorithm.as_ref();
    let row_bytes = PARTS_IN_ROW * (8 + checksum_bytes(algorithm).unwrap_or(0));
    let mut rows = rows.chunks(row_bytes);
    let count = content.part_count as usize;
    let parts = parts::decode(count, algorithm, |_| Ok(rows.next().map(<[u8]>::to_vec)));
    let Ok(parts) = parts else {
        return false;
    };
    for part in &parts {
        part.checksums(&content);
    }
    let last = i32::try_from(count).unwrap_or(i32::MAX);
    for number in [i32::MIN, 0, 1, 2, last, i32::MAX] {
        if let Ok(range) = part_range(&parts, size, number) {
            assert!(range.start <= range.end, "a part ends before it begins");
        }
    }
    if let Some(customer) = &content.customer {
        let key = brought();
        key.fits(customer);
        let file = sealed_file();
        let read = |from: u64, len: usize, step: &mut Vec<u8>| {
            let from = usize::try_from(from).map_or(file.len(), |from| from.min(file.len()));
            *step = file[from..file.len().min(from.saturating_add(len))].to_vec();
            Ok(())
        };
        let Ok(opening) = Opening::new(key, customer.bytes, &parts) else {
            return false;
        };
        for at in [0, 1, size / 2, size.saturating_sub(1), size] {
            for len in [1, 64 << 10, 1 << 20] {
                if let Ok(bytes) = opening.read_with(at, len, read) {
                    assert!(bytes.len() as u64 <= len, "more is read than was asked for");
                }
            }
        }
    }
    true
}

pub(super) fn header_seeds() -> Vec<Vec<u8>> {
    let text = |text: &str| Some(text.to_owned());
    let headers = Headers {
        cache_control: text("no-cache"),
        content_disposition: text("attachment; filename=\"a\""),
        content_encoding: text("gzip"),
        content_language: text("en"),
        expires: text("Thu, 01 Dec 1994 16:00:00 GMT"),
        redirect: text("/other"),
        owner: text("id-of-alice"),
    };
    vec![encode(&headers), encode(&Headers::default())]
}

pub(super) fn headers(record: &[u8]) -> bool {
    let Some(headers) = decode::<Headers>(record) else {
        return false;
    };
    headers.is_empty();
    let _ = headers.expires.as_deref().and_then(parse_date);
    let texts = [&headers.cache_control, &headers.redirect];
    for text in texts.into_iter().flatten() {
        let _ = http::HeaderValue::from_str(text);
    }
    true
}

pub(super) fn tag_seeds() -> Vec<Vec<u8>> {
    let tags: Tags = (0..10)
        .map(|number| (format!("key-{number}"), "value".to_owned()))
        .collect();
    vec![encode(&tags), encode(&Tags::new())]
}

pub(super) fn tags(record: &[u8]) -> bool {
    let Some(tags) = decode::<Tags>(record) else {
        return false;
    };
    let tag_set = tags.iter().map(|(key, value)| Tag {
        key: Some(key.clone()),
        value: Some(value.clone()),
    });
    let shown = Tagging {
        tag_set: tag_set.collect(),
    };
    text_of(&shown).expect("memory takes any text");
    let _ = object_tags(tags);
    true
}

pub(super) fn metadata_seeds() -> Vec<Vec<u8>> {
    vec![
        join(name::MIME_TYPE, b"text/plain"),
        join(b"user.color", b"red"),
        join(b"user.large", &[b'x'; 2048]),
    ]
}

/// An extended attribute: its name and its value.
pub(super) fn metadata(input: &[u8]) -> bool {
    let (row, value) = split(input);
    let mut meta = Meta::default();
    meta.take(row, value.to_vec());
    let _ = http::HeaderValue::from_str(meta.content_type.as_deref().unwrap_or(DEFAULT_TYPE));
    let rows = meta.rows();
    for (row, value) in &rows {
        assert_eq!((row.as_slice(), value.as_slice()), split(input));
    }
    meta.shown();
    !rows.is_empty()
}

/// Attributes of a file, or of a bucket's directory.
pub(super) fn attr(size: u64) -> Attr {
    let time = Time::default();
    Attr {
        ino: Ino(20),
        mode: libc::S_IFREG | 0o644,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size,
        allocated_bytes: size,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        volume: VolumeId(1),
    }
}

pub(super) fn upload_seeds() -> Vec<Vec<u8>> {
    let lock = Lock {
        retention: Some((RetentionMode::Governance, 1 << 41)),
        hold: true,
    };
    let headers = Headers {
        owner: Some("id-of-bob".to_owned()),
        ..Headers::default()
    };
    let upload = |algorithm: &str, full: bool| UploadRecord {
        key: "directory/key".to_owned(),
        owner: "id-of-alice".to_owned(),
        begun: 1_790_000_000,
        rows: vec![
            lock.record(),
            (name::HEADERS.to_vec(), encode(&headers)),
            (name::MIME_TYPE.to_vec(), b"text/plain".to_vec()),
        ],
        algorithm: Some(algorithm.to_owned()),
        full,
        customer: None,
    };
    let part = |algorithm: &str, checksum: &str| Content {
        etag: "d41d8cd98f00b204e9800998ecf8427e".to_owned(),
        checksums: [(algorithm.to_owned(), checksum.to_owned())].into(),
        ..Content::default()
    };
    let seed = |upload: &UploadRecord, part: &Content| {
        let part = encode(part);
        join(&encode(upload), &join(&part, &part))
    };
    let long = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let sealed = UploadRecord {
        customer: Some(customer()),
        algorithm: None,
        rows: Vec::new(),
        ..upload("", false)
    };
    let sealed_part = Content {
        customer: Some(customer()),
        ..part("CRC32", "AAAAAA==")
    };
    vec![
        seed(&upload("CRC32", true), &part("CRC32", "AAAAAA==")),
        seed(
            &upload("CRC64NVME", true),
            &part("CRC64NVME", "AAAAAAAAAAA="),
        ),
        seed(&upload("CRC32C", false), &part("CRC32C", "AAAAAA==")),
        seed(&upload("SHA256", false), &part("SHA256", long)),
        seed(&sealed, &sealed_part),
    ]
}

/// An upload and what describes the content of its parts.
pub(super) fn upload(input: &[u8]) -> bool {
    let (record, mut rest) = split(input);
    let Some(upload) = decode::<UploadRecord>(record) else {
        return false;
    };
    upload.object_owner("id-of-alice");
    for (row, value) in &upload.rows {
        let _ = Lock::of_record(row, value);
        Meta::default().take(row, value.clone());
    }
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (record, behind) = split(rest);
        rest = behind;
        let Ok(content) = records::decode::<Content>(record) else {
            return false;
        };
        found.push(PartAt {
            number: found.len() as i32 + 1,
            attr: attr(FILE_BYTES),
            content,
        });
    }
    let Ok((content, kept)) = assembled(&upload, &found) else {
        return false;
    };
    // As they will be read.
    let rows: Vec<_> = parts::rows(&kept).into_iter().map(|(_, row)| row).collect();
    let mut rows = rows.into_iter();
    let algorithm = content.part_algorithm.as_ref();
    let again = parts::decode(kept.len(), algorithm, |_| Ok(rows.next()));
    again.is_ok_and(|again| again == kept)
}

pub(super) fn version_seeds() -> Vec<Vec<u8>> {
    vec![
        join(b"e70123456789abcd", b"key\0e70123456789abcc"),
        join(b"", b"directory/key\0e70123456789abcd-null"),
    ]
}

/// The identifier of a version, and a key in the tree of versions.
pub(super) fn version(input: &[u8]) -> bool {
    let (record, path) = split(input);
    versions::id_of_record(Some(record.to_vec()));
    let Ok(path) = str::from_utf8(path) else {
        return false;
    };
    let Some((key, id)) = versions::split_path(path) else {
        return false;
    };
    assert!(
        path.starts_with(key),
        "a key is not what its version begins with"
    );
    let nanos = versions::nanos_of(id).max(versions::nanos_of(path));
    versions::version_after(nanos);
    true
}

pub(super) fn name_seeds() -> Vec<Vec<u8>> {
    [
        &b"plain"[..],
        b".s3~..",
        b".s3=a%20b%25%00",
        b".s3~.s3~x",
        &[&b".s3+"[..], &[b'x'; 251]].concat(),
    ]
    .map(|name| join(name, b""))
    .to_vec()
}

/// A name in a bucket's directory, and how the component that it goes on with began.
pub(super) fn name(input: &[u8]) -> bool {
    let (name, begun) = split(input);
    let Some((form, component)) = names::component(name) else {
        return false;
    };
    names::is_one_of_ours(begun, form, &component);
    names::is_one_of_ours(b"", form, &component);
    for names in [
        names::directory_names(&component),
        names::escaped_file_names(&component),
    ] {
        let pieces = names.iter().map(|name| names::component(name));
        let pieces: Option<Vec<_>> = pieces.collect();
        let pieces = pieces.expect("each name of ours stands for something");
        let whole: Vec<u8> = pieces.into_iter().flat_map(|(_, piece)| piece).collect();
        assert_eq!(whole, component, "a name stands for another component");
    }
    true
}

pub(super) fn due_seeds() -> Vec<Vec<u8>> {
    vec![[name::DUE, b"0000000000000014"].concat()]
}

/// The name of a row of what is due.
pub(super) fn due(row: &[u8]) -> bool {
    due::ino_of(row).is_some()
}
