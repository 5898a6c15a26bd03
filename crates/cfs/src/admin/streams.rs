//! Sending snapshots and receiving them, in whichever process has the pool.
//!
//! The bytes of a stream do not go through the messages of the admin socket. Who asks listens at a socket of its own in
//! the data directory; who has the pool connects to it, and reads and writes the stream there.

use std::io::{self, BufRead, BufWriter, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cfs_fs::stream::{Received, Sent, StreamError};
use cfs_fs::{Fs, FsError};

use super::changes::Observer;
use super::protocol::{Answer, AnyPath, Event, Named, Progress, StreamRequest};
use super::receiver::{Ended, Listening};
use super::report::printable;
use super::reporter::Reporter;
use super::socket::through;
use crate::bytes::{count, show};
use crate::datadir::{Contents, DataDir};
use crate::failure::{Code, Failure, Result, no_thread, plain};
use crate::pool::no_pool;
use crate::transfer::KernelCaches;

/// How long reading or writing may take before it is looked whether to go on.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// How long the last answers of a process that has ended may take to come.
const LAST_ANSWER_PATIENCE: Duration = Duration::from_secs(2);
/// How long the other side may be silent, which may look for what to send meanwhile: who receives keeps others from changing
/// the volume.
const SILENCE_MAX: Duration = Duration::from_secs(3600);
/// Bytes that are written at once.
const BUFFER_BYTES: usize = 256 << 10;

/// One end of a stream that waits for the other side as long as the work goes on.
struct Pipe<'a> {
    stream: UnixStream,
    reporter: &'a dyn Reporter,
}

impl Pipe<'_> {
    fn patiently<T>(&self, mut step: impl FnMut(&UnixStream) -> io::Result<T>) -> io::Result<T> {
        let started = Instant::now();
        loop {
            match step(&self.stream) {
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock
                            | io::ErrorKind::TimedOut
                            | io::ErrorKind::Interrupted
                    ) =>
                {
                    if self.reporter.cancelled() {
                        // Not `Interrupted`, after which callers would try again.
                        return Err(io::Error::other("interrupted"));
                    }
                    if started.elapsed() > SILENCE_MAX {
                        return Err(io::Error::other(
                            "the other side has been silent for too long",
                        ));
                    }
                }
                done => return done,
            }
        }
    }
}

impl Read for &Pipe<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.patiently(|mut stream| stream.read(buf))
    }
}

