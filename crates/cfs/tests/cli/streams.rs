//! Snapshots on their way from one pool to another: through files, pipes, and between processes that serve.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::cfs;
use crate::support::{Scratch, Server, command, eventually, run as run_command};
use crate::trees::{assert_same, noise, plant};

/// Runs `cfs` with these files as standard input and output.
fn piped(
    arguments: &[&dyn AsRef<std::ffi::OsStr>],
    input: Option<&Path>,
    output: Option<&Path>,
) -> crate::support::Done {
    let mut command = command(arguments);
    if let Some(input) = input {
        command.stdin(File::open(input).expect("a file"));
    }
    if let Some(output) = output {
        command.stdout(Stdio::from(File::create(output).expect("a file")));
    }
    run_command(command)
}

#[test]
fn a_snapshot_is_sent_through_files() {
    let scratch = Scratch::new();
    let (data, copy) = (scratch.path("pool"), scratch.path("copy"));
    let source = scratch.path("home");
    plant(&source, 5);
    cfs!("import", source, "/", "--data", data).ok();
    cfs!(
        "admin", "snapshot", "create", "/home", "--name", "one", "--data", data
    )
    .ok();
    let key = scratch.path("replica.key");
    cfs!("admin", "key", "replica", key, "--data", data).ok();
    cfs!("admin", "key", "replica", key, "--data", data).refused(7, "cannot write");
    let broken = scratch.file("broken.key", "cfs replica key 1\nnothing\n");
    cfs!("init", "--data", copy, "--replica-of", broken).refused(2, "is no replica key");
    cfs!("init", "--data", copy, "--replica-of", key).ok();
    cfs!("init", "--data", copy).refused(2, "already");

    let (one, two) = (scratch.path("one"), scratch.path("two"));
    piped(&[&"send", &"/home@one", &"--data", &data], None, Some(&one)).ok();
    piped(
        &[&"send", &"/home@none", &"--data", &data],
        None,
        Some(&two),
    )
    .refused(1, "there is no snapshot none");
    cfs!("send", "/home", "--data", data).refused(2, "PATH@NAME");
    piped(&[&"receive", &"--data", &copy], Some(&one), None).ok();
    let exported = scratch.path("exported");
    cfs!(
        "export",
        "/home/.snapshots/one",
        exported,
        "-T",
        "--data",
        copy
    )
    .ok();
    assert_same(&source, &exported);

    fs::write(source.join("new"), noise(4711, 300_000)).expect("a file");
    cfs!("import", source, "/", "--data", data).ok();
    cfs!(
        "admin", "snapshot", "create", "/home", "--name", "two", "--data", data
    )
    .ok();
    piped(
        &[&"send", &"/home@two", &"--from", &"one", &"--data", &data],
        None,
        Some(&two),
    )
    .ok();
    let (whole, part) = (
        fs::metadata(&one).expect("there").len(),
        fs::metadata(&two).expect("there").len(),
    );
    assert!(part < 400_000 && part < whole, "{part} of {whole}");
    // Cut off: told, nothing half, and it goes on.
    let cut = scratch.path("cut");
    fs::write(&cut, &fs::read(&two).expect("read")[..200_000]).expect("written");
    let told = piped(&[&"receive", &"--data", &copy], Some(&cut), None);
    assert!(
        told.stderr.contains("no snapshot shows what has come"),
        "{told:?}"
    );
    told.refused(1, "ends too early");
    let list = cfs!("admin", "snapshot", "list", "--json", "--data", copy)
        .ok()
        .json();
    assert_eq!(list["snapshots"].as_array().map(Vec::len), Some(1));
    piped(&[&"receive", &"--data", &copy], Some(&two), None).ok();
    let exported = scratch.path("exported two");
    cfs!(
        "export",
        "/home/.snapshots/two",
        exported,
        "-T",
        "--data",
        copy
    )
    .ok();
    assert_same(&source, &exported);
    cfs!("admin", "fsck", "--data", copy).ok();
    cfs!("admin", "scrub", "--data", copy).ok();
    cfs!("admin", "gc", "--recount", "--data", copy).ok();
    // Nothing to do, however much of the stream has been read.
    for _ in 0..10 {
        let done = piped(&[&"receive", &"--data", &copy], Some(&one), None).ok();
        assert!(done.stderr.contains("here already"), "{done:?}");
    }
    // Not for a pool that was made otherwise, and nothing at all that is no stream.
    let other = scratch.path("other");
    cfs!("init", "--data", other).ok();
    piped(&[&"receive", &"--data", &other], Some(&one), None).refused(1, "not for this pool");
    piped(&[&"receive", &"--data", &copy], Some(&key), None).refused(1, "no stream of cfs");
}

