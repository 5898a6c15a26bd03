//! `cfs debug`: the structures on the device, as text.
//!
//! What is printed comes from the device or from the tables as they are, field by field, with the names that
//! `docs/format/` uses.

use cfs_format::segment::{FooterEntry, RecordHeader, SegmentHeader, Stream};
use cfs_format::superblock::{Superblock, UNLOCK_PASSPHRASE};
use cfs_format::table::{
    ChunkRecord, ExtentRecord, InodeRecord, StampRecord, TimeRecord, key, split_key, tag,
};
use cfs_format::{Fingerprint, Ino, SegmentId, VolumeId};
use cfs_fs::Fs;
use cfs_fs::command::Command;
use cfs_seal::block::Cipher;
use cfs_seal::codec::Codec;
use cfs_seal::keys::FileKey;
use cfs_store::{DirectoryReport, LoggedCommand, ReadError, TableOwner};
use zerocopy::FromBytes;

use super::protocol::DebugTarget;
use super::report::{Align, table};
use super::service::uuid;
use crate::failure::{Code, Failure, Result};
use crate::pool::cipher_name;

/// Takes a line; false ends the printing.
pub type Out<'a> = dyn FnMut(String) -> bool + 'a;

/// Prints what `target` names.
///
/// # Errors
/// When there is no such thing, or it cannot be read.
pub fn print(fs: &Fs, target: &DebugTarget, out: &mut Out<'_>) -> Result<()> {
    match target {
        DebugTarget::Superblock => {
            superblock(&fs.store().superblock(), out);
            Ok(())
        }
        DebugTarget::Segment { segment } => print_segment(fs, SegmentId(*segment), out),
        DebugTarget::Journal => {
            let commands = fs.store().logged_commands().map_err(unreadable)?;
            journal(&commands, out);
            Ok(())
        }
        DebugTarget::Index => index(fs, out),
        DebugTarget::Inode { object } => {
            let ino = find(fs, object)?;
            print_inode(fs, ino, out)
        }
        DebugTarget::Extents { object } => {
            let ino = find(fs, object)?;
            extents(fs, ino, out)
        }
    }
}

fn unreadable(error: impl std::fmt::Display) -> Failure {
    Failure::new(Code::Failed, format!("cannot read it: {error}"))
}

/// The fields of a superblock.
pub fn superblock(superblock: &Superblock, out: &mut Out<'_>) {
    let slot = &superblock.key_slot;
    let unlock = match slot.unlock {
        UNLOCK_PASSPHRASE => format!(
            "passphrase, Argon2id with {} KiB, {} passes, {} lanes",
            slot.argon2_memory_kib, slot.argon2_passes, slot.argon2_lanes
        ),
        _ => "key file".to_owned(),
    };
    let pointer = |it: &cfs_format::superblock::BlobPointer| {
        format!(
            "segment {} offset {} sequence {} length {}",
            it.segment,
            it.offset,
            sequence(it.seq.get()),
            it.stored_len
        )
    };
    let journal = &superblock.journal;
    let chunk = &superblock.chunk;
    let rows = [
        ("version", superblock.version.to_string()),
        ("pool_uuid", uuid(&superblock.pool_uuid)),
        ("created", nanoseconds(superblock.created_ns.get())),
        (
            "cipher",
            Cipher::from_number(superblock.cipher)
                .map_or_else(|| format!("number {}", superblock.cipher), cipher_name),
        ),
        (
            "chunk",
            format!(
                "algorithm {}, {} / {} / {} bytes",
                chunk.algorithm, chunk.min, chunk.avg, chunk.max
            ),
        ),
        ("segment_bytes", superblock.segment_bytes.to_string()),
        ("segments_max", superblock.segments_max.to_string()),
        ("key_slot", unlock),
        ("generation", superblock.generation.to_string()),
        ("incarnation", superblock.incarnation.to_string()),
        ("clean", superblock.clean.to_string()),
        (
            "journal",
            format!(
                "segment {} offset {} sequence {} from command {}",
                journal.segment,
                journal.offset,
                sequence(journal.seq.get()),
                journal.lsn
            ),
        ),
        ("manifest", pointer(&superblock.manifest)),
        ("manifest_copy", pointer(&superblock.manifest_copy)),
        (
            "checkpoint_timestamp",
            timestamp(superblock.checkpoint_timestamp.get()),
        ),
    ]
    .map(|(name, value)| [name.to_owned(), value]);
    for line in table(&rows, &[Align::Left, Align::Left]) {
        if !out(line) {
            return;
        }
    }
}

/// The commands of the log since the last checkpoint.
pub fn journal(commands: &[LoggedCommand], out: &mut Out<'_>) {
    for logged in commands {
        let text = match logged.kind {
            cfs_format::journal::KIND_NAMESPACE => match Command::decode(&logged.command) {
                Ok(command) => format!("{command:?}"),
                Err(error) => format!("not a command: {error}"),
            },
            kind => format!("of the store (kind {kind}), {} bytes", logged.command.len()),
        };
        if !out(format!(
            "{}  {}  {text}",
            logged.lsn,
            timestamp(logged.timestamp.0)
        )) {
            return;
        }
    }
    out(format!("{} commands to replay", commands.len()));
}

