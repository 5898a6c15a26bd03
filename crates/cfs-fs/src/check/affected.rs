//! Which files use which chunks: what a damaged chunk takes away.
//!
//! The tables lead from files to chunks and not back, so this is a pass over all extents, and one over all names for
//! those who want paths. Memory: the files that are found, and every directory's name.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;

use cfs_format::table::{split_key, tag};
use cfs_format::{DomainId, Fingerprint, Ino, VolumeId};
use cfs_seal::keys::FileKey;
use cfs_store::Frozen;

use crate::error::Result;
use crate::{Fs, directory, extent, inode};

/// Deepest path that is told; damaged tables could go around in circles.
const DEPTH_MAX: usize = 4096;

/// A file and what of it lies in certain chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AffectedFile {
    /// The file.
    pub ino: Ino,
    /// Its names, absolute; none when it has been removed and is still open.
    pub paths: Vec<Vec<u8>>,
    /// Byte ranges in ascending order, each from its first byte to the one after its last.
    pub ranges: Vec<(u64, u64)>,
}

impl Fs {
    /// The files of which parts lie in any of `chunks`, as of the newest command, in the order of their numbers.
    ///
    /// # Errors
    /// When a table cannot be read.
    pub fn affected_by(&self, chunks: &HashSet<Fingerprint>) -> Result<Vec<AffectedFile>> {
        if chunks.is_empty() {
            return Ok(Vec::new());
        }
        let frozen = self.store.freeze();
        let found = self.ranges_in(&frozen, chunks)?;
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let names = Names::read(&frozen, &found)?;
        Ok(found
            .into_iter()
            .map(|(ino, ranges)| AffectedFile {
                ino,
                paths: names.paths(ino),
                ranges,
            })
            .collect())
    }

    fn ranges_in(
        &self,
        frozen: &Frozen,
        chunks: &HashSet<Fingerprint>,
    ) -> Result<BTreeMap<Ino, Vec<(u64, u64)>>> {
        let mut found: BTreeMap<Ino, Vec<(u64, u64)>> = BTreeMap::new();
        let mut file_key: Option<FileKey> = None;
        for row in frozen.meta.range(Bound::Unbounded, Bound::Unbounded) {
            let row = row.map_err(cfs_store::ReadError::from)?;
            let Ok((ino, row_tag, _)) = split_key(&row.0) else {
                continue;
            };
            match row_tag {
                tag::INODE => {
                    let record = inode::decode(ino, &row.1)?;
                    let volume = self.store.volume(VolumeId(record.volume.get()));
                    file_key = volume
                        .and_then(|volume| self.store.domain_secret(DomainId(volume.domain.get())))
                        .map(|secret| FileKey::derive(&secret, &record.salt));
                }
                tag::EXTENT => {
                    let Some(file_key) = &file_key else {
                        continue;
                    };
                    let extent = extent::decode_row(ino, file_key, &row)?;
                    if chunks.contains(&extent.fingerprint) {
                        let ranges = found.entry(ino).or_default();
                        match ranges.last_mut() {
                            Some((_, end)) if *end == extent.offset => *end = extent.end(),
                            _ => ranges.push((extent.offset, extent.end())),
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(found)
    }
}

/// Where names lead, for some files and all directories.
struct Names {
    directories: HashMap<Ino, (Ino, Vec<u8>)>,
    files: HashMap<Ino, Vec<(Ino, Vec<u8>)>>,
}

impl Names {
    fn read(frozen: &Frozen, wanted: &BTreeMap<Ino, Vec<(u64, u64)>>) -> Result<Self> {
        let mut names = Self {
            directories: HashMap::new(),
            files: HashMap::new(),
        };
        for row in frozen.meta.range(Bound::Unbounded, Bound::Unbounded) {
            let (key, value) = row.map_err(cfs_store::ReadError::from)?;
            let Ok((parent, tag::DIRENT, name)) = split_key(&key) else {
                continue;
            };
            let entry = directory::decode(parent, &value)?;
            let ino = Ino(entry.ino.get());
            let place = (parent, name.to_vec());
            if u32::from(entry.kind) << 12 == libc::S_IFDIR {
                names.directories.insert(ino, place);
            } else if wanted.contains_key(&ino) {
                names.files.entry(ino).or_default().push(place);
            }
        }
        Ok(names)
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
