//! Keys that clients bring: each has a store of its own, and none is kept.

use md5::{Digest, Md5};

use crate::client::{Answer, Client};
use crate::pool::{Pool, Served, noise};

/// The headers that bring a key.
fn brings(seed: u8, prefix: &str) -> Vec<(String, String)> {
    let key = [seed; 32];
    let name = |last: &str| format!("{prefix}server-side-encryption-customer-{last}");
    let base64 = |bytes: &[u8]| base64_simd::STANDARD.encode_to_string(bytes);
    vec![
        (name("algorithm"), "AES256".to_owned()),
        (name("key"), base64(&key)),
        (name("key-md5"), base64(&Md5::digest(key))),
    ]
}

fn send(
    client: &Client,
    method: &str,
    path: &str,
    query: &[(&str, &str)],
    headers: &[(String, String)],
    body: &[u8],
) -> Answer {
    let headers: Vec<_> = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    client.send_with(method, path, query, &headers, body)
}

fn mine(seed: u8) -> Vec<(String, String)> {
    brings(seed, "x-amz-")
}

fn chunks(served: &Served) -> u64 {
    served.fs.store().stats().pool.chunk_count.get()
}

#[test]
fn an_object_is_read_with_its_key_alone() {
    let pool = Pool::new(128);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    for bytes in [0, 1, 65_535, 65_536, 65_537, 300_000] {
        let path = format!("/bucket/{bytes}");
        let content = noise(bytes, 5);
        let put = send(&root, "PUT", &path, &[], &mine(1), &content).is(200);
        assert_eq!(
            put.header("x-amz-server-side-encryption-customer-algorithm"),
            "AES256"
        );
        assert_eq!(put.header("x-amz-server-side-encryption"), "");
        let got = send(&root, "GET", &path, &[], &mine(1), b"").is(200);
        assert_eq!(got.body, content, "{bytes} bytes");
        let head = send(&root, "HEAD", &path, &[], &mine(1), b"").is(200);
        assert_eq!(head.header("content-length"), bytes.to_string());
        for headers in [Vec::new(), mine(2)] {
            send(&root, "GET", &path, &[], &headers, b"").fails(400, "InvalidRequest");
            assert_eq!(send(&root, "HEAD", &path, &[], &headers, b"").status, 400);
        }
        let file = served.resolve(&path);
        let stored = served.read(file.ino);
        assert!(bytes < 16 || !stored.windows(16).any(|window| window == &content[..16]));
        // Neither the key nor its MD5 nor that of the content is anywhere beside it.
        let records = served.fs.records(file.ino, b"").expect("records");
        let texts: Vec<_> = records
            .iter()
            .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
            .collect();
        let md5 = crate::client::hex(&Md5::digest(&content));
        for secret in [&mine(1)[1].1, &mine(1)[2].1, &"01".repeat(32), &md5] {
            assert!(!texts.iter().any(|text| text.contains(secret)), "{secret}");
        }
    }
    let content = noise(300_000, 5);
    for (range, part) in [
        ("bytes=0-0", 0..1),
        ("bytes=65535-65536", 65_535..65_537),
        ("bytes=100000-299999", 100_000..300_000),
        ("bytes=-1", 299_999..300_000),
    ] {
        let mut headers = mine(1);
        headers.push(("range".to_owned(), range.to_owned()));
        let got = send(&root, "GET", "/bucket/300000", &[], &headers, b"").is(206);
        assert_eq!(got.body, content[part], "{range}");
    }
    let listed = root.get("/bucket").is(200).all("Size");
    assert_eq!(listed, ["0", "1", "300000", "65535", "65536", "65537"]);
    // What has no key takes none.
    root.put("/bucket/plain", b"plain").is(200);
    send(&root, "GET", "/bucket/plain", &[], &mine(1), b"").fails(400, "InvalidRequest");
    let mut wrong = mine(1);
    wrong[2].1 = mine(2)[2].1.clone();
    send(&root, "PUT", "/bucket/wrong", &[], &wrong, b"1").fails(400, "InvalidArgument");
    send(&root, "PUT", "/bucket/wrong", &[], &mine(1)[1..], b"1").fails(400, "InvalidArgument");
    served.assert_clean();
}

