//! Conditions of policies: operators, patterns, and what the keys stand for in a request.

use std::net::IpAddr;

use serde_json::Value;

use super::{Asked, PolicyError, Who};
use crate::issuers::{Claims, SessionTags};
use crate::principal::Principal;
use crate::users::Provider;

/// Whether who asks does so by credentials that end.
const AUTHENTICATION: &str = "sts:authentication";

/// Of what a key stands for, how many values have to fit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quantity {
    /// The one that there is; of several, any.
    Usual,
    /// Some, of those that there are.
    Any,
    /// All that there are, be there none.
    All,
}

/// A condition.
pub(super) struct Condition {
    quantity: Quantity,
    operator: Operator,
    if_exists: bool,
    pub(super) key: String,
    pub(super) values: Vec<String>,
}

/// How the value of a condition is compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Operator {
    StringEquals,
    StringNotEquals,
    StringEqualsIgnoreCase,
    StringNotEqualsIgnoreCase,
    StringLike,
    StringNotLike,
    NumericEquals,
    NumericLessThan,
    NumericLessThanEquals,
    NumericGreaterThan,
    NumericGreaterThanEquals,
    Bool,
    Null,
    IpAddress,
    NotIpAddress,
}

impl Operator {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "StringEquals" | "ArnEquals" => Self::StringEquals,
            "StringNotEquals" | "ArnNotEquals" => Self::StringNotEquals,
            "StringEqualsIgnoreCase" => Self::StringEqualsIgnoreCase,
            "StringNotEqualsIgnoreCase" => Self::StringNotEqualsIgnoreCase,
            "StringLike" | "ArnLike" => Self::StringLike,
            "StringNotLike" | "ArnNotLike" => Self::StringNotLike,
            "NumericEquals" => Self::NumericEquals,
            "NumericLessThan" => Self::NumericLessThan,
            "NumericLessThanEquals" => Self::NumericLessThanEquals,
            "NumericGreaterThan" => Self::NumericGreaterThan,
            "NumericGreaterThanEquals" => Self::NumericGreaterThanEquals,
            "Bool" => Self::Bool,
            "Null" => Self::Null,
            "IpAddress" => Self::IpAddress,
            "NotIpAddress" => Self::NotIpAddress,
            _ => return None,
        })
    }

    fn is_negative(self) -> bool {
        matches!(
            self,
            Self::StringNotEquals
                | Self::StringNotEqualsIgnoreCase
                | Self::StringNotLike
                | Self::NotIpAddress
        )
    }

    /// Whether a value fits one of the policy's, whatever the sign of the operator.
    fn fits(self, wanted: &str, found: &str) -> bool {
        let numbers = || Some((wanted.parse::<f64>().ok()?, found.parse::<f64>().ok()?));
        let compare = |fits: fn(f64, f64) -> bool| {
            numbers().is_some_and(|(wanted, found)| fits(found, wanted))
        };
        match self {
            Self::StringEquals | Self::StringNotEquals => wanted == found,
            Self::StringEqualsIgnoreCase | Self::StringNotEqualsIgnoreCase | Self::Bool => {
                wanted.eq_ignore_ascii_case(found)
            }
            Self::StringLike | Self::StringNotLike => is_like(wanted, found),
            Self::NumericEquals => compare(|found, wanted| found == wanted),
            Self::NumericLessThan => compare(|found, wanted| found < wanted),
            Self::NumericLessThanEquals => compare(|found, wanted| found <= wanted),
            Self::NumericGreaterThan => compare(|found, wanted| found > wanted),
            Self::NumericGreaterThanEquals => compare(|found, wanted| found >= wanted),
            Self::IpAddress | Self::NotIpAddress => in_network(wanted, found),
            Self::Null => false,
        }
    }
}

