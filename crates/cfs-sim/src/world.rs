//! One seed's life of a pool.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cfs_device::{Device, FaultPlan, MemDevice, SegmentImage};
use cfs_format::superblock::{ChunkParams, KeySlot};
use cfs_format::{Ino, SEGMENT_BYTES, SegmentId};
use cfs_fs::{Fs, FsError, FsOptions};
use cfs_seal::block::Cipher;
use cfs_seal::codec::Codec;
use cfs_seal::keys::ClusterKey;
use cfs_store::{Health, Host, ReclaimFor, ReclaimProgress, Store, StoreOptions};
use zerocopy::FromZeros;

use crate::model::{Found, Model, NodeId};
use crate::rebuild::{self, Destroyed};
use crate::rng::Rng;
use crate::trouble::Trouble;
use crate::{damage, look};

/// One seed in so many has a pool that is small enough to be filled.
const SMALL_POOLS_EVERY: u64 = 16;
/// The smallest pool that there can be.
const SMALL_POOL_SEGMENTS: u32 = (cfs_store::POOL_BYTES_MIN / SEGMENT_BYTES as u64) as u32;

/// Time and "entropy" of the simulated machine.
pub(crate) struct SimHost {
    pub now_ns: AtomicU64,
    random: AtomicU64,
}

impl SimHost {
    pub fn new(seed: u64) -> Self {
        Self {
            now_ns: AtomicU64::new(1_800_000_000_000_000_000),
            random: AtomicU64::new(seed.wrapping_mul(0x1234_5678_9abc_def1)),
        }
    }
}

impl Host for SimHost {
    fn now_ns(&self) -> u64 {
        self.now_ns.fetch_add(1_000, Ordering::Relaxed)
    }

    fn fill_random(&self, buf: &mut [u8]) {
        let mut rng = Rng::new(self.random.fetch_add(1, Ordering::Relaxed));
        buf.fill_with(|| rng.next() as u8);
    }
}

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Operations.
    pub operations: u64,
    /// Power cuts.
    pub power_cuts: u64,
    /// Copies of the pool that were damaged and looked at.
    pub damaged_copies: u64,
    /// Copies of the pool that were rebuilt without their checkpoint.
    pub rebuilt_copies: u64,
    /// What happened, a line a step; empty unless asked for.
    pub trace: Vec<String>,
}

pub(crate) const KEY: [u8; 32] = [5; 32];
/// Old versions of segments that are kept to be put back.
const OLD_IMAGES_MAX: usize = 24;

/// A file that is open, perhaps without a name.
pub(crate) struct Handle {
    pub ino: Ino,
    pub node: NodeId,
}

pub(crate) struct World {
    pub rng: Rng,
    host: Arc<SimHost>,
    device: Arc<MemDevice>,
    pub model: Model,
    outcome: Outcome,
    tracing: bool,
    is_small: bool,
    pub trouble: Trouble,
    /// What the counts of calls were when the trouble began to be counted.
    pub handles: Vec<Handle>,
    old_images: BTreeMap<SegmentId, SegmentImage>,
}

/// Why a step ended early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The file system refused.
    Refused(FsError),
    /// It did something else than it should have.
    Wrong(String),
}

impl From<FsError> for Failure {
    fn from(error: FsError) -> Self {
        Self::Refused(error)
    }
}

/// The answer of what must not meet a lack of room, since what it writes was accepted, or it writes nothing.
pub(crate) fn accepted<T>(done: Result<T, FsError>) -> Result<T, Failure> {
    done.map_err(|error| match error {
        FsError::NoSpace => Failure::Wrong("no room for what was accepted".to_owned()),
        error => Failure::Refused(error),
    })
}

/// How a round ended.
enum End {
    /// The next one may begin.
    On,
    /// Nothing can be said of this pool any more.
    Over,
}

/// The command that runs one seed again and tells what it does.
#[must_use]
pub fn replay_command(seed: u64) -> String {
    format!("cargo run --release -p cfs-sim -- --seed {seed} --trace")
}

