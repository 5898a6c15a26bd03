//! The command line: every command and option, with help that teaches by example.

use std::num::NonZeroU64;
use std::path::PathBuf;

use cfs_seal::codec::Codec;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::bytes;
use crate::s3::S3At;

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    done in part, or something was found (findings, files that could not be copied)
  2    the command line does not make sense
  3    wrong passphrase or key file
  4    the pool is in use by another process
  5    no pool there, or it is damaged, foreign or of a newer format
  6    the mount point or /dev/fuse cannot be used
  7    the host has no room, is read-only or denies access
  130  interrupted by a signal; nothing is lost, the same command goes on";

const TOP_EXAMPLES: &str = "\
Examples:
  cfs server --mount /mnt/cfs                 a pool in ./cfs-data, its files at /mnt/cfs
  cfs mount --data /srv/pool /mnt/cfs --daemon
  cfs import ~/photos / --data /srv/pool      copy in without FUSE
  cfs admin user add alice --data /srv/pool   a user of the S3 face
  cfs admin status --data /srv/pool           what it saves
  cfs admin fsck --data /srv/pool             verify every reference and count
  cfs admin scrub --data /srv/pool            verify every byte that is stored
  cfs admin gc --dry-run --data /srv/pool     what is dead weight, and where

";

const SERVER_EXAMPLES: &str = "\
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

const IMPORT_EXAMPLES: &str = "\
As with `cp -a SRC.. DEST`: if DEST is a directory in the pool, each SRC is copied to DEST/<name of SRC>, and `SRC/.`
copies the content of SRC into DEST itself. If DEST does not exist, it becomes the copy of the one SRC, and missing
parents are made. With --no-target-directory DEST is always the copy itself.

Files whose type, size, modification time and mode already match are not read again, so an import that was interrupted
goes on when the same command is run with --no-target-directory, or with a DEST that was there from the start. Times
are set last: a file that was copied in part never matches.

Examples:
  cfs import ~/photos ~/music / --data /srv/pool        /photos and /music in the pool
  cfs import ~/photos/. /photos-2026 --data /srv/pool
  cfs import -T /home /backup/home --data /srv/pool     run again: only what changed";

const EXPORT_EXAMPLES: &str = "\
SRC is a path in the pool, DEST one on the host, with the rules of `cp -a SRC DEST`: into DEST if that is a directory,
else DEST becomes the copy. With --no-target-directory DEST is always the copy itself. What already matches in type,
size, modification time and mode is not written again.

Examples:
  cfs export /photos /tmp --data /srv/pool              /tmp/photos
  cfs export / /restore -T --data /srv/pool             everything";

const SCRUB_HELP: &str = "\
Works beside a server under load. Damaged blocks of tables, log and superblock are restored from parity or a copy. For
damaged content each file is named with the byte ranges that cannot be read; all else of the file can. When the server
that has found the damage is given the same content again, as with `cfs import` from a good copy to anywhere, it heals
every file that has it.

Exit code 0: nothing found, or only what could be restored. 1: findings. 130: interrupted; nothing is lost.

Examples:
  cfs admin scrub --data /srv/pool
  cfs admin scrub --data /srv/pool --rate 50M --json";

const GC_HELP: &str = "\
Nobody has to ask for this: a pool is compacted by itself, until a tenth of it is dead weight while it is in use, and a
twentieth when it is not. A pass goes further: it empties every segment of which more than a twentieth is dead. First the
plan is shown: how many segments hold how much that is still needed, what is to be copied, what comes free.

Without options the pass runs in the background at a pace that others hardly notice, and this command watches it. Ctrl-C
ends the watching; in a server the pass goes on, and `cfs admin status` tells how far it is. With --now Ctrl-C ends the
pass itself.

With --recount the extents of all files are counted against the counts of references by which chunks are freed. That, too,
happens by itself, once a week and after a crash, slowly and while nobody uses the pool. Only what both agree on is ever
freed; what they disagree on is a finding, and stays.

Exit code 0: done. 1: the pool is read-only, or cannot be read, or findings of a recount. 130: interrupted; nothing is lost.

