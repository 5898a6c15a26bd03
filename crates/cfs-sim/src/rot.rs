//! Bit rot: what one damaged block of a pool costs.
//!
//! A small pool with files of many kinds and clones is made, once closed in order and once as a killed process leaves it,
//! with clones that are made and changed in its log. Then each block that it has written is damaged on a copy, in one of
//! several ways; the copy is opened, checked and read to the end. Allowed is that reading fails in just those ranges of files whose chunk lies in the damaged block.
//! Everything else must be as it was, and opening must work.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cfs_device::{Device, MemDevice};
use cfs_format::segment::Stream;
use cfs_format::{BLOCK_BYTES, Fingerprint, Ino, SEGMENT_BYTES, SegmentId};
use cfs_fs::{Caller, Fs, Quota, RenameFlags, SetAttr, XattrFlags};

use crate::look;
use crate::rng::Rng;
use crate::world::{self, SimHost};

const BLOCK: usize = BLOCK_BYTES as usize;
/// Neighbouring blocks of a table segment that may be lost at once.
const BURST_BLOCKS: u32 = 16;

/// What was tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RotOutcome {
    /// Damaged pools.
    pub trials: u64,
    /// Those of which a part of a file could not be read.
    pub with_loss: u64,
    /// Blocks that parity brought back.
    pub healed_blocks: u64,
}

/// How a block is damaged.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Zeros,
    OneBit,
    Noise,
}

/// What is in the pool by path: the content of files, targets of links, names of attributes with their values.
pub(crate) type Tree = BTreeMap<String, Entry>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub ino: Ino,
    pub mode: u32,
    pub content: Arc<Vec<u8>>,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// How a pool is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// Closed in order.
    Closed,
    /// By a process that was killed, with clones that are made and changed in the log.
    Killed,
    /// The same, with tables of several checkpoints.
    KilledBetween,
}

/// A pool to damage, and what is known of it.
pub(crate) struct Subject {
    pub device: MemDevice,
    pub host: Arc<SimHost>,
    pub tree: Tree,
    pub left: Left,
    /// Where chunks lie: segment, first and last block, and the chunk.
    chunks: Vec<(SegmentId, u32, u32, Fingerprint)>,
    /// The pool open on a copy, to ask which files use a chunk.
    guide: Arc<Fs>,
}

/// Damages blocks one by one: one `share`th of them, chosen by the seed; 1 for all.
///
/// # Errors
/// A sentence that says what was lost, and where the damage was.
pub fn rot(seed: u64, share: u64) -> Result<RotOutcome, String> {
    let mut outcome = RotOutcome::default();
    let mut rng = Rng::new(seed);
    for left in [Left::Closed, Left::Killed] {
        let subject = Subject::make(seed, left)?;
        for (segment, block) in subject.device.written_blocks() {
            for damage in [Damage::Zeros, Damage::OneBit, Damage::Noise] {
                if !rng.one_in(share) {
                    continue;
                }
                subject
                    .damage_and_look(segment, block..block + 1, damage, &mut rng, &mut outcome)
                    .map_err(|error| {
                        format!(
                            "{damage:?} in block {block} of segment {segment} ({left:?}): {error}"
                        )
                    })?;
            }
        }
        for segment in subject.segments_of(&[Stream::Table])? {
            let blocks = SEGMENT_BYTES / BLOCK_BYTES;
            let burst_blocks = subject.burst_blocks(segment)?;
            for first in 0..=blocks - BURST_BLOCKS {
                if !rng.one_in(share) {
                    continue;
                }
                let burst = first..first + burst_blocks;
                subject
                    .damage_and_look(segment, burst, Damage::Noise, &mut rng, &mut outcome)
                    .map_err(|error| {
                        format!("a burst from block {first} of segment {segment}: {error}")
                    })?;
            }
        }
    }
    Ok(outcome)
}

