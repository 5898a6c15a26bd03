//! Trees with one of everything, and the comparison of two trees.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

/// Marsaglia's xorshift64: content that does not compress.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed * 2 + 1;
    let mut content = Vec::with_capacity(bytes + 8);
    while content.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend_from_slice(&state.to_le_bytes());
    }
    content.truncate(bytes);
    content
}

/// Makes a tree with every kind of object that this user can make.
pub fn plant(root: &Path, seed: u64) {
    fs::create_dir_all(root.join("deep/er/est")).expect("directories");
    fs::create_dir(root.join("empty directory")).expect("a directory");
    fs::write(root.join("empty"), "").expect("a file");
    fs::write(root.join("small"), noise(seed, 100)).expect("a file");
    fs::write(root.join("inline-limit"), noise(seed + 1, 4096)).expect("a file");
    fs::write(root.join("over-the-limit"), noise(seed + 2, 4097)).expect("a file");
    fs::write(root.join("large"), noise(seed + 3, 3_000_001)).expect("a file");
    let text = "a sentence that compresses and comes again and again\n".repeat(20_000);
    fs::write(root.join("deep/text"), text).expect("a file");
    for i in 0..200_u64 {
        let content = noise(seed + 10 + i, (i * 97 % 9000) as usize);
        fs::write(root.join(format!("deep/er/{i:03}")), content).expect("a file");
    }
    fs::write(root.join(OsStr::from_bytes(b"not utf-8 \xff\xfe")), "x").expect("a file");
    fs::write(root.join("new\nline"), "x").expect("a file");
    fs::write(root.join("n".repeat(255)), "x").expect("a file");
    plant_sparse(&root.join("sparse"), seed);
    symlink("small", root.join("link")).expect("a link");
    symlink("/nowhere/at/all", root.join("dangling")).expect("a link");
    fs::hard_link(root.join("large"), root.join("deep/er/est/large-too")).expect("a link");
    fs::hard_link(root.join("large"), root.join("a-large-first")).expect("a link");
    let node = |name: &str, kind, dev| {
        rustix::fs::mknodat(CWD, root.join(name), kind, Mode::RUSR | Mode::WGRP, dev)
    };
    node("pipe", FileType::Fifo, 0).expect("a pipe");
    node("socket", FileType::Socket, 0).expect("a socket");
    if rustix::process::geteuid().is_root() {
        // A test may run where device nodes are forbidden also to root.
        if node("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3)).is_ok() {
            std::os::unix::fs::chown(root.join("small"), Some(1234), Some(4321)).expect("root");
            std::os::unix::fs::lchown(root.join("link"), Some(77), Some(88)).expect("root");
        }
    }
    for (name, mode) in [
        ("small", 0o4751),
        // Nobody but root could read it back if it had none.
        (
            "empty",
            if crate::support::is_root() {
                0o000
            } else {
                0o400
            },
        ),
        ("deep/text", 0o444),
        ("deep", 0o1777),
        ("deep/er", 0o2750),
    ] {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).expect("our own");
    }
    for (name, attribute, value) in [
        ("small", "user.note", &b"value"[..]),
        ("deep", "user.dir", b"\0\xff"),
        ("large", "user.empty", b""),
    ] {
        let set = rustix::fs::lsetxattr(root.join(name), attribute, value, XattrFlags::empty());
        assert!(
            set.is_ok() || set == Err(rustix::io::Errno::OPNOTSUPP),
            "{set:?}"
        );
    }
    plant_acls(root);
    plant_times(root);
}

fn plant_sparse(path: &Path, seed: u64) {
    let mut file = File::create(path).expect("a file");
    for (at, len) in [(1 << 20, 5000), (9 << 20, 300_000)] {
        file.seek(SeekFrom::Start(at)).expect("a file");
        file.write_all(&noise(seed ^ at, len)).expect("a file");
    }
    file.set_len(50 << 20).expect("a file");
}

