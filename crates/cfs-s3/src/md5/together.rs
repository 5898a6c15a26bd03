//! The MD5 of uploads that come at the same time, computed together.
//!
//! Who comes while nobody computes does so at once. Who comes meanwhile waits, and who computes takes its work into a free
//! lane between two turns, in the order in which they came. Nobody works longer for others than for itself: whose own work is
//! done calls the first of the others to go on with all that is left. Who computes waits for nobody, so that all who wait are
//! called; they wait on threads of their own, whatever has become of the request. A panic of who computes would leave them
//! waiting; `cfs` ends the process on any.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::OnceLock;

use bytes::{Buf as _, Bytes};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::Md5;
use super::lanes::{BLOCK_BYTES, Lane, Vectors};

/// Blocks of each lane that are computed before who computes looks for others.
const TURN_BLOCKS: usize = (32 << 10) / BLOCK_BYTES;
/// Less than so many bytes is computed by who comes with it: to wake a thread would take longer.
const ALONE_BYTES: usize = 64 << 10;
/// And what lies in pieces that are shorter than this in the mean: the turns of all would be as short.
const PIECE_BYTES: usize = 4 << 10;

/// Where uploads meet.
pub(crate) struct Together(Mutex<Table>);

#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    /// Work that waits, or is computed.
    jobs: usize,
    /// Threads that compute.
    computing: usize,
}

struct Table {
    waiting: VecDeque<Job>,
    counts: Counts,
}

/// What is left of an upload's bytes.
struct Work {
    md5: Md5,
    pieces: VecDeque<Bytes>,
}

/// Work of a thread that waits.
struct Job {
    work: Work,
    waiter: oneshot::Sender<Work>,
}

impl Work {
    fn new(md5: Md5, pieces: impl IntoIterator<Item = Bytes>) -> Self {
        let mut work = Self {
            md5,
            pieces: pieces.into_iter().collect(),
        };
        work.reach_blocks();
        work
    }

    fn is_done(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Whether it goes well with that of others.
    fn fits(&self) -> bool {
        let bytes: usize = self.pieces.iter().map(Bytes::len).sum();
        bytes >= ALONE_BYTES.max(self.pieces.len() * PIECE_BYTES)
    }

    /// Computes what comes before the next whole block that lies in one piece.
    fn reach_blocks(&mut self) {
        while let Some(piece) = self.pieces.front_mut() {
            let begun = match self.md5.missing() {
                0 if piece.len() >= BLOCK_BYTES => return,
                0 => piece.len(),
                missing => missing.min(piece.len()),
            };
            self.md5.update(&piece.split_to(begun));
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
    }

    /// The blocks that are next, as many as a turn has at most. It is not done.
    fn lane(&mut self) -> Lane<'_> {
        let (blocks, _) = self.pieces[0].as_chunks();
        Lane {
            blocks: &blocks[..blocks.len().min(TURN_BLOCKS)],
            state: self.md5.state(),
        }
    }

    /// So many blocks have been computed.
    fn pass(&mut self, blocks: usize) {
        self.md5.count(blocks);
        self.pieces[0].advance(blocks * BLOCK_BYTES);
        self.reach_blocks();
    }

    fn finish_alone(mut self) -> Md5 {
        for piece in self.pieces {
            self.md5.update(&piece);
        }
        self.md5
    }

    fn turn_alone(&mut self) {
        let piece = &mut self.pieces[0];
        let turn = piece.len().min(TURN_BLOCKS * BLOCK_BYTES);
        self.md5.update(&piece.split_to(turn));
        if piece.is_empty() {
            self.pieces.pop_front();
        }
        self.reach_blocks();
    }
}

impl Together {
    pub(crate) const fn new() -> Self {
        let counts = Counts {
            jobs: 0,
            computing: 0,
        };
        Self(Mutex::new(Table {
            waiting: VecDeque::new(),
            counts,
        }))
    }

    /// Adds pieces to what a digest is made of. Blocks, as long as that takes in a lane beside others. `is_alone` says that
    /// no others are known to come.
    pub(crate) fn add(&self, md5: Md5, pieces: Vec<Bytes>, is_alone: bool) -> Md5 {
        let mut work = Work::new(md5, pieces);
        let lanes = vectors().last().map_or(1, |widest| widest.lanes());
        if lanes == 1 || !work.fits() {
            return work.finish_alone();
        }
        let mut table = self.0.lock();
        table.counts.jobs += 1;
        if table.counts.jobs > table.counts.computing * lanes {
            table.counts.computing += 1;
            drop(table);
            if !is_alone {
                // On a busy machine others come with their work first; on an idle one this returns at once.
                std::thread::yield_now();
            }
        } else {
            let (waiter, called) = oneshot::channel();
            table.waiting.push_back(Job { work, waiter });
            drop(table);
            work = called.blocking_recv().expect("who computes calls all");
            if work.is_done() {
                return work.md5;
            }
        }
        self.compute(work, lanes)
    }

    /// Computes a thread's own work, and beside it that of others who wait.
    fn compute(&self, mut own: Work, lanes: usize) -> Md5 {
        let mut others = Vec::new();
        while !own.is_done() {
            let free = lanes - 1 - others.len();
            {
                let mut table = self.0.lock();
                let taken = free.min(table.waiting.len());
                others.extend(table.waiting.drain(..taken));
            }
            turn(
                &mut own,
                others.iter_mut().map(|job: &mut Job| &mut job.work),
            );
            let done: Vec<Job> = others.extract_if(.., |job| job.work.is_done()).collect();
            if !done.is_empty() {
                self.0.lock().counts.jobs -= done.len();
                done.into_iter().for_each(Job::call);
            }
        }
        let mut table = self.0.lock();
        table.counts.jobs -= 1;
        for job in others.into_iter().rev() {
            table.waiting.push_front(job);
        }
        match table.waiting.pop_front() {
            Some(next) => next.call(),
            None => table.counts.computing -= 1,
        }
        own.md5
    }
}

impl Job {
    /// Gives the work back: done, or to go on with.
    fn call(self) {
        let is_called = self.waiter.send(self.work).is_ok();
        assert!(is_called, "who waits does so until it is called");
    }
}

fn vectors() -> &'static [Vectors] {
    static AVAILABLE: OnceLock<Vec<Vectors>> = OnceLock::new();
    AVAILABLE.get_or_init(Vectors::available)
}

/// Computes some blocks of each of these, none of which is done: one as such, several in the narrowest vector with room for
/// them. Two in a vector are faster already than one after the other.
fn turn<'a>(own: &'a mut Work, others: impl Iterator<Item = &'a mut Work>) {
    let mut works = vec![own];
    works.extend(others);
    let count = works.len();
    let fitting = vectors().iter().find(|vectors| vectors.lanes() >= count);
    match (works.as_mut_slice(), fitting) {
        ([own], _) => own.turn_alone(),
        (_, None) => unreachable!("no more are taken than there are lanes"),
        (works, Some(vectors)) => {
            let mut lanes: Vec<_> = works.iter_mut().map(|work| work.lane()).collect();
            let blocks = vectors.compress(&mut lanes);
            works.iter_mut().for_each(|work| work.pass(blocks));
        }
    }
}
