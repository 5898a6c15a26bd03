//! The listener: HTTP/1.1 connections, in the clear or over TLS, with bounds on everything that a client could have us
//! keep.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cfs_fs::Fs;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use crate::abandoned;
use crate::answer::{From, Shared, answer};
use crate::due;
use crate::expiry::{Lifecycle, Pass};
use crate::face::{Face, Watcher};
use crate::hosts::Hosts;
use crate::logging;
use crate::patience::{PATIENCE, Patient};
use crate::tls::Certificate;
use crate::upload::Etags;
use crate::users::Users;

/// Connections at a time; more are told to slow down.
const CONNECTIONS_MAX: usize = 2048;
/// Threads for what blocks.
const BLOCKING_THREADS_MAX: usize = 64;
/// Threads that speak HTTP.
const WORKERS: usize = 2;
/// Bytes that a request's line and headers take at most.
const HEADER_BYTES_MAX: usize = 64 << 10;
/// How long a client may take for a request's headers, and before them for the handshake of TLS.
const HEADER_PATIENCE: Duration = Duration::from_secs(30);
/// How long requests under way may go on when the server is to end.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// How long lines of access logs are gathered where nothing else is said.
pub const LOG_PATIENCE: Duration = Duration::from_secs(300);
/// What a connection too many is told, where it is not encrypted.
const SLOW_DOWN: &[u8] = b"HTTP/1.1 503 Slow Down\r\ncontent-type: application/xml\r\ncontent-length: 97\r\nretry-after: 1\r\nconnection: close\r\n\r\n<?xml version=\"1.0\"?>\n<Error><Code>SlowDown</Code><Message>too many connections</Message></Error>";

/// Why the S3 face could not start. Nothing listens.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened at.
    #[error("cannot listen for S3 at {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// Threads could not be started.
    #[error("cannot start threads for S3: {0}")]
    Threads(io::Error),
}

/// Where to listen, and as whom.
pub struct Listening {
    /// The address; port 0 is any that is free.
    pub address: SocketAddr,
    /// For HTTPS; HTTP without one.
    pub certificate: Option<Certificate>,
    /// Domains with buckets below them, beside `localhost`.
    pub domains: Vec<String>,
    /// What new ETags are made of.
    pub etags: Etags,
    /// Uploads in parts that have had nothing new for so long end; none does without.
    pub upload_patience: Option<Duration>,
    /// How long lines of access logs are gathered.
    pub log_patience: Duration,
}

impl Listening {
    /// At an address, over HTTP, with nothing else.
    #[must_use]
    pub fn at(address: SocketAddr) -> Self {
        Self {
            address,
            certificate: None,
            domains: Vec::new(),
            etags: Etags::default(),
            upload_patience: None,
            log_patience: LOG_PATIENCE,
        }
    }
}

/// A listening S3 face. Dropping it ends it: requests under way have a few seconds.
pub struct S3Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    runtime: Option<tokio::runtime::Runtime>,
    connections: Arc<Semaphore>,
    /// What ends the delivery of access logs, after the last one.
    logs: Option<(watch::Sender<bool>, tokio::task::JoinHandle<()>)>,
    face: Arc<Face>,
}

/// Whether so many threads can be begun, by doing so: the runtime panics where it cannot begin its own.
fn check_threads(count: usize) -> std::io::Result<()> {
    let gate = std::sync::RwLock::new(());
    std::thread::scope(|scope| {
        let _closed = gate.write();
        (0..count).try_for_each(|_| {
            let waiting = std::thread::Builder::new().spawn_scoped(scope, || drop(gate.read()));
            waiting.map(drop)
        })
    })
}

