//! Reading and writing the superblock in the two anchor segments.
//!
//! Records are appended one block apart, to both anchors, the second only after the first is durable: whatever
//! happens, one anchor holds a whole newest record or the one before. A full anchor is reset before it is used again;
//! the other one holds the newest record then.

use cfs_device::{Device, DeviceError};
use cfs_format::superblock::{ANCHORS, Superblock};
use cfs_format::{BLOCK_BYTES, FORMAT_VERSION, SEGMENT_BYTES, SegmentId};
use cfs_seal::keys::{
    ClusterKey, check_superblock_checksum, check_superblock_mac, seal_superblock,
};

use crate::error::OpenError;
use crate::heal::read_what_can_be;

/// The newest superblock record whose checksum holds, not yet checked against a key.
pub struct UnverifiedSuperblock {
    /// Its fields.
    pub superblock: Superblock,
    block: Vec<u8>,
}

impl UnverifiedSuperblock {
    /// Whether the record was written by somebody who knows the key.
    pub fn is_authentic(&self, key: &ClusterKey) -> bool {
        check_superblock_mac(&self.block, key)
    }
}

/// Where the next record goes.
pub(crate) struct Anchors {
    next_offset: [u32; ANCHORS as usize],
}

/// Finds the superblock.
///
/// # Errors
/// No superblock, one of a newer format, or a device error.
pub fn read_superblock(device: &dyn Device) -> Result<UnverifiedSuperblock, OpenError> {
    scan(device).map(|(found, _)| found)
}

pub(crate) fn scan(device: &dyn Device) -> Result<(UnverifiedSuperblock, Anchors), OpenError> {
    let mut newest: Option<UnverifiedSuperblock> = None;
    let mut newer_format = None;
    let mut damaged = false;
    let mut next_offset = [0; ANCHORS as usize];
    let mut failure = None;
    let mut is_refused = [false; ANCHORS as usize];
    let mut content = vec![0; SEGMENT_BYTES as usize];
    for anchor in 0..ANCHORS {
        if let Err(error) = device.read_at(SegmentId(anchor), 0, &mut content) {
            failure = Some(error);
            is_refused[anchor as usize] = true;
            read_what_can_be(device, SegmentId(anchor), 0, &mut content);
        }
        for (index, block) in content.chunks_exact(BLOCK_BYTES as usize).enumerate() {
            if block == [0; BLOCK_BYTES as usize] {
                continue;
            }
            next_offset[anchor as usize] = (index as u32 + 1) * BLOCK_BYTES;
            match check_superblock_checksum(block) {
                Ok(superblock) => {
                    let newer = newest.as_ref().is_none_or(|best| {
                        superblock.generation.get() > best.superblock.generation.get()
                    });
                    if newer {
                        newest = Some(UnverifiedSuperblock {
                            superblock,
                            block: block.to_vec(),
                        });
                    }
                }
                Err(error) => {
                    if block.starts_with(&cfs_format::superblock::MAGIC) {
                        damaged = true;
                        if error.rule == "version" {
                            newer_format = block[8..12].try_into().ok().map(u32::from_le_bytes);
                        }
                    }
                }
            }
        }
    }
    if let Some(found) = newer_format.filter(|found| *found > FORMAT_VERSION) {
        return Err(OpenError::NewerFormat {
            found,
            supported: FORMAT_VERSION,
        });
    }
    for (next, is_refused) in next_offset.iter_mut().zip(is_refused) {
        // Where records may be that nobody can read none is appended: the anchor starts anew.
        if is_refused {
            *next = SEGMENT_BYTES;
        }
    }
    match (newest, failure) {
        (Some(newest), _) => Ok((newest, Anchors { next_offset })),
        (None, Some(error)) => Err(error.into()),
        (None, None) if damaged => Err(OpenError::Superblock(
            "no record in either anchor verifies".into(),
        )),
        (None, None) => Err(OpenError::NotAPool),
    }
}

/// Whether an anchor has a sound record of this generation.
pub(crate) fn has_record(
    device: &dyn Device,
    anchor: u32,
    generation: u64,
    key: &ClusterKey,
) -> bool {
    let mut content = vec![0; SEGMENT_BYTES as usize];
    read_what_can_be(device, SegmentId(anchor), 0, &mut content);
    content.chunks_exact(BLOCK_BYTES as usize).any(|block| {
        check_superblock_checksum(block).is_ok_and(|found| found.generation.get() == generation)
            && check_superblock_mac(block, key)
    })
}

impl Anchors {
    /// Anchors of a device without a pool.
    pub fn empty() -> Self {
        Self {
            next_offset: [0; ANCHORS as usize],
        }
    }

    /// Writes the record to both anchors. Everything that the record refers to must have been flushed.
    ///
    /// # Errors
    /// A device error: the record may be in none, one or both of them.
    pub fn append(
        &mut self,
        device: &dyn Device,
        superblock: &Superblock,
        key: &ClusterKey,
    ) -> Result<(), DeviceError> {
        let block = seal_superblock(superblock, key);
        let mut order: Vec<u32> = (0..ANCHORS).collect();
        // One that starts anew may hold the only newest record.
        order
            .sort_by_key(|anchor| self.next_offset[*anchor as usize] + BLOCK_BYTES > SEGMENT_BYTES);
        for anchor in order {
            self.append_to(device, anchor, &block)?;
            device.flush()?;
        }
        Ok(())
    }

    /// As `append`, and nothing of the records before remains: for a change of keys.
    ///
    /// # Errors
    /// A device error: the old or the new record is in each of them.
    pub fn replace(
        &mut self,
        device: &dyn Device,
        superblock: &Superblock,
        key: &ClusterKey,
    ) -> Result<(), DeviceError> {
        self.append(device, superblock, key)?;
        let block = seal_superblock(superblock, key);
        let zeros = vec![0; SEGMENT_BYTES as usize - BLOCK_BYTES as usize];
        for anchor in 0..ANCHORS {
            if !device.geometry().zoned {
                // Over what is there: a discarded block may come back, an overwritten one does not.
                device.write_at(SegmentId(anchor), 0, &block)?;
                device.write_at(SegmentId(anchor), BLOCK_BYTES, &zeros)?;
            } else {
                device.discard_from(SegmentId(anchor), 0)?;
                device.write_at(SegmentId(anchor), 0, &block)?;
            }
            self.next_offset[anchor as usize] = BLOCK_BYTES;
            device.flush()?;
        }
        Ok(())
    }

    fn append_to(
        &mut self,
        device: &dyn Device,
        anchor: u32,
        block: &[u8],
    ) -> Result<(), DeviceError> {
        let next = &mut self.next_offset[anchor as usize];
        if *next + BLOCK_BYTES > SEGMENT_BYTES {
            if device.geometry().zoned {
                device.discard_from(SegmentId(anchor), 0)?;
            } else {
                device.write_at(SegmentId(anchor), 0, &vec![0; SEGMENT_BYTES as usize])?;
            }
            device.flush()?;
            *next = 0;
        }
        device.write_at(SegmentId(anchor), *next, block)?;
        *next += BLOCK_BYTES;
        Ok(())
    }
}
