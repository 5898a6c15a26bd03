//! Copies from the host into a pool.
//!
//! The walk goes depth first, one thread; what it finds that is no directory goes to the workers. Further names of a
//! file that has several are made when all files are there.

mod object;

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cfs_format::Ino;
use cfs_fs::Fs;
use cfs_fs::escaped::{Form, VERSIONS_NAME};
use parking_lot::Mutex;
use rustix::io::Errno;

use super::host_object::HostObject;
use super::host_tree::{HostDir, Meta, Xattrs, set_pool_xattrs};
use super::pool_path::PoolPath;
use super::{Run, Trouble};
use crate::admin::protocol::{Transfer, TransferSummary};
use crate::failure::{Code, Failure, Result, plain};

/// What is not copied although it lies below a source.
#[derive(Clone, Debug, Default)]
pub struct Excluded {
    /// The data directory of the pool itself: device and inode.
    pub data_dir: Option<(u64, u64)>,
    /// The device number of the pool's own mount.
    pub mount_dev: Option<u64>,
}

/// An object to copy and its place in the pool.
struct Job<'i> {
    from: Arc<HostDir>,
    name: CString,
    meta: Meta,
    to: Arc<PoolDir<'i>>,
    to_name: Vec<u8>,
}

/// A directory of the pool that objects are copied to.
struct PoolDir<'i> {
    ino: Ino,
    /// It was made by this run, so nothing else was in it.
    fresh: bool,
    /// None if it is no copy.
    copy: Option<DirCopy<'i>>,
}

/// What a directory that is a copy gets when all that is made in it is there: with the last of those who make it.
struct DirCopy<'i> {
    import: &'i Import<'i, 'i>,
    from: Arc<HostDir>,
    meta: Meta,
    xattrs: Xattrs,
}

impl Drop for PoolDir<'_> {
    fn drop(&mut self) {
        if let Some(copy) = &self.copy
            && !copy.import.run.stopped()
            && let Err(trouble) = copy.import.finish_dir(self.ino, copy)
        {
            copy.import.run.trouble(&copy.from.path, trouble);
        }
    }
}

struct Import<'a, 'b> {
    run: &'b Run<'a>,
    excluded: &'b Excluded,
    /// Files with several names that have been copied.
    linked: Mutex<HashMap<(u64, u64), Ino>>,
}

/// Copies what `request` names; the pool is synced when it returns.
///
/// # Errors
/// When the request makes no sense, or the pool is full. What was copied before stays.
pub fn import(run: &Run<'_>, request: &Transfer, excluded: &Excluded) -> Result<TransferSummary> {
    let import = Import {
        run,
        excluded,
        linked: Mutex::default(),
    };
    let roots = import.roots(request)?;
    // What others have written before does not count as newly stored.
    sync(run.fs)?;
    let stored_before = stored_bytes(run.fs);
    // Where one becomes a directory that is there, others may come to the same places: the last one is what stays.
    let in_turn = roots.iter().any(|root| root.to_name.is_empty());
    let rounds: Vec<Vec<Job<'_>>> = match in_turn {
        true => roots.into_iter().map(|root| vec![root]).collect(),
        false => vec![roots],
    };
    let mut seen = HashSet::new();
    let mut buffer = Vec::new();
    for roots in rounds {
        let mut further_names = Vec::new();
        run.in_parallel(
            "import",
            request.workers,
            |send| import.walk(roots, send, &mut seen, &mut further_names),
            |job, buffer| import.copy_reported(&job, buffer),
        );
        for job in further_names {
            if run.stopped() {
                break;
            }
            import.link_reported(&job, &mut buffer);
        }
    }
    sync(run.fs)?;
    run.progress("import");
    run.finish(stored_bytes(run.fs).saturating_sub(stored_before))
}

fn sync(fs: &Fs) -> Result<()> {
    fs.syncfs()
        .map_err(|error| Failure::new(Code::Host, format!("cannot sync the pool: {error}")))
}

fn stored_bytes(fs: &Fs) -> u64 {
    fs.store().stats().pool.chunk_stored_bytes.get()
}

impl Import<'_, '_> {
    fn fs(&self) -> &Fs {
        self.run.fs
    }

