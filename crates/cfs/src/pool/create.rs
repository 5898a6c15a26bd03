//! The first run: making a pool in a file or on a block device, with its key.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cfs_device::{BlockDevice, Device, FileDevice};
use cfs_format::superblock::{CHUNKER_GEAR, ChunkParams, KeySlot};
use cfs_format::{SEGMENT_BYTES, SegmentId};
use cfs_fs::Fs;
use cfs_fs::stream::Role;
use cfs_seal::block::Cipher;
use cfs_seal::keys::{ClusterKey, render_key_file, wrap_cluster_key};
use cfs_store::{FormatPoolError, Host, POOL_BYTES_MIN, Store, StoreOptions};
use zeroize::Zeroizing;

use super::{
    Pool, Use, cipher_of, cipher_of_new, device_failure, keep_superblock, master_key, new_slot,
    not_opened, open_on, options, pool_path, random,
};
use crate::cli::FirstRunArgs;
use crate::config::Config;
use crate::datadir::{Contents, DataDir};
use crate::failure::{Code, Failure, Result};
use crate::host::System;
use crate::keys::{KeyGiven, Secret};
use crate::replica::ReplicaKey;

pub(super) fn create(
    dir: &DataDir,
    given: KeyGiven,
    first_run: &FirstRunArgs,
    usage: Use,
) -> Result<Pool> {
    if let Some(bytes) = first_run.pool_size.filter(|it| *it < POOL_BYTES_MIN) {
        return Err(Failure::new(
            Code::Usage,
            format!(
                "--pool-size {} is too small for a pool",
                crate::bytes::show(bytes)
            ),
        )
        .hint(format!(
            "give it {} or more",
            crate::bytes::show(POOL_BYTES_MIN)
        )));
    }
    if let Some(path) = &first_run.device {
        let device: Arc<dyn Device> = Arc::new(BlockDevice::open(path).map_err(device_failure)?);
        if cfs_store::read_superblock(&*device).is_ok() {
            return adopt(dir, device, path, (given, replica_key(first_run)?), usage);
        }
        check_blank(&*device, path)?;
        drop(device);
    }
    let replica = replica_key(first_run)?;
    let secret = given.for_new_pool()?;
    if let Some(secret @ Secret::KeyFile(path)) = &secret
        && path.exists()
    {
        // One that is none is refused before anything is made.
        master_key(secret, &new_slot(secret))?;
    }
    let is_new_dir = dir.create()?;
    let mut so_far = SoFar::default();
    let made = make(dir, secret, (first_run, replica), usage, &mut so_far);
    if made.is_err() && !so_far.is_pool {
        dir.undo_create(is_new_dir, so_far.key.as_deref());
    }
    made
}

/// How far a first run has come.
#[derive(Default)]
struct SoFar {
    /// The key file that it has made.
    key: Option<PathBuf>,
    /// There may be a pool from now on, which nothing opens without that key.
    is_pool: bool,
}

/// What the pool is to be a replica of, if it is to be one.
fn replica_key(first_run: &FirstRunArgs) -> Result<Option<ReplicaKey>> {
    let Some(path) = &first_run.replica_of else {
        return Ok(None);
    };
    let key = ReplicaKey::read(path)?;
    match first_run.cipher {
        Some(wish) if cipher_of(wish) != key.cipher => Err(Failure::new(
            Code::Usage,
            format!(
                "--cipher differs: what {} is of has {}",
                path.display(),
                super::cipher_name(key.cipher)
            ),
        )
        .hint("leave --cipher out")),
        _ => Ok(Some(key)),
    }
}

/// A device that has a pool already gets a new data directory, if the key is there.
fn adopt(
    dir: &DataDir,
    device: Arc<dyn Device>,
    path: &Path,
    (given, replica): (KeyGiven, Option<ReplicaKey>),
    usage: Use,
) -> Result<Pool> {
    let is_new_dir = dir.create()?;
    let opened = dir
        .lock()
        .and_then(|lock| open_on(dir, device, Some(path.to_path_buf()), given, usage, lock))
        .and_then(|pool| match replica {
            Some(replica) => check_replica(&pool.fs, &replica).map(|()| pool),
            None => Ok(pool),
        });
    match opened {
        Ok(pool) => {
            dir.write_config(&Config {
                device: path.to_path_buf(),
            })?;
            tracing::info!("took over the pool on {}", path.display());
            Ok(pool)
        }
        Err(failure) => {
            dir.undo_create(is_new_dir, None);
            Err(failure)
        }
    }
}

