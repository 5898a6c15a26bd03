//! Which of the session's threads wait for the kernel's next request, and how.
//!
//! Waking a thread costs more than most requests do, on a virtual machine several times as much. So one thread receives
//! and answers what is quick by itself, with no other one woken for it; and after each request it asks for the next one over
//! and over for a while before it sleeps, as long as that pays: a program that works on many small files asks again within
//! tens of microseconds. Before it answers what may wait (for the disk, for room, for much data), and when requests pile
//! up, it calls another thread, which then receives: the one that was parked last, whose memory is in the caches still.
//!
//! Invariants:
//! - `receiving` counts the threads that wait for a request, and those that have been called for it.
//! - When it is 0, all threads that are not parked are answering; the watch calls another one if none of them comes back soon.
//! - Of the receiving threads one never parks.
//! - Who is called is parked no longer: nobody is called twice.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::channel::{Channel, Received};

/// How long is asked for the next request before a thread sleeps.
const ASKING: Duration = Duration::from_micros(100);
/// Most credit that asking has; each success adds one and each failure takes some.
const CREDIT_MAX: i32 = 16;
const CREDIT_LOST: i32 = 2;
/// Without credit it is tried once in so many times.
const TRIED_ONCE_IN: u64 = 16;
/// Nobody asks for so many times as long as another program has kept the processor from who did.
const PAUSE_PER_LOSS: u32 = 16;
/// Requests that were there already when a thread came for them, in a row, before it looks whether there are more.
const PILED_UP: u32 = 4;
/// How long no thread may be receiving, when there are others to call.
const WATCH: Duration = Duration::from_millis(5);

/// See the module.
pub(crate) struct Crew {
    receiving: AtomicUsize,
    /// Requests that were taken.
    taken: AtomicU64,
    asking: Asking,
    /// Nothing has happened for a while, so that the watch sleeps.
    unwatched: AtomicBool,
    bench: Mutex<Bench>,
    watch: Condvar,
}

/// Whether asking pays.
struct Asking {
    /// There is a processor left for others while a thread asks.
    is_possible: bool,
    /// What it has been worth of late.
    credit: AtomicI32,
    /// What `paused_until_ns` counts from.
    start: Instant,
    paused_until_ns: AtomicU64,
}

impl Asking {
    fn new(processors: usize) -> Self {
        Self {
            is_possible: processors > 1,
            credit: AtomicI32::new(CREDIT_MAX / 2),
            start: Instant::now(),
            paused_until_ns: AtomicU64::new(0),
        }
    }

    /// Nanoseconds from the start.
    fn at(&self, time: Instant) -> u64 {
        u64::try_from((time - self.start).as_nanos()).unwrap_or(u64::MAX)
    }

    /// After so many requests were taken.
    fn is_worth_it(&self, now: Instant, taken: u64) -> bool {
        self.is_possible
            && (self.credit.load(Ordering::Relaxed) > 0 || taken.is_multiple_of(TRIED_ONCE_IN))
            && self.at(now) >= self.paused_until_ns.load(Ordering::Relaxed)
    }

    /// A thread has asked, with or without success, and was let go on so long after it had last let others go first.
    fn ended(&self, now: Instant, succeeded: bool, lost: Duration) {
        let credit = self.credit.load(Ordering::Relaxed);
        let credit = match succeeded {
            true => (credit + 1).min(CREDIT_MAX),
            false => (credit - CREDIT_LOST).max(0),
        };
        self.credit.store(credit, Ordering::Relaxed);
        if lost >= ASKING {
            let until = self.at(now + PAUSE_PER_LOSS * lost);
            self.paused_until_ns.store(until, Ordering::Relaxed);
        }
    }
}

/// The threads that do nothing.
#[derive(Default)]
struct Bench {
    parked: Vec<Arc<Seat>>,
    ended: bool,
}

/// A parked thread.
struct Seat {
    thread: Thread,
    is_called: AtomicBool,
}

