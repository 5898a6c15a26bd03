//! A body on its way into a file that has no name yet.
//!
//! The file gets its name when all is there and right. If the client goes away before, the file is dropped with the
//! upload; if the process does, recovery removes it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cfs_format::Ino;
use cfs_fs::Fs;
use futures_util::{FutureExt as _, StreamExt as _};
use md5::{Digest, Md5};
use s3s::checksum::ChecksumHasher;
use s3s::dto::{Checksum, StreamingBlob};
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};
use sha2::Sha256;

use http::StatusCode;

use crate::customer::{Brought, Sealing};
use crate::errors::{custom, from_fs, full};
use crate::face::{Face, blocking};
use crate::objects::hex;

/// Bytes of a body that are handed to the file system at once, if so many have arrived.
const STEP_BYTES: usize = 1 << 20;
/// A client that sends nothing for so long has gone away.
const PATIENCE: Duration = Duration::from_secs(300);
/// Mode of a new object's file.
const MODE: u32 = 0o644;

/// What a body is measured for.
pub(crate) struct Measures {
    /// The algorithms of checksums that are wanted beside MD5 and SHA-256.
    pub(crate) checksums: ChecksumHasher,
    /// The SHA-256, where whoever hands over the body verifies it.
    pub(crate) sha256: Option<String>,
    /// The key under which it is sealed.
    pub(crate) key: Option<Arc<Brought>>,
}

/// What was measured.
pub(crate) struct Measured {
    pub(crate) md5: [u8; 16],
    /// The MD5, or what a sealed object has in its place.
    pub(crate) etag: String,
    /// Empty of what is sealed.
    pub(crate) sha256: String,
    /// Bytes of what came, before it was sealed.
    pub(crate) bytes: u64,
    /// Base64, by the name of the algorithm.
    pub(crate) checksums: BTreeMap<String, String>,
}

/// An upload in progress.
pub(crate) struct Upload {
    fs: Arc<Fs>,
    ino: Ino,
    at: u64,
    md5: Md5,
    sha256: Option<Sha256>,
    checksums: ChecksumHasher,
    sealing: Option<Sealing>,
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Both were counted when it was made. A file with a name stays.
        for ended in [self.fs.release(self.ino), self.fs.end_hold(self.ino)] {
            if let Err(error) = ended {
                tracing::warn!(
                    inode = self.ino.0,
                    "what was uploaded stays for now: {error}"
                );
            }
        }
    }
}

impl Upload {
    /// An empty file without a name, in the volume of a directory.
    ///
    /// # Errors
    /// What making it failed with.
    pub(crate) fn begin(fs: Arc<Fs>, directory: Ino, measures: Measures) -> S3Result<Self> {
        let attr = fs.getattr(directory).map_err(from_fs)?;
        let file = fs
            .tmpfile_and_hold(directory, MODE, &Face::caller_in(&attr))
            .map_err(from_fs)?;
        Ok(Self {
            fs,
            ino: file.ino,
            at: 0,
            md5: Md5::new(),
            sha256: measures.sha256.is_none().then(Sha256::new),
            checksums: measures.checksums,
            sealing: measures.key.map(Sealing::new),
        })
    }

    /// The file.
    pub(crate) fn ino(&self) -> Ino {
        self.ino
    }

    /// Adds bytes at the end.
    ///
    /// # Errors
    /// What writing failed with.
    pub(crate) fn write(&mut self, data: &[u8]) -> S3Result<()> {
        let Self {
            fs,
            ino,
            at,
            sealing,
            ..
        } = self;
        let mut store = |bytes: &[u8]| store(fs, *ino, at, bytes);
        match sealing {
            Some(sealing) => sealing.add(data, store)?,
            None => store(data)?,
        }
        self.md5.update(data);
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(data);
        }
        self.checksums.update(data);
        Ok(())
    }

    /// Writes what is still in memory, and tells what was measured.
    ///
    /// # Errors
    /// What writing failed with.
    pub(crate) fn finish(&mut self, verified_sha256: Option<String>) -> S3Result<Measured> {
        let mut bytes = self.at;
        if let Some(sealing) = &mut self.sealing {
            store(&self.fs, self.ino, &mut self.at, sealing.finish())?;
            bytes = sealing.bytes();
        }
        self.fs.flush(self.ino).map_err(from_fs)?;
        let md5: [u8; 16] = std::mem::take(&mut self.md5).finalize().into();
        let etag = match &self.sealing {
            Some(sealing) => sealing.name(&md5),
            None => hex(&md5),
        };
        let sha256 = match self.sha256.take() {
            // It would tell of content that is to be secret.
            _ if self.sealing.is_some() => String::new(),
            Some(sha256) => hex(&sha256.finalize()),
            None => verified_sha256.unwrap_or_default(),
        };
        let checksums = std::mem::take(&mut self.checksums).finalize();
        Ok(Measured {
            md5,
            etag,
            sha256,
            bytes,
            checksums: named(&checksums),
        })
    }
}

