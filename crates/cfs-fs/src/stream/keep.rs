//! Keeping snapshots of another pool without being able to read them, and handing them out again.
//!
//! The directory that receives holds files: in `messages` one for each part since the last that brought everything, named by
//! their order, and in `chunks` one for each chunk that these parts refer to, named by its fingerprint. What is received is a
//! snapshot of that directory, so it is deleted, held and listed like any other, and gives its room back.
//!
//! A file of a part is a list of records, each with its length in front (u32): the [`Part`], then its [`Sealed`] messages. A
//! file of a chunk is the header of its record, then what is sealed under it.
//!
//! Nothing here can be verified but its form: it is authentic as far as this pool's own seals go, and who can read it looks at
//! the rest when it comes there.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::sync::Arc;

use cfs_format::segment::{RecordHeader, TAG_BYTES};
use cfs_format::stream::FRAME_BYTES_MAX;
use cfs_format::{Fingerprint, Ino};
use cfs_seal::keys::PassageKey;
use serde::{Deserialize, Serialize};
use zerocopy::FromBytes;

use super::outgoing::Outgoing;
use super::receive::Coming;
use super::wire::{Chunk, Hello, Message, Part, Reply, Sealed, decode};
use super::{ROOT, Result, Sent, StreamError};
use crate::error::FsError;
use crate::types::SetAttr;
use crate::views::Snapshot;
use crate::{Fs, RestoreObserver};

const MESSAGES: &[u8] = b"messages";
const CHUNKS: &[u8] = b"chunks";
/// Parts after which everything is asked for again, but for its chunks: each part that a snapshot needs keeps its chunks, also
/// those that the snapshot does not show any more.
const PARTS_MAX: usize = 16;
/// Parts that a chain may have where nobody can be asked to send everything.
const PARTS_LIMIT: usize = 256;
/// Digits of the name of a part.
const PART_DIGITS: usize = 8;
/// Bytes of messages that are written at once.
const BUFFER_BYTES: usize = 1 << 20;
/// Chunks of which is remembered that they are here.
const PRESENT_MAX: usize = 1 << 20;

/// Where the file of a chunk is, below the directory that receives: a directory of [`CHUNKS`], and a name in it.
fn place(fingerprint: &Fingerprint) -> ([u8; 2], Vec<u8>) {
    let mut digits = String::with_capacity(64);
    for byte in fingerprint.0 {
        let _ = write!(digits, "{byte:02x}");
    }
    let digits = digits.into_bytes();
    ([digits[0], digits[1]], digits[2..].to_vec())
}

/// Takes what comes.
pub(super) struct Keeping<'a> {
    fs: &'a Fs,
    observer: &'a mut dyn RestoreObserver,
    messages: Ino,
    chunks: Ino,
    /// Directories of [`CHUNKS`].
    directories: HashMap<[u8; 2], Ino>,
    /// What may hold a chunk that is not in the directory itself, newest first.
    earlier: Vec<Arc<Snapshot>>,
    /// Chunks that were found or came.
    present: HashSet<Fingerprint>,
    parts: usize,
    /// The file of the part that is coming, how much of it is written, and what is not yet.
    file: Option<(Ino, u64)>,
    buffer: Vec<u8>,
}

