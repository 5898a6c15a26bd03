//! What the mount bench does with a directory: each workload returns one figure.
//!
//! The data are written from memory that was touched and filled beforehand, so that neither page faults nor the
//! generator are part of a figure.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};

const BLOCK_BYTES: usize = 1 << 20;
const PAGE_BYTES: usize = 4096;
/// Files in a directory of the metadata workloads.
const FILES_PER_DIRECTORY: usize = 500;
/// Bytes in a small file.
const SMALL_FILE_BYTES: usize = 2048;
/// How long a workload with a fixed duration runs.
const DURATION: Duration = Duration::from_millis(1500);
/// Bytes of the file that is read from the server's memory: so little that a server keeps what was read in order.
const HOT_FILE_BYTES: usize = 64 << 20;
/// Places of a large file that are read again and again.
const HOT_PAGES: usize = 4096;
/// Threads that append at a time.
const APPENDERS: usize = 32;

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// 10^6 bytes a second.
    Megabytes,
    /// Operations a second.
    Operations,
    /// Median microseconds an operation; less is better.
    Microseconds,
}

/// A workload by name. They run in this order on each system, later ones on what earlier ones left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Incompressible data, never seen before, to a new file.
    WriteUnique,
    /// The same, until it is durable.
    WriteUniqueSync,
    /// The data of the last file again, to a new file.
    WriteDuplicate,
    /// A file, after the kernel has forgotten it.
    ReadCold,
    /// The same file again.
    ReadAgain,
    /// A file that was read before, after the kernel has forgotten it, and not the system that keeps it.
    ReadServer,
    /// A page at a random place of a file that the kernel has forgotten.
    RandomRead,
    /// The same places again and again, each time after the kernel has forgotten them, and not the system.
    RandomReadHot,
    /// A page to a random place of a file.
    RandomWrite,
    /// A page appended and made durable.
    WriteFsync,
    /// Pages appended and made durable by threads, each with a file of its own.
    WriteFsyncMany,
    /// What one of those waits.
    WriteFsyncManyLatency,
    /// An empty file made and closed.
    Create,
    /// The same from two threads, each in its own directory.
    CreateTwo,
    /// The attributes of a file that the kernel has forgotten.
    StatCold,
    /// The same from two threads.
    StatColdTwo,
    /// Names and attributes of all files of a directory that the kernel has forgotten.
    ListCold,
    /// A file removed.
    Unlink,
    /// A file of 2 KiB made, written and closed.
    SmallWrite,
    /// A file of 2 KiB that the kernel has forgotten opened, read and closed.
    SmallRead,
}

/// All workloads, in order.
pub const WORKLOADS: [Workload; 20] = [
    Workload::WriteUnique,
    Workload::WriteUniqueSync,
    Workload::WriteDuplicate,
    Workload::ReadCold,
    Workload::ReadAgain,
    Workload::ReadServer,
    Workload::RandomRead,
    Workload::RandomReadHot,
    Workload::RandomWrite,
    Workload::WriteFsync,
    Workload::WriteFsyncMany,
    Workload::WriteFsyncManyLatency,
    Workload::Create,
    Workload::CreateTwo,
    Workload::StatCold,
    Workload::StatColdTwo,
    Workload::ListCold,
    Workload::Unlink,
    Workload::SmallWrite,
    Workload::SmallRead,
];