Examples:
  cfs admin gc --dry-run --data /srv/pool
  cfs admin gc --data /srv/pool
  cfs admin gc --now --json --data /srv/pool
  cfs admin gc --recount --data /srv/pool";

const LIFECYCLE_HELP: &str = "\
Rules come over S3 (PutBucketLifecycleConfiguration): they say which versions, delete markers and unfinished uploads of a
bucket go, after how many days, by prefix, tag and size. A server that speaks S3 follows them each hour. This command does so
at once, also without a server. What object lock protects stays, whatever a rule says.

Exit code 0: done. 1: something could not be read or removed. 130: interrupted; what was done stays done.

Examples:
  cfs admin lifecycle --dry-run --data /srv/pool
  cfs admin lifecycle --bucket logs --data /srv/pool";

const REPAIR_HELP: &str = "\
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

const SNAPSHOT_LIST_HELP: &str = "\
For each: how much content it shows (logical), what chunks that nothing else holds take in the pool (it alone), and what
would come back if it were deleted together with those given with --with (freed).

Examples:
  cfs admin snapshot list --data /srv/pool
  cfs admin snapshot list /home --with monday --with tuesday --data /srv/pool";

const SNAPSHOT_DIFF_HELP: &str = "\
One line for each path that differs; with --json one object a line. Access times do not count.

Examples:
  cfs admin snapshot diff /home monday --data /srv/pool
  cfs admin snapshot diff /home monday tuesday --json --data /srv/pool";

const SNAPSHOT_RESTORE_HELP: &str = "\
Content is not copied, and what has not changed is left alone. A file has its old or its restored content at any time, never
anything between. What was made since the snapshot stays, unless --delete is given.

Exit code 1: some objects could not be restored; each is named.

Examples:
  cfs admin snapshot restore /home monday --data /srv/pool
  cfs admin snapshot restore /home monday letters/a.txt photos --data /srv/pool";

const INIT_HELP: &str = "\
`cfs server` and `cfs mount` make a pool on their first run too. A replica has keys of its own but for the secret that
seals chunks; so what another pool sends is stored as it comes.

Example:
  cfs init --data /srv/copy --replica-of replica.key";

const SEND_HELP: &str = "\
Chunks go as they are stored, all else is encrypted and authenticated. `cfs receive` puts it into a pool that was made
with `cfs init --replica-of`.

Example:
  cfs send /home@monday --data /srv/pool > monday
  cfs send /home@tuesday --from monday --data /srv/pool > tuesday";

const RECEIVE_HELP: &str = "\
The snapshot is there when all has come and been checked. What came before a stream was cut off stays, and the next
attempt goes on from it. What was changed at the path since the last received snapshot is undone.

Example:
  cfs receive --data /srv/copy < monday
  cfs send /home@monday --data /srv/pool | ssh host cfs receive --data /srv/copy /backup/home";

const REPLICATE_HELP: &str = "\
The other side is asked which earlier snapshots and which chunks it has. A run that was cut off goes on where it ended.
A command as target needs two words or more, and `--` before it if it has options.

Example:
  cfs replicate /home@monday /srv/copy --data /srv/pool
  cfs replicate /home@monday --data /srv/pool -- ssh host cfs receive --data /srv/copy /backup/home";

const VOLUME_CREATE_HELP: &str = "\
A volume is seen as a directory. Names cannot be moved or linked from one volume to another (mv copies). A snapshot of
a directory shows the volumes in it empty; they have snapshots of their own. What would make a volume larger than its
quota is refused with EDQUOT when it is written; `df` in it shows what the quota leaves.

Example:
  cfs admin volume create /home/ann --quota-bytes 10G --quota-inodes 200000 --data /srv/pool";

const SNAPSHOT_POLICY_HELP: &str = "\
While the pool is open, one snapshot is taken in each hour, day, week (from Monday) and month, in UTC, that is asked for;
its name tells it: hourly-2026-11-22-17, daily-2026-11-22, weekly-2026-11-16, monthly-2026-11. Of each kind the newest
are kept. A snapshot that is held stays, and does not count.

