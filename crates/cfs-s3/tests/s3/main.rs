//! The S3 face over a pool in memory, spoken to over TCP.

mod apart;
mod client;
mod clones;
mod customer;
mod doors;
mod extremes;
mod federation;
mod files;
mod forms;
mod iam;
mod keys;
mod lifecycle;
mod limits;
mod listing;
mod locks;
mod logs;
mod objects;
mod parts;
mod pool;
mod protocol;
mod sharing;
mod users;
mod versions;
