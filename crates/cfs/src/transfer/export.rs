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
use cfs_fs::{Attr, Fs, FsError, Time};
use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::host_file::HostFile;
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
struct Job {
    attr: Attr,
    /// Its path in the pool, for messages.
    path: String,
    to: Arc<HostDir>,
    name: CString,
}

struct FinishedDir {
    path: String,
    to: Arc<HostDir>,
    name: CString,
    meta: Meta,
    xattrs: Xattrs,
}

struct Export<'a, 'b> {
    run: &'b Run<'a>,
    /// Files with several names that have been copied.
    linked: Mutex<HashMap<Ino, (Arc<HostDir>, CString)>>,
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
    let dest = Arc::clone(&root.to);
    let dest_fd = dest.fd();
    let mut finished = Vec::new();
    let mut further_names = Vec::new();
    run.in_parallel(
        "export",
        request.workers,
        |send| export.walk(root, send, &mut finished, &mut further_names),
        |job, buffer| export.copy_reported(&job, buffer),
    );
    let mut buffer = Vec::new();
    for job in &further_names {
        if run.stopped() {
            break;
        }
        export.link_reported(job, &mut buffer);
    }
    for dir in finished.iter().rev() {
        if run.stopped() {
            break;
        }
        if let Err(trouble) = export.set_attributes(&dir.to, &dir.name, &dir.meta, &dir.xattrs) {
            run.trouble(&dir.path, trouble);
        }
    }
    if sync {
        dest_fd
            .and_then(rustix::fs::syncfs)
            .map_err(|errno| Failure::host("sync", Path::new(&dest.path), &errno.into()))?;
    }
    run.progress("export");
    run.finish(0)
}

impl Export<'_, '_> {
    fn fs(&self) -> &Fs {
        self.run.fs
    }

