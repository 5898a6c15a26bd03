//! Each fixed layout, with every field set to something of its own, against the bytes that format version 1 has for
//! it. A difference is a change of format: it needs a new version, a new golden file, and a decoder that still reads
//! the old one.

use cfs_format::Ino;
use cfs_format::journal::{BATCH_MAGIC, BatchHeader};
use cfs_format::segment::{
    FooterEntry, FooterTrailer, RECORD_MAGIC, RecordHeader, RecordPrefix, SegmentHeader,
};
use cfs_format::superblock::{BlobPointer, ChunkParams, JournalPosition, KeySlot, Superblock};
use cfs_format::table::{
    ChunkRecord, CookieRecord, DirentRecord, ExtentRecord, HeldExtentRecord, InodeRecord,
    PoolRecord, SegmentRecord, SnapshotRecord, TimeRecord, VolumeRecord, ended_key, history_key,
    split_ended, split_history, tag,
};
use zerocopy::{Immutable, IntoBytes};

fn check(name: &str, value: &(impl IntoBytes + Immutable), golden: &str) {
    let bytes = value.as_bytes();
    let hex: String = bytes
        .chunks(32)
        .map(|line| {
            let line: String = line.iter().map(|byte| format!("{byte:02x}")).collect();
            line + "\n"
        })
        .collect();
    assert!(
        hex == golden,
        "{name} is not what version 1 writes; it is now:\n{hex}"
    );
}

fn counting<const N: usize>(start: u8) -> [u8; N] {
    std::array::from_fn(|index| start.wrapping_add(index as u8))
}

#[test]
fn superblock() {
    let blob = |start: u32| BlobPointer {
        segment: start.into(),
        offset: (start + 1).into(),
        seq: u64::from(start + 2).into(),
        stored_len: (start + 3).into(),
        segment_used_bytes: (start + 4).into(),
    };
    let superblock = Superblock {
        magic: cfs_format::superblock::MAGIC,
        version: 1.into(),
        segment_bytes: cfs_format::SEGMENT_BYTES.into(),
        pool_uuid: counting(0x10),
        created_ns: 0x1122_3344_5566_7788.into(),
        cipher: cfs_format::superblock::CIPHER_AES_256_GCM,
        reserved: [0; 7],
        chunk: ChunkParams {
            min: 65_536.into(),
            avg: 131_072.into(),
            max: 262_144.into(),
            algorithm: 1.into(),
        },
        segments_max: 4096.into(),
        key_slot: KeySlot {
            unlock: cfs_format::superblock::UNLOCK_PASSPHRASE,
            reserved: [0; 3],
            argon2_memory_kib: 65_536.into(),
            argon2_passes: 3.into(),
            argon2_lanes: 1.into(),
            argon2_salt: counting(0x40),
            nonce: counting(0x60),
            reserved2: 0.into(),
            wrapped_cluster_key: counting(0x80),
        },
        generation: 7.into(),
        incarnation: 3.into(),
        clean: 1.into(),
        journal: JournalPosition {
            segment: 5.into(),
            offset: 8192.into(),
            seq: 0x0300_0000_0009.into(),
            lsn: 1001.into(),
        },
        manifest: blob(20),
        manifest_copy: blob(30),
        checkpoint_timestamp: 0x0102_0304_0506_0708.into(),
    };
    check(
        "superblock",
        &superblock,
        include_str!("../golden/v1/superblock.hex"),
    );
    let mut block = vec![0; 4096];
    block[..superblock.as_bytes().len()].copy_from_slice(superblock.as_bytes());
    assert_eq!(Superblock::decode(&block), Ok(superblock));
    block[8] = 2;
    assert_eq!(Superblock::decode(&block).unwrap_err().rule, "version");
}

