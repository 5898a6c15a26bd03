//! Commands: every change of the namespace and of files, as it stands in the log.
//!
//! A command holds all that its effect depends on beside the tables: times, inode numbers, salts, chunk locations.
//! Its bytes are [`COMMAND_VERSION`], then the postcard encoding. **The order of variants and fields is the format**:
//! add at the end, or count the version up and keep the old decoder.

use cfs_format::{DomainId, Fingerprint, Ino, Timestamp, ViewId, VolumeId};
use cfs_store::NewChunk;
use serde::{Deserialize, Serialize};

use crate::types::Time;

/// First byte of every command that this build writes.
pub const COMMAND_VERSION: u8 = 1;

/// A change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Command {
    /// Makes the root volume and the root directory, in an empty store.
    Format(Format),
    /// Makes an inode of any type with its first name.
    Make(Make),
    /// Makes a regular file without a name.
    MakeUnnamed(MakeUnnamed),
    /// Gives an inode that is no directory one more name.
    Link(Link),
    /// Takes a name from an inode that is no directory.
    Unlink(Unlink),
    /// Removes an empty directory.
    RemoveDirectory(Unlink),
    /// Moves or swaps names.
    Rename(Rename),
    /// Changes attributes other than the size.
    SetAttributes(SetAttributes),
    /// Sets an extended attribute.
    SetXattr(SetXattr),
    /// Removes an extended attribute.
    RemoveXattr(RemoveXattr),
    /// Access times that reading has changed. Inodes that are gone are skipped.
    TouchTimes(Vec<(Ino, Time)>),
    /// New content of a file.
    Write(Write),
    /// A range of a file becomes a hole.
    Punch(Punch),
    /// A range is cut out of a file, or room is made in it.
    Shift(Shift),
    /// A range of a file becomes a second reference to a range of another.
    CloneRange(CloneRange),
    /// Frees what an inode without a name holds, in steps; the last step removes the inode.
    Reap(Reap),
    /// The same content in other chunks.
    Rechunk(Rechunk),
    /// Moves a name and leaves a whiteout under the old one: a character device 0/0, which says to a union of file
    /// systems that there is nothing.
    RenameWhiteout(RenameWhiteout),
    /// Takes a snapshot of a directory.
    SnapshotCreate(SnapshotCreate),
    /// Deletes a snapshot; what it held is removed by [`Command::Prune`].
    SnapshotDelete(SnapshotDelete),
    /// Holds or releases a snapshot.
    SnapshotHold(SnapshotHold),
    /// Removes states of rows that a deleted snapshot was the last to need, in steps.
    Prune(Prune),
    /// Gives an inode the content and the attributes that one had in a snapshot.
    Restore(Restore),
    /// Gives a file without a name its name, replacing what has it, with records.
    Publish(Publish),
    /// Sets and removes records that front ends keep with an inode.
    SetRecords(SetRecords),
    /// Locks a file, changes or ends its lock; or has what is in a directory be locked.
    SetLock(SetLock),
    /// Takes a name, moves names, and gives a file its name, in one step.
    Arrange(Arrange),
    /// Makes a volume, seen under a new name.
    VolumeCreate(VolumeCreate),
    /// Gives a volume other quotas.
    VolumeQuota(VolumeQuota),
    /// Removes an empty volume and its name; of a clone the name, whatever is in it.
    VolumeDelete(VolumeDelete),
    /// Makes a volume that shows what a snapshot shows, seen under a new name.
    CloneCreate(CloneCreate),
    /// Copies what a clone's origin has of an inode, in steps; with the last it is the clone's own.
    CopyUp(CopyUp),
    /// Removes rows of a clone that has been removed, in steps; with the last ones its own.
    Sweep(Sweep),
    /// Makes a dedup domain, with records that tell what it is for.
    DomainCreate(DomainCreate),
    /// Makes a directory or a volume that has records from the first moment.
    MakeRecorded(MakeRecorded),
}

/// See [`Command::Format`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Format {
    /// Owner of the root directory.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// `segment::CODEC_*` of the root volume.
    pub codec: u8,
    /// Level of the codec.
    pub codec_level: u8,
    /// Dedup domain of the root volume.
    pub domain: DomainId,
    /// When.
    pub now: Time,
    /// Salt of the root directory's file key.
    pub salt: [u8; 16],
}

