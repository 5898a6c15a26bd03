//! `cargo xtask bench s3-bounds`: what must not grow: memory under many slow clients and under one huge object, and
//! the time of a listing with the size of the bucket.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::place::Place;
use crate::s3_client::{Account, Connection, Sent};
use crate::workload::Random;

/// How much of each; 0 leaves one out.
#[derive(clap::Args)]
pub struct Options {
    /// The release binary of ClaudeFS; by default the one beside this program.
    #[arg(long)]
    cfs: Option<PathBuf>,
    /// Directory for the pool; by default the system's temporary directory.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Clients that send a byte now and then, and as many that take one.
    #[arg(long, default_value_t = 250)]
    slow: usize,
    /// Seconds that they stay.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// GiB of the huge object.
    #[arg(long, default_value_t = 50)]
    huge_gib: u64,
    /// Objects in the larger bucket of the listing; the smaller one has 10,000.
    #[arg(long, default_value_t = 1_000_000)]
    keys: usize,
    /// Bytes of dirty data and of read data that the server may keep, as for `cfs server`.
    #[arg(long, default_value = "16MiB")]
    buffers: String,
}

/// Bytes of a part of the huge object.
const PART_BYTES: u64 = 512 << 20;
/// Objects in the smaller bucket.
const FEW_KEYS: usize = 10_000;
/// Listings of each bucket.
const LISTINGS: usize = 60;
/// Connections that fill a bucket.
const FILLERS: usize = 32;

/// Runs what is asked for and prints the figures.
///
/// # Errors
/// When the server refuses what it should not, or starves a client.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let dir = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let mut place = Place::new(&dir, "bench-s3-bounds", options.cfs.as_deref())?;
    let address = place.with_s3()?;
    place.with(&[
        "--dirty-bytes",
        &options.buffers,
        "--hot-bytes",
        &options.buffers,
        "--table-bytes",
        &options.buffers,
    ]);
    place.start(false)?;
    let account = place.account(address, "bench")?;
    Connection::new(&account).ask("PUT", "/bench", "")?.ok()?;
    // One object there and back, so that what is needed once is there.
    put_and_get(&account, "/bench/warm", 64 << 20)?;
    let idle = settled(&mut place)?;
    println!("resident memory, idle: {} MiB", idle >> 10);
    if options.slow > 0 {
        slow_clients(&mut place, &account, options, idle)?;
    }
    if options.huge_gib > 0 {
        huge_object(&mut place, &account, options.huge_gib << 30, idle)?;
    }
    if options.keys > 0 {
        listing(&account, options.keys)?;
    }
    place.stop()?;
    place.remove()
}

/// KiB of resident memory, after what is not needed has been given back.
fn settled(place: &mut Place) -> anyhow::Result<u64> {
    std::thread::sleep(Duration::from_secs(3));
    field(place.pid(), "VmRSS:")
}

fn field(pid: u32, name: &str) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|rest| rest.trim().split(' ').next());
    Ok(kib.with_context(|| format!("no {name}"))?.parse()?)
}

/// Begins to watch the peak of the resident memory from now on (proc(5), `clear_refs`).
fn forget_peak(pid: u32) -> anyhow::Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    std::fs::write(&path, "5").with_context(|| format!("writing {path}"))
}

fn fill(seed: u64, at: u64, piece: &mut [u8]) {
    let mut rng = Random::new(seed ^ at);
    for word in piece.chunks_mut(8) {
        let bytes = rng.next().to_le_bytes();
        word.copy_from_slice(&bytes[..word.len()]);
    }
}

fn put_and_get(account: &Account, key: &str, bytes: u64) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let mut connection = Connection::new(account);
    let mut sent = Sent {
        bytes,
        fill: &mut |at, piece| fill(1, at, piece),
    };
    connection.put(key, "", &mut sent)?.ok()?;
    let mut received = 0;
    let show = &mut |_: u64, piece: &[u8]| received += piece.len() as u64;
    connection.get(key, "", show)?.ok()?;
    ensure!(received == bytes, "{received} of {bytes} bytes came back");
    Ok(started.elapsed())
}

fn slow_clients(
    place: &mut Place,
    account: &Account,
    options: &Options,
    idle: u64,
) -> anyhow::Result<()> {
    const LARGE: u64 = 64 << 20;
    let alone = put_and_get(account, "/bench/other", 16 << 20)?;
    forget_peak(place.pid())?;
    let (mut senders, mut takers) = (Vec::new(), Vec::new());
    for number in 0..options.slow {
        let mut stream = account.connect()?;
        let head = account.head("PUT", &format!("/bench/slow{number}"), "", LARGE);
        stream.write_all(head.as_bytes())?;
        senders.push(stream);
        let mut stream = account.connect()?;
        let head = account.head("GET", "/bench/warm", "", 0);
        stream.write_all(head.as_bytes())?;
        takers.push(stream);
    }
    let (mut beside, mut rng, started) = (Duration::ZERO, Random::new(5), Instant::now());
    let mut piece = vec![0; 8 << 10];
    while started.elapsed() < Duration::from_secs(options.seconds) {
        for (sender, taker) in senders.iter_mut().zip(&mut takers) {
            let bytes = 1 + rng.below(piece.len() as u64 - 1) as usize;
            sender.write_all(&piece[..bytes])?;
            taker.read_exact(&mut piece[..1])?;
        }
        beside = beside.max(put_and_get(account, "/bench/other", 16 << 20)?);
        std::thread::sleep(Duration::from_millis(100));
    }
    let peak = field(place.pid(), "VmHWM:")?;
    println!(
        "{} slow clients for {} s: {} MiB at most beyond the idle set; 16 MiB there and back beside them {:.2} s at most, \
         {:.2} s alone",
        2 * options.slow,
        options.seconds,
        peak.saturating_sub(idle) >> 10,
        beside.as_secs_f64(),
        alone.as_secs_f64()
    );
    drop((senders, takers));
    // The server looks every few seconds whether there is something to give back.
    std::thread::sleep(Duration::from_secs(12));
    let after = settled(place)?;
    println!(
        "  when they have gone: {} MiB more than before",
        after.saturating_sub(idle) >> 10
    );
    Ok(())
}

