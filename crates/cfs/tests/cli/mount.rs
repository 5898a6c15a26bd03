//! The mount: files in, kill, files out; changes beside the mount are seen; every way to end.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use crate::cfs;
use crate::support::{Scratch, Server, can_mount, command, detach, eventually, run};
use crate::trees::{assert_same, noise, plant};

fn copy(from: &Path, to: &Path) {
    let mut cp = std::process::Command::new("cp");
    cp.arg("-a").arg(from).arg(to);
    let output = cp.output().expect("cp is there");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn what_was_synced_is_there_after_a_kill() {
    if !can_mount("what_was_synced_is_there_after_a_kill") {
        return;
    }
    let scratch = Scratch::new();
    let (data, source, mnt) = (
        scratch.path("pool"),
        scratch.path("source"),
        scratch.dir("mnt"),
    );
    plant(&source, 5);
    let server = Server::start(&data, Some(&mnt));
    assert!(
        server.ready.contains(mnt.to_str().expect("text")),
        "{}",
        server.ready
    );
    let status = || {
        let root = File::open(&mnt).expect("the root");
        rustix::fs::syncfs(&root).expect("synced");
        cfs!("admin", "status", "--json", "--data", data)
            .ok()
            .json()
    };
    let stored = |status: &serde_json::Value| status["stored_bytes"].as_u64().expect("a number");
    copy(&source, &mnt.join("first"));
    let first = stored(&status());
    assert!(first > 1_000_000, "{first} bytes");
    copy(&source, &mnt.join("second"));
    for name in ["/third", "/fourth"] {
        cfs!("import", "-T", source, name, "--data", data).ok();
    }
    let status = status();
    let more = stored(&status) - first;
    assert!(more < first / 100, "{more} bytes for copies of {first}");
    assert_eq!(status["mount"], mnt.to_str().expect("text"));
    server.kill();
    assert!(fs::read_dir(&mnt).is_err(), "the mount is dead");

    // A dead mount of ours is no hindrance.
    let server = Server::start(&data, Some(&mnt));
    for name in ["first", "second", "third", "fourth"] {
        assert_same(&source, &mnt.join(name));
    }
    cfs!("admin", "fsck", "--data", data).ok();
    server.stop();
    assert_eq!(
        fs::read_dir(&mnt).expect("a directory").count(),
        0,
        "unmounted"
    );
    cfs!("admin", "fsck", "--data", data).ok();
}

/// What is on its way when the process is killed is told apart from what was promised: everything that a `sync` covered
/// where the kernel passes it on, everything that was closed where it does not.
#[test]
fn a_kill_loses_nothing_that_was_promised() {
    if !can_mount("a_kill_loses_nothing_that_was_promised") {
        return;
    }
    let check = |sync_calls: &str| {
        let scratch = Scratch::new();
        let (data, mnt) = (scratch.path("pool"), scratch.dir("mnt"));
        let start = || {
            let arguments: [&dyn AsRef<std::ffi::OsStr>; 7] = [
                &"server",
                &"--data",
                &data,
                &"--mount",
                &mnt,
                &"--sync-calls",
                &sync_calls,
            ];
            Server::spawn(command(&arguments), &data, Some(&mnt))
        };
        let server = start();
        let table = fs::read_to_string("/proc/self/mounts").expect("mount table");
        let place = format!(" {} fuseblk.cfs ", mnt.display());
        let passes_sync = table.contains(&place);
        assert!(sync_calls == "auto" || !passes_sync, "{table}");
        let content: Vec<Vec<u8>> = (0..20)
            .map(|i| noise(i, 1 + (i as usize) * 40_000))
            .collect();
        let mut open = Vec::new();
        for (i, bytes) in content.iter().enumerate() {
            let mut file = File::create(mnt.join(format!("{i}"))).expect("create");
            file.write_all(bytes).expect("write");
            open.extend(passes_sync.then_some(file));
        }
        if passes_sync {
            let root = File::open(&mnt).expect("the root");
            rustix::fs::syncfs(&root).expect("synced");
        } else {
            // The log goes to the pool file within milliseconds.
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
        server.kill();
        drop(open);
        let server = start();
        for (i, bytes) in content.iter().enumerate() {
            let found = fs::read(mnt.join(format!("{i}"))).expect("it is there");
            assert!(
                found == *bytes,
                "{i} differs: {} of {} bytes",
                found.len(),
                bytes.len()
            );
        }
        server.stop();
    };
    check("auto");
    check("off");
}

/// A copy of a large tree looked at the root of the mount last of all. After the kill the kernel went on answering
/// `stat` for the root from its cache, and the next start took the dead mount for one that is in use.
#[test]
fn a_dead_mount_that_the_kernel_remembers_is_no_hindrance() {
    if !can_mount("a_dead_mount_that_the_kernel_remembers_is_no_hindrance") {
        return;
    }
    let scratch = Scratch::new();
    let (data, mnt) = (scratch.path("pool"), scratch.dir("mnt"));
    let server = Server::start(&data, Some(&mnt));
    fs::metadata(&mnt).expect("it is mounted");
    server.kill();
    fs::metadata(&mnt).expect("the kernel remembers it");
    Server::start(&data, Some(&mnt)).stop();
}

#[test]
fn an_import_beside_the_mount_is_seen_in_it() {
    if !can_mount("an_import_beside_the_mount_is_seen_in_it") {
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
    let tree = mnt.join("tree");
    // The kernel now remembers that there is no such name.
    assert!(!tree.exists());
    assert_eq!(fs::read_dir(&mnt).expect("the root").count(), 0);
    let import = || cfs!("import", "-T", source, "/tree", "--data", data).ok();
    import();
    assert_same(&source, &tree);
    // And what is in the files and directories.
    fs::write(source.join("small"), "changed").expect("written");
    fs::write(source.join("deep/new"), "new").expect("written");
    fs::remove_file(source.join("link")).expect("removed");
    fs::write(source.join("link"), "a file now").expect("written");
    import();
    assert_same(&source, &tree);
    let out = scratch.path("out");
    cfs!("export", "-T", "/tree", out, "--data", data).ok();
    assert_same(&source, &out);

    cfs!("export", "-T", "/tree", mnt.join("out"), "--data", data)
        .refused(2, "in the mount of the same pool");
    let whole = cfs!("import", "-T", mnt, "/loop", "--data", data).ok();
    assert!(
        whole.stderr.contains("it belongs to this pool"),
        "{whole:?}"
    );
    server.stop();
}

#[test]
fn unmounting_from_outside_ends_the_process_in_order() {
    if !can_mount("unmounting_from_outside_ends_the_process_in_order") {
        return;
    }
    let scratch = Scratch::new();
    let (data, mnt) = (scratch.path("pool"), scratch.dir("mnt"));
    let server = Server::start(&data, Some(&mnt));
    fs::write(mnt.join("file"), noise(7, 500_000)).expect("written");
    detach(&mnt);
    assert_eq!(server.end(), 0);
    let server = Server::start(&data, Some(&mnt));
    assert_eq!(
        fs::read(mnt.join("file")).expect("a file"),
        noise(7, 500_000)
    );
    server.stop();
}

#[test]
fn a_busy_mount_does_not_hold_up_the_end() {
    if !can_mount("a_busy_mount_does_not_hold_up_the_end") {
        return;
    }
    let scratch = Scratch::new();
    let (data, mnt) = (scratch.path("pool"), scratch.dir("mnt"));
    let server = Server::start(&data, Some(&mnt));
    let mut open = File::create(mnt.join("open")).expect("a file");
    open.write_all(b"accepted").expect("written");
    server.signal(Signal::INT);
    assert_eq!(server.end(), 0);
    drop(open);
    let server = Server::start(&data, Some(&mnt));
    assert_eq!(fs::read(mnt.join("open")).expect("a file"), b"accepted");
    server.stop();
}

#[test]
fn a_daemon_is_ready_when_the_command_returns() {
    if !can_mount("a_daemon_is_ready_when_the_command_returns") {
        return;
    }
    let scratch = Scratch::new();
    let (data, mnt) = (scratch.path("pool"), scratch.dir("mnt"));
    let daemon = command(&[&"mount", &"--data", &data, &mnt, &"--daemon"]);
    let done = run(daemon).ok();
    assert!(done.stdout.starts_with("ready: "), "{done:?}");
    fs::write(mnt.join("file"), "content").expect("written");
    cfs!("mount", "--data", data, mnt, "--daemon").refused(6, "is mounted at");
    let other = scratch.dir("other");
    cfs!("mount", "--data", data, other, "--daemon").refused(4, "already open by process");

    let pid: i32 = fs::read_to_string(data.join("lock"))
        .expect("a lock")
        .trim()
        .parse()
        .expect("a process id");
    let pid = rustix::process::Pid::from_raw(pid).expect("a process id");
    rustix::process::kill_process(pid, Signal::TERM).expect("it runs");
    eventually("the end of the daemon", || !data.join("socket").exists());
    eventually("the end of the process", || {
        rustix::process::test_kill_process(pid).is_err()
            || fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))
                .is_ok_and(|stat| stat.contains(") Z "))
    });
    let log = fs::read_to_string(data.join("log")).expect("a log");
    assert!(log.contains("everything is written"), "{log}");
    let server = Server::start(&data, Some(&mnt));
    assert_eq!(fs::read(mnt.join("file")).expect("a file"), b"content");
    server.stop();
}

#[test]
fn a_read_only_mount_refuses_changes() {
    if !can_mount("a_read_only_mount_refuses_changes") {
        return;
    }
    let scratch = Scratch::new();
    let (data, mnt) = (scratch.path("pool"), scratch.dir("mnt"));
    let note = scratch.file("note", "content");
    cfs!("import", note, "/note", "--data", data).ok();
    let mut read_only = command(&[&"mount", &"--data", &data, &mnt]);
    read_only.arg("--read-only");
    let server = Server::spawn(read_only, &data, Some(&mnt));
    assert_eq!(fs::read(mnt.join("note")).expect("a file"), b"content");
    let refused = fs::write(mnt.join("new"), "x").expect_err("refused");
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    server.stop();
}

/// How often the threads of a process have gone to sleep (proc(5), `status`).
fn sleeps(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("our own child");
    let status = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
    let counts = status.filter_map(|status| {
        let mut lines = status.lines();
        let count = lines.find_map(|it| it.strip_prefix("voluntary_ctxt_switches:"))?;
        count.trim().parse::<u64>().ok()
    });
    counts.sum()
}

/// The threads of the log and of background work woke thirty times a second.
#[test]
fn an_idle_mount_sleeps() {
    if !can_mount("an_idle_mount_sleeps") {
        return;
    }
    let scratch = Scratch::new();
    let (data, mnt) = (scratch.path("pool"), scratch.dir("mnt"));
    let server = Server::start(&data, Some(&mnt));
    fs::write(mnt.join("file"), noise(5, 300_000)).expect("written");
    let period = Duration::from_secs(4);
    eventually("a rest", || {
        let before = sleeps(server.pid());
        std::thread::sleep(period);
        sleeps(server.pid()) - before <= 4 * period.as_secs()
    });
    // Who comes is served at once all the same, and the log is written.
    let before = sleeps(server.pid());
    fs::write(mnt.join("other"), "content").expect("written");
    std::thread::sleep(Duration::from_secs(1));
    assert!(sleeps(server.pid()) - before > 5, "it works again");
    server.kill();
    detach(&mnt);
    let server = Server::start(&data, Some(&mnt));
    assert_eq!(fs::read(mnt.join("other")).expect("a file"), b"content");
    server.stop();
}

/// The process that watches whether this one is killed.
fn watch_of(server: u32) -> Option<u32> {
    let processes = fs::read_dir("/proc").expect("there are processes");
    processes.flatten().find_map(|process| {
        let stat = fs::read_to_string(process.path().join("stat")).ok()?;
        let (before, after) = stat.rsplit_once(')')?;
        let parent: u32 = after.split_whitespace().nth(1)?.parse().ok()?;
        let (pid, name) = before.split_once(" (")?;
        (parent == server && name == "mount watch").then(|| pid.parse().ok())?
    })
}

/// It ends with the server, and takes nothing for its death but that.
#[test]
fn who_watches_a_server_leaves_it_alone() {
    use rustix::process::{Pid, Signal, kill_process};

    if !can_mount("who_watches_a_server_leaves_it_alone") {
        return;
    }
    let scratch = Scratch::new();
    let (data, mnt) = (scratch.path("pool"), scratch.dir("mnt"));
    let signal = |to: u32, signal| {
        let to = Pid::from_raw(to as i32).expect("a process");
        kill_process(to, signal).expect("it is there");
    };
    let is_there = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.contains("(mount watch)") && !stat.contains(") Z ")
    };
    let server = Server::start(&data, Some(&mnt));
    let watch = watch_of(server.pid()).expect("it is watched");
    for harmless in [Signal::USR1, Signal::TERM, Signal::HUP, Signal::INT] {
        signal(watch, harmless);
    }
    std::thread::sleep(Duration::from_secs(1));
    assert!(is_there(watch));
    fs::write(mnt.join("file"), "content").expect("it is mounted");
    server.stop();
    assert!(!is_there(watch));

    // Without it, too, a server serves and ends.
    let server = Server::start(&data, Some(&mnt));
    signal(watch_of(server.pid()).expect("it is watched"), Signal::KILL);
    assert_eq!(fs::read(mnt.join("file")).expect("mounted"), b"content");
    server.stop();

    let server = Server::start(&data, Some(&mnt));
    let watch = watch_of(server.pid()).expect("it is watched");
    server.kill();
    eventually("the end of the watch", || !is_there(watch));
    // Nobody may write to the directory below.
    let dead = fs::write(mnt.join("file"), "").expect_err("it is dead");
    assert_eq!(dead.kind(), std::io::ErrorKind::NotConnected);
    detach(&mnt);
}
