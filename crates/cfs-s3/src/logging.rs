//! Access logs of buckets: a line for each request, delivered now and then as an object into another bucket.
//!
//! Lines are kept in memory until they are delivered, so that a crash loses those of the last minutes, as S3 has it: the
//! log is made for reading, and no request waits for it. What is kept is bounded; lines beyond that are lost, and said so.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, Response, Uri};
use parking_lot::Mutex;
use s3s::dto::{BucketLoggingStatus, LoggingEnabled, TargetObjectKeyFormat};
use s3s::{Body, S3Result};
use tokio::sync::{Notify, watch};

use crate::buckets::BucketAt;
use crate::face::{Face, blocking};
use crate::metadata::Meta;
use crate::ops::bucket::REGION;
use crate::policy::{ARN, Asked, Facts, Verdict, Who};
use crate::records::{self, Content, name};
use crate::upload::{Digests, Measures, Upload};

/// What delivers, by the name that S3 gives to it in policies.
const SERVICE: &str = "logging.s3.amazonaws.com";
/// Bytes of lines for one place that are delivered at once.
const OBJECT_BYTES: usize = 1 << 20;
/// Bytes of all lines that wait.
const WAITING_BYTES_MAX: usize = 16 << 20;
/// How often it is looked at what is due.
const PERIOD: Duration = Duration::from_millis(250);
/// Longest text of a client in a line, bytes.
const TEXT_BYTES_MAX: usize = 1024;

/// Where lines go: a bucket, and what the names of objects begin with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    bucket: String,
    prefix: String,
    /// A day stands in the names of directories too.
    by_day: bool,
}

/// What is known of a request to a bucket with a log.
#[derive(Clone, Debug)]
pub(crate) struct Note {
    pub(crate) place: Place,
    pub(crate) bucket: String,
    pub(crate) owner: String,
    pub(crate) key: Option<String>,
    /// Who asks; nobody without a signature.
    pub(crate) requester: Option<String>,
    /// The operation's name in S3.
    pub(crate) operation: String,
    /// An access control list was needed to allow it.
    pub(crate) by_list: bool,
    /// Keys of a batch, each with what it failed with.
    pub(crate) batch: Vec<(String, Option<String>)>,
}

/// Filled where it becomes known, and read when the request is answered.
#[derive(Clone, Default)]
pub(crate) struct Noted(Arc<Mutex<Option<Note>>>);

impl Noted {
    pub(crate) fn set(&self, note: Note) {
        *self.0.lock() = Some(note);
    }

    /// Adds a key of a batch.
    pub(crate) fn add(&self, key: &str, failed: Option<&str>) {
        if let Some(note) = &mut *self.0.lock() {
            note.batch.push((key.to_owned(), failed.map(str::to_owned)));
        }
    }

    pub(crate) fn take(&self) -> Option<Note> {
        self.0.lock().take()
    }
}

/// What a request said, from before it was answered.
pub(crate) struct Said {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

impl Said {
    pub(crate) fn of<B>(request: &http::Request<B>) -> Self {
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            headers: request.headers().clone(),
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// How a request was answered.
pub(crate) struct Answered<'a> {
    pub(crate) id: &'a str,
    pub(crate) peer: IpAddr,
    pub(crate) tls: bool,
    pub(crate) response: &'a Response<Body>,
    pub(crate) took: Duration,
}

/// The lines of a place that wait.
struct Waiting {
    since: Instant,
    bytes: usize,
    /// Each with the bucket that it is of, and its owner.
    lines: Vec<(Arc<(String, String)>, String)>,
}

/// Lines that wait.
#[derive(Default)]
pub(crate) struct Logs {
    waiting: Mutex<BTreeMap<Place, Waiting>>,
    /// Told with each line.
    came: Notify,
}

impl Logs {
    /// Adds the lines of a request.
    pub(crate) fn add(&self, now_seconds: i64, note: Note, said: &Said, answered: &Answered<'_>) {
        let mut lines = vec![line(now_seconds, &note, said, answered, None)];
        for (key, failed) in &note.batch {
            let of = Some((key.as_str(), failed.as_deref()));
            lines.push(line(now_seconds, &note, said, answered, of));
        }
        let source = Arc::new((note.bucket, note.owner));
        let mut all = self.waiting.lock();
        let held: usize = all.values().map(|waiting| waiting.bytes).sum();
        let added: usize = lines.iter().map(String::len).sum();
        if held + added > WAITING_BYTES_MAX {
            tracing::warn!("a line of an access log is lost, as too many wait");
            return;
        }
        let waiting = all.entry(note.place).or_insert_with(|| Waiting {
            since: Instant::now(),
            bytes: 0,
            lines: Vec::new(),
        });
        waiting.bytes += added;
        let lines = lines.into_iter().map(|line| (Arc::clone(&source), line));
        waiting.lines.extend(lines);
        self.came.notify_one();
    }

