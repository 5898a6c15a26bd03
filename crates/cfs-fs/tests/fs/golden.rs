//! Streams of version 2 as they were written once: each message, a stream, and the file of a part in a pool that only stores.
//! A difference is a change of format: it needs a new version, new golden files, and a decoder that still reads these.

use cfs_format::Fingerprint;
use cfs_fs::stream::wire::{
    About, Body, Chunk, End, Extents, Hello, Message, Name, Node, Opening, Part, Reply, Sealed,
    TreeMessage, WireExtent, WireSecret, decode,
};
use cfs_fs::{Caller, Fs, SetAttr, SetTime, Time, VolumeOptions, XattrFlags};
use serde::{Deserialize, Serialize};

use crate::kept::keeper;
use crate::pool::{Pool, assert_clean};
use crate::stream::{Nobody, file, mkdir, receive};

const MESSAGES: &str = include_str!("../../golden/v2/messages.hex");
const STREAMS: [&str; 2] = [
    include_str!("../../golden/v2/stream_whole.hex"),
    include_str!("../../golden/v2/stream_difference.hex"),
];
const PART: &str = include_str!("../../golden/v2/part.hex");

fn hex(bytes: &[u8]) -> String {
    let line = |line: &[u8]| -> String { line.iter().map(|byte| format!("{byte:02x}")).collect() };
    bytes.chunks(60).map(|it| line(it) + "\n").collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pairs = digits.chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).expect("digits");
        u8::from_str_radix(pair, 16).expect("two digits")
    });
    pairs.collect()
}

fn counting<const N: usize>(start: u8) -> [u8; N] {
    std::array::from_fn(|index| start.wrapping_add(index as u8))
}

/// The message as a line, if it is read again as it was.
fn line<T>(message: &T) -> String
where
    T: Serialize + for<'de> Deserialize<'de> + PartialEq + std::fmt::Debug,
{
    let bytes = postcard::to_stdvec(message).expect("encoded");
    assert_eq!(decode::<T>(&bytes).expect("decoded"), *message);
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits + "\n"
}

#[test]
fn messages() {
    let opening = Opening {
        version: 2,
        salt: counting(0x20),
        about: vec![1, 2, 3],
    };
    let name = Name {
        parent: 300,
        name: b"name".to_vec(),
        ino: 301,
    };
    let time = |seconds| Time {
        seconds,
        nanos: 999_999_999,
    };
    let node = |body| Node {
        ino: 302,
        mode: libc::S_IFREG | 0o640,
        uid: 1000,
        gid: 1001,
        rdev: 5,
        size: 1 << 40,
        times: [time(-1), time(0), time(1_700_000_000)],
        described: true,
        xattrs: vec![(b"user.a".to_vec(), b"value".to_vec())],
        body,
    };
    let sent = [
        Message::Hello(Hello {
            pool: counting(0x10),
            directory: 400,
            name: b"monday".to_vec(),
            timestamp: 500,
            bases: vec![499, 7],
            opening: opening.clone(),
            waits: true,
        }),
        Message::Part(Part {
            opening: opening.clone(),
            base: Some(499),
            timestamp: 500,
        }),
        Message::Part(Part {
            opening,
            base: None,
            timestamp: 500,
        }),
        Message::Sealed(Sealed {
            chunks: vec![Fingerprint(counting(0x40))],
            message: vec![4, 5, 6],
        }),
        Message::Query(vec![Fingerprint(counting(0x50))]),
        Message::Chunk(Chunk {
            header: vec![7; 3],
            payload: vec![8; 4],
        }),
        Message::End(End { messages: 600 }),
        Message::Failed,
    ];
    let of_tree = [
        TreeMessage::About(About {
            version: 2,
            pool: counting(0x10),
            directory: 400,
            path: b"/home".to_vec(),
            name: b"monday".to_vec(),
            timestamp: 500,
            domain: 1,
            domain_secret: WireSecret(counting(0x60)),
        }),
        TreeMessage::Base(Some(499)),
        TreeMessage::Base(None),
        TreeMessage::Node(node(Body::Follows)),
        TreeMessage::Node(node(Body::Whole(b"content".to_vec()))),
        TreeMessage::Xattrs(vec![(b"user.b".to_vec(), vec![0xff])]),
        TreeMessage::Names(vec![name.clone()]),
        TreeMessage::Moves(vec![name.clone()]),
        TreeMessage::Gone(vec![name]),
        TreeMessage::Extents(Extents {
            ino: 302,
            from: 4096,
            to: 1 << 33,
            extents: vec![WireExtent {
                offset: 4096,
                len: 70_000,
                chunk_offset: 10,
                chunk_len: 80_000,
                fingerprint: Fingerprint(counting(0x70)),
            }],
        }),
        TreeMessage::End(End { messages: 10 }),
        TreeMessage::Failed("why".to_owned()),
    ];
    let replies = [
        Reply::Have {
            base: Some(499),
            complete: false,
        },
        Reply::Known(vec![true, false]),
        Reply::Done,
        Reply::Failed("why".to_owned()),
    ];
    let lines = sent.iter().map(line);
    let lines = lines.chain(of_tree.iter().map(line));
    let now: String = lines.chain(replies.iter().map(line)).collect();
    assert!(now == MESSAGES, "not what version 2 has; it is now:\n{now}");
}

