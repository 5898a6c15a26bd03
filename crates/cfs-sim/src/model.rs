//! The reference model: what the file system should hold, and what it may hold after a crash.
//!
//! Everything reaches one log, in order. A change of names or attributes is a **moment** of that log; a file's content
//! gets there on its own time, after the moment at which it was written. What is found after a crash must be the
//! state at one moment since the last sync: its names, kinds, modes and attributes; and of each file a content that
//! was written by then, no older than what was known to be in the log by then (because the file was closed, replaced
//! a name, or was changed by a command of its own).

mod restoring;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use crate::content::Content;

pub(crate) use restoring::{Restoring, join};

pub(crate) type NodeId = u64;

/// Path without a leading slash, to node.
pub(crate) type Names = BTreeMap<String, NodeId>;

/// What a node is, for as long as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    Symlink(String),
    Fifo,
    File,
}

/// What changes in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub mode: u32,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// Names and attributes at one moment.
#[derive(Clone, Debug, Default)]
struct Moment {
    names: Names,
    attributes: BTreeMap<NodeId, Arc<Attributes>>,
}

/// One content of a file.
#[derive(Clone, Debug)]
struct Version {
    content: Arc<Content>,
    /// The newest moment when it was written: the log has it after that.
    written: usize,
    /// The moment by which it is in the log for certain.
    logged: Option<usize>,
}

/// A write of so much may leave memory in parts, so that a crash leaves the beginning of it, or what another dedup domain copies.
const TORN_BYTES: u64 = 1 << 20;
/// So many of those are remembered, for pools that have been damaged.
const TORN_KEPT: usize = 200;

/// What was found in the file system, by path.
pub(crate) type Found = BTreeMap<String, FoundNode>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundNode {
    pub ino: u64,
    /// The root of a volume, outside of snapshots.
    pub is_volume: bool,
    pub nlink: u32,
    pub kind: Kind,
    pub attributes: Attributes,
    /// Of a file.
    pub content: Arc<Content>,
}

impl std::fmt::Display for FoundNode {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, mode, content) = (&self.kind, self.attributes.mode, &self.content);
        write!(
            out,
            "inode {}, {kind:?} {mode:o}, {} links, {} attributes, {} bytes ({:x})",
            self.ino,
            self.nlink,
            self.attributes.xattrs.len(),
            content.len(),
            content.hash()
        )
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    next_node: NodeId,
    now: Moment,
    kinds: HashMap<NodeId, Kind>,
    /// Contents that a crash may leave, the newest last.
    files: HashMap<NodeId, Vec<Version>>,
    /// The moments since the last sync; the first is durable.
    moments: Vec<Moment>,
    /// Hashes of every content that any file has had, for pools that have been damaged.
    ever: BTreeSet<u64>,
    /// Contents before and after large writes, the newest first.
    torn: VecDeque<[Arc<Content>; 2]>,
    /// Snapshots by their names.
    pub snapshots: BTreeMap<String, FrozenCopy>,
    /// Directories that are the roots of volumes.
    volumes: BTreeSet<NodeId>,
    /// Those that are clones, and the snapshots that they show.
    origins: HashMap<NodeId, String>,
    /// Names of files of clones that are outside of what the clone shows.
    links_outside: HashMap<NodeId, u32>,
    /// A snapshot is being restored, or was when it failed.
    pub restoring: Option<Restoring>,
}

/// What a snapshot shows of the mode of a volume in it.
const VOLUME_MODE: u32 = 0o755;

/// What was there when a snapshot was taken, by path in its directory.
#[derive(Clone, Debug, Default)]
pub(crate) struct FrozenCopy {
    nodes: BTreeMap<String, (Kind, Arc<Attributes>, Arc<Content>)>,
    /// Of the directory itself.
    mode: u32,
    xattrs: BTreeMap<String, Vec<u8>>,
    /// By path the node, and its names in the whole volume.
    links: BTreeMap<String, (NodeId, u32)>,
    /// The directory, if it is not the first volume's root, and its path then.
    directory: Option<NodeId>,
    path: String,
    /// The root of its volume, if it is not that.
    volume: Option<NodeId>,
    /// Taking or deleting it has failed, or a crash came first: it may be there or not.
    pub is_uncertain: bool,
}

