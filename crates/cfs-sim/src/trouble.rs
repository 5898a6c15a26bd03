//! What goes wrong in a round.

use cfs_device::{FaultPlan, MemDevice};
use cfs_format::{BLOCK_BYTES, SEGMENT_BYTES};

use crate::rng::Rng;

/// The trouble of one round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// None but the power cut at the end.
    None,
    /// The power goes at this call of the device.
    PowerOff(u64),
    /// This write fails; a part of it may have been done.
    FailingWrite(u64),
    /// This flush fails, and nothing before it that was not flushed is ever made durable.
    FailingFlush(u64),
    /// This read fails.
    FailingRead(u64),
    /// This read fails after half of it.
    ShortRead(u64),
    /// This flush says that it was done, and was not.
    LyingFlush(u64),
    /// The host has room for so many more blocks than the pool takes.
    FullHost(u64),
    /// More is written than the pool can hold.
    FullPool,
}

impl Trouble {
    /// Chosen so that power cuts are the most frequent, and early calls as likely as late ones.
    pub fn choose(rng: &mut Rng) -> Self {
        let call = 1 + rng.length(4000);
        let nth = 1 + rng.length(120);
        match rng.below(20) {
            0..=3 => Self::None,
            4..=8 => Self::PowerOff(call),
            9 | 10 => Self::FailingWrite(nth),
            11 | 12 => Self::FailingFlush(nth),
            13 | 14 => Self::FailingRead(call),
            15 => Self::ShortRead(call),
            16 => Self::LyingFlush(nth),
            17 | 18 => Self::FullHost(rng.length(24 * u64::from(SEGMENT_BYTES / BLOCK_BYTES))),
            _ => Self::FullPool,
        }
    }

    /// Whether it may meet the opening of the pool too.
    pub fn may_begin_early(self) -> bool {
        !matches!(self, Self::None | Self::FullHost(_) | Self::FullPool)
    }

    /// What the device is told.
    pub fn plan(self, device: &MemDevice) -> FaultPlan {
        let mut plan = FaultPlan::default();
        match self {
            Self::None | Self::FullPool => {}
            Self::PowerOff(call) => plan.power_off_at = Some(call),
            Self::FailingWrite(nth) => plan.failing_writes.push(nth),
            Self::FailingFlush(nth) => plan.failing_flushes.push(nth),
            Self::FailingRead(nth) => plan.failing_reads.push(nth),
            Self::ShortRead(nth) => plan.short_reads.push(nth),
            Self::LyingFlush(nth) => plan.lying_flushes.push(nth),
            Self::FullHost(more) => {
                plan.room_blocks_max = Some(device.room_blocks() + more);
            }
        }
        plan
    }

    /// Whether the pool may go read-only by it.
    pub fn may_end_writing(self) -> bool {
        matches!(
            self,
            Self::PowerOff(_) | Self::FailingWrite(_) | Self::FailingFlush(_)
        )
    }

    /// Whether the write or the flush that fails has been made, after which nothing may be written any more: what of it is on
    /// the device is not known, and a later flush would say nothing of it.
    pub fn has_ended_writing(self, device: &MemDevice) -> bool {
        match self {
            Self::FailingWrite(nth) => device.counts().writes >= nth,
            Self::FailingFlush(nth) => device.counts().flushes >= nth,
            _ => false,
        }
    }

    /// Whether there may be no room for what is written.
    pub fn may_lack_room(self) -> bool {
        matches!(self, Self::FullPool | Self::FullHost(_))
    }

    /// Whether reading may fail by it.
    pub fn may_fail_reading(self) -> bool {
        matches!(
            self,
            Self::PowerOff(_) | Self::FailingRead(_) | Self::ShortRead(_)
        )
    }
}
