//! A file system in memory: the ceiling that the mount benches compare with.
//!
//! It answers each request with as little work as possible, over the library `fuser`, so that it is independent of our
//! own protocol layer, with the same session settings as the real mount. It does only what the benches need: no links,
//! no extended attributes, no permissions. File content lies in blocks; full ones are recycled, because first-touch
//! memory is slow and would be measured instead of FUSE.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyStatfs, ReplyWrite, Request, Session, SessionACL, TimeOrNow, WriteFlags,
};
use parking_lot::{Mutex, RwLock};
use rustix::mount::UnmountFlags;

/// Bytes of a block of file content: one request.
const BLOCK_BYTES: usize = 1 << 20;
/// Shards of the inode table.
const SHARDS: usize = 64;
const GENERATION: Generation = Generation(0);

/// How long the kernel may trust names and attributes, as in the real mount.
const CACHE_TIME: Duration = Duration::from_secs(24 * 3600);
/// Bytes of the largest write, and of read-ahead, as in the real mount.
const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// Requests without a caller who waits, as in the real mount.
const BACKGROUND_REQUESTS_MAX: u16 = 64;
/// What the real mount asks of the kernel, as far as it matters for speed.
const CAPABILITIES: [InitFlags; 13] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_BIG_WRITES,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_EXPORT_SUPPORT,
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    InitFlags::FUSE_POSIX_ACL.union(InitFlags::FUSE_DONT_MASK),
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
];

/// Mounts the toy at `mountpoint`, prints `ready`, and returns when it has been unmounted, by SIGTERM or SIGINT or
/// from outside. `warm_bytes` of content memory are touched beforehand.
///
/// # Errors
/// When it cannot be mounted.
pub fn run(mountpoint: &Path, threads: usize, warm_bytes: u64) -> anyhow::Result<()> {
    let mut config = Config::default();
    config.n_threads = Some(threads);
    config.clone_fd = true;
    config.acl = SessionACL::Owner;
    config.mount_options = vec![
        MountOption::FSName("toy".to_owned()),
        MountOption::DefaultPermissions,
    ];
    let session = Session::new(Toy::new(warm_bytes), mountpoint, &config)
        .with_context(|| format!("mounting at {}", mountpoint.display()))?
        .spawn()?;
    if let Err(error) = raise_read_ahead(mountpoint) {
        eprintln!("read-ahead stays at the kernel's default: {error}");
    }
    let mut signals =
        signal_hook::iterator::Signals::new([libc::SIGTERM, libc::SIGINT]).context("signals")?;
    let path = mountpoint.to_owned();
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if let Err(error) = rustix::mount::unmount(&path, UnmountFlags::DETACH) {
                eprintln!("{error}");
            }
        }
    });
    println!("ready");
    session.join()?;
    Ok(())
}

fn raise_read_ahead(mountpoint: &Path) -> io::Result<()> {
    let device = rustix::fs::stat(mountpoint)?.st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    std::fs::write(file, (REQUEST_BYTES_MAX / 1024).to_string())
}

enum Body {
    File(RwLock<Vec<Option<Vec<u8>>>>),
    Directory(RwLock<HashMap<OsString, u64>>),
}

struct Node {
    attr: Mutex<FileAttr>,
    body: Body,
}

/// Names and inode numbers, as they were when a directory was opened.
type Listing = Arc<Vec<(OsString, u64)>>;

struct Toy {
    nodes: Vec<RwLock<HashMap<u64, Arc<Node>>>>,
    next_ino: AtomicU64,
    listings: Mutex<HashMap<u64, Listing>>,
    next_handle: AtomicU64,
    spare: Mutex<Vec<Vec<u8>>>,
}

impl Toy {
    fn new(warm_bytes: u64) -> Self {
        let toy = Self {
            nodes: (0..SHARDS).map(|_| RwLock::default()).collect(),
            next_ino: AtomicU64::new(2),
            listings: Mutex::default(),
            next_handle: AtomicU64::new(1),
            spare: Mutex::new(
                (0..warm_bytes / BLOCK_BYTES as u64)
                    .map(|_| vec![1; BLOCK_BYTES])
                    .collect(),
            ),
        };
        toy.insert(1, FileType::Directory, 0o755);
        toy
    }

    fn insert(&self, ino: u64, kind: FileType, perm: u32) -> Arc<Node> {
        let now = SystemTime::now();
        let node = Arc::new(Node {
            attr: Mutex::new(FileAttr {
                ino: INodeNo(ino),
                size: 0,
                blocks: 0,
                atime: now,
                mtime: now,
                ctime: now,
                crtime: UNIX_EPOCH,
                kind,
                perm: (perm & 0o7777) as u16,
                nlink: if kind == FileType::Directory { 2 } else { 1 },
                uid: 0,
                gid: 0,
                rdev: 0,
                blksize: 128 << 10,
                flags: 0,
            }),
            body: match kind {
                FileType::Directory => Body::Directory(RwLock::default()),
                _ => Body::File(RwLock::default()),
            },
        });
        self.shard(ino).write().insert(ino, Arc::clone(&node));
        node
    }