/// Whether a text fits a pattern with `*` and `?`.
pub(super) fn is_like(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut in_text) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while in_text < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, in_text));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[in_text] => {
                at += 1;
                in_text += 1;
            }
            _ => match &mut star {
                // The last star takes one byte more.
                Some((back, taken)) => {
                    *taken += 1;
                    at = *back + 1;
                    in_text = *taken;
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

fn in_network(network: &str, address: &str) -> bool {
    let (base, bits) = match network.split_once('/') {
        Some((base, bits)) => (base, bits.parse::<u32>().ok()),
        None => (network, None),
    };
    let (Ok(base), Ok(address)) = (base.parse::<IpAddr>(), address.parse::<IpAddr>()) else {
        return false;
    };
    let shift = |whole: u32| whole.saturating_sub(bits.unwrap_or(whole));
    match (base, address) {
        (IpAddr::V4(base), IpAddr::V4(address)) => {
            let shift = shift(32);
            shift >= 32 || base.to_bits() >> shift == address.to_bits() >> shift
        }
        (IpAddr::V6(base), IpAddr::V6(address)) => {
            let shift = shift(128);
            shift >= 128 || base.to_bits() >> shift == address.to_bits() >> shift
        }
        _ => false,
    }
}

/// A text, or a list of them.
pub(super) fn texts(value: &Value) -> Option<Vec<String>> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(value) => Some(value.to_string()),
        _ => None,
    };
    match value {
        Value::Array(values) => values.iter().map(text).collect(),
        one => text(one).map(|text| vec![text]),
    }
}

impl Condition {
    /// A condition of a document: the name of its operator, its key and its values. A statement of who may take a role on can ask
    /// for more, as for claims of the providers that it names.
    ///
    /// # Errors
    /// [`PolicyError::Condition`], [`PolicyError::Malformed`].
    pub(super) fn parse(
        name: &str,
        key: String,
        value: &Value,
        of_trust: Option<&[&str]>,
    ) -> Result<Self, PolicyError> {
        let (quantity, bare) = match name.split_once(':') {
            Some(("ForAnyValue", bare)) => (Quantity::Any, bare),
            Some(("ForAllValues", bare)) => (Quantity::All, bare),
            _ => (Quantity::Usual, name),
        };
        let (bare, if_exists) = match bare.strip_suffix("IfExists") {
            Some(bare) => (bare, true),
            None => (bare, false),
        };
        let operator = Operator::of(bare).ok_or_else(|| PolicyError::Condition(name.to_owned()))?;
        if !is_known_key(&key) && !of_trust.is_some_and(|it| is_key_of_trust(&key, it)) {
            return Err(PolicyError::Condition(key));
        }
        let values =
            texts(value).ok_or(PolicyError::Malformed("the value of a condition is text"))?;
        Ok(Self {
            quantity,
            operator,
            if_exists,
            key,
            values,
        })
    }

    /// Whether it asks for the tags of an object.
    pub(super) fn asks_for_tags(&self) -> bool {
        self.key.starts_with(EXISTING_TAG)
    }

    /// Whether it never holds where its key stands for nothing.
    pub(super) fn needs_value(&self) -> bool {
        let needs = self.operator != Operator::Null && !self.operator.is_negative();
        needs && !self.if_exists && self.quantity != Quantity::All
    }

    /// Whether it holds of a request.
    pub(super) fn holds(&self, asked: &Asked<'_>) -> bool {
        let found = asked.values(&self.key);
        if self.operator == Operator::Null {
            let is_absent = found.is_none().to_string();
            return self
                .values
                .iter()
                .any(|value| value.eq_ignore_ascii_case(&is_absent));
        }
        let Some(found) = found else {
            return self.if_exists
                || match self.quantity {
                    Quantity::Usual => self.operator.is_negative(),
                    Quantity::Any => false,
                    Quantity::All => true,
                };
        };
        let fits = |found: &String| {
            let mut wanted = self.values.iter();
            wanted.any(|wanted| self.operator.fits(wanted, found))
        };
        let is_negative = self.operator.is_negative();
        match self.quantity {
            Quantity::Usual => found.iter().any(fits) != is_negative,
            Quantity::Any => found.iter().any(|found| fits(found) != is_negative),
            Quantity::All => found.iter().all(|found| fits(found) != is_negative),
        }
    }
}

