//! Whose turn it is: anybody's, but now and then a thread that could go on is held up, for few steps or for many.
//!
//! Most races need one thread to stand still at one place while another does a lot. Drawing lots at each step hardly
//! ever makes that happen; priorities that change at few places (Burckhardt et al., "A Randomized Scheduler with
//! Probabilistic Guarantees of Finding Bugs", ASPLOS 2010) do, one time in as many as there are steps, of which the
//! store takes thousands.

use std::collections::HashMap;

use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};

use crate::support::next;

/// One schedule, the same for the same seed.
pub struct Stalls {
    random: u64,
    is_new: bool,
    /// A thread is held up once in so many steps.
    once_in: u64,
    step: u64,
    /// Up to which step each is held up.
    held_up: HashMap<TaskId, u64>,
}

/// Steps that a thread is held up for: at most this power of two.
const HELD_UP_LOG2_MAX: u64 = 12;

impl Stalls {
    pub fn new(seed: u64) -> Self {
        let mut random = seed;
        Self {
            once_in: [10, 30, 100, u64::MAX][(next(&mut random) % 4) as usize],
            random,
            is_new: true,
            step: 0,
            held_up: HashMap::new(),
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        (next(&mut self.random) % bound as u64) as usize
    }
}

impl Scheduler for Stalls {
    fn new_execution(&mut self) -> Option<Schedule> {
        std::mem::take(&mut self.is_new).then(|| Schedule::new(self.random))
    }

    fn next_task(&mut self, runnable: &[&Task], _: Option<TaskId>, _: bool) -> Option<TaskId> {
        self.step += 1;
        let is_awake = |task: &TaskId| {
            let until = self.held_up.get(task);
            until.is_none_or(|until| *until <= self.step)
        };
        let runnable: Vec<TaskId> = runnable.iter().map(|task| task.id()).collect();
        let awake: Vec<TaskId> = runnable.iter().copied().filter(is_awake).collect();
        let candidates = if awake.is_empty() { &runnable } else { &awake };
        let mut chosen = self.below(candidates.len());
        if candidates.len() > 1 && next(&mut self.random).is_multiple_of(self.once_in) {
            let power = 1 + next(&mut self.random) % HELD_UP_LOG2_MAX;
            let until = self.step + (1 << power);
            self.held_up.insert(candidates[chosen], until);
            chosen = (chosen + 1 + self.below(candidates.len() - 1)) % candidates.len();
        }
        Some(candidates[chosen])
    }

    fn next_u64(&mut self) -> u64 {
        next(&mut self.random)
    }
}
