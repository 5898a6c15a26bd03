//! ClaudeFS in a simulated world: the real `cfs-fs`, `cfs-store`, `cfs-kv` and `cfs-seal` on a device in memory that
//! fails, tears, loses, lies and fills up by a seed, with a model of the file system beside them.
//!
//! One seed is one life of a pool: several rounds of open, check, random operations under one kind of trouble, and an
//! end (an orderly close or a power cut, which may come at any call of the device). Between two rounds a copy of the
//! pool may be damaged and looked at. Nothing in it depends on anything but the seed.
//!
//! | module | holds |
//! | --- | --- |
//! | `world` | a life: rounds, and what must hold after each |
//! | `trouble` | what goes wrong in a round |
//! | `names`, `contents` | operations, each on the file system and on the model |
//! | `snapshots`, `restore`, `volumes` | those on snapshots, volumes and clones |
//! | `edges` | those on files so long that decoded extents are kept in several parts |
//! | `look` | what is there, and whether the tables agree |
//! | `damage` | rot and old segments, on a copy |
//! | `model`, `content` | what should be there |
//! | `rot` | every block of a small pool damaged, one at a time |
//! | `rebuild` | a pool whose checkpoint or whole segments are destroyed, rebuilt |
//!
//! Beside it, `decoders` and `mutate` are for fuzzing what reads bytes.

mod content;
mod contents;
mod damage;
pub mod decoders;
mod edges;
mod look;
mod model;
pub mod mutate;
mod names;
mod rebuild;
mod restore;
mod rng;
mod rot;
mod snapshots;
mod trouble;
mod volumes;
mod world;

pub use rebuild::{RebuildOutcome, rebuild};
pub use rot::{RotOutcome, rot};
pub use world::{Outcome, replay_command, run};
