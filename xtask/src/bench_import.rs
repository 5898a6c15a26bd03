//! `cargo xtask bench import`: `cfs import` of large files to a disk, without FUSE, beside a program that does to their content
//! what a store must and nothing else (see `scratch`).
//!
//! Three sets of eight files are made: `mixed` is 6 MiB of a compiled program, in pieces from all over it, and 2 MiB of source code again and
//! again, with eight random bytes in every 16 KiB, so that no chunk comes twice; `incompressible` is noise; `half duplicates` is files of
//! whose first half every other 8 MiB are of the one and of the other, and the second half is the first again. They lie in the
//! page cache, as reading them once before sees to, and what was written before each run is on the disk. Everything takes
//! turns, in changing order; a figure is the median of the rounds. The clock of both programs runs from their start to their end,
//! with everything durable. Each store is new: that of cfs is made before, without the clock. The baseline runs twice, onto a
//! new file, whose room it allocates, as cfs does, and over the blocks of its own last run, which costs the disk less.
//!
//! With fewer cores than the machine has, both are pinned to them (taskset).

mod repeated;
pub mod scratch;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::bench_mount::{checked, median};
use crate::bench_peers::{Took, allocated, took, warm};
use crate::bench_run::Run;
use crate::place;
use crate::plot::{self, Axis, Bar, Group, Panel, Plot};
use crate::workload::Random;
use repeated::Repeated;

/// What to import, and how often.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    run: Run,
    /// MiB in each set.
    #[arg(long, default_value_t = 1024)]
    size_mib: usize,
    /// Cores to run on, one table row each.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    cores: Vec<usize>,
    /// Draw the medians here, as an SVG, relative to the baseline.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Import so many GiB once instead, half of them a sparse file, half of them a file that repeats itself, and tell the largest
    /// resident memory; needs FUSE, and 3 GB of disk whatever the number.
    #[arg(long, value_name = "GIB", conflicts_with_all = ["size_mib", "rounds", "cores", "svg"])]
    large_gib: Option<u64>,
}

const FILES: usize = 8;
const MIB: usize = 1 << 20;
/// Pieces of the program, and bytes of each; a program begins with what shrinks less than the rest.
const PIECES: usize = 24;
const PIECE_BYTES: usize = 256 << 10;
const CODE_BYTES: usize = 2 * MIB;
/// Random bytes come once in this many.
const CHANGE_EVERY_BYTES: usize = 16 << 10;
/// Share of the baseline's rate that is the aim.
const TARGET: f64 = 0.85;

/// What the large import may have resident, MiB.
const RESIDENT_TARGET_MIB: f64 = 512.0;
/// What comes again and again in its one half.
const PERIOD_BYTES: u64 = 2 << 30;
/// In its other half, a page of content comes once in this many bytes.
const SPARSE_EVERY_BYTES: u64 = 16 << 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Set {
    Mixed,
    Incompressible,
    HalfDuplicates,
}

const SETS: [Set; 3] = [Set::Mixed, Set::Incompressible, Set::HalfDuplicates];

impl Set {
    fn title(self) -> &'static str {
        match self {
            Self::Mixed => "mixed",
            Self::Incompressible => "incompressible",
            Self::HalfDuplicates => "half duplicates",
        }
    }
}

/// Who stores the files.
#[derive(Clone, Copy)]
enum System {
    Cfs,
    /// The baseline, onto a new file.
    Scratch,
    /// The baseline, onto the blocks of an earlier run.
    ScratchOver,
}

const SYSTEMS: [System; 3] = [System::Cfs, System::Scratch, System::ScratchOver];

/// What one system made of one set on some cores: a value for each round.
#[derive(Default)]
struct Figures {
    rates: Vec<f64>,
    processor_seconds_per_gb: Vec<f64>,
    stored_ratios: Vec<f64>,
}

/// The medians of a set on some cores.
struct Row {
    set: Set,
    cores: usize,
    systems: [Figures; 3],
}

/// Runs the bench and prints the tables.
///
/// # Errors
/// When a program fails. Everything is taken away in any case.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let binary = place::binary(options.run.cfs())?;
    if let Some(gib) = options.large_gib {
        ensure!(gib >= 2, "at least 2 GiB");
        return options
            .run
            .in_scratch(|scratch| large(&binary, scratch, gib));
    }
    ensure!(
        !options.cores.is_empty() && !options.cores.contains(&0),
        "at least one core"
    );
    ensure!(
        options.size_mib >= 32 * FILES,
        "at least 32 MiB in each of {FILES} files"
    );
    if let Some(path) = &options.svg {
        plot::prepare(path)?;
    }
    options
        .run
        .in_scratch(|scratch| run_in(options, &binary, scratch))
}

