//! Cursors: one over a memtable as a view sees it, one over a sorted run; both walk in either direction.

use std::{collections::VecDeque, ops::Bound, sync::Arc};

use crate::{
    RunError,
    block::Block,
    memtable::{Change, Memtable},
    run::{ReadThrough, Run},
    state::SortedRun,
};

/// Which way a cursor walks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Keys ascend.
    Forward,
    /// Keys descend.
    Backward,
}

/// Entries that the first fetch from a memtable takes; each further one takes twice as many, up to `FETCH_MAX`.
const FETCH_MIN: usize = 4;
/// Most entries of one fetch.
const FETCH_MAX: usize = 64;

/// A cursor over a memtable. It copies a few entries at a time, so that it holds no lock between calls.
pub(crate) struct MemtableCursor {
    memtable: Arc<Memtable>,
    seq: u64,
    direction: Direction,
    fetched: VecDeque<Change>,
    fetch_len: usize,
    low: Bound<Vec<u8>>,
    high: Bound<Vec<u8>>,
    exhausted: bool,
}

impl MemtableCursor {
    /// A cursor at the first entry in its direction within the bounds.
    pub(crate) fn new(
        memtable: Arc<Memtable>,
        seq: u64,
        direction: Direction,
        (low, high): (Bound<Vec<u8>>, Bound<Vec<u8>>),
    ) -> Self {
        let mut cursor = Self {
            memtable,
            seq,
            direction,
            fetched: VecDeque::new(),
            fetch_len: FETCH_MIN,
            low,
            high,
            exhausted: false,
        };
        cursor.fetch();
        cursor
    }

    fn fetch(&mut self) {
        if self.exhausted {
            return;
        }
        let bounds = (as_slice(&self.low), as_slice(&self.high));
        match self.direction {
            Direction::Forward => self.memtable.scan(bounds, self.seq, self.fetch_len, &mut self.fetched),
            Direction::Backward => self.memtable.scan_back(bounds, self.seq, self.fetch_len, &mut self.fetched),
        }
        self.exhausted = self.fetched.len() < self.fetch_len;
        self.fetch_len = (self.fetch_len * 2).min(FETCH_MAX);
        if let Some((key, _)) = self.fetched.back() {
            let passed = Bound::Excluded(key.clone());
            match self.direction {
                Direction::Forward => self.low = passed,
                Direction::Backward => self.high = passed,
            }
        }
    }

    fn current(&self) -> Option<&Change> {
        self.fetched.front()
    }

    fn advance(&mut self) {
        self.fetched.pop_front();
        if self.fetched.is_empty() {
            self.fetch();
        }
    }
}

/// The bound with a borrowed key.
pub(crate) fn as_slice(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    bound.as_ref().map(Vec::as_slice)
}

/// A cursor over a sorted run. Blocks are read when the cursor reaches them.
pub(crate) struct RunCursor {
    runs: SortedRun,
    direction: Direction,
    through: ReadThrough,
    /// Run, partition, position in the index block, and in the data block.
    run: usize,
    partition: usize,
    index: Option<Arc<Block>>,
    index_position: usize,
    data: Option<Arc<Block>>,
    position: usize,
    /// Key of the current entry.
    key: Vec<u8>,
}

impl RunCursor {
    /// A cursor at the first entry in its direction from `bound`.
    pub(crate) fn new(
        runs: SortedRun,
        direction: Direction,
        through: ReadThrough,
        bound: Bound<&[u8]>,
    ) -> Result<Self, RunError> {
        let mut cursor = Self {
            runs,
            direction,
            through,
            run: 0,
            partition: 0,
            index: None,
            index_position: 0,
            data: None,
            position: 0,
            key: Vec::new(),
        };
        match direction {
            Direction::Forward => cursor.seek_forward(bound)?,
            Direction::Backward => cursor.seek_backward(bound)?,
        }
        Ok(cursor)
    }

