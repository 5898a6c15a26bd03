//! What all parts of the store share: the device, the keys, the segment table, and whether writing is still allowed.

use std::sync::{Arc, OnceLock};

use cfs_device::{AlignedBuf, Device, DeviceError};
use cfs_format::segment::{SegmentHeader, Stream};
use cfs_format::{BLOCK_BYTES, FORMAT_VERSION, SEGMENT_BYTES, SegmentId, SegmentSeq};
use cfs_seal::block::{BlockCipher, Cipher};
use cfs_seal::keys::{ClusterKey, Purpose as KeyPurpose};

use crate::error::{NoSpace, WriteError};
use crate::heal::Healing;
use crate::space::{NoSpaceOr, Purpose, Space, State};
use crate::sync::{AtomicU64, Mutex, Ordering};

/// Time and entropy from outside, so that the core has neither of its own.
pub trait Host: Send + Sync {
    /// Nanoseconds since 1970.
    fn now_ns(&self) -> u64;
    /// Fills `buf` with bytes that nobody can guess.
    fn fill_random(&self, buf: &mut [u8]);
}

/// The ciphers of the pool's structures, made once.
pub(crate) struct Ciphers {
    pub record_header: BlockCipher,
    pub journal: BlockCipher,
    pub table: BlockCipher,
    pub footer: BlockCipher,
}

impl Ciphers {
    pub fn new(cipher: Cipher, key: &ClusterKey) -> Self {
        Self {
            record_header: key.block_cipher(KeyPurpose::RecordHeader, cipher),
            journal: key.block_cipher(KeyPurpose::Journal, cipher),
            table: key.block_cipher(KeyPurpose::TableBlock, cipher),
            footer: key.block_cipher(KeyPurpose::Footer, cipher),
        }
    }
}

pub(crate) struct Pool {
    pub device: Arc<dyn Device>,
    pub host: Arc<dyn Host>,
    pub cluster_key: ClusterKey,
    pub cipher: Cipher,
    pub ciphers: Ciphers,
    pub uuid: [u8; 16],
    pub space: Mutex<Space>,
    pub healing: Healing,
    next_seq: AtomicU64,
    failure: OnceLock<Arc<str>>,
    buffers: Mutex<Vec<AlignedBuf>>,
}

/// Segment buffers that are kept for reuse: first-touch memory is slow.
const BUFFERS_KEPT: usize = 6;

impl Pool {
    pub fn new(
        device: Arc<dyn Device>,
        host: Arc<dyn Host>,
        cluster_key: ClusterKey,
        cipher: Cipher,
        uuid: [u8; 16],
        incarnation: u32,
        space: Space,
    ) -> Self {
        Self {
            device,
            host,
            ciphers: Ciphers::new(cipher, &cluster_key),
            cluster_key,
            cipher,
            uuid,
            space: Mutex::new(space),
            healing: Healing::default(),
            next_seq: AtomicU64::new(SegmentSeq::new(incarnation, 1).0),
            failure: OnceLock::new(),
            buffers: Mutex::new(Vec::new()),
        }
    }

    /// Why the pool is read-only, if it is.
    pub fn failure(&self) -> Option<Arc<str>> {
        self.failure.get().cloned()
    }

    /// # Errors
    /// [`WriteError::ReadOnly`] once a write or flush has failed, or writes are refused.
    pub fn writable(&self) -> Result<(), WriteError> {
        match self.failure.get() {
            None => Ok(()),
            Some(reason) => Err(WriteError::ReadOnly {
                reason: Arc::clone(reason),
            }),
        }
    }

    /// Nothing is written from now on, for a reason that is no failure.
    pub fn refuse_writes(&self, reason: &str) {
        self.failure.get_or_init(|| reason.into());
    }

    /// A write or flush has failed: nothing is acknowledged from now on, because what the device holds is unknown.
    pub fn fail(&self, cause: &dyn std::fmt::Display) -> WriteError {
        let reason = self.failure.get_or_init(|| {
            tracing::error!(%cause, "the pool goes read-only");
            cause.to_string().into()
        });
        WriteError::ReadOnly {
            reason: Arc::clone(reason),
        }
    }

    fn space_error(&self, error: NoSpaceOr<DeviceError>) -> WriteError {
        match error {
            NoSpaceOr::NoSpace(no_space) => no_space.into(),
            NoSpaceOr::Other(error) => self.fail(&error),
        }
    }

    /// The least sequence number of a data segment of which the segment table may have no row once all that has
    /// changed by now is in it: one that is open, or that is yet to be taken.
    pub fn unlisted_from(&self, space: &Space) -> SegmentSeq {
        let open = space.entries().filter(|(_, entry)| {
            matches!(entry.state, State::Open(Stream::Data | Stream::ColdData))
        });
        let next = SegmentSeq(self.next_seq.load(Ordering::Relaxed));
        open.map(|(_, entry)| entry.seq).min().unwrap_or(next)
    }

    /// Takes a free segment for a stream.
    pub fn take_segment(
        &self,
        stream: Stream,
        purpose: Purpose,
    ) -> Result<(SegmentId, SegmentSeq), WriteError> {
        self.take_with(|space, seq| space.take(&*self.device, stream, purpose, seq))
    }

