//! What a client can make the server do and hold, and how requests end with the server.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant, SystemTime};

use crate::client::{Answer, Client, Request, receive};
use crate::pool::{Pool, noise};

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

/// The signed head of a PUT of so many bytes that are not signed.
fn put_head(client: &Client, path: &str, more: &[(&'static str, String)]) -> String {
    let mut headers = more.to_vec();
    if !headers
        .iter()
        .any(|(name, _)| *name == "x-amz-content-sha256")
    {
        headers.push(("x-amz-content-sha256", "UNSIGNED-PAYLOAD".to_owned()));
    }
    let request = Request {
        method: "PUT",
        path: path.to_owned(),
        query: Vec::new(),
        headers,
        body: b"",
    };
    client.sign(&request, now())
}

fn send(client: &Client, head: &str, body: &[u8]) -> Answer {
    let mut stream = client.connect();
    stream.write_all(head.as_bytes()).expect("the server reads");
    // Who is refused may find the connection closed.
    let _ = stream.write_all(body);
    receive(&mut stream)
}

fn answers(stream: &mut TcpStream) -> (usize, String) {
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    (text.matches("HTTP/1.1 ").count(), text)
}

/// What one reader of a request takes for its body is another's next request: a proxy in front of us that goes by the
/// length would have let the second one through unseen.
#[test]
fn nothing_is_smuggled_behind_a_body_with_two_lengths() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    root.put("/bucket/k", b"stays").is(200);
    let hidden = root
        .sign(
            &Request {
                method: "DELETE",
                path: "/bucket/k".to_owned(),
                query: Vec::new(),
                headers: Vec::new(),
                body: b"",
            },
            now(),
        )
        .replace("connection: close\r\n", "");
    let body = format!("1\r\nx\r\n0\r\n\r\n{hidden}");
    for lengths in [
        format!(
            "content-length: {}\r\ntransfer-encoding: chunked\r\n",
            body.len()
        ),
        format!(
            "transfer-encoding: chunked\r\ncontent-length: {}\r\n",
            body.len()
        ),
        "transfer-encoding: chunked\r\n".to_owned(),
    ] {
        let head = put_head(&root, "/bucket/other", &[]);
        let head = head
            .replace("content-length: 0\r\n", &lengths)
            .replace("connection: close\r\n", "");
        let mut stream = root.connect();
        stream
            .write_all((head + &body).as_bytes())
            .expect("the server reads");
        let started = Instant::now();
        let (count, text) = answers(&mut stream);
        assert_eq!(count, 1, "{lengths}: {text}");
        assert!(started.elapsed() < Duration::from_secs(20), "it is closed");
    }
    root.get("/bucket/k").is(200);
    let mut stream = root.connect();
    stream
        .write_all(b"GET /bucket HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n")
        .expect("the server reads");
    receive(&mut stream).fails(400, "InvalidRequest");
}

#[test]
fn chunks_of_a_body_may_be_long_but_not_held_without_end() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let content = noise(20_000_000, 3);
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, &content) as u32;
    let crc = base64_simd::STANDARD.encode_to_string(crc.to_be_bytes());
    let body = [
        format!("{:x}\r\n", content.len()).into_bytes(),
        content.clone(),
        format!("\r\n0\r\nx-amz-checksum-crc32:{crc}\r\n\r\n").into_bytes(),
    ]
    .concat();
    let headers = |kind: &str, bytes: usize| {
        vec![
            ("content-encoding", "aws-chunked".to_owned()),
            ("content-length", bytes.to_string()),
            ("x-amz-content-sha256", kind.to_owned()),
            ("x-amz-decoded-content-length", content.len().to_string()),
        ]
    };
    let mut unsigned = headers("STREAMING-UNSIGNED-PAYLOAD-TRAILER", body.len());
    unsigned.push(("x-amz-trailer", "x-amz-checksum-crc32".to_owned()));
    send(&root, &put_head(&root, "/bucket/long", &unsigned), &body).is(200);
    assert_eq!(root.get("/bucket/long").is(200).body, content);
    let line = format!("{:x};chunk-signature={}\r\n", 17 << 20, "0".repeat(64));
    let signed = headers(
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
        line.len() + (17 << 20) + 2,
    );
    let answer = send(
        &root,
        &put_head(&root, "/bucket/signed", &signed),
        line.as_bytes(),
    );
    answer.fails(400, "IncompleteBody");
    root.send("POST", "/bucket", &[("delete", "")], &noise(9 << 20, 4))
        .fails(400, "EntityTooLarge");
}