/// See [`Command::Make`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Make {
    /// Directory.
    pub parent: Ino,
    /// Name in it.
    #[serde(with = "byte_vec")]
    pub name: Vec<u8>,
    /// Number of the new inode.
    pub ino: Ino,
    /// Type and permission bits, before umask and default ACL.
    pub mode: u32,
    /// Device number.
    pub rdev: u64,
    /// Owner.
    pub uid: u32,
    /// Group, unless the directory passes its own on.
    pub gid: u32,
    /// Used where the directory has no default ACL.
    pub umask: u32,
    /// Target of a symbolic link; empty for other types.
    #[serde(with = "byte_vec")]
    pub target: Vec<u8>,
    /// When.
    pub now: Time,
    /// Salt of the file key.
    pub salt: [u8; 16],
}

/// See [`Command::MakeUnnamed`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MakeUnnamed {
    /// Directory whose volume, group and default ACL it takes.
    pub parent: Ino,
    /// Number of the new inode.
    pub ino: Ino,
    /// Permission bits, before umask and default ACL.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group, unless the directory passes its own on.
    pub gid: u32,
    /// Used where the directory has no default ACL.
    pub umask: u32,
    /// When.
    pub now: Time,
    /// Salt of the file key.
    pub salt: [u8; 16],
}

/// See [`Command::VolumeCreate`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeCreate {
    /// The directory in whose place it is seen, as a new one.
    pub junction: Make,
    /// The volume.
    pub volume: VolumeId,
    /// Number of its root directory.
    pub root: Ino,
    /// Dedup domain of its files.
    pub domain: DomainId,
    /// The secret of the domain as the tables hold it, if it is a new one.
    pub new_secret: Option<[u8; 32]>,
    /// Most bytes of content; 0: no bound.
    pub quota_bytes: u64,
    /// Most inodes; 0: no bound.
    pub quota_inodes: u64,
    /// Salt of the root directory's file key.
    pub salt: [u8; 16],
}

/// See [`Command::DomainCreate`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DomainCreate {
    /// The domain.
    pub domain: DomainId,
    /// Its secret as the tables hold it.
    pub secret: [u8; 32],
    /// The inode that has the records.
    pub ino: Ino,
    /// Records to set.
    pub put: Vec<(Vec<u8>, Vec<u8>)>,
}

/// See [`Command::MakeRecorded`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MakeRecorded {
    /// How it is made.
    pub made: MadeDirectory,
    /// Records to set, of a volume those of its root.
    pub put: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether it stays where it is for good, as after [`Command::SetLock`].
    pub stays: bool,
}

/// What [`MakeRecorded`] makes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum MadeDirectory {
    /// A directory.
    Plain(Make),
    /// A volume.
    Volume(VolumeCreate),
}

/// See [`Command::VolumeQuota`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeQuota {
    /// The volume.
    pub volume: VolumeId,
    /// Most bytes of content; 0: no bound.
    pub quota_bytes: u64,
    /// Most inodes; 0: no bound.
    pub quota_inodes: u64,
}

/// See [`Command::VolumeDelete`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeDelete {
    /// The volume.
    pub volume: VolumeId,
    /// Directory of its name.
    pub parent: Ino,
    /// The name.
    #[serde(with = "byte_vec")]
    pub name: Vec<u8>,
    /// When.
    pub now: Time,
}

/// See [`Command::CloneCreate`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CloneCreate {
    /// The directory in whose place it is seen, as a new one.
    pub junction: Make,
    /// The volume, at most [`VolumeId::CLONE_MAX`].
    pub volume: VolumeId,
    /// Volume of the snapshot.
    pub origin: VolumeId,
    /// The snapshot's timestamp.
    pub timestamp: Timestamp,
    /// Most bytes of content; 0: no bound.
    pub quota_bytes: u64,
    /// Most inodes; 0: no bound.
    pub quota_inodes: u64,
}

/// See [`Command::CopyUp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyUp {
    /// The inode, as the clone numbers it.
    pub ino: Ino,
    /// Salt of its file key in the clone. That of the first step counts.
    pub salt: [u8; 16],
    /// Entries or extents to copy, at most.
    pub rows_max: u32,
}

/// See [`Command::Sweep`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sweep {
    /// The clone.
    pub volume: VolumeId,
    /// Rows to remove, at most.
    pub rows_max: u32,
    /// Inodes with larger numbers have no rows left. Without it the clone's own row goes when there are no others.
    pub last: Option<Ino>,
}