impl Subject {
    pub fn make(seed: u64, left: Left) -> Result<Self, String> {
        let device = Arc::new(MemDevice::new(256));
        let host = Arc::new(SimHost::new(seed));
        world::format(&device, &host)?;
        let mut rng = Rng::new(seed);
        let fs = world::open(&device, &host)?;
        fill(&fs, &mut rng, "first", 4).map_err(|error| format!("filling: {error}"))?;
        make_clones(
            &fs,
            &mut rng,
            &[("first/d1", "clone"), ("clone", "clone-of-clone")],
        )?;
        fs.close().map_err(|error| format!("close: {error}"))?;
        drop(fs);
        if left == Left::KilledBetween {
            let fs = world::open_without_checkpoints(&device, &host)?;
            fill(&fs, &mut rng, "between", 1).map_err(|error| format!("filling: {error}"))?;
            make_clones(
                &fs,
                &mut rng,
                &[("clone", "clone-between"), ("first/d3", "clone-of-first")],
            )?;
            fs.close().map_err(|error| format!("close: {error}"))?;
        }
        if left != Left::Closed {
            let fs = world::open_without_checkpoints(&device, &host)?;
            fill(&fs, &mut rng, "second", 1).map_err(|error| format!("filling: {error}"))?;
            make_clones(
                &fs,
                &mut rng,
                &[("clone", "clone-late"), ("first/d2", "clone-in-log")],
            )?;
            fs.syncfs().map_err(|error| format!("sync: {error}"))?;
            // The server sees that nothing comes any more, and notes what is durable.
            for _ in 0..3 {
                host.now_ns.fetch_add(100_000_000, Ordering::Relaxed);
                fs.tick().map_err(|error| format!("tick: {error}"))?;
            }
            if fs.store().stats().replay_bytes == 0 {
                return Err("a checkpoint has emptied the log".to_owned());
            }
        }
        device.flush().map_err(|error| format!("flush: {error}"))?;
        let device = device.power_cut(0);
        let guide = world::open(&Arc::new(device.power_cut(0)), &host)?;
        let tree = read_tree(&guide, &BTreeMap::new())?;
        let mut chunks = Vec::new();
        for chunk in guide.store().freeze().chunks() {
            let (fingerprint, record) = chunk.map_err(|error| error.to_string())?;
            let (start, len) = (record.offset.get(), record.record_len.get());
            let segment = SegmentId(record.segment.get());
            let last = (start + len - 1) / BLOCK_BYTES;
            chunks.push((segment, start / BLOCK_BYTES, last, fingerprint));
        }
        Ok(Self {
            device,
            host,
            tree,
            left,
            chunks,
            guide,
        })
    }

    /// What the origins of a clone, its own first, show as content of one of its files.
    pub fn as_origins_have(&self, ino: Ino) -> Result<Vec<Vec<u8>>, String> {
        let fail = |error: cfs_fs::FsError| format!("as the origins have inode {ino}: {error}");
        let store = self.guide.store();
        let snapshots = self.guide.snapshots(None).map_err(fail)?;
        let mut contents = Vec::new();
        let mut clone = ino.cloned().map(|(clone, _)| clone);
        while let Some((volume, at)) = clone
            .and_then(|clone| store.volume(clone))
            .and_then(|clone| clone.origin())
        {
            let shown = snapshots
                .iter()
                .find(|it| (it.volume, it.timestamp) == (volume, at))
                .and_then(|it| ino.base().in_view(it.view))
                .ok_or("a clone without the snapshot that it shows")?;
            match self.guide.getattr(shown) {
                Ok(attr) => {
                    let mut content = Vec::new();
                    let read = self.guide.read(shown, 0, attr.size as usize, &mut content);
                    read.map_err(fail)?;
                    contents.push(content);
                }
                Err(error) if error.errno() == libc::ENOENT => {}
                Err(error) => return Err(fail(error)),
            }
            clone = Some(volume);
        }
        Ok(contents)
    }

