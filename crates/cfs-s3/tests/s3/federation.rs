//! Roles that are taken on with tokens of an identity provider, which is one of the test's own.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeys, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512,
};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::client::{Answer, Client};
use crate::iam::{allow, iam, one, put_policy, send, session};
use crate::pool::{Pool, Served};

const ISSUER: &str = "https://id.example.com/realms/lab";
const BARE: &str = "id.example.com/realms/lab";

fn encode(bytes: &[u8]) -> String {
    base64_simd::URL_SAFE_NO_PAD.encode_to_string(bytes)
}

/// An issuer with a key of RSA, `r`, and one of a curve, `c`.
struct Issuer {
    rsa: RsaKeys,
    curve: EcdsaKeyPair,
}

impl Issuer {
    fn new() -> Self {
        Self {
            rsa: RsaKeys::generate(KeySize::Rsa2048).expect("a key"),
            curve: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"),
        }
    }

    /// The modulus, which stands in the public key (RFC 8017, A.1.1) after nine bytes: of the sequence, and of the number, which
    /// begins with a zero. The exponent is 65537.
    fn modulus(&self) -> Vec<u8> {
        let key = self.rsa.public_key().as_ref();
        assert_eq!((key.len(), &key[265..]), (270, &[2, 3, 1, 0, 1][..]));
        key[9..265].to_vec()
    }

    fn rsa_key(&self) -> Value {
        json!({
            "kty": "RSA", "kid": "r", "use": "sig", "alg": "RS256",
            "n": encode(&self.modulus()), "e": "AQAB",
        })
    }

    fn keys(&self) -> String {
        let point = self.curve.public_key().as_ref();
        let curve = json!({
            "kty": "EC", "kid": "c", "crv": "P-256",
            "x": encode(&point[1..33]), "y": encode(&point[33..]),
        });
        // What is of no use here is for others.
        let other = json!({"kty": "OKP", "crv": "Ed25519", "kid": "o", "x": "AAAA"});
        json!({"keys": [self.rsa_key(), curve, other]}).to_string()
    }

    /// A token with this head and these claims, signed as the head says or by `sign`.
    fn sign(&self, head: &Value, claims: &Value) -> String {
        let message = message(head, claims);
        let bytes = message.as_bytes();
        let signature = match head["alg"].as_str().expect("it says") {
            name @ ("RS256" | "RS512") => {
                let way: &'static dyn aws_lc_rs::signature::RsaEncoding = match name {
                    "RS256" => &RSA_PKCS1_SHA256,
                    _ => &RSA_PKCS1_SHA512,
                };
                let mut signature = vec![0; self.rsa.public_modulus_len()];
                self.rsa
                    .sign(way, &SystemRandom::new(), bytes, &mut signature)
                    .expect("it signs");
                signature
            }
            "ES256" => {
                let signed = self.curve.sign(&SystemRandom::new(), bytes);
                signed.expect("it signs").as_ref().to_vec()
            }
            _ => Vec::new(),
        };
        format!("{message}.{}", encode(&signature))
    }

    fn token(&self, claims: &Value) -> String {
        self.sign(&json!({"alg": "RS256", "kid": "r"}), claims)
    }
}

fn message(head: &Value, claims: &Value) -> String {
    let part = |value: &Value| encode(value.to_string().as_bytes());
    format!("{}.{}", part(head), part(claims))
}

fn now(served: &Served) -> u64 {
    served.fs.now_ms() / 1000
}

/// Claims that are in order, for the client `app`.
fn claims(served: &Served) -> Value {
    let now = now(served);
    json!({
        "iss": ISSUER, "sub": "carol", "aud": ["other", "app"], "azp": "front",
        "iat": now, "nbf": now, "exp": now + 600,
    })
}

fn with(claims: &Value, name: &str, value: Value) -> Value {
    let mut claims = claims.clone();
    claims[name] = value;
    claims
}

fn without(claims: &Value, name: &str) -> Value {
    let mut claims = claims.clone();
    claims.as_object_mut().expect("an object").remove(name);
    claims
}

/// The provider of an account, for these clients.
fn provider(client: &Client, clients: &[&str]) -> String {
    let thumbprint = "0".repeat(40);
    let names: Vec<String> = (1..=clients.len())
        .map(|number| format!("ClientIDList.member.{number}"))
        .collect();
    let mut fields = vec![("Url", ISSUER), ("ThumbprintList.member.1", &thumbprint)];
    fields.extend(
        names
            .iter()
            .map(String::as_str)
            .zip(clients.iter().copied()),
    );
    let made = iam(client, "CreateOpenIDConnectProvider", &fields).is(200);
    one(&made, "OpenIDConnectProviderArn")
}