/// See [`Command::Link`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Link {
    /// The inode.
    pub ino: Ino,
    /// Directory of the new name.
    pub parent: Ino,
    /// The new name.
    #[serde(with = "byte_vec")]
    pub name: Vec<u8>,
    /// When.
    pub now: Time,
}

/// See [`Command::Unlink`] and [`Command::RemoveDirectory`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unlink {
    /// Directory.
    pub parent: Ino,
    /// Name in it.
    #[serde(with = "byte_vec")]
    pub name: Vec<u8>,
    /// Keep the inode as an orphan if this was its last name: somebody has it open.
    pub keep: bool,
    /// When.
    pub now: Time,
}

/// See [`Command::Rename`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rename {
    /// Directory of the old name.
    pub parent: Ino,
    /// The old name.
    #[serde(with = "byte_vec")]
    pub name: Vec<u8>,
    /// Directory of the new name.
    pub new_parent: Ino,
    /// The new name.
    #[serde(with = "byte_vec")]
    pub new_name: Vec<u8>,
    /// Refuse when the new name exists.
    pub no_replace: bool,
    /// Swap the names.
    pub exchange: bool,
    /// Keep a replaced inode as an orphan if this was its last name: somebody has it open.
    pub keep: bool,
    /// When.
    pub now: Time,
}

/// See [`Command::RenameWhiteout`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RenameWhiteout {
    /// The move; it swaps nothing.
    pub rename: Rename,
    /// Number of the whiteout's inode.
    pub ino: Ino,
    /// Owner of the whiteout.
    pub uid: u32,
    /// Group of the whiteout, unless the directory passes its own on.
    pub gid: u32,
    /// Salt of its file key.
    pub salt: [u8; 16],
}

/// See [`Command::Publish`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Publish {
    /// The file.
    pub ino: Ino,
    /// Directory of the name.
    pub parent: Ino,
    /// The name.
    #[serde(with = "byte_vec")]
    pub name: Vec<u8>,
    /// Where a replaced file goes instead of losing its name.
    pub archive: Option<(Ino, Vec<u8>)>,
    /// Keep a replaced inode as an orphan if this was its last name: somebody has it open.
    pub keep: bool,
    /// Records and extended attributes.
    pub records: Vec<(Vec<u8>, Vec<u8>)>,
    /// They describe the content.
    pub describes: bool,
    /// When.
    pub now: Time,
}

/// See [`Command::SetRecords`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetRecords {
    /// The inode.
    pub ino: Ino,
    /// Records to set.
    pub put: Vec<(Vec<u8>, Vec<u8>)>,
    /// Names of records to remove.
    pub delete: Vec<Vec<u8>>,
    /// They describe the content.
    pub describes: bool,
    /// When, if it counts as a change of attributes.
    pub now: Option<Time>,
}

/// See [`Command::SetLock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetLock {
    /// The inode.
    pub ino: Ino,
    /// `lock_mode::*`, and the end in milliseconds since 1970; if it changes.
    pub retention: Option<(u8, u64)>,
    /// Held or not, if it changes.
    pub hold: Option<bool>,
    /// Whoever asks may weaken governance.
    pub bypass: bool,
}

/// See [`Command::Arrange`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arrange {
    /// Directory and name of a file that loses its name.
    pub remove: Option<(Ino, Vec<u8>)>,
    /// Keep that inode as an orphan if this was its last name: somebody has it open.
    pub keep: bool,
    /// Whoever asks may remove what governance protects.
    pub bypass: bool,
    /// Directory and name before and after, in this order; the new names are free, or are the one that is taken.
    pub moves: Vec<(Ino, Vec<u8>, Ino, Vec<u8>)>,
    /// A file without a name, and the name that it gets.
    pub publish: Option<Published>,
    /// When.
    pub now: Time,
}

/// A file that gets its name in an [`Arrange`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Published {
    /// The file.
    pub ino: Ino,
    /// Directory of the name.
    pub parent: Ino,
    /// The name.
    #[serde(with = "byte_vec")]
    pub name: Vec<u8>,
    /// Records and extended attributes.
    pub records: Vec<(Vec<u8>, Vec<u8>)>,
    /// They describe the content.
    pub describes: bool,
}

