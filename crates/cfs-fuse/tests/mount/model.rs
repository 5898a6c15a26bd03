//! Random operations at a mount and in a plain directory: both must do the same.
//!
//! Every operation gives a result that is compared: an error number or what was found. Now and then, and at the end,
//! the two trees are compared whole. A failure prints the seed; `CFS_SEED=n` replays it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FallocateFlags, RenameFlags, fallocate, renameat_with};

use crate::support::{Rng, mount};

const OPERATIONS: usize = 3000;
const FILE_BYTES_MAX: u64 = 400_000;

#[derive(Clone, Debug)]
enum Operation {
    MakeDirectory(PathBuf),
    Create(PathBuf),
    Write(PathBuf, u64, usize, u64),
    Append(PathBuf, usize, u64),
    Truncate(PathBuf, u64),
    Replace(PathBuf, usize, u64),
    Read(PathBuf, u64, usize),
    Stat(PathBuf),
    List(PathBuf),
    Unlink(PathBuf),
    RemoveDirectory(PathBuf),
    Rename(PathBuf, PathBuf),
    Exchange(PathBuf, PathBuf),
    RenameNew(PathBuf, PathBuf),
    Link(PathBuf, PathBuf),
    Symlink(PathBuf, PathBuf),
    ReadLink(PathBuf),
    Mode(PathBuf, u32),
    Punch(PathBuf, u64, u64),
    Zero(PathBuf, u64, u64),
    Sync(PathBuf),
}

/// What of an operation's outcome must agree.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Bytes(Vec<u8>),
    Names(Vec<Vec<u8>>),
    Attributes(Attributes),
}

#[derive(Debug, PartialEq, Eq)]
struct Attributes {
    mode: u32,
    nlink: u64,
    /// Of what is no directory.
    size: u64,
}

fn attributes(path: &Path) -> io::Result<Attributes> {
    let metadata = fs::symlink_metadata(path)?;
    Ok(Attributes {
        mode: metadata.mode(),
        nlink: metadata.nlink(),
        size: if metadata.is_dir() { 0 } else { metadata.len() },
    })
}

fn pick_path(rng: &mut Rng) -> PathBuf {
    let mut path = PathBuf::new();
    for _ in 0..=rng.below(3) {
        path.push(format!("n{}", rng.below(5)));
    }
    path
}

