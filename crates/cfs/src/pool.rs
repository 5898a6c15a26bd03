//! Making and opening the pool of a data directory, with the sentence for each way in which that fails.
//!
//! Invariants: nothing is made before everything that can be checked has been checked; a first run that fails takes
//! back what it made, and one that is killed leaves only what the next first run replaces.

mod create;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cfs_device::{BlockDevice, Device, DeviceError, FileDevice, OpenDeviceError, Overlay};
use cfs_format::superblock::{KeySlot, Superblock, UNLOCK_KEY_FILE, UNLOCK_PASSPHRASE};
use cfs_format::{SEGMENT_BYTES, VolumeId};
use cfs_fs::{AtimePolicy, Fs, FsOptions};
use cfs_seal::block::Cipher;
use cfs_seal::codec::Codec;
use cfs_seal::keys::{ClusterKey, MasterKey, unwrap_cluster_key};
use cfs_store::{Host, LoggedCommand, StoreOptions, UnlockError, WriteError};
use zeroize::Zeroizing;

use crate::cli::{self, BudgetArgs, FirstRunArgs};
use crate::datadir::{Contents, DataDir, Lock};
use crate::failure::{Code, Failure, Result, no_thread, plain};
use crate::host::System;
use crate::keys::{KeyGiven, Secret, warn_if_readable_by_others};
use crate::memory;

/// Argon2id for new passphrases: the second recommended choice of RFC 9106.
const ARGON2_MEMORY_KIB: u32 = 64 << 10;
const ARGON2_PASSES: u32 = 3;
const ARGON2_LANES: u32 = 4;

/// How long a process that has given back the directory may still have the device.
const DEVICE_PATIENCE: Duration = Duration::from_secs(2);

/// A key file is one line.
const KEY_FILE_BYTES_MAX: u64 = 4096;

/// A pool that this process has.
pub struct Pool {
    /// Its files.
    pub fs: Arc<Fs>,
    /// Its directory.
    pub dir: DataDir,
    /// The block device it is on.
    pub device: Option<PathBuf>,
    /// Nothing of it is written; see [`Use::only_reads`].
    pub only_reads: bool,
    _lock: Lock,
}

/// How a pool is used once it is open.
#[derive(Clone, Copy, Debug, Default)]
pub struct Use {
    /// Memory.
    pub budgets: BudgetArgs,
    /// When reading updates the access time.
    pub atime: AtimePolicy,
    /// Listings show `.snapshots`.
    pub list_snapshots: bool,
    /// Open it although acknowledged changes in a damaged log are lost then.
    pub accept_log_loss: bool,
    /// It stays open for who asks; else it is opened for one command.
    pub serves: bool,
    /// It goes with the command that makes it: nobody is told to keep its key.
    pub is_temporary: bool,
    /// Nothing of the pool is written: what opening has to change is kept in memory, and forgotten. Its directory may be
    /// one in which nothing can be written.
    pub only_reads: bool,
    /// Raises the limit of its room to so many bytes, unless it has none or a higher one.
    pub pool_bytes_max: u64,
}

/// Opens the pool of `dir`.
///
/// # Errors
/// Whatever stands in the way; nothing changed then.
pub fn open(dir: &DataDir, given: KeyGiven, usage: Use) -> Result<Pool> {
    let contents = dir.contents()?;
    if matches!(contents, Contents::Nothing) {
        return Err(no_pool(dir));
    }
    let lock = lock(dir, usage)?;
    let (device, path) = open_device(dir, &contents, usage.only_reads)?;
    open_on(dir, device, path, given, usage, lock)
}

fn lock(dir: &DataDir, usage: Use) -> Result<Lock> {
    match usage.only_reads {
        false => dir.lock(),
        true if !usage.serves => dir.lock_to_read(),
        // Alone if that can be, since it makes a socket.
        true => match dir.lock() {
            Err(failure) if failure.code == Code::Host => dir.lock_to_read(),
            locked => locked,
        },
    }
}

/// What is said where a command needs a pool and there is none.
pub fn no_pool(dir: &DataDir) -> Failure {
    Failure::new(
        Code::Pool,
        format!("there is no pool in {}", dir.path().display()),
    )
    .hint(format!(
        "give --data another directory, or make one: cfs server --data {}",
        dir.path().display()
    ))
}

