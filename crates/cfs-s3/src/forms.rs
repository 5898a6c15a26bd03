//! Forms (PostObject) before `s3s` reads them: what it leaves out is done here, and it checks what comes of it.
//!
//! In the key `${filename}` stands for the name of the file, which a form has after all of its fields. S3 puts it in before
//! it looks at the policy, so that conditions are about the key that the object will have. So all up to the file is held
//! until the file's name has come; the file itself passes.

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Request};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};
use s3s::{Body, S3Error, S3ErrorCode, S3Result, StdError, s3_error};

use crate::bodies::{FORM_REST_BYTES_MAX, Watched};

/// What stands for the file's name in a key.
const FILE_NAME: &str = "${filename}";

/// The form as `s3s` is to read it. What is no form passes as it is, and is refused there.
///
/// # Errors
/// `InvalidArgument` for one that names a key and has no signature; `InvalidPolicyDocument`; `MalformedPOSTRequest` when it
/// does not arrive.
pub(crate) async fn prepared(request: Request<Watched>) -> S3Result<Request<Body>> {
    let boundary = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|kind| boundary_of(kind.to_str().ok()?));
    let Some(boundary) = boundary else {
        return Ok(request.map(Body::http_body_unsync));
    };
    let (mut head, mut body) = request.into_parts();
    let mut held = Vec::new();
    let mut read = Reading::new(&boundary);
    let fields = loop {
        match read.go_on(&held) {
            Read::Fields(fields) => break Some(fields),
            Read::NoForm => break None,
            Read::More if held.len() as u64 > FORM_REST_BYTES_MAX => break None,
            Read::More => {}
        }
        match body.frame().await {
            None => break None,
            Some(Ok(frame)) => held.extend_from_slice(frame.data_ref().map_or(&[], |it| it)),
            Some(Err(error)) => {
                return Err(S3Error::with_message(
                    S3ErrorCode::MalformedPOSTRequest,
                    format!("the form did not arrive: {error}"),
                ));
            }
        }
    };
    if let Some(fields) = fields {
        fields.check(&held)?;
        let named = fields.with_file_name(&held);
        let length = head.headers.get(CONTENT_LENGTH);
        let length = length.and_then(|text| text.to_str().ok()?.parse::<usize>().ok());
        if let Some(length) = length {
            let length = (length + named.len()).saturating_sub(held.len());
            head.headers
                .insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        held = named;
    }
    let resumed = Resumed {
        held: Some(Bytes::from(held))
            .filter(|held| !held.is_empty())
            .into_iter()
            .collect(),
        rest: body,
    };
    Ok(Request::from_parts(head, Body::http_body_unsync(resumed)))
}

/// The boundary that a content type names.
fn boundary_of(kind: &str) -> Option<String> {
    let mut parameters = kind.split(';').skip(1);
    let value = parameters.find_map(|parameter| {
        let (name, value) = parameter.trim().split_once('=')?;
        name.eq_ignore_ascii_case("boundary").then_some(value)
    })?;
    let value = value.trim().trim_matches('"');
    (!value.is_empty()).then(|| value.to_owned())
}

/// What has arrived.
enum Read {
    /// All fields before the file, and its name.
    Fields(Fields),
    /// Not all of them yet.
    More,
    /// Something that this cannot read.
    NoForm,
}

/// The fields of a form before its file.
struct Fields {
    /// Names in small letters, and where the values are.
    all: Vec<(String, Range<usize>)>,
    /// The name of the file, without directories; empty where it has none.
    file_name: String,
}

/// Most fields before the file.
const FIELDS_MAX: usize = 1000;

/// The reading of a form as it arrives: no byte is searched twice.
struct Reading {
    edge: String,
    /// Where the part begins that has not been read to its end.
    at: Option<usize>,
    /// What cannot be the beginning of what is searched for lies before this.
    searched: usize,
    /// The name of the part, and where its value begins, once its head has come.
    named: Option<(String, usize)>,
    all: Vec<(String, Range<usize>)>,
}

