//! Putting fragmented files together again, in the background.
//!
//! A command that writes a short piece by itself marks its file. Files that have a mark and have not been written to
//! for a while are gone through; where many short extents lie side by side, their content is cut and stored anew. The
//! command that swaps the extents does so only if they are still what was read.

use cfs_format::table::{split_key, system_key, tag};
use cfs_format::{Ino, VolumeId};
use cfs_seal::codec::Codec;
use cfs_store::{Health, ReadError};

use super::Core;
use super::body::Body;
use crate::command::{Command, Rechunk};
use crate::error::{FsError, Result};
use crate::extent::{Extent, FRAGMENT_BYTES, extent_key, scan};
use crate::row;

/// Bytes of a file that are looked at, and perhaps written anew, together.
const GROUP_BYTES_MAX: u64 = 4 << 20;

/// Extents of a group at most.
const GROUP_EXTENTS_MAX: usize = 2048;

/// Extents of a group that is worth it at least.
const GROUP_EXTENTS_MIN: usize = 32;

/// Groups that one tick passes over at most.
const GROUPS_A_TICK: usize = 16;

/// A file is left alone until it has not been written to for this many times the age of a flush.
const QUIET_FLUSHES: u64 = 2;

/// Where the pass is.
#[derive(Default)]
pub(super) struct Rechunker {
    /// The file that is gone through; the next one has a larger number.
    ino: Ino,
    /// Up to where it has been gone through; none when it is done.
    at: Option<u64>,
}

