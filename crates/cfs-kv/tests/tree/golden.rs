//! The bytes of a small tree, block by block and the manifest last, against those of format version 1. A difference
//! is a change of format: it needs a new version, a new golden file, and a decoder that still reads the old one.

use std::sync::Arc;

use cfs_kv::{Batch, BlockCache, Tree};

use crate::{memory_store::MemoryStore, model::small_options};

#[test]
fn a_small_tree() {
    let store = MemoryStore::new();
    let cache = Arc::new(BlockCache::new(1 << 20));
    let tree = Tree::create(store.clone(), cache, small_options());
    let mut batch = Batch::new();
    for number in 0..24u8 {
        batch.put([b"name/", &[number][..]].concat(), vec![number; 6]);
    }
    tree.apply(&batch);
    tree.rotate();
    tree.flush_rotated().expect("a run");
    let mut batch = Batch::new();
    batch.put(b"name/".to_vec(), Vec::new());
    batch.delete(b"name/\x05".to_vec());
    tree.apply(&batch);
    tree.rotate();
    tree.flush_rotated().expect("a run");
    let mut hex = String::new();
    for bytes in store.blocks().iter().chain([&tree.manifest()]) {
        for line in bytes.chunks(32) {
            hex.extend(line.iter().map(|byte| format!("{byte:02x}")));
            hex.push('\n');
        }
        hex.push('\n');
    }
    assert!(
        hex == include_str!("../../golden/v1/tree.hex"),
        "not what version 1 writes; it is now:\n{hex}"
    );
}
