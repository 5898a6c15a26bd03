//! The table at the end of a full data segment, which tells what records it holds.

use cfs_format::segment::{FOOTER_MAGIC, FooterEntry, FooterTrailer, RECORD_OVERHEAD};
use cfs_format::{FormatError, SEGMENT_BYTES, SegmentSeq};
use zerocopy::{FromBytes, IntoBytes};

use crate::block::{BlockCipher, Forged, TAG};

/// Bytes of a trailer.
pub const TRAILER_BYTES: usize = size_of::<FooterTrailer>();

/// More entries than records fit into a segment.
const ENTRY_COUNT_MAX: u32 = SEGMENT_BYTES / RECORD_OVERHEAD;

/// Bytes of the sealed entries with their tag.
#[must_use]
pub fn sealed_footer_len(entry_count: usize) -> usize {
    entry_count * size_of::<FooterEntry>() + TAG
}

/// The sealed entries, for this place.
#[must_use]
pub fn seal_footer(
    entries: &[FooterEntry],
    seq: SegmentSeq,
    offset: u32,
    cipher: &BlockCipher,
) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(sealed_footer_len(entries.len()));
    sealed.extend_from_slice(entries.as_bytes());
    cipher.seal_in_place(seq, offset, &[], &mut sealed, 0);
    sealed
}

/// The entries from what lies at the trailer's `offset`; `sealed` is decrypted in place.
///
/// # Errors
/// [`Forged`], also when the length is not that of whole entries.
pub fn open_footer(
    sealed: &mut [u8],
    seq: SegmentSeq,
    offset: u32,
    cipher: &BlockCipher,
) -> Result<Vec<FooterEntry>, Forged> {
    let plain = cipher.open_in_place(seq, offset, &[], sealed)?;
    let entries = <[FooterEntry]>::ref_from_bytes(plain).map_err(|_| Forged)?;
    Ok(entries.to_vec())
}

/// The trailer's bytes.
#[must_use]
pub fn encode_trailer(seq: SegmentSeq, offset: u32, entry_count: u32) -> [u8; TRAILER_BYTES] {
    let trailer = FooterTrailer {
        magic: FOOTER_MAGIC,
        offset: offset.into(),
        entry_count: entry_count.into(),
        seq: seq.0.into(),
        reserved: 0.into(),
    };
    trailer
        .as_bytes()
        .try_into()
        .expect("the array has the trailer's size")
}

/// The trailer in the last bytes of a segment. It is not authenticated; the entries that it points to are, with the
/// place and number that it gives.
///
/// # Errors
/// When `bytes` are no trailer, or one whose entries would not fit between header block and trailer.
pub fn decode_trailer(bytes: &[u8]) -> Result<FooterTrailer, FormatError> {
    let error = |rule| FormatError {
        structure: "footer trailer",
        rule,
    };
    let trailer = FooterTrailer::read_from_bytes(bytes).map_err(|_| error("32 bytes"))?;
    if trailer.magic != FOOTER_MAGIC {
        return Err(error("magic"));
    }
    if trailer.entry_count.get() > ENTRY_COUNT_MAX {
        return Err(error("entry count"));
    }
    let end = trailer.offset.get() as usize + sealed_footer_len(trailer.entry_count.get() as usize);
    if end > SEGMENT_BYTES as usize - TRAILER_BYTES {
        return Err(error("offset"));
    }
    Ok(trailer)
}
