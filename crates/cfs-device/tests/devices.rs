//! Every device against one model, and what each kind refuses.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use cfs_device::{
    AlignedBuf, BlockDevice, Device, DeviceError, FileDevice, MemDevice, OpenDeviceError, Overlay,
};
use cfs_format::{BLOCK_BYTES, SEGMENT_BYTES, SegmentId};

const BLOCK: usize = BLOCK_BYTES as usize;
const SEGMENT: usize = SEGMENT_BYTES as usize;

struct Xorshift(u64);

impl Xorshift {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.below(256) as u8).collect()
    }
}

/// Random operations; every read must be what the model says. `zeros_when_new`: never written bytes read as zeros.
fn check_against_model(device: &dyn Device, seed: u64, zeros_when_new: bool) {
    println!("seed {seed}");
    let mut random = Xorshift(seed);
    let segment_count = device.geometry().segment_count.min(6) as usize;
    let mut model: HashMap<usize, Vec<Option<u8>>> = HashMap::new();
    let unknown = if zeros_when_new { Some(0) } else { None };
    let mut aligned = AlignedBuf::with_capacity(64 * BLOCK);
    for step in 0..300 {
        let index = random.below(segment_count);
        let segment = SegmentId(index as u32);
        let expected = model.entry(index).or_insert_with(|| vec![unknown; SEGMENT]);
        match random.below(10) {
            0 => device.prepare(segment, 1).unwrap(),
            1 => device.flush().unwrap(),
            2 => {
                let from = random.below(SEGMENT / BLOCK + 1);
                let to = match random.below(2) {
                    0 => SEGMENT / BLOCK,
                    _ => from + random.below(SEGMENT / BLOCK - from + 1),
                };
                let range = from * BLOCK..to * BLOCK;
                device
                    .discard(segment, range.start as u32..range.end as u32)
                    .unwrap();
                expected[range].fill(unknown);
            }
            3..=6 => {
                let block_count = random.below(16) + 1;
                let offset = random.below(SEGMENT / BLOCK - block_count + 1) * BLOCK;
                let bytes = random.bytes(block_count * BLOCK);
                if random.below(2) == 0 {
                    aligned.clear();
                    aligned.extend_from_slice(&bytes);
                    device.write_at(segment, offset as u32, &aligned).unwrap();
                } else {
                    device.write_at(segment, offset as u32, &bytes).unwrap();
                }
                for (old, new) in expected[offset..].iter_mut().zip(&bytes) {
                    *old = Some(*new);
                }
            }
            kind => {
                // Of those of many blocks the aligned ones may be read directly.
                let (offset, len) = match kind {
                    7 => {
                        let block_count = random.below(SEGMENT / BLOCK) + 1;
                        let start = random.below(SEGMENT / BLOCK - block_count + 1);
                        (start * BLOCK, block_count * BLOCK)
                    }
                    _ => {
                        let len = random.below(3 * BLOCK);
                        (random.below(SEGMENT - len + 1), len)
                    }
                };
                let mut found = AlignedBuf::with_capacity(len);
                found.resize(len);
                found.as_mut_slice().fill(0xee);
                device
                    .read_at(segment, offset as u32, found.as_mut_slice())
                    .unwrap();
                for (position, (found, expected)) in
                    found.iter().zip(&expected[offset..]).enumerate()
                {
                    assert!(
                        expected.is_none_or(|expected| expected == *found),
                        "seed {seed} step {step} segment {index} byte {}",
                        offset + position
                    );
                }
            }
        }
    }
}

fn check_refuses_reads_outside(device: &dyn Device) {
    let count = device.geometry().segment_count;
    let mut buf = [0; 16];
    for (segment, offset) in [
        (count, 0),
        (u32::MAX, 0),
        (0, SEGMENT_BYTES - 15),
        (0, u32::MAX),
    ] {
        let error = device
            .read_at(SegmentId(segment), offset, &mut buf)
            .unwrap_err();
        assert!(matches!(error, DeviceError::Io { .. }), "{error}");
    }
}