/// The name of a field, and that of its file.
fn disposition(head: &str) -> Option<(&str, Option<&str>)> {
    let line = head.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-disposition")
            .then_some(value.trim())
    })?;
    let rest = line.strip_prefix("form-data; name=\"")?;
    let (name, rest) = rest.split_once('"')?;
    let file = rest.strip_prefix("; filename=\"");
    Some((name, file.and_then(|rest| rest.split('"').next())))
}

impl Reading {
    fn new(boundary: &str) -> Self {
        Self {
            edge: format!("--{boundary}"),
            at: None,
            searched: 0,
            named: None,
            all: Vec::new(),
        }
    }

    /// Where `wanted` is, from `from` on and where it has not been searched for yet.
    fn find(&mut self, held: &[u8], from: usize, wanted: &[u8]) -> Option<usize> {
        let from = from.max(self.searched);
        let found = memchr::memmem::find(held.get(from..)?, wanted);
        if found.is_none() {
            self.searched = from.max((held.len() + 1).saturating_sub(wanted.len()));
        }
        found.map(|at| from + at)
    }

    /// Reads what has come since the last time.
    fn go_on(&mut self, held: &[u8]) -> Read {
        loop {
            let at = match self.at {
                Some(at) => at,
                None if held.len() < 2 => return Read::More,
                None if held.starts_with(b"\r\n") => *self.at.insert(2),
                None => *self.at.insert(0),
            };
            let start = at + self.edge.len() + 2;
            let Some(edge) = held.get(at..start) else {
                return Read::More;
            };
            if edge.strip_suffix(b"\r\n") != Some(self.edge.as_bytes()) {
                return Read::NoForm;
            }
            let (name, value) = match self.named.take() {
                Some(named) => named,
                None => {
                    let Some(end) = self.find(held, start, b"\r\n\r\n") else {
                        return Read::More;
                    };
                    let head = str::from_utf8(&held[start..end]).ok();
                    let Some((name, file)) = head.and_then(disposition) else {
                        return Read::NoForm;
                    };
                    if name.eq_ignore_ascii_case("file") {
                        let file = file.unwrap_or_default();
                        let file_name = file.rsplit(['/', '\\']).next().unwrap_or_default();
                        return Read::Fields(Fields {
                            all: std::mem::take(&mut self.all),
                            file_name: file_name.to_owned(),
                        });
                    }
                    (name.to_ascii_lowercase(), end + 4)
                }
            };
            let next_edge = format!("\r\n{}", self.edge);
            let Some(next) = self.find(held, value, next_edge.as_bytes()) else {
                self.named = Some((name, value));
                return Read::More;
            };
            if self.all.len() == FIELDS_MAX {
                return Read::NoForm;
            }
            self.all.push((name, value..next));
            self.at = Some(next + 2);
        }
    }
}

impl Fields {
    fn value<'a>(&self, held: &'a [u8], name: &str) -> Option<&'a str> {
        let (_, at) = self.all.iter().rfind(|(other, _)| other == name)?;
        str::from_utf8(&held[at.clone()]).ok()
    }

    /// Refuses what `s3s` would take.
    fn check(&self, held: &[u8]) -> S3Result<()> {
        let has_any = |names: [&str; 2]| names.iter().any(|it| self.value(held, it).is_some());
        if has_any(["awsaccesskeyid", "x-amz-credential"])
            && !has_any(["signature", "x-amz-signature"])
        {
            return Err(s3_error!(
                InvalidArgument,
                "a form that names a key has a signature, in a field before the file"
            ));
        }
        let expiration = self.value(held, "policy").and_then(|policy| {
            let text = base64_simd::STANDARD.decode_to_vec(policy).ok()?;
            let policy: serde_json::Value = serde_json::from_slice(&text).ok()?;
            Some(policy.get("expiration")?.as_str()?.to_owned())
        });
        // RFC 3339 lets others stand between date and time, and ISO 8601 does not.
        match expiration {
            Some(time) if time.as_bytes().get(10) != Some(&b'T') => Err(s3_error!(
                InvalidPolicyDocument,
                "the policy expires at a time as 2030-01-31T12:00:00Z"
            )),
            _ => Ok(()),
        }
    }

    /// The same with the name of the file in the key.
    fn with_file_name(&self, held: &[u8]) -> Vec<u8> {
        let mut named = Vec::with_capacity(held.len());
        let mut copied = 0;
        for (name, at) in &self.all {
            if name == "key"
                && let Ok(key) = str::from_utf8(&held[at.clone()])
            {
                named.extend_from_slice(&held[copied..at.start]);
                named.extend_from_slice(key.replace(FILE_NAME, &self.file_name).as_bytes());
                copied = at.end;
            }
        }
        named.extend_from_slice(&held[copied..]);
        named
    }
}

