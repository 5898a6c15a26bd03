//! Lifecycle rules: what is due goes, and nothing else.

use cfs_s3::{Expired, Kind, Pass, Tally};

use crate::client::Client;
use crate::pool::{Pool, Served};

fn rules(client: &Client, bucket: &str, rules: &str) {
    let body = format!("<LifecycleConfiguration>{rules}</LifecycleConfiguration>");
    client
        .send("PUT", bucket, &[("lifecycle", "")], body.as_bytes())
        .is(200);
}

fn run(served: &Served, dry_run: bool) -> (Vec<Expired>, Tally) {
    let pass = Pass {
        dry_run,
        ..Pass::default()
    };
    let mut told = Vec::new();
    let tally = served.server.lifecycle().run(&pass, &mut |expired| {
        told.push(expired.clone());
        true
    });
    (told, tally.expect("rules can be run"))
}

fn keys(client: &Client, bucket: &str) -> Vec<String> {
    client.send("GET", bucket, &[], b"").is(200).all("Key")
}

#[test]
fn objects_go_by_prefix_tag_and_size_when_their_day_has_come() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    rules(
        &root,
        "/bucket",
        "<Rule><ID>logs</ID><Status>Enabled</Status><Filter><Prefix>logs/</Prefix></Filter>\
         <Expiration><Days>2</Days></Expiration></Rule>\
         <Rule><ID>tagged</ID><Status>Enabled</Status><Filter><And><Prefix></Prefix>\
         <Tag><Key>keep</Key><Value>no</Value></Tag>\
         <ObjectSizeGreaterThan>3</ObjectSizeGreaterThan></And></Filter>\
         <Expiration><Days>1</Days></Expiration></Rule>\
         <Rule><ID>off</ID><Status>Disabled</Status><Prefix>kept</Prefix>\
         <Expiration><Days>1</Days></Expiration></Rule>",
    );
    let log = root.put("/bucket/logs/1", b"1").is(200);
    assert!(log.header("x-amz-expiration").contains("rule-id=\"logs\""));
    assert_eq!(
        root.put("/bucket/kept", b"1")
            .is(200)
            .header("x-amz-expiration"),
        ""
    );
    let tagged = [("x-amz-tagging", "keep=no")];
    root.send_with("PUT", "/bucket/large", &[], &tagged, b"large")
        .is(200);
    root.send_with("PUT", "/bucket/small", &[], &tagged, b"1")
        .is(200);
    assert_eq!(run(&served, false).0, []);
    served.pass_days(2);
    let (told, tally) = run(&served, true);
    let told: Vec<_> = told
        .iter()
        .map(|it| (it.key.as_str(), it.rule.as_str()))
        .collect();
    assert_eq!(told, [("large", "tagged")]);
    assert_eq!((tally.current, tally.buckets), (1, 1));
    assert_eq!(keys(&root, "/bucket").len(), 4, "a dry run removes nothing");
    run(&served, false);
    assert_eq!(keys(&root, "/bucket"), ["kept", "logs/1", "small"]);
    served.pass_days(1);
    run(&served, false);
    assert_eq!(keys(&root, "/bucket"), ["kept", "small"]);
    // It goes from the mount too, with the directory that was made for it.
    assert!(served.fs.resolve(b"/bucket/logs").is_err());
    root.send("DELETE", "/bucket", &[("lifecycle", "")], b"")
        .is(204);
    root.send("GET", "/bucket", &[("lifecycle", "")], b"")
        .fails(404, "NoSuchLifecycleConfiguration");
    served.assert_clean();
}

#[test]
fn versions_markers_and_uploads_go() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let enabled = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    root.send("PUT", "/bucket", &[("versioning", "")], enabled)
        .is(200);
    rules(
        &root,
        "/bucket",
        "<Rule><ID>all</ID><Status>Enabled</Status><Prefix></Prefix>\
         <Expiration><Days>5</Days></Expiration>\
         <NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays>\
         <NewerNoncurrentVersions>1</NewerNoncurrentVersions></NoncurrentVersionExpiration>\
         <AbortIncompleteMultipartUpload><DaysAfterInitiation>3</DaysAfterInitiation>\
         </AbortIncompleteMultipartUpload></Rule>\
         <Rule><ID>markers</ID><Status>Enabled</Status><Prefix></Prefix>\
         <Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration></Rule>\
         <Rule><ID>old</ID><Status>Enabled</Status><Prefix>deleted</Prefix>\
         <NoncurrentVersionExpiration><NoncurrentDays>2</NoncurrentDays>\
         </NoncurrentVersionExpiration></Rule>",
    );
    for content in ["1", "2", "3", "4"] {
        root.put("/bucket/k", content.as_bytes()).is(200);
    }
    root.put("/bucket/deleted", b"1").is(200);
    root.delete("/bucket/deleted").is(204);
    root.send("POST", "/bucket/upload", &[("uploads", "")], b"")
        .is(200);
    served.pass_days(2);
    let (told, tally) = run(&served, false);
    // Of three that are not current the newest is kept.
    assert_eq!(
        (tally.noncurrent, tally.current, tally.uploads),
        (2, 0, 0),
        "{told:?}"
    );
    served.pass_days(1);
    let (told, tally) = run(&served, false);
    let deleted: Vec<_> = told.iter().map(|it| (it.kind, it.key.as_str())).collect();
    assert_eq!(deleted, [(Kind::Noncurrent, "deleted")]);
    assert_eq!(tally.noncurrent, 1);
    // Its marker is all that is left now.
    let (_, tally) = run(&served, false);
    assert_eq!((tally.markers, tally.uploads), (1, 0));
    served.pass_days(1);
    assert_eq!(run(&served, false).1.uploads, 1);
    served.pass_days(2);
    assert_eq!(run(&served, false).1.current, 1);
    root.get("/bucket/k").fails(404, "NoSuchKey");
    served.assert_clean();
}

