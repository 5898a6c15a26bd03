//! ClaudeFS in a simulated world: the real `cfs-fs`, `cfs-store`, `cfs-kv` and `cfs-seal` on a device in memory that
//! fails, tears, loses and fills up by a seed, with a model of the file system beside them.
//!
//! One seed is one life of a pool: several rounds of open, check, random operations, and an end (an orderly close or
//! a power cut, perhaps after a failed write or flush). Nothing in it depends on anything but the seed.
//!
//! Beside that, [`rot`] damages a pool block by block.

mod model;
mod rng;
mod rot;
mod world;

pub use rot::{RotOutcome, rot};
pub use world::{Outcome, run};
