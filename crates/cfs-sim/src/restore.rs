//! Restoring from snapshots, on the file system and on the model.

use std::collections::BTreeMap;

use cfs_format::Ino;
use cfs_fs::{Fs, FsError, RestoreObserver};
use cfs_store::Health;

use crate::look::{self, entries};
use crate::model::join;
use crate::world::{Failure, World, accepted};

/// Notes what could not be restored.
#[derive(Default)]
struct Problems(Vec<(String, FsError)>);

impl RestoreObserver for Problems {
    fn inode_changed(&mut self, _: Ino) {}
    fn entry_changed(&mut self, _: Ino, _: &[u8]) {}
    fn problem(&mut self, path: &[u8], error: &FsError) {
        let path = String::from_utf8_lossy(path).into_owned();
        self.0.push((path, error.clone()));
    }
    fn goes_on(&mut self) -> bool {
        true
    }
}

/// The inodes of all names.
fn inodes(fs: &Fs) -> Result<BTreeMap<String, u64>, FsError> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![(String::new(), Ino::ROOT)];
    while let Some((directory, ino)) = waiting.pop() {
        for (name, ino) in entries(fs, ino)? {
            let path = join(&directory, &name);
            if fs.getattr(ino)?.kind() == libc::S_IFDIR {
                waiting.push((path.clone(), ino));
            }
            found.insert(path, ino.0);
        }
    }
    Ok(found)
}

impl World {
    /// Restores a directory, or a path in it, from a snapshot.
    pub fn restore(&mut self, fs: &Fs) -> Result<(), Failure> {
        let certain = self.model.snapshots.iter();
        let certain = certain.filter(|(_, copy)| !copy.is_uncertain);
        let names: Vec<String> = certain.map(|(name, _)| name.clone()).collect();
        if names.is_empty() {
            return Ok(());
        }
        let name = &names[self.rng.below(names.len() as u64) as usize];
        let Some(root) = self.model.place_to_restore(name) else {
            return Ok(());
        };
        let paths: Vec<String> = self.model.snapshots[name].paths().cloned().collect();
        let below = match paths.len() as u64 {
            count if count > 0 && self.rng.one_in(2) => &paths[self.rng.below(count) as usize],
            _ => "",
        };
        let removes_new = self.rng.one_in(2);
        self.trace(|| format!("restore {below} of {name} to /{root}, remove new: {removes_new}"));
        // It begins from what is durable, so that no more than its own steps are uncertain.
        for handle in std::mem::take(&mut self.handles) {
            accepted(fs.release(handle.ino))?;
        }
        accepted(fs.syncfs())?;
        self.model.sync_all();
        let inos = inodes(fs)?;
        let snapshots = fs.snapshots(None)?;
        let snapshot = snapshots.iter().find(|it| it.name == name.as_bytes());
        let snapshot =
            snapshot.ok_or_else(|| Failure::Wrong(format!("snapshot {name} is missing")))?;
        let is_in_the_way = self.model.is_in_the_way(name, &root, below);
        self.model
            .begin_restoring(name, (&root, below), removes_new, &inos);
        let mut problems = Problems::default();
        let done = fs.snapshot_restore(
            snapshot,
            root.as_bytes(),
            below.as_bytes(),
            removes_new,
            &mut problems,
        );
        self.trace(|| format!("restored: {done:?}, {:?}", problems.0));
        let refusal = match done {
            Ok(_) => None,
            Err(FsError::Volume | FsError::NotDirectory | FsError::IsDirectory)
                if is_in_the_way =>
            {
                None
            }
            Err(error) => Some(error),
        };
        for (path, error) in &problems.0 {
            let expected = match error {
                FsError::Volume
                | FsError::NotDirectory
                | FsError::IsDirectory
                | FsError::NotEmpty
                | FsError::Quota => true,
                FsError::Read(_) | FsError::Io(_) => self.trouble.may_fail_reading(),
                _ => false,
            };
            if !expected {
                return Err(Failure::Wrong(format!("{path} is not restored: {error}")));
            }
        }
        let is_whole = refusal.is_none() && problems.0.is_empty() && !is_in_the_way;
        self.end_restoring(fs, is_whole)?;
        refusal.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Looks at what was restored and goes on from there, if that can be made durable.
    fn end_restoring(&mut self, fs: &Fs, is_whole: bool) -> Result<(), Failure> {
        if !matches!(fs.store().health(), Health::Good) {
            return Ok(());
        }
        let synced = fs.syncfs();
        let found = match look::look(fs) {
            Ok(found) => found,
            Err(_) if self.trouble.may_fail_reading() => return Ok(()),
            Err(reason) => return Err(Failure::Wrong(reason)),
        };
        let restoring = self.model.restoring.clone().expect("it has begun");
        self.model
            .check_restoring(&restoring, &found)
            .map_err(|reason| Failure::Wrong(format!("restoring: {reason}")))?;
        if is_whole {
            self.model
                .check_restored(&restoring, &found)
                .map_err(|reason| Failure::Wrong(format!("restored: {reason}")))?;
        }
        if synced.is_ok() {
            self.model
                .take_over(&restoring, &found)
                .map_err(|reason| Failure::Wrong(format!("after restoring: {reason}")))?;
        }
        Ok(synced?)
    }
}
