//! Taking, cloning and deleting snapshots, on both sides.

use std::sync::Arc;

use cfs_format::Ino;
use cfs_fs::{AllocateMode, Quota, RenameFlags, SNAPSHOTS_NAME, SetAttr, XattrFlags};

use super::tree::Content;
use super::{CALLER, Frozen, Run, is_of_world};

impl Run {
    pub(super) fn take_snapshot(&mut self) {
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

    pub(super) fn make_clone(&mut self) {
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

    pub(super) fn remove_clone(&mut self) {
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

    pub(super) fn delete_snapshot(&mut self) {
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

    pub(super) fn copy_from_snapshot(&mut self) {
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
    pub(super) fn refuse_changes(&mut self) {
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
}
