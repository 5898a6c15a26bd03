//! Operations on names, attributes and data, on both sides.

use std::collections::BTreeMap;

use cfs_format::Ino;
use cfs_fs::{AllocateMode, RenameFlags, SetAttr, XattrFlags};

use super::tree::Content;
use super::{CALLER, Run, XATTRS};

impl Run {
    pub(super) fn make(&mut self) {
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

    pub(super) fn link(&mut self) {
        let (ino, parent, name) = (self.any_ino(), self.any_directory(), self.any_name());
        let linked = self.fs.link(ino, parent, name.as_bytes());
        Self::agree("link", &linked, self.model.link(ino, parent, name));
    }

    pub(super) fn remove(&mut self) {
        let (parent, name) = (self.any_directory(), self.any_name());
        if self.rng.below(2) == 0 {
            let removed = self.fs.unlink(parent, name.as_bytes());
            Self::agree("unlink", &removed, self.model.unlink(parent, name));
        } else {
            let removed = self.fs.rmdir(parent, name.as_bytes());
            Self::agree("rmdir", &removed, self.model.rmdir(parent, name));
        }
    }

    pub(super) fn rename(&mut self) {
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

    pub(super) fn attributes(&mut self) {
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

    pub(super) fn open_or_release(&mut self) {
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

    pub(super) fn write(&mut self) {
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

    pub(super) fn truncate(&mut self) {
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

    pub(super) fn punch(&mut self) {
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

    pub(super) fn copy(&mut self) {
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

    pub(super) fn read(&mut self) {
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
        let parts = self
            .fs
            .read_parts(ino, offset, len as usize, &mut out)
            .expect("read");
        if let Some(parts) = parts {
            let slices: Vec<_> = parts.slices().collect();
            assert!(slices.len() <= cfs_fs::PARTS_MAX);
            out = slices.concat();
        }
        assert!(
            out == file[(offset as usize).min(end)..end],
            "parts of {ino} at {offset}"
        );
    }
}
