//! Which files use which chunks: what a damaged chunk takes away.
//!
//! The tables lead from files to chunks and not back, so this is a pass over all extents, and one over all names for
//! those who want paths. Memory: the files that are found, and every directory's name.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;

use cfs_format::table::{split_history, split_key, tag};
use cfs_format::{DomainId, Fingerprint, Ino, VolumeId};
use cfs_seal::keys::FileKey;
use cfs_store::Frozen;

use super::PROGRESS_ROWS;
use super::shown::{Clones, State};
use crate::clone::Found;
use crate::command::NewExtent;
use crate::error::{FsError, Result};
use crate::history::decode_held;
use crate::{Fs, directory, extent, inode, row};

/// Deepest path that is told; damaged tables could go around in circles.
const DEPTH_MAX: usize = 4096;

/// A file and what of it lies in certain chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AffectedFile {
    /// The file.
    pub ino: Ino,
    /// As snapshots show it, and not as it is now.
    pub in_snapshots: bool,
    /// Its names now, absolute; none when it has been removed and is still open, or when they could not be read.
    pub paths: Vec<Vec<u8>>,
    /// Byte ranges in ascending order, each from its first byte to the one after its last.
    pub ranges: Vec<(u64, u64)>,
}

/// What was found of the files that certain chunks belong to.
#[derive(Clone, Debug, Default)]
pub struct Affected {
    /// The files, in the order of their numbers.
    pub files: Vec<AffectedFile>,
    /// Why there may be more of them, or more names.
    pub incomplete: Option<FsError>,
}

/// Byte ranges of files, each by its inode and whether it is as snapshots show it.
type FoundRanges = BTreeMap<(Ino, bool), Vec<(u64, u64)>>;

/// A pass over the rows of the meta tree that goes as far as it can.
struct Pass<'a> {
    go_on: &'a mut dyn FnMut() -> bool,
    first_error: Option<FsError>,
}

impl Pass<'_> {
    /// Shows each row to `look`, and keeps the first error. False when `go_on` did not want to.
    fn run(
        &mut self,
        frozen: &Frozen,
        mut look: impl FnMut(&(Vec<u8>, Vec<u8>)) -> Result<()>,
    ) -> bool {
        let rows = frozen.meta.range(Bound::Unbounded, Bound::Unbounded);
        for (number, row) in (0..).zip(rows) {
            if number % PROGRESS_ROWS == 0 && !(self.go_on)() {
                return false;
            }
            let row = row.map_err(|error| cfs_store::ReadError::from(error).into());
            if let Err(error) = row.and_then(|row| look(&row)) {
                self.first_error.get_or_insert(error);
            }
        }
        true
    }
}

