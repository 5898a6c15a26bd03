//! Reading inodes as they are, and as snapshots show them.
//!
//! A snapshot has a view number. An inode number with a view in it ([`Ino::in_view`]) stands for the inode as the
//! snapshot saw it; such a number can be given to every operation that reads, and is refused by those that change. With
//! [`ViewId::LIST`] it stands for the directory `.snapshots` in the inode, which is a directory.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use cfs_format::table::{
    InodeRecord, SnapshotRecord, key, snapshot_flag, split_key, system_key, tag,
};
use cfs_format::{Ino, Timestamp, ViewId, VolumeId};
use cfs_store::Store;
use parking_lot::RwLock;
use zerocopy::FromBytes;

use crate::clone::{self, Found};
use crate::error::{FsError, Result};
use crate::extent::{self, Row, Rows};
use crate::history::{Past, snapshot_key, timestamp_of_key};
use crate::types::Time;
use crate::{directory, inode};

/// The name, in every directory, of the directory that lists its snapshots.
pub const SNAPSHOTS_NAME: &[u8] = b".snapshots";

/// Directories above another at most; more mean that parents form a circle.
pub(crate) const DEPTH_MAX: usize = 1 << 16;

/// A snapshot: a directory, and all below it, as it was at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its place in the numbers of its inodes.
    pub view: ViewId,
    /// The volume of the directory.
    pub volume: VolumeId,
    /// The moment; no other snapshot has it.
    pub timestamp: Timestamp,
    /// The directory.
    pub directory: Ino,
    /// The directory's path when the snapshot was taken.
    pub path: Vec<u8>,
    /// Its name, which no other snapshot of the directory has.
    pub name: Vec<u8>,
    /// The time by the clock.
    pub created: Time,
    /// It cannot be deleted.
    pub held: bool,
    /// Bytes of content of the whole volume at the moment.
    pub volume_logical_bytes: u64,
    /// Inodes of the whole volume at the moment.
    pub volume_inodes: u64,
}

impl Snapshot {
    /// What names it among all snapshots of the pool, for ever.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{:x}", self.timestamp.0)
    }

    /// The number that the tables have for an inode of its view.
    pub(crate) fn number(&self, base: Ino) -> Result<Ino> {
        match self.directory.cloned() {
            None => Ok(base),
            Some((clone, _)) => base.in_clone(clone).ok_or(FsError::TooLarge),
        }
    }

    /// Its name, cut where it is too long, and its id.
    fn name_with_id(&self) -> Vec<u8> {
        let id = self.id();
        let cut = self
            .name
            .len()
            .min(directory::NAME_BYTES_MAX - 1 - id.len());
        [&self.name[..cut], b"~", id.as_bytes()].concat()
    }

    /// The snapshot in a row of the table.
    ///
    /// # Errors
    /// [`FsError::Io`] when it is none.
    pub(crate) fn decode(row: &Row) -> Result<Self> {
        let damaged = || FsError::damaged("the record of a snapshot");
        let timestamp = timestamp_of_key(&row.0)?;
        let (_, _, suffix) = split_key(&row.0)?;
        let (volume, _) = suffix.split_first_chunk::<4>().ok_or_else(damaged)?;
        let (record, rest) = SnapshotRecord::read_from_prefix(&row.1).map_err(|_| damaged())?;
        let (name, path) = rest
            .split_at_checked(record.name_len.into())
            .ok_or_else(damaged)?;
        let view = ViewId(record.view.get());
        if view == ViewId::LIST || view > ViewId::MAX {
            return Err(damaged());
        }
        Ok(Self {
            view,
            volume: VolumeId(u32::from_be_bytes(*volume)),
            timestamp: Timestamp(timestamp),
            directory: Ino(record.directory.get()),
            path: path.to_vec(),
            name: name.to_vec(),
            created: Time::from_ns(record.created_ns.get()),
            held: record.flags.get() & snapshot_flag::HELD != 0,
            volume_logical_bytes: record.volume_logical_bytes.get(),
            volume_inodes: record.volume_inode_count.get(),
        })
    }
}

