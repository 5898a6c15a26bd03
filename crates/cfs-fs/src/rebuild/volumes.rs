//! Roots and junctions of volumes, and volumes whose records are lost.

use std::collections::BTreeMap;

use cfs_format::table::{inode_flag, tag};
use cfs_format::{Ino, VolumeId};
use cfs_store::ReadError;

use super::{Mending, Seen};
use crate::inode;
use crate::views::Snapshot;

impl Mending<'_> {
    /// Whether a volume has no record, or one that was made before the log was read.
    fn is_lost_volume(&self, id: VolumeId) -> bool {
        let record = self.store.volume(id);
        id != VolumeId::ROOT
            && !self.rebuilder.lost_volumes.contains_key(&id)
            && record.is_none_or(|record| record.junction.get() == 0 && !record.is_removed())
    }

    /// Gives volumes whose records are lost, and of which something is there, a root and a junction: what clones had from
    /// their origins is lost, as nobody knows them.
    pub(super) fn make_lost_volumes(&mut self) -> Result<(), ReadError> {
        // Each with the root that it has, and with an inode of it.
        let mut lost: BTreeMap<VolumeId, (Option<Ino>, Ino)> = BTreeMap::new();
        for (ino, seen) in &self.seen {
            let id = ino.cloned().map_or(seen.volume, |(clone, _)| clone);
            let Some(kind) = seen.kind.filter(|_| self.is_lost_volume(id)) else {
                continue;
            };
            let (root, _) = lost.entry(id).or_insert((None, *ino));
            if kind == libc::S_IFDIR && seen.parent == *ino {
                *root = Some(*ino);
            }
        }
        for row in self.system_rows(tag::SNAPSHOT)? {
            if let Ok(snapshot) = Snapshot::decode(&row)
                && self.is_lost_volume(snapshot.volume)
                && self.is_due(snapshot.directory)
            {
                let root = (None, snapshot.directory);
                lost.entry(snapshot.volume).or_insert(root);
            }
        }
        for (id, (root, of_it)) in lost {
            let is_clone = of_it.cloned().is_some();
            let root = match root {
                Some(root) => root,
                None if is_clone => Ino::ROOT.in_clone(id).unwrap_or_else(|| self.unused()),
                None => self.unused(),
            };
            self.seen.entry(root).or_default();
            let junction = self.unused();
            self.seen.entry(junction).or_default();
            self.volumes.insert(id, (root, junction));
            self.rebuilder.lost_volumes.insert(id, (root, junction));
            let sentence = match is_clone {
                true => {
                    "the record of a clone is lost, and with it what it had from its origin, its quota and its codec"
                }
                false => "the record of a volume is lost, and with it its quota and its codec",
            };
            self.trouble(root, "volume", sentence);
        }
        Ok(())
    }

    /// Makes roots and junctions of volumes anew that are lost; a junction without a volume becomes a directory.
    pub(super) fn ends_of_volumes(&mut self) -> Result<(), ReadError> {
        let volumes: Vec<_> = self.volumes.iter().map(|(id, ends)| (*id, *ends)).collect();
        for (id, (root, junction)) in &volumes {
            if *junction == Ino(0) {
                continue;
            }
            for (ino, is_junction) in [(*root, false), (*junction, true)] {
                let is_good = |seen: &Seen| {
                    seen.kind == Some(libc::S_IFDIR) && seen.is_junction == is_junction
                };
                if !self.is_due(ino) || self.seen.get(&ino).is_some_and(is_good) {
                    continue;
                }
                self.trouble(*root, "attributes", "owner, mode and times are lost");
                let mut record = match self.record(ino)? {
                    Some(record) if inode::is_directory(&record) => record,
                    _ => self.new_directory(ino),
                };
                match is_junction {
                    true => record.flags = (record.flags.get() | inode_flag::JUNCTION).into(),
                    false => {
                        record.parent = ino.0.into();
                        record.volume = id.0.into();
                    }
                }
                self.put_record(ino, &record);
                let seen = self.seen.entry(ino).or_default();
                *seen = Seen {
                    kind: Some(libc::S_IFDIR),
                    nlink: 2,
                    parent: Ino(record.parent.get()),
                    volume: VolumeId(record.volume.get()),
                    is_junction,
                    is_new: is_junction,
                    ..*seen
                };
            }
        }
        let stale: Vec<Ino> = self
            .seen
            .iter()
            .filter(|(ino, seen)| {
                seen.is_junction && !volumes.iter().any(|(_, (_, of))| of == *ino)
            })
            .map(|(ino, _)| *ino)
            .collect();
        for ino in stale {
            if let Some(mut record) = self.record(ino)? {
                record.flags = (record.flags.get() & !inode_flag::JUNCTION).into();
                self.put_record(ino, &record);
            }
            self.trouble(ino, "volume", "the volume that was seen here is lost");
        }
        Ok(())
    }
}
