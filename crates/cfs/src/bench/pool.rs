//! A pool on the disk: how fast content goes in and comes out, and the lowest of the limits that it has.
//!
//! The limits are those of the parts: each byte passes all of them on some core, and what is left of it passes the disk.

use std::path::Path as HostPath;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cfs_format::Ino;
use cfs_fs::{Caller, Fs, FsError};
use serde::Serialize;

use super::disk::Disk;
use super::parts::{self, Part, Samples};
use super::{Clock, Session};
use crate::cli::{BenchArgs, FirstRunArgs, KeyArgs};
use crate::datadir::DataDir;
use crate::failure::{Code, Failure, Result, no_thread};
use crate::keys::{Environment, KeyGiven};
use crate::pool::{self, Pool, Use};
use crate::serve::Ticker;

const STEP: Duration = Duration::from_secs(4);
const SMALL_STEP: Duration = Duration::from_secs(2);
const WRITE_BYTES: usize = 1 << 20;
const SMALL_BYTES: u64 = 4096;
/// A changed byte in each of these makes all chunks new.
const CHANGE_EVERY: usize = 16 << 10;

/// What one way through the pool does.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Path {
    pub name: &'static str,
    /// `bytes/s` of content, or `1/s`.
    pub unit: &'static str,
    pub measured: f64,
    /// What the parts would allow.
    pub limit: Option<f64>,
    /// The part that takes the most time, or the disk.
    pub limited_by: Option<&'static str>,
}

/// What a path cannot exceed.
pub(super) struct Limits<'a> {
    pub parts: &'a [Part],
    pub disk: &'a Disk,
    pub cores: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Random,
}

impl Limits<'_> {
    /// All cores on `steps`, or the disk with what is left of the content: bytes a second, and what the limit is.
    fn of(&self, kind: Kind, steps: &[&'static str], disk: Option<f64>) -> (f64, &'static str) {
        let seconds = |name: &str| {
            let part = self.parts.iter().find(|part| part.name == name);
            part.map_or(0.0, |part| match kind {
                Kind::Text => 1.0 / part.text_bytes_per_second,
                Kind::Random => 1.0 / part.random_bytes_per_second,
            })
        };
        let all: f64 = steps.iter().map(|step| seconds(step)).sum();
        let slowest = steps
            .iter()
            .max_by(|a, b| seconds(a).total_cmp(&seconds(b)))
            .copied();
        let processors = self.cores as f64 / all.max(1e-12);
        match disk {
            Some(disk) if disk < processors => (disk, "the disk"),
            _ => (processors, slowest.unwrap_or_default()),
        }
    }
}

fn failed(error: FsError) -> Failure {
    Failure::new(Code::Host, format!("the bench's pool: {error}"))
        .hint("look at the disk that it is on")
}

/// A pool with the background work that a server would do for it.
struct Running {
    pool: Pool,
    ticker: Ticker,
}

impl Running {
    /// The pool in `dir`, made on the first call.
    fn open(dir: &HostPath, args: &BenchArgs) -> Result<Self> {
        let first_run = FirstRunArgs {
            cipher: args.cipher,
            codec: args.codec,
            ..FirstRunArgs::default()
        };
        let dir = DataDir::at(&dir.join("pool"))?;
        let key = KeyGiven::new(KeyArgs::default(), Environment::default());
        let usage = Use {
            serves: true,
            is_temporary: true,
            ..Use::default()
        };
        let pool = pool::open_or_create(&dir, key, &first_run, usage)?;
        let ticker = Ticker::start(&pool)?;
        Ok(Self { pool, ticker })
    }

    fn fs(&self) -> &Fs {
        &self.pool.fs
    }

    fn close(self) -> Result<()> {
        drop(self.ticker);
        pool::close(&self.pool.fs)
    }
}

