//! What a snapshot shows, as messages.
//!
//! Both trees are walked from above, directories before what is in them. An inode goes when it is first met and the
//! receiver has not got it as it is; then its name. What a directory had before and has elsewhere now is told after
//! everything that stays or is new, and what is gone last: so nothing is ever without a name on the way.

use std::collections::HashSet;
use std::io::{Read, Write};

use cfs_format::table::{inode_flag, tag};
use cfs_format::{DomainId, Fingerprint, Ino};
use cfs_seal::keys::FileKey;
use zerocopy::IntoBytes;

use super::receive::record_stays;
use super::wire::{
    Body, Chunk, End, Extents, FrameReader, FrameWriter, Hello, Message, Name, Node, Reply,
    WireExtent, answerer_cipher, head, sender_cipher, write_head,
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

/// Replies of a receiver; there are none when a stream is kept.
struct Replies<'r> {
    reader: FrameReader<'r>,
}

impl Replies<'_> {
    fn get(&mut self) -> Result<Reply> {
        match self.reader.get()? {
            Reply::Failed(reason) => Err(StreamError::Peer(reason)),
            reply => Ok(reply),
        }
    }
}

struct Sending<'a, 'w> {
    fs: &'a Fs,
    now: &'a Snapshot,
    base: Option<&'a Snapshot>,
    /// Inodes that the base shows.
    known: HashSet<Ino>,
    /// Chunks that the receiver has because the base shows them, or they were sent; the first half of each fingerprint.
    had: HashSet<u128>,
    /// Inodes with several names that were sent.
    linked: HashSet<Ino>,
    names: Vec<Name>,
    moves: Vec<Name>,
    gone: Vec<Name>,
    file_domain: std::sync::Arc<cfs_seal::keys::DomainSecret>,
    out: FrameWriter<'w>,
    replies: Option<Replies<'w>>,
    sent: Sent,
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
        let secret = self
            .store
            .domain_secret(DomainId::DEFAULT)
            .ok_or_else(|| FsError::damaged("the first dedup domain is missing"))?;
        let volume = self
            .store
            .volume(snapshot.volume)
            .ok_or_else(|| FsError::damaged("the volume of a snapshot is missing"))?;
        let domain = DomainId(volume.domain.get());
        let file_domain = self
            .store
            .domain_secret(domain)
            .ok_or_else(|| FsError::damaged("the dedup domain of a volume is missing"))?;
        let mut salt = [0; 32];
        self.host.fill_random(&mut salt);
        let head = head(self.store.cipher(), salt);
        let mut frames = FrameWriter::new(out, sender_cipher(&secret, &head));
        write_head(&mut frames, &head)?;
        let mut earlier: Vec<_> = match (base, replies.is_some()) {
            (Some(base), _) => vec![std::sync::Arc::new(base.clone())],
            (None, true) => self.views.all(),
            (None, false) => Vec::new(),
        };
        earlier
            .retain(|it| it.directory == snapshot.directory && it.timestamp < snapshot.timestamp);
        earlier.reverse();
        frames.put(&Message::Hello(Hello {
            pool: self.store.superblock().pool_uuid,
            directory: snapshot.directory.0,
            path: snapshot.path.clone(),
            name: snapshot.name.clone(),
            timestamp: snapshot.timestamp.0,
            bases: earlier.iter().map(|it| it.timestamp.0).collect(),
            domain: domain.0,
            domain_secret: *file_domain.expose(),
            waits: replies.is_some(),
        }))?;
        frames.flush()?;
        let mut had_all = false;
        let mut chosen = base.cloned();
        let replies = match replies {
            None => None,
            Some(input) => {
                let mut answer_salt = [0; 32];
                input.read_exact(&mut answer_salt)?;
                let cipher = answerer_cipher(&secret, &head, &answer_salt);
                let mut replies = Replies {
                    reader: FrameReader::new(input, cipher),
                };
                let Reply::Have {
                    base: has,
                    complete,
                } = replies.get()?
                else {
                    return Err(StreamError::Contradiction("another reply than asked for"));
                };
                had_all = complete;
                chosen = match has {
                    None => None,
                    Some(has) => {
                        let found = earlier.iter().find(|it| it.timestamp.0 == has);
                        let found = found.ok_or(StreamError::Contradiction("an unknown base"))?;
                        Some(Snapshot::clone(found))
                    }
                };
                Some(replies)
            }
        };
        let mut sending = Sending {
            fs: self,
            now: snapshot,
            base: chosen.as_ref(),
            known: HashSet::new(),
            had: HashSet::new(),
            linked: HashSet::new(),
            names: Vec::new(),
            moves: Vec::new(),
            gone: Vec::new(),
            file_domain,
            out: frames,
            replies,
            sent: Sent {
                had_all,
                ..Sent::default()
            },
            goes_on,
        };
        if !had_all {
            let told = sending.all();
            if let Err(error) = &told {
                // The receiver is told, if it can be.
                let _ = sending.out.put(&Message::Failed(error.to_string()));
                let _ = sending.out.flush();
            }
            told?;
        }
        sending.sent.bytes = sending.out.bytes;
        Ok(sending.sent)
    }
}

