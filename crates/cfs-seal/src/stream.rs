//! Frames of a stream from one pool to another, in two layers.
//!
//! Each stream has keys of its own, made from a secret and a salt that nobody has used before; a frame's nonce is its
//! number. So a frame that is changed, left out, repeated or moved does not open, and nobody without the secret can make
//! one. That the last one was not cut off is for the content to say.
//!
//! Frames that pass between pools are sealed under the passage key. What tells of the tree is sealed before under the
//! domain's secret, so that a pool that has only the passage key can keep it and not read it.

use cfs_format::SegmentSeq;

use crate::block::{BlockCipher, Cipher, Forged, TAG};
use crate::keys::{DomainSecret, PassageKey};

/// One direction of a stream: seals, or opens, its frames in order.
pub struct StreamCipher {
    cipher: BlockCipher,
    /// Number of the next frame.
    next: u64,
}

impl StreamCipher {
    /// The frames from the sender. `salt` is new for each stream.
    #[must_use]
    pub fn sender(passage: &PassageKey, cipher: Cipher, salt: &[u8; 32]) -> Self {
        Self::new(cipher, &passage.stream_key(&[*salt, [0; 32]]))
    }

    /// The frames that answer: both sides have a part in their key, so that a stream that is played again is not answered
    /// under the same one.
    #[must_use]
    pub fn answerer(
        passage: &PassageKey,
        cipher: Cipher,
        salt: &[u8; 32],
        answer_salt: &[u8; 32],
    ) -> Self {
        Self::new(cipher, &passage.stream_key(&[*salt, *answer_salt]))
    }

    /// What tells of a tree, within frames. `salt` is new for each.
    #[must_use]
    pub fn tree(secret: &DomainSecret, cipher: Cipher, salt: &[u8; 32]) -> Self {
        Self::new(cipher, &secret.stream_key(salt))
    }

    fn new(cipher: Cipher, key: &[u8; 32]) -> Self {
        Self {
            cipher: BlockCipher::new(cipher, key),
            next: 0,
        }
    }

    /// Encrypts `frame[from..]` and appends the tag.
    pub fn seal(&mut self, frame: &mut Vec<u8>, from: usize) {
        self.cipher
            .seal_in_place(SegmentSeq(self.next), 0, &[], frame, from);
        self.next += 1;
    }

    /// Opens the next frame; its plain bytes are at its start.
    ///
    /// # Errors
    /// [`Forged`]; the stream is over then.
    pub fn open<'f>(&mut self, frame: &'f mut [u8]) -> Result<&'f [u8], Forged> {
        let opened = self
            .cipher
            .open_in_place(SegmentSeq(self.next), 0, &[], frame)?;
        self.next += 1;
        Ok(opened)
    }

    /// Bytes that sealing adds.
    pub const OVERHEAD: usize = TAG;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_open_once_and_in_order() {
        let secret = DomainSecret::from_bytes([7; 32]);
        let passage = secret.passage();
        let sender = || StreamCipher::sender(&passage, Cipher::Aes256Gcm, &[1; 32]);
        let mut sealing = sender();
        let frames: Vec<Vec<u8>> = (0..3_u8)
            .map(|n| {
                let mut frame = vec![n; 9];
                sealing.seal(&mut frame, 0);
                frame
            })
            .collect();
        let mut opening = sender();
        assert_eq!(opening.open(&mut frames[0].clone()), Ok(&[0; 9][..]));
        assert_eq!(opening.open(&mut frames[0].clone()), Err(Forged));
        assert_eq!(opening.open(&mut frames[2].clone()), Err(Forged));
        assert_eq!(opening.open(&mut frames[1].clone()), Ok(&[1; 9][..]));
        let mut other = StreamCipher::answerer(&passage, Cipher::Aes256Gcm, &[1; 32], &[2; 32]);
        assert_eq!(other.open(&mut frames[0].clone()), Err(Forged));
        let mut tree = StreamCipher::tree(&secret, Cipher::Aes256Gcm, &[1; 32]);
        assert_eq!(tree.open(&mut frames[0].clone()), Err(Forged));
    }
}
