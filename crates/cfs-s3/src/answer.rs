//! What comes before and after an operation: bounds on requests, CORS, refusals, and what an answer carries.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use http::header::{
    CONNECTION, CONTENT_TYPE, EXPECT, HOST, HeaderName, HeaderValue, TRANSFER_ENCODING,
};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::validation::NameValidation;
use s3s::{Body, S3Error, S3ErrorCode};
use tokio::sync::Semaphore;

use crate::access::{Access, Auth, Peer};
use crate::api::Operations;
use crate::bodies::{self, Budget, FORM_FILE_BYTES_MAX, XML_BYTES_MAX};
use crate::cors;
use crate::errors;
use crate::face::Face;
use crate::forms;
use crate::hosts::Hosts;
use crate::iam;
use crate::logging::{Answered, Noted, Said};
use crate::signature2;
use crate::signature4;
use crate::statistics;
use crate::stats::{Operation, Traffic};

/// Requests at a time; more are told to slow down.
const REQUESTS_MAX: usize = 1024;
/// Longest life of a signed link, seconds; S3's own limit.
const LINK_SECONDS_MAX: u64 = 7 * 86_400;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amz-request-id");

/// Any name may be that of a directory which is there; new ones are checked when they are made.
struct AnyName;

impl NameValidation for AnyName {
    fn validate_bucket_name(&self, name: &str) -> bool {
        !name.is_empty()
    }
}

/// Where a request comes from.
#[derive(Clone, Copy)]
pub(crate) struct From {
    pub(crate) peer: SocketAddr,
    /// Nobody on the way can read it.
    pub(crate) is_encrypted: bool,
}

/// Counts a request until it is answered, or its client has gone.
struct UnderWay<'a>(&'a AtomicU64);

impl<'a> UnderWay<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What all requests share.
pub(crate) struct Shared {
    service: S3Service,
    face: Arc<Face>,
    hosts: Hosts,
    requests: Semaphore,
    bodies: Budget,
    next_request: AtomicU64,
}

impl Shared {
    pub(crate) fn new(face: Arc<Face>, hosts: Hosts) -> Self {
        Self {
            service: service(&face, &hosts),
            face,
            hosts,
            requests: Semaphore::new(REQUESTS_MAX),
            bodies: Budget::default(),
            next_request: AtomicU64::new(1),
        }
    }

    /// Where the bytes of connections are counted.
    pub(crate) fn traffic(&self) -> Arc<Traffic> {
        Arc::clone(&self.face.counters.traffic)
    }
}

fn service(face: &Arc<Face>, hosts: &Hosts) -> S3Service {
    let mut config = s3s::config::S3Config::default();
    config.xml_max_body_size = XML_BYTES_MAX;
    config.post_object_max_file_size = FORM_FILE_BYTES_MAX;
    let mut builder = S3ServiceBuilder::new(Operations(Arc::clone(face)));
    builder.set_auth(Auth(Arc::clone(face)));
    builder.set_access(Access(Arc::clone(face)));
    builder.set_host(hosts.clone());
    builder.set_validation(AnyName);
    builder.set_config(Arc::new(s3s::config::StaticConfigProvider::new(Arc::new(
        config,
    ))));
    builder.build()
}

