//! Volumes, as the admin commands make, list, bound and remove them.

use std::time::{Duration, Instant};

use cfs_format::Ino;
use cfs_fs::stream::Arrival;
use cfs_fs::{Caller, Fs, FsError, Quota, Volume, VolumeDomain, VolumeOptions};

use super::protocol::{Answer, AnyPath, VolumeRequest};
use super::report::{SnapshotTaken, VolumeShown, Volumes, hex_if_no_text, printable};
use super::reporter::Reporter;
use crate::failure::{Code, Failure, Result};
use crate::transfer::KernelCaches;

/// Entries of a directory that are removed before it is listed again.
const ENTRIES_AT_ONCE: usize = 256;

/// The kernel tells of the last close of a file a moment after it.
const CLOSING: Duration = Duration::from_secs(1);

/// Does what is asked.
///
/// # Errors
/// What the request meets. Nothing was changed, but by removing a volume with all in it, which may end on the way.
pub fn perform(
    fs: &Fs,
    request: &VolumeRequest,
    caches: Option<&dyn KernelCaches>,
    reporter: &dyn Reporter,
) -> Result<Answer> {
    match request {
        VolumeRequest::Create {
            path,
            quota_bytes,
            quota_inodes,
            own_domain,
            owner,
        } => {
            let options = VolumeOptions {
                quota: Quota {
                    bytes: *quota_bytes,
                    inodes: *quota_inodes,
                },
                domain: match own_domain {
                    true => VolumeDomain::New,
                    false => VolumeDomain::Shared,
                },
            };
            let caller = Caller {
                uid: owner.0,
                gid: owner.1,
                pid: 0,
                umask: 0,
            };
            fs.volume_create(path.bytes(), &options, &caller)
                .map_err(|error| not_made(path, &error))?;
            name_changed(fs, path, caches);
            durable(fs, path)
        }
        VolumeRequest::Clone {
            named,
            path,
            quota_bytes,
            quota_inodes,
            owner,
        } => {
            let (named, snapshot) = named.find_divided(fs)?;
            let quota = Quota {
                bytes: *quota_bytes,
                inodes: *quota_inodes,
            };
            let caller = Caller {
                uid: owner.0,
                gid: owner.1,
                pid: 0,
                umask: 0,
            };
            let started = Instant::now();
            fs.clone_create(&snapshot, path.bytes(), quota, &caller)
                .map_err(|error| not_made(path, &error))?;
            durable(fs, path)?;
            let seconds = started.elapsed().as_secs_f64();
            name_changed(fs, path, caches);
            Ok(Answer::CloneMade(SnapshotTaken {
                name: named.sentence(),
                name_hex: None,
                path: String::from_utf8_lossy(path.bytes()).into_owned(),
                path_hex: hex_if_no_text(path.bytes()),
                seconds,
            }))
        }
        VolumeRequest::Set {
            path,
            quota_bytes,
            quota_inodes,
        } => {
            let volume = find(fs, path)?;
            let quota = Quota {
                bytes: quota_bytes.unwrap_or(volume.quota.bytes),
                inodes: quota_inodes.unwrap_or(volume.quota.inodes),
            };
            fs.volume_set_quota(volume.id, quota)
                .map_err(|error| failed(path, &error))?;
            durable(fs, path)
        }
        VolumeRequest::List => Ok(Answer::Volumes(Volumes {
            volumes: fs.volumes().iter().map(|it| shown(fs, it)).collect(),
        })),
        VolumeRequest::Delete { path, recursive } => {
            let volume = find(fs, path)?;
            if volume.root == Ino::ROOT {
                return Err(not_removed(path, false, &FsError::Invalid));
            }
            check_nested(fs, path, &volume)?;
            if *recursive {
                empty(fs, path, &volume, reporter)?;
            }
            let deleted = match *recursive && volume.goes_whole() {
                true => fs.clone_delete(path.bytes()),
                false => fs.volume_delete(path.bytes()),
            };
            deleted.map_err(|error| not_removed(path, *recursive, &error))?;
            name_changed(fs, path, caches);
            durable(fs, path)
        }
    }
}

/// What was done outlives the machine.
fn durable(fs: &Fs, path: &AnyPath) -> Result<Answer> {
    match fs.store().sync() {
        Ok(_) => Ok(Answer::Nothing),
        Err(error) => Err(failed(path, &error.into())),
    }
}

