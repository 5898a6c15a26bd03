//! Object lock: which versions nobody may remove, and until when.
//!
//! The lock of a version is the file's own ([`cfs_fs::Lock`]), which the file system holds against every front end. What
//! is here translates: the bucket's configuration, what a request wants, and who may bypass governance.

use cfs_format::Ino;
use cfs_fs::{Lock, LockChange, RetentionMode};
use s3s::dto::{
    DefaultRetention, ObjectLockConfiguration, ObjectLockEnabled, ObjectLockLegalHoldStatus,
    ObjectLockRetentionMode, Timestamp,
};
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};

use crate::access::Asker;
use crate::buckets::BucketAt;
use crate::errors::{custom, from_fs};
use crate::face::Face;
use crate::records::{Versioning, name};

/// Longest default retention; S3's own limits.
const DAYS_MAX: i32 = 36_500;
const YEARS_MAX: i32 = 100;
const DAY_MS: u64 = 86_400_000;

/// What a request that makes a version says of its lock.
#[derive(Clone, Debug, Default)]
pub(crate) struct WantedLock {
    pub(crate) mode: Option<String>,
    pub(crate) until: Option<Timestamp>,
    pub(crate) hold: Option<String>,
}

impl WantedLock {
    fn is_empty(&self) -> bool {
        self.mode.is_none() && self.until.is_none() && self.hold.is_none()
    }
}

fn mode_of(text: &str) -> Option<RetentionMode> {
    match text {
        ObjectLockRetentionMode::GOVERNANCE => Some(RetentionMode::Governance),
        ObjectLockRetentionMode::COMPLIANCE => Some(RetentionMode::Compliance),
        _ => None,
    }
}

/// The name of a mode, as requests and answers have it.
pub(crate) fn mode_name(mode: RetentionMode) -> &'static str {
    match mode {
        RetentionMode::Governance => ObjectLockRetentionMode::GOVERNANCE,
        RetentionMode::Compliance => ObjectLockRetentionMode::COMPLIANCE,
    }
}

/// Whether something is held, as requests and answers have it.
///
/// # Errors
/// `MalformedXML`.
pub(crate) fn hold_of(text: &str) -> S3Result<bool> {
    match text {
        ObjectLockLegalHoldStatus::ON => Ok(true),
        ObjectLockLegalHoldStatus::OFF => Ok(false),
        _ => Err(S3ErrorCode::MalformedXML.into()),
    }
}

fn ms_of(time: &Timestamp) -> u64 {
    let nanos = time::OffsetDateTime::from(time.clone()).unix_timestamp_nanos();
    u64::try_from(nanos / 1_000_000).unwrap_or(0)
}

/// A time in milliseconds since 1970 as answers have it.
pub(crate) fn time_of(ms: u64) -> Option<Timestamp> {
    let nanos = i128::from(ms) * 1_000_000;
    let time = time::OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()?;
    Some(Timestamp::from(time))
}

/// A retention that a request wants.
///
/// # Errors
/// `MalformedXML` for a mode that is none or half a retention; `InvalidArgument` for an end that has passed.
pub(crate) fn retention_of(
    mode: Option<&str>,
    until: Option<&Timestamp>,
    now_ms: u64,
) -> S3Result<Option<(RetentionMode, u64)>> {
    match (mode, until) {
        (None, None) => Ok(None),
        (Some(mode), Some(until)) => {
            let mode = mode_of(mode).ok_or(S3ErrorCode::MalformedXML)?;
            let until = ms_of(until);
            match until > now_ms {
                true => Ok(Some((mode, until))),
                false => Err(s3_error!(
                    InvalidArgument,
                    "the date until which it is retained has passed"
                )),
            }
        }
        _ => Err(S3ErrorCode::MalformedXML.into()),
    }
}

fn no_locks() -> S3Error {
    s3_error!(
        InvalidRequest,
        "the bucket has no object lock configuration"
    )
}

