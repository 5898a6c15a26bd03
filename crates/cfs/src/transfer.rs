//! Bulk copies between the host and a pool, without a mount: what import and export share.
//!
//! One thread walks and makes directories, several copy files. Invariants: the modification time of an object is set
//! after everything else of it, so that one that was copied in part never matches its source; directories get their
//! attributes when everything in them is done; a failure of one object is reported and counted and the rest goes on,
//! but a full pool or disk ends the run.

pub mod export;
mod host_file;
mod host_object;
mod host_tree;
pub mod import;
mod pool_path;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cfs_format::Ino;
use cfs_fs::{Fs, FsError};
use crossbeam_channel::bounded;
use parking_lot::Mutex;

use crate::admin::protocol::{Event, Progress, Request, TransferSummary};
use crate::admin::reporter::Reporter;
use crate::failure::{Code, Failure, Result};
use host_tree::Meta;
use pool_path::PoolPath;

/// Files at a time at most.
const WORKERS_MAX: u16 = 256;
/// Jobs that the walk may be ahead of the workers.
const JOBS_WAITING_MAX: usize = 4096;
/// Between looks at whether the workers have done half of what waits.
const FULL_PAUSE: Duration = Duration::from_millis(1);
/// How often progress is told.
const PROGRESS_PERIOD: Duration = Duration::from_millis(200);

