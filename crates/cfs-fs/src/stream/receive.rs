//! Receiving a snapshot: a directory becomes what the messages say, and then a snapshot of it is taken.
//!
//! Each inode that was received has a record with its number there, by which it is found again whatever its name. What is
//! new is made in a directory of its own below the target, and moves to its name from there.
//!
//! Invariant: a snapshot that was received shows what was sent, and nothing else. The target can be changed by others until
//! a stream comes, also between one that was cut off and the next one. So each attempt first closes the volume to them, see
//! `closed`, goes back to the snapshot that it goes on from, or to nothing, and one that cannot ends. What had come before is not lost by that: a snapshot that
//! lists do not tell of holds its chunks until the attempt that comes to its end, and those are not sent again.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::Arc;

use cfs_format::table::{LOCK_NAME, tag};
use cfs_format::{DomainId, Ino, VolumeId};
use cfs_seal::block::Cipher;
use cfs_seal::keys::DomainSecret;

use super::arrival::Waiting;
use super::keep::Keeping;
use super::keys::Role;
use super::wire::{
    About, Body, FrameReader, FrameWriter, Hello, Message, Name, Node, Opening, Part, Reply,
    TreeMessage, TreeReader, answerer_cipher, read_head, sender_cipher,
};
use super::{ROOT, Result, StreamError};
use crate::error::FsError;
use crate::namespace::publish::RecordChange;
use crate::types::{Attr, RenameFlags, SetAttr, SetTime, Time};
use crate::views::Snapshot;
use crate::{Fs, RestoreObserver, inode, row};

/// What the names of records of replicas begin with.
const RECORDS: &[u8] = b"replica.";
/// Record of an inode: its number in the sending pool.
const NUMBER: &[u8] = b"replica.inode";
/// Record of the target: UUID of the sending pool, and the directory's number there.
pub(super) const ORIGIN: &[u8] = b"replica.of";
/// Record of the target: timestamp there of the snapshot that is being received.
pub(super) const PENDING: &[u8] = b"replica.pending";
/// Record of the target, there only while the snapshot is taken that then shows it, and so says itself what it is: its
/// timestamp in the sending pool, and its name.
const RECEIVED: &[u8] = b"replica.received";
/// What the names of snapshots begin with that hold what has come of a stream that was cut off.
const ARRIVED: &[u8] = b".cfs-received-";

/// Extended attributes that one command sets, or removes. A command has room for as many of the longest.
const XATTRS_AT_ONCE: usize = 8;

/// Where inodes are until they have a name.
const STAGING: &[u8] = b".cfs-receive";
/// What the names there begin with of what has lost its name to another.
const DISPLACED: &str = "displaced-";

/// Names that receiving uses are no names for snapshots.
///
/// # Errors
/// [`FsError::Invalid`].
pub(crate) fn check_snapshot_name(name: &[u8]) -> crate::Result<()> {
    match name.starts_with(ARRIVED) {
        true => Err(FsError::Invalid),
        false => Ok(()),
    }
}

fn is_of_replica(name: &[u8]) -> bool {
    name.starts_with(RECORDS)
}

/// Whether a record of an inode is of its pool alone: not sent, and not replaced by what is received. Locks hold where they
/// were set.
pub(crate) fn record_stays(ino: Ino, name: &[u8]) -> bool {
    is_of_replica(name) || name == LOCK_NAME || is_of_pool(ino, name)
}

/// Whether a record is of the pool rather than of the inode that it is kept with: on the root are the users of the S3 face
/// and the policies of snapshots.
pub(crate) fn is_of_pool(ino: Ino, name: &[u8]) -> bool {
    ino == Ino::ROOT && (name.starts_with(b"s3.") || name.starts_with(b"snapshots."))
}

/// Whether a snapshot only holds what has come of a stream that was cut off. Lists leave it out.
#[must_use]
pub fn holds_arrivals(snapshot: &Snapshot) -> bool {
    snapshot.name.starts_with(ARRIVED)
}

/// What was received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// The directory.
    pub path: Vec<u8>,
    /// The snapshot.
    pub name: Vec<u8>,
    /// It was here already.
    pub had_all: bool,
    /// It is kept as it came: this pool cannot read it, and tells no inodes.
    pub kept: bool,
    /// Inodes that came.
    pub inodes: u64,
    /// Chunks that came.
    pub chunks: u64,
}

