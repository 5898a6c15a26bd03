//! What is kept of the parts of an object: how long each is, and its checksum.
//!
//! There can be ten thousand, which no single row holds, so that they lie in several, apart from what is read of an object
//! each time: [`PARTS_IN_ROW`] in each but the last, in their order. A part is its bytes, u64 little-endian, and the bytes of
//! its checksum, whose algorithm stands with the object; none where it has none. `docs/format/namespace.md` has it too.
//!
//! # Invariants
//! - The rows are written with the object, and never changed: what an object says of its parts is there as long as it is.

use std::collections::BTreeMap;

use cfs_format::Ino;
use cfs_fs::FsError;

use crate::face::Face;
use crate::objects::Object;
use crate::records::{Content, name};

/// Bytes of an object at most: those of a file.
const OBJECT_BYTES_MAX: u64 = i64::MAX as u64;
/// Parts in a row, so that those with the longest checksums fit.
pub(crate) const PARTS_IN_ROW: usize = 1000;
const _: () = assert!(PARTS_IN_ROW * (8 + 32) <= cfs_fs::XATTR_VALUE_BYTES_MAX);

/// A part of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Part {
    /// Bytes of its content, as clients know it.
    pub(crate) bytes: u64,
    /// Empty where the object's parts have none.
    pub(crate) checksum: Vec<u8>,
}

/// Bytes of the checksums of an algorithm.
pub(crate) fn checksum_bytes(algorithm: Option<&String>) -> Option<usize> {
    Some(match algorithm.map(String::as_str) {
        None => 0,
        Some("CRC32" | "CRC32C") => 4,
        Some("CRC64NVME") => 8,
        Some("SHA1") => 20,
        Some("SHA256") => 32,
        Some(_) => return None,
    })
}

fn row_name(index: usize) -> Vec<u8> {
    [name::PARTS, index.to_string().as_bytes()].concat()
}

/// The rows that hold parts.
pub(crate) fn rows(parts: &[Part]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let row = |(index, parts): (usize, &[Part])| {
        let bytes = parts
            .iter()
            .flat_map(|part| [&part.bytes.to_le_bytes()[..], &part.checksum].concat())
            .collect();
        (row_name(index), bytes)
    };
    parts.chunks(PARTS_IN_ROW).enumerate().map(row).collect()
}

/// The parts in rows that [`rows`] has made, all of which must be there.
pub(crate) fn decode(
    count: usize,
    algorithm: Option<&String>,
    mut row: impl FnMut(&[u8]) -> Result<Option<Vec<u8>>, FsError>,
) -> Result<Vec<Part>, FsError> {
    let damaged = || FsError::Io("what is kept of an object's parts does not decode".into());
    let one = 8 + checksum_bytes(algorithm).ok_or_else(damaged)?;
    let mut parts = Vec::new();
    for index in 0..count.div_ceil(PARTS_IN_ROW) {
        let wanted = (count - parts.len()).min(PARTS_IN_ROW);
        let bytes = row(&row_name(index))?
            .filter(|bytes| bytes.len() == wanted * one)
            .ok_or_else(damaged)?;
        parts.extend(bytes.chunks_exact(one).map(|part| {
            let (bytes, checksum) = part.split_first_chunk().expect("it has more than 8 bytes");
            Part {
                bytes: u64::from_le_bytes(*bytes),
                checksum: checksum.to_vec(),
            }
        }));
    }
    sum(parts.iter().map(|part| part.bytes)).ok_or_else(damaged)?;
    Ok(parts)
}

/// Bytes of parts together; none if that is more than an object can have.
pub(crate) fn sum(parts: impl IntoIterator<Item = u64>) -> Option<u64> {
    let mut parts = parts.into_iter();
    parts.try_fold(0_u64, |sum, bytes| {
        sum.checked_add(bytes)
            .filter(|sum| *sum <= OBJECT_BYTES_MAX)
    })
}

impl Part {
    /// Its checksum in Base64, by the name of the algorithm.
    pub(crate) fn checksums(&self, content: &Content) -> BTreeMap<String, String> {
        let value = || base64_simd::STANDARD.encode_to_string(&self.checksum);
        let algorithm = content.part_algorithm.iter();
        algorithm.map(|name| (name.clone(), value())).collect()
    }
}

impl Face {
    /// The parts of an object, if they were sealed each by itself.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn pieces_of(&self, object: &Object) -> Result<Vec<Part>, FsError> {
        match object.content.customer {
            Some(_) => self.parts_of(object.attr.ino, &object.content),
            None => Ok(Vec::new()),
        }
    }

    /// The parts that an object came in; none of one that came whole.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn parts_of(&self, ino: Ino, content: &Content) -> Result<Vec<Part>, FsError> {
        let algorithm = content.part_algorithm.as_ref();
        decode(content.part_count as usize, algorithm, |row| {
            self.fs.record(ino, row)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_there_can_be_fit_into_rows() {
        for (algorithm, bytes) in [(None, 0), (Some("CRC32"), 4), (Some("SHA256"), 32)] {
            let algorithm = algorithm.map(str::to_owned);
            for count in [0, 1, 999, 1000, 1001, 10_000] {
                let parts: Vec<_> = (0..count)
                    .map(|number| Part {
                        bytes: (5 << 30) - number,
                        checksum: vec![number as u8; bytes],
                    })
                    .collect();
                let rows: BTreeMap<_, _> = rows(&parts).into_iter().collect();
                let longest = rows.values().map(Vec::len).max().unwrap_or(0);
                assert!(longest <= cfs_fs::XATTR_VALUE_BYTES_MAX, "{longest}");
                let read = |missing: usize| {
                    decode(parts.len(), algorithm.as_ref(), |name| {
                        let is_there = name != row_name(missing);
                        Ok(rows.get(name).filter(|_| is_there).cloned())
                    })
                };
                assert_eq!(read(usize::MAX).expect("it decodes"), parts);
                assert!(count == 0 || read(rows.len() - 1).is_err());
            }
        }
        let other = Some("MD5".to_owned());
        assert!(decode(1, other.as_ref(), |_| Ok(Some(vec![0; 8]))).is_err());
    }

    /// A request for the second of two parts of 2^63 bytes ended the server.
    #[test]
    fn parts_of_more_than_a_file_do_not_decode() {
        for (bytes, fits) in [
            ([OBJECT_BYTES_MAX, 0], true),
            ([OBJECT_BYTES_MAX, 1], false),
            ([1 << 63, 1 << 63], false),
            ([0, u64::MAX], false),
        ] {
            let row = bytes.map(u64::to_le_bytes).concat();
            let decoded = decode(2, None, |_| Ok(Some(row.clone())));
            assert_eq!(decoded.is_ok(), fits, "{bytes:?}");
        }
    }

    /// The bytes of version 1; see `docs/format/namespace.md`.
    #[test]
    fn golden_parts() {
        let part = |bytes, checksum: &[u8]| Part {
            bytes,
            checksum: checksum.to_vec(),
        };
        let parts = [part(0x0102, &[5, 6, 7, 8]), part(3, &[9, 9, 9, 9])];
        let wanted = [
            2, 1, 0, 0, 0, 0, 0, 0, 5, 6, 7, 8, 3, 0, 0, 0, 0, 0, 0, 0, 9, 9, 9, 9,
        ];
        assert_eq!(rows(&parts), [(b"s3.parts.0".to_vec(), wanted.to_vec())]);
    }
}
