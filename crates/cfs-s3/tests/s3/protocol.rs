//! What is refused before it is an operation, and what is told without being one.

use std::io::Write;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::client::{Request, receive};
use crate::doors::report;
use crate::pool::Pool;

#[test]
fn requests_must_be_signed_rightly_and_now() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    root.send_unsigned("GET", "/bucket", b"")
        .fails(403, "AccessDenied");
    root.send_unsigned("GET", "/", b"")
        .fails(403, "AccessDenied");
    root.send_unsigned("PUT", "/new", b"")
        .fails(403, "AccessDenied");
    let mut wrong = root.clone();
    wrong.secret_access_key.push('x');
    wrong.get("/bucket").fails(403, "SignatureDoesNotMatch");
    wrong.access_key_id.push('x');
    wrong.get("/bucket").fails(403, "InvalidAccessKeyId");
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();
    for (seconds, fails) in [(now - 1200, true), (now + 1200, true), (now - 300, false)] {
        let request = Request {
            method: "GET",
            path: "/bucket".to_owned(),
            query: Vec::new(),
            headers: Vec::new(),
            body: b"",
        };
        let mut stream = root.connect();
        let head = root.sign(&request, seconds);
        stream.write_all(head.as_bytes()).expect("the server reads");
        let answer = receive(&mut stream);
        match fails {
            true => answer.fails(403, "RequestTimeTooSkewed"),
            false => drop(answer.is(200)),
        }
    }
    let old = "/bucket?AWSAccessKeyId=x&Signature=y&Expires=1";
    root.send_unsigned("GET", old, b"")
        .fails(403, "AccessDenied");
}

/// Links of version 2, as older clients make them: the right one is followed, and no other.
#[test]
fn links_of_version_2_work() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    root.put("/bucket/k", b"content").is(200);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.expect("after 1970").as_secs();
    let link = |path: &str, ends: u64, secret: &str| {
        let signed = format!("GET\n\n\n{ends}\n{path}");
        let signature = crate::client::encode(&hmac_sha1(secret, &signed), false);
        let key = &root.access_key_id;
        format!("{path}?AWSAccessKeyId={key}&Expires={ends}&Signature={signature}")
    };
    let secret = root.secret_access_key.as_str();
    let get = |link: &str| root.send_unsigned("GET", link, b"");
    let good = link("/bucket/k", now + 60, secret);
    assert_eq!(get(&good).is(200).body, b"content");
    get(&good.replace("/bucket/k", "/bucket/l")).fails(403, "SignatureDoesNotMatch");
    get(&link("/bucket/k", now + 60, "another")).fails(403, "SignatureDoesNotMatch");
    get(&link("/bucket/k", now - 60, secret)).fails(403, "AccessDenied");
    get(&good.replace(&root.access_key_id, "nobody")).fails(403, "InvalidAccessKeyId");
    root.send_unsigned("DELETE", &good, b"")
        .fails(403, "SignatureDoesNotMatch");
    // A bucket in the host's name is signed as if it were in the path, so that a link for one is none for another.
    let at = |host: &str, link: &str| {
        let path = link.strip_prefix("/bucket").expect("the bucket's");
        let head = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let mut stream = root.connect();
        std::io::Write::write_all(&mut stream, head.as_bytes()).expect("the server reads");
        crate::client::receive(&mut stream)
    };
    root.put("/other", b"").is(200);
    root.put("/other/k", b"secret").is(200);
    assert_eq!(at("bucket.localhost", &good).is(200).body, b"content");
    at("other.localhost", &good).fails(403, "SignatureDoesNotMatch");
}

