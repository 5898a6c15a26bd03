//! Requests that policies are asked about.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::json;

use crate::issuers::Claims;
use crate::policy::{Asked, Facts, Policy, Who};
use crate::principal::{Kind, Principal};
use crate::users::{Provider, Role, User};

/// A moment, in milliseconds since 1970.
pub(super) const NOW_MS: u64 = 1_790_000_000_000;

/// A user at the head of its account, or in the account of another.
fn user(name: &str, account: &str) -> Arc<User> {
    Arc::new(User {
        name: name.to_owned(),
        id: format!("id-of-{name}"),
        account: account.to_owned(),
        path: "/".to_owned(),
        ..User::default()
    })
}

fn role() -> Arc<Role> {
    let role = json!({
        "name": "reader", "id": "id-of-reader", "account": "id-of-alice", "path": "/", "created": 0, "trust": "",
        "session_seconds_max": 3600
    });
    Arc::new(serde_json::from_value(role).expect("a role"))
}

fn principal(kind: Kind) -> Principal {
    Principal {
        account: user("alice", ""),
        kind,
        policies: Vec::new(),
        limit: None,
        is_session: true,
        tags: vec![("team".to_owned(), vec!["a".to_owned(), "b".to_owned()])],
    }
}

fn provider() -> Provider {
    let provider = json!({
        "id": "id", "account": "id-of-alice", "url": "https://issuer.example/path", "created": 0
    });
    serde_json::from_value(provider).expect("a provider")
}

fn claims() -> Claims {
    let claims = json!({"sub": "subject", "aud": ["one", "two"], "number": 1, "none": null});
    Claims {
        issuer: "https://issuer.example/path".to_owned(),
        subject: "subject".to_owned(),
        audiences: vec!["one".to_owned(), "two".to_owned()],
        usual_audiences: Vec::new(),
        tags: vec![("team".to_owned(), vec!["a".to_owned()])],
        all: claims.as_object().expect("it is one").clone(),
    }
}

fn facts() -> Facts {
    let text = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    Facts {
        headers: [
            ("x-amz-acl", "public-read"),
            ("x-amz-copy-source", "/bucket/key"),
            ("x-amz-tagging", "key=value&other=%C3%A4"),
            ("authorization", "AWS4-HMAC-SHA256"),
            ("referer", "https://page.example/"),
        ]
        .map(text)
        .into(),
        query: HashMap::from([
            text(("prefix", "public/")),
            text(("max-keys", "10")),
            text(("versionId", "null")),
        ]),
        source: "2001:db8::1".parse().ok(),
        is_encrypted: true,
        more: vec![("aws:sourceaccount", "id-of-alice".to_owned())],
    }
}

fn people() -> [Principal; 3] {
    [
        principal(Kind::Head),
        principal(Kind::Member(user("bob", "id-of-alice"))),
        principal(Kind::Role(role(), "session".to_owned())),
    ]
}

/// Has somebody with these policies of its own decide about requests.
pub(super) fn ask_bound(policies: Vec<Policy>, limit: Option<Policy>) {
    let [_, mut member, _] = people();
    member.policies = policies;
    member.limit = limit;
    member.asks_for_tags();
    each_of(&[Who::Principal(&member)], |asked| {
        member.decide(&asked);
    });
}

/// Asks a policy about requests of everybody.
pub(super) fn ask_policy(policy: &Policy) {
    let people = people();
    let (provider, claims) = (provider(), claims());
    let mut who: Vec<_> = people.iter().map(Who::Principal).collect();
    who.extend([
        Who::Nobody,
        Who::Federated(&provider, &claims),
        Who::Service("logging.s3.amazonaws.com"),
    ]);
    each_of(&who, |asked| {
        policy.decide(&asked);
    });
}

fn each_of(who: &[Who<'_>], decide: impl Fn(Asked<'_>)) {
    let tags = [("key".to_owned(), "value".to_owned())];
    let long = format!("arn:aws:s3:::bucket/{}", "a".repeat(1000));
    let nothing = Facts::default();
    let facts = [&facts(), &nothing];
    for who in who {
        for (action, resource) in [
            ("s3:GetObject", long.as_str()),
            ("s3:ListBucket", "arn:aws:s3:::bucket"),
            (
                "sts:AssumeRoleWithWebIdentity",
                "arn:aws:iam::id-of-alice:role/reader",
            ),
        ] {
            for facts in facts {
                decide(Asked {
                    who: *who,
                    action,
                    resource,
                    facts,
                    tags: &tags,
                });
            }
        }
    }
}