fn trust(provider: &str, more: &str) -> String {
    format!(
        r#"{{"Statement": {{"Effect": "Allow", "Principal": {{"Federated": "{provider}"}},
            "Action": ["sts:AssumeRoleWithWebIdentity", "sts:TagSession"]{more}}}}}"#
    )
}

/// A role that may do everything with S3, and which document lets in.
fn role(client: &Client, name: &str, trust: &str) -> String {
    let fields = [("RoleName", name), ("AssumeRolePolicyDocument", trust)];
    let made = iam(client, "CreateRole", &fields).is(200);
    put_policy(client, "Role", name, &allow("s3:*", "*")).is(200);
    one(&made, "Arn")
}

/// Asks for a role with a token, without a signature.
fn assume(served: &Served, arn: &str, token: &str, more: &[(&str, &str)]) -> Answer {
    let fields = [
        ("Action", "AssumeRoleWithWebIdentity"),
        ("Version", "2011-06-15"),
        ("RoleArn", arn),
        ("RoleSessionName", "s"),
        ("WebIdentityToken", token),
    ];
    served.root().call_unsigned(&[&fields[..], more].concat())
}

#[test]
fn tokens_of_a_provider_give_credentials() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let (issuer, alice) = (Issuer::new(), served.user("alice"));
    alice.put("/alice", b"").is(200);
    let usual = claims(&served);
    let provided = provider(&alice, &["app"]);
    let arn = role(&alice, "r", &trust(&provided, ""));
    let token = issuer.token(&usual);
    // Who has no keys of the issuer cannot tell.
    assume(&served, &arn, &token, &[]).fails(400, "InvalidIdentityToken");
    served
        .users
        .set_issuer(ISSUER, &issuer.keys(), Vec::new())
        .expect("these are keys");
    let answer = assume(&served, &arn, &token, &[]).is(200);
    assert_eq!(one(&answer, "SubjectFromWebIdentityToken"), "carol");
    assert_eq!(one(&answer, "Audience"), "app");
    assert_eq!(one(&answer, "Provider"), ISSUER);
    let (taken, credentials) = session(&served, &answer);
    send(&taken, &credentials, "GET", "/alice").is(200);
    send(&taken, &credentials, "PUT", "/taken").is(200);
    alice.put("/taken/k", b"it is the account's").is(200);
    assume(&served, &arn, &format!("{token}\n"), &[]).is(200);
    // Keys of a curve do too, and a policy takes away.
    let curve = issuer.sign(&json!({"alg": "ES256", "kid": "c", "typ": "JWT"}), &usual);
    let limit = allow("s3:ListBucket", "*");
    let answer = assume(&served, &arn, &curve, &[("Policy", &limit)]).is(200);
    let (less, other) = session(&served, &answer);
    send(&less, &other, "GET", "/alice").is(200);
    send(&less, &other, "PUT", "/more").fails(403, "AccessDenied");
    // All of it is kept, and forgetting the keys ends it.
    let again = pool.power_cut(5).serve();
    assume(&again, &arn, &token, &[]).is(200);
    again.users.remove_issuer(ISSUER).expect("it is there");
    assume(&again, &arn, &token, &[]).fails(400, "InvalidIdentityToken");
    assert!(again.users.remove_issuer(ISSUER).is_err());
    assert!(again.users.issuers().expect("they can be read").is_empty());
    again.assert_clean();
}

