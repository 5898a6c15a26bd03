//! Bugs on purpose, of which the checkers must find each.
//!
//! Only with the feature `planted-bugs`, which nothing of the product turns on: the simulation and the models of the store
//! build with it, plant one bug at a time, and must fail. docs/RELIABILITY.md lists who finds what.

use std::sync::atomic::{AtomicU8, Ordering};

/// A bug that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Bug {
    /// A flush of the log is acknowledged without a flush of the device.
    MissingFlush = 1,
    /// A failed flush is tried again, and believed when it succeeds then.
    FailedFlushRetried,
    /// References are counted with the next command instead of with the extents.
    CountAfterExtent,
    /// A segment that was emptied is used again before the checkpoint.
    FreeBeforeDurable,
    /// A chunk that was dropped stays in the index.
    StaleIndexEntry,
    /// Room that a reservation gives back stays promised.
    ReservationLeak,
    /// An eighth of the room is promised that accepted data may take.
    RoomForgotten,
    /// Named pipes get a name and no inode.
    DirentWithoutInode,
    /// A checkpoint's superblock is written before what it refers to is flushed.
    CheckpointBeforeData,
    /// Chunks of commands that may not have been flushed are believed unseen.
    TailBelieved,
    /// A new entry's cookie is the count of entries.
    CookieReused,
    /// Merges drop all tombstones.
    LostTombstone,
    /// A file is cut to nothing in a command before the one with the new content.
    TruncateBeforeContent,
    /// A rename does not write the content of what takes a file's name.
    RenameBeforeContent,
    /// An inode that is open when it loses its last name is not noted as an orphan.
    OrphanForgotten,
    /// A snapshot is taken before what was accepted is in the log.
    SnapshotBeforeData,
    /// An extent that a snapshot holds is not counted.
    HistoryUncounted,
    /// After a flush everything is acknowledged that was committed by then.
    NewestAcknowledged,
    /// Lanes are written out before the queue of commands is taken.
    LanesBeforeQueue,
    /// Extents that are copied for a clone are not counted.
    CopyUncounted,
    /// What a clone removes of its origin leaves nothing that says so.
    GoneForgotten,
    /// A change on one side of a window's edge leaves what the other one has decoded of an extent across it.
    WindowEdgeForgotten,
    /// A chunk that is sealed again keeps the length of its old record in the index.
    ResealedLengthForgotten,
    /// A file that is restored keeps what has been written where the snapshot has a hole, or no more of it.
    RestoredHoleForgotten,
    /// A chunk is looked up before it is pinned.
    PinAfterLookup,
    /// A full data segment is looked for on the device before it has been written there.
    SealForgotten,
    /// A checkpoint retires all journal segments but those that are current when it looks.
    FollowerRetired,
}

impl Bug {
    /// Those that the simulation finds, which has one thread.
    pub const ALL: [Self; 22] = [
        Self::MissingFlush,
        Self::FailedFlushRetried,
        Self::CountAfterExtent,
        Self::FreeBeforeDurable,
        Self::StaleIndexEntry,
        Self::ReservationLeak,
        Self::RoomForgotten,
        Self::DirentWithoutInode,
        Self::CheckpointBeforeData,
        Self::TailBelieved,
        Self::CookieReused,
        Self::LostTombstone,
        Self::TruncateBeforeContent,
        Self::RenameBeforeContent,
        Self::OrphanForgotten,
        Self::SnapshotBeforeData,
        Self::HistoryUncounted,
        Self::CopyUncounted,
        Self::GoneForgotten,
        Self::WindowEdgeForgotten,
        Self::ResealedLengthForgotten,
        Self::RestoredHoleForgotten,
    ];

    /// Those that show only when threads meet: the models of the store find them.
    pub const MET: [Self; 5] = [
        Self::NewestAcknowledged,
        Self::LanesBeforeQueue,
        Self::PinAfterLookup,
        Self::SealForgotten,
        Self::FollowerRetired,
    ];

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::MissingFlush => "missing-flush",
            Self::FailedFlushRetried => "failed-flush-retried",
            Self::CountAfterExtent => "count-after-extent",
            Self::FreeBeforeDurable => "free-before-durable",
            Self::StaleIndexEntry => "stale-index-entry",
            Self::ReservationLeak => "reservation-leak",
            Self::RoomForgotten => "room-forgotten",
            Self::DirentWithoutInode => "dirent-without-inode",
            Self::CheckpointBeforeData => "checkpoint-before-data",
            Self::TailBelieved => "tail-believed",
            Self::CookieReused => "cookie-reused",
            Self::LostTombstone => "lost-tombstone",
            Self::TruncateBeforeContent => "truncate-before-content",
            Self::RenameBeforeContent => "rename-before-content",
            Self::OrphanForgotten => "orphan-forgotten",
            Self::NewestAcknowledged => "newest-acknowledged",
            Self::LanesBeforeQueue => "lanes-before-queue",
            Self::PinAfterLookup => "pin-after-lookup",
            Self::SealForgotten => "seal-forgotten",
            Self::FollowerRetired => "follower-retired",
            Self::SnapshotBeforeData => "snapshot-before-data",
            Self::HistoryUncounted => "history-uncounted",
            Self::CopyUncounted => "copy-uncounted",
            Self::GoneForgotten => "gone-forgotten",
            Self::WindowEdgeForgotten => "window-edge-forgotten",
            Self::ResealedLengthForgotten => "resealed-length-forgotten",
            Self::RestoredHoleForgotten => "restored-hole-forgotten",
        }
    }

    /// The bug with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let mut bugs = Self::ALL.into_iter().chain(Self::MET);
        bugs.find(|bug| bug.name() == name)
    }
}

static PLANTED: AtomicU8 = AtomicU8::new(0);

/// Plants a bug in this process, in place of the one before.
pub fn plant(bug: Option<Bug>) {
    PLANTED.store(bug.map_or(0, |bug| bug as u8), Ordering::SeqCst);
}

/// Whether this bug is planted.
#[must_use]
pub fn has(bug: Bug) -> bool {
    PLANTED.load(Ordering::Relaxed) == bug as u8
}
