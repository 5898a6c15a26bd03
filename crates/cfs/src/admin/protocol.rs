//! What is said over the admin socket: one JSON object a line, a request, then events, the last of which ends it.
//!
//! Both sides bound the length of a line and refuse what they do not understand.

use std::ffi::OsString;
use std::io::{self, BufRead, Read, Write};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::report::{Df, Domains, Policies, SnapshotTaken, Snapshots, Status, Volumes};
use crate::failure::Failure;

/// Version of these messages; both sides must have the same.
pub const PROTOCOL: u32 = 1;
/// Longest request line, bytes.
pub const REQUEST_BYTES_MAX: u64 = 1 << 20;
/// Bytes that are read at once: more than two passphrases have, each byte of them escaped.
const READ_BYTES: usize = 64 << 10;
/// Longest event line, bytes.
pub const EVENT_BYTES_MAX: u64 = 16 << 20;

/// A path of any bytes: text where it is text, else numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AnyPath {
    /// UTF-8.
    Text(String),
    /// Anything.
    Bytes(Vec<u8>),
}

impl AnyPath {
    /// The path's bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }

    /// The path on the host.
    pub fn to_host(&self) -> PathBuf {
        OsString::from_vec(self.bytes().to_vec()).into()
    }
}

impl From<&Path> for AnyPath {
    fn from(path: &Path) -> Self {
        Self::from(path.as_os_str().as_bytes().to_vec())
    }
}

impl From<Vec<u8>> for AnyPath {
    fn from(bytes: Vec<u8>) -> Self {
        match String::from_utf8(bytes) {
            Ok(text) => Self::Text(text),
            Err(error) => Self::Bytes(error.into_bytes()),
        }
    }
}

/// A request with the version of the one who asks.
#[derive(Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// The request.
    pub request: Request,
}

/// What a process that has the pool open can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "command")]
pub enum Request {
    /// Health and figures.
    Status,
    /// Bytes by volume.
    Df,
    /// Dedup domains.
    LsDomains,
    /// Verify everything.
    Fsck,
    /// Read everything.
    Scrub {
        /// Most bytes a second.
        rate: Option<NonZeroU64>,
    },
    /// Empty segments that hold little, or all of them.
    Gc {
        /// How.
        way: GcWay,
        /// Seal everything again.
        reseal: Option<Reseal>,
    },
    /// Recount references.
    Recount,
    /// Copy in.
    Import(Transfer),
    /// Copy out.
    Export(Export),
    /// Change the passphrase.
    ChangePassphrase {
        /// What opens the pool now.
        present: Present,
        /// The new passphrase.
        new: Zeroizing<String>,
    },
    /// Take, list, hold or delete snapshots.
    Snapshot(SnapshotRequest),
    /// Make, list, bound or remove volumes.
    Volume(VolumeRequest),
    /// Send a snapshot, or receive one.
    Stream(StreamRequest),
    /// What a pool is made with that is to receive.
    ReplicaKey {
        /// It is to keep what it cannot read.
        store_only: bool,
    },
    /// Print a structure.
    Debug(DebugTarget),
    /// Users of the S3 face.
    User(UserRequest),
    /// Run the lifecycle rules of buckets.
    Lifecycle {
        /// Of this one, else of all.
        bucket: Option<String>,
        /// Only tell what is due.
        dry_run: bool,
    },
}

impl Request {
    /// Whether it looks and changes nothing, so that nothing of the pool needs to be written for it. Who reads content
    /// may find damage, which is written down.
    pub fn only_looks(&self) -> bool {
        matches!(
            self,
            Self::Status
                | Self::Df
                | Self::LsDomains
                | Self::Fsck
                | Self::Debug(_)
                | Self::Gc {
                    way: GcWay::DryRun,
                    ..
                }
                | Self::Snapshot(
                    SnapshotRequest::List { .. }
                        | SnapshotRequest::Diff { .. }
                        | SnapshotRequest::Policy {
                            change: PolicyChange::None,
                            ..
                        }
                )
                | Self::User(UserRequest::List | UserRequest::Issuers)
                | Self::Volume(VolumeRequest::List)
        )
    }
}

/// How segments are to be emptied.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "way")]
pub enum GcWay {
    /// Not at all; the plan is asked for.
    DryRun,
    /// At the pace of background work.
    Background,
    /// As fast as it goes.
    Now,
}

/// How everything is to be sealed again.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reseal {
    /// Compressed as it is.
    AsItIs,
    /// Compressed with the codec of this name.
    Codec(String),
}

