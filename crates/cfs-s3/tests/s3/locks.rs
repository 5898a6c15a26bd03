//! Object lock: nobody removes what it protects, through S3 or the mount.

use cfs_format::Ino;
use cfs_fs::{FsError, RenameFlags};

use crate::client::{Answer, Client};
use crate::pool::Pool;

const BYPASS: (&str, &str) = ("x-amz-bypass-governance-retention", "true");
const LATER: &str = "2099-01-01T00:00:00Z";

fn bucket(root: &Client) {
    let lock = [("x-amz-bucket-object-lock-enabled", "true")];
    root.send_with("PUT", "/bucket", &[], &lock, b"").is(200);
}

fn put(client: &Client, key: &str, headers: &[(&str, &str)]) -> String {
    client
        .send_with("PUT", key, &[], headers, b"content")
        .is(200)
        .header("x-amz-version-id")
        .to_owned()
}

fn retain(client: &Client, key: &str, mode: &str, until: &str, headers: &[(&str, &str)]) -> Answer {
    let body = format!(
        "<Retention><Mode>{mode}</Mode><RetainUntilDate>{until}</RetainUntilDate></Retention>"
    );
    client.send_with("PUT", key, &[("retention", "")], headers, body.as_bytes())
}

fn remove(client: &Client, key: &str, version: &str, headers: &[(&str, &str)]) -> Answer {
    client.send_with("DELETE", key, &[("versionId", version)], headers, b"")
}

#[test]
fn compliance_holds_against_everybody() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    bucket(&root);
    let headers = [
        ("x-amz-object-lock-mode", "COMPLIANCE"),
        ("x-amz-object-lock-retain-until-date", LATER),
    ];
    let first = put(&root, "/bucket/dir/k", &headers);
    let check = |served: &crate::pool::Served| {
        let root = served.root();
        for headers in [&[][..], &[BYPASS]] {
            remove(&root, "/bucket/dir/k", &first, headers).fails(403, "AccessDenied");
            retain(
                &root,
                "/bucket/dir/k",
                "COMPLIANCE",
                "2098-01-01T00:00:00Z",
                headers,
            )
            .fails(403, "AccessDenied");
            retain(&root, "/bucket/dir/k", "GOVERNANCE", LATER, headers).fails(403, "AccessDenied");
        }
        let batch = format!(
            "<Delete><Object><Key>dir/k</Key><VersionId>{first}</VersionId></Object></Delete>"
        );
        let answer = root
            .send_with(
                "POST",
                "/bucket",
                &[("delete", "")],
                &[BYPASS],
                batch.as_bytes(),
            )
            .is(200);
        assert_eq!(answer.all("Code"), ["AccessDenied"]);
        // The mount, and what it could do above the file.
        let dir = served.resolve("/bucket/dir").ino;
        let locked = |result: Result<(), FsError>| {
            assert!(matches!(result, Err(FsError::Locked)), "{result:?}");
        };
        let flags = RenameFlags::default();
        locked(served.fs.unlink(dir, b"k"));
        locked(served.fs.rename(dir, b"k", dir, b"l", flags));
        locked(
            served
                .fs
                .rename(Ino::ROOT, b"bucket", Ino::ROOT, b"gone", flags),
        );
        let bucket = served.resolve("/bucket").ino;
        locked(served.fs.rename(bucket, b"dir", bucket, b"gone", flags));
        let answer = root
            .send("GET", "/bucket/dir/k", &[("versionId", &first)], b"")
            .is(200);
        assert_eq!(answer.body, b"content");
        assert_eq!(answer.header("x-amz-object-lock-mode"), "COMPLIANCE");
    };
    check(&served);
    // A bucket with locks keeps versions, and its locks.
    let suspend = b"<VersioningConfiguration><Status>Suspended</Status></VersioningConfiguration>";
    root.send("PUT", "/bucket", &[("versioning", "")], suspend)
        .fails(409, "InvalidBucketState");
    root.delete("/bucket").fails(409, "BucketNotEmpty");
    served.assert_clean();
    // As a crash leaves it.
    let again = pool.power_cut(3).serve();
    check(&again);
    again.assert_clean();
    // It may be covered by a newer version or a marker, and is there below it.
    let second = put(&root, "/bucket/dir/k", &[]);
    let marker = root.delete("/bucket/dir/k").is(204);
    assert_eq!(marker.header("x-amz-delete-marker"), "true");
    remove(&root, "/bucket/dir/k", &first, &[BYPASS]).fails(403, "AccessDenied");
    let tree = served.resolve("/bucket/.s3!versions/dir").ino;
    let names = served.fs.names_from(tree, b"", 10).expect("names");
    let locked = names
        .iter()
        .filter(|entry| matches!(served.fs.unlink(tree, &entry.name), Err(FsError::Locked)));
    assert_eq!(locked.count(), 1);
    remove(&root, "/bucket/dir/k", &second, &[]).is(204);
    served.assert_clean();
}

