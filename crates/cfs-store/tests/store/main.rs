//! The store on a device in memory.

mod crash;
mod rot;
mod support;
