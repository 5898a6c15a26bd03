//! Reading: a plan is made under the file's lock, chunks are opened outside of it.
//!
//! The plan copies what is in memory and names the chunks that show the rest, so it is one state of the file. A chunk
//! that is gone when it is opened was replaced after the plan was made: then a new plan is made, at last one that is
//! carried out with the lock held.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use cfs_format::table::tag;
use cfs_format::{Fingerprint, Ino};
use cfs_store::ReadError;

use super::Core;
use super::body::{Body, Job};
use super::hot::Content;
use super::windows::WINDOW_BYTES;
use crate::error::{FsError, Result};
use crate::extent::{Extent, scan};
use crate::row;
use crate::views::Place;

/// Plans that are carried out without the lock before one is carried out with it.
const UNLOCKED_PLANS: usize = 3;

/// Sequential readers of one file that are told apart.
const READERS: usize = 4;

/// A read this far from where a reader was expected still belongs to it, bytes: requests overtake each other.
const READER_SLACK_BYTES: u64 = 1 << 20;

/// Bytes read ahead for a reader that has just begun.
const AHEAD_BYTES_FIRST: u64 = 512 << 10;

/// More is asked for when so many bytes have been read, or half of what is read ahead: often enough that the device is never
/// without a read, seldom enough that a read is long.
const AHEAD_STEP_BYTES: u64 = 1 << 20;

/// Chunks that a reader has passed and not let go of, at most.
const PASSED_MAX: usize = 64;

/// Pieces of a [`Parts`] at most; what lies in more is copied together.
pub const PARTS_MAX: usize = 30;

/// Bytes of chunks that a [`Parts`] holds at most, beside twice its own length: that of the longest chunks at both ends.
const PARTS_HELD_BYTES: u64 = 2 << 20;

/// A range of a file.
type Span = (u64, u64);

/// What was read of a file, as parts of opened chunks, one after the other. They stay in memory as long as this does.
pub struct Parts {
    pieces: Vec<(Content, Range<usize>)>,
}

impl Parts {
    /// The bytes, in at most [`PARTS_MAX`] pieces.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let pieces = self.pieces.iter();
        pieces.map(|(content, range)| &content[range.clone()])
    }
}

/// What became of a read.
pub(crate) struct Done {
    /// Where the content lies, if it was not copied.
    pub parts: Option<Parts>,
    /// The access time may have to change.
    pub touch: bool,
}

/// A part of a chunk that belongs into the output.
struct Fetch {
    at: usize,
    len: usize,
    chunk_offset: usize,
    chunk_len: u32,
    fingerprint: Fingerprint,
}

impl Fetch {
    /// The part of the chunk.
    fn within(&self) -> Range<usize> {
        self.chunk_offset..self.chunk_offset + self.len
    }
}

/// Readers of a file that go through it in order.
#[derive(Default)]
pub(crate) struct Readers {
    readers: [Reader; READERS],
    turn: u64,
}

#[derive(Default)]
struct Reader {
    /// Where the next read is expected; 0 when this one is free.
    next: u64,
    /// Read ahead up to here.
    ahead: u64,
    ahead_bytes: u64,
    used_at: u64,
    /// Chunks that it has passed, and where in the file they end, in about this order.
    passed: VecDeque<(u64, Fingerprint)>,
}

/// What a read means for the chunks around it.
#[derive(Debug, PartialEq, Eq)]
struct Noted {
    /// Which reader it is of.
    reader: usize,
    /// A range to read ahead.
    ahead: Option<Span>,
}

