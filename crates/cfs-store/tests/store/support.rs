//! What these tests share: a host without a clock, a pool's key, and one kind of command.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cfs_device::Device;
use cfs_format::superblock::{ChunkParams, KeySlot, UNLOCK_KEY_FILE};
use cfs_format::table::{VolumeRecord, key, tag};
use cfs_format::{DomainId, Fingerprint, Ino, VolumeId};
use cfs_seal::block::Cipher;
use cfs_seal::codec::Codec;
use cfs_seal::keys::{
    ClusterKey, MasterKey, render_key_file, unwrap_cluster_key, wrap_cluster_key,
};
use cfs_store::{
    FormatOptions, Host, NewChunk, OpenError, ReplayError, Store, StoreOptions, Txn, UnlockError,
    WriteError,
};
use zerocopy::FromZeros;

pub struct TestHost {
    clock_ns: AtomicU64,
    /// What each look at the clock takes.
    step_ns: u64,
}

impl TestHost {
    pub fn start() -> Arc<dyn Host> {
        Self::with_clock()
    }

    /// One whose clock can be moved.
    pub fn with_clock() -> Arc<Self> {
        Self::with_step(1_000_000)
    }

    /// One on which flushes follow each other as closely as on a machine.
    pub fn quick() -> Arc<dyn Host> {
        Self::with_step(1_000)
    }

    fn with_step(step_ns: u64) -> Arc<Self> {
        Arc::new(Self {
            clock_ns: AtomicU64::new(1_700_000_000_000_000_000),
            step_ns,
        })
    }

    pub fn pass_ms(&self, ms: u64) {
        self.clock_ns.fetch_add(ms * 1_000_000, Ordering::Relaxed);
    }
}

impl Host for TestHost {
    fn now_ns(&self) -> u64 {
        self.clock_ns.fetch_add(self.step_ns, Ordering::Relaxed)
    }
    fn fill_random(&self, buf: &mut [u8]) {
        for byte in buf {
            *byte = (next(&mut self.clock_ns.load(Ordering::Relaxed)) >> 32) as u8;
            self.clock_ns.fetch_add(1, Ordering::Relaxed);
        }
    }
}

pub fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn master() -> MasterKey {
    MasterKey::from_key_file_bytes(&render_key_file(&[7; 32])).expect("a rendered key file parses")
}

pub fn format(device: &Arc<dyn Device>, host: &Arc<dyn Host>) {
    let chunk = ChunkParams {
        min: (64 << 10).into(),
        avg: (128 << 10).into(),
        max: (256 << 10).into(),
        algorithm: 1.into(),
    };
    format_with(device, host, chunk);
}

pub fn format_with(device: &Arc<dyn Device>, host: &Arc<dyn Host>, chunk: ChunkParams) {
    let cluster_key = ClusterKey::from_bytes([9; 32]);
    let mut slot = KeySlot::new_zeroed();
    slot.unlock = UNLOCK_KEY_FILE;
    wrap_cluster_key(&master(), &cluster_key, &mut slot);
    let options = FormatOptions {
        cipher: Cipher::Aes256Gcm,
        chunk,
        pool_bytes_max: 0,
        domain_secret: None,
    };
    Store::format(device, host, cluster_key, slot, &options).expect("format");
}

/// The test's only command: slot `ino` now holds this chunk; the one before is let go.
pub type Put = (u64, Fingerprint, Option<NewChunk>);

pub fn apply(txn: &mut Txn<'_>, command: &[u8]) -> Result<(), ReplayError> {
    let (slot, fingerprint, new): Put = postcard::from_bytes(command).expect("a command");
    let key = key(Ino(slot), tag::EXTENT, &[]);
    if txn.volume(VolumeId::ROOT).is_none() {
        txn.volume_put(VolumeId::ROOT, VolumeRecord::default());
    }
    txn.chunk_ref(&fingerprint, new.as_ref())?;
    if let Some(old) = txn.get(&key)? {
        let old = Fingerprint(old[..32].try_into().expect("32 bytes"));
        txn.chunk_unref(&old)?;
    }
    let mut value = fingerprint.0.to_vec();
    value.extend_from_slice(&txn.timestamp().0.to_le_bytes());
    txn.put(key, value);
    Ok(())
}

pub fn open(device: Arc<dyn Device>, host: Arc<dyn Host>) -> Arc<Store> {
    try_open(device, host, StoreOptions::default()).expect("open")
}

pub fn try_open(
    device: Arc<dyn Device>,
    host: Arc<dyn Host>,
    options: StoreOptions,
) -> Result<Arc<Store>, OpenError> {
    Store::open(
        device,
        host,
        |superblock| {
            unwrap_cluster_key(&master(), &superblock.key_slot).map_err(|_| UnlockError::WrongKey)
        },
        options,
        apply,
    )
}

/// How [`put`] does it.
#[derive(Clone, Copy)]
pub struct Shape {
    /// The lane that the chunk goes to.
    pub lane: usize,
    pub codec: Codec,
    /// Bytes by which the command is longer than it must be.
    pub padding: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            lane: 0,
            codec: Codec::Lz4,
            padding: 0,
        }
    }
}

/// Stores a chunk and lets the slot refer to it.
pub fn put(
    store: &Store,
    slot: u64,
    content: &[u8],
    shape: Shape,
) -> Result<(Fingerprint, Option<NewChunk>), WriteError> {
    let pin = store.put_chunk(shape.lane, DomainId::DEFAULT, shape.codec, content)?;
    let command: Put = (slot, *pin.fingerprint(), pin.new_chunk());
    let mut command = postcard::to_stdvec(&command).expect("encode");
    command.resize(command.len() + shape.padding, 0);
    let mut txn = store.begin();
    apply(&mut txn, &command).expect("apply");
    txn.commit(&command)?;
    Ok((*pin.fingerprint(), pin.new_chunk()))
}

/// Compares references and live bytes with a recount, and reads every chunk.
pub fn check_counts(store: &Store) {
    let frozen = store.freeze();
    let mut refs: BTreeMap<Fingerprint, u32> = BTreeMap::new();
    let lo = key(Ino(1), 0, &[]);
    for row in store.range(&lo, &[0xff; 9]) {
        let (_, value) = row.expect("row");
        *refs
            .entry(Fingerprint(value[..32].try_into().expect("32 bytes")))
            .or_default() += 1;
    }
    let mut live: BTreeMap<u32, u32> = BTreeMap::new();
    let mut out = Vec::new();
    for chunk in frozen.chunks() {
        let (fingerprint, record) = chunk.expect("chunk");
        assert_eq!(
            refs.remove(&fingerprint).unwrap_or(0),
            record.refs.get(),
            "references of {fingerprint}"
        );
        *live.entry(record.segment.get()).or_default() += record.record_len.get();
        store
            .read_chunk(&fingerprint, &mut out)
            .expect("every chunk in the index can be read");
    }
    assert!(refs.is_empty(), "every referenced chunk is in the index");
    for (segment, record) in frozen.segments {
        assert_eq!(
            live.remove(&segment.0).unwrap_or(0),
            record.live_bytes.get(),
            "live bytes of {segment:?}"
        );
    }
    assert!(
        live.is_empty(),
        "every chunk is in a segment that is in use"
    );
}