/// Who passes a request on could have it do what its signer may: copy what is secret, share it, end a retention.
#[test]
fn headers_that_are_not_signed_are_refused() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    let lock = [("x-amz-bucket-object-lock-enabled", "true")];
    root.send_with("PUT", "/bucket", &[], &lock, b"").is(200);
    root.put("/bucket/secret", b"secret").is(200);
    let put = root.presign("PUT", "/bucket/k", 60);
    for line in [
        "x-amz-copy-source: /bucket/secret\r\n",
        "x-amz-acl: public-read\r\n",
        "X-Amz-Meta-Name: value\r\n",
    ] {
        root.follow("PUT", &put, line, b"")
            .fails(403, "AccessDenied");
    }
    root.get("/bucket/k").fails(404, "NoSuchKey");
    root.follow("PUT", &put, "content-type: text/plain\r\n", b"mine")
        .is(200);
    let retained = [
        ("x-amz-object-lock-mode", "GOVERNANCE"),
        (
            "x-amz-object-lock-retain-until-date",
            "2099-01-01T00:00:00Z",
        ),
    ];
    let kept = root.send_with("PUT", "/bucket/kept", &[], &retained, b"kept");
    let version = kept.is(200).header("x-amz-version-id").to_owned();
    let bypass = "x-amz-bypass-governance-retention: true\r\n";
    let link = root.presign_with("DELETE", "/bucket/kept", &[("versionId", &version)], 60);
    root.follow("DELETE", &link, bypass, b"")
        .fails(403, "AccessDenied");
    root.follow("DELETE", &link, "", b"")
        .fails(403, "AccessDenied");
    // The same of a signature in a header.
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.expect("after 1970").as_secs();
    let request = Request {
        method: "PUT",
        path: "/bucket/header".to_owned(),
        query: Vec::new(),
        headers: Vec::new(),
        body: b"",
    };
    let head = root.sign(&request, now);
    let send = |line: &str| {
        let head = head.replacen("\r\n", &format!("\r\n{line}"), 1);
        let mut stream = root.connect();
        stream.write_all(head.as_bytes()).expect("the server reads");
        receive(&mut stream)
    };
    send("x-amz-copy-source: /bucket/secret\r\n").fails(403, "AccessDenied");
    root.get("/bucket/header").fails(404, "NoSuchKey");
    send("x-amz-user-agent: a client\r\n").is(200);
    assert_eq!(root.get("/bucket/header").is(200).body, b"");
    // Version 2 signs all of these, but not every parameter that makes another operation.
    let ends = now + 60;
    let signed = format!("PUT\n\n\n{ends}\n/bucket/kept");
    let signature = hmac_sha1(&root.secret_access_key, &signed);
    let signature = crate::client::encode(&signature, false);
    let key = &root.access_key_id;
    let link = format!("/bucket/kept?AWSAccessKeyId={key}&Expires={ends}&Signature={signature}");
    let hold = b"<LegalHold><Status>ON</Status></LegalHold>";
    root.send_unsigned("PUT", &format!("{link}&legal-hold"), hold)
        .fails(403, "AccessDenied");
    root.follow("PUT", &link, "x-amz-acl: public-read\r\n", b"")
        .fails(403, "SignatureDoesNotMatch");
    root.send_unsigned("PUT", &format!("{link}&acl"), b"")
        .fails(403, "SignatureDoesNotMatch");
    root.send_unsigned("PUT", &link, b"again").is(200);
}

/// Clients that sign with version 2 put a slash after a bucket's name.
#[test]
fn buckets_may_be_signed_with_a_slash() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let date = http_date(now.expect("after 1970").as_secs());
    let put = |path: &str, signed: &str| {
        let text = format!("PUT\n\n\n\nx-amz-date:{}\n{signed}", date);
        let head = format!(
            "PUT {path} HTTP/1.1\r\nhost: {}\r\nx-amz-date: {}\r\nauthorization: AWS {}:{}\r\n\
             content-length: 0\r\nconnection: close\r\n\r\n",
            root.address,
            date,
            root.access_key_id,
            hmac_sha1(&root.secret_access_key, &text)
        );
        let mut stream = root.connect();
        std::io::Write::write_all(&mut stream, head.as_bytes()).expect("the server reads");
        crate::client::receive(&mut stream)
    };
    put("/one", "/one").is(200);
    put("/two", "/two/").is(200);
    put("/three", "/three//").fails(403, "SignatureDoesNotMatch");
    put("/two/k", "/two/k/").fails(403, "SignatureDoesNotMatch");
}

/// The date of HTTP will do where there is none of Amazon's, if it is the one that was signed.
#[test]
fn the_date_of_http_can_be_signed() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.expect("after 1970").as_secs();
    let get = |seconds: u64| {
        let request = crate::client::Request {
            method: "GET",
            path: "/bucket".to_owned(),
            query: Vec::new(),
            headers: vec![("date", http_date(seconds))],
            body: b"",
        };
        let head = root.sign_without_amz_date(&request, now);
        let mut stream = root.connect();
        std::io::Write::write_all(&mut stream, head.as_bytes()).expect("the server reads");
        crate::client::receive(&mut stream)
    };
    get(now).is(200);
    get(now - 1).fails(403, "SignatureDoesNotMatch");
}

/// A time as headers of HTTP have it.
fn http_date(seconds: u64) -> String {
    let time = UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    let mut text = Vec::new();
    s3s::dto::Timestamp::from(time)
        .format(s3s::dto::TimestampFormat::HttpDate, &mut text)
        .expect("memory takes any text");
    String::from_utf8(text).expect("letters")
}

pub fn hmac_sha1(secret: &str, text: &str) -> String {
    use s3s::crypto::{Checksum as _, Sha1};
    let mut block = [0; 64];
    block[..secret.len()].copy_from_slice(secret.as_bytes());
    let inner = [&block.map(|byte: u8| byte ^ 0x36)[..], text.as_bytes()].concat();
    let outer = [&block.map(|byte| byte ^ 0x5c)[..], &Sha1::checksum(&inner)].concat();
    base64_simd::STANDARD.encode_to_string(Sha1::checksum(&outer))
}

