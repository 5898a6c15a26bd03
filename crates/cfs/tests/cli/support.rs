//! Processes, scratch directories and mounts that go away by themselves.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Nothing here takes longer, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A directory that is removed at the end, after what is mounted in it.
pub struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("cfs-test-")
            .tempdir()
            .expect("a temporary directory");
        Self { dir }
    }

    /// A path in it that nothing was made at.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A directory in it.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).expect("a directory");
        path
    }

    /// A file in it.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("our own");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in table.lines().rev() {
            let Some(at) = line.split(' ').nth(4) else {
                continue;
            };
            if Path::new(at).starts_with(self.dir.path()) {
                detach(Path::new(at));
            }
        }
    }
}

/// Takes a mount away, whatever state it is in.
pub fn detach(path: &Path) {
    let flags = rustix::mount::UnmountFlags::DETACH;
    if rustix::mount::unmount(path, flags).is_err() {
        let _ = Command::new("fusermount3").arg("-uz").arg(path).output();
    }
}

/// What a command came to.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Done {
    /// Insists on success.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }

    /// Insists on a refusal: this exit code, and these words in what is said.
    #[track_caller]
    pub fn refused(self, code: i32, words: &str) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.stderr.contains(words), "{words:?} is not in {self:?}");
        assert!(self.stderr.starts_with("error: "), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

pub fn command(arguments: &[&dyn AsRef<OsStr>]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cfs"));
    command
        .args(arguments.iter().map(AsRef::as_ref))
        .env_remove("CFS_PASSPHRASE")
        .env_remove("CFS_NEW_PASSPHRASE")
        .env_remove("CFS_TARGET_PASSPHRASE")
        .env_remove("CFS_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Makes commands that run what they are given as another user, who may read and write what root may. None, loudly, where that cannot be.
pub fn as_nobody() -> Option<impl Fn() -> Command> {
    const CAPABILITIES: &str = "+dac_override,+dac_read_search";
    let make = || {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .args(["--inh-caps", CAPABILITIES, "--ambient-caps", CAPABILITIES])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    };
    if make().arg("true").status().is_ok_and(|it| it.success()) {
        return Some(make);
    }
    eprintln!("SKIPPED: not root, or without setpriv (util-linux)");
    None
}

/// Runs a command to its end, which must come in time.
#[track_caller]
pub fn run(mut command: Command) -> Done {
    let mut child = command.spawn().expect("the command starts");
    let collect = |stream: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            // None where the test has its own place for it.
            let mut stream = stream.unwrap_or_else(|| Box::new(std::io::empty()));
            let mut text = Vec::new();
            stream.read_to_end(&mut text).expect("a pipe can be read");
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    let stdout = collect(child.stdout.take().map(|it| Box::new(it) as _));
    let stderr = collect(child.stderr.take().map(|it| Box::new(it) as _));
    let code = wait(&mut child);
    Done {
        code,
        stdout: stdout.join().expect("collected"),
        stderr: stderr.join().expect("collected"),
    }
}

/// `cfs` with these arguments.
#[macro_export]
macro_rules! cfs {
    ($($argument:expr),+ $(,)?) => {
        $crate::support::run($crate::support::command(&[$(&$argument),+]))
    };
}

#[track_caller]
fn wait(child: &mut Child) -> i32 {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("our own child") {
            return status.code().unwrap_or(-1);
        }
        if started.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the command did not end within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Interrupts a command, so long after it has begun to heed that. It may have ended before.
#[track_caller]
pub fn interrupt(child: &Child, after: Duration) {
    const INTERRUPT: u64 = 1 << (libc::SIGINT - 1);
    let pid = Pid::from_child(child);
    let status = format!("/proc/{}/status", pid.as_raw_nonzero());
    eventually("the command heeds signals", || {
        let status = fs::read_to_string(&status).expect("our own child");
        let caught = status.lines().find_map(|it| it.strip_prefix("SigCgt:"));
        // One that has ended, and was not waited for, has none.
        caught.is_none_or(|caught| {
            let caught = u64::from_str_radix(caught.trim(), 16).expect("digits");
            caught & INTERRUPT != 0 || status.contains("State:\tZ")
        })
    });
    std::thread::sleep(after);
    kill_process(pid, Signal::INT).expect("our own child");
}

/// A `cfs` that serves until it is told to end, or dropped.
pub struct Server {
    child: Child,
    mount: Option<PathBuf>,
    /// Its line that starts with "ready".
    pub ready: String,
    stderr: PathBuf,
}

impl Server {
    /// `cfs server --data data [--mount mount]`, ready.
    #[track_caller]
    pub fn start(data: &Path, mount: Option<&Path>) -> Self {
        let mut command = command(&[&"server", &"--data", &data]);
        if let Some(mount) = mount {
            command.arg("--mount").arg(mount);
        }
        Self::spawn(command, data, mount)
    }

    /// Waits until `command` is ready.
    #[track_caller]
    pub fn spawn(mut command: Command, data: &Path, mount: Option<&Path>) -> Self {
        let stderr = data.with_extension("stderr");
        let log = File::create(&stderr).expect("a log file");
        let mut child = command.stderr(log).spawn().expect("the server starts");
        let stdout = child.stdout.take().expect("piped");
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = sender.send(line);
        });
        let mut server = Self {
            child,
            mount: mount.map(Path::to_path_buf),
            ready: String::new(),
            stderr,
        };
        server.ready = receiver.recv_timeout(PATIENCE).unwrap_or_default();
        assert!(
            server.ready.starts_with("ready: "),
            "not ready: {:?}, {}",
            server.ready,
            server.said()
        );
        server
    }

    /// What it has said on standard error.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("our own child");
    }

    /// Waits for its end by itself.
    #[track_caller]
    pub fn end(mut self) -> i32 {
        wait(&mut self.child)
    }

    /// Ends it in order; it must succeed.
    #[track_caller]
    pub fn stop(self) {
        self.signal(Signal::TERM);
        let stderr = self.stderr.clone();
        let code = self.end();
        let said = fs::read_to_string(stderr).unwrap_or_default();
        assert_eq!(code, 0, "{said}");
    }

    /// `kill -9`. What was mounted stays behind, dead.
    pub fn kill(mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
        self.mount = None;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(mount) = &self.mount {
            detach(mount);
        }
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether mounts can be tried here. Says so if not.
pub fn can_mount(test: &str) -> bool {
    let device = File::options().read(true).write(true).open("/dev/fuse");
    let helper = is_root() || Command::new("fusermount3").arg("-V").output().is_ok();
    match device {
        Ok(_) if helper => true,
        why => {
            let why = why.map_or_else(|error| error.to_string(), |_| "no fusermount3".to_owned());
            assert!(
                std::env::var_os("CFS_REQUIRE_FUSE").is_none(),
                "{test} needs FUSE: {why}"
            );
            eprintln!("SKIPPED {test}: FUSE cannot be used here: {why}");
            false
        }
    }
}

/// Whether this test can be done as this user. Says so if not.
pub fn as_root(test: &str) -> bool {
    if !is_root() {
        eprintln!("SKIPPED {test}: only root can do it");
    }
    is_root()
}

/// Mounts a file system in memory, which [`Scratch`] takes away. Says so if it cannot.
pub fn as_root_with_tmpfs(path: &Path, options: &str) -> bool {
    let options = std::ffi::CString::new(options).expect("no zeros");
    let flags = rustix::mount::MountFlags::empty();
    let mounted = rustix::mount::mount("tmpfs", path, "tmpfs", flags, &*options);
    if let Err(errno) = mounted {
        eprintln!("SKIPPED: a tmpfs cannot be mounted here: {errno}");
    }
    mounted.is_ok()
}

/// Waits until `condition` holds.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}
