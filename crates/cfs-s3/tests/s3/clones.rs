//! A clone of a bucket is a bucket.

use cfs_format::Ino;
use cfs_fs::{Caller, FsError, Quota, RenameFlags, VolumeOptions};

use crate::pool::{Pool, noise};

#[test]
fn a_clone_of_a_bucket_is_one_and_locks_stay() {
    let pool = Pool::new(96);
    let served = pool.serve();
    let root = served.root();
    let lock = [("x-amz-bucket-object-lock-enabled", "true")];
    root.send_with("PUT", "/bucket", &[], &lock, b"").is(200);
    let large = vec![7; 300_000];
    root.put("/bucket/dir/large", &large).is(200);
    let held = [
        ("x-amz-object-lock-mode", "COMPLIANCE"),
        (
            "x-amz-object-lock-retain-until-date",
            "2099-01-01T00:00:00Z",
        ),
    ];
    root.send_with("PUT", "/bucket/held", &[], &held, b"first")
        .is(200);
    let fs = &served.fs;
    let taken = fs.snapshot_create(b"/bucket", b"s").expect("taken");
    fs.clone_create(&taken, b"/copy", Quota::default(), &Caller::default())
        .expect("a clone");
    assert_eq!(root.get("/copy/dir/large").is(200).body, large);
    let listed = root.send("GET", "/copy", &[("list-type", "2")], b"");
    assert_eq!(listed.is(200).all("Key"), ["dir/large", "held"]);
    root.put("/copy/dir/large", b"other").is(200);
    root.put("/copy/held", b"second").is(200);
    root.delete("/copy/dir/large").is(204);
    root.get("/copy/dir/large").fails(404, "NoSuchKey");
    assert_eq!(root.get("/bucket/dir/large").is(200).body, large);
    assert_eq!(root.get("/bucket/held").is(200).body, b"first");
    // What the origin holds is not held here, and can be held anew.
    fs.unlink(served.resolve("/copy").ino, b"held")
        .expect("not locked");
    root.send_with("PUT", "/copy/held", &[], &held, b"third")
        .is(200);
    served.assert_clean();
    let inside = served.resolve("/copy").ino;
    for (parent, name) in [(Ino::ROOT, "copy"), (inside, ".s3!versions")] {
        let flags = RenameFlags::default();
        let moved = fs.rename(parent, name.as_bytes(), parent, b"new", flags);
        assert!(matches!(moved, Err(FsError::Locked)), "{name}: {moved:?}");
    }
    assert!(matches!(fs.clone_delete(b"/copy"), Err(FsError::Locked)));
    // Nothing has been locked in a clone that is as it was, whose bucket can lock all the same.
    fs.clone_create(&taken, b"/second", Quota::default(), &Caller::default())
        .expect("a clone");
    let status = root.send("GET", "/second", &[("object-lock", "")], b"");
    assert!(status.is(200).text().contains("Enabled"));
    root.get("/second/held").is(200);
    let clone = fs.volume(b"/second").expect("there");
    assert!(clone.goes_whole());
    fs.clone_delete(b"/second").expect("removed");
    served.assert_clean();
}

/// `InvalidObjectState` was said of a bucket that has no objects.
#[test]
fn a_bucket_that_is_a_volume_or_has_one_is_not_deleted() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let (root, fs) = (served.root(), &served.fs);
    let caller = Caller::default();
    root.put("/bucket", b"").is(200);
    root.put("/bucket/k", b"content").is(200);
    let taken = fs.snapshot_create(b"/bucket", b"s").expect("taken");
    let quota = Quota::default();
    fs.clone_create(&taken, b"/copy", quota, &caller)
        .expect("a clone");
    fs.clone_create(&taken, b"/bucket/copy", quota, &caller)
        .expect("a clone");
    let options = VolumeOptions::default();
    fs.volume_create(b"/volume", &options, &caller)
        .expect("a volume");
    root.delete("/copy").fails(409, "BucketNotEmpty");
    root.delete("/copy/k").is(204);
    root.delete("/bucket/k").is(204);
    root.delete("/bucket").fails(409, "BucketNotEmpty");
    root.delete("/bucket/copy/k").is(204);
    root.put("/bucket/empty/below/k", b"").is(200);
    fs.unlink(served.resolve("/bucket/empty/below").ino, b"k")
        .expect("removed");
    for (bucket, words) in [
        (
            "/copy",
            "/copy is a clone, which `cfs admin volume delete /copy`",
        ),
        (
            "/volume",
            "/volume is a volume, which `cfs admin volume delete /volume`",
        ),
        (
            "/bucket",
            "/bucket/copy is a clone, which `cfs admin volume delete /bucket/copy`",
        ),
    ] {
        let refused = root.delete(bucket);
        assert!(refused.text().contains(words), "{}", refused.text());
        refused.fails(409, "InvalidBucketState");
        root.send("HEAD", bucket, &[], b"").is(200);
    }
    fs.clone_delete(b"/bucket/copy").expect("removed");
    root.delete("/bucket").is(204);
    served.assert_clean();
}

