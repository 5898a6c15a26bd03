//! The data directory: what lies in it, who has it, and what it is before anything is touched.
//!
//! ```text
//! DIR/            0700
//!   pool          the device of a pool in a file; `pool.new` while it is being made
//!   config.json   the path of the block device, where the pool is on one
//!   key           0600, the key file that the first run made
//!   superblock    0600, a copy of the pool's superblock, for `cfs repair`
//!   lock          0600, held (flock) by the process that has the pool; its process id
//!   socket        0600, admin socket of that process
//!   stream-PID    socket of a process that sends or receives
//!   log           log of a daemon
//!   tls.crt       certificate that was made for S3, and `tls.key`, 0600, its key
//! ```
//! Invariant: a directory that holds anything else and no pool is never written to.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{
    DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt,
};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use crate::config::Config;
use crate::failure::{Code, Failure, Result};

/// How long a process that is ending may take until it gives back the lock.
const ENDING_PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take until it can be seen that a process has been killed.
const SIGNAL_PATIENCE: Duration = Duration::from_millis(100);
/// How long those that only read the pool may keep the lock from who wants it alone: most commands that look are short.
const READERS_PATIENCE: Duration = Duration::from_secs(5);
/// Processes that are named where the lock cannot be had, and how much of the command of each.
const HOLDERS_NAMED: usize = 3;
const COMMAND_CHARS: usize = 80;
/// How often to try again meanwhile.
const LOCK_POLL: Duration = Duration::from_millis(10);

/// What an interrupted first run, or a process that served, may have left without a pool. `lost+found` is what an
/// empty file system has.
const FOREIGN_TO_NOBODY: [&str; 2] = ["lock", "lost+found"];

/// No key file is longer.
const HALF_KEY_BYTES_MAX: u64 = 1024;

/// What the name of a socket begins with over which a stream goes; the number of the process that listens there follows.
const STREAM: &str = "stream-";

/// What a directory is.
#[derive(Debug)]
pub enum Contents {
    /// Nothing yet: it does not exist, is empty, or holds the rest of a first run that did not end.
    Nothing,
    /// A pool in a file.
    File,
    /// A pool on this block device.
    Device(PathBuf),
}

/// The paths of a data directory. Making one touches nothing.
#[derive(Clone, Debug)]
pub struct DataDir {
    path: PathBuf,
}

impl DataDir {
    /// The directory at `path`, made absolute so that a later change of the working directory does not matter.
    ///
    /// # Errors
    /// When the working directory cannot be had.
    pub fn at(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path).map_err(|e| Failure::host("find", path, &e))?;
        // A path through a symbolic link names the same directory; the sentences name the real one.
        let path = fs::canonicalize(&path).unwrap_or(path);
        Ok(Self { path })
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The pool of a pool in a file.
    pub fn pool(&self) -> PathBuf {
        self.path.join("pool")
    }

    /// The pool while it is being made.
    pub fn new_pool(&self) -> PathBuf {
        self.path.join("pool.new")
    }

    /// The key file of the first run.
    pub fn key(&self) -> PathBuf {
        self.path.join("key")
    }

    fn superblock(&self) -> PathBuf {
        self.path.join("superblock")
    }

    /// The copy of the pool's superblock; none where it is not there or cannot be read.
    pub fn superblock_copy(&self) -> Option<Vec<u8>> {
        const SUPERBLOCK_BYTES_MAX: u64 = 64 << 10;
        let mut bytes = Vec::new();
        let read = File::open(self.superblock())
            .and_then(|file| file.take(SUPERBLOCK_BYTES_MAX).read_to_end(&mut bytes));
        read.ok().map(|_| bytes)
    }

