//! The content of a file in the model: pages, which versions share, so that a long file costs what is written of it.
//!
//! A page of nothing but zeros is not there, and what of the last page is behind the end is zero: equal contents have
//! equal pages.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// Bytes of a page; contents are shifted by whole pages.
pub(crate) const PAGE_BYTES: usize = 4096;

const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

#[derive(Debug, PartialEq, Eq)]
struct Page {
    hash: u64,
    bytes: [u8; PAGE_BYTES],
}

/// All bytes of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Content {
    len: u64,
    pages: Vec<Option<Arc<Page>>>,
}

impl Content {
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes of `[from, to)`, fewer at the end.
    pub fn range(&self, from: u64, to: u64) -> Vec<u8> {
        let to = to.min(self.len);
        let mut bytes = Vec::with_capacity(to.saturating_sub(from) as usize);
        for (index, within) in parts(from, to) {
            bytes.extend_from_slice(&self.page(index)[within]);
        }
        bytes
    }

    /// Puts bytes at `offset`; in between the old end and there are zeros.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let end = offset + data.len() as u64;
        self.resize(self.len.max(end));
        let mut rest = data;
        for (index, within) in parts(offset, end) {
            let (part, behind) = rest.split_at(within.len());
            rest = behind;
            if let Ok(bytes) = part.try_into() {
                self.set_page(index, bytes);
                continue;
            }
            let mut bytes = *self.page(index);
            bytes[within].copy_from_slice(part);
            self.set_page(index, &bytes);
        }
    }

    /// What there is of `[from, to)` becomes zeros.
    pub fn zero(&mut self, from: u64, to: u64) {
        self.clear(from, to.min(self.len));
    }

    pub fn resize(&mut self, len: u64) {
        if len < self.len {
            self.clear(len, self.len);
        }
        self.len = len;
        let pages = len.div_ceil(PAGE_BYTES as u64) as usize;
        self.pages.resize(pages, None);
    }

    /// Takes whole pages out; what is behind them moves down.
    pub fn collapse(&mut self, offset: u64, len: u64) {
        self.pages.drain(whole(offset)..whole(offset + len));
        self.len -= len;
    }

    /// Puts whole pages of zeros in; what is behind moves up.
    pub fn insert(&mut self, offset: u64, len: u64) {
        let (at, count) = (whole(offset), whole(len));
        self.pages.splice(at..at, std::iter::repeat_n(None, count));
        self.len += len;
    }

    /// Equal contents have equal ones, in every run.
    pub fn hash(&self) -> u64 {
        let pages = self.pages.iter();
        let pages = pages.map(|page| page.as_ref().map_or(0, |page| page.hash));
        hash_of(&(self.len, pages.collect::<Vec<u64>>()))
    }

    /// How much of this was written since it was `before`, in bytes of whole pages; what was only cut off does not count.
    pub fn written_since(&self, before: &Self) -> u64 {
        let written = self.pages.iter().enumerate().filter(|(index, page)| {
            page.is_some() && before.pages.get(*index).is_none_or(|old| old != *page)
        });
        written.count() as u64 * PAGE_BYTES as u64
    }

    /// Whether each byte is what one of these has there, and the length within theirs.
    pub fn is_mix_of(&self, others: &[&Self]) -> bool {
        let lengths = || others.iter().map(|other| other.len);
        if !(lengths().min() <= Some(self.len) && Some(self.len) <= lengths().max()) {
            return false;
        }
        let page_of = |content: &'_ Self, index: usize| match index < content.pages.len() {
            true => *content.page(index),
            false => ZEROS,
        };
        (0..self.pages.len()).all(|index| {
            let page = self.page(index);
            let theirs: Vec<_> = others.iter().map(|other| page_of(other, index)).collect();
            theirs.contains(page)
                || (0..PAGE_BYTES).all(|at| theirs.iter().any(|other| other[at] == page[at]))
        })
    }

    fn page(&self, index: usize) -> &[u8; PAGE_BYTES] {
        self.pages[index]
            .as_ref()
            .map_or(&ZEROS, |page| &page.bytes)
    }

    fn set_page(&mut self, index: usize, bytes: &[u8; PAGE_BYTES]) {
        self.pages[index] = (*bytes != ZEROS).then(|| {
            Arc::new(Page {
                hash: hash_of(bytes),
                bytes: *bytes,
            })
        });
    }

    fn clear(&mut self, from: u64, to: u64) {
        for (index, within) in parts(from, to) {
            let mut bytes = *self.page(index);
            bytes[within].fill(0);
            self.set_page(index, &bytes);
        }
    }
}