    /// Segments of these streams that a pool of which nothing was changed has.
    pub fn segments_of(&self, streams: &[Stream]) -> Result<Vec<SegmentId>, String> {
        let store = self.guide.store();
        let mut segments: Vec<SegmentId> = self
            .device
            .written_blocks()
            .into_iter()
            .map(|(segment, _)| segment)
            .collect();
        segments.dedup();
        let mut tables = Vec::new();
        for segment in segments {
            let report = store
                .segment_report(segment)
                .map_err(|error| error.to_string())?;
            let is_of = |header: cfs_format::segment::SegmentHeader| {
                streams.iter().any(|stream| *stream as u8 == header.stream)
            };
            if report.header.is_some_and(is_of) {
                tables.push(segment);
            }
        }
        Ok(tables)
    }

    /// Blocks of a table segment that may be lost at once: as many as it has columns. Behind its end blocks of its former life
    /// may be left.
    fn burst_blocks(&self, segment: SegmentId) -> Result<u32, String> {
        let report = self.guide.store().segment_report(segment);
        let report = report.map_err(|error| error.to_string())?;
        let used_bytes = report.directory.map_or(0, |directory| directory.used_bytes);
        Ok((used_bytes / BLOCK_BYTES / 2).clamp(1, BURST_BLOCKS))
    }

    fn damage_and_look(
        &self,
        segment: SegmentId,
        blocks: std::ops::Range<u32>,
        damage: Damage,
        rng: &mut Rng,
        outcome: &mut RotOutcome,
    ) -> Result<(), String> {
        let device = Arc::new(self.device.power_cut(0));
        for block in blocks.clone() {
            spoil(&device, segment, block, damage, rng)?;
        }
        let hit: HashSet<Fingerprint> = self
            .chunks
            .iter()
            .filter(|(at, first, last, _)| {
                *at == segment && blocks.start <= *last && *first < blocks.end
            })
            .map(|(_, _, _, fingerprint)| *fingerprint)
            .collect();
        let affected = self.guide.affected_by(&hit, || true);
        let affected = affected.ok_or("a pass was not ended")?;
        if let Some(error) = affected.incomplete {
            return Err(error.to_string());
        }
        let allowed: BTreeMap<Ino, Vec<(u64, u64)>> = affected
            .files
            .into_iter()
            .filter(|file| !file.in_snapshots)
            .map(|file| (file.ino, file.ranges))
            .collect();
        let fs = world::open(&device, &self.host)?;
        look::check(&fs)?;
        let found = read_tree(&fs, &allowed)?;
        let mut lossy = false;
        for (path, entry) in &self.tree {
            let now = found
                .get(path)
                .ok_or_else(|| format!("{path} is missing"))?;
            if now == entry {
                continue;
            }
            lossy = true;
            let mut patched = now.content.to_vec();
            for (start, end) in allowed.get(&entry.ino).into_iter().flatten() {
                let range = *start as usize..(*end as usize).min(entry.content.len());
                patched[range.clone()].copy_from_slice(&entry.content[range]);
            }
            let patched = Entry {
                content: Arc::new(patched),
                ..now.clone()
            };
            if patched != *entry {
                return Err(format!("{path} is not what it was"));
            }
        }
        if found.len() != self.tree.len() {
            return Err("there are names that nobody gave".to_owned());
        }
        outcome.trials += 1;
        outcome.with_loss += u64::from(lossy);
        outcome.healed_blocks += fs.store().stats().healed_blocks;
        Ok(())
    }
}

fn spoil(
    device: &MemDevice,
    segment: SegmentId,
    block: u32,
    damage: Damage,
    rng: &mut Rng,
) -> Result<(), String> {
    let mut bytes = vec![0; BLOCK];
    let offset = block * BLOCK_BYTES;
    let fail = |error: cfs_device::DeviceError| format!("damaging: {error}");
    device.read_at(segment, offset, &mut bytes).map_err(fail)?;
    match damage {
        Damage::Zeros => bytes.fill(0),
        Damage::OneBit => bytes[rng.below(BLOCK as u64) as usize] ^= 1 << rng.below(8),
        Damage::Noise => bytes.fill_with(|| rng.next() as u8),
    }
    device.write_at(segment, offset, &bytes).map_err(fail)?;
    device.flush().map_err(fail)
}