/// An object of parts, most of which are the same, so that it fits on the disk.
fn huge_object(place: &mut Place, account: &Account, bytes: u64, idle: u64) -> anyhow::Result<()> {
    forget_peak(place.pid())?;
    let started = Instant::now();
    let mut connection = Connection::new(account);
    let begun = connection.ask("POST", "/bench/huge", "uploads")?.ok()?;
    let id = begun.tag("UploadId").context("no UploadId")?.to_owned();
    let mut list = String::new();
    let mut pattern = vec![0; 1 << 20];
    fill(9, 0, &mut pattern);
    for number in 1..=bytes.div_ceil(PART_BYTES) {
        let mut sent = Sent {
            bytes: PART_BYTES.min(bytes - (number - 1) * PART_BYTES),
            // Every 32nd MiB is new.
            fill: &mut |at, piece| {
                piece.copy_from_slice(&pattern[..piece.len()]);
                if (at >> 20).is_multiple_of(32) {
                    fill(number << 32, at, piece);
                }
            },
        };
        let query = format!("partNumber={number}&uploadId={id}");
        let answer = connection.put("/bench/huge", &query, &mut sent)?.ok()?;
        let etag = answer.header("etag");
        list += &format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>");
    }
    let list = format!("<CompleteMultipartUpload>{list}</CompleteMultipartUpload>");
    let query = format!("uploadId={id}");
    connection
        .send_text("POST", "/bench/huge", &query, &list)?
        .ok()?;
    let took = started.elapsed().as_secs_f64();
    let peak = field(place.pid(), "VmHWM:")?;
    println!(
        "PUT of {} GiB: {} MiB at most beyond the idle set; {:.0} MB/s",
        bytes >> 30,
        peak.saturating_sub(idle) >> 10,
        bytes as f64 / 1e6 / took
    );
    forget_peak(place.pid())?;
    let started = Instant::now();
    let mut received = 0;
    let show = &mut |_: u64, piece: &[u8]| received += piece.len() as u64;
    connection.get("/bench/huge", "", show)?.ok()?;
    ensure!(received == bytes, "{received} of {bytes} bytes came back");
    let took = started.elapsed().as_secs_f64();
    let peak = field(place.pid(), "VmHWM:")?;
    println!(
        "GET of it: {} MiB at most beyond the idle set; {:.0} MB/s",
        peak.saturating_sub(idle) >> 10,
        bytes as f64 / 1e6 / took
    );
    connection.ask("DELETE", "/bench/huge", "")?.ok()?;
    Ok(())
}

fn listing(account: &Account, keys: usize) -> anyhow::Result<()> {
    let buckets = [("/few", FEW_KEYS), ("/many", keys)];
    for (bucket, count) in buckets {
        let started = Instant::now();
        fill_bucket(account, bucket, count)?;
        let rate = count as f64 / started.elapsed().as_secs_f64();
        println!("{count} objects put at {rate:.0} objects/s");
    }
    // In turns, so that what else the machine does touches both.
    let mut connection = Connection::new(account);
    let mut taken = [Vec::new(), Vec::new()];
    let mut rng = Random::new(3);
    for _ in 0..LISTINGS {
        for ((bucket, count), taken) in buckets.into_iter().zip(&mut taken) {
            let after = rng.below((count - 1000) as u64);
            let query = format!("list-type=2&max-keys=1000&start-after=k{after:09}");
            let started = Instant::now();
            let listed = connection.ask("GET", bucket, &query)?.ok()?;
            taken.push(started.elapsed().as_secs_f64() * 1e3);
            let found = listed.text.matches("<Key>").count();
            ensure!(found == 1000, "{found} keys instead of 1,000");
        }
    }
    let mut medians = Vec::new();
    for ((_, count), mut taken) in buckets.into_iter().zip(taken) {
        taken.sort_by(f64::total_cmp);
        let median = taken[taken.len() / 2];
        println!(
            "1,000 keys of a bucket of {count}, from anywhere in it: {median:.1} ms in the middle, {:.1} ms at most",
            taken[taken.len() - 1]
        );
        medians.push(median);
    }
    let ratio = medians[1] / medians[0];
    println!("ratio {ratio:.2}");
    ensure!(ratio <= 2.0, "listing grows with the bucket");
    Ok(())
}

fn fill_bucket(account: &Account, bucket: &str, count: usize) -> anyhow::Result<()> {
    Connection::new(account).ask("PUT", bucket, "")?.ok()?;
    std::thread::scope(|scope| {
        let fillers: Vec<_> = (0..FILLERS)
            .map(|filler| {
                scope.spawn(move || -> anyhow::Result<()> {
                    let mut connection = Connection::new(account);
                    for number in (filler..count).step_by(FILLERS) {
                        let key = format!("{bucket}/k{number:09}");
                        connection.send_text("PUT", &key, "", "x")?.ok()?;
                    }
                    Ok(())
                })
            })
            .collect();
        fillers
            .into_iter()
            .try_for_each(|filler| filler.join().expect("no panic"))
    })
}