impl<'a> Keeping<'a> {
    /// Keeps all parts, and returns how many chunks came. `earlier` are snapshots that may hold chunks of it.
    pub(super) fn run(
        fs: &'a Fs,
        root: Ino,
        earlier: Vec<Arc<Snapshot>>,
        coming: Coming<'_, '_>,
        observer: &'a mut dyn RestoreObserver,
    ) -> Result<u64> {
        let mut keeping = Self {
            fs,
            messages: directory(fs, (root, MESSAGES), observer)?,
            chunks: directory(fs, (root, CHUNKS), observer)?,
            observer,
            directories: HashMap::new(),
            earlier,
            present: HashSet::new(),
            parts: 0,
            file: None,
            buffer: Vec::new(),
        };
        let Coming {
            frames,
            replies,
            hello,
            first,
        } = coming;
        let there = parts(fs, keeping.messages)?;
        keeping.parts = there.len();
        if keeping.parts >= PARTS_LIMIT {
            return Err(StreamError::NoBase(
                "too many go on from each other here; send all of it".to_owned(),
            ));
        }
        let mut at = there.last().map(|(_, part)| part.timestamp);
        let mut begin = |keeping: &mut Self, part: Part| {
            if part.base != at {
                return Err(StreamError::Contradiction(
                    "a part that does not follow on the one before",
                ));
            }
            at = Some(part.timestamp);
            keeping.begin(&part)
        };
        begin(&mut keeping, first)?;
        let mut came = 0;
        loop {
            if !keeping.observer.goes_on() {
                return Err(StreamError::Io(std::io::ErrorKind::Interrupted.into()));
            }
            let before = frames.messages;
            match frames.get()? {
                Message::Hello(_) => {
                    return Err(StreamError::Contradiction("a second beginning"));
                }
                Message::Part(part) => begin(&mut keeping, part)?,
                Message::Sealed(sealed) => keeping.sealed(&sealed)?,
                Message::Query(wanted) => {
                    let known = wanted.iter().map(|it| keeping.has(it));
                    let known = known.collect::<Result<_>>()?;
                    replies.put(&Reply::Known(known))?;
                    replies.flush()?;
                }
                Message::Chunk(chunk) => {
                    came += 1;
                    keeping.chunk(&chunk)?;
                }
                Message::End(end) => {
                    if end.messages != before || at != Some(hello.timestamp) {
                        return Err(StreamError::Contradiction("messages are missing"));
                    }
                    keeping.write()?;
                    return Ok(came);
                }
                Message::Failed => return Err(StreamError::Peer("it gave up".to_owned())),
            }
        }
    }

    fn begin(&mut self, part: &Part) -> Result<()> {
        self.write()?;
        self.parts += 1;
        let name = format!("{:0PART_DIGITS$}", self.parts).into_bytes();
        let file = self.fs.create(self.messages, &name, 0o600, &ROOT)?;
        self.observer.entry_changed(self.messages, &name);
        self.file = Some((file.ino, 0));
        self.record(part)
    }

    fn record(&mut self, record: &impl Serialize) -> Result<()> {
        let at = self.buffer.len();
        self.buffer.extend_from_slice(&[0; 4]);
        let buffer = std::mem::take(&mut self.buffer);
        self.buffer =
            postcard::to_extend(record, buffer).expect("a vector takes any number of bytes");
        let len = (self.buffer.len() - at - 4) as u32;
        self.buffer[at..at + 4].copy_from_slice(&len.to_le_bytes());
        match self.buffer.len() {
            BUFFER_BYTES.. => self.write(),
            _ => Ok(()),
        }
    }

    fn write(&mut self) -> Result<()> {
        if let Some((file, at)) = &mut self.file {
            write_all(self.fs, *file, *at, &self.buffer)?;
            *at += self.buffer.len() as u64;
        }
        self.buffer.clear();
        Ok(())
    }

    fn sealed(&mut self, sealed: &Sealed) -> Result<()> {
        for fingerprint in &sealed.chunks {
            if !self.has(fingerprint)? {
                return Err(StreamError::NoBase(
                    "content that it does not bring is missing".to_owned(),
                ));
            }
        }
        self.record(sealed)
    }

    fn directory_of(&mut self, name: [u8; 2]) -> Result<Ino> {
        if let Some(known) = self.directories.get(&name) {
            return Ok(*known);
        }
        let ino = directory(self.fs, (self.chunks, &name), self.observer)?;
        self.directories.insert(name, ino);
        Ok(ino)
    }

