//! A store whose every call of the device is a step, and a ledger of what it has acknowledged.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cfs_device::{Device, DeviceError, Geometry, HostSpace, MemDevice};
use cfs_format::table::{key, tag};
use cfs_format::{DomainId, Fingerprint, Ino, SegmentId};
use cfs_store::{Health, Host, Store, WriteError};
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::atomic::{AtomicU64, Ordering};

use crate::support::{self, Shape, TestHost};

/// Segments of the pool: enough that it is not low on room, when ticks would begin checkpoints of their own.
const SEGMENTS: u32 = 128;

/// A device each of whose calls is a step of the model.
struct Stepped {
    inner: Arc<MemDevice>,
    calls: AtomicU64,
}

impl Stepped {
    fn step(&self) -> &MemDevice {
        self.calls.fetch_add(1, Ordering::Relaxed);
        &self.inner
    }
}

impl Device for Stepped {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }
    fn read_at(&self, segment: SegmentId, offset: u32, buf: &mut [u8]) -> Result<(), DeviceError> {
        self.step().read_at(segment, offset, buf)
    }
    fn write_at(&self, segment: SegmentId, offset: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        self.step().write_at(segment, offset, bytes)
    }
    fn prepare(&self, first: SegmentId, count: u32) -> Result<(), DeviceError> {
        self.step().prepare(first, count)
    }
    fn discard(&self, segment: SegmentId, range: Range<u32>) -> Result<(), DeviceError> {
        self.step().discard(segment, range)
    }
    fn flush(&self) -> Result<(), DeviceError> {
        self.step().flush()
    }
    fn host_space(&self) -> Result<Option<HostSpace>, DeviceError> {
        self.inner.host_space()
    }
}

/// What was put into the slots, each of which belongs to one thread.
#[derive(Clone, Default)]
struct Ledger {
    slots: BTreeMap<u64, Slot>,
}

#[derive(Clone, Default)]
struct Slot {
    /// Contents that it may have, in order: the last one may be under way.
    contents: Vec<Vec<u8>>,
    /// How many of them have been acknowledged as durable.
    durable: usize,
}

/// What a model works on.
pub struct World {
    pub device: Arc<MemDevice>,
    pub store: Arc<Store>,
    host: Arc<dyn Host>,
    /// Nothing is stepped over while it is held, so it is a lock of the real kind.
    ledger: Mutex<Ledger>,
    /// The device as a power cut would leave it, and what had been acknowledged by then.
    cut: Mutex<Option<(MemDevice, Ledger)>>,
}

/// A new pool.
static POOL: OnceLock<MemDevice> = OnceLock::new();

/// Makes the pool that every schedule begins with. Not done by the first one, which would not be like the others then.
pub fn make_pool() {
    let device = Arc::new(MemDevice::new(SEGMENTS));
    let host = TestHost::start();
    support::format(&(Arc::clone(&device) as Arc<dyn Device>), &host);
    device.flush().expect("memory can be flushed");
    assert!(POOL.set(device.power_cut(0)).is_ok(), "it is made once");
}

impl World {
    pub fn start() -> Self {
        let pool = POOL.get().expect("made before the first schedule");
        let device = Arc::new(pool.power_cut(0));
        let host = TestHost::start();
        let stepped = Stepped {
            inner: Arc::clone(&device),
            calls: AtomicU64::new(0),
        };
        Self {
            store: support::open(Arc::new(stepped), Arc::clone(&host)),
            device,
            host,
            ledger: Mutex::default(),
            cut: Mutex::default(),
        }
    }

    /// True once in `times`.
    pub fn chance(&self, times: u32) -> bool {
        thread_rng().gen_ratio(1, times)
    }

    fn with_slot<T>(&self, slot: u64, act: impl FnOnce(&mut Slot) -> T) -> T {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        act(ledger.slots.entry(slot).or_default())
    }

