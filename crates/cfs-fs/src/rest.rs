//! When nobody uses a file system, and nothing of it waits for its time.

use crate::Fs;

/// After so long without any use or background work. Counts of ticks, as of those for which the state of a file is kept that
/// nobody uses, have run out by then.
const REST_AFTER_NS: u64 = 20_000_000_000;

/// What was seen last.
#[derive(Default)]
pub(crate) struct Seen {
    activity: u64,
    /// Since when it is so, nanoseconds since 1970; 0 when nothing has been seen.
    since_ns: u64,
}

impl Fs {
    /// Whether there has been nothing to do for a while, and nothing is to be done soon: [`Fs::tick`] finds work only that can
    /// be a second late, until a command comes, of which [`Fs::wait_for_changes`] tells, or data do, which have an age of their
    /// own. To be called after each tick.
    #[must_use]
    pub fn rests(&self) -> bool {
        let now_ns = self.host.now_ns();
        let activity = self.store.activity();
        let waits = self.files.has_dirty()
            || self.atimes.has_some()
            || self.reaper.has_some()
            || self.recounts.is_running();
        let mut seen = self.rest.lock();
        if waits || seen.activity != activity || !(1..=now_ns).contains(&seen.since_ns) {
            *seen = Seen {
                activity,
                since_ns: now_ns,
            };
        }
        now_ns - seen.since_ns >= REST_AFTER_NS
    }
}
