//! Formatting: the first command of a pool.

use cfs_format::DomainId;
use cfs_store::{Host, Store};

use crate::command::{Command, Format};
use crate::error::Result;
use crate::types::Time;
use crate::{Fs, apply};

/// What the root volume is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatOptions {
    /// Owner of the root directory.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// `segment::CODEC_*` for new chunks.
    pub codec: u8,
    /// Level of the codec; 0 where it has none.
    pub codec_level: u8,
}

impl Fs {
    /// Makes the root volume and the root directory (mode 0755) in a store that has none.
    ///
    /// # Errors
    /// [`crate::FsError::Exists`] when there is a root directory; what the store refuses. Nothing changed.
    pub fn format(store: &Store, host: &dyn Host, options: &FormatOptions) -> Result<()> {
        let mut salt = [0; 16];
        host.fill_random(&mut salt);
        let command = Command::Format(Format {
            uid: options.uid,
            gid: options.gid,
            codec: options.codec,
            codec_level: options.codec_level,
            domain: DomainId::DEFAULT,
            now: Time::from_ns(host.now_ns()),
            salt,
        });
        let mut txn = store.begin();
        apply::apply(&mut txn, &command)?;
        txn.commit(&command.encode())?;
        Ok(())
    }
}
