//! The real binary, from outside: what a user types, what comes back, and what is then on the disk.
//!
//! Every process and mount that a test makes is taken away when the test ends, also when it fails. Tests that mount
//! say so on standard error and pass when there is no usable `/dev/fuse`, unless `CFS_REQUIRE_FUSE` is set.

mod admin;
mod bench;
mod clones;
mod entrances;
mod failing_device;
mod first_run;
mod full_host;
mod mount;
mod only_reads;
mod readme;
mod reclaim;
mod refusals;
mod repair;
mod s3;
#[path = "../../../cfs-s3/tests/s3/client.rs"]
#[expect(dead_code, reason = "shared with tests that use more of it")]
mod s3_client;
mod scrub;
mod snapshots;
mod streams;
mod support;
mod transfer;
mod trees;
mod volumes;
