//! ClaudeFS: chunk, fingerprint, compress, encrypt, derive keys.
//!
//! Pure: no I/O, no clock, no entropy. Whoever calls gives salts, nonces and times, and answers for it that a place
//! (segment sequence number and offset) is sealed only once under one key. The functions that open or parse take any
//! bytes and return an error for those that are not what they should be.
//!
//! What is sealed how is told in `docs/format/chunks.md`.

pub mod block;
pub mod chunk;
pub mod chunker;
pub mod codec;
pub mod customer;
pub mod footer;
pub mod keys;
pub mod parity;
pub mod stream;
