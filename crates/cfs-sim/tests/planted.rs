//! The checkers are seen to work: with a bug planted, some seed fails soon.
//!
//! Only with the feature `planted-bugs`: `cargo test --release -p cfs-sim --features planted-bugs --test planted`.

#![cfg(feature = "planted-bugs")]

use cfs_format::planted::{Bug, plant};

/// Each bug, and within how many seeds, counted from 0, it must be found. The table in docs/RELIABILITY.md is this one.
const FOUND_WITHIN: [(Bug, u64); Bug::ALL.len()] = [
    (Bug::MissingFlush, 10),
    (Bug::FailedFlushRetried, 200),
    (Bug::CountAfterExtent, 10),
    (Bug::FreeBeforeDurable, 50),
    (Bug::StaleIndexEntry, 10),
    (Bug::ReservationLeak, 50),
    (Bug::RoomForgotten, 200),
    (Bug::DirentWithoutInode, 10),
    (Bug::CheckpointBeforeData, 1000),
    (Bug::TailBelieved, 500),
    (Bug::CookieReused, 10),
    (Bug::LostTombstone, 500),
    (Bug::TruncateBeforeContent, 2000),
    (Bug::RenameBeforeContent, 100),
    (Bug::OrphanForgotten, 10),
    (Bug::SnapshotBeforeData, 50),
    (Bug::HistoryUncounted, 50),
    (Bug::CopyUncounted, 50),
    (Bug::GoneForgotten, 50),
    (Bug::WindowEdgeForgotten, 50),
    (Bug::ResealedLengthForgotten, 50),
    (Bug::RestoredHoleForgotten, 50),
];

#[test]
fn every_planted_bug_is_found() {
    let mut found = Vec::new();
    for (bug, seeds) in FOUND_WITHIN {
        plant(Some(bug));
        let failed = (0..seeds).find_map(|seed| Some((seed, cfs_sim::run(seed, false).err()?)));
        plant(None);
        let Some((seed, reason)) = failed else {
            panic!("{} is not found within {seeds} seeds", bug.name());
        };
        println!("{}: {reason}", bug.name());
        found.push((bug.name(), seed));
    }
    // Those seeds are clean without the bug.
    for (name, seed) in found {
        if let Err(reason) = cfs_sim::run(seed, false) {
            panic!("seed {seed}, which found {name}, fails without it: {reason}");
        }
    }
}
