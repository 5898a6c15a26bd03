#![no_main]

// The program `cfs` alone reads it, which is no library.
#[path = "../../crates/cfs/src/config.rs"]
mod config;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    use config::Config;
    if let Ok(config) = Config::parse(input) {
        let written = serde_json::to_vec(&config).expect("a path that was text");
        assert!(Config::parse(&written).is_ok_and(|again| again == config));
    }
});