    /// Returns when there is something to look at again after a while.
    async fn some(&self) {
        while self.waiting.lock().is_empty() {
            self.came.notified().await;
        }
        tokio::time::sleep(PERIOD).await;
    }

    /// Takes what has waited so long, or is much.
    fn due(&self, patience: Duration) -> Vec<(Place, Waiting)> {
        let mut all = self.waiting.lock();
        let is_due = |waiting: &Waiting| {
            waiting.since.elapsed() >= patience || waiting.bytes >= OBJECT_BYTES
        };
        let due = all.iter().filter(|(_, waiting)| is_due(waiting));
        let due: Vec<Place> = due.map(|(place, _)| place.clone()).collect();
        due.into_iter()
            .filter_map(|place| all.remove_entry(&place))
            .collect()
    }
}

/// Delivers what is due over and over; what is left when `stopped` changes, then.
pub(crate) async fn deliver(
    face: Arc<Face>,
    patience: Duration,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        let is_stopped = tokio::select! {
            () = face.logs.some() => false,
            _ = stopped.wait_for(|is_stopped| *is_stopped) => true,
        };
        let patience = if is_stopped { Duration::ZERO } else { patience };
        let due = face.logs.due(patience);
        if !due.is_empty() {
            let face = Arc::clone(&face);
            let delivered = blocking(move || {
                for (place, waiting) in due {
                    if let Err(error) = face.deliver(&place, waiting) {
                        tracing::warn!("an access log for {} is lost: {error}", place.bucket);
                    }
                }
                Ok(())
            });
            if let Err(error) = delivered.await {
                tracing::error!("access logs: {error}");
            }
        }
        if is_stopped {
            return;
        }
    }
}

impl Face {
    /// Where the log of a bucket goes, if it has one.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn log_place(&self, bucket: &BucketAt) -> S3Result<Option<Place>> {
        let config: Option<BucketLoggingStatus> = self.config(bucket, name::LOGGING)?;
        let config = config.and_then(|config| config.logging_enabled);
        Ok(config.map(|config| place_of(&config, bucket)))
    }

