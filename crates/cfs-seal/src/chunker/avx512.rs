//! Blocks of 512 bytes, 32 lanes.

use std::arch::x86_64::{
    __m512i, _mm512_add_epi16, _mm512_cmple_epu16_mask, _mm512_loadu_si512, _mm512_min_epu16,
    _mm512_permutex2var_epi16, _mm512_permutexvar_epi16, _mm512_set1_epi16, _mm512_setzero_si512,
    _mm512_srli_epi16, _mm512_unpackhi_epi16, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64,
    _mm512_unpacklo_epi16, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64, _mm512_xor_si512,
};

use super::blocks::{PASSING_MAX, ROWS, Region};
use super::table::GearTable;

/// Bytes of a vector: four runs.
const ROW: usize = 64;
const LANES: usize = ROW / 2;

#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn find(region: &Region) -> Option<usize> {
    let mut filter = Filter::new(region.table, region.hash_before());
    region.find_by(|block| filter.passing(block))
}

struct Filter {
    /// What the low half of a byte contributes to its entry, and the high half. A lookup goes by 5 bits: both are there
    /// twice.
    low_half: __m512i,
    high_half: __m512i,
    /// For each lane the one of the run before its own; the first run's is the last lane of the block before.
    lane_before: __m512i,
    /// The hashes at the ends of the runs of the block before.
    ends: __m512i,
}

impl Filter {
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn new(table: &GearTable, hash_before: u16) -> Self {
        let [low_half, high_half] = table.halves();
        let lane_before = std::array::from_fn(|lane| {
            let before = match (lane % ROWS, lane / ROWS) {
                (0, 0) => 2 * LANES - 1,
                (row, 0) => LANES - ROWS + row - 1,
                _ => lane - ROWS,
            };
            before as u16
        });
        Self {
            low_half: load(&std::array::from_fn(|index| low_half[index % 16])),
            high_half: load(&std::array::from_fn(|index| high_half[index % 16])),
            lane_before: load(&lane_before),
            ends: _mm512_set1_epi16(hash_before.cast_signed()),
        }
    }

    /// A bit for each lane: whether a hash of its run passes.
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn passing(&mut self, block: &[u8; ROWS * ROW]) -> u32 {
        let entries = self.entries(block);
        let mut ends = _mm512_setzero_si512();
        for entry in entries {
            ends = _mm512_add_epi16(_mm512_add_epi16(ends, ends), entry);
        }
        let mut hash = _mm512_permutex2var_epi16(ends, self.lane_before, self.ends);
        self.ends = ends;
        let mut least = _mm512_set1_epi16(-1);
        for entry in entries {
            hash = _mm512_add_epi16(_mm512_add_epi16(hash, hash), entry);
            least = _mm512_min_epu16(least, hash);
        }
        _mm512_cmple_epu16_mask(least, _mm512_set1_epi16(PASSING_MAX.cast_signed()))
    }

    /// The low 16 bits of the table's entries for the bytes of each run, one after the other.
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn entries(&self, block: &[u8; ROWS * ROW]) -> [__m512i; 16] {
        let mut entries = [_mm512_setzero_si512(); 16];
        let (pairs, _) = entries.as_chunks_mut();
        for (pair, words) in pairs.iter_mut().zip(transposed(block)) {
            *pair = [
                self.entry(words, _mm512_srli_epi16::<4>(words)),
                self.entry(
                    _mm512_srli_epi16::<8>(words),
                    _mm512_srli_epi16::<12>(words),
                ),
            ];
        }
        entries
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn entry(&self, low_half: __m512i, high_half: __m512i) -> __m512i {
        _mm512_xor_si512(
            _mm512_permutexvar_epi16(low_half, self.low_half),
            _mm512_permutexvar_epi16(high_half, self.high_half),
        )
    }
}

/// The words of each run, one after the other.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn transposed(block: &[u8; ROWS * ROW]) -> [__m512i; ROWS] {
    let mut rows = [_mm512_setzero_si512(); ROWS];
    for (row, bytes) in rows.iter_mut().zip(block.as_chunks().0) {
        *row = load_row(bytes);
    }
    let [a, b, c, d, e, f, g, h] = rows;
    let (ab, cd) = (_mm512_unpacklo_epi16(a, b), _mm512_unpacklo_epi16(c, d));
    let (ef, gh) = (_mm512_unpacklo_epi16(e, f), _mm512_unpacklo_epi16(g, h));
    let [w0, w1, w2, w3] = transposed_pairs([ab, cd, ef, gh]);
    let (ab, cd) = (_mm512_unpackhi_epi16(a, b), _mm512_unpackhi_epi16(c, d));
    let (ef, gh) = (_mm512_unpackhi_epi16(e, f), _mm512_unpackhi_epi16(g, h));
    let [w4, w5, w6, w7] = transposed_pairs([ab, cd, ef, gh]);
    [w0, w1, w2, w3, w4, w5, w6, w7]
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn transposed_pairs([ab, cd, ef, gh]: [__m512i; 4]) -> [__m512i; 4] {
    let (abcd, efgh) = (_mm512_unpacklo_epi32(ab, cd), _mm512_unpacklo_epi32(ef, gh));
    let (later_abcd, later_efgh) = (_mm512_unpackhi_epi32(ab, cd), _mm512_unpackhi_epi32(ef, gh));
    [
        _mm512_unpacklo_epi64(abcd, efgh),
        _mm512_unpackhi_epi64(abcd, efgh),
        _mm512_unpacklo_epi64(later_abcd, later_efgh),
        _mm512_unpackhi_epi64(later_abcd, later_efgh),
    ]
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load_row(bytes: &[u8; ROW]) -> __m512i {
    // SAFETY: 64 bytes are read from an array of 64; the instruction takes any alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load(words: &[u16; LANES]) -> __m512i {
    // SAFETY: 64 bytes are read from an array of 64; the instruction takes any alignment.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}
