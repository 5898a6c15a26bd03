//! `cargo xtask bench reclaim`: what compaction costs those who use the mount meanwhile.
//!
//! A pool is filled with files, and a random part of each group of them removed, so that all segments are half dead. One
//! thread then writes 4 KiB and syncs, another reads 4 KiB at random from files that no cache holds. The same is measured
//! in turns on that mount while its segments are emptied, and on one beside it that has nothing to empty. What matters is
//! the ratio of the two within one run.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::bench_run::Run;
use crate::place::{Place, output, run_command};

/// How much to write, and for how long to measure.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    run: Run,
    /// MiB written to each pool.
    #[arg(long, default_value_t = 2048)]
    size_mib: u64,
    /// Seconds of each turn.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Empty segments without pacing (`gc --now`), to see what pacing is for.
    #[arg(long)]
    now: bool,
}

/// Bytes of one file.
const FILE_BYTES: u64 = 1 << 20;

/// Latencies in microseconds.
#[derive(Default)]
struct Latencies(Vec<f64>);

impl Latencies {
    fn percentile(&mut self, percent: usize) -> f64 {
        self.0.sort_by(f64::total_cmp);
        let index = self.0.len() * percent / 100;
        self.0
            .get(index.min(self.0.len().saturating_sub(1)))
            .copied()
            .unwrap_or(f64::NAN)
    }
}

#[derive(Default)]
struct Figures {
    syncs: Latencies,
    reads: Latencies,
}

/// Runs the bench and prints the table.
///
/// # Errors
/// When something cannot be run; all is unmounted and removed in any case.
pub fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(options.seconds > 0, "something to measure");
    let mut quiet = options.run.place("bench-reclaim-quiet")?;
    let mut busy = options.run.place("bench-reclaim-busy")?;
    for place in [&mut quiet, &mut busy] {
        place.start(true)?;
        fill(&place.mnt(), options.size_mib)?;
        output(&mut place.cfs(&["admin", "gc", "--now"]))?;
    }
    let (mut without, mut with) = (Figures::default(), Figures::default());
    let mut done = Vec::new();
    for round in 0..options.run.rounds {
        measure(&quiet.mnt(), options, round, &mut without)?;
        // The dead weight of this round: of the files that are left, one of two. At once, since an idle pool does not wait.
        remove_half(&busy.mnt(), round)?;
        let before = emptied(&busy)?;
        let compacting = Compaction::start(&busy, options.now)?;
        measure(&busy.mnt(), options, round, &mut with)?;
        compacting.stop()?;
        let after = emptied(&busy)?;
        done.push((after.0 - before.0, after.1 - before.1));
        eprintln!(
            "round {} of {}: {} segments emptied, {} MiB copied",
            round + 1,
            options.run.rounds,
            after.0 - before.0,
            (after.1 - before.1) >> 20
        );
        output(&mut busy.cfs(&["admin", "gc", "--now"]))?;
    }
    ensure!(
        done.iter().any(|(segments, _)| *segments > 0),
        "nothing was emptied while it was measured"
    );
    println!("| | no compaction | compaction | ratio |\n| --- | ---: | ---: | ---: |");
    let rows = [
        ("write 4 KiB + fsync", &mut without.syncs, &mut with.syncs),
        ("read 4 KiB, cold", &mut without.reads, &mut with.reads),
    ];
    for (name, without, with) in rows {
        for percent in [50, 99] {
            let (without, with) = (without.percentile(percent), with.percentile(percent));
            println!(
                "| {name}, p{percent} | {without:.0} us | {with:.0} us | {:.2} |",
                with / without
            );
        }
    }
    let seconds = options.seconds * options.run.rounds as u64;
    let copied: u64 = done.iter().map(|(_, copied)| copied).sum();
    let segments: u64 = done.iter().map(|(segments, _)| segments).sum();
    println!(
        "\n{segments} segments emptied and {} MiB copied in {seconds} s",
        copied >> 20
    );
    quiet.stop()?;
    busy.stop()?;
    quiet.remove()?;
    busy.remove()
}

