//! A file system made of maps.

use std::collections::BTreeMap;

use cfs_format::Ino;
use cfs_fs::RenameFlags;

use super::CALLER;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    File(Vec<u8>),
    Directory(BTreeMap<String, Ino>),
    Symlink(Vec<u8>),
    Fifo,
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) content: Content,
    pub(super) permissions: u32,
    pub(super) nlink: u32,
    pub(super) opens: u32,
    pub(super) parent: Ino,
    pub(super) xattrs: BTreeMap<String, Vec<u8>>,
}

/// The file system as it should be.
pub(super) struct Model {
    pub(super) nodes: BTreeMap<Ino, Node>,
}

pub(super) type Outcome<T = ()> = Result<T, i32>;

impl Model {
    /// With nothing but the root of the volume.
    pub(super) fn new(root_ino: Ino) -> Self {
        let root = Node {
            content: Content::Directory(BTreeMap::new()),
            permissions: 0o755,
            nlink: 2,
            opens: 0,
            parent: Ino::ROOT,
            xattrs: BTreeMap::new(),
        };
        Self {
            nodes: BTreeMap::from([(root_ino, root)]),
        }
    }

    fn entries(&mut self, ino: Ino) -> Outcome<&mut BTreeMap<String, Ino>> {
        match &mut self.nodes.get_mut(&ino).ok_or(libc::ENOENT)?.content {
            Content::Directory(entries) => Ok(entries),
            _ => Err(libc::ENOTDIR),
        }
    }

    /// Entries of a directory that still has a name.
    fn live(&mut self, ino: Ino) -> Outcome<&mut BTreeMap<String, Ino>> {
        let removed = self.nodes.get(&ino).is_some_and(|node| node.nlink == 0);
        let entries = self.entries(ino)?;
        if removed {
            Err(libc::ENOENT)
        } else {
            Ok(entries)
        }
    }

    pub(super) fn is_directory(&self, ino: Ino) -> bool {
        matches!(self.nodes[&ino].content, Content::Directory(_))
    }

    pub(super) fn make(&mut self, parent: Ino, name: &str, ino: Ino, content: Content) -> Outcome {
        let entries = self.live(parent)?;
        if entries.contains_key(name) {
            return Err(libc::EEXIST);
        }
        entries.insert(name.to_owned(), ino);
        let is_directory = matches!(content, Content::Directory(_));
        let permissions = match content {
            Content::Symlink(_) => 0o777,
            _ => 0o777 & !CALLER.umask,
        };
        if is_directory {
            self.node(parent).nlink += 1;
        }
        let node = Node {
            content,
            permissions,
            nlink: if is_directory { 2 } else { 1 },
            opens: 0,
            parent: if is_directory { parent } else { Ino(0) },
            xattrs: BTreeMap::new(),
        };
        self.nodes.insert(ino, node);
        Ok(())
    }

    pub(super) fn node(&mut self, ino: Ino) -> &mut Node {
        self.nodes.get_mut(&ino).expect("the model knows the inode")
    }

    fn lose_name(&mut self, ino: Ino) {
        let is_directory = self.is_directory(ino);
        let node = self.node(ino);
        node.nlink = if is_directory { 0 } else { node.nlink - 1 };
        self.bury(ino);
    }

    pub(super) fn bury(&mut self, ino: Ino) {
        let node = &self.nodes[&ino];
        if node.nlink == 0 && node.opens == 0 {
            self.nodes.remove(&ino);
        }
    }

    pub(super) fn link(&mut self, ino: Ino, parent: Ino, name: &str) -> Outcome {
        let node = self.nodes.get(&ino).ok_or(libc::ENOENT)?;
        let (is_directory, nlink) = (self.is_directory(ino), node.nlink);
        assert!(is_directory || nlink > 0 || node.opens > 0);
        let entries = self.live(parent)?;
        if is_directory {
            return Err(libc::EPERM);
        }
        if entries.contains_key(name) {
            return Err(libc::EEXIST);
        }
        entries.insert(name.to_owned(), ino);
        self.node(ino).nlink += 1;
        Ok(())
    }

    pub(super) fn unlink(&mut self, parent: Ino, name: &str) -> Outcome {
        let ino = *self.live(parent)?.get(name).ok_or(libc::ENOENT)?;
        if self.is_directory(ino) {
            return Err(libc::EISDIR);
        }
        self.entries(parent)?.remove(name);
        self.lose_name(ino);
        Ok(())
    }

    pub(super) fn rmdir(&mut self, parent: Ino, name: &str) -> Outcome {
        let ino = *self.live(parent)?.get(name).ok_or(libc::ENOENT)?;
        if !self.entries(ino)?.is_empty() {
            return Err(libc::ENOTEMPTY);
        }
        self.entries(parent)?.remove(name);
        self.node(parent).nlink -= 1;
        self.lose_name(ino);
        Ok(())
    }

    fn lies_in(&self, inner: Ino, outer: Ino) -> bool {
        let mut at = inner;
        loop {
            if at == outer {
                return true;
            }
            if at == Ino::ROOT {
                return false;
            }
            at = self.nodes[&at].parent;
        }
    }

    pub(super) fn rename(
        &mut self,
        from: (Ino, &str),
        to: (Ino, &str),
        flags: RenameFlags,
    ) -> Outcome {
        self.live(from.0)?;
        self.live(to.0)?;
        let source = *self.live(from.0)?.get(from.1).ok_or(libc::ENOENT)?;
        let target = self.live(to.0)?.get(to.1).copied();
        if flags.no_replace && target.is_some() {
            return Err(libc::EEXIST);
        }
        if self.is_directory(source) && self.lies_in(to.0, source) {
            return Err(libc::EINVAL);
        }
        if target == Some(source) {
            return Ok(());
        }
        if flags.exchange {
            let target = target.ok_or(libc::ENOENT)?;
            if self.is_directory(target) && self.lies_in(from.0, target) {
                return Err(libc::EINVAL);
            }
            self.entries(from.0)?.insert(from.1.to_owned(), target);
            self.entries(to.0)?.insert(to.1.to_owned(), source);
            self.moved(source, from.0, to.0);
            self.moved(target, to.0, from.0);
            return Ok(());
        }
        if let Some(target) = target {
            match (self.is_directory(source), self.is_directory(target)) {
                (true, false) => return Err(libc::ENOTDIR),
                (false, true) => return Err(libc::EISDIR),
                (true, true) if !self.entries(target)?.is_empty() => return Err(libc::ENOTEMPTY),
                (true, true) => self.node(to.0).nlink -= 1,
                (false, false) => {}
            }
            self.lose_name(target);
        }
        self.entries(from.0)?.remove(from.1);
        self.entries(to.0)?.insert(to.1.to_owned(), source);
        self.moved(source, from.0, to.0);
        Ok(())
    }

    fn moved(&mut self, ino: Ino, from: Ino, to: Ino) {
        if self.is_directory(ino) {
            self.node(from).nlink -= 1;
            self.node(to).nlink += 1;
            self.node(ino).parent = to;
        }
    }

    pub(super) fn file(&mut self, ino: Ino) -> Outcome<&mut Vec<u8>> {
        match &mut self.nodes.get_mut(&ino).ok_or(libc::ENOENT)?.content {
            Content::File(data) => Ok(data),
            Content::Directory(_) => Err(libc::EISDIR),
            _ => Err(libc::EINVAL),
        }
    }
}
