//! Objects that arrive in parts.

use crate::client::{Answer, Client};
use crate::pool::{Pool, noise};

const MINIMUM: usize = 5 << 20;

pub fn begin(client: &Client, path: &str, headers: &[(&str, &str)]) -> String {
    let begun = client
        .send_with("POST", path, &[("uploads", "")], headers, b"")
        .is(200);
    begun.all("UploadId").pop().expect("an identifier")
}

fn part(client: &Client, path: &str, id: &str, number: usize, body: &[u8]) -> String {
    let number = number.to_string();
    let query = [("partNumber", number.as_str()), ("uploadId", id)];
    let put = client.send("PUT", path, &query, body).is(200);
    put.header("etag").to_owned()
}

pub fn complete(client: &Client, path: &str, id: &str, parts: &[(usize, String)]) -> Answer {
    let listed: String = parts
        .iter()
        .map(|(number, etag)| {
            format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>")
        })
        .collect();
    let body = format!("<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>");
    client.send("POST", path, &[("uploadId", id)], body.as_bytes())
}

#[test]
fn parts_become_an_object_without_being_copied() {
    let pool = Pool::new(128);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let path = "/bucket/dir/big";
    let id = begin(
        &root,
        path,
        &[("x-amz-meta-a", "b"), ("content-type", "x/y")],
    );
    let contents = [noise(MINIMUM, 1), noise(MINIMUM + 1000, 2), noise(3000, 3)];
    let mut parts = Vec::new();
    // Out of order, and one twice.
    for number in [2, 3, 1, 2] {
        let etag = part(&root, path, &id, number, &contents[number - 1]);
        parts.retain(|(other, _)| *other != number);
        parts.push((number, etag));
    }
    parts.sort();
    root.get(path).fails(404, "NoSuchKey");
    let listed = root.send("GET", path, &[("uploadId", &id)], b"").is(200);
    assert_eq!(listed.all("PartNumber"), ["1", "2", "3"]);
    let under_way = root.send("GET", "/bucket", &[("uploads", "")], b"").is(200);
    assert_eq!(under_way.all("Key"), ["dir/big"]);
    let stored = || served.fs.store().stats().pool.chunk_stored_bytes.get();
    let before = stored();
    let done = complete(&root, path, &id, &parts).is(200);
    assert!(stored() < before + 10_000, "parts were copied");
    let etag = done.all("ETag").pop().expect("one").replace("&quot;", "\"");
    assert!(etag.trim_matches('"').ends_with("-3"), "{etag}");
    let got = root.get(path).is(200);
    assert!(got.body == contents.concat());
    assert_eq!(got.header("etag"), etag);
    assert_eq!(
        (got.header("x-amz-meta-a"), got.header("content-type")),
        ("b", "x/y")
    );
    let second = root.send("GET", path, &[("partNumber", "2")], b"").is(206);
    assert!(second.body == contents[1]);
    assert_eq!(second.header("x-amz-mp-parts-count"), "3");
    // Whoever has not heard of it may ask again.
    complete(&root, path, &id, &parts).is(200);
    root.send("GET", path, &[("uploadId", &id)], b"")
        .fails(404, "NoSuchUpload");
    let under_way = root.send("GET", "/bucket", &[("uploads", "")], b"").is(200);
    assert!(under_way.all("Key").is_empty());
    served.assert_clean();
}

#[test]
fn what_is_wrong_with_parts_is_told() {
    let pool = Pool::new(128);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let path = "/bucket/k";
    let id = begin(&root, path, &[]);
    let small = part(&root, path, &id, 1, b"small");
    let last = part(&root, path, &id, 2, b"last");
    let wrong = "\"00000000000000000000000000000000\"".to_owned();
    complete(&root, path, &id, &[]).fails(400, "MalformedXML");
    complete(&root, path, &id, &[(3, last.clone())]).fails(400, "InvalidPart");
    complete(&root, path, &id, &[(1, wrong)]).fails(400, "InvalidPart");
    let reversed = [(2, last.clone()), (1, small.clone())];
    complete(&root, path, &id, &reversed).fails(400, "InvalidPartOrder");
    complete(&root, path, &id, &[(1, small), (2, last)]).fails(400, "EntityTooSmall");
    let query = [("partNumber", "10001"), ("uploadId", id.as_str())];
    root.send("PUT", path, &query, b"x")
        .fails(400, "InvalidArgument");
    root.send("DELETE", path, &[("uploadId", &id)], b"").is(204);
    root.send("DELETE", path, &[("uploadId", &id)], b"")
        .fails(404, "NoSuchUpload");
    root.delete("/bucket").is(204);
    served.assert_clean();
}

