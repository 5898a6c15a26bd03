//! Of users, groups, roles, and who vouches for others.

use serde_json::json;

use super::asks::{NOW_MS, ask_bound, ask_policy};
use super::{decode, join, split};
use crate::iam::shown::Shown;
use crate::issuers::{Issuer, Unverified, claims};
use crate::policy::{Policy, Scope};
use crate::records::encode;
use crate::users::{Entity, Group, Policies, Provider, Role, User};

const POLICY: &str = r#"{"Version": "2012-10-17", "Statement": [{"Sid": "a", "Effect": "Allow", "Action": ["s3:Get*", "iam:*"],
    "Resource": "arn:aws:s3:::bucket/*", "Condition": {"StringLikeIfExists": {"aws:PrincipalTag/team": "a*"}}},
    {"Effect": "Deny", "NotAction": "s3:*", "NotResource": "*", "Condition": {"Bool": {"sts:authentication": true}}}]}"#;
const TRUST: &str = r#"{"Statement": {"Effect": "Allow", "Principal": {"AWS": ["id-of-bob", "arn:aws:iam::id-of-alice:root"],
    "Federated": "arn:aws:iam::id-of-alice:oidc-provider/issuer.example/path"}, "Action": "sts:*",
    "Condition": {"ForAnyValue:StringEquals": {"issuer.example/path:aud": ["one"], "aws:TagKeys": "team"}}}}"#;

/// What all of these are known by.
fn entity(entity: &impl Entity) {
    let _ = (entity.row(), entity.place());
}

fn policies(policies: &Policies) {
    let limit = policies.parsed().pop();
    ask_bound(policies.parsed(), limit);
}

pub(super) fn user_seeds() -> Vec<Vec<u8>> {
    let head = json!({
        "name": "alice", "id": "id-of-alice", "email": "alice@example.org", "created": 1_790_000_000, "domain": 2,
        "keys": [{"access_key_id": "AKALICE", "secret_access_key": "secret", "is_inactive": true, "created": 7}]
    });
    let member = json!({
        "name": "bob", "id": "id-of-bob", "keys": [], "account": "id-of-alice", "path": "/staff/", "created": 7,
        "policies": {"inline": {"own": POLICY}, "attached": ["arn:aws:iam::aws:policy/ReadOnlyAccess"]}
    });
    vec![encode(&head), encode(&member)]
}

pub(super) fn user(record: &[u8]) -> bool {
    let Some(user) = decode::<User>(record) else {
        return false;
    };
    entity(&user);
    user.is_named_by_root("arn:aws:iam:::user/staff/bob");
    policies(&user.policies);
    let mut shown = Shown::default();
    shown.user(&user);
    shown.text();
    true
}

pub(super) fn group_seeds() -> Vec<Vec<u8>> {
    let group = json!({
        "name": "Readers", "id": "id-of-readers", "account": "id-of-alice", "path": "/", "created": 7,
        "members": ["id-of-bob"], "policies": {"inline": {"own": POLICY}}
    });
    vec![encode(&group)]
}

pub(super) fn group(record: &[u8]) -> bool {
    let Some(group) = decode::<Group>(record) else {
        return false;
    };
    entity(&group);
    policies(&group.policies);
    let mut shown = Shown::default();
    shown.group(&group);
    shown.text();
    true
}

pub(super) fn role_seeds() -> Vec<Vec<u8>> {
    let role = json!({
        "name": "reader", "id": "id-of-reader", "account": "id-of-alice", "path": "/", "created": 7, "trust": TRUST,
        "description": "who reads", "session_seconds_max": 43_200
    });
    vec![encode(&role)]
}

pub(super) fn role(record: &[u8]) -> bool {
    let Some(role) = decode::<Role>(record) else {
        return false;
    };
    entity(&role);
    role.is_taken_on_as("arn:aws:sts::id-of-alice:assumed-role/reader/session");
    policies(&role.policies);
    if let Ok(trust) = Policy::parse(&role.trust, Scope::Trust) {
        ask_policy(&trust);
    }
    let mut shown = Shown::default();
    shown.role(&role);
    shown.text();
    true
}

pub(super) fn provider_seeds() -> Vec<Vec<u8>> {
    let provider = json!({
        "id": "id", "account": "id-of-alice", "url": "https://issuer.example/path", "created": 7,
        "client_ids": ["one"], "thumbprints": ["990f4193972f2becf12ddeda5237f9c952f20d9e"]
    });
    vec![encode(&provider)]
}

pub(super) fn provider(record: &[u8]) -> bool {
    let Some(provider) = decode::<Provider>(record) else {
        return false;
    };
    entity(&provider);
    let _ = provider.arn();
    true
}

/// The token of RFC 7515, appendix A.3, and a set of claims.
pub(super) fn issuer_seeds() -> Vec<Vec<u8>> {
    let issuer = json!({
        "url": "https://issuer.example/path", "audiences": ["one"],
        "keys": [
            {"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
             "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0", "alg": "ES256"}
        ]
    });
    let token = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.\
         DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    let claims = json!({
        "iss": "https://issuer.example/path", "sub": "subject", "aud": ["one"], "exp": 9e9, "nbf": 1, "iat": 1.5,
        "https://aws.amazon.com/tags": {"principal_tags": {"team": ["a", "b"]}}
    });
    let rest = join(token.as_bytes(), &encode(&claims));
    vec![join(&encode(&issuer), &rest)]
}

/// An issuer, a token, and claims as they are behind the signature of one.
pub(super) fn issuer(input: &[u8]) -> bool {
    let (record, rest) = split(input);
    let (token, payload) = split(rest);
    let Some(issuer) = decode::<Issuer>(record) else {
        return false;
    };
    if let Ok(token) = str::from_utf8(token)
        && let Ok(unverified) = Unverified::parse(token)
    {
        let _ = unverified.verified(&issuer, 0);
    }
    let Ok(payload) = serde_json::from_slice(payload) else {
        return false;
    };
    claims(payload, &issuer, NOW_MS / 1000).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuers::TokenError;

    /// Verifying is reached: what comes first behind it is what refuses the token.
    #[test]
    fn the_token_is_signed() {
        let seed = issuer_seeds().remove(0);
        let (record, rest) = split(&seed);
        let issuer = decode::<Issuer>(record).expect("an issuer");
        let token = str::from_utf8(split(rest).0).expect("a text");
        let unverified = Unverified::parse(token).expect("a token");
        let refused = unverified.verified(&issuer, 0).expect_err("of nobody");
        assert_eq!(refused, TokenError::Invalid("the token is of nobody"));
    }
}
