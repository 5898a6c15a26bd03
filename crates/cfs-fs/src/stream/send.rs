//! What a snapshot shows, as messages.
//!
//! Both trees are walked from above, directories before what is in them. An inode goes when it is first met and the
//! receiver has not got it as it is; then its name. What a directory had before and has elsewhere now is told after
//! everything that stays or is new, and what is gone last: so nothing is ever without a name on the way.

use std::collections::HashSet;
use std::io::{Read, Write};

use cfs_format::stream::STREAM_VERSION;
use cfs_format::table::{inode_flag, tag};
use cfs_format::{DomainId, Fingerprint, Ino};
use cfs_seal::keys::FileKey;
use zerocopy::IntoBytes;

use super::keys::Role;
use super::outgoing::Outgoing;
use super::receive::record_stays;
use super::wire::{
    About, Body, Chunk, Extents, Hello, Message, Name, Node, Part, Sealed, TreeMessage, TreeWriter,
    WireExtent, WireSecret,
};
use super::{Result, StreamError};
use crate::error::FsError;
use crate::extent::{Extent, scan};
use crate::views::Snapshot;
use crate::{Fs, inode, row};

/// Names in one message at most.
const NAMES_AT_ONCE: usize = 256;
/// Extents in one message at most, and of which chunks are asked for at once.
const EXTENTS_AT_ONCE: usize = 256;

/// Bytes of extended attributes in one message, but for the last of them.
const XATTR_BYTES_AT_ONCE: usize = 1 << 20;

/// What was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Bytes of the stream.
    pub bytes: u64,
    /// Chunks in it.
    pub chunks: u64,
    /// Bytes of the stream that are chunks.
    pub chunk_bytes: u64,
    /// Inodes that are new or have changed.
    pub inodes: u64,
    /// The other side had it already.
    pub had_all: bool,
}

struct Sending<'a, 'w, 'r> {
    fs: &'a Fs,
    now: &'a Snapshot,
    base: Option<&'a Snapshot>,
    /// Inodes that the base shows.
    known: HashSet<Ino>,
    /// Inodes with several names that were sent.
    linked: HashSet<Ino>,
    names: Vec<Name>,
    moves: Vec<Name>,
    gone: Vec<Name>,
    file_domain: std::sync::Arc<cfs_seal::keys::DomainSecret>,
    tree: TreeWriter,
    out: Outgoing<'w, 'r>,
    goes_on: &'a dyn Fn(&Sent) -> bool,
}

impl Fs {
    /// Sends what a snapshot shows, or, with a base of the same directory, what is different from that. With `replies`
    /// the receiver is asked what it has, and the base is the newest one that it knows.
    ///
    /// # Errors
    /// See [`StreamError`].
    pub fn send(
        &self,
        snapshot: &Snapshot,
        base: Option<&Snapshot>,
        out: &mut dyn Write,
        replies: Option<&mut dyn Read>,
        goes_on: &dyn Fn(&Sent) -> bool,
    ) -> Result<Sent> {
        if let Some(base) = base
            && (base.directory != snapshot.directory || base.timestamp >= snapshot.timestamp)
        {
            return Err(StreamError::NoBase(
                "it is not an earlier one of the same directory".to_owned(),
            ));
        }
        let (passage, secret) = match self.role()? {
            Role::Reads(secret) => (secret.passage(), secret),
            Role::Keeps(passage) if self.is_kept(snapshot)? => {
                return self.send_kept(snapshot, base, &passage, out, replies, goes_on);
            }
            Role::Keeps(_) => {
                return Err(StreamError::Target(
                    "this pool only stores what others send: nobody could read a stream of its own"
                        .to_owned(),
                ));
            }
        };
        let volume = self
            .store
            .volume(snapshot.volume)
            .ok_or_else(|| FsError::damaged("the volume of a snapshot is missing"))?;
        let domain = DomainId(volume.domain.get());
        let file_domain = self
            .store
            .domain_secret(domain)
            .ok_or_else(|| FsError::damaged("the dedup domain of a volume is missing"))?;
        let mut earlier: Vec<_> = match (base, replies.is_some()) {
            (Some(base), _) => vec![std::sync::Arc::new(base.clone())],
            (None, true) => self.views.all(),
            (None, false) => Vec::new(),
        };
        earlier
            .retain(|it| it.directory == snapshot.directory && it.timestamp < snapshot.timestamp);
        earlier.reverse();
        let about = About {
            pool: self.store.superblock().pool_uuid,
            directory: snapshot.directory.0,
            path: snapshot.path.clone(),
            name: snapshot.name.clone(),
            timestamp: snapshot.timestamp.0,
            domain: domain.0,
            version: STREAM_VERSION,
            domain_secret: WireSecret(*file_domain.expose()),
        };
        let mut salt = [0; 32];
        self.host.fill_random(&mut salt);
        let (tree, opening) = TreeWriter::begin(&secret, self.store.cipher(), salt, about);
        let hello = Hello {
            pool: self.store.superblock().pool_uuid,
            directory: snapshot.directory.0,
            name: snapshot.name.clone(),
            timestamp: snapshot.timestamp.0,
            bases: earlier.iter().map(|it| it.timestamp.0).collect(),
            opening: opening.clone(),
            waits: replies.is_some(),
        };
        let (out, has) = Outgoing::begin(self, &passage, out, replies, hello)?;
        let mut chosen = base.cloned();
        if let Some(has) = has {
            if has.complete {
                return Ok(out.had_all());
            }
            chosen = match has.base {
                None => None,
                Some(has) => {
                    let found = earlier.iter().find(|it| it.timestamp.0 == has);
                    let found = found.ok_or(StreamError::Contradiction("an unknown base"))?;
                    Some(Snapshot::clone(found))
                }
            };
        }
        let mut sending = Sending {
            fs: self,
            now: snapshot,
            base: chosen.as_ref(),
            known: HashSet::new(),
            linked: HashSet::new(),
            names: Vec::new(),
            moves: Vec::new(),
            gone: Vec::new(),
            file_domain,
            tree,
            out,
            goes_on,
        };
        let part = Part {
            opening,
            base: sending.base.map(|base| base.timestamp.0),
            timestamp: snapshot.timestamp.0,
        };
        if let Err(error) = sending.all(part) {
            // The receiver is told, if it can be.
            let _ = sending.tell(TreeMessage::Failed(error.to_string()));
            sending.out.fail();
            return Err(error);
        }
        Ok(sending.out.sent)
    }
}

