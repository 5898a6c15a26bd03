//! `cargo xtask bench peers`: whole trees in and out, beside backup programs that deduplicate, compress and encrypt.
//!
//! For each tree and each program, in turns: the first ingest into an empty store, the same tree again, and a restore.
//! What is told is the median of the rounds: seconds, seconds of processor time, the largest resident memory, and how
//! many times the stored bytes go into those of the tree. Some programs leave what they restore in the page cache, so the
//! time until the disk has it is told too; and what `cp -a` takes for the tree, which is what a restore without a store
//! would. Trees are read once before, so that all find them in the page cache; what is restored is compared with its
//! source in the first round. Programs that are not installed are left out and named.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::bench_mount::median;
use crate::bench_run::Run;
use crate::place;
use crate::plot::{self, Axis, Bar, Group, Panel, Plot};

/// ext4 passes over each inode that was deleted within the last minute (`recently_deleted` in its `ialloc.c`), so that
/// whoever restores 85,000 entries after another's were removed takes three times as long.
const DELETED_RECENTLY: Duration = Duration::from_secs(61);
/// Of fewer entries that is not felt.
const ENTRIES_FEW: usize = 5000;

/// The trees, and how often.
#[derive(clap::Args)]
pub struct Options {
    /// Directories to store, each by itself.
    #[arg(required = true)]
    trees: Vec<PathBuf>,
    #[command(flatten)]
    run: Run,
    /// Codecs of cfs to measure.
    #[arg(long = "codec", default_values_t = ["lz4".to_owned(), "zstd:3".to_owned()])]
    codecs: Vec<String>,
    /// Draw the medians of the seconds here, as an SVG.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// A program that stores trees.
enum Program {
    Cfs { binary: PathBuf, codec: String },
    Restic,
    Rustic,
    Borg,
}

/// What one command took.
#[derive(Clone, Copy)]
pub(crate) struct Took {
    pub(crate) seconds: f64,
    pub(crate) processor_seconds: f64,
    pub(crate) resident_mib: f64,
}

/// What one round of a program came to.
struct Round {
    first: Took,
    again: Took,
    restore: Restored,
    stored_bytes: u64,
}

/// A tree that was written.
#[derive(Clone, Copy)]
struct Restored {
    took: Took,
    /// Until all of it was on the disk.
    synced_seconds: f64,
}

/// Measures and prints.
///
/// # Errors
/// A program fails, or what it restores is not what it was given.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let binary = place::binary(options.run.cfs())?;
    if let Some(path) = &options.svg {
        plot::prepare(path)?;
    }
    let mut programs: Vec<Program> = options
        .codecs
        .iter()
        .map(|codec| Program::Cfs {
            binary: binary.clone(),
            codec: codec.clone(),
        })
        .collect();
    for (program, name, version) in [
        (Program::Restic, "restic", "version"),
        (Program::Rustic, "rustic", "--version"),
        (Program::Borg, "borg", "--version"),
    ] {
        match Command::new(name).arg(version).output() {
            Ok(output) => {
                println!("{}", String::from_utf8_lossy(&output.stdout).trim());
                programs.push(program);
            }
            Err(_) => println!("{name} is not installed, and left out"),
        }
    }
    let mut panels = Vec::new();
    for (index, tree) in options.trees.iter().enumerate() {
        let tree = std::path::absolute(tree)?;
        let bytes = warm(&tree)?;
        let mut entries = 0_usize;
        visit(&tree, &mut |_, _| {
            entries += 1;
            Ok(())
        })?;
        println!("\n{}: {:.2} GB", tree.display(), bytes as f64 / 1e9);
        let mut rounds: Vec<Vec<Round>> = programs.iter().map(|_| Vec::new()).collect();
        let mut copies = Vec::new();
        for round in 0..options.run.rounds {
            // Those of many entries are removed when all have run, see `DELETED_RECENTLY`.
            let mut scratches = Vec::new();
            let end = |scratch, scratches: &mut Vec<Scratch>| {
                if entries > ENTRIES_FEW {
                    scratches.push(scratch);
                } else {
                    drop(scratch);
                    // Or the next one waits for what removing costs.
                    rustix::fs::sync();
                }
            };
            for (program, rounds) in programs.iter().zip(&mut rounds) {
                let scratch = Scratch::new(&options.run.scratch()?, scratches.len())?;
                rounds.push(
                    program
                        .round(&tree, &scratch.0, round == 0)
                        .context(program.name())?,
                );
                end(scratch, &mut scratches);
            }
            let scratch = Scratch::new(&options.run.scratch()?, scratches.len())?;
            let mut copy = Command::new("cp");
            copy.arg("-a").arg(&tree).arg(&scratch.0);
            copies.push(restored(&mut copy, &scratch.0)?);
            end(scratch, &mut scratches);
            let has_next = round + 1 < options.run.rounds || index + 1 < options.trees.len();
            drop(scratches);
            if has_next && entries > ENTRIES_FEW {
                std::thread::sleep(DELETED_RECENTLY);
            }
        }
        let medians: Vec<Median> = rounds
            .iter()
            .map(|rounds| Median::of(rounds, bytes))
            .collect();
        print(&programs, &medians, median_of(&copies));
        panels.push(panel(&tree, &medians, bytes));
    }
    let Some(path) = &options.svg else {
        return Ok(());
    };
    let plot = Plot {
        title: "Beside backup programs".to_owned(),
        subtitle: format!(
            "Seconds, {}; less is better",
            plot::medians_of(options.run.rounds)
        ),
        axis: Axis::Values,
        series: programs.iter().map(Program::name).collect(),
        panels,
    };
    plot.write(path)
}

