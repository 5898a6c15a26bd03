//! How the server is reached: over TLS, and with the bucket in the host's name.

use std::io::Write;
use std::net::SocketAddr;
use std::time::SystemTime;

use cfs_s3::{Certificate, Listening};

use crate::client::{Answer, Client, Request, receive};
use crate::pool::Pool;

fn listening() -> Listening {
    let free: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    Listening::at(free)
}

#[test]
fn https_is_spoken_with_a_certificate() {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let pem = Certificate::make(&names).expect("names");
    let certificate =
        Certificate::from_pem(pem.chain.as_bytes(), pem.key.as_bytes()).expect("they fit");
    assert!(certificate.is_for("localhost") && certificate.is_for("127.0.0.1"));
    assert!(!certificate.is_for("elsewhere") && !certificate.is_for("127.0.0.2"));
    let other = Certificate::make(&names).expect("names");
    assert!(Certificate::from_pem(pem.chain.as_bytes(), other.key.as_bytes()).is_err());
    assert!(Certificate::from_pem(b"", pem.key.as_bytes()).is_err());
    assert!(Certificate::from_pem(pem.chain.as_bytes(), b"").is_err());

    let pool = Pool::new(64);
    let served = pool.serve_at(Listening {
        certificate: Some(certificate),
        ..listening()
    });
    let root = served.root();
    let answer = root
        .get_over_tls("localhost", "/", pem.chain.as_bytes())
        .expect("it is trusted");
    answer.is(200);
    assert!(
        root.get_over_tls("localhost", "/", other.chain.as_bytes())
            .is_err()
    );
    // Who does not speak TLS gets no answer in the clear.
    let mut stream = root.connect();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .expect("it is taken");
    let mut answer = Vec::new();
    let _ = std::io::Read::read_to_end(&mut stream, &mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}

/// Sends a signed request to a host of this name.
fn send(client: &Client, host: &str, method: &str, path: &str, body: &[u8]) -> Answer {
    let request = Request {
        method,
        path: path.to_owned(),
        query: Vec::new(),
        headers: vec![("host", host.to_owned())],
        body,
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let head = client.sign(&request, now.expect("after 1970").as_secs());
    let mut stream = client.connect();
    stream.write_all(head.as_bytes()).expect("the server reads");
    let _ = stream.write_all(body);
    receive(&mut stream)
}

#[test]
fn a_bucket_can_stand_in_the_hosts_name() {
    let pool = Pool::new(64);
    let served = pool.serve_at(Listening {
        domains: vec!["s3.example.com".to_owned()],
        ..listening()
    });
    let root = served.root();
    send(&root, "photos.localhost:9000", "PUT", "/", b"").is(200);
    send(&root, "photos.localhost", "PUT", "/dir/k", b"one").is(200);
    assert_eq!(root.get("/photos/dir/k").is(200).body, b"one");
    let got = send(&root, "photos.s3.example.com", "GET", "/dir/k", b"").is(200);
    assert_eq!(got.body, b"one");
    assert_eq!(
        send(&root, "Photos.S3.example.com:443", "GET", "/", b"")
            .is(200)
            .all("Key"),
        ["dir/k"]
    );
    send(&root, "s3.example.com", "GET", "/photos/dir/k", b"").is(200);
    // By any other name it is the path that counts.
    send(&root, "nas.local:9000", "GET", "/photos/dir/k", b"").is(200);
    send(&root, "photos.localhost", "GET", "/../secret", b"").fails(404, "NoSuchKey");
    // Statistics are below the server's own names; elsewhere it is a key like another.
    send(&root, "photos.localhost", "PUT", "/metrics", b"mine").is(200);
    assert_eq!(
        send(&root, "photos.localhost", "GET", "/metrics", b"").body,
        b"mine"
    );
    let rule = b"<CORSConfiguration><CORSRule><AllowedOrigin>http://a</AllowedOrigin><AllowedMethod>GET</AllowedMethod></CORSRule></CORSConfiguration>";
    root.send("PUT", "/photos", &[("cors", "")], rule).is(200);
    let mut stream = root.connect();
    stream
        .write_all(b"OPTIONS /dir/k HTTP/1.1\r\nhost: photos.localhost\r\norigin: http://a\r\naccess-control-request-method: GET\r\nconnection: close\r\n\r\n")
        .expect("it is taken");
    let answer = receive(&mut stream).is(200);
    assert_eq!(answer.header("access-control-allow-origin"), "http://a");
}

/// An address of this machine that is not its loopback; none where there is no network. Nothing is sent.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

fn basic(client: &Client, secret: &str) -> String {
    let pair = format!("{}:{secret}", client.access_key_id);
    let pair = base64_simd::STANDARD.encode_to_string(pair);
    format!("authorization: Basic {pair}\r\n")
}

/// What is told of a bucket to who has this key.
pub fn report(client: &Client, bucket: &str) -> Answer {
    let head = format!(
        "GET /api/stats?bucket={bucket} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{}\r\n",
        basic(client, &client.secret_access_key),
    );
    let mut stream = client.connect();
    stream.write_all(head.as_bytes()).expect("it is taken");
    receive(&mut stream)
}

#[test]
fn statistics_are_for_root_elsewhere() {
    let Some(own) = own_address() else {
        eprintln!("not run: this machine has no address but its loopback");
        return;
    };
    let pem = Certificate::make(&["localhost".to_owned()]).expect("names");
    let certificate =
        Certificate::from_pem(pem.chain.as_bytes(), pem.key.as_bytes()).expect("they fit");
    let pool = Pool::new(64);
    let plain = pool.serve_at(Listening::at(SocketAddr::new(own, 0)));
    let encrypted = cfs_s3::S3Server::start(
        plain.fs.clone(),
        plain.users.clone(),
        plain.told.clone(),
        Listening {
            certificate: Some(certificate),
            ..Listening::at(SocketAddr::new(own, 0))
        },
    )
    .expect("a free port");
    let root = plain.root();
    let alice = plain.user("alice");
    let right = basic(&root, &root.secret_access_key);
    for (credentials, status) in [
        (right.clone(), 200),
        (String::new(), 401),
        (basic(&root, "wrong"), 401),
        (basic(&alice, &alice.secret_access_key), 401),
    ] {
        let head = format!(
            "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{credentials}\r\n"
        );
        let there = Client {
            address: encrypted.address(),
            ..root.clone()
        };
        let answer = there.send_over_tls("localhost", &head, pem.chain.as_bytes());
        answer.expect("it is trusted").is(status);
        // In the clear nobody is to send a secret.
        let mut stream = root.connect();
        stream.write_all(head.as_bytes()).expect("it is taken");
        receive(&mut stream).is(401);
    }
}

/// A name that was given our address for a while is none of ours: a page of that name asks from this machine.
#[test]
fn statistics_are_told_by_names_of_this_machine() {
    let pool = Pool::new(64);
    let served = pool.serve();
    for (version, host, status) in [
        ("1.1", "host: 127.0.0.1:9000\r\n", 200),
        ("1.1", "host: evil.example\r\n", 401),
        ("1.1", "host: localhost\r\nhost: localhost\r\n", 400),
        ("1.1", "", 400),
        ("1.0", "", 401),
    ] {
        for target in ["/metrics", "/api/stats"] {
            let head = format!("GET {target} HTTP/{version}\r\n{host}connection: close\r\n\r\n");
            let mut stream = served.root().connect();
            stream.write_all(head.as_bytes()).expect("it is taken");
            receive(&mut stream).is(status);
        }
    }
}

/// A policy that denies what is not encrypted denied what is.
#[test]
fn a_policy_can_ask_for_encryption() {
    let pem = Certificate::make(&["localhost".to_owned()]).expect("names");
    let certificate =
        Certificate::from_pem(pem.chain.as_bytes(), pem.key.as_bytes()).expect("they fit");
    let pool = Pool::new(64);
    let plain = pool.serve();
    let encrypted = cfs_s3::S3Server::start(
        plain.fs.clone(),
        plain.users.clone(),
        plain.told.clone(),
        Listening {
            certificate: Some(certificate),
            ..listening()
        },
    )
    .expect("a free port");
    let alice = plain.user("alice");
    alice.put("/bucket", b"").is(200);
    alice.put("/bucket/k", b"content").is(200);
    let policy = br#"{"Statement": {"Effect": "Deny", "Principal": "*", "Action": "s3:*",
        "Resource": ["arn:aws:s3:::bucket", "arn:aws:s3:::bucket/*"],
        "Condition": {"Bool": {"aws:SecureTransport": "false"}}}}"#;
    alice
        .send("PUT", "/bucket", &[("policy", "")], policy)
        .is(204);
    alice.get("/bucket/k").fails(403, "AccessDenied");
    let there = Client {
        address: encrypted.address(),
        ..alice.clone()
    };
    let answer = there.get_over_tls("localhost", "/bucket/k", pem.chain.as_bytes());
    assert_eq!(answer.expect("it is trusted").is(200).body, b"content");
}

