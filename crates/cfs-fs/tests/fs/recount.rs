//! Recounting references: what is planted is found, nothing is found beside writers, and it runs by itself.

use cfs_format::table::{key, system_key, tag};
use cfs_format::{Fingerprint, Ino};
use cfs_fs::recount::RecountReport;
use cfs_fs::{Caller, Fs, FsOptions};

use crate::pool::{Pool, Rng, assert_clean};

const DAY_MS: u64 = 24 * 3600 * 1000;

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut bytes = vec![0; len];
    bytes.fill_with(|| rng.next() as u8);
    bytes
}

fn create(fs: &Fs, name: &str, content: &[u8]) -> Ino {
    let caller = Caller::default();
    let file = fs.create(Ino::ROOT, name.as_bytes(), 0o644, &caller);
    let ino = file.expect("create").ino;
    fs.write(ino, 0, content, false).expect("write");
    ino
}

/// Two files that share all chunks, one that shares none, one that is inline.
fn files(fs: &Fs) -> [Ino; 4] {
    let inos = [
        create(fs, "first", &noise(1, 900_000)),
        create(fs, "again", &noise(1, 900_000)),
        create(fs, "other", &noise(2, 500_000)),
        create(fs, "small", b"small"),
    ];
    fs.syncfs().expect("syncfs");
    inos
}

fn recount(fs: &Fs) -> RecountReport {
    fs.recount(|_| true)
        .expect("tables can be read")
        .expect("it was not ended")
}

fn ids(report: &RecountReport) -> Vec<&'static str> {
    report.findings.iter().map(|finding| finding.id).collect()
}

/// Chunks with so many references.
fn chunks_with(fs: &Fs, refs: u32) -> Vec<Fingerprint> {
    let chunks = fs.store().freeze().chunks();
    let chunks = chunks.map(|chunk| chunk.expect("a chunk"));
    let chunks = chunks.filter(|(_, record)| record.refs.get() == refs);
    chunks.map(|(fingerprint, _)| fingerprint).collect()
}

#[test]
fn counts_agree_and_are_told() {
    let pool = Pool::new(64);
    let fs = pool.open();
    files(&fs);
    let report = recount(&fs);
    assert!(report.is_clean(), "{report:?}");
    let (shared, single) = (chunks_with(&fs, 2).len(), chunks_with(&fs, 1).len());
    assert!(shared > 3 && single > 1);
    assert_eq!(report.chunks as usize, shared + single);
    assert_eq!(report.references as usize, 2 * shared + single);
    let mut looks = 0;
    let ended = fs.recount(|progress| {
        looks += 1;
        assert!(progress.seen <= progress.total);
        assert_eq!(fs.recount_status().running, Some(progress));
        false
    });
    assert_eq!((ended.expect("readable"), looks), (None, 1));
    assert_eq!(fs.recount_status().running, None);
}

#[test]
fn planted_differences_are_found_and_nothing_of_them_is_freed() {
    let pool = Pool::new(64);
    let fs = pool.open();
    let [_, again, _, _] = files(&fs);
    let (leaked, lost) = (chunks_with(&fs, 1)[0], chunks_with(&fs, 2)[0]);

    // Counted once more than shown, and then shown by nobody.
    let mut txn = fs.store().begin();
    txn.chunk_ref(&leaked, None).expect("chunk_ref");
    txn.commit(&[]).expect("commit");
    let report = recount(&fs);
    assert_eq!(ids(&report), ["chunk-references"], "{report:?}");
    fs.unlink(Ino::ROOT, b"other").expect("unlink");
    let report = recount(&fs);
    assert_eq!(ids(&report), ["chunk-leaked"], "{report:?}");
    assert_eq!((report.differing, report.leaked, report.freed), (1, 1, 0));

    // Counted once less than shown: the last one who shows it must find it.
    let mut txn = fs.store().begin();
    txn.chunk_unref(&lost).expect("chunk_unref");
    txn.commit(&[]).expect("commit");
    let report = recount(&fs);
    assert_eq!(report.differing, 2, "{report:?}");
    fs.unlink(Ino::ROOT, b"first").expect("unlink");
    for _ in 0..20 {
        pool.sleep_ms(1000);
        fs.tick().expect("tick");
    }
    assert!(
        fs.store()
            .chunk_location(&lost)
            .expect("readable")
            .is_some()
    );
    assert!(
        fs.store()
            .chunk_location(&leaked)
            .expect("readable")
            .is_some()
    );
    let mut out = Vec::new();
    fs.read(again, 0, 900_000, &mut out)
        .expect("it is all there");
    assert!(out == noise(1, 900_000));

    // An extent that shows what nobody has.
    let mut txn = fs.store().begin();
    let (lo, hi) = (
        key(again, tag::EXTENT, &[]),
        key(again, tag::EXTENT + 1, &[]),
    );
    let (row, mut value) = txn
        .range(&lo, &hi)
        .next()
        .expect("a row")
        .expect("readable");
    let last = value.len() - 1;
    value[last] ^= 1;
    txn.put(row, value);
    txn.commit(&[]).expect("commit");
    let report = recount(&fs);
    assert_eq!(report.missing, 1, "{report:?}");
    assert!(ids(&report).contains(&"chunk-missing"), "{report:?}");
    assert_eq!(fs.recount_status().last.missing.get(), 1);
}

