//! The listener: HTTP/1.1 connections, with bounds on everything that a client could have us keep.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cfs_fs::Fs;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::validation::NameValidation;
use s3s::{Body, S3Error, S3ErrorCode};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::access::{Access, Auth, Peer};
use crate::api::Operations;
use crate::cors;
use crate::expiry::{Lifecycle, Pass};
use crate::face::{Face, Watcher};
use crate::signature2;
use crate::stats;
use crate::users::Users;

/// Connections at a time; more are closed at once.
const CONNECTIONS_MAX: usize = 2048;
/// Requests at a time; more are told to slow down.
const REQUESTS_MAX: usize = 1024;
/// Threads for what blocks.
const BLOCKING_THREADS_MAX: usize = 64;
/// Threads that speak HTTP.
const WORKERS: usize = 2;
/// Bytes that a request's line and headers take at most.
const HEADER_BYTES_MAX: usize = 64 << 10;
/// How long a client may take for its headers.
const HEADER_PATIENCE: Duration = Duration::from_secs(30);
/// Longest XML body, bytes: a batch delete of a thousand of the longest keys, escaped.
const XML_BYTES_MAX: usize = 8 << 20;
/// Longest file of a form, bytes: it is held in memory until its policy is checked.
const FORM_FILE_BYTES_MAX: u64 = 64 << 20;
/// How long requests under way may go on when the server is to end.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// Longest life of a signed link, seconds; S3's own limit.
const LINK_SECONDS_MAX: u64 = 7 * 86_400;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amz-request-id");

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

/// A listening S3 face. Dropping it ends it: requests under way have a few seconds.
pub struct S3Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    runtime: Option<tokio::runtime::Runtime>,
    connections: Arc<Semaphore>,
    face: Arc<Face>,
}

/// Any name may be that of a directory which is there; new ones are checked when they are made.
struct AnyName;

impl NameValidation for AnyName {
    fn validate_bucket_name(&self, name: &str) -> bool {
        !name.is_empty()
    }
}

struct Shared {
    service: S3Service,
    face: Arc<Face>,
    requests: Semaphore,
    counters: Arc<stats::Counters>,
    next_request: AtomicU64,
}

impl S3Server {
    /// Starts to serve a file system at an address.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(
        fs: Arc<Fs>,
        users: Arc<Users>,
        watcher: Arc<dyn Watcher>,
        address: SocketAddr,
    ) -> Result<Self, StartError> {
        let listener = std::net::TcpListener::bind(address)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|source| StartError::Listen { address, source })?;
        let address = listener
            .local_addr()
            .map_err(|source| StartError::Listen { address, source })?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name("s3")
            .enable_all()
            .build()
            .map_err(StartError::Threads)?;
        let face = Arc::new(Face::new(fs, users, watcher));
        let shared = Arc::new(Shared {
            service: service(&face),
            face: Arc::clone(&face),
            requests: Semaphore::new(REQUESTS_MAX),
            counters: Arc::default(),
            next_request: AtomicU64::new(1),
        });
        let (stop, stopped) = watch::channel(false);
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener)
                .map_err(|source| StartError::Listen { address, source })?
        };
        runtime.spawn(accept(listener, shared, Arc::clone(&connections), stopped));
        Ok(Self {
            address,
            stop,
            runtime: Some(runtime),
            connections,
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
            let all = u32::try_from(CONNECTIONS_MAX).expect("a small constant");
            runtime.block_on(async move {
                let ended = tokio::time::timeout(END_PATIENCE, connections.acquire_many(all)).await;
                if ended.is_err() {
                    tracing::warn!("S3 requests that are still under way are cut off");
                }
            });
            runtime.shutdown_timeout(END_PATIENCE);
        }
    }
}

fn service(face: &Arc<Face>) -> S3Service {
    let mut config = s3s::config::S3Config::default();
    config.xml_max_body_size = XML_BYTES_MAX;
    config.post_object_max_file_size = FORM_FILE_BYTES_MAX;
    let mut builder = S3ServiceBuilder::new(Operations(Arc::clone(face)));
    builder.set_auth(Auth(Arc::clone(face)));
    builder.set_access(Access(Arc::clone(face)));
    builder.set_validation(AnyName);
    builder.set_config(Arc::new(s3s::config::StaticConfigProvider::new(Arc::new(
        config,
    ))));
    builder.build()
}