impl Seat {
    fn call(&self) {
        self.is_called.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

/// What a thread remembers from request to request.
#[derive(Default)]
pub(crate) struct Streak {
    at_once: u32,
    /// More requests wait behind the one that it has taken.
    piled_up: bool,
}

impl Streak {
    /// Notes what the thread has found when it came.
    ///
    /// A caller that waits for each answer, and runs on this processor as soon as it has it, has asked again each time before
    /// the thread comes back: another thread would find nothing.
    ///
    /// # Errors
    /// When the system cannot look at the device.
    fn note(&mut self, found: Received, channel: &Channel) -> io::Result<()> {
        self.at_once = match found {
            Received::Nothing => 0,
            _ => self.at_once + 1,
        };
        self.piled_up = self.at_once >= PILED_UP && channel.has_more()?;
        if self.at_once >= PILED_UP && !self.piled_up {
            self.at_once = 0;
        }
        Ok(())
    }
}

impl Crew {
    pub(crate) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            receiving: AtomicUsize::new(0),
            taken: AtomicU64::new(0),
            asking: Asking::new(processors),
            unwatched: AtomicBool::new(false),
            bench: Mutex::default(),
            watch: Condvar::new(),
        }
    }

    /// A thread begins, or has answered something that may have waited. Returns when it is to receive; false when the
    /// session has ended.
    pub(crate) fn join(&self) -> bool {
        self.receiving
            .compare_exchange(0, 1, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
            || self.park()
    }

    /// A thread that receives takes a request; `None` when the session has ended. It still counts as receiving.
    ///
    /// # Errors
    /// When the device fails. Nothing was taken from it.
    pub(crate) fn receive(
        &self,
        channel: &Channel,
        buffer: &mut [u8],
        streak: &mut Streak,
    ) -> io::Result<Option<usize>> {
        loop {
            let mut received = channel.receive(buffer)?;
            streak.note(received, channel)?;
            if matches!(received, Received::Nothing) && self.is_worth_asking() {
                received = self.ask(channel, buffer)?;
            }
            match received {
                Received::Request(len) => {
                    self.taken.fetch_add(1, Ordering::SeqCst);
                    self.wake_watch();
                    return Ok(Some(len));
                }
                Received::End => return Ok(None),
                Received::Nothing if self.leave_to_others() => {
                    if !self.park() {
                        return Ok(None);
                    }
                }
                Received::Nothing => channel.wait()?,
            }
        }
    }

    /// Something has happened: see [`Crew::unwatched`].
    fn wake_watch(&self) {
        if self.unwatched.load(Ordering::SeqCst) {
            let _bench = self.bench.lock();
            self.unwatched.store(false, Ordering::SeqCst);
            self.watch.notify_one();
        }
    }

    fn is_worth_asking(&self) -> bool {
        let taken = self.taken.load(Ordering::Relaxed);
        self.asking.is_worth_it(Instant::now(), taken)
    }

    /// Asks for a request over and over for a while. Whoever else wants this processor gets it in between.
    fn ask(&self, channel: &Channel, buffer: &mut [u8]) -> io::Result<Received> {
        let start = Instant::now();
        let mut now = start;
        loop {
            let before = now;
            std::thread::yield_now();
            now = Instant::now();
            let received = channel.receive(buffer)?;
            let is_there = !matches!(received, Received::Nothing);
            let is_over = now - start >= ASKING;
            if is_there || is_over {
                self.asking.ended(now, is_there, now - before);
                return Ok(received);
            }
        }
    }

    /// The thread goes to answer what it has taken, and receives no longer.
    pub(crate) fn begin_answer(&self, may_wait: bool, streak: &Streak) {
        if (may_wait || streak.piled_up) && self.receiving.load(Ordering::SeqCst) == 1 {
            self.call();
        }
        self.receiving.fetch_sub(1, Ordering::SeqCst);
    }

    /// The thread goes to wait for something after all, while it answers.
    pub(crate) fn begin_wait(&self) {
        if self.receiving.load(Ordering::SeqCst) == 0 {
            self.call();
        }
    }

    /// It has answered; false when the session has ended.
    pub(crate) fn end_answer(&self, may_wait: bool) -> bool {
        if may_wait {
            return self.join();
        }
        self.receiving.fetch_add(1, Ordering::SeqCst);
        true
    }

    /// Stops receiving if another thread does; false if this is the last one.
    fn leave_to_others(&self) -> bool {
        self.receiving
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| {
                (count > 1).then(|| count - 1)
            })
            .is_ok()
    }

