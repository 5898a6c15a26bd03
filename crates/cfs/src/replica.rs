//! The file from which a pool is made that can receive what another one sends.
//!
//! It holds the secret of that pool's first dedup domain, and its cipher: with both, sealed chunks of the one are sealed
//! chunks of the other. All other keys of the new pool are its own, so no nonce is ever used by both. Or it holds, in place
//! of the secret, the passage key: the new pool then keeps what it receives, and cannot read it.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use cfs_fs::stream::Role;
use cfs_seal::block::Cipher;
use cfs_seal::keys::{DomainSecret, PassageKey};
use zeroize::Zeroizing;

use crate::failure::{Code, Failure, Result};

const FIRST_LINE: &str = "cfs replica key 1";
/// Longest file that is looked at, bytes.
const FILE_BYTES_MAX: u64 = 1024;

/// Room for the text of any key, bytes: what outgrows its place leaves there what nobody wipes.
const TEXT_BYTES: usize = 256;

/// What is in the file.
pub struct ReplicaKey {
    /// The cipher of the pool.
    pub cipher: Cipher,
    /// What the new pool can do, and the key for it.
    pub role: Role,
}

const SECRET: &str = "secret ";
const PASSAGE: &str = "passage ";

fn add_hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
}

impl ReplicaKey {
    /// The file's content.
    pub fn render(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(TEXT_BYTES));
        let (word, key) = match &self.role {
            Role::Reads(secret) => (SECRET, secret.expose()),
            Role::Keeps(passage) => (PASSAGE, passage.expose()),
        };
        let cipher = self.cipher.number();
        let _ = write!(text, "{FIRST_LINE}\ncipher {cipher}\n{word}");
        add_hex(&mut text, key);
        text.push('\n');
        let check = blake3::hash(text.as_bytes());
        text.push_str("check ");
        add_hex(&mut text, &check.as_bytes()[..8]);
        text.push('\n');
        text
    }

    /// What a file with this content says; `None` when it is none, or damaged.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut lines = text.lines();
        if lines.next() != Some(FIRST_LINE) {
            return None;
        }
        let cipher = lines.next()?.strip_prefix("cipher ")?.parse().ok()?;
        let line = lines.next()?;
        let (reads, digits) = match line.strip_prefix(SECRET) {
            Some(digits) => (true, digits.as_bytes()),
            None => (false, line.strip_prefix(PASSAGE)?.as_bytes()),
        };
        let mut key = Zeroizing::new([0; 32]);
        if digits.len() != 64 {
            return None;
        }
        for (byte, pair) in key.iter_mut().zip(digits.chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        let cipher = Cipher::from_number(cipher)?;
        let role = match reads {
            true => Role::Reads(Arc::new(DomainSecret::from_bytes(*key))),
            false => Role::Keeps(PassageKey::from_bytes(*key)),
        };
        let found = Self { cipher, role };
        (*found.render() == text).then_some(found)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Code::Usage`] when it is none.
    pub fn read(path: &Path) -> Result<Self> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX as usize + 1));
        std::fs::File::open(path)
            .and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes))
            .map_err(|error| Failure::host("read", path, &error))?;
        Self::parse(&bytes).ok_or_else(|| {
            Failure::new(
                Code::Usage,
                format!("{} is no replica key, or is damaged", path.display()),
            )
            .hint("`cfs admin key replica FILE` on the pool that is to be sent from writes one")
        })
    }
}

/// Writes a file that only its owner can read, and which must not be there.
///
/// # Errors
/// [`Code::Host`].
pub fn write(path: &Path, text: &str) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|e| Failure::host("write", path, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_damage_is_seen() {
        let bytes = std::array::from_fn(|at| at as u8 * 7);
        for role in [
            Role::Reads(Arc::new(DomainSecret::from_bytes(bytes))),
            Role::Keeps(PassageKey::from_bytes(bytes)),
        ] {
            let cipher = Cipher::Aes256Gcm;
            let key = ReplicaKey { cipher, role };
            let text = key.render();
            let read = ReplicaKey::parse(text.as_bytes()).expect("a key");
            assert_eq!(read.cipher, cipher);
            let is_same = match (&read.role, &key.role) {
                (Role::Reads(read), Role::Reads(key)) => read.expose() == key.expose(),
                (Role::Keeps(read), Role::Keeps(key)) => read.expose() == key.expose(),
                _ => false,
            };
            assert!(is_same, "{:?}", key.role);
            for at in 0..text.len() {
                let mut damaged = text.as_bytes().to_vec();
                for bit in [1, 0x80] {
                    damaged[at] ^= bit;
                    assert!(ReplicaKey::parse(&damaged).is_none(), "byte {at}");
                    damaged[at] ^= bit;
                }
                assert!(ReplicaKey::parse(&damaged[..at]).is_none(), "{at} bytes");
            }
        }
    }
}