/// An entry of a directory `.snapshots`.
pub(crate) struct Listed {
    pub name: Vec<u8>,
    pub snapshot: Arc<Snapshot>,
    /// What it shows, as the tables number it.
    pub ino: Ino,
}

/// Where the rows of an inode are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The number in the tables.
    pub ino: Ino,
    /// As of this moment; `None` is now.
    pub at: Option<Timestamp>,
}

/// The snapshots that there are, and the rows that they show.
pub(crate) struct Views {
    store: Arc<Store>,
    by_view: RwLock<HashMap<ViewId, Arc<Snapshot>>>,
    /// The view that was given out last: what is remembered by the numbers of a deleted snapshot must not be taken for
    /// that of the next.
    last: AtomicU32,
    junctions: RwLock<Junctions>,
    /// How many there are: most pools have none, and look no further.
    junction_count: AtomicUsize,
    /// The largest number that a volume has had: it is in the numbers of a clone's inodes, which must not be taken for
    /// those of one that is gone.
    last_volume: AtomicU32,
}

/// Where the roots of volumes are seen.
#[derive(Default)]
struct Junctions {
    root_of: HashMap<Ino, Ino>,
    junction_of: HashMap<Ino, Ino>,
}

impl Views {
    /// All snapshots in the table.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn load(store: Arc<Store>) -> Result<Self> {
        let lo = system_key(tag::SNAPSHOT, &[]);
        let hi = system_key(tag::SNAPSHOT + 1, &[]);
        let mut by_view = HashMap::new();
        for row in store.range(&lo, &hi) {
            let snapshot = Snapshot::decode(&row.map_err(extent::table_error)?)?;
            by_view.insert(snapshot.view, Arc::new(snapshot));
        }
        let newest = by_view.values().max_by_key(|snapshot| snapshot.timestamp);
        let views = Self {
            store,
            last: AtomicU32::new(newest.map_or(0, |snapshot| snapshot.view.0)),
            by_view: RwLock::new(by_view),
            junctions: RwLock::default(),
            junction_count: AtomicUsize::new(0),
            last_volume: AtomicU32::new(0),
        };
        views.load_junctions();
        Ok(views)
    }

    /// Volumes have been made or removed.
    pub(crate) fn load_junctions(&self) {
        // Locked first: of two who look the later one has seen more.
        let mut present = self.junctions.write();
        let mut junctions = Junctions::default();
        for (id, volume) in self.store.volumes() {
            let (junction, root) = (Ino(volume.junction.get()), Ino(volume.root.get()));
            self.last_volume.fetch_max(id.0, Ordering::Relaxed);
            if junction != Ino(0) {
                junctions.root_of.insert(junction, root);
                junctions.junction_of.insert(root, junction);
            }
        }
        self.junction_count
            .store(junctions.root_of.len(), Ordering::Release);
        *present = junctions;
    }

    /// What is seen in the place of an inode: of a junction the root of its volume, else itself. Snapshots show
    /// junctions as what they are.
    pub(crate) fn through(&self, ino: Ino) -> Ino {
        if self.junction_count.load(Ordering::Acquire) == 0 {
            return ino;
        }
        let junctions = self.junctions.read();
        junctions.root_of.get(&ino).copied().unwrap_or(ino)
    }

    /// The junction in whose place a directory is seen, if it is the root of a volume.
    pub(crate) fn junction(&self, root: Ino) -> Option<Ino> {
        self.junctions.read().junction_of.get(&root).copied()
    }

    pub(crate) fn put(&self, snapshot: Snapshot) {
        self.by_view
            .write()
            .insert(snapshot.view, Arc::new(snapshot));
    }

    /// Notes whether a snapshot is held, if it is there still: as the newest command has it.
    ///
    /// # Errors
    /// When its row cannot be read.
    pub(crate) fn look_again(&self, snapshot: &Snapshot) -> Result<()> {
        // Locked first: of two who look the later one has seen more.
        let mut by_view = self.by_view.write();
        let key = snapshot_key(snapshot.volume, snapshot.timestamp.0);
        match self.store.get(&key)? {
            Some(value) => {
                let snapshot = Snapshot::decode(&(key, value))?;
                by_view.insert(snapshot.view, Arc::new(snapshot));
            }
            None => drop(by_view.remove(&snapshot.view)),
        }
        Ok(())
    }

    pub(crate) fn remove(&self, view: ViewId) {
        self.by_view.write().remove(&view);
    }

    /// A view that no snapshot has, and none had for long. `None` when all are in use.
    pub(crate) fn free_view(&self) -> Option<ViewId> {
        let by_view = self.by_view.read();
        let after = self.last.load(Ordering::Relaxed);
        let mut candidates = (after + 1..=ViewId::MAX.0).chain(1..=after).map(ViewId);
        let free = candidates.find(|view| !by_view.contains_key(view))?;
        self.last.store(free.0, Ordering::Relaxed);
        Some(free)
    }

    /// A number for a volume, at most `max`, that none has, and none had for long. `None` when all are in use.
    pub(crate) fn free_volume(&self, max: VolumeId) -> Option<VolumeId> {
        let after = self.last_volume.load(Ordering::Relaxed).min(max.0);
        let mut candidates = (after..=max.0).skip(1).chain(1..=after).map(VolumeId);
        candidates.find(|id| self.store.volume(*id).is_none())
    }

    /// All snapshots, in the order in which they were taken.
    pub(crate) fn all(&self) -> Vec<Arc<Snapshot>> {
        let mut all: Vec<_> = self.by_view.read().values().cloned().collect();
        all.sort_unstable_by_key(|snapshot| snapshot.timestamp);
        all
    }

    /// Whether a snapshot can be looked at.
    pub(crate) fn shows(&self, volume: VolumeId, timestamp: Timestamp) -> bool {
        let by_view = self.by_view.read();
        let mut all = by_view.values();
        all.any(|it| (it.volume, it.timestamp) == (volume, timestamp))
    }

    /// The snapshot with this view.
    ///
    /// # Errors
    /// [`FsError::Stale`] when it has been deleted.
    pub(crate) fn snapshot(&self, view: ViewId) -> Result<Arc<Snapshot>> {
        let by_view = self.by_view.read();
        by_view.get(&view).cloned().ok_or(FsError::Stale)
    }

    /// The number in the tables of the volume that an inode is seen in, and the moment.
    fn seen_at(&self, ino: Ino) -> Result<Place> {
        match ino.view() {
            None => Ok(Place { ino, at: None }),
            Some((view, base)) => {
                let snapshot = self.snapshot(view)?;
                Ok(Place {
                    ino: snapshot.number(base)?,
                    at: Some(snapshot.timestamp),
                })
            }
        }
    }

    /// Where the rows of an inode are. A directory of snapshots has none of its own.
    ///
    /// # Errors
    /// [`FsError::Stale`]; of an inode of a clone, when it cannot be read.
    pub(crate) fn place(&self, ino: Ino) -> Result<Place> {
        let place = self.seen_at(ino)?;
        if place.ino.cloned().is_none() {
            return Ok(place);
        }
        let found = clone::find(&*self.store, place.ino, place.at)?;
        Ok(found.map_or(place, |found| found.place))
    }

    /// The committed record of an inode.
    ///
    /// # Errors
    /// [`FsError::Stale`]; when it cannot be read.
    pub(crate) fn record(&self, ino: Ino) -> Result<Option<InodeRecord>> {
        Ok(self.find(ino)?.map(|found| found.record))
    }

    /// The same, and where its rows are.
    ///
    /// # Errors
    /// As [`Views::record`].
    pub(crate) fn find(&self, ino: Ino) -> Result<Option<Found>> {
        let place = self.seen_at(ino)?;
        if place.ino.cloned().is_some() {
            return clone::find(&*self.store, place.ino, place.at);
        }
        match self.get(place, tag::INODE, &[])? {
            Some(bytes) => {
                let record = inode::decode(place.ino, &bytes)?;
                Ok(Some(Found { place, record }))
            }
            None => Ok(None),
        }
    }

    /// The committed value of a row.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn get(&self, place: Place, row_tag: u8, suffix: &[u8]) -> Result<Option<Vec<u8>>> {
        match place.at {
            None => Ok(self.store.get(&key(place.ino, row_tag, suffix))?),
            Some(at) => self.past(at).get(place.ino, row_tag, suffix),
        }
    }

    /// Suffixes and values of committed rows of one kind, from `lo` to before `hi`, or to the end.
    pub(crate) fn rows(
        &self,
        place: Place,
        row_tag: u8,
        lo: &[u8],
        hi: Option<&[u8]>,
    ) -> Box<dyn Iterator<Item = Result<Row>>> {
        if let Some(at) = place.at {
            return Box::new(self.past(at).rows(place.ino, row_tag, lo, hi));
        }
        let lo = key(place.ino, row_tag, lo);
        let hi = match hi {
            Some(hi) => key(place.ino, row_tag, hi),
            None => key(place.ino, row_tag + 1, &[]),
        };
        Box::new(self.store.range(&lo, &hi).map(|row| {
            let (row_key, value) = row.map_err(extent::table_error)?;
            Ok((split_key(&row_key)?.2.to_vec(), value))
        }))
    }

    fn past(&self, at: Timestamp) -> Past<'_, Store> {
        Past {
            table: &*self.store,
            at,
        }
    }

    /// Extents of a place, for [`extent::scan`].
    pub(crate) fn extents(&self, at: Option<Timestamp>) -> ExtentsAt<'_> {
        ExtentsAt {
            store: &self.store,
            at,
        }
    }

    /// The record of a directory as it was at a snapshot; `None` if it was none that had a name.
    fn directory_at(&self, snapshot: &Snapshot, ino: Ino) -> Result<Option<InodeRecord>> {
        let found = clone::find(&*self.store, ino, Some(snapshot.timestamp))?;
        let Some(Found { record, .. }) = found else {
            return Ok(None);
        };
        Ok((inode::is_directory(&record) && record.nlink.get() > 0).then_some(record))
    }

    /// How many directories `ino` was below the snapshot's when it was taken; `None` if the snapshot does not show it.
    fn depth_in(&self, snapshot: &Snapshot, ino: Ino) -> Result<Option<usize>> {
        let mut at = ino;
        for depth in 0..DEPTH_MAX {
            let Some(record) = self.directory_at(snapshot, at)? else {
                return Ok(None);
            };
            if VolumeId(record.volume.get()) != snapshot.volume {
                return Ok(None);
            }
            if at == snapshot.directory {
                return Ok(Some(depth));
            }
            let above = Ino(record.parent.get());
            if above == at {
                // The root of the volume.
                return Ok(None);
            }
            at = above;
        }
        Err(FsError::damaged(format_args!(
            "the parents of directory {ino} form a circle"
        )))
    }

    /// What `.snapshots` in a directory lists: snapshots that show the directory, each name once, the nearest directory's
    /// first; in the root of a volume also those of directories that are gone, with their ids behind their names where
    /// another has the name. With the inodes that they show.
    ///
    /// # Errors
    /// When something cannot be read.
    pub(crate) fn listed(&self, ino: Ino) -> Result<Vec<Listed>> {
        let record = inode::committed(&self.store, ino)?.ok_or(FsError::NotFound)?;
        let volume = VolumeId(record.volume.get());
        let root = self.store.volume(volume).map(|volume| volume.root.get());
        let mut found: Vec<(usize, Arc<Snapshot>, Ino)> = Vec::new();
        for snapshot in self.all() {
            if snapshot.volume != volume {
                continue;
            }
            match self.depth_in(&snapshot, ino)? {
                Some(depth) => found.push((depth, snapshot, ino)),
                None if root == Some(ino.0) && self.is_gone(snapshot.directory)? => {
                    let directory = snapshot.directory;
                    found.push((usize::MAX, snapshot, directory));
                }
                None => {}
            }
        }
        found.sort_by(|one, other| {
            (&one.1.name, one.0, other.1.timestamp).cmp(&(&other.1.name, other.0, one.1.timestamp))
        });
        let mut listed: Vec<Listed> = Vec::with_capacity(found.len());
        let mut last: Option<Arc<Snapshot>> = None;
        for (depth, snapshot, ino) in found {
            let is_taken = last.is_some_and(|last| last.name == snapshot.name);
            last = Some(Arc::clone(&snapshot));
            let name = match (is_taken, depth) {
                (false, _) => snapshot.name.clone(),
                (true, usize::MAX) => snapshot.name_with_id(),
                (true, _) => continue,
            };
            listed.push(Listed {
                name,
                snapshot,
                ino,
            });
        }
        listed.sort_unstable_by_key(|listed| listed.snapshot.view);
        Ok(listed)
    }

    /// The one with this name of those that [`Views::listed`] gives.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn find_listed(&self, ino: Ino, name: &[u8]) -> Result<Option<Listed>> {
        let may_be = |it: &Arc<Snapshot>| it.name == name || it.name_with_id() == name;
        if !self.by_view.read().values().any(may_be) {
            return Ok(None);
        }
        let mut listed = self.listed(ino)?.into_iter();
        Ok(listed.find(|listed| listed.name == name))
    }

    fn is_gone(&self, directory: Ino) -> Result<bool> {
        let record = inode::committed(&self.store, directory)?;
        Ok(record.is_none_or(|record| record.nlink.get() == 0))
    }

    /// The inode that an entry of a directory points to, as a number of the same view.
    pub(crate) fn entry(&self, parent: Ino, name: &[u8]) -> Result<Option<Ino>> {
        let place = self.place(parent)?;
        match self.get(place, tag::DIRENT, name)? {
            Some(bytes) => {
                let entry = directory::decode(place.ino, &bytes)?;
                Ok(Some(self.through(beside(parent, Ino(entry.ino.get()))?)))
            }
            None => Ok(None),
        }
    }
}

