//! Rot, and segments that are replaced by older versions of themselves, on a copy of the pool.
//!
//! What may happen then: the pool does not open; something cannot be read; a check finds something; the log ends early,
//! so that what is there is older. What may not: a panic, or a content that no file ever had.

use std::sync::Arc;

use cfs_device::{MemDevice, SegmentImage};
use cfs_format::{BLOCK_BYTES, Ino, SegmentId};
use cfs_fs::{Caller, Fs};

use crate::look;
use crate::model::{Kind, Model};
use crate::rng::Rng;

/// What a copy was done to, for the trace.
pub(crate) fn damage(
    device: &MemDevice,
    old: &[(SegmentId, SegmentImage)],
    rng: &mut Rng,
) -> String {
    if !old.is_empty() && rng.one_in(3) {
        let (segment, image) = &old[rng.below(old.len() as u64) as usize];
        device.replace_segment(*segment, image);
        return format!("segment {segment} is what it was before");
    }
    let written = device.filled_blocks();
    let segments: Vec<SegmentId> = written.keys().copied().collect();
    let mut flipped = Vec::new();
    for _ in 0..1 + rng.below(4) {
        let segment = segments[rng.below(segments.len() as u64) as usize];
        let blocks = &written[&segment];
        let block = blocks[rng.below(blocks.len() as u64) as usize];
        // The beginnings of blocks hold headers.
        let within = match rng.below(2) {
            0 => rng.below(128),
            _ => rng.below(u64::from(BLOCK_BYTES)),
        };
        let byte = block + within as u32;
        device.flip_bit(segment, byte, rng.below(8) as u8);
        flipped.push(format!("segment {segment} byte {byte}"));
    }
    format!("bits flipped in {}", flipped.join(", "))
}

/// Looks at everything that can be looked at, and changes a little.
///
/// # Errors
/// A content that no file ever had.
pub(crate) fn survive(fs: &Arc<Fs>, model: &Model, rng: &mut Rng) -> Result<String, String> {
    let mut read = 0;
    let mut failed = 0;
    let mut names = 0;
    let mut waiting = vec![Ino::ROOT];
    let mut seen = std::collections::BTreeSet::new();
    while let Some(directory) = waiting.pop() {
        let Ok(entries) = look::entries(fs, directory) else {
            failed += 1;
            continue;
        };
        for (name, ino) in entries {
            names += 1;
            match look::node(fs, ino) {
                Err(_) => failed += 1,
                Ok(node) => {
                    read += 1;
                    if node.kind == Kind::Directory && seen.insert(ino) {
                        waiting.push(ino);
                    }
                    if node.kind == Kind::File && !model.has_ever_been(&node.content) {
                        return Err(format!(
                            "{name} reads {} bytes that no file ever had",
                            node.content.len()
                        ));
                    }
                }
            }
        }
    }
    let report = fs.check(|_| true);
    let findings = report.map(|report| report.map_or(0, |report| report.findings.len()));
    for step in 0..12 {
        let name = format!("after-{step}");
        let made = fs.create(Ino::ROOT, name.as_bytes(), 0o600, &Caller::default());
        let Ok(attr) = made else { continue };
        let bytes = vec![step as u8; 1 + rng.length(40 << 10) as usize];
        let written = fs.write(attr.ino, 0, &bytes, false);
        let synced = fs.fsync(attr.ino, false);
        if let (Ok(len), Ok(())) = (written, synced) {
            let mut back = Vec::new();
            if fs.read(attr.ino, 0, len, &mut back).is_ok() && back != bytes[..len] {
                return Err(format!("{name} does not read what was written"));
            }
        }
        // A failure of background work is a finding like any other.
        let _ = fs.tick();
    }
    let _ = fs.store().checkpoint();
    Ok(format!(
        "{names} names, {read} could be read, {failed} could not, check: {findings:?}"
    ))
}