impl From<&[u8]> for Content {
    fn from(bytes: &[u8]) -> Self {
        let mut content = Self::default();
        content.write(0, bytes);
        content
    }
}

/// The pages that `[from, to)` touches, and what of each.
fn parts(from: u64, to: u64) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
    let page_bytes = PAGE_BYTES as u64;
    let last = if from < to {
        to.div_ceil(page_bytes)
    } else {
        0
    };
    (from / page_bytes..last).map(move |index| {
        let start = index * page_bytes;
        let within = |at: u64| at.clamp(start, start + page_bytes) - start;
        (index as usize, within(from) as usize..within(to) as usize)
    })
}

/// How many pages these are.
fn whole(bytes: u64) -> usize {
    let page_bytes = PAGE_BYTES as u64;
    assert!(bytes.is_multiple_of(page_bytes), "{bytes} is no whole page");
    (bytes / page_bytes) as usize
}

fn hash_of(value: &impl Hash) -> u64 {
    // With its fixed keys, unlike that of a `HashMap`.
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    const PAGE: u64 = PAGE_BYTES as u64;

    /// A content is what a vector of bytes would be.
    #[test]
    fn contents_are_as_plain_bytes_are() {
        let mut rng = Rng::new(1);
        let (mut content, mut plain) = (Content::default(), Vec::new());
        for step in 0..5000 {
            let len = plain.len() as u64;
            let (at, count) = (rng.below(len + PAGE), rng.length(3 * PAGE));
            let (start, end) = (at as usize, (at + count) as usize);
            let aligned = at / PAGE * PAGE;
            match rng.below(6) {
                0 | 1 if end < 16 * PAGE_BYTES => {
                    // Zeros are written too.
                    let byte = rng.below(3) as u8;
                    plain.resize(plain.len().max(end), 0);
                    plain[start..end].fill(byte);
                    content.write(at, &vec![byte; count as usize]);
                }
                2 => {
                    plain.resize(start, 0);
                    content.resize(at);
                }
                3 => {
                    let end = end.min(plain.len());
                    plain[start.min(end)..end].fill(0);
                    content.zero(at, at + count);
                }
                4 if aligned + PAGE < len => {
                    plain.drain(aligned as usize..(aligned + PAGE) as usize);
                    content.collapse(aligned, PAGE);
                }
                5 if aligned < len => {
                    let at = aligned as usize;
                    plain.splice(at..at, [0; 2 * PAGE_BYTES]);
                    content.insert(aligned, 2 * PAGE);
                }
                _ => {}
            }
            let again = Content::from(&plain[..]);
            assert_eq!(content, again, "step {step}");
            assert_eq!(content.hash(), again.hash(), "step {step}");
            let (start, end) = (start.min(plain.len()), end.min(plain.len()));
            assert_eq!(content.range(at, at + count), &plain[start..end]);
            if start < plain.len() {
                plain[start] ^= 1;
                assert_ne!(content, Content::from(&plain[..]), "step {step}");
                plain[start] ^= 1;
            }
        }
    }

    #[test]
    fn what_is_torn_has_each_byte_from_one_of_them() {
        let content = |byte: u8, len: usize| Content::from(&vec![byte; len][..]);
        let (old, new) = (content(1, 3 * PAGE_BYTES), content(2, 5 * PAGE_BYTES));
        assert_eq!(new.written_since(&old), 5 * PAGE_BYTES as u64);
        assert_eq!(content(1, PAGE_BYTES).written_since(&old), 0);
        let mut torn = old.clone();
        torn.write(0, &vec![2; PAGE_BYTES + 7]);
        assert!(torn.is_mix_of(&[&old, &new]));
        assert!(!torn.is_mix_of(&[&old]));
        assert!(
            !content(2, 2 * PAGE_BYTES).is_mix_of(&[&old, &new]),
            "too short"
        );
        torn.write(PAGE_BYTES as u64, &[3]);
        assert!(
            !torn.is_mix_of(&[&old, &new]),
            "a byte that none of them had"
        );
    }
}
