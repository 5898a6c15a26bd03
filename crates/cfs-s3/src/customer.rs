//! Keys that clients bring (SSE-C): they come with each request, and none is kept.
//!
//! What is stored is sealed under the key ([`cfs_seal::customer`]) before it reaches the file system, so that the mount shows
//! what nobody can read, and content deduplicates with what has the same key alone. Beside it is kept what tells whether
//! a key is the right one. Each part of an upload is a piece sealed by itself.

use std::sync::Arc;

use cfs_format::Ino;
use cfs_fs::{Fs, FsError};
use cfs_seal::customer::{BLOCK_BYTES, BLOCK_TAG_BYTES, CustomerKey, sealed_bytes};
use s3s::dto::ServerSideEncryption;
use s3s::{S3Error, S3Result, s3_error};

use crate::errors::{custom, from_fs};
use crate::face::Face;
use crate::md5::Md5;
use crate::objects::hex;
use crate::parts::{Part, sum};
use crate::records::Customer;

/// The algorithm that clients name.
pub(crate) const ALGORITHM: &str = "AES256";

/// A key that came with a request.
pub(crate) struct Brought {
    pub(crate) key: CustomerKey,
    /// Base64 of its MD5, as the client has given it.
    pub(crate) md5: String,
    /// Its name, if the pool keeps it and the client has only named it.
    pub(crate) kms: Option<String>,
}

/// What a request says of a key.
pub(crate) struct Given<'a> {
    pub(crate) algorithm: Option<&'a String>,
    pub(crate) key: Option<&'a String>,
    pub(crate) md5: Option<&'a String>,
}

impl Given<'_> {
    /// The key, if one is given.
    ///
    /// # Errors
    /// `InvalidEncryptionAlgorithmError`, `InvalidArgument`.
    pub(crate) fn brought(&self) -> S3Result<Option<Arc<Brought>>> {
        if self.algorithm.is_none() && self.key.is_none() && self.md5.is_none() {
            return Ok(None);
        }
        if self.algorithm.is_some_and(|name| name != ALGORITHM) {
            return Err(custom(
                "InvalidEncryptionAlgorithmError",
                http::StatusCode::BAD_REQUEST,
                "a key that is brought is for AES256",
            ));
        }
        let (Some(_), Some(key), Some(md5)) = (self.algorithm, self.key, self.md5) else {
            return Err(s3_error!(
                InvalidArgument,
                "a key that is brought comes with its algorithm and its MD5"
            ));
        };
        let bytes: [u8; 32] = base64_simd::STANDARD
            .decode_to_vec(key.trim())
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| s3_error!(InvalidArgument, "a key that is brought has 32 bytes"))?;
        if base64_simd::STANDARD.encode_to_string(Md5::digest(&bytes)) != md5.trim() {
            return Err(s3_error!(
                InvalidArgument,
                "the key that is brought has another MD5"
            ));
        }
        Ok(Some(Arc::new(Brought {
            key: CustomerKey::new(&bytes),
            md5: md5.trim().to_owned(),
            kms: None,
        })))
    }

    /// The key of something that is to be made, which then has no other encryption.
    ///
    /// # Errors
    /// As [`Given::brought`].
    pub(crate) fn alone(
        &self,
        other: Option<&ServerSideEncryption>,
    ) -> S3Result<Option<Arc<Brought>>> {
        let brought = self.brought()?;
        match other.is_some() && brought.is_some() {
            true => Err(s3_error!(
                InvalidArgument,
                "a key that is brought excludes other encryption by the server"
            )),
            false => Ok(brought),
        }
    }
}

impl Brought {
    /// What is kept with content that is sealed under this key.
    pub(crate) fn customer(&self, salt: [u8; 16]) -> Customer {
        Customer {
            salt: hex(&salt),
            proof: hex(&self.key.proof(&salt)),
            bytes: 0,
            kms: self.kms.clone(),
        }
    }

    /// Whether content was sealed under this key.
    pub(crate) fn fits(&self, customer: &Customer) -> bool {
        let mut salt = [0; 16];
        let digits = |at: usize| customer.salt.get(2 * at..2 * at + 2);
        for (at, byte) in salt.iter_mut().enumerate() {
            match digits(at).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
                Some(number) => *byte = number,
                None => return false,
            }
        }
        let (own, kept) = (hex(&self.key.proof(&salt)), &customer.proof);
        let differing = own.bytes().zip(kept.bytes());
        own.len() == kept.len() && differing.fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
    }
}

fn refused(message: &'static str) -> S3Error {
    s3_error!(InvalidRequest, "{}", message)
}

impl Face {
    /// The key for content, if it takes one: the one that was brought, or that is kept.
    ///
    /// # Errors
    /// `InvalidRequest` when it takes another one, or none.
    pub(crate) fn key_for(
        &self,
        customer: Option<&Customer>,
        brought: Option<&Arc<Brought>>,
    ) -> S3Result<Option<Arc<Brought>>> {
        let key = match (customer, brought) {
            (None, None) => return Ok(None),
            (Some(customer), None) => match &customer.kms {
                Some(name) => self.kept_key(name)?,
                None => return Err(refused("the object takes the key that it was stored with")),
            },
            (Some(customer), Some(brought)) if customer.kms.is_none() => Arc::clone(brought),
            (_, Some(_)) => return Err(refused("the object has no key that a client keeps")),
        };
        match customer.is_some_and(|customer| key.fits(customer)) {
            true => Ok(Some(key)),
            false => Err(refused("the object was stored with another key")),
        }
    }
}

/// How sealed content is read.
pub(crate) struct Opening {
    key: Arc<Brought>,
    /// Bytes of each piece as clients know it; together no more than an object can have.
    pieces: Vec<u64>,
}