impl Readers {
    /// Notes a read of `[from, to)`. None when no reader in order was expected there.
    fn note(&mut self, (from, to): Span, ahead_bytes_max: u64) -> Option<Noted> {
        self.turn += 1;
        let turn = self.turn;
        let expected = |reader: &Reader| {
            reader.next > 0 && from.abs_diff(reader.next) <= READER_SLACK_BYTES && to > reader.next
        };
        let Some(index) = self.readers.iter().position(expected) else {
            let overtaken = self
                .readers
                .iter()
                .any(|reader| from < reader.next && to + READER_SLACK_BYTES > reader.next);
            if !overtaken {
                let oldest = self
                    .readers
                    .iter_mut()
                    .min_by_key(|reader| reader.used_at)?;
                *oldest = Reader {
                    next: to,
                    ahead: to,
                    used_at: turn,
                    ..Reader::default()
                };
            }
            return None;
        };
        let reader = &mut self.readers[index];
        reader.used_at = turn;
        reader.next = to;
        reader.ahead_bytes = (reader.ahead_bytes * 2)
            .max(AHEAD_BYTES_FIRST)
            .min(ahead_bytes_max);
        let target = to + reader.ahead_bytes;
        let start = reader.ahead.max(to);
        let step = (reader.ahead_bytes / 2).min(AHEAD_STEP_BYTES);
        let worth_it = reader.ahead_bytes > 0 && target.saturating_sub(start) >= step;
        if worth_it {
            reader.ahead = target;
        }
        Some(Noted {
            reader: index,
            ahead: worth_it.then_some((start, target)),
        })
    }

    /// A reader in order has read `fetches`, the first of which begins at `from`. Returns chunks that it has left so
    /// far behind that no request overtaken by others will ask for them.
    fn pass(&mut self, index: usize, from: u64, fetches: &[Fetch]) -> Vec<Fingerprint> {
        let reader = &mut self.readers[index];
        for fetch in fetches {
            if fetch.chunk_offset + fetch.len == fetch.chunk_len as usize {
                let end = from + (fetch.at + fetch.len) as u64;
                reader.passed.push_back((end, fetch.fingerprint));
            }
        }
        let mut left = Vec::new();
        while let Some((end, fingerprint)) = reader.passed.front() {
            let near = end + READER_SLACK_BYTES > reader.next;
            if near && reader.passed.len() <= PASSED_MAX {
                break;
            }
            left.push(*fingerprint);
            reader.passed.pop_front();
        }
        left
    }
}

impl Core {
    /// Replaces `out` with up to `len` bytes of the file from `offset`; fewer at its end. Where `takes_parts` is set and
    /// opened chunks alone show them, these are returned instead, and `out` is left as it is.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::IsDirectory`], [`FsError::Invalid`] for what is no regular file;
    /// [`FsError::Io`]. The content of `out` is then unspecified.
    pub(crate) fn read(
        &self,
        ino: Ino,
        offset: u64,
        len: usize,
        takes_parts: bool,
        out: &mut Vec<u8>,
    ) -> Result<Done> {
        let file = self.file(ino);
        for attempt in 0.. {
            let mut body = file.lock();
            self.load(&file, &mut body)?;
            let end = offset.saturating_add(len as u64).min(body.size);
            let now_ns = self.host.now_ns();
            let touch = now_ns.saturating_sub(body.atime_checked_ns) >= self.atime_interval_ns;
            if touch {
                body.atime_checked_ns = now_ns;
            }
            if offset >= end {
                out.clear();
                return Ok(Done { parts: None, touch });
            }
            let as_parts = match takes_parts {
                true => self.plan_parts(&mut body, (offset, end))?,
                false => None,
            };
            let is_copied = as_parts.is_none();
            let fetches = match as_parts {
                Some(fetches) => fetches,
                None => {
                    out.resize((end - offset) as usize, 0);
                    self.plan(&mut body, (offset, end), out)?
                }
            };
            let mut ahead = Vec::new();
            let mut left = Vec::new();
            let noted = body.readers.note((offset, end), self.readahead_bytes);
            let in_order = noted.is_some();
            if let Some(noted) = noted {
                if let Some((from, to)) = noted.ahead {
                    ahead = self.extents_of(&mut body, from, to)?;
                }
                if body.size >= self.stream_bytes_min {
                    left = body.readers.pass(noted.reader, offset, &fetches);
                }
            }
            let is_last = attempt == UNLOCKED_PLANS;
            let locked = is_last.then_some(body);
            self.hot.open_ahead(
                ahead
                    .iter()
                    .map(|extent| (extent.fingerprint, extent.chunk_len)),
            );
            // Each thread that does has a segment's worth of memory for it: those of a mount are few. A small area would lose
            // what is opened before it is read.
            let is_kept = end - offset <= self.stream_bytes_min;
            if in_order && takes_parts && is_kept {
                // Whose turn has come before it was opened ahead is opened here, all with one read of the device.
                let wanted = fetches.iter();
                let wanted = wanted.map(|fetch| (fetch.fingerprint, fetch.chunk_len));
                self.hot.open_missing(&self.store, wanted);
            }
            let result = match is_copied {
                true => self.fetch(&fetches, out).map(|()| None),
                false => self.fetch_parts(&fetches).map(Some),
            };
            drop(locked);
            left.iter()
                .for_each(|fingerprint| self.hot.let_go(fingerprint));
            match result {
                Err(ReadError::Missing { .. }) if !is_last => {}
                result => {
                    let parts = result?;
                    return Ok(Done { parts, touch });
                }
            }
        }
        unreachable!("the last plan returns")
    }