impl Program {
    fn name(&self) -> String {
        match self {
            Self::Cfs { codec, .. } => format!("cfs, {codec}"),
            Self::Restic => "restic".to_owned(),
            Self::Rustic => "rustic".to_owned(),
            Self::Borg => "borg, zstd,3".to_owned(),
        }
    }

    fn round(&self, tree: &Path, scratch: &Path, compare: bool) -> anyhow::Result<Round> {
        let store = scratch.join("store");
        let out = scratch.join("out");
        std::fs::create_dir(&out)?;
        let mut init = self.command(scratch);
        match self {
            Self::Cfs { codec, .. } => init.args(["init", "--codec", codec, "--data"]).arg(&store),
            Self::Restic | Self::Rustic => init.arg("init"),
            Self::Borg => init.args(["init", "--encryption", "repokey-blake2"]),
        };
        took(&mut init)?;
        let ingest = |name: &str| {
            let mut command = self.command(scratch);
            command.current_dir(tree);
            match self {
                Self::Cfs { .. } => command
                    .args(["import", ".", "/tree", "-T", "--data"])
                    .arg(&store),
                Self::Restic => command.args(["backup", "--quiet", "."]),
                Self::Rustic => command.args(["backup", "."]),
                Self::Borg => command
                    .args(["create", "--compression", "zstd,3"])
                    .arg(format!("::{name}"))
                    .arg("."),
            };
            took(&mut command)
        };
        let first = ingest("first")?;
        let stored_bytes = allocated(&store)?;
        let again = ingest("again")?;
        let mut restore = self.command(scratch);
        restore.current_dir(&out);
        match self {
            Self::Cfs { .. } => restore
                .args(["export", "/tree", ".", "-T", "--data"])
                .arg(&store),
            Self::Restic => restore.args(["restore", "--quiet", "latest", "--target", "."]),
            Self::Rustic => restore.args(["restore", "latest", "."]),
            Self::Borg => restore.args(["extract", "::first"]),
        };
        let restore = restored(&mut restore, &out)?;
        if compare {
            let mut diff = Command::new("diff");
            took(diff.args(["-r", "--no-dereference"]).arg(tree).arg(&out))
                .context("what was restored is not what was stored")?;
        }
        Ok(Round {
            first,
            again,
            restore,
            stored_bytes,
        })
    }

