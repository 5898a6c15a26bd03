//! Content-defined chunking: a gear hash with normalised chunking (FastCDC, Xia et al., USENIX ATC '16).
//!
//! A cut lies where the hash of the 64 bytes before it is zero under a mask; the mask has more bits before the
//! expected mean than after it, which draws the lengths together. The hash of a position depends on those 64 bytes
//! alone, wherever the chunk began, so chunks fall into step again after an edit.
//!
//! The cut points are part of the pool's format: every way of finding them gives the same ones, and the golden test
//! holds them. The table comes from a fixed seed; the low 16 bits of its entries are the XOR of one value for each half
//! of the byte, so that vector code can look them up with shuffles of 16 entries.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod blocks;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
mod table;

use blocks::Region;
use table::{GearTable, gear_table};

/// The bytes before a cut that decide on it.
pub const WINDOW_BYTES: usize = 64;

/// Lengths that chunks may have, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkParams {
    min: u32,
    avg: u32,
    max: u32,
}

/// Not lengths that the chunker can work with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("chunk lengths min {min}, avg {avg}, max {max}: {rule}")]
pub struct ChunkParamsError {
    min: u32,
    avg: u32,
    max: u32,
    rule: &'static str,
}

impl ChunkParams {
    /// 64, 128 and 256 KiB.
    pub const DEFAULT: Self = Self {
        min: 64 << 10,
        avg: 128 << 10,
        max: 256 << 10,
    };

    /// Checked lengths.
    ///
    /// # Errors
    /// Unless `WINDOW_BYTES <= min`, `min + 4096 <= avg < max <= RAW_LEN_MAX`, and `avg` is a power of two.
    pub fn new(min: u32, avg: u32, max: u32) -> Result<Self, ChunkParamsError> {
        let error = |rule| {
            Err(ChunkParamsError {
                min,
                avg,
                max,
                rule,
            })
        };
        if (min as usize) < WINDOW_BYTES {
            return error("the smallest has at least 64 bytes");
        }
        if !avg.is_power_of_two() {
            return error("the mean is a power of two");
        }
        if avg < min.saturating_add(4096) {
            return error("the mean lies at least 4096 above the smallest");
        }
        if max <= avg || max as usize > crate::codec::RAW_LEN_MAX {
            return error("the largest lies above the mean, up to 1 MiB");
        }
        Ok(Self { min, avg, max })
    }

    /// Smallest chunk, but for the end of a file.
    #[must_use]
    pub fn min(self) -> u32 {
        self.min
    }

    /// Expected mean.
    #[must_use]
    pub fn avg(self) -> u32 {
        self.avg
    }

    /// Largest chunk.
    #[must_use]
    pub fn max(self) -> u32 {
        self.max
    }
}

/// Finds where chunks end.
#[derive(Clone)]
pub struct Chunker {
    min: usize,
    avg: usize,
    max: usize,
    mask_before_avg: u64,
    mask_after_avg: u64,
    table: &'static GearTable,
    instructions: Instructions,
}

/// What the search for cuts is written with. All find the same ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instructions {
    /// Those that every machine has.
    Portable,
    /// AVX2.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F and BW.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// NEON.
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    Neon,
}

impl Instructions {
    /// Those of this machine, the fastest last.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut found = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") {
                found.push(Self::Avx2);
            }
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
                found.push(Self::Avx512);
            }
        }
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        if std::arch::is_aarch64_feature_detected!("neon") {
            found.push(Self::Neon);
        }
        found
    }
}

impl Chunker {
    /// A chunker for these lengths, with the fastest instructions of this machine.
    #[must_use]
    pub fn new(params: ChunkParams) -> Self {
        let available = Instructions::available();
        let fastest = available.last().copied().unwrap_or(Instructions::Portable);
        Self::for_machine(params, fastest)
    }

    /// A chunker for these lengths with these instructions, for measurements and tests. None if the machine lacks
    /// them.
    #[must_use]
    pub fn with_instructions(params: ChunkParams, instructions: Instructions) -> Option<Self> {
        let has_them = Instructions::available().contains(&instructions);
        has_them.then(|| Self::for_machine(params, instructions))
    }

    /// The machine has these instructions.
    fn for_machine(params: ChunkParams, instructions: Instructions) -> Self {
        let bits = (params.avg - params.min).ilog2();
        Self {
            min: params.min as usize,
            avg: params.avg as usize,
            max: params.max as usize,
            mask_before_avg: mask(bits + 1),
            mask_after_avg: mask(bits - 1),
            table: gear_table(),
            instructions,
        }
    }

    /// Length of the first chunk of `data`. None when that is not certain yet: no cut was found, `data` has fewer
    /// bytes than the largest chunk, and more may come. `at_end` says that none come; then the rest is a chunk, and
    /// None means that there is no rest.
    #[must_use]
    pub fn cut(&self, data: &[u8], at_end: bool) -> Option<usize> {
        let end = data.len().min(self.max);
        let avg = self.avg.min(end);
        let found = self
            .find(data, self.min, avg, self.mask_before_avg)
            .or_else(|| self.find(data, avg.max(self.min), end, self.mask_after_avg));
        match found {
            Some(cut) => Some(cut),
            None if data.len() >= self.max => Some(self.max),
            None if at_end && !data.is_empty() => Some(data.len()),
            None => None,
        }
    }

    /// The first position in `[start, end)` whose hash is zero under the mask. `start` is at least a window.
    fn find(&self, data: &[u8], start: usize, end: usize, mask: u64) -> Option<usize> {
        if start >= end {
            return None;
        }
        let region = Region {
            table: self.table,
            data,
            start,
            end,
            mask,
        };
        match self.instructions {
            Instructions::Portable => region.find(),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the machine has AVX2.
            Instructions::Avx2 => unsafe { avx2::find(&region) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the machine has AVX-512 F and BW.
            Instructions::Avx512 => unsafe { avx512::find(&region) },
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            // SAFETY: the machine has NEON.
            Instructions::Neon => unsafe { neon::find(&region) },
        }
    }
}

/// Bits 6 to 15, which vector code can test, and as many of the highest as are still needed.
fn mask(bits: u32) -> u64 {
    u64::from(FILTER_MASK) | !(u64::MAX >> (bits - FILTER_MASK.count_ones()))
}

/// Positions whose low 16 bits are not zero here are no cuts.
const FILTER_MASK: u16 = 0xffc0;

#[cfg(test)]
mod tests;
