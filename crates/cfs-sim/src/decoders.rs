//! Entry points for fuzzing: the decoders of every structure on the device, of the key file and of the log's commands.
//!
//! Each takes any bytes and must come back. Most of what is on a device is authenticated before it is decoded; an input
//! then is the plain form, which is sealed here with the pool's own key and put where the structure belongs, so that the
//! decoder behind the authentication sees it. docs/RELIABILITY.md says how long they were run.

mod streams;

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::sync::Arc;

use cfs_device::{Device, MemDevice};
use cfs_format::journal::{BATCH_MAGIC, BatchHeader};
use cfs_format::segment::{FooterEntry, RecordHeader, SegmentHeader, Stream};
use cfs_format::superblock::{KeySlot, Superblock};
use cfs_format::table::{split_key, tag};
use cfs_format::{BLOCK_BYTES, Ino, SEGMENT_BYTES, SegmentId, SegmentSeq};
use cfs_fs::{Caller, Fs, SetAttr, XattrFlags};
use cfs_kv::{
    Batch, BlockCache, BlockPtr, RunError, RunReason, RunStore, RunWriter, Tree, TreeOptions,
};
use cfs_seal::block::{BlockCipher, Cipher};
use cfs_seal::chunk::{RecordPlace, open_record, open_record_header, peek_record_len, sealed_head};
use cfs_seal::keys::{
    ClusterKey, DomainSecret, MasterKey, Purpose, render_key_file, unwrap_cluster_key,
    wrap_cluster_key,
};
use parking_lot::Mutex;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::look;
use crate::world::{self, KEY, SimHost};

/// A decoder.
pub struct Target {
    /// Its name on the command line, and of its corpus.
    pub name: &'static str,
    /// Valid inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Decodes an input. Any outcome is right but a panic, an endless loop, or memory without bound.
    pub run: fn(&[u8]),
}

/// All of them but those of what is in the program `cfs` alone.
pub const TARGETS: &[Target] = &[
    Target {
        name: "superblock",
        seeds: superblock_seeds,
        run: superblock,
    },
    Target {
        name: "segment-header",
        seeds: segment_header_seeds,
        run: segment_header,
    },
    Target {
        name: "record",
        seeds: record_seeds,
        run: record,
    },
    Target {
        name: "footer",
        seeds: footer_seeds,
        run: footer,
    },
    Target {
        name: "batch",
        seeds: batch_seeds,
        run: batch,
    },
    Target {
        name: "manifest",
        seeds: manifest_seeds,
        run: manifest,
    },
    Target {
        name: "directory",
        seeds: directory_seeds,
        run: directory,
    },
    Target {
        name: "table",
        seeds: table_seeds,
        run: table,
    },
    Target {
        name: "rows",
        seeds: row_seeds,
        run: rows,
    },
    Target {
        name: "store-rows",
        seeds: store_row_seeds,
        run: store_rows,
    },
    Target {
        name: "content",
        seeds: content_seeds,
        run: content,
    },
    Target {
        name: "command",
        seeds: command_seeds,
        run: command,
    },
    Target {
        name: "stream",
        seeds: streams::seeds,
        run: streams::run,
    },
    Target {
        name: "key-file",
        seeds: key_file_seeds,
        run: key_file,
    },
    Target {
        name: "key-slot",
        seeds: key_slot_seeds,
        run: key_slot,
    },
    #[cfg(feature = "s3")]
    Target {
        name: "s3-records",
        seeds: cfs_s3::decoders::seeds,
        run: cfs_s3::decoders::run,
    },
];

/// Runs the target with this name.
///
/// # Panics
/// There is none, or the decoder does.
pub fn run(name: &str, input: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a target's name").run)(input);
}

fn key() -> ClusterKey {
    ClusterKey::from_bytes(KEY)
}

fn cipher(purpose: Purpose) -> BlockCipher {
    key().block_cipher(purpose, Cipher::Aes256Gcm)
}

/// What is read at once of a file whose size may be any.
const READ_BYTES: usize = 300 << 10;

const PLACE: RecordPlace = RecordPlace {
    seq: SegmentSeq(1 << 40 | 7),
    offset: BLOCK_BYTES,
};

/// Segments of the device of [`Base`].
const SEGMENTS: u32 = 100;

/// A small pool with a file of each kind and a snapshot, a crash after a few commands.
struct Base {
    device: MemDevice,
    superblock: Superblock,
    /// Rows of inodes, as they are in the tables.
    rows: Vec<(Vec<u8>, Vec<u8>)>,
    /// Rows that the store keeps itself: of inode 0, and of chunks.
    system_rows: Vec<(Vec<u8>, Vec<u8>)>,
    chunk_rows: Vec<(Vec<u8>, Vec<u8>)>,
    commands: Vec<Vec<u8>>,
}

