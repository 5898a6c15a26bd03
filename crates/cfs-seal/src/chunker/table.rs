//! The gear table: 256 numbers from a fixed seed, part of the pool's format.

use std::sync::LazyLock;

use super::WINDOW_BYTES;

/// Hashed with BLAKE3 in extendable-output mode: 256 entries of 8 bytes, then 16 of 2 for the low and 16 of 2 for the
/// high half of a byte, all little-endian.
const SEED: &[u8] = b"ClaudeFS 2026-11 gear table 1";

pub(super) struct GearTable {
    entries: [u64; 256],
    nibble_tables: [[u8; 16]; 4],
}

pub(super) fn gear_table() -> &'static GearTable {
    static TABLE: LazyLock<GearTable> = LazyLock::new(GearTable::generate);
    &TABLE
}

impl GearTable {
    fn generate() -> Self {
        let mut output = blake3::Hasher::new().update(SEED).finalize_xof();
        let mut wide = [0; 256];
        for entry in &mut wide {
            let mut bytes = [0; 8];
            output.fill(&mut bytes);
            *entry = u64::from_le_bytes(bytes);
        }
        let mut nibbles = [[0; 16]; 2];
        for value in nibbles.as_flattened_mut() {
            let mut bytes = [0; 2];
            output.fill(&mut bytes);
            *value = u16::from_le_bytes(bytes);
        }
        let [low_nibble, high_nibble] = nibbles;
        let low_byte = |value: u16| value.to_le_bytes()[0];
        let high_byte = |value: u16| value.to_le_bytes()[1];
        Self {
            entries: std::array::from_fn(|byte| {
                let low_bits = low_nibble[byte & 15] ^ high_nibble[byte >> 4];
                (wide[byte] & !0xffff) | u64::from(low_bits)
            }),
            nibble_tables: [
                low_nibble.map(low_byte),
                low_nibble.map(high_byte),
                high_nibble.map(low_byte),
                high_nibble.map(high_byte),
            ],
        }
    }

    /// What a byte contributes to the low 16 bits of its entry, by XOR: its low half to their low and to their high
    /// byte, then its high half to the same.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn nibble_tables(&self) -> &[[u8; 16]; 4] {
        &self.nibble_tables
    }

    /// The hash of the bytes before, and this one; what lies 64 bytes back drops out.
    #[inline]
    pub(super) fn step(&self, hash: u64, byte: u8) -> u64 {
        (hash << 1).wrapping_add(self.entries[usize::from(byte)])
    }

    /// The hash after these bytes, in four parts that do not wait for each other.
    #[inline]
    pub(super) fn hash_window(&self, window: &[u8; WINDOW_BYTES]) -> u64 {
        let mut quarters = [0u64; 4];
        for index in 0..16 {
            for (quarter, hash) in quarters.iter_mut().enumerate() {
                *hash = self.step(*hash, window[quarter * 16 + index]);
            }
        }
        quarters
            .into_iter()
            .fold(0, |hash, quarter| (hash << 16).wrapping_add(quarter))
    }
}
