//! Changing several names in one step.

use cfs_format::Ino;

use super::publish::same_content;
use super::remove::{Nameless, Removal};
use crate::command::{Arrange, Command, Published};
use crate::error::{FsError, Result};
use crate::types::{Attr, Room};
use crate::{Fs, directory, escaped, inode};

/// A name, and the file that it has to be the name of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Directory.
    pub parent: Ino,
    /// Name in it.
    pub name: Vec<u8>,
    /// The file.
    pub ino: Ino,
}

/// A name that becomes another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The name now.
    pub from: Named,
    /// Directory of the new name.
    pub to: Ino,
    /// The new name, which is free.
    pub name: Vec<u8>,
}

/// Changes of names that are made together or not at all, in this order.
#[derive(Clone, Debug, Default)]
pub struct Arrangement {
    /// A name that is taken. What is locked keeps it.
    pub remove: Option<Named>,
    /// Whoever asks may remove what governance protects.
    pub bypass_governance: bool,
    /// Names that are moved, at most eight, also of what is locked: who asks answers for it that it is found again.
    pub moves: Vec<Moved>,
    /// A file without a name (see [`Fs::tmpfile_and_hold`]), the name that it gets, which is free or left by a move, and its
    /// records.
    pub publish: Option<(Named, Vec<(Vec<u8>, Vec<u8>)>)>,
    /// These records describe the content of the file.
    pub describes: bool,
    /// A file that must be as it was.
    pub unchanged: Option<Attr>,
    /// Where the room for it comes from.
    pub room: Room,
}

impl Fs {
    /// Changes several names in one step. Durable after [`cfs_store::Store::sync`].
    ///
    /// # Errors
    /// [`FsError::Changed`] when a name is not that of its file any more, or the file not what it was, or when a file that stays
    /// is the object that a new name would be one of (see [`crate::escaped`]); [`FsError::Exists`] when a new one is not free;
    /// [`FsError::Locked`]; [`FsError::NotFound`] and [`FsError::NotDirectory`] for directories; [`FsError::CrossVolume`],
    /// [`FsError::NameTooLong`], [`FsError::Invalid`], [`FsError::NoSpace`].
    pub fn arrange(&self, arrangement: Arrangement) -> Result<()> {
        let records = arrangement.publish.iter().flat_map(|(_, records)| records);
        let bytes = records.map(|(name, value)| name.len() + value.len());
        // Taking names is possible on a full pool.
        let (room, _reservation) =
            match arrangement.moves.is_empty() && arrangement.publish.is_none() {
                true => (Room::Reserve, None),
                false => {
                    let room = arrangement.room;
                    (room, self.admit_change(bytes.sum(), room)?)
                }
            };
        if let Some((named, _)) = &arrangement.publish {
            self.files.flush(named.ino)?;
            self.files.settle_times(named.ino)?;
        }
        let mut removal = Removal::None;
        let outcome = self.execute_in(room, |txn, now| {
            let removed = arrangement.remove.iter().map(|named| named.parent);
            let published = arrangement.publish.iter().map(|(named, _)| named.parent);
            let moved = arrangement.moves.iter();
            let moved = moved.flat_map(|moved| [moved.from.parent, moved.to, moved.from.ino]);
            for ino in removed.chain(published).chain(moved) {
                inode::check_own(txn, ino)?;
            }
            let is_still = |named: &Named| match directory::find(txn, named.parent, &named.name)? {
                Some(entry) if Ino(entry.ino.get()) == named.ino => Ok(()),
                _ => Err(FsError::Changed),
            };
            for moved in &arrangement.moves {
                is_still(&moved.from)?;
            }
            let leaves = |parent: Ino, name: &[u8]| {
                let moved = arrangement.moves.iter().map(|moved| &moved.from);
                let mut leaving = moved.chain(&arrangement.remove);
                leaving.any(|named| named.parent == parent && named.name == name)
            };
            let moved = arrangement.moves.iter();
            let moved = moved.map(|moved| (moved.to, &moved.name));
            let published = arrangement.publish.iter();
            let published = published.map(|(named, _)| (named.parent, &named.name));
            for (parent, name) in moved.chain(published) {
                // A name that goes from one file to another was there before.
                if leaves(parent, name) {
                    continue;
                }
                let other = escaped::overtaking_file(txn, parent, name)?;
                if other.is_some_and(|(parent, other)| !leaves(parent, &other)) {
                    return Err(FsError::Changed);
                }
            }
            if let Some(attr) = &arrangement.unchanged {
                let record = inode::get(txn, attr.ino)?;
                if !same_content(&Attr::from_record(attr.ino, &record), attr) {
                    return Err(FsError::Changed);
                }
            }
            if let Some(named) = &arrangement.remove {
                is_still(named)?;
                removal = self.begin_removal(txn, named.ino, Nameless::Goes)?;
            }
            let Arrangement {
                remove,
                moves,
                publish,
                ..
            } = arrangement.clone();
            Ok(Command::Arrange(Arrange {
                remove: remove.map(|named| (named.parent, named.name)),
                keep: removal.keeps(),
                bypass: arrangement.bypass_governance,
                moves: moves
                    .into_iter()
                    .map(|moved| (moved.from.parent, moved.from.name, moved.to, moved.name))
                    .collect(),
                publish: publish.map(|(named, records)| Published {
                    ino: named.ino,
                    parent: named.parent,
                    name: named.name,
                    records,
                    describes: arrangement.describes,
                }),
                now,
            }))
        });
        self.end_removal(removal, outcome).map(drop)
    }
}
