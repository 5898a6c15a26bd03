//! Applying commands that change the content of files.
//!
//! A file's content is in its `INLINE` record or in extents, never in both. Commands that work on ranges expect
//! extents; the operation that issues them has moved inline content first.

use cfs_format::table::{InodeRecord, inode_flag, key, system_key, tag};
use cfs_format::{Ino, Timestamp};
use cfs_store::Txn;

use crate::command::{CloneRange, Punch, Rechunk, Shift, Write};
use crate::error::{FsError, Result};
use crate::extent::{
    Extent, ExtentEdit, FILE_BYTES_MAX, FRAGMENT_BYTES, INLINE_BYTES_MAX, account, file_key, scan,
};
use crate::history::Past;
use crate::types::Time;
use crate::{inode, lock, row};

/// Key of the mark of a file that may need re-chunking.
pub(super) fn fragmented_key(ino: Ino) -> Vec<u8> {
    system_key(tag::FRAGMENTED, &ino.0.to_be_bytes())
}

fn regular(txn: &Txn<'_>, ino: Ino) -> Result<InodeRecord> {
    let record = inode::get(txn, ino)?;
    match inode::kind(&record) {
        libc::S_IFREG => Ok(record),
        libc::S_IFDIR => Err(FsError::IsDirectory),
        _ => Err(FsError::Invalid),
    }
}

/// The same, if its content may be changed.
fn changeable(txn: &Txn<'_>, ino: Ino) -> Result<InodeRecord> {
    let record = regular(txn, ino)?;
    lock::check(txn, ino, &record)?;
    Ok(record)
}

fn is_inline(record: &InodeRecord) -> bool {
    record.flags.get() & inode_flag::INLINE != 0
}

fn with_extents(txn: &Txn<'_>, ino: Ino) -> Result<InodeRecord> {
    let record = regular(txn, ino)?;
    if is_inline(&record) {
        return Err(FsError::Invalid);
    }
    Ok(record)
}

fn changeable_with_extents(txn: &Txn<'_>, ino: Ino) -> Result<InodeRecord> {
    changeable(txn, ino)?;
    with_extents(txn, ino)
}

/// Sound, in order, disjoint, and before `end`.
fn in_order(extents: &[Extent], end: u64) -> bool {
    extents.iter().all(Extent::is_sound)
        && extents.is_sorted_by(|left, right| left.end() <= right.offset)
        && extents.last().is_none_or(|last| last.end() <= end)
}

/// Notes a change of content.
fn stamp(record: &mut InodeRecord, now: Time, kill_suid_sgid: bool) {
    record.flags = (record.flags.get() & !inode_flag::DESCRIBED).into();
    record.mtime = now.into();
    record.ctime = now.into();
    if kill_suid_sgid {
        inode::kill_suid_sgid(record);
    }
}

