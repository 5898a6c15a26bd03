//! Bodies of requests before S3 reads them: what they may have us hold.
//!
//! A body of XML or a form is held in memory as a whole, so that it takes its length from a budget and must come in time.
//! The chunks of `aws-chunked` are held one at a time, however long the client makes them: those without signatures are
//! cut into shorter ones on the way, and signed ones, which cannot be, have a longest length and a budget.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use http::{Method, Request};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use s3s::{S3ErrorCode, S3Result, StdError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

use crate::signature4::is_form;

/// Longest XML body, bytes: a batch delete of a thousand of the longest keys, escaped.
pub(crate) const XML_BYTES_MAX: usize = 8 << 20;
/// Longest file of a form, bytes.
pub(crate) const FORM_FILE_BYTES_MAX: u64 = 64 << 20;
/// What a form's other fields may take, bytes.
pub(crate) const FORM_REST_BYTES_MAX: u64 = 4 << 20;
/// KiB of all forms that are held in memory. Who sends one need not have a key, so that they have room of their own.
const FORMS_KIB_MAX: usize = 136 << 10;
/// KiB of all other bodies that are.
const HELD_KIB_MAX: usize = 64 << 10;
/// Bodies up to so many bytes are not counted.
const UNCOUNTED_BYTES_MAX: u64 = 64 << 10;
/// How long a held body may take, and a form.
const XML_PATIENCE: Duration = Duration::from_secs(60);
const FORM_PATIENCE: Duration = Duration::from_secs(300);
/// Longest chunk with a signature, bytes; clients make them of 64 KiB to 1 MiB.
const SIGNED_CHUNK_BYTES_MAX: usize = 16 << 20;
/// Chunks without a signature are cut to so many bytes.
const CHUNK_BYTES: usize = 256 << 10;
/// Longest line before a chunk, bytes.
const LINE_BYTES_MAX: usize = 1024;
/// What a body fails with when there is no memory for it now.
pub(crate) const BUSY: &str = "too many large chunks at a time";

/// What all bodies share.
pub(crate) struct Budget {
    forms: Arc<Semaphore>,
    others: Arc<Semaphore>,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            forms: Arc::new(Semaphore::new(FORMS_KIB_MAX)),
            others: Arc::new(Semaphore::new(HELD_KIB_MAX)),
        }
    }
}

/// A body, watched over.
pub(crate) struct Watched {
    body: Incoming,
    kind: Kind,
    ready: VecDeque<Bytes>,
}

enum Kind {
    /// It is passed on as it comes, to who bounds it.
    Streamed,
    /// It must be there at this time. The permit is for its length.
    Held {
        end: Pin<Box<Sleep>>,
        _permit: Option<OwnedSemaphorePermit>,
    },
    Chunked(Chunks, Arc<Semaphore>, Option<OwnedSemaphorePermit>),
}

impl Budget {
    /// Watches over the body of a request, whose host may name a bucket.
    ///
    /// # Errors
    /// `SlowDown` when there is no memory for it now, `EntityTooLarge` when there never is.
    pub(crate) fn watch(
        &self,
        request: Request<Incoming>,
        host_names_bucket: bool,
    ) -> S3Result<Request<Watched>> {
        let kind = match HowRead::of(&request, host_names_bucket) {
            _ if request.body().is_end_stream() => Kind::Streamed,
            HowRead::Streamed => Kind::Streamed,
            HowRead::Chunked { signed } => {
                Kind::Chunked(Chunks::new(signed), Arc::clone(&self.others), None)
            }
            HowRead::Held { is_form } => {
                let (most, budget, patience) = match is_form {
                    true => (
                        FORM_FILE_BYTES_MAX + FORM_REST_BYTES_MAX,
                        &self.forms,
                        FORM_PATIENCE,
                    ),
                    false => (XML_BYTES_MAX as u64, &self.others, XML_PATIENCE),
                };
                let bytes = request.body().size_hint().exact().unwrap_or(most);
                if bytes > most {
                    return Err(S3ErrorCode::EntityTooLarge.into());
                }
                let permit = match bytes > UNCOUNTED_BYTES_MAX {
                    true => Some(take(budget, bytes).ok_or(S3ErrorCode::SlowDown)?),
                    false => None,
                };
                Kind::Held {
                    end: Box::pin(tokio::time::sleep(patience)),
                    _permit: permit,
                }
            }
        };
        Ok(request.map(|body| Watched {
            body,
            kind,
            ready: VecDeque::new(),
        }))
    }
}

