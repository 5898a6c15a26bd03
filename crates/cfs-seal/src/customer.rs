//! Sealing under a key that a client brings, and that is kept nowhere.
//!
//! Content is sealed in blocks of [`BLOCK_BYTES`] with AES-256-GCM-SIV (RFC 8452), whose nonce is the block's place in its
//! piece and whether it is the last one. So the same content under the same key gives the same bytes, which deduplicate
//! among themselves and with nothing else, and what was moved, cut or lengthened does not open. That equal blocks at equal
//! places are seen to be equal is all that is revealed, and what deduplication is about.

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::block::Forged;

/// Bytes of content in a block; the last one has fewer, and none only where there is no content.
pub const BLOCK_BYTES: usize = 64 << 10;
/// Bytes that sealing adds to a block.
pub const BLOCK_TAG_BYTES: usize = 16;

/// Bytes that a piece of so many bytes has when it is sealed.
#[must_use]
pub fn sealed_bytes(bytes: u64) -> u64 {
    bytes + bytes.div_ceil(BLOCK_BYTES as u64).max(1) * BLOCK_TAG_BYTES as u64
}

/// What is derived from a client's key.
pub struct CustomerKey {
    blocks: LessSafeKey,
    proofs: Zeroizing<[u8; 32]>,
    names: Zeroizing<[u8; 32]>,
}

impl CustomerKey {
    /// Derives from a key of 32 bytes.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        let derive = |purpose: &str| Zeroizing::new(blake3::derive_key(purpose, key));
        let blocks = derive("ClaudeFS 2026-11 customer key: blocks of objects");
        let blocks =
            UnboundKey::new(&AES_256_GCM_SIV, &*blocks).expect("the cipher takes keys of 32 bytes");
        Self {
            blocks: LessSafeKey::new(blocks),
            proofs: derive("ClaudeFS 2026-11 customer key: proof of the key"),
            names: derive("ClaudeFS 2026-11 customer key: names of content"),
        }
    }

    /// What tells this key from another without telling the key: kept with its salt, and computed again from the key that
    /// is to open.
    #[must_use]
    pub fn proof(&self, salt: &[u8; 16]) -> [u8; 32] {
        *blake3::keyed_hash(&self.proofs, salt).as_bytes()
    }

    /// A name of content with this digest, which tells nothing of it to whoever has not the key.
    #[must_use]
    pub fn name(&self, digest: &[u8]) -> [u8; 16] {
        let name = blake3::keyed_hash(&self.names, digest);
        let mut half = [0; 16];
        half.copy_from_slice(&name.as_bytes()[..16]);
        half
    }

    fn nonce(index: u64, is_last: bool) -> Nonce {
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&index.to_le_bytes());
        nonce[8] = is_last.into();
        Nonce::assume_unique_for_key(nonce)
    }

    /// Seals a block, of at most [`BLOCK_BYTES`]; it grows by [`BLOCK_TAG_BYTES`].
    pub fn seal(&self, index: u64, is_last: bool, block: &mut Vec<u8>) {
        let nonce = Self::nonce(index, is_last);
        self.blocks
            .seal_in_place_append_tag(nonce, Aad::empty(), block)
            .expect("a block is far below the cipher's limit");
    }

    /// Opens a block, and returns its content, which starts where `block` does.
    ///
    /// # Errors
    /// [`Forged`]; the content of `block` is then unspecified.
    pub fn open<'block>(
        &self,
        index: u64,
        is_last: bool,
        block: &'block mut [u8],
    ) -> Result<&'block mut [u8], Forged> {
        let nonce = Self::nonce(index, is_last);
        self.blocks
            .open_in_place(nonce, Aad::empty(), block)
            .map_err(|_| Forged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_open_under_their_key_at_their_place_alone() {
        let (key, other) = (CustomerKey::new(&[1; 32]), CustomerKey::new(&[2; 32]));
        let sealed = |key: &CustomerKey, index, is_last| {
            let mut block = b"content".to_vec();
            key.seal(index, is_last, &mut block);
            block
        };
        let block = sealed(&key, 3, false);
        assert_eq!(block.len(), 7 + BLOCK_TAG_BYTES);
        assert_eq!(block, sealed(&key, 3, false), "equal content deduplicates");
        assert_ne!(block, sealed(&other, 3, false));
        let open = |key: &CustomerKey, index, is_last, block: &[u8]| {
            let mut block = block.to_vec();
            key.open(index, is_last, &mut block).map(|it| it.to_vec())
        };
        assert_eq!(open(&key, 3, false, &block), Ok(b"content".to_vec()));
        assert_eq!(open(&other, 3, false, &block), Err(Forged));
        assert_eq!(open(&key, 4, false, &block), Err(Forged));
        assert_eq!(open(&key, 3, true, &block), Err(Forged));
        for at in 0..block.len() {
            let mut flipped = block.clone();
            flipped[at] ^= 1;
            assert_eq!(open(&key, 3, false, &flipped), Err(Forged), "byte {at}");
        }
        assert_eq!(open(&key, 3, false, &block[..15]), Err(Forged));
        assert_ne!(key.proof(&[0; 16]), other.proof(&[0; 16]));
        assert_ne!(key.proof(&[0; 16]), key.proof(&[1; 16]));
        let sizes = [(0, 16), (1, 17), (65_536, 65_552), (65_537, 65_569)];
        for (bytes, wanted) in sizes {
            assert_eq!(sealed_bytes(bytes), wanted);
        }
    }

    /// Golden: what is in pools stays readable.
    #[test]
    fn golden_block() {
        let key = CustomerKey::new(&[7; 32]);
        let mut block = b"golden".to_vec();
        key.seal(1, true, &mut block);
        let hex: String = block.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "241337c9931de2a921600ee9dcbaba0e92abd66c9cbc");
    }
}
