//! Errors: one for reading and writing runs, one for opening a tree.

use std::sync::Arc;

use crate::BlockPtr;

/// Why a run could not be read or written. Can be cloned, so that it may be reported to several who wait.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RunError {
    /// The store has no room for another run. Nothing changed.
    #[error("no space left for a table run")]
    NoSpace,
    /// The store could not read or write.
    #[error("input or output of a table run failed: {0}")]
    Io(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The keys of a run do not ascend, so that it cannot be merged.
    #[error("the keys of a table run do not ascend: it is corrupt")]
    Disorder,
    /// A block is not what was written: it does not authenticate, or it breaks a rule of the format.
    #[error("table block at place {:#x}, {} bytes, is corrupt: {rule}", block.place, block.stored_len)]
    Corrupt {
        /// The block.
        block: BlockPtr,
        /// The rule that it breaks.
        rule: &'static str,
    },
}

impl RunError {
    /// An [`RunError::Io`] with this cause.
    pub fn io(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Io(Arc::new(source))
    }
}

/// Why a tree could not be opened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// The manifest breaks a rule of its format.
    #[error("table manifest is corrupt: {rule}")]
    Manifest {
        /// The rule.
        rule: &'static str,
    },
    /// The manifest was written by a newer build.
    #[error(
        "table manifest has version {found}, this build reads up to {supported}: use a newer build"
    )]
    Version {
        /// Version found.
        found: u32,
        /// Newest version that this build reads.
        supported: u32,
    },
    /// A run that the manifest names cannot be read.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// A rule of the block format that bytes break; becomes [`RunError::Corrupt`] where the block's place is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadBlock(pub &'static str);

impl BadBlock {
    /// The error, with the place of the block.
    pub(crate) fn at(self, block: BlockPtr) -> RunError {
        RunError::Corrupt {
            block,
            rule: self.0,
        }
    }
}
