//! Content from a stream: chunks are stored as they come, and extents refer to them.
//!
//! A chunk that has arrived, or that the sender was told is here, is pinned until the extents that it came for are in the
//! tables. So what was received so far stays when a stream is cut off, and is not sent again.

use std::collections::HashMap;

use cfs_format::segment::RecordHeader;
use cfs_format::table::inode_flag;
use cfs_format::{DomainId, Fingerprint, Ino, VolumeId};
use cfs_store::{ArrivalError, ChunkPin};
use zerocopy::FromBytes;

use super::wire::{Body, Chunk, Extents, Node};
use super::{Result, StreamError};
use crate::command::{Command, Punch, Write};
use crate::error::FsError;
use crate::extent::{Extent, FILE_BYTES_MAX, INLINE_BYTES_MAX, scan};
use crate::types::Room;
use crate::{Fs, inode};

/// Chunks that may wait for their extents at a time.
const CHUNKS_MAX: usize = 4096;

/// Chunks that wait for their extents.
#[derive(Default)]
pub(super) struct Waiting {
    pins: HashMap<Fingerprint, ChunkPin>,
    /// The lane for the next chunk.
    turn: usize,
}

impl Waiting {
    /// Which of these chunks are here. They stay until their extents have come.
    pub(super) fn known(&mut self, fs: &Fs, wanted: &[Fingerprint]) -> Result<Vec<bool>> {
        if wanted.len() + self.pins.len() > CHUNKS_MAX {
            return Err(StreamError::Contradiction("too many chunks at once"));
        }
        let mut known = Vec::with_capacity(wanted.len());
        for fingerprint in wanted {
            let pin = fs.store.pin_known(fingerprint).map_err(FsError::from)?;
            known.push(pin.is_some());
            if let Some(pin) = pin {
                self.pins.insert(*fingerprint, pin);
            }
        }
        Ok(known)
    }

    /// Stores a chunk.
    pub(super) fn chunk(&mut self, fs: &Fs, domain: DomainId, chunk: &Chunk) -> Result<()> {
        let header = RecordHeader::read_from_bytes(&chunk.header)
            .map_err(|_| StreamError::Contradiction("the header of a chunk"))?;
        if header.domain.get() != domain.0 {
            return Err(StreamError::Contradiction("a chunk of another domain"));
        }
        if self.pins.len() >= CHUNKS_MAX {
            return Err(StreamError::Contradiction("too many chunks at once"));
        }
        // Once it is stored it takes room of its own.
        let _room = fs.admit_growth(chunk.payload.len())?;
        self.turn = (self.turn + 1) % fs.store.lanes();
        let pin = fs.store.put_sealed(self.turn, &header, &chunk.payload);
        let pin = pin.map_err(|error| match error {
            ArrivalError::Forged(_) => StreamError::Contradiction("a chunk does not open"),
            ArrivalError::Write(error) => StreamError::Fs(error.into()),
        })?;
        self.pins.insert(*pin.fingerprint(), pin);
        Ok(())
    }

    /// Gives a file size and, of a small one, content.
    pub(super) fn node(&mut self, fs: &Fs, ino: Ino, node: &Node) -> Result<()> {
        if node.size > FILE_BYTES_MAX {
            return Err(StreamError::Contradiction("the size of a file"));
        }
        own(fs, ino)?;
        let record = inode::committed(&fs.store, ino)?.ok_or(FsError::NotFound)?;
        let more = node.size.saturating_sub(record.size.get());
        let volume = VolumeId(record.volume.get());
        if more > 0 && !fs.files.quotas.has_room(&fs.store, volume, more) {
            return Err(FsError::Quota.into());
        }
        let was_whole = record.flags.get() & inode_flag::INLINE != 0;
        let mut write = Write {
            ino,
            truncate_to: None,
            size: node.size,
            mtime: None,
            ctime: None,
            kill_suid_sgid: false,
            inline: None,
            extents: Vec::new(),
            chunks: Vec::new(),
        };
        match &node.body {
            Body::Whole(content) => {
                let len = content.len() as u64;
                if len != node.size || len > INLINE_BYTES_MAX {
                    return Err(StreamError::Contradiction("the size of a small file"));
                }
                write.truncate_to = Some(0);
                write.inline = Some(content.clone());
            }
            Body::Follows if was_whole => write.truncate_to = Some(0),
            Body::Follows if node.size < record.size.get() => write.truncate_to = Some(node.size),
            Body::Follows if node.size == record.size.get() => return Ok(()),
            Body::Follows => {}
        }
        commit(fs, ino, Command::Write(write))
    }

    /// Has a range of a file show what has arrived.
    pub(super) fn extents(
        &mut self,
        fs: &Fs,
        ino: Ino,
        domain: DomainId,
        arrived: &Extents,
    ) -> Result<()> {
        let record = inode::committed(&fs.store, ino)?.ok_or(FsError::NotFound)?;
        let size = record.size.get();
        let new: Vec<Extent> = arrived
            .extents
            .iter()
            .map(|extent| Extent {
                offset: extent.offset,
                len: extent.len,
                chunk_offset: extent.chunk_offset,
                chunk_len: extent.chunk_len,
                domain,
                fingerprint: extent.fingerprint,
            })
            .collect();
        let is_sound = new.iter().all(Extent::is_sound)
            && new.is_sorted_by(|left, right| left.end() <= right.offset)
            && new
                .iter()
                .all(|it| it.offset >= arrived.from && it.end() <= size)
            && arrived.from < arrived.to
            && arrived.to <= size;
        if !is_sound {
            return Err(StreamError::Contradiction("extents that cannot be"));
        }
        for extent in &new {
            if self.pins.contains_key(&extent.fingerprint) {
                continue;
            }
            if self.known(fs, &[extent.fingerprint])? != [true] {
                return Err(StreamError::NoBase(
                    "content that it does not bring is missing".to_owned(),
                ));
            }
        }
        let file_key = {
            let txn = fs.store.begin();
            crate::extent::file_key(&txn, &record)?
        };
        let old: Vec<Extent> = scan(&*fs.store, ino, &file_key, arrived.from, arrived.to)
            .collect::<crate::Result<_>>()?;
        if old != new {
            let room = fs.admit_growth(new.len() * size_of::<Extent>())?;
            if !old.is_empty() {
                let punch = Punch {
                    ino,
                    offset: arrived.from,
                    len: arrived.to - arrived.from,
                    size,
                    now: fs.now(),
                    kill_suid_sgid: false,
                };
                commit(fs, ino, Command::Punch(punch))?;
            }
            let chunks = new.iter().filter_map(|extent| {
                let pin = self.pins.get(&extent.fingerprint)?;
                pin.new_chunk()
            });
            let write = Write {
                ino,
                truncate_to: None,
                size,
                mtime: None,
                ctime: None,
                kill_suid_sgid: false,
                inline: None,
                chunks: chunks.collect(),
                extents: new,
            };
            commit(fs, ino, Command::Write(write))?;
            drop(room);
        }
        self.pins.clear();
        Ok(())
    }
}

/// What it has is looked at to tell what is to change: in a clone it must be its own.
fn own(fs: &Fs, ino: Ino) -> Result<()> {
    match ino.cloned() {
        None => Ok(()),
        Some(_) => Ok(fs.files.copy_up(ino, Room::Free)?),
    }
}

fn commit(fs: &Fs, ino: Ino, command: Command) -> Result<()> {
    let _open = fs.gate.read();
    Ok(fs.files.change_at_rest(ino, |_| command)?)
}
