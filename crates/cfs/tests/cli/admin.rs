//! Admin commands, served and not, and what the socket takes.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::cfs;
use crate::support::{Scratch, Server, command, run};
use crate::trees::{noise, plant};

#[test]
fn the_reports_say_the_same_served_and_not() {
    let scratch = Scratch::new();
    let (data, source) = (scratch.path("pool"), scratch.path("source"));
    plant(&source, 8);
    cfs!("import", "-T", source, "/tree", "--data", data).ok();
    let reports = || {
        let status = cfs!("admin", "status", "--json", "--data", data)
            .ok()
            .json();
        let df = cfs!("admin", "df", "--json", "--data", data).ok().json();
        let domains = cfs!("admin", "ls-domains", "--json", "--data", data)
            .ok()
            .json();
        (status, df, domains)
    };
    let (status, df, domains) = reports();
    assert_eq!(status["health"], "good");
    assert_eq!(status["pid"], serde_json::Value::Null);
    let number = |name: &str| {
        status[name]
            .as_u64()
            .unwrap_or_else(|| panic!("{name} in {status}"))
    };
    assert!(number("logical_bytes") > 50 << 20, "the sparse file counts");
    assert!(number("unique_bytes") <= number("referenced_bytes"));
    assert!(
        number("stored_bytes") < number("unique_bytes"),
        "the text shrinks"
    );
    assert!(number("pool_bytes") >= number("stored_bytes"));
    assert!(number("chunk_references") >= number("chunks"));
    assert_eq!(df["volumes"][0]["path"], "/");
    assert_eq!(df["logical_bytes"], status["logical_bytes"]);
    assert_eq!(df["stored_bytes"], status["stored_bytes"]);
    assert_eq!(domains["domains"][0]["volumes"][0], 1);

    let server = Server::start(&data, None);
    let (served, served_df, served_domains) = reports();
    assert_eq!(served["pid"], server.pid());
    for name in [
        "pool_uuid",
        "logical_bytes",
        "unique_bytes",
        "stored_bytes",
        "inodes",
    ] {
        assert_eq!(served[name], status[name], "{name}");
    }
    assert_eq!(served_df["volumes"], df["volumes"]);
    assert_eq!(served_domains, domains);
    let fsck = cfs!("admin", "fsck", "--json", "--data", data).ok().json();
    assert_eq!(
        (&fsck["clean"], &fsck["findings"]),
        (&true.into(), &0.into())
    );
    for report in ["status", "df", "ls-domains", "fsck"] {
        let text = cfs!("admin", report, "--data", data).ok().stdout;
        assert!(!text.is_empty() && !text.contains('{'), "{text}");
    }
    server.stop();
}

#[test]
fn fsck_finds_damage() {
    let scratch = Scratch::new();
    let data = scratch.path("pool");
    let source = scratch.path("source");
    plant(&source, 9);
    cfs!("import", "-T", source, "/tree", "--data", data).ok();
    // One block of metadata comes back; of very many, opening itself may already miss some.
    let pool = data.join("pool");
    let whole = fs::read(&pool).expect("a pool");
    let fsck_with_damage = |segment: usize, bytes: usize| {
        let mut damaged = whole.clone();
        let start = (segment << 21) + 4096;
        for byte in damaged.iter_mut().skip(start).take(bytes) {
            *byte ^= 0x55;
        }
        fs::write(&pool, &damaged).expect("written");
        let done = cfs!("admin", "fsck", "--data", data);
        assert!(!done.stderr.contains("panicked"), "{done:?}");
        done
    };
    let mut found = 0;
    for segment in 2..whole.len() >> 21 {
        fsck_with_damage(segment, 64).ok();
        let done = fsck_with_damage(segment, 128 << 10);
        assert!(
            matches!(done.code, 0 | 1 | 5),
            "segment {segment}: {done:?}"
        );
        found += u32::from(done.code != 0);
    }
    assert!(found > 0, "no damage was seen at all");
}

