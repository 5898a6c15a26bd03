//! Operations on names and attributes, each on the file system and on the model.

use cfs_format::Ino;
use cfs_fs::{Caller, Fs, FsError, RenameFlags, SetAttr, XattrFlags};

use crate::model::{Kind, NodeId};
use crate::world::{Failure, Handle, World, accepted, ino};

/// Names in one directory.
const NAMES: u64 = 60;
const XATTRS: [&str; 4] = [
    "user.a",
    "user.b",
    "user.long-name-of-an-attribute",
    "trusted.c",
];

/// Removing works also where there is no room.
fn never_full<T>(result: Result<T, FsError>) -> Result<T, Failure> {
    match result {
        Err(FsError::NoSpace) => Err(Failure::Wrong(
            "removing was refused for want of room".to_owned(),
        )),
        other => Ok(other?),
    }
}

impl World {
    pub fn new_path(&mut self) -> String {
        let directories = self.model.directories();
        loop {
            let directory = &directories[self.rng.below(directories.len() as u64) as usize];
            let name = format!("n{}", self.rng.below(NAMES));
            let path = match directory.is_empty() {
                true => name,
                false => format!("{directory}/{name}"),
            };
            if !self.model.names().contains_key(&path) {
                return path;
            }
        }
    }

    pub fn any_file(&mut self) -> Option<(String, NodeId)> {
        let mut files = self.model.files();
        if files.is_empty() {
            return None;
        }
        let path = files.swap_remove(self.rng.below(files.len() as u64) as usize);
        let node = self.model.node(&path);
        Some((path, node))
    }

    fn any_name(&mut self) -> Option<String> {
        let count = self.model.names().len() as u64;
        if count == 0 {
            return None;
        }
        let index = self.rng.below(count) as usize;
        self.model.names().keys().nth(index).cloned()
    }

    pub fn parent(&self, fs: &Fs, path: &str) -> Result<(Ino, String), Failure> {
        match path.rsplit_once('/') {
            None => Ok((Ino::ROOT, path.to_owned())),
            Some((directory, name)) => Ok((ino(fs, directory)?, name.to_owned())),
        }
    }

    pub fn create(&mut self, fs: &Fs) -> Result<(), Failure> {
        self.create_one(fs).map(drop)
    }

    /// Makes a file, and tells its path.
    pub fn create_one(&mut self, fs: &Fs) -> Result<String, Failure> {
        let path = self.new_path();
        self.trace(|| format!("create {path}"));
        let (parent, name) = self.parent(fs, &path)?;
        let made = fs.create(parent, name.as_bytes(), 0o644, &Caller::default())?;
        self.model.add(&path, Kind::File, 0o644);
        if self.rng.one_in(8) {
            fs.open(made.ino)?;
            let node = self.model.node(&path);
            self.handles.push(Handle {
                ino: made.ino,
                node,
            });
        }
        Ok(path)
    }

    pub fn mkdir(&mut self, fs: &Fs) -> Result<(), Failure> {
        let path = self.new_path();
        self.trace(|| format!("mkdir {path}"));
        let (parent, name) = self.parent(fs, &path)?;
        fs.mkdir(parent, name.as_bytes(), 0o755, &Caller::default())?;
        self.model.add(&path, Kind::Directory, 0o755);
        Ok(())
    }

    /// A symbolic link or a named pipe.
    pub fn make_special(&mut self, fs: &Fs) -> Result<(), Failure> {
        let path = self.new_path();
        let (parent, name) = self.parent(fs, &path)?;
        if self.rng.one_in(3) {
            self.trace(|| format!("mkfifo {path}"));
            let mode = libc::S_IFIFO | 0o600;
            fs.mknod(parent, name.as_bytes(), mode, 0, &Caller::default())?;
            self.model.add(&path, Kind::Fifo, 0o600);
            return Ok(());
        }
        let target = format!(
            "../{name}/elsewhere{}",
            "/further".repeat(self.rng.below(40) as usize)
        );
        self.trace(|| format!("symlink {path}"));
        fs.symlink(
            parent,
            name.as_bytes(),
            target.as_bytes(),
            &Caller::default(),
        )?;
        self.model.add(&path, Kind::Symlink(target), 0o777);
        Ok(())
    }

    pub fn remove(&mut self, fs: &Fs) -> Result<(), Failure> {
        let Some(path) = self.any_name() else {
            return Ok(());
        };
        self.remove_path(fs, &path)
    }

