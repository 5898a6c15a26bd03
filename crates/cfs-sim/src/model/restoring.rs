//! What may be found while a snapshot is restored, and what must be found afterwards.
//!
//! Restoring is many commands. It begins from what is durable, and each path then is what it was or what the snapshot
//! shows, as a whole: a crash or a failure in the middle may leave any mixture of paths. What is found is taken over.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::{Found, FoundNode, FrozenCopy, Kind, Model, Moment, NodeId, Version};

/// The mode of a directory that has just been made for what is in it.
const MADE_MODE: u32 = 0o700;
/// What the names of files begin with that are about to take the place of others.
const TEMPORARY_NAME: &str = ".cfs-restore-";

/// A restoration that has begun.
#[derive(Clone, Debug)]
pub(crate) struct Restoring {
    /// The snapshot, as it was taken.
    copy: FrozenCopy,
    /// Where its directory is put.
    root: String,
    /// The path in it that is restored, or all.
    below: String,
    /// What the snapshot does not show is removed.
    pub removes_new: bool,
    /// Inodes that there were, and what they are here.
    nodes: HashMap<u64, NodeId>,
}

/// Whether a path is another, or below it; all are below the empty one.
fn is_below(path: &str, above: &str) -> bool {
    let rest = path.strip_prefix(above);
    rest.is_some_and(|rest| rest.is_empty() || above.is_empty() || rest.starts_with('/'))
}

pub(crate) fn join(above: &str, below: &str) -> String {
    match (above, below) {
        ("", path) | (path, "") => path.to_owned(),
        (above, below) => format!("{above}/{below}"),
    }
}

impl Restoring {
    /// The path in the snapshot of what is or was at a path, if it is about it.
    fn path_then<'a>(&self, path: &'a str) -> Option<&'a str> {
        let rest = path.strip_prefix(&self.root)?;
        match self.root.is_empty() {
            true => Some(rest),
            false if rest.is_empty() => Some(""),
            false => rest.strip_prefix('/'),
        }
    }

    /// Whether a path in the snapshot is restored.
    fn is_wanted(&self, path_then: &str) -> bool {
        is_below(path_then, &self.below)
    }

    /// Whether a node is what the snapshot shows at a path.
    fn is_then(&self, path_then: &str, there: &FoundNode) -> bool {
        if path_then.is_empty() {
            let (mode, xattrs) = (self.copy.mode, &self.copy.xattrs);
            return there.attributes.mode == mode && there.attributes.xattrs == *xattrs;
        }
        self.copy
            .nodes
            .get(path_then)
            .is_some_and(|(kind, attributes, content)| {
                let has_content = *kind != Kind::File || *content == there.content;
                *kind == there.kind && **attributes == there.attributes && has_content
            })
    }
}

impl Model {
    /// A snapshot is about to be restored; all that is here is durable. `inos` are those of all names.
    pub fn begin_restoring(
        &mut self,
        snapshot: &str,
        (root, below): (&str, &str),
        removes_new: bool,
        inos: &BTreeMap<String, u64>,
    ) {
        let nodes = self.now.names.iter();
        let nodes = nodes.filter_map(|(path, node)| Some((*inos.get(path)?, *node)));
        self.restoring = Some(Restoring {
            copy: self.snapshots[snapshot].clone(),
            root: root.to_owned(),
            below: below.to_owned(),
            removes_new,
            nodes: nodes.collect(),
        });
    }

    /// Where a snapshot's directory is now, or was if it is gone; `None` where that is not in its volume.
    pub fn place_to_restore(&self, snapshot: &str) -> Option<String> {
        let copy = &self.snapshots[snapshot];
        let place = match copy.directory {
            None => String::new(),
            Some(node) => {
                let mut names = self.now.names.iter();
                let now = names.find(|(_, other)| **other == node);
                now.map_or_else(|| copy.path.clone(), |(path, _)| path.clone())
            }
        };
        let above = place.rsplit_once('/').map_or("", |(above, _)| above);
        let is_free = !self.now.names.contains_key(&place);
        if !self.is_directory(above) || (!is_free && !self.is_directory(&place)) {
            return None;
        }
        let volume = self.volume_of(match is_free {
            true => above,
            false => &place,
        });
        let node = self.now.names.get(&volume).copied();
        (node == copy.volume).then_some(place)
    }

