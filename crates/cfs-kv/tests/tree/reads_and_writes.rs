//! What reads and writes cost: misses no reads, small checkpoints no rewriting of everything, a scan no more blocks than
//! it returns.

use std::{ops::Bound, sync::Arc};

use cfs_kv::{Batch, BlockCache, Tree, TreeOptions};

use crate::{memory_store::MemoryStore, random::Random};

fn options() -> TreeOptions {
    TreeOptions {
        memtable_bytes_max: 1 << 20,
        block_bytes: 8 << 10,
        run_bytes_max: 1 << 20,
        level1_bytes_max: 2 << 20,
        level_ratio: 10,
    }
}

fn tree(store: &Arc<MemoryStore>, cache_bytes: u64) -> Tree {
    Tree::create(
        store.clone(),
        Arc::new(BlockCache::new(cache_bytes)),
        options(),
    )
}

fn checkpoint(tree: &Tree, store: &MemoryStore) {
    tree.rotate();
    tree.flush_rotated().unwrap();
    assert!(!tree.manifest().is_empty());
    store.superblock();
    while tree.compact_step().unwrap() {}
}

fn fill(tree: &Tree, store: &MemoryStore, random: &mut Random, count: usize) -> Vec<Vec<u8>> {
    let keys: Vec<_> = (0..count).map(|_| random.bytes(32)).collect();
    for keys in keys.chunks(1000) {
        let mut batch = Batch::new();
        for key in keys {
            batch.put(key.clone(), vec![1; 40]);
        }
        tree.apply(&batch);
        if tree.memtable_bytes() >= options().memtable_bytes_max {
            checkpoint(tree, store);
        }
    }
    checkpoint(tree, store);
    keys
}

#[test]
fn misses_read_nothing_and_hits_read_one_block() {
    let random = &mut Random(1);
    let store = MemoryStore::new();
    // The smallest cache there is, so that hits have to read.
    let tree = tree(&store, 1);
    let keys = fill(&tree, &store, random, 50_000);
    assert!(tree.stats().runs_per_level.len() > 2, "{:?}", tree.stats());
    for _ in 0..2000 {
        tree.get(&random.bytes(32)).unwrap();
    }
    let loaded = store.reads();
    for _ in 0..50_000 {
        assert_eq!(tree.get(&random.bytes(32)).unwrap(), None);
    }
    let missed = store.reads();
    assert!(missed - loaded <= 5, "{} reads for misses", missed - loaded);
    for key in keys.iter().step_by(50) {
        assert!(tree.get(key).unwrap().is_some());
    }
    let hits = store.reads() - missed;
    assert!((900..=1002).contains(&hits), "{hits} reads for 1000 hits");
    let stats = tree.stats();
    let bytes_a_key = (stats.filter_bytes + stats.index_bytes) as f64 / stats.run_entries as f64;
    assert!(bytes_a_key < 3.0, "{bytes_a_key}");
}

#[test]
fn a_short_scan_reads_a_block_of_each_sorted_run() {
    let random = &mut Random(2);
    let store = MemoryStore::new();
    let tree = tree(&store, 1);
    fill(&tree, &store, random, 20_000);
    let ends = |key: &[u8]| {
        let mut range = tree.range(Bound::Included(key), Bound::Unbounded);
        assert!(range.by_ref().take(3).all(|entry| entry.is_ok()));
        let mut range = tree.range(Bound::Unbounded, Bound::Included(key));
        assert!(range.by_ref().rev().take(3).all(|entry| entry.is_ok()));
    };
    let key = random.bytes(32);
    ends(&key);
    let loaded = store.reads();
    ends(&key);
    let stats = tree.stats();
    let sorted_runs = stats.level0_sorted_runs + stats.runs_per_level.len() as u64 - 1;
    let reads = store.reads() - loaded;
    assert!(
        reads <= 2 * (sorted_runs + 2),
        "{reads} reads for two scans of {sorted_runs} sorted runs"
    );
}

#[test]
fn small_checkpoints_do_not_rewrite_level_1() {
    let random = &mut Random(3);
    let store = MemoryStore::new();
    let tree = tree(&store, 1 << 20);
    fill(&tree, &store, random, 10_000);
    let base = store.written();
    let mut changed = 0;
    for _ in 0..300 {
        let mut batch = Batch::new();
        for _ in 0..10 {
            batch.put(random.bytes(32), vec![2; 40]);
            changed += 72;
        }
        tree.apply(&batch);
        checkpoint(&tree, &store);
    }
    let written = store.written() - base;
    assert!(
        written < 20 * changed,
        "{written} bytes written for {changed}"
    );
    assert!(tree.stats().level0_sorted_runs < 12);
}

#[test]
fn deleting_everything_frees_everything() {
    let random = &mut Random(4);
    let store = MemoryStore::new();
    let tree = tree(&store, 1 << 20);
    let keys = fill(&tree, &store, random, 40_000);
    for keys in keys.chunks(1000) {
        let mut batch = Batch::new();
        for key in keys {
            batch.delete(key.clone());
        }
        tree.apply(&batch);
    }
    for _ in 0..8 {
        checkpoint(&tree, &store);
        // Something for level 0, so that it comes to be merged.
        let mut batch = Batch::new();
        batch.put(vec![0], vec![0]);
        batch.put(vec![255; 33], vec![0]);
        tree.apply(&batch);
    }
    checkpoint(&tree, &store);
    let stats = tree.stats();
    assert!(stats.run_entries < 100, "{stats:?}");
    assert!(store.used().len() < 20, "{} extents", store.used().len());
}

#[test]
fn small_runs_become_one_beside_large_ones() {
    let random = &mut Random(5);
    let store = MemoryStore::new();
    let tree = tree(&store, 1 << 20);
    fill(&tree, &store, random, 10_000);
    let large = tree.stats().level0_sorted_runs + 1;
    let key = |turn: u8| vec![turn; 32];
    for (turn, rows) in [(0, 5000), (1, 5), (2, 5), (3, 5)] {
        let mut batch = Batch::new();
        batch.put(key(turn), vec![turn; 40]);
        batch.delete(key(turn.wrapping_sub(1)));
        for _ in 1..rows {
            batch.put(random.bytes(32), vec![2; 40]);
        }
        tree.apply(&batch);
        tree.rotate();
        tree.flush_rotated().expect("flush");
    }
    let before = tree.stats();
    assert_eq!(before.level0_sorted_runs, large + 3, "{before:?}");
    let base = store.written();
    while tree.compact_step_of_newest(64 << 10).expect("merge") {}
    let after = tree.stats();
    assert_eq!(after.level0_sorted_runs, large + 1, "{after:?}");
    let written = store.written() - base;
    assert!(written < 64 << 10, "{written} bytes written");
    for turn in 0..3 {
        assert_eq!(tree.get(&key(turn)).expect("get"), None, "{turn}");
    }
    assert_eq!(tree.get(&key(3)).expect("get"), Some(vec![3; 40]));
}
