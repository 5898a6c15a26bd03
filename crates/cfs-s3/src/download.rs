//! The content of an object on its way to a client: read ahead by one step, never more.
//!
//! A client may take its time with a step, and the memory is not ours meanwhile. So large steps are counted, over all
//! clients; when too many are on their way the others go on with small ones, and without reading ahead.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use cfs_format::Ino;
use cfs_fs::{Attr, Fs, FsError};
use futures_util::Stream;
use s3s::StdError;
use s3s::stream::{ByteStream, RemainingLength};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinHandle;

use crate::customer::Opening;
use crate::objects::Object;
use crate::records::{self, Content, name};

/// Bytes of a large step.
const STEP_BYTES: u64 = 1 << 20;
/// Large steps at a time.
static STEPS: Semaphore = Semaphore::const_new(64);
/// Bytes of a small step.
const SMALL_STEP_BYTES: u64 = 64 << 10;

/// Bytes of a large step, until the client has them.
struct Counted {
    bytes: Vec<u8>,
    _permit: SemaphorePermit<'static>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Keeps a file, whose name may go meanwhile, until it has been read.
pub(crate) struct Opened {
    fs: Arc<Fs>,
    ino: Ino,
}

impl Opened {
    /// Opens a file.
    ///
    /// # Errors
    /// [`cfs_fs::FsError::NotFound`].
    pub(crate) fn new(fs: Arc<Fs>, ino: Ino) -> cfs_fs::Result<Self> {
        fs.open(ino)?;
        Ok(Self { fs, ino })
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Err(error) = self.fs.release(self.ino) {
            tracing::warn!(inode = self.ino.0, "it stays for now: {error}");
        }
    }
}

/// The content that was promised.
pub(crate) struct Promised {
    etag: String,
    attr: Attr,
}

impl Promised {
    pub(crate) fn new(object: &Object) -> Self {
        Self {
            etag: object.content.etag.clone(),
            attr: object.attr,
        }
    }

    /// Whether a file still has it. Its times and size tell where its digests could not be kept.
    pub(crate) fn is_kept(&self, fs: &Fs, ino: Ino) -> cfs_fs::Result<bool> {
        let (attr, record) = fs.described(ino, name::CONTENT)?;
        let content: Option<Content> = record.map(|bytes| records::decode(&bytes)).transpose()?;
        Ok(match content {
            Some(content) => content.etag == self.etag,
            None => (attr.size, attr.mtime) == (self.attr.size, self.attr.mtime),
        })
    }
}

/// A range of an opened file. When its last bytes have been read the file is looked at again: what was changed meanwhile, as
/// a mount can, is not ended as if it were what was promised.
pub(crate) struct Download {
    file: Arc<Opened>,
    promised: Arc<Promised>,
    opening: Option<Arc<Opening>>,
    at: u64,
    end: u64,
    reading: Option<JoinHandle<cfs_fs::Result<Bytes>>>,
}

impl Download {
    /// The bytes from `at` to `end`, which is within the object.
    pub(crate) fn new(
        file: Opened,
        promised: Promised,
        opening: Option<Arc<Opening>>,
        Range { start: at, end }: Range<u64>,
    ) -> Self {
        let mut download = Self {
            file: Arc::new(file),
            promised: Arc::new(promised),
            opening,
            at,
            end,
            reading: None,
        };
        download.read();
        download
    }

    /// Begins to read the next step.
    fn read(&mut self) {
        let left = self.end.saturating_sub(self.at);
        if left == 0 {
            return;
        }
        let permit = match left > SMALL_STEP_BYTES {
            true => STEPS.try_acquire().ok(),
            false => None,
        };
        let most = match permit {
            Some(_) => STEP_BYTES,
            None => SMALL_STEP_BYTES,
        };
        let (file, at, len) = (Arc::clone(&self.file), self.at, left.min(most) as usize);
        let opening = self.opening.clone();
        let promised = (len as u64 == left).then(|| Arc::clone(&self.promised));
        self.reading = Some(tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            match opening {
                Some(opening) => bytes = opening.read(&file.fs, file.ino, at, len as u64)?,
                None => {
                    file.fs.read(file.ino, at, len, &mut bytes)?;
                }
            }
            if let Some(promised) = promised
                && !promised.is_kept(&file.fs, file.ino)?
            {
                return Err(FsError::Changed);
            }
            Ok(match permit {
                Some(_permit) => Bytes::from_owner(Counted { bytes, _permit }),
                None => bytes.into(),
            })
        }));
    }
}

impl Stream for Download {
    type Item = Result<Bytes, StdError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.reading.is_none() {
            self.read();
        }
        let Some(reading) = &mut self.reading else {
            return Poll::Ready(None);
        };
        let read = ready!(Pin::new(reading).poll(context));
        self.reading = None;
        let bytes = match read {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error @ FsError::Changed)) => {
                // Without the last bytes the client takes what it has for a part.
                tracing::debug!(inode = self.file.ino.0, "it was changed while it was read");
                return Poll::Ready(Some(Err(error.into())));
            }
            Ok(Err(error)) => {
                tracing::error!(inode = self.file.ino.0, "an object cannot be read: {error}");
                return Poll::Ready(Some(Err(error.into())));
            }
            Err(error) => return Poll::Ready(Some(Err(error.into()))),
        };
        if bytes.is_empty() {
            // It was cut through the mount; the length that was promised cannot be kept.
            return Poll::Ready(Some(Err("the file has become shorter".into())));
        }
        self.at += bytes.len() as u64;
        if bytes.len() as u64 > SMALL_STEP_BYTES {
            self.read();
        }
        Poll::Ready(Some(Ok(bytes)))
    }
}

impl ByteStream for Download {
    fn remaining_length(&self) -> RemainingLength {
        // What is being read is part of it, as `at` moves on when it has been.
        match usize::try_from(self.end - self.at.min(self.end)) {
            Ok(bytes) => RemainingLength::new_exact(bytes),
            Err(_) => RemainingLength::unknown(),
        }
    }
}
