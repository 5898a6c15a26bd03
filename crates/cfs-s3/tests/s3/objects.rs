//! Objects: putting, getting, conditions, copies, durability.

use std::io::Write;

use cfs_format::Ino;

use crate::client::{Request, hex};
use crate::pool::{Pool, noise};

#[test]
fn an_object_comes_back_with_what_was_said_of_it() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let headers = [
        ("content-type", "text/plain"),
        ("cache-control", "no-store"),
        ("x-amz-meta-colour", "blue"),
        ("x-amz-tagging", "a=1&b=2"),
    ];
    let put = root
        .send_with("PUT", "/bucket/a/b", &[], &headers, b"hello")
        .is(200);
    assert_eq!(put.header("etag"), "\"5d41402abc4b2a76b9719d911017c592\"");
    let got = root.get("/bucket/a/b").is(200);
    assert_eq!(got.body, b"hello");
    for (name, value) in &headers[..3] {
        assert_eq!(got.header(name), *value);
    }
    assert_eq!(got.header("x-amz-tagging-count"), "2");
    assert_eq!(got.header("etag"), put.header("etag"));
    let head = root.send("HEAD", "/bucket/a/b", &[], b"").is(200);
    assert_eq!(head.header("content-length"), "5");
    let tags = root
        .send("GET", "/bucket/a/b", &[("tagging", "")], b"")
        .is(200);
    assert_eq!(tags.all("Value"), ["1", "2"]);
    root.get("/bucket/a").fails(404, "NoSuchKey");
    root.get("/nothing/a").fails(404, "NoSuchBucket");
    root.delete("/bucket").fails(409, "BucketNotEmpty");
    root.delete("/bucket/a/b").is(204);
    root.delete("/bucket/a/b").is(204);
    root.delete("/bucket").is(204);
    served.assert_clean();
}

#[test]
fn ranges_are_parts_of_the_content() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let content = noise(3_000_000, 1);
    root.put("/bucket/big", &content).is(200);
    assert!(root.get("/bucket/big").is(200).body == content);
    for (range, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=1000000-2000000", 1_000_000, 2_000_001),
        ("bytes=2999999-9999999", 2_999_999, 3_000_000),
        ("bytes=-5", 2_999_995, 3_000_000),
        ("bytes=1500000-", 1_500_000, 3_000_000),
    ] {
        let got = root
            .send_with("GET", "/bucket/big", &[], &[("range", range)], b"")
            .is(206);
        assert!(got.body == content[from..to], "{range}");
        assert_eq!(
            got.header("content-range"),
            format!("bytes {from}-{}/3000000", to - 1)
        );
    }
    let beyond = [("range", "bytes=3000000-")];
    root.send_with("GET", "/bucket/big", &[], &beyond, b"")
        .fails(416, "InvalidRange");
}

#[test]
fn conditions_hold() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let put = |headers: &[(&str, &str)], body: &[u8]| {
        root.send_with("PUT", "/bucket/k", &[], headers, body)
    };
    put(&[("if-match", "\"00\"")], b"x").fails(404, "NoSuchKey");
    let etag = put(&[("if-none-match", "*")], b"one")
        .is(200)
        .header("etag")
        .to_owned();
    put(&[("if-none-match", "*")], b"two").fails(412, "PreconditionFailed");
    put(&[("if-match", "\"00\"")], b"two").fails(412, "PreconditionFailed");
    assert_eq!(root.get("/bucket/k").body, b"one");
    put(&[("if-match", &etag)], b"two").is(200);
    let get = |headers: &[(&str, &str)]| root.send_with("GET", "/bucket/k", &[], headers, b"");
    get(&[("if-match", &etag)]).fails(412, "PreconditionFailed");
    assert_eq!(get(&[("if-none-match", &etag)]).is(200).body, b"two");
    let etag = get(&[]).header("etag").to_owned();
    assert_eq!(get(&[("if-none-match", &etag)]).is(304).body, b"");
    get(&[("if-modified-since", "Fri, 01 Jan 2038 00:00:00 GMT")]).is(304);
    get(&[("if-unmodified-since", "Fri, 01 Jan 1999 00:00:00 GMT")]).is(412);
}

