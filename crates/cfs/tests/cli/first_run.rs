//! What the first run makes, and what opens it again.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::cfs;
use crate::support::{Scratch, Server, as_nobody, command, run};
use crate::trees::state;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path)
        .unwrap_or_else(|error| panic!("{path:?}: {error}"))
        .mode()
        & 0o7777
}

#[test]
fn the_first_run_makes_everything_and_says_what_it_protects() {
    let scratch = Scratch::new();
    let data = scratch.path("pool");
    let server = Server::start(&data, None);
    assert!(server.ready.contains("not mounted"), "{}", server.ready);
    assert_eq!(mode(&data), 0o700);
    for name in ["pool", "key", "lock", "socket"] {
        assert_eq!(mode(&data.join(name)), 0o600, "{name}");
    }
    let lock = fs::read_to_string(data.join("lock")).expect("a lock");
    assert_eq!(lock.trim(), server.pid().to_string());
    let said = server.said();
    for words in [
        "mode 0600",
        "does not protect",
        "data are lost",
        "change-passphrase",
    ] {
        assert!(said.contains(words), "{words:?} is not in {said}");
    }
    server.stop();
    assert!(!data.join("socket").exists());
    assert!(!data.join("pool.new").exists());

    let again = Server::start(&data, None);
    assert!(!again.said().contains("notice"), "{}", again.said());
    again.stop();
}

#[test]
fn a_pool_with_a_passphrase_opens_with_it_alone() {
    let scratch = Scratch::new();
    let data = scratch.path("pool");
    let right = scratch.file("right", "correct horse\nsecond line\n");
    let wrong = scratch.file("wrong", "battery staple\n");
    let source = scratch.file("note", "content");

    let made = cfs!(
        "import",
        source,
        "/note",
        "--data",
        data,
        "--passphrase-file",
        right
    )
    .ok();
    assert!(!made.stderr.contains("notice"), "{made:?}");
    assert!(!data.join("key").exists());

    let before = state(&data);
    let key = scratch.file("key", &format!("cfs-key-1 {}\n", "0f".repeat(32)));
    cfs!(
        "admin",
        "status",
        "--data",
        data,
        "--passphrase-file",
        wrong
    )
    .refused(3, "the passphrase does not open");
    cfs!("admin", "status", "--data", data).refused(3, "needs a passphrase");
    cfs!("admin", "status", "--data", data, "--key-file", key)
        .refused(3, "opens with a passphrase, not with the key file");
    cfs!("server", "--data", data, "--passphrase-file", wrong)
        .refused(3, "the passphrase does not open");
    let changed: Vec<_> = state(&data)
        .into_iter()
        .filter(|it| !before.contains(it) && !it.0.ends_with("lock") && it.0 != Path::new(""))
        .collect();
    assert!(changed.is_empty(), "{changed:?}");

    let mut with_environment = command(&[&"admin", &"status", &"--data", &data, &"--json"]);
    with_environment.env("CFS_PASSPHRASE", "correct horse");
    let status = run(with_environment).ok().json();
    assert_eq!(status["opens_with"], "passphrase");
}

#[test]
fn the_passphrase_is_not_left_in_the_environment() {
    let scratch = Scratch::new();
    let data = scratch.path("pool");
    let mut command = command(&[&"server", &"--data", &data]);
    command.env("CFS_PASSPHRASE", "correct horse battery");
    let server = Server::spawn(command, &data, None);
    let environment = fs::read(format!("/proc/{}/environ", server.pid())).expect("our own child");
    let has = |words: &[u8]| environment.windows(words.len()).any(|it| it == words);
    assert!(has(b"PATH="), "the check would see something");
    assert!(!has(b"correct horse"));
    server.stop();
}

#[test]
fn a_given_key_file_is_used_and_none_is_made() {
    let scratch = Scratch::new();
    let data = scratch.path("pool");
    let key = scratch.file("mine", &format!("cfs-key-1 {}\n", "a1".repeat(32)));
    let other = scratch.file("other", &format!("cfs-key-1 {}\n", "a2".repeat(32)));
    let none = scratch.file("none", "ssh-rsa AAAA");
    let source = scratch.file("note", "content");

    cfs!(
        "import",
        source,
        "/note",
        "--data",
        data,
        "--key-file",
        none
    )
    .refused(3, "not a key file");
    assert!(!data.exists(), "nothing is made with a bad key file");

    cfs!("import", source, "/note", "--data", data, "--key-file", key).ok();
    assert!(!data.join("key").exists());
    cfs!("admin", "status", "--data", data).refused(3, "needs its key file");
    cfs!("admin", "status", "--data", data, "--key-file", other).refused(3, "does not open");
    cfs!("admin", "fsck", "--data", data, "--key-file", key).ok();
}