    /// Whether something is in the way of a path in a snapshot: of another kind, or a volume.
    pub fn is_in_the_way(&self, snapshot: &str, root: &str, path_then: &str) -> bool {
        let copy = &self.snapshots[snapshot];
        let mut at = String::new();
        for part in path_then.split('/').filter(|part| !part.is_empty()) {
            at = join(&at, part);
            let path = join(root, &at);
            let Some(node) = self.now.names.get(&path) else {
                return false;
            };
            let is_directory = copy.nodes[&at].0 == Kind::Directory;
            if self.volumes.contains(node) || is_directory != (self.kinds[node] == Kind::Directory)
            {
                return true;
            }
        }
        false
    }

    /// Compares what was found with what may be there while a snapshot is restored.
    ///
    /// # Errors
    /// What may not be.
    pub fn check_restoring(&self, restoring: &Restoring, found: &Found) -> Result<(), String> {
        // Names that a file has here; what is restored to one is seen by all.
        let mut names: HashMap<NodeId, Vec<&str>> = HashMap::new();
        for (path, node) in &self.now.names {
            names.entry(*node).or_default().push(path);
        }
        for (path, there) in found {
            let before = self.now.names.get(path);
            let node = restoring.nodes.get(&there.ino).copied();
            // What the inode was here.
            let was = node.is_some_and(|node| {
                let has_content = there.kind != Kind::File || *self.content(node) == *there.content;
                *self.now.attributes[&node] == there.attributes
                    && self.kinds[&node] == there.kind
                    && has_content
            });
            if was && before == node.as_ref() {
                continue;
            }
            let then = restoring.path_then(path);
            let wanted = then.filter(|then| restoring.is_wanted(then));
            let on_the_way = then.filter(|then| is_below(&restoring.below, then));
            let is_then = |path: &str| restoring.is_then(path, there);
            let is_its_name = wanted.is_some_and(&is_then)
                || on_the_way.is_some_and(|path| there.kind == Kind::Directory && is_then(path));
            let made = there.kind == Kind::Directory
                && node.is_none()
                && there.attributes.mode == MADE_MODE
                && there.attributes.xattrs.is_empty()
                && (wanted.or(on_the_way)).is_some_and(|path| {
                    match restoring.copy.nodes.get(path) {
                        Some((kind, ..)) => *kind == Kind::Directory,
                        None => path.is_empty(),
                    }
                });
            let other_names = node.and_then(|node| names.get(&node));
            let by_another_name = || {
                let mut names = other_names.into_iter().flatten();
                names.any(|name| {
                    let then = restoring.path_then(name);
                    then.is_some_and(|then| restoring.is_wanted(then) && is_then(then))
                })
            };
            let is_temporary = path
                .rsplit('/')
                .next()
                .is_some_and(|name| name.starts_with(TEMPORARY_NAME));
            let may_be = is_its_name
                || made
                || (before == node.as_ref() && before.is_some() && by_another_name())
                || is_temporary;
            if !may_be {
                return Err(format!(
                    "{path} is {there}, which it was not, and {} in the snapshot",
                    then.map_or("is not".to_owned(), |then| format!("not as {then}"))
                ));
            }
        }
        for path in self.now.names.keys() {
            if found.contains_key(path) {
                continue;
            }
            let then = restoring.path_then(path);
            let wanted = then.filter(|then| restoring.is_wanted(then));
            // One that is of another kind then, or below one that is, has to make room.
            let may_go = wanted.is_some_and(|then| {
                let is_new = |then: &str| match restoring.copy.nodes.get(then) {
                    None => !then.is_empty(),
                    Some((kind, ..)) => {
                        let now = self.kind(&join(&restoring.root, then));
                        (*kind == Kind::Directory) != (*now == Kind::Directory)
                    }
                };
                let mut ends = then
                    .match_indices('/')
                    .map(|(at, _)| at)
                    .collect::<Vec<_>>();
                ends.push(then.len());
                ends.into_iter().any(|end| is_new(&then[..end]))
            });
            if !restoring.removes_new || !may_go {
                return Err(format!("{path} is missing"));
            }
        }
        Ok(())
    }

