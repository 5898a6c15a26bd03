//! The log: commands in the order in which they were applied, in batches, in a chain of segments.
//!
//! Invariants:
//! - LSNs are dense; a batch starts at the LSN after the one that the batch before it ended with.
//! - Before a batch is written, every chunk that its commands refer to has been written (see `Lanes::write_out`);
//!   both are flushed together. A batch says which LSN was durable when it was written; the commands after that one
//!   are believed on replay only while their chunks verify.
//! - Each journal segment names the one that follows it, which is taken when this one is started.
//! - A batch is followed by the XOR of its blocks, and a segment has its header twice: one block may be lost of each.
//!   Both are written with what they protect, in one write.
//! - An empty batch says that the last commands are durable when nothing comes any more, and at once after a flush that
//!   has not followed another closely or has brought many; damage to their chunks is then known from a write that was never finished.
//!
//! Group commit: the first one who wants durability writes and flushes for all who have come by then; who comes later
//! waits for that flush, or makes the next one. Those who wait do so apart from the writer's lock, so that who has what
//! it wanted does not wait behind a flush for others.
//! How the log is read back is in `log_reader`.

use std::sync::Arc;
use std::time::Duration;

use cfs_device::AlignedBuf;
use cfs_format::journal::{BATCH_MAGIC, BATCHES_OFFSET, BatchHeader, RECORD_PREFIX_BYTES};
use cfs_format::segment::Stream;
use cfs_format::superblock::JournalPosition;
use cfs_format::{BLOCK_BYTES, Lsn, SEGMENT_BYTES, SegmentId, SegmentSeq, Timestamp};
use cfs_seal::parity::xor_into;
use zerocopy::IntoBytes;

use crate::error::WriteError;
use crate::lanes::Lanes;
use crate::pool::{Pool, block_ceil};
use crate::space::Purpose;
use crate::sync::{AtomicU64, Condvar, Mutex, Ordering};

/// Longest command, bytes.
pub const COMMAND_BYTES_MAX: usize = 1 << 20;

/// Most payload bytes in one batch, unless a single command is longer.
const BATCH_PAYLOAD_BYTES: usize = 512 << 10;

/// After a flush that comes sooner after the one before it, and brings no more commands, nothing is written to say that it
/// was done: where one flush follows another, the next batch says so.
const CLOSE_FLUSH_NS: u64 = 3_000_000;
const SMALL_FLUSH_COMMANDS: u64 = 8;

const TAG_BYTES: usize = 16;
/// Longest batch, bytes: a single command that is as long as they may be; and the parity.
pub(crate) const BATCH_BYTES_MAX: u32 =
    batch_content_bytes(RECORD_PREFIX_BYTES + COMMAND_BYTES_MAX) + BLOCK_BYTES;

/// Bytes of the blocks that a batch with this payload has without its parity.
const fn batch_content_bytes(payload_len: usize) -> u32 {
    block_ceil((size_of::<BatchHeader>() + payload_len + TAG_BYTES) as u32)
}

/// Commands that have been applied and not yet written.
struct Queue {
    /// Encoded records.
    bytes: Vec<u8>,
    /// End of each record in `bytes`.
    ends: Vec<usize>,
    next_lsn: u64,
    /// Whether [`Journal::wait_for_commands`] waits for the first one.
    awaited: bool,
    /// Whether who waits is to return all the same.
    called: bool,
}

struct Writer {
    segment: SegmentId,
    seq: SegmentSeq,
    offset: u32,
    /// Taken for the time when this segment is full.
    follower: SegmentId,
    follower_seq: SegmentSeq,
    written_lsn: u64,
    /// When the last flush was done that somebody waited for.
    flushed_at_ns: u64,
    buffer: AlignedBuf,
}

pub(crate) struct Journal {
    pool: Arc<Pool>,
    lanes: Arc<Lanes>,
    queue: Mutex<Queue>,
    /// The first command of an awaited queue has come.
    arrival: Condvar,
    writer: Mutex<Writer>,
    /// Somebody makes a flush that others wait for.
    is_flushing: Mutex<bool>,
    /// That flush has ended.
    flush_end: Condvar,
    durable_lsn: AtomicU64,
    /// What a reader of the log would take for durable.
    marked_lsn: AtomicU64,
    /// The newest command when the last look was taken whether any come.
    idle_lsn: AtomicU64,
    /// Bytes written since the last checkpoint's position.
    bytes_since_checkpoint: AtomicU64,
}

