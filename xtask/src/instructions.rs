//! `cargo xtask instructions`: what the hot functions cost, in instructions, against the counts in
//! `xtask/instructions.txt`. Times say little on a machine that others use; counts are the same on all of them.
//!
//! The functions are those of the program `cfs-instructions`, which calls each in a function that valgrind watches.
//! Libraries choose between their ways by what the processor offers, and valgrind offers its own choice of it: counts
//! taken with another one, or by another valgrind, are not compared.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use clap::Args;

/// The program's function that is watched.
const WATCHED: &str = "cfs_measured";
const RECORD: &str = "xtask/instructions.txt";

#[derive(Args)]
pub struct Options {
    /// Take the counts of this run as those to compare with.
    #[arg(long)]
    write: bool,
    /// How much a count may grow, per cent.
    #[arg(long, default_value_t = 5.0)]
    tolerance: f64,
}

/// What a run counted, and on what.
#[derive(Debug, PartialEq)]
struct Counts {
    valgrind: String,
    rustc: String,
    processor: String,
    /// By name, in the order of the program.
    counts: Vec<(String, u64)>,
}

impl Counts {
    fn render(&self) -> String {
        let mut text = String::from("# Made by `cargo xtask instructions --write`.\n");
        for (key, value) in [
            ("valgrind", &self.valgrind),
            ("rustc", &self.rustc),
            ("processor", &self.processor),
        ] {
            let _ = writeln!(text, "{key}: {value}");
        }
        for (name, count) in &self.counts {
            let _ = writeln!(text, "{count:>12} {name}");
        }
        text
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut lines = text.lines().filter(|line| !line.starts_with('#'));
        let mut field = |key: &str| -> anyhow::Result<String> {
            let value = lines.next().and_then(|line| line.strip_prefix(key));
            Ok(value.with_context(|| format!("{key} expected"))?.to_owned())
        };
        let (valgrind, rustc) = (field("valgrind: ")?, field("rustc: ")?);
        let processor = field("processor: ")?;
        let counts = lines.map(|line| {
            let parts = line.trim_start().split_once(' ');
            let (count, name) = parts.with_context(|| format!("a count expected: {line}"))?;
            let count = count.parse().with_context(|| format!("a count: {line}"))?;
            Ok((name.to_owned(), count))
        });
        Ok(Self {
            valgrind,
            rustc,
            processor,
            counts: counts.collect::<anyhow::Result<_>>()?,
        })
    }

    fn of(&self, name: &str) -> Option<u64> {
        let found = self.counts.iter().find(|(other, _)| other == name);
        found.map(|(_, count)| *count)
    }
}

/// Counts, and compares or writes.
///
/// # Errors
/// When a function takes more instructions than the record allows, when the record names other functions, or when
/// nothing could be counted. Only `--write` changes a file.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let now = count()?;
    if options.write {
        std::fs::write(RECORD, now.render())?;
        println!("{RECORD}: {} counts", now.counts.len());
        return Ok(());
    }
    let record = std::fs::read_to_string(RECORD).with_context(|| RECORD.to_owned())?;
    let before = Counts::parse(&record).with_context(|| RECORD.to_owned())?;
    for (what, before, now) in [
        ("valgrind", &before.valgrind, &now.valgrind),
        ("a compiler that is", &before.rustc, &now.rustc),
        ("a processor with", &before.processor, &now.processor),
    ] {
        if before != now {
            println!("not compared: the counts are of {what} {before}; here it is {now}");
            return Ok(());
        }
    }
    let grown = compare(&before, &now, options.tolerance);
    if grown.is_empty() {
        return Ok(());
    }
    bail!(
        "{}\nif that is meant: cargo xtask instructions --write",
        grown.join("\n")
    );
}

