//! Cursors: one over a memtable as a view sees it, one over a sorted run; both walk in either direction.

use std::{cmp::Ordering, collections::VecDeque, ops::Bound, sync::Arc};

use crate::{
    RunError,
    block::EntryPlace,
    cache::CachedBlock,
    memtable::{Change, Memtable},
    run::ReadThrough,
    sorted::head,
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
            Direction::Forward => {
                self.memtable
                    .scan(bounds, self.seq, self.fetch_len, &mut self.fetched)
            }
            Direction::Backward => {
                self.memtable
                    .scan_back(bounds, self.seq, self.fetch_len, &mut self.fetched)
            }
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
    /// Run, partition and position in its index: where `data` is.
    run: usize,
    partition: usize,
    index_position: usize,
    /// None at the end.
    data: Option<Arc<CachedBlock>>,
    position: usize,
    place: EntryPlace,
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
            index_position: 0,
            data: None,
            position: 0,
            place: EntryPlace::default(),
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
        if let Some((data, found)) = self.seek(key)? {
            let position = match found {
                Ok(found) if matches!(bound, Bound::Excluded(_)) => found + 1,
                Ok(found) => found,
                Err(insertion) => insertion,
            };
            if position < data.len() {
                self.enter(data, position);
                return Ok(());
            }
            self.index_position += 1;
        }
        self.enter_next_block()
    }

    fn seek_backward(&mut self, bound: Bound<&[u8]>) -> Result<(), RunError> {
        let key = match bound {
            Bound::Included(key) | Bound::Excluded(key) => key,
            Bound::Unbounded => {
                self.run = self.runs.len();
                return self.enter_previous_block();
            }
        };
        if let Some((data, found)) = self.seek(key)? {
            let end = match found {
                Ok(found) if matches!(bound, Bound::Included(_)) => found + 1,
                Ok(found) => found,
                Err(insertion) => insertion,
            };
            if end > 0 {
                self.enter(data, end - 1);
                return Ok(());
            }
        }
        self.enter_previous_block()
    }

    /// Goes to where `key` would be. Returns the data block there and the place in it; or nothing, when `key` lies
    /// behind a partition's or run's last block: then the position is behind that block.
    fn seek(
        &mut self,
        key: &[u8],
    ) -> Result<Option<(Arc<CachedBlock>, Result<usize, usize>)>, RunError> {
        self.run = self
            .runs
            .partition_point(|run| *run.summary().last_key < *key);
        let Some(run) = self.runs.get(self.run) else {
            return Ok(None);
        };
        self.partition = run.partition_of(key);
        if self.partition == run.partition_count() {
            return Ok(None);
        }
        let index = &run.partition(self.partition)?.index;
        self.index_position = index.lower_bound(key);
        if self.index_position == index.len() {
            return Ok(None);
        }
        let data = run.data_block(self.partition, self.index_position, self.through)?;
        let found = data.search(key);
        Ok(Some((data, found)))
    }

    /// Stands at the first entry of the data block at the current position, or of the first one after it.
    fn enter_next_block(&mut self) -> Result<(), RunError> {
        self.data = None;
        while let Some(run) = self.runs.get(self.run) {
            if self.partition < run.partition_count() {
                if self.index_position < run.partition(self.partition)?.index.len() {
                    let data = run.data_block(self.partition, self.index_position, self.through)?;
                    self.enter(data, 0);
                    break;
                }
                self.partition += 1;
            } else {
                self.run += 1;
                self.partition = 0;
            }
            self.index_position = 0;
        }
        Ok(())
    }

    /// Stands at the last entry of the data block before the current position, if there is one.
    fn enter_previous_block(&mut self) -> Result<(), RunError> {
        self.data = None;
        while self.index_position == 0 {
            while self.partition == 0 {
                if self.run == 0 {
                    return Ok(());
                }
                self.run -= 1;
                self.partition = self.runs[self.run].partition_count();
            }
            self.partition -= 1;
            self.index_position = self.runs[self.run].partition(self.partition)?.index.len();
        }
        self.index_position -= 1;
        let data =
            self.runs[self.run].data_block(self.partition, self.index_position, self.through)?;
        let last = data.len() - 1;
        self.enter(data, last);
        Ok(())
    }

    fn enter(&mut self, data: Arc<CachedBlock>, position: usize) {
        self.key.clear();
        self.key.extend_from_slice(data.prefix());
        let prefix_len = self.key.len();
        self.data = Some(data);
        self.read_entry(position, prefix_len);
    }

    fn read_entry(&mut self, position: usize, prefix_len: usize) {
        let data = self.data.as_ref().expect("stands in a block");
        self.position = position;
        self.place = data.place(position);
        self.key.truncate(prefix_len);
        self.key.extend_from_slice(data.suffix(self.place));
    }

    fn current(&self) -> Option<(&[u8], Option<&[u8]>)> {
        let data = self.data.as_ref()?;
        Some((&self.key, data.value(self.place)))
    }

    fn advance(&mut self) -> Result<(), RunError> {
        let Some(data) = &self.data else {
            return Ok(());
        };
        let prefix_len = data.prefix().len();
        match self.direction {
            Direction::Forward if self.position + 1 < data.len() => {
                self.read_entry(self.position + 1, prefix_len)
            }
            Direction::Backward if self.position > 0 => {
                self.read_entry(self.position - 1, prefix_len)
            }
            Direction::Forward => {
                self.index_position += 1;
                return self.enter_next_block();
            }
            Direction::Backward => return self.enter_previous_block(),
        }
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
    sources: Vec<Source>,
    direction: Direction,
    /// The source whose entry is current.
    current: usize,
}