impl Core {
    /// Takes one step.
    ///
    /// # Errors
    /// [`FsError::Io`]; the file is passed over.
    pub(super) fn rechunk_some(&self) -> Result<()> {
        let Some(mut rechunker) = self.rechunker.try_lock() else {
            return Ok(());
        };
        if self.store.health() != Health::Good {
            return Ok(());
        }
        if rechunker.at.is_none() {
            let Some(ino) = self.next_marked(rechunker.ino)? else {
                rechunker.ino = Ino(0);
                return Ok(());
            };
            rechunker.ino = ino;
            if !self.is_quiet(ino) {
                return Ok(());
            }
            rechunker.at = Some(0);
        }
        let ino = rechunker.ino;
        let at = rechunker.at.take().expect("set just above");
        if !self.is_quiet(ino) {
            return Ok(());
        }
        match self.rechunk_step(ino, at) {
            Ok(Some(next)) => {
                rechunker.at = Some(next);
                Ok(())
            }
            Ok(None) | Err(FsError::NotFound | FsError::IsDirectory | FsError::Invalid) => self
                .commit(&Command::Rechunk(Rechunk {
                    ino,
                    offset: 0,
                    len: 0,
                    old: Vec::new(),
                    new: Vec::new(),
                    chunks: Vec::new(),
                })),
            // There may be room another time.
            Err(FsError::NoSpace) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn next_marked(&self, after: Ino) -> Result<Option<Ino>> {
        let lo = system_key(tag::FRAGMENTED, &(after.0 + 1).to_be_bytes());
        let hi = system_key(tag::FRAGMENTED + 1, &[]);
        let Some(row) = self.store.range(&lo, &hi).next() else {
            return Ok(None);
        };
        let (key, _) = row.map_err(ReadError::from)?;
        let (_, _, suffix) = split_key(&key)?;
        let number = suffix
            .try_into()
            .map_err(|_| FsError::damaged("the key of a mark for re-chunking"))?;
        Ok(Some(Ino(u64::from_be_bytes(number))))
    }

    fn is_quiet(&self, ino: Ino) -> bool {
        let quiet_ns = self.flush_after_ns.saturating_mul(QUIET_FLUSHES);
        self.known(ino).is_none_or(|file| {
            let body = file.lock();
            let since = self.host.now_ns().saturating_sub(body.written_ns);
            !body.is_dirty() && body.jobs.is_empty() && (body.written_ns == 0 || since >= quiet_ns)
        })
    }

    /// Goes on in the file from `at`. Returns where to go on next, none at the end.
    fn rechunk_step(&self, ino: Ino, at: u64) -> Result<Option<u64>> {
        let file = self.file(ino);
        let mut body = file.lock();
        self.load(&file, &mut body)?;
        if body.committed_inline {
            return Ok(None);
        }
        let mut at = at;
        for _ in 0..GROUPS_A_TICK {
            let (group, next) = self.group(ino, &body, at)?;
            if is_fragmented(&group) {
                drop(body);
                self.rechunk_group(ino, group)?;
                return Ok(next);
            }
            match next {
                Some(next) => at = next,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// Adjacent extents from `at` on, and where the next group begins.
    fn group(&self, ino: Ino, body: &Body, at: u64) -> Result<(Vec<Extent>, Option<u64>)> {
        let mut group: Vec<Extent> = Vec::new();
        let mut bytes = 0;
        let file_key = &body.identity().file_key;
        for extent in scan(&*self.store, ino, file_key, at, body.committed_size) {
            let extent = extent?;
            // One that begins before `at` was in the group before.
            if extent.offset < at {
                continue;
            }
            bytes += u64::from(extent.len);
            let adjacent = group.last().is_none_or(|last| last.end() == extent.offset);
            if !adjacent || group.len() == GROUP_EXTENTS_MAX || bytes > GROUP_BYTES_MAX {
                // Cannot be the first: no extent is as long as a group.
                return Ok((group, Some(extent.offset)));
            }
            group.push(extent);
        }
        Ok((group, None))
    }

    /// Whether a snapshot shows one of the extents that begin in the range. It would go on to hold what they show, beside
    /// the new chunks.
    fn is_in_snapshot(&self, ino: Ino, volume: VolumeId, from: u64, to: u64) -> Result<bool> {
        let newest = self
            .store
            .volume(volume)
            .map_or(0, |volume| volume.newest_snapshot.get());
        if newest == 0 {
            return Ok(false);
        }
        for row in self
            .store
            .range(&extent_key(ino, from), &extent_key(ino, to))
        {
            let (_, value) = row.map_err(ReadError::from)?;
            if row::timestamp(tag::EXTENT, &value)? <= newest {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn rechunk_group(&self, ino: Ino, old: Vec<Extent>) -> Result<()> {
        let offset = old[0].offset;
        let end = old[old.len() - 1].end();
        let file = self.file(ino);
        let (volume, domain) = {
            let mut body = file.lock();
            self.load(&file, &mut body)?;
            (body.identity().volume, body.identity().domain)
        };
        let codec = self
            .store
            .volume(volume)
            .and_then(|volume| Codec::from_numbers(volume.codec, volume.codec_level))
            .ok_or_else(|| FsError::damaged(format_args!("volume {volume} has no codec")))?;
        if self.is_in_snapshot(ino, volume, offset, end)? {
            return Ok(());
        }
        let mut content = self.buffers.take((end - offset) as usize);
        for extent in &old {
            let chunk = match self
                .hot
                .get(&self.store, &extent.fingerprint, extent.chunk_len)
            {
                Ok(chunk) => chunk,
                // It has been replaced meanwhile; the mark stays for another pass.
                Err(ReadError::Missing { .. }) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let start = extent.chunk_offset as usize;
            content.extend(&chunk[start..start + extent.len as usize]);
        }
        let (cuts, _) = self.cut(&content, true);
        let _room = self
            .store
            .admit(Body::bytes_to_admit(end - offset, cuts.len() as u64))?;
        let lane = self.callers_lane();
        let mut pins = Vec::with_capacity(cuts.len());
        let mut new = Vec::with_capacity(cuts.len());
        let mut at = 0;
        for len in cuts {
            let pin = self
                .store
                .put_chunk(lane, domain, codec, &content[at..at + len])?;
            new.push(Extent {
                offset: offset + at as u64,
                len: len as u32,
                chunk_offset: 0,
                chunk_len: len as u32,
                domain,
                fingerprint: *pin.fingerprint(),
            });
            pins.push(pin);
            at += len;
        }
        let command = Command::Rechunk(Rechunk {
            ino,
            offset,
            len: end - offset,
            old,
            new,
            chunks: pins.iter().filter_map(|pin| pin.new_chunk()).collect(),
        });
        let mut body = file.lock();
        self.commit(&command)?;
        body.windows.invalidate(offset, end);
        Ok(())
    }
}

/// Many short extents, for which fewer chunks would do.
fn is_fragmented(group: &[Extent]) -> bool {
    let bytes: u64 = group.iter().map(|extent| u64::from(extent.len)).sum();
    group.len() >= GROUP_EXTENTS_MIN && bytes / (group.len() as u64) < FRAGMENT_BYTES
}
