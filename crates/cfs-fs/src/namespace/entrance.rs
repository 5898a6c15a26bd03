//! Who may enter a snapshot by an entry of `.snapshots`.
//!
//! Whoever is at the `.snapshots` of a directory has passed the directories above it as they are now, and is judged
//! inside of the snapshot by what is there. In between lie the directories that were above it when the snapshot was
//! taken. Each of them let everybody pass then, or has to be above it now and let pass no others than it did; else the
//! entry is closed, and root's alone. Of a removed directory nothing is left that stands in the way, so its entry in the
//! root of the volume is closed. What is above a volume does not count: its rows are kept for other snapshots.

use cfs_format::table::{InodeRecord, tag};
use cfs_format::{Ino, Timestamp};

use crate::clone::{self, Found};
use crate::error::{FsError, Result};
use crate::views::{DEPTH_MAX, listed_by};
use crate::{Fs, acl, row};

/// Permission to pass, for owner, group and others.
const PASS: u32 = 0o111;

/// Whom a directory lets pass.
#[derive(PartialEq, Eq)]
struct Gate {
    uid: u32,
    gid: u32,
    /// The bits of [`PASS`] in the mode.
    pass: u32,
    acl: Option<Vec<u8>>,
}

impl Gate {
    fn lets_everybody_pass(&self) -> bool {
        self.pass == PASS && self.acl.is_none()
    }

    /// Whether who is let pass is let pass by the other too.
    fn is_within(&self, other: &Self) -> bool {
        let same = (self.uid, self.gid, &self.acl) == (other.uid, other.gid, &other.acl);
        match self.acl {
            None => same && self.pass & !other.pass == 0,
            Some(_) => same && self.pass == other.pass,
        }
    }
}

impl Fs {
    /// Whether only root may enter what an entry of `list`, a directory of snapshots, shows.
    ///
    /// # Errors
    /// [`FsError::Stale`] when the snapshot has been deleted; when something cannot be read.
    pub fn is_for_root_alone(&self, list: Ino, shown: Ino) -> Result<bool> {
        let (Some(directory), Some((view, base))) = (listed_by(list), shown.view()) else {
            return Ok(false);
        };
        let snapshot = self.views.snapshot(view)?;
        if snapshot.number(base)? != directory {
            return Ok(true);
        }
        let at = Some(snapshot.timestamp);
        let mut now = None;
        for (above, then) in self.above(directory, at)? {
            let then = self.gate_of(&then)?;
            if then.lets_everybody_pass() {
                continue;
            }
            let now = match &mut now {
                Some(now) => now,
                none => none.insert(self.above(directory, None)?),
            };
            let Some((_, found)) = now.iter().find(|(ino, _)| *ino == above) else {
                return Ok(true);
            };
            if !self.gate_of(found)?.is_within(&then) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The directories above another in its volume, from the nearest to the root.
    fn above(&self, directory: Ino, at: Option<Timestamp>) -> Result<Vec<(Ino, Found)>> {
        let find =
            |ino| -> Result<Found> { clone::find(&*self.store, ino, at)?.ok_or(FsError::NotFound) };
        let mut above = Vec::new();
        let mut last = directory;
        let mut parent = Ino(find(directory)?.record.parent.get());
        while parent != last {
            if above.len() == DEPTH_MAX {
                return Err(FsError::damaged(format_args!(
                    "the parents of directory {directory} form a circle"
                )));
            }
            let found = find(parent)?;
            last = parent;
            parent = Ino(found.record.parent.get());
            above.push((last, found));
        }
        Ok(above)
    }

    fn gate_of(&self, found: &Found) -> Result<Gate> {
        let record: &InodeRecord = &found.record;
        let acl = self.views.get(found.place, tag::XATTR, acl::ACCESS)?;
        Ok(Gate {
            uid: record.uid.get(),
            gid: record.gid.get(),
            pass: record.mode.get() & PASS,
            acl: acl.map(row::content).transpose()?,
        })
    }
}