/// What is asked about snapshots.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "action")]
pub enum SnapshotRequest {
    /// Take one.
    Create(Named),
    /// Tell which there are.
    List {
        /// Of this directory; else of all.
        path: Option<AnyPath>,
        /// Tell what deleting each together with these would free.
        with: Vec<AnyPath>,
    },
    /// Tell what is different now, or in another.
    Diff {
        /// The snapshot.
        named: Named,
        /// The other one, of the same directory.
        to: Option<AnyPath>,
        /// A JSON object a line.
        json: bool,
    },
    /// Bring back what one shows.
    Restore {
        /// The snapshot.
        named: Named,
        /// Paths in its directory; all if there are none.
        below: Vec<AnyPath>,
        /// Remove what it does not show.
        delete: bool,
    },
    /// Have snapshots of a directory taken by themselves, or tell which are.
    Policy {
        /// The directory; all that have a policy.
        path: Option<AnyPath>,
        /// What to change.
        change: PolicyChange,
    },
    /// Delete one.
    Delete(Named),
    /// Keep one from being deleted.
    Hold(Named),
    /// End that.
    Release(Named),
}

/// A snapshot by its directory and name, or by its id.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Named {
    /// The directory, absolute in the pool.
    pub path: AnyPath,
    /// The snapshot's name.
    pub name: AnyPath,
    /// Its id; path and name do not count then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// What is asked about volumes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "action")]
pub enum VolumeRequest {
    /// Make one.
    Create {
        /// Its root, absolute in the pool; new.
        path: AnyPath,
        /// Most bytes of content; 0: no bound.
        quota_bytes: u64,
        /// Most inodes; 0: no bound.
        quota_inodes: u64,
        /// It shares no chunks with others.
        own_domain: bool,
        /// Owner and group of its root.
        owner: (u32, u32),
    },
    /// Make one that shows what a snapshot shows.
    Clone {
        /// The snapshot.
        named: Named,
        /// Its root, absolute in the pool; new.
        path: AnyPath,
        /// Most bytes of content of its own; 0: no bound.
        quota_bytes: u64,
        /// Most inodes of its own; 0: no bound.
        quota_inodes: u64,
        /// Owner and group of its place.
        owner: (u32, u32),
    },
    /// Give one other bounds; what is not given stays.
    Set {
        /// Its root.
        path: AnyPath,
        /// Most bytes of content; 0: no bound.
        quota_bytes: Option<u64>,
        /// Most inodes; 0: no bound.
        quota_inodes: Option<u64>,
    },
    /// All of them.
    List,
    /// Remove one.
    Delete {
        /// Its root.
        path: AnyPath,
        /// With all in it, and its snapshots.
        recursive: bool,
    },
}

/// What is sent or received, through a socket of who asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "way")]
pub enum StreamRequest {
    /// Out.
    Send {
        /// The snapshot.
        named: Named,
        /// Only what is different from this one of the same directory.
        from: Option<AnyPath>,
        /// The receiver answers, and says what it has.
        waits: bool,
        /// Name of the socket in the data directory.
        socket: String,
    },
    /// In.
    Receive {
        /// The directory; else the one with the path that it has where it comes from.
        path: Option<AnyPath>,
        /// Name of the socket in the data directory.
        socket: String,
    },
}

/// What becomes of a policy.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyChange {
    /// It is only told.
    None,
    /// It is this one from now on, as `hourly=24,daily=7`.
    Set(String),
    /// It goes.
    Remove,
}

/// What opens the pool now, for a request that must prove it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Present {
    /// A passphrase.
    Passphrase(Zeroizing<String>),
    /// A key file.
    KeyFile(AnyPath),
}

/// What to copy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Transfer {
    /// From where; absolute.
    pub sources: Vec<AnyPath>,
    /// To where; absolute.
    pub dest: AnyPath,
    /// `dest` is the copy itself.
    pub no_target_directory: bool,
    /// Files at a time.
    pub workers: u16,
}

/// What to copy to the host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Export {
    /// From where in the pool, and to where.
    #[serde(flatten)]
    pub transfer: Transfer,
    /// End when the disk has the copy.
    #[serde(default)]
    pub sync: bool,
}