fn big() -> Vec<u8> {
    (0..40_000_u32)
        .flat_map(|number| (number / 1000).to_le_bytes())
        .collect()
}

/// Made and changed, with a snapshot each time.
fn source(pool: &Pool) -> std::sync::Arc<Fs> {
    let fs = pool.open();
    let root = fs
        .volume_create(b"/v", &VolumeOptions::default(), &Caller::default())
        .expect("made")
        .ino;
    let below = mkdir(&fs, root, "below");
    let small = file(&fs, root, "small", b"a few bytes");
    file(&fs, below, "big", &big());
    file(&fs, below, "gone", &[9; 100_000]);
    fs.symlink(below, b"link", b"../small", &Caller::default())
        .expect("made");
    fs.setxattr(small, b"user.a", b"value", XattrFlags::default())
        .expect("set");
    let set = SetAttr {
        mtime: Some(SetTime::At(Time {
            seconds: 1_234_567_890,
            nanos: 5,
        })),
        ..SetAttr::default()
    };
    fs.setattr(small, &set).expect("set");
    fs.snapshot_create(b"/v", b"one").expect("taken");
    fs.unlink(below, b"gone").expect("removed");
    let big = fs.lookup(below, b"big").expect("there").ino;
    fs.write(big, 70_000, b"changed", false).expect("written");
    let flags = cfs_fs::RenameFlags::default();
    fs.rename(root, b"below", root, b"moved", flags)
        .expect("renamed");
    fs.snapshot_create(b"/v", b"two").expect("taken");
    fs
}

fn assert_shows(fs: &Fs, path: &str, name: &str) {
    let at = |below: &str| {
        let path = format!("{path}/.snapshots/{name}/{below}");
        fs.resolve(path.as_bytes())
    };
    let read = |below: &str| {
        let mut content = Vec::new();
        let ino = at(below).expect("there").ino;
        fs.read(ino, 0, 1 << 30, &mut content).expect("read");
        content
    };
    let (directory, is_first) = match name {
        "one" => ("below", true),
        _ => ("moved", false),
    };
    let small = at("small").expect("there");
    assert_eq!(small.mode, libc::S_IFREG | 0o640);
    assert_eq!(small.mtime.ns_since_1970(), 1_234_567_890_000_000_005);
    assert_eq!(fs.getxattr(small.ino, b"user.a").expect("there"), b"value");
    assert_eq!(read("small"), b"a few bytes");
    let link = at(&format!("{directory}/link")).expect("there").ino;
    assert_eq!(fs.readlink(link).expect("read"), b"../small");
    let mut wanted = big();
    if !is_first {
        wanted[70_000..70_007].copy_from_slice(b"changed");
    }
    assert!(read(&format!("{directory}/big")) == wanted, "{name}");
    assert_eq!(at(&format!("{directory}/gone")).is_ok(), is_first);
    assert_eq!(at("below").is_ok(), is_first);
}

/// By a pool that can read it, and by one that cannot and hands it on.
#[test]
fn a_stream_is_received() {
    let (to, between, last) = (
        Pool::new(64),
        Pool::with_secret(64, [77; 32]),
        Pool::new(64),
    );
    let (target, kept, last) = (to.open(), keeper(&between), last.open());
    for (stream, name) in STREAMS.iter().zip(["one", "two"]) {
        receive(&target, &bytes(stream)).expect("received");
        assert_shows(&target, "/v", name);
        let path = Some(&b"/kept"[..]);
        kept.receive(
            path,
            &mut &bytes(stream)[..],
            &mut std::io::sink(),
            &mut Nobody,
        )
        .expect("kept");
    }
    assert_clean(&target);
    let part = kept
        .resolve(b"/kept/.snapshots/two/messages/00000002")
        .expect("there");
    let mut now = Vec::new();
    kept.read(part.ino, 0, 1 << 30, &mut now).expect("read");
    assert!(
        hex(&now) == PART,
        "not what version 2 keeps; it is now:\n{}",
        hex(&now)
    );
    let snapshot = kept.snapshot(b"/kept", b"two").expect("there");
    let mut both = Vec::new();
    kept.send(&snapshot, None, &mut both, None, &|_| true)
        .expect("sent");
    receive(&last, &both).expect("received");
    assert_shows(&last, "/v", "two");
    assert_clean(&last);
}

/// What is sent now is received as the golden streams are; of a new version it is what they are made of.
#[test]
fn a_stream_of_this_build_is_received() {
    let (from, to) = (Pool::new(64), Pool::new(64));
    let (source, target) = (source(&from), to.open());
    let snapshot = |name: &str| source.snapshot(b"/v", name.as_bytes()).expect("there");
    for (name, base) in [("one", None), ("two", Some(snapshot("one")))] {
        let mut stream = Vec::new();
        source
            .send(&snapshot(name), base.as_deref(), &mut stream, None, &|_| {
                true
            })
            .expect("sent");
        println!("{name}:\n{}", hex(&stream));
        receive(&target, &stream).expect("received");
        assert_shows(&target, "/v", name);
    }
}
