//! Buckets that keep versions.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::client::Client;
use crate::pool::{Pool, noise};

fn set(client: &Client, status: &str) {
    let body =
        format!("<VersioningConfiguration><Status>{status}</Status></VersioningConfiguration>");
    client
        .send("PUT", "/bucket", &[("versioning", "")], body.as_bytes())
        .is(200);
}

fn put(client: &Client, path: &str, body: &[u8]) -> String {
    client
        .put(path, body)
        .is(200)
        .header("x-amz-version-id")
        .to_owned()
}

fn get(client: &Client, path: &str, id: &str) -> Vec<u8> {
    client
        .send("GET", path, &[("versionId", id)], b"")
        .is(200)
        .body
}

/// Keys with identifiers, in the order of the answer.
fn list(client: &Client, query: &[(&str, &str)]) -> (Vec<(String, String)>, Vec<String>) {
    let mut query = query.to_vec();
    query.push(("versions", ""));
    let answer = client.send("GET", "/bucket", &query, b"").is(200);
    let versions = answer.all("Version").into_iter().map(|text| {
        let between = |tag: &str| {
            let open = format!("<{tag}>");
            let rest = text.split(&open).nth(1).unwrap_or_default();
            rest.split('<').next().unwrap_or_default().to_owned()
        };
        (between("Key"), between("VersionId"))
    });
    let versions = versions.collect();
    let markers = answer.all("DeleteMarker").into_iter().map(|text| {
        let rest = text
            .split("<VersionId>")
            .nth(1)
            .unwrap_or_default()
            .to_owned();
        rest.split('<').next().unwrap_or_default().to_owned()
    });
    (versions, markers.collect())
}

#[test]
fn each_put_keeps_the_version_before() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    root.put("/bucket/a/k", b"null").is(200);
    set(&root, "Enabled");
    let first = put(&root, "/bucket/a/k", b"first");
    let second = put(&root, "/bucket/a/k", b"second");
    assert_ne!(first, second);
    assert_eq!(root.get("/bucket/a/k").is(200).body, b"second");
    assert_eq!(get(&root, "/bucket/a/k", &first), b"first");
    assert_eq!(get(&root, "/bucket/a/k", "null"), b"null");
    let wanted = [&second, &first, &"null".to_owned()].map(|id| ("a/k".to_owned(), id.clone()));
    assert_eq!(list(&root, &[]), (wanted.to_vec(), Vec::new()));
    // The mount shows the current version, and no other where files are listed.
    assert_eq!(served.read(served.resolve("/bucket/a/k").ino), b"second");
    assert_eq!(
        root.send("GET", "/bucket", &[], b"").is(200).all("Key"),
        ["a/k"]
    );
    // Deleting hides; deleting the marker shows again.
    let deleted = root.delete("/bucket/a/k").is(204);
    assert_eq!(deleted.header("x-amz-delete-marker"), "true");
    let marker = deleted.header("x-amz-version-id").to_owned();
    let hidden = root.get("/bucket/a/k");
    assert_eq!(hidden.header("x-amz-delete-marker"), "true");
    hidden.fails(404, "NoSuchKey");
    root.send("GET", "/bucket/a/k", &[("versionId", &marker)], b"")
        .fails(405, "MethodNotAllowed");
    assert_eq!(list(&root, &[]).1, std::slice::from_ref(&marker));
    root.delete("/bucket").fails(409, "BucketNotEmpty");
    root.send("DELETE", "/bucket/a/k", &[("versionId", &marker)], b"")
        .is(204);
    assert_eq!(root.get("/bucket/a/k").is(200).body, b"second");
    // Deleting the current version for good brings the one before back.
    root.send("DELETE", "/bucket/a/k", &[("versionId", &second)], b"")
        .is(204);
    assert_eq!(root.get("/bucket/a/k").is(200).body, b"first");
    root.send("DELETE", "/bucket/a/k", &[("versionId", "null")], b"")
        .is(204);
    root.send("DELETE", "/bucket/a/k", &[("versionId", &first)], b"")
        .is(204);
    assert_eq!(list(&root, &[]), (Vec::new(), Vec::new()));
    root.delete("/bucket").is(204);
    served.assert_clean();
}

#[test]
fn a_suspended_bucket_has_one_null_version() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    set(&root, "Enabled");
    let kept = put(&root, "/bucket/k", b"kept");
    set(&root, "Suspended");
    // Answers do not name it.
    assert_eq!(put(&root, "/bucket/k", b"one"), "");
    assert_eq!(put(&root, "/bucket/k", b"two"), "");
    let listed = list(&root, &[]).0;
    assert_eq!(
        listed,
        [
            ("k".to_owned(), "null".to_owned()),
            ("k".to_owned(), kept.clone())
        ]
    );
    let deleted = root.delete("/bucket/k").is(204);
    assert_eq!(deleted.header("x-amz-version-id"), "null");
    let (versions, markers) = list(&root, &[]);
    assert_eq!(
        (versions.len(), markers.as_slice()),
        (1, ["null".to_owned()].as_slice())
    );
    assert_eq!(get(&root, "/bucket/k", &kept), b"kept");
    assert_eq!(put(&root, "/bucket/k", b"three"), "");
    assert_eq!(list(&root, &[]).1, [] as [String; 0]);
    served.assert_clean();
}