fn take(budget: &Arc<Semaphore>, bytes: u64) -> Option<OwnedSemaphorePermit> {
    let kib = u32::try_from(bytes.div_ceil(1024)).ok()?;
    Arc::clone(budget).try_acquire_many_owned(kib).ok()
}

/// How S3 reads a body.
#[derive(Debug, PartialEq, Eq)]
enum HowRead {
    Streamed,
    Chunked { signed: bool },
    Held { is_form: bool },
}

impl HowRead {
    fn of<B>(request: &Request<B>, host_names_bucket: bool) -> Self {
        let header = |name: &str| {
            let value = request.headers().get(name)?;
            value.to_str().ok()
        };
        // What a PUT may name without being something else than content.
        let is_plain = |pair: &str| {
            let name = pair.split('=').next().unwrap_or_default();
            matches!(name, "" | "partNumber" | "uploadId" | "x-id" | "versionId")
                || name.starts_with("X-Amz-")
                // Of links that are signed with version 2.
                || matches!(name, "AWSAccessKeyId" | "Signature" | "Expires")
        };
        let path = request.uri().path().trim_start_matches('/');
        let has_key = match host_names_bucket {
            true => !path.is_empty(),
            false => path.contains('/'),
        };
        let query = request.uri().query().unwrap_or_default();
        let is_content =
            *request.method() == Method::PUT && has_key && query.split('&').all(is_plain);
        if !is_content {
            return Self::Held {
                is_form: is_form(request.method(), request.headers()),
            };
        }
        match header("x-amz-content-sha256").and_then(|it| it.strip_prefix("STREAMING-")) {
            Some(kind) => Self::Chunked {
                signed: !kind.starts_with("UNSIGNED"),
            },
            None => Self::Streamed,
        }
    }
}