    fn seek_forward(&mut self, bound: Bound<&[u8]>) -> Result<(), RunError> {
        let key = match bound {
            Bound::Included(key) | Bound::Excluded(key) => key,
            Bound::Unbounded => &[],
        };
        self.run = self.runs.partition_point(|run| *run.summary().last_key < *key);
        let Some(run) = self.runs.get(self.run).cloned() else {
            return Ok(());
        };
        self.partition = run.partition_of(key);
        // A separator may be above the last key of what it ends, so that each level may turn out to have nothing.
        if self.partition == run.partition_count() {
            self.run += 1;
            return self.enter_run();
        }
        let index = run.index_block(self.partition, self.through)?;
        self.index_position = index.lower_bound(key);
        if self.index_position == index.len() {
            self.partition += 1;
            return self.enter_partition(&run);
        }
        let data = run.data_block(self.partition, &index, self.index_position, self.through)?;
        self.index = Some(index);
        self.position = match data.search(key) {
            Ok(found) if matches!(bound, Bound::Excluded(_)) => found + 1,
            Ok(found) => found,
            Err(insertion) => insertion,
        };
        if self.position == data.len() {
            self.index_position += 1;
            return self.enter_block(&run);
        }
        self.data = Some(data);
        self.read_key();
        Ok(())
    }

    fn seek_backward(&mut self, bound: Bound<&[u8]>) -> Result<(), RunError> {
        let key = match bound {
            Bound::Included(key) | Bound::Excluded(key) => key,
            Bound::Unbounded => {
                self.run = self.runs.len();
                return self.leave_run();
            }
        };
        self.run = self.runs.partition_point(|run| *run.summary().last_key < *key);
        let Some(run) = self.runs.get(self.run).cloned() else {
            return self.leave_run();
        };
        self.partition = run.partition_of(key);
        if self.partition == run.partition_count() {
            return self.leave_partition(&run);
        }
        let index = run.index_block(self.partition, self.through)?;
        self.index_position = index.lower_bound(key);
        if self.index_position == index.len() {
            self.index = Some(index);
            return self.leave_block(&run);
        }
        let data = run.data_block(self.partition, &index, self.index_position, self.through)?;
        self.index = Some(index);
        let end = match data.search(key) {
            Ok(found) if matches!(bound, Bound::Included(_)) => found + 1,
            Ok(found) => found,
            Err(insertion) => insertion,
        };
        if end == 0 {
            return self.leave_block(&run);
        }
        self.position = end - 1;
        self.data = Some(data);
        self.read_key();
        Ok(())
    }

    /// Stands at the first entry of `run`, if there is such a run.
    fn enter_run(&mut self) -> Result<(), RunError> {
        self.partition = 0;
        match self.runs.get(self.run).cloned() {
            Some(run) => self.enter_partition(&run),
            None => {
                self.data = None;
                Ok(())
            }
        }
    }

    /// Stands at the first entry of `partition`, or of what follows.
    fn enter_partition(&mut self, run: &Run) -> Result<(), RunError> {
        if self.partition == run.partition_count() {
            self.run += 1;
            return self.enter_run();
        }
        self.index = Some(run.index_block(self.partition, self.through)?);
        self.index_position = 0;
        self.enter_block(run)
    }

    /// Stands at the first entry of the data block at `index_position`, or of what follows.
    fn enter_block(&mut self, run: &Run) -> Result<(), RunError> {
        let index = self.index.as_ref().expect("stands in a partition");
        if self.index_position == index.len() {
            self.partition += 1;
            return self.enter_partition(run);
        }
        self.data = Some(run.data_block(self.partition, index, self.index_position, self.through)?);
        self.position = 0;
        self.read_key();
        Ok(())
    }

    /// Stands at the last entry of the run before `run`, if there is one.
    fn leave_run(&mut self) -> Result<(), RunError> {
        if self.run == 0 {
            self.data = None;
            return Ok(());
        }
        self.run -= 1;
        let run = Arc::clone(&self.runs[self.run]);
        self.partition = run.partition_count();
        self.leave_partition(&run)
    }

    /// Stands at the last entry of the partition before `partition`, or of what precedes.
    fn leave_partition(&mut self, run: &Run) -> Result<(), RunError> {
        if self.partition == 0 {
            return self.leave_run();
        }
        self.partition -= 1;
        let index = run.index_block(self.partition, self.through)?;
        self.index_position = index.len();
        self.index = Some(index);
        self.leave_block(run)
    }

