//! Comparing all that can be reached.

use std::collections::{BTreeMap, BTreeSet};

use cfs_format::{Ino, ViewId};

use super::Run;
use super::tree::{Content, Node};
use crate::pool::assert_clean;

impl Run {
    /// Compares everything that can be reached, and everything that is open.
    pub(super) fn compare(&mut self) {
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
