//! `cargo xtask scenario`: large trees copied into a pool twice, a kill, and everything compared.
//!
//! Once through the mount with `cp -a`, once with `cfs import`. What must hold: after `sync` and `kill -9` both copies
//! are what their source is (`rsync -nac --delete -HAX`), the second took less than one percent of what the first
//! did, the check of the pool is clean, and neither names nor content are in the pool's bytes. The first thing that
//! does not hold ends the run; what it made is removed in any case.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};

use crate::place::{Place, output, run_command};

/// The share of the first copy's stored bytes that the second must stay below.
const SECOND_SHARE_MAX: f64 = 0.01;
/// Shorter words may be in random bytes by chance.
const NEEDLE_BYTES_MIN: usize = 12;
/// Names, and lines of files, to search the pool for.
const NEEDLES_MAX: usize = 2000;

/// What to copy, and where to.
#[derive(clap::Args)]
pub struct Options {
    /// An existing directory for the pool, the mount point and nothing else; what is made there is removed again.
    #[arg(long)]
    dir: PathBuf,
    /// Directories to copy [default: the Rust toolchain and the registry of cargo].
    #[arg(long = "source")]
    sources: Vec<PathBuf>,
    /// The release binary of ClaudeFS; by default the one beside this program.
    #[arg(long)]
    cfs: Option<PathBuf>,
}

/// How the copies get into the pool.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Mount,
    Import,
}

/// Runs the scenario both ways and prints the figures.
///
/// # Errors
/// The first thing that does not hold, or a command that fails.
pub fn run(options: &Options) -> anyhow::Result<()> {
    // The commands that run get the signal too and fail, which ends the run in order.
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    let sources = match options.sources.is_empty() {
        true => default_sources()?,
        false => options.sources.clone(),
    };
    let mut total = 0;
    let mut needles = BTreeSet::new();
    for source in &sources {
        let bytes = survey(source, &mut needles)?;
        println!("{}: {} MB", source.display(), bytes / 1_000_000);
        total += bytes;
    }
    let needles: Vec<_> = {
        let step = needles.len().div_ceil(NEEDLES_MAX).max(1);
        needles.into_iter().step_by(step).collect()
    };
    for way in [Way::Mount, Way::Import] {
        let mut place = Place::new(&options.dir, "scenario", options.cfs.as_deref())?;
        copy_twice(&mut place, way, &sources, total, &needles)?;
        place.remove()?;
    }
    println!("everything holds");
    Ok(())
}

fn default_sources() -> anyhow::Result<Vec<PathBuf>> {
    let toolchain = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let home = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cargo"),
    };
    Ok(vec![
        PathBuf::from(toolchain.trim_end()),
        home.join("registry"),
    ])
}

/// The bytes of all files below `root`; adds their names, and a line of each text, to `needles`.
fn survey(root: &Path, needles: &mut BTreeSet<Vec<u8>>) -> anyhow::Result<u64> {
    let mut bytes = 0;
    let mut left = vec![root.to_path_buf()];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(&directory)
            .with_context(|| format!("reading {}", directory.display()))?
        {
            let entry = entry?;
            let kind = entry.file_type()?;
            let name = entry.file_name();
            if name.len() >= NEEDLE_BYTES_MIN && !name.as_bytes().contains(&b'\n') {
                needles.insert(name.as_bytes().to_vec());
            }
            if kind.is_dir() {
                left.push(entry.path());
            } else if kind.is_file() {
                bytes += entry.metadata()?.len();
                let mut start = Vec::new();
                std::fs::File::open(entry.path())?
                    .take(4096)
                    .read_to_end(&mut start)?;
                let line = start
                    .split(|byte| *byte == b'\n')
                    .find(|line| line.len() >= 2 * NEEDLE_BYTES_MIN && line.is_ascii());
                needles.extend(line.map(<[u8]>::to_vec));
            }
        }
    }
    Ok(bytes)
}

