//! `cargo xtask bench snapshot`: what taking snapshots and making clones of them costs at two sizes, what snapshots cost the
//! present, and what reading one costs beside the present.
//!
//! The time of taking one is what the server says, so that starting a program for it is not in it. For the present's
//! speed two pools are mounted side by side, one of them with snapshots, and take turns at each workload.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, ensure};

use crate::place::{Place, output, run_command};
use crate::workload::{self, Material, Unit, Workload};

/// Workloads of the present's speed. Those that make something come before those that use it.
const HEAD: [Workload; 6] = [
    Workload::WriteUniqueSync,
    Workload::ReadCold,
    Workload::Create,
    Workload::Unlink,
    Workload::SmallWrite,
    Workload::SmallRead,
];

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    /// The release binary of ClaudeFS; by default the one beside this program.
    #[arg(long)]
    cfs: Option<PathBuf>,
    /// Directory for data and mount points; by default the system's temporary directory.
    #[arg(long)]
    scratch: Option<PathBuf>,
    /// Files in the large tree.
    #[arg(long, default_value_t = 1_000_000)]
    files: usize,
    /// Snapshots taken at each size; the table shows the median and the most.
    #[arg(long, default_value_t = 21)]
    taken: usize,
    /// Snapshots beside which the present's speed is measured.
    #[arg(long, default_value_t = 100)]
    snapshots: usize,
    /// Rounds of the present's workloads; the table shows medians.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// MiB in each large file.
    #[arg(long, default_value_t = 256)]
    size_mib: usize,
    /// Files in the metadata workloads.
    #[arg(long, default_value_t = 3000)]
    small_files: usize,
}

/// Runs the bench and prints the tables.
///
/// # Errors
/// When a server does not start or a step fails. Everything is taken away in any case.
pub fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(
        options.rounds > 0 && options.taken > 0,
        "at least one of each"
    );
    let scratch = options.scratch.clone().unwrap_or_else(std::env::temp_dir);
    take(options, &scratch)?;
    head(options, &scratch)?;
    read(options, &scratch)
}

fn start(options: &Options, scratch: &Path, name: &str) -> anyhow::Result<Place> {
    let mut place = Place::new(scratch, name, options.cfs.as_deref())?;
    place.start(true)?;
    Ok(place)
}

/// Takes a snapshot; milliseconds, as the server has measured them.
fn snapshot(place: &Place, path: &str, name: &str) -> anyhow::Result<f64> {
    let said = output(&mut place.cfs(&[
        "admin", "snapshot", "create", path, "--name", name, "--json",
    ]))?;
    let said: serde_json::Value = serde_json::from_str(&said)?;
    let seconds = said["seconds"].as_f64();
    Ok(seconds.with_context(|| format!("no time in {said}"))? * 1e3)
}

/// Makes a clone; milliseconds, as the server has measured them, until it is durable.
fn clone(place: &Place, snapshot: &str, path: &str) -> anyhow::Result<f64> {
    let said = output(&mut place.cfs(&["admin", "clone", snapshot, path, "--json"]))?;
    let said: serde_json::Value = serde_json::from_str(&said)?;
    let seconds = said["seconds"].as_f64();
    Ok(seconds.with_context(|| format!("no time in {said}"))? * 1e3)
}

fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Taking one: trees of 10 and of many files, idle, and while a file is written without a pause.
fn take(options: &Options, scratch: &Path) -> anyhow::Result<()> {
    println!("| taking a snapshot, or a clone of one | median ms | most ms |");
    println!("| --- | ---: | ---: |");
    let (mut medians, mut of_clones) = (Vec::new(), Vec::new());
    for files in [10, options.files] {
        let mut place = start(options, scratch, "take")?;
        make_files(&place.mnt().join("tree"), files)?;
        run_command(&mut place.cfs(&["admin", "snapshot", "create", "/", "--name", "first"]))?;
        // Whatever was made before is in the tables.
        place.stop()?;
        place.start(true)?;
        let mut figures = Vec::new();
        for number in 0..options.taken {
            std::fs::write(place.mnt().join("tree/changed"), number.to_string())?;
            figures.push(snapshot(&place, "/", &format!("s{number}"))?);
        }
        let most = figures.iter().copied().fold(0.0, f64::max);
        let median = median(&mut figures);
        medians.push(median);
        println!("| of {files} files | {median:.2} | {most:.2} |");
        let mut figures = Vec::new();
        for number in 0..options.taken {
            figures.push(clone(&place, "/@first", &format!("/clone{number}"))?);
        }
        let most = figures.iter().copied().fold(0.0, f64::max);
        let median = self::median(&mut figures);
        of_clones.push(median);
        println!("| a clone of {files} files | {median:.2} | {most:.2} |");
        if files == 10 {
            let (mut waits, mut figures) = beside_a_writer(&place, options.taken)?;
            let most = figures.iter().copied().fold(0.0, f64::max);
            let median_ms = self::median(&mut figures);
            println!("| while a file is written | {median_ms:.2} | {most:.2} |");
            let most = waits.iter().copied().fold(0.0, f64::max);
            let median_ms = self::median(&mut waits);
            println!("| its writes of 128 KiB meanwhile | {median_ms:.2} | {most:.2} |");
        }
        place.stop()?;
        place.remove()?;
    }
    println!(
        "\nratio of the medians: {:.2}, of clones {:.2}\n",
        medians[1] / medians[0],
        of_clones[1] / of_clones[0]
    );
    Ok(())
}

