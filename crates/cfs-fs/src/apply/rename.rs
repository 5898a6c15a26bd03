//! Applying renames (rename(2) and renameat2(2), Linux): moving a name, replacing one, swapping two.

use cfs_format::Ino;
use cfs_format::table::{DirentRecord, InodeRecord};
use cfs_store::Txn;

use super::Outcome;
use super::make::{live_directory, make, touch_entries};
use super::remove::{lose_name, target_record};
use crate::command::{Make, Rename, RenameWhiteout};
use crate::directory::{self, Target};
use crate::error::{FsError, Result};
use crate::{inode, lock};

/// Directories above another at most; more mean that parents form a circle.
const DEPTH_MAX: u32 = 1 << 20;

/// The one or two directories of a rename, each loaded once, so that a change of one is not lost under the other.
struct Parents {
    old: (Ino, InodeRecord),
    /// None when both names are in one directory.
    new: Option<(Ino, InodeRecord)>,
}

impl Parents {
    fn load(txn: &Txn<'_>, old: Ino, new: Ino) -> Result<Self> {
        let old = (old, live_directory(txn, old)?);
        let new = if new == old.0 {
            None
        } else {
            Some((new, live_directory(txn, new)?))
        };
        Ok(Self { old, new })
    }

    fn from(&mut self) -> &mut InodeRecord {
        &mut self.old.1
    }

    fn to(&mut self) -> &mut InodeRecord {
        match &mut self.new {
            Some((_, record)) => record,
            None => &mut self.old.1,
        }
    }

    fn differ(&self) -> bool {
        self.new.is_some()
    }

    fn put(mut self, txn: &mut Txn<'_>) {
        inode::put(txn, self.old.0, &mut self.old.1);
        if let Some((ino, record)) = &mut self.new {
            inode::put(txn, *ino, record);
        }
    }
}

/// A name and what it points to.
struct Named {
    entry: DirentRecord,
    ino: Ino,
    record: InodeRecord,
}

impl Named {
    fn load(txn: &Txn<'_>, entry: DirentRecord) -> Result<Self> {
        let ino = Ino(entry.ino.get());
        Ok(Self {
            entry,
            ino,
            record: target_record(txn, ino)?,
        })
    }

    fn is_directory(&self) -> bool {
        inode::is_directory(&self.record)
    }

    fn target(&self) -> Target {
        Target {
            ino: self.ino,
            kind: inode::kind(&self.record),
        }
    }
}

pub(super) fn rename(txn: &mut Txn<'_>, command: &Rename) -> Result<Outcome> {
    directory::check_name(&command.name)?;
    directory::check_name(&command.new_name)?;
    if command.no_replace && command.exchange {
        return Err(FsError::Invalid);
    }
    let mut parents = Parents::load(txn, command.parent, command.new_parent)?;
    let volume = parents.from().volume;
    if volume != parents.to().volume {
        return Err(FsError::CrossVolume);
    }
    let source = directory::find(txn, command.parent, &command.name)?.ok_or(FsError::NotFound)?;
    let source = Named::load(txn, source)?;
    let target = match directory::find(txn, command.new_parent, &command.new_name)? {
        Some(entry) => Some(Named::load(txn, entry)?),
        None => None,
    };
    if command.no_replace && target.is_some() {
        return Err(FsError::Exists);
    }
    if source.is_directory() && lies_in(txn, command.new_parent, source.ino)? {
        return Err(FsError::Invalid);
    }
    lock::check_move(txn, source.ino, &source.record)?;
    if let Some(target) = &target {
        match command.exchange {
            true => lock::check_move(txn, target.ino, &target.record)?,
            false => lock::check(txn, target.ino, &target.record)?,
        }
    }
    match target {
        Some(target) if target.ino == source.ino => Ok(Outcome::of(source.ino, source.record)),
        Some(target) if command.exchange => exchange(txn, command, parents, source, target),
        None if command.exchange => Err(FsError::NotFound),
        target => replace(txn, command, parents, source, target),
    }
}

/// A move, and a whiteout in its place. A name of the same inode as the new one stays, as always.
pub(super) fn rename_leaving_whiteout(
    txn: &mut Txn<'_>,
    command: &RenameWhiteout,
) -> Result<Outcome> {
    let moved = &command.rename;
    if moved.exchange {
        return Err(FsError::Invalid);
    }
    let outcome = rename(txn, moved)?;
    if directory::find(txn, moved.parent, &moved.name)?.is_some() {
        return Ok(outcome);
    }
    let whiteout = Make {
        parent: moved.parent,
        name: moved.name.clone(),
        ino: command.ino,
        mode: libc::S_IFCHR,
        rdev: 0,
        uid: command.uid,
        gid: command.gid,
        umask: 0,
        target: Vec::new(),
        now: moved.now,
        salt: command.salt,
    };
    // Nothing of what it refuses is left: the directory is there, and the name is valid and free.
    make(txn, &whiteout)?;
    Ok(outcome)
}

