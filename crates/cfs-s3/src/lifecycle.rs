//! Lifecycle rules: what of a bucket goes, and when. Pure: times come from outside.

use s3s::dto::{
    BucketLifecycleConfiguration, ExpirationStatus, LifecycleExpiration, LifecycleRule, Tag,
    Timestamp,
};
use s3s::{S3ErrorCode, S3Result, s3_error};

use crate::records::Tags;

/// A day, milliseconds.
pub(crate) const DAY_MS: u64 = 86_400_000;
/// Rules of a bucket, and bytes of their identifiers, at most; S3's own limits.
const RULES_MAX: usize = 1000;
const ID_BYTES_MAX: usize = 255;

/// What rules look at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) key: &'a str,
    pub(crate) size: u64,
    pub(crate) tags: &'a Tags,
}

/// When something goes, and by which rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    /// Milliseconds since 1970.
    pub(crate) at_ms: u64,
    pub(crate) rule: String,
}

/// A bucket's rules.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    rules: Vec<LifecycleRule>,
    /// How long a day is, milliseconds: with [`DAY_MS`] things go at midnight.
    day_ms: u64,
}

fn id(rule: &LifecycleRule) -> String {
    rule.id.clone().unwrap_or_default()
}

/// Whether a rule says something about keys with this prefix.
fn is_for_key(rule: &LifecycleRule, key: &str) -> bool {
    let filter = rule.filter.as_ref();
    let and = filter.and_then(|filter| filter.and.as_ref());
    let prefixes = [
        rule.prefix.as_deref(),
        filter.and_then(|filter| filter.prefix.as_deref()),
        and.and_then(|and| and.prefix.as_deref()),
    ];
    let is_enabled = rule.status.as_str() == ExpirationStatus::ENABLED;
    is_enabled && prefixes.into_iter().flatten().all(|it| key.starts_with(it))
}

/// Tags that an object must have for a rule.
fn wanted_tags(rule: &LifecycleRule) -> Vec<&Tag> {
    let Some(filter) = &rule.filter else {
        return Vec::new();
    };
    let several = filter.and.as_ref().and_then(|and| and.tags.as_ref());
    filter
        .tag
        .iter()
        .chain(several.into_iter().flatten())
        .collect()
}

/// Least and largest size that a rule is about, both excluded.
fn sizes(rule: &LifecycleRule) -> (Option<i64>, Option<i64>) {
    let filter = rule.filter.as_ref();
    let and = filter.and_then(|filter| filter.and.as_ref());
    let above = filter.and_then(|filter| filter.object_size_greater_than);
    let below = filter.and_then(|filter| filter.object_size_less_than);
    (
        above.or(and.and_then(|and| and.object_size_greater_than)),
        below.or(and.and_then(|and| and.object_size_less_than)),
    )
}

fn is_for(rule: &LifecycleRule, subject: &Subject<'_>) -> bool {
    let has = |tag: &&Tag| {
        subject
            .tags
            .iter()
            .any(|(key, value)| Some(key) == tag.key.as_ref() && Some(value) == tag.value.as_ref())
    };
    let size = i64::try_from(subject.size).unwrap_or(i64::MAX);
    let (above, below) = sizes(rule);
    is_for_key(rule, subject.key)
        && above.is_none_or(|bound| size > bound)
        && below.is_none_or(|bound| size < bound)
        && wanted_tags(rule).iter().all(has)
}

fn ms_of(time: &Timestamp) -> u64 {
    let seconds = time::OffsetDateTime::from(time.clone()).unix_timestamp();
    u64::try_from(seconds).unwrap_or(0) * 1000
}

impl Rules {
    pub(crate) fn new(config: BucketLifecycleConfiguration, day_ms: u64) -> Self {
        Self {
            rules: config.rules,
            day_ms: day_ms.max(1),
        }
    }

    /// So many days after a moment, at midnight.
    fn after(&self, since_ms: u64, days: i32) -> u64 {
        let days = u64::try_from(days).unwrap_or(0);
        let at = since_ms.saturating_add(days.saturating_mul(self.day_ms));
        match self.day_ms == DAY_MS {
            true => at.div_ceil(DAY_MS).saturating_mul(DAY_MS),
            false => at,
        }
    }

    fn expires(&self, expiration: &LifecycleExpiration, since_ms: u64) -> Option<u64> {
        match (expiration.days, &expiration.date) {
            (Some(days), _) => Some(self.after(since_ms, days)),
            (None, Some(date)) => Some(ms_of(date)),
            (None, None) => None,
        }
    }