    /// Whether the chunk is here. One that an earlier snapshot has is from then on.
    fn has(&mut self, fingerprint: &Fingerprint) -> Result<bool> {
        if self.present.contains(fingerprint) {
            return Ok(true);
        }
        let fs = self.fs;
        let (above, name) = place(fingerprint);
        let directory = self.directory_of(above)?;
        let mut is_here = match fs.find_name(directory, &name)? {
            Some(there) => is_whole(fs, there.ino, fingerprint)?,
            None => false,
        };
        if !is_here {
            for snapshot in &self.earlier {
                let (ino, len) = match find_in(fs, snapshot, fingerprint) {
                    Ok(Some(found)) => found,
                    Ok(None) => continue,
                    // It comes again.
                    Err(error) => {
                        tracing::warn!("a chunk that is kept cannot be read: {error}");
                        continue;
                    }
                };
                let file = empty_file(fs, (directory, &name), self.observer)?;
                is_here = fs.copy_range(ino, 0, file, 0, len)? == len;
                break;
            }
        }
        if is_here {
            self.note(*fingerprint);
        }
        Ok(is_here)
    }

    fn note(&mut self, fingerprint: Fingerprint) {
        if self.present.len() >= PRESENT_MAX {
            self.present.clear();
        }
        self.present.insert(fingerprint);
    }

    fn chunk(&mut self, chunk: &Chunk) -> Result<()> {
        let header = RecordHeader::read_from_bytes(&chunk.header)
            .map_err(|_| StreamError::Contradiction("the header of a chunk"))?;
        if file_len(&header) != (chunk.header.len() + chunk.payload.len()) as u64 {
            return Err(StreamError::Contradiction("the length of a chunk"));
        }
        let fingerprint = Fingerprint(header.fingerprint);
        let (above, name) = place(&fingerprint);
        let directory = self.directory_of(above)?;
        let file = empty_file(self.fs, (directory, &name), self.observer)?;
        let bytes = [&chunk.header[..], &chunk.payload].concat();
        write_all(self.fs, file, 0, &bytes)?;
        self.fs.hand_over(file);
        self.note(fingerprint);
        Ok(())
    }
}

/// A write may take less than it was given where room ends; the next one tells why.
fn write_all(fs: &Fs, ino: Ino, mut at: u64, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        let written = fs.write(ino, at, bytes, false)?;
        at += written as u64;
        bytes = &bytes[written..];
    }
    Ok(())
}

/// Bytes of the file of a chunk.
fn file_len(header: &RecordHeader) -> u64 {
    size_of::<RecordHeader>() as u64 + u64::from(header.payload_len.get()) + u64::from(TAG_BYTES)
}

/// The directory with this name, which is made if it is not there.
fn directory(
    fs: &Fs,
    (parent, name): (Ino, &[u8]),
    observer: &mut dyn RestoreObserver,
) -> Result<Ino> {
    if let Some(there) = fs.find_name(parent, name)? {
        return Ok(there.ino);
    }
    let made = fs.mkdir(parent, name, 0o700, &ROOT)?.ino;
    observer.entry_changed(parent, name);
    Ok(made)
}

/// The file with this name, without content.
fn empty_file(
    fs: &Fs,
    (parent, name): (Ino, &[u8]),
    observer: &mut dyn RestoreObserver,
) -> Result<Ino> {
    let Some(there) = fs.find_name(parent, name)? else {
        let made = fs.create(parent, name, 0o600, &ROOT)?.ino;
        observer.entry_changed(parent, name);
        return Ok(made);
    };
    observer.inode_changed(there.ino);
    let set = SetAttr {
        size: Some(0),
        ..SetAttr::default()
    };
    Ok(fs.setattr(there.ino, &set)?.ino)
}

/// Whether a file has all bytes of this chunk, as far as its header tells: a crash can leave one without.
fn is_whole(fs: &Fs, ino: Ino, fingerprint: &Fingerprint) -> Result<bool> {
    let mut header = Vec::new();
    fs.read(ino, 0, size_of::<RecordHeader>(), &mut header)?;
    let size = fs.getattr(ino)?.size;
    Ok(RecordHeader::read_from_bytes(&header).is_ok_and(|header| {
        header.fingerprint == fingerprint.0
            && file_len(&header) == size
            && size <= u64::from(FRAME_BYTES_MAX)
    }))
}

