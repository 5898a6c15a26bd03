//! Runs the simulation: one seed with a trace, a range of seeds, or as many as fit some minutes; or damages a pool block
//! by block.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

/// Run ClaudeFS in a simulated world of faults.
#[derive(Parser)]
struct Arguments {
    /// Run this seed alone.
    #[arg(long)]
    seed: Option<u64>,
    /// Print what happens, step by step.
    #[arg(long)]
    trace: bool,
    /// First seed of a range.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Number of seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// Run for so many minutes instead of a number of seeds.
    #[arg(long)]
    minutes: Option<u64>,
    /// Damage a pool block by block instead, one of every so many blocks and ways (1: all); --from is the seed.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rot: Option<u64>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let start = Instant::now();
    if let Some(share) = arguments.rot {
        return match cfs_sim::rot(arguments.from, share) {
            Ok(outcome) => {
                println!(
                    "{} damaged pools, {} with unreadable ranges, {} blocks restored, {:.0} s",
                    outcome.trials,
                    outcome.with_loss,
                    outcome.healed_blocks,
                    start.elapsed().as_secs_f64()
                );
                ExitCode::SUCCESS
            }
            Err(reason) => {
                println!("{reason}");
                ExitCode::FAILURE
            }
        };
    }
    let limit = arguments
        .minutes
        .map(|minutes| Duration::from_secs(60 * minutes));
    let (from, count) = match (arguments.seed, limit) {
        (Some(seed), _) => (seed, 1),
        (None, Some(_)) => (arguments.from, u64::MAX - arguments.from),
        (None, None) => (arguments.from, arguments.seeds),
    };
    let (mut seeds, mut operations, mut power_cuts) = (0, 0, 0);
    for seed in from..from + count {
        if limit.is_some_and(|limit| start.elapsed() > limit) {
            break;
        }
        let result = std::panic::catch_unwind(|| cfs_sim::run(seed, arguments.trace));
        let outcome = match result {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(reason)) => return failed(seed, &reason),
            Err(_) => return failed(seed, "panicked"),
        };
        for line in &outcome.trace {
            println!("{line}");
        }
        seeds += 1;
        operations += outcome.operations;
        power_cuts += outcome.power_cuts;
    }
    println!(
        "{seeds} seeds clean, {operations} operations, {power_cuts} power cuts, {:.0} s",
        start.elapsed().as_secs_f64()
    );
    ExitCode::SUCCESS
}

fn failed(seed: u64, reason: &str) -> ExitCode {
    println!("seed {seed} failed: {reason}");
    println!("replay: cargo run --release -p cfs-sim -- --seed {seed} --trace");
    ExitCode::FAILURE
}
