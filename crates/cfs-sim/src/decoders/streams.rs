//! Streams between pools, as a pool receives them.

use std::sync::Arc;

use cfs_device::MemDevice;
use cfs_format::stream::{STREAM_MAGIC, STREAM_VERSION, StreamHead};
use cfs_format::{DomainId, Ino};
use cfs_fs::stream::wire::{self, Message, Sealed};
use cfs_fs::{Caller, Fs};
use cfs_seal::keys::DomainSecret;
use cfs_seal::stream::StreamCipher;
use zerocopy::{FromBytes, IntoBytes};

use crate::look;
use crate::world::{self, SimHost};

/// Set in the length of a message that is sealed twice.
const TREE_MESSAGE: u32 = 1 << 31;

/// Messages of a stream, each with its length in front: a valid one, of a small volume. Of the messages that are sealed within
/// others, what is in them.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let fs = small_pool();
    let caller = Caller::default();
    let volume = fs.volume_create(b"/v", &cfs_fs::VolumeOptions::default(), &caller);
    let root = volume.expect("room for a volume").ino;
    for (name, len) in [("small", 9), ("large", 60_000_usize)] {
        let made = fs.create(root, name.as_bytes(), 0o644, &caller);
        let bytes: Vec<u8> = (0..len).map(|at| (at * at / 7) as u8).collect();
        let ino = made.expect("room for a file").ino;
        fs.write(ino, 0, &bytes, false).expect("room for content");
    }
    let snapshot = fs
        .snapshot_create(b"/v", b"s")
        .expect("room for a snapshot");
    let mut sent = Vec::new();
    fs.send(&snapshot, None, &mut sent, None, &|_| true)
        .expect("a vector takes all");
    let (head, mut frames) = sent.split_at(size_of::<StreamHead>());
    let head = StreamHead::read_from_bytes(head).expect("a head");
    let secret = first_secret(&fs);
    let mut cipher = StreamCipher::sender(&secret.passage(), fs.store().cipher(), &head.salt);
    let mut tree = None;
    let mut plain = Vec::new();
    let mut put = |flag: u32, message: &[u8]| {
        plain.extend_from_slice(&(message.len() as u32 | flag).to_le_bytes());
        plain.extend_from_slice(message);
    };
    while let Some((len, rest)) = frames.split_first_chunk::<4>() {
        let (frame, rest) = rest.split_at(u32::from_le_bytes(*len) as usize);
        let mut frame = frame.to_vec();
        let message = cipher.open(&mut frame).expect("just sealed");
        match wire::decode(message).expect("just made") {
            Message::Part(mut part) => {
                let mut opening =
                    StreamCipher::tree(&secret, fs.store().cipher(), &part.opening.salt);
                opening
                    .open(&mut part.opening.about)
                    .expect("sealed for it");
                tree = Some(opening);
                put(0, message);
            }
            Message::Sealed(mut sealed) => {
                let tree = tree.as_mut().expect("a part has begun");
                let message = tree.open(&mut sealed.message).expect("sealed for it");
                put(TREE_MESSAGE, message);
            }
            _ => put(0, message),
        }
        frames = rest;
    }
    vec![plain]
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

/// Seals the messages, has a pool receive them, and looks at its tables.
pub(super) fn run(input: &[u8]) {
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
            frame = postcard::to_stdvec(&Message::Sealed(Sealed { chunks, message }))
                .expect("a vector takes all");
        } else if let Ok(Message::Part(part)) = wire::decode(message) {
            tree = StreamCipher::tree(&secret, cipher, &part.opening.salt);
            // What the part is about was sealed first.
            tree.seal(&mut Vec::new(), 0);
        }
        frames.seal(&mut frame, 0);
        sent.extend_from_slice(&(frame.len() as u32).to_le_bytes());
        sent.extend_from_slice(&frame);
        rest = behind;
    }
    let mut replies = std::io::sink();
    let _ = fs.receive(None, &mut &sent[..], &mut replies, &mut Nobody);
    look::check(&fs).expect("whatever came, the tables agree");
}