impl FrozenCopy {
    /// Compares with what a snapshot shows.
    pub fn check(&self, found: &Found) -> Result<(), String> {
        if let Some(path) = self.nodes.keys().find(|path| !found.contains_key(*path)) {
            return Err(format!("{path} is missing"));
        }
        for (path, there) in found {
            let Some((kind, attributes, content)) = self.nodes.get(path) else {
                return Err(format!("{path} should not be there"));
            };
            if *kind != there.kind || **attributes != there.attributes {
                return Err(format!(
                    "{path} is of another kind, or has other attributes"
                ));
            }
            if *kind == Kind::File && *content != there.content {
                return Err(format!("{path} has another content"));
            }
        }
        Ok(())
    }

    /// All paths.
    pub fn paths(&self) -> impl Iterator<Item = &String> {
        self.nodes.keys()
    }

    /// Paths and contents of files.
    pub fn files(&self) -> impl Iterator<Item = (&String, &Arc<Content>)> {
        let files = self.nodes.iter();
        let files = files.filter(|(_, (kind, ..))| *kind == Kind::File);
        files.map(|(path, (_, _, content))| (path, content))
    }
}

impl Model {
    pub fn new() -> Self {
        Self {
            moments: vec![Moment::default()],
            ever: BTreeSet::from([Content::default().hash()]),
            torn: VecDeque::new(),
            ..Self::default()
        }
    }

    /// Names or attributes have changed.
    fn note_moment(&mut self) {
        self.moments.push(self.now.clone());
    }

    pub fn names(&self) -> &Names {
        &self.now.names
    }

    pub fn node(&self, path: &str) -> NodeId {
        self.now.names[path]
    }

    pub fn kind(&self, path: &str) -> &Kind {
        &self.kinds[&self.node(path)]
    }

    pub fn add(&mut self, path: &str, kind: Kind, mode: u32) {
        self.next_node += 1;
        let node = self.next_node;
        let attributes = Attributes {
            mode,
            xattrs: BTreeMap::new(),
        };
        self.now.attributes.insert(node, Arc::new(attributes));
        self.now.names.insert(path.to_owned(), node);
        if kind == Kind::File {
            let version = Version {
                content: Arc::default(),
                written: 0,
                logged: None,
            };
            self.files.insert(node, vec![version]);
        }
        self.kinds.insert(node, kind);
        self.note_moment();
    }

    pub fn add_volume(&mut self, path: &str) {
        self.add(path, Kind::Directory, VOLUME_MODE);
        self.volumes.insert(self.next_node);
    }

    /// A new volume shows what a snapshot does.
    pub fn add_clone(&mut self, path: &str, snapshot: &str) {
        let copy = self.snapshots[snapshot].clone();
        let attributes = Attributes {
            mode: copy.mode,
            xattrs: copy.xattrs,
        };
        let root = self.add_node(Kind::Directory, Arc::new(attributes), Arc::default());
        self.now.names.insert(path.to_owned(), root);
        self.volumes.insert(root);
        self.origins.insert(root, snapshot.to_owned());
        let mut nodes: HashMap<NodeId, NodeId> = HashMap::new();
        for (rest, (kind, attributes, content)) in copy.nodes {
            let (there, links) = copy.links[&rest];
            let node = match nodes.get(&there) {
                Some(node) => *node,
                None => {
                    let node = self.add_node(kind, attributes, content);
                    self.links_outside.insert(node, links);
                    nodes.insert(there, node);
                    node
                }
            };
            *self.links_outside.entry(node).or_insert(1) -= 1;
            self.now.names.insert(format!("{path}/{rest}"), node);
        }
        self.note_moment();
    }

    fn add_node(
        &mut self,
        kind: Kind,
        attributes: Arc<Attributes>,
        content: Arc<Content>,
    ) -> NodeId {
        self.next_node += 1;
        let node = self.next_node;
        self.now.attributes.insert(node, attributes);
        if kind == Kind::File {
            let version = Version {
                content,
                written: 0,
                logged: None,
            };
            self.files.insert(node, vec![version]);
        }
        self.kinds.insert(node, kind);
        node
    }

    pub fn is_clone(&self, path: &str) -> bool {
        let node = self.now.names.get(path);
        node.is_some_and(|node| self.origins.contains_key(node))
    }

    /// Whether a clone that is there shows a snapshot.
    pub fn is_cloned(&self, snapshot: &str) -> bool {
        let mut nodes = self.now.names.values();
        nodes.any(|node| self.origins.get(node).is_some_and(|name| name == snapshot))
    }

    /// Removes a name and all below it.
    pub fn remove_tree(&mut self, path: &str) {
        self.take_below(path);
        self.note_moment();
    }

    pub fn is_volume(&self, path: &str) -> bool {
        let node = self.now.names.get(path);
        node.is_some_and(|node| self.volumes.contains(node))
    }

