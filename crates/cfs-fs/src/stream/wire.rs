//! The messages of a stream, and frames of them: a length in clear, then the sealed message.
//!
//! What tells of the tree is sealed once more within its frame, under the domain's secret: see [`TreeMessage`].

use std::io::{Read, Write};

use cfs_format::Fingerprint;
use cfs_format::stream::{FRAME_BYTES_MAX, STREAM_MAGIC, STREAM_VERSION, StreamHead};
use cfs_seal::block::Cipher;
use cfs_seal::keys::{DomainSecret, PassageKey};
use cfs_seal::stream::StreamCipher;
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, IntoBytes};
use zeroize::{Zeroize, Zeroizing};

use super::{Result, StreamError};
use crate::types::Time;

/// What the sender says. Who has the passage key can read it: a pool that keeps snapshots without being able to read them.
/// **The order of variants and fields is the format.**
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// What is to come; always the first.
    Hello(Hello),
    /// What follows leads from one snapshot to another.
    Part(Part),
    /// A [`TreeMessage`].
    Sealed(Sealed),
    /// Which of these chunks does the receiver have?
    Query(Vec<Fingerprint>),
    /// A chunk.
    Chunk(Chunk),
    /// That was all.
    End(End),
    /// The sender gave up.
    Failed,
}

/// What the sender says to who has the domain's secret. **The order of variants and fields is the format.**
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum TreeMessage {
    /// What a part is about; in its [`Opening`].
    About(About),
    /// Again what [`Part::base`] says; the first of a part.
    Base(Option<u64>),
    /// An inode that is new or has changed.
    Node(Node),
    /// More extended attributes and records of the inode before; they come before its content.
    Xattrs(Vec<(Vec<u8>, Vec<u8>)>),
    /// Names that are new, of inodes that are known by now.
    Names(Vec<Name>),
    /// New names of directories that had others: given when all other names are.
    Moves(Vec<Name>),
    /// Names that are gone, if they still stand for these inodes.
    Gone(Vec<Name>),
    /// Content of the inode before.
    Extents(Extents),
    /// The part is complete.
    End(End),
    /// Why the sender gives up.
    Failed(String),
}

/// What the receiver says, to a sender that waits for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// To `Hello`: the newest of the offered snapshots that it has, and whether it has the whole already.
    Have {
        /// Timestamp there.
        base: Option<u64>,
        /// Nothing need be sent.
        complete: bool,
    },
    /// To `Query`: for each whether it is there.
    Known(Vec<bool>),
    /// To `End`: the snapshot is there and durable.
    Done,
    /// The receiver gave up.
    Failed(String),
}

/// See [`Message::Hello`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// UUID of the pool that the snapshot was taken in.
    pub pool: [u8; 16],
    /// The directory's inode there.
    pub directory: u64,
    /// The snapshot's name.
    pub name: Vec<u8>,
    /// The snapshot's timestamp there.
    pub timestamp: u64,
    /// Timestamps of snapshots that the stream can go on from, newest first.
    pub bases: Vec<u64>,
    /// Of the last part.
    pub opening: Opening,
    /// The sender waits for replies.
    pub waits: bool,
}

/// How a part is sealed, and what it is about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Opening {
    /// `STREAM_VERSION` of who made it: a pool can keep a part for long.
    pub version: u16,
    /// Goes into the key of the part's messages.
    pub salt: [u8; 32],
    /// The first of them, [`TreeMessage::About`], sealed.
    pub about: Vec<u8>,
}

/// See [`Message::Part`]. Its sealed messages follow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Its key, and what it is about.
    pub opening: Opening,
    /// The snapshot that it goes on from, by its timestamp there; `None` when everything comes.
    pub base: Option<u64>,
    /// Timestamp there of the snapshot that it leads to.
    pub timestamp: u64,
}

/// See [`Message::Sealed`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sealed {
    /// Chunks that it refers to, which came before it or are here.
    pub chunks: Vec<Fingerprint>,
    /// The message, sealed.
    pub message: Vec<u8>,
}

/// See [`TreeMessage::About`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// As in [`Opening`].
    pub version: u16,
    /// As in [`Hello`].
    pub pool: [u8; 16],
    /// As in [`Hello`].
    pub directory: u64,
    /// The directory's path there when the snapshot was taken.
    pub path: Vec<u8>,
    /// The snapshot's name.
    pub name: Vec<u8>,
    /// The snapshot's timestamp there.
    pub timestamp: u64,
    /// The dedup domain of its chunks.
    pub domain: u16,
    /// The domain's secret.
    pub domain_secret: WireSecret,
}

/// A secret on its way. It is wiped when it is dropped, and shows nothing.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct WireSecret(pub [u8; 32]);

impl std::fmt::Debug for WireSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WireSecret")
    }
}

