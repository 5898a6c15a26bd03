//! Snapshots, as the admin commands take, list and delete them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use cfs_format::Ino;
use cfs_fs::stream::{Arrival, holds_arrivals};
use cfs_fs::{Fs, FsError, Policy, Snapshot, SnapshotSizes};

use super::changes;
use super::protocol::{Answer, AnyPath, Named, PolicyChange, SnapshotRequest};
use super::report::{
    Incomplete, Policies, PolicyShown, SnapshotTaken, SnapshotUse, Snapshots, hex_if_no_text,
    printable,
};
use super::reporter::Reporter;
use crate::failure::{Code, Failure, Result};
use crate::transfer::KernelCaches;

/// Does what is asked.
///
/// # Errors
/// What the request meets; nothing was changed.
pub fn perform(
    fs: &Fs,
    request: &SnapshotRequest,
    caches: Option<&dyn KernelCaches>,
    reporter: &dyn Reporter,
) -> Result<Answer> {
    match request {
        SnapshotRequest::Create(named) => {
            let (path, name) = (named.path.bytes(), named.name.bytes());
            let started = Instant::now();
            let taken = fs
                .snapshot_create(path, name)
                .map_err(|error| not_taken(named, &error))?;
            return Ok(Answer::SnapshotTaken(SnapshotTaken {
                name: String::from_utf8_lossy(&taken.name).into_owned(),
                name_hex: hex_if_no_text(&taken.name),
                path: String::from_utf8_lossy(&taken.path).into_owned(),
                path_hex: hex_if_no_text(&taken.path),
                seconds: started.elapsed().as_secs_f64(),
            }));
        }
        SnapshotRequest::List { path, with } => {
            let path = path.as_ref().map(AnyPath::bytes);
            let snapshots = fs.snapshots(path).map_err(|error| {
                let path = text(path.unwrap_or(b"/"));
                Failure::new(Code::Failed, format!("{path} in the pool: {error}"))
            })?;
            let incomplete = incomplete(fs, path);
            for name in with {
                if !snapshots.iter().any(|it| it.name == name.bytes()) {
                    return Err(Failure::new(
                        Code::Failed,
                        format!("there is no snapshot {}", text(name.bytes())),
                    ));
                }
            }
            let chosen = |snapshot: &Snapshot| {
                with.iter().any(|name| name.bytes() == snapshot.name)
                    && snapshots.iter().any(|it| it.view == snapshot.view)
            };
            let sizes = fs.snapshot_sizes(&snapshots, chosen).map_err(|error| {
                Failure::new(Code::Failed, format!("sizes of snapshots: {error}"))
            })?;
            return Ok(Answer::Snapshots(Snapshots {
                snapshots: snapshots
                    .iter()
                    .zip(&sizes)
                    .map(|(it, sizes)| use_of(fs, it, sizes))
                    .collect(),
                incomplete,
            }));
        }
        SnapshotRequest::Diff { named, to, json } => {
            let snapshot = named.find(fs)?;
            let other = match to {
                Some(name) => Some(
                    Named {
                        path: named.path.clone(),
                        name: name.clone(),
                        id: None,
                    }
                    .find(fs)?,
                ),
                None => None,
            };
            let other = other.as_deref();
            return changes::diff(fs, (named, &snapshot), other, *json, reporter);
        }
        SnapshotRequest::Restore {
            named,
            below,
            delete,
        } => {
            let snapshot = named.find(fs)?;
            return changes::restore(fs, (named, &snapshot), below, *delete, caches, reporter);
        }
        SnapshotRequest::Delete(named) => {
            let snapshot = named.find(fs)?;
            fs.snapshot_delete(&snapshot).map_err(|error| match error {
                FsError::Held => Failure::new(
                    Code::Failed,
                    format!("{} is held; nothing was changed", named.sentence()),
                )
                .hint("`cfs admin snapshot release` lets it go"),
                FsError::NeededByClone => needed(fs, &snapshot, &named.sentence()),
                error => Failure::new(
                    Code::Failed,
                    format!("{} could not be deleted: {error}", named.sentence()),
                ),
            })?;
        }
        SnapshotRequest::Policy { path, change } => {
            return policies(fs, path.as_ref(), change);
        }
        SnapshotRequest::Hold(named) => named.hold(fs, true)?,
        SnapshotRequest::Release(named) => named.hold(fs, false)?,
    }
    Ok(Answer::Nothing)
}