/// A pool that was there already must be what was asked for.
fn check_replica(fs: &Fs, replica: &ReplicaKey) -> Result<()> {
    let role = fs
        .role()
        .map_err(|error| Failure::new(Code::Pool, error.to_string()))?;
    let is_same = match (&replica.role, &role) {
        (Role::Keeps(wanted), Role::Keeps(passage)) => wanted.expose() == passage.expose(),
        (Role::Reads(wanted), Role::Reads(secret)) => wanted.expose() == secret.expose(),
        _ => false,
    };
    match is_same {
        true => Ok(()),
        false => Err(Failure::new(
            Code::Usage,
            "the pool that is there was made with another replica key, or with none",
        )
        .hint("leave --replica-of out to use it as it is")),
    }
}

/// What a device held is never overwritten.
fn check_blank(device: &dyn Device, path: &Path) -> Result<()> {
    let mut content = vec![0; SEGMENT_BYTES as usize];
    device
        .read_at(SegmentId(0), 0, &mut content)
        .map_err(|error| Failure::new(Code::Host, format!("{}: {error}", path.display())))?;
    if content.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    Err(Failure::new(
        Code::Pool,
        format!("{} is not blank: it may hold a file system", path.display()),
    )
    .hint(format!(
        "if nothing on it is needed, erase its start: dd if=/dev/zero of={} bs=2M count=2",
        path.display()
    )))
}

fn make(
    dir: &DataDir,
    secret: Option<Secret>,
    (first_run, replica): (&FirstRunArgs, Option<ReplicaKey>),
    usage: Use,
    so_far: &mut SoFar,
) -> Result<Pool> {
    let lock = dir.lock()?;
    // Another process may have made it meanwhile.
    if !matches!(dir.contents()?, Contents::Nothing) {
        return Err(Failure::new(
            Code::Busy,
            format!(
                "another process has just made a pool in {}",
                dir.path().display()
            ),
        )
        .hint("run the command again"));
    }
    let device: Arc<dyn Device> = match &first_run.device {
        Some(path) => Arc::new(BlockDevice::open(path).map_err(device_failure)?),
        None => dir.replace_new_pool(|path| {
            let device = FileDevice::create(path, u32::MAX).map_err(device_failure)?;
            Ok(Arc::new(device))
        })?,
    };
    dir.remove_half_keys();
    // After `pool.new`, by which a first run that was killed here is told from a pool that was lost.
    let secret = secret.unwrap_or_else(|| Secret::KeyFile(dir.key()));
    if let Secret::KeyFile(path) = &secret
        && make_key_file(path)?
    {
        so_far.key = Some(path.clone());
    }
    let mut slot = new_slot(&secret);
    let master = master_key(&secret, &slot)?;
    let cluster = Zeroizing::new(random::<32>());
    wrap_cluster_key(&master, &ClusterKey::from_bytes(*cluster), &mut slot);
    format(&device, &cluster, slot, (first_run, replica.as_ref()))?;
    so_far.is_pool = true;
    match &first_run.device {
        Some(path) => dir.write_config(&Config {
            device: path.clone(),
        })?,
        None => dir.name_new_pool()?,
    }
    if let Some(key) = &so_far.key
        && !usage.is_temporary
    {
        notice(dir, key);
    }
    let (store_options, fs_options) = options(usage);
    let fs = Fs::open_pool(
        device,
        Arc::new(System),
        |_| Ok(ClusterKey::from_bytes(*cluster)),
        store_options,
        fs_options,
    )
    .map_err(|error| not_opened(&pool_path(dir, first_run.device.as_deref()), error))?;
    keep_superblock(dir, &fs);
    Ok(Pool {
        fs,
        dir: dir.clone(),
        device: first_run.device.clone(),
        only_reads: false,
        _lock: lock,
    })
}