#[test]
fn pools_that_are_served_replicate() {
    let scratch = Scratch::new();
    let (data, copy) = (scratch.path("pool"), scratch.path("copy"));
    let source = scratch.path("home");
    plant(&source, 6);
    cfs!("import", source, "/", "--data", data).ok();
    let key = scratch.path("replica.key");
    cfs!("admin", "key", "replica", key, "--data", data).ok();
    cfs!("init", "--data", copy, "--replica-of", key).ok();
    let servers = [Server::start(&data, None), Server::start(&copy, None)];
    cfs!(
        "admin", "snapshot", "create", "/home", "--name", "one", "--data", data
    )
    .ok();
    cfs!(
        "replicate",
        "/home@one",
        copy,
        "--path",
        "/backup",
        "--data",
        data
    )
    .ok();
    let again = cfs!(
        "replicate",
        "/home@one",
        copy,
        "--path",
        "/backup",
        "--data",
        data
    )
    .ok();
    assert!(again.stderr.contains("the other side has it"), "{again:?}");
    fs::write(source.join("new"), noise(4711, 300_000)).expect("a file");
    cfs!("import", source, "/", "--data", data).ok();
    cfs!(
        "admin", "snapshot", "create", "/home", "--name", "two", "--data", data
    )
    .ok();
    // As through ssh: another program starts the receiver.
    let program = env!("CARGO_BIN_EXE_cfs");
    let done = cfs!(
        "replicate",
        "/home@two",
        "--data",
        data,
        "--",
        "env",
        program,
        "receive",
        "--data",
        copy,
        "/backup"
    );
    let done = done.ok();
    assert!(done.stderr.contains("sent"), "{done:?}");
    let exported = scratch.path("exported");
    cfs!(
        "export",
        "/backup/.snapshots/two",
        exported,
        "-T",
        "--data",
        copy
    )
    .ok();
    assert_same(&source, &exported);
    let failing = cfs!(
        "replicate",
        "/home@two",
        "--data",
        data,
        "--",
        "sh",
        "-c",
        "exit 3"
    );
    assert_eq!(failing.code, 3, "{failing:?}");
    assert!(
        failing
            .stderr
            .contains("the receiving process ended with exit status: 3"),
        "{failing:?}"
    );
    cfs!(
        "replicate",
        "/home@two",
        copy,
        "--path",
        "/not/here",
        "--data",
        data
    )
    .refused(1, "the directory above /not/here is not here");
    cfs!("admin", "fsck", "--data", copy).ok();
    for server in servers {
        server.stop();
    }
}

