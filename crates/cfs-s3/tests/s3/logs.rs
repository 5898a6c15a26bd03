//! Access logs: a line for each request, delivered into another bucket.

use std::time::Duration;

use crate::client::Client;
use crate::pool::{Pool, Served};

fn serve(pool: &Pool, patience: Duration) -> Served {
    let free = "127.0.0.1:0".parse().expect("an address");
    pool.serve_at(cfs_s3::Listening {
        log_patience: patience,
        ..cfs_s3::Listening::at(free)
    })
}

fn config(bucket: &str, prefix: &str) -> String {
    format!(
        "<BucketLoggingStatus><LoggingEnabled><TargetBucket>{bucket}</TargetBucket>\
         <TargetPrefix>{prefix}</TargetPrefix></LoggingEnabled></BucketLoggingStatus>"
    )
}

/// What a bucket's policy says to let logs of another come.
fn policy(target: &str, source: &str) -> String {
    format!(
        r#"{{"Statement": {{"Effect": "Allow", "Principal": {{"Service": "logging.s3.amazonaws.com"}},
            "Action": "s3:PutObject", "Resource": "arn:aws:s3:::{target}/*",
            "Condition": {{"ArnLike": {{"aws:SourceArn": "arn:aws:s3:::{source}"}}}}}}}}"#
    )
}

fn put(client: &Client, path: &str, kind: &str, text: &str) -> crate::client::Answer {
    client.send("PUT", path, &[(kind, "")], text.as_bytes())
}

/// All lines that are there, once there are so many.
fn lines(client: &Client, bucket: &str, count: usize) -> Vec<String> {
    for _ in 0..200 {
        let listed = client.get(&format!("/{bucket}")).is(200);
        let texts = listed.all("Key").into_iter().map(|key| {
            let got = client.get(&format!("/{bucket}/{key}")).is(200);
            got.text()
        });
        let text: String = texts.collect();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        if lines.len() >= count {
            return lines;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{count} lines do not come");
}

#[test]
fn requests_are_logged_where_a_policy_lets_them() {
    let pool = Pool::new(64);
    let served = serve(&pool, Duration::from_millis(300));
    let (alice, bob) = (served.user("alice"), served.user("bob"));
    alice.put("/source", b"").is(200);
    alice.put("/logs", b"").is(200);
    let on = config("logs", "log/");
    put(&alice, "/source", "logging", &config("nowhere", ""))
        .fails(400, "InvalidTargetBucketForLogging");
    put(&alice, "/source", "logging", &on).fails(403, "AccessDenied");
    put(&alice, "/logs", "policy", &policy("logs", "other")).is(204);
    put(&alice, "/source", "logging", &on).fails(403, "AccessDenied");
    put(&alice, "/logs", "policy", &policy("logs", "source")).is(204);
    put(&bob, "/source", "logging", &on).fails(403, "AccessDenied");
    put(&alice, "/source", "logging", &on).is(200);
    let shown = alice
        .send("GET", "/source", &[("logging", "")], b"")
        .is(200);
    assert_eq!(shown.all("TargetBucket"), ["logs"]);
    alice.put("/source/a key", b"12345").is(200);
    bob.get("/source/a key").fails(403, "AccessDenied");
    let batch = b"<Delete><Object><Key>a key</Key></Object></Delete>";
    let digest = [("content-md5", "0IAg8NaZ0UKOhfXdI2V1AA==")];
    alice
        .send_with("POST", "/source", &[("delete", "")], &digest, batch)
        .is(200);
    let lines = lines(&alice, "logs", 5);
    let has = |parts: &[&str]| {
        let found = lines
            .iter()
            .any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(found, "{parts:?} in {lines:#?}");
    };
    has(&["REST.GET.LOGGING_STATUS", " 200 "]);
    has(&["source [", "REST.PUT.OBJECT a%20key", " 200 - ", " 5 "]);
    has(&["REST.GET.OBJECT a%20key", " 403 AccessDenied "]);
    has(&["REST.POST.MULTI_OBJECT_DELETE"]);
    has(&["BATCH.DELETE.OBJECT a%20key"]);
    // What the policy lets come no more is not delivered.
    alice
        .send("DELETE", "/logs", &[("policy", "")], b"")
        .is(204);
    alice.put("/source/unseen", b"").is(200);
    std::thread::sleep(Duration::from_secs(1));
    let listed = alice.get("/logs").is(200).all("Key");
    for key in listed {
        assert!(key.starts_with("log/"), "{key}");
        let text = alice.get(&format!("/logs/{key}")).is(200).text();
        assert!(!text.contains("unseen"), "{text}");
    }
    served.assert_clean();
}

#[test]
fn what_is_gathered_is_delivered_when_the_server_ends() {
    let pool = Pool::new(64);
    let served = serve(&pool, Duration::from_secs(3600));
    let root = served.root();
    root.put("/source", b"").is(200);
    root.put("/logs", b"").is(200);
    put(&root, "/logs", "policy", &policy("logs", "source")).is(204);
    put(&root, "/source", "logging", &config("logs", "")).is(200);
    root.put("/source/k", b"1").is(200);
    assert!(root.get("/logs").is(200).all("Key").is_empty());
    drop(served);
    let again = pool.power_cut(5).serve();
    let lines = lines(&again.root(), "logs", 1);
    assert!(lines[0].contains("REST.PUT."), "{lines:?}");
}
