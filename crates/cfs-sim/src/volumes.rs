//! Making and removing volumes, on the file system and on the model.

use cfs_fs::{Caller, Fs, FsError, Quota, Recorded, VolumeDomain, VolumeOptions};

use crate::world::{Failure, World};

/// Volumes at a time at most, beside the first.
const VOLUMES_MAX: usize = 4;
/// The smallest quota; a file is rarely larger.
const QUOTA_BYTES: u64 = 256 << 10;

impl World {
    pub fn make_volume(&mut self, fs: &Fs) -> Result<(), Failure> {
        if self.model.volumes().len() >= VOLUMES_MAX {
            return Ok(());
        }
        let path = self.new_path();
        let options = VolumeOptions {
            quota: Quota {
                bytes: match self.rng.one_in(3) {
                    true => QUOTA_BYTES << self.rng.below(4),
                    false => 0,
                },
                inodes: match self.rng.one_in(3) {
                    true => 4 + self.rng.below(20),
                    false => 0,
                },
            },
            domain: match self.rng.one_in(3) {
                true => VolumeDomain::New,
                false => VolumeDomain::Shared,
            },
        };
        self.trace(|| format!("volume {path}, {options:?}"));
        let caller = Caller::default();
        match path.len().is_multiple_of(2) {
            true => {
                let how = Recorded {
                    records: &[(b"sim.volume".to_vec(), path.clone().into_bytes())],
                    stays: false,
                };
                fs.volume_create_recorded(path.as_bytes(), &options, &caller, &how)?;
            }
            false => {
                fs.volume_create(path.as_bytes(), &options, &caller)?;
            }
        }
        self.model.add_volume(&path);
        Ok(())
    }

    /// Makes a clone of a snapshot that is there for certain.
    pub fn make_clone(&mut self, fs: &Fs) -> Result<(), Failure> {
        if self.model.volumes().len() >= VOLUMES_MAX {
            return Ok(());
        }
        let certain = self.model.snapshots.iter();
        let mut certain = certain.filter(|(_, copy)| !copy.is_uncertain);
        let count = certain.clone().count() as u64;
        if count == 0 {
            return Ok(());
        }
        let (name, _) = certain
            .nth(self.rng.below(count) as usize)
            .expect("fewer than there are");
        let (name, path) = (name.clone(), self.new_path());
        self.trace(|| format!("clone of {name}, {path}"));
        let all = fs.snapshots(None)?;
        let snapshot = all.iter().find(|it| it.name == name.as_bytes());
        let snapshot =
            snapshot.ok_or_else(|| Failure::Wrong(format!("snapshot {name} is missing")))?;
        fs.clone_create(
            snapshot,
            path.as_bytes(),
            Quota::default(),
            &Caller::default(),
        )?;
        self.model.add_clone(&path, &name);
        Ok(())
    }

    fn remove_clone(&mut self, fs: &Fs, path: &str) -> Result<(), Failure> {
        let below = format!("{path}/");
        let has_volumes = self.model.volumes().iter().any(|it| it.starts_with(&below));
        match fs.clone_delete(path.as_bytes()) {
            Err(FsError::HasSnapshots) if !self.model.snapshots.is_empty() => Ok(()),
            Err(FsError::Volume) if has_volumes => Ok(()),
            Err(FsError::Busy) if !self.handles.is_empty() => Ok(()),
            Err(FsError::NoSpace) => {
                let text = "removing a clone was refused for want of room".to_owned();
                Err(Failure::Wrong(text))
            }
            Err(error) => Err(error.into()),
            Ok(()) if has_volumes => Err(Failure::Wrong(format!(
                "a volume in {path} is seen nowhere"
            ))),
            Ok(()) => {
                self.model.remove_tree(path);
                Ok(())
            }
        }
    }

    pub fn remove_volume(&mut self, fs: &Fs) -> Result<(), Failure> {
        let volumes = self.model.volumes();
        if volumes.is_empty() {
            return Ok(());
        }
        let path = &volumes[self.rng.below(volumes.len() as u64) as usize];
        self.trace(|| format!("remove volume {path}"));
        if self.model.is_clone(path) && !self.rng.one_in(4) {
            return self.remove_clone(fs, path);
        }
        let may_hold = self.model.has_children(path) || !self.handles.is_empty();
        match fs.volume_delete(path.as_bytes()) {
            Err(FsError::NotEmpty) if may_hold => return Ok(()),
            Err(FsError::HasSnapshots) if !self.model.snapshots.is_empty() => return Ok(()),
            Err(FsError::Busy) if may_hold => return Ok(()),
            Err(FsError::NoSpace) => {
                let text = "removing a volume was refused for want of room".to_owned();
                return Err(Failure::Wrong(text));
            }
            removed => removed?,
        }
        if self.model.has_children(path) {
            return Err(Failure::Wrong(format!("volume {path} was not empty")));
        }
        self.model.remove(path);
        Ok(())
    }

    /// That no volume has more than its quota lets it.
    ///
    /// # Errors
    /// Which one has.
    pub fn check_quotas(&self, fs: &Fs) -> Result<(), String> {
        for volume in fs.volumes() {
            let (bytes, inodes) = (
                volume.record.logical_bytes.get(),
                volume.record.inode_count.get(),
            );
            let path = String::from_utf8_lossy(&volume.path);
            if volume.quota.bytes > 0 && bytes > volume.quota.bytes {
                return Err(format!(
                    "volume {path} has {bytes} bytes, {:?}",
                    volume.quota
                ));
            }
            if volume.quota.inodes > 0 && inodes > volume.quota.inodes {
                return Err(format!(
                    "volume {path} has {inodes} inodes, {:?}",
                    volume.quota
                ));
            }
        }
        Ok(())
    }
}
