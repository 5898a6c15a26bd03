//! What a namespace needs when its pool is rebuilt from the segments: see [`cfs_store::Namespace`].
//!
//! Rows that were in lost blocks leave others behind that do not fit together. Mending keeps what can be reached or be
//! made reachable again, in this order for each inode and then for the tree:
//! - Rows of an inode whose record is lost: a directory gets a new record, so that what is in it stays; anything else
//!   goes, since what its extents name cannot be known without its record.
//! - A name whose cookie row is lost gets a new one, and the other way round.
//! - Content that is known to be missing is replaced by extents of lost chunks: reading it fails, which zeros would hide.
//! - Names of inodes that are lost go. Inodes without a name that had one are put into `/lost+found`.
//! - Counts are set to what is counted.
//! - What is put where earlier states of a row are kept begins where the last of them ended, or a snapshot would see both.
//! - What a clone has changed and is lost is as its origin has it again, but for names of what it has removed or moved.
//!   What it sees of its origin, a past state, is mended before ([`origins`]), clone after clone where they are clones of
//!   clones.
//! - A volume whose record is lost gets another, with the dedup domain that its extents name, and of a clone without an
//!   origin.
//!
//! Each of these is a finding, told by path.

mod clones;
mod content;
mod entries;
mod origins;
mod past;
mod states;
mod tree;
mod volumes;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use cfs_device::Device;
use cfs_format::superblock::Superblock;
use cfs_format::table::{
    ExtentRecord, HeldExtentRecord, InodeRecord, VolumeRecord, key, split_history, split_key, tag,
};
use cfs_format::{DomainId, Ino, VolumeId};
use cfs_seal::keys::{ClusterKey, FileKey};
use cfs_store::{
    Host, LostRange, MendStage, Namespace, ReadError, RebuildProgress, RebuildReport, Reference,
    ReplayError, RowChanges, Store, StoreOptions, Summary, Txn, UnlockError,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::check::Finding;
use crate::command::{Command, MadeDirectory, MakeRecorded};
use crate::views::Snapshot;
use crate::{Fs, FsOptions, OpenError, clone, extent, history, inode};

/// Findings that are listed at most.
const FINDINGS_MAX: usize = 10_000;

/// A pool that has been rebuilt.
pub struct Rebuilt {
    /// Its files.
    pub fs: Arc<Fs>,
    /// What the store found.
    pub report: RebuildReport,
    /// What could not be brought back, or only in part.
    pub findings: Vec<Finding>,
    /// Findings beyond those.
    pub findings_omitted: u64,
}

impl Fs {
    /// Rebuilds index and tables of a pool from its segments and opens it. For `superblock_copy` and `go_on` see
    /// [`Store::rebuild`]; `None` when `go_on` did not want to.
    ///
    /// # Errors
    /// See [`OpenError`]; the pool is as it was.
    pub fn rebuild_pool(
        device: Arc<dyn Device>,
        host: Arc<dyn Host>,
        superblock_copy: Option<&[u8]>,
        unlock: impl FnOnce(&Superblock) -> Result<ClusterKey, UnlockError>,
        (store_options, options): (StoreOptions, FsOptions),
        go_on: impl FnMut(RebuildProgress) -> bool,
    ) -> Result<Option<Rebuilt>, OpenError> {
        let mut rebuilder = Rebuilder {
            host: Arc::clone(&host),
            findings: Vec::new(),
            findings_omitted: 0,
            troubles: Vec::new(),
            made_anew: BTreeSet::new(),
            lost_volumes: BTreeMap::new(),
            highest: 0,
        };
        let rebuilt = Store::rebuild(
            device,
            Arc::clone(&host),
            superblock_copy,
            unlock,
            store_options,
            &mut rebuilder,
            go_on,
        )?;
        let Some((store, report)) = rebuilt else {
            return Ok(None);
        };
        Ok(Some(Rebuilt {
            fs: Self::over(store, host, options)?,
            report,
            findings: rebuilder.findings,
            findings_omitted: rebuilder.findings_omitted,
        }))
    }
}

struct Rebuilder {
    host: Arc<dyn Host>,
    findings: Vec<Finding>,
    findings_omitted: u64,
    /// Findings whose path is still to be told, of all passes: what one has mended the next does not see.
    troubles: Vec<(Ino, &'static str, String)>,
    /// Volumes whose records were lost.
    made_anew: BTreeSet<VolumeId>,
    /// Root and junction that they get.
    lost_volumes: BTreeMap<VolumeId, (Ino, Ino)>,
    /// No number of an inode, without its clone, that any row tells is larger.
    highest: u64,
}

impl Rebuilder {
    /// The record of a volume whose own is lost.
    fn new_volume(&self, root: Ino, junction: Ino) -> VolumeRecord {
        VolumeRecord {
            root: root.0.into(),
            junction: junction.0.into(),
            created_ns: self.host.now_ns().into(),
            domain: DomainId::DEFAULT.0.into(),
            codec: cfs_format::segment::CODEC_LZ4,
            ..VolumeRecord::default()
        }
    }

    /// The record of a volume that some row names, which may be lost.
    fn volume_of<'v>(
        &mut self,
        volumes: &'v mut BTreeMap<VolumeId, VolumeRecord>,
        (id, ino): (VolumeId, Ino),
    ) -> &'v mut VolumeRecord {
        volumes.entry(id).or_insert_with(|| {
            self.made_anew.insert(id);
            let root = ino.cloned().and_then(|_| Ino::ROOT.in_clone(id));
            self.new_volume(root.unwrap_or(Ino::ROOT), Ino(0))
        })
    }
}

