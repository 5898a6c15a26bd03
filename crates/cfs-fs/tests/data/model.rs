//! Random operations on the content of a few files against vectors of bytes, with restarts and power cuts.
//!
//! A failing run prints its seed; `CFS_SEED=<seed>` runs it alone, `CFS_SEEDS=<count>` runs more of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use cfs_format::Ino;
use cfs_fs::{AllocateMode, Caller, Fs, FsError, FsOptions, SetAttr};

use crate::pool::{Pool, Rng, assert_clean};

const FILES: u64 = 4;
const SIZE_MAX: u64 = 6 << 20;
/// Where a window of decoded extents ends.
const EDGE: u64 = 4 << 20;
/// Many offsets are so near to it, bytes.
const EDGE_BYTES: u64 = 300 << 10;

#[derive(Clone, Default)]
struct File {
    content: Vec<u8>,
    /// Content that must survive a power cut; none when something has changed since it was synced.
    durable: Option<Vec<u8>>,
}

struct Run {
    pool: Pool,
    fs: Arc<Fs>,
    options: FsOptions,
    rng: Rng,
    files: BTreeMap<Ino, File>,
}

fn content(rng: &mut Rng, len: usize) -> Vec<u8> {
    match rng.below(4) {
        0 => vec![rng.next() as u8; len],
        // From a small set, so that chunks repeat.
        1 | 2 => {
            let mut source = Rng::new(rng.below(3));
            let mut bytes = vec![0; len + 1024];
            bytes.fill_with(|| source.next() as u8);
            let skip = rng.below(1024) as usize;
            bytes[skip..skip + len].to_vec()
        }
        _ => {
            let mut bytes = vec![0; len];
            bytes.fill_with(|| rng.next() as u8);
            bytes
        }
    }
}