#[test]
fn segments() {
    let header = SegmentHeader {
        magic: cfs_format::segment::MAGIC,
        version: 1.into(),
        stream: 3,
        reserved: [0; 3],
        pool_uuid: counting(0x10),
        seq: 0x0100_0000_0005.into(),
        segment: 9.into(),
        next: 10.into(),
        first_lsn: 77.into(),
        created_ns: 88.into(),
        mac: counting(0xa0),
    };
    check(
        "segment header",
        &header,
        include_str!("../golden/v1/segment_header.hex"),
    );
    let prefix = RecordPrefix {
        magic: RECORD_MAGIC.into(),
        record_len: 1234.into(),
    };
    check(
        "record prefix",
        &prefix,
        include_str!("../golden/v1/record_prefix.hex"),
    );
    let record = RecordHeader {
        fingerprint: counting(1),
        salt: counting(0x50),
        created_ns: 99.into(),
        raw_len: 1000.into(),
        payload_len: 900.into(),
        epoch: 1.into(),
        domain: 1.into(),
        codec: 1,
        reserved: [0; 9],
    };
    check(
        "record header",
        &record,
        include_str!("../golden/v1/record_header.hex"),
    );
    let entry = FooterEntry {
        fingerprint: counting(2),
        offset: 4096.into(),
        record_len: 1020.into(),
        raw_len: 1000.into(),
        domain: 1.into(),
        codec: 1,
        reserved: 0,
    };
    check(
        "footer entry",
        &entry,
        include_str!("../golden/v1/footer_entry.hex"),
    );
    let trailer = FooterTrailer {
        magic: cfs_format::segment::FOOTER_MAGIC,
        offset: 2_000_000.into(),
        entry_count: 12.into(),
        seq: 5.into(),
        reserved: 0.into(),
    };
    check(
        "footer trailer",
        &trailer,
        include_str!("../golden/v1/footer_trailer.hex"),
    );
    let batch = BatchHeader {
        magic: BATCH_MAGIC.into(),
        payload_len: 300.into(),
        first_lsn: 41.into(),
        durable_lsn: 40.into(),
        record_count: 2.into(),
        reserved: 0.into(),
        seq: 6.into(),
    };
    check(
        "batch header",
        &batch,
        include_str!("../golden/v1/batch_header.hex"),
    );
}