/// Versions of many keys, page by page, are what they are in one piece.
#[test]
fn listing_versions_goes_on_where_it_ended() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    set(&root, "Enabled");
    for round in 0..3 {
        for key in ["a", "a-b", "a/b", "a/b/c", "b/", "c"] {
            put(
                &root,
                &format!("/bucket/{key}"),
                format!("{key}{round}").as_bytes(),
            );
        }
    }
    let whole = list(&root, &[]).0;
    assert_eq!(whole.len(), 18);
    assert!(
        whole.is_sorted_by(|left, right| left.0 <= right.0),
        "{whole:?}"
    );
    for size in ["1", "4", "7"] {
        let mut pages = Vec::new();
        let (mut key, mut id) = (String::new(), String::new());
        loop {
            let query = [
                ("max-keys", size),
                ("key-marker", &key),
                ("version-id-marker", &id),
            ];
            let page = list(&root, &query).0;
            let Some((last, version)) = page.last().cloned() else {
                break;
            };
            (key, id) = (last, version);
            pages.extend(page);
        }
        assert_eq!(pages, whole, "{size} at a time");
    }
    let grouped = root
        .send(
            "GET",
            "/bucket",
            &[("versions", ""), ("delimiter", "/")],
            b"",
        )
        .is(200);
    assert_eq!(grouped.all("CommonPrefixes").len(), 2);
    assert_eq!(grouped.all("Version").len(), 9);
}

/// A version costs what it alone refers to, and is there after a power cut.
#[test]
fn equal_versions_cost_nothing() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    set(&root, "Enabled");
    let content = noise(2_000_000, 1);
    let first = put(&root, "/bucket/k", &content);
    let stored = || served.fs.store().stats().pool.chunk_stored_bytes.get();
    let before = stored();
    let second = put(&root, "/bucket/k", &content);
    assert_eq!(stored(), before);
    root.delete("/bucket/k").is(204);
    let again = pool.power_cut(5).serve();
    let client = again.root();
    assert!(get(&client, "/bucket/k", &first) == content);
    assert!(get(&client, "/bucket/k", &second) == content);
    client.get("/bucket/k").fails(404, "NoSuchKey");
    again.assert_clean();
}

/// A put that had begun when versioning was switched on replaced the object for good.
#[test]
fn a_put_that_began_before_versions_were_kept_keeps_them() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    root.put("/bucket/k", b"before").is(200);
    let content = noise(200_000, 1);
    let answer = root.put_slowly("/bucket/k", &content, || set(&root, "Enabled"));
    let id = answer.is(200).header("x-amz-version-id").to_owned();
    assert_ne!(id, "");
    assert_eq!(get(&root, "/bucket/k", "null"), b"before");
    assert!(get(&root, "/bucket/k", &id) == content);
    served.assert_clean();
}

/// Each version is judged by its own list and tags: one that is private stays so below one that is not.
#[test]
fn versions_are_judged_by_themselves() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let (root, alice) = (served.root(), served.user("alice"));
    root.put("/bucket", b"").is(200);
    set(&root, "Enabled");
    let put = |body: &[u8], headers: &[(&str, &str)]| {
        let answer = root.send_with("PUT", "/bucket/k", &[], headers, body);
        answer.is(200).header("x-amz-version-id").to_owned()
    };
    let private = put(b"private", &[("x-amz-tagging", "open=no")]);
    let public = put(
        b"public",
        &[("x-amz-acl", "public-read"), ("x-amz-tagging", "open=yes")],
    );
    let read = |id: &str| alice.send("GET", "/bucket/k", &[("versionId", id)], b"");
    assert_eq!(read(&public).is(200).body, b"public");
    read(&private).fails(403, "AccessDenied");
    alice
        .send(
            "GET",
            "/bucket/k",
            &[("acl", ""), ("versionId", &private)],
            b"",
        )
        .fails(403, "AccessDenied");
    let copied = format!("/bucket/k?versionId={private}");
    alice.put("/of-alice", b"").is(200);
    let copied = [("x-amz-copy-source", copied.as_str())];
    alice
        .send_with("PUT", "/of-alice/k", &[], &copied, b"")
        .fails(403, "AccessDenied");
    // Whoever may read and write the list of the one, may not those of the other.
    let id = served
        .users
        .list()
        .iter()
        .find(|it| it.name == "alice")
        .map(|it| it.id.clone());
    let grantee = format!("id={}", id.expect("she is there"));
    let shares = [("x-amz-grant-full-control", grantee.as_str())];
    let shared = put(b"shared", &shares);
    let give = |id: &str| {
        let canned = [("x-amz-acl", "public-read")];
        let query = [("acl", ""), ("versionId", id)];
        alice.send_with("PUT", "/bucket/k", &query, &canned, b"")
    };
    give(&private).fails(403, "AccessDenied");
    give(&shared).is(200);
    // By tags.
    let policy = br#"{"Statement": {"Effect": "Allow", "Principal": "*",
        "Action": ["s3:GetObject", "s3:GetObjectVersion"], "Resource": "arn:aws:s3:::bucket/*",
        "Condition": {"StringEquals": {"s3:ExistingObjectTag/open": "yes"}}}}"#;
    root.send("PUT", "/bucket", &[("policy", "")], policy)
        .is(204);
    put(b"open", &[("x-amz-tagging", "open=yes")]);
    assert_eq!(alice.get("/bucket/k").is(200).body, b"open");
    read(&private).fails(403, "AccessDenied");
    root.send("DELETE", "/bucket", &[("policy", "")], b"")
        .is(204);
    // Older than one that is private, a public one stays that.
    put(b"private too", &[]);
    assert_eq!(read(&public).is(200).body, b"public");
    alice.get("/bucket/k").fails(403, "AccessDenied");
}