/// See [`Command::SetAttributes`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetAttributes {
    /// The inode.
    pub ino: Ino,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Last access.
    pub atime: Option<Time>,
    /// Last change of content.
    pub mtime: Option<Time>,
    /// Last change of attributes.
    pub ctime: Time,
    /// Clear set-user-id and set-group-id as a write by another does.
    pub kill_suid_sgid: bool,
}

/// See [`Command::SetXattr`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetXattr {
    /// The inode.
    pub ino: Ino,
    /// Name.
    #[serde(with = "byte_vec")]
    pub name: Vec<u8>,
    /// Value.
    #[serde(with = "byte_vec")]
    pub value: Vec<u8>,
    /// Refuse when it exists.
    pub create: bool,
    /// Refuse when it does not.
    pub replace: bool,
    /// Clear set-group-id when an access ACL is set.
    pub kill_sgid: bool,
    /// When.
    pub now: Time,
}

/// See [`Command::RemoveXattr`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RemoveXattr {
    /// The inode.
    pub ino: Ino,
    /// Name.
    #[serde(with = "byte_vec")]
    pub name: Vec<u8>,
    /// When.
    pub now: Time,
}

/// A range of a file and the part of a chunk that it is to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewExtent {
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
    /// First byte in the chunk.
    pub chunk_offset: u32,
    /// Bytes of the whole chunk.
    pub chunk_len: u32,
    /// Dedup domain of the chunk.
    pub domain: DomainId,
    /// The chunk.
    pub fingerprint: Fingerprint,
}

/// See [`Command::Write`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Write {
    /// The file.
    pub ino: Ino,
    /// Cut it here before anything is written.
    pub truncate_to: Option<u64>,
    /// Its size afterwards.
    pub size: u64,
    /// Last change of content, if it changes.
    pub mtime: Option<Time>,
    /// Last change of attributes, if it changes.
    pub ctime: Option<Time>,
    /// Clear set-user-id and set-group-id as a write by another does.
    pub kill_suid_sgid: bool,
    /// The whole content, of a small file.
    #[serde(with = "byte_vec_option")]
    pub inline: Option<Vec<u8>>,
    /// New extents, in order of offset, without overlap.
    pub extents: Vec<NewExtent>,
    /// Chunks of theirs that may be new.
    pub chunks: Vec<NewChunk>,
}

/// See [`Command::Punch`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Punch {
    /// The file.
    pub ino: Ino,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Size of the file afterwards.
    pub size: u64,
    /// When.
    pub now: Time,
    /// Clear set-user-id and set-group-id as a write by another does.
    pub kill_suid_sgid: bool,
}

/// See [`Command::Shift`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shift {
    /// The file.
    pub ino: Ino,
    /// First byte.
    pub offset: u64,
    /// Bytes cut out, or room made.
    pub len: u64,
    /// Make room instead of cutting out.
    pub insert: bool,
    /// When.
    pub now: Time,
    /// Clear set-user-id and set-group-id as a write by another does.
    pub kill_suid_sgid: bool,
}

/// See [`Command::CloneRange`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CloneRange {
    /// Source file.
    pub source: Ino,
    /// The source as a snapshot with this timestamp shows it.
    pub source_at: Option<Timestamp>,
    /// First byte in the source.
    pub source_offset: u64,
    /// Destination file.
    pub target: Ino,
    /// First byte in the destination.
    pub target_offset: u64,
    /// Bytes.
    pub len: u64,
    /// When.
    pub now: Time,
    /// Clear set-user-id and set-group-id as a write by another does.
    pub kill_suid_sgid: bool,
}

/// See [`Command::SnapshotCreate`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapshotCreate {
    /// The directory.
    pub directory: Ino,
    /// Name of the snapshot.
    #[serde(with = "byte_vec")]
    pub name: Vec<u8>,
    /// The directory's path, for people.
    #[serde(with = "byte_vec")]
    pub path: Vec<u8>,
    /// Its place in inode numbers, which no other snapshot has.
    pub view: ViewId,
    /// When.
    pub now: Time,
}

/// See [`Command::SnapshotDelete`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotDelete {
    /// The volume.
    pub volume: VolumeId,
    /// The snapshot's timestamp.
    pub timestamp: Timestamp,
}

