//! Streams between pools, as a pool receives them.

use std::sync::Arc;

use cfs_device::MemDevice;
use cfs_format::stream::{STREAM_MAGIC, STREAM_VERSION, StreamHead};
use cfs_format::{DomainId, Fingerprint, Ino};
use cfs_fs::stream::wire::{self, End, Message, Opening, Sealed, TreeMessage};
use cfs_fs::stream::{Received, StreamError};
use cfs_fs::{Caller, Fs, RenameFlags, Snapshot, VolumeOptions, XattrFlags};
use cfs_seal::keys::DomainSecret;
use cfs_seal::stream::StreamCipher;
use serde::Serialize;
use zerocopy::{FromBytes, IntoBytes};

use crate::look;
use crate::world::{self, SimHost};

/// Set in the length of a message that is sealed twice.
const TREE_MESSAGE: u32 = 1 << 31;

/// A message as an input has it: nothing in it is sealed.
#[derive(Clone)]
enum Plain {
    /// What is sealed once. What a part is about, in its opening, is plain.
    Frame(Message),
    /// What is sealed within another.
    Tree(TreeMessage),
}

/// Messages of streams, each with its length in front: of volumes that are empty, small, and have changed, with each kind of
/// message, and of senders that give up.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let fs = small_pool();
    let empty = sent(&fs, &volume(&fs, b"/empty", |_, _| {}), None);
    let small = sent(&fs, &volume(&fs, b"/small", fill_small), None);
    let before = volume(&fs, b"/various", fill);
    let various = sent(&fs, &before, None);
    change(&fs, before.directory);
    let after = fs.snapshot_create(b"/various", b"t").expect(ROOM);
    let changes = sent(&fs, &after, Some(&before));
    // One stream that leads over both snapshots.
    let chain: Vec<_> = changes[..1]
        .iter()
        .chain(&various[1..various.len() - 1])
        .chain(&changes[1..])
        .cloned()
        .collect();
    let begun = &small[..3];
    let failed = |last: Plain| encode(begun.iter().cloned().chain([last]));
    vec![
        encode(small.clone()),
        encode(empty),
        encode(various.clone()),
        encode(chain),
        encode(with_questions(various)),
        failed(Plain::Frame(Message::Failed)),
        failed(Plain::Tree(TreeMessage::Failed("it went away".to_owned()))),
    ]
}

const ROOM: &str = "there is room for little";

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * at / 7) as u8).collect()
}

/// A snapshot of a new volume.
fn volume(fs: &Fs, path: &[u8], fill: impl FnOnce(&Fs, Ino)) -> Arc<Snapshot> {
    let volume = fs.volume_create(path, &VolumeOptions::default(), &Caller::default());
    fill(fs, volume.expect(ROOM).ino);
    fs.snapshot_create(path, b"s").expect(ROOM)
}

fn file(fs: &Fs, parent: Ino, name: &[u8], offset: u64, len: usize) -> Ino {
    let made = fs.create(parent, name, 0o644, &Caller::default());
    let ino = made.expect(ROOM).ino;
    fs.write(ino, offset, &bytes(len), false).expect(ROOM);
    ino
}

fn fill_small(fs: &Fs, root: Ino) {
    file(fs, root, b"small", 0, 9);
    file(fs, root, b"large", 0, 60_000);
}

fn fill(fs: &Fs, root: Ino) {
    let caller = Caller::default();
    let directory = fs.mkdir(root, b"directory", 0o755, &caller).expect(ROOM);
    let below = fs.mkdir(directory.ino, b"below", 0o700, &caller);
    file(fs, below.expect(ROOM).ino, b"inner", 0, 3);
    let content = file(fs, root, b"content", 0, 20_000);
    fs.link(content, directory.ino, b"again").expect(ROOM);
    fs.setxattr(content, b"user.name", b"value", XattrFlags::default())
        .expect(ROOM);
    file(fs, root, b"sparse", 1 << 20, 5000);
    fs.symlink(root, b"link", b"directory/again", &caller)
        .expect(ROOM);
    fs.mknod(root, b"pipe", libc::S_IFIFO | 0o600, 0, &caller)
        .expect(ROOM);
}