async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    connections: Arc<Semaphore>,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
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
        let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else {
            tracing::warn!("too many S3 connections; {peer} is turned away");
            continue;
        };
        let (shared, stopped) = (Arc::clone(&shared), stopped.clone());
        tokio::spawn(async move {
            connection(stream, peer, shared, stopped).await;
            drop(permit);
        });
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) {
    // Small answers must not wait for the client's delayed acknowledgements.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!("TCP_NODELAY: {error}");
    }
    let answer = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(answer(&shared, peer, request).await) }
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
                    tracing::debug!("S3 connection of {peer}: {error}");
                }
                return;
            }
            _ = stopped.changed() => connection.as_mut().graceful_shutdown(),
        }
    }
}

async fn answer(shared: &Shared, peer: SocketAddr, request: Request<Incoming>) -> Response<Body> {
    let started = Instant::now();
    let number = shared.next_request.fetch_add(1, Ordering::Relaxed);
    let id = format!("{number:016X}");
    let method = request.method().clone();
    let awaited = request.headers().contains_key(http::header::EXPECT);
    let is_empty = request
        .headers()
        .get(http::header::CONTENT_LENGTH)
        .is_none_or(|value| value.as_bytes() == b"0");
    let mut response = match shared.requests.try_acquire() {
        Ok(_permit) => dispatch(shared, peer, request).await,
        Err(_) => error(S3ErrorCode::SlowDown.into()),
    };
    // Who waits for `100 Continue` and gets the answer instead may take it for that of its next request too, as botocore
    // does: there must be none on this connection.
    if awaited && (is_empty || !response.status().is_success()) {
        let close = HeaderValue::from_static("close");
        response
            .headers_mut()
            .insert(http::header::CONNECTION, close);
    }
    name_request(&mut response, &id).await;
    shared
        .counters
        .count(&method, response.status(), started.elapsed());
    response
}

async fn dispatch(shared: &Shared, peer: SocketAddr, request: Request<Incoming>) -> Response<Body> {
    if request.method() == Method::GET && peer.ip().is_loopback() {
        let made = match request.uri().path() {
            "/api/stats" => Some((stats::report(&shared.face).await, "application/json")),
            "/metrics" => Some((
                stats::metrics(&shared.face, &shared.counters).await,
                "text/plain; version=0.0.4",
            )),
            _ => None,
        };
        // A signed request is one for a bucket of that name.
        if let Some((made, kind)) = made
            && !request.headers().contains_key(http::header::AUTHORIZATION)
        {
            return match made {
                Ok(text) => {
                    let mut response = Response::new(Body::from(text));
                    response
                        .headers_mut()
                        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
                    response
                }
                Err(failure) => error(failure),
            };
        }
    }
    let wish = cors::wish(request.method(), request.uri(), request.headers());
    if request.method() == Method::OPTIONS {
        let granted = match wish {
            Some(wish) => cors::answer(&shared.face, wish).await,
            None => Err(S3Error::with_message(
                S3ErrorCode::InvalidRequest,
                "a preflight names the page that it is for",
            )),
        };
        return match granted {
            Ok(headers) => {
                let mut response = Response::new(Body::empty());
                *response.headers_mut() = headers.unwrap_or_default();
                response
            }
            Err(failure) => error(failure),
        };
    }
    let mut response = perform(shared, peer, request).await;
    if let Some(wish) = wish {
        match cors::answer(&shared.face, wish).await {
            Ok(headers) => response.headers_mut().extend(headers.unwrap_or_default()),
            Err(failure) => tracing::debug!("CORS: {failure}"),
        }
    }
    response
}

