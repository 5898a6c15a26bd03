//! The clock and the entropy of this machine, for a core that has neither.

use std::time::{SystemTime, UNIX_EPOCH};

/// This machine.
pub struct System;

impl cfs_store::Host for System {
    fn now_ns(&self) -> u64 {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    fn fill_random(&self, buf: &mut [u8]) {
        getrandom::fill(buf).expect("the kernel gives random bytes once it has booted");
    }
}
