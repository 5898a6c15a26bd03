//! The search for a cut with AVX2: by the low 16 bits of the hashes first.
//!
//! The low 16 bits of a gear hash are the sum of the last 16 table entries, the one `k` bytes back shifted by `k`. For
//! eight neighbouring positions at once that sum is built in four doublings: pairs, fours, eights, sixteens. The two
//! halves of a vector go through two neighbouring ranges of the data, so that nothing ever crosses between them.
//! Positions that pass `FILTER_MASK` get their whole hash computed, so the result is that of the scalar search.

use std::arch::x86_64::{
    __m128i, __m256i, _mm_loadu_si128, _mm256_add_epi16, _mm256_alignr_epi8, _mm256_and_si256,
    _mm256_broadcastsi128_si256, _mm256_cmpeq_epi16, _mm256_min_epu16, _mm256_movemask_epi8,
    _mm256_packs_epi16, _mm256_set_m128i, _mm256_set1_epi8, _mm256_set1_epi16,
    _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_slli_epi16, _mm256_srli_epi16,
    _mm256_testz_si256, _mm256_unpackhi_epi8, _mm256_unpacklo_epi8, _mm256_xor_si256,
};

use super::table::GearTable;
use super::{FILTER_MASK, WINDOW_BYTES};

/// Bytes of one range that go into a vector.
const LOAD: usize = 16;
/// Bytes of one range that are handled before anything is tested.
const STEP: usize = 2 * LOAD;
/// Bytes of one range. What is searched of the second one is wasted when the cut lies in the first.
const RANGE_MAX: usize = 2048;

/// How far the search came.
pub(super) enum Search {
    /// The first position whose hash is zero under the mask.
    Found(usize),
    /// There is none before this one, which is at most two steps from the end.
    Reached(usize),
}

/// Searches the positions `[start, end)`. `start` is at least a window, `end` at most the length of the data.
#[target_feature(enable = "avx2")]
pub(super) fn find(table: &GearTable, data: &[u8], start: usize, end: usize, mask: u64) -> Search {
    let mut position = start;
    loop {
        let range = ((end - position) / 2).min(RANGE_MAX) / STEP * STEP;
        if range == 0 {
            return Search::Reached(position);
        }
        if let Some(cut) = find_in_two_ranges(table, data, position, range, mask) {
            return Search::Found(cut);
        }
        position += 2 * range;
    }
}

/// The first cut in `[start, start + 2 * range)`.
#[target_feature(enable = "avx2")]
fn find_in_two_ranges(
    table: &GearTable,
    data: &[u8],
    start: usize,
    range: usize,
    mask: u64,
) -> Option<usize> {
    let is_cut = |position: usize| {
        let window = data[..position].last_chunk::<WINDOW_BYTES>();
        window.is_some_and(|window| table.hash_window(window) & mask == 0)
    };
    // The byte before a position is the last one that decides on it; those of a whole load come before the first.
    let (warm_up, bytes) = data[start - 1 - LOAD..start - 1 + 2 * range].split_at(LOAD);
    let (first, second) = bytes.split_at(range);
    let mut filter = Filter::new(table);
    if let (Some(before_first), Some(before_second)) = (warm_up.last_chunk(), first.last_chunk()) {
        filter.take(before_first, before_second);
    }
    let mut found_in_second = None;
    let steps = first.as_chunks::<STEP>().0.iter().zip(second.as_chunks().0);
    for (index, (of_first, of_second)) in steps.enumerate() {
        let Some([mut passed_first, mut passed_second]) = filter.step(of_first, of_second) else {
            continue;
        };
        let base = start + index * STEP;
        while passed_first != 0 {
            let position = base + passed_first.trailing_zeros() as usize;
            if is_cut(position) {
                return Some(position);
            }
            passed_first &= passed_first - 1;
        }
        while passed_second != 0 && found_in_second.is_none() {
            let position = base + range + passed_second.trailing_zeros() as usize;
            if is_cut(position) {
                found_in_second = Some(position);
            }
            passed_second &= passed_second - 1;
        }
    }
    found_in_second
}

/// The table's low 16 bits as four shuffle tables, and the sums of the positions before.
struct Filter {
    nibble_tables: [__m256i; 4],
    ones: __m256i,
    pairs: __m256i,
    fours: __m256i,
    eights: __m256i,
}

