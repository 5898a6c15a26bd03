//! Making, listing, bounding and removing volumes; and the path that a directory has now.

use cfs_format::table::{VolumeRecord, tag, volume_flag};
use cfs_format::{DomainId, Ino, VolumeId};

use crate::command::{
    Command, DomainCreate, MadeDirectory, Make, MakeRecorded, VolumeCreate, VolumeDelete,
    VolumeQuota,
};
use crate::directory::{self, FIRST_COOKIE};
use crate::error::{FsError, Result};
use crate::types::{Attr, Caller, Room, Time};
use crate::views::beside;
use crate::{Fs, inode};

/// Permission bits of the root of a new volume.
const ROOT_MODE: u32 = 0o755;
/// Directories above another at most; more mean that parents form a circle.
const DEPTH_MAX: usize = 1 << 16;
/// How often removing a volume waits for what its snapshots have held to go.
const PRUNE_ROUNDS_MAX: usize = 8;

/// What may be in a volume that is removed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    None,
    /// Anything, and it goes too.
    Goes,
}

/// How a volume is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeOptions {
    /// Its bounds.
    pub quota: Quota,
    /// With which others its files share chunks.
    pub domain: VolumeDomain,
}

/// What [`Fs::mkdir_recorded`] and [`Fs::volume_create_recorded`] give a directory beside its name.
#[derive(Clone, Copy, Debug)]
pub struct Recorded<'a> {
    /// Records of front ends, names and values.
    pub records: &'a [(Vec<u8>, Vec<u8>)],
    /// Whether it stays where it is for good, as after [`Fs::fix_directory`].
    pub stays: bool,
}

impl Recorded<'_> {
    pub(super) fn bytes(&self) -> usize {
        let bytes = |(name, value): &(Vec<u8>, Vec<u8>)| name.len() + value.len();
        self.records.iter().map(bytes).sum()
    }
}

/// The dedup domain of a new volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VolumeDomain {
    /// That of the pool.
    #[default]
    Shared,
    /// A new one: its files share no chunks with those of other volumes.
    New,
    /// One that [`Fs::domain_create`] has made.
    Of(DomainId),
}

/// Bounds of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Most bytes of content, as the sizes of its files add up; 0: no bound.
    pub bytes: u64,
    /// Most inodes, its root among them; 0: no bound.
    pub inodes: u64,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its number.
    pub id: VolumeId,
    /// The path of its root.
    pub path: Vec<u8>,
    /// Its root.
    pub root: Ino,
    /// Its bounds.
    pub quota: Quota,
    /// Counters and domain.
    pub record: VolumeRecord,
}

impl Volume {
    /// Whether it shows what a snapshot shows, where it has not been changed.
    #[must_use]
    pub fn is_clone(&self) -> bool {
        self.record.origin().is_some()
    }

    /// Whether [`Fs::clone_delete`] removes it with all that is in it: a clone in which nothing has been locked.
    #[must_use]
    pub fn goes_whole(&self) -> bool {
        self.is_clone() && self.record.flags.get() & volume_flag::LOCKED == 0
    }
}

/// The empty directory in whose place the root of a new volume is seen.
pub(super) fn junction_at(
    (parent, name): (Ino, &[u8]),
    ino: Ino,
    caller: &Caller,
    now: Time,
    salt: [u8; 16],
) -> Make {
    Make {
        parent,
        name: name.to_vec(),
        ino,
        mode: libc::S_IFDIR | ROOT_MODE,
        rdev: 0,
        uid: caller.uid,
        gid: caller.gid,
        umask: caller.umask,
        target: Vec::new(),
        now,
        salt,
    }
}

impl Fs {
    /// Makes a volume, whose root is a new directory with this path.
    ///
    /// # Errors
    /// [`FsError::Exists`]; [`FsError::NotFound`], [`FsError::NotDirectory`] for the directory above;
    /// [`FsError::Invalid`], [`FsError::NameTooLong`] for the name; [`FsError::Snapshot`] for a path in a snapshot;
    /// [`FsError::NoSpace`], [`FsError::Quota`]; [`FsError::TooManyLinks`] when there are as many volumes as there can
    /// be; [`FsError::Invalid`] also for a domain that there is not. There is no new volume then.
    pub fn volume_create(
        &self,
        path: &[u8],
        options: &VolumeOptions,
        caller: &Caller,
    ) -> Result<Attr> {
        self.volume_make(path, options, caller, None)
    }