fn pick(rng: &mut Rng) -> Operation {
    let path = pick_path(rng);
    let offset = rng.below(FILE_BYTES_MAX);
    let len = match rng.below(3) {
        0 => rng.below(100),
        1 => rng.below(9000),
        _ => rng.below(150_000),
    };
    let seed = rng.next();
    match rng.below(32) {
        0..3 => Operation::MakeDirectory(path),
        3..6 => Operation::Create(path),
        6..9 => Operation::Write(path, offset, len as usize, seed),
        9 => Operation::Append(path, len as usize, seed),
        10 => Operation::Truncate(path, offset),
        11 => Operation::Replace(path, len as usize, seed),
        12..15 => Operation::Read(path, offset, len as usize),
        15 => Operation::Stat(path),
        16 => Operation::List(path),
        17..19 => Operation::Unlink(path),
        19 => Operation::RemoveDirectory(path),
        20..22 => Operation::Rename(path, pick_path(rng)),
        22 => Operation::Exchange(path, pick_path(rng)),
        23 => Operation::RenameNew(path, pick_path(rng)),
        24..26 => Operation::Link(path, pick_path(rng)),
        26 => Operation::Symlink(path, pick_path(rng)),
        27 => Operation::ReadLink(path),
        28 => Operation::Mode(path, (rng.next() & 0o777 | 0o600) as u32),
        29 => Operation::Punch(path, offset, len + 1),
        30 => Operation::Zero(path, offset, len + 1),
        _ => Operation::Sync(path),
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(path)
}

fn apply(root: &Path, operation: &Operation) -> io::Result<Outcome> {
    let at = |path: &PathBuf| root.join(path);
    match operation {
        Operation::MakeDirectory(path) => fs::create_dir(at(path))?,
        Operation::Create(path) => drop(File::create_new(at(path))?),
        Operation::Write(path, offset, len, seed) => {
            open(&at(path))?.write_all_at(&Rng::new(*seed).bytes(*len), *offset)?;
        }
        Operation::Append(path, len, seed) => {
            let mut file = File::options().append(true).open(at(path))?;
            io::Write::write_all(&mut file, &Rng::new(*seed).bytes(*len))?;
        }
        Operation::Truncate(path, size) => open(&at(path))?.set_len(*size)?,
        Operation::Replace(path, len, seed) => {
            let file = File::options().write(true).truncate(true).open(at(path))?;
            file.write_all_at(&Rng::new(*seed).bytes(*len), 0)?;
        }
        Operation::Read(path, offset, len) => {
            let mut bytes = vec![0; *len];
            let found = File::open(at(path))?.read_at(&mut bytes, *offset)?;
            bytes.truncate(found);
            return Ok(Outcome::Bytes(bytes));
        }
        Operation::Stat(path) => return Ok(Outcome::Attributes(attributes(&at(path))?)),
        Operation::List(path) => {
            let entries = fs::read_dir(at(path))?;
            let names = entries.map(|entry| Ok(entry?.file_name().into_encoded_bytes()));
            let mut names = names.collect::<io::Result<Vec<_>>>()?;
            names.sort();
            return Ok(Outcome::Names(names));
        }
        Operation::Unlink(path) => fs::remove_file(at(path))?,
        Operation::RemoveDirectory(path) => fs::remove_dir(at(path))?,
        Operation::Rename(from, to) => fs::rename(at(from), at(to))?,
        Operation::Exchange(from, to) => {
            renameat_with(CWD, at(from), CWD, at(to), RenameFlags::EXCHANGE)?;
        }
        Operation::RenameNew(from, to) => {
            renameat_with(CWD, at(from), CWD, at(to), RenameFlags::NOREPLACE)?;
        }
        Operation::Link(from, to) => fs::hard_link(at(from), at(to))?,
        Operation::Symlink(target, path) => std::os::unix::fs::symlink(target, at(path))?,
        Operation::ReadLink(path) => {
            let target = fs::read_link(at(path))?;
            return Ok(Outcome::Bytes(target.into_os_string().into_encoded_bytes()));
        }
        Operation::Mode(path, mode) => {
            fs::set_permissions(at(path), fs::Permissions::from_mode(*mode))?;
        }
        Operation::Punch(path, offset, len) => {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(open(&at(path))?, flags, *offset, *len)?;
        }
        Operation::Zero(path, offset, len) => {
            fallocate(open(&at(path))?, FallocateFlags::ZERO_RANGE, *offset, *len)?;
        }
        Operation::Sync(path) => open(&at(path))?.sync_all()?,
    }
    Ok(Outcome::Done)
}

/// All paths with attributes and, of files and links, the content.
fn tree(root: &Path) -> BTreeMap<PathBuf, (Attributes, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut rest = vec![PathBuf::new()];
    while let Some(path) = rest.pop() {
        let full = root.join(&path);
        let kind = fs::symlink_metadata(&full).expect("stat").file_type();
        let content = if kind.is_symlink() {
            fs::read_link(&full)
                .expect("readlink")
                .into_os_string()
                .into_encoded_bytes()
        } else if kind.is_file() {
            fs::read(&full).expect("read")
        } else {
            assert!(kind.is_dir() && !kind.is_socket(), "{path:?}");
            let entries = fs::read_dir(&full).expect("list");
            rest.extend(entries.map(|entry| path.join(entry.expect("entry").file_name())));
            Vec::new()
        };
        let attributes = attributes(&full).expect("stat");
        found.insert(path, (attributes, content));
    }
    found
}

fn compare(ours: &Path, theirs: &Path, context: &str) {
    let (ours, theirs) = (tree(ours), tree(theirs));
    let names = |tree: &BTreeMap<PathBuf, _>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&ours), names(&theirs), "{context}");
    for (path, (attributes, content)) in &theirs {
        let (our_attributes, our_content) = &ours[path];
        // How ext4 counts the links of a directory is what Unix has always done, and ours.
        assert_eq!(our_attributes, attributes, "{context}: {path:?}");
        assert!(our_content == content, "{context}: content of {path:?}");
    }
}

fn run(seed: u64, test_root: &Path) {
    let plain = tempfile::tempdir().expect("a temporary directory");
    let (ours, theirs) = (test_root.join("tree"), plain.path().join("tree"));
    fs::create_dir(&ours).expect("mkdir");
    fs::create_dir(&theirs).expect("mkdir");
    let mut rng = Rng::new(seed);
    for step in 0..OPERATIONS {
        let operation = pick(&mut rng);
        let number = |result: io::Result<Outcome>| result.map_err(|error| error.raw_os_error());
        let expected = number(apply(&theirs, &operation));
        let found = number(apply(&ours, &operation));
        assert!(
            found == expected,
            "seed {seed}, step {step}: {operation:?}\nfound {found:.200?}\nexpected {expected:.200?}"
        );
        if step % 500 == 499 {
            compare(&ours, &theirs, &format!("seed {seed}, step {step}"));
        }
    }
    // Once more without anything that the kernel remembers.
    if fs::write("/proc/sys/vm/drop_caches", "3").is_ok() {
        compare(&ours, &theirs, &format!("seed {seed}, caches dropped"));
    }
    fs::remove_dir_all(&ours).expect("remove");
}

#[test]
fn the_mount_does_what_a_plain_directory_does() {
    let Some(test) = mount() else { return };
    let seed = std::env::var("CFS_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    match seed {
        Some(seed) => run(seed, test.root()),
        None => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            let fresh = now.expect("after 1970").as_secs();
            for seed in [1, fresh] {
                run(seed, test.root());
            }
        }
    }
}