/// See [`Command::SnapshotHold`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotHold {
    /// The volume.
    pub volume: VolumeId,
    /// The snapshot's timestamp.
    pub timestamp: Timestamp,
    /// Hold it, or release it.
    pub held: bool,
}

/// See [`Command::Prune`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prune {
    /// The volume.
    pub volume: VolumeId,
    /// The timestamp that the deleted snapshot had.
    pub timestamp: Timestamp,
    /// States to look at, at most.
    pub rows_max: u32,
}

/// See [`Command::Restore`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// The inode as the snapshot shows it.
    pub source: Ino,
    /// The snapshot's timestamp.
    pub at: Timestamp,
    /// The inode that gets it; of the same kind.
    pub target: Ino,
    /// When.
    pub now: Time,
}

/// See [`Command::Reap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reap {
    /// The inode.
    pub ino: Ino,
    /// Extents to free at most.
    pub extents_max: u32,
}

/// See [`Command::Rechunk`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rechunk {
    /// The file.
    pub ino: Ino,
    /// First byte of the range.
    pub offset: u64,
    /// Bytes of the range.
    pub len: u64,
    /// The range's extents as they were read; if they have changed, the command does nothing.
    pub old: Vec<NewExtent>,
    /// The extents to be.
    pub new: Vec<NewExtent>,
    /// Chunks of theirs that may be new.
    pub chunks: Vec<NewChunk>,
}

/// Bytes that are no command of a version that this build reads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The version byte is missing or unknown.
    #[error("command of unknown version {0:?}")]
    Version(Option<u8>),
    /// The rest does not decode.
    #[error("command does not decode: {0}")]
    Encoding(#[from] postcard::Error),
    /// There is more than the command.
    #[error("{0} bytes after the command")]
    Trailing(usize),
}

impl Command {
    /// What it does, in one word.
    pub(crate) fn kind_name(&self) -> String {
        let shown = format!("{self:?}");
        let end = shown.find(|letter: char| !letter.is_alphanumeric());
        shown[..end.unwrap_or(shown.len())].to_owned()
    }

    /// The command's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(192);
        bytes.push(COMMAND_VERSION);
        postcard::to_extend(self, bytes).expect("a vector takes any number of bytes")
    }

    /// Whether it brings what a caller was told is accepted, or takes away: no quota can refuse it.
    pub(crate) fn was_accepted(&self) -> bool {
        matches!(
            self,
            Self::Write(_)
                | Self::Reap(_)
                | Self::Rechunk(_)
                | Self::Prune(_)
                | Self::VolumeQuota(_)
                | Self::Sweep(_)
        )
    }

    /// Whether it changes nothing that a snapshot would show, but for times of access.
    pub(crate) fn is_upkeep(&self) -> bool {
        matches!(
            self,
            Self::TouchTimes(_)
                | Self::Reap(_)
                | Self::Rechunk(_)
                | Self::Prune(_)
                | Self::Sweep(_)
                | Self::CopyUp(_)
                | Self::SnapshotDelete(_)
                | Self::SnapshotHold(_)
                | Self::VolumeQuota(_)
        )
    }

    /// The command with these bytes.
    ///
    /// # Errors
    /// When they are not exactly one command of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Self, CommandError> {
        match bytes.split_first() {
            Some((&COMMAND_VERSION, rest)) => match postcard::take_from_bytes(rest)? {
                (command, []) => Ok(command),
                (_, trailing) => Err(CommandError::Trailing(trailing.len())),
            },
            other => Err(CommandError::Version(other.map(|(version, _)| *version))),
        }
    }
}

/// Byte strings as one length and one copy, instead of byte by byte.
mod byte_vec {
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        deserializer.deserialize_byte_buf(Visitor)
    }

    pub struct Visitor;

    impl serde::de::Visitor<'_> for Visitor {
        type Value = Vec<u8>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("bytes")
        }

        fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
            Ok(bytes.to_vec())
        }

        fn visit_byte_buf<E: serde::de::Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
            Ok(bytes)
        }
    }
}

/// The same for an optional byte string.
mod byte_vec_option {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(
        bytes: &Option<Vec<u8>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        struct Bytes<'a>(&'a [u8]);
        impl Serialize for Bytes<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_bytes(self.0)
            }
        }
        bytes.as_deref().map(Bytes).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Vec<u8>>, D::Error> {
        struct Bytes(Vec<u8>);
        impl<'de> Deserialize<'de> for Bytes {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                super::byte_vec::deserialize(deserializer).map(Bytes)
            }
        }
        Ok(Option::<Bytes>::deserialize(deserializer)?.map(|bytes| bytes.0))
    }
}