fn shown(fs: &Fs, volume: &Volume) -> VolumeShown {
    let bound = |quota: u64| (quota > 0).then_some(quota);
    let all = fs.snapshots(None).unwrap_or_default();
    VolumeShown {
        volume: volume.id.0,
        path: String::from_utf8_lossy(&volume.path).into_owned(),
        path_hex: hex_if_no_text(&volume.path),
        logical_bytes: volume.record.logical_bytes.get(),
        quota_bytes: bound(volume.quota.bytes),
        inodes: volume.record.inode_count.get(),
        quota_inodes: bound(volume.quota.inodes),
        snapshots: all.iter().filter(|it| it.volume == volume.id).count() as u64,
        domain: volume.record.domain.get(),
        origin: fs.origin_of(volume).map(|it| {
            // The directory may have another path now.
            let path = fs.path_of(it.directory).ok().flatten();
            let path = path.unwrap_or_else(|| it.path.clone());
            String::from_utf8_lossy(&[&path[..], b"@", &it.name].concat()).into_owned()
        }),
        // What cannot be read is for fsck to tell.
        replica: fs.arrival(volume.root).ok().flatten().map(|arrival| {
            match arrival {
                Arrival::Whole => "complete",
                Arrival::Coming => "receiving",
                Arrival::CutOff => "cut off",
            }
            .to_owned()
        }),
    }
}

fn find(fs: &Fs, path: &AnyPath) -> Result<Volume> {
    fs.volume(path.bytes()).map_err(|error| match error {
        FsError::NotFound => Failure::new(Code::Failed, format!("{} is no volume", text(path)))
            .hint("`cfs admin volume list` tells which there are"),
        error => failed(path, &error),
    })
}

/// Refuses to remove a volume while another is in it, as a clone of its own snapshot may be.
fn check_nested(fs: &Fs, path: &AnyPath, volume: &Volume) -> Result<()> {
    let below = [&volume.path[..], b"/"].concat();
    let all = fs.volumes().into_iter();
    let nested = all.filter(|it| it.id != volume.id && it.path.starts_with(&below));
    let Some(nested) = nested.max_by_key(|it| it.path.len()) else {
        return Ok(());
    };
    let kind = match nested.is_clone() {
        true => "clone",
        false => "volume",
    };
    let nested = printable(&String::from_utf8_lossy(&nested.path));
    let message = format!(
        "{} has the {kind} {nested} in it; nothing was changed",
        text(path)
    );
    Err(Failure::new(Code::Failed, message).hint(format!(
        "remove that one first: `cfs admin volume delete {nested} --recursive`"
    )))
}

/// Removes all in a volume, of a clone only what does not go with it, and then its snapshots.
fn empty(fs: &Fs, path: &AnyPath, volume: &Volume, reporter: &dyn Reporter) -> Result<()> {
    let wrong = |error: FsError| failed(path, &error);
    let mut snapshots = fs.snapshots(None).map_err(wrong)?;
    snapshots.retain(|it| it.volume == volume.id);
    if let Some(held) = snapshots.iter().find(|it| it.held) {
        let name = printable(&String::from_utf8_lossy(&held.name));
        return Err(Failure::new(
            Code::Failed,
            format!(
                "snapshot {name} of {} is held; nothing was changed",
                text(path)
            ),
        )
        .hint("`cfs admin snapshot release` lets it go"));
    }
    for snapshot in &snapshots {
        if !fs.clones_of(snapshot).is_empty() {
            let name = printable(&String::from_utf8_lossy(&snapshot.name));
            let sentence = format!("snapshot {name} of {}", text(path));
            return Err(super::snapshots::needed(fs, snapshot, &sentence));
        }
    }
    let started = Instant::now();
    let mut obstacle = fs.volume_obstacle(volume).map_err(wrong)?;
    while obstacle.is_some() && volume.goes_whole() && started.elapsed() < CLOSING {
        std::thread::sleep(CLOSING / 50);
        obstacle = fs.volume_obstacle(volume).map_err(wrong)?;
    }
    if let Some((file, error)) = obstacle {
        let file = printable(&String::from_utf8_lossy(&file));
        let reason = match error {
            FsError::NotEmpty => "it is open".to_owned(),
            FsError::Busy => "files in it are open".to_owned(),
            error => error.to_string(),
        };
        return Err(Failure::new(
            Code::Failed,
            format!("{file}: {reason}; nothing was changed"),
        ));
    }
    if !volume.goes_whole() {
        remove_all(fs, path, volume, reporter)?;
    }
    for snapshot in &snapshots {
        fs.snapshot_delete(snapshot).map_err(wrong)?;
    }
    Ok(())
}

