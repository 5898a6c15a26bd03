//! ClaudeFS spoken to over S3: top-level directories are buckets, the regular files in them objects.
//!
//! A thin edge, as the mount is one: requests become calls of [`cfs_fs::Fs`], on threads that may block. What S3 keeps
//! of an object beside its content lies in records of its inode, which every change of the content through whatever
//! door outdates by itself.
//!
//! | module | holds |
//! | --- | --- |
//! | `server`, `patience` | the listener, its bounds |
//! | `tls`, `hosts` | certificates, buckets in the host's name |
//! | `answer` | what comes before and after an operation |
//! | `access`, `signature2`, `signature4`, `users`, `principal`, `acl`, `policy` | who asks, and what they may do |
//! | `iam`, `issuers` | what says so: the operations of IAM and STS, and tokens of identity providers |
//! | `api`, `ops` | operations of S3 |
//! | `face` | what they share |
//! | `buckets`, `configs`, `cors`, `objects`, `versions`, `listing`, `locks`, `logging`, `lifecycle`, `expiry`, `uploads`, `abandoned` | S3's notions on directories and files |
//! | `names`, `walk` | keys as names, and names in the order of keys |
//! | `records`, `metadata`, `parts` | what is kept with inodes |
//! | `bodies`, `upload`, `md5`, `download`, `customer`, `kms` | bodies: what they may have us hold, in, out, and keys that clients bring or name for them |
//! | `conditions`, `errors` | what they say |
//! | `stats`, `statistics` | figures, and who may see them |
//! | `decoders` | for fuzzing, what decodes records |
//!
//! # Invariants
//! - An object appears in one step, complete and with its digests, and is acknowledged when it is durable.
//! - What a client can have us hold in memory is bounded, whatever it sends and however slowly.
//! - Symbolic links are not followed, so that no key leads out of its bucket.

mod abandoned;
mod access;
mod acl;
mod answer;
mod api;
mod bodies;
mod buckets;
mod conditions;
mod configs;
mod cors;
mod customer;
#[cfg(any(test, feature = "decoders"))]
pub mod decoders;
mod download;
mod due;
mod errors;
mod expiry;
mod face;
mod forms;
mod hosts;
mod iam;
mod issuers;
mod kms;
mod lifecycle;
mod listing;
mod locks;
mod logging;
mod md5;
mod metadata;
mod names;
mod objects;
mod ops;
mod parts;
mod patience;
mod policy;
mod principal;
mod records;
mod server;
mod signature2;
mod signature4;
mod statistics;
mod stats;
mod tls;
mod upload;
mod uploads;
mod users;
mod versions;
mod walk;

pub use expiry::{Expired, Kind, Lifecycle, Pass, Tally, WeakLifecycle};
pub use face::Watcher;
pub use hosts::is_domain;
pub use issuers::{IssuerError, ShownIssuer};
pub use server::{LOG_PATIENCE, Listening, S3Server, StartError};
pub use tls::{Certificate, CertificateError, Pem};
pub use upload::Etags;
pub use users::{Key, NewUser, ROOT_NAME, User, UserError, Users};
