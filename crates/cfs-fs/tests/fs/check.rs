//! Each rule of the check is seen to fail: one row is damaged, and the finding must be there.

use std::collections::HashSet;

use cfs_format::table::{
    CookieRecord, DirentRecord, InodeRecord, ended_key, history_key, inode_flag, key,
    split_history, system_key, tag,
};
use cfs_format::{Ino, VolumeId};
use cfs_fs::{Attr, Caller, Fs, RenameFlags, VolumeOptions, XattrFlags};
use cfs_store::{Txn, VolumeDelta};
use zerocopy::{FromBytes, IntoBytes};

use crate::pool::{Pool, assert_clean};

/// What the damages aim at.
struct Tree {
    /// A file with extents and two names.
    file: Attr,
    /// A small file in `below`.
    small: Attr,
    /// A directory in the root, and one in it.
    above: Attr,
    below: Attr,
    link: Attr,
    /// The root of a volume, and a small file in it.
    volume: Attr,
    inner: Attr,
}

/// The inode in whose place the volume is seen.
fn junction(txn: &Txn<'_>, tree: &Tree) -> Ino {
    let record = txn.volume(tree.volume.volume).expect("the volume is there");
    Ino(record.junction.get())
}

fn tree(fs: &Fs) -> Tree {
    let caller = Caller::default();
    let file = fs
        .create(Ino::ROOT, b"file", 0o644, &caller)
        .expect("create");
    let data: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    fs.write(file.ino, 0, &data, false).expect("write");
    fs.link(file.ino, Ino::ROOT, b"other").expect("link");
    fs.setxattr(file.ino, b"user.a", b"1", XattrFlags::default())
        .expect("setxattr");
    let above = fs
        .mkdir(Ino::ROOT, b"above", 0o755, &caller)
        .expect("mkdir");
    let below = fs
        .mkdir(above.ino, b"below", 0o755, &caller)
        .expect("mkdir");
    let small = fs
        .create(below.ino, b"small", 0o644, &caller)
        .expect("create");
    fs.write(small.ino, 0, b"small", false).expect("write");
    let link = fs
        .symlink(Ino::ROOT, b"link", b"file", &caller)
        .expect("symlink");
    let volume = fs
        .volume_create(b"/volume", &VolumeOptions::default(), &caller)
        .expect("a volume");
    let inner = fs
        .create(volume.ino, b"inner", 0o644, &caller)
        .expect("create");
    fs.syncfs().expect("syncfs");
    // A snapshot, and states that it alone sees.
    fs.snapshot_create(b"/", b"one").expect("a snapshot");
    fs.write(file.ino, 5, b"changed", false).expect("write");
    fs.setxattr(file.ino, b"user.a", b"2", XattrFlags::default())
        .expect("setxattr");
    fs.rename(
        Ino::ROOT,
        b"other",
        below.ino,
        b"moved",
        RenameFlags::default(),
    )
    .expect("rename");
    fs.rename(
        below.ino,
        b"moved",
        Ino::ROOT,
        b"other",
        RenameFlags::default(),
    )
    .expect("rename");
    fs.syncfs().expect("syncfs");
    Tree {
        file,
        small,
        above,
        below,
        link,
        volume,
        inner,
    }
}

/// Changes an inode record.
fn record(txn: &mut Txn<'_>, ino: Ino, change: impl FnOnce(&mut InodeRecord)) {
    let row = key(ino, tag::INODE, &[]);
    let bytes = txn.get(&row).expect("get").expect("the inode is there");
    let mut record = InodeRecord::read_from_bytes(&bytes).expect("a record");
    change(&mut record);
    txn.put(row, record.as_bytes().to_vec());
}

/// Changes an entry by name.
fn entry(txn: &mut Txn<'_>, parent: Ino, name: &[u8], change: impl FnOnce(&mut DirentRecord)) {
    let row = key(parent, tag::DIRENT, name);
    let bytes = txn.get(&row).expect("get").expect("the entry is there");
    let mut record = DirentRecord::read_from_bytes(&bytes).expect("a record");
    change(&mut record);
    txn.put(row, record.as_bytes().to_vec());
}

/// First row of an inode with this tag.
fn first_row(txn: &Txn<'_>, ino: Ino, row_tag: u8) -> (Vec<u8>, Vec<u8>) {
    let (lo, hi) = (key(ino, row_tag, &[]), key(ino, row_tag + 1, &[]));
    txn.range(&lo, &hi)
        .next()
        .expect("a row")
        .expect("a row that can be read")
}

