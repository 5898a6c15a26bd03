//! Content that is read as parts of opened chunks, and ahead of who reads in order.

use std::time::{Duration, Instant};

use cfs_format::Ino;
use cfs_fs::{Fs, FsOptions, PARTS_MAX, SetAttr};

use crate::limits::{create, noise};
use crate::pool::Pool;

/// Of a file that is made of pieces of others.
const PIECE_BYTES: u64 = 4096;
/// They lie so far apart in the source that no chunk shows two of them.
const STEP_BYTES: u64 = 300 << 10;

fn written(fs: &Fs, name: &str, content: &[u8]) -> Ino {
    let ino = create(fs, name);
    fs.write(ino, 0, content, false).expect("written");
    fs.fsync(ino, false).expect("synced");
    ino
}

/// Reads a range of what is `content` in all; the number of parts, or none where it was copied.
#[track_caller]
fn parts_of(fs: &Fs, ino: Ino, content: &[u8], from: usize, len: usize) -> Option<usize> {
    let wanted = &content[from..(from + len).min(content.len())];
    let before = b"left as it is".to_vec();
    let mut out = before.clone();
    let read = fs.read_parts(ino, from as u64, len, &mut out);
    let Some(parts) = read.expect("readable") else {
        assert!(out == wanted);
        return None;
    };
    assert_eq!(out, before);
    let slices: Vec<_> = parts.slices().collect();
    assert!(slices.concat() == wanted);
    Some(slices.len())
}

#[test]
fn stored_content_is_read_as_parts() {
    let pool = Pool::new(64);
    let fs = pool.open();
    let content = noise(1, 3 << 20);
    let file = written(&fs, "file", &content);
    // Chunks have 64 KiB to 256 KiB.
    assert_eq!(parts_of(&fs, file, &content, 0, 4096), Some(1));
    for (from, len, count_max) in [
        (0, 1 << 20, 16),
        (777_777, 1 << 20, 17),
        (3_000_000, 1 << 20, 4),
    ] {
        let count = parts_of(&fs, file, &content, from, len).expect("not copied");
        assert!(count <= count_max, "{count} parts of {len} bytes");
    }
    assert_eq!(parts_of(&fs, file, &content, 3 << 20, 4096), None);
}

/// Copied is what lies in too many pieces, and what would hold chunks out of proportion to what is read of them.
#[test]
fn many_small_pieces_are_copied() {
    let pool = Pool::new(64);
    let fs = pool.open();
    let source = noise(2, 16 << 20);
    let of = written(&fs, "source", &source);
    let (tiny, mut content) = (create(&fs, "tiny"), Vec::new());
    for piece in 0..50 {
        let from = piece * STEP_BYTES;
        let copied = fs.copy_range(of, from, tiny, piece * PIECE_BYTES, PIECE_BYTES);
        assert_eq!(copied.expect("copied"), PIECE_BYTES);
        content.extend_from_slice(&source[from as usize..][..PIECE_BYTES as usize]);
    }
    fs.fsync(tiny, false).expect("synced");
    let pieces = |count: usize| parts_of(&fs, tiny, &content, 0, count * PIECE_BYTES as usize);
    assert_eq!(pieces(1), Some(1));
    assert_eq!(pieces(5), Some(5));
    // Not too many, even if some lie in two chunks; but the chunks have more than 2 MiB.
    assert_eq!(pieces(PARTS_MAX - 5), None);
    // Of one that long all chunks are wanted, but there are too many of them.
    assert_eq!(parts_of(&fs, of, &source, 0, source.len()), None);
}

#[test]
fn what_no_chunk_shows_is_copied() {
    let pool = Pool::new(64);
    let fs = pool.open();
    let mut content = noise(3, 1 << 20);
    let file = written(&fs, "file", &content);
    let whole = content.len();
    assert!(parts_of(&fs, file, &content, 0, whole).is_some());
    // Accepted and not yet stored.
    fs.write(file, 500_000, b"news", false).expect("written");
    content[500_000..500_004].copy_from_slice(b"news");
    assert_eq!(parts_of(&fs, file, &content, 0, whole), None);
    fs.fsync(file, false).expect("synced");
    assert!(parts_of(&fs, file, &content, 0, whole).is_some());
    // A hole.
    let size = SetAttr {
        size: Some(2 << 20),
        ..SetAttr::default()
    };
    fs.setattr(file, &size).expect("grown");
    fs.fsync(file, false).expect("synced");
    content.resize(2 << 20, 0);
    assert!(parts_of(&fs, file, &content, 0, whole).is_some());
    assert_eq!(parts_of(&fs, file, &content, 0, whole + 1), None);
    // In the row of the file.
    let note = written(&fs, "note", b"a few bytes");
    assert_eq!(parts_of(&fs, note, b"a few bytes", 0, 100), None);
}

/// A small cache would lose what was read ahead before somebody asks for it.
#[test]
fn an_eighth_of_the_hot_area_is_read_ahead_at_most() {
    const HOT_BYTES: u64 = 32 << 20;
    const READ_BYTES: usize = 128 << 10;
    const READS: usize = 16;
    // What has been read may still be there, there is a chunk at the end, and chunks take whole multiples of memory.
    const SLACK_BYTES: u64 = (READS * READ_BYTES + (3 << 19)) as u64;
    let pool = Pool::new(512);
    let content = noise(4, 28 << 20);
    let fs = pool.open();
    let file = written(&fs, "file", &content);
    drop(fs);
    for (wanted, allowed) in [(64 << 20, HOT_BYTES / 8), (1 << 20, 1 << 20), (0, 0)] {
        let fs = pool.open_with(FsOptions {
            hot_bytes: HOT_BYTES,
            readahead_bytes: wanted,
            seal_threads: 2,
            ..FsOptions::default()
        });
        let mut out = Vec::new();
        for read in 0..READS {
            let from = read * READ_BYTES;
            fs.read(file, from as u64, READ_BYTES, &mut out)
                .expect("readable");
            assert!(out == content[from..from + READ_BYTES]);
        }
        // Until the threads have opened all that they were asked for.
        let (least, patience) = (allowed / 2, Instant::now());
        let (mut hot, mut since) = (0, Instant::now());
        while hot < least && patience.elapsed() < Duration::from_secs(20)
            || since.elapsed() < Duration::from_millis(300)
        {
            let now = fs.hot_bytes();
            if now != hot {
                (hot, since) = (now, Instant::now());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(
            (least..=allowed + SLACK_BYTES).contains(&hot),
            "{hot} bytes opened, of {wanted} that were to be read ahead {allowed} at most"
        );
    }
}
