//! Parity by columns, so that a few blocks of what was written together may be lost.
//!
//! A row of `n` blocks gets `min(n, 16)` more. Block `i` of the whole, parity or not, belongs to column `i mod c` with
//! `c` the number of parity blocks, and **the XOR of each column is zero**. So one block of each column can be
//! computed from the others, and any `c` neighbours are one of each column. The number of columns follows from
//! the number of blocks alone: nothing has to be read to know it.
//!
//! XOR does not say which block is wrong. Whoever repairs tries what may be, and believes what authenticates.

use cfs_format::BLOCK_BYTES;

const BLOCK: usize = BLOCK_BYTES as usize;

/// Most columns, and so most parity blocks.
pub const COLUMNS_MAX: usize = 16;

/// Parity blocks that follow `content` blocks.
#[must_use]
pub fn parity_blocks(content: usize) -> usize {
    content.min(COLUMNS_MAX)
}

/// Columns of `total` blocks, parity included; none where there cannot be so many blocks.
#[must_use]
pub fn columns(total: usize) -> Option<usize> {
    match total {
        0 => None,
        total if total >= 2 * COLUMNS_MAX => Some(COLUMNS_MAX),
        total => (total % 2 == 0).then_some(total / 2),
    }
}

/// Most content blocks in `total` blocks with their parity, at least twice as many as there are columns.
#[must_use]
pub const fn content_blocks_max(total: usize) -> usize {
    assert!(total >= 2 * COLUMNS_MAX, "room for whole columns");
    total - COLUMNS_MAX
}

/// `accumulator ^= bytes`, for slices of one length.
///
/// # Panics
/// When the lengths differ.
pub fn xor_into(accumulator: &mut [u8], bytes: &[u8]) {
    assert_eq!(accumulator.len(), bytes.len(), "blocks of one size");
    for (sum, byte) in accumulator.iter_mut().zip(bytes) {
        *sum ^= *byte;
    }
}

/// Sets the parity at the end of `bytes`, which are `content` blocks and room for [`parity_blocks`] of them.
///
/// # Panics
/// When the length is another.
pub fn fill_parity(bytes: &mut [u8], content: usize) {
    let columns = parity_blocks(content);
    assert_eq!(
        bytes.len(),
        (content + columns) * BLOCK,
        "content and its parity"
    );
    let (content_bytes, parity) = bytes.split_at_mut(content * BLOCK);
    parity.fill(0);
    for (index, block) in content_bytes.chunks_exact(BLOCK).enumerate() {
        // Parity goes on with the columns where the content ends.
        let place = (index + columns - content % columns) % columns * BLOCK;
        xor_into(&mut parity[place..place + BLOCK], block);
    }
}

/// What each column of `bytes`, whole blocks with their parity, lacks to be zero, one block a column: all zero when
/// nothing is damaged. The one bad block of a column becomes right when its column's is added to it.
///
/// # Panics
/// When `columns` is 0 or `bytes` are not whole blocks.
#[must_use]
pub fn differences(bytes: &[u8], columns: usize) -> Vec<u8> {
    assert!(bytes.len().is_multiple_of(BLOCK), "whole blocks");
    let mut sums = vec![0; columns * BLOCK];
    for row in bytes.chunks(columns * BLOCK) {
        xor_into(&mut sums[..row.len()], row);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(content: usize) -> Vec<u8> {
        let mut state = content as u64;
        let mut bytes: Vec<u8> = (0..content * BLOCK)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 40) as u8
            })
            .collect();
        bytes.resize((content + parity_blocks(content)) * BLOCK, 0);
        fill_parity(&mut bytes, content);
        bytes
    }

    #[test]
    fn any_neighbours_up_to_the_number_of_columns_come_back() {
        for content in [1, 2, 3, 15, 16, 17, 31, 32, 40, 100] {
            let whole = row(content);
            let total = whole.len() / BLOCK;
            let count = columns(total).expect("a length that fill_parity made");
            assert_eq!(count, parity_blocks(content), "{content} blocks");
            assert!(differences(&whole, count).iter().all(|byte| *byte == 0));
            for len in 1..=count {
                for start in 0..=total - len {
                    let mut damaged = whole.clone();
                    damaged[start * BLOCK..(start + len) * BLOCK].fill(0x5a);
                    let lacking = differences(&damaged, count);
                    for index in start..start + len {
                        let column = index % count * BLOCK;
                        xor_into(
                            &mut damaged[index * BLOCK..(index + 1) * BLOCK],
                            &lacking[column..column + BLOCK],
                        );
                    }
                    assert!(damaged == whole, "{len} of {content} blocks from {start}");
                }
            }
        }
    }

    #[test]
    fn the_number_of_columns_follows_from_the_number_of_blocks() {
        for content in 1..600 {
            let total = content + parity_blocks(content);
            assert_eq!(columns(total), Some(parity_blocks(content)));
        }
        assert_eq!(columns(0), None);
        assert_eq!(columns(5), None);
        assert_eq!(content_blocks_max(512), 496);
    }
}
