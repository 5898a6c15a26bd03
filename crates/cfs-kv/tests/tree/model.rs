//! The tree against a `BTreeMap`: random operations, views held across everything, crashes, both-way scans; with and
//! without storage that fails.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use cfs_kv::{Batch, BlockCache, RunError, Tree, TreeOptions, View, salvage};

use crate::{
    memory_store::{MemoryStore, NewestRun},
    random::{Random, for_seeds},
};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// Sizes so small that a few thousand entries make several levels.
pub fn small_options() -> TreeOptions {
    TreeOptions {
        memtable_bytes_max: 16 << 10,
        block_bytes: 512,
        run_bytes_max: 4 << 10,
        level1_bytes_max: 16 << 10,
        level_ratio: 3,
    }
}

fn random_key(random: &mut Random) -> Vec<u8> {
    let mut key = match random.below(4) {
        0 => b"directory/".to_vec(),
        1 => vec![0; random.below(4) as usize],
        2 => vec![0xff; random.below(3) as usize],
        _ => Vec::new(),
    };
    key.extend_from_slice(&random.below(700).to_be_bytes()[6..]);
    if random.chance(3) {
        key.resize(300, 7);
    }
    key
}

fn random_value(random: &mut Random) -> Vec<u8> {
    let len = match random.below(100) {
        0 => random.below(65_537),
        1..5 => random.below(2000),
        5..10 => 0,
        _ => random.below(60),
    };
    random.bytes(len)
}

fn random_bound(random: &mut Random) -> Bound<Vec<u8>> {
    match random.below(3) {
        0 => Bound::Unbounded,
        1 => Bound::Included(random_key(random)),
        _ => Bound::Excluded(random_key(random)),
    }
}

fn as_slice(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    bound.as_ref().map(Vec::as_slice)
}

/// Repeats until it succeeds; the storage fails once at most.
fn retry<T>(mut operation: impl FnMut() -> Result<T, RunError>) -> T {
    match operation() {
        Ok(result) => result,
        Err(RunError::Io(_)) => operation().expect("the storage fails once"),
        Err(other) => panic!("unexpected: {other}"),
    }
}

fn scan(
    view: &View,
    bounds: &(Bound<Vec<u8>>, Bound<Vec<u8>>),
    random: &mut Random,
) -> Result<Vec<(Vec<u8>, Vec<u8>)>, RunError> {
    let mut range = view.range(as_slice(&bounds.0), as_slice(&bounds.1));
    let (mut front, mut back) = (Vec::new(), Vec::new());
    let from_front = random.below(5) * 25;
    loop {
        let is_front = random.chance(from_front);
        let entry = if is_front {
            range.next()
        } else {
            range.next_back()
        };
        match entry.transpose()? {
            Some(entry) if is_front => front.push(entry),
            Some(entry) => back.push(entry),
            None => break,
        }
    }
    assert!(
        range.next().is_none() && range.next_back().is_none(),
        "it stays at its end"
    );
    front.extend(back.into_iter().rev());
    Ok(front)
}

fn check_view(view: &View, model: &Map, random: &mut Random) {
    for _ in 0..10 {
        let key = random_key(random);
        assert_eq!(
            retry(|| view.get(&key)).as_ref(),
            model.get(&key),
            "{key:?}"
        );
    }
    let bounds = (random_bound(random), random_bound(random));
    let in_order = match (&bounds.0, &bounds.1) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => true,
        (Bound::Excluded(low), Bound::Excluded(high)) => low < high,
        (
            Bound::Included(low) | Bound::Excluded(low),
            Bound::Included(high) | Bound::Excluded(high),
        ) => low <= high,
    };
    let expected: Vec<_> = if in_order {
        model
            .range::<[u8], _>((as_slice(&bounds.0), as_slice(&bounds.1)))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    } else {
        Vec::new()
    };
    let seed = random.number();
    let found = retry(|| scan(view, &bounds, &mut Random(seed)));
    assert!(
        found == expected,
        "range {bounds:?}: {} entries, expected {}",
        found.len(),
        expected.len()
    );
}

/// What the blocks of a tree's runs say, one after the other.
fn salvaged(store: &MemoryStore, newest: &NewestRun) -> Map {
    let runs = salvage::runs_oldest_first(&newest.tree_before).unwrap();
    let extents = runs.iter().flat_map(|run| &run.extents);
    let mut map = Map::new();
    for extent in extents.chain(&newest.extents) {
        for (block, bytes) in store.blocks_of(*extent) {
            let entries = salvage::entries_of_block(block, bytes).unwrap();
            for (key, value) in entries.into_iter().flatten() {
                match value {
                    Some(value) => map.insert(key, value),
                    None => map.remove(&key),
                };
            }
        }
    }
    map
}