/// Measures all paths.
///
/// # Errors
/// The pool cannot be made or used, or the user has ended it.
pub(super) fn measure(
    session: &Session,
    dir: &HostPath,
    args: &BenchArgs,
    samples: &Samples,
    limits: &Limits<'_>,
    room: u64,
) -> Result<Vec<Path>> {
    let mut paths = Vec::new();
    for (kind, [new, again, cold], sample) in [
        (
            Kind::Text,
            ["store text", "store the same text again", "read text, cold"],
            &samples.text,
        ),
        (
            Kind::Random,
            [
                "store random bytes",
                "store the same bytes again",
                "read random bytes, cold",
            ],
            &samples.random,
        ),
    ] {
        let pool = Running::open(dir, args)?;
        let before = pool.fs().store().stats().pool;
        let step = session.step(new, STEP)?;
        let stored = store(pool.fs(), sample, limits.cores, room, &step, new)?;
        let after = pool.fs().store().stats().pool;
        let raw = (after.chunk_raw_bytes.get() - before.chunk_raw_bytes.get()).max(1);
        let kept =
            (after.chunk_stored_bytes.get() - before.chunk_stored_bytes.get()) as f64 / raw as f64;
        let new_limit = limits.of(
            kind,
            &[
                parts::CHUNK,
                parts::FINGERPRINT,
                parts::COMPRESS,
                parts::SEAL,
            ],
            Some(limits.disk.write_bytes_per_second / kept),
        );
        paths.push(path(new, stored.rate, new_limit));

        let step = session.step(again, STEP)?;
        let doubled = store(pool.fs(), sample, limits.cores, stored.bytes, &step, again)?;
        let limit = limits.of(kind, &[parts::CHUNK, parts::FINGERPRINT], None);
        paths.push(path(again, doubled.rate, limit));
        pool.close()?;

        // Opened anew it has nothing in memory.
        let pool = Running::open(dir, args)?;
        drop_page_cache(&dir.join("pool").join("pool"));
        let step = session.step(cold, STEP)?;
        let rate = load(pool.fs(), &stored, &step)?;
        let limit = limits.of(
            kind,
            &[parts::OPEN, parts::DECOMPRESS],
            Some(limits.disk.read_bytes_per_second / kept),
        );
        paths.push(path(cold, rate, limit));
        pool.close()?;
    }
    let pool = Running::open(dir, args)?;
    let step = session.step("write 4 KiB and fsync", SMALL_STEP)?;
    paths.push(Path {
        name: "write 4 KiB and fsync",
        unit: "1/s",
        measured: synced_writes(pool.fs(), &step, room)?,
        limit: Some(1.0 / limits.disk.flush_seconds.max(1e-9)),
        limited_by: Some("a flush of the disk"),
    });
    let step = session.step("make files of 4 KiB", SMALL_STEP)?;
    paths.push(Path {
        name: "make files of 4 KiB",
        unit: "1/s",
        measured: small_files(pool.fs(), &step, room)?,
        limit: None,
        limited_by: None,
    });
    pool.close()?;
    session.check()?;
    Ok(paths)
}

fn path(name: &'static str, measured: f64, (limit, limited_by): (f64, &'static str)) -> Path {
    Path {
        name,
        unit: "bytes/s",
        measured,
        limit: Some(limit),
        limited_by: Some(limited_by),
    }
}

/// What a step has stored.
struct Stored {
    files: Vec<Ino>,
    bytes: u64,
    rate: f64,
}