    /// Whether any rule asks for tags, which otherwise need not be read.
    pub(crate) fn ask_for_tags(&self) -> bool {
        self.rules.iter().any(|rule| !wanted_tags(rule).is_empty())
    }

    fn first(dues: impl Iterator<Item = Due>) -> Option<Due> {
        dues.min_by_key(|due| due.at_ms)
    }

    /// When a current version goes that was made at a moment.
    pub(crate) fn current(&self, subject: &Subject<'_>, made_ms: u64) -> Option<Due> {
        let rules = self.rules.iter().filter(|rule| is_for(rule, subject));
        Self::first(rules.filter_map(|rule| {
            let at_ms = self.expires(rule.expiration.as_ref()?, made_ms)?;
            let rule = id(rule);
            Some(Due { at_ms, rule })
        }))
    }

    /// When a version goes before which so many newer ones that are not current are kept, and that was replaced at a
    /// moment.
    pub(crate) fn noncurrent(
        &self,
        subject: &Subject<'_>,
        newer: usize,
        replaced_ms: u64,
    ) -> Option<Due> {
        let rules = self.rules.iter().filter(|rule| is_for(rule, subject));
        Self::first(rules.filter_map(|rule| {
            let expiration = rule.noncurrent_version_expiration.as_ref()?;
            let kept = expiration.newer_noncurrent_versions.unwrap_or(0);
            if newer < usize::try_from(kept).unwrap_or(0) {
                return None;
            }
            let at_ms = self.after(replaced_ms, expiration.noncurrent_days?);
            let rule = id(rule);
            Some(Due { at_ms, rule })
        }))
    }

    /// When a marker goes that is all that is left of a key. It has neither tags nor a size to go by.
    pub(crate) fn marker(&self, key: &str, made_ms: u64) -> Option<Due> {
        let rules = self.rules.iter().filter(|rule| {
            is_for_key(rule, key) && wanted_tags(rule).is_empty() && sizes(rule) == (None, None)
        });
        Self::first(rules.filter_map(|rule| {
            let expiration = rule.expiration.as_ref()?;
            let at_ms = match expiration.expired_object_delete_marker {
                Some(true) => made_ms,
                _ => self.expires(expiration, made_ms)?,
            };
            let rule = id(rule);
            Some(Due { at_ms, rule })
        }))
    }

    /// When an upload goes that was begun at a moment.
    pub(crate) fn upload(&self, key: &str, begun_ms: u64) -> Option<Due> {
        let rules = self.rules.iter().filter(|rule| is_for_key(rule, key));
        Self::first(rules.filter_map(|rule| {
            let abort = rule.abort_incomplete_multipart_upload.as_ref()?;
            let at_ms = self.after(begun_ms, abort.days_after_initiation?);
            let rule = id(rule);
            Some(Due { at_ms, rule })
        }))
    }
}

/// Whether a configuration is one that can be kept; rules without an identifier get one.
///
/// # Errors
/// `InvalidArgument`, `MalformedXML`; `NotImplemented` for other storage classes, of which there are none.
pub(crate) fn check(
    mut config: BucketLifecycleConfiguration,
    mut new_id: impl FnMut() -> String,
) -> S3Result<BucketLifecycleConfiguration> {
    if config.rules.is_empty() || config.rules.len() > RULES_MAX {
        return Err(S3ErrorCode::MalformedXML.into());
    }
    for rule in &mut config.rules {
        let is_status = [ExpirationStatus::ENABLED, ExpirationStatus::DISABLED];
        if !is_status.contains(&rule.status.as_str()) {
            return Err(S3ErrorCode::MalformedXML.into());
        }
        if rule.id.as_ref().is_none_or(String::is_empty) {
            rule.id = Some(new_id());
        }
        if rule.id.as_ref().is_some_and(|id| id.len() > ID_BYTES_MAX) {
            return Err(s3_error!(
                InvalidArgument,
                "a rule's ID has 255 bytes at most"
            ));
        }
        let dates = rule.transitions.iter().flatten();
        if dates
            .filter_map(|transition| transition.date.as_ref())
            .any(|date| !ms_of(date).is_multiple_of(DAY_MS))
        {
            return Err(s3_error!(InvalidArgument, "a date is at midnight, UTC"));
        }
        if rule.transitions.is_some() || rule.noncurrent_version_transitions.is_some() {
            return Err(super::ops::not_implemented(
                "transitions: there is one storage class",
            ));
        }
        check_rule(rule)?;
    }
    let mut ids: Vec<_> = config.rules.iter().map(id).collect();
    ids.sort();
    match ids.windows(2).any(|pair| pair[0] == pair[1]) {
        true => Err(s3_error!(InvalidArgument, "two rules have the same ID")),
        false => Ok(config),
    }
}