impl hyper::body::Body for Watched {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = &mut *self;
        loop {
            if let Some(bytes) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if let Kind::Held { end, .. } = &mut this.kind
                && end.as_mut().poll(context).is_ready()
            {
                return Poll::Ready(Some(Err("the body takes too long".into())));
            }
            let frame = match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                Some(Ok(frame)) => frame,
            };
            let Kind::Chunked(chunks, budget, permit) = &mut this.kind else {
                return Poll::Ready(Some(Ok(frame)));
            };
            let bytes = match frame.into_data() {
                Ok(bytes) => bytes,
                Err(other) => return Poll::Ready(Some(Ok(other))),
            };
            let held = match chunks.feed(bytes, &mut this.ready) {
                Ok(held) => held,
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            };
            match held {
                None => {}
                Some(0) => *permit = None,
                Some(bytes) => {
                    *permit = None;
                    match take(budget, bytes as u64) {
                        Some(taken) => *permit = Some(taken),
                        None => return Poll::Ready(Some(Err(BUSY.into()))),
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ready.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.kind {
            // Its frames are not those that come.
            Kind::Chunked(..) => SizeHint::default(),
            _ => self.body.size_hint(),
        }
    }
}

/// The chunks of a body as they pass.
struct Chunks {
    signed: bool,
    state: State,
}

enum State {
    /// In the line before a chunk.
    Line(BytesMut),
    /// In a chunk: bytes to its end, and to the end of the piece that it is cut into.
    Data { left: usize, piece: usize },
    /// In the line end after a chunk.
    End(usize),
    /// After the last chunk.
    Rest,
}

impl Chunks {
    fn new(signed: bool) -> Self {
        Self {
            signed,
            state: State::Line(BytesMut::new()),
        }
    }

    /// Passes bytes on. Tells of the last chunk that began in them how much of it is to be held beyond what is small.
    ///
    /// # Errors
    /// What is wrong with them.
    fn feed(
        &mut self,
        mut bytes: Bytes,
        out: &mut VecDeque<Bytes>,
    ) -> Result<Option<usize>, &'static str> {
        let mut held = None;
        while !bytes.is_empty() {
            match &mut self.state {
                State::Rest => {
                    out.push_back(std::mem::take(&mut bytes));
                }
                State::Line(line) => {
                    let end = bytes.iter().position(|&byte| byte == b'\n');
                    line.extend_from_slice(&bytes.split_to(end.map_or(bytes.len(), |at| at + 1)));
                    if line.len() > LINE_BYTES_MAX {
                        return Err("the line before a chunk is too long");
                    }
                    if end.is_none() {
                        continue;
                    }
                    let size = chunk_bytes(line).ok_or("a chunk has no length")?;
                    if self.signed && size > SIGNED_CHUNK_BYTES_MAX {
                        return Err("a chunk with a signature is too long");
                    }
                    let is_cut = !self.signed && size > CHUNK_BYTES;
                    let line = line.split().freeze();
                    if !is_cut {
                        out.push_back(line);
                    }
                    held = Some(
                        match self.signed && size as u64 > UNCOUNTED_BYTES_MAX * 16 {
                            true => size,
                            false => 0,
                        },
                    );
                    self.state = match size {
                        0 => State::Rest,
                        _ => State::Data {
                            left: size,
                            piece: if is_cut { 0 } else { size },
                        },
                    };
                }
                State::Data { left, piece } => {
                    if *piece == 0 {
                        *piece = CHUNK_BYTES.min(*left);
                        out.push_back(format!("{piece:x}\r\n").into());
                    }
                    let step = bytes.split_to(bytes.len().min(*piece));
                    *left -= step.len();
                    *piece -= step.len();
                    out.push_back(step);
                    if *left == 0 {
                        self.state = State::End(2);
                    } else if *piece == 0 {
                        out.push_back(Bytes::from_static(b"\r\n"));
                    }
                }
                State::End(left) => {
                    let step = bytes.len().min(*left);
                    *left -= step;
                    out.push_back(bytes.copy_to_bytes(step));
                    if *left == 0 {
                        self.state = State::Line(BytesMut::new());
                    }
                }
            }
        }
        Ok(held)
    }
}

/// The length that a line before a chunk tells.
fn chunk_bytes(line: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(line).ok()?.trim_end();
    let digits = text.split(';').next()?;
    // An empty text and signs are none, although the standard library would take one of them.
    match digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => usize::from_str_radix(digits, 16).ok(),
        false => None,
    }
}