impl Fs {
    /// Whether any part of a file lies in a chunk that is lost, or is known not to be readable.
    ///
    /// # Errors
    /// The tables cannot be read, or the inode is no file.
    pub fn has_bad_content(&self, ino: Ino) -> Result<bool> {
        let store = &*self.store;
        if store.stats().damaged_chunks == 0 {
            return Ok(false);
        }
        let Found { place, record } = self.views.find(ino)?.ok_or(FsError::NotFound)?;
        let missing = || FsError::damaged(format_args!("the key of inode {ino}"));
        let volume = store.volume(VolumeId(record.volume.get()));
        let domain = DomainId(volume.ok_or_else(missing)?.domain.get());
        let secret = store.domain_secret(domain).ok_or_else(missing)?;
        let file_key = FileKey::derive(&secret, &record.salt);
        let rows = self.views.extents(place.at);
        for extent in extent::scan(&rows, place.ino, &file_key, 0, u64::MAX) {
            if store.is_bad_chunk(&extent?.fingerprint)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The files of which parts lie in any of `chunks`, as of the newest command. Where the tables are damaged, those
    /// that can be found. `go_on` is asked now and then whether to go on; `None` when it did not want to.
    pub fn affected_by(
        &self,
        chunks: &HashSet<Fingerprint>,
        mut go_on: impl FnMut() -> bool,
    ) -> Option<Affected> {
        if chunks.is_empty() {
            return Some(Affected::default());
        }
        let frozen = self.store.freeze();
        let snapshots = self.views.all();
        let snapshots = snapshots.iter().map(|it| (it.volume, it.timestamp));
        let clones = Clones::new(&frozen, snapshots);
        let mut pass = Pass {
            go_on: &mut go_on,
            first_error: None,
        };
        let found = self.ranges_in((&frozen, &clones), chunks, &mut pass)?;
        let names = match found.is_empty() {
            true => Names::default(),
            false => Names::read((&frozen, &clones), &found, &mut pass)?,
        };
        let files = found
            .into_iter()
            .map(|((ino, in_snapshots), ranges)| AffectedFile {
                ino,
                in_snapshots,
                paths: names.paths(ino),
                ranges,
            });
        Some(Affected {
            files: files.collect(),
            incomplete: pass.first_error,
        })
    }

    fn ranges_in(
        &self,
        (frozen, clones): (&Frozen, &Clones<'_>),
        chunks: &HashSet<Fingerprint>,
        pass: &mut Pass<'_>,
    ) -> Option<FoundRanges> {
        let mut found = FoundRanges::new();
        let mut of: Option<(VolumeId, FileKey)> = None;
        let went_on = pass.run(frozen, |row| {
            let Ok((ino, row_tag, suffix)) = split_key(&row.0) else {
                return Ok(());
            };
            let mut note = |in_snapshots, state: State, extent: &NewExtent| -> Result<()> {
                if !chunks.contains(&extent.fingerprint) {
                    return Ok(());
                }
                let mut shown = clones.showing(state)?;
                shown.push((state.ino, in_snapshots));
                for place in shown {
                    let ranges = found.entry(place).or_default();
                    match ranges.last_mut() {
                        Some((_, end)) if *end == extent.offset => *end = extent.end(),
                        _ => ranges.push((extent.offset, extent.end())),
                    }
                }
                Ok(())
            };
            match row_tag {
                tag::HISTORY if ino == Ino(0) => {
                    let (ino, row_tag, suffix, to) = split_history(suffix)?;
                    if row_tag == tag::EXTENT {
                        let mut of = None;
                        let secret = |volume| {
                            of = Some(volume);
                            let volume = self.store.volume(volume)?;
                            self.store.domain_secret(DomainId(volume.domain.get()))
                        };
                        let extent = decode_held(ino, suffix, &row.1, secret)?;
                        let state = State {
                            ino,
                            volume: of,
                            interval: (row::timestamp(row_tag, &row.1)?, to),
                        };
                        note(true, state, &extent)?;
                    }
                }
                tag::INODE => {
                    of = None;
                    let record = inode::decode(ino, &row.1)?;
                    let id = VolumeId(record.volume.get());
                    let volume = self.store.volume(id);
                    of = volume
                        .and_then(|volume| self.store.domain_secret(DomainId(volume.domain.get())))
                        .map(|secret| (id, FileKey::derive(&secret, &record.salt)));
                }
                tag::EXTENT => {
                    let Some((volume, file_key)) = &of else {
                        return Ok(());
                    };
                    let state = State {
                        ino,
                        volume: Some(*volume),
                        interval: (row::timestamp(row_tag, &row.1)?, u64::MAX),
                    };
                    note(false, state, &extent::decode_row(ino, file_key, row)?)?;
                }
                _ => {}
            }
            Ok(())
        });
        // A clone sees states that are held and those of now, each in order.
        for ranges in found.values_mut() {
            ranges.sort_unstable();
            ranges.dedup_by(|next, last| {
                let joins = next.0 <= last.1;
                if joins {
                    last.1 = last.1.max(next.1);
                }
                joins
            });
        }
        went_on.then_some(found)
    }
}

/// Where names lead, for some files and all directories.
#[derive(Default)]
struct Names {
    directories: HashMap<Ino, (Ino, Vec<u8>)>,
    files: HashMap<Ino, Vec<(Ino, Vec<u8>)>>,
}

impl Names {
    fn read(
        (frozen, clones): (&Frozen, &Clones<'_>),
        wanted: &FoundRanges,
        pass: &mut Pass<'_>,
    ) -> Option<Self> {
        let mut names = Self::default();
        let in_clones = wanted.keys().any(|(ino, _)| ino.cloned().is_some());
        let went_on = pass.run(frozen, |(key, value)| {
            let (parent, name, to) = match split_key(key) {
                Ok((parent, tag::DIRENT, name)) if parent != Ino(0) => (parent, name, u64::MAX),
                Ok((Ino(0), tag::HISTORY, state)) if in_clones => match split_history(state)? {
                    (parent, tag::DIRENT, name, to) => (parent, name, to),
                    _ => return Ok(()),
                },
                _ => return Ok(()),
            };
            let entry = directory::decode(parent, value)?;
            let mut parents = Vec::new();
            if to == u64::MAX {
                parents.push(parent);
            }
            if in_clones {
                let state = State {
                    ino: parent,
                    volume: None,
                    interval: (entry.timestamp.get(), to),
                };
                let shown = clones.showing(state)?.into_iter();
                parents.extend(shown.filter(|(_, past)| !past).map(|(parent, _)| parent));
            }
            for parent in parents {
                let ino = crate::views::beside(parent, Ino(entry.ino.get()))?;
                let place = (parent, name.to_vec());
                if u32::from(entry.kind) << 12 == libc::S_IFDIR {
                    names.directories.insert(ino, place);
                } else if [false, true]
                    .iter()
                    .any(|past| wanted.contains_key(&(ino, *past)))
                {
                    names.files.entry(ino).or_default().push(place);
                }
            }
            Ok(())
        });
        for (_, volume) in &frozen.volumes {
            let junction = Ino(volume.junction.get());
            if let Some(place) = names.directories.get(&junction).cloned() {
                names.directories.insert(Ino(volume.root.get()), place);
            }
        }
        went_on.then_some(names)
    }

    fn paths(&self, ino: Ino) -> Vec<Vec<u8>> {
        let places = self.files.get(&ino).map_or(&[][..], |places| &places[..]);
        let paths = places.iter().map(|(parent, name)| {
            let mut parts = vec![name];
            let mut at = *parent;
            while let Some((parent, name)) = self.directories.get(&at)
                && parts.len() < DEPTH_MAX
            {
                parts.push(name);
                at = *parent;
            }
            let mut path = Vec::new();
            for part in parts.into_iter().rev() {
                path.push(b'/');
                path.extend_from_slice(part);
            }
            path
        });
        paths.collect()
    }
}
