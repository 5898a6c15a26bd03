#![no_main]

// What is said over the admin socket is known to the program `cfs` alone, which is no library.
#[path = "../../crates/cfs/src/bytes.rs"]
#[allow(dead_code, reason = "the program uses more of it")]
mod bytes;
#[path = "../../crates/cfs/src/failure.rs"]
#[allow(dead_code, reason = "the program uses more of it")]
mod failure;
#[path = "../../crates/cfs/src/admin"]
#[allow(dead_code, reason = "the program uses more of it")]
mod admin {
    pub mod protocol;
    pub mod report;
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    use admin::protocol::{EVENT_BYTES_MAX, Envelope, Event, REQUEST_BYTES_MAX, receive};
    let (mut requests, mut events) = (input, input);
    while let Ok(Some(_)) = receive::<Envelope>(&mut requests, REQUEST_BYTES_MAX) {}
    while let Ok(Some(_)) = receive::<Event>(&mut events, EVENT_BYTES_MAX) {}
});