#[test]
fn a_pool_that_only_stores_gives_back_what_it_cannot_read() {
    let scratch = Scratch::new();
    let (data, kept, back) = (
        scratch.path("pool"),
        scratch.path("kept"),
        scratch.path("back"),
    );
    let source = scratch.path("home");
    plant(&source, 7);
    let (key, sealed) = (scratch.path("replica.key"), scratch.path("sealed.key"));
    let snapshot = |name: &str| {
        cfs!("import", source, "/", "--data", data).ok();
        cfs!(
            "admin", "snapshot", "create", "/home", "--name", name, "--data", data
        )
        .ok();
    };
    snapshot("one");
    cfs!(
        "admin",
        "key",
        "replica",
        "--store-only",
        sealed,
        "--data",
        data
    )
    .ok();
    cfs!("init", "--data", kept, "--replica-of", sealed).ok();
    let server = Server::start(&kept, None);
    cfs!(
        "replicate",
        "/home@one",
        kept,
        "--path",
        "/sealed",
        "--data",
        data
    )
    .ok();
    fs::write(source.join("new"), noise(4711, 300_000)).expect("a file");
    snapshot("two");
    // Without a path it goes to one of its own.
    let done = cfs!("replicate", "/home@two", kept, "--data", data).ok();
    assert!(done.stderr.contains("received as /"), "{done:?}");
    let done = cfs!(
        "replicate",
        "/home@two",
        kept,
        "--path",
        "/sealed",
        "--data",
        data
    )
    .ok();
    assert!(done.stderr.contains("sealed: "), "{done:?}");
    server.stop();
    cfs!("admin", "fsck", "--data", kept).ok();
    cfs!("admin", "scrub", "--data", kept).ok();
    cfs!("admin", "key", "replica", key, "--data", kept).refused(2, "cannot read");

    // The first pool is lost; what is left is its key.
    cfs!("admin", "key", "replica", key, "--data", data).ok();
    fs::remove_dir_all(&data).expect("removed");
    cfs!("init", "--data", back, "--replica-of", key).ok();
    cfs!(
        "admin", "snapshot", "delete", "/sealed", "--name", "one", "--data", kept
    )
    .ok();
    cfs!("replicate", "/sealed@two", back, "--data", kept).ok();
    let exported = scratch.path("exported");
    cfs!(
        "export",
        "/home/.snapshots/two",
        exported,
        "-T",
        "--data",
        back
    )
    .ok();
    assert_same(&source, &exported);
    // Another one that only stores.
    let (again, third) = (scratch.path("again.key"), scratch.path("third"));
    cfs!(
        "admin",
        "key",
        "replica",
        again,
        "--store-only",
        "--data",
        kept
    )
    .ok();
    cfs!("init", "--data", third, "--replica-of", again).ok();
    cfs!(
        "replicate",
        "/sealed@two",
        third,
        "--path",
        "/sealed",
        "--data",
        kept
    )
    .ok();
}

/// A pool with a snapshot `one` of `/home`, and its replica key.
struct Source {
    data: PathBuf,
    key: PathBuf,
    home: PathBuf,
}

impl Source {
    fn new(scratch: &Scratch, seed: u64) -> Self {
        let (data, home) = (scratch.path("pool"), scratch.path("home"));
        plant(&home, seed);
        cfs!("import", home, "/", "--data", data).ok();
        let key = scratch.path("replica.key");
        cfs!("admin", "key", "replica", key, "--data", data).ok();
        let source = Self { data, key, home };
        source.snapshot("/home", "one");
        source
    }

    fn snapshot(&self, path: &str, name: &str) {
        cfs!(
            "admin", "snapshot", "create", path, "--name", name, "--data", self.data
        )
        .ok();
    }

    /// A pool that can receive.
    fn replica(&self, scratch: &Scratch, name: &str) -> PathBuf {
        let data = scratch.path(name);
        cfs!("init", "--data", data, "--replica-of", self.key).ok();
        data
    }
}