/// A pool that is looked at as it lies on its device, without being opened.
pub struct Peek {
    /// The newest superblock, not yet checked against a key.
    pub superblock: Superblock,
    device: Arc<dyn Device>,
    dir: DataDir,
    path: PathBuf,
    _lock: Lock,
}

/// Looks at the pool of `dir`. Needs no key.
///
/// # Errors
/// As for [`open`].
pub fn peek(dir: &DataDir) -> Result<Peek> {
    let contents = dir.contents()?;
    if matches!(contents, Contents::Nothing) {
        return Err(no_pool(dir));
    }
    let lock = dir.lock_to_read()?;
    let (device, path) = open_device(dir, &contents, true)?;
    let path = pool_path(dir, path.as_deref());
    let superblock = cfs_store::read_superblock(&*device)
        .map_err(|error| not_opened(&path, error.into()))?
        .superblock;
    Ok(Peek {
        superblock,
        device,
        dir: dir.clone(),
        path,
        _lock: lock,
    })
}

impl Peek {
    /// The commands that opening the pool would replay.
    ///
    /// # Errors
    /// A wrong key, or what cannot be read.
    pub fn logged_commands(&self, given: KeyGiven) -> Result<Vec<LoggedCommand>> {
        let key = cluster_key(&self.dir, given, &self.superblock.key_slot)?;
        cfs_store::logged_commands(&*self.device, &key)
            .map_err(|error| not_opened(&self.path, error.into()))
    }
}

/// Opens the pool of `dir`, and makes it on the first run.
///
/// # Errors
/// Whatever stands in the way; nothing changed then.
pub fn open_or_create(
    dir: &DataDir,
    given: KeyGiven,
    first_run: &FirstRunArgs,
    usage: Use,
) -> Result<Pool> {
    match dir.contents()? {
        Contents::Nothing if usage.only_reads => Err(no_pool(dir)),
        Contents::Nothing => create::create(dir, given, first_run, usage),
        contents => {
            let lock = lock(dir, usage)?;
            let (device, path) = open_device(dir, &contents, usage.only_reads)?;
            let raised = check_wishes(dir, &*device, path.as_deref(), first_run, usage.only_reads)?;
            let usage = Use {
                pool_bytes_max: first_run.pool_size.unwrap_or(0),
                ..usage
            };
            let pool = open_on(dir, device, path, given, usage, lock)?;
            check_codec(&pool, first_run)?;
            if let Some((old, new)) = raised {
                let (old, new) = (crate::bytes::show(old), crate::bytes::show(new));
                crate::tell!("the pool may take {new} from now on, and not {old} any more");
            }
            Ok(pool)
        }
    }
}

/// Options of the first run must not contradict the pool that is there, but for a limit of its room that is higher: the
/// one that it has and that one, bytes.
fn check_wishes(
    dir: &DataDir,
    device: &dyn Device,
    path: Option<&Path>,
    wished: &FirstRunArgs,
    only_reads: bool,
) -> Result<Option<(u64, u64)>> {
    let mut raised = None;
    let contradiction = |option: &str, is: String| {
        Err(Failure::new(
            Code::Usage,
            format!(
                "{option} differs: the pool in {} has {is}",
                dir.path().display()
            ),
        )
        .hint(format!(
            "leave {option} out; it counts on the first run only"
        )))
    };
    let pool_path = pool_path(dir, path);
    let superblock = cfs_store::read_superblock(device)
        .map_err(|error| not_opened(&pool_path, error.into()))?
        .superblock;
    let cipher = Cipher::from_number(superblock.cipher);
    if let Some(wish) = wished.cipher
        && cipher != Some(cipher_of(wish))
    {
        return contradiction("--cipher", cipher.map_or("another".into(), cipher_name));
    }
    if let Some(wish) = wished.pool_size {
        let wish = wish / u64::from(SEGMENT_BYTES);
        let differs = |has: &str, hint: &str| {
            let directory = dir.path().display();
            let failure = format!("--pool-size differs: the pool in {directory} has {has}");
            Err(Failure::new(Code::Usage, failure).hint(hint))
        };
        match superblock.segments_max.get() {
            is if wish == is => {}
            0 => {
                let hint = "leave it out: a limit can only be given when a pool is made";
                return differs("no limit", hint);
            }
            is if wish > is && !only_reads => {
                let bytes = |segments: u64| segments.saturating_mul(u64::from(SEGMENT_BYTES));
                raised = Some((bytes(is), bytes(wish)));
            }
            is => {
                let hint = match only_reads {
                    true => "leave it out: a pool that is only read cannot grow",
                    false => "leave it out, or give more, which lets the pool grow",
                };
                return differs(&crate::bytes::show(is * u64::from(SEGMENT_BYTES)), hint);
            }
        }
    }
    match (&wished.device, path) {
        (None, _) => Ok(raised),
        (Some(wish), Some(path)) if wish == path => Ok(raised),
        (Some(_), Some(path)) => contradiction("--device", path.display().to_string()),
        (Some(_), None) => contradiction("--device", "a file of its own".to_owned()),
    }
}