/// Content that does not shrink.
fn noise(seed: u64, bytes: &mut [u8]) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
    }
}

fn fill(mnt: &Path, size_mib: u64) -> anyhow::Result<()> {
    let mut content = vec![0; FILE_BYTES as usize];
    for number in 0..size_mib {
        noise(number + 1, &mut content);
        fs::write(mnt.join(format!("f{number}")), &content)?;
    }
    let file = File::open(mnt.join("f0"))?;
    file.sync_all().context("syncing")
}

fn files(mnt: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(mnt)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        if name.is_some_and(|name| name.starts_with('f')) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn remove_half(mnt: &Path, round: usize) -> anyhow::Result<()> {
    for (number, path) in files(mnt)?.into_iter().enumerate() {
        if (number.wrapping_mul(0x9e37_79b9) >> (8 + round)) & 1 == 0 {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Segments emptied by the server so far, and bytes copied out of them.
fn emptied(place: &Place) -> anyhow::Result<(u64, u64)> {
    let status = output(&mut place.cfs(&["admin", "status", "--json"]))?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    let number = |name: &str| {
        let number = status["reclaim"][name].as_u64();
        number.with_context(|| format!("reclaim.{name} is missing in {status}"))
    };
    Ok((number("segments")?, number("copied_bytes")?))
}

/// A pass that is under way while something is measured.
struct Compaction(std::process::Child);

impl Compaction {
    fn start(place: &Place, now: bool) -> anyhow::Result<Self> {
        let mut command = place.cfs(&["admin", "gc"]);
        command.args(now.then_some("--now"));
        command.stdout(std::process::Stdio::null());
        command.stderr(std::process::Stdio::null());
        Ok(Self(command.spawn()?))
    }

    /// Ends the watching. What is left is done without pacing before the next round.
    fn stop(mut self) -> anyhow::Result<()> {
        let pid = rustix::process::Pid::from_child(&self.0);
        if self.0.try_wait()?.is_none() {
            rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        }
        self.0.wait()?;
        Ok(())
    }
}

/// One thread writes and syncs, one reads, each waiting a little between two operations, so that the machine is used and
/// not filled up.
fn measure(mnt: &Path, options: &Options, round: usize, into: &mut Figures) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let pause = Duration::from_millis(2);
    let files = files(mnt)?;
    run_command(std::process::Command::new("sync").arg("-f").arg(mnt))?;
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| -> anyhow::Result<Vec<f64>> {
            let mut file = File::create(mnt.join("appended"))?;
            let mut block = vec![0; 4096];
            let mut taken = Vec::new();
            while Instant::now() < end {
                noise(
                    taken.len() as u64 + 1_000_000 * (round as u64 + 1),
                    &mut block,
                );
                let started = Instant::now();
                file.write_all(&block)?;
                file.sync_data()?;
                taken.push(started.elapsed().as_secs_f64() * 1e6);
                std::thread::sleep(pause);
            }
            Ok(taken)
        });
        let reader = scope.spawn(|| -> anyhow::Result<Vec<f64>> {
            let mut block = vec![0; 4096];
            let mut state = 77 + round as u64;
            let mut taken = Vec::new();
            while Instant::now() < end {
                let mut random = [0; 8];
                noise(state, &mut random);
                state += 1;
                let random = u64::from_le_bytes(random);
                let path = &files[(random % files.len() as u64) as usize];
                let file = File::open(path)?;
                let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
                let place = (random >> 32) % (FILE_BYTES / 4096) * 4096;
                let started = Instant::now();
                file.read_exact_at(&mut block, place)?;
                taken.push(started.elapsed().as_secs_f64() * 1e6);
                std::thread::sleep(pause);
            }
            Ok(taken)
        });
        into.syncs.0.extend(writer.join().expect("no panic")?);
        into.reads.0.extend(reader.join().expect("no panic")?);
        anyhow::Ok(())
    })
}
