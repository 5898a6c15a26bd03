//! Vectors of 256 bits, 8 lanes.

use std::arch::x86_64::{
    __m256i, _mm_cvtsi32_si128, _mm256_add_epi32, _mm256_and_si256, _mm256_loadu_si256,
    _mm256_or_si256, _mm256_permute2x128_si256, _mm256_set1_epi32, _mm256_setzero_si256,
    _mm256_sll_epi32, _mm256_srl_epi32, _mm256_storeu_si256, _mm256_unpackhi_epi32,
    _mm256_unpackhi_epi64, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64, _mm256_xor_si256,
};

use super::BLOCK_BYTES;

pub(super) const LANES: usize = 8;
type Vector = __m256i;

super::compress!("avx2");

/// The words of 8 blocks, those at the same place side by side.
#[target_feature(enable = "avx2")]
#[inline]
fn transposed(blocks: &[&[u8; BLOCK_BYTES]; LANES]) -> [Vector; 16] {
    let mut words = [_mm256_setzero_si256(); 16];
    for part in 0..2 {
        // Halves of four blocks each: of half h words 4h + n in the n-th.
        let fours: [[Vector; 4]; 2] = std::array::from_fn(|four| {
            let [a, b, c, d] = std::array::from_fn(|row| {
                let (parts, _) = blocks[4 * four + row].as_chunks();
                load_bytes(&parts[part])
            });
            let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
            let (later_ab, later_cd) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
            [
                _mm256_unpacklo_epi64(ab, cd),
                _mm256_unpackhi_epi64(ab, cd),
                _mm256_unpacklo_epi64(later_ab, later_cd),
                _mm256_unpackhi_epi64(later_ab, later_cd),
            ]
        });
        for word in 0..4 {
            let [a, b] = fours.map(|four| four[word]);
            words[8 * part + word] = _mm256_permute2x128_si256::<0x20>(a, b);
            words[8 * part + 4 + word] = _mm256_permute2x128_si256::<0x31>(a, b);
        }
    }
    words
}

#[target_feature(enable = "avx2")]
#[inline]
fn f(x: Vector, y: Vector, z: Vector) -> Vector {
    _mm256_xor_si256(z, _mm256_and_si256(x, _mm256_xor_si256(y, z)))
}

#[target_feature(enable = "avx2")]
#[inline]
fn g(x: Vector, y: Vector, z: Vector) -> Vector {
    f(z, x, y)
}

#[target_feature(enable = "avx2")]
#[inline]
fn h(x: Vector, y: Vector, z: Vector) -> Vector {
    _mm256_xor_si256(x, _mm256_xor_si256(y, z))
}

#[target_feature(enable = "avx2")]
#[inline]
fn i(x: Vector, y: Vector, z: Vector) -> Vector {
    let not_z = _mm256_xor_si256(z, splat(u32::MAX));
    _mm256_xor_si256(y, _mm256_or_si256(x, not_z))
}

#[target_feature(enable = "avx2")]
#[inline]
fn add(a: Vector, b: Vector) -> Vector {
    _mm256_add_epi32(a, b)
}

#[target_feature(enable = "avx2")]
#[inline]
fn rotate<const BITS: i32>(a: Vector) -> Vector {
    _mm256_or_si256(
        _mm256_sll_epi32(a, _mm_cvtsi32_si128(BITS)),
        _mm256_srl_epi32(a, _mm_cvtsi32_si128(32 - BITS)),
    )
}

#[target_feature(enable = "avx2")]
#[inline]
fn splat(word: u32) -> Vector {
    _mm256_set1_epi32(word.cast_signed())
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_bytes(bytes: &[u8; BLOCK_BYTES / 2]) -> Vector {
    // SAFETY: 32 bytes are read from an array of 32; the instruction takes any alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn load(words: &[u32; LANES]) -> Vector {
    // SAFETY: 32 bytes are read from an array of 32; the instruction takes any alignment.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn store(words: &mut [u32; LANES], vector: Vector) {
    // SAFETY: 32 bytes are written to an array of 32; the instruction takes any alignment.
    unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), vector) }
}