/// An upload goes on after a power cut, with the parts that were acknowledged.
#[test]
fn uploads_survive_a_power_cut() {
    let pool = Pool::new(128);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let path = "/bucket/k";
    let id = begin(&root, path, &[]);
    let first = noise(MINIMUM, 7);
    let etag = part(&root, path, &id, 1, &first);
    let cut = pool.power_cut(3);
    let again = cut.serve();
    let client = again.root();
    let last = part(&client, path, &id, 2, b"end");
    complete(&client, path, &id, &[(1, etag), (2, last)]).is(200);
    assert!(client.get(path).is(200).body == [&first[..], b"end"].concat());
    again.assert_clean();
}

#[test]
fn parts_can_be_copied() {
    let pool = Pool::new(128);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let source = noise(2 * MINIMUM, 9);
    root.put("/bucket/source", &source).is(200);
    let path = "/bucket/target";
    let id = begin(&root, path, &[]);
    let copy = |number: &str, range: &str| {
        let query = [("partNumber", number), ("uploadId", id.as_str())];
        let headers = [
            ("x-amz-copy-source", "/bucket/source"),
            ("x-amz-copy-source-range", range),
        ];
        root.send_with("PUT", path, &query, &headers, b"")
    };
    let first = copy("1", "bytes=1000-5243879")
        .is(200)
        .all("ETag")
        .remove(0);
    let second = copy("2", "bytes=0-99").is(200).all("ETag").remove(0);
    copy("3", "bytes=0-10485760").fails(416, "InvalidRange");
    copy("3", "0-10").fails(400, "InvalidArgument");
    complete(&root, path, &id, &[(1, first), (2, second)]).is(200);
    let wanted = [&source[1000..5_243_880], &source[..100]].concat();
    assert!(root.get(path).is(200).body == wanted);
    served.assert_clean();
}

