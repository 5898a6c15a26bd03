//! Sealing by position: the nonce is the place where the bytes will lie.
//!
//! A place is a segment sequence number, which is never used twice, and a byte offset in that segment. Each purpose
//! has a key of its own, so a nonce repeats only when somebody seals two things for one place under one purpose, which
//! no caller may do.

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use cfs_format::SegmentSeq;
use cfs_format::segment::TAG_BYTES;
use cfs_format::superblock::{CIPHER_AES_256_GCM, CIPHER_CHACHA20_POLY1305};

/// Bytes of a tag.
pub(crate) const TAG: usize = TAG_BYTES as usize;

/// An authenticated cipher. Both take 32-byte keys, 12-byte nonces and make 16-byte tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    /// AES-256-GCM (NIST SP 800-38D).
    Aes256Gcm,
    /// ChaCha20-Poly1305 (RFC 8439), for machines without AES instructions.
    ChaCha20Poly1305,
}

impl Cipher {
    /// The cipher with this number in a superblock.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            CIPHER_AES_256_GCM => Some(Self::Aes256Gcm),
            CIPHER_CHACHA20_POLY1305 => Some(Self::ChaCha20Poly1305),
            _ => None,
        }
    }

    /// Its number in a superblock.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Aes256Gcm => CIPHER_AES_256_GCM,
            Self::ChaCha20Poly1305 => CIPHER_CHACHA20_POLY1305,
        }
    }

    /// A key schedule.
    pub(crate) fn schedule(self, key: &[u8; 32]) -> LessSafeKey {
        let algorithm = match self {
            Self::Aes256Gcm => &AES_256_GCM,
            Self::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        LessSafeKey::new(UnboundKey::new(algorithm, key).expect("both ciphers take 32-byte keys"))
    }
}

/// The bytes were not sealed with this key, for this place and associated data, or were changed since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the authentication tag does not match: damaged, moved, or sealed under another key")]
pub struct Forged;

/// A cipher with its key, for one purpose. The key schedule is made once.
pub struct BlockCipher {
    cipher: Cipher,
    key: LessSafeKey,
}

impl BlockCipher {
    /// The cipher under `key`.
    #[must_use]
    pub fn new(cipher: Cipher, key: &[u8; 32]) -> Self {
        Self {
            cipher,
            key: cipher.schedule(key),
        }
    }

    /// Which cipher it is.
    #[must_use]
    pub fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// Encrypts `buf[from..]` for the place and appends the tag. `aad` is authenticated with it, not kept.
    pub fn seal_in_place(
        &self,
        seq: SegmentSeq,
        offset: u32,
        aad: &[u8],
        buf: &mut Vec<u8>,
        from: usize,
    ) {
        let tag = self.seal_slice(seq, offset, aad, &mut buf[from..]);
        buf.extend_from_slice(&tag);
    }

    /// Encrypts `data` for the place and returns the tag, which belongs after it.
    #[must_use]
    pub fn seal_slice(
        &self,
        seq: SegmentSeq,
        offset: u32,
        aad: &[u8],
        data: &mut [u8],
    ) -> [u8; TAG] {
        let tag = self
            .key
            .seal_in_place_separate_tag(place_nonce(seq, offset), Aad::from(aad), data)
            .expect("a segment is far below the ciphers' limits");
        tag.as_ref().try_into().expect("tags of 16 bytes")
    }

    /// Checks and decrypts ciphertext and tag, and returns the plain bytes, which start where `buf` does.
    ///
    /// # Errors
    /// [`Forged`], also when `buf` is shorter than a tag; the content of `buf` is then unspecified.
    pub fn open_in_place<'buf>(
        &self,
        seq: SegmentSeq,
        offset: u32,
        aad: &[u8],
        buf: &'buf mut [u8],
    ) -> Result<&'buf mut [u8], Forged> {
        self.key
            .open_in_place(place_nonce(seq, offset), Aad::from(aad), buf)
            .map_err(|_| Forged)
    }
}

fn place_nonce(seq: SegmentSeq, offset: u32) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&seq.0.to_le_bytes());
    nonce[8..].copy_from_slice(&offset.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}
