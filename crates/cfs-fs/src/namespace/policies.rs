//! Snapshots that are taken by themselves, and how many of them are kept.
//!
//! A policy is a record of the root directory, named by the inode of its directory. In each hour, day, week (from
//! Monday) and month of UTC that a policy asks for, one snapshot is taken when the pool is open, with a name that tells the
//! period; so nothing else has to be remembered. Of those with names of this form the newest are kept; who is held stays,
//! and does not count.

use cfs_format::{Ino, VolumeId};

use crate::Fs;
use crate::error::{FsError, Result};
use crate::namespace::publish::RecordChange;
use crate::types::Time;
use crate::views::Snapshot;

/// What the names of the records begin with.
const RECORD: &[u8] = b"snapshots.policy.";
/// Policies of a pool at most.
const POLICIES_MAX: usize = 1000;
/// Snapshots of one kind that a policy keeps at most.
pub const KEPT_MAX: u32 = 10_000;
/// How often the clock is looked at, nanoseconds.
const LOOK_NS: u64 = 1_000_000_000;
/// When what has failed is tried again, nanoseconds.
const RETRY_NS: u64 = 60_000_000_000;

/// A period of which one snapshot is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Period {
    /// From one full hour to the next.
    Hourly,
    /// From midnight to midnight.
    Daily,
    /// From Monday to Sunday.
    Weekly,
    /// From the first of a month to its last.
    Monthly,
}

impl Period {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Hourly, Self::Daily, Self::Weekly, Self::Monthly];

    /// Its word in a policy and in names.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
        }
    }

    /// The name of the snapshot of the period that a moment is in, as `daily-2026-11-22`: names of one kind are in the
    /// order of their periods.
    #[must_use]
    pub fn name(self, now: Time) -> String {
        let days = now.seconds.div_euclid(86_400);
        let (year, month, day) = civil(days);
        let word = self.word();
        match self {
            Self::Hourly => {
                let hour = now.seconds.rem_euclid(86_400) / 3600;
                format!("{word}-{year:04}-{month:02}-{day:02}-{hour:02}")
            }
            Self::Daily => format!("{word}-{year:04}-{month:02}-{day:02}"),
            Self::Weekly => {
                // 1970 began on a Thursday.
                let monday = days - (days + 3).rem_euclid(7);
                let (year, month, day) = civil(monday);
                format!("{word}-{year:04}-{month:02}-{day:02}")
            }
            Self::Monthly => format!("{word}-{year:04}-{month:02}"),
        }
    }

    /// Whether a name is one of those that it gives.
    fn gave(self, name: &[u8]) -> bool {
        let digits = match self {
            Self::Hourly => "-dddd-dd-dd-dd",
            Self::Daily | Self::Weekly => "-dddd-dd-dd",
            Self::Monthly => "-dddd-dd",
        };
        name.strip_prefix(self.word().as_bytes())
            .is_some_and(|rest| {
                let fits = |(byte, form): (&u8, u8)| match form {
                    b'd' => byte.is_ascii_digit(),
                    form => *byte == form,
                };
                rest.len() == digits.len() && rest.iter().zip(digits.bytes()).all(fits)
            })
    }
}

/// Year, month and day of a day counted from 1970, in the Gregorian calendar (the algorithm is Fliegel and Van
/// Flandern's, 1968).
fn civil(days: i64) -> (i64, i64, i64) {
    let l = days + 2_440_588 + 68_569;
    let n = 4 * l / 146_097;
    let l = l - (146_097 * n + 3) / 4;
    let i = 4000 * (l + 1) / 1_461_001;
    let l = l - 1461 * i / 4 + 31;
    let j = 80 * l / 2447;
    let day = l - 2447 * j / 80;
    let l = j / 11;
    (100 * (n - 49) + i + l, j + 2 - 12 * l, day)
}

/// How many snapshots of each period are kept; 0: none are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    kept: [u32; 4],
}