fn check_codec(pool: &Pool, wished: &FirstRunArgs) -> Result<()> {
    let Some(wish) = wished.codec else {
        return Ok(());
    };
    let codec = volume_codec(&pool.fs);
    if codec == Some(wish) {
        return Ok(());
    }
    let failure = Failure::new(
        Code::Usage,
        format!(
            "--codec differs: the pool in {} has {}",
            pool.dir.path().display(),
            codec.map_or("another".to_owned(), |codec| codec.to_string())
        ),
    )
    .hint("leave --codec out; it counts on the first run only");
    pool.close()?;
    Err(failure)
}

fn volume_codec(fs: &Fs) -> Option<Codec> {
    let volume = fs.store().volume(VolumeId::ROOT)?;
    Codec::from_numbers(volume.codec, volume.codec_level)
}

impl Pool {
    /// Writes what is pending and marks the pool clean, unless it is only read.
    ///
    /// # Errors
    /// What could not be written.
    pub fn close(&self) -> Result<()> {
        match self.only_reads {
            true => Ok(()),
            false => close(&self.fs),
        }
    }
}

/// Writes what is pending and marks the pool clean.
///
/// # Errors
/// What could not be written.
pub fn close(fs: &Fs) -> Result<()> {
    fs.close().map_err(|error| {
        Failure::new(Code::Host, format!("cannot close the pool: {error}"))
            .hint("what was synced is safe; the next start recovers it")
    })
}

fn pool_path(dir: &DataDir, device: Option<&Path>) -> PathBuf {
    device.map_or_else(|| dir.pool(), Path::to_path_buf)
}

/// Opens what the pool is on. The caller has the directory's lock, so a device in use is most likely one that a
/// process which is about to end has not given back yet, and is waited for.
fn open_device(
    dir: &DataDir,
    contents: &Contents,
    only_reads: bool,
) -> Result<(Arc<dyn Device>, Option<PathBuf>)> {
    let open_once = || -> std::result::Result<(Arc<dyn Device>, _), _> {
        Ok(match (contents, only_reads) {
            (Contents::Device(path), false) => {
                (Arc::new(BlockDevice::open(path)?), Some(path.clone()))
            }
            (Contents::Device(path), true) => {
                let below = Arc::new(BlockDevice::open_to_read(path)?);
                (Arc::new(Overlay::new(below)), Some(path.clone()))
            }
            (Contents::File | Contents::Nothing, false) => {
                (Arc::new(FileDevice::open(&dir.pool(), u32::MAX)?), None)
            }
            (Contents::File | Contents::Nothing, true) => {
                let below = Arc::new(FileDevice::open_to_read(&dir.pool(), u32::MAX)?);
                (Arc::new(Overlay::new(below)), None)
            }
        })
    };
    let started = Instant::now();
    loop {
        match open_once() {
            Err(OpenDeviceError::Busy { .. }) if started.elapsed() < DEVICE_PATIENCE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            opened => return opened.map_err(device_failure),
        }
    }
}

fn open_on(
    dir: &DataDir,
    device: Arc<dyn Device>,
    path: Option<PathBuf>,
    given: KeyGiven,
    usage: Use,
    lock: Lock,
) -> Result<Pool> {
    let mut refusal = None;
    let unlock = |superblock: &Superblock| {
        cluster_key(dir, given, &superblock.key_slot).map_err(|failure| {
            let error = UnlockError::Unavailable(failure.message.clone());
            refusal = Some(failure);
            error
        })
    };
    let (store_options, fs_options) = options(usage);
    let fs = Fs::open_pool(device, Arc::new(System), unlock, store_options, fs_options);
    if let Some(refusal) = refusal {
        return Err(refusal);
    }
    let fs = fs.map_err(|error| not_opened(&pool_path(dir, path.as_deref()), error))?;
    match usage.only_reads {
        // One command ends before its changes in memory could grow.
        true if usage.serves => fs.store().refuse_writes("it was opened to be read only"),
        true => {}
        false => keep_superblock(dir, &fs),
    }
    Ok(Pool {
        fs,
        dir: dir.clone(),
        device: path,
        only_reads: usage.only_reads,
        _lock: lock,
    })
}

