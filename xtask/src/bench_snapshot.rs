//! `cargo xtask bench snapshot`: what taking snapshots and making clones of them costs at two sizes, what snapshots cost the
//! present, what reading one costs beside the present, and what a change of 1 % costs; the first two beside btrfs.
//!
//! The time of taking one is what the server says, so that starting a program for it is not in it, and beside that what
//! the whole command takes, as that of btrfs does. For the present's speed two pools, or subvolumes, are mounted side by side,
//! one of them with snapshots, and take turns at each workload.

mod btrfs;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, ensure};

use crate::bench_run::Run;
use crate::place::{Place, output, run_command};
use crate::workload::{self, Material, Unit, Workload};
use btrfs::Btrfs;

/// Workloads of the present's speed. Those that make something come before those that use it.
const HEAD: [Workload; 6] = [
    Workload::WriteUniqueSync,
    Workload::ReadCold,
    Workload::Create,
    Workload::Unlink,
    Workload::SmallWrite,
    Workload::SmallRead,
];

/// A pool rests when it takes the same room after this time, or does not after so many looks.
const REST: std::time::Duration = std::time::Duration::from_secs(10);
const REST_LOOKS_MAX: usize = 6;

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    run: Run,
    /// Files in the large tree.
    #[arg(long, default_value_t = 1_000_000)]
    files: usize,
    /// Snapshots taken at each size; the table shows the median and the most.
    #[arg(long, default_value_t = 21)]
    taken: usize,
    /// Snapshots beside which the present's speed is measured.
    #[arg(long, default_value_t = 100)]
    snapshots: usize,
    /// MiB in each large file.
    #[arg(long, default_value_t = 256)]
    size_mib: usize,
    /// Files in the metadata workloads.
    #[arg(long, default_value_t = 3000)]
    small_files: usize,
    /// GiB of the volume of which 1 % is overwritten; 0 leaves that out.
    #[arg(long, default_value_t = 10)]
    volume_gib: usize,
    /// Leave btrfs out.
    #[arg(long)]
    no_btrfs: bool,
}

impl Options {
    /// Btrfs, where it can be had and is wanted.
    fn btrfs(&self, name: &str) -> anyhow::Result<Option<Btrfs>> {
        match self.no_btrfs {
            true => Ok(None),
            false => Btrfs::new(&self.run.scratch()?, name),
        }
    }
}

/// Runs the bench and prints the tables.
///
/// # Errors
/// When a server does not start or a step fails. Everything is taken away in any case.
pub fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(options.taken > 0, "at least one snapshot");
    take(options)?;
    head(options)?;
    read(options)?;
    match options.volume_gib {
        0 => Ok(()),
        _ => change(options),
    }
}

fn start(options: &Options, name: &str) -> anyhow::Result<Place> {
    let mut place = options.run.place(name)?;
    place.start(true)?;
    Ok(place)
}

/// Takes a snapshot; milliseconds, as the server has measured them, until it is durable.
fn snapshot(place: &Place, path: &str, name: &str) -> anyhow::Result<f64> {
    measured(
        place,
        &["admin", "snapshot", "create", path, "--name", name],
    )
}

/// Milliseconds that a command tells.
fn measured(place: &Place, arguments: &[&str]) -> anyhow::Result<f64> {
    let said = output(place.cfs(arguments).arg("--json"))?;
    let said: serde_json::Value = serde_json::from_str(&said)?;
    let seconds = said["seconds"].as_f64();
    Ok(seconds.with_context(|| format!("no time in {said}"))? * 1e3)
}

/// Milliseconds that something takes.
fn timed<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(f64, T)> {
    let started = Instant::now();
    let done = work()?;
    Ok((started.elapsed().as_secs_f64() * 1e3, done))
}

fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn most(figures: &[f64]) -> f64 {
    figures.iter().copied().fold(0.0, f64::max)
}

