//! A file that is made while it is read: the same noise over and over, each time at another offset in a block. It takes no
//! room on a disk and none in memory, at any length.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context as _;
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr,
    ReplyData, ReplyEntry, ReplyOpen, Request, Session, SessionACL,
};
use parking_lot::Mutex;

use crate::workload::Random;

const NAME: &str = "repeated";
const FILE: INodeNo = INodeNo(2);
const CACHE_TIME: Duration = Duration::from_secs(3600);
const REQUEST_BYTES_MAX: u32 = 1 << 20;
const THREADS: usize = 2;
/// What comes again is longer than whole blocks by this, so that it never lies as it did before.
const SHIFT_BYTES: u64 = 1237;

/// A mount with that one file. Dropping it unmounts.
pub(super) struct Repeated {
    path: PathBuf,
    _session: BackgroundSession,
}

impl Repeated {
    /// A file of `bytes` in which some more than `period_bytes` come again and again, below the directory `mountpoint`,
    /// which is made.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn mount(mountpoint: &Path, bytes: u64, period_bytes: u64) -> anyhow::Result<Self> {
        std::fs::create_dir(mountpoint)?;
        let mut config = Config::default();
        config.n_threads = Some(THREADS);
        config.clone_fd = true;
        config.acl = SessionACL::Owner;
        config.mount_options = vec![MountOption::FSName(NAME.to_owned()), MountOption::RO];
        let noise = Noise {
            bytes,
            period_bytes: period_bytes + SHIFT_BYTES,
            spare: Mutex::default(),
        };
        let session = Session::new(noise, mountpoint, &config)
            .with_context(|| format!("mounting at {}", mountpoint.display()))?
            .spawn()?;
        Ok(Self {
            path: mountpoint.join(NAME),
            _session: session,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

struct Noise {
    bytes: u64,
    period_bytes: u64,
    /// Buffers that have been touched.
    spare: Mutex<Vec<Vec<u8>>>,
}

impl Noise {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let is_file = ino == FILE;
        FileAttr {
            ino,
            size: if is_file { self.bytes } else { 0 },
            blocks: if is_file { self.bytes.div_ceil(512) } else { 0 },
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_file {
                FileType::RegularFile
            } else {
                FileType::Directory
            },
            perm: if is_file { 0o644 } else { 0o755 },
            nlink: 1,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// The content from `offset` on.
    fn fill(&self, offset: u64, out: &mut [u8]) {
        let mut at = offset;
        let mut rest = out;
        while !rest.is_empty() {
            let within = at % self.period_bytes;
            let length = (self.period_bytes - within).min(rest.len() as u64) as usize;
            let (part, after) = rest.split_at_mut(length);
            fill_once(within, part);
            at += length as u64;
            rest = after;
        }
    }
}

/// The noise from `within` on: its word number n is the first that a generator makes of the seed n.
fn fill_once(within: u64, out: &mut [u8]) {
    let word = |index: u64| Random::new(index).next().to_le_bytes();
    let (first, skipped) = (within / 8, (within % 8) as usize);
    let head = out.len().min((8 - skipped) % 8);
    let (head, body) = out.split_at_mut(head);
    head.copy_from_slice(&word(first)[skipped..][..head.len()]);
    let first = within.div_ceil(8);
    for (index, bytes) in (first..).zip(body.chunks_mut(8)) {
        bytes.copy_from_slice(&word(index)[..bytes.len()]);
    }
}

impl Filesystem for Noise {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // What this kernel does not have is left out.
        let _ = config.add_capabilities(InitFlags::FUSE_MAX_PAGES);
        let _ = config.set_max_write(REQUEST_BYTES_MAX);
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == NAME {
            true => reply.entry(&CACHE_TIME, &self.attr(FILE), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&CACHE_TIME, &self.attr(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // It is read once, and shall not push anything out of the page cache.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let length = u64::from(size).min(self.bytes.saturating_sub(offset)) as usize;
        let mut buffer = self.spare.lock().pop().unwrap_or_default();
        buffer.resize(length.max(buffer.len()), 0);
        self.fill(offset, &mut buffer[..length]);
        reply.data(&buffer[..length]);
        self.spare.lock().push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_of_it_is_a_part_of_the_whole() {
        let noise = Noise {
            bytes: 5000,
            period_bytes: 999,
            spare: Mutex::default(),
        };
        let mut whole = vec![0; 5000];
        noise.fill(0, &mut whole);
        assert_eq!(whole[..999], whole[999..1998]);
        assert_ne!(whole[..500], whole[499..999]);
        for offset in 0..2100 {
            for length in [0, 1, 7, 8, 9, 1500] {
                let mut part = vec![0; length];
                noise.fill(offset as u64, &mut part);
                assert_eq!(part, whole[offset..offset + length], "{offset}+{length}");
            }
        }
    }
}