/// What can be asked about users.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "about")]
pub enum UserRequest {
    /// Make a user.
    Add {
        /// Its name.
        name: String,
        /// Its key, if not a new one.
        key: Option<GivenKey>,
        /// An address by which it can be granted something.
        email: Option<String>,
        /// With a dedup domain of its own.
        #[serde(default)]
        own_domain: bool,
    },
    /// All users.
    List,
    /// Remove a user.
    Remove {
        /// Its name.
        name: String,
    },
    /// One more key for a user.
    CreateKey {
        /// The user's name.
        name: String,
        /// The key, if not a new one.
        key: Option<GivenKey>,
    },
    /// Take a key.
    RevokeKey {
        /// What names it.
        access_key_id: String,
    },
    /// Make a key that objects are sealed under.
    AddKeptKey {
        /// Its name.
        name: String,
    },
    /// Names of such keys.
    KeptKeys,
    /// Give the keys of an issuer.
    SetIssuer {
        /// Its URL.
        url: String,
        /// A JSON Web Key Set.
        keys: String,
        /// Whom its tokens are for.
        audiences: Vec<String>,
    },
    /// All issuers.
    Issuers,
    /// Forget an issuer.
    RemoveIssuer {
        /// Its URL.
        url: String,
    },
}

/// An issuer of identity tokens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShownIssuer {
    /// Its URL.
    pub url: String,
    /// What names its keys.
    pub key_ids: Vec<String>,
    /// Whom its tokens are for.
    pub audiences: Vec<String>,
}

/// A key that the user brings.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GivenKey {
    /// What names it.
    pub access_key_id: String,
    /// What signs with it.
    pub secret_access_key: String,
}

/// A user without secrets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShownUser {
    /// Name.
    pub name: String,
    /// Identifier, as S3 shows owners.
    pub id: String,
    /// What names its keys.
    pub access_key_ids: Vec<String>,
    /// The dedup domain of its own, if it has one.
    pub domain: Option<u16>,
}

/// A key that was made, with its secret, which is not shown again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShownKey {
    /// The user's name.
    pub name: String,
    /// The user's identifier.
    pub id: String,
    /// What names it.
    pub access_key_id: String,
    /// What signs with it.
    pub secret_access_key: String,
}

/// What `cfs debug` prints.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "structure")]
pub enum DebugTarget {
    /// The superblock.
    Superblock,
    /// A segment.
    Segment {
        /// Its index.
        segment: u32,
    },
    /// The journal.
    Journal,
    /// The chunk index.
    Index,
    /// An inode.
    Inode {
        /// Path or number.
        object: String,
    },
    /// A file's extents.
    Extents {
        /// Path or number.
        object: String,
    },
}

/// What the process that works says while it works.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum Event {
    /// The request has been understood; the first event of each.
    Accepted,
    /// How far it is.
    Progress(Progress),
    /// What gc is going to do.
    GcPlan(GcPlan),
    /// Something that fsck or scrub found.
    Finding(Finding),
    /// A file that could not be copied, or something the user should know.
    Problem {
        /// The object.
        path: String,
        /// What is wrong.
        message: String,
    },
    /// A line of text.
    Line {
        /// The line.
        text: String,
    },
    /// It is done.
    Done {
        /// The result.
        answer: Answer,
    },
    /// It failed.
    Failed {
        /// Why.
        failure: Failure,
    },
}

/// How far a long command is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    /// What it does now.
    pub phase: String,
    /// Objects done.
    pub objects: u64,
    /// Objects in all, where known.
    pub objects_total: Option<u64>,
    /// Bytes done.
    pub bytes: u64,
    /// Bytes in all, where known.
    pub bytes_total: Option<u64>,
}

/// Something that does not fit together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The rule that does not hold; stable.
    pub id: String,
    /// The object that it concerns.
    pub object: String,
    /// What is wrong with it.
    pub sentence: String,
}

