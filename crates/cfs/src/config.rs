//! What `config.json` of a data directory says.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What it says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The block device that holds the pool.
    pub device: PathBuf,
}

impl Config {
    /// What a file with this content says.
    ///
    /// # Errors
    /// It is no JSON, or says something else.
    pub fn parse(bytes: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }
}