/// Whether a request says that it has no body.
pub(crate) fn is_empty<B>(request: &Request<B>) -> bool {
    let length = request.headers().get(CONTENT_LENGTH);
    length.is_none_or(|value| value.as_bytes() == b"0")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a body that arrives in steps of so many bytes.
    fn pass(body: &[u8], step: usize, signed: bool) -> Result<(Vec<u8>, usize), &'static str> {
        let mut chunks = Chunks::new(signed);
        let mut out = VecDeque::new();
        let mut most = 0;
        for part in body.chunks(step) {
            let held = chunks.feed(Bytes::copy_from_slice(part), &mut out)?;
            most = most.max(held.unwrap_or(0));
        }
        Ok((out.into_iter().flatten().collect(), most))
    }

    fn chunk(bytes: usize, extension: &str) -> Vec<u8> {
        let mut chunk = format!("{bytes:X}{extension}\r\n").into_bytes();
        chunk.extend(std::iter::repeat_n(b'x', bytes));
        chunk.extend(b"\r\n");
        chunk
    }

    #[test]
    fn long_chunks_without_signatures_are_cut() {
        let end = b"0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n";
        let long = 2 * CHUNK_BYTES + 5;
        let body = [chunk(7, ""), chunk(long, ""), chunk(1, ""), end.to_vec()].concat();
        let line = |bytes: usize| format!("{bytes:x}\r\n").into_bytes();
        let data = |bytes: usize| [vec![b'x'; bytes], b"\r\n".to_vec()].concat();
        let wanted = [
            chunk(7, ""),
            line(CHUNK_BYTES),
            data(CHUNK_BYTES),
            line(CHUNK_BYTES),
            data(CHUNK_BYTES),
            line(5),
            data(5),
            chunk(1, ""),
            end.to_vec(),
        ]
        .concat();
        for step in [1, 2, 3, 1000, CHUNK_BYTES, body.len()] {
            let (passed, _) = pass(&body, step, false).expect("it is right");
            assert!(passed == wanted, "in steps of {step}");
        }
    }

    #[test]
    fn signed_chunks_are_bounded_and_counted() {
        let body = [chunk(2 << 20, ";chunk-signature=ab"), chunk(0, "")].concat();
        for step in [1000, body.len()] {
            let (passed, _) = pass(&body, step, true).expect("it is right");
            assert!(passed == body, "in steps of {step}");
        }
        let (_, held) = pass(&body[..100], 10, true).expect("it is right so far");
        assert_eq!(held, 2 << 20);
        let long = format!("{:x};chunk-signature=ab\r\n", SIGNED_CHUNK_BYTES_MAX + 1);
        assert!(pass(long.as_bytes(), 5, true).is_err());
        assert!(pass(&[b'0'; 2000], 5, true).is_err());
        for nonsense in ["x\r\n", "+1\r\n", "-1\r\n", "11111111111111111\r\n", "\n"] {
            assert!(pass(nonsense.as_bytes(), 5, false).is_err(), "{nonsense:?}");
        }
    }

    #[test]
    fn what_is_content_is_streamed() {
        let check = |method: &str, target: &str, header: (&str, &str), wanted: HowRead| {
            let request = Request::builder()
                .method(method)
                .uri(target)
                .header(header.0, header.1)
                .body(())
                .expect("a request");
            assert_eq!(HowRead::of(&request, false), wanted, "{method} {target}");
        };
        let none = ("accept", "x");
        check("PUT", "/b/k", none, HowRead::Streamed);
        check(
            "PUT",
            "/b/k?uploadId=1&partNumber=2",
            none,
            HowRead::Streamed,
        );
        check(
            "PUT",
            "/b/k?X-Amz-Date=1&x-id=PutObject",
            none,
            HowRead::Streamed,
        );
        check(
            "PUT",
            "/b/k?tagging",
            none,
            HowRead::Held { is_form: false },
        );
        check(
            "PUT",
            "/b/k?AWSAccessKeyId=k&Expires=1&Signature=s",
            none,
            HowRead::Streamed,
        );
        check("PUT", "/b?policy=", none, HowRead::Held { is_form: false });
        check("POST", "/b?delete", none, HowRead::Held { is_form: false });
        check("PUT", "/b", none, HowRead::Held { is_form: false });
        check("GET", "/b/k", none, HowRead::Held { is_form: false });
        let request = Request::put("/k").body(()).expect("a request");
        assert_eq!(HowRead::of(&request, true), HowRead::Streamed);
        let form = ("content-type", "multipart/form-data; boundary=x");
        check("POST", "/b", form, HowRead::Held { is_form: true });
        let unsigned = ("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER");
        check("PUT", "/b/k", unsigned, HowRead::Chunked { signed: false });
        let signed = (
            "x-amz-content-sha256",
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
        );
        check("PUT", "/b/k", signed, HowRead::Chunked { signed: true });
        check("PUT", "/b/k?acl", signed, HowRead::Held { is_form: false });
    }
}