/// What is shown more often than counted stays although nothing counts it, over restarts too, as long as it is shown.
#[test]
fn a_disputed_chunk_outlives_its_count_and_the_process() {
    let pool = Pool::new(64);
    let fs = pool.open();
    let [_, again, _, _] = files(&fs);
    let disputed = chunks_with(&fs, 2)[0];
    let mut txn = fs.store().begin();
    txn.chunk_unref(&disputed).expect("chunk_unref");
    txn.commit(&[]).expect("commit");
    assert_eq!(ids(&recount(&fs)), ["chunk-references"]);
    fs.unlink(Ino::ROOT, b"first").expect("unlink");
    fs.close().expect("close");
    drop(fs);

    let fs = pool.open();
    let settle = |fs: &Fs| {
        for _ in 0..20 {
            pool.sleep_ms(1000);
            fs.tick().expect("tick");
        }
    };
    let is_there = |fs: &Fs| {
        let place = fs.store().chunk_location(&disputed);
        place.expect("readable").is_some()
    };
    settle(&fs);
    assert!(is_there(&fs));
    let mut out = Vec::new();
    fs.read(again, 0, 900_000, &mut out)
        .expect("it is all there");
    assert!(out == noise(1, 900_000));
    fs.unlink(Ino::ROOT, b"again").expect("unlink");
    settle(&fs);
    assert!(is_there(&fs), "only a recount knows that it is not shown");
    assert_clean(&fs);
    let report = recount(&fs);
    assert!(report.is_clean() && report.freed == 1, "{report:?}");
    assert!(!is_there(&fs));
    assert_clean(&fs);
}

/// A chunk that nobody counts, shows or lists would stay for ever: it is what both methods agree on.
#[test]
fn what_neither_counts_nor_extents_refer_to_is_freed() {
    let pool = Pool::new(64);
    let fs = pool.open();
    files(&fs);
    let all = chunks_with(&fs, 1);
    fs.unlink(Ino::ROOT, b"other").expect("unlink");
    let mut txn = fs.store().begin();
    for fingerprint in &all {
        txn.delete(system_key(tag::DEAD_CHUNK, &fingerprint.0));
    }
    txn.commit(&[]).expect("commit");
    fs.tick().expect("tick");
    assert!(
        fs.store()
            .chunk_location(&all[0])
            .expect("readable")
            .is_some()
    );
    let report = recount(&fs);
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.freed as usize, all.len());
    assert_eq!(fs.store().chunk_location(&all[0]).expect("readable"), None);
    assert_clean(&fs);
}

#[test]
fn a_recount_beside_writers_finds_nothing() {
    let pool = Pool::new(256);
    let fs = pool.open_with(FsOptions {
        seal_threads: 2,
        ..FsOptions::default()
    });
    let files: Vec<Ino> = (0..4)
        .map(|number| create(&fs, &format!("f{number}"), b""))
        .collect();
    let mut recounts = 0;
    std::thread::scope(|scope| {
        let writers: Vec<_> = files
            .iter()
            .map(|ino| {
                let fs = &fs;
                scope.spawn(move || {
                    let mut rng = Rng::new(ino.0);
                    for round in 0..250 {
                        let data = noise(rng.below(9), 1 + rng.below(300_000) as usize);
                        let offset = rng.below(900_000);
                        fs.write(*ino, offset, &data, false).expect("write");
                        if round % 3 == 0 {
                            fs.fsync(*ino, false).expect("fsync");
                        }
                        if round % 50 == 0 {
                            fs.tick().expect("tick");
                        }
                    }
                })
            })
            .collect();
        while recounts < 3 || !writers.iter().all(|writer| writer.is_finished()) {
            let report = recount(&fs);
            assert!(report.is_clean(), "{report:?}");
            recounts += 1;
        }
    });
    fs.syncfs().expect("syncfs");
    assert!(recount(&fs).references > 0);
    assert_clean(&fs);
}

/// Some time after the first opening, and then once a week, while nobody uses the pool; the last result outlives the
/// process.
#[test]
fn it_runs_by_itself() {
    let pool = Pool::new(64);
    let fs = pool.open();
    files(&fs);
    let finished = |fs: &Fs| fs.recount_status().last.finished_ns.get();
    let ticks = |fs: &Fs, count: u64, ms: u64| {
        for _ in 0..count {
            pool.sleep_ms(ms);
            fs.tick().expect("tick");
        }
    };
    ticks(&fs, 30, 1000);
    assert_eq!(finished(&fs), 0);
    ticks(&fs, 60, 1000);
    let first = finished(&fs);
    assert!(first > 0, "{:?}", fs.recount_status());
    ticks(&fs, 60, DAY_MS / 10);
    assert_eq!(finished(&fs), first, "that was six days");
    fs.close().expect("close");
    drop(fs);
    let fs = pool.open();
    assert_eq!(finished(&fs), first);
    ticks(&fs, 30, DAY_MS / 10);
    assert!(finished(&fs) > first, "{:?}", fs.recount_status());

    // After a crash it does not wait for a week.
    let pool = pool.power_cut(7);
    let fs = pool.open();
    let before = finished(&fs);
    for _ in 0..90 {
        pool.sleep_ms(1000);
        fs.tick().expect("tick");
    }
    assert!(finished(&fs) > before, "{:?}", fs.recount_status());
}