/// Keeps others from receiving into the same directory, and, once it is closed, from changing it.
struct Turn<'a> {
    fs: &'a Fs,
    root: Ino,
    closed: Option<VolumeId>,
}

impl Turn<'_> {
    fn close(&mut self) -> Result<()> {
        let volume = self.fs.getattr(self.root)?.volume;
        self.fs.close_to_others(volume)?;
        self.closed = Some(volume);
        Ok(())
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(volume) = self.closed {
            self.fs.open_to_others(volume);
        }
        self.fs.receiving.lock().remove(&self.root);
    }
}

/// What comes, whoever takes it.
pub(super) struct Coming<'a, 'r> {
    pub frames: &'a mut FrameReader<'r>,
    pub replies: &'a mut FrameWriter<'r>,
    pub hello: &'a Hello,
    pub first: Part,
}

struct Receiving<'a> {
    fs: &'a Fs,
    root: Ino,
    hello: &'a Hello,
    secret: &'a DomainSecret,
    /// The snapshot that the part that is coming goes on from, by its timestamp there, and the one that it leads to.
    base: Option<u64>,
    at: Option<u64>,
    /// Of the part that is coming.
    tree: Option<TreeReader>,
    domain: DomainId,
    /// The target when the part began.
    root_before: Attr,
    staging: Ino,
    /// Numbers there to inodes here.
    here: HashMap<u64, Ino>,
    /// Inodes that have no name yet but this one in the staging directory.
    staged: HashMap<Ino, Vec<u8>>,
    waiting: Waiting,
    /// The inode whose content is coming.
    open: Option<(Ino, Node)>,
    /// Directories get their attributes when no names in them change any more.
    directories: Vec<(Ino, Node)>,
    moves: Vec<Name>,
    has_moved: bool,
    observer: &'a mut dyn RestoreObserver,
    received: Received,
}

impl Fs {
    /// Receives a stream into a directory: the one at `path`, or, without that, the one that has the path that it had
    /// there. It is made, as a volume, if it is not there. `replies` go to a sender that waits for them. Of `input` no more is
    /// read than the stream has, so that another one can follow it.
    ///
    /// # Errors
    /// See [`StreamError`]. There is no new snapshot then; what has come is kept, and need not be sent again. What others
    /// changed in the directory since the last snapshot that was received is undone by each attempt, and what they would
    /// change while a stream comes is refused.
    pub fn receive(
        &self,
        path: Option<&[u8]>,
        input: &mut dyn Read,
        replies: &mut dyn Write,
        observer: &mut dyn RestoreObserver,
    ) -> Result<Received> {
        let head = read_head(input)?;
        let role = self.role()?;
        let passage = role.passage();
        if Cipher::from_number(head.cipher) != Some(self.store.cipher()) {
            return Err(StreamError::NotAStream("of a pool with this cipher"));
        }
        let mut frames = FrameReader::new(input, sender_cipher(&passage, &head));
        let Message::Hello(hello) = frames.get()? else {
            return Err(StreamError::Contradiction(
                "it does not begin with a greeting",
            ));
        };
        let mut salt = [0; 32];
        self.host.fill_random(&mut salt);
        let cipher = answerer_cipher(&passage, &head, &salt);
        let mut replies = FrameWriter::new(replies, cipher);
        if hello.waits {
            replies.plain(&salt)?;
        }
        let result = self.receive_all(path, &role, &hello, &mut frames, &mut replies, observer);
        if hello.waits {
            // The sender is told, if it can be.
            match &result {
                Ok(received) if received.had_all => {}
                Ok(_) => replies.put(&Reply::Done)?,
                Err(error) => drop(replies.put(&Reply::Failed(error.to_string()))),
            }
            let _ = replies.flush();
        }
        result
    }