#[test]
fn requests_end_with_the_server_or_leave_nothing() {
    let pool = Pool::new(64);
    let mut served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let before = served.fs.store().stats().pool.chunk_stored_bytes.get();
    let content = noise(3_000_000, 1);
    let begin = |key: &str, bytes: usize| {
        let length = vec![("content-length", content.len().to_string())];
        let mut stream = root.connect();
        let head = put_head(&root, key, &length);
        stream.write_all(head.as_bytes()).expect("it is taken");
        stream.write_all(&content[..bytes]).expect("it is taken");
        stream
    };
    let mut ended = begin("/bucket/ended", 1_000_000);
    let mut cut = begin("/bucket/cut", 1_000_000);
    std::thread::sleep(Duration::from_millis(300));
    let rest = content[1_000_000..].to_vec();
    let client = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(1000));
        ended.write_all(&rest).expect("it is still taken");
        receive(&mut ended)
    });
    let another = another_server(&served);
    let server = std::mem::replace(&mut served.server, another);
    let started = Instant::now();
    drop(server);
    assert!(
        started.elapsed() < Duration::from_secs(15),
        "it ends in time"
    );
    client.join().expect("an answer").is(200);
    let (count, text) = answers(&mut cut);
    assert_eq!(count, 0, "{text}");
    let kept = served.resolve("/bucket/ended");
    assert_eq!(kept.size, 3_000_000);
    assert!(served.fs.resolve(b"/bucket/cut").is_err());
    let names = served
        .fs
        .names_from(served.resolve("/bucket").ino, b"", 10)
        .expect("a directory");
    assert_eq!(names.len(), 1);
    let stored = served.fs.store().stats().pool.chunk_stored_bytes.get() - before;
    assert!(
        stored <= 3_100_000,
        "what was cut off still takes room: {stored}"
    );
    served.assert_clean();
}

/// Another server of the same pool, as every [`crate::pool::Served`] has one.
fn another_server(served: &crate::pool::Served) -> cfs_s3::S3Server {
    cfs_s3::S3Server::start(
        served.fs.clone(),
        served.users.clone(),
        served.told.clone(),
        cfs_s3::Listening::at("127.0.0.1:0".parse().expect("an address")),
    )
    .expect("a free port")
}

/// Clients that take or send a byte now and then, while others are served.
#[test]
fn slow_clients_are_bounded_and_others_served() {
    const SLOW: usize = 60;
    let pool = Pool::new(96);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let content = noise(8_000_000, 5);
    root.put("/bucket/large", &content).is(200);
    let mut slow = Vec::new();
    for number in 0..SLOW {
        let mut stream = root.connect();
        let request = Request {
            method: "GET",
            path: "/bucket/large".to_owned(),
            query: Vec::new(),
            headers: Vec::new(),
            body: b"",
        };
        let head = root.sign(&request, now());
        stream.write_all(head.as_bytes()).expect("it is taken");
        slow.push(stream);
        let length = vec![("content-length", "1000000".to_owned())];
        let mut stream = root.connect();
        let head = put_head(&root, &format!("/bucket/{number}"), &length);
        stream.write_all(head.as_bytes()).expect("it is taken");
        stream.write_all(b"x").expect("it is taken");
        slow.push(stream);
    }
    std::thread::sleep(Duration::from_millis(300));
    // All large steps are on their way to somebody by now; small ones do as well.
    let started = Instant::now();
    assert!(root.get("/bucket/large").is(200).body == content);
    root.put("/bucket/quick", &content).is(200);
    assert!(started.elapsed() < Duration::from_secs(20), "others wait");
    drop(slow);
    assert!(root.get("/bucket/quick").is(200).body == content);
}
