//! How much background work may cost now: little while somebody uses the pool, more when nobody does.
//!
//! What is counted as use: commands of the namespace, chunks put, chunks read. The clock is the pool's host, so that a
//! simulation repeats. Work is paid for in bytes read and written, from a purse that fills with time; what costs more
//! than is in it makes debts, and nothing is done until they are paid.

use crate::sync::{AtomicU64, Mutex, Ordering};

use cfs_format::SEGMENT_BYTES;

/// The pool is idle when it has not been used for so long.
const IDLE_AFTER_NS: u64 = 2_000_000_000;
/// Bytes that compaction may read and write in a second while the pool is in use. The figures: docs/PERFORMANCE.md.
const BUSY_BYTES_PER_SECOND: u64 = 16 << 20;
/// As above, in an idle pool.
const IDLE_BYTES_PER_SECOND: u64 = 192 << 20;
/// The purse holds at most what comes in during this time, so that a long rest buys no burst.
const PURSE_NS: u64 = 200_000_000;

/// Whether anybody uses the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    Idle,
    Busy,
}

#[derive(Default)]
pub(crate) struct Pace {
    uses: AtomicU64,
    /// Steps of background work.
    steps: AtomicU64,
    state: Mutex<PaceState>,
}

#[derive(Default)]
struct PaceState {
    uses_seen: u64,
    used_ns: u64,
    looked_ns: u64,
    purse_bytes: i64,
    is_idle: bool,
}

impl Pace {
    /// Somebody uses the pool.
    pub fn note_use(&self) {
        self.uses.fetch_add(1, Ordering::Relaxed);
    }

    /// Background work has found something to do.
    pub fn note_step(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Uses and steps until now.
    pub fn count(&self) -> u64 {
        self.uses.load(Ordering::Relaxed) + self.steps.load(Ordering::Relaxed)
    }

    /// Called once a tick: whether the pool is in use, and fills the purse.
    pub fn look(&self, now_ns: u64) -> Load {
        let mut state = self.state.lock();
        let uses = self.uses.load(Ordering::Relaxed);
        if uses != state.uses_seen || state.looked_ns == 0 {
            state.uses_seen = uses;
            state.used_ns = now_ns;
        }
        let load = match now_ns.saturating_sub(state.used_ns) {
            since if since >= IDLE_AFTER_NS => Load::Idle,
            _ => Load::Busy,
        };
        state.is_idle = load == Load::Idle;
        let rate = match load {
            Load::Idle => IDLE_BYTES_PER_SECOND,
            Load::Busy => BUSY_BYTES_PER_SECOND,
        };
        let bytes = |ns: u64| (u128::from(rate) * u128::from(ns) / 1_000_000_000) as i64;
        let since = now_ns.saturating_sub(state.looked_ns).min(PURSE_NS);
        state.looked_ns = now_ns;
        state.purse_bytes = (state.purse_bytes + bytes(since)).min(bytes(PURSE_NS));
        load
    }

    /// What the last look has found.
    pub fn load(&self) -> Load {
        match self.state.lock().is_idle {
            true => Load::Idle,
            false => Load::Busy,
        }
    }

    /// Whether work may be begun.
    pub fn may_work(&self) -> bool {
        self.state.lock().purse_bytes > 0
    }

    /// Work has read and written so much.
    pub fn spend(&self, bytes: u64) {
        self.note_step();
        // Debts are bounded, so that work for a full pool, which does not ask, does not forbid all other for long.
        let floor = -4 * i64::from(SEGMENT_BYTES);
        let mut state = self.state.lock();
        state.purse_bytes = (state.purse_bytes - bytes as i64).max(floor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_rest_buys_no_burst_and_debts_are_paid() {
        let pace = Pace::default();
        let mut now = 1000 * SECOND;
        assert_eq!(pace.look(now), Load::Busy, "nothing is known yet");
        let mut spent = 0;
        for _ in 0..100 {
            now += SECOND / 10;
            pace.note_use();
            assert_eq!(pace.look(now), Load::Busy);
            while pace.may_work() {
                pace.spend(u64::from(SEGMENT_BYTES));
                spent += u64::from(SEGMENT_BYTES);
            }
        }
        let rate = spent / 10;
        assert!(
            rate.abs_diff(BUSY_BYTES_PER_SECOND) < u64::from(SEGMENT_BYTES),
            "{rate}"
        );
        now += 1000 * SECOND;
        assert_eq!(pace.look(now), Load::Idle);
        let mut burst = 0;
        while pace.may_work() {
            pace.spend(u64::from(SEGMENT_BYTES));
            burst += u64::from(SEGMENT_BYTES);
        }
        assert!(
            burst <= IDLE_BYTES_PER_SECOND / 5 + u64::from(SEGMENT_BYTES),
            "{burst}"
        );
    }
}