impl S3Server {
    /// Starts to serve a file system.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(
        fs: Arc<Fs>,
        users: Arc<Users>,
        watcher: Arc<dyn Watcher>,
        listening: Listening,
    ) -> Result<Self, StartError> {
        let address = listening.address;
        let listener = std::net::TcpListener::bind(address)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|source| StartError::Listen { address, source })?;
        let address = listener
            .local_addr()
            .map_err(|source| StartError::Listen { address, source })?;
        check_threads(WORKERS + 1).map_err(StartError::Threads)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name("s3")
            .enable_all()
            .build()
            .map_err(StartError::Threads)?;
        let face = Arc::new(Face::new(fs, users, watcher, listening.etags));
        let shared = Arc::new(Shared::new(
            Arc::clone(&face),
            Hosts::new(&listening.domains),
        ));
        let (stop, stopped) = watch::channel(false);
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener)
                .map_err(|source| StartError::Listen { address, source })?
        };
        let door = Door {
            listener,
            tls: listening
                .certificate
                .map(|certificate| TlsAcceptor::from(certificate.config())),
            shared,
            connections: Arc::clone(&connections),
        };
        if let Some(patience) = listening.upload_patience {
            runtime.spawn(abandoned::watch(
                Arc::clone(&face),
                patience,
                stopped.clone(),
            ));
        }
        runtime.spawn(due::compute(Arc::clone(&face), stopped.clone()));
        let (end_logs, ended) = watch::channel(false);
        let logs = runtime.spawn(logging::deliver(
            Arc::clone(&face),
            listening.log_patience,
            ended,
        ));
        runtime.spawn(door.accept(stopped));
        Ok(Self {
            address,
            stop,
            runtime: Some(runtime),
            connections,
            logs: Some((end_logs, logs)),
            face,
        })
    }

    /// What runs lifecycle rules, with the locks of this server's keys.
    #[must_use]
    pub fn lifecycle(&self) -> Lifecycle {
        Lifecycle(Arc::clone(&self.face))
    }

    /// Runs the rules now and then from now on, 24 times in what they take to be a day.
    pub fn run_lifecycle(&self, day: Duration) {
        let Some(runtime) = &self.runtime else {
            return;
        };
        let pause = (day / 24).clamp(Duration::from_secs(5), Duration::from_secs(3600));
        let pass = Pass {
            day_ms: u64::try_from(day.as_millis()).unwrap_or(u64::MAX),
            ..Pass::default()
        };
        let (lifecycle, stop) = (Arc::new(self.lifecycle()), self.stop.subscribe());
        let mut stopped = stop.clone();
        runtime.spawn(async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    _ = stopped.changed() => return,
                }
                let (lifecycle, pass, stop) = (Arc::clone(&lifecycle), pass.clone(), stop.clone());
                let ran = tokio::task::spawn_blocking(move || {
                    lifecycle.run(&pass, &mut |_| !*stop.borrow())
                });
                match ran.await {
                    Ok(Ok(tally)) => tracing::debug!("lifecycle rules: {tally:?}"),
                    Ok(Err(error)) => tracing::warn!("lifecycle rules: {error}"),
                    Err(error) => tracing::error!("lifecycle rules: {error}"),
                }
            }
        });
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        // Nobody receiving means that the task has ended already.
        let _ = self.stop.send(true);
        if let Some(runtime) = self.runtime.take() {
            let connections = Arc::clone(&self.connections);
            let logs = self.logs.take();
            let all = u32::try_from(CONNECTIONS_MAX).expect("a small constant");
            runtime.block_on(async move {
                let ended = tokio::time::timeout(END_PATIENCE, connections.acquire_many(all)).await;
                if ended.is_err() {
                    tracing::warn!("S3 requests that are still under way are cut off");
                }
                if let Some((end, logs)) = logs {
                    // Nobody receiving means that the task has ended already.
                    let _ = end.send(true);
                    if tokio::time::timeout(END_PATIENCE, logs).await.is_err() {
                        tracing::warn!("the last lines of access logs are lost");
                    }
                }
            });
            runtime.shutdown_timeout(END_PATIENCE);
        }
    }
}

/// What connections come through.
struct Door {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    connections: Arc<Semaphore>,
}

impl Door {
    async fn accept(self, mut stopped: watch::Receiver<bool>) {
        let mut is_full = false;
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                _ = stopped.changed() => return,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!("an S3 connection was not accepted: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() else {
                if !std::mem::replace(&mut is_full, true) {
                    tracing::warn!("too many S3 connections; {peer} and others are turned away");
                }
                if self.tls.is_none() {
                    // What does not fit into the empty buffer of a new socket is not waited for.
                    let _ = stream.try_write(SLOW_DOWN);
                }
                continue;
            };
            is_full = false;
            // Small answers must not wait for the client's delayed acknowledgements.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!("TCP_NODELAY: {error}");
            }
            let (shared, stopped) = (Arc::clone(&self.shared), stopped.clone());
            let tls = self.tls.clone();
            tokio::spawn(async move {
                greet(stream, tls, peer, shared, stopped).await;
                drop(permit);
            });
        }
    }
}

/// Serves a connection, after the handshake of TLS if there is to be one.
async fn greet(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    peer: SocketAddr,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) {
    let stream = Patient::new(stream, PATIENCE, shared.traffic());
    let from = From {
        peer,
        is_encrypted: tls.is_some(),
    };
    let Some(tls) = tls else {
        return connection(stream, from, shared, stopped).await;
    };
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(HEADER_PATIENCE, tls.accept(stream)) => shaken,
        _ = stopped.changed() => return,
    };
    match shaken {
        Ok(Ok(stream)) => connection(stream, from, shared, stopped).await,
        Ok(Err(error)) => tracing::debug!("TLS with {peer}: {error}"),
        Err(_) => tracing::debug!("TLS with {peer}: no handshake in time"),
    }
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    from: From,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) {
    let answer = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(answer(&shared, from, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_PATIENCE)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), answer);
    tokio::pin!(connection);
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!("S3 connection of {}: {error}", from.peer);
                }
                return;
            }
            _ = stopped.changed() => connection.as_mut().graceful_shutdown(),
        }
    }
}
