//! Vectors of 512 bits, 16 lanes.

use std::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_loadu_si512, _mm512_rol_epi32, _mm512_set1_epi32,
    _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_storeu_si512, _mm512_ternarylogic_epi32,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use super::BLOCK_BYTES;

pub(super) const LANES: usize = 16;
type Vector = __m512i;

super::compress!("avx512f");

/// The words of 16 blocks, those at the same place side by side.
#[target_feature(enable = "avx512f")]
#[inline]
fn transposed(blocks: &[&[u8; BLOCK_BYTES]; LANES]) -> [Vector; 16] {
    // Quarters of four blocks each: of quarter q words 4q + n in the n-th.
    let fours: [[Vector; 4]; 4] = std::array::from_fn(|four| {
        let [a, b, c, d] = std::array::from_fn(|row| load_block(blocks[4 * four + row]));
        let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
        let (later_ab, later_cd) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
        [
            _mm512_unpacklo_epi64(ab, cd),
            _mm512_unpackhi_epi64(ab, cd),
            _mm512_unpacklo_epi64(later_ab, later_cd),
            _mm512_unpackhi_epi64(later_ab, later_cd),
        ]
    });
    let mut words = [_mm512_setzero_si512(); 16];
    for word in 0..4 {
        let [a, b, c, d] = fours.map(|four| four[word]);
        // Quarters 0 and 2, 1 and 3.
        let even = [
            _mm512_shuffle_i32x4::<0x88>(a, b),
            _mm512_shuffle_i32x4::<0x88>(c, d),
        ];
        let odd = [
            _mm512_shuffle_i32x4::<0xdd>(a, b),
            _mm512_shuffle_i32x4::<0xdd>(c, d),
        ];
        words[word] = _mm512_shuffle_i32x4::<0x88>(even[0], even[1]);
        words[4 + word] = _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]);
        words[8 + word] = _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]);
        words[12 + word] = _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]);
    }
    words
}

// One instruction each: the number has the function's value for each of the eight combinations of three bits.

#[target_feature(enable = "avx512f")]
#[inline]
fn f(x: Vector, y: Vector, z: Vector) -> Vector {
    _mm512_ternarylogic_epi32::<0b1100_1010>(x, y, z)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn g(x: Vector, y: Vector, z: Vector) -> Vector {
    _mm512_ternarylogic_epi32::<0b1110_0100>(x, y, z)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn h(x: Vector, y: Vector, z: Vector) -> Vector {
    _mm512_ternarylogic_epi32::<0b1001_0110>(x, y, z)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn i(x: Vector, y: Vector, z: Vector) -> Vector {
    _mm512_ternarylogic_epi32::<0b0011_1001>(x, y, z)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn add(a: Vector, b: Vector) -> Vector {
    _mm512_add_epi32(a, b)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn rotate<const BITS: i32>(a: Vector) -> Vector {
    _mm512_rol_epi32::<BITS>(a)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn splat(word: u32) -> Vector {
    _mm512_set1_epi32(word.cast_signed())
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load_block(bytes: &[u8; BLOCK_BYTES]) -> Vector {
    // SAFETY: 64 bytes are read from an array of 64; the instruction takes any alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load(words: &[u32; LANES]) -> Vector {
    // SAFETY: 64 bytes are read from an array of 64; the instruction takes any alignment.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(words: &mut [u32; LANES], vector: Vector) {
    // SAFETY: 64 bytes are written to an array of 64; the instruction takes any alignment.
    unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), vector) }
}