impl Policy {
    /// The policy in a text as `hourly=24,daily=7`.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let mut policy = Self::default();
        for part in text.split(',') {
            let (word, count) = part
                .split_once('=')
                .ok_or_else(|| format!("{part:?} is not of the form PERIOD=COUNT"))?;
            let period = Period::ALL.into_iter().find(|it| it.word() == word);
            let period = period
                .ok_or_else(|| format!("{word:?} is none of hourly, daily, weekly and monthly"))?;
            let count: u32 = count
                .parse()
                .ok()
                .filter(|count| (1..=KEPT_MAX).contains(count))
                .ok_or_else(|| format!("{count:?} is no number from 1 to {KEPT_MAX}"))?;
            if policy.kept[period as usize] != 0 {
                return Err(format!("{word} is given twice"));
            }
            policy.kept[period as usize] = count;
        }
        Ok(policy)
    }

    /// How many snapshots of a period are kept.
    #[must_use]
    pub fn kept(&self, period: Period) -> u32 {
        self.kept[period as usize]
    }
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut comma = "";
        for period in Period::ALL {
            if self.kept(period) > 0 {
                write!(f, "{comma}{}={}", period.word(), self.kept(period))?;
                comma = ",";
            }
        }
        Ok(())
    }
}

/// What is known of the policies.
#[derive(Default)]
pub(crate) struct Policies {
    known: Option<Vec<(Ino, Policy)>>,
    /// The next look at the clock, nanoseconds since 1970.
    due_ns: u64,
}

impl Fs {
    /// Directories with a policy.
    ///
    /// # Errors
    /// When something cannot be read.
    pub fn policies(&self) -> Result<Vec<(Ino, Policy)>> {
        let records = self.records(Ino::ROOT, RECORD)?.into_iter();
        Ok(records
            .filter_map(|(name, value)| {
                let number = std::str::from_utf8(name.strip_prefix(RECORD)?).ok()?;
                let ino = Ino(u64::from_str_radix(number, 16).ok()?);
                let policy = Policy::parse(std::str::from_utf8(&value).ok()?).ok()?;
                Some((ino, policy))
            })
            .collect())
    }

    /// Gives a directory a policy, or takes it; snapshots that it has stay. It is durable afterwards.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotDirectory`]; [`FsError::Snapshot`] for what is in one;
    /// [`FsError::TooManyLinks`] when there are as many policies as there can be; [`FsError::NoSpace`].
    pub fn set_policy(&self, directory: Ino, policy: Option<Policy>) -> Result<()> {
        if directory.view().is_some() {
            return Err(FsError::Snapshot);
        }
        if self.getattr(directory)?.kind() != libc::S_IFDIR {
            return Err(FsError::NotDirectory);
        }
        let mut known = self.schedule.lock();
        if policy.is_some() && self.policies()?.len() >= POLICIES_MAX {
            return Err(FsError::TooManyLinks);
        }
        self.put_policy(directory, policy)?;
        *known = Policies::default();
        drop(known);
        self.store.sync()?;
        Ok(())
    }

    /// Takes the policies of directories of a clone that has been removed: a later one may have its numbers.
    pub(crate) fn drop_policies_of(&self, volume: VolumeId) -> Result<()> {
        let mut known = self.schedule.lock();
        for (directory, _) in self.policies()? {
            if directory.cloned().is_some_and(|(of, _)| of == volume) {
                self.put_policy(directory, None)?;
                *known = Policies::default();
            }
        }
        Ok(())
    }

    fn put_policy(&self, directory: Ino, policy: Option<Policy>) -> Result<()> {
        let name = [RECORD, format!("{:016x}", directory.0).as_bytes()].concat();
        let mut change = RecordChange::default();
        match policy {
            Some(policy) => change.put.push((name, policy.to_string().into_bytes())),
            None => change.delete.push(name),
        }
        self.set_records(Ino::ROOT, change)
    }