    /// Without its arguments, but with all that says where the store is and what opens it.
    fn command(&self, scratch: &Path) -> Command {
        let (store, cache) = (scratch.join("store"), scratch.join("cache"));
        let mut command;
        match self {
            Self::Cfs { binary, .. } => command = Command::new(binary),
            Self::Restic => {
                command = Command::new("restic");
                command
                    .env("RESTIC_REPOSITORY", store)
                    .env("RESTIC_PASSWORD", "bench")
                    .env("RESTIC_CACHE_DIR", cache);
            }
            Self::Rustic => {
                command = Command::new("rustic");
                command
                    .env("RUSTIC_REPOSITORY", store)
                    .env("RUSTIC_PASSWORD", "bench")
                    .env("RUSTIC_CACHE_DIR", &cache)
                    .env("RUSTIC_NO_PROGRESS", "true")
                    // Nobody's profile.
                    .env("XDG_CONFIG_HOME", cache);
            }
            Self::Borg => {
                command = Command::new("borg");
                command
                    .env("BORG_REPO", store)
                    .env("BORG_PASSPHRASE", "bench")
                    .env("BORG_BASE_DIR", cache);
            }
        }
        command
    }
}

/// A directory that goes with all that is in it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(parent: &Path, number: usize) -> anyhow::Result<Self> {
        let path = parent.join(format!("cfs-peers-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            println!("{} could not be removed: {error}", self.0.display());
        }
    }
}