fn print_segment(fs: &Fs, segment: SegmentId, out: &mut Out<'_>) -> Result<()> {
    let report = fs.store().segment_report(segment).map_err(unreadable)?;
    out(format!("segment {segment}: {}", report.table_entry));
    match &report.header {
        Some(header) => out(segment_header(header)),
        None => out("no header that belongs to this pool".to_owned()),
    };
    if let Some(directory) = &report.directory {
        out(table_directory(directory));
        for (offset, stored_len) in &directory.blocks {
            if !out(format!("{offset:>8}  {stored_len:>7} bytes")) {
                break;
            }
        }
    }
    for (offset, header, is_live) in &report.records {
        if !out(record(*offset, header, *is_live)) {
            return Ok(());
        }
    }
    if let Some(footer) = &report.footer {
        out(match footer {
            Ok(entries) => footer_line(entries, &report.records),
            Err(reason) => format!("footer: {reason}"),
        });
    }
    Ok(())
}

fn footer_line(entries: &[FooterEntry], records: &[(u32, RecordHeader, bool)]) -> String {
    let is_found = |entry: &&FooterEntry| {
        records.iter().any(|(offset, header, _)| {
            (*offset, header.fingerprint) == (entry.offset.get(), entry.fingerprint)
        })
    };
    let found = entries.iter().filter(is_found).count();
    format!(
        "footer: lists {} records, {found} of which are there; {} are there in all",
        entries.len(),
        records.len()
    )
}

fn segment_header(header: &SegmentHeader) -> String {
    let stream = match Stream::from_number(header.stream) {
        Some(stream) => format!("{stream:?}"),
        None => format!("number {}", header.stream),
    };
    format!(
        "header: {stream}, version {}, sequence {}, next {}, first command {}, created {}",
        header.version,
        sequence(header.seq.get()),
        header.next,
        header.first_lsn,
        nanoseconds(header.created_ns.get())
    )
}

fn table_directory(directory: &DirectoryReport) -> String {
    let owner = match directory.owner {
        TableOwner::Meta => "a run of the meta tree",
        TableOwner::Chunk => "a run of the chunk tree",
        TableOwner::Manifest => "a manifest",
    };
    let mut text = format!(
        "directory: part {} of {owner} that begins with sequence {}, {} blocks",
        directory.part,
        sequence(directory.first_seq.0),
        directory.blocks.len()
    );
    if directory.is_last {
        text += ", the last one its root";
    }
    if let Some(lsn) = directory.checkpoint_lsn {
        text += &format!("; ends the checkpoint from which the log goes on with command {lsn}");
    }
    text
}

fn record(offset: u32, header: &RecordHeader, is_live: bool) -> String {
    format!(
        "{offset:>8}  {}  {:>7} bytes in {:>7}  {}  domain {}  epoch {}  {}",
        Fingerprint(header.fingerprint),
        header.raw_len,
        header.payload_len,
        codec(header.codec),
        header.domain,
        header.epoch,
        match is_live {
            true => "live",
            false => "dead",
        }
    )
}

fn index(fs: &Fs, out: &mut Out<'_>) -> Result<()> {
    let mut chunks = 0_u64;
    for row in fs.store().freeze().chunks() {
        let (fingerprint, record) = row.map_err(unreadable)?;
        chunks += 1;
        if !out(chunk(&fingerprint, &record)) {
            return Ok(());
        }
    }
    out(format!("{chunks} chunks"));
    Ok(())
}

fn chunk(fingerprint: &Fingerprint, record: &ChunkRecord) -> String {
    format!(
        "{fingerprint}  segment {:>6} offset {:>7}  {:>7} bytes in {:>7}  {}  domain {}  {} references{}{}",
        record.segment,
        record.offset,
        record.raw_len,
        record.record_len,
        codec(record.codec),
        record.domain,
        record.refs,
        if record.is_bad() { ", damaged" } else { "" },
        if record.is_disputed() {
            ", disputed"
        } else {
            ""
        }
    )
}

/// An inode by path (with a leading `/`) or number.
fn find(fs: &Fs, object: &str) -> Result<Ino> {
    if let Ok(number) = object.parse() {
        return Ok(Ino(number));
    }
    fs.resolve(object.as_bytes())
        .map(|attr| attr.ino)
        .map_err(|error| {
            Failure::new(Code::Failed, format!("{object} in the pool: {error}"))
                .hint("give an absolute path without symbolic links, or an inode number")
        })
}

fn inode_record(fs: &Fs, ino: Ino) -> Result<InodeRecord> {
    let value = fs
        .store()
        .get(&key(ino, tag::INODE, &[]))
        .map_err(unreadable)?
        .ok_or_else(|| match ino.cloned() {
            None => Failure::new(Code::Failed, format!("there is no inode {ino}")),
            Some((clone, base)) => Failure::new(
                Code::Failed,
                format!("clone {clone} has no rows of its own of inode {ino}"),
            )
            .hint(format!(
                "if it shows it, it is what the origin has of inode {base}"
            )),
        })?;
    InodeRecord::read_from_bytes(&value).map_err(|_| {
        Failure::new(
            Code::Failed,
            format!("the record of inode {ino} is damaged"),
        )
    })
}