thread_local! {
    static BASE: OnceCell<Base> = const { OnceCell::new() };
}

fn with_base<T>(use_it: impl FnOnce(&Base) -> T) -> T {
    BASE.with(|base| use_it(base.get_or_init(Base::make)))
}

impl Base {
    fn make() -> Self {
        let device = Arc::new(MemDevice::new(SEGMENTS));
        let host = Arc::new(SimHost::new(1));
        world::format(&device, &host).expect("a new pool can be made");
        let fs = world::open(&device, &host).expect("a new pool opens");
        let caller = Caller::default();
        let root = Ino::ROOT;
        let expect = "a new pool takes a few files";
        let directory = fs.mkdir(root, b"directory", 0o755, &caller).expect(expect);
        fs.symlink(root, b"link", b"directory/large", &caller)
            .expect(expect);
        let small = fs.create(root, b"small", 0o644, &caller).expect(expect);
        fs.write(small.ino, 0, b"a few bytes", false).expect(expect);
        fs.setxattr(small.ino, b"user.name", b"value", XattrFlags::default())
            .expect(expect);
        let large = fs
            .create(directory.ino, b"large", 0o600, &caller)
            .expect(expect);
        let bytes: Vec<u8> = (0..60_000_u32)
            .flat_map(|number| number.to_le_bytes())
            .collect();
        fs.write(large.ino, 0, &bytes, false).expect(expect);
        fs.syncfs().expect(expect);
        fs.snapshot_create(b"/", b"before").expect(expect);
        fs.write(large.ino, 70_000, b"what the snapshot does not see", false)
            .expect(expect);
        fs.rename(
            root,
            b"small",
            root,
            b"little",
            cfs_fs::RenameFlags::default(),
        )
        .and_then(|()| {
            fs.rename(
                root,
                b"little",
                root,
                b"small",
                cfs_fs::RenameFlags::default(),
            )
        })
        .expect(expect);
        fs.syncfs().expect(expect);
        fs.store().checkpoint().expect(expect);
        let view = fs.store().view();
        let (rows, system_rows) = view
            .range(std::ops::Bound::Unbounded, std::ops::Bound::Unbounded)
            .map(|row| row.expect(expect))
            .partition(|(key, _)| is_of_file_system(key));
        let chunk_rows = fs
            .store()
            .freeze()
            .chunks()
            .map(|chunk| chunk.expect(expect))
            .map(|(fingerprint, record)| (fingerprint.0.to_vec(), record.as_bytes().to_vec()))
            .collect();
        drop(view);
        // What stays in the log.
        fs.write(large.ino, 1000, b"other bytes", false)
            .expect(expect);
        let set = SetAttr {
            mode: Some(0o640),
            ..SetAttr::default()
        };
        fs.setattr(small.ino, &set).expect(expect);
        fs.unlink(root, b"link").expect(expect);
        fs.link(small.ino, directory.ino, b"small").expect(expect);
        fs.syncfs().expect(expect);
        let commands = fs.store().logged_commands().expect(expect);
        let commands = commands
            .into_iter()
            .map(|command| command.command)
            .collect();
        let superblock = fs.store().superblock();
        drop(fs);
        Self {
            device: device.power_cut(0),
            superblock,
            rows,
            system_rows,
            chunk_rows,
            commands,
        }
    }

    /// A copy of the pool, with this superblock as its newest.
    fn with_superblock(&self, superblock: &Superblock) -> Arc<MemDevice> {
        let device = self.device.power_cut(0);
        let block = cfs_seal::keys::seal_superblock(superblock, &key());
        for anchor in 0..cfs_format::superblock::ANCHORS {
            put(
                &device,
                SegmentId(anchor),
                0,
                &vec![0; SEGMENT_BYTES as usize],
            );
            put(&device, SegmentId(anchor), 0, &block);
        }
        Arc::new(device)
    }
}

fn put(device: &MemDevice, segment: SegmentId, offset: u32, bytes: &[u8]) {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(BLOCK_BYTES as usize), 0);
    device
        .write_at(segment, offset, &padded)
        .expect("a device without faults");
}

fn open(device: &Arc<MemDevice>) -> Result<Arc<Fs>, String> {
    world::open(device, &Arc::new(SimHost::new(2)))
}

/// Opens what is left of a pool and looks at everything.
fn open_and_look(device: &Arc<MemDevice>) {
    if let Ok(fs) = open(device) {
        look_at_all(&fs);
    }
}