/// Runs a command to its end, which must be a good one.
///
/// # Errors
/// When it cannot be started, or fails; with what it has said.
pub(crate) fn took(command: &mut Command) -> anyhow::Result<Took> {
    let before = children_seconds()?;
    let started = Instant::now();
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{command:?}"))?;
    let mut said = child.stderr.take().context("piped")?;
    let reader = std::thread::spawn(move || std::io::read_to_string(&mut said));
    let mut resident_mib = 0.0_f64;
    let status = loop {
        resident_mib = resident_mib.max(peak_mib(&child));
        match child.try_wait()? {
            Some(status) => break status,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let seconds = started.elapsed().as_secs_f64();
    let said = reader.join().expect("reads to the end")?;
    if !status.success() {
        bail!("{command:?}: {status}: {said}");
    }
    Ok(Took {
        seconds,
        processor_seconds: children_seconds()? - before,
        resident_mib,
    })
}

/// Runs a command that writes a tree to a place, then waits until it is on the disk.
fn restored(command: &mut Command, place: &Path) -> anyhow::Result<Restored> {
    let took = took(command)?;
    let started = Instant::now();
    rustix::fs::syncfs(std::fs::File::open(place)?)?;
    Ok(Restored {
        took,
        synced_seconds: took.seconds + started.elapsed().as_secs_f64(),
    })
}

/// The median of each figure by itself.
fn median_of(all: &[Restored]) -> Restored {
    let of = |figure: fn(&Restored) -> f64| median(&all.iter().map(figure).collect::<Vec<_>>());
    Restored {
        took: Took {
            seconds: of(|it| it.took.seconds),
            processor_seconds: of(|it| it.took.processor_seconds),
            resident_mib: of(|it| it.took.resident_mib),
        },
        synced_seconds: of(|it| it.synced_seconds),
    }
}

/// Processor time of all children that have been waited for; /proc/self/stat, see proc_pid_stat(5).
fn children_seconds() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat
        .rsplit_once(')')
        .context("/proc/self/stat has another form")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let field = |number: usize| -> anyhow::Result<f64> {
        let text = fields
            .get(number - 3)
            .context("/proc/self/stat is too short")?;
        Ok(text.parse::<u64>()? as f64)
    };
    Ok((field(16)? + field(17)?) / rustix::param::clock_ticks_per_second() as f64)
}

/// The most that a process has had resident, 0 once it has ended.
fn peak_mib(child: &Child) -> f64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

/// Reads all files once. Bytes of them.
///
/// # Errors
/// When one cannot be read.
pub(crate) fn warm(root: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    visit(root, &mut |path, meta| {
        if meta.is_file() {
            bytes += std::io::copy(&mut std::fs::File::open(path)?, &mut std::io::sink())?;
        }
        Ok(())
    })?;
    Ok(bytes)
}

/// Bytes that a store takes on the disk.
///
/// # Errors
/// When it cannot be looked through.
pub(crate) fn allocated(root: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    visit(root, &mut |_, meta| {
        bytes += meta.blocks() * 512;
        Ok(())
    })?;
    Ok(bytes)
}

fn visit(
    root: &Path,
    each: &mut dyn FnMut(&Path, &std::fs::Metadata) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(root).with_context(|| format!("reading {}", root.display()))? {
        let entry = entry?;
        let meta = entry.metadata()?;
        each(&entry.path(), &meta)?;
        if meta.is_dir() {
            visit(&entry.path(), each)?;
        }
    }
    Ok(())
}

/// What the rounds of a program came to, each figure by itself.
struct Median {
    stored_ratio: f64,
    first: Took,
    again: Took,
    restore: Restored,
    resident_mib: f64,
}

impl Median {
    fn of(rounds: &[Round], bytes: u64) -> Self {
        let of =
            |figure: &dyn Fn(&Round) -> f64| median(&rounds.iter().map(figure).collect::<Vec<_>>());
        let took = |phase: fn(&Round) -> Took| Took {
            seconds: of(&|round| phase(round).seconds),
            processor_seconds: of(&|round| phase(round).processor_seconds),
            resident_mib: of(&|round| phase(round).resident_mib),
        };
        Self {
            stored_ratio: of(&|round| bytes as f64 / round.stored_bytes as f64),
            first: took(|round| round.first),
            again: took(|round| round.again),
            restore: median_of(&rounds.iter().map(|round| round.restore).collect::<Vec<_>>()),
            resident_mib: of(&|round| {
                let all = [round.first, round.again, round.restore.took];
                all.iter()
                    .fold(0.0, |most: f64, took| most.max(took.resident_mib))
            }),
        }
    }
}

/// One tree's part of the plot: a group for each thing that is done with it, a bar for each program.
fn panel(tree: &Path, medians: &[Median], bytes: u64) -> Panel {
    let phases: [(&str, fn(&Median) -> Took); 3] = [
        ("first", |it| it.first),
        ("again", |it| it.again),
        ("restore", |it| it.restore.took),
    ];
    let groups = phases.map(|(title, phase)| {
        let bar = |median: &Median| Bar::seconds(phase(median).seconds);
        Group {
            title: title.to_owned(),
            bars: medians.iter().map(bar).collect(),
        }
    });
    let name = tree.file_name().unwrap_or(tree.as_os_str());
    Panel {
        title: format!("{}, {:.2} GB", name.display(), bytes as f64 / 1e9),
        groups: groups.into(),
    }
}

fn print(programs: &[Program], medians: &[Median], copy: Restored) {
    println!(
        "| program | stored ratio | first, s / CPU s | again, s / CPU s | restore, s / CPU s | until synced, s | resident, MiB |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    let both = |took: Took| format!("{:.2} / {:.2}", took.seconds, took.processor_seconds);
    for (program, median) in programs.iter().zip(medians) {
        println!(
            "| {} | {:.2} | {} | {} | {} | {:.2} | {:.0} |",
            program.name(),
            median.stored_ratio,
            both(median.first),
            both(median.again),
            both(median.restore.took),
            median.restore.synced_seconds,
            median.resident_mib,
        );
    }
    println!(
        "| `cp -a` | | | | {} | {:.2} | {:.0} |",
        both(copy.took),
        copy.synced_seconds,
        copy.took.resident_mib,
    );
}
