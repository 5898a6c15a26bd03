//! Keys, from what the user has to what seals a byte.
//!
//! ```text
//! passphrase or key file -> MasterKey --wraps--> ClusterKey -> one key for each purpose
//!                                                           -> mask of each domain's secret
//!                                     DomainSecret -> key of fingerprints, root of chunk keys, root of file keys
//! ```
//! Invariants: a key is used for one purpose only; every step down is a BLAKE3 key derivation with a context string of
//! its own, or keyed BLAKE3; key bytes are wiped when dropped and never printed.

mod mac;
mod unlock;

use cfs_format::{DomainId, Fingerprint};
use zeroize::Zeroizing;

pub use mac::{
    OpenHeaderError, check_superblock_checksum, check_superblock_mac, open_segment_header,
    seal_segment_header, seal_superblock,
};
pub use unlock::{MasterKeyError, WrongKey, render_key_file, unwrap_cluster_key, wrap_cluster_key};

use crate::block::{BlockCipher, Cipher};

/// 32 secret bytes, wiped when dropped.
type Secret = Zeroizing<[u8; 32]>;

macro_rules! opaque_debug {
    ($($name:ident),*) => {$(
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($name), "(secret)"))
            }
        }
    )*};
}

opaque_debug!(MasterKey, ClusterKey, DomainSecret, PassageKey, FileKey);

/// What the user's passphrase or key file turns into. It wraps the cluster key and does nothing else.
pub struct MasterKey {
    key: Secret,
}

/// The root of the pool's own keys.
pub struct ClusterKey {
    key: Secret,
    superblock_mac: Secret,
    segment_header_mac: Secret,
    domain_mask: Secret,
}

/// What the pool's own keys are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Headers of chunk records.
    RecordHeader,
    /// Batches of the journal.
    Journal,
    /// Blocks of tables, and their manifests.
    TableBlock,
    /// Footers of data segments.
    Footer,
}

impl Purpose {
    fn context(self) -> &'static str {
        match self {
            Self::RecordHeader => "ClaudeFS 2026-11 record header",
            Self::Journal => "ClaudeFS 2026-11 journal batch",
            Self::TableBlock => "ClaudeFS 2026-11 table block",
            Self::Footer => "ClaudeFS 2026-11 segment footer",
        }
    }
}

impl ClusterKey {
    /// The cluster key with these bytes, which a new pool draws at random.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let key = Zeroizing::new(bytes);
        Self {
            superblock_mac: derive("ClaudeFS 2026-11 superblock MAC", &key),
            segment_header_mac: derive("ClaudeFS 2026-11 segment header MAC", &key),
            domain_mask: derive("ClaudeFS 2026-11 domain secret mask", &key),
            key,
        }
    }

    /// The cipher for one purpose.
    #[must_use]
    pub fn block_cipher(&self, purpose: Purpose, cipher: Cipher) -> BlockCipher {
        BlockCipher::new(cipher, &derive(purpose.context(), &self.key))
    }

    /// The secret as it may be stored: masked for this domain. A domain's number must never get a second secret, or
    /// the two stored values would tell how the secrets differ.
    #[must_use]
    pub fn wrap_domain_secret(&self, domain: DomainId, secret: &DomainSecret) -> [u8; 32] {
        xor(&secret.root, &self.domain_mask(domain))
    }

    /// The secret from its stored form. The form has no tag of its own: it lies in a table block, which has.
    #[must_use]
    pub fn unwrap_domain_secret(&self, domain: DomainId, stored: &[u8; 32]) -> DomainSecret {
        DomainSecret::from_bytes(xor(stored, &self.domain_mask(domain)))
    }

    fn domain_mask(&self, domain: DomainId) -> Secret {
        keyed(&self.domain_mask, &[&domain.0.to_le_bytes()])
    }
}

/// The secret of a dedup domain. Who does not have it can neither name a chunk by its content nor open one.
pub struct DomainSecret {
    root: Secret,
    fingerprint: Secret,
    chunk: Secret,
    file: Secret,
}

impl DomainSecret {
    /// The secret with these bytes, which a new domain draws at random.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let root = Zeroizing::new(bytes);
        Self {
            fingerprint: derive("ClaudeFS 2026-11 fingerprint", &root),
            chunk: derive("ClaudeFS 2026-11 chunk key", &root),
            file: derive("ClaudeFS 2026-11 file key", &root),
            root,
        }
    }

    /// The name of `data` in this domain.
    #[must_use]
    pub fn fingerprint(&self, data: &[u8]) -> Fingerprint {
        Fingerprint(*blake3::keyed_hash(&self.fingerprint, data).as_bytes())
    }

    /// The key of what a stream says about a tree.
    pub(crate) fn stream_key(&self, salt: &[u8; 32]) -> Secret {
        keyed(&derive("ClaudeFS 2026-11 stream", &self.root), &[salt])
    }

    /// The key that a pool has which keeps snapshots without being able to read them.
    #[must_use]
    pub fn passage(&self) -> PassageKey {
        PassageKey(derive("ClaudeFS 2026-11 stream passage", &self.root))
    }

    /// The secret itself, for who makes another pool with it.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.root
    }

    /// The key of the one chunk with this name, salt, creation time and key epoch, given as their bytes in that order.
    pub(crate) fn chunk_key(&self, name_to_epoch: &[&[u8]]) -> Secret {
        keyed(&self.chunk, name_to_epoch)
    }
}

/// With this, frames of streams are made and opened. It names and opens no chunk, and nothing that tells of a tree.
pub struct PassageKey(Secret);

impl PassageKey {
    /// The key with these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The key itself, for the pool that is to have it.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key of one direction of a stream between pools.
    pub(crate) fn stream_key(&self, salts: &[[u8; 32]; 2]) -> Secret {
        keyed(&self.0, &[&salts[0], &salts[1]])
    }
}

/// The key of a file's extents. Without the file's salt it is gone for good.
pub struct FileKey {
    key: Secret,
}

impl FileKey {
    /// The key of the file that has this salt, in the domain of its volume.
    #[must_use]
    pub fn derive(secret: &DomainSecret, salt: &[u8; 16]) -> Self {
        Self {
            key: keyed(&secret.file, &[salt]),
        }
    }

    /// The fingerprint as the extent at `offset` keeps it. A file's commands have different timestamps, so no mask is
    /// used for two fingerprints.
    #[must_use]
    pub fn mask(&self, offset: u64, timestamp: u64, fingerprint: Fingerprint) -> [u8; 32] {
        xor(&fingerprint.0, &self.stream(offset, timestamp))
    }

    /// The fingerprint from what the extent keeps.
    #[must_use]
    pub fn unmask(&self, offset: u64, timestamp: u64, masked: [u8; 32]) -> Fingerprint {
        Fingerprint(xor(&masked, &self.stream(offset, timestamp)))
    }

    fn stream(&self, offset: u64, timestamp: u64) -> Secret {
        keyed(
            &self.key,
            &[&offset.to_le_bytes(), &timestamp.to_le_bytes()],
        )
    }
}

fn derive(context: &str, key: &Secret) -> Secret {
    Zeroizing::new(blake3::derive_key(context, &**key))
}

/// Keyed BLAKE3 of the parts, which together have the same length at every use of the key.
fn keyed(key: &Secret, parts: &[&[u8]]) -> Secret {
    let mut hasher = blake3::Hasher::new_keyed(key);
    for part in parts {
        hasher.update(part);
    }
    Zeroizing::new(*hasher.finalize().as_bytes())
}

fn xor(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    std::array::from_fn(|index| left[index] ^ right[index])
}

#[cfg(test)]
mod tests;
