//! ClaudeFS: ordered tables: a log-structured merge tree over a run store, without a log of its own.
//!
//! A [`Tree`] maps keys to values in bytewise order. Batches go into a memtable; [`Tree::rotate`] and
//! [`Tree::flush_rotated`] turn memtables into sorted, immutable runs; [`Tree::manifest`] names the runs;
//! [`Tree::compact_step`] merges them. Whoever owns the tree keeps the log: after a crash it opens the tree from the
//! last manifest and applies again what came after it.
//!
//! The crate starts no thread, reads no clock and no entropy, and reaches storage through [`RunStore`] alone.
//! The byte layouts are described in `docs/format/runs.md`.

mod batch;
mod block;
mod cache;
mod compaction;
mod cursor;
mod error;
mod filter;
mod manifest;
mod memtable;
mod prefetch;
mod range;
mod run;
mod run_writer;
pub mod salvage;
mod search;
mod sorted;
mod state;
mod storage;
mod tree;
mod view;

pub use batch::{Batch, KEY_BYTES_MAX, VALUE_BYTES_MAX};
pub use cache::BlockCache;
pub use error::{OpenError, RunError};
pub use range::Range;
pub use storage::{BlockPtr, RunReason, RunStore, RunWriter};
pub use tree::{Tree, TreeOptions, TreeStats};
pub use view::View;
