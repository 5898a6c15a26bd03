//! What the disk below the directory does with plain files.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Clock, Session};
use crate::failure::{Code, Failure, Result};

/// Room that the whole bench needs, bytes.
const ROOM_MIN: u64 = 1 << 30;
/// Most that a single step writes, bytes.
const STEP_BYTES_MAX: u64 = 4 << 30;
const BLOCK_BYTES: usize = 2 << 20;
const STEP: Duration = Duration::from_secs(3);
const FLUSHES: Duration = Duration::from_millis(1500);

/// The disk alone.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Disk {
    /// One writer, 2 MiB at a time past the page cache where it allows, and a flush at the end.
    pub write_bytes_per_second: f64,
    /// The same file, read the same way.
    pub read_bytes_per_second: f64,
    /// Median time to overwrite 4 KiB and make them durable.
    pub flush_seconds: f64,
}

/// Bytes that one step may write.
///
/// # Errors
/// There is too little room for a bench.
pub(super) fn room(dir: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(dir).map_err(|e| Failure::host("look at", dir, &e.into()))?;
    let free = stat.f_bavail * stat.f_frsize;
    if free < ROOM_MIN {
        return Err(Failure::new(
            Code::Host,
            format!(
                "{} has {} free, and measuring takes {}",
                dir.display(),
                crate::bytes::show(free),
                crate::bytes::show(ROOM_MIN)
            ),
        )
        .hint("give a directory on a disk with more room"));
    }
    Ok((free / 8).min(STEP_BYTES_MAX))
}

/// Measures with a file in `scratch`, which is below `dir`, and removes it.
///
/// # Errors
/// The disk fails, or the user has ended it.
pub(super) fn measure(session: &Session, dir: &Path, scratch: &Path, room: u64) -> Result<Disk> {
    let path = scratch.join("plain");
    // Who runs a bench knows the directory, and nothing of what is made there.
    let failed = |action: &str| {
        let action = format!("{action} a file in");
        move |e: std::io::Error| Failure::host(&action, dir, &e)
    };
    let open = |flags: rustix::fs::OFlags| {
        let mut options = File::options();
        options.read(true).write(true).create(true).mode(0o600);
        options.custom_flags(flags.bits() as i32).open(&path)
    };
    // Not every file system can do without the page cache.
    let direct = rustix::fs::OFlags::DIRECT;
    let mut file = open(direct)
        .or_else(|_| open(rustix::fs::OFlags::empty()))
        .map_err(failed("create"))?;
    // Past the page cache memory must be aligned to blocks, and a file that has no content may be written for nothing.
    let mut memory = vec![0x5a_u8; BLOCK_BYTES + 4096];
    let start = memory.as_ptr().align_offset(4096);
    let block = &mut memory[start..start + BLOCK_BYTES];
    let mut numbers = super::parts::Numbers::new(1);
    for word in block.chunks_exact_mut(8) {
        word.copy_from_slice(&numbers.next().to_le_bytes());
    }

    let clock = session.step("write to the disk", STEP)?;
    let mut written = 0;
    while clock.is_running() && written < room {
        file.write_all(block).map_err(failed("write to"))?;
        written += BLOCK_BYTES as u64;
    }
    file.sync_data().map_err(failed("flush"))?;
    let write_bytes_per_second = written as f64 / clock.seconds();

    let flush_seconds = flushes(&file, block, &session.step("flush the disk", FLUSHES)?)
        .map_err(failed("write to"))?;

    let clock = session.step("read from the disk", STEP)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
        .map_err(|e| failed("read")(e.into()))?;
    let (mut read, mut rest) = (0, written);
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))
        .map_err(|e| failed("read")(e.into()))?;
    while clock.is_running() && rest > 0 {
        file.read_exact(block).map_err(failed("read"))?;
        read += BLOCK_BYTES as u64;
        rest -= BLOCK_BYTES as u64;
    }
    let read_bytes_per_second = read as f64 / clock.seconds();
    drop(file);
    std::fs::remove_file(&path).map_err(failed("remove"))?;
    session.check()?;
    Ok(Disk {
        write_bytes_per_second,
        read_bytes_per_second,
        flush_seconds,
    })
}

/// Median seconds of overwriting a block of 4 KiB and flushing it.
fn flushes(file: &File, block: &[u8], clock: &Clock) -> std::io::Result<f64> {
    let mut times = Vec::new();
    loop {
        let started = Instant::now();
        file.write_all_at(&block[..4096], (times.len() % 64 * 4096) as u64)?;
        file.sync_data()?;
        times.push(started.elapsed());
        if !clock.is_running() {
            break;
        }
    }
    times.sort_unstable();
    Ok(times[times.len() / 2].as_secs_f64())
}
