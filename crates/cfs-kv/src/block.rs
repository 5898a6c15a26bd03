//! Blocks of sorted entries: data blocks (key to value or tombstone) and index blocks (key to block pointer).
//!
//! Invariants of a parsed [`Block`]: entries lie within it, keys ascend strictly. They are checked once, in
//! [`Block::parse`]; everything else relies on them.
//!
//! All keys of a block share its prefix, and an offset table leads to the entries, so that any entry is found by
//! binary search and a block is walked both ways without decoding what lies before. Compression of what successive
//! keys have in common beyond the prefix is left to the store's codec.

use std::cmp::Ordering;

use crate::{
    KEY_BYTES_MAX, VALUE_BYTES_MAX,
    error::BadBlock,
    prefetch::prefetch,
    search::{guess_u32, lower_bound},
};

/// What a block holds; its first byte.
pub(crate) const KIND_DATA: u8 = 1;
/// Pointers to data blocks.
pub(crate) const KIND_INDEX: u8 = 2;
/// A filter.
pub(crate) const KIND_FILTER: u8 = 3;
/// The partitions of a run, within its root.
pub(crate) const KIND_ROOT: u8 = 4;
/// Version of the block format; its second byte.
pub(crate) const BLOCK_VERSION: u8 = 1;

/// Kind, version, prefix length (u16), entry count (u32).
const HEADER_BYTES: usize = 8;
/// Entries start within this many bytes of the first one, because the offset table has 16-bit entries.
const OFFSET_MAX: usize = u16::MAX as usize;
/// An upper bound of what an entry takes beside its key and value: its offset and two lengths.
const ENTRY_OVERHEAD: usize = 2 + 2 + 3;

/// A checked block.
#[derive(Debug)]
pub(crate) struct Block {
    bytes: Vec<u8>,
    slots: Box<[Slot]>,
    prefix_end: usize,
    /// Of the first and the last slot: a search starts from them.
    head_bounds: (u32, u32),
}

/// Where an entry starts, beside the first bytes of what its key has beyond the prefix: most of a search takes place
/// in a few cache lines of these.
#[derive(Clone, Copy, Debug)]
struct Slot {
    head: u32,
    start: u32,
}

/// The first four bytes as a number that sorts as they do, zeros where there are fewer.
fn head(suffix: &[u8]) -> u32 {
    if let Some(bytes) = suffix.first_chunk::<4>() {
        return u32::from_be_bytes(*bytes);
    }
    let mut bytes = [0; 4];
    bytes[..suffix.len()].copy_from_slice(suffix);
    u32::from_be_bytes(bytes)
}

impl Block {
    /// Checks the whole block.
    pub(crate) fn parse(bytes: Vec<u8>, kind: u8) -> Result<Self, BadBlock> {
        let header = bytes
            .first_chunk::<HEADER_BYTES>()
            .ok_or(BadBlock("shorter than its header"))?;
        if header[0] != kind {
            return Err(BadBlock("unexpected kind"));
        }
        if header[1] != BLOCK_VERSION {
            return Err(BadBlock("unknown version"));
        }
        let prefix_len = usize::from(u16::from_le_bytes([header[2], header[3]]));
        let entry_count = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        if entry_count == 0 {
            return Err(BadBlock("no entries"));
        }
        if prefix_len > KEY_BYTES_MAX {
            return Err(BadBlock("prefix too long"));
        }
        let prefix_end = entry_count
            .checked_mul(2)
            .and_then(|table| table.checked_add(HEADER_BYTES + prefix_len))
            .filter(|end| *end < bytes.len())
            .ok_or(BadBlock("offset table beyond its end"))?;
        let mut slots = Vec::with_capacity(entry_count);
        let mut previous: Option<&[u8]> = None;
        let mut start = prefix_end;
        for offset in bytes[HEADER_BYTES..HEADER_BYTES + 2 * entry_count].chunks_exact(2) {
            if usize::from(u16::from_le_bytes([offset[0], offset[1]])) != start - prefix_end {
                return Err(BadBlock("entries with gaps"));
            }
            let entry =
                EntryPlace::decode(&bytes, start).ok_or(BadBlock("entry beyond its end"))?;
            let suffix = &bytes[entry.suffix_start..entry.value_start];
            if prefix_len + suffix.len() > KEY_BYTES_MAX {
                return Err(BadBlock("key too long"));
            }
            if entry.end - entry.value_start > VALUE_BYTES_MAX {
                return Err(BadBlock("value too long"));
            }
            if previous.is_some_and(|previous| previous >= suffix) {
                return Err(BadBlock("keys out of order"));
            }
            slots.push(Slot {
                head: head(suffix),
                start: start as u32,
            });
            previous = Some(suffix);
            start = entry.end;
        }
        if start != bytes.len() {
            return Err(BadBlock("bytes after the last entry"));
        }
        Ok(Self {
            bytes,
            head_bounds: (slots[0].head, slots[slots.len() - 1].head),
            slots: slots.into_boxed_slice(),
            prefix_end,
        })
    }

