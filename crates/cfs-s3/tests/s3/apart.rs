//! Users with a dedup domain of their own.

use cfs_fs::{FsError, Quota, RenameFlags};

use crate::client::Client;
use crate::forms::post;
use crate::iam::{allow, member, put_policy};
use crate::parts::{begin, complete};
use crate::pool::{Pool, Served, noise};

const BYTES: usize = 600_000;

fn chunks(served: &Served) -> u64 {
    served.fs.syncfs().expect("synced");
    served.fs.store().stats().pool.chunk_count.get()
}

/// Chunks that something adds.
fn added(served: &Served, something: impl FnOnce()) -> u64 {
    let before = chunks(served);
    something();
    chunks(served) - before
}

fn copy(client: &Client, from: &str, to: &str) {
    let source = [("x-amz-copy-source", from)];
    client.send_with("PUT", to, &[], &source, b"").is(200);
}

#[test]
fn equal_content_of_two_users_is_stored_twice_and_of_one_once() {
    let pool = Pool::new(128);
    let served = pool.serve();
    let (alice, bob) = (served.user_apart("alice"), served.user_apart("bob"));
    let (carol, dave) = (served.user("carol"), served.user("dave"));
    let content = noise(BYTES, 1);
    for (client, bucket) in [
        (&alice, "/alice-1"),
        (&alice, "/alice-2"),
        (&bob, "/bob"),
        (&carol, "/carol"),
        (&dave, "/dave"),
    ] {
        client.put(bucket, b"").is(200);
    }
    let put = |client: &Client, path: &str| {
        added(&served, || {
            client.put(path, &content).is(200);
        })
    };
    assert!(put(&carol, "/carol/k") > 0);
    assert_eq!(put(&dave, "/dave/k"), 0, "these two share a domain");
    assert!(put(&alice, "/alice-1/k") > 0);
    assert_eq!(put(&alice, "/alice-2/k"), 0);
    assert!(put(&bob, "/bob/k") > 0);
    // Nor is anything shared that comes in another way.
    let fresh = |seed| noise(BYTES, seed);
    let open = [("x-amz-acl", "public-read-write")];
    for (seed, path) in (2..).zip(["/carol/other", "/carol/part", "/carol/form", "/carol/mount"]) {
        carol
            .send_with("PUT", path, &[], &open, &fresh(seed))
            .is(200);
    }
    let of_alice = |path: &str| alice.get(path).is(200).body;
    let copied = added(&served, || copy(&alice, "/carol/other", "/alice-1/other"));
    assert!(copied > 0, "a copy referred to another domain");
    assert!(of_alice("/alice-1/other") == fresh(2));
    let again = added(&served, || copy(&alice, "/alice-1/other", "/alice-2/other"));
    assert_eq!(again, 0);
    let in_parts = added(&served, || {
        let path = "/alice-1/in-parts";
        let id = begin(&alice, path, &[]);
        let query = [("partNumber", "1"), ("uploadId", id.as_str())];
        let source = [("x-amz-copy-source", "/carol/part")];
        let part = alice.send_with("PUT", path, &query, &source, b"").is(200);
        let etag = part.all("ETag").remove(0).replace("&quot;", "\"");
        complete(&alice, path, &id, &[(1, etag)]).is(200);
    });
    assert!(in_parts > 0);
    assert!(of_alice("/alice-1/in-parts") == fresh(3));
    alice
        .send_with("PUT", "/alice-1", &[("acl", "")], &open, b"")
        .is(200);
    let by_form = added(&served, || {
        let content = fresh(4);
        post(&alice, "/alice-1", &[("key", "form")], ("f", &content)).is(204);
    });
    assert!(by_form > 0);
    // And through the mount.
    let bucket = served.resolve("/alice-1").ino;
    let mount = fresh(5);
    let through_mount = added(&served, || {
        served.write(bucket, "mount", &mount);
    });
    assert!(through_mount > 0);
    let put = || drop(alice.put("/alice-2/mount", &mount).is(200));
    assert_eq!(added(&served, put), 0);
    let others = served.resolve("/carol").ino;
    for (from, to) in [
        (bucket, others),
        (others, bucket),
        (bucket, served.resolve("/alice-2").ino),
    ] {
        let flags = RenameFlags::default();
        let moved = served.fs.rename(from, b"mount", to, b"moved", flags);
        assert!(matches!(moved, Err(FsError::CrossVolume)), "{moved:?}");
    }
    // A user of hers makes buckets in her domain too.
    let helper = member(&served, &alice, "helper");
    put_policy(&alice, "User", "helper", &allow("s3:*", "*")).is(200);
    helper.put("/alice-3", b"").is(200);
    let put = || drop(helper.put("/alice-3/k", &content).is(200));
    assert_eq!(added(&served, put), 0);
    served.assert_clean();

    let served = pool.power_cut(1).serve();
    let at = |client: &Client| Client {
        address: served.server.address(),
        ..client.clone()
    };
    let (alice, bob) = (at(&alice), at(&bob));
    assert!(alice.get("/alice-1/k").is(200).body == content);
    assert!(bob.get("/bob/k").is(200).body == content);
    let after = added(&served, || {
        bob.put("/bob/again", &content).is(200);
        alice.put("/alice-2/again", &content).is(200);
        alice.put("/alice-4", b"").is(200);
        alice.put("/alice-4/k", &content).is(200);
    });
    assert_eq!(after, 0, "a domain is another after a restart");
    served.assert_clean();
}

