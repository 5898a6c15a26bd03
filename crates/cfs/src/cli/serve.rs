//! What serves a pool: `cfs server` and `cfs mount`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::pool::PoolArgs;
use crate::s3::S3At;

pub(super) const SERVER_EXAMPLES: &str = "\
Examples:
  cfs server --mount /mnt/cfs
      Makes a pool in ./cfs-data if there is none yet, with a key file beside it, and mounts it.
  CFS_PASSPHRASE='correct horse' cfs server --data /srv/pool --mount /mnt/cfs
      The key comes from a passphrase; without the variable a terminal is asked.
  cfs server --data /srv/pool --device /dev/sdx --mount /mnt/cfs
      Chunks, tables and journal on a block device; DIR keeps the lock and the socket.
  cfs server --data /srv/pool --s3 0.0.0.0:9000 --tls-self-made --s3-domain s3.example.com
      S3 for others too, over HTTPS; buckets are also found at BUCKET.s3.example.com.

One line that starts with \"ready\" appears on standard output when files can be used. SIGTERM or Ctrl-C: everything is
flushed, the mount is removed, exit code 0.";

/// Options of `cfs server`.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// Data directory: the pool and what belongs to it; made on the first run
    #[arg(long, value_name = "DIR", default_value = "./cfs-data")]
    pub data: PathBuf,
    /// Where the files appear: an empty directory
    #[arg(long, value_name = "MNT")]
    pub mount: Option<PathBuf>,
    /// Where to speak S3; top-level directories are buckets [default: 127.0.0.1:9000, if it is free]
    #[arg(long, value_name = "ADDR|off")]
    pub s3: Option<S3At>,
    /// Options of the S3 face.
    #[command(flatten)]
    pub s3_options: S3Args,
    /// Options of the mount.
    #[command(flatten)]
    pub mounting: MountingArgs,
    /// Options of the pool.
    #[command(flatten)]
    pub pool: PoolArgs,
}

/// Options of `cfs mount`.
#[derive(Debug, Args)]
pub struct MountArgs {
    /// Data directory: the pool and what belongs to it; made on the first run
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Where the files appear: an empty directory
    #[arg(value_name = "MNT")]
    pub mount: PathBuf,
    /// Go to the background when the files can be used; log to DIR/log
    #[arg(long)]
    pub daemon: bool,
    /// Speak S3 at this address too; top-level directories are buckets [default: off]
    #[arg(long, value_name = "ADDR|off")]
    pub s3: Option<S3At>,
    /// Options of the S3 face.
    #[command(flatten)]
    pub s3_options: S3Args,
    /// Options of the mount.
    #[command(flatten)]
    pub mounting: MountingArgs,
    /// Options of the pool.
    #[command(flatten)]
    pub pool: PoolArgs,
}

/// Options of the S3 face.
#[derive(Debug, Args)]
#[command(next_help_heading = "S3 options")]
pub struct S3Args {
    /// Speak HTTPS with this certificate, which those that vouch for it follow: PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert: PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Speak HTTPS with a certificate that is made here and kept in the data directory; clients must be told to trust it
    #[arg(long, conflicts_with = "tls_cert")]
    pub tls_self_made: bool,
    /// Speak HTTP, although others on the network can read and copy what is sent
    #[arg(long, conflicts_with_all = ["tls_cert", "tls_self_made"])]
    pub s3_plain: bool,
    /// What ETags of new content are made of
    #[arg(long, value_enum, default_value_t = EtagKind::Md5)]
    pub s3_etag: EtagKind,
    /// Days after which an upload in parts ends that nobody goes on with; 0 for never
    #[arg(long, value_name = "N", default_value_t = 7)]
    pub s3_upload_days: u16,
    /// A domain with buckets in it, as in BUCKET.NAME; may be given often. BUCKET.localhost always works
    #[arg(long, value_name = "NAME", value_parser = s3_domain)]
    pub s3_domain: Vec<String>,
}

/// What ETags are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum EtagKind {
    /// The MD5 of the content, which some clients compare with their own; it takes a third of the time of all that is done
    #[default]
    Md5,
    /// Its SHA-256, as DIGITS-1, which clients compare with nothing; an MD5 is only computed to verify one that they send
    Sha256,
}

fn s3_domain(text: &str) -> Result<String, String> {
    match cfs_s3::is_domain(text) {
        true => Ok(text.to_owned()),
        false => Err("give a name without a port, as in s3.example.com".to_owned()),
    }
}

/// Options of a mount.
#[derive(Debug, Args)]
#[command(next_help_heading = "Mount options")]
pub struct MountingArgs {
    /// When reading a file updates its access time
    #[arg(long, value_enum, default_value_t = Atime::Relatime)]
    pub atime: Atime,
    /// Let other users than the one who mounts see the files (root does so anyway)
    #[arg(long)]
    pub allow_other: bool,
    /// Refuse all writes through the mount
    #[arg(long)]
    pub read_only: bool,
    /// Write nothing to the pool, as on a disk that fails or may not change; what opening it would write stays in memory
    #[arg(long)]
    pub read_only_pool: bool,
    /// Let listings of the roots of volumes show .snapshots; it is in every directory in any case
    #[arg(long)]
    pub list_snapshots: bool,
    /// Whether sync(2) and syncfs(2) write out everything that the mount holds
    #[arg(long, value_enum, default_value_t = SyncCalls::Auto)]
    pub sync_calls: SyncCalls,
}

/// Whether sync(2) reaches the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SyncCalls {
    /// Where the kernel can pass them on: for root, on Linux 6.18 and later; the mount then has the type fuseblk, over
    /// a loop device
    Auto,
    /// Never; a mount of the type fuse. What was closed is in the pool file a moment later, what stays open within 5 s
    Off,
}

/// When reading updates the access time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Atime {
    /// When it is older than the last change, or than a day
    Relatime,
    /// Never
    Noatime,
    /// Always
    Strict,
}
