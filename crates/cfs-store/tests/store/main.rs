//! The store on a device in memory.

mod crash;
mod reclaim;
mod rot;
mod support;
mod together;
