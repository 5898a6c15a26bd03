//! Copies out of a pool to the host.
//!
//! Everything on the host is reached through the descriptor of its directory, and no symbolic link that lies there is
//! followed, so that nobody who can write to the destination leads a copy made by root astray.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use cfs_format::Ino;
use cfs_fs::{Attr, Fs, FsError};
use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::host_file::HostFile;
use super::host_object::HostObject;
use super::host_tree::{HostDir, Meta, Xattrs, pool_xattrs};
use super::import::interrupted;
use super::pool_path::{PoolPath, join};
use super::{Run, Trouble};
use crate::admin::protocol::{Transfer, TransferSummary};
use crate::failure::{Code, Failure, Result, plain};

/// Bytes that one write moves: large direct writes take the disk less.
const COPY_BYTES: usize = 1 << 20;
/// Entries of a directory that are read at a time.
const ENTRIES_AT_A_TIME: usize = 1024;

/// An object to copy and its place on the host.
struct Job<'e> {
    attr: Attr,
    /// Its path in the pool, for messages.
    path: String,
    to: Arc<ToDir<'e>>,
    name: CString,
}

/// A directory of the host that objects are copied to.
struct ToDir<'e> {
    dir: Arc<HostDir>,
    /// It was made by this run, so nothing else was in it.
    fresh: bool,
    /// None if it is no copy, or has got its attributes.
    copy: Option<DirCopy<'e>>,
}

/// What a directory that is a copy gets when all below it is there: with the last of those who make that. Before, it may
/// have to be opened again, which its mode might not let everybody do.
struct DirCopy<'e> {
    run: &'e Run<'e>,
    path: String,
    meta: Meta,
    xattrs: Xattrs,
    above: Arc<ToDir<'e>>,
}

impl<'e> ToDir<'e> {
    /// Gives it its attributes; returns the one above.
    fn end(&mut self) -> Option<Arc<ToDir<'e>>> {
        let copy = self.copy.take()?;
        if !copy.run.stopped() {
            let done = dir_fd(&self.dir).and_then(|fd| {
                set_attributes(copy.run, HostObject::Open(&fd), &copy.meta, &copy.xattrs)
            });
            if let Err(trouble) = done {
                copy.run.trouble(&copy.path, trouble);
            }
        }
        Some(copy.above)
    }
}

impl Drop for ToDir<'_> {
    /// Ends those above that nobody else has too, one after the other: trees may be deeper than stacks.
    fn drop(&mut self) {
        let mut above = self.end();
        while let Some(dir) = above {
            above = Arc::into_inner(dir).and_then(|mut dir| dir.end());
        }
    }
}

struct Export<'e> {
    run: &'e Run<'e>,
    /// Files with several names that have been copied.
    linked: Mutex<HashMap<Ino, (Arc<ToDir<'e>>, CString)>>,
}

/// Copies what `request` names. With `sync` the disk has the copy when it returns; without, some of it may be in the host's
/// page cache, as with `cp`. `mount_dev` is the device number of the pool's own mount,
/// which cannot be a destination.
///
/// # Errors
/// When the request makes no sense, or the host is full. What was copied before stays.
pub fn export(
    run: &Run<'_>,
    request: &Transfer,
    sync: bool,
    mount_dev: Option<u64>,
) -> Result<TransferSummary> {
    let export = Export {
        run,
        linked: Mutex::default(),
    };
    let root = export.root(request, mount_dev)?;
    // Opened before anything is written: only of what comes after that does a sync tell errors.
    let dest = Arc::clone(&root.to.dir);
    let dest_fd = dest.fd();
    let mut further_names = Vec::new();
    run.in_parallel(
        "export",
        request.workers,
        |send| export.walk(root, send, &mut further_names),
        |job, buffer| export.copy_reported(&job, buffer),
    );
    let mut buffer = Vec::new();
    for job in further_names {
        if run.stopped() {
            break;
        }
        export.link_reported(&job, &mut buffer);
    }
    // The last that have directories.
    drop(export);
    if sync {
        dest_fd
            .and_then(rustix::fs::syncfs)
            .map_err(|errno| Failure::host("sync", Path::new(&dest.path), &errno.into()))?;
    }
    run.progress("export");
    run.finish(0)
}

impl<'e> Export<'e> {
    fn fs(&self) -> &Fs {
        self.run.fs
    }