    fn receive_all<'r>(
        &self,
        path: Option<&[u8]>,
        role: &Role,
        hello: &Hello,
        frames: &mut FrameReader<'r>,
        replies: &mut FrameWriter<'r>,
        observer: &mut dyn RestoreObserver,
    ) -> Result<Received> {
        crate::directory::check_name(&hello.name)?;
        check_snapshot_name(&hello.name)?;
        let about = match role {
            Role::Reads(secret) => Some(self.open_part(secret, hello, &hello.opening, 0)?.1),
            Role::Keeps(_) => None,
        };
        let default = match &about {
            Some(about) => about.path.clone(),
            None => default_path(hello),
        };
        let path = path.unwrap_or(&default);
        let target = self.target(path, hello, about.as_ref())?;
        let turn = target.root.map(|root| self.take_turn(root)).transpose()?;
        let had = match target.root {
            Some(root) => self.received_snapshots(root)?,
            None => Vec::new(),
        };
        let of = |there: u64| had.iter().find(|(_, it)| *it == there).map(|(it, _)| it);
        let mut has = hello.bases.iter().copied().find(|base| of(*base).is_some());
        let complete = of(hello.timestamp).is_some();
        if let (Role::Keeps(_), Some(base)) = (role, has.and_then(of))
            && !complete
            && self.is_long_chain(base)
        {
            has = None;
        }
        let mut received = Received {
            path: path.to_vec(),
            name: hello.name.clone(),
            had_all: complete,
            kept: about.is_none(),
            ..Received::default()
        };
        if hello.waits {
            replies.put(&Reply::Have {
                base: has,
                complete,
            })?;
            replies.flush()?;
        }
        if complete {
            if !hello.waits {
                skip(frames, observer)?;
            }
            return Ok(received);
        }
        let taken = self.views.all();
        if taken
            .iter()
            .any(|it| Some(it.directory) == target.root && it.name == hello.name)
        {
            let name = String::from_utf8_lossy(&hello.name).into_owned();
            return Err(StreamError::Target(format!(
                "it has another snapshot {name} here already"
            )));
        }
        let Message::Part(first) = frames.get()? else {
            return Err(StreamError::Contradiction(
                "it does not say from where it goes on",
            ));
        };
        let base = match first.base {
            None => None,
            Some(there) => match of(there) {
                Some(base) => Some(Snapshot::clone(base)),
                None => {
                    return Err(StreamError::NoBase(
                        "receive the earlier ones first, or send all of it".to_owned(),
                    ));
                }
            },
        };
        let root = self.make_ready(path, &target, observer)?;
        let mut turn = match turn {
            Some(turn) => turn,
            None => self.take_turn(root)?,
        };
        turn.close()?;
        // Where nobody reads, all there is came with streams.
        let is_known = !had.is_empty() || about.is_none();
        self.go_back(
            (root, path, is_known),
            hello.timestamp,
            base.as_ref(),
            observer,
        )?;
        let coming = Coming {
            frames,
            replies,
            hello,
            first,
        };
        match role {
            Role::Reads(secret) => {
                let domain = about.map_or(DomainId::DEFAULT, |about| DomainId(about.domain));
                let done = Receiving::run(self, (root, domain), secret, coming, observer)?;
                (received.inodes, received.chunks) = (done.inodes, done.chunks);
            }
            Role::Keeps(_) => {
                // The newest has all chunks that what comes can have in common with any before it.
                let mut earlier = self.arrived(root);
                earlier.reverse();
                earlier.extend(had.into_iter().next_back().map(|(snapshot, _)| snapshot));
                received.chunks = Keeping::run(self, root, earlier, coming, observer)?;
            }
        }
        if self.resolve(path)?.ino != root {
            return Err(StreamError::Target(
                "it was moved while it was received".to_owned(),
            ));
        }
        let stamp = [&hello.timestamp.to_le_bytes()[..], &hello.name].concat();
        self.put_record(root, RECEIVED, Some(&stamp))?;
        self.snapshot_create(path, &hello.name)?;
        let mut change = RecordChange::default();
        change.delete.extend([PENDING.to_vec(), RECEIVED.to_vec()]);
        self.set_records(root, change)?;
        self.drop_arrived(root, None)?;
        Ok(received)
    }

    /// Opens a part of the stream that begins with this greeting.
    fn open_part(
        &self,
        secret: &DomainSecret,
        hello: &Hello,
        opening: &Opening,
        frame: u64,
    ) -> Result<(TreeReader, About)> {
        let (tree, about) = TreeReader::begin(secret, self.store.cipher(), opening, frame)?;
        let is_same = (about.pool, about.directory) == (hello.pool, hello.directory);
        let is_last = *opening == hello.opening;
        if !is_same || is_last && (about.timestamp, &about.name) != (hello.timestamp, &hello.name) {
            return Err(StreamError::Contradiction("a part is about something else"));
        }
        Ok((tree, about))
    }

    fn take_turn(&self, root: Ino) -> Result<Turn<'_>> {
        if !self.receiving.lock().insert(root) {
            return Err(StreamError::Target(
                "another stream is being received there".to_owned(),
            ));
        }
        Ok(Turn {
            fs: self,
            root,
            closed: None,
        })
    }

    /// Makes the target what the snapshot was that the stream goes on from; without one, empty, unless it is not known to
    /// hold what was received.
    fn go_back(
        &self,
        (root, path, is_known): (Ino, &[u8], bool),
        timestamp: u64,
        base: Option<&Snapshot>,
        observer: &mut dyn RestoreObserver,
    ) -> Result<()> {
        let pending = timestamp.to_le_bytes();
        let was_cut_off = self.record(root, PENDING)?;
        self.drop_arrived(root, Some(timestamp))?;
        match &was_cut_off {
            Some(earlier) if earlier[..] == pending => {
                let number = self.views.all().len();
                let name = [ARRIVED, format!("{timestamp:x}-{number}").as_bytes()].concat();
                self.take_snapshot(path, &name)?;
            }
            Some(_) => {}
            None if !is_known && !self.names_from(root, b"", 1)?.is_empty() => {
                return Err(StreamError::Target(
                    "it holds files, and no snapshot that was received; remove them first"
                        .to_owned(),
                ));
            }
            None => {}
        }
        self.put_record(root, PENDING, Some(&pending))?;
        let mut problems = 0;
        match base {
            Some(base) => {
                let restored = self.snapshot_restore(base, path, b"", true, observer)?;
                problems = restored.problems;
            }
            None => {
                for entry in self.names_from(root, b"", usize::MAX)? {
                    self.remove_below(root, &entry.name, &mut |parent, name| {
                        observer.entry_changed(parent, name);
                    })?;
                }
            }
        }
        if !observer.goes_on() {
            return Err(StreamError::Io(std::io::ErrorKind::Interrupted.into()));
        }
        if problems > 0 {
            return Err(StreamError::Target(format!(
                "it cannot go back to the snapshot that the stream goes on from: {problems} objects stand in the way"
            )));
        }
        let mut change = RecordChange::default();
        change.put.push((PENDING.to_vec(), pending.to_vec()));
        change.delete.push(RECEIVED.to_vec());
        Ok(self.set_records(root, change)?)
    }

    /// Snapshots that hold what has come of streams that were cut off.
    fn arrived(&self, root: Ino) -> Vec<Arc<Snapshot>> {
        let mut all = self.views.all();
        all.retain(|snapshot| snapshot.directory == root && holds_arrivals(snapshot));
        all
    }

    /// Deletes those, but not of the stream with this timestamp.
    fn drop_arrived(&self, root: Ino, but: Option<u64>) -> Result<()> {
        let kept = but.map(|but| [ARRIVED, format!("{but:x}-").as_bytes()].concat());
        for snapshot in self.arrived(root) {
            let is_kept = kept
                .as_ref()
                .is_some_and(|kept| snapshot.name.starts_with(kept));
            if !is_kept {
                self.snapshot_delete(&snapshot)?;
            }
        }
        Ok(())
    }

    /// Removes a name, and all below it, but no volume.
    fn remove_below(
        &self,
        parent: Ino,
        name: &[u8],
        removed: &mut dyn FnMut(Ino, &[u8]),
    ) -> Result<()> {
        let mut waiting = vec![(parent, name.to_vec(), false)];
        while let Some((parent, name, is_empty)) = waiting.pop() {
            let Some(there) = self.find_name(parent, &name)? else {
                continue;
            };
            if there.kind != libc::S_IFDIR {
                self.unlink(parent, &name)?;
            } else if is_empty {
                self.rmdir(parent, &name)?;
            } else if self.views.junction(there.ino).is_some() {
                return Err(FsError::Volume.into());
            } else {
                waiting.push((parent, name, true));
                let below = self.names_from(there.ino, b"", usize::MAX)?.into_iter();
                waiting.extend(below.map(|entry| (there.ino, entry.name, false)));
                continue;
            }
            removed(parent, &name);
        }
        Ok(())
    }

    pub(super) fn put_record(&self, ino: Ino, name: &[u8], value: Option<&[u8]>) -> Result<()> {
        let mut change = RecordChange::default();
        match value {
            Some(value) => change.put.push((name.to_vec(), value.to_vec())),
            None => change.delete.push(name.to_vec()),
        }
        Ok(self.set_records(ino, change)?)
    }

    /// Snapshots of the target that were received, each with its timestamp there.
    fn received_snapshots(&self, root: Ino) -> Result<Vec<(Arc<Snapshot>, u64)>> {
        let mut found = Vec::new();
        for snapshot in self.views.all() {
            if snapshot.directory == root
                && let Some(there) = self.received_as(&snapshot)?
            {
                found.push((snapshot, there));
            }
        }
        Ok(found)
    }

    /// The timestamp there of a snapshot that was received; of any other none.
    pub(super) fn received_as(&self, snapshot: &Snapshot) -> Result<Option<u64>> {
        let root = snapshot.directory;
        let shown = root.in_view(snapshot.view).ok_or(FsError::TooLarge)?;
        let place = self.views.place(shown)?;
        if place.ino != root {
            // A clone of what was received, and not changed when the snapshot was taken.
            return Ok(None);
        }
        let Some(value) = self.views.get(place, tag::XATTR, RECEIVED)? else {
            return Ok(None);
        };
        let value = row::content(value)?;
        // One that was taken here later shows the same, and has another name.
        Ok(value
            .split_first_chunk::<8>()
            .filter(|(_, name)| *name == snapshot.name)
            .map(|(there, _)| u64::from_le_bytes(*there)))
    }

    /// Pool and directory of which the directory of a snapshot that was received is a replica.
    pub(super) fn origin(&self, directory: Ino) -> Result<Option<([u8; 16], u64)>> {
        let origin = self.record(directory, ORIGIN)?;
        let origin = origin.map(<[u8; 24]>::try_from).transpose();
        let origin = origin.map_err(|_| FsError::damaged("what a replica is of"))?;
        Ok(origin.map(|bytes| {
            let (pool, directory) = bytes.split_at(16);
            let directory = directory.try_into().expect("8 bytes are left");
            let pool = pool.try_into().expect("16 bytes");
            (pool, u64::from_le_bytes(directory))
        }))
    }
}

