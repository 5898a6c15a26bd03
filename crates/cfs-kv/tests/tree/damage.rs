//! Damaged blocks and manifests are reported or, where the format cannot tell, read as something else; nothing panics.
//! That a block is the one that was written is for the store to authenticate.

use std::{ops::Bound, sync::Arc};

use cfs_kv::{Batch, BlockCache, OpenError, RunError, Tree};

use crate::{
    memory_store::MemoryStore,
    model::small_options,
    random::{Random, for_seeds},
};

fn open(store: &Arc<MemoryStore>, manifest: &[u8]) -> Result<Tree, OpenError> {
    let cache = Arc::new(BlockCache::new(1 << 20));
    Tree::open(store.clone(), cache, small_options(), manifest)
}

fn keys() -> Vec<Vec<u8>> {
    let random = &mut Random(5);
    (0..60u32)
        .map(|number| [b"some/prefix/", &random.bytes(5)[..], &number.to_be_bytes()].concat())
        .collect()
}

/// A tree of some levels, and its manifest.
fn build(store: &Arc<MemoryStore>) -> Vec<u8> {
    let cache = Arc::new(BlockCache::new(1 << 20));
    let tree = Tree::create(store.clone(), cache, small_options());
    for (index, keys) in keys().chunks(12).enumerate() {
        let mut batch = Batch::new();
        for key in keys {
            batch.put(key.clone(), vec![index as u8; 20]);
        }
        batch.delete(keys[0].clone());
        tree.apply(&batch);
        tree.rotate();
        tree.flush_rotated().unwrap();
        if index == 3 {
            while tree.compact_step().unwrap() {}
        }
    }
    tree.manifest()
}

/// Reads everything in every way.
fn read_all(tree: &Tree) -> Result<Vec<(Vec<u8>, Vec<u8>)>, RunError> {
    for key in keys() {
        tree.get(&key)?;
    }
    let all: Vec<_> = tree
        .range(Bound::Unbounded, Bound::Unbounded)
        .collect::<Result<_, _>>()?;
    tree.range(Bound::Unbounded, Bound::Unbounded)
        .rev()
        .try_for_each(|entry| entry.map(|_| ()))?;
    while tree.compact_step()? {}
    Ok(all)
}

#[test]
fn any_flipped_bit_of_any_block() {
    let store = MemoryStore::new();
    let manifest = build(&store);
    let expected = read_all(&open(&store, &manifest).unwrap()).unwrap();
    assert_eq!(expected.len(), 55);
    let (mut reported, mut silent) = (0, 0);
    for (extent, block, bits) in store.block_bits() {
        for bit in 0..bits {
            store.flip(extent, block, bit);
            let outcome = open(&store, &manifest).map(|tree| read_all(&tree));
            store.flip(extent, block, bit);
            match outcome {
                Err(OpenError::Run(RunError::Corrupt { .. }))
                | Ok(Err(RunError::Corrupt { .. })) => reported += 1,
                Ok(Ok(_)) => silent += 1,
                Err(other) => panic!("{other}"),
                Ok(Err(other)) => panic!("{other}"),
            }
        }
    }
    // Most bits are those of values, keys and filters, in which anything may stand.
    assert!(reported > 1_000, "{reported} reported, {silent} not");
}

#[test]
fn any_flipped_bit_or_cut_of_a_manifest() {
    let store = MemoryStore::new();
    let manifest = build(&store);
    let extents = open(&store, &manifest).unwrap().extents();
    for len in 0..manifest.len() {
        assert!(
            matches!(
                open(&store, &manifest[..len]),
                Err(OpenError::Manifest { .. })
            ),
            "{len}"
        );
    }
    let longer = [&manifest[..], &[0]].concat();
    assert!(matches!(
        open(&store, &longer),
        Err(OpenError::Manifest { .. })
    ));
    // Nothing writes a sorted run of level 0 without a run; merging it would begin nowhere.
    let cache = Arc::new(BlockCache::new(0));
    let nothing = Tree::create(store.clone(), cache, small_options()).manifest();
    let (head, levels) = nothing.split_at(12);
    assert_eq!(
        levels, [0; 8],
        "counts of sorted runs in level 0 and of levels"
    );
    let hollow = [head, &[1, 0, 0, 0], &[0; 4], &[0; 4]].concat();
    assert!(matches!(
        open(&store, &hollow),
        Err(OpenError::Manifest { .. })
    ));
    for bit in 0..manifest.len() * 8 {
        let mut damaged = manifest.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        // What cannot be told from the manifest alone are the extents, and how the runs are divided into levels.
        if let Ok(tree) = open(&store, &damaged) {
            assert!(bit / 8 >= 12, "magic or version: {bit}");
            assert!(
                tree.extents() != extents || read_all(&tree).is_ok(),
                "{bit}"
            );
        }
    }
    let mut newer = manifest.clone();
    newer[8] = 9;
    let error = open(&store, &newer).err().expect("a newer version");
    assert!(error.to_string().contains("version 9"), "{error}");
}

#[test]
fn garbage_is_no_manifest() {
    let store = MemoryStore::new();
    let manifest = build(&store);
    for_seeds(2000, |random| {
        let mut bytes = manifest[..12].to_vec();
        let len = random.below(80);
        bytes.extend(random.bytes(len));
        assert!(open(&store, &bytes).is_err());
    });
}
