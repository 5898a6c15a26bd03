//! Models of what threads do to each other in the store: the store itself runs under shuttle, which decides after every
//! step that others can see (a lock, an atomic, a call of the device) whose turn it is, by a seed.
//!
//! `cargo test --release -p cfs-store --features models,planted-bugs --test models` runs each model under a
//! fixed number of schedules, and then with each of its bugs planted, which it must find. `cargo xtask models --minutes N` goes on
//! with other seeds. A schedule that fails is told by its seed.

mod group_commit;
mod pins;
mod rotation;
mod stalls;
#[path = "../store/support.rs"]
#[allow(dead_code, reason = "the other tests use more of it")]
mod support;
mod world;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cfs_format::planted::{Bug, plant};
use clap::Parser;
use shuttle::{Config, FailurePersistence, Runner};

use stalls::Stalls;
use world::World;

/// Threads on one store, and what must hold whatever their order.
struct Model {
    name: &'static str,
    run: fn(&Arc<World>),
    /// Seeds of a short run.
    seeds: u64,
    /// Each is found within so many seeds, counted from 0.
    plants: &'static [(Bug, u64)],
}

const MODELS: &[Model] = &[
    group_commit::MODEL,
    pins::MODEL,
    rotation::FILLING,
    rotation::IDLE,
];

/// Run the store's models.
#[derive(Parser)]
struct Arguments {
    /// Only this one.
    #[arg(long)]
    model: Option<String>,
    /// Go on for so long, all in all, and plant nothing.
    #[arg(long)]
    minutes: Option<u64>,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// So many seeds of each, and plant nothing.
    #[arg(long)]
    seeds: Option<u64>,
    /// With this bug.
    #[arg(long)]
    plant: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let models: Vec<&Model> = MODELS
        .iter()
        .filter(|model| {
            let wanted = arguments.model.as_ref();
            wanted.is_none_or(|name| name == model.name)
        })
        .collect();
    let bug = arguments.plant.as_deref().map(Bug::from_name);
    if models.is_empty() || bug == Some(None) {
        eprintln!("there is no such model, or no such bug");
        return ExitCode::FAILURE;
    }
    if let Some(bug) = bug {
        plant(bug);
    }
    Runner::new(Stalls::new(0), config()).run(world::make_pool);
    let clean = match arguments.minutes {
        Some(minutes) => {
            let share = Duration::from_secs(60 * minutes) / models.len() as u32;
            models.iter().all(|model| {
                let until = Instant::now() + share;
                is_clean(model, arguments.seed.., |_| Instant::now() < until)
            })
        }
        None => models.iter().all(|model| {
            let count = arguments.seeds.unwrap_or(model.seeds);
            is_clean(model, arguments.seed..arguments.seed + count, |_| true)
        }),
    };
    let short = arguments.minutes.is_none() && arguments.seeds.is_none() && bug.is_none();
    if clean && (!short || models.iter().all(|model| finds_its_bugs(model))) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs the schedules of these seeds while it may go on. False when one fails, which is told.
fn is_clean(
    model: &Model,
    seeds: impl Iterator<Item = u64>,
    may_go_on: impl Fn(u64) -> bool,
) -> bool {
    let start = Instant::now();
    let mut count = 0;
    for seed in seeds.take_while(|seed| may_go_on(*seed)) {
        if let Err(reason) = run(model, seed) {
            println!(
                "{}: seed {seed} fails: {reason}\nagain: cargo test --release -p cfs-store --features \
                 models,planted-bugs --test models -- --model {} --seed {seed} --seeds 1",
                model.name, model.name
            );
            return false;
        }
        count += 1;
    }
    println!(
        "{}: {count} seeds clean in {:.1} s",
        model.name,
        start.elapsed().as_secs_f64()
    );
    true
}

/// Plants each of the model's bugs; true when all of them are found.
fn finds_its_bugs(model: &Model) -> bool {
    model.plants.iter().all(|(bug, within)| {
        plant(Some(*bug));
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let found = (0..*within).find_map(|seed| Some((seed, run(model, seed).err()?)));
        std::panic::set_hook(hook);
        plant(None);
        match &found {
            Some((seed, reason)) => {
                println!("{}: {} at seed {seed}: {reason}", model.name, bug.name());
            }
            None => println!(
                "{}: {} is not found within {within} seeds",
                model.name,
                bug.name()
            ),
        }
        found.is_some()
    })
}

/// Steps of a schedule; more are an endless loop.
const STEPS_MAX: usize = 400_000;
/// Of a thread of the model; it touches little of it.
const STACK_BYTES: usize = 1 << 20;

fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = STACK_BYTES;
    config.failure_persistence = FailurePersistence::None;
    config.max_steps = shuttle::MaxSteps::FailAfter(STEPS_MAX);
    config.silence_warnings = true;
    config
}

/// Runs the schedule of a seed.
fn run(model: &Model, seed: u64) -> Result<(), String> {
    let scheduler = Stalls::new(seed);
    let step = model.run;
    let run = move || {
        let runner = Runner::new(scheduler, config());
        runner.run(move || {
            let world = Arc::new(World::start());
            step(&world);
            world.check();
        });
    };
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        let text = text.unwrap_or("a panic without words");
        text.lines().next().unwrap_or_default().to_owned()
    })
}
