//! Tables are compressed as the content of the root volume is, and those that were written before stay readable.

use std::ops::Range;
use std::sync::Arc;

use cfs_device::{Device, MemDevice};
use cfs_format::table::{VolumeRecord, key};
use cfs_format::{Ino, SegmentId, VolumeId};
use cfs_seal::codec::Codec;
use cfs_store::{Host, Store, TableOwner};

use crate::support::{TestHost, format, next, open};

const ROW_BYTES: usize = 200;
const ROWS: u64 = 4000;
const RAW_BYTES: u64 = ROWS * ROW_BYTES as u64;

struct World {
    device: Arc<dyn Device>,
    host: Arc<dyn Host>,
    store: Arc<Store>,
}

impl World {
    fn new(codec: Codec) -> Self {
        let device: Arc<dyn Device> = Arc::new(MemDevice::new(128));
        let host = TestHost::start();
        format(&device, &host);
        let store = open(Arc::clone(&device), Arc::clone(&host));
        let world = Self {
            device,
            host,
            store,
        };
        world.set_codec(codec);
        world
    }

    fn set_codec(&self, codec: Codec) {
        let (codec, codec_level) = codec.numbers();
        let mut txn = self.store.begin();
        let record = VolumeRecord {
            codec,
            codec_level,
            ..VolumeRecord::default()
        };
        txn.volume_put(VolumeId::ROOT, record);
        txn.commit(b"codec").expect("commits");
    }

    fn reopen(&mut self) {
        self.store.close().expect("closed");
        self.store = open(Arc::clone(&self.device), Arc::clone(&self.host));
    }

    /// Puts rows, in tables as soon as this returns.
    fn write(&self, rows: Range<u64>) {
        for row in rows {
            let mut txn = self.store.begin();
            txn.put(row_key(row), row_value(row));
            txn.commit(b"row").expect("commits");
        }
        self.store.checkpoint().expect("a checkpoint");
    }

    fn check(&self, rows: Range<u64>) {
        for row in rows {
            let value = self.store.get(&row_key(row)).expect("readable");
            assert!(value == Some(row_value(row)), "row {row}");
        }
    }

    /// Bytes that the blocks of the tables with these rows take.
    fn stored_bytes(&self) -> u64 {
        let segments = 0..self.device.geometry().segment_count;
        let reports = segments.map(|segment| {
            let report = self.store.segment_report(SegmentId(segment));
            report.expect("readable")
        });
        let full = reports.filter(|report| report.table_entry.starts_with("full (Table)"));
        let directories = full.filter_map(|report| report.directory);
        directories
            .filter(|directory| directory.owner == TableOwner::Meta)
            .flat_map(|directory| directory.blocks)
            .map(|(_, stored_len)| u64::from(stored_len))
            .sum()
    }
}

fn row_key(row: u64) -> Vec<u8> {
    key(Ino(1 << 40 | row), 0x10, &[])
}

/// Hexadecimal digits without a pattern: Zstandard makes them little more than half as long, and LZ4 finds nothing in them.
fn row_value(row: u64) -> Vec<u8> {
    let mut state = row;
    let digits = (0..ROW_BYTES).map(|_| b"0123456789abcdef"[(next(&mut state) % 16) as usize]);
    digits.collect()
}

#[track_caller]
fn assert_is(bytes: u64, codec: Codec) {
    let is_fit = match codec {
        Codec::None | Codec::Lz4 => bytes > RAW_BYTES * 9 / 10,
        Codec::Zstd(_) => (RAW_BYTES / 2..RAW_BYTES * 3 / 4).contains(&bytes),
    };
    assert!(is_fit, "{RAW_BYTES} bytes took {bytes} with {codec}");
}

#[test]
fn tables_are_compressed_as_content_is() {
    for codec in [Codec::None, Codec::Lz4, Codec::Zstd(1), Codec::Zstd(19)] {
        let mut world = World::new(codec);
        world.write(0..ROWS);
        assert_is(world.stored_bytes(), codec);
        world.reopen();
        world.check(0..ROWS);
        assert_is(world.stored_bytes(), codec);
    }
}

#[test]
fn tables_from_before_another_codec_are_read_beside_the_new_ones() {
    for (before, after) in [(Codec::Lz4, Codec::Zstd(3)), (Codec::Zstd(3), Codec::Lz4)] {
        let mut world = World::new(before);
        world.write(0..ROWS);
        let first = world.stored_bytes();
        assert_is(first, before);
        world.set_codec(after);
        world.reopen();
        world.write(ROWS..2 * ROWS);
        // The first ones are as they were.
        let both = world.stored_bytes();
        assert_is(both - first, after);
        world.reopen();
        world.check(0..2 * ROWS);
    }
}
