//! Readers, a writer, and a thread that flushes and compacts: what a view shows is one batch's state.

use std::{
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use cfs_kv::{Batch, BlockCache, Tree};

use crate::{memory_store::MemoryStore, model::small_options, random::Random};

/// Each batch sets all of these to its number, or removes those with an odd number of it.
const KEYS: u64 = 40;

fn key(number: u64) -> Vec<u8> {
    format!("key {number:03}").into_bytes()
}

fn check(entries: &[(Vec<u8>, Vec<u8>)]) -> u64 {
    let Some((_, first)) = entries.first() else {
        return 0;
    };
    let batch = u64::from_le_bytes(first[..8].try_into().unwrap());
    let expected = (0..KEYS)
        .filter(|number| batch % 7 != 0 || number % 2 == 0)
        .map(key);
    assert!(
        entries
            .iter()
            .map(|(key, _)| key)
            .eq(expected.collect::<Vec<_>>().iter()),
        "batch {batch}"
    );
    assert!(
        entries.iter().all(|(_, value)| value == first),
        "one batch only"
    );
    batch
}

#[test]
fn views_show_whole_batches() {
    let store = MemoryStore::new();
    let tree = Tree::create(
        store.clone(),
        Arc::new(BlockCache::new(32 << 10)),
        small_options(),
    );
    let applied = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let random = &mut Random(9);
            for number in 1..=6000u64 {
                let mut batch = Batch::new();
                let mut value = number.to_le_bytes().to_vec();
                value.resize(8 + random.below(40) as usize, 0);
                for index in 0..KEYS {
                    if number % 7 == 0 && index % 2 == 1 {
                        batch.delete(key(index));
                    } else {
                        batch.put(key(index), value.clone());
                    }
                }
                tree.apply(&batch);
                applied.store(number, Ordering::SeqCst);
                if random.chance(10) {
                    tree.rotate();
                }
            }
            stop.store(true, Ordering::SeqCst);
        });
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                tree.flush_rotated().unwrap();
                assert!(!tree.manifest().is_empty());
                store.superblock();
                tree.compact_step().unwrap();
            }
        });
        for seed in 0..2 {
            let (tree, applied, stop) = (&tree, &applied, &stop);
            scope.spawn(move || {
                let random = &mut Random(seed);
                let mut held = tree.view();
                let mut held_batch = check(
                    &held
                        .range(Bound::Unbounded, Bound::Unbounded)
                        .map(Result::unwrap)
                        .collect::<Vec<_>>(),
                );
                while !stop.load(Ordering::SeqCst) {
                    let least = applied.load(Ordering::SeqCst);
                    let view = tree.view();
                    let entries: Vec<_> = view
                        .range(Bound::Unbounded, Bound::Unbounded)
                        .map(Result::unwrap)
                        .collect();
                    let batch = check(&entries);
                    assert!(batch >= least, "{batch} at {least}");
                    let mut back: Vec<_> = view
                        .range(Bound::Unbounded, Bound::Unbounded)
                        .rev()
                        .map(Result::unwrap)
                        .collect();
                    back.reverse();
                    assert!(back == entries);
                    let even = key(random.below(KEYS / 2) * 2);
                    let least = applied.load(Ordering::SeqCst);
                    if let Some(value) = tree.get(&even).unwrap() {
                        assert!(u64::from_le_bytes(value[..8].try_into().unwrap()) >= least);
                    } else {
                        assert_eq!(least, 0);
                    }
                    let again: Vec<_> = held
                        .range(Bound::Unbounded, Bound::Unbounded)
                        .map(Result::unwrap)
                        .collect();
                    assert_eq!(check(&again), held_batch, "a view does not change");
                    if random.chance(20) {
                        (held, held_batch) = (view, batch);
                    }
                }
            });
        }
    });
    assert_eq!(tree.stats().views, 0);
}
