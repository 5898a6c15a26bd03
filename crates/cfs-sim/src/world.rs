//! One seed's life of a pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cfs_device::{Device, FaultPlan, MemDevice};
use cfs_format::Ino;
use cfs_format::superblock::{ChunkParams, KeySlot};
use cfs_fs::{AllocateMode, Caller, Fs, FsError, FsOptions, RenameFlags, SetAttr};
use cfs_seal::block::Cipher;
use cfs_seal::keys::ClusterKey;
use cfs_store::{Health, Host, Store, StoreOptions};
use zerocopy::FromZeros;

use crate::model::{Found, FoundNode, Model, Node};
use crate::rng::Rng;

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Operations.
    pub operations: u64,
    /// Power cuts.
    pub power_cuts: u64,
    /// What happened, a line a step; empty unless asked for.
    pub trace: Vec<String>,
}

const KEY: [u8; 32] = [5; 32];

struct World {
    rng: Rng,
    host: Arc<SimHost>,
    device: Arc<MemDevice>,
    model: Model,
    outcome: Outcome,
    tracing: bool,
    /// Why the run has failed.
    seed: u64,
}

/// Runs one seed.
///
/// # Errors
/// A sentence that says what did not hold, and after which operation.
pub fn run(seed: u64, tracing: bool) -> Result<Outcome, String> {
    let mut rng = Rng::new(seed);
    let segments = 96 + rng.below(160) as u32;
    let mut world = World {
        host: Arc::new(SimHost::new(seed)),
        device: Arc::new(MemDevice::new(segments)),
        model: Model::new(),
        outcome: Outcome {
            operations: 0,
            power_cuts: 0,
            trace: Vec::new(),
        },
        tracing,
        rng,
        seed,
    };
    format(&world.device, &world.host)?;
    let rounds = 2 + world.rng.below(4);
    for round in 0..rounds {
        world.round().map_err(|error| {
            format!(
                "seed {seed}, round {round}, operation {}: {error}",
                world.outcome.operations
            )
        })?;
    }
    Ok(world.outcome)
}

impl World {
    fn trace(&mut self, line: impl FnOnce() -> String) {
        if self.tracing {
            let counts = self.device.counts();
            let line = line();
            self.outcome.trace.push(format!(
                "{:6} {line} [device: {} reads, {} writes, {} flushes]",
                self.outcome.operations, counts.reads, counts.writes, counts.flushes
            ));
        }
    }

    fn round(&mut self) -> Result<(), String> {
        let fs = open(&self.device, &self.host)?;
        let found = look(&fs)?;
        self.model.recover(&found)?;
        check(&fs)?;
        self.trace(|| format!("opened, {} names", found.len()));
        let faulty = self.rng.one_in(2);
        if faulty {
            let nth = 1 + self.rng.below(60);
            let mut plan = FaultPlan::default();
            if self.rng.one_in(2) {
                plan.failing_flushes.push(nth);
            } else {
                plan.failing_writes.push(nth);
            }
            self.device.set_faults(plan);
        }
        for _ in 0..20 + self.rng.below(200) {
            self.outcome.operations += 1;
            match self.step(&fs) {
                Ok(()) => {}
                Err(Failure::Wrong(reason)) => return Err(reason),
                Err(Failure::Refused(error)) => {
                    let read_only = matches!(fs.store().health(), Health::ReadOnly { .. });
                    self.trace(|| format!("refused: {error}"));
                    if read_only {
                        if !faulty {
                            return Err(format!("went read-only without a fault: {error}"));
                        }
                        break;
                    }
                    if !matches!(error, FsError::NoSpace) {
                        return Err(format!("refused: {error}"));
                    }
                }
            }
        }
        let good = fs.store().health() == Health::Good;
        if good {
            let found = look(&fs)?;
            self.model.check_now(&found)?;
            check(&fs)?;
        }
        self.device.set_faults(FaultPlan::default());
        if good && self.rng.one_in(3) {
            fs.close().map_err(|error| format!("close: {error}"))?;
            self.model.sync_all();
            self.trace(|| "closed".to_owned());
        }
        drop(fs);
        self.outcome.power_cuts += 1;
        self.device = Arc::new(self.device.power_cut(self.rng.next()));
        self.trace(|| "power cut".to_owned());
        Ok(())
    }

