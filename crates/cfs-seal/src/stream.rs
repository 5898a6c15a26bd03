//! Frames of a stream from one pool to another that has the same domain secret.
//!
//! Each stream has a key of its own, made from the secret and a salt that nobody has used before; a frame's nonce is its
//! number. So a frame that is changed, left out, repeated or moved does not open, and nobody without the secret can make
//! one. That the last one was not cut off is for the content to say.

use cfs_format::SegmentSeq;

use crate::block::{BlockCipher, Cipher, Forged, TAG};
use crate::keys::DomainSecret;

/// One direction of a stream: seals, or opens, its frames in order.
pub struct StreamCipher {
    cipher: BlockCipher,
    /// Number of the next frame.
    next: u64,
}

impl StreamCipher {
    /// The frames from the sender. `salt` is new for each stream.
    #[must_use]
    pub fn sender(secret: &DomainSecret, cipher: Cipher, salt: &[u8; 32]) -> Self {
        Self::new(secret, cipher, &[*salt, [0; 32]])
    }

    /// The frames that answer: both sides have a part in their key, so that a stream that is played again is not answered
    /// under the same one.
    #[must_use]
    pub fn answerer(
        secret: &DomainSecret,
        cipher: Cipher,
        salt: &[u8; 32],
        answer_salt: &[u8; 32],
    ) -> Self {
        Self::new(secret, cipher, &[*salt, *answer_salt])
    }

    fn new(secret: &DomainSecret, cipher: Cipher, salts: &[[u8; 32]; 2]) -> Self {
        Self {
            cipher: BlockCipher::new(cipher, &secret.stream_key(salts)),
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
        let sender = || StreamCipher::sender(&secret, Cipher::Aes256Gcm, &[1; 32]);
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
        let mut other = StreamCipher::answerer(&secret, Cipher::Aes256Gcm, &[1; 32], &[2; 32]);
        assert_eq!(other.open(&mut frames[0].clone()), Err(Forged));
    }
}