/// Files small and large, of bytes that shrink and that do not, with parts in common, in several directories.
fn fill(fs: &Fs, rng: &mut Rng, name: &str, directories: u32) -> cfs_fs::Result<()> {
    let caller = Caller::default();
    let top = fs.mkdir(Ino::ROOT, name.as_bytes(), 0o755, &caller)?;
    let common: Vec<u8> = (0..60_000).map(|_| rng.next() as u8).collect();
    for directory in 0..directories {
        let parent = fs.mkdir(top.ino, format!("d{directory}").as_bytes(), 0o755, &caller)?;
        for file in 0..40 {
            let attr = fs.create(parent.ino, format!("f{file}").as_bytes(), 0o640, &caller)?;
            let len = match file % 8 {
                0 => rng.below(100),
                1..=4 => rng.below(4096),
                5 | 6 => rng.below(30_000),
                _ => rng.below(120_000),
            };
            let shrinks = rng.one_in(2);
            let mut content: Vec<u8> = (0..len)
                .map(|_| {
                    let byte = rng.next() as u8;
                    if shrinks { byte & 3 } else { byte }
                })
                .collect();
            if file % 8 == 7 {
                content.extend_from_slice(&common);
            }
            let mut offset = 0;
            while offset < content.len() {
                offset += fs.write(attr.ino, offset as u64, &content[offset..], false)?;
            }
            if file % 10 == 3 {
                let flags = XattrFlags::default();
                fs.setxattr(
                    attr.ino,
                    b"user.note",
                    &content[..content.len().min(900)],
                    flags,
                )?;
            }
            if file % 5 == 0 {
                fs.fsync(attr.ino, false)?;
            }
        }
        fs.symlink(parent.ino, b"link", b"../d0/f1", &caller)?;
    }
    Ok(())
}

/// Makes clones of directories, one by one, and changes both sides of each.
fn make_clones(fs: &Fs, rng: &mut Rng, clones: &[(&str, &str)]) -> Result<(), String> {
    for (from, to) in clones {
        clone(fs, rng, from, to).map_err(|error| format!("cloning: {error}"))?;
    }
    Ok(())
}