/// What a command results in.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Answer {
    /// Of `status`.
    Status(Box<Status>),
    /// Of `df`.
    Df(Df),
    /// Of `ls-domains`.
    Domains(Domains),
    /// Of `fsck`.
    Fsck(FsckSummary),
    /// Of `scrub`.
    Scrub(ScrubSummary),
    /// Of `gc`.
    Gc(GcSummary),
    /// Of `gc --recount`.
    Recount(RecountSummary),
    /// Of `import` and `export`.
    Transfer(TransferSummary),
    /// Of `snapshot create`.
    SnapshotTaken(SnapshotTaken),
    /// A clone has been made.
    CloneMade(SnapshotTaken),
    /// Of `snapshot list`.
    Snapshots(Snapshots),
    /// Of `snapshot restore`.
    Restored(RestoreSummary),
    /// Of `snapshot policy`.
    Policies(Policies),
    /// Of `volume list`.
    Volumes(Volumes),
    /// Of what goes through a stream.
    Streamed {
        /// What to say, beside the stream.
        line: String,
    },
    /// Of `key replica`.
    ReplicaKey {
        /// The content of the file; secret.
        text: Zeroizing<String>,
    },
    /// Users of the S3 face.
    Users {
        /// They.
        users: Vec<ShownUser>,
    },
    /// A key of a user of the S3 face.
    Key(ShownKey),
    /// Names of keys that objects are sealed under.
    Names {
        /// They.
        names: Vec<String>,
    },
    /// Issuers of identity tokens.
    Issuers {
        /// They.
        issuers: Vec<ShownIssuer>,
    },
    /// Of `lifecycle`.
    Lifecycle(LifecycleSummary),
    /// Of what only succeeds.
    Nothing,
}

/// What fsck looked at.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FsckSummary {
    /// Inodes.
    pub inodes: u64,
    /// Directory entries.
    pub entries: u64,
    /// Extents.
    pub extents: u64,
    /// Chunks.
    pub chunks: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Earlier states of rows that are kept for them.
    pub states: u64,
    /// Findings; of very many only the first are sent.
    pub findings: u64,
}

/// What scrub has read.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ScrubSummary {
    /// Bytes read.
    pub bytes: u64,
    /// Chunks whose content was verified.
    pub chunks: u64,
    /// Blocks of the tables that were opened.
    pub table_blocks: u64,
    /// Chunks that cannot be read.
    pub bad_chunks: u64,
    /// Files that use them.
    pub files: u64,
    /// Damaged blocks that were restored.
    pub restored_blocks: u64,
    /// Findings: each name of such a file, and metadata that is lost.
    pub findings: u64,
    /// How long it took.
    pub seconds: f64,
}

/// Data segments of which up to a certain part is live.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GcTenth {
    /// At most this much of what was written to them is live, and more than ten percent less.
    pub live_percent_max: u32,
    /// How many they are.
    pub segments: u64,
    /// Bytes written to them.
    pub used_bytes: u64,
    /// Those that are live.
    pub live_bytes: u64,
}

/// What a pass of gc would do.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GcPlan {
    /// Data segments by how much of them is live.
    pub segments: Vec<GcTenth>,
    /// Those that would be emptied.
    pub segments_to_empty: u64,
    /// Bytes that would be copied out of them.
    pub bytes_to_copy: u64,
    /// Bytes that would come free.
    pub bytes_to_free: u64,
    /// Bytes that become free without it.
    pub bytes_on_the_way: u64,
}

/// What a pass of gc has done.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GcResult {
    /// Segments emptied.
    pub segments: u64,
    /// Bytes copied out of them.
    pub copied_bytes: u64,
    /// Chunks without references that left the index.
    pub dropped_chunks: u64,
    /// Segments whose chunks were to be sealed again and were not.
    #[serde(default)]
    pub segments_left: u64,
    /// Bytes that the pool took from its host before.
    pub pool_bytes_before: u64,
    /// And after.
    pub pool_bytes_after: u64,
    /// How long it took.
    pub seconds: f64,
}

/// Plan and result of gc.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GcSummary {
    /// The plan, made before anything was done.
    pub plan: GcPlan,
    /// What was done; none of a dry run.
    pub result: Option<GcResult>,
}

/// What lifecycle rules have removed, or would.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LifecycleSummary {
    /// Nothing was removed.
    pub dry_run: bool,
    /// Buckets with rules.
    pub buckets: u64,
    /// Current versions.
    pub current: u64,
    /// Other versions.
    pub noncurrent: u64,
    /// Delete markers.
    pub markers: u64,
    /// Uploads in parts.
    pub uploads: u64,
    /// What is due and locked.
    pub locked: u64,
    /// What is due and could not be removed.
    pub failed: u64,
}

/// What a recount has found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RecountSummary {
    /// References that extents hold.
    pub references: u64,
    /// Chunks compared.
    pub chunks: u64,
    /// Chunks whose count is not that of the extents.
    pub differing: u64,
    /// Those of them that no extent shows.
    pub leaked: u64,
    /// Those of them that the index has not.
    pub missing: u64,
    /// Chunks without any reference that were in no list, and have been dropped.
    pub freed: u64,
    /// Findings; of very many only the first are sent.
    pub findings: u64,
    /// How long it took.
    pub seconds: f64,
}