/// The file of a chunk that a snapshot shows, if it is whole, and its bytes.
fn find_in(fs: &Fs, snapshot: &Snapshot, fingerprint: &Fingerprint) -> Result<Option<(Ino, u64)>> {
    let (above, name) = place(fingerprint);
    let root = snapshot.directory.in_view(snapshot.view);
    let mut at = root.ok_or(FsError::TooLarge)?;
    for name in [CHUNKS, &above, &name] {
        match fs.lookup(at, name) {
            Ok(attr) => at = attr.ino,
            Err(FsError::NotFound) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
    match is_whole(fs, at, fingerprint)? {
        true => Ok(Some((at, fs.getattr(at)?.size))),
        false => Ok(None),
    }
}

/// Reads the records of the file of a part.
struct Records<'a> {
    fs: &'a Fs,
    ino: Ino,
    at: u64,
    buffer: Vec<u8>,
    /// How much of the buffer has been taken.
    taken: usize,
}

impl<'a> Records<'a> {
    fn new(fs: &'a Fs, ino: Ino) -> Self {
        Self {
            fs,
            ino,
            at: 0,
            buffer: Vec::new(),
            taken: 0,
        }
    }

    /// Takes bytes; `None` where the file ends.
    fn take(&mut self, len: usize) -> Result<Option<&[u8]>> {
        let mut more = Vec::new();
        while self.buffer.len() - self.taken < len {
            self.buffer.drain(..self.taken);
            self.taken = 0;
            self.fs.read(self.ino, self.at, BUFFER_BYTES, &mut more)?;
            if more.is_empty() {
                return match self.buffer.len() {
                    0 => Ok(None),
                    _ => Err(damaged()),
                };
            }
            self.at += more.len() as u64;
            self.buffer.extend_from_slice(&more);
        }
        let from = self.taken;
        self.taken += len;
        Ok(Some(&self.buffer[from..from + len]))
    }

    fn next<T: for<'de> Deserialize<'de>>(&mut self) -> Result<Option<T>> {
        let Some(len) = self.take(4)? else {
            return Ok(None);
        };
        let len = u32::from_le_bytes(len.try_into().expect("4 bytes"));
        if len > FRAME_BYTES_MAX {
            return Err(damaged());
        }
        let bytes = self.take(len as usize)?.ok_or_else(damaged)?;
        decode(bytes).map(Some).map_err(|_| damaged())
    }
}

fn damaged() -> StreamError {
    FsError::damaged("a snapshot that is kept for another pool").into()
}

/// The parts whose files are in a directory, in order.
fn parts(fs: &Fs, messages: Ino) -> Result<Vec<(Ino, Part)>> {
    let mut found = Vec::new();
    for entry in fs.read_dir(messages, 0, u64::MAX, usize::MAX)? {
        // What others have put there is none of ours.
        let is_part = entry.name.len() == PART_DIGITS && entry.name.iter().all(u8::is_ascii_digit);
        if is_part && entry.kind == libc::S_IFREG {
            let part = Records::new(fs, entry.ino).next()?;
            found.push((entry.name, entry.ino, part.ok_or_else(damaged)?));
        }
    }
    found.sort_by(|one, other| one.0.cmp(&other.0));
    let parts: Vec<(Ino, Part)> = found
        .into_iter()
        .map(|(_, ino, part)| (ino, part))
        .collect();
    let mut at = None;
    for (_, part) in &parts {
        if part.base != at {
            return Err(damaged());
        }
        at = Some(part.timestamp);
    }
    Ok(parts)
}

/// The parts that a snapshot shows.
fn parts_of(fs: &Fs, snapshot: &Snapshot) -> Result<Vec<(Ino, Part)>> {
    let root = snapshot.directory.in_view(snapshot.view);
    let messages = fs.lookup(root.ok_or(FsError::TooLarge)?, MESSAGES)?;
    parts(fs, messages.ino)
}

impl Fs {
    /// Whether the next snapshot that goes on from this one should bring everything again.
    pub(super) fn is_long_chain(&self, base: &Snapshot) -> bool {
        parts_of(self, base).map_or_else(
            |error| {
                tracing::warn!("what is kept cannot be gone on from: {error}");
                true
            },
            |parts| parts.len() >= PARTS_MAX,
        )
    }

    /// Whether a snapshot is one of another pool.
    pub(super) fn is_kept(&self, snapshot: &Snapshot) -> Result<bool> {
        let root = snapshot.directory.in_view(snapshot.view);
        Ok(self.origin(root.ok_or(FsError::TooLarge)?)?.is_some())
    }

    /// [`Fs::send`] of a snapshot that is kept for another pool: as that one would, from the newest part on that the
    /// receiver has.
    pub(super) fn send_kept(
        &self,
        snapshot: &Snapshot,
        base: Option<&Snapshot>,
        passage: &PassageKey,
        out: &mut dyn Write,
        replies: Option<&mut dyn Read>,
        goes_on: &dyn Fn(&Sent) -> bool,
    ) -> Result<Sent> {
        let received = |snapshot: &Snapshot| {
            let there = self.received_as(snapshot)?;
            there.ok_or_else(|| {
                let name = String::from_utf8_lossy(&snapshot.name).into_owned();
                StreamError::Target(format!("{name} is no snapshot that was received"))
            })
        };
        let timestamp = received(snapshot)?;
        let root = snapshot.directory.in_view(snapshot.view);
        let origin = self.origin(root.ok_or(FsError::TooLarge)?)?;
        let (pool, directory) = origin.ok_or_else(damaged)?;
        let parts = parts_of(self, snapshot)?;
        let (_, last) = parts.last().ok_or_else(damaged)?;
        if last.timestamp != timestamp {
            return Err(damaged());
        }
        let earlier = parts[..parts.len() - 1].iter().rev();
        let mut bases: Vec<u64> = earlier.map(|(_, part)| part.timestamp).collect();
        let mut chosen = None;
        if let Some(base) = base {
            let base = received(base)?;
            if !bases.contains(&base) {
                return Err(StreamError::NoBase(
                    "what is kept does not go on from it; send all of it".to_owned(),
                ));
            }
            bases = vec![base];
            chosen = Some(base);
        }
        let hello = Hello {
            pool,
            directory,
            name: snapshot.name.clone(),
            timestamp,
            bases: bases.clone(),
            opening: last.opening.clone(),
            waits: replies.is_some(),
        };
        let (mut out, has) = Outgoing::begin(self, passage, out, replies, hello)?;
        if let Some(has) = has {
            if has.complete {
                return Ok(out.had_all());
            }
            if has.base.is_some_and(|base| !bases.contains(&base)) {
                return Err(StreamError::Contradiction("an unknown base"));
            }
            chosen = has.base;
        }
        let told = self.tell_parts(snapshot, &parts, chosen, &mut out, goes_on);
        if let Err(error) = told {
            out.fail();
            return Err(error);
        }
        Ok(out.sent)
    }

    fn tell_parts(
        &self,
        snapshot: &Snapshot,
        parts: &[(Ino, Part)],
        base: Option<u64>,
        out: &mut Outgoing<'_, '_>,
        goes_on: &dyn Fn(&Sent) -> bool,
    ) -> Result<()> {
        let had = parts
            .iter()
            .position(|(_, part)| base == Some(part.timestamp));
        for (ino, part) in &parts[had.map_or(0, |at| at + 1)..] {
            let mut records = Records::new(self, *ino);
            let _: Option<Part> = records.next()?;
            out.begin_part(part.clone())?;
            while let Some(sealed) = records.next::<Sealed>()? {
                if !goes_on(&out.sent) {
                    return Err(StreamError::Io(std::io::ErrorKind::Interrupted.into()));
                }
                out.put_sealed(sealed, |it| self.kept_chunk(snapshot, it))?;
            }
        }
        self.check_still_there(snapshot)?;
        out.end()
    }

    fn kept_chunk(&self, snapshot: &Snapshot, fingerprint: &Fingerprint) -> Result<Chunk> {
        let (ino, len) = find_in(self, snapshot, fingerprint)?.ok_or_else(damaged)?;
        let mut header = Vec::new();
        self.read(ino, 0, len as usize, &mut header)?;
        let payload = header.split_off(size_of::<RecordHeader>());
        Ok(Chunk { header, payload })
    }
}