/// A file of the mount with an old modification time was filed below versions that are older.
#[test]
fn what_the_mount_replaced_comes_back_in_its_order() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    set(&root, "Enabled");
    let first = put(&root, "/bucket/k", b"first");
    let marker = root.delete("/bucket/k").is(204);
    let bucket = served.resolve("/bucket").ino;
    let file = served.write(bucket, "k", b"of the mount");
    let time = cfs_fs::Time {
        seconds: 1_262_304_000,
        nanos: 0,
    };
    let touch = cfs_fs::SetAttr {
        mtime: Some(cfs_fs::SetTime::At(time)),
        ..cfs_fs::SetAttr::default()
    };
    served.fs.setattr(file, &touch).expect("any time");
    let last = put(&root, "/bucket/k", b"last");
    let (versions, markers) = list(&root, &[]);
    let ids: Vec<_> = versions.iter().map(|(_, id)| id.as_str()).collect();
    assert_eq!(ids, [last.as_str(), "null", first.as_str()]);
    assert_eq!(markers, [marker.header("x-amz-version-id")]);
    root.send("DELETE", "/bucket/k", &[("versionId", &last)], b"")
        .is(204);
    assert_eq!(root.get("/bucket/k").is(200).body, b"of the mount");
    served.assert_clean();
}

/// On a full pool a key could not be deleted, nor the newest of several versions.
#[test]
fn a_full_pool_can_be_deleted_from() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    set(&root, "Enabled");
    let old = put(&root, "/bucket/dir/old", b"old");
    let new = put(&root, "/bucket/dir/old", b"new");
    let mut count = 0;
    // To the last bit: what is large, and then what is small.
    for bytes in [4_000_000, 400_000, 5000, 0] {
        loop {
            let path = format!("/bucket/dir/{count}");
            let answer = root.put(&path, &noise(bytes, 100 + count));
            if answer.status != 200 {
                answer.fails(507, "InsufficientStorage");
                break;
            }
            count += 1;
            assert!(count < 20_000, "it never fills");
        }
    }
    root.put("/bucket/x", b"").fails(507, "InsufficientStorage");
    let remove = |id: &str| {
        root.send("DELETE", "/bucket/dir/old", &[("versionId", id)], b"")
            .is(204)
    };
    remove(&new);
    assert_eq!(root.get("/bucket/dir/old").is(200).body, b"old");
    let marker = root.delete("/bucket/dir/old").is(204);
    assert_eq!(marker.header("x-amz-delete-marker"), "true");
    root.get("/bucket/dir/old").fails(404, "NoSuchKey");
    remove(marker.header("x-amz-version-id"));
    assert_eq!(root.get("/bucket/dir/old").is(200).body, b"old");
    remove(&old);
    for number in 0..count.min(200) {
        root.delete(&format!("/bucket/dir/{number}")).is(204);
    }
    // What is gone for good gives room back.
    for (key, id) in list(&root, &[("max-keys", "1000")]).0 {
        let path = format!("/bucket/{key}");
        root.send("DELETE", &path, &[("versionId", &id)], b"")
            .is(204);
    }
    root.put("/bucket/after", &noise(4_000_000, 1)).is(200);
    served.assert_clean();
}