/// The dedup domains that extents tell of their volumes.
struct Told<'a> {
    store: &'a Store,
    domains: BTreeMap<VolumeId, DomainId>,
}

impl Told<'_> {
    /// The default one says nothing: what has stood for lost content of a volume without its record names it too.
    fn learn(&mut self, volume: VolumeId, extent: &ExtentRecord) {
        let domain = DomainId(extent.domain.get());
        if domain != DomainId::DEFAULT
            && !self.domains.contains_key(&volume)
            && self.store.domain_secret(domain).is_some()
        {
            self.domains.insert(volume, domain);
        }
    }
}

impl Namespace for Rebuilder {
    fn replay(&mut self, txn: &mut Txn<'_>, command: &[u8]) -> Result<(), ReplayError> {
        crate::replay(txn, command)
    }

    fn new_domain(&self, command: &[u8]) -> Option<(DomainId, [u8; 32])> {
        match Command::decode(command) {
            Ok(
                Command::VolumeCreate(made)
                | Command::MakeRecorded(MakeRecorded {
                    made: MadeDirectory::Volume(made),
                    ..
                }),
            ) => made.new_secret.map(|secret| (made.domain, secret)),
            Ok(Command::DomainCreate(made)) => Some((made.domain, made.secret)),
            _ => None,
        }
    }

    fn mend(
        &mut self,
        store: &Store,
        lost: &[LostRange],
        stage: MendStage,
        apply: &mut dyn FnMut(RowChanges) -> Result<(), cfs_store::OpenError>,
    ) -> Result<(), cfs_store::OpenError> {
        let of = |mending: Mending<'_>| mending.changes.into_iter().collect();
        let depths = origins::depths(store);
        let deepest = depths.values().copied().max().unwrap_or(0);
        if lost.is_empty() {
            let mut mending = Mending::new(self, store, lost, Depth::all(&depths, deepest));
            mending.present(stage)?;
            return apply(of(mending));
        }
        let mut mending = Mending::new(self, store, lost, Depth::all(&depths, deepest));
        mending.past()?;
        apply(of(mending))?;
        for reached in 0..=deepest {
            let depth = Depth {
                reached,
                ..Depth::all(&depths, deepest)
            };
            let mut mending = Mending::new(self, store, lost, depth);
            mending.present(stage)?;
            apply(of(mending))?;
            for origin in origins::at_depth(store, &depths, reached) {
                let mut mending = Mending::new(self, store, lost, depth);
                mending.origin(&origin)?;
                apply(of(mending))?;
            }
        }
        Ok(())
    }