impl Journal {
    /// Starts a new chain; the first command will have `next_lsn`. The caller makes the superblock point to
    /// [`Journal::position`].
    pub fn start(pool: Arc<Pool>, lanes: Arc<Lanes>, next_lsn: u64) -> Result<Self, WriteError> {
        let (segment, seq) = pool.take_segment(Stream::Journal, Purpose::Upkeep)?;
        let (follower, follower_seq) = pool.take_segment(Stream::Journal, Purpose::Upkeep)?;
        overwrite(&pool, segment)?;
        overwrite(&pool, follower)?;
        let mut writer = Writer {
            segment,
            seq,
            offset: BATCHES_OFFSET,
            follower,
            follower_seq,
            written_lsn: next_lsn - 1,
            flushed_at_ns: pool.host.now_ns(),
            buffer: AlignedBuf::with_capacity(BLOCK_BYTES as usize),
        };
        writer.write_header(&pool, next_lsn)?;
        Ok(Self {
            pool,
            lanes,
            queue: Mutex::new(Queue {
                bytes: Vec::new(),
                ends: Vec::new(),
                next_lsn,
                awaited: false,
                called: false,
            }),
            arrival: Condvar::new(),
            writer: Mutex::new(writer),
            is_flushing: Mutex::new(false),
            flush_end: Condvar::new(),
            durable_lsn: AtomicU64::new(next_lsn - 1),
            marked_lsn: AtomicU64::new(next_lsn - 1),
            idle_lsn: AtomicU64::new(0),
            bytes_since_checkpoint: AtomicU64::new(0),
        })
    }

    /// Appends a command to the queue. The caller holds the store's writer lock, which makes the order of LSNs that
    /// of application.
    pub fn enqueue(&self, timestamp: Timestamp, kind: u8, command: &[u8]) -> Lsn {
        assert!(
            command.len() <= COMMAND_BYTES_MAX,
            "commands are bounded where they are made"
        );
        let mut queue = self.queue.lock();
        queue.bytes.extend_from_slice(&timestamp.0.to_le_bytes());
        queue.bytes.push(kind);
        queue
            .bytes
            .extend_from_slice(&(command.len() as u32).to_le_bytes());
        queue.bytes.extend_from_slice(command);
        let end = queue.bytes.len();
        queue.ends.push(end);
        let lsn = queue.next_lsn;
        queue.next_lsn += 1;
        if std::mem::take(&mut queue.awaited) {
            self.arrival.notify_all();
        }
        Lsn(lsn)
    }

    /// Returns when commands are queued, or after `patience`, or when [`Journal::end_wait`] has been called.
    pub fn wait_for_commands(&self, patience: Duration) {
        let mut queue = self.queue.lock();
        if queue.bytes.is_empty() && !queue.called {
            queue.awaited = true;
            self.arrival.wait_for(&mut queue, patience);
        }
        queue.called = false;
    }

    /// Lets who waits for commands, or does so next, go.
    pub fn end_wait(&self) {
        self.queue.lock().called = true;
        self.arrival.notify_all();
    }

    /// The newest command's LSN.
    pub fn last_lsn(&self) -> Lsn {
        Lsn(self.queue.lock().next_lsn - 1)
    }

    /// Everything up to here survives a crash.
    pub fn durable_lsn(&self) -> Lsn {
        Lsn(self.durable_lsn.load(Ordering::Acquire))
    }

    /// Bytes of commands that are queued and not written.
    pub fn queued_bytes(&self) -> usize {
        self.queue.lock().bytes.len()
    }

    /// Bytes that a replay from the last checkpoint would read.
    pub fn replay_bytes(&self) -> u64 {
        self.bytes_since_checkpoint.load(Ordering::Relaxed)
    }

    /// Returns when `lsn` is durable.
    ///
    /// # Errors
    /// The pool is, or goes, read-only: whether the commands are durable is then unknown.
    pub fn sync_to(&self, lsn: Lsn) -> Result<(), WriteError> {
        if self.durable_lsn() >= lsn {
            return Ok(());
        }
        let mut is_flushing = self.is_flushing.lock();
        while *is_flushing {
            if self.durable_lsn() >= lsn {
                return Ok(());
            }
            self.flush_end.wait(&mut is_flushing);
        }
        *is_flushing = true;
        drop(is_flushing);
        let flushed = self.flush_to(lsn);
        *self.is_flushing.lock() = false;
        self.flush_end.notify_all();
        flushed
    }

    /// Writes and flushes what is queued, unless `lsn` has become durable.
    fn flush_to(&self, lsn: Lsn) -> Result<(), WriteError> {
        let mut writer = self.writer.lock();
        if self.durable_lsn() >= lsn {
            return Ok(());
        }
        let written = self.write_queue(&mut writer)?;
        #[cfg(feature = "planted-bugs")]
        if cfs_format::planted::has(cfs_format::planted::Bug::MissingFlush) {
            self.durable_lsn.store(written, Ordering::Release);
            return Ok(());
        }
        self.pool.flush()?;
        #[cfg(feature = "planted-bugs")]
        let written = match cfs_format::planted::has(cfs_format::planted::Bug::NewestAcknowledged) {
            true => self.last_lsn().0,
            false => written,
        };
        let before = self.durable_lsn.swap(written, Ordering::AcqRel);
        self.mark_flushed(&mut writer, Lsn(before), Lsn(written));
        Ok(())
    }

