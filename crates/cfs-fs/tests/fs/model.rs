//! Random operations on names and data against a file system made of maps, with restarts in between.
//!
//! Each operation must end as the model says, errno included, and every so often all of the tree is compared. A
//! failing run prints its seed; `CFS_SEED=<seed>` runs it alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cfs_format::{Ino, ViewId};
use cfs_fs::{
    AllocateMode, Caller, Change, Fs, FsError, Quota, RenameFlags, RestoreObserver, SNAPSHOTS_NAME,
    SetAttr, Snapshot, VolumeOptions, XattrFlags,
};

use crate::pool::{Pool, Rng, assert_clean};

const CALLER: Caller = Caller {
    uid: 3,
    gid: 4,
    pid: 1,
    umask: 0o027,
};
const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "f", "g"];
const XATTRS: [&str; 3] = ["user.a", "user.b", "trusted.c"];

#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    File(Vec<u8>),
    Directory(BTreeMap<String, Ino>),
    Symlink(Vec<u8>),
    Fifo,
}

#[derive(Clone, Debug)]
struct Node {
    content: Content,
    permissions: u32,
    nlink: u32,
    opens: u32,
    parent: Ino,
    xattrs: BTreeMap<String, Vec<u8>>,
}

/// The file system as it should be.
struct Model {
    nodes: BTreeMap<Ino, Node>,
}

type Outcome<T = ()> = Result<T, i32>;