/// The version that a put replaces in a suspended bucket went in a second step, between which and the first there were two.
#[test]
fn there_is_one_null_version_at_any_time() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let mut kept = Vec::new();
    for round in 0..6_u8 {
        set(&root, "Enabled");
        kept.push(put(&root, "/bucket/k", &[round; 5000]));
        set(&root, "Suspended");
        if round % 3 == 1 {
            root.delete("/bucket/k").is(204);
        }
        // Of content in chunks, whose digests and records come with it.
        let headers = [("x-amz-meta-round", "kept")];
        let content = [round; 6000];
        let answer = root.send_with("PUT", "/bucket/k", &[], &headers, &content);
        let etag = answer.is(200).header("etag").to_owned();
        // Names that change in one step change at one time, and the clock stands still for no two.
        let tree = served.resolve("/bucket/.s3!versions");
        assert_eq!(
            tree.mtime,
            served.resolve("/bucket/k").ctime,
            "round {round}: one null version went after the other came"
        );
        let got = root.get("/bucket/k").is(200);
        assert_eq!(got.body, content);
        let told = (got.header("etag"), got.header("x-amz-meta-round"));
        assert_eq!(told, (&*etag, "kept"));
        let (versions, markers) = list(&root, &[]);
        let nulls = versions.iter().map(|(_, id)| id).chain(&markers);
        assert_eq!(nulls.filter(|id| *id == "null").count(), 1, "round {round}");
    }
    let ids: Vec<_> = list(&root, &[]).0.into_iter().map(|(_, id)| id).collect();
    kept.push("null".to_owned());
    kept.reverse();
    assert_eq!(ids, kept);
    // Conditions hold in that step too.
    let other = [("if-match", "\"00000000000000000000000000000000\"")];
    root.send_with("PUT", "/bucket/k", &[], &other, b"x")
        .fails(412, "PreconditionFailed");
    served.assert_clean();
    let again = pool.power_cut(7).serve();
    assert_eq!(list(&again.root(), &[]).0.len(), 7);
    again.assert_clean();
}

/// Where versions go there may be something else, as from before such names were refused.
#[test]
fn a_file_in_the_place_of_versions_is_told() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    set(&root, "Enabled");
    put(&root, "/bucket/k", b"1");
    let bucket = served.resolve("/bucket").ino;
    let fs = &served.fs;
    let file = fs
        .tmpfile_and_hold(bucket, 0o644, &cfs_fs::Caller::default())
        .expect("a file");
    let publication = cfs_fs::Publication {
        parent: bucket,
        name: b".s3!versions",
        expected: cfs_fs::Expected::Nothing,
        records: Vec::new(),
        archive: None,
    };
    fs.publish(file.ino, publication).expect("nothing is there");
    root.put("/bucket/k", b"2").fails(409, "InvalidObjectState");
    root.delete("/bucket/k").fails(409, "InvalidObjectState");
    assert_eq!(root.get("/bucket/k").is(200).body, b"1");
    fs.unlink(bucket, b".s3!versions").expect("it is a file");
    put(&root, "/bucket/k", b"2");
    fs.release(file.ino).expect("it was open");
    fs.end_hold(file.ino).expect("it was held");
}

/// Takes no notice of what a restore tells.
struct Nobody;

impl cfs_fs::RestoreObserver for Nobody {
    fn inode_changed(&mut self, _: cfs_format::Ino) {}
    fn entry_changed(&mut self, _: cfs_format::Ino, _: &[u8]) {}
    fn problem(&mut self, path: &[u8], error: &cfs_fs::FsError) {
        panic!("{}: {error}", String::from_utf8_lossy(path));
    }
    fn goes_on(&mut self) -> bool {
        true
    }
}

/// A restored snapshot brings back a file under the plain name of a key whose object has stepped aside.
#[test]
fn a_key_with_two_files_is_deleted_at_once() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    set(&root, "Enabled");
    put(&root, "/bucket/a", b"old");
    let fs = &served.fs;
    let before = fs.snapshot_create(b"/bucket", b"before").expect("a name");
    let below = put(&root, "/bucket/a/b", b"below");
    root.send("DELETE", "/bucket/a/b", &[("versionId", &below)], b"")
        .is(204);
    served.resolve("/bucket/.s3~a");
    fs.snapshot_restore(&before, b"/bucket", b"a", false, &mut Nobody)
        .expect("it is brought back");
    served.resolve("/bucket/a");
    served.resolve("/bucket/.s3~a");
    let (versions, _) = list(&root, &[]);
    assert_eq!(versions.len(), 1);
    root.delete("/bucket/a").is(204);
    root.get("/bucket/a").fails(404, "NoSuchKey");
    served.assert_clean();
}

