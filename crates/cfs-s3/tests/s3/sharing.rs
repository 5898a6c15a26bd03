//! Who else may use a bucket: access control lists, policies, pages.

use crate::client::receive;
use crate::pool::Pool;

#[test]
fn lists_let_others_in() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let (alice, bob) = (served.user("alice"), served.user("bob"));
    alice.put("/shared", b"").is(200);
    alice.put("/shared/private", b"1").is(200);
    alice
        .send_with(
            "PUT",
            "/shared/public",
            &[],
            &[("x-amz-acl", "public-read")],
            b"2",
        )
        .is(200);
    bob.get("/shared/private").fails(403, "AccessDenied");
    assert_eq!(bob.get("/shared/public").is(200).body, b"2");
    assert_eq!(
        alice
            .send_unsigned("GET", "/shared/public", b"")
            .is(200)
            .body,
        b"2"
    );
    bob.get("/shared/nothing").fails(403, "AccessDenied");
    let acl = [("x-amz-acl", "public-read-write")];
    alice
        .send_with("PUT", "/shared", &[("acl", "")], &acl, b"")
        .is(200);
    bob.get("/shared/nothing").fails(404, "NoSuchKey");
    assert_eq!(bob.get("/shared").is(200).all("Key"), ["private", "public"]);
    bob.put("/shared/bobs", b"3").is(200);
    bob.get("/shared/bobs").is(200);
    bob.send("GET", "/shared", &[("acl", "")], b"")
        .fails(403, "AccessDenied");
    let listed = alice.send("GET", "/shared", &[("acl", "")], b"").is(200);
    assert_eq!(listed.all("Permission"), ["READ", "WRITE", "FULL_CONTROL"]);
    let block = b"<PublicAccessBlockConfiguration><IgnorePublicAcls>true</IgnorePublicAcls><BlockPublicAcls>true</BlockPublicAcls></PublicAccessBlockConfiguration>";
    alice
        .send("PUT", "/shared", &[("publicAccessBlock", "")], block)
        .is(200);
    bob.get("/shared").fails(403, "AccessDenied");
    bob.get("/shared/public").fails(403, "AccessDenied");
    alice
        .send_with(
            "PUT",
            "/shared/x",
            &[],
            &[("x-amz-acl", "public-read")],
            b"2",
        )
        .fails(403, "AccessDenied");
}

#[test]
fn policies_allow_and_deny() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let (alice, bob) = (served.user("alice"), served.user("bob"));
    alice.put("/shared", b"").is(200);
    alice.put("/shared/open/k", b"1").is(200);
    alice.put("/shared/shut/k", b"2").is(200);
    let policy = br#"{"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam:::user/bob"}, "Action": ["s3:GetObject", "s3:PutObject"], "Resource": "arn:aws:s3:::shared/open/*"},
        {"Effect": "Deny", "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::shared/shut/*"}]}"#;
    bob.send("PUT", "/shared", &[("policy", "")], policy)
        .fails(403, "AccessDenied");
    alice
        .send("PUT", "/shared", &[("policy", "")], policy)
        .is(204);
    assert_eq!(bob.get("/shared/open/k").is(200).body, b"1");
    bob.put("/shared/open/bobs", b"3").is(200);
    bob.delete("/shared/open/k").fails(403, "AccessDenied");
    bob.get("/shared/shut/k").fails(403, "AccessDenied");
    alice.get("/shared/shut/k").fails(403, "AccessDenied");
    let body = b"<Delete><Object><Key>open/k</Key></Object></Delete>";
    let batch = bob.send("POST", "/shared", &[("delete", "")], body).is(200);
    assert_eq!(batch.all("Code"), ["AccessDenied"]);
    alice.get("/shared/open/k").is(200);
    alice
        .send("PUT", "/shared", &[("policy", "")], b"{}")
        .fails(400, "MalformedPolicy");
    alice
        .send("DELETE", "/shared", &[("policy", "")], b"")
        .is(204);
    alice.get("/shared/shut/k").is(200);
    bob.get("/shared/open/k").fails(403, "AccessDenied");
}