fn same(left: &[u8], right: &[u8], what: &str) {
    if left != right {
        let at = left
            .iter()
            .zip(right)
            .position(|(left, right)| left != right);
        panic!(
            "{what}: lengths {} and {}, first difference at {at:?}",
            left.len(),
            right.len()
        );
    }
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let options = FsOptions {
            seal_threads: rng.below(3) as usize,
            dirty_bytes_max: *rng.pick(&[300 << 10, 2 << 20, 256 << 20]),
            hot_bytes: *rng.pick(&[0, 1 << 20, 64 << 20]),
            readahead_bytes: *rng.pick(&[0, 1 << 20]),
            ..FsOptions::default()
        };
        let pool = Pool::new(256);
        let fs = pool.open_with(options.clone());
        let mut files = BTreeMap::new();
        for index in 0..FILES {
            let name = format!("file{index}");
            let attr = fs
                .create(Ino::ROOT, name.as_bytes(), 0o644, &Caller::default())
                .expect("create");
            files.insert(attr.ino, File::default());
        }
        fs.syncfs().expect("sync");
        Self {
            pool,
            fs,
            options,
            rng,
            files,
        }
    }

    fn any(&mut self) -> Ino {
        let inos: Vec<_> = self.files.keys().copied().collect();
        *self.rng.pick(&inos)
    }

    fn offset(&mut self, size: u64) -> u64 {
        let offset = match self.rng.below(6) {
            // About the edge of a window.
            4 | 5 => EDGE - EDGE_BYTES + self.rng.below(2 * EDGE_BYTES),
            0 => size,
            1 => self.rng.below(16 << 10),
            _ => self.rng.below(size + 1 + size / 8),
        };
        if self.rng.below(3) == 0 {
            offset / 4096 * 4096
        } else {
            offset
        }
        .min(SIZE_MAX)
    }

    fn len(&mut self) -> u64 {
        let max = *self
            .rng
            .pick(&[1, 100, 4096, 4096, 20_000, 300_000, 1 << 20]);
        1 + self.rng.below(max)
    }

    fn change(&mut self, ino: Ino) -> &mut Vec<u8> {
        let file = self.files.get_mut(&ino).expect("a file of the model");
        file.durable = None;
        &mut file.content
    }

    fn size(&self, ino: Ino) -> u64 {
        self.files[&ino].content.len() as u64
    }

    fn write(&mut self, ino: Ino, offset: u64, len: u64) {
        let data = content(&mut self.rng, len as usize);
        let written = self.fs.write(ino, offset, &data, false).expect("write");
        assert_eq!(written, data.len());
        let model = self.change(ino);
        let end = offset as usize + data.len();
        model.resize(model.len().max(end), 0);
        model[offset as usize..end].copy_from_slice(&data);
    }

    fn step(&mut self) {
        let ino = self.any();
        let size = self.size(ino);
        match self.rng.below(100) {
            0..30 => {
                let (offset, len) = (self.offset(size), self.len());
                self.write(ino, offset, len);
            }
            30..38 => {
                // A stream of pieces.
                let mut offset = self.offset(size);
                for _ in 0..self.rng.below(30) {
                    let len = 1 + self.rng.below(128 << 10);
                    if offset + len > 2 * SIZE_MAX {
                        break;
                    }
                    self.write(ino, offset, len);
                    offset += len;
                }
            }
            38..46 => {
                let new = match self.rng.below(4) {
                    0 => 0,
                    1 => self.rng.below(5000),
                    _ => self.offset(size),
                };
                let set = SetAttr {
                    size: Some(new),
                    ..SetAttr::default()
                };
                let attr = self.fs.setattr(ino, &set).expect("truncate");
                assert_eq!(attr.size, new);
                self.change(ino).resize(new as usize, 0);
            }
            46..52 => {
                let (offset, len) = (self.offset(size), self.len());
                let keep_size = self.rng.below(2) == 0;
                let punch = self.rng.below(2) == 0;
                let mode = if punch {
                    AllocateMode::Punch
                } else {
                    AllocateMode::Zero { keep_size }
                };
                self.fs
                    .fallocate(ino, mode, offset, len, false)
                    .expect("punch");
                let model = self.change(ino);
                let end = (offset + len) as usize;
                if !punch && !keep_size {
                    model.resize(model.len().max(end), 0);
                }
                let end = end.min(model.len());
                let start = end.min(offset as usize);
                model[start..end].fill(0);
            }
            52..56 => {
                let offset = self.offset(size) / 4096 * 4096;
                let len = 4096 * (1 + self.rng.below(20));
                let insert = self.rng.below(2) == 0;
                let mode = if insert {
                    AllocateMode::Insert
                } else {
                    AllocateMode::Collapse
                };
                let result = self.fs.fallocate(ino, mode, offset, len, false);
                let fits = if insert {
                    offset < size
                } else {
                    offset + len < size
                };
                if !fits {
                    assert!(matches!(result, Err(FsError::Invalid)));
                    return;
                }
                result.expect("shift");
                let (offset, len) = (offset as usize, len as usize);
                let model = self.change(ino);
                if insert {
                    model.splice(offset..offset, std::iter::repeat_n(0, len));
                } else {
                    model.drain(offset..offset + len);
                }
            }
            56..62 => {
                let target = self.any();
                let from = self.rng.below(size + 10);
                let to_size = self.size(target);
                let to = self.offset(to_size);
                let len = self.len() * (1 + self.rng.below(3));
                let result = self.fs.copy_range(ino, from, target, to, len);
                let overlap = ino == target && from < to + len && to < from + len;
                if overlap {
                    assert!(matches!(result, Err(FsError::Invalid)));
                    return;
                }
                let end = (from + len).min(size);
                let expected = end.saturating_sub(from);
                assert_eq!(result.expect("copy"), expected);
                if expected == 0 {
                    return;
                }
                let copied = self.files[&ino].content[from as usize..end as usize].to_vec();
                let model = self.change(target);
                let end = to as usize + copied.len();
                model.resize(model.len().max(end), 0);
                model[to as usize..end].copy_from_slice(&copied);
            }
            62..68 => {
                self.fs.fsync(ino, self.rng.below(2) == 0).expect("fsync");
                let file = self.files.get_mut(&ino).expect("a file of the model");
                file.durable = Some(file.content.clone());
            }
            68..71 => self.fs.flush(ino).expect("close"),
            71..75 => {
                let ms = self.rng.below(12_000);
                self.pool.sleep_ms(ms);
                self.fs.tick().expect("tick");
            }
            75..90 => self.check_read(ino),
            90..96 => self.check_seek(ino),
            96 => self.sync(),
            97 => self.restart(),
            98 => self.cut_power(),
            _ => self.check_all(),
        }
    }

    fn check_read(&mut self, ino: Ino) {
        let size = self.size(ino);
        let (offset, len) = (self.offset(size), self.len() as usize);
        let mut out = vec![1; self.rng.below(100) as usize];
        self.fs.read(ino, offset, len, &mut out).expect("read");
        let model = &self.files[&ino].content;
        let start = (offset as usize).min(model.len());
        let end = (start + len).min(model.len());
        same(&out, &model[start..end], "read");
    }

    fn check_seek(&mut self, ino: Ino) {
        let model = self.files[&ino].content.clone();
        let size = model.len() as u64;
        let mut at = self.rng.below(size + 1);
        assert!(matches!(
            self.fs.seek_data(ino, size),
            Err(FsError::NoSuchOffset)
        ));
        while at < size {
            let data = match self.fs.seek_data(ino, at) {
                Ok(data) => data,
                Err(FsError::NoSuchOffset) => size,
                Err(error) => panic!("seek_data: {error}"),
            };
            assert!(data >= at);
            let hole = &model[at as usize..data as usize];
            assert!(hole.iter().all(|byte| *byte == 0), "a hole with data");
            if data == size {
                break;
            }
            let hole = self.fs.seek_hole(ino, data).expect("seek_hole");
            assert!(hole > data && hole <= size);
            at = hole;
        }
    }

    fn check_all(&mut self) {
        for (ino, file) in &self.files {
            let mut out = Vec::new();
            let attr = self.fs.getattr(*ino).expect("getattr");
            assert_eq!(attr.size, file.content.len() as u64);
            self.fs
                .read(*ino, 0, file.content.len() + 10, &mut out)
                .expect("read all");
            same(&out, &file.content, &format!("inode {ino}"));
        }
    }

    fn sync(&mut self) {
        self.fs.syncfs().expect("sync");
        for file in self.files.values_mut() {
            file.durable = Some(file.content.clone());
        }
        assert_clean(&self.fs);
    }

    fn restart(&mut self) {
        if self.rng.below(2) == 0 {
            self.fs.close().expect("close");
        } else {
            self.sync();
        }
        self.reopen();
        self.check_all();
        assert_clean(&self.fs);
    }

    fn reopen(&mut self) {
        // The old one must be gone before the new one opens.
        let options = self.options.clone();
        let pool = &self.pool;
        let placeholder = Pool::new(64).open();
        drop(std::mem::replace(&mut self.fs, placeholder));
        self.fs = pool.open_with(options);
    }

    fn cut_power(&mut self) {
        let seed = self.rng.next();
        self.pool = self.pool.power_cut(seed);
        self.reopen();
        assert_clean(&self.fs);
        for (ino, file) in &mut self.files {
            let mut out = Vec::new();
            self.fs
                .read(*ino, 0, 4 * SIZE_MAX as usize, &mut out)
                .expect("read after a power cut");
            if let Some(durable) = &file.durable {
                same(&out, durable, &format!("inode {ino} after a power cut"));
            }
            file.content = out;
            file.durable = None;
        }
    }
}

fn run(seed: u64, steps: usize) {
    eprintln!("CFS_SEED={seed}");
    let mut run = Run::new(seed);
    for _ in 0..steps {
        run.step();
    }
    run.check_all();
    run.sync();
    run.restart();
    run.fs.close().expect("close");
}

#[test]
fn files_are_what_was_written() {
    match std::env::var("CFS_SEED") {
        Ok(seed) => run(seed.parse().expect("CFS_SEED is a number"), 400),
        Err(_) => {
            let seeds = std::env::var("CFS_SEEDS")
                .map_or(12, |seeds| seeds.parse().expect("CFS_SEEDS is a number"));
            (1..=seeds).for_each(|seed| run(seed, 250));
        }
    }
}
