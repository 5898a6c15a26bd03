//! The chunk tree against the extents that refer to it, and the counters that go with it.

use std::collections::{HashMap, HashSet};

use cfs_format::Fingerprint;
use cfs_store::Frozen;

use super::CheckReport;
use crate::command::NewExtent;
use crate::error::Result;

/// What the extents say about a chunk.
struct Referenced {
    refs: u32,
    chunk_len: u32,
}

/// Chunks as the meta tree sees them.
#[derive(Default)]
pub(super) struct Chunks {
    referenced: HashMap<Fingerprint, Referenced>,
    dead: HashSet<Vec<u8>>,
}

impl Chunks {
    /// Notes a row that says that nothing refers to a chunk.
    pub(super) fn dead_row(&mut self, suffix: &[u8]) {
        self.dead.insert(suffix.to_vec());
    }

    /// Notes an extent.
    pub(super) fn extent(&mut self, extent: &NewExtent) {
        let referenced = self
            .referenced
            .entry(extent.fingerprint)
            .or_insert(Referenced {
                refs: 0,
                chunk_len: extent.chunk_len,
            });
        referenced.refs += 1;
    }

    /// Compares with the chunk tree.
    pub(super) fn finish(mut self, frozen: &Frozen, report: &mut CheckReport) -> Result<()> {
        let mut live_bytes: HashMap<u32, u64> = HashMap::new();
        let (mut raw_bytes, mut stored_bytes, mut references, mut referenced_bytes) = (0, 0, 0, 0);
        let mut bad_chunks = 0;
        for chunk in frozen.chunks() {
            let (fingerprint, record) = chunk?;
            let refs = u64::from(record.refs.get());
            let raw_len = u64::from(record.raw_len.get());
            let record_len = u64::from(record.record_len.get());
            report.chunks += 1;
            raw_bytes += raw_len;
            stored_bytes += record_len;
            references += refs;
            // Records of a damaged pool may claim more than there can be.
            referenced_bytes = u64::saturating_add(referenced_bytes, refs * raw_len);
            bad_chunks += u64::from(record.is_bad());
            if record.is_lost() {
                let sentence = format!("its content is lost; {refs} extents refer to it");
                report.add("chunk-lost", format_args!("chunk {fingerprint}"), sentence);
            } else {
                *live_bytes.entry(record.segment.get()).or_default() += record_len;
            }

            let seen = self.referenced.remove(&fingerprint);
            let seen_refs = seen.as_ref().map_or(0, |seen| u64::from(seen.refs));
            report.expect_equal(
                "chunk-references",
                format_args!("chunk {fingerprint}"),
                "the count of references",
                (refs, seen_refs),
            );
            if let Some(seen) = seen {
                report.expect_equal(
                    "chunk-length",
                    format_args!("chunk {fingerprint}"),
                    "the length in extents",
                    (u64::from(seen.chunk_len), raw_len),
                );
            }
            let is_dead = self.dead.remove(&fingerprint.0[..]);
            if is_dead != (refs == 0 && !record.is_disputed()) {
                let sentence = format!(
                    "it has {refs} references and {} among the chunks to reclaim",
                    if is_dead { "is" } else { "is not" }
                );
                report.add("dead-chunk", format_args!("chunk {fingerprint}"), sentence);
            }
        }
        for (fingerprint, referenced) in self.referenced {
            let sentence = format!(
                "{} extents refer to it, and the index has it not",
                referenced.refs
            );
            report.add(
                "chunk-missing",
                format_args!("chunk {fingerprint}"),
                sentence,
            );
        }
        for fingerprint in self.dead {
            let sentence = "it is to be reclaimed, and the index has it not".to_owned();
            report.add(
                "dead-chunk",
                format_args!("chunk {fingerprint:02x?}"),
                sentence,
            );
        }
        for (segment, record) in &frozen.segments {
            let live = live_bytes.remove(&segment.0).unwrap_or(0);
            report.expect_equal(
                "segment-live",
                format_args!("segment {segment}"),
                "the count of live bytes",
                (u64::from(record.live_bytes.get()), live),
            );
        }
        for (segment, live) in live_bytes {
            let sentence = format!("{live} bytes of chunks lie in it, and it is no data segment");
            report.add("segment-live", format_args!("segment {segment}"), sentence);
        }
        let pool = &frozen.pool;
        for (what, is, should_be) in [
            ("the count of chunks", pool.chunk_count, report.chunks),
            ("their content in bytes", pool.chunk_raw_bytes, raw_bytes),
            ("their stored bytes", pool.chunk_stored_bytes, stored_bytes),
            ("the count of references", pool.reference_count, references),
            (
                "the referenced bytes",
                pool.referenced_bytes,
                referenced_bytes,
            ),
            ("the count of bad chunks", pool.bad_chunks, bad_chunks),
        ] {
            report.expect_equal("pool-counters", "pool", what, (is.get(), should_be));
        }
        Ok(())
    }
}
