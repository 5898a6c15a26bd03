//! Runs the fuzz targets without a fuzzer's tool chain: inputs are made from the corpus by a seed. A panic ends the run
//! with the input in a file and the command that tries it again.
//!
//! `fuzz/` has the same targets for cargo-fuzz.

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cfs_fs::stream::Role;
use cfs_seal::block::Cipher;
use cfs_seal::keys::{DomainSecret, PassageKey};
use cfs_sim::decoders::{TARGETS, Target};
use cfs_sim::mutate::Mutator;
use clap::Parser;
use parking_lot::Mutex;

use crate::config::Config;
use crate::replica::ReplicaKey;

// What is said over the admin socket, and what some files say, is known to the program `cfs` alone, which is no library.
#[path = "../../../cfs/src/bytes.rs"]
#[allow(
    dead_code,
    reason = "the program uses more of it, and so do the tests in it"
)]
mod bytes;
#[path = "../../../cfs/src/config.rs"]
mod config;
#[path = "../../../cfs/src/failure.rs"]
#[allow(
    dead_code,
    reason = "the program uses more of it, and so do the tests in it"
)]
mod failure;
#[path = "../../../cfs/src/replica.rs"]
#[allow(
    dead_code,
    reason = "the program uses more of it, and so do the tests in it"
)]
mod replica;
#[path = "../../../cfs/src/admin"]
#[allow(
    dead_code,
    reason = "the program uses more of it, and so do the tests in it"
)]
mod admin {
    pub mod protocol;
    pub mod report;
}

/// Run decoders on inputs that are wrong.
#[derive(Parser)]
struct Arguments {
    /// Only this one.
    target: Option<String>,
    /// Seconds for each.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Decides about the inputs.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Try this input alone.
    #[arg(long, requires = "target")]
    input: Option<PathBuf>,
    /// Write the inputs to begin with into the corpus and end.
    #[arg(long)]
    write_seeds: bool,
    /// Where the corpora are, one directory a target.
    #[arg(long, default_value = "fuzz/corpus")]
    corpus: PathBuf,
}

/// Targets for what is in the program alone.
const OF_PROGRAM: [Target; 3] = [
    Target {
        name: "admin-socket",
        seeds: admin_seeds,
        run: admin_socket,
    },
    Target {
        name: "replica-key",
        seeds: replica_key_seeds,
        run: replica_key,
    },
    Target {
        name: "config",
        seeds: config_seeds,
        run: config,
    },
];

