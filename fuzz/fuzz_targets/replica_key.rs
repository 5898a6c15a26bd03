#![no_main]

// The program `cfs` alone reads it, which is no library.
#[path = "../../crates/cfs/src/failure.rs"]
#[allow(dead_code, reason = "the program uses more of it")]
mod failure;
#[path = "../../crates/cfs/src/replica.rs"]
#[allow(dead_code, reason = "the program uses more of it")]
mod replica;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = replica::ReplicaKey::parse(input);
});