    /// The paths of all volumes but the first.
    pub fn volumes(&self) -> Vec<String> {
        let names = self.now.names.keys();
        names.filter(|path| self.is_volume(path)).cloned().collect()
    }

    /// The root of the volume that the directory is in, the empty path being the first.
    pub fn volume_of(&self, directory: &str) -> String {
        let mut at = directory;
        while !at.is_empty() && !self.is_volume(at) {
            at = at.rsplit_once('/').map_or("", |(above, _)| above);
        }
        at.to_owned()
    }

    /// Whether what has these names, or would have, is in one volume.
    pub fn in_one_volume(&self, one: &str, other: &str) -> bool {
        let directory = |path: &str| match path.rsplit_once('/') {
            Some((directory, _)) => self.volume_of(directory),
            None => String::new(),
        };
        directory(one) == directory(other)
    }

    pub fn link(&mut self, from: &str, to: &str) {
        let node = self.node(from);
        self.now.names.insert(to.to_owned(), node);
        self.note_moment();
    }

    pub fn remove(&mut self, path: &str) {
        self.now.names.remove(path);
        self.note_moment();
    }

    /// Attributes of a node, as they are now.
    pub fn attributes(&self, path: &str) -> &Attributes {
        &self.now.attributes[&self.node(path)]
    }

    pub fn change_attributes(&mut self, path: &str, change: impl FnOnce(&mut Attributes)) {
        let node = self.node(path);
        let attributes = self
            .now
            .attributes
            .get_mut(&node)
            .expect("every node has some");
        change(Arc::make_mut(attributes));
        self.note_moment();
    }

    /// Moves a name and everything below it; what had the new name is gone.
    pub fn rename(&mut self, from: &str, to: &str) {
        let moved = self.take_below(from);
        self.take_below(to);
        self.put_below(to, moved);
        self.note_moment();
    }

    /// Swaps two names and everything below them.
    pub fn exchange(&mut self, one: &str, other: &str) {
        let below_one = self.take_below(one);
        let below_other = self.take_below(other);
        self.put_below(one, below_other);
        self.put_below(other, below_one);
        self.note_moment();
    }

    fn take_below(&mut self, path: &str) -> Vec<(String, NodeId)> {
        let prefix = format!("{path}/");
        let names: Vec<String> = self
            .now
            .names
            .keys()
            .filter(|name| *name == path || name.starts_with(&prefix))
            .cloned()
            .collect();
        names
            .into_iter()
            .map(|name| {
                let node = self.now.names.remove(&name).expect("listed just above");
                (name[path.len()..].to_owned(), node)
            })
            .collect()
    }

    fn put_below(&mut self, path: &str, nodes: Vec<(String, NodeId)>) {
        for (rest, node) in nodes {
            self.now.names.insert(format!("{path}{rest}"), node);
        }
    }

    /// The newest content of a file, which may have lost its name.
    pub fn content(&self, node: NodeId) -> Arc<Content> {
        let newest = self.files[&node].last().expect("never empty");
        Arc::clone(&newest.content)
    }

    /// A file now has this content.
    pub fn set_content(&mut self, node: NodeId, content: Content) {
        self.ever.insert(content.hash());
        let content = Arc::new(content);
        let written = self.moments.len() - 1;
        let versions = self.files.get_mut(&node).expect("a file");
        let before = &versions.last().expect("never empty").content;
        if content.written_since(before) >= TORN_BYTES {
            self.torn.truncate(TORN_KEPT - 1);
            self.torn
                .push_front([Arc::clone(before), Arc::clone(&content)]);
        }
        versions.push(Version {
            content,
            written,
            logged: None,
        });
    }

    /// The newest content of a file is in the log: nothing that comes after in the log is found without it.
    pub fn note_logged(&mut self, node: NodeId) {
        let versions = self.files.get_mut(&node).expect("a file");
        let newest = versions.last_mut().expect("never empty");
        if newest.logged.is_none() {
            newest.logged = Some(self.moments.len());
            self.note_moment();
        }
    }

    /// Everything that is in the log is durable from now on.
    pub fn sync_log(&mut self) {
        let used: BTreeSet<NodeId> = self.now.names.values().copied().collect();
        self.now.attributes.retain(|node, _| used.contains(node));
        self.moments = vec![self.now.clone()];
        for versions in self.files.values_mut() {
            let oldest = versions
                .iter()
                .rposition(|version| version.logged.is_some());
            versions.drain(..oldest.unwrap_or(0));
            for version in versions {
                version.written = 0;
                version.logged = None;
            }
        }
    }