    /// Takes a free segment for tables that most likely fit into its first [`crate::space::START_BYTES`]. Before more is
    /// written, [`Pool::complete`] gets the rest.
    pub fn take_start(&self, purpose: Purpose) -> Result<(SegmentId, SegmentSeq), WriteError> {
        self.take_with(|space, seq| space.take_start(&*self.device, purpose, seq))
    }

    fn take_with(
        &self,
        take: impl FnOnce(&mut Space, SegmentSeq) -> Result<SegmentId, NoSpaceOr<DeviceError>>,
    ) -> Result<(SegmentId, SegmentSeq), WriteError> {
        let (taken, seq) = {
            let mut space = self.space.lock();
            // Under the lock, so that whoever has it knows all numbers that have been given out.
            let seq = SegmentSeq(self.next_seq.fetch_add(1, Ordering::Relaxed));
            (take(&mut space, seq), seq)
        };
        let segment = taken.map_err(|error| self.space_error(error))?;
        Ok((segment, seq))
    }

    /// Makes sure that the first `used` bytes of a segment that was taken have room on the host.
    pub fn complete(&self, segment: SegmentId, used: u32) -> Result<(), WriteError> {
        let completed = self
            .space
            .lock()
            .room
            .complete(&*self.device, segment, used);
        completed.map_err(|error| self.space_error(error))
    }

    /// The number that the next segment to be taken gets: all that have one have a smaller one.
    pub fn next_segment_seq(&self) -> SegmentSeq {
        let _space = self.space.lock();
        SegmentSeq(self.next_seq.load(Ordering::Relaxed))
    }

    /// The sealed header of a segment that was just taken.
    pub fn segment_header(
        &self,
        stream: Stream,
        segment: SegmentId,
        seq: SegmentSeq,
        next: SegmentId,
        first_lsn: u64,
    ) -> [u8; size_of::<SegmentHeader>()] {
        let header = SegmentHeader {
            magic: cfs_format::segment::MAGIC,
            version: FORMAT_VERSION.into(),
            stream: stream as u8,
            reserved: [0; 3],
            pool_uuid: self.uuid,
            seq: seq.0.into(),
            segment: segment.0.into(),
            next: next.0.into(),
            first_lsn: first_lsn.into(),
            created_ns: self.host.now_ns().into(),
            mac: [0; 32],
        };
        cfs_seal::keys::seal_segment_header(header, &self.cluster_key)
    }

    /// A segment-sized buffer, empty.
    pub fn buffer(&self) -> AlignedBuf {
        let mut buffer = self
            .buffers
            .lock()
            .pop()
            .unwrap_or_else(|| AlignedBuf::with_capacity(SEGMENT_BYTES as usize));
        buffer.clear();
        buffer
    }

    /// Gives a buffer back.
    pub fn recycle(&self, buffer: AlignedBuf) {
        let mut buffers = self.buffers.lock();
        if buffers.len() < BUFFERS_KEPT {
            buffers.push(buffer);
        }
    }

    /// Reads a whole segment as the device has it, past the host's page cache where that can be. To be given back with
    /// [`Pool::recycle`].
    pub fn read_segment(&self, segment: SegmentId) -> Result<AlignedBuf, DeviceError> {
        let mut content = self.buffer();
        content.resize(SEGMENT_BYTES as usize);
        match self.device.read_at(segment, 0, content.as_mut_slice()) {
            Ok(()) => Ok(content),
            Err(error) => {
                self.recycle(content);
                Err(error)
            }
        }
    }

    pub fn write(&self, segment: SegmentId, offset: u32, bytes: &[u8]) -> Result<(), WriteError> {
        debug_assert!(
            offset.is_multiple_of(BLOCK_BYTES) && bytes.len().is_multiple_of(BLOCK_BYTES as usize)
        );
        self.writable()?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.device
            .write_at(segment, offset, bytes)
            .map_err(|error| self.fail(&error))
    }

    pub fn flush(&self) -> Result<(), WriteError> {
        self.writable()?;
        #[cfg(feature = "planted-bugs")]
        if cfs_format::planted::has(cfs_format::planted::Bug::FailedFlushRetried)
            && self.device.flush().is_ok()
        {
            return Ok(());
        }
        self.device.flush().map_err(|error| self.fail(&error))
    }

    /// Promises room for `bytes`.
    pub fn promise(&self, bytes: u64) -> Result<(), NoSpace> {
        let mut space = self.space.lock();
        space
            .promise(&*self.device, bytes)
            .map_err(|error| match error {
                NoSpaceOr::NoSpace(no_space) => no_space,
                NoSpaceOr::Other(error) => {
                    self.fail(&error);
                    NoSpace {
                        needed_bytes: bytes,
                        available_bytes: 0,
                    }
                }
            })
    }
}

/// Bytes rounded up to whole blocks.
pub(crate) const fn block_ceil(bytes: u32) -> u32 {
    bytes.next_multiple_of(BLOCK_BYTES)
}

/// A host for unit tests, on which no time passes.
#[cfg(test)]
pub(crate) struct NoHost;

#[cfg(test)]
impl Host for NoHost {
    fn now_ns(&self) -> u64 {
        1
    }
    fn fill_random(&self, buf: &mut [u8]) {
        buf.fill(1);
    }
}
