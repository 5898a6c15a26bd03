//! A fixed set of seeds, and that a seed is a whole description of a run.

#[test]
fn fixed_seeds_are_clean() {
    for seed in 0..150 {
        if let Err(reason) = cfs_sim::run(seed, false) {
            panic!("{reason}; replay: cargo run --release -p cfs-sim -- --seed {seed} --trace");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [3, 1234] {
        assert_eq!(cfs_sim::run(seed, true), cfs_sim::run(seed, true));
    }
}

/// All of them: `cargo run --release -p cfs-sim -- --rot 1`.
#[test]
fn a_damaged_block_costs_no_more_than_the_data_in_it() {
    if let Err(reason) = cfs_sim::rot(1, 50) {
        panic!("{reason}; replay: cargo run --release -p cfs-sim -- --rot 50 --from 1");
    }
}
