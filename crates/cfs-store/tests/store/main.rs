//! The store on a device in memory.

mod codecs;
mod crash;
mod reclaim;
mod rot;
mod support;
mod together;