fn run_in(options: &Options, binary: &Path, scratch: &Path) -> anyhow::Result<()> {
    let allowed = allowed_cores()?;
    let (cores, missing): (Vec<usize>, Vec<usize>) = options
        .cores
        .iter()
        .partition(|cores| **cores <= allowed.len());
    for cores in missing {
        eprintln!("without {cores} cores: there are {}", allowed.len());
    }
    ensure!(!cores.is_empty(), "no number of cores to run with");
    let mixed = mixed_base(binary)?;
    let mut rows = Vec::new();
    for set in SETS {
        // One at a time, for the sake of room.
        let source = scratch.join("source");
        make_set(set, &source, options.size_mib * MIB / FILES, &mixed)?;
        let bytes = warm(&source)?;
        let mut of_set: Vec<Row> = cores
            .iter()
            .map(|cores| Row {
                set,
                cores: *cores,
                systems: Default::default(),
            })
            .collect();
        // What the baseline writes over from the first round on.
        store(System::Scratch, binary, scratch, &source, &allowed)?;
        std::fs::rename(scratch.join("new"), scratch.join("old"))?;
        for round in 0..options.run.rounds {
            for row in &mut of_set {
                for turn in 0..SYSTEMS.len() {
                    let which = (turn + round) % SYSTEMS.len();
                    let on = &allowed[..row.cores];
                    let (took, stored) = store(SYSTEMS[which], binary, scratch, &source, on)
                        .with_context(|| format!("{}, cores: {}", set.title(), row.cores))?;
                    let figures = &mut row.systems[which];
                    figures.rates.push(bytes as f64 / 1e6 / took.seconds);
                    figures
                        .processor_seconds_per_gb
                        .push(took.processor_seconds / (bytes as f64 / 1e9));
                    figures.stored_ratios.push(bytes as f64 / stored as f64);
                    remove_new(scratch)?;
                    eprint!(".");
                }
            }
        }
        eprintln!(" {}", set.title());
        std::fs::remove_dir_all(&source)?;
        std::fs::remove_file(scratch.join("old"))?;
        rows.extend(of_set);
    }
    print(options, &rows);
    match &options.svg {
        Some(path) => relative(options, &cores, &rows).write(path),
        None => Ok(()),
    }
}

/// Numbers of the cores that this process may run on; proc_pid_status(5).
fn allowed_cores() -> anyhow::Result<Vec<usize>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .context("/proc/self/status names no cores")?;
    let mut cores = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        cores.extend(first.parse::<usize>()?..=last.parse()?);
    }
    Ok(cores)
}

/// A program that runs on these cores alone.
fn pinned(cores: &[usize], program: &Path) -> Command {
    let list: Vec<String> = cores.iter().map(usize::to_string).collect();
    let mut command = Command::new("taskset");
    command.arg("-c").arg(list.join(",")).arg(program);
    command
}

/// Stores the set once. What it took, and bytes on the disk.
fn store(
    system: System,
    binary: &Path,
    scratch: &Path,
    source: &Path,
    cores: &[usize],
) -> anyhow::Result<(Took, u64)> {
    let new = scratch.join("new");
    let mut command = match system {
        System::Cfs => {
            checked(Command::new(binary).args(["init", "--data"]).arg(&new))?;
            let mut command = pinned(cores, binary);
            command.arg("import").arg(source).args(["/set", "--data"]);
            command.arg(&new);
            command
        }
        System::Scratch | System::ScratchOver => {
            let mut command = pinned(cores, &std::env::current_exe()?);
            command.arg("scratch-store");
            command.args(["--workers", &cores.len().to_string()]);
            command.arg(match system {
                System::ScratchOver => scratch.join("old"),
                _ => new.clone(),
            });
            command.args((0..FILES).map(|number| file_of(source, number)));
            command
        }
    };
    rustix::fs::sync();
    let took = took(&mut command)?;
    let stored = match system {
        System::Cfs => allocated(&new)?,
        System::Scratch => file_bytes(&new)?,
        System::ScratchOver => file_bytes(&scratch.join("old"))?,
    };
    Ok((took, stored))
}