#[test]
fn each_key_is_a_dedup_domain_of_its_own() {
    let pool = Pool::new(128);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let content = noise(1 << 20, 9);
    let put = |name: &str, headers: &[(String, String)]| {
        let before = chunks(&served);
        let path = format!("/bucket/{name}");
        send(&root, "PUT", &path, &[], headers, &content).is(200);
        chunks(&served) - before
    };
    assert!(put("plain", &[]) > 0);
    assert!(
        put("one", &mine(1)) > 0,
        "shares nothing with what has no key"
    );
    assert_eq!(put("same", &mine(1)), 0, "shares all with the same key");
    assert!(
        put("other", &mine(2)) > 0,
        "shares nothing with another key"
    );
    served.assert_clean();
}

#[test]
fn parts_and_copies_take_keys() {
    let pool = Pool::new(256);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let begun = send(
        &root,
        "POST",
        "/bucket/k",
        &[("uploads", "")],
        &mine(1),
        b"",
    )
    .is(200);
    let id = begun.all("UploadId").remove(0);
    let parts = [noise(5 << 20, 1), noise(70_000, 2)];
    let part = |number: &str, headers: &[(String, String)], body: &[u8]| {
        let query = [("partNumber", number), ("uploadId", id.as_str())];
        send(&root, "PUT", "/bucket/k", &query, headers, body)
    };
    part("1", &[], &parts[0]).fails(400, "InvalidRequest");
    part("1", &mine(2), &parts[0]).fails(400, "InvalidRequest");
    let mut list = String::new();
    for (index, body) in parts.iter().enumerate() {
        let number = (index + 1).to_string();
        let etag = part(&number, &mine(1), body)
            .is(200)
            .header("etag")
            .to_owned();
        list += &format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>");
    }
    let list = format!("<CompleteMultipartUpload>{list}</CompleteMultipartUpload>");
    let complete = |headers: &[(String, String)]| {
        let query = [("uploadId", id.as_str())];
        send(&root, "POST", "/bucket/k", &query, headers, list.as_bytes())
    };
    complete(&mine(2)).fails(400, "InvalidRequest");
    complete(&mine(1)).is(200);
    let content = parts.concat();
    let got = send(&root, "GET", "/bucket/k", &[], &mine(1), b"").is(200);
    assert!(got.body == content);
    let mut headers = mine(1);
    let across = (5 << 20) - 10..(5 << 20) + 10;
    let range = format!("bytes={}-{}", across.start, across.end - 1);
    headers.push(("range".to_owned(), range));
    let got = send(&root, "GET", "/bucket/k", &[], &headers, b"").is(206);
    assert_eq!(got.body, content[across]);
    // From one key to another, to none, and from none.
    let copy = |from: &str, to: &str, source: Option<u8>, target: Option<u8>| {
        let mut headers = vec![("x-amz-copy-source".to_owned(), from.to_owned())];
        let of_source = |seed| brings(seed, "x-amz-copy-source-");
        headers.extend(source.into_iter().flat_map(of_source));
        headers.extend(target.into_iter().flat_map(mine));
        send(&root, "PUT", to, &[], &headers, b"")
    };
    copy("/bucket/k", "/bucket/no", None, None).fails(400, "InvalidRequest");
    copy("/bucket/k", "/bucket/other", Some(1), Some(2)).is(200);
    copy("/bucket/other", "/bucket/plain", Some(2), None).is(200);
    copy("/bucket/plain", "/bucket/again", None, Some(3)).is(200);
    for (path, key) in [("/bucket/other", 2), ("/bucket/again", 3)] {
        let got = send(&root, "GET", path, &[], &mine(key), b"").is(200);
        assert!(got.body == content, "{path}");
    }
    let plain = root.get("/bucket/plain").is(200);
    assert!(plain.body == content);
    assert_eq!(
        plain.header("etag").trim_matches('"'),
        crate::client::hex(&Md5::digest(&content))
    );
    served.assert_clean();
}

