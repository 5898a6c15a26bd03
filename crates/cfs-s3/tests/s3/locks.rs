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

/// A locked object steps aside for a directory of its name, and nothing that the mount makes can be put in front of it.
#[test]
fn nothing_hides_a_locked_object() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    bucket(&root);
    let headers = [
        ("x-amz-object-lock-mode", "COMPLIANCE"),
        ("x-amz-object-lock-retain-until-date", LATER),
    ];
    let below = put(&root, "/bucket/a/b", &[]);
    let id = put(&root, "/bucket/a", &headers);
    let get = |id: &str| root.send("GET", "/bucket/a", &[("versionId", id)], b"");
    assert_eq!(get(&id).is(200).body, b"content");
    remove(&root, "/bucket/a/b", &below, &[]).is(204);
    let bucket = served.resolve("/bucket").ino;
    let fs = &served.fs;
    if let Ok(directory) = fs.lookup(bucket, b"a") {
        fs.rmdir(bucket, b"a")
            .unwrap_or_else(|error| panic!("{}: {error}", directory.ino));
    }
    // A name beside it would be the same object.
    let caller = cfs_fs::Caller::default();
    let forged = served.write(bucket, "forged", b"forged");
    let flags = RenameFlags::default();
    let rename = |parent, name: &[u8], to, new: &[u8], flags| {
        let held = fs.rename_and_hold(parent, name, to, new, flags)?;
        held.map_or(Ok(()), |ino| fs.end_hold(ino))
    };
    let exists = |result: Result<(), FsError>| {
        assert!(matches!(result, Err(FsError::ObjectExists)), "{result:?}");
    };
    exists(fs.create(bucket, b"a", 0o644, &caller).map(drop));
    exists(fs.mknod(bucket, b"a", 0o644, 0, &caller).map(drop));
    exists(fs.link(forged, bucket, b"a").map(drop));
    exists(rename(bucket, b"forged", bucket, b"a", flags));
    let unnamed = fs.tmpfile_and_hold(bucket, 0o644, &caller).expect("a file");
    let publication = cfs_fs::Publication {
        parent: bucket,
        name: b"a",
        expected: cfs_fs::Expected::Anything,
        records: Vec::new(),
        archive: None,
    };
    let published = fs.publish(unnamed.ino, publication);
    assert!(matches!(published, Err(FsError::Changed)), "{published:?}");
    fs.release(unnamed.ino).expect("it was open");
    fs.end_hold(unnamed.ino).expect("it was held");
    fs.mkdir(bucket, b"a", 0o755, &caller).expect("no object");
    let swap = RenameFlags {
        exchange: true,
        ..flags
    };
    exists(rename(bucket, b"forged", bucket, b"a", swap));
    exists(rename(bucket, b"a", bucket, b"forged", swap));
    fs.rmdir(bucket, b"a").expect("it is empty");
    assert_eq!(root.get("/bucket/a").is(200).body, b"content");
    let newest = root.send("GET", "/bucket", &[("versions", ""), ("prefix", "a")], b"");
    let newest = newest.is(200);
    assert_eq!(newest.all("VersionId"), std::slice::from_ref(&id));
    assert_eq!(newest.all("IsLatest"), ["true"]);
    // Nor may an escaped name stand beside a plain one.
    put(&root, "/bucket/k", &headers);
    exists(fs.create(bucket, b".s3~k", 0o644, &caller).map(drop));
    exists(rename(bucket, b"forged", bucket, b".s3~k", flags));
    // The one name of an object may become the other, and a name may be replaced.
    rename(bucket, b"forged", bucket, b".s3~forged", flags).expect("it is the same object");
    assert_eq!(root.get("/bucket/forged").is(200).body, b"forged");
    served.write(bucket, "newer", b"newer");
    exists(rename(bucket, b"newer", bucket, b"forged", flags));
    rename(bucket, b"newer", bucket, b".s3~forged", flags).expect("it takes the other's place");
    assert_eq!(root.get("/bucket/forged").is(200).body, b"newer");
    // A deleted key is deleted.
    root.delete("/bucket/a").is(204);
    root.get("/bucket/a").fails(404, "NoSuchKey");
    assert_eq!(get(&id).is(200).body, b"content");
    remove(&root, "/bucket/a", &id, &[]).fails(403, "AccessDenied");
    served.assert_clean();
}