/// Who reads must come back; what it finds does not matter. Directories may lie in each other now, and sizes be any.
fn look_at_all(fs: &Fs) {
    let mut seen = BTreeSet::from([Ino::ROOT]);
    let mut waiting = vec![Ino::ROOT];
    let mut out = Vec::new();
    while let Some(ino) = waiting.pop() {
        for (_, inner) in look::entries(fs, ino).unwrap_or_default() {
            if seen.insert(inner) {
                waiting.push(inner);
            }
        }
        let size = fs.getattr(ino).map_or(0, |attr| attr.size);
        for name in fs.listxattr(ino).unwrap_or_default() {
            let _ = fs.getxattr(ino, &name);
        }
        let _ = fs.readlink(ino);
        for offset in [0, size / 2, size.saturating_sub(1)] {
            let _ = fs.read(ino, offset, READ_BYTES, &mut out);
            let _ = fs.seek_data(ino, offset);
            let _ = fs.seek_hole(ino, offset);
        }
    }
    let _ = fs.check(|_| true);
}

fn superblock_seeds() -> Vec<Vec<u8>> {
    with_base(|base| vec![base.superblock.as_bytes().to_vec()])
}

fn superblock(input: &[u8]) {
    let mut block = input.to_vec();
    block.resize(BLOCK_BYTES as usize, 0);
    let _ = cfs_seal::keys::check_superblock_checksum(&block);
    let _ = cfs_seal::keys::check_superblock_mac(input, &key());
    let Ok((superblock, _)) = Superblock::read_from_prefix(&block) else {
        return;
    };
    with_base(|base| open_and_look(&base.with_superblock(&superblock)));
}

fn segment_header_seeds() -> Vec<Vec<u8>> {
    with_base(|base| {
        let segment = SegmentId(base.superblock.journal.segment.get());
        let mut header = vec![0; size_of::<SegmentHeader>()];
        let read = base.device.read_at(segment, 0, &mut header);
        read.expect("a device without faults");
        vec![header]
    })
}

fn segment_header(input: &[u8]) {
    let _ = cfs_seal::keys::open_segment_header(input, &key());
    let Ok((header, _)) = SegmentHeader::read_from_prefix(input) else {
        return;
    };
    let sealed = cfs_seal::keys::seal_segment_header(header, &key());
    let _ = cfs_seal::keys::open_segment_header(&sealed, &key());
    with_base(|base| {
        let device = base.device.power_cut(0);
        let segment = SegmentId(base.superblock.journal.segment.get());
        put(&device, segment, 0, &sealed);
        let _ = cfs_store::logged_commands(&device, &key());
    });
}

fn record_seeds() -> Vec<Vec<u8>> {
    let secret = DomainSecret::from_bytes([3; 32]);
    let content =
        b"content of a chunk, of which much is the same, the same, the same, the same".repeat(9);
    let fields = cfs_seal::chunk::ChunkFields {
        domain: cfs_format::DomainId::DEFAULT,
        fingerprint: secret.fingerprint(&content),
        salt: [4; 16],
        created_ns: 5,
        epoch: cfs_format::KeyEpoch(1),
    };
    [cfs_seal::codec::Codec::Lz4, cfs_seal::codec::Codec::None]
        .map(|codec| {
            let mut payload = Vec::new();
            let header = cfs_seal::chunk::ChunkSealer::new(Cipher::Aes256Gcm).seal_payload(
                &secret,
                &fields,
                codec,
                &content,
                &mut payload,
            );
            let mut input = header.as_bytes().to_vec();
            input.extend_from_slice(&payload);
            input
        })
        .to_vec()
}

fn record(input: &[u8]) {
    let cipher = cipher(Purpose::RecordHeader);
    let secret = Arc::new(DomainSecret::from_bytes([3; 32]));
    let (mut scratch, mut out) = (Vec::new(), Vec::new());
    let mut open = |bytes: &[u8]| {
        let _ = peek_record_len(bytes);
        let _ = open_record_header(bytes, PLACE, &cipher);
        let secret_of = |_| Some(Arc::clone(&secret));
        let _ = open_record(bytes, PLACE, &cipher, secret_of, &mut scratch, &mut out);
    };
    open(input);
    // No record is longer than its segment; who seals one knows that.
    if let Ok((header, payload)) = RecordHeader::read_from_prefix(input)
        && header.payload_len.get() <= SEGMENT_BYTES
    {
        let mut record = sealed_head(&header, PLACE, &cipher).to_vec();
        record.extend_from_slice(payload);
        open(&record);
    }
}