    /// Stands at the last entry of the data block before `index_position`, or of what precedes.
    fn leave_block(&mut self, run: &Run) -> Result<(), RunError> {
        if self.index_position == 0 {
            return self.leave_partition(run);
        }
        self.index_position -= 1;
        let index = self.index.as_ref().expect("stands in a partition");
        let data = run.data_block(self.partition, index, self.index_position, self.through)?;
        self.position = data.len() - 1;
        self.data = Some(data);
        self.read_key();
        Ok(())
    }

    fn read_key(&mut self) {
        let data = self.data.as_ref().expect("stands at an entry");
        self.key.clear();
        self.key.extend_from_slice(data.prefix());
        self.key.extend_from_slice(data.entry(self.position).suffix);
    }

    fn current(&self) -> Option<(&[u8], Option<&[u8]>)> {
        let data = self.data.as_ref()?;
        Some((&self.key, data.entry(self.position).value))
    }

    fn advance(&mut self) -> Result<(), RunError> {
        let Some(data) = &self.data else {
            return Ok(());
        };
        match self.direction {
            Direction::Forward if self.position + 1 < data.len() => self.position += 1,
            Direction::Backward if self.position > 0 => self.position -= 1,
            Direction::Forward => {
                let run = Arc::clone(&self.runs[self.run]);
                self.index_position += 1;
                return self.enter_block(&run);
            }
            Direction::Backward => {
                let run = Arc::clone(&self.runs[self.run]);
                return self.leave_block(&run);
            }
        }
        self.read_key();
        Ok(())
    }
}

/// Either cursor.
pub(crate) enum Cursor {
    /// Over a memtable.
    Memtable(MemtableCursor),
    /// Over a sorted run.
    Run(RunCursor),
}

impl Cursor {
    /// Key and value, or tombstone, of the current entry; `None` at the end.
    pub(crate) fn current(&self) -> Option<(&[u8], Option<&[u8]>)> {
        match self {
            Self::Memtable(cursor) => cursor
                .current()
                .map(|(key, value)| (key.as_slice(), value.as_deref())),
            Self::Run(cursor) => cursor.current(),
        }
    }

    /// Goes to the next entry in the cursor's direction. After an error the cursor must not be used.
    pub(crate) fn advance(&mut self) -> Result<(), RunError> {
        match self {
            Self::Memtable(cursor) => {
                cursor.advance();
                Ok(())
            }
            Self::Run(cursor) => cursor.advance(),
        }
    }
}

/// Merges cursors of one direction; of several entries for one key it gives that of the first cursor.
pub(crate) struct Merge {
    /// Newest first, none of them at its end.
    cursors: Vec<Cursor>,
    direction: Direction,
    /// The cursor whose entry is current.
    current: usize,
}

impl Merge {
    /// A merge of these cursors, newest first.
    pub(crate) fn new(mut cursors: Vec<Cursor>, direction: Direction) -> Self {
        cursors.retain(|cursor| cursor.current().is_some());
        let mut merge = Self {
            cursors,
            direction,
            current: 0,
        };
        merge.select();
        merge
    }

    fn select(&mut self) {
        self.current = 0;
        for other in 1..self.cursors.len() {
            if self.is_before(other, self.current) {
                self.current = other;
            }
        }
    }

    fn is_before(&self, a: usize, b: usize) -> bool {
        let key = |index: usize| self.cursors[index].current().expect("not at its end").0;
        match self.direction {
            Direction::Forward => key(a) < key(b),
            Direction::Backward => key(a) > key(b),
        }
    }

    /// The current entry; `None` at the end.
    pub(crate) fn current(&self) -> Option<(&[u8], Option<&[u8]>)> {
        self.cursors.get(self.current)?.current()
    }

    /// Goes to the next key. After an error the merge must not be used.
    pub(crate) fn advance(&mut self) -> Result<(), RunError> {
        // What the others have for this key is older.
        let mut other = self.cursors.len();
        while other > self.current + 1 {
            other -= 1;
            let key = |index: usize| self.cursors[index].current().expect("not at its end").0;
            if key(other) == key(self.current) {
                self.step(other)?;
            }
        }
        self.step(self.current)?;
        self.select();
        Ok(())
    }

    fn step(&mut self, index: usize) -> Result<(), RunError> {
        self.cursors[index].advance()?;
        if self.cursors[index].current().is_none() {
            self.cursors.remove(index);
        }
        Ok(())
    }
}
