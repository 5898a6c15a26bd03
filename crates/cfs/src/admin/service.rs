//! What is done for an admin command, in whichever process has the pool.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use cfs_format::superblock::UNLOCK_PASSPHRASE;
use cfs_format::{DomainId, Ino, SEGMENT_BYTES};
use cfs_fs::stream::Role;
use cfs_fuse::Mounted;
use cfs_s3::{Lifecycle, Users, WeakLifecycle};
use cfs_seal::block::Cipher;
use cfs_seal::codec::Codec;
use cfs_seal::keys::unwrap_cluster_key;
use cfs_store::Health;
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::debug;
use super::gc;
use super::lifecycle;
use super::protocol::{
    Answer, Event, Export, Finding, FsckSummary, GcWay, Present, Progress, RecountSummary, Request,
    Transfer,
};
use super::report::{Df, DomainUse, Domains, Reclaim, Recount, Segments, Status, VolumeUse, ratio};
use super::reporter::Reporter;
use super::scrub::scrub;
use super::snapshots;
use super::streams;
use super::users::{self, UserAnswer};
use super::volumes;
use crate::bytes::{count, show};
use crate::failure::{Code, Failure, Result};
use crate::keys::Secret;
use crate::pool::{Pool, cipher_name, master_key, new_slot};
use crate::replica::ReplicaKey;
use crate::transfer::export::export;
use crate::transfer::import::{Excluded, import};
use crate::transfer::{KernelCaches, Run};

/// The handlers and what they work on.
pub struct Service {
    pool: Pool,
    started: Instant,
    /// This process stays and serves; else it opened the pool for one command.
    serves: bool,
    mounted: OnceLock<Arc<Mounted>>,
    /// Of the S3 face; loaded when they are asked for.
    users: Mutex<Option<Arc<Users>>>,
    /// Of the S3 face, if this process speaks S3.
    lifecycle: OnceLock<WeakLifecycle>,
    /// One key change at a time: it reads the slot and writes it.
    key_change: Mutex<()>,
}

impl KernelCaches for Mounted {
    fn inode_changed(&self, ino: Ino) {
        ignore_unknown(self.invalidate_inode(ino.0));
    }

    fn entry_changed(&self, parent: Ino, name: &[u8]) {
        ignore_unknown(self.invalidate_entry(parent.0, name));
        // The kernel forgets these by itself only if it knows the name.
        KernelCaches::inode_changed(self, parent);
    }
}

/// What the kernel does not know it need not forget.
fn ignore_unknown(result: std::io::Result<()>) {
    if let Err(error) = result
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::debug!("the kernel's cache was not told of a change: {error}");
    }
}

impl Service {
    /// Handlers for a pool.
    pub fn new(pool: Pool, serves: bool) -> Self {
        Self {
            pool,
            started: Instant::now(),
            serves,
            mounted: OnceLock::new(),
            users: Mutex::default(),
            lifecycle: OnceLock::new(),
            key_change: Mutex::new(()),
        }
    }

    /// The pool.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// From now on the pool is mounted.
    pub fn set_mounted(&self, mounted: Arc<Mounted>) {
        assert!(
            self.mounted.set(mounted).is_ok(),
            "a process mounts its pool once"
        );
    }