/// Adds bytes at the end of a file.
fn store(fs: &Fs, ino: Ino, at: &mut u64, bytes: &[u8]) -> S3Result<()> {
    let accepted = fs.write(ino, *at, bytes, false).map_err(from_fs)?;
    if accepted < bytes.len() {
        return Err(full());
    }
    *at += bytes.len() as u64;
    Ok(())
}

/// Receives a body into a file without a name.
///
/// # Errors
/// What the body fails with: `IncompleteBody`, a signature or checksum that does not fit; what writing fails with.
pub(crate) async fn receive(
    fs: Arc<Fs>,
    directory: Ino,
    body: Option<StreamingBlob>,
    measures: Measures,
    declared: Option<u64>,
) -> S3Result<(Upload, Measured)> {
    let verified = measures.sha256.clone();
    let mut upload = blocking(move || Upload::begin(fs, directory, measures)).await?;
    let mut received = 0;
    if let Some(mut body) = body {
        loop {
            let (step, ended) = next_step(&mut body).await?;
            received += step.iter().map(|bytes| bytes.len() as u64).sum::<u64>();
            if declared.is_some_and(|declared| received > declared) {
                return Err(s3_error!(
                    IncompleteBody,
                    "the body is longer than was said"
                ));
            }
            if !step.is_empty() {
                upload = blocking(move || {
                    for bytes in step {
                        upload.write(&bytes)?;
                    }
                    Ok(upload)
                })
                .await?;
            }
            if ended {
                break;
            }
        }
    }
    if declared.is_some_and(|declared| received != declared) {
        return Err(s3_error!(
            IncompleteBody,
            "the body is shorter than was said"
        ));
    }
    blocking(move || {
        let measured = upload.finish(verified)?;
        Ok((upload, measured))
    })
    .await
}

/// Waits for bytes, and takes with them what has arrived already, up to a bound. Whether they are the last.
async fn next_step(body: &mut StreamingBlob) -> S3Result<(Vec<Bytes>, bool)> {
    let mut step = Vec::new();
    let mut held = 0;
    let mut next = match tokio::time::timeout(PATIENCE, body.next()).await {
        Ok(next) => Some(next),
        Err(_) => return Err(S3ErrorCode::RequestTimeout.into()),
    };
    while let Some(item) = next {
        match item {
            None => return Ok((step, true)),
            Some(Ok(bytes)) => {
                held += bytes.len();
                step.push(bytes);
            }
            Some(Err(error)) => return Err(body_error(&error)),
        }
        next = match held < STEP_BYTES {
            true => body.next().now_or_never(),
            false => None,
        };
    }
    Ok((step, false))
}

/// What a body that ends in an error is for the client: its signature or a checksum does not fit, or it was cut.
fn body_error(error: &s3s::StdError) -> S3Error {
    let text = error.to_string();
    tracing::debug!("a body failed: {text}");
    // The errors of the streams have no public type to tell them by.
    if text.ends_with("SignatureMismatch") {
        return s3_error!(
            SignatureDoesNotMatch,
            "a part of the body is not signed as it should be"
        );
    }
    if text.ends_with("Sha256Mismatch") {
        return custom(
            "XAmzContentSHA256Mismatch",
            StatusCode::BAD_REQUEST,
            "the body does not have the SHA-256 that was signed",
        );
    }
    s3_error!(IncompleteBody, "the body could not be read to its end")
}

/// Checksums by the names of their algorithms.
pub(crate) fn named(checksum: &Checksum) -> BTreeMap<String, String> {
    let all = [
        ("CRC32", &checksum.checksum_crc32),
        ("CRC32C", &checksum.checksum_crc32c),
        ("CRC64NVME", &checksum.checksum_crc64nvme),
        ("SHA1", &checksum.checksum_sha1),
        ("SHA256", &checksum.checksum_sha256),
    ];
    let given = all
        .into_iter()
        .filter_map(|(name, value)| value.as_ref().map(|value| (name.to_owned(), value.clone())));
    given.collect()
}
