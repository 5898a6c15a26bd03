//! The whole crate from outside, on a device in memory.

mod arriving;
mod check;
mod clones;
mod crash;
mod golden;
mod kept;
mod locks;
mod model;
mod namespace;
mod pool;
mod rebuild;
mod rebuilt_clones;
mod rebuilt_past;
mod rebuilt_volumes;
mod recount;
mod removed_clones;
mod rest;
mod restore;
mod stream;
mod volumes;