/// Has an operation done.
async fn perform(shared: &Shared, peer: SocketAddr, request: Request<Incoming>) -> Response<Body> {
    let now_seconds = time::OffsetDateTime::now_utc().unix_timestamp();
    let told = (request.method(), request.uri(), request.headers());
    if let Err(failure) = signature2::check(&shared.face.users, now_seconds, told) {
        return error(failure);
    }
    if is_signed_otherwise(&request) {
        return error(S3Error::with_message(
            S3ErrorCode::AccessDenied,
            "the header authorization is AWS4-HMAC-SHA256, or AWS, and what belongs to it",
        ));
    }
    if !link_ends_in_time(&request) {
        return error(S3Error::with_message(
            S3ErrorCode::AccessDenied,
            "a signed link ends after 1 second to 7 days",
        ));
    }
    let (mut parts, body) = request.into_parts();
    parts.extensions.insert(Peer(peer.ip()));
    let request = Request::from_parts(parts, Body::from(body));
    let wants_attributes = asks_for_attributes(request.uri());
    match shared.service.call(request).await {
        Ok(response) if wants_attributes => without_quotes(response),
        Ok(response) => response,
        Err(failure) => {
            tracing::error!("an S3 request failed: {failure:?}");
            error(S3ErrorCode::InternalError.into())
        }
    }
}

/// Whether a request is for attributes of an object.
fn asks_for_attributes(uri: &http::Uri) -> bool {
    let parameters = uri.query().unwrap_or_default().split('&');
    parameters
        .map(|parameter| parameter.split('=').next().unwrap_or_default())
        .any(|name| name == "attributes")
}

/// Among attributes of objects, and there alone, S3 has ETags without quotes.
fn without_quotes(mut response: Response<Body>) -> Response<Body> {
    if let Some(text) = response.body().bytes()
        && let Ok(text) = str::from_utf8(&text)
        && let Some((head, rest)) = text.split_once("<ETag>")
        && let Some((etag, tail)) = rest.split_once("</ETag>")
    {
        let etag = etag.replace("&quot;", "").replace('"', "");
        let body = format!("{head}<ETag>{etag}</ETag>{tail}");
        response.headers_mut().remove(http::header::CONTENT_LENGTH);
        *response.body_mut() = Body::from(body);
    }
    response
}

/// Whether there is an authorization of a kind that is none of S3's.
fn is_signed_otherwise(request: &Request<Incoming>) -> bool {
    let header = request.headers().get(http::header::AUTHORIZATION);
    let kinds = [&b"AWS4-HMAC-SHA256 "[..], b"AWS "];
    header.is_some_and(|value| !kinds.iter().any(|kind| value.as_bytes().starts_with(kind)))
}

/// Whether a signed link, if the request is one, was made for a time that links can be made for.
fn link_ends_in_time(request: &Request<Incoming>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    let fields: HashMap<String, String> = serde_urlencoded::from_str(query).unwrap_or_default();
    fields.get("X-Amz-Expires").is_none_or(|seconds| {
        seconds
            .parse::<u64>()
            .is_ok_and(|seconds| (1..=LINK_SECONDS_MAX).contains(&seconds))
    })
}

fn error(error: S3Error) -> Response<Body> {
    error.to_http_response().unwrap_or_else(|_| {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    })
}

/// Puts the number of a request into the headers, and into what is said of an error.
async fn name_request(response: &mut Response<Body>, id: &str) {
    let Ok(value) = HeaderValue::from_str(id) else {
        return;
    };
    response.headers_mut().insert(REQUEST_ID, value);
    if response.status() == StatusCode::NOT_MODIFIED {
        *response.body_mut() = Body::empty();
        response.headers_mut().remove(CONTENT_TYPE);
    } else if response.status().as_u16() >= 400
        && let Some(text) = response.body().bytes()
        && let Some(head) = text.strip_suffix(b"</Error>")
    {
        let tail = format!("<RequestId>{id}</RequestId><HostId>cfs</HostId></Error>");
        let body = [head, tail.as_bytes()].concat();
        response.headers_mut().remove(http::header::CONTENT_LENGTH);
        *response.body_mut() = Body::from(body);
    }
}