/// Each of these has opened something somewhere: a token says how it is signed, by whom and for whom, and who forges one says so too.
#[test]
fn tokens_that_are_not_in_order_give_nothing() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let (issuer, alice) = (Issuer::new(), served.user("alice"));
    let provided = provider(&alice, &["app"]);
    let arn = role(&alice, "r", &trust(&provided, ""));
    let set = |keys: &str| {
        served
            .users
            .set_issuer(ISSUER, keys, vec!["usual".to_owned()])
    };
    set(&issuer.keys()).expect("these are keys");
    let usual = claims(&served);
    let invalid =
        |token: &str| assume(&served, &arn, token, &[]).fails(400, "InvalidIdentityToken");
    let right = issuer.token(&usual);
    assume(&served, &arn, &right, &[]).is(200);

    // How it is signed.
    for head in [
        json!({"alg": "none"}),
        json!({"alg": "none", "kid": "r"}),
        json!({"alg": "RS256"}),
        json!({"alg": "RS256", "kid": "c"}),
        json!({"alg": "RS256", "kid": "unheard-of"}),
        json!({"alg": "RS512", "kid": "r"}),
        json!({"alg": "ES256", "kid": "r"}),
        json!({"alg": "RS256", "kid": "r", "crit": ["b64"], "b64": false}),
    ] {
        invalid(&issuer.sign(&head, &usual));
    }
    let modulus = issuer.modulus();
    for secret in [&modulus[..], issuer.keys().as_bytes(), b""] {
        let message = message(&json!({"alg": "HS256", "kid": "r"}), &usual);
        let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("any length will do");
        mac.update(message.as_bytes());
        invalid(&format!(
            "{message}.{}",
            encode(&mac.finalize().into_bytes())
        ));
    }
    // A key that comes with the token is anybody's.
    let mallory = Issuer::new();
    let head = json!({"alg": "RS256", "kid": "r", "jwk": mallory.rsa_key()});
    invalid(&mallory.sign(&head, &usual));
    invalid(&mallory.token(&usual));
    // What it says is signed with it.
    let (start, signature) = right.rsplit_once('.').expect("three parts");
    let (head, _) = start.split_once('.').expect("three parts");
    let changed = encode(with(&usual, "sub", json!("root")).to_string().as_bytes());
    invalid(&format!("{head}.{changed}.{signature}"));
    for text in [
        "abcdef",
        "a.b.c",
        "..",
        start,
        &format!("{right}.x"),
        &"a".repeat(30_000),
    ] {
        invalid(text);
    }

    // A long one is none, however right it is.
    let long = "x".repeat(20_000);
    invalid(&issuer.token(&with(&usual, "long", json!(long))));

    // Whose it is, and when.
    let now = now(&served);
    for claims in [
        with(&usual, "iss", json!("https://id.example.com/realms/other")),
        with(&usual, "iss", json!("http://id.example.com/realms/lab")),
        with(&usual, "nbf", json!(now + 3600)),
        with(&usual, "iat", json!(now + 3600)),
        with(&usual, "exp", json!("never")),
        // Which of the two a condition means nobody can tell.
        with(&usual, "Sub", json!("root")),
        without(&usual, "exp"),
        without(&usual, "sub"),
        without(&usual, "aud"),
        without(&usual, "iss"),
        with(
            &usual,
            "https://aws.amazon.com/tags",
            json!({"principal_tags": {"a": [1]}}),
        ),
    ] {
        invalid(&issuer.token(&claims));
    }
    let late = issuer.token(&with(&usual, "exp", json!(now)));
    assume(&served, &arn, &late, &[]).fails(400, "ExpiredTokenException");

    // Whom it is for: not those that the administrator has named, as the provider names some.
    let denied =
        |arn: &str, token: &str| assume(&served, arn, token, &[]).fails(403, "AccessDenied");
    for audience in [json!("other"), json!(["usual"]), json!([]), json!("APP")] {
        denied(&arn, &issuer.token(&with(&usual, "aud", audience)));
    }
    let front = with(&with(&usual, "aud", json!("other")), "azp", json!("app"));
    denied(&arn, &issuer.token(&front));
    denied("arn:aws:iam:::role/none", &right);
    // Another account has the same name for a role, and no provider; one without clients has those of the administrator.
    let bob = served.user("bob");
    let of_bob = role(&bob, "r", &trust(&provided, ""));
    denied(&of_bob, &right);
    let own = provider(&bob, &[]);
    denied(&of_bob, &issuer.token(&with(&usual, "aud", json!("usual"))));
    let of_bob = role(&bob, "own", &trust(&own, ""));
    denied(&of_bob, &right);
    assume(
        &served,
        &of_bob,
        &issuer.token(&with(&usual, "aud", json!("usual"))),
        &[],
    )
    .is(200);

    // Who may take a role on with a key does not let tokens in, nor does everybody.
    for (name, document) in [
        (
            "all",
            r#"{"Statement": {"Effect": "Allow", "Principal": "*", "Action": "sts:*"}}"#.to_owned(),
        ),
        (
            "some",
            trust(&provided, "").replace("sts:AssumeRoleWithWebIdentity", "sts:AssumeRole"),
        ),
    ] {
        denied(&role(&alice, name, &document), &right);
    }
    let both = trust(&provided, "").replace(
        r#""Statement": {"#,
        r#""Statement": [{"Effect": "Deny", "Principal": "*", "Action": "sts:*"}, {"#,
    );
    let both = format!("{}]}}", both.strip_suffix('}').expect("it ends so"));
    denied(&role(&alice, "both", &both), &right);
    // And the other way round.
    let fields = [
        ("Action", "AssumeRole"),
        ("RoleArn", &*arn),
        ("RoleSessionName", "s"),
    ];
    let carol = crate::iam::member(&served, &alice, "carol");
    put_policy(&alice, "User", "carol", &allow("*", "*")).is(200);
    carol.call("sts", "", &fields).fails(403, "AccessDenied");
    // What is told in the open is not what is told in private.
    let open = ISSUER.replace("https", "http");
    let added = served.users.set_issuer(&open, &issuer.keys(), Vec::new());
    added.expect("these are keys");
    denied(&arn, &issuer.token(&with(&usual, "iss", json!(open))));
    // A provider cannot be named so that its claims stand for what the server knows.
    let aws = "https://aws";
    let keys = issuer.keys();
    let added = served.users.set_issuer(aws, &keys, vec!["app".to_owned()]);
    added.expect("these are keys");
    let made = iam(&alice, "CreateOpenIDConnectProvider", &[("Url", aws)]).is(200);
    let at_home = r#", "Condition": {"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}"#;
    let named = trust(&one(&made, "OpenIDConnectProviderArn"), at_home);
    let there = with(
        &with(&usual, "iss", json!(aws)),
        "sourceip",
        json!("10.0.0.1"),
    );
    denied(&role(&alice, "at-home", &named), &issuer.token(&there));
    // Nothing else is to be had without a signature.
    for action in ["AssumeRole", "ListRoles", "Unheard-of"] {
        let answer = alice.call_unsigned(&[("Action", action), ("RoleArn", &arn)]);
        answer.fails(403, "AccessDenied");
    }

    // Keys that are none.
    let weak = json!({"keys": [{"kty": "RSA", "n": encode(&[255; 128]), "e": "AQAB"}]});
    let private = json!({"keys": [{"kty": "oct", "k": "AAAA"}, issuer.rsa_key()]});
    let sealing =
        json!({"keys": [{"kty": "RSA", "use": "enc", "n": encode(&[255; 256]), "e": "AQAB"}]});
    for keys in [
        "{}",
        "[]",
        "",
        r#"{"keys": []}"#,
        &weak.to_string(),
        &private.to_string(),
        &sealing.to_string(),
    ] {
        assert!(set(keys).is_err(), "{keys}");
    }
    assume(&served, &arn, &right, &[]).is(200);
    served.assert_clean();
}