/// What was held, and then the rest.
struct Resumed<B> {
    held: VecDeque<Bytes>,
    rest: B,
}

impl<B> hyper::body::Body for Resumed<B>
where
    B: hyper::body::Body<Data = Bytes, Error = StdError> + Unpin,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        match self.held.pop_front() {
            Some(held) => Poll::Ready(Some(Ok(Frame::data(held)))),
            None => Pin::new(&mut self.rest).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let held: u64 = self.held.iter().map(|held| held.len() as u64).sum();
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        // In this order: the lower bound is never above the other.
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + held);
        }
        hint.set_lower(rest.lower() + held);
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(key: &str, file: &str) -> String {
        let form = format!(
            "--edge\r\nContent-Disposition: form-data; name=\"Key\"\r\n\r\n{key}\r\n--edge\r\ncontent-disposition: form-data; name=\"file\"{file}\r\n\r\n"
        );
        let mut reading = Reading::new("edge");
        for end in 0..form.len() {
            for reading in [&mut reading, &mut Reading::new("edge")] {
                let read = reading.go_on(&form.as_bytes()[..end]);
                assert!(matches!(read, Read::More), "{end}");
            }
        }
        let Read::Fields(fields) = reading.go_on(form.as_bytes()) else {
            panic!("{form}");
        };
        let bytes = fields.with_file_name(form.as_bytes());
        let text = String::from_utf8(bytes).expect("text");
        let (_, rest) = text.split_once("\r\n\r\n").expect("a head");
        rest.split("\r\n--edge")
            .next()
            .unwrap_or_default()
            .to_owned()
    }

    #[test]
    fn keys_have_the_names_of_files() {
        let cases = [
            ("dir/${filename}", "; filename=\"a.txt\"", "dir/a.txt"),
            ("${filename}${filename}", "; filename=\"a\"", "aa"),
            ("${filename}", "; filename=\"C:\\dir\\a b.txt\"", "a b.txt"),
            ("${filename}", "; filename=\"/etc/../x\"", "x"),
            ("k${filename}", "", "k"),
            ("plain", "; filename=\"a\"", "plain"),
            ("${filename", "; filename=\"a\"", "${filename"),
        ];
        for (key, file, wanted) in cases {
            assert_eq!(named(key, file), wanted);
        }
        // What the name of a file says is not looked at again.
        assert_eq!(
            named("${filename}", "; filename=\"${filename}\""),
            "${filename}"
        );
        for no_form in ["--other\r\n\r\n", "--edge--\r\n", "--edge\r\nx: y\r\n\r\nz"] {
            assert!(matches!(
                Reading::new("edge").go_on(no_form.as_bytes()),
                Read::NoForm
            ));
        }
    }

    #[test]
    fn what_was_held_counts_as_to_come() {
        let rest = http_body_util::Full::new(Bytes::from_static(b"rest"));
        let mut resumed = Resumed {
            held: VecDeque::from([Bytes::from_static(b"held")]),
            rest: rest.map_err(|never| match never {}),
        };
        assert_eq!(hyper::body::Body::size_hint(&resumed).exact(), Some(8));
        resumed.held.clear();
        assert_eq!(hyper::body::Body::size_hint(&resumed).exact(), Some(4));
    }

    #[test]
    fn boundaries_are_found() {
        for kind in [
            "multipart/form-data; boundary=edge",
            "multipart/form-data;charset=utf-8; Boundary=\"edge\"",
        ] {
            assert_eq!(boundary_of(kind).as_deref(), Some("edge"));
        }
        assert_eq!(boundary_of("multipart/form-data"), None);
    }
}
