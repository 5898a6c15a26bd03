//! A file whose content tells where it belongs, and reading it at random.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::fs::{Advice, SeekFrom, fadvise};
use rustix::io::Errno;

use crate::workload::Random;

pub(super) const PAGE_BYTES: usize = 4096;
/// No chunk is smaller, but for the last one of a file.
pub(super) const CHUNK_BYTES_MIN: usize = 64 << 10;
const BLOCK_BYTES: usize = 1 << 20;
/// Bytes of each page that are compared.
const COMPARED_BYTES: usize = 64;
/// The share of what was asked of the disk that it must have read.
const DEVICE_SHARE_MIN: f64 = 0.9;

/// What a measurement came to.
#[derive(Clone, Copy)]
pub(super) struct Reads {
    count: u64,
    seconds: f64,
    /// Read from the disk for them.
    device_bytes: u64,
}

impl Reads {
    /// Reads a second.
    pub(super) fn rate(&self) -> f64 {
        self.count as f64 / self.seconds
    }

    /// Bytes from the disk for each.
    pub(super) fn bytes_each(&self) -> u64 {
        self.device_bytes / self.count.max(1)
    }
}

/// Writes the file, until it is durable.
///
/// # Errors
/// What the file system refuses; part of the file is there then.
pub(super) fn write(path: &Path, mib: u64) -> io::Result<()> {
    let file = File::create_new(path)?;
    let mut block = vec![0; BLOCK_BYTES];
    for at in (0..mib << 20).step_by(BLOCK_BYTES) {
        for (index, page) in block.chunks_exact_mut(PAGE_BYTES).enumerate() {
            fill(at + (index * PAGE_BYTES) as u64, page);
        }
        file.write_all_at(&block, at)?;
    }
    file.sync_all()
}

/// The first bytes of the page at this place of the file.
fn fill(at: u64, page: &mut [u8]) {
    let mut random = Random::new(Random::new(0x5eed_4a6d_0000_0001 ^ at).next());
    for word in page.chunks_exact_mut(8) {
        word.copy_from_slice(&random.next().to_le_bytes());
    }
}

/// Places in so many MiB, this far apart, each of them once, in an order that the seed decides about.
pub(super) fn shuffled(mib: u64, apart: usize, seed: u64) -> Vec<u64> {
    shuffle((0..mib << 20).step_by(apart).collect(), seed)
}

fn shuffle(mut places: Vec<u64>, seed: u64) -> Vec<u64> {
    let mut random = Random::new(seed);
    for left in (1..places.len()).rev() {
        places.swap(left, random.below(left as u64 + 1) as usize);
    }
    places
}

/// Has the kernel drop its pages of a file, which must be durable.
///
/// # Errors
/// When there is no such file.
pub(super) fn forget(path: &Path) -> io::Result<()> {
    Ok(fadvise(&File::open(path)?, 0, None, Advice::DontNeed)?)
}

/// Reads pages at the places, in their order, until there are no more or the time is over; `pid` is the process that reads
/// the disk.
///
/// # Errors
/// When reading fails, or the content is another one.
pub(super) fn read(
    path: &Path,
    places: &[u64],
    pid: u32,
    threads: usize,
    limit: Duration,
) -> anyhow::Result<Reads> {
    measure(places, pid, threads, limit, |own| {
        let file = File::open(path)?;
        fadvise(&file, 0, None, Advice::Random)?;
        let (mut page, mut expected) = ([0; PAGE_BYTES], [0; COMPARED_BYTES]);
        for at in own {
            file.read_exact_at(&mut page, at)?;
            fill(at, &mut expected);
            if page[..COMPARED_BYTES] != expected {
                return Err(io::Error::other(format!("wrong content at {at}")));
            }
        }
        Ok(())
    })
    .with_context(|| format!("reading {}", path.display()))
}

/// Reads `piece` bytes at a time, at random places of the file that have blocks, past the kernel's cache.
///
/// # Errors
/// When the file system cannot do that, or the disk was not read for it.
pub(super) fn read_device(
    path: &Path,
    piece: usize,
    seed: u64,
    threads: usize,
    limit: Duration,
) -> anyhow::Result<Reads> {
    let places = shuffle(places_with_blocks(path, piece)?, seed);
    let reads = measure(&places, std::process::id(), threads, limit, |own| {
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)?;
        let mut buffer = vec![1; piece + PAGE_BYTES];
        let start = buffer.as_ptr().align_offset(PAGE_BYTES);
        let buffer = &mut buffer[start..start + piece];
        for at in own {
            file.read_exact_at(buffer, at)?;
        }
        Ok(())
    })
    .with_context(|| format!("reading {} directly", path.display()))?;
    let asked = reads.count as f64 * piece as f64;
    ensure!(
        reads.device_bytes as f64 >= asked * DEVICE_SHARE_MIN,
        "of {asked} bytes of {} only {} were read from the disk",
        path.display(),
        reads.device_bytes
    );
    Ok(reads)
}

/// Places of so many bytes each that have blocks and were written.
fn places_with_blocks(path: &Path, piece: usize) -> anyhow::Result<Vec<u64>> {
    let (file, piece) = (File::open(path)?, piece as u64);
    let (mut places, mut end) = (Vec::new(), 0);
    loop {
        let start = match rustix::fs::seek(&file, SeekFrom::Data(end)) {
            Err(Errno::NXIO) => break,
            start => start?,
        };
        end = rustix::fs::seek(&file, SeekFrom::Hole(start))?;
        let aligned = start.next_multiple_of(PAGE_BYTES as u64);
        places.extend((aligned..end.saturating_sub(piece - 1)).step_by(piece as usize));
    }
    ensure!(!places.is_empty(), "{} has no blocks", path.display());
    Ok(places)
}

/// Has each thread work on places of its own; `work` ends when they do.
fn measure(
    places: &[u64],
    pid: u32,
    threads: usize,
    limit: Duration,
    work: impl Fn(&mut dyn Iterator<Item = u64>) -> io::Result<()> + Sync,
) -> anyhow::Result<Reads> {
    let before = read_bytes(pid)?;
    let barrier = Barrier::new(threads);
    let thread = |number: usize| -> io::Result<(u64, Duration)> {
        barrier.wait();
        let (start, mut count) = (Instant::now(), 0);
        let own = places.iter().copied().skip(number).step_by(threads);
        work(
            &mut own
                .take_while(|_| start.elapsed() < limit)
                .inspect(|_| count += 1),
        )?;
        Ok((count, start.elapsed()))
    };
    let mut reads = Reads {
        count: 0,
        seconds: 0.0,
        device_bytes: 0,
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|number| scope.spawn(move || thread(number)))
            .collect();
        for thread in running {
            let (count, took) = thread.join().expect("a reader does not panic")?;
            reads.count += count;
            reads.seconds = reads.seconds.max(took.as_secs_f64());
        }
        io::Result::Ok(())
    })?;
    reads.device_bytes = read_bytes(pid)? - before;
    Ok(reads)
}

/// What a process has had read from disks so far; proc_pid_io(5).
fn read_bytes(pid: u32) -> anyhow::Result<u64> {
    let counts = fs::read_to_string(format!("/proc/{pid}/io"))?;
    let line = counts
        .lines()
        .find_map(|line| line.strip_prefix("read_bytes:"));
    let bytes = line.context("/proc/PID/io has no read_bytes")?;
    Ok(bytes.trim().parse()?)
}
