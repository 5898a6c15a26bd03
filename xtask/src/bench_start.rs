//! `cargo xtask bench start`: how long a server takes to serve a large tree again after `kill -9`, and what memory it then
//! rests with.
//!
//! The tree is empty files, 1,000 to a directory. Before each kill come changes that no checkpoint holds yet: half of them
//! new files of 2 KiB, half of them new modes of files anywhere in the tree; the last one is synced, so that all of them
//! must be there again. The clock runs from starting the program to its `ready`, and to the attributes of the file that was
//! made last, through the mount. Rounds with the kernel's caches as they are, which is what the death of a process
//! leaves, and without them, as after that of a machine, take turns.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::bench_mount::median;
use crate::bench_run::Run;
use crate::place::Place;
use crate::workload::{self, Random};

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    run: Run,
    /// Files in the tree.
    #[arg(long, default_value_t = 1_000_000)]
    files: usize,
    /// Changes before each kill.
    #[arg(long, default_value_t = 5000)]
    changes: usize,
    /// Seconds between a start and the look at the memory.
    #[arg(long, default_value_t = 10)]
    rest_seconds: u64,
}

const FILES_PER_DIRECTORY: usize = 1000;
/// Threads that make the tree.
const MAKERS: usize = 4;
const CONTENT_BYTES: usize = 2048;
/// A checkpoint may come in between; the changes are made again then, at most so often.
const ATTEMPTS_MAX: usize = 5;

/// One start after a kill.
struct Start {
    log_mib: f64,
    ready_seconds: f64,
    stat_seconds: f64,
    resident_mib: f64,
}

/// Runs the bench and prints the table.
///
/// # Errors
/// When a server does not start, or what was synced is not there. The pool is removed in any case.
pub fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(
        options.files > 0 && options.changes > 0,
        "at least one of each"
    );
    let mut place = options.run.place("start")?;
    place.start(true)?;
    let began = Instant::now();
    make_tree(&place.mnt().join("tree"), options.files)?;
    eprintln!(
        "{} files made in {:.0} s",
        options.files,
        began.elapsed().as_secs_f64()
    );
    // Whatever was made until now is in the tables.
    place.stop()?;
    place.start(true)?;
    let mut random = Random::new(0x5eed_57a2_7000_0001);
    let (mut kept, mut dropped) = (Vec::new(), Vec::new());
    for _ in 0..options.run.rounds {
        kept.push(start_again(options, &mut place, &mut random, false)?);
        dropped.push(start_again(options, &mut place, &mut random, true)?);
        eprint!(".");
    }
    eprintln!();
    place.stop()?;
    place.remove()?;
    print(options, &kept, &dropped);
    Ok(())
}

fn make_tree(tree: &Path, files: usize) -> anyhow::Result<()> {
    std::fs::create_dir(tree)?;
    let directories = files.div_ceil(FILES_PER_DIRECTORY);
    std::thread::scope(|scope| {
        let makers = (0..MAKERS).map(|maker| {
            scope.spawn(move || -> anyhow::Result<()> {
                for directory in (maker..directories).step_by(MAKERS) {
                    let first = directory * FILES_PER_DIRECTORY;
                    std::fs::create_dir(tree.join(directory.to_string()))?;
                    for number in first..files.min(first + FILES_PER_DIRECTORY) {
                        std::fs::File::create_new(file(tree, number))?;
                    }
                }
                Ok(())
            })
        });
        let makers: Vec<_> = makers.collect();
        for maker in makers {
            maker.join().expect("a maker does not panic")?;
        }
        Ok(())
    })
}

fn file(tree: &Path, number: usize) -> PathBuf {
    let directory = number / FILES_PER_DIRECTORY;
    tree.join(format!("{directory}/{number}"))
}

/// Changes the tree, kills the server, and starts it again.
fn start_again(
    options: &Options,
    place: &mut Place,
    random: &mut Random,
    drops_caches: bool,
) -> anyhow::Result<Start> {
    let (log_bytes, last) = change(options, place, random)?;
    place.kill()?;
    if drops_caches {
        workload::drop_caches().context("dropping the kernel's caches, which takes root")?;
    }
    let began = Instant::now();
    place.start(true)?;
    let ready = began.elapsed();
    let meta = rustix::fs::lstat(&last)
        .with_context(|| format!("{} was synced before the kill", last.display()))?;
    let stat = began.elapsed();
    ensure!(
        meta.st_size == CONTENT_BYTES as i64,
        "{} was synced before the kill, and has {} bytes",
        last.display(),
        meta.st_size
    );
    std::thread::sleep(Duration::from_secs(options.rest_seconds));
    Ok(Start {
        log_mib: log_bytes as f64 / f64::from(1 << 20),
        ready_seconds: ready.as_secs_f64(),
        stat_seconds: stat.as_secs_f64(),
        resident_mib: place.resident_mib()? as f64,
    })
}

/// Changes the tree until the log has all of that. Bytes of the log since the last checkpoint, and the file made last.
fn change(options: &Options, place: &Place, random: &mut Random) -> anyhow::Result<(u64, PathBuf)> {
    let tree = place.mnt().join("tree");
    for _ in 0..ATTEMPTS_MAX {
        let made = place.mnt().join(format!("made{:016x}", random.next()));
        std::fs::create_dir(&made)?;
        let mut last = made.clone();
        for number in 0..options.changes.div_ceil(2) {
            let old = random.below(options.files as u64) as usize;
            let mode = std::fs::Permissions::from_mode(0o600 | (random.next() & 0o77) as u32);
            std::fs::set_permissions(file(&tree, old), mode)?;
            last = made.join(number.to_string());
            let mut content = [0; CONTENT_BYTES];
            content[..8].copy_from_slice(&random.next().to_le_bytes());
            std::fs::write(&last, content)?;
        }
        std::fs::File::open(&last)?.sync_all()?;
        let log_bytes = place.journal_bytes()?;
        if log_bytes >= options.changes as u64 / 2 * CONTENT_BYTES as u64 {
            return Ok((log_bytes, last));
        }
    }
    anyhow::bail!("each time a checkpoint came before the kill")
}

fn print(options: &Options, kept: &[Start], dropped: &[Start]) {
    println!(
        "\nAfter `kill -9` with {} files, {} changes since the last checkpoint; medians of {} rounds.\n",
        options.files, options.changes, options.run.rounds
    );
    println!(
        "| | median | most | the kernel's caches dropped | most | target |\n\
         | --- | ---: | ---: | ---: | ---: | ---: |"
    );
    let rest = format!("resident memory {} s later, MiB", options.rest_seconds);
    let row = |title: &str, digits: usize, target: &str, figure: fn(&Start) -> f64| {
        let cells = [kept, dropped].map(|starts| {
            let figures: Vec<f64> = starts.iter().map(figure).collect();
            let most = figures.iter().copied().fold(0.0, f64::max);
            format!("{:.digits$} | {most:.digits$}", median(&figures))
        });
        println!("| {title} | {} | {} |{target} |", cells[0], cells[1]);
    };
    row("from exec to `ready`, s", 2, " 1", |it| it.ready_seconds);
    row(
        "from exec to the first stat through the mount, s",
        2,
        "",
        |it| it.stat_seconds,
    );
    row("log to replay, MiB", 2, "", |it| it.log_mib);
    row(&rest, 0, " 64", |it| it.resident_mib);
}