/// Reads on to the end of a stream of which all is here: another one may follow. Where it is cut off, nothing is missing.
fn skip(frames: &mut FrameReader<'_>, observer: &mut dyn RestoreObserver) -> Result<()> {
    loop {
        match frames.get() {
            Ok(Message::End(_) | Message::Failed) | Err(StreamError::CutOff) => return Ok(()),
            Ok(_) if observer.goes_on() => {}
            Ok(_) => return Err(StreamError::Io(std::io::ErrorKind::Interrupted.into())),
            Err(error) => return Err(error),
        }
    }
}

/// Where what a pool keeps goes if nobody says: the path there is sealed.
fn default_path(hello: &Hello) -> Vec<u8> {
    let [a, b, c, d, ..] = hello.pool;
    format!("/{a:02x}{b:02x}{c:02x}{d:02x}-{}", hello.directory).into_bytes()
}

impl<'a> Receiving<'a> {
    /// Receives all parts.
    fn run(
        fs: &'a Fs,
        (root, domain): (Ino, DomainId),
        secret: &'a DomainSecret,
        coming: Coming<'a, '_>,
        observer: &'a mut dyn RestoreObserver,
    ) -> Result<Received> {
        let Coming {
            frames,
            replies,
            hello,
            first,
        } = coming;
        let mut receiving = Receiving {
            fs,
            root,
            hello,
            secret,
            base: None,
            at: first.base,
            tree: None,
            domain,
            root_before: fs.getattr(root)?,
            // Made when a part begins.
            staging: root,
            here: HashMap::new(),
            staged: HashMap::new(),
            waiting: Waiting::default(),
            open: None,
            directories: Vec::new(),
            moves: Vec::new(),
            has_moved: false,
            observer,
            received: Received::default(),
        };
        receiving.part(&first, frames.messages)?;
        receiving.messages(frames, replies)?;
        Ok(receiving.received)
    }

