//! Scanning a range from both ends.

use std::{ops::Bound, sync::Arc};

use crate::{
    RunError, View,
    cursor::{Cursor, Direction, MemtableCursor, Merge, RunCursor, as_slice},
    memtable::is_empty_range,
    run::ReadThrough,
    state::touches,
};

/// Entries of a view within bounds; ascending by `next`, descending by `next_back`. Blocks are read when they are
/// reached. After an error it ends.
pub struct Range {
    view: View,
    /// What is left: shrinks from both ends.
    low: Bound<Vec<u8>>,
    high: Bound<Vec<u8>>,
    front: Option<Merge>,
    back: Option<Merge>,
    through: ReadThrough,
    ended: bool,
}

impl Range {
    pub(crate) fn new(view: View, low: Bound<Vec<u8>>, high: Bound<Vec<u8>>) -> Self {
        let ended = is_empty_range((as_slice(&low), as_slice(&high)));
        Self {
            view,
            low,
            high,
            front: None,
            back: None,
            through: ReadThrough::Cache,
            ended,
        }
    }

    /// Reads blocks past the cache, so that a long scan does not push out what others need.
    #[must_use]
    pub fn past_cache(mut self) -> Self {
        self.through = ReadThrough::Store;
        self
    }

    fn merge(&self, direction: Direction) -> Result<Merge, RunError> {
        let state = self.view.state();
        let mut cursors = Vec::new();
        for memtable in std::iter::once(&state.active).chain(&state.sealed) {
            cursors.push(Cursor::Memtable(MemtableCursor::new(
                Arc::clone(memtable),
                self.view.seq(),
                direction,
                (self.low.clone(), self.high.clone()),
            )));
        }
        let bounds = (as_slice(&self.low), as_slice(&self.high));
        let start = match direction {
            Direction::Forward => bounds.0,
            Direction::Backward => bounds.1,
        };
        for sorted in state.sorted_runs() {
            // One cursor in a run costs two reads, so those that have nothing here are left out.
            let start_run = match start {
                Bound::Unbounded => 0,
                Bound::Included(key) | Bound::Excluded(key) => {
                    sorted.partition_point(|run| *run.summary().last_key < *key)
                }
            };
            let touched = match direction {
                Direction::Forward => sorted[start_run.min(sorted.len())..]
                    .iter()
                    .take(2)
                    .any(|run| touches(run, bounds)),
                Direction::Backward => sorted.iter().any(|run| touches(run, bounds)),
            };
            if touched {
                let cursor = RunCursor::new(Arc::clone(sorted), direction, self.through, start)?;
                cursors.push(Cursor::Run(cursor));
            }
        }
        Ok(Merge::new(cursors, direction))
    }

    fn step(&mut self, direction: Direction) -> Result<Option<(Vec<u8>, Vec<u8>)>, RunError> {
        let side = match direction {
            Direction::Forward => &mut self.front,
            Direction::Backward => &mut self.back,
        };
        // The merge stands at what was returned last, so that nothing is read before it is asked for.
        let mut merge = match side.take() {
            Some(mut merge) => {
                merge.advance()?;
                merge
            }
            None => self.merge(direction)?,
        };
        loop {
            let Some((key, value)) = merge.current() else {
                return Ok(None);
            };
            if !self.contains(key) {
                return Ok(None);
            }
            let Some(value) = value else {
                merge.advance()?;
                continue;
            };
            let found = (key.to_vec(), value.to_vec());
            match direction {
                Direction::Forward => {
                    exclude(&mut self.low, key);
                    self.front = Some(merge);
                }
                Direction::Backward => {
                    exclude(&mut self.high, key);
                    self.back = Some(merge);
                }
            }
            return Ok(Some(found));
        }
    }

    fn contains(&self, key: &[u8]) -> bool {
        let above = match &self.low {
            Bound::Included(low) => key >= low.as_slice(),
            Bound::Excluded(low) => key > low.as_slice(),
            Bound::Unbounded => true,
        };
        let below = match &self.high {
            Bound::Included(high) => key <= high.as_slice(),
            Bound::Excluded(high) => key < high.as_slice(),
            Bound::Unbounded => true,
        };
        above && below
    }

    fn take(&mut self, direction: Direction) -> Option<Result<(Vec<u8>, Vec<u8>), RunError>> {
        if self.ended {
            return None;
        }
        let entry = self.step(direction);
        if !matches!(entry, Ok(Some(_))) {
            self.ended = true;
            self.front = None;
            self.back = None;
        }
        entry.transpose()
    }
}

/// Makes `key` the excluded bound.
fn exclude(bound: &mut Bound<Vec<u8>>, key: &[u8]) {
    match bound {
        Bound::Excluded(old) => {
            old.clear();
            old.extend_from_slice(key);
        }
        _ => *bound = Bound::Excluded(key.to_vec()),
    }
}

impl Iterator for Range {
    type Item = Result<(Vec<u8>, Vec<u8>), RunError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.take(Direction::Forward)
    }
}

impl DoubleEndedIterator for Range {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.take(Direction::Backward)
    }
}

impl std::iter::FusedIterator for Range {}