#[test]
fn presigned_links_work_until_they_end() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let link = root.presign("PUT", "/bucket/k", 60);
    root.send_unsigned("PUT", &link, b"through a link").is(200);
    let link = root.presign("GET", "/bucket/k", 60);
    assert_eq!(
        root.send_unsigned("GET", &link, b"").is(200).body,
        b"through a link"
    );
    root.send_unsigned("DELETE", &link, b"")
        .fails(403, "SignatureDoesNotMatch");
    let link = root.presign("GET", "/bucket/k", 604_801);
    root.send_unsigned("GET", &link, b"")
        .fails(403, "AccessDenied");
    let link = root.presign("GET", "/bucket/k", 1);
    std::thread::sleep(std::time::Duration::from_millis(2100));
    root.send_unsigned("GET", &link, b"")
        .fails(403, "AccessDenied");
}

#[test]
fn oversized_and_smuggled_requests_are_refused() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    for head in [
        format!(
            "GET / HTTP/1.1\r\nhost: x\r\nlong: {}\r\n\r\n",
            "x".repeat(200_000)
        ),
        format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(200_000)),
        "PUT /b/k HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd"
            .to_owned(),
        "PUT /b/k HTTP/1.1\r\nhost: x\r\ncontent-length: x\r\n\r\nabcd".to_owned(),
        "PUT /b/k HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\nabcd".to_owned(),
        "NONSENSE\r\n\r\n".to_owned(),
    ] {
        let mut stream = root.connect();
        // The server may close before it has read all.
        let _ = stream.write_all(head.as_bytes());
        let mut text = String::new();
        let _ = std::io::Read::read_to_string(&mut stream, &mut text);
        let status = text.get(9..12).unwrap_or("none");
        assert!(
            ["400", "414", "431", "none"].contains(&status),
            "{head:.60}: {text}"
        );
    }
    root.put("/bucket", b"").is(200);
}

/// Botocore takes an answer that comes instead of `100 Continue` for that of the next request on the connection too.
#[test]
fn an_answer_before_the_body_ends_the_connection() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let put = |path: &str, body: &[u8]| {
        let request = Request {
            method: "PUT",
            path: path.to_owned(),
            query: Vec::new(),
            headers: vec![("expect", "100-continue".to_owned())],
            body,
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let head = root.sign(&request, now.expect("after 1970").as_secs());
        let head = head.replace("connection: close\r\n", "");
        let mut stream = root.connect();
        stream.write_all(head.as_bytes()).expect("the server reads");
        // Without an end of the connection this waits until the patience of the socket ends.
        let started = std::time::Instant::now();
        let answer = receive(&mut stream);
        assert!(started.elapsed().as_secs() < 20, "the connection stays");
        answer
    };
    put("/bucket/empty", b"").is(200);
    put("/nothing/k", b"body").fails(404, "NoSuchBucket");
}

#[test]
fn statistics_are_open_on_loopback() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let content = crate::pool::noise(1_000_000, 1);
    root.put("/bucket/1", &content).is(200);
    root.put("/bucket/2", &content).is(200);
    root.put("/bucket/small", b"inline").is(200);
    let stats = root.send_unsigned("GET", "/api/stats", b"").is(200);
    let stats: serde_json::Value = serde_json::from_slice(&stats.body).expect("JSON");
    let number = |name: &str| stats[name].as_f64().expect("a number");
    assert_eq!(
        number("dedup_total_references"),
        2.0 * number("dedup_unique_blobs")
    );
    assert_eq!(number("dedup_ratio"), 2.0);
    assert_eq!(number("unique_bytes"), 1_000_000.0);
    assert_eq!(number("logical_bytes"), 2_000_006.0);
    // A bucket of its own, which shares content with the other.
    root.put("/second", b"").is(200);
    root.put("/second/3", &content).is(200);
    let stats = report(&root, "second").is(200);
    let stats: serde_json::Value = serde_json::from_slice(&stats.body).expect("JSON");
    assert_eq!(stats["files"], 1);
    assert_eq!(stats["dedup_ratio"], 1.0);
    assert_eq!(stats["logical_bytes"], 1_000_000);
    assert_eq!(stats["unique_bytes"], 1_000_000);
    let stats = report(&root, "bucket").is(200);
    let stats: serde_json::Value = serde_json::from_slice(&stats.body).expect("JSON");
    assert_eq!(stats["files"], 3);
    assert_eq!(stats["dedup_ratio"], 2.0);
    assert_eq!(stats["logical_bytes"], 2_000_006);
    assert_eq!(stats["unique_bytes"], 1_000_000);
    report(&root, "none").fails(404, "NoSuchBucket");
    let metrics = root.send_unsigned("GET", "/metrics", b"").is(200).text();
    for line in [
        "cfs_s3_request_seconds_bucket{operation=\"PutObject\",le=\"+Inf\"} 4",
        "cfs_reclaim_segments_total 0",
        "cfs_s3_requests_under_way 1",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    assert!(
        metrics.contains("cfs_s3_requests_total{operation=\"PutObject\",status=\"200\"} 4"),
        "{metrics}"
    );
}

#[test]
fn a_taken_port_is_an_error() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let taken: SocketAddr = served.server.address();
    let again = cfs_s3::S3Server::start(
        served.fs.clone(),
        served.users.clone(),
        served.told.clone(),
        cfs_s3::Listening::at(taken),
    );
    let error = again.err().expect("it is taken").to_string();
    assert!(error.contains(&taken.to_string()), "{error}");
}
