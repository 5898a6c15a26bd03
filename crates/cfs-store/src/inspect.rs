//! Looking at the store from outside: consistent views for checks, and reports of what is in a segment.

use cfs_device::Device;
use cfs_format::segment::{FooterEntry, RecordHeader, SegmentHeader, Stream};
use cfs_format::table::{ChunkRecord, PoolRecord, SegmentRecord, VolumeRecord};
use cfs_format::{Fingerprint, Lsn, SEGMENT_BYTES, SegmentId, SegmentSeq, Timestamp, VolumeId};
use cfs_kv::View;
use cfs_seal::block::Cipher;
use cfs_seal::footer::{TRAILER_BYTES, decode_trailer, open_footer, sealed_footer_len};
use cfs_seal::keys::{ClusterKey, Purpose};
use std::collections::BTreeMap;
use std::ops::Bound;

use crate::anchor::read_superblock;
use crate::chunks::decode_chunk_record;
use crate::directory::{DirectoryPlace, TableOwner, read_directory};
use crate::error::{OpenError, ReadError};
use crate::log_reader::{LogReader, LoggedRecord};
use crate::space::{Entry, State};
use crate::store::Store;

/// Both trees and all counters at one moment, between two commands.
pub struct Frozen {
    /// The meta tree.
    pub meta: View,
    /// The chunk tree.
    pub chunk: View,
    /// Counters of the pool.
    pub pool: PoolRecord,
    /// Volumes.
    pub volumes: Vec<(VolumeId, VolumeRecord)>,
    /// Data segments.
    pub segments: Vec<(SegmentId, SegmentRecord)>,
}

/// Rows of a table in order, read past the cache, so that a long scan does not push out what others need.
pub struct TableScan(cfs_kv::Range);

impl TableScan {
    fn of(view: &View) -> Self {
        Self(view.range(Bound::Unbounded, Bound::Unbounded).past_cache())
    }
}

impl Iterator for TableScan {
    type Item = Result<(Vec<u8>, Vec<u8>), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.0.next()?.map_err(ReadError::from))
    }
}

impl Frozen {
    /// All rows of the meta tree, for a long scan.
    #[must_use]
    pub fn scan_meta(&self) -> TableScan {
        TableScan::of(&self.meta)
    }

    /// All rows of the chunk tree, for a long scan.
    #[must_use]
    pub fn scan_chunks(&self) -> TableScan {
        TableScan::of(&self.chunk)
    }

    /// All chunks, in the order of their fingerprints.
    pub fn chunks(
        &self,
    ) -> impl Iterator<Item = Result<(Fingerprint, ChunkRecord), ReadError>> + use<> {
        self.chunk
            .range(Bound::Unbounded, Bound::Unbounded)
            .map(|row| {
                let (key, value) = row?;
                let fingerprint = <[u8; 32]>::try_from(&key[..])
                    .map_err(|_| ReadError::Record { what: "chunk key" })?;
                Ok((Fingerprint(fingerprint), decode_chunk_record(&value)?))
            })
    }
}

/// What is in a segment.
pub struct SegmentReport {
    /// What the segment table says: sequence number, state.
    pub table_entry: String,
    /// The header, if it verifies.
    pub header: Option<SegmentHeader>,
    /// Records of a data segment, with their offsets, and whether the index points to them.
    pub records: Vec<(u32, RecordHeader, bool)>,
    /// What the footer of a data segment lists; none in other segments, and where it ends without a trailer, as in one
    /// that is not full.
    pub footer: Option<Result<Vec<FooterEntry>, &'static str>>,
    /// What a table segment's directory says.
    pub directory: Option<DirectoryReport>,
}

/// The directory of a table segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryReport {
    /// Whose blocks these are.
    pub owner: TableOwner,
    /// Sequence number of the first segment of the run or manifest.
    pub first_seq: SegmentSeq,
    /// Place of this segment among those of the run or manifest.
    pub part: u32,
    /// Whether its last block is the root.
    pub is_last: bool,
    /// Bytes of the segment that are used, parity included.
    pub used_bytes: u32,
    /// Offset and stored length of each block.
    pub blocks: Vec<(u32, u32)>,
    /// Log position of the checkpoint whose last run this is.
    pub checkpoint_lsn: Option<Lsn>,
}

/// A command in the log.
#[derive(Clone, Debug)]
pub struct LoggedCommand {
    /// Its position.
    pub lsn: Lsn,
    /// Its timestamp.
    pub timestamp: Timestamp,
    /// `journal::KIND_*`.
    pub kind: u8,
    /// Its bytes.
    pub command: Vec<u8>,
}

