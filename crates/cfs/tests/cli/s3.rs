//! S3 beside the mount: one inode, two views; users; ports.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::cfs;
use crate::s3_client::Client;
use crate::support::{Scratch, Server, as_root, can_mount, command, detach, run};
use crate::trees::assert_same;

/// An address that nobody listened at just now.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it has an address")
}

fn serve(data: &Path, mount: Option<&Path>, at: &str) -> Server {
    let mut command = command(&[&"server", &"--data", &data, &"--s3", &at]);
    if let Some(mount) = mount {
        command.arg("--mount").arg(mount);
    }
    Server::spawn(command, data, mount)
}

/// What stands after a word in what a server has said.
fn after(text: &str, word: &str) -> String {
    let rest = text
        .split(word)
        .nth(1)
        .unwrap_or_else(|| panic!("no {word} in {text}"));
    rest.split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn objects_are_files_at_once_and_files_objects() {
    if !can_mount("objects_are_files_at_once_and_files_objects") {
        return;
    }
    let scratch = Scratch::new();
    let (data, mnt) = (scratch.path("pool"), scratch.dir("mnt"));
    let address = free_address();
    let server = serve(&data, Some(&mnt), &address.to_string());
    let said = server.said();
    let root = Client {
        address,
        access_key_id: after(&said, "access_key_id"),
        secret_access_key: after(&said, "secret_access_key"),
    };
    // The kernel keeps names, absent names and content until it is told.
    assert!(fs::metadata(mnt.join("bucket")).is_err());
    root.put("/bucket", b"").is(200);
    assert!(fs::metadata(mnt.join("bucket/dir/k")).is_err());
    assert_eq!(
        fs::read_dir(mnt.join("bucket")).expect("a bucket").count(),
        0
    );
    root.put("/bucket/dir/k", b"one").is(200);
    // Nobody has asked the kernel for the new name; the directory's time is another all the same.
    // The standard library would ask for the time of creation as well, which the kernel does not keep.
    let changed =
        |path: &str| rustix::fs::stat(mnt.join(path)).map(|of| (of.st_mtime, of.st_mtime_nsec));
    let before = changed("bucket/dir").expect("a directory");
    root.put("/bucket/dir/never-asked-for", b"").is(200);
    assert_ne!(changed("bucket/dir").expect("a directory"), before);
    fs::remove_file(mnt.join("bucket/dir/never-asked-for")).expect("removing");
    let path = mnt.join("bucket/dir/k");
    assert_eq!(fs::read(&path).expect("a file"), b"one");
    let before = fs::metadata(&path).expect("a file").ino();
    root.put("/bucket/dir/k", b"another").is(200);
    assert_eq!(fs::read(&path).expect("a file"), b"another");
    assert_ne!(fs::metadata(&path).expect("a file").ino(), before);
    fs::write(&path, b"from the mount").expect("a file can be written");
    let got = root.get("/bucket/dir/k").is(200);
    assert_eq!(got.body, b"from the mount");
    assert_eq!(got.header("etag"), "\"79d88b9198a760d983c23c5b5d9bcd95\"");
    fs::write(mnt.join("bucket/dir/other"), b"2").expect("a file can be made");
    assert_eq!(
        root.get("/bucket").is(200).all("Key"),
        ["dir/k", "dir/other"]
    );
    root.delete("/bucket/dir/k").is(204);
    assert!(fs::metadata(&path).is_err());
    fs::remove_file(mnt.join("bucket/dir/other")).expect("it is there");
    root.get("/bucket/dir/other").fails(404, "NoSuchKey");
    server.stop();
    // The key is kept, and not said again.
    let server = serve(&data, Some(&mnt), &address.to_string());
    assert!(
        !server.said().contains("secret_access_key"),
        "{}",
        server.said()
    );
    root.get("/bucket").is(200);
    server.stop();
    cfs!("admin", "fsck", "--data", data).ok();
}

/// The kernel keeps what a directory lists, and gives it out without asking, until it is told.
#[test]
fn lists_that_the_kernel_remembers_change_with_objects() {
    if !can_mount("lists_that_the_kernel_remembers_change_with_objects") {
        return;
    }
    let scratch = Scratch::new();
    let (data, mnt) = (scratch.path("pool"), scratch.dir("mnt"));
    let address = free_address();
    let mut serving = command(&[&"server", &"--data", &data, &"--s3", &address.to_string()]);
    // Else a list whose reading is to be noted is asked for again.
    serving
        .args(["--atime", "noatime"])
        .arg("--mount")
        .arg(&mnt);
    let server = Server::spawn(serving, &data, Some(&mnt));
    let said = server.said();
    let root = Client {
        address,
        access_key_id: after(&said, "access_key_id"),
        secret_access_key: after(&said, "secret_access_key"),
    };
    let listed = |path: &str| {
        let entries = fs::read_dir(mnt.join(path)).expect("a directory");
        let names = entries.map(|it| it.expect("an entry").file_name());
        let mut names: Vec<String> = names.filter_map(|it| it.into_string().ok()).collect();
        names.sort_unstable();
        names
    };
    root.put("/bucket", b"").is(200);
    let mut expected = Vec::new();
    for number in 100..140 {
        let name = format!("k{number}");
        root.put(&format!("/bucket/dir/{name}"), b"").is(200);
        expected.push(name);
        for _ in 0..3 {
            assert_eq!(listed("bucket/dir"), expected);
        }
        if number % 3 == 0 {
            let gone = expected.remove(expected.len() / 2);
            root.delete(&format!("/bucket/dir/{gone}")).is(204);
            assert_eq!(listed("bucket/dir"), expected);
        }
    }
    assert_eq!(listed("bucket"), ["dir"]);
    for name in expected {
        root.delete(&format!("/bucket/dir/{name}")).is(204);
    }
    assert_eq!(listed("bucket"), Vec::<String>::new());
    server.stop();
}

/// Stops the threads of a process that answer the kernel, until the receiver's other side is dropped; none if it may not.
fn stop_answering(pid: u32) -> Option<std::sync::mpsc::Sender<()>> {
    let (done, is_done) = std::sync::mpsc::channel();
    let (until, stopped) = std::sync::mpsc::channel::<()>();
    // Only the thread that has stopped them can let them go on, and does so by ending.
    std::thread::spawn(move || {
        let mut tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
        let stop = |task: fs::DirEntry| {
            let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            if !name.starts_with("fuse") {
                return true;
            }
            let thread: libc::pid_t = task
                .file_name()
                .to_string_lossy()
                .parse()
                .expect("a number");
            let mut status = 0;
            // SAFETY: neither call touches memory of this process but `status`, which outlives them.
            unsafe {
                libc::ptrace(libc::PTRACE_SEIZE, thread, 0, 0) == 0
                    && libc::ptrace(libc::PTRACE_INTERRUPT, thread, 0, 0) == 0
                    && libc::waitpid(thread, &raw mut status, libc::__WALL) == thread
            }
        };
        let all = tasks.all(|task| stop(task.expect("a task")));
        let _ = done.send(all);
        let _ = stopped.recv();
    });
    is_done.recv().expect("it was tried").then_some(until)
}

/// Who tells the kernel of a name waits for the lock of the directory, whatever signal comes; who holds it waited for an answer
/// of the same process. A server that was killed then was there for ever, with its pool and all who used the mount.
#[test]
fn a_server_that_is_killed_while_it_tells_the_kernel_ends() {
    let name = "a_server_that_is_killed_while_it_tells_the_kernel_ends";
    if !can_mount(name) || !as_root(name) {
        return;
    }
    let scratch = Scratch::new();
    let (data, mnt) = (scratch.path("pool"), scratch.dir("mnt"));
    let address = free_address();
    let server = serve(&data, Some(&mnt), &address.to_string());
    let (pid, said) = (server.pid(), server.said());
    let root = || Client {
        address,
        access_key_id: after(&said, "access_key_id"),
        secret_access_key: after(&said, "secret_access_key"),
    };
    root().put("/bucket", b"").is(200);
    assert!(fs::metadata(mnt.join("bucket/k")).is_err());
    let Some(until) = stop_answering(pid) else {
        eprintln!("SKIPPED {name}: threads of another process cannot be stopped here");
        return;
    };
    // It holds the lock and waits.
    let mut maker = std::process::Command::new("mkdir");
    let mut maker = maker.arg(mnt.join("bucket/d")).spawn().expect("mkdir");
    let asks = |process: u32, for_what: &str| {
        let tasks = fs::read_dir(format!("/proc/{process}/task"));
        tasks.into_iter().flatten().flatten().any(|task| {
            let stack = fs::read_to_string(task.path().join("stack"));
            stack.is_ok_and(|stack| stack.contains(for_what))
        })
    };
    let comes = |process: u32, for_what: &str| {
        let started = std::time::Instant::now();
        while started.elapsed() < Duration::from_secs(5) {
            if asks(process, for_what) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    };
    let waits = comes(maker.id(), "request_wait_answer");
    let client = root();
    std::thread::spawn(move || client.put("/bucket/k", b"one"));
    if !waits || !comes(pid, "fuse_reverse_inval_entry") {
        eprintln!("SKIPPED in part: the kernel's stacks do not tell that it waits");
    }
    server.signal(rustix::process::Signal::KILL);
    let started = std::time::Instant::now();
    let has_ended = || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        tasks.map_or(0, Iterator::count) <= 1
    };
    drop(until);
    while !has_ended() && started.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let ended = has_ended();
    if !ended {
        // Nothing may hang because of a test.
        let _ = rustix::mount::unmount(&mnt, rustix::mount::UnmountFlags::FORCE);
    }
    maker.wait().expect("it ends");
    server.kill();
    assert!(ended, "the server has not ended 20 s after SIGKILL");
    detach(&mnt);
    serve(&data, Some(&mnt), &address.to_string()).stop();
}

#[test]
fn users_come_and_go_with_and_without_a_server() {
    let scratch = Scratch::new();
    let data = scratch.path("pool");
    let address = free_address();
    serve(&data, None, "off").stop();
    let added = cfs!("admin", "user", "add", "alice", "--json", "--data", data)
        .ok()
        .json();
    let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
    let alice = Client {
        address,
        access_key_id: text(&added["access_key_id"]),
        secret_access_key: text(&added["secret_access_key"]),
    };
    let server = serve(&data, None, &address.to_string());
    alice.put("/alice", b"").is(200);
    let secret = scratch.file("secret", "a secret of its own\n");
    cfs!(
        "admin",
        "key",
        "create",
        "alice",
        "--access-key-id",
        "SECOND",
        "--secret-key-file",
        secret,
        "--data",
        data
    )
    .refused(2, "printable");
    let secret = scratch.file("secret", "a-secret-of-its-own\n");
    cfs!(
        "admin",
        "key",
        "create",
        "alice",
        "--access-key-id",
        "SECOND",
        "--secret-key-file",
        secret,
        "--data",
        data
    )
    .ok();
    let second = Client {
        access_key_id: "SECOND".to_owned(),
        secret_access_key: "a-secret-of-its-own".to_owned(),
        ..alice.clone()
    };
    second.get("/alice").is(200);
    let listed = cfs!("admin", "user", "list", "--data", data).ok().stdout;
    assert!(
        listed.contains("SECOND") && !listed.contains("a-secret-of-its-own"),
        "{listed}"
    );
    cfs!("admin", "key", "revoke", "SECOND", "--data", data).ok();
    second.get("/alice").fails(403, "InvalidAccessKeyId");
    cfs!("admin", "user", "remove", "alice", "--data", data).ok();
    alice.get("/alice").fails(403, "InvalidAccessKeyId");
    cfs!("admin", "user", "add", "root", "--data", data).refused(2, "already");
    server.stop();
}

/// What shows the domains of a pool: their users by number.
fn domains(data: &Path) -> Vec<(u64, Option<String>)> {
    let shown = cfs!("admin", "ls-domains", "--json", "--data", data)
        .ok()
        .json();
    let domains = shown["domains"].as_array().expect("a list").iter();
    domains
        .map(|it| {
            let user = it["user"].as_str().map(str::to_owned);
            (it["domain"].as_u64().expect("a number"), user)
        })
        .collect()
}

#[test]
fn users_have_domains_of_their_own_with_and_without_a_server() {
    let scratch = Scratch::new();
    let data = scratch.path("pool");
    let address = free_address();
    serve(&data, None, "off").stop();
    let add = |name: &str| {
        let added = cfs!(
            "admin",
            "user",
            "add",
            name,
            "--own-domain",
            "--json",
            "--data",
            data
        )
        .ok()
        .json();
        let text = |name: &str| added[name].as_str().expect("text").to_owned();
        Client {
            address,
            access_key_id: text("access_key_id"),
            secret_access_key: text("secret_access_key"),
        }
    };
    let before = domains(&data).len();
    let alice = add("alice");
    let server = serve(&data, None, &address.to_string());
    let bob = add("bob");
    cfs!("admin", "user", "add", "carol", "--data", data).ok();
    // Kept when they were acknowledged.
    server.kill();
    let server = serve(&data, None, &address.to_string());
    let listed = cfs!("admin", "user", "list", "--json", "--data", data)
        .ok()
        .json();
    let domain_of = |name: &str| {
        let all = listed.as_array().expect("a list");
        let found = all.iter().find(|user| user["name"] == name);
        found.expect("it is there")["domain"].as_u64()
    };
    let (hers, his) = (
        domain_of("alice").expect("one"),
        domain_of("bob").expect("one"),
    );
    assert_ne!(hers, his);
    assert_eq!(domain_of("carol"), None);
    let shown = domains(&data);
    assert_eq!(shown.len(), before + 2);
    for (domain, name) in [(hers, "alice"), (his, "bob")] {
        assert!(
            shown.contains(&(domain, Some(name.to_owned()))),
            "{shown:?}"
        );
    }
    let lines = cfs!("admin", "ls-domains", "--data", data).ok().stdout;
    assert!(lines.contains("alice"), "{lines}");
    let content = vec![7; 100_000];
    for (client, path) in [(&alice, "/alice"), (&bob, "/bob")] {
        client.put(path, b"").is(200);
        client.put(&format!("{path}/k"), &content).is(200);
    }
    server.kill();
    let server = serve(&data, None, &address.to_string());
    assert_eq!(bob.get("/bob/k").is(200).body, content);
    let volumes = cfs!("admin", "volume", "list", "--json", "--data", data)
        .ok()
        .json();
    let volumes = volumes["volumes"].as_array().expect("a list");
    let of_alice = volumes.iter().find(|it| it["path"] == "/alice");
    assert_eq!(of_alice.expect("a volume")["domain"], hers);
    // What is sealed stays to be read.
    cfs!("admin", "user", "remove", "alice", "--data", data).ok();
    assert!(domains(&data).contains(&(hers, None)));
    server.stop();
    cfs!("admin", "fsck", "--data", data).ok();
    let out = scratch.path("out");
    cfs!("export", "-T", "/alice", out, "--data", data).ok();
    assert_eq!(fs::read(out.join("k")).expect("a file"), content);
}

/// A lock that compliance keeps is not lost with the process that it was told to.
#[test]
fn compliance_holds_through_the_mount_across_kills() {
    if !can_mount("compliance_holds_through_the_mount_across_kills") {
        return;
    }
    let scratch = Scratch::new();
    let (data, mnt) = (scratch.path("pool"), scratch.dir("mnt"));
    let address = free_address();
    let server = serve(&data, Some(&mnt), &address.to_string());
    let said = server.said();
    let root = Client {
        address,
        access_key_id: after(&said, "access_key_id"),
        secret_access_key: after(&said, "secret_access_key"),
    };
    let lock = [("x-amz-bucket-object-lock-enabled", "true")];
    root.send_with("PUT", "/bucket", &[], &lock, b"").is(200);
    let retained = [
        ("x-amz-object-lock-mode", "COMPLIANCE"),
        (
            "x-amz-object-lock-retain-until-date",
            "2099-01-01T00:00:00Z",
        ),
    ];
    let content = vec![7; 100_000];
    root.send_with("PUT", "/bucket/dir/large", &[], &retained, &content)
        .is(200);
    root.send_with("PUT", "/bucket/dir/small", &[], &retained, b"small")
        .is(200);
    // An older version too, which lies elsewhere.
    root.send_with("PUT", "/bucket/dir/old", &[], &retained, b"one")
        .is(200);
    root.put("/bucket/dir/old", b"two").is(200);
    // Locked when it is a file already, with data that nobody has synced.
    fs::write(mnt.join("bucket/dir/made"), b"made").expect("written");
    let retention = b"<Retention><Mode>COMPLIANCE</Mode><RetainUntilDate>2099-01-01T00:00:00Z</RetainUntilDate></Retention>";
    root.send("PUT", "/bucket/dir/made", &[("retention", "")], retention)
        .is(200);
    let locked: [(&str, &[u8]); 3] = [("large", &content), ("small", b"small"), ("made", b"made")];
    let holds = |round: u32| {
        let directory = mnt.join("bucket/dir");
        let refused = |what: &str, done: std::io::Result<()>| {
            let error = done.expect_err(what);
            assert_eq!(
                error.raw_os_error(),
                Some(libc::EPERM),
                "{round} {what}: {error}"
            );
        };
        let mut versions = Vec::new();
        for entry in walk(&mnt.join("bucket/.s3!versions")) {
            if fs::read(&entry).expect("a version") == b"one" {
                versions.push(entry);
            }
        }
        assert_eq!(versions.len(), 1, "{versions:?}");
        let mut paths: Vec<_> = locked
            .iter()
            .map(|(name, content)| (directory.join(name), *content))
            .collect();
        paths.push((versions.remove(0), b"one"));
        let other = directory.join(format!("other-{round}"));
        for (path, content) in &paths {
            refused("unlink", fs::remove_file(path));
            fs::write(&other, b"other").expect("others can be made");
            refused("rename over", fs::rename(&other, path));
            refused("rename", fs::rename(path, directory.join("elsewhere")));
            refused("link", fs::hard_link(path, directory.join("elsewhere")));
            refused("truncate", truncate(path));
            let write = |path: &Path| -> std::io::Result<()> {
                use std::os::unix::fs::FileExt;
                let file = fs::OpenOptions::new().write(true).open(path)?;
                file.write_at(b"x", 0)?;
                file.sync_all()
            };
            refused("write", write(path));
            let append = |path: &Path| -> std::io::Result<()> {
                use std::io::Write;
                let mut file = fs::OpenOptions::new().append(true).open(path)?;
                file.write_all(b"x")?;
                file.sync_all()
            };
            refused("append", append(path));
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            refused("chmod", fs::set_permissions(path, mode));
            assert!(fs::read(path).expect("a file") == *content, "{path:?}");
        }
        assert!(fs::rename(mnt.join("bucket"), mnt.join("moved")).is_err());
        assert!(fs::remove_dir_all(mnt.join("bucket")).is_err());
        for (path, content) in &paths {
            assert!(fs::read(path).expect("a file") == *content, "{path:?}");
        }
    };
    let mut server = server;
    for round in 0..3 {
        holds(round);
        server.kill();
        detach(&mnt);
        server = serve(&data, Some(&mnt), &address.to_string());
    }
    holds(3);
    server.stop();
    cfs!("admin", "fsck", "--data", data).ok();
}

fn truncate(path: &Path) -> std::io::Result<()> {
    let text = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: the path is a string that ends in a zero, and outlives the call.
    match unsafe { libc::truncate(text.as_ptr(), 1) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// All files below a directory.
fn walk(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let entry = entry.expect("an entry");
        match entry.file_type().expect("a type").is_dir() {
            true => files.extend(walk(&entry.path())),
            false => files.push(entry.path()),
        }
    }
    files
}

/// The key of RFC 7517, A.1, without what it is for.
const KEYS: &str = r#"{"keys": [{"kty": "EC", "crv": "P-256", "kid": "1",
    "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;

#[test]
fn issuers_come_and_go_with_and_without_a_server() {
    let scratch = Scratch::new();
    let data = scratch.path("pool");
    let address = free_address();
    serve(&data, None, "off").stop();
    let issuer = "https://id.example.com/realms/lab";
    let set = |issuer: &str, keys: &Path| {
        cfs!(
            "admin",
            "issuer",
            "set",
            issuer,
            "--keys",
            keys,
            "--audience",
            "app",
            "--data",
            data
        )
    };
    let keys = scratch.file("keys", KEYS);
    set(issuer, &keys).ok();
    let server = serve(&data, None, &address.to_string());
    set("https://other.example.com", &keys).ok();
    let secret = scratch.file("secret", &KEYS.replace("\"x\"", "\"d\": \"AAAA\", \"x\""));
    set(issuer, &secret).refused(2, "secret key");
    set("id.example.com", &keys).refused(2, "https://");
    set(issuer, &scratch.file("long", &" ".repeat(1 << 20))).refused(2, "too long");
    let other = "https://other.example.com";
    cfs!("admin", "issuer", "remove", other, "--data", data).ok();
    cfs!("admin", "issuer", "remove", other, "--data", data).refused(2, "no keys");
    server.stop();
    let listed = cfs!("admin", "issuer", "list", "--json", "--data", data)
        .ok()
        .json();
    assert_eq!(
        listed,
        serde_json::json!([{"url": issuer, "key_ids": ["1"], "audiences": ["app"]}])
    );
}

#[test]
fn a_taken_port_is_an_error_where_it_was_asked_for() {
    let scratch = Scratch::new();
    let data = scratch.path("pool");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it has an address").to_string();
    serve(&data, None, "off").stop();
    cfs!("server", "--data", data, "--s3", address).refused(2, &address);
    let nonsense = cfs!("server", "--data", data, "--s3", "nonsense");
    assert_eq!(nonsense.code, 2, "{nonsense:?}");
    // By default another server on this machine is no hindrance.
    let (one, two) = (scratch.path("one"), scratch.path("two"));
    let first = Server::start(&one, None);
    let second = Server::start(&two, None);
    assert!(
        second.said().contains("--s3") || first.said().contains("--s3"),
        "{} {}",
        first.said(),
        second.said()
    );
    first.stop();
    second.stop();
}

#[test]
fn the_network_gets_https_or_what_was_said() {
    let scratch = Scratch::new();
    let data = scratch.path("pool");
    serve(&data, None, "off").stop();
    let port = free_address().port();
    let beyond = format!("0.0.0.0:{port}");
    cfs!("server", "--data", data, "--s3", beyond).refused(2, "not be encrypted");
    let nothing = scratch.file("nothing", "no certificate\n");
    cfs!(
        "server",
        "--data",
        data,
        "--s3",
        beyond,
        "--tls-cert",
        nothing,
        "--tls-key",
        nothing
    )
    .refused(2, "certificate");
    cfs!("server", "--data", data, "--s3", "off", "--tls-self-made").refused(2, "no S3");
    let with = |options: &[&str]| {
        let mut command = command(&[&"server", &"--data", &data, &"--s3", &beyond]);
        command.args(options);
        Server::spawn(command, &data, None)
    };
    with(&["--s3-plain"]).stop();
    let served = with(&["--tls-self-made", "--s3-domain", "s3.test"]);
    let fingerprint = after(&served.said(), "SHA-256");
    assert_eq!(fingerprint.len(), 95, "{fingerprint}");
    let pem = fs::read(data.join("tls.crt")).expect("it is kept");
    let mode = fs::metadata(data.join("tls.key"))
        .expect("it is kept")
        .permissions();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777,
        0o600
    );
    cfs!("admin", "user", "add", "alice", "--data", data).ok();
    let added = cfs!("admin", "key", "create", "alice", "--json", "--data", data)
        .ok()
        .json();
    let text = |name: &str| added[name].as_str().expect("text").to_owned();
    let alice = Client {
        address: SocketAddr::from(([127, 0, 0, 1], port)),
        access_key_id: text("access_key_id"),
        secret_access_key: text("secret_access_key"),
    };
    for host in ["localhost", "s3.test"] {
        let answer = alice.get_over_tls(host, "/", &pem).expect("it is trusted");
        answer.is(200);
    }
    assert!(alice.get_over_tls("elsewhere.test", "/", &pem).is_err());
    served.stop();
    // It is kept, until it is to be for other names.
    let served = with(&["--tls-self-made"]);
    assert_eq!(after(&served.said(), "SHA-256"), fingerprint);
    served.stop();
    let served = with(&["--tls-self-made", "--s3-domain", "other.test"]);
    assert_ne!(after(&served.said(), "SHA-256"), fingerprint);
    served.stop();
}

/// A plain copy of a bucket has its versions as files, but not what makes versions of them: it comes back without them, and says
/// so. What goes by reference keeps them.
#[test]
fn versions_come_back_by_reference_alone() {
    let scratch = Scratch::new();
    let (data, copy) = (scratch.path("pool"), scratch.path("copy"));
    let address = free_address();
    let server = serve(&data, None, &address.to_string());
    let said = server.said();
    let root = Client {
        address,
        access_key_id: after(&said, "access_key_id"),
        secret_access_key: after(&said, "secret_access_key"),
    };
    root.put("/bucket", b"").is(200);
    let enabled = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    root.send("PUT", "/bucket", &[("versioning", "")], enabled)
        .is(200);
    let long = "x".repeat(300);
    for key in ["dir/k", "dir/k", "a/b", "a", "..", &long] {
        root.put(&format!("/bucket/{key}"), b"content").is(200);
    }
    root.send("POST", "/bucket/upload", &[("uploads", "")], b"")
        .is(200);
    server.stop();
    cfs!(
        "admin", "snapshot", "create", "/bucket", "--name", "one", "--data", data
    )
    .ok();
    let out = scratch.path("out");
    cfs!("export", "-T", "/bucket", out, "--data", data).ok();
    assert!(out.join(".s3!versions/dir").exists());

    let imported = cfs!("import", "-T", out, "/again", "--data", data);
    assert_eq!(imported.code, 1, "{imported:?}");
    let told = &imported.stderr;
    assert!(
        told.contains(".s3!versions") && told.contains("cfs receive"),
        "{told}"
    );
    assert!(told.contains(".s3!uploads"), "{told}");
    assert_eq!(told.matches("left out").count(), 2, "{told}");
    for directory in [".s3!versions", ".s3!uploads"] {
        let path = format!("/again/{directory}");
        assert_ne!(cfs!("debug", "inode", path, "--data", data).code, 0);
        fs::remove_dir_all(out.join(directory)).expect("it is there");
    }
    // Without them nothing is missed, also over what is there.
    for target in ["/again", "/bucket"] {
        cfs!("import", "-T", out, target, "--data", data).ok();
    }
    let back = scratch.path("back");
    cfs!("export", "-T", "/again", back, "--data", data).ok();
    assert_same(&out, &back);

    let key = scratch.path("replica.key");
    cfs!("admin", "key", "replica", key, "--data", data).ok();
    cfs!("init", "--data", copy, "--replica-of", key).ok();
    let stream = scratch.path("stream");
    let mut send = command(&[&"send", &"/bucket@one", &"--data", &data]);
    send.stdout(fs::File::create(&stream).expect("a file"));
    run(send).ok();
    let mut receive = command(&[&"receive", &"--data", &copy]);
    receive.stdin(fs::File::open(&stream).expect("a file"));
    run(receive).ok();
    let (here, there) = (scratch.path("here"), scratch.path("there"));
    let shown = "/bucket/.snapshots/one";
    cfs!("export", "-T", shown, here, "--data", data).ok();
    cfs!("export", "-T", shown, there, "--data", copy).ok();
    assert!(there.join(".s3!versions/dir").exists());
    assert_same(&here, &there);
    for pool in [&data, &copy] {
        cfs!("admin", "fsck", "--data", pool).ok();
    }
}
