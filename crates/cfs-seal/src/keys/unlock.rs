//! From a passphrase or a key file to the cluster key.
//!
//! The key slot lies in the superblock and is read before any key is known, so its fields are bounded here before they
//! are used. Changing the passphrase wraps the cluster key anew and touches nothing else.

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{Aad, Nonce};
use cfs_format::superblock::KeySlot;
use zerocopy::IntoBytes;
use zeroize::Zeroizing;

use super::{ClusterKey, MasterKey, derive};
use crate::block::Cipher;

/// A larger request is damage or an attack: nobody waits for it.
const ARGON2_MEMORY_KIB_MAX: u32 = 4 << 20;
const ARGON2_PASSES_MAX: u32 = 64;
const ARGON2_LANES_MAX: u32 = 64;

const KEY_FILE_PREFIX: &[u8] = b"cfs-key-1 ";
const KEY_FILE_BYTES: usize = KEY_FILE_PREFIX.len() + 64 + 1;

/// Bytes of a key slot before the wrapped key; they are authenticated with it.
const SLOT_AAD_BYTES: usize = size_of::<KeySlot>() - 48;

/// Why there is no master key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MasterKeyError {
    /// The key slot asks for what Argon2id does not offer or nobody would wait for.
    #[error("the key slot's Argon2id parameters are out of bounds: {0}")]
    Parameters(&'static str),
    /// The memory for Argon2id is not there.
    #[error("not enough memory for Argon2id")]
    OutOfMemory,
    /// Not a key file.
    #[error(
        "not a key file: expected one line, \"cfs-key-1 \" and 64 hexadecimal digits; found {0}"
    )]
    KeyFile(&'static str),
}

/// The master key does not open the slot, or the slot is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the passphrase or key file does not open this pool")]
pub struct WrongKey;

impl MasterKey {
    /// The key from a passphrase, by Argon2id (RFC 9106) with the slot's salt and costs. Takes as long and as much
    /// memory as the slot says.
    ///
    /// # Errors
    /// [`MasterKeyError`]: `Parameters` or `OutOfMemory`.
    pub fn from_passphrase(passphrase: &[u8], slot: &KeySlot) -> Result<Self, MasterKeyError> {
        let memory_kib = slot.argon2_memory_kib.get();
        let passes = slot.argon2_passes.get();
        let lanes = slot.argon2_lanes.get();
        if !(1..=ARGON2_LANES_MAX).contains(&lanes) {
            return Err(MasterKeyError::Parameters("lanes"));
        }
        if !(8 * lanes..=ARGON2_MEMORY_KIB_MAX).contains(&memory_kib) {
            return Err(MasterKeyError::Parameters("memory"));
        }
        if !(1..=ARGON2_PASSES_MAX).contains(&passes) {
            return Err(MasterKeyError::Parameters("passes"));
        }
        let params = Params::new(memory_kib, passes, lanes, Some(32))
            .map_err(|_| MasterKeyError::Parameters("refused"))?;
        let mut key = Zeroizing::new([0; 32]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(passphrase, &slot.argon2_salt, &mut *key)
            .map_err(|error| match error {
                argon2::Error::OutOfMemory => MasterKeyError::OutOfMemory,
                _ => MasterKeyError::Parameters("refused"),
            })?;
        Ok(Self {
            key: derive("ClaudeFS 2026-11 master key from passphrase", &key),
        })
    }

    /// The key from the content of a key file, as [`render_key_file`] makes it.
    ///
    /// # Errors
    /// [`MasterKeyError::KeyFile`].
    pub fn from_key_file_bytes(content: &[u8]) -> Result<Self, MasterKeyError> {
        let fault = |found| Err(MasterKeyError::KeyFile(found));
        let Some(rest) = content.strip_prefix(KEY_FILE_PREFIX) else {
            return fault("another beginning");
        };
        // An editor may have dropped the end of the line.
        let digits = rest.strip_suffix(b"\n").unwrap_or(rest);
        let Ok(digits) = <&[u8; 64]>::try_from(digits) else {
            return fault("another length");
        };
        let mut secret = Zeroizing::new([0; 32]);
        for (byte, pair) in secret.iter_mut().zip(digits.as_chunks::<2>().0) {
            let (Some(high), Some(low)) = (hex_value(pair[0]), hex_value(pair[1])) else {
                return fault("something else than hexadecimal digits");
            };
            *byte = high << 4 | low;
        }
        Ok(Self {
            key: derive("ClaudeFS 2026-11 master key from key file", &secret),
        })
    }
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// The content of a key file for 32 random bytes.
#[must_use]
pub fn render_key_file(random: &[u8; 32]) -> Zeroizing<Vec<u8>> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut content = Zeroizing::new(Vec::with_capacity(KEY_FILE_BYTES));
    content.extend_from_slice(KEY_FILE_PREFIX);
    for byte in random {
        content.push(DIGITS[usize::from(byte >> 4)]);
        content.push(DIGITS[usize::from(byte & 15)]);
    }
    content.push(b'\n');
    content
}

/// Puts the cluster key into the slot, whose other fields are final: they are authenticated with it. The slot's nonce
/// must be new for this master key.
pub fn wrap_cluster_key(master: &MasterKey, cluster: &ClusterKey, slot: &mut KeySlot) {
    let mut wrapped = Zeroizing::new(*cluster.key);
    let nonce = Nonce::assume_unique_for_key(slot.nonce);
    let tag = Cipher::Aes256Gcm
        .schedule(&master.key)
        .seal_in_place_separate_tag(
            nonce,
            Aad::from(&slot.as_bytes()[..SLOT_AAD_BYTES]),
            &mut *wrapped,
        )
        .expect("32 bytes are below the cipher's limits");
    slot.wrapped_cluster_key[..32].copy_from_slice(&*wrapped);
    slot.wrapped_cluster_key[32..].copy_from_slice(tag.as_ref());
}

/// The cluster key from the slot.
///
/// # Errors
/// [`WrongKey`].
pub fn unwrap_cluster_key(master: &MasterKey, slot: &KeySlot) -> Result<ClusterKey, WrongKey> {
    let mut wrapped = Zeroizing::new(slot.wrapped_cluster_key);
    let nonce = Nonce::assume_unique_for_key(slot.nonce);
    let plain = Cipher::Aes256Gcm
        .schedule(&master.key)
        .open_in_place(
            nonce,
            Aad::from(&slot.as_bytes()[..SLOT_AAD_BYTES]),
            &mut *wrapped,
        )
        .map_err(|_| WrongKey)?;
    let bytes = <[u8; 32]>::try_from(&*plain).map_err(|_| WrongKey)?;
    Ok(ClusterKey::from_bytes(bytes))
}