    fn fetch(&self, fetches: &[Fetch], out: &mut [u8]) -> std::result::Result<(), ReadError> {
        self.each_content(fetches, |fetch, content| {
            out[fetch.at..fetch.at + fetch.len].copy_from_slice(&content[fetch.within()]);
        })
    }

    fn fetch_parts(&self, fetches: &[Fetch]) -> std::result::Result<Parts, ReadError> {
        let mut pieces = Vec::with_capacity(fetches.len());
        self.each_content(fetches, |fetch, content| {
            pieces.push((content, fetch.within()));
        })?;
        Ok(Parts { pieces })
    }

    fn each_content(
        &self,
        fetches: &[Fetch],
        mut each: impl FnMut(&Fetch, Content),
    ) -> std::result::Result<(), ReadError> {
        // The others are opened by other threads while this one opens the first.
        let others = fetches.iter().skip(1);
        self.hot
            .open_ahead(others.map(|fetch| (fetch.fingerprint, fetch.chunk_len)));
        for fetch in fetches {
            let content = self
                .hot
                .get(&self.store, &fetch.fingerprint, fetch.chunk_len)?;
            each(fetch, content);
        }
        Ok(())
    }

    /// What to fetch, where committed chunks alone show the span, in not too many pieces. The span ends at or before
    /// the size.
    fn plan_parts(&self, body: &mut Body, span: Span) -> Result<Option<Vec<Fetch>>> {
        let has_changes =
            !body.runs.is_empty() || body.pending.truncate_to.is_some() || !body.jobs.is_empty();
        if has_changes || body.committed_inline || span.1 > body.committed_size {
            return Ok(None);
        }
        let mut fetches = Vec::new();
        let mut has_holes = false;
        self.plan_gap(body, span.0, span, &mut fetches, |hole| {
            has_holes |= hole.0 < hole.1;
        })?;
        // What is held until the kernel has it is in no budget.
        let held: u64 = fetches.iter().map(|fetch| u64::from(fetch.chunk_len)).sum();
        let is_little = held <= 2 * (span.1 - span.0) + PARTS_HELD_BYTES;
        Ok((!has_holes && is_little && fetches.len() <= PARTS_MAX).then_some(fetches))
    }

    /// Fills `out` with what is in memory and with the zeros of holes, and says what to fetch for the rest. The span
    /// ends at or before the size.
    fn plan(&self, body: &mut Body, span: Span, out: &mut [u8]) -> Result<Vec<Fetch>> {
        let start = span.0;
        let mut gaps = vec![span];
        if !body.runs.is_empty() {
            for (offset, run) in runs_within(body, span) {
                lay(&mut gaps, start, out, offset, run);
            }
        }
        if let Some(cut) = body.pending.truncate_to {
            cut_gaps(&mut gaps, start, out, cut);
        }
        for flight in body.jobs.iter().rev() {
            lay_job(&mut gaps, start, out, &flight.job);
        }
        cut_gaps(&mut gaps, start, out, body.committed_size);
        if gaps.is_empty() {
            return Ok(Vec::new());
        }
        if body.committed_inline {
            // Missing when a job that is just being committed has moved it; then that job shows all there is.
            let place = body.identity().place;
            let content = self.views.get(place, tag::INLINE, &[])?;
            let content = content.map(row::content).transpose()?;
            lay(&mut gaps, start, out, 0, content.as_deref().unwrap_or(&[]));
            cut_gaps(&mut gaps, start, out, 0);
            return Ok(Vec::new());
        }
        let mut fetches = Vec::new();
        for gap in gaps {
            self.plan_gap(body, start, gap, &mut fetches, |hole| {
                zero(start, out, hole);
            })?;
        }
        Ok(fetches)
    }

