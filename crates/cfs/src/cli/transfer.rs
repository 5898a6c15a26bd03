//! What brings content into a pool and out of it: files of the host, and snapshots of other pools.

use std::path::PathBuf;

use clap::Args;

use super::pool::{ExistingArgs, KeyArgs, PoolArgs};

pub(super) const IMPORT_EXAMPLES: &str = "\
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

pub(super) const EXPORT_EXAMPLES: &str = "\
SRC is a path in the pool, DEST one on the host, with the rules of `cp -a SRC DEST`: into DEST if that is a directory,
else DEST becomes the copy. With --no-target-directory DEST is always the copy itself. What already matches in type,
size, modification time and mode is not written again.

As with `cp`, the system may have some of the copy in memory only for half a minute after the end, and a power cut then
takes that and the files in whose place it came; --sync waits for the disk.

Examples:
  cfs export /photos /tmp --data /srv/pool              /tmp/photos
  cfs export / /restore -T --data /srv/pool             everything";

pub(super) const SEND_HELP: &str = "\
Chunks go as they are stored, all else is encrypted and authenticated. `cfs receive` puts it into a pool that was made
with `cfs init --replica-of`. Where names have an @ themselves, the last one divides PATH from NAME at which there is a
snapshot.

Example:
  cfs send /home@monday --data /srv/pool > monday
  cfs send /home@tuesday --from monday --data /srv/pool > tuesday";

pub(super) const RECEIVE_HELP: &str = "\
The snapshot is there when all has come and been checked. What came before a stream was cut off stays, and the next
attempt goes on from it. What was changed at the path since the last received snapshot is undone. Streams that follow each
other in the input are all received.

Example:
  cfs receive --data /srv/copy < monday
  cat monday tuesday | cfs receive --data /srv/copy
  cfs send /home@monday --data /srv/pool | ssh host cfs receive --data /srv/copy /backup/home";

pub(super) const REPLICATE_HELP: &str = "\
The other side is asked which earlier snapshots and which chunks it has. A run that was cut off goes on where it ended.
A command as target needs two words or more, and `--` before it if it has options. Where the snapshot goes there, and what
opens the pool, is for the command itself to say.

Exit code: where the receiving process fails, its own (255 is ssh's when there is no connection).

Example:
  cfs replicate /home@monday /srv/copy --data /srv/pool
  cfs replicate /home@monday --data /srv/pool -- ssh host cfs receive --data /srv/copy /backup/home";

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

/// Options of `cfs export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// A file or directory in the pool
    #[arg(value_name = "SRC")]
    pub source: PathBuf,
    /// Where it goes on the host
    #[arg(value_name = "DEST")]
    pub dest: PathBuf,
    /// End when the disk has the copy
    #[arg(long)]
    pub sync: bool,
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
    /// What opens the pool of a data directory.
    #[command(flatten)]
    pub target_key: TargetKeyArgs,
    /// Where the pool is.
    #[command(flatten)]
    pub existing: ExistingArgs,
}

impl ReplicateArgs {
    /// An option that was given and counts only where the target is a data directory.
    pub fn first_for_directory(&self) -> Option<&'static str> {
        [
            ("--path", self.path.is_some()),
            (
                "--target-passphrase-file",
                self.target_key.target_passphrase_file.is_some(),
            ),
            (
                "--target-key-file",
                self.target_key.target_key_file.is_some(),
            ),
        ]
        .into_iter()
        .find_map(|(option, is_given)| is_given.then_some(option))
    }
}

/// What opens the pool that is sent to, where it is in a data directory here that no process serves.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Key of the target")]
pub struct TargetKeyArgs {
    /// File whose first line is the passphrase of the target; else CFS_TARGET_PASSPHRASE, else a prompt
    #[arg(long, value_name = "FILE", conflicts_with = "target_key_file")]
    pub target_passphrase_file: Option<PathBuf>,
    /// Key file of the target; TARGET/key if the pool has one there
    #[arg(long, value_name = "FILE")]
    pub target_key_file: Option<PathBuf>,
}

impl From<TargetKeyArgs> for KeyArgs {
    fn from(args: TargetKeyArgs) -> Self {
        Self {
            passphrase_file: args.target_passphrase_file,
            key_file: args.target_key_file,
        }
    }
}
