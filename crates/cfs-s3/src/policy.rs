//! Policies: JSON documents that allow and deny (the policy language of IAM, version 2012-10-17).
//!
//! They are of buckets, of who asks, or of roles, to say who may take them on. A document that uses what is not understood
//! here is refused when it is put, so that none is ever applied in part.

mod conditions;

use std::collections::HashMap;
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use self::conditions::{Condition, is_like, texts};
use crate::issuers::Claims;
use crate::principal::Principal;
use crate::users::{Provider, provider_named};

/// Longest document, bytes; S3's own limit.
pub(crate) const POLICY_BYTES_MAX: usize = 20 << 10;
/// What the names of buckets and objects begin with as resources.
pub(crate) const ARN: &str = "arn:aws:s3:::";

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

/// What a document is of.
#[derive(Clone, Copy)]
pub(crate) enum Scope<'a> {
    /// A bucket of this name: statements have principals, and resources in the bucket.
    Bucket(&'a str),
    /// Who asks: statements have resources and no principals.
    Identity,
    /// A role: statements have principals and no resources.
    Trust,
}

/// Who asks, as policies see it.
#[derive(Clone, Copy)]
pub(crate) enum Who<'a> {
    /// Nobody has signed.
    Nobody,
    Principal(&'a Principal),
    /// Who has shown a token of an identity provider, and what it says.
    Federated(&'a Provider, &'a Claims),
    /// A part of this server that works for its users, by the name that S3 gives to such.
    Service(&'a str),
}

/// What conditions can ask for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) headers: HashMap<String, String>,
    pub(crate) query: HashMap<String, String>,
    pub(crate) source: Option<IpAddr>,
    /// Nobody on the way can read it.
    pub(crate) is_encrypted: bool,
    /// Other keys of conditions, in lower case, and their values.
    pub(crate) more: Vec<(&'static str, String)>,
}

/// A request as policies see it.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) who: Who<'a>,
    pub(crate) action: &'a str,
    /// The resource's name.
    pub(crate) resource: &'a str,
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

/// A name of who is meant.
enum Named {
    /// Of a user, an account or a role; or `*`.
    Aws(String),
    /// Of a part of the server.
    Service(String),
    /// Of an identity provider.
    Federated(String),
}

/// How a name means who asks; what is more of a name comes later.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Meant {
    Not,
    /// As everybody.
    AsAnybody,
    /// As one of an account.
    AsAccount,
    Itself,
}

struct Statement {
    allows: bool,
    /// None: it is of who asks.
    principals: Option<Vec<Named>>,
    except_principals: bool,
    actions: Vec<String>,
    except_actions: bool,
    /// None: what the document is of, and what is in that.
    resources: Option<Vec<String>>,
    except_resources: bool,
    conditions: Vec<Condition>,
}

fn principals(value: &Value, scope: Scope<'_>) -> Result<Vec<Named>, PolicyError> {
    let malformed = || {
        PolicyError::Malformed(match scope {
            Scope::Trust => {
                "a principal is \"*\", {\"AWS\": ...}, {\"Service\": ...} or {\"Federated\": \"arn:aws:iam::...:oidc-provider/...\"}"
            }
            _ => "a principal is \"*\", {\"AWS\": ...} or {\"Service\": ...}",
        })
    };
    let kinds = match value {
        Value::String(text) if text == "*" => return Ok(vec![Named::Aws(text.clone())]),
        Value::Object(kinds) if !kinds.is_empty() => kinds,
        _ => return Err(malformed()),
    };
    let mut named = Vec::new();
    for (kind, names) in kinds {
        let name: fn(String) -> Named = match kind.as_str() {
            "AWS" => Named::Aws,
            "Service" => Named::Service,
            "Federated" if matches!(scope, Scope::Trust) => Named::Federated,
            _ => return Err(malformed()),
        };
        let names = texts(names).ok_or_else(malformed)?;
        let is_provider = |name: &String| provider_named(name).is_some();
        if kind == "Federated" && !names.iter().all(is_provider) {
            return Err(malformed());
        }
        named.extend(names.into_iter().map(name));
    }
    Ok(named)
}

