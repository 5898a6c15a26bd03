//! The gear table: 256 numbers from a fixed seed, part of the pool's format.

use std::sync::LazyLock;

use super::WINDOW_BYTES;

/// Hashed with BLAKE3 in extendable-output mode: 256 entries of 8 bytes, then 16 of 2 for the low and 16 of 2 for the
/// high half of a byte, all little-endian.
const SEED: &[u8] = b"ClaudeFS 2026-11 gear table 1";

pub(super) struct GearTable {
    entries: [u64; 256],
    #[cfg_attr(
        not(any(
            target_arch = "x86_64",
            all(target_arch = "aarch64", target_endian = "little")
        )),
        expect(dead_code, reason = "only vector code looks at halves of bytes")
    )]
    halves: [[u16; 16]; 2],
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
        Self {
            entries: std::array::from_fn(|byte| {
                let low_bits = low_nibble[byte & 15] ^ high_nibble[byte >> 4];
                (wide[byte] & !0xffff) | u64::from(low_bits)
            }),
            halves: nibbles,
        }
    }

    /// What the low and the high half of a byte contribute to the low 16 bits of its entry, by XOR.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn halves(&self) -> &[[u16; 16]; 2] {
        &self.halves
    }

    /// The same by bytes: what the low half contributes to their low and to their high byte, then the high half.
    #[cfg(any(
        target_arch = "x86_64",
        all(target_arch = "aarch64", target_endian = "little")
    ))]
    pub(super) fn half_bytes(&self) -> [[u8; 16]; 4] {
        let [low_half, high_half] = self.halves;
        let low_byte = |value: u16| value.to_le_bytes()[0];
        let high_byte = |value: u16| value.to_le_bytes()[1];
        [
            low_half.map(low_byte),
            low_half.map(high_byte),
            high_half.map(low_byte),
            high_half.map(high_byte),
        ]
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
