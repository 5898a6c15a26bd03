//! `cfs admin snapshot`, `cfs admin clone` and `cfs admin volume`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::admin::ReportArgs;
use super::pool::ExistingArgs;
use crate::bytes;

const SNAPSHOT_CREATE_HELP: &str = "\
It holds exactly what has been acknowledged before, in all files, and can be read in the mount, in .snapshots/NAME of the
directory and of each below it; listings do not show .snapshots, unless the mount was made with --list-snapshots. To go
back to it, copy from there.

A snapshot of one directory keeps what changes in its whole volume.

Examples:
  cfs admin snapshot create /home monday --data /srv/pool
  cp -a /mnt/cfs/home/.snapshots/monday/letter.txt /mnt/cfs/home/";

pub(super) const CLONE_HELP: &str = "\
It takes no time and no room, whatever the size: what is changed in the clone is copied by reference when it is changed
first, and nobody else sees it. The snapshot cannot be deleted as long as the clone is there; `cfs admin volume delete
NEWPATH --recursive` removes the clone. One that is made inside of its origin goes before that. A quota counts what has
been changed or made in it. Locks of objects stay with the origin.

Example:
  cfs admin clone /home@monday /try --data /srv/pool";

const SNAPSHOT_LIST_HELP: &str = "\
For each: how much content it shows (logical), what chunks that nothing else holds take in the pool (it alone), and what
would come back if it were deleted together with those given with --with (freed).

A directory has the path that it has now; one that was removed the path that it had when the snapshot was taken, by which,
or by the id, the snapshot is named from then on.

Examples:
  cfs admin snapshot list --data /srv/pool
  cfs admin snapshot list /home --with monday --with tuesday --data /srv/pool";

const SNAPSHOT_DIFF_HELP: &str = "\
One line for each path that differs; with --json one object a line, with the bytes of paths that are no UTF-8 in path_hex
and from_hex. Access times do not count. A directory that was removed is compared with the one that has its path now.

Examples:
  cfs admin snapshot diff /home monday --data /srv/pool
  cfs admin snapshot diff /home monday tuesday --json --data /srv/pool";

const SNAPSHOT_RESTORE_HELP: &str = "\
Content is not copied, and what is as it was is left alone, whatever its times of access and of change. A file has its old
or its restored content at any time, never anything between. What was made since the snapshot stays, unless --delete is given.

With SUBPATH, one name of a file that has several comes back to that file if it is as it was; else it becomes a file of its own,
so that what the other names stand for stays as it is. Restoring all names makes them one again. Missing directories above
PATH are made, for root alone to enter.

Exit code 1: some objects could not be restored; each is named.

Examples:
  cfs admin snapshot restore /home monday --data /srv/pool
  cfs admin snapshot restore /home monday letters/a.txt photos --data /srv/pool";

const SNAPSHOT_POLICY_HELP: &str = "\
While the pool is open, one snapshot is taken in each hour, day, week (from Monday) and month, in UTC, that is asked for;
its name tells it: hourly-2026-11-22-17, daily-2026-11-22, weekly-2026-11-16, monthly-2026-11. Of each kind the newest
are kept. A snapshot that is held stays, and does not count.

Example:
  cfs admin snapshot policy /home hourly=24,daily=7,weekly=4,monthly=12 --data /srv/pool";

const VOLUME_CREATE_HELP: &str = "\
A volume is seen as a directory. Names cannot be moved or linked from one volume to another (mv copies). A snapshot of
a directory shows the volumes in it empty; they have snapshots of their own. What would make a volume larger than its
quota is refused with EDQUOT when it is written; `df` in it shows what the quota leaves.

Example:
  cfs admin volume create /home/ann --quota-bytes 10G --quota-inodes 200000 --data /srv/pool";

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
    #[command(after_help = "Example:\n  cfs admin snapshot delete /home monday --data /srv/pool")]
    Delete(SnapshotArgs),
    /// Keep a snapshot from being deleted
    #[command(after_help = "Example:\n  cfs admin snapshot hold /home monday --data /srv/pool")]
    Hold(SnapshotArgs),
    /// Let a snapshot that is held be deleted again
    #[command(after_help = "Example:\n  cfs admin snapshot release /home monday --data /srv/pool")]
    Release(SnapshotArgs),
}

/// A snapshot to take.
#[derive(Debug, Args)]
pub struct NewSnapshotArgs {
    /// Directory, from the root of the pool
    pub path: PathBuf,
    /// Name of the snapshot
    #[arg(required_unless_present = "named")]
    pub name: Option<std::ffi::OsString>,
    /// The same
    #[arg(long = "name", value_name = "NAME", conflicts_with = "name")]
    pub named: Option<std::ffi::OsString>,
    /// Where the pool is.
    #[command(flatten)]
    pub existing: ExistingArgs,
}

/// Which snapshot.
#[derive(Debug, Args)]
pub struct SnapshotArgs {
    /// Directory, from the root of the pool
    #[arg(required_unless_present = "id")]
    pub path: Option<PathBuf>,
    /// Name of the snapshot
    #[arg(required_unless_present_any = ["named", "id"])]
    pub name: Option<std::ffi::OsString>,
    /// The same
    #[arg(
        long = "name",
        value_name = "NAME",
        requires = "path",
        conflicts_with = "name"
    )]
    pub named: Option<std::ffi::OsString>,
    /// Its id as `snapshot list` tells it, instead of path and name
    #[arg(long, value_name = "ID", conflicts_with_all = ["path", "name", "named"])]
    pub id: Option<String>,
    /// Where the pool is.
    #[command(flatten)]
    pub existing: ExistingArgs,
}

/// Options of `cfs admin clone`.
#[derive(Debug, Args)]
pub struct CloneArgs {
    /// A directory, from the root of the pool, and its snapshot
    #[arg(value_name = "PATH@NAME")]
    pub snapshot: std::ffi::OsString,
    /// The clone's root, a new directory, from the root of the pool
    #[arg(value_name = "NEWPATH")]
    pub path: PathBuf,
    /// Most bytes of content that are changed or made in it, each file as a whole [default: no bound]
    #[arg(long, value_name = "BYTES", value_parser = bytes::parse)]
    pub quota_bytes: Option<u64>,
    /// Most inodes that are changed or made in it [default: no bound]
    #[arg(long, value_name = "COUNT")]
    pub quota_inodes: Option<u64>,
    /// Options of any report.
    #[command(flatten)]
    pub report: ReportArgs,
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
