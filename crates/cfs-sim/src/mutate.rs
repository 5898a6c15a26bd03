//! Changes bytes as fuzzers do, by a seed.

use crate::rng::Rng;

/// Longest input, bytes.
const INPUT_BYTES_MAX: usize = 64 << 10;
/// Numbers at which arithmetic goes wrong.
const NUMBERS: [u64; 12] = [
    0,
    1,
    2,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX - 1,
    u64::MAX,
];

/// Makes inputs out of others.
pub struct Mutator(Rng);

impl Mutator {
    /// The same seed makes the same inputs.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Rng::new(seed))
    }

    /// One of the inputs, changed in a few places, or as it is.
    ///
    /// # Panics
    /// When there is none.
    pub fn input(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut input = self.pick(corpus).clone();
        for _ in 0..self.0.below(6) {
            self.change(&mut input, corpus);
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn pick<'a>(&mut self, corpus: &'a [Vec<u8>]) -> &'a Vec<u8> {
        &corpus[self.0.below(corpus.len() as u64) as usize]
    }

    fn change(&mut self, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let len = input.len() as u64;
        let at = self.0.below(len + 1) as usize;
        let end = at + self.0.length(len - at as u64) as usize;
        match self.0.below(10) {
            0 | 1 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << self.0.below(8);
                }
            }
            2 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = self.0.next() as u8;
                }
            }
            3 | 4 => {
                let number = NUMBERS[self.0.below(NUMBERS.len() as u64) as usize];
                let width = 1 << self.0.below(4);
                let bytes = number.to_le_bytes();
                for (place, byte) in input[at..].iter_mut().zip(&bytes[..width]) {
                    *place = *byte;
                }
            }
            5 => {
                let count = self.0.length(16) as usize;
                let bytes: Vec<u8> = (0..count).map(|_| self.0.next() as u8).collect();
                input.splice(at..at, bytes);
            }
            6 => drop(input.drain(at..end)),
            7 => {
                let again = input[at..end].to_vec();
                input.splice(at..at, again);
            }
            8 => input.truncate(at),
            _ => {
                let other = self.pick(corpus).clone();
                let from = self.0.below(other.len() as u64 + 1) as usize;
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
    }
}