/// Keeps a copy of what of the superblock stays the same, unless it is there.
fn keep_superblock(dir: &DataDir, fs: &Fs) {
    let present = fs.store().superblock();
    let is_kept = dir.superblock_copy().is_some_and(|copy| {
        cfs_seal::keys::check_superblock_checksum(&copy).is_ok_and(|kept| {
            let lasting = |it: &Superblock| (it.pool_uuid, it.key_slot, it.segments_max);
            lasting(&kept) == lasting(&present)
        })
    });
    if !is_kept && let Err(failure) = dir.keep_superblock(&fs.store().superblock_copy()) {
        tracing::warn!("no copy of the superblock is kept: {}", failure.message);
    }
}

/// Rebuilds the pool of `dir` from its segments, while the lock that comes back is held. `go_on` is told how far it is
/// and says whether to go on; `None` without that.
///
/// # Errors
/// Whatever stands in the way; the pool is as it was then.
pub fn rebuild(
    dir: &DataDir,
    given: KeyGiven,
    go_on: impl FnMut(cfs_store::RebuildProgress) -> bool,
) -> Result<Option<(cfs_fs::Rebuilt, Lock)>> {
    let contents = dir.contents()?;
    if matches!(contents, Contents::Nothing) {
        return Err(no_pool(dir));
    }
    let lock = dir.lock()?;
    let (device, path) = open_device(dir, &contents, false)?;
    let mut refusal = None;
    let unlock = |superblock: &Superblock| {
        cluster_key(dir, given, &superblock.key_slot).map_err(|failure| {
            let error = UnlockError::Unavailable(failure.message.clone());
            refusal = Some(failure);
            error
        })
    };
    let copy = dir.superblock_copy();
    let rebuilt = Fs::rebuild_pool(
        device,
        Arc::new(System),
        copy.as_deref(),
        unlock,
        options(Use::default()),
        go_on,
    );
    if let Some(refusal) = refusal {
        return Err(refusal);
    }
    let rebuilt = rebuilt.map_err(|error| {
        let failure = not_opened(&pool_path(dir, path.as_deref()), error);
        match failure.code {
            Code::Pool => failure
                .hint("too much of it is gone to be put together again; restore it from a copy"),
            _ => failure,
        }
    })?;
    Ok(rebuilt.map(|rebuilt| {
        keep_superblock(dir, &rebuilt.fs);
        (rebuilt, lock)
    }))
}

/// The cluster key, by what the slot wants and the user gave.
fn cluster_key(dir: &DataDir, given: KeyGiven, slot: &KeySlot) -> Result<ClusterKey> {
    let (secret, what) = match slot.unlock {
        UNLOCK_PASSPHRASE => (
            Secret::Passphrase(given.passphrase(dir)?),
            "the passphrase".to_owned(),
        ),
        UNLOCK_KEY_FILE => {
            let path = given.key_file(dir)?;
            let what = format!("the key file {}", path.display());
            (Secret::KeyFile(path), what)
        }
        other => {
            return Err(Failure::new(
                Code::Pool,
                format!(
                    "the pool in {} opens in a way (number {other}) that this version does not know",
                    dir.path().display()
                ),
            )
            .hint("use a newer version of cfs"));
        }
    };
    let master = master_key(&secret, slot)?;
    unwrap_cluster_key(&master, slot).map_err(|_| {
        Failure::new(
            Code::WrongKey,
            format!("{what} does not open the pool in {}", dir.path().display()),
        )
        .hint("nothing was changed; try again with the right one")
    })
}

