//! Rebuilding index and tables from the segments: what an earlier way of doing it lost. The simulation tries the rest.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use cfs_device::{Device, DeviceError, FaultPlan, Geometry, HostSpace, MemDevice};
use cfs_format::segment::Stream;
use cfs_format::superblock::Superblock;
use cfs_format::{BLOCK_BYTES, DomainId, Ino, SEGMENT_BYTES, SegmentId};
use cfs_fs::{Caller, Fs, FsOptions, Rebuilt, Recorded, VolumeDomain, VolumeOptions};
use cfs_seal::codec::Codec;
use cfs_seal::keys::{ClusterKey, open_segment_header, seal_segment_header, unwrap_cluster_key};
use cfs_store::{StoreOptions, UnlockError};

use crate::pool::{Pool, Rng, assert_clean, master_key};

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut bytes = vec![0; len];
    bytes.fill_with(|| rng.next() as u8);
    bytes
}

fn create(fs: &Fs, name: &str, content: &[u8]) -> Ino {
    let file = fs.create(Ino::ROOT, name.as_bytes(), 0o644, &Caller::default());
    let ino = file.expect("create").ino;
    fs.write(ino, 0, content, false).expect("write");
    ino
}

fn erase(device: &MemDevice, segment: SegmentId, bytes: u32) {
    let zeros = vec![0; bytes as usize];
    device.write_at(segment, 0, &zeros).expect("written");
    device.flush().expect("flushed");
}

fn unlock(superblock: &Superblock) -> Result<ClusterKey, UnlockError> {
    unwrap_cluster_key(&master_key(), &superblock.key_slot).map_err(|_| UnlockError::WrongKey)
}

/// The pool as a kill has left it, without its anchors and without the first bytes of these segments.
pub fn rebuild(
    pool: &Pool,
    superblock: &[u8],
    without: &[SegmentId],
    options: StoreOptions,
) -> Rebuilt {
    rebuild_after(pool.device.power_cut(0), pool, superblock, without, options)
}

/// As [`rebuild`], of what a power cut has left.
fn rebuild_after(
    device: MemDevice,
    pool: &Pool,
    superblock: &[u8],
    without: &[SegmentId],
    options: StoreOptions,
) -> Rebuilt {
    let device = Arc::new(device);
    for anchor in [0, 1].map(SegmentId) {
        erase(&device, anchor, SEGMENT_BYTES);
    }
    for segment in without {
        erase(&device, *segment, BLOCK_BYTES);
    }
    Fs::rebuild_pool(
        device,
        pool.host.clone(),
        Some(superblock),
        unlock,
        (options, FsOptions::default()),
        |_| true,
    )
    .expect("rebuilt")
    .expect("not ended")
}

fn read(fs: &Fs, ino: Ino, len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    fs.read(ino, 0, len, &mut out).expect("readable");
    out
}

/// A device that calls somebody before a certain write, and waits a little for them.
struct Interrupted {
    device: Arc<MemDevice>,
    writes_before: AtomicI64,
    call: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

/// Longer than what is called takes, unless it waits for a lock of whoever writes.
const PATIENCE: Duration = Duration::from_millis(300);

impl Device for Interrupted {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn read_at(&self, segment: SegmentId, offset: u32, buf: &mut [u8]) -> Result<(), DeviceError> {
        self.device.read_at(segment, offset, buf)
    }

    fn write_at(&self, segment: SegmentId, offset: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        if self.writes_before.fetch_sub(1, Ordering::Relaxed) == 0
            && let Some(call) = self.call.lock().expect("no panics").take()
        {
            let (done, is_done) = mpsc::channel();
            std::thread::spawn(move || {
                call();
                // Nobody may be waiting any more.
                let _ = done.send(());
            });
            let _ = is_done.recv_timeout(PATIENCE);
        }
        self.device.write_at(segment, offset, bytes)
    }

    fn prepare(&self, first: SegmentId, count: u32) -> Result<(), DeviceError> {
        self.device.prepare(first, count)
    }