impl Drop for WireSecret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// See [`TreeMessage::Node`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its number there.
    pub ino: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number.
    pub rdev: u64,
    /// Bytes of content, of a file.
    pub size: u64,
    /// Last access, last change of content, last change of attributes.
    pub times: [Time; 3],
    /// Records of front ends describe its content.
    pub described: bool,
    /// Extended attributes and records; those that are too many for a message follow.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// What else is in it.
    pub body: Body,
}

/// What is in an inode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Body {
    /// Nothing, or names, or extents that follow as far as they have changed.
    Follows,
    /// All of it: of a small file, or the target of a symbolic link.
    Whole(Vec<u8>),
}

/// A name, with the numbers that the sender has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Name {
    /// Directory.
    pub parent: u64,
    /// Name in it.
    pub name: Vec<u8>,
    /// What it stands for.
    pub ino: u64,
}

/// See [`Message::Chunk`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    /// `cfs_format::segment::RecordHeader`.
    pub header: Vec<u8>,
    /// What is sealed under it, with its tag.
    pub payload: Vec<u8>,
}

/// See [`TreeMessage::Extents`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Extents {
    /// The file.
    pub ino: u64,
    /// First byte of the range.
    pub from: u64,
    /// End of the range; what of it is in no extent is a hole.
    pub to: u64,
    /// In order, disjoint.
    pub extents: Vec<WireExtent>,
}

/// An extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireExtent {
    /// First byte of the file.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
    /// Where in the chunk they begin.
    pub chunk_offset: u32,
    /// Bytes of the chunk.
    pub chunk_len: u32,
    /// The chunk.
    pub fingerprint: Fingerprint,
}

/// See [`Message::End`] and [`TreeMessage::End`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Messages before this one, of the stream or of the part.
    pub messages: u64,
}

/// Bytes of [`About`] without path and name, and of what sealing adds, at most.
const ABOUT_BYTES: usize = 256;

/// Frames that go out.
pub(super) struct FrameWriter<'w> {
    out: &'w mut dyn Write,
    cipher: StreamCipher,
    frame: Vec<u8>,
    pub bytes: u64,
    pub messages: u64,
}

impl<'w> FrameWriter<'w> {
    pub(super) fn new(out: &'w mut dyn Write, cipher: StreamCipher) -> Self {
        Self {
            out,
            cipher,
            frame: Vec::new(),
            bytes: 0,
            messages: 0,
        }
    }

    /// Writes bytes in clear.
    pub(super) fn plain(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len() as u64;
        Ok(self.out.write_all(bytes)?)
    }

    pub(super) fn put(&mut self, message: &impl Serialize) -> Result<()> {
        let mut frame = std::mem::take(&mut self.frame);
        frame.clear();
        frame.extend_from_slice(&[0; 4]);
        frame = postcard::to_extend(message, frame).expect("a vector takes any number of bytes");
        let len = frame.len() - 4 + StreamCipher::OVERHEAD;
        let len = u32::try_from(len)
            .ok()
            .filter(|len| *len <= FRAME_BYTES_MAX)
            .ok_or(crate::FsError::ArgumentTooLong)?;
        self.cipher.seal(&mut frame, 4);
        frame[..4].copy_from_slice(&len.to_le_bytes());
        self.plain(&frame)?;
        self.messages += 1;
        self.frame = frame;
        Ok(())
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        Ok(self.out.flush()?)
    }
}

/// Frames that come in.
pub(super) struct FrameReader<'r> {
    input: &'r mut dyn Read,
    cipher: StreamCipher,
    frame: Vec<u8>,
    pub messages: u64,
}

impl<'r> FrameReader<'r> {
    pub(super) fn new(input: &'r mut dyn Read, cipher: StreamCipher) -> Self {
        Self {
            input,
            cipher,
            frame: Vec::new(),
            messages: 0,
        }
    }

    /// The next message.
    pub(super) fn get<T: for<'de> Deserialize<'de>>(&mut self) -> Result<T> {
        let mut len = [0; 4];
        self.input.read_exact(&mut len)?;
        let len = u32::from_le_bytes(len);
        // A length that is damaged must not have memory set aside for it: what is read grows it.
        if len > FRAME_BYTES_MAX {
            return Err(StreamError::Forged(self.messages));
        }
        self.frame.clear();
        let read = (&mut *self.input)
            .take(len.into())
            .read_to_end(&mut self.frame)?;
        if read < len as usize {
            return Err(StreamError::CutOff);
        }
        let plain = self.cipher.open(&mut self.frame);
        let plain = plain.map_err(|_| StreamError::Forged(self.messages))?;
        self.messages += 1;
        decode(plain)
    }
}

/// A message from its bytes.
///
/// # Errors
/// [`StreamError::Contradiction`] when they are not exactly one.
pub fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        _ => Err(StreamError::Contradiction("a message does not decode")),
    }
}

/// The start of a stream.
pub(super) fn head(cipher: Cipher, salt: [u8; 32]) -> StreamHead {
    StreamHead {
        magic: STREAM_MAGIC,
        version: STREAM_VERSION.into(),
        cipher: cipher.number(),
        reserved: [0; 5],
        salt,
    }
}