    /// Compares what was found with what a snapshot has been restored to; of problems that were told, some paths may
    /// not be.
    ///
    /// # Errors
    /// What is otherwise.
    pub fn check_restored(&self, restoring: &Restoring, found: &Found) -> Result<(), String> {
        let mut inodes: HashMap<NodeId, u64> = HashMap::new();
        let mut nodes: HashMap<u64, NodeId> = HashMap::new();
        let is_all = restoring.below.is_empty();
        if is_all
            && !restoring.root.is_empty()
            && !found
                .get(&restoring.root)
                .is_some_and(|there| restoring.is_then("", there))
        {
            return Err(format!("/{} is not restored itself", restoring.root));
        }
        let mut behind_volume: Vec<&str> = Vec::new();
        for (then, (kind, ..)) in &restoring.copy.nodes {
            if !restoring.is_wanted(then) || behind_volume.iter().any(|it| is_below(then, it)) {
                continue;
            }
            let path = join(&restoring.root, then);
            let Some(there) = found.get(&path) else {
                return Err(format!("{path} has not come back"));
            };
            if there.is_volume && *kind == Kind::Directory {
                behind_volume.push(then);
                continue;
            }
            if !restoring.is_then(then, there) {
                return Err(format!("{path} is {there}, not as in the snapshot"));
            }
            let (node, _) = restoring.copy.links[then];
            if *inodes.entry(node).or_insert(there.ino) != there.ino
                || *nodes.entry(there.ino).or_insert(node) != node
            {
                return Err(format!("{path} is linked to another inode than then"));
            }
        }
        let mut new = found.keys().filter(|path| {
            let then = restoring.path_then(path);
            let then = then.filter(|then| !then.is_empty() && restoring.is_wanted(then));
            then.is_some_and(|then| {
                !restoring.copy.nodes.contains_key(then)
                    && !behind_volume.iter().any(|it| is_below(then, it))
            })
        });
        match new.next() {
            Some(path) if restoring.removes_new => Err(format!("{path} was made since")),
            _ => Ok(()),
        }
    }

    /// The file of a clone that has got the name again: it had lost all that the clone shows, and was kept for others.
    fn named_again(&self, restoring: &Restoring, path: &str, there: &FoundNode) -> Option<NodeId> {
        let then = restoring.path_then(path)?;
        let (node, links) = *restoring.copy.links.get(then)?;
        let outside = *self.links_outside.get(&node)?;
        (outside > 0 && there.nlink > 1 && there.nlink <= links).then_some(node)
    }

    /// Goes on from what was found after a restoration, or in the middle of one.
    ///
    /// # Errors
    /// What does not fit together in it.
    pub fn take_over(&mut self, restoring: &Restoring, found: &Found) -> Result<(), String> {
        let mut nodes = restoring.nodes.clone();
        let mut now = Moment::default();
        let mut files = HashMap::new();
        for (path, there) in found {
            if !nodes.contains_key(&there.ino)
                && let Some(node) = self.named_again(restoring, path, there)
                && !nodes.values().any(|other| *other == node)
            {
                nodes.insert(there.ino, node);
            }
            let node = *nodes.entry(there.ino).or_insert_with(|| {
                self.next_node += 1;
                self.kinds.insert(self.next_node, there.kind.clone());
                self.next_node
            });
            let attributes = Arc::new(there.attributes.clone());
            now.attributes.insert(node, attributes);
            now.names.insert(path.clone(), node);
            if there.kind == Kind::File {
                self.ever.insert(there.content.hash());
                let version = Version {
                    content: Arc::clone(&there.content),
                    written: 0,
                    logged: None,
                };
                files.insert(node, vec![version]);
            }
        }
        let used: BTreeSet<NodeId> = now.names.values().copied().collect();
        self.volumes.retain(|node| used.contains(node));
        self.now = now;
        self.files = files;
        self.restoring = None;
        self.sync_log();
        self.match_moment(&self.now, found)
    }
}