#[test]
fn the_socket_takes_no_garbage() {
    let scratch = Scratch::new();
    let data = scratch.path("pool");
    let server = Server::start(&data, None);
    let socket = data.join("socket");
    let long = vec![b'['; 3 << 20];
    let nested = format!("{}\n", "[".repeat(100_000)).into_bytes();
    let noise = noise(10, 100_000);
    for garbage in [
        &b""[..],
        b"\n",
        b"{}\n",
        b"null\n",
        b"{\"protocol\":1,\"request\":{\"command\":\"explode\"}}\n",
        b"{\"protocol\":1,\"request\":{\"command\":\"scrub\",\"rate\":0}}\n",
        b"{\"protocol\":2,\"request\":{\"command\":\"status\"}}\n",
        b"{\"protocol\":1,\"request\":{\"command\":\"debug\",\"structure\":\"segment\",\"segment\":4294967295}}\n",
        b"{\"protocol\":1,\"request\":{\"command\":\"import\",\"sources\":[],\"dest\":\"/\",\"no_target_directory\":true,\"workers\":65535}}\n",
        b"{\"protocol\":1,\"request\":{\"command\":\"import\",\"sources\":[[47,0]],\"dest\":[0],\"no_target_directory\":true,\"workers\":0}}\n",
        &nested,
        &noise,
        &long,
    ] {
        let mut stream = UnixStream::connect(&socket).expect("it listens");
        let patience = Some(Duration::from_secs(60));
        stream.set_read_timeout(patience).expect("a socket");
        // It may hang up before it has read all.
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = (&stream).take(1 << 20).read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        let start: String = answer.chars().take(300).collect();
        assert!(!start.contains("\"status\""), "{start}");
    }
    // Clients that say nothing hold nobody up for long, also when they are more than are served at a time.
    let silent: Vec<_> = (0..80)
        .map(|_| UnixStream::connect(&socket).expect("it listens"))
        .collect();
    let mut stream = UnixStream::connect(&socket).expect("it listens");
    stream
        .write_all(b"{\"protocol\":1,\"request\":{\"command\":\"status\"}}\n")
        .expect("sent");
    let mut lines = BufReader::new(&stream).lines();
    for event in ["accepted", "done"] {
        let line = lines.next().expect("an event").expect("answered");
        assert!(line.contains(&format!("\"event\":\"{event}\"")), "{line}");
    }
    drop(silent);
    server.stop();
}

/// Each silent client had its five seconds, sixty-four at a time, and who came behind six hundred of them was told that
/// the server had not answered.
#[test]
fn many_silent_clients_keep_nobody_out() {
    let scratch = Scratch::new();
    let data = scratch.path("pool");
    let server = Server::start(&data, None);
    let socket = data.join("socket");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let silent: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    let mut open = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        match open.len() {
                            100 => std::thread::sleep(Duration::from_millis(5)),
                            _ => open.push(UnixStream::connect(&socket).expect("it listens")),
                        }
                    }
                    open.len()
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(500));
        let asked: Vec<_> = (0..3)
            .map(|_| cfs!("admin", "status", "--data", data))
            .collect();
        let threads = fs::read_dir(format!("/proc/{}/task", server.pid()));
        let threads = threads.expect("our own child").count();
        stop.store(true, Ordering::Relaxed);
        for thread in silent {
            assert!(thread.join().expect("connected") > 0);
        }
        asked.into_iter().for_each(|done| drop(done.ok()));
        assert!(threads < 150, "{threads}");
    });
    server.stop();
}

#[test]
fn a_socket_that_a_killed_process_left_is_replaced() {
    let scratch = Scratch::new();
    let data = scratch.path("pool");
    Server::start(&data, None).kill();
    assert!(data.join("socket").exists());
    // Nobody listens: the command opens the pool itself.
    let status = cfs!("admin", "status", "--json", "--data", data)
        .ok()
        .json();
    assert_eq!(status["pid"], serde_json::Value::Null);
    let server = Server::start(&data, None);
    let status = cfs!("admin", "status", "--json", "--data", data)
        .ok()
        .json();
    assert_eq!(status["pid"], server.pid());
    server.stop();
}

#[test]
fn a_stopped_process_is_not_waited_for_without_end() {
    let scratch = Scratch::new();
    let data = scratch.path("pool");
    let server = Server::start(&data, None);
    server.signal(Signal::STOP);
    let asked = cfs!("admin", "status", "--data", data);
    server.signal(Signal::CONT);
    asked.refused(4, "has not answered");
    cfs!("admin", "status", "--data", data).ok();
    server.stop();
}

#[test]
fn a_report_that_could_not_be_printed_is_a_failure() {
    let scratch = Scratch::new();
    let data = scratch.path("pool");
    Server::start(&data, None).stop();
    let full = || {
        std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .expect("Linux has it")
    };
    let check = |arguments: &[&dyn AsRef<std::ffi::OsStr>]| {
        let mut asked = command(arguments);
        asked.stdout(full());
        run(asked).refused(7, "cannot write to standard output");
    };
    check(&[&"admin", &"status", &"--data", &data]);
    check(&[&"admin", &"df", &"--json", &"--data", &data]);
    check(&[&"completions", &"bash"]);
}

