//! Memory for dirty data: warm buffers that are used again, and the count of what is in use.
//!
//! First-touch memory costs more than the work done in it, so buffers of the larger classes go back to a pool. The
//! capacity of every living [`Buffer`] is counted in `held_bytes`, which back-pressure looks at. What is held and what
//! is idle share one budget: a buffer is kept only while both fit, and idle ones of other sizes make way.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Capacity of the largest buffer, and so the most that one run of dirty data holds, bytes. Several of the largest
/// chunks fit in, so that little is carried over at each cut.
pub(crate) const BUFFER_BYTES_MAX: usize = 4 << 20;

/// Smallest capacity, bytes.
const BUFFER_BYTES_MIN: usize = 4 << 10;

/// Smallest capacity that is pooled, bytes; the allocator keeps smaller pieces warm by itself.
const POOLED_BYTES_MIN: usize = 256 << 10;

/// Pooled sizes: powers of two from `POOLED_BYTES_MIN` to `BUFFER_BYTES_MAX`.
const CLASSES: usize = (BUFFER_BYTES_MAX / POOLED_BYTES_MIN).ilog2() as usize + 1;

/// Idle memory that is kept for good, bytes; what is beyond goes back to the system a little at a time.
const IDLE_KEPT_BYTES: usize = 32 << 20;

struct Idle {
    classes: [Vec<Vec<u8>>; CLASSES],
    bytes: usize,
    /// Least `bytes` since the last trim: what nobody needed.
    bytes_least: usize,
}

/// The pool, and how much is in use.
pub(crate) struct Buffers {
    idle: Mutex<Idle>,
    /// What held and idle buffers may have together; what is held alone may exceed it.
    budget_bytes: usize,
    held_bytes: AtomicU64,
    waiting: AtomicUsize,
    room: Mutex<()>,
    room_made: Condvar,
}

impl Buffers {
    pub(crate) fn new(budget_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            idle: Mutex::new(Idle {
                classes: Default::default(),
                bytes: 0,
                bytes_least: 0,
            }),
            budget_bytes,
            held_bytes: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            room: Mutex::new(()),
            room_made: Condvar::new(),
        })
    }

    /// Capacity of all living buffers, bytes.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::SeqCst)
    }

    /// Waits while `full`, until a buffer is given back, or for `limit`.
    pub(crate) fn wait_for_room(&self, limit: Duration, full: impl Fn() -> bool) {
        let mut room = self.room.lock();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        if full() {
            self.room_made.wait_for(&mut room, limit);
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    /// An empty buffer for at least `bytes`, which may not exceed [`BUFFER_BYTES_MAX`].
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Buffer {
        let bytes = self.take_bytes(bytes);
        Buffer {
            bytes,
            home: Arc::clone(self),
        }
    }

    fn take_bytes(&self, bytes: usize) -> Vec<u8> {
        assert!(
            bytes <= BUFFER_BYTES_MAX,
            "runs are cut before they outgrow a buffer"
        );
        let capacity = bytes.next_power_of_two().max(BUFFER_BYTES_MIN);
        let held = self
            .held_bytes
            .fetch_add(capacity as u64, Ordering::Relaxed) as usize
            + capacity;
        let Some(class) = class(capacity) else {
            return Vec::with_capacity(capacity);
        };
        let mut idle = self.idle.lock();
        if let Some(taken) = idle.classes[class].pop() {
            idle.bytes -= taken.capacity();
            idle.bytes_least = idle.bytes_least.min(idle.bytes);
            return taken;
        }
        let freed = idle.make_room(self.budget_bytes.saturating_sub(held));
        drop(idle);
        drop(freed);
        Vec::with_capacity(capacity)
    }

    fn give_back(&self, mut bytes: Vec<u8>) {
        self.held_bytes
            .fetch_sub(bytes.capacity() as u64, Ordering::SeqCst);
        if let Some(class) = class(bytes.capacity()) {
            bytes.clear();
            let mut idle = self.idle.lock();
            let held = self.held_bytes() as usize;
            if held + idle.bytes + bytes.capacity() <= self.budget_bytes {
                idle.bytes += bytes.capacity();
                idle.classes[class].push(bytes);
            }
        }
        if self.waiting.load(Ordering::SeqCst) > 0 {
            drop(self.room.lock());
            self.room_made.notify_all();
        }
    }

    /// Frees one buffer of the memory that nobody has needed since the last call.
    pub(crate) fn trim(&self) {
        let mut idle = self.idle.lock();
        let unneeded = idle.bytes_least;
        idle.bytes_least = idle.bytes;
        if unneeded > IDLE_KEPT_BYTES {
            idle.take_largest();
        }
    }
}

impl Idle {
    fn take_largest(&mut self) -> Option<Vec<u8>> {
        let taken = self.classes.iter_mut().rev().find_map(Vec::pop)?;
        self.bytes -= taken.capacity();
        self.bytes_least = self.bytes_least.min(self.bytes);
        Some(taken)
    }

    /// Takes buffers out until the others have at most `bytes`.
    fn make_room(&mut self, bytes: usize) -> Vec<Vec<u8>> {
        let mut freed = Vec::new();
        while self.bytes > bytes {
            freed.extend(self.take_largest());
        }
        freed
    }
}

/// The pool's class of exactly this capacity.
fn class(capacity: usize) -> Option<usize> {
    let pooled =
        capacity.is_power_of_two() && (POOLED_BYTES_MIN..=BUFFER_BYTES_MAX).contains(&capacity);
    pooled.then(|| (capacity / POOLED_BYTES_MIN).ilog2() as usize)
}

/// Bytes in counted memory, at most [`BUFFER_BYTES_MAX`] of them.
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    home: Arc<Buffers>,
}