impl Fs {
    /// What is read of a snapshot after it was deleted may not be what it showed.
    pub(super) fn check_still_there(&self, snapshot: &Snapshot) -> Result<()> {
        let now = self.views.snapshot(snapshot.view)?;
        match now.timestamp == snapshot.timestamp {
            true => Ok(()),
            false => Err(FsError::Stale.into()),
        }
    }
}

impl Sending<'_, '_, '_> {
    /// Sends a message that refers to no chunk.
    fn tell(&mut self, message: TreeMessage) -> Result<()> {
        let sealed = Sealed {
            chunks: Vec::new(),
            message: self.tree.seal(&message),
        };
        self.out.put(&Message::Sealed(sealed))
    }

    fn all(&mut self, part: Part) -> Result<()> {
        let base = part.base;
        self.out.begin_part(part)?;
        self.tell(TreeMessage::Base(base))?;
        let root_then = match self.base {
            None => None,
            Some(base) => {
                let root = in_view(base, base.directory)?;
                self.walk_base(root)?;
                Some(root)
            }
        };
        let root = in_view(self.now, self.now.directory)?;
        self.node(root)?;
        let mut waiting = vec![(root_then, root)];
        while let Some((then, now)) = waiting.pop() {
            if !(self.goes_on)(&self.out.sent) {
                return Err(StreamError::Io(std::io::ErrorKind::Interrupted.into()));
            }
            self.directory(then, now, &mut waiting)?;
        }
        self.tell_names()?;
        for name in batches(std::mem::take(&mut self.moves)) {
            self.tell(TreeMessage::Moves(name))?;
        }
        for name in batches(std::mem::take(&mut self.gone)) {
            self.tell(TreeMessage::Gone(name))?;
        }
        // Of one that was deleted meanwhile, not all may have been seen.
        for snapshot in self.base.into_iter().chain([self.now]) {
            self.fs.check_still_there(snapshot)?;
        }
        let message = self.tree.seal_end();
        let chunks = Vec::new();
        self.out.put(&Message::Sealed(Sealed { chunks, message }))?;
        self.out.end()
    }

    /// Notes what the base shows, inodes and, where nobody can be asked, chunks.
    fn walk_base(&mut self, root: Ino) -> Result<()> {
        let asks = self.out.asks();
        let mut waiting = vec![root];
        self.known.insert(number(root));
        while let Some(directory) = waiting.pop() {
            for (_, (ino, kind)) in self.fs.entries_of(Some(directory))? {
                if !self.known.insert(number(ino)) {
                    continue;
                }
                match kind {
                    libc::S_IFDIR => waiting.push(ino),
                    libc::S_IFREG if !asks => {
                        let extents = self.extents(ino, 0, u64::MAX)?;
                        let chunks = extents.iter().map(|extent| &extent.fingerprint);
                        self.out.note_had(chunks);
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn directory(
        &mut self,
        then: Option<Ino>,
        now: Ino,
        waiting: &mut Vec<(Option<Ino>, Ino)>,
    ) -> Result<()> {
        let mut before = self.fs.entries_of(then)?;
        for (name, (ino, kind)) in self.fs.entries_of(Some(now))? {
            let is_directory = kind == libc::S_IFDIR;
            let is_known = self.known.contains(&number(ino));
            let stays = matches!(before.get(&name), Some((old, _)) if number(*old) == number(ino));
            if stays {
                before.remove(&name);
            }
            self.node(ino)?;
            if !stays {
                let name = Name {
                    parent: number(now).0,
                    name,
                    ino: number(ino).0,
                };
                match is_directory && is_known {
                    true => self.moves.push(name),
                    false => self.names.push(name),
                }
                if self.names.len() >= NAMES_AT_ONCE {
                    self.tell_names()?;
                }
            }
            if is_directory {
                let then = match (is_known, self.base) {
                    (true, Some(base)) => Some(in_view(base, number(ino))?),
                    _ => None,
                };
                waiting.push((then, ino));
            }
        }
        self.gone
            .extend(before.into_iter().map(|(name, (ino, _))| Name {
                parent: number(now).0,
                name,
                ino: number(ino).0,
            }));
        Ok(())
    }

    fn tell_names(&mut self) -> Result<()> {
        if !self.names.is_empty() {
            let names = std::mem::take(&mut self.names);
            self.tell(TreeMessage::Names(names))?;
        }
        Ok(())
    }

    /// Sends an inode, unless the receiver has it as it is.
    fn node(&mut self, now: Ino) -> Result<()> {
        let ino = number(now);
        let then = match self.base {
            Some(base) if self.known.contains(&ino) => Some(in_view(base, ino)?),
            _ => None,
        };
        let fs = self.fs;
        let record = fs.views.record(now)?.ok_or(FsError::NotFound)?;
        let kind = inode::kind(&record);
        let before = match then {
            Some(then) => fs.views.record(then)?,
            None => None,
        };
        if before.is_some_and(|before| before.timestamp == record.timestamp) {
            return Ok(());
        }
        if record.nlink.get() > 1 && kind != libc::S_IFDIR && !self.linked.insert(ino) {
            return Ok(());
        }
        self.out.sent.inodes += 1;
        let place = fs.views.place(now)?;
        let mut batches = XattrBatches::default();
        if record.flags.get() & inode_flag::XATTRS != 0 {
            for row in fs.views.rows(place, tag::XATTR, &[], None) {
                let (name, value) = row?;
                if !record_stays(ino, &name) {
                    batches.push(name, row::content(value)?);
                }
            }
        }
        let is_whole = record.flags.get() & inode_flag::INLINE != 0;
        let body = match is_whole {
            true => {
                let value = fs.views.get(place, tag::INLINE, &[])?;
                let value = value.ok_or_else(|| {
                    FsError::damaged(format_args!("inode {ino} has lost its content"))
                })?;
                Body::Whole(row::content(value)?)
            }
            false => Body::Follows,
        };
        let mut batches = batches.0.into_iter();
        self.tell(TreeMessage::Node(Node {
            ino: ino.0,
            mode: record.mode.get(),
            uid: record.uid.get(),
            gid: record.gid.get(),
            rdev: record.rdev.get(),
            size: match kind {
                libc::S_IFREG => record.size.get(),
                _ => 0,
            },
            times: [record.atime, record.mtime, record.ctime].map(Into::into),
            described: record.flags.get() & inode_flag::DESCRIBED != 0,
            xattrs: batches.next().unwrap_or_default(),
            body,
        }))?;
        for xattrs in batches {
            self.tell(TreeMessage::Xattrs(xattrs))?;
        }
        if kind == libc::S_IFREG && !is_whole {
            let had_extents =
                before.is_some_and(|before| before.flags.get() & inode_flag::INLINE == 0);
            self.content(then.filter(|_| had_extents), now, record.size.get())?;
        }
        Ok(())
    }

    /// Extents of an inode in a snapshot that show a part of `[from, to)`.
    fn extents(&self, ino: Ino, from: u64, to: u64) -> Result<Vec<Extent>> {
        let record = self.fs.views.record(ino)?.ok_or(FsError::NotFound)?;
        let file_key = FileKey::derive(&self.file_domain, &record.salt);
        let place = self.fs.views.place(ino)?;
        let rows = self.fs.views.extents(place.at);
        let to = to.min(record.size.get());
        let found = scan(&rows, place.ino, &file_key, from, to);
        Ok(found.collect::<crate::Result<_>>()?)
    }

    /// Sends the ranges of a file that are different, each with the chunks that the receiver has not got.
    fn content(&mut self, then: Option<Ino>, now: Ino, size: u64) -> Result<()> {
        let mut at = 0;
        let record = self.fs.views.record(now)?.ok_or(FsError::NotFound)?;
        let file_key = FileKey::derive(&self.file_domain, &record.salt);
        while at < size {
            let place = self.fs.views.place(now)?;
            let rows = self.fs.views.extents(place.at);
            let window: Vec<Extent> = scan(&rows, place.ino, &file_key, at, size)
                .take(EXTENTS_AT_ONCE)
                .collect::<crate::Result<_>>()?;
            let end = match window.len() {
                EXTENTS_AT_ONCE => window[EXTENTS_AT_ONCE - 1].end(),
                _ => size,
            };
            let old = match then {
                Some(then) => self.extents(then, at, end)?,
                None => Vec::new(),
            };
            for (from, to, run) in differing(&old, &window, at, end) {
                self.run(number(now), from, to, run)?;
            }
            at = end;
        }
        Ok(())
    }

    fn run(&mut self, ino: Ino, from: u64, to: u64, run: &[Extent]) -> Result<()> {
        let mut wanted: Vec<Fingerprint> = run.iter().map(|extent| extent.fingerprint).collect();
        wanted.sort_unstable_by_key(|fingerprint| fingerprint.0);
        wanted.dedup();
        let extents = Extents {
            ino: ino.0,
            from,
            to,
            extents: run
                .iter()
                .map(|extent| WireExtent {
                    offset: extent.offset,
                    len: extent.len,
                    chunk_offset: extent.chunk_offset,
                    chunk_len: extent.chunk_len,
                    fingerprint: extent.fingerprint,
                })
                .collect(),
        };
        let sealed = Sealed {
            chunks: wanted,
            message: self.tree.seal(&TreeMessage::Extents(extents)),
        };
        let store = &self.fs.store;
        self.out.put_sealed(sealed, |fingerprint| {
            let mut payload = Vec::new();
            let header = store.read_sealed(fingerprint, &mut payload);
            let header = header.map_err(FsError::from)?.as_bytes().to_vec();
            Ok(Chunk { header, payload })
        })
    }
}

/// Ranges of `[from, to)` in which two lists of extents are not the same, each with those of the second list in it. A
/// range begins and ends where both lists have the same extent, or at the ends.
fn differing<'e>(
    old: &[Extent],
    new: &'e [Extent],
    from: u64,
    to: u64,
) -> Vec<(u64, u64, &'e [Extent])> {
    let is_same = |extent: &Extent| {
        let found = old.binary_search_by_key(&extent.offset, |it| it.offset);
        found.is_ok_and(|at| old[at] == *extent)
    };
    let mut runs = Vec::new();
    let (mut start, mut first) = (from, 0);
    let mut close = |start: u64, end: u64, run: &'e [Extent]| {
        let had = old
            .iter()
            .any(|extent| extent.offset < end && extent.end() > start);
        if start < end && (had || !run.is_empty()) {
            runs.push((start, end, run));
        }
    };
    for (index, extent) in new.iter().enumerate() {
        if is_same(extent) {
            close(start, extent.offset.max(start), &new[first..index]);
            (start, first) = (extent.end().max(start), index + 1);
        }
    }
    close(start, to, &new[first..]);
    runs
}

/// Extended attributes, as they go into messages.
#[derive(Default)]
struct XattrBatches(Vec<Vec<(Vec<u8>, Vec<u8>)>>);

impl XattrBatches {
    fn push(&mut self, name: Vec<u8>, value: Vec<u8>) {
        let bytes_of = |it: &(Vec<u8>, Vec<u8>)| it.0.len() + it.1.len();
        match self.0.last_mut() {
            Some(last) if last.iter().map(bytes_of).sum::<usize>() < XATTR_BYTES_AT_ONCE => {
                last.push((name, value));
            }
            _ => self.0.push(vec![(name, value)]),
        }
    }
}

fn batches(mut names: Vec<Name>) -> Vec<Vec<Name>> {
    let mut all = Vec::new();
    while !names.is_empty() {
        let rest = names.split_off(names.len().min(NAMES_AT_ONCE));
        all.push(std::mem::replace(&mut names, rest));
    }
    all
}

/// The number that an inode has whoever shows it.
fn number(ino: Ino) -> Ino {
    ino.base()
}

fn in_view(snapshot: &Snapshot, ino: Ino) -> Result<Ino> {
    Ok(ino.in_view(snapshot.view).ok_or(FsError::TooLarge)?)
}