    /// A part begins.
    fn part(&mut self, part: &Part, frame: u64) -> Result<()> {
        if self.tree.is_some() || part.base != self.at {
            return Err(StreamError::Contradiction(
                "a part that does not follow on the one before",
            ));
        }
        let (tree, about) = self
            .fs
            .open_part(self.secret, self.hello, &part.opening, frame)?;
        if about.timestamp != part.timestamp || DomainId(about.domain) != self.domain {
            return Err(StreamError::Contradiction("a part is about something else"));
        }
        self.tree = Some(tree);
        (self.base, self.at) = (part.base, Some(part.timestamp));
        self.root_before = self.fs.getattr(self.root)?;
        self.staging = self.fs.mkdir(self.root, STAGING, 0o700, &ROOT)?.ino;
        (self.here, self.staged) = (HashMap::new(), HashMap::new());
        self.has_moved = false;
        self.look()
    }

    /// Finds what has been received before.
    fn look(&mut self) -> Result<()> {
        let mut waiting = vec![self.root];
        // Nodes and names have numbers without the clone that the directory may be in.
        let root_there = Ino(self.hello.directory).base().0;
        self.here.insert(root_there, self.root);
        while let Some(directory) = waiting.pop() {
            for entry in self.fs.names_from(directory, b"", usize::MAX)? {
                let there = self.fs.record(entry.ino, NUMBER)?;
                if let Some(Ok(there)) = there.map(<[u8; 8]>::try_from) {
                    self.here.insert(u64::from_le_bytes(there), entry.ino);
                }
                if entry.kind == libc::S_IFDIR {
                    waiting.push(entry.ino);
                }
            }
        }
        Ok(())
    }

