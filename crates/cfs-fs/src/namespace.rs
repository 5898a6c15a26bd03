//! Operations on names and attributes: each builds one command, and tells the open files what became of them.

pub(crate) mod arrange;
pub(crate) mod atime;
mod attributes;
mod clones;
pub(crate) mod differences;
mod entrance;
pub(crate) mod format;
pub(crate) mod holdings;
pub(crate) mod locks;
mod lookup;
mod make;
pub(crate) mod opens;
pub(crate) mod policies;
pub(crate) mod publish;
pub(crate) mod reap;
mod remove;
pub(crate) mod restore;
pub(crate) mod snapshot_sizes;
mod snapshots;
mod statfs;
pub(crate) mod volumes;

use cfs_store::Reservation;

use crate::Fs;
use crate::error::{FsError, Result};
use crate::types::Room;

/// Bytes that a command of the namespace may add to the tables and the log, beside values that it carries.
const GROWTH_BYTES: u64 = 4096;
/// Room that is made at once when there is none, bytes.
const ROOM_BYTES: u64 = 16 << 20;

impl Fs {
    /// Room for a command that adds rows, with `value_bytes` of values; held until it has been committed.
    pub(crate) fn admit_growth(&self, value_bytes: usize) -> Result<Reservation> {
        let bytes = GROWTH_BYTES + 2 * value_bytes as u64;
        if let Ok(reservation) = self.store.admit(bytes) {
            return Ok(reservation);
        }
        self.reap_all()?;
        self.prune_all()?;
        self.store.make_room(ROOM_BYTES)?;
        Ok(self.store.admit(bytes)?)
    }

    /// The same for a change whose room may come from the reserve; nothing is held then.
    pub(crate) fn admit_change(
        &self,
        value_bytes: usize,
        room: Room,
    ) -> Result<Option<Reservation>> {
        match self.admit_growth(value_bytes) {
            Ok(reservation) => Ok(Some(reservation)),
            Err(FsError::NoSpace) if room == Room::Reserve && self.store.may_delete() => Ok(None),
            Err(error) => Err(error),
        }
    }
}
