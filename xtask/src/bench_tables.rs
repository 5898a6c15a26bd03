//! `cargo xtask bench tables`: the tables beside fjall, redb, LMDB and RocksDB, by a bench of `cfs-store`; see
//! `crates/cfs-store/benches/tables`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::plot::{self, Axis, Bar, Group, Panel, Plot};

/// What to compare, and how much of it.
#[derive(clap::Args)]
pub struct Options {
    /// Where the tables lie meanwhile; 20 million entries need some 6 GB.
    #[arg(long, default_value = "/tmp")]
    dir: PathBuf,
    /// Millions of entries.
    #[arg(long, default_value_t = 2.0)]
    millions: f64,
    /// How often; the medians are shown.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Cache of each engine, MiB.
    #[arg(long, default_value_t = 2048)]
    cache_mib: u64,
    /// RocksDB too; needs its library (Debian: librocksdb-dev).
    #[arg(long)]
    rocksdb: bool,
    /// Only these, the first one against the others: cfs-kv, pool, fjall, redb, lmdb, rocksdb.
    engines: Vec<String>,
    /// Draw the medians here, as an SVG, relative to the first engine; needs two engines.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Builds and runs the bench.
///
/// # Errors
/// When it fails, or what it measured cannot be drawn.
pub fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(options.rounds > 0, "at least one round");
    let Some(svg) = &options.svg else {
        return bench(options, None);
    };
    ensure!(options.engines.len() != 1, "--svg compares two engines");
    plot::prepare(svg)?;
    let file = format!("cfs-bench-tables-{}", std::process::id());
    let figures = std::path::absolute(options.dir.join(file))?;
    let result = bench(options, Some(&figures)).and_then(|()| {
        let text = std::fs::read_to_string(&figures).context("reading the figures")?;
        relative(&text, options)?.write(svg)
    });
    let _ = std::fs::remove_file(&figures);
    result
}

/// Has the bench print its table, and write the same figures to a file.
fn bench(options: &Options, figures: Option<&Path>) -> anyhow::Result<()> {
    let mut command = Command::new(env!("CARGO"));
    command.args(["bench", "--quiet", "--package", "cfs-store"]);
    if options.rocksdb {
        command.args(["--features", "rocksdb"]);
    }
    command.args(["--bench", "tables", "--"]);
    if let Some(figures) = figures {
        command.arg("--figures").arg(figures);
    }
    command.arg(options.millions.to_string()).arg(&options.dir);
    command.args([options.rounds as u64, options.cache_mib].map(|number| number.to_string()));
    let status = command.args(&options.engines).status()?;
    ensure!(status.success(), "the bench failed");
    Ok(())
}

/// All engines but the first: how many times as good as it they are. `figures` is what the bench has written.
///
/// # Errors
/// When they have another form.
fn relative(figures: &str, options: &Options) -> anyhow::Result<Plot> {
    let mut lines = figures.lines();
    let mut names = lines.next().context("no figures")?.split('\t');
    let first = names.next().context("no engines")?;
    let series: Vec<String> = names.map(String::from).collect();
    let mut groups = Vec::new();
    for line in lines {
        let fields: Vec<&str> = line.split('\t').collect();
        ensure!(fields.len() == 3 + 2 * series.len(), "not figures: {line}");
        let bar = |pair: &[&str]| -> anyhow::Result<Bar> {
            let value: f64 = pair[1].parse().context("not a ratio")?;
            Ok(Bar::ratio(value, pair[0]))
        };
        groups.push(Group {
            title: fields[0].to_owned(),
            bars: fields[3..].chunks(2).map(bar).collect::<Result<_, _>>()?,
        });
    }
    Ok(Plot {
        title: format!("Tables, {} million entries", options.millions),
        subtitle: format!(
            "How many times as good as {first} (1), and the figure; {}; more is better",
            plot::medians_of(options.rounds)
        ),
        axis: Axis::Ratios,
        series,
        panels: vec![Panel {
            title: String::new(),
            groups,
        }],
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Arguments {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn bars_are_the_figures() {
        let options = Arguments::parse_from(["bench"]).options;
        let figures = "kv\tpool\tother\nputs, 1/s\t200\t1\t100\t0.5\t700\t3.5\nhit, us\t2.0\t1\t1.0\t2\t8.0\t0.25\n";
        let plot = relative(figures, &options).expect("well formed");
        assert_eq!(plot.series, ["pool", "other"]);
        let told: Vec<_> = plot.panels[0]
            .groups
            .iter()
            .map(|group| {
                let bars = group.bars.iter().map(|bar| (bar.value, bar.text.as_str()));
                (group.title.as_str(), bars.collect::<Vec<_>>())
            })
            .collect();
        assert_eq!(
            told,
            [
                ("puts, 1/s", vec![(0.5, "0.50 (100)"), (3.5, "3.50 (700)")]),
                ("hit, us", vec![(2.0, "2.00 (1.0)"), (0.25, "0.25 (8.0)")]),
            ]
        );
        for wrong in [
            "",
            "kv\tpool\nputs\t1\t1\n",
            "kv\tpool\nputs\t1\t1\t2\tmany\n",
        ] {
            assert!(relative(wrong, &options).is_err(), "{wrong:?}");
        }
    }
}
