//! Filters: which keys a partition of a run cannot hold.
//!
//! A binary fuse filter (Graf and Lemire, "Binary Fuse Filters: Fast and Smaller Than Xor Filters", JEA 2022) of
//! 16-bit fingerprints over the keys' XXH3 hashes: 2.3 to 2.5 bytes a key, one false positive in 65,536. The crates
//! that build such filters count keys of a slot in a byte; whoever can choose names can make that overflow.

use crate::{
    block::{BLOCK_VERSION, KIND_FILTER},
    error::BadBlock,
    prefetch::prefetch,
};

/// Hash of a key for filters; part of the format.
pub(crate) fn key_hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

/// Kind, version, algorithm (1), zero, segment length, segments' total length, fingerprint count (u32 each), seed.
const HEADER_BYTES: usize = 24;
/// The only algorithm: binary fuse, arity 3, 16 bits.
const ALGORITHM: u8 = 1;
/// Seeds that are tried; the first one nearly always does.
const ATTEMPTS_MAX: u64 = 32;

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
    #[inline]
    pub(crate) fn may_contain(&self, hash: u64) -> bool {
        let mixed = self.mixed(hash);
        let [first, second, third] = self.slots(mixed);
        let fingerprints = &self.fingerprints;
        fingerprint(mixed) == fingerprints[first] ^ fingerprints[second] ^ fingerprints[third]
    }

    /// Fetches what `may_contain` will look at.
    #[inline]
    pub(crate) fn prefetch(&self, hash: u64) {
        for slot in self.slots(self.mixed(hash)) {
            prefetch(&self.fingerprints[slot]);
        }
    }

    #[inline]
    fn mixed(&self, hash: u64) -> u64 {
        mix(hash.wrapping_add(self.seed))
    }

    /// One slot in each of three successive segments.
    #[inline]
    fn slots(&self, mixed: u64) -> [usize; 3] {
        let mask = self.segment_length - 1;
        let first = ((u128::from(mixed) * u128::from(self.segments_length)) >> 64) as u32;
        let second = (first + self.segment_length) ^ ((mixed >> 18) as u32 & mask);
        let third = (first + 2 * self.segment_length) ^ (mixed as u32 & mask);
        [first as usize, second as usize, third as usize]
    }

    /// Bytes of memory that it takes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.fingerprints.len() * 2 + size_of::<Self>()
    }

    /// A filter over at least one hash; may sort the hashes and remove duplicates. `None` when none could be found:
    /// then nothing but reads is lost.
    pub(crate) fn build(hashes: &mut Vec<u64>) -> Option<Self> {
        for attempt in 0..ATTEMPTS_MAX {
            // Equal hashes make every attempt fail, but are so rare that they are not looked for before.
            if attempt == 1 {
                hashes.sort_unstable();
                hashes.dedup();
            }
            let mut filter = Self::empty(hashes.len(), mix(attempt + 1));
            if let Some(peeled) = filter.peel(hashes) {
                for (slot, mixed) in peeled.into_iter().rev() {
                    let others = filter.slots(mixed).map(|slot| filter.fingerprints[slot]);
                    let [first, second, third] = others;
                    filter.fingerprints[slot as usize] =
                        fingerprint(mixed) ^ first ^ second ^ third;
                }
                return Some(filter);
            }
        }
        None
    }

    /// Dimensions for this many hashes, as the paper has them.
    fn empty(count: usize, seed: u64) -> Self {
        let count = count.max(2) as f64;
        let segment_length = 1u32 << ((count.ln() / 3.33f64.ln() + 2.25) as u32).min(18);
        let slots_a_hash = (0.875 + 0.25 * 1e6f64.ln() / count.ln()).max(1.125);
        let segments = ((count * slots_a_hash) as u32)
            .div_ceil(segment_length)
            .max(3);
        let segments_length = (segments - 2) * segment_length;
        Self {
            seed,
            segment_length,
            segments_length,
            fingerprints: vec![0; (segments * segment_length) as usize].into_boxed_slice(),
        }
    }

    /// Takes away one hash after the other that has a slot to itself. The hashes in this order, mixed, with that slot;
    /// `None` when some remain.
    fn peel(&self, hashes: &[u64]) -> Option<Vec<(u32, u64)>> {
        /// The hashes that have this slot: how many, and their sum modulo two.
        #[derive(Clone, Copy, Default)]
        struct Slot {
            mixed: u64,
            count: u32,
        }
        let mut slots = vec![Slot::default(); self.fingerprints.len()];
        for hash in hashes {
            let mixed = self.mixed(*hash);
            for slot in self.slots(mixed) {
                slots[slot].mixed ^= mixed;
                slots[slot].count += 1;
            }
        }
        let mut peeled = Vec::with_capacity(hashes.len());
        let mut alone: Vec<u32> = (0..slots.len() as u32)
            .filter(|slot| slots[*slot as usize].count == 1)
            .collect();
        while let Some(number) = alone.pop() {
            let Slot { mixed, count } = slots[number as usize];
            if count != 1 {
                continue;
            }
            peeled.push((number, mixed));
            for slot in self.slots(mixed) {
                slots[slot].mixed ^= mixed;
                slots[slot].count -= 1;
                if slots[slot].count == 1 {
                    alone.push(slot as u32);
                }
            }
        }
        (peeled.len() == hashes.len()).then_some(peeled)
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

#[inline]
fn fingerprint(mixed: u64) -> u16 {
    (mixed ^ (mixed >> 32)) as u16
}

/// The finaliser of MurmurHash3 (64 bits).
fn mix(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(count: u64, of: u64) -> Vec<u64> {
        (0..count)
            .map(|number| key_hash(&(number << 8 | of).to_le_bytes()))
            .collect()
    }

    #[test]
    fn finds_all_and_little_else_at_every_size() {
        for count in (1..200).chain([1000, 30_000, 200_000]) {
            let filter = Filter::build(&mut hashes(count, 0)).expect("hashes differ");
            let filter = Filter::parse(&filter.encode()).expect("what was encoded");
            assert!(
                hashes(count, 0)
                    .iter()
                    .all(|hash| filter.may_contain(*hash)),
                "{count}"
            );
            let found = hashes(20_000, 1)
                .iter()
                .filter(|hash| filter.may_contain(**hash))
                .count();
            assert!(found <= 6, "{found} of 20,000 false at {count}");
        }
        let filter = Filter::build(&mut hashes(100_000, 0)).expect("hashes differ");
        assert!(
            filter.memory_bytes() < 250_000,
            "{} bytes",
            filter.memory_bytes()
        );
    }

    #[test]
    fn equal_hashes_and_crowded_slots_do_no_harm() {
        let mut equal = hashes(500, 0);
        equal.extend(hashes(300, 0));
        let filter = Filter::build(&mut equal).expect("they differ once duplicates are gone");
        assert!(hashes(500, 0).iter().all(|hash| filter.may_contain(*hash)));

        // With the first seed, all have the same first slot.
        let seed = mix(1);
        let crowded = (0..)
            .filter(|hash: &u64| mix(hash.wrapping_add(seed)) >> 54 == 0)
            .take(400);
        let mut crowded: Vec<u64> = crowded.collect();
        let filter = Filter::build(&mut crowded).expect("another seed helps");
        assert!(crowded.iter().all(|hash| filter.may_contain(*hash)));
    }

    #[test]
    fn damaged_bytes_never_lead_beyond_it() {
        let bytes = Filter::build(&mut hashes(50, 0))
            .expect("hashes differ")
            .encode();
        assert!((0..bytes.len()).all(|len| Filter::parse(&bytes[..len]).is_err()));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            if let Ok(filter) = Filter::parse(&damaged) {
                hashes(200, 2).iter().for_each(|hash| {
                    filter.may_contain(*hash);
                });
            }
        }
    }
}