/// Refuses a request that makes no sense in any pool, before one is opened or made for it.
///
/// # Errors
/// [`Code::Usage`] for paths that are none; [`Code::Host`] for a source of an import that is not there.
pub fn check(request: &Request) -> Result<()> {
    match request {
        Request::Import(transfer) => {
            PoolPath::parse(transfer.dest.bytes())?;
            for source in &transfer.sources {
                import::check_source(&source.to_host())?;
            }
        }
        Request::Export(export) => {
            for source in &export.transfer.sources {
                PoolPath::parse(source.bytes())?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// What a mount's kernel caches must be told when a pool changes beside the mount.
pub trait KernelCaches: Send + Sync {
    /// Attributes or content of an inode changed.
    fn inode_changed(&self, ino: Ino);

    /// A name in a directory came, went, or means another inode; the directory's attributes changed with it.
    fn entry_changed(&self, parent: Ino, name: &[u8]);
}

/// What a copy runs with.
pub struct Run<'a> {
    fs: &'a Fs,
    caches: Option<&'a dyn KernelCaches>,
    reporter: &'a dyn Reporter,
    /// Owners are kept: this process may give files away.
    keep_owner: bool,
    tally: Tally,
    failed: Mutex<Option<Failure>>,
    stopped: AtomicBool,
    started: Instant,
}

#[derive(Default)]
struct Tally {
    files: AtomicU64,
    files_skipped: AtomicU64,
    directories: AtomicU64,
    others: AtomicU64,
    hard_links: AtomicU64,
    bytes: AtomicU64,
    problems: AtomicU64,
}

/// Why an object was not copied.
enum Trouble {
    /// It alone.
    Object(String),
    /// There is no sense in going on.
    Run(Failure),
}

impl From<FsError> for Trouble {
    fn from(error: FsError) -> Self {
        match error {
            FsError::NoSpace => {
                Self::Run(Failure::new(Code::Host, "the pool is full").hint(
                    "delete files in it, free room on its disk, or raise its --pool-size; then run the same command again",
                ))
            }
            FsError::Quota => Self::Run(
                Failure::new(Code::Failed, error.to_string()).hint(
                    "delete files in the volume or give it more with `cfs admin volume set`; then run the same command again",
                ),
            ),
            FsError::ReadOnly(_) => Self::Run(
                Failure::new(Code::Host, format!("{error}"))
                    .hint("if the disk failed, the log says how, and a restart tries again"),
            ),
            error => Self::Object(error.to_string()),
        }
    }
}

impl<'a> Run<'a> {
    /// A run that has not begun.
    pub fn new(
        fs: &'a Fs,
        caches: Option<&'a dyn KernelCaches>,
        reporter: &'a dyn Reporter,
    ) -> Self {
        Self {
            fs,
            caches,
            reporter,
            keep_owner: rustix::process::geteuid().is_root(),
            tally: Tally::default(),
            failed: Mutex::new(None),
            stopped: AtomicBool::new(false),
            started: Instant::now(),
        }
    }

    /// What a copy of an object with `meta` has: without set-user-id and set-group-id where whoever runs this becomes the
    /// owner instead, as `cp -a` leaves them out.
    fn as_copied(&self, mut meta: Meta) -> Meta {
        if !self.keep_owner && meta.kind() != libc::S_IFDIR {
            if meta.uid != rustix::process::geteuid().as_raw() {
                meta.mode &= !libc::S_ISUID;
            }
            if meta.gid != rustix::process::getegid().as_raw() {
                meta.mode &= !libc::S_ISGID;
            }
        }
        meta
    }

    /// Whether to end at the next good point.
    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed) || self.reporter.cancelled()
    }

    fn add(&self, counter: impl FnOnce(&Tally) -> &AtomicU64, amount: u64) {
        counter(&self.tally).fetch_add(amount, Ordering::Relaxed);
    }

    fn note(&self, path: &str, message: impl Into<String>) {
        self.reporter.event(&Event::Problem {
            path: path.to_owned(),
            message: message.into(),
        });
    }

    fn trouble(&self, path: &str, trouble: Trouble) {
        match trouble {
            Trouble::Object(message) => {
                self.add(|it| &it.problems, 1);
                self.note(path, message);
            }
            Trouble::Run(failure) => {
                self.failed.lock().get_or_insert(failure);
                self.stopped.store(true, Ordering::Relaxed);
            }
        }
    }

    fn progress(&self, phase: &str) {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let tally = &self.tally;
        self.reporter.event(&Event::Progress(Progress {
            phase: phase.to_owned(),
            objects: of(&tally.files)
                + of(&tally.files_skipped)
                + of(&tally.directories)
                + of(&tally.others)
                + of(&tally.hard_links),
            objects_total: None,
            bytes: of(&tally.bytes),
            bytes_total: None,
        }));
    }

    /// Runs `walk` here, which is given a function to hand jobs over, and `work` in `workers` threads; returns when
    /// all jobs are done or, after a stop, dropped.
    fn in_parallel<J: Send>(
        &self,
        phase: &str,
        workers: u16,
        walk: impl FnOnce(&dyn Fn(J)),
        work: impl Fn(J, &mut Vec<u8>) + Sync,
    ) {
        let (sender, receiver) = bounded::<J>(JOBS_WAITING_MAX);
        let (end, ended) = bounded::<()>(0);
        std::thread::scope(|scope| {
            let telling = std::thread::Builder::new().spawn_scoped(scope, move || {
                while ended.recv_timeout(PROGRESS_PERIOD)
                    == Err(crossbeam_channel::RecvTimeoutError::Timeout)
                {
                    self.progress(phase);
                }
            });
            if let Err(error) = telling {
                tracing::warn!("progress is not told: {error}");
            }
            let mut threads = Vec::new();
            for _ in 0..workers.clamp(1, WORKERS_MAX) {
                let receiver = receiver.clone();
                let work = &work;
                let spawned = std::thread::Builder::new()
                    .name(phase.to_owned())
                    .spawn_scoped(scope, move || {
                        let mut buffer = Vec::new();
                        for job in receiver {
                            if !self.stopped() {
                                work(job, &mut buffer);
                            }
                        }
                    });
                match spawned {
                    Ok(thread) => threads.push(thread),
                    Err(error) => {
                        tracing::warn!("{} workers, not {workers}: {error}", threads.len());
                        break;
                    }
                }
            }
            if threads.is_empty() {
                let failure = Failure::new(Code::Host, "the system starts no thread for the copy");
                self.trouble("", Trouble::Run(failure));
                return;
            }
            drop(receiver);
            walk(&|job| {
                // One that is full is left to become half empty: waking this thread for each job costs more than a small
                // file does.
                if sender.is_full() {
                    while sender.len() > JOBS_WAITING_MAX / 2 {
                        std::thread::sleep(FULL_PAUSE);
                    }
                }
                sender
                    .send(job)
                    .expect("workers take jobs for as long as there is a sender");
            });
            drop(sender);
            for thread in threads {
                thread.join().expect("a panic ends the process");
            }
            drop(end);
        });
    }

    /// The summary, or the failure that ended the run.
    fn finish(&self, new_stored_bytes: u64) -> Result<TransferSummary> {
        if self.reporter.cancelled() {
            return Err(import::interrupted());
        }
        if let Some(failure) = self.failed.lock().take() {
            return Err(failure);
        }
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let tally = &self.tally;
        Ok(TransferSummary {
            files: of(&tally.files),
            files_skipped: of(&tally.files_skipped),
            directories: of(&tally.directories),
            others: of(&tally.others),
            hard_links: of(&tally.hard_links),
            bytes: of(&tally.bytes),
            problems: of(&tally.problems),
            new_stored_bytes,
            seconds: self.started.elapsed().as_secs_f64(),
        })
    }
}