#[test]
fn memory_follows_the_model() {
    for seed in 1..=6 {
        check_against_model(&MemDevice::new(8), seed, true);
    }
    check_refuses_reads_outside(&MemDevice::new(8));
}

#[test]
fn file_follows_the_model() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool");
    let device = FileDevice::create(&path, 8).unwrap();
    for seed in 1..=3 {
        for segment in 0..8 {
            device.discard_from(SegmentId(segment), 0).unwrap();
        }
        check_against_model(&device, seed, true);
    }
    check_refuses_reads_outside(&device);
}

#[test]
fn an_overlay_follows_the_model_and_leaves_the_file_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool");
    let device = FileDevice::create(&path, 8).unwrap();
    device
        .write_at(SegmentId(6), 4096, &[6; 3 * BLOCK])
        .unwrap();
    device.flush().unwrap();
    drop(device);
    let before = fs::read(&path).unwrap();
    for seed in 1..=3 {
        let below = Arc::new(FileDevice::open_to_read(&path, 8).unwrap());
        let overlay = Overlay::new(below);
        check_against_model(&overlay, seed, true);
        check_refuses_reads_outside(&overlay);
        // One changed block between two of the file.
        overlay.write_at(SegmentId(6), 8192, &[9; BLOCK]).unwrap();
        let mut buf = vec![0; 2 * BLOCK];
        overlay.read_at(SegmentId(6), 6144, &mut buf).unwrap();
        let expected = [[6; BLOCK / 2].as_slice(), &[9; BLOCK], &[6; BLOCK / 2]].concat();
        assert_eq!(buf, expected);
    }
    assert!(fs::read(&path).unwrap() == before);
}

#[test]
fn who_reads_shares_a_file_with_others_who_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool");
    let writes = FileDevice::create(&path, 8).unwrap();
    let refused = FileDevice::open_to_read(&path, 8).err().unwrap();
    assert!(matches!(refused, OpenDeviceError::Busy { .. }));
    drop(writes);
    let reads = FileDevice::open_to_read(&path, 8).unwrap();
    let reads_too = FileDevice::open_to_read(&path, 8).unwrap();
    let refused = FileDevice::open(&path, 8).err().unwrap();
    assert!(matches!(refused, OpenDeviceError::Busy { .. }));
    assert!(reads.write_at(SegmentId(0), 0, &[1; BLOCK]).is_err());
    drop((reads, reads_too));
    FileDevice::open(&path, 8).unwrap();
}

#[test]
fn file_keeps_content_and_segments() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool");
    let device = FileDevice::create(&path, 8).unwrap();
    device.prepare(SegmentId(7), 1).unwrap();
    device.write_at(SegmentId(7), 4096, &[7; 8192]).unwrap();
    device.flush().unwrap();
    drop(device);
    // Told of fewer segments than it has, the device still reaches all of them.
    let device = FileDevice::open(&path, 2).unwrap();
    assert_eq!(device.geometry().segment_count, 8);
    let mut buf = [0; 8192];
    device.read_at(SegmentId(7), 4096, &mut buf).unwrap();
    assert_eq!(buf, [7; 8192]);
}

#[test]
fn file_takes_and_gives_back_room() {
    let directory = tempfile::tempdir().unwrap();
    let device = FileDevice::create(&directory.path().join("pool"), 8).unwrap();
    let allocated = || device.host_space().unwrap().unwrap().allocated_bytes;
    let empty = allocated();
    device.prepare(SegmentId(3), 1).unwrap();
    if allocated() == empty {
        eprintln!("SKIPPED: the host's file system does not preallocate");
        return;
    }
    assert!(allocated() >= empty + u64::from(SEGMENT_BYTES));
    device.write_at(SegmentId(3), 0, &vec![1; SEGMENT]).unwrap();
    device
        .discard_from(SegmentId(3), SEGMENT_BYTES / 2)
        .unwrap();
    let half = allocated();
    assert!((empty..empty + u64::from(SEGMENT_BYTES)).contains(&half));
    let middle = SEGMENT_BYTES / 8..SEGMENT_BYTES / 4;
    device.discard(SegmentId(3), middle.clone()).unwrap();
    assert_eq!(half - allocated(), middle.len() as u64);
    device.discard_from(SegmentId(3), 0).unwrap();
    assert!(allocated() < half);
}