/// Taking one: trees of 10 and of many files, idle, and while a file is written without a pause.
fn take(options: &Options) -> anyhow::Result<()> {
    println!("| milliseconds | median | most | whole command | of btrfs |");
    println!("| --- | ---: | ---: | ---: | ---: |");
    let mut medians = [Vec::new(), Vec::new()];
    for files in [10, options.files] {
        let theirs = take_of_btrfs(options, files)?;
        let mut place = start(options, "take")?;
        make_files(&place.mnt().join("tree"), files)?;
        run_command(&mut place.cfs(&["admin", "snapshot", "create", "/", "--name", "first"]))?;
        // Whatever was made before is in the tables.
        place.stop()?;
        place.start(true)?;
        for (which, what) in ["a snapshot", "a clone"].into_iter().enumerate() {
            let (mut figures, mut whole) = (Vec::new(), Vec::new());
            for number in 0..options.taken {
                std::fs::write(place.mnt().join("tree/changed"), number.to_string())?;
                let (ms, figure) = timed(|| match which {
                    0 => snapshot(&place, "/", &format!("s{number}")),
                    _ => measured(
                        &place,
                        &["admin", "clone", "/@first", &format!("/clone{number}")],
                    ),
                })?;
                figures.push(figure);
                whole.push(ms);
            }
            let most = most(&figures);
            let (median, whole) = (median(&mut figures), median(&mut whole));
            medians[which].push(median);
            let theirs = match theirs {
                Some(theirs) => format!("{:.1}", theirs[which]),
                None => "-".to_owned(),
            };
            println!(
                "| {what} of {files} files | {median:.2} | {most:.2} | {whole:.1} | {theirs} |"
            );
        }
        if files == 10 {
            let (mut waits, mut figures) = beside_a_writer(&place, options.taken)?;
            let longest = most(&figures);
            let median_ms = median(&mut figures);
            println!("| a snapshot while a file is written | {median_ms:.2} | {longest:.2} | | |");
            let longest = most(&waits);
            let median_ms = median(&mut waits);
            println!("| its writes of 128 KiB meanwhile | {median_ms:.2} | {longest:.2} | | |");
        }
        place.stop()?;
        place.remove()?;
    }
    let ratio = |of: &[f64]| of[1] / of[0];
    println!(
        "\nratio of the medians: {:.2}, of clones {:.2}\n",
        ratio(&medians[0]),
        ratio(&medians[1])
    );
    Ok(())
}