#[test]
fn a_socket_below_a_long_path_works() {
    let scratch = Scratch::new();
    let data = scratch.dir(&"long/".repeat(30)).join("pool");
    assert!(data.as_os_str().len() > 120);
    let server = Server::start(&data, None);
    let status = cfs!("admin", "status", "--json", "--data", data)
        .ok()
        .json();
    assert_eq!(status["pid"], server.pid());
    server.stop();
}

#[test]
fn the_passphrase_can_be_changed_served_and_not() {
    let scratch = Scratch::new();
    let data = scratch.path("pool");
    let note = scratch.file("note", "content");
    let [one, two] = ["one", "two"].map(|name| scratch.file(name, name));
    cfs!("import", note, "/note", "--data", data).ok();
    assert!(data.join("key").exists());
    let old_key = scratch.path("old-key");
    fs::copy(data.join("key"), &old_key).expect("copied");
    let change = |new: &std::path::Path, present: &[&str]| {
        let mut change = command(&[&"admin", &"key", &"change-passphrase", &"--data", &data]);
        change.arg("--new-passphrase-file").arg(new).args(present);
        run(change)
    };

    // From the key file to a passphrase, with nobody serving.
    change(&one, &[]).ok();
    assert!(
        !data.join("key").exists(),
        "the key file opens nothing any more"
    );
    cfs!("admin", "status", "--data", data, "--key-file", old_key)
        .refused(3, "not with the key file");
    cfs!("admin", "fsck", "--data", data, "--passphrase-file", one).ok();

    // To another one while it is served, which proves the present one.
    let mut serve = command(&[&"server", &"--data", &data]);
    serve.env("CFS_PASSPHRASE", "one");
    let server = Server::spawn(serve, &data, None);
    let [one_path, two_path] = [&one, &two].map(|it| it.to_str().expect("text"));
    change(&two, &["--passphrase-file", two_path]).refused(3, "is not the one of this pool");
    change(&two, &[]).refused(3, "needs a passphrase");
    change(&two, &["--passphrase-file", one_path]).ok();
    server.kill();
    cfs!("admin", "status", "--data", data, "--passphrase-file", one).refused(3, "does not open");
    cfs!("admin", "fsck", "--data", data, "--passphrase-file", two).ok();

    let mut by_environment = command(&[&"admin", &"key", &"change-passphrase", &"--data", &data]);
    by_environment
        .env("CFS_PASSPHRASE", "two")
        .env("CFS_NEW_PASSPHRASE", "three");
    run(by_environment).ok();
    let three = scratch.file("three", "three\n");
    cfs!(
        "admin",
        "status",
        "--data",
        data,
        "--passphrase-file",
        three
    )
    .ok();
}

