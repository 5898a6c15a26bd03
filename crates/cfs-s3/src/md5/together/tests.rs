use std::sync::Barrier;
use std::time::Duration;

use super::super::tests::Random;
use super::*;

/// Pieces of any lengths, `bytes` in all at least.
fn pieces(random: &mut Random, bytes: usize) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < bytes {
        let len = match random.below(4) {
            0 => random.below(2 * BLOCK_BYTES),
            1 => BLOCK_BYTES * random.below(20),
            2 => random.below(5000),
            _ => random.below(100_000),
        };
        pieces.push((0..len).map(|_| random.next() as u8).collect());
        at += len;
    }
    pieces
}

fn whole(pieces: &[Bytes]) -> [u8; 16] {
    Md5::digest(&pieces.concat())
}

/// Until somebody waits.
fn wait_for_waiting(together: &Together, count: usize) {
    while together.0.lock().waiting.len() < count {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn check_empty(together: &Together) {
    let table = together.0.lock();
    assert!(table.waiting.is_empty());
    assert_eq!(table.counts, Counts::default());
}

#[test]
fn turns_of_any_pieces_give_what_the_whole_does() {
    let mut random = Random(11);
    let lanes = vectors().last().map_or(1, |widest| widest.lanes());
    for count in [1, 2, 3, 8, 9, 16, 3, 5] {
        let bodies: Vec<_> = (0..count)
            .map(|_| {
                let bytes = random.below(200_000);
                pieces(&mut random, bytes)
            })
            .collect();
        let mut works: Vec<_> = bodies
            .iter()
            .map(|body| Work::new(Md5::new(), body.clone()))
            .collect();
        loop {
            let mut left = works.iter_mut().filter(|work| !work.is_done());
            let Some(own) = left.next() else {
                break;
            };
            turn(own, left.take(lanes - 1));
        }
        for (work, body) in works.into_iter().zip(&bodies) {
            assert_eq!(work.md5.finalize(), whole(body), "{count} bodies");
        }
    }
}

/// A thread computes; another one comes meanwhile. With more to do than the first it goes on itself, with less it does not.
#[test]
fn who_comes_meanwhile_is_computed_too() {
    if vectors().is_empty() {
        return;
    }
    let lanes = vectors()[0].lanes();
    for (own, other) in [(1_000_000, 200_000), (200_000, 1_000_000), (5, 100_000)] {
        let mut random = Random(own as u64);
        let (own, other) = (pieces(&mut random, own), pieces(&mut random, other));
        let together = Together::new();
        together.0.lock().counts = Counts {
            jobs: 1,
            computing: 1,
        };
        std::thread::scope(|scope| {
            let comes = scope.spawn(|| together.add(Md5::new(), other.clone(), true));
            wait_for_waiting(&together, 1);
            let computed = together.compute(Work::new(Md5::new(), own.clone()), lanes);
            assert_eq!(computed.finalize(), whole(&own));
            let computed = comes.join().expect("no panic");
            assert_eq!(computed.finalize(), whole(&other));
        });
        check_empty(&together);
    }
}

/// More than all lanes are for: a second thread computes.
#[test]
fn who_finds_all_lanes_taken_computes_beside() {
    let Some(widest) = vectors().last() else {
        return;
    };
    let together = Together::new();
    let full = || Counts {
        jobs: widest.lanes(),
        computing: 1,
    };
    together.0.lock().counts = full();
    let body = pieces(&mut Random(3), 200_000);
    let computed = together.add(Md5::new(), body.clone(), false);
    assert_eq!(computed.finalize(), whole(&body));
    assert_eq!(together.0.lock().counts, full());
}

#[test]
fn little_work_is_for_who_comes_with_it() {
    let check = |pieces: usize, bytes: usize, fits: bool| {
        let piece = Bytes::from(vec![0; bytes]);
        let work = Work::new(Md5::new(), vec![piece; pieces]);
        assert_eq!(work.fits(), fits, "{pieces} pieces of {bytes} bytes");
    };
    check(1, 1000, false);
    check(1, ALONE_BYTES - 1, false);
    check(1, ALONE_BYTES, true);
    check(16, 65536, true);
    check(1000, 100, false);
    check(1000, PIECE_BYTES, true);

    let Some(widest) = vectors().last() else {
        return;
    };
    // Who computes for others takes what waits.
    let together = Together::new();
    let (waiter, _called) = oneshot::channel();
    let work = Work::new(Md5::new(), [Bytes::from(vec![0; ALONE_BYTES])]);
    {
        let mut table = together.0.lock();
        table.waiting.push_back(Job { work, waiter });
        table.counts = Counts {
            jobs: widest.lanes(),
            computing: 1,
        };
    }
    let little = vec![Bytes::from_static(b"little")];
    let computed = together.add(Md5::new(), little.clone(), false);
    assert_eq!(computed.finalize(), whole(&little));
    assert_eq!(together.0.lock().waiting.len(), 1);
}

#[test]
fn uploads_at_a_time_get_their_own_digests() {
    let together = Together::new();
    let barrier = Barrier::new(24);
    std::thread::scope(|scope| {
        for thread in 1..=24 {
            let (together, barrier) = (&together, &barrier);
            scope.spawn(move || {
                let mut random = Random(thread);
                let steps: Vec<_> = (0..6)
                    .map(|_| {
                        let bytes = random.below(400_000);
                        pieces(&mut random, bytes)
                    })
                    .collect();
                barrier.wait();
                let mut md5 = Md5::new();
                for step in &steps {
                    md5 = together.add(md5, step.clone(), random.below(2) == 0);
                }
                assert_eq!(md5.finalize(), whole(&steps.concat()), "thread {thread}");
            });
        }
    });
    check_empty(&together);
}