/// Names that go on in directories hide nothing either: those of more than 251 bytes, when they are escaped.
#[test]
fn nothing_hides_a_locked_object_with_a_long_name() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    bucket(&root);
    let headers = [
        ("x-amz-object-lock-mode", "COMPLIANCE"),
        ("x-amz-object-lock-retain-until-date", LATER),
    ];
    let in_bucket = served.resolve("/bucket").ino;
    let (fs, caller) = (&served.fs, cfs_fs::Caller::default());
    let forged = served.write(in_bucket, "forged", b"forged");
    let flags = RenameFlags::default();
    let exists = |result: Result<(), FsError>| {
        assert!(matches!(result, Err(FsError::ObjectExists)), "{result:?}");
    };
    let reserved = |result: Result<(), FsError>| {
        assert!(matches!(result, Err(FsError::Reserved)), "{result:?}");
    };
    for (number, long) in ["x".repeat(255), "y".repeat(252), "z z".repeat(85)]
        .into_iter()
        .enumerate()
    {
        let path = format!("/bucket/{long}");
        let below = put(&root, &format!("{path}/b"), &[]);
        put(&root, &path, &headers);
        remove(&root, &format!("{path}/b"), &below, &[]).is(204);
        let name = long.as_bytes();
        exists(fs.create(in_bucket, name, 0o644, &caller).map(drop));
        exists(fs.link(forged, in_bucket, name).map(drop));
        exists(
            fs.rename_and_hold(in_bucket, b"forged", in_bucket, name, flags)
                .map(drop),
        );
        assert_eq!(root.get(&path).is(200).body, b"content");
        // The directories in which the name goes on stay where they are, and others come to no place of such.
        let names = cfs_fs::escaped::names_of(name, cfs_fs::escaped::Form::File);
        let first = &names[0];
        reserved(
            fs.rename_and_hold(in_bucket, first, in_bucket, b"gone", flags)
                .map(drop),
        );
        let own = format!("dir-{number}");
        let directory = fs.mkdir(in_bucket, own.as_bytes(), 0o755, &caller);
        let directory = directory.expect("a name").ino;
        let other = cfs_fs::escaped::names_of(&[b'w'; 300], cfs_fs::escaped::Form::File);
        reserved(
            fs.rename_and_hold(in_bucket, own.as_bytes(), in_bucket, &other[0], flags)
                .map(drop),
        );
        // And the other way round: the plain name is there, and the escaped one is not made.
        fs.create(directory, name, 0o644, &caller).expect("a name");
        let mut inner = directory;
        for name in &names[..names.len() - 1] {
            inner = fs.mkdir(inner, name, 0o755, &caller).expect("a name").ino;
        }
        let last = &names[names.len() - 1];
        exists(fs.create(inner, last, 0o644, &caller).map(drop));
        fs.create(inner, b".s3~other", 0o644, &caller)
            .expect("it stands for something else");
    }
    served.assert_clean();
}

/// Versions that never were are not made through the mount, nor are those that were given to other objects.
#[test]
fn versions_are_made_by_s3_alone() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    bucket(&root);
    let first = put(&root, "/bucket/dir/k", &[]);
    put(&root, "/bucket/dir/k", &[]);
    put(&root, "/bucket/other/k", &[]);
    let tree = served.resolve("/bucket/.s3!versions").ino;
    let dir = served.resolve("/bucket/.s3!versions/dir").ino;
    let bucket = served.resolve("/bucket").ino;
    let (fs, caller) = (&served.fs, cfs_fs::Caller::default());
    let flags = RenameFlags::default();
    let rename = |parent, name: &[u8], to, new: &[u8], flags| {
        fs.rename_and_hold(parent, name, to, new, flags).map(drop)
    };
    let reserved = |result: Result<(), FsError>| {
        assert!(matches!(result, Err(FsError::Reserved)), "{result:?}");
    };
    let forged = served.write(bucket, "forged", b"forged");
    let never: &[u8] = b".s3~k%00ffffffffffffffff";
    for directory in [tree, dir] {
        reserved(fs.create(directory, never, 0o644, &caller).map(drop));
        reserved(fs.link(forged, directory, never).map(drop));
        reserved(rename(bucket, b"forged", directory, never, flags));
        reserved(fs.mkdir(directory, b".s3+k", 0o755, &caller).map(drop));
    }
    let version = fs.names_from(dir, b"", 1).expect("names").remove(0).name;
    reserved(rename(dir, &version, dir, b"k", flags));
    reserved(rename(dir, &version, tree, &version, flags));
    reserved(rename(tree, b"dir", tree, b"more", flags));
    reserved(rename(bucket, b".s3!versions", bucket, b"gone", flags));
    reserved(fs.symlink(bucket, b".s3!new", b"x", &caller).map(drop));
    let listed = root.send("GET", "/bucket", &[("versions", "")], b"");
    assert_eq!(listed.is(200).all("VersionId").len(), 4);
    // What is not locked is removed.
    fs.unlink(dir, &version).expect("it is not locked");
    root.send("GET", "/bucket/dir/k", &[("versionId", &first)], b"")
        .fails(404, "NoSuchVersion");
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
    // A bucket that has no object lock when the body begins to come.
    root.put("/bucket", b"").is(200);
    let enabled = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    root.send("PUT", "/bucket", &[("versioning", "")], enabled)
        .is(200);
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

/// One command makes a bucket with all that it has from the start: a kill leaves all or nothing of it.
#[test]
fn a_bucket_with_locks_is_made_in_one_step() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    let commands = || served.fs.store().stats().last_lsn.0;
    let before = commands();
    let headers = [
        ("x-amz-acl", "public-read"),
        ("x-amz-bucket-object-lock-enabled", "true"),
        ("x-amz-object-ownership", "ObjectWriter"),
    ];
    root.send_with("PUT", "/bucket", &[], &headers, b"").is(200);
    assert_eq!(commands(), before + 1);
    for (question, answer) in [
        ("object-lock", "<ObjectLockEnabled>Enabled"),
        ("versioning", "<Status>Enabled"),
        ("ownershipControls", "ObjectWriter"),
        ("acl", "AllUsers"),
    ] {
        let told = root.send("GET", "/bucket", &[(question, "")], b"").is(200);
        assert!(told.text().contains(answer), "{question}: {}", told.text());
    }
}
