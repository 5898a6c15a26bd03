//! Keys that no path can express.

use crate::client::encode;
use crate::pool::Pool;

fn odd_keys() -> Vec<String> {
    let mut keys: Vec<String> = [
        "a",
        "a/",
        "a/b",
        "a//",
        "a//b",
        "a/./b",
        "a/../b",
        ".",
        "..",
        "./",
        "/",
        "//",
        "/lead",
        "a-b",
        "a b",
        "a!b/c",
        "a0",
        "%",
        "%2F",
        "ä/ö",
        ".s3~a",
        ".s3=/x",
        ".s3+",
        "plus+plus",
        "q?x=y&z",
        "tab\there",
    ]
    .map(str::to_owned)
    .to_vec();
    keys.push("x".repeat(255));
    keys.push("x".repeat(256));
    keys.push("x".repeat(1024));
    keys.push(format!("{}/y", "x".repeat(300)));
    keys.push(format!("{}a", "x".repeat(254)));
    keys.push(format!("{}/{}", "%".repeat(400), "\u{1}".repeat(400)));
    keys
}

/// All of them, put in one order and in the other, so that each comes before and after those in its way.
#[test]
fn every_key_is_possible() {
    for reversed in [false, true] {
        let pool = Pool::new(64);
        let served = pool.serve();
        let root = served.root();
        root.put("/bucket", b"").is(200);
        let mut keys = odd_keys();
        if reversed {
            keys.reverse();
        }
        for key in &keys {
            root.put(&format!("/bucket/{key}"), key.as_bytes()).is(200);
        }
        for key in &keys {
            let got = root.get(&format!("/bucket/{key}")).is(200);
            assert_eq!(got.text(), *key);
        }
        keys.sort();
        let listed = root
            .send("GET", "/bucket", &[("encoding-type", "url")], b"")
            .is(200);
        let wanted: Vec<_> = keys.iter().map(|key| encode(key, true)).collect();
        assert_eq!(listed.all("Key"), wanted);
        // Each key as a marker, and each as a prefix.
        for (index, key) in keys.iter().enumerate() {
            let query = [
                ("encoding-type", "url"),
                ("marker", key.as_str()),
                ("max-keys", "3"),
            ];
            let after = root.send("GET", "/bucket", &query, b"").is(200);
            let rest = &wanted[index + 1..];
            assert_eq!(after.all("Key"), rest[..rest.len().min(3)], "after {key:?}");
            let query = [("encoding-type", "url"), ("prefix", key.as_str())];
            let below = root.send("GET", "/bucket", &query, b"").is(200);
            let matching: Vec<_> = keys
                .iter()
                .filter(|other| other.starts_with(key))
                .map(|key| encode(key, true))
                .collect();
            assert_eq!(below.all("Key"), matching, "below {key:?}");
        }
        served.assert_clean();
        for key in &keys {
            root.delete(&format!("/bucket/{key}")).is(204);
        }
        root.delete("/bucket").is(204);
        served.assert_clean();
    }
}

#[test]
fn escaped_names_are_as_documented() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    for (key, path) in [
        ("dir/", "/bucket/dir/.s3~"),
        ("a//b", "/bucket/a/.s3=/b"),
        ("..", "/bucket/.s3~.."),
        (".snapshots", "/bucket/.s3~.snapshots"),
        ("./x", "/bucket/.s3=./x"),
        (".s3~x", "/bucket/.s3~.s3~x"),
    ] {
        root.put(&format!("/bucket/{key}"), b"1").is(200);
        served.resolve(path);
    }
    // A file that is in the way of a directory gets its escaped name.
    root.put("/bucket/both", b"file").is(200);
    served.resolve("/bucket/both");
    root.put("/bucket/both/below", b"1").is(200);
    served.resolve("/bucket/both/below");
    served.resolve("/bucket/.s3~both");
    assert_eq!(root.get("/bucket/both").is(200).body, b"file");
    root.put("/bucket/both", b"again").is(200);
    assert_eq!(root.get("/bucket/both").is(200).body, b"again");
    let long = format!("/bucket/{}", "k".repeat(1025));
    root.put(&long, b"1").fails(400, "KeyTooLongError");
}

/// A mount can make names that look escaped and are not as S3 escapes: what was below them was listed, and could not be got.
#[test]
fn only_what_s3_would_escape_so_is_listed() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let in_bucket = served.resolve("/bucket").ino;
    let caller = cfs_fs::Caller::default();
    let begun = format!(".s3+{}", "x".repeat(251));
    for directory in [".s3=dir", ".s3+short", &begun] {
        let made = served
            .fs
            .mkdir(in_bucket, directory.as_bytes(), 0o755, &caller);
        let made = made.expect("a name").ino;
        for file in ["k", ".s3~e"] {
            // With an escaped file the longest would be a key.
            if directory != begun || file == "k" {
                served.write(made, file, b"seen by the mount alone");
            }
        }
        let below = served.fs.mkdir(made, b".s3=b", 0o755, &caller);
        served.write(below.expect("a name").ino, "k", b"the same");
    }
    served.write(in_bucket, ".s3=file", b"the same");
    served.write(in_bucket, ".s3+file", b"the same");
    let list = || root.get("/bucket").is(200).all("Key");
    assert_eq!(list(), [""; 0]);
    // The keys that they look like are others.
    let long = "x".repeat(251);
    let mut keys = [
        "dir/k".to_owned(),
        "shortk".to_owned(),
        "short/k".to_owned(),
        ".s3=dir/k".to_owned(),
        ".s3=file".to_owned(),
        ".s3+file".to_owned(),
        ".s3+short/k".to_owned(),
        format!("{long}k"),
        format!("{long}b/k"),
        format!("{long}{long}"),
        format!("{long}{long}/k"),
    ];
    for key in &keys {
        root.get(&format!("/bucket/{key}")).fails(404, "NoSuchKey");
        root.put(&format!("/bucket/{key}"), key.as_bytes()).is(200);
    }
    keys.sort();
    assert_eq!(list(), keys);
    for key in &keys {
        let got = root.get(&format!("/bucket/{key}")).is(200);
        assert_eq!(got.body, key.as_bytes());
        let query = [("marker", &key[..key.len() - 1])];
        let after = root.send("GET", "/bucket", &query, b"").is(200);
        assert!(after.all("Key").contains(key), "{key}");
    }
    served.assert_clean();
}