    fn messages(
        &mut self,
        frames: &mut FrameReader<'_>,
        replies: &mut FrameWriter<'_>,
    ) -> Result<()> {
        loop {
            if !self.observer.goes_on() {
                return Err(StreamError::Io(std::io::ErrorKind::Interrupted.into()));
            }
            let before = frames.messages;
            match frames.get()? {
                Message::Hello(_) => {
                    return Err(StreamError::Contradiction("a second beginning"));
                }
                Message::Part(part) => self.part(&part, before)?,
                Message::Sealed(sealed) => {
                    let tree = self.tree.as_mut();
                    let tree = tree.ok_or(StreamError::Contradiction("a message of no part"))?;
                    let number = tree.messages;
                    let message = tree.open(sealed.message, before)?;
                    self.tree_message(message, number)?;
                }
                Message::Query(wanted) => {
                    let known = self.waiting.known(self.fs, &wanted)?;
                    replies.put(&Reply::Known(known))?;
                    replies.flush()?;
                }
                Message::Chunk(chunk) => {
                    self.received.chunks += 1;
                    self.waiting.chunk(self.fs, self.domain, &chunk)?;
                }
                Message::End(end) => {
                    let is_all = self.at == Some(self.hello.timestamp) && self.tree.is_none();
                    if end.messages != before || !is_all {
                        return Err(StreamError::Contradiction("messages are missing"));
                    }
                    return Ok(());
                }
                Message::Failed => {
                    return Err(StreamError::Peer("it gave up".to_owned()));
                }
            }
        }
    }

    /// `number` is that of the message in its part. What the part is about has 0, and was opened with it.
    fn tree_message(&mut self, message: TreeMessage, number: u64) -> Result<()> {
        match message {
            TreeMessage::Base(base) if number == 1 => {
                if base != self.base {
                    return Err(StreamError::Contradiction(
                        "a part that does not follow on the one before",
                    ));
                }
            }
            TreeMessage::Failed(reason) => return Err(StreamError::Peer(reason)),
            _ if number == 1 => {
                return Err(StreamError::Contradiction(
                    "it does not say from where it goes on",
                ));
            }
            TreeMessage::About(_) | TreeMessage::Base(_) => {
                return Err(StreamError::Contradiction("a second beginning"));
            }
            TreeMessage::Node(node) => self.node(node)?,
            TreeMessage::Xattrs(xattrs) => {
                // A directory is the last of those that wait as long as no other inode is open.
                let before = match &mut self.open {
                    Some((_, node)) => Some(node),
                    None => self.directories.last_mut().map(|(_, node)| node),
                };
                let before = before.ok_or(StreamError::Contradiction("attributes of nothing"))?;
                before.xattrs.extend(xattrs);
            }
            TreeMessage::Names(names) => {
                self.close()?;
                for name in names {
                    self.name(&name)?;
                }
            }
            TreeMessage::Moves(names) => {
                self.close()?;
                self.moves.extend(names);
            }
            TreeMessage::Gone(names) => {
                self.close()?;
                self.move_directories()?;
                for name in names {
                    self.gone(&name)?;
                }
            }
            TreeMessage::Extents(extents) => {
                let ino = self.local(extents.ino)?;
                if self.open.as_ref().is_none_or(|(open, _)| *open != ino) {
                    return Err(StreamError::Contradiction("content of another file"));
                }
                self.waiting.extents(self.fs, ino, self.domain, &extents)?;
            }
            TreeMessage::End(end) => {
                if end.messages != number {
                    return Err(StreamError::Contradiction("messages are missing"));
                }
                self.tree = None;
                return self.end();
            }
        }
        Ok(())
    }

