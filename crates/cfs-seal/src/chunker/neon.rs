//! Blocks of 128 bytes, 8 lanes.

use std::arch::aarch64::{
    uint8x16_t, uint16x8_t, vaddq_u16, vaddvq_u16, vandq_u8, vandq_u16, vcleq_u16, vdupq_n_u8,
    vdupq_n_u16, veorq_u8, vextq_u16, vld1q_u8, vld1q_u16, vminq_u16, vminvq_u16, vqtbl1q_u8,
    vreinterpretq_u8_u16, vreinterpretq_u16_u8, vreinterpretq_u16_u64, vreinterpretq_u32_u16,
    vreinterpretq_u64_u32, vshrq_n_u8, vtrn1q_u8, vtrn2q_u8, vzip1q_u16, vzip1q_u32, vzip1q_u64,
    vzip2q_u16, vzip2q_u32, vzip2q_u64,
};

use super::blocks::{PASSING_MAX, ROWS, Region};
use super::table::GearTable;

/// Bytes of a vector: one run.
const ROW: usize = 16;

#[target_feature(enable = "neon")]
pub(super) fn find(region: &Region) -> Option<usize> {
    let mut filter = Filter::new(region.table, region.hash_before());
    region.find_by(|block| filter.passing(block))
}

struct Filter {
    /// What the halves of a byte contribute to the bytes of its entry, as in the table.
    half_bytes: [uint8x16_t; 4],
    /// The bit of each lane.
    lane_bits: uint16x8_t,
    /// The hashes at the ends of the runs of the block before.
    ends: uint16x8_t,
}

impl Filter {
    #[target_feature(enable = "neon")]
    #[inline]
    fn new(table: &GearTable, hash_before: u16) -> Self {
        let mut half_bytes = [vdupq_n_u8(0); 4];
        for (vector, bytes) in half_bytes.iter_mut().zip(&table.half_bytes()) {
            *vector = load(bytes);
        }
        Self {
            half_bytes,
            lane_bits: load_words(&[1, 2, 4, 8, 16, 32, 64, 128]),
            ends: vdupq_n_u16(hash_before),
        }
    }

    /// A bit for each lane: whether a hash of its run passes.
    #[target_feature(enable = "neon")]
    #[inline]
    fn passing(&mut self, block: &[u8; ROWS * ROW]) -> u32 {
        let entries = self.entries(block);
        let mut ends = vdupq_n_u16(0);
        for entry in entries {
            ends = vaddq_u16(vaddq_u16(ends, ends), entry);
        }
        let mut hash = vextq_u16::<7>(self.ends, ends);
        self.ends = ends;
        let mut least = vdupq_n_u16(u16::MAX);
        for entry in entries {
            hash = vaddq_u16(vaddq_u16(hash, hash), entry);
            least = vminq_u16(least, hash);
        }
        if vminvq_u16(least) > PASSING_MAX {
            return 0;
        }
        let passing = vcleq_u16(least, vdupq_n_u16(PASSING_MAX));
        u32::from(vaddvq_u16(vandq_u16(passing, self.lane_bits)))
    }

    /// The low 16 bits of the table's entries for the bytes of each run, one after the other.
    #[target_feature(enable = "neon")]
    #[inline]
    fn entries(&self, block: &[u8; ROWS * ROW]) -> [uint16x8_t; 16] {
        let [low_by_low, high_by_low, low_by_high, high_by_high] = self.half_bytes;
        let mut entries = [vdupq_n_u16(0); 16];
        let (pairs, _) = entries.as_chunks_mut();
        for (pair, words) in pairs.iter_mut().zip(transposed(block)) {
            let bytes = vreinterpretq_u8_u16(words);
            let low = vandq_u8(bytes, vdupq_n_u8(15));
            let high = vshrq_n_u8::<4>(bytes);
            let low_bytes = veorq_u8(vqtbl1q_u8(low_by_low, low), vqtbl1q_u8(low_by_high, high));
            let high_bytes = veorq_u8(vqtbl1q_u8(high_by_low, low), vqtbl1q_u8(high_by_high, high));
            *pair = [
                vreinterpretq_u16_u8(vtrn1q_u8(low_bytes, high_bytes)),
                vreinterpretq_u16_u8(vtrn2q_u8(low_bytes, high_bytes)),
            ];
        }
        entries
    }
}

/// The words of each run, one after the other.
#[target_feature(enable = "neon")]
#[inline]
fn transposed(block: &[u8; ROWS * ROW]) -> [uint16x8_t; ROWS] {
    let mut rows = [vdupq_n_u16(0); ROWS];
    for (row, bytes) in rows.iter_mut().zip(block.as_chunks().0) {
        *row = vreinterpretq_u16_u8(load(bytes));
    }
    let [a, b, c, d, e, f, g, h] = rows;
    let (ab, cd) = (vzip1q_u16(a, b), vzip1q_u16(c, d));
    let (ef, gh) = (vzip1q_u16(e, f), vzip1q_u16(g, h));
    let [w0, w1, w2, w3] = transposed_pairs([ab, cd, ef, gh]);
    let (ab, cd) = (vzip2q_u16(a, b), vzip2q_u16(c, d));
    let (ef, gh) = (vzip2q_u16(e, f), vzip2q_u16(g, h));
    let [w4, w5, w6, w7] = transposed_pairs([ab, cd, ef, gh]);
    [w0, w1, w2, w3, w4, w5, w6, w7]
}

#[target_feature(enable = "neon")]
#[inline]
fn transposed_pairs([ab, cd, ef, gh]: [uint16x8_t; 4]) -> [uint16x8_t; 4] {
    let (ab, cd) = (vreinterpretq_u32_u16(ab), vreinterpretq_u32_u16(cd));
    let (ef, gh) = (vreinterpretq_u32_u16(ef), vreinterpretq_u32_u16(gh));
    let abcd = vreinterpretq_u64_u32(vzip1q_u32(ab, cd));
    let efgh = vreinterpretq_u64_u32(vzip1q_u32(ef, gh));
    let later_abcd = vreinterpretq_u64_u32(vzip2q_u32(ab, cd));
    let later_efgh = vreinterpretq_u64_u32(vzip2q_u32(ef, gh));
    [
        vreinterpretq_u16_u64(vzip1q_u64(abcd, efgh)),
        vreinterpretq_u16_u64(vzip2q_u64(abcd, efgh)),
        vreinterpretq_u16_u64(vzip1q_u64(later_abcd, later_efgh)),
        vreinterpretq_u16_u64(vzip2q_u64(later_abcd, later_efgh)),
    ]
}

#[target_feature(enable = "neon")]
#[inline]
fn load(bytes: &[u8; ROW]) -> uint8x16_t {
    // SAFETY: 16 bytes are read from an array of 16; any alignment is allowed.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

#[target_feature(enable = "neon")]
#[inline]
fn load_words(words: &[u16; 8]) -> uint16x8_t {
    // SAFETY: 16 bytes are read from an array of 16.
    unsafe { vld1q_u16(words.as_ptr()) }
}