    /// Has a parked thread receive, if there is one.
    fn call(&self) {
        let called = self.call_from(&mut self.bench.lock());
        if let Some(seat) = called {
            seat.call();
        }
    }

    /// Who is to be called, and counts as receiving from now on.
    fn call_from(&self, bench: &mut Bench) -> Option<Arc<Seat>> {
        let seat = bench.parked.pop()?;
        self.receiving.fetch_add(1, Ordering::SeqCst);
        Some(seat)
    }

    /// Returns when the thread has been called, or false when the session has ended.
    fn park(&self) -> bool {
        let seat = Arc::new(Seat {
            thread: std::thread::current(),
            is_called: AtomicBool::new(false),
        });
        {
            let mut bench = self.bench.lock();
            if bench.ended {
                return false;
            }
            // Whoever received at the last look may have gone to answer since and found nobody to call: the watch sees to that.
            bench.parked.push(Arc::clone(&seat));
        }
        while !seat.is_called.load(Ordering::SeqCst) {
            std::thread::park();
        }
        !self.bench.lock().ended
    }

    /// Calls a thread whenever none has been receiving for a while, until the session ends. For a thread of its own.
    pub(crate) fn keep_watch(&self) {
        let mut bench = self.bench.lock();
        while !bench.ended {
            let before = self.taken.load(Ordering::SeqCst);
            self.watch.wait_for(&mut bench, WATCH);
            let is_idle = || self.taken.load(Ordering::SeqCst) == before;
            if !is_idle() {
                continue;
            }
            if self.receiving.load(Ordering::SeqCst) > 0 {
                self.unwatched.store(true, Ordering::SeqCst);
                // A request that was taken before that was seen wakes nobody, and is seen here.
                while self.unwatched.load(Ordering::SeqCst) && is_idle() && !bench.ended {
                    self.watch.wait(&mut bench);
                }
                self.unwatched.store(false, Ordering::SeqCst);
            } else if let Some(seat) = self.call_from(&mut bench) {
                seat.call();
            }
        }
    }

    /// The session has ended, or broken: whoever is parked, or watches, returns.
    pub(crate) fn end(&self) {
        let parked = {
            let mut bench = self.bench.lock();
            bench.ended = true;
            std::mem::take(&mut bench.parked)
        };
        parked.iter().for_each(|seat| seat.call());
        self.watch.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);
    const COUNT: usize = 3;
    /// Stands for the end of the session, which only a mount's device has.
    const END: u8 = b'.';

    /// Finds out that it waits only while it is answered.
    const WAIT: u8 = b'w';

    /// A session of `COUNT` threads whose kernel is this test. A message is the request and tells how it is answered.
    struct Session {
        kernel: UnixDatagram,
        crew: Arc<Crew>,
        answered: Receiver<u8>,
        /// Lets go of those who are held up.
        release: Sender<()>,
        threads: Vec<std::thread::JoinHandle<()>>,
    }

    impl Session {
        fn start() -> Self {
            let (kernel, device) = UnixDatagram::pair().expect("a pair");
            let device = Arc::new(Channel::new(device.into()).expect("a channel"));
            let crew = Arc::new(Crew::new());
            let (answers, answered) = channel();
            let (release, held) = channel::<()>();
            let held = Arc::new(Mutex::new(held));
            let mut threads: Vec<_> = (0..COUNT)
                .map(|_| {
                    let (crew, device) = (Arc::clone(&crew), Arc::clone(&device));
                    let (answers, held) = (answers.clone(), Arc::clone(&held));
                    std::thread::spawn(move || {
                        let (mut buffer, mut streak) = ([0; 8], Streak::default());
                        let mut goes_on = crew.join();
                        while goes_on {
                            let taken = crew.receive(&device, &mut buffer, &mut streak);
                            let Some(_) = taken.expect("the device works") else {
                                return;
                            };
                            if buffer[0] == END {
                                return;
                            }
                            let mut may_wait = buffer[0].is_ascii_uppercase();
                            crew.begin_answer(may_wait, &streak);
                            if buffer[0] == WAIT {
                                crew.begin_wait();
                                may_wait = true;
                            }
                            if matches!(buffer[0], b'h' | b'H' | WAIT) {
                                let _ = held.lock().recv();
                            }
                            answers.send(buffer[0]).expect("the test listens");
                            goes_on = crew.end_answer(may_wait);
                        }
                    })
                })
                .collect();
            let watching = Arc::clone(&crew);
            threads.push(std::thread::spawn(move || watching.keep_watch()));
            Self {
                kernel,
                crew,
                answered,
                release,
                threads,
            }
        }