/// Runs one seed. With `tracing` the trace is in the outcome, and of a seed that fails on the standard output.
///
/// # Errors
/// A sentence that says what did not hold, and after which operation.
pub fn run(seed: u64, tracing: bool) -> Result<Outcome, String> {
    let mut world = World::new(seed, tracing);
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| world.live()));
    let reason = match result {
        Ok(Ok(())) => return Ok(world.outcome),
        Ok(Err(reason)) => reason,
        Err(panic) => panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .map_or_else(|| "panicked".to_owned(), |text| format!("panicked: {text}")),
    };
    for line in &world.outcome.trace {
        println!("{line}");
    }
    Err(format!(
        "seed {seed}, operation {}, {:?}: {reason}",
        world.outcome.operations, world.trouble
    ))
}

impl World {
    fn new(seed: u64, tracing: bool) -> Self {
        let mut rng = Rng::new(seed);
        let is_small = seed % SMALL_POOLS_EVERY == SMALL_POOLS_EVERY - 1;
        let segments = match is_small {
            true => SMALL_POOL_SEGMENTS,
            false => 72 + rng.below(120) as u32,
        };
        let device = MemDevice::new(segments);
        if !seed.is_multiple_of(2) {
            device.hide_room();
        }
        Self {
            host: Arc::new(SimHost::new(seed)),
            device: Arc::new(device),
            model: Model::new(),
            outcome: Outcome::default(),
            tracing,
            rng,
            is_small,
            trouble: Trouble::None,
            handles: Vec::new(),
            old_images: BTreeMap::new(),
        }
    }

    fn live(&mut self) -> Result<(), String> {
        format(&self.device, &self.host)?;
        for _ in 0..3 + self.rng.below(4) {
            match self.round()? {
                End::On => {}
                End::Over => break,
            }
        }
        Ok(())
    }

    pub fn trace(&mut self, line: impl FnOnce() -> String) {
        if self.tracing {
            let counts = self.device.counts();
            let line = line();
            self.outcome.trace.push(format!(
                "{:6} {line} [device: {} calls, {} reads, {} writes, {} flushes]",
                self.outcome.operations, counts.calls, counts.reads, counts.writes, counts.flushes
            ));
        }
    }

    /// Lets time pass.
    pub fn pass_ns(&self, ns: u64) {
        self.host.now_ns.fetch_add(ns, Ordering::Relaxed);
    }

    fn open(&self, device: &Arc<MemDevice>) -> Result<Arc<Fs>, String> {
        open(device, &self.host)
    }

    /// Cuts the power: the device becomes what would be found, and what is in memory is gone.
    fn cut_power(&mut self) {
        self.outcome.power_cuts += 1;
        self.device = Arc::new(self.device.power_cut(self.rng.next()));
        self.trace(|| "power cut".to_owned());
    }

    /// Whether a flush has lied, and no flush after it made that good.
    fn is_lied_to(&self) -> bool {
        matches!(self.trouble, Trouble::LyingFlush(nth) if self.device.counts().flushes == nth)
    }

