//! Callers that wait for a flush of the device.
//!
//! They are many where a flush of the device is what takes the time, and the more there are, the more of them one flush serves.
//! The first one's thread syncs for all who have come by then, answers them, and goes on with those who have come since,
//! until there are none; the others only note who waits.
//!
//! Invariant: while somebody waits, a thread serves. A panic of that thread has to end the process, as it does in `cfs`.

use cfs_format::Lsn;
use parking_lot::Mutex;

/// See the module. `W` is whom to answer.
pub(crate) struct Syncs<W> {
    state: Mutex<State<W>>,
}

struct State<W> {
    waiting: Vec<W>,
    /// What must be durable for all of them.
    newest: Lsn,
    is_served: bool,
}

impl<W> Syncs<W> {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                waiting: Vec::new(),
                newest: Lsn(0),
                is_served: false,
            }),
        }
    }

    /// Notes who waits until `lsn` is durable. Whether nobody serves yet: the caller then calls [`Syncs::serve`].
    #[must_use]
    pub(crate) fn wait(&self, lsn: Lsn, who: W) -> bool {
        let mut state = self.state.lock();
        state.waiting.push(who);
        state.newest = state.newest.max(lsn);
        !std::mem::replace(&mut state.is_served, true)
    }

    /// Has `sync` make the newest command durable that somebody waits for, has `answer` tell those who do what came of it, and so on
    /// until nobody waits.
    pub(crate) fn serve<R>(&self, sync: impl Fn(Lsn) -> R, mut answer: impl FnMut(W, &R)) {
        let mut served = Vec::new();
        loop {
            let newest = {
                let mut state = self.state.lock();
                if state.waiting.is_empty() {
                    state.is_served = false;
                    return;
                }
                std::mem::swap(&mut served, &mut state.waiting);
                state.newest
            };
            let synced = sync(newest);
            for who in served.drain(..) {
                answer(who, &synced);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn one_sync_serves_all_who_have_come() {
        let syncs = Syncs::new();
        assert!(syncs.wait(Lsn(5), 'a'));
        assert!(!syncs.wait(Lsn(7), 'b'));
        assert!(!syncs.wait(Lsn(6), 'c'));
        let mut answered = Vec::new();
        let synced = AtomicUsize::new(0);
        let sync = |lsn: Lsn| {
            if synced.fetch_add(1, Ordering::Relaxed) == 0 {
                assert!(!syncs.wait(Lsn(9), 'd'), "who comes meanwhile is served");
            }
            lsn
        };
        syncs.serve(sync, |who, lsn| answered.push((who, *lsn)));
        let of_the_first = ['a', 'b', 'c'].map(|who| (who, Lsn(7)));
        assert_eq!(answered[..3], of_the_first);
        assert_eq!(answered[3..], [('d', Lsn(9))]);
        assert!(syncs.wait(Lsn(10), 'e'), "nobody serves any more");
    }

    /// Nobody is left waiting, and nobody is answered before what it waits for is durable.
    #[test]
    fn all_are_answered_after_their_commands_are_durable() {
        const THREADS: u64 = 8;
        const TURNS: u64 = 2000;
        let (syncs, durable) = (Syncs::new(), AtomicU64::new(0));
        let (committed, answered) = (AtomicU64::new(0), AtomicU64::new(0));
        let serving = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..TURNS {
                        let lsn = Lsn(1 + committed.fetch_add(1, Ordering::SeqCst));
                        if !syncs.wait(lsn, lsn) {
                            continue;
                        }
                        let sync = |newest: Lsn| {
                            assert_eq!(serving.fetch_add(1, Ordering::SeqCst), 0);
                            std::thread::yield_now();
                            durable.fetch_max(newest.0, Ordering::SeqCst);
                            serving.fetch_sub(1, Ordering::SeqCst);
                        };
                        syncs.serve(sync, |who, ()| {
                            assert!(who.0 <= durable.load(Ordering::SeqCst));
                            answered.fetch_add(1, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
        assert_eq!(answered.into_inner(), THREADS * TURNS);
    }
}