struct Source {
    /// Of the cursor's key, so that most comparisons need not look at it.
    head: u128,
    cursor: Cursor,
}

impl Source {
    fn key(&self) -> &[u8] {
        self.cursor.current().expect("not at its end").0
    }

    fn cmp(&self, other: &Self) -> Ordering {
        self.head
            .cmp(&other.head)
            .then_with(|| self.key().cmp(other.key()))
    }
}

impl Merge {
    /// A merge of these cursors, newest first.
    pub(crate) fn new(cursors: Vec<Cursor>, direction: Direction) -> Self {
        let sources = cursors.into_iter().filter_map(|cursor| {
            let head = head(cursor.current()?.0);
            Some(Source { head, cursor })
        });
        let mut merge = Self {
            sources: sources.collect(),
            direction,
            current: 0,
        };
        merge.select();
        merge
    }

    fn select(&mut self) {
        let before = match self.direction {
            Direction::Forward => Ordering::Less,
            Direction::Backward => Ordering::Greater,
        };
        self.current = 0;
        for other in 1..self.sources.len() {
            if self.sources[other].cmp(&self.sources[self.current]) == before {
                self.current = other;
            }
        }
    }

    /// The current entry; `None` at the end.
    pub(crate) fn current(&self) -> Option<(&[u8], Option<&[u8]>)> {
        self.sources.get(self.current)?.cursor.current()
    }

    /// Goes to the next key. After an error the merge must not be used.
    pub(crate) fn advance(&mut self) -> Result<(), RunError> {
        // What the sources behind have for this key is older.
        for other in (self.current + 1..self.sources.len()).rev() {
            if self.sources[other].cmp(&self.sources[self.current]).is_eq() {
                self.step(other)?;
            }
        }
        self.step(self.current)?;
        self.select();
        Ok(())
    }

    fn step(&mut self, index: usize) -> Result<(), RunError> {
        let source = &mut self.sources[index];
        source.cursor.advance()?;
        match source.cursor.current() {
            Some((key, _)) => source.head = head(key),
            None => {
                self.sources.remove(index);
            }
        }
        Ok(())
    }
}