    fn summarize(&mut self, store: &Store) -> Result<Summary, ReadError> {
        let mut volumes: BTreeMap<VolumeId, VolumeRecord> = store.volumes().into_iter().collect();
        // The log may have added rows under the domain that they have been given.
        let made_before = self.made_anew.clone();
        for (id, (root, junction)) in std::mem::take(&mut self.lost_volumes) {
            let record = self.volume_of(&mut volumes, (id, root));
            (record.root, record.junction) = (root.0.into(), junction.0.into());
        }
        for record in volumes.values_mut() {
            record.logical_bytes = 0.into();
            record.allocated_bytes = 0.into();
            record.inode_count = 0.into();
            record.newest_snapshot = 0.into();
        }
        let mut next_ino = Ino::ROOT.0 + 1;
        let mut told = Told {
            store,
            domains: BTreeMap::new(),
        };
        // The last inode, and its volume.
        let mut last = (Ino(0), VolumeId::ROOT);
        for row in all_rows(store) {
            let (row_key, value) = row?;
            let Ok((ino, row_tag, suffix)) = split_key(&row_key) else {
                continue;
            };
            match (ino, row_tag) {
                (Ino(0), tag::SNAPSHOT) => {
                    if let Ok(snapshot) = Snapshot::decode(&(row_key, value)) {
                        let place = (snapshot.volume, snapshot.directory);
                        let volume = self.volume_of(&mut volumes, place);
                        let newest = volume.newest_snapshot.get().max(snapshot.timestamp.0);
                        volume.newest_snapshot = newest.into();
                    }
                }
                (Ino(0), tag::HISTORY) => {
                    if let Ok((_, tag::EXTENT, ..)) = split_history(suffix)
                        && let Ok(held) = HeldExtentRecord::read_from_bytes(&value)
                    {
                        told.learn(VolumeId(held.volume.get()), &held.extent);
                    }
                }
                (Ino(0), _) => {}
                (_, tag::EXTENT) => {
                    if ino == last.0
                        && let Ok(extent) = ExtentRecord::read_from_bytes(&value)
                    {
                        told.learn(last.1, &extent);
                    }
                }
                (_, tag::INODE) => {
                    let Ok(record) = inode::decode(ino, &value) else {
                        continue;
                    };
                    next_ino = next_ino.max(ino.base().0.saturating_add(1));
                    if clone::is_gone(&record) {
                        continue;
                    }
                    let id = VolumeId(record.volume.get());
                    last = (ino, id);
                    add(self.volume_of(&mut volumes, (id, ino)), &record);
                }
                _ => {}
            }
        }
        for id in &self.made_anew {
            let Some(volume) = volumes.get_mut(id) else {
                continue;
            };
            if let Some(domain) = told.domains.get(id).filter(|_| !made_before.contains(id)) {
                volume.domain = domain.0.into();
            }
            // Nothing of it is left.
            if volume.inode_count.get() == 0 && volume.newest_snapshot.get() == 0 {
                volumes.remove(id);
            }
        }
        Ok(Summary {
            volumes: volumes.into_iter().collect(),
            next_ino,
        })
    }

    fn references(
        &mut self,
        store: &Store,
        each: &mut dyn FnMut(Reference),
    ) -> Result<(), ReadError> {
        let mut file_key = None;
        for row in all_rows(store) {
            let row = row?;
            match split_key(&row.0) {
                Ok((Ino(0), tag::HISTORY, state)) => {
                    if let Ok((ino, tag::EXTENT, suffix, _)) = split_history(state)
                        && let Ok(extent) = history::stored_extent(store, ino, suffix, &row.1)
                    {
                        each(reference(&extent));
                    }
                }
                Ok((Ino(0), _, _)) | Err(_) => {}
                Ok((ino, tag::INODE, _)) => {
                    let record = inode::decode(ino, &row.1).ok();
                    file_key = record.and_then(|record| file_key_of(store, &record));
                }
                Ok((ino, tag::EXTENT, _)) => {
                    let extent = file_key
                        .as_ref()
                        .and_then(|file_key| extent::decode_row(ino, file_key, &row).ok());
                    if let Some(extent) = extent {
                        each(reference(&extent));
                    }
                }
                Ok(_) => {}
            }
        }
        Ok(())
    }
}

fn all_rows(store: &Store) -> impl Iterator<Item = Result<extent::Row, ReadError>> {
    let rows = store.view().range(Bound::Unbounded, Bound::Unbounded);
    rows.map(|row| row.map_err(ReadError::from))
}

/// Counts an inode.
fn add(volume: &mut VolumeRecord, record: &InodeRecord) {
    volume.inode_count += 1;
    if !inode::is_directory(record) {
        let logical = volume.logical_bytes.get();
        volume.logical_bytes = logical.wrapping_add(record.size.get()).into();
        let allocated = volume.allocated_bytes.get();
        volume.allocated_bytes = allocated.saturating_add(record.allocated.get()).into();
    }
}

fn reference(extent: &extent::Extent) -> Reference {
    Reference {
        fingerprint: extent.fingerprint,
        chunk_len: extent.chunk_len,
        domain: extent.domain,
    }
}

fn file_key_of(store: &Store, record: &InodeRecord) -> Option<FileKey> {
    let volume = store.volume(VolumeId(record.volume.get()));
    let domain = volume.map_or(DomainId::DEFAULT, |volume| DomainId(volume.domain.get()));
    let secret = store.domain_secret(domain)?;
    Some(FileKey::derive(&secret, &record.salt))
}

/// What the rows seen so far say about an inode; either side may come first.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// Type bits of its record.
    kind: Option<u32>,
    nlink: u32,
    /// The parent that a directory's record names.
    parent: Ino,
    /// Entries that point to it, and the directory of the last of them.
    names: u32,
    /// Those of them that are in directories with rows of their own.
    own_names: u32,
    name_parent: Ino,
    /// Directories among its own entries.
    subdirectories: u32,
    is_orphan: bool,
    volume: VolumeId,
    /// Names that its clone's origin gives it in directories that the clone has of its own or has removed.
    lost_names: u32,
    /// A clone has it from its origin.
    is_inherited: bool,
    /// It stands for a volume.
    is_junction: bool,
    /// Its record has been made anew.
    is_new: bool,
}