/// Removes all in a volume.
fn remove_all(fs: &Fs, path: &AnyPath, volume: &Volume, reporter: &dyn Reporter) -> Result<()> {
    let wrong = |error: FsError| failed(path, &error);
    // From the deepest directory up: a directory is looked at again when all in it is gone.
    let mut waiting = vec![volume.root];
    while let Some(directory) = waiting.last().copied() {
        if reporter.cancelled() {
            let message = format!("interrupted; what is left of {} stays", text(path));
            return Err(Failure::new(Code::Interrupted, message));
        }
        let entries = fs
            .names_from(directory, b"", ENTRIES_AT_ONCE)
            .map_err(wrong)?;
        let deeper = entries.iter().find(|entry| entry.kind == libc::S_IFDIR);
        for entry in &entries {
            let removed = match entry.kind {
                libc::S_IFDIR => match fs.rmdir(directory, &entry.name) {
                    Err(FsError::NotEmpty) => continue,
                    removed => removed,
                },
                _ => fs.unlink(directory, &entry.name),
            };
            match removed {
                Ok(()) | Err(FsError::NotFound) => {}
                Err(error) => return Err(wrong(error)),
            }
        }
        let deeper = deeper.filter(|it| {
            matches!(fs.find_name(directory, &it.name), Ok(Some(there)) if there.ino == it.ino)
        });
        match deeper {
            Some(entry) => waiting.push(entry.ino),
            None if entries.is_empty() => {
                waiting.pop();
            }
            None => {}
        }
    }
    Ok(())
}

fn name_changed(fs: &Fs, path: &AnyPath, caches: Option<&dyn KernelCaches>) {
    let path = path.bytes();
    let end = path
        .iter()
        .rposition(|byte| *byte != b'/')
        .map_or(0, |at| at + 1);
    let start = path[..end]
        .iter()
        .rposition(|byte| *byte == b'/')
        .map_or(0, |at| at + 1);
    if let (Some(caches), Ok(parent)) = (caches, fs.resolve(&path[..start])) {
        caches.entry_changed(parent.ino, &path[start..end]);
    }
}

fn text(path: &AnyPath) -> String {
    printable(&String::from_utf8_lossy(path.bytes()))
}

fn failed(path: &AnyPath, error: &FsError) -> Failure {
    Failure::new(Code::Failed, format!("volume {}: {error}", text(path)))
}

fn not_made(path: &AnyPath, error: &FsError) -> Failure {
    let path = text(path);
    match error {
        FsError::Exists => Failure::new(Code::Failed, format!("{path} is there already"))
            .hint("a volume is made with a new directory; move what is in the old one into it"),
        FsError::Invalid | FsError::NameTooLong => Failure::new(
            Code::Usage,
            format!("{path} can be no path of a volume: {error}"),
        ),
        FsError::Snapshot => Failure::new(
            Code::Failed,
            format!("{path} is in a snapshot, which cannot be changed"),
        ),
        FsError::NoSpace => Failure::new(Code::Host, format!("{path} was not made: {error}"))
            .hint("remove files or snapshots that are not needed, and give the command again; `cfs admin df` tells what is used"),
        FsError::Quota => Failure::new(Code::Failed, format!("{path} was not made: {error}"))
            .hint("a volume is an inode of the one that it lies in; `cfs admin volume list` tells what that may have"),
        error => Failure::new(Code::Failed, format!("volume {path} was not made: {error}"))
            .hint("give a path from the pool's root whose directory above is there"),
    }
}

fn not_removed(path: &AnyPath, was_emptied: bool, error: &FsError) -> Failure {
    let path = text(path);
    match error {
        FsError::NotEmpty if was_emptied => Failure::new(
            Code::Failed,
            format!("all in volume {path} is removed, but something of it is still in use or new, so it stays"),
        )
        .hint("end what uses it (`fuser -vm` tells), and give the command again"),
        FsError::NotEmpty => Failure::new(
            Code::Failed,
            format!("volume {path} is not empty, or files that were removed from it are open; nothing was changed"),
        )
        .hint("--recursive removes all that is in it, and its snapshots"),
        FsError::HasSnapshots => Failure::new(
            Code::Failed,
            format!("volume {path} has snapshots; nothing was changed"),
        )
        .hint("delete them, or give --recursive"),
        FsError::Busy => Failure::new(
            Code::Failed,
            format!("files in the clone {path} are open; nothing was changed but its snapshots"),
        )
        .hint("end what has them open, or leave its directories"),
        FsError::Locked => Failure::new(
            Code::Failed,
            format!("the clone {path} may have locked objects in it; nothing was changed but its snapshots"),
        )
        .hint("remove what is in it; then it can be removed itself"),
        FsError::Invalid => Failure::new(
            Code::Usage,
            "the volume / is the pool itself and cannot be removed",
        ),
        error => Failure::new(Code::Failed, format!("volume {path} stays: {error}")),
    }
}
