//! MD5 of several messages at a time, each in a lane of a vector: one message is a chain in which every step waits for the one
//! before it, so that several take as long together as one of them.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(test)]
mod tests;

/// Bytes of a block.
pub(crate) const BLOCK_BYTES: usize = 64;

/// A, B, C and D.
pub(crate) type State = [u32; 4];

/// A message on its way: its state, and blocks that are next.
pub(crate) struct Lane<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) blocks: &'a [[u8; BLOCK_BYTES]],
}

/// Vectors that a machine can have. All ways compute the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vectors {
    /// AVX2: 8 lanes.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F: 16 lanes.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Vectors {
    const ALL: &[Self] = &[
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512,
    ];

    /// Those of this machine, the widest last.
    pub(crate) fn available() -> Vec<Self> {
        let all = Self::ALL.iter().copied();
        all.filter(|vectors| vectors.is_available()).collect()
    }

    fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => is_x86_feature_detected!("avx512f"),
        }
    }

    /// Messages that are computed at a time.
    pub(crate) fn lanes(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx2::LANES,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::LANES,
        }
    }

    /// Computes as many blocks of each message as the one has that has the fewest. The machine has these vectors; there is one
    /// message at least, and no more than lanes. How many blocks that was.
    pub(crate) fn compress(self, messages: &mut [Lane<'_>]) -> usize {
        assert!(self.is_available() && (1..=self.lanes()).contains(&messages.len()));
        let lengths = messages.iter().map(|message| message.blocks.len());
        let count = lengths.min().expect("there is one");
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                let (mut state, blocks) = laid_out(messages, count);
                // SAFETY: the machine has the instructions.
                unsafe { avx2::compress(&mut state, &blocks) };
                take_back(messages, &state);
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                let (mut state, blocks) = laid_out(messages, count);
                // SAFETY: the machine has the instructions.
                unsafe { avx512::compress(&mut state, &blocks) };
                take_back(messages, &state);
            }
        }
        count
    }
}

/// The words of the states side by side, and so many blocks of each message. Lanes without one do what the first does.
fn laid_out<'a, const LANES: usize>(
    messages: &[Lane<'a>],
    count: usize,
) -> ([[u32; LANES]; 4], [&'a [[u8; BLOCK_BYTES]]; LANES]) {
    let of = |lane: usize| messages.get(lane).unwrap_or(&messages[0]);
    let state = std::array::from_fn(|word| std::array::from_fn(|lane| of(lane).state[word]));
    (state, std::array::from_fn(|lane| &of(lane).blocks[..count]))
}

fn take_back<const LANES: usize>(messages: &mut [Lane<'_>], state: &[[u32; LANES]; 4]) {
    for (lane, message) in messages.iter_mut().enumerate() {
        *message.state = state.map(|words| words[lane]);
    }
}

/// What is added in each step: the integer part of 4294967296 times abs(sin(i)), i = 1 to 64 (RFC 1321, 3.4).
#[rustfmt::skip]
const SINES: [u32; 64] = [
    0xd76a_a478, 0xe8c7_b756, 0x2420_70db, 0xc1bd_ceee, 0xf57c_0faf, 0x4787_c62a, 0xa830_4613, 0xfd46_9501,
    0x6980_98d8, 0x8b44_f7af, 0xffff_5bb1, 0x895c_d7be, 0x6b90_1122, 0xfd98_7193, 0xa679_438e, 0x49b4_0821,
    0xf61e_2562, 0xc040_b340, 0x265e_5a51, 0xe9b6_c7aa, 0xd62f_105d, 0x0244_1453, 0xd8a1_e681, 0xe7d3_fbc8,
    0x21e1_cde6, 0xc337_07d6, 0xf4d5_0d87, 0x455a_14ed, 0xa9e3_e905, 0xfcef_a3f8, 0x676f_02d9, 0x8d2a_4c8a,
    0xfffa_3942, 0x8771_f681, 0x6d9d_6122, 0xfde5_380c, 0xa4be_ea44, 0x4bde_cfa9, 0xf6bb_4b60, 0xbebf_bc70,
    0x289b_7ec6, 0xeaa1_27fa, 0xd4ef_3085, 0x0488_1d05, 0xd9d4_d039, 0xe6db_99e5, 0x1fa2_7cf8, 0xc4ac_5665,
    0xf429_2244, 0x432a_ff97, 0xab94_23a7, 0xfc93_a039, 0x655b_59c3, 0x8f0c_cc92, 0xffef_f47d, 0x8584_5dd1,
    0x6fa8_7e4f, 0xfe2c_e6e0, 0xa301_4314, 0x4e08_11a1, 0xf753_7e82, 0xbd3a_f235, 0x2ad7_d2bb, 0xeb86_d391,
];

/// `compress` with the vectors of a module, which has `Vector`, `LANES`, `add`, `rotate`, `splat`, `load`, `store`, `transposed`, and the
/// functions F, G, H and I of RFC 1321.
macro_rules! compress {
    ($features:literal) => {
        /// Computes the blocks of each lane, of which all have as many.
        #[target_feature(enable = $features)]
        pub(super) fn compress(
            state: &mut [[u32; LANES]; 4],
            lanes: &[&[[u8; super::BLOCK_BYTES]]; LANES],
        ) {
            let [mut a, mut b, mut c, mut d] = [
                load(&state[0]),
                load(&state[1]),
                load(&state[2]),
                load(&state[3]),
            ];
            for block in 0..lanes[0].len() {
                let words = transposed(&std::array::from_fn(|lane| &lanes[lane][block]));
                let before = [a, b, c, d];
                /// Sixteen steps, the words of a block in the order of `$first + $next * i`, modulo 16.
                macro_rules! round {
                    ($number:literal, $mix:ident, $first:literal + $next:literal, $s0:literal $s1:literal $s2:literal $s3:literal) => {
                        for four in 0..4 {
                            let word = |step: usize| {
                                let step = 4 * four + step;
                                let sine = super::SINES[16 * $number + step];
                                add(words[($first + $next * step) % 16], splat(sine))
                            };
                            a = add(b, rotate::<$s0>(add(add(a, word(0)), $mix(b, c, d))));
                            d = add(a, rotate::<$s1>(add(add(d, word(1)), $mix(a, b, c))));
                            c = add(d, rotate::<$s2>(add(add(c, word(2)), $mix(d, a, b))));
                            b = add(c, rotate::<$s3>(add(add(b, word(3)), $mix(c, d, a))));
                        }
                    };
                }
                round!(0, f, 0 + 1, 7 12 17 22);
                round!(1, g, 1 + 5, 5 9 14 20);
                round!(2, h, 5 + 3, 4 11 16 23);
                round!(3, i, 0 + 7, 6 10 15 21);
                [a, b, c, d] = [
                    add(a, before[0]),
                    add(b, before[1]),
                    add(c, before[2]),
                    add(d, before[3]),
                ];
            }
            for (words, vector) in state.iter_mut().zip([a, b, c, d]) {
                store(words, vector);
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
use compress;