/// Answers a request.
pub(crate) async fn answer(
    shared: &Shared,
    from: From,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let started = Instant::now();
    let number = shared.next_request.fetch_add(1, Ordering::Relaxed);
    let id = format!("{number:016X}");
    let method = request.method().clone();
    let operation = Operation::default();
    request.extensions_mut().insert(operation.clone());
    let (noted, said) = (Noted::default(), Said::of(&request));
    request.extensions_mut().insert(noted.clone());
    let is_awaited = request.headers().contains_key(EXPECT);
    let is_empty = bodies::is_empty(&request);
    // Of two lengths of one body, one of them of its encoding, hyper takes the latter and forgets the other. Who has passed
    // the request on may have seen it the other way, so that nothing after it is to be believed (RFC 9112, 6.1).
    let is_encoded = request.headers().contains_key(TRANSFER_ENCODING);
    let mut response = match shared.requests.try_acquire() {
        Ok(_permit) => {
            let _under_way = UnderWay::new(&shared.face.counters.under_way);
            dispatch(shared, from, request, &id).await
        }
        Err(_) => error(S3ErrorCode::SlowDown.into()),
    };
    // Who waits for `100 Continue` and gets the answer instead may take it for that of its next request too, as botocore
    // does: there must be none on this connection.
    if is_encoded || is_awaited && (is_empty || !response.status().is_success()) {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    name_request(&mut response, &id).await;
    if let Some(note) = noted.take() {
        let answered = Answered {
            id: &id,
            peer: from.peer.ip(),
            tls: from.is_encrypted,
            response: &response,
            took: started.elapsed(),
        };
        let logs = &shared.face.logs;
        logs.add(shared.face.now_seconds(), note, &said, &answered);
    }
    shared.face.counters.count(
        operation.name(&method),
        response.status(),
        started.elapsed(),
    );
    response
}

async fn dispatch(
    shared: &Shared,
    from: From,
    request: Request<Incoming>,
    id: &str,
) -> Response<Body> {
    // Before HTTP/1.1 it had none.
    let hosts = request.headers().get_all(HOST).iter().count();
    if hosts > 1 || hosts == 0 && request.version() >= Version::HTTP_11 {
        return error(S3Error::with_message(
            S3ErrorCode::InvalidRequest,
            "a request has one host",
        ));
    }
    let host_bucket = shared.hosts.bucket_of(request.headers());
    if host_bucket.is_none() && iam::is_meant(&request) {
        return iam::answer(&shared.face, from, request, id).await;
    }
    if request.method() == Method::GET && host_bucket.is_none() {
        let told = statistics::answer(&shared.face, &shared.hosts, from, &request).await;
        if let Some(told) = told {
            return told.unwrap_or_else(error);
        }
    }
    let wish = cors::wish(&request, host_bucket);
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
    let mut response = perform(shared, from, request).await;
    if let Some(wish) = wish {
        match cors::answer(&shared.face, wish).await {
            Ok(headers) => response.headers_mut().extend(headers.unwrap_or_default()),
            Err(failure) => tracing::debug!("CORS: {failure}"),
        }
    }
    response
}

/// Has an operation done.
async fn perform(shared: &Shared, from: From, mut request: Request<Incoming>) -> Response<Body> {
    let now_seconds = time::OffsetDateTime::now_utc().unix_timestamp();
    let host_bucket = shared.hosts.bucket_of(request.headers());
    let told = (request.method(), request.uri(), request.headers());
    let users = &shared.face.users;
    match signature2::check(users, now_seconds, host_bucket.as_deref(), told) {
        Ok(None) => {}
        Ok(Some(text)) => {
            if let Ok(value) = HeaderValue::from_str(&text) {
                request
                    .headers_mut()
                    .insert(http::header::AUTHORIZATION, value);
            }
        }
        Err(failure) => return error(failure),
    }
    if is_signed_otherwise(&request) {
        return error(S3Error::with_message(
            S3ErrorCode::AccessDenied,
            "the header authorization is AWS4-HMAC-SHA256, or AWS, and what belongs to it",
        ));
    }
    if let Err(failure) = signature4::check((request.method(), request.uri(), request.headers())) {
        return error(failure);
    }
    date_as_signed(&mut request);
    if !link_ends_in_time(&request) {
        return error(S3Error::with_message(
            S3ErrorCode::AccessDenied,
            "a signed link ends after 1 second to 7 days",
        ));
    }
    let wants_attributes = asks_for_attributes(request.uri());
    let request = match shared.bodies.watch(request, host_bucket.is_some()) {
        Ok(request) => request,
        Err(refused) => return error(refused),
    };
    let is_form = signature4::is_form(request.method(), request.headers());
    let mut request = match is_form {
        true => match forms::prepared(request).await {
            Ok(request) => request,
            Err(refused) => return error(refused),
        },
        false => request.map(Body::http_body_unsync),
    };
    request.extensions_mut().insert(Peer::of(from));
    match shared.service.call(request).await {
        Ok(response) if is_form && is_unmet(&response) => error(S3Error::with_message(
            S3ErrorCode::AccessDenied,
            "the form is not as its policy has it: a condition failed",
        )),
        Ok(response) if is_form => with_quoted_etag(response),
        Ok(response) if wants_attributes => without_quotes(response),
        Ok(response) => response,
        Err(failure) => {
            tracing::error!("an S3 request failed: {failure:?}");
            error(S3ErrorCode::InternalError.into())
        }
    }
}

/// A page that a form leads to is told the ETag with its quotes, as S3 does.
fn with_quoted_etag(mut response: Response<Body>) -> Response<Body> {
    let location = response.headers().get(http::header::LOCATION);
    let text = location.and_then(|value| value.to_str().ok());
    if let Some((head, etag)) = text.and_then(|text| text.rsplit_once("etag="))
        && response.status().is_redirection()
        && etag
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && let Ok(value) = HeaderValue::from_str(&format!("{head}etag=%22{etag}%22"))
    {
        response.headers_mut().insert(http::header::LOCATION, value);
    }
    response
}

/// Whether a form was refused for a condition of its policy, which `s3s` tells as if the policy were malformed.
fn is_unmet(response: &Response<Body>) -> bool {
    let text = response.body().bytes().unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    response.status() == StatusCode::BAD_REQUEST
        && text.contains("<Code>InvalidPolicyDocument</Code>")
        && (text.contains("Policy condition ") || text.contains("does not match bucket in URL"))
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

/// Gives a request that is signed with version 4 the date that `s3s` looks for, where it has only the one of HTTP, which will
/// do as well. The signature covers it, so that no other date fits.
fn date_as_signed(request: &mut Request<Incoming>) {
    const AMZ_DATE: HeaderName = HeaderName::from_static("x-amz-date");
    let headers = request.headers();
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let is_signed = text(http::header::AUTHORIZATION)
        .is_some_and(|value| value.starts_with("AWS4-HMAC-SHA256 "));
    if !is_signed || headers.contains_key(&AMZ_DATE) {
        return;
    }
    let Some(time) = text(http::header::DATE).and_then(signature2::http_time) else {
        return;
    };
    let date = format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
        time.year(),
        time.month() as u8,
        time.day(),
        time.hour(),
        time.minute(),
        time.second()
    );
    if let Ok(value) = HeaderValue::from_str(&date) {
        request.headers_mut().insert(AMZ_DATE, value);
    }
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

/// Puts the number of a request into the headers, and into what is said of an error, which has a message then.
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
        let message = message_of(head).unwrap_or_default();
        let tail = format!("{message}<RequestId>{id}</RequestId><HostId>cfs</HostId></Error>");
        let body = [head, tail.as_bytes()].concat();
        response.headers_mut().remove(http::header::CONTENT_LENGTH);
        *response.body_mut() = Body::from(body);
    }
}

/// The message that is missing in what is said of an error. Ours may have none, and those of `s3s` often do.
fn message_of(said: &[u8]) -> Option<String> {
    let said = str::from_utf8(said).ok()?;
    if said.contains("<Message>") {
        return None;
    }
    let (code, _) = said.split_once("<Code>")?.1.split_once("</Code>")?;
    Some(format!("<Message>{}</Message>", errors::words(code)))
}
