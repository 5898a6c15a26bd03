//! The search for a cut with vector code: by the low 16 bits of the hashes first.
//!
//! They are the sum of the last 16 table entries, the one `k` bytes back shifted by `k`. A block of the data is taken
//! as runs of 16 bytes, one for each lane of 16 bits, which go through their runs side by side: `hash = 2 * hash +
//! entry`. First from zero, which gives what the lane of the next run has to start from, since what lies further back
//! than 16 bytes has been shifted out; then from there, which gives the hashes. Transposed, the bytes of a lane come
//! as words of two, the vectors' unit. Against sums in doublings (pairs, fours, eights, sixteens of neighbours) that
//! is 4 additions a vector instead of 4 additions, 3 shifts and 4 shuffles.
//!
//! A run in which a hash passes `FILTER_MASK` is searched again with whole hashes, so the result is that of the
//! portable search.

use super::table::GearTable;
use super::{FILTER_MASK, WINDOW_BYTES};

/// Bytes of a run: as many as there are bits in a lane.
const RUN: usize = 16;
/// The rows of a block; each has as many runs as a vector has registers of 128 bits.
pub(super) const ROWS: usize = 8;
/// Hashes up to this one are zero under `FILTER_MASK`, whose bits are the highest of 16.
pub(super) const PASSING_MAX: u16 = !FILTER_MASK;

/// What a search goes through.
pub(super) struct Region<'a> {
    pub(super) table: &'a GearTable,
    pub(super) data: &'a [u8],
    /// The first position, at least a window.
    pub(super) start: usize,
    /// Behind the last position, at most the length of the data.
    pub(super) end: usize,
    pub(super) mask: u64,
}

impl Region<'_> {
    /// The first cut, byte for byte.
    pub(super) fn find(&self) -> Option<usize> {
        self.find_in(self.start, self.end)
    }

    /// The first cut in `[start, end)`.
    fn find_in(&self, start: usize, end: usize) -> Option<usize> {
        let window = self.data.get(..start)?.last_chunk::<WINDOW_BYTES>()?;
        let mut hash = self.table.hash_window(window);
        if start >= end {
            return None;
        }
        if hash & self.mask == 0 {
            return Some(start);
        }
        for (index, byte) in self.data[start..end - 1].iter().enumerate() {
            hash = self.table.step(hash, *byte);
            if hash & self.mask == 0 {
                return Some(start + index + 1);
            }
        }
        None
    }

    /// The low 16 bits of the hash one position before the first.
    #[cfg(any(
        target_arch = "x86_64",
        all(target_arch = "aarch64", target_endian = "little")
    ))]
    pub(super) fn hash_before(&self) -> u16 {
        let bytes = &self.data[self.start - 1 - RUN..self.start - 1];
        let hash = bytes
            .iter()
            .fold(0, |hash, byte| self.table.step(hash, *byte));
        (hash & 0xffff) as u16
    }

    /// The first cut, where `passing` tells of block after block which lanes have a hash that passes the filter.
    ///
    /// Lane `ROWS * column + row` is of the run in that row and column; the rows follow each other in the data.
    #[cfg(any(
        target_arch = "x86_64",
        all(target_arch = "aarch64", target_endian = "little")
    ))]
    #[inline]
    pub(super) fn find_by<const BLOCK: usize>(
        &self,
        mut passing: impl FnMut(&[u8; BLOCK]) -> u32,
    ) -> Option<usize> {
        let columns = BLOCK / (ROWS * RUN);
        // The byte before a position is the last one that decides on it.
        let (blocks, _) = self.data[self.start - 1..self.end - 1].as_chunks::<BLOCK>();
        for (index, block) in blocks.iter().enumerate() {
            let mut lanes = passing(block);
            if lanes == 0 {
                continue;
            }
            let base = self.start + index * BLOCK;
            let mut first = None;
            while lanes != 0 {
                let lane = lanes.trailing_zeros() as usize;
                let run = lane % ROWS * columns + lane / ROWS;
                let cut = self.find_in(base + run * RUN, base + (run + 1) * RUN);
                first = first.into_iter().chain(cut).min();
                lanes &= lanes - 1;
            }
            if first.is_some() {
                return first;
            }
        }
        self.find_in(self.start + blocks.len() * BLOCK, self.end)
    }
}