/// Who asks from this machine may look, but not at a bucket, and not for others, as a proxy does.
#[test]
fn what_a_proxy_passes_on_is_from_elsewhere() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let (root, alice) = (served.root(), served.user("alice"));
    let right = basic(&root, &root.secret_access_key);
    root.put("/bucket", b"").is(200);
    let nothing = String::new();
    for (target, headers, status) in [
        ("/metrics", nothing.clone(), 200),
        ("/api/stats", nothing.clone(), 200),
        ("/api/stats?bucket=bucket", nothing.clone(), 401),
        ("/api/stats?bucket=bucket", right.clone(), 200),
        (
            "/api/stats?bucket=bucket",
            basic(&alice, &alice.secret_access_key),
            401,
        ),
        ("/metrics", "x-forwarded-for: 192.0.2.1\r\n".to_owned(), 401),
        ("/metrics", "Forwarded: for=192.0.2.1\r\n".to_owned(), 401),
        ("/api/stats", "via: 1.1 proxy\r\n".to_owned(), 401),
        ("/metrics", format!("x-real-ip: 192.0.2.1\r\n{right}"), 200),
        ("/metrics", "host: localhost\r\n".to_owned(), 400),
    ] {
        let head = format!(
            "GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n"
        );
        let mut stream = root.connect();
        stream.write_all(head.as_bytes()).expect("it is taken");
        receive(&mut stream).is(status);
    }
}
