//! Blocks of 256 bytes, 16 lanes.

use std::arch::x86_64::{
    __m128i, __m256i, _mm_loadu_si128, _mm256_add_epi16, _mm256_alignr_epi8, _mm256_and_si256,
    _mm256_blendv_epi8, _mm256_broadcastsi128_si256, _mm256_cmpeq_epi16, _mm256_loadu_si256,
    _mm256_min_epu16, _mm256_movemask_epi8, _mm256_packs_epi16, _mm256_permute2x128_si256,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_setzero_si256, _mm256_shuffle_epi8,
    _mm256_slli_epi16, _mm256_srli_epi16, _mm256_unpackhi_epi16, _mm256_unpackhi_epi32,
    _mm256_unpackhi_epi64, _mm256_unpacklo_epi16, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64,
    _mm256_xor_si256,
};

use super::blocks::{PASSING_MAX, ROWS, Region};
use super::table::GearTable;

/// Bytes of a vector: two runs.
const ROW: usize = 32;

#[target_feature(enable = "avx2")]
pub(super) fn find(region: &Region) -> Option<usize> {
    let mut filter = Filter::new(region.table, region.hash_before());
    region.find_by(|block| filter.passing(block))
}

struct Filter {
    /// What the halves of a byte contribute to the bytes of its entry, as in the table.
    half_bytes: [__m256i; 4],
    /// The hashes at the ends of the runs of the block before.
    ends: __m256i,
}

impl Filter {
    #[target_feature(enable = "avx2")]
    #[inline]
    fn new(table: &GearTable, hash_before: u16) -> Self {
        let mut half_bytes = [_mm256_setzero_si256(); 4];
        for (vector, bytes) in half_bytes.iter_mut().zip(&table.half_bytes()) {
            *vector = _mm256_broadcastsi128_si256(load_half_row(bytes));
        }
        Self {
            half_bytes,
            ends: _mm256_set1_epi16(hash_before.cast_signed()),
        }
    }

    /// A bit for each lane: whether a hash of its run passes.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn passing(&mut self, block: &[u8; ROWS * ROW]) -> u32 {
        let entries = self.entries(block);
        let mut ends = _mm256_setzero_si256();
        for entry in entries {
            ends = _mm256_add_epi16(_mm256_add_epi16(ends, ends), entry);
        }
        // The first column follows on the second one of the row before, the second column on the first of its row.
        let of_second = _mm256_alignr_epi8::<14>(ends, self.ends);
        let mut hash = _mm256_permute2x128_si256::<0x21>(of_second, ends);
        self.ends = ends;
        let mut least = _mm256_set1_epi16(-1);
        for entry in entries {
            hash = _mm256_add_epi16(_mm256_add_epi16(hash, hash), entry);
            least = _mm256_min_epu16(least, hash);
        }
        let passing_max = _mm256_set1_epi16(PASSING_MAX.cast_signed());
        let passing = _mm256_cmpeq_epi16(_mm256_min_epu16(least, passing_max), least);
        // Each half is packed by itself.
        let packed = _mm256_packs_epi16(passing, _mm256_setzero_si256());
        let bits = _mm256_movemask_epi8(packed).cast_unsigned();
        (bits & 0xff) | (bits >> 8)
    }

    /// The low 16 bits of the table's entries for the bytes of each run, one after the other.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn entries(&self, block: &[u8; ROWS * ROW]) -> [__m256i; 16] {
        let nibble = _mm256_set1_epi8(15);
        let second_bytes = _mm256_set1_epi16(!0xff);
        let [low_by_low, high_by_low, low_by_high, high_by_high] = self.half_bytes;
        let mut entries = [_mm256_setzero_si256(); 16];
        let (pairs, _) = entries.as_chunks_mut();
        for (pair, words) in pairs.iter_mut().zip(transposed(block)) {
            let low = _mm256_and_si256(words, nibble);
            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(words), nibble);
            let low_bytes = _mm256_xor_si256(
                _mm256_shuffle_epi8(low_by_low, low),
                _mm256_shuffle_epi8(low_by_high, high),
            );
            let high_bytes = _mm256_xor_si256(
                _mm256_shuffle_epi8(high_by_low, low),
                _mm256_shuffle_epi8(high_by_high, high),
            );
            *pair = [
                _mm256_blendv_epi8(low_bytes, _mm256_slli_epi16::<8>(high_bytes), second_bytes),
                _mm256_blendv_epi8(_mm256_srli_epi16::<8>(low_bytes), high_bytes, second_bytes),
            ];
        }
        entries
    }
}

/// The words of each run, one after the other.
#[target_feature(enable = "avx2")]
#[inline]
fn transposed(block: &[u8; ROWS * ROW]) -> [__m256i; ROWS] {
    let mut rows = [_mm256_setzero_si256(); ROWS];
    for (row, bytes) in rows.iter_mut().zip(block.as_chunks().0) {
        *row = load_row(bytes);
    }
    let [a, b, c, d, e, f, g, h] = rows;
    let (ab, cd) = (_mm256_unpacklo_epi16(a, b), _mm256_unpacklo_epi16(c, d));
    let (ef, gh) = (_mm256_unpacklo_epi16(e, f), _mm256_unpacklo_epi16(g, h));
    let [w0, w1, w2, w3] = transposed_pairs([ab, cd, ef, gh]);
    let (ab, cd) = (_mm256_unpackhi_epi16(a, b), _mm256_unpackhi_epi16(c, d));
    let (ef, gh) = (_mm256_unpackhi_epi16(e, f), _mm256_unpackhi_epi16(g, h));
    let [w4, w5, w6, w7] = transposed_pairs([ab, cd, ef, gh]);
    [w0, w1, w2, w3, w4, w5, w6, w7]
}

#[target_feature(enable = "avx2")]
#[inline]
fn transposed_pairs([ab, cd, ef, gh]: [__m256i; 4]) -> [__m256i; 4] {
    let (abcd, efgh) = (_mm256_unpacklo_epi32(ab, cd), _mm256_unpacklo_epi32(ef, gh));
    let (later_abcd, later_efgh) = (_mm256_unpackhi_epi32(ab, cd), _mm256_unpackhi_epi32(ef, gh));
    [
        _mm256_unpacklo_epi64(abcd, efgh),
        _mm256_unpackhi_epi64(abcd, efgh),
        _mm256_unpacklo_epi64(later_abcd, later_efgh),
        _mm256_unpackhi_epi64(later_abcd, later_efgh),
    ]
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_row(bytes: &[u8; ROW]) -> __m256i {
    // SAFETY: 32 bytes are read from an array of 32; the instruction takes any alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
fn load_half_row(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: 16 bytes are read from an array of 16; every x86-64 has the instruction.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}
