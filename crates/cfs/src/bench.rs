//! `cfs bench`: what the parts of this machine do alone, what a pool on this disk does, and which limit it meets.
//!
//! The pool is a temporary one below the directory given, and it is removed however the command ends, but for a kill.
//! Each step runs for a few seconds, so that the whole takes less than a minute; figures of single runs on a machine that
//! others use are worth what they are worth, and the ratio to the limit measured a moment before is worth more.

mod disk;
mod parts;
mod pool;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::admin::reporter::{Terminal, print_line};
use crate::cli::BenchArgs;
use crate::failure::{Code, Failure, Result, no_thread};
use crate::interrupt;

use disk::Disk;
use parts::Part;
use pool::Path as PoolPath;

/// All steps together, if nothing else is asked for.
pub const SECONDS: u32 = 40;

/// What is measured, in the order in which it is.
#[derive(Debug, Serialize)]
struct Report {
    /// Processors that this process may use.
    cores: usize,
    /// As on the command line of the first run.
    cipher: String,
    codec: String,
    /// On one core, with data in the cache.
    parts: Vec<Part>,
    disk: Disk,
    /// A pool on that disk, without a mount.
    paths: Vec<PoolPath>,
}

/// Ends loops that measure: after a while, or when the user asks.
pub(crate) struct Clock {
    stop: Arc<AtomicBool>,
    started: Instant,
    limit: Duration,
}

impl Clock {
    fn is_running(&self) -> bool {
        !self.stop.load(Ordering::Relaxed) && self.started.elapsed() < self.limit
    }

    fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64().max(1e-9)
    }
}

/// Hands out clocks, tells progress, and knows whether the user wants it to end.
struct Session {
    stop: Arc<AtomicBool>,
    terminal: Terminal,
    /// What the lengths of all steps are multiplied with.
    scale: f64,
}

impl Session {
    fn begin(seconds: u32) -> Result<Self> {
        let signals = interrupt::listen()
            .map_err(|e| Failure::new(Code::Host, format!("cannot listen to signals: {e}")))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        std::thread::Builder::new()
            .spawn(move || {
                while signals.recv().is_ok() {
                    stopping.store(true, Ordering::Relaxed);
                }
            })
            .map_err(|error| no_thread(&error))?;
        Ok(Self {
            stop,
            terminal: Terminal::new(true),
            scale: f64::from(seconds) / f64::from(SECONDS),
        })
    }

    /// A clock for the next step, unless the user wants an end.
    fn step(&self, name: &str, limit: Duration) -> Result<Clock> {
        self.check()?;
        self.terminal.show_step(name);
        Ok(Clock {
            stop: Arc::clone(&self.stop),
            started: Instant::now(),
            limit: limit.mul_f64(self.scale),
        })
    }

    fn check(&self) -> Result<()> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(Failure::new(Code::Interrupted, "interrupted")),
            false => Ok(()),
        }
    }
}

/// The directory of the bench, removed with all that is in it.
struct Scratch(PathBuf);

impl Scratch {
    fn below(dir: &Path) -> Result<Self> {
        match std::fs::metadata(dir) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(no_directory(dir, "is no directory")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(no_directory(dir, "does not exist"));
            }
            Err(error) => return Err(Failure::host("look at", dir, &error)),
        }
        let path = dir.join(format!("cfs-bench-{}", std::process::id()));
        std::fs::create_dir(&path).map_err(|e| Failure::host("make a directory in", dir, &e))?;
        Ok(Self(path))
    }
}

fn no_directory(dir: &Path, what: &str) -> Failure {
    Failure::new(Code::Usage, format!("{} {what}", dir.display()))
        .hint("give a directory on the disk that is to be measured")
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            crate::tell!("notice: {} could not be removed: {error}", self.0.display());
        }
    }
}

/// Measures and prints.
///
/// # Errors
/// The directory cannot be used or has too little room, or the user has ended it; nothing is left behind.
pub fn run(args: &BenchArgs) -> Result<ExitCode> {
    let session = Session::begin(args.seconds)?;
    let scratch = Scratch::below(&args.dir)?;
    let measured = measure(args, &session, &scratch.0);
    session.terminal.finish();
    let report = measured?;
    drop(scratch);
    if args.json {
        let text = serde_json::to_string(&report).expect("a report can be written as JSON");
        print_line(&text);
    } else {
        show(&report).iter().for_each(|line| print_line(line));
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(args: &BenchArgs, session: &Session, scratch: &Path) -> Result<Report> {
    let room = disk::room(&args.dir)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cipher = crate::pool::cipher_of_new(args.cipher);
    let codec = args.codec.unwrap_or_default();
    let data = parts::Samples::new();
    let parts = parts::measure(session, &data, cipher, codec)?;
    let disk = disk::measure(session, &args.dir, scratch, room)?;
    let limits = pool::Limits {
        parts: &parts,
        disk: &disk,
        cores,
    };
    let paths = pool::measure(session, scratch, args, &data, &limits, room)?;
    Ok(Report {
        cores,
        cipher: crate::pool::cipher_name(cipher),
        codec: codec.to_string(),
        parts,
        disk,
        paths,
    })
}

fn rate(bytes_per_second: f64) -> String {
    match bytes_per_second {
        it if it >= 1e9 => format!("{:.2} GB/s", it / 1e9),
        it => format!("{:.0} MB/s", it / 1e6),
    }
}

fn show(report: &Report) -> Vec<String> {
    let mut lines = vec![format!(
        "{} cores, {}, {}",
        report.cores, report.cipher, report.codec
    )];
    lines.push(String::new());
    lines.push(format!(
        "{:<34} {:>12} {:>14}",
        "one core", "text", "random bytes"
    ));
    for part in &report.parts {
        lines.push(format!(
            "{:<34} {:>12} {:>14}",
            part.name,
            rate(part.text_bytes_per_second),
            rate(part.random_bytes_per_second)
        ));
    }
    lines.push(String::new());
    let disk = &report.disk;
    lines.push(format!("{:<34} {:>12}", "the disk", ""));
    lines.push(format!(
        "{:<34} {:>12}",
        "write, with a flush at the end",
        rate(disk.write_bytes_per_second)
    ));
    lines.push(format!(
        "{:<34} {:>12}",
        "read",
        rate(disk.read_bytes_per_second)
    ));
    lines.push(format!(
        "{:<34} {:>12}",
        "4 KiB written and flushed",
        format!("{:.0} us", disk.flush_seconds * 1e6)
    ));
    lines.push(String::new());
    lines.push(format!(
        "{:<34} {:>12} {:>14} {:>7}  {}",
        "a pool on it, without a mount", "measured", "limit", "ratio", "the limit is"
    ));
    for path in &report.paths {
        let (measured, limit) = match path.unit {
            "bytes/s" => (rate(path.measured), path.limit.map(rate)),
            _ => {
                let each = |it: f64| format!("{it:.0} /s");
                (each(path.measured), path.limit.map(each))
            }
        };
        let ratio = path
            .limit
            .map(|limit| format!("{:.2}", path.measured / limit));
        let line = format!(
            "{:<34} {:>12} {:>14} {:>7}  {}",
            path.name,
            measured,
            limit.unwrap_or_default(),
            ratio.unwrap_or_default(),
            path.limited_by.unwrap_or_default()
        );
        lines.push(line.trim_end().to_owned());
    }
    lines
}
