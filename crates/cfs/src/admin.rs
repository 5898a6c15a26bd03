//! Admin commands: the same handlers in the process that serves a pool and in one that opens it just for the command.

pub mod changes;
pub mod client;
pub mod debug;
mod gc;
mod lifecycle;
pub mod protocol;
pub mod receiver;
pub mod report;
pub mod reporter;
pub mod scrub;
pub mod service;
pub mod snapshots;
pub mod socket;
pub mod streams;
pub mod users;
mod volumes;