Example:
  cfs admin snapshot policy /home hourly=24,daily=7,weekly=4,monthly=12 --data /srv/pool";

const SNAPSHOT_CREATE_HELP: &str = "\
It holds exactly what has been acknowledged before, in all files, and can be read in the mount, in .snapshots/NAME of the
directory and of each below it; listings do not show .snapshots, unless the mount was made with --list-snapshots. To go
back to it, copy from there.

A snapshot of one directory keeps what changes in its whole volume.

Examples:
  cfs admin snapshot create /home --name monday --data /srv/pool
  cp -a /mnt/cfs/home/.snapshots/monday/letter.txt /mnt/cfs/home/";

const DEBUG_EXAMPLES: &str = "\
Examples:
  cfs debug superblock --data /srv/pool
  cfs debug segment 17 --data /srv/pool
  cfs debug inode /photos/a.jpg --data /srv/pool
  cfs debug extents 4711 --data /srv/pool";

/// Files, deduplicated, compressed and encrypted, in a directory that survives a kill.
#[derive(Debug, Parser)]
#[command(name = "cfs", version, max_term_width = 110, after_help = TOP_EXAMPLES.to_owned() + EXIT_CODES)]
pub struct Cli {
    /// What to log to standard error: error, warn, info, debug, trace, or filters as in `cfs_store=debug`
    #[arg(long, global = true, env = "CFS_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a pool: make it on the first run, mount it, answer admin commands
    #[command(after_help = SERVER_EXAMPLES)]
    Server(ServerArgs),
    /// Mount a pool, in the foreground or as a daemon
    #[command(
        after_help = "Example:\n  cfs mount --data /srv/pool /mnt/cfs --daemon && ls /mnt/cfs"
    )]
    Mount(MountArgs),
    /// Copy files and directories into a pool without a mount, in parallel
    #[command(after_help = IMPORT_EXAMPLES)]
    Import(ImportArgs),
    /// Copy files and directories out of a pool without a mount, in parallel
    #[command(after_help = EXPORT_EXAMPLES)]
    Export(ExportArgs),
    /// Make a pool, without serving it
    #[command(after_help = INIT_HELP)]
    Init(InitArgs),
    /// Write a snapshot, or what is new since an earlier one, to standard output
    #[command(after_help = SEND_HELP)]
    Send(SendArgs),
    /// Read from standard input what `cfs send` has written, and have the same snapshot here
    #[command(after_help = RECEIVE_HELP)]
    Receive(ReceiveArgs),
    /// Have a snapshot in another pool too: only what that one lacks is sent
    #[command(after_help = REPLICATE_HELP)]
    Replicate(ReplicateArgs),
    /// Look after a pool, whether it is being served or not
    Admin {
        /// The admin command.
        #[command(subcommand)]
        command: AdminCommand,
    },
    /// Bring a pool back that does not open
    #[command(after_help = REPAIR_HELP)]
    Repair(RepairArgs),
    /// Print the structures on the device
    #[command(after_help = DEBUG_EXAMPLES)]
    Debug {
        /// The structure.
        #[command(subcommand)]
        command: DebugCommand,
    },
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  cfs completions bash > /etc/bash_completion.d/cfs")]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write the manual pages into a directory
    #[command(after_help = "Example:\n  cfs man /usr/local/share/man/man1")]
    Man {
        /// An existing directory.
        dir: PathBuf,
    },
}

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
    /// The MD5 of the content, which some clients compare with their own; it takes as long as all else together
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

/// Options of `cfs import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Files and directories on the host
    #[arg(required = true, num_args = 1.., value_name = "SRC")]
    pub sources: Vec<PathBuf>,
    /// Where they go in the pool
    #[arg(value_name = "DEST")]
    pub dest: PathBuf,
    /// How to copy.
    #[command(flatten)]
    pub transfer: TransferArgs,
    /// Data directory; a pool is made there on the first run
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Options of the pool.
    #[command(flatten)]
    pub pool: PoolArgs,
}

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