    fn remove_path(&mut self, fs: &Fs, path: &str) -> Result<(), Failure> {
        self.trace(|| format!("remove {path}"));
        let (parent, name) = self.parent(fs, path)?;
        if self.model.is_volume(path) {
            return match fs.rmdir(parent, name.as_bytes()) {
                Err(FsError::Volume) => Ok(()),
                Err(error) => Err(error.into()),
                Ok(()) => Err(Failure::Wrong(format!("volume {path} was removed"))),
            };
        }
        if self.model.is_directory(path) {
            let full = self.model.has_children(path);
            match fs.rmdir(parent, name.as_bytes()) {
                Err(FsError::NotEmpty) if full => return Ok(()),
                Ok(()) if full => {
                    let text = format!("{path} was removed although not empty");
                    return Err(Failure::Wrong(text));
                }
                other => never_full(other)?,
            }
        } else {
            never_full(fs.unlink(parent, name.as_bytes()))?;
        }
        self.model.remove(path);
        Ok(())
    }

    /// Removes a large part of all files at once.
    pub fn remove_many(&mut self, fs: &Fs) -> Result<(), Failure> {
        if !self.rng.one_in(3) {
            return Ok(());
        }
        for path in self.model.files() {
            if self.rng.one_in(2) {
                self.remove_path(fs, &path)?;
            }
        }
        Ok(())
    }

    /// Two names, the second new or not, of which neither is in the other.
    fn two_names(&mut self, new: bool) -> Option<(String, String)> {
        let from = self.any_name()?;
        let to = match new {
            true => self.new_path(),
            false => self.any_name()?,
        };
        let inside = to == from
            || to.starts_with(&format!("{from}/"))
            || from.starts_with(&format!("{to}/"));
        (!inside).then_some((from, to))
    }

    pub fn rename(&mut self, fs: &Fs) -> Result<(), Failure> {
        let new = self.rng.one_in(2);
        let Some((from, to)) = self.two_names(new) else {
            return Ok(());
        };
        let no_replace = self.rng.one_in(4);
        self.rename_path(fs, &from, &to, no_replace)
    }

    pub fn rename_path(
        &mut self,
        fs: &Fs,
        from: &str,
        to: &str,
        no_replace: bool,
    ) -> Result<(), Failure> {
        self.trace(|| format!("rename {from} to {to}, no_replace {no_replace}"));
        let exists = self.model.names().contains_key(to);
        let (from_is_directory, to_is_directory) = (
            self.model.is_directory(from),
            exists && self.model.is_directory(to),
        );
        let in_one_volume = self.model.in_one_volume(from, to);
        let same_node = exists && self.model.node(from) == self.model.node(to);
        let refusal = match exists {
            _ if !in_one_volume => Some(libc::EXDEV),
            true if no_replace => Some(libc::EEXIST),
            true if same_node => None,
            true if from_is_directory && !to_is_directory => Some(libc::ENOTDIR),
            true if !from_is_directory && to_is_directory => Some(libc::EISDIR),
            true if self.model.is_volume(to) => Some(libc::EBUSY),
            true if to_is_directory && self.model.has_children(to) => Some(libc::ENOTEMPTY),
            _ => None,
        };
        let (parent, name) = self.parent(fs, from)?;
        let (new_parent, new_name) = self.parent(fs, to)?;
        let flags = RenameFlags {
            no_replace,
            ..RenameFlags::default()
        };
        let renamed = fs.rename(
            parent,
            name.as_bytes(),
            new_parent,
            new_name.as_bytes(),
            flags,
        );
        match (&renamed, refusal) {
            (Err(error), Some(errno)) if error.errno() == errno => return Ok(()),
            (Ok(()), Some(errno)) => {
                let text = format!("renaming {from} to {to} should end with errno {errno}");
                return Err(Failure::Wrong(text));
            }
            _ => renamed?,
        }
        if same_node {
            return Ok(());
        }
        // What takes a file's name is in the log before.
        if exists && *self.model.kind(to) == Kind::File && *self.model.kind(from) == Kind::File {
            let node = self.model.node(from);
            self.model.note_logged(node);
        }
        self.model.rename(from, to);
        Ok(())
    }

