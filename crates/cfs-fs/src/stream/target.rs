//! The directory that receives: found, or made as a volume.

use cfs_format::{DomainId, Ino};
use cfs_seal::keys::DomainSecret;

use super::receive::{ORIGIN, PENDING};
use super::wire::{About, Hello};
use super::{Result, StreamError};
use crate::command::{Command, Make, VolumeCreate};
use crate::error::FsError;
use crate::{Fs, RestoreObserver};

/// What has come into a directory that receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// All that it was sent.
    Whole,
    /// A stream is coming.
    Coming,
    /// A stream was cut off: the directory is neither what it was before nor what was sent.
    CutOff,
}

/// Where a stream is to go: the root of a volume.
pub(super) struct Target {
    /// `None` if it is not there yet.
    pub root: Option<Ino>,
    /// It has received from the same directory before.
    is_replica: bool,
    domain: DomainId,
    /// The domain's secret, where this pool does not have it.
    new_secret: Option<DomainSecret>,
    /// What [`ORIGIN`] is to be.
    origin: Vec<u8>,
}

impl Fs {
    /// What has come into a directory; `None` if it never received.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn arrival(&self, directory: Ino) -> crate::Result<Option<Arrival>> {
        if self.record(directory, ORIGIN)?.is_none() {
            return Ok(None);
        }
        let is_coming = self.receiving.lock().contains(&directory);
        Ok(Some(match self.record(directory, PENDING)? {
            None => Arrival::Whole,
            Some(_) if is_coming => Arrival::Coming,
            Some(_) => Arrival::CutOff,
        }))
    }

    /// Where a stream is to go. Changes nothing.
    ///
    /// # Errors
    /// [`StreamError::Target`]: it cannot go there.
    pub(super) fn target(
        &self,
        path: &[u8],
        hello: &Hello,
        about: Option<&About>,
    ) -> Result<Target> {
        let origin = [&hello.pool[..], &hello.directory.to_le_bytes()].concat();
        let shown = String::from_utf8_lossy(path).into_owned();
        let domain = about.map_or(DomainId::DEFAULT, |about| DomainId(about.domain));
        let secret = about.map(|about| &about.domain_secret);
        let known = self.store.domain_secret(domain);
        if let (Some(known), Some(secret)) = (&known, secret)
            && *known.expose() != secret.0
        {
            return Err(StreamError::Target(format!(
                "dedup domain {domain} of this pool has another secret"
            )));
        }
        let new_secret = secret
            .filter(|_| known.is_none())
            .map(|secret| DomainSecret::from_bytes(secret.0));
        self.check_above(path)?;
        let attr = match self.resolve(path) {
            Ok(attr) => attr,
            Err(FsError::NotFound) => {
                return Ok(Target {
                    root: None,
                    is_replica: false,
                    domain,
                    new_secret,
                    origin,
                });
            }
            Err(error) => return Err(error.into()),
        };
        if attr.ino.view().is_some() {
            return Err(FsError::Snapshot.into());
        }
        let is_replica = self.record(attr.ino, ORIGIN)?.as_deref() == Some(&origin[..]);
        let volume = self.store.volume(attr.volume);
        let obstacle = if attr.kind() != libc::S_IFDIR {
            Some("is no directory")
        } else if !is_replica && self.record(attr.ino, ORIGIN)?.is_some() {
            Some("is a replica of another directory")
        } else if !is_replica && !self.names_from(attr.ino, b"", 1)?.is_empty() {
            Some("is not empty, and is no replica of what is sent")
        } else if volume.is_none_or(|volume| volume.root.get() != attr.ino.0) {
            Some("is a directory of a larger volume; a path where nothing is yet becomes a volume")
        } else if !is_replica && volume.is_none_or(|volume| volume.domain.get() != domain.0) {
            Some("is in a volume that shares no chunks with what is sent")
        } else {
            None
        };
        if let Some(obstacle) = obstacle {
            return Err(StreamError::Target(format!(
                "{shown} {obstacle}; nothing was changed"
            )));
        }
        Ok(Target {
            root: Some(attr.ino),
            is_replica,
            domain,
            new_secret,
            origin,
        })
    }

    /// Has the target be there and say what it is a replica of.
    ///
    /// # Errors
    /// It cannot be made; then nothing was.
    pub(super) fn make_ready(
        &self,
        path: &[u8],
        target: &Target,
        observer: &mut dyn RestoreObserver,
    ) -> Result<Ino> {
        match target.root {
            Some(root) if target.is_replica => Ok(root),
            Some(root) => {
                self.put_record(root, ORIGIN, Some(&target.origin))?;
                Ok(root)
            }
            None => {
                let made = self.make_target(path, target)?;
                let (parent, name) = self.resolve_parent(path)?;
                observer.entry_changed(parent, name);
                Ok(made)
            }
        }
    }

    /// The next stream of what lies above would remove what is received here.
    fn check_above(&self, path: &[u8]) -> Result<()> {
        for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let above = match self.resolve(&path[..=at]) {
                Ok(above) => above.ino,
                Err(FsError::NotFound) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let is_all = path[at + 1..].iter().all(|byte| *byte == b'/');
            if !is_all && above.view().is_none() && self.record(above, ORIGIN)?.is_some() {
                let above = String::from_utf8_lossy(&path[..=at]).into_owned();
                return Err(StreamError::Target(format!(
                    "{above} is a replica itself; choose a path that is not in it"
                )));
            }
        }
        Ok(())
    }

    fn make_target(&self, path: &[u8], target: &Target) -> Result<Ino> {
        let domain = target.domain;
        let new_secret = target.new_secret.as_ref();
        let (parent, name) = self.resolve_parent(path).map_err(|error| {
            let shown = String::from_utf8_lossy(path);
            match error {
                FsError::NotFound => StreamError::Target(format!(
                    "the directory above {shown} is not here; nothing was changed"
                )),
                FsError::NotDirectory => StreamError::Target(format!(
                    "what is above {shown} is no directory; nothing was changed"
                )),
                error => error.into(),
            }
        })?;
        crate::directory::check_reserved(name)?;
        let _room = self.admit_growth(name.len())?;
        let (junction, root) = (self.new_ino(parent)?, self.store.allocate_ino());
        let salts = (self.salt(), self.salt());
        self.execute(|_, now| {
            let volume = self.views.free_volume(cfs_format::VolumeId(u32::MAX));
            Ok(Command::VolumeCreate(VolumeCreate {
                junction: Make {
                    parent,
                    name: name.to_vec(),
                    ino: junction,
                    mode: libc::S_IFDIR | 0o755,
                    rdev: 0,
                    uid: 0,
                    gid: 0,
                    umask: 0,
                    target: Vec::new(),
                    now,
                    salt: salts.0,
                },
                volume: volume.ok_or(FsError::TooManyLinks)?,
                root,
                domain,
                new_secret: new_secret.map(|secret| self.store.stored_secret(domain, secret)),
                quota_bytes: 0,
                quota_inodes: 0,
                salt: salts.1,
            }))
        })?;
        self.views.load_junctions();
        self.put_record(root, ORIGIN, Some(&target.origin))?;
        Ok(root)
    }
}
