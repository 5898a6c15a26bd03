//! Random operations on names and data against a file system made of maps, with restarts in between.
//!
//! Each operation must end as the model says, errno included, and every so often all of the tree is compared. A
//! failing run prints its seed; `CFS_SEED=<seed>` runs it alone.

mod comparison;
mod operations;
mod restored;
mod snapshots;
mod tree;

use std::collections::BTreeMap;
use std::sync::Arc;

use cfs_format::Ino;
use cfs_fs::{Caller, Fs, FsError, Snapshot, VolumeOptions};

use crate::pool::{Pool, Rng};
use tree::{Content, Model, Node, Outcome};

const CALLER: Caller = Caller {
    uid: 3,
    gid: 4,
    pid: 1,
    umask: 0o027,
};
const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "f", "g"];
const XATTRS: [&str; 3] = ["user.a", "user.b", "trusted.c"];

/// Both, and what is open.
struct Run {
    pool: Pool,
    fs: Arc<Fs>,
    /// The volume in which everything happens, and clones of its snapshots and of theirs; each with its path.
    worlds: Vec<(Ino, String)>,
    /// The one that operations are in.
    world: usize,
    model: Model,
    rng: Rng,
    open: Vec<Ino>,
    snapshots: Vec<Frozen>,
}

/// A snapshot, and what was there when it was taken.
struct Frozen {
    snapshot: Arc<Snapshot>,
    /// The root of the volume or clone.
    root: Ino,
    nodes: BTreeMap<Ino, Node>,
}

impl Frozen {
    fn ino(&self, ino: Ino) -> Ino {
        ino.in_view(self.snapshot.view).expect("small numbers")
    }
}

impl Run {
    fn new(seed: u64) -> Self {
        let pool = Pool::new(512);
        let fs = pool.open();
        let made = fs.volume_create(b"/m", &VolumeOptions::default(), &Caller::default());
        let root = made.expect("a volume").ino;
        Self {
            fs,
            pool,
            worlds: vec![(root, "/m".to_owned())],
            world: 0,
            model: Model::new(root),
            rng: Rng::new(seed),
            open: Vec::new(),
            snapshots: Vec::new(),
        }
    }

    #[track_caller]
    fn agree<T: std::fmt::Debug>(what: &str, is: &Result<T, FsError>, should_be: Outcome) {
        let is = match is {
            Ok(_) => Ok(()),
            Err(error) => Err(error.errno()),
        };
        assert_eq!(is, should_be, "{what}: file system left, model right");
    }

    fn root(&self) -> Ino {
        self.worlds[self.world].0
    }

    /// Inodes of the volume or clone that operations are in.
    fn numbers(&self) -> Vec<Ino> {
        of_world(&self.model.nodes, self.root())
    }

    fn any_ino(&mut self) -> Ino {
        let numbers = self.numbers();
        *self.rng.pick(&numbers)
    }

    /// Mostly a directory.
    fn any_directory(&mut self) -> Ino {
        let mut directories = self.numbers();
        directories.retain(|ino| self.model.is_directory(*ino));
        match self.rng.below(20) {
            0 => self.any_ino(),
            _ => *self.rng.pick(&directories),
        }
    }

    fn any_name(&mut self) -> &'static str {
        NAMES[self.rng.below(NAMES.len() as u64) as usize]
    }

    fn any_file(&mut self) -> Option<Ino> {
        let mut files = self.numbers();
        files.retain(|ino| matches!(self.model.nodes[ino].content, Content::File(_)));
        (!files.is_empty()).then(|| *self.rng.pick(&files))
    }

    /// Bytes with a period that chunks, extents and blocks do not share.
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let seed = self.rng.next() as u8;
        (0..len)
            .map(|index| seed.wrapping_add((index % 251) as u8))
            .collect()
    }

    fn step(&mut self) {
        self.world = self.rng.below(self.worlds.len() as u64) as usize;
        match self.rng.below(110) {
            107..109 => self.make_clone(),
            109 => self.remove_clone(),
            100..102 => self.take_snapshot(),
            102 => self.delete_snapshot(),
            103..105 => self.copy_from_snapshot(),
            105 => self.refuse_changes(),
            0..18 => self.make(),
            18..23 => self.link(),
            23..31 => self.remove(),
            31..44 => self.rename(),
            44..50 => self.attributes(),
            50..56 => self.open_or_release(),
            56..75 => self.write(),
            75..81 => self.truncate(),
            81..85 => self.punch(),
            85..89 => self.copy(),
            89..94 => self.read(),
            94..97 => {
                self.pool.sleep_ms(1000);
                self.fs.tick().expect("tick");
            }
            97 => {
                let ino = self.any_ino();
                self.fs.fsync(ino, false).expect("fsync");
            }
            _ => self.fs.syncfs().expect("syncfs"),
        }
    }

    fn restart(&mut self) {
        for ino in std::mem::take(&mut self.open) {
            self.fs.release(ino).expect("release");
            self.model.node(ino).opens -= 1;
            self.model.bury(ino);
        }
        if self.rng.below(2) == 0 {
            self.fs.close().expect("close");
        } else {
            self.fs.syncfs().expect("syncfs");
            self.pool = self.pool.power_cut(self.rng.next());
        }
        self.fs = self.pool.open();
        self.fs.tick().expect("tick");
    }
}

/// Whether an inode is in the volume or clone with this root.
fn is_of_world(ino: Ino, root: Ino) -> bool {
    ino.cloned().map(|(clone, _)| clone) == root.cloned().map(|(clone, _)| clone)
}

fn of_world(nodes: &BTreeMap<Ino, Node>, root: Ino) -> Vec<Ino> {
    let numbers = nodes.keys().copied();
    numbers.filter(|ino| is_of_world(*ino, root)).collect()
}

fn run(seed: u64, steps: u32) {
    eprintln!("seed {seed}");
    let mut run = Run::new(seed);
    for step in 1..=steps {
        run.step();
        if step % 200 == 0 {
            run.compare();
        }
        if step % 500 == 0 {
            run.restart();
            run.compare();
        }
    }
    for ino in std::mem::take(&mut run.open) {
        run.fs.release(ino).expect("release");
        run.model.node(ino).opens -= 1;
        run.model.bury(ino);
    }
    // What needs nothing else goes first.
    while !run.snapshots.is_empty() || run.worlds.len() > 1 {
        let fs = Arc::clone(&run.fs);
        run.snapshots.retain(|frozen| {
            let is_needed = !fs.clones_of(&frozen.snapshot).is_empty();
            assert_eq!(fs.snapshot_delete(&frozen.snapshot).is_err(), is_needed);
            is_needed
        });
        for world in (1..run.worlds.len()).rev() {
            run.world = world;
            run.remove_clone();
        }
    }
    for _ in 0..100 {
        run.fs.tick().expect("tick");
    }
    // The root of all and the volume's place beside what is in the volume.
    let inodes = run.model.nodes.len() as u64 + 2;
    assert_eq!(run.fs.statfs().inodes, inodes, "inodes left over");
    for _ in 0..100 {
        run.fs.tick().expect("tick");
    }
    run.compare();
    let report = run.fs.check(|_| true).expect("check").expect("to its end");
    assert_eq!(report.states, 0, "history without snapshots");
}

#[test]
fn random_operations_agree_with_the_model() {
    if let Ok(seed) = std::env::var("CFS_SEED") {
        return run(seed.parse().expect("CFS_SEED is a number"), 4000);
    }
    for seed in 1..=6 {
        run(seed, 1000);
    }
}