/// Access ACLs on a file and a directory, a default ACL on the directory, where the file system has them.
fn plant_acls(root: &Path) {
    let entry = |tag: u16, permissions: u16, id: u32| {
        let mut bytes = Vec::from(tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
        bytes
    };
    // user::rw- user:1000:r-- group::r-- mask::r-- other::---
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (0x01, 6, u32::MAX),
        (0x02, 4, 1000),
        (0x04, 4, u32::MAX),
        (0x10, 4, u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        acl.extend(entry(tag, permissions, id));
    }
    for (name, attribute) in [
        ("deep/text", "system.posix_acl_access"),
        ("deep/er/est", "system.posix_acl_default"),
    ] {
        let set = rustix::fs::lsetxattr(root.join(name), attribute, &acl, XattrFlags::empty());
        assert!(
            set.is_ok() || set == Err(rustix::io::Errno::OPNOTSUPP),
            "{set:?}"
        );
    }
}

/// Times with nanoseconds, one of them before 1970.
fn plant_times(root: &Path) {
    for (name, seconds, nanos) in [
        ("small", 1_000_000_000, 123_456_789),
        ("link", 1_100_000_000, 1),
        ("deep/er", 1_200_000_000, 999_999_999),
        ("large", -1_000_000, 500_000_000),
    ] {
        let time = Timespec {
            tv_sec: seconds,
            tv_nsec: nanos,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(CWD, root.join(name), &times, AtFlags::SYMLINK_NOFOLLOW)
            .expect("our own");
    }
}

/// An object as it must be found again.
#[derive(Debug, PartialEq, Eq)]
struct Object {
    mode: u32,
    owner: (u32, u32),
    rdev: u64,
    mtime: (i64, i64),
    size: u64,
    nlink: u64,
    target: Option<PathBuf>,
    content: Option<blake3::Hash>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

fn look(path: &Path) -> Object {
    let metadata = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    let kind = metadata.file_type();
    Object {
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        rdev: metadata.rdev(),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        size: if kind.is_dir() { 0 } else { metadata.len() },
        // What a directory counts differs between file systems.
        nlink: if kind.is_dir() { 0 } else { metadata.nlink() },
        target: kind
            .is_symlink()
            .then(|| fs::read_link(path).expect("a link")),
        content: kind
            .is_file()
            .then(|| blake3::hash(&fs::read(path).unwrap_or_else(|e| panic!("{path:?}: {e}")))),
        xattrs: xattrs(path),
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0; 64 << 10];
    let Ok(len) = rustix::fs::llistxattr(path, &mut list[..]) else {
        return BTreeMap::new();
    };
    list[..len]
        .split(|byte| *byte == 0)
        // Labels of the host's security modules are not the file's own.
        .filter(|name| !name.is_empty() && !name.starts_with(b"security."))
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let c_name = CString::new(name).expect("split at zeros");
            let len = rustix::fs::lgetxattr(path, &c_name, &mut value[..]).expect("listed");
            value.truncate(len);
            (name.to_vec(), value)
        })
        .collect()
}

fn paths(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::new()];
    let mut next = 0;
    while let Some(relative) = found.get(next).cloned() {
        next += 1;
        let path = root.join(&relative);
        if fs::symlink_metadata(&path).is_ok_and(|it| it.is_dir()) {
            for entry in fs::read_dir(&path).unwrap_or_else(|e| panic!("{path:?}: {e}")) {
                found.push(relative.join(entry.expect("an entry").file_name()));
            }
        }
    }
    found.sort();
    found
}

/// Insists that two trees are the same in everything that a copy keeps.
#[track_caller]
pub fn assert_same(left: &Path, right: &Path) {
    let names = paths(left);
    assert_eq!(names, paths(right), "{left:?} and {right:?}");
    let mut linked: BTreeMap<u64, u64> = BTreeMap::new();
    for name in names {
        let (a, b) = (left.join(&name), right.join(&name));
        assert_eq!(look(&a), look(&b), "{name:?} in {left:?} and {right:?}");
        let ino = |path: &Path| fs::symlink_metadata(path).expect("looked at").ino();
        let partner = *linked.entry(ino(&a)).or_insert_with(|| ino(&b));
        assert_eq!(partner, ino(&b), "{name:?} is linked in another way");
    }
}

/// Everything about a directory, to see that nothing changed.
pub fn state(root: &Path) -> Vec<(PathBuf, String)> {
    if !root.exists() {
        return Vec::new();
    }
    paths(root)
        .into_iter()
        .map(|name| {
            let path = root.join(&name);
            let is_special = {
                use std::os::unix::fs::FileTypeExt;
                fs::symlink_metadata(&path)
                    .expect("listed")
                    .file_type()
                    .is_socket()
            };
            let text = if is_special {
                "socket".to_owned()
            } else {
                format!("{:?}", look(&path))
            };
            (name, text)
        })
        .collect()
}
