//! Many who sync at a time.

use std::fs::File;
use std::io::Write as _;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use cfs_device::{Device, DeviceError, Geometry, HostSpace, MemDevice};
use cfs_format::SegmentId;
use parking_lot::{Condvar, Mutex};

use crate::support::{Rng, TestMount, mount_on};

const PATIENCE: Duration = Duration::from_secs(30);
/// Many more than the threads of a mount.
const CALLERS: usize = 40;

/// What a device does not end as long as the test wants.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    Nothing,
    Flushes,
    FlushesAndWrites,
}

struct HeldDevice {
    inner: MemDevice,
    held: Mutex<Held>,
    release: Condvar,
    flushes: AtomicUsize,
    flushes_fail: AtomicBool,
}

impl HeldDevice {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: MemDevice::new(128),
            held: Mutex::new(Held::Nothing),
            release: Condvar::new(),
            flushes: AtomicUsize::new(0),
            flushes_fail: AtomicBool::new(false),
        })
    }

    fn hold(&self, held: Held) {
        *self.held.lock() = held;
        self.release.notify_all();
    }

    fn wait_while(&self, is_held: impl Fn(Held) -> bool) {
        let mut held = self.held.lock();
        while is_held(*held) {
            self.release.wait(&mut held);
        }
    }
}

/// Lets go of what is held when a test ends, also by a panic: others wait for it.
struct LetGo(Arc<HeldDevice>);

impl Drop for LetGo {
    fn drop(&mut self) {
        self.0.hold(Held::Nothing);
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
        self.wait_while(|held| held == Held::FlushesAndWrites);
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
        self.wait_while(|held| held != Held::Nothing);
        if self.flushes_fail.load(Ordering::SeqCst) {
            return Err(DeviceError::Io {
                operation: "flush",
                segment: None,
                offset: 0,
                source: std::io::Error::other("made up"),
            });
        }
        self.inner.flush()
    }

    fn host_space(&self) -> Result<Option<HostSpace>, DeviceError> {
        self.inner.host_space()
    }
}

/// A mounted pool on such a device. What is held is let go of before it is unmounted.
fn mount_held() -> Option<(Arc<HeldDevice>, TestMount, LetGo)> {
    let device = HeldDevice::new();
    let test = mount_on(Arc::<HeldDevice>::clone(&device))?;
    let let_go = LetGo(Arc::clone(&device));
    Some((device, test, let_go))
}

/// Files that were written, and not synced.
fn files(test: &TestMount, bytes: usize) -> Vec<File> {
    let files = (0..CALLERS).map(|number| {
        let mut file = File::create(test.path(number.to_string())).expect("create");
        // Nothing of it is in another file.
        let content = Rng::new(number as u64).bytes(bytes);
        file.write_all(&content).expect("written");
        file
    });
    files.collect()
}

/// Each file is synced by a thread of its own. The outcomes come as they are there.
fn sync_each(files: Vec<File>) -> Receiver<std::io::Result<()>> {
    let (ends, ended) = channel();
    for file in files {
        let ends = ends.clone();
        std::thread::spawn(move || {
            // If the test has failed nobody listens.
            let _ = ends.send(file.sync_all());
        });
    }
    ended
}

/// Nobody waits for those who sync but they.
fn expect_others_served(test: &TestMount) {
    let path = test.path("other");
    let (ends, ended) = channel();
    std::thread::spawn(move || {
        let made = File::create(&path).and_then(|mut file| {
            file.write_all(b"of somebody else")?;
            std::fs::metadata(&path)
        });
        let _ = ends.send(made);
    });
    let made = ended.recv_timeout(PATIENCE).expect("nobody else waits");
    made.expect("made");
}

fn expect_all(ended: &Receiver<std::io::Result<()>>) {
    for _ in 0..CALLERS {
        let synced = ended.recv_timeout(PATIENCE).expect("all are answered");
        synced.expect("synced");
    }
}

/// One flush serves all who have come by then.
#[test]
fn who_syncs_shares_flushes_and_holds_up_nobody() {
    let Some((device, test, let_go)) = mount_held() else {
        return;
    };
    drop(files(&test, 0));
    test.fs.syncfs().expect("sync what is there");
    let before = test.fs.store().last_lsn();
    let flushed = device.flushes.load(Ordering::SeqCst);
    device.hold(Held::Flushes);
    let ended = sync_each(files(&test, 5000));
    // All that they write is in the log's queue.
    let begun = Instant::now();
    while test.fs.store().last_lsn().0 < before.0 + CALLERS as u64 {
        assert!(begun.elapsed() < PATIENCE, "they hold each other up");
        std::thread::sleep(Duration::from_millis(1));
    }
    expect_others_served(&test);
    let early = device.flushes.load(Ordering::SeqCst);
    assert_eq!(early, flushed + 1, "one of them syncs, for all");
    drop(let_go);
    expect_all(&ended);
    let flushes = device.flushes.load(Ordering::SeqCst) - flushed;
    assert!(flushes <= 6, "{flushes} flushes of {CALLERS} callers");
}

/// Also where there is much to write first, and the device does not take it.
#[test]
fn who_writes_much_to_sync_holds_up_nobody() {
    let Some((device, test, let_go)) = mount_held() else {
        return;
    };
    let files = files(&test, 400_000);
    device.hold(Held::FlushesAndWrites);
    let ended = sync_each(files);
    // They have come by then, as far as time can tell.
    std::thread::sleep(Duration::from_millis(200));
    for _ in 0..10 {
        expect_others_served(&test);
    }
    assert!(ended.try_recv().is_err(), "nothing is durable yet");
    drop(let_go);
    expect_all(&ended);
}

/// A flush that fails is told to all whom it was for, and to all who come later.
#[test]
fn a_failed_flush_is_told_to_all() {
    let Some((device, test, let_go)) = mount_held() else {
        return;
    };
    let files = files(&test, 5000);
    test.fs.syncfs().expect("sync what is there");
    for (number, mut file) in files.iter().enumerate() {
        file.write_all(&[number as u8; 100]).expect("written");
    }
    device.hold(Held::Flushes);
    let later = files[0].try_clone().expect("cloned");
    let ended = sync_each(files);
    device.flushes_fail.store(true, Ordering::SeqCst);
    drop(let_go);
    for _ in 0..CALLERS {
        let synced = ended.recv_timeout(PATIENCE).expect("all are answered");
        synced.expect_err("it is not durable");
    }
    later.sync_all().expect_err("nor later");
    let root = File::open(test.root()).expect("opened");
    rustix::fs::syncfs(&root).expect_err("nor as a whole");
    drop((later, root));
    test.end_broken();
}