/// Such buckets are volumes, and act as any other.
#[test]
fn buckets_of_users_apart_come_and_go() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let (alice, root) = (served.user_apart("alice"), served.root());
    let domain = served.users.list()[0].domain().expect("one of her own");
    alice.put("/bucket", b"").is(200);
    alice.put("/bucket", b"").is(200);
    let enabled = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    alice
        .send("PUT", "/bucket", &[("versioning", "")], enabled)
        .is(200);
    let content = noise(BYTES, 1);
    let ids: Vec<String> = [&content[..], b"2"]
        .map(|content| {
            let put = alice.put("/bucket/dir/k", content).is(200);
            put.header("x-amz-version-id").to_owned()
        })
        .to_vec();
    alice.delete("/bucket").fails(409, "BucketNotEmpty");
    for id in &ids {
        alice
            .send("DELETE", "/bucket/dir/k", &[("versionId", id)], b"")
            .is(204);
    }
    // What an administrator has given it is not lost by the way.
    let volume = || served.fs.volume(b"/bucket").expect("it is one");
    assert_eq!(volume().record.domain.get(), domain.0);
    let quota = |bytes| {
        let quota = Quota { bytes, inodes: 0 };
        let set = served.fs.volume_set_quota(volume().id, quota);
        set.expect("it is there");
    };
    quota(1 << 30);
    alice.delete("/bucket").fails(409, "InvalidBucketState");
    quota(0);
    let snapshot = served.fs.snapshot_create(b"/bucket", b"snap");
    let snapshot = snapshot.expect("taken");
    alice.delete("/bucket").fails(409, "InvalidBucketState");
    served.fs.snapshot_delete(&snapshot).expect("deleted");
    alice.delete("/bucket").is(204);
    assert!(served.fs.volume(b"/bucket").is_err());
    alice.get("/bucket").fails(404, "NoSuchBucket");
    // Somebody is putting something: what has no name yet is in the volume too.
    alice.put("/slow", b"").is(200);
    let inodes = || {
        let volume = served.fs.volume(b"/slow").expect("it is one");
        volume.record.inode_count.get()
    };
    alice
        .put_slowly("/slow/k", &content, || {
            while inodes() == 1 {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            alice.delete("/slow").fails(409, "BucketNotEmpty");
        })
        .is(200);
    alice.delete("/slow/k").is(204);
    alice.delete("/slow").is(204);
    // One with object lock too; and it is not moved while it is there.
    let lock = [("x-amz-bucket-object-lock-enabled", "true")];
    alice.send_with("PUT", "/locked", &[], &lock, b"").is(200);
    let flags = RenameFlags::default();
    let (above, below) = (cfs_format::Ino::ROOT, b"elsewhere");
    let moved = served.fs.rename(above, b"locked", above, below, flags);
    assert!(matches!(moved, Err(FsError::Locked)), "{moved:?}");
    alice.delete("/locked").is(204);
    served.assert_clean();
    // Her buckets outlive her, and her domain; root removes them.
    alice.put("/left", b"").is(200);
    alice.put("/left/k", &content).is(200);
    served.users.remove("alice").expect("she is there");
    assert!(served.fs.store().domains().contains(&domain));
    assert!(root.get("/left/k").is(200).body == content);
    root.delete("/left/k").is(204);
    root.delete("/left").is(204);
    // Who has the name later has another domain.
    served.user_apart("alice");
    assert_ne!(served.users.list()[0].domain(), Some(domain));
    served.assert_clean();
}