    fn round(&mut self) -> Result<End, String> {
        self.trouble = match self.is_small && self.rng.one_in(2) {
            true => Trouble::FullPool,
            false => Trouble::choose(&mut self.rng),
        };
        self.trace(|| "a new round".to_owned());
        let trouble = self.trouble;
        self.trace(|| format!("trouble: {trouble:?}"));
        let early = self.trouble.may_begin_early() && self.rng.one_in(4);
        if early {
            self.device.set_faults(self.trouble.plan(&self.device));
        }
        let fs = match self.open(&self.device) {
            Ok(fs) => fs,
            Err(reason) if early && !matches!(self.trouble, Trouble::LyingFlush(_)) => {
                self.trace(|| reason);
                self.cut_power();
                return Ok(End::On);
            }
            Err(reason) => return Err(reason),
        };
        if !early {
            let found = look::look(&fs)?;
            self.model.recover(&found)?;
            self.check_snapshots(&fs, true)?;
            look::check(&fs)?;
            self.trace(|| format!("opened, {} names", found.len()));
            self.device.set_faults(self.trouble.plan(&self.device));
        } else {
            // What is there is not known before it has been looked at; the trouble may go on meanwhile.
            match look::look(&fs) {
                Ok(found) => self.model.recover(&found)?,
                Err(reason) if self.trouble.may_fail_reading() => {
                    self.trace(|| reason);
                    drop(fs);
                    let over = self.is_lied_to();
                    self.cut_power();
                    return Ok(if over { End::Over } else { End::On });
                }
                Err(reason) => return Err(reason),
            }
        }
        if self.trouble == Trouble::FullPool && self.is_small {
            self.stuff(&fs)?;
        }
        let steps = match self.trouble {
            Trouble::FullPool => 60 + self.rng.below(120),
            _ => 20 + self.rng.below(200),
        };
        for _ in 0..steps {
            self.outcome.operations += 1;
            let done = self.step(&fs);
            let is_half_restored = self.model.restoring.is_some();
            match done {
                Ok(()) => {}
                Err(Failure::Wrong(reason)) => return Err(reason),
                Err(Failure::Refused(error)) => {
                    self.trace(|| format!("refused: {error}"));
                    if let Health::ReadOnly { reason } = fs.store().health() {
                        if !self.trouble.may_end_writing() {
                            return Err(format!("went read-only: {reason}"));
                        }
                        break;
                    }
                    let expected = match &error {
                        FsError::NoSpace | FsError::Quota => true,
                        FsError::Read(_) | FsError::Io(_) => self.trouble.may_fail_reading(),
                        _ => false,
                    };
                    if !expected {
                        return Err(format!("refused: {error}"));
                    }
                }
            }
            if is_half_restored {
                // What is there is known when it is looked at again.
                break;
            }
        }
        if let Health::ReadOnly { reason } = fs.store().health()
            && !self.trouble.may_end_writing()
        {
            return Err(format!("went read-only: {reason}"));
        }
        self.end_round(fs)
    }

    fn end_round(&mut self, fs: Arc<Fs>) -> Result<End, String> {
        let was_lied_to = self.is_lied_to();
        let powerless =
            matches!(self.trouble, Trouble::PowerOff(call) if self.device.counts().calls >= call);
        let good = fs.store().health() == Health::Good && !powerless;
        if good && self.trouble.has_ended_writing(&self.device) {
            return Err("goes on writing, though the device has failed to".to_owned());
        }
        if !powerless {
            // What was lost stays lost; nothing more goes wrong.
            self.device.set_faults(FaultPlan::default());
            // Reading goes on also on a pool that went read-only.
            let found = look::look(&fs)?;
            self.model.check_now(&found)?;
            self.check_snapshots(&fs, false)?;
        }
        if good {
            look::check(&fs)?;
            self.check_quotas(&fs)?;
            self.check_handles(&fs)?;
        }
        let is_half_restored = self.model.restoring.is_some();
        if good && !was_lied_to && !is_half_restored && self.rng.one_in(2) {
            self.settle(&fs)?;
        }
        if good && !was_lied_to && !is_half_restored && self.rng.one_in(3) {
            fs.close().map_err(|error| format!("close: {error}"))?;
            self.model.sync_all();
            self.trace(|| "closed".to_owned());
        }
        drop(fs);
        self.handles.clear();
        self.cut_power();
        if was_lied_to {
            self.look_at_damaged("a flush lied")?;
            return Ok(End::Over);
        }
        if self.rng.one_in(3) {
            self.damage_copy()?;
        }
        if self.rng.one_in(8) && !is_half_restored {
            self.rebuild_copy()?;
        }
        self.keep_images();
        Ok(End::On)
    }

    /// Everything is written, orphans are reaped, and the accounts must then be exact.
    fn settle(&mut self, fs: &Fs) -> Result<(), String> {
        for handle in std::mem::take(&mut self.handles) {
            fs.release(handle.ino)
                .map_err(|error| format!("release: {error}"))?;
        }
        // A failure of before is reported once more.
        if let Err(error) = fs.syncfs() {
            if matches!(error, FsError::NoSpace) {
                return Err("no room for what was accepted, in the end".to_owned());
            }
            fs.syncfs()
                .map_err(|error| format!("syncfs after all trouble: {error}"))?;
        }
        self.model.sync_all();
        look::check_space(fs)?;
        for _ in 0..3 {
            self.pass_ns(3_000_000_000);
            fs.tick()
                .map_err(|error| format!("tick after all trouble: {error}"))?;
        }
        look::check(fs)?;
        self.trace(|| "settled".to_owned());
        Ok(())
    }