#[test]
fn tables() {
    let time = |seconds: i64| TimeRecord {
        seconds: seconds.into(),
        nanos: 999_999_999.into(),
    };
    let inode = InodeRecord {
        mode: 0o100_644.into(),
        uid: 1000.into(),
        gid: 100.into(),
        nlink: 2.into(),
        rdev: 0x0501.into(),
        size: 5000.into(),
        allocated: 4096.into(),
        atime: time(1),
        mtime: time(-2),
        ctime: time(3),
        btime: time(4),
        timestamp: 0x0a0b.into(),
        parent: 1.into(),
        next_cookie: 17.into(),
        volume: 1.into(),
        flags: 3.into(),
        salt: counting(0x70),
    };
    check("inode", &inode, include_str!("../golden/v1/inode.hex"));
    let dirent = DirentRecord {
        ino: 11.into(),
        cookie: 12.into(),
        timestamp: 13.into(),
        kind: 8,
    };
    check("dirent", &dirent, include_str!("../golden/v1/dirent.hex"));
    let cookie = CookieRecord {
        ino: 11.into(),
        timestamp: 13.into(),
        kind: 8,
    };
    check("cookie", &cookie, include_str!("../golden/v1/cookie.hex"));
    let extent = ExtentRecord {
        len: 100.into(),
        chunk_offset: 20.into(),
        chunk_len: 200.into(),
        domain: 1.into(),
        reserved: 0.into(),
        timestamp: 55.into(),
        masked_fingerprint: counting(3),
    };
    check("extent", &extent, include_str!("../golden/v1/extent.hex"));
    let chunk = ChunkRecord {
        segment: 7.into(),
        offset: 4096.into(),
        record_len: 1020.into(),
        raw_len: 1000.into(),
        refs: 3.into(),
        domain: 1.into(),
        codec: 1,
        flags: 2,
    };
    check("chunk", &chunk, include_str!("../golden/v1/chunk.hex"));
    let segment = SegmentRecord {
        seq: 5.into(),
        live_bytes: 100.into(),
        used_bytes: 200.into(),
        stream: 3,
        reserved: [0; 7],
    };
    check(
        "segment",
        &segment,
        include_str!("../golden/v1/segment.hex"),
    );
    let pool = PoolRecord {
        chunk_count: 1.into(),
        chunk_raw_bytes: 2.into(),
        chunk_stored_bytes: 3.into(),
        reference_count: 4.into(),
        referenced_bytes: 5.into(),
        bad_chunks: 6.into(),
    };
    check("pool", &pool, include_str!("../golden/v1/pool.hex"));
    let volume = VolumeRecord {
        root: 1.into(),
        logical_bytes: 2.into(),
        allocated_bytes: 3.into(),
        inode_count: 4.into(),
        created_ns: 5.into(),
        newest_snapshot: 6.into(),
        domain: 1.into(),
        codec: 2,
        codec_level: 3,
        ..VolumeRecord::default()
    };
    let first: [u8; 56] = volume.encode().try_into().expect("as long as it was");
    check("volume", &first, include_str!("../golden/v1/volume.hex"));
    assert_eq!(VolumeRecord::decode(&first), Ok(volume));
    let volume = VolumeRecord {
        junction: 7.into(),
        quota_bytes: 8.into(),
        quota_inodes: 9.into(),
        ..volume
    };
    let further: [u8; 80] = volume.encode().try_into().expect("as long as it is");
    check(
        "further_volume",
        &further,
        include_str!("../golden/v1/further_volume.hex"),
    );
    assert_eq!(VolumeRecord::decode(&further), Ok(volume));
    let volume = VolumeRecord {
        origin_timestamp: 10.into(),
        origin_volume: 11.into(),
        flags: 3.into(),
        ..volume
    };
    let clone: [u8; 96] = volume.encode().try_into().expect("as long as it is");
    check("clone", &clone, include_str!("../golden/v1/clone.hex"));
    assert_eq!(VolumeRecord::decode(&clone), Ok(volume));
    let held = HeldExtentRecord {
        extent,
        salt: counting(0x70),
        volume: 9.into(),
    };
    check(
        "held_extent",
        &held,
        include_str!("../golden/v1/held_extent.hex"),
    );
    let snapshot = SnapshotRecord {
        directory: 1.into(),
        created_ns: 2.into(),
        volume_logical_bytes: 3.into(),
        volume_inode_count: 4.into(),
        view: 5.into(),
        flags: 1.into(),
        name_len: 6,
        reserved: [0; 7],
    };
    check(
        "snapshot",
        &snapshot,
        include_str!("../golden/v1/snapshot.hex"),
    );
}

#[test]
fn history_keys() {
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    let rows: [(u8, &[u8]); 3] = [
        (tag::INODE, b""),
        (tag::DIRENT, b"name"),
        (tag::EXTENT, &[0, 0, 0, 0, 0, 1, 0, 0]),
    ];
    let golden = [
        "00000000000000002200000000000000071000000000000001ff",
        "0000000000000000220000000000000007506e616d650000000000000001ff",
        "000000000000000022000000000000000740000000000001000000000000000001ff",
    ];
    for ((row_tag, suffix), golden) in rows.into_iter().zip(golden) {
        let history = history_key(Ino(7), row_tag, suffix, 0x1ff);
        assert_eq!(hex(&history), golden);
        assert_eq!(
            split_history(&history[9..]),
            Ok((Ino(7), row_tag, suffix, 0x1ff))
        );
        let ended = ended_key(3, 0x1ff, Ino(7), row_tag, suffix);
        assert_eq!(
            split_ended(&ended[9..]),
            Ok((3, 0x1ff, Ino(7), row_tag, suffix))
        );
        assert!(hex(&ended).starts_with("0000000000000000230000000300000000000001ff"));
    }
    assert!(split_history(&[1; 16]).is_err());
    assert!(split_ended(&[1; 20]).is_err());
}