    /// Bytes of memory that it takes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.bytes.len() + size_of_val(&*self.slots) + size_of::<Self>() + 64
    }

    /// Number of entries, at least one.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// What all keys start with.
    pub(crate) fn prefix(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES + 2 * self.slots.len()..self.prefix_end]
    }

    /// Where the entry at `index < len()` is.
    #[inline]
    pub(crate) fn place(&self, index: usize) -> EntryPlace {
        EntryPlace::decode(&self.bytes, self.slots[index].start as usize).expect("checked by parse")
    }

    /// Key of an entry of this block, without the prefix.
    pub(crate) fn suffix(&self, place: EntryPlace) -> &[u8] {
        &self.bytes[place.suffix_start..place.value_start]
    }

    /// How the key of the entry at `index < len()` compares with `key`.
    pub(crate) fn cmp_key(&self, index: usize, key: &[u8]) -> Ordering {
        let prefix = self.prefix();
        let (start, rest) = key.split_at(key.len().min(prefix.len()));
        let suffix = self.suffix(self.place(index));
        prefix.cmp(start).then_with(|| suffix.cmp(rest))
    }

    /// Value of an entry of this block; `None` for a tombstone.
    pub(crate) fn value(&self, place: EntryPlace) -> Option<&[u8]> {
        (!place.is_tombstone).then(|| &self.bytes[place.value_start..place.end])
    }

    /// Index of the first entry whose key is at least `key`; `len()` when there is none.
    pub(crate) fn lower_bound(&self, key: &[u8]) -> usize {
        self.search(key).unwrap_or_else(|index| index)
    }

    /// Fetches what `search` will look at first.
    #[inline]
    pub(crate) fn prefetch(&self, key: &[u8]) {
        let prefix_len = self.prefix_end - HEADER_BYTES - 2 * self.slots.len();
        let guess = self.guess(head(key.get(prefix_len..).unwrap_or_default()));
        prefetch(&self.slots[guess.min(self.slots.len() - 1)]);
    }

    /// Where an entry with this head might be.
    #[inline]
    fn guess(&self, head: u32) -> usize {
        let (first, last) = self.head_bounds;
        guess_u32(self.slots.len(), first, last, head)
    }

    /// Index of the entry with this key, or where it would be.
    pub(crate) fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let prefix = self.prefix();
        let shared = key.len().min(prefix.len());
        match key[..shared].cmp(&prefix[..shared]) {
            Ordering::Less => return Err(0),
            Ordering::Greater => return Err(self.len()),
            Ordering::Equal if shared < prefix.len() => return Err(0),
            Ordering::Equal => {}
        }
        let suffix = &key[shared..];
        let head = head(suffix);
        let slots = &self.slots;
        let guess = self.guess(head);
        let mut low = lower_bound(slots.len(), |index| slots[index].head, &head, guess);
        match slots.get(low) {
            // An entry seldom lies within one line.
            Some(slot) if slot.head == head => {
                prefetch(&self.bytes[(slot.start as usize + 64).min(self.bytes.len() - 1)]);
            }
            _ => return Err(low),
        }
        let mut high = low + self.slots[low..].partition_point(|slot| slot.head == head);
        while low < high {
            let middle = (low + high) / 2;
            match self.suffix(self.place(middle)).cmp(suffix) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Ok(middle),
            }
        }
        Err(low)
    }
}

/// Where an entry is within its block: suffix length, value length plus one (0: tombstone), both LEB128, suffix, value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct EntryPlace {
    suffix_start: usize,
    value_start: usize,
    end: usize,
    is_tombstone: bool,
}

impl EntryPlace {
    /// The entry that starts at `start`.
    #[inline]
    fn decode(bytes: &[u8], start: usize) -> Option<Self> {
        let (suffix_len, a) = decode_varint(bytes.get(start..)?)?;
        let (value_tag, b) = decode_varint(&bytes[start + a..])?;
        let suffix_start = start + a + b;
        let value_start = suffix_start + suffix_len;
        let end = value_start + value_tag.saturating_sub(1);
        (end <= bytes.len()).then_some(Self {
            suffix_start,
            value_start,
            end,
            is_tombstone: value_tag == 0,
        })
    }
}