/// The commands that opening the pool on this device would replay: where the log is damaged, those before the damage,
/// which opening would refuse unless it is told to do without the rest. Changes nothing.
///
/// # Errors
/// There is no superblock that this key has written, or the device fails.
pub fn logged_commands(
    device: &dyn Device,
    key: &ClusterKey,
) -> Result<Vec<LoggedCommand>, OpenError> {
    let unverified = read_superblock(device)?;
    if !unverified.is_authentic(key) {
        return Err(OpenError::WrongKey);
    }
    let superblock = unverified.superblock;
    let cipher = Cipher::from_number(superblock.cipher)
        .ok_or_else(|| OpenError::Superblock("unknown cipher".into()))?;
    let cipher = key.block_cipher(Purpose::Journal, cipher);
    let reader = LogReader {
        device,
        cipher: &cipher,
        key,
        uuid: &superblock.pool_uuid,
        was_closed: superblock.clean.get() == 1,
    };
    let tail = reader.read(&superblock.journal);
    let command = |record: LoggedRecord| LoggedCommand {
        lsn: record.lsn,
        timestamp: record.timestamp,
        kind: record.kind,
        command: record.command,
    };
    Ok(tail.records.into_iter().map(command).collect())
}

#[cfg(feature = "raw-rows")]
impl Store {
    /// Puts rows into the tables as they are, without the log: whatever they say, and also where the store keeps its own.
    /// They are there for good with the next checkpoint. What the store has in memory does not change.
    pub fn put_raw_rows(&self, meta: &[(Vec<u8>, Vec<u8>)], chunks: &[(Vec<u8>, Vec<u8>)]) {
        for (tree, rows) in [(&self.meta_tree, meta), (&self.chunk_tree, chunks)] {
            let mut batch = cfs_kv::Batch::new();
            for (key, value) in rows {
                batch.put(key.clone(), value.clone());
            }
            tree.apply(&batch);
        }
    }
}

impl Store {
    /// The commands that a replay would apply, were the process to end now; see [`logged_commands`].
    ///
    /// # Errors
    /// As there.
    pub fn logged_commands(&self) -> Result<Vec<LoggedCommand>, OpenError> {
        logged_commands(&*self.pool.device, &self.pool.cluster_key)
    }

    /// Views of everything at one moment.
    #[must_use]
    pub fn freeze(&self) -> Frozen {
        let writer = self.writer.lock();
        let segments = self
            .pool
            .space
            .lock()
            .entries()
            .filter_map(|(segment, entry)| Some((segment, entry.data_record()?)))
            .collect();
        Frozen {
            meta: self.meta_tree.view(),
            chunk: self.chunk_tree.view(),
            pool: writer.pool,
            volumes: self.volumes(),
            segments,
        }
    }

    /// Segments whose state in the segment table contradicts those who use them: the runs of the tables, the
    /// manifests of the last checkpoint, the log. Who reads chunks out of a segment is not looked at here; that takes
    /// a pass over the index.
    #[must_use]
    pub fn segment_contradictions(&self) -> Vec<(SegmentId, String)> {
        // Only who holds this gives runs and manifests other segments.
        let maintenance = self.maintenance.lock();
        let runs = self.meta_tree.extents().into_iter();
        let runs = runs.chain(self.chunk_tree.extents());
        let runs = runs.map(|extent| (SegmentId(extent as u32), Stream::Table, "a run"));
        let manifests = maintenance.manifest_segments.iter();
        let manifests = manifests.map(|segment| (*segment, Stream::Table, "a manifest"));
        let log = self.journal().current_segments();
        let log = log.map(|segment| (segment, Stream::Journal, "the log"));
        let used: Vec<_> = runs.chain(manifests).chain(log).collect();
        let space = self.pool.space.lock();
        let mut found = space.contradictions();
        let mut users: BTreeMap<SegmentId, &str> = BTreeMap::new();
        for (segment, stream, user) in used {
            let state = space.entry(segment).map(|entry| entry.state);
            if !matches!(state, Some(State::Open(of) | State::Full(of)) if of == stream) {
                found.push((
                    segment,
                    format!("{user} lies in it, and its state is {state:?}"),
                ));
            }
            // The pieces of one manifest, and its two copies, may share one.
            let other = users.insert(segment, user);
            if other.is_some_and(|other| other == "a run" || other != user) {
                found.push((segment, format!("{user} lies in it, and another user too")));
            }
        }
        found
    }

