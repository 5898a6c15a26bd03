//! Applying an arrangement of names: what front ends that keep versions of objects do in one step.

use cfs_format::Ino;
use cfs_format::table::{InodeRecord, inode_flag};
use cfs_store::Txn;

use super::Outcome;
use super::make::{live_directory, orphan_key, touch_entries};
use super::publish::{check_records, put_records};
use super::remove::{lose_name, target_record};
use crate::command::Arrange;
use crate::directory::{self, Target};
use crate::error::{FsError, Result};
use crate::types::Time;
use crate::{inode, lock};

/// Names to move at most.
const MOVES_MAX: usize = 8;

/// The directories of a command, each loaded once, so that a change of one is not lost under another.
struct Directories(Vec<(Ino, InodeRecord)>);

impl Directories {
    fn load(&mut self, txn: &Txn<'_>, ino: Ino) -> Result<()> {
        if !self.0.iter().any(|(known, _)| *known == ino) {
            self.0.push((ino, live_directory(txn, ino)?));
        }
        Ok(())
    }

    fn of(&mut self, ino: Ino) -> &mut InodeRecord {
        let found = self.0.iter_mut().find(|(known, _)| *known == ino);
        &mut found.expect("all were loaded").1
    }

    fn put(mut self, txn: &mut Txn<'_>, now: Time) {
        for (ino, record) in &mut self.0 {
            touch_entries(record, now);
            inode::put(txn, *ino, record);
        }
    }
}

/// The regular file with this name.
fn file(txn: &Txn<'_>, parent: Ino, name: &[u8]) -> Result<(Ino, InodeRecord)> {
    let entry = directory::find(txn, parent, name)?.ok_or(FsError::NotFound)?;
    let ino = Ino(entry.ino.get());
    let record = target_record(txn, ino)?;
    match inode::kind(&record) {
        libc::S_IFREG => Ok((ino, record)),
        libc::S_IFDIR => Err(FsError::IsDirectory),
        _ => Err(FsError::NotPermitted),
    }
}

fn check(txn: &Txn<'_>, command: &Arrange) -> Result<Directories> {
    let mut directories = Directories(Vec::new());
    if command.moves.len() > MOVES_MAX {
        return Err(FsError::Invalid);
    }
    let is_removed = |parent: Ino, name: &Vec<u8>| {
        let removed = command.remove.as_ref();
        removed.is_some_and(|(directory, taken)| (*directory, taken) == (parent, name))
    };
    let is_left = |parent: Ino, name: &Vec<u8>| {
        let mut moves = command.moves.iter();
        moves.any(|(directory, old, ..)| (*directory, old) == (parent, name))
    };
    let is_free = |parent: Ino, name: &Vec<u8>, is_taken: bool| -> Result<()> {
        directory::check_name(name)?;
        match directory::find(txn, parent, name)? {
            Some(_) if !is_taken => Err(FsError::Exists),
            _ => Ok(()),
        }
    };
    let mut taken = Vec::new();
    let mut given = Vec::new();
    if let Some((parent, name)) = &command.remove {
        directories.load(txn, *parent)?;
        let (ino, record) = file(txn, *parent, name)?;
        lock::check_bypassing(txn, ino, &record, command.bypass)?;
        taken.push((*parent, name));
    }
    for (parent, name, new_parent, new_name) in &command.moves {
        directories.load(txn, *parent)?;
        directories.load(txn, *new_parent)?;
        file(txn, *parent, name)?;
        is_free(*new_parent, new_name, is_removed(*new_parent, new_name))?;
        taken.push((*parent, name));
        given.push((*new_parent, new_name));
    }
    if let Some(publish) = &command.publish {
        let record = inode::get(txn, publish.ino)?;
        if inode::kind(&record) != libc::S_IFREG || record.nlink.get() != 0 {
            return Err(FsError::Invalid);
        }
        directories.load(txn, publish.parent)?;
        if record.volume != directories.of(publish.parent).volume {
            return Err(FsError::CrossVolume);
        }
        let (parent, name) = (publish.parent, &publish.name);
        is_free(
            parent,
            name,
            is_removed(parent, name) || is_left(parent, name),
        )?;
        check_records(&publish.records)?;
        given.push((publish.parent, &publish.name));
    }
    // One step for each name: none is taken or given twice.
    for names in [&mut taken, &mut given] {
        names.sort();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(FsError::Invalid);
        }
    }
    let volume = directories.0.first().map(|(_, record)| record.volume);
    let is_elsewhere = |(_, record): &(Ino, InodeRecord)| Some(record.volume) != volume;
    if directories.0.iter().any(is_elsewhere) {
        return Err(FsError::CrossVolume);
    }
    Ok(directories)
}

/// What is moved is the same object as before, so that its times stay.
pub(super) fn arrange(txn: &mut Txn<'_>, command: &Arrange) -> Result<Outcome> {
    let mut directories = check(txn, command)?;
    let entry_of = |txn: &Txn<'_>, parent: Ino, name: &[u8]| -> Result<_> {
        directory::find(txn, parent, name)?.ok_or(FsError::NotFound)
    };
    let mut outcome = Outcome::default();
    if let Some((parent, name)) = &command.remove {
        let entry = entry_of(txn, *parent, name)?;
        let (ino, mut record) = file(txn, *parent, name)?;
        directory::remove(txn, *parent, directories.of(*parent), name, &entry);
        outcome.lost = lose_name(txn, ino, &mut record, command.keep, command.now)?;
        outcome.inode = Some((ino, record));
    }
    for (parent, name, new_parent, new_name) in &command.moves {
        let entry = entry_of(txn, *parent, name)?;
        let ino = Ino(entry.ino.get());
        directory::remove(txn, *parent, directories.of(*parent), name, &entry);
        let target = Target {
            ino,
            kind: libc::S_IFREG,
        };
        directory::insert(
            txn,
            *new_parent,
            directories.of(*new_parent),
            new_name,
            target,
        );
    }
    if let Some(publish) = &command.publish {
        let mut record = inode::get(txn, publish.ino)?;
        let target = Target {
            ino: publish.ino,
            kind: libc::S_IFREG,
        };
        let parent = directories.of(publish.parent);
        directory::insert(txn, publish.parent, parent, &publish.name, target);
        put_records(txn, publish.ino, &mut record, &publish.records);
        if publish.describes {
            record.flags |= inode_flag::DESCRIBED;
        }
        txn.delete(orphan_key(publish.ino));
        record.nlink = 1.into();
        record.mtime = command.now.into();
        record.ctime = command.now.into();
        inode::put(txn, publish.ino, &mut record);
    }
    directories.put(txn, command.now);
    Ok(outcome)
}