/// Options of `cfs send`.
#[derive(Debug, Args)]
pub struct SendArgs {
    /// Directory, from the root of the pool, and name of its snapshot
    #[arg(value_name = "PATH@NAME")]
    pub snapshot: std::ffi::OsString,
    /// Only what is different from this earlier snapshot of the same directory
    #[arg(long, value_name = "NAME")]
    pub from: Option<std::ffi::OsString>,
    /// Where the pool is.
    #[command(flatten)]
    pub existing: ExistingArgs,
}

/// Options of `cfs receive`.
#[derive(Debug, Args)]
pub struct ReceiveArgs {
    /// Where it goes in this pool: a new path, or that of an earlier one [default: the path that it had]
    pub path: Option<PathBuf>,
    /// Where the pool is.
    #[command(flatten)]
    pub existing: ExistingArgs,
}

/// Options of `cfs replicate`.
#[derive(Debug, Args)]
pub struct ReplicateArgs {
    /// Directory, from the root of the pool, and name of its snapshot
    #[arg(value_name = "PATH@NAME")]
    pub snapshot: std::ffi::OsString,
    /// Data directory of the other pool; or a command that runs `cfs receive`, in several words
    #[arg(required = true, num_args = 1.., value_name = "TARGET")]
    pub target: Vec<std::ffi::OsString>,
    /// Where it goes in the pool of a data directory [default: the path that it has here]
    #[arg(long, value_name = "PATH")]
    pub path: Option<PathBuf>,
    /// Where the pool is.
    #[command(flatten)]
    pub existing: ExistingArgs,
}

/// Options of `cfs export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// A file or directory in the pool
    #[arg(value_name = "SRC")]
    pub source: PathBuf,
    /// Where it goes on the host
    #[arg(value_name = "DEST")]
    pub dest: PathBuf,
    /// How to copy.
    #[command(flatten)]
    pub transfer: TransferArgs,
    /// Where the pool is.
    #[command(flatten)]
    pub existing: ExistingArgs,
}

/// Options that import and export share.
#[derive(Debug, Args)]
pub struct TransferArgs {
    /// DEST is the copy itself, even if it is a directory that exists
    #[arg(short = 'T', long)]
    pub no_target_directory: bool,
    /// Files to copy at a time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: u16,
    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
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
        ]
        .into_iter()
        .find_map(|(option, is_given)| is_given.then_some(option))
    }
}

/// How a pool is made.
#[derive(Debug, Args)]
#[command(next_help_heading = "First run")]
pub struct FirstRunArgs {
    /// Most room that the pool may take on the host; it starts small and grows [default: the host decides]
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
    #[arg(long, value_name = "BYTES", value_parser = bytes::parse)]
    pub dirty_bytes: Option<u64>,
    /// Memory for opened chunks [default: an eighth of the memory]
    #[arg(long, value_name = "BYTES", value_parser = bytes::parse)]
    pub hot_bytes: Option<u64>,
}

/// The admin commands.
#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// Health, room, and what deduplication and compression save
    #[command(
        after_help = "Example:\n  cfs admin status --data /srv/pool --json | jq .stored_bytes"
    )]
    Status(ReportArgs),
    /// Bytes of each volume: logical, and in all: unique, stored, taken from the host
    Df(ReportArgs),
    /// Dedup domains: data are shared within one and unrelated between two
    LsDomains(ReportArgs),
    /// Walk everything and verify every reference and count
    #[command(
        after_help = "Exit code 0: nothing found. 1: findings, each with a stable id and the object it concerns."
    )]
    Fsck(ReportArgs),
    /// Read all that is stored, restore damaged metadata, and name the files that damaged content belongs to
    #[command(after_help = SCRUB_HELP)]
    Scrub(ScrubArgs),
    /// Empty segments of which little is still needed, so that the host gets their room back
    #[command(after_help = GC_HELP)]
    Gc(GcArgs),
    /// Keep a directory as it is now, and go back to what was kept
    Snapshot {
        /// The snapshot command.
        #[command(subcommand)]
        command: SnapshotCommand,
    },
    /// Remove what lifecycle rules of buckets say is due, which a server does by itself each hour
    #[command(after_help = LIFECYCLE_HELP)]
    Lifecycle(LifecycleArgs),
    /// Directories with snapshots, quotas and, by choice, a dedup domain of their own
    Volume {
        /// The volume command.
        #[command(subcommand)]
        command: VolumeCommand,
    },
    /// Users of the S3 face
    User {
        /// The user command.
        #[command(subcommand)]
        command: UserCommand,
    },
    /// Keys: of the pool, and of users of the S3 face
    Key {
        /// The key command.
        #[command(subcommand)]
        command: KeyCommand,
    },
}