#[test]
fn uploads_that_nobody_goes_on_with_end() {
    let pool = Pool::new(128);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let id = begin(&root, "/bucket/k", &[]);
    part(&root, "/bucket/k", &id, 1, &noise(1000, 1));
    let count = || {
        let listed = root.send("GET", "/bucket", &[("uploads", "")], b"");
        listed.is(200).all("UploadId").len()
    };
    let look = |days: u64| {
        let free = "127.0.0.1:0".parse().expect("an address");
        let listening = cfs_s3::Listening {
            upload_patience: Some(std::time::Duration::from_secs(days * 86_400)),
            ..cfs_s3::Listening::at(free)
        };
        let (fs, users) = (served.fs.clone(), served.users.clone());
        cfs_s3::S3Server::start(fs, users, served.told.clone(), listening).expect("a free port")
    };
    let patient = look(1);
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(count(), 1);
    drop(patient);
    let impatient = look(0);
    let started = std::time::Instant::now();
    while count() > 0 {
        assert!(started.elapsed().as_secs() < 20, "it stays");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    drop(impatient);
    complete(&root, "/bucket/k", &id, &[(1, String::new())]).fails(404, "NoSuchUpload");
    served.assert_clean();
}

/// What was kept of 1,050 parts with SHA-256 did not fit into one row, so that the upload could never be completed.
#[test]
fn an_object_can_come_in_very_many_parts() {
    let pool = Pool::new(128);
    let free = "127.0.0.1:0".parse().expect("an address");
    let served = pool.serve_at(cfs_s3::Listening {
        // Each part is read to name it, and this is quicker.
        etags: cfs_s3::Etags::Sha256,
        ..cfs_s3::Listening::at(free)
    });
    let root = served.root();
    root.put("/bucket", b"").is(200);
    root.put("/bucket/source", &noise(MINIMUM, 1)).is(200);
    let path = "/bucket/target";
    let id = begin(&root, path, &[("x-amz-checksum-algorithm", "SHA256")]);
    let numbers: Vec<usize> = (1..=1050).collect();
    let (low, high) = numbers.split_at(525);
    let copy = |numbers: &[usize]| {
        let one = |number: &usize| {
            let text = number.to_string();
            let query = [("partNumber", text.as_str()), ("uploadId", id.as_str())];
            let headers = [("x-amz-copy-source", "/bucket/source")];
            let copied = root.send_with("PUT", path, &query, &headers, b"").is(200);
            let (etag, sum) = (copied.all("ETag"), copied.all("ChecksumSHA256"));
            (*number, etag[0].clone(), sum[0].clone())
        };
        numbers.iter().map(one).collect::<Vec<_>>()
    };
    let parts = std::thread::scope(|scope| {
        let other = scope.spawn(|| copy(high));
        let mut parts = copy(low);
        parts.extend(other.join().expect("it ends"));
        parts
    });
    let etags: Vec<_> = parts
        .iter()
        .map(|(number, etag, _)| (*number, etag.clone()))
        .collect();
    complete(&root, path, &id, &etags).is(200);
    let length = root.send("HEAD", path, &[], b"").is(200);
    assert_eq!(
        length.header("content-length"),
        (1050 * MINIMUM).to_string()
    );
    let headers = [
        ("x-amz-object-attributes", "ObjectParts"),
        ("x-amz-part-number-marker", "1040"),
    ];
    let told = root
        .send_with("GET", path, &[("attributes", "")], &headers, b"")
        .is(200);
    assert_eq!(told.all("PartsCount"), ["1050"]);
    let sums = told.all("ChecksumSHA256");
    assert_eq!(sums, vec![parts[0].2.clone(); 10]);
    let last = root.send("HEAD", path, &[("partNumber", "1050")], b"");
    assert_eq!(last.header("x-amz-mp-parts-count"), "1050");
    let range = format!(
        "bytes {}-{}/{}",
        1049 * MINIMUM,
        1050 * MINIMUM - 1,
        1050 * MINIMUM
    );
    assert_eq!(last.header("content-range"), range);
    served.assert_clean();
    let again = pool.power_cut(3).serve();
    let last = again
        .root()
        .send("HEAD", path, &[("partNumber", "1050")], b"");
    assert_eq!(last.header("content-range"), range);
}

/// Parts were in the root's volume: in the domain that all share, and within no quota.
#[test]
fn parts_are_in_the_volume_of_their_bucket() {
    let pool = Pool::new(128);
    let served = pool.serve();
    let root = served.root();
    let options = cfs_fs::VolumeOptions {
        domain: cfs_fs::VolumeDomain::New,
        quota: cfs_fs::Quota {
            bytes: 2 * MINIMUM as u64,
            inodes: 0,
        },
    };
    served
        .fs
        .volume_create(b"/bucket", &options, &cfs_fs::Caller::default())
        .expect("a volume");
    root.put("/other", b"").is(200);
    let contents = [noise(MINIMUM, 1), noise(MINIMUM - 10_000, 2)];
    root.put("/other/k", &contents[0]).is(200);
    let stored = || served.fs.store().stats().pool.chunk_stored_bytes.get();
    let before = stored();
    let path = "/bucket/dir/k";
    let id = begin(&root, path, &[]);
    let mut parts = Vec::new();
    for (number, content) in (1..).zip(&contents) {
        parts.push((number, part(&root, path, &id, number, content)));
    }
    // The domains share no chunks.
    assert!(stored() - before > 2 * MINIMUM as u64 - 20_000);
    let query = [("partNumber", "3"), ("uploadId", id.as_str())];
    root.send("PUT", path, &query, &noise(20_000, 5))
        .fails(507, "QuotaExceeded");
    let before = stored();
    complete(&root, path, &id, &parts).is(200);
    assert_eq!(stored(), before, "it was copied");
    assert!(root.get(path).is(200).body == contents.concat());
    let volume = served.fs.volume(b"/bucket").expect("it is there");
    let used = volume.record.logical_bytes.get();
    assert_eq!(used, 2 * MINIMUM as u64 - 10_000);
    // Small parts too, and where a quota is used up.
    let quota = cfs_fs::Quota {
        bytes: used + 2 * MINIMUM as u64,
        inodes: 0,
    };
    served
        .fs
        .volume_set_quota(volume.id, quota)
        .expect("it is there");
    let path = "/bucket/small";
    let id = begin(&root, path, &[]);
    let parts = [
        (1, part(&root, path, &id, 1, &contents[0])),
        (2, part(&root, path, &id, 2, b"small")),
    ];
    root.put("/bucket/more", &noise(MINIMUM - 5, 6)).is(200);
    root.put("/bucket/and-more", b"x")
        .fails(507, "QuotaExceeded");
    complete(&root, path, &id, &parts).is(200);
    assert_eq!(root.get(path).is(200).body.len(), MINIMUM + 5);
    assert!(served.fs.resolve(b"/bucket/.s3!uploads").is_err());
    assert!(served.fs.resolve(b"/.s3").is_err());
    served.assert_clean();
}

/// What is kept of an object's SHA-256.
fn kept_sha256(served: &crate::pool::Served, path: &str) -> String {
    let ino = served.resolve(path).ino;
    let record = served.fs.record(ino, b"s3.content").expect("read");
    let record: serde_json::Value =
        serde_json::from_slice(&record.expect("it is there")).expect("JSON");
    record["sha256"].as_str().unwrap_or_default().to_owned()
}

fn wait_for_sha256(served: &crate::pool::Served, path: &str, content: &[u8]) {
    use sha2::Digest as _;
    let wanted = crate::client::hex(&sha2::Sha256::digest(content));
    for _ in 0..600 {
        match kept_sha256(served, path).as_str() {
            "" => std::thread::sleep(std::time::Duration::from_millis(50)),
            kept => return assert_eq!(kept, wanted, "{path}"),
        }
    }
    panic!("{path} has no SHA-256");
}

/// Files of which it is noted that their SHA-256 is due.
fn due(served: &crate::pool::Served) -> usize {
    let rows = served.fs.records(cfs_format::Ino::ROOT, b"s3.sha256-due.");
    rows.expect("read").len()
}

/// Objects in parts had no SHA-256, nor had copies of them.
#[test]
fn objects_in_parts_have_their_sha256_soon_and_after_a_crash() {
    let pool = Pool::new(256);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let contents = [noise(MINIMUM, 1), noise(MINIMUM, 2), noise(3000, 3)];
    let put = |path: &str, contents: &[Vec<u8>]| {
        let id = begin(&root, path, &[]);
        let parts: Vec<_> = (1..)
            .zip(contents)
            .map(|(number, content)| (number, part(&root, path, &id, number, content)))
            .collect();
        complete(&root, path, &id, &parts).is(200)
    };
    put("/bucket/k", &contents);
    // Before anything is computed, as like as not: the last of 10 MB take a while.
    let cut = pool.power_cut(1);
    let etag = root.get("/bucket/k").header("etag").to_owned();
    wait_for_sha256(&served, "/bucket/k", &contents.concat());
    assert_eq!(root.get("/bucket/k").header("etag"), etag);
    assert!(etag.ends_with("-3\""), "{etag}");
    // One part is the whole, and has one already.
    put("/bucket/one", &contents[..1]);
    assert_ne!(kept_sha256(&served, "/bucket/one"), "");
    // Parts that are copied, and a copy.
    let path = "/bucket/copied-parts";
    let id = begin(&root, path, &[]);
    let source = [("x-amz-copy-source", "/bucket/k")];
    let copied: Vec<_> = (1..=2)
        .map(|number| {
            let text = number.to_string();
            let query = [("partNumber", text.as_str()), ("uploadId", id.as_str())];
            let part = root.send_with("PUT", path, &query, &source, b"").is(200);
            (number, part.all("ETag").remove(0).replace("&quot;", "\""))
        })
        .collect();
    complete(&root, path, &id, &copied).is(200);
    let twice = [contents.concat(), contents.concat()].concat();
    wait_for_sha256(&served, path, &twice);
    root.send_with("PUT", "/bucket/copy", &[], &source, b"")
        .is(200);
    wait_for_sha256(&served, "/bucket/copy", &contents.concat());
    // Of what was replaced or removed meanwhile nothing is left to do.
    for path in ["/bucket/replaced", "/bucket/removed"] {
        put(path, &contents);
    }
    root.put("/bucket/replaced", b"small").is(200);
    root.delete("/bucket/removed").is(204);
    wait_for_sha256(&served, "/bucket/replaced", b"small");
    for _ in 0..600 {
        if due(&served) == 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(due(&served), 0);
    served.assert_clean();

    let again = cut.serve();
    wait_for_sha256(&again, "/bucket/k", &contents.concat());
    again.assert_clean();
}

/// A copy of an object whose SHA-256 is due as the pool is opened.
#[test]
fn what_was_due_before_a_crash_is_computed_after_it() {
    let pool = Pool::new(128);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    root.put("/bucket/k", b"content").is(200);
    let ino = served.resolve("/bucket/k").ino;
    // As a crash leaves it: described in parts, and without a SHA-256.
    let attr = served.fs.getattr(ino).expect("it is there");
    let due_row = format!("s3.sha256-due.{:016x}", ino.0).into_bytes();
    let gone = b"s3.sha256-due.00000000deadbeef".to_vec();
    let record = br#"{"etag": "9a0364b9e99bb480dd25e1f0284c8555-1"}"#.to_vec();
    let describe = cfs_fs::RecordChange {
        put: vec![(b"s3.content".to_vec(), record)],
        describes: Some(attr),
        ..cfs_fs::RecordChange::default()
    };
    served.fs.set_records(ino, describe).expect("there is room");
    let note = cfs_fs::RecordChange {
        put: vec![(due_row, Vec::new()), (gone, Vec::new())],
        ..cfs_fs::RecordChange::default()
    };
    let noted = served.fs.set_records(cfs_format::Ino::ROOT, note);
    noted.expect("there is room");
    served.fs.store().sync().expect("synced");
    let again = pool.power_cut(1).serve();
    wait_for_sha256(&again, "/bucket/k", b"content");
    for _ in 0..600 {
        if due(&again) == 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(due(&again), 0);
}
