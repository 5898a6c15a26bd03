//! The content of an object on its way to a client: read ahead by one step, never more.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use cfs_format::Ino;
use cfs_fs::Fs;
use futures_util::Stream;
use s3s::StdError;
use s3s::stream::{ByteStream, RemainingLength};
use tokio::task::JoinHandle;

use crate::customer::Opening;

/// Bytes that are read at a time.
const STEP_BYTES: u64 = 1 << 20;

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

/// A range of an opened file.
pub(crate) struct Download {
    file: Arc<Opened>,
    opening: Option<Arc<Opening>>,
    at: u64,
    end: u64,
    reading: Option<JoinHandle<cfs_fs::Result<Bytes>>>,
}

impl Download {
    /// The bytes from `at` to `end`, which is within the object.
    pub(crate) fn new(file: Opened, opening: Option<Arc<Opening>>, at: u64, end: u64) -> Self {
        let mut download = Self {
            file: Arc::new(file),
            opening,
            at,
            end,
            reading: None,
        };
        download.read_ahead();
        download
    }

    fn read_ahead(&mut self) {
        if self.at >= self.end {
            return;
        }
        let (file, at) = (Arc::clone(&self.file), self.at);
        let opening = self.opening.clone();
        let len = (self.end - at).min(STEP_BYTES) as usize;
        self.reading = Some(tokio::task::spawn_blocking(move || {
            if let Some(opening) = opening {
                let bytes = opening.read(&file.fs, file.ino, at, len as u64)?;
                return Ok(bytes.into());
            }
            let mut buffer = Vec::new();
            file.fs.read(file.ino, at, len, &mut buffer)?;
            Ok(buffer.into())
        }));
    }
}

impl Stream for Download {
    type Item = Result<Bytes, StdError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(reading) = &mut self.reading else {
            return Poll::Ready(None);
        };
        let read = ready!(Pin::new(reading).poll(context));
        self.reading = None;
        let bytes = match read {
            Ok(Ok(bytes)) => bytes,
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
        self.read_ahead();
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
