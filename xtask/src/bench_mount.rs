//! `cargo xtask bench mount`: the mounted file system beside its ceiling (the toy), gocryptfs and a plain directory.
//!
//! All systems are mounted at once over the same disk and take turns at each workload, round after round, in
//! changing order; a figure is the median of the rounds. What matters are the ratios within one run: the machine may
//! be another one tomorrow.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::bench_run::Run;
use crate::place;
use crate::plot::{self, Axis, Bar, Group, Panel, Plot};
use crate::workload::{self, Material, Unit, WORKLOADS, Workload};

/// What to compare, and how much of it.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    run: Run,
    /// MiB in each large file.
    #[arg(long, default_value_t = 512)]
    size_mib: usize,
    /// Files in the metadata workloads.
    #[arg(long, default_value_t = 5000)]
    files: usize,
    /// Systems to run, of: cfs, toy, gocryptfs, plain.
    #[arg(long, value_delimiter = ',', default_value = "cfs,toy,gocryptfs,plain")]
    systems: Vec<String>,
    /// Workloads to run: all whose title has this in it.
    #[arg(long, default_value = "")]
    workloads: String,
    /// Draw the medians here, as an SVG, relative to the toy, or else to the last system; needs two systems.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Runs the bench and prints the table.
///
/// # Errors
/// When a system does not mount or a workload fails. Everything is unmounted in any case.
pub fn run(options: &Options) -> anyhow::Result<()> {
    if let Some(path) = &options.svg {
        ensure!(options.systems.len() > 1, "--svg compares two systems");
        plot::prepare(path)?;
    }
    options.run.in_scratch(|scratch| run_in(options, scratch))
}

fn run_in(options: &Options, scratch: &Path) -> anyhow::Result<()> {
    let warm_mib = options.size_mib * 3 + 64;
    let systems = System::start_all(&options.systems, scratch, options.run.cfs(), warm_mib)?;
    ensure!(
        options.svg.is_none() || systems.len() > 1,
        "--svg compares two systems, and only {} runs",
        systems[0].name
    );
    let mut material = Material::new(options.size_mib << 20, options.files);
    let chosen: Vec<Workload> = WORKLOADS
        .into_iter()
        .filter(|workload| workload.title().contains(&options.workloads))
        .collect();
    let mut figures = vec![vec![Vec::new(); systems.len()]; chosen.len()];
    for round in 0..options.run.rounds {
        for (row, workload) in chosen.iter().enumerate() {
            material.prepare(*workload);
            for turn in 0..systems.len() {
                let column = (turn + round) % systems.len();
                let system = &systems[column];
                let figure = workload::run(*workload, &system.root, &mut material)
                    .with_context(|| format!("{}: {}", system.name, workload.title()))?;
                figures[row][column].push(figure);
                eprint!(".");
                std::io::stderr().flush()?;
            }
        }
        for system in &systems {
            workload::clean(&system.root)?;
        }
        eprintln!(" round {} of {}", round + 1, options.run.rounds);
    }
    let medians: Vec<Vec<f64>> = figures
        .iter()
        .map(|row| row.iter().map(|figures| median(figures)).collect())
        .collect();
    print_table(&systems, &chosen, &figures, &medians);
    print_notes(&chosen);
    match &options.svg {
        Some(path) => relative(&systems, &chosen, &medians, options.run.rounds).write(path),
        None => Ok(()),
    }
}

pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn cell(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Megabytes => format!("{value:.0} MB/s"),
        Unit::Operations => format!("{value:.0} /s"),
        Unit::Microseconds => format!("{value:.0} us"),
    }
}

/// How many times as quick the first one is.
fn quicker(unit: Unit, first: f64, other: f64) -> f64 {
    match unit {
        Unit::Microseconds => other / first,
        Unit::Megabytes | Unit::Operations => first / other,
    }
}

/// All systems beside the toy, or else the last one: how many times as quick as it they are.
fn relative(
    systems: &[System],
    workloads: &[Workload],
    medians: &[Vec<f64>],
    rounds: usize,
) -> Plot {
    let toy = systems.iter().position(|system| system.name == "toy");
    let base = toy.unwrap_or(systems.len() - 1);
    let others: Vec<usize> = (0..systems.len()).filter(|other| *other != base).collect();
    let groups = workloads.iter().zip(medians).map(|(workload, medians)| {
        let unit = workload.unit();
        let bar = |other: &usize| {
            let value = quicker(unit, medians[*other], medians[base]);
            Bar::ratio(value, &cell(unit, medians[*other]))
        };
        Group {
            title: workload.title().to_owned(),
            bars: others.iter().map(bar).collect(),
        }
    });
    let name = match systems[base].name.as_str() {
        "toy" => "the toy",
        other => other,
    };
    Plot {
        title: "The mount".to_owned(),
        subtitle: format!(
            "How many times as quick as {name} (1), {}; more is better",
            plot::medians_of(rounds)
        ),
        axis: Axis::Ratios,
        series: others
            .iter()
            .map(|other| systems[*other].name.clone())
            .collect(),
        panels: vec![Panel {
            title: String::new(),
            groups: groups.collect(),
        }],
    }
}