fn file_bytes(path: &Path) -> anyhow::Result<u64> {
    Ok(std::fs::metadata(path)?.len())
}

fn remove_new(scratch: &Path) -> anyhow::Result<()> {
    let new = scratch.join("new");
    if new.is_dir() {
        std::fs::remove_dir_all(new)?;
    } else if new.exists() {
        std::fs::remove_file(new)?;
    }
    Ok(())
}

fn file_of(source: &Path, number: usize) -> PathBuf {
    source.join(format!("file{number}"))
}

/// Part of a compiled program, and part of the sources of this repository.
fn mixed_base(binary: &Path) -> anyhow::Result<Vec<u8>> {
    let program = std::fs::read(binary)?;
    ensure!(
        program.len() >= PIECES * PIECE_BYTES,
        "{} is no program of some size",
        binary.display()
    );
    let apart = (program.len() - PIECE_BYTES) / (PIECES - 1);
    let mut base = Vec::with_capacity(PIECES * PIECE_BYTES + CODE_BYTES);
    for start in (0..PIECES).map(|number| number * apart) {
        base.extend_from_slice(&program[start..start + PIECE_BYTES]);
    }
    let crates = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the repository is around this crate")?
        .join("crates");
    let mut code = Vec::new();
    read_sources(&crates, &mut code)?;
    ensure!(!code.is_empty(), "no sources in {}", crates.display());
    base.extend(code.iter().cycle().take(CODE_BYTES));
    Ok(base)
}

fn read_sources(directory: &Path, code: &mut Vec<u8>) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(directory)?.collect::<std::io::Result<Vec<_>>>()?;
    let mut paths: Vec<PathBuf> = entries.iter().map(std::fs::DirEntry::path).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            read_sources(&path, code)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            code.extend(std::fs::read(path)?);
        }
    }
    Ok(())
}

/// Makes the files, of so many bytes each, the same ones every time.
fn make_set(set: Set, source: &Path, file_bytes: usize, mixed: &[u8]) -> anyhow::Result<()> {
    std::fs::create_dir(source)?;
    let mut random = Random::new(0x5eed_1390_7700_0000 + set as u64);
    for number in 0..FILES {
        let mut content = Vec::with_capacity(file_bytes + mixed.len());
        match set {
            Set::Mixed => {
                while content.len() < file_bytes {
                    append_mixed(&mut content, mixed, &mut random);
                }
            }
            Set::Incompressible => append_noise(&mut content, file_bytes, &mut random),
            Set::HalfDuplicates => {
                while content.len() < file_bytes / 2 {
                    append_mixed(&mut content, mixed, &mut random);
                    append_noise(&mut content, mixed.len(), &mut random);
                }
                content.truncate(file_bytes / 2);
                content.extend_from_within(..);
            }
        }
        content.truncate(file_bytes);
        std::fs::write(file_of(source, number), content)?;
    }
    Ok(())
}

fn append_mixed(content: &mut Vec<u8>, mixed: &[u8], random: &mut Random) {
    let start = content.len();
    content.extend_from_slice(mixed);
    for block in content[start..].chunks_exact_mut(CHANGE_EVERY_BYTES) {
        let at = random.below(CHANGE_EVERY_BYTES as u64 - 8) as usize;
        block[at..at + 8].copy_from_slice(&random.next().to_le_bytes());
    }
}

fn append_noise(content: &mut Vec<u8>, bytes: usize, random: &mut Random) {
    for _ in 0..bytes / 8 {
        content.extend_from_slice(&random.next().to_le_bytes());
    }
}

