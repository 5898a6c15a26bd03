//! The sorted structure of a memtable: leaves of up to some hundred keys, found through an array of their first keys.
//!
//! The first bytes of a key lie beside its place in the leaf, so that a search touches few cache lines and seldom the
//! key itself. Invariants: leaves are not empty, keys ascend within and across leaves, `firsts` has the head of the
//! first key of each leaf.

use std::cmp::Ordering;

use crate::{
    memtable::Slot,
    search::{guess_u128, lower_bound},
};

/// Entries of a full leaf.
const LEAF_LEN_MAX: usize = 192;

/// The first 16 bytes of a key as a number that sorts as they do, zeros where there are fewer. Keys with different
/// heads sort as their heads do.
pub(crate) fn head(key: &[u8]) -> u128 {
    if let Some(bytes) = key.first_chunk::<16>() {
        return u128::from_be_bytes(*bytes);
    }
    let mut bytes = [0; 16];
    bytes[..key.len()].copy_from_slice(key);
    u128::from_be_bytes(bytes)
}

#[derive(Debug, Default)]
struct Leaf {
    heads: Vec<u128>,
    /// Index into `SortedSlots::slots`.
    slots: Vec<u32>,
}

impl Leaf {
    fn with_capacity() -> Self {
        Self {
            heads: Vec::with_capacity(LEAF_LEN_MAX),
            slots: Vec::with_capacity(LEAF_LEN_MAX),
        }
    }
}

/// Slots in the order of their keys.
#[derive(Debug, Default)]
pub(crate) struct SortedSlots {
    firsts: Vec<u128>,
    #[expect(
        clippy::vec_box,
        reason = "leaves are large, and inserting one moves all behind it"
    )]
    leaves: Vec<Box<Leaf>>,
    /// In the order of their insertion.
    slots: Vec<Slot>,
}

/// Where a key is, or would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    leaf: usize,
    index: usize,
}

impl Place {
    /// The place behind it.
    pub(crate) fn next(self) -> Self {
        Self {
            index: self.index + 1,
            ..self
        }
    }
}

impl SortedSlots {
    /// Number of keys.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The slot at a place that `locate` has found.
    pub(crate) fn at(&self, place: Place) -> &Slot {
        &self.slots[self.leaves[place.leaf].slots[place.index] as usize]
    }

    /// As `at`, to change its value.
    pub(crate) fn at_mut(&mut self, place: Place) -> &mut Slot {
        &mut self.slots[self.leaves[place.leaf].slots[place.index] as usize]
    }

    /// Where the key is; where it would be otherwise.
    pub(crate) fn locate(&self, key: &[u8]) -> Result<Place, Place> {
        let head = head(key);
        let first_key_cmp = |leaf: usize| {
            self.slots[self.leaves[leaf].slots[0] as usize]
                .key()
                .cmp(key)
        };
        let start = self.firsts.partition_point(|first| *first < head);
        let leaf = match search_equal(&self.firsts, start, head, first_key_cmp) {
            Ok(leaf) => return Ok(Place { leaf, index: 0 }),
            // What precedes the first leaf goes into it.
            Err(next_leaf) => next_leaf.saturating_sub(1),
        };
        let Some(found) = self.leaves.get(leaf) else {
            return Err(Place { leaf: 0, index: 0 });
        };
        let key_cmp = |index: usize| self.slots[found.slots[index] as usize].key().cmp(key);
        let heads = &found.heads;
        let guess = guess_u128(heads.len(), heads[0], heads[heads.len() - 1], head);
        let start = lower_bound(heads.len(), |index| heads[index], &head, guess);
        match search_equal(heads, start, head, key_cmp) {
            Ok(index) => Ok(Place { leaf, index }),
            Err(index) => Err(Place { leaf, index }),
        }
    }

    /// Inserts a slot where `locate` has said that its key would be.
    pub(crate) fn insert(&mut self, place: Place, slot: Slot) {
        let head = head(slot.key());
        let number = u32::try_from(self.slots.len()).expect("a memtable has fewer keys");
        self.slots.push(slot);
        let Place {
            mut leaf,
            mut index,
        } = place;
        if self.leaves.is_empty() {
            self.leaves.push(Box::new(Leaf::with_capacity()));
            self.firsts.push(head);
        }
        if self.leaves[leaf].slots.len() == LEAF_LEN_MAX {
            // Ascending insertions fill leaves wholly; others split them in the middle.
            let middle = if index == LEAF_LEN_MAX {
                index
            } else {
                LEAF_LEN_MAX / 2
            };
            let mut right = Leaf::with_capacity();
            right.heads.extend(self.leaves[leaf].heads.drain(middle..));
            right.slots.extend(self.leaves[leaf].slots.drain(middle..));
            self.firsts
                .insert(leaf + 1, right.heads.first().copied().unwrap_or(head));
            self.leaves.insert(leaf + 1, Box::new(right));
            if index >= middle {
                leaf += 1;
                index -= middle;
            }
        }
        if index == 0 {
            self.firsts[leaf] = head;
        }
        self.leaves[leaf].heads.insert(index, head);
        self.leaves[leaf].slots.insert(index, number);
    }

    /// The first place.
    pub(crate) fn first(&self) -> Place {
        Place { leaf: 0, index: 0 }
    }

    /// The place behind the last key.
    pub(crate) fn end(&self) -> Place {
        Place {
            leaf: self.leaves.len(),
            index: 0,
        }
    }

    /// Slots from `place` on, ascending.
    pub(crate) fn iter_from(&self, place: Place) -> impl Iterator<Item = &Slot> {
        let this = self
            .leaves
            .get(place.leaf)
            .map_or(&[][..], |leaf| &leaf.slots[place.index..]);
        let rest = self
            .leaves
            .iter()
            .skip(place.leaf + 1)
            .flat_map(|leaf| &leaf.slots);
        this.iter()
            .chain(rest)
            .map(|slot| &self.slots[*slot as usize])
    }

    /// Slots before `place`, descending.
    pub(crate) fn iter_back_from(&self, place: Place) -> impl Iterator<Item = &Slot> {
        let this = self
            .leaves
            .get(place.leaf)
            .map_or(&[][..], |leaf| &leaf.slots[..place.index]);
        let rest = self.leaves[..place.leaf]
            .iter()
            .rev()
            .flat_map(|leaf| leaf.slots.iter().rev());
        this.iter()
            .rev()
            .chain(rest)
            .map(|slot| &self.slots[*slot as usize])
    }
}

/// Searches among the heads that equal `head`, from `start` on, the first one that is not below it.
fn search_equal(
    heads: &[u128],
    start: usize,
    head: u128,
    key_cmp: impl Fn(usize) -> Ordering,
) -> Result<usize, usize> {
    let (mut low, mut high) = (start, start);
    if heads.get(start) == Some(&head) {
        high = start + heads[start..].partition_point(|other| *other == head);
    }
    while low < high {
        let middle = (low + high) / 2;
        match key_cmp(middle) {
            Ordering::Less => low = middle + 1,
            Ordering::Equal => return Ok(middle),
            Ordering::Greater => high = middle,
        }
    }
    Err(low)
}