fn check_rule(rule: &LifecycleRule) -> S3Result<()> {
    let abort = rule.abort_incomplete_multipart_upload.as_ref();
    let noncurrent = rule.noncurrent_version_expiration.as_ref();
    let expiration = rule.expiration.as_ref();
    let has_filter = rule.filter.is_some() && rule.prefix.is_some();
    if has_filter || (abort.is_none() && noncurrent.is_none() && expiration.is_none()) {
        return Err(S3ErrorCode::MalformedXML.into());
    }
    let days = [
        abort.and_then(|abort| abort.days_after_initiation),
        noncurrent.and_then(|noncurrent| noncurrent.noncurrent_days),
        expiration.and_then(|expiration| expiration.days),
    ];
    if days.into_iter().flatten().any(|days| days < 1) {
        return Err(s3_error!(InvalidArgument, "a number of days is at least 1"));
    }
    if noncurrent.is_some_and(|it| it.noncurrent_days.is_none())
        || abort.is_some_and(|abort| abort.days_after_initiation.is_none())
    {
        return Err(S3ErrorCode::MalformedXML.into());
    }
    if let Some(expiration) = expiration {
        let given = [
            expiration.days.is_some(),
            expiration.date.is_some(),
            expiration.expired_object_delete_marker.is_some(),
        ];
        if given.into_iter().filter(|given| *given).count() != 1 {
            return Err(S3ErrorCode::MalformedXML.into());
        }
        if expiration
            .date
            .as_ref()
            .is_some_and(|date| !ms_of(date).is_multiple_of(DAY_MS))
        {
            return Err(s3_error!(InvalidArgument, "a date is at midnight, UTC"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Rules {
        let text = format!("<LifecycleConfiguration>{text}</LifecycleConfiguration>");
        let mut deserializer = s3s::xml::Deserializer::new(text.as_bytes());
        let config = s3s::xml::Deserialize::deserialize(&mut deserializer).expect("rules");
        Rules::new(
            check(config, || "new".to_owned()).expect("good ones"),
            DAY_MS,
        )
    }

    #[test]
    fn things_go_at_midnight_by_the_rule_that_is_first() {
        let rules = rules(
            "<Rule><ID>a</ID><Status>Enabled</Status><Filter><And><Prefix>logs/</Prefix>\
             <Tag><Key>k</Key><Value>v</Value></Tag>\
             <ObjectSizeGreaterThan>10</ObjectSizeGreaterThan></And></Filter>\
             <Expiration><Days>2</Days></Expiration></Rule>\
             <Rule><Status>Enabled</Status><Prefix>logs/</Prefix>\
             <Expiration><Days>5</Days></Expiration>\
             <NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays>\
             <NewerNoncurrentVersions>2</NewerNoncurrentVersions></NoncurrentVersionExpiration>\
             <AbortIncompleteMultipartUpload><DaysAfterInitiation>3</DaysAfterInitiation>\
             </AbortIncompleteMultipartUpload></Rule>\
             <Rule><ID>off</ID><Status>Disabled</Status><Prefix></Prefix>\
             <Expiration><Days>1</Days></Expiration></Rule>",
        );
        let tags = vec![("k".to_owned(), "v".to_owned())];
        let none = Tags::new();
        let subject = |key, size, tags| Subject { key, size, tags };
        let due = |day: u64, rule: &str| {
            let rule = rule.to_owned();
            Some(Due {
                at_ms: day * DAY_MS,
                rule,
            })
        };
        let noon = 10 * DAY_MS + DAY_MS / 2;
        let logs = |size, tags| rules.current(&subject("logs/1", size, tags), noon);
        assert_eq!(logs(11, &tags), due(13, "a"));
        assert_eq!(logs(10, &tags), due(16, "new"));
        assert_eq!(logs(11, &none), due(16, "new"));
        assert_eq!(rules.current(&subject("log", 11, &tags), noon), None);
        let older = |newer| rules.noncurrent(&subject("logs/1", 1, &none), newer, noon);
        assert_eq!((older(1), older(2)), (None, due(12, "new")));
        assert_eq!(rules.marker("logs/1", noon), due(16, "new"));
        assert_eq!(rules.upload("logs/1", 10 * DAY_MS), due(13, "new"));
        assert_eq!(rules.upload("other", 10 * DAY_MS), None);
    }
}
