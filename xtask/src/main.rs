//! Checks and benches that developers run: `cargo xtask --help`.

mod bench_import;
mod bench_mount;
mod bench_peers;
mod bench_random;
mod bench_reclaim;
mod bench_run;
mod bench_s3;
mod bench_s3_bounds;
mod bench_snapshot;
mod bench_start;
mod bench_tables;
mod bench_tree;
mod instructions;
mod layers;
mod place;
mod plot;
mod s3_client;
mod s3_clients;
mod scenario;
mod torture;
mod torture_s3;
mod toyfs;
mod workload;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Checks and benches for developers")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Mount a file system that lives in memory: the ceiling of the mount benches.
    Toyfs {
        /// Where to mount it.
        mountpoint: PathBuf,
        /// Threads that answer the kernel.
        #[arg(long, default_value_t = 4)]
        threads: usize,
        /// MiB of memory to touch beforehand.
        #[arg(long, default_value_t = 0)]
        warm_mib: u64,
    },
    /// Cut, seal and append the content of files, and nothing else: the baseline of the import bench.
    ScratchStore(bench_import::scratch::Options),
    /// Run real S3 clients (aws, boto3, restic, rclone, s3cmd, the SDK for JavaScript) against the release build; installs what is missing.
    S3Clients {
        /// Where clients are installed and their data lie.
        #[arg(long, default_value = "/tmp/cfs-s3-clients")]
        scratch: PathBuf,
    },
    /// Check that the dependencies between the crates are those of the picture.
    Layers,
    /// Count the instructions of the hot functions with valgrind, and compare with the counts in the repository.
    Instructions(instructions::Options),
    /// Copy large trees into a pool twice, kill it, and compare everything.
    Scenario(scenario::Options),
    /// Write to a mount, kill its server over and over, and compare with a ledger of what was acknowledged.
    Torture(torture::Options),
    /// Put, delete and complete objects over S3 with 64 connections, kill the server over and over, and compare with a
    /// ledger of what was acknowledged.
    TortureS3(torture::Options),
    /// Run the store's threads under schedules that a seed decides about.
    Models {
        /// Go on for so long, all models together.
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// The first seed.
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// Only this model.
        #[arg(long)]
        model: Option<String>,
    },
    /// Run the decoders on inputs that are wrong.
    Fuzz {
        /// Only this one; all in turn if not given.
        target: Option<String>,
        /// Seconds for each.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Decides about the inputs.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Look for inputs by what they reach: libFuzzer, with the compiler that builds everything else. Needs a C++
        /// compiler and the crate `libfuzzer-sys`.
        #[arg(long, requires = "target")]
        guided: bool,
    },
    /// Measure, and print a table.
    Bench {
        #[command(subcommand)]
        bench: Bench,
    },
}

#[derive(Subcommand)]
enum Bench {
    /// The mount, beside its ceiling, gocryptfs and a plain directory.
    Mount(bench_mount::Options),
    /// Reads of 4 KiB at random places of a large file, beside the disk itself, a plain file and the ceiling.
    Random(bench_random::Options),
    /// Large files into a pool without a mount, beside a program that only cuts, seals and appends.
    Import(bench_import::Options),
    /// Trees in and out, beside restic, rustic and borg.
    Peers(bench_peers::Options),
    /// Memory and lookups of the chunk index, without any content.
    Chunks {
        /// Where the pool lies meanwhile; it needs some 5 GB for 20 million chunks.
        #[arg(long, default_value = "/tmp")]
        dir: PathBuf,
        /// Millions of chunks.
        #[arg(long, default_value_t = 20.0)]
        millions: f64,
    },
    /// The tables, beside fjall, redb, LMDB and RocksDB.
    Tables(bench_tables::Options),
    /// What compaction costs those who use the mount meanwhile.
    Reclaim(bench_reclaim::Options),
    /// Trees of source code: tar, cp -a, git clone, find, grep, rm -rf, beside the ceiling, gocryptfs and a plain directory.
    Tree(bench_tree::Options),
    /// Snapshots: taking them, what they cost the present, reading them.
    Snapshot(bench_snapshot::Options),
    /// Starting again after `kill -9` with a million files.
    Start(bench_start::Options),
    /// S3: PUT and GET of small and large objects, beside s3s-fs on the same disk.
    S3(bench_s3::Options),
    /// S3: memory under slow clients and under one huge object, and what listing costs in a large bucket.
    S3Bounds(bench_s3_bounds::Options),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().task {
        Task::Toyfs {
            mountpoint,
            threads,
            warm_mib,
        } => toyfs::run(&mountpoint, threads, warm_mib << 20),
        Task::ScratchStore(options) => bench_import::scratch::run(&options),
        Task::Layers => layers::run(),
        Task::Instructions(options) => instructions::run(&options),
        Task::S3Clients { scratch } => s3_clients::run(&scratch),
        Task::Scenario(options) => scenario::run(&options),
        Task::Torture(options) => torture::run(&options),
        Task::TortureS3(options) => torture_s3::run(&options),
        Task::Models {
            minutes,
            seed,
            model,
        } => models(minutes, seed, model),
        Task::Fuzz {
            target,
            seconds,
            seed,
            guided,
        } => match target {
            Some(target) if guided => fuzz_guided(&target, seconds, seed),
            target => fuzz(target, seconds, seed),
        },
        Task::Bench {
            bench: Bench::Mount(options),
        } => bench_mount::run(&options),
        Task::Bench {
            bench: Bench::Random(options),
        } => bench_random::run(&options),
        Task::Bench {
            bench: Bench::Import(options),
        } => bench_import::run(&options),
        Task::Bench {
            bench: Bench::Peers(options),
        } => bench_peers::run(&options),
        Task::Bench {
            bench: Bench::Chunks { dir, millions },
        } => bench_chunks(&dir, millions),
        Task::Bench {
            bench: Bench::Tables(options),
        } => bench_tables::run(&options),
        Task::Bench {
            bench: Bench::Reclaim(options),
        } => bench_reclaim::run(&options),
        Task::Bench {
            bench: Bench::Snapshot(options),
        } => bench_snapshot::run(&options),
        Task::Bench {
            bench: Bench::Start(options),
        } => bench_start::run(&options),
        Task::Bench {
            bench: Bench::Tree(options),
        } => bench_tree::run(&options),
        Task::Bench {
            bench: Bench::S3(options),
        } => bench_s3::run(&options),
        Task::Bench {
            bench: Bench::S3Bounds(options),
        } => bench_s3_bounds::run(&options),
    }
}

