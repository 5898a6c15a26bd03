//! A body on its way into a file that has no name yet.
//!
//! The file gets its name when all is there and right. If the client goes away before, the file is dropped with the
//! upload; if the process does, recovery removes it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cfs_format::Ino;
use cfs_fs::{Fs, Room};
use futures_util::StreamExt as _;
use s3s::checksum::ChecksumHasher;
use s3s::dto::{Checksum, StreamingBlob};
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};
use sha2::{Digest, Sha256};

use http::StatusCode;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::bodies;
use crate::customer::{Brought, Sealing};
use crate::errors::{custom, from_fs, full};
use crate::face::{Face, blocking};
use crate::md5::{Md5, Together};
use crate::objects::hex;
use crate::patience::PATIENCE;

/// Bytes of a body that are handed to the file system at once, if so many have arrived.
const STEP_BYTES: usize = 1 << 20;
/// Pieces that they have arrived in.
const STEP_PIECES: usize = 1024;
/// Steps at a time, of all uploads. A step is taken when bytes have come, so that nobody has one who is waited for.
static STEPS: Semaphore = Semaphore::const_new(STEPS_MAX);
const STEPS_MAX: usize = 32;
/// Steps of one upload: one that is processed, and one that arrives.
const STEPS_OF_ONE: usize = 2;
/// The MD5 of all uploads.
static TOGETHER: Together = Together::new();
/// Mode of a new object's file.
const MODE: u32 = 0o644;

/// Bodies up to so many bytes that arrive in one step are written and measured in one go: to wake threads costs more
/// than they would save by working at the same time.
const SMALL_BYTES: usize = 1 << 20;
/// How long a step that could be processed waits for more, so that there are fewer. Little, since it is held meanwhile, and
/// not at all while others wait for one.
const LINGER: Duration = Duration::from_millis(3);

/// What ETags are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Etags {
    /// MD5, as clients expect who compare it with their own.
    #[default]
    Md5,
    /// SHA-256, which costs less than half of it. They have the form of those of parts, which nobody takes for an MD5.
    Sha256,
}

/// What a body is measured for.
pub(crate) struct Measures {
    /// The algorithms of checksums that are wanted beside MD5 and SHA-256.
    pub(crate) checksums: ChecksumHasher,
    /// The SHA-256, where whoever hands over the body verifies it.
    pub(crate) sha256: Option<String>,
    /// Whether its MD5 is wanted.
    pub(crate) md5: bool,
    /// The key under which it is sealed.
    pub(crate) key: Option<Arc<Brought>>,
}

/// What was measured.
pub(crate) struct Measured {
    /// If it was wanted.
    pub(crate) md5: Option<[u8; 16]>,
    /// The ETag of the content, or what a sealed object has in its place.
    pub(crate) etag: String,
    /// Empty of what is sealed.
    pub(crate) sha256: String,
    /// Bytes of what came, before it was sealed.
    pub(crate) bytes: u64,
    /// Base64, by the name of the algorithm.
    pub(crate) checksums: BTreeMap<String, String>,
}

/// An ETag that is made of a SHA-256: half of its digits, and what says that it is no MD5.
pub(crate) fn etag_of_sha256(sha256: &str) -> String {
    format!("{}-1", sha256.get(..32).unwrap_or(sha256))
}

/// A file without a name that grows.
pub(crate) struct Upload {
    fs: Arc<Fs>,
    ino: Ino,
    at: u64,
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
    pub(crate) fn begin(fs: Arc<Fs>, directory: Ino) -> S3Result<Self> {
        Self::begin_with(fs, directory, Room::Free)
    }

    /// As [`Upload::begin`], for what may be part of a deletion.
    ///
    /// # Errors
    /// As [`Upload::begin`].
    pub(crate) fn begin_with(fs: Arc<Fs>, directory: Ino, room: Room) -> S3Result<Self> {
        let attr = fs.getattr(directory).map_err(from_fs)?;
        let file = fs
            .tmpfile_and_hold_with(directory, MODE, &Face::caller_in(&attr), room)
            .map_err(from_fs)?;
        Ok(Self {
            fs,
            ino: file.ino,
            at: 0,
            sealing: None,
        })
    }