impl Write for &Pipe<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.patiently(|mut stream| stream.write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What cannot go back before receiving is told in the server's log: the stream that comes next decides about it.
fn tell_log(_: &dyn Reporter, path: &[u8], error: &FsError) {
    let path = printable(&String::from_utf8_lossy(path));
    tracing::warn!("going back before receiving: {path}: {error}");
}

/// Does what is asked, over the socket that is named in the request.
///
/// # Errors
/// What ends a stream. Of that no snapshot was made then; what has been received stays, and streams before it in the same
/// input are received.
pub fn perform(
    fs: &Fs,
    dir: &DataDir,
    request: &StreamRequest,
    caches: Option<&dyn KernelCaches>,
    reporter: &dyn Reporter,
) -> Result<Answer> {
    let (StreamRequest::Send { socket, .. } | StreamRequest::Receive { socket, .. }) = request;
    let connect = || -> io::Result<UnixStream> {
        let directory = std::fs::File::open(dir.path())?;
        // Nothing but a name: who asks says where in the data directory it listens, and nowhere else.
        if socket.contains('/') {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let stream = UnixStream::connect(through(&directory, socket))?;
        stream.set_read_timeout(Some(LOOK_AGAIN))?;
        stream.set_write_timeout(Some(LOOK_AGAIN))?;
        Ok(stream)
    };
    let stream = connect().map_err(|error| {
        Failure::new(
            Code::Failed,
            format!("who asked for the stream went away: {error}"),
        )
    })?;
    let pipe = Pipe { stream, reporter };
    let ended = match request {
        StreamRequest::Send {
            named, from, waits, ..
        } => {
            let (named, snapshot) = named.find_divided(fs)?;
            let base = match from {
                Some(name) => Some(
                    Named {
                        name: name.clone(),
                        ..named.clone()
                    }
                    .find(fs)?,
                ),
                None => None,
            };
            let mut out = BufWriter::with_capacity(BUFFER_BYTES, &pipe);
            let goes_on = |sent: &Sent| {
                reporter.event(&Event::Progress(Progress {
                    phase: "send, inodes".to_owned(),
                    objects: sent.inodes,
                    objects_total: None,
                    bytes: sent.bytes,
                    bytes_total: None,
                }));
                !reporter.cancelled()
            };
            let mut replies = &pipe;
            let replies: Option<&mut dyn Read> = match waits {
                true => Some(&mut replies),
                false => None,
            };
            fs.send(&snapshot, base.as_deref(), &mut out, replies, &goes_on)
                .map(|sent| sent_line(&named, &sent))
                .map_err(|error| (Vec::new(), error))
        }
        StreamRequest::Receive { path, .. } => {
            let mut observer = Observer {
                caches,
                reporter,
                tell: tell_log,
            };
            let path = path.as_ref().map(AnyPath::bytes);
            let mut input = io::BufReader::with_capacity(BUFFER_BYTES, &pipe);
            let mut lines = Vec::new();
            loop {
                match fs.receive(path, &mut input, &mut &pipe, &mut observer) {
                    Ok(received) => lines.push(received_line(&received)),
                    Err(error) => break Err((lines, error)),
                }
                // Who waits for answers has sent one, and closes its side; a file may hold another one behind it.
                let ends = input.fill_buf().map_or(true, <[u8]>::is_empty);
                if ends {
                    break Ok(lines.join("\n"));
                }
            }
        }
    };
    drop(pipe.stream.shutdown(std::net::Shutdown::Both));
    match ended {
        Ok(line) => Ok(Answer::Streamed { line }),
        Err(_) if reporter.cancelled() => Err(Failure::new(Code::Interrupted, "interrupted")
            .hint("the same command goes on where this one ended")),
        Err((before, error)) => Err(match request {
            StreamRequest::Send { .. } => not_sent(&error),
            StreamRequest::Receive { .. } => behind(&before, not_received(dir, &error)),
        }),
    }
}

/// What failed of an input after other streams of it, which are here.
fn behind(before: &[String], failure: Failure) -> Failure {
    if before.is_empty() {
        return failure;
    }
    let before = before.join("; ");
    Failure {
        message: format!("{before}; what follows in the input: {}", failure.message),
        ..failure
    }
}

fn not_sent(error: &StreamError) -> Failure {
    let failed = |message: String| Failure::new(Code::Failed, message);
    let other_side = |message: String| Failure::new(Code::OtherSide, message);
    match error {
        // Nothing else is read or written here but what the other side takes and answers.
        StreamError::Nothing | StreamError::CutOff | StreamError::Io(_) => {
            other_side("the other side went away before it had all".to_owned())
                .hint("a command as target must run `cfs receive`")
        }
        StreamError::Peer(_) => other_side(error.to_string()),
        StreamError::Forged(_) | StreamError::Contradiction(_) => failed(format!(
            "what the other side answers cannot be understood: {error}"
        ))
        .hint("nothing but `cfs receive` may write to the standard output of a command as target"),
        StreamError::NoBase(_) => {
            failed(error.to_string()).hint("`cfs admin snapshot list` tells which there are")
        }
        _ => failed(error.to_string()),
    }
}

fn not_received(dir: &DataDir, error: &StreamError) -> Failure {
    let data = dir.path().display();
    let failed = |message: String| Failure::new(Code::Failed, message);
    let host = |message: String| Failure::new(Code::Host, message);
    match error {
        StreamError::Nothing => failed(error.to_string())
            .hint("what was to send it says why; nothing was changed here"),
        StreamError::CutOff => failed(error.to_string()).hint(
            "no snapshot shows what has come; that is kept, and sending it again goes on from it",
        ),
        StreamError::Forged(_) => failed(error.to_string()).hint(
            "send it again; a pool that is to receive must have been made with `cfs init --replica-of`",
        ),
        StreamError::Version(_) => {
            failed(error.to_string()).hint("use the same version of cfs on both sides")
        }
        StreamError::NoBase(_) => {
            failed(error.to_string()).hint("`cfs admin snapshot list` tells which there are")
        }
        StreamError::Target(_) => failed(error.to_string()).hint(
            "give another path to receive it at (--path of `cfs replicate`), in a directory that is there",
        ),
        StreamError::Fs(FsError::NoSpace) => host(format!(
            "the pool in {data} has no room for what is received"
        ))
        .hint("make room there, then run the same command: it goes on from what has come"),
        StreamError::Fs(FsError::Quota) => failed(format!(
            "what is received is more than the quota of its volume in {data}"
        ))
        .hint("`cfs admin volume set` there raises it; the same command then goes on from what has come"),
        StreamError::Fs(FsError::ReadOnly(_)) | StreamError::Io(_) => {
            host(format!("receiving into the pool in {data}: {error}"))
        }
        StreamError::Fs(_) => failed(format!("receiving into the pool in {data}: {error}")),
        _ => failed(error.to_string()),
    }
}

fn sent_line(named: &Named, sent: &Sent) -> String {
    match sent.had_all {
        true => format!("{}: the other side has it", named.sentence()),
        false if sent.inodes == 0 => format!(
            "{}: {} sent, of it {} in {} chunks",
            named.sentence(),
            show(sent.bytes),
            show(sent.chunk_bytes),
            count(sent.chunks)
        ),
        false => format!(
            "{}: {} sent, of it {} in {} chunks; {} inodes",
            named.sentence(),
            show(sent.bytes),
            show(sent.chunk_bytes),
            count(sent.chunks),
            count(sent.inodes)
        ),
    }
}

fn received_line(received: &Received) -> String {
    let path = printable(&String::from_utf8_lossy(&received.path));
    let name = printable(&String::from_utf8_lossy(&received.name));
    match received.had_all {
        true => format!("snapshot {name} of {path} is here already"),
        false if received.kept => format!(
            "snapshot {name} received as {path}, sealed: {} chunks",
            count(received.chunks)
        ),
        false => format!(
            "snapshot {name} of {path} received: {} chunks, {} inodes",
            count(received.chunks),
            count(received.inodes)
        ),
    }
}

/// Where the stream goes, or comes from, on the side of who asks.
pub enum Far {
    /// To standard output.
    Output,
    /// From standard input, replies to standard output.
    Input,
    /// To another process, whose output is the replies.
    Process(Child),
}

/// The side of who asks: listens, and passes the stream on. Dropping it ends that.
pub struct Bridge {
    name: String,
    path: PathBuf,
    is_over: Arc<AtomicBool>,
    pump: Option<JoinHandle<io::Result<Option<Ended>>>>,
}

impl Bridge {
    /// Listens in the data directory.
    ///
    /// # Errors
    /// [`Code::Pool`] when it holds no pool, [`Code::Host`]. Nothing was changed.
    pub fn start(dir: &DataDir, far: Far) -> Result<Self> {
        if matches!(dir.contents()?, Contents::Nothing) {
            let failure = no_pool(dir);
            return Err(match far {
                Far::Input => failure.hint(
                    "give --data another directory, or make one with `cfs init --replica-of`",
                ),
                Far::Output | Far::Process(_) => failure,
            });
        }
        dir.remove_dead_streams();
        let name = DataDir::stream_socket();
        let path = dir.path().join(&name);
        let listen = || -> io::Result<UnixListener> {
            let directory = std::fs::File::open(dir.path())?;
            drop(std::fs::remove_file(&path));
            let listener = UnixListener::bind(through(&directory, &name))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = listen().map_err(|e| Failure::host("make the socket", &path, &e))?;
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let pump = std::thread::Builder::new()
            .spawn(move || {
                let is_over = over;
                let stream = loop {
                    match listener.accept() {
                        Ok((stream, _)) => break Some(stream),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            if is_over.load(Ordering::Relaxed) {
                                break None;
                            }
                            std::thread::sleep(Duration::from_millis(5));
                        }
                        Err(error) => return Err(error),
                    }
                };
                pass_on(stream, far)
            })
            .map_err(|error| no_thread(&error))?;
        Ok(Self {
            name,
            path,
            is_over,
            pump: Some(pump),
        })
    }

    /// The name to put into the request.
    pub fn name(&self) -> String {
        self.name.clone()
    }

    /// Waits until all has been passed on, after the request has ended. With how the other process ended, if there is one.
    ///
    /// # Errors
    /// When the stream could not be passed on.
    pub fn finish(mut self) -> Result<Option<Ended>> {
        self.is_over.store(true, Ordering::Relaxed);
        let pump = self.pump.take().expect("there until it is finished");
        let passed = pump.join().expect("a panic ends the process");
        passed.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::new(
                Code::Failed,
                "what reads the stream has ended before all of it was there",
            )
            .hint("it says why"),
            _ => Failure::new(
                Code::Host,
                format!("the stream could not be passed on: {}", plain(&error)),
            ),
        })
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        drop(std::fs::remove_file(&self.path));
    }
}