/// The first system is compared with the others: how many times as quick as they it is.
fn print_table(
    systems: &[System],
    workloads: &[Workload],
    figures: &[Vec<Vec<f64>>],
    medians: &[Vec<f64>],
) {
    let (first, others) = systems.split_first().expect("at least one");
    let mut head = format!("| workload | {} |", first.name);
    let mut rule = "| --- | ---: |".to_owned();
    for other in others {
        head += &format!(" {} / {} |", first.name, other.name);
        rule += " ---: |";
    }
    for other in others {
        head += &format!(" {} |", other.name);
        rule += " ---: |";
    }
    println!("{head}\n{rule}");
    for ((workload, row), medians) in workloads.iter().zip(figures).zip(medians) {
        let unit = workload.unit();
        let spread = {
            let low = row[0].iter().copied().fold(f64::INFINITY, f64::min);
            let high = row[0].iter().copied().fold(0.0, f64::max);
            (high - low) / medians[0] * 100.0
        };
        let mut line = format!(
            "| {} | {} (spread {spread:.0} %) |",
            workload.title(),
            cell(unit, medians[0])
        );
        for other in &medians[1..] {
            line += &format!(" {:.2} |", quicker(unit, medians[0], *other));
        }
        for other in &medians[1..] {
            line += &format!(" {} |", cell(unit, *other));
        }
        println!("{line}");
    }
}

fn print_notes(workloads: &[Workload]) {
    println!();
    for workload in workloads {
        if let Some(note) = workload.note() {
            println!("- {}: {note}.", workload.title());
        }
    }
}

/// A directory that workloads can run in. Dropping it unmounts.
pub(crate) struct System {
    pub(crate) name: String,
    pub(crate) root: PathBuf,
    /// The process that serves the mount, and whether a signal makes it unmount.
    server: Option<Child>,
    mounted: bool,
}

impl System {
    /// Mounts the systems of these names in `scratch`, and says which do not mount. `warm_mib` is for the toy's memory.
    ///
    /// # Errors
    /// When none does.
    pub(crate) fn start_all(
        names: &[String],
        scratch: &Path,
        cfs: Option<&Path>,
        warm_mib: usize,
    ) -> anyhow::Result<Vec<Self>> {
        let mut systems = Vec::new();
        for name in names {
            match Self::start(name, scratch, cfs, warm_mib) {
                Ok(system) => systems.push(system),
                Err(error) => eprintln!("without {name}: {error:#}"),
            }
        }
        ensure!(!systems.is_empty(), "no system to run");
        Ok(systems)
    }

    fn start(
        name: &str,
        scratch: &Path,
        cfs: Option<&Path>,
        warm_mib: usize,
    ) -> anyhow::Result<Self> {
        let root = scratch.join(name);
        let data = scratch.join(format!("{name}-data"));
        std::fs::create_dir_all(&root)?;
        let mut system = Self {
            name: name.to_owned(),
            root: root.clone(),
            server: None,
            mounted: name != "plain",
        };
        match name {
            "plain" => {}
            "toy" => {
                let mut command = Command::new(std::env::current_exe()?);
                command
                    .arg("toyfs")
                    .arg(&root)
                    .arg("--warm-mib")
                    .arg(warm_mib.to_string());
                system.serve(command)?;
            }
            "cfs" => {
                let mut command = Command::new(place::binary(cfs)?);
                command.arg("mount").arg("--data").arg(&data).arg(&root);
                system.serve(command)?;
            }
            "gocryptfs" => {
                std::fs::create_dir_all(&data)?;
                let secret = ["-q", "-extpass", "echo bench"];
                checked(
                    Command::new("gocryptfs")
                        .args(["-init", "-scryptn", "10"])
                        .args(secret)
                        .arg(&data),
                )?;
                checked(Command::new("gocryptfs").args(secret).arg(&data).arg(&root))?;
            }
            other => bail!("no system of this name: {other}"),
        }
        Ok(system)
    }

    /// The process number of the server.
    ///
    /// # Errors
    /// It has none in the foreground.
    pub(crate) fn pid(&self) -> anyhow::Result<u32> {
        let server = self.server.as_ref();
        Ok(server.context("no server in the foreground")?.id())
    }

    /// Starts a server in the foreground and waits until it has mounted.
    fn serve(&mut self, mut command: Command) -> anyhow::Result<()> {
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        self.server = Some(child);
        let before = device_of(self.root.parent().expect("in the scratch directory"))?;
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut line = String::new();
        while device_of(&self.root)? == before {
            let child = self.server.as_mut().expect("just set");
            if let Some(status) = child.try_wait()? {
                bail!("{command:?} ended with {status}");
            }
            ensure!(
                Instant::now() < deadline,
                "{command:?} did not mount within a minute"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        // Nobody reads what it prints later, and it must not block on a full pipe.
        std::thread::spawn(
            move || while output.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {},
        );
        Ok(())
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount")
                .arg(&self.root)
                .stderr(Stdio::null())
                .status();
            let _ = Command::new("umount")
                .arg("-l")
                .arg(&self.root)
                .stderr(Stdio::null())
                .status();
        }
        if let Some(mut server) = self.server.take() {
            let deadline = Instant::now() + Duration::from_secs(30);
            while matches!(server.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

fn device_of(path: &Path) -> anyhow::Result<u64> {
    Ok(rustix::fs::stat(path)?.st_dev)
}

/// Runs a program to its end.
///
/// # Errors
/// When it cannot be started, or fails; with what it has said.
pub(crate) fn checked(command: &mut Command) -> anyhow::Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{command:?}"))?;
    let message = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", message.trim());
    Ok(())
}