    /// Whether the log of a bucket may go there, as the policy of the bucket that is to take it says.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn may_take_log(
        &self,
        target: &BucketAt,
        prefix: &str,
        (source, owner): (&str, &str),
    ) -> S3Result<bool> {
        let Some(policy) = self.policy(target)? else {
            return Ok(false);
        };
        let facts = Facts {
            more: vec![
                ("aws:sourcearn", format!("{ARN}{source}")),
                ("aws:sourceaccount", owner.to_owned()),
            ],
            ..Facts::default()
        };
        let said = policy.decide(&Asked {
            who: Who::Service(SERVICE),
            action: "s3:PutObject",
            resource: &format!("{ARN}{}/{prefix}", target.name),
            facts: &facts,
            tags: &[],
        });
        Ok(said.verdict == Verdict::Allow)
    }

    /// Puts lines into an object, durably.
    fn deliver(self: &Arc<Self>, place: &Place, waiting: Waiting) -> S3Result<()> {
        let target = self.bucket(&place.bucket, None)?;
        let mut may = BTreeMap::new();
        let mut text = String::with_capacity(waiting.bytes);
        for (source, line) in &waiting.lines {
            // What a bucket has put into its policy since then holds.
            let may = match may.get(source.as_ref()) {
                Some(may) => *may,
                None => {
                    let of = (source.0.as_str(), source.1.as_str());
                    let found = self.may_take_log(&target, target_prefix(place, of), of)?;
                    may.insert(source.as_ref().clone(), found);
                    found
                }
            };
            if may {
                text += line;
            }
        }
        if text.is_empty() {
            return Ok(());
        }
        let now = time_of(self.now_seconds());
        let day = match place.by_day {
            true => format!(
                "{:04}/{:02}/{:02}/",
                now.year(),
                now.month() as u8,
                now.day()
            ),
            false => String::new(),
        };
        let unique = &self.random_id()[..16];
        let key = format!(
            "{}{day}{:04}-{:02}-{:02}-{:02}-{:02}-{:02}-{}",
            place.prefix,
            now.year(),
            now.month() as u8,
            now.day(),
            now.hour(),
            now.minute(),
            now.second(),
            unique.to_ascii_uppercase()
        );
        let mut upload = Upload::begin(Arc::clone(&self.fs), target.ino())?;
        let mut digests = Digests::new(Measures {
            checksums: Default::default(),
            sha256: None,
            md5: true,
            key: None,
        });
        upload.write(text.as_bytes())?;
        digests.add(text.as_bytes());
        upload.finish()?;
        let measured = digests.finish(&upload);
        let content = Content {
            etag: measured.etag,
            sha256: measured.sha256,
            ..Content::default()
        };
        let meta = Meta {
            content_type: Some("text/plain".to_owned()),
            ..Meta::default()
        };
        let mut rows = meta.rows();
        rows.push((name::CONTENT.to_vec(), records::encode(&content)));
        self.publish(&target, &key, upload.ino(), &rows, &|_| Ok(()), false)?;
        Ok(())
    }
}

/// What was said in the configuration of what names begin with; of days and sources, no policy need speak.
pub(crate) fn target_prefix<'a>(place: &'a Place, (source, owner): (&str, &str)) -> &'a str {
    let tail = format!("{owner}/{REGION}/{source}/");
    match place.by_day {
        true => place.prefix.strip_suffix(&tail).unwrap_or(&place.prefix),
        false => &place.prefix,
    }
}

pub(crate) fn place_of(config: &LoggingEnabled, source: &BucketAt) -> Place {
    let by_day = is_partitioned(config.target_object_key_format.as_ref());
    let prefix = &config.target_prefix;
    Place {
        bucket: config.target_bucket.clone(),
        prefix: match by_day {
            true => format!("{prefix}{}/{REGION}/{}/", source.owner(), source.name),
            false => prefix.clone(),
        },
        by_day,
    }
}

/// Whether the names of objects have the source and the day in them.
pub(crate) fn is_partitioned(format: Option<&TargetObjectKeyFormat>) -> bool {
    format.is_some_and(|format| format.partitioned_prefix.is_some())
}