    pub fn exchange(&mut self, fs: &Fs) -> Result<(), Failure> {
        let Some((one, other)) = self.two_names(false) else {
            return Ok(());
        };
        self.trace(|| format!("exchange {one} and {other}"));
        let (parent, name) = self.parent(fs, &one)?;
        let (new_parent, new_name) = self.parent(fs, &other)?;
        let flags = RenameFlags {
            exchange: true,
            ..RenameFlags::default()
        };
        let renamed = fs.rename(
            parent,
            name.as_bytes(),
            new_parent,
            new_name.as_bytes(),
            flags,
        );
        if !self.model.in_one_volume(&one, &other) {
            return match renamed {
                Err(FsError::CrossVolume) => Ok(()),
                Err(error) => Err(error.into()),
                Ok(()) => Err(Failure::Wrong("swapped across volumes".to_owned())),
            };
        }
        renamed?;
        if self.model.node(&one) != self.model.node(&other) {
            self.model.exchange(&one, &other);
        }
        Ok(())
    }

    pub fn link(&mut self, fs: &Fs) -> Result<(), Failure> {
        let Some((from, node)) = self.any_file() else {
            return Ok(());
        };
        let to = self.new_path();
        self.trace(|| format!("link {from} to {to}"));
        let (new_parent, new_name) = self.parent(fs, &to)?;
        let linked = fs.link(ino(fs, &from)?, new_parent, new_name.as_bytes());
        if !self.model.in_one_volume(&from, &to) {
            return match linked {
                Err(FsError::CrossVolume) => Ok(()),
                Err(error) => Err(error.into()),
                Ok(_) => Err(Failure::Wrong("linked across volumes".to_owned())),
            };
        }
        linked?;
        self.model.note_logged(node);
        self.model.link(&from, &to);
        Ok(())
    }

    pub fn chmod(&mut self, fs: &Fs) -> Result<(), Failure> {
        let Some(path) = self.any_name() else {
            return Ok(());
        };
        if matches!(self.model.kind(&path), Kind::Symlink(_)) {
            return Ok(());
        }
        let mode = self.rng.below(0o1000) as u32;
        self.trace(|| format!("chmod {path} {mode:o}"));
        let set = SetAttr {
            mode: Some(mode),
            ..SetAttr::default()
        };
        fs.setattr(ino(fs, &path)?, &set)?;
        self.model
            .change_attributes(&path, |attributes| attributes.mode = mode);
        Ok(())
    }

    /// Sets or removes an extended attribute.
    pub fn change_xattr(&mut self, fs: &Fs) -> Result<(), Failure> {
        let Some(path) = self.any_name() else {
            return Ok(());
        };
        if !matches!(self.model.kind(&path), Kind::File | Kind::Directory) {
            return Ok(());
        }
        let name = XATTRS[self.rng.below(XATTRS.len() as u64) as usize];
        let there = self.model.attributes(&path).xattrs.contains_key(name);
        let ino = ino(fs, &path)?;
        if there && self.rng.one_in(2) {
            self.trace(|| format!("removexattr {path} {name}"));
            let removed = fs.removexattr(ino, name.as_bytes());
            never_full(removed)?;
            self.model.change_attributes(&path, |attributes| {
                attributes.xattrs.remove(name);
            });
            return Ok(());
        }
        let value = self.bytes_below(3000);
        self.trace(|| format!("setxattr {path} {name}, {} bytes", value.len()));
        fs.setxattr(ino, name.as_bytes(), &value, XattrFlags::default())?;
        self.model.change_attributes(&path, |attributes| {
            attributes.xattrs.insert(name.to_owned(), value);
        });
        Ok(())
    }

    fn bytes_below(&mut self, max: u64) -> Vec<u8> {
        let len = self.rng.length(max);
        self.bytes(len)
    }

    /// Opens a file, or ends the life of one that is open.
    pub fn open_or_release(&mut self, fs: &Fs) -> Result<(), Failure> {
        if !self.handles.is_empty() && self.rng.one_in(2) {
            let index = self.rng.below(self.handles.len() as u64) as usize;
            let handle = self.handles.swap_remove(index);
            self.trace(|| format!("release inode {}", handle.ino));
            accepted(fs.release(handle.ino))?;
            return Ok(());
        }
        let Some((path, node)) = self.any_file() else {
            return Ok(());
        };
        self.trace(|| format!("open {path}"));
        let ino = ino(fs, &path)?;
        fs.open(ino)?;
        self.handles.push(Handle { ino, node });
        Ok(())
    }
}
