//! Clones through the mount, with the tools that people have, and through the admin commands.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use crate::cfs;
use crate::support::{Scratch, Server, can_mount, detach};
use crate::trees::{assert_same, noise, plant};

#[track_caller]
fn tool(program: &str, arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> String {
    let mut command = Command::new(program);
    command.args(arguments.iter().map(AsRef::as_ref));
    let output = command.output().expect("a tool that is everywhere");
    assert!(output.status.success(), "{program}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Inode numbers below a directory, as `find -xdev` sees them.
fn numbers(root: &Path) -> BTreeSet<u64> {
    let listed = tool("find", &[&root, &"-xdev", &"-printf", &"%i\n"]);
    let numbers = listed.lines().map(|line| line.parse().expect("a number"));
    numbers.collect()
}

#[test]
fn a_clone_is_a_directory_like_any_other() {
    if !can_mount("a_clone_is_a_directory_like_any_other") {
        return;
    }
    let scratch = Scratch::new();
    let (data, source, mnt) = (
        scratch.path("pool"),
        scratch.path("source"),
        scratch.dir("mnt"),
    );
    plant(&source, 11);
    fs::create_dir(source.join("depths")).expect("a directory");
    fs::write(source.join("depths/big"), noise(7, 3_000_000)).expect("a file");
    fs::hard_link(source.join("depths/big"), source.join("linked")).expect("a link");
    let server = Server::start(&data, Some(&mnt));
    cfs!("admin", "volume", "create", "/live", "--data", data).ok();
    let (live, try_) = (mnt.join("live"), mnt.join("try"));
    tool("cp", &[&"-aT", &source, &live]);
    cfs!(
        "admin", "snapshot", "create", "/live", "--name", "one", "--data", data
    )
    .ok();
    assert!(!try_.exists(), "the kernel remembers that");
    let taken = cfs!("admin", "clone", "/live@one", "/try", "--data", data).ok();
    assert!(taken.stdout.contains("/try is a clone of"), "{taken:?}");
    cfs!("admin", "clone", "/live@one", "/try", "--data", data).refused(1, "is there already");
    cfs!("admin", "clone", "/live@two", "/new", "--data", data).refused(1, "there is no");
    cfs!("admin", "clone", "/live", "/new", "--data", data).refused(2, "PATH@NAME");
    cfs!("admin", "clone", "/live@one", "/no/new", "--data", data).refused(1, "not made");

    assert_same(&source, &try_);
    let (here, there) = (numbers(&live), numbers(&try_));
    assert_eq!(here.len(), there.len());
    assert!(
        here.is_disjoint(&there),
        "nothing is taken for what it is not"
    );
    let ino = |path: &Path| fs::metadata(path).expect("there").ino();
    assert_eq!(ino(&try_.join("linked")), ino(&try_.join("depths/big")));
    assert_eq!(ino(&try_.join("..")), ino(&mnt));
    assert_eq!(
        tool("du", &[&"-s", &live])
            .split_once('\t')
            .expect("a sum")
            .0,
        tool("du", &[&"-s", &try_])
            .split_once('\t')
            .expect("a sum")
            .0
    );
    let archive = scratch.path("archive");
    tool("tar", &[&"-C", &try_, &"-cf", &archive, &"."]);
    let unpacked = scratch.dir("unpacked");
    tool("tar", &[&"-C", &unpacked, &"-xpf", &archive]);
    assert_eq!(
        fs::read(unpacked.join("linked")).expect("read"),
        noise(7, 3_000_000)
    );

    // Changes on one side are not seen on the other.
    let big = File::options()
        .read(true)
        .write(true)
        .open(try_.join("depths/big"))
        .expect("open");
    let mut content = noise(7, 3_000_000);
    let mut read = vec![0; 100];
    big.read_exact_at(&mut read, 1_000_000).expect("read");
    assert_eq!(read, content[1_000_000..1_000_100]);
    big.write_all_at(b"of the clone", 1_000_000)
        .expect("written");
    content[1_000_000..1_000_012].copy_from_slice(b"of the clone");
    assert_eq!(fs::read(try_.join("linked")).expect("read"), content);
    big.sync_all().expect("synced");
    fs::write(live.join("depths/new"), b"of the origin").expect("written");
    fs::remove_file(live.join("linked")).expect("removed");
    fs::create_dir(try_.join("made")).expect("made");
    fs::rename(try_.join("depths"), try_.join("made/moved")).expect("moved");
    fs::set_permissions(&try_, PermissionsExt::from_mode(0o711)).expect("changed");
    assert_eq!(
        fs::read(try_.join("made/moved/big")).expect("read"),
        content
    );
    assert_eq!(
        fs::read(live.join("depths/big")).expect("read"),
        noise(7, 3_000_000)
    );
    let error = fs::rename(try_.join("linked"), live.join("linked")).expect_err("refused");
    assert_eq!(error.raw_os_error(), Some(18), "EXDEV: {error}");
    cfs!("admin", "fsck", "--data", data).ok();

    // After the worst. What is not synced is in the pool file milliseconds later only.
    fs::File::open(&try_)
        .and_then(|directory| directory.sync_all())
        .expect("synced");
    server.kill();
    detach(&mnt);
    let server = Server::start(&data, Some(&mnt));
    assert_eq!(
        fs::read(try_.join("made/moved/big")).expect("read"),
        content
    );
    assert_eq!(fs::metadata(&try_).expect("there").mode() & 0o777, 0o711);
    cfs!("admin", "fsck", "--data", data).ok();

    // It has snapshots of its own, which can be cloned, and go elsewhere.
    assert_eq!(
        fs::read_dir(try_.join(".snapshots"))
            .expect("listed")
            .count(),
        0
    );
    cfs!(
        "admin", "snapshot", "create", "/try", "--name", "own", "--data", data
    )
    .ok();
    cfs!("admin", "clone", "/try@own", "/again", "--data", data).ok();
    assert_same(&try_, &mnt.join("again"));
    fs::remove_file(try_.join("linked")).expect("removed");
    assert_same(&mnt.join("again"), &try_.join(".snapshots/own"));
    let key = scratch.path("replica.key");
    let second = scratch.path("second");
    cfs!("admin", "key", "replica", key, "--data", data).ok();
    cfs!("init", "--data", second, "--replica-of", key).ok();
    cfs!("replicate", "/try@own", second, "--data", data).ok();
    let exported = scratch.path("exported");
    cfs!(
        "export",
        "/try/.snapshots/own",
        exported,
        "-T",
        "--data",
        second
    )
    .ok();
    assert_same(&mnt.join("again"), &exported);
    cfs!(
        "admin", "snapshot", "restore", "/try", "own", "--data", data
    )
    .ok();
    assert_same(&mnt.join("again"), &try_);

    // What others need stays.
    let listed = cfs!("admin", "volume", "list", "--json", "--data", data)
        .ok()
        .json();
    assert_eq!(listed["volumes"][2]["origin"], "/live@one");
    cfs!(
        "admin", "snapshot", "delete", "/live", "--name", "one", "--data", data
    )
    .refused(1, "is what the clone /try shows");
    cfs!(
        "admin",
        "volume",
        "delete",
        "/try",
        "--recursive",
        "--data",
        data
    )
    .refused(1, "is what the clone /again shows");
    cfs!(
        "admin",
        "volume",
        "delete",
        "/live",
        "--recursive",
        "--data",
        data
    )
    .refused(1, "is what the clone /try shows");
    cfs!("admin", "volume", "delete", "/again", "--data", data).refused(1, "is not empty");
    let open = File::open(mnt.join("again/made/moved/big")).expect("open");
    cfs!(
        "admin",
        "volume",
        "delete",
        "/again",
        "--recursive",
        "--data",
        data
    )
    .refused(1, "are open");
    drop(open);
    drop(big);
    for path in ["/again", "/try", "/live"] {
        let done = cfs!(
            "admin",
            "volume",
            "delete",
            path,
            "--recursive",
            "--data",
            data
        );
        done.ok();
    }
    assert!(!try_.exists() && !live.exists());
    cfs!("admin", "fsck", "--data", data).ok();
    server.stop();
    cfs!("admin", "fsck", "--data", data).ok();
    cfs!("admin", "gc", "--recount", "--data", data).ok();
}

#[test]
fn a_clone_within_its_origin_goes_first() {
    let scratch = Scratch::new();
    let (data, source) = (scratch.path("pool"), scratch.path("source"));
    plant(&source, 13);
    let server = Server::start(&data, None);
    cfs!("admin", "volume", "create", "/live", "--data", data).ok();
    cfs!("import", source, "/live", "-T", "--data", data).ok();
    cfs!(
        "admin", "snapshot", "create", "/live", "--name", "one", "--data", data
    )
    .ok();
    cfs!("admin", "clone", "/live@one", "/live/try", "--data", data).ok();
    let exported = scratch.path("exported");
    cfs!("export", "/live/try", exported, "-T", "--data", data).ok();
    assert_same(&source, &exported);
    cfs!("admin", "fsck", "--data", data).ok();

    let whole = |path| {
        cfs!(
            "admin",
            "volume",
            "delete",
            path,
            "--recursive",
            "--data",
            data
        )
    };
    let words = "/live has the clone /live/try in it; nothing was changed";
    cfs!("admin", "volume", "delete", "/live", "--data", data).refused(1, words);
    whole("/live").refused(1, words);
    cfs!(
        "admin", "snapshot", "delete", "/live", "--name", "one", "--data", data
    )
    .refused(1, "is what the clone /live/try shows");
    whole("/live/try").ok();
    whole("/live").ok();
    cfs!("admin", "fsck", "--data", data).ok();
    server.stop();
    cfs!("admin", "gc", "--recount", "--data", data).ok();
}

#[test]
fn a_pool_with_clones_is_rebuilt() {
    let scratch = Scratch::new();
    let (data, source) = (scratch.path("pool"), scratch.path("source"));
    plant(&source, 12);
    cfs!("import", source, "/live", "-T", "--data", data).ok();
    cfs!(
        "admin", "snapshot", "create", "/live", "--name", "one", "--data", data
    )
    .ok();
    cfs!("admin", "clone", "/live@one", "/try", "--data", data).ok();
    fs::write(source.join("new"), noise(3, 200_000)).expect("a file");
    cfs!("import", source, "/try", "-T", "--data", data).ok();
    cfs!("repair", "--rebuild-index", "--data", data).ok();
    cfs!("admin", "fsck", "--data", data).ok();
    let exported = scratch.path("exported");
    cfs!("export", "/try", exported, "-T", "--data", data).ok();
    assert_same(&source, &exported);
    fs::remove_file(source.join("new")).expect("ours");
    cfs!("admin", "gc", "--recount", "--data", data).ok();
}