    fn step(&mut self, fs: &Fs) -> Result<(), Failure> {
        let caller = Caller::default();
        match self.rng.below(24) {
            0 | 1 => {
                let path = self.new_path();
                self.trace(|| format!("create {path}"));
                let (parent, name) = self.parent(fs, &path)?;
                fs.create(parent, name.as_bytes(), 0o644, &caller)?;
                self.model.add(&path, Node::File(vec![Arc::default()]));
            }
            2 => {
                let path = self.new_path();
                self.trace(|| format!("mkdir {path}"));
                let (parent, name) = self.parent(fs, &path)?;
                fs.mkdir(parent, name.as_bytes(), 0o755, &caller)?;
                self.model.add(&path, Node::Directory);
            }
            3 => {
                let path = self.new_path();
                self.trace(|| format!("symlink {path}"));
                let (parent, name) = self.parent(fs, &path)?;
                let target = format!("../{name}/elsewhere");
                fs.symlink(parent, name.as_bytes(), target.as_bytes(), &caller)?;
                self.model.add(&path, Node::Symlink(target));
            }
            4..=8 => self.write(fs)?,
            9 => self.replace(fs)?,
            10 => self.truncate(fs)?,
            11 => self.punch(fs)?,
            12 => self.copy(fs)?,
            13 | 14 => self.remove(fs)?,
            15 => self.rename(fs)?,
            16 => self.link(fs)?,
            17 => {
                let Some(path) = self.any_file() else {
                    return Ok(());
                };
                self.trace(|| format!("fsync {path}"));
                fs.fsync(ino(fs, &path)?, false)?;
                self.model.sync_names();
                self.model.sync_file(&path);
            }
            18 => {
                self.trace(|| "syncfs".to_owned());
                fs.syncfs()?;
                self.model.sync_all();
            }
            19 => {
                self.trace(|| "checkpoint".to_owned());
                fs.store().checkpoint().map_err(FsError::from)?;
                self.model.sync_names();
            }
            20 | 21 => {
                let ns = 1 << (20 + self.rng.below(14));
                self.host.now_ns.fetch_add(ns, Ordering::Relaxed);
                self.trace(|| format!("tick after {ns} ns"));
                fs.tick()?;
            }
            _ => self.read(fs)?,
        }
        Ok(())
    }

    fn new_path(&mut self) -> String {
        let directories = self.model.directories();
        let directory = &directories[self.rng.below(directories.len() as u64) as usize];
        loop {
            let name = format!("n{}", self.rng.below(60));
            let path = if directory.is_empty() {
                name
            } else {
                format!("{directory}/{name}")
            };
            if !self.model.names.contains_key(&path) {
                return path;
            }
        }
    }

    fn any_file(&mut self) -> Option<String> {
        let files = self.model.files();
        if files.is_empty() {
            return None;
        }
        Some(files[self.rng.below(files.len() as u64) as usize].clone())
    }

    fn any_name(&mut self) -> Option<String> {
        let count = self.model.names.len() as u64;
        if count == 0 {
            return None;
        }
        let index = self.rng.below(count) as usize;
        self.model.names.keys().nth(index).cloned()
    }

    /// Bytes of which many come again, so that chunks are shared, and some shrink.
    fn bytes(&mut self, len: u64) -> Vec<u8> {
        let mut source = Rng::new(self.rng.below(12));
        let shrinks = self.rng.one_in(2);
        (0..len)
            .map(|_| {
                let byte = source.next() as u8;
                if shrinks { byte & 3 } else { byte }
            })
            .collect()
    }

    fn parent(&self, fs: &Fs, path: &str) -> Result<(Ino, String), Failure> {
        match path.rsplit_once('/') {
            None => Ok((Ino::ROOT, path.to_owned())),
            Some((directory, name)) => Ok((ino(fs, directory)?, name.to_owned())),
        }
    }

    fn write(&mut self, fs: &Fs) -> Result<(), Failure> {
        let Some(path) = self.any_file() else {
            return Ok(());
        };
        let mut content = self.model.content(&path).expect("a file").to_vec();
        let offset = match self.rng.below(4) {
            0 => content.len() as u64,
            1 => self.rng.length(300 << 10),
            _ => self.rng.below(content.len() as u64 + 1),
        };
        let len = 1 + self.rng.length(100 << 10);
        let data = self.bytes(len);
        self.trace(|| format!("write {path} at {offset}, {len} bytes"));
        let written = fs.write(ino(fs, &path)?, offset, &data, false)?;
        let end = offset as usize + written;
        if content.len() < end {
            content.resize(end, 0);
        }
        content[offset as usize..end].copy_from_slice(&data[..written]);
        self.model.set_content(&path, content);
        Ok(())
    }

    /// Truncates to nothing, writes, and closes: after a crash the old or the new content, nothing between.
    fn replace(&mut self, fs: &Fs) -> Result<(), Failure> {
        let Some(path) = self.any_file() else {
            return Ok(());
        };
        let len = 1 + self.rng.length(60 << 10);
        let data = self.bytes(len);
        self.trace(|| format!("replace {path}, {len} bytes"));
        let ino = ino(fs, &path)?;
        let old = self.model.content(&path).expect("a file");
        fs.setattr(
            ino,
            &SetAttr {
                size: Some(0),
                ..SetAttr::default()
            },
        )?;
        let written = match fs.write(ino, 0, &data, false) {
            Ok(written) => written,
            Err(error) => {
                self.model.set_content(&path, Vec::new());
                return Err(error.into());
            }
        };
        let whole = written == data.len();
        if !whole && !old.is_empty() {
            self.model.set_content(&path, Vec::new());
        }
        self.model.set_content(&path, data[..written].to_vec());
        fs.flush(ino)?;
        Ok(())
    }

