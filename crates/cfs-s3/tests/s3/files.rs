//! One inode, two views: files are objects, and objects files.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cfs_format::Ino;
use cfs_fs::{Caller, RenameFlags, XattrFlags};
use md5::{Digest, Md5};

use crate::client::{hex, receive};
use crate::pool::{Pool, noise};

#[test]
fn a_file_is_at_once_an_object() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let bucket = served.resolve("/bucket").ino;
    let ino = served.write(bucket, "file", b"from the mount");
    let got = root.get("/bucket/file").is(200);
    assert_eq!(got.body, b"from the mount");
    assert_eq!(got.header("etag"), "\"79d88b9198a760d983c23c5b5d9bcd95\"");
    // Kept, and outdated by every change of the content.
    assert_eq!(root.get("/bucket/file").header("etag"), got.header("etag"));
    served.fs.write(ino, 14, b"!", false).expect("room");
    let more = root.get("/bucket/file").is(200);
    assert_eq!(more.header("etag"), "\"faf88a54b7907cc3112849a4b8d686af\"");
    let flags = XattrFlags::default();
    served
        .fs
        .setxattr(ino, b"user.colour", b"red", flags)
        .expect("room");
    let named = root.get("/bucket/file").is(200);
    assert_eq!(named.header("x-amz-meta-colour"), "red");
    assert_eq!(named.header("etag"), more.header("etag"));
    let flags = RenameFlags::default();
    served
        .fs
        .rename(bucket, b"file", bucket, b"other", flags)
        .expect("a new name");
    root.get("/bucket/file").fails(404, "NoSuchKey");
    assert_eq!(root.get("/bucket/other").is(200).body, b"from the mount!");
    served.fs.unlink(bucket, b"other").expect("it is there");
    root.get("/bucket/other").fails(404, "NoSuchKey");
}

/// Each command that changes content outdates the digest, also when it does not change the size.
#[test]
fn every_change_of_content_outdates_the_digest() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let content = noise(1_000_000, 1);
    root.put("/bucket/k", &content).is(200);
    let ino = served.resolve("/bucket/k").ino;
    let etag = || root.get("/bucket/k").is(200).header("etag").to_owned();
    let mut last = etag();
    let changes: [(&str, &dyn Fn()); 5] = [
        ("write", &|| {
            served
                .fs
                .write(ino, 500_000, b"other", false)
                .expect("room");
        }),
        ("punch", &|| {
            let mode = cfs_fs::AllocateMode::Punch;
            served
                .fs
                .fallocate(ino, mode, 100_000, 50_000, false)
                .expect("room");
        }),
        ("collapse", &|| {
            let mode = cfs_fs::AllocateMode::Collapse;
            served
                .fs
                .fallocate(ino, mode, 0, 4096, false)
                .expect("room");
        }),
        ("copy", &|| {
            served
                .fs
                .copy_range(ino, 0, ino, 700_000, 10_000)
                .expect("room");
        }),
        ("cut", &|| {
            let cut = cfs_fs::SetAttr {
                size: Some(10),
                ..cfs_fs::SetAttr::default()
            };
            served.fs.setattr(ino, &cut).expect("a file can be cut");
        }),
    ];
    for (name, change) in changes {
        change();
        let now = etag();
        assert_ne!(now, last, "{name}");
        served.fs.syncfs().expect("room");
        assert_eq!(etag(), now, "{name}");
        last = now;
    }
}

