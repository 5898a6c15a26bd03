//! Where a pool is, what opens it, how it is made and repaired: options that many commands share.

use std::path::PathBuf;

use cfs_seal::codec::Codec;
use clap::{Args, ValueEnum};

use crate::bytes;

pub(super) const INIT_HELP: &str = "\
`cfs server` and `cfs mount` make a pool on their first run too. A replica has keys of its own but for the secret that
seals chunks; so what another pool sends is stored as it comes.

Example:
  cfs init --data /srv/copy --replica-of replica.key";

pub(super) const REPAIR_HELP: &str = "\
For a pool that other commands do not open. Make a copy of it first if there is room for one.

--accept-log-loss: the log has lost acknowledged changes to damage; the pool's state is then that of the last change
before the damage.

--rebuild-index: the checkpoint, the superblock or tables are damaged beyond what copies and parity bring back. All
segments are read; what is found in them is put together again, and what is lost is listed by path: names that are gone,
files with parts that cannot be read. Files without a name go to /lost+found. Interrupted, it has changed nothing.

Exit code 0: all is there. 1: something is lost, and has been told.

Examples:
  cfs repair --accept-log-loss --data /srv/pool && cfs admin fsck --data /srv/pool
  cfs repair --rebuild-index --data /srv/pool > lost.txt";

/// Options of `cfs init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Data directory of the new pool
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Make it able to receive from the pool that wrote this file with `cfs admin key replica`
    #[arg(long, value_name = "FILE")]
    pub replica_of: Option<PathBuf>,
    /// Options of the pool.
    #[command(flatten)]
    pub pool: PoolArgs,
}

/// Kinds of repair.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Repair {
    /// Go on without the changes that a damaged log has lost
    #[arg(long)]
    pub accept_log_loss: bool,
    /// Make index and tables anew from the segments
    #[arg(long)]
    pub rebuild_index: bool,
}

/// Options of `cfs repair`.
#[derive(Debug, Args)]
pub struct RepairArgs {
    /// What to do.
    #[command(flatten)]
    pub repair: Repair,
    /// Print the summary and the findings as JSON
    #[arg(long, conflicts_with = "accept_log_loss")]
    pub json: bool,
    /// Where the pool is.
    #[command(flatten)]
    pub existing: ExistingArgs,
}

/// Where an existing pool is and what opens it.
#[derive(Debug, Args)]
pub struct ExistingArgs {
    /// Data directory
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// What opens it.
    #[command(flatten)]
    pub key: KeyArgs,
}

/// What opens a pool.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Key")]
pub struct KeyArgs {
    /// File whose first line is the passphrase; else CFS_PASSPHRASE, else a prompt
    #[arg(long, value_name = "FILE", conflicts_with = "key_file")]
    pub passphrase_file: Option<PathBuf>,
    /// Key file; DIR/key if the pool has one there. The first run makes it where it does not exist
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
}

/// Options of a pool: its key, how it is made on the first run, and what it may use.
#[derive(Debug, Args)]
pub struct PoolArgs {
    /// What opens it.
    #[command(flatten)]
    pub key: KeyArgs,
    /// How it is made.
    #[command(flatten)]
    pub first_run: FirstRunArgs,
    /// What it may use.
    #[command(flatten)]
    pub budgets: BudgetArgs,
}

impl PoolArgs {
    /// An option that was given and counts only for the process that opens the pool.
    pub fn first_for_opening(&self) -> Option<&'static str> {
        [
            ("--pool-size", self.first_run.pool_size.is_some()),
            ("--device", self.first_run.device.is_some()),
            ("--cipher", self.first_run.cipher.is_some()),
            ("--codec", self.first_run.codec.is_some()),
            ("--dirty-bytes", self.budgets.dirty_bytes.is_some()),
            ("--hot-bytes", self.budgets.hot_bytes.is_some()),
            ("--table-bytes", self.budgets.table_bytes.is_some()),
        ]
        .into_iter()
        .find_map(|(option, is_given)| is_given.then_some(option))
    }
}

/// How a pool is made.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "First run")]
pub struct FirstRunArgs {
    /// Most room that the pool may take on the host; it starts small and grows. Later runs can raise it [default: the host
    /// decides]
    #[arg(long, value_name = "BYTES", value_parser = bytes::parse)]
    pub pool_size: Option<u64>,
    /// Put the pool on this block device, which must be blank, instead of into a file
    #[arg(long, value_name = "/dev/..")]
    pub device: Option<PathBuf>,
    /// Cipher [default: aes-256-gcm if the processor has instructions for it]
    #[arg(long, value_enum)]
    pub cipher: Option<Cipher>,
    /// Compression of new data: lz4, zstd:1 to zstd:19, or none [default: lz4]
    #[arg(long)]
    pub codec: Option<Codec>,
    /// What it is made with to be a replica; of `cfs init` alone.
    #[arg(skip)]
    pub replica_of: Option<PathBuf>,
}

/// The ciphers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Cipher {
    /// AES-256 in Galois/counter mode
    #[value(name = "aes-256-gcm")]
    Aes256Gcm,
    /// ChaCha20 with Poly1305 (RFC 8439)
    #[value(name = "chacha20-poly1305")]
    ChaCha20Poly1305,
}

/// What a pool may use while it is open.
#[derive(Clone, Copy, Debug, Default, Args)]
#[command(next_help_heading = "Budgets")]
pub struct BudgetArgs {
    /// Memory for data that are not yet stored [default: 256M, or a quarter of the memory if that is less]
    #[arg(long, value_name = "BYTES", value_parser = dirty_bytes)]
    pub dirty_bytes: Option<u64>,
    /// Memory for opened chunks [default: an eighth of the memory, for a single command at most 128M]
    #[arg(long, value_name = "BYTES", value_parser = bytes::parse)]
    pub hot_bytes: Option<u64>,
    /// Memory for the tables: half for blocks of them, half for changes that they have not got yet [default: 192M; a
    /// process that serves keeps more blocks, a 64th of the memory, at most 512M]
    #[arg(long, value_name = "BYTES", value_parser = table_bytes)]
    pub table_bytes: Option<u64>,
}

/// Less does not hold what one request brings.
const DIRTY_BYTES_MIN: u64 = 1 << 20;
/// With less a few commands fill a memtable.
const TABLE_BYTES_MIN: u64 = 8 << 20;

fn dirty_bytes(text: &str) -> Result<u64, String> {
    at_least(DIRTY_BYTES_MIN, text)
}

fn table_bytes(text: &str) -> Result<u64, String> {
    at_least(TABLE_BYTES_MIN, text)
}

fn at_least(min: u64, text: &str) -> Result<u64, String> {
    match bytes::parse(text)? {
        amount if amount < min => Err(format!(
            "'{text}' is too little; give at least {}",
            bytes::show(min)
        )),
        amount => Ok(amount),
    }
}