#[test]
fn pages_are_let_in_as_configured() {
    use std::io::Write;
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    root.put("/bucket/k", b"1").is(200);
    let config = b"<CORSConfiguration><CORSRule><AllowedOrigin>http://*.example.com</AllowedOrigin><AllowedMethod>GET</AllowedMethod><AllowedHeader>x-*</AllowedHeader><MaxAgeSeconds>60</MaxAgeSeconds></CORSRule></CORSConfiguration>";
    root.send("PUT", "/bucket", &[("cors", "")], config).is(200);
    let preflight = |origin: &str, method: &str| {
        let mut stream = root.connect();
        let head = format!(
            "OPTIONS /bucket/k HTTP/1.1\r\nhost: x\r\norigin: {origin}\r\naccess-control-request-method: {method}\r\naccess-control-request-headers: X-One\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("the server reads");
        receive(&mut stream)
    };
    let granted = preflight("http://a.example.com", "GET").is(200);
    assert_eq!(
        granted.header("access-control-allow-origin"),
        "http://a.example.com"
    );
    assert_eq!(granted.header("access-control-max-age"), "60");
    preflight("http://other.com", "GET").fails(403, "AccessForbidden");
    preflight("http://a.example.com", "PUT").fails(403, "AccessForbidden");
    let got = root
        .send_with(
            "GET",
            "/bucket/k",
            &[],
            &[("origin", "http://b.example.com")],
            b"",
        )
        .is(200);
    assert_eq!(
        got.header("access-control-allow-origin"),
        "http://b.example.com"
    );
}

/// The header is what shuts out the owner too; without it the owner always gets out again.
#[test]
fn owners_can_shut_themselves_out_of_a_policy() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let alice = served.user("alice");
    alice.put("/alice", b"").is(200);
    let policy =
        br#"{"Statement": {"Effect": "Deny", "Principal": "*", "Action": "s3:*BucketPolicy"}}"#;
    let query = [("policy", "")];
    alice.send("PUT", "/alice", &query, policy).is(204);
    alice.send("GET", "/alice", &query, b"").is(200);
    let confirmed = [("x-amz-confirm-remove-self-bucket-access", "true")];
    alice
        .send_with("PUT", "/alice", &query, &confirmed, policy)
        .is(204);
    for method in ["GET", "DELETE"] {
        alice
            .send(method, "/alice", &query, b"")
            .fails(403, "AccessDenied");
    }
    served.root().send("DELETE", "/alice", &query, b"").is(204);
    alice.send("PUT", "/alice", &query, policy).is(204);
    alice.send("DELETE", "/alice", &query, b"").is(204);
}

/// A denial that means nobody denies nothing, which who has put it would not know.
#[test]
fn denials_of_nobody_are_refused() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let alice = served.user("alice");
    served.user("bob");
    alice.put("/shared", b"").is(200);
    let member = crate::iam::member(&served, &alice, "carol");
    let account = crate::iam::one(&crate::iam::iam(&alice, "GetUser", &[]), "UserId");
    let put = |effect: &str, who: &str, principal: &str| {
        let policy = format!(
            r#"{{"Statement": {{"Effect": "{effect}", "{who}": {principal}, "Action": "s3:GetObject", "Resource": "arn:aws:s3:::shared/*"}}}}"#
        );
        let query = [("policy", "")];
        alice.send("PUT", "/shared", &query, policy.as_bytes())
    };
    for nobody in [
        r#"{"AWS": "arn:aws:iam:::user/dave"}"#.to_owned(),
        r#"{"AWS": ["arn:aws:iam:::user/bob", "dave"]}"#.to_owned(),
        r#"{"AWS": "arn:aws:iam::123456789012:root"}"#.to_owned(),
        format!(r#"{{"AWS": "arn:aws:iam::{account}:user/bob"}}"#),
        format!(r#"{{"AWS": "arn:aws:iam::{account}:role/r"}}"#),
        r#"{"AWS": []}"#.to_owned(),
    ] {
        put("Deny", "Principal", &nobody).fails(400, "MalformedPolicy");
        put("Deny", "NotPrincipal", &nobody).fails(400, "MalformedPolicy");
    }
    for somebody in [
        r#""*""#.to_owned(),
        r#"{"AWS": "*"}"#.to_owned(),
        r#"{"AWS": ["arn:aws:iam:::user/bob", "bob"]}"#.to_owned(),
        format!(r#"{{"AWS": ["{account}", "arn:aws:iam::{account}:root"]}}"#),
        format!(r#"{{"AWS": "arn:aws:iam::{account}:user/carol"}}"#),
        r#"{"Service": "logging.s3.amazonaws.com"}"#.to_owned(),
    ] {
        put("Deny", "Principal", &somebody).is(204);
    }
    drop(member);
    // Who is let in may come later.
    put(
        "Allow",
        "Principal",
        r#"{"AWS": "arn:aws:iam:::user/dave"}"#,
    )
    .is(204);
}