/// A snapshot brought a version back under its key that had become an older one: there were two of it, and putting and
/// deleting the key failed for ever, as one of them could not go where the other was.
#[test]
fn what_a_snapshot_brings_back_becomes_a_version_of_its_own() {
    for replaced_by in ["another", "a marker", "null", "nothing, and locked"] {
        let pool = Pool::new(64);
        let served = pool.serve();
        let (root, fs) = (served.root(), &served.fs);
        let lock = [("x-amz-bucket-object-lock-enabled", "true")];
        let is_locked = replaced_by.ends_with("locked");
        let headers = if is_locked { &lock[..] } else { &[] };
        root.send_with("PUT", "/bucket", &[], headers, b"").is(200);
        set(&root, "Enabled");
        let first = put(&root, "/bucket/k", b"first");
        let second = put(&root, "/bucket/k", b"second");
        let third = is_locked.then(|| put(&root, "/bucket/k", b"third"));
        let before = fs.snapshot_create(b"/bucket", b"before").expect("a name");
        let retention = b"<Retention><Mode>COMPLIANCE</Mode>\
            <RetainUntilDate>2099-01-01T00:00:00Z</RetainUntilDate></Retention>";
        match replaced_by {
            "another" => drop(put(&root, "/bucket/k", b"another")),
            "a marker" => drop(root.delete("/bucket/k").is(204)),
            "null" => {
                set(&root, "Suspended");
                root.put("/bucket/k", b"null").is(200);
                set(&root, "Enabled");
            }
            _ => {
                // The second becomes the current one, and the snapshot shows it among the others.
                let third = third.expect("it was put");
                root.send("DELETE", "/bucket/k", &[("versionId", &third)], b"")
                    .is(204);
                root.send("PUT", "/bucket/k", &[("retention", "")], retention)
                    .is(200);
            }
        }
        fs.snapshot_restore(&before, b"/bucket", b".s3!versions", false, &mut Nobody)
            .expect("it is brought back");
        if !is_locked {
            fs.snapshot_restore(&before, b"/bucket", b"k", false, &mut Nobody)
                .expect("it is brought back");
        }
        assert_eq!(root.get("/bucket/k").is(200).body, b"second");
        for (id, content) in [(&first, "first"), (&second, "second")] {
            assert_eq!(get(&root, "/bucket/k", id), content.as_bytes());
        }
        // It can be replaced and deleted, and nothing is lost of what it was.
        let newest = put(&root, "/bucket/k", b"newest");
        let ids = |wanted: usize| {
            let mut ids: Vec<_> = list(&root, &[]).0.into_iter().map(|(_, id)| id).collect();
            assert_eq!(ids.len(), wanted, "{replaced_by}: {ids:?}");
            assert_eq!(ids[0], newest, "{replaced_by}: {ids:?}");
            ids.sort();
            ids.dedup();
            assert_eq!(ids.len(), wanted, "{replaced_by}: there are two of one");
            ids
        };
        let ids = ids(if is_locked { 3 } else { 4 });
        root.delete("/bucket/k").is(204);
        root.get("/bucket/k").fails(404, "NoSuchKey");
        for (id, content) in [(&first, "first"), (&second, "second")] {
            assert_eq!(get(&root, "/bucket/k", id), content.as_bytes());
        }
        let goes = ids.iter().filter(|id| !is_locked || **id != second);
        for id in goes {
            root.send("DELETE", "/bucket/k", &[("versionId", id)], b"")
                .is(204);
        }
        let left = list(&root, &[]).0;
        assert_eq!(left.len(), usize::from(is_locked), "{replaced_by}");
        served.assert_clean();
    }
}

/// Locked both, neither of two files of one version could go, and the key could not be put or deleted until the locks ended.
#[test]
fn a_version_that_is_locked_twice_becomes_two() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let (root, fs) = (served.root(), &served.fs);
    let lock = [("x-amz-bucket-object-lock-enabled", "true")];
    root.send_with("PUT", "/bucket", &[], &lock, b"").is(200);
    let first = put(&root, "/bucket/k", b"first");
    let before = fs.snapshot_create(b"/bucket", b"before").expect("a name");
    let hold = b"<LegalHold><Status>ON</Status></LegalHold>";
    let held = |query: &[(&str, &str)]| {
        root.send("PUT", "/bucket/k", query, hold).is(200);
    };
    held(&[("legal-hold", "")]);
    put(&root, "/bucket/k", b"second");
    fs.snapshot_restore(&before, b"/bucket", b"k", false, &mut Nobody)
        .expect("it is brought back");
    held(&[("legal-hold", "")]);
    let newest = put(&root, "/bucket/k", b"newest");
    root.delete("/bucket/k").is(204);
    let mut ids: Vec<_> = list(&root, &[]).0.into_iter().map(|(_, id)| id).collect();
    assert_eq!(ids.len(), 3, "{ids:?}");
    assert_eq!((&ids[0], &ids[2]), (&newest, &first));
    ids.dedup();
    assert_eq!(ids.len(), 3, "there are two of one: {ids:?}");
    for id in &ids[1..] {
        assert_eq!(get(&root, "/bucket/k", id), b"first");
        root.send("DELETE", "/bucket/k", &[("versionId", id)], b"")
            .fails(403, "AccessDenied");
    }
    served.assert_clean();
}

