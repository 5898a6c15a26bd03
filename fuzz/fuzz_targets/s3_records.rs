#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| cfs_sim::decoders::run("s3-records", input));