pub(super) fn write(txn: &mut Txn<'_>, command: &Write) -> Result<()> {
    let ino = command.ino;
    let mut record = changeable(txn, ino)?;
    let size_before = record.size.get();
    let inline_len = command.inline.as_ref().map(|bytes| bytes.len() as u64);
    let fits = match inline_len {
        Some(len) => len == command.size && len <= INLINE_BYTES_MAX && command.extents.is_empty(),
        None => true,
    };
    if !fits || command.size > FILE_BYTES_MAX || !in_order(&command.extents, command.size) {
        return Err(FsError::Invalid);
    }

    let keeps_content = command.truncate_to.is_none()
        && command.extents.is_empty()
        && inline_len.is_none()
        && command.size == size_before;
    let mut allocated_delta = 0;
    if !keeps_content {
        let file_key = file_key(txn, &record)?;
        let mut edit = ExtentEdit::new(ino, &file_key, size_before);
        // Inline content that is not given anew is superseded: extents that replace it carry what was kept of it.
        let inline_before = if is_inline(&record) {
            record.allocated.get()
        } else {
            let kept = match inline_len {
                Some(_) => 0,
                None => command.truncate_to.unwrap_or(u64::MAX).min(command.size),
            };
            if kept < size_before {
                edit.remove(txn, kept, u64::MAX)?;
            }
            0
        };
        edit.replace(txn, &command.extents)?;
        allocated_delta = edit.finish(txn, &command.chunks)? - inline_before as i64
            + inline_len.unwrap_or(0) as i64;
        let inline_key = key(ino, tag::INLINE, &[]);
        let mut flags = record.flags.get() & !inode_flag::INLINE;
        if let Some(bytes) = &command.inline {
            flags |= inode_flag::INLINE;
            let value = row::stamped(txn, bytes);
            txn.put(inline_key, value);
        } else if is_inline(&record) {
            txn.delete(inline_key);
        }
        record.flags = (flags & !inode_flag::DESCRIBED).into();
        record.size = command.size.into();
        if leaves_fragments(&command.extents, command.size) {
            let mark = fragmented_key(ino);
            if txn.get(&mark)?.is_none() {
                txn.put(mark, Vec::new());
            }
        }
    }

    if let Some(mtime) = command.mtime {
        record.mtime = mtime.into();
    }
    if let Some(ctime) = command.ctime {
        record.ctime = ctime.into();
    }
    if command.kill_suid_sgid {
        inode::kill_suid_sgid(&mut record);
    }
    account(txn, &mut record, size_before, allocated_delta)?;
    inode::put(txn, ino, &mut record);
    Ok(())
}

/// Whether a short piece was written by itself. The short end of a longer piece, or of the file, is none.
fn leaves_fragments(extents: &[Extent], size: u64) -> bool {
    extents
        .chunk_by(|left, right| left.end() == right.offset)
        .any(|adjacent| {
            let start = adjacent[0].offset;
            let end = adjacent[adjacent.len() - 1].end();
            end - start < FRAGMENT_BYTES && end - start < size
        })
}

pub(super) fn punch(txn: &mut Txn<'_>, command: &Punch) -> Result<()> {
    let ino = command.ino;
    let mut record = changeable_with_extents(txn, ino)?;
    let size_before = record.size.get();
    let end = command.offset.saturating_add(command.len);
    if command.size < size_before || command.size > FILE_BYTES_MAX {
        return Err(FsError::Invalid);
    }
    let file_key = file_key(txn, &record)?;
    let mut edit = ExtentEdit::new(ino, &file_key, size_before);
    edit.remove(txn, command.offset, end)?;
    let allocated_delta = edit.finish(txn, &[])?;
    record.size = command.size.into();
    stamp(&mut record, command.now, command.kill_suid_sgid);
    account(txn, &mut record, size_before, allocated_delta)?;
    inode::put(txn, ino, &mut record);
    Ok(())
}

pub(super) fn shift(txn: &mut Txn<'_>, command: &Shift) -> Result<()> {
    let ino = command.ino;
    let mut record = changeable_with_extents(txn, ino)?;
    let size_before = record.size.get();
    let end = command
        .offset
        .checked_add(command.len)
        .ok_or(FsError::Invalid)?;
    let size = if command.insert {
        size_before.checked_add(command.len)
    } else {
        size_before.checked_sub(command.len)
    };
    let size = size
        .filter(|size| *size <= FILE_BYTES_MAX)
        .ok_or(FsError::TooLarge)?;
    if command.offset >= size_before || (!command.insert && end >= size_before) {
        return Err(FsError::Invalid);
    }

    let file_key = file_key(txn, &record)?;
    let mut edit = ExtentEdit::new(ino, &file_key, size_before);
    if command.insert {
        edit.split(txn, command.offset)?;
        edit.shift(txn, command.offset, command.len as i64)?;
    } else {
        edit.remove(txn, command.offset, end)?;
        edit.shift(txn, end, -(command.len as i64))?;
    }
    let allocated_delta = edit.finish(txn, &[])?;
    record.size = size.into();
    stamp(&mut record, command.now, command.kill_suid_sgid);
    account(txn, &mut record, size_before, allocated_delta)?;
    inode::put(txn, ino, &mut record);
    Ok(())
}