        fn ask(&self, request: u8) {
            self.kernel.send(&[request]).expect("sent");
        }

        fn expect(&self, answer: u8) {
            let answered = self.answered.recv_timeout(PATIENCE).expect("an answer");
            assert_eq!(answered, answer);
        }

        fn end(self) {
            self.crew.end();
            // Whoever sleeps in the kernel is woken; as many may as there are, if any is left.
            for _ in 0..COUNT {
                let _ = self.kernel.send(&[END]);
            }
            for thread in self.threads {
                thread.join().expect("a thread ends in order");
            }
        }
    }

    #[test]
    fn what_is_held_up_holds_up_nobody_else() {
        for held in [b'h', b'H', WAIT] {
            let session = Session::start();
            for _ in 1..COUNT {
                session.ask(held);
                for _ in 0..100 {
                    session.ask(b'q');
                    session.expect(b'q');
                }
                std::thread::sleep(3 * WATCH);
            }
            session.ask(b'q');
            session.expect(b'q');
            for _ in 1..COUNT {
                session.release.send(()).expect("somebody is held up");
                session.expect(held);
            }
            session.end();
        }
    }

    /// Who asks beside programs that want the processor loses it for as long as they like, also where a request is there by
    /// then; who sleeps is woken for it.
    #[test]
    fn nobody_asks_for_long_where_others_want_the_processor() {
        let asking = Asking::new(2);
        let quick = Duration::from_micros(5);
        let kept = 30 * ASKING;
        let mut now = Instant::now();
        for _ in 0..CREDIT_MAX {
            assert!(asking.is_worth_it(now, 1));
            now += quick;
            asking.ended(now, true, quick);
        }
        let (mut lost, start) = (Duration::ZERO, now);
        for taken in 0..100_000 {
            if asking.is_worth_it(now, taken) {
                now += kept;
                lost += kept;
                asking.ended(now, true, kept);
            }
            now += quick;
        }
        assert!(lost < (now - start) / 10, "{lost:?} of {:?}", now - start);
        now += PAUSE_PER_LOSS * kept;
        assert!(asking.is_worth_it(now, 1), "it is tried again");
        assert!(!Asking::new(1).is_worth_it(now, 0));
    }

    /// One caller who is always quicker than the thread that answers it is not many.
    #[test]
    fn requests_pile_up_when_others_wait_behind_them() {
        let (kernel, device) = UnixDatagram::pair().expect("a pair");
        let device = Channel::new(device.into()).expect("a channel");
        let mut streak = Streak::default();
        let mut take = || {
            let received = device.receive(&mut [0; 8]).expect("received");
            streak.note(received, &device).expect("looked");
            streak.piled_up
        };
        let ask = || kernel.send(b"q").expect("sent");
        for _ in 0..10 * PILED_UP {
            ask();
            assert!(!take(), "nobody waits behind it");
        }
        ask();
        let found = (0..2 * PILED_UP).filter(|_| {
            ask();
            take()
        });
        assert!(found.count() > 0, "there was always one more");
        assert!(!take(), "the last one");
        assert!(!take(), "none");
    }

    #[test]
    fn slow_and_quick_requests_all_get_answers() {
        let session = Session::start();
        let mut state = 7_u32;
        for _ in 0..5000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let together = 1 + (state >> 28);
            for bit in 0..together {
                session.ask(if state >> bit & 1 == 0 { b'q' } else { b'Q' });
            }
            for _ in 0..together {
                let answered = session.answered.recv_timeout(PATIENCE);
                assert!(answered.is_ok_and(|answer| answer.eq_ignore_ascii_case(&b'q')));
            }
        }
        session.end();
    }
}
