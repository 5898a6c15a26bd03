//! What a pool can do with streams: read them, or only keep them.

use std::sync::Arc;

use cfs_format::{DomainId, Ino};
use cfs_seal::keys::{DomainSecret, PassageKey};
use cfs_store::Store;
use zeroize::Zeroizing;

use crate::command::{Command, SetRecords};
use crate::error::FsError;
use crate::{Fs, apply};

/// Record of the root of a pool that keeps snapshots of others: their passage key.
pub(crate) const KEEPS: &[u8] = b"replica.keeps";

/// What a pool does with streams, and the key for it.
#[derive(Debug)]
pub enum Role {
    /// It has the secret of the pools whose streams it takes, and its own.
    Reads(Arc<DomainSecret>),
    /// It has the passage key of other pools, and keeps what they send without being able to read it.
    Keeps(PassageKey),
}

impl Role {
    /// The key of frames.
    #[must_use]
    pub fn passage(&self) -> PassageKey {
        match self {
            Self::Reads(secret) => secret.passage(),
            Self::Keeps(passage) => PassageKey::from_bytes(*passage.expose()),
        }
    }
}

impl Fs {
    /// Has a pool that [`Fs::format`] has just prepared keep the snapshots of the pools that have this passage key.
    ///
    /// # Errors
    /// What the store refuses. Nothing changed.
    pub fn format_to_keep(store: &Store, passage: &PassageKey) -> crate::Result<()> {
        let command = Command::SetRecords(SetRecords {
            ino: Ino::ROOT,
            put: vec![(KEEPS.to_vec(), passage.expose().to_vec())],
            delete: Vec::new(),
            describes: false,
            now: None,
        });
        let mut txn = store.begin();
        apply::apply(&mut txn, &command)?;
        txn.commit(&command.encode())?;
        Ok(())
    }

    /// The passage key of the pools whose snapshots this one keeps without being able to read them; `None` of a pool that
    /// can.
    ///
    /// # Errors
    /// When it cannot be read.
    fn keeps(&self) -> crate::Result<Option<PassageKey>> {
        let Some(key) = self.record(Ino::ROOT, KEEPS)? else {
            return Ok(None);
        };
        let key = Zeroizing::new(key);
        let key = <[u8; 32]>::try_from(&key[..])
            .map_err(|_| FsError::damaged("the key of the snapshots that are kept"))?;
        Ok(Some(PassageKey::from_bytes(key)))
    }

    /// What this pool does with streams.
    ///
    /// # Errors
    /// When its key cannot be read.
    pub fn role(&self) -> crate::Result<Role> {
        if let Some(passage) = self.keeps()? {
            return Ok(Role::Keeps(passage));
        }
        let secret = self.store.domain_secret(DomainId::DEFAULT);
        let secret = secret.ok_or_else(|| FsError::damaged("the first dedup domain is missing"))?;
        Ok(Role::Reads(secret))
    }
}