/// A lock is stronger than any rule.
#[test]
fn what_is_locked_stays() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    let lock = [("x-amz-bucket-object-lock-enabled", "true")];
    root.send_with("PUT", "/bucket", &[], &lock, b"").is(200);
    let held = [("x-amz-object-lock-legal-hold", "ON")];
    let held = root
        .send_with("PUT", "/bucket/k", &[], &held, b"held")
        .is(200);
    let held = held.header("x-amz-version-id").to_owned();
    root.put("/bucket/k", b"newer").is(200);
    rules(
        &root,
        "/bucket",
        "<Rule><Status>Enabled</Status><Prefix></Prefix><NoncurrentVersionExpiration>\
         <NoncurrentDays>1</NoncurrentDays></NoncurrentVersionExpiration></Rule>",
    );
    served.pass_days(30);
    let (_, tally) = run(&served, false);
    assert_eq!((tally.locked, tally.noncurrent, tally.failed), (1, 0, 0));
    let found = root.send("GET", "/bucket/k", &[("versionId", &held)], b"");
    assert_eq!(found.is(200).body, b"held");
    served.assert_clean();
}

#[test]
fn rules_that_make_no_sense_are_refused() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    let expires = "<Expiration><Days>1</Days></Expiration>";
    let cases = [
        ("<Expiration><Days>0</Days></Expiration>", "InvalidArgument"),
        ("", "MalformedXML"),
        (
            "<Expiration><Date>2030-01-01T12:00:00Z</Date></Expiration>",
            "InvalidArgument",
        ),
        ("<Expiration></Expiration>", "MalformedXML"),
    ];
    let put = |rule: &str| {
        let body = format!("<LifecycleConfiguration>{rule}</LifecycleConfiguration>");
        root.send("PUT", "/bucket", &[("lifecycle", "")], body.as_bytes())
    };
    for (action, code) in cases {
        let rule = format!("<Rule><Status>Enabled</Status><Prefix></Prefix>{action}</Rule>");
        put(&rule).fails(400, code);
    }
    let rule = |id: &str, status: &str| {
        format!("<Rule><ID>{id}</ID><Status>{status}</Status><Prefix></Prefix>{expires}</Rule>")
    };
    put(&rule("a", "enabled")).fails(400, "MalformedXML");
    put(&rule(&"a".repeat(256), "Enabled")).fails(400, "InvalidArgument");
    put(&[rule("a", "Enabled"), rule("a", "Enabled")].concat()).fails(400, "InvalidArgument");
    put(&rule("a", "Enabled")).is(200);
}

/// A file copied with `cp -p` from 2010 was due at once.
#[test]
fn days_count_from_when_something_came() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let root = served.root();
    root.put("/bucket", b"").is(200);
    rules(
        &root,
        "/bucket",
        "<Rule><Status>Enabled</Status><Prefix></Prefix><Expiration><Days>10</Days></Expiration></Rule>",
    );
    let bucket = served.resolve("/bucket").ino;
    let file = served.write(bucket, "old", b"copied");
    let time = cfs_fs::Time {
        seconds: 1_262_304_000,
        nanos: 0,
    };
    let touch = cfs_fs::SetAttr {
        mtime: Some(cfs_fs::SetTime::At(time)),
        ..cfs_fs::SetAttr::default()
    };
    served.fs.setattr(file, &touch).expect("any time");
    assert_eq!(run(&served, false).1.current, 0);
    served.pass_days(6);
    // What is moved into it comes then.
    let elsewhere = served.fs.mkdir(
        cfs_format::Ino::ROOT,
        b".elsewhere",
        0o755,
        &cfs_fs::Caller::default(),
    );
    let elsewhere = elsewhere.expect("mkdir").ino;
    served.write(elsewhere, "moved", b"moved");
    served.pass_days(6);
    let flags = cfs_fs::RenameFlags::default();
    served
        .fs
        .rename(elsewhere, b"moved", bucket, b"moved", flags)
        .expect("rename");
    assert_eq!(run(&served, false).1.current, 1);
    assert_eq!(keys(&root, "/bucket"), ["moved"]);
    served.pass_days(11);
    assert_eq!(run(&served, false).1.current, 1);
    served.assert_clean();
}