fn time_of(seconds: i64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

/// `[06/Feb/2026:00:00:38 +0000]`
fn bracketed(seconds: i64) -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let time = time_of(seconds);
    let month = MONTHS[usize::from(time.month() as u8) - 1];
    format!(
        "[{:02}/{month}/{:04}:{:02}:{:02}:{:02} +0000]",
        time.day(),
        time.year(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

/// The name of an operation in logs: `REST`, the method, and what it is done to.
fn logged_operation(operation: &str, method: &Method) -> String {
    let what = match operation {
        "PutObject" | "GetObject" | "HeadObject" | "DeleteObject" | "PostObject" => "OBJECT",
        "CopyObject" => return "REST.COPY.OBJECT".to_owned(),
        "UploadPart" => "PART",
        "UploadPartCopy" => return "REST.COPY.PART".to_owned(),
        "CreateMultipartUpload" | "ListMultipartUploads" => "UPLOADS",
        "CompleteMultipartUpload" | "AbortMultipartUpload" | "ListParts" => "UPLOAD",
        "ListObjects" | "ListObjectsV2" | "HeadBucket" | "DeleteBucket" => "BUCKET",
        "ListObjectVersions" => "BUCKETVERSIONS",
        "DeleteObjects" => "MULTI_OBJECT_DELETE",
        "PutObjectTagging" | "GetObjectTagging" | "DeleteObjectTagging" => "OBJECT_TAGGING",
        "PutObjectRetention" | "GetObjectRetention" => "RETENTION",
        "PutObjectLegalHold" | "GetObjectLegalHold" => "LEGAL_HOLD",
        "PutBucketPolicy" | "GetBucketPolicy" | "DeleteBucketPolicy" => "BUCKETPOLICY",
        "GetBucketLogging" | "PutBucketLogging" => "LOGGING_STATUS",
        other => {
            let verbs = ["Put", "Get", "Delete", "Head", "List"];
            let rest = verbs.iter().find_map(|verb| other.strip_prefix(verb));
            let rest = rest.unwrap_or(other);
            let rest = rest.strip_prefix("Bucket").unwrap_or(rest);
            let rest = rest.strip_prefix("Object").unwrap_or(rest);
            return format!("REST.{method}.{}", rest.to_ascii_uppercase());
        }
    };
    format!("REST.{method}.{what}")
}

/// A text of a client: without what would end it, or the line.
fn quoted(text: Option<&str>) -> String {
    let Some(text) = text else {
        return "\"-\"".to_owned();
    };
    let mut quoted = String::from("\"");
    for letter in text.chars().take(TEXT_BYTES_MAX) {
        match letter {
            '"' => quoted += "%22",
            '\\' => quoted += "%5C",
            letter if letter.is_control() => quoted.push(' '),
            letter => quoted.push(letter),
        }
    }
    quoted + "\""
}

/// A text without spaces, or a dash.
fn bare(text: Option<&str>) -> String {
    let mut bare = String::new();
    for byte in text.unwrap_or_default().bytes() {
        match byte {
            b'"' | b'%' | b'\\' | b'[' | b']' | b'\'' => {
                write!(bare, "%{byte:02X}").expect("a string takes any text");
            }
            byte if byte.is_ascii_graphic() => bare.push(char::from(byte)),
            byte => write!(bare, "%{byte:02X}").expect("a string takes any text"),
        }
    }
    match bare.is_empty() {
        true => "-".to_owned(),
        false => bare,
    }
}

fn number(number: Option<u64>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

/// The line of a request, or of a key of its batch, as S3's server access log has it.
fn line(
    now_seconds: i64,
    note: &Note,
    said: &Said,
    answered: &Answered<'_>,
    one: Option<(&str, Option<&str>)>,
) -> String {
    let response = answered.response;
    let told = |name: &str| response.headers().get(name)?.to_str().ok();
    let parsed = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok());
    let text = response.body().bytes();
    let text = text.as_deref().map(String::from_utf8_lossy);
    let failed = text
        .as_deref()
        .filter(|_| response.status().as_u16() >= 400);
    let code = failed.and_then(|text| Some(text.split_once("<Code>")?.1.split_once("</Code>")?.0));
    let sent = parsed(told("content-length")).or_else(|| {
        let body = response.body().bytes();
        body.map(|body| body.len() as u64)
    });
    let (operation, key, code) = match one {
        Some((key, failed)) => ("BATCH.DELETE.OBJECT".to_owned(), Some(key), failed),
        None => (
            logged_operation(&note.operation, &said.method),
            note.key.as_deref(),
            code,
        ),
    };
    let size = match said.method {
        _ if one.is_some() => None,
        Method::PUT => parsed(said.header("x-amz-decoded-content-length"))
            .or_else(|| parsed(said.header("content-length")))
            .filter(|_| note.key.is_some()),
        Method::GET | Method::HEAD if note.key.is_some() && code.is_none() => {
            parsed(told("content-range").and_then(|range| range.rsplit('/').next()))
                .or_else(|| parsed(told("content-length")))
        }
        _ => None,
    };
    let query = said.uri.query().unwrap_or_default();
    let has = |name: &str| {
        query
            .split('&')
            .any(|pair| pair.split('=').next() == Some(name))
    };
    let authorization = said.header("authorization").unwrap_or_default();
    let (signature, kind) = if authorization.starts_with("AWS4-") {
        ("SigV4", "AuthHeader")
    } else if authorization.starts_with("AWS ") {
        ("SigV2", "AuthHeader")
    } else if has("X-Amz-Signature") {
        ("SigV4", "QueryString")
    } else if has("Signature") {
        ("SigV2", "QueryString")
    } else {
        ("-", "-")
    };
    let version = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("versionId="))
        .or_else(|| told("x-amz-version-id"));
    let path = said.uri.path_and_query().map_or("/", |path| path.as_str());
    // A signature in a link is as good as a key while it lasts.
    let path = match kind {
        "QueryString" => said.uri.path(),
        _ => path,
    };
    let uri = format!("{} {path} HTTP/1.1", said.method);
    let fields = [
        bare(Some(&note.owner)),
        bare(Some(&note.bucket)),
        bracketed(now_seconds),
        answered.peer.to_string(),
        bare(note.requester.as_deref()),
        bare(Some(answered.id)),
        operation,
        bare(key),
        quoted(Some(&uri)),
        response.status().as_u16().to_string(),
        bare(code),
        number(sent),
        number(size),
        // The answer's body may still be on its way.
        "-".to_owned(),
        answered.took.as_millis().to_string(),
        quoted(said.header("referer")),
        quoted(said.header("user-agent")),
        bare(version),
        "cfs".to_owned(),
        signature.to_owned(),
        "-".to_owned(),
        kind.to_owned(),
        bare(said.header("host")),
        if answered.tls { "TLS" } else { "-" }.to_owned(),
        "-".to_owned(),
        if note.by_list { "Yes" } else { "-" }.to_owned(),
    ];
    fields.join(" ") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_fields() {
        let note = Note {
            place: Place {
                bucket: "logs".to_owned(),
                prefix: String::new(),
                by_day: false,
            },
            bucket: "b".to_owned(),
            owner: "id".to_owned(),
            key: Some("a b\"c".to_owned()),
            requester: None,
            operation: "GetObject".to_owned(),
            by_list: true,
            batch: Vec::new(),
        };
        let request = http::Request::get("/b/a%20b?X-Amz-Signature=secret")
            .header("user-agent", "a \"b\" [c]\t")
            .header("host", "h")
            .body(())
            .expect("a request");
        let response = Response::builder()
            .status(404)
            .body(Body::from(
                "<Error><Code>NoSuchKey</Code></Error>".to_owned(),
            ))
            .expect("an answer");
        let answered = Answered {
            id: "1F",
            peer: "127.0.0.1".parse().expect("an address"),
            tls: false,
            response: &response,
            took: Duration::from_millis(7),
        };
        let text = line(1_549_411_238, &note, &Said::of(&request), &answered, None);
        assert_eq!(
            text,
            "id b [06/Feb/2019:00:00:38 +0000] 127.0.0.1 - 1F REST.GET.OBJECT a%20b%22c \
             \"GET /b/a%20b HTTP/1.1\" 404 NoSuchKey 37 - - 7 \"-\" \"a %22b%22 [c] \" - cfs SigV4 - \
             QueryString h - - Yes\n"
        );
    }

    #[test]
    fn operations_have_their_names() {
        for (operation, method, wanted) in [
            ("PutObject", Method::PUT, "REST.PUT.OBJECT"),
            ("CopyObject", Method::PUT, "REST.COPY.OBJECT"),
            ("ListObjectsV2", Method::GET, "REST.GET.BUCKET"),
            ("PutBucketAcl", Method::PUT, "REST.PUT.ACL"),
            ("GetBucketVersioning", Method::GET, "REST.GET.VERSIONING"),
        ] {
            assert_eq!(logged_operation(operation, &method), wanted);
        }
    }
}
