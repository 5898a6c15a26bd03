//! The command line: every command and option, with help that teaches by example.

mod admin;
mod bench;
mod pool;
mod serve;
mod transfer;
mod volume;

use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;

pub use self::admin::{
    AdminCommand, GivenKeyArgs, IssuerCommand, KeyCommand, KmsCommand, UserCommand,
};
use self::bench::BENCH_HELP;
pub use self::bench::BenchArgs;
pub use self::pool::{
    BudgetArgs, Cipher, ExistingArgs, FirstRunArgs, InitArgs, KeyArgs, PoolArgs, RepairArgs,
};
use self::pool::{INIT_HELP, REPAIR_HELP};
use self::serve::SERVER_EXAMPLES;
pub use self::serve::{Atime, EtagKind, MountArgs, MountingArgs, S3Args, ServerArgs, SyncCalls};
use self::transfer::{EXPORT_EXAMPLES, IMPORT_EXAMPLES, RECEIVE_HELP, REPLICATE_HELP, SEND_HELP};
pub use self::transfer::{ExportArgs, ImportArgs, ReceiveArgs, ReplicateArgs, SendArgs};
pub use self::volume::{SnapshotArgs, SnapshotCommand, VolumeCommand};

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

impl Cli {
    /// What the command line says. Ends the process where it makes no sense, or asks for help.
    pub fn from_command_line() -> Self {
        let matches = Self::reflowed_command().get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// The command line, whose paragraphs of help are as wide as the terminal.
    pub fn reflowed_command() -> clap::Command {
        reflow_help(Self::command())
    }
}

fn reflow_help(command: clap::Command) -> clap::Command {
    let text = command.get_after_help().map(ToString::to_string);
    let command = match text {
        Some(text) => command.after_help(reflow(&text)),
        None => command,
    };
    command.mut_subcommands(reflow_help)
}

/// Makes one line of each paragraph, for clap to wrap. Headings end with a colon, and indented lines stay as they are.
fn reflow(text: &str) -> String {
    let mut reflowed = String::with_capacity(text.len());
    let mut lines = text.split('\n').peekable();
    while let Some(line) = lines.next() {
        reflowed.push_str(line);
        let stands_alone = line.is_empty() || line.starts_with(' ') || line.ends_with(':');
        match lines.peek() {
            Some(next) if stands_alone || next.is_empty() || next.starts_with(' ') => {
                reflowed.push('\n');
            }
            Some(_) => reflowed.push(' '),
            None => {}
        }
    }
    reflowed
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
    /// Measure this machine and a pool on one of its disks
    #[command(after_help = BENCH_HELP)]
    Bench(BenchArgs),
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
        Cli::reflowed_command().debug_assert();
    }

    #[test]
    fn paragraphs_of_help_become_one_line() {
        let text = "One\ntwo.\n\nThree:\n  four\n  five\nSix\nseven";
        assert_eq!(
            reflow(text),
            "One two.\n\nThree:\n  four\n  five\nSix seven"
        );
        let mut command = Cli::reflowed_command();
        let gc = command
            .find_subcommand_mut("admin")
            .and_then(|admin| admin.find_subcommand_mut("gc"));
        let help = gc
            .expect("a command")
            .get_after_help()
            .map(ToString::to_string);
        let help = help.expect("there is help");
        assert!(
            help.contains("while it is in use, and a twentieth"),
            "{help}"
        );
    }
}
