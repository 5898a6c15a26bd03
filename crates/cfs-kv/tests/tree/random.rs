//! Random numbers from a seed that is printed when a test fails.

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn bytes(&mut self, len: u64) -> Vec<u8> {
        (0..len).map(|_| self.number() as u8).collect()
    }
}

/// Runs `test` with `count` seeds, or with the one in `CFS_KV_SEED`; a failure prints the seed.
pub fn for_seeds(count: u64, test: impl Fn(&mut Random)) {
    if let Ok(seed) = std::env::var("CFS_KV_SEED") {
        return test(&mut Random(seed.parse().expect("CFS_KV_SEED is a number")));
    }
    for seed in 0..count {
        let outcome =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&mut Random(seed))));
        if let Err(panic) = outcome {
            eprintln!("failed with seed {seed}: repeat with CFS_KV_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
