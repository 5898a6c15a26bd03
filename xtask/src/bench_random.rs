//! `cargo xtask bench random`: reads of 4 KiB at random places of one large file.
//!
//! The file is incompressible and written once through the mount. *Cold*, the server was just started, the kernel's caches
//! are dropped, and the server keeps so little of what it reads that next to nothing is found there again. What a
//! read costs the disk is what the kernel counts for the process (`read_bytes`, proc_pid_io(5)); the *amplification* is that
//! for each byte asked for. In each round, right after, the disk is read without the kernel's cache, at random places of
//! the pool's own file that have blocks: 4 KiB at a time, and as much at a time as the server read for each. A plain file
//! of the same content follows when the pool is gone, for the sake of room.
//!
//! *Hot*, all chunks of the first part of the file have been read before, and the kernel has forgotten its pages of it: the
//! server has them in memory, as the toy has its file of that size; the two take turns.
//!
//! No page is read twice in a measurement, so that the kernel's cache of pages answers none.

mod pages;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::bench_mount::{System, median};
use crate::bench_run::Run;
use crate::place::Place;
use crate::plot::{self, Axis, Bar, Group, Panel, Plot};
use crate::workload;
use pages::{CHUNK_BYTES_MIN, PAGE_BYTES, Reads};

/// How large a file, and how to read it.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    run: Run,
    /// MiB of the file.
    #[arg(long, default_value_t = 10 << 10)]
    size_mib: u64,
    /// MiB of it that are read hot.
    #[arg(long, default_value_t = 1 << 10)]
    hot_mib: u64,
    /// Threads that read at a time, two table rows each.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16])]
    threads: Vec<usize>,
    /// Seconds of each measurement at most.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Draw the ratios of the medians here, as an SVG.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// What the server keeps of what it has read when it is to read cold.
const COLD_HOT_BYTES: &str = "64MiB";
/// The share of the disk's rate, divided by the amplification, that is the aim of cold reads.
const COLD_TARGET: f64 = 0.5;
/// The share of the toy's rate that is the aim of hot ones.
const HOT_TARGET: f64 = 0.75;

/// What a number of threads came to, a value for each round.
#[derive(Default)]
struct Figures {
    cold: Vec<Reads>,
    device_pages: Vec<Reads>,
    device_as_large: Vec<Reads>,
    plain: Vec<Reads>,
    hot: Vec<Reads>,
    toy: Vec<Reads>,
}

/// Runs the bench and prints the tables.
///
/// # Errors
/// When a server does not start, the content is another one, or the kernel's caches cannot be dropped, which takes root.
/// Everything is taken away in any case.
pub fn run(options: &Options) -> anyhow::Result<()> {
    anyhow::ensure!(
        options.seconds > 0.0 && options.seconds.is_finite(),
        "--seconds must be more than 0"
    );
    ensure!(
        !options.threads.is_empty() && !options.threads.contains(&0),
        "at least one thread"
    );
    ensure!(
        options.hot_mib > 0 && options.hot_mib <= options.size_mib,
        "what is read hot is a part of the file"
    );
    if let Some(path) = &options.svg {
        plot::prepare(path)?;
    }
    let mut figures: Vec<Figures> = options.threads.iter().map(|_| Figures::default()).collect();
    options.run.in_scratch(|scratch| {
        let mut place = options.run.place("random")?;
        place.start(true)?;
        pages::write(&place.mnt().join("file"), options.size_mib)?;
        eprint!("written ");
        for round in 0..options.run.rounds {
            cold(options, &mut place, round, &mut figures)?;
        }
        hot(options, &mut place, scratch, &mut figures)?;
        place.stop()?;
        place.remove()?;
        plain(options, scratch, &mut figures)
    })?;
    eprintln!();
    print(options, &figures);
    match &options.svg {
        Some(path) => ratios(options, &figures).write(path),
        None => Ok(()),
    }
}

