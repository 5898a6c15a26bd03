//! The process that serves a pool: opens it, mounts it, answers admin commands, and ends in order.
//!
//! The order of the end matters: first nobody new (admin socket, S3), then what the kernel still has (sync, unmount), then
//! the background thread, then the pool, which is marked clean last of all.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cfs_fs::{AtimePolicy, Fs};
use cfs_fuse::{MountError, MountOptions, Mounted, SessionError, UnmountError};
use cfs_s3::S3Server;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, never, select};

use crate::admin::service::Service;
use crate::admin::socket::AdminSocket;
use crate::bytes::{count, show};
use crate::cli::{Atime, MountingArgs, PoolArgs, S3Args, SyncCalls};
use crate::daemon::Starting;
use crate::datadir::DataDir;
use crate::failure::{Code, Failure, Result, no_thread};
use crate::interrupt;
use crate::keys::{Environment, KeyGiven};
use crate::memory::Trimmer;
use crate::pool::{self, Pool, Use};
use crate::s3::S3At;
use crate::watch::Watch;

/// How often background work is looked for.
const TICK: Duration = Duration::from_millis(100);
/// How often while the file system rests.
const REST: Duration = Duration::from_secs(1);
/// How long a wait for changes is, of which the end tells.
const CHANGES_PATIENCE: Duration = Duration::from_secs(3600);
/// How long a change may stay in this process alone, while writing the log is quick.
const LOG_PERIOD: Duration = Duration::from_millis(2);
/// The log is written a part of the time at most, one in this many: each time cuts what streams write into smaller pieces.
const LOG_SHARE: u32 = 8;
/// How long a change may stay in this process alone at most.
const LOG_PERIOD_MAX: Duration = Duration::from_millis(10);
/// How long the kernel may take to end a session that was unmounted.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(10);

/// What to serve.
pub struct Serving {
    /// The data directory.
    pub dir: DataDir,
    /// Where to mount it.
    pub mount: Option<PathBuf>,
    /// Where to speak S3.
    pub s3: S3At,
    /// How to speak it.
    pub s3_options: S3Args,
    /// How to mount it.
    pub mounting: MountingArgs,
    /// The pool.
    pub pool: PoolArgs,
}

/// Serves until a signal comes or the mount is taken away.
///
/// # Errors
/// Why it could not start (nothing changed then), or what could not be written at the end.
///
/// # Safety
/// No other thread may run.
pub unsafe fn serve(
    serving: Serving,
    mut environment: Environment,
    starting: Option<Starting>,
) -> Result<()> {
    let mut watch = None;
    if serving.mount.is_some() {
        // SAFETY: the caller promises that this is the only thread.
        match unsafe { Watch::start(|| drop(std::mem::take(&mut environment))) } {
            Ok(started) => watch = Some(started),
            Err(error) => {
                tracing::warn!("nobody watches whether this process is killed: {error}");
            }
        }
    }
    let signals = interrupt::listen()
        .map_err(|error| Failure::new(Code::Host, format!("cannot listen for signals: {error}")))?;
    let mount_options = serving
        .mount
        .as_ref()
        .map(|path| mount_options(path.clone(), &serving.mounting));
    if let Some(options) = &mount_options {
        let mountpoint = cfs_fuse::check(options).map_err(mount_failure)?;
        if mountpoint.starts_with(serving.dir.path()) {
            return Err(Failure::new(
                Code::Mount,
                format!(
                    "the mount point {} lies in the data directory {}",
                    mountpoint.display(),
                    serving.dir.path().display()
                ),
            )
            .hint("mount it somewhere else"));
        }
        if serving.dir.path().starts_with(&mountpoint) {
            return Err(Failure::new(
                Code::Mount,
                format!(
                    "{} lies below the mount point {}, which would hide it",
                    serving.dir.path().display(),
                    mountpoint.display()
                ),
            )
            .hint("choose another directory for one of the two"));
        }
    }
    let usage = Use {
        budgets: serving.pool.budgets,
        atime: match serving.mounting.atime {
            _ if serving.mounting.read_only_pool => AtimePolicy::Noatime,
            Atime::Relatime => AtimePolicy::Relatime,
            Atime::Noatime => AtimePolicy::Noatime,
            Atime::Strict => AtimePolicy::Strict,
        },
        list_snapshots: serving.mounting.list_snapshots,
        only_reads: serving.mounting.read_only_pool,
        serves: true,
        ..Use::default()
    };
    let given = KeyGiven::new(serving.pool.key, environment);
    let pool = pool::open_or_create(&serving.dir, given, &serving.pool.first_run, usage)?;
    let service = Arc::new(Service::new(pool, true));
    let served = start(
        &service,
        mount_options.as_ref(),
        &serving.dir,
        (serving.s3, &serving.s3_options),
        (starting, watch.as_mut()),
    );
    let (mounted, gone, socket, ticker, s3) = match served {
        Ok(served) => served,
        Err(failure) => {
            service.pool().close()?;
            return Err(failure);
        }
    };
    select! {
        recv(signals) -> _ => tracing::info!("a signal asks to end"),
        recv(gone) -> ended => match ended {
            Ok(Err(error)) => tracing::error!("{error}"),
            _ => tracing::info!("the mount was taken away"),
        },
    }
    tell_the_impatient(signals, Arc::clone(&service.pool().fs));
    drop(socket);
    drop(s3);
    if let Some(mounted) = mounted
        && !unmount(&mounted, &gone)
    {
        // The kernel may keep this process from ending.
        std::mem::forget(watch.take());
    }
    drop(ticker);
    service.pool().close()?;
    tracing::info!("everything is written; good bye");
    Ok(())
}