impl Filter {
    #[target_feature(enable = "avx2")]
    #[inline]
    fn new(table: &GearTable) -> Self {
        let zero = _mm256_setzero_si256();
        let mut nibble_tables = [zero; 4];
        for (vector, bytes) in nibble_tables.iter_mut().zip(table.nibble_tables()) {
            *vector = _mm256_broadcastsi128_si256(load(bytes));
        }
        Self {
            nibble_tables,
            ones: zero,
            pairs: zero,
            fours: zero,
            eights: zero,
        }
    }

    /// Takes a step of both ranges. A bit for each byte of either: whether the position after it passes the filter;
    /// none when there is no such position.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn step(&mut self, first: &[u8; STEP], second: &[u8; STEP]) -> Option<[u32; 2]> {
        let [[first_early, first_late], [second_early, second_late]] =
            [first, second].map(|bytes| {
                let (halves, _) = bytes.as_chunks::<LOAD>();
                [&halves[0], &halves[1]]
            });
        let early = self.take(first_early, second_early);
        let late = self.take(first_late, second_late);
        // Passing means to be zero under FILTER_MASK, whose bits are the highest: to be no larger than the rest.
        let passing_max = _mm256_set1_epi16((!FILTER_MASK).cast_signed());
        let passes = |sums: __m256i| _mm256_cmpeq_epi16(_mm256_min_epu16(sums, passing_max), sums);
        let least = _mm256_min_epu16(
            _mm256_min_epu16(early[0], early[1]),
            _mm256_min_epu16(late[0], late[1]),
        );
        let any = passes(least);
        if _mm256_testz_si256(any, any) != 0 {
            return None;
        }
        // Each half is packed by itself: the low half of the mask is of the first range.
        let bits = |[low, high]: [__m256i; 2]| {
            _mm256_movemask_epi8(_mm256_packs_epi16(passes(low), passes(high))).cast_unsigned()
        };
        let (early, late) = (bits(early), bits(late));
        Some([
            (early & 0xffff) | (late << 16),
            (early >> 16) | (late & 0xffff_0000),
        ])
    }

    /// The low 16 bits of the hashes after each byte, eight bytes of both ranges in each vector.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn take(&mut self, first: &[u8; LOAD], second: &[u8; LOAD]) -> [__m256i; 2] {
        let bytes = _mm256_set_m128i(load(second), load(first));
        let nibble = _mm256_set1_epi8(15);
        let low = _mm256_and_si256(bytes, nibble);
        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), nibble);
        let [low_by_low, high_by_low, low_by_high, high_by_high] = self.nibble_tables;
        let low_bytes = _mm256_xor_si256(
            _mm256_shuffle_epi8(low_by_low, low),
            _mm256_shuffle_epi8(low_by_high, high),
        );
        let high_bytes = _mm256_xor_si256(
            _mm256_shuffle_epi8(high_by_low, low),
            _mm256_shuffle_epi8(high_by_high, high),
        );
        [
            self.sums(_mm256_unpacklo_epi8(low_bytes, high_bytes)),
            self.sums(_mm256_unpackhi_epi8(low_bytes, high_bytes)),
        ]
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn sums(&mut self, ones: __m256i) -> __m256i {
        let back_1 = _mm256_alignr_epi8::<14>(ones, self.ones);
        let pairs = _mm256_add_epi16(ones, _mm256_slli_epi16::<1>(back_1));
        let back_2 = _mm256_alignr_epi8::<12>(pairs, self.pairs);
        let fours = _mm256_add_epi16(pairs, _mm256_slli_epi16::<2>(back_2));
        let back_4 = _mm256_alignr_epi8::<8>(fours, self.fours);
        let eights = _mm256_add_epi16(fours, _mm256_slli_epi16::<4>(back_4));
        let sixteens = _mm256_add_epi16(eights, _mm256_slli_epi16::<8>(self.eights));
        self.ones = ones;
        self.pairs = pairs;
        self.fours = fours;
        self.eights = eights;
        sixteens
    }
}

#[inline]
fn load(bytes: &[u8; LOAD]) -> __m128i {
    // SAFETY: 16 bytes are read from an array of 16; every x86-64 has the instruction.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}
