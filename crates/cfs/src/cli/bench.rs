//! Options of `cfs bench`.

use std::path::PathBuf;

use cfs_seal::codec::Codec;
use clap::{Args, value_parser};

use super::Cipher;
use crate::bench;

pub(super) const BENCH_HELP: &str = "\
Measures the parts that data pass (on one core), the disk, and a new pool on that disk, and says which limit each path
meets. It writes up to an eighth of the disk's free room, at most 4 GiB, at a time; what it makes is removed.
A mount adds the kernel's part to what is shown, and other work on the machine takes from it.

Examples:
  cfs bench
  cfs bench /srv --codec zstd:1
  cfs bench /srv --json | jq '.paths[] | [.name, .measured, .limit]'";

/// Options of `cfs bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// An existing directory on the disk to measure
    #[arg(value_name = "DIR", default_value = ".")]
    pub dir: PathBuf,
    /// Cipher of the pool [default: aes-256-gcm if the processor has instructions for it]
    #[arg(long, value_enum)]
    pub cipher: Option<Cipher>,
    /// Compression of the pool: lz4, zstd:1 to zstd:19, or none [default: lz4]
    #[arg(long)]
    pub codec: Option<Codec>,
    /// About how long it takes; short runs say less
    #[arg(long, value_name = "N", default_value_t = bench::SECONDS, value_parser = value_parser!(u32).range(1..=3600))]
    pub seconds: u32,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}