    /// Says in the log at once that what was flushed is durable, unless the next batch soon will. Without room in the
    /// segment [`Journal::mark_durable`] does it later.
    fn mark_flushed(&self, writer: &mut Writer, before: Lsn, durable: Lsn) {
        let now = self.pool.host.now_ns();
        let last = std::mem::replace(&mut writer.flushed_at_ns, now);
        let is_close = now.saturating_sub(last) < CLOSE_FLUSH_NS;
        let is_small = durable.0 - before.0 <= SMALL_FLUSH_COMMANDS;
        let has_room = writer.offset + batch_content_bytes(0) + BLOCK_BYTES <= SEGMENT_BYTES;
        if !(is_close && is_small) && has_room && self.queued_bytes() == 0 {
            // Who waits has what was asked for; a failed write ends those that come.
            let _ = self.write_batch(writer, &[], 0, durable.0);
        }
    }

    /// Writes what is queued without flushing the device: it then survives the death of the process, not yet that of
    /// the machine.
    pub fn write_out(&self) -> Result<(), WriteError> {
        if self.queued_bytes() > 0 {
            self.write_queue(&mut self.writer.lock())?;
        }
        Ok(())
    }

    /// Writes what is queued and tells where the log goes on, and how many bytes a replay would read up to there. No
    /// command may be enqueued meanwhile (the caller holds the store's writer lock).
    pub fn cut(&self) -> Result<(JournalPosition, u64), WriteError> {
        let mut writer = self.writer.lock();
        let written = self.write_queue(&mut writer)?;
        Ok((writer.position(written + 1), self.replay_bytes()))
    }

    /// A checkpoint is durable at a position before which a replay would have read `bytes`; it holds everything up to
    /// `lsn`.
    pub fn note_checkpoint(&self, lsn: Lsn, bytes: u64) {
        self.durable_lsn.fetch_max(lsn.0, Ordering::AcqRel);
        self.marked_lsn.fetch_max(lsn.0, Ordering::Relaxed);
        self.bytes_since_checkpoint
            .fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Where the log goes on, when nothing is queued.
    pub fn position(&self) -> JournalPosition {
        let writer = self.writer.lock();
        writer.position(writer.written_lsn + 1)
    }

    /// The journal segments that are in use from the current one on.
    pub fn current_segments(&self) -> [SegmentId; 2] {
        let writer = self.writer.lock();
        [writer.segment, writer.follower]
    }

    /// Leaves the current segment, of which something can no longer be read. The caller makes a checkpoint, after which
    /// nothing of it is needed.
    ///
    /// # Errors
    /// There is no room for another segment, and nothing has changed; or the pool goes read-only.
    pub fn leave_segment(&self) -> Result<(), WriteError> {
        let mut writer = self.writer.lock();
        let (follower, seq) = self.pool.take_segment(Stream::Journal, Purpose::Upkeep)?;
        writer.go_on(&self.pool, follower, seq)
    }

    /// Writes an empty batch once no command has come between two calls and all of them are durable, so that a reader
    /// of the log knows the latter.
    ///
    /// # Errors
    /// The pool goes read-only.
    pub fn mark_durable(&self) -> Result<(), WriteError> {
        let last = self.last_lsn().0;
        if self.idle_lsn.swap(last, Ordering::Relaxed) != last
            || self.marked_lsn.load(Ordering::Relaxed) >= last
            || self.durable_lsn().0 < last
        {
            return Ok(());
        }
        let mut writer = self.writer.lock();
        if writer.written_lsn != last {
            return Ok(());
        }
        self.write_batch(&mut writer, &[], 0, last)
    }

    fn write_batch(
        &self,
        writer: &mut Writer,
        payload: &[u8],
        record_count: u32,
        durable_lsn: u64,
    ) -> Result<(), WriteError> {
        let written = writer.write_batch(&self.pool, payload, record_count, durable_lsn)?;
        self.bytes_since_checkpoint
            .fetch_add(u64::from(written), Ordering::Relaxed);
        self.marked_lsn.fetch_max(durable_lsn, Ordering::Relaxed);
        Ok(())
    }

    fn write_queue(&self, writer: &mut Writer) -> Result<u64, WriteError> {
        #[cfg(feature = "planted-bugs")]
        let lanes_first = cfs_format::planted::has(cfs_format::planted::Bug::LanesBeforeQueue);
        #[cfg(not(feature = "planted-bugs"))]
        let lanes_first = false;
        if lanes_first {
            self.lanes.write_out()?;
        }
        let (bytes, ends) = {
            let mut queue = self.queue.lock();
            (
                std::mem::take(&mut queue.bytes),
                std::mem::take(&mut queue.ends),
            )
        };
        // After the queue was taken: the chunks of its commands are in the lanes by now.
        if !lanes_first {
            self.lanes.write_out()?;
        }
        let durable = self.durable_lsn().0;
        let mut start = 0;
        let mut index = 0;
        while index < ends.len() {
            let mut count = 1;
            while index + count < ends.len() && ends[index + count] - start <= BATCH_PAYLOAD_BYTES {
                count += 1;
            }
            let end = ends[index + count - 1];
            self.write_batch(writer, &bytes[start..end], count as u32, durable)?;
            start = end;
            index += count;
        }
        Ok(writer.written_lsn)
    }
}

impl Writer {
    fn position(&self, lsn: u64) -> JournalPosition {
        JournalPosition {
            segment: self.segment.0.into(),
            offset: self.offset.into(),
            seq: self.seq.0.into(),
            lsn: lsn.into(),
        }
    }

