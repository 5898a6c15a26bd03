//! The checkers are seen to work: with a bug planted, some seed fails soon.
//!
//! Only with the feature `planted-bugs`: `cargo test --release -p cfs-sim --features planted-bugs --test planted`.

#![cfg(feature = "planted-bugs")]

use cfs_format::planted::{Bug, plant};

/// Each bug, and within how many seeds, counted from 0, it must be found. The table in docs/RELIABILITY.md is this one.
const FOUND_WITHIN: [(Bug, u64); Bug::ALL.len()] = [
    (Bug::MissingFlush, 10),
    (Bug::FailedFlushRetried, 100),
    (Bug::CountAfterExtent, 10),
    (Bug::FreeBeforeDurable, 500),
    (Bug::StaleIndexEntry, 10),
    (Bug::ReservationLeak, 20),
    (Bug::DirentWithoutInode, 10),
    (Bug::CheckpointBeforeData, 500),
    (Bug::TailBelieved, 500),
    (Bug::CookieReused, 10),
    (Bug::LostTombstone, 500),
    (Bug::TruncateBeforeContent, 200),
    (Bug::RenameBeforeContent, 100),
    (Bug::OrphanForgotten, 10),
];

/// One test, because a planted bug is everybody's in the process.
#[test]
fn every_planted_bug_is_found() {
    let mut found = Vec::new();
    for (bug, seeds) in FOUND_WITHIN {
        plant(Some(bug));
        let failed = (0..seeds).find_map(|seed| Some((seed, cfs_sim::run(seed, false).err()?)));
        let Some((seed, reason)) = failed else {
            panic!("{} is not found within {seeds} seeds", bug.name());
        };
        println!("{}: {reason}", bug.name());
        found.push((bug.name(), seed));
    }
    plant(None);
    // Those seeds are clean without the bug.
    for (name, seed) in found {
        if let Err(reason) = cfs_sim::run(seed, false) {
            panic!("seed {seed}, which found {name}, fails without it: {reason}");
        }
    }
}