/// The master key from a secret. Takes as long as the slot wants.
///
/// # Errors
/// When the key file cannot be read or is none, or there is not enough memory.
pub fn master_key(secret: &Secret, slot: &KeySlot) -> Result<MasterKey> {
    match secret {
        Secret::Passphrase(passphrase) => MasterKey::from_passphrase(passphrase.as_bytes(), slot)
            .map_err(|error| Failure::new(Code::Pool, format!("cannot use the key slot: {error}"))),
        Secret::KeyFile(path) => {
            warn_if_readable_by_others(path);
            let content = read_key_file(path)?;
            MasterKey::from_key_file_bytes(&content).map_err(|error| {
                Failure::new(Code::WrongKey, format!("{}: {error}", path.display()))
                    .hint("give the file that the first run made, or a copy of it")
            })
        }
    }
}

fn read_key_file(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    use std::io::Read;
    let mut content = Zeroizing::new(Vec::with_capacity(KEY_FILE_BYTES_MAX as usize));
    fs::File::open(path)
        .and_then(|file| file.take(KEY_FILE_BYTES_MAX).read_to_end(&mut content))
        .map_err(|e| Failure::host("read the key file", path, &e))?;
    Ok(content)
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    System.fill_random(&mut bytes);
    bytes
}

/// A key slot for a secret, without the wrapped key.
pub fn new_slot(secret: &Secret) -> KeySlot {
    KeySlot {
        unlock: match secret {
            Secret::Passphrase(_) => UNLOCK_PASSPHRASE,
            Secret::KeyFile(_) => UNLOCK_KEY_FILE,
        },
        reserved: [0; 3],
        argon2_memory_kib: ARGON2_MEMORY_KIB.into(),
        argon2_passes: ARGON2_PASSES.into(),
        argon2_lanes: ARGON2_LANES.into(),
        argon2_salt: random(),
        nonce: random(),
        reserved2: 0.into(),
        wrapped_cluster_key: [0; 48],
    }
}

/// Memory for opened chunks where a command passes over the content once: enough for what duplicates lie near one another,
/// and little to touch for the first time, which costs more than opening a chunk.
const HOT_BYTES_ONE_COMMAND: u64 = 128 << 20;

/// Memory for accepted data where a command writes them as fast as it can: what the processor's caches may still have when it
/// is sealed, and little to touch for the first time.
const DIRTY_BYTES_ONE_COMMAND: u64 = 32 << 20;

/// Memory for blocks of the tables where a process serves: what is listed again of a large directory should be there.
const TABLE_CACHE_BYTES_MAX: u64 = 512 << 20;

/// Budgets of the tables in the memory that is given for them: each of the two has a memtable that is filled, and one that
/// is written.
fn table_options(table_bytes: u64, defaults: StoreOptions) -> StoreOptions {
    StoreOptions {
        block_cache_bytes: table_bytes / 2,
        memtable_bytes_max: (table_bytes / 8) as usize,
        ..defaults
    }
}

fn options(usage: Use) -> (StoreOptions, FsOptions) {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    // While one waits for the device, another has its core.
    let sealing_threads = cores * 2;
    let defaults = FsOptions::default();
    let memory = memory::usable_bytes();
    let tables = StoreOptions::default();
    let tables = match (usage.budgets.table_bytes, usage.serves) {
        // More than there is would be asked for at once.
        (Some(table_bytes), _) => table_options(table_bytes.min(memory), tables),
        (None, false) => tables,
        (None, true) => {
            let least = tables.block_cache_bytes;
            StoreOptions {
                block_cache_bytes: (memory / 64).clamp(least, TABLE_CACHE_BYTES_MAX),
                ..tables
            }
        }
    };
    let store = StoreOptions {
        lanes: sealing_threads,
        accept_log_loss: usage.accept_log_loss,
        pool_bytes_max: usage.pool_bytes_max,
        ..tables
    };
    let fs = FsOptions {
        dirty_bytes_max: usage.budgets.dirty_bytes.unwrap_or(match usage.serves {
            true => defaults.dirty_bytes_max.min(memory / 4),
            false => DIRTY_BYTES_ONE_COMMAND.min(memory / 4),
        }),
        hot_bytes: usage.budgets.hot_bytes.unwrap_or(match usage.serves {
            true => memory / 8,
            false => (memory / 8).min(HOT_BYTES_ONE_COMMAND),
        }),
        seal_threads: sealing_threads,
        atime: usage.atime,
        list_snapshots: usage.list_snapshots,
        ..defaults
    };
    (store, fs)
}

/// The cipher of a new pool: as wished, or the best for this processor.
pub fn cipher_of_new(wish: Option<cli::Cipher>) -> Cipher {
    wish.map_or_else(create::best_cipher, cipher_of)
}

