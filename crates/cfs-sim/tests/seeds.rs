//! A fixed set of seeds, and that a seed is a whole description of a run.

/// Seeds in every run of the tests; many more are run by hand, see docs/RELIABILITY.md.
const SEEDS: u64 = 150;

#[test]
fn fixed_seeds_are_clean() {
    for seed in 0..SEEDS {
        if let Err(reason) = cfs_sim::run(seed, false) {
            panic!("{reason}; replay: {}", cfs_sim::replay_command(seed));
        }
    }
}

/// Among these seeds are all kinds of trouble, damaged copies, and files enough for tables of several runs.
#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [3, 7, 31, 46, 105, 107, 172, 1234] {
        let first = cfs_sim::run(seed, true).expect("a clean seed");
        let second = cfs_sim::run(seed, true).expect("a clean seed");
        for (line, other) in first.trace.iter().zip(&second.trace) {
            assert_eq!(line, other, "seed {seed}");
        }
        assert_eq!(first, second, "seed {seed}");
    }
}

/// More of them: `cargo run --release -p cfs-sim -- --rebuild 100`.
#[test]
fn a_pool_without_its_checkpoint_is_rebuilt() {
    if let Err(reason) = cfs_sim::rebuild(1) {
        panic!("{reason}; replay: cargo run --release -p cfs-sim -- --rebuild 1 --from 1");
    }
}

/// All of them: `cargo run --release -p cfs-sim -- --rot 1`.
#[test]
fn a_damaged_block_costs_no_more_than_the_data_in_it() {
    if let Err(reason) = cfs_sim::rot(1, 50) {
        panic!("{reason}; replay: cargo run --release -p cfs-sim -- --rot 50 --from 1");
    }
}