type Damage = fn(&mut Txn<'_>, &Tree);

const DAMAGES: &[(&str, Damage)] = &[
    ("links", |txn, tree| {
        record(txn, tree.file.ino, |record| record.nlink = 3.into())
    }),
    ("links", |txn, tree| {
        record(txn, tree.above.ino, |record| record.nlink = 2.into())
    }),
    ("links", |txn, _| {
        record(txn, Ino::ROOT, |record| record.nlink = 2.into())
    }),
    ("orphan", |txn, tree| {
        record(txn, tree.small.ino, |record| record.nlink = 0.into())
    }),
    ("orphan", |txn, tree| {
        txn.put(
            system_key(tag::ORPHAN, &tree.small.ino.0.to_be_bytes()),
            Vec::new(),
        );
    }),
    ("orphan", |txn, _| {
        txn.put(system_key(tag::ORPHAN, &999_u64.to_be_bytes()), Vec::new());
    }),
    ("key", |txn, _| {
        txn.put(system_key(tag::ORPHAN, &[1]), Vec::new())
    }),
    ("key", |txn, tree| {
        txn.put(key(tree.file.ino, 0x77, &[]), Vec::new())
    }),
    ("record", |txn, tree| {
        txn.put(key(tree.file.ino, tag::INODE, &[]), vec![1, 2])
    }),
    ("record", |txn, tree| {
        txn.put(key(tree.above.ino, tag::DIRENT, b"x"), vec![1])
    }),
    ("record", |txn, tree| {
        txn.put(key(tree.above.ino, tag::COOKIE, &[0; 8]), vec![1])
    }),
    ("record", |txn, tree| {
        let (row, mut value) = first_row(txn, tree.file.ino, tag::EXTENT);
        value.pop();
        txn.put(row, value);
    }),
    ("volume", |txn, tree| {
        record(txn, tree.file.ino, |record| record.volume = 9.into())
    }),
    ("volume", |txn, tree| {
        let volume = tree.volume.volume.0;
        record(txn, tree.small.ino, |record| record.volume = volume.into());
    }),
    ("volume", |txn, tree| {
        record(txn, tree.inner.ino, |record| {
            record.volume = VolumeId::ROOT.0.into();
        });
    }),
    ("volume-root", |txn, tree| {
        record(txn, tree.volume.ino, |record| {
            record.mode = (libc::S_IFREG | 0o644).into();
        });
    }),
    ("parent", |txn, tree| {
        record(txn, tree.volume.ino, |record| record.parent = 1.into())
    }),
    ("junction", |txn, tree| {
        let junction = junction(txn, tree);
        record(txn, junction, |record| record.flags = 0.into());
    }),
    ("junction", |txn, tree| {
        let flag = inode_flag::JUNCTION;
        record(txn, tree.above.ino, |record| record.flags = flag.into());
    }),
    ("junction", |txn, tree| {
        let id = tree.volume.volume;
        let mut record = txn.volume(id).expect("the volume is there");
        record.junction = 0.into();
        txn.volume_put(id, record);
    }),
    ("volume-counters", |txn, _| {
        let delta = VolumeDelta {
            logical_bytes: 1,
            allocated_bytes: 0,
            inodes: 0,
        };
        txn.volume_add(VolumeId::ROOT, delta).unwrap();
    }),
    ("inode-missing", |txn, tree| {
        txn.delete(key(tree.link.ino, tag::INODE, &[]))
    }),
    ("rows", |txn, tree| {
        txn.delete(key(tree.link.ino, tag::INODE, &[]))
    }),
    ("inline", |txn, tree| {
        record(txn, tree.small.ino, |record| record.flags = 0.into())
    }),
    ("inline", |txn, tree| {
        txn.delete(key(tree.link.ino, tag::INLINE, &[]))
    }),
    ("size", |txn, tree| {
        record(txn, tree.small.ino, |record| record.size = 6.into())
    }),
    ("allocated", |txn, tree| {
        record(txn, tree.file.ino, |record| record.allocated += 1)
    }),
    ("xattrs", |txn, tree| {
        record(txn, tree.file.ino, |record| record.flags = 0.into())
    }),
    ("extents", |txn, tree| {
        record(txn, tree.file.ino, |record| record.size = 10.into())
    }),
    ("extents", |txn, tree| {
        txn.put(key(tree.file.ino, tag::INLINE, &[]), vec![0; 9])
    }),
    ("entries", |txn, tree| {
        record(txn, tree.above.ino, |record| record.size = 2.into())
    }),
    ("entries", |txn, tree| {
        record(txn, tree.above.ino, |record| {
            record.mode = (libc::S_IFREG | 0o644).into();
        })
    }),
    ("cookie", |txn, tree| {
        entry(txn, tree.above.ino, b"below", |entry| entry.cookie += 1)
    }),
    ("cookie", |txn, tree| {
        record(txn, tree.above.ino, |record| record.next_cookie = 3.into())
    }),
    ("cookie", |txn, tree| {
        let (row, _) = first_row(txn, tree.above.ino, tag::COOKIE);
        txn.delete(row);
    }),
    ("cookie", |txn, tree| {
        let mut value = CookieRecord::default().as_bytes().to_vec();
        value.extend_from_slice(b"ghost");
        txn.put(
            key(tree.above.ino, tag::COOKIE, &100_u64.to_be_bytes()),
            value,
        );
    }),
    ("kind", |txn, tree| {
        entry(txn, tree.above.ino, b"below", |entry| entry.kind = 8)
    }),
    ("name", |txn, tree| {
        let bytes = DirentRecord::default().as_bytes().to_vec();
        txn.put(key(tree.above.ino, tag::DIRENT, b"a/b"), bytes);
    }),
    ("parent", |txn, tree| {
        record(txn, tree.below.ino, |record| record.parent = 1.into())
    }),
    ("directory-names", |txn, tree| {
        let bytes = txn
            .get(&key(tree.above.ino, tag::DIRENT, b"below"))
            .expect("get");
        txn.put(
            key(Ino::ROOT, tag::DIRENT, b"again"),
            bytes.expect("an entry"),
        );
    }),
    ("circle", |txn, tree| {
        let row = key(Ino::ROOT, tag::DIRENT, b"above");
        let bytes = txn.get(&row).expect("get").expect("an entry");
        txn.delete(row);
        txn.put(key(tree.below.ino, tag::DIRENT, b"above"), bytes);
    }),
    ("chunk-references", |txn, tree| {
        let (row, _) = first_row(txn, tree.file.ino, tag::EXTENT);
        txn.delete(row);
    }),
    ("history", |txn, _| {
        let (row, _) = first_row(txn, Ino(0), tag::HISTORY);
        txn.delete(row);
    }),
    ("history", |txn, _| {
        let (row, _) = first_row(txn, Ino(0), tag::ENDED);
        txn.delete(row);
    }),
    ("history", |txn, tree| {
        // It has ended before it began.
        record(txn, tree.small.ino, |_| ());
        let state = InodeRecord {
            timestamp: u64::MAX.into(),
            ..InodeRecord::default()
        };
        let row = history_key(tree.small.ino, tag::INODE, &[], 5);
        txn.put(row, state.as_bytes().to_vec());
        txn.put(ended_key(1, 5, tree.small.ino, tag::INODE, &[]), Vec::new());
    }),
    ("history", |txn, tree| {
        // Longer ago than the snapshot.
        let state = InodeRecord::default().as_bytes().to_vec();
        txn.put(history_key(tree.small.ino, tag::INODE, &[], 5), state);
        txn.put(ended_key(1, 5, tree.small.ino, tag::INODE, &[]), Vec::new());
    }),
    ("history", |txn, tree| {
        // What is there now is older.
        let state = InodeRecord::default().as_bytes().to_vec();
        let end = txn.timestamp().0;
        let row = history_key(tree.small.ino, tag::INODE, &[], end);
        txn.put(row, state);
        txn.put(
            ended_key(1, end, tree.small.ino, tag::INODE, &[]),
            Vec::new(),
        );
    }),
    ("key", |txn, _| {
        txn.put(system_key(tag::HISTORY, &[1, 2]), Vec::new());
    }),
    ("key", |txn, _| {
        txn.put(system_key(tag::ENDED, &[1, 2]), Vec::new());
    }),
    ("record", |txn, _| {
        let (row, _) = first_row(txn, Ino(0), tag::HISTORY);
        txn.put(row, Vec::new());
    }),
    ("record", |txn, _| {
        let (row, _) = first_row(txn, Ino(0), tag::SNAPSHOT);
        txn.put(row, vec![1]);
    }),
    ("snapshot", |txn, _| {
        let (row, _) = first_row(txn, Ino(0), tag::SNAPSHOT);
        txn.delete(row);
    }),
    ("snapshot", |txn, _| {
        let (mut row, value) = first_row(txn, Ino(0), tag::SNAPSHOT);
        *row.last_mut().expect("not empty") ^= 1;
        txn.put(row, value);
    }),
    ("chunk-references", |txn, _| {
        let states = txn.range(
            &system_key(tag::HISTORY, &[]),
            &system_key(tag::HISTORY + 1, &[]),
        );
        let extents: Vec<_> = states
            .map(|row| row.expect("readable"))
            .filter(|(row, _)| row[17] == tag::EXTENT)
            .collect();
        let (row, _) = &extents[0];
        let (ino, row_tag, suffix, to) = split_history(&row[9..]).expect("ours");
        txn.delete(ended_key(1, to, ino, row_tag, suffix));
        txn.delete(row.clone());
    }),
];

#[test]
fn every_damage_is_found() {
    let pool = Pool::new(64);
    let fs = pool.open();
    let tree = tree(&fs);
    assert_clean(&fs);
    for (index, (id, damage)) in DAMAGES.iter().enumerate() {
        let pool = pool.power_cut(0);
        let fs = pool.open();
        assert_clean(&fs);
        let mut txn = fs.store().begin();
        damage(&mut txn, &tree);
        txn.commit(&[]).expect("commit");
        let report = fs
            .check(|_| true)
            .expect("tables can be read")
            .expect("it was not ended");
        assert!(
            report.findings.iter().any(|finding| finding.id == *id),
            "damage {index} should be found as {id:?}: {:#?}",
            report.findings
        );
    }
}

#[test]
fn damage_in_snapshots_alone_is_told_apart() {
    let pool = Pool::new(64);
    let fs = pool.open();
    let file = fs
        .create(Ino::ROOT, b"file", 0o644, &Caller::default())
        .expect("create");
    let chunks = |fs: &Fs| -> HashSet<_> {
        let chunks = fs.store().freeze().chunks();
        chunks.map(|chunk| chunk.expect("a chunk").0).collect()
    };
    fs.write(file.ino, 0, &[1; 50_000], false).expect("write");
    fs.snapshot_create(b"/", b"one").expect("a snapshot");
    let then = chunks(&fs);
    fs.write(file.ino, 0, &[2; 60_000], false).expect("write");
    fs.syncfs().expect("syncfs");
    let now: HashSet<_> = chunks(&fs).difference(&then).copied().collect();
    for (chunks, in_snapshots, end) in [(&then, true, 50_000), (&now, false, 60_000)] {
        let affected = fs.affected_by(chunks, || true).expect("to its end");
        let [file] = &affected.files[..] else {
            panic!("one file: {affected:?}");
        };
        assert_eq!(file.in_snapshots, in_snapshots);
        assert_eq!(file.paths, [b"/file"]);
        assert_eq!(file.ranges, [(0, end)]);
    }
}

#[test]
fn references_are_counted_against_the_index() {
    let pool = Pool::new(64);
    let fs = pool.open();
    tree(&fs);
    let chunk = fs
        .store()
        .freeze()
        .chunks()
        .next()
        .expect("a chunk")
        .expect("a chunk");
    let mut txn = fs.store().begin();
    txn.chunk_ref(&chunk.0, None).expect("chunk_ref");
    txn.commit(&[]).expect("commit");
    let report = fs
        .check(|_| true)
        .expect("tables can be read")
        .expect("it was not ended");
    let ids: Vec<_> = report.findings.iter().map(|finding| finding.id).collect();
    assert_eq!(ids, ["chunk-references"]);
    assert_eq!((report.inodes, report.entries), (9, 8));
    assert!(report.chunks > 0 && report.extents >= report.chunks);
}

/// Damaged rows take nothing from what can be told of the others.
#[test]
fn affected_files_are_named_beside_damaged_rows() {
    let pool = Pool::new(64);
    let fs = pool.open();
    tree(&fs);
    let chunks = fs.store().freeze().chunks();
    let chunks: HashSet<_> = chunks.map(|chunk| chunk.expect("a chunk").0).collect();
    assert!(fs.affected_by(&chunks, || false).is_none(), "ended");
    let before = fs.affected_by(&chunks, || true).expect("not ended");
    assert!(before.incomplete.is_none(), "{before:?}");
    let mut txn = fs.store().begin();
    // Both come before the rows of the file and its names.
    txn.put(key(Ino::ROOT, tag::INODE, &[]), vec![1, 2]);
    txn.put(key(Ino::ROOT, tag::DIRENT, b"a"), vec![1]);
    txn.commit(&[]).expect("commit");
    let after = fs.affected_by(&chunks, || true).expect("not ended");
    assert!(after.incomplete.is_some(), "{after:?}");
    assert_eq!(after.files, before.files);
    let paths = &after.files[0].paths;
    assert_eq!(*paths, [b"/file".to_vec(), b"/other".to_vec()]);
}
