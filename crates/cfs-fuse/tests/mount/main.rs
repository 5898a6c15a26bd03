//! The file system as programs see it: mounted by this process over a pool in memory.

mod caches;
mod model;
mod mounting;
mod nameless;
mod ownership;
mod posix;
mod support;
mod syncs;
