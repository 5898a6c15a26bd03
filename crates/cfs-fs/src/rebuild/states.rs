//! Rows as of one moment: what a snapshot shows is put right by a state from its timestamp to just behind that, which no other
//! snapshot sees, nor the present.

use cfs_format::Ino;
use cfs_format::table::{
    CookieRecord, DirentRecord, HeldExtentRecord, InodeRecord, StampRecord, ended_key, history_key,
    inode_flag, key, split_history, split_key, tag,
};
use cfs_store::ReadError;
use zerocopy::{FromBytes, IntoBytes};

use super::clones::readable;
use super::content::{Extents, Parts};
use super::origins::Origin;
use super::{Mending, file_key_of};
use crate::history::{Past, snapshot_key, timestamp_of_key};
use crate::{inode, row};

impl Mending<'_> {
    /// Puts right what a file held; false if nobody can tell what that was.
    pub(super) fn content_at(
        &mut self,
        origin: &Origin,
        ino: Ino,
        record: &mut InodeRecord,
    ) -> Result<bool, ReadError> {
        let past = Past {
            table: self.store,
            at: origin.at,
        };
        let before = *record;
        let is_inline = record.flags.get() & inode_flag::INLINE != 0;
        let is_regular = inode::kind(record) == libc::S_IFREG;
        let inline = readable(past.get(ino, tag::INLINE, &[]))?;
        let inline = inline.and_then(|value| row::content(value).ok());
        let mut extents = Extents::default();
        let mut parts = Parts::of_size(record.size.get());
        for row in past.rows(ino, tag::EXTENT, &[], None) {
            let Some((suffix, value)) = readable(row.map(Some))? else {
                return Ok(false);
            };
            let offset = suffix.try_into().map(u64::from_be_bytes).ok();
            let from = extents.bytes;
            extents.add(offset, &value);
            let len = extents.bytes - from;
            parts.keep(offset.map(|offset| (offset, offset.saturating_add(len))));
        }
        let may_have_extents = is_regular && !is_inline;
        if extents.is_contradictory
            || extents.end > record.size.get()
            || (extents.end > 0 && !may_have_extents)
        {
            return Ok(false);
        }
        if inline.is_some() && !is_inline {
            self.set_at(origin, ino, tag::INLINE, &[], None)?;
        }
        match inline.filter(|_| is_inline) {
            Some(content) => {
                record.size = (content.len() as u64).into();
                record.allocated = record.size;
            }
            None if is_inline && !is_regular => return Ok(false),
            None if is_regular => {
                record.flags.set(record.flags.get() & !inode_flag::INLINE);
                let mut held = extents.bytes;
                if held < record.allocated.get() || is_inline {
                    for gap in self.gaps_at(origin, ino, &parts) {
                        held += self.lose_at(origin, ino, record, gap)?;
                    }
                }
                record.allocated = held.into();
            }
            None => {}
        }
        if *record != before {
            self.set_inode(origin, ino, record)?;
        }
        Ok(true)
    }

    /// The parts of a file that no extent covers and of which the rows may have been lost; all where none fits.
    fn gaps_at(&self, origin: &Origin, ino: Ino, parts: &Parts) -> Vec<(u64, u64)> {
        let gaps = parts.gaps();
        let lost = |(from, to): &(u64, u64)| {
            let offset = |offset: u64| offset.to_be_bytes();
            let states = (
                history_key(ino, tag::EXTENT, &offset(*from), origin.at.0),
                history_key(ino, tag::EXTENT, &offset(to - 1), u64::MAX),
            );
            self.is_lost_between(ino, *from, *to) || self.is_lost_in(&states.0, &states.1)
        };
        let likely: Vec<(u64, u64)> = gaps.iter().copied().filter(lost).collect();
        if likely.is_empty() { gaps } else { likely }
    }

    /// Puts extents of lost chunks over a part of a file; their bytes.
    fn lose_at(
        &mut self,
        origin: &Origin,
        ino: Ino,
        record: &InodeRecord,
        gap: (u64, u64),
    ) -> Result<u64, ReadError> {
        let Some(file_key) = file_key_of(self.store, record) else {
            return Ok(0);
        };
        let mut bytes = 0;
        for (offset, extent) in self.lost_extents(ino, record, &file_key, gap, origin.at.0) {
            bytes += u64::from(extent.len.get());
            let held = HeldExtentRecord {
                extent,
                salt: record.salt,
                volume: origin.volume.0.into(),
            };
            let value = held.as_bytes().to_vec();
            self.put_state(origin, ino, (tag::EXTENT, &offset.to_be_bytes()), value);
        }
        let sentence = "parts of its content are lost";
        self.tell_at(origin, ino, "content", sentence)?;
        Ok(bytes)
    }

    fn put_state(
        &mut self,
        origin: &Origin,
        ino: Ino,
        (row_tag, suffix): (u8, &[u8]),
        value: Vec<u8>,
    ) {
        let to = origin.at.0.saturating_add(1);
        self.put(history_key(ino, row_tag, suffix, to), value);
        self.put(
            ended_key(origin.volume.0, to, ino, row_tag, suffix),
            Vec::new(),
        );
    }

    /// Makes a row another as of the moment; what other snapshots and the present see of it stays. No extents.
    pub(super) fn set_at(
        &mut self,
        origin: &Origin,
        ino: Ino,
        row_tag: u8,
        suffix: &[u8],
        value: Option<Vec<u8>>,
    ) -> Result<(), ReadError> {
        let at = origin.at.0;
        let behind = at.saturating_add(1);
        let row_key = key(ino, row_tag, suffix);
        let present = self.store.get(&row_key)?;
        let from_of = |value: &[u8]| row::timestamp(row_tag, value).unwrap_or(u64::MAX);
        let mut before = None;
        if let Some(present) = present.filter(|present| from_of(present) <= at) {
            before = Some((from_of(&present), present.clone()));
            self.put(row_key, stamped(row_tag, present, behind));
        } else {
            let lo = history_key(ino, row_tag, suffix, behind);
            let hi = history_key(ino, row_tag, suffix, u64::MAX);
            let state = self.store.range(&lo, &hi).next();
            if let Some(state) = state.transpose().map_err(ReadError::from)?
                && from_of(&state.1) <= at
                && let Ok((_, _, _, to)) = split_key(&state.0).and_then(|it| split_history(it.2))
            {
                self.delete(state.0.clone());
                self.delete(ended_key(origin.volume.0, to, ino, row_tag, suffix));
                before = Some((from_of(&state.1), state.1.clone()));
                if self.is_seen_between(origin, behind, to)? {
                    self.put(state.0, stamped(row_tag, state.1, behind));
                    self.put(
                        ended_key(origin.volume.0, to, ino, row_tag, suffix),
                        Vec::new(),
                    );
                }
            }
        }
        if let Some((from, before)) = before
            && self.is_seen_between(origin, from, at)?
        {
            self.put(history_key(ino, row_tag, suffix, at), before);
            self.put(
                ended_key(origin.volume.0, at, ino, row_tag, suffix),
                Vec::new(),
            );
        }
        if let Some(value) = value {
            self.put_state(origin, ino, (row_tag, suffix), stamped(row_tag, value, at));
        }
        Ok(())
    }

    /// Whether a snapshot of the origin's volume sees what was written then and replaced then.
    fn is_seen_between(&self, origin: &Origin, from: u64, to: u64) -> Result<bool, ReadError> {
        if from >= to {
            return Ok(false);
        }
        let (lo, hi) = (
            snapshot_key(origin.volume, from),
            snapshot_key(origin.volume, to),
        );
        let row = self.store.range(&lo, &hi).next();
        let row = row.transpose().map_err(ReadError::from)?;
        Ok(row.is_some_and(|(row_key, _)| timestamp_of_key(&row_key).is_ok()))
    }
}

/// A row as if it had been written then. No extent.
pub(super) fn stamped(row_tag: u8, mut value: Vec<u8>, timestamp: u64) -> Vec<u8> {
    match row_tag {
        tag::INODE => {
            if let Ok((record, _)) = InodeRecord::mut_from_prefix(&mut value) {
                record.timestamp = timestamp.into();
            }
        }
        tag::DIRENT => {
            if let Ok((record, _)) = DirentRecord::mut_from_prefix(&mut value) {
                record.timestamp = timestamp.into();
            }
        }
        tag::COOKIE => {
            if let Ok((record, _)) = CookieRecord::mut_from_prefix(&mut value) {
                record.timestamp = timestamp.into();
            }
        }
        _ => {
            if let Ok((record, _)) = StampRecord::mut_from_prefix(&mut value) {
                record.timestamp = timestamp.into();
            }
        }
    }
    value
}