/// Whether a configuration is one.
///
/// # Errors
/// `MalformedXML`; `InvalidRetentionPeriod`.
pub(crate) fn check_config(config: &ObjectLockConfiguration) -> S3Result<()> {
    let is_enabled = config
        .object_lock_enabled
        .as_ref()
        .map(|text| text.as_str());
    if is_enabled != Some(ObjectLockEnabled::ENABLED) {
        return Err(S3ErrorCode::MalformedXML.into());
    }
    let Some(rule) = &config.rule else {
        return Ok(());
    };
    let retention = rule
        .default_retention
        .as_ref()
        .ok_or(S3ErrorCode::MalformedXML)?;
    let mode = retention.mode.as_ref().ok_or(S3ErrorCode::MalformedXML)?;
    mode_of(mode.as_str()).ok_or(S3ErrorCode::MalformedXML)?;
    let fits = match (retention.days, retention.years) {
        (Some(days), None) => (1..=DAYS_MAX).contains(&days),
        (None, Some(years)) => (1..=YEARS_MAX).contains(&years),
        _ => return Err(S3ErrorCode::MalformedXML.into()),
    };
    match fits {
        true => Ok(()),
        false => Err(custom(
            "InvalidRetentionPeriod",
            http::StatusCode::BAD_REQUEST,
            "a default retention has 1 to 36500 days, or 1 to 100 years",
        )),
    }
}

/// The retention of a version that is made now: no longer than a bucket can have it.
pub(crate) fn by_default(
    retention: &DefaultRetention,
    now_ms: u64,
) -> Option<(RetentionMode, u64)> {
    let mode = mode_of(retention.mode.as_ref()?.as_str())?;
    let days = match (retention.days, retention.years) {
        (Some(days), _) => u64::try_from(days.min(DAYS_MAX)).ok()?,
        (None, Some(years)) => u64::try_from(years.min(YEARS_MAX)).ok()? * 365,
        (None, None) => return None,
    };
    Some((mode, now_ms.saturating_add(days * DAY_MS)))
}

impl Face {
    /// The record that locks a version which is about to be made: as the request wants it, or else as the bucket does.
    ///
    /// # Errors
    /// `InvalidRequest` in a bucket without locks; `AccessDenied`; as [`retention_of`].
    pub(crate) fn lock_row(
        &self,
        asker: &Asker,
        bucket: &BucketAt,
        key: &str,
        wanted: &WantedLock,
    ) -> S3Result<Option<(Vec<u8>, Vec<u8>)>> {
        if !bucket.record.object_lock {
            return match wanted.is_empty() {
                true => Ok(None),
                false => Err(no_locks()),
            };
        }
        if wanted.mode.is_some() {
            self.authorize(asker, bucket, Some(key), "s3:PutObjectRetention")?;
        }
        if wanted.hold.is_some() {
            self.authorize(asker, bucket, Some(key), "s3:PutObjectLegalHold")?;
        }
        let now = self.fs.now_ms();
        let given =
            retention_of(wanted.mode.as_deref(), wanted.until.as_ref(), now).map_err(|error| {
                match error.code() {
                    S3ErrorCode::MalformedXML => s3_error!(
                        InvalidArgument,
                        "a retention is a mode, GOVERNANCE or COMPLIANCE, and a date"
                    ),
                    _ => error,
                }
            })?;
        let lock = Lock {
            retention: given,
            hold: match wanted.hold.as_deref() {
                Some(text) => hold_of(text)
                    .map_err(|_| s3_error!(InvalidArgument, "a legal hold is ON or OFF"))?,
                None => false,
            },
        };
        Ok((lock != Lock::default()).then(|| lock.record()))
    }