    /// Keeps a copy of the pool's superblock. Over the one that is there: of a key slot that has been replaced nothing is
    /// to remain.
    ///
    /// # Errors
    /// The host refuses; the file may hold the old copy, the new one, or parts of both, and is then of no use.
    pub fn keep_superblock(&self, bytes: &[u8]) -> Result<()> {
        let path = self.superblock();
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| {
                file.write_all(bytes)?;
                file.set_len(bytes.len() as u64)?;
                file.set_permissions(fs::Permissions::from_mode(0o600))?;
                file.sync_all()
            })
            .and_then(|()| File::open(&self.path)?.sync_all())
            .map_err(|e| Failure::host("write", &path, &e))
    }

    /// The admin socket.
    pub fn socket(&self) -> PathBuf {
        self.path.join("socket")
    }

    /// The name of a socket for a stream to or from this process.
    pub fn stream_socket() -> String {
        format!("{STREAM}{}", std::process::id())
    }

    /// Removes sockets of streams whose processes have been killed. What cannot be removed stays, and does not matter.
    pub fn remove_dead_streams(&self) {
        let Ok(directory) = File::open(&self.path) else {
            return;
        };
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let pid = name.to_str().and_then(stream_process);
            let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
            if is_socket
                && pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
                && has_no_owner(&directory, &name)
                && let Err(error) = fs::remove_file(entry.path())
            {
                tracing::warn!("{} is left over: {error}", entry.path().display());
            }
        }
    }

    /// The log of a daemon.
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// The certificate that was made for S3.
    pub fn certificate(&self) -> PathBuf {
        self.path.join("tls.crt")
    }

    /// The key of that certificate.
    pub fn certificate_key(&self) -> PathBuf {
        self.path.join("tls.key")
    }

    /// Keeps a certificate and its key. The key first: what is left of an interruption does not fit together, and is made
    /// anew.
    ///
    /// # Errors
    /// The host refuses; see above.
    pub fn keep_certificate(&self, certificate: &str, key: &str) -> Result<()> {
        for (path, text, mode) in [
            (self.certificate_key(), key, 0o600),
            (self.certificate(), certificate, 0o644),
        ] {
            let new = path.with_extension("new");
            let write = || -> io::Result<()> {
                let mut file = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(mode)
                    .open(&new)?;
                file.set_permissions(fs::Permissions::from_mode(mode))?;
                file.write_all(text.as_bytes())?;
                file.sync_all()?;
                fs::rename(&new, &path)?;
                File::open(&self.path)?.sync_all()
            };
            write().map_err(|e| Failure::host("write", &path, &e))?;
        }
        Ok(())
    }

    fn config(&self) -> PathBuf {
        self.path.join("config.json")
    }

    /// What the directory is. Reads only.
    ///
    /// # Errors
    /// When it is no directory, is foreign, or cannot be read.
    pub fn contents(&self) -> Result<Contents> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Contents::Nothing),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(Failure::new(
                    Code::Pool,
                    format!("{} is not a directory", self.path.display()),
                )
                .hint("give --data a directory that holds a pool, or a new one"));
            }
            Err(error) => return Err(Failure::host("read", &self.path, &error)),
        };
        let (mut foreign, mut half_key) = (None, None);
        let (mut pool, mut config, mut begun, mut lost) = (false, false, false, false);
        for entry in entries {
            let name = entry
                .map_err(|e| Failure::host("read", &self.path, &e))?
                .file_name();
            match name.to_str() {
                Some("pool") => pool = true,
                Some("config.json") => config = true,
                // The first run makes these when `pool.new` is there, which becomes `pool`.
                Some("key" | "log" | "socket" | "superblock" | "tls.crt" | "tls.key") => {
                    lost = true
                }
                Some(name) if stream_process(name).is_some() => lost = true,
                Some("pool.new" | "pool.old") => begun = true,
                Some(name) if FOREIGN_TO_NOBODY.contains(&name) => {}
                Some(half) if is_half_key(half) => half_key = Some(name),
                _ => foreign = Some(name),
            }
        }
        // A first run makes it when `pool.new` is there.
        match (config, pool, foreign.or(half_key.filter(|_| !begun))) {
            (true, _, _) => self
                .read_config()
                .map(|config| Contents::Device(config.device)),
            (false, true, _) => Ok(Contents::File),
            (false, false, None) if lost && !begun => Err(Failure::new(
                Code::Pool,
                format!(
                    "{} has held a pool, but the file `pool` is gone",
                    self.path.display()
                ),
            )
            .hint(
                "put it back, or mount the disk that it is on; keep `key`: nothing else opens that pool. To begin anew \
                 give --data another directory",
            )),
            (false, false, None) => Ok(Contents::Nothing),
            (false, false, Some(name)) => Err(Failure::new(
                Code::Pool,
                format!(
                    "{} holds no ClaudeFS pool but other files ({})",
                    self.path.display(),
                    name.to_string_lossy()
                ),
            )
            .hint("give --data the directory of a pool, or an empty or new one")),
        }
    }

    fn read_config(&self) -> Result<Config> {
        const CONFIG_BYTES_MAX: u64 = 64 << 10;
        let path = self.config();
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(CONFIG_BYTES_MAX).read_to_end(&mut bytes))
            .map_err(|e| Failure::host("read", &path, &e))?;
        Config::parse(&bytes).map_err(|error| {
            Failure::new(
                Code::Pool,
                format!(
                    "{} is not a ClaudeFS configuration: {error}",
                    path.display()
                ),
            )
            .hint("restore it: {\"device\": \"/dev/..\"} names the block device of the pool")
        })
    }

    /// Makes the directory (0700) if it is not there; tells whether it was not.
    ///
    /// # Errors
    /// When the host refuses; parents that were made before stay.
    pub fn create(&self) -> Result<bool> {
        let is_new = !self.path.exists();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .and_then(|()| fs::set_permissions(&self.path, fs::Permissions::from_mode(0o700)))
            .map_err(|e| Failure::host("make the directory", &self.path, &e))?;
        Ok(is_new)
    }

    /// Removes key files that first runs have not finished which were killed. The directory must be locked.
    pub fn remove_half_keys(&self) {
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let is_ours = entry.metadata().is_ok_and(|it| {
                it.is_file()
                    && it.permissions().mode() & 0o7777 == 0o600
                    && it.len() <= HALF_KEY_BYTES_MAX
            });
            if is_ours
                && entry.file_name().to_str().is_some_and(is_half_key)
                && let Err(error) = fs::remove_file(entry.path())
            {
                tracing::debug!(%error, "half a key file stays");
            }
        }
    }

    /// Takes the place of what a first run has left that was killed, with what `make` puts there. One of both is there at any
    /// moment: a key alone would tell of a pool that was lost.
    ///
    /// # Errors
    /// Those of `make`, or when the host refuses.
    pub fn replace_new_pool<T>(&self, make: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let (new, old) = (self.new_pool(), self.old_new_pool());
        let unless_absent = |done: io::Result<()>| match done {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Failure::host("replace", &new, &error))
            }
            _ => Ok(()),
        };
        unless_absent(fs::rename(&new, &old))?;
        let made = make(&new)?;
        unless_absent(fs::remove_file(&old))?;
        Ok(made)
    }

    fn old_new_pool(&self) -> PathBuf {
        self.path.join("pool.old")
    }

    /// Takes back what a first run made that did not succeed. What cannot be removed stays, and does not matter.
    pub fn undo_create(&self, is_new: bool, made_key: Option<&Path>) {
        // A key without `pool.new` would tell of a pool that was lost.
        let mut paths: Vec<_> = made_key.map(Path::to_path_buf).into_iter().collect();
        paths.extend([self.new_pool(), self.old_new_pool()]);
        if is_new {
            paths.push(self.path.join("lock"));
        }
        for path in paths {
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!("{} is left over: {error}", path.display());
            }
        }
        if is_new && let Err(error) = fs::remove_dir(&self.path) {
            tracing::warn!("{} is left over: {error}", self.path.display());
        }
    }

    /// Gives the new pool its name; from then on there is a pool.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn name_new_pool(&self) -> Result<()> {
        fs::rename(self.new_pool(), self.pool())
            .and_then(|()| File::open(&self.path)?.sync_all())
            .map_err(|e| Failure::host("name the pool in", &self.path, &e))
    }

    /// Writes `config.json` so that it is there whole or not at all.
    ///
    /// # Errors
    /// When the host refuses; then it is not there.
    pub fn write_config(&self, config: &Config) -> Result<()> {
        let temporary = self.path.join("pool.new");
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(&serde_json::to_vec(config)?)?;
            file.sync_all()?;
            fs::rename(&temporary, self.config())?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|e| Failure::host("write", &self.config(), &e))
    }

    /// Takes the directory for this process until the lock is dropped.
    ///
    /// # Errors
    /// [`Code::Busy`] when another process has it; [`Code::Host`] when the lock file cannot be written.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.lock_path();
        let mut file = lock_file(&path).map_err(|e| Failure::host("write", &path, &e))?;
        self.take(&mut file, FlockOperation::NonBlockingLockExclusive)?;
        match write_in_place(&file, &format!("{}\n", std::process::id())) {
            // The number is for messages; a pool on a full disk opens with the room that it has kept for that.
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                ) =>
            {
                return Err(Failure::host("write", &path, &error));
            }
            _ => {}
        }
        Ok(Lock {
            file: Some(file),
            is_alone: true,
        })
    }

    /// Takes the directory together with others that only read, also where nothing can be written in it.
    ///
    /// # Errors
    /// [`Code::Busy`] when another process has it alone; [`Code::Host`] when the lock file cannot be opened.
    pub fn lock_to_read(&self) -> Result<Lock> {
        let path = self.lock_path();
        let mut file = match File::open(&path).or_else(|_| lock_file(&path)) {
            Ok(file) => Some(file),
            // Nobody can have taken it: the pool's file has a lock of its own.
            Err(_) if !path.exists() => None,
            Err(error) => return Err(Failure::host("read", &path, &error)),
        };
        if let Some(file) = &mut file {
            self.take(file, FlockOperation::NonBlockingLockShared)?;
        }
        Ok(Lock {
            file,
            is_alone: false,
        })
    }

    fn lock_path(&self) -> PathBuf {
        self.path.join("lock")
    }

    fn take(&self, file: &mut File, operation: FlockOperation) -> Result<()> {
        let started = Instant::now();
        let mut readers_since = None;
        loop {
            match rustix::fs::flock(&*file, operation) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(errno) => return Err(Failure::host("lock", &self.lock_path(), &errno.into())),
            }
            // Those who read beside others have not written themselves down; whoever has, has ended.
            if rustix::fs::flock(&*file, FlockOperation::NonBlockingLockShared).is_ok() {
                let _ = rustix::fs::flock(&*file, FlockOperation::NonBlockingUnlock);
                let since: &mut Instant = readers_since.get_or_insert_with(Instant::now);
                if since.elapsed() > READERS_PATIENCE {
                    return Err(self.busy_reading(&holders(file)));
                }
            } else {
                // A process that was killed has the lock until the kernel has taken its memory away.
                let owner = owner(file).or_else(|| holders(file).first().copied());
                let patience = match owner.is_some_and(is_ending) {
                    true => ENDING_PATIENCE,
                    false => SIGNAL_PATIENCE,
                };
                if started.elapsed() > patience {
                    return Err(self.busy(owner));
                }
            }
            std::thread::sleep(LOCK_POLL);
        }
    }

    /// Whether a process has the directory.
    pub fn is_busy(&self) -> bool {
        let Ok(file) = File::open(self.path.join("lock")) else {
            return false;
        };
        // A shared lock, so that two who look do not take each other for the owner.
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared)
            == Err(rustix::io::Errno::WOULDBLOCK)
    }

    fn busy(&self, pid: Option<u32>) -> Failure {
        let by = pid.map_or_else(String::new, |pid| format!(" by {}", described(pid)));
        let failure = Failure::new(
            Code::Busy,
            format!("the pool in {} is already open{by}", self.path.display()),
        );
        match pid {
            Some(pid) => failure.hint(format!("use its mount, or stop it: kill {pid}")),
            None => failure.hint("use its mount, or stop it"),
        }
    }

    /// Others read the pool, and have not ended in time.
    fn busy_reading(&self, pids: &[u32]) -> Failure {
        let by = match pids {
            [] => String::new(),
            pids => {
                let named = pids.iter().take(HOLDERS_NAMED).map(|pid| described(*pid));
                let named: Vec<String> = named.collect();
                let more = match pids.len().saturating_sub(HOLDERS_NAMED) {
                    0 => String::new(),
                    more => format!(" and {more} more"),
                };
                format!(" by {}{more}", named.join(", "))
            }
        };
        Failure::new(
            Code::Busy,
            format!(
                "the pool in {} is already open{by} to be read",
                self.path.display()
            ),
        )
        .hint("wait until it has read what it wants, use its mount, or stop it")
    }
}