impl Workload {
    /// For the table.
    pub fn title(self) -> &'static str {
        match self {
            Self::WriteUnique => "write, incompressible, 1 MiB",
            Self::WriteUniqueSync => "the same with fsync at the end",
            Self::WriteDuplicate => "write, duplicate data, 1 MiB",
            Self::ReadCold => "read cold, 1 MiB",
            Self::ReadAgain => "read again, 1 MiB",
            Self::ReadServer => "read, from the server's memory, 1 MiB",
            Self::RandomRead => "random read, 4 KiB, cold",
            Self::RandomReadHot => "random read, 4 KiB, hot",
            Self::RandomWrite => "random write, 4 KiB",
            Self::WriteFsync => "append 4 KiB + fsync, median",
            Self::WriteFsyncMany => "append 4 KiB + fsync, 32 threads",
            Self::WriteFsyncManyLatency => "append 4 KiB + fsync, 32 threads, median",
            Self::Create => "create + close",
            Self::CreateTwo => "create + close, 2 threads",
            Self::StatCold => "stat, cold",
            Self::StatColdTwo => "stat, cold, 2 threads",
            Self::ListCold => "list with attributes, cold, entries",
            Self::Unlink => "unlink",
            Self::SmallWrite => "write 2 KiB files",
            Self::SmallRead => "read 2 KiB files, cold",
        }
    }

    /// What its figure counts.
    pub fn unit(self) -> Unit {
        match self {
            Self::WriteUnique
            | Self::WriteUniqueSync
            | Self::WriteDuplicate
            | Self::ReadCold
            | Self::ReadAgain
            | Self::ReadServer => Unit::Megabytes,
            Self::WriteFsync | Self::WriteFsyncManyLatency => Unit::Microseconds,
            _ => Unit::Operations,
        }
    }

    /// What its row does not tell.
    pub fn note(self) -> Option<&'static str> {
        match self {
            Self::ReadServer => Some(
                "64 MiB in a file that was read through once before; the kernel drops its pages of the \
                 file (posix_fadvise) before each pass. What is left is in the memory of cfs (--hot-bytes) and of the toy; \
                 gocryptfs finds its ciphertext in the kernel's page cache, and plain reads the disk",
            ),
            Self::RandomReadHot => Some(
                "4096 pages of the large file, read once before; the kernel drops its pages of the file before each pass. \
                 What is left is where, as above: of cfs the chunks around them",
            ),
            Self::WriteFsyncMany => {
                Some("each thread appends to a file of its own; the rate is that of all together")
            }
            _ => None,
        }
    }
}

/// The generator of Steele, Lea and Flood (OOPSLA '14).
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// The data of the large files, and how many small ones there are.
pub struct Material {
    data: Vec<u8>,
    random: Random,
    files: usize,
}

impl Material {
    /// `bytes` of data (rounded down to whole blocks) for each large file, `files` small ones.
    pub fn new(bytes: usize, files: usize) -> Self {
        let mut random = Random::new(0x5eed_c1a0_de00_0001);
        let mut data = Vec::with_capacity(bytes);
        while data.len() < bytes / BLOCK_BYTES * BLOCK_BYTES {
            data.extend_from_slice(&random.next().to_le_bytes());
        }
        Self {
            data,
            random,
            files,
        }
    }

    /// The data as they are now.
    pub fn bytes(&self) -> &[u8] {
        &self.data
    }

    /// Gets ready for `workload`: where it wants data never seen before, makes them differ from all before, in each
    /// block. Called once for all systems, so that each finds the data that it wrote itself.
    pub fn prepare(&mut self, workload: Workload) {
        let wants_new = matches!(
            workload,
            Workload::WriteUnique
                | Workload::WriteUniqueSync
                | Workload::WriteFsync
                | Workload::WriteFsyncMany
                | Workload::WriteFsyncManyLatency
        );
        if !wants_new {
            return;
        }
        for block in self.data.chunks_exact_mut(BLOCK_BYTES) {
            let key = self.random.next();
            for word in block.chunks_exact_mut(8) {
                let value = u64::from_le_bytes(word.try_into().expect("eight bytes"));
                word.copy_from_slice(&value.wrapping_add(key).to_le_bytes());
            }
        }
    }
}