/// One round of cold reads, and of what the disk does.
fn cold(
    options: &Options,
    place: &mut Place,
    round: usize,
    figures: &mut [Figures],
) -> anyhow::Result<()> {
    let limit = Duration::from_secs_f64(options.seconds);
    for (&threads, figures) in options.threads.iter().zip(figures) {
        place.stop()?;
        place.with_only(&["--hot-bytes", COLD_HOT_BYTES]);
        place.start(true)?;
        drop_caches()?;
        let seed = (round * 1000 + threads) as u64;
        let places = pages::shuffled(options.size_mib, PAGE_BYTES, seed);
        let file = place.mnt().join("file");
        let reads = pages::read(&file, &places, place.pid(), threads, limit)?;
        let pool = place.data().join("pool");
        anyhow::ensure!(
            reads.bytes_each() > 0,
            "cfs has read nothing from the disk: the file is in its memory"
        );
        let piece = reads.bytes_each().next_multiple_of(PAGE_BYTES as u64) as usize;
        figures.cold.push(reads);
        for (piece, into) in [
            (PAGE_BYTES, &mut figures.device_pages),
            (piece, &mut figures.device_as_large),
        ] {
            drop_caches()?;
            into.push(pages::read_device(&pool, piece, seed, threads, limit)?);
        }
        eprint!(".");
    }
    Ok(())
}

/// All rounds of hot reads.
fn hot(
    options: &Options,
    place: &mut Place,
    scratch: &Path,
    figures: &mut [Figures],
) -> anyhow::Result<()> {
    let limit = Duration::from_secs_f64(options.seconds);
    let warm_mib = usize::try_from(options.hot_mib)? + 64;
    let toy = System::start_all(&["toy".to_owned()], scratch, None, warm_mib)?.remove(0);
    pages::write(&toy.root.join("file"), options.hot_mib)?;
    place.stop()?;
    // Chunks may be larger than the part of them that is in the part of the file.
    place.with_only(&["--hot-bytes", &format!("{}MiB", options.hot_mib * 2)]);
    place.start(true)?;
    let (file, toy_file) = (place.mnt().join("file"), toy.root.join("file"));
    let chunks = pages::shuffled(options.hot_mib, CHUNK_BYTES_MIN, 0);
    pages::read(&file, &chunks, place.pid(), 1, Duration::MAX)?;
    for round in 0..options.run.rounds {
        for (&threads, figures) in options.threads.iter().zip(&mut *figures) {
            let seed = (round * 1000 + threads) as u64;
            let places = pages::shuffled(options.hot_mib, PAGE_BYTES, seed);
            let mut systems = [
                (&file, place.pid(), &mut figures.hot),
                (&toy_file, toy.pid()?, &mut figures.toy),
            ];
            if round % 2 == 1 {
                systems.reverse();
            }
            for (file, pid, into) in systems {
                pages::forget(file)?;
                into.push(pages::read(file, &places, pid, threads, limit)?);
            }
            eprint!(".");
        }
    }
    Ok(())
}

/// All rounds of cold reads of a plain file.
fn plain(options: &Options, scratch: &Path, figures: &mut [Figures]) -> anyhow::Result<()> {
    let limit = Duration::from_secs_f64(options.seconds);
    let file = scratch.join("file");
    pages::write(&file, options.size_mib)?;
    for round in 0..options.run.rounds {
        for (&threads, figures) in options.threads.iter().zip(&mut *figures) {
            drop_caches()?;
            let seed = (round * 1000 + threads) as u64;
            let places = pages::shuffled(options.size_mib, PAGE_BYTES, seed);
            let reads = pages::read(&file, &places, std::process::id(), threads, limit)?;
            figures.plain.push(reads);
            eprint!(".");
        }
    }
    Ok(())
}

fn drop_caches() -> anyhow::Result<()> {
    workload::drop_caches().context("dropping the kernel's caches, which takes root")
}

fn rate(rounds: &[Reads]) -> f64 {
    median(&rounds.iter().map(Reads::rate).collect::<Vec<_>>())
}

