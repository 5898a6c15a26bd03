//! ClaudeFS: the file system mounted through FUSE.
//!
//! A thin edge: requests of the kernel become calls of [`cfs_fs::Fs`] and its answers replies. [`mount`] starts it;
//! the [`Mounted`] that it returns waits for the end, unmounts, and tells the kernel what changed behind its back.
//!
//! | module | holds |
//! | --- | --- |
//! | `abi` | the protocol's numbers and layouts |
//! | `channel` | the descriptors: a request in, a reply or notification out |
//! | `crew` | which threads wait for requests |
//! | `durable`, `syncs` | callers that wait until what they have written is durable; one flush for many of them |
//! | `request` | bytes to requests |
//! | `agreement` | INIT |
//! | `session` | threads, mounting, the end |
//! | `mountpoint`, `helper` | what must hold before mounting; mounting as root and as others |
//! | `carrier` | the block device under a mount that sync(2) reaches |
//! | `adapter`, `convert`, `directories` | requests to calls of the file system, and its values to replies |
//! | `lookups` | what the kernel knows, and what lives on for it alone |
//!
//! Not here on purpose: permission checks, locks, a write-back cache and symbolic link resolution, all of which are
//! the kernel's; `FICLONE`, which the kernel does not pass on (`copy_file_range` shares chunks all the same).

mod abi;
mod adapter;
mod agreement;
mod carrier;
mod channel;
mod convert;
mod crew;
mod directories;
mod durable;
mod helper;
mod lookups;
mod mountpoint;
mod request;
mod session;
mod syncs;

pub use mountpoint::{MountError, abort, check};
pub use session::{MountOptions, Mounted, SessionError, UnmountError, mount};