fn clone(fs: &Fs, rng: &mut Rng, from: &str, to: &str) -> cfs_fs::Result<()> {
    let caller = Caller::default();
    let snapshot = fs.snapshot_create(from.as_bytes(), to.as_bytes())?;
    fs.clone_create(&snapshot, to.as_bytes(), Quota::default(), &caller)?;
    for side in [from, to] {
        let top = fs.resolve(side.as_bytes())?.ino;
        let inner = fs
            .mkdir(top, format!("for {to}").as_bytes(), 0o700, &caller)?
            .ino;
        for (name, ino) in look::entries(fs, top)? {
            let attr = fs.getattr(ino)?;
            if attr.kind() != libc::S_IFREG {
                continue;
            }
            let name = name.as_bytes();
            match rng.below(12) {
                0 => fs.unlink(top, name)?,
                1 => fs.rename(top, name, inner, name, RenameFlags::default())?,
                2 => drop(fs.link(ino, inner, name)?),
                3 => fs.setxattr(ino, b"user.side", to.as_bytes(), XattrFlags::default())?,
                4 => {
                    let set = SetAttr {
                        size: Some(attr.size / 2),
                        ..SetAttr::default()
                    };
                    fs.setattr(ino, &set)?;
                }
                5 | 6 => {
                    let bytes: Vec<u8> = (0..rng.below(20_000)).map(|_| rng.next() as u8).collect();
                    fs.write(ino, rng.below(attr.size + 1), &bytes, false)?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Everything that can be reached from the root. Ranges that are `allowed` to fail are zeros where they do.
fn read_tree(fs: &Fs, allowed: &BTreeMap<Ino, Vec<(u64, u64)>>) -> Result<Tree, String> {
    let mut tree = Tree::new();
    let mut waiting = vec![(String::new(), Ino::ROOT)];
    while let Some((path, directory)) = waiting.pop() {
        let fail = |error: cfs_fs::FsError| format!("{path}: {error}");
        let limit = fs.open_dir(directory).map_err(fail)?;
        let mut cookie = 0;
        loop {
            let entries = fs.read_dir(directory, cookie, limit, 100).map_err(fail)?;
            let Some(last) = entries.last() else {
                break;
            };
            cookie = last.cookie;
            for entry in entries {
                let name = String::from_utf8_lossy(&entry.name).into_owned();
                let path = format!("{path}/{name}");
                let found = read_entry(fs, entry.ino, allowed.get(&entry.ino))
                    .map_err(|error| format!("{path}: {error}"))?;
                if found.mode & libc::S_IFMT == libc::S_IFDIR {
                    waiting.push((path.clone(), entry.ino));
                }
                tree.insert(path, found);
            }
        }
        fs.release(directory).map_err(fail)?;
    }
    Ok(tree)
}

/// Bytes of content that are read at a time where some cannot be.
pub(crate) const HOLE_BYTES: usize = 512;

/// Whether bytes stand for some that could not be read.
pub(crate) fn is_hole(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == HOLE)
}

/// Stands for a byte that cannot be read.
const HOLE: u8 = 0xee;

/// As `read_tree`, but that a file's parts that cannot be read are [`HOLE`]s, and so is the target of a symbolic link.
pub(crate) fn read_tree_with_holes(fs: &Fs) -> Result<Tree, String> {
    let mut waiting = vec![Ino::ROOT];
    let mut unreadable: BTreeMap<Ino, Vec<(u64, u64)>> = BTreeMap::new();
    while let Some(directory) = waiting.pop() {
        let entries = look::entries(fs, directory).map_err(|error| error.to_string())?;
        for (name, ino) in entries {
            let fail = |error: cfs_fs::FsError| format!("{name}: {error}");
            let attr = fs.getattr(ino).map_err(fail)?;
            match attr.kind() {
                libc::S_IFDIR => waiting.push(ino),
                libc::S_IFREG => {
                    let (mut part, mut ranges) = (Vec::new(), Vec::new());
                    for start in (0..attr.size).step_by(HOLE_BYTES) {
                        let end = (start + HOLE_BYTES as u64).min(attr.size);
                        match fs.read(ino, start, HOLE_BYTES, &mut part) {
                            Ok(()) => {}
                            Err(error) if error.errno() == libc::EIO => {
                                ranges.push((start, end));
                            }
                            Err(error) => return Err(fail(error)),
                        }
                    }
                    unreadable.insert(ino, ranges);
                }
                // Reading one whose target is lost fails, as reading lost content does.
                libc::S_IFLNK => drop(unreadable.insert(ino, vec![(0, 1)])),
                _ => {}
            }
        }
    }
    read_tree(fs, &unreadable)
}

fn read_entry(
    fs: &Fs,
    ino: Ino,
    allowed: Option<&Vec<(u64, u64)>>,
) -> Result<Entry, cfs_fs::FsError> {
    let attr = fs.getattr(ino)?;
    let mut content = Vec::new();
    match attr.kind() {
        libc::S_IFLNK => match fs.readlink(ino) {
            Ok(target) => content = target,
            Err(error) if allowed.is_some() && error.errno() == libc::EIO => content.push(HOLE),
            Err(error) => return Err(error),
        },
        libc::S_IFREG => {
            let mut at = 0;
            let mut part = Vec::new();
            for (start, end) in allowed.into_iter().flatten().copied() {
                fs.read(ino, at, (start - at) as usize, &mut part)?;
                content.extend_from_slice(&part);
                match fs.read(ino, start, (end - start) as usize, &mut part) {
                    Ok(()) => content.extend_from_slice(&part),
                    Err(error) if error.errno() == libc::EIO => {
                        content.resize(end as usize, HOLE);
                    }
                    Err(error) => return Err(error),
                }
                at = end;
            }
            fs.read(ino, at, (attr.size - at) as usize, &mut part)?;
            content.extend_from_slice(&part);
        }
        _ => {}
    }
    let mut attributes = Vec::new();
    for name in fs.listxattr(ino)? {
        let value = fs.getxattr(ino, &name)?;
        attributes.push((name, value));
    }
    Ok(Entry {
        ino,
        mode: attr.mode,
        content: Arc::new(content),
        attributes,
    })
}