    fn local(&self, there: u64) -> Result<Ino> {
        let found = self.here.get(&there).copied();
        found.ok_or(StreamError::Contradiction("an inode that did not come"))
    }

    fn node(&mut self, node: Node) -> Result<()> {
        self.close()?;
        if node.times.iter().any(|time| time.nanos >= 1_000_000_000) {
            return Err(StreamError::Contradiction("a time that cannot be"));
        }
        self.received.inodes += 1;
        let fs = self.fs;
        let kind = node.mode & libc::S_IFMT;
        let ino = match self.here.get(&node.ino) {
            Some(ino) => {
                if fs.getattr(*ino)?.kind() != kind {
                    return Err(StreamError::Contradiction("an inode of another kind"));
                }
                *ino
            }
            None => self.make(&node, kind)?,
        };
        if kind == libc::S_IFREG {
            self.waiting.node(fs, ino, &node)?;
        }
        match kind {
            libc::S_IFDIR => self.directories.push((ino, node)),
            _ => self.open = Some((ino, node)),
        }
        Ok(())
    }

    fn make(&mut self, node: &Node, kind: u32) -> Result<Ino> {
        let fs = self.fs;
        let name = format!("{:x}", node.ino).into_bytes();
        let made: Attr = match kind {
            libc::S_IFDIR => fs.mkdir(self.staging, &name, 0o700, &ROOT)?,
            libc::S_IFREG => fs.create(self.staging, &name, 0o600, &ROOT)?,
            libc::S_IFLNK => match &node.body {
                Body::Whole(target) => fs.symlink(self.staging, &name, target, &ROOT)?,
                Body::Follows => return Err(StreamError::Contradiction("a link without target")),
            },
            _ => fs.mknod(self.staging, &name, node.mode, node.rdev, &ROOT)?,
        };
        fs.put_record(made.ino, NUMBER, Some(&node.ino.to_le_bytes()))?;
        self.here.insert(node.ino, made.ino);
        self.staged.insert(made.ino, name);
        Ok(made.ino)
    }

    /// The inode before is complete.
    fn close(&mut self) -> Result<()> {
        match self.open.take() {
            Some((ino, node)) => self.attributes(ino, &node),
            None => Ok(()),
        }
    }

    fn attributes(&mut self, ino: Ino, node: &Node) -> Result<()> {
        let fs = self.fs;
        let [atime, mtime, ctime] = node.times;
        let at = |time: Time| Some(SetTime::At(time));
        let is_link = node.mode & libc::S_IFMT == libc::S_IFLNK;
        let now = fs.getattr(ino)?;
        let changed = |is: u32, should_be: u32| (is != should_be).then_some(should_be);
        let set = SetAttr {
            mode: match is_link {
                true => None,
                false => Some(node.mode & 0o7777),
            },
            uid: changed(now.uid, node.uid),
            gid: changed(now.gid, node.gid),
            atime: at(atime),
            mtime: at(mtime),
            ctime: Some(ctime),
            ..SetAttr::default()
        };
        let mut change = RecordChange::default();
        let wanted: HashMap<&[u8], &[u8]> = node
            .xattrs
            .iter()
            .map(|(name, value)| (&name[..], &value[..]))
            .collect();
        let mut had = HashMap::new();
        for (name, value) in fs.records(ino, b"")? {
            if !record_stays(ino, &name) {
                if !wanted.contains_key(&name[..]) {
                    change.delete.push(name.clone());
                }
                had.insert(name, value);
            }
        }
        for (name, value) in &node.xattrs {
            if is_of_replica(name) {
                return Err(StreamError::Contradiction(
                    "a record that is not to be sent",
                ));
            }
            if !record_stays(ino, name) && had.get(name) != Some(value) {
                change.put.push((name.clone(), value.clone()));
            }
        }
        fs.setattr(ino, &set)?;
        if node.described && node.mode & libc::S_IFMT == libc::S_IFREG {
            change.describes = Some(fs.getattr(ino)?);
        }
        while change.put.len() + change.delete.len() > XATTRS_AT_ONCE {
            let mut some = RecordChange::default();
            let deleted = change.delete.len().min(XATTRS_AT_ONCE);
            some.delete.extend(change.delete.drain(..deleted));
            let put = change.put.len().min(XATTRS_AT_ONCE - deleted);
            some.put.extend(change.put.drain(..put));
            fs.set_records(ino, some)?;
        }
        if !change.put.is_empty() || !change.delete.is_empty() || change.describes.is_some() {
            fs.set_records(ino, change)?;
        }
        self.observer.inode_changed(ino);
        Ok(())
    }