fn make_files(tree: &Path, files: usize) -> anyhow::Result<()> {
    for number in 0..files {
        let directory = tree.join(format!("{}", number / 1000));
        if number % 1000 == 0 {
            std::fs::create_dir_all(&directory)?;
        }
        std::fs::File::create(directory.join(format!("{number}")))?;
        if number % 100_000 == 99_999 {
            eprint!(".");
        }
    }
    eprintln!();
    Ok(())
}

/// Milliseconds of each write of a thread that writes all the time, and of the snapshots taken meanwhile.
fn beside_a_writer(place: &Place, taken: usize) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    use std::os::unix::fs::FileExt as _;
    use std::sync::atomic::{AtomicBool, Ordering};
    let material = Material::new(64 << 20, 1);
    let ends = AtomicBool::new(false);
    let file = std::fs::File::create(place.mnt().join("written"))?;
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| -> anyhow::Result<Vec<f64>> {
            let mut waits = Vec::new();
            while !ends.load(Ordering::Relaxed) {
                for (number, block) in material.bytes().chunks(128 << 10).enumerate() {
                    let started = Instant::now();
                    file.write_all_at(block, (number * (128 << 10)) as u64)?;
                    waits.push(started.elapsed().as_secs_f64() * 1e3);
                }
            }
            Ok(waits)
        });
        let mut figures = Vec::new();
        let mut result = Ok(());
        for number in 0..taken {
            match snapshot(place, "/", &format!("w{number}")) {
                Ok(figure) => figures.push(figure),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        ends.store(true, Ordering::Relaxed);
        let waits = writer.join().expect("the writer does not panic")?;
        result.map(|()| (waits, figures))
    })
}

/// The present's speed without snapshots and with many.
fn head(options: &Options, scratch: &Path) -> anyhow::Result<()> {
    let places = [
        start(options, scratch, "head-none")?,
        start(options, scratch, "head-many")?,
    ];
    let mut material = Material::new(options.size_mib << 20, options.small_files);
    for place in &places {
        make_files(&place.mnt().join("tree"), 2000)?;
    }
    for number in 0..options.snapshots {
        std::fs::write(
            places[1].mnt().join(format!("tree/0/{number}")),
            number.to_string(),
        )?;
        snapshot(&places[1], "/", &format!("s{number}"))?;
    }
    let mut figures = vec![[Vec::new(), Vec::new()]; HEAD.len()];
    for round in 0..options.rounds {
        for (row, workload) in HEAD.into_iter().enumerate() {
            material.prepare(workload);
            for turn in 0..places.len() {
                let column = (turn + round) % places.len();
                let root = places[column].mnt();
                let figure = match workload {
                    // It goes through two trees.
                    Workload::Unlink => {
                        workload::run(Workload::CreateTwo, &root, &mut material)?;
                        workload::run(workload, &root, &mut material)
                    }
                    workload => workload::run(workload, &root, &mut material),
                };
                figures[row][column].push(figure.with_context(|| workload.title())?);
            }
        }
        // A new snapshot each round: what a round makes, the next one replaces.
        snapshot(&places[1], "/", &format!("round{round}"))?;
        eprint!(".");
    }
    eprintln!();
    println!(
        "| the present | without | with {} | ratio |",
        options.snapshots
    );
    println!("| --- | ---: | ---: | ---: |");
    for (workload, [mut none, mut many]) in HEAD.into_iter().zip(figures) {
        let (none, many) = (median(&mut none), median(&mut many));
        let unit = match workload.unit() {
            Unit::Megabytes => "MB/s",
            _ => "1/s",
        };
        println!(
            "| {}, {unit} | {none:.0} | {many:.0} | {:.2} |",
            workload.title(),
            many / none
        );
    }
    println!();
    for mut place in places {
        place.stop()?;
        place.remove()?;
    }
    Ok(())
}

/// A file as the present and as a snapshot shows it, after everything else has been forgotten, and after a part of it has
/// been overwritten since.
fn read(options: &Options, scratch: &Path) -> anyhow::Result<()> {
    let mut place = start(options, scratch, "read")?;
    let mut material = Material::new(options.size_mib << 20, 1);
    workload::run(Workload::WriteUniqueSync, &place.mnt(), &mut material)?;
    snapshot(&place, "/", "then")?;
    {
        use std::os::unix::fs::FileExt as _;
        let file = std::fs::File::options()
            .write(true)
            .open(place.mnt().join("large"))?;
        for at in (0..material.bytes().len()).step_by(1 << 20) {
            file.write_all_at(b"changed", at as u64)?;
        }
        file.sync_all()?;
    }
    let mut figures = [Vec::new(), Vec::new()];
    for round in 0..options.rounds {
        for turn in 0..2 {
            let which = (turn + round) % 2;
            // Nothing of it is in any cache.
            place.stop()?;
            place.start(true)?;
            let path = match which {
                0 => place.mnt().join("large"),
                _ => place.mnt().join(".snapshots/then/large"),
            };
            let started = Instant::now();
            let bytes = std::io::copy(&mut std::fs::File::open(path)?, &mut std::io::sink())?;
            figures[which].push(bytes as f64 / 1e6 / started.elapsed().as_secs_f64());
        }
    }
    let [mut now, mut then] = figures;
    let (now, then) = (median(&mut now), median(&mut then));
    println!("| reading, cold, MB/s | now | in a snapshot | ratio |");
    println!("| --- | ---: | ---: | ---: |");
    println!(
        "| a file overwritten in every MiB since | {now:.0} | {then:.0} | {:.2} |",
        then / now
    );
    place.stop()?;
    place.remove()
}