/// Passes on what comes, at once: the other side may wait for it. `io::copy` has the kernel splice pipes and sockets, which
/// keeps back what is less than it would like to have.
fn pump(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut bytes = vec![0; BUFFER_BYTES];
    loop {
        match from.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                to.write_all(&bytes[..count])?;
                to.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn pass_on(stream: Option<UnixStream>, far: Far) -> io::Result<Option<Ended>> {
    let Some(stream) = stream else {
        // Nothing came of the request: the other process meets the end of its input.
        return match far {
            Far::Process(mut child) => {
                let listening = Listening::start(&mut child)?;
                drop(child.stdin.take());
                listening.end(&mut child).map(Some)
            }
            Far::Output | Far::Input => Ok(None),
        };
    };
    stream.set_nonblocking(false)?;
    match far {
        Far::Output => {
            pump(&stream, io::stdout().lock())?;
            Ok(None)
        }
        Far::Input => {
            let input = stream.try_clone()?;
            // Not waited for: what comes in may never end when nobody reads it any more.
            std::thread::Builder::new().spawn(move || {
                let _ = pump(io::stdin().lock(), &input);
                drop(input.shutdown(std::net::Shutdown::Write));
            })?;
            match pump(&stream, io::stdout().lock()) {
                // Who received has ended before all was read, as there was nothing to do: its answer tells.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
                pumped => pumped.map(|()| None),
            }
        }
        Far::Process(mut child) => {
            let listening = Listening::start(&mut child)?;
            let output = child.stdout.take().expect("it was asked for");
            let replies = stream.try_clone()?;
            let answering = std::thread::Builder::new().spawn(move || {
                // When the other process is gone, what it said last has been passed on.
                let _ = pump(output, &replies);
                drop(replies.shutdown(std::net::Shutdown::Write));
            })?;
            let input = child.stdin.take().expect("it was asked for");
            let copied = pump(&stream, input);
            let ended = listening.end(&mut child)?;
            // What it has left behind may hold its output for ever.
            let ended_at = Instant::now();
            while !answering.is_finished() && ended_at.elapsed() < LAST_ANSWER_PATIENCE {
                std::thread::sleep(Duration::from_millis(5));
            }
            match copied {
                // How it ended, or that this side misses an answer, is more than that it went away.
                Err(error) if !ended.has_failed() && error.kind() != io::ErrorKind::BrokenPipe => {
                    Err(error)
                }
                _ => Ok(Some(ended)),
            }
        }
    }
}