fn copy_twice(
    place: &mut Place,
    way: Way,
    sources: &[PathBuf],
    bytes: u64,
    needles: &[Vec<u8>],
) -> anyhow::Result<()> {
    let title = match way {
        Way::Mount => "cp -a",
        Way::Import => "import",
    };
    place.start(way == Way::Mount)?;
    println!("{title}: idle, {} MiB resident", place.resident_mib()?);
    let empty = place.stored()?;
    let mut before = empty;
    let mut taken = Vec::new();
    for copy in ["first", "second"] {
        let start = Instant::now();
        for (number, source) in sources.iter().enumerate() {
            match way {
                Way::Mount => {
                    let parent = place.mnt().join(copy);
                    std::fs::create_dir_all(&parent)?;
                    run_command(
                        Command::new("cp")
                            .arg("-a")
                            .arg(source)
                            .arg(parent.join(number.to_string())),
                    )?;
                }
                Way::Import => {
                    run_command(
                        place
                            .cfs(&["import", "-T"])
                            .arg(source)
                            .arg(format!("/{copy}/{number}")),
                    )?;
                }
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        run_command(&mut Command::new("sync"))?;
        let after = place.stored()?;
        let new = after.0.saturating_sub(before.0);
        println!(
            "{title}: {copy} copy, {bytes} bytes in {seconds:.1} s, {:.0} MB/s; {new} bytes stored, the pool grew by {} \
             bytes, {} MiB resident",
            bytes as f64 / 1e6 / seconds,
            after.1.saturating_sub(before.1),
            place.resident_mib()?
        );
        taken.push(new);
        before = after;
    }
    let share = taken[1] as f64 / taken[0].max(1) as f64;
    println!("{title}: the second copy took {:.4} %", share * 100.0);
    ensure!(share < SECOND_SHARE_MAX, "the second copy took too much");

    run_command(&mut Command::new("sync"))?;
    place.kill()?;
    let start = Instant::now();
    place.start(true)?;
    println!(
        "{title}: killed and back in {:.2} s, {} MiB resident",
        start.elapsed().as_secs_f64(),
        place.resident_mib()?
    );
    for copy in ["first", "second"] {
        for (number, source) in sources.iter().enumerate() {
            compare(source, &place.mnt().join(copy).join(number.to_string()))?;
        }
    }
    println!("{title}: rsync finds no difference");
    ensure!(
        place.stored()?.0 == before.0,
        "the kill changed what is stored"
    );
    println!(
        "{title}: fsck: {}",
        output(&mut place.cfs(&["admin", "fsck"]))?.trim()
    );
    place.stop()?;
    output(&mut place.cfs(&["admin", "fsck"])).context("fsck of the pool at rest")?;
    search(&place.data().join("pool"), needles, place.dir())?;
    println!(
        "{title}: none of {} names and lines is in the pool's bytes",
        needles.len()
    );
    Ok(())
}

/// Insists that two trees are equal.
fn compare(source: &Path, copy: &Path) -> anyhow::Result<()> {
    let mut rsync = Command::new("rsync");
    rsync.args(["-nac", "--delete", "-HAX", "--out-format=%i %n"]);
    for path in [source, copy] {
        // With the slash at the end rsync compares what is in it.
        rsync.arg(path.join(""));
    }
    let differences = output(&mut rsync)?;
    let first: Vec<_> = differences.lines().take(20).collect();
    ensure!(
        differences.is_empty(),
        "{} differs from {}:\n{}",
        copy.display(),
        source.display(),
        first.join("\n")
    );
    Ok(())
}

/// Insists that no needle is in the file.
fn search(pool: &Path, needles: &[Vec<u8>], scratch: &Path) -> anyhow::Result<()> {
    let found = |needles: &[u8]| -> anyhow::Result<bool> {
        let list = scratch.join("needles");
        std::fs::write(&list, needles)?;
        let mut grep = Command::new("grep");
        grep.args(["-aqF", "-f"]).arg(&list).arg(pool);
        match grep.env("LC_ALL", "C").status()?.code() {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            code => bail!("grep ended with {code:?}"),
        }
    };
    ensure!(
        found(b"ClaudeFS")?,
        "grep does not find what must be there: the search is worth nothing"
    );
    if found(&needles.join(&b'\n'))? {
        for needle in needles {
            ensure!(
                !found(needle)?,
                "{:?} is in the pool's bytes",
                String::from_utf8_lossy(needle)
            );
        }
    }
    Ok(())
}