    /// Makes a volume whose root has records (see [`Fs::set_records`]): both or neither, whatever happens. Durable
    /// after [`cfs_store::Store::sync`].
    ///
    /// # Errors
    /// As [`Fs::volume_create`] and [`Fs::set_records`]. Nothing changed then.
    pub fn volume_create_recorded(
        &self,
        path: &[u8],
        options: &VolumeOptions,
        caller: &Caller,
        how: &Recorded<'_>,
    ) -> Result<Attr> {
        self.volume_make(path, options, caller, Some(how))
    }

    fn volume_make(
        &self,
        path: &[u8],
        options: &VolumeOptions,
        caller: &Caller,
        how: Option<&Recorded<'_>>,
    ) -> Result<Attr> {
        let (parent, name) = self.resolve_parent(path)?;
        directory::check_reserved(name)?;
        let bytes = how.map_or(0, Recorded::bytes);
        let _room = self.admit_growth(name.len() + bytes)?;
        let (junction, root) = (self.new_ino(parent)?, self.store.allocate_ino());
        let salts = (self.salt(), self.salt());
        let outcome = self.execute(|_, now| {
            let volume = self.views.free_volume(VolumeId(u32::MAX));
            let (domain, new_secret) = match options.domain {
                VolumeDomain::Shared => (DomainId::DEFAULT, None),
                VolumeDomain::Of(domain) => (domain, None),
                VolumeDomain::New => {
                    let (domain, secret) = self.store.new_domain().ok_or(FsError::TooManyLinks)?;
                    (domain, Some(secret))
                }
            };
            let made = VolumeCreate {
                junction: junction_at((parent, name), junction, caller, now, salts.0),
                volume: volume.ok_or(FsError::TooManyLinks)?,
                root,
                domain,
                new_secret,
                quota_bytes: options.quota.bytes,
                quota_inodes: options.quota.inodes,
                salt: salts.1,
            };
            Ok(match how {
                None => Command::VolumeCreate(made),
                Some(how) => Command::MakeRecorded(MakeRecorded {
                    made: MadeDirectory::Volume(made),
                    put: how.records.to_vec(),
                    stays: how.stays,
                }),
            })
        })?;
        self.views.load_junctions();
        let reported = outcome.inode;
        self.attr_after(reported.expect("making a volume reports its root"))
    }