#[test]
fn an_object_is_at_once_a_file() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let content = noise(1_000_000, 1);
    let headers = [("x-amz-meta-colour", "blue"), ("content-type", "text/x-y")];
    root.send_with("PUT", "/bucket/dir/object", &[], &headers, &content)
        .is(200);
    let attr = served.resolve("/bucket/dir/object");
    assert!(served.read(attr.ino) == content);
    let attribute = |name: &[u8]| served.fs.getxattr(attr.ino, name).expect("it was set");
    assert_eq!(attribute(b"user.colour"), b"blue");
    assert_eq!(attribute(b"user.mime_type"), b"text/x-y");
    let names = served.fs.listxattr(attr.ino).expect("it is there");
    assert_eq!(names, [b"user.colour".to_vec(), b"user.mime_type".to_vec()]);
    assert!(
        served.fs.getxattr(attr.ino, b"s3.content").is_err(),
        "records are out of sight"
    );
    let dir = served.resolve("/bucket/dir").ino;
    let told = std::mem::take(&mut *served.told.0.lock());
    assert!(told.contains(&(dir, b"object".to_vec())), "{told:?}");
    // An open file lives on when another takes its key.
    served.fs.open(attr.ino).expect("it is there");
    root.put("/bucket/dir/object", b"other").is(200);
    assert!(served.read(attr.ino) == content);
    served.fs.release(attr.ino).expect("it was open");
    let told = std::mem::take(&mut *served.told.0.lock());
    assert!(told.contains(&(attr.ino, Vec::new())), "{told:?}");
    root.delete("/bucket/dir/object").is(204);
    let told = std::mem::take(&mut *served.told.0.lock());
    assert!(told.contains(&(dir, b"object".to_vec())), "{told:?}");
    served.assert_clean();
}

/// Directories that were made for keys go with the last of them; others stay.
#[test]
fn directories_go_with_their_last_key() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    root.put("/bucket/a/b/c", b"1").is(200);
    root.put("/bucket/a/d", b"2").is(200);
    root.delete("/bucket/a/b/c").is(204);
    assert!(served.fs.resolve(b"/bucket/a/b").is_err());
    served.resolve("/bucket/a");
    let bucket = served.resolve("/bucket").ino;
    let caller = Caller::default();
    let own = served
        .fs
        .mkdir(bucket, b"own", 0o755, &caller)
        .expect("room");
    served.write(own.ino, "file", b"3");
    root.delete("/bucket/own/file").is(204);
    served.resolve("/bucket/own");
    let listed = root
        .send("GET", "/bucket", &[("delimiter", "/")], b"")
        .is(200);
    assert_eq!(listed.all("Prefix"), ["", "a/"]);
    root.delete("/bucket/a/d").is(204);
    assert!(served.fs.resolve(b"/bucket/a").is_err());
    root.delete("/bucket").is(204);
    served.assert_clean();
}

/// What is no regular file is no object, and is neither followed nor replaced.
#[test]
fn no_key_leads_out_of_its_bucket() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    let caller = Caller::default();
    root.put("/bucket", b"").is(200);
    let bucket = served.resolve("/bucket").ino;
    let secret = served
        .fs
        .mkdir(Ino::ROOT, b"secret", 0o700, &caller)
        .expect("room");
    served.write(secret.ino, "file", b"secret");
    served
        .fs
        .symlink(bucket, b"link", b"../secret", &caller)
        .expect("room");
    served
        .fs
        .symlink(bucket, b"to-file", b"../secret/file", &caller)
        .expect("room");
    root.get("/bucket/link/file").fails(404, "NoSuchKey");
    root.get("/bucket/to-file").fails(404, "NoSuchKey");
    root.get("/bucket/../secret/file").fails(404, "NoSuchKey");
    root.put("/bucket/to-file", b"x").is(409);
    root.put("/bucket/link/file", b"x").is(409);
    assert_eq!(root.get("/secret/file").body, b"secret");
    assert!(
        root.send("GET", "/bucket", &[], b"")
            .is(200)
            .all("Key")
            .is_empty()
    );
    root.delete("/bucket").fails(409, "BucketNotEmpty");
    root.get("/.hidden").fails(404, "NoSuchBucket");
}