/// What was copied.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TransferSummary {
    /// Regular files copied.
    pub files: u64,
    /// Regular files that matched already.
    pub files_skipped: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links, devices, named pipes, sockets.
    pub others: u64,
    /// Further names of files already counted.
    pub hard_links: u64,
    /// Bytes of content copied, without holes.
    pub bytes: u64,
    /// Objects that could not be copied; each was reported.
    pub problems: u64,
    /// Bytes that the pool stores more than before (import).
    pub new_stored_bytes: u64,
    /// How long it took.
    pub seconds: f64,
}

/// What was brought back from a snapshot.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RestoreSummary {
    /// Objects that were brought back or changed.
    pub restored: u64,
    /// Objects that were as they should be.
    pub unchanged: u64,
    /// Objects made since that were removed.
    pub removed: u64,
    /// Objects that could not be restored; each was reported.
    pub problems: u64,
    /// How long it took.
    pub seconds: f64,
}

/// A reader of messages that wipes what it has held: there may be a secret in it.
pub struct Messages<R> {
    from: R,
    held: Zeroizing<Vec<u8>>,
    /// Of what is held, what is to be taken yet.
    range: Range<usize>,
}

impl<R: Read> Messages<R> {
    /// Reads from there.
    pub fn new(from: R) -> Self {
        Self {
            from,
            held: Zeroizing::new(vec![0; READ_BYTES]),
            range: 0..0,
        }
    }
}

impl<R: Read> Read for Messages<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buf)?;
        self.consume(count);
        Ok(count)
    }
}

impl<R: Read> BufRead for Messages<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.range.is_empty() {
            self.held[..self.range.end].zeroize();
            self.range = 0..0;
            self.range.end = self.from.read(&mut self.held)?;
        }
        Ok(&self.held[self.range.clone()])
    }

    fn consume(&mut self, count: usize) {
        self.range.start += count;
    }
}

/// Counts bytes.
struct Length(usize);

impl Write for Length {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0 += buf.len();
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes one message.
///
/// # Errors
/// When the other side has gone.
pub fn send(stream: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut length = Length(1);
    serde_json::to_writer(&mut length, message)?;
    // What outgrows its place leaves there what nobody wipes.
    let mut line = Zeroizing::new(Vec::with_capacity(length.0));
    serde_json::to_writer(&mut *line, message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Reads one message; `None` at the end of the stream.
///
/// # Errors
/// `InvalidData` for a line that is longer than `bytes_max` or not a message.
pub fn receive<T: for<'a> Deserialize<'a>>(
    stream: &mut impl BufRead,
    bytes_max: u64,
) -> io::Result<Option<T>> {
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let here = loop {
        match stream.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => break stream.fill_buf()?,
        }
    };
    let end = here.iter().position(|byte| *byte == b'\n');
    let mut line = Zeroizing::new(Vec::with_capacity(
        end.map_or(2 * here.len(), |end| end + 1),
    ));
    stream.take(bytes_max).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.pop() != Some(b'\n') {
        return Err(invalid(format!(
            "a line that does not end within {bytes_max} bytes"
        )));
    }
    serde_json::from_slice(&line)
        .map(Some)
        .map_err(|error| invalid(format!("not a message: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_and_garbage_is_refused() {
        let request = Envelope {
            protocol: PROTOCOL,
            request: Request::Import(Transfer {
                sources: vec![Path::new("/a b").into(), AnyPath::Bytes(vec![b'/', 0xff])],
                dest: Path::new("/").into(),
                no_target_directory: true,
                workers: 2,
            }),
        };
        let mut bytes = Vec::new();
        send(&mut bytes, &request).expect("a vector takes all");
        let back: Envelope = receive(&mut &bytes[..], REQUEST_BYTES_MAX)
            .expect("valid")
            .expect("one message");
        assert_eq!(format!("{request:?}"), format!("{back:?}"));

        let long = vec![b'x'; 100];
        for garbage in [
            &b"{}\n"[..],
            b"\n",
            b"[[[[\n",
            b"no newline",
            b"\xff\xfe\n",
            &long,
        ] {
            let result = receive::<Envelope>(&mut &garbage[..], 64);
            assert!(result.is_err(), "{garbage:?}");
        }
        assert!(
            receive::<Envelope>(&mut &b""[..], 64)
                .expect("end")
                .is_none()
        );
    }
}