/// Reads the start of a stream.
///
/// # Errors
/// [`StreamError::Nothing`], [`StreamError::CutOff`], [`StreamError::NotAStream`], [`StreamError::Version`].
pub fn read_head(input: &mut dyn Read) -> Result<StreamHead> {
    let mut bytes = Vec::with_capacity(size_of::<StreamHead>());
    input
        .take(size_of::<StreamHead>() as u64)
        .read_to_end(&mut bytes)?;
    if bytes.is_empty() {
        return Err(StreamError::Nothing);
    }
    let magic = &STREAM_MAGIC[..bytes.len().min(STREAM_MAGIC.len())];
    if !bytes.starts_with(magic) {
        return Err(StreamError::NotAStream("it begins otherwise"));
    }
    let head = StreamHead::read_from_bytes(&bytes).map_err(|_| StreamError::CutOff)?;
    if head.version.get() != STREAM_VERSION {
        return Err(StreamError::Version(head.version.get()));
    }
    if Cipher::from_number(head.cipher).is_none() || head.reserved != [0; 5] {
        return Err(StreamError::NotAStream("its head is damaged"));
    }
    Ok(head)
}

/// Writes the start of a stream.
pub(super) fn write_head(out: &mut FrameWriter<'_>, head: &StreamHead) -> Result<()> {
    out.plain(head.as_bytes())
}

fn cipher_of(head: &StreamHead) -> Cipher {
    Cipher::from_number(head.cipher).expect("looked at when it was read")
}

/// The cipher of the frames behind a head.
pub(super) fn sender_cipher(passage: &PassageKey, head: &StreamHead) -> StreamCipher {
    StreamCipher::sender(passage, cipher_of(head), &head.salt)
}

/// The cipher of the replies to what is behind a head.
pub(super) fn answerer_cipher(
    passage: &PassageKey,
    head: &StreamHead,
    salt: &[u8; 32],
) -> StreamCipher {
    StreamCipher::answerer(passage, cipher_of(head), &head.salt, salt)
}

/// Seals the messages of a part.
pub(super) struct TreeWriter {
    cipher: StreamCipher,
    messages: u64,
}

impl TreeWriter {
    /// Begins a part with what it is about.
    pub(super) fn begin(
        secret: &DomainSecret,
        cipher: Cipher,
        salt: [u8; 32],
        about: About,
    ) -> (Self, Opening) {
        let mut writer = Self {
            cipher: StreamCipher::tree(secret, cipher, &salt),
            messages: 0,
        };
        // With room for all of it: what outgrows its place leaves there what nobody wipes.
        let room = about.path.len() + about.name.len() + ABOUT_BYTES;
        let about = writer.seal_into(&TreeMessage::About(about), Vec::with_capacity(room));
        let opening = Opening {
            version: STREAM_VERSION,
            salt,
            about,
        };
        (writer, opening)
    }

    /// The message, sealed.
    pub(super) fn seal(&mut self, message: &TreeMessage) -> Vec<u8> {
        self.seal_into(message, Vec::new())
    }

    fn seal_into(&mut self, message: &TreeMessage, bytes: Vec<u8>) -> Vec<u8> {
        let bytes = postcard::to_extend(message, bytes);
        let mut bytes = bytes.expect("a vector takes any number of bytes");
        self.cipher.seal(&mut bytes, 0);
        self.messages += 1;
        bytes
    }

    /// The last message.
    pub(super) fn seal_end(&mut self) -> Vec<u8> {
        let messages = self.messages;
        self.seal(&TreeMessage::End(End { messages }))
    }
}

/// Opens the messages of a part.
pub(super) struct TreeReader {
    cipher: StreamCipher,
    pub messages: u64,
}

impl TreeReader {
    /// Opens a part.
    ///
    /// # Errors
    /// [`StreamError::Forged`] with the frame's number, when it was not sealed under this secret.
    pub(super) fn begin(
        secret: &DomainSecret,
        cipher: Cipher,
        opening: &Opening,
        frame: u64,
    ) -> Result<(Self, About)> {
        if opening.version != STREAM_VERSION {
            return Err(StreamError::Version(opening.version));
        }
        let mut reader = Self {
            cipher: StreamCipher::tree(secret, cipher, &opening.salt),
            messages: 0,
        };
        match reader.open(opening.about.clone(), frame)? {
            TreeMessage::About(about) if about.version == opening.version => Ok((reader, about)),
            _ => Err(StreamError::Contradiction("a part that is about nothing")),
        }
    }

    /// The next message.
    ///
    /// # Errors
    /// [`StreamError::Forged`] with the frame's number, [`StreamError::Contradiction`].
    pub(super) fn open(&mut self, message: Vec<u8>, frame: u64) -> Result<TreeMessage> {
        // What a part is about has a secret.
        let mut message = Zeroizing::new(message);
        let plain = self.cipher.open(&mut message);
        let plain = plain.map_err(|_| StreamError::Forged(frame))?;
        self.messages += 1;
        decode(plain)
    }
}