    fn discard(&self, segment: SegmentId, range: std::ops::Range<u32>) -> Result<(), DeviceError> {
        self.device.discard(segment, range)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.device.flush()
    }

    fn host_space(&self) -> Result<Option<HostSpace>, DeviceError> {
        self.device.host_space()
    }
}

/// A lane's segment may be taken at any moment of a checkpoint, and what refers to the chunks in it comes afterwards: no
/// row of the checkpoint's tables knows it.
#[test]
fn content_that_was_stored_beside_a_checkpoint_is_there() {
    for writes_before in 0..12 {
        let pool = Pool::new(64);
        let device = Arc::new(Interrupted {
            device: Arc::clone(&pool.device),
            writes_before: AtomicI64::new(i64::MAX),
            call: Mutex::default(),
        });
        let fs = Fs::open_pool(
            device.clone(),
            pool.host.clone(),
            unlock,
            StoreOptions::default(),
            FsOptions::default(),
        )
        .expect("opens");
        create(&fs, "before", &noise(1, 3_000_000));
        fs.syncfs().expect("syncfs");
        let content = noise(2, 60_000);
        // More than is left in a segment.
        let (stored, pins) = mpsc::channel();
        let call = {
            let (store, content) = (Arc::clone(fs.store()), content.clone());
            move || {
                for number in 0..40 {
                    let content = match number {
                        39 => content.clone(),
                        number => noise(100 + number, 60_000),
                    };
                    let pin = store.put_chunk(0, DomainId::DEFAULT, Codec::None, &content);
                    stored.send(pin).expect("somebody waits");
                }
            }
        };
        *device.call.lock().expect("no panics") = Some(Box::new(call));
        device.writes_before.store(writes_before, Ordering::Relaxed);
        fs.store().checkpoint().expect("checkpoint");
        if device.call.lock().expect("no panics").is_some() {
            assert!(writes_before > 4, "a checkpoint has some writes");
            break;
        }
        let pins: Vec<_> = pins.iter().collect();
        let ino = create(&fs, "after", &content);
        fs.syncfs().expect("syncfs");
        let superblock = fs.store().superblock_copy();
        let rebuilt = rebuild(&pool, &superblock, &[], StoreOptions::default());
        assert!(rebuilt.findings.is_empty(), "{:?}", rebuilt.findings);
        assert_eq!(
            rebuilt.report.lost_chunks, 0,
            "{writes_before} writes before: {:?}",
            rebuilt.report
        );
        assert!(read(&rebuilt.fs, ino, 60_000) == content);
        assert_clean(&rebuilt.fs);
        drop(pins);
    }
}

/// A data segment without its header is known from its row. That had been read after new tables had begun to take room.
#[test]
fn a_data_segment_without_its_header_is_not_written_over() {
    rebuild_without_header(|device, segment, _| erase(device, segment, BLOCK_BYTES));
}

/// A power cut had kept chunks and not the header that came with them. What the header of before said was believed, and
/// content was lost that an opening would have found.
#[test]
fn a_data_segment_with_the_header_of_its_former_life_is_known() {
    rebuild_without_header(|device, segment, key| {
        let mut block = vec![0; BLOCK_BYTES as usize];
        device.read_at(segment, 0, &mut block).expect("read");
        let mut header = open_segment_header(&block, key).expect("a header");
        header.stream = Stream::Journal as u8;
        header.seq = 1.into();
        let sealed = seal_segment_header(header, key);
        block[..sealed.len()].copy_from_slice(&sealed);
        device.write_at(segment, 0, &block).expect("written");
        device.flush().expect("flushed");
    });
}

/// Rebuilds a pool after something has been done to the header of a data segment, and expects all that there was.
fn rebuild_without_header(spoil: impl FnOnce(&MemDevice, SegmentId, &ClusterKey)) {
    let pool = Pool::new(128);
    let fs = pool.open();
    let content = noise(3, 1_500_000);
    let ino = create(&fs, "large", &content);
    fs.syncfs().expect("syncfs");
    for number in 0..3000 {
        create(&fs, &format!("small {number}"), &noise(number, 700));
    }
    fs.syncfs().expect("syncfs");
    fs.store().checkpoint().expect("checkpoint");
    let superblock = fs.store().superblock_copy();
    let data: Vec<SegmentId> = {
        let chunks = fs.store().freeze().chunks();
        let mut segments: Vec<_> = chunks
            .map(|chunk| SegmentId(chunk.expect("a chunk").1.segment.get()))
            .collect();
        segments.dedup();
        segments
    };
    let options = StoreOptions {
        memtable_bytes_max: 64 << 10,
        ..StoreOptions::default()
    };
    let device = pool.device.power_cut(0);
    let found = cfs_store::read_superblock(&device).expect("a superblock");
    let key = unlock(&found.superblock).expect("the key");
    spoil(&device, data[0], &key);
    let rebuilt = rebuild_after(device, &pool, &superblock, &[], options);
    assert!(rebuilt.findings.is_empty(), "{:?}", rebuilt.findings);
    assert_eq!(rebuilt.report.lost_chunks, 0, "{:?}", rebuilt.report);
    assert!(read(&rebuilt.fs, ino, content.len()) == content);
    assert_clean(&rebuilt.fs);
}

/// The tables of a checkpoint that ended early may be the newest that are left, and what has not been flushed when they
/// are written is lost with the power.
#[test]
fn tables_of_an_unfinished_checkpoint_refer_to_nothing_that_is_lost() {
    let mut failed = 0;
    for failing_write in 1.. {
        let pool = Pool::new(64);
        let fs = pool.open();
        create(&fs, "before", &noise(1, 100_000));
        fs.syncfs().expect("syncfs");
        fs.store().checkpoint().expect("checkpoint");
        let after = create(&fs, "after", &noise(2, 100_000));
        fs.flush(after).expect("in the log");
        let superblock = fs.store().superblock_copy();
        pool.device.set_faults(FaultPlan {
            failing_writes: vec![failing_write],
            ..FaultPlan::default()
        });
        if fs.store().checkpoint().is_ok() {
            break;
        }
        failed += 1;
        for seed in 0..12 {
            let device = pool.device.power_cut(seed);
            let rebuilt = rebuild_after(device, &pool, &superblock, &[], StoreOptions::default());
            let place = format!("write {failing_write}, seed {seed}");
            assert_eq!(
                rebuilt.report.lost_chunks, 0,
                "{place}: {:?}",
                rebuilt.report
            );
            assert!(
                rebuilt.findings.is_empty(),
                "{place}: {:?}",
                rebuilt.findings
            );
            assert_clean(&rebuilt.fs);
        }
    }
    assert!(failed > 4, "a checkpoint has some writes");
}

/// The secret of a dedup domain may be in the log alone.
#[test]
fn content_of_a_domain_that_only_the_log_knows_is_there() {
    for is_recorded in [false, true] {
        let pool = Pool::new(64);
        let fs = pool.open();
        fs.store().checkpoint().expect("checkpoint");
        let options = VolumeOptions {
            domain: VolumeDomain::New,
            ..VolumeOptions::default()
        };
        let caller = Caller::default();
        let records = [(b"test.of".to_vec(), b"somebody".to_vec())];
        let how = Recorded {
            records: &records,
            stays: false,
        };
        let root = match is_recorded {
            false => fs.volume_create(b"/own", &options, &caller),
            true => fs.volume_create_recorded(b"/own", &options, &caller, &how),
        };
        let content = noise(4, 300_000);
        let made = fs.create(root.expect("made").ino, b"file", 0o644, &Caller::default());
        let ino = made.expect("create").ino;
        fs.write(ino, 0, &content, false).expect("write");
        fs.syncfs().expect("syncfs");
        let superblock = fs.store().superblock_copy();
        let rebuilt = rebuild(&pool, &superblock, &[], StoreOptions::default());
        assert!(rebuilt.findings.is_empty(), "{:?}", rebuilt.findings);
        assert_eq!(rebuilt.report.lost_chunks, 0, "{:?}", rebuilt.report);
        assert!(read(&rebuilt.fs, ino, content.len()) == content);
        assert_clean(&rebuilt.fs);
    }
}