/// The number of an inode in the view or clone that another is in, if that is in one.
///
/// # Errors
/// [`FsError::TooLarge`] for an inode whose number has no room for that.
pub(crate) fn beside(viewed: Ino, ino: Ino) -> Result<Ino> {
    let beside = match (viewed.view(), viewed.cloned()) {
        (Some((view, _)), _) => ino.base().in_view(view),
        (None, Some((clone, _))) => ino.in_clone(clone),
        (None, None) => Some(ino),
    };
    beside.ok_or(FsError::TooLarge)
}

/// The directory whose list of snapshots this is.
pub(crate) fn listed_by(ino: Ino) -> Option<Ino> {
    match ino.view() {
        Some((ViewId::LIST, directory)) => Some(directory),
        _ => None,
    }
}

/// Extents now or then.
pub(crate) struct ExtentsAt<'s> {
    store: &'s Store,
    at: Option<Timestamp>,
}

type Boxed<'s> = Box<dyn Iterator<Item = Result<Row>> + 's>;

impl Rows for ExtentsAt<'_> {
    fn rows(&self, lo: Vec<u8>, hi: Vec<u8>) -> impl Iterator<Item = Result<Row>> {
        match self.at {
            None => Box::new(Rows::rows(self.store, lo, hi)) as Boxed<'_>,
            Some(at) => Box::new(self.past(at).extents(&lo, &hi)),
        }
    }

    fn rows_back(&self, lo: Vec<u8>, hi: Vec<u8>) -> impl Iterator<Item = Result<Row>> {
        match self.at {
            None => Box::new(Rows::rows_back(self.store, lo, hi)) as Boxed<'_>,
            Some(at) => Box::new(self.past(at).extents_back(&lo, &hi)),
        }
    }
}

impl<'s> ExtentsAt<'s> {
    fn past(&self, at: Timestamp) -> Past<'s, Store> {
        Past {
            table: self.store,
            at,
        }
    }
}