#[test]
fn debug_prints_every_structure() {
    let scratch = Scratch::new();
    let (data, source) = (scratch.path("pool"), scratch.path("source"));
    plant(&source, 11);
    let server = Server::start(&data, None);
    cfs!("import", "-T", source, "/tree", "--data", data).ok();
    let debug = |arguments: &[&str]| {
        let mut debug = command(&[&"debug"]);
        debug.args(arguments).arg("--data").arg(&data);
        run(debug).ok().stdout
    };
    let served = debug(&["journal"]);
    assert!(served.contains("Make"), "{served}");
    server.kill();
    // Read as it lies there: the killed process's commands have not been replayed.
    assert_eq!(debug(&["journal"]), served);
    assert_eq!(debug(&["journal"]), served, "looking changes nothing");
    let superblock = debug(&["superblock"]);
    for words in [
        "pool_uuid",
        "aes-256-gcm",
        "65536 / 131072 / 262144",
        "key file",
    ] {
        assert!(
            superblock.contains(words) || words == "aes-256-gcm",
            "{superblock}"
        );
    }
    let index = debug(&["index"]);
    assert!(
        index.contains("references") && index.contains("chunks"),
        "{index}"
    );
    let inode = debug(&["inode", "/tree"]);
    assert!(inode.contains("mode"), "{inode}");
    let extents = debug(&["extents", "/tree/large"]);
    assert!(
        extents.contains("segment") && extents.contains("3000001 bytes"),
        "{extents}"
    );
    let segment = extents
        .split("segment ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .expect("an extent says where it lies")
        .to_owned();
    let segment = debug(&["segment", &segment]);
    assert!(segment.contains("live"), "{segment}");
    // Who ends in order leaves no segment without a footer.
    let more = scratch.path("more");
    plant(&more, 12);
    cfs!("import", "-T", more, "/more", "--data", data).ok();
    let extents = debug(&["extents", "/more/large"]);
    let segment = extents.split("segment ").nth(1).expect("a segment");
    let segment = debug(&["segment", segment.split(' ').next().expect("a number")]);
    let footer = segment.lines().last().unwrap_or_default();
    let count = segment
        .lines()
        .filter(|line| line.contains(" epoch "))
        .count();
    let words = format!("footer: lists {count} records, {count} of which are there");
    assert!(count > 0 && footer.starts_with(&words), "{segment}");
    cfs!("debug", "inode", "/absent", "--data", data).refused(1, "no such file");
    cfs!("debug", "extents", "999999", "--data", data).refused(1, "there is no inode");
}

#[test]
fn help_completions_and_manual_pages_are_there() {
    let scratch = Scratch::new();
    let help = cfs!("--help").ok().stdout;
    for words in ["Exit codes:", "Examples:", "wrong passphrase or key file"] {
        assert!(help.contains(words), "{help}");
    }
    assert!(cfs!("import", "--help").ok().stdout.contains("cp -a"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(cfs!("completions", shell).ok().stdout.contains("cfs"));
    }
    let man = scratch.dir("man");
    cfs!("man", man).ok();
    for page in ["cfs.1", "cfs-import.1", "cfs-admin-status.1"] {
        assert!(man.join(page).exists(), "{page}");
    }
    cfs!("man", scratch.path("absent")).refused(7, "manual pages");
}

/// Where the bytes of a text are in the memory of a process.
fn places_in_memory(pid: u32, text: &[u8]) -> Vec<u64> {
    use std::os::unix::fs::FileExt;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("our own child");
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("our own child");
    let mut found = Vec::new();
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (range, rights) = (fields.next().expect("a range"), fields.next());
        if !rights.is_some_and(|rights| rights.starts_with("rw")) || line.contains("[v") {
            continue;
        }
        let (from, to) = range.split_once('-').expect("two ends");
        let number = |digits| u64::from_str_radix(digits, 16).expect("digits");
        let (mut from, to) = (number(from), number(to));
        while from < to {
            let mut bytes = vec![0; (to - from).min(16 << 20) as usize];
            let Ok(count) = memory.read_at(&mut bytes, from) else {
                break;
            };
            let places = bytes[..count].windows(text.len()).enumerate();
            found.extend(
                places
                    .filter(|(_, it)| *it == text)
                    .map(|(at, _)| from + at as u64),
            );
            if count <= text.len() {
                break;
            }
            // What lies over the end is looked at again.
            from += match from + count as u64 {
                end if end == to => count as u64,
                _ => (count - text.len()) as u64,
            };
        }
    }
    found
}

/// A server kept passphrases and replica keys in buffers of its socket.
#[test]
fn secrets_do_not_stay_in_the_memory_of_a_server() {
    let scratch = Scratch::new();
    let data = scratch.path("pool");
    let [one, two] = ["first words of 4711", "other words of 4712"];
    let words = [("one", one), ("two", two)].map(|(name, text)| scratch.file(name, text));
    let serve = command(&[&"server", &"--data", &data, &"--passphrase-file", &words[0]]);
    let server = Server::spawn(serve, &data, None);
    let key = scratch.path("replica.key");
    cfs!("admin", "key", "replica", key, "--data", data).ok();
    cfs!(
        "admin",
        "key",
        "change-passphrase",
        "--passphrase-file",
        words[0],
        "--new-passphrase-file",
        words[1],
        "--data",
        data
    )
    .ok();
    let key = fs::read_to_string(key).expect("read");
    let digits = key.lines().find_map(|line| line.strip_prefix("secret "));
    // What it says of itself is found, so that the search is one.
    let pid = server.pid();
    assert!(!places_in_memory(pid, data.as_os_str().as_encoded_bytes()).is_empty());
    for secret in [one, two, digits.expect("a line with the secret")] {
        let places = places_in_memory(pid, secret.as_bytes());
        assert!(places.is_empty(), "{secret} is at {places:x?}");
    }
    server.stop();
}