    fn shard(&self, ino: u64) -> &RwLock<HashMap<u64, Arc<Node>>> {
        &self.nodes[ino as usize % SHARDS]
    }

    fn node(&self, ino: INodeNo) -> Result<Arc<Node>, Errno> {
        let node = self.shard(ino.0).read().get(&ino.0).cloned();
        node.ok_or(Errno::ESTALE)
    }

    fn attr(&self, ino: INodeNo) -> Result<FileAttr, Errno> {
        Ok(*self.node(ino)?.attr.lock())
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> Result<Option<FileAttr>, Errno> {
        let parent = self.node(parent)?;
        let ino = names(&parent)?.read().get(name).copied();
        ino.map(|ino| self.attr(INodeNo(ino))).transpose()
    }

    fn make(
        &self,
        parent: INodeNo,
        name: &OsStr,
        kind: FileType,
        mode: u32,
    ) -> Result<FileAttr, Errno> {
        let parent = self.node(parent)?;
        let mut names = names(&parent)?.write();
        if names.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let ino = self.next_ino.fetch_add(1, Ordering::Relaxed);
        let node = self.insert(ino, kind, mode);
        names.insert(name.to_owned(), ino);
        let attr = *node.attr.lock();
        Ok(attr)
    }

    fn remove(&self, parent: INodeNo, name: &OsStr) -> Result<(), Errno> {
        let parent = self.node(parent)?;
        let ino = names(&parent)?.write().remove(name).ok_or(Errno::ENOENT)?;
        let node = self.shard(ino).write().remove(&ino);
        if let Some(Body::File(blocks)) = node.as_deref().map(|node| &node.body) {
            self.recycle(blocks.write().drain(..));
        }
        Ok(())
    }

    fn recycle(&self, blocks: impl Iterator<Item = Option<Vec<u8>>>) {
        let full = blocks.flatten().filter(|block| block.len() == BLOCK_BYTES);
        self.spare.lock().extend(full);
    }

    fn block(&self) -> Vec<u8> {
        let spare = self.spare.lock().pop();
        spare.unwrap_or_else(|| vec![0; BLOCK_BYTES])
    }

    fn write_at(&self, ino: INodeNo, offset: u64, mut data: &[u8]) -> Result<(), Errno> {
        let node = self.node(ino)?;
        let mut at = offset as usize;
        let end = offset + data.len() as u64;
        let mut blocks = blocks(&node)?.write();
        while !data.is_empty() {
            let (index, within) = (at / BLOCK_BYTES, at % BLOCK_BYTES);
            if blocks.len() <= index {
                blocks.resize_with(index + 1, || None);
            }
            let part = data.len().min(BLOCK_BYTES - within);
            let block = blocks[index].get_or_insert_with(|| match part {
                BLOCK_BYTES => self.block(),
                _ => Vec::new(),
            });
            if block.len() < within + part {
                block.resize(within + part, 0);
            }
            block[within..within + part].copy_from_slice(&data[..part]);
            (at, data) = (at + part, &data[part..]);
        }
        let mut attr = node.attr.lock();
        attr.size = attr.size.max(end);
        attr.mtime = SystemTime::now();
        Ok(())
    }

    fn listing(&self, handle: FileHandle) -> Option<Listing> {
        self.listings.lock().get(&handle.0).cloned()
    }
}

fn names(node: &Node) -> Result<&RwLock<HashMap<OsString, u64>>, Errno> {
    match &node.body {
        Body::Directory(names) => Ok(names),
        Body::File(_) => Err(Errno::ENOTDIR),
    }
}

fn blocks(node: &Node) -> Result<&RwLock<Vec<Option<Vec<u8>>>>, Errno> {
    match &node.body {
        Body::File(blocks) => Ok(blocks),
        Body::Directory(_) => Err(Errno::EISDIR),
    }
}

macro_rules! or_error {
    ($result:expr, $reply:expr) => {
        match $result {
            Ok(value) => value,
            Err(errno) => return $reply.error(errno),
        }
    };
}

impl Filesystem for Toy {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in CAPABILITIES {
            // What this kernel does not have is left out.
            let _ = config.add_capabilities(capability);
        }
        config
            .set_max_write(REQUEST_BYTES_MAX)
            .map_err(|nearest| io::Error::other(format!("writes of {nearest} bytes at most")))?;
        config
            .set_max_background(BACKGROUND_REQUESTS_MAX)
            .map_err(|nearest| io::Error::other(format!("{nearest} requests at most")))?;
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match or_error!(self.child(parent, name), reply) {
            Some(attr) => reply.entry(&CACHE_TIME, &attr, GENERATION),
            None => {
                let absent = FileAttr {
                    ino: INodeNo(0),
                    ..or_error!(self.attr(parent), reply)
                };
                reply.entry(&CACHE_TIME, &absent, GENERATION);
            }
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let attr = or_error!(self.attr(ino), reply);
        reply.attr(&CACHE_TIME, &attr);
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let node = or_error!(self.node(ino), reply);
        if let Some(size) = size {
            let mut blocks = or_error!(blocks(&node), reply).write();
            let keep = (size as usize).div_ceil(BLOCK_BYTES).min(blocks.len());
            self.recycle(blocks.drain(keep..));
        }
        let mut attr = node.attr.lock();
        attr.size = size.unwrap_or(attr.size);
        attr.perm = mode.map_or(attr.perm, |mode| (mode & 0o7777) as u16);
        reply.attr(&CACHE_TIME, &attr);
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let attr = or_error!(
            self.make(parent, name, FileType::Directory, mode & !umask),
            reply
        );
        reply.entry(&CACHE_TIME, &attr, GENERATION);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        or_error!(self.remove(parent, name), reply);
        reply.ok();
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        or_error!(self.remove(parent, name), reply);
        reply.ok();
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let from = or_error!(self.node(parent), reply);
        let to = or_error!(self.node(newparent), reply);
        let taken = or_error!(names(&from), reply).write().remove(name);
        let ino = or_error!(taken.ok_or(Errno::ENOENT), reply);
        or_error!(names(&to), reply)
            .write()
            .insert(newname.to_owned(), ino);
        reply.ok();
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.0 & libc::O_TRUNC != 0 {
            let node = or_error!(self.node(ino), reply);
            let mut blocks = or_error!(blocks(&node), reply).write();
            self.recycle(blocks.drain(..));
            node.attr.lock().size = 0;
        }
        reply.opened(FileHandle(0), file_flags());
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let attr = or_error!(
            self.make(parent, name, FileType::RegularFile, mode & !umask),
            reply
        );
        reply.created(&CACHE_TIME, &attr, GENERATION, FileHandle(0), file_flags());
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let node = or_error!(self.node(ino), reply);
        let blocks = or_error!(blocks(&node), reply).read();
        let end = (offset + u64::from(size)).min(node.attr.lock().size) as usize;
        let start = (offset as usize).min(end);
        let (index, within) = (start / BLOCK_BYTES, start % BLOCK_BYTES);
        // Requests are aligned, so that almost all of them lie in one block.
        let block = blocks.get(index).and_then(Option::as_ref);
        if let Some(part) = block.and_then(|block| block.get(within..within + (end - start))) {
            return reply.data(part);
        }
        let byte = |at: usize| {
            let block = blocks.get(at / BLOCK_BYTES).and_then(Option::as_ref);
            block
                .and_then(|block| block.get(at % BLOCK_BYTES))
                .copied()
                .unwrap_or(0)
        };
        let data: Vec<u8> = (start..end).map(byte).collect();
        reply.data(&data);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        or_error!(self.write_at(ino, offset, data), reply);
        reply.written(data.len() as u32);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let node = or_error!(self.node(ino), reply);
        let entries = or_error!(names(&node), reply).read();
        let listing = entries
            .iter()
            .map(|(name, ino)| (name.clone(), *ino))
            .collect();
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.listings.lock().insert(handle, Arc::new(listing));
        reply.opened(FileHandle(handle), FopenFlags::empty());
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listing = or_error!(self.listing(fh).ok_or(Errno::EBADF), reply);
        for (index, (name, ino)) in listing.iter().enumerate().skip(offset as usize) {
            let Ok(attr) = self.attr(INodeNo(*ino)) else {
                continue;
            };
            if reply.add(attr.ino, index as u64 + 1, attr.kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listing = or_error!(self.listing(fh).ok_or(Errno::EBADF), reply);
        for (index, (name, ino)) in listing.iter().enumerate().skip(offset as usize) {
            let Ok(attr) = self.attr(INodeNo(*ino)) else {
                continue;
            };
            if reply.add(
                attr.ino,
                index as u64 + 1,
                name,
                &CACHE_TIME,
                &attr,
                GENERATION,
            ) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.listings.lock().remove(&fh.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1 << 24, 1 << 24, 1 << 24, 1 << 24, 1 << 24, 4096, 255, 4096);
    }
}

fn file_flags() -> FopenFlags {
    FopenFlags::FOPEN_KEEP_CACHE
}
