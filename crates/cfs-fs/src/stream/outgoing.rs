//! A stream on its way out: the greeting, chunks that the other side lacks, the end.

use std::collections::HashSet;
use std::io::{Read, Write};

use cfs_format::Fingerprint;
use cfs_seal::keys::PassageKey;
use serde::Serialize;

use super::wire::{
    Chunk, End, FrameReader, FrameWriter, Hello, Message, Part, Reply, Sealed, answerer_cipher,
    head, sender_cipher, write_head,
};
use super::{Result, Sent, StreamError};
use crate::Fs;

/// A stream that is being sent.
pub(super) struct Outgoing<'w, 'r> {
    frames: FrameWriter<'w>,
    /// Replies of a receiver; there are none when a stream is kept.
    replies: Option<FrameReader<'r>>,
    /// Chunks that the receiver has because its base needs them, or they were sent; the first half of each fingerprint.
    had: HashSet<u128>,
    pub sent: Sent,
}

/// What the receiver has.
pub(super) struct Has {
    /// The newest of the snapshots that were offered.
    pub base: Option<u64>,
    /// All.
    pub complete: bool,
}

impl<'w, 'r> Outgoing<'w, 'r> {
    /// Sends the greeting, and waits for its answer if there is to be one.
    ///
    /// # Errors
    /// See [`StreamError`].
    pub(super) fn begin(
        fs: &Fs,
        passage: &PassageKey,
        out: &'w mut dyn Write,
        replies: Option<&'r mut dyn Read>,
        hello: Hello,
    ) -> Result<(Self, Option<Has>)> {
        let mut salt = [0; 32];
        fs.host.fill_random(&mut salt);
        let head = head(fs.store.cipher(), salt);
        let mut frames = FrameWriter::new(out, sender_cipher(passage, &head));
        write_head(&mut frames, &head)?;
        frames.put(&Message::Hello(hello))?;
        frames.flush()?;
        let mut stream = Self {
            frames,
            replies: None,
            had: HashSet::new(),
            sent: Sent::default(),
        };
        let Some(input) = replies else {
            return Ok((stream, None));
        };
        let mut answer_salt = [0; 32];
        input.read_exact(&mut answer_salt)?;
        // With this one its key would be that of the stream itself.
        if answer_salt == [0; 32] {
            return Err(StreamError::Contradiction("an answer without a salt"));
        }
        let cipher = answerer_cipher(passage, &head, &answer_salt);
        stream.replies = Some(FrameReader::new(input, cipher));
        match stream.reply()? {
            Reply::Have { base, complete } => Ok((stream, Some(Has { base, complete }))),
            _ => Err(StreamError::Contradiction("another reply than asked for")),
        }
    }

    /// What was sent to a receiver that has all.
    pub(super) fn had_all(self) -> Sent {
        Sent {
            had_all: true,
            ..self.sent
        }
    }

    /// Whether somebody answers.
    pub(super) fn asks(&self) -> bool {
        self.replies.is_some()
    }

    fn reply(&mut self) -> Result<Reply> {
        let replies = self.replies.as_mut().expect("asked for by who has replies");
        match replies.get()? {
            Reply::Failed(reason) => Err(StreamError::Peer(reason)),
            reply => Ok(reply),
        }
    }

    /// A part begins. What was sent before it need not be there any more: a receiver has what its last snapshot shows.
    pub(super) fn begin_part(&mut self, part: Part) -> Result<()> {
        self.had.clear();
        self.put(&Message::Part(part))
    }

    /// The receiver has these chunks.
    pub(super) fn note_had<'f>(&mut self, chunks: impl IntoIterator<Item = &'f Fingerprint>) {
        self.had.extend(chunks.into_iter().map(short));
    }

    pub(super) fn put(&mut self, message: &impl Serialize) -> Result<()> {
        self.frames.put(message)?;
        self.sent.bytes = self.frames.bytes;
        Ok(())
    }

    /// Sends a sealed message, and before it those of its chunks that the receiver has not got, which `read` brings.
    pub(super) fn put_sealed(
        &mut self,
        sealed: Sealed,
        mut read: impl FnMut(&Fingerprint) -> Result<Chunk>,
    ) -> Result<()> {
        let mut wanted = sealed.chunks.clone();
        if self.replies.is_none() {
            wanted.retain(|it| self.had.insert(short(it)));
        } else if !wanted.is_empty() {
            self.put(&Message::Query(wanted.clone()))?;
            self.frames.flush()?;
            let Reply::Known(known) = self.reply()? else {
                return Err(StreamError::Contradiction("another reply than asked for"));
            };
            if known.len() != wanted.len() {
                return Err(StreamError::Contradiction("a reply of another length"));
            }
            let mut known = known.into_iter();
            wanted.retain(|_| known.next() == Some(false));
        }
        for fingerprint in wanted {
            let chunk = read(&fingerprint)?;
            self.sent.chunks += 1;
            self.sent.chunk_bytes += (chunk.header.len() + chunk.payload.len()) as u64;
            self.put(&Message::Chunk(chunk))?;
        }
        self.put(&Message::Sealed(sealed))
    }

    /// Says that that was all, and waits until the receiver has it.
    pub(super) fn end(&mut self) -> Result<()> {
        let messages = self.frames.messages;
        self.put(&Message::End(End { messages }))?;
        self.frames.flush()?;
        if self.asks() && self.reply()? != Reply::Done {
            return Err(StreamError::Contradiction("another reply than asked for"));
        }
        Ok(())
    }

    /// Tells the receiver that the sender gives up, if it can be told.
    pub(super) fn fail(&mut self) {
        let _ = self.frames.put(&Message::Failed);
        let _ = self.frames.flush();
    }
}

fn short(fingerprint: &Fingerprint) -> u128 {
    let (half, _) = fingerprint
        .0
        .split_first_chunk::<16>()
        .expect("a fingerprint has 32 bytes");
    u128::from_le_bytes(*half)
}
