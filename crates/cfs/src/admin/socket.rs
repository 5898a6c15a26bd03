//! The admin socket of a process that has a pool: accepts, answers, and goes away with the process.
//!
//! Invariants: the socket is 0600 in a 0700 directory and answers only its own user and root; it exists only while
//! the data directory is locked, so that one found there by the next owner is stale; at most [`CLIENTS_MAX`] clients
//! are served at a time, and others wait, for whom those go that have asked nothing yet, the oldest first; no input makes it
//! panic or grow without bound.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::protocol::{Answer, Envelope, Event, Messages, PROTOCOL, REQUEST_BYTES_MAX, receive};
use super::reporter::{Remote, Reporter};
use super::service::Service;
use crate::datadir::DataDir;
use crate::failure::{Code, Failure, Result};

/// Clients at a time.
const CLIENTS_MAX: usize = 64;
/// How long a client may take to send its request.
const REQUEST_PATIENCE: Duration = Duration::from_secs(5);
/// As above, while others wait for a turn: a `cfs` sends it at once.
const REQUEST_PATIENCE_CROWDED: Duration = Duration::from_millis(250);
/// How long a client may take to read an event.
const CLIENT_PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks whether a client has gone whom others wait for.
const TURN_LOOK: Duration = Duration::from_millis(2);