    /// Puts content into a slot of the calling thread.
    pub fn put(&self, slot: u64, content: &[u8], shape: Shape) -> Result<(), WriteError> {
        self.with_slot(slot, |slot| slot.contents.push(content.to_vec()));
        support::put(&self.store, slot, content, shape).map(drop)
    }

    /// Makes all that was put durable and notes what of this slot is; perhaps the power is cut then.
    pub fn sync(&self, slot: u64) -> Result<(), WriteError> {
        let contents = self.with_slot(slot, |slot| slot.contents.len());
        self.store.sync()?;
        self.with_slot(slot, |slot| slot.durable = contents);
        if self.chance(4) {
            self.cut_power();
        }
        Ok(())
    }

    /// Notes what would be found if the power went now, unless that has been done.
    pub fn cut_power(&self) {
        let mut cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        if cut.is_none() {
            let ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
            let found = self.device.power_cut(thread_rng().r#gen());
            *cut = Some((found, ledger.clone()));
        }
    }

    /// Reads what the slot refers to, if anything.
    pub fn read(&self, slot: u64) {
        let mut out = Vec::new();
        while let Some(row) = row_of(&self.store, slot) {
            match self.store.read_chunk(&fingerprint_in(&row), &mut out) {
                Ok(()) => return self.check_content(slot, &out),
                // It may have been replaced, and then dropped, between the two steps.
                Err(error) => {
                    let same = row_of(&self.store, slot) == Some(row);
                    assert!(!same, "slot {slot}: {error}");
                }
            }
        }
    }

    fn check_content(&self, number: u64, content: &[u8]) {
        let known = self.with_slot(number, |slot| {
            slot.contents.iter().any(|known| known == content)
        });
        assert!(known, "slot {number} has content that nobody put there");
    }

    /// The pool as it is when the threads have ended, and as a power cut leaves it.
    pub fn check(&self) {
        self.cut_power();
        let cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        let (device, ledger) = cut.as_ref().expect("noted just above");
        if self.store.health() == Health::Good {
            let now = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
            check_slots(&self.store, &now, true);
            support::check_counts(&self.store);
        }
        let store = support::open(Arc::new(device.power_cut(0)), Arc::clone(&self.host));
        check_slots(&store, ledger, false);
        support::check_counts(&store);
        // The log goes on, and is found again.
        support::put(&store, u64::MAX >> 8, b"afterwards", Shape::default()).expect("it is whole");
        store.sync().expect("it is whole");
    }
}

/// The row of a slot; no two are equal, since the command's time is in them.
fn row_of(store: &Store, slot: u64) -> Option<Vec<u8>> {
    let row = store.get(&key(Ino(slot), tag::EXTENT, &[]));
    row.expect("tables can be read")
}

fn fingerprint_in(row: &[u8]) -> Fingerprint {
    Fingerprint(row[..32].try_into().expect("32 bytes"))
}

/// Each slot has a content that is at least as new as what is durable; the newest, if `newest`.
fn check_slots(store: &Store, ledger: &Ledger, newest: bool) {
    let secret = store.domain_secret(DomainId::DEFAULT).expect("domain");
    for (number, slot) in &ledger.slots {
        let first = if newest {
            slot.contents.len()
        } else {
            slot.durable
        };
        let Some(found) = row_of(store, *number).map(|row| fingerprint_in(&row)) else {
            assert!(
                first == 0,
                "slot {number}: nothing, and {first} are durable"
            );
            continue;
        };
        let mut allowed = slot.contents[first.saturating_sub(1)..].iter();
        let content = allowed
            .find(|content| secret.fingerprint(content) == found)
            .unwrap_or_else(|| panic!("slot {number}: an older content than the durable one"));
        let mut out = Vec::new();
        if let Err(error) = store.read_chunk(&found, &mut out) {
            panic!("slot {number}: {error}");
        }
        assert!(out == *content, "slot {number}: other content");
    }
}