    /// A file and everything that is in the log are durable from now on.
    pub fn sync_file(&mut self, node: NodeId) {
        self.sync_log();
        let versions = self.files.get_mut(&node).expect("a file");
        versions.drain(..versions.len() - 1);
    }

    /// Everything is durable from now on.
    pub fn sync_all(&mut self) {
        self.sync_log();
        for versions in self.files.values_mut() {
            versions.drain(..versions.len() - 1);
        }
    }

    pub fn is_directory(&self, path: &str) -> bool {
        path.is_empty()
            || self
                .now
                .names
                .get(path)
                .is_some_and(|node| self.kinds[node] == Kind::Directory)
    }

    /// Whether a directory has entries.
    pub fn has_children(&self, path: &str) -> bool {
        let prefix = format!("{path}/");
        self.now.names.keys().any(|name| name.starts_with(&prefix))
    }

    /// Paths of directories, the root included.
    pub fn directories(&self) -> Vec<String> {
        std::iter::once(String::new())
            .chain(self.paths(&Kind::Directory))
            .collect()
    }

    /// Paths of regular files.
    pub fn files(&self) -> Vec<String> {
        self.paths(&Kind::File).collect()
    }

    fn paths(&self, wanted: &Kind) -> impl Iterator<Item = String> {
        self.now
            .names
            .iter()
            .filter(move |(_, node)| self.kinds[node] == *wanted)
            .map(|(path, _)| path.clone())
    }

    /// Compares with what was found while the file system was not interrupted.
    pub fn check_now(&self, found: &Found) -> Result<(), String> {
        if let Some(restoring) = &self.restoring {
            return self.check_restoring(restoring, found);
        }
        self.match_moment(&self.now, found)?;
        for (path, node) in &self.now.names {
            if self.kinds[node] == Kind::File && self.content(*node) != found[path].content {
                return Err(format!("{path} has not the content that was written"));
            }
        }
        Ok(())
    }

    /// Compares with what was found after a crash, and goes on from there.
    pub fn recover(&mut self, found: &Found) -> Result<(), String> {
        match self.restoring.take() {
            None => self.go_on_from(self.moment_of(found)?, found),
            Some(restoring) => {
                self.check_restoring(&restoring, found)?;
                self.take_over(&restoring, found)?;
            }
        }
        Ok(())
    }

    /// The newest moment since the last sync of which what was found is the state.
    pub fn moment_of(&self, found: &Found) -> Result<usize, String> {
        let mut reasons = Vec::new();
        for (at, moment) in self.moments.iter().enumerate().rev() {
            let matched = self
                .match_moment(moment, found)
                .and_then(|()| self.match_contents(at, moment, found));
            match matched {
                Ok(()) => return Ok(at),
                Err(reason) => reasons.push(format!("moment {at}: {reason}")),
            }
        }
        reasons.dedup();
        let shown = reasons.len().min(8);
        Err(format!(
            "what is there is the state of none of the {} moments since the last sync: {}",
            self.moments.len(),
            reasons[..shown].join("; ")
        ))
    }

    fn match_contents(&self, at: usize, moment: &Moment, found: &Found) -> Result<(), String> {
        for (path, node) in &moment.names {
            if self.kinds[node] != Kind::File {
                continue;
            }
            let versions = &self.files[node];
            let content = &found[path].content;
            let oldest = versions
                .iter()
                .rposition(|version| version.logged.is_some_and(|logged| logged <= at))
                .unwrap_or(0);
            let possible: Vec<&Content> = versions[oldest..]
                .iter()
                .filter(|version| version.written <= at)
                .map(|version| &*version.content)
                .collect();
            let may_tear = || {
                let pairs = possible.windows(2);
                pairs
                    .into_iter()
                    .any(|pair| pair[1].written_since(pair[0]) >= TORN_BYTES)
            };
            let allowed =
                possible.contains(&&**content) || (may_tear() && content.is_mix_of(&possible));
            if !allowed {
                let lengths: Vec<_> = versions
                    .iter()
                    .map(|version| (version.content.len(), version.written, version.logged))
                    .collect();
                return Err(format!(
                    "{path} has {} bytes that it could not have (length, written, logged: {lengths:?})",
                    content.len()
                ));
            }
        }
        Ok(())
    }