    /// The rows of a version that is made now in a bucket, with the lock of the bucket's default, if they have no
    /// retention of their own.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn with_default_lock(
        &self,
        bucket: &BucketAt,
        mut rows: Vec<(Vec<u8>, Vec<u8>)>,
    ) -> S3Result<Vec<(Vec<u8>, Vec<u8>)>> {
        if !bucket.record.object_lock {
            return Ok(rows);
        }
        let at = rows
            .iter()
            .position(|(name, value)| Lock::of_record(name, value).is_some());
        let mut lock = at
            .and_then(|at| Lock::of_record(&rows[at].0, &rows[at].1))
            .unwrap_or_default();
        if lock.retention.is_none() {
            let config: Option<ObjectLockConfiguration> = self.config(bucket, name::OBJECT_LOCK)?;
            lock.retention = config
                .and_then(|config| config.rule)
                .and_then(|rule| rule.default_retention)
                .and_then(|retention| by_default(&retention, self.fs.now_ms()));
        }
        if lock != Lock::default() {
            match at {
                Some(at) => rows[at] = lock.record(),
                None => rows.push(lock.record()),
            }
        }
        Ok(rows)
    }

    /// The lock of a version in a bucket, if it has one.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn lock_of(&self, bucket: &BucketAt, ino: Ino) -> S3Result<Option<Lock>> {
        match bucket.record.object_lock {
            true => self.fs.lock(ino).map_err(from_fs),
            false => Ok(None),
        }
    }

    /// The version of an object that a request about locks names.
    ///
    /// # Errors
    /// `InvalidRequest` in a bucket without locks; as [`Face::find_version`].
    pub(crate) fn lockable(
        &self,
        bucket: &BucketAt,
        key: &str,
        version: Option<&String>,
    ) -> S3Result<Ino> {
        match bucket.record.object_lock {
            true => Ok(self.find_version(bucket, key, version)?.ino),
            false => Err(no_locks()),
        }
    }

    /// Whether somebody who wants to bypass the governance of a version may.
    pub(crate) fn bypasses(
        &self,
        asker: &Asker,
        bucket: &BucketAt,
        (key, version): (&str, Option<&String>),
        wants: Option<bool>,
    ) -> bool {
        let action = "s3:BypassGovernanceRetention";
        let may = || self.authorize_version(asker, bucket, Some(key), version, action);
        wants == Some(true) && may().is_ok()
    }

    /// Changes the lock of a version, durably.
    ///
    /// # Errors
    /// `AccessDenied` when it may not be weakened so.
    pub(crate) fn change_lock(&self, ino: Ino, change: LockChange) -> S3Result<()> {
        self.fs.set_lock(ino, change).map_err(from_fs)?;
        self.make_durable()
    }

    /// Configures object lock for a bucket, durably. A bucket that has it keeps it.
    ///
    /// # Errors
    /// `InvalidBucketState` for a bucket that does not keep versions.
    pub(crate) fn configure_locks(
        &self,
        bucket: &BucketAt,
        config: &ObjectLockConfiguration,
    ) -> S3Result<()> {
        let _changing = self.change_of_bucket(bucket.ino());
        let record = self.bucket_by_now(bucket)?.record;
        if record.versioning != Some(Versioning::Enabled) {
            return Err(s3_error!(
                InvalidBucketState,
                "a bucket with object lock keeps versions"
            ));
        }
        if !record.object_lock {
            self.fs.fix_directory(bucket.ino()).map_err(from_fs)?;
        }
        self.put_config(bucket, name::OBJECT_LOCK, config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record that says more years than a bucket can be given ended the server with the next object that was put.
    #[test]
    fn a_default_has_an_end() {
        let now_ms = 1_790_000_000_000;
        for (days, years, wanted) in [
            (Some(2), None, Some(2)),
            (None, Some(3), Some(3 * 365)),
            (Some(i32::MAX), None, Some(36_500)),
            (None, Some(i32::MAX), Some(36_500)),
            (Some(-1), None, None),
            (None, None, None),
        ] {
            let retention = DefaultRetention {
                days,
                mode: Some(ObjectLockRetentionMode::from_static(
                    ObjectLockRetentionMode::COMPLIANCE,
                )),
                years,
            };
            let locked = by_default(&retention, now_ms);
            let wanted = wanted.map(|days| (RetentionMode::Compliance, now_ms + days * DAY_MS));
            assert_eq!(locked, wanted, "{days:?} {years:?}");
        }
    }
}
