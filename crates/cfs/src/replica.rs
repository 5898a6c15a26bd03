//! The file from which a pool is made that can receive what another one sends.
//!
//! It holds the secret of that pool's first dedup domain, and its cipher: with both, sealed chunks of the one are sealed
//! chunks of the other. All other keys of the new pool are its own, so no nonce is ever used by both. Or it holds, in place
//! of the secret, the passage key: the new pool then keeps what it receives, and cannot read it.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use cfs_seal::block::Cipher;
use zeroize::Zeroizing;

use crate::failure::{Code, Failure, Result};

const FIRST_LINE: &str = "cfs replica key 1";
/// Longest file that is looked at, bytes.
const FILE_BYTES_MAX: u64 = 1024;

/// What is in the file.
pub struct ReplicaKey {
    /// The cipher of the pool.
    pub cipher: Cipher,
    /// What the new pool can do.
    pub role: Role,
    /// The secret, or the passage key.
    pub key: Zeroizing<[u8; 32]>,
}

/// What a pool can do with what it receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Show it.
    Reads,
    /// Hand it out again.
    Keeps,
}

impl Role {
    const ALL: [Self; 2] = [Self::Reads, Self::Keeps];

    fn word(self) -> &'static str {
        match self {
            Self::Reads => "secret ",
            Self::Keeps => "passage ",
        }
    }
}

impl ReplicaKey {
    /// The file's content.
    pub fn render(&self) -> Zeroizing<String> {
        let hex =
            |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
        let body = Zeroizing::new(format!(
            "{FIRST_LINE}\ncipher {}\n{}{}\n",
            self.cipher.number(),
            self.role.word(),
            &*Zeroizing::new(hex(&*self.key))
        ));
        let check = blake3::hash(body.as_bytes());
        Zeroizing::new(format!("{}check {}\n", &*body, hex(&check.as_bytes()[..8])))
    }

    /// What a file with this content says; `None` when it is none, or damaged.
    pub fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next() != Some(FIRST_LINE) {
            return None;
        }
        let cipher = lines.next()?.strip_prefix("cipher ")?.parse().ok()?;
        let line = lines.next()?;
        let said = |role: Role| Some((role, line.strip_prefix(role.word())?.as_bytes()));
        let (role, digits) = Role::ALL.into_iter().find_map(said)?;
        let mut key = Zeroizing::new([0; 32]);
        if digits.len() != 64 {
            return None;
        }
        for (byte, pair) in key.iter_mut().zip(digits.chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        let cipher = Cipher::from_number(cipher)?;
        let found = Self { cipher, role, key };
        (*found.render() == text).then_some(found)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Code::Usage`] when it is none.
    pub fn read(path: &Path) -> Result<Self> {
        use std::io::Read;
        let mut text = Zeroizing::new(String::new());
        let read = std::fs::File::open(path)
            .and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
        match read {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => text.clear(),
            Err(error) => return Err(Failure::host("read", path, &error)),
        }
        Self::parse(&text).ok_or_else(|| {
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
        for role in Role::ALL {
            let key = ReplicaKey {
                cipher: Cipher::Aes256Gcm,
                role,
                key: Zeroizing::new(std::array::from_fn(|at| at as u8 * 7)),
            };
            let text = key.render();
            let read = ReplicaKey::parse(&text).expect("a key");
            assert_eq!(
                (read.cipher, read.role, *read.key),
                (key.cipher, role, *key.key)
            );
            for at in 0..text.len() {
                let mut damaged = text.as_bytes().to_vec();
                damaged[at] ^= 1;
                let damaged = String::from_utf8(damaged).expect("text still");
                assert!(ReplicaKey::parse(&damaged).is_none(), "byte {at}");
                assert!(ReplicaKey::parse(&text[..at]).is_none(), "{at} bytes");
            }
        }
    }
}