impl Model {
    /// With nothing but the root of the volume.
    fn new(root_ino: Ino) -> Self {
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

    fn is_directory(&self, ino: Ino) -> bool {
        matches!(self.nodes[&ino].content, Content::Directory(_))
    }

    fn make(&mut self, parent: Ino, name: &str, ino: Ino, content: Content) -> Outcome {
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

    fn node(&mut self, ino: Ino) -> &mut Node {
        self.nodes.get_mut(&ino).expect("the model knows the inode")
    }

    fn lose_name(&mut self, ino: Ino) {
        let is_directory = self.is_directory(ino);
        let node = self.node(ino);
        node.nlink = if is_directory { 0 } else { node.nlink - 1 };
        self.bury(ino);
    }

    fn bury(&mut self, ino: Ino) {
        let node = &self.nodes[&ino];
        if node.nlink == 0 && node.opens == 0 {
            self.nodes.remove(&ino);
        }
    }

    fn link(&mut self, ino: Ino, parent: Ino, name: &str) -> Outcome {
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

    fn unlink(&mut self, parent: Ino, name: &str) -> Outcome {
        let ino = *self.live(parent)?.get(name).ok_or(libc::ENOENT)?;
        if self.is_directory(ino) {
            return Err(libc::EISDIR);
        }
        self.entries(parent)?.remove(name);
        self.lose_name(ino);
        Ok(())
    }

    fn rmdir(&mut self, parent: Ino, name: &str) -> Outcome {
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

    fn rename(&mut self, from: (Ino, &str), to: (Ino, &str), flags: RenameFlags) -> Outcome {
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

    fn file(&mut self, ino: Ino) -> Outcome<&mut Vec<u8>> {
        match &mut self.nodes.get_mut(&ino).ok_or(libc::ENOENT)?.content {
            Content::File(data) => Ok(data),
            Content::Directory(_) => Err(libc::EISDIR),
            _ => Err(libc::EINVAL),
        }
    }
}

/// Both, and what is open.
struct Run {
    pool: Pool,
    fs: Arc<Fs>,
    /// The volume in which everything happens, and clones of its snapshots and of theirs; each with its path.
    worlds: Vec<(Ino, String)>,
    /// The one that operations are in.
    world: usize,
    model: Model,
    rng: Rng,
    open: Vec<Ino>,
    snapshots: Vec<Frozen>,
}

/// A snapshot, and what was there when it was taken.
struct Frozen {
    snapshot: Arc<Snapshot>,
    /// The root of the volume or clone.
    root: Ino,
    nodes: BTreeMap<Ino, Node>,
}

impl Frozen {
    fn ino(&self, ino: Ino) -> Ino {
        ino.in_view(self.snapshot.view).expect("small numbers")
    }
}

impl Run {
    fn new(seed: u64) -> Self {
        let pool = Pool::new(512);
        let fs = pool.open();
        let made = fs.volume_create(b"/m", &VolumeOptions::default(), &Caller::default());
        let root = made.expect("a volume").ino;
        Self {
            fs,
            pool,
            worlds: vec![(root, "/m".to_owned())],
            world: 0,
            model: Model::new(root),
            rng: Rng::new(seed),
            open: Vec::new(),
            snapshots: Vec::new(),
        }
    }

    #[track_caller]
    fn agree<T: std::fmt::Debug>(what: &str, is: &Result<T, FsError>, should_be: Outcome) {
        let is = match is {
            Ok(_) => Ok(()),
            Err(error) => Err(error.errno()),
        };
        assert_eq!(is, should_be, "{what}: file system left, model right");
    }

    fn root(&self) -> Ino {
        self.worlds[self.world].0
    }

    /// Inodes of the volume or clone that operations are in.
    fn numbers(&self) -> Vec<Ino> {
        of_world(&self.model.nodes, self.root())
    }

    fn any_ino(&mut self) -> Ino {
        let numbers = self.numbers();
        *self.rng.pick(&numbers)
    }

    /// Mostly a directory.
    fn any_directory(&mut self) -> Ino {
        let mut directories = self.numbers();
        directories.retain(|ino| self.model.is_directory(*ino));
        match self.rng.below(20) {
            0 => self.any_ino(),
            _ => *self.rng.pick(&directories),
        }
    }

    fn any_name(&mut self) -> &'static str {
        NAMES[self.rng.below(NAMES.len() as u64) as usize]
    }

    fn any_file(&mut self) -> Option<Ino> {
        let mut files = self.numbers();
        files.retain(|ino| matches!(self.model.nodes[ino].content, Content::File(_)));
        (!files.is_empty()).then(|| *self.rng.pick(&files))
    }

    /// Bytes with a period that chunks, extents and blocks do not share.
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let seed = self.rng.next() as u8;
        (0..len)
            .map(|index| seed.wrapping_add((index % 251) as u8))
            .collect()
    }

    fn step(&mut self) {
        self.world = self.rng.below(self.worlds.len() as u64) as usize;
        match self.rng.below(110) {
            107..109 => self.make_clone(),
            109 => self.remove_clone(),
            100..102 => self.take_snapshot(),
            102 => self.delete_snapshot(),
            103..105 => self.copy_from_snapshot(),
            105 => self.refuse_changes(),
            0..18 => self.make(),
            18..23 => self.link(),
            23..31 => self.remove(),
            31..44 => self.rename(),
            44..50 => self.attributes(),
            50..56 => self.open_or_release(),
            56..75 => self.write(),
            75..81 => self.truncate(),
            81..85 => self.punch(),
            85..89 => self.copy(),
            89..94 => self.read(),
            94..97 => {
                self.pool.sleep_ms(1000);
                self.fs.tick().expect("tick");
            }
            97 => {
                let ino = self.any_ino();
                self.fs.fsync(ino, false).expect("fsync");
            }
            _ => self.fs.syncfs().expect("syncfs"),
        }
    }

    fn make(&mut self) {
        let (parent, name) = (self.any_directory(), self.any_name());
        let bytes = name.as_bytes();
        let (made, content) = match self.rng.below(10) {
            0..5 => {
                let made = self.fs.create(parent, bytes, 0o777, &CALLER);
                (made, Content::File(Vec::new()))
            }
            5..8 => {
                let made = self.fs.mkdir(parent, bytes, 0o777, &CALLER);
                (made, Content::Directory(BTreeMap::new()))
            }
            8 => {
                let target = b"somewhere/else".to_vec();
                let made = self.fs.symlink(parent, bytes, &target, &CALLER);
                (made, Content::Symlink(target))
            }
            _ => {
                let made = self
                    .fs
                    .mknod(parent, bytes, libc::S_IFIFO | 0o777, 0, &CALLER);
                (made, Content::Fifo)
            }
        };
        let ino = made.as_ref().map_or(Ino(0), |attr| attr.ino);
        assert!(
            !self.model.nodes.contains_key(&ino),
            "{ino} was used before"
        );
        Self::agree("make", &made, self.model.make(parent, name, ino, content));
    }

    fn link(&mut self) {
        let (ino, parent, name) = (self.any_ino(), self.any_directory(), self.any_name());
        let linked = self.fs.link(ino, parent, name.as_bytes());
        Self::agree("link", &linked, self.model.link(ino, parent, name));
    }

    fn remove(&mut self) {
        let (parent, name) = (self.any_directory(), self.any_name());
        if self.rng.below(2) == 0 {
            let removed = self.fs.unlink(parent, name.as_bytes());
            Self::agree("unlink", &removed, self.model.unlink(parent, name));
        } else {
            let removed = self.fs.rmdir(parent, name.as_bytes());
            Self::agree("rmdir", &removed, self.model.rmdir(parent, name));
        }
    }

    fn rename(&mut self) {
        let (from, to) = (self.any_directory(), self.any_directory());
        let (name, new_name) = (self.any_name(), self.any_name());
        let flags = match self.rng.below(6) {
            0 => RenameFlags {
                exchange: true,
                ..RenameFlags::default()
            },
            1 => RenameFlags {
                no_replace: true,
                ..RenameFlags::default()
            },
            _ => RenameFlags::default(),
        };
        let renamed = self
            .fs
            .rename(from, name.as_bytes(), to, new_name.as_bytes(), flags);
        let should_be = self.model.rename((from, name), (to, new_name), flags);
        Self::agree("rename", &renamed, should_be);
    }

    fn attributes(&mut self) {
        let ino = self.any_ino();
        if self.rng.below(2) == 0 {
            let mode = self.rng.below(0o1000) as u32;
            let set = SetAttr {
                mode: Some(mode),
                ..SetAttr::default()
            };
            self.fs.setattr(ino, &set).expect("chmod");
            self.model.node(ino).permissions = mode;
            return;
        }
        let name = *self.rng.pick(&XATTRS);
        let had = self.model.nodes[&ino].xattrs.contains_key(name);
        if self.rng.below(3) == 0 {
            let removed = self.fs.removexattr(ino, name.as_bytes());
            Self::agree(
                "removexattr",
                &removed,
                if had { Ok(()) } else { Err(libc::ENODATA) },
            );
            self.model.node(ino).xattrs.remove(name);
        } else {
            let len = self.rng.below(300) as usize;
            let value = self.bytes(len);
            let set = self
                .fs
                .setxattr(ino, name.as_bytes(), &value, XattrFlags::default());
            Self::agree("setxattr", &set, Ok(()));
            self.model.node(ino).xattrs.insert(name.to_owned(), value);
        }
    }

    fn open_or_release(&mut self) {
        if self.open.len() < 4 || self.rng.below(2) == 0 {
            let ino = self.any_ino();
            let opened = self.fs.open(ino);
            Self::agree("open", &opened, Ok(()));
            self.model.node(ino).opens += 1;
            self.open.push(ino);
        } else {
            let index = self.rng.below(self.open.len() as u64) as usize;
            let ino = self.open.swap_remove(index);
            self.fs.release(ino).expect("release");
            self.model.node(ino).opens -= 1;
            self.model.bury(ino);
        }
    }

    fn any_len(&mut self) -> u64 {
        match self.rng.below(4) {
            0 => self.rng.below(100),
            1 => self.rng.below(6000),
            2 => self.rng.below(70_000),
            _ => self.rng.below(500_000),
        }
    }

    fn write(&mut self) {
        let Some(ino) = self.any_file() else { return };
        let size = self.model.file(ino).expect("a file").len() as u64;
        let offset = match self.rng.below(3) {
            0 => 0,
            1 => size,
            _ => self.rng.below(size + 5000),
        };
        let len = self.any_len() as usize;
        let data = self.bytes(len);
        let written = self.fs.write(ino, offset, &data, false).expect("write");
        assert_eq!(written, data.len());
        let file = self.model.file(ino).expect("a file");
        let end = offset as usize + data.len();
        if !data.is_empty() {
            file.resize(file.len().max(end), 0);
            file[offset as usize..end].copy_from_slice(&data);
        }
    }

    fn truncate(&mut self) {
        let ino = self.any_ino();
        let size = match self.rng.below(3) {
            0 => 0,
            _ => self.any_len(),
        };
        let set = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        let result = self.fs.setattr(ino, &set);
        let should_be = self
            .model
            .file(ino)
            .map(|file| file.resize(size as usize, 0));
        Self::agree("truncate", &result, should_be);
    }

    fn punch(&mut self) {
        let Some(ino) = self.any_file() else { return };
        let (offset, len) = (self.any_len(), 1 + self.any_len());
        self.fs
            .fallocate(ino, AllocateMode::Punch, offset, len, false)
            .expect("punch");
        let file = self.model.file(ino).expect("a file");
        let end = (offset + len).min(file.len() as u64) as usize;
        let start = (offset as usize).min(end);
        file[start..end].fill(0);
    }

    fn copy(&mut self) {
        let (Some(source), Some(target)) = (self.any_file(), self.any_file()) else {
            return;
        };
        if source == target {
            return;
        }
        let data = self.model.file(source).expect("a file").clone();
        let from = self.rng.below(data.len() as u64 + 1);
        let len = self.any_len();
        let to = self.any_len();
        let copied = self
            .fs
            .copy_range(source, from, target, to, len)
            .expect("copy_range");
        let part = &data[from as usize..(from + len).min(data.len() as u64) as usize];
        assert_eq!(copied, part.len() as u64, "bytes copied");
        if !part.is_empty() {
            let file = self.model.file(target).expect("a file");
            let end = to as usize + part.len();
            file.resize(file.len().max(end), 0);
            file[to as usize..end].copy_from_slice(part);
        }
    }

    fn take_snapshot(&mut self) {
        if self.snapshots.len() == 12 {
            return;
        }
        let name = format!("s{}", self.rng.next());
        let (root, path) = self.worlds[self.world].clone();
        let taken = self.fs.snapshot_create(path.as_bytes(), name.as_bytes());
        let again = self.fs.snapshot_create(path.as_bytes(), name.as_bytes());
        Self::agree("the same name again", &again, Err(libc::EEXIST));
        let mut nodes = self.model.nodes.clone();
        nodes.retain(|ino, _| is_of_world(*ino, root));
        self.snapshots.push(Frozen {
            snapshot: taken.expect("a snapshot"),
            root,
            nodes,
        });
    }

    fn make_clone(&mut self) {
        if self.worlds.len() == 5 || self.snapshots.is_empty() {
            return;
        }
        let frozen = &self.snapshots[self.rng.below(self.snapshots.len() as u64) as usize];
        let path = format!("/c{}", self.rng.next());
        let none = Quota::default();
        let made = self
            .fs
            .clone_create(&frozen.snapshot, path.as_bytes(), none, &CALLER);
        let root = made.expect("a clone").ino;
        let (clone, _) = root.cloned().expect("its number says so");
        let number = |ino: Ino| ino.in_clone(clone).expect("small numbers");
        for (ino, node) in frozen.nodes.iter().filter(|(_, node)| node.nlink > 0) {
            let mut node = node.clone();
            node.opens = 0;
            // The root's is the root of all, as of every volume.
            node.parent = match *ino == frozen.root {
                true => Ino::ROOT,
                false if node.parent == Ino(0) => Ino(0),
                false => number(node.parent),
            };
            if let Content::Directory(entries) = &mut node.content {
                entries.values_mut().for_each(|ino| *ino = number(*ino));
            }
            self.model.nodes.insert(number(*ino), node);
        }
        self.worlds.push((root, path));
    }

    fn remove_clone(&mut self) {
        if self.world == 0 {
            return;
        }
        let (root, path) = self.worlds[self.world].clone();
        let all = self.fs.snapshots(None).expect("listed");
        let has_snapshots = all.iter().any(|it| it.directory == root);
        let is_open = self.open.iter().any(|ino| is_of_world(*ino, root));
        let removed = self.fs.clone_delete(path.as_bytes());
        let is_kept = has_snapshots || is_open;
        let should_be = if is_kept { Err(libc::EBUSY) } else { Ok(()) };
        Self::agree("removal of a clone", &removed, should_be);
        if !is_kept {
            self.worlds.remove(self.world);
            self.model.nodes.retain(|ino, _| !is_of_world(*ino, root));
            self.world = 0;
        }
    }

    fn delete_snapshot(&mut self) {
        if self.snapshots.is_empty() {
            return;
        }
        let index = self.rng.below(self.snapshots.len() as u64) as usize;
        let snapshot = Arc::clone(&self.snapshots[index].snapshot);
        let root = self.snapshots[index].root;
        if !self.fs.clones_of(&snapshot).is_empty() {
            let needed = self.fs.snapshot_delete(&snapshot);
            return Self::agree("delete of a cloned one", &needed, Err(libc::EBUSY));
        }
        self.snapshots.swap_remove(index);
        self.fs.snapshot_hold(&snapshot, true).expect("hold");
        let held = self.fs.snapshot_delete(&snapshot);
        Self::agree("delete of a held one", &held, Err(libc::EBUSY));
        self.fs.snapshot_hold(&snapshot, false).expect("release");
        self.fs.snapshot_delete(&snapshot).expect("delete");
        let root = root.in_view(snapshot.view).expect("a small number");
        let gone = self.fs.getattr(root);
        Self::agree("stat of a deleted one", &gone, Err(libc::ESTALE));
    }

    fn copy_from_snapshot(&mut self) {
        let Some(target) = self.any_file() else {
            return;
        };
        if self.snapshots.is_empty() {
            return;
        }
        let frozen = &self.snapshots[self.rng.below(self.snapshots.len() as u64) as usize];
        let files: Vec<(Ino, Vec<u8>)> = frozen
            .nodes
            .iter()
            .filter_map(|(ino, node)| match &node.content {
                Content::File(data) if node.nlink > 0 => Some((frozen.ino(*ino), data.clone())),
                _ => None,
            })
            .collect();
        if files.is_empty() {
            return;
        }
        let (source, data) = self.rng.pick(&files).clone();
        let len = data.len() as u64;
        let copied = self.fs.copy_range(source, 0, target, 0, len);
        assert_eq!(copied.expect("copy from a snapshot"), len);
        let file = self.model.file(target).expect("a file");
        if file.len() < data.len() {
            file.resize(data.len(), 0);
        }
        file[..data.len()].copy_from_slice(&data);
    }

    /// Nothing that changes is done in a snapshot, whatever it is.
    fn refuse_changes(&mut self) {
        if self.snapshots.is_empty() {
            return;
        }
        let frozen = &self.snapshots[self.rng.below(self.snapshots.len() as u64) as usize];
        let numbers: Vec<Ino> = frozen.nodes.keys().copied().collect();
        let ino = frozen.ino(*self.rng.pick(&numbers));
        let root = frozen.ino(frozen.root);
        let fs = &self.fs;
        let refused = Err(libc::EROFS);
        Self::agree("create", &fs.create(root, b"new", 0o644, &CALLER), refused);
        Self::agree("write", &fs.write(ino, 0, b"new", false), refused);
        let set = |size, mode| SetAttr {
            size,
            mode,
            ..SetAttr::default()
        };
        Self::agree("chmod", &fs.setattr(ino, &set(None, Some(0))), refused);
        Self::agree("truncate", &fs.setattr(ino, &set(Some(0), None)), refused);
        Self::agree("unlink", &fs.unlink(root, b"a"), refused);
        Self::agree("rmdir", &fs.rmdir(root, b"a"), refused);
        let flags = RenameFlags::default();
        let renamed = fs.rename(root, b"a", Ino::ROOT, b"b", flags);
        Self::agree("rename", &renamed, refused);
        Self::agree("link", &fs.link(ino, Ino::ROOT, b"zz"), refused);
        Self::agree(
            "setxattr",
            &fs.setxattr(ino, b"user.a", b"", XattrFlags::default()),
            refused,
        );
        Self::agree("removexattr", &fs.removexattr(ino, b"user.a"), refused);
        let punched = fs.fallocate(ino, AllocateMode::Punch, 0, 1, false);
        Self::agree("punch", &punched, refused);
        let made = fs.mkdir(Ino::ROOT, SNAPSHOTS_NAME, 0o755, &CALLER);
        Self::agree("mkdir", &made, refused);
    }

    fn read(&mut self) {
        let Some(ino) = self.any_file() else { return };
        let (offset, len) = (self.any_len(), self.any_len());
        let mut out = Vec::new();
        self.fs
            .read(ino, offset, len as usize, &mut out)
            .expect("read");
        let file = self.model.file(ino).expect("a file");
        let end = (offset + len).min(file.len() as u64) as usize;
        assert!(
            out == file[(offset as usize).min(end)..end],
            "content of {ino} at {offset}"
        );
    }

    fn restart(&mut self) {
        for ino in std::mem::take(&mut self.open) {
            self.fs.release(ino).expect("release");
            self.model.node(ino).opens -= 1;
            self.model.bury(ino);
        }
        if self.rng.below(2) == 0 {
            self.fs.close().expect("close");
        } else {
            self.fs.syncfs().expect("syncfs");
            self.pool = self.pool.power_cut(self.rng.next());
        }
        self.fs = self.pool.open();
        self.fs.tick().expect("tick");
    }

    /// Compares everything that can be reached, and everything that is open.
    fn compare(&mut self) {
        self.compare_nodes(&self.model.nodes, |ino| ino);
        for (root, path) in &self.worlds {
            assert_eq!(
                self.fs.path_of(*root).expect("read").expect("there"),
                path.as_bytes()
            );
            let list = root.in_view(ViewId::LIST).expect("a small number");
            let limit = self.fs.dir_limit(list).expect("limit");
            let listed = self.fs.read_dir(list, 0, limit, usize::MAX).expect("list");
            let of_root = self.snapshots.iter().filter(|it| it.root == *root);
            assert_eq!(listed.len(), of_root.count(), "snapshots in the list");
        }
        for frozen in &self.snapshots {
            let list = frozen.root.in_view(ViewId::LIST).expect("a small number");
            let snapshot = &frozen.snapshot;
            let root = self.fs.lookup(list, &snapshot.name).expect("in the list");
            assert_eq!(root.ino, frozen.ino(frozen.root));
            assert_eq!(self.fs.parent(root.ino).expect("parent"), list);
            let nodes = frozen.nodes.iter().filter(|(_, node)| node.nlink > 0);
            let nodes = nodes.map(|(ino, node)| {
                let mut node = node.clone();
                node.parent = match *ino == frozen.root {
                    true => list,
                    false => frozen.ino(node.parent),
                };
                if let Content::Directory(entries) = &mut node.content {
                    entries.values_mut().for_each(|ino| *ino = frozen.ino(*ino));
                }
                (*ino, node)
            });
            self.compare_nodes(&nodes.collect(), |ino| frozen.ino(ino));
        }
        assert_clean(&self.fs);
    }

    fn compare_nodes(&self, nodes: &BTreeMap<Ino, Node>, number: impl Fn(Ino) -> Ino) {
        for (ino, node) in nodes {
            let ino = &number(*ino);
            let attr = self.fs.getattr(*ino).expect("getattr");
            assert_eq!(attr.mode & 0o7777, node.permissions, "mode of {ino}");
            assert_eq!(attr.nlink, node.nlink, "links of {ino}");
            let names: BTreeSet<Vec<u8>> =
                self.fs.listxattr(*ino).expect("list").into_iter().collect();
            assert_eq!(names.len(), node.xattrs.len());
            for (name, value) in &node.xattrs {
                assert_eq!(
                    &self.fs.getxattr(*ino, name.as_bytes()).expect("get"),
                    value
                );
            }
            match &node.content {
                Content::File(data) => {
                    assert_eq!(attr.size, data.len() as u64, "size of {ino}");
                    let mut out = Vec::new();
                    self.fs
                        .read(*ino, 0, data.len() + 1, &mut out)
                        .expect("read");
                    assert!(out == *data, "content of {ino}");
                }
                Content::Directory(entries) => {
                    let limit = self.fs.dir_limit(*ino).expect("limit");
                    let listed = self
                        .fs
                        .read_dir(*ino, 0, limit, usize::MAX)
                        .expect("read_dir");
                    let listed: BTreeMap<String, Ino> = listed
                        .into_iter()
                        .map(|entry| (String::from_utf8(entry.name).expect("utf-8"), entry.ino))
                        .collect();
                    assert_eq!(&listed, entries, "entries of {ino}");
                    for (name, entry) in entries {
                        let found = self.fs.lookup(*ino, name.as_bytes()).expect("lookup");
                        assert_eq!(found.ino, *entry);
                    }
                    if node.nlink > 0 {
                        assert_eq!(self.fs.parent(*ino).expect("parent"), node.parent);
                    }
                }
                Content::Symlink(target) => {
                    assert_eq!(&self.fs.readlink(*ino).expect("readlink"), target);
                }
                Content::Fifo => assert_eq!(attr.kind(), libc::S_IFIFO),
            }
        }
    }
}

/// Whether an inode is in the volume or clone with this root.
fn is_of_world(ino: Ino, root: Ino) -> bool {
    ino.cloned().map(|(clone, _)| clone) == root.cloned().map(|(clone, _)| clone)
}

fn of_world(nodes: &BTreeMap<Ino, Node>, root: Ino) -> Vec<Ino> {
    let numbers = nodes.keys().copied();
    numbers.filter(|ino| is_of_world(*ino, root)).collect()
}

fn run(seed: u64, steps: u32) {
    eprintln!("seed {seed}");
    let mut run = Run::new(seed);
    for step in 1..=steps {
        run.step();
        if step % 200 == 0 {
            run.compare();
        }
        if step % 500 == 0 {
            run.restart();
            run.compare();
        }
    }
    for ino in std::mem::take(&mut run.open) {
        run.fs.release(ino).expect("release");
        run.model.node(ino).opens -= 1;
        run.model.bury(ino);
    }
    // What needs nothing else goes first.
    while !run.snapshots.is_empty() || run.worlds.len() > 1 {
        let fs = Arc::clone(&run.fs);
        run.snapshots.retain(|frozen| {
            let is_needed = !fs.clones_of(&frozen.snapshot).is_empty();
            assert_eq!(fs.snapshot_delete(&frozen.snapshot).is_err(), is_needed);
            is_needed
        });
        for world in (1..run.worlds.len()).rev() {
            run.world = world;
            run.remove_clone();
        }
    }
    for _ in 0..100 {
        run.fs.tick().expect("tick");
    }
    // The root of all and the volume's place beside what is in the volume.
    let inodes = run.model.nodes.len() as u64 + 2;
    assert_eq!(run.fs.statfs().inodes, inodes, "inodes left over");
    for _ in 0..100 {
        run.fs.tick().expect("tick");
    }
    run.compare();
    let report = run.fs.check(|_| true).expect("check").expect("to its end");
    assert_eq!(report.states, 0, "history without snapshots");
}

/// A path's inode in the tables, attributes, and content or target.
type Look = (u64, u32, u32, BTreeMap<Vec<u8>, Vec<u8>>, Vec<u8>);

/// Everything below a directory, by path.
fn look(fs: &Fs, root: Ino) -> BTreeMap<String, Look> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![(String::new(), root)];
    while let Some((path, ino)) = waiting.pop() {
        let limit = fs.dir_limit(ino).expect("limit");
        for entry in fs.read_dir(ino, 0, limit, usize::MAX).expect("read_dir") {
            let name = String::from_utf8(entry.name).expect("utf-8");
            let path = match path.is_empty() {
                true => name,
                false => format!("{path}/{name}"),
            };
            let attr = fs.getattr(entry.ino).expect("getattr");
            let mut content = Vec::new();
            match attr.kind() {
                libc::S_IFDIR => waiting.push((path.clone(), entry.ino)),
                libc::S_IFREG => fs
                    .read(entry.ino, 0, attr.size as usize, &mut content)
                    .expect("read"),
                libc::S_IFLNK => content = fs.readlink(entry.ino).expect("readlink"),
                _ => {}
            }
            let names = fs.listxattr(entry.ino).expect("list");
            let xattrs = names.into_iter().map(|name| {
                let value = fs.getxattr(entry.ino, &name).expect("get");
                (name, value)
            });
            let number = entry.ino.base();
            let seen = (number.0, attr.mode, attr.nlink, xattrs.collect(), content);
            found.insert(path, seen);
        }
    }
    found
}

/// Paths that stand for the same inode are those of the other tree.
fn same_tree(one: &BTreeMap<String, Look>, other: &BTreeMap<String, Look>) {
    let paths = |tree: &BTreeMap<String, Look>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(paths(one), paths(other));
    let mut partners = BTreeMap::new();
    for (path, left) in one {
        let right = &other[path];
        let strip = |look: &Look| (look.1, look.2, look.3.clone(), look.4.clone());
        assert!(strip(left) == strip(right), "{path}");
        assert_eq!(
            *partners.entry(left.0).or_insert(right.0),
            right.0,
            "{path}"
        );
    }
}

fn check_differences(fs: &Fs, then_root: Ino, now_root: Ino) {
    let found = fs.differences(then_root, now_root, || true);
    let found = found.expect("differences").expect("to the end");
    let (then, now) = (look(fs, then_root), look(fs, now_root));
    let mut explained = BTreeMap::new();
    let mut moved = Vec::new();
    for difference in &found {
        let path = String::from_utf8(difference.path.clone()).expect("utf-8");
        match &difference.change {
            Change::Created => assert!(now.contains_key(&path), "{difference:?}"),
            Change::Deleted => assert!(then.contains_key(&path), "{difference:?}"),
            Change::Changed => assert!(now.contains_key(&path), "{difference:?}"),
            Change::Renamed { from, .. } => {
                let from = String::from_utf8(from.clone()).expect("utf-8");
                assert_eq!(then[&from].0, now[&path].0, "{difference:?}");
                moved.push((from, path.clone()));
            }
        }
        explained.insert(path, difference);
    }
    let below = |path: &str, above: &str| {
        let rest = path.strip_prefix(above);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    for (path, was) in &then {
        let same = now.get(path).is_some_and(|is| is.0 == was.0);
        // One that another has replaced which is no different needs no word.
        let equal = now
            .get(path)
            .is_some_and(|is| (was.1, &was.3, &was.4) == (is.1, &is.3, &is.4));
        let told = equal
            || explained.contains_key(path)
            || moved.iter().any(|(from, _)| below(path, from));
        assert!(same || told, "{path} is gone: {found:?}");
    }
    for (path, is) in &now {
        let told = explained.contains_key(path);
        let along = moved.iter().any(|(_, to)| below(path, to));
        match then.get(path) {
            Some(was) if was.0 == is.0 => {
                let differs = was.1 != is.1 || was.3 != is.3 || was.4 != is.4;
                assert!(told || !differs, "{path} has changed: {found:?}");
            }
            Some(was) if (was.1, &was.3, &was.4) == (is.1, &is.3, &is.4) => {}
            _ => assert!(told || along, "{path} is new: {found:?}"),
        }
    }
}

/// Stored bytes of chunks that are referred to.
fn referenced_bytes(fs: &Fs) -> u64 {
    let chunks = fs.store().freeze().chunks();
    let chunks = chunks.map(|chunk| chunk.expect("a chunk").1);
    let held = chunks.filter(|chunk| chunk.refs.get() > 0);
    held.map(|chunk| u64::from(chunk.record_len.get())).sum()
}

struct Quiet;

impl RestoreObserver for Quiet {
    fn inode_changed(&mut self, _: Ino) {}
    fn entry_changed(&mut self, _: Ino, _: &[u8]) {}
    fn problem(&mut self, path: &[u8], error: &FsError) {
        panic!("{}: {error}", String::from_utf8_lossy(path));
    }
    fn goes_on(&mut self) -> bool {
        true
    }
}

#[test]
fn what_a_snapshot_shows_is_compared_and_brought_back() {
    for seed in 1..=12 {
        eprintln!("seed {seed}");
        let mut run = Run::new(seed);
        for _ in 0..300 {
            run.step();
        }
        // Of a clone as well as of the volume.
        run.world = seed as usize % run.worlds.len();
        let (now, path) = run.worlds[run.world].clone();
        let path = path.as_bytes();
        let kept = run.fs.snapshot_create(path, b"kept").expect("a snapshot");
        for _ in 0..200 {
            run.step();
        }
        run.fs.syncfs().expect("syncfs");
        let root = now.in_view(kept.view).expect("a small number");
        check_differences(&run.fs, root, now);

        // What the sizes say is what comes back, when nothing is put together again meanwhile.
        run.pool.sleep_ms(60_000);
        for _ in 0..100 {
            run.fs.tick().expect("tick");
        }
        let all = run.fs.snapshots(None).expect("snapshots");
        let sizes = run.fs.snapshot_sizes(&all, |_| false).expect("sizes");
        for (snapshot, sizes) in all.iter().zip(sizes) {
            assert_eq!(sizes.exclusive_bytes, sizes.freed_bytes);
            let is_cloned = !run.fs.clones_of(snapshot).is_empty();
            if snapshot.view == kept.view || is_cloned || run.rng.below(2) == 0 {
                continue;
            }
            let before = referenced_bytes(&run.fs);
            run.fs.snapshot_delete(snapshot).expect("delete");
            for _ in 0..20 {
                run.fs.tick().expect("tick");
            }
            let freed = before - referenced_bytes(&run.fs);
            assert_eq!(freed, sizes.exclusive_bytes);
            break;
        }

        let before = referenced_bytes(&run.fs);
        let restore = |fs: &Fs| fs.snapshot_restore(&kept, path, b"", true, &mut Quiet);
        restore(&run.fs).expect("restored");
        run.fs.syncfs().expect("syncfs");
        same_tree(&look(&run.fs, root), &look(&run.fs, now));
        assert!(referenced_bytes(&run.fs) <= before, "it is by reference");
        assert_clean(&run.fs);
        let again = restore(&run.fs).expect("restored");
        assert_eq!((again.removed, again.problems), (0, 0));
        let (pool, fs) = (run.pool.power_cut(seed), run.fs);
        drop(fs);
        let fs = pool.open();
        same_tree(&look(&fs, root), &look(&fs, now));
        assert_clean(&fs);
    }
}

#[test]
fn random_operations_agree_with_the_model() {
    if let Ok(seed) = std::env::var("CFS_SEED") {
        return run(seed.parse().expect("CFS_SEED is a number"), 4000);
    }
    for seed in 1..=6 {
        run(seed, 1000);
    }
}