/// Builds and runs the bench of the chunk index; see `crates/cfs-store/benches/chunks.rs`.
fn bench_chunks(dir: &std::path::Path, millions: f64) -> anyhow::Result<()> {
    let mut command = std::process::Command::new(env!("CARGO"));
    command.args(["bench", "--quiet", "--package", "cfs-store"]);
    command.args(["--bench", "chunks", "--"]).arg(dir);
    let status = command.arg(millions.to_string()).status()?;
    anyhow::ensure!(status.success(), "the bench failed");
    Ok(())
}

/// Builds and runs the models; see `crates/cfs-store/tests/models`.
fn models(minutes: u64, seed: u64, model: Option<String>) -> anyhow::Result<()> {
    let mut command = std::process::Command::new(env!("CARGO"));
    command.args(["test", "--release", "--quiet", "--package", "cfs-store"]);
    command.args([
        "--features",
        "models,planted-bugs",
        "--test",
        "models",
        "--",
    ]);
    command.args(["--minutes", &minutes.to_string()]);
    command.args(["--seed", &seed.to_string()]);
    if let Some(model) = model {
        command.args(["--model", &model]);
    }
    let status = command.status()?;
    anyhow::ensure!(status.success(), "a model failed");
    Ok(())
}

/// Builds and runs the program that has the decoders; see `cfs_sim::decoders`.
fn fuzz(target: Option<String>, seconds: u64, seed: u64) -> anyhow::Result<()> {
    let mut command = std::process::Command::new(env!("CARGO"));
    command.args(["run", "--release", "--quiet", "--package", "cfs-sim"]);
    command.args(["--features", "s3", "--bin", "cfs-fuzz", "--"]);
    command.args(target);
    command.args(["--seconds", &seconds.to_string()]);
    command.args(["--seed", &seed.to_string()]);
    let status = command.status()?;
    anyhow::ensure!(status.success(), "a target failed");
    Ok(())
}

/// What cargo-fuzz passes to a nightly compiler, as far as any other takes it too: counters of edges, and operands of
/// comparisons. Without a sanitizer of addresses, which only a nightly compiler has: the decoders have no `unsafe` of their own,
/// and the C code of LZ4 and zstd behind them is fuzzed with one by those who write it.
const GUIDED_FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Builds one of the targets in `fuzz/` and runs it. New inputs go to a directory beside the build; what ends the
/// process is written to the current one.
fn fuzz_guided(target: &str, seconds: u64, seed: u64) -> anyhow::Result<()> {
    let version = std::process::Command::new("rustc").arg("-vV").output()?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc -vV tells no host")?;
    let build = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let build = build.join("fuzz");
    let found = build.join("corpus").join(target);
    std::fs::create_dir_all(&found)?;
    let mut command = std::process::Command::new(env!("CARGO"));
    command.args(["run", "--release", "--manifest-path", "fuzz/Cargo.toml"]);
    // With a target of its own, the flags leave build scripts and macros alone.
    command.args(["--target", host, "--bin", target, "--"]);
    command.arg(&found).arg(format!("fuzz/corpus/{target}"));
    command.arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-seed={seed}"));
    command.args(["-timeout=20", "-rss_limit_mb=4096"]);
    command.env("CARGO_TARGET_DIR", &build);
    let status = command.env("RUSTFLAGS", GUIDED_FLAGS).status()?;
    anyhow::ensure!(status.success(), "{target} failed");
    Ok(())
}
