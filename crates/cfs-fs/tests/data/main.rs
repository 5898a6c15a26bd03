//! The content of files from outside, on a device in memory.

mod concurrent;
mod full_host;
mod limits;
mod model;
mod overlapping;
#[path = "../fs/pool.rs"]
mod pool;
mod reading;
