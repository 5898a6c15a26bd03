//! Many who sync at a time.

use std::fs::File;
use std::io::Write as _;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use cfs_device::{Device, DeviceError, Geometry, HostSpace, MemDevice};
use cfs_format::SegmentId;
use parking_lot::{Condvar, Mutex};

use crate::support::mount_on;

const PATIENCE: Duration = Duration::from_secs(30);
/// Many more than the threads of a mount.
const CALLERS: usize = 40;

/// A device whose flushes last as long as the test wants.
struct HeldDevice {
    inner: MemDevice,
    is_held: Mutex<bool>,
    release: Condvar,
    flushes: AtomicUsize,
}

impl HeldDevice {
    fn hold(&self, is_held: bool) {
        *self.is_held.lock() = is_held;
        self.release.notify_all();
    }
}

impl Device for HeldDevice {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn read_at(&self, segment: SegmentId, offset: u32, buf: &mut [u8]) -> Result<(), DeviceError> {
        self.inner.read_at(segment, offset, buf)
    }

    fn write_at(&self, segment: SegmentId, offset: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        self.inner.write_at(segment, offset, bytes)
    }

    fn prepare(&self, first: SegmentId, count: u32) -> Result<(), DeviceError> {
        self.inner.prepare(first, count)
    }

    fn discard(&self, segment: SegmentId, range: Range<u32>) -> Result<(), DeviceError> {
        self.inner.discard(segment, range)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        let mut is_held = self.is_held.lock();
        while *is_held {
            self.release.wait(&mut is_held);
        }
        self.inner.flush()
    }

    fn host_space(&self) -> Result<Option<HostSpace>, DeviceError> {
        self.inner.host_space()
    }
}

/// One flush serves all who have come by then, and nobody else waits for it.
#[test]
fn who_syncs_holds_up_nobody_and_shares_flushes() {
    let device = Arc::new(HeldDevice {
        inner: MemDevice::new(128),
        is_held: Mutex::new(false),
        release: Condvar::new(),
        flushes: AtomicUsize::new(0),
    });
    let Some(test) = mount_on(Arc::<HeldDevice>::clone(&device)) else {
        return;
    };
    let mut files: Vec<File> = (0..CALLERS)
        .map(|number| File::create(test.path(number.to_string())).expect("create"))
        .collect();
    test.fs.syncfs().expect("sync what is there");
    let before = test.fs.store().last_lsn();
    device.hold(true);
    let flushed = device.flushes.load(Ordering::SeqCst);
    let (ends, ended) = channel();
    for (number, mut file) in files.drain(..).enumerate() {
        let ends = ends.clone();
        std::thread::spawn(move || {
            let content = [number as u8 + 1; 5000];
            let synced = file.write_all(&content).and_then(|()| file.sync_all());
            // If the test has failed nobody listens.
            let _ = ends.send(synced.map(|()| file));
        });
    }
    // All that they write is in the log's queue.
    let begun = Instant::now();
    while test.fs.store().last_lsn().0 < before.0 + CALLERS as u64 {
        if begun.elapsed() > PATIENCE {
            device.hold(false);
            panic!("they hold each other up");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let other = test.path("other");
    let others = ends.clone();
    std::thread::spawn(move || {
        let made = File::create(&other).and_then(|mut file| {
            file.write_all(b"of somebody else")?;
            std::fs::metadata(&other)?;
            Ok(file)
        });
        let _ = others.send(made);
    });
    let made = ended.recv_timeout(PATIENCE);
    let early = device.flushes.load(Ordering::SeqCst);
    device.hold(false);
    made.expect("nobody else waits").expect("made");
    assert_eq!(early, flushed + 1, "one of them syncs, for all");
    for _ in 0..CALLERS {
        let synced = ended.recv_timeout(PATIENCE).expect("all are answered");
        synced.expect("synced");
    }
    let flushes = device.flushes.load(Ordering::SeqCst) - flushed;
    assert!(flushes <= 6, "{flushes} flushes of {CALLERS} callers");
}