/// Changes what [`fill`] has made.
fn change(fs: &Fs, root: Ino) {
    let find = |parent: Ino, name: &[u8]| fs.lookup(parent, name).expect("it was made").ino;
    let directory = find(root, b"directory");
    fs.rename(directory, b"below", root, b"beside", RenameFlags::default())
        .and_then(|()| fs.rename(root, b"directory", root, b"moved", RenameFlags::default()))
        .and_then(|()| fs.unlink(root, b"pipe"))
        .and_then(|()| fs.unlink(directory, b"again"))
        .expect(ROOM);
    fs.write(find(root, b"content"), 7000, &bytes(300), false)
        .expect(ROOM);
    file(fs, directory, b"new", 0, 9);
}

/// The stream of a snapshot.
fn sent(fs: &Fs, snapshot: &Snapshot, base: Option<&Snapshot>) -> Vec<Plain> {
    let mut sent = Vec::new();
    fs.send(snapshot, base, &mut sent, None, &|_| true)
        .expect("a vector takes all");
    let (head, mut frames) = sent.split_at(size_of::<StreamHead>());
    let head = StreamHead::read_from_bytes(head).expect("a head");
    let (secret, cipher) = (first_secret(fs), fs.store().cipher());
    let mut sender = StreamCipher::sender(&secret.passage(), cipher, &head.salt);
    let open = |opening: &mut Opening| {
        let mut tree = StreamCipher::tree(&secret, cipher, &opening.salt);
        let about = tree.open(&mut opening.about).expect("sealed for it");
        opening.about = about.to_vec();
        tree
    };
    let mut tree = None;
    let mut messages = Vec::new();
    while let Some((len, rest)) = frames.split_first_chunk::<4>() {
        let (frame, rest) = rest.split_at(u32::from_le_bytes(*len) as usize);
        let mut frame = frame.to_vec();
        let message = sender.open(&mut frame).expect("just sealed");
        messages.push(match wire::decode(message).expect("just made") {
            Message::Hello(mut hello) => {
                open(&mut hello.opening);
                Plain::Frame(Message::Hello(hello))
            }
            Message::Part(mut part) => {
                tree = Some(open(&mut part.opening));
                Plain::Frame(Message::Part(part))
            }
            Message::Sealed(mut sealed) => {
                let tree = tree.as_mut().expect("a part has begun");
                let message = tree.open(&mut sealed.message).expect("sealed for it");
                Plain::Tree(wire::decode(message).expect("just made"))
            }
            other => Plain::Frame(other),
        });
        frames = rest;
    }
    messages
}

/// The same from a sender that asks what is there, and has more attributes than fit into one message.
fn with_questions(messages: Vec<Plain>) -> Vec<Plain> {
    let mut asking = Vec::new();
    for mut message in messages {
        if let Plain::Frame(Message::Hello(hello)) = &mut message {
            hello.waits = true;
        }
        let is_node = matches!(message, Plain::Tree(TreeMessage::Node(_)));
        let is_part = matches!(message, Plain::Frame(Message::Part(_)));
        asking.push(message);
        if is_part {
            let wanted = [0, 1].map(|byte| Fingerprint([byte; 32])).to_vec();
            asking.push(Plain::Frame(Message::Query(wanted)));
        }
        if is_node {
            let more = vec![(b"user.more".to_vec(), b"value".to_vec())];
            asking.push(Plain::Tree(TreeMessage::Xattrs(more)));
        }
    }
    asking
}