/// Directories that show something half: the one at a path, or of all those of volumes and snapshots.
fn incomplete(fs: &Fs, path: Option<&[u8]>) -> Vec<Incomplete> {
    let directories: BTreeSet<Ino> = match path {
        // One that is gone may have snapshots all the same.
        Some(path) => fs.resolve(path).ok().into_iter().map(|it| it.ino).collect(),
        None => {
            let volumes = fs.volumes().into_iter().map(|it| it.root);
            let all = fs.snapshots(None).unwrap_or_default().into_iter();
            volumes.chain(all.map(|it| it.directory)).collect()
        }
    };
    let mut found = Vec::new();
    for directory in directories {
        let arrival = fs.arrival(directory).unwrap_or_default();
        let receiving = match arrival {
            Some(Arrival::Coming) => true,
            Some(Arrival::CutOff) => false,
            Some(Arrival::Whole) | None => continue,
        };
        if let Ok(Some(path)) = fs.path_of(directory) {
            found.push(Incomplete {
                path: String::from_utf8_lossy(&path).into_owned(),
                path_hex: hex_if_no_text(&path),
                receiving,
            });
        }
    }
    found
}

fn not_taken(named: &Named, error: &FsError) -> Failure {
    let (path, name) = (text(named.path.bytes()), text(named.name.bytes()));
    let failed = |message: String| Failure::new(Code::Failed, message);
    match error {
        FsError::Exists => failed(format!("{path} has a snapshot {name} already"))
            .hint("choose another name, or delete that one"),
        FsError::Reserved => Failure::new(
            Code::Usage,
            format!("{name} can be no name of a snapshot: such names are reserved for what is being received"),
        )
        .hint("choose another name"),
        FsError::Invalid | FsError::NameTooLong => Failure::new(
            Code::Usage,
            format!("{name} can be no name of a snapshot: {error}"),
        )
        .hint("a name is as one of a file: 1 to 255 bytes without '/'"),
        FsError::NotFound | FsError::NotDirectory | FsError::SymbolicLink => {
            failed(format!("{path} in the pool: {error}"))
                .hint("give the path of a directory from the pool's root")
        }
        FsError::Snapshot => failed(format!("{path} is in a snapshot already")),
        error => failed(format!("no snapshot of {path} was taken: {error}")),
    }
}

impl Named {
    /// For messages.
    pub fn sentence(&self) -> String {
        if let Some(id) = &self.id {
            return format!("snapshot with the id {}", printable(id));
        }
        let (path, name) = (text(self.path.bytes()), text(self.name.bytes()));
        format!("snapshot {name} of {path}")
    }

    /// The snapshot.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(&self, fs: &Fs) -> Result<Arc<Snapshot>> {
        let found = match &self.id {
            Some(id) => fs.snapshot_by_id(id),
            None => fs.snapshot(self.path.bytes(), self.name.bytes()),
        };
        found.map_err(|_| {
            Failure::new(Code::Failed, format!("there is no {}", self.sentence()))
                .hint("`cfs admin snapshot list` tells which there are")
        })
    }

    /// The snapshot that was given as `PATH@NAME`, and its path and name: directories and snapshots may have an `@` in their
    /// names, so the last one divides at which there is a snapshot.
    ///
    /// # Errors
    /// When there is none.
    pub fn find_divided(&self, fs: &Fs) -> Result<(Self, Arc<Snapshot>)> {
        let mut tried = self.clone();
        loop {
            if let Ok(snapshot) = tried.find(fs) {
                return Ok((tried, snapshot));
            }
            let (path, name) = (tried.path.bytes(), tried.name.bytes());
            let divides = path.iter().rposition(|byte| *byte == b'@');
            let Some((path, more)) = divides
                .filter(|at| *at > 0)
                .map(|at| (&path[..at], &path[at..]))
                .filter(|(_, more)| !more.contains(&b'/'))
            else {
                // As it was given first.
                return self.find(fs).map(|snapshot| (self.clone(), snapshot));
            };
            tried = Self {
                name: AnyPath::from([&more[1..], b"@", name].concat()),
                path: AnyPath::from(path.to_vec()),
                id: None,
            };
        }
    }

    fn hold(&self, fs: &Fs, held: bool) -> Result<()> {
        let snapshot = self.find(fs)?;
        fs.snapshot_hold(&snapshot, held)
            .map_err(|error| Failure::new(Code::Failed, format!("{}: {error}", self.sentence())))
    }
}

