//! `cfs admin lifecycle`: what lifecycle rules say is due, and removing it now.

use std::sync::Arc;

use cfs_format::Ino;
use cfs_fuse::Mounted;
use cfs_s3::{Expired, Kind, Lifecycle, Pass, Watcher};

use super::protocol::{Event, LifecycleSummary};
use super::reporter::Reporter;
use crate::bytes::count;
use crate::failure::{Code, Failure, Result};
use crate::transfer::KernelCaches;

/// Tells the kernel of a mount, if there is one.
pub struct Caches(pub Option<Arc<Mounted>>);

impl Watcher for Caches {
    fn name_changed(&self, parent: Ino, name: &[u8]) {
        if let Some(mounted) = &self.0 {
            mounted.entry_changed(parent, name);
        }
    }

    fn inode_changed(&self, ino: Ino) {
        if let Some(mounted) = &self.0 {
            KernelCaches::inode_changed(&**mounted, ino);
        }
    }
}

/// Removes what is due, or tells what would go.
///
/// # Errors
/// [`Code::Interrupted`]; [`Code::Failed`] when something cannot be read or the pool is read-only.
pub fn run(
    lifecycle: &Lifecycle,
    pass: &Pass,
    reporter: &dyn Reporter,
) -> Result<LifecycleSummary> {
    let mut stopped = false;
    let mut tell = |expired: &Expired| {
        stopped = reporter.cancelled();
        if !stopped && pass.dry_run {
            reporter.event(&Event::Line {
                text: line(expired),
            });
        }
        !stopped
    };
    let ran = lifecycle.run(pass, &mut tell);
    let tally = ran.map_err(|error| Failure::new(Code::Failed, error))?;
    if stopped {
        return Err(
            Failure::new(Code::Interrupted, "interrupted; what was done stays done")
                .hint("the same command does the rest"),
        );
    }
    Ok(LifecycleSummary {
        dry_run: pass.dry_run,
        buckets: tally.buckets,
        current: tally.current,
        noncurrent: tally.noncurrent,
        markers: tally.markers,
        uploads: tally.uploads,
        locked: tally.locked,
        failed: tally.failed,
    })
}

fn line(expired: &Expired) -> String {
    let kind = match expired.kind {
        Kind::Current => "current",
        Kind::Noncurrent => "noncurrent",
        Kind::Marker => "marker",
        Kind::Upload => "upload",
    };
    let Expired {
        bucket,
        key,
        version,
        rule,
        ..
    } = expired;
    format!("{kind:<10}  {bucket}/{key}  {version}  by {rule}")
}

/// What was done, in words.
pub fn summary_line(summary: &LifecycleSummary) -> String {
    let verb = match summary.dry_run {
        true => "would go",
        false => "went",
    };
    let mut line = format!(
        "{} current versions, {} others, {} delete markers and {} uploads {verb}, of {} buckets with rules",
        count(summary.current),
        count(summary.noncurrent),
        count(summary.markers),
        count(summary.uploads),
        count(summary.buckets)
    );
    if summary.locked > 0 {
        line += &format!("; {} stay, as they are locked", count(summary.locked));
    }
    if summary.failed > 0 {
        line += &format!("; {} could not be removed", count(summary.failed));
    }
    line
}