    fn truncate(&mut self, fs: &Fs) -> Result<(), Failure> {
        let Some(path) = self.any_file() else {
            return Ok(());
        };
        let mut content = self.model.content(&path).expect("a file").to_vec();
        let size = match self.rng.below(3) {
            0 => self.rng.length(400 << 10),
            _ => self.rng.below(content.len() as u64 + 1),
        };
        self.trace(|| format!("truncate {path} to {size}"));
        fs.setattr(
            ino(fs, &path)?,
            &SetAttr {
                size: Some(size),
                ..SetAttr::default()
            },
        )?;
        content.resize(size as usize, 0);
        self.model.set_content(&path, content);
        Ok(())
    }

    fn punch(&mut self, fs: &Fs) -> Result<(), Failure> {
        let Some(path) = self.any_file() else {
            return Ok(());
        };
        let mut content = self.model.content(&path).expect("a file").to_vec();
        let offset = self.rng.below(content.len() as u64 + 1);
        let len = 1 + self.rng.length(64 << 10);
        self.trace(|| format!("punch {path} at {offset}, {len} bytes"));
        let mode = AllocateMode::from_flags(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
            .expect("a mode that Linux has");
        fs.fallocate(ino(fs, &path)?, mode, offset, len, false)?;
        let end = ((offset + len) as usize).min(content.len());
        if (offset as usize) < end {
            content[offset as usize..end].fill(0);
        }
        self.model.set_content(&path, content);
        Ok(())
    }

    fn copy(&mut self, fs: &Fs) -> Result<(), Failure> {
        let (Some(from), Some(to)) = (self.any_file(), self.any_file()) else {
            return Ok(());
        };
        if self.model.names[&from] == self.model.names[&to] {
            return Ok(());
        }
        let source = self.model.content(&from).expect("a file");
        let mut target = self.model.content(&to).expect("a file").to_vec();
        let source_offset = self.rng.below(source.len() as u64 + 1);
        let target_offset = self.rng.below(target.len() as u64 + 1);
        let len = 1 + self.rng.length(64 << 10);
        self.trace(|| {
            format!("copy {from} at {source_offset} to {to} at {target_offset}, {len} bytes")
        });
        let copied = fs.copy_range(
            ino(fs, &from)?,
            source_offset,
            ino(fs, &to)?,
            target_offset,
            len,
        )?;
        let expected = len.min(source.len() as u64 - source_offset);
        if copied != expected {
            return Err(Failure::Wrong(format!(
                "copied {copied} bytes instead of {expected}"
            )));
        }
        let end = (target_offset + copied) as usize;
        if copied > 0 && target.len() < end {
            target.resize(end, 0);
        }
        target[target_offset as usize..end]
            .copy_from_slice(&source[source_offset as usize..(source_offset + copied) as usize]);
        self.model.set_content(&to, target);
        Ok(())
    }

    fn remove(&mut self, fs: &Fs) -> Result<(), Failure> {
        let Some(path) = self.any_name() else {
            return Ok(());
        };
        self.trace(|| format!("remove {path}"));
        let (parent, name) = self.parent(fs, &path)?;
        if self.model.is_directory(&path) {
            match fs.rmdir(parent, name.as_bytes()) {
                Err(FsError::NotEmpty) if self.model.has_children(&path) => return Ok(()),
                Ok(()) if self.model.has_children(&path) => {
                    return Err(Failure::Wrong(format!(
                        "{path} was removed although not empty"
                    )));
                }
                other => other?,
            }
        } else {
            fs.unlink(parent, name.as_bytes())?;
        }
        self.model.names.remove(&path);
        self.model.note_names();
        Ok(())
    }

    fn rename(&mut self, fs: &Fs) -> Result<(), Failure> {
        let Some(from) = self.any_name() else {
            return Ok(());
        };
        let to = if self.rng.one_in(2) {
            self.new_path()
        } else {
            self.any_name().expect("there is one")
        };
        let inside = to == from
            || to.starts_with(&format!("{from}/"))
            || from.starts_with(&format!("{to}/"));
        let exists = self.model.names.contains_key(&to);
        let kinds_differ =
            exists && (self.model.is_directory(&from) != self.model.is_directory(&to));
        let full = exists && self.model.is_directory(&to) && self.model.has_children(&to);
        let same_node = exists && self.model.names[&from] == self.model.names[&to];
        if inside || kinds_differ || full || same_node {
            return Ok(());
        }
        self.trace(|| format!("rename {from} to {to}"));
        let (parent, name) = self.parent(fs, &from)?;
        let (new_parent, new_name) = self.parent(fs, &to)?;
        fs.rename(
            parent,
            name.as_bytes(),
            new_parent,
            new_name.as_bytes(),
            RenameFlags::default(),
        )?;
        self.model.rename(&from, &to);
        Ok(())
    }

    fn link(&mut self, fs: &Fs) -> Result<(), Failure> {
        let Some(from) = self.any_file() else {
            return Ok(());
        };
        let to = self.new_path();
        self.trace(|| format!("link {from} to {to}"));
        let (new_parent, new_name) = self.parent(fs, &to)?;
        fs.link(ino(fs, &from)?, new_parent, new_name.as_bytes())?;
        let node = self.model.names[&from];
        self.model.names.insert(to, node);
        self.model.note_names();
        Ok(())
    }

    fn read(&mut self, fs: &Fs) -> Result<(), Failure> {
        let Some(path) = self.any_file() else {
            return Ok(());
        };
        let content = self.model.content(&path).expect("a file");
        let offset = self.rng.below(content.len() as u64 + 10);
        let len = 1 + self.rng.length(128 << 10);
        self.trace(|| format!("read {path} at {offset}, {len} bytes"));
        let mut out = Vec::new();
        fs.read(ino(fs, &path)?, offset, len as usize, &mut out)?;
        let start = (offset as usize).min(content.len());
        let end = (offset as usize + len as usize).min(content.len());
        if out != content[start..end] {
            return Err(Failure::Wrong(format!(
                "{path} reads wrong at {offset}, {len} bytes (seed {})",
                self.seed
            )));
        }
        Ok(())
    }
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
    Fs::open_pool(
        Arc::<MemDevice>::clone(device),
        Arc::<SimHost>::clone(host),
        |_| Ok(ClusterKey::from_bytes(KEY)),
        StoreOptions {
            lanes: 1,
            block_cache_bytes: 1 << 20,
            memtable_bytes_max: 256 << 10,
            accept_log_loss: false,
        },
        FsOptions {
            seal_threads: 0,
            dirty_bytes_max: 4 << 20,
            hot_bytes: 1 << 20,
            ..FsOptions::default()
        },
    )
    .map_err(|error| format!("open: {error}"))
}

/// Why a step ended early.
enum Failure {
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

fn ino(fs: &Fs, path: &str) -> Result<Ino, FsError> {
    Ok(fs.resolve(path.as_bytes())?.ino)
}

/// Everything that can be reached from the root.
fn look(fs: &Fs) -> Result<Found, String> {
    let mut found = Found::new();
    let mut waiting = vec![(String::new(), Ino::ROOT)];
    while let Some((path, directory)) = waiting.pop() {
        let fail = |error: FsError| format!("{path}: {error}");
        let limit = fs.open_dir(directory).map_err(fail)?;
        let mut cookie = 0;
        loop {
            let entries = fs.read_dir(directory, cookie, limit, 7).map_err(fail)?;
            let Some(last) = entries.last() else {
                break;
            };
            cookie = last.cookie;
            for entry in entries {
                let name = String::from_utf8(entry.name).map_err(|_| "a name that nobody gave")?;
                let path = if path.is_empty() {
                    name
                } else {
                    format!("{path}/{name}")
                };
                let attr = fs.getattr(entry.ino).map_err(fail)?;
                let node = match attr.kind() {
                    libc::S_IFDIR => {
                        waiting.push((path.clone(), entry.ino));
                        FoundNode::Directory
                    }
                    libc::S_IFLNK => FoundNode::Symlink(
                        String::from_utf8(fs.readlink(entry.ino).map_err(fail)?)
                            .map_err(|_| "a target that nobody gave")?,
                    ),
                    _ => {
                        let mut content = Vec::new();
                        fs.read(entry.ino, 0, attr.size as usize, &mut content)
                            .map_err(|error| format!("{path}: {error}"))?;
                        if content.len() as u64 != attr.size {
                            return Err(format!("{path} is shorter than its size"));
                        }
                        FoundNode::File(Arc::new(content))
                    }
                };
                if found.insert(path.clone(), (entry.ino.0, node)).is_some() {
                    return Err(format!("{path} is listed twice"));
                }
            }
        }
        fs.release(directory).map_err(fail)?;
    }
    Ok(found)
}

/// What `fsck` would say.
pub(crate) fn check(fs: &Fs) -> Result<(), String> {
    let report = fs
        .check(|_| true)
        .map_err(|error| format!("check: {error}"))?
        .ok_or("the check ended early")?;
    if report.is_clean() {
        return Ok(());
    }
    Err(format!("check found {:?}", report.findings))
}