    fn go_on_from(&mut self, at: usize, found: &Found) {
        self.now = self.moments.swap_remove(at);
        let mut files = HashMap::new();
        for (path, node) in &self.now.names {
            if self.kinds[node] == Kind::File {
                self.ever.insert(found[path].content.hash());
                let version = Version {
                    content: Arc::clone(&found[path].content),
                    written: 0,
                    logged: None,
                };
                files.insert(*node, vec![version]);
            }
        }
        self.files = files;
        self.sync_log();
    }

    /// Same paths, kinds, targets, attributes, link counts, and the same names for the same inode.
    fn match_moment(&self, moment: &Moment, found: &Found) -> Result<(), String> {
        let names = &moment.names;
        if let Some(path) = names.keys().find(|path| !found.contains_key(*path)) {
            return Err(format!("{path} is missing"));
        }
        if let Some(path) = found.keys().find(|path| !names.contains_key(*path)) {
            return Err(format!("{path} should not be there"));
        }
        let mut inodes: HashMap<NodeId, u64> = HashMap::new();
        let mut nodes: HashMap<u64, NodeId> = HashMap::new();
        let mut links: HashMap<NodeId, u32> = HashMap::new();
        for (path, node) in names {
            let ino = found[path].ino;
            if *inodes.entry(*node).or_insert(ino) != ino
                || *nodes.entry(ino).or_insert(*node) != *node
            {
                return Err(format!("{path} is not linked to the inode it should be"));
            }
            *links.entry(*node).or_default() += 1;
        }
        for (path, node) in names {
            let there = &found[path];
            if self.kinds[node] != there.kind || self.volumes.contains(node) != there.is_volume {
                return Err(format!("{path} is of another kind, or points elsewhere"));
            }
            if *moment.attributes[node] != there.attributes {
                return Err(format!(
                    "{path} has {:?} instead of {:?}",
                    there.attributes, moment.attributes[node]
                ));
            }
            let outside = self.links_outside.get(node).copied().unwrap_or(0);
            let links = links[node] + outside;
            if there.kind != Kind::Directory && there.nlink != links {
                return Err(format!(
                    "{path} has {} links instead of {links}",
                    there.nlink
                ));
            }
        }
        Ok(())
    }

    /// All that is below a directory, as it is now.
    pub fn freeze(&self, directory: &str) -> FrozenCopy {
        let prefix = match directory {
            "" => String::new(),
            directory => format!("{directory}/"),
        };
        let volume = self.volume_of(directory);
        let attributes = self.now.names.get(directory);
        let attributes = attributes.map(|node| &self.now.attributes[node]);
        let mut counts: HashMap<NodeId, u32> = HashMap::new();
        for node in self.now.names.values() {
            *counts.entry(*node).or_default() += 1;
        }
        let links = self.now.names.iter().filter_map(|(whole, node)| {
            let path = whole.strip_prefix(&prefix)?;
            let outside = self.links_outside.get(node).copied().unwrap_or(0);
            Some((path.to_owned(), (*node, counts[node] + outside)))
        });
        let nodes = self.now.names.iter().filter_map(|(whole, node)| {
            let path = whole.strip_prefix(&prefix)?;
            let above = whole.rsplit_once('/').map_or("", |(above, _)| above);
            if self.volume_of(above) != volume {
                return None;
            }
            if self.is_volume(whole) {
                let attributes = Attributes {
                    mode: VOLUME_MODE,
                    xattrs: BTreeMap::new(),
                };
                let shown = (Kind::Directory, Arc::new(attributes), Arc::default());
                return Some((path.to_owned(), shown));
            }
            let kind = self.kinds[node].clone();
            let content = match kind {
                Kind::File => self.content(*node),
                _ => Arc::default(),
            };
            let attributes = Arc::clone(&self.now.attributes[node]);
            Some((path.to_owned(), (kind, attributes, content)))
        });
        FrozenCopy {
            nodes: nodes.collect(),
            mode: attributes.map_or(VOLUME_MODE, |attributes| attributes.mode),
            xattrs: attributes.map_or_else(BTreeMap::new, |attributes| attributes.xattrs.clone()),
            links: links.collect(),
            directory: self.now.names.get(directory).copied(),
            path: directory.to_owned(),
            volume: self.now.names.get(&volume).copied(),
            is_uncertain: false,
        }
    }

    /// Whether some file has had this content at some time, or a part of a large write may have left it.
    pub fn has_ever_been(&self, content: &Content) -> bool {
        let mut torn = self.torn.iter();
        self.ever.contains(&content.hash())
            || torn.any(|[before, after]| content.is_mix_of(&[before, after]))
    }
}
