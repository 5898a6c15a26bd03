//! From dirty runs to jobs: what leaves a file's runs, and where its chunks end.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::Core;
use super::body::{Body, FileState, InFlight, Job, Pending, Piece, Progress};
use super::buffer::{BUFFER_BYTES_MAX, Buffer};
use crate::extent::{INLINE_BYTES_MAX, scan};

/// Chunks in one job at most, so that its command stays small.
const JOB_CHUNKS_MAX: usize = 512;

/// A short chunk at the end of a file is read again and made longer when at most this many times as much would be
/// read as is new.
const TAIL_READ_FACTOR: u64 = 4;

/// How data are taken out of a file's runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// Everything, at once.
    All,
    /// Everything; a short chunk at the end of the file is made longer, so that logs are cut well.
    AllJoiningTail,
    /// Whole chunks of streams; everything if there are none.
    Certain,
}

impl Core {
    /// Lengths of the chunks of `data`. Unless `at_end`, the uncertain rest is left out.
    pub(super) fn cut(&self, data: &[u8], at_end: bool) -> (Vec<usize>, usize) {
        let mut cuts = Vec::with_capacity(data.len() / (128 << 10) + 1);
        let mut end = 0;
        while let Some(len) = self.chunker.cut(&data[end..], at_end) {
            cuts.push(len);
            end += len;
        }
        (cuts, end)
    }

    /// Takes jobs out of the runs. They are in flight afterwards, and must be given to [`Core::dispatch`] when the
    /// lock has been released.
    pub(super) fn take(&self, file: &FileState, body: &mut Body, take: Take) -> Vec<Arc<Job>> {
        if !body.is_dirty() || body.gone {
            return Vec::new();
        }
        if take == Take::Certain && !body.absorbed {
            let long: Vec<u64> = body
                .runs
                .iter()
                .filter(|(_, run)| run.len() >= self.chunk_bytes_max)
                .map(|(start, _)| *start)
                .collect();
            let jobs: Vec<_> = long
                .into_iter()
                .flat_map(|start| self.take_certain(file, body, start))
                .collect();
            if !jobs.is_empty() {
                return jobs;
            }
        }
        self.take_all(file, body, take == Take::AllJoiningTail)
    }

    /// Takes the whole chunks of the run at `start` out, which is long enough to have some, and leaves the rest.
    pub(super) fn take_certain(
        &self,
        file: &FileState,
        body: &mut Body,
        start: u64,
    ) -> Vec<Arc<Job>> {
        if body.absorbed && start > 0 {
            // What was inline must not leave the tables before it is in an extent.
            return self.take_all(file, body, false);
        }
        let tail = self.tail_to_join(file, body, start, true);
        let run = body.take_run(start).expect("the caller has seen the run");
        let mut pieces = Vec::new();
        let from = tail
            .and_then(|tail| self.join_tail(&tail, start, &run, false, &mut pieces))
            .unwrap_or(0);
        let (cuts, cut_len) = self.cut(&run[from..], false);
        let end = from + cut_len;
        let boundary = start + end as u64;
        if end < run.len() {
            let roomy = self.buffers.held_bytes() < self.dirty_bytes_max() / 2;
            let capacity = if roomy {
                BUFFER_BYTES_MAX
            } else {
                run.len() - end
            };
            let mut rest = self.buffers.take(capacity);
            rest.extend(&run[end..]);
            body.insert_run(boundary, rest);
        }
        body.cut_at = Some(boundary);
        if cut_len > 0 {
            pieces.push(Piece {
                offset: start + from as u64,
                buffer: Arc::new(run),
                start: from,
                cuts,
                len: cut_len,
            });
        }
        if pieces.is_empty() {
            return Vec::new();
        }
        let mut pending = Pending {
            truncate_to: body.pending.truncate_to.take(),
            stamp: std::mem::take(&mut body.pending.stamp),
            resized: false,
        };
        let size = pending
            .truncate_to
            .unwrap_or(u64::MAX)
            .min(body.submitted_size)
            .max(boundary);
        body.submitted_size = size;
        body.submitted_inline = false;
        body.absorbed = false;
        vec![self.fly(body, &mut pending, size, None, pieces)]
    }

    fn take_all(&self, file: &FileState, body: &mut Body, join_tail: bool) -> Vec<Arc<Job>> {
        let size = body.size;
        let kept = body
            .pending
            .truncate_to
            .unwrap_or(u64::MAX)
            .min(body.submitted_size);
        let fits = size > 0 && size <= INLINE_BYTES_MAX && !body.extents_only;
        let inline = fits && (body.submitted_inline || kept == 0);
        let last_run = body.runs.keys().next_back().copied();
        let tail = last_run
            .filter(|_| join_tail && !inline)
            .and_then(|start| self.tail_to_join(file, body, start, false));
        let mut pending = std::mem::take(&mut body.pending);
        let mut jobs = Vec::new();
        if inline {
            let mut content = vec![0; size as usize];
            for (start, run) in body.take_runs() {
                content[start as usize..start as usize + run.len()].copy_from_slice(&run);
            }
            jobs.push(self.fly(body, &mut pending, size, Some(content), Vec::new()));
        } else {
            let mut running = kept;
            let mut pieces = Vec::new();
            let (mut bytes, mut chunks) = (0, 0);
            for piece in self.pieces(body, tail) {
                let full = bytes + piece.len > BUFFER_BYTES_MAX
                    || chunks + piece.cuts.len() > JOB_CHUNKS_MAX;
                if full && !pieces.is_empty() {
                    let pieces = std::mem::take(&mut pieces);
                    jobs.push(self.fly(body, &mut pending, running, None, pieces));
                    (bytes, chunks) = (0, 0);
                }
                bytes += piece.len;
                chunks += piece.cuts.len();
                running = running.max(piece.end());
                pieces.push(piece);
            }
            jobs.push(self.fly(body, &mut pending, size, None, pieces));
        }
        body.submitted_size = size;
        body.submitted_inline = inline;
        body.absorbed = false;
        body.extents_only = false;
        body.cut_at = None;
        jobs
    }

