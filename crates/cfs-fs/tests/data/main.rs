//! The content of files from outside, on a device in memory.

mod concurrent;
mod limits;
mod model;
#[path = "../fs/pool.rs"]
mod pool;