/// The codec, the length that the header tells, and content as the codec left it.
fn content_seeds() -> Vec<Vec<u8>> {
    let content = b"content of a chunk, of which much is the same, the same, the same".repeat(30);
    let mut compressor = cfs_seal::codec::Compressor::new();
    [
        cfs_seal::codec::Codec::None,
        cfs_seal::codec::Codec::Lz4,
        cfs_seal::codec::Codec::Zstd(3),
    ]
    .map(|codec| {
        let mut stored = Vec::new();
        let number = compressor.compress(codec, &content, &mut stored);
        let mut input = vec![number];
        input.extend_from_slice(&(content.len() as u32).to_le_bytes());
        input.extend_from_slice(&stored);
        input
    })
    .to_vec()
}

/// Content behind its seal.
fn content(input: &[u8]) {
    let Some((&codec, rest)) = input.split_first() else {
        return;
    };
    let Some((raw_len, stored)) = rest.split_first_chunk::<4>() else {
        return;
    };
    let raw_len = u32::from_le_bytes(*raw_len) as usize;
    let mut out = Vec::new();
    let done = cfs_seal::codec::decompress(codec, stored, raw_len, &mut out);
    let len = if done.is_ok() { raw_len } else { 0 };
    assert_eq!(out.len(), len, "content has another length than was told");
}

fn footer_seeds() -> Vec<Vec<u8>> {
    let entries = [FooterEntry::new_zeroed(); 3];
    let mut input = cfs_seal::footer::encode_trailer(PLACE.seq, PLACE.offset, 3).to_vec();
    input.extend_from_slice(entries.as_bytes());
    vec![input]
}

fn footer(input: &[u8]) {
    let Some((trailer, plain)) = input.split_at_checked(cfs_seal::footer::TRAILER_BYTES) else {
        return;
    };
    let _ = cfs_seal::footer::decode_trailer(input);
    let _ = cfs_seal::footer::decode_trailer(trailer);
    let cipher = cipher(Purpose::Footer);
    let mut sealed = plain.to_vec();
    cipher.seal_in_place(PLACE.seq, PLACE.offset, &[], &mut sealed, 0);
    let _ = cfs_seal::footer::open_footer(&mut sealed, PLACE.seq, PLACE.offset, &cipher);
}

fn batch_seeds() -> Vec<Vec<u8>> {
    with_base(|base| {
        let mut payload = Vec::new();
        for command in &base.commands {
            payload.extend_from_slice(&(2_u64 << 60).to_le_bytes());
            payload.push(cfs_format::journal::KIND_NAMESPACE);
            payload.extend_from_slice(&(command.len() as u32).to_le_bytes());
            payload.extend_from_slice(command);
        }
        let header = BatchHeader {
            payload_len: (payload.len() as u32).into(),
            record_count: (base.commands.len() as u32).into(),
            ..BatchHeader::new_zeroed()
        };
        let mut input = header.as_bytes().to_vec();
        input.extend_from_slice(&payload);
        vec![input]
    })
}

/// A batch where the log goes on: read, and replayed.
fn batch(input: &[u8]) {
    let Ok((mut header, payload)) = BatchHeader::read_from_prefix(input) else {
        return;
    };
    with_base(|base| {
        let position = base.superblock.journal;
        let (seq, offset) = (SegmentSeq(position.seq.get()), position.offset.get());
        let room = (SEGMENT_BYTES - offset) as usize - 2 * BLOCK_BYTES as usize;
        let payload = &payload[..payload.len().min(room)];
        header.magic = BATCH_MAGIC.into();
        header.seq = seq.0.into();
        header.first_lsn = position.lsn;
        // One in two lengths is what the input says.
        if header.reserved.get() % 2 == 0 {
            header.payload_len = (payload.len() as u32).into();
        }
        let mut sealed = header.as_bytes().to_vec();
        sealed.extend_from_slice(payload);
        let from = size_of::<BatchHeader>();
        cipher(Purpose::Journal).seal_in_place(seq, offset, header.as_bytes(), &mut sealed, from);
        let device = base.device.power_cut(0);
        put(&device, SegmentId(position.segment.get()), offset, &sealed);
        let _ = cfs_store::logged_commands(&device, &key());
        open_and_look(&Arc::new(device));
    });
}

