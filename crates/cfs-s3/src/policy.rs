//! Bucket policies: JSON documents that allow and deny (the policy language of IAM, version 2012-10-17).
//!
//! A document that uses what is not understood here is refused when it is put, so that none is ever applied in part.

use std::collections::HashMap;
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use crate::users::User;

/// Longest document, bytes; S3's own limit.
pub(crate) const POLICY_BYTES_MAX: usize = 20 << 10;
const ARN: &str = "arn:aws:s3:::";

/// Why a document is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PolicyError {
    #[error("the policy is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the policy is malformed: {0}")]
    Malformed(&'static str),
    #[error("the condition {0} is not understood")]
    Condition(String),
}

/// What a policy says to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allow,
    Deny,
    Silent,
}

/// What conditions can ask for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) headers: HashMap<String, String>,
    pub(crate) query: HashMap<String, String>,
    pub(crate) source: Option<IpAddr>,
    /// It came over TLS.
    pub(crate) is_encrypted: bool,
}

/// A request as policies see it.
pub(crate) struct Asked<'a> {
    pub(crate) user: Option<&'a User>,
    pub(crate) action: &'a str,
    pub(crate) bucket: &'a str,
    pub(crate) key: Option<&'a str>,
    pub(crate) facts: &'a Facts,
    /// Tags of the object that is there.
    pub(crate) tags: &'a [(String, String)],
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Document {
    #[serde(default)]
    version: Option<String>,
    #[serde(default)]
    #[expect(dead_code, reason = "a name for people")]
    id: Option<String>,
    statement: OneOrMany<StatementText>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct StatementText {
    #[serde(default)]
    #[expect(dead_code, reason = "a name for people")]
    sid: Option<String>,
    effect: String,
    #[serde(default)]
    principal: Option<Value>,
    #[serde(default)]
    not_principal: Option<Value>,
    #[serde(default)]
    action: Option<OneOrMany<String>>,
    #[serde(default)]
    not_action: Option<OneOrMany<String>>,
    #[serde(default)]
    resource: Option<OneOrMany<String>>,
    #[serde(default)]
    not_resource: Option<OneOrMany<String>>,
    #[serde(default)]
    condition: Option<HashMap<String, HashMap<String, Value>>>,
}

struct Statement {
    allows: bool,
    principals: Vec<String>,
    except_principals: bool,
    actions: Vec<String>,
    except_actions: bool,
    resources: Vec<String>,
    except_resources: bool,
    conditions: Vec<Condition>,
}

struct Condition {
    operator: Operator,
    if_exists: bool,
    key: String,
    values: Vec<String>,
}

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
fn is_like(pattern: &str, text: &str) -> bool {
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

fn texts(value: &Value) -> Option<Vec<String>> {
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

fn principals(value: &Value) -> Result<Vec<String>, PolicyError> {
    let malformed = PolicyError::Malformed("a principal is \"*\" or {\"AWS\": ...}");
    match value {
        Value::String(text) if text == "*" => Ok(vec!["*".to_owned()]),
        Value::Object(kinds) => match kinds.get("AWS") {
            Some(value) if kinds.len() == 1 => texts(value).ok_or(malformed),
            _ => Err(malformed),
        },
        _ => Err(malformed),
    }
}

impl Statement {
    fn parse(text: StatementText, bucket: &str) -> Result<Self, PolicyError> {
        let allows = match text.effect.as_str() {
            "Allow" => true,
            "Deny" => false,
            _ => return Err(PolicyError::Malformed("an effect is Allow or Deny")),
        };
        let (names, except_principals) = match (&text.principal, &text.not_principal) {
            (Some(value), None) => (principals(value)?, false),
            (None, Some(value)) => (principals(value)?, true),
            _ => return Err(PolicyError::Malformed("a statement has a principal")),
        };
        let (actions, except_actions) = match (text.action, text.not_action) {
            (Some(actions), None) => (actions.into_vec(), false),
            (None, Some(actions)) => (actions.into_vec(), true),
            _ => return Err(PolicyError::Malformed("a statement has actions")),
        };
        let (resources, except_resources) = match (text.resource, text.not_resource) {
            (Some(resources), None) => (resources.into_vec(), false),
            (None, Some(resources)) => (resources.into_vec(), true),
            _ => return Err(PolicyError::Malformed("a statement has resources")),
        };
        for action in &actions {
            if action != "*" && !action.to_ascii_lowercase().starts_with("s3:") {
                return Err(PolicyError::Malformed("an action is s3:NAME"));
            }
        }
        for resource in &resources {
            let name = match resource.strip_prefix("arn:aws:s3::") {
                // Some write the account, which there is none of.
                Some(rest) => rest.split_once(':').map(|(_, name)| name),
                None if resource == "*" => Some("*"),
                None => None,
            };
            let is_ours = name.is_some_and(|name| {
                let of = name.split('/').next().unwrap_or_default();
                is_like(of, bucket)
            });
            if !is_ours {
                return Err(PolicyError::Malformed("a resource is in the bucket"));
            }
        }
        let mut conditions = Vec::new();
        for (name, keys) in text.condition.unwrap_or_default() {
            let bare = name
                .strip_prefix("ForAnyValue:")
                .or_else(|| name.strip_prefix("ForAllValues:"))
                .unwrap_or(&name);
            let (bare, if_exists) = match bare.strip_suffix("IfExists") {
                Some(bare) => (bare, true),
                None => (bare, false),
            };
            let operator =
                Operator::of(bare).ok_or_else(|| PolicyError::Condition(name.clone()))?;
            for (key, value) in keys {
                if !is_known_key(&key) {
                    return Err(PolicyError::Condition(key));
                }
                let values = texts(&value)
                    .ok_or(PolicyError::Malformed("the value of a condition is text"))?;
                conditions.push(Condition {
                    operator,
                    if_exists,
                    key,
                    values,
                });
            }
        }
        Ok(Self {
            allows,
            principals: names,
            except_principals,
            actions,
            except_actions,
            resources,
            except_resources,
            conditions,
        })
    }

    fn applies(&self, asked: &Asked<'_>) -> bool {
        let is_meant = self
            .principals
            .iter()
            .any(|name| is_principal(name, asked.user));
        let is_action = self.actions.iter().any(|pattern| {
            is_like(
                &pattern.to_ascii_lowercase(),
                &asked.action.to_ascii_lowercase(),
            )
        });
        let resource = match asked.key {
            Some(key) => format!("{ARN}{}/{key}", asked.bucket),
            None => format!("{ARN}{}", asked.bucket),
        };
        let is_resource = self.resources.iter().any(|pattern| {
            // An account in between is passed over, as when it was parsed.
            let bare = pattern
                .strip_prefix("arn:aws:s3::")
                .and_then(|rest| rest.split_once(':'))
                .map_or_else(|| pattern.clone(), |(_, name)| format!("{ARN}{name}"));
            is_like(&bare, &resource)
        });
        is_meant != self.except_principals
            && is_action != self.except_actions
            && is_resource != self.except_resources
            && self
                .conditions
                .iter()
                .all(|condition| condition.holds(asked))
    }

    /// Whether it lets in whoever asks.
    fn is_public(&self) -> bool {
        let narrows = |condition: &Condition| {
            let key = condition.key.to_ascii_lowercase();
            let names = ["aws:sourceip", "aws:userid"];
            names.contains(&key.as_str())
                && !condition.operator.is_negative()
                && condition
                    .values
                    .iter()
                    .all(|value| value != "*" && value != "0.0.0.0/0" && value != "::/0")
        };
        let for_all = self.except_principals || self.principals.iter().any(|name| name == "*");
        self.allows && for_all && !self.conditions.iter().any(narrows)
    }
}

/// Whether the name of a principal means a user: an identifier, a name, or a resource name that ends in either.
fn is_principal(name: &str, user: Option<&User>) -> bool {
    if name == "*" {
        return true;
    }
    let Some(user) = user else {
        return false;
    };
    let last = name.rsplit([':', '/']).next().unwrap_or_default();
    let is_user = !name.starts_with("arn:") || name.contains(":user/");
    is_user && (last == user.id || last == user.name)
}

impl Condition {
    fn holds(&self, asked: &Asked<'_>) -> bool {
        let found = asked.value(&self.key);
        if self.operator == Operator::Null {
            let is_absent = found.is_none().to_string();
            return self
                .values
                .iter()
                .any(|value| value.eq_ignore_ascii_case(&is_absent));
        }
        match found {
            None => self.if_exists || self.operator.is_negative(),
            Some(found) => {
                let fits = self
                    .values
                    .iter()
                    .any(|value| self.operator.fits(value, &found));
                fits != self.operator.is_negative()
            }
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
const KEYS: [&str; 11] = [
    "aws:sourceip",
    "aws:securetransport",
    "aws:referer",
    "aws:useragent",
    "aws:username",
    "aws:userid",
    "s3:prefix",
    "s3:delimiter",
    "s3:max-keys",
    "s3:versionid",
    "s3:signatureversion",
];
/// What keys begin with that go on with the key of a tag.
const EXISTING_TAG: &str = "s3:ExistingObjectTag/";
const REQUEST_TAG: &str = "s3:RequestObjectTag/";

/// Whether [`Asked::value`] knows what a condition's key stands for.
fn is_known_key(key: &str) -> bool {
    let lower = key.to_ascii_lowercase();
    let is_tag = [EXISTING_TAG, REQUEST_TAG]
        .iter()
        .any(|it| key.starts_with(it));
    let header = lower.strip_prefix("s3:").unwrap_or_default();
    is_tag || KEYS.contains(&lower.as_str()) || HEADER_KEYS.contains(&header)
}

impl Asked<'_> {
    /// What a condition's key stands for in this request. A header is looked at only for keys that are defined as one:
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
            "aws:username" => self.user.map(|user| user.name.clone()),
            "aws:userid" => self.user.map(|user| user.id.clone()),
            "s3:prefix" | "s3:delimiter" | "s3:max-keys" => query(&lower[3..]),
            "s3:versionid" => query("versionId"),
            "s3:signatureversion" => header("authorization").map(|_| "AWS4-HMAC-SHA256".to_owned()),
            _ => {
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

/// A policy.
pub(crate) struct Policy {
    statements: Vec<Statement>,
    /// Some condition asks for the tags of an object.
    pub(crate) asks_for_tags: bool,
}

impl Policy {
    /// The policy that a document states for a bucket.
    ///
    /// # Errors
    /// See [`PolicyError`].
    pub(crate) fn parse(text: &str, bucket: &str) -> Result<Self, PolicyError> {
        let document: Document = serde_json::from_str(text)?;
        if let Some(version) = &document.version
            && !["2012-10-17", "2008-10-17"].contains(&version.as_str())
        {
            return Err(PolicyError::Malformed("there is no such version"));
        }
        let statements = document
            .statement
            .into_vec()
            .into_iter()
            .map(|text| Statement::parse(text, bucket))
            .collect::<Result<Vec<_>, _>>()?;
        let asks_for_tags = statements
            .iter()
            .flat_map(|statement| &statement.conditions)
            .any(|condition| condition.key.starts_with(EXISTING_TAG));
        Ok(Self {
            statements,
            asks_for_tags,
        })
    }

    /// What it says to a request. A denial counts more than any permission.
    pub(crate) fn decide(&self, asked: &Asked<'_>) -> Verdict {
        let mut verdict = Verdict::Silent;
        for statement in self
            .statements
            .iter()
            .filter(|statement| statement.applies(asked))
        {
            match statement.allows {
                true => verdict = Verdict::Allow,
                false => return Verdict::Deny,
            }
        }
        verdict
    }

    /// Whether it lets in whoever asks.
    pub(crate) fn is_public(&self) -> bool {
        self.statements.iter().any(Statement::is_public)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> User {
        User {
            name: name.to_owned(),
            id: format!("id-of-{name}"),
            keys: Vec::new(),
        }
    }

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

    #[test]
    fn a_denial_counts_more() {
        let text = r#"{"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam:::user/alice"}, "Action": "s3:Get*", "Resource": "arn:aws:s3:::b/*"},
            {"Effect": "Deny", "Principal": "*", "Action": "s3:GetObject", "Resource": ["arn:aws:s3:::b/secret/*"]},
            {"Effect": "Allow", "Principal": "*", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::b",
             "Condition": {"StringLike": {"s3:prefix": "public/*"}, "IpAddress": {"aws:SourceIp": "127.0.0.0/8"}}}]}"#;
        let policy = Policy::parse(text, "b").expect("it is right");
        let (alice, bob) = (user("alice"), user("bob"));
        let facts = Facts {
            query: HashMap::from([("prefix".to_owned(), "public/x".to_owned())]),
            source: Some("127.0.0.1".parse().expect("an address")),
            ..Facts::default()
        };
        let decide = |user, action, key| {
            policy.decide(&Asked {
                user,
                action,
                bucket: "b",
                key,
                facts: &facts,
                tags: &[],
            })
        };
        assert_eq!(
            decide(Some(&alice), "s3:GetObject", Some("k")),
            Verdict::Allow
        );
        assert_eq!(
            decide(Some(&bob), "s3:GetObject", Some("k")),
            Verdict::Silent
        );
        assert_eq!(
            decide(Some(&alice), "s3:GetObject", Some("secret/k")),
            Verdict::Deny
        );
        assert_eq!(decide(None, "s3:ListBucket", None), Verdict::Allow);
        assert_eq!(decide(None, "s3:PutObject", Some("k")), Verdict::Silent);
        assert!(!policy.is_public(), "the address narrows it");
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
            user: None,
            action: "s3:GetObject",
            bucket: "b",
            key: None,
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

    #[test]
    fn what_is_not_understood_is_refused() {
        let statement = |part: &str| {
            format!(
                r#"{{"Statement": {{"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::b/*"{part}}}}}"#
            )
        };
        assert!(Policy::parse(&statement(""), "b").is_ok());
        assert!(Policy::parse(&statement(""), "c").is_err());
        for part in [
            r#", "Condition": {"DateBefore": {"s3:x": "1"}}"#,
            r#", "Condition": {"StringEquals": {"ldap:x": "1"}}"#,
            r#", "Condition": {"StringEquals": {"s3:ResourceAccount": "1"}}"#,
            r#", "Condition": {"StringNotEquals": {"aws:PrincipalOrgID": "1"}}"#,
            r#", "Condition": {"Null": {"s3:x-amz-unheard-of": "true"}}"#,
            r#", "Unknown": 1"#,
            r#", "NotAction": "s3:PutObject""#,
        ] {
            assert!(Policy::parse(&statement(part), "b").is_err(), "{part}");
        }
        assert!(Policy::parse("[]", "b").is_err());
        assert!(Policy::parse("{", "b").is_err());
    }
}