/// Sixteen threads put under one key if nothing is there: one may win.
#[test]
fn one_of_many_creates() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    for round in 0..8 {
        let path = format!("/bucket/{round}");
        let won: u32 = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..8)
                .map(|number: u32| {
                    let (root, path) = (&root, &path);
                    scope.spawn(move || {
                        let body = number.to_string();
                        let headers = [("if-none-match", "*")];
                        root.send_with("PUT", path, &[], &headers, body.as_bytes())
                            .status
                    })
                })
                .collect();
            tries
                .into_iter()
                .map(|one| u32::from(one.join().expect("no panic") == 200))
                .sum()
        });
        assert_eq!(won, 1);
    }
}

#[test]
fn a_copy_takes_no_room() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let content = noise(4_000_000, 2);
    let headers = [("x-amz-meta-a", "1")];
    root.send_with("PUT", "/bucket/from", &[], &headers, &content)
        .is(200);
    let stored = || served.fs.store().stats().pool.chunk_stored_bytes.get();
    let before = stored();
    let source = [("x-amz-copy-source", "/bucket/from")];
    root.send_with("PUT", "/bucket/to/1", &[], &source, b"")
        .is(200);
    let replace = [
        ("x-amz-copy-source", "bucket/from"),
        ("x-amz-metadata-directive", "REPLACE"),
        ("x-amz-meta-b", "2"),
    ];
    root.send_with("PUT", "/bucket/to/2", &[], &replace, b"")
        .is(200);
    assert_eq!(stored(), before);
    let one = root.get("/bucket/to/1").is(200);
    assert!(one.body == content && one.header("x-amz-meta-a") == "1");
    let two = root.get("/bucket/to/2").is(200);
    assert!(two.body == content && two.header("x-amz-meta-a").is_empty());
    assert_eq!(two.header("x-amz-meta-b"), "2");
    assert_eq!(one.header("etag"), two.header("etag"));
    let itself = [("x-amz-copy-source", "/bucket/to/1")];
    root.send_with("PUT", "/bucket/to/1", &[], &itself, b"")
        .fails(400, "InvalidRequest");
    served.assert_clean();
}

/// What arrives through S3 shares its chunks with what arrives through the mount.
#[test]
fn both_ways_in_share_chunks() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let content = noise(4_000_000, 3);
    served.write(Ino::ROOT, "file", &content);
    served.fs.syncfs().expect("room");
    let stored = || served.fs.store().stats().pool.chunk_stored_bytes.get();
    let before = stored();
    root.put("/bucket/object", &content).is(200);
    assert_eq!(stored(), before);
}

/// What was acknowledged is there after a power cut, whatever the device had not flushed.
#[test]
fn acknowledged_is_durable() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    root.put("/bucket/old", b"old").is(200);
    root.put("/bucket/gone", b"gone").is(200);
    let content = noise(1_000_000, 4);
    root.send_with(
        "PUT",
        "/bucket/dir/new",
        &[],
        &[("x-amz-meta-a", "b")],
        &content,
    )
    .is(200);
    root.put("/bucket/old", b"newer").is(200);
    root.delete("/bucket/gone").is(204);
    for seed in 0..16 {
        let cut = pool.power_cut(seed);
        let again = cut.serve();
        let client = again.client(&again.users.list()[0].keys[0]);
        let new = client.get("/bucket/dir/new").is(200);
        assert!(
            new.body == content && new.header("x-amz-meta-a") == "b",
            "seed {seed}"
        );
        assert_eq!(
            client.get("/bucket/old").is(200).body,
            b"newer",
            "seed {seed}"
        );
        client.get("/bucket/gone").fails(404, "NoSuchKey");
        again.assert_clean();
    }
}

/// A client that goes away in the middle leaves nothing, neither a name nor room that is taken.
#[test]
fn a_cut_connection_leaves_nothing() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    root.put("/bucket/k", b"before").is(200);
    let content = noise(2_000_000, 5);
    let inodes = || -> u64 {
        let volumes = served.fs.store().volumes();
        volumes
            .iter()
            .map(|(_, volume)| volume.inode_count.get())
            .sum()
    };
    let before = inodes();
    for cut in [1, 70_000, 1_999_999] {
        let request = Request {
            method: "PUT",
            path: "/bucket/k".to_owned(),
            query: Vec::new(),
            headers: Vec::new(),
            body: &content,
        };
        let head = root.sign(&request, now());
        let mut stream = root.connect();
        stream.write_all(head.as_bytes()).expect("the server reads");
        stream.write_all(&content[..cut]).expect("the server reads");
        drop(stream);
        assert_eq!(root.get("/bucket/k").is(200).body, b"before");
        let gone = (0..500).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            inodes() == before
        });
        assert!(gone, "the file that was not completed is still there");
    }
    served.assert_clean();
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

