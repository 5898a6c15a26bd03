//! Rebuilding a pool from its segments: what that must bring back.
//!
//! When the checkpoint is destroyed (both manifests, or both anchors, or all of them) and nothing else, a rebuilt pool
//! holds what an opened one would have held, to the last command. When whole segments of the tables or of data are gone
//! too, what is left reads as it was or not at all, the tables fit together, and something has been told.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use cfs_device::{Device, MemDevice};
use cfs_format::segment::Stream;
use cfs_format::superblock::ANCHORS;
use cfs_format::{BLOCK_BYTES, SEGMENT_BYTES, SegmentId};
use cfs_fs::Rebuilt;

use crate::look;
use crate::rng::Rng;
use crate::rot::{HOLE_BYTES, Left, Subject, Tree, is_hole, read_tree_with_holes};
use crate::world::{self, SimHost};

/// What was tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RebuildOutcome {
    /// Rebuilt pools.
    pub pools: u64,
    /// Those in which all was as before.
    pub whole: u64,
    /// Findings that were told.
    pub findings: u64,
}

/// What of the checkpoint is destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Destroyed {
    pub anchors: bool,
    pub manifests: bool,
}

impl Destroyed {
    const ALL: [Self; 3] = [
        Self {
            anchors: true,
            manifests: false,
        },
        Self {
            anchors: false,
            manifests: true,
        },
        Self {
            anchors: true,
            manifests: true,
        },
    ];

    pub fn any(rng: &mut Rng) -> Self {
        Self::ALL[rng.below(3) as usize]
    }
}

/// Destroys the checkpoint of a pool on a device; a copy of its superblock.
pub(crate) fn destroy(
    device: &Arc<MemDevice>,
    host: &Arc<SimHost>,
    destroyed: Destroyed,
) -> Result<Vec<u8>, String> {
    let copy = world::open(&Arc::new(device.power_cut(0)), host)?
        .store()
        .superblock_copy();
    let superblock = cfs_store::read_superblock(&**device).map_err(|error| error.to_string())?;
    let superblock = superblock.superblock;
    if destroyed.manifests {
        for pointer in [superblock.manifest, superblock.manifest_copy] {
            erase(device, SegmentId(pointer.segment.get()))?;
        }
    }
    if destroyed.anchors {
        for anchor in 0..ANCHORS {
            erase(device, SegmentId(anchor))?;
        }
    }
    Ok(copy)
}

fn erase(device: &MemDevice, segment: SegmentId) -> Result<(), String> {
    device
        .write_at(segment, 0, &vec![0; SEGMENT_BYTES as usize])
        .and_then(|()| device.flush())
        .map_err(|error| format!("erasing segment {segment}: {error}"))
}

/// Rebuilds pools of which the checkpoint or whole segments have been destroyed.
///
/// # Errors
/// A sentence that says what is not as it should be.
pub fn rebuild(seed: u64) -> Result<RebuildOutcome, String> {
    let mut outcome = RebuildOutcome::default();
    let mut rng = Rng::new(seed);
    for left in [Left::Closed, Left::Killed, Left::KilledBetween] {
        let subject = Subject::make(seed, left)?;
        for destroyed in Destroyed::ALL {
            let device = Arc::new(subject.device.power_cut(0));
            let tried = destroy(&device, &subject.host, destroyed).and_then(|copy| {
                let rebuilt = world::rebuild(&device, &subject.host, Some(&copy))?;
                look::check(&rebuilt.fs)?;
                if !rebuilt.findings.is_empty() {
                    return Err(format!("findings: {:?}", rebuilt.findings));
                }
                if read_tree_with_holes(&rebuilt.fs)? != subject.tree {
                    return Err("it is not what it was".to_owned());
                }
                close_and_open(&device, &subject, rebuilt)
            });
            tried.map_err(|error| format!("{destroyed:?}, {left:?}: {error}"))?;
            outcome.pools += 1;
            outcome.whole += 1;
        }
        for segment in subject.segments_of(&[Stream::Table, Stream::Data, Stream::ColdData])? {
            for part in [1, 4] {
                let tried = lose(&subject, segment, part, &mut rng, &mut outcome);
                tried.map_err(|error| {
                    format!("without 1/{part} of segment {segment}, {left:?}: {error}")
                })?;
            }
        }
    }
    Ok(outcome)
}

/// A rebuilt pool can be closed, and opened as any other.
fn close_and_open(
    device: &Arc<MemDevice>,
    subject: &Subject,
    rebuilt: Rebuilt,
) -> Result<(), String> {
    rebuilt
        .fs
        .close()
        .map_err(|error| format!("close: {error}"))?;
    drop(rebuilt);
    let fs = world::open(device, &subject.host)?;
    look::check(&fs)?;
    look::check_space(&fs)?;
    if read_tree_with_holes(&fs)? != subject.tree {
        return Err("opened again it is not what it was".to_owned());
    }
    Ok(())
}