    /// All runs as pieces; runs that touch are cut as one.
    fn pieces(&self, body: &mut Body, tail: Option<Tail>) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut runs = body.take_runs().into_iter().peekable();
        while let Some((mut offset, mut buffer)) = runs.next() {
            while let Some((_, next)) =
                runs.next_if(|(start, _)| *start == offset + buffer.len() as u64)
            {
                let head = next.len().min(buffer.room());
                buffer.extend(&next[..head]);
                if head < next.len() {
                    let (cuts, len) = self.cut(&buffer, false);
                    let mut rest = self.buffers.take(buffer.len() - len + next.len() - head);
                    rest.extend(&buffer[len..]);
                    rest.extend(&next[head..]);
                    pieces.push(Piece {
                        offset,
                        buffer: Arc::new(std::mem::replace(&mut buffer, rest)),
                        start: 0,
                        cuts,
                        len,
                    });
                    offset += len as u64;
                }
            }
            let from = tail
                .as_ref()
                .filter(|tail| tail.end == offset)
                .and_then(|tail| self.join_tail(tail, offset, &buffer, true, &mut pieces))
                .unwrap_or(0);
            let (cuts, len) = self.cut(&buffer[from..], true);
            if len > 0 {
                pieces.push(Piece {
                    offset: offset + from as u64,
                    buffer: Arc::new(buffer),
                    start: from,
                    cuts,
                    len,
                });
            }
        }
        pieces
    }

    /// The short chunk that ends where the run at `start` begins, at the end of the file, if it is worth joining.
    fn tail_to_join(
        &self,
        file: &FileState,
        body: &Body,
        start: u64,
        is_stream: bool,
    ) -> Option<Tail> {
        let new_bytes = body.runs.get(&start)?.len() as u64;
        let at_rest = body.jobs.is_empty()
            && body.pending.truncate_to.is_none()
            && body.committed_size == start
            && !body.committed_inline
            && !body.absorbed
            && body.cut_at != Some(start);
        if start == 0 || !at_rest {
            return None;
        }
        let last = scan(
            &*self.store,
            file.ino,
            &body.identity().file_key,
            start - 1,
            start,
        )
        .next()?
        .ok()?;
        let is_short_chunk = last.end() == start
            && last.len == last.chunk_len
            && (last.len as usize) < self.chunk_bytes_max;
        let is_overwritten = body
            .runs
            .range(..start)
            .next_back()
            .is_some_and(|(before, run)| before + run.len() as u64 > last.offset);
        if is_overwritten {
            return None;
        }
        if !is_short_chunk || (!is_stream && u64::from(last.len) > TAIL_READ_FACTOR * new_bytes) {
            return None;
        }
        let content = self
            .hot
            .get(&self.store, &last.fingerprint, last.chunk_len)
            .ok()?;
        Some(Tail {
            offset: last.offset,
            end: start,
            content: content.to_vec(),
        })
    }

    /// Adds a piece of one chunk that is the tail and the beginning of `run`; returns how many bytes of `run` it has
    /// taken, or none if the tail was a whole chunk.
    fn join_tail(
        &self,
        tail: &Tail,
        start: u64,
        run: &Buffer,
        at_end: bool,
        pieces: &mut Vec<Piece>,
    ) -> Option<usize> {
        debug_assert_eq!(tail.end, start);
        let mut joined = self
            .buffers
            .take((tail.content.len() + run.len()).min(2 * self.chunk_bytes_max));
        joined.extend(&tail.content);
        let added = run.len().min(2 * self.chunk_bytes_max - tail.content.len());
        joined.extend(&run[..added]);
        let len = self.chunker.cut(&joined, at_end && added == run.len())?;
        let taken = len
            .checked_sub(tail.content.len())
            .filter(|taken| *taken > 0)?;
        pieces.push(Piece {
            offset: tail.offset,
            buffer: Arc::new(joined),
            start: 0,
            cuts: vec![len],
            len,
        });
        Some(taken)
    }

    /// Makes a job of the pieces and puts it in flight.
    fn fly(
        &self,
        body: &mut Body,
        pending: &mut Pending,
        size: u64,
        inline: Option<Vec<u8>>,
        pieces: Vec<Piece>,
    ) -> Arc<Job> {
        let bytes = pieces.iter().map(|piece| piece.len as u64).sum::<u64>()
            + inline.as_ref().map_or(0, |bytes| bytes.len() as u64);
        self.flying_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.flying_jobs.fetch_add(1, Ordering::Relaxed);
        let job = Arc::new(Job {
            number: body.jobs_made,
            truncate_to: pending.truncate_to.take(),
            size,
            stamp: Mutex::new(pending.stamp),
            inline,
            pieces,
            bytes,
            flying_bytes: Arc::clone(&self.flying_bytes),
            flying_jobs: Arc::clone(&self.flying_jobs),
        });
        body.jobs_made += 1;
        body.jobs.push_back(InFlight {
            job: Arc::clone(&job),
            progress: Progress::Sealing,
        });
        job
    }
}

/// A short chunk at the end of a file, to be joined with what follows.
struct Tail {
    offset: u64,
    end: u64,
    content: Vec<u8>,
}