/// A file that another hides was not told apart from the version that it had been: deleting the key failed for ever, as it
/// could not go where that is.
#[test]
fn a_hidden_file_becomes_a_version_of_its_own() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let (root, fs) = (served.root(), &served.fs);
    root.put("/bucket", b"").is(200);
    set(&root, "Enabled");
    let first = put(&root, "/bucket/k", b"first");
    let below = put(&root, "/bucket/k/b", b"below");
    served.resolve("/bucket/.s3~k");
    let before = fs.snapshot_create(b"/bucket", b"before").expect("a name");
    root.delete("/bucket/k").is(204);
    root.send("DELETE", "/bucket/k/b", &[("versionId", &below)], b"")
        .is(204);
    let second = put(&root, "/bucket/k", b"second");
    fs.snapshot_restore(&before, b"/bucket", b".s3~k", false, &mut Nobody)
        .expect("it is brought back");
    served.resolve("/bucket/k");
    let marker = root.delete("/bucket/k").is(204);
    let marker = marker.header("x-amz-version-id").to_owned();
    root.get("/bucket/k").fails(404, "NoSuchKey");
    let (versions, markers) = list(&root, &[]);
    let mut ids: Vec<_> = versions.into_iter().map(|(_, id)| id).collect();
    ids.retain(|id| ![&first, &second].contains(&id));
    let [again] = &ids[..] else {
        panic!("{ids:?}");
    };
    assert_eq!((markers.len(), &markers[0]), (2, &marker));
    for (id, content) in [(&first, "first"), (&second, "second"), (again, "first")] {
        assert_eq!(get(&root, "/bucket/k", id), content.as_bytes());
    }
    // The marker is the newest of all: what it hides is what comes back.
    root.send("DELETE", "/bucket/k", &[("versionId", &marker)], b"")
        .is(204);
    root.get("/bucket/k").is(200);
    served.assert_clean();
}

/// Both locked, neither of two files of one version could go, and the key could not be deleted until the locks ended.
#[test]
fn a_hidden_file_of_a_version_that_is_locked_twice_becomes_another() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let (root, fs) = (served.root(), &served.fs);
    let lock = [("x-amz-bucket-object-lock-enabled", "true")];
    root.send_with("PUT", "/bucket", &[], &lock, b"").is(200);
    let first = put(&root, "/bucket/k", b"first");
    let before = fs.snapshot_create(b"/bucket", b"before").expect("a name");
    let hold = b"<LegalHold><Status>ON</Status></LegalHold>";
    let held = || {
        root.send("PUT", "/bucket/k", &[("legal-hold", "")], hold)
            .is(200);
    };
    held();
    let below = put(&root, "/bucket/k/b", b"below");
    root.send("DELETE", "/bucket/k/b", &[("versionId", &below)], b"")
        .is(204);
    fs.snapshot_restore(&before, b"/bucket", b"k", false, &mut Nobody)
        .expect("it is brought back");
    held();
    served.resolve("/bucket/.s3~k");
    root.delete("/bucket/k").is(204);
    root.get("/bucket/k").fails(404, "NoSuchKey");
    let ids: Vec<_> = list(&root, &[]).0.into_iter().map(|(_, id)| id).collect();
    assert_eq!(ids.len(), 2, "{ids:?}");
    assert!(ids.contains(&first) && ids[0] != ids[1], "{ids:?}");
    for id in &ids {
        assert_eq!(get(&root, "/bucket/k", id), b"first");
        root.send("DELETE", "/bucket/k", &[("versionId", id)], b"")
            .fails(403, "AccessDenied");
    }
    served.assert_clean();
}