impl Sending<'_, '_> {
    fn all(&mut self) -> Result<()> {
        let base = self.base.map(|base| base.timestamp.0);
        self.out.put(&Message::Base(base))?;
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
            if !(self.goes_on)(&self.sent) {
                return Err(StreamError::Io(std::io::ErrorKind::Interrupted.into()));
            }
            self.directory(then, now, &mut waiting)?;
        }
        self.tell_names()?;
        for name in batches(std::mem::take(&mut self.moves)) {
            self.out.put(&Message::Moves(name))?;
        }
        for name in batches(std::mem::take(&mut self.gone)) {
            self.out.put(&Message::Gone(name))?;
        }
        let messages = self.out.messages;
        self.out.put(&Message::End(End { messages }))?;
        self.out.flush()?;
        if let Some(replies) = &mut self.replies
            && replies.get()? != Reply::Done
        {
            return Err(StreamError::Contradiction("another reply than asked for"));
        }
        Ok(())
    }

    /// Notes what the base shows, inodes and, where nobody can be asked, chunks.
    fn walk_base(&mut self, root: Ino) -> Result<()> {
        let asks = self.replies.is_some();
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
                        for extent in self.extents(ino, 0, u64::MAX)? {
                            self.had.insert(short(&extent.fingerprint));
                        }
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
            self.out.put(&Message::Names(names))?;
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
        self.sent.inodes += 1;
        let place = fs.views.place(now)?;
        let mut xattrs = Vec::new();
        if record.flags.get() & inode_flag::XATTRS != 0 {
            for row in fs.views.rows(place, tag::XATTR, &[], None) {
                let (name, value) = row?;
                if !record_stays(ino, &name) {
                    xattrs.push((name, row::content(value)?));
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
        self.out.put(&Message::Node(Node {
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
            xattrs,
            body,
        }))?;
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
        match &mut self.replies {
            None => wanted.retain(|it| self.had.insert(short(it))),
            Some(replies) if !wanted.is_empty() => {
                self.out.put(&Message::Query(wanted.clone()))?;
                self.out.flush()?;
                let Reply::Known(known) = replies.get()? else {
                    return Err(StreamError::Contradiction("another reply than asked for"));
                };
                if known.len() != wanted.len() {
                    return Err(StreamError::Contradiction("a reply of another length"));
                }
                let mut known = known.into_iter();
                wanted.retain(|_| known.next() == Some(false));
            }
            Some(_) => {}
        }
        for fingerprint in wanted {
            let mut payload = Vec::new();
            let header = self.fs.store.read_sealed(&fingerprint, &mut payload);
            let header = header.map_err(FsError::from)?;
            self.sent.chunks += 1;
            self.sent.chunk_bytes += (size_of_val(&header) + payload.len()) as u64;
            self.out.put(&Message::Chunk(Chunk {
                header: header.as_bytes().to_vec(),
                payload,
            }))?;
        }
        self.sent.bytes = self.out.bytes;
        self.out.put(&Message::Extents(Extents {
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
        }))
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

fn batches(mut names: Vec<Name>) -> Vec<Vec<Name>> {
    let mut all = Vec::new();
    while !names.is_empty() {
        let rest = names.split_off(names.len().min(NAMES_AT_ONCE));
        all.push(std::mem::replace(&mut names, rest));
    }
    all
}

fn short(fingerprint: &Fingerprint) -> u128 {
    let (half, _) = fingerprint
        .0
        .split_first_chunk::<16>()
        .expect("a fingerprint has 32 bytes");
    u128::from_le_bytes(*half)
}

/// The number that an inode has whoever shows it.
fn number(ino: Ino) -> Ino {
    ino.base()
}

fn in_view(snapshot: &Snapshot, ino: Ino) -> Result<Ino> {
    Ok(ino.in_view(snapshot.view).ok_or(FsError::TooLarge)?)
}