#[test]
fn a_key_file_that_is_not_there_is_made_on_the_first_run() {
    let scratch = Scratch::new();
    let data = scratch.path("pool");
    let key = scratch.path("key elsewhere");
    let source = scratch.file("note", "content");
    let missing = scratch.path("no such directory").join("key");

    cfs!(
        "import",
        source,
        "/note",
        "--data",
        data,
        "--key-file",
        missing
    )
    .refused(7, "cannot write the key file");
    assert!(!data.exists(), "nothing is left");

    let done = cfs!("import", source, "/note", "--data", data, "--key-file", key).ok();
    assert!(
        done.stderr.contains("key elsewhere (mode 0600)"),
        "{done:?}"
    );
    assert_eq!(mode(&key), 0o600);
    assert!(!data.join("key").exists());
    cfs!("admin", "fsck", "--data", data, "--key-file", key).ok();
    fs::remove_file(&key).expect("our own");
    cfs!("admin", "fsck", "--data", data, "--key-file", key).refused(7, "cannot read the key file");
    assert!(!key.exists(), "only the first run makes one");
}

#[test]
fn a_passphrase_is_the_same_wherever_it_comes_from() {
    let scratch = Scratch::new();
    let data = scratch.path("pool");
    let source = scratch.file("note", "content");
    let with_variable = |passphrase: &[u8]| {
        use std::os::unix::ffi::OsStrExt;
        let mut import = command(&[&"import", &source, &"/note", &"--data", &data]);
        import.env("CFS_PASSPHRASE", std::ffi::OsStr::from_bytes(passphrase));
        run(import)
    };
    with_variable(b"two\nlines").refused(2, "CFS_PASSPHRASE must be one line");
    with_variable(b"\xff\xfe").refused(2, "CFS_PASSPHRASE must be UTF-8");
    with_variable(b"").refused(2, "CFS_PASSPHRASE must have 1 to");
    assert!(!data.exists(), "nothing is made with a bad passphrase");
    with_variable("Straße 7".as_bytes()).ok();
    let file = scratch.file("passphrase", "Straße 7\r\nnot this line\n");
    cfs!("admin", "fsck", "--data", data, "--passphrase-file", file).ok();
}

#[test]
fn the_options_of_the_first_run_hold_and_cannot_be_contradicted() {
    let scratch = Scratch::new();
    let data = scratch.path("pool");
    let source = scratch.file("note", &"content ".repeat(100_000));
    let wishes = [
        "--cipher",
        "chacha20-poly1305",
        "--codec",
        "zstd:7",
        "--pool-size",
        "256M",
    ];
    let import = |to: &str, wishes: &[&str]| {
        let mut command = command(&[&"import", &source, &to, &"--data", &data]);
        command.args(wishes);
        run(command)
    };
    import("/a", &wishes).ok();
    let status = cfs!("admin", "status", "--json", "--data", data)
        .ok()
        .json();
    assert_eq!(status["cipher"], "chacha20-poly1305");
    assert_eq!(status["codec"], "zstd:7");
    let total = status["segments"]["total"].as_u64().expect("a number");
    assert!(total <= 128, "{total} segments in 256 MiB");

    import("/b", &wishes).ok();
    import("/c", &["--cipher", "aes-256-gcm"]).refused(2, "--cipher differs");
    import("/c", &["--codec", "lz4"]).refused(2, "--codec differs");
    import("/c", &["--pool-size", "200M"]).refused(2, "--pool-size differs");
    import("/c", &["--device", "/dev/null"]).refused(2, "--device differs");
}

