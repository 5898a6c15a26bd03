//! Pools on a host of which others take every byte that they can: a server that is killed starts again and lets files be
//! removed, as often as one likes, and the room of what was removed comes back.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::cfs;
use crate::support::{
    Scratch, Server, as_root, as_root_with_tmpfs, can_mount, command, detach, eventually,
};
use crate::trees::noise;

const HOST_BYTES: u64 = 240 << 20;
const LARGE: u64 = 24;
const LARGE_BYTES: usize = 1 << 20;
const SMALL: u64 = 30;
const SMALL_BYTES: usize = 20_000;

/// Mounts a file system of [`HOST_BYTES`] in a file, which [`Scratch`] takes away. Says so if it cannot.
fn mount_in_file(scratch: &Scratch, at: &Path, kind: &str) -> bool {
    let image = scratch.path("image");
    let file = File::create(&image).expect("a file");
    file.set_len(HOST_BYTES).expect("a sparse file");
    let done = |program: &str, arguments: &[&Path]| {
        let output = Command::new(program).args(arguments).output();
        output.map_or_else(
            |error| Err(error.to_string()),
            |output| match output.status.success() {
                true => Ok(()),
                false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            },
        )
    };
    let made = done(&format!("mkfs.{kind}"), &["-q".as_ref(), &image]);
    let mounted = made.and_then(|()| done("mount", &["-o".as_ref(), "loop".as_ref(), &image, at]));
    if let Err(why) = &mounted {
        eprintln!("SKIPPED: {kind} cannot be mounted from a file here: {why}");
    }
    mounted.is_ok()
}

struct World {
    host: PathBuf,
    data: PathBuf,
    mount: PathBuf,
    options: Vec<&'static str>,
    server: Option<Server>,
}

