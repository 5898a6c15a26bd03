//! Sending snapshots to other pools, and receiving them.
//!
//! Both pools have the secret of the dedup domain, or one keeps what it cannot read; so chunks travel as they are stored. All
//! else travels in frames that only who has a key from that secret can make or open. `docs/format/stream.md` tells the messages.
//!
//! | module | holds |
//! | --- | --- |
//! | `wire` | the messages, and frames of them |
//! | `send` | what a snapshot shows, or what is different from an earlier one, as messages |
//! | `receive` | names and attributes from messages |
//! | `target` | the directory that receives |
//! | `arrival` | content from messages |
//! | `outgoing` | a stream on its way out, and chunks that the other side lacks |
//! | `keep` | what comes, kept as it is by a pool that cannot read it |
//! | `keys` | which of the two a pool does |

mod arrival;
pub(crate) mod closed;
mod keep;
pub(crate) mod keys;
mod outgoing;
mod receive;
mod send;
mod target;
pub mod wire;

use crate::error::FsError;
use crate::types::Caller;

pub use keys::Role;
pub use receive::{Received, holds_arrivals};
pub(crate) use receive::{check_snapshot_name, is_of_pool, record_stays};
pub use send::Sent;
pub use target::Arrival;

/// Receiving as root: attributes come with the stream.
const ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 0,
    umask: 0,
};

/// Why sending or receiving ended.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The input has ended before a stream has begun.
    #[error("there is no stream: the input is empty")]
    Nothing,
    /// The other side went away, or the stream is cut off.
    #[error("the stream ends too early")]
    CutOff,
    /// The bytes cannot be read or written.
    #[error("the stream: {0}")]
    Io(std::io::Error),
    /// The bytes are not those of a stream.
    #[error("this is no stream of cfs: {0}")]
    NotAStream(&'static str),
    /// The stream is of a version that this build does not know.
    #[error("the stream has version {0}, and this cfs knows version 2")]
    Version(u16),
    /// A frame does not open: it is damaged, or was made for a pool with another secret.
    #[error("frame {0} of the stream is damaged, or the stream is not for this pool")]
    Forged(u64),
    /// What was sealed makes no sense.
    #[error("the stream contradicts itself: {0}")]
    Contradiction(&'static str),
    /// What the stream is to be put on is not here.
    #[error("the stream goes on from a snapshot that is not here: {0}")]
    NoBase(String),
    /// The path is something else already.
    #[error("{0}")]
    Target(String),
    /// The other side gave up.
    #[error("the other side: {0}")]
    Peer(String),
    /// The file system, on this side.
    #[error(transparent)]
    Fs(#[from] FsError),
}

impl From<std::io::Error> for StreamError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Self::CutOff,
            _ => Self::Io(error),
        }
    }
}

type Result<T> = std::result::Result<T, StreamError>;