/// The file that another of the version `null` hides was there again, or a second version `null`.
#[test]
fn a_hidden_null_version_goes_with_the_one_that_hides_it() {
    for (is_current_null, done) in [
        (true, "put"),
        (true, "deleted"),
        (false, "put"),
        (false, "deleted"),
    ] {
        let what = format!("the current one is null: {is_current_null}, null is {done}");
        let pool = Pool::new(64);
        let served = pool.serve();
        let (root, fs) = (served.root(), &served.fs);
        root.put("/bucket", b"").is(200);
        let bucket = served.resolve("/bucket").ino;
        set(&root, "Enabled");
        let kept = put(&root, "/bucket/a", b"kept");
        let version = fs.snapshot_create(b"/bucket", b"version").expect("a name");
        set(&root, "Suspended");
        root.put("/bucket/a", b"null").is(200);
        root.send("DELETE", "/bucket/a", &[("versionId", &kept)], b"")
            .is(204);
        let null = fs.snapshot_create(b"/bucket", b"null").expect("a name");
        root.put("/bucket/a/b", b"below").is(200);
        fs.unlink(served.resolve("/bucket/a").ino, b"b")
            .expect("removed");
        fs.rmdir(bucket, b"a").expect("empty");
        let before = if is_current_null { &null } else { &version };
        fs.snapshot_restore(before, b"/bucket", b"a", false, &mut Nobody)
            .expect("it is brought back");
        served.resolve("/bucket/.s3~a");
        let mut wanted = Vec::new();
        if done == "put" {
            assert_eq!(put(&root, "/bucket/a", b"new"), "");
            assert_eq!(get(&root, "/bucket/a", "null"), b"new", "{what}");
            wanted.push("null".to_owned());
        } else {
            root.send("DELETE", "/bucket/a", &[("versionId", "null")], b"")
                .is(204);
        }
        if !is_current_null {
            wanted.push(kept.clone());
            assert_eq!(get(&root, "/bucket/a", &kept), b"kept", "{what}");
        }
        let ids: Vec<_> = list(&root, &[]).0.into_iter().map(|(_, id)| id).collect();
        assert_eq!(ids, wanted, "{what}");
        for id in wanted {
            root.send("DELETE", "/bucket/a", &[("versionId", &id)], b"")
                .is(204);
        }
        root.get("/bucket/a").fails(404, "NoSuchKey");
        assert_eq!(list(&root, &[]), (Vec::new(), Vec::new()), "{what}");
        served.assert_clean();
    }
}

/// One file of the version `null` went, another came back or stayed beside the marker.
fn a_marker_takes_the_place_of_each(found: &str) {
    let pool = Pool::new(64);
    let served = pool.serve();
    let (root, fs) = (served.root(), &served.fs);
    root.put("/bucket", b"").is(200);
    let bucket = served.resolve("/bucket").ino;
    let mut kept = Vec::new();
    let step_aside = || {
        root.put("/bucket/a/b", b"below").is(200);
        fs.unlink(served.resolve("/bucket/a").ino, b"b")
            .expect("removed");
        fs.rmdir(bucket, b"a").expect("empty");
        served.resolve("/bucket/.s3~a");
    };
    match found {
        "null before null" => {
            root.put("/bucket/a", b"old").is(200);
            let before = fs.snapshot_create(b"/bucket", b"before").expect("a name");
            step_aside();
            fs.snapshot_restore(&before, b"/bucket", b"a", false, &mut Nobody)
                .expect("it is brought back");
            set(&root, "Suspended");
        }
        "another before null" => {
            set(&root, "Enabled");
            let version = put(&root, "/bucket/a", b"kept");
            let before = fs.snapshot_create(b"/bucket", b"before").expect("a name");
            set(&root, "Suspended");
            root.put("/bucket/a", b"null").is(200);
            root.send("DELETE", "/bucket/a", &[("versionId", &version)], b"")
                .is(204);
            step_aside();
            fs.snapshot_restore(&before, b"/bucket", b"a", false, &mut Nobody)
                .expect("it is brought back");
            kept.push(("a".to_owned(), version));
        }
        _ => {
            root.put("/bucket/a", b"null").is(200);
            set(&root, "Enabled");
            put(&root, "/bucket/a", b"version");
            fs.unlink(bucket, b"a").expect("removed");
            served.write(bucket, "a", b"another null");
            set(&root, "Suspended");
        }
    }
    root.get("/bucket/a").is(200);
    let deleted = root.delete("/bucket/a").is(204);
    assert_eq!(deleted.header("x-amz-version-id"), "null", "{found}");
    root.get("/bucket/a").fails(404, "NoSuchKey");
    let (versions, markers) = list(&root, &[]);
    assert_eq!(versions, kept, "{found}");
    assert_eq!(markers, ["null"], "{found}");
    for (_, id) in &kept {
        assert_eq!(get(&root, "/bucket/a", id), b"kept");
    }
    let refused = root.send("GET", "/bucket/a", &[("versionId", "null")], b"");
    refused.fails(405, "MethodNotAllowed");
    served.assert_clean();
}

#[test]
fn a_marker_takes_the_place_of_two_files_of_the_null_version() {
    a_marker_takes_the_place_of_each("null before null");
}

#[test]
fn a_marker_takes_the_place_of_a_null_version_behind_another() {
    a_marker_takes_the_place_of_each("another before null");
}

#[test]
fn a_marker_takes_the_place_of_the_mounts_null_version_and_an_older_one() {
    a_marker_takes_the_place_of_each("null and older null");
}