    /// Where each source goes, by the rules of `cp -a`.
    fn roots<'i>(&self, request: &Transfer) -> Result<Vec<Job<'i>>> {
        let dest = PoolPath::parse(request.dest.bytes())?;
        let existing = dest.find(self.fs())?;
        let is_dir = existing.is_some_and(|attr| attr.kind() == libc::S_IFDIR);
        let into = is_dir && !request.no_target_directory;
        if request.sources.len() > 1 && !into {
            return Err(Failure::new(
                Code::Usage,
                format!(
                    "{} in the pool {}, and there are several sources",
                    dest.show(),
                    match existing {
                        Some(_) => "is not a directory",
                        None => "does not exist",
                    }
                ),
            )
            .hint("give a DEST that exists, as / does, or import one source at a time"));
        }
        let mut roots = Vec::new();
        let mut taken = HashSet::new();
        for source in &request.sources {
            let source = source.to_host();
            let (from, name, meta) = open_source(&source)?;
            let own_name = name_of(&source).filter(|_| into);
            if let Some(name) = &own_name
                && !taken.insert(name.clone())
            {
                return Err(Failure::new(
                    Code::Usage,
                    format!(
                        "two sources would become {} in the pool",
                        super::pool_path::join(&dest.show(), name)
                    ),
                )
                .hint("import them one at a time"));
            }
            let merges = own_name.is_none() && is_dir;
            if merges && meta.kind() != libc::S_IFDIR {
                return Err(Failure::new(
                    Code::Usage,
                    format!(
                        "{} in the pool is a directory and {} is not",
                        dest.show(),
                        source.display()
                    ),
                ));
            }
            if existing.is_none() && dest.trailing_slash && meta.kind() != libc::S_IFDIR {
                return Err(Failure::new(
                    Code::Usage,
                    format!("there is no directory {} in the pool", dest.show()),
                ));
            }
            let (to, to_name) = match (own_name, &existing) {
                (Some(name), Some(dir)) => (dir.ino, name),
                // An empty name stands for the directory itself.
                (None, Some(dir)) if is_dir => (dir.ino, Vec::new()),
                _ => {
                    let name = dest.name().expect("the root exists and is a directory");
                    (
                        dest.make_parent(self.fs(), &self.caller(&meta))?,
                        name.to_vec(),
                    )
                }
            };
            roots.push(Job {
                from: Arc::new(from),
                name,
                meta,
                to: Arc::new(PoolDir {
                    ino: to,
                    fresh: false,
                    copy: None,
                }),
                to_name,
            });
        }
        Ok(roots)
    }

    /// Sends what lies at and below `roots` to the workers, but further names of files in `seen`.
    fn walk<'i>(
        &'i self,
        roots: Vec<Job<'i>>,
        send: &dyn Fn(Job<'i>),
        seen: &mut HashSet<(u64, u64)>,
        further_names: &mut Vec<Job<'i>>,
    ) {
        let mut pending = Vec::new();
        let mut place = |job: Job<'i>, pending: &mut Vec<Job<'i>>| match job.meta.kind() {
            libc::S_IFDIR => pending.push(job),
            _ if job.meta.nlink > 1 && !seen.insert((job.meta.dev, job.meta.ino)) => {
                further_names.push(job);
            }
            _ => send(job),
        };
        for root in roots {
            place(root, &mut pending);
        }
        while let Some(dir) = pending.pop() {
            if self.run.stopped() {
                return;
            }
            let path = dir.from.path_of(&dir.name);
            if self.is_excluded(&dir.meta) {
                self.run.note(&path, "left out: it belongs to this pool");
                continue;
            }
            if Form::of(&dir.to_name) == Form::System {
                self.leave_out(&dir, &path);
                continue;
            }
            let (from, names, to) = match self.enter(&dir) {
                Ok(entered) => entered,
                Err(trouble) => {
                    self.run.trouble(&path, trouble);
                    continue;
                }
            };
            for name in names {
                if self.run.stopped() {
                    return;
                }
                match from.stat(&name) {
                    Ok(meta) => {
                        let to_name = name.to_bytes().to_vec();
                        place(
                            Job {
                                from: Arc::clone(&from),
                                name,
                                meta,
                                to: Arc::clone(&to),
                                to_name,
                            },
                            &mut pending,
                        );
                    }
                    // It went between the listing and now: then it is not there to be copied.
                    Err(Errno::NOENT) => {}
                    Err(errno) => self
                        .run
                        .trouble(&from.path_of(&name), host("examine", errno)),
                }
            }
        }
    }

    /// Tells of a directory of S3's own, whose content means nothing without the records that the pool it comes from has with
    /// it: older versions of objects, or parts of uploads, which nobody misses.
    fn leave_out(&self, dir: &Job<'_>, path: &str) {
        let names = dir.from.open_dir(&dir.name).and_then(|dir| dir.names());
        let is_empty = names.is_ok_and(|names| names.is_empty());
        if is_empty || dir.to_name != VERSIONS_NAME {
            self.run
                .note(path, "left out: it is a directory of S3's own");
            return;
        }
        let message = "left out: older versions of objects come from S3, or with `cfs receive` and `cfs admin snapshot restore`";
        self.run.trouble(path, Trouble::Object(message.to_owned()));
    }

    fn is_excluded(&self, meta: &Meta) -> bool {
        self.excluded.data_dir == Some((meta.dev, meta.ino))
            || self.excluded.mount_dev == Some(meta.dev)
    }

