//! Sizes and times that the mount can set to whatever it likes: nothing is refused or ended by them.

use cfs_format::Ino;
use cfs_fs::{Caller, SetAttr, SetTime, Time, VolumeOptions};
use cfs_s3::Pass;

use crate::client::Client;
use crate::doors::report;
use crate::pool::{Pool, Served};

/// Seconds since 1970 of 2600-01-01, whose nanoseconds no u64 holds.
const FAR: i64 = 19_880_899_200;
const TIMES: [i64; 6] = [
    i64::MIN,
    -99_999_999_999,
    0,
    FAR,
    99_999_999_999_999_999,
    i64::MAX,
];

fn touch(served: &Served, ino: Ino, seconds: i64) {
    let time = SetTime::At(Time { seconds, nanos: 0 });
    let attributes = SetAttr {
        mtime: Some(time),
        atime: Some(time),
        ..SetAttr::default()
    };
    served
        .fs
        .setattr(ino, &attributes)
        .expect("any time will do");
}

fn keep_versions(client: &Client) {
    let enabled = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    client
        .send("PUT", "/bucket", &[("versioning", "")], enabled)
        .is(200);
}

/// `touch -d 2600-01-01 bucket/k`, and then a put, ended the server.
#[test]
fn files_of_any_time_are_objects() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    keep_versions(&root);
    let rules = b"<LifecycleConfiguration><Rule><Status>Enabled</Status><Prefix></Prefix>\
        <Expiration><Days>1000</Days></Expiration><NoncurrentVersionExpiration>\
        <NoncurrentDays>1000</NoncurrentDays></NoncurrentVersionExpiration></Rule>\
        </LifecycleConfiguration>";
    root.send("PUT", "/bucket", &[("lifecycle", "")], rules)
        .is(200);
    let bucket = served.resolve("/bucket").ino;
    for (number, seconds) in TIMES.into_iter().enumerate() {
        let path = format!("/bucket/{number}");
        let ino = served.write(bucket, &number.to_string(), b"of the mount");
        touch(&served, ino, seconds);
        root.get(&path).is(200);
        root.send("HEAD", &path, &[], b"").is(200);
        root.send("GET", "/bucket", &[], b"").is(200);
        let pass = Pass::default();
        let ran = served.server.lifecycle().run(&pass, &mut |_| true);
        ran.expect("rules can be run");
        if root.get(&path).status == 200 {
            for _ in 0..2 {
                root.put(&path, b"of S3").is(200);
            }
        }
        let null = root.send("GET", &path, &[("versionId", "null")], b"");
        assert_eq!(null.is(200).body, b"of the mount", "{seconds}");
        root.delete(&path).is(204);
        root.send("GET", "/bucket", &[("versions", "")], b"")
            .is(200);
    }
    served.assert_clean();
}

/// `truncate -s 8E` in two volumes, and then a look at figures, ended the server.
#[test]
fn files_of_any_size_are_counted() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let options = VolumeOptions::default();
    let volume = served
        .fs
        .volume_create(b"/volume", &options, &Caller::default())
        .expect("a volume")
        .ino;
    let bucket = served.resolve("/bucket").ino;
    let size = i64::MAX as u64;
    for (directory, name) in [(bucket, "a"), (volume, "a"), (bucket, "b"), (bucket, "c")] {
        let ino = served.write(directory, name, b"");
        let attributes = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        served.fs.setattr(ino, &attributes).expect("any size");
        served.fs.flush(ino).expect("there is room");
        for target in ["/metrics", "/api/stats"] {
            root.send_unsigned("GET", target, b"").is(200);
        }
        report(&root, "bucket").is(200);
    }
    let report = report(&root, "bucket").text();
    let wanted = format!("\"logical_bytes\": {}", u64::MAX);
    assert!(report.contains(&wanted), "{report}");
    served.assert_clean();
}