    /// Adds what to fetch for a part of a read from `start` on that committed extents show, and tells what lies in holes,
    /// which may be empty.
    fn plan_gap(
        &self,
        body: &mut Body,
        start: u64,
        (from, to): Span,
        fetches: &mut Vec<Fetch>,
        mut hole: impl FnMut(Span),
    ) -> Result<()> {
        let mut filled_to = from;
        self.each_extent(body, from, to, |extent| {
            let Some(part) = extent.part(from, to) else {
                return;
            };
            hole((filled_to, part.offset));
            filled_to = part.end();
            fetches.push(Fetch {
                at: (part.offset - start) as usize,
                len: part.len as usize,
                chunk_offset: part.chunk_offset as usize,
                chunk_len: part.chunk_len,
                fingerprint: part.fingerprint,
            });
        })?;
        hole((filled_to, to));
        Ok(())
    }

    /// Calls `each` with the committed extents that show a part of `[from, to)`, in order.
    pub(super) fn each_extent(
        &self,
        body: &mut Body,
        from: u64,
        to: u64,
        mut each: impl FnMut(&Extent),
    ) -> Result<()> {
        let mut at = from;
        while at < to {
            let index = at / WINDOW_BYTES;
            let window_end = (index + 1) * WINDOW_BYTES;
            let extents = self.window(body, index)?;
            let first = extents.partition_point(|extent| extent.end() <= at);
            for extent in extents[first..]
                .iter()
                .take_while(|extent| extent.offset < to)
            {
                // One that reaches over a window's edge is in both.
                if extent.end() > at {
                    each(extent);
                    at = extent.end();
                }
            }
            at = at.max(window_end);
        }
        Ok(())
    }

    /// The extents of a window of the file.
    pub(super) fn window(&self, body: &mut Body, index: u64) -> Result<Arc<[Extent]>> {
        let Body {
            windows, identity, ..
        } = body;
        let identity = identity.as_ref().expect("loaded first");
        let Place { ino, at } = identity.place;
        let rows = self.views.extents(at);
        windows.get(index, |from, to| {
            scan(&rows, ino, &identity.file_key, from, to).collect()
        })
    }

    /// The committed extents that show a part of `[from, to)` within the file.
    fn extents_of(&self, body: &mut Body, from: u64, to: u64) -> Result<Vec<Extent>> {
        let mut extents = Vec::new();
        if !body.committed_inline {
            let to = to.min(body.committed_size);
            self.each_extent(body, from, to, |extent| extents.push(*extent))?;
        }
        Ok(extents)
    }

    /// The whole content of a file that is small.
    pub(super) fn read_small(&self, body: &mut Body) -> Result<Vec<u8>> {
        let size = body.size;
        let mut content = vec![0; size as usize];
        let fetches = self.plan(body, (0, size), &mut content)?;
        self.fetch(&fetches, &mut content).map_err(FsError::from)?;
        Ok(content)
    }
}

fn runs_within(body: &Body, (from, to): Span) -> impl Iterator<Item = (u64, &[u8])> {
    let first = body
        .runs
        .range(..=from)
        .next_back()
        .map_or(from, |(start, _)| *start);
    body.runs
        .range(first..to)
        .map(|(start, run)| (*start, &**run))
}

fn lay_job(gaps: &mut Vec<Span>, start: u64, out: &mut [u8], job: &Job) {
    if let Some(content) = &job.inline {
        lay(gaps, start, out, 0, content);
        cut_gaps(gaps, start, out, 0);
        return;
    }
    let (Some(first), Some(last)) = (gaps.first().copied(), gaps.last().copied()) else {
        return;
    };
    let from = job.pieces.partition_point(|piece| piece.end() <= first.0);
    for piece in job.pieces[from..]
        .iter()
        .take_while(|piece| piece.offset < last.1)
    {
        lay(gaps, start, out, piece.offset, piece.bytes());
    }
    if let Some(cut) = job.truncate_to {
        cut_gaps(gaps, start, out, cut);
    }
}