struct World {
    store: Arc<MemoryStore>,
    cache: Arc<BlockCache>,
    tree: Tree,
    model: Map,
    views: Vec<(View, Map)>,
    /// The model at the last rotate, as long as flushing is under way; then the manifest's.
    rotated: Option<Map>,
    durable: (Vec<u8>, Map),
}

impl World {
    fn new() -> Self {
        let store = MemoryStore::new();
        let cache = Arc::new(BlockCache::new(64 << 10));
        let tree = Tree::create(store.clone(), cache.clone(), small_options());
        let manifest = tree.manifest();
        Self {
            store,
            cache,
            tree,
            model: Map::new(),
            views: Vec::new(),
            rotated: None,
            durable: (manifest, Map::new()),
        }
    }

    fn apply(&mut self, random: &mut Random) {
        let mut batch = Batch::new();
        let deletes = random.below(3) * 40;
        for _ in 0..random.below(40) {
            let key = random_key(random);
            if random.chance(deletes) {
                self.model.remove(&key);
                batch.delete(key);
            } else {
                let value = random_value(random);
                self.model.insert(key.clone(), value.clone());
                batch.put(key, value);
            }
        }
        self.tree.apply(&batch);
    }

    fn checkpoint(&mut self) {
        self.tree.rotate();
        self.rotated = Some(self.model.clone());
        self.finish_checkpoint();
    }

    fn finish_checkpoint(&mut self) {
        if let Some(rotated) = self.rotated.take() {
            self.store.take_newest();
            retry(|| self.tree.flush_rotated());
            if let Some(newest) = self.store.take_newest() {
                assert!(
                    salvaged(&self.store, &newest) == rotated,
                    "the newest run does not lead to the tree"
                );
            }
            self.durable = (self.tree.manifest(), rotated);
            self.store.superblock();
        }
    }

    fn crash(&mut self) {
        self.views.clear();
        let options = small_options();
        let open = || {
            Tree::open(
                self.store.clone(),
                self.cache.clone(),
                options.clone(),
                &self.durable.0,
            )
        };
        self.tree = match open() {
            Ok(tree) => tree,
            Err(cfs_kv::OpenError::Run(RunError::Io(_))) => open().expect("the storage fails once"),
            Err(error) => panic!("{error}"),
        };
        self.store.crash(&self.tree.extents());
        self.model = self.durable.1.clone();
        self.rotated = None;
    }

    fn step(&mut self, random: &mut Random) {
        match random.below(100) {
            0..55 => self.apply(random),
            55..60 => {
                if self.views.len() < 4 {
                    self.views.push((self.tree.view(), self.model.clone()));
                }
            }
            60..64 => {
                if !self.views.is_empty() {
                    let index = random.below(self.views.len() as u64) as usize;
                    self.views.swap_remove(index);
                }
            }
            64..70 => self.checkpoint(),
            70..73 => {
                // The manifest stands for the last rotate only once all is flushed.
                if self.rotated.is_none() {
                    self.tree.rotate();
                    self.rotated = Some(self.model.clone());
                }
            }
            73..76 => self.finish_checkpoint(),
            76..90 => {
                for _ in 0..random.below(8) {
                    retry(|| self.tree.compact_step());
                }
            }
            90 => self.crash(),
            _ => {
                check_view(&self.tree.view(), &self.model, random);
                for (view, model) in &self.views {
                    check_view(view, model, random);
                }
            }
        }
    }
}

#[test]
fn random_operations_agree_with_a_map() {
    for_seeds(30, |random| {
        let mut world = World::new();
        for _ in 0..400 {
            world.step(random);
        }
        finish(world, random);
    });
}

#[test]
fn a_failing_store_loses_nothing() {
    for_seeds(60, |random| {
        let mut world = World::new();
        for _ in 0..200 {
            world.store.fail_after(random.below(200));
            world.step(random);
            world.store.take_failed();
        }
        finish(world, random);
    });
}

/// Everything is there in the end, compaction comes to rest, and no storage has leaked.
fn finish(mut world: World, random: &mut Random) {
    world.finish_checkpoint();
    world.views.clear();
    world.checkpoint();
    while world.tree.compact_step().unwrap() {}
    check_view(&world.tree.view(), &world.model, random);
    let all: Map = world
        .tree
        .range(Bound::Unbounded, Bound::Unbounded)
        .map(Result::unwrap)
        .collect();
    assert!(all == world.model);
    let back: Map = world
        .tree
        .range(Bound::Unbounded, Bound::Unbounded)
        .rev()
        .map(Result::unwrap)
        .collect();
    assert!(back == world.model);
    for key in world.model.keys() {
        assert_eq!(world.tree.get(key).unwrap().as_ref(), world.model.get(key));
    }
    world.checkpoint();
    let mut live = world.tree.extents();
    live.sort_unstable();
    assert_eq!(
        live,
        world.store.used(),
        "storage in use is what the tree names"
    );
}