fn print_inode(fs: &Fs, ino: Ino, out: &mut Out<'_>) -> Result<()> {
    let record = inode_record(fs, ino)?;
    let rows = [
        ("inode", ino.to_string()),
        ("mode", format!("{:o}", record.mode.get())),
        ("owner", format!("{}:{}", record.uid, record.gid)),
        ("nlink", record.nlink.to_string()),
        ("rdev", record.rdev.to_string()),
        ("size", record.size.to_string()),
        ("allocated", record.allocated.to_string()),
        ("atime", time(&record.atime)),
        ("mtime", time(&record.mtime)),
        ("ctime", time(&record.ctime)),
        ("btime", time(&record.btime)),
        ("timestamp", timestamp(record.timestamp.get())),
        ("parent", record.parent.to_string()),
        ("next_cookie", record.next_cookie.to_string()),
        ("volume", record.volume.to_string()),
        ("flags", format!("{:#x}", record.flags.get())),
    ]
    .map(|(name, value)| [name.to_owned(), value]);
    for line in table(&rows, &[Align::Left, Align::Left]) {
        out(line);
    }
    let mut extents = 0_u64;
    for row in fs
        .store()
        .range(&key(ino, 0, &[]), &key(Ino(ino.0 + 1), 0, &[]))
    {
        let (row_key, value) = row.map_err(ReadError::from).map_err(unreadable)?;
        let Ok((_, row_tag, suffix)) = split_key(&row_key) else {
            continue;
        };
        let name = || String::from_utf8_lossy(suffix).escape_debug().to_string();
        let goes_on = match row_tag {
            tag::INLINE => out(format!("inline  {} bytes", content_len(&value))),
            tag::XATTR => out(format!(
                "xattr   {} = {} bytes",
                name(),
                content_len(&value)
            )),
            tag::DIRENT => out(format!("entry   {}", name())),
            tag::EXTENT => {
                extents += 1;
                true
            }
            _ => true,
        };
        if !goes_on {
            return Ok(());
        }
    }
    if extents > 0 {
        out(format!("extents {extents}; see cfs debug extents {ino}"));
    }
    Ok(())
}

/// Bytes of a value behind its timestamp.
fn content_len(value: &[u8]) -> usize {
    value.len().saturating_sub(size_of::<StampRecord>())
}

fn extents(fs: &Fs, ino: Ino, out: &mut Out<'_>) -> Result<()> {
    let store = fs.store();
    let record = inode_record(fs, ino)?;
    let volume = store
        .volume(VolumeId(record.volume.get()))
        .ok_or_else(|| Failure::new(Code::Failed, "its volume is not there"))?;
    let secret = store
        .domain_secret(cfs_format::DomainId(volume.domain.get()))
        .ok_or_else(|| Failure::new(Code::Failed, "the secret of its domain is not there"))?;
    let file_key = FileKey::derive(&secret, &record.salt);
    let mut count = 0_u64;
    let range = store.range(&key(ino, tag::EXTENT, &[]), &key(ino, tag::EXTENT + 1, &[]));
    for row in range {
        let (row_key, value) = row.map_err(ReadError::from).map_err(unreadable)?;
        let damaged = || Failure::new(Code::Failed, format!("an extent of {ino} is damaged"));
        let (_, _, suffix) = split_key(&row_key).map_err(|_| damaged())?;
        let offset = u64::from_be_bytes(suffix.try_into().map_err(|_| damaged())?);
        let extent = ExtentRecord::read_from_bytes(&value).map_err(|_| damaged())?;
        let fingerprint =
            file_key.unmask(offset, extent.timestamp.get(), extent.masked_fingerprint);
        let place = match store.chunk_location(&fingerprint).map_err(unreadable)? {
            Some(record) => format!("segment {} offset {}", record.segment, record.offset),
            None => "not in the index".to_owned(),
        };
        count += 1;
        if !out(format!(
            "{offset:>12} +{:<8} bytes {}.. of {} in {fingerprint}  {place}",
            extent.len, extent.chunk_offset, extent.chunk_len
        )) {
            return Ok(());
        }
    }
    out(format!("{count} extents, {} bytes of file", record.size));
    Ok(())
}

fn codec(number: u8) -> String {
    match number {
        cfs_format::segment::CODEC_ZSTD => "zstd".to_owned(),
        _ => Codec::from_numbers(number, 0).map_or_else(|| "?".to_owned(), |it| it.to_string()),
    }
}

fn sequence(seq: u64) -> String {
    format!("{}.{}", seq >> 40, seq & ((1 << 40) - 1))
}

fn nanoseconds(ns: u64) -> String {
    format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

fn time(time: &TimeRecord) -> String {
    format!("{}.{:09}", time.seconds, time.nanos.get())
}

fn timestamp(value: u64) -> String {
    let millis = cfs_format::Timestamp(value).millis();
    format!("{}.{:03}#{}", millis / 1000, millis % 1000, value & 0xffff)
}