/// How far a pass goes: volumes that are clones of clones come after their origins.
#[derive(Clone, Copy)]
struct Depth<'a> {
    /// Of each volume, how many origins it has above it.
    of: &'a BTreeMap<VolumeId, u32>,
    /// What lies deeper is left for another pass.
    reached: u32,
    deepest: u32,
}

impl<'a> Depth<'a> {
    fn all(of: &'a BTreeMap<VolumeId, u32>, deepest: u32) -> Self {
        Self {
            of,
            reached: deepest,
            deepest,
        }
    }

    fn is_all(&self) -> bool {
        self.reached == self.deepest
    }
}

/// One pass of mending.
struct Mending<'a> {
    rebuilder: &'a mut Rebuilder,
    store: &'a Store,
    lost: &'a [LostRange],
    depth: Depth<'a>,
    seen: HashMap<Ino, Seen>,
    /// Rows that differ from what is there; `None` goes.
    changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// Root and junction of each volume.
    volumes: BTreeMap<VolumeId, (Ino, Ino)>,
}

impl<'a> Mending<'a> {
    fn new(
        rebuilder: &'a mut Rebuilder,
        store: &'a Store,
        lost: &'a [LostRange],
        depth: Depth<'a>,
    ) -> Self {
        let volumes = store.volumes().into_iter();
        let volumes = volumes
            .filter(|(_, volume)| !volume.is_removed())
            .map(|(id, volume)| {
                let ends = (Ino(volume.root.get()), Ino(volume.junction.get()));
                (id, ends)
            });
        // What a pass before this one has given.
        let made = rebuilder.lost_volumes.iter().map(|(id, ends)| (*id, *ends));
        Self {
            volumes: volumes.chain(made).collect(),
            rebuilder,
            store,
            lost,
            depth,
            seen: HashMap::new(),
            changes: BTreeMap::new(),
        }
    }

    /// Makes what is there now fit together.
    fn present(&mut self, stage: MendStage) -> Result<(), ReadError> {
        self.rows()?;
        self.tree(stage)?;
        self.begin_behind_past()
    }

    /// Whether an inode is looked at in this pass.
    fn is_due(&self, ino: Ino) -> bool {
        let clone = ino.cloned().map(|(clone, _)| clone);
        let depth = clone.and_then(|clone| self.depth.of.get(&clone));
        depth.is_none_or(|depth| *depth <= self.depth.reached)
    }

    /// Whether it is the root of a volume.
    fn is_root(&self, ino: Ino) -> bool {
        ino == Ino::ROOT || self.volumes.values().any(|(root, _)| *root == ino)
    }

    fn find(&mut self, id: &'static str, object: String, sentence: String) {
        if self.rebuilder.findings.len() < FINDINGS_MAX {
            self.rebuilder.findings.push(Finding {
                id,
                object,
                sentence,
            });
        } else {
            self.rebuilder.findings_omitted += 1;
        }
    }

    /// A finding at an inode, whose path is looked for when all names are right.
    fn trouble(&mut self, ino: Ino, id: &'static str, sentence: impl Into<String>) {
        self.rebuilder.troubles.push((ino, id, sentence.into()));
    }

    /// The value of a row as mended so far.
    fn get(&self, row_key: &[u8]) -> Result<Option<Vec<u8>>, ReadError> {
        match self.changes.get(row_key) {
            Some(value) => Ok(value.clone()),
            None => self.store.get(row_key),
        }
    }

    fn put(&mut self, row_key: Vec<u8>, value: Vec<u8>) {
        self.changes.insert(row_key, Some(value));
    }

    fn delete(&mut self, row_key: Vec<u8>) {
        self.changes.insert(row_key, None);
    }

    fn record(&self, ino: Ino) -> Result<Option<InodeRecord>, ReadError> {
        let bytes = self.get(&key(ino, tag::INODE, &[]))?;
        Ok(bytes.and_then(|bytes| InodeRecord::read_from_bytes(&bytes).ok()))
    }

    fn put_record(&mut self, ino: Ino, record: &InodeRecord) {
        self.put(key(ino, tag::INODE, &[]), record.as_bytes().to_vec());
    }

    /// Whether a row with this key may have been in a lost block.
    fn may_be_lost(&self, row_key: &[u8]) -> bool {
        self.lost.iter().any(|range| range.may_hold(row_key))
    }
}