fn manifest_seeds() -> Vec<Vec<u8>> {
    with_base(|base| {
        let pointer = base.superblock.manifest;
        let mut root = vec![0; pointer.stored_len.get() as usize];
        let (segment, offset) = (SegmentId(pointer.segment.get()), pointer.offset.get());
        let read = base.device.read_at(segment, offset, &mut root);
        read.expect("a device without faults");
        let table = cipher(Purpose::TableBlock);
        let seq = SegmentSeq(pointer.seq.get());
        let root = table
            .open_in_place(seq, offset, b"", &mut root)
            .expect("what was just written")
            .to_vec();
        // The only piece lies before the root.
        let mut piece = vec![0; (offset - BLOCK_BYTES) as usize];
        let read = base.device.read_at(segment, BLOCK_BYTES, &mut piece);
        read.expect("a device without faults");
        let piece = table
            .open_in_place(seq, BLOCK_BYTES, b"", &mut piece)
            .expect("what was just written")
            .to_vec();
        let with = |kind: u8, bytes: &[u8]| [&[kind][..], bytes].concat();
        vec![with(0, &root), with(1, &piece)]
    })
}

/// The first byte says whether the rest is the root of a manifest or a piece of one; both as blocks before sealing.
fn manifest(input: &[u8]) {
    let Some((kind, plain)) = input.split_first() else {
        return;
    };
    with_base(|base| {
        let mut superblock = base.superblock;
        let segment = SegmentId(superblock.manifest.segment.get());
        let seq = SegmentSeq(superblock.manifest.seq.get());
        let table = cipher(Purpose::TableBlock);
        let plain = &plain[..plain.len().min(SEGMENT_BYTES as usize / 2)];
        let mut blocks = plain.to_vec();
        table.seal_in_place(seq, BLOCK_BYTES, b"", &mut blocks, 0);
        let mut offset = BLOCK_BYTES;
        if kind % 2 == 1 {
            let piece_len = blocks.len() as u32;
            let place = u64::from(segment.0) * u64::from(SEGMENT_BYTES) + u64::from(offset);
            offset += piece_len;
            let pieces = (vec![(place, piece_len, seq.0)],);
            let pieces = postcard::to_stdvec(&pieces).expect("numbers can be encoded");
            let mut root = vec![cfs_format::segment::CODEC_NONE];
            root.extend_from_slice(&(pieces.len() as u32).to_le_bytes());
            root.extend_from_slice(&pieces);
            table.seal_in_place(seq, offset, b"", &mut root, 0);
            superblock.manifest.stored_len = (root.len() as u32).into();
            blocks.extend_from_slice(&root);
        } else {
            superblock.manifest.stored_len = (blocks.len() as u32).into();
        }
        superblock.manifest.offset = offset.into();
        superblock.manifest_copy = superblock.manifest;
        let device = base.with_superblock(&superblock);
        put(&device, segment, BLOCK_BYTES, &blocks);
        open_and_look(&device);
    });
}

/// Runs in memory: a block's place is its number.
#[derive(Default)]
struct Blocks(Arc<Mutex<Vec<Vec<u8>>>>);

struct BlocksWriter(Arc<Mutex<Vec<Vec<u8>>>>);

impl RunStore for Blocks {
    fn create_run(&self, _: RunReason, _: u64) -> Result<Box<dyn RunWriter + '_>, RunError> {
        Ok(Box::new(BlocksWriter(Arc::clone(&self.0))))
    }

    fn read_block(&self, block: BlockPtr) -> Result<Vec<u8>, RunError> {
        let blocks = self.0.lock();
        let found = usize::try_from(block.place)
            .ok()
            .and_then(|place| blocks.get(place));
        found.cloned().ok_or(RunError::Corrupt {
            block,
            rule: "there is no such block",
        })
    }

    fn release_run(&self, _: &[u64]) {}
}

impl RunWriter for BlocksWriter {
    fn append_block(&mut self, plain: &[u8]) -> Result<BlockPtr, RunError> {
        let mut blocks = self.0.lock();
        blocks.push(plain.to_vec());
        Ok(BlockPtr {
            place: blocks.len() as u64 - 1,
            stored_len: plain.len() as u32,
        })
    }

    fn finish(self: Box<Self>, _: Option<&[u8]>) -> Result<Vec<u64>, RunError> {
        Ok(vec![0])
    }
}

fn tree_options() -> TreeOptions {
    TreeOptions {
        block_bytes: 512,
        ..TreeOptions::default()
    }
}

/// Lengths and bytes, one after the other.
fn join(parts: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut joined = Vec::new();
    for part in parts {
        joined.extend_from_slice(&(part.len() as u16).to_le_bytes());
        joined.extend_from_slice(&part);
    }
    joined
}

/// The inverse of [`join`], as far as it goes.
fn split(mut joined: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while let Some((len, rest)) = joined.split_first_chunk::<2>() {
        let len = usize::from(u16::from_le_bytes(*len)).min(rest.len());
        let (part, rest) = rest.split_at(len);
        parts.push(part);
        joined = rest;
    }
    parts
}