type Served = (
    Option<Arc<Mounted>>,
    Receiver<std::result::Result<(), SessionError>>,
    Option<AdminSocket>,
    Ticker,
    Option<S3Server>,
);

fn start(
    service: &Arc<Service>,
    options: Option<&MountOptions>,
    dir: &DataDir,
    s3: (S3At, &S3Args),
    (starting, watch): (Option<Starting>, Option<&mut Watch>),
) -> Result<Served> {
    let fs = &service.pool().fs;
    let (sender, gone) = bounded(1);
    let mounted = match options {
        Some(options) => {
            let mounted = cfs_fuse::mount(Arc::clone(fs), options).map_err(mount_failure)?;
            let mounted = Arc::new(mounted);
            if let Some(watch) = watch {
                watch.tell(&mounted);
            }
            service.set_mounted(Arc::clone(&mounted));
            if let Err(failure) = wait_for_end(Arc::clone(&mounted), sender) {
                unmount(&mounted, &gone);
                return Err(failure);
            }
            Some(mounted)
        }
        None => {
            // Without a mount nothing ends by itself.
            std::mem::forget(sender);
            None
        }
    };
    let end = |failure: Failure| {
        if let Some(mounted) = &mounted {
            unmount(mounted, &gone);
        }
        failure
    };
    let ticker = Ticker::start(service.pool()).map_err(end)?;
    let s3 = crate::s3::start(service, dir, s3.0, s3.1).map_err(end)?;
    let socket = match AdminSocket::start(dir, Arc::clone(service)) {
        Ok(socket) => Some(socket),
        // Its directory may be one in which nothing can be made.
        Err(failure) if service.pool().only_reads => {
            tracing::warn!("`cfs admin` cannot ask this process: {}", failure.message);
            None
        }
        Err(failure) => return Err(end(failure)),
    };
    let line = ready_line(service, dir, mounted.as_deref());
    match starting {
        Some(starting) => starting
            .ready(&line, &dir.log(), service.pool().only_reads)
            .map_err(end)?,
        None => {
            let mut out = std::io::stdout().lock();
            if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
                tracing::warn!("nobody reads standard output: {line}");
            }
        }
    }
    Ok((mounted, gone, socket, ticker, s3))
}

fn mount_options(path: PathBuf, args: &MountingArgs) -> MountOptions {
    let mut options = MountOptions::new(path);
    options.allow_other |= args.allow_other;
    options.read_only = args.read_only || args.read_only_pool;
    options.sync_calls = args.sync_calls == SyncCalls::Auto;
    options.noatime = args.atime == Atime::Noatime;
    options
}

fn mount_failure(error: MountError) -> Failure {
    Failure::new(Code::Mount, error.to_string())
}

fn ready_line(service: &Service, dir: &DataDir, mounted: Option<&Mounted>) -> String {
    let store = service.pool().fs.store();
    let inodes: u64 = store
        .volumes()
        .iter()
        .map(|(_, volume)| volume.inode_count.get())
        .sum();
    let stored = store.stats().pool.chunk_stored_bytes.get();
    let place = match mounted {
        Some(mounted) => mounted.mountpoint().display().to_string(),
        None => "not mounted".to_owned(),
    };
    format!(
        "ready: {place} (pool {}, {} files and directories, {} stored)",
        dir.path().display(),
        count(inodes),
        show(stored)
    )
}

fn wait_for_end(
    mounted: Arc<Mounted>,
    gone: Sender<std::result::Result<(), SessionError>>,
) -> Result<()> {
    std::thread::Builder::new()
        .name("mount".to_owned())
        .spawn(move || {
            let ended = mounted.wait();
            // Nobody listens any more once the process ends.
            let _ = gone.send(ended);
        })
        .map(drop)
        .map_err(|error| no_thread(&error))
}