    /// Opens a directory of the host and makes or finds the one in the pool.
    #[allow(
        clippy::type_complexity,
        reason = "taken apart at the one place that calls it"
    )]
    fn enter<'i>(
        &'i self,
        dir: &Job<'i>,
    ) -> std::result::Result<(Arc<HostDir>, Vec<CString>, Arc<PoolDir<'i>>), Trouble> {
        let from = dir
            .from
            .open_dir(&dir.name)
            .map_err(|errno| host("open", errno))?;
        let names = from.names().map_err(|errno| host("list", errno))?;
        let xattrs = from
            .fd()
            .and_then(|fd| HostObject::Open(&fd).xattrs())
            .map_err(|errno| host("read the extended attributes", errno))?;
        let existing = match dir.to_name.is_empty() {
            true => Some(self.fs().getattr(dir.to.ino)?),
            false => self.existing(dir)?,
        };
        let (ino, fresh) = match existing {
            Some(attr) if attr.kind() == libc::S_IFDIR => (attr.ino, false),
            Some(_) => {
                return Err(Trouble::Object(
                    "in the pool there is something else than a directory".to_owned(),
                ));
            }
            None => {
                let attr =
                    self.fs()
                        .mkdir(dir.to.ino, &dir.to_name, 0o700, &self.caller(&dir.meta))?;
                self.entry_changed(dir);
                (attr.ino, true)
            }
        };
        self.run.add(|it| &it.directories, 1);
        let from = Arc::new(from);
        let copy = DirCopy {
            import: self,
            from: Arc::clone(&from),
            meta: dir.meta,
            xattrs,
        };
        let to = PoolDir {
            ino,
            fresh,
            copy: Some(copy),
        };
        Ok((from, names, Arc::new(to)))
    }

    fn finish_dir(&self, ino: Ino, copy: &DirCopy<'_>) -> std::result::Result<(), Trouble> {
        set_pool_xattrs(self.fs(), ino, &copy.xattrs)?;
        let present = Meta::from(&self.fs().getattr(ino)?);
        if !copy.meta.matches(&present, self.run.keep_owner) {
            self.set_attributes(ino, &copy.meta)?;
        }
        self.inode_changed(ino);
        Ok(())
    }

    fn copy_reported(&self, job: &Job<'_>, buffer: &mut Vec<u8>) {
        if let Err(trouble) = self.copy(job, buffer) {
            self.run.trouble(&job.from.path_of(&job.name), trouble);
        }
    }

    fn link_reported(&self, job: &Job<'_>, buffer: &mut Vec<u8>) {
        if let Err(trouble) = self.link(job, buffer) {
            self.run.trouble(&job.from.path_of(&job.name), trouble);
        }
    }

    fn entry_changed(&self, job: &Job<'_>) {
        if let Some(caches) = self.run.caches {
            caches.entry_changed(job.to.ino, &job.to_name);
        }
    }

    fn inode_changed(&self, ino: Ino) {
        if let Some(caches) = self.run.caches {
            caches.inode_changed(ino);
        }
    }
}

/// Whether a source is there.
pub(super) fn check_source(source: &Path) -> Result<()> {
    open_source(source).map(drop)
}

/// The directory that holds a source, the name by which it is opened there, and what it is.
fn open_source(source: &Path) -> Result<(HostDir, CString, Meta)> {
    let failed = |errno: Errno| Failure::host("read", source, &errno.into());
    let (dir, name) = match (source.parent(), source.file_name()) {
        (Some(parent), Some(name)) if !means_content(source) && !ends_with_slash(source) => {
            (parent.to_path_buf(), name.as_bytes().to_vec())
        }
        _ => (PathBuf::from(source), b".".to_vec()),
    };
    let name = CString::new(name).map_err(|_| failed(Errno::INVAL))?;
    let dir = HostDir::open(&dir).map_err(failed)?;
    let meta = dir.stat(&name).map_err(failed)?;
    Ok((dir, name, meta))
}

/// The name that a source has in a directory; none where its content is meant: `/`, `x/.`, `x/..`.
fn name_of(source: &Path) -> Option<Vec<u8>> {
    match means_content(source) {
        true => None,
        false => source.file_name().map(|name| name.as_bytes().to_vec()),
    }
}

fn means_content(source: &Path) -> bool {
    let bytes = source.as_os_str().as_bytes();
    let end = bytes
        .iter()
        .rposition(|byte| *byte != b'/')
        .map_or(0, |last| last + 1);
    let last = bytes[..end].rsplit(|byte| *byte == b'/').next();
    matches!(last, None | Some(b"" | b"." | b".."))
}

fn ends_with_slash(source: &Path) -> bool {
    source.as_os_str().as_bytes().ends_with(b"/")
}

fn host(action: &str, errno: Errno) -> Trouble {
    Trouble::Object(format!("cannot {action} it: {}", plain(&errno.into())))
}

/// What ends a file whose copy was interrupted.
pub(super) fn interrupted() -> Failure {
    Failure::new(Code::Interrupted, "interrupted; what was copied stays")
        .hint("the same command goes on where this one ended; with -T if DEST was not there before")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_cp_would_choose() {
        for (source, name) in [
            ("/a/b", Some("b")),
            ("/a/b/", Some("b")),
            ("/a/b//", Some("b")),
            ("/a/b/.", None),
            ("/a/b/./", None),
            ("/a/..", None),
            ("/", None),
            ("/a/.b", Some(".b")),
        ] {
            assert_eq!(
                name_of(Path::new(source)),
                name.map(|it| it.as_bytes().to_vec()),
                "{source}"
            );
        }
    }
}