    fn check_handles(&mut self, fs: &Fs) -> Result<(), String> {
        for handle in &self.handles {
            let content = self.model.content(handle.node);
            let there = look::content(fs, handle.ino, content.len() + 1)
                .map_err(|error| format!("reading open inode {}: {error}", handle.ino))?;
            if there != *content {
                return Err(format!("open inode {} reads wrong", handle.ino));
            }
        }
        Ok(())
    }

    /// Damages a copy of the pool, which must then be refused, or hold nothing that is wrong.
    fn damage_copy(&mut self) -> Result<(), String> {
        let copy = Arc::new(self.device.power_cut(0));
        let old: Vec<_> = self
            .old_images
            .iter()
            .map(|(segment, image)| (*segment, image.clone()))
            .collect();
        let what = damage::damage(&copy, &old, &mut self.rng);
        self.trace(|| format!("on a copy: {what}"));
        let kept = std::mem::replace(&mut self.device, copy);
        let result = self.look_at_damaged(&what);
        self.device = kept;
        result
    }

    /// Destroys the checkpoint of a copy of the pool. What is rebuilt must be what is opened.
    fn rebuild_copy(&mut self) -> Result<(), String> {
        let destroyed = Destroyed::any(&mut self.rng);
        let opened = world_of_copy(&self.device, &self.host)?;
        let copy = Arc::new(self.device.power_cut(0));
        self.trace(|| format!("rebuilding a copy: {destroyed:?}"));
        let superblock = rebuild::destroy(&copy, &self.host, destroyed)?;
        let rebuilt = match self::rebuild(&copy, &self.host, Some(&superblock)) {
            // New tables take room beside the old ones, which a pool that is full to the end of its device has not.
            Err(reason) if self.is_small && reason.contains("the pool has no room") => {
                self.trace(|| reason);
                return Ok(());
            }
            rebuilt => rebuilt?,
        };
        look::check(&rebuilt.fs).map_err(|reason| {
            format!(
                "rebuilt ({destroyed:?}): {reason}; {:?}, {:?}",
                rebuilt.report, rebuilt.findings
            )
        })?;
        let found = look::look(&rebuilt.fs)?;
        let paths = opened.keys().chain(found.keys());
        let mut differing = paths.filter(|path| opened.get(*path) != found.get(*path));
        let moments = (self.model.moment_of(&found), self.model.moment_of(&opened));
        // Of a command that an opening leaves out after a power cut, the content may also lie elsewhere.
        let is_newer = matches!(moments, (Ok(found), Ok(opened)) if found > opened);
        if let Some(path) = differing.next()
            && !is_newer
        {
            let told = |found: &Found| match found.get(path) {
                Some(node) => node.to_string(),
                None => "nothing".to_owned(),
            };
            return Err(format!(
                "rebuilt ({destroyed:?}), {path} is {} instead of {}; {:?}, {:?}",
                told(&found),
                told(&opened),
                rebuilt.report,
                rebuilt.findings
            ));
        }
        self.outcome.rebuilt_copies += 1;
        Ok(())
    }

    fn look_at_damaged(&mut self, what: &str) -> Result<(), String> {
        self.outcome.damaged_copies += 1;
        match self.open(&self.device) {
            Err(reason) => self.trace(|| reason),
            Ok(fs) => {
                let survived = damage::survive(&fs, &self.model, &mut self.rng)
                    .map_err(|reason| format!("{what}: {reason}"))?;
                self.trace(|| survived);
            }
        }
        Ok(())
    }

    /// Remembers what some segments hold now.
    fn keep_images(&mut self) {
        for (segment, _) in self.device.filled_blocks() {
            if self.old_images.len() < OLD_IMAGES_MAX && self.rng.one_in(2) {
                let image = self.device.segment_image(segment);
                self.old_images.entry(segment).or_insert(image);
            }
        }
    }