    fn write_header(&mut self, pool: &Pool, first_lsn: u64) -> Result<(), WriteError> {
        let header = pool.segment_header(
            Stream::Journal,
            self.segment,
            self.seq,
            self.follower,
            first_lsn,
        );
        self.buffer.clear();
        for _ in 0..BATCHES_OFFSET / BLOCK_BYTES {
            self.buffer.extend_from_slice(&header);
            self.buffer.pad_to_multiple(BLOCK_BYTES as usize);
        }
        pool.write(self.segment, 0, self.buffer.as_slice())
    }

    fn write_batch(
        &mut self,
        pool: &Pool,
        payload: &[u8],
        record_count: u32,
        durable_lsn: u64,
    ) -> Result<u32, WriteError> {
        let content = batch_content_bytes(payload.len());
        let len = content + BLOCK_BYTES;
        assert!(
            len <= SEGMENT_BYTES - BATCHES_OFFSET,
            "a batch fits a segment"
        );
        if self.offset + len > SEGMENT_BYTES {
            self.next_segment(pool)?;
        }
        let header = BatchHeader {
            magic: BATCH_MAGIC.into(),
            payload_len: (payload.len() as u32).into(),
            first_lsn: (self.written_lsn + 1).into(),
            durable_lsn: durable_lsn.into(),
            record_count: record_count.into(),
            reserved: 0.into(),
            seq: self.seq.0.into(),
        };
        let mut batch = Vec::with_capacity(len as usize);
        batch.extend_from_slice(header.as_bytes());
        batch.extend_from_slice(payload);
        pool.ciphers.journal.seal_in_place(
            self.seq,
            self.offset,
            header.as_bytes(),
            &mut batch,
            size_of::<BatchHeader>(),
        );
        self.buffer.clear();
        self.buffer.extend_from_slice(&batch);
        self.buffer.resize(len as usize);
        let (blocks, parity) = self.buffer.as_mut_slice().split_at_mut(content as usize);
        for block in blocks.chunks_exact(BLOCK_BYTES as usize) {
            xor_into(parity, block);
        }
        pool.write(self.segment, self.offset, self.buffer.as_slice())?;
        pool.space.lock().set_used(self.segment, self.offset + len);
        self.offset += len;
        self.written_lsn += u64::from(record_count);
        Ok(len)
    }

    fn next_segment(&mut self, pool: &Pool) -> Result<(), WriteError> {
        let (follower, follower_seq) = pool
            .take_segment(Stream::Journal, Purpose::Upkeep)
            .map_err(|error| pool.fail(&error))?;
        self.go_on(pool, follower, follower_seq)
    }

    /// Goes on in the follower, which will be followed by `follower`.
    fn go_on(
        &mut self,
        pool: &Pool,
        follower: SegmentId,
        follower_seq: SegmentSeq,
    ) -> Result<(), WriteError> {
        overwrite(pool, follower)?;
        pool.space.lock().close(self.segment, self.offset);
        self.segment = self.follower;
        self.seq = self.follower_seq;
        self.follower = follower;
        self.follower_seq = follower_seq;
        self.offset = BATCHES_OFFSET;
        self.write_header(pool, self.written_lsn + 1)
    }
}

/// Writes zeros over a segment of a sparse file: a flush that has no blocks of the file to map needs no transaction of
/// the host's file system, which takes longer than the flush (ext4: 250-320 us against 140-190).
fn overwrite(pool: &Pool, segment: SegmentId) -> Result<(), WriteError> {
    if !pool.device.geometry().sparse {
        return Ok(());
    }
    let mut zeros = pool.buffer();
    zeros.resize(SEGMENT_BYTES as usize);
    let written = pool.write(segment, 0, zeros.as_slice());
    pool.recycle(zeros);
    written
}