/// A snapshot cannot be deleted because clones show it.
pub fn needed(fs: &Fs, snapshot: &Snapshot, sentence: &str) -> Failure {
    let clones = fs.clones_of(snapshot).into_iter();
    let clones: Vec<_> = clones.map(|it| text(&it.path)).collect();
    Failure::new(
        Code::Failed,
        format!(
            "{sentence} is what the clone {} shows; nothing was changed",
            clones.join(", ")
        ),
    )
    .hint("`cfs admin volume delete CLONE --recursive` removes a clone")
}

fn text(bytes: &[u8]) -> String {
    printable(&String::from_utf8_lossy(bytes))
}

/// Tells the policy of a directory, or all of them, after changing one.
fn policies(fs: &Fs, path: Option<&AnyPath>, change: &PolicyChange) -> Result<Answer> {
    let failed = |path: &AnyPath, error: FsError| {
        let path = text(path.bytes());
        Failure::new(Code::Failed, format!("the policy of {path}: {error}"))
    };
    let directory = match path {
        Some(path) => {
            let found = fs.resolve(path.bytes()).map(|attr| attr.ino);
            Some((path, found.map_err(|error| failed(path, error))?))
        }
        None => None,
    };
    if let Some((path, ino)) = directory {
        let policy = match change {
            PolicyChange::None => None,
            PolicyChange::Remove => Some(None),
            PolicyChange::Set(policy) => Some(Some(Policy::parse(policy).map_err(|reason| {
                Failure::new(Code::Usage, format!("no policy: {reason}"))
                    .hint("a policy is as hourly=24,daily=7,weekly=4,monthly=12")
            })?)),
        };
        if let Some(policy) = policy {
            fs.set_policy(ino, policy)
                .map_err(|error| failed(path, error))?;
        }
    }
    let all = fs.policies().map_err(|error| {
        Failure::new(
            Code::Failed,
            format!("the policies could not be read: {error}"),
        )
    })?;
    let chosen = all
        .iter()
        .filter(|(ino, _)| directory.is_none_or(|(_, wanted)| wanted == *ino));
    let mut shown = Vec::new();
    for (ino, policy) in chosen {
        // One whose directory has just been removed goes with it.
        if let Ok(Some(path)) = fs.path_of(*ino) {
            shown.push(PolicyShown {
                path: String::from_utf8_lossy(&path).into_owned(),
                path_hex: hex_if_no_text(&path),
                policy: policy.to_string(),
            });
        }
    }
    Ok(Answer::Policies(Policies { policies: shown }))
}

fn use_of(fs: &Fs, snapshot: &Snapshot, sizes: &SnapshotSizes) -> SnapshotUse {
    let now = fs.path_of(snapshot.directory).ok().flatten();
    let removed = now.is_none();
    let path = now.unwrap_or_else(|| snapshot.path.clone());
    SnapshotUse {
        id: snapshot.id(),
        name: String::from_utf8_lossy(&snapshot.name).into_owned(),
        name_hex: hex_if_no_text(&snapshot.name),
        path: String::from_utf8_lossy(&path).into_owned(),
        path_hex: hex_if_no_text(&path),
        removed,
        cut_off: holds_arrivals(snapshot),
        volume: snapshot.volume.0,
        created: snapshot.created.seconds,
        created_text: utc(snapshot.created.seconds),
        held: snapshot.held,
        logical_bytes: sizes.logical_bytes,
        inodes: sizes.inodes,
        exclusive_bytes: sizes.exclusive_bytes,
        freed_bytes: sizes.freed_bytes,
    }
}

/// Seconds since 1970 as `2026-11-21 18:00:05`, in the Gregorian calendar (the algorithm is Fliegel and Van Flandern's,
/// 1968, with days counted from 1970).
fn utc(seconds: i64) -> String {
    let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let l = days + 2_440_588 + 68_569;
    let n = 4 * l / 146_097;
    let l = l - (146_097 * n + 3) / 4;
    let i = 4000 * (l + 1) / 1_461_001;
    let l = l - 1461 * i / 4 + 31;
    let j = 80 * l / 2447;
    let day = l - 2447 * j / 80;
    let l = j / 11;
    let (month, year) = (j + 2 - 12 * l, 100 * (n - 49) + i + l);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_795_286_512, "2026-11-21 18:41:52"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(utc(seconds), text);
        }
    }
}