#[test]
fn file_larger_than_the_host_allows_is_out_of_room() {
    let directory = tempfile::tempdir().unwrap();
    let device = FileDevice::create(&directory.path().join("pool"), u32::MAX).unwrap();
    let last = SegmentId(u32::MAX - 1);
    match device.prepare(last, 1) {
        Err(DeviceError::NoSpace { segment }) => assert_eq!(segment, last),
        Ok(()) => eprintln!("SKIPPED: the host's file system takes files of eight PiB"),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn file_refuses_what_is_not_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool");
    let first = FileDevice::create(&path, 8).unwrap();
    let check = |path: &Path, expected: fn(&OpenDeviceError) -> bool| {
        let error = FileDevice::open(path, 8).err().unwrap();
        assert!(expected(&error), "{error}");
    };
    check(&path, |error| matches!(error, OpenDeviceError::Busy { .. }));
    check(directory.path(), |error| {
        matches!(error, OpenDeviceError::WrongKind { .. })
    });
    check(Path::new("/dev/null"), |error| {
        matches!(error, OpenDeviceError::WrongKind { .. })
    });
    check(&directory.path().join("none"), |error| {
        matches!(error, OpenDeviceError::Io { .. })
    });
    assert!(matches!(
        FileDevice::create(&path, 8).err().unwrap(),
        OpenDeviceError::Exists { .. }
    ));
    drop(first);
    // A child that another test is just starting holds the lock, too, until it runs its program.
    let started = std::time::Instant::now();
    while let Err(error) = FileDevice::open(&path, 8) {
        assert!(matches!(error, OpenDeviceError::Busy { .. }), "{error}");
        assert!(started.elapsed().as_secs() < 10, "{error}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(matches!(
        BlockDevice::open(&path).err().unwrap(),
        OpenDeviceError::WrongKind { .. }
    ));
}

/// A loop device, taken down when dropped.
struct Loop(PathBuf);

impl Loop {
    fn attach(file: &Path) -> Option<Self> {
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()
            .ok()?;
        let path = String::from_utf8(output.stdout).ok()?;
        (output.status.success() && !path.trim().is_empty()).then(|| Self(path.trim().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .status();
    }
}

#[test]
fn block_device_follows_the_model() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    File::create(&path)
        .unwrap()
        .set_len(5 * u64::from(SEGMENT_BYTES) + 12345 * 512)
        .unwrap();
    let Some(attached) = Loop::attach(&path) else {
        eprintln!("SKIPPED: no loop devices here (losetup failed)");
        return;
    };
    let device = BlockDevice::open(&attached.0).unwrap();
    let bytes = 5 * u64::from(SEGMENT_BYTES) + 12345 * 512;
    let expected_count = (bytes / u64::from(SEGMENT_BYTES)) as u32;
    assert_eq!(device.geometry().segment_count, expected_count);
    assert!(!device.geometry().sparse);
    assert_eq!(device.host_space().unwrap(), None);
    for seed in 1..=3 {
        check_against_model(&device, seed, false);
    }
    check_refuses_reads_outside(&device);

    assert!(matches!(
        BlockDevice::open(&attached.0).err().unwrap(),
        OpenDeviceError::Busy { .. }
    ));
    device.write_at(SegmentId(4), 0, &[9; BLOCK]).unwrap();
    device.flush().unwrap();
    drop(device);
    let mut content = vec![0; BLOCK];
    BlockDevice::open(&attached.0)
        .unwrap()
        .read_at(SegmentId(4), 0, &mut content)
        .unwrap();
    assert_eq!(content, [9; BLOCK]);

    drop(attached);
    fs::write(&path, vec![0; 1 << 20]).unwrap();
    let attached = Loop::attach(&path).expect("loop devices worked a moment ago");
    assert!(matches!(
        BlockDevice::open(&attached.0).err().unwrap(),
        OpenDeviceError::TooSmall { .. }
    ));
}