/// What stands for an object is found in directories that the clone has from its origin still.
#[test]
fn names_stay_bound_in_a_clone() {
    let pool = Pool::new(96);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let status = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    root.send("PUT", "/bucket", &[("versioning", "")], status)
        .is(200);
    let long = "x".repeat(253);
    for name in ["a", &long] {
        root.put(&format!("/bucket/{name}/b"), b"below").is(200);
        root.put(&format!("/bucket/{name}"), b"first").is(200);
        root.put(&format!("/bucket/{name}"), b"object").is(200);
    }
    let fs = &served.fs;
    let taken = fs.snapshot_create(b"/bucket", b"s").expect("taken");
    fs.clone_create(&taken, b"/copy", Quota::default(), &Caller::default())
        .expect("a clone");
    let inside = served.resolve("/copy").ino;
    let versions = served.resolve("/copy/.s3!versions").ino;
    let make = |parent, name: &[u8]| fs.create(parent, name, 0o644, &Caller::default()).map(drop);
    let forged = make(versions, b".s3~k%00ffffffffffffffff");
    assert!(matches!(forged, Err(FsError::Reserved)), "{forged:?}");
    for name in ["a", &long] {
        let directory = served.resolve(&format!("/copy/{name}")).ino;
        fs.unlink(directory, b"b").expect("removed");
        fs.rmdir(inside, name.as_bytes()).expect("removed");
        let before = make(inside, name.as_bytes());
        assert!(
            matches!(before, Err(FsError::ObjectExists)),
            "{name}: {before:?}"
        );
        let object = root.get(&format!("/copy/{name}")).is(200);
        assert_eq!(object.body, b"object");
    }
    served.assert_clean();
}

/// Digests of what the mount has made were stored when S3 first looked at it, for which the clone copied the file.
#[test]
fn looking_at_objects_changes_no_clone() {
    let pool = Pool::new(96);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let content = noise(300_000, 6);
    served.write(served.resolve("/bucket").ino, "f", &content);
    let fs = &served.fs;
    let taken = fs.snapshot_create(b"/bucket", b"s").expect("taken");
    let quota = Quota {
        bytes: 100_000,
        inodes: 0,
    };
    for (path, quota) in [("/bound", quota), ("/copy", Quota::default())] {
        fs.clone_create(&taken, path.as_bytes(), quota, &Caller::default())
            .expect("a clone");
        let object = format!("{path}/f");
        let etag = root.get("/bucket/f").is(200).header("etag").to_owned();
        for _ in 0..2 {
            let got = root.get(&object).is(200);
            assert_eq!((got.header("etag"), &got.body), (&*etag, &content));
            let head = root.send("HEAD", &object, &[], b"").is(200);
            assert_eq!(head.header("etag"), etag);
            let listed = root.send("GET", path, &[("list-type", "2")], b"").is(200);
            assert_eq!(listed.all("ETag"), [&*etag], "{path}");
        }
        let matches = [("if-match", &*etag)];
        root.send_with("GET", &object, &[], &matches, b"").is(200);
        let used = fs.volume(path.as_bytes()).expect("there").record;
        assert_eq!(used.logical_bytes.get(), 0, "{path}: looking changed it");
        assert!(fs.is_inherited(served.resolve(&object).ino).expect("read"));
    }
    // What is the clone's own keeps its digests.
    served.write(served.resolve("/copy").ino, "f", b"other");
    assert_eq!(root.get("/copy/f").is(200).body, b"other");
    let own = served.resolve("/copy/f").ino;
    assert!(!fs.is_inherited(own).expect("read"));
    let kept = fs.described(own, b"s3.content").expect("read").1;
    assert!(kept.is_some());
    served.assert_clean();
}