impl Opening {
    /// Of content with these parts that takes a key, which was brought or is kept.
    ///
    /// # Errors
    /// As [`Face::key_for`].
    pub(crate) fn of(
        face: &Face,
        customer: Option<&Customer>,
        brought: Option<&Arc<Brought>>,
        parts: &[Part],
    ) -> S3Result<Option<Arc<Self>>> {
        let key = face.key_for(customer, brought)?;
        let whole = customer.map_or(0, |customer| customer.bytes);
        let opening = key.map(|key| Self::new(key, whole, parts)).transpose();
        Ok(opening.map_err(from_fs)?.map(Arc::new))
    }

    /// Of content of so many bytes, with these parts, that was sealed under a key.
    ///
    /// # Errors
    /// [`FsError::Io`] when it is more than an object can have.
    pub(crate) fn new(key: Arc<Brought>, whole: u64, parts: &[Part]) -> Result<Self, FsError> {
        let pieces = match parts {
            [] => vec![whole],
            parts => parts.iter().map(|part| part.bytes).collect(),
        };
        match sum(pieces.iter().copied()) {
            Some(_) => Ok(Self { key, pieces }),
            None => Err(FsError::Io("a sealed object is too long to be one".into())),
        }
    }

    /// Up to `len` bytes from `at` on, at least one if there are any.
    ///
    /// # Errors
    /// [`FsError::Io`] when it does not open; what reading failed with.
    pub(crate) fn read(&self, fs: &Fs, ino: Ino, at: u64, len: u64) -> Result<Vec<u8>, FsError> {
        self.read_with(at, len, |offset, len, step| fs.read(ino, offset, len, step))
    }

    /// As [`Opening::read`], with what reads so many bytes of the file from an offset on.
    ///
    /// # Errors
    /// As [`Opening::read`].
    pub(crate) fn read_with(
        &self,
        at: u64,
        len: u64,
        mut read: impl FnMut(u64, usize, &mut Vec<u8>) -> Result<(), FsError>,
    ) -> Result<Vec<u8>, FsError> {
        let (mut start, mut sealed_start) = (0, 0);
        let Some(piece) = self.pieces.iter().copied().find(|piece| {
            let is_here = at < start + piece;
            if !is_here {
                start += piece;
                sealed_start += sealed_bytes(*piece);
            }
            is_here
        }) else {
            return Ok(Vec::new());
        };
        let whole = (BLOCK_BYTES + BLOCK_TAG_BYTES) as u64;
        let from = at - start;
        let to = from.saturating_add(len).min(piece);
        let first = from / BLOCK_BYTES as u64;
        let last = to.saturating_sub(1) / BLOCK_BYTES as u64;
        let sealed_end = ((last + 1) * whole).min(sealed_bytes(piece));
        let mut sealed = Vec::new();
        let mut step = Vec::new();
        let wanted = (sealed_end - first * whole) as usize;
        while sealed.len() < wanted {
            let offset = sealed_start + first * whole + sealed.len() as u64;
            read(offset, wanted - sealed.len(), &mut step)?;
            if step.is_empty() {
                return Err(FsError::Io("the object has become shorter".into()));
            }
            sealed.extend_from_slice(&step);
        }
        let last_of_piece = piece.div_ceil(BLOCK_BYTES as u64).max(1) - 1;
        let mut plain = Vec::with_capacity(wanted);
        for (index, block) in (first..).zip(sealed.chunks_mut(BLOCK_BYTES + BLOCK_TAG_BYTES)) {
            let opened = self
                .key
                .key
                .open(index, index == last_of_piece, block)
                .map_err(|_| FsError::Io("a sealed object does not open under its key".into()))?;
            plain.extend_from_slice(opened);
        }
        let skipped = (from - first * BLOCK_BYTES as u64) as usize;
        plain.truncate(skipped + (to - from) as usize);
        plain.drain(..skipped);
        Ok(plain)
    }
}

/// Content on its way into a file, sealed block by block.
pub(crate) struct Sealing {
    key: Arc<Brought>,
    block: Vec<u8>,
    index: u64,
    bytes: u64,
}

impl Sealing {
    pub(crate) fn new(key: Arc<Brought>) -> Self {
        Self {
            key,
            block: Vec::with_capacity(BLOCK_BYTES + BLOCK_TAG_BYTES),
            index: 0,
            bytes: 0,
        }
    }

    /// Takes bytes, and hands sealed blocks over. A full block waits until it is known not to be the last one.
    ///
    /// # Errors
    /// What `hand_over` fails with.
    pub(crate) fn add(
        &mut self,
        mut data: &[u8],
        mut hand_over: impl FnMut(&[u8]) -> S3Result<()>,
    ) -> S3Result<()> {
        self.bytes += data.len() as u64;
        while !data.is_empty() {
            if self.block.len() == BLOCK_BYTES {
                self.seal(false);
                hand_over(&self.block)?;
                self.block.clear();
            }
            let (now, later) = data.split_at(data.len().min(BLOCK_BYTES - self.block.len()));
            self.block.extend_from_slice(now);
            data = later;
        }
        Ok(())
    }

    /// The last block.
    pub(crate) fn finish(&mut self) -> &[u8] {
        self.seal(true);
        &self.block
    }

    /// Bytes taken.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What content with this MD5 is called, which is not to tell of it.
    pub(crate) fn name(&self, md5: &[u8]) -> String {
        hex(&self.key.key.name(md5))
    }

    fn seal(&mut self, is_last: bool) {
        self.key.key.seal(self.index, is_last, &mut self.block);
        self.index += 1;
    }
}