/// Says on each further signal that the end is under way.
fn tell_the_impatient(signals: Receiver<i32>, fs: Arc<Fs>) {
    let telling = std::thread::Builder::new().spawn(move || {
        for _ in signals {
            crate::tell!(
                "still flushing: {} to write; kill -9 loses what was not synced",
                show(fs.dirty_bytes())
            );
        }
    });
    if let Err(error) = telling {
        tracing::debug!(%error, "further signals are not answered");
    }
}

/// Whether the kernel has ended the session.
fn unmount(mounted: &Mounted, gone: &Receiver<std::result::Result<(), SessionError>>) -> bool {
    if let Err(error) = mounted.sync() {
        tracing::debug!("the mount was not synced: {error}");
    }
    match mounted.unmount() {
        Ok(()) => {}
        Err(error @ UnmountError::Busy(_)) => {
            tracing::warn!(
                "{error}; it is taken out of the tree, and open files there fail from now on"
            );
            if let Err(error) = mounted.detach() {
                tracing::error!("{error}");
            }
            return false;
        }
        Err(error) => {
            tracing::error!("{error}");
            return false;
        }
    }
    let ended = gone.recv_timeout(UNMOUNT_PATIENCE);
    let is_late = matches!(ended, Err(RecvTimeoutError::Timeout));
    if is_late {
        tracing::warn!("the kernel has not ended the session; going on without it");
    }
    !is_late
}

/// The threads that look for background work and write the log. Dropping it ends them.
pub struct Ticker {
    fs: Arc<Fs>,
    stop: Option<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl Ticker {
    /// Starts them. In a pool that is only read they give back memory, and nothing else.
    ///
    /// # Errors
    /// [`Code::Host`] when the system starts no more threads; none is left.
    pub fn start(pool: &Pool) -> Result<Self> {
        let fs = Arc::clone(&pool.fs);
        let only_reads = pool.only_reads;
        let (stop, stopped) = bounded::<()>(0);
        // One that is not taken yet will do for all that come meanwhile.
        let (change, changed) = bounded::<()>(1);
        let mut ticker = Self {
            fs: Arc::clone(&fs),
            stop: Some(stop),
            threads: Vec::new(),
        };
        let log = {
            let (fs, stopped) = (Arc::clone(&fs), stopped.clone());
            repeat("log", stopped, never(), move || {
                fs.wait_for_changes(CHANGES_PATIENCE);
                let _ = change.try_send(());
                let start = Instant::now();
                let written = match only_reads {
                    true => Ok(()),
                    false => fs.write_log(),
                };
                let pause = (start.elapsed() * (LOG_SHARE - 1)).clamp(LOG_PERIOD, LOG_PERIOD_MAX);
                (written, Pause::For(pause))
            })
        };
        ticker.threads.push(log?);
        let mut memory = Trimmer::default();
        let background = repeat("background", stopped, changed, move || {
            let ticked = match only_reads {
                true => {
                    fs.tick_to_read();
                    Ok(())
                }
                false => fs.tick(),
            };
            let dirty_bytes = fs.dirty_bytes();
            memory.trim(fs.hot_bytes() + dirty_bytes, dirty_bytes);
            let pause = match fs.rests() {
                true => Pause::UntilChanged(REST),
                false => Pause::For(TICK),
            };
            (ticked, pause)
        });
        ticker.threads.push(background?);
        Ok(ticker)
    }
}

/// Between two rounds of work.
#[derive(Clone, Copy)]
enum Pause {
    /// So long.
    For(Duration),
    /// So long, or until something changes.
    UntilChanged(Duration),
}

/// A thread that does `work` over and over, with the pause that it asks for, until `stopped` is closed.
fn repeat(
    name: &'static str,
    stopped: Receiver<()>,
    changed: Receiver<()>,
    mut work: impl FnMut() -> (cfs_fs::Result<()>, Pause) + Send + 'static,
) -> Result<JoinHandle<()>> {
    let goes_on = move |pause| match pause {
        Pause::For(pause) => stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout),
        Pause::UntilChanged(pause) => select! {
            recv(stopped) -> _ => false,
            // Nobody is left to tell when the other thread has ended.
            recv(changed) -> told => told.is_ok(),
            default(pause) => true,
        },
    };
    let run = move || {
        let mut said = String::new();
        let mut pause = Pause::For(Duration::ZERO);
        while goes_on(pause) {
            let (done, next_pause) = work();
            pause = next_pause;
            let text = match done {
                Ok(()) => String::new(),
                Err(error) => error.to_string(),
            };
            // It goes on failing in the same way: once is enough to be told.
            if !text.is_empty() && text != said {
                tracing::error!("{name}: {text}");
            }
            said = text;
        }
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| no_thread(&error))
}

impl Drop for Ticker {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.fs.end_wait();
        for thread in self.threads.drain(..) {
            thread.join().expect("a panic ends the process");
        }
    }
}