/// Copies `data`, which is at `offset` of the file, into the gaps, and takes from the gaps what has been copied.
/// `start` is the file offset of `out`.
fn lay(gaps: &mut Vec<Span>, start: u64, out: &mut [u8], offset: u64, data: &[u8]) {
    let end = offset + data.len() as u64;
    let touched = |gap: &Span| gap.0 < end && offset < gap.1;
    if !gaps.iter().any(touched) {
        return;
    }
    let mut left = Vec::with_capacity(gaps.len() + 1);
    for gap in gaps.iter() {
        if !touched(gap) {
            left.push(*gap);
            continue;
        }
        let (from, to) = (gap.0.max(offset), gap.1.min(end));
        out[(from - start) as usize..(to - start) as usize]
            .copy_from_slice(&data[(from - offset) as usize..(to - offset) as usize]);
        left.extend(
            [(gap.0, from), (to, gap.1)]
                .into_iter()
                .filter(|gap| gap.0 < gap.1),
        );
    }
    *gaps = left;
}

/// What is at or beyond `cut` in the gaps is a hole.
fn cut_gaps(gaps: &mut Vec<Span>, start: u64, out: &mut [u8], cut: u64) {
    while let Some(gap) = gaps.last_mut() {
        if gap.1 <= cut {
            return;
        }
        zero(start, out, (gap.0.max(cut), gap.1));
        if gap.0 < cut {
            gap.1 = cut;
            return;
        }
        gaps.pop();
    }
}

fn zero(start: u64, out: &mut [u8], (from, to): Span) {
    if from < to {
        out[(from - start) as usize..(to - start) as usize].fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_fill_gaps_once() {
        let mut out = vec![9; 20];
        let mut gaps = vec![(100, 120)];
        lay(&mut gaps, 100, &mut out, 105, &[1; 5]);
        lay(&mut gaps, 100, &mut out, 90, &[2; 17]);
        assert_eq!(gaps, [(110, 120)]);
        lay(&mut gaps, 100, &mut out, 112, &[3; 2]);
        cut_gaps(&mut gaps, 100, &mut out, 115);
        assert_eq!(gaps, [(110, 112), (114, 115)]);
        cut_gaps(&mut gaps, 100, &mut out, 0);
        assert!(gaps.is_empty());
        assert_eq!(
            out,
            [2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 0, 0, 3, 3, 0, 0, 0, 0, 0, 0]
        );
    }

    fn ahead(readers: &mut Readers, from: u64, len: u64, max: u64) -> Option<Span> {
        readers.note((from, from + len), max)?.ahead
    }

    #[test]
    fn sequential_readers_are_found() {
        let mut readers = Readers::default();
        let max = 4 << 20;
        assert_eq!(readers.note((0, 4096), max), None);
        let first = ahead(&mut readers, 4096, 4096, max);
        assert_eq!(first, Some((8192, 8192 + AHEAD_BYTES_FIRST)));
        assert_eq!(readers.note((1 << 30, (1 << 30) + 4096), max), None);
        let mut ahead_to = first.unwrap().1;
        for at in (8192..8 << 20).step_by(128 << 10) {
            if let Some((from, to)) = ahead(&mut readers, at, 128 << 10, max) {
                assert_eq!(from, ahead_to);
                ahead_to = to;
            }
            assert!(ahead_to >= at + (128 << 10));
        }
        for at in [5 << 30, 7 << 30, 6 << 30, 9 << 30] {
            assert_eq!(readers.note((at, at + 4096), max), None);
        }
    }

    #[test]
    fn without_readahead_none_is_asked_for() {
        let mut readers = Readers::default();
        for at in (0..1 << 20).step_by(4096) {
            assert_eq!(ahead(&mut readers, at, 4096, 0), None);
        }
    }

    #[test]
    fn chunks_are_let_go_of_far_behind() {
        const LEN: u64 = 128 << 10;
        let mut readers = Readers::default();
        let mut left = Vec::new();
        for index in 0..100_u64 {
            let from = index * LEN;
            let Some(noted) = readers.note((from, from + LEN), 0) else {
                continue;
            };
            let fetch = Fetch {
                at: 0,
                len: LEN as usize,
                chunk_offset: 0,
                chunk_len: LEN as u32,
                fingerprint: Fingerprint([index as u8; 32]),
            };
            left.extend(readers.pass(noted.reader, from, &[fetch]));
            let slack = (READER_SLACK_BYTES / LEN) as usize;
            assert_eq!(left.len(), (index as usize).saturating_sub(slack));
        }
        let expected: Vec<_> = (1..)
            .map(|index| Fingerprint([index; 32]))
            .take(left.len())
            .collect();
        assert_eq!(left, expected);
    }
}
