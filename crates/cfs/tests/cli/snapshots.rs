//! Snapshots: taken, read through the mount by the tools that people have, restored with `cp`, held, deleted.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use crate::cfs;
use crate::support::{Scratch, Server, can_mount, command, eventually};
use crate::trees::{assert_same, noise, plant};

#[track_caller]
fn tool(program: &str, arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> String {
    let mut command = Command::new(program);
    command.args(arguments.iter().map(AsRef::as_ref));
    let output = command.output().expect("a tool that is everywhere");
    assert!(output.status.success(), "{program}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn what_is_broken_comes_back_from_a_snapshot() {
    if !can_mount("what_is_broken_comes_back_from_a_snapshot") {
        return;
    }
    let scratch = Scratch::new();
    let (data, source, mnt) = (
        scratch.path("pool"),
        scratch.path("source"),
        scratch.dir("mnt"),
    );
    plant(&source, 6);
    let server = Server::start(&data, Some(&mnt));
    let live = mnt.join("live");
    tool("cp", &[&"-a", &source, &live]);
    fs::create_dir(live.join("depths")).expect("a directory");
    // Acknowledged, and still in memory.
    let big = noise(77, 3_000_000);
    let mut file = File::create(live.join("depths/big")).expect("create");
    file.write_all(&big).expect("write");
    fs::copy(live.join("depths/big"), source.join("big")).expect("copy");
    let one = ["admin", "snapshot", "create", "/live", "--name", "one"];
    let [a, b, c, d, e, f] = one;
    cfs!(a, b, c, d, e, f, "--data", data).ok();
    file.write_all(b"and more").expect("write");
    drop(file);

    let seen = live.join(".snapshots/one");
    assert_eq!(fs::read(seen.join("depths/big")).expect("read"), big);
    // Below, the same snapshot shows the directory below.
    let below = live.join("depths/.snapshots/one");
    assert_eq!(fs::read(below.join("big")).expect("read"), big);
    assert_ne!(
        fs::metadata(seen.join("depths/big")).expect("there").ino(),
        fs::metadata(live.join("depths/big")).expect("there").ino(),
        "cp would take them for the same file"
    );
    let listed = |path: &Path| -> Vec<_> {
        let names = fs::read_dir(path).expect("a directory");
        names
            .map(|name| name.expect("a name").file_name())
            .collect()
    };
    assert!(!listed(&live).contains(&".snapshots".into()), "hidden");
    assert_eq!(listed(&live.join(".snapshots")), ["one"]);

    // Nothing changes it.
    for refused in [
        File::options()
            .write(true)
            .open(seen.join("depths/big"))
            .err(),
        fs::write(seen.join("new"), b"x").err(),
        fs::remove_file(seen.join("depths/big")).err(),
        fs::remove_dir_all(seen.join("depths")).err(),
        fs::rename(seen.join("depths"), live.join("moved")).err(),
        fs::set_permissions(seen.join("depths"), PermissionsExt::from_mode(0o700)).err(),
        fs::create_dir(live.join(".snapshots/two")).err(),
        fs::remove_dir(live.join(".snapshots")).err(),
    ] {
        let error = refused.expect("refused");
        assert_eq!(error.raw_os_error(), Some(30), "EROFS: {error}");
    }

    fs::remove_dir_all(&live).expect("all is lost");
    // The directory is gone; what it was is in the root.
    let seen = mnt.join(".snapshots/one");
    tool("cp", &[&"-a", &seen, &live]);
    assert_eq!(fs::read(live.join("depths/big")).expect("read"), big);
    fs::remove_file(source.join("big")).expect("ours");
    fs::remove_dir_all(live.join("depths")).expect("ours");
    let mtime = fs::metadata(seen)
        .expect("there")
        .modified()
        .expect("mtime");
    let as_before = File::open(&source).expect("there");
    as_before.set_modified(mtime).expect("our own");
    File::open(&live)
        .expect("there")
        .set_modified(mtime)
        .expect("our own");
    assert_same(&source, &live);
    cfs!("admin", "fsck", "--data", data).ok();
    server.stop();
    cfs!("admin", "fsck", "--data", data).ok();
}

#[test]
fn tools_that_walk_stay_out_of_snapshots_and_walk_in_them() {
    if !can_mount("tools_that_walk_stay_out_of_snapshots_and_walk_in_them") {
        return;
    }
    let scratch = Scratch::new();
    let (data, mnt) = (scratch.path("pool"), scratch.dir("mnt"));
    let server = Server::start(&data, Some(&mnt));
    fs::create_dir(mnt.join("a")).expect("a directory");
    fs::write(mnt.join("a/file"), noise(1, 200_000)).expect("a file");
    fs::hard_link(mnt.join("a/file"), mnt.join("a/link")).expect("a link");
    for name in ["one", "two"] {
        cfs!(
            "admin", "snapshot", "create", "/", "--name", name, "--data", data
        )
        .ok();
        fs::write(mnt.join(format!("a/{name}")), noise(2, 100_000)).expect("a file");
    }
    let lines = |text: &str| text.lines().count();
    assert_eq!(lines(&tool("find", &[&mnt, &"-xdev"])), 6);
    let two = mnt.join(".snapshots/two");
    assert_eq!(lines(&tool("find", &[&two, &"-xdev"])), 5);
    assert_eq!(
        lines(&tool("find", &[&mnt.join(".snapshots"), &"-xdev"])),
        10
    );
    // A file with two names counts once, in each snapshot.
    let du = |path: &Path| -> u64 {
        let text = tool("du", &[&"-s", &"--block-size=1", &path]);
        let number = text.split_whitespace().next().expect("a number");
        number.parse().expect("a number")
    };
    assert!((200_000..290_000).contains(&du(&mnt.join(".snapshots/one"))));
    assert!((300_000..390_000).contains(&du(&two)));
    assert!((500_000..680_000).contains(&du(&mnt.join(".snapshots"))));
    let archive = scratch.path("archive.tar");
    tool(
        "tar",
        &[&"--format=posix", &"-cf", &archive, &"-C", &two, &"."],
    );
    let unpacked = scratch.dir("unpacked");
    tool("tar", &[&"-xf", &archive, &"-C", &unpacked]);
    assert_same(&two, &unpacked);
    let link = fs::metadata(unpacked.join("a/link")).expect("there");
    assert_eq!(link.nlink(), 2, "tar has seen that it is one file");
    server.stop();
}

#[test]
fn snapshots_are_listed_held_and_deleted() {
    let scratch = Scratch::new();
    let (data, source) = (scratch.path("pool"), scratch.path("source"));
    plant(&source, 7);
    cfs!("import", source, "/", "--data", data).ok();
    let snapshot = |action: &str, path: &str, name: &str| {
        cfs!(
            "admin", "snapshot", action, path, "--name", name, "--data", data
        )
    };
    snapshot("create", "/source", "monday").ok();
    snapshot("create", "/", "all").ok();
    snapshot("create", "/source", "monday").refused(1, "has a snapshot monday already");
    snapshot("create", "/none", "monday").refused(1, "no such file or directory");
    snapshot("create", "/source", "a/b").refused(2, "can be no name");
    snapshot("create", "/source", "").refused(2, "can be no name");
    snapshot("delete", "/source", "tuesday").refused(1, "there is no snapshot tuesday of /source");
    let list = |of: &[&str]| {
        let mut list = command(&[&"admin", &"snapshot", &"list", &"--json", &"--data", &data]);
        list.args(of);
        crate::support::run(list).ok().json()["snapshots"].clone()
    };
    let all = list(&[]);
    assert_eq!(all.as_array().expect("a list").len(), 2);
    assert_eq!(all[0]["name"], "monday");
    assert_eq!(all[0]["path"], "/source");
    assert_eq!(all[1]["path"], "/");
    assert_eq!(list(&["/"]).as_array().expect("a list").len(), 1);
    // The name also stands alone, as where a snapshot is compared or brought back.
    let bare = |action: &str, names: &[&str]| {
        let mut bare = command(&[&"admin", &"snapshot", &action, &"/source", &"--data", &data]);
        bare.args(names);
        crate::support::run(bare)
    };
    bare("create", &["tuesday"]).ok();
    bare("delete", &["tuesday"]).ok();
    bare("create", &[]).refused(2, "NAME");
    bare("hold", &[]).refused(2, "NAME");
    bare("hold", &["monday", "--name", "tuesday"]).refused(2, "cannot be used with");
    bare("hold", &["monday"]).ok();
    assert_eq!(list(&["/source"])[0]["held"], true);
    snapshot("delete", "/source", "monday").refused(1, "is held");
    snapshot("release", "/source", "monday").ok();

    // What only snapshots show is there until they are gone, and then is no more.
    let server = Server::start(&data, None);
    let empty = scratch.dir("empty");
    fs::write(empty.join("file"), b"").expect("a file");
    for name in ["/source/new", "/new"] {
        cfs!("import", "-T", empty.join("file"), name, "--data", data).ok();
    }
    let report = cfs!("admin", "fsck", "--json", "--data", data).ok().json();
    assert!(report["states"].as_u64() > Some(0), "{report}");
    snapshot("delete", "/source", "monday").ok();
    snapshot("delete", "/", "all").ok();
    eventually("history is removed", || {
        let report = cfs!("admin", "fsck", "--json", "--data", data).ok().json();
        report["states"] == 0 && report["snapshots"] == 0
    });
    server.stop();
}

#[test]
fn what_has_changed_is_told_and_brought_back() {
    let scratch = Scratch::new();
    let (data, source) = (scratch.path("pool"), scratch.path("source"));
    plant(&source, 8);
    fs::create_dir(source.join("docs")).expect("a directory");
    for name in ["edited", "lost", "moved"] {
        fs::write(source.join("docs").join(name), noise(3, 300_000)).expect("a file");
    }
    cfs!("import", "-T", source, "/live", "--data", data).ok();
    cfs!(
        "admin", "snapshot", "create", "/live", "--name", "one", "--data", data
    )
    .ok();
    let stored = || -> u64 {
        let status = cfs!("admin", "status", "--json", "--data", data)
            .ok()
            .json();
        status["stored_bytes"].as_u64().expect("a number")
    };
    let before = stored();

    let break_it = |mnt: &Path| {
        let docs = mnt.join("live/docs");
        fs::write(docs.join("edited"), noise(4, 1000)).expect("write");
        fs::remove_file(docs.join("lost")).expect("remove");
        fs::rename(docs.join("moved"), docs.join("elsewhere")).expect("rename");
        fs::create_dir(docs.join("new")).expect("mkdir");
        fs::write(docs.join("new/file"), b"new").expect("write");
    };
    if !can_mount("what_has_changed_is_told_and_brought_back") {
        return;
    }
    let mnt = scratch.dir("mnt");
    let server = Server::start(&data, Some(&mnt));
    break_it(&mnt);
    let told = cfs!("admin", "snapshot", "diff", "/live", "one", "--data", data).ok();
    assert_eq!(
        told.stdout,
        "changed  docs/edited\n\
         renamed  docs/elsewhere  from docs/moved\n\
         deleted  docs/lost\n\
         created  docs/new/\n\
         created  docs/new/file\n"
    );
    let told = cfs!(
        "admin", "snapshot", "diff", "/live", "one", "--json", "--data", data
    )
    .ok();
    let first: serde_json::Value =
        serde_json::from_str(told.stdout.lines().next().expect("a line")).expect("JSON");
    assert_eq!(first["change"], "changed");
    assert_eq!(first["path"], "docs/edited");
    assert_eq!(first["kind"], "file");

    let restore = |more: &[&str]| {
        let mut restore = command(&[
            &"admin",
            &"snapshot",
            &"restore",
            &"--data",
            &data,
            &"/live",
            &"one",
        ]);
        restore.args(more);
        crate::support::run(restore)
    };
    restore(&["docs/none"]).refused(1, "docs/none in snapshot one of /live: no such file");
    restore(&["../x"]).refused(2, "'..' in a path");
    // The kernel behind the mount has seen the broken files; it sees the restored ones at once.
    let live = mnt.join("live");
    assert!(fs::metadata(live.join("docs/lost")).is_err());
    let edited = File::open(live.join("docs/edited")).expect("open");
    restore(&["docs/lost", "docs/edited"]).ok();
    assert_eq!(
        fs::read(live.join("docs/lost")).expect("read"),
        noise(3, 300_000)
    );
    assert_eq!(edited.metadata().expect("there").len(), 300_000);
    assert!(live.join("docs/new/file").exists(), "what is new stays");
    let report = restore(&["--delete", "--json"]).ok().json();
    assert_eq!(report["problems"], 0, "{report}");
    assert_eq!(report["removed"], 3, "{report}");
    assert_same(&source, &live);
    let told = cfs!("admin", "snapshot", "diff", "/live", "one", "--data", data).ok();
    assert_eq!(told.stdout, "");
    assert!(
        stored() < before + 10_000,
        "{} bytes for what was there: {before}",
        stored()
    );

    fs::remove_dir_all(&live).expect("all is lost");
    let list = cfs!(
        "admin", "snapshot", "list", "/live", "--json", "--data", data
    )
    .ok()
    .json();
    let list = &list["snapshots"][0];
    let exclusive = list["exclusive_bytes"].as_u64().expect("a number");
    assert!(exclusive > before / 2, "{list}");
    assert_eq!(list["freed_bytes"], list["exclusive_bytes"]);
    assert!(list["logical_bytes"].as_u64() > Some(900_000), "{list}");
    restore(&[]).ok();
    assert_same(&source, &live);
    cfs!("admin", "fsck", "--data", data).ok();
    server.stop();
}

/// Two names that are no UTF-8 were told as the same text.
#[test]
fn paths_that_are_no_text_are_told_apart() {
    if !can_mount("paths_that_are_no_text_are_told_apart") {
        return;
    }
    let scratch = Scratch::new();
    let (data, mnt) = (scratch.path("pool"), scratch.dir("mnt"));
    let server = Server::start(&data, Some(&mnt));
    let name = |bytes: &[u8]| mnt.join("d").join(std::ffi::OsStr::from_bytes(bytes));
    fs::create_dir(mnt.join("d")).expect("a directory");
    fs::write(name(b"old\xff"), b"moved").expect("a file");
    cfs!("admin", "snapshot", "create", "/d", "one", "--data", data).ok();
    for bytes in [b"\xff", b"\xfe"] {
        fs::write(name(bytes), b"new").expect("a file");
    }
    fs::rename(name(b"old\xff"), name(b"text")).expect("rename");
    let told = cfs!(
        "admin", "snapshot", "diff", "/d", "one", "--json", "--data", data
    )
    .ok();
    let lines: Vec<serde_json::Value> = told
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), 3, "{told:?}");
    assert_eq!(lines[0]["path"], "text");
    assert_eq!(lines[0].get("path_hex"), None);
    assert_eq!(lines[0]["from_hex"], "6f6c64ff");
    assert_eq!(lines[1]["path_hex"], "fe");
    assert_eq!(lines[2]["path_hex"], "ff");
    server.stop();
}