    /// Where the source goes, by the rules of `cp -a`.
    fn root(&self, request: &Transfer, mount_dev: Option<u64>) -> Result<Job<'e>> {
        let [source] = &request.sources[..] else {
            return Err(Failure::new(Code::Usage, "export takes one source"));
        };
        let source = PoolPath::parse(source.bytes())?;
        let attr = source.find(self.fs())?.ok_or_else(|| {
            Failure::new(
                Code::Failed,
                format!("there is no {} in the pool", source.show()),
            )
        })?;
        let is_dir = attr.kind() == libc::S_IFDIR;
        let dest = request.dest.to_host();
        let dest_is_dir = dest.is_dir();
        let into = dest_is_dir && !request.no_target_directory;
        if dest_is_dir && !is_dir && !into {
            return Err(Failure::new(
                Code::Usage,
                format!(
                    "{} is a directory and {} in the pool is not",
                    dest.display(),
                    source.show()
                ),
            ));
        }
        let own_name = source.name().filter(|_| into && !source.names_content);
        let (to, name) = match (own_name, dest_is_dir) {
            (Some(name), _) => (dest.as_path(), name.to_vec()),
            // The directory that is there becomes the copy.
            (None, true) => (dest.as_path(), b".".to_vec()),
            (None, false) => match (dest.parent(), dest.file_name()) {
                (Some(parent), Some(name)) => (parent, name.as_bytes().to_vec()),
                _ => {
                    return Err(Failure::new(
                        Code::Usage,
                        format!("{} is no place for a copy", dest.display()),
                    ));
                }
            },
        };
        let dir = HostDir::open(to).map_err(|errno| {
            Failure::host("open the directory", to, &errno.into())
                .hint("DEST, or the directory that it is to be made in, must exist")
        })?;
        if mount_dev == Some(dir.dev()) {
            return Err(Failure::new(
                Code::Usage,
                format!("{} is in the mount of the same pool", dest.display()),
            )
            .hint("use cp there: copies within a pool take no room"));
        }
        Ok(Job {
            attr,
            path: source.show(),
            to: Arc::new(ToDir {
                dir: Arc::new(dir),
                fresh: false,
                copy: None,
            }),
            name: c_name(&name)
                .map_err(|_| Failure::new(Code::Usage, format!("{} is no path", dest.display())))?,
        })
    }

    fn walk(&self, root: Job<'e>, send: &dyn Fn(Job<'e>), further_names: &mut Vec<Job<'e>>) {
        let mut seen = HashSet::new();
        let mut pending = Vec::new();
        let mut place = |job: Job<'e>, pending: &mut Vec<Job<'e>>| match job.attr.kind() {
            libc::S_IFDIR => pending.push(job),
            _ if job.attr.nlink > 1 && !seen.insert(job.attr.ino) => further_names.push(job),
            _ => send(job),
        };
        place(root, &mut pending);
        while let Some(dir) = pending.pop() {
            if self.run.stopped() {
                return;
            }
            let listed = self
                .enter(&dir)
                .and_then(|to| self.list(&dir, &to, &mut |job| place(job, &mut pending)));
            if let Err(trouble) = listed {
                self.run.trouble(&dir.path, trouble);
            }
        }
    }

    /// Makes or finds the directory on the host.
    fn enter(&self, dir: &Job<'e>) -> std::result::Result<Arc<ToDir<'e>>, Trouble> {
        let to = &dir.to.dir;
        let mut fresh = false;
        if dir.name.as_c_str() != c"." {
            match rustix::fs::mkdirat(&dir_fd(to)?, &*dir.name, Mode::RWXU) {
                Ok(()) => fresh = true,
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(host("make", errno)),
            }
        }
        let own = to
            .open_dir(&dir.name)
            .map_err(|errno| host("open", errno))?;
        let copy = DirCopy {
            run: self.run,
            path: dir.path.clone(),
            meta: Meta::from(&dir.attr),
            xattrs: pool_xattrs(self.fs(), dir.attr.ino)?,
            above: Arc::clone(&dir.to),
        };
        self.run.add(|it| &it.directories, 1);
        Ok(Arc::new(ToDir {
            dir: Arc::new(own),
            fresh,
            copy: Some(copy),
        }))
    }

    fn list(
        &self,
        dir: &Job<'e>,
        to: &Arc<ToDir<'e>>,
        place: &mut dyn FnMut(Job<'e>),
    ) -> std::result::Result<(), Trouble> {
        let ino = dir.attr.ino;
        let limit = self.fs().dir_limit(ino)?;
        let mut cookie = 0;
        loop {
            let entries = self.fs().read_dir(ino, cookie, limit, ENTRIES_AT_A_TIME)?;
            let Some(last) = entries.last() else {
                return Ok(());
            };
            cookie = last.cookie;
            for entry in entries {
                if self.run.stopped() {
                    return Ok(());
                }
                let path = join(&dir.path, &entry.name);
                let attr = match self.fs().getattr(entry.ino) {
                    Ok(attr) => attr,
                    // It went between the listing and now.
                    Err(FsError::NotFound) => continue,
                    Err(error) => {
                        self.run.trouble(&path, error.into());
                        continue;
                    }
                };
                match c_name(&entry.name) {
                    Ok(name) => place(Job {
                        attr,
                        path,
                        to: Arc::clone(to),
                        name,
                    }),
                    Err(trouble) => self.run.trouble(&path, trouble),
                }
            }
        }
    }

    fn copy_reported(&self, job: &Job<'e>, buffer: &mut Vec<u8>) {
        if let Err(trouble) = self.copy(job, buffer) {
            self.run.trouble(&job.path, trouble);
        }
    }

    fn link_reported(&self, job: &Job<'e>, buffer: &mut Vec<u8>) {
        if let Err(trouble) = self.link(job, buffer) {
            self.run.trouble(&job.path, trouble);
        }
    }

    fn existing(job: &Job<'_>) -> std::result::Result<Option<Meta>, Trouble> {
        if job.to.fresh {
            return Ok(None);
        }
        match job.to.dir.stat(&job.name) {
            Ok(meta) => Ok(Some(meta)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(host("examine", errno)),
        }
    }

    /// Makes a further name of a file that has been copied, or copies it if that failed.
    fn link(&self, job: &Job<'e>, buffer: &mut Vec<u8>) -> std::result::Result<(), Trouble> {
        let first = self.linked.lock().get(&job.attr.ino).cloned();
        let Some((dir, name)) = first else {
            return self.copy(job, buffer);
        };
        if let Some(present) = Self::existing(job)? {
            let first = dir
                .dir
                .stat(&name)
                .map_err(|errno| host("examine", errno))?;
            if (first.dev, first.ino) == (present.dev, present.ino) {
                self.run.add(|it| &it.hard_links, 1);
                return Ok(());
            }
            Self::remove(job, &present)?;
        }
        let (of, to) = (dir_fd(&dir.dir)?, dir_fd(&job.to.dir)?);
        rustix::fs::linkat(&of, &*name, &to, &*job.name, AtFlags::empty())
            .map_err(|errno| host("link", errno))?;
        self.run.add(|it| &it.hard_links, 1);
        Ok(())
    }

    fn copy(&self, job: &Job<'e>, buffer: &mut Vec<u8>) -> std::result::Result<(), Trouble> {
        let meta = self.run.as_copied(Meta::from(&job.attr));
        let existing = Self::existing(job)?;
        let is_same = match &existing {
            Some(present) if meta.matches(present, self.run.keep_owner) => {
                meta.kind() != libc::S_IFLNK || self.same_target(job)?
            }
            _ => false,
        };
        match (meta.kind(), is_same) {
            (libc::S_IFREG, true) => self.run.add(|it| &it.files_skipped, 1),
            (_, true) => self.run.add(|it| &it.others, 1),
            (libc::S_IFREG, false) => {
                self.copy_file(job, &meta, existing, buffer)?;
                self.run.add(|it| &it.files, 1);
            }
            (_, false) => {
                self.copy_other(job, &meta, existing)?;
                self.run.add(|it| &it.others, 1);
            }
        }
        if job.attr.nlink > 1 {
            self.linked
                .lock()
                .insert(job.attr.ino, (Arc::clone(&job.to), job.name.clone()));
        }
        Ok(())
    }

    fn same_target(&self, job: &Job<'_>) -> std::result::Result<bool, Trouble> {
        let present = rustix::fs::readlinkat(&dir_fd(&job.to.dir)?, &*job.name, Vec::new())
            .map_err(|errno| host("read the link", errno))?;
        Ok(self.fs().readlink(job.attr.ino)? == present.to_bytes())
    }

    fn remove(job: &Job<'_>, present: &Meta) -> std::result::Result<(), Trouble> {
        if present.kind() == libc::S_IFDIR {
            return Err(Trouble::Object(
                "on the host there is a directory".to_owned(),
            ));
        }
        rustix::fs::unlinkat(&dir_fd(&job.to.dir)?, &*job.name, AtFlags::empty())
            .map_err(|errno| host("replace", errno))
    }

    fn copy_file(
        &self,
        job: &Job<'_>,
        meta: &Meta,
        existing: Option<Meta>,
        buffer: &mut Vec<u8>,
    ) -> std::result::Result<(), Trouble> {
        let replaces = existing
            .as_ref()
            .is_some_and(|present| present.kind() == libc::S_IFREG && present.nlink == 1);
        if let Some(present) = &existing
            && present.kind() != libc::S_IFREG
        {
            Self::remove(job, present)?;
        }
        let dir = dir_fd(&job.to.dir)?;
        // What has this name stays until all of the copy is there.
        let beside = replaces.then(|| name_beside(&job.name)).flatten();
        let made = match &beside {
            Some(name) => {
                Self::remove_half_copy(job, name);
                create(&dir, name, OFlags::EXCL).map(|file| (file, name))
            }
            None => Err(Errno::NOENT),
        };
        // Where nothing can be made in the directory, or the file has other names, the file itself is written to.
        let (file, name) = match made {
            Ok(made) => made,
            Err(_) => {
                let is_there = existing.is_some_and(|present| present.kind() == libc::S_IFREG);
                let how = if is_there {
                    OFlags::TRUNC
                } else {
                    OFlags::EXCL
                };
                let file = create(&dir, &job.name, how);
                (file.map_err(|errno| host("create", errno))?, &job.name)
            }
        };
        let is_new = existing.is_none() || name != &job.name;
        let file = HostFile::new(file, meta.size).map_err(|errno| host("lengthen", errno));
        let written = file.and_then(|file| self.copy_content(job, meta, file, buffer));
        let written = written.and_then(|file| {
            let xattrs = pool_xattrs(self.fs(), job.attr.ino)?;
            set_attributes(self.run, HostObject::Open(&file), meta, &xattrs)?;
            // Some hosts rename no file that is open.
            drop(file);
            match name == &job.name {
                true => Ok(()),
                false => rustix::fs::renameat(&dir, &**name, &dir, &*job.name)
                    .map_err(|errno| host("replace", errno)),
            }
        });
        if written.is_err() && is_new {
            // Half a file helps nobody who finds it.
            if let Err(errno) = rustix::fs::unlinkat(&dir, &**name, AtFlags::empty()) {
                self.run.note(
                    &job.path,
                    format!("the half copy could not be removed: {errno}"),
                );
            }
        }
        written
    }

    /// Removes what an export that was killed has left at this name.
    fn remove_half_copy(job: &Job<'_>, name: &CString) {
        let is_ours = |meta: Meta| meta.kind() == libc::S_IFREG && meta.permissions() == 0o600;
        if job.to.dir.stat(name).is_ok_and(is_ours)
            && let Ok(dir) = dir_fd(&job.to.dir)
        {
            let _ = rustix::fs::unlinkat(&dir, &**name, AtFlags::empty());
        }
    }

    /// Copies all that is not a hole.
    fn copy_content(
        &self,
        job: &Job<'_>,
        meta: &Meta,
        mut file: HostFile,
        buffer: &mut Vec<u8>,
    ) -> std::result::Result<OwnedFd, Trouble> {
        let ino = job.attr.ino;
        let sparse = meta.allocated_bytes < meta.size;
        let mut offset = 0;
        while offset < meta.size {
            let (start, end) = match sparse {
                true => match self.fs().seek_data(ino, offset) {
                    Ok(start) => (start, self.fs().seek_hole(ino, start)?.min(meta.size)),
                    Err(FsError::NoSuchOffset) => break,
                    Err(error) => return Err(error.into()),
                },
                false => (offset, meta.size),
            };
            offset = start;
            while offset < end {
                if self.run.stopped() {
                    return Err(Trouble::Run(interrupted()));
                }
                let wanted = (end - offset).min(COPY_BYTES as u64) as usize;
                if let Err(error) = self.fs().read(ino, offset, wanted, buffer) {
                    self.meet_damage(ino, offset, end, buffer);
                    return Err(error.into());
                }
                if buffer.is_empty() {
                    return Err(changed());
                }
                file.write(buffer, offset)
                    .map_err(|errno| host("write", errno))?;
                offset += buffer.len() as u64;
                self.run.add(|it| &it.bytes, buffer.len() as u64);
            }
        }
        let file = file.finish().map_err(|errno| host("write", errno))?;
        let after = self.fs().getattr(ino)?;
        if (after.size, after.mtime) != (meta.size, meta.mtime) {
            return Err(changed());
        }
        Ok(file)
    }

    /// Reads what is left of a range of which something cannot be read, so that all damage in it is known: what is imported
    /// later then heals it.
    fn meet_damage(&self, ino: Ino, from: u64, to: u64, buffer: &mut Vec<u8>) {
        /// No chunk that is not the last of its file is shorter.
        const STEP: u64 = 16 << 10;
        let mut offset = from;
        while offset < to && !self.run.stopped() {
            // It is told once.
            let _ = self.fs().read(ino, offset, STEP as usize, buffer);
            offset += STEP;
        }
    }

    fn copy_other(
        &self,
        job: &Job<'_>,
        meta: &Meta,
        existing: Option<Meta>,
    ) -> std::result::Result<(), Trouble> {
        if let Some(present) = &existing {
            Self::remove(job, present)?;
        }
        let (fd, name) = (dir_fd(&job.to.dir)?, &*job.name);
        match meta.kind() {
            libc::S_IFLNK => {
                let target = self.fs().readlink(job.attr.ino)?;
                rustix::fs::symlinkat(&target[..], &fd, name)
            }
            _ => rustix::fs::mknodat(
                &fd,
                name,
                FileType::from_raw_mode(meta.mode),
                Mode::RUSR | Mode::WUSR,
                meta.rdev,
            ),
        }
        .map_err(|errno| host("create", errno))?;
        let xattrs = pool_xattrs(self.fs(), job.attr.ino)?;
        set_attributes(self.run, HostObject::Named(&fd, name), meta, &xattrs)
    }
}

/// Owner, extended attributes, mode, and last of all the times.
fn set_attributes(
    run: &Run<'_>,
    object: HostObject<'_>,
    meta: &Meta,
    xattrs: &Xattrs,
) -> std::result::Result<(), Trouble> {
    if run.keep_owner {
        object
            .set_owner(meta.uid, meta.gid)
            .map_err(|errno| host("give away", errno))?;
    }
    let refused = object
        .set_xattrs(xattrs)
        .map_err(|errno| host("set the extended attributes of", errno))?;
    // `security.` and `trusted.` belong to root; `cp -a` leaves them out without a word too.
    let missed: Vec<_> = refused
        .iter()
        .filter(|name| {
            run.keep_owner || !(name.starts_with(b"security.") || name.starts_with(b"trusted."))
        })
        .map(|name| String::from_utf8_lossy(name))
        .collect();
    if !missed.is_empty() {
        return Err(Trouble::Object(format!(
            "the host refuses the extended attributes {}",
            missed.join(", ")
        )));
    }
    if meta.kind() != libc::S_IFLNK {
        object
            .set_permissions(meta.permissions())
            .map_err(|errno| host("set the mode of", errno))?;
    }
    object
        .set_times(meta.atime, meta.mtime)
        .map_err(|errno| host("set the times of", errno))
}

/// Makes a file to write to.
fn create(dir: &OwnedFd, name: &CString, how: OFlags) -> std::result::Result<OwnedFd, Errno> {
    rustix::fs::openat(
        dir,
        &**name,
        // A named pipe that took the place must not hold the worker up.
        OFlags::WRONLY
            | OFlags::CREATE
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::CLOEXEC
            | how,
        Mode::RUSR | Mode::WUSR,
    )
}

/// The name of a copy that is to take the place of a file with this name; none for the longest names.
fn name_beside(name: &CString) -> Option<CString> {
    let beside = [b".", name.to_bytes(), b".cfs-part"].concat();
    match beside.len() <= cfs_fs::NAME_BYTES_MAX {
        true => CString::new(beside).ok(),
        false => None,
    }
}

/// The descriptor of a directory on the host.
fn dir_fd(dir: &HostDir) -> std::result::Result<Arc<OwnedFd>, Trouble> {
    dir.fd().map_err(|errno| match errno {
        Errno::STALE => {
            Trouble::Object(format!("{} was replaced while it was written to", dir.path))
        }
        errno => host("open the directory of", errno),
    })
}

fn c_name(name: &[u8]) -> std::result::Result<CString, Trouble> {
    CString::new(name).map_err(|_| Trouble::Object("its name has a zero byte".to_owned()))
}

fn host(action: &str, errno: Errno) -> Trouble {
    match errno {
        Errno::NOSPC | Errno::DQUOT | Errno::ROFS => Trouble::Run(
            Failure::new(
                Code::Host,
                format!("cannot write the copy: {}", plain(&errno.into())),
            )
            .hint("free some room or choose another DEST; then run the same command again"),
        ),
        _ => Trouble::Object(format!("cannot {action} it: {}", plain(&errno.into()))),
    }
}

fn changed() -> Trouble {
    Trouble::Object("it changed while it was copied; run the same command again".to_owned())
}
