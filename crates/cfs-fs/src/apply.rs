//! Applying commands to the tables. Deterministic: the tables and the command in, changed rows out.
//!
//! Each function validates everything first and writes afterwards, so that a refused command leaves its transaction
//! as it was. Rows are read as the transaction sees them; ranges show committed rows only, so no command ranges over
//! rows that it has written itself. At the end of each, what it replaces and a snapshot still sees is kept.

mod arrange;
mod attributes;
mod clones;
pub(crate) mod data;
mod locks;
pub(crate) mod make;
mod publish;
mod remove;
mod rename;
mod restore;
mod snapshots;
mod volumes;

use cfs_format::Ino;
use cfs_format::table::InodeRecord;
use cfs_store::Txn;

use crate::command::Command;
use crate::error::Result;
use crate::history;

pub(crate) use restore::is_brought;
pub(crate) use snapshots::split_prune_key;

/// Extents that removing a name frees at once; a file with more is left to the reaper.
pub(crate) const EXTENTS_WITH_UNLINK_MAX: u32 = 64;

/// What became of an inode that lost its last name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// It is gone.
    Removed(Ino),
    /// It is kept as an orphan: open, or with much to free.
    Orphaned(Ino),
}

/// What a command did that the operation wants to know.
#[derive(Default)]
pub(crate) struct Outcome {
    /// The inode that it was about, as it is now.
    pub inode: Option<(Ino, InodeRecord)>,
    /// The inode that lost its last name by it.
    pub lost: Option<Lost>,
}

impl Outcome {
    fn of(ino: Ino, record: InodeRecord) -> Self {
        Self {
            inode: Some((ino, record)),
            lost: None,
        }
    }
}

/// Applies a command.
///
/// # Errors
/// What the command's kind refuses. The transaction must then be dropped if the cause is [`crate::FsError::Read`].
pub(crate) fn apply(txn: &mut Txn<'_>, command: &Command) -> Result<Outcome> {
    let outcome = change(txn, command)?;
    history::keep(txn)?;
    Ok(outcome)
}

fn change(txn: &mut Txn<'_>, command: &Command) -> Result<Outcome> {
    match command {
        Command::Format(format) => make::format(txn, format),
        Command::Make(command) => make::make(txn, command),
        Command::MakeUnnamed(command) => make::make_unnamed(txn, command),
        Command::Link(command) => make::link(txn, command),
        Command::Unlink(command) => remove::unlink(txn, command),
        Command::RemoveDirectory(command) => remove::remove_directory(txn, command),
        Command::Rename(command) => rename::rename(txn, command),
        Command::RenameWhiteout(command) => rename::rename_leaving_whiteout(txn, command),
        Command::SetAttributes(command) => attributes::set(txn, command),
        Command::SetXattr(command) => crate::xattr::set(txn, command),
        Command::RemoveXattr(command) => crate::xattr::remove(txn, command),
        Command::TouchTimes(times) => attributes::touch(txn, times),
        Command::Reap(command) => remove::reap(txn, command),
        Command::Write(command) => data::write(txn, command).map(|()| Outcome::default()),
        Command::Punch(command) => data::punch(txn, command).map(|()| Outcome::default()),
        Command::Shift(command) => data::shift(txn, command).map(|()| Outcome::default()),
        Command::CloneRange(command) => {
            data::clone_range(txn, command).map(|()| Outcome::default())
        }
        Command::Publish(command) => publish::publish(txn, command),
        Command::SetRecords(command) => publish::set_records(txn, command),
        Command::SetLock(command) => locks::set(txn, command),
        Command::Arrange(command) => arrange::arrange(txn, command),
        Command::Rechunk(command) => data::rechunk(txn, command).map(|()| Outcome::default()),
        Command::SnapshotCreate(command) => {
            snapshots::create(txn, command).map(|()| Outcome::default())
        }
        Command::SnapshotDelete(command) => {
            snapshots::delete(txn, command).map(|()| Outcome::default())
        }
        Command::SnapshotHold(command) => {
            snapshots::hold(txn, command).map(|()| Outcome::default())
        }
        Command::Restore(command) => restore::restore(txn, command),
        Command::Prune(command) => snapshots::prune(txn, command).map(|()| Outcome::default()),
        Command::VolumeCreate(command) => volumes::create(txn, command),
        Command::DomainCreate(command) => volumes::create_domain(txn, command),
        Command::MakeRecorded(command) => volumes::create_recorded(txn, command),
        Command::VolumeQuota(command) => {
            volumes::set_quota(txn, command).map(|()| Outcome::default())
        }
        Command::VolumeDelete(command) => {
            volumes::delete(txn, command).map(|()| Outcome::default())
        }
        Command::CloneCreate(command) => clones::create(txn, command),
        Command::CopyUp(command) => clones::copy_up(txn, command).map(|()| Outcome::default()),
        Command::Sweep(command) => clones::sweep(txn, command).map(|()| Outcome::default()),
    }
}