    /// Takes snapshots that are due, and deletes those beyond what is kept.
    ///
    /// # Errors
    /// The first failure; the rest is done, and what failed is tried again in a minute.
    pub(crate) fn run_policies(&self) -> Result<()> {
        let mut schedule = self.schedule.lock();
        let now = self.now();
        if now.ns_since_1970() < schedule.due_ns {
            return Ok(());
        }
        schedule.due_ns = now.ns_since_1970() + LOOK_NS;
        if schedule.known.is_none() {
            schedule.known = Some(self.policies()?);
        }
        let policies = schedule.known.clone().unwrap_or_default();
        let mut result = Ok(());
        for (directory, policy) in policies {
            let run = match self.path_if_due(directory, &policy, now) {
                Ok(None) => Ok(()),
                Ok(Some(Some(path))) => self.run_policy(directory, &path, &policy, now),
                Ok(Some(None)) => {
                    // Nothing can be taken any more of what has been removed; what there is stays until it is deleted.
                    tracing::info!(inode = directory.0, "a policy went with its directory");
                    schedule.known = None;
                    self.put_policy(directory, None)
                }
                Err(error) => Err(error),
            };
            if let Err(error) = run {
                schedule.due_ns = now.ns_since_1970() + RETRY_NS;
                result = result.and(Err(error));
            }
        }
        result
    }

    /// Snapshots of a directory that a policy has given names of this period, oldest first.
    fn taken(&self, directory: Ino, period: Period) -> Vec<std::sync::Arc<Snapshot>> {
        let mut all = self.views.all();
        all.retain(|it| it.directory == directory && period.gave(&it.name));
        all
    }

    /// The directory's path if the policy has something to do; looking for it takes longer than all else.
    fn path_if_due(
        &self,
        directory: Ino,
        policy: &Policy,
        now: Time,
    ) -> Result<Option<Option<Vec<u8>>>> {
        let is_due = Period::ALL.into_iter().any(|period| {
            let kept = policy.kept(period);
            let name = period.name(now).into_bytes();
            kept > 0
                && !self
                    .taken(directory, period)
                    .iter()
                    .any(|it| it.name >= name)
        });
        match is_due {
            false => Ok(None),
            true => self.path_of(directory).map(Some),
        }
    }

    fn run_policy(&self, directory: Ino, path: &[u8], policy: &Policy, now: Time) -> Result<()> {
        let mut result = Ok(());
        for period in Period::ALL {
            let kept = policy.kept(period) as usize;
            if kept == 0 {
                continue;
            }
            let name = period.name(now).into_bytes();
            // A clock that was set back takes none.
            if !self
                .taken(directory, period)
                .iter()
                .any(|it| it.name >= name)
            {
                match self.snapshot_create(path, &name) {
                    // What is coming there is no state of it; the next look takes one.
                    Ok(_) | Err(FsError::Exists | FsError::Receiving) => {}
                    Err(error) => {
                        result = result.and(Err(error));
                        continue;
                    }
                }
            }
            let free: Vec<_> = self
                .taken(directory, period)
                .into_iter()
                .filter(|it| !it.held)
                .collect();
            for old in &free[..free.len().saturating_sub(kept)] {
                match self.snapshot_delete(old) {
                    Ok(()) | Err(FsError::Held | FsError::NeededByClone | FsError::NotFound) => {}
                    Err(error) => result = result.and(Err(error)),
                }
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_have_the_names_of_the_calendar() {
        for (seconds, names) in [
            (
                0,
                [
                    "hourly-1970-01-01-00",
                    "daily-1970-01-01",
                    "weekly-1969-12-29",
                    "monthly-1970-01",
                ],
            ),
            (
                1_795_286_512,
                [
                    "hourly-2026-11-21-18",
                    "daily-2026-11-21",
                    "weekly-2026-11-16",
                    "monthly-2026-11",
                ],
            ),
            (
                951_782_400,
                [
                    "hourly-2000-02-29-00",
                    "daily-2000-02-29",
                    "weekly-2000-02-28",
                    "monthly-2000-02",
                ],
            ),
        ] {
            let now = Time { seconds, nanos: 0 };
            for (period, name) in Period::ALL.into_iter().zip(names) {
                assert_eq!(period.name(now), name);
                assert!(period.gave(name.as_bytes()));
                assert!(!period.gave(format!("{name}x").as_bytes()));
            }
        }
    }

    #[test]
    fn policies_are_read_as_they_are_written() {
        for text in ["hourly=24,daily=7,weekly=4,monthly=12", "daily=1"] {
            assert_eq!(Policy::parse(text).expect("a policy").to_string(), text);
        }
        for text in [
            "",
            "daily",
            "daily=0",
            "daily=x",
            "yearly=1",
            "daily=1,daily=2",
            "daily=10001",
        ] {
            assert!(Policy::parse(text).is_err(), "{text:?}");
        }
    }
}
