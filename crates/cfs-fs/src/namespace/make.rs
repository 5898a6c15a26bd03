//! Making inodes and names.

use cfs_format::Ino;
use cfs_store::Txn;

use super::remove::{Nameless, Removal};
use super::volumes::Recorded;
use crate::apply::{Lost, Outcome};
use crate::command::{
    Command, Link, MadeDirectory, Make, MakeRecorded, MakeUnnamed, Rename, RenameWhiteout,
};
use crate::error::{FsError, Result};
use crate::escaped::{self, Renamed};
use crate::types::{Attr, Caller, RenameFlags, Room};
use crate::{Fs, inode};

/// The names of a rename, each with its directory.
#[derive(Clone, Copy)]
struct Names<'a> {
    parent: Ino,
    name: &'a [u8],
    new_parent: Ino,
    new_name: &'a [u8],
}

impl Fs {
    /// Makes an empty regular file. `mode` is taken without the umask, which is the caller's.
    ///
    /// # Errors
    /// [`FsError::Exists`], [`FsError::NotFound`] (the directory), [`FsError::NotDirectory`],
    /// [`FsError::NameTooLong`], [`FsError::NoSpace`]; [`FsError::Reserved`] and [`FsError::ObjectExists`], as with all names
    /// that are made for a mount (see [`crate::escaped`]).
    pub fn create(&self, parent: Ino, name: &[u8], mode: u32, caller: &Caller) -> Result<Attr> {
        self.make(
            parent,
            name,
            libc::S_IFREG | (mode & 0o7777),
            0,
            &[],
            caller,
        )
    }