/// A third file of the version `null` came back as the current version, or stayed.
fn the_null_version_goes_with_each_of_its_files(found: &str) {
    for done in ["deleted", "put", "marked"] {
        let what = format!("{found}, {done}");
        let pool = Pool::new(64);
        let served = pool.serve();
        let (root, fs) = (served.root(), &served.fs);
        root.put("/bucket", b"").is(200);
        let bucket = served.resolve("/bucket").ino;
        let taken = |name: &[u8]| fs.snapshot_create(b"/bucket", name).expect("a name");
        let bring_back = |snapshot: &cfs_fs::Snapshot| {
            fs.snapshot_restore(snapshot, b"/bucket", b"a", false, &mut Nobody)
                .expect("it is brought back");
        };
        let step_aside = || {
            root.put("/bucket/a/b", b"below").is(200);
            fs.unlink(served.resolve("/bucket/a").ino, b"b")
                .expect("removed");
            fs.rmdir(bucket, b"a").expect("empty");
            served.resolve("/bucket/.s3~a");
        };
        root.put("/bucket/a", b"null").is(200);
        let null = taken(b"null");
        set(&root, "Enabled");
        let kept = put(&root, "/bucket/a", b"kept");
        let version = taken(b"version");
        match found {
            "two in the tree" => {
                put(&root, "/bucket/a", b"overwritten");
                bring_back(&null);
                put(&root, "/bucket/a", b"overwritten too");
                bring_back(&null);
            }
            "one hidden" => {
                put(&root, "/bucket/a", b"overwritten");
                bring_back(&null);
                step_aside();
                bring_back(&null);
            }
            _ => {
                bring_back(&null);
                step_aside();
                bring_back(&version);
            }
        }
        if done != "deleted" {
            set(&root, "Suspended");
        }
        let (mut versions, mut markers) = (vec![kept.as_str()], Vec::new());
        match done {
            "put" => {
                assert_eq!(put(&root, "/bucket/a", b"new"), "");
                assert_eq!(get(&root, "/bucket/a", "null"), b"new", "{what}");
                versions.insert(0, "null");
            }
            "marked" => {
                root.delete("/bucket/a").is(204);
                root.get("/bucket/a").fails(404, "NoSuchKey");
                markers.push("null");
            }
            _ => {
                root.send("DELETE", "/bucket/a", &[("versionId", "null")], b"")
                    .is(204);
                assert_eq!(root.get("/bucket/a").is(200).body, b"kept", "{what}");
            }
        }
        let (listed, listed_markers) = list(&root, &[]);
        let ids: Vec<_> = listed.into_iter().map(|(_, id)| id).collect();
        assert_eq!(
            (ids, listed_markers),
            (owned(&versions), owned(&markers)),
            "{what}"
        );
        assert_eq!(get(&root, "/bucket/a", &kept), b"kept", "{what}");
        for id in versions.iter().chain(&markers) {
            root.send("DELETE", "/bucket/a", &[("versionId", id)], b"")
                .is(204);
        }
        root.get("/bucket/a").fails(404, "NoSuchKey");
        assert_eq!(list(&root, &[]), (Vec::new(), Vec::new()), "{what}");
        served.assert_clean();
    }
}

fn owned(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

#[test]
fn the_null_version_goes_with_two_files_in_the_tree() {
    the_null_version_goes_with_each_of_its_files("two in the tree");
}

#[test]
fn the_null_version_goes_with_a_hidden_file_and_one_in_the_tree() {
    the_null_version_goes_with_each_of_its_files("one hidden");
}

#[test]
fn the_null_version_goes_with_two_files_behind_another_version() {
    the_null_version_goes_with_each_of_its_files("behind another");
}

/// A file that came through the mount between the look at a key and the step was kept under the identifier of the version
/// that had been there.
#[test]
fn what_a_mount_puts_in_the_place_of_a_version_is_not_taken_for_it() {
    let pool = Pool::new(128);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    set(&root, "Enabled");
    let bucket = served.resolve("/bucket").ino;
    let stop = AtomicBool::new(false);
    let mut known = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                served.write(bucket, "new", b"from the mount");
                let flags = cfs_fs::RenameFlags::default();
                served
                    .fs
                    .rename(bucket, b"new", bucket, b"k", flags)
                    .expect("a new name");
                std::thread::sleep(std::time::Duration::from_micros(1500));
            }
        });
        for number in 0..800 {
            let body = format!("put {number}").into_bytes();
            let answer = root.put("/bucket/k", &body);
            if answer.status == 200 {
                known.push((answer.header("x-amz-version-id").to_owned(), body));
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let mut wrong = Vec::new();
    for (id, body) in &known {
        let got = root.send("GET", "/bucket/k", &[("versionId", id)], b"");
        // What the mount has replaced is gone.
        if got.status != 404 && got.body != *body {
            wrong.push(id);
        }
    }
    assert!(wrong.is_empty(), "{} of {}", wrong.len(), known.len());
    served.assert_clean();
}