fn table_seeds() -> Vec<Vec<u8>> {
    let blocks = Blocks::default();
    let stored = Arc::clone(&blocks.0);
    let tree = Tree::create(
        Arc::new(blocks),
        Arc::new(BlockCache::new(1 << 20)),
        tree_options(),
    );
    for round in 0..2_u32 {
        let mut batch = Batch::new();
        for number in 0..60_u32 {
            let key = format!("key-{:04}", number * 7 % 100).into_bytes();
            if (number + round).is_multiple_of(5) {
                batch.delete(key);
            } else {
                batch.put(key, number.to_le_bytes().repeat(1 + number as usize % 9));
            }
        }
        tree.apply(&batch);
        tree.rotate();
        tree.flush_rotated().expect("memory takes it");
    }
    let manifest = tree.manifest();
    let blocks = stored.lock().clone();
    vec![join(std::iter::once(manifest).chain(blocks))]
}

/// A manifest, and the blocks of its runs.
fn table(input: &[u8]) {
    let parts = split(input);
    let Some((manifest, blocks)) = parts.split_first() else {
        return;
    };
    let blocks = blocks.iter().map(|block| block.to_vec()).collect();
    let blocks = Blocks(Arc::new(Mutex::new(blocks)));
    let cache = Arc::new(BlockCache::new(1 << 20));
    let Ok(tree) = Tree::open(Arc::new(blocks), cache, tree_options(), manifest) else {
        return;
    };
    let all = || tree.range(std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
    for row in all() {
        let Ok((key, _)) = row else { break };
        let _ = tree.get(&key);
    }
    for row in all().rev() {
        if row.is_err() {
            break;
        }
    }
    for key in [&b"key-0007"[..], b"key-0008", b"zzz"] {
        let _ = tree.get(key);
    }
    let _ = tree.stats();
    for _ in 0..4 {
        if !tree.compact_step_for_room().unwrap_or(false) {
            break;
        }
    }
}

fn row_seeds() -> Vec<Vec<u8>> {
    with_base(|base| {
        let whole = join(
            base.rows
                .iter()
                .flat_map(|(key, value)| [key.clone(), value.clone()]),
        );
        let mut seeds = vec![whole];
        seeds.extend(
            base.rows
                .iter()
                .map(|(key, value)| join([key.clone(), value.clone()])),
        );
        seeds
    })
}

/// Whether a row of the meta tree is one that the file system keeps, and not the store itself.
fn is_of_file_system(key: &[u8]) -> bool {
    split_key(key)
        .is_ok_and(|(ino, row_tag, _)| ino != Ino(0) || row_tag >= tag::FIRST_OF_FILE_SYSTEM)
}

/// Rows that the store keeps itself, for each tree: the first byte is odd for those of chunks.
fn store_row_seeds() -> Vec<Vec<u8>> {
    with_base(|base| {
        let seed = |kind: u8, rows: &[(Vec<u8>, Vec<u8>)]| {
            let rows = rows.iter().cloned();
            [vec![kind], join(rows.flat_map(|(key, value)| [key, value]))].concat()
        };
        let of_chunks = base
            .chunk_rows
            .iter()
            .map(|row| (1, std::slice::from_ref(row)));
        let of_store = base
            .system_rows
            .iter()
            .map(|row| (0, std::slice::from_ref(row)));
        let whole = [(0, &base.system_rows[..]), (1, &base.chunk_rows[..])];
        whole
            .into_iter()
            .chain(of_store)
            .chain(of_chunks.take(3))
            .map(|(kind, rows)| seed(kind, rows))
            .collect()
    })
}

/// Rows that the store keeps itself, put into the tables of a pool that is then opened, read, and rebuilt.
fn store_rows(input: &[u8]) {
    let Some((kind, input)) = input.split_first() else {
        return;
    };
    with_base(|base| {
        let device = Arc::new(base.device.power_cut(0));
        let fs = open(&device).expect("an undamaged pool");
        let rows: Vec<_> = split(input)
            .chunks_exact(2)
            .filter(|row| {
                (1..=cfs_kv::KEY_BYTES_MAX).contains(&row[0].len())
                    && row[1].len() <= cfs_kv::VALUE_BYTES_MAX
            })
            .map(|row| (row[0].to_vec(), row[1].to_vec()))
            .collect();
        match kind % 2 {
            0 => fs.store().put_raw_rows(&rows, &[]),
            _ => fs.store().put_raw_rows(&[], &rows),
        }
        if fs.store().checkpoint().is_err() {
            return;
        }
        drop(fs);
        open_and_look(&device);
        rebuild_and_look(&device);
    });
}

/// Rows of inodes, put into the tables of a pool that is then read.
fn rows(input: &[u8]) {
    with_base(|base| {
        let device = Arc::new(base.device.power_cut(0));
        let fs = open(&device).expect("an undamaged pool");
        let mut txn = fs.store().begin();
        for row in split(input).chunks_exact(2) {
            let (key, value) = (row[0], row[1]);
            if (1..=cfs_kv::KEY_BYTES_MAX).contains(&key.len())
                && value.len() <= cfs_kv::VALUE_BYTES_MAX
                && is_of_file_system(key)
            {
                txn.put(key.to_vec(), value.to_vec());
            }
        }
        txn.commit(&[]).expect("a device without faults");
        look_at_all(&fs);
        if fs.store().checkpoint().is_err() {
            return;
        }
        // Rebuilt, also when a part of the tables is lost.
        let lost = match input.len() % 2 {
            0 => None,
            _ => largest_run(&fs),
        };
        drop(fs);
        if let Some((segment, used_bytes)) = lost {
            let (from, to) = (used_bytes / 8, used_bytes / 8 * 7);
            let from = from.next_multiple_of(BLOCK_BYTES);
            if from < to {
                put(&device, segment, from, &vec![0xa5; (to - from) as usize]);
            }
        }
        rebuild_and_look(&device);
    });
}

/// The table segment of the meta tree with the most blocks, and the end of them.
fn largest_run(fs: &Fs) -> Option<(SegmentId, u32)> {
    let report = |segment| fs.store().segment_report(SegmentId(segment)).ok();
    (cfs_format::superblock::ANCHORS..64)
        .filter_map(|segment| {
            let directory = report(segment)?.directory?;
            let is_meta = directory.owner == cfs_store::TableOwner::Meta;
            let (offset, len) = *directory.blocks.last()?;
            is_meta.then_some((SegmentId(segment), 2 * (offset + len)))
        })
        .max_by_key(|(_, end)| *end)
        .map(|(segment, end)| (segment, end.min(SEGMENT_BYTES)))
}

/// Rebuilds what is left of a pool and looks at everything.
fn rebuild_and_look(device: &Arc<MemDevice>) {
    if let Ok(rebuilt) = world::rebuild(device, &Arc::new(SimHost::new(3)), None) {
        look_at_all(&rebuilt.fs);
    }
}

/// The segment of the first manifest, its header, and where its directory lies.
fn manifest_directory(base: &Base) -> (SegmentId, SegmentHeader, u32) {
    let segment = SegmentId(base.superblock.manifest.segment.get());
    let mut block = vec![0; BLOCK_BYTES as usize];
    let read = base.device.read_at(segment, 0, &mut block);
    read.expect("a device without faults");
    let header = cfs_seal::keys::open_segment_header(&block, &key()).expect("its header");
    let (offset, _) = directory_place(&header);
    (segment, header, offset)
}

/// A directory as a block before sealing; postcard has a tuple as a struct with these fields: whose the blocks are, sequence
/// number of the first segment, place among the segments, whether it is the last, lengths of blocks, and what comes with it.
fn directory_of(owner: u32, part: u32, is_last: bool, blocks: &[u32]) -> Vec<u8> {
    let nothing: Option<()> = None;
    let plain = postcard::to_stdvec(&(owner, 1_u64, part, is_last, blocks, nothing));
    uncompressed(&plain.expect("numbers can be encoded"))
}

/// A block before sealing: its codec, its length, its content.
fn uncompressed(content: &[u8]) -> Vec<u8> {
    let mut block = vec![cfs_format::segment::CODEC_NONE];
    block.extend_from_slice(&(content.len() as u32).to_le_bytes());
    block.extend_from_slice(content);
    block
}

/// The directories of a pool's table segments, of which the newest of the meta tree has the note of a checkpoint, and others: of
/// no blocks, of as many as a segment holds, and of blocks that lie beyond it.
fn directory_seeds() -> Vec<Vec<u8>> {
    let many = SEGMENT_BYTES / BLOCK_BYTES;
    let mut seeds = vec![
        directory_of(0, 0, false, &[]),
        directory_of(1, 3, true, &vec![BLOCK_BYTES; many as usize]),
        directory_of(2, u32::MAX, true, &[0, u32::MAX, SEGMENT_BYTES]),
    ];
    with_base(|base| {
        for segment in cfs_format::superblock::ANCHORS..SEGMENTS {
            seeds.extend(directory_in(base, SegmentId(segment)));
        }
    });
    seeds
}

/// The directory of a segment, if it is one of tables.
fn directory_in(base: &Base, segment: SegmentId) -> Option<Vec<u8>> {
    let mut block = vec![0; BLOCK_BYTES as usize];
    base.device.read_at(segment, 0, &mut block).ok()?;
    let header = cfs_seal::keys::open_segment_header(&block, &key()).ok()?;
    if header.stream != Stream::Table as u8 {
        return None;
    }
    let (offset, stored_len) = directory_place(&header);
    let mut sealed = vec![0; stored_len as usize];
    base.device.read_at(segment, offset, &mut sealed).ok()?;
    let plain = cipher(Purpose::TableBlock)
        .open_in_place(SegmentSeq(header.seq.get()), offset, b"", &mut sealed)
        .ok()?;
    let (codec, rest) = plain.split_first()?;
    let (len, stored) = rest.split_first_chunk::<4>()?;
    let mut content = Vec::new();
    let len = u32::from_le_bytes(*len) as usize;
    cfs_seal::codec::decompress(*codec, stored, len, &mut content).ok()?;
    Some(uncompressed(&content))
}

/// Offset and stored length of the directory of a table segment.
fn directory_place(header: &SegmentHeader) -> (u32, u32) {
    (header.next.get(), (header.first_lsn.get() >> 32) as u32)
}

/// The directory of a table segment as a block before sealing, in a pool whose superblock leads to no tables.
fn directory(input: &[u8]) {
    with_base(|base| {
        let (segment, mut header, offset) = manifest_directory(base);
        let mut superblock = base.superblock;
        superblock.manifest = FromZeros::new_zeroed();
        superblock.manifest_copy = FromZeros::new_zeroed();
        let device = base.with_superblock(&superblock);
        let start = offset / BLOCK_BYTES * BLOCK_BYTES;
        let mut block = vec![0; (offset - start) as usize];
        let read = device.read_at(segment, start, &mut block);
        read.expect("a device without faults");
        let mut sealed = input[..input.len().min(SEGMENT_BYTES as usize / 2)].to_vec();
        let table = cipher(Purpose::TableBlock);
        table.seal_in_place(SegmentSeq(header.seq.get()), offset, b"", &mut sealed, 0);
        let lengths = (sealed.len() as u64) << 32 | u64::from(SEGMENT_BYTES);
        header.first_lsn = lengths.into();
        block.extend_from_slice(&sealed);
        put(&device, segment, start, &block);
        let header = cfs_seal::keys::seal_segment_header(header, &key());
        put(&device, segment, 0, &header);
        rebuild_and_look(&device);
    });
}

fn command_seeds() -> Vec<Vec<u8>> {
    with_base(|base| base.commands.clone())
}

fn command(input: &[u8]) {
    if let Ok(command) = cfs_fs::command::Command::decode(input) {
        let encoded = command.encode();
        let again = cfs_fs::command::Command::decode(&encoded).expect("what was just encoded");
        assert_eq!(
            encoded,
            again.encode(),
            "a command changes when it is encoded"
        );
    }
}

fn key_file_seeds() -> Vec<Vec<u8>> {
    vec![render_key_file(&[7; 32]).to_vec()]
}

fn key_file(input: &[u8]) {
    let _ = MasterKey::from_key_file_bytes(input);
}

fn key_slot_seeds() -> Vec<Vec<u8>> {
    let mut slot = KeySlot::new_zeroed();
    slot.argon2_memory_kib = 64.into();
    slot.argon2_passes = 1.into();
    slot.argon2_lanes = 1.into();
    let master = MasterKey::from_passphrase(PASSPHRASE, &slot).expect("bounds are kept");
    wrap_cluster_key(&master, &key(), &mut slot);
    vec![slot.as_bytes().to_vec()]
}

const PASSPHRASE: &[u8] = b"passphrase";

/// A key slot as it lies in a superblock, which is read before any key is known.
fn key_slot(input: &[u8]) {
    let Ok((mut slot, _)) = KeySlot::read_from_prefix(input) else {
        return;
    };
    // What is allowed and dear is made cheap; what is not allowed must be refused before it costs anything.
    let cheap = |value: u32, most: u32| {
        if value <= 1 << 22 {
            value % most
        } else {
            value
        }
    };
    slot.argon2_memory_kib = cheap(slot.argon2_memory_kib.get(), 512).into();
    if slot.argon2_passes.get() <= 64 {
        slot.argon2_passes = (slot.argon2_passes.get() % 3).into();
    }
    if let Ok(master) = MasterKey::from_passphrase(PASSPHRASE, &slot) {
        let _ = unwrap_cluster_key(&master, &slot);
    }
    if let Ok(master) = MasterKey::from_key_file_bytes(&render_key_file(&[7; 32])) {
        let _ = unwrap_cluster_key(&master, &slot);
    }
}