impl World {
    fn new(scratch: &Scratch, options: &[&'static str]) -> Self {
        let host = scratch.path("host");
        let mut world = Self {
            data: host.join("pool"),
            mount: scratch.dir("mount"),
            options: options.to_vec(),
            server: None,
            host,
        };
        world.start();
        world
    }

    #[track_caller]
    fn start(&mut self) {
        let (data, mount) = (&self.data, &self.mount);
        detach(mount);
        let mut serving = command(&[&"mount", &"--data", data, mount]);
        serving.args(&self.options);
        // Its log would find no room beside the pool.
        let log = self.mount.with_extension("log");
        self.server = Some(Server::spawn(serving, &log, Some(mount)));
    }

    fn kill(&mut self) {
        self.server.take().expect("it runs").kill();
    }

    /// Another program takes what room the host has.
    fn fill(&self) {
        let path = self.host.join("filler");
        let mut filler = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .expect("a file");
        for _ in 0..2 {
            for piece in [&[1; 1 << 20][..], &[1; 4096]] {
                while filler.write(piece).is_ok_and(|bytes| bytes > 0) {}
            }
            // What was punched is there to be taken once the host's journal says so.
            let _ = filler.sync_all();
        }
    }

    fn large(&self, number: u64) -> PathBuf {
        self.mount.join(format!("large{number}"))
    }

    fn small(&self, number: u64) -> PathBuf {
        self.mount.join(format!("small{number}"))
    }

    fn health(&self) -> String {
        let status = cfs!("admin", "status", "--json", "--data", self.data).ok();
        let status = status.json();
        status["health"].as_str().expect("a word").to_owned()
    }

    fn pool_bytes(&self) -> u64 {
        let pool = fs::metadata(self.data.join("pool")).expect("the pool");
        pool.blocks() * 512
    }

    fn write_files(&self) {
        for number in 0..LARGE {
            fs::write(self.large(number), noise(number + 1, LARGE_BYTES)).expect("written");
        }
        for number in 0..SMALL {
            fs::write(self.small(number), noise(number + 99, SMALL_BYTES)).expect("written");
        }
        let synced = File::open(&self.mount).and_then(|root| root.sync_all());
        synced.expect("synced");
    }

    /// Removes the first large files. More than so many bytes of their room come back.
    #[track_caller]
    fn remove_large(&self, count: u64, bytes: u64) {
        let before = self.pool_bytes();
        for number in 0..count {
            fs::remove_file(self.large(number)).expect("removed");
        }
        eventually("the room of what was removed", || {
            self.pool_bytes() + bytes < before
        });
    }

    #[track_caller]
    fn check_files(&self, smalls: std::ops::Range<u64>) {
        for number in 0..LARGE {
            let content = fs::read(self.large(number)).expect("readable");
            assert!(content == noise(number + 1, LARGE_BYTES), "{number}");
        }
        for number in smalls {
            let content = fs::read(self.small(number)).expect("readable");
            assert!(content == noise(number + 99, SMALL_BYTES), "{number}");
        }
    }
}

/// What a killed server had kept of the host's room was taken for nobody's by the next one, which began by giving it back;
/// and what a checkpoint left of its segments went to whoever asked first.
fn servers_come_back(scratch: &Scratch, options: &[&'static str], rest: Duration) {
    let mut world = World::new(scratch, options);
    world.write_files();
    assert_eq!(world.health(), "good");
    // The log is not empty, or it is, and the background has done what it wants.
    std::thread::sleep(rest);
    world.fill();
    eventually("a full pool", || world.health() == "full");
    for number in 0..20 {
        world.kill();
        world.fill();
        world.start();
        world.fill();
        // Every third one finds an empty log, or what the background has done since.
        if number % 3 == 0 {
            std::thread::sleep(rest);
            world.fill();
        } else {
            fs::remove_file(world.small(number)).expect("removed");
        }
    }
    for number in (0..20).step_by(3) {
        fs::remove_file(world.small(number)).expect("removed");
    }
    world.check_files(20..SMALL);
    let removed = LARGE / 2;
    // Some goes into what is kept for the next time.
    world.remove_large(removed, removed * LARGE_BYTES as u64 / 2);
    // It is there for new files, and the others are what they were.
    for number in 0..removed {
        let written = fs::write(world.large(number), noise(number + 1, LARGE_BYTES));
        if number < removed / 4 {
            written.expect("written");
        } else if written.is_err() {
            fs::remove_file(world.host.join("filler")).expect("removed");
            fs::write(world.large(number), noise(number + 1, LARGE_BYTES)).expect("written");
        }
    }
    world.check_files(20..SMALL);
    cfs!("admin", "fsck", "--data", world.data).ok();
    world.server.take().expect("it runs").stop();
    cfs!("admin", "fsck", "--data", world.data).ok();
}

#[test]
fn a_killed_server_comes_back_on_a_full_disk() {
    let name = "a_killed_server_comes_back_on_a_full_disk";
    if !can_mount(name) || !as_root(name) {
        return;
    }
    for kind in ["ext4", "xfs"] {
        let scratch = Scratch::new();
        let host = scratch.dir("host");
        if mount_in_file(&scratch, &host, kind) {
            servers_come_back(&scratch, &[], Duration::from_secs(3));
        }
    }
}

/// A pool that is closed keeps no more than opening it takes.
#[test]
fn a_closed_pool_opens_on_a_full_disk() {
    let name = "a_closed_pool_opens_on_a_full_disk";
    if !can_mount(name) || !as_root(name) {
        return;
    }
    let scratch = Scratch::new();
    let host = scratch.dir("host");
    if !mount_in_file(&scratch, &host, "ext4") {
        return;
    }
    let mut world = World::new(&scratch, &[]);
    world.write_files();
    world.server.take().expect("it runs").stop();
    world.fill();
    for _ in 0..2 {
        world.start();
        world.fill();
        world.kill();
    }
    world.start();
    let server = world.server.as_ref().expect("it runs");
    let lock = fs::read_to_string(world.data.join("lock")).expect("a lock");
    assert_eq!(lock.trim(), server.pid().to_string());
    let removed = LARGE - 4;
    // What is kept while it is served comes from the same room: some 10 MiB.
    world.remove_large(removed, removed * LARGE_BYTES as u64 / 4);
    for number in 0..removed {
        // The server goes on to empty segments, on a busy machine for some seconds.
        eventually("room for names", || {
            fs::write(world.large(number), b"").is_ok()
        });
    }
    for number in removed..LARGE {
        let content = fs::read(world.large(number)).expect("readable");
        assert!(content == noise(number + 1, LARGE_BYTES), "{number}");
    }
    world.server.take().expect("it runs").stop();
    cfs!("admin", "fsck", "--data", world.data).ok();
}

#[test]
fn a_killed_server_of_a_small_pool_comes_back_on_a_full_tmpfs() {
    let name = "a_killed_server_of_a_small_pool_comes_back_on_a_full_tmpfs";
    if !can_mount(name) || !as_root(name) {
        return;
    }
    let scratch = Scratch::new();
    let host = scratch.dir("host");
    if as_root_with_tmpfs(&host, &format!("size={HOST_BYTES}")) {
        servers_come_back(
            &scratch,
            &["--pool-size", "128M"],
            Duration::from_millis(2500),
        );
    }
}

/// The error spoke of room in the pool.
#[test]
fn what_is_said_of_a_disk_without_room_to_open_a_pool() {
    let name = "what_is_said_of_a_disk_without_room_to_open_a_pool";
    if !as_root(name) {
        return;
    }
    let scratch = Scratch::new();
    let (data, host) = (scratch.path("pool"), scratch.dir("host"));
    let source = scratch.file("note", &"content ".repeat(9000));
    let serving = command(&[&"server", &"--data", &data, &"--s3", &"off"]);
    let server = Server::spawn(serving, &data, None);
    cfs!("import", source, "/note", "--data", data).ok();
    server.kill();
    if !as_root_with_tmpfs(&host, "size=64m") {
        return;
    }
    // A copy has nothing of the room that is kept.
    let copy = host.join("pool");
    let mut copying = Command::new("cp");
    copying.args(["-r", "--sparse=always"]).args([&data, &copy]);
    assert!(copying.status().expect("cp").success());
    let mut filler = File::create(host.join("filler")).expect("a file");
    while filler.write(&[1; 4096]).is_ok_and(|bytes| bytes > 0) {}
    drop(filler);
    let said = format!(
        "the disk that holds {} is full: opening the pool to write takes 5.50 MiB there, which has 0 B free",
        copy.join("pool").display()
    );
    for _ in 0..2 {
        cfs!("server", "--data", copy).refused(7, &said);
    }
    let out = scratch.path("out");
    cfs!("export", "/note", out, "--data", copy).ok();
    fs::remove_file(host.join("filler")).expect("removed");
    cfs!("admin", "fsck", "--data", copy).ok();
    let server = Server::spawn(
        command(&[&"server", &"--data", &copy, &"--s3", &"off"]),
        &data,
        None,
    );
    server.stop();
}