    /// Seals what is written from now on under a key, if there is one. Nothing has been written yet.
    pub(crate) fn seal(&mut self, key: Option<Arc<Brought>>) {
        self.sealing = key.map(Sealing::new);
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
        } = self;
        let mut store = |bytes: &[u8]| store(fs, *ino, at, bytes);
        match sealing {
            Some(sealing) => sealing.add(data, store),
            None => store(data),
        }
    }

    /// Writes what is still in memory.
    ///
    /// # Errors
    /// What writing failed with.
    pub(crate) fn finish(&mut self) -> S3Result<()> {
        if let Some(sealing) = &mut self.sealing {
            store(&self.fs, self.ino, &mut self.at, sealing.finish())?;
        }
        self.fs.flush(self.ino).map_err(from_fs)
    }

    /// Bytes of what came, before it was sealed.
    fn bytes(&self) -> u64 {
        self.sealing.as_ref().map_or(self.at, Sealing::bytes)
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

/// What is computed of a body on its way.
pub(crate) struct Digests {
    md5: Option<Md5>,
    sha256: Option<Sha256>,
    verified_sha256: Option<String>,
    checksums: ChecksumHasher,
}

impl Digests {
    pub(crate) fn new(measures: Measures) -> Self {
        Self {
            md5: measures.md5.then(Md5::new),
            sha256: measures.sha256.is_none().then(Sha256::new),
            verified_sha256: measures.sha256,
            checksums: measures.checksums,
        }
    }

    pub(crate) fn add(&mut self, data: &[u8]) {
        if let Some(md5) = &mut self.md5 {
            md5.update(data);
        }
        self.add_rest(data);
    }

    fn add_rest(&mut self, data: &[u8]) {
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(data);
        }
        self.checksums.update(data);
    }

    /// As [`Digests::add`], for a step of an upload; its MD5 is computed together with those of others. Blocks.
    fn add_step(&mut self, pieces: Vec<Bytes>) {
        pieces.iter().for_each(|piece| self.add_rest(piece));
        if let Some(md5) = self.md5.take() {
            let is_alone = STEPS.available_permits() + STEPS_OF_ONE >= STEPS_MAX;
            self.md5 = Some(TOGETHER.add(md5, pieces, is_alone));
        }
    }

    /// What was measured of what an upload has been given.
    pub(crate) fn finish(self, upload: &Upload) -> Measured {
        let md5: Option<[u8; 16]> = self.md5.map(Md5::finalize);
        let sha256 = self.sha256.map(|sha256| hex(&sha256.finalize()));
        let sha256 = sha256.or(self.verified_sha256).unwrap_or_default();
        let (etag, sha256) = match (&upload.sealing, md5) {
            // The SHA-256 would tell of content that is to be secret.
            (Some(sealing), Some(md5)) => (sealing.name(&md5), String::new()),
            (Some(sealing), None) => (sealing.name(sha256.as_bytes()), String::new()),
            (None, Some(md5)) => (hex(&md5), sha256),
            (None, None) => (etag_of_sha256(&sha256), sha256),
        };
        Measured {
            md5,
            etag,
            sha256,
            bytes: upload.bytes(),
            checksums: named(&self.checksums.finalize()),
        }
    }
}

/// Receives a body into a file without a name. While a step is written and measured the next one arrives.
///
/// # Errors
/// What the body fails with: `IncompleteBody`, a signature or checksum that does not fit; what writing fails with.
pub(crate) async fn receive(
    fs: Arc<Fs>,
    directory: Ino,
    body: Option<StreamingBlob>,
    mut measures: Measures,
    declared: Option<u64>,
) -> S3Result<(Upload, Measured)> {
    let key = measures.key.take();
    let mut digests = Digests::new(measures);
    let mut step = Step::default();
    let mut body = match body {
        Some(mut body) => {
            // There is none before it.
            let (_, mut passed) = oneshot::channel();
            step = next_step(&mut body, &mut passed).await?;
            Some(body)
        }
        None => None,
    };
    let mut received = step.len as u64;
    let Some(body) = body
        .as_mut()
        .filter(|_| !step.is_last || step.len > SMALL_BYTES)
    else {
        check_length(received, declared, true)?;
        return blocking(move || {
            let mut upload = Upload::begin(fs, directory)?;
            upload.seal(key);
            for bytes in &step.bytes {
                upload.write(bytes)?;
            }
            digests.add_step(step.bytes);
            upload.finish()?;
            let measured = digests.finish(&upload);
            Ok((upload, measured))
        })
        .await;
    };
    let mut upload = blocking(move || {
        let mut upload = Upload::begin(fs, directory)?;
        upload.seal(key);
        Ok(upload)
    })
    .await?;
    while !step.is_last {
        check_length(received, declared, false)?;
        let (passing, mut passed) = oneshot::channel();
        let (passed_on, next) = tokio::join!(
            async {
                let passed_on = pass(upload, digests, step).await;
                // Who has gone away needs no notice.
                let _ = passing.send(());
                passed_on
            },
            next_step(body, &mut passed),
        );
        (upload, digests) = passed_on?;
        step = next?;
        received += step.len as u64;
    }
    check_length(received, declared, true)?;
    (upload, digests) = pass(upload, digests, step).await?;
    blocking(move || {
        upload.finish()?;
        let measured = digests.finish(&upload);
        Ok((upload, measured))
    })
    .await
}

