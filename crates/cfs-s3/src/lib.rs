//! ClaudeFS spoken to over S3: top-level directories are buckets, the regular files in them objects.
//!
//! A thin edge, as the mount is one: requests become calls of [`cfs_fs::Fs`], on threads that may block. What S3 keeps
//! of an object beside its content lies in records of its inode, which every change of the content through whatever
//! door outdates by itself.
//!
//! | module | holds |
//! | --- | --- |
//! | `server` | the listener, bounds, what comes before and after an operation |
//! | `access`, `signature2`, `users`, `acl`, `policy` | who asks, and what they may do |
//! | `api`, `ops` | operations of S3 |
//! | `face` | what they share |
//! | `buckets`, `configs`, `cors`, `objects`, `versions`, `listing`, `locks`, `lifecycle`, `expiry`, `uploads` | S3's notions on directories and files |
//! | `names`, `walk` | keys as names, and names in the order of keys |
//! | `records`, `metadata` | what is kept with inodes |
//! | `upload`, `download`, `customer` | bodies, and keys that clients bring for them |
//! | `conditions`, `errors`, `stats` | what they say |
//!
//! # Invariants
//! - An object appears in one step, complete and with its digests, and is acknowledged when it is durable.
//! - What a client can have us hold in memory is bounded, whatever it sends and however slowly.
//! - Symbolic links are not followed, so that no key leads out of its bucket.

mod access;
mod acl;
mod api;
mod buckets;
mod conditions;
mod configs;
mod cors;
mod customer;
mod download;
mod errors;
mod expiry;
mod face;
mod lifecycle;
mod listing;
mod locks;
mod metadata;
mod names;
mod objects;
mod ops;
mod policy;
mod records;
mod server;
mod signature2;
mod stats;
mod upload;
mod uploads;
mod users;
mod versions;
mod walk;

pub use expiry::{Expired, Kind, Lifecycle, Pass, Tally, WeakLifecycle};
pub use face::Watcher;
pub use server::{S3Server, StartError};
pub use users::{Key, ROOT_NAME, User, UserError, Users};
