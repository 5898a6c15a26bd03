//! ClaudeFS's store: everything durable is a segment, every change is a command in a log.
//!
//! | module | holds |
//! | --- | --- |
//! | `anchor` | the superblock, twice |
//! | `space` | the segment table: free, promised, in use, waiting |
//! | `lanes` | open data segments, one a worker |
//! | `chunks` | chunks in and out, pins |
//! | `stretch` | chunks that lie side by side, opened together |
//! | `journal` | the log as it is written |
//! | `log_reader` | the log as it is read back |
//! | `runs` | the tables' blocks in segments |
//! | `heal` | damaged blocks of tables and log, from parity |
//! | `txn` | one command |
//! | `checkpoint` | tables and superblock at one log position |
//! | `open` | making, opening and recovering a pool |
//! | `reclaim` | dropping dead chunks, making room for who waits |
//! | `clean` | compaction: which segments to empty, and emptying them |
//! | `pass` | reclaim that somebody has asked for |
//! | `pace` | how much of that may be done now |
//! | `scrub` | reading all of it to see whether it is whole |
//! | `inspect` | what `cfs debug` and `fsck` look at |
//! | `sync` | the locks of all of them |
//!
//! In which order locks are taken is told at [`Store`].

#![forbid(unsafe_code)]

mod anchor;
mod checkpoint;
mod chunks;
mod clean;
mod directory;
mod error;
mod heal;
mod inspect;
mod journal;
mod lanes;
mod log_reader;
mod open;
mod pace;
mod pass;
mod pool;
mod rebuild;
mod reclaim;
mod runs;
mod scrub;
mod sealed;
mod space;
mod store;
mod stretch;
mod sync;
mod txn;
mod verdicts;

pub use anchor::{UnverifiedSuperblock, read_superblock};
pub use cfs_kv::{Range, RunError, View};
pub use chunks::{CHUNK_BYTES_MAX, ChunkPin, NewChunk};
pub use directory::TableOwner;
pub use error::{FormatPoolError, NoSpace, OpenError, ReadError, UnlockError, WriteError};
pub use inspect::{
    DirectoryReport, Frozen, LoggedCommand, SegmentReport, TableScan, logged_commands,
};
pub use journal::COMMAND_BYTES_MAX;
pub use open::{FormatOptions, POOL_BYTES_MIN, ReplayError};
pub use pass::{ReclaimFor, ReclaimPlan, ReclaimProgress, ReclaimTotals, SegmentsOfTenth};
pub use pool::Host;
pub use rebuild::{
    LostRange, MendStage, Namespace, RebuildProgress, RebuildReport, Reference, RowChanges, Summary,
};
pub use scrub::{ScrubFinding, ScrubProgress, ScrubReport};
pub use sealed::ArrivalError;
pub use space::{OPENING_BYTES, SegmentCounts};
pub use store::{Health, Reservation, Store, StoreOptions, StoreStats};
pub use txn::{Txn, VolumeDelta};