/// Where ETags are made of SHA-256, those of sealed objects still tell content apart, and tell nothing of it.
#[test]
fn sealed_etags_need_no_md5() {
    let pool = Pool::new(128);
    let free = "127.0.0.1:0".parse().expect("an address");
    let served = pool.serve_at(cfs_s3::Listening {
        etags: cfs_s3::Etags::Sha256,
        ..cfs_s3::Listening::at(free)
    });
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let (one, two) = (noise(200_000, 1), noise(200_000, 2));
    let plain = root.put("/bucket/plain", &one).is(200);
    let put = |path: &str, content: &[u8]| {
        let put = send(&root, "PUT", path, &[], &mine(1), content).is(200);
        put.header("etag").to_owned()
    };
    let etag = put("/bucket/one", &one);
    assert_ne!(etag, plain.header("etag"));
    assert_ne!(etag, put("/bucket/two", &two));
    assert_eq!(etag, put("/bucket/again", &one));
    // Without the key it is what it would have been without one, as a whole and as a part.
    let mut headers = brings(1, "x-amz-copy-source-");
    headers.push(("x-amz-copy-source".to_owned(), "/bucket/one".to_owned()));
    send(&root, "PUT", "/bucket/open", &[], &headers, b"").is(200);
    let open = root.get("/bucket/open").is(200);
    assert!(open.body == one);
    assert_eq!(open.header("etag"), plain.header("etag"));
    let begun = root.send("POST", "/bucket/parts", &[("uploads", "")], b"");
    let id = begun.is(200).all("UploadId").remove(0);
    let query = [("partNumber", "1"), ("uploadId", id.as_str())];
    let part = send(&root, "PUT", "/bucket/parts", &query, &headers, b"").is(200);
    let shown = part.all("ETag").remove(0).replace("&quot;", "\"");
    assert_eq!(
        shown.trim_matches('"'),
        plain.header("etag").trim_matches('"')
    );
    served.assert_clean();
}

/// Keys that the pool keeps are named, and not brought.
#[test]
fn named_keys_are_dedup_domains_too() {
    let pool = Pool::new(128);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let mut random = |bytes: &mut [u8]| crate::pool::fill(bytes, 3);
    served
        .users
        .add_kept_key("tenant-1", &mut random)
        .expect("a new key");
    assert!(served.users.add_kept_key("tenant-1", &mut random).is_err());
    assert!(served.users.add_kept_key("no name", &mut random).is_err());
    let named = |name: &str| {
        let prefix = "x-amz-server-side-encryption";
        vec![
            (prefix.to_owned(), "aws:kms".to_owned()),
            (format!("{prefix}-aws-kms-key-id"), name.to_owned()),
        ]
    };
    let content = noise(1 << 20, 9);
    let put = |name: &str, headers: &[(String, String)]| {
        let before = chunks(&served);
        let path = format!("/bucket/{name}");
        send(&root, "PUT", &path, &[], headers, &content).is(200);
        chunks(&served) - before
    };
    assert!(put("plain", &[]) > 0);
    assert!(put("one", &named("tenant-1")) > 0);
    assert_eq!(put("same", &named("tenant-1")), 0);
    assert!(put("default", &named("aws/s3")) > 0);
    send(&root, "PUT", "/bucket/k", &[], &named("nobody"), b"1")
        .fails(400, "KMS.NotFoundException");
    let check = |client: &Client| {
        let got = client.get("/bucket/one").is(200);
        assert!(got.body == content);
        assert_eq!(got.header("x-amz-server-side-encryption"), "aws:kms");
        assert_eq!(
            got.header("x-amz-server-side-encryption-aws-kms-key-id"),
            "tenant-1"
        );
        send(client, "GET", "/bucket/one", &[], &mine(1), b"").fails(400, "InvalidRequest");
    };
    check(&root);
    // As a bucket's default, and after a crash.
    let config = b"<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault>\
        <SSEAlgorithm>aws:kms</SSEAlgorithm><KMSMasterKeyID>tenant-1</KMSMasterKeyID>\
        </ApplyServerSideEncryptionByDefault></Rule></ServerSideEncryptionConfiguration>";
    root.send("PUT", "/bucket", &[("encryption", "")], config)
        .is(200);
    assert_eq!(put("by-default", &[]), 0);
    served.assert_clean();
    check(&pool.power_cut(2).serve().root());
}
