//! A pool, its mount point and the process that serves them, for long tests; all three are removed in the end.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context as _, ensure};

use crate::s3_client::Account;

/// The pool, the mount point and the process that serves them. Dropping it removes all three.
pub(crate) struct Place {
    binary: PathBuf,
    dir: PathBuf,
    server: Option<Child>,
    options: Vec<String>,
}

/// The program to test: the one that is given, or the one beside this.
///
/// # Errors
/// There is no such program.
pub(crate) fn binary(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let beside = std::env::current_exe()?.with_file_name("cfs");
    // It runs in other directories.
    let binary = std::path::absolute(given.unwrap_or(&beside))?;
    ensure!(
        binary.is_file(),
        "{} does not exist; build it, or give --cfs",
        binary.display()
    );
    Ok(binary)
}

impl Place {
    /// A new directory below `parent`, with nothing in it yet. `binary` is the program; by default the one beside this.
    ///
    /// # Errors
    /// There is no such program, or the directory cannot be made.
    pub fn new(parent: &Path, name: &str, binary: Option<&Path>) -> anyhow::Result<Self> {
        let binary = self::binary(binary)?;
        let dir = parent.join(format!("cfs-{name}-{}", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Self {
            binary,
            dir,
            server: None,
            options: Vec::new(),
        })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn data(&self) -> PathBuf {
        self.dir.join("pool")
    }

    pub fn mnt(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    /// Gives the server more options from its next start on.
    pub fn with(&mut self, options: &[&str]) {
        let options = options.iter().map(|option| (*option).to_owned());
        self.options.extend(options);
    }

    /// Gives the server these options from its next start on, and none that it had.
    pub fn with_only(&mut self, options: &[&str]) {
        self.options.clear();
        self.with(options);
    }

    /// Has the server speak S3 from its next start on; where.
    ///
    /// # Errors
    /// There is no free port.
    pub fn with_s3(&mut self) -> anyhow::Result<SocketAddr> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        self.with(&["--s3", &address.to_string()]);
        Ok(address)
    }

    /// A new user of the S3 face that speaks at `address`.
    ///
    /// # Errors
    /// The pool cannot be opened, or has the user already.
    pub fn account(&self, address: SocketAddr, name: &str) -> anyhow::Result<Account> {
        let added = output(&mut self.cfs(&["admin", "user", "add", name, "--json"]))?;
        let added: serde_json::Value = serde_json::from_str(&added)?;
        let text = |field: &str| {
            let text = added[field].as_str();
            text.map(str::to_owned)
                .with_context(|| format!("{field} is missing in {added}"))
        };
        Ok(Account {
            address,
            access_key_id: text("access_key_id")?,
            secret_access_key: text("secret_access_key")?,
        })
    }

    /// The process number of the server.
    pub fn pid(&mut self) -> u32 {
        self.server().id()
    }

    pub fn cfs(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments).arg("--data").arg(self.data());
        command
    }

    /// Starts the server and waits until it is ready.
    pub fn start(&mut self, mounted: bool) -> anyhow::Result<()> {
        let stdout = self.spawn(mounted)?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line.starts_with("ready"), "the server did not start");
        Ok(())
    }

    /// Starts the server and does not wait for it.
    pub fn spawn(&mut self, mounted: bool) -> anyhow::Result<ChildStdout> {
        let mut command = self.cfs(&["server", "--log", "warn,s3s=off"]);
        command.args(&self.options);
        if mounted {
            // What is there may be a dead mount, which the server takes away.
            match std::fs::create_dir(self.mnt()) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(error).context("making the mount point");
                }
                _ => {}
            }
            command.arg("--mount").arg(self.mnt());
        }
        // It ends when this program says so, not when the terminal does.
        let mut child = command.process_group(0).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().expect("piped");
        self.server = Some(child);
        Ok(stdout)
    }

    fn server(&mut self) -> &mut Child {
        self.server.as_mut().expect("it was started")
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.server().kill()?;
        self.server().wait()?;
        self.server = None;
        Ok(())
    }

    /// Ends it in order.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let child = self.server();
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = child.wait()?;
        self.server = None;
        ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }

    /// Stored bytes of the chunks, and bytes of the pool.
    pub fn stored(&self) -> anyhow::Result<(u64, u64)> {
        let status = self.status()?;
        Ok((
            number(&status, "stored_bytes")?,
            number(&status, "pool_bytes")?,
        ))
    }

    /// Bytes of the log since the last checkpoint.
    pub fn journal_bytes(&self) -> anyhow::Result<u64> {
        number(&self.status()?, "journal_bytes")
    }

    fn status(&self) -> anyhow::Result<serde_json::Value> {
        let status = output(&mut self.cfs(&["admin", "status", "--json"]))?;
        Ok(serde_json::from_str(&status)?)
    }

    pub fn resident_mib(&mut self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/status", self.server().id());
        let status = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.trim().split(' ').next())
            .context("no VmRSS")?;
        Ok(kib.parse::<u64>()? >> 10)
    }

    pub fn remove(mut self) -> anyhow::Result<()> {
        self.take_away()
    }

    fn take_away(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.server.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Dead mounts too; there may be none. Users other than root need the helper.
        let flags = rustix::mount::UnmountFlags::DETACH;
        if rustix::mount::unmount(self.mnt(), flags) == Err(rustix::io::Errno::PERM) {
            let _ = Command::new("fusermount3")
                .arg("-uzq")
                .arg(self.mnt())
                .status();
        }
        match std::fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", self.dir.display()))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = self.take_away() {
            eprintln!("{error:#}");
        }
    }
}

fn number(status: &serde_json::Value, name: &str) -> anyhow::Result<u64> {
    let number = status[name].as_u64();
    number.with_context(|| format!("{name} is missing in {status}"))
}

pub(crate) fn run_command(command: &mut Command) -> anyhow::Result<()> {
    output(command).map(drop)
}

/// What a command prints. It must succeed.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