/// A locked object steps aside for a directory of its name, and is found although a file of the mount hides it.
#[test]
fn a_locked_object_is_found_whatever_has_its_name() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    bucket(&root);
    let headers = [
        ("x-amz-object-lock-mode", "COMPLIANCE"),
        ("x-amz-object-lock-retain-until-date", LATER),
    ];
    let id = put(&root, "/bucket/a", &headers);
    let below = put(&root, "/bucket/a/b", &[]);
    let get = |id: &str| root.send("GET", "/bucket/a", &[("versionId", id)], b"");
    assert_eq!(get(&id).is(200).body, b"content");
    remove(&root, "/bucket/a/b", &below, &[]).is(204);
    let bucket = served.resolve("/bucket").ino;
    served.write(bucket, "a", b"hides it");
    assert_eq!(root.get("/bucket/a").is(200).body, b"hides it");
    assert_eq!(get(&id).is(200).body, b"content");
    remove(&root, "/bucket/a", &id, &[]).fails(403, "AccessDenied");
    served.fs.unlink(bucket, b"a").expect("it is not locked");
    assert_eq!(root.get("/bucket/a").is(200).body, b"content");
    served.assert_clean();
}

#[test]
fn governance_ends_for_who_may_bypass_it() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let (root, alice, bob) = (served.root(), served.user("alice"), served.user("bob"));
    let lock = [("x-amz-bucket-object-lock-enabled", "true")];
    alice.send_with("PUT", "/bucket", &[], &lock, b"").is(200);
    let policy = br#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*",
        "Action":["s3:DeleteObjectVersion","s3:PutObject"],"Resource":"arn:aws:s3:::bucket/*"}]}"#;
    alice
        .send("PUT", "/bucket", &[("policy", "")], policy)
        .is(204);
    let id = put(&alice, "/bucket/k", &[]);
    retain(&alice, "/bucket/k", "GOVERNANCE", LATER, &[]).is(200);
    remove(&alice, "/bucket/k", &id, &[]).fails(403, "AccessDenied");
    // Bob may delete versions, and not bypass; nor lock.
    remove(&bob, "/bucket/k", &id, &[BYPASS]).fails(403, "AccessDenied");
    retain(&bob, "/bucket/k", "GOVERNANCE", LATER, &[]).fails(403, "AccessDenied");
    let headers = [("x-amz-object-lock-legal-hold", "ON")];
    bob.send_with("PUT", "/bucket/l", &[], &headers, b"")
        .fails(403, "AccessDenied");
    let hold = |status: &str| {
        let body = format!("<LegalHold><Status>{status}</Status></LegalHold>");
        alice
            .send("PUT", "/bucket/k", &[("legal-hold", "")], body.as_bytes())
            .is(200);
    };
    hold("ON");
    remove(&alice, "/bucket/k", &id, &[BYPASS]).fails(403, "AccessDenied");
    hold("OFF");
    remove(&alice, "/bucket/k", &id, &[BYPASS]).is(204);
    root.get("/bucket/k").fails(404, "NoSuchKey");
    served.assert_clean();
}

#[test]
fn a_bucket_locks_by_default() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    bucket(&root);
    let config = b"<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule>\
        <DefaultRetention><Mode>COMPLIANCE</Mode><Days>2</Days></DefaultRetention></Rule>\
        </ObjectLockConfiguration>";
    root.send("PUT", "/bucket", &[("object-lock", "")], config)
        .is(200);
    let id = put(&root, "/bucket/k", &[]);
    remove(&root, "/bucket/k", &id, &[BYPASS]).fails(403, "AccessDenied");
    let copied = [("x-amz-copy-source", "/bucket/k")];
    let copy = root
        .send_with("PUT", "/bucket/copy", &[], &copied, b"")
        .is(200);
    let copy = copy.header("x-amz-version-id").to_owned();
    remove(&root, "/bucket/copy", &copy, &[BYPASS]).fails(403, "AccessDenied");
    let retention = root
        .send("GET", "/bucket/k", &[("retention", "")], b"")
        .is(200);
    assert_eq!(retention.all("Mode"), ["COMPLIANCE"]);
    // Without locks there is nothing to ask for.
    root.put("/plain", b"").is(200);
    root.put("/plain/k", b"").is(200);
    retain(&root, "/plain/k", "GOVERNANCE", LATER, &[]).fails(400, "InvalidRequest");
    served.assert_clean();
}

/// What a bucket locks by default counts when an object appears, and not when its body begins to come.
#[test]
fn a_put_that_began_before_the_default_is_locked_by_it() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    bucket(&root);
    let config = b"<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule>\
        <DefaultRetention><Mode>COMPLIANCE</Mode><Days>2</Days></DefaultRetention></Rule>\
        </ObjectLockConfiguration>";
    let answer = root.put_slowly("/bucket/k", &[7; 100_000], || {
        root.send("PUT", "/bucket", &[("object-lock", "")], config)
            .is(200);
    });
    let id = answer.is(200).header("x-amz-version-id").to_owned();
    remove(&root, "/bucket/k", &id, &[BYPASS]).fails(403, "AccessDenied");
    // Nor does who enables versioning undo what who enables locks has done meanwhile.
    let enabled = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    let config = b"<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled>\
        </ObjectLockConfiguration>";
    for number in 0..40 {
        let path = format!("/bucket-{number}");
        root.put(&path, b"").is(200);
        let enable = || {
            root.send("PUT", &path, &[("versioning", "")], enabled)
                .is(200)
        };
        enable();
        std::thread::scope(|scope| {
            let others: Vec<_> = (0..3).map(|_| scope.spawn(enable)).collect();
            root.send("PUT", &path, &[("object-lock", "")], config)
                .is(200);
            others.into_iter().for_each(|other| drop(other.join()));
        });
        let suspended =
            b"<VersioningConfiguration><Status>Suspended</Status></VersioningConfiguration>";
        root.send("PUT", &path, &[("versioning", "")], suspended)
            .fails(409, "InvalidBucketState");
    }
    served.assert_clean();
}