/// Runs one workload in `root` and returns its figure.
///
/// # Errors
/// What the file system refuses, and dropping the kernel's caches without being root.
pub fn run(workload: Workload, root: &Path, material: &mut Material) -> io::Result<f64> {
    let megabytes = material.data.len() as f64 / 1e6;
    let files = material.files;
    match workload {
        Workload::WriteUnique => {
            let (written, _) = write_file(&root.join("first"), &material.data, false)?;
            Ok(megabytes / written)
        }
        Workload::WriteUniqueSync => {
            let (written, synced) = write_file(&root.join("large"), &material.data, true)?;
            Ok(megabytes / (written + synced))
        }
        Workload::WriteDuplicate => {
            let (written, _) = write_file(&root.join("copy"), &material.data, false)?;
            Ok(megabytes / written)
        }
        Workload::ReadCold => {
            let file = large(root, "large", material)?;
            drop_caches()?;
            Ok(megabytes / read_file(&file, &material.data)?)
        }
        Workload::ReadAgain => {
            let file = large(root, "large", material)?;
            Ok(megabytes / read_file(&file, &material.data)?)
        }
        Workload::RandomRead => {
            let file = large(root, "large", material)?;
            drop_caches()?;
            random_pages(&file, material, false)
        }
        Workload::RandomWrite => random_pages(&large(root, "copy", material)?, material, true),
        Workload::ReadServer => {
            let length = material.data.len().min(HOT_FILE_BYTES);
            read_from_server(&root.join("hot"), &material.data[..length])
        }
        Workload::RandomReadHot => random_pages_again(&large(root, "large", material)?, material),
        Workload::WriteFsync => append_and_sync(&root.join("log"), &material.data),
        Workload::WriteFsyncMany => {
            let appended = append_from_threads(&root.join("logs"), &material.data)?;
            Ok(appended.latencies.len() as f64 / appended.seconds)
        }
        Workload::WriteFsyncManyLatency => {
            let appended = append_from_threads(&root.join("logs"), &material.data)?;
            Ok(median_microseconds(appended.latencies))
        }
        Workload::Create => {
            let directories = make_directories(&root.join("one"), files)?;
            rate(files, || create_in(&directories, b""))
        }
        Workload::CreateTwo => {
            let directories = make_directories(&root.join("two"), files)?;
            rate(files, || {
                two_threads(&directories, |half| create_in(half, b""))
            })
        }
        Workload::StatCold => {
            let directories = existing(&root.join("one"), files, b"")?;
            drop_caches()?;
            rate(files, || stat_in(&directories))
        }
        Workload::StatColdTwo => {
            let directories = existing(&root.join("two"), files, b"")?;
            drop_caches()?;
            rate(files, || two_threads(&directories, stat_in))
        }
        Workload::ListCold => {
            let directories = existing(&root.join("one"), files, b"")?;
            drop_caches()?;
            rate(files, || list_in(&directories))
        }
        Workload::Unlink => {
            let directories = existing(&root.join("one"), files, b"")?;
            let figure = rate(files, || unlink_in(&directories));
            remove_tree(&root.join("one"))?;
            remove_tree(&root.join("two"))?;
            figure
        }
        Workload::SmallWrite => {
            let content = &material.data[..SMALL_FILE_BYTES];
            let directories = make_directories(&root.join("small"), files)?;
            rate(files, || create_in(&directories, content))
        }
        Workload::SmallRead => {
            let content = &material.data[..SMALL_FILE_BYTES];
            let directories = existing(&root.join("small"), files, content)?;
            drop_caches()?;
            let figure = rate(files, || read_in(&directories));
            remove_tree(&root.join("small"))?;
            figure
        }
    }
}

/// Removes what the workloads left in `root`.
pub fn clean(root: &Path) -> io::Result<()> {
    for name in ["first", "large", "copy", "hot", "log"] {
        unless_absent(fs::remove_file(root.join(name)))?;
    }
    for name in ["one", "two", "small", "logs"] {
        remove_tree(&root.join(name))?;
    }
    Ok(())
}

fn remove_tree(path: &Path) -> io::Result<()> {
    unless_absent(fs::remove_dir_all(path))
}

fn unless_absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Has the kernel forget what it knows of all files, after writing what is to be written.
///
/// # Errors
/// When the caller is not root.
pub fn drop_caches() -> io::Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3")
}

fn rate(operations: usize, work: impl FnOnce() -> io::Result<()>) -> io::Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(operations as f64 / start.elapsed().as_secs_f64())
}

/// A large file that another workload leaves, or one like it if that was not run.
fn large(root: &Path, name: &str, material: &Material) -> io::Result<PathBuf> {
    let path = root.join(name);
    if !path.exists() {
        write_file(&path, &material.data, true)?;
    }
    Ok(path)
}

/// Seconds for writing, and for the fsync if asked for.
fn write_file(path: &Path, data: &[u8], sync: bool) -> io::Result<(f64, f64)> {
    if path.exists() {
        fs::remove_file(path)?;
    }
    let start = Instant::now();
    let file = File::create(path)?;
    for (index, block) in data.chunks(BLOCK_BYTES).enumerate() {
        file.write_all_at(block, (index * BLOCK_BYTES) as u64)?;
    }
    let written = start.elapsed();
    if sync {
        file.sync_all()?;
    }
    let synced = start.elapsed() - written;
    drop(file);
    Ok((written.as_secs_f64(), synced.as_secs_f64()))
}

/// Seconds for reading all of it; the content is compared at a few places.
fn read_file(path: &Path, expected: &[u8]) -> io::Result<f64> {
    let mut block = vec![1; BLOCK_BYTES];
    let start = Instant::now();
    let file = File::open(path)?;
    for (index, expected) in expected.chunks(BLOCK_BYTES).enumerate() {
        file.read_exact_at(&mut block, (index * BLOCK_BYTES) as u64)?;
        if block[..64] != expected[..64] {
            return Err(io::Error::other(format!("wrong content in block {index}")));
        }
    }
    Ok(start.elapsed().as_secs_f64())
}

