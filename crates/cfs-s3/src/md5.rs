//! MD5 (RFC 1321), which ETags are by custom. Nothing else of a PUT takes as long: one digest alone is what AWS-LC computes, whose
//! assembly makes 0.78 GB/s where the `md-5` crate makes 0.62 (by hand, 512 times 1 MiB, three times), and those of several
//! uploads share vectors.

#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(unused, unreachable_code, reason = "there are no vectors")
)]
pub(crate) mod lanes;
mod together;

use std::mem::MaybeUninit;

use aws_lc_sys::{MD5_CTX, MD5_Final, MD5_Init, MD5_Update};
use lanes::{BLOCK_BYTES, State};
pub(crate) use together::Together;

/// Bytes of a digest.
pub(crate) const DIGEST_BYTES: usize = 16;

/// A digest in the making.
pub(crate) struct Md5(MD5_CTX);

impl Md5 {
    pub(crate) fn new() -> Self {
        let mut context = MaybeUninit::uninit();
        // SAFETY: the function fills the state that it is given a pointer to, and always succeeds.
        unsafe {
            assert_eq!(MD5_Init(context.as_mut_ptr()), 1);
            Self(context.assume_init())
        }
    }

    /// The digest of these bytes.
    pub(crate) fn digest(bytes: &[u8]) -> [u8; DIGEST_BYTES] {
        let mut md5 = Self::new();
        md5.update(bytes);
        md5.finalize()
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        // SAFETY: the state was initialised; `bytes` can be read in its whole length. The function always succeeds.
        let done = unsafe { MD5_Update(&raw mut self.0, bytes.as_ptr().cast(), bytes.len()) };
        assert_eq!(done, 1);
    }

    /// The state, where no block has been begun.
    fn state(&mut self) -> &mut State {
        assert_eq!(self.missing(), 0);
        &mut self.0.h
    }

    /// Bytes that are missing in the block that was begun.
    fn missing(&self) -> usize {
        match self.0.num as usize {
            0 => 0,
            begun => BLOCK_BYTES - begun,
        }
    }

    /// Counts blocks that were put into the state.
    fn count(&mut self, blocks: usize) {
        let bits = (u64::from(self.0.Nh) << 32) | u64::from(self.0.Nl);
        let bits = bits.wrapping_add((blocks * BLOCK_BYTES * 8) as u64);
        (self.0.Nh, self.0.Nl) = ((bits >> 32) as u32, bits as u32);
    }

    pub(crate) fn finalize(mut self) -> [u8; DIGEST_BYTES] {
        let mut digest = [0; DIGEST_BYTES];
        // SAFETY: the state was initialised; the function writes 16 bytes, and always succeeds.
        let done = unsafe { MD5_Final(digest.as_mut_ptr(), &raw mut self.0) };
        assert_eq!(done, 1);
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers for tests (xorshift).
    pub(super) struct Random(pub(super) u64);

    impl Random {
        pub(super) fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }

        pub(super) fn below(&mut self, end: usize) -> usize {
            self.next() as usize % end
        }

        pub(super) fn bytes<const BYTES: usize>(&mut self) -> [u8; BYTES] {
            std::array::from_fn(|_| self.next() as u8)
        }
    }

    /// Those of RFC 1321, appendix A.5.
    #[test]
    fn digests_are_those_of_the_rfc() {
        let digits = "1234567890".repeat(8);
        for (text, digest) in [
            ("", "d41d8cd98f00b204e9800998ecf8427e"),
            ("a", "0cc175b9c0f1b6a831c399e269772661"),
            ("message digest", "f96b697d7cb7938d525a2f31aaf161d0"),
            (digits.as_str(), "57edf4a22be3c955ac49da2e2107b67a"),
        ] {
            let computed = u128::from_be_bytes(Md5::digest(text.as_bytes()));
            assert_eq!(format!("{computed:032x}"), digest);
        }
    }

    #[test]
    fn pieces_give_what_the_whole_does() {
        let bytes: Vec<u8> = (0..1000_u32).map(|number| (number * 7) as u8).collect();
        let whole = Md5::digest(&bytes);
        for step in [1, 63, 64, 65, 999] {
            let mut md5 = Md5::new();
            bytes.chunks(step).for_each(|piece| md5.update(piece));
            assert_eq!(md5.finalize(), whole, "in steps of {step}");
        }
    }

    /// Blocks that were computed elsewhere count as if they had been computed here.
    #[test]
    fn what_is_counted_is_what_the_library_counts() {
        for low in [0, 512, u32::MAX - 511, u32::MAX - 1023] {
            let mut here = Md5::new();
            (here.0.Nl, here.0.Nh) = (low, 3);
            let mut elsewhere = Md5(here.0);
            here.update(&[0; 3 * BLOCK_BYTES]);
            elsewhere.count(3);
            let length = |md5: &Md5| (md5.0.Nh, md5.0.Nl);
            assert_eq!(length(&elsewhere), length(&here), "after {low} bits");
        }
    }
}
