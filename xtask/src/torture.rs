//! `cargo xtask torture`: writers on a real mount with a ledger outside of it, and `kill -9` at random moments.
//!
//! Each writer has a directory of its own and a list of what every name in it may hold. Before an operation the list
//! gets what the operation may lead to; after an acknowledged fsync(2) it keeps what was newest then. After each kill
//! the server is started again, and what is there must be in the lists: a file with fsynced content has it, a name that
//! was replaced holds the old or the new content, an appended file holds the beginning of what was appended, as long as
//! was fsynced at least. Every few rounds the pool is checked. The ledger is also a file, to be read after a failure.

mod ledger;
mod writer;

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use parking_lot::Mutex;

use crate::place::{Place, output};
use crate::workload::Random;
pub(crate) use ledger::Content;
use ledger::Ledger;
use writer::Writer;

const WRITERS: u64 = 3;
/// Rounds between two checks of the pool.
const ROUNDS_TO_FSCK: u64 = 5;
/// The server is killed after so many milliseconds of writing at most.
const LIFE_MS_MAX: u64 = 1500;
/// One start in so many is killed before it is ready.
const EARLY_KILL_EVERY: u64 = 4;

/// How long, where, and with which chances, of both tortures.
#[derive(clap::Args)]
pub struct Options {
    /// How often the server is killed.
    #[arg(long, default_value_t = 20)]
    pub rounds: u64,
    /// An existing directory for the pool, the mount point and the ledger; what is made there is removed again.
    #[arg(long)]
    pub dir: PathBuf,
    /// Decides about operations and moments [default: the time].
    #[arg(long)]
    pub seed: Option<u64>,
    /// The release binary of ClaudeFS; by default the one beside this program.
    #[arg(long)]
    pub cfs: Option<PathBuf>,
}

/// Runs the torture.
///
/// # Errors
/// The first thing that the ledger contradicts, with the seed; or the server does not start or does not check.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed()?;
    let seed = options.seed.unwrap_or(now.as_nanos() as u64);
    let mut place = Place::new(&options.dir, "torture", options.cfs.as_deref())?;
    let log = options
        .dir
        .join(format!("cfs-torture-{}.ledger", std::process::id()));
    let result = rounds(&mut place, options.rounds, seed, &log, &stop);
    match &result {
        Ok(()) => std::fs::remove_file(&log)?,
        Err(_) => println!(
            "seed {seed} (moments depend on the machine too): cargo xtask torture --rounds {} --seed {seed} --dir {}; \
             the ledger is {}",
            options.rounds,
            options.dir.display(),
            log.display()
        ),
    }
    let removed = place.remove();
    result.and(removed)
}

fn rounds(
    place: &mut Place,
    rounds: u64,
    seed: u64,
    log: &PathBuf,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let start = Instant::now();
    let log = Arc::new(Mutex::new(File::create(log)?));
    let mut rng = Random::new(seed);
    let mut ledgers: Vec<Ledger> = (0..WRITERS)
        .map(|number| Ledger::new(format!("writer-{number}"), Arc::clone(&log)))
        .collect();
    let (mut acknowledged, mut operations, mut early_kills, mut checks) = (0, 0, 0, 0);
    for round in 0..rounds {
        ensure!(!stop.load(Ordering::Relaxed), "interrupted");
        if round > 0 && rng.below(EARLY_KILL_EVERY) == 0 {
            let _stdout = place.spawn(true)?;
            std::thread::sleep(Duration::from_millis(rng.below(120)));
            place.kill()?;
            early_kills += 1;
        }
        place.start(true)?;
        for ledger in &mut ledgers {
            ledger
                .compare(&place.mnt())
                .with_context(|| format!("round {round}"))?;
        }
        if round % ROUNDS_TO_FSCK == 0 {
            output(&mut place.cfs(&["admin", "fsck"])).with_context(|| format!("round {round}"))?;
            checks += 1;
        }
        writeln!(log.lock(), "round {round}")?;
        let life = Duration::from_millis(1 + rng.below(LIFE_MS_MAX));
        let dead = AtomicBool::new(false);
        let mnt = place.mnt();
        let (done, killed) = std::thread::scope(|scope| {
            let writers: Vec<_> = ledgers
                .iter_mut()
                .map(|ledger| {
                    let mut writer = Writer::new(&mnt, ledger, Random::new(rng.next()));
                    let dead = &dead;
                    scope.spawn(move || writer.work(dead))
                })
                .collect();
            std::thread::sleep(life);
            dead.store(true, Ordering::SeqCst);
            let killed = place.kill();
            let done: Vec<_> = writers
                .into_iter()
                .map(|writer| writer.join().expect("writers do not panic"))
                .collect();
            (done, killed)
        });
        killed?;
        for counts in done {
            let counts = counts.with_context(|| format!("round {round}"))?;
            operations += counts.operations;
            acknowledged += counts.acknowledged;
        }
    }
    place.start(true)?;
    for ledger in &mut ledgers {
        ledger
            .compare(&place.mnt())
            .context("after the last round")?;
    }
    place.stop()?;
    output(&mut place.cfs(&["admin", "fsck"])).context("fsck of the pool at rest")?;
    println!(
        "{rounds} rounds clean, seed {seed}: {operations} operations, {acknowledged} acknowledged syncs, {early_kills} \
         kills before it was ready, {} checks clean, {:.0} s",
        checks + 1,
        start.elapsed().as_secs_f64()
    );
    Ok(())
}
