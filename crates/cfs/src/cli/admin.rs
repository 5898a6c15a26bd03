//! `cfs admin`: reports, what a pool does by itself and can be asked for, users and keys.

use std::num::NonZeroU64;
use std::path::PathBuf;

use cfs_seal::codec::Codec;
use clap::{Args, Subcommand};

use super::pool::ExistingArgs;
use super::volume::{CLONE_HELP, CloneArgs, SnapshotCommand, VolumeCommand};
use crate::bytes;

const SCRUB_HELP: &str = "\
Works beside a server under load. Damaged blocks of tables, log and superblock are restored from parity or a copy. For
damaged content each file is named with the byte ranges that cannot be read; all else of the file can. The same content,
written again to anywhere, as with `cfs import` from a good copy, heals every file that has it.

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

With --reseal every chunk that is stored by then is sealed again: under a key that nothing has been sealed under before, and
with a codec (none, lz4, zstd:1 to zstd:19) compressed with that, whatever it was compressed with. What is written later is
compressed as its volume says. Other work goes on meanwhile; room for some 64 MiB has to be free.

With --recount the extents of all files are counted against the counts of references by which chunks are freed. That, too,
happens by itself, once a week and after a crash, slowly and while nobody uses the pool. Only what both agree on is ever
freed; what they disagree on is a finding, and stays.

Exit code 0: done. 1: the pool is read-only, or cannot be read, or findings of a recount. 130: interrupted; nothing is lost.

Examples:
  cfs admin gc --dry-run --data /srv/pool
  cfs admin gc --data /srv/pool
  cfs admin gc --now --json --data /srv/pool
  cfs admin gc --now --reseal=zstd:9 --data /srv/pool
  cfs admin gc --recount --data /srv/pool";

const USER_ADD_HELP: &str = "\
With --own-domain each bucket that the user makes is a volume, and all of them are in one dedup domain: equal content in two
of its buckets is stored once, and equal content of others apart from it. Moving a file into or out of such a bucket
through the mount copies it. The domain stays when the user is removed. cfs admin ls-domains tells whose each is.

Examples:
  cfs admin user add alice --data /srv/pool --json
  cfs admin user add tenant-1 --own-domain --data /srv/pool";

const LIFECYCLE_HELP: &str = "\
Rules come over S3 (PutBucketLifecycleConfiguration): they say which versions, delete markers and unfinished uploads of a
bucket go, after how many days, by prefix, tag and size. A server that speaks S3 follows them each hour. This command does so
at once, also without a server. What object lock protects stays, whatever a rule says.

Exit code 0: done. 1: something could not be read or removed. 130: interrupted; what was done stays done.

Examples:
  cfs admin lifecycle --dry-run --data /srv/pool
  cfs admin lifecycle --bucket logs --data /srv/pool";

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
    /// Make a volume that shows what a snapshot shows, and can be changed
    #[command(after_help = CLONE_HELP)]
    Clone(CloneArgs),
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
    /// Keys that objects are sealed under when S3 clients name them (SSE-KMS)
    Kms {
        /// The command.
        #[command(subcommand)]
        command: KmsCommand,
    },
    /// Issuers of identity tokens (OpenID Connect), with which roles of the S3 face are taken on
    Issuer {
        /// The command.
        #[command(subcommand)]
        command: IssuerCommand,
    },
    /// Keys: of the pool, and of users of the S3 face
    Key {
        /// The key command.
        #[command(subcommand)]
        command: KeyCommand,
    },
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
    #[arg(long, conflicts_with_all = ["now", "dry_run", "reseal"])]
    pub recount: bool,
    /// Seal all that is stored again, under new keys; with a codec, compressed with it
    #[arg(long, value_name = "CODEC", num_args = 0..=1, require_equals = true)]
    pub reseal: Option<Option<Codec>>,
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

/// The user commands.
#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// Make a user, and print its key, which is not shown again
    #[command(after_help = USER_ADD_HELP)]
    Add {
        /// Its name.
        name: String,
        /// Its key.
        #[command(flatten)]
        key: GivenKeyArgs,
        /// An address, by which access control lists can grant it something
        #[arg(long, value_name = "ADDRESS")]
        email: Option<String>,
        /// Share no chunks with others: the buckets that it makes are volumes under one secret of its own
        #[arg(long)]
        own_domain: bool,
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

/// Commands about keys that S3 clients name.
#[derive(Debug, Subcommand)]
pub enum KmsCommand {
    /// Make a key; the pool keeps it, and objects that are stored under it deduplicate among themselves alone
    #[command(after_help = "Example:\n  cfs admin kms add tenant-1 --data /srv/pool")]
    Add {
        /// Its name, as clients give it
        name: String,
        /// Options of any report.
        #[command(flatten)]
        report: ReportArgs,
    },
    /// Names of all such keys
    List(ReportArgs),
}

const ISSUER_SET_HELP: &str = "\
The keys are what the issuer shows at the jwks_uri of URL/.well-known/openid-configuration. The pool does not ask for them
itself: when the issuer changes its keys, give them again. With the keys of a provider that an account has made
(aws iam create-open-id-connect-provider), and a role whose document names it, AssumeRoleWithWebIdentity gives credentials.

--audience counts for providers that have no client identifiers of their own. Without either no token is taken.

Examples:
  curl -s https://id.example.com/realms/lab/protocol/openid-connect/certs > keys.json
  cfs admin issuer set https://id.example.com/realms/lab --keys keys.json --data /srv/pool
  kubectl get --raw /openid/v1/jwks > keys.json
  cfs admin issuer set https://kubernetes.default.svc --keys keys.json --audience cfs --data /srv/pool";

/// Commands about issuers of identity tokens.
#[derive(Debug, Subcommand)]
pub enum IssuerCommand {
    /// Give the keys of an issuer, instead of those that it had
    #[command(after_help = ISSUER_SET_HELP)]
    Set {
        /// As its tokens name it (`iss`)
        url: String,
        /// File with its public keys, a JSON Web Key Set
        #[arg(long, value_name = "FILE")]
        keys: PathBuf,
        /// Whom its tokens are for, where a provider does not say; several times for several
        #[arg(long, value_name = "NAME")]
        audience: Vec<String>,
        /// Options of any report.
        #[command(flatten)]
        report: ReportArgs,
    },
    /// All issuers, what names their keys, and whom their tokens are for
    List(ReportArgs),
    /// Forget the keys of an issuer: its tokens are refused at once, credentials given for one go on until they end
    Remove {
        /// As its tokens name it
        url: String,
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

With --store-only it holds a key that lets the other pool take snapshots, keep them, and hand them out again, and
opens nothing in them. Such a pool learns names and times of snapshots, how much changes, and how long chunks are,
from which it can guess sizes of files, and whether a file is there that it knows. It can keep back what is newer, or
damage what it has; who receives from it notices what is changed. What it keeps can be read only with a file written
WITHOUT --store-only: keep one in a safe place, or nobody can read it once this pool is lost.

Example:
  cfs admin key replica replica.key --data /srv/pool
  cfs init --data /srv/copy --replica-of replica.key && rm replica.key")]
    Replica {
        /// The file, which must not be there
        file: PathBuf,
        /// For a pool that keeps snapshots without being able to read them
        #[arg(long)]
        store_only: bool,
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
