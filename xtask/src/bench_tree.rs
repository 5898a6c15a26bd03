//! `cargo xtask bench tree DIR`: what people do with trees of source code, by the programs that they do it with, on the mounted
//! file system beside its ceiling (the toy), gocryptfs and a plain directory.
//!
//! As in `bench mount` all systems are mounted at once and take turns.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::Context as _;

use crate::bench_mount::{System, checked, median};
use crate::bench_run::Run;
use crate::plot::{self, Axis, Bar, Group, Panel, Plot};

/// The tree, and what to compare.
#[derive(clap::Args)]
pub struct Options {
    /// A directory with the tree.
    tree: PathBuf,
    #[command(flatten)]
    run: Run,
    /// Systems to run, of: cfs, toy, gocryptfs, plain.
    #[arg(long, value_delimiter = ',', default_value = "cfs,toy,gocryptfs,plain")]
    systems: Vec<String>,
    /// Draw the medians here, as an SVG.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// MiB that the toy touches beforehand.
const WARM_MIB: usize = 512;

/// A title, and what is done in the root of a system; `{tar}` and `{git}` stand for the tree as an archive and as a repository.
/// What grep looks for is not found in this file either.
const STEPS: [(&str, &str); 7] = [
    ("tar xf", "mkdir tree && tar xf '{tar}' -C tree"),
    ("cp -a", "cp -a tree copy"),
    ("git clone", "git clone -q --no-hardlinks '{git}' clone"),
    ("git status", "git -C clone status -s"),
    ("find with sizes", "find tree -type f -size +1000"),
    ("grep -r", "! grep -rq 'no such [w]ords are there' tree"),
    ("rm -rf", "rm -rf tree copy clone"),
];

/// Runs the bench and prints the table.
///
/// # Errors
/// When a system does not mount or a program fails. Everything is unmounted in any case.
pub fn run(options: &Options) -> anyhow::Result<()> {
    if let Some(path) = &options.svg {
        plot::prepare(path)?;
    }
    options.run.in_scratch(|scratch| run_in(options, scratch))
}

fn run_in(options: &Options, scratch: &Path) -> anyhow::Result<()> {
    let (archive, repository) = (scratch.join("tree.tar"), scratch.join("repository"));
    let tree = std::path::absolute(&options.tree)?;
    let tree = tree.display();
    shell(
        scratch,
        &format!("tar cf '{}' -C '{tree}' .", archive.display()),
    )?;
    shell(
        scratch,
        &format!(
            "cp -a '{tree}' repository && cd repository && git init -q && git add -Af . && \
             git -c user.name=bench -c user.email=bench@localhost commit -qm tree"
        ),
    )?;
    let systems = System::start_all(&options.systems, scratch, options.run.cfs(), WARM_MIB)?;
    let mut figures = vec![vec![Vec::new(); systems.len()]; STEPS.len()];
    for round in 0..options.run.rounds {
        for (row, (title, step)) in STEPS.iter().enumerate() {
            let line = step
                .replace("{tar}", &archive.to_string_lossy())
                .replace("{git}", &repository.to_string_lossy());
            for turn in 0..systems.len() {
                let column = (turn + round) % systems.len();
                let system = &systems[column];
                let start = Instant::now();
                shell(&system.root, &line).with_context(|| format!("{}: {title}", system.name))?;
                figures[row][column].push(start.elapsed().as_secs_f64());
                eprint!(".");
            }
        }
        eprintln!(" round {} of {}", round + 1, options.run.rounds);
    }
    let medians: Vec<Vec<f64>> = figures
        .iter()
        .map(|row| row.iter().map(|figures| median(figures)).collect())
        .collect();
    print_table(&systems, &figures, &medians);
    match &options.svg {
        Some(path) => seconds(&systems, &medians, options.run.rounds).write(path),
        None => Ok(()),
    }
}

fn shell(directory: &Path, line: &str) -> anyhow::Result<()> {
    checked(
        Command::new("sh")
            .args(["-ec", line])
            .current_dir(directory)
            .env("GIT_CONFIG_GLOBAL", "/dev/null"),
    )
}

fn seconds(systems: &[System], medians: &[Vec<f64>], rounds: usize) -> Plot {
    let groups = STEPS.iter().zip(medians).map(|((title, _), medians)| {
        let bar = |seconds: &f64| Bar::seconds(*seconds);
        Group {
            title: (*title).to_owned(),
            bars: medians.iter().map(bar).collect(),
        }
    });
    Plot {
        title: "Trees of source code".to_owned(),
        subtitle: format!("Seconds, {}; less is better", plot::medians_of(rounds)),
        axis: Axis::Values,
        series: systems.iter().map(|system| system.name.clone()).collect(),
        panels: vec![Panel {
            title: String::new(),
            groups: groups.collect(),
        }],
    }
}

/// Seconds, and how many times those of each other system the first one takes.
fn print_table(systems: &[System], figures: &[Vec<Vec<f64>>], medians: &[Vec<f64>]) {
    let (first, others) = systems.split_first().expect("at least one");
    let mut head = format!("| | {}, s (least to most) |", first.name);
    let mut rule = "| --- | ---: |".to_owned();
    for other in others {
        head += &format!(" / {} | {}, s |", other.name, other.name);
        rule += " ---: | ---: |";
    }
    println!("{head}\n{rule}");
    for (((title, _), row), medians) in STEPS.iter().zip(figures).zip(medians) {
        let own = medians[0];
        let least = row[0].iter().copied().fold(f64::INFINITY, f64::min);
        let most = row[0].iter().copied().fold(0.0, f64::max);
        let mut line = format!("| {title} | {own:.2} ({least:.2}-{most:.2}) |");
        for other in &medians[1..] {
            line += &format!(" {:.2} | {other:.2} |", own / other);
        }
        println!("{line}");
    }
}