    /// The users of the S3 face, as they are in the pool.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn users(&self) -> Result<Arc<Users>> {
        let mut users = self.users.lock();
        if let Some(users) = &*users {
            return Ok(Arc::clone(users));
        }
        let loaded = Users::load(Arc::clone(&self.pool.fs))
            .map_err(|error| Failure::new(Code::Failed, format!("the users of S3: {error}")))?;
        Ok(Arc::clone(users.insert(Arc::new(loaded))))
    }

    /// From now on the S3 face is the one to run lifecycle rules.
    pub fn set_lifecycle(&self, lifecycle: WeakLifecycle) {
        assert!(
            self.lifecycle.set(lifecycle).is_ok(),
            "a process speaks S3 for its pool once"
        );
    }

    fn lifecycle(&self, pass: &cfs_s3::Pass, reporter: &dyn Reporter) -> Result<Answer> {
        let lifecycle = match self.lifecycle.get().and_then(WeakLifecycle::upgrade) {
            Some(lifecycle) => lifecycle,
            None => {
                let mounted = self.mounted.get().map(Arc::clone);
                let caches = Arc::new(lifecycle::Caches(mounted));
                Lifecycle::new(Arc::clone(&self.pool.fs), self.users()?, caches)
            }
        };
        lifecycle::run(&lifecycle, pass, reporter).map(Answer::Lifecycle)
    }

    /// The caches of the kernel's mount, if there is one.
    pub fn kernel_caches(&self) -> Option<&dyn KernelCaches> {
        self.mounted
            .get()
            .map(|mounted| &**mounted as &dyn KernelCaches)
    }

    /// Does what is asked.
    ///
    /// # Errors
    /// What the command meets.
    pub fn perform(&self, request: Request, reporter: &dyn Reporter) -> Result<Answer> {
        match request {
            Request::Status => Ok(Answer::Status(Box::new(self.status()))),
            Request::Df => Ok(Answer::Df(self.df())),
            Request::LsDomains => Ok(Answer::Domains(self.domains()?)),
            Request::Fsck => self.fsck(reporter),
            Request::Scrub { rate } => {
                // What opening it has restored was restored for this command, when it was opened for it.
                let restored = match self.serves {
                    true => 0,
                    false => self.pool.fs.store().stats().healed_blocks,
                };
                scrub(&self.pool.fs, rate, restored, reporter)
            }
            Request::Gc { way, reseal } => {
                let place = gc::Place {
                    store: self.pool.fs.store(),
                    pool_bytes: &|| self.pool_bytes(),
                    serves: self.serves,
                    what_for: gc::what_for(reseal.as_ref())?,
                };
                match way {
                    GcWay::DryRun => gc::plan_only(place, reporter),
                    GcWay::Background => gc::in_background(place, reporter),
                    GcWay::Now => gc::at_once(place, reporter),
                }
            }
            Request::Recount => self.recount(reporter),
            Request::Import(transfer) => {
                let run = self.run(reporter);
                import(&run, &transfer, &self.excluded()).map(Answer::Transfer)
            }
            Request::Export(Export { transfer, sync }) => self.export(&transfer, sync, reporter),
            Request::ChangePassphrase { present, new } => {
                self.change_passphrase(&present.into_secret(), new)
            }
            Request::Snapshot(request) => {
                let caches = self.kernel_caches();
                snapshots::perform(&self.pool.fs, &request, caches, reporter)
            }
            Request::Lifecycle { bucket, dry_run } => {
                let pass = cfs_s3::Pass {
                    bucket,
                    dry_run,
                    ..cfs_s3::Pass::default()
                };
                self.lifecycle(&pass, reporter)
            }
            Request::Stream(request) => {
                let (pool, caches) = (&self.pool, self.kernel_caches());
                streams::perform(&pool.fs, &pool.dir, &request, caches, reporter)
            }
            Request::ReplicaKey { store_only } => self.replica_key(store_only),
            Request::Volume(request) => {
                volumes::perform(&self.pool.fs, &request, self.kernel_caches(), reporter)
            }
            Request::User(request) => {
                let answer = users::perform(&*self.users()?, request)?;
                Ok(match answer {
                    UserAnswer::Key(key) => Answer::Key(key),
                    UserAnswer::Users(users) => Answer::Users { users },
                    UserAnswer::Names(names) => Answer::Names { names },
                    UserAnswer::Issuers(issuers) => Answer::Issuers { issuers },
                    UserAnswer::Nothing => Answer::Nothing,
                })
            }
            Request::Debug(target) => {
                debug::print(&self.pool.fs, &target, &mut |text| {
                    reporter.event(&Event::Line { text });
                    !reporter.cancelled()
                })?;
                Ok(Answer::Nothing)
            }
        }
    }

    fn run<'a>(&'a self, reporter: &'a dyn Reporter) -> Run<'a> {
        Run::new(&self.pool.fs, self.kernel_caches(), reporter)
    }

    fn mount_dev(&self) -> Option<u64> {
        let (major, minor) = self.mounted.get()?.device_number();
        Some(rustix::fs::makedev(major, minor))
    }

    fn excluded(&self) -> Excluded {
        use std::os::unix::fs::MetadataExt;
        Excluded {
            data_dir: std::fs::metadata(self.pool.dir.path())
                .ok()
                .map(|it| (it.dev(), it.ino())),
            mount_dev: self.mount_dev(),
        }
    }

    fn export(&self, transfer: &Transfer, sync: bool, reporter: &dyn Reporter) -> Result<Answer> {
        let run = self.run(reporter);
        export(&run, transfer, sync, self.mount_dev()).map(Answer::Transfer)
    }

    fn mountpoint(&self) -> Option<PathBuf> {
        self.mounted.get().map(|it| it.mountpoint().to_path_buf())
    }

    fn status(&self) -> Status {
        let fs = &self.pool.fs;
        let store = fs.store();
        let stats = store.stats();
        let superblock = store.superblock();
        let volumes = store.volumes();
        let recount = fs.recount_status();
        let pool_bytes_max = match superblock.segments_max.get() {
            0 => None,
            most => Some(most.saturating_mul(u64::from(SEGMENT_BYTES))),
        };
        let (health, health_reason) = match store.health() {
            Health::Good if stats.unreadable_table_blocks > 0 => (
                "damaged",
                Some(format!(
                    "{} blocks of tables cannot be read, so that files are missing and some writes cannot be stored; stop \
                     the server and run `cfs repair --rebuild-index`",
                    count(stats.unreadable_table_blocks)
                )),
            ),
            Health::Good if stats.damaged_chunks > 0 => (
                "damaged",
                Some(format!(
                    "{} chunks could not be read; `cfs admin scrub` names the files",
                    count(stats.damaged_chunks)
                )),
            ),
            Health::Good if recount.last.differing.get() > 0 => (
                "damaged",
                Some(format!(
                    "counts of {} chunks are not those of a recount, which frees none of them; \
                     `cfs admin gc --recount` lists them, `cfs admin fsck` looks at all else",
                    count(recount.last.differing.get())
                )),
            ),
            Health::Good if stats.available_bytes < u64::from(SEGMENT_BYTES) => (
                "full",
                Some(match pool_bytes_max {
                    None => "hardly anything can be written before files are removed, or something else on the disk \
                             that holds it"
                        .to_owned(),
                    Some(most) => format!(
                        "hardly anything can be written before files are removed, the limit of {} is raised (--pool-size \
                         of the next start), or, if that is what limits it, something else goes from the disk",
                        show(most)
                    ),
                }),
            ),
            Health::Good => ("good", None),
            Health::ReadOnly { reason } => ("read-only", Some(reason.to_string())),
        };
        let segments = stats.segments;
        let used = segments.total - segments.free;
        // A pool without a cap has as many segments as the host has room for.
        let room = stats.available_bytes / u64::from(SEGMENT_BYTES);
        let free = segments.free.min(room);
        let (unique, stored) = (
            stats.pool.chunk_raw_bytes.get(),
            stats.pool.chunk_stored_bytes.get(),
        );
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            format_version: superblock.version.get(),
            pool_uuid: uuid(&superblock.pool_uuid),
            data: self.pool.dir.path().display().to_string(),
            device: self.pool.device.as_ref().map(|it| it.display().to_string()),
            mount: self.mountpoint().map(|it| it.display().to_string()),
            pid: self.serves.then(std::process::id),
            health: health.to_owned(),
            health_reason,
            cipher: Cipher::from_number(superblock.cipher).map_or_else(String::new, cipher_name),
            codec: volumes.first().map_or_else(String::new, |(_, volume)| {
                codec_name(volume.codec, volume.codec_level)
            }),
            opens_with: match superblock.key_slot.unlock {
                UNLOCK_PASSPHRASE => "passphrase",
                _ => "key-file",
            }
            .to_owned(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            segments: Segments {
                total: used + free,
                free,
                journal: segments.journal,
                table: segments.table,
                data: segments.data,
                pending: segments.pending,
            },
            inodes: volumes.iter().map(|(_, it)| it.inode_count.get()).sum(),
            logical_bytes: fs.logical_bytes(),
            unique_bytes: unique,
            stored_bytes: stored,
            pool_bytes: self.pool_bytes(),
            pool_bytes_max,
            available_bytes: stats.available_bytes,
            chunks: stats.pool.chunk_count.get(),
            chunk_references: stats.pool.reference_count.get(),
            referenced_bytes: stats.pool.referenced_bytes.get(),
            dedup_ratio: ratio(stats.pool.referenced_bytes.get(), unique),
            compression_ratio: ratio(unique, stored),
            journal_bytes: stats.replay_bytes,
            dirty_bytes: fs.dirty_bytes(),
            hot_bytes: fs.hot_bytes(),
            healed_blocks: stats.healed_blocks,
            reclaim: self.reclaim(),
            recount: Recount {
                is_running: recount.running.is_some(),
                seen: recount.running.map_or(0, |progress| progress.seen),
                total: recount.running.map_or(0, |progress| progress.total),
                finished_at: (recount.last.finished_ns.get() > 0)
                    .then(|| recount.last.finished_ns.get() / 1_000_000_000),
                differing: recount.last.differing.get(),
                leaked: recount.last.leaked.get(),
                missing: recount.last.missing.get(),
                failed: recount.failed,
            },
        }
    }

    fn recount(&self, reporter: &dyn Reporter) -> Result<Answer> {
        let started = Instant::now();
        let report = self.pool.fs.recount(|progress| {
            reporter.event(&Event::Progress(Progress {
                phase: "recount, extents and chunks".to_owned(),
                objects: progress.seen,
                objects_total: Some(progress.total),
                bytes: 0,
                bytes_total: None,
            }));
            !reporter.cancelled()
        });
        let report = report
            .map_err(|error| {
                Failure::new(
                    Code::Failed,
                    format!("the recount could not go on: {error}"),
                )
                .hint("`cfs admin fsck` tells what is wrong with the tables")
            })?
            .ok_or_else(|| Failure::new(Code::Interrupted, "interrupted; nothing was changed"))?;
        for finding in &report.findings {
            reporter.event(&Event::Finding(Finding {
                id: finding.id.to_owned(),
                object: finding.object.clone(),
                sentence: finding.sentence.clone(),
            }));
        }
        Ok(Answer::Recount(RecountSummary {
            references: report.references,
            chunks: report.chunks,
            differing: report.differing,
            leaked: report.leaked,
            missing: report.missing,
            freed: report.freed,
            findings: match report.is_clean() {
                true => 0,
                false => report.differing.max(1),
            },
            seconds: started.elapsed().as_secs_f64(),
        }))
    }

    fn reclaim(&self) -> Reclaim {
        let store = self.pool.fs.store();
        let (totals, pass) = (store.reclaim_totals(), store.reclaim_progress());
        Reclaim {
            segments: totals.segments,
            copied_bytes: totals.copied_bytes,
            dropped_chunks: totals.dropped_chunks,
            reclaimable_bytes: store
                .reclaim_plan(cfs_store::ReclaimFor::Room)
                .map_or(0, |plan| plan.bytes_to_free),
            pass_is_running: pass.is_running,
            pass_segments: pass.done.segments,
            pass_segments_total: pass.segments_total,
        }
    }

    /// Bytes that the pool takes: of its file what the host has allocated, of a device the segments in use.
    fn pool_bytes(&self) -> u64 {
        let stats = self.pool.fs.store().stats();
        stats.host_allocated_bytes.unwrap_or_else(|| {
            (stats.segments.total - stats.segments.free) * u64::from(SEGMENT_BYTES)
        })
    }

    fn df(&self) -> Df {
        let store = self.pool.fs.store();
        let stats = store.stats();
        let volumes: Vec<_> = self
            .pool
            .fs
            .volumes()
            .into_iter()
            .map(|volume| VolumeUse {
                volume: volume.id.0,
                path: String::from_utf8_lossy(&volume.path).into_owned(),
                logical_bytes: volume.record.logical_bytes.get(),
                allocated_bytes: volume.record.allocated_bytes.get(),
                inodes: volume.record.inode_count.get(),
                codec: codec_name(volume.record.codec, volume.record.codec_level),
                domain: volume.record.domain.get(),
            })
            .collect();
        Df {
            logical_bytes: self.pool.fs.logical_bytes(),
            unique_bytes: stats.pool.chunk_raw_bytes.get(),
            stored_bytes: stats.pool.chunk_stored_bytes.get(),
            pool_bytes: self.pool_bytes(),
            available_bytes: stats.available_bytes,
            volumes,
        }
    }

    fn domains(&self) -> Result<Domains> {
        let store = self.pool.fs.store();
        let volumes = store.volumes();
        let users = self.users()?.list();
        let of = |domain: DomainId| {
            let members: Vec<_> = volumes
                .iter()
                .filter(|(_, volume)| volume.domain.get() == domain.0)
                .collect();
            DomainUse {
                domain: domain.0,
                volumes: members.iter().map(|(id, _)| id.0).collect(),
                user: users
                    .iter()
                    .find(|user| user.domain() == Some(domain))
                    .map(|user| user.name.clone()),
                // Files with holes may together have more bytes than a number holds.
                logical_bytes: members.iter().fold(0, |sum: u64, (_, it)| {
                    sum.saturating_add(it.logical_bytes.get())
                }),
            }
        };
        Ok(Domains {
            domains: store.domains().into_iter().map(of).collect(),
        })
    }

    fn fsck(&self, reporter: &dyn Reporter) -> Result<Answer> {
        let report = self.pool.fs.check(|rows| {
            reporter.event(&Event::Progress(Progress {
                phase: "fsck, rows".to_owned(),
                objects: rows,
                objects_total: None,
                bytes: 0,
                bytes_total: None,
            }));
            !reporter.cancelled()
        });
        let report = report
            .map_err(|error| {
                Failure::new(Code::Failed, format!("the check could not go on: {error}"))
            })?
            .ok_or_else(|| Failure::new(Code::Interrupted, "interrupted; nothing was changed"))?;
        for finding in &report.findings {
            reporter.event(&Event::Finding(Finding {
                id: finding.id.to_owned(),
                object: finding.object.clone(),
                sentence: finding.sentence.clone(),
            }));
        }
        Ok(Answer::Fsck(FsckSummary {
            inodes: report.inodes,
            entries: report.entries,
            extents: report.extents,
            chunks: report.chunks,
            snapshots: report.snapshots,
            states: report.states,
            findings: report.findings.len() as u64 + report.findings_omitted,
        }))
    }

    fn replica_key(&self, store_only: bool) -> Result<Answer> {
        let store = self.pool.fs.store();
        let role = self.pool.fs.role().map_err(|error| {
            Failure::new(
                Code::Pool,
                format!("the key of this pool's streams: {error}"),
            )
        })?;
        let role = match (role, store_only) {
            (role, true) => Role::Keeps(role.passage()),
            (role @ Role::Reads(_), false) => role,
            (Role::Keeps(_), false) => {
                return Err(Failure::new(
                    Code::Usage,
                    "this pool keeps snapshots that it cannot read, and has no key that could",
                )
                .hint("take the key of a replica that can read them from the pool that they came from; with --store-only another pool can be made that keeps them"));
            }
        };
        let key = ReplicaKey {
            cipher: store.cipher(),
            role,
        };
        Ok(Answer::ReplicaKey { text: key.render() })
    }

    fn change_passphrase(&self, present: &Secret, new: Zeroizing<String>) -> Result<Answer> {
        let _alone = self.key_change.lock();
        let store = self.pool.fs.store();
        let slot = store.superblock().key_slot;
        let master = master_key(present, &slot)?;
        unwrap_cluster_key(&master, &slot).map_err(|_| {
            Failure::new(
                Code::WrongKey,
                "the present passphrase or key file is not the one of this pool",
            )
            .hint("nothing was changed; try again with the right one")
        })?;
        let new = Secret::Passphrase(new);
        let mut slot = new_slot(&new);
        store.wrap_cluster_key(&master_key(&new, &slot)?, &mut slot);
        store.replace_key_slot(slot).map_err(|error| {
            Failure::new(
                Code::Host,
                format!("cannot write the new key slot: {error}"),
            )
            .hint("look at the disk; one of the two passphrases opens the pool")
        })?;
        // The copy that is kept must not open with what was replaced.
        let kept = self.pool.dir.keep_superblock(&store.superblock_copy());
        let old_key = self.pool.dir.key();
        if let Err(error) = std::fs::remove_file(&old_key)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("{} is no longer needed: {error}", old_key.display());
        }
        kept.map_err(|failure| {
            failure.hint(
                "the new passphrase is in force, but the file `superblock` in the data directory may still open with the \
                 old one: delete it; the next start makes it anew",
            )
        })?;
        Ok(Answer::Nothing)
    }
}

impl Present {
    fn into_secret(self) -> Secret {
        match self {
            Self::Passphrase(text) => Secret::Passphrase(text),
            Self::KeyFile(path) => Secret::KeyFile(path.to_host()),
        }
    }
}

fn codec_name(codec: u8, level: u8) -> String {
    Codec::from_numbers(codec, level).map_or_else(|| "unknown".to_owned(), |it| it.to_string())
}

/// A UUID as it is usually written.
pub fn uuid(bytes: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text += &format!("{byte:02x}");
    }
    text
}