impl Named {
    fn means(&self, who: Who<'_>) -> Meant {
        match (self, who) {
            (Self::Aws(name), Who::Nobody | Who::Principal(_) | Who::Federated(..))
                if name == "*" =>
            {
                Meant::AsAnybody
            }
            (Self::Aws(name), Who::Principal(principal)) => {
                if principal.is_named(name) {
                    Meant::Itself
                } else if principal.account_is_named(name) {
                    Meant::AsAccount
                } else {
                    Meant::Not
                }
            }
            (Self::Service(name), Who::Service(service)) if name == service => Meant::Itself,
            (Self::Federated(name), Who::Federated(provider, _)) if *name == provider.arn() => {
                Meant::Itself
            }
            _ => Meant::Not,
        }
    }
}

/// One of two fields that exclude each other, and whether it is the second.
fn either<T>(one: Option<T>, other: Option<T>) -> Option<(T, bool)> {
    match (one, other) {
        (Some(one), None) => Some((one, false)),
        (None, Some(other)) => Some((other, true)),
        _ => None,
    }
}

impl Statement {
    fn parse(text: StatementText, scope: Scope<'_>) -> Result<Self, PolicyError> {
        let malformed = PolicyError::Malformed;
        let allows = match text.effect.as_str() {
            "Allow" => true,
            "Deny" => false,
            _ => return Err(malformed("an effect is Allow or Deny")),
        };
        let (names, except_principals) = match (scope, text.principal, text.not_principal) {
            // Whose policy it is, is who is meant: "*" adds nothing to that, and any other name would.
            (Scope::Identity, None, None) => (None, false),
            (Scope::Identity, Some(Value::String(name)), None) if name == "*" => (None, false),
            (Scope::Identity, _, _) => {
                return Err(malformed("who is meant is whose policy it is"));
            }
            (_, _, Some(_)) if allows => {
                return Err(malformed("NotPrincipal is for denials"));
            }
            (_, one, other) => {
                let (value, except) =
                    either(one, other).ok_or(malformed("a statement has a principal"))?;
                (Some(principals(&value, scope)?), except)
            }
        };
        let (actions, except_actions) =
            either(text.action, text.not_action).ok_or(malformed("a statement has actions"))?;
        let actions = actions.into_vec();
        for action in &actions {
            let service = action.split_once(':').map(|(service, _)| service);
            let is_right = match (scope, service) {
                (_, None) => action == "*",
                (Scope::Bucket(_), Some(service)) => service.eq_ignore_ascii_case("s3"),
                (Scope::Trust, Some(service)) => service.eq_ignore_ascii_case("sts"),
                (Scope::Identity, Some(service)) => !service.is_empty(),
            };
            if !is_right {
                return Err(malformed("an action is SERVICE:NAME, and of this service"));
            }
        }
        if text.resource.is_some() && text.not_resource.is_some() {
            return Err(malformed(
                "a statement has resources, or has those excepted",
            ));
        }
        let resources = either(text.resource, text.not_resource);
        let (resources, except_resources) = match (scope, resources) {
            (Scope::Trust, None) => (None, false),
            (Scope::Trust, Some(_)) => {
                return Err(malformed("what is meant is the role"));
            }
            // Of a bucket's policy, what is meant is the bucket and what is in it.
            (Scope::Bucket(_), None) => (None, false),
            (Scope::Identity, None) => return Err(malformed("a statement has resources")),
            (_, Some((resources, except))) => (Some(resources.into_vec()), except),
        };
        for resource in resources.iter().flatten() {
            let is_right = match scope {
                Scope::Bucket(bucket) => is_in(resource, bucket),
                _ => resource == "*" || resource.starts_with("arn:"),
            };
            if !is_right {
                return Err(malformed("a resource is arn:..., and in the bucket"));
            }
        }
        let providers: Vec<&str> = names
            .iter()
            .flatten()
            .filter_map(|name| match name {
                Named::Federated(arn) => provider_named(arn),
                Named::Aws(_) | Named::Service(_) => None,
            })
            .collect();
        let of_trust = matches!(scope, Scope::Trust).then_some(providers.as_slice());
        let mut conditions = Vec::new();
        for (name, keys) in text.condition.unwrap_or_default() {
            for (key, value) in keys {
                conditions.push(Condition::parse(&name, key, &value, of_trust)?);
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

    /// How it means who asks, and what.
    fn applies(&self, asked: &Asked<'_>) -> Meant {
        let is_action = self.actions.iter().any(|pattern| {
            is_like(
                &pattern.to_ascii_lowercase(),
                &asked.action.to_ascii_lowercase(),
            )
        });
        let is_resource = self.resources.as_ref().is_none_or(|patterns| {
            let fits = |pattern: &String| {
                // An account in between is passed over, as when it was parsed.
                let bare = pattern
                    .strip_prefix("arn:aws:s3::")
                    .and_then(|rest| rest.split_once(':'))
                    .map_or_else(|| pattern.clone(), |(_, name)| format!("{ARN}{name}"));
                is_like(&bare, asked.resource)
            };
            patterns.iter().any(fits) != self.except_resources
        });
        let holds = |condition: &Condition| condition.holds(asked);
        if is_action == self.except_actions || !is_resource || !self.conditions.iter().all(holds) {
            return Meant::Not;
        }
        let Some(names) = &self.principals else {
            return Meant::Itself;
        };
        let meant = names.iter().map(|name| name.means(asked.who)).max();
        match (meant.unwrap_or(Meant::Not), self.except_principals) {
            (meant, false) => meant,
            // Who is in an account that is excepted is excepted too.
            (Meant::Not, true) => Meant::AsAnybody,
            (_, true) => Meant::Not,
        }
    }

    /// Whether it lets in whoever asks.
    fn is_public(&self) -> bool {
        let narrows = |condition: &Condition| {
            let key = condition.key.to_ascii_lowercase();
            let names = [
                "aws:sourceip",
                "aws:userid",
                "aws:principalarn",
                "aws:principalaccount",
                "aws:sourcearn",
                "aws:sourceaccount",
            ];
            names.contains(&key.as_str())
                && condition.needs_value()
                && condition
                    .values
                    .iter()
                    .all(|value| value != "*" && value != "0.0.0.0/0" && value != "::/0")
        };
        let is_all = |name: &Named| matches!(name, Named::Aws(name) if name == "*");
        let names = self.principals.as_deref().unwrap_or_default();
        let for_all = self.except_principals || names.iter().any(is_all);
        self.allows && for_all && !self.conditions.iter().any(narrows)
    }
}

/// Whether a resource is a bucket, or in it.
fn is_in(resource: &str, bucket: &str) -> bool {
    // Some write the account, which buckets are not named by.
    let rest = resource.strip_prefix("arn:aws:s3::");
    let name = rest.and_then(|rest| rest.split_once(':'));
    name.is_some_and(|(_, name)| is_like(name.split('/').next().unwrap_or_default(), bucket))
}

/// A policy.
pub(crate) struct Policy {
    statements: Vec<Statement>,
    /// Some condition asks for the tags of an object.
    pub(crate) asks_for_tags: bool,
}

/// What a policy says, and how it means who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) verdict: Verdict,
    /// It allows the account of who asks, and not itself.
    pub(crate) is_for_account: bool,
    /// It allows everybody, and not who asks by name.
    pub(crate) is_for_all: bool,
}

impl Policy {
    /// The policy that a document states.
    ///
    /// # Errors
    /// See [`PolicyError`].
    pub(crate) fn parse(text: &str, scope: Scope<'_>) -> Result<Self, PolicyError> {
        let document: Document = serde_json::from_str(text)?;
        if let Some(version) = &document.version
            && !["2012-10-17", "2008-10-17"].contains(&version.as_str())
        {
            return Err(PolicyError::Malformed("there is no such version"));
        }
        let mut names = Vec::new();
        let mut statements = Vec::new();
        for text in document.statement.into_vec() {
            // Among those of buckets some have one name several times, as S3 lets them.
            if !matches!(scope, Scope::Bucket(_))
                && let Some(name) = &text.sid
            {
                if names.contains(name) {
                    return Err(PolicyError::Malformed("two statements have one Sid"));
                }
                names.push(name.clone());
            }
            statements.push(Statement::parse(text, scope)?);
        }
        let asks_for_tags = statements
            .iter()
            .flat_map(|statement| &statement.conditions)
            .any(Condition::asks_for_tags);
        Ok(Self {
            statements,
            asks_for_tags,
        })
    }

    /// Whether each denial means somebody, as far as names of users, accounts and roles go; one that means nobody denies nothing.
    pub(crate) fn denies_somebody(&self, is_somebody: &dyn Fn(&str) -> bool) -> bool {
        let mut denials = self.statements.iter().filter(|it| !it.allows);
        denials.all(|statement| {
            let names = statement.principals.as_deref();
            names.is_none_or(|names| {
                !names.is_empty()
                    && names.iter().all(|name| match name {
                        Named::Aws(name) => is_somebody(name),
                        Named::Service(name) | Named::Federated(name) => !name.is_empty(),
                    })
            })
        })
    }

    /// A policy that denies everything.
    pub(crate) fn deny_all() -> Self {
        let text = r#"{"Statement": {"Effect": "Deny", "Action": "*", "Resource": "*"}}"#;
        Self::parse(text, Scope::Identity).expect("it is right")
    }

    /// What it says to a request. A denial counts more than any permission.
    pub(crate) fn decide(&self, asked: &Asked<'_>) -> Decision {
        let mut decision = Decision {
            verdict: Verdict::Silent,
            is_for_account: true,
            is_for_all: true,
        };
        for statement in &self.statements {
            let meant = statement.applies(asked);
            if meant == Meant::Not {
                continue;
            }
            decision.is_for_account &= meant == Meant::AsAccount;
            decision.is_for_all &= meant == Meant::AsAnybody;
            if !statement.allows {
                decision.verdict = Verdict::Deny;
                return decision;
            }
            decision.verdict = Verdict::Allow;
        }
        decision
    }

    /// Whether it lets in whoever asks.
    pub(crate) fn is_public(&self) -> bool {
        self.statements.iter().any(Statement::is_public)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_counts_more() {
        let text = r#"{"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam:::user/alice"}, "Action": "s3:Get*", "Resource": "arn:aws:s3:::b/*"},
            {"Effect": "Deny", "Principal": "*", "Action": "s3:GetObject", "Resource": ["arn:aws:s3:::b/secret/*"]},
            {"Effect": "Allow", "Principal": "*", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::b",
             "Condition": {"StringLike": {"s3:prefix": "public/*"}, "IpAddress": {"aws:SourceIp": "127.0.0.0/8"}}}]}"#;
        let policy = Policy::parse(text, Scope::Bucket("b")).expect("it is right");
        let (alice, bob) = (
            Principal::for_tests("alice", None),
            Principal::for_tests("bob", None),
        );
        // Of the same name, in the account of another.
        let other = Principal::for_tests("carol", Some("alice"));
        let facts = Facts {
            query: HashMap::from([("prefix".to_owned(), "public/x".to_owned())]),
            source: Some("127.0.0.1".parse().expect("an address")),
            ..Facts::default()
        };
        let decide = |who, action, resource| {
            let decided = policy.decide(&Asked {
                who,
                action,
                resource,
                facts: &facts,
                tags: &[],
            });
            decided.verdict
        };
        let one = "arn:aws:s3:::b/k";
        for (who, wanted) in [
            (&alice, Verdict::Allow),
            (&bob, Verdict::Silent),
            (&other, Verdict::Silent),
        ] {
            assert_eq!(decide(Who::Principal(who), "s3:GetObject", one), wanted);
        }
        assert_eq!(
            decide(
                Who::Principal(&alice),
                "s3:GetObject",
                "arn:aws:s3:::b/secret/k"
            ),
            Verdict::Deny
        );
        assert_eq!(
            decide(Who::Nobody, "s3:ListBucket", "arn:aws:s3:::b"),
            Verdict::Allow
        );
        assert_eq!(decide(Who::Nobody, "s3:PutObject", one), Verdict::Silent);
        assert!(!policy.is_public(), "the address narrows it");
    }

    /// Where nobody has signed, a key of who asks stands for nothing: what holds then too narrows nothing.
    #[test]
    fn what_holds_without_a_value_lets_everybody_in() {
        for (operator, value, is_public) in [
            ("StringEquals", "arn:aws:iam:::user/alice", false),
            (
                "ForAnyValue:StringEquals",
                "arn:aws:iam:::user/alice",
                false,
            ),
            (
                "ForAllValues:StringEquals",
                "arn:aws:iam:::user/alice",
                true,
            ),
            ("StringEqualsIfExists", "arn:aws:iam:::user/alice", true),
            ("StringNotEquals", "arn:aws:iam:::user/alice", true),
            ("Null", "true", true),
        ] {
            let text = format!(
                r#"{{"Statement": {{"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::b/*",
                    "Condition": {{"{operator}": {{"aws:PrincipalArn": "{value}"}}}}}}}}"#
            );
            let policy = Policy::parse(&text, Scope::Bucket("b")).expect("it is right");
            let decided = policy.decide(&Asked {
                who: Who::Nobody,
                action: "s3:GetObject",
                resource: "arn:aws:s3:::b/k",
                facts: &Facts::default(),
                tags: &[],
            });
            assert_eq!(decided.verdict == Verdict::Allow, is_public, "{operator}");
            assert_eq!(policy.is_public(), is_public, "{operator}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let statement = |part: &str| {
            format!(
                r#"{{"Statement": {{"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::b/*"{part}}}}}"#
            )
        };
        let parse = |text: &str| Policy::parse(text, Scope::Bucket("b"));
        assert!(parse(&statement("")).is_ok());
        assert!(Policy::parse(&statement(""), Scope::Bucket("c")).is_err());
        for part in [
            r#", "Condition": {"DateBefore": {"s3:x": "1"}}"#,
            r#", "Condition": {"StringEquals": {"ldap:x": "1"}}"#,
            r#", "Condition": {"StringEquals": {"s3:ResourceAccount": "1"}}"#,
            r#", "Condition": {"StringNotEquals": {"aws:PrincipalOrgID": "1"}}"#,
            r#", "Condition": {"Null": {"s3:x-amz-unheard-of": "true"}}"#,
            r#", "Unknown": 1"#,
            r#", "NotAction": "s3:PutObject""#,
        ] {
            assert!(parse(&statement(part)).is_err(), "{part}");
        }
        assert!(parse("[]").is_err());
        assert!(parse("{").is_err());
    }

    #[test]
    fn each_kind_has_its_parts() {
        let is_right = |scope: Scope<'_>, part: &str| {
            let text = format!(r#"{{"Statement": {{"Effect": "Allow", {part}}}}}"#);
            Policy::parse(&text, scope).is_ok()
        };
        let (action, resource) = (r#""Action": "s3:*""#, r#""Resource": "*""#);
        let identity = format!("{action}, {resource}");
        assert!(is_right(Scope::Identity, &identity));
        assert!(!is_right(Scope::Identity, action));
        assert!(!is_right(Scope::Bucket("b"), &identity));
        let named = format!(r#"{identity}, "Principal": {{"AWS": "x"}}"#);
        assert!(!is_right(Scope::Identity, &named));
        assert!(!is_right(Scope::Bucket("b"), &named));
        let within = named.replace(r#""Resource": "*""#, r#""Resource": "arn:aws:s3:::b/*""#);
        assert!(is_right(Scope::Bucket("b"), &within));
        let trust = r#""Action": "sts:AssumeRole", "Principal": {"AWS": "x"}"#;
        assert!(is_right(Scope::Trust, trust));
        assert!(!is_right(Scope::Trust, &format!("{trust}, {resource}")));
        assert!(!is_right(Scope::Trust, &named));
    }
}
