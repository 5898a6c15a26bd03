//! A batch of changes that become visible together.

/// Longest key, bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// Longest value, bytes.
pub const VALUE_BYTES_MAX: usize = 128 * 1024;

/// Changes that [`crate::Tree::apply`] makes visible together. Of several for one key, the last one counts.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    changes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Batch {
    /// A batch without changes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the value of `key`.
    ///
    /// # Panics
    /// When the key is longer than [`KEY_BYTES_MAX`] or the value than [`VALUE_BYTES_MAX`].
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        assert!(key.len() <= KEY_BYTES_MAX, "key of {} bytes", key.len());
        assert!(
            value.len() <= VALUE_BYTES_MAX,
            "value of {} bytes",
            value.len()
        );
        self.changes.push((key, Some(value)));
    }

    /// Removes `key`, if it is there.
    ///
    /// # Panics
    /// When the key is longer than [`KEY_BYTES_MAX`].
    pub fn delete(&mut self, key: Vec<u8>) {
        assert!(key.len() <= KEY_BYTES_MAX, "key of {} bytes", key.len());
        self.changes.push((key, None));
    }

    /// Number of changes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether there are no changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Removes all changes and keeps the memory.
    pub fn clear(&mut self) {
        self.changes.clear();
    }

    /// The changes in the order in which they were made; no value means removal.
    pub(crate) fn changes(&self) -> &[(Vec<u8>, Option<Vec<u8>>)] {
        &self.changes
    }
}