impl Figures {
    /// Bytes of the disk for each byte asked for.
    fn amplification(rounds: &[Reads]) -> f64 {
        let each = rounds
            .iter()
            .map(|reads| reads.bytes_each() as f64 / PAGE_BYTES as f64);
        median(&each.collect::<Vec<_>>())
    }

    /// The rate that the target halves.
    fn device_amplified(&self) -> f64 {
        rate(&self.device_pages) / Self::amplification(&self.cold)
    }
}

fn threads_of(threads: usize) -> String {
    match threads {
        1 => "1 thread".to_owned(),
        _ => format!("{threads} threads"),
    }
}

/// With how far the rounds are apart.
fn cell(rounds: &[Reads]) -> String {
    let (middle, rates) = (rate(rounds), rounds.iter().map(Reads::rate));
    let least = rates.clone().fold(f64::INFINITY, f64::min);
    let most = rates.fold(0.0, f64::max);
    let spread = (most - least) / middle * 100.0;
    format!("{middle:.0} /s (spread {spread:.0} %)")
}

fn print(options: &Options, figures: &[Figures]) {
    println!(
        "4 KiB at random places of {} MiB, cold; {}; target {COLD_TARGET} of the disk's reads of 4 KiB / amplification\n",
        options.size_mib,
        plot::medians_of(options.run.rounds)
    );
    println!(
        "| cold | cfs | amplification | / (disk, 4 KiB, / amplification) | / disk, as large | / plain \
         | disk, 4 KiB | disk, as large | plain |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    );
    for (threads, figures) in options.threads.iter().zip(figures) {
        let own = rate(&figures.cold);
        let [as_large, plain, device] = [
            &figures.device_as_large,
            &figures.plain,
            &figures.device_pages,
        ]
        .map(|rounds| rate(rounds));
        println!(
            "| {} | {} | {:.1} | {:.2} | {:.2} | {:.2} | {device:.0} /s | {as_large:.0} /s | {plain:.0} /s |",
            threads_of(*threads),
            cell(&figures.cold),
            Figures::amplification(&figures.cold),
            own / figures.device_amplified(),
            own / as_large,
            own / plain,
        );
    }
    println!(
        "\nThe same, hot, in {} MiB; target {HOT_TARGET} of the toy\n",
        options.hot_mib
    );
    println!("| hot | cfs | amplification | / toy | toy |\n| --- | ---: | ---: | ---: | ---: |");
    for (threads, figures) in options.threads.iter().zip(figures) {
        let toy = rate(&figures.toy);
        println!(
            "| {} | {} | {:.2} | {:.2} | {toy:.0} /s |",
            threads_of(*threads),
            cell(&figures.hot),
            Figures::amplification(&figures.hot),
            rate(&figures.hot) / toy,
        );
    }
}

/// What the tables compare: how many times the other's rate is reached.
fn ratios(options: &Options, figures: &[Figures]) -> Plot {
    let group = |threads: usize, title: &str, own: &[Reads], other: f64| Group {
        title: format!("{}, {title}", threads_of(threads)),
        bars: vec![Bar::ratio(
            rate(own) / other,
            &format!("{:.0} /s", rate(own)),
        )],
    };
    let groups = options
        .threads
        .iter()
        .zip(figures)
        .flat_map(|(&threads, it)| {
            let (large, plain) = (rate(&it.device_as_large), rate(&it.plain));
            [
                group(
                    threads,
                    "cold / disk, amplified",
                    &it.cold,
                    it.device_amplified(),
                ),
                group(threads, "cold / disk, as large", &it.cold, large),
                group(threads, "cold / plain", &it.cold, plain),
                group(threads, "hot / the toy", &it.hot, rate(&it.toy)),
            ]
        });
    Plot {
        title: "4 KiB at random".to_owned(),
        subtitle: format!(
            "How many times the other's rate is reached, {}; more is better",
            plot::medians_of(options.run.rounds)
        ),
        axis: Axis::Ratios,
        series: vec!["cfs".to_owned()],
        panels: vec![Panel {
            title: String::new(),
            groups: groups.collect(),
        }],
    }
}