    /// Makes a dedup domain, and sets records of an inode that tell what it is for: both or neither, whatever happens.
    /// Durable after [`cfs_store::Store::sync`].
    ///
    /// # Errors
    /// [`FsError::TooManyLinks`] when there are as many domains as there can be; [`FsError::NotFound`];
    /// [`FsError::Range`], [`FsError::ArgumentTooLong`] for names and values out of bounds; [`FsError::NoSpace`].
    /// Nothing changed then.
    pub fn domain_create(
        &self,
        ino: Ino,
        records: impl Fn(DomainId) -> Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<DomainId> {
        let longest = records(DomainId(u16::MAX));
        let bytes = longest.iter().map(|(name, value)| name.len() + value.len());
        let _room = self.admit_growth(bytes.sum())?;
        let mut made = None;
        self.execute(|_, _| {
            let (domain, secret) = self.store.new_domain().ok_or(FsError::TooManyLinks)?;
            made = Some(domain);
            Ok(Command::DomainCreate(DomainCreate {
                domain,
                secret,
                ino,
                put: records(domain),
            }))
        })?;
        Ok(made.expect("the command was made for one"))
    }

    /// The volume whose root has this path.
    ///
    /// # Errors
    /// [`FsError::NotFound`], also for what is no root of a volume.
    pub fn volume(&self, path: &[u8]) -> Result<Volume> {
        let attr = self.resolve(path)?;
        let record = self.store.volume(attr.volume).ok_or(FsError::NotFound)?;
        if attr.ino.view().is_some() || record.root.get() != attr.ino.0 {
            return Err(FsError::NotFound);
        }
        Ok(self.volume_of(attr.volume, record))
    }

    /// All volumes, in the order in which they were made.
    #[must_use]
    pub fn volumes(&self) -> Vec<Volume> {
        let mut all = self.store.volumes();
        all.retain(|(_, record)| !record.is_removed());
        let all = all.into_iter();
        all.map(|(id, record)| self.volume_of(id, record)).collect()
    }

    pub(super) fn volume_of(&self, id: VolumeId, record: VolumeRecord) -> Volume {
        let root = Ino(record.root.get());
        // One whose root cannot be found is shown by its number.
        let path = self.path_of(root).ok().flatten();
        Volume {
            id,
            path: path.unwrap_or_else(|| format!("inode {root}").into_bytes()),
            root,
            quota: Quota {
                bytes: record.quota_bytes.get(),
                inodes: record.quota_inodes.get(),
            },
            record,
        }
    }

    /// Gives a volume other bounds. One that has more already keeps it, and can only shrink.
    ///
    /// # Errors
    /// [`FsError::NotFound`] when there is no such volume any more; what writing data failed with.
    pub fn volume_set_quota(&self, volume: VolumeId, quota: Quota) -> Result<()> {
        {
            // What is in memory was let in by the old bounds: it must count before the new ones do.
            let _little = self.files.keep_little_dirty()?;
            let _writers = self.gate.write();
            self.files.flush_dirty()?;
            self.execute(|_, _| {
                Ok(Command::VolumeQuota(VolumeQuota {
                    volume,
                    quota_bytes: quota.bytes,
                    quota_inodes: quota.inodes,
                }))
            })?;
        }
        Ok(())
    }

    /// What keeps all in a volume from being removed: the path of a file that is locked, or open, and the error that
    /// removing it, or then the volume, would end with. Takes as long as there are files. Of a clone that goes whole the
    /// path of the clone, at once.
    ///
    /// # Errors
    /// When something cannot be read.
    pub fn volume_obstacle(&self, volume: &Volume) -> Result<Option<(Vec<u8>, FsError)>> {
        if volume.goes_whole() {
            let is_open = self.opens.is_any_open_in(volume.id);
            return Ok(is_open.then(|| (volume.path.clone(), FsError::Busy)));
        }
        let mut waiting = vec![(volume.root, volume.path.clone())];
        while let Some((directory, path)) = waiting.pop() {
            for entry in self.names_from(directory, b"", usize::MAX)? {
                let path = [&path[..], b"/", &entry.name].concat();
                if entry.kind == libc::S_IFDIR {
                    waiting.push((entry.ino, path));
                    continue;
                }
                if self.opens.is_open(entry.ino) {
                    return Ok(Some((path, FsError::NotEmpty)));
                }
                let lock = self.lock(entry.ino)?;
                if lock.is_some_and(|lock| lock.protects(self.now_ms(), false)) {
                    return Ok(Some((path, FsError::Locked)));
                }
            }
        }
        Ok(None)
    }

    /// Removes a volume that is empty and has no snapshots, and its name.
    ///
    /// # Errors
    /// [`FsError::NotFound`] for what is no volume; [`FsError::NotEmpty`], also while files without a name are open;
    /// [`FsError::HasSnapshots`]; [`FsError::Invalid`] for the first volume; of a clone [`FsError::Busy`].
    pub fn volume_delete(&self, path: &[u8]) -> Result<()> {
        let volume = self.volume(path)?;
        if volume.root == Ino::ROOT {
            return Err(FsError::Invalid);
        }
        self.delete(path, &volume, Content::None)
    }

    /// Removes a clone that has no snapshots with all that is in it, and its name; at once, whatever that is. What it
    /// alone held is given back in the background.
    ///
    /// # Errors
    /// [`FsError::NotFound`] for what is no clone; [`FsError::HasSnapshots`]; [`FsError::Volume`] when there is a volume
    /// in it; [`FsError::Busy`] while files in it are open; [`FsError::Locked`] when something in it may be.
    pub fn clone_delete(&self, path: &[u8]) -> Result<()> {
        let volume = self.volume(path)?;
        match volume.is_clone() {
            true => self.delete(path, &volume, Content::Goes),
            false => Err(FsError::NotFound),
        }
    }

    fn delete(&self, path: &[u8], volume: &Volume, content: Content) -> Result<()> {
        let (parent, name) = self.resolve_parent(path)?;
        self.reap_all()?;
        for round in 0.. {
            while self.prune_step()? {}
            let deleted = self.execute_in(Room::Reserve, |txn, now| {
                // Of others the command itself wants to know that they are empty.
                if volume.is_clone() && content == Content::None {
                    let root = inode::shown(txn, volume.root)?;
                    if root.size.get() != 0 {
                        return Err(FsError::NotEmpty);
                    }
                }
                if volume.is_clone() && self.opens.is_any_open_in(volume.id) {
                    return Err(FsError::Busy);
                }
                Ok(Command::VolumeDelete(VolumeDelete {
                    volume: volume.id,
                    parent,
                    name: name.to_vec(),
                    now,
                }))
            });
            match deleted {
                Err(FsError::Changed) if round < PRUNE_ROUNDS_MAX => {}
                other => {
                    other?;
                    break;
                }
            }
        }
        self.views.load_junctions();
        if let Err(error) = self.drop_policies_of(volume.id) {
            tracing::warn!("policies of a volume that was removed stay: {error}");
        }
        self.drop_memory(volume.root);
        if volume.is_clone() {
            self.files.forget_clone(volume.id);
        }
        Ok(())
    }

    /// The directory above what a path names, and the name.
    pub(crate) fn resolve_parent<'p>(&self, path: &'p [u8]) -> Result<(Ino, &'p [u8])> {
        let end = path
            .iter()
            .rposition(|byte| *byte != b'/')
            .ok_or(FsError::Exists)?
            + 1;
        let start = path[..end]
            .iter()
            .rposition(|byte| *byte == b'/')
            .map_or(0, |slash| slash + 1);
        let parent = self.resolve(&path[..start])?;
        if parent.kind() != libc::S_IFDIR {
            return Err(FsError::NotDirectory);
        }
        if parent.ino.view().is_some() {
            return Err(FsError::Snapshot);
        }
        Ok((parent.ino, &path[start..end]))
    }