    fn step(&mut self, fs: &Fs) -> Result<(), Failure> {
        match self.rng.below(50) {
            49 => self.change_about_edge(fs),
            46 | 47 => self.make_clone(fs),
            48 => self.remove_volume(fs),
            44 => self.make_volume(fs),
            45 => self.remove_volume(fs),
            40 => self.take_snapshot(fs),
            41 => self.delete_snapshot(fs),
            42 | 43 => self.copy_from_snapshot(fs),
            39 => self.restore(fs),
            0..=2 => self.create(fs),
            3 => self.mkdir(fs),
            4 => self.make_special(fs),
            5 | 6 => self.remove(fs),
            7 | 8 => self.rename(fs),
            9 => self.exchange(fs),
            10 => self.link(fs),
            11 => self.chmod(fs),
            12 => self.change_xattr(fs),
            13 => self.open_or_release(fs),
            14 => self.use_handle(fs),
            15..=19 => self.write(fs),
            20 => self.replace(fs),
            21 => self.replace_by_rename(fs),
            22 => self.truncate(fs),
            23 | 24 => self.allocate(fs),
            25 => self.copy(fs),
            26 => self.close_file(fs),
            27 => self.remove_many(fs),
            28..=30 => self.read(fs),
            31 => self.fsync(fs),
            32 => self.syncfs(fs),
            33 => self.checkpoint(fs),
            34 if self.trouble == Trouble::FullPool => self.fill(fs),
            34 => self.make_room(fs),
            35 if self.trouble == Trouble::FullPool => self.fill(fs),
            36 => self.seal_again(fs),
            _ => self.tick(fs),
        }
    }

    fn fsync(&mut self, fs: &Fs) -> Result<(), Failure> {
        let Some((path, node)) = self.any_file() else {
            return Ok(());
        };
        self.trace(|| format!("fsync {path}"));
        accepted(fs.fsync(ino(fs, &path)?, false))?;
        self.model.sync_file(node);
        Ok(())
    }

    pub fn syncfs(&mut self, fs: &Fs) -> Result<(), Failure> {
        self.trace(|| "syncfs".to_owned());
        accepted(fs.syncfs())?;
        self.model.sync_all();
        Ok(())
    }

    fn checkpoint(&mut self, fs: &Fs) -> Result<(), Failure> {
        self.trace(|| "checkpoint".to_owned());
        fs.store().checkpoint().map_err(FsError::from)?;
        self.model.sync_log();
        Ok(())
    }

    fn make_room(&mut self, fs: &Fs) -> Result<(), Failure> {
        self.trace(|| "reclaim".to_owned());
        fs.store().make_room(64 << 20).map_err(FsError::from)?;
        Ok(())
    }

    /// A pass that gives every chunk a new key, at once and perhaps cut short, or in the background.
    fn seal_again(&mut self, fs: &Fs) -> Result<(), Failure> {
        let codec = match self.rng.below(4) {
            0 => None,
            1 => Some(Codec::None),
            2 => Some(Codec::Lz4),
            _ => Some(Codec::Zstd(1)),
        };
        let what_for = ReclaimFor::NewSeals(codec);
        let segments_max = self.rng.below(8);
        self.trace(|| format!("seal again, {codec:?}, {segments_max} segments"));
        if segments_max == 0 {
            fs.store().start_reclaim(what_for).map_err(FsError::from)?;
            return Ok(());
        }
        let mut go_on = |progress: ReclaimProgress| match progress.done.segments < segments_max {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        };
        let done = fs.store().reclaim_now(what_for, &mut go_on);
        done.map_err(FsError::from)?;
        Ok(())
    }

    fn tick(&mut self, fs: &Fs) -> Result<(), Failure> {
        for _ in 0..1 + self.rng.below(4) {
            let ns = 1 << (20 + self.rng.below(15));
            self.pass_ns(ns);
            self.trace(|| format!("tick after {ns} ns"));
            fs.tick()?;
        }
        Ok(())
    }
}

/// What is in a copy of a pool when it is opened.
fn world_of_copy(device: &Arc<MemDevice>, host: &Arc<SimHost>) -> Result<Found, String> {
    look::look(&*open(&Arc::new(device.power_cut(0)), host)?)
}