#[test]
fn a_body_must_be_what_was_signed() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let wrong = hex(&[0x11; 32]);
    let headers = [("x-amz-content-sha256", wrong.as_str())];
    root.send_with("PUT", "/bucket/k", &[], &headers, b"body")
        .fails(400, "XAmzContentSHA256Mismatch");
    root.send_with(
        "PUT",
        "/bucket/k",
        &[],
        &[("content-md5", "rL0Y20zC+Fzt72VPzMSk2A==")],
        b"body",
    )
    .fails(400, "BadDigest");
    root.send_with(
        "PUT",
        "/bucket/k",
        &[],
        &[("content-md5", "nonsense")],
        b"body",
    )
    .fails(400, "InvalidDigest");
    root.send_with(
        "PUT",
        "/bucket/k",
        &[],
        &[("x-amz-checksum-crc32", "AAAAAA==")],
        b"body",
    )
    .fails(400, "BadDigest");
    root.get("/bucket/k").fails(404, "NoSuchKey");
    let right = [(
        "x-amz-checksum-sha256",
        "Iw2DWNjOiJC0wIHVxuifPCewx7p7ce/CUKqLavI5YiU=",
    )];
    root.send_with("PUT", "/bucket/k", &[], &right, b"body")
        .is(400);
    root.put("/bucket/k", b"body").is(200);
}

/// A pool without room says so with a status that clients do not retry, and deleting makes room.
#[test]
fn a_full_pool_says_so() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let mut count = 0;
    loop {
        let answer = root.put(&format!("/bucket/{count}"), &noise(8_000_000, 100 + count));
        if answer.status != 200 {
            answer.fails(507, "InsufficientStorage");
            break;
        }
        count += 1;
        assert!(count < 100, "it never fills");
    }
    assert!(count > 2, "it is full from the start");
    for number in 0..count {
        root.delete(&format!("/bucket/{number}")).is(204);
    }
    root.put("/bucket/after", &noise(8_000_000, 1)).is(200);
    served.assert_clean();
}

/// Content that clients do not get an MD5 of has an ETag that they do not take for one.
#[test]
fn etags_can_be_made_of_sha256() {
    let pool = Pool::new(64);
    let free = "127.0.0.1:0".parse().expect("an address");
    let served = pool.serve_at(cfs_s3::Listening {
        etags: cfs_s3::Etags::Sha256,
        ..cfs_s3::Listening::at(free)
    });
    let root = served.root();
    root.put("/bucket", b"").is(200);
    // Of "hello".
    let etag = "\"2cf24dba5fb0a30e26e83b2ac5b9e29e-1\"";
    assert_eq!(root.put("/bucket/k", b"hello").is(200).header("etag"), etag);
    assert_eq!(root.get("/bucket/k").is(200).header("etag"), etag);
    let matching = [("if-match", etag)];
    root.send_with("GET", "/bucket/k", &[], &matching, b"")
        .is(200);
    let bucket = served.resolve("/bucket").ino;
    served.write(bucket, "file", b"hello");
    assert_eq!(root.get("/bucket/file").is(200).header("etag"), etag);
    // An MD5 that is given is verified, and then is the ETag.
    let wrong = [("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==")];
    root.send_with("PUT", "/bucket/k", &[], &wrong, b"hello")
        .fails(400, "BadDigest");
    let right = [("content-md5", "XUFAKrxLKna5cZ2REBfFkg==")];
    let put = root
        .send_with("PUT", "/bucket/k", &[], &right, b"hello")
        .is(200);
    assert_eq!(put.header("etag"), "\"5d41402abc4b2a76b9719d911017c592\"");
    let begun = root
        .send("POST", "/bucket/parts", &[("uploads", "")], b"")
        .is(200);
    let id = begun.all("UploadId").remove(0);
    let part = root.send(
        "PUT",
        "/bucket/parts",
        &[("partNumber", "1"), ("uploadId", &id)],
        b"hello",
    );
    assert_eq!(part.is(200).header("etag"), etag);
    let list = format!(
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
    );
    root.send(
        "POST",
        "/bucket/parts",
        &[("uploadId", &id)],
        list.as_bytes(),
    )
    .is(200);
    assert!(
        root.get("/bucket/parts")
            .is(200)
            .header("etag")
            .ends_with("-1\"")
    );
}