fn check_length(received: u64, declared: Option<u64>, is_all: bool) -> S3Result<()> {
    match declared {
        Some(declared) if received > declared => Err(s3_error!(
            IncompleteBody,
            "the body is longer than was said"
        )),
        Some(declared) if received < declared && is_all => Err(s3_error!(
            IncompleteBody,
            "the body is shorter than was said"
        )),
        _ => Ok(()),
    }
}

/// Writes and measures a step, both at a time.
async fn pass(mut upload: Upload, mut digests: Digests, step: Step) -> S3Result<(Upload, Digests)> {
    // Whoever is done with it last gives back its permit.
    let step = Arc::new(step);
    let measuring = Arc::clone(&step);
    let measure = blocking(move || {
        digests.add_step(measuring.bytes.clone());
        Ok(digests)
    });
    let write = blocking(move || {
        for bytes in &step.bytes {
            upload.write(bytes)?;
        }
        Ok(upload)
    });
    let (measured, written) = tokio::join!(measure, write);
    Ok((written?, measured?))
}

/// Bytes of a body that arrived together, and the permit to hold them.
#[derive(Default)]
struct Step {
    bytes: Vec<Bytes>,
    len: usize,
    /// The body ends with them.
    is_last: bool,
    _permit: Option<SemaphorePermit<'static>>,
}

/// Waits for bytes, and takes with them what arrives until the step is full or, a moment after the one before it has
/// `passed`: the fewer steps there are, the less often threads are woken.
async fn next_step(body: &mut StreamingBlob, passed: &mut oneshot::Receiver<()>) -> S3Result<Step> {
    let mut step = Step::default();
    let mut next = match tokio::time::timeout(PATIENCE, body.next()).await {
        Ok(next) => Some(next),
        Err(_) => return Err(S3ErrorCode::RequestTimeout.into()),
    };
    step._permit = Some(STEPS.acquire().await.map_err(S3Error::internal_error)?);
    let mut end = None;
    while let Some(item) = next {
        match item {
            None => {
                step.is_last = true;
                return Ok(step);
            }
            Some(Ok(bytes)) => {
                step.len += bytes.len();
                step.bytes.push(bytes);
            }
            Some(Err(error)) => return Err(body_error(&error)),
        }
        // One more than fits, to see whether the body ends there.
        if step.len > STEP_BYTES || step.bytes.len() >= STEP_PIECES {
            break;
        }
        next = 'more: {
            if end.is_none() {
                tokio::select! {
                    biased;
                    next = body.next() => break 'more Some(next),
                    _ = &mut *passed => {}
                }
            }
            let linger = match STEPS.available_permits() {
                0 => Duration::ZERO,
                _ => LINGER,
            };
            let end = *end.get_or_insert_with(|| Instant::now() + linger);
            timeout_at(end, body.next()).await.ok()
        };
    }
    Ok(step)
}

/// What a body that ends in an error is for the client: its signature or a checksum does not fit, or it was cut.
fn body_error(error: &s3s::StdError) -> S3Error {
    let text = error.to_string();
    tracing::debug!("a body failed: {text}");
    // The errors of the streams have no public type to tell them by.
    if text.ends_with(bodies::BUSY) {
        return S3ErrorCode::SlowDown.into();
    }
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