/// Makes a pool.
pub(crate) fn format(device: &Arc<MemDevice>, host: &Arc<SimHost>) -> Result<(), String> {
    let device: Arc<dyn Device> = Arc::<MemDevice>::clone(device);
    let host: Arc<dyn Host> = Arc::<SimHost>::clone(host);
    let options = cfs_store::FormatOptions {
        cipher: Cipher::Aes256Gcm,
        // Small chunks, so that small files have several.
        chunk: ChunkParams {
            min: (4 << 10).into(),
            avg: (8 << 10).into(),
            max: (16 << 10).into(),
            algorithm: 1.into(),
        },
        pool_bytes_max: 0,
        domain_secret: None,
    };
    Store::format(
        &device,
        &host,
        ClusterKey::from_bytes(KEY),
        KeySlot::new_zeroed(),
        &options,
    )
    .map_err(|error| format!("format: {error}"))?;
    let store = Store::open(
        device,
        Arc::clone(&host),
        |_| Ok(ClusterKey::from_bytes(KEY)),
        StoreOptions::default(),
        cfs_fs::replay,
    )
    .map_err(|error| format!("open for format: {error}"))?;
    Fs::format(
        &store,
        &*host,
        &cfs_fs::FormatOptions {
            uid: 0,
            gid: 0,
            codec: cfs_format::segment::CODEC_LZ4,
            codec_level: 0,
        },
    )
    .map_err(|error| format!("format: {error}"))?;
    store
        .close()
        .map_err(|error| format!("close after format: {error}"))
}

/// Opens a pool, with little memory.
pub(crate) fn open(device: &Arc<MemDevice>, host: &Arc<SimHost>) -> Result<Arc<Fs>, String> {
    open_with(device, host, options())
}

/// Opens a pool that makes no checkpoint of itself for the little that is written to it.
pub(crate) fn open_without_checkpoints(
    device: &Arc<MemDevice>,
    host: &Arc<SimHost>,
) -> Result<Arc<Fs>, String> {
    let (store_options, options) = options();
    let store_options = StoreOptions {
        memtable_bytes_max: 32 << 20,
        ..store_options
    };
    open_with(device, host, (store_options, options))
}

fn open_with(
    device: &Arc<MemDevice>,
    host: &Arc<SimHost>,
    (store_options, options): (StoreOptions, FsOptions),
) -> Result<Arc<Fs>, String> {
    Fs::open_pool(
        Arc::<MemDevice>::clone(device),
        Arc::<SimHost>::clone(host),
        |_| Ok(ClusterKey::from_bytes(KEY)),
        store_options,
        options,
    )
    .map_err(|error| format!("open: {error}"))
}

fn options() -> (StoreOptions, FsOptions) {
    (
        StoreOptions {
            lanes: 1,
            block_cache_bytes: 1 << 20,
            memtable_bytes_max: 256 << 10,
            ..StoreOptions::default()
        },
        FsOptions {
            // No thread: who writes seals.
            seal_threads: 0,
            // So much that a file never leaves memory in parts: then what a crash leaves is a whole version.
            dirty_bytes_max: 64 << 20,
            hot_bytes: 1 << 20,
            ..FsOptions::default()
        },
    )
}

/// Rebuilds a pool from its segments, with the memory of `open`.
pub(crate) fn rebuild(
    device: &Arc<MemDevice>,
    host: &Arc<SimHost>,
    superblock_copy: Option<&[u8]>,
) -> Result<cfs_fs::Rebuilt, String> {
    let rebuilt = Fs::rebuild_pool(
        Arc::<MemDevice>::clone(device),
        Arc::<SimHost>::clone(host),
        superblock_copy,
        |_| Ok(ClusterKey::from_bytes(KEY)),
        options(),
        |_| true,
    );
    rebuilt
        .map_err(|error| format!("rebuild: {error}"))?
        .ok_or_else(|| "the rebuild ended early".to_owned())
}

pub(crate) fn ino(fs: &Fs, path: &str) -> Result<Ino, FsError> {
    Ok(fs.resolve(path.as_bytes())?.ino)
}
