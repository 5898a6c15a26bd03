//! The reference model: what the file system should hold, and what it may hold after a crash.
//!
//! Names change by commands that reach the log in order, so after a crash the names must be those of some moment
//! since the last sync. A file's content reaches the log on its own time, so it must be one of the contents that the
//! file has had since it was last synced.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

pub(crate) type NodeId = u64;

/// Path without a leading slash, to node.
pub(crate) type Names = BTreeMap<String, NodeId>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    Directory,
    Symlink(String),
    /// The contents that a crash may leave, the newest last.
    File(Vec<Arc<Vec<u8>>>),
}

/// What was found in the file system: path to identity and content.
pub(crate) type Found = BTreeMap<String, (u64, FoundNode)>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FoundNode {
    Directory,
    Symlink(String),
    File(Arc<Vec<u8>>),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    next_node: NodeId,
    pub names: Names,
    pub nodes: HashMap<NodeId, Node>,
    /// The names at each moment since the last sync; the first is what is durable.
    history: Vec<Names>,
}

impl Model {
    pub fn new() -> Self {
        Self {
            history: vec![Names::new()],
            ..Self::default()
        }
    }

    /// Names have changed.
    pub fn note_names(&mut self) {
        self.history.push(self.names.clone());
    }

    pub fn add(&mut self, path: &str, node: Node) {
        self.next_node += 1;
        self.nodes.insert(self.next_node, node);
        self.names.insert(path.to_owned(), self.next_node);
        self.note_names();
    }

    /// All names are durable from now on.
    pub fn sync_names(&mut self) {
        self.history = vec![self.names.clone()];
    }

    /// The newest content of a file is durable from now on.
    pub fn sync_file(&mut self, path: &str) {
        let node = self.names[path];
        if let Some(Node::File(versions)) = self.nodes.get_mut(&node) {
            versions.drain(..versions.len() - 1);
        }
    }

    /// Everything is durable from now on.
    pub fn sync_all(&mut self) {
        self.sync_names();
        for node in self.nodes.values_mut() {
            if let Node::File(versions) = node {
                versions.drain(..versions.len() - 1);
            }
        }
    }

    /// The newest content of the file at `path`.
    pub fn content(&self, path: &str) -> Option<Arc<Vec<u8>>> {
        match self.nodes.get(self.names.get(path)?)? {
            Node::File(versions) => versions.last().cloned(),
            _ => None,
        }
    }

    /// The file at `path` now has this content.
    pub fn set_content(&mut self, path: &str, content: Vec<u8>) {
        if let Some(Node::File(versions)) = self.nodes.get_mut(&self.names[path]) {
            versions.push(Arc::new(content));
        }
    }

    pub fn is_directory(&self, path: &str) -> bool {
        path.is_empty()
            || self
                .names
                .get(path)
                .is_some_and(|node| self.nodes[node] == Node::Directory)
    }

    /// Whether a directory has entries.
    pub fn has_children(&self, path: &str) -> bool {
        let prefix = format!("{path}/");
        self.names.keys().any(|name| name.starts_with(&prefix))
    }

    /// Paths of directories, the root included.
    pub fn directories(&self) -> Vec<String> {
        std::iter::once(String::new())
            .chain(self.paths(|node| *node == Node::Directory))
            .collect()
    }

    /// Paths of regular files.
    pub fn files(&self) -> Vec<String> {
        self.paths(|node| matches!(node, Node::File(_))).collect()
    }

    fn paths(&self, wanted: impl Fn(&Node) -> bool) -> impl Iterator<Item = String> {
        self.names
            .iter()
            .filter(move |(_, node)| wanted(&self.nodes[node]))
            .map(|(path, _)| path.clone())
    }

    /// Moves a name and everything below it; what had the new name is gone.
    pub fn rename(&mut self, from: &str, to: &str) {
        let prefix = format!("{from}/");
        let moved: Vec<String> = self
            .names
            .keys()
            .filter(|name| *name == from || name.starts_with(&prefix))
            .cloned()
            .collect();
        for name in moved {
            let node = self.names.remove(&name).expect("listed just above");
            self.names
                .insert(format!("{to}{}", &name[from.len()..]), node);
        }
        self.note_names();
    }

    /// Compares with what was found while the file system was not interrupted.
    pub fn check_now(&self, found: &Found) -> Result<(), String> {
        self.match_names(&self.names, found)?;
        for (path, node) in &self.names {
            if let (Node::File(versions), (_, FoundNode::File(content))) =
                (&self.nodes[node], &found[path])
                && versions.last() != Some(content)
            {
                return Err(format!("{path} has not the content that was written"));
            }
        }
        Ok(())
    }

    /// Compares with what was found after a crash, and goes on from there.
    pub fn recover(&mut self, found: &Found) -> Result<(), String> {
        let mut reason = String::new();
        let matching =
            self.history
                .iter()
                .rev()
                .find(|names| match self.match_names(names, found) {
                    Ok(()) => true,
                    Err(why) => {
                        if reason.is_empty() {
                            reason = why;
                        }
                        false
                    }
                });
        let names = matching
            .ok_or_else(|| {
                format!(
                    "the names are those of no moment since the last sync ({} moments; against the newest: {reason})",
                    self.history.len()
                )
            })?
            .clone();
        for (path, node) in &names {
            let (Some(Node::File(versions)), (_, FoundNode::File(content))) =
                (self.nodes.get_mut(node), &found[path])
            else {
                continue;
            };
            if !versions.contains(content) {
                return Err(format!(
                    "{path} has {} bytes that are none of the {} contents since its last sync (lengths {:?})",
                    content.len(),
                    versions.len(),
                    versions
                        .iter()
                        .map(|version| version.len())
                        .collect::<Vec<_>>()
                ));
            }
            *versions = vec![Arc::clone(content)];
        }
        self.names = names;
        let used: Vec<NodeId> = self.names.values().copied().collect();
        self.nodes.retain(|node, _| used.contains(node));
        self.sync_names();
        Ok(())
    }

    /// Same paths, kinds, targets, and the same names for the same inode.
    fn match_names(&self, names: &Names, found: &Found) -> Result<(), String> {
        if let Some(path) = names.keys().find(|path| !found.contains_key(*path)) {
            return Err(format!("{path} is missing"));
        }
        if let Some(path) = found.keys().find(|path| !names.contains_key(*path)) {
            return Err(format!("{path} should not be there"));
        }
        let mut inodes: HashMap<NodeId, u64> = HashMap::new();
        let mut nodes: HashMap<u64, NodeId> = HashMap::new();
        for (path, node) in names {
            let (ino, found_node) = &found[path];
            if *inodes.entry(*node).or_insert(*ino) != *ino
                || *nodes.entry(*ino).or_insert(*node) != *node
            {
                return Err(format!("{path} is not linked to the inode it should be"));
            }
            let same = match (&self.nodes[node], found_node) {
                (Node::Directory, FoundNode::Directory) | (Node::File(_), FoundNode::File(_)) => {
                    true
                }
                (Node::Symlink(target), FoundNode::Symlink(found)) => target == found,
                _ => false,
            };
            if !same {
                return Err(format!("{path} is of another kind, or points elsewhere"));
            }
        }
        Ok(())
    }
}