/// The record of a file with extents as a snapshot shows it, which must be there.
fn source_then(txn: &Txn<'_>, ino: Ino, at: Timestamp) -> Result<InodeRecord> {
    let record = super::restore::record_then(txn, ino, at)?;
    if inode::kind(&record) != libc::S_IFREG || is_inline(&record) {
        return Err(FsError::Invalid);
    }
    Ok(record)
}

pub(super) fn clone_range(txn: &mut Txn<'_>, command: &CloneRange) -> Result<()> {
    let ends = |offset: u64| {
        offset
            .checked_add(command.len)
            .filter(|end| *end <= FILE_BYTES_MAX)
            .ok_or(FsError::TooLarge)
    };
    let source_end = ends(command.source_offset)?;
    let target_end = ends(command.target_offset)?;
    let overlap = command.source == command.target
        && command.source_at.is_none()
        && command.source_offset < target_end
        && command.target_offset < source_end;
    let source = match command.source_at {
        None => with_extents(txn, command.source)?,
        Some(at) => source_then(txn, command.source, at)?,
    };
    let mut target = changeable_with_extents(txn, command.target)?;
    let size_before = target.size.get();
    if overlap || source_end > source.size.get() {
        return Err(FsError::Invalid);
    }

    let source_key = file_key(txn, &source)?;
    let (from, key) = (command.source_offset, &source_key);
    let extents: Box<dyn Iterator<Item = Result<Extent>>> = match command.source_at {
        None => Box::new(scan(&*txn, command.source, key, from, source_end)),
        Some(at) => {
            let past = Past { table: &*txn, at };
            let extents: Vec<_> = scan(&past, command.source, key, from, source_end).collect();
            Box::new(extents.into_iter())
        }
    };
    let parts = extents
        .filter_map(|extent| match extent {
            Ok(extent) => extent.part(command.source_offset, source_end).map(|part| {
                Ok(part.at(part.offset - command.source_offset + command.target_offset))
            }),
            Err(error) => Some(Err(error)),
        })
        .collect::<Result<Vec<_>>>()?;
    let target_key = file_key(txn, &target)?;
    let mut edit = ExtentEdit::new(command.target, &target_key, size_before);
    edit.remove(txn, command.target_offset, target_end)?;
    edit.replace(txn, &parts)?;
    let allocated_delta = edit.finish(txn, &[])?;
    target.size = size_before.max(target_end).into();
    stamp(&mut target, command.now, command.kill_suid_sgid);
    account(txn, &mut target, size_before, allocated_delta)?;
    inode::put(txn, command.target, &mut target);
    Ok(())
}

pub(super) fn rechunk(txn: &mut Txn<'_>, command: &Rechunk) -> Result<()> {
    let ino = command.ino;
    if command.len == 0 {
        txn.delete(fragmented_key(ino));
        return Ok(());
    }
    let mut record = match with_extents(txn, ino) {
        Ok(record) => record,
        Err(FsError::NotFound | FsError::IsDirectory | FsError::Invalid) => return Ok(()),
        Err(error) => return Err(error),
    };
    let end = command
        .offset
        .checked_add(command.len)
        .ok_or(FsError::Invalid)?;
    let covers = |extents: &[Extent]| {
        extents.first().map(|extent| extent.offset) == Some(command.offset)
            && extents.last().map(Extent::end) == Some(end)
            && extents
                .windows(2)
                .all(|pair| pair[0].end() == pair[1].offset)
    };
    if !in_order(&command.new, end) || !covers(&command.new) || !covers(&command.old) {
        return Err(FsError::Invalid);
    }
    let file_key = file_key(txn, &record)?;
    let now = scan(&*txn, ino, &file_key, command.offset, end).collect::<Result<Vec<_>>>()?;
    if now != command.old {
        return Ok(());
    }
    let size = record.size.get();
    let mut edit = ExtentEdit::new(ino, &file_key, size);
    edit.replace(txn, &command.new)?;
    let allocated_delta = edit.finish(txn, &command.chunks)?;
    account(txn, &mut record, size, allocated_delta)?;
    inode::put(txn, ino, &mut record);
    Ok(())
}