fn random_pages(path: &Path, material: &mut Material, write: bool) -> io::Result<f64> {
    let file = File::options().read(true).write(write).open(path)?;
    fadvise(&file, 0, None, Advice::Random)?;
    let pages = (material.data.len() / PAGE_BYTES) as u64;
    let mut page = [0; PAGE_BYTES];
    let (start, mut operations) = (Instant::now(), 0_u64);
    while start.elapsed() < DURATION {
        let at = material.random.next() % pages * PAGE_BYTES as u64;
        if write {
            page[..8].copy_from_slice(&material.random.next().to_le_bytes());
            file.write_all_at(&page, at)?;
        } else {
            file.read_exact_at(&mut page, at)?;
        }
        operations += 1;
    }
    Ok(operations as f64 / start.elapsed().as_secs_f64())
}

/// Megabytes a second of a file that whoever keeps it has read before, and the kernel has forgotten.
fn read_from_server(path: &Path, data: &[u8]) -> io::Result<f64> {
    if !path.exists() {
        write_file(path, data, true)?;
    }
    let file = File::open(path)?;
    forget_pages(&file)?;
    read_file(path, data)?;
    let (mut spent, mut passes) = (0.0, 0);
    while spent < DURATION.as_secs_f64() {
        forget_pages(&file)?;
        spent += read_file(path, data)?;
        passes += 1;
    }
    Ok(data.len() as f64 * f64::from(passes) / 1e6 / spent)
}

/// Pages a second, of some that have been read before, and that the kernel has forgotten.
fn random_pages_again(path: &Path, material: &mut Material) -> io::Result<f64> {
    let file = File::open(path)?;
    fadvise(&file, 0, None, Advice::Random)?;
    let mut pages: Vec<usize> = (0..material.data.len() / PAGE_BYTES).collect();
    let chosen = HOT_PAGES.min(pages.len());
    for index in 0..chosen {
        let rest = (pages.len() - index) as u64;
        pages.swap(index, index + material.random.below(rest) as usize);
    }
    let mut page = [0; PAGE_BYTES];
    let mut pass = || {
        forget_pages(&file)?;
        let start = Instant::now();
        for number in &pages[..chosen] {
            let at = number * PAGE_BYTES;
            file.read_exact_at(&mut page, at as u64)?;
            if page[..64] != material.data[at..at + 64] {
                return Err(io::Error::other(format!("wrong content at {at}")));
            }
        }
        Ok(start.elapsed())
    };
    pass()?;
    let (mut spent, mut operations) = (Duration::ZERO, 0);
    while spent < DURATION {
        spent += pass()?;
        operations += chosen;
    }
    Ok(operations as f64 / spent.as_secs_f64())
}

/// Has the kernel drop what it has of a file, which must be durable.
fn forget_pages(file: &File) -> io::Result<()> {
    Ok(fadvise(file, 0, None, Advice::DontNeed)?)
}

fn append_and_sync(path: &Path, data: &[u8]) -> io::Result<f64> {
    let pages = data.chunks_exact(PAGE_BYTES);
    let latencies = append_pages(&File::create(path)?, pages, Instant::now())?;
    Ok(median_microseconds(latencies))
}

/// Appends each page and makes it durable, until all are or the time since `start` is over.
fn append_pages<'a>(
    file: &File,
    pages: impl Iterator<Item = &'a [u8]>,
    start: Instant,
) -> io::Result<Vec<Duration>> {
    let mut latencies = Vec::new();
    for (index, page) in pages.enumerate() {
        let before = Instant::now();
        file.write_all_at(page, (index * PAGE_BYTES) as u64)?;
        file.sync_data()?;
        latencies.push(before.elapsed());
        if start.elapsed() > DURATION {
            break;
        }
    }
    Ok(latencies)
}

/// What threads have done together.
struct Appended {
    latencies: Vec<Duration>,
    seconds: f64,
}