fn cipher_of(wish: cli::Cipher) -> Cipher {
    match wish {
        cli::Cipher::Aes256Gcm => Cipher::Aes256Gcm,
        cli::Cipher::ChaCha20Poly1305 => Cipher::ChaCha20Poly1305,
    }
}

/// The cipher as the command line names it.
pub fn cipher_name(cipher: Cipher) -> String {
    match cipher {
        Cipher::Aes256Gcm => "aes-256-gcm",
        Cipher::ChaCha20Poly1305 => "chacha20-poly1305",
    }
    .to_owned()
}

fn device_failure(error: OpenDeviceError) -> Failure {
    match &error {
        OpenDeviceError::Busy { .. } => Failure::new(Code::Busy, error.to_string())
            .hint("stop the process that uses it, or unmount it"),
        OpenDeviceError::WrongKind { .. } => Failure::new(Code::Pool, error.to_string())
            .hint("give the directory of a pool, or a block device with --device"),
        OpenDeviceError::Exists { .. } | OpenDeviceError::TooSmall { .. } => {
            Failure::new(Code::Pool, error.to_string())
        }
        OpenDeviceError::Io {
            operation,
            path,
            source,
        } => Failure::host(operation, path, source),
    }
}

/// There is no room for what opening the pool at `path` takes.
fn host_is_full(path: &Path) -> Failure {
    let free = rustix::fs::statvfs(path).map_or_else(
        |_| String::new(),
        |host| {
            let bytes = host.f_bavail.saturating_mul(host.f_frsize);
            format!(", which has {} free", crate::bytes::show(bytes))
        },
    );
    Failure::new(
        Code::Host,
        format!(
            "the disk that holds {} is full: opening the pool to write takes {} there{free}",
            path.display(),
            crate::bytes::show(cfs_store::OPENING_BYTES)
        ),
    )
    .hint("free some room there; `cfs mount --read-only-pool` reads the pool meanwhile; nothing was changed")
}

fn not_opened(path: &Path, error: cfs_fs::OpenError) -> Failure {
    use cfs_store::OpenError as Store;
    let host_path = path;
    let path = path.display();
    let pool = |message: String| Failure::new(Code::Pool, message);
    let device = |error: &DeviceError| {
        let cause = match error {
            DeviceError::Io { source, .. } => plain(source),
            DeviceError::NoSpace { .. } => "no room on the host".to_owned(),
        };
        Failure::new(Code::Host, format!("cannot use {path}: {cause}"))
            .hint("look at the disk that it is on")
    };
    let error = match error {
        cfs_fs::OpenError::Store(error) => error,
        cfs_fs::OpenError::NoThread(error) => return no_thread(&error),
        error @ (cfs_fs::OpenError::Fs(_) | cfs_fs::OpenError::NoRoot) => {
            return pool(format!("{path} is damaged: {error}"))
                .hint("restore it from a copy; nothing was changed");
        }
    };
    match error {
        Store::NotAPool => pool(format!("{path} is not a ClaudeFS pool")).hint(
            "if it was one, and the data directory has the file `superblock`: cfs repair --rebuild-index --data DIR; \
             nothing was changed",
        ),
        Store::NewerFormat { .. } => {
            pool(format!("{path}: {error}")).hint("use a newer version of cfs; nothing was changed")
        }
        Store::WrongKey | Store::Unlock(_) => {
            Failure::new(Code::WrongKey, format!("{path}: {error}"))
        }
        Store::Write(WriteError::NoSpace(_)) | Store::Device(DeviceError::NoSpace { .. }) => {
            host_is_full(host_path)
        }
        Store::Device(error) => device(&error),
        error @ Store::LogDamaged { .. } => pool(format!("{path}: {error}")).hint(
            "restore it from a copy, or do without the lost changes: cfs repair --accept-log-loss --data DIR",
        ),
        Store::Write(error) => Failure::new(Code::Host, format!("cannot write to {path}: {error}"))
            .hint("look at the disk that it is on, and free some room there; `cfs mount --read-only-pool` reads it meanwhile"),
        error => pool(format!("{path} is damaged: {error}")).hint(
            "restore it from a copy, or make the index anew from what is left: cfs repair --rebuild-index --data DIR; \
             nothing was changed",
        ),
    }
}
