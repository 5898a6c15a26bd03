//! The gear table: 256 numbers from a fixed seed, part of the pool's format.

use std::sync::LazyLock;

/// Hashed with BLAKE3 in extendable-output mode: 256 entries of 8 bytes, then 16 of 2 for the low and 16 of 2 for the
/// high half of a byte, all little-endian.
const SEED: &[u8] = b"ClaudeFS 2026-11 gear table 1";

pub(super) struct GearTable {
    entries: [u64; 256],
}

pub(super) fn gear_table() -> &'static GearTable {
    static TABLE: LazyLock<GearTable> = LazyLock::new(GearTable::generate);
    &TABLE
}

impl GearTable {
    fn generate() -> Self {
        let mut output = blake3::Hasher::new().update(SEED).finalize_xof();
        let mut next = || {
            let mut bytes = [0; 8];
            output.fill(&mut bytes);
            u64::from_le_bytes(bytes)
        };
        let wide: [u64; 256] = std::array::from_fn(|_| next());
        let quads: [u64; 8] = std::array::from_fn(|_| next());
        let half = |index: usize| (quads[index / 4] >> (index % 4 * 16)) & 0xffff;
        Self {
            entries: std::array::from_fn(|byte| {
                let low_bits = half(byte & 15) ^ half(16 + (byte >> 4));
                (wide[byte] & !0xffff) | low_bits
            }),
        }
    }

    /// The hash of the bytes before, and this one; what lies 64 bytes back drops out.
    #[inline]
    pub(super) fn step(&self, hash: u64, byte: u8) -> u64 {
        (hash << 1).wrapping_add(self.entries[usize::from(byte)])
    }

    pub(super) fn hash(&self, window: &[u8]) -> u64 {
        window.iter().fold(0, |hash, byte| self.step(hash, *byte))
    }
}
