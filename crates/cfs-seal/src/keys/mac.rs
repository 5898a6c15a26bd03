//! Superblock records and segment headers: plain, with a keyed hash that only the pool's owner can make.

use cfs_format::segment::{HEADER_BODY_BYTES, SegmentHeader};
use cfs_format::superblock::{BODY_BYTES, CHECKSUM_OFFSET, MAC_OFFSET, Superblock};
use cfs_format::{BLOCK_BYTES, FormatError};
use zerocopy::IntoBytes;

use super::ClusterKey;

const BLOCK: usize = BLOCK_BYTES as usize;
const HEADER: usize = size_of::<SegmentHeader>();

/// The superblock as a block: its fields, zeros, a plain and a keyed hash of these.
#[must_use]
pub fn seal_superblock(superblock: &Superblock, key: &ClusterKey) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..size_of::<Superblock>()].copy_from_slice(superblock.as_bytes());
    let (body, hashes) = block.split_at_mut(BODY_BYTES);
    let (checksum, mac) = hashes.split_at_mut(MAC_OFFSET - CHECKSUM_OFFSET);
    checksum.copy_from_slice(blake3::hash(body).as_bytes());
    mac.copy_from_slice(blake3::keyed_hash(&key.superblock_mac, body).as_bytes());
    block
}

/// The superblock in a block, undamaged as far as can be told without a key. Whoever trusts it must also ask
/// [`check_superblock_mac`] once there is one.
///
/// # Errors
/// When the block is none of this build's superblocks, or damaged.
pub fn check_superblock_checksum(block: &[u8]) -> Result<Superblock, FormatError> {
    let error = |rule| FormatError {
        structure: "superblock",
        rule,
    };
    let block: &[u8; BLOCK] = block.try_into().map_err(|_| error("one block"))?;
    if !block.starts_with(&cfs_format::superblock::MAGIC) {
        return Err(error("magic"));
    }
    // First: a damaged version must not pass for a newer one.
    if blake3::hash(&block[..BODY_BYTES]) != stored_hash(block, CHECKSUM_OFFSET) {
        return Err(error("checksum"));
    }
    Superblock::decode(block)
}

/// Whether the block's superblock was made with this cluster key.
#[must_use]
pub fn check_superblock_mac(block: &[u8], key: &ClusterKey) -> bool {
    let Ok(block) = <&[u8; BLOCK]>::try_from(block) else {
        return false;
    };
    blake3::keyed_hash(&key.superblock_mac, &block[..BODY_BYTES]) == stored_hash(block, MAC_OFFSET)
}

/// The 32 bytes at `offset`, as a hash whose comparison takes the same time whatever it finds.
fn stored_hash(block: &[u8; BLOCK], offset: usize) -> blake3::Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(&block[offset..offset + 32]);
    blake3::Hash::from_bytes(hash)
}

/// Why bytes are not a segment header of this pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenHeaderError {
    /// They do not look like a segment header.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// They were made with another cluster key, or damaged.
    #[error("the segment header's MAC does not match: damaged, or of another pool")]
    Forged,
}

/// The header's bytes, with `mac` set.
#[must_use]
pub fn seal_segment_header(mut header: SegmentHeader, key: &ClusterKey) -> [u8; HEADER] {
    header.mac = *header_mac(&header, key).as_bytes();
    header
        .as_bytes()
        .try_into()
        .expect("the array has the header's size")
}

/// The header at the start of `bytes`.
///
/// # Errors
/// [`OpenHeaderError`].
pub fn open_segment_header(
    bytes: &[u8],
    key: &ClusterKey,
) -> Result<SegmentHeader, OpenHeaderError> {
    let header = SegmentHeader::decode(bytes)?;
    if header_mac(&header, key) != blake3::Hash::from_bytes(header.mac) {
        return Err(OpenHeaderError::Forged);
    }
    Ok(header)
}

fn header_mac(header: &SegmentHeader, key: &ClusterKey) -> blake3::Hash {
    blake3::keyed_hash(
        &key.segment_header_mac,
        &header.as_bytes()[..HEADER_BODY_BYTES],
    )
}
