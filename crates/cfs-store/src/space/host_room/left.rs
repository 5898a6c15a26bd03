//! Looks for the room that earlier processes have left in free segments: on a host that others have filled there is no other.

use cfs_device::{Device, DeviceError, HostRoom};
use cfs_format::{SEGMENT_BYTES, SegmentId};

use super::{GivenRoom, NoSpaceOr, PREPARED_KEPT, ROOM_SEARCHED, Room, START_BYTES, STARTED_KEPT};

/// Free segments that are tried when a pool is opened on a host that does not tell what has room.
const ROOM_TRIED: usize = 1024;
/// Segments beyond the last one used that a process which was killed may have prepared: as many as hold twice the largest
/// promises that are usual.
const SUSPECTS: u32 = 1024;

impl GivenRoom {
    /// Finds out which free segments still have room on the host from the process before, which kept some for this one.
    pub fn find_room(&mut self, device: &dyn Device, was_clean: bool) -> Result<(), DeviceError> {
        if !self.sparse {
            return Ok(());
        }
        let room = match device.host_room() {
            Ok(Some(room)) => room,
            unknown => {
                if let Err(error) = unknown {
                    tracing::warn!(%error, "what room the pool's file has is looked for");
                }
                return self.try_for_room(device, was_clean);
            }
        };
        for HostRoom {
            segment,
            start_bytes,
        } in room
        {
            if segment.0 >= self.segment_count || !self.is_free(segment) {
                continue;
            }
            self.extend_to(segment.0 + 1);
            self.held.insert(segment.0);
            let is_whole = start_bytes == SEGMENT_BYTES;
            let given = if is_whole && self.prepared.len() < PREPARED_KEPT {
                self.is_given_room(device, segment, Room::Whole)
            } else if !is_whole && start_bytes >= START_BYTES && self.started.len() < STARTED_KEPT {
                self.is_given_room(device, segment, Room::Start)
            } else {
                continue;
            };
            match given {
                Ok(_) | Err(NoSpaceOr::NoSpace(_)) => {}
                Err(NoSpaceOr::Other(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// As above where the host does not tell: on one that is full only what has room can be prepared.
    fn try_for_room(&mut self, device: &dyn Device, was_clean: bool) -> Result<(), DeviceError> {
        // One that was closed has given back all but what is kept.
        if !was_clean {
            self.hold_free();
        }
        let end = self.end();
        let beyond = end..end.saturating_add(ROOM_SEARCHED).min(self.segment_count);
        let used = self.free.iter().take(ROOM_TRIED).copied();
        let candidates: Vec<u32> = used.chain(beyond).collect();
        for room in [Room::Whole, Room::Start] {
            for index in &candidates {
                if !self.is_short(room) {
                    break;
                }
                if self.is_prepared(SegmentId(*index)) {
                    continue;
                }
                match self.is_given_room(device, SegmentId(*index), room) {
                    Ok(_) | Err(NoSpaceOr::NoSpace(_)) => {}
                    Err(NoSpaceOr::Other(error)) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// What is free may still have room on the host.
    fn hold_free(&mut self) {
        self.held = self.free.clone();
        let used = self.end();
        self.suspect = used..used.saturating_add(SUSPECTS).min(self.segment_count);
    }

    /// On a host that is full: looks for a free segment that the host gave room to for an earlier process, which ended
    /// before it used it or gave it back.
    pub(super) fn prepare_one_with_room(
        &mut self,
        device: &dyn Device,
    ) -> Result<bool, NoSpaceOr<DeviceError>> {
        if !self.sparse {
            return Ok(false);
        }
        let end = self.end();
        let beyond = end..end.saturating_add(ROOM_SEARCHED).min(self.segment_count);
        let count = ROOM_SEARCHED as usize;
        let lowest = self.free.iter().take(count);
        let highest = self.free.iter().rev().take(count);
        let candidates: Vec<u32> = lowest.chain(highest).copied().chain(beyond).collect();
        self.one_is_given_room(device, candidates, Room::Whole)
    }
}
