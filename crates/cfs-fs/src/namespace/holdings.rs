//! What the files below a directory show and hold, in bytes and chunks.
//!
//! Which chunks are the same is found out with a bounded memory: of many chunks only those count whose fingerprints begin
//! with some zeros, and stand for the others. Up to [`CHUNKS_MAX`] chunks all count, and the figures are exact.

use std::collections::HashMap;

use cfs_format::table::ChunkRecord;
use cfs_format::{DomainId, Fingerprint, Ino, VolumeId};
use cfs_seal::keys::FileKey;

use crate::Fs;
use crate::clone::Found;
use crate::error::{FsError, Result};
use crate::extent;

/// Chunks that are remembered at most.
const CHUNKS_MAX: usize = 1 << 18;
/// Entries of a directory that are read at once.
const ENTRIES_AT_ONCE: usize = 1024;

/// What files show and hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Regular files.
    pub files: u64,
    /// Bytes of their content.
    pub logical_bytes: u64,
    /// Extents, each of which shows a chunk. Small files lie inline and have none.
    pub references: u64,
    /// Chunks that are shown.
    pub chunks: u64,
    /// Bytes of content of these chunks.
    pub unique_bytes: u64,
    /// Bytes that they take in segments.
    pub stored_bytes: u64,
    /// The last three are an estimate: there are too many chunks to remember them all.
    pub is_estimate: bool,
}

/// The chunks seen so far, or a sample of them.
#[derive(Default)]
struct Seen {
    /// Bytes of content and in segments.
    chunks: HashMap<Fingerprint, (u32, u32)>,
    /// A chunk counts if its fingerprint begins with so many zero bits.
    zeros: u32,
}

impl Seen {
    fn counts(&self, fingerprint: &Fingerprint) -> bool {
        let first = fingerprint.0.first_chunk().expect("it is longer");
        u64::from_be_bytes(*first).leading_zeros() >= self.zeros
    }

    fn add(
        &mut self,
        fingerprint: Fingerprint,
        look: impl FnOnce() -> Result<Option<ChunkRecord>>,
        chunks_max: usize,
    ) -> Result<()> {
        if !self.counts(&fingerprint) || self.chunks.contains_key(&fingerprint) {
            return Ok(());
        }
        // What has gone meanwhile holds nothing.
        let Some(record) = look()? else {
            return Ok(());
        };
        let sizes = (record.raw_len.get(), record.record_len.get());
        self.chunks.insert(fingerprint, sizes);
        while self.chunks.len() > chunks_max {
            self.zeros += 1;
            let mut chunks = std::mem::take(&mut self.chunks);
            chunks.retain(|fingerprint, _| self.counts(fingerprint));
            self.chunks = chunks;
        }
        Ok(())
    }

    fn finish(&self, holdings: &mut Holdings) {
        let scale = 1_u64.checked_shl(self.zeros).unwrap_or(0);
        let of = |size: fn(&(u32, u32)) -> u32| {
            let sizes = self.chunks.values().map(|sizes| u64::from(size(sizes)));
            sizes.sum::<u64>().saturating_mul(scale)
        };
        holdings.chunks = (self.chunks.len() as u64).saturating_mul(scale);
        holdings.unique_bytes = of(|sizes| sizes.0);
        holdings.stored_bytes = of(|sizes| sizes.1);
        holdings.is_estimate = self.zeros > 0;
    }
}

impl Fs {
    /// What the files below a directory show and hold, as it is while it is read; none if `go_on`, which is asked for every
    /// directory and for every thousand entries, says no. A file with several names counts with each.
    ///
    /// # Errors
    /// What reading failed with.
    pub fn holdings(&self, directory: Ino, go_on: &dyn Fn() -> bool) -> Result<Option<Holdings>> {
        let (mut holdings, mut seen) = (Holdings::default(), Seen::default());
        let mut left = vec![directory];
        while let Some(directory) = left.pop() {
            let mut from = Vec::new();
            loop {
                if !go_on() {
                    return Ok(None);
                }
                let entries = self.names_from(directory, &from, ENTRIES_AT_ONCE)?;
                let Some(last) = entries.last() else {
                    break;
                };
                // The first name after it.
                from.clone_from(&last.name);
                from.push(0);
                for entry in entries {
                    match entry.kind {
                        libc::S_IFDIR => left.push(entry.ino),
                        libc::S_IFREG => self.add_holdings(entry.ino, &mut holdings, &mut seen)?,
                        _ => {}
                    }
                }
            }
        }
        seen.finish(&mut holdings);
        Ok(Some(holdings))
    }

    fn add_holdings(&self, ino: Ino, holdings: &mut Holdings, seen: &mut Seen) -> Result<()> {
        // It may have gone since its name was read.
        let Some(Found { place, record }) = self.views.find(ino)? else {
            return Ok(());
        };
        let volume = VolumeId(record.volume.get());
        let secret = self
            .store
            .volume(volume)
            .and_then(|volume| self.store.domain_secret(DomainId(volume.domain.get())))
            .ok_or_else(|| {
                FsError::damaged(format_args!("volume {volume} or its domain is missing"))
            })?;
        let file_key = FileKey::derive(&secret, &record.salt);
        holdings.files += 1;
        // Files with holes may together have more bytes than a number holds.
        holdings.logical_bytes = holdings.logical_bytes.saturating_add(record.size.get());
        let rows = self.views.extents(place.at);
        for shown in extent::scan(&rows, place.ino, &file_key, 0, u64::MAX) {
            let shown = shown?;
            holdings.references += 1;
            let look = || Ok(self.store.chunk_location(&shown.fingerprint)?);
            seen.add(shown.fingerprint, look, CHUNKS_MAX)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn a_sample_stands_for_all() {
        let check = |chunks: u32, chunks_max: usize, is_estimate: bool| {
            let mut seen = Seen::default();
            for number in (0..chunks).chain(0..chunks) {
                // Spread as hashes are (splitmix64).
                let mut mixed = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                let mut fingerprint = Fingerprint::default();
                fingerprint.0[..8].copy_from_slice(&(mixed ^ (mixed >> 31)).to_be_bytes());
                let mut record = ChunkRecord::new_zeroed();
                record.raw_len = 1000.into();
                record.record_len = 500.into();
                seen.add(fingerprint, || Ok(Some(record)), chunks_max)
                    .expect("nothing is read");
            }
            let mut holdings = Holdings::default();
            seen.finish(&mut holdings);
            assert_eq!(holdings.is_estimate, is_estimate);
            assert_eq!(holdings.unique_bytes, holdings.chunks * 1000);
            assert_eq!(holdings.stored_bytes, holdings.chunks * 500);
            let error = (holdings.chunks as f64 - f64::from(chunks)).abs();
            let most = if is_estimate { 0.1 } else { 0.0 } * f64::from(chunks);
            assert!(error <= most, "{} of {chunks}", holdings.chunks);
        };
        check(0, 1000, false);
        check(1000, 1000, false);
        check(100_000, 4096, true);
    }
}