/// The snapshot commands.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Take a snapshot of a directory and all below it, in no time whatever its size
    #[command(after_help = SNAPSHOT_CREATE_HELP)]
    Create {
        /// Which snapshot.
        #[command(flatten)]
        snapshot: NewSnapshotArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Tell which snapshots there are
    #[command(after_help = SNAPSHOT_LIST_HELP)]
    List {
        /// Directory, from the root of the pool [default: all that have snapshots]
        path: Option<PathBuf>,
        /// Tell what would be freed if each were deleted together with this one; may be given often
        #[arg(long, value_name = "NAME")]
        with: Vec<std::ffi::OsString>,
        /// Options of any report.
        #[command(flatten)]
        report: ReportArgs,
    },
    /// Tell what was created, changed, renamed and deleted since a snapshot, or between two
    #[command(after_help = SNAPSHOT_DIFF_HELP)]
    Diff {
        /// Directory, from the root of the pool
        path: PathBuf,
        /// Name of the snapshot
        name: std::ffi::OsString,
        /// Name of a later one to compare with [default: what is there now]
        to: Option<std::ffi::OsString>,
        /// Options of any report.
        #[command(flatten)]
        report: ReportArgs,
    },
    /// Bring back what a snapshot shows: by reference, each file in one step
    #[command(after_help = SNAPSHOT_RESTORE_HELP)]
    Restore {
        /// Directory, from the root of the pool
        path: PathBuf,
        /// Name of the snapshot
        name: std::ffi::OsString,
        /// Paths in the directory [default: all of it]
        #[arg(value_name = "SUBPATH")]
        below: Vec<PathBuf>,
        /// Remove what the snapshot does not show
        #[arg(long)]
        delete: bool,
        /// Options of any report.
        #[command(flatten)]
        report: ReportArgs,
    },
    /// Have snapshots taken by themselves and old ones deleted, or tell of which directories they are
    #[command(after_help = SNAPSHOT_POLICY_HELP)]
    Policy {
        /// Directory, from the root of the pool [default: all that have a policy]
        path: Option<PathBuf>,
        /// How many are kept: hourly=N, daily=N, weekly=N, monthly=N, with commas between [default: only tell]
        #[arg(requires = "path")]
        policy: Option<String>,
        /// End it; snapshots that there are stay
        #[arg(long, requires = "path", conflicts_with = "policy")]
        remove: bool,
        /// Options of any report.
        #[command(flatten)]
        report: ReportArgs,
    },
    /// Delete a snapshot; its room comes back in the background
    #[command(
        after_help = "Example:\n  cfs admin snapshot delete /home --name monday --data /srv/pool"
    )]
    Delete(SnapshotArgs),
    /// Keep a snapshot from being deleted
    #[command(
        after_help = "Example:\n  cfs admin snapshot hold /home --name monday --data /srv/pool"
    )]
    Hold(SnapshotArgs),
    /// Let a snapshot that is held be deleted again
    #[command(
        after_help = "Example:\n  cfs admin snapshot release /home --name monday --data /srv/pool"
    )]
    Release(SnapshotArgs),
}

/// A snapshot to take.
#[derive(Debug, Args)]
pub struct NewSnapshotArgs {
    /// Directory, from the root of the pool
    pub path: PathBuf,
    /// Name of the snapshot
    #[arg(long)]
    pub name: std::ffi::OsString,
    /// Where the pool is.
    #[command(flatten)]
    pub existing: ExistingArgs,
}

