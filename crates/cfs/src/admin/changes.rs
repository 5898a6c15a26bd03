//! What has changed since a snapshot, and bringing back what it shows.

use std::sync::Arc;
use std::time::Instant;

use cfs_format::Ino;
use cfs_fs::{Change, Difference, Fs, FsError, RestoreObserver, Snapshot};
use serde_json::json;

use super::protocol::{Answer, AnyPath, Event, Named, RestoreSummary};
use super::report::{hex_if_no_text, printable};
use super::reporter::Reporter;
use crate::failure::{Code, Failure, Result};
use crate::transfer::KernelCaches;

/// Tells a line for each difference between a snapshot and what is there now, or another snapshot.
///
/// # Errors
/// There is no such snapshot, or something cannot be read.
pub fn diff(
    fs: &Fs,
    (named, snapshot): (&Named, &Snapshot),
    other: Option<&Snapshot>,
    json: bool,
    reporter: &dyn Reporter,
) -> Result<Answer> {
    let failed = |error: FsError| {
        Failure::new(
            Code::Failed,
            format!("{} cannot be compared: {error}", named.sentence()),
        )
    };
    // What is accepted counts as being there.
    fs.syncfs().map_err(failed)?;
    let root = |of: &Snapshot| {
        let root = of.directory.in_view(of.view);
        root.ok_or_else(|| failed(FsError::TooLarge))
    };
    let now = match other {
        Some(other) => root(other)?,
        None => directory_now(fs, named, snapshot),
    };
    let differences = fs
        .differences(root(snapshot)?, now, || !reporter.cancelled())
        .map_err(|error| match error {
            FsError::NotFound => Failure::new(
                Code::Failed,
                format!("the directory of {} is gone", named.sentence()),
            )
            .hint("`cfs admin snapshot restore` makes it again"),
            error => failed(error),
        })?
        .ok_or_else(|| Failure::new(Code::Interrupted, "interrupted; nothing was changed"))?;
    for difference in &differences {
        let text = match json {
            true => json_line(difference),
            false => line(difference),
        };
        reporter.event(&Event::Line { text });
    }
    Ok(Answer::Nothing)
}

/// The directory of a snapshot; where it is gone, the one that has its path, as when it was made again.
fn directory_now(fs: &Fs, named: &Named, snapshot: &Snapshot) -> Ino {
    if let Ok(None) = fs.path_of(snapshot.directory)
        && let Ok(attr) = fs.resolve(named.path.bytes())
        && attr.kind() == libc::S_IFDIR
        && attr.volume == snapshot.volume
    {
        return attr.ino;
    }
    snapshot.directory
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn line(difference: &Difference) -> String {
    let path = printable(&lossy(&difference.path));
    let path = match difference.kind == libc::S_IFDIR {
        true => path + "/",
        false => path,
    };
    match &difference.change {
        Change::Created => format!("created  {path}"),
        Change::Deleted => format!("deleted  {path}"),
        Change::Changed => format!("changed  {path}"),
        Change::Renamed { from, is_changed } => {
            let and = if *is_changed { ", changed" } else { "" };
            format!("renamed  {path}  from {}{and}", printable(&lossy(from)))
        }
    }
}

fn json_line(difference: &Difference) -> String {
    let kind = match difference.kind {
        libc::S_IFDIR => "directory",
        libc::S_IFREG => "file",
        libc::S_IFLNK => "symlink",
        _ => "special",
    };
    let (change, from, is_changed) = match &difference.change {
        Change::Created => ("created", None, false),
        Change::Deleted => ("deleted", None, false),
        Change::Changed => ("changed", None, true),
        Change::Renamed { from, is_changed } => ("renamed", Some(from), *is_changed),
    };
    let path = lossy(&difference.path);
    let from_text = from.map(|from| lossy(from));
    let mut line = json!({
        "change": change, "path": path, "from": from_text, "kind": kind, "changed": is_changed
    });
    // What the texts do not tell.
    for (field, path) in [("path_hex", Some(&difference.path)), ("from_hex", from)] {
        if let Some(hex) = path.and_then(|path| hex_if_no_text(path)) {
            line[field] = hex.into();
        }
    }
    line.to_string()
}

/// Tells the kernel and the user of what is brought back or received.
pub(super) struct Observer<'a> {
    pub caches: Option<&'a dyn KernelCaches>,
    pub reporter: &'a dyn Reporter,
    /// Tells of a path that is left as it was.
    pub tell: fn(&dyn Reporter, &[u8], &FsError),
}