#[test]
fn roles_ask_for_claims_and_tags() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let (issuer, alice) = (Issuer::new(), served.user("alice"));
    served
        .users
        .set_issuer(ISSUER, &issuer.keys(), Vec::new())
        .expect("these are keys");
    let provided = provider(&alice, &["app"]);
    let usual = with(&claims(&served), "groups", json!(["staff", "lab"]));
    let plain = issuer.token(&usual);
    let odd = issuer.token(&with(&usual, "groups", json!(["banned", {}])));
    let tagged = |tags: Value| {
        let tags = json!({"principal_tags": tags});
        issuer.token(&with(&usual, "https://aws.amazon.com/tags", tags))
    };
    let both = tagged(json!({"Team": ["red", "blue"]}));
    let condition = |text: &str| format!(r#", "Condition": {{{text}}}"#);
    let cases = [
        (
            "sub",
            true,
            &plain,
            format!(r#""StringEquals": {{"{BARE}:sub": "carol"}}"#),
        ),
        (
            "case",
            true,
            &plain,
            format!(r#""StringEquals": {{"{BARE}:SUB": "carol"}}"#),
        ),
        (
            "like",
            true,
            &plain,
            format!(r#""StringLike": {{"{BARE}:sub": "c*"}}"#),
        ),
        (
            "other",
            false,
            &plain,
            format!(r#""StringEquals": {{"{BARE}:sub": "dave"}}"#),
        ),
        (
            "not",
            false,
            &plain,
            format!(r#""StringNotEquals": {{"{BARE}:sub": "carol"}}"#),
        ),
        (
            "object",
            false,
            &odd,
            format!(r#""StringNotEquals": {{"{BARE}:groups": "banned"}}"#),
        ),
        (
            "there",
            false,
            &odd,
            format!(r#""Null": {{"{BARE}:groups": "true"}}"#),
        ),
        (
            "azp",
            true,
            &plain,
            format!(r#""StringEquals": {{"{BARE}:azp": "front"}}"#),
        ),
        (
            "missing",
            false,
            &plain,
            format!(r#""StringEquals": {{"{BARE}:none": "x"}}"#),
        ),
        (
            "any",
            true,
            &plain,
            format!(r#""ForAnyValue:StringEquals": {{"{BARE}:groups": "lab"}}"#),
        ),
        (
            "none",
            false,
            &plain,
            format!(r#""ForAnyValue:StringEquals": {{"{BARE}:groups": "root"}}"#),
        ),
        (
            "nobody",
            false,
            &plain,
            format!(r#""ForAnyValue:StringNotEquals": {{"{BARE}:none": "x"}}"#),
        ),
        (
            "all",
            false,
            &plain,
            format!(r#""ForAllValues:StringEquals": {{"{BARE}:groups": "lab"}}"#),
        ),
        (
            "every",
            true,
            &plain,
            format!(r#""ForAllValues:StringEquals": {{"{BARE}:groups": ["lab", "staff"]}}"#),
        ),
        (
            "no-value",
            true,
            &plain,
            format!(r#""ForAllValues:StringEquals": {{"{BARE}:none": "x"}}"#),
        ),
        (
            "tag",
            true,
            &both,
            r#""StringEquals": {"aws:RequestTag/Team": "red"}"#.to_owned(),
        ),
        (
            "no-tag",
            false,
            &plain,
            r#""StringEquals": {"aws:RequestTag/Team": "red"}"#.to_owned(),
        ),
        (
            "keys",
            true,
            &both,
            r#""ForAllValues:StringEquals": {"aws:TagKeys": "Team"}"#.to_owned(),
        ),
        (
            "few-keys",
            false,
            &both,
            r#""ForAllValues:StringEquals": {"aws:TagKeys": "Unit"}"#.to_owned(),
        ),
    ];
    for (name, is_let_in, token, text) in cases {
        let arn = role(&alice, name, &trust(&provided, &condition(&text)));
        let answer = assume(&served, &arn, token, &[]);
        match is_let_in {
            true => drop(answer.is(200)),
            false => answer.fails(403, "AccessDenied"),
        }
    }
    // Tags have to be allowed by themselves.
    let bare = trust(&provided, "").replace(r#", "sts:TagSession""#, "");
    let arn = role(&alice, "untagged", &bare);
    assume(&served, &arn, &both, &[]).fails(403, "AccessDenied");
    assume(&served, &arn, &plain, &[]).is(200);

    // What the role may do can be a matter of them.
    alice.put("/alice", b"").is(200);
    let arn = role(&alice, "by-tag", &trust(&provided, ""));
    let by_tag = |operator: &str| {
        format!(
            r#"{{"Statement": {{"Effect": "Allow", "Action": "s3:*", "Resource": "*",
                "Condition": {{"{operator}": {{"aws:PrincipalTag/Team": "red"}}}}}}}}"#
        )
    };
    let red = tagged(json!({"Team": "red"}));
    let blue = tagged(json!({"Team": ["blue"]}));
    for (operator, token, status) in [
        ("StringEquals", &red, 200),
        ("StringEquals", &both, 200),
        ("StringEquals", &blue, 403),
        ("StringEquals", &plain, 403),
        ("ForAllValues:StringEquals", &both, 403),
        ("ForAllValues:StringEquals", &red, 200),
    ] {
        put_policy(&alice, "Role", "by-tag", &by_tag(operator)).is(200);
        let (taken, credentials) = session(&served, &assume(&served, &arn, token, &[]).is(200));
        send(&taken, &credentials, "GET", "/alice").is(status);
    }
    let many: serde_json::Map<String, Value> = (0..51)
        .map(|number| (number.to_string(), json!("x")))
        .collect();
    for tags in [
        json!({"a": "x".repeat(5000)}),
        json!({"a": "1", "A": "2"}),
        Value::Object(many),
    ] {
        assume(&served, &arn, &tagged(tags), &[]).fails(400, "InvalidIdentityToken");
    }

    // Claims are asked for where their provider is named, and nowhere else.
    let create = |document: &str| {
        let fields = [
            ("RoleName", "refused"),
            ("AssumeRolePolicyDocument", document),
        ];
        iam(&alice, "CreateRole", &fields).fails(400, "MalformedPolicyDocument");
    };
    let of_other = condition(r#""StringEquals": {"id.example.com/realms/other:sub": "carol"}"#);
    create(&trust(&provided, &of_other));
    create(&trust("id.example.com", ""));
    create(&trust("cognito-identity.amazonaws.com", ""));
    let of_bucket = trust(&provided, "").replace(
        r#"["sts:AssumeRoleWithWebIdentity", "sts:TagSession"]"#,
        r#""s3:GetObject", "Resource": "arn:aws:s3:::alice/*""#,
    );
    alice
        .send("PUT", "/alice", &[("policy", "")], of_bucket.as_bytes())
        .fails(400, "MalformedPolicy");
    let of_tags = r#"{"Statement": {"Effect": "Allow", "Action": "*", "Resource": "*",
        "Condition": {"StringEquals": {"aws:RequestTag/Team": "red"}}}}"#;
    put_policy(&alice, "Role", "by-tag", of_tags).fails(400, "MalformedPolicyDocument");
    served.assert_clean();
}

#[test]
fn accounts_have_providers() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let (alice, bob) = (served.user("alice"), served.user("bob"));
    let arn = provider(&alice, &["app", "front", "app"]);
    assert!(arn.ends_with(&format!(":oidc-provider/{BARE}")), "{arn}");
    let at = ("OpenIDConnectProviderArn", arn.as_str());
    let url = ("Url", ISSUER);
    let shown = iam(&alice, "GetOpenIDConnectProvider", &[at]).is(200);
    assert_eq!(one(&shown, "Url"), ISSUER);
    assert_eq!(shown.all("member"), ["app", "front", &"0".repeat(40)]);
    iam(&alice, "CreateOpenIDConnectProvider", &[url]).fails(409, "EntityAlreadyExists");
    let list = |client: &Client| {
        iam(client, "ListOpenIDConnectProviders", &[])
            .is(200)
            .all("Arn")
    };
    assert_eq!(list(&alice), std::slice::from_ref(&arn));
    // Clients come and go, but for the last.
    let client = |action: &str, id: &str| {
        let action = format!("{action}OpenIDConnectProvider");
        iam(&alice, &action, &[at, ("ClientID", id)])
    };
    client("AddClientIDTo", "back").is(200);
    client("AddClientIDTo", "back").is(200);
    client("RemoveClientIDFrom", "app").is(200);
    client("RemoveClientIDFrom", "front").is(200);
    client("RemoveClientIDFrom", "unheard-of").is(200);
    client("RemoveClientIDFrom", "back").fails(400, "ValidationError");
    let thumbprint = "1".repeat(40);
    let fields = [at, ("ThumbprintList.member.1", &thumbprint)];
    iam(&alice, "UpdateOpenIDConnectProviderThumbprint", &fields).is(200);
    let again = pool.power_cut(2).serve();
    let (alice, bob) = [alice, bob]
        .map(|client| Client {
            address: again.server.address(),
            ..client
        })
        .into();
    let shown = iam(&alice, "GetOpenIDConnectProvider", &[at]).is(200);
    assert_eq!(shown.all("member"), ["back", &thumbprint]);
    // Those of another account are not seen.
    assert!(list(&bob).is_empty());
    iam(&bob, "GetOpenIDConnectProvider", &[at]).fails(404, "NoSuchEntity");
    iam(&bob, "DeleteOpenIDConnectProvider", &[at]).fails(404, "NoSuchEntity");
    let carol = crate::iam::member(&again, &alice, "carol");
    for action in ["GetOpenIDConnectProvider", "DeleteOpenIDConnectProvider"] {
        iam(&carol, action, &[at]).fails(403, "AccessDenied");
    }
    iam(&carol, "CreateOpenIDConnectProvider", &[url]).fails(403, "AccessDenied");
    for wrong in [
        "id.example.com",
        "ftp://id.example.com",
        "https://",
        "https:///x",
        "https://a b",
        "https://a/?x",
    ] {
        iam(&bob, "CreateOpenIDConnectProvider", &[("Url", wrong)]).fails(400, "ValidationError");
    }
    iam(&alice, "DeleteOpenIDConnectProvider", &[at]).is(200);
    iam(&alice, "DeleteOpenIDConnectProvider", &[at]).fails(404, "NoSuchEntity");
    assert!(list(&alice).is_empty());
    provider(&alice, &[]);
    let kept = || {
        let rows = again.fs.records(cfs_format::Ino::ROOT, b"s3.iam.provider.");
        rows.expect("they can be read").len()
    };
    assert_eq!(kept(), 1);
    again.users.remove("alice").expect("she is there");
    assert_eq!(kept(), 0);
    again.assert_clean();
}