/// Prints all counts. What is wrong, a sentence each.
fn compare(before: &Counts, now: &Counts, tolerance: f64) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, count) in &now.counts {
        let Some(old) = before.of(name) else {
            wrong.push(format!("{name}: {count} instructions, none in {RECORD}"));
            continue;
        };
        let change = (*count as f64 / old as f64 - 1.0) * 100.0;
        println!("{count:>12} {change:>+7.2} % {name}");
        if change > tolerance {
            wrong.push(format!(
                "{name}: {old} instructions before, {count} now, {change:+.1} % (allowed: {tolerance} %)"
            ));
        } else if change < -tolerance {
            println!(
                "             fewer than before: keep it so with cargo xtask instructions --write"
            );
        }
    }
    for (name, _) in &before.counts {
        if now.of(name).is_none() {
            wrong.push(format!("{name}: in {RECORD}, not counted any more"));
        }
    }
    wrong
}

fn count() -> anyhow::Result<Counts> {
    let valgrind = output_of(Command::new("valgrind").arg("--version"))
        .context("valgrind is needed (Debian: apt-get install valgrind)")?;
    let rustc = output_of(Command::new("rustc").arg("--version"))?;
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--release", "--quiet", "--package", "cfs-sim"]);
    let status = build.args(["--bin", "cfs-instructions"]).status()?;
    ensure!(
        status.success(),
        "the program cfs-instructions did not build"
    );
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let dumps = target.join(format!("instructions-{}", std::process::id()));
    std::fs::create_dir_all(&dumps)?;
    let counted = count_in(&target.join("release/cfs-instructions"), &dumps);
    std::fs::remove_dir_all(&dumps)?;
    let (processor, counts) = counted?;
    Ok(Counts {
        valgrind,
        rustc,
        processor,
        counts,
    })
}

/// Runs the program under valgrind, which leaves its dumps in the directory.
fn count_in(program: &Path, dumps: &Path) -> anyhow::Result<(String, Vec<(String, u64)>)> {
    let mut command = Command::new("valgrind");
    command.args(["--quiet", "--tool=callgrind"]);
    command.arg(format!("--toggle-collect={WATCHED}"));
    command.arg(format!("--dump-after={WATCHED}"));
    let mut out_file = std::ffi::OsString::from("--callgrind-out-file=");
    out_file.push(dumps.join("dump"));
    let output = output_of(command.arg(out_file).arg(program))?;
    let mut lines = output.lines();
    let processor = lines.next().context("the program says nothing")?;
    let mut counts = Vec::new();
    for (index, name) in lines.enumerate() {
        // Numbered in the order in which they were left.
        let path = dumps.join(format!("dump.{}", index + 1));
        let dump = std::fs::read_to_string(&path).with_context(|| format!("{name}: no count"))?;
        let by_watching = format!("desc: Trigger: --dump-after={WATCHED}");
        ensure!(dump.contains(&by_watching), "{name}: not counted by itself");
        let total = dump.lines().find_map(|line| line.strip_prefix("totals: "));
        let total = total.with_context(|| format!("{name}: no total"))?;
        counts.push((name.to_owned(), total.trim().parse()?));
    }
    ensure!(!counts.is_empty(), "nothing was counted");
    Ok((processor.to_owned(), counts))
}

fn output_of(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| program.clone())?;
    if !output.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(counts: &[(&str, u64)]) -> Counts {
        Counts {
            valgrind: "valgrind-3.19.0".into(),
            rustc: "rustc 1.95.0".into(),
            processor: "x86_64 avx2".into(),
            counts: counts
                .iter()
                .map(|(name, count)| ((*name).into(), *count))
                .collect(),
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let record = counts(&[("seal 128 KiB, zstd:1", 12_345), ("a", 7)]);
        assert_eq!(Counts::parse(&record.render()).unwrap(), record);
        Counts::parse("").unwrap_err();
    }

    #[test]
    fn what_grew_or_differs_is_named() {
        let before = counts(&[("same", 1000), ("grown", 1000), ("less", 1000), ("gone", 1)]);
        let now = counts(&[("same", 1049), ("grown", 1051), ("less", 10), ("new", 1)]);
        let wrong = compare(&before, &now, 5.0);
        assert_eq!(wrong.len(), 3, "{wrong:?}");
        assert!(
            wrong[0].starts_with("grown: 1000 instructions before, 1051 now"),
            "{wrong:?}"
        );
        assert!(wrong[1].starts_with("new: "), "{wrong:?}");
        assert!(wrong[2].starts_with("gone: "), "{wrong:?}");
    }
}