fn print(options: &Options, rows: &[Row]) {
    println!(
        "{} MiB in {FILES} files each, in the page cache; medians of {} rounds; target {TARGET} of the scratch program\n",
        options.size_mib, options.run.rounds
    );
    println!(
        "| data | cores | cfs import, MB/s | / scratch | / over old blocks | scratch, MB/s | over old blocks, MB/s \
         | CPU s/GB, cfs | scratch | stored ratio, cfs | scratch |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for row in rows {
        let [cfs, scratch, over] = &row.systems;
        let [rate, base, base_over] = [cfs, scratch, over].map(Figures::rate);
        let least = cfs.rates.iter().copied().fold(f64::INFINITY, f64::min);
        let most = cfs.rates.iter().copied().fold(0.0, f64::max);
        println!(
            "| {} | {} | {rate:.0} (spread {:.0} %) | {:.2} | {:.2} | {base:.0} | {base_over:.0} | {:.2} | {:.2} | {:.2} | {:.2} |",
            row.set.title(),
            row.cores,
            (most - least) / rate * 100.0,
            rate / base,
            rate / base_over,
            median(&cfs.processor_seconds_per_gb),
            median(&scratch.processor_seconds_per_gb),
            median(&cfs.stored_ratios),
            median(&scratch.stored_ratios),
        );
    }
    let (Some(least), Some(most)) = (
        rows.iter().map(|row| row.cores).min(),
        rows.iter().map(|row| row.cores).max(),
    ) else {
        return;
    };
    if least == most {
        return;
    }
    println!(
        "\n| from {least} to {most} cores, times as fast (share of {most} / {least}) | cfs import | scratch | over old blocks |"
    );
    println!("| --- | ---: | ---: | ---: |");
    for set in SETS {
        let of = |cores: usize| rows.iter().find(|row| row.cores == cores && row.set == set);
        if let (Some(few), Some(many)) = (of(least), of(most)) {
            let cells = [0, 1, 2].map(|system| {
                let times = many.systems[system].rate() / few.systems[system].rate();
                let share = times * least as f64 / most as f64;
                format!("{times:.2} ({share:.2})")
            });
            println!("| {} | {} |", set.title(), cells.join(" | "));
        }
    }
}

impl Figures {
    fn rate(&self) -> f64 {
        median(&self.rates)
    }
}

/// How many times as quick as the baseline cfs is, for each set and number of cores.
fn relative(options: &Options, cores: &[usize], rows: &[Row]) -> Plot {
    let groups = SETS.map(|set| {
        let bars = rows.iter().filter(|row| row.set == set).map(|row| {
            let [rate, base] = [0, 1].map(|system| row.systems[system].rate());
            Bar::ratio(rate / base, &format!("{rate:.0} MB/s"))
        });
        Group {
            title: set.title().to_owned(),
            bars: bars.collect(),
        }
    });
    Plot {
        title: "Import of large files".to_owned(),
        subtitle: format!(
            "How many times as quick as the scratch program (1), {}; more is better",
            plot::medians_of(options.run.rounds)
        ),
        axis: Axis::Ratios,
        series: cores
            .iter()
            .map(|cores| match cores {
                1 => "1 core".to_owned(),
                cores => format!("{cores} cores"),
            })
            .collect(),
        panels: vec![Panel {
            title: String::new(),
            groups: groups.into(),
        }],
    }
}

/// Imports a sparse file and one that repeats itself, and tells the memory that it took.
fn large(binary: &Path, scratch: &Path, gib: u64) -> anyhow::Result<()> {
    let half = gib << 29;
    let sparse = scratch.join("sparse");
    make_sparse(&sparse, half)?;
    let repeated = Repeated::mount(&scratch.join("mnt"), half, PERIOD_BYTES)?;
    let store = scratch.join("store");
    checked(Command::new(binary).args(["init", "--data"]).arg(&store))?;
    rustix::fs::sync();
    let mut import = Command::new(binary);
    import.arg("import").arg(repeated.path()).arg(&sparse);
    let took = took(import.args(["/", "--data"]).arg(&store))?;
    drop(repeated);
    println!(
        "{gib} GiB: half of them a sparse file with a page of content every {} MiB, half of them {} GiB of noise again and \
         again, made while it is read, on the same cores\n",
        SPARSE_EVERY_BYTES / MIB as u64,
        PERIOD_BYTES >> 30
    );
    println!("| | | target |\n| --- | ---: | ---: |");
    println!(
        "| largest resident memory, MiB | {:.0} | {RESIDENT_TARGET_MIB:.0} |",
        took.resident_mib
    );
    println!("| time, s | {:.1} | |", took.seconds);
    println!(
        "| of the half that is not sparse, MB/s | {:.0} | |",
        half as f64 / 1e6 / took.seconds
    );
    println!("| CPU s | {:.1} | |", took.processor_seconds);
    println!("| stored, MB | {:.0} | |", allocated(&store)? as f64 / 1e6);
    Ok(())
}

fn make_sparse(path: &Path, bytes: u64) -> anyhow::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::create(path)?;
    file.set_len(bytes)?;
    let mut page = [0; 4096];
    for at in (0..bytes).step_by(SPARSE_EVERY_BYTES as usize) {
        page[..8].copy_from_slice(&at.to_le_bytes());
        file.write_all_at(&page, at)?;
    }
    Ok(())
}