/// Which snapshot.
#[derive(Debug, Args)]
pub struct SnapshotArgs {
    /// Directory, from the root of the pool
    #[arg(required_unless_present = "id", requires = "name")]
    pub path: Option<PathBuf>,
    /// Name of the snapshot
    #[arg(long, requires = "path")]
    pub name: Option<std::ffi::OsString>,
    /// Its id as `snapshot list` tells it, instead of path and name
    #[arg(long, value_name = "ID", conflicts_with_all = ["path", "name"])]
    pub id: Option<String>,
    /// Where the pool is.
    #[command(flatten)]
    pub existing: ExistingArgs,
}

/// The volume commands.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make a volume: a new directory with snapshots and quotas of its own
    #[command(after_help = VOLUME_CREATE_HELP)]
    Create {
        /// Its root, a new directory, from the root of the pool
        path: PathBuf,
        /// Most bytes of content, as the sizes of its files add up [default: no bound]
        #[arg(long, value_name = "BYTES", value_parser = bytes::parse)]
        quota_bytes: Option<u64>,
        /// Most inodes, its root among them [default: no bound]
        #[arg(long, value_name = "COUNT")]
        quota_inodes: Option<u64>,
        /// Share no chunks with other volumes, under a secret of its own
        #[arg(long)]
        own_domain: bool,
        /// Where the pool is.
        #[command(flatten)]
        existing: ExistingArgs,
    },
    /// Change the quotas of a volume; what is not given stays
    #[command(
        after_help = "Example:\n  cfs admin volume set /home/ann --quota-bytes 20G --data /srv/pool\n\n0 is no bound."
    )]
    Set {
        /// Its root, from the root of the pool
        path: PathBuf,
        /// Most bytes of content; 0 for no bound
        #[arg(long, value_name = "BYTES", value_parser = bytes::parse, required_unless_present = "quota_inodes")]
        quota_bytes: Option<u64>,
        /// Most inodes; 0 for no bound
        #[arg(long, value_name = "COUNT")]
        quota_inodes: Option<u64>,
        /// Where the pool is.
        #[command(flatten)]
        existing: ExistingArgs,
    },
    /// Tell which volumes there are, what is in them and what may be
    List(ReportArgs),
    /// Remove a volume
    #[command(
        after_help = "Example:\n  cfs admin volume delete /home/ann --recursive --data /srv/pool"
    )]
    Delete {
        /// Its root, from the root of the pool
        path: PathBuf,
        /// Remove all in it too, and its snapshots
        #[arg(long)]
        recursive: bool,
        /// Where the pool is.
        #[command(flatten)]
        existing: ExistingArgs,
    },
}

/// Options of `cfs admin scrub`.
#[derive(Debug, Args)]
pub struct ScrubArgs {
    /// Most bytes to read in a second [default: as fast as it goes]
    #[arg(long, value_name = "BYTES", value_parser = bytes::parse_rate)]
    pub rate: Option<NonZeroU64>,
    /// Options of any report.
    #[command(flatten)]
    pub report: ReportArgs,
}

/// Options of `cfs admin gc`.
#[derive(Debug, Args)]
pub struct GcArgs {
    /// As fast as it goes, until nothing is left that is worth it; others wait meanwhile
    #[arg(long, conflicts_with = "dry_run")]
    pub now: bool,
    /// Only tell what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Empty nothing, but recount the references of all chunks and compare
    #[arg(long, conflicts_with_all = ["now", "dry_run"])]
    pub recount: bool,
    /// Options of any report.
    #[command(flatten)]
    pub report: ReportArgs,
}

/// Options of `cfs admin lifecycle`.
#[derive(Debug, Args)]
pub struct LifecycleArgs {
    /// Of this bucket alone
    #[arg(long, value_name = "NAME")]
    pub bucket: Option<String>,
    /// Only tell what would go
    #[arg(long)]
    pub dry_run: bool,
    /// Options of any report.
    #[command(flatten)]
    pub report: ReportArgs,
}

/// Options of a report.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where the pool is.
    #[command(flatten)]
    pub existing: ExistingArgs,
}