    /// Takes the name from what has it, if that is something else. Whether it is what it should be already.
    fn clear(&mut self, parent: Ino, name: &[u8], ino: Ino) -> Result<bool> {
        let fs = self.fs;
        crate::directory::check_name(name)?;
        if parent == self.root && name == STAGING {
            return Err(StreamError::Contradiction("a name that receiving uses"));
        }
        match fs.find_name(parent, name)? {
            None => Ok(false),
            Some(there) if there.ino == ino => Ok(true),
            Some(there) => {
                let aside = format!("{DISPLACED}{:x}", there.ino.0).into_bytes();
                if fs.find_name(self.staging, &aside)?.is_some() {
                    // One more name of it is there already.
                    self.remove(parent, name)?;
                } else {
                    let flags = RenameFlags::default();
                    fs.rename(parent, name, self.staging, &aside, flags)?;
                    self.staged.insert(there.ino, aside);
                }
                self.observer.entry_changed(parent, name);
                Ok(false)
            }
        }
    }

    fn name(&mut self, name: &Name) -> Result<()> {
        let (parent, ino) = (self.local(name.parent)?, self.local(name.ino)?);
        if self.clear(parent, &name.name, ino)? {
            return Ok(());
        }
        let fs = self.fs;
        if let Some(staged) = self.staged.remove(&ino) {
            let flags = RenameFlags::default();
            fs.rename(self.staging, &staged, parent, &name.name, flags)?;
        } else {
            fs.link_again(ino, parent, &name.name)?;
        }
        self.observer.entry_changed(parent, &name.name);
        Ok(())
    }

    /// Gives directories their new names: first all leave their old ones, so that none has to go below itself.
    fn move_directories(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.has_moved, true) {
            return Ok(());
        }
        let fs = self.fs;
        let moves = std::mem::take(&mut self.moves);
        for name in &moves {
            let (parent, ino) = (self.local(name.parent)?, self.local(name.ino)?);
            let there = fs.find_name(parent, &name.name)?;
            if self.staged.contains_key(&ino) || there.is_some_and(|there| there.ino == ino) {
                continue;
            }
            let above = fs.parent(ino)?;
            let old = fs.name_in(above, ino)?;
            let old = old.ok_or(StreamError::Contradiction("a directory without a name"))?;
            let aside = format!("{DISPLACED}{:x}", ino.0).into_bytes();
            fs.rename(above, &old, self.staging, &aside, RenameFlags::default())?;
            self.observer.entry_changed(above, &old);
            self.staged.insert(ino, aside);
        }
        for name in &moves {
            self.name(name)?;
        }
        Ok(())
    }

    fn gone(&mut self, name: &Name) -> Result<()> {
        let (parent, ino) = (self.local(name.parent)?, self.local(name.ino)?);
        match self.fs.find_name(parent, &name.name)? {
            Some(there) if there.ino == ino => {
                self.remove(parent, &name.name)?;
                self.observer.entry_changed(parent, &name.name);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn remove(&mut self, parent: Ino, name: &[u8]) -> Result<()> {
        let observer = &mut *self.observer;
        self.fs.remove_below(parent, name, &mut |parent, name| {
            observer.entry_changed(parent, name);
        })
    }

    fn end(&mut self) -> Result<()> {
        self.close()?;
        self.move_directories()?;
        self.remove(self.root, STAGING)?;
        // Its names changed on the way; if it has changed itself, it is among those that follow.
        let set = SetAttr {
            mtime: Some(SetTime::At(self.root_before.mtime)),
            ctime: Some(self.root_before.ctime),
            ..SetAttr::default()
        };
        self.fs.setattr(self.root, &set)?;
        for (ino, node) in std::mem::take(&mut self.directories) {
            if inode::committed(&self.fs.store, ino)?.is_some() {
                self.attributes(ino, &node)?;
            }
        }
        Ok(())
    }
}
