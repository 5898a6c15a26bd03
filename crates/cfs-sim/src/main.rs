//! Runs the simulation: one seed with a trace, a range of seeds, or as many as fit some minutes; or damages a pool block
//! by block.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

/// Run ClaudeFS in a simulated world of faults.
#[derive(Parser)]
struct Arguments {
    /// Run this seed alone.
    #[arg(long, conflicts_with_all = ["from", "seeds", "minutes"])]
    seed: Option<u64>,
    /// Print what happens, step by step.
    #[arg(long)]
    trace: bool,
    /// First seed of a range.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Number of seeds.
    #[arg(long, default_value_t = 1000, conflicts_with = "minutes")]
    seeds: u64,
    /// Run for so many minutes instead of a number of seeds.
    #[arg(long)]
    minutes: Option<u64>,
    /// Damage a pool block by block instead, one of every so many blocks and ways (1: all); --from is the seed.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), conflicts_with_all = ["seed", "seeds", "minutes", "rebuild"])]
    rot: Option<u64>,
    /// Destroy checkpoints and segments of so many pools and rebuild them instead; --from is the first seed.
    #[arg(long, value_name = "N", conflicts_with_all = ["seed", "seeds", "minutes"])]
    rebuild: Option<u64>,
    /// Run with this bug, which must be found: the names are in docs/RELIABILITY.md.
    #[cfg(feature = "planted-bugs")]
    #[arg(long, value_parser = |name: &str| cfs_format::planted::Bug::from_name(name).ok_or("no such bug"))]
    plant: Option<cfs_format::planted::Bug>,
    /// Go on after a seed that fails, and tell all that did at the end.
    #[arg(long)]
    keep_going: bool,
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
                println!(
                    "replay: cargo run --release -p cfs-sim -- --rot {share} --from {}",
                    arguments.from
                );
                ExitCode::FAILURE
            }
        };
    }
    if let Some(count) = arguments.rebuild {
        let mut total = cfs_sim::RebuildOutcome::default();
        for seed in arguments.from..arguments.from + count {
            match cfs_sim::rebuild(seed) {
                Ok(outcome) => {
                    total.pools += outcome.pools;
                    total.whole += outcome.whole;
                    total.findings += outcome.findings;
                }
                Err(reason) => {
                    println!("seed {seed}: {reason}");
                    println!("replay: cargo run --release -p cfs-sim -- --rebuild 1 --from {seed}");
                    return ExitCode::FAILURE;
                }
            }
        }
        println!(
            "{} rebuilt pools, {} of them whole, {} findings, {:.0} s",
            total.pools,
            total.whole,
            total.findings,
            start.elapsed().as_secs_f64()
        );
        return ExitCode::SUCCESS;
    }
    let limit = arguments
        .minutes
        .map(|minutes| Duration::from_secs(60 * minutes));
    let (from, count) = match (arguments.seed, limit) {
        (Some(seed), _) => (seed, 1),
        (None, Some(_)) => (arguments.from, u64::MAX - arguments.from),
        (None, None) => (arguments.from, arguments.seeds),
    };
    #[cfg(feature = "planted-bugs")]
    cfs_format::planted::plant(arguments.plant);
    // A panic is told with its seed.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    let mut total = cfs_sim::Outcome::default();
    let (mut seeds, mut failed) = (0, Vec::new());
    for seed in from..from.saturating_add(count) {
        if limit.is_some_and(|limit| start.elapsed() > limit) {
            break;
        }
        seeds += 1;
        match cfs_sim::run(seed, arguments.trace) {
            Ok(outcome) => {
                for line in &outcome.trace {
                    println!("{line}");
                }
                total.operations += outcome.operations;
                total.power_cuts += outcome.power_cuts;
                total.damaged_copies += outcome.damaged_copies;
                total.rebuilt_copies += outcome.rebuilt_copies;
            }
            Err(reason) => {
                println!("{reason}");
                println!("replay: {}", cfs_sim::replay_command(seed));
                failed.push(seed);
                if !arguments.keep_going {
                    break;
                }
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{seeds} seeds from {from}, {} operations, {} power cuts, {} damaged and {} rebuilt copies, {seconds:.0} s: {}",
        total.operations,
        total.power_cuts,
        total.damaged_copies,
        total.rebuilt_copies,
        match failed.is_empty() {
            true => "clean".to_owned(),
            false => format!("{} failed: {failed:?}", failed.len()),
        }
    );
    match failed.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