/// Writes files, one for each core, until the clock ends or there are `bytes`, and makes them durable. The same call
/// writes the same content.
fn store(
    fs: &Fs,
    sample: &[u8],
    cores: usize,
    bytes: u64,
    clock: &Clock,
    name: &str,
) -> Result<Stored> {
    let files = (0..cores)
        .map(|core| create(fs, &format!("{name} {core}")))
        .collect::<Result<Vec<_>>>()?;
    let share = bytes / cores as u64;
    let written = AtomicU64::new(0);
    let write = |core: usize, ino: Ino| -> std::result::Result<(), FsError> {
        let mut data = sample.to_vec();
        let mut offset = 0_u64;
        while offset < share && clock.is_running() {
            let round = offset / sample.len() as u64 + 1;
            for part in data.chunks_exact_mut(CHANGE_EVERY) {
                let change = (round << 16) | (core as u64 + 1);
                part[..8]
                    .copy_from_slice(&change.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
            }
            for piece in data.chunks(WRITE_BYTES) {
                fs.write(ino, offset, piece, false)?;
                offset += piece.len() as u64;
                if offset >= share || !clock.is_running() {
                    break;
                }
            }
        }
        fs.fsync(ino, true)?;
        written.fetch_add(offset, Ordering::Relaxed);
        Ok(())
    };
    let writers = files
        .iter()
        .enumerate()
        .map(|(core, ino)| move || write(core, *ino));
    run_together(writers)?;
    let bytes = written.load(Ordering::Relaxed);
    Ok(Stored {
        files,
        bytes,
        rate: bytes as f64 / clock.seconds(),
    })
}

/// Bytes a second that one reader for each file gets.
fn load(fs: &Fs, stored: &Stored, clock: &Clock) -> Result<f64> {
    let read = AtomicU64::new(0);
    let reader = |ino: Ino| -> std::result::Result<(), FsError> {
        let (mut out, mut offset) = (Vec::new(), 0);
        while clock.is_running() {
            out.clear();
            fs.read(ino, offset, WRITE_BYTES, &mut out)?;
            if out.is_empty() {
                break;
            }
            offset += out.len() as u64;
        }
        read.fetch_add(offset, Ordering::Relaxed);
        Ok(())
    };
    run_together(stored.files.iter().map(|ino| || reader(*ino)))?;
    Ok(read.load(Ordering::Relaxed) as f64 / clock.seconds())
}

/// Runs all of them at a time, each in a thread of its own.
fn run_together<Work>(all: impl Iterator<Item = Work>) -> Result<()>
where
    Work: FnOnce() -> std::result::Result<(), FsError> + Send,
{
    std::thread::scope(|scope| {
        let threads: std::result::Result<Vec<_>, _> = all
            .map(|work| std::thread::Builder::new().spawn_scoped(scope, work))
            .collect();
        threads
            .map_err(|error| no_thread(&error))?
            .into_iter()
            .try_for_each(|thread| thread.join().expect("a panic ends the process"))
            .map_err(failed)
    })
}

fn create(fs: &Fs, name: &str) -> Result<Ino> {
    fs.create(Ino::ROOT, name.as_bytes(), 0o600, &Caller::default())
        .map(|attr| attr.ino)
        .map_err(failed)
}

/// Content of 4 KiB that is nowhere else.
fn small_content(numbers: &mut parts::Numbers) -> Vec<u8> {
    (0..SMALL_BYTES / 8)
        .flat_map(|_| numbers.next().to_le_bytes())
        .collect()
}

/// Writes of 4 KiB, each made durable, a second: the median of at least one, and of not more than `bytes` hold.
fn synced_writes(fs: &Fs, clock: &Clock, bytes: u64) -> Result<f64> {
    let ino = create(fs, "synced")?;
    let mut numbers = parts::Numbers::new(7);
    let mut times = Vec::new();
    let mut offset = 0;
    loop {
        let data = small_content(&mut numbers);
        let started = Instant::now();
        fs.write(ino, offset, &data, false)
            .and_then(|_| fs.fsync(ino, true))
            .map_err(failed)?;
        times.push(started.elapsed());
        offset += SMALL_BYTES;
        if !clock.is_running() || offset >= bytes {
            break;
        }
    }
    times.sort_unstable();
    Ok(1.0 / times[times.len() / 2].as_secs_f64().max(1e-9))
}

/// Files of 4 KiB made a second, not more than `bytes` hold, all durable at the end.
fn small_files(fs: &Fs, clock: &Clock, bytes: u64) -> Result<f64> {
    let mut numbers = parts::Numbers::new(9);
    let mut count = 0_u64;
    while clock.is_running() && count * SMALL_BYTES < bytes {
        let data = small_content(&mut numbers);
        let ino = create(fs, &format!("small {count}"))?;
        fs.write(ino, 0, &data, false).map_err(failed)?;
        count += 1;
    }
    fs.syncfs().map_err(failed)?;
    Ok(count as f64 / clock.seconds())
}

/// What the host keeps of the pool's file would make reading look quicker than the disk is.
fn drop_page_cache(pool: &HostPath) {
    let dropped = std::fs::File::open(pool).and_then(|file| {
        file.sync_data()?;
        Ok(rustix::fs::fadvise(
            &file,
            0,
            None,
            rustix::fs::Advice::DontNeed,
        )?)
    });
    if let Err(error) = dropped {
        tracing::warn!(%error, "the host's page cache could not be emptied: reads may be too quick");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn small_writes_end_where_their_room_does() {
        const COUNT: u64 = 40;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let args = BenchArgs {
            dir: dir.path().to_owned(),
            cipher: None,
            codec: None,
            seconds: 1,
            json: false,
        };
        let clock = Clock {
            stop: Arc::new(AtomicBool::new(false)),
            started: Instant::now(),
            limit: Duration::from_secs(2),
        };
        let pool = Running::open(dir.path(), &args).expect("a pool");
        let fs = pool.fs();
        assert!(synced_writes(fs, &clock, COUNT * SMALL_BYTES).expect("written") > 0.0);
        assert!(small_files(fs, &clock, COUNT * SMALL_BYTES).expect("made") > 0.0);
        let synced = fs.resolve(b"/synced").expect("there");
        assert_eq!(synced.size, COUNT * SMALL_BYTES);
        let names = fs.names_from(Ino::ROOT, b"small ", usize::MAX);
        let small = names.expect("listed").into_iter();
        let small = small.filter(|it| it.name.starts_with(b"small "));
        assert_eq!(small.count() as u64, COUNT);
        pool.close().expect("closed");
    }
}