/// Putting into a volume below a bucket failed after the whole body had come.
#[test]
fn a_volume_can_lie_below_a_bucket() {
    let pool = Pool::new(128);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let options = cfs_fs::VolumeOptions {
        domain: cfs_fs::VolumeDomain::New,
        ..cfs_fs::VolumeOptions::default()
    };
    let volume = served
        .fs
        .volume_create(b"/bucket/volume", &options, &Caller::default())
        .expect("a volume");
    let content = noise(300_000, 1);
    root.put("/bucket/volume/dir/k", &content).is(200);
    let made = served.resolve("/bucket/volume/dir/k");
    assert_eq!(made.volume, volume.volume);
    root.put("/bucket/outside", &content).is(200);
    for (source, target) in [("volume/dir/k", "copy"), ("outside", "volume/copy")] {
        let source = format!("/bucket/{source}");
        let headers = [("x-amz-copy-source", source.as_str())];
        let target = format!("/bucket/{target}");
        root.send_with("PUT", &target, &[], &headers, b"").is(200);
        assert!(root.get(&target).is(200).body == content);
    }
    let path = "/bucket/volume/parts";
    let id = crate::parts::begin(&root, path, &[]);
    let query = [("partNumber", "1"), ("uploadId", id.as_str())];
    let put = root.send("PUT", path, &query, &content).is(200);
    let parts = [(1, put.header("etag").to_owned())];
    crate::parts::complete(&root, path, &id, &parts).is(200);
    assert!(root.get(path).is(200).body == content);
    let keys = root.send("GET", "/bucket", &[], b"").is(200).all("Key");
    assert_eq!(
        keys,
        [
            "copy",
            "outside",
            "volume/copy",
            "volume/dir/k",
            "volume/parts"
        ]
    );
    root.delete(path).is(204);
    // Versions do not leave their volume, and that is said before the body is received.
    let enabled = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    root.send("PUT", "/bucket", &[("versioning", "")], enabled)
        .is(200);
    let refused = |answer: crate::client::Answer| answer.fails(409, "InvalidObjectState");
    refused(root.put("/bucket/volume/dir/k", b"other"));
    refused(root.put("/bucket/volume/new", b"other"));
    refused(root.delete("/bucket/volume/dir/k"));
    refused(root.send("POST", "/bucket/volume/k", &[("uploads", "")], b""));
    assert!(root.get("/bucket/volume/dir/k").is(200).body == content);
    root.put("/bucket/outside", b"other").is(200);
    served.assert_clean();
}

/// A file that the mount changes while it is sent is not sent as if it were one content.
#[test]
fn what_changes_while_it_is_sent_is_cut_off() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let content = noise(24 << 20, 1);
    root.put("/bucket/k", &content).is(200);
    let ino = served.resolve("/bucket/k").ino;
    let get = |meanwhile: &dyn Fn()| {
        let link = root.presign("GET", "/bucket/k", 60);
        let head = format!(
            "GET {link} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
            root.address
        );
        let mut stream = root.connect();
        stream.write_all(head.as_bytes()).expect("the server reads");
        // What the sockets do not hold has not been read yet.
        let mut first = vec![0; 1 << 20];
        stream.read_exact(&mut first).expect("it comes");
        meanwhile();
        receive(&mut Read::chain(&first[..], stream))
    };
    let whole = get(&|| {});
    assert!(whole.is(200).body == content);
    let cut = get(&|| {
        let written = served.fs.write(ino, (24 << 20) - 5, b"other", false);
        written.expect("there is room");
    });
    assert!(cut.body.len() < content.len());
    // Attributes and names are no content.
    let kept = get(&|| {
        let bucket = served.resolve("/bucket").ino;
        served.fs.unlink(bucket, b"k").expect("it is there");
    });
    assert_eq!(kept.body.len(), content.len());
}

/// A copy has the digest of what was copied. It had that of its source as it was looked at, which was written to through the
/// mount before it was copied.
#[test]
fn a_copy_has_the_digest_of_its_content() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    root.put("/bucket/from", &noise(100_000, 1)).is(200);
    let ino = served.resolve("/bucket/from").ino;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round: u64 = 0;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                let bytes = round.to_le_bytes();
                served.fs.write(ino, 0, &bytes, false).expect("room");
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let mut wrong = Vec::new();
        for number in 0..300 {
            let path = format!("/bucket/to{}", number % 8);
            let source = [("x-amz-copy-source", "/bucket/from")];
            let copied = root.send_with("PUT", &path, &[], &source, b"");
            if copied.status != 200 {
                continue;
            }
            let copy = root.get(&path).is(200);
            let etag = format!("\"{}\"", hex(&Md5::digest(&copy.body)));
            if copy.header("etag") != etag {
                wrong.push(number);
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(wrong.is_empty(), "copies with the wrong digest: {wrong:?}");
    });
    served.assert_clean();
}
