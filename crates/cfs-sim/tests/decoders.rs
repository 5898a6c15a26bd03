//! The corpus, and a few thousand inputs made of it, through every decoder. `cargo xtask fuzz` runs for longer.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::{Duration, Instant};

use cfs_sim::decoders::TARGETS;
use cfs_sim::mutate::Mutator;

/// Inputs for each; those that open a pool take a few milliseconds.
const INPUTS_MAX: usize = 2000;
const TIME_MAX: Duration = Duration::from_secs(1);

#[test]
fn decoders_come_back() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for target in TARGETS {
        let mut corpus = (target.seeds)();
        let mut paths: Vec<_> = std::fs::read_dir(corpora.join(target.name))
            .expect("every target has a corpus")
            .map(|entry| entry.expect("a directory that is there").path())
            .collect();
        paths.sort_unstable();
        corpus.extend(
            paths
                .iter()
                .map(|path| std::fs::read(path).expect("a file")),
        );
        let mut mutator = Mutator::new(7);
        let made = std::iter::repeat_with(|| mutator.input(&corpus)).take(INPUTS_MAX);
        let start = Instant::now();
        for (number, input) in corpus.iter().cloned().chain(made).enumerate() {
            if number >= corpus.len() && start.elapsed() > TIME_MAX {
                break;
            }
            let decoded = std::panic::catch_unwind(AssertUnwindSafe(|| (target.run)(&input)));
            assert!(
                decoded.is_ok(),
                "{}: input {number} of seed 7 panics: {input:02x?}",
                target.name
            );
        }
    }
}