/// Keys of conditions that are the header of the same name, after `s3:`.
const HEADER_KEYS: [&str; 16] = [
    "x-amz-acl",
    "x-amz-content-sha256",
    "x-amz-copy-source",
    "x-amz-grant-full-control",
    "x-amz-grant-read",
    "x-amz-grant-read-acp",
    "x-amz-grant-write",
    "x-amz-grant-write-acp",
    "x-amz-metadata-directive",
    "x-amz-object-ownership",
    "x-amz-server-side-encryption",
    "x-amz-server-side-encryption-aws-kms-key-id",
    "x-amz-server-side-encryption-customer-algorithm",
    "x-amz-storage-class",
    "if-match",
    "if-none-match",
];
/// Others, in lower case.
const KEYS: [&str; 16] = [
    "aws:sourceip",
    "aws:securetransport",
    "aws:referer",
    "aws:useragent",
    "aws:username",
    "aws:userid",
    "aws:principalarn",
    "aws:principalaccount",
    "aws:sourcearn",
    "aws:sourceaccount",
    AUTHENTICATION,
    "s3:prefix",
    "s3:delimiter",
    "s3:max-keys",
    "s3:versionid",
    "s3:signatureversion",
];
/// What keys begin with that go on with the key of a tag.
const EXISTING_TAG: &str = "s3:ExistingObjectTag/";
const REQUEST_TAG: &str = "s3:RequestObjectTag/";
/// Of a tag of the session by which somebody asks, or which is asked for; in lower case.
const PRINCIPAL_TAG: &str = "aws:principaltag/";
const SESSION_TAG: &str = "aws:requesttag/";
/// Keys of all tags of a session that is asked for.
const SESSION_TAG_KEYS: &str = "aws:tagkeys";

/// Whether [`Asked::values`] knows what a condition's key stands for.
fn is_known_key(key: &str) -> bool {
    let lower = key.to_ascii_lowercase();
    let is_tag = [EXISTING_TAG, REQUEST_TAG]
        .iter()
        .any(|it| key.starts_with(it));
    let header = lower.strip_prefix("s3:").unwrap_or_default();
    is_tag
        || lower.starts_with(PRINCIPAL_TAG)
        || KEYS.contains(&lower.as_str())
        || HEADER_KEYS.contains(&header)
}

/// Whether a key stands for something where a role is taken on with a token of one of these providers.
fn is_key_of_trust(key: &str, providers: &[&str]) -> bool {
    let lower = key.to_ascii_lowercase();
    lower.starts_with(SESSION_TAG)
        || lower == SESSION_TAG_KEYS
        || providers
            .iter()
            .any(|bare| claim_named(key, bare).is_some())
}

/// The claim that a key stands for, which begins with the URL of a provider.
fn claim_named<'a>(key: &'a str, bare: &str) -> Option<&'a str> {
    let (url, claim) = key.split_at_checked(bare.len())?;
    let claim = claim.strip_prefix(':').filter(|claim| !claim.is_empty())?;
    url.eq_ignore_ascii_case(bare).then_some(claim)
}

/// The values of a tag of a session.
fn tag_values(tags: &SessionTags, name: &str) -> Option<Vec<String>> {
    let tag = tags.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
    tag.map(|(_, values)| values.clone())
}

