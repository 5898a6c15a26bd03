//! Taking, comparing, copying from and deleting snapshots, on the file system and on the model.

use std::collections::BTreeMap;
use std::sync::Arc;

use cfs_format::Ino;
use cfs_fs::{Fs, FsError, Snapshot};

use crate::content::Content;
use crate::edges::is_long;
use crate::look::look_below;
use crate::world::{Failure, World, ino};

/// Snapshots at a time at most.
const SNAPSHOTS_MAX: usize = 6;

fn by_name(fs: &Fs) -> Result<BTreeMap<String, Arc<Snapshot>>, FsError> {
    let all = fs.snapshots(None)?.into_iter();
    Ok(all
        .map(|it| (String::from_utf8_lossy(&it.name).into_owned(), it))
        .collect())
}

fn root_of(snapshot: &Snapshot) -> Ino {
    let root = snapshot.directory.in_view(snapshot.view);
    root.expect("few inodes and snapshots")
}

impl World {
    pub fn take_snapshot(&mut self, fs: &Fs) -> Result<(), Failure> {
        if self.model.snapshots.len() >= SNAPSHOTS_MAX {
            return Ok(());
        }
        let directory = match self.rng.one_in(3) {
            true => {
                let directories = self.model.directories();
                directories[self.rng.below(directories.len() as u64) as usize].clone()
            }
            false => String::new(),
        };
        let name = format!("s{}", self.rng.next());
        self.trace(|| format!("snapshot {name} of /{directory}"));
        let mut copy = self.model.freeze(&directory);
        copy.is_uncertain = true;
        self.model.snapshots.insert(name.clone(), copy);
        let taken = fs.snapshot_create(directory.as_bytes(), name.as_bytes());
        if let Err(error @ (FsError::NoSpace | FsError::Read(_))) = taken {
            // Nothing was taken, and nothing may be there.
            self.model.snapshots.remove(&name);
            return Err(error.into());
        }
        taken?;
        self.model.sync_all();
        let copy = self.model.snapshots.get_mut(&name);
        copy.expect("inserted just above").is_uncertain = false;
        Ok(())
    }

    fn any_snapshot(&mut self) -> Option<String> {
        let count = self.model.snapshots.len() as u64;
        if count == 0 {
            return None;
        }
        let index = self.rng.below(count) as usize;
        self.model.snapshots.keys().nth(index).cloned()
    }

    pub fn delete_snapshot(&mut self, fs: &Fs) -> Result<(), Failure> {
        let Some(name) = self.any_snapshot() else {
            return Ok(());
        };
        self.trace(|| format!("delete snapshot {name}"));
        let Some(snapshot) = by_name(fs)?.remove(&name) else {
            return match self.model.snapshots[&name].is_uncertain {
                true => Ok(()),
                false => Err(Failure::Wrong(format!("snapshot {name} is missing"))),
            };
        };
        let is_cloned = self.model.is_cloned(&name);
        let copy = self.model.snapshots.get_mut(&name);
        let copy = copy.expect("chosen among them");
        let was_uncertain = std::mem::replace(&mut copy.is_uncertain, true);
        match fs.snapshot_delete(&snapshot) {
            Err(FsError::NeededByClone) if is_cloned => {
                copy.is_uncertain = was_uncertain;
                return Ok(());
            }
            Ok(()) if is_cloned => {
                let text = format!("snapshot {name} was deleted, and a clone shows it");
                return Err(Failure::Wrong(text));
            }
            Err(FsError::NoSpace) => {
                return Err(Failure::Wrong(
                    "deleting a snapshot was refused for want of room".to_owned(),
                ));
            }
            deleted => deleted?,
        }
        self.model.sync_log();
        self.model.snapshots.remove(&name);
        Ok(())
    }

    /// Puts the content of a file in a snapshot into one that is there, by reference.
    pub fn copy_from_snapshot(&mut self, fs: &Fs) -> Result<(), Failure> {
        let (Some(name), Some((path, node))) = (self.any_snapshot(), self.any_file()) else {
            return Ok(());
        };
        let Some(snapshot) = by_name(fs)?.remove(&name) else {
            return Ok(());
        };
        let files: Vec<_> = self.model.snapshots[&name].files().collect();
        if files.is_empty() {
            return Ok(());
        }
        let (from, data) = files[self.rng.below(files.len() as u64) as usize];
        let (from, data) = (from.clone(), Arc::clone(data));
        self.trace(|| format!("copy {from} of snapshot {name} to {path}"));
        let mut source = root_of(&snapshot);
        for part in from.split('/') {
            source = fs.lookup(source, part.as_bytes())?.ino;
        }
        let target = ino(fs, &path)?;
        // Of a long file what is about the edge: the hole before would be copied as bytes between dedup domains.
        let start = match is_long(data.len()) {
            true => self.near_edge().min(data.len() - 1),
            false => 0,
        };
        let mut done = start;
        // Between them bytes are copied, as many as find room; asked for the rest, it says why not.
        while done < data.len() {
            let copied = fs.copy_range(source, done, target, done, data.len() - done)?;
            if copied == 0 {
                return Err(Failure::Wrong(format!(
                    "{} bytes of {} were copied",
                    done - start,
                    data.len() - start
                )));
            }
            let mut content = Content::clone(&self.model.content(node));
            content.write(done, &data.range(done, done + copied));
            self.model.set_content(node, content);
            done += copied;
        }
        Ok(())
    }

    /// That the snapshots that should be there are, no others, and that each shows what it did from the first.
    ///
    /// # Errors
    /// What does not.
    pub fn check_snapshots(&mut self, fs: &Fs, is_recovered: bool) -> Result<(), String> {
        let mut there = by_name(fs).map_err(|error| format!("snapshots: {error}"))?;
        for (name, mut copy) in std::mem::take(&mut self.model.snapshots) {
            let Some(snapshot) = there.remove(&name) else {
                match copy.is_uncertain {
                    true if is_recovered => continue,
                    true => {
                        self.model.snapshots.insert(name, copy);
                        continue;
                    }
                    false => return Err(format!("snapshot {name} is missing")),
                }
            };
            let found = look_below(fs, root_of(&snapshot))
                .map_err(|error| format!("snapshot {name}: {error}"))?;
            copy.check(&found)
                .map_err(|reason| format!("snapshot {name}: {reason}"))?;
            // What a command has left that failed may be gone after a crash, unless it has come through one.
            copy.is_uncertain &= !is_recovered;
            self.model.snapshots.insert(name, copy);
        }
        match there.keys().next() {
            Some(name) => Err(format!("snapshot {name} should not be there")),
            None => Ok(()),
        }
    }
}
