//! Taking out of a tree what is left of it, when it cannot be opened as a whole.
//!
//! A tree that has lost blocks has no order that could be trusted further up; but a data block that authenticates holds
//! entries as they were written, and a manifest tells which runs are older than others. Who puts the entries of all
//! blocks that are left into a new tree, those of older runs first, has what the old one held, but for what was in the
//! lost blocks.

use crate::{
    BlockPtr, OpenError, RunError,
    block::{Block, KIND_DATA},
    manifest::{self, RunName},
};

/// A run as a manifest names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedRun {
    /// Its root, the last of its blocks.
    pub root: BlockPtr,
    /// The storage extents that hold it, in the order in which they were written.
    pub extents: Vec<u64>,
}

/// The runs that a manifest names, so that of two that hold the same key the newer one comes later.
///
/// # Errors
/// The bytes are no manifest, or one of a newer version.
pub fn runs_oldest_first(manifest: &[u8]) -> Result<Vec<NamedRun>, OpenError> {
    let names = manifest::decode(manifest)?;
    let newest_first = names.level0.into_iter().chain(names.levels);
    let mut runs: Vec<NamedRun> = newest_first
        .flatten()
        .map(|RunName { root, extents }| NamedRun { root, extents })
        .collect();
    runs.reverse();
    Ok(runs)
}

/// A key and its value; without one the key was removed.
pub type Entry = (Vec<u8>, Option<Vec<u8>>);

/// The entries of a block of a run, in the order of their keys; `None` when it is an index, a filter or a root.
///
/// # Errors
/// [`RunError::Corrupt`]: it says that it is a data block, and is none.
pub fn entries_of_block(block: BlockPtr, bytes: Vec<u8>) -> Result<Option<Vec<Entry>>, RunError> {
    if bytes.first() != Some(&KIND_DATA) {
        return Ok(None);
    }
    let parsed = Block::parse(bytes, KIND_DATA).map_err(|bad| bad.at(block))?;
    let entries = (0..parsed.len()).map(|position| {
        let place = parsed.place(position);
        let key = [parsed.prefix(), parsed.suffix(place)].concat();
        (key, parsed.value(place).map(<[u8]>::to_vec))
    });
    Ok(Some(entries.collect()))
}