/// A running admin socket. Dropping it ends it.
pub struct AdminSocket {
    path: PathBuf,
    listener: Arc<UnixListener>,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    service: Arc<Service>,
    stopping: AtomicBool,
    clients: AtomicUsize,
    /// Clients that have not sent their request yet, by their order.
    silent: Mutex<BTreeMap<u64, Silent>>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

/// A client of which no request has come yet.
struct Silent {
    stream: Arc<UnixStream>,
    since: Instant,
}

impl AdminSocket {
    /// Starts to answer. The caller holds the lock of the data directory.
    ///
    /// # Errors
    /// [`Code::Host`] when the socket cannot be made.
    pub fn start(dir: &DataDir, service: Arc<Service>) -> Result<Self> {
        let path = dir.socket();
        dir.remove_dead_streams();
        let listener = bind(dir).map_err(|e| Failure::host("make the socket", &path, &e))?;
        let shared = Arc::new(Shared {
            service,
            stopping: AtomicBool::new(false),
            clients: AtomicUsize::new(0),
            silent: Mutex::default(),
            workers: Mutex::default(),
        });
        let listener = Arc::new(listener);
        let acceptor = std::thread::Builder::new()
            .name("admin".to_owned())
            .spawn({
                let (listener, shared) = (Arc::clone(&listener), Arc::clone(&shared));
                move || accept(&listener, &shared)
            })
            .map_err(|e| Failure::host("start a thread for", &path, &e))?;
        Ok(Self {
            path,
            listener,
            shared,
            acceptor: Some(acceptor),
        })
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        // Ends the `accept` that the acceptor waits in.
        if let Err(errno) = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both) {
            tracing::warn!("cannot end the admin socket: {errno}");
        }
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().expect("a panic ends the process");
        }
        for worker in std::mem::take(&mut *self.shared.workers.lock()) {
            worker.join().expect("a panic ends the process");
        }
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Binds under a temporary name that nobody else can open, then gives the socket its name.
fn bind(dir: &DataDir) -> io::Result<UnixListener> {
    let path = dir.socket();
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let directory = fs::File::open(dir.path())?;
    let listener = UnixListener::bind(through(&directory, "socket"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// A short name of what lies in an open directory: the address of a Unix socket has at most 107 bytes.
pub fn through(directory: &fs::File, name: impl AsRef<Path>) -> PathBuf {
    use std::os::fd::AsRawFd;
    Path::new(&format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name)
}

/// Connects to the process that has the pool; `None` when there is none.
///
/// # Errors
/// When the socket is there and refuses for another reason than that nobody listens.
pub fn connect(dir: &DataDir) -> io::Result<Option<UnixStream>> {
    let directory = match fs::File::open(dir.path()) {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match UnixStream::connect(through(&directory, "socket")) {
        Ok(stream) => Ok(Some(stream)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl Shared {
    /// Returns when a client has gone that one more can take the place of, or at the end.
    fn wait_for_turn(&self) {
        while self.clients.load(Ordering::Relaxed) >= CLIENTS_MAX
            && !self.stopping.load(Ordering::Relaxed)
        {
            self.dismiss_silent();
            std::thread::sleep(TURN_LOOK);
        }
    }

    /// Ends the side of the client that has been silent for longest, unless it may still be about to ask.
    fn dismiss_silent(&self) {
        let mut silent = self.silent.lock();
        let is_due = |oldest: &Silent| oldest.since.elapsed() >= REQUEST_PATIENCE_CROWDED;
        if let Some(oldest) = silent.first_entry()
            && is_due(oldest.get())
        {
            // Who reads there finds the end. One that has gone itself is none the worse.
            let _ = oldest.remove().stream.shutdown(std::net::Shutdown::Read);
        }
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    for number in 0.. {
        let stream = listener.accept();
        // Others wait in the queue of the socket until one has its answer.
        shared.wait_for_turn();
        if shared.stopping.load(Ordering::Relaxed) {
            return;
        }
        let stream = match stream {
            Ok((stream, _)) => Arc::new(stream),
            Err(error) => {
                tracing::warn!("admin socket: {error}");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let mut workers = shared.workers.lock();
        workers.retain(|worker| !worker.is_finished());
        shared.clients.fetch_add(1, Ordering::Relaxed);
        let silent = Silent {
            stream: Arc::clone(&stream),
            since: Instant::now(),
        };
        shared.silent.lock().insert(number, silent);
        let spawned = std::thread::Builder::new()
            .name("admin client".to_owned())
            .spawn({
                let shared = Arc::clone(shared);
                move || {
                    if let Err(error) = converse(&stream, number, &shared) {
                        tracing::debug!("admin client: {error}");
                    }
                    shared.silent.lock().remove(&number);
                    shared.clients.fetch_sub(1, Ordering::Relaxed);
                }
            });
        match spawned {
            Ok(worker) => workers.push(worker),
            Err(error) => {
                shared.silent.lock().remove(&number);
                shared.clients.fetch_sub(1, Ordering::Relaxed);
                tracing::warn!("admin client: {error}");
            }
        }
    }
}

fn converse(stream: &UnixStream, number: u64, shared: &Shared) -> io::Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(stream)?;
    if !peer.uid.is_root() && peer.uid != rustix::process::geteuid() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    stream.set_read_timeout(Some(REQUEST_PATIENCE))?;
    stream.set_write_timeout(Some(CLIENT_PATIENCE))?;
    let reporter = Remote::new(stream, &shared.stopping);
    let request = receive::<Envelope>(&mut Messages::new(stream), REQUEST_BYTES_MAX);
    let was_dismissed = shared.silent.lock().remove(&number).is_none();
    let result = match request {
        Ok(None) if was_dismissed => Err(Failure::new(
            Code::Busy,
            "the process that serves the pool has too many clients, and no request had come",
        )
        .hint("run the command again")),
        Ok(None) => return Ok(()),
        Ok(Some(envelope)) if envelope.protocol == PROTOCOL => {
            reporter.event(&Event::Accepted);
            // Who has waited for its turn may have gone, and told that nothing was done.
            if reporter.cancelled() {
                return Ok(());
            }
            shared.service.perform(envelope.request, &reporter)
        }
        Ok(Some(envelope)) => Err(Failure::new(
            Code::Usage,
            format!(
                "the process that serves the pool is version {} and speaks protocol {PROTOCOL}, not {}",
                env!("CARGO_PKG_VERSION"),
                envelope.protocol
            ),
        )
        .hint("use the same version of cfs for both")),
        Err(error) => Err(Failure::new(
            Code::Usage,
            format!("the request was refused: {error}"),
        )),
    };
    reporter.event(&match result {
        Ok(answer) => Event::Done { answer },
        Err(failure) => Event::Failed { failure },
    });
    Ok(())
}

/// How long an interrupted client waits for the server's last word.
const LAST_WORD_PATIENCE: Duration = Duration::from_secs(10);
/// How long a client waits for the server's first word, which comes at once from one that runs.
const FIRST_WORD_PATIENCE: Duration = Duration::from_secs(10);

/// What the client side of the socket made of an answer.
pub fn ask(stream: &UnixStream, request: &Envelope, reporter: &dyn Reporter) -> Result<Answer> {
    let lost = |error: io::Error| {
        Failure::new(
            Code::Failed,
            format!("the process that serves the pool went away: {error}"),
        )
        .hint("look into its log, then run the command again")
    };
    super::protocol::send(&mut &*stream, request).map_err(lost)?;
    stream
        .set_read_timeout(Some(Duration::from_millis(200)))
        .map_err(lost)?;
    let mut lines = PatientLines {
        stream,
        reporter,
        asked: Instant::now(),
        heard: false,
        hung_up: None,
    };
    let mut reader = Messages::new(&mut lines);
    loop {
        match receive::<Event>(&mut reader, super::protocol::EVENT_BYTES_MAX) {
            Ok(Some(Event::Done { answer })) => return Ok(answer),
            Ok(Some(Event::Failed { failure })) => return Err(failure),
            Ok(Some(event)) => reporter.event(&event),
            Ok(None) if reporter.cancelled() => {
                return Err(Failure::new(Code::Interrupted, "interrupted")
                    .hint("the same command goes on where this one ended; with -T if DEST was not there before"));
            }
            Ok(None) => return Err(lost(io::ErrorKind::UnexpectedEof.into())),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(Failure::new(
                    Code::Busy,
                    format!(
                        "the process that has the pool open has not answered for {} s",
                        FIRST_WORD_PATIENCE.as_secs()
                    ),
                )
                .hint("it is stopped or hangs: `ps -C cfs -o pid,stat,args` shows it; T is stopped, `kill -CONT PID` wakes it"));
            }
            Err(error) => return Err(lost(error)),
        }
    }
}

/// Reads from the server for as long as it takes. When the user interrupts, the server is told, and has the last word:
/// what it was at must not meet the next command. A server that says nothing at all is given up.
struct PatientLines<'a> {
    stream: &'a UnixStream,
    reporter: &'a dyn Reporter,
    asked: Instant,
    /// Whether the server has said anything.
    heard: bool,
    /// When the server was told that the user interrupts.
    hung_up: Option<Instant>,
}

impl io::Read for PatientLines<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            if self
                .hung_up
                .is_some_and(|since| since.elapsed() > LAST_WORD_PATIENCE)
            {
                return Ok(0);
            }
            if !self.heard && self.asked.elapsed() > FIRST_WORD_PATIENCE {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if self.reporter.cancelled() && self.hung_up.is_none() {
                self.hung_up = Some(Instant::now());
                self.stream.shutdown(std::net::Shutdown::Write)?;
            }
            match io::Read::read(&mut &*self.stream, buf) {
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock
                            | io::ErrorKind::TimedOut
                            | io::ErrorKind::Interrupted
                    ) => {}
                result => {
                    self.heard = true;
                    return result;
                }
            }
        }
    }
}