/// Median milliseconds of the commands of btrfs that take snapshots, and make writable ones of the first.
fn take_of_btrfs(options: &Options, files: usize) -> anyhow::Result<Option<[f64; 2]>> {
    let Some(btrfs) = options.btrfs("take")? else {
        return Ok(None);
    };
    make_files(&btrfs.root().join("tree"), files)?;
    run_command(&mut btrfs.snapshot("head", "first", false))?;
    let mut medians = [0.0; 2];
    for (which, (of, writable)) in [("head", false), ("first", true)].into_iter().enumerate() {
        let mut figures = Vec::new();
        for number in 0..options.taken {
            std::fs::write(btrfs.root().join("tree/changed"), number.to_string())?;
            let name = format!("s{which}-{number}");
            let mut command = btrfs.snapshot(of, &name, writable);
            figures.push(timed(|| run_command(&mut command))?.0);
        }
        medians[which] = median(&mut figures);
    }
    Ok(Some(medians))
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
fn head(options: &Options) -> anyhow::Result<()> {
    let places = [start(options, "head-none")?, start(options, "head-many")?];
    let ours = head_of(options, places.each_ref().map(Place::mnt), &|name| {
        snapshot(&places[1], "/", name).map(drop)
    })?;
    for mut place in places {
        place.stop()?;
        place.remove()?;
    }
    let theirs = match (options.btrfs("head-none")?, options.btrfs("head-many")?) {
        (Some(none), Some(many)) => {
            let take = |name: &str| run_command(&mut many.snapshot("head", name, false));
            Some(head_of(options, [none.root(), many.root()], &take)?)
        }
        _ => None,
    };
    println!(
        "| the present | without | with {} | ratio | of btrfs |",
        options.snapshots
    );
    println!("| --- | ---: | ---: | ---: | ---: |");
    for (row, workload) in HEAD.into_iter().enumerate() {
        let [none, many] = ours[row];
        let unit = match workload.unit() {
            Unit::Megabytes => "MB/s",
            _ => "1/s",
        };
        let theirs = match &theirs {
            Some(theirs) => format!("{:.2}", theirs[row][1] / theirs[row][0]),
            None => "-".to_owned(),
        };
        println!(
            "| {}, {unit} | {none:.0} | {many:.0} | {:.2} | {theirs} |",
            workload.title(),
            many / none
        );
    }
    println!();
    Ok(())
}

/// Medians of each workload without snapshots and with many, which `take` takes of the second root.
fn head_of(
    options: &Options,
    roots: [PathBuf; 2],
    take: &dyn Fn(&str) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<[f64; 2]>> {
    let mut material = Material::new(options.size_mib << 20, options.small_files);
    for root in &roots {
        make_files(&root.join("tree"), 2000)?;
    }
    for number in 0..options.snapshots {
        std::fs::write(
            roots[1].join(format!("tree/0/{number}")),
            number.to_string(),
        )?;
        take(&format!("s{number}"))?;
    }
    let mut figures = vec![[Vec::new(), Vec::new()]; HEAD.len()];
    for round in 0..options.run.rounds {
        for (row, workload) in HEAD.into_iter().enumerate() {
            material.prepare(workload);
            for turn in 0..roots.len() {
                let column = (turn + round) % roots.len();
                let root = &roots[column];
                let figure = workload::run(workload, root, &mut material);
                figures[row][column].push(figure.with_context(|| workload.title())?);
            }
        }
        // A new snapshot each round: what a round makes, the next one replaces.
        take(&format!("round{round}"))?;
        eprint!(".");
    }
    eprintln!();
    Ok(figures
        .into_iter()
        .map(|pair| pair.map(|mut figures| median(&mut figures)))
        .collect())
}

/// What overwriting 1 % of a volume between two snapshots costs, in the pool and in a stream, in pieces of two sizes.
fn change(options: &Options) -> anyhow::Result<()> {
    use std::os::unix::fs::FileExt as _;
    println!(
        "| 1 % of {} GiB overwritten, in pieces of | in the pool | of it chunks | sent |",
        options.volume_gib
    );
    println!("| --- | ---: | ---: | ---: |");
    let total = (options.volume_gib as u64) << 30;
    let mut place = start(options, "change")?;
    let path = place.mnt().join("volume");
    let mut material = Material::new(256 << 20, 1);
    let file = std::fs::File::create(&path)?;
    for at in (0..total).step_by(256 << 20) {
        material.prepare(Workload::WriteUniqueSync);
        file.write_all_at(material.bytes(), at)?;
    }
    file.sync_all()?;
    snapshot(&place, "/", "s0")?;
    let mut random = 1_u64;
    for (number, piece) in [(1, 1_usize << 20), (2, 64 << 10)] {
        let before = at_rest(&place)?;
        material.prepare(Workload::WriteUniqueSync);
        for bytes in material.bytes()[..(total / 100).min(256 << 20) as usize].chunks_exact(piece) {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            file.write_all_at(bytes, (random >> 16) % (total - piece as u64))?;
        }
        file.sync_all()?;
        snapshot(&place, "/", &format!("s{number}"))?;
        let after = at_rest(&place)?;
        let (name, base) = (format!("/@s{number}"), format!("s{}", number - 1));
        let mut send = place.cfs(&["send", &name, "--from", &base]);
        let stream = place.dir().join("stream");
        let status = send.stdout(std::fs::File::create(&stream)?).status()?;
        let sent = std::fs::metadata(&stream)?.len();
        std::fs::remove_file(&stream)?;
        ensure!(status.success(), "sending ended with {status}");
        let percent = |bytes: u64| bytes as f64 * 100.0 / total as f64;
        println!(
            "| {} KiB | {:.2} % | {:.2} % | {:.2} % |",
            piece >> 10,
            percent(after.1.saturating_sub(before.1)),
            percent(after.0.saturating_sub(before.0)),
            percent(sent)
        );
    }
    place.stop()?;
    place.remove()
}

/// Bytes of chunks and of the pool, when what was prepared for more has been given back.
fn at_rest(place: &Place) -> anyhow::Result<(u64, u64)> {
    let mut last = place.stored()?;
    for _ in 0..REST_LOOKS_MAX {
        std::thread::sleep(REST);
        let now = place.stored()?;
        if now == last {
            break;
        }
        last = now;
    }
    Ok(last)
}

/// A file as the present and as a snapshot shows it, after everything else has been forgotten, and after a part of it has
/// been overwritten since.
fn read(options: &Options) -> anyhow::Result<()> {
    let mut place = start(options, "read")?;
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
    for round in 0..options.run.rounds {
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