/// A key that a user brings.
#[derive(Debug, Args)]
pub struct GivenKeyArgs {
    /// Take this key instead of a new one
    #[arg(long, value_name = "ID", requires = "secret_key_file")]
    pub access_key_id: Option<String>,
    /// File whose first line is the secret of --access-key-id
    #[arg(long, value_name = "FILE", requires = "access_key_id")]
    pub secret_key_file: Option<PathBuf>,
}

/// The user commands.
#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// Make a user, and print its key, which is not shown again
    #[command(after_help = "Example:\n  cfs admin user add alice --data /srv/pool --json")]
    Add {
        /// Its name.
        name: String,
        /// Its key.
        #[command(flatten)]
        key: GivenKeyArgs,
        /// Options of any report.
        #[command(flatten)]
        report: ReportArgs,
    },
    /// List users and what names their keys
    List(ReportArgs),
    /// Remove a user and its keys; its buckets stay, and are root's
    Remove {
        /// Its name.
        name: String,
        /// Options of any report.
        #[command(flatten)]
        report: ReportArgs,
    },
}

/// The key commands.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Give a user of the S3 face one more key, and print it; its secret is not shown again
    Create {
        /// The user's name.
        name: String,
        /// The key.
        #[command(flatten)]
        key: GivenKeyArgs,
        /// Options of any report.
        #[command(flatten)]
        report: ReportArgs,
    },
    /// Take a key from a user of the S3 face; what is signed with it is refused at once
    Revoke {
        /// What names it.
        #[arg(value_name = "ACCESS_KEY_ID")]
        access_key_id: String,
        /// Options of any report.
        #[command(flatten)]
        report: ReportArgs,
    },
    /// Write the file with which a pool is made that can receive from this one
    #[command(after_help = "\
The file holds the secret that names and seals this pool's chunks: who has it and a copy of the pool's chunks can read
them. Take it to the other machine, make the pool there, and delete it.

Example:
  cfs admin key replica replica.key --data /srv/pool
  cfs init --data /srv/copy --replica-of replica.key && rm replica.key")]
    Replica {
        /// The file, which must not be there
        file: PathBuf,
        /// Where the pool is.
        #[command(flatten)]
        existing: ExistingArgs,
    },
    /// Give the pool a new passphrase; nothing is encrypted anew, only the key that all others hang from
    #[command(after_help = "\
The present key is given as always (prompt, --passphrase-file, CFS_PASSPHRASE, --key-file or DIR/key), also when the
pool is being served. The new passphrase comes from --new-passphrase-file, CFS_NEW_PASSPHRASE, or a prompt that asks
twice. A pool with a key file has a passphrase from then on, and DIR/key is removed.

Who kept an old copy of the pool's first blocks and knows the old passphrase can still open the data of today; if it
leaked together with such a copy, import the files into a new pool.

Example:
  cfs admin key change-passphrase --data /srv/pool")]
    ChangePassphrase {
        /// File whose first line is the new passphrase
        #[arg(long, value_name = "FILE")]
        new_passphrase_file: Option<PathBuf>,
        /// Where the pool is.
        #[command(flatten)]
        existing: ExistingArgs,
    },
}

/// The structures that `cfs debug` prints.
#[derive(Debug, Subcommand)]
pub enum DebugCommand {
    /// The superblock: format, keys, last checkpoint
    Superblock(ExistingArgs),
    /// One segment: header and records
    Segment {
        /// Index of the segment.
        segment: u32,
        /// Where the pool is.
        #[command(flatten)]
        existing: ExistingArgs,
    },
    /// The journal since the last checkpoint
    Journal(ExistingArgs),
    /// The chunk index
    Index(ExistingArgs),
    /// An inode: attributes, names, where its content is
    Inode {
        /// Absolute path in the pool, or inode number.
        #[arg(value_name = "PATH_OR_INO")]
        object: String,
        /// Where the pool is.
        #[command(flatten)]
        existing: ExistingArgs,
    },
    /// The extents of a file, and where their chunks lie
    Extents {
        /// Absolute path in the pool, or inode number.
        #[arg(value_name = "PATH_OR_INO")]
        object: String,
        /// Where the pool is.
        #[command(flatten)]
        existing: ExistingArgs,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
