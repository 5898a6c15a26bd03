//! Checking that all tables agree: what `cfs admin fsck` does.
//!
//! One pass over the meta tree in key order, in which all rows of an inode lie together, then one over the chunk
//! tree, both as of one moment. Nothing is repaired here and no chunk content is read; that is scrub's work. Memory:
//! about 64 bytes for each inode and each chunk.

mod affected;
mod chunks;
mod history;
mod inodes;
mod shown;

use std::ops::Bound;

use cfs_format::Ino;
use cfs_format::table::{split_key, tag};
use cfs_store::{Frozen, Store};

use crate::Fs;
use crate::error::Result;

pub use affected::{Affected, AffectedFile};

/// Findings that are listed at most; the rest are only counted.
const FINDINGS_MAX: usize = 10_000;
/// Rows between two reports of progress.
const PROGRESS_ROWS: u64 = 65_536;

/// Something that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The rule that does not hold; the same word for the same rule in every version.
    pub id: &'static str,
    /// What it was found at.
    pub object: String,
    /// What is and what should be.
    pub sentence: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}: {}", self.id, self.object, self.sentence)
    }
}

/// What a check looked at and found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Inodes.
    pub inodes: u64,
    /// Directory entries.
    pub entries: u64,
    /// Extents.
    pub extents: u64,
    /// Chunks.
    pub chunks: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Earlier states of rows that are kept for them.
    pub states: u64,
    /// The first findings; empty when all is well.
    pub findings: Vec<Finding>,
    /// Findings beyond those.
    pub findings_omitted: u64,
}

impl CheckReport {
    /// Whether nothing was found.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    fn add(&mut self, id: &'static str, object: impl std::fmt::Display, sentence: String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding {
                id,
                object: object.to_string(),
                sentence,
            });
        } else {
            self.findings_omitted += 1;
        }
    }

    /// A finding when the two numbers differ.
    fn expect_equal(
        &mut self,
        id: &'static str,
        object: impl std::fmt::Display,
        what: &str,
        (is, should_be): (u64, u64),
    ) {
        if is != should_be {
            self.add(
                id,
                object,
                format!("{what} is {is} and should be {should_be}"),
            );
        }
    }
}

impl Fs {
    /// Checks all tables, as of the newest command. `go_on` is told now and then how many rows have been seen, and
    /// says whether to go on; `None` when it did not want to.
    ///
    /// # Errors
    /// When a table cannot be read at all; what can be read and is wrong becomes a finding.
    pub fn check(&self, go_on: impl FnMut(u64) -> bool) -> Result<Option<CheckReport>> {
        check(&self.store, go_on)
    }
}

/// Checks a store's tables. See [`Fs::check`].
///
/// # Errors
/// When a table cannot be read.
pub fn check(store: &Store, mut go_on: impl FnMut(u64) -> bool) -> Result<Option<CheckReport>> {
    let frozen: Frozen = store.freeze();
    let mut report = CheckReport::default();
    let mut inodes = inodes::Inodes::new(store, &frozen);
    let mut chunks = chunks::Chunks::default();
    let mut history = history::History::new(store, &frozen, &mut report)?;
    let mut rows = 0;
    for row in frozen.meta.range(Bound::Unbounded, Bound::Unbounded) {
        let (key, value) = row.map_err(cfs_store::ReadError::from)?;
        match split_key(&key) {
            Ok((Ino(0), row_tag, suffix)) => match row_tag {
                tag::DEAD_CHUNK => chunks.dead_row(suffix),
                tag::HISTORY => history.state_row(suffix, &value, &mut chunks, &mut report)?,
                tag::ENDED => history.ended_row(suffix, &mut report)?,
                tag::ORPHAN => inodes.orphan_row(suffix, &mut report),
                _ => {}
            },
            Ok((ino, row_tag, suffix)) => {
                inodes.row(
                    ino,
                    row_tag,
                    suffix,
                    (&key, &value),
                    &mut chunks,
                    &mut report,
                )?;
            }
            Err(error) => report.add("key", format!("{key:02x?}"), error.to_string()),
        }
        rows += 1;
        if rows % PROGRESS_ROWS == 0 && !go_on(rows) {
            return Ok(None);
        }
    }
    inodes.finish(&mut report)?;
    history.finish(&mut report);
    chunks.finish(&frozen, &mut report)?;
    for (segment, sentence) in store.segment_contradictions() {
        report.add("segment-owner", format_args!("segment {segment}"), sentence);
    }
    Ok(go_on(rows).then_some(report))
}
