//! Uploads in parts that nobody goes on with: they end after a while, and their parts give their room back.
//!
//! An upload is gone on with when a part comes. Whoever comes back later is told that there is no such upload, as after an
//! abort.

use std::sync::Arc;
use std::time::Duration;

use cfs_fs::FsError;
use s3s::S3Result;
use tokio::sync::watch;

use crate::errors::from_fs;
use crate::face::{Face, blocking};

/// How often it is looked for them.
const PERIOD: Duration = Duration::from_secs(3600);
/// Buckets that are read at once.
const BUCKETS_AT_ONCE: usize = 1000;

/// Looks for them over and over, until `stopped` changes.
pub(crate) async fn watch(face: Arc<Face>, idle: Duration, stopped: watch::Receiver<bool>) {
    loop {
        let (looking, asked) = (Arc::clone(&face), stopped.clone());
        let ended = blocking(move || looking.expire_uploads(idle, &|| !*asked.borrow())).await;
        match ended {
            Ok(0) => {}
            Ok(count) => {
                tracing::info!("{count} uploads in parts that nobody went on with have ended")
            }
            Err(error) => {
                tracing::warn!("uploads in parts that have been left stay for now: {error}")
            }
        }
        let mut stopped = stopped.clone();
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            _ = stopped.wait_for(|is_stopped| *is_stopped) => return,
        }
    }
}

impl Face {
    /// Ends the uploads that have had nothing new for so long, and tells how many. `go_on` is asked for each.
    ///
    /// # Errors
    /// What the file system refuses; what is left then is due the next time.
    fn expire_uploads(&self, idle: Duration, go_on: &dyn Fn() -> bool) -> S3Result<u64> {
        let mut ended = 0;
        let mut from = String::new();
        loop {
            let buckets = self.buckets("", &from, BUCKETS_AT_ONCE, |_| true)?;
            let Some(last) = buckets.last() else {
                return Ok(ended);
            };
            from = format!("{}\0", last.name);
            for bucket in buckets {
                for upload in self.uploads(&bucket)? {
                    if !go_on() {
                        return Ok(ended);
                    }
                    // Who completes it at this moment has the lock, or finds it gone.
                    let _lock = self.lock(bucket.ino(), &upload.record.key);
                    let attr = match self.fs.getattr(upload.directory) {
                        Ok(attr) => attr,
                        Err(FsError::NotFound) => continue,
                        Err(error) => return Err(from_fs(error)),
                    };
                    let touched = attr.mtime.seconds.max(upload.record.begun);
                    let age = self.now_seconds().saturating_sub(touched);
                    if u64::try_from(age).is_ok_and(|age| age >= idle.as_secs()) {
                        self.end_upload(&bucket, &upload)?;
                        ended += 1;
                    }
                }
            }
        }
    }
}