impl RestoreObserver for Observer<'_> {
    fn inode_changed(&mut self, ino: Ino) {
        if let Some(caches) = self.caches {
            caches.inode_changed(ino);
        }
    }

    fn entry_changed(&mut self, parent: Ino, name: &[u8]) {
        if let Some(caches) = self.caches {
            caches.entry_changed(parent, name);
        }
    }

    fn problem(&mut self, path: &[u8], error: &FsError) {
        (self.tell)(self.reporter, path, error);
    }

    fn goes_on(&mut self) -> bool {
        !self.reporter.cancelled()
    }
}

fn tell_user(reporter: &dyn Reporter, path: &[u8], error: &FsError) {
    let message = match error {
        FsError::IsDirectory | FsError::NotDirectory => {
            "there is something of another kind in its place; --delete removes that".to_owned()
        }
        error => error.to_string(),
    };
    reporter.event(&Event::Problem {
        path: lossy(path),
        message,
    });
}

/// Brings back what is at the paths below the snapshot's directory, or all of it.
///
/// # Errors
/// The snapshot does not show one of the paths, and nothing has changed then; or there is no room, or the pool takes no
/// changes: then what has been done stays.
pub fn restore(
    fs: &Fs,
    (named, snapshot): (&Named, &Arc<Snapshot>),
    below: &[AnyPath],
    removes_new: bool,
    caches: Option<&dyn KernelCaches>,
    reporter: &dyn Reporter,
) -> Result<Answer> {
    let started = Instant::now();
    let root = snapshot.directory.in_view(snapshot.view);
    let root = root.ok_or_else(|| Failure::new(Code::Failed, "the inode's number is too large"))?;
    let all = [AnyPath::Text(String::new())];
    let below = if below.is_empty() { &all[..] } else { below };
    for path in below {
        let mut at = root;
        for part in path.bytes().split(|byte| *byte == b'/') {
            if part == b".." {
                let path = printable(&lossy(path.bytes()));
                return Err(Failure::new(Code::Usage, format!("{path}: '..' in a path")));
            }
            if !matches!(part, b"" | b".") {
                at = fs
                    .lookup(at, part)
                    .map_err(|error| {
                        let path = printable(&lossy(path.bytes()));
                        Failure::new(
                            Code::Failed,
                            format!(
                                "{path} in {}: {error}; nothing was changed",
                                named.sentence()
                            ),
                        )
                    })?
                    .ino;
            }
        }
    }
    let mut observer = Observer {
        caches,
        reporter,
        tell: tell_user,
    };
    let mut summary = RestoreSummary::default();
    for path in below {
        let done = fs
            .snapshot_restore(
                snapshot,
                named.path.bytes(),
                path.bytes(),
                removes_new,
                &mut observer,
            )
            .map_err(|error| {
                let code = match error {
                    FsError::NoSpace | FsError::ReadOnly(_) => Code::Host,
                    _ => Code::Failed,
                };
                Failure::new(
                    code,
                    format!("restoring from {}: {error}", named.sentence()),
                )
                .hint("what was done until then stays; run the same command again to go on")
            })?;
        summary.restored += done.restored;
        summary.unchanged += done.unchanged;
        summary.removed += done.removed;
        summary.problems += done.problems;
    }
    if reporter.cancelled() {
        return Err(Failure::new(Code::Interrupted, "interrupted")
            .hint("what was done until then stays; run the same command again to go on"));
    }
    fs.syncfs().map_err(|error| {
        Failure::new(
            Code::Host,
            format!("what was restored is not durable: {error}"),
        )
    })?;
    summary.seconds = started.elapsed().as_secs_f64();
    Ok(Answer::Restored(summary))
}