/// Fills one of `part` blocks of a segment with noise, destroys the manifests too, and rebuilds.
fn lose(
    subject: &Subject,
    segment: SegmentId,
    part: u64,
    rng: &mut Rng,
    outcome: &mut RebuildOutcome,
) -> Result<(), String> {
    let device = Arc::new(subject.device.power_cut(0));
    let destroyed = Destroyed {
        anchors: false,
        manifests: rng.one_in(2),
    };
    let copy = destroy(&device, &subject.host, destroyed)?;
    for (at, block) in subject.device.written_blocks() {
        if at == segment && rng.one_in(part) {
            let noise: Vec<u8> = (0..BLOCK_BYTES).map(|_| rng.next() as u8).collect();
            device
                .write_at(segment, block * BLOCK_BYTES, &noise)
                .map_err(|error| error.to_string())?;
        }
    }
    device.flush().map_err(|error| error.to_string())?;
    // Without its secrets and without any table that has them, a pool cannot be brought back.
    let rebuilt = match world::rebuild(&device, &subject.host, Some(&copy)) {
        Err(reason) if reason.contains("no segment leads") || reason.contains("secrets") => {
            return Ok(());
        }
        rebuilt => rebuilt?,
    };
    outcome.pools += 1;
    outcome.findings += rebuilt.findings.len() as u64;
    let report = rebuilt
        .fs
        .check(|_| true)
        .map_err(|error| format!("check: {error}"))?
        .ok_or("the check ended early")?;
    let unexpected: Vec<_> = report
        .findings
        .iter()
        .filter(|finding| finding.id != "chunk-lost")
        .collect();
    if !unexpected.is_empty() {
        return Err(format!("check found {unexpected:?}"));
    }
    let found = read_tree_with_holes(&rebuilt.fs)?;
    let told = !rebuilt.findings.is_empty()
        || rebuilt.report.lost_chunks > 0
        || rebuilt.report.commands_skipped > 0
        || rebuilt.report.is_behind
        || rebuilt.report.log_damage.is_some();
    if found == subject.tree {
        outcome.whole += 1;
    } else if !told {
        return Err(format!(
            "something is not what it was, and nothing has been told: {:?}",
            rebuilt.report
        ));
    }
    check_list(subject, &rebuilt, &found)?;
    // Of rows that are lost with the newer tables the older ones have earlier states, to which the log does not fit.
    match subject.left {
        Left::KilledBetween => Ok(()),
        Left::Closed | Left::Killed => compare(subject, &found),
    }
}

/// Where all rows and all of the log are there, whatever is not as it was is told by its path.
fn check_list(subject: &Subject, rebuilt: &Rebuilt, found: &Tree) -> Result<(), String> {
    let report = &rebuilt.report;
    let lacks_rows = rebuilt.findings.iter().any(|finding| finding.id == "rows");
    if lacks_rows || report.is_behind || report.log_damage.is_some() || report.commands_skipped > 0
    {
        return Ok(());
    }
    let mut lost = HashSet::new();
    for chunk in rebuilt.fs.store().freeze().chunks() {
        let (fingerprint, record) = chunk.map_err(|error| error.to_string())?;
        if record.is_lost() {
            lost.insert(fingerprint);
        }
    }
    let affected = rebuilt.fs.affected_by(&lost, || true);
    let files = affected.ok_or("a pass was not ended")?.files;
    let paths = files.iter().flat_map(|file| &file.paths);
    let mut told: HashSet<String> = paths
        .map(|path| String::from_utf8_lossy(path).into_owned())
        .collect();
    told.extend(rebuilt.findings.iter().map(|it| it.object.clone()));
    let untold = subject
        .tree
        .iter()
        .find(|(path, entry)| found.get(*path) != Some(*entry) && !told.contains(*path));
    match untold {
        Some((path, _)) => Err(format!(
            "{path} is not what it was and is not in the list: {told:?}"
        )),
        None => Ok(()),
    }
}

/// What is still at its place reads as it did, but for holes; a file of a clone reads so, or as an origin has it.
fn compare(subject: &Subject, found: &Tree) -> Result<(), String> {
    let before = subject.tree.values();
    let by_inode: BTreeMap<_, _> = before.map(|entry| (entry.ino, entry)).collect();
    for (path, entry) in found {
        let Some(was) = by_inode.get(&entry.ino) else {
            continue;
        };
        let is_file = was.mode & libc::S_IFMT == libc::S_IFREG;
        if !is_file || entry.mode & libc::S_IFMT != libc::S_IFREG {
            continue;
        }
        let Some(start) = differs_at(&entry.content, &was.content) else {
            continue;
        };
        let origins = subject.as_origins_have(entry.ino)?;
        let is_so = |was: &Vec<u8>| differs_at(&entry.content, was).is_none();
        if !origins.iter().any(is_so) {
            return Err(format!(
                "{path} reads other bytes from {start} on than it held"
            ));
        }
    }
    Ok(())
}

/// Where a file reads other bytes than it held, but for holes.
fn differs_at(content: &[u8], was: &[u8]) -> Option<usize> {
    let len = content.len().min(was.len());
    (0..len).step_by(HOLE_BYTES).find(|start| {
        let end = (start + HOLE_BYTES).min(len);
        let piece = &content[*start..end];
        piece != &was[*start..end] && !is_hole(piece)
    })
}