fn admin_seeds() -> Vec<Vec<u8>> {
    let request = |text: &str| format!("{{\"protocol\":1,\"request\":{text}}}\n").into_bytes();
    vec![
        request(r#"{"command":"status"}"#),
        request(
            r#"{"command":"import","sources":["/a",[47,255]],"dest":"/","no_target_directory":true,"workers":2}"#,
        ),
        request(r#"{"command":"debug","structure":"segment","segment":3}"#),
        request(
            r#"{"command":"change-passphrase","present":{"passphrase":"old"},"new":"new"}"#,
        ),
        b"{\"event\":\"done\",\"answer\":{\"kind\":\"fsck\",\"inodes\":1,\"entries\":2,\"extents\":3,\"chunks\":4,\
          \"findings\":0}}\n"
            .to_vec(),
        b"{\"event\":\"progress\",\"phase\":\"check\",\"objects\":1,\"objects_total\":null,\"bytes\":5}\n".to_vec(),
    ]
}

fn admin_socket(mut input: &[u8]) {
    use admin::protocol::{EVENT_BYTES_MAX, Envelope, Event, REQUEST_BYTES_MAX, receive};
    let mut events = input;
    while let Ok(Some(_)) = receive::<Envelope>(&mut input, REQUEST_BYTES_MAX) {}
    while let Ok(Some(_)) = receive::<Event>(&mut events, EVENT_BYTES_MAX) {}
}

fn replica_key_seeds() -> Vec<Vec<u8>> {
    let roles = [
        Role::Reads(Arc::new(DomainSecret::from_bytes([7; 32]))),
        Role::Keeps(PassageKey::from_bytes([9; 32])),
    ];
    roles
        .into_iter()
        .zip([Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305])
        .map(|(role, cipher)| ReplicaKey { cipher, role }.render().as_bytes().to_vec())
        .collect()
}

fn replica_key(input: &[u8]) {
    let _ = ReplicaKey::parse(input);
}

fn config_seeds() -> Vec<Vec<u8>> {
    vec![
        br#"{"device":"/dev/sdb"}"#.to_vec(),
        b"{\n  \"device\": \"/dev/disk/by-id/\\u00e4\\\"b\"\n}\n".to_vec(),
    ]
}

fn config(input: &[u8]) {
    if let Ok(config) = Config::parse(input) {
        let written = serde_json::to_vec(&config).expect("a path that was text");
        assert!(Config::parse(&written).is_ok_and(|again| again == config));
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let targets: Vec<&Target> = TARGETS
        .iter()
        .chain(&OF_PROGRAM)
        .filter(|target| {
            arguments
                .target
                .as_ref()
                .is_none_or(|name| name == target.name)
        })
        .collect();
    if targets.is_empty() {
        eprintln!("there is no such target");
        return ExitCode::FAILURE;
    }
    for target in targets {
        let result = match (&arguments.input, arguments.write_seeds) {
            (Some(input), _) => std::fs::read(input).map(|input| (target.run)(&input)),
            (None, true) => write_seeds(target, &arguments.corpus),
            (None, false) => match fuzz(target, &arguments) {
                Ok(true) => Ok(()),
                Ok(false) => return ExitCode::FAILURE,
                Err(error) => Err(error),
            },
        };
        if let Err(error) = result {
            eprintln!("{}: {error}", target.name);
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn write_seeds(target: &Target, corpus: &Path) -> std::io::Result<()> {
    let directory = corpus.join(target.name);
    std::fs::create_dir_all(&directory)?;
    for (index, seed) in (target.seeds)().iter().enumerate() {
        std::fs::write(directory.join(format!("seed-{index:02}")), seed)?;
    }
    Ok(())
}

/// What is in the corpus, in the order of names, and what the target brings itself.
fn read_corpus(target: &Target, corpus: &Path) -> std::io::Result<Vec<Vec<u8>>> {
    let mut inputs = (target.seeds)();
    let directory = corpus.join(target.name);
    if directory.is_dir() {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(directory)?
            .map(|entry| Ok(entry?.path()))
            .collect::<std::io::Result<_>>()?;
        paths.sort_unstable();
        for path in paths {
            inputs.push(std::fs::read(path)?);
        }
    }
    Ok(inputs)
}

/// What is being tried, and since when; for [`watch`].
static TRIED: Mutex<Option<(Instant, Vec<u8>)>> = Mutex::new(None);

/// An input may take so long.
const INPUT_SECONDS_MAX: u64 = 20;

/// Ends the process when an input does not come back.
fn watch(name: &'static str) {
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let tried = TRIED.lock();
            if let Some((since, input)) = &*tried
                && since.elapsed() > Duration::from_secs(INPUT_SECONDS_MAX)
            {
                let path = format!("fuzz-{name}-slow.input");
                let written = std::fs::write(&path, input);
                println!("{name}: {path} ({written:?}) does not come back");
                std::process::exit(1);
            }
        }
    });
}

/// False when an input made the target panic.
fn fuzz(target: &Target, arguments: &Arguments) -> std::io::Result<bool> {
    let corpus = read_corpus(target, &arguments.corpus)?;
    let start = Instant::now();
    let limit = Duration::from_secs(arguments.seconds);
    let mut mutator = Mutator::new(arguments.seed);
    let mut inputs = 0_u64;
    let mut slowest = Duration::ZERO;
    let mut due: Vec<Vec<u8>> = corpus.clone();
    watch(target.name);
    while start.elapsed() < limit || !due.is_empty() {
        // All of the corpus as it is, first.
        let input = due.pop().unwrap_or_else(|| mutator.input(&corpus));
        let began = Instant::now();
        *TRIED.lock() = Some((began, input.clone()));
        if std::panic::catch_unwind(AssertUnwindSafe(|| (target.run)(&input))).is_err() {
            let path = PathBuf::from(format!("fuzz-{}-{inputs}.input", target.name));
            std::fs::write(&path, &input)?;
            println!(
                "{}: input {inputs} panics (seed {}); again: cargo run --release -p cfs-sim --features s3 --bin cfs-fuzz -- {} --input {}",
                target.name,
                arguments.seed,
                target.name,
                path.display()
            );
            return Ok(false);
        }
        slowest = slowest.max(began.elapsed());
        inputs += 1;
    }
    *TRIED.lock() = None;
    println!(
        "{}: {inputs} inputs in {:.0} s, the slowest took {} ms, clean",
        target.name,
        start.elapsed().as_secs_f64(),
        slowest.as_millis()
    );
    Ok(true)
}