    /// Makes a regular file, device node, FIFO or socket, by the type bits of `mode` (none: a regular file).
    ///
    /// # Errors
    /// As [`Fs::create`]; [`FsError::Invalid`] for other types.
    pub fn mknod(
        &self,
        parent: Ino,
        name: &[u8],
        mode: u32,
        rdev: u64,
        caller: &Caller,
    ) -> Result<Attr> {
        let permissions = mode & 0o7777;
        match mode & libc::S_IFMT {
            0 | libc::S_IFREG => self.create(parent, name, mode, caller),
            kind @ (libc::S_IFCHR | libc::S_IFBLK) => {
                self.make(parent, name, kind | permissions, rdev, &[], caller)
            }
            kind @ (libc::S_IFIFO | libc::S_IFSOCK) => {
                self.make(parent, name, kind | permissions, 0, &[], caller)
            }
            _ => Err(FsError::Invalid),
        }
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// As [`Fs::create`]; [`FsError::TooManyLinks`].
    pub fn mkdir(&self, parent: Ino, name: &[u8], mode: u32, caller: &Caller) -> Result<Attr> {
        self.make(
            parent,
            name,
            libc::S_IFDIR | (mode & 0o7777),
            0,
            &[],
            caller,
        )
    }

    /// Makes a directory that has records (see [`Fs::set_records`]): both or neither, whatever happens. Durable
    /// after [`cfs_store::Store::sync`].
    ///
    /// # Errors
    /// As [`Fs::mkdir`] and [`Fs::set_records`]. Nothing changed then.
    pub fn mkdir_recorded(
        &self,
        parent: Ino,
        name: &[u8],
        mode: u32,
        caller: &Caller,
        how: &Recorded<'_>,
    ) -> Result<Attr> {
        let _reservation = self.admit_growth(how.bytes())?;
        let what = (libc::S_IFDIR | (mode & 0o7777), 0, &[][..]);
        self.make_admitted(parent, name, what, caller, Room::Free, |txn, made| {
            escaped::check_new(txn, parent, name, libc::S_IFDIR)?;
            Ok(Command::MakeRecorded(MakeRecorded {
                made: MadeDirectory::Plain(made),
                put: how.records.to_vec(),
                stays: how.stays,
            }))
        })
    }

    /// Makes a directory for the S3 face, also under a name that others may not make (see [`crate::escaped`]). It may be part
    /// of a deletion.
    ///
    /// # Errors
    /// As [`Fs::create`], but for [`FsError::Reserved`] and [`FsError::ObjectExists`]; [`FsError::TooManyLinks`].
    pub fn mkdir_reserved(
        &self,
        parent: Ino,
        name: &[u8],
        mode: u32,
        caller: &Caller,
        room: Room,
    ) -> Result<Attr> {
        let _reservation = self.admit_change(0, room)?;
        let mode = libc::S_IFDIR | (mode & 0o7777);
        self.make_admitted(parent, name, (mode, 0, &[]), caller, room, |_, made| {
            Ok(Command::Make(made))
        })
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// As [`Fs::create`]; [`FsError::NameTooLong`] also for a target of more than 4095 bytes; [`FsError::NotFound`]
    /// for an empty one.
    pub fn symlink(
        &self,
        parent: Ino,
        name: &[u8],
        target: &[u8],
        caller: &Caller,
    ) -> Result<Attr> {
        if target.is_empty() {
            return Err(FsError::NotFound);
        }
        self.make(parent, name, libc::S_IFLNK | 0o777, 0, target, caller)
    }

    /// Makes a regular file without a name (`O_TMPFILE`). It counts as opened once, which [`Fs::release`] ends, and is
    /// held once, which [`Fs::end_hold`] ends; with both it goes, unless [`Fs::link`] has given it a name.
    ///
    /// # Errors
    /// [`FsError::NotFound`] (the directory), [`FsError::NotDirectory`], [`FsError::NoSpace`].
    pub fn tmpfile_and_hold(&self, parent: Ino, mode: u32, caller: &Caller) -> Result<Attr> {
        self.tmpfile_and_hold_with(parent, mode, caller, Room::Free)
    }

    /// As [`Fs::tmpfile_and_hold`], for a file that may be part of a deletion.
    ///
    /// # Errors
    /// As [`Fs::tmpfile_and_hold`].
    pub fn tmpfile_and_hold_with(
        &self,
        parent: Ino,
        mode: u32,
        caller: &Caller,
        room: Room,
    ) -> Result<Attr> {
        let _reservation = self.admit_change(0, room)?;
        let ino = self.new_ino(parent)?;
        let salt = self.salt();
        self.opens.add_new(ino);
        self.opens.add(ino).expect("counted just above");
        let outcome = self.execute_in(room, |_, now| {
            Ok(Command::MakeUnnamed(MakeUnnamed {
                parent,
                ino,
                mode,
                uid: caller.uid,
                gid: caller.gid,
                umask: caller.umask,
                now,
                salt,
            }))
        });
        if outcome.is_err() {
            self.opens.release(ino);
            self.opens.release(ino);
        }
        self.attr_of(outcome?)
    }

    fn make(
        &self,
        parent: Ino,
        name: &[u8],
        mode: u32,
        rdev: u64,
        target: &[u8],
        caller: &Caller,
    ) -> Result<Attr> {
        let _reservation = self.admit_growth(target.len())?;
        let kind = mode & libc::S_IFMT;
        let what = (mode, rdev, target);
        self.make_admitted(parent, name, what, caller, Room::Free, |txn, made| {
            escaped::check_new(txn, parent, name, kind)?;
            Ok(Command::Make(made))
        })
    }

    fn make_admitted(
        &self,
        parent: Ino,
        name: &[u8],
        (mode, rdev, target): (u32, u64, &[u8]),
        caller: &Caller,
        room: Room,
        command: impl Fn(&Txn<'_>, Make) -> Result<Command>,
    ) -> Result<Attr> {
        crate::directory::check_reserved(name)?;
        let ino = self.new_ino(parent)?;
        let salt = self.salt();
        let outcome = self.execute_in(room, |txn, now| {
            let make = Make {
                parent,
                name: name.to_vec(),
                ino,
                mode,
                rdev,
                uid: caller.uid,
                gid: caller.gid,
                umask: caller.umask,
                target: target.to_vec(),
                now,
                salt,
            };
            command(txn, make)
        })?;
        self.attr_of(outcome)
    }

    /// Gives an inode one more name. Data of the file that are still in memory are written first.
    ///
    /// # Errors
    /// [`FsError::NotPermitted`] for a directory; [`FsError::Exists`], [`FsError::NotFound`],
    /// [`FsError::NotDirectory`], [`FsError::TooManyLinks`], [`FsError::NameTooLong`], [`FsError::NoSpace`];
    /// [`FsError::Reserved`], [`FsError::ObjectExists`].
    pub fn link(&self, ino: Ino, new_parent: Ino, new_name: &[u8]) -> Result<Attr> {
        self.link_checked(ino, new_parent, new_name, |txn, kind| {
            escaped::check_new(txn, new_parent, new_name, kind)
        })
    }

    /// As [`Fs::link`], for what brings names back as they were, whatever they stand for.
    ///
    /// # Errors
    /// As [`Fs::link`], but for [`FsError::Reserved`] and [`FsError::ObjectExists`].
    pub(crate) fn link_again(&self, ino: Ino, new_parent: Ino, new_name: &[u8]) -> Result<Attr> {
        self.link_checked(ino, new_parent, new_name, |_, _| Ok(()))
    }

    fn link_checked(
        &self,
        ino: Ino,
        new_parent: Ino,
        new_name: &[u8],
        check: impl Fn(&Txn<'_>, u32) -> Result<()>,
    ) -> Result<Attr> {
        crate::directory::check_reserved(new_name)?;
        let _reservation = self.admit_growth(0)?;
        self.files.flush(ino)?;
        let outcome = self.execute(|txn, now| {
            let record = inode::get(txn, ino)?;
            if record.nlink.get() == 0 && !self.opens.is_open(ino) {
                return Err(FsError::NotFound);
            }
            check(txn, inode::kind(&record))?;
            Ok(Command::Link(Link {
                ino,
                parent: new_parent,
                name: new_name.to_vec(),
                now,
            }))
        })?;
        self.attr_of(outcome)
    }

    /// Moves a name, replacing what has the new name if the kinds agree, or swaps two names. If a name is replaced,
    /// the data of the file that takes it are written first, so that it is never empty after a crash.
    ///
    /// # Errors
    /// [`FsError::NotFound`]; [`FsError::Exists`] (`no_replace`); [`FsError::NotEmpty`], [`FsError::IsDirectory`],
    /// [`FsError::NotDirectory`] for what cannot be replaced; [`FsError::Invalid`] for a directory moved into itself;
    /// [`FsError::TooManyLinks`], [`FsError::NameTooLong`], [`FsError::CrossVolume`], [`FsError::NoSpace`].
    pub fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<()> {
        let names = Names {
            parent,
            name,
            new_parent,
            new_name,
        };
        self.rename_with(&names, flags, None, Nameless::Goes)
            .map(drop)
    }

    /// As [`Fs::rename`], and [`Fs::unlink_and_hold`] for what is replaced; for a mount, which may not make every name.
    ///
    /// # Errors
    /// As [`Fs::rename`]; [`FsError::Reserved`], [`FsError::ObjectExists`].
    pub fn rename_and_hold(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<Option<Ino>> {
        let names = Names {
            parent,
            name,
            new_parent,
            new_name,
        };
        self.rename_with(&names, flags, None, Nameless::IsHeld)
    }

    /// As [`Fs::rename_and_hold`], and in the same step leaves a whiteout under the old name, which is the caller's: a
    /// character device 0/0.
    ///
    /// # Errors
    /// As [`Fs::rename`]; [`FsError::Invalid`] for an exchange.
    pub fn rename_leaving_whiteout(
        &self,
        (parent, name): (Ino, &[u8]),
        (new_parent, new_name): (Ino, &[u8]),
        flags: RenameFlags,
        caller: &Caller,
    ) -> Result<Option<Ino>> {
        let names = Names {
            parent,
            name,
            new_parent,
            new_name,
        };
        self.rename_with(&names, flags, Some(caller), Nameless::IsHeld)
    }

    fn rename_with(
        &self,
        names: &Names<'_>,
        flags: RenameFlags,
        whiteout: Option<&Caller>,
        nameless: Nameless,
    ) -> Result<Option<Ino>> {
        let Names {
            parent,
            name,
            new_parent,
            new_name,
        } = *names;
        crate::directory::check_reserved(name)?;
        crate::directory::check_reserved(new_name)?;
        let whiteout = match whiteout {
            Some(caller) => Some((caller, self.new_ino(parent)?, self.salt())),
            None => None,
        };
        let _reservation = self.admit_growth(0)?;
        #[cfg(feature = "planted-bugs")]
        let written_first =
            !cfs_format::planted::has(cfs_format::planted::Bug::RenameBeforeContent);
        #[cfg(not(feature = "planted-bugs"))]
        let written_first = true;
        if written_first
            && !flags.no_replace
            && !flags.exchange
            && let Some(target) = self.entry(new_parent, new_name)?
            && u32::from(target.kind) << 12 == libc::S_IFREG
            && let Some(source) = self.entry(parent, name)?
            && source.ino != target.ino
        {
            self.files.flush(Ino(source.ino.get()))?;
        }
        let mut removal = Removal::None;
        let outcome = self.execute(|txn, now| {
            inode::check_own(txn, parent)?;
            inode::check_own(txn, new_parent)?;
            // What is not held is renamed by what brings names back as they were, whatever they stand for.
            if nameless == Nameless::IsHeld {
                let renamed = Renamed {
                    from: (parent, name),
                    to: (new_parent, new_name),
                    exchange: flags.exchange,
                };
                escaped::check_rename(txn, renamed)?;
            }
            if !flags.exchange && !flags.no_replace {
                let source = crate::directory::find(txn, parent, name)?.map(|entry| entry.ino);
                if let Some(source) = source {
                    inode::check_own(txn, Ino(source.get()))?;
                }
                let target = crate::directory::find(txn, new_parent, new_name)?;
                if let Some(target) = target.filter(|target| Some(target.ino) != source) {
                    removal = self.begin_removal(txn, Ino(target.ino.get()), nameless)?;
                }
            }
            let rename = Rename {
                parent,
                name: name.to_vec(),
                new_parent,
                new_name: new_name.to_vec(),
                no_replace: flags.no_replace,
                exchange: flags.exchange,
                keep: removal.keeps(),
                now,
            };
            Ok(match whiteout {
                None => Command::Rename(rename),
                Some((caller, ino, salt)) => Command::RenameWhiteout(RenameWhiteout {
                    rename,
                    ino,
                    uid: caller.uid,
                    gid: caller.gid,
                    salt,
                }),
            })
        });
        self.end_removal(removal, outcome)
    }

    /// Attributes of the inode that a command was about.
    fn attr_of(&self, outcome: Outcome) -> Result<Attr> {
        let reported = outcome.inode;
        self.attr_after(reported.expect("commands that make names report their inode"))
    }

    /// Drops what is in memory of an inode that lost its last name and is not open.
    pub(super) fn after_loss(&self, lost: Option<Lost>) {
        match lost {
            Some(Lost::Removed(ino)) => self.drop_memory(ino),
            Some(Lost::Orphaned(ino)) if !self.opens.is_open(ino) => {
                self.drop_memory(ino);
                self.reaper.push(ino);
            }
            Some(Lost::Orphaned(_)) | None => {}
        }
    }

    pub(super) fn drop_memory(&self, ino: Ino) {
        self.files.forget(ino);
        self.atimes.forget(ino);
    }

    /// A number for an inode that is made in the volume of a directory.
    ///
    /// # Errors
    /// [`FsError::TooLarge`] when that is a clone, and the numbers that have room for its own are used up.
    pub(crate) fn new_ino(&self, directory: Ino) -> Result<Ino> {
        let ino = self.store.allocate_ino();
        match directory.cloned() {
            None => Ok(ino),
            Some((clone, _)) => ino.in_clone(clone).ok_or(FsError::TooLarge),
        }
    }

    pub(crate) fn salt(&self) -> [u8; 16] {
        let mut salt = [0; 16];
        self.host.fill_random(&mut salt);
        salt
    }
}
