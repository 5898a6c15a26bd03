//! A growable byte buffer whose memory starts on a block boundary, as direct I/O wants it.
//!
//! Invariants: `data` points to `capacity` bytes allocated with `BLOCK_BYTES` alignment, all of them initialised;
//! `len <= capacity`; a capacity of zero has no allocation.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

const ALIGN: usize = cfs_format::BLOCK_BYTES as usize;

/// Bytes that start at a multiple of 4096 in memory. Meant to be filled, written and cleared again: first-touch
/// memory is far slower than memory in use.
pub struct AlignedBuf {
    data: NonNull<u8>,
    capacity: usize,
    len: usize,
}

// SAFETY: the buffer owns its memory alone; there is no interior mutability.
unsafe impl Send for AlignedBuf {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// An empty buffer that holds `capacity` bytes (rounded up to whole blocks) before it moves.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        let capacity = capacity.next_multiple_of(ALIGN);
        if capacity == 0 {
            return Self {
                data: NonNull::dangling(),
                capacity: 0,
                len: 0,
            };
        }
        let layout = Self::layout(capacity);
        // SAFETY: the layout has a size above zero.
        let data = unsafe { alloc_zeroed(layout) };
        let Some(data) = NonNull::new(data) else {
            handle_alloc_error(layout)
        };
        Self {
            data,
            capacity,
            len: 0,
        }
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, ALIGN).expect("a capacity far below isize::MAX")
    }

    /// Bytes that fit before the buffer moves.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `len <= capacity` bytes are allocated and initialised; for no allocation `len` is 0 and the
        // pointer is dangling but not null.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }

    /// The bytes, to change.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }

    /// Makes room for `additional` more bytes.
    pub fn reserve(&mut self, additional: usize) {
        let needed = self
            .len
            .checked_add(additional)
            .expect("a length that fits usize");
        if needed > self.capacity {
            let mut grown = Self::with_capacity(needed.max(self.capacity * 2));
            grown.len = self.len;
            grown.as_mut_slice().copy_from_slice(self.as_slice());
            *self = grown;
        }
    }

    /// Appends `bytes`.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let start = self.len;
        self.reserve(bytes.len());
        self.len += bytes.len();
        self.as_mut_slice()[start..].copy_from_slice(bytes);
    }

    /// Cuts down to `len`, or extends with zeros.
    pub fn resize(&mut self, len: usize) {
        let start = self.len;
        if len > start {
            self.reserve(len - start);
            self.len = len;
            // What lies beyond the length may be left over from an earlier use.
            self.as_mut_slice()[start..].fill(0);
        } else {
            self.len = len;
        }
    }

    /// Extends with zeros to the next multiple of `align`.
    pub fn pad_to_multiple(&mut self, align: usize) {
        self.resize(self.len.next_multiple_of(align));
    }

    /// Cuts down to `len` if longer; keeps the memory.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Empties the buffer; keeps the memory.
    pub fn clear(&mut self) {
        self.len = 0;
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if self.capacity != 0 {
            // SAFETY: allocated in `with_capacity` with the same layout, and not freed before.
            unsafe { dealloc(self.data.as_ptr(), Self::layout(self.capacity)) }
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.as_mut_slice()
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} of {} bytes)", self.len, self.capacity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaves_as_a_vec_and_stays_aligned() {
        let mut buf = AlignedBuf::with_capacity(0);
        let mut model: Vec<u8> = Vec::new();
        for step in 0..2000usize {
            match step % 7 {
                0 => {
                    buf.truncate(step * 3 % 5000);
                    model.truncate(step * 3 % 5000);
                }
                1 => {
                    buf.resize(model.len() + step % 300);
                    model.resize(model.len() + step % 300, 0);
                }
                2 if step % 97 == 0 => {
                    buf.clear();
                    model.clear();
                }
                3 => {
                    buf.pad_to_multiple(64);
                    model.resize(model.len().next_multiple_of(64), 0);
                }
                _ => {
                    let bytes = vec![step as u8; step % 1000];
                    buf.extend_from_slice(&bytes);
                    model.extend_from_slice(&bytes);
                }
            }
            assert_eq!(&*buf, &model[..], "step {step}");
            assert!(
                buf.capacity() == 0 || (buf.as_slice().as_ptr() as usize).is_multiple_of(ALIGN)
            );
        }
    }
}