/// An LEB128 number of up to three bytes, and its length.
#[inline]
fn decode_varint(bytes: &[u8]) -> Option<(usize, usize)> {
    let first = usize::from(*bytes.first()?);
    if first < 0x80 {
        return Some((first, 1));
    }
    let second = usize::from(*bytes.get(1)?);
    let two = first & 0x7f | (second & 0x7f) << 7;
    if second < 0x80 {
        return Some((two, 2));
    }
    let third = usize::from(*bytes.get(2)?);
    (third < 0x80).then_some((two | third << 14, 3))
}

fn encode_varint(bytes: &mut Vec<u8>, mut number: usize) {
    debug_assert!(number < 1 << 21, "three bytes hold it");
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Collects ascending entries and lays them out as a block. Can be reused after `finish`.
#[derive(Debug, Default)]
pub(crate) struct BlockBuilder {
    /// Keys and values one after the other.
    content: Vec<u8>,
    /// For each entry: length of the key, and of the value plus one, or 0.
    lengths: Vec<(u32, u32)>,
    output: Vec<u8>,
}

impl BlockBuilder {
    /// Whether it has no entries.
    pub(crate) fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// An upper bound of the bytes that the block would take now.
    pub(crate) fn bytes(&self) -> usize {
        HEADER_BYTES + self.content.len() + self.lengths.len() * ENTRY_OVERHEAD
    }

    /// Whether an entry may be added without going beyond `bytes_max`. One entry always fits.
    pub(crate) fn fits(&self, key: &[u8], value: Option<&[u8]>, bytes_max: usize) -> bool {
        let added = key.len() + value.map_or(0, <[u8]>::len) + ENTRY_OVERHEAD;
        self.is_empty() || self.bytes() + added <= bytes_max.min(OFFSET_MAX)
    }

    /// Adds an entry; its key is greater than those before.
    pub(crate) fn push(&mut self, key: &[u8], value: Option<&[u8]>) {
        debug_assert!(self.last_key().is_none_or(|last| last < key), "keys ascend");
        self.content.extend_from_slice(key);
        self.content.extend_from_slice(value.unwrap_or_default());
        self.lengths.push((
            key.len() as u32,
            value.map_or(0, |value| value.len() as u32 + 1),
        ));
    }

    /// Key of the last entry.
    pub(crate) fn last_key(&self) -> Option<&[u8]> {
        let (key_len, value_tag) = *self.lengths.last()?;
        let value_start = self.content.len() - value_tag.saturating_sub(1) as usize;
        Some(&self.content[value_start - key_len as usize..value_start])
    }

    /// The block; at least one entry has been pushed. The builder is empty afterwards.
    pub(crate) fn finish(&mut self, kind: u8) -> &[u8] {
        let last_key = self.last_key().expect("a block has entries");
        let first_key = &self.content[..self.lengths[0].0 as usize];
        let prefix_len = shared_prefix_len(first_key, last_key);
        self.output.clear();
        self.output.extend_from_slice(&[kind, BLOCK_VERSION]);
        self.output
            .extend_from_slice(&(prefix_len as u16).to_le_bytes());
        self.output
            .extend_from_slice(&(self.lengths.len() as u32).to_le_bytes());
        self.output.resize(HEADER_BYTES + 2 * self.lengths.len(), 0);
        self.output.extend_from_slice(&first_key[..prefix_len]);
        let entries_start = self.output.len();
        let mut start = 0;
        for (index, &(key_len, value_tag)) in self.lengths.iter().enumerate() {
            let offset =
                u16::try_from(self.output.len() - entries_start).expect("fits() was asked");
            self.output[HEADER_BYTES + 2 * index..][..2].copy_from_slice(&offset.to_le_bytes());
            let end = start + (key_len + value_tag.saturating_sub(1)) as usize;
            encode_varint(&mut self.output, key_len as usize - prefix_len);
            encode_varint(&mut self.output, value_tag as usize);
            self.output
                .extend_from_slice(&self.content[start + prefix_len..end]);
            start = end;
        }
        self.content.clear();
        self.lengths.clear();
        &self.output
    }
}

/// Bytes that both start with.
pub(crate) fn shared_prefix_len(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