#[cfg(test)]
mod tests {
    use cfs_format::{SegmentId, SegmentSeq};

    use super::*;

    /// The first bytes that version 1 writes for a command with and one without chunks; see `docs/format/namespace.md`.
    #[test]
    fn golden_commands() {
        let now = Time {
            seconds: -2,
            nanos: 7,
        };
        let hex = |command: &Command| -> String {
            let bytes = command.encode();
            bytes.iter().map(|byte| format!("{byte:02x}")).collect()
        };
        let make = Command::Make(Make {
            parent: Ino(1),
            name: b"name".to_vec(),
            ino: Ino(300),
            mode: 0o100_644,
            rdev: 0,
            uid: 1000,
            gid: 100,
            umask: 0o022,
            target: Vec::new(),
            now,
            salt: [0xab; 16],
        });
        let fingerprint = Fingerprint([0xcd; 32]);
        let write = Command::Write(Write {
            ino: Ino(300),
            truncate_to: Some(0),
            size: 70_000,
            mtime: Some(now),
            ctime: None,
            kill_suid_sgid: true,
            inline: None,
            extents: vec![NewExtent {
                offset: 0,
                len: 70_000,
                chunk_offset: 1,
                chunk_len: 70_001,
                domain: DomainId::DEFAULT,
                fingerprint,
            }],
            chunks: vec![NewChunk {
                fingerprint,
                segment: SegmentId(9),
                seq: SegmentSeq(10),
                offset: 4096,
                record_len: 333,
                raw_len: 70_001,
                domain: DomainId::DEFAULT,
                codec: 1,
            }],
        });
        let whiteout = Command::RenameWhiteout(RenameWhiteout {
            rename: Rename {
                parent: Ino(1),
                name: b"name".to_vec(),
                new_parent: Ino(2),
                new_name: b"new".to_vec(),
                no_replace: true,
                exchange: false,
                keep: false,
                now,
            },
            ino: Ino(300),
            uid: 1000,
            gid: 100,
            salt: [0xab; 16],
        });
        assert_eq!(
            hex(&whiteout),
            "011101046e616d6502036e65770100000307ac02e80764abababababababababababababababab"
        );
        assert_eq!(
            hex(&make),
            "010101046e616d65ac02a4830200e8076412000307abababababababababababababababab"
        );
        assert_eq!(
            hex(&write),
            "010bac020100f0a2040103070001000100f0a20401f1a20401cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd01cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd090a8020cd02f1a2040101"
        );
        let Command::Make(directory) = make.clone() else {
            unreachable!("made above")
        };
        let recorded = Command::MakeRecorded(MakeRecorded {
            made: MadeDirectory::Plain(Make {
                mode: 0o040_755,
                ..directory
            }),
            put: vec![(b"s3.x".to_vec(), b"y".to_vec())],
            stays: true,
        });
        assert_eq!(
            hex(&recorded),
            "01220001046e616d65ac02ed830100e8076412000307abababababababababababababababab010473332e78017901"
        );
        let Command::MakeRecorded(MakeRecorded {
            made: MadeDirectory::Plain(junction),
            ..
        }) = recorded.clone()
        else {
            unreachable!("made above")
        };
        let volume = Command::MakeRecorded(MakeRecorded {
            made: MadeDirectory::Volume(VolumeCreate {
                junction,
                volume: VolumeId(5),
                root: Ino(301),
                domain: DomainId(6),
                new_secret: Some([0xef; 32]),
                quota_bytes: 7,
                quota_inodes: 8,
                salt: [0xac; 16],
            }),
            put: Vec::new(),
            stays: false,
        });
        assert_eq!(
            hex(&volume),
            "01220101046e616d65ac02ed830100e8076412000307abababababababababababababababab05ad020601efefefefefefefefefefefefefefefefefefefefefefefefefefefefefefefef0708acacacacacacacacacacacacacacacac0000"
        );
        for command in [make, write, whiteout, recorded, volume] {
            let decoded = Command::decode(&command.encode()).expect("our own");
            assert_eq!(hex(&decoded), hex(&command));
        }
    }
}