fn format(
    device: &Arc<dyn Device>,
    cluster: &Zeroizing<[u8; 32]>,
    slot: KeySlot,
    (first_run, replica): (&FirstRunArgs, Option<&ReplicaKey>),
) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(Code::Host, format!("cannot make the pool: {error}"))
            .hint("free some room, or choose a directory on another disk")
    };
    let host: Arc<dyn Host> = Arc::new(System);
    let chunk = cfs_seal::chunker::ChunkParams::DEFAULT;
    let options = cfs_store::FormatOptions {
        cipher: match (replica, first_run.cipher) {
            (Some(replica), _) => replica.cipher,
            (None, wish) => cipher_of_new(wish),
        },
        chunk: ChunkParams {
            min: chunk.min().into(),
            avg: chunk.avg().into(),
            max: chunk.max().into(),
            algorithm: CHUNKER_GEAR.into(),
        },
        pool_bytes_max: first_run.pool_size.unwrap_or(0),
        domain_secret: replica.and_then(|replica| match &replica.role {
            Role::Reads(secret) => Some(Arc::clone(secret)),
            Role::Keeps(_) => None,
        }),
    };
    Store::format(
        device,
        &host,
        ClusterKey::from_bytes(**cluster),
        slot,
        &options,
    )
    .map_err(|error| match error {
        FormatPoolError::TooSmall { .. } => Failure::new(Code::Usage, error.to_string())
            .hint("choose a larger device or --pool-size"),
        error => failed(&error),
    })?;
    let store = Store::open(
        Arc::clone(device),
        Arc::clone(&host),
        |_| Ok(ClusterKey::from_bytes(**cluster)),
        StoreOptions::default(),
        |_, _| unreachable!("a pool that was just made has an empty log"),
    )
    .map_err(|error| failed(&error))?;
    let (codec, codec_level) = first_run.codec.unwrap_or_default().numbers();
    let options = cfs_fs::FormatOptions {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        codec,
        codec_level,
    };
    Fs::format(&store, &*host, &options).map_err(|error| failed(&error))?;
    if let Some(ReplicaKey {
        role: Role::Keeps(passage),
        ..
    }) = replica
    {
        Fs::format_to_keep(&store, passage).map_err(|error| failed(&error))?;
    }
    store.close().map_err(|error| failed(&error))
}

/// Makes a key file, unless there is one: given, or left by a first run that was killed.
fn make_key_file(path: &Path) -> Result<bool> {
    if path.exists() {
        return Ok(false);
    }
    let key = Zeroizing::new(random::<32>());
    // Under another name until it is whole, or the next first run would find half a key.
    let mut new = path.as_os_str().to_owned();
    let [a, b, c, d] = random::<4>();
    new.push(format!(".{a:02x}{b:02x}{c:02x}{d:02x}.new"));
    let new = PathBuf::from(new);
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&Zeroizing::new(render_key_file(&key)))?;
        file.sync_all()?;
        let here = rustix::fs::CWD;
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(here, &new, here, path, flags) {
            // The host's file system cannot do that.
            Err(rustix::io::Errno::INVAL) => {
                fs::hard_link(&new, path)?;
                fs::remove_file(&new)?;
            }
            renamed => renamed?,
        }
        // A key that a crash takes away takes the pool with it.
        match path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            Some(parent) => fs::File::open(parent)?.sync_all(),
            None => fs::File::open(".")?.sync_all(),
        }
    };
    let written = write();
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written.map_err(|e| Failure::host("write the key file", path, &e))?;
    Ok(true)
}

fn notice(dir: &DataDir, key: &Path) {
    crate::tell!(
        "notice: the pool's key is in {} (mode 0600).\n  \
         It protects the data where the pool goes without it: a disk that is sold, a copy of the pool file.\n  \
         It does not protect from anyone who can read that directory, and without it the data are lost: copy it to \
         another place.\n  \
         For a passphrase instead: cfs admin key change-passphrase --data {}",
        key.display(),
        dir.path().display()
    );
}

pub(super) fn best_cipher() -> Cipher {
    #[cfg(target_arch = "x86_64")]
    let has_aes = std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let has_aes = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has_aes = false;
    match has_aes {
        true => Cipher::Aes256Gcm,
        false => Cipher::ChaCha20Poly1305,
    }
}
