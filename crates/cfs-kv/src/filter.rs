//! Filters: which keys a partition of a run cannot hold.
//!
//! A binary fuse filter (Graf and Lemire, "Binary Fuse Filters: Fast and Smaller Than Xor Filters", JEA 2022) of
//! 16-bit fingerprints over the keys' XXH3 hashes: 2.3 bytes a key, one false positive in 65,536.

use xorf::BinaryFuse16;

use crate::{
    block::{BLOCK_VERSION, KIND_FILTER},
    error::BadBlock,
};

/// Hash of a key for filters; part of the format.
pub(crate) fn key_hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

/// Kind, version, algorithm (1), zero, segment length, segments' total length, fingerprint count (u32 each), seed.
const HEADER_BYTES: usize = 24;
/// The only algorithm: binary fuse, arity 3, 16 bits.
const ALGORITHM: u8 = 1;

/// A filter in memory. Invariant: `fingerprints` has `segments_length + 2 * segment_length` elements, and
/// `segment_length` is a power of two, so that no hash leads beyond them.
#[derive(Debug)]
pub(crate) struct Filter {
    seed: u64,
    segment_length: u32,
    /// All segments but the last two.
    segments_length: u32,
    fingerprints: Box<[u16]>,
}

impl Filter {
    /// Whether a key with this hash may be there.
    pub(crate) fn may_contain(&self, hash: u64) -> bool {
        let mixed = mix(hash.wrapping_add(self.seed));
        let mask = self.segment_length - 1;
        let first = ((u128::from(mixed) * u128::from(self.segments_length)) >> 64) as u32;
        let second = (first + self.segment_length) ^ ((mixed >> 18) as u32 & mask);
        let third = (first + 2 * self.segment_length) ^ (mixed as u32 & mask);
        let fingerprint = (mixed ^ (mixed >> 32)) as u16;
        let at = |index: u32| self.fingerprints[index as usize];
        fingerprint == at(first) ^ at(second) ^ at(third)
    }

    /// Bytes of memory that it takes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.fingerprints.len() * 2 + size_of::<Self>()
    }

    /// A filter over these hashes, which it sorts and from which it removes duplicates. `None` when none could be
    /// found, which does not happen to hashes that differ, but costs no more than some reads if it does.
    pub(crate) fn build(hashes: &mut Vec<u64>) -> Option<Self> {
        hashes.sort_unstable();
        hashes.dedup();
        let built = BinaryFuse16::try_from(&*hashes).ok()?;
        Some(Self {
            seed: built.descriptor.seed,
            segment_length: built.descriptor.segment_length,
            segments_length: built.descriptor.segment_count_length,
            fingerprints: built.fingerprints,
        })
    }

    /// The block that holds it.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.fingerprints.len() * 2);
        bytes.extend_from_slice(&[KIND_FILTER, BLOCK_VERSION, ALGORITHM, 0]);
        bytes.extend_from_slice(&self.segment_length.to_le_bytes());
        bytes.extend_from_slice(&self.segments_length.to_le_bytes());
        bytes.extend_from_slice(&(self.fingerprints.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.seed.to_le_bytes());
        for fingerprint in &self.fingerprints {
            bytes.extend_from_slice(&fingerprint.to_le_bytes());
        }
        bytes
    }

    /// The filter that a block holds. Checks that no hash can lead beyond its fingerprints.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, BadBlock> {
        let (header, rest) = bytes
            .split_first_chunk::<HEADER_BYTES>()
            .ok_or(BadBlock("filter shorter than its header"))?;
        if header[..3] != [KIND_FILTER, BLOCK_VERSION, ALGORITHM] {
            return Err(BadBlock("no filter of a known version"));
        }
        let number = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (segment_length, segments_length, count) = (number(4), number(8), number(12));
        let seed = u64::from(number(16)) | u64::from(number(20)) << 32;
        let fingerprints_needed = u64::from(segments_length) + 2 * u64::from(segment_length);
        if !segment_length.is_power_of_two()
            || segments_length % segment_length != 0
            || segments_length == 0
            || u64::from(count) != fingerprints_needed
        {
            return Err(BadBlock("filter with wrong dimensions"));
        }
        if rest.len() as u64 != 2 * u64::from(count) {
            return Err(BadBlock("filter of a wrong length"));
        }
        let fingerprints = rest
            .chunks_exact(2)
            .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
            .collect();
        Ok(Self {
            seed,
            segment_length,
            segments_length,
            fingerprints,
        })
    }
}

/// The finaliser of MurmurHash3 (64 bits).
fn mix(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}