/// What is compared of a claim's value. One that is no text is there all the same, and is its JSON.
fn text_of_claim(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// What a key stands for where somebody asks with a token.
fn values_of_token(key: &str, provider: &Provider, claims: &Claims) -> Option<Vec<String>> {
    let lower = key.to_ascii_lowercase();
    if let Some(name) = lower.strip_prefix(SESSION_TAG) {
        return tag_values(&claims.tags, name);
    }
    if lower == SESSION_TAG_KEYS {
        return Some(claims.tags.iter().map(|(key, _)| key.clone()).collect());
    }
    // Keys are the same in whatever case; a token has no two claims that differ in that alone.
    let name = claim_named(key, provider.bare())?;
    let mut all = claims.all.iter();
    let (_, value) = all.find(|(claim, _)| claim.eq_ignore_ascii_case(name))?;
    Some(match value {
        Value::Array(values) => values.iter().map(text_of_claim).collect(),
        one => vec![text_of_claim(one)],
    })
}

impl Asked<'_> {
    fn principal(&self) -> Option<&Principal> {
        match self.who {
            Who::Principal(principal) => Some(principal),
            Who::Nobody | Who::Service(_) | Who::Federated(..) => None,
        }
    }

    /// What a condition's key stands for in this request, which may be several values, and never none of them.
    fn values(&self, key: &str) -> Option<Vec<String>> {
        let lower = key.to_ascii_lowercase();
        let values = match self.who {
            // No provider is named so that its claims are taken for what this server knows.
            Who::Federated(provider, claims) if !is_known_key(key) => {
                values_of_token(key, provider, claims)
            }
            _ => match lower.strip_prefix(PRINCIPAL_TAG) {
                Some(name) => tag_values(&self.principal()?.tags, name),
                None => self.value(key).map(|value| vec![value]),
            },
        };
        values.filter(|values| !values.is_empty())
    }

    /// As [`Asked::values`], of keys that stand for one. A header is looked at only for keys that are defined as one:
    /// the client says what is in it.
    fn value(&self, key: &str) -> Option<String> {
        let lower = key.to_ascii_lowercase();
        let header = |name: &str| self.facts.headers.get(name).cloned();
        let query = |name: &str| self.facts.query.get(name).cloned();
        match lower.as_str() {
            "aws:sourceip" => self.facts.source.map(|source| source.to_string()),
            "aws:securetransport" => Some(self.facts.is_encrypted.to_string()),
            "aws:referer" => header("referer"),
            "aws:useragent" => header("user-agent"),
            "aws:username" => self.principal()?.user_name().map(str::to_owned),
            "aws:userid" => self.principal().map(Principal::user_id),
            "aws:principalarn" => self.principal().map(Principal::arn),
            "aws:principalaccount" => self.principal().map(|who| who.account.id.clone()),
            AUTHENTICATION => self.principal().map(|who| who.is_session.to_string()),
            "s3:prefix" | "s3:delimiter" | "s3:max-keys" => query(&lower[3..]),
            "s3:versionid" => query("versionId"),
            "s3:signatureversion" => header("authorization").map(|_| "AWS4-HMAC-SHA256".to_owned()),
            _ => {
                if let Some((_, value)) = self.facts.more.iter().find(|(name, _)| *name == lower) {
                    return Some(value.clone());
                }
                if let Some(name) = key.strip_prefix(EXISTING_TAG) {
                    let tag = self.tags.iter().find(|(key, _)| key == name);
                    return tag.map(|(_, value)| value.clone());
                }
                if let Some(name) = key.strip_prefix(REQUEST_TAG) {
                    let tags: Vec<(String, String)> =
                        serde_urlencoded::from_str(&header("x-amz-tagging")?).ok()?;
                    let tag = tags.into_iter().find(|(key, _)| key == name);
                    return tag.map(|(_, value)| value);
                }
                let name = lower.strip_prefix("s3:")?;
                let value = header(HEADER_KEYS.into_iter().find(|known| *known == name)?)?;
                Some(match name {
                    "x-amz-copy-source" => value.trim_start_matches('/').to_owned(),
                    _ => value,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Facts;
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text, fits) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abbcd", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*b*", "abc", true),
            ("a*b*c", "a-b-b-c", true),
            ("", "a", false),
        ] {
            assert_eq!(is_like(pattern, text), fits, "{pattern} {text}");
        }
        assert!(in_network("10.0.0.0/8", "10.1.2.3"));
        assert!(!in_network("10.0.0.0/8", "11.1.2.3"));
        assert!(in_network("127.0.0.1", "127.0.0.1"));
        assert!(in_network("::/0", "::1"));
        assert!(!in_network("10.0.0.0/8", "::1"));
    }

    /// `-H 'resourceaccount: 1234'` met a condition on the account.
    #[test]
    fn clients_do_not_say_what_keys_stand_for() {
        let facts = Facts {
            headers: [
                ("resourceaccount", "1"),
                ("prefix", "1"),
                ("x-amz-acl", "1"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
            ..Facts::default()
        };
        let asked = Asked {
            who: Who::Nobody,
            action: "s3:GetObject",
            resource: "arn:aws:s3:::b",
            facts: &facts,
            tags: &[],
        };
        assert_eq!(asked.value("s3:ResourceAccount"), None);
        assert_eq!(asked.value("s3:prefix"), None);
        assert_eq!(asked.value("s3:x-amz-acl").as_deref(), Some("1"));
        for key in HEADER_KEYS {
            assert!(is_known_key(&format!("s3:{key}")), "{key}");
        }
    }
}