impl Buffer {
    /// How many bytes can still be appended.
    pub(crate) fn room(&self) -> usize {
        BUFFER_BYTES_MAX - self.bytes.len()
    }

    /// Appends; `data` may not be longer than [`Buffer::room`].
    pub(crate) fn extend(&mut self, data: &[u8]) {
        let len = self.bytes.len() + data.len();
        if len > self.bytes.capacity() {
            let mut larger = self.home.take_bytes(len);
            larger.extend_from_slice(&self.bytes);
            self.home
                .give_back(std::mem::replace(&mut self.bytes, larger));
        }
        self.bytes.extend_from_slice(data);
    }

    /// Overwrites from `start`; `data` may not reach beyond the end.
    pub(crate) fn overwrite(&mut self, start: usize, data: &[u8]) {
        self.bytes[start..start + data.len()].copy_from_slice(data);
    }

    /// Keeps the first `len` bytes.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.bytes.truncate(len);
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.home.give_back(std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_counted_and_used_again() {
        let buffers = Buffers::new(64 << 20);
        let mut buffer = buffers.take(1);
        assert_eq!(buffers.held_bytes(), 4096);
        let mut written = Vec::new();
        while buffer.room() > 0 {
            let piece = vec![written.len() as u8; buffer.room().min(100_000)];
            buffer.extend(&piece);
            written.extend_from_slice(&piece);
        }
        assert_eq!(&*buffer, &written[..]);
        assert_eq!(buffers.held_bytes(), BUFFER_BYTES_MAX as u64);
        let address = buffer.as_ptr();
        drop(buffer);
        assert_eq!(buffers.held_bytes(), 0);
        assert_eq!(buffers.take(BUFFER_BYTES_MAX).as_ptr(), address);
    }

    #[test]
    fn held_and_idle_memory_share_a_budget() {
        let buffers = Buffers::new(8 << 20);
        let small: Vec<_> = (0..16).map(|_| buffers.take(POOLED_BYTES_MIN)).collect();
        drop(small);
        assert_eq!(buffers.idle.lock().bytes, 4 << 20);
        // 4 MiB held and 4 MiB idle is all that fits; the next one takes the place of idle ones.
        let first = buffers.take(4 << 20);
        assert_eq!(buffers.idle.lock().bytes, 4 << 20);
        let second = buffers.take(2 << 20);
        assert_eq!(buffers.idle.lock().bytes, 2 << 20);
        let third = buffers.take(4 << 20);
        assert_eq!(buffers.idle.lock().bytes, 0);
        assert_eq!(buffers.held_bytes(), 10 << 20);
        // Nothing is kept while others have the budget.
        drop(first);
        assert_eq!(buffers.idle.lock().bytes, 0);
        drop((second, third));
        assert_eq!(buffers.idle.lock().bytes, 6 << 20);
    }

    #[test]
    fn idle_memory_is_bounded() {
        let buffers = Buffers::new(40 << 20);
        let taken: Vec<_> = (0..16).map(|_| buffers.take(BUFFER_BYTES_MAX)).collect();
        drop(taken);
        assert_eq!(buffers.idle.lock().bytes, 40 << 20);
        for _ in 0..10 {
            buffers.trim();
        }
        assert_eq!(buffers.idle.lock().bytes, IDLE_KEPT_BYTES);
    }
}