/// Appends and syncs from [`APPENDERS`] threads, each to a file of its own in a new directory.
fn append_from_threads(directory: &Path, data: &[u8]) -> io::Result<Appended> {
    remove_tree(directory)?;
    fs::create_dir(directory)?;
    let files: Vec<File> = (0..APPENDERS)
        .map(|number| File::create(directory.join(format!("log{number}"))))
        .collect::<io::Result<_>>()?;
    let barrier = Barrier::new(APPENDERS + 1);
    std::thread::scope(|scope| {
        let threads: Vec<_> = files
            .iter()
            .enumerate()
            .map(|(number, file)| {
                let barrier = &barrier;
                // They do not write the same.
                let first = data.len() / PAGE_BYTES / APPENDERS * number;
                let pages = data.chunks_exact(PAGE_BYTES).cycle().skip(first);
                scope.spawn(move || {
                    barrier.wait();
                    append_pages(file, pages, Instant::now())
                })
            })
            .collect();
        barrier.wait();
        let start = Instant::now();
        let mut latencies = Vec::new();
        for thread in threads {
            latencies.extend(thread.join().expect("a workload thread does not panic")?);
        }
        Ok(Appended {
            latencies,
            seconds: start.elapsed().as_secs_f64(),
        })
    })
}

fn median_microseconds(mut latencies: Vec<Duration>) -> f64 {
    latencies.sort_unstable();
    latencies[latencies.len() / 2].as_secs_f64() * 1e6
}

/// Directories of `root` with the numbers of the files in each.
type Directories = [(PathBuf, std::ops::Range<usize>)];

fn directories_of(root: &Path, files: usize) -> Vec<(PathBuf, std::ops::Range<usize>)> {
    (0..files.div_ceil(FILES_PER_DIRECTORY))
        .map(|index| {
            let first = index * FILES_PER_DIRECTORY;
            let range = first..files.min(first + FILES_PER_DIRECTORY);
            (root.join(format!("d{index}")), range)
        })
        .collect()
}

fn make_directories(
    root: &Path,
    files: usize,
) -> io::Result<Vec<(PathBuf, std::ops::Range<usize>)>> {
    let directories = directories_of(root, files);
    for (path, _) in &directories {
        fs::create_dir_all(path)?;
    }
    Ok(directories)
}

/// Directories with files that another workload leaves, or ones like them if that was not run.
fn existing(
    root: &Path,
    files: usize,
    content: &[u8],
) -> io::Result<Vec<(PathBuf, std::ops::Range<usize>)>> {
    if root.exists() {
        return Ok(directories_of(root, files));
    }
    let directories = make_directories(root, files)?;
    create_in(&directories, content)?;
    Ok(directories)
}

fn each_file(
    directories: &Directories,
    mut visit: impl FnMut(&Path) -> io::Result<()>,
) -> io::Result<()> {
    for (directory, range) in directories {
        for index in range.clone() {
            visit(&directory.join(format!("file{index:06}")))?;
        }
    }
    Ok(())
}

fn create_in(directories: &Directories, content: &[u8]) -> io::Result<()> {
    each_file(directories, |path| {
        let file = File::create_new(path)?;
        if content.is_empty() {
            return Ok(());
        }
        // Each file has content of its own.
        let mut own = [0; SMALL_FILE_BYTES];
        own[..content.len()].copy_from_slice(content);
        let name = path.as_os_str().as_encoded_bytes();
        own[..name.len().min(64)].copy_from_slice(&name[name.len().saturating_sub(64)..]);
        file.write_all_at(&own[..content.len()], 0)
    })
}

/// What `ls`, `rsync` and `git` ask. The standard library also asks for the time of creation, which the kernel has not
/// cached of a file that was looked up: a second round trip.
fn stat_in(directories: &Directories) -> io::Result<()> {
    each_file(directories, |path| {
        rustix::fs::lstat(path)?;
        Ok(())
    })
}

fn unlink_in(directories: &Directories) -> io::Result<()> {
    each_file(directories, |path| fs::remove_file(path))
}

fn read_in(directories: &Directories) -> io::Result<()> {
    let mut buffer = [0; SMALL_FILE_BYTES];
    each_file(directories, |path| {
        File::open(path)?.read_exact_at(&mut buffer, 0)
    })
}

fn list_in(directories: &Directories) -> io::Result<()> {
    for (directory, range) in directories {
        let mut entries = 0;
        for entry in fs::read_dir(directory)? {
            rustix::fs::lstat(entry?.path())?;
            entries += 1;
        }
        if entries != range.len() {
            return Err(io::Error::other(format!(
                "{entries} entries in {}",
                directory.display()
            )));
        }
    }
    Ok(())
}

fn two_threads(
    directories: &Directories,
    work: impl Fn(&Directories) -> io::Result<()> + Sync,
) -> io::Result<()> {
    let (left, right) = directories.split_at(directories.len() / 2);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| work(right));
        work(left)?;
        other.join().expect("a workload thread does not panic")
    })
}
