//! What `cfs send` writes: a plain head, then frames. See `docs/format/stream.md`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, little_endian as le};

/// First bytes of a stream.
pub const STREAM_MAGIC: [u8; 8] = *b"cfs-send";

/// The version that this build writes and reads.
pub const STREAM_VERSION: u16 = 2;

/// Longest frame, bytes, with its tag.
pub const FRAME_BYTES_MAX: u32 = 16 << 20;

/// The start of a stream, in clear. Its salt goes into the key of the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct StreamHead {
    /// [`STREAM_MAGIC`].
    pub magic: [u8; 8],
    /// [`STREAM_VERSION`].
    pub version: le::U16,
    /// Cipher of the pool, and of the frames.
    pub cipher: u8,
    /// Zero.
    pub reserved: [u8; 5],
    /// Random, new for each stream.
    pub salt: [u8; 32],
}

const _: () = assert!(size_of::<StreamHead>() == 48);