/// What the larger pool holds is found by those that are told no limit, and by a rebuild with the kept superblock.
#[test]
fn the_limit_of_a_pool_can_be_raised() {
    let scratch = Scratch::new();
    let (data, source, out) = (
        scratch.path("pool"),
        scratch.path("source"),
        scratch.path("out"),
    );
    let mut noise = Vec::with_capacity(150 << 20);
    let mut state = blake3::Hasher::new().finalize_xof();
    noise.resize(150 << 20, 0);
    state.fill(&mut noise);
    fs::write(&source, &noise).expect("a file");
    cfs!("init", "--data", data, "--pool-size", "128M").ok();
    cfs!("import", source, "/noise", "--data", data).refused(7, "raise its --pool-size");

    let older = fs::read(data.join("superblock")).expect("a copy");

    let mut serving = command(&[&"server", &"--data", &data, &"--s3", &"off"]);
    serving.args(["--pool-size", "512M"]);
    let server = Server::spawn(serving, &data, None);
    cfs!("import", source, "/noise", "--data", data).ok();
    server.kill();
    cfs!("export", "/noise", out, "--data", data).ok();
    assert!(fs::read(&out).expect("exported") == noise);
    cfs!(
        "import",
        source,
        "/again",
        "--data",
        data,
        "--pool-size",
        "256M"
    )
    .refused(2, "has 512 MiB");
    cfs!("import", source, "/again", "--data", data).ok();
    let status = cfs!("admin", "status", "--data", data).ok().stdout;
    assert!(status.contains(" of at most 512 MiB, "), "{status}");
    let grown = command(&[
        &"import",
        &source,
        &"/again",
        &"--data",
        &data,
        &"--pool-size",
        &"600M",
    ]);
    let grown = run(grown).ok();
    let said = "may take 600 MiB from now on, and not 512 MiB any more";
    assert!(grown.stderr.contains(said), "{grown:?}");

    let pool = File::options().write(true).open(data.join("pool"));
    let zeros = vec![0; 4 << 20];
    (pool.expect("the pool"))
        .write_all_at(&zeros, 0)
        .expect("damaged");
    // As from a backup of the directory.
    fs::write(data.join("superblock"), older).expect("put back");
    cfs!("repair", "--rebuild-index", "--data", data).ok();
    cfs!("admin", "fsck", "--data", data).ok();
    cfs!("export", "/again", scratch.path("out2"), "--data", data).ok();
    assert!(fs::read(scratch.path("out2")).expect("exported") == noise);
}

/// Once, or twice: the second while it took the place of what the first had left, and had the key already.
#[test]
fn a_first_run_that_was_killed_is_done_again() {
    let scratch = Scratch::new();
    let source = scratch.file("note", "content");
    let other = scratch.path("other");
    cfs!("init", "--data", other).ok();
    for (left, has_key) in [("pool.new", false), ("pool.new", true), ("pool.old", true)] {
        let data = scratch.dir(&format!("{left}-{has_key}"));
        fs::write(data.join(left), vec![7; 100_000]).expect("written");
        fs::write(data.join("lock"), "12345\n").expect("written");
        if has_key {
            fs::copy(other.join("key"), data.join("key")).expect("copied");
        }
        cfs!("import", source, "/note", "--data", data).ok();
        cfs!("admin", "fsck", "--data", data).ok();
        assert_eq!(mode(&data), 0o700);
        for gone in ["pool.new", "pool.old"] {
            assert!(!data.join(gone).exists(), "{gone} of {data:?}");
        }
    }
}

/// The key went, and the pool stayed, where a first run made both and could not open the pool.
#[test]
fn a_pool_that_was_made_and_not_opened_keeps_its_key() {
    // Root is given as many threads as it asks for.
    let Some(as_nobody) = as_nobody() else {
        return;
    };
    let scratch = Scratch::new();
    let source = scratch.file("note", "content");
    let mut has_met_it = false;
    for threads in 3..8 {
        let data = scratch.path(&format!("pool{threads}"));
        let mut command = as_nobody();
        command
            .args([
                "prlimit",
                &format!("--nproc={threads}"),
                env!("CARGO_BIN_EXE_cfs"),
                "import",
            ])
            .args([&*source, Path::new("/note"), Path::new("--data"), &*data]);
        let done = run(command);
        assert_eq!(done.code, 7, "{done:?}");
        has_met_it |= data.join("pool").exists();
        // Whatever it has left, the next one begins or goes on.
        cfs!("import", source, "/note", "--data", data).ok();
    }
    assert!(
        has_met_it,
        "no limit was between making the pool and opening it"
    );
}