/// An input, in which ends tell how many messages are before them.
fn encode(messages: impl IntoIterator<Item = Plain>) -> Vec<u8> {
    let mut input = Vec::new();
    let mut put = |flag: u32, message: Vec<u8>| {
        input.extend_from_slice(&(message.len() as u32 | flag).to_le_bytes());
        input.extend_from_slice(&message);
    };
    let mut of_part = 0;
    for (messages, message) in (0..).zip(messages) {
        match message {
            Plain::Frame(Message::End(_)) => put(0, to_vec(&Message::End(End { messages }))),
            Plain::Frame(message) => {
                if let Message::Part(_) = message {
                    // What it is about is the first.
                    of_part = 1;
                }
                put(0, to_vec(&message));
            }
            Plain::Tree(message) => {
                let message = match message {
                    TreeMessage::End(_) => TreeMessage::End(End { messages: of_part }),
                    message => message,
                };
                of_part += 1;
                put(TREE_MESSAGE, to_vec(&message));
            }
        }
    }
    input
}

fn to_vec(message: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(message).expect("a vector takes all")
}

fn first_secret(fs: &Fs) -> Arc<DomainSecret> {
    let secret = fs.store().domain_secret(DomainId::DEFAULT);
    secret.expect("the first domain")
}

fn small_pool() -> Arc<Fs> {
    let device = Arc::new(MemDevice::new(72));
    let host = Arc::new(SimHost::new(1));
    world::format(&device, &host).expect("a device that does not fail");
    world::open(&device, &host).expect("a pool that was just made")
}

struct Nobody;

impl cfs_fs::RestoreObserver for Nobody {
    fn inode_changed(&mut self, _: Ino) {}
    fn entry_changed(&mut self, _: Ino, _: &[u8]) {}
    fn problem(&mut self, _: &[u8], _: &cfs_fs::FsError) {}
    fn goes_on(&mut self) -> bool {
        true
    }
}

/// Has a pool receive the messages, and looks at its tables.
pub(super) fn run(input: &[u8]) {
    let _ = receive(input);
}

/// Seals the messages and has a pool receive them.
fn receive(input: &[u8]) -> Result<Received, StreamError> {
    let fs = small_pool();
    let secret = first_secret(&fs);
    let head = StreamHead {
        magic: STREAM_MAGIC,
        version: STREAM_VERSION.into(),
        cipher: fs.store().cipher().number(),
        reserved: [0; 5],
        salt: [9; 32],
    };
    let cipher = fs.store().cipher();
    let mut frames = StreamCipher::sender(&secret.passage(), cipher, &head.salt);
    let begin = |opening: &mut Opening| {
        let mut tree = StreamCipher::tree(&secret, cipher, &opening.salt);
        tree.seal(&mut opening.about, 0);
        tree
    };
    let mut tree = StreamCipher::tree(&secret, cipher, &[0; 32]);
    let mut sent = head.as_bytes().to_vec();
    let mut rest = input;
    while let Some((len, behind)) = rest.split_first_chunk::<4>() {
        let len = u32::from_le_bytes(*len);
        let is_sealed_twice = len & TREE_MESSAGE != 0;
        let len = ((len & !TREE_MESSAGE) as usize).min(behind.len());
        let (message, behind) = behind.split_at(len);
        let mut frame = message.to_vec();
        if is_sealed_twice {
            tree.seal(&mut frame, 0);
            let chunks = Vec::new();
            let message = frame;
            frame = to_vec(&Message::Sealed(Sealed { chunks, message }));
        } else if let Ok(mut message) = wire::decode(message) {
            match &mut message {
                Message::Hello(hello) => drop(begin(&mut hello.opening)),
                Message::Part(part) => tree = begin(&mut part.opening),
                _ => {}
            }
            frame = to_vec(&message);
        }
        frames.seal(&mut frame, 0);
        sent.extend_from_slice(&(frame.len() as u32).to_le_bytes());
        sent.extend_from_slice(&frame);
        rest = behind;
    }
    let mut replies = std::io::sink();
    let received = fs.receive(None, &mut &sent[..], &mut replies, &mut Nobody);
    look::check(&fs).expect("whatever came, the tables agree");
    received
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_arrive_unless_the_sender_gives_up() {
        for (number, seed) in seeds().iter().enumerate() {
            match (number, receive(seed)) {
                (5.., Err(StreamError::Peer(_))) => {}
                (..5, Ok(received)) => assert!(received.inodes > 0, "stream {number}"),
                (_, received) => panic!("stream {number}: {received:?}"),
            }
        }
    }
}