    /// The path that a directory has now; `None` when it has been removed. Takes as long as the directories above it
    /// have entries.
    ///
    /// # Errors
    /// When something cannot be read.
    pub fn path_of(&self, directory: Ino) -> Result<Option<Vec<u8>>> {
        let mut names = Vec::new();
        let mut at = directory;
        while at != Ino::ROOT {
            if names.len() > DEPTH_MAX {
                return Err(FsError::damaged(format_args!(
                    "the parents of directory {directory} form a circle"
                )));
            }
            let named = self.views.junction(at).unwrap_or(at);
            let record = match self.views.record(named)? {
                Some(record) if record.nlink.get() > 0 => record,
                _ => return Ok(None),
            };
            let parent = Ino(record.parent.get());
            if parent == named {
                // The root of a volume that is seen nowhere.
                return Ok(None);
            }
            let Some(name) = self.name_in(parent, named)? else {
                return Ok(None);
            };
            names.push(name);
            at = parent;
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        if path.is_empty() {
            path.push(b'/');
        }
        Ok(Some(path))
    }

    pub(crate) fn name_in(&self, parent: Ino, ino: Ino) -> Result<Option<Vec<u8>>> {
        let place = self.views.place(parent)?;
        let lo = FIRST_COOKIE.to_be_bytes();
        for row in self.views.rows(place, tag::COOKIE, &lo, None) {
            let (_, value) = row?;
            let (record, name) = directory::decode_cookie(parent, &value)?;
            if beside(parent, Ino(record.ino.get()))? == ino {
                return Ok(Some(name.to_vec()));
            }
        }
        Ok(None)
    }
}