/// The sender added a cause of its own to that of the receiver: that the stream ended too early.
#[test]
fn a_failure_of_the_other_side_is_told_once() {
    let scratch = Scratch::new();
    let source = Source::new(&scratch, 8);
    let data = &source.data;
    let copy = source.replica(&scratch, "copy");
    let other = scratch.path("other");
    cfs!("init", "--data", other).ok();
    let nowhere = scratch.path("nowhere");
    // More than the quota of the volume that is to receive.
    cfs!(
        "admin",
        "volume",
        "create",
        "/bounded",
        "--quota-bytes",
        "64K",
        "--data",
        copy
    )
    .ok();
    let once = |done: crate::support::Done, code: i32, words: &str| {
        assert_eq!(done.stderr.matches("error: ").count(), 1, "{done:?}");
        let lines: Vec<_> = done.stderr.lines().collect();
        assert!(lines.len() <= 2, "{done:?}");
        assert!(!done.stderr.contains("too early"), "{done:?}");
        done.refused(code, words);
    };
    let to = |target: &Path, path: &str| {
        cfs!(
            "replicate",
            "/home@one",
            target,
            "--path",
            path,
            "--data",
            data
        )
    };
    once(to(&other, "/x"), 1, "the stream is not for this pool");
    once(to(&nowhere, "/x"), 5, "there is no pool in");
    once(to(&copy, "/x/y"), 1, "the directory above /x/y is not here");
    once(to(&copy, "/bounded"), 1, "more than the quota");
    // A cause of this side stands alone too.
    once(
        cfs!("replicate", "/home@none", copy, "--data", data),
        1,
        "there is no snapshot none",
    );
    let run = |script: &str| {
        cfs!(
            "replicate",
            "/home@one",
            "--data",
            data,
            "--",
            "sh",
            "-c",
            script
        )
    };
    once(run("exit 3"), 3, "ended with exit status: 3");
    once(run("echo error: full >&2; exit 9"), 9, "error: full");
    once(run("true"), 1, "went away before it had all");
    // What is not an error comes through.
    let told = run("echo connecting >&2; echo error: full >&2; exit 9");
    assert_eq!(told.stderr, "connecting\nerror: full\n", "{told:?}");
    // What a receiver answers, where its words do not arrive.
    let program = env!("CARGO_BIN_EXE_cfs");
    let silent = format!(
        "{program} receive --data {} /x/y 2> /dev/null",
        copy.display()
    );
    let told = run(&silent);
    assert!(
        told.stderr.contains("ended with exit status: 1"),
        "{told:?}"
    );
    assert!(
        told.stderr.contains("the directory above /x/y is not here"),
        "{told:?}"
    );
    // Through a pipe each has its own words, and neither a wrong cause.
    let through = |name: &str, target: &Path| {
        let script = format!(
            "set -o pipefail; {program} send {name} --data {} 2> {} | {program} receive --data {}",
            data.display(),
            scratch.path("sent").display(),
            target.display()
        );
        let mut bash = std::process::Command::new("bash");
        bash.args(["-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let done = run_command(bash);
        (
            fs::read_to_string(scratch.path("sent")).expect("read"),
            done,
        )
    };
    let (sent, received) = through("/home@one", &other);
    assert!(
        sent.starts_with("error: what reads the stream has ended"),
        "{sent}"
    );
    once(received, 1, "the stream is not for this pool");
    let (sent, received) = through("/home@none", &copy);
    assert!(sent.contains("there is no snapshot none"), "{sent}");
    once(received, 1, "there is no stream: the input is empty");
}

/// What followed a stream in the same input was left unread, and nobody was told.
#[test]
fn streams_that_follow_each_other_are_all_received() {
    let scratch = Scratch::new();
    let source = Source::new(&scratch, 9);
    fs::write(source.home.join("new"), noise(4712, 300_000)).expect("a file");
    cfs!("import", source.home, "/", "--data", source.data).ok();
    source.snapshot("/home", "two");
    let mut bytes = Vec::new();
    for (name, from) in [("/home@one", None), ("/home@two", Some("one"))] {
        let file = scratch.path("stream");
        let mut command = command(&[&"send", &name, &"--data", &source.data]);
        command.args(from.map(|from| format!("--from={from}")));
        command.stdout(File::create(&file).expect("a file"));
        run_command(command).ok();
        bytes.push(fs::read(file).expect("read"));
    }
    let receive = |copy: &Path, bytes: &[u8]| {
        let file = scratch.path("both");
        fs::write(&file, bytes).expect("written");
        piped(&[&"receive", &"--data", &copy], Some(&file), None)
    };
    let snapshots = |copy: &Path| {
        let list = cfs!("admin", "snapshot", "list", "--json", "--data", copy)
            .ok()
            .json();
        list["snapshots"].as_array().map_or(0, Vec::len)
    };
    let copy = source.replica(&scratch, "copy");
    receive(&copy, &bytes[0]).ok();
    // The first one is here, and all of it is read to find the second.
    let done = receive(&copy, &bytes.concat()).ok();
    assert_eq!(snapshots(&copy), 2, "{done:?}");
    let lines: Vec<_> = done.stderr.lines().collect();
    assert!(
        lines[0].contains("snapshot one of /home is here already"),
        "{done:?}"
    );
    assert!(
        lines[1].contains("snapshot two of /home received"),
        "{done:?}"
    );
    // What is no stream, however short, is told, and what came before it is here.
    for (number, (rest, words)) in [
        (&b"x"[..], "this is no stream of cfs"),
        (&[0; 512][..], "this is no stream of cfs"),
        (&bytes[1][..20], "the stream ends too early"),
        (&bytes[1][..100_000], "the stream ends too early"),
    ]
    .into_iter()
    .enumerate()
    {
        let copy = source.replica(&scratch, &format!("copy {number}"));
        let done = receive(&copy, &[&bytes[0], rest].concat());
        let received = "error: snapshot one of /home received: ";
        assert!(done.stderr.starts_with(received), "{done:?}");
        assert!(
            done.stderr.contains("; what follows in the input: "),
            "{done:?}"
        );
        done.refused(1, words);
        assert_eq!(snapshots(&copy), 1);
    }
}

#[test]
fn the_socket_of_a_killed_stream_goes_with_the_next_one() {
    let scratch = Scratch::new();
    let data = scratch.path("pool");
    cfs!("init", "--data", data).ok();
    let sockets = || {
        let names = fs::read_dir(&data).expect("listed");
        let names = names.map(|entry| entry.expect("an entry").file_name());
        names
            .filter(|name| name.to_string_lossy().starts_with("stream-"))
            .count()
    };
    let killed = || {
        let mut receive = command(&[&"receive", &"--data", &data]);
        let mut child = receive.stdin(Stdio::piped()).spawn().expect("started");
        eventually("it listens", || sockets() == 1);
        child.kill().expect("our own child");
        child.wait().expect("our own child");
        assert_eq!(sockets(), 1);
    };
    killed();
    cfs!("send", "/@none", "--data", data).refused(1, "there is no snapshot none");
    assert_eq!(sockets(), 0);
    killed();
    Server::start(&data, None).stop();
    assert_eq!(sockets(), 0);
}

#[test]
fn the_target_has_a_key_of_its_own() {
    let scratch = Scratch::new();
    let source = Source::new(&scratch, 10);
    let data = &source.data;
    let words = scratch.file("words", "correct horse\n");
    let copy = scratch.path("copy");
    cfs!(
        "init",
        "--data",
        copy,
        "--replica-of",
        source.key,
        "--passphrase-file",
        words
    )
    .ok();
    let to = |path: &str, option: &str, value: &Path| {
        cfs!(
            "replicate",
            "/home@one",
            copy,
            "--path",
            path,
            option,
            value,
            "--data",
            data
        )
    };
    let with = |variable: &str, value: &str| {
        let mut command = command(&[&"replicate", &"/home@one", &copy, &"--data", data]);
        command.args(["--path", "/b"]).env(variable, value);
        run_command(command)
    };
    let missing = cfs!("replicate", "/home@one", copy, "--data", data);
    assert!(
        missing
            .stderr
            .contains("--target-passphrase-file or CFS_TARGET_PASSPHRASE"),
        "{missing:?}"
    );
    missing.refused(3, "needs a passphrase");
    let wrong = scratch.file("wrong", "another\n");
    to("/a", "--target-passphrase-file", &wrong).refused(3, "passphrase");
    to("/a", "--target-passphrase-file", &words).ok();
    with("CFS_PASSPHRASE", "correct horse").refused(3, "needs a passphrase");
    with("CFS_TARGET_PASSPHRASE", "another").refused(3, "passphrase");
    with("CFS_TARGET_PASSPHRASE", "correct horse").ok();
    to("/c", "--target-key-file", &words).refused(3, "opens with a passphrase");
    // One that has a key file, at another place.
    let (second, key) = (
        source.replica(&scratch, "second"),
        scratch.path("moved key"),
    );
    fs::rename(second.join("key"), &key).expect("moved");
    let to_second = |file: &Path| {
        cfs!(
            "replicate",
            "/home@one",
            second,
            "--target-key-file",
            file,
            "--data",
            data
        )
    };
    to_second(&scratch.path("none")).refused(7, "cannot read");
    to_second(&key).ok();
    // Whoever serves it has its key.
    let mut serve = command(&[&"server", &"--data", &copy, &"--passphrase-file", &words]);
    serve.stdout(Stdio::piped());
    let server = Server::spawn(serve, &copy, None);
    cfs!(
        "replicate",
        "/home@one",
        copy,
        "--path",
        "/d",
        "--data",
        data
    )
    .ok();
    server.stop();
}

/// Options that only count for a data directory were ignored where the target is a command.
#[test]
fn options_that_a_command_cannot_heed_are_refused() {
    let scratch = Scratch::new();
    let source = Source::new(&scratch, 11);
    for option in ["--path", "--target-passphrase-file", "--target-key-file"] {
        cfs!(
            "replicate",
            "/home@one",
            option,
            "/backup",
            "--data",
            source.data,
            "--",
            "sh",
            "-c",
            "touch started"
        )
        .refused(2, &format!("{option} has no effect"));
    }
}

#[test]
fn names_with_an_at_sign_can_be_sent() {
    let scratch = Scratch::new();
    let source = Source::new(&scratch, 12);
    let data = &source.data;
    let copy = source.replica(&scratch, "copy");
    for path in ["/@", "/@a", "/b@c", "/home/d@e", "/b"] {
        let directory = scratch.dir("new");
        fs::write(directory.join("path"), path).expect("written");
        cfs!("import", "-T", directory, path, "--data", data).ok();
    }
    for (number, (path, name)) in [
        ("/@", "one"),
        ("/@a", "one"),
        ("/@a", "x@y"),
        ("/b@c", "one"),
        ("/b@c", "@"),
        ("/home/d@e", "one"),
        // Both of `/b@c` and of `/b` there is one that is written so; the last sign divides.
        ("/b", "c@one"),
    ]
    .into_iter()
    .enumerate()
    {
        source.snapshot(path, name);
        let shown = match path {
            "/b" => "/b@c".to_owned(),
            path => path.to_owned(),
        };
        let target = format!("/to {number}");
        let given = format!("{path}@{name}");
        cfs!("replicate", given, copy, "--path", target, "--data", data).ok();
        let exported = scratch.path(&format!("exported {number}"));
        cfs!("export", "-T", target, exported, "--data", copy).ok();
        let content = fs::read_to_string(exported.join("path")).expect("read");
        assert_eq!(content, shown, "{given}");
    }
    cfs!(
        "admin", "snapshot", "delete", "/b@c", "--name", "one", "--data", data
    )
    .ok();
    let done = cfs!(
        "replicate",
        "/b@c@one",
        copy,
        "--path",
        "/b",
        "--data",
        data
    )
    .ok();
    assert!(done.stderr.contains("snapshot c@one of /b"), "{done:?}");
    cfs!("replicate", "/b@c@two", copy, "--data", data).refused(1, "no snapshot two of /b@c");
    cfs!("admin", "clone", "/@a@x@y", "/clone", "--data", data).ok();
}

#[test]
fn a_snapshot_of_the_root_goes_to_an_empty_root_or_another_path() {
    let scratch = Scratch::new();
    let source = Source::new(&scratch, 13);
    let data = &source.data;
    source.snapshot("/", "all");
    let (empty, full) = (
        source.replica(&scratch, "empty"),
        source.replica(&scratch, "full"),
    );
    cfs!("import", source.home, "/", "--data", full).ok();
    cfs!("admin", "volume", "create", "/volume", "--data", full).ok();
    cfs!("replicate", "/@all", empty, "--data", data).ok();
    let refused = cfs!("replicate", "/@all", full, "--data", data);
    assert!(
        refused
            .stderr
            .contains("give another path to receive it at"),
        "{refused:?}"
    );
    refused.refused(1, "/ is not empty, and is no replica of what is sent");
    cfs!(
        "replicate",
        "/@all",
        full,
        "--path",
        "/volume",
        "--data",
        data
    )
    .ok();
    fs::write(source.home.join("new"), noise(4713, 300_000)).expect("a file");
    cfs!("import", source.home, "/", "--data", data).ok();
    source.snapshot("/", "more");
    for (copy, path) in [(&empty, "/"), (&full, "/volume")] {
        cfs!("replicate", "/@more", copy, "--path", path, "--data", data).ok();
        let exported = scratch.path("exported");
        let shown = format!("{path}/.snapshots/more/home");
        cfs!("export", "-T", shown, exported, "--data", copy).ok();
        assert_same(&source.home, &exported);
        fs::remove_dir_all(exported).expect("removed");
        cfs!("admin", "fsck", "--data", copy).ok();
    }
    let refused = cfs!("replicate", "/home@one", empty, "--data", data);
    refused.refused(1, "/ is a replica itself");
}

/// A directory whose stream was cut off looked like any other.
#[test]
fn a_target_that_is_not_complete_is_told_and_can_be_removed() {
    let scratch = Scratch::new();
    let source = Source::new(&scratch, 14);
    let copy = source.replica(&scratch, "copy");
    fs::write(source.home.join("new"), noise(4714, 3_000_000)).expect("a file");
    cfs!("import", source.home, "/", "--data", source.data).ok();
    source.snapshot("/home", "two");
    let (whole, cut) = (scratch.path("whole"), scratch.path("cut"));
    piped(
        &[&"send", &"/home@two", &"--data", &source.data],
        None,
        Some(&whole),
    )
    .ok();
    let bytes = fs::read(&whole).expect("read");
    fs::write(&cut, &bytes[..bytes.len() - 1_000]).expect("written");
    let list = |words: &str, replica: &str| {
        let lines = cfs!("admin", "snapshot", "list", "--data", copy)
            .ok()
            .stdout;
        assert_eq!(
            lines.contains("/home is not complete"),
            !words.is_empty(),
            "{lines}"
        );
        let list = cfs!(
            "admin", "snapshot", "list", "/home", "--json", "--data", copy
        );
        let list = list.ok().json();
        assert_eq!(list["incomplete"][0]["path"].as_str().unwrap_or(""), words);
        let volumes = cfs!("admin", "volume", "list", "--json", "--data", copy)
            .ok()
            .json();
        assert_eq!(volumes["volumes"][1]["replica"], replica, "{volumes}");
        let shown = list["snapshots"].as_array().map(Vec::len);
        let counted = volumes["volumes"][1]["snapshots"].as_u64();
        assert_eq!(counted, shown.map(|it| it as u64), "{volumes}");
    };
    for _ in 0..3 {
        piped(&[&"receive", &"--data", &copy], Some(&cut), None).refused(1, "too early");
        list("/home", "cut off");
    }
    cfs!(
        "admin",
        "volume",
        "delete",
        "/home",
        "--recursive",
        "--data",
        copy
    )
    .ok();
    let all = cfs!("admin", "snapshot", "list", "--json", "--data", copy)
        .ok()
        .json();
    assert_eq!(all["snapshots"].as_array().map(Vec::len), Some(0));
    piped(&[&"receive", &"--data", &copy], Some(&whole), None).ok();
    list("", "complete");
    cfs!("admin", "fsck", "--data", copy).ok();
}