/// A directory that was removed and restored was told as if it were gone still.
#[test]
fn a_directory_that_was_made_again_is_compared() {
    if !can_mount("a_directory_that_was_made_again_is_compared") {
        return;
    }
    let scratch = Scratch::new();
    let (data, mnt) = (scratch.path("pool"), scratch.dir("mnt"));
    let server = Server::start(&data, Some(&mnt));
    let gone = mnt.join("gone");
    fs::create_dir(&gone).expect("a directory");
    fs::write(gone.join("f"), noise(5, 100_000)).expect("a file");
    cfs!(
        "admin", "snapshot", "create", "/gone", "keep", "--data", data
    )
    .ok();
    fs::remove_dir_all(&gone).expect("remove");
    let diff = || {
        cfs!("admin", "snapshot", "diff", "/gone", "keep", "--data", data)
            .ok()
            .stdout
    };
    assert_eq!(diff(), "deleted  f\n");
    let restore = || {
        let done = cfs!(
            "admin", "snapshot", "restore", "/gone", "keep", "--json", "--data", data
        );
        let report = done.ok().json();
        (report["restored"].clone(), report["unchanged"].clone())
    };
    assert_eq!(restore(), (2.into(), 0.into()));
    assert_eq!(diff(), "");
    assert_eq!(restore(), (0.into(), 2.into()));
    fs::write(gone.join("f"), b"another").expect("write");
    fs::write(gone.join("new"), b"new").expect("write");
    assert_eq!(diff(), "changed  f\ncreated  new\n");
    server.stop();
}