    /// Where a chunk lies, and how often it is referenced.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn chunk_location(
        &self,
        fingerprint: &Fingerprint,
    ) -> Result<Option<ChunkRecord>, ReadError> {
        self.chunk_record(fingerprint)
    }

    /// Whether a chunk is lost, or has been found not to be readable; false for one that the index has not.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn is_bad_chunk(&self, fingerprint: &Fingerprint) -> Result<bool, ReadError> {
        let record = self.chunk_record(fingerprint)?;
        Ok(record.is_some_and(|record| self.verdicts.is_bad(fingerprint, &record)))
    }

    /// Reads a segment and tells what is in it.
    ///
    /// # Errors
    /// The device fails, or there is no such segment.
    pub fn segment_report(&self, segment: SegmentId) -> Result<SegmentReport, ReadError> {
        let table_entry = {
            let space = self.pool.space.lock();
            if segment.0 >= space.segment_count() {
                return Err(ReadError::Record {
                    what: "segment number",
                });
            }
            space
                .entry(segment)
                .map_or_else(|| "never used".to_owned(), describe)
        };
        let mut content = vec![0; SEGMENT_BYTES as usize];
        self.pool.device.read_at(segment, 0, &mut content)?;
        let header = cfs_seal::keys::open_segment_header(&content, &self.pool.cluster_key).ok();
        let is_data = header.as_ref().is_some_and(|header| {
            matches!(
                Stream::from_number(header.stream),
                Some(Stream::Data | Stream::ColdData)
            )
        });
        let mut records = Vec::new();
        if let Some(header) = header.as_ref().filter(|_| is_data) {
            for found in self.records_in(SegmentSeq(header.seq.get()), &content) {
                let live = self
                    .chunk_record(&Fingerprint(found.header.fingerprint))?
                    .is_some_and(|record| {
                        (record.segment.get(), record.offset.get()) == (segment.0, found.offset)
                    });
                records.push((found.offset, found.header, live));
            }
        }
        let directory = header
            .as_ref()
            .and_then(|header| self.directory_report(segment, header));
        let footer = header
            .as_ref()
            .filter(|_| is_data)
            .and_then(|header| self.footer_in(SegmentSeq(header.seq.get()), &mut content));
        Ok(SegmentReport {
            table_entry,
            header,
            records,
            directory,
            footer,
        })
    }

    fn directory_report(
        &self,
        segment: SegmentId,
        header: &SegmentHeader,
    ) -> Option<DirectoryReport> {
        let place = DirectoryPlace::of_header(header)?;
        let seq = SegmentSeq(header.seq.get());
        let directory = read_directory(&self.pool, segment, seq, place).ok()?;
        let offset = |place: u64| (place % u64::from(SEGMENT_BYTES)) as u32;
        let blocks = directory.blocks(segment);
        Some(DirectoryReport {
            owner: directory.owner,
            first_seq: SegmentSeq(directory.first_seq),
            part: directory.part,
            is_last: directory.is_last,
            used_bytes: place.used_bytes,
            blocks: blocks
                .map(|block| (offset(block.place), block.stored_len))
                .collect(),
            checkpoint_lsn: directory
                .note
                .map(|note| Lsn(note.mark.log.position().lsn.get())),
        })
    }
}

impl Store {
    /// The footer of a data segment; its bytes are decrypted in place.
    fn footer_in(
        &self,
        seq: SegmentSeq,
        content: &mut [u8],
    ) -> Option<Result<Vec<FooterEntry>, &'static str>> {
        let (body, trailer) = content.split_last_chunk_mut::<TRAILER_BYTES>()?;
        let trailer = decode_trailer(trailer).ok()?;
        if trailer.seq.get() != seq.0 {
            return Some(Err("it is of another filling of the segment"));
        }
        let offset = trailer.offset.get();
        let len = sealed_footer_len(trailer.entry_count.get() as usize);
        // That it lies before the trailer has been checked.
        let sealed = body.get_mut(offset as usize..offset as usize + len)?;
        let opened = open_footer(sealed, seq, offset, &self.pool.ciphers.footer);
        Some(opened.map_err(|_| "authentication failed"))
    }
}

fn describe(entry: &Entry) -> String {
    let state = match entry.state {
        State::Free => "free".to_owned(),
        State::Open(stream) => format!("open ({stream:?})"),
        State::Full(stream) => format!("full ({stream:?})"),
        State::Pending => "free after the next checkpoint".to_owned(),
    };
    format!(
        "{state}, {} bytes used, {} of live records, {} pins",
        entry.used_bytes, entry.live_bytes, entry.pins
    )
}
