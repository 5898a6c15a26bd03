//! The search for a cut with AVX2: 32 positions a step, by their low 16 bits first.
//!
//! The low 16 bits of a gear hash are the sum of the last 16 table entries, the one `k` bytes back shifted by `k`. For
//! 16 neighbouring positions at once that sum is built in four doublings: pairs, fours, eights, sixteens. Positions
//! whose bits of `FILTER_MASK` are zero, about one in a thousand, get their whole hash computed, so the result is that
//! of the scalar search.

use std::arch::x86_64::{
    __m256i, _mm_loadu_si128, _mm256_add_epi16, _mm256_alignr_epi8, _mm256_and_si256,
    _mm256_broadcastsi128_si256, _mm256_cmpeq_epi16, _mm256_loadu_si256, _mm256_movemask_epi8,
    _mm256_or_si256, _mm256_packs_epi16, _mm256_permute2x128_si256, _mm256_permute4x64_epi64,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_setzero_si256, _mm256_shuffle_epi8,
    _mm256_slli_epi16, _mm256_srli_epi16, _mm256_testz_si256, _mm256_unpackhi_epi8,
    _mm256_unpacklo_epi8, _mm256_xor_si256,
};

use super::table::GearTable;
use super::{FILTER_MASK, WINDOW_BYTES};

/// Positions a step.
const STEP: usize = 32;

/// How far the search came.
pub(super) enum Search {
    /// The first position whose hash is zero under the mask.
    Found(usize),
    /// There is none before this one, at which fewer than a step's bytes were left; `end` when all were searched.
    Reached(usize),
}

/// The table's low 16 bits as four shuffle tables, and the sums of the 16 positions before.
struct Filter {
    low_by_low: __m256i,
    high_by_low: __m256i,
    low_by_high: __m256i,
    high_by_high: __m256i,
    ones: __m256i,
    pairs: __m256i,
    fours: __m256i,
    eights: __m256i,
}

/// Searches `[start, end)`, as `Chunker::find_scalar` does.
#[target_feature(enable = "avx2")]
pub(super) fn find(table: &GearTable, data: &[u8], start: usize, end: usize, mask: u64) -> Search {
    let mut filter = Filter::new(table);
    let mut position = start - STEP;
    // The first step ends at `start`, and has only its last position in range.
    let mut in_range = 1 << (STEP - 1);
    while let Some(bytes) = data[position..].first_chunk::<STEP>() {
        let mut candidates = filter.candidates(bytes) & in_range;
        while candidates != 0 {
            let candidate = position + candidates.trailing_zeros() as usize + 1;
            if candidate >= end {
                return Search::Reached(end);
            }
            if table.hash_window(window_before(data, candidate)) & mask == 0 {
                return Search::Found(candidate);
            }
            candidates &= candidates - 1;
        }
        in_range = u32::MAX;
        position += STEP;
        if position + 1 >= end {
            return Search::Reached(end);
        }
    }
    Search::Reached((position + 1).max(start))
}

fn window_before(data: &[u8], position: usize) -> &[u8; WINDOW_BYTES] {
    data[..position]
        .last_chunk()
        .expect("positions lie at least a window into the data")
}

impl Filter {
    #[target_feature(enable = "avx2")]
    #[inline]
    fn new(table: &GearTable) -> Self {
        let broadcast = |bytes: [u8; 16]| {
            // SAFETY: 16 bytes are read from an array of 16.
            _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
        };
        let (low, high) = table.nibble_values();
        let zero = _mm256_setzero_si256();
        Self {
            low_by_low: broadcast(low.map(|value| value.to_le_bytes()[0])),
            high_by_low: broadcast(low.map(|value| value.to_le_bytes()[1])),
            low_by_high: broadcast(high.map(|value| value.to_le_bytes()[0])),
            high_by_high: broadcast(high.map(|value| value.to_le_bytes()[1])),
            ones: zero,
            pairs: zero,
            fours: zero,
            eights: zero,
        }
    }

    /// A bit for each byte of the step: whether the position after it passes the filter.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn candidates(&mut self, bytes: &[u8; STEP]) -> u32 {
        // SAFETY: 32 bytes are read from an array of 32.
        let bytes = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
        // Swapped quarters, because unpacking works in each half by itself.
        let bytes = _mm256_permute4x64_epi64::<0b11_01_10_00>(bytes);
        let nibble = _mm256_set1_epi8(15);
        let low = _mm256_and_si256(bytes, nibble);
        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), nibble);
        let low_bytes = _mm256_xor_si256(
            _mm256_shuffle_epi8(self.low_by_low, low),
            _mm256_shuffle_epi8(self.low_by_high, high),
        );
        let high_bytes = _mm256_xor_si256(
            _mm256_shuffle_epi8(self.high_by_low, low),
            _mm256_shuffle_epi8(self.high_by_high, high),
        );
        let first = self.sums(_mm256_unpacklo_epi8(low_bytes, high_bytes));
        let second = self.sums(_mm256_unpackhi_epi8(low_bytes, high_bytes));

        let filter_mask = _mm256_set1_epi16(FILTER_MASK.cast_signed() as i16);
        let zero = _mm256_setzero_si256();
        let first = _mm256_cmpeq_epi16(_mm256_and_si256(first, filter_mask), zero);
        let second = _mm256_cmpeq_epi16(_mm256_and_si256(second, filter_mask), zero);
        let either = _mm256_or_si256(first, second);
        if _mm256_testz_si256(either, either) != 0 {
            return 0;
        }
        let packed = _mm256_packs_epi16(first, second);
        let in_order = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
        _mm256_movemask_epi8(in_order).cast_unsigned()
    }

    /// The low 16 bits of the hashes of 16 positions, from their own table entries.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn sums(&mut self, ones: __m256i) -> __m256i {
        let back_1 = _mm256_alignr_epi8::<14>(ones, straddle(self.ones, ones));
        let pairs = _mm256_add_epi16(ones, _mm256_slli_epi16::<1>(back_1));
        let back_2 = _mm256_alignr_epi8::<12>(pairs, straddle(self.pairs, pairs));
        let fours = _mm256_add_epi16(pairs, _mm256_slli_epi16::<2>(back_2));
        let back_4 = _mm256_alignr_epi8::<8>(fours, straddle(self.fours, fours));
        let eights = _mm256_add_epi16(fours, _mm256_slli_epi16::<4>(back_4));
        let back_8 = straddle(self.eights, eights);
        let sixteens = _mm256_add_epi16(eights, _mm256_slli_epi16::<8>(back_8));
        self.ones = ones;
        self.pairs = pairs;
        self.fours = fours;
        self.eights = eights;
        sixteens
    }
}

/// The upper half of `before` and the lower half of `now`.
#[target_feature(enable = "avx2")]
#[inline]
fn straddle(before: __m256i, now: __m256i) -> __m256i {
    _mm256_permute2x128_si256::<0x21>(before, now)
}