#[test]
fn what_is_refused_says_why() {
    let scratch = Scratch::new();
    let (data, source) = (scratch.path("pool"), scratch.path("source"));
    plant(&source, 9);
    fs::write(source.join("f"), b"a file").expect("a file");
    cfs!("import", "-T", source, "/d", "--data", data).ok();
    cfs!("admin", "snapshot", "list", "/d/f", "--data", data)
        .refused(1, "/d/f in the pool: not a directory");
    let none = cfs!("admin", "snapshot", "list", "/d", "--json", "--data", data);
    assert_eq!(none.ok().json()["snapshots"], serde_json::json!([]));
    let reserved = [
        "admin",
        "snapshot",
        "create",
        "/d",
        ".cfs-received-1",
        "--data",
    ];
    let [a, b, c, d, e, f] = reserved;
    cfs!(a, b, c, d, e, f, data).refused(2, "reserved for what is being received");
    cfs!("admin", "snapshot", "create", "/d", "one", "--data", data).ok();
    cfs!(
        "admin",
        "volume",
        "create",
        "/v",
        "--quota-inodes",
        "1",
        "--data",
        data
    )
    .ok();
    cfs!("admin", "clone", "/d@one", "/v/clone", "--data", data)
        .refused(1, "a volume is an inode of the one that it lies in");
}