    /// Where the source goes, by the rules of `cp -a`.
    fn root(&self, request: &Transfer, mount_dev: Option<u64>) -> Result<Job> {
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
            to: Arc::new(dir),
            name: c_name(&name)
                .map_err(|_| Failure::new(Code::Usage, format!("{} is no path", dest.display())))?,
        })
    }

    fn walk(
        &self,
        root: Job,
        send: &dyn Fn(Job),
        finished: &mut Vec<FinishedDir>,
        further_names: &mut Vec<Job>,
    ) {
        let mut seen = HashSet::new();
        let mut pending = Vec::new();
        let mut place = |job: Job, pending: &mut Vec<Job>| match job.attr.kind() {
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
                .enter(&dir, finished)
                .and_then(|to| self.list(&dir, &to, &mut |job| place(job, &mut pending)));
            if let Err(trouble) = listed {
                self.run.trouble(&dir.path, trouble);
            }
        }
    }

    /// Makes or finds the directory on the host.
    fn enter(
        &self,
        dir: &Job,
        finished: &mut Vec<FinishedDir>,
    ) -> std::result::Result<Arc<HostDir>, Trouble> {
        let to = &dir.to;
        if dir.name.as_c_str() != c"." {
            match rustix::fs::mkdirat(&dir_fd(to)?, &*dir.name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(host("make", errno)),
            }
        }
        let own = to
            .open_dir(&dir.name)
            .map_err(|errno| host("open", errno))?;
        let own = Arc::new(own);
        finished.push(FinishedDir {
            path: dir.path.clone(),
            to: Arc::clone(&own),
            name: c".".to_owned(),
            meta: Meta::from(&dir.attr),
            xattrs: pool_xattrs(self.fs(), dir.attr.ino)?,
        });
        self.run.add(|it| &it.directories, 1);
        Ok(own)
    }

    fn list(
        &self,
        dir: &Job,
        to: &Arc<HostDir>,
        place: &mut dyn FnMut(Job),
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

    fn copy_reported(&self, job: &Job, buffer: &mut Vec<u8>) {
        if let Err(trouble) = self.copy(job, buffer) {
            self.run.trouble(&job.path, trouble);
        }
    }

    fn link_reported(&self, job: &Job, buffer: &mut Vec<u8>) {
        if let Err(trouble) = self.link(job, buffer) {
            self.run.trouble(&job.path, trouble);
        }
    }

    fn existing(job: &Job) -> std::result::Result<Option<Meta>, Trouble> {
        match job.to.stat(&job.name) {
            Ok(meta) => Ok(Some(meta)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(host("examine", errno)),
        }
    }

    /// Makes a further name of a file that has been copied, or copies it if that failed.
    fn link(&self, job: &Job, buffer: &mut Vec<u8>) -> std::result::Result<(), Trouble> {
        let first = self.linked.lock().get(&job.attr.ino).cloned();
        let Some((dir, name)) = first else {
            return self.copy(job, buffer);
        };
        if let Some(present) = Self::existing(job)? {
            let first = dir.stat(&name).map_err(|errno| host("examine", errno))?;
            if (first.dev, first.ino) == (present.dev, present.ino) {
                self.run.add(|it| &it.hard_links, 1);
                return Ok(());
            }
            Self::remove(job, &present)?;
        }
        let (of, to) = (dir_fd(&dir)?, dir_fd(&job.to)?);
        rustix::fs::linkat(&of, &*name, &to, &*job.name, AtFlags::empty())
            .map_err(|errno| host("link", errno))?;
        self.run.add(|it| &it.hard_links, 1);
        Ok(())
    }

    fn copy(&self, job: &Job, buffer: &mut Vec<u8>) -> std::result::Result<(), Trouble> {
        let meta = Meta::from(&job.attr);
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

    fn same_target(&self, job: &Job) -> std::result::Result<bool, Trouble> {
        let present = rustix::fs::readlinkat(&dir_fd(&job.to)?, &*job.name, Vec::new())
            .map_err(|errno| host("read the link", errno))?;
        Ok(self.fs().readlink(job.attr.ino)? == present.to_bytes())
    }

    fn remove(job: &Job, present: &Meta) -> std::result::Result<(), Trouble> {
        if present.kind() == libc::S_IFDIR {
            return Err(Trouble::Object(
                "on the host there is a directory".to_owned(),
            ));
        }
        rustix::fs::unlinkat(&dir_fd(&job.to)?, &*job.name, AtFlags::empty())
            .map_err(|errno| host("replace", errno))
    }

    fn copy_file(
        &self,
        job: &Job,
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
        let dir = dir_fd(&job.to)?;
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
                let file = create(&dir, &job.name, OFlags::TRUNC);
                (file.map_err(|errno| host("create", errno))?, &job.name)
            }
        };
        let is_new = existing.is_none() || name != &job.name;
        let file = HostFile::new(file, meta.size).map_err(|errno| host("lengthen", errno));
        let written = file.and_then(|file| self.copy_content(job, meta, file, buffer));
        let written = written.and_then(|()| {
            let xattrs = pool_xattrs(self.fs(), job.attr.ino)?;
            self.set_attributes(&job.to, name, meta, &xattrs)?;
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
    fn remove_half_copy(job: &Job, name: &CString) {
        let is_ours = |meta: Meta| meta.kind() == libc::S_IFREG && meta.permissions() == 0o600;
        if job.to.stat(name).is_ok_and(is_ours)
            && let Ok(dir) = dir_fd(&job.to)
        {
            let _ = rustix::fs::unlinkat(&dir, &**name, AtFlags::empty());
        }
    }

    /// Copies all that is not a hole.
    fn copy_content(
        &self,
        job: &Job,
        meta: &Meta,
        mut file: HostFile,
        buffer: &mut Vec<u8>,
    ) -> std::result::Result<(), Trouble> {
        let ino = job.attr.ino;
        let mut offset = 0;
        while offset < meta.size {
            let start = match self.fs().seek_data(ino, offset) {
                Ok(start) => start,
                Err(FsError::NoSuchOffset) => break,
                Err(error) => return Err(error.into()),
            };
            let end = self.fs().seek_hole(ino, start)?.min(meta.size);
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
        file.finish().map_err(|errno| host("write", errno))?;
        let after = self.fs().getattr(ino)?;
        if (after.size, after.mtime) != (meta.size, meta.mtime) {
            return Err(changed());
        }
        Ok(())
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
        job: &Job,
        meta: &Meta,
        existing: Option<Meta>,
    ) -> std::result::Result<(), Trouble> {
        if let Some(present) = &existing {
            Self::remove(job, present)?;
        }
        let (fd, name) = (dir_fd(&job.to)?, &*job.name);
        match meta.kind() {
            libc::S_IFLNK => {
                let target = self.fs().readlink(job.attr.ino)?;
                rustix::fs::symlinkat(&target[..], fd, name)
            }
            _ => rustix::fs::mknodat(
                fd,
                name,
                FileType::from_raw_mode(meta.mode),
                Mode::RUSR | Mode::WUSR,
                meta.rdev,
            ),
        }
        .map_err(|errno| host("create", errno))?;
        let xattrs = pool_xattrs(self.fs(), job.attr.ino)?;
        self.set_attributes(&job.to, &job.name, meta, &xattrs)
    }

    /// Owner, extended attributes, mode, and last of all the times.
    fn set_attributes(
        &self,
        dir: &HostDir,
        name: &CString,
        meta: &Meta,
        xattrs: &Xattrs,
    ) -> std::result::Result<(), Trouble> {
        let name = name.as_c_str();
        let fd = dir_fd(dir)?;
        if self.run.keep_owner {
            rustix::fs::chownat(
                &fd,
                name,
                Some(Uid::from_raw(meta.uid)),
                Some(Gid::from_raw(meta.gid)),
                AtFlags::SYMLINK_NOFOLLOW,
            )
            .map_err(|errno| host("give away", errno))?;
        }
        let refused = dir
            .set_xattrs(name, xattrs)
            .map_err(|errno| host("set the extended attributes of", errno))?;
        // `security.` and `trusted.` belong to root; `cp -a` leaves them out without a word too.
        let missed: Vec<_> = refused
            .iter()
            .filter(|name| {
                self.run.keep_owner
                    || !(name.starts_with(b"security.") || name.starts_with(b"trusted."))
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
            rustix::fs::chmodat(
                &fd,
                name,
                Mode::from_raw_mode(meta.permissions()),
                AtFlags::empty(),
            )
            .map_err(|errno| host("set the mode of", errno))?;
        }
        let times = Timestamps {
            last_access: timespec(meta.atime),
            last_modification: timespec(meta.mtime),
        };
        rustix::fs::utimensat(&fd, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| host("set the times of", errno))
    }
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

fn timespec(time: Time) -> Timespec {
    Timespec {
        tv_sec: time.seconds,
        tv_nsec: time.nanos.into(),
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