fn lock_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// Whether a key file has this name until it is whole: `key.`, eight digits, `.new`.
fn is_half_key(name: &str) -> bool {
    let middle = name
        .strip_prefix("key.")
        .and_then(|it| it.strip_suffix(".new"));
    middle.is_some_and(|it| {
        it.len() == 8
            && it
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// The process that has made a socket with this name, if it is the name of one over which a stream goes.
fn stream_process(name: &str) -> Option<u32> {
    name.strip_prefix(STREAM)?.parse().ok()
}

/// Whether no process has the socket with this name, in this or another namespace of process numbers. To connect tells that,
/// but one that listens would take it for the stream; a datagram socket is refused there for its type.
fn has_no_owner(directory: &File, name: &OsStr) -> bool {
    let path = crate::admin::socket::through(directory, name);
    let probe = UnixDatagram::unbound().and_then(|socket| socket.connect(path));
    probe.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// The process that has written itself into the lock file.
fn owner(lock: &mut File) -> Option<u32> {
    let mut text = String::new();
    lock.rewind().ok()?;
    lock.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// The processes that hold a lock (`flock`) of this file, as far as the kernel tells this one.
fn holders(file: &File) -> Vec<u32> {
    let Ok(metadata) = file.metadata() else {
        return Vec::new();
    };
    let inode = format!(":{}", metadata.ino());
    let device = metadata.dev();
    let device = format!(
        "{:02x}:{:02x}",
        rustix::fs::major(device),
        rustix::fs::minor(device)
    );
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let of_file = locks.lines().filter_map(|line| {
        // `1: FLOCK  ADVISORY  READ 1234 fe:00:5678 0 EOF`; who waits for one has an arrow behind the number.
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, place, ..] = fields[..] else {
            return None;
        };
        let found = place.strip_suffix(&inode)?;
        Some((found == device, pid.parse::<u32>().ok()?))
    });
    let (here, elsewhere): (Vec<_>, Vec<_>) = of_file.partition(|(is_here, _)| *is_here);
    // File systems without a device of their own may have another number there than for who asks.
    let is_anonymous = rustix::fs::major(metadata.dev()) == 0;
    let found = match here.is_empty() && is_anonymous {
        true => elsewhere,
        false => here,
    };
    let mut pids: Vec<u32> = found.into_iter().map(|(_, pid)| pid).collect();
    pids.retain(|pid| Path::new(&format!("/proc/{pid}")).exists());
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// A process by its number and its command.
fn described(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line);
    let mut words = line.trim_end_matches('\0').split('\0');
    let program = words.next().unwrap_or_default();
    let program = program.rsplit('/').next().unwrap_or_default();
    if program.is_empty() {
        return format!("process {pid}");
    }
    let words: Vec<&str> = std::iter::once(program).chain(words).collect();
    let command = crate::admin::report::printable(&words.join(" "));
    let shown: String = command.chars().take(COMMAND_CHARS).collect();
    let more = if shown.len() < command.len() {
        "..."
    } else {
        ""
    };
    format!("process {pid} ({shown}{more})")
}

/// Whether the process has a `SIGKILL` to come, is exiting, or has exited and only its threads are left.
fn is_ending(pid: u32) -> bool {
    const SIGKILL_BIT: u64 = 1 << 8;
    const PF_EXITING: u64 = 4;
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let status = read("status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map_or("", str::trim)
    };
    let is_killed = ["SigPnd:", "ShdPnd:"]
        .into_iter()
        .any(|name| u64::from_str_radix(field(name), 16).is_ok_and(|it| it & SIGKILL_BIT != 0));
    let stat = read("stat");
    // The name, in parentheses, may contain anything; the flags are the seventh field after it.
    let flags = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(6)?.parse::<u64>().ok());
    is_killed
        || field("State:").starts_with(['Z', 'X'])
        || flags.is_some_and(|flags| flags & PF_EXITING != 0)
}

/// Holds the data directory; the kernel gives it back when the process ends in whatever way.
#[derive(Debug)]
pub struct Lock {
    /// None where there is no lock file and none can be made.
    file: Option<File>,
    is_alone: bool,
}

impl Drop for Lock {
    /// The number of a process that has ended may soon be another's.
    fn drop(&mut self) {
        if let Some(file) = &self.file
            && self.is_alone
        {
            let _ = write_in_place(file, "\n");
        }
    }
}

/// Replaces what is in the file by at least one byte, which keeps its room: there may be none on a disk that is full later.
fn write_in_place(file: &File, text: &str) -> io::Result<()> {
    file.write_all_at(text.as_bytes(), 0)?;
    file.set_len(text.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_told_apart_and_left_alone() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let dir = |name: &str| DataDir::at(&base.path().join(name)).expect("absolute");
        assert!(matches!(dir("absent").contents(), Ok(Contents::Nothing)));
        assert!(!base.path().join("absent").exists());

        for (name, files, code) in [
            ("empty", &[][..], None),
            ("interrupted", &["lock", "pool.new", "key"][..], None),
            (
                "half a key",
                &["lock", "pool.new", "key.00ff12ab.new"][..],
                None,
            ),
            ("another's key", &["key.of-mine.new"][..], Some(Code::Pool)),
            ("no half key", &["key.00ff12ab.new"][..], Some(Code::Pool)),
            ("foreign", &["thesis.tex"][..], Some(Code::Pool)),
            ("broken", &["config.json", "pool"][..], Some(Code::Pool)),
        ] {
            fs::create_dir(base.path().join(name)).expect("made");
            for file in files {
                fs::write(base.path().join(name).join(file), "{").expect("written");
            }
            match (dir(name).contents(), code) {
                (Ok(Contents::Nothing), None) => {}
                (Err(failure), Some(code)) => assert_eq!(failure.code, code, "{failure}"),
                (contents, _) => panic!("{name}: {contents:?}"),
            }
        }
    }

    /// A server with much memory was killed and started again at once, and the start was told that the pool was open.
    #[test]
    fn a_process_that_is_ending_is_waited_for() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let dir = DataDir::at(base.path()).expect("absolute");
        // The shell ends at once, and is not waited for; what it has started holds its lock for a while.
        let script = "exec 9<>\"$0/lock\" && flock 9 && echo $$ > \"$0/lock\" && { sleep 1 & }";
        let mut shell = std::process::Command::new("sh")
            .args(["-c", script])
            .arg(base.path())
            .spawn()
            .expect("a shell");
        let pid = shell.id();
        let started = Instant::now();
        while !is_ending(pid) {
            assert!(started.elapsed() < Duration::from_secs(10), "it ends");
            std::thread::sleep(LOCK_POLL);
        }
        assert!(dir.is_busy());
        drop(dir.lock().expect("it is given back"));
        assert!(!is_ending(std::process::id()));
        shell.wait().expect("our own child");
    }

    #[test]
    fn sockets_of_streams_of_dead_processes_are_removed() {
        use std::os::unix::net::UnixListener;
        let base = tempfile::tempdir().expect("a temporary directory");
        let dir = DataDir::at(base.path()).expect("absolute");
        let mut ended = std::process::Command::new("true").spawn().expect("started");
        let dead = ended.id();
        ended.wait().expect("our own child");
        let bind = |name: &str| UnixListener::bind(base.path().join(name)).expect("bound");
        // Left by a process that was killed, and by this one; of another namespace of process numbers; something else.
        drop(bind(&format!("stream-{dead}")));
        drop(bind(&DataDir::stream_socket()));
        let foreign = bind("stream-4194305");
        drop(bind("stream-x"));
        fs::write(base.path().join("stream-4194306"), "").expect("written");
        dir.remove_dead_streams();
        let mut left: Vec<_> = fs::read_dir(base.path())
            .expect("listed")
            .map(|entry| entry.expect("an entry").file_name())
            .map(|name| name.into_string().expect("text"))
            .collect();
        left.sort();
        let mut wanted = vec![
            DataDir::stream_socket(),
            "stream-4194305".to_owned(),
            "stream-4194306".to_owned(),
            "stream-x".to_owned(),
        ];
        wanted.sort();
        assert_eq!(left, wanted);
        // It was not disturbed.
        foreign.set_nonblocking(true).expect("set");
        assert!(foreign.accept().is_err());
    }

    #[test]
    fn one_process_has_it() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let dir = DataDir::at(base.path()).expect("absolute");
        let lock = dir.lock().expect("free");
        let failure = dir.lock().expect_err("taken");
        assert_eq!(failure.code, Code::Busy);
        assert!(failure.message.contains(&std::process::id().to_string()));
        drop(lock);
        dir.lock().expect("free again");
    }

    /// Who took a pool that somebody looked at was refused at once, and not told by whom.
    #[test]
    fn readers_are_waited_for_and_named() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let dir = DataDir::at(base.path()).expect("absolute");
        let reading = || dir.lock_to_read().expect("shared");
        let short = reading();
        let ending = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(700));
            drop(short);
        });
        drop(dir.lock().expect("it is waited for"));
        ending.join().expect("it only waits");

        let _long = [reading(), reading()];
        let failure = dir.lock().expect_err("taken");
        assert_eq!(failure.code, Code::Busy);
        // That is this test, by its number and its command.
        let named = format!("already open by process {} (cfs-", std::process::id());
        assert!(failure.message.contains(&named), "{failure}");
        assert!(failure.message.ends_with(") to be read"), "{failure}");
    }
}