fn exchange(
    txn: &mut Txn<'_>,
    command: &Rename,
    mut parents: Parents,
    mut source: Named,
    mut target: Named,
) -> Result<Outcome> {
    if target.is_directory() && lies_in(txn, command.parent, target.ino)? {
        return Err(FsError::Invalid);
    }
    let gains = |taker: &InodeRecord, taken: &Named, given: &Named| {
        taken.is_directory() && !given.is_directory() && taker.nlink.get() >= inode::NLINK_MAX
    };
    if parents.differ()
        && (gains(parents.to(), &source, &target) || gains(parents.from(), &target, &source))
    {
        return Err(FsError::TooManyLinks);
    }

    if parents.differ() {
        if source.is_directory() {
            parents.from().nlink -= 1;
            parents.to().nlink += 1;
            source.record.parent = command.new_parent.0.into();
        }
        if target.is_directory() {
            parents.to().nlink -= 1;
            parents.from().nlink += 1;
            target.record.parent = command.parent.0.into();
        }
    }
    directory::retarget(
        txn,
        command.parent,
        &command.name,
        &source.entry,
        target.target(),
    );
    directory::retarget(
        txn,
        command.new_parent,
        &command.new_name,
        &target.entry,
        source.target(),
    );
    touch_entries(parents.from(), command.now);
    touch_entries(parents.to(), command.now);
    parents.put(txn);
    for named in [&mut source, &mut target] {
        named.record.ctime = command.now.into();
        inode::put(txn, named.ino, &mut named.record);
    }
    Ok(Outcome::of(source.ino, source.record))
}

fn replace(
    txn: &mut Txn<'_>,
    command: &Rename,
    mut parents: Parents,
    mut source: Named,
    target: Option<Named>,
) -> Result<Outcome> {
    let moves_directory = source.is_directory();
    if let Some(target) = &target {
        match (moves_directory, target.is_directory()) {
            (true, false) => return Err(FsError::NotDirectory),
            (false, true) => return Err(FsError::IsDirectory),
            _ => {}
        }
        if inode::is_junction(&target.record) {
            return Err(FsError::Volume);
        }
        if target.is_directory() && target.record.size.get() != 0 {
            return Err(FsError::NotEmpty);
        }
    } else if moves_directory && parents.differ() && parents.to().nlink.get() >= inode::NLINK_MAX {
        return Err(FsError::TooManyLinks);
    }

    directory::remove(
        txn,
        command.parent,
        parents.from(),
        &command.name,
        &source.entry,
    );
    if moves_directory {
        parents.from().nlink -= 1;
        parents.to().nlink += 1;
        source.record.parent = command.new_parent.0.into();
    }
    let lost = match target {
        Some(mut target) => {
            if target.is_directory() {
                parents.to().nlink -= 1;
            }
            let (entry, to) = (target.entry, source.target());
            directory::retarget(txn, command.new_parent, &command.new_name, &entry, to);
            lose_name(
                txn,
                target.ino,
                &mut target.record,
                command.keep,
                command.now,
            )?
        }
        None => {
            let to = source.target();
            directory::insert(txn, command.new_parent, parents.to(), &command.new_name, to);
            None
        }
    };
    touch_entries(parents.from(), command.now);
    touch_entries(parents.to(), command.now);
    parents.put(txn);
    source.record.ctime = command.now.into();
    inode::put(txn, source.ino, &mut source.record);
    Ok(Outcome {
        inode: Some((source.ino, source.record)),
        lost,
    })
}

/// Whether the directory `inner` is `outer` or lies below it.
fn lies_in(txn: &Txn<'_>, inner: Ino, outer: Ino) -> Result<bool> {
    let mut at = inner;
    for _ in 0..DEPTH_MAX {
        if at == outer {
            return Ok(true);
        }
        let above = Ino(inode::shown(txn, at)?.parent.get());
        if above == at {
            // The root of the volume.
            return Ok(false);
        }
        at = above;
    }
    Err(FsError::damaged(format_args!(
        "the parents of directory {inner} form a circle"
    )))
}
